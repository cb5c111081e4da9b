//! `[listener.mqtt]`.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::at::At;
use super::{Context, values};
use crate::codec::mqtt::topic;
use crate::config::Mqtt;
use crate::config::error::Problem;
use crate::config::raw::RawMqtt;

/// What stands for the device's own id in a rule.
const PLACEHOLDER: &str = "{device}";
/// The keep-alive travels as seconds in 16 bits.
const KEEP_ALIVE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(65_535);
/// Three years: ticks that are compared must lie near each other (`time`).
const SESSION_EXPIRY: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(24 * 1_095);

pub(super) fn resolve(context: &mut Context<'_>, at: &At<'_>, raw: RawMqtt) -> Result<Mqtt, Problem> {
    let default = Mqtt::default();
    let keep_alive_max = match raw.keep_alive_max.as_deref() {
        None => None,
        Some(written) => {
            let place = at.key("mqtt.keep_alive_max");
            Some(whole_seconds(
                at,
                "mqtt.keep_alive_max",
                values::duration(place, Some(written), *KEEP_ALIVE.end(), KEEP_ALIVE)?,
            )?)
        }
    };
    let place = at.key("mqtt.session_expiry_max");
    let written = raw.session_expiry_max.as_deref();
    let expiry = values::duration(place, written, default.session_expiry_max, SESSION_EXPIRY)?;
    let session_expiry_max = whole_seconds(at, "mqtt.session_expiry_max", expiry)?;
    let mqtt = Mqtt {
        keep_alive_max,
        session_expiry_max,
        uplink: filters(at, "mqtt.uplink", raw.uplink, default.uplink, false)?,
        publish: filters(at, "mqtt.publish", raw.publish, default.publish, true)?,
        subscribe: filters(at, "mqtt.subscribe", raw.subscribe, default.subscribe, true)?,
    };
    let open: Vec<&str> = [("publish", &mqtt.publish), ("subscribe", &mqtt.subscribe)]
        .into_iter()
        .filter(|(_, rules)| rules.iter().any(|rule| rule == "#"))
        .map(|(what, _)| what)
        .collect();
    if !open.is_empty() {
        let what = open.join(" and ");
        context.note(&at.key(&format!("mqtt.{}", open[0])), &format!("any device may {what} anywhere"));
    }
    Ok(mqtt)
}

fn whole_seconds(at: &At<'_>, key: &str, duration: Duration) -> Result<Duration, Problem> {
    if duration.subsec_nanos() == 0 {
        return Ok(duration);
    }
    Err(Problem::new(at.key(key), "MQTT counts it in whole seconds", "write whole seconds"))
}

fn filters(
    at: &At<'_>,
    key: &str,
    written: Option<Vec<String>>,
    default: Vec<String>,
    is_rule: bool,
) -> Result<Vec<String>, Problem> {
    let Some(written) = written else { return Ok(default) };
    for filter in &written {
        let plain = if is_rule { filter.replace(PLACEHOLDER, "x") } else { filter.clone() };
        let place = at.key(key);
        if plain.contains(['{', '}']) {
            let remedy = if is_rule { "write {device}" } else { "leave it out: {device} is for publish and subscribe" };
            return Err(Problem::new(place, format!("{filter:?} has a placeholder that is not known"), remedy));
        }
        if !topic::is_topic_filter(&plain) || topic::shared(&plain).is_some() {
            let remedy = "write a topic filter, such as \"devices/{device}/#\" or \"fleet/+/state\"";
            return Err(Problem::new(place, format!("{filter:?} is not a topic filter"), remedy));
        }
    }
    Ok(written)
}

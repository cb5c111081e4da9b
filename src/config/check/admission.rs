//! `[admission]`: how much may come from one address and from one network.

use std::ops::RangeInclusive;

use super::{Context, values};
use crate::config::error::{ConfigKey, Problem};
use crate::config::raw::{RawAdmission, RawConnectionBounds};
use crate::config::{Admission, ConnectionBounds, Limits};
use crate::network::Network;

/// At most so many networks: each new connection is looked at against all.
const ALLOW_MAX: usize = 256;
const CONNECTIONS: RangeInclusive<i64> = 0..=10_000_000;
const PER_SECOND: RangeInclusive<i64> = 0..=1_000_000;
const BURST: RangeInclusive<i64> = 1..=10_000_000;

/// `per_address` is `limits.connections_per_address` as written: an older name for the rate of an address.
pub(super) fn resolve(
    context: &mut Context<'_>,
    raw: RawAdmission,
    per_address: Option<i64>,
    limits: &Limits,
) -> Result<Admission, Problem> {
    let default = Admission::for_connections(limits.connections);
    let allow = allow(context, &raw.allow)?;
    let mut address = raw.address;
    if let Some(written) = per_address {
        let place = ConfigKey::top("limits.connections_per_address");
        values::integer(place.clone(), Some(written), 0, PER_SECOND, "connections in a second (0: no bound)")?;
        if address.per_second.is_some() {
            let what = "admission.address.per_second says the same";
            return Err(Problem::new(place, what, "remove it: admission.address.per_second is the newer name"));
        }
        address.per_second = Some(written);
    }
    let address = bounds("address", &address, default.address)?;
    let network = bounds("network", &raw.network, default.network)?;
    Ok(Admission { allow, address, network })
}

fn allow(context: &mut Context<'_>, written: &[String]) -> Result<Vec<Network>, Problem> {
    let place = || ConfigKey::top("admission.allow");
    if written.len() > ALLOW_MAX {
        let what = format!("there are {}", written.len());
        return Err(Problem::new(place(), what, format!("write at most {ALLOW_MAX}")));
    }
    let mut networks = Vec::with_capacity(written.len());
    for text in written {
        let Ok(network) = text.parse::<Network>() else {
            let remedy = "write an address, or one with the bits that count and no others, such as \"10.0.0.0/8\"";
            return Err(Problem::new(place(), format!("{text:?} is no network"), remedy));
        };
        if network.is_everybody() {
            context.warn(&place(), "every address is in it, so that no bound of [admission] is about anybody");
        }
        networks.push(network);
    }
    Ok(networks)
}

fn bounds(table: &str, raw: &RawConnectionBounds, default: ConnectionBounds) -> Result<ConnectionBounds, Problem> {
    let value = |key: &str, written, default: u32, range, unit| {
        let place = ConfigKey::top(format!("admission.{table}.{key}"));
        values::integer(place, written, i64::from(default), range, unit).map(|value| value as u32)
    };
    let connections =
        value("connections", raw.connections, default.connections, CONNECTIONS, "connections (0: no bound)")?;
    let unit = "connections in a second (0: no bound)";
    let per_second = value("per_second", raw.per_second, default.per_second, PER_SECOND, unit)?;
    // Whoever writes a rate means it from the first second on, unless a burst is written too.
    let usual = if raw.per_second.is_some() { per_second.max(1) } else { default.burst };
    let burst = value("burst", raw.burst, usual, BURST, "connections")?;
    Ok(ConnectionBounds { connections, per_second, burst })
}

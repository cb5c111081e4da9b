//! `POST /v1/publish`: a message for every MQTT device that has subscribed to its topic, connected or away.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State as Shared;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::devices::{ANSWER_MAX, ask};
use super::error::ApiError;
use super::{State, body};
use crate::codec::mqtt::topic;
use crate::fleet;
use crate::link::{Outcome, Publication, QoS, Reach, Stamp, WorkerCommand, group_keys};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    topic: String,
    payload: Option<String>,
    payload_base64: Option<String>,
    #[serde(default)]
    qos: u8,
    #[serde(default)]
    retain: bool,
    expiry: Option<String>,
    /// Only for subscribers of this gateway.
    #[serde(default)]
    local: bool,
}

#[derive(Serialize)]
pub(super) struct Published {
    outcome: &'static str,
}

pub(super) async fn publish(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<Published>), ApiError> {
    let order: Order = body::parse(&headers, body)?;
    check_topic(&order.topic, state.config.limits.topic_levels)?;
    let qos =
        QoS::try_from(order.qos).map_err(|()| ApiError::Body(format!("qos must be 0, 1 or 2, not {}", order.qos)))?;
    let expires = expiry(order.expiry.as_deref())?.map(|expiry| state.clock.now().plus(expiry));
    let payload = body::payload(order.payload, order.payload_base64.as_ref())?;
    let (mut stamp, mut reach, mut groups) = (Stamp::NONE, Reach::Here, None);
    // Until its worker has it.
    let under_way = state.sessions.underway.begin();
    if let Some(fleet) = state.fleet.as_ref().filter(|fleet| fleet.has_stream() && !order.local) {
        if order.retain {
            stamp = state.exchange.stamp(u64::try_from(state.clock.unix_ms(state.clock.now())).unwrap_or(0));
        }
        reach = Reach::Fleet;
        groups = state.exchange.groups_here().wanting(&order.topic);
        let given = groups.as_deref().map(|groups| group_keys(groups).into());
        let (topic, expires_ms) = (&*order.topic, expires.map(|expires| state.clock.unix_ms(expires)));
        let elsewhere = fleet::Publication { topic, payload: payload.clone(), qos, stamp, expires_ms, groups: given };
        fleet.publish(&elsewhere).await.map_err(ApiError::NotPublished)?;
    }
    // Always the same worker for a topic: what is published under it one after the other arrives so.
    let worker = state.home.of(&order.topic);
    let plain = Publication::plain(order.topic, payload, qos);
    let publication = Box::new(Publication { retain: order.retain, expires, stamp, reach, groups, ..plain });

    let deadline = Instant::now() + ANSWER_MAX;
    let ticket = ask(&state, &state.sent, worker, |request| WorkerCommand::Publish { request, publication })?;
    drop(under_way);
    match ticket.answer(deadline).await {
        Some(Outcome::Refused(why)) => Err(ApiError::NotRetained(why)),
        Some(_) => Ok((StatusCode::ACCEPTED, Json(Published { outcome: "accepted" }))),
        None => Err(ApiError::WorkerBusy { worker: worker.index() }),
    }
}

/// Whether the owner may publish under `topic`, or what is wrong with it.
fn check_topic(topic: &str, levels_max: usize) -> Result<(), ApiError> {
    let levels = topic::level_count(topic);
    let fault = if topic.is_empty() {
        "topic is empty".to_owned()
    } else if topic.len() > topic::TOPIC_BYTES_MAX {
        format!("topic is {} bytes long; MQTT takes at most {}", topic.len(), topic::TOPIC_BYTES_MAX)
    } else if topic.contains(['+', '#']) {
        format!("topic {topic:?} holds a wildcard (+ or #): those are for subscriptions")
    } else if !topic::is_topic_name(topic) {
        format!("topic {topic:?} is not an MQTT topic name: it holds a null character")
    } else if topic.starts_with("$SYS") {
        format!("topic {topic:?} begins with $SYS, under which nobody publishes")
    } else if levels > levels_max {
        format!("topic has {levels} levels; limits.topic_levels is {levels_max}")
    } else {
        return Ok(());
    };
    Err(ApiError::Body(fault))
}

fn expiry(written: Option<&str>) -> Result<Option<Duration>, ApiError> {
    let Some(text) = written else { return Ok(None) };
    let parsed = humantime::parse_duration(text).ok();
    let parsed = parsed.filter(|expiry| (1..=u64::from(u32::MAX)).contains(&expiry.as_secs()));
    let fault = || ApiError::Body(format!("expiry must be a duration of at least \"1s\", not {text:?}"));
    parsed.map(Some).ok_or_else(fault)
}

//! `POST /v1/devices/{id}/messages`, which NATS may ask too, and `DELETE /v1/devices/{id}/connection`: one device is told something, and what
//! became of it is told to whoever asked.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, State as Shared};
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::devices::{ANSWER_MAX, ask};
use super::error::ApiError;
use super::{State, body};
use crate::fleet::{Deed, Reply, Unreachable};
use crate::link::{Outcome, WorkerCommand};

/// How long an acknowledgement is waited for when the request does not say.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// The least and the most that a request may say.
const TIMEOUT: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_mins(1);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    #[serde(default)]
    topic: String,
    payload: Option<String>,
    payload_base64: Option<String>,
    #[serde(default)]
    ack: bool,
    timeout: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Sent {
    outcome: &'static str,
    /// In a fleet: the gateway that has done it.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

pub(super) async fn send(
    Shared(state): Shared<Arc<State>>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Sent>, ApiError> {
    let Path(device) = path.map_err(|_| ApiError::Path)?;
    let order = body::parse(&headers, body)?;
    deliver(&state, &device, order).await.map(Json)
}

/// The same, asked by NATS: `body` is what a request's would be, and so is what comes back.
pub(in crate::control) async fn answer(state: &State, device: &str, body: &[u8]) -> Bytes {
    let answered = async {
        let _place = state.sends.try_acquire().map_err(|_| ApiError::ApiBusy)?;
        deliver(state, device, body::from_slice(body)?).await
    };
    let text = match answered.await {
        Ok(sent) => serde_json::to_vec(&sent),
        Err(error) => serde_json::to_vec(&error.body()),
    };
    text.expect("they have no keys but texts").into()
}

/// Says it to the device, here or at the gateway that has it.
async fn deliver(state: &State, device: &str, order: Order) -> Result<Sent, ApiError> {
    let patience = if order.ack { timeout(order.timeout.as_deref())? } else { ANSWER_MAX };
    let acknowledge = order.ack;
    let downlink = body::downlink(&order.topic, order.payload, order.payload_base64.as_ref())?;

    let deadline = Instant::now() + patience;
    let worker = state.home.of(device);
    let here = downlink.clone();
    let command = |request| WorkerCommand::Send { request, device: device.into(), downlink: here, acknowledge };
    let ticket = ask(state, &state.sent, worker, command)?;
    let this = state.fleet.as_ref().map(|_| state.config.node.clone());
    let (reply, node) = match ticket.answer(deadline).await {
        Some(Outcome::Offline) => elsewhere(state, device, &Deed::Send { downlink, acknowledge }, deadline).await?,
        Some(Outcome::Delivered) => (Reply::Delivered, this),
        Some(Outcome::Acknowledged) => (Reply::Acknowledged, this),
        Some(Outcome::Unacknowledged) => (Reply::Unacknowledged, None),
        Some(Outcome::Refused(why)) => (Reply::Refused { why: why.to_owned() }, None),
        None if acknowledge => (Reply::Late, None),
        None => return Err(ApiError::WorkerBusy { worker: worker.index() }),
    };
    match reply {
        Reply::Delivered => Ok(Sent { outcome: "delivered", node }),
        Reply::Acknowledged => Ok(Sent { outcome: "acknowledged", node }),
        Reply::Late => Err(ApiError::AckTimeout { device: device.to_owned(), waited: patience }),
        other => Err(failed(device, other, node)),
    }
}

/// Does it at the gateway that has the device, and says which that is. Without a fleet there is none.
async fn elsewhere(
    state: &State,
    device: &str,
    deed: &Deed,
    deadline: Instant,
) -> Result<(Reply, Option<String>), ApiError> {
    let Some(fleet) = &state.fleet else { return Ok((Reply::Offline, None)) };
    match fleet.forward(device, deed, deadline.into_std()).await {
        Ok((reply, node)) => Ok((reply, Some(node))),
        Err(Unreachable::Away) => Err(ApiError::FleetAway(device.to_owned())),
        Err(Unreachable::Deaf(node)) => Err(ApiError::GatewayDeaf { node }),
        Err(Unreachable::Silent(node)) => Err(ApiError::GatewaySilent { device: device.to_owned(), node }),
    }
}

/// What went wrong, wherever it was.
fn failed(device: &str, reply: Reply, node: Option<String>) -> ApiError {
    let device = device.to_owned();
    match (reply, node) {
        (Reply::Unacknowledged, _) => ApiError::Unacknowledged(device),
        (Reply::Refused { why }, _) => ApiError::Refused { device, why },
        // It has too much to do, or is of another version and does not know what was asked: nothing was done.
        (Reply::Busy | Reply::NotUnderstood { .. } | Reply::Heard | Reply::Here { .. }, Some(node)) => {
            ApiError::GatewayDeaf { node }
        }
        _ => ApiError::Offline(device),
    }
}

pub(super) async fn disconnect(
    Shared(state): Shared<Arc<State>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    let Path(device) = path.map_err(|_| ApiError::Path)?;
    let deadline = Instant::now() + ANSWER_MAX;
    let worker = state.home.of(&device);
    let command = |request| WorkerCommand::Disconnect { request, device: device.as_str().into() };
    let ticket = ask(&state, &state.sent, worker, command)?;
    let (reply, node) = match ticket.answer(deadline).await {
        Some(Outcome::Offline) => elsewhere(&state, &device, &Deed::Disconnect, deadline).await?,
        Some(_) => (Reply::Delivered, None),
        None => return Err(ApiError::WorkerBusy { worker: worker.index() }),
    };
    match reply {
        Reply::Delivered => Ok(StatusCode::NO_CONTENT),
        other => Err(failed(&device, other, node)),
    }
}

fn timeout(written: Option<&str>) -> Result<Duration, ApiError> {
    let Some(text) = written else { return Ok(TIMEOUT_DEFAULT) };
    let parsed = humantime::parse_duration(text).ok().filter(|timeout| TIMEOUT.contains(timeout));
    parsed.ok_or_else(|| ApiError::Body(format!("timeout must be a duration from \"10ms\" to \"60s\", not {text:?}")))
}

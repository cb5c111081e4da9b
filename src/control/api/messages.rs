//! `POST /v1/devices/{id}/messages` and `DELETE /v1/devices/{id}/connection`: one device is told something, and what
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
}

pub(super) async fn send(
    Shared(state): Shared<Arc<State>>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Sent>, ApiError> {
    let Path(device) = path.map_err(|_| ApiError::Path)?;
    let order: Order = body::parse(&headers, body)?;
    let patience = if order.ack { timeout(order.timeout.as_deref())? } else { ANSWER_MAX };
    let acknowledge = order.ack;
    let downlink = body::downlink(&order.topic, order.payload, order.payload_base64.as_ref())?;

    let deadline = Instant::now() + patience;
    let worker = state.home.of(&device);
    let command = |request| WorkerCommand::Send { request, device: device.as_str().into(), downlink, acknowledge };
    let ticket = ask(&state, &state.sent, worker, command)?;
    match ticket.answer(deadline).await {
        Some(Outcome::Delivered) => Ok(Json(Sent { outcome: "delivered" })),
        Some(Outcome::Acknowledged) => Ok(Json(Sent { outcome: "acknowledged" })),
        Some(Outcome::Offline) => Err(ApiError::Offline(device)),
        Some(Outcome::Unacknowledged) => Err(ApiError::Unacknowledged(device)),
        Some(Outcome::Refused(why)) => Err(ApiError::Refused { device, why }),
        None if acknowledge => Err(ApiError::AckTimeout { device, waited: patience }),
        None => Err(ApiError::WorkerBusy { worker: worker.index() }),
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
    match ticket.answer(deadline).await {
        Some(Outcome::Offline) => Err(ApiError::Offline(device)),
        Some(_) => Ok(StatusCode::NO_CONTENT),
        None => Err(ApiError::WorkerBusy { worker: worker.index() }),
    }
}

fn timeout(written: Option<&str>) -> Result<Duration, ApiError> {
    let Some(text) = written else { return Ok(TIMEOUT_DEFAULT) };
    let parsed = humantime::parse_duration(text).ok().filter(|timeout| TIMEOUT.contains(timeout));
    parsed.ok_or_else(|| ApiError::Body(format!("timeout must be a duration from \"10ms\" to \"60s\", not {text:?}")))
}

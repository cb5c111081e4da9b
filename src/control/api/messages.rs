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
use crate::commands::{EXPIRY_MAX, NotQueued};
use crate::fleet::{Deed, Reply, Unreachable};
use crate::link::{Downlink, Outcome, WorkerCommand};

/// How long an acknowledgement is waited for when the request does not say.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// How long a command waits for its device when the request does not say.
const EXPIRY_DEFAULT: Duration = Duration::from_hours(24);
/// The least and the most that a request may say.
const TIMEOUT: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_mins(1);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Order {
    #[serde(default)]
    pub(super) topic: String,
    pub(super) payload: Option<String>,
    pub(super) payload_base64: Option<String>,
    #[serde(default)]
    pub(super) ack: bool,
    pub(super) timeout: Option<String>,
    #[serde(default)]
    pub(super) queue: bool,
    pub(super) expiry: Option<String>,
}

/// What an order is, looked at.
#[derive(Clone)]
pub(super) struct Wanted {
    pub(super) downlink: Downlink,
    pub(super) acknowledge: bool,
    /// How long it may take.
    pub(super) patience: Duration,
    /// For how long it waits for a device that is nowhere; `None`: it does not.
    pub(super) expiry: Option<Duration>,
}

impl Order {
    /// What is wanted.
    pub(super) fn wanted(self) -> Result<Wanted, ApiError> {
        let patience = if self.ack { timeout(self.timeout.as_deref())? } else { ANSWER_MAX };
        let downlink = body::downlink(&self.topic, self.payload, self.payload_base64.as_ref())?;
        let expiry = match (self.queue, self.expiry) {
            (true, written) => Some(expiry(written.as_deref())?),
            (false, None) => None,
            (false, Some(_)) => {
                return Err(ApiError::Body("expiry is for what waits: write \"queue\": true with it".to_owned()));
            }
        };
        Ok(Wanted { downlink, acknowledge: self.ack, patience, expiry })
    }
}

#[derive(Serialize)]
pub(super) struct Sent {
    outcome: &'static str,
    /// In a fleet: the gateway that has done it.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// Of one that waits: its id,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
    /// and where it can be asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
}

impl Sent {
    fn done(outcome: &'static str, node: Option<String>) -> Self {
        Self { outcome, node, command: None, url: None }
    }

    /// Whether it waits for its device.
    pub(super) const fn is_queued(&self) -> bool {
        self.command.is_some()
    }
}

pub(super) async fn send(
    Shared(state): Shared<Arc<State>>,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<Sent>), ApiError> {
    let Path(device) = path.map_err(|_| ApiError::Path)?;
    let order: Order = body::parse(&headers, body)?;
    let sent = deliver(&state, &device, order.wanted()?).await?;
    Ok((if sent.is_queued() { StatusCode::ACCEPTED } else { StatusCode::OK }, Json(sent)))
}

/// The same, asked by NATS: `body` is what a request's would be, and so is what comes back.
pub(in crate::control) async fn answer(state: &Arc<State>, device: &str, body: &[u8]) -> Bytes {
    let answered = async {
        let _place = state.sends.try_acquire().map_err(|_| ApiError::ApiBusy)?;
        deliver(state, device, body::from_slice::<Order>(body)?.wanted()?).await
    };
    let text = match answered.await {
        Ok(sent) => serde_json::to_vec(&sent),
        Err(error) => serde_json::to_vec(&error.body()),
    };
    text.expect("they have no keys but texts").into()
}

/// Says it to the device, here or at the gateway that has it.
pub(super) async fn deliver(state: &Arc<State>, device: &str, wanted: Wanted) -> Result<Sent, ApiError> {
    let Wanted { downlink, acknowledge, patience, expiry } = wanted;
    if expiry.is_some() && !state.has_queue() {
        return Err(ApiError::NoQueue);
    }
    let waiting = expiry.map(|expiry| (expiry, downlink.clone()));
    let deadline = Instant::now() + patience;
    let worker = state.home.of(device);
    let here = downlink.clone();
    let command = |request| WorkerCommand::Send { request, device: device.into(), downlink: here, acknowledge };
    let ticket = ask(state, &state.sent, worker, command)?;
    let this = state.fleet.as_ref().map(|_| state.config.node.clone());
    let (reply, node) = match ticket.answer(deadline).await {
        Some(Outcome::Offline) => {
            match elsewhere(state, device, &Deed::Send { downlink, acknowledge }, deadline).await {
                // A gateway that does not hear has done nothing.
                Ok((Reply::Offline, _)) | Err(ApiError::GatewayDeaf { .. }) if waiting.is_some() => {
                    let (expiry, downlink) = waiting.expect("it was just looked at");
                    return queue(state, device, &downlink, expiry).await;
                }
                other => other?,
            }
        }
        Some(Outcome::Delivered) => (Reply::Delivered, this),
        Some(Outcome::Acknowledged) => (Reply::Acknowledged, this),
        Some(Outcome::Unacknowledged) => (Reply::Unacknowledged, None),
        Some(Outcome::Refused(why)) => (Reply::Refused { why: why.to_owned() }, None),
        None if acknowledge => (Reply::Late, None),
        None => return Err(ApiError::WorkerBusy { worker: worker.index() }),
    };
    match reply {
        Reply::Delivered => Ok(Sent::done("delivered", node)),
        Reply::Acknowledged => Ok(Sent::done("acknowledged", node)),
        Reply::Late => Err(ApiError::AckTimeout { device: device.to_owned(), waited: patience }),
        other => Err(failed(device, other, node)),
    }
}

/// Has it wait for its device.
async fn queue(state: &Arc<State>, device: &str, downlink: &Downlink, expiry: Duration) -> Result<Sent, ApiError> {
    let deadline = Instant::now() + ANSWER_MAX;
    match state.queue_command(device, downlink, expiry, deadline).await.ok_or(ApiError::NoQueue)? {
        Ok(id) => {
            let url = Some(format!("/v1/commands/{id}"));
            Ok(Sent { outcome: "queued", node: None, command: Some(id), url })
        }
        Err(NotQueued::Full(why)) => Err(ApiError::QueueFull { device: device.to_owned(), why }),
        Err(NotQueued::Away) => Err(ApiError::QueueUnknown(device.to_owned())),
    }
}

/// Does it at the gateway that has the device, and says which that is. Without a fleet there is none.
pub(super) async fn elsewhere(
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
        (Reply::Offline, _) | (_, None) => ApiError::Offline(device),
        (_, Some(node)) => ApiError::GatewayDeaf { node },
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

fn expiry(written: Option<&str>) -> Result<Duration, ApiError> {
    let Some(text) = written else { return Ok(EXPIRY_DEFAULT) };
    let range = Duration::from_secs(1)..=EXPIRY_MAX;
    let parsed = humantime::parse_duration(text).ok().filter(|expiry| range.contains(expiry));
    parsed.ok_or_else(|| ApiError::Body(format!("expiry must be a duration from \"1s\" to \"7days\", not {text:?}")))
}

fn timeout(written: Option<&str>) -> Result<Duration, ApiError> {
    let Some(text) = written else { return Ok(TIMEOUT_DEFAULT) };
    let parsed = humantime::parse_duration(text).ok().filter(|timeout| TIMEOUT.contains(timeout));
    parsed.ok_or_else(|| ApiError::Body(format!("timeout must be a duration from \"10ms\" to \"60s\", not {text:?}")))
}

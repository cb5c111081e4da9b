//! `POST /v1/messages`: the same message to a list of devices, each here or at the gateway that has it, and what became of each.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::extract::{ConnectInfo, State as Shared};
use axum::http::HeaderMap;
use axum::response::Response;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::error::{ApiError, ErrorInner};
use super::messages::{self, Order, Sent, Wanted};
use super::{ApiPeer, State, answer, body};

/// Devices in one list.
const DEVICES_MAX: usize = 1_000;
/// Devices that are told at a time: fewer than the inbox of any worker holds.
const AT_A_TIME: usize = 64;
/// What became of one, as JSON, beside its id, which an error may name once more.
const OUTCOME_BYTES: usize = 320;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Many {
    devices: Vec<Box<str>>,
    #[serde(default)]
    topic: String,
    payload: Option<String>,
    payload_base64: Option<String>,
    #[serde(default)]
    ack: bool,
    timeout: Option<String>,
    #[serde(default)]
    queue: bool,
    expiry: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Outcomes {
    /// How many were delivered or acknowledged,
    done: usize,
    /// and how many wait for their devices.
    queued: usize,
    /// How many were not, or are not known to be.
    failed: usize,
    /// Of each device, in the order of the list.
    devices: Vec<One>,
}

#[derive(Serialize)]
struct One {
    device: Box<str>,
    #[serde(flatten)]
    sent: Option<Sent>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorInner>,
}

pub(super) async fn send(
    Shared(state): Shared<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<ApiPeer>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let Many { devices, topic, payload, payload_base64, ack, timeout, queue, expiry } = body::parse(&headers, body)?;
    let order = Order { topic, payload, payload_base64, ack, timeout, queue, expiry };
    if devices.is_empty() || devices.len() > DEVICES_MAX {
        let fault = format!("devices must name 1 to {DEVICES_MAX} devices, not {}", devices.len());
        return Err(ApiError::Body(fault));
    }
    let mut named = BTreeSet::new();
    if let Some(twice) = devices.iter().find(|device| !named.insert(&***device)) {
        return Err(ApiError::Body(format!("devices names {twice:?} twice: each is told once")));
    }
    // Before anybody is told anything: what was done is answered.
    let bytes = devices.iter().map(|device| 2 * device.len() + OUTCOME_BYTES).sum();
    let reservation = state.answers.reserve(&peer, bytes).await?;
    let results = tell_all(&state, devices, order.wanted()?).await;
    let taken = results.iter().filter(|(_, result)| result.is_ok()).count();
    let queued = results.iter().filter(|(_, result)| result.as_ref().is_ok_and(Sent::is_queued)).count();
    let (done, failed) = (taken - queued, results.len() - taken);
    let one = |(device, result): (_, Result<Sent, ApiError>)| match result {
        Ok(sent) => One { device, sent: Some(sent), error: None },
        Err(error) => One { device, sent: None, error: Some(error.inner()) },
    };
    let outcomes = Outcomes { done, queued, failed, devices: results.into_iter().map(one).collect() };
    Ok(answer::within(reservation, Json(outcomes)))
}

/// Tells each, so many at a time; whose turn has not come when the time for one is over is not told.
async fn tell_all(
    state: &Arc<State>,
    devices: Vec<Box<str>>,
    wanted: Wanted,
) -> Vec<(Box<str>, Result<Sent, ApiError>)> {
    let deadline = Instant::now() + wanted.patience;
    let mut results: Vec<_> = devices.into_iter().map(|device| (device, Err(ApiError::NotItsTurn))).collect();
    let (mut tasks, mut next) = (JoinSet::new(), 0);
    loop {
        while tasks.len() < AT_A_TIME && next < results.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                next = results.len();
                break;
            }
            let wanted = Wanted { patience: left, ..wanted.clone() };
            let (state, device, place) = (Arc::clone(state), results[next].0.clone(), next);
            results[next].1 = Err(ApiError::WorkerBusy { worker: state.home.of(&device).index() });
            tasks.spawn(async move { (place, messages::deliver(&state, &device, wanted).await) });
            next += 1;
        }
        match tasks.join_next().await {
            Some(Ok((place, result))) => results[place].1 = result,
            // It ended by a fault of this program, which the log has: it may have been sent.
            Some(Err(_)) => {}
            None => return results,
        }
    }
}

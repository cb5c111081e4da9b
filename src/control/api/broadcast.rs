//! `POST /v1/broadcast`, `GET` and `DELETE /v1/broadcasts/{id}`: something said to many devices, over time. Each worker
//! tells its own devices at its share of the pace.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, State as Shared};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::{State, body};
use crate::control::broadcasts::{Progress, Share};
use crate::link::{WorkerCommand, WorkerId};

/// Devices told in a second when the request does not say.
const PER_SECOND_DEFAULT: u32 = 1_000;
/// The most that it may say.
const PER_SECOND_MAX: u32 = 1_000_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    #[serde(default)]
    topic: String,
    payload: Option<String>,
    payload_base64: Option<String>,
    #[serde(default)]
    prefix: String,
    per_second: Option<u32>,
}

#[derive(Serialize)]
struct Begun {
    id: String,
    url: String,
}

/// A broadcast as the API shows it.
#[derive(Serialize)]
pub(super) struct Shown {
    id: String,
    state: &'static str,
    sent: u64,
    refused: u64,
    workers: Vec<ShownShare>,
}

#[derive(Serialize)]
struct ShownShare {
    worker: usize,
    sent: u64,
    refused: u64,
    over: bool,
}

pub(super) async fn begin(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<impl IntoResponse, ApiError> {
    let order: Order = body::parse(&headers, body)?;
    let per_second = order.per_second.unwrap_or(PER_SECOND_DEFAULT);
    if !(1..=PER_SECOND_MAX).contains(&per_second) {
        let fault = format!("per_second must be from 1 to {PER_SECOND_MAX}, not {per_second}");
        return Err(ApiError::Body(fault));
    }
    let downlink = body::downlink(&order.topic, order.payload, order.payload_base64.as_ref())?;

    let number = state.broadcasts.begin().ok_or(ApiError::TooManyBroadcasts)?;
    let prefix: Box<str> = order.prefix.into();
    for worker in (0..state.home.workers()).map(WorkerId) {
        let command = WorkerCommand::Broadcast {
            broadcast: number,
            prefix: prefix.clone(),
            downlink: downlink.clone(),
            per_second: share_of(per_second, worker, state.home.workers()),
        };
        if state.mailboxes[worker.index()].send(command).is_err() {
            take_back(&state, number, worker);
            return Err(ApiError::WorkerBusy { worker: worker.index() });
        }
    }
    let id = format!("{}-{number}", state.epoch);
    let url = format!("/v1/broadcasts/{id}");
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, url.clone())], Json(Begun { id, url })))
}

/// What one of `workers` may tell in a second. Never nothing: with fewer devices a second than workers, each tells one.
fn share_of(per_second: u32, worker: WorkerId, workers: u16) -> u32 {
    let (workers, worker) = (u32::from(workers), u32::from(worker.0));
    (per_second / workers + u32::from(worker < per_second % workers)).max(1)
}

/// Ends a broadcast that `refusing` did not take: those before it are told, those from it on never began.
fn take_back(state: &State, number: u64, refusing: WorkerId) {
    for worker in (refusing.0..state.home.workers()).map(WorkerId) {
        state.broadcasts.report(number, worker, Share { is_over: true, ..Share::default() });
    }
    if let Err(error) = cancel_everywhere(state, number) {
        tracing::warn!(number, %error, "a broadcast that not every worker took could not be ended");
    }
}

/// Tells every worker that has not ended its share. `false`: there is no such broadcast.
fn cancel_everywhere(state: &State, number: u64) -> Result<bool, ApiError> {
    let Some(running) = state.broadcasts.cancel(number) else { return Ok(false) };
    for worker in running {
        let told = state.mailboxes[worker.index()].send(WorkerCommand::CancelBroadcast { broadcast: number });
        told.map_err(|_| ApiError::WorkerBusy { worker: worker.index() })?;
    }
    Ok(true)
}

pub(super) async fn progress(
    Shared(state): Shared<Arc<State>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, ApiError> {
    let Path(id) = path.map_err(|_| ApiError::Path)?;
    show(&state, id)
}

pub(super) async fn cancel(
    Shared(state): Shared<Arc<State>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Shown>, ApiError> {
    let Path(id) = path.map_err(|_| ApiError::Path)?;
    let Some(number) = number_of(&state, &id) else { return Err(ApiError::NoBroadcast(id)) };
    if !cancel_everywhere(&state, number)? {
        return Err(ApiError::NoBroadcast(id));
    }
    show(&state, id)
}

/// The number of a broadcast of this life of the gateway.
fn number_of(state: &State, id: &str) -> Option<u64> {
    let (epoch, number) = id.split_once('-')?;
    (epoch.parse() == Ok(state.epoch)).then(|| number.parse().ok())?
}

fn show(state: &State, id: String) -> Result<Json<Shown>, ApiError> {
    let progress = number_of(state, &id).and_then(|number| state.broadcasts.progress(number));
    let Some(Progress { stage, shares }) = progress else { return Err(ApiError::NoBroadcast(id)) };
    let workers = shares.iter().enumerate().map(|(worker, share)| {
        let &Share { sent, refused, is_over } = share;
        ShownShare { worker, sent, refused, over: is_over }
    });
    Ok(Json(Shown {
        id,
        state: stage.label(),
        sent: shares.iter().map(|share| share.sent).sum(),
        refused: shares.iter().map(|share| share.refused).sum(),
        workers: workers.collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_shared_out_whole() {
        for (per_second, workers) in [(10, 3), (1_000, 7), (64, 64), (1, 1)] {
            let shares = (0..workers).map(|worker| share_of(per_second, WorkerId(worker), workers));
            assert_eq!(shares.sum::<u32>(), per_second);
        }
        assert_eq!(share_of(1, WorkerId(5), 8), 1);
    }
}

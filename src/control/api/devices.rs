//! `GET /v1/devices` and `GET /v1/devices/{id}`: questions to the workers, whose shards alone know their devices.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State as Shared};
use serde::Serialize;
use tokio::time::Instant;

use super::State;
use super::error::ApiError;
use super::query::{self, Parsed};
use crate::control::pending::{Pending, Ticket};
use crate::link::{Description, DeviceFilter, SessionFacts, WorkerCommand, WorkerId};

/// Devices on a page when the request does not say.
const LIMIT_DEFAULT: usize = 100;
/// Devices on a page at most.
const LIMIT_MAX: usize = 1_000;
/// How long a worker has to answer.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(2);

/// One device as the API shows it.
#[derive(Serialize)]
pub(super) struct Device {
    id: Box<str>,
    state: &'static str,
    protocol: &'static str,
    listener: String,
    peer: Option<String>,
    tls_version: &'static str,
    tls_suite: &'static str,
    identity: &'static str,
    connected_at: String,
    last_heard: String,
    round_trip_ms: Option<f64>,
    generation: u64,
    worker: u16,
    epoch: u64,
    /// Of an MQTT device.
    session: Option<Session>,
}

/// An MQTT session as the API shows it.
#[derive(Serialize)]
struct Session {
    version: &'static str,
    keep_alive_s: u16,
    /// `None`: for ever.
    expiry_s: Option<u32>,
    subscriptions: Vec<Subscription>,
    subscription_count: usize,
    inflight: usize,
    queued: usize,
    queued_bytes: usize,
}

#[derive(Serialize)]
struct Subscription {
    filter: Box<str>,
    qos: u8,
}

/// One page of devices in byte order of their ids.
#[derive(Serialize)]
pub(super) struct Page {
    devices: Vec<Device>,
    /// What `after` gets the next page, if there may be one.
    next: Option<Box<str>>,
}

pub(super) async fn describe(
    Shared(state): Shared<Arc<State>>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Device>, ApiError> {
    let Path(device) = path.map_err(|_| ApiError::Path)?;
    let deadline = Instant::now() + ANSWER_MAX;
    let worker = state.home.of(&device);
    let question = |request| WorkerCommand::Describe { request, device: device.as_str().into() };
    let ticket = ask(&state, &state.described, worker, question)?;
    match ticket.answer(deadline).await {
        Some(Some(description)) => Ok(Json(Device::new(&state, *description))),
        Some(None) => Err(ApiError::NoDevice(device)),
        None => Err(ApiError::WorkerBusy { worker: worker.index() }),
    }
}

pub(super) async fn list(Shared(state): Shared<Arc<State>>, query: Parsed) -> Result<Json<Page>, ApiError> {
    let filter = parse_filter(query)?;
    let deadline = Instant::now() + ANSWER_MAX;
    // Everybody is asked before anybody's answer is waited for.
    let mut tickets = Vec::with_capacity(state.mailboxes.len());
    for worker in (0..state.home.workers()).map(WorkerId) {
        let question = |request| WorkerCommand::List { request, filter: filter.clone() };
        tickets.push((worker, ask(&state, &state.listed, worker, question)?));
    }
    let mut shares = Vec::with_capacity(tickets.len());
    for (worker, ticket) in tickets {
        let devices = ticket.answer(deadline).await;
        shares.push(devices.ok_or(ApiError::WorkerBusy { worker: worker.index() })?);
    }
    let (devices, more) = merge(shares, filter.limit);
    let devices: Vec<_> = devices.into_iter().map(|device| Device::new(&state, device)).collect();
    let next = devices.last().filter(|_| more).map(|last| last.id.clone());
    Ok(Json(Page { devices, next }))
}

/// Opens a question and puts it into the worker's mailbox.
pub(super) fn ask<'a, T>(
    state: &State,
    pending: &'a Pending<T>,
    worker: WorkerId,
    question: impl FnOnce(u64) -> WorkerCommand,
) -> Result<Ticket<'a, T>, ApiError> {
    let ticket = pending.open();
    match state.mailboxes[worker.index()].send(question(ticket.request())) {
        Ok(()) => Ok(ticket),
        Err(_) => Err(ApiError::WorkerBusy { worker: worker.index() }),
    }
}

fn parse_filter(query: Parsed) -> Result<DeviceFilter, ApiError> {
    let [limit, after, prefix] = query::values(query, ["limit", "after", "prefix"])?;
    let limit = match limit {
        None => LIMIT_DEFAULT,
        Some(text) => text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit)).ok_or_else(|| {
            ApiError::Query(format!("limit must be a whole number from 1 to {LIMIT_MAX}, not {text:?}"))
        })?,
    };
    let text = |value: Option<String>| value.unwrap_or_default().into_boxed_str();
    Ok(DeviceFilter { after: text(after), prefix: text(prefix), limit })
}

/// The first `limit` devices of all shares in order, and whether more may follow: some were cut off, or a worker
/// filled its own limit and may have held back.
fn merge(shares: Vec<Vec<Description>>, limit: usize) -> (Vec<Description>, bool) {
    let full = shares.iter().any(|share| share.len() >= limit);
    let mut devices: Vec<_> = shares.into_iter().flatten().collect();
    // Each share is in order already: the sort merges runs.
    devices.sort_by(|a, b| a.device.cmp(&b.device));
    let more = full || devices.len() > limit;
    devices.truncate(limit);
    (devices, more)
}

impl Device {
    fn new(state: &State, description: Description) -> Self {
        let listener = &state.config.listeners[description.listener.index()];
        Self {
            id: description.device,
            state: description.state,
            protocol: listener.protocol.label(),
            listener: listener.name.clone(),
            peer: description.peer.map(|peer| peer.to_string()),
            tls_version: description.tls_version,
            tls_suite: description.tls_suite,
            identity: description.identity,
            connected_at: state.clock.format(description.connected_at),
            last_heard: state.clock.format(description.last_heard),
            round_trip_ms: description.round_trip.map(|round_trip| round_trip.as_micros() as f64 / 1e3),
            generation: description.generation,
            worker: description.worker.0,
            epoch: state.epoch,
            session: description.session.map(|facts| Session::new(*facts)),
        }
    }
}

impl Session {
    fn new(facts: SessionFacts) -> Self {
        let subscriptions = facts.subscriptions.into_iter().map(|(filter, qos)| Subscription { filter, qos });
        Self {
            version: facts.version,
            keep_alive_s: facts.keep_alive_s,
            expiry_s: Some(facts.expiry_s).filter(|&expiry| expiry != u32::MAX),
            subscriptions: subscriptions.collect(),
            subscription_count: facts.subscription_count,
            inflight: facts.inflight,
            queued: facts.queued,
            queued_bytes: facts.queued_bytes,
        }
    }
}

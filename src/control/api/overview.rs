//! `GET /v1/overview`: the whole gateway in one object, read from the published counters; no worker is asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State as Shared;
use serde::Serialize;

use super::State;
use crate::control::exposition::Memory;
use crate::link::{CloseReason, Refusal};
use crate::metrics::{Counters, Figure};

#[derive(Serialize)]
pub(super) struct Overview {
    node: String,
    version: &'static str,
    epoch: u64,
    uptime_s: u64,
    connections: u64,
    devices: u64,
    workers: Vec<Share>,
    listeners: Vec<Listener>,
    heartbeats_sent: u64,
    heartbeats_answered: u64,
    expired: u64,
    closed: BTreeMap<&'static str, u64>,
    refused: BTreeMap<&'static str, u64>,
    memory: Memory,
}

/// What one worker has of it.
#[derive(Serialize)]
struct Share {
    worker: usize,
    connections: u64,
    devices: u64,
    handshakes_in_flight: u64,
    loop_lateness_ms: f64,
}

#[derive(Serialize)]
struct Listener {
    name: String,
    protocol: &'static str,
    address: String,
}

pub(super) async fn overview(Shared(state): Shared<Arc<State>>) -> Json<Overview> {
    let counters: Vec<Counters> = state.published.iter().map(|published| published.read()).collect();
    let sum = |figure| counters.iter().map(|counters| counters.figure(figure)).sum();
    let sum_at = |of: fn(&Counters) -> &[u64], index: usize| counters.iter().map(|counters| of(counters)[index]).sum();
    let closed = |reason: CloseReason| sum_at(Counters::closed, reason as usize);
    let refused = |refusal: Refusal| sum_at(Counters::refused, refusal as usize);

    Json(Overview {
        node: state.config.node.clone(),
        version: env!("CARGO_PKG_VERSION"),
        epoch: state.epoch,
        uptime_s: state.clock.uptime().as_secs(),
        connections: sum(Figure::Connections),
        devices: sum(Figure::Devices),
        workers: counters.iter().enumerate().map(|(worker, counters)| Share::new(worker, counters)).collect(),
        listeners: listeners(&state),
        heartbeats_sent: sum(Figure::HeartbeatsSent),
        heartbeats_answered: sum(Figure::HeartbeatsAnswered),
        expired: closed(CloseReason::Expired),
        closed: CloseReason::ALL.iter().map(|&reason| (reason.label(), closed(reason))).collect(),
        refused: Refusal::ALL.iter().map(|&refusal| (refusal.label(), refused(refusal))).collect(),
        memory: Memory::read(),
    })
}

impl Share {
    fn new(worker: usize, counters: &Counters) -> Self {
        Self {
            worker,
            connections: counters.figure(Figure::Connections),
            devices: counters.figure(Figure::Devices),
            handshakes_in_flight: counters.figure(Figure::HandshakesInFlight),
            loop_lateness_ms: counters.figure(Figure::LoopLateness) as f64 / 1e3,
        }
    }
}

fn listeners(state: &State) -> Vec<Listener> {
    let pairs = state.config.listeners.iter().zip(&state.listeners);
    pairs
        .map(|(listener, address)| Listener {
            name: listener.name.clone(),
            protocol: listener.protocol.label(),
            address: address.to_string(),
        })
        .collect()
}

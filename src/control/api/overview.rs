//! `GET /v1/overview`: the whole gateway in one object, read from the published counters; no worker is asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::State as Shared;
use serde::Serialize;

use super::State;
use crate::config::Transport;
use crate::control::exposition::Memory;
use crate::control::policy::{ChainFacts, Inventory};
use crate::link::{CloseReason, Refusal};
use crate::metrics::{Counters, Metric};

#[derive(Serialize)]
pub(super) struct Overview {
    node: String,
    version: &'static str,
    epoch: u64,
    uptime_s: u64,
    connections: u64,
    connections_max: u64,
    devices: u64,
    accepted: u64,
    handshakes_full: u64,
    handshakes_resumed: u64,
    messages_received: u64,
    messages_sent: u64,
    sessions: u64,
    workers: Vec<Share>,
    listeners: Vec<Listener>,
    /// How this gateway is one of a fleet; `None`: it is alone.
    fleet: Option<&'static str>,
    heartbeats_sent: u64,
    heartbeats_answered: u64,
    expired: u64,
    closed: BTreeMap<&'static str, u64>,
    refused: BTreeMap<&'static str, u64>,
    memory: MemoryOfAll,
}

#[derive(Serialize)]
struct MemoryOfAll {
    #[serde(flatten)]
    process: Memory,
    /// What the process may come to at its bounds, as the start-up message tells it.
    budget_bytes: u64,
    pool_used_bytes: u64,
    pool_bytes: u64,
}

/// What one worker has of it.
#[derive(Serialize)]
struct Share {
    worker: usize,
    connections: u64,
    devices: u64,
    handshakes_in_flight: u64,
    handshakes_waiting: u64,
    handshakes_longest_wait_ms: u64,
    loop_lateness_ms: f64,
}

#[derive(Serialize)]
struct Listener {
    name: String,
    protocol: &'static str,
    transport: &'static str,
    /// Of a WebSocket.
    path: Option<String>,
    address: String,
    /// Application protocols that are agreed on there; none: whatever is offered.
    alpn: Vec<String>,
    certificates: Vec<Chain>,
}

/// A certificate chain of a listener.
#[derive(Serialize)]
struct Chain {
    names: Vec<String>,
    not_after: String,
    /// Whole days; negative once it has ended.
    days_left: i64,
}

pub(super) async fn overview(Shared(state): Shared<Arc<State>>) -> Json<Overview> {
    let current = state.current();
    let counters: Vec<Counters> = state.published.iter().map(|published| published.read()).collect();
    let sum = |metric| counters.iter().map(|counters| counters.value(metric)).sum();
    let sum_at = |of: fn(&Counters) -> &[u64], index: usize| counters.iter().map(|counters| of(counters)[index]).sum();
    let closed = |reason: CloseReason| sum_at(Counters::closed, reason as usize);
    let refused = |refusal: Refusal| sum_at(Counters::refused, refusal as usize);

    Json(Overview {
        node: state.config.node.clone(),
        version: env!("CARGO_PKG_VERSION"),
        epoch: state.epoch,
        uptime_s: state.clock.uptime().as_secs(),
        connections: sum(Metric::Connections),
        connections_max: u64::from(current.config.limits.connections),
        devices: sum(Metric::Devices),
        accepted: sum(Metric::Accepted),
        handshakes_full: sum(Metric::HandshakesFull),
        handshakes_resumed: sum(Metric::HandshakesResumed),
        messages_received: sum(Metric::MessagesReceived),
        messages_sent: sum(Metric::MessagesSent),
        sessions: sum(Metric::Sessions),
        workers: counters.iter().enumerate().map(|(worker, counters)| Share::new(worker, counters)).collect(),
        listeners: listeners(&state, &current.inventory),
        fleet: state.fleet.as_ref().map(|fleet| fleet.report().state.label()),
        heartbeats_sent: sum(Metric::HeartbeatsSent),
        heartbeats_answered: sum(Metric::HeartbeatsAnswered),
        expired: closed(CloseReason::Expired),
        closed: CloseReason::ALL.iter().map(|&reason| (reason.label(), closed(reason))).collect(),
        refused: Refusal::ALL.iter().map(|&refusal| (refusal.label(), refused(refusal))).collect(),
        memory: MemoryOfAll {
            process: Memory::read(),
            budget_bytes: current.inventory.memory_budget,
            pool_used_bytes: sum(Metric::PoolUsed),
            pool_bytes: current.config.limits.pool_bytes as u64,
        },
    })
}

impl Share {
    fn new(worker: usize, counters: &Counters) -> Self {
        Self {
            worker,
            connections: counters.value(Metric::Connections),
            devices: counters.value(Metric::Devices),
            handshakes_in_flight: counters.value(Metric::HandshakesInFlight),
            handshakes_waiting: counters.value(Metric::HandshakesWaiting),
            handshakes_longest_wait_ms: counters.value(Metric::HandshakesLongestWait),
            loop_lateness_ms: counters.value(Metric::LoopLateness) as f64 / 1e3,
        }
    }
}

fn listeners(state: &State, inventory: &Inventory) -> Vec<Listener> {
    let now = state.clock.unix_ms(state.clock.now()) / 1_000;
    let pairs = state.config.listeners.iter().zip(&state.listeners).enumerate();
    pairs
        .map(|(index, (listener, address))| Listener {
            name: listener.name.clone(),
            protocol: listener.protocol.label(),
            transport: match listener.transport {
                Transport::Tls => "tls",
                Transport::WebSocket(_) => "websocket",
            },
            path: match &listener.transport {
                Transport::Tls => None,
                Transport::WebSocket(websocket) => Some(websocket.path.clone()),
            },
            address: address.to_string(),
            alpn: listener.alpn().into_iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect(),
            certificates: inventory
                .certificates
                .get(index)
                .into_iter()
                .flatten()
                .map(|chain| Chain::new(chain, now))
                .collect(),
        })
        .collect()
}

impl Chain {
    fn new(facts: &ChainFacts, now: i64) -> Self {
        let ends = SystemTime::UNIX_EPOCH + Duration::from_secs(facts.not_after.max(0) as u64);
        Self {
            names: facts.names.clone(),
            not_after: humantime::format_rfc3339_seconds(ends).to_string(),
            days_left: (facts.not_after - now).div_euclid(86_400),
        }
    }
}

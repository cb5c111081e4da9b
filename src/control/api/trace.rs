//! `GET /v1/trace`: what happens to one device, or to whoever comes from a network, step by step, as server-sent events.
//!
//! A trace lives as long as its request: it ends when whoever follows it goes, at the time that was asked for, or with the
//! gateway. What the workers left out at a bound stands in the stream, where it was left out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Shared;
use axum::response::sse::{self, Sse};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use crossbeam_channel::Receiver;
use futures_util::stream::{self, Stream};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};

use super::State;
use super::error::ApiError;
use super::events::json;
use super::query::{self, Parsed};
use crate::control::reasons::explain;
use crate::link::{Direction, Trace, TraceDepth, TraceEvent, TraceSubject, TraceWhat, TracedPacket};
use crate::network::Network;

/// How long a trace lasts where nothing is said.
const SPAN: Duration = Duration::from_mins(10);
/// How long one may last.
const SPAN_MAX: Duration = Duration::from_hours(24);
/// How often it is looked whether there is something new. The workers ring nobody: that would be a system call in their turns.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often whoever follows hears that the gateway lives.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Events taken at a time.
const TAKEN_AT_ONCE: usize = 256;

pub(super) async fn trace(
    Shared(state): Shared<Arc<State>>,
    query: Parsed,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, ApiError> {
    let [device, address, packets, payloads, span] =
        query::values(query, ["device", "address", "packets", "payloads", "for"])?;
    let subject = subject(device, address)?;
    let packets = flag("packets", packets.as_deref())?;
    let depth = TraceDepth { packets, payloads: flag("payloads", payloads.as_deref())? };
    if depth.payloads && !depth.packets {
        return Err(ApiError::Query("payloads are a part of packets: say packets=true too".to_owned()));
    }
    let span = span.map_or(Ok(SPAN), |text| parse_span(&text))?;
    let place = state.readers.clone().try_acquire_owned().map_err(|_| ApiError::TooManyReaders)?;
    let follower = Follower::begin(state, place, subject, depth, span)?;
    Ok(Sse::new(stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok(event), follower))
    })))
}

fn subject(device: Option<String>, address: Option<String>) -> Result<TraceSubject, ApiError> {
    match (device, address) {
        (Some(device), None) if !device.is_empty() => Ok(TraceSubject::Device(device.into())),
        (None, Some(address)) => Network::around(&address).map(TraceSubject::Network).map_err(|_| {
            ApiError::Query(format!(
                "{address:?} is not a network: write it as 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32"
            ))
        }),
        _ => Err(ApiError::Query("name either a device or an address".to_owned())),
    }
}

fn flag(key: &str, value: Option<&str>) -> Result<bool, ApiError> {
    match value {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(ApiError::Query(format!("{key} is {other:?}: say true or false"))),
    }
}

fn parse_span(text: &str) -> Result<Duration, ApiError> {
    let span = humantime::parse_duration(text).ok().filter(|span| (Duration::from_secs(1)..=SPAN_MAX).contains(span));
    span.ok_or_else(|| ApiError::Query(format!("for is {text:?}: write a duration from 1s to 24h, such as 10m")))
}

/// Whoever follows a trace.
struct Follower {
    state: Arc<State>,
    _place: OwnedSemaphorePermit,
    trace: Arc<Trace>,
    arrive: Receiver<TraceEvent>,
    /// What is to be sent.
    waiting: VecDeque<sse::Event>,
    heartbeat_at: Instant,
    is_over: bool,
}

impl Follower {
    fn begin(
        state: Arc<State>,
        place: OwnedSemaphorePermit,
        subject: TraceSubject,
        depth: TraceDepth,
        span: Duration,
    ) -> Result<Self, ApiError> {
        let until = state.clock.now().plus(span);
        let (trace, arrive) = Trace::new(subject, depth, until);
        if !state.traces.begin(&trace, &state.mailboxes) {
            return Err(ApiError::TooManyTraces);
        }
        let began = json("began", &Began { kind: "began", until: state.clock.format(until) });
        let heartbeat_at = Instant::now() + HEARTBEAT;
        let waiting = VecDeque::from([began]);
        Ok(Self { state, _place: place, trace, arrive, waiting, heartbeat_at, is_over: false })
    }

    /// The next event to send; waits for it. `None`: the end.
    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            // Before it is looked: what comes after it is of no trace any more.
            let end = self.end();
            self.take();
            if !self.waiting.is_empty() {
                continue;
            }
            if let Some(why) = end {
                self.waiting.push_back(json("over", &Over { kind: "over", why }));
                self.is_over = true;
            } else if Instant::now() >= self.heartbeat_at {
                self.heartbeat_at = Instant::now() + HEARTBEAT;
                return Some(sse::Event::default().comment(""));
            } else {
                sleep_until(Instant::now() + LOOK_EVERY).await;
            }
        }
    }

    fn end(&self) -> Option<&'static str> {
        if self.state.backbone.head().borrow().is_closed {
            Some("shutdown")
        } else {
            (self.state.clock.now() >= self.trace.until).then_some("time")
        }
    }

    fn take(&mut self) {
        let events: Vec<_> = self.arrive.try_iter().take(TAKEN_AT_ONCE).map(|event| self.show(&event)).collect();
        self.waiting.extend(events);
        let count = self.trace.take_left_out();
        if count > 0 {
            self.waiting.push_back(json("left_out", &LeftOut { kind: "left_out", count }));
        }
    }

    fn show(&self, event: &TraceEvent) -> sse::Event {
        json(event.what.label(), &Shown::new(&self.state, event))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.state.traces.end(&self.trace, &self.state.mailboxes);
    }
}

#[derive(Serialize)]
struct Began {
    kind: &'static str,
    until: String,
}

#[derive(Serialize)]
struct Over {
    kind: &'static str,
    why: &'static str,
}

#[derive(Serialize)]
struct LeftOut {
    kind: &'static str,
    count: u64,
}

#[derive(Serialize)]
struct Shown<'a> {
    kind: &'static str,
    at: String,
    worker: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<String>,
    listener: &'a str,
    peer: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    device: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meaning: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direction: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packet: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
    #[serde(skip_serializing_if = "String::is_empty")]
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

impl<'a> Shown<'a> {
    fn new(state: &'a State, event: &'a TraceEvent) -> Self {
        let mut shown = Self {
            kind: event.what.label(),
            at: state.clock.format(event.at),
            worker: event.worker.0,
            connection: event.connection.map(|connection| connection.to_string()),
            listener: &state.config.listeners[event.listener.index()].name,
            peer: event.address.map(|address| match event.port {
                0 => address.to_string(),
                port => SocketAddr::new(address, port).to_string(),
            }),
            device: &event.device,
            reason: None,
            meaning: None,
            direction: None,
            packet: None,
            bytes: None,
            detail: detail(&event.what),
            payload: None,
            payload_base64: None,
        };
        match &event.what {
            TraceWhat::Refused(refusal) => shown.reason = Some(refusal.label()),
            TraceWhat::Ended { reason, .. } => {
                (shown.reason, shown.meaning) = (Some(reason.label()), Some(explain(*reason).meaning));
            }
            TraceWhat::Packet(packet) => shown.put_packet(packet),
            _ => {}
        }
        shown
    }

    fn put_packet(&mut self, packet: &'a TracedPacket) {
        self.direction = Some(match packet.direction {
            Direction::In => "in",
            Direction::Out => "out",
        });
        (self.packet, self.bytes) = (Some(packet.name), Some(packet.bytes));
        if let Some(payload) = &packet.payload {
            self.payload = std::str::from_utf8(payload).ok();
            self.payload_base64 = self.payload.is_none().then(|| BASE64_STANDARD.encode(payload));
        }
    }
}

/// What there is to say of an event in words.
fn detail(what: &TraceWhat) -> String {
    match what {
        TraceWhat::Handshake { waited } if waited.is_zero() => "began less than 100 ms after accept".to_owned(),
        TraceWhat::Handshake { waited } => format!("began about {} ms after accept", waited.as_millis()),
        TraceWhat::Established { version, suite, is_resumed, is_certified } => {
            let how = if *is_resumed { "resumed" } else { "full handshake" };
            let certificate = if *is_certified { "a client certificate" } else { "no client certificate" };
            format!("{version}, {suite}, {how}, {certificate}")
        }
        TraceWhat::Asked { is_renewal: true } => "an authenticator judges its renewal".to_owned(),
        TraceWhat::Asked { is_renewal: false } => "an authenticator judges it".to_owned(),
        TraceWhat::Moving { home } => format!("to its home, worker {home}"),
        TraceWhat::Connected { identity } => format!("its id comes from {identity}"),
        TraceWhat::Answered { round_trip: Some(round_trip) } => {
            format!("after {:.1} ms", round_trip.as_secs_f64() * 1_000.0)
        }
        TraceWhat::Paused => "it is not read on until there is room for what it says".to_owned(),
        TraceWhat::Unsent { bytes } => format!("its socket takes no more: {bytes} bytes wait"),
        TraceWhat::Packet(packet) => packet.words.clone(),
        TraceWhat::Ended { detail, .. } => detail.clone().into_owned(),
        TraceWhat::Accepted
        | TraceWhat::Refused(_)
        | TraceWhat::Announced
        | TraceWhat::Granted
        | TraceWhat::Arrived
        | TraceWhat::Probed
        | TraceWhat::Answered { round_trip: None }
        | TraceWhat::Present => String::new(),
    }
}

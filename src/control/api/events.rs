//! `GET /v1/events`: what happens, as it happens, as server-sent events (WHATWG HTML, section 9.2).
//!
//! A reader is a position in the backbone's ring and what one read found there; it never makes anybody wait and never
//! holds more. Whoever is so slow that the ring has overtaken it is told so and cut: it may come back with the last id
//! that it has seen.
//!
//! ```text
//!   id "EPOCH-N": all events before position N of this life of the gateway have been seen
//! ```

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Shared;
use axum::http::HeaderMap;
use axum::response::sse::{self, Sse};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream::{self, Stream};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, timeout_at};

use super::State;
use super::error::ApiError;
use super::query::{self, Parsed};
use crate::backbone::{Event, Facts, Head, Held, Kind, What};

/// How often a reader hears that the gateway lives; the id that comes with it says how far it has come.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How soon a reader that was cut should come back.
const COME_BACK: Duration = Duration::from_secs(1);

/// What a reader wants to hear of.
#[derive(Debug, Default)]
struct Filter {
    device: Option<String>,
    /// None: all.
    kinds: Option<Vec<Kind>>,
}

impl Filter {
    fn wants(&self, event: &Event<'_>) -> bool {
        self.device.as_ref().is_none_or(|device| device == event.device)
            && self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&event.kind()))
    }
}

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    /// With what happens from now on.
    Now,
    /// Here, in this life of the gateway.
    At(u64),
    /// With all that is held: what it saw last was in another life.
    Afresh,
}

pub(super) async fn events(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    query: Parsed,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, ApiError> {
    let [device, kind, last] = query::values(query, ["device", "kind", "last_event_id"])?;
    let filter = Filter { device, kinds: kind.as_deref().map(parse_kinds).transpose()? };
    // A browser that comes back repeats the query as it was and tells the newer id in the header.
    let header = headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?").to_owned());
    let begin = header.or(last).map_or(Ok(Begin::Now), |id| parse_id(&id, state.epoch))?;
    let place = state.readers.clone().try_acquire_owned().map_err(|_| ApiError::TooManyReaders)?;
    let reader = Reader::new(state, place, filter, begin)?;
    Ok(Sse::new(stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok(event), reader))
    })))
}

fn parse_kinds(text: &str) -> Result<Vec<Kind>, ApiError> {
    let parse = |word: &str| {
        let known = Kind::ALL.into_iter().find(|kind| kind.label() == word);
        known.ok_or_else(|| {
            ApiError::Query(format!("unknown kind {word:?}; known: {}", Kind::ALL.map(Kind::label).join(", ")))
        })
    };
    text.split(',').map(parse).collect()
}

fn parse_id(text: &str, epoch: u64) -> Result<Begin, ApiError> {
    let parsed = text.split_once('-').and_then(|(life, position)| Some((life.parse().ok()?, position.parse().ok()?)));
    let (life, position): (u64, u64) =
        parsed.ok_or_else(|| ApiError::Query(format!("{text:?} is not the id of an event")))?;
    Ok(if life == epoch { Begin::At(position) } else { Begin::Afresh })
}

struct Reader {
    state: Arc<State>,
    _place: OwnedSemaphorePermit,
    filter: Filter,
    head: watch::Receiver<Head>,
    /// All events before it have been read.
    position: u64,
    /// What it is to hear before anything else.
    notes: VecDeque<sse::Event>,
    /// What was read and not sent yet: each is made JSON, which may be six times as long, when it is sent.
    waiting: VecDeque<Held>,
    heartbeat_at: Instant,
    is_over: bool,
}

impl Reader {
    fn new(state: Arc<State>, place: OwnedSemaphorePermit, filter: Filter, begin: Begin) -> Result<Self, ApiError> {
        let head = state.backbone.head();
        let (first, next) = state.backbone.held();
        let (position, missed) = match begin {
            Begin::Now => (next, None),
            Begin::At(position) if position > next => {
                return Err(ApiError::Query(format!("event {}-{position} has not happened yet", state.epoch)));
            }
            Begin::At(position) if position < first => (first, Some(Some(first - position))),
            Begin::At(position) => (position, None),
            Begin::Afresh => (first, Some(None)),
        };
        let heartbeat_at = Instant::now() + HEARTBEAT;
        let (notes, waiting) = (VecDeque::new(), VecDeque::new());
        let mut reader =
            Self { state, _place: place, filter, head, position, notes, waiting, heartbeat_at, is_over: false };
        let greeting = reader.heartbeat().retry(COME_BACK);
        reader.notes.push_back(greeting);
        if let Some(count) = missed {
            let missed = json("missed", &Missed { kind: "missed", count }).id(reader.id(position));
            reader.notes.push_back(missed);
        }
        Ok(reader)
    }

    /// The next event to send; waits for it. `None`: the end.
    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(note) = self.notes.pop_front() {
                return Some(note);
            }
            if let Some(held) = self.waiting.pop_front() {
                return Some(self.show(&held));
            }
            if self.is_over {
                return None;
            }
            if Instant::now() >= self.heartbeat_at {
                self.heartbeat_at = Instant::now() + HEARTBEAT;
                return Some(self.heartbeat());
            }
            // Before reading: whatever comes after it is heard of again.
            let head = *self.head.borrow_and_update();
            if !self.read() {
                if head.is_closed {
                    return None;
                }
                // Its end is that of the gateway's state, which this reader holds.
                let _ = timeout_at(self.heartbeat_at, self.head.changed()).await;
            } else if self.waiting.is_empty() {
                // Nothing of it was wanted, and there may be much more of that kind.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Reads on. `false`: there is nothing yet.
    fn read(&mut self) -> bool {
        let slice = self.state.backbone.read(self.position, |event| self.filter.wants(event));
        if slice.first > self.position {
            let count = Some(slice.first - self.position);
            // Without an id: it comes back for what it has not seen, and hears what of that is gone by then.
            self.notes.push_back(json("lagged", &Missed { kind: "lagged", count }));
            self.is_over = true;
            return true;
        }
        self.position = slice.next;
        self.waiting.extend(slice.events);
        slice.next > slice.first
    }

    fn id(&self, position: u64) -> String {
        format!("{}-{position}", self.state.epoch)
    }

    /// A comment, and an id without data: browsers keep it and say nothing.
    fn heartbeat(&self) -> sse::Event {
        sse::Event::default().comment("").id(self.id(self.position))
    }

    fn show(&self, held: &Held) -> sse::Event {
        let event = held.event();
        let kind = event.kind().label();
        let shown = match event.what {
            What::Connected(facts) => json(kind, &Presence::new(&self.state, &event, &facts, None)),
            What::Disconnected(facts, cause) => {
                json(kind, &Presence::new(&self.state, &event, &facts, Some(cause.label())))
            }
            What::Message { topic, payload } => json(kind, &Message::new(&self.state, &event, topic, payload)),
            What::TakeoverLoop { listener, peer } => {
                let state = &self.state;
                let told = TakeoverLoop {
                    kind,
                    device: event.device,
                    listener: &state.config.listeners[listener.index()].name,
                    peer: peer.map(|peer| peer.to_string()),
                    worker: event.worker.0,
                    at: state.clock.format(event.at),
                };
                json(kind, &told)
            }
        };
        shown.id(self.id(held.position + 1))
    }
}

/// One event of a stream, with its data as JSON.
pub(super) fn json(kind: &'static str, data: &impl Serialize) -> sse::Event {
    let data = serde_json::to_string(data).expect("plain data");
    sse::Event::default().event(kind).data(data)
}

#[derive(Serialize)]
struct Missed {
    kind: &'static str,
    /// How many events of the gateway; unknown when they were of another life.
    count: Option<u64>,
}

#[derive(Serialize)]
struct Presence<'a> {
    kind: &'static str,
    device: &'a str,
    node: &'a str,
    epoch: u64,
    generation: u64,
    sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'static str>,
    /// More of the cause, in words, where there is more.
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: &'a str,
    last_heard: String,
    listener: &'a str,
    peer: Option<String>,
    identity: &'a str,
    worker: u16,
    at: String,
}

impl<'a> Presence<'a> {
    fn new(state: &'a State, event: &Event<'a>, facts: &Facts<'a>, cause: Option<&'static str>) -> Self {
        Self {
            kind: event.kind().label(),
            device: event.device,
            node: &state.config.node,
            epoch: state.epoch,
            generation: facts.generation,
            sequence: facts.sequence,
            cause,
            detail: facts.detail,
            last_heard: state.clock.format(facts.last_heard),
            listener: &state.config.listeners[facts.listener.index()].name,
            peer: facts.peer.map(|peer| peer.to_string()),
            identity: facts.identity,
            worker: event.worker.0,
            at: state.clock.format(event.at),
        }
    }
}

#[derive(Serialize)]
struct TakeoverLoop<'a> {
    kind: &'static str,
    device: &'a str,
    listener: &'a str,
    /// Of the first newcomer that waits.
    peer: Option<String>,
    worker: u16,
    at: String,
}

#[derive(Serialize)]
struct Message<'a> {
    kind: &'static str,
    device: &'a str,
    topic: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    worker: u16,
    at: String,
}

impl<'a> Message<'a> {
    fn new(state: &State, event: &Event<'a>, topic: &'a str, payload: &'a [u8]) -> Self {
        let text = std::str::from_utf8(payload).ok();
        Self {
            kind: event.kind().label(),
            device: event.device,
            topic,
            payload: text,
            payload_base64: text.is_none().then(|| BASE64_STANDARD.encode(payload)),
            worker: event.worker.0,
            at: state.clock.format(event.at),
        }
    }
}

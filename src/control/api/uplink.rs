//! `/v1/uplink`: what devices said and when they came and went, from the store, for consumers that acknowledge.
//!
//! A consumer is a name with a cursor. Whoever reads under the name is handed events that no other of its readers has,
//! for as long as the lease lasts; what is acknowledged is done with, what is not is handed out again.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{ConnectInfo, Path, State as Shared};
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::error::ApiError;
use super::query::{self, Parsed};
use super::{ApiPeer, State, answer, body};
use crate::control::answers::Reservation;
use crate::sink::Event;
use crate::store::{Batch, Position, Range, SINK_PREFIX, Store, StoreError};

/// Events of one batch, unless written.
const COUNT: u64 = 100;
const COUNT_MAX: u64 = 1_000;
/// Bytes of one batch, as it lies in the store and as JSON, beyond which no further event is added. One alone may have more.
const BATCH_BYTES: usize = 1 << 20;
/// A byte of a text is so many in JSON at most.
const ESCAPED: usize = 6;
/// How long a batch is its reader's, unless written.
const LEASE: Duration = Duration::from_secs(30);
const LEASE_MAX: Duration = Duration::from_hours(1);
const WAIT_MAX: Duration = Duration::from_mins(1);
/// A batch as a line for each event, rather than one JSON object.
const LINES: &str = "application/x-ndjson";
/// With lines: what to acknowledge, and how many events were missed.
const ACK_HEADER: HeaderName = HeaderName::from_static("pulsegate-ack");
const MISSED_HEADER: HeaderName = HeaderName::from_static("pulsegate-missed");

/// The store, or why there is none.
fn store(state: &State) -> Result<&Store, ApiError> {
    state.store.as_deref().ok_or(ApiError::NoStore)
}

/// A sink's cursor is moved by the sink alone.
fn not_reserved(consumer: &str) -> Result<(), ApiError> {
    if consumer.starts_with(SINK_PREFIX) {
        return Err(ApiError::ReservedConsumer(consumer.to_owned()));
    }
    Ok(())
}

/// An answer, but for its events.
#[derive(Serialize)]
struct Head<'a> {
    consumer: &'a str,
    /// What to send to `/v1/uplink/ack`; absent when there are no events.
    #[serde(skip_serializing_if = "Option::is_none")]
    ack: Option<Ack>,
    /// Events that retention dropped before this consumer had acknowledged them, since it was last told.
    missed: u64,
}

#[derive(Serialize)]
struct Ack {
    first: u64,
    last: u64,
}

/// `GET /v1/uplink`: the next events for a consumer. One that is not there is made, and begins where `from` says.
pub(super) async fn read(
    Shared(state): Shared<Arc<State>>,
    ConnectInfo(peer): ConnectInfo<ApiPeer>,
    headers: HeaderMap,
    query: Parsed,
) -> Result<Response, ApiError> {
    let [consumer, max, wait, lease, from] = query::values(query, ["consumer", "max", "wait", "lease", "from"])?;
    let consumer = consumer.ok_or_else(|| ApiError::Query("consumer is missing: under which name to read".into()))?;
    not_reserved(&consumer)?;
    let count = max.map_or(Ok(COUNT), |text| parse_count(&text))?;
    let wait = duration("wait", wait.as_deref(), Duration::ZERO, Duration::ZERO, WAIT_MAX)?;
    let lease = duration("lease", lease.as_deref(), LEASE, Duration::from_secs(1), LEASE_MAX)?;
    let from = from.as_deref().map_or(Ok(Place::Known(Position::First)), parse_place)?;
    if !store(&state)?.has(&consumer) {
        let from = position(&state, from).await?;
        store(&state)?.create(&consumer, from).await.map_err(|error| match error {
            StoreError::Position(fault) => ApiError::Query(fault),
            other => other.into(),
        })?;
    }
    let is_lines = headers.get(header::ACCEPT).is_some_and(|accept| accept.as_bytes() == LINES.as_bytes());
    let wanted = Arc::new(Wanted { consumer, count, lease, is_lines });
    let (written, reservation) = wait_for_batch(&state, &peer, &wanted, Instant::now() + wait).await?;
    let answer = if is_lines { lines(written) } else { whole(&wanted.consumer, &written) };
    Ok(answer::within(reservation, answer))
}

/// What a reader asks for.
struct Wanted {
    consumer: String,
    count: u64,
    lease: Duration,
    is_lines: bool,
}

/// A batch whose events are JSON already: a line for each, or with commas between them.
struct Written {
    range: Option<Range>,
    missed: u64,
    events: String,
}

/// The next batch and the room that it has. While it is waited for it has none.
async fn wait_for_batch(
    state: &Arc<State>,
    peer: &ApiPeer,
    wanted: &Arc<Wanted>,
    until: Instant,
) -> Result<(Written, Reservation), ApiError> {
    let mut head = store(state)?.head();
    // As it lies in the store, and as JSON: one event more than what fits. Should that be more than half of what the consumer may have,
    // which one of an event alone could be, it is known when it is there.
    let (batch, longest) = (batch_bytes(state), state.config.limits.packet_bytes);
    let most = (batch + longest + batch.max(ESCAPED * longest)).min(state.answers.consumer_max() / 2);
    loop {
        // Before reading: whatever comes after it is heard of again.
        let is_closed = head.borrow_and_update().is_closed;
        let reservation = state.answers.reserve_for(&wanted.consumer, peer, most).await?;
        let written = {
            let (state, wanted) = (Arc::clone(state), Arc::clone(wanted));
            tokio::task::spawn_blocking(move || read_batch(&state, &wanted))
                .await
                .map_err(|_| ApiError::Store("the store's reader has ended".into()))??
        };
        let now = Instant::now();
        if written.range.is_some() || written.missed > 0 || is_closed || now >= until {
            return Ok((written, reservation));
        }
        drop(reservation);
        // Something new, or a batch that another reader did not acknowledge in time.
        let due = store(state)?.next_due(&wanted.consumer).map_or(until, Instant::from_std).clamp(now, until);
        // Neither an error, which is the store's end, nor the time is anything but a reason to look again.
        let _ = timeout_at(due, head.changed()).await;
    }
}

/// How long a batch may be: several fit into what its consumer may have.
fn batch_bytes(state: &State) -> usize {
    BATCH_BYTES.min(state.answers.consumer_max() / 8)
}

/// Reads and writes a batch. What would make it too long as JSON is the next reader's.
fn read_batch(state: &State, wanted: &Wanted) -> Result<Written, ApiError> {
    let (store, batch_bytes) = (store(state)?, batch_bytes(state));
    let Batch { mut range, events, missed } =
        store.hand_out(&wanted.consumer, wanted.count, batch_bytes, wanted.lease)?;
    let mut text = String::new();
    let mut taken = None;
    for stored in events {
        let event = Event::new(&state.config.node, &stored).to_json();
        if let (Some(last), Some(all)) = (taken, &mut range)
            && text.len() + event.len() >= batch_bytes
        {
            store.give_back(&wanted.consumer, Range { first: last + 1, last: all.last });
            all.last = last;
            break;
        }
        if !wanted.is_lines && taken.is_some() {
            text.push(',');
        }
        text.push_str(&event);
        if wanted.is_lines {
            text.push('\n');
        }
        taken = Some(stored.seq);
    }
    Ok(Written { range, missed, events: text })
}

fn whole(consumer: &str, written: &Written) -> Response {
    let Written { range, missed, events } = written;
    let ack = range.map(|Range { first, last }| Ack { first, last });
    let mut text = serde_json::to_string(&Head { consumer, ack, missed: *missed }).expect("plain data");
    let end = text.pop();
    text.reserve_exact(events.len() + 13);
    text.extend([r#","events":["#, events, "]"]);
    text.extend(end);
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

fn lines(written: Written) -> Response {
    let Written { range, missed, events } = written;
    let mut response = ([(header::CONTENT_TYPE, LINES)], events).into_response();
    let headers = response.headers_mut();
    if let Some(Range { first, last }) = range {
        headers.insert(ACK_HEADER, format!("{first}-{last}").parse().expect("digits"));
    }
    headers.insert(MISSED_HEADER, missed.into());
    response
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AckOrder {
    consumer: String,
    /// Everything from here; without it, everything before `last` too.
    first: Option<u64>,
    last: u64,
}

#[derive(Serialize)]
pub(super) struct Cursor {
    pub(super) consumer: String,
    /// Every event up to this one is acknowledged or was missed.
    pub(super) cursor: u64,
}

/// `POST /v1/uplink/ack`: events are done with. Answered when that is safe.
pub(super) async fn acknowledge(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Cursor>, ApiError> {
    let AckOrder { consumer, first, last } = body::parse(&headers, body)?;
    not_reserved(&consumer)?;
    let cursor = store(&state)?.acknowledge(&consumer, Range { first: first.unwrap_or(1), last }).await?;
    Ok(Json(Cursor { consumer, cursor }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SeekOrder {
    consumer: String,
    to: String,
}

/// `POST /v1/uplink/seek`: a consumer goes on elsewhere.
pub(super) async fn seek(
    Shared(state): Shared<Arc<State>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Cursor>, ApiError> {
    let SeekOrder { consumer, to } = body::parse(&headers, body)?;
    not_reserved(&consumer)?;
    let place = parse_place(&to).map_err(|error| ApiError::Body(error.to_string()))?;
    let position = position(&state, place).await?;
    let cursor = store(&state)?.seek(&consumer, position).await?;
    Ok(Json(Cursor { consumer, cursor }))
}

#[derive(Serialize)]
pub(super) struct Listed {
    /// The oldest event held; the next to come when there is none.
    first: u64,
    /// The latest event; 0 when there was none ever.
    last: u64,
    consumers: Vec<Consumer>,
}

#[derive(Serialize)]
struct Consumer {
    name: Box<str>,
    /// It is this sink's, and its cursor is moved by that alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    sink: Option<Box<str>>,
    cursor: u64,
    /// Events that it has still to acknowledge.
    behind: u64,
    /// Events that retention dropped before it had acknowledged them.
    missed: u64,
    /// How old the oldest of those behind is, in seconds; 0 when there is none.
    lag_s: u64,
}

/// `GET /v1/uplink/consumers`.
pub(super) async fn list(Shared(state): Shared<Arc<State>>) -> Result<Json<Listed>, ApiError> {
    let read = move || {
        let store = store(&state)?;
        let now_ms = state.clock.unix_ms(state.clock.now());
        let age = |at_ms: i64| u64::try_from(now_ms.saturating_sub(at_ms) / 1_000).unwrap_or(0);
        let consumers = store.consumers()?.into_iter().map(|consumer| Consumer {
            sink: consumer.backlog.name.strip_prefix(SINK_PREFIX).map(Into::into),
            name: consumer.backlog.name,
            cursor: consumer.backlog.cursor,
            behind: consumer.backlog.behind,
            missed: consumer.backlog.missed,
            lag_s: consumer.oldest_ms.map_or(0, age),
        });
        Ok(Listed { first: store.first(), last: store.head().borrow().last, consumers: consumers.collect() })
    };
    let listed = tokio::task::spawn_blocking(read).await;
    listed.map_err(|_| ApiError::Store("the store's reader has ended".into()))?.map(Json)
}

/// `DELETE /v1/uplink/consumers/{name}`.
pub(super) async fn delete(
    Shared(state): Shared<Arc<State>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Cursor>, ApiError> {
    let Path(consumer) = name.map_err(|_| ApiError::Path)?;
    // That of a sink which is not configured any more is nobody's.
    if state.sinks.as_ref().is_some_and(|sinks| sinks.has(&consumer)) {
        return Err(ApiError::ReservedConsumer(consumer));
    }
    let cursor = store(&state)?.delete(&consumer).await?;
    Ok(Json(Cursor { consumer, cursor }))
}

fn parse_count(text: &str) -> Result<u64, ApiError> {
    let count = text.parse().ok().filter(|count| (1..=COUNT_MAX).contains(count));
    count.ok_or_else(|| ApiError::Query(format!("max must be 1 to {COUNT_MAX}, not {text:?}")))
}

fn duration(
    key: &str,
    text: Option<&str>,
    default: Duration,
    least: Duration,
    most: Duration,
) -> Result<Duration, ApiError> {
    let Some(text) = text else { return Ok(default) };
    let parsed = humantime::parse_duration(text).ok().filter(|duration| (least..=most).contains(duration));
    parsed.ok_or_else(|| {
        let [least, most] = [least, most].map(|bound| humantime::format_duration(bound).to_string());
        ApiError::Query(format!("{key} must be a duration from {least} to {most}, not {text:?}"))
    })
}

/// Where somebody wants to go on.
pub(super) enum Place {
    Known(Position),
    /// At a Unix time in milliseconds.
    Time(i64),
}

/// Where that is. For a time the store is read, beside all else that goes on there.
pub(super) async fn position(state: &Arc<State>, place: Place) -> Result<Position, ApiError> {
    let at_ms = match place {
        Place::Known(position) => return Ok(position),
        Place::Time(at_ms) => at_ms,
    };
    let state = Arc::clone(state);
    let found = tokio::task::spawn_blocking(move || Ok(store(&state)?.position_at(at_ms)?)).await;
    found.map_err(|_| ApiError::Store("the store's reader has ended".into()))?
}

/// `first`, `end`, the number of the event behind which to go on, or a time of day.
pub(super) fn parse_place(text: &str) -> Result<Place, ApiError> {
    match text {
        "first" => return Ok(Place::Known(Position::First)),
        "end" => return Ok(Place::Known(Position::End)),
        _ => {}
    }
    if let Ok(seq) = text.parse() {
        return Ok(Place::Known(Position::After(seq)));
    }
    let time = humantime::parse_rfc3339_weak(text).ok();
    let since = time.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let since = since.and_then(|since| i64::try_from(since.as_millis()).ok());
    since.map(Place::Time).ok_or_else(|| {
        ApiError::Query(format!(
            "{text:?} is no position: write first, end, an event's number, or a time such as 2026-11-25T08:00:00Z"
        ))
    })
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NoConsumer(name) => ApiError::NoConsumer(name),
            StoreError::TooManyRanges { .. } => ApiError::TooManyRanges(error.to_string()),
            StoreError::TooManyConsumers(_) => ApiError::TooManyConsumers(error.to_string()),
            StoreError::Position(fault) => ApiError::Body(fault),
            StoreError::Closed => ApiError::ShuttingDown,
            other => ApiError::Store(other.to_string()),
        }
    }
}

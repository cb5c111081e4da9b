//! `type = "nats"`: messages into a stream of NATS JetStream, each acknowledgement awaited.
//!
//! ```text
//!   Away ──connected──▶ the server's version, the stream and what it takes are read ──▶ Sending ──▶ a message of each device under way
//!    ▲                                   │ not as it must be                                │
//!    └────────── back-off ◀──────────────┴────────── anything that is not an acknowledgement ◀─┘
//! ```
//!
//! At most one message of a device is under way, so that its order holds whatever the server refuses in between. When anything
//! goes wrong the client is dropped, and all of it is verified again before something is sent. What was stored and not
//! acknowledged is sent again under the same `Nats-Msg-Id`, which the server drops within its window of deduplication.

mod access;
pub mod bucket;
mod publication;
pub(crate) mod subject;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::context::{GetStreamError, GetStreamErrorKind, PublishError, PublishErrorKind};
use async_nats::jetstream::{self, Context, ErrorCode, stream};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use tokio::task::JoinSet;

use super::backoff::Backoff;
use super::event::{Event as Json, time};
use super::feed::Feed;
use super::run::{Over, Run, Shared, lane_of};
use super::settings::{Fault, Reading, Target};
use crate::config::{NatsSink, NatsStream, Sink};
use crate::store::{Entry, Published, StoreError, Stored, What};
pub use access::{NatsAccess, Signals, check_version, files_of_login, in_words, version};
use bucket::{NotKept, RetainedBucket};
pub use publication::{Publishing, header_bytes};

/// The longest subject: a server takes 4,096 bytes for a command with its subject and the inbox for the answer.
pub const SUBJECT_BYTES_MAX: usize = 3_072;
/// For how long a stream that is made here knows what it has: longer than a gateway that was killed is away.
const DUPLICATE_WINDOW: Duration = Duration::from_mins(10);
/// The server's answer to a message that is larger than its stream takes.
const MESSAGE_TOO_LARGE: ErrorCode = ErrorCode(10_054);

/// A server, and how it is spoken to.
pub(super) struct NatsTarget {
    config: NatsSink,
    timeout: Duration,
    access: NatsAccess,
}

impl NatsTarget {
    pub(super) fn new(sink: &Sink, config: &NatsSink, reading: &mut Reading) -> Result<Self, Fault> {
        let is_tls = config.urls[0].starts_with("tls:");
        let place = (&*config.urls, format!("the sink {:?}", sink.name));
        let access = NatsAccess::load(place, &config.login, is_tls.then_some(&sink.tls), sink.timeout, reading)?;
        Ok(Self { config: config.clone(), timeout: sink.timeout, access })
    }

    pub(super) fn address(&self) -> String {
        self.config.urls.join(",")
    }

    fn message(&self, node: &str, store_id: &str, stored: &Stored) -> Message {
        let (entry, prefix) = (&stored.entry, &self.config.prefix);
        let mut retained = None;
        let (subject, payload) = match &entry.what {
            What::Message { topic, payload, .. } => {
                (subject::of_message(prefix, &entry.device, topic), payload.clone())
            }
            What::Connected(_) | What::Disconnected(..) => {
                (subject::of_presence(prefix, &entry.device), Json::new(node, stored).to_json().into())
            }
        };
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("{store_id}-{}", stored.seq));
        headers.insert("Pulsegate-At", time(entry.at_ms));
        if let Some(published) = entry.what.published().filter(|_| self.config.make.is_some()) {
            // In the fleet's stream, for subscribers at other gateways.
            let Published { qos, retain, properties, expires_ms, stamp, groups } = published.clone();
            let how = Publishing { node: node.to_owned(), qos, retain, properties, expires_ms, stamp, groups };
            how.write(&mut headers);
            retained = retained_of(entry, how);
        }
        Message { subject, headers, payload, retained }
    }
}

struct Message {
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
    /// Its topic, where it is to be in the bucket of retained messages before it is in the stream, and how.
    retained: Option<(Box<str>, Publishing)>,
}

fn retained_of(entry: &Entry, how: Publishing) -> Option<(Box<str>, Publishing)> {
    match &entry.what {
        What::Message { topic, .. } if how.retain && !how.stamp.is_none() => Some((topic.clone(), how)),
        _ => None,
    }
}

/// A connection that was verified.
struct Connection {
    context: Context,
    retained: Arc<RetainedBucket>,
    signals: Arc<Signals>,
    /// The largest message with its headers.
    bytes_max: usize,
    _client: Client,
}

impl Connection {
    /// Connects, and reads what the promise depends on.
    async fn open(target: &NatsTarget, name: &str, shared: &Shared) -> Result<(Self, String), String> {
        let signals = Arc::new(Signals::default());
        let opened = async {
            let client = target.access.connect(name, Arc::clone(&signals)).await?;
            Self::verify(target, client, &signals, shared).await
        };
        let opened = tokio::time::timeout(target.timeout, opened).await;
        opened
            .unwrap_or_else(|_| Err("the server does not answer in time".to_owned()))
            .map_err(|why| signals.explain(&why))
    }

    async fn verify(
        target: &NatsTarget,
        client: Client,
        signals: &Arc<Signals>,
        shared: &Shared,
    ) -> Result<(Self, String), String> {
        let server = client.server_info();
        check_version(&server.version)?;
        let mut context = jetstream::new(client.clone());
        context.set_timeout(target.timeout);
        let NatsSink { stream: name, make, prefix, .. } = &target.config;
        let stream = match (context.get_stream(name).await, make) {
            (Err(error), Some(how)) if is_missing(&error) => {
                let made = context.create_stream(wanted(name, prefix, how)).await;
                made.map_err(|error| format!("the stream {name:?} cannot be made: {error}: let the account make it"))?
            }
            (found, _) => found.map_err(|error| format!("the stream {name:?} cannot be read: {error}"))?,
        };
        let info = stream.cached_info();
        check_subjects(&info.config, &target.config.prefix)?;
        if make.is_some() {
            take_publications(&context, &info.config, prefix).await;
        }
        let of_stream = usize::try_from(info.config.max_message_size).ok().filter(|most| *most > 0);
        let bytes_max = server.max_payload.min(of_stream.unwrap_or(usize::MAX));
        let promise = promise(&info.config, &server.version);
        let retained = Arc::new(RetainedBucket::new(&context, prefix, Arc::clone(&shared.superseded)).await?);
        Ok((Self { context, retained, signals: Arc::clone(signals), bytes_max, _client: client }, promise))
    }
}

fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(told) if told.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// As it is made where it is missing: it takes all that is sent, and drops what comes twice within ten minutes.
fn wanted(name: &str, prefix: &str, make: &NatsStream) -> stream::Config {
    stream::Config {
        name: name.to_owned(),
        subjects: vec![format!("{prefix}.up.>"), format!("{prefix}.presence.*"), format!("{prefix}.pub.>")],
        max_age: make.retention,
        storage: stream::StorageType::File,
        num_replicas: make.replicas,
        duplicate_window: DUPLICATE_WINDOW.min(make.retention),
        allow_direct: true,
        ..stream::Config::default()
    }
}

/// A stream of the fleet that an earlier version has made takes from now on what is published over the API too.
async fn take_publications(context: &Context, there: &stream::Config, prefix: &str) {
    let wanted = format!("{prefix}.pub.>");
    if there.subjects.iter().any(|filter| subject::covers(filter, &wanted)) {
        return;
    }
    let subjects = there.subjects.iter().cloned().chain([wanted.clone()]).collect();
    if let Err(error) = context.update_stream(&stream::Config { subjects, ..there.clone() }).await {
        let (stream, why) = (&there.name, in_words(&error));
        tracing::warn!(%stream, why, "what is published over the API reaches no other gateway: add {wanted} to the stream's subjects");
    }
}

fn check_subjects(stream: &stream::Config, prefix: &str) -> Result<(), String> {
    for kind in ["up.*.>", "presence.*"] {
        let needed = format!("{prefix}.{kind}");
        if !stream.subjects.iter().any(|filter| subject::covers(filter, &needed)) {
            return Err(format!("the stream {:?} does not take {needed}: add that to its subjects", stream.name));
        }
    }
    Ok(())
}

/// What an acknowledgement of this stream means, in one line.
fn promise(stream: &stream::Config, version: &str) -> String {
    let replicas = stream.num_replicas.max(1);
    let servers =
        if replicas == 1 { "one server has it".to_owned() } else { format!("most of {replicas} servers have it") };
    let disk = match stream.storage {
        stream::StorageType::File => "on the disk within their sync_interval",
        stream::StorageType::Memory => "in memory only",
    };
    let window = humantime::format_duration(stream.duplicate_window);
    format!(
        "acknowledged means: {servers}, {disk} (stream {:?}, nats-server {version}); what is sent again is dropped within {window}",
        stream.name
    )
}

/// An acknowledgement, or none.
type Settled = (usize, u64, Result<(), NotSent>);

/// Why it is not known to be there.
enum NotSent {
    /// The server will not take it for what it is. Why.
    Refused(String),
    /// Anything else. Why.
    Lost(String),
}

impl From<PublishError> for NotSent {
    fn from(error: PublishError) -> Self {
        if is_refusal(&error) { Self::Refused(in_words(&error)) } else { Self::Lost(in_words(&error)) }
    }
}

impl From<NotKept> for NotSent {
    fn from(not_kept: NotKept) -> Self {
        match not_kept {
            NotKept::Refused(why) => Self::Refused(format!("the bucket of retained messages: {why}")),
            NotKept::Lost(why) => Self::Lost(format!("the bucket of retained messages: {why}")),
        }
    }
}

/// The thread of one such sink.
pub(super) struct NatsRun {
    run: Run,
    feed: Feed,
    backoff: Backoff,
    connection: Option<Connection>,
    /// When to connect again.
    due: Instant,
    under_way: JoinSet<Settled>,
    store_id: String,
    /// The event that was refused last, and how often.
    refusals: (u64, u32),
}

impl NatsRun {
    pub(super) async fn work(mut run: Run, seed: u64) -> Result<(), Over> {
        let store_id = run.begin().await?;
        let lanes = usize::from(target(&run).config.inflight);
        let mut this = Self {
            feed: Feed::new(lanes),
            backoff: Backoff::new(run.settings.config.retry, seed),
            connection: None,
            due: Instant::now(),
            under_way: JoinSet::new(),
            store_id,
            refusals: (0, 0),
            run,
        };
        let ended = this.go_on().await;
        this.feed.finish(&this.run).await;
        ended
    }

    async fn go_on(&mut self) -> Result<(), Over> {
        loop {
            if self.run.is_paused() {
                self.disconnect();
                self.feed.forget();
            }
            self.run.while_paused().await?;
            if self.connection.is_none() && !self.connect().await? {
                continue;
            }
            let turned = match self.turn().await {
                Ok(()) => self.wait().await,
                Err(error) => self.run.store_failed(&error).await,
            };
            turned?;
        }
    }

    /// Connects when it is time. `false`: not yet, or something was ordered.
    async fn connect(&mut self) -> Result<bool, Over> {
        let due = self.due;
        if self.run.unless_ordered(tokio::time::sleep_until(due.into())).await?.is_none() {
            return Ok(false);
        }
        let settings = Arc::clone(&self.run.settings);
        let name = format!("pulsegate {} {}", self.run.node, settings.name());
        let Target::Nats(target) = &settings.target else { unreachable!("the settings are of this kind") };
        let shared = Arc::clone(&self.run.shared);
        match self.run.unless_ordered(Connection::open(target, &name, &shared)).await? {
            None => Ok(false),
            Some(Ok((connection, promise))) => {
                tracing::info!(sink = settings.name(), promise, "connected");
                self.run.note_well();
                self.connection = Some(connection);
                Ok(true)
            }
            Some(Err(why)) => Ok(self.broken(&why)),
        }
    }

    async fn turn(&mut self) -> Result<(), StoreError> {
        if self.feed.begin(&self.run).await? {
            // What is under way was sent from elsewhere.
            self.under_way = JoinSet::new();
        }
        let lanes = usize::from(target(&self.run).config.inflight);
        self.feed.fill(&self.run, |device| lane_of(device, lanes))?;
        for lane in 0..lanes {
            self.serve(lane);
        }
        self.feed.advance(&self.run);
        Ok(())
    }

    /// Sends the next of a lane, if none of its is under way.
    fn serve(&mut self, lane: usize) {
        let Some(connection) = &self.connection else { return };
        let Some((seq, stored)) = self.feed.window.next(lane, 1) else { return };
        let Message { subject, headers, payload, retained } =
            target(&self.run).message(&self.run.node, &self.store_id, stored);
        if subject.len() > SUBJECT_BYTES_MAX {
            return self.give_up(lane, seq, "its subject is longer than a server takes");
        }
        if payload.len() + header_bytes(&headers) > connection.bytes_max {
            return self.give_up(lane, seq, "it is larger than the server or the stream takes");
        }
        let (context, bucket) = (connection.context.clone(), Arc::clone(&connection.retained));
        self.under_way.spawn(async move {
            let send = async {
                if let Some((topic, how)) = retained {
                    // First: whoever subscribes when the stream has it finds it there (decision 0029).
                    bucket.put(&topic, payload.clone(), &how).await?;
                }
                context.publish_with_headers(subject, headers, payload).await?.await?;
                Ok(())
            };
            (lane, seq, send.await)
        });
    }

    async fn wait(&mut self) -> Result<(), Over> {
        let Some(signals) = self.connection.as_ref().map(|connection| Arc::clone(&connection.signals)) else {
            return Ok(());
        };
        let mut head = self.run.store.head();
        let now = *head.borrow_and_update();
        if now.is_closed {
            return Err(Over);
        }
        if self.feed.can_read(now) {
            return Ok(());
        }
        tokio::select! {
            biased;
            ordered = self.run.orders.changed() => ordered.map_err(|_| Over)?,
            () = signals.broken() => drop(self.broken("the connection is gone")),
            advanced = self.feed.advanced() => {
                if let Err(error) = advanced {
                    self.run.store_failed(&error).await?;
                }
            }
            Some(settled) = self.under_way.join_next() => {
                self.handle(settled);
                // All that is there already: one turn for all.
                while let Some(settled) = self.under_way.try_join_next() {
                    self.handle(settled);
                }
            }
            _ = head.changed() => {}
        }
        Ok(())
    }

    fn handle(&mut self, settled: Result<Settled, tokio::task::JoinError>) {
        // One of an earlier connection, which was taken back.
        let Ok((lane, seq, settled)) = settled else { return };
        match settled {
            Ok(()) => {
                self.backoff.succeed();
                if self.feed.window.acknowledge(lane, seq) {
                    self.run.note_sent(1);
                }
            }
            Err(NotSent::Refused(why)) => self.refused(lane, seq, &why),
            Err(NotSent::Lost(why)) => {
                let why = self.connection.as_ref().map_or(why.clone(), |connection| connection.signals.explain(&why));
                self.broken(&why);
            }
        }
    }

    /// It is tried again some times, then it is given up.
    fn refused(&mut self, lane: usize, seq: u64, why: &str) {
        let before = if self.refusals.0 == seq { self.refusals.1 } else { 0 };
        self.refusals = (seq, before + 1);
        if before + 1 >= self.run.settings.config.tries_refused {
            self.give_up(lane, seq, why);
        } else {
            self.broken(why);
        }
    }

    fn give_up(&mut self, lane: usize, seq: u64, why: &str) {
        let is_buried = self.feed.window.get(seq).is_none_or(|stored| self.run.bury(why, &[stored]));
        if is_buried {
            self.feed.window.acknowledge(lane, seq);
        } else {
            self.broken(why);
        }
    }

    /// All that is under way is to be sent again, after a while. It is not connected: `false`.
    fn broken(&mut self, why: &str) -> bool {
        self.disconnect();
        self.run.note_failure(why);
        self.due = Instant::now() + self.backoff.fail(None);
        false
    }

    fn disconnect(&mut self) {
        self.connection = None;
        self.under_way = JoinSet::new();
        for lane in 0..usize::from(target(&self.run).config.inflight) {
            self.feed.window.reset(lane);
        }
    }
}

/// Whether the server will not take this message for what it is.
fn is_refusal(error: &PublishError) -> bool {
    let code = std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<jetstream::Error>())
        .map(jetstream::Error::error_code);
    error.kind() == PublishErrorKind::MaxPayloadExceeded || code == Some(MESSAGE_TOO_LARGE)
}

fn target(run: &Run) -> &NatsTarget {
    match &run.settings.target {
        Target::Nats(target) => target,
        Target::Http(_) | Target::Mqtt(_) => unreachable!("the settings are of this kind"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_promise_says_what_an_acknowledgement_means() {
        let config = stream::Config {
            name: "UP".into(),
            num_replicas: 3,
            duplicate_window: Duration::from_mins(2),
            ..stream::Config::default()
        };
        let said = promise(&config, "2.15.1");
        assert!(said.contains("most of 3 servers have it, on the disk within their sync_interval"), "{said}");
        assert!(said.contains("dropped within 2m"), "{said}");
        let memory = stream::Config { storage: stream::StorageType::Memory, num_replicas: 1, ..config };
        assert!(promise(&memory, "2.15.1").contains("one server has it, in memory only"));
    }

    #[test]
    fn a_stream_that_does_not_take_what_is_sent_is_named() {
        let stream = |subjects: &[&str]| stream::Config {
            name: "UP".into(),
            subjects: subjects.iter().map(ToString::to_string).collect(),
            ..stream::Config::default()
        };
        assert!(check_subjects(&stream(&["p.>"]), "p").is_ok());
        assert!(check_subjects(&stream(&["p.up.>"]), "p").is_err_and(|why| why.contains("p.presence.*: add that")));
        assert!(check_subjects(&stream(&["p.up.>", "p.presence.*"]), "p").is_ok());
    }
}

//! The bucket of retained messages, read from its beginning and on: what changes there changes in every shard's table.
//!
//! ```text
//!   asked: what is kept here, and not on its way there ◀── Begin ── the bucket is read from its first message
//!                                                                      │ so many messages as there is room for
//!                                                                      ▼
//!              a later stamp stays, in each shard ◀── Set ── the topic, what it holds, its stamp
//!              gone everywhere ◀── Set (a deletion) ── what is kept here and was not there at the end
//!              who waits for what was there goes on ◀── Passed
//! ```
//!
//! It is read anew, from its first message, whenever the connection or the consumer is: so what was deleted while nobody looked is not
//! missed, however long that was and whatever has become of tombstones. Deletions lie there as tombstones for a day, since an older message may
//! come from a gateway that was cut off; the gateway whose name comes first takes them away.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream;
use async_nats::jetstream::consumer::pull::{Batch, Config};
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::server::Server;
use super::status::{Bucket, Report};
use super::{Shared, names};
use crate::config::FLEET_INTAKE_BYTES;
use crate::link::{QoS, Stamp};
use crate::sink::Backoff;
use crate::sink::nats::bucket::{self, Held};
use crate::sink::nats::{Publishing, in_words};

/// So many bytes are one unit of what is under way: what a small message takes beside what it says.
const UNIT_BYTES: usize = 512;
/// What may be under way, in bytes: a part of what other gateways' messages may take.
const ROOM_BYTES: usize = FLEET_INTAKE_BYTES / 4;
/// Messages asked for at a time,
const BATCH: usize = 256;
/// and their bytes, unless the first of them alone is larger.
const BATCH_BYTES: usize = 1 << 20;
/// How long the server keeps such a question.
const BATCH_EXPIRES: Duration = Duration::from_secs(5);
/// The server lets a consumer go that nobody has asked for so long.
const INACTIVE: Duration = Duration::from_mins(1);
/// How long a deletion is known in the bucket, and a message that has expired: so old may be what comes from a gateway that was cut off,
/// and is known to be older.
const TOMBSTONE_LIFE: Duration = Duration::from_hours(24);
/// Beyond so many of them the oldest go before that.
const TOMBSTONES_MAX: usize = 65_536;
/// How often it is looked for those that go,
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// and how many go at a time.
const SWEPT_AT_ONCE: usize = 1_024;

/// Something about the bucket, in its order.
#[derive(Debug)]
pub enum Change {
    /// It is about to be read: what is kept here of the fleet's retained messages is to be said, without what is on its way there.
    Begin {
        /// Each topic with its stamp.
        answer: oneshot::Sender<HashMap<Box<str>, Stamp>>,
    },
    /// A topic holds this from now on, unless something later is here.
    Set(Box<Retained>),
    /// All up to here was said.
    Passed {
        /// The place in the bucket.
        at: u64,
    },
}

/// What a topic holds.
#[derive(Debug)]
pub struct Retained {
    /// The place in the bucket.
    pub at: u64,
    /// A text that may be no topic.
    pub topic: Box<str>,
    /// The payload; empty: nothing.
    pub payload: Bytes,
    /// How it was published, with its stamp.
    pub publishing: Publishing,
    /// Its part of what may be under way, given back when it is settled.
    pub room: OwnedSemaphorePermit,
}

/// What became of what was read.
#[derive(Debug, Default)]
pub struct Counters {
    pub tombstones: AtomicU64,
    pub taken: AtomicU64,
    pub dropped: AtomicU64,
    pub refused: AtomicU64,
    pub invalid: AtomicU64,
    pub ahead: AtomicU64,
    /// Messages of the API that were not written, because later ones were there.
    pub superseded: Arc<AtomicU64>,
    /// Up to where all of it is in the tables here.
    pub applied: AtomicU64,
    /// How often all of it was read.
    pub reads: AtomicU64,
    /// Rings when `applied` has changed.
    pub moved: Notify,
}

impl Counters {
    /// Told.
    pub(super) fn report(&self, report: &mut Report) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Self { tombstones, taken, dropped, refused, invalid, ahead, superseded, reads, .. } = self;
        report.retained = Bucket {
            is_read: load(reads) > 0,
            tombstones: load(tombstones),
            taken: load(taken),
            dropped: load(dropped),
            refused: load(refused),
            invalid: load(invalid),
            ahead: load(ahead),
            superseded: load(superseded),
        };
    }

    /// All up to here is in the tables.
    pub fn apply(&self, at: u64) {
        self.applied.store(at, Ordering::Release);
        self.moved.notify_waiters();
    }

    /// Ends when all up to here is in the tables.
    pub async fn reach(&self, at: u64) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            // Before it is looked: whoever moves it then rings.
            moved.as_mut().enable();
            if self.applied.load(Ordering::Acquire) >= at {
                return;
            }
            moved.await;
        }
    }
}

/// A consumer, and how much of what it was sent was read.
struct Reading {
    consumer: Consumer<Config>,
    batch: Option<Batch>,
    come: Come,
    /// The next one is larger than a batch may be.
    is_large: bool,
    /// What is kept here, and was not seen in the bucket yet; none: all of it was read.
    unseen: Option<HashMap<Box<str>, Stamp>>,
}

/// How far a consumer was read.
#[derive(Debug, Default)]
struct Come {
    /// Messages that came through it.
    read: u64,
    /// The bucket's last message when the batch was asked for, or a later one that has come since: when nothing is left, all up to here
    /// was read.
    end: u64,
}

impl Come {
    /// One comes: the consumer's so-manieth, at this place. Whether it is the next.
    fn take(&mut self, number: u64, at: u64) -> bool {
        let is_next = number == self.read + 1;
        if is_next {
            (self.read, self.end) = (number, self.end.max(at));
        }
        is_next
    }
}

/// See the head of this file.
pub struct Watch {
    shared: Arc<Shared>,
    changes: mpsc::UnboundedSender<Change>,
    room: Arc<Semaphore>,
    /// By topic: a tombstone's place, or that of a message that expires, and when it may go, in milliseconds since 1970.
    graves: HashMap<Box<str>, (u64, u64)>,
    backoff: Backoff,
    random: fastrand::Rng,
}

impl Watch {
    /// What comes goes to `changes`, in its order.
    pub(super) fn new(
        shared: Arc<Shared>,
        changes: mpsc::UnboundedSender<Change>,
        backoff: Backoff,
        random: fastrand::Rng,
    ) -> Self {
        let room = Arc::new(Semaphore::new(ROOM_BYTES / UNIT_BYTES));
        Self { shared, changes, room, graves: HashMap::new(), backoff, random }
    }

    /// Reads for as long as it is polled: until the connection is given up.
    pub(super) async fn run(&mut self, server: &Server) -> Infallible {
        loop {
            let why = match self.serve(server).await {
                Ok(never) => match never {},
                Err(why) => why,
            };
            self.shared.status().retained(Some(&why));
            tokio::time::sleep(self.backoff.fail(None)).await;
        }
    }

    async fn serve(&mut self, server: &Server) -> Result<Infallible, String> {
        let mut reading = self.open(server).await?;
        let mut swept = Instant::now();
        loop {
            if reading.batch.is_none() {
                self.ask(server, &mut reading).await?;
            }
            let message = match reading.batch.as_mut() {
                Some(batch) => batch.next().await,
                None => None,
            };
            match message {
                Some(Ok(message)) => self.handle(&mut reading, message).await?,
                Some(Err(error)) => {
                    reading.batch = None;
                    let why = error.to_string();
                    // The server says in these words that a batch is full, or that nothing so large fits into it.
                    reading.is_large = why.contains("MaxBytes");
                    if !reading.is_large && !why.contains("Batch Completed") {
                        return Err(why);
                    }
                }
                None => {
                    reading.batch = None;
                    self.handle_end(server, &mut reading).await?;
                }
            }
            if swept.elapsed() > SWEEP_EVERY {
                swept = Instant::now();
                self.sweep(server).await?;
            }
        }
    }

    /// A consumer of all of it, from its first message on.
    async fn open(&mut self, server: &Server) -> Result<Reading, String> {
        let (answer, answered) = oneshot::channel();
        // The receiver is gone when the gateway ends.
        let _ = self.changes.send(Change::Begin { answer });
        let unseen = answered.await.map_err(|_| "what is kept here is not known".to_owned())?;
        self.graves.clear();
        let config = Config {
            name: Some(format!("{}-{:016x}", names::consumer(&self.shared.node), self.random.u64(..))),
            description: Some(format!("retained messages at {:?}", self.shared.node)),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::None,
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..Config::default()
        };
        let made = server.retained_consumer(config).await;
        let consumer = made.map_err(|why| format!("retained messages cannot be read: {why}"))?;
        Ok(Reading { consumer, batch: None, come: Come::default(), is_large: false, unseen: Some(unseen) })
    }

    /// Asks for as much as there is room for.
    async fn ask(&self, server: &Server, reading: &mut Reading) -> Result<(), String> {
        reading.come.end = server.retained_last().await?;
        let count = if reading.is_large { 1 } else { self.room.available_permits().clamp(1, BATCH) };
        let mut batch = reading.consumer.batch().max_messages(count);
        if !reading.is_large {
            batch = batch.max_bytes(BATCH_BYTES);
        }
        // As long as something is known to be there, the end is to be told at once.
        batch = batch.expires(if reading.unseen.is_some() { Duration::from_millis(200) } else { BATCH_EXPIRES });
        reading.batch = Some(batch.messages().await.map_err(|error| in_words(&error))?);
        Ok(())
    }

    async fn handle(&mut self, reading: &mut Reading, message: jetstream::Message) -> Result<(), String> {
        let info = message.info().map_err(|error| error.to_string())?;
        let (at, pending, number) = (info.stream_sequence, info.pending, info.consumer_sequence);
        let since_ns = info.published.unix_timestamp_nanos();
        if !reading.come.take(number, at) {
            return Err("a message of the bucket was lost on its way: it is read again".to_owned());
        }
        reading.is_large = false;
        let async_nats::Message { subject, payload, headers, .. } = message.message;
        let Some(topic) = self.shared.names.retained_topic(&subject) else {
            self.shared.retained.invalid.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        let headers = headers.unwrap_or_default();
        let held = bucket::held_of(&headers, since_ns);
        let payload = if bucket::is_deletion(&headers) { Bytes::new() } else { payload };
        self.note(reading, (&topic, at), &payload, &held);
        if let Some(publishing) = self.publishing_of(held, payload.is_empty()) {
            self.pass(at, topic.into(), payload, publishing).await;
        }
        if pending == 0 {
            self.complete(reading, at).await;
        }
        Ok(())
    }

    /// How it was published. `None`: it is not followed.
    fn publishing_of(&self, held: Held, is_deletion: bool) -> Option<Publishing> {
        let publishing = match held.publishing {
            Some(publishing) => publishing,
            // By hand: as if it were a gateway.
            None if is_deletion => deletion(held.stamp),
            None => {
                self.shared.retained.invalid.fetch_add(1, Ordering::Relaxed);
                return None;
            }
        };
        self.shared.may_follow(&publishing).then_some(publishing)
    }

    /// What is in the bucket: tombstones, and what was seen of what is kept here.
    fn note(&mut self, reading: &mut Reading, (topic, at): (&str, u64), payload: &Bytes, held: &Held) {
        if let Some(unseen) = &mut reading.unseen {
            unseen.remove(topic);
        }
        match goes_at(payload.is_empty(), held).filter(|_| self.graves.len() < 2 * TOMBSTONES_MAX) {
            Some(goes_ms) => drop(self.graves.insert(topic.into(), (at, goes_ms))),
            None => drop(self.graves.remove(topic)),
        }
        self.shared.retained.tombstones.store(self.graves.len() as u64, Ordering::Relaxed);
    }

    async fn pass(&self, at: u64, topic: Box<str>, payload: Bytes, publishing: Publishing) {
        let bytes = payload.len() + topic.len() + publishing.properties.len();
        let units = (1 + bytes / UNIT_BYTES).min(ROOM_BYTES / UNIT_BYTES);
        let room = Arc::clone(&self.room).acquire_many_owned(units as u32).await.expect("it is never closed");
        self.shared.retained.taken.fetch_add(1, Ordering::Relaxed);
        // The receiver is gone when the gateway ends.
        let _ = self.changes.send(Change::Set(Box::new(Retained { at, topic, payload, publishing, room })));
    }

    /// All that is there was read, up to here: what is kept here beside it was deleted when nobody looked.
    async fn complete(&mut self, reading: &mut Reading, at: u64) {
        if let Some(unseen) = reading.unseen.take() {
            for (topic, stamp) in unseen {
                self.shared.retained.dropped.fetch_add(1, Ordering::Relaxed);
                self.pass(at, topic, Bytes::new(), deletion(stamp.withdrawal())).await;
            }
            self.shared.retained.reads.fetch_add(1, Ordering::Relaxed);
            self.shared.status().retained(None);
            self.backoff.succeed();
        }
        let _ = self.changes.send(Change::Passed { at });
    }

    /// A batch is over. If nothing is left, all is read that was there before it was asked for.
    async fn handle_end(&mut self, server: &Server, reading: &mut Reading) -> Result<(), String> {
        let progress = server.retained_progress(&reading.consumer.cached_info().name).await;
        let (sent, pending) = progress.ok_or("the consumer is gone, or the server does not answer")?;
        if sent != reading.come.read {
            return Err("a message of the bucket was lost on its way: it is read again".to_owned());
        }
        if pending == 0 {
            self.complete(reading, reading.come.end).await;
        }
        Ok(())
    }

    /// Tombstones go that are old enough, or too many. By the gateway whose name comes first.
    async fn sweep(&mut self, server: &Server) -> Result<(), String> {
        let now_ms =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let first = server.leased().await.map_err(|why| why.to_string())?.into_iter().next();
        if first.as_ref() != Some(&self.shared.node) {
            return Ok(());
        }
        for (topic, at) in due(&self.graves, now_ms) {
            server.remove_retained_at(at).await?;
            self.graves.remove(&topic);
        }
        self.shared.retained.tombstones.store(self.graves.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// When a key may go from the bucket, in milliseconds since 1970: that of a deletion, or of what expires; `None`: it stays.
fn goes_at(is_deletion: bool, held: &Held) -> Option<u64> {
    let expires_ms = held.publishing.as_ref().and_then(|publishing| publishing.expires_ms);
    if !is_deletion && expires_ms.is_none() {
        return None;
    }
    let over_ms = expires_ms.and_then(|expires_ms| u64::try_from(expires_ms).ok()).unwrap_or(0);
    Some(over_ms.max(held.stamp.unix_ms()).saturating_add(TOMBSTONE_LIFE.as_millis() as u64))
}

/// Those that go now, the oldest first: whose time it is, and those that are too many.
fn due(graves: &HashMap<Box<str>, (u64, u64)>, now_ms: u64) -> Vec<(Box<str>, u64)> {
    let by_time: BTreeMap<(u64, u64), &Box<str>> =
        graves.iter().map(|(topic, &(at, goes_ms))| ((goes_ms, at), topic)).collect();
    let excess = graves.len().saturating_sub(TOMBSTONES_MAX);
    let going = by_time.into_iter().enumerate();
    let going = going.take_while(|(number, ((goes_ms, _), _))| *number < excess || *goes_ms <= now_ms);
    going.take(SWEPT_AT_ONCE).map(|(_, ((_, at), topic))| (topic.clone(), at)).collect()
}

fn deletion(stamp: Stamp) -> Publishing {
    let (node, properties) = (String::new(), Box::default());
    Publishing { node, qos: QoS::AtMostOnce, retain: true, properties, expires_ms: None, stamp, groups: None }
}

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn tombstones_go_when_they_are_old_or_too_many() {
        let graves = |count: usize| -> HashMap<Box<str>, (u64, u64)> {
            (0..count as u64).map(|number| (number.to_string().into(), (1_000 + number, 100 + number))).collect()
        };
        let places = |due: Vec<(Box<str>, u64)>| due.into_iter().map(|(_, at)| at).collect::<Vec<_>>();
        assert_eq!(places(due(&graves(5), 99)), [0; 0]);
        assert_eq!(places(due(&graves(5), 102)), [1_000, 1_001, 1_002]);
        assert_eq!(places(due(&graves(TOMBSTONES_MAX + 2), 0)), [1_000, 1_001]);
        assert_eq!(due(&graves(5_000), u64::MAX).len(), SWEPT_AT_ONCE);
    }

    /// Else whoever waits for it waits until the next batch is over.
    #[test]
    fn the_end_of_a_batch_is_behind_what_it_has_brought() {
        let mut come = Come { read: 0, end: 0 };
        assert!(come.take(1, 1) && come.take(2, 5));
        assert_eq!((come.read, come.end), (2, 5));
        assert!(!come.take(4, 7), "one was lost");
        assert_eq!((come.read, come.end), (2, 5));
        come.end = 9;
        assert!(come.take(3, 7));
        assert_eq!(come.end, 9, "what was there when it was asked, and is none of this consumer's, counts too");
    }

    #[tokio::test]
    async fn whoever_waits_goes_on_when_it_is_in_the_tables() {
        let counters = Counters::default();
        counters.apply(7);
        counters.reach(7).await;
        let waiting = counters.reach(9);
        tokio::pin!(waiting);
        assert!((&mut waiting).now_or_never().is_none());
        counters.apply(8);
        assert!((&mut waiting).now_or_never().is_none());
        counters.apply(12);
        waiting.await;
    }
}

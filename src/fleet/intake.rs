//! What is published at other gateways, read from the fleet's stream and passed on to this one's subscribers.
//!
//! ```text
//!   shards ── what is wanted ──▶ Interests ──▶ a consumer with these subjects, from the place that was come to
//!                                                 │ so many messages as there is room for
//!                                                 ▼
//!                            its own: skipped;  others': Arrival ──▶ shards ──▶ settled: the place is kept in the store
//! ```
//!
//! The place is this gateway's own, kept beside its sessions; the consumer in NATS is made for it, acknowledges nothing, and is thrown away
//! whenever another filter is wanted or anything is not as it should be: a message is never brought twice to a process, nor out of order,
//! and what was in nobody's hands when it ended is brought again, from the place that was kept. What is under way here is bounded
//! in bytes; without room nothing is asked for.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::consumer::pull::{Batch, Config};
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::interests::PATIENCE;
use super::place::{Place, Position, StreamFacts};
use super::server::Server;
use super::sessions::{ENDS_EVERY, Ends};
use super::{Order, Shared, names};
use crate::config::FLEET_INTAKE_BYTES;
use crate::link::Stamp;
use crate::sink::Backoff;
use crate::sink::nats::{Publishing, in_words, subject};

/// So many bytes are one unit of what is under way: what a small message takes beside what it says.
const UNIT_BYTES: usize = 512;
/// Messages asked for at a time,
const BATCH: usize = 256;
/// and their bytes, unless the first of them alone is larger.
const BATCH_BYTES: usize = 1 << 20;
/// How long the server keeps such a question.
const BATCH_EXPIRES: Duration = Duration::from_secs(5);
/// The server lets a consumer go that nobody has asked for so long: whoever is gone for good leaves nothing behind.
const INACTIVE: Duration = Duration::from_mins(1);
/// A consumer that takes too much is replaced no more often than so.
const NARROWED_AFTER: Duration = Duration::from_secs(2);
/// While nothing is wanted it is looked so often where the stream ends.
const END_LOOK_EVERY: Duration = Duration::from_secs(5);
/// Shards that say something at the same time are heard together.
const TOGETHER: Duration = Duration::from_millis(2);

/// Something from the stream, in its order.
#[derive(Debug)]
pub enum Arrival {
    /// A message that was published at another gateway, for whoever has subscribed here.
    Message(Box<Remote>),
    /// All up to here was passed on, or is for nobody here.
    Passed(Position),
    /// Somebody waits until all before this is settled, and the place kept.
    End(oneshot::Sender<()>),
}

/// A message that was published at another gateway.
#[derive(Debug)]
pub struct Remote {
    /// Where it stands in the stream.
    pub at: Position,
    /// The device that published it; `None`: somebody over the API.
    pub device: Option<Box<str>>,
    /// Under which topic.
    pub topic: Box<str>,
    /// The payload: opaque bytes.
    pub payload: Bytes,
    /// How it was published.
    pub publishing: Publishing,
    /// Its part of what may be under way, given back when it is settled.
    pub room: OwnedSemaphorePermit,
}

/// What became of what was read.
#[derive(Debug, Default)]
pub struct Counters {
    pub taken: AtomicU64,
    pub own: AtomicU64,
    pub invalid: AtomicU64,
    pub missed: AtomicU64,
    pub behind: AtomicU64,
    pub subjects: AtomicU64,
}

/// Why what was read is not gone on with.
const LOST: &str = "a message from the stream was lost on its way: it is read again";

/// A consumer, and how much of what it was sent was read.
struct Reading {
    consumer: Consumer<Config>,
    batch: Option<Batch>,
    /// Messages that came through it.
    read: u64,
    opened: Instant,
    /// The next one is larger than a batch may be.
    is_large: bool,
    /// The stream's last message when the batch was asked for that has brought nothing yet.
    end: Option<u64>,
    /// The batch before brought nothing.
    is_idle: bool,
}

/// See the head of this file.
pub struct Intake {
    shared: Arc<Shared>,
    prefix: String,
    /// Where it was when the process ended before.
    kept: Option<Position>,
    place: Option<Place>,
    arrivals: mpsc::UnboundedSender<Arrival>,
    orders: mpsc::UnboundedSender<Order>,
    room: Arc<Semaphore>,
    /// The next that is to be passed on, which counts as taken: there is no room for it.
    waiting: Option<Waiting>,
    /// Where it is, which is to be said when that has been passed on.
    unsaid: Option<Position>,
    /// The server was away, and nothing was wanted before: whoever has subscribed since was not waited for.
    is_back: bool,
    ends: Ends,
    /// When it is asked again whether all has come.
    ends_due: Instant,
    /// How often a consumer was made, or let go,
    opened: Arc<AtomicU64>,
    /// and for which of these all is in the tables that was retained before.
    caught_up: Arc<AtomicU64>,
    backoff: Backoff,
    random: fastrand::Rng,
}

/// What is read, and passed on when there is room.
type Waiting = (Box<Publication>, u32);

struct Publication {
    at: Position,
    device: Option<Box<str>>,
    topic: Box<str>,
    payload: Bytes,
    publishing: Publishing,
}

impl Intake {
    /// Goes on where it was: `kept`. What comes goes to `arrivals`, in its order.
    pub(super) fn new(
        shared: Arc<Shared>,
        prefix: &str,
        kept: Option<Position>,
        (arrivals, orders): (mpsc::UnboundedSender<Arrival>, mpsc::UnboundedSender<Order>),
        backoff: Backoff,
        random: fastrand::Rng,
    ) -> Self {
        Self {
            shared,
            prefix: prefix.to_owned(),
            kept,
            place: None,
            arrivals,
            orders,
            room: Arc::new(Semaphore::new(FLEET_INTAKE_BYTES / UNIT_BYTES)),
            waiting: None,
            unsaid: None,
            is_back: false,
            ends: Ends::default(),
            ends_due: Instant::now(),
            opened: Arc::default(),
            caught_up: Arc::default(),
            backoff,
            random,
        }
    }

    /// Reads for as long as it is polled: until the connection is given up.
    pub(super) async fn run(&mut self, server: &Server) -> Infallible {
        self.is_back = self.place.as_ref().is_some_and(|place| place.wanted().is_empty());
        self.shared.interests().begin();
        loop {
            let why = match self.serve(server).await {
                Ok(never) => match never {},
                Err(why) => why,
            };
            self.shared.status().publications(Some(&why));
            let until = tokio::time::Instant::now() + self.backoff.fail(None);
            // Nobody waits longer for it than for a server that is slow.
            while tokio::time::Instant::now() < until {
                let due = self.shared.interests().due().map_or(until, |due| until.min(due.into()));
                tokio::time::sleep_until(due).await;
                let held = self.shared.interests().give_up(Instant::now());
                self.tell_held(held);
            }
        }
    }

    /// The connection is gone: nobody waits for what comes from there.
    pub(super) fn end(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let held = self.shared.interests().end();
        self.tell_held(held);
    }

    fn tell_held(&self, held: Vec<super::interests::Held>) {
        for (worker, version) in held {
            // The receiver is gone when the gateway ends.
            let _ = self.orders.send(Order::InterestHeld { worker, version });
        }
    }

    // --- Reading ------------------------------------------------------------------------------------------------------

    async fn serve(&mut self, server: &Server) -> Result<Infallible, String> {
        let mut reading: Option<Reading> = None;
        let (mut has_news, mut look_again, mut end_due) = (true, None, Instant::now() + END_LOOK_EVERY);
        loop {
            if has_news {
                look_again = self.follow(server, &mut reading).await?;
            }
            let held = self.shared.interests().give_up(Instant::now());
            self.tell_held(held);
            if let Some(reading) = &mut reading
                && reading.batch.is_none()
                && self.waiting.is_none()
            {
                self.ask(server, reading).await?;
            }
            self.look_for_ends(server, reading.as_ref()).await?;
            let are_ends_awaited = !self.ends.is_empty();
            let is_unwanted = reading.is_none() && self.place.is_some() && self.waiting.is_none();
            let (shared, patience) = (Arc::clone(&self.shared), self.shared.interests().due());
            has_news = false;
            tokio::select! {
                // What is wanted before what comes: who waits for it would wait for as long as others publish.
                biased;
                () = shared.interest_bell.notified() => {
                    tokio::time::sleep(TOGETHER).await;
                    has_news = true;
                }
                () = until(look_again), if look_again.is_some() => has_news = true,
                () = until(patience), if patience.is_some() => {}
                () = tokio::time::sleep(ENDS_EVERY), if are_ends_awaited => {}
                () = tokio::time::sleep_until(end_due.into()), if is_unwanted => {
                    end_due = Instant::now() + END_LOOK_EVERY;
                    self.go_to_end(server).await;
                }
                room = reserve(&self.room, self.waiting.as_ref()) => {
                    let (publication, _) = self.waiting.take().expect("it is waited for");
                    self.pass(*publication, room);
                    if let Some(position) = self.unsaid.take() {
                        self.say(Arrival::Passed(position));
                    }
                }
                message = next(&mut reading), if self.waiting.is_none() => {
                    if let Some(reading) = &mut reading {
                        self.handle(server, reading, message).await?;
                    }
                }
            }
        }
    }

    /// Nothing is wanted: all that there is, is for nobody here. So the place never lies back for long, and whoever is the first to want
    /// something while the server is away gets what is published from then on, and little that is older.
    async fn go_to_end(&mut self, server: &Server) {
        // Without an answer it is where it was.
        let (Ok(facts), Some(place)) = (facts(server).await, &mut self.place) else { return };
        let before = place.position();
        place.look(&facts);
        place.advance(facts.last);
        let position = place.position();
        self.note_missed();
        if position != before {
            self.say(Arrival::Passed(position));
        }
    }

    /// What is read is made what is wanted. When that is to be looked at again, if by the clock.
    async fn follow(&mut self, server: &Server, reading: &mut Option<Reading>) -> Result<Option<Instant>, String> {
        let (is_complete, wanted) = {
            let interests = self.shared.interests();
            (interests.is_complete(), interests.wanted(&self.prefix))
        };
        if !is_complete {
            // What sessions want that an earlier process has left is not known yet.
            return Ok(None);
        }
        let is_first = self.place.is_none();
        let before = self.place.as_ref().map_or(&[][..], Place::wanted);
        let is_reading = reading.is_some() || (before.is_empty() && !is_first);
        if is_reading && before == &wanted[..] {
            self.is_back = false;
            self.note_read(&wanted);
            return Ok(None);
        }
        let is_covered = is_reading && wanted.iter().all(|one| before.iter().any(|known| subject::covers(known, one)));
        if is_covered {
            // It takes too much, which costs no more than that.
            self.note_read(&wanted);
            let due = reading.as_ref().map_or_else(Instant::now, |reading| reading.opened + NARROWED_AFTER);
            if Instant::now() < due {
                return Ok(Some(due));
            }
        }
        // With nothing wanted the place that is kept stays where it was, however long.
        let is_far = before.is_empty();
        *reading = self.open(server, reading.take(), &wanted).await?;
        self.is_back = false;
        self.shared.intake.subjects.store(wanted.len() as u64, Ordering::Relaxed);
        self.shared.status().publications(None);
        self.backoff.succeed();
        self.catch_up(server, wanted, is_far);
        Ok(None)
    }

    /// Whoever wants to know that all has come which was published until now.
    async fn look_for_ends(&mut self, server: &Server, reading: Option<&Reading>) -> Result<(), String> {
        let new = std::mem::take(&mut *self.shared.ends());
        if new.is_empty() && self.ends.is_empty() {
            return Ok(());
        }
        if !new.is_empty() {
            let last = facts(server).await?.last;
            self.ends.wait(last, new);
        }
        if self.waiting.is_some() {
            return Ok(());
        }
        let position = self.place.as_ref().map_or(0, |place| place.position().position);
        let is_read = match reading {
            Some(_) if Instant::now() < self.ends_due => false,
            Some(reading) => {
                self.ends_due = Instant::now() + ENDS_EVERY;
                is_read(server, reading).await
            }
            // Nothing is wanted; or it is not known yet what is.
            None => self.place.is_some(),
        };
        for end in self.ends.reach(position, is_read) {
            self.say(end);
        }
        Ok(())
    }

    /// What is wanted is read from here on. Whoever waits for that goes on when all that was retained before is in the tables: it is in the
    /// bucket before it is in the stream, and so it is either there or still to come (decision 0029). `is_far`: and when the place is kept,
    /// because a process that is killed before would bring its sessions what was published long before they were.
    fn catch_up(&self, server: &Server, wanted: Vec<String>, is_far: bool) {
        let opened = self.opened.fetch_add(1, Ordering::Relaxed) + 1;
        let (latest, caught_up) = (Arc::clone(&self.opened), Arc::clone(&self.caught_up));
        let (shared, server, orders, prefix) =
            (Arc::clone(&self.shared), server.clone(), self.orders.clone(), self.prefix.clone());
        let kept = is_far.then(|| {
            let (end, kept) = oneshot::channel();
            self.say(Arrival::End(end));
            kept
        });
        tokio::spawn(async move {
            let caught = async {
                if let Some(kept) = kept {
                    // Nobody answers when the gateway ends.
                    let _ = kept.await;
                }
                if let Ok(last) = server.retained_last().await {
                    shared.retained.reach(last).await;
                }
            };
            // Nobody waits for longer than that in any case.
            let _ = tokio::time::timeout(PATIENCE, caught).await;
            if latest.load(Ordering::Relaxed) == opened {
                caught_up.store(opened, Ordering::Relaxed);
                let held = shared.interests().handle_read(&prefix, &wanted);
                for (worker, version) in held {
                    // The receiver is gone when the gateway ends.
                    let _ = orders.send(Order::InterestHeld { worker, version });
                }
            }
        });
    }

    fn note_read(&self, wanted: &[String]) {
        if self.caught_up.load(Ordering::Relaxed) != self.opened.load(Ordering::Relaxed) {
            // They go on together.
            return;
        }
        let held = self.shared.interests().handle_read(&self.prefix, wanted);
        self.tell_held(held);
    }

    /// A consumer of what is wanted from now on, in place of the one before.
    async fn open(
        &mut self,
        server: &Server,
        before: Option<Reading>,
        wanted: &[String],
    ) -> Result<Option<Reading>, String> {
        let facts = facts(server).await?;
        let is_read = match &before {
            Some(reading) => is_read(server, reading).await,
            None => false,
        };
        match &mut self.place {
            None => {
                // What is wanted now was wanted by the same sessions before the process ended.
                let mut place = Place::new(self.kept.as_ref(), &facts);
                place.resume(wanted);
                self.place = Some(place);
            }
            Some(place) => {
                place.look(&facts);
                if place.wanted() != wanted {
                    if before.is_none() && (self.is_back || !place.wanted().is_empty()) {
                        // Whoever has subscribed while the server was away was not waited for, and may have missed something.
                        place.resume(wanted);
                    } else {
                        place.want(wanted, facts.last, is_read);
                    }
                }
            }
        }
        self.note_missed();
        let position = self.place.as_ref().expect("it was made").position();
        let reading = if wanted.is_empty() { None } else { Some(self.make(server, wanted, position.position).await?) };
        if self.waiting.is_none() {
            self.say(Arrival::Passed(position));
        } else {
            self.unsaid = Some(position);
        }
        if let Some(before) = before {
            let server = server.clone();
            // The server lets it go all the same, a little later.
            tokio::spawn(async move {
                let name = before.consumer.cached_info().name.clone();
                server.drop_uplink_consumer(&name).await;
            });
        }
        Ok(reading)
    }

    fn note_missed(&mut self) {
        let missed = self.place.as_mut().map_or(0, Place::take_missed);
        if missed > 0 {
            self.shared.intake.missed.fetch_add(missed, Ordering::Relaxed);
            tracing::warn!(
                missed,
                "the fleet's stream let messages go before this gateway had read them: give it more room or a longer age (uplink.retention)"
            );
        }
    }

    async fn make(&mut self, server: &Server, wanted: &[String], position: u64) -> Result<Reading, String> {
        let config = Config {
            name: Some(format!("{}-{:016x}", names::consumer(&self.shared.node), self.random.u64(..))),
            description: Some(format!("what subscribers at {:?} want", self.shared.node)),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: position + 1 },
            ack_policy: AckPolicy::None,
            filter_subjects: wanted.to_vec(),
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..Config::default()
        };
        let made = server.uplink_consumer(config).await;
        let consumer =
            made.map_err(|why| format!("what others publish cannot be read from {:?}: {why}", server.names.uplink()))?;
        let opened = Instant::now();
        Ok(Reading { consumer, batch: None, read: 0, opened, is_large: false, end: None, is_idle: false })
    }

    /// Asks for as much as there is room for.
    async fn ask(&mut self, server: &Server, reading: &mut Reading) -> Result<(), String> {
        reading.end = None;
        if reading.is_idle {
            reading.end = Some(facts(server).await?.last);
        }
        let count = if reading.is_large { 1 } else { self.room.available_permits().clamp(1, BATCH) };
        let mut batch = reading.consumer.batch().max_messages(count).expires(BATCH_EXPIRES);
        if !reading.is_large {
            batch = batch.max_bytes(BATCH_BYTES);
        }
        reading.batch = Some(batch.messages().await.map_err(|error| in_words(&error))?);
        reading.is_idle = true;
        Ok(())
    }

    /// Something has come, or the batch is over.
    async fn handle(
        &mut self,
        server: &Server,
        reading: &mut Reading,
        message: Option<Result<jetstream::Message, async_nats::Error>>,
    ) -> Result<(), String> {
        let message = match message {
            Some(Ok(message)) => message,
            Some(Err(error)) => {
                reading.batch = None;
                let why = error.to_string();
                // The server says in these words that a batch is full, or that nothing so large fits into it.
                reading.is_large = why.contains("MaxBytes");
                return if reading.is_large || why.contains("Batch Completed") { Ok(()) } else { Err(why) };
            }
            None => {
                reading.batch = None;
                return self.handle_end(server, reading).await;
            }
        };
        let info = message.info().map_err(|error| error.to_string())?;
        let (seq, pending, number) = (info.stream_sequence, info.pending, info.consumer_sequence);
        if number != reading.read + 1 {
            return Err(LOST.to_owned());
        }
        (reading.read, reading.end, reading.is_large) = (number, None, false);
        reading.is_idle = false;
        self.shared.intake.behind.store(pending, Ordering::Relaxed);
        self.waiting = self.look_at(seq, message.message);
        Ok(())
    }

    /// A batch is over, or nothing is heard of it. If it brought nothing, all that the stream had before it was asked for is read, as
    /// far as the server says so too.
    async fn handle_end(&mut self, server: &Server, reading: &Reading) -> Result<(), String> {
        let (Some(end), Some(place)) = (reading.end, &mut self.place) else { return Ok(()) };
        let name = &reading.consumer.cached_info().name;
        let progress = server.uplink_progress(name).await;
        let (sent, pending) = progress.ok_or("the consumer is gone, or the server does not answer")?;
        if sent != reading.read {
            return Err(LOST.to_owned());
        }
        if pending == 0 {
            place.advance(end);
            let position = place.position();
            self.say(Arrival::Passed(position));
        }
        self.shared.intake.behind.store(pending, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a message is to be passed on.
    fn look_at(&mut self, seq: u64, message: async_nats::Message) -> Option<Waiting> {
        let place = self.place.as_mut()?;
        let counters = &self.shared.intake;
        let publishing = message.headers.as_ref().and_then(Publishing::read);
        // Of a device that speaks to nobody but the backend, or by somebody else.
        let Some(mut publishing) = publishing else {
            place.advance(seq);
            return None;
        };
        if !publishing.stamp.is_none() && !self.shared.may_follow(&publishing) {
            // It is for those who have subscribed, and is retained by nobody.
            publishing.stamp = Stamp::NONE;
        }
        if !place.take(seq, &message.subject, publishing.qos) {
            return None;
        }
        if publishing.node == self.shared.node {
            counters.own.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let Some((device, topic)) = subject::publication_of(&self.prefix, &message.subject) else {
            counters.invalid.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let bytes = message.payload.len() + topic.len() + publishing.properties.len();
        let units = (1 + bytes / UNIT_BYTES).min(FLEET_INTAKE_BYTES / UNIT_BYTES);
        let publication = Publication {
            at: place.position(),
            device: device.map(String::into_boxed_str),
            topic: topic.into(),
            payload: message.payload,
            publishing,
        };
        Some((Box::new(publication), units as u32))
    }

    fn pass(&self, publication: Publication, room: OwnedSemaphorePermit) {
        let Publication { at, device, topic, payload, publishing } = publication;
        self.shared.intake.taken.fetch_add(1, Ordering::Relaxed);
        self.say(Arrival::Message(Box::new(Remote { at, device, topic, payload, publishing, room })));
    }

    fn say(&self, arrival: Arrival) {
        // The receiver is gone when the gateway ends.
        let _ = self.arrivals.send(arrival);
    }
}

async fn facts(server: &Server) -> Result<StreamFacts, String> {
    let (created, first, last) = server.uplink_facts().await?;
    Ok(StreamFacts { created: created.into(), first, last })
}

/// Whether all that was published until now and is wanted has come. Not, where that is not known.
async fn is_read(server: &Server, reading: &Reading) -> bool {
    let progress = server.uplink_progress(&reading.consumer.cached_info().name).await;
    progress.is_some_and(|(delivered, pending)| pending == 0 && delivered == reading.read)
}

async fn reserve(room: &Arc<Semaphore>, waiting: Option<&Waiting>) -> OwnedSemaphorePermit {
    match waiting {
        Some((_, units)) => Arc::clone(room).acquire_many_owned(*units).await.expect("it is never closed"),
        None => std::future::pending().await,
    }
}

async fn next(reading: &mut Option<Reading>) -> Option<Result<jetstream::Message, async_nats::Error>> {
    match reading.as_mut().and_then(|reading| reading.batch.as_mut()) {
        Some(batch) => batch.next().await,
        None => std::future::pending().await,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

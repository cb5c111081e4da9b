//! The embedded store: what must survive the process, in one SQLite file that any `sqlite3` can read.
//!
//! ```text
//!   offer ──▶ queue ──▶ the writer's thread ──▶ one transaction for all that came ──▶ fsync ──▶ settled
//!   (never waits)        (owns the disk)              (a group)                                 readers hear
//! ```
//!
//! One thread writes. What came while it wrote is the next group, so that many who wait share one fsync; one who is alone
//! is written at once. What nobody waits for joins the next group. Whoever is told that an event is settled may rely on it:
//! under [`Durability::Group`] it is on the disk.
//!
//! Readers have a connection of their own and are never waited for. What is not here: sockets, devices' connections, HTTP.

mod append;
mod coalesce;
mod commands;
mod consumers;
mod crowd;
mod error;
mod files;
mod fleet;
mod handover;
mod loader;
mod progress;
mod queue;
mod reading;
mod reckoning;
mod record;
mod retention;
mod schema;
mod sessions;
mod share;
mod sink;
mod stamp;
mod writer;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

pub use commands::{CommandStamp, OUTCOMES_MAX as COMMAND_OUTCOMES_MAX};
pub use error::StoreError;
pub use files::{Check, backup, check, move_aside};
pub use fleet::FleetPosition;
pub use progress::Range;
pub use reading::Reader;
pub use record::{Details, Entry, Facts, Published, Stored, What};
pub use sessions::KeptStats;
pub use sink::{SINK_PREFIX, SinkNote, SinkState};

use crate::clock::Clock;
use crate::image::{KeptSession, Publication, SessionKey, Stamp};
use crate::link::{Changes, Load, Mailbox, Receipt, WorkerId};
use crate::pool::Charge;
use loader::Loader;
use queue::{Queue, Request};
use writer::Writer;

/// The store's file in the data directory. SQLite keeps two more beside it (`-wal`, `-shm`).
pub const FILE: &str = "store.sqlite";

/// At most so many consumers: each costs a row and a place in memory.
pub const CONSUMERS_MAX: usize = 256;
/// So many numbers are looked through at a time where events have gone before their time.
const GONE_AT_ONCE: u64 = 4_096;
/// The longest name of a consumer, in bytes; of a sink's without [`SINK_PREFIX`].
pub const NAME_BYTES_MAX: usize = 64;

/// What an acknowledgement promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It is on the disk: it survives a loss of power.
    Group,
    /// It is in the system's hands and on the disk within this time: it survives the process at once.
    Interval(Duration),
}

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory that holds [`FILE`]; it is made if it is not there.
    pub directory: PathBuf,
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// The file's largest size in bytes, without its journal.
    pub bytes_max: u64,
    /// Bytes of events that may wait to be written, in memory; as many again of changes.
    pub queue_bytes: usize,
    /// Events older than this are dropped.
    pub retention_age: Duration,
    /// The oldest events are dropped beyond so many bytes of them.
    pub retention_bytes: u64,
    /// Commands that wait for devices take at most so many bytes.
    pub command_bytes: u64,
    /// By which times of day are written: what this process wrote goes along when it is set.
    pub clock: Arc<Clock>,
}

/// Somebody's event is safe, or was refused for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Whose worker waits.
    pub worker: WorkerId,
    /// Who waits there.
    pub receipt: Receipt,
    /// Whether the event is safe.
    pub accepted: bool,
    /// Its number in the log; of one that was refused it says nothing.
    pub seq: u64,
}

/// Who is told what is settled, after each group. It is called in the writer's thread and must not wait.
pub trait Settle: Send + 'static {
    /// All of these, in the order in which they were offered. None of them: there is room again for events that were given back
    /// ([`Taken::Later`]).
    fn settle(&mut self, settled: &[Settled]);
}

impl<F: FnMut(&[Settled]) + Send + 'static> Settle for F {
    fn settle(&mut self, settled: &[Settled]) {
        self(settled);
    }
}

/// How the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// It writes.
    Well = 0,
    /// There is no room: acknowledgements and cursors are still written, events wait. It goes on by itself.
    NoRoom = 1,
    /// The disk has failed: nothing is acknowledged any more, and the process must end.
    Failed = 2,
}

/// How far the uplink has come, as its readers are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The number of the latest event that is safe; 0: none was ever.
    pub last: u64,
    /// Nothing will come any more.
    pub is_closed: bool,
}

/// What the store counts.
#[derive(Debug, Default)]
pub struct Stats {
    /// Events held.
    pub events: AtomicU64,
    /// Bytes that they take.
    pub bytes: AtomicU64,
    /// Events written since the start.
    pub appended: AtomicU64,
    /// Events that retention dropped since the start.
    pub dropped: AtomicU64,
    /// Of these, events of a device that held more than its share.
    pub dropped_share: AtomicU64,
    /// Events that gave way before their time, for want of room, since the start: every consumer had acknowledged them.
    pub gave_way: AtomicU64,
    /// Events larger than the whole retention.
    pub refused: AtomicU64,
    /// Groups written since the start.
    pub groups: AtomicU64,
    /// Microseconds that their commits took, together.
    pub commit_micros: AtomicU64,
    /// Groups for which there was no room.
    pub no_room: AtomicU64,
    /// Sessions and retained messages.
    pub kept: KeptStats,
}

/// How far a consumer is behind, as far as memory tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// Its name.
    pub name: Box<str>,
    /// Every event up to this one is acknowledged or was missed.
    pub cursor: u64,
    /// Events that are neither, so far.
    pub behind: u64,
    /// Events that retention dropped before they were acknowledged.
    pub missed: u64,
}

/// A consumer as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// How far it is.
    pub backlog: Backlog,
    /// The time of the oldest event behind the cursor, as Unix time in milliseconds.
    pub oldest_ms: Option<i64>,
}

/// Where a consumer goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// With the oldest event that is held.
    First,
    /// With the next event to come.
    End,
    /// Behind this event.
    After(u64),
}

/// What a consumer is handed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// What to acknowledge; `None`: there is nothing yet.
    pub range: Option<Range>,
    /// The events, oldest first.
    pub events: Vec<Stored>,
    /// Events that retention dropped unread since the last batch.
    pub missed: u64,
}

/// The store, open. Dropping it writes what waits and ends the thread.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    reader: Reader,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// What the writer and the others share.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    queue: Queue,
    loader: Loader,
    consumers: Mutex<queue::Consumers>,
    head: watch::Sender<Head>,
    commands: watch::Sender<CommandStamp>,
    /// The oldest event held.
    first: AtomicU64,
    /// Where workers hear that their changes are safe.
    mailboxes: OnceLock<Vec<Mailbox>>,
    /// A number above those of all sessions that were there at the start.
    next_key: u64,
    health: AtomicU8,
    stats: Stats,
}

impl Shared {
    fn health(&self) -> Health {
        match self.health.load(Ordering::Acquire) {
            0 => Health::Well,
            1 => Health::NoRoom,
            _ => Health::Failed,
        }
    }

    fn set_health(&self, health: Health) {
        self.health.store(health as u8, Ordering::Release);
    }
}

impl Store {
    /// Opens the store, makes it if it is not there, and starts its thread.
    ///
    /// # Errors
    /// [`StoreError`] names the file and what to do: it is in use, foreign, damaged, or cannot be written.
    pub fn open(options: &Options, settle: impl Settle) -> Result<Self, StoreError> {
        let lock = files::lock(&options.directory)?;
        let path = options.directory.join(FILE);
        let mut connection = schema::open_writer(&path, options.durability, options.bytes_max)?;
        let reserve = files::Reserve::make(&options.directory)?;
        let failed = |error| StoreError::sqlite(&path, error);
        let (state, consumers) = writer::State::load(&connection).map_err(failed)?;
        let now_ms = options.clock.unix_ms(options.clock.now());
        begin(&mut connection, &reserve, now_ms).map_err(failed)?;
        let kept = sessions::Kept::load(&connection).map_err(failed)?;
        let waiting = commands::Waiting::load(&connection).map_err(failed)?;
        let shared = Arc::new(Shared {
            path: path.clone(),
            queue: Queue::new(options.queue_bytes),
            loader: Loader::new(),
            consumers: Mutex::new(consumers),
            head: watch::Sender::new(Head { last: state.last(), is_closed: false }),
            commands: watch::Sender::new(waiting.stamp),
            first: AtomicU64::new(state.first()),
            mailboxes: OnceLock::new(),
            next_key: kept.next_key,
            health: AtomicU8::new(Health::Well as u8),
            stats: Stats::default(),
        });
        let reader = Reader::open(&path)?;
        let writer = Writer::new(shared.clone(), connection, (state, kept, waiting), options, reserve, lock);
        let writer = thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(settle))
            .map_err(|error| StoreError::Io { path, error })?;
        Ok(Self { shared, reader, writer: Mutex::new(Some(writer)) })
    }

    /// Takes events to be written, in order. It takes all of them, or, when so many wait already, none: they stay in
    /// `entries`, to be offered again when there is room. `charges`, what they take of their shards' pools, goes with them and is
    /// given back when they are written. Never waits.
    pub fn offer(&self, entries: &mut Vec<Entry>, charges: &mut Vec<Charge>) -> Taken {
        if self.shared.health() == Health::Failed {
            return Taken::Later;
        }
        self.shared.queue.offer(entries, charges)
    }

    /// Where workers say what changes in their sessions and retained messages.
    #[must_use]
    pub fn changes(&self) -> ChangeSender {
        ChangeSender { shared: self.shared.clone() }
    }

    /// Tells the workers, from now on, what is safe: by [`WorkerCommand::Safe`](crate::link::WorkerCommand::Safe). What became safe before is told
    /// too; and answers, by [`WorkerCommand::Loaded`](crate::link::WorkerCommand::Loaded), what they ask for. To be said once.
    ///
    /// # Errors
    /// The file cannot be opened for reading, or there is no thread to be had.
    pub fn connect(&self, mailboxes: Vec<Mailbox>) -> Result<(), StoreError> {
        self.shared.loader.begin(&self.shared.path, mailboxes.clone())?;
        self.shared.mailboxes.set(mailboxes).expect("the workers are started once");
        Ok(())
    }

    /// The key of the first session that begins in this run, or the first origin; all later ones are above it.
    #[must_use]
    pub fn next_key(&self) -> SessionKey {
        SessionKey(self.shared.next_key)
    }

    /// How the store is.
    #[must_use]
    pub fn health(&self) -> Health {
        self.shared.health()
    }

    /// What it counts.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Hears of events as they become safe.
    #[must_use]
    pub fn head(&self) -> watch::Receiver<Head> {
        self.shared.head.subscribe()
    }

    /// The oldest event held; the next one to come when there is none.
    #[must_use]
    pub fn first(&self) -> u64 {
        self.shared.first.load(Ordering::Acquire)
    }

    /// Reads without a consumer.
    #[must_use]
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Reads every session, in no order of their names, without the messages that wait in them
    /// ([`Reader::messages`]). To be called before anything is changed. Gives back how many there are.
    ///
    /// # Errors
    /// The file cannot be read, or says what cannot be.
    pub fn sessions(&self, each: impl FnMut(KeptSession)) -> Result<u64, StoreError> {
        self.reader.sessions(each)?;
        Ok(self.shared.stats.kept.sessions.load(Ordering::Relaxed))
    }

    /// Reads every retained message with its stamp, in the order of topics.
    ///
    /// # Errors
    /// The file cannot be read, or says what cannot be.
    pub fn retained(&self, each: impl FnMut(Publication, Stamp)) -> Result<(), StoreError> {
        self.reader.retained(each)
    }

    /// Hands events to a reader of `name`, at most `count` and some `bytes`, which nobody else gets before `lease` is
    /// over. Reads the disk.
    ///
    /// # Errors
    /// There is no such consumer, or the file cannot be read.
    pub fn hand_out(&self, name: &str, count: u64, bytes: usize, lease: Duration) -> Result<Batch, StoreError> {
        let head = self.shared.head.borrow().last;
        let (range, missed) = {
            let mut consumers = self.shared.consumers.lock().expect("no holder panics");
            let progress = consumers.get_mut(name).ok_or_else(|| StoreError::NoConsumer(name.into()))?;
            (progress.hand_out(head, count.max(1), Instant::now(), lease), progress.take_untold())
        };
        let Some(mut range) = range else { return Ok(Batch { range: None, events: Vec::new(), missed }) };
        let mut events = self.reader.range(range, bytes)?;
        while events.is_empty()
            && let Some(more) = self.hand_out_behind(name, range.last, head, lease)
        {
            // All of it went before its time: the reader gets what comes next, and acknowledges both.
            range.last = more.last;
            events = self.reader.range(more, bytes)?;
        }
        events.truncate(usize::try_from(count.max(1)).unwrap_or(usize::MAX));
        // Cut short by `bytes`: the rest is anybody's again. Retention may have dropped all of it in the meantime.
        let last = events.last().map_or(range.last, |event| event.seq);
        if last < range.last {
            let mut consumers = self.shared.consumers.lock().expect("no holder panics");
            if let Some(progress) = consumers.get_mut(name) {
                progress.release(Range { first: last + 1, last: range.last });
            }
        }
        Ok(Batch { range: Some(Range { first: range.first, last }), events, missed })
    }

    /// What a reader of `name` was handed and has no room for is the next one's.
    pub fn give_back(&self, name: &str, range: Range) {
        if let Some(progress) = self.shared.consumers.lock().expect("no holder panics").get_mut(name) {
            progress.release(range);
        }
    }

    /// What nobody has of the events right behind `last`.
    fn hand_out_behind(&self, name: &str, last: u64, head: u64, lease: Duration) -> Option<Range> {
        let mut consumers = self.shared.consumers.lock().expect("no holder panics");
        let progress = consumers.get_mut(name)?;
        let more = progress.hand_out(head, GONE_AT_ONCE, Instant::now(), lease)?;
        if more.first != last + 1 {
            progress.release(more);
            return None;
        }
        Some(more)
    }

    /// When a range that was handed out to a reader of `name` is due to be handed out again.
    #[must_use]
    pub fn next_due(&self, name: &str) -> Option<Instant> {
        self.shared.consumers.lock().expect("no holder panics").get(name)?.next_due()
    }

    /// Whether there is a consumer `name`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.shared.consumers.lock().expect("no holder panics").contains_key(name)
    }

    /// Makes the consumer `name`, which begins at `position`. `Ok` when it is safe; the answer of one that is there
    /// already is where that is.
    ///
    /// # Errors
    /// There are too many, the name is empty or too long, or the store is closed.
    pub async fn create(&self, name: &str, position: Position) -> Result<u64, StoreError> {
        self.ask(|answer| Request::Create { name: name.into(), position, answer }).await
    }

    /// Acknowledges `range` for the consumer `name`. Gives back its cursor, when that is safe.
    ///
    /// # Errors
    /// There is no such consumer, the range is not of events that there were, or the store is closed.
    pub async fn acknowledge(&self, name: &str, range: Range) -> Result<u64, StoreError> {
        self.ask(|answer| Request::Acknowledge { name: name.into(), range, answer }).await
    }

    /// Where the first event is that happened at or after this Unix time in milliseconds. Reads what is held from the oldest on, for times
    /// are only nearly in order: with a connection of its own, so that neither the writer nor another reader waits for it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn position_at(&self, at_ms: i64) -> Result<Position, StoreError> {
        let first = Reader::open(self.reader.path())?.first_at(at_ms)?;
        Ok(first.map_or(Position::End, |seq| Position::After(seq - 1)))
    }

    /// Lets the consumer `name` go on at `position`. Gives back its cursor, when that is safe.
    ///
    /// # Errors
    /// There is no such consumer, or the store is closed.
    pub async fn seek(&self, name: &str, position: Position) -> Result<u64, StoreError> {
        self.ask(|answer| Request::Seek { name: name.into(), position, is_back: false, answer }).await
    }

    /// The same, but only to where it is or before that: what was not acknowledged is not jumped.
    ///
    /// # Errors
    /// As above, or [`StoreError::Position`]: it would be.
    pub async fn seek_back(&self, name: &str, position: Position) -> Result<u64, StoreError> {
        self.ask(|answer| Request::Seek { name: name.into(), position, is_back: true, answer }).await
    }

    /// Keeps what a sink's consumer must know of itself after a restart. Gives back its cursor, when it is safe.
    ///
    /// # Errors
    /// There is no such consumer, or the store is closed.
    pub async fn note(&self, name: &str, note: SinkNote) -> Result<u64, StoreError> {
        self.ask(|answer| Request::Note { name: name.into(), note, answer }).await
    }

    /// Every event up to this one is acknowledged by the consumer `name`, or was missed by it.
    #[must_use]
    pub fn cursor(&self, name: &str) -> Option<u64> {
        Some(self.shared.consumers.lock().expect("no holder panics").get(name)?.cursor)
    }

    /// Forgets the consumer `name`. Gives back its last cursor.
    ///
    /// # Errors
    /// There is no such consumer, or the store is closed.
    pub async fn delete(&self, name: &str) -> Result<u64, StoreError> {
        self.ask(|answer| Request::Delete { name: name.into(), answer }).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.shared.queue.ask(request(answer));
        answered.await.unwrap_or(Err(StoreError::Closed))
    }

    /// How far each consumer is, in order of names. Does not read the disk.
    #[must_use]
    pub fn backlogs(&self) -> Vec<Backlog> {
        let head = self.shared.head.borrow().last;
        let consumers = self.shared.consumers.lock().expect("no holder panics");
        consumers
            .iter()
            .map(|(name, progress)| Backlog {
                name: name.clone(),
                cursor: progress.cursor,
                behind: progress.waiting(head),
                missed: progress.missed,
            })
            .collect()
    }

    /// Every consumer, in order of names.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn consumers(&self) -> Result<Vec<Consumer>, StoreError> {
        let describe = |backlog: Backlog| {
            let oldest_ms = self.reader.time_after(backlog.cursor)?;
            Ok(Consumer { backlog, oldest_ms })
        };
        self.backlogs().into_iter().map(describe).collect()
    }

    /// Writes what waits, acknowledges it, and ends the thread. Bounded by the time that the disk takes. What is asked
    /// afterwards is answered with [`StoreError::Closed`].
    pub fn close(&self) {
        self.shared.queue.close();
        self.shared.loader.end();
        let writer = self.writer.lock().expect("no holder panics").take();
        if let Some(writer) = writer
            && let Err(panicked) = writer.join()
            && !thread::panicking()
        {
            std::panic::resume_unwind(panicked);
        }
    }
}

/// What ends with a process is ended, from the reserve where there is no other room: whoever starts again on a full disk is to
/// hand out what there is.
fn begin(connection: &mut rusqlite::Connection, reserve: &files::Reserve, now_ms: i64) -> rusqlite::Result<()> {
    let begun = sessions::begin(connection, now_ms);
    let Err(error) = begun else { return Ok(()) };
    if error::Fault::of(&error) != error::Fault::NoRoom {
        return Err(error);
    }
    reserve.release();
    sessions::begin(connection, now_ms)
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

/// The workers' way into the store: see [`Store::changes`].
#[derive(Clone, Debug)]
pub struct ChangeSender {
    shared: Arc<Shared>,
}

impl ChangeSender {
    /// Takes a worker's changes, to be written behind those that it said before. Never waits.
    ///
    /// # Errors
    /// So many wait already, or nothing is written any more: the changes come back, to be offered again, before any later ones,
    /// when [`WorkerCommand::Safe`](crate::link::WorkerCommand::Safe) is heard.
    pub fn offer(&self, changes: Changes) -> Result<(), Changes> {
        debug_assert!(!changes.changes.is_empty());
        if self.shared.health() == Health::Failed {
            return Err(changes);
        }
        self.shared.queue.offer_changes(changes)
    }

    /// Asks for messages of a session that lie in the store alone. Never waits; the answer is
    /// [`WorkerCommand::Loaded`](crate::link::WorkerCommand::Loaded).
    pub fn load(&self, load: Load) {
        self.shared.loader.ask(load);
    }
}

/// What became of events that were offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// They are in the queue.
    All,
    /// There is no room now. When there is, that is told ([`Settle`]), unless the store fails or is closed.
    Later,
}

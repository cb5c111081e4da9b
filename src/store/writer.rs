//! The one thread that writes.
//!
//! ```text
//!             ┌──────────────▶ Waiting ─────── closed ──▶ (end)
//!             │ settled           │ something came
//!             │                   ▼      no room, and nothing gives way
//!             └──────────────  Writing ────────────────────▶ Full ──┐ requests are written from the reserve;
//!                                 │ ▲                          │    │ the events are tried again each second
//!                  the disk fails │ └──── there is room ───────┘◀───┘
//!                                 ▼
//!                              Failed: nothing is acknowledged any more
//! ```
//!
//! Without room the journal is brought into the file first, so that its own room can be used again. Then history gives way that
//! every consumer has acknowledged, the oldest first. Nothing else does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use super::append::append;
use super::coalesce::Plan;
use super::commands::{self, Room, Waiting};
use super::consumers;
use super::crowd::{Came, Crowd, WORTH};
use super::error::{Fault, StoreError};
use super::files::{self, Lock, Reserve};
use super::fleet;
use super::progress::{Progress, Range};
use super::queue::{Consumers, Request, Work};
use super::reckoning::{Reckoning, Told};
use super::retention::{self, Retention};
use super::sessions::{self, Kept};
use super::share::{Sampled, Shares};
use super::sink;
use super::{CONSUMERS_MAX, Durability, Health, NAME_BYTES_MAX, Options, Position, Settle, Settled, Shared};
use crate::link::{ChangeMark, Changes, WorkerCommand, WorkerId};

/// How long what nobody waits for may wait for company.
const PATIENCE: Duration = Duration::from_millis(200);
/// How often a full disk is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Events that one group drops for their age or for want of room, beyond as many as it adds.
const DROPPED_MAX: u64 = 4_096;
/// That history gives way is said at most so often.
const SAID_EVERY: Duration = Duration::from_mins(1);

/// What the table `uplink_state` says.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    pub(super) next: u64,
    pub(super) events: u64,
    pub(super) bytes: u64,
    /// Numbers behind the oldest event whose events are gone.
    pub(super) gone: u64,
}

impl State {
    /// Reads what there is.
    pub(super) fn load(connection: &Connection) -> rusqlite::Result<(Self, Consumers)> {
        let state = connection.query_row("SELECT next, events, bytes, gone FROM uplink_state", [], |row| {
            Ok(Self { next: row.get(0)?, events: row.get(1)?, bytes: row.get(2)?, gone: row.get(3)? })
        })?;
        let mut consumers = Consumers::new();
        let mut statement = connection.prepare("SELECT name, cursor, missed FROM consumer")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let mut progress = Progress::at(row.get(1)?);
            progress.missed = row.get(2)?;
            consumers.insert(row.get::<_, String>(0)?.into(), progress);
        }
        let mut statement = connection.prepare("SELECT consumer, first, last FROM consumer_ahead")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(progress) = consumers.get_mut(&*row.get::<_, String>(0)?) {
                progress.ahead.insert(row.get(1)?, row.get(2)?);
            }
        }
        Ok((state, consumers))
    }

    /// The number of the latest event, 0 if there was none ever.
    pub(super) fn last(&self) -> u64 {
        self.next - 1
    }

    /// The number of the oldest event held.
    pub(super) fn first(&self) -> u64 {
        self.next - self.events - self.gone
    }
}

/// The writer's own.
pub(super) struct Writer {
    shared: Arc<Shared>,
    connection: Connection,
    state: State,
    kept: Kept,
    waiting: Waiting,
    command_bytes_max: u64,
    /// By worker: up to where its changes are safe, and whether it was told so.
    marks: BTreeMap<WorkerId, (ChangeMark, bool)>,
    /// As the file says. What readers hold of it is with the shared ones.
    consumers: Consumers,
    reserve: Reserve,
    _lock: Lock,
    retention_age_ms: i64,
    retention_bytes: u64,
    shares: Shares,
    /// With [`Durability::Interval`]: when the journal was brought to the disk, and how often that is.
    synced: Instant,
    sync_every: Option<Duration>,
    is_unsynced: bool,
    /// While there is no room: bytes of changes beyond which no more are taken.
    change_bytes_max: usize,
    /// When it was said last that history gives way.
    said_gives_way: Option<Instant>,
    reckoning: Reckoning,
    told: Told,
}

/// Which steps of a plan are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Steps {
    All,
    /// Those that make room.
    Freeing,
}

/// What a group has done, to be true when it is committed.
pub(super) struct Group {
    pub(super) state: State,
    kept: Kept,
    waiting: Waiting,
    /// `None`: as it was.
    reckoning: Option<Reckoning>,
    /// Steps that the changes came to.
    steps: usize,
    /// By request.
    results: Vec<Result<u64, StoreError>>,
    /// Entries that are larger than all that may be held, by their place.
    pub(super) refused: Vec<usize>,
    /// Events that went, by their numbers: of the device that held more than its share, and the oldest.
    pub(super) dropped_share: Vec<u64>,
    pub(super) dropped_oldest: Vec<u64>,
    pub(super) sampled: Sampled,
}

impl Group {
    /// One that has done nothing yet.
    fn of(state: State, kept: Kept, waiting: Waiting) -> Self {
        Self {
            state,
            kept,
            waiting,
            reckoning: None,
            steps: 0,
            results: Vec::new(),
            refused: Vec::new(),
            dropped_share: Vec::new(),
            dropped_oldest: Vec::new(),
            sampled: Sampled::default(),
        }
    }

    /// How many events went.
    fn dropped(&self) -> u64 {
        (self.dropped_share.len() + self.dropped_oldest.len()) as u64
    }
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        connection: Connection,
        (state, kept, waiting): (State, Kept, Waiting),
        options: &Options,
        reserve: Reserve,
        lock: Lock,
    ) -> Self {
        let consumers = shared.consumers.lock().expect("no holder panics").clone();
        let reckoning = Reckoning::begin(&options.clock, (state.next, kept.next_body, waiting.stamp.last + 1));
        let writer = Self {
            consumers,
            shared,
            connection,
            state,
            kept,
            waiting,
            command_bytes_max: options.command_bytes,
            marks: BTreeMap::new(),
            reserve,
            _lock: lock,
            retention_age_ms: i64::try_from(options.retention_age.as_millis()).unwrap_or(i64::MAX),
            retention_bytes: options.retention_bytes,
            shares: Shares::new(options.retention_bytes),
            synced: Instant::now(),
            sync_every: match options.durability {
                Durability::Group => None,
                Durability::Interval(every) => Some(every),
            },
            is_unsynced: false,
            change_bytes_max: options.queue_bytes,
            said_gives_way: None,
            told: Told::begin(&options.clock),
            reckoning,
        };
        writer.tell();
        writer
    }

    /// Works until the queue is closed and empty, or the disk fails.
    pub(super) fn run(mut self, mut settle: impl Settle) {
        let mut crowd = Crowd::new(Instant::now());
        loop {
            let mut work = self.shared.queue.take(PATIENCE.min(self.sync_every.unwrap_or(PATIENCE)));
            if crowd.is_many() && !work.is_last {
                self.gather(&mut crowd, &mut work);
            }
            crowd.note(work.len(), Instant::now());
            if work.has_room {
                // Before it is written: what comes meanwhile is the next group.
                settle.settle(&[]);
            }
            let is_last = work.is_last;
            if self.write(work, &mut settle).is_err() || self.sync().is_err() {
                return self.fail();
            }
            self.tell_marks();
            if is_last {
                return self.end();
            }
        }
    }

    /// Many wait: a little later there are more, and one fsync serves them all. Where groups have none of their own, a short time serves.
    fn gather(&self, crowd: &mut Crowd, work: &mut Work) {
        let queue = &self.shared.queue;
        crowd.gather(self.sync_every.is_none(), |time| {
            let before = work.len();
            std::thread::sleep(time);
            work.extend(queue.take(Duration::ZERO));
            let is_enough = work.len() >= WORTH || work.is_pressing() || queue.is_much(work);
            Came { count: work.len() - before, is_enough }
        });
    }

    /// Writes all of it, waiting for room if need be. `Err`: the disk has failed.
    fn write(&mut self, mut work: Work, settle: &mut impl Settle) -> Result<(), Fault> {
        let mut may_checkpoint = true;
        loop {
            self.told.bring_along(&mut work);
            let error = match self.commit(&work, Steps::All) {
                Ok(group) => {
                    if self.shared.health() == Health::NoRoom {
                        self.recover();
                    }
                    self.finish(work, group, settle);
                    return Ok(());
                }
                Err(error) => error,
            };
            self.expect_no_room(&error)?;
            if std::mem::take(&mut may_checkpoint) && self.checkpoint()? || self.give_way()? {
                continue;
            }
            self.note_no_room(&error);
            let Some(kept) = self.wait_for_room(work, settle)? else { return Ok(()) };
            (work, may_checkpoint) = (kept, true);
        }
    }

    /// `Err`: it is not for want of room, and there is no second try.
    fn expect_no_room(&self, error: &rusqlite::Error) -> Result<(), Fault> {
        match Fault::of_write(error, || files::is_full(&self.shared.path)) {
            Fault::NoRoom => Ok(()),
            fault => {
                // SQLite says that it failed; the system may say why: a disk that is read only by now, for one.
                let system = files::probe(&self.shared.path).err().map_or_else(String::new, |error| error.to_string());
                tracing::error!(path = %self.shared.path.display(), %error, system, "the store cannot be written");
                Err(fault)
            }
        }
    }

    /// Brings the journal into the file, so that it begins again in the room that it has. Whether it was tried with success.
    fn checkpoint(&mut self) -> Result<bool, Fault> {
        match self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
            Ok(()) => Ok(true),
            Err(error) => self.expect_no_room(&error).map(|()| false),
        }
    }

    /// Drops a part of the history that every consumer is done with, before its time. `false`: there is none, or no room
    /// even for that.
    fn give_way(&mut self) -> Result<bool, Fault> {
        let done = self.consumers.values().map(|progress| progress.cursor).min().unwrap_or(self.state.last());
        let through = done.min(self.state.first() - 1 + DROPPED_MAX);
        if through < self.state.first() {
            return Ok(false);
        }
        let group = match self.drop_through(through) {
            Ok(group) => group,
            Err(error) => return self.expect_no_room(&error).map(|()| false),
        };
        self.shared.stats.gave_way.fetch_add(group.dropped(), Ordering::Relaxed);
        self.state = group.state;
        self.tell();
        if self.said_gives_way.is_none_or(|said| said.elapsed() >= SAID_EVERY) {
            self.said_gives_way = Some(Instant::now());
            tracing::warn!(
                path = %self.shared.path.display(), events = group.dropped(),
                "no room for the store: what every consumer has acknowledged gives way, the oldest first"
            );
        }
        Ok(true)
    }

    fn drop_through(&mut self, through: u64) -> rusqlite::Result<Group> {
        let mut group = Group::of(self.state, self.kept, self.waiting);
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let kept = Retention { since_ms: i64::MIN, bytes: u64::MAX, behind: through };
        retention::trim(&transaction, &mut group, &mut self.consumers, kept, DROPPED_MAX)?;
        store_state(&transaction, group.state)?;
        transaction.commit()?;
        Ok(group)
    }

    /// The events wait, and the changes; what is asked is written from the reserve, and whatever of the changes makes room.
    /// `None`: the end came first, and the events were never acknowledged.
    fn wait_for_room(&mut self, mut work: Work, settle: &mut impl Settle) -> Result<Option<Work>, Fault> {
        let mut requests = std::mem::take(&mut work.requests);
        let (mut until, mut has_freed) = (Instant::now() + RETRY, false);
        loop {
            let changes = std::mem::take(&mut work.changes);
            let asked = Work { requests, changes, ..Work::default() };
            let committed = self.commit(&asked, Steps::Freeing);
            let Work { requests: asked, changes, .. } = asked;
            work.changes = changes;
            match committed {
                // Of the changes nothing is safe before all of it is.
                Ok(group) => {
                    has_freed |= group.steps > 0 || group.dropped() > 0;
                    self.finish(Work { requests: asked, ..Work::default() }, group, settle);
                }
                Err(error) => {
                    self.expect_no_room(&error)?;
                    for request in asked {
                        request.answer(Err(StoreError::NoRoom { path: self.shared.path.clone() }));
                    }
                }
            }
            if work.is_last {
                return Ok(None);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // The reserve is not for events: it comes first, unless there is room in the file itself by now.
                if has_freed || self.reserve.restore().is_ok() || self.give_way()? {
                    return Ok(Some(work));
                }
                until = Instant::now() + RETRY;
            }
            let held: usize = work.changes.iter().map(Changes::bytes).sum();
            let more = self.shared.queue.take_requests(left, held < self.change_bytes_max);
            if more.is_last {
                return Ok(None);
            }
            requests = more.requests;
            work.changes.extend(more.changes);
            // There is room before the queue: what they have to say may make some in the store.
            self.note_refused(&more.refused);
            self.tell_marks();
        }
    }

    /// One transaction for all of `work`. On an error nothing of it is done.
    fn commit(&mut self, work: &Work, steps: Steps) -> rusqlite::Result<Group> {
        let done = self.try_commit(work, steps);
        if done.is_err() {
            // What the group had changed in memory is as the file says again.
            if let Ok((_, consumers)) = State::load(&self.connection) {
                self.consumers = consumers;
            }
        }
        done
    }

    fn try_commit(&mut self, work: &Work, steps: Steps) -> rusqlite::Result<Group> {
        let (timeline, now) = (self.told.timeline(), self.told.clock.now());
        let now_ms = self.told.clock.unix_ms(now);
        let mut group = Group::of(self.state, self.kept, self.waiting);
        let mut plan = Plan::of(&work.changes);
        if steps == Steps::Freeing {
            plan.keep_freeing();
        }
        group.steps = plan.len();
        let is_idle = work.entries.is_empty() && work.requests.is_empty() && plan.is_empty();
        if is_idle
            && !self.reckoning.is_due(timeline)
            && !self.oldest_is_due(self.reckoning.since_ms(self.retention_age_ms, now))?
        {
            return Ok(group);
        }
        let began = Instant::now();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if steps == Steps::All && self.reckoning.is_due(timeline) {
            let ends = (self.state.next, self.kept.next_body);
            group.reckoning = Some(self.reckoning.follow(&transaction, timeline, now, ends, &self.told)?);
        }
        append(&transaction, &mut group, &self.shares, &work.entries, self.retention_bytes)?;
        let since_ms = group.reckoning.as_ref().unwrap_or(&self.reckoning).since_ms(self.retention_age_ms, now);
        let retention = Retention { since_ms, bytes: self.retention_bytes, behind: 0 };
        let count = DROPPED_MAX + work.entries.len() as u64;
        let consumers = &mut self.consumers;
        retention::trim_largest(&transaction, &mut group, consumers, &self.shares, self.retention_bytes, count)?;
        retention::trim(&transaction, &mut group, consumers, retention, count)?;
        store_state(&transaction, group.state)?;
        sessions::take(&transaction, &plan, &mut group.kept)?;
        let room = Room { bytes_max: self.command_bytes_max, is_disk_full: steps == Steps::Freeing };
        for request in &work.requests {
            let result = match request {
                Request::Commands { step, .. } => commands::take(&transaction, &mut group.waiting, step, room, now_ms)?,
                _ => apply(&transaction, group.state, &mut self.consumers, request, now_ms)?,
            };
            group.results.push(result);
        }
        transaction.commit()?;
        let stats = &self.shared.stats;
        stats.groups.fetch_add(1, Ordering::Relaxed);
        stats.commit_micros.fetch_add(began.elapsed().as_micros() as u64, Ordering::Relaxed);
        self.is_unsynced = self.sync_every.is_some();
        Ok(group)
    }

    fn oldest_is_due(&self, since_ms: i64) -> rusqlite::Result<bool> {
        if self.state.events == 0 {
            return Ok(false);
        }
        let sql = "SELECT at FROM uplink WHERE seq = ?1";
        let oldest: i64 = self.connection.prepare_cached(sql)?.query_row([self.state.first()], |row| row.get(0))?;
        Ok(oldest < since_ms)
    }

    /// With [`Durability::Interval`]: brings the journal to the disk when it is time.
    fn sync(&mut self) -> Result<(), Fault> {
        let is_due = self.sync_every.is_some_and(|every| self.synced.elapsed() >= every);
        if !self.is_unsynced || !is_due {
            return Ok(());
        }
        // A checkpoint synchronises the journal before it copies. For want of room it is tried again with the next group: the
        // journal itself is where it was.
        if self.checkpoint()? {
            (self.synced, self.is_unsynced) = (Instant::now(), false);
        }
        Ok(())
    }

    /// The group is safe: everybody is told.
    fn finish(&mut self, work: Work, mut group: Group, settle: &mut impl Settle) {
        let stats = &self.shared.stats;
        let appended = group.state.next - self.state.next;
        stats.appended.fetch_add(appended, Ordering::Relaxed);
        stats.refused.fetch_add(group.refused.len() as u64, Ordering::Relaxed);
        stats.dropped.fetch_add(group.dropped(), Ordering::Relaxed);
        stats.dropped_share.fetch_add(group.dropped_share.len() as u64, Ordering::Relaxed);
        stats.kept.steps.fetch_add(group.steps as u64, Ordering::Relaxed);
        let first = self.state.next;
        (self.state, self.kept, self.waiting) = (group.state, group.kept, group.waiting);
        self.shares.apply(std::mem::take(&mut group.sampled));
        if let Some(reckoning) = group.reckoning.take() {
            self.reckoning = reckoning;
        }
        self.told.note(&work.changes);
        self.note_marks(&work);
        self.tell_consumers(&work.requests, &group);
        // Before anybody is answered: what is acknowledged can be read.
        self.tell();
        let mut refused = group.refused.iter().copied().peekable();
        let mut seq = first;
        let mut settled = Vec::with_capacity(work.entries.len());
        settled.extend((0..).zip(&work.entries).filter_map(|(position, entry)| {
            let accepted = refused.next_if_eq(&position).is_none();
            let at = seq;
            seq += u64::from(accepted);
            entry.receipt.map(|receipt| Settled { worker: entry.worker, receipt, accepted, seq: at })
        }));
        // Before whoever waits for room is told.
        let has_freed = !work.charges.is_empty();
        drop(work.charges);
        if !settled.is_empty() || has_freed {
            settle.settle(&settled);
        }
        for (request, result) in work.requests.into_iter().zip(group.results) {
            request.answer(result);
        }
    }

    /// All changes of `work` are safe.
    fn note_marks(&mut self, work: &Work) {
        for changes in &work.changes {
            self.marks.insert(changes.worker, (changes.mark, false));
            self.shared.stats.kept.changes.fetch_add(changes.changes.len() as u64, Ordering::Relaxed);
        }
        self.note_refused(&work.refused);
    }

    /// These are told that there is room before the queue.
    fn note_refused(&mut self, refused: &[WorkerId]) {
        for &worker in refused {
            self.marks.entry(worker).or_default().1 = false;
        }
    }

    /// Tells the workers what is safe, as soon as they can be told anything.
    fn tell_marks(&mut self) {
        let Some(mailboxes) = self.shared.mailboxes.get() else { return };
        for (worker, (mark, is_told)) in self.marks.iter_mut().filter(|(_, (_, is_told))| !is_told) {
            // A worker that is gone needs nothing.
            let _ = mailboxes[worker.index()].answer(WorkerCommand::Safe { mark: *mark });
            *is_told = true;
        }
    }

    /// Does to the consumers that readers share what was done to those of the file: what was handed out in the meantime
    /// stays handed out.
    fn tell_consumers(&self, requests: &[Request], group: &Group) {
        let mut consumers = self.shared.consumers.lock().expect("no holder panics");
        // In the order in which it was done there.
        for progress in consumers.values_mut() {
            progress.miss(&group.dropped_share);
            progress.miss(&group.dropped_oldest);
            progress.pass(self.state.first() - 1);
        }
        for (request, result) in requests.iter().zip(&group.results) {
            let Ok(cursor) = *result else { continue };
            match request {
                Request::Create { name, .. } => {
                    consumers.entry(name.clone()).or_insert_with(|| Progress::at(cursor));
                }
                Request::Acknowledge { name, range, .. } => {
                    if let Some(progress) = consumers.get_mut(name) {
                        progress.acknowledge(*range);
                    }
                }
                Request::Seek { name, .. } => {
                    if let Some(progress) = consumers.get_mut(name) {
                        progress.seek(cursor);
                    }
                }
                Request::Note { .. } | Request::Fleet { .. } | Request::Commands { .. } | Request::Behind { .. } => {}
                Request::Delete { name, .. } => drop(consumers.remove(name)),
            }
        }
    }

    /// Readers hear how far it has come.
    fn tell(&self) {
        let State { events, bytes, .. } = self.state;
        self.shared.first.store(self.state.first(), Ordering::Release);
        self.shared.stats.events.store(events, Ordering::Relaxed);
        self.shared.stats.bytes.store(bytes, Ordering::Relaxed);
        self.kept.tell(&self.shared.stats.kept);
        let stamp = self.waiting.stamp;
        self.shared.commands.send_if_modified(|told| std::mem::replace(told, stamp) != stamp);
        let last = self.state.last();
        self.shared.head.send_if_modified(|head| std::mem::replace(&mut head.last, last) != last);
    }

    fn note_no_room(&self, error: &rusqlite::Error) {
        self.shared.stats.no_room.fetch_add(1, Ordering::Relaxed);
        if self.shared.health() == Health::Well {
            self.shared.set_health(Health::NoRoom);
            // Where it is the file that may not grow, the disk has room.
            if files::is_full(&self.shared.path) {
                self.reserve.release();
            }
            tracing::error!(
                path = %self.shared.path.display(), %error,
                "no room for the store: events wait, and so do their publishers, until there is"
            );
        }
    }

    fn recover(&self) {
        // The next full disk finds it, or finds it missing and does without.
        if let Err(error) = self.reserve.restore() {
            tracing::warn!(%error, "the store goes on, with no room kept for the next time that there is none");
        }
        self.shared.set_health(Health::Well);
        tracing::info!(path = %self.shared.path.display(), "there is room for the store again");
    }

    fn end(mut self) {
        while self.reckoning.is_due(self.told.timeline()) {
            let Ok(group) = self.commit(&Work::default(), Steps::All) else { break };
            self.finish(Work::default(), group, &mut |_: &[Settled]| ());
        }
        self.shared.head.send_modify(|head| head.is_closed = true);
        // The journal goes into the file, so that one file is all there is. It is as safe where it lies.
        let _ = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    }

    fn fail(self) {
        self.shared.set_health(Health::Failed);
        self.shared.queue.close();
        self.shared.head.send_modify(|head| head.is_closed = true);
        for request in self.shared.queue.take(Duration::ZERO).requests {
            request.answer(Err(StoreError::Closed));
        }
    }
}

fn store_state(transaction: &Transaction<'_>, state: State) -> rusqlite::Result<()> {
    let State { next, events, bytes, gone } = state;
    let sql = "UPDATE uplink_state SET next = ?1, events = ?2, bytes = ?3, gone = ?4";
    transaction.prepare_cached(sql)?.execute(params![next, events, bytes, gone]).map(|_| ())
}

/// Does what is asked. The outer error is the disk's, the inner one the asker's.
fn apply(
    transaction: &Transaction<'_>,
    state: State,
    consumers: &mut Consumers,
    request: &Request,
    now_ms: i64,
) -> rusqlite::Result<Result<u64, StoreError>> {
    let no_consumer = |name: &str| Ok(Err(StoreError::NoConsumer(name.into())));
    match request {
        Request::Create { name, position, .. } => {
            if let Some(known) = consumers.get(name) {
                return Ok(Ok(known.cursor));
            }
            if let Err(error) = may_be_made(name, consumers) {
                return Ok(Err(error));
            }
            let cursor = find(state, *position);
            transaction.execute("INSERT INTO consumer VALUES (?1, ?2, 0, ?3, ?3)", params![name, cursor, now_ms])?;
            consumers.insert(name.clone(), Progress::at(cursor));
            Ok(Ok(cursor))
        }
        Request::Acknowledge { name, range, .. } => {
            let Some(progress) = consumers.get_mut(name) else { return no_consumer(name) };
            let (Range { first, last: end }, last) = (*range, state.last());
            if first == 0 || end < first || end > last {
                let why = format!("events {first} to {end} cannot be acknowledged: there are events up to {last}");
                return Ok(Err(StoreError::Position(why)));
            }
            if !progress.has_room_for(*range) {
                return Ok(Err(StoreError::TooManyRanges { next: progress.cursor + 1 }));
            }
            let altered = progress.acknowledge(*range);
            consumers::store_acknowledged(transaction, name, progress, &altered, now_ms)?;
            Ok(Ok(progress.cursor))
        }
        Request::Seek { name, position, is_back, .. } => {
            let cursor = find(state, *position);
            let Some(progress) = consumers.get_mut(name) else { return no_consumer(name) };
            if *is_back && cursor > progress.cursor {
                return Ok(Err(jump(progress.cursor + 1, cursor)));
            }
            progress.seek(cursor);
            consumers::store_progress(transaction, name, progress)?;
            Ok(Ok(cursor))
        }
        Request::Note { name, note, .. } => {
            let Some(progress) = consumers.get(name) else { return no_consumer(name) };
            sink::write(transaction, name, *note)?;
            Ok(Ok(progress.cursor))
        }
        Request::Fleet { at, .. } => fleet::write(transaction, at).map(Ok),
        Request::Commands { .. } => unreachable!("they are taken before"),
        Request::Behind { .. } => Ok(Ok(0)),
        Request::Delete { name, .. } => {
            let Some(progress) = consumers.remove(name) else { return no_consumer(name) };
            delete(transaction, name).map(|()| Ok(progress.cursor))
        }
    }
}

/// Removes what the tables know of a consumer.
fn delete(transaction: &Transaction<'_>, name: &str) -> rusqlite::Result<()> {
    for (table, key) in [("consumer", "name"), ("consumer_ahead", "consumer"), ("sink", "consumer")] {
        transaction.execute(&format!("DELETE FROM {table} WHERE {key} = ?1"), [name])?;
    }
    Ok(())
}

/// Why a consumer for whose events somebody waits does not go on from `next` to `cursor`.
fn jump(next: u64, cursor: u64) -> StoreError {
    StoreError::Position(format!(
        "it would jump events {next} to {cursor}, for which acknowledgements wait: it can only go back, to event {next} or before"
    ))
}

fn may_be_made(name: &str, consumers: &Consumers) -> Result<(), StoreError> {
    if consumers.len() >= CONSUMERS_MAX {
        return Err(StoreError::TooManyConsumers(CONSUMERS_MAX));
    }
    let is_plain = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.');
    let name = name.strip_prefix(sink::SINK_PREFIX).unwrap_or(name);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(is_plain) {
        let why =
            format!("{name:?} is no name for a consumer: 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' and '.' are");
        return Err(StoreError::Position(why));
    }
    Ok(())
}

/// The cursor of a consumer that goes on at `position`.
fn find(state: State, position: Position) -> u64 {
    let (first, last) = (state.first(), state.last());
    match position {
        Position::First => first - 1,
        Position::End => last,
        Position::After(seq) => seq.clamp(first - 1, last),
    }
}

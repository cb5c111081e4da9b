//! What must outlive the process, said as it changes, and what waits until it is safe (decision D8).
//!
//! ```text
//!   something happens ──▶ changes ── hand_over, before anything is told to other shards ──▶ the store
//!                         │ mark: how many there were
//!                         ▼
//!                         waiting, in order of their marks ◀── Safe: every change up to this mark is on the disk
//!                         │
//!                         ▼
//!                         a settlement's part, SUBACK, CONNACK, PUBREC, PUBREL, PUBCOMP, PUBLISH of QoS 2
//! ```
//!
//! Only sessions that outlive their connections are recorded, by a key that is never given twice, and retained messages,
//! by the shard that is the home of their topic. Whatever else happens costs nothing here. Without a store nothing is
//! recorded, and everything is as safe as it will ever be.

use std::collections::VecDeque;
use std::sync::Arc;

use super::coalesce::coalesce;
use super::inflight::Delivery;
use super::redispatch::LeftSlot;
use super::settlement::Token;
use super::staging::Prepared;
use crate::codec::mqtt::QoS;
use crate::image::{self, Change, SessionKey};
use crate::link::{ChangeMark, Changes, Publication, SessionId, WorkerId};
use crate::time::{Moment, SharedTimeline, Timeline};

/// Things that wait at which publishers are read no further: as many as settlements.
const WAITING_MAX: usize = 16_384;
/// Bytes of changes that the store did not take at which they are brought together, so that only what is true at the end
/// is kept: their bound is then what the sessions hold.
const COALESCED_AT: usize = 1 << 20;

/// What a shard needs to say what must outlive the process.
#[derive(Clone, Debug)]
pub struct Recording {
    /// What the clock on the wall shows at a moment: read with each batch of changes, for it may be set.
    pub timeline: SharedTimeline,
    /// The listeners' names, by number: another configuration numbers them in another way.
    pub listeners: Arc<[Box<str>]>,
}

/// What goes on when a mark is safe.
#[derive(Debug)]
pub(super) enum Waiting {
    /// A part of a settlement.
    Part(Token),
    /// A part of a SUBACK.
    Suback { session: SessionId, waits: u32 },
    /// The session's device can be told something.
    Device(SessionId),
    /// The session's device can be sent something.
    Backlog(SessionId),
    /// What an ended session has left can be read.
    Left(LeftSlot),
    /// A publication of QoS 2 is known as received: it is sent on.
    Prepared(Box<Prepared>),
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Journal {
    recording: Option<Recording>,
    /// By which the changes say the time of day: all of them, until the store has them.
    timeline: Timeline,
    changes: Vec<Change>,
    bytes: usize,
    /// What they took when they were brought together last.
    coalesced_bytes: usize,
    /// The store has not taken them when they were offered last.
    is_refused: bool,
    /// How many changes there were.
    mark: u64,
    /// So many of them are with the store.
    handed: u64,
    /// So many of them are safe.
    safe: u64,
    waiting: VecDeque<(u64, Waiting)>,
    /// The number of the latest message.
    numbers: u64,
    /// The latest publication that was put into the form of the store: most go to many sessions.
    latest: Option<(Arc<Publication>, Arc<image::Publication>)>,
}

impl Journal {
    /// From now on what changes is recorded.
    pub(super) fn begin(&mut self, recording: Recording) {
        self.timeline = recording.timeline.get();
        self.recording = Some(recording);
    }

    pub(super) fn recording(&self) -> Option<&Recording> {
        self.recording.as_ref()
    }

    /// Whether anything is recorded.
    pub(super) fn is_on(&self) -> bool {
        self.recording.is_some()
    }

    // --- Changes ----------------------------------------------------------------------------------------------------

    pub(super) fn record(&mut self, change: Change) {
        debug_assert!(self.is_on());
        self.mark += 1;
        self.bytes += change.bytes();
        self.changes.push(change);
    }

    /// Whether some are not with the store.
    pub(super) fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// Whether so much waits for the store that no more should be published here.
    pub(super) fn is_congested(&self) -> bool {
        self.is_refused || self.waiting.len() >= WAITING_MAX
    }

    /// Whether what the store does not have is to be told to nobody.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// Hands the changes to the store, which takes all or gives all back.
    pub(super) fn hand_over(&mut self, worker: WorkerId, keep: impl FnOnce(Changes) -> Result<(), Changes>) {
        self.latest = None;
        if self.changes.is_empty() {
            return self.follow_clock();
        }
        let is_awaited = self.waiting.back().is_some_and(|&(mark, _)| mark > self.handed);
        let changes = std::mem::take(&mut self.changes);
        match keep(Changes { worker, mark: ChangeMark(self.mark), changes, is_awaited, timeline: self.timeline }) {
            Ok(()) => {
                self.handed = self.mark;
                (self.bytes, self.coalesced_bytes, self.is_refused) = (0, 0, false);
                self.follow_clock();
            }
            Err(back) => {
                self.changes = back.changes;
                self.is_refused = true;
                if self.bytes > COALESCED_AT.max(2 * self.coalesced_bytes) {
                    coalesce(&mut self.changes);
                    self.bytes = self.changes.iter().map(Change::bytes).sum();
                    self.coalesced_bytes = self.bytes;
                }
            }
        }
    }

    /// None of the changes is here: the next ones are told by the clock as it is now.
    fn follow_clock(&mut self) {
        if let Some(recording) = &self.recording {
            self.timeline = recording.timeline.get();
        }
    }

    // --- Marks ------------------------------------------------------------------------------------------------------

    /// The mark of the latest change.
    pub(super) fn mark(&self) -> u64 {
        self.mark
    }

    /// Whether everything up to a mark is safe.
    pub(super) fn is_safe(&self, mark: u64) -> bool {
        mark <= self.safe
    }

    /// Everything up to here is safe; [`Journal::next_safe`] says what goes on.
    pub(super) fn set_safe(&mut self, mark: u64) {
        debug_assert!(mark <= self.handed, "what was not said is not safe");
        self.safe = self.safe.max(mark);
    }

    pub(super) fn next_safe(&mut self) -> Option<Waiting> {
        let &(mark, _) = self.waiting.front()?;
        if !self.is_safe(mark) {
            return None;
        }
        let (_, waiting) = self.waiting.pop_front()?;
        if self.waiting.is_empty() && self.waiting.capacity() > 1_024 {
            // After a storm the memory goes back.
            self.waiting = VecDeque::new();
        }
        Some(waiting)
    }

    /// Goes on when all that was recorded so far is safe; `Some`: it is, and this goes on now.
    pub(super) fn wait(&mut self, waiting: Waiting) -> Option<Waiting> {
        if self.is_safe(self.mark) {
            return Some(waiting);
        }
        self.waiting.push_back((self.mark, waiting));
        None
    }

    // --- Messages ---------------------------------------------------------------------------------------------------

    /// Gives a message its number in its session, and records it; with a `packet` it is sent under that.
    pub(super) fn record_message(&mut self, session: SessionKey, delivery: &mut Delivery, packet: Option<u16>) {
        debug_assert!(delivery.number == 0 && delivery.qos.is_acknowledged());
        self.numbers += 1;
        delivery.number = self.numbers;
        let message = Box::new(image::Message {
            number: delivery.number,
            packet,
            qos: delivery.qos,
            retain: delivery.retain,
            identifiers: delivery.identifiers.as_slice().to_vec(),
            group: delivery.group.as_deref().map(Box::from),
            origin: if delivery.qos == QoS::ExactlyOnce { delivery.publication.origin } else { 0 },
            publication: self.publication(&delivery.publication),
        });
        self.record(Change::Queued { session, message });
    }

    /// The number of the latest message.
    pub(super) fn latest_number(&self) -> u64 {
        self.numbers
    }

    /// Numbers go on behind this one.
    pub(super) fn note_number(&mut self, number: u64) {
        self.numbers = self.numbers.max(number);
    }

    /// In the form of the store.
    pub(super) fn publication(&mut self, publication: &Arc<Publication>) -> Arc<image::Publication> {
        if let Some((from, to)) = &self.latest
            && Arc::ptr_eq(from, publication)
        {
            return Arc::clone(to);
        }
        let to = Arc::new(self.image_of(publication));
        self.latest = Some((Arc::clone(publication), Arc::clone(&to)));
        to
    }

    pub(super) fn image_of(&self, publication: &Publication) -> image::Publication {
        image::Publication {
            topic: publication.topic.clone(),
            payload: publication.payload.clone(),
            qos: publication.qos,
            retain: publication.retain,
            properties: publication.properties.clone(),
            expires_ms: publication.expires.map(|expires| self.unix_millis(expires)),
        }
    }

    /// The time of day at a moment, in milliseconds since 1970.
    pub(super) fn unix_millis(&self, at: Moment) -> i64 {
        if self.is_on() { self.timeline.unix_millis_at(at) } else { 0 }
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.safe <= self.handed && self.handed <= self.mark);
        assert!(self.is_on() || self.mark == 0, "nothing is recorded where nothing is kept");
        assert!(self.waiting.iter().all(|&(mark, _)| !self.is_safe(mark)), "whatever is safe has gone on");
        assert!(self.waiting.iter().map(|(mark, _)| mark).is_sorted());
        assert_eq!(self.bytes, self.changes.iter().map(Change::bytes).sum::<usize>());
    }
}

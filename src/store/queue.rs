//! What waits to be written: bounded in bytes, and a bell that rings only for who is waited for.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::commands::Step;
use super::fleet::FleetPosition;
use super::progress::{Progress, Range};
use super::record::Entry;
use super::{Position, SinkNote, StoreError, Taken};
use crate::link::{Changes, WorkerId};
use crate::pool::Charge;

/// Every consumer by its name.
pub(super) type Consumers = BTreeMap<Box<str>, Progress>;

/// The answer to a request: a cursor, when it is safe.
type Answer = oneshot::Sender<Result<u64, StoreError>>;

/// What somebody asks of the writer, and is answered when it is safe.
#[derive(Debug)]
pub(super) enum Request {
    /// Make a consumer.
    Create { name: Box<str>, position: Position, answer: Answer },
    /// Acknowledge events.
    Acknowledge { name: Box<str>, range: Range, answer: Answer },
    /// Go on elsewhere; `is_back`: not behind what is not acknowledged.
    Seek { name: Box<str>, position: Position, is_back: bool, answer: Answer },
    /// Keep what a sink must know.
    Note { name: Box<str>, note: SinkNote, answer: Answer },
    /// Keep how far what was published at other gateways has come here.
    Fleet { at: FleetPosition, answer: Answer },
    /// Do something to commands that wait.
    Commands { step: Step, answer: Answer },
    /// Nothing: what was offered before is written.
    Behind { answer: Answer },
    /// Forget a consumer.
    Delete { name: Box<str>, answer: Answer },
}

impl Request {
    /// Tells who asked.
    pub(super) fn answer(self, result: Result<u64, StoreError>) {
        let (Self::Create { answer, .. }
        | Self::Acknowledge { answer, .. }
        | Self::Seek { answer, .. }
        | Self::Note { answer, .. }
        | Self::Fleet { answer, .. }
        | Self::Commands { answer, .. }
        | Self::Behind { answer }
        | Self::Delete { answer, .. }) = self;
        // The asker may have gone.
        let _ = answer.send(result);
    }
}

/// All that came since the writer looked last.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Events, in order.
    pub(super) entries: Vec<Entry>,
    /// What they take of the pools of the shards that they come from, until they are written.
    pub(super) charges: Vec<Charge>,
    /// Requests, in order.
    pub(super) requests: Vec<Request>,
    /// Changes of sessions and retained messages, in order.
    pub(super) changes: Vec<Changes>,
    /// What events and changes take.
    pub(super) bytes: usize,
    /// Workers whose changes found no room: there is some now.
    pub(super) refused: Vec<WorkerId>,
    /// Events found no room: there is some now.
    pub(super) has_room: bool,
    /// Nothing more will come.
    pub(super) is_last: bool,
}

impl Work {
    /// How many things are to be done.
    pub(super) fn len(&self) -> usize {
        let changes: usize = self.changes.iter().map(|all| all.changes.len()).sum();
        self.entries.len() + self.requests.len() + changes
    }

    /// Whether somebody waits for it to be written, and not for its own part alone: for room before the queue or in a pool, or for the end.
    pub(super) fn is_pressing(&self) -> bool {
        self.has_room || self.is_last || !self.refused.is_empty() || is_of_a_crowd(&self.charges)
    }

    /// Adds what came later.
    pub(super) fn extend(&mut self, later: Self) {
        let Self { entries, charges, requests, changes, bytes, refused, has_room, is_last } = later;
        self.bytes += bytes;
        self.entries.extend(entries);
        self.charges.extend(charges);
        self.requests.extend(requests);
        self.changes.extend(changes);
        self.refused.extend(refused);
        self.has_room |= has_room;
        self.is_last |= is_last;
    }
}

#[derive(Debug, Default)]
struct Waiting {
    entries: Vec<Entry>,
    charges: Vec<Charge>,
    bytes: usize,
    requests: Vec<Request>,
    changes: Vec<Changes>,
    change_bytes: usize,
    refused: Vec<WorkerId>,
    /// How often events were given back since there was room last.
    given_back: u32,
    /// Somebody waits for an answer.
    is_urgent: bool,
    /// The writer sleeps until it is rung for, or until its time is over.
    is_asleep: bool,
    is_closed: bool,
}

/// Whether somebody waits for one of them to be written: who is told, or devices that keep off a crowded way.
fn are_awaited(entries: &[Entry], charges: &[Charge]) -> bool {
    entries.iter().any(|entry| entry.receipt.is_some()) || is_of_a_crowd(charges)
}

/// Whether devices keep off until some of them are given back.
fn is_of_a_crowd(charges: &[Charge]) -> bool {
    charges.chunk_by(Charge::is_beside).any(|same| same[0].is_of_a_crowd())
}

/// All of them. The next ones are about as many: what they lie in need not grow again.
fn take_all<T>(waiting: &mut Vec<T>) -> Vec<T> {
    let next = Vec::with_capacity(waiting.len());
    std::mem::replace(waiting, next)
}

/// The queue before the writer.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    bell: Condvar,
    bytes_max: usize,
}

impl Queue {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { waiting: Mutex::default(), bell: Condvar::new(), bytes_max }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no holder panics")
    }

    /// See [`super::Store::offer`]. The writer is rung for only when somebody waits for one of them, or devices keep off
    /// the way up until some are written.
    pub(super) fn offer(&self, entries: &mut Vec<Entry>, charges: &mut Vec<Charge>) -> Taken {
        let is_urgent = are_awaited(entries, charges);
        let bytes: usize = entries.iter().map(Entry::bytes).sum();
        let mut waiting = self.lock();
        // One batch always fits into an empty queue.
        if waiting.is_closed || (waiting.bytes > 0 && waiting.bytes + bytes > self.bytes_max) {
            waiting.given_back += 1;
            return Taken::Later;
        }
        waiting.entries.append(entries);
        waiting.charges.append(charges);
        waiting.bytes += bytes;
        self.ring(waiting, is_urgent);
        Taken::All
    }

    /// Takes a worker's changes, or gives them back when so many wait already, or when nothing is taken any more. One batch
    /// of each worker always finds room.
    pub(super) fn offer_changes(&self, changes: Changes) -> Result<(), Changes> {
        let (is_urgent, bytes) = (changes.is_awaited, changes.bytes());
        let mut waiting = self.lock();
        let is_crowded = waiting.change_bytes > 0 && waiting.change_bytes + bytes > self.bytes_max;
        if waiting.is_closed || (is_crowded && waiting.changes.iter().any(|known| known.worker == changes.worker)) {
            if !waiting.refused.contains(&changes.worker) {
                waiting.refused.push(changes.worker);
            }
            return Err(changes);
        }
        waiting.changes.push(changes);
        waiting.change_bytes += bytes;
        // At half of the bound nothing waits for company any more.
        let is_much = waiting.change_bytes > self.bytes_max / 2;
        self.ring(waiting, is_urgent || is_much);
        Ok(())
    }

    /// Asks for something; the answer comes when it is safe, or an error when the queue is closed.
    pub(super) fn ask(&self, request: Request) {
        let mut waiting = self.lock();
        if waiting.is_closed {
            drop(waiting);
            return request.answer(Err(StoreError::Closed));
        }
        waiting.requests.push(request);
        self.ring(waiting, true);
    }

    /// Whether that is as much as need not wait for company any more.
    pub(super) fn is_much(&self, work: &Work) -> bool {
        work.bytes > self.bytes_max / 2
    }

    fn ring(&self, mut waiting: MutexGuard<'_, Waiting>, is_urgent: bool) {
        if is_urgent && !waiting.is_urgent {
            waiting.is_urgent = true;
            if waiting.is_asleep {
                drop(waiting);
                self.bell.notify_one();
            }
        }
    }

    /// Nothing more is taken; what is there is written.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.bell.notify_one();
    }

    /// What there is, as soon as somebody waits for it, and at the latest after `patience`: then it may be nothing.
    pub(super) fn take(&self, patience: Duration) -> Work {
        let until = Instant::now() + patience;
        let mut waiting = self.lock();
        while !waiting.is_urgent && !waiting.is_closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            waiting.is_asleep = true;
            waiting = self.bell.wait_timeout(waiting, left).expect("no holder panics").0;
            waiting.is_asleep = false;
        }
        waiting.is_urgent = false;
        let bytes = std::mem::take(&mut waiting.bytes) + std::mem::take(&mut waiting.change_bytes);
        Work {
            bytes,
            entries: take_all(&mut waiting.entries),
            charges: take_all(&mut waiting.charges),
            requests: std::mem::take(&mut waiting.requests),
            changes: std::mem::take(&mut waiting.changes),
            refused: std::mem::take(&mut waiting.refused),
            has_room: std::mem::take(&mut waiting.given_back) > 0,
            is_last: waiting.is_closed,
        }
    }

    /// Only what is asked, and no events: for as long as there is no room for these. Changes, of which some make room, if
    /// `with_changes`.
    pub(super) fn take_requests(&self, patience: Duration, with_changes: bool) -> Work {
        let until = Instant::now() + patience;
        let mut waiting = self.lock();
        while waiting.requests.is_empty() && !waiting.is_closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            waiting.is_asleep = true;
            // Events do not end this wait, and must not keep a request from ringing.
            waiting.is_urgent = false;
            waiting = self.bell.wait_timeout(waiting, left).expect("no holder panics").0;
            waiting.is_asleep = false;
        }
        waiting.is_urgent =
            are_awaited(&waiting.entries, &waiting.charges) || waiting.changes.iter().any(|changes| changes.is_awaited);
        let mut work =
            Work { requests: std::mem::take(&mut waiting.requests), is_last: waiting.is_closed, ..Work::default() };
        if with_changes {
            waiting.change_bytes = 0;
            work.changes = std::mem::take(&mut waiting.changes);
            work.refused = std::mem::take(&mut waiting.refused);
        }
        work
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::pool::{Class, Pool};
    use crate::store::What;

    /// Whoever keeps off a crowded way up does not wait for the writer's patience, however small the pool is.
    #[test]
    fn writer_is_rung_for_a_crowd_though_nobody_waits_for_its_events() {
        let (queue, pool) = (Queue::new(1 << 20), Arc::new(Pool::new(1 << 16)));
        let offer = |bytes: u64| {
            let what = What::Message { topic: "t".into(), payload: Bytes::new(), published: None };
            let entry = Entry { at_ms: 0, worker: WorkerId(0), device: "d".into(), what, receipt: None };
            let charges = &mut vec![Charge::of(&pool, Class::Up, bytes as usize)];
            assert_eq!(queue.offer(&mut vec![entry], charges), Taken::All);
            queue.lock().is_urgent
        };
        let crowd = pool.share(Class::Up) / 16;
        assert!(!offer(crowd - 1));
        assert!(offer(1));
        // What is written makes room, and is no crowd any more.
        drop(queue.take(Duration::ZERO));
        assert!(!offer(crowd - 1));
    }
}

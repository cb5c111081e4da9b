//! NATS as far as sessions need it: rows with revisions, cursors, leases and marks of the dead, the stream, and the way there, on which questions
//! and answers are late or lost.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::executor::{Clock, Whose};
use super::{Fault, GATEWAYS};
use crate::fleet::{Cursor, Published, RowChange, SessionRow, StreamEnds};

/// How long a lease lasts.
pub const LEASE: Duration = Duration::from_secs(9);
/// How long an answer is waited for.
const ASKED_MAX: Duration = Duration::from_secs(2);

#[derive(Default)]
pub struct State {
    /// Rows by device.
    pub rows: BTreeMap<String, (u64, SessionRow)>,
    revision: u64,
    cursors: BTreeMap<String, Cursor>,
    /// By gateway: of which life, and until when.
    leases: BTreeMap<String, (u64, Instant)>,
    deaths: BTreeMap<String, Instant>,
    pub stream: Vec<Published>,
    /// Messages that are in it already.
    known: BTreeSet<u32>,
    /// Gateways that are cut off, and those that know it.
    pub is_cut: [bool; GATEWAYS],
    pub knows: [bool; GATEWAYS],
    /// How often each has found NATS again.
    pub found: [u64; GATEWAYS],
}

pub fn name(at: usize) -> String {
    format!("gate-{at}")
}

pub fn place(name: &str) -> usize {
    name.strip_prefix("gate-").unwrap().parse().unwrap()
}

impl State {
    pub fn write_row(&mut self, device: &str, expected: u64, row: SessionRow, fault: Fault) -> RowChange {
        let there = self.rows.get(device).map_or(0, |(revision, _)| *revision);
        if there != expected && fault != Fault::NoCompareAndSet {
            return RowChange::Conflict;
        }
        self.revision += 1;
        self.rows.insert(device.into(), (self.revision, row));
        RowChange::Done(self.revision)
    }

    pub fn remove_row(&mut self, revision: u64) -> bool {
        let found = self.rows.iter().find(|(_, (at, _))| *at == revision).map(|(device, _)| device.clone());
        found.is_some_and(|device| self.rows.remove(&device).is_some())
    }

    pub fn next_row(&self, revision: u64) -> Option<(u64, Option<String>, SessionRow)> {
        let from = self.rows.iter().filter(|(_, (at, _))| *at >= revision);
        from.min_by_key(|(_, (at, _))| *at).map(|(device, (at, row))| (*at, Some(device.clone()), row.clone()))
    }

    pub fn write_cursor(&mut self, node: &str, cursor: Cursor) {
        self.cursors.insert(node.into(), cursor);
    }

    pub fn cursor(&self, node: &str) -> Option<Cursor> {
        self.cursors.get(node).cloned()
    }

    /// A gateway writes its lease. `true`: it had none.
    pub fn renew(&mut self, node: &str, life: u64, now: Instant) -> bool {
        let is_new = !self.leases.get(node).is_some_and(|(of, until)| *of == life && now < *until);
        self.leases.insert(node.into(), (life, now + LEASE));
        if is_new {
            self.deaths.remove(node);
        }
        is_new
    }

    pub fn end_lease(&mut self, node: &str) {
        self.leases.remove(node);
    }

    pub fn is_live(&self, node: &str, now: Instant) -> bool {
        self.leases.get(node).is_some_and(|(_, until)| now < *until)
    }

    pub fn living(&self, now: Instant) -> BTreeSet<String> {
        self.leases.keys().filter(|node| self.is_live(node, now)).cloned().collect()
    }

    pub fn dead_for(&mut self, node: &str, now: Instant) -> Option<Duration> {
        if self.is_live(node, now) {
            return None;
        }
        Some(now.duration_since(*self.deaths.entry(node.into()).or_insert(now)))
    }

    /// What is there already is not put there again.
    pub fn publish(&mut self, number: u32, mut published: Published) {
        if self.known.insert(number) {
            published.at = self.stream.len() as u64 + 1;
            self.stream.push(published);
        }
    }

    pub fn has(&self, number: u32) -> bool {
        self.known.contains(&number)
    }

    pub fn ends(&self) -> StreamEnds {
        StreamEnds { stream: "t".into(), first: 1, last: self.stream.len() as u64 }
    }
}

/// The servers, and the ways to them.
#[derive(Clone)]
pub struct Nats {
    pub clock: Clock,
    state: Arc<Mutex<State>>,
}

impl Nats {
    pub fn new(clock: Clock) -> Self {
        let state = State { knows: [true; GATEWAYS], ..State::default() };
        Self { clock, state: Arc::new(Mutex::new(state)) }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn knows(&self, at: usize) -> bool {
        self.state().knows[at]
    }

    pub fn is_cut(&self, at: usize) -> bool {
        self.state().is_cut[at]
    }

    /// A gateway is cut off, or no more; it knows some time later.
    pub fn set_cut(&self, at: usize, is_cut: bool) {
        self.state().is_cut[at] = is_cut;
        let nats = self.clone();
        self.clock.spawn(Whose::Network, async move {
            nats.clock.sleep(Duration::from_millis(nats.clock.below(2_500))).await;
            let mut state = nats.state();
            let knows = !state.is_cut[at];
            let knew = std::mem::replace(&mut state.knows[at], knows);
            state.found[at] += u64::from(knows && !knew);
        });
    }

    /// Asks the servers something. It may be done though nobody hears so, and later than anybody waits.
    pub async fn ask<T: Send + 'static>(
        &self,
        at: usize,
        act: impl FnOnce(&mut State, Instant) -> T + Send + 'static,
    ) -> Result<T, String> {
        if !self.knows(at) {
            return Err("NATS is away".into());
        }
        let (nats, (answer, answered)) = (self.clone(), oneshot::channel());
        self.clock.spawn(Whose::Network, async move {
            nats.clock.way().await;
            if nats.clock.chance(200) {
                nats.clock.sleep(Duration::from_secs(nats.clock.below(6))).await;
            }
            if nats.is_cut(at) && !nats.clock.chance(4) {
                return;
            }
            let done = act(&mut nats.state(), nats.clock.now());
            nats.clock.way().await;
            if !nats.is_cut(at) && !nats.clock.chance(100) {
                drop(answer.send(done));
            }
        });
        self.wait(answered, ASKED_MAX).await.ok_or_else(|| "nobody answers".to_owned())
    }

    /// Waits for an answer, for so long at most.
    pub async fn wait<T>(&self, answered: oneshot::Receiver<T>, most: Duration) -> Option<T> {
        tokio::select! {
            biased;
            answer = answered => if let Ok(answer) = answer {
                Some(answer)
            } else {
                // It was lost, which nobody knows before the time is over.
                self.clock.sleep(most).await;
                None
            },
            () = self.clock.sleep(most) => None,
        }
    }
}

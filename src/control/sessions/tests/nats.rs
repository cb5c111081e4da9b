//! NATS as far as sessions and presence need it: rows with revisions, cursors, leases and marks of the dead, the stream, and the way there, on
//! which questions and answers are late or lost. What must hold of each row is looked at when it is written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::executor::{Clock, Whose};
use super::troubles::{Trouble, Troubles};
use super::{Fault, GATEWAYS};
use crate::fleet::parts::{LeaseRow, Row, Written};
use crate::fleet::{Cursor, Published, RowChange, SessionRow, StreamEnds};

/// How long a lease lasts.
pub const LEASE: Duration = Duration::from_secs(9);
/// How long an answer is waited for.
const ASKED_MAX: Duration = Duration::from_secs(2);
/// Connections that begin within this of each other may be mistaken for one another: questions take as long.
const CLOSE: Duration = Duration::from_secs(3);
/// Who could not be asked within this is written over.
const SILENT: Duration = Duration::from_secs(15);

#[derive(Default)]
pub struct State {
    /// Rows by device.
    pub rows: BTreeMap<String, (u64, SessionRow)>,
    revision: u64,
    cursors: BTreeMap<String, Cursor>,
    /// Rows of devices: who has each.
    pub owners: BTreeMap<String, (u64, Row)>,
    /// Connections that stand at their gateways, and when they began.
    pub standing: BTreeMap<u64, Instant>,
    pub troubles: Troubles,
    /// What must not be.
    pub broken: BTreeSet<String>,
    /// By gateway: at which revision, which, and until when.
    leases: BTreeMap<String, (u64, LeaseRow, Instant)>,
    /// How many questions came, and at which one the lease of whoever asks it ends.
    pub asked: u64,
    pub ends_at: Option<u64>,
    deaths: BTreeMap<String, Instant>,
    pub stream: Vec<Published>,
    /// Messages that are in it already.
    known: BTreeSet<u32>,
    /// Gateways that are cut off, and those that know it.
    pub is_cut: [bool; GATEWAYS],
    pub knows: [bool; GATEWAYS],
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

    // --- Leases -------------------------------------------------------------------------------------------------------

    pub fn lease(&self, node: &str, now: Instant) -> Option<(u64, LeaseRow)> {
        let (revision, row, _) = self.leases.get(node).filter(|(.., until)| now < *until)?;
        Some((*revision, row.clone()))
    }

    pub fn write_lease(&mut self, node: &str, expected: u64, row: LeaseRow, now: Instant) -> Written {
        if self.lease(node, now).map_or(0, |(revision, _)| revision) != expected {
            return Written::Conflict;
        }
        self.revision += 1;
        self.leases.insert(node.into(), (self.revision, row, now + LEASE));
        Written::At(self.revision)
    }

    /// One more question. The lease of whoever asks may be over just now.
    fn note_asked(&mut self, at: usize, now: Instant) {
        self.asked += 1;
        if self.ends_at == Some(self.asked) {
            self.end_lease(&name(at), now);
        }
    }

    pub fn end_lease(&mut self, node: &str, now: Instant) {
        if self.leases.remove(node).is_some() {
            let at = place(node);
            self.troubles.begin(at, Trouble::LostLease, now);
            self.troubles.end(at, Trouble::LostLease, now);
        }
    }

    pub fn is_live(&self, node: &str, now: Instant) -> bool {
        self.lease(node, now).is_some()
    }

    /// Whether this lease of a gateway holds.
    pub fn holds(&self, node: &str, lease: &str, now: Instant) -> bool {
        self.lease(node, now).is_some_and(|(_, row)| row.id == lease)
    }

    pub fn come_alive(&mut self, node: &str) {
        self.deaths.remove(node);
    }

    // --- Rows of devices ----------------------------------------------------------------------------------------------

    pub fn write_owner(&mut self, device: &str, expected: u64, row: Row, now: Instant, fault: Fault) -> Written {
        let there = self.owners.get(device).map_or(0, |(revision, _)| *revision);
        if there != expected && fault != Fault::OwnersWithoutCompareAndSet {
            return Written::Conflict;
        }
        if let Some((_, before)) = self.owners.get(device)
            && self.is_back(before, &row, now)
        {
            let (from, to) = (before.generation, row.generation);
            self.broken.insert(format!("the row of {device} goes back from connection {from} to {to}"));
        }
        self.revision += 1;
        self.owners.insert(device.into(), (self.revision, row));
        Written::At(self.revision)
    }

    /// A row goes from one connection of its device to a later one, and not back while that stands where anybody can ask.
    fn is_back(&self, before: &Row, row: &Row, now: Instant) -> bool {
        let Some(began) = self.standing.get(&before.generation).filter(|_| before.generation > row.generation) else {
            return false;
        };
        let is_close = self.standing.get(&row.generation).is_some_and(|first| began.duration_since(*first) < CLOSE);
        let since = now.checked_sub(SILENT).unwrap_or(now);
        !is_close && self.troubles.is_quiet(place(&before.node), (since, now))
    }

    /// Whoever removes a row removes its own, or that of nobody.
    pub fn remove_owner(&mut self, node: &str, revision: u64, now: Instant) {
        let Some((device, (_, row))) = self.owners.iter().find(|(_, (at, _))| *at == revision) else { return };
        if *row.node != *node && self.holds(&row.node, &row.lease, now) {
            self.broken.insert(format!("{node} removes the row of {device}, which {} has", row.node));
        }
        let device = device.clone();
        self.owners.remove(&device);
    }

    // --- The dead -----------------------------------------------------------------------------------------------------

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
        let now = self.clock.now();
        let mut state = self.state();
        state.is_cut[at] = is_cut;
        if is_cut {
            state.troubles.begin(at, Trouble::Cut, now);
        } else {
            state.troubles.end(at, Trouble::Cut, now);
        }
        drop(state);
        let nats = self.clone();
        self.clock.spawn(Whose::Network, async move {
            nats.clock.sleep(Duration::from_millis(nats.clock.below(2_500))).await;
            let mut state = nats.state();
            state.knows[at] = !state.is_cut[at];
        });
    }

    /// Asks the servers something. It may be done though nobody hears so, and later than anybody waits.
    pub async fn ask<T: Send + 'static>(
        &self,
        at: usize,
        act: impl FnOnce(&mut State, Instant) -> T + Send + 'static,
    ) -> Result<T, String> {
        self.ask_as(at, true, act).await
    }

    /// The same, of what is looked for all the time.
    pub async fn look<T: Send + 'static>(
        &self,
        at: usize,
        act: impl FnOnce(&mut State, Instant) -> T + Send + 'static,
    ) -> Result<T, String> {
        self.ask_as(at, false, act).await
    }

    async fn ask_as<T: Send + 'static>(
        &self,
        at: usize,
        is_counted: bool,
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
            let done = {
                let (mut state, now) = (nats.state(), nats.clock.now());
                if is_counted {
                    state.note_asked(at, now);
                }
                act(&mut state, now)
            };
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

//! Of which place in the fleet's stream on sessions need what was published: told in rounds, so that another gateway can go on with them
//! should this one die (decision 0032).
//!
//! ```text
//!   control: the stream is settled up to P ── all that shards passed to each other is there ──▶ Round n
//!   here:    what was routed before is with its sessions ──▶ n is the round ──▶ the sessions that lag are looked at ──▶ told
//!
//!   session   nothing outstanding        a message comes in round a          … and is acknowledged in round c
//!   need      none                       since a ── look in round b: all that it has had numbers up to m ──┐
//!                                        since b ◀── nothing up to m is outstanding any more ◀────────────┘
//! ```
//!
//! What belongs to places up to P was with its session before the round began, so a session in which nothing is outstanding needs nothing
//! of it, and one whose first message comes in a round needs nothing from before. Only sessions that have something outstanding are known
//! here, nothing is done for each message but to see that its session is, and without a fleet none of it is there.
//!
//! A session that is *placed* has its own place in its row, and holds up nobody.

use hashbrown::HashMap;

use super::Broker;
use super::inflight::Oldest;
use super::lifecycle::NO_KEY;
use crate::config::FLEET_BEHIND_BYTES;
use crate::link::{Round, Standing};
use crate::slot::SessionSlot;

/// One that lags by so many rounds is to have a place of its own.
const SLOW_AFTER: u64 = 4;
/// One that lags by no more than this goes with all the others again.
const NEAR: u64 = 2;
/// A place of its own is written anew when it is that much behind.
const PLACED_AGAIN_AFTER: u64 = 30;
/// Since this round what a session has had before it was here, or this process began: rounds begin behind it.
const BROUGHT: u64 = 0;
/// Sessions of a shard that are told in one round, of each sort: 64 KiB here. How many rows are written for them is bounded by the time
/// that their writing may take.
const TOLD_MAX: usize = 4_096;

/// What one session needs.
#[derive(Clone, Copy, Debug)]
struct Need {
    generation: u32,
    /// Nothing of what belongs to this round, or to one before.
    since: u64,
    /// In this round, or 0: not yet,
    looked: u64,
    /// all that it had had numbers up to this one.
    mark: u64,
    /// The round of the place in its row; `None`: it has none there.
    placed: Option<u64>,
}

const _: () = assert!((size_of::<(SessionSlot, Need)>() as u64 + 1) * 3 / 2 <= FLEET_BEHIND_BYTES);

/// A round that begins when what was routed before it is with its sessions.
struct Begun {
    round: Round,
    /// So many deliveries were made by then.
    deliveries: u64,
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Needs {
    round: u64,
    all: HashMap<SessionSlot, Need>,
    begun: Option<Begun>,
}

/// What is told of one round, by session.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The earliest of all that have no place of their own.
    pub oldest: u64,
    /// Those that are to have one, and of which round.
    pub slow: Vec<(SessionSlot, u64)>,
    /// Those that need it no more.
    pub near: Vec<SessionSlot>,
}

impl Needs {
    fn note(&mut self, session: SessionSlot, need: Need) {
        let known = self.all.entry(session).or_insert(need);
        if known.generation != need.generation {
            *known = need;
        }
    }

    fn get(&mut self, session: SessionSlot, generation: u32) -> Option<&mut Need> {
        self.all.get_mut(&session).filter(|need| need.generation == generation)
    }
}

impl Broker {
    /// A message with an acknowledgement is with its session.
    pub(super) fn note_outstanding(&mut self, session: SessionSlot) {
        if !self.is_of_fleet() {
            return;
        }
        let known = &self.sessions[session];
        if known.key != NO_KEY {
            let (generation, since) = (known.generation, self.needs.round);
            self.needs.note(session, Need { generation, since, looked: 0, mark: 0, placed: None });
        }
    }

    /// A session is here with what it had elsewhere, or in an earlier process; `is_placed`: its row says from where that is to be read.
    pub(super) fn note_brought(&mut self, session: SessionSlot, is_placed: bool) {
        if !self.is_of_fleet() || self.oldest_of(session) == Oldest::None {
            return;
        }
        let placed = is_placed.then_some(0);
        let generation = self.sessions[session].generation;
        self.needs.all.insert(session, Need { generation, since: BROUGHT, looked: 0, mark: 0, placed });
    }

    /// The same of all that there are.
    pub(super) fn note_all_brought(&mut self) {
        for session in self.sessions.slots() {
            self.note_brought(session, false);
        }
    }

    /// How a session stands.
    pub(super) fn standing(&self, session: SessionSlot) -> Standing {
        let generation = self.sessions[session].generation;
        match self.needs.all.get(&session).filter(|need| need.generation == generation) {
            Some(Need { placed: Some(_), .. }) => Standing::Placed,
            Some(_) if self.oldest_of(session) != Oldest::None => Standing::Behind,
            _ => Standing::Even,
        }
    }

    /// Its row has a place of its own, of this round.
    pub fn note_placed(&mut self, session: SessionSlot, round: u64) {
        let (generation, since) = (self.sessions[session].generation, self.needs.round);
        self.needs.note(session, Need { generation, since, looked: 0, mark: 0, placed: None });
        if let Some(need) = self.needs.get(session, generation) {
            need.placed = Some(round);
        }
    }

    /// Its row is to have no place of its own any more. `false`: it still needs it. `floor`: the round that all the others hold up to.
    pub fn unplace(&mut self, session: SessionSlot, floor: u64) -> bool {
        let (generation, is_even) = (self.sessions[session].generation, self.oldest_of(session) == Oldest::None);
        let Some(need) = self.needs.get(session, generation) else { return true };
        if is_even {
            self.needs.all.remove(&session);
            return true;
        }
        if need.since >= floor && need.since > BROUGHT {
            need.placed = None;
        }
        need.placed.is_none()
    }

    // --- Rounds -----------------------------------------------------------------------------------------------------

    /// What was passed on to this shard before this round is here. The round that was to begin before it, and does not any more.
    pub fn begin_round(&mut self, round: Round) -> Option<Round> {
        let deliveries = self.deliveries.made();
        self.needs.begun.replace(Begun { round, deliveries }).map(|begun| begun.round)
    }

    /// Whether a round can begin now: to be looked at when a turn begins.
    pub(super) fn has_round(&self) -> bool {
        self.needs
            .begun
            .as_ref()
            .is_some_and(|begun| self.matching.is_empty() && self.deliveries.are_done(begun.deliveries))
    }

    /// The round that has begun, and how the sessions stand in it.
    pub fn take_round(&mut self) -> Option<(Round, Told)> {
        if !self.has_round() {
            return None;
        }
        let Begun { round, .. } = self.needs.begun.take()?;
        self.needs.round = self.needs.round.max(round.number);
        let told = self.look(&round);
        Some((round, told))
    }

    fn look(&mut self, round: &Round) -> Told {
        let (now, latest) = (round.number, self.journal.latest_number());
        let mut told = Told { oldest: now, ..Told::default() };
        let mut all = std::mem::take(&mut self.needs.all);
        all.retain(|&session, need| {
            if !self.sessions.is_current(session, need.generation) {
                return false;
            }
            match self.oldest_of(session) {
                Oldest::None if need.placed.is_none() => return false,
                Oldest::None => need.since = now,
                oldest => need.look(oldest, now, latest),
            }
            told.add(session, need, round);
            true
        });
        if all.is_empty() && all.capacity() > 1_024 {
            // After a storm the memory goes back.
            all = HashMap::new();
        }
        self.needs.all = all;
        told
    }

    /// What of a session is outstanding.
    fn oldest_of(&self, session: SessionSlot) -> Oldest {
        let known = &self.sessions[session];
        if self.staged.holds(session, known.generation) {
            return Oldest::Unknown;
        }
        match known.inflight.as_deref() {
            Some(inflight) => inflight.oldest(),
            None if self.sessions.stored(session).through != 0 => Oldest::Unknown,
            None => Oldest::None,
        }
    }
}

impl Need {
    /// It is looked at in round `now`; the latest message of the shard has number `latest`.
    fn look(&mut self, oldest: Oldest, now: u64, latest: u64) {
        let Oldest::Number { first, is_all } = oldest else { return };
        let has_passed = self.looked != 0 && first > self.mark;
        if has_passed {
            self.since = self.since.max(self.looked);
        }
        // What waits without a number gets a later one than what comes after this.
        if is_all && (has_passed || self.looked == 0) {
            (self.looked, self.mark) = (now, latest);
        } else if has_passed {
            self.looked = 0;
        }
    }
}

impl Told {
    fn add(&mut self, session: SessionSlot, need: &Need, round: &Round) {
        let lag = round.number - need.since;
        // What an earlier process has left, or another gateway, is near to nothing here: the cursor of this one never waited for it.
        let is_near = lag <= NEAR && need.since > BROUGHT;
        match need.placed {
            None => {
                self.oldest = self.oldest.min(need.since);
                let is_slow = lag >= SLOW_AFTER || (round.is_last && lag > 0);
                if is_slow && self.slow.len() < TOLD_MAX {
                    self.slow.push((session, need.since));
                }
            }
            // It holds up the others already, so that it comes to stand where they do.
            Some(_) if is_near => {
                self.oldest = self.oldest.min(need.since);
                if need.since >= round.floor && self.near.len() < TOLD_MAX && !round.is_last {
                    self.near.push(session);
                }
            }
            Some(placed) if need.since >= placed + PLACED_AGAIN_AFTER && self.slow.len() < TOLD_MAX => {
                self.slow.push((session, need.since));
            }
            Some(_) => {}
        }
    }
}

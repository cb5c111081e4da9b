//! What a publication waits for before its publisher is told that it is safe (decision D8).
//!
//! ```text
//!   PUBLISH ──▶ opened ──▶ parts: each shard it is passed on to, each delivery here, the uplink
//!                            │ every part is done
//!                            ▼
//!                          settled ──▶ PUBACK or PUBREC, the API's answer, or (in a shard that it was passed on to)
//!                                      the sender's credit back and `ShardMessage::Taken`
//! ```
//!
//! A delivery is done when it is in its session's queue below the bound, or was sent, or was dropped by name. So a publisher
//! waits for a subscriber that lives, within its own window.
//!
//! Nobody else waits for that subscriber. What begins to wait behind a queue is *parked*: the credit with which another shard has
//! passed it on goes back at once, and what it takes is booked where it was published ([`Class::Unsettled`](crate::pool::Class)), once,
//! for as long as its settlement is open there. Who holds much of that is read no further (`inbound`).

use std::sync::Arc;

use slab::Slab;

use super::Broker;
use super::redispatch::LeftSlot;
use crate::link::{Class, Publication, SessionId, ShardMessage, WorkerId};
use crate::pool::{self, Charge};

/// What a message that is not settled takes beside its bytes: itself, its settlements here and in other shards, its place among those that
/// its device is owed answers to.
pub(super) const UNSETTLED_BYTES: usize = 512;

/// Names a settlement of this shard; 0 where nothing waits.
pub(super) type Token = u32;

/// Nothing waits for it.
pub(super) const NOTHING: Token = 0;

/// Who is told when a publication is settled.
#[derive(Clone, Debug)]
pub(super) enum Owner {
    /// A device of this shard, under its packet identifier.
    Publisher {
        session: SessionId,
        packet: u16,
        /// See [`Publication::origin`].
        origin: u64,
    },
    /// A request of the API.
    Request(u64),
    /// Another shard, under its number: it has asked for something that is not a message with credit.
    Asker { worker: WorkerId, token: Token },
    /// Nobody: a will, or a retained message with QoS 0.
    Nobody,
    /// The control plane's question of who of a group gets a message, which another shard has passed on as [`Class::Chosen`].
    Given { worker: WorkerId, bytes: usize, request: u64 },
    /// What an ended session has left: it is with another member.
    Left {
        slot: LeftSlot,
        /// Its number in that session; 0: it was not recorded.
        number: u64,
    },
    /// The shard that passed it on: its credit comes back, unless it has since it was parked, and its own settlement has one part less.
    Shard { worker: WorkerId, class: Class, token: Token, bytes: usize, is_parked: bool },
}

/// How one part of a settlement has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It is safe.
    Taken,
    /// It was to be retained, and there is no room.
    NotRetained,
    /// The backbone will not have it.
    Refused,
}

impl Part {
    /// A shard was to retain it, perhaps.
    pub(super) fn retained(is_kept: bool) -> Self {
        if is_kept { Part::Taken } else { Part::NotRetained }
    }
}

#[derive(Debug)]
struct Settlement {
    owner: Owner,
    /// What is not done yet.
    parts: u32,
    is_refused: bool,
    is_retained: bool,
    /// The message, where it is to be withdrawn should a shard not be able to retain it.
    retained: Option<Arc<Publication>>,
    /// What it takes, where it was published here.
    charge: Option<Charge>,
}

/// A message waits behind a queue: the shard that has passed it on, the class of the credit, its number there, and how many bytes it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parked {
    pub(super) worker: WorkerId,
    pub(super) class: Class,
    pub(super) token: Token,
    pub(super) bytes: usize,
}

/// A publication that is settled.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) owner: Owner,
    /// It was to be retained and could not be, or the backbone will not have it.
    pub(super) is_refused: bool,
    /// The message, which is to be withdrawn everywhere before the owner is told.
    pub(super) withdraw: Option<Arc<Publication>>,
    /// What it took: booked until this is dropped.
    pub(super) charge: Option<Charge>,
}

/// The publications of one shard that wait for something.
#[derive(Default)]
pub(super) struct Settlements {
    open: Slab<Settlement>,
}

impl Settlements {
    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Opens one, with one part: that it is being published. [`Settlements::done`] ends that part too.
    pub(super) fn open(&mut self, owner: Owner) -> Token {
        let settlement =
            Settlement { owner, parts: 1, is_refused: false, is_retained: true, retained: None, charge: None };
        self.open.insert(settlement) as Token + 1
    }

    /// What it takes is booked until it is settled. Whose message it is, if it is a device's.
    pub(super) fn charge(&mut self, token: Token, charge: Charge) -> Option<SessionId> {
        let settlement = self.get(token)?;
        settlement.charge = Some(charge);
        if let Owner::Publisher { session, .. } = settlement.owner { Some(session) } else { None }
    }

    /// A part of it waits behind a queue. The credit that goes back, if it was passed on and none has gone back yet.
    pub(super) fn park(&mut self, token: Token) -> Option<Parked> {
        match &mut self.get(token)?.owner {
            &mut Owner::Shard { worker, class, token, bytes, ref mut is_parked } if !*is_parked => {
                *is_parked = true;
                Some(Parked { worker, class, token, bytes })
            }
            _ => None,
        }
    }

    /// See [`Publication::origin`]: of what this one's owner publishes.
    pub(super) fn origin(&mut self, token: Token) -> u64 {
        match self.get(token).map(|settlement| &settlement.owner) {
            Some(&Owner::Publisher { origin, .. }) => origin,
            _ => 0,
        }
    }

    /// Remembers a message that is to be withdrawn should it be refused.
    pub(super) fn set_retained(&mut self, token: Token, publication: &Arc<Publication>) {
        if let Some(settlement) = self.get(token) {
            settlement.retained = Some(Arc::clone(publication));
        }
    }

    /// It waits for one thing more.
    pub(super) fn add(&mut self, token: Token) {
        if let Some(settlement) = self.get(token) {
            settlement.parts += 1;
        }
    }

    /// One thing is done. What is settled by it is given back, and is open no more.
    pub(super) fn done(&mut self, token: Token, part: Part) -> Option<Settled> {
        let settlement = self.get(token)?;
        settlement.parts -= 1;
        settlement.is_refused |= part != Part::Taken;
        settlement.is_retained &= part != Part::NotRetained;
        if settlement.parts > 0 {
            return None;
        }
        let Settlement { owner, is_refused, is_retained, retained, charge, .. } = self.open.remove(token as usize - 1);
        if self.open.is_empty() && self.open.capacity() > 1_024 {
            // After a storm the memory goes back.
            self.open = Slab::new();
        }
        Some(Settled { owner, is_refused, withdraw: retained.filter(|_| !is_retained), charge })
    }

    fn get(&mut self, token: Token) -> Option<&mut Settlement> {
        if token == NOTHING {
            return None;
        }
        let settlement = self.open.get_mut(token as usize - 1);
        Some(settlement.expect("nothing is done twice, and nothing is settled before all is done"))
    }

    /// What came from this worker in this class and is not settled: its credit is here.
    #[cfg(test)]
    pub(super) fn held_for(&self, from: WorkerId, of: Class) -> crate::link::Credit {
        let mut held = crate::link::Credit::default();
        for (_, settlement) in &self.open {
            if let Owner::Shard { worker, class, bytes, is_parked: false, .. } = settlement.owner
                && (worker, class) == (from, of)
            {
                held.messages += 1;
                held.bytes += bytes;
            }
        }
        held
    }

    pub(super) fn check_invariants(&self) {
        for (index, settlement) in &self.open {
            assert!(settlement.parts > 0, "settlement {index} waits for nothing: {settlement:?}");
        }
    }
}

impl Broker {
    /// What is published here is booked until it is settled: wherever it waits, it is there once. A device that has published it is
    /// read no further while it holds too much ([`Broker::hold`]).
    pub(super) fn charge_unsettled(&mut self, token: Token, publication: &Publication) {
        if token == NOTHING {
            return;
        }
        let bytes = publication.bytes() + UNSETTLED_BYTES;
        let publisher = self.settlements.charge(token, Charge::of(&self.pool, pool::Class::Unsettled, bytes));
        let inflight = publisher
            .and_then(|session| self.sessions.resolve(session))
            .and_then(|session| self.sessions[session].inflight.as_deref_mut());
        if let Some(inflight) = inflight {
            inflight.note_unsettled(token, bytes);
        }
    }

    /// A message waits behind the queue of a session: whoever has passed it on may pass on others. The home of a group that has chosen
    /// that session has it of another shard, perhaps: it is told, so that nobody waits for it there either.
    pub(super) fn park(&mut self, token: Token) {
        let Some(Parked { worker, class, token, bytes }) = self.settlements.park(token) else { return };
        self.ways.free(worker, class, bytes);
        if class == Class::Chosen && token != NOTHING {
            self.ways.answer(worker, ShardMessage::Parked { token });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_goes_back_once_when_the_first_of_its_parts_is_parked() {
        let mut settlements = Settlements::default();
        let (worker, class) = (WorkerId(1), Class::Published);
        let token = settlements.open(Owner::Shard { worker, class, token: 7, bytes: 10, is_parked: false });
        settlements.add(token);
        assert_eq!(settlements.held_for(worker, class).messages, 1);
        assert_eq!(settlements.park(token), Some(Parked { worker, class, token: 7, bytes: 10 }));
        assert_eq!(settlements.park(token), None);
        assert_eq!(settlements.held_for(worker, class).messages, 0);
        let own = settlements.open(Owner::Request(1));
        assert!(settlements.park(own).is_none() && settlements.park(NOTHING).is_none());
    }

    #[test]
    fn it_is_settled_with_its_last_part_and_refused_if_any_is() {
        let mut settlements = Settlements::default();
        let token = settlements.open(Owner::Request(7));
        let other = settlements.open(Owner::Nobody);
        settlements.add(token);
        settlements.add(token);
        assert!(settlements.done(token, Part::Taken).is_none());
        assert!(settlements.done(token, Part::Refused).is_none());
        let settled = settlements.done(token, Part::Taken).unwrap();
        assert!(matches!(settled.owner, Owner::Request(7)) && settled.is_refused);
        assert_eq!(settlements.len(), 1);
        assert!(!settlements.done(other, Part::Taken).unwrap().is_refused);
        assert!(settlements.done(NOTHING, Part::Taken).is_none());
    }
}

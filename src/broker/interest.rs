//! In a fleet: what this shard's sessions want of what is published at other gateways, as the control plane is told.
//!
//! ```text
//!   SUBSCRIBE ──▶ covered already ──▶ SUBACK
//!             └─▶ the cover grows: another version ──▶ told, one at a time ──▶ held ──▶ SUBACKs that waited for it
//!
//!   UNSUBSCRIBE, sessions that end ──▶ many have gone ──▶ the filters that are left are looked through, some each turn ──▶ another version
//! ```
//!
//! The cover is few filters whatever there are ([`Cover`]), and a new filter that it covers costs nothing more: where each device
//! subscribes to its own, nothing is told any more. Shared subscriptions are not in it: the fleet gives to groups (`groups`, decision
//! 0033). Without a fleet nothing of this is there.

use std::collections::VecDeque;

use super::Broker;
use super::inflight::PendingSuback;
use crate::link::{Cover, SessionId, WorkerEvent};

/// Nodes of the tree of filters that are looked at in one turn, at some 2 µs each.
const TURN_NODES: usize = 256;
/// It begins when one in so many filters has gone since.
const GONE_PART: usize = 4;

/// See the head of this file.
#[derive(Default)]
pub(super) struct Interest {
    is_on: bool,
    pub(super) cover: Cover,
    /// Which cover it is: grows with each change.
    pub(super) version: u64,
    /// The latest that was told,
    pub(super) told: u64,
    /// and the latest that is held.
    held: u64,
    /// SUBACKs, by the version that they wait for.
    waiting: VecDeque<(u64, SessionId, u32)>,
    /// What the filters that are there come to, as far as they were looked through: up to this node.
    pub(super) anew: Option<(Cover, usize)>,
}

impl Interest {
    /// A filter that was not there is, in the shard.
    pub(super) fn note_subscribed(&mut self, filter: &str) {
        if !self.is_on {
            return;
        }
        if let Some((cover, _)) = &mut self.anew {
            cover.add(filter);
        }
        self.version += u64::from(self.cover.add(filter));
    }

    /// Whether it is said at all.
    pub(super) fn is_on(&self) -> bool {
        self.is_on
    }

    /// The version that is to be held before all that is wanted now comes; `None`: it is.
    pub(super) fn awaited(&self) -> Option<u64> {
        (self.version > self.held).then_some(self.version)
    }

    /// Whether the control plane is to be told something, or there is something to look through.
    pub(super) fn has_work(&self) -> bool {
        (self.version > self.told && self.told == self.held) || self.anew.is_some()
    }
}

impl Broker {
    /// From now on it is said what is wanted of what is published at other gateways.
    pub fn begin_interest(&mut self) {
        // What there is now is told, though it be nothing.
        (self.interest.is_on, self.interest.version) = (true, self.interest.version + 1);
        self.routing.groups.begin_fleet(std::sync::Arc::clone(&self.exchange));
        self.note_all_brought();
    }

    /// What the control plane is to be told.
    pub fn take_interest(&mut self) -> Option<WorkerEvent> {
        let interest = &mut self.interest;
        if interest.version == interest.told || interest.told != interest.held {
            return None;
        }
        interest.told = interest.version;
        Some(WorkerEvent::Interest { version: interest.version, cover: Box::new(interest.cover.clone()) })
    }

    /// What was told up to this version is held.
    pub fn handle_interest_held(&mut self, version: u64) {
        // No other was told.
        debug_assert_eq!(version, self.interest.told);
        self.interest.held = self.interest.held.max(version.min(self.interest.told));
        while let Some((_, session, waits)) = self.interest.waiting.pop_front_if(|(of, ..)| *of <= version) {
            if let Some(session) = self.sessions.resolve(session) {
                self.handle_joined(session, waits);
            }
        }
        self.settle_interested(version);
    }

    /// SUBACK waits until what was subscribed to comes from other gateways too.
    pub(super) fn expect_interest(&mut self, session: SessionId, pending: &mut PendingSuback) {
        if self.interest.version > self.interest.held {
            self.interest.waiting.push_back((self.interest.version, session, pending.waits));
            pending.homes += 1;
        }
    }

    /// A new turn: filters that have gone may be wanted no more.
    pub(super) fn advance_interest(&mut self) {
        if !self.interest.is_on {
            return;
        }
        let subscriptions = &mut self.routing.subscriptions;
        let Some((cover, from)) = &mut self.interest.anew else {
            // What is there, and what has gone since it was looked through, count against each other.
            if subscriptions.gone() > subscriptions.len() / GONE_PART {
                subscriptions.forget_gone();
                self.interest.anew = Some((Cover::default(), 0));
            }
            return;
        };
        let rest = subscriptions.look_through(*from, TURN_NODES, |filter| {
            cover.add(&filter);
        });
        if let Some(next) = rest {
            *from = next;
        } else if let Some((cover, _)) = self.interest.anew.take()
            && !cover.is_same(&self.interest.cover)
        {
            self.interest.cover = cover;
            self.interest.version += 1;
        }
    }
}

//! What one shard tells another about published messages, and what all shards know of each other.
//!
//! A message goes from the shard of its publisher to each shard where anybody may want it, through the same inbox as
//! commands, so that what one publisher said arrives in the order in which it was said. A group of shared subscribers
//! has a home like a device has (the hash of its name): its home alone knows its members and chooses among them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{Publication, SessionId, WorkerId};

/// One thing said by a shard to another.
#[derive(Clone, Debug)]
pub enum Peer {
    /// A message was published: keep it if it is a retained one, and give it to whoever here has subscribed to it.
    Published(Arc<Publication>),
    /// To a group's home: this session is a member from now on, or asks for it in another way than before.
    Join {
        /// The group, as `$share/NAME/FILTER`.
        group: Arc<str>,
        /// Who.
        member: SessionId,
        /// How: the options byte of SUBSCRIBE.
        options: u8,
        /// The Subscription Identifier; 0: none.
        identifier: u32,
        /// Whether its device is connected: those are chosen first.
        is_online: bool,
    },
    /// To a group's home: this session is no member any more.
    Leave {
        /// The group, as `$share/NAME/FILTER`.
        group: Arc<str>,
        /// Who.
        member: SessionId,
    },
    /// From a group's home: this member was chosen for a message.
    Chosen {
        /// The group, as `$share/NAME/FILTER`.
        group: Arc<str>,
        /// Who.
        member: SessionId,
        /// What.
        publication: Arc<Publication>,
        /// How it asked for it: the options byte of SUBSCRIBE.
        options: u8,
        /// Its Subscription Identifier; 0: none.
        identifier: u32,
    },
    /// To a group's home: that member is not there any more; choose another.
    Returned {
        /// The group, as `$share/NAME/FILTER`.
        group: Arc<str>,
        /// Who is not there.
        member: SessionId,
        /// What it did not get.
        publication: Arc<Publication>,
    },
}

/// What all shards of the process share about messages: who wants any at all, and in which order retained ones were
/// published.
#[derive(Debug)]
pub struct Exchange {
    wants: Box<[AtomicBool]>,
    stamps: AtomicU64,
}

impl Exchange {
    /// For this many workers, none of which wants anything yet.
    #[must_use]
    pub fn new(workers: u16) -> Self {
        let wants = std::iter::repeat_with(AtomicBool::default).take(usize::from(workers)).collect();
        Self { wants, stamps: AtomicU64::new(0) }
    }

    /// Says whether anybody in this worker's shard has subscribed to anything. To be said before a subscriber hears
    /// that it has subscribed, and not taken back while messages may be under way to it.
    pub fn set_wants(&self, worker: WorkerId, wants: bool) {
        self.wants[worker.index()].store(wants, Ordering::Release);
    }

    /// Whether a message must go to this worker: a shard without subscribers costs nothing.
    #[must_use]
    pub fn wants(&self, worker: WorkerId) -> bool {
        self.wants[worker.index()].load(Ordering::Acquire)
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> u16 {
        self.wants.len() as u16
    }

    /// The next place in the order of retained messages, from 1. One order for the whole process: a message that was
    /// acknowledged before another was published has the lower one, whichever shards they came through.
    pub fn next_stamp(&self) -> u64 {
        self.stamps.fetch_add(1, Ordering::AcqRel) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_worker_says_for_itself_what_it_wants() {
        let exchange = Exchange::new(3);
        exchange.set_wants(WorkerId(1), true);
        assert_eq!([0, 1, 2].map(|worker| exchange.wants(WorkerId(worker))), [false, true, false]);
        exchange.set_wants(WorkerId(1), false);
        assert!(!exchange.wants(WorkerId(1)));
        assert_eq!((exchange.next_stamp(), exchange.next_stamp()), (1, 2));
    }
}

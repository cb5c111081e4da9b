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
    /// How many stamps were given out.
    stamps: AtomicU64,
    /// By worker: its latest stamp, or [`ISSUING`].
    issued: Box<[AtomicU64]>,
}

/// The low bits of a stamp are the worker that it was given to.
const STAMP_WORKER_BITS: u32 = 16;
/// A worker is about to be given a stamp: it may be any from now on.
const ISSUING: u64 = u64::MAX;

impl Exchange {
    /// For this many workers, none of which wants anything yet.
    #[must_use]
    pub fn new(workers: u16) -> Self {
        let wants = std::iter::repeat_with(AtomicBool::default).take(usize::from(workers)).collect();
        let issued = std::iter::repeat_with(AtomicU64::default).take(usize::from(workers)).collect();
        Self { wants, stamps: AtomicU64::new(0), issued }
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

    /// The next place in the order of retained messages, never 0, for a message that this worker publishes and sends to
    /// every other. One order for the whole process: a message that was acknowledged before another was published has
    /// the lower one, whichever shards they came through. To be asked for by the worker's own thread alone.
    pub fn next_stamp(&self, worker: WorkerId) -> u64 {
        let issued = &self.issued[worker.index()];
        // Said before it is taken: whoever has a later stamp, or a message that carries one, sees this one or that one
        // is being given out (one order of all these operations: `SeqCst`).
        issued.store(ISSUING, Ordering::SeqCst);
        let stamp = (self.stamps.fetch_add(1, Ordering::SeqCst) + 1) << STAMP_WORKER_BITS | u64::from(worker.0);
        issued.store(stamp, Ordering::SeqCst);
        stamp
    }

    /// Whom a stamp was given to.
    #[must_use]
    pub fn worker_of(stamp: u64) -> WorkerId {
        WorkerId(stamp as u16)
    }

    /// Whether a retained message with an earlier stamp than this one may still be on its way to the shard of `worker`,
    /// which has `heard` from each of the others, in the order of their stamps, up to such a one.
    #[must_use]
    pub fn may_be_behind(&self, stamp: u64, worker: WorkerId, heard: &[u64]) -> bool {
        let mut others = heard.iter().zip(&self.issued).enumerate().filter(|(other, _)| *other != worker.index());
        others.any(|(_, (&heard, issued))| heard < stamp && heard < issued.load(Ordering::SeqCst))
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
    }

    #[test]
    fn stamps_are_one_order_and_name_their_worker() {
        let exchange = Exchange::new(3);
        let stamps = [2, 0, 2].map(|worker| exchange.next_stamp(WorkerId(worker)));
        assert!(stamps.is_sorted() && stamps[0] > 0);
        assert_eq!(stamps.map(|stamp| Exchange::worker_of(stamp).0), [2, 0, 2]);
    }

    #[test]
    fn message_is_behind_until_its_shard_was_heard_with_it_or_a_later_one() {
        let exchange = Exchange::new(2);
        let (here, there) = (WorkerId(0), WorkerId(1));
        assert!(!exchange.may_be_behind(u64::MAX, here, &[0, 0]), "nothing was published");
        let first = exchange.next_stamp(there);
        let own = exchange.next_stamp(here);
        let later = exchange.next_stamp(there);
        assert!(exchange.may_be_behind(own, here, &[0, 0]));
        assert!(
            exchange.may_be_behind(own, here, &[0, first]),
            "more is on its way, and may be older as far as is known"
        );
        assert!(!exchange.may_be_behind(own, here, &[0, later]));
        assert!(!exchange.may_be_behind(own, there, &[own, 0]), "what a shard publishes itself is on no way to it");
    }
}

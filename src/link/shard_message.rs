//! What one shard tells another about published messages, and what all shards know of each other.
//!
//! There are two lanes from each shard to each other one.
//!
//! *Messages that are passed on* ([`Passed`]) need credit, which the receiving shard gives for each sender and each
//! [`Class`]. Without credit they wait in the sender, whose publishers are then read no further. So a shard never has more
//! in its inbox than it said that it would take, in number and in bytes.
//!
//! *Answers* ([`ShardMessage`]) need none: each is asked for, by a message that had credit or by a device that waits, so that
//! there are never more of them than were asked for. They are always taken, whatever else waits.
//!
//! docs/decisions/0012 shows why nobody can wait for himself in this.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use siphasher::sip::SipHasher13;

use super::{GroupsHere, Publication, SessionId, Stamp, WorkerId};

/// What a message is passed on for. Each class has credit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It was published in the sending shard, or a session that has ended there had it for a group. What it causes in the receiving
    /// one may be passed on from there as [`Class::Chosen`].
    Published,
    /// The sending shard is the home of a group and has chosen a member. It causes nothing to be passed on: its credit
    /// always comes back.
    Chosen,
}

impl Class {
    /// Both, in the order of [`Class::index`].
    pub const ALL: [Class; 2] = [Class::Published, Class::Chosen];

    /// Its place in an array of both.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// A message that one shard passes on to another, with credit.
#[derive(Clone, Debug)]
pub struct Passed {
    /// The published message, shared by all who get it.
    pub publication: Arc<Publication>,
    /// The sender's number for it, carried by [`ShardMessage::Taken`]; 0: the sender does not ask.
    pub token: u32,
    /// For whom.
    pub recipient: Recipient,
}

/// For whom a message is passed on.
#[derive(Clone, Debug)]
pub enum Recipient {
    /// Whoever has subscribed in the receiving shard.
    Subscribers,
    /// Nobody: it is the retained message of its topic, or that has none any more. Subscribers get it in another way.
    Retained,
    /// A member of a group whose home the sending shard is.
    Member(Box<Choice>),
    /// Whichever member the receiving shard chooses, the home of this group: the one that had it has ended its session.
    Group(Arc<str>),
}

impl Passed {
    /// Whose credit it needs.
    #[must_use]
    pub fn class(&self) -> Class {
        if matches!(self.recipient, Recipient::Member(_)) { Class::Chosen } else { Class::Published }
    }
}

/// A group's home has chosen this member.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The group, as `$share/NAME/FILTER`.
    pub group: Arc<str>,
    /// The session of the member.
    pub member: SessionId,
    /// How it asked for it: the options byte of SUBSCRIBE.
    pub options: u8,
    /// Its Subscription Identifier; 0: none.
    pub identifier: u32,
    /// The question of the control plane that is answered by what becomes of it; 0: none.
    pub request: u64,
    /// So many members have had no room for it before.
    pub tried: u8,
}

/// Messages and their bytes: credit that is given, or given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// In number.
    pub messages: usize,
    /// In bytes, as [`Publication::bytes`] counts them.
    pub bytes: usize,
}

/// One answer, or one thing about a group, said by a shard to another. Needs no credit.
#[derive(Clone, Debug)]
pub enum ShardMessage {
    /// So much of what was passed on has been dealt with: as much may come again, by class.
    Credit([Credit; 2]),
    /// A message that was passed on is safe: with everybody here whom it is for.
    Taken {
        /// The number with which it came.
        token: u32,
        /// It was to be retained and could not be.
        is_refused: bool,
    },
    /// To a group's home: the member that was chosen has it behind its queue. Nobody waits for that but who has published it.
    Parked {
        /// The number with which it came.
        token: u32,
    },
    /// To a group's home: the member that was chosen is not there any more; choose another.
    Returned {
        /// The number with which the message came.
        token: u32,
        /// Who was chosen, and is not there.
        choice: Box<Choice>,
        /// What it did not get.
        publication: Arc<Publication>,
    },
    /// To a group's home: the member that was chosen for what the fleet gives has as much of that as it may have; choose another.
    NoRoom {
        /// The group, as `$share/NAME/FILTER`.
        group: Arc<str>,
        /// The session of the member.
        member: SessionId,
        /// What it did not get,
        publication: Arc<Publication>,
        /// the question that is answered by what becomes of it,
        request: u64,
        /// and how many members have had no room for it.
        tried: u8,
    },
    /// A retained message could not be kept by every shard: nobody keeps it, nor an older one of its topic. Answered by
    /// [`ShardMessage::Taken`].
    Withdraw {
        /// The number that the answer carries.
        token: u32,
        /// The published message, shared by all who get it.
        publication: Arc<Publication>,
    },
    /// What was published under this origin is known as received, whatever happens: it may be sent. Answered by [`ShardMessage::Taken`],
    /// when it is with everybody whom it is for.
    Commit {
        /// See [`Publication::origin`].
        origin: u64,
        /// The number that the answer carries.
        token: u32,
    },
    /// To a group's home: this session is a member from now on, or asks for it in another way than before.
    Join {
        /// The group, as `$share/NAME/FILTER`.
        group: Arc<str>,
        /// The session of the member.
        member: SessionId,
        /// How: the options byte of SUBSCRIBE.
        options: u8,
        /// The Subscription Identifier; 0: none.
        identifier: u32,
        /// How much of what the fleet gives it may have that is not acknowledged; 0: its device is not connected. Those that are are
        /// chosen first.
        room: u16,
        /// The SUBSCRIBE that waits for [`ShardMessage::Joined`]; 0: none does.
        waits: u32,
    },
    /// From a group's home: whoever joined is a member.
    Joined {
        /// The session of the member.
        member: SessionId,
        /// The SUBSCRIBE that waits.
        waits: u32,
    },
    /// To a group's home: this session is no member any more.
    Leave {
        /// The group, as `$share/NAME/FILTER`.
        group: Arc<str>,
        /// The session of the member.
        member: SessionId,
    },
}

/// Everything that one shard says to another at the end of a turn.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// What needs no credit, in order.
    pub answers: Vec<ShardMessage>,
    /// What has credit, in order.
    pub passed: Vec<Passed>,
}

impl Outgoing {
    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.passed.is_empty()
    }
}

/// What all shards of the process share about messages: who wants any at all, and in which order retained ones were
/// published.
#[derive(Debug)]
pub struct Exchange {
    wants: Box<[AtomicBool]>,
    /// By worker: little room is left there for what is not settled.
    short: Box<[AtomicBool]>,
    /// The latest clock that was given out, or seen; even.
    clock: AtomicU64,
    /// This gateway's number in its fleet; 0: it is one of none.
    node: u64,
    /// By worker: its latest clock, or [`ISSUING`].
    issued: Box<[AtomicU64]>,
    /// The latest key that was given out.
    keys: AtomicU64,
    here: GroupsHere,
}

/// A worker is about to be given a stamp: it may be any from now on.
const ISSUING: u64 = u64::MAX;

impl Exchange {
    /// For this many workers, none of which wants anything yet, of a gateway that is alone.
    #[must_use]
    pub fn new(workers: u16) -> Self {
        Self::with_node(workers, 0)
    }

    /// The same of the gateway called `node` in its fleet.
    #[must_use]
    pub fn of_fleet(workers: u16, node: &str) -> Self {
        // The same at every gateway; two with one number would have to say the same clock under one topic to be taken for one another.
        Self::with_node(workers, SipHasher13::new().hash(node.as_bytes()).max(1))
    }

    fn with_node(workers: u16, node: u64) -> Self {
        let flags = || std::iter::repeat_with(AtomicBool::default).take(usize::from(workers)).collect();
        let (wants, short) = (flags(), flags());
        let issued = std::iter::repeat_with(AtomicU64::default).take(usize::from(workers)).collect();
        Self {
            wants,
            short,
            clock: AtomicU64::new(0),
            node,
            issued,
            keys: AtomicU64::new(0),
            here: GroupsHere::default(),
        }
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

    /// Says whether little room is left in this worker's shard for what was published there and is not settled.
    pub fn set_short(&self, worker: WorkerId, is_short: bool) {
        let short = &self.short[worker.index()];
        if short.load(Ordering::Relaxed) != is_short {
            short.store(is_short, Ordering::Relaxed);
        }
    }

    /// Whether that is so in any shard: subscribers for whom much waits take room that others need.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.short.iter().any(|short| short.load(Ordering::Relaxed))
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> u16 {
        self.wants.len() as u16
    }

    /// A number that was never given out, of which the store may tell again: for a session, or for a message that was received.
    pub fn next_key(&self) -> u64 {
        self.keys.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// This key was given out before, by an earlier process.
    pub fn note_key(&self, key: u64) {
        self.keys.fetch_max(key, Ordering::Relaxed);
    }

    /// Groups that this gateway gives messages to by itself, though the fleet would.
    #[must_use]
    pub fn groups_here(&self) -> &GroupsHere {
        &self.here
    }

    /// Whether this gateway is one of a fleet: retained messages come from elsewhere too, however old they are.
    #[must_use]
    pub fn is_of_fleet(&self) -> bool {
        self.node != 0
    }

    /// The next place in the order of retained messages, not before `unix_ms`, for a message that this worker publishes and sends to
    /// every other. One order for the whole process: a message that was acknowledged before another was published has
    /// the lower one, whichever shards they came through. To be asked for by the worker's own thread alone, which says it to the others
    /// before it asks again.
    pub fn next_stamp(&self, worker: WorkerId, unix_ms: u64) -> Stamp {
        let issued = &self.issued[worker.index()];
        // Said before it is taken: whoever has a later stamp, or a message that carries one, sees this one or that one
        // is being given out (one order of all these operations: `SeqCst`).
        issued.store(ISSUING, Ordering::SeqCst);
        let stamp = self.stamp(unix_ms);
        issued.store(stamp.clock, Ordering::SeqCst);
        stamp
    }

    /// The same for a message that no worker publishes.
    pub fn stamp(&self, unix_ms: u64) -> Stamp {
        let behind = |last: u64| (last + 2).max(Stamp::clock_at(unix_ms));
        let given = self.clock.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| Some(behind(last)));
        let (Ok(last) | Err(last)) = given;
        Stamp { clock: behind(last), node: self.node }
    }

    /// A message with this stamp is known here: all later ones have a later one. It is to be bounded by whoever says it.
    pub fn note_stamp(&self, stamp: Stamp) {
        self.clock.fetch_max(stamp.clock.saturating_add(1) & !1, Ordering::SeqCst);
    }

    /// Whether a retained message with an earlier clock than this one may still be on its way to the shard of `worker`,
    /// which has `heard` from each of the others, in the order of their clocks, up to such a one.
    #[must_use]
    pub fn may_be_behind(&self, clock: u64, worker: WorkerId, heard: &[u64]) -> bool {
        let mut others = heard.iter().zip(&self.issued).enumerate().filter(|(other, _)| *other != worker.index());
        others.any(|(_, (&heard, issued))| heard < clock && heard < issued.load(Ordering::SeqCst))
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
    fn stamps_are_one_order_with_whatever_was_seen_in_it() {
        let exchange = Exchange::of_fleet(3, "gate-1");
        let stamps = [2, 0, 2].map(|worker| exchange.next_stamp(WorkerId(worker), 0));
        assert!(stamps.is_sorted() && !stamps[0].is_none());
        let behind = stamps[0].withdrawal();
        assert!(stamps[0] < behind && behind < stamps[1]);
        // The clock on the wall, and back.
        let now = exchange.next_stamp(WorkerId(0), 1_700_000_000_000);
        assert_eq!(now.unix_ms(), 1_700_000_000_000);
        assert!(exchange.stamp(5) > now, "it never goes back");
        // A gateway that is ahead: whoever knows of its message is later, a withdrawal too.
        let seen = Stamp { clock: Stamp::clock_at(1_700_000_001_000), node: u64::MAX };
        for seen in [seen, seen.withdrawal(), Stamp { clock: 7, ..seen }] {
            exchange.note_stamp(seen);
            let next = exchange.stamp(1_700_000_000_000);
            assert!(next > seen && next.clock.is_multiple_of(2));
        }
        assert_ne!(exchange.stamp(0).node, Exchange::of_fleet(3, "gate-2").stamp(0).node);
    }

    #[test]
    fn message_is_behind_until_its_shard_was_heard_with_it_or_a_later_one() {
        let exchange = Exchange::new(2);
        let (here, there) = (WorkerId(0), WorkerId(1));
        let next = |worker| exchange.next_stamp(worker, 0).clock;
        assert!(!exchange.may_be_behind(u64::MAX, here, &[0, 0]), "nothing was published");
        let first = next(there);
        let own = next(here);
        let later = next(there);
        assert!(exchange.may_be_behind(own, here, &[0, 0]));
        assert!(
            exchange.may_be_behind(own, here, &[0, first]),
            "more is on its way, and may be older as far as is known"
        );
        assert!(!exchange.may_be_behind(own, here, &[0, later]));
        assert!(!exchange.may_be_behind(own, there, &[own, 0]), "what a shard publishes itself is on no way to it");
    }
}

//! The pool of one shard: the variable bytes that its connections, sessions and messages take, counted. Its size is part
//! of the printed memory budget (`limits.pool_bytes`, divided among the workers), so that what waits for slow, silent or
//! hostile peers has a bound, and the bound is known. It counts and never allocates. Decision 0013.
//!
//! ```text
//!   pool ─┬─ Unauthenticated   1/16   half records, ClientHellos, half packets before the device has logged in
//!         ├─ Received          2/16   half records and packets of devices
//!         ├─ Unsent            2/16   bytes that sockets did not take
//!         ├─ Queues            4/16   messages that wait in sessions, or are in flight, each way; aliases
//!         ├─ Unsettled         1/16   messages whose publishers wait until they are with everybody
//!         ├─ Up                1/16   messages on their way to the backbone
//!         ├─ Filters           2/16   subscriptions and what they are found by
//!         ├─ Wills             1/16   wills of devices
//!         └─ Between           2/16   messages between shards, tombstones
//! ```
//!
//! **Shares.** A class takes nothing from another: those who have not logged in cannot fill what devices need. Within a class
//! nobody takes it all: whoever holds some already gets more only while that is at most an eighth of what is free then.
//! One holder alone comes to a ninth of the class, the next to a ninth of the rest, ten together to two thirds; and somebody
//! who holds nothing and wants little is refused last. (It is how switches share buffers among ports: Choudhury and Hahne, 1998.)
//!
//! **Use.** `try_take(class, bytes, held)` before keeping `bytes` for somebody who `held` so many in that class, and
//! [`Pool::give`] exactly the same bytes when they are let go, by whatever way. On [`Full`] do what the class says:
//!
//! | class | at the bound |
//! | --- | --- |
//! | `Unauthenticated` | the connection ends: it is asked to come back |
//! | `Received` | the connection ends: it is asked to come back |
//! | `Unsent` | the connection ends as a slow consumer, before its `outbox_bytes` |
//! | `Queues` | the message is dropped for this session and counted, or its publisher waits, for the store if it goes there; a connection with many open exchanges of QoS 2 ends |
//! | `Unsettled` | whoever has published some already is read no further until one of them is settled; at the whole of it nobody is, and subscribers for whom much waits are given less time |
//! | `Up` | publishers' sockets are read no further; what nobody asked an acknowledgement for is dropped and counted, after it had to wait from a sixteenth on |
//! | `Filters` | SUBACK 0x97 (3.1.1: 0x80) |
//! | `Wills` | CONNACK 0x97 (3.1.1: 3) |
//! | `Between` | publishers' sockets are read no further; for tombstones a message older than those that went is refused with 0x97 |
//!
//! A [`Charge`] is what somebody holds of one class, for things whose size changes: it follows that, and gives back what is left
//! when it is dropped.
//!
//! What is taken must be a bound of what is allocated: capacities, not lengths, and [`ALLOCATION_BYTES`] for each piece.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What an allocation costs beyond its bytes, on average: the allocator rounds up.
pub const ALLOCATION_BYTES: usize = 32;

/// Whoever holds some gets more only while it is at most this part of what is free.
const HOLDER_PART: u64 = 8;
/// This part of a class makes it crowded.
const CROWD_PART: u64 = 16;
/// When no more than this part of a class is free, it is short.
const SHORT_PART: u64 = 4;
/// Shares are counted in sixteenths.
const WHOLE: u64 = 16;

macro_rules! classes {
    ($($(#[doc = $doc:literal])+ $class:ident = $label:literal $share:literal,)+) => {
        /// What bytes are kept for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Class { $($(#[doc = $doc])+ $class,)+ }

        impl Class {
            /// Every class, in declaration order.
            pub const ALL: &'static [Class] = &[$(Class::$class,)+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// Its name in metrics and in the start-up message.
            #[must_use]
            pub const fn label(self) -> &'static str { match self { $(Class::$class => $label,)+ } }

            /// Its share, in sixteenths.
            const fn share(self) -> u64 { match self { $(Class::$class => $share,)+ } }
        }
    };
}

classes! {
    /// Half records, ClientHellos and half packets of connections that have not logged in.
    Unauthenticated = "unauthenticated" 1,
    /// Half records and packets of devices.
    Received = "received" 2,
    /// Bytes that sockets did not take.
    Unsent = "unsent" 2,
    /// Messages that wait in sessions or are in flight, each way, and topic aliases.
    Queues = "queues" 4,
    /// Messages that were published here and are not with everybody whom they are for.
    Unsettled = "unsettled" 1,
    /// Messages on their way to the backbone, until it has them.
    Up = "up" 1,
    /// Subscriptions and what they are found by.
    Filters = "filters" 2,
    /// Wills.
    Wills = "wills" 1,
    /// Messages between shards, and tombstones.
    Between = "between" 2,
}

const _: () = {
    let (mut sum, mut index) = (0, 0);
    while index < Class::COUNT {
        sum += Class::ALL[index].share();
        index += 1;
    }
    assert!(sum == WHOLE);
};

/// There is no room for so much: the class is full, or this holder has its part of what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Debug, Default)]
struct Account {
    share: u64,
    used: AtomicU64,
    given: AtomicU64,
    refused: AtomicU64,
}

/// The pool of one shard. See the head of this file. Its owner alone takes; what goes to another thread, such as a message on
/// its way up, is given back there.
#[derive(Debug, Default)]
pub struct Pool {
    accounts: [Account; Class::COUNT],
}

impl Pool {
    /// An empty one of so many bytes.
    #[must_use]
    pub fn new(size: usize) -> Self {
        let mut pool = Self::default();
        for &class in Class::ALL {
            pool.accounts[class as usize].share = size as u64 / WHOLE * class.share();
        }
        pool
    }

    /// Takes `bytes` for somebody who has `held` so many of this class.
    ///
    /// # Errors
    /// [`Full`]; then nothing was taken, and the refusal was counted.
    pub fn try_take(&self, class: Class, bytes: usize, held: usize) -> Result<(), Full> {
        if !self.may_take(class, bytes, held) {
            return Err(Full);
        }
        self.take_anyway(class, bytes);
        Ok(())
    }

    /// Whether somebody who has `held` so many of this class may take `bytes`. A refusal is counted.
    #[must_use]
    pub fn may_take(&self, class: Class, bytes: usize, held: usize) -> bool {
        let may = (held + bytes) as u64 <= self.largest(class);
        if !may {
            self.accounts[class as usize].refused.fetch_add(1, Ordering::Relaxed);
        }
        may
    }

    /// Takes `bytes` that are there already and cannot be refused, such as those of a connection that has come home. What
    /// others may take is less by as much.
    pub fn take_anyway(&self, class: Class, bytes: usize) {
        self.accounts[class as usize].used.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Gives back what was taken. More than that is our own error, and panics.
    pub fn give(&self, class: Class, bytes: usize) {
        let account = &self.accounts[class as usize];
        account.given.fetch_add(bytes as u64, Ordering::Relaxed);
        let before = account.used.fetch_sub(bytes as u64, Ordering::Relaxed);
        assert!(before >= bytes as u64, "{} of {before} bytes were given back: {bytes}", class.label());
    }

    /// Whether all of a class is taken. For things that are held for nobody in particular: one of them may be there beyond it.
    #[must_use]
    pub fn is_full(&self, class: Class) -> bool {
        self.used(class) >= self.share(class)
    }

    /// Whether so much of a class is taken that whoever can wait is to keep off: a sixteenth of it.
    #[must_use]
    pub fn is_crowded(&self, class: Class) -> bool {
        self.used(class) >= self.share(class) / CROWD_PART
    }

    /// Whether so little of a class is free, a quarter, that whoever can let something go is to.
    #[must_use]
    pub fn is_short(&self, class: Class) -> bool {
        self.share(class).saturating_sub(self.used(class)) <= self.share(class) / SHORT_PART
    }

    /// What one holder may hold of a class by now, in bytes.
    #[must_use]
    pub fn largest(&self, class: Class) -> u64 {
        let free = self.share(class).saturating_sub(self.used(class));
        free / HOLDER_PART
    }

    /// The share of a class, in bytes.
    #[must_use]
    pub fn share(&self, class: Class) -> u64 {
        self.accounts[class as usize].share
    }

    /// How much of a class is taken, in bytes.
    #[must_use]
    pub fn used(&self, class: Class) -> u64 {
        self.accounts[class as usize].used.load(Ordering::Relaxed)
    }

    /// How much of a class was given back since the start, in bytes: where that grows, what is taken gets on.
    #[must_use]
    pub fn given(&self, class: Class) -> u64 {
        self.accounts[class as usize].given.load(Ordering::Relaxed)
    }

    /// How much of all classes is taken, in bytes.
    #[must_use]
    pub fn used_in_all(&self) -> u64 {
        Class::ALL.iter().map(|&class| self.used(class)).sum()
    }

    /// How often a class was full for somebody.
    #[must_use]
    pub fn refused(&self, class: Class) -> u64 {
        self.accounts[class as usize].refused.load(Ordering::Relaxed)
    }

    /// How often any class was full for somebody.
    #[must_use]
    pub fn refused_in_all(&self) -> u64 {
        Class::ALL.iter().map(|&class| self.refused(class)).sum()
    }
}

/// What somebody holds of one class. Whatever is left is given back when it is dropped, by whatever way.
#[derive(Debug)]
pub struct Charge {
    pool: Arc<Pool>,
    class: Class,
    bytes: usize,
}

impl Charge {
    /// Nothing yet.
    #[must_use]
    pub fn none(pool: &Arc<Pool>, class: Class) -> Self {
        Self { pool: Arc::clone(pool), class, bytes: 0 }
    }

    /// So many bytes, which are there already.
    #[must_use]
    pub fn of(pool: &Arc<Pool>, class: Class, bytes: usize) -> Self {
        let mut charge = Self::none(pool, class);
        charge.set(bytes);
        charge
    }

    /// How many bytes it is.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it is of the same class of the same pool.
    #[must_use]
    pub fn is_beside(&self, other: &Self) -> bool {
        self.class == other.class && Arc::ptr_eq(&self.pool, &other.pool)
    }

    /// Whether its class is crowded.
    #[must_use]
    pub fn is_of_a_crowd(&self) -> bool {
        self.pool.is_crowded(self.class)
    }

    /// It is so many bytes now. Nothing is refused: whoever lets it grow has looked at [`Pool::largest`] before.
    pub fn set(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.pool.take_anyway(self.class, bytes - self.bytes);
        } else if bytes < self.bytes {
            self.pool.give(self.class, self.bytes - bytes);
        }
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASS: Class = Class::Queues;

    /// Takes in pieces until it is refused; how much it got.
    fn take_all(pool: &Pool, piece: usize) -> usize {
        let mut held = 0;
        while pool.try_take(CLASS, piece, held).is_ok() {
            held += piece;
        }
        held
    }

    #[test]
    fn one_holder_gets_a_ninth_and_somebody_new_always_gets_a_little() {
        let pool = Pool::new(1 << 24);
        let share = pool.share(CLASS) as usize;
        assert_eq!(share, (1 << 24) / 16 * 4);
        let first = take_all(&pool, 64);
        assert!(first.abs_diff(share / 9) <= 128, "{first} of {share}");
        let greedy: usize = (0..20).map(|_| take_all(&pool, 64)).sum();
        assert!(first + greedy < share);
        // A score hold all they can: a newcomer with little is not refused.
        assert_eq!(pool.try_take(CLASS, 30_000, 0), Ok(()));
        assert!(pool.refused(CLASS) == 21 && pool.refused_in_all() == pool.refused(CLASS));
        assert!(pool.used(CLASS) <= pool.share(CLASS));
        pool.give(CLASS, 30_000 + first + greedy);
        assert_eq!(pool.used_in_all(), 0);
    }

    #[test]
    fn classes_take_nothing_from_each_other_and_together_no_more_than_there_is() {
        let pool = Pool::new(1 << 20);
        for &class in Class::ALL {
            while pool.try_take(class, 64, 0).is_ok() {}
            let left = pool.share(class) - pool.used(class);
            assert!(left < 64 * HOLDER_PART + 64, "{} has {left} left", class.label());
        }
        assert!(pool.used_in_all() <= 1 << 20);
    }

    #[test]
    fn what_came_anyway_leaves_the_others_less() {
        let pool = Pool::new(1 << 20);
        pool.take_anyway(CLASS, 1 << 20);
        assert_eq!(pool.try_take(CLASS, 1, 0), Err(Full));
        pool.give(CLASS, 1 << 20);
        assert_eq!(pool.try_take(CLASS, 1, 0), Ok(()));
    }

    #[test]
    fn charge_follows_what_is_held_and_ends_with_it() {
        let pool = Arc::new(Pool::new(1 << 20));
        let mut charge = Charge::none(&pool, CLASS);
        for bytes in [100, 1_000, 10, 10] {
            charge.set(bytes);
            assert_eq!((pool.used(CLASS), charge.bytes()), (bytes as u64, bytes));
        }
        drop(charge);
        assert_eq!(pool.used(CLASS), 0);
    }

    #[test]
    #[should_panic(expected = "were given back")]
    fn more_than_was_taken_is_not_given_back() {
        Pool::new(1 << 20).give(CLASS, 1);
    }
}

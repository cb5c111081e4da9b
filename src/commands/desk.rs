//! What a gateway knows of the commands of one place beside the place itself: what it owes, and what it counts.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Fate;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Desk {
    /// Commands that devices have acknowledged, which is not written yet: at most as many as are said at a time.
    owed: Mutex<HashSet<String>>,
    waiting: AtomicU64,
    queued: AtomicU64,
    acknowledged: AtomicU64,
    expired: AtomicU64,
    refused: AtomicU64,
    cancelled: AtomicU64,
}

/// What was counted since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Commands that wait in the place, as they were counted last.
    pub waiting: u64,
    /// Commands that this gateway had wait.
    pub queued: u64,
    /// Of those that waited: acknowledged here.
    pub acknowledged: u64,
    /// Of those that waited: found here to have expired.
    pub expired: u64,
    /// Of those that waited: refused by devices here.
    pub refused: u64,
    /// Of those that waited: taken back here.
    pub cancelled: u64,
}

impl Counts {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            waiting: self.waiting + other.waiting,
            queued: self.queued + other.queued,
            acknowledged: self.acknowledged + other.acknowledged,
            expired: self.expired + other.expired,
            refused: self.refused + other.refused,
            cancelled: self.cancelled + other.cancelled,
        }
    }
}

impl Desk {
    /// What it has counted.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            waiting: load(&self.waiting),
            queued: load(&self.queued),
            acknowledged: load(&self.acknowledged),
            expired: load(&self.expired),
            refused: load(&self.refused),
            cancelled: load(&self.cancelled),
        }
    }

    /// So many wait in the place.
    pub fn note_waiting(&self, waiting: u64) {
        self.waiting.store(waiting, Ordering::Relaxed);
    }

    pub(super) fn note_put(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
    }

    /// A command that waited has this outcome, by this gateway.
    pub(super) fn note_fate(&self, fate: Fate) {
        let count = match fate {
            Fate::Queued | Fate::Sent => return,
            Fate::Acknowledged => &self.acknowledged,
            Fate::Expired => &self.expired,
            Fate::Refused => &self.refused,
            Fate::Cancelled => &self.cancelled,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn owe(&self, id: &str) {
        self.owed.lock().expect("no holder panics").insert(id.to_owned());
    }

    pub(super) fn take_owed(&self, id: &str) -> bool {
        self.owed.lock().expect("no holder panics").remove(id)
    }
}

//! `[store]`: what an acknowledgement promises, and where that is kept.

use std::time::Duration;

/// What an acknowledgement promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It is on the disk before it is acknowledged: it survives a loss of power.
    Group,
    /// The system has it before it is acknowledged, and the disk within `store.sync_interval`: it survives the end of
    /// the process, and a loss of power but for that time.
    Interval,
    /// It is in the memory of this process and ends with it.
    Memory,
}

impl Durability {
    /// Every one, by its word.
    pub const WORDS: [(&str, Self); 3] =
        [("group", Self::Group), ("interval", Self::Interval), ("memory", Self::Memory)];

    /// Its word.
    #[must_use]
    pub fn label(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

/// `[store]`: what must survive the process, in a file in the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// With [`Durability::Interval`]: how often what was written is brought to the disk.
    pub sync_interval: Duration,
    /// The file's largest size, in bytes, without its journal.
    pub bytes: u64,
    /// Bytes that may wait to be written, in memory.
    pub queue_bytes: usize,
    /// Bytes of messages that wait in it for devices that are away: topics, properties and payloads.
    pub sessions_bytes: u64,
    /// Bytes of commands that wait in it for devices that are nowhere, with 128 bytes for each.
    pub commands_bytes: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            durability: Durability::Group,
            sync_interval: Duration::from_secs(1),
            bytes: 2 << 30,
            queue_bytes: 4 << 20,
            sessions_bytes: 512 << 20,
            commands_bytes: 256 << 20,
        }
    }
}

impl Store {
    /// What the store takes of memory at the most: events and changes that wait, as much again in the group that is being
    /// written, once more the changes while the disk is full, and the pages that its three connections keep.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        const PAGES: u64 = 3 * (2_000 << 10);
        match self.durability {
            Durability::Memory => 0,
            Durability::Group | Durability::Interval => 5 * self.queue_bytes as u64 + PAGES,
        }
    }
}

/// What may lie in the store's file, in bytes: each has a bound of its own, so that none takes the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreShares {
    /// The uplink: the oldest events go first.
    pub uplink: u64,
    /// Messages of devices that are away.
    pub sessions: u64,
    /// Those of one of them.
    pub one_session: u64,
    /// What else is in sessions: as much as the pool lets them have (messages of devices that are there, filters, wills).
    pub pool: u64,
    /// Retained messages.
    pub retained: u64,
    /// Commands that wait.
    pub commands: u64,
}

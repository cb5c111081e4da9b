//! What a shard says of its sessions and retained messages, on its way to the store (decision D8).
//!
//! The changes of a turn are one batch, under a mark that grows with each batch of the same worker. The store writes all
//! batches of one worker in their order and answers with [`WorkerCommand::Safe`](super::WorkerCommand::Safe): so what depends on a
//! change waits for the mark of its batch.
//!
//! What lies in the store alone is asked for by [`Load`] and comes back with [`WorkerCommand::Loaded`](super::WorkerCommand::Loaded).

use super::{SessionId, WorkerId};
use crate::image::{Change, Message, SessionKey};
use crate::time::Timeline;

/// A worker's place among its own batches: 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChangeMark(pub u64);

impl ChangeMark {
    /// The one behind it.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The changes of one worker in one turn.
#[derive(Clone, Debug)]
pub struct Changes {
    /// Who says it.
    pub worker: WorkerId,
    /// When this is safe, all of them are.
    pub mark: ChangeMark,
    /// What has changed, in the order in which it happened; never empty.
    pub changes: Vec<Change>,
    /// Whether an answer waits for them; else they wait for company.
    pub is_awaited: bool,
    /// By which they say the time of day.
    pub timeline: Timeline,
}

impl Changes {
    /// What they count as where changes that wait are bounded by bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.changes.iter().map(Change::bytes).sum()
    }
}

/// Messages of a session that lie in the store alone and are wanted now. Each is answered by one [`Loaded`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Whose: the worker is told.
    pub session: SessionId,
    /// The number of this question.
    pub serial: u32,
    /// Under which the store knows the session.
    pub key: SessionKey,
    /// Messages behind this number are wanted,
    pub after: u64,
    /// up to this one: the later ones are in memory.
    pub through: u64,
    /// As many as take so many bytes; at least one, if there is one.
    pub bytes_max: usize,
}

/// What the store has for a [`Load`].
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Whose.
    pub session: SessionId,
    /// The number of the question.
    pub serial: u32,
    /// The messages, in order of their numbers. `None`: they cannot be read, which was logged.
    pub messages: Option<Vec<Message>>,
    /// There are no more up to the number that was asked for.
    pub is_last: bool,
}

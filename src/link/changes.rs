//! What a shard says of its sessions and retained messages, on its way to the store (decision D8).
//!
//! The changes of a turn are one batch, under a mark that grows with each batch of the same worker. The store writes all
//! batches of one worker in their order and answers with [`WorkerCommand::Safe`](super::WorkerCommand::Safe): so what depends on a
//! change waits for the mark of its batch.

use super::WorkerId;
use crate::image::Change;

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
}

impl Changes {
    /// What they count as where changes that wait are bounded by bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.changes.iter().map(Change::bytes).sum()
    }
}

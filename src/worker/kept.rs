//! What an earlier process has left for the workers of this one, and where they say what changes.

use std::sync::Arc;

use crate::broker::{Bounds, Recording};
use crate::config::Limits;
use crate::image::{KeptSession, Publication, Stamp};
use crate::link::{Exchange, Mailbox, WorkerId};
use crate::shard::Shard;
use crate::store::ChangeSender;
use crate::time::Moment;

/// All of it, of all workers.
pub struct Kept {
    /// Where it is said what changes.
    pub changes: ChangeSender,
    /// How it is said.
    pub recording: Recording,
    /// Numbers are given out from here on.
    pub next_key: u64,
    /// Bytes of messages that may wait in the store for devices that are away, of all workers.
    pub stored_bytes: u64,
    /// Sessions, by the worker that is their home now.
    pub sessions: Vec<Vec<KeptSession>>,
    /// Retained messages, with their stamps: each worker keeps all.
    pub retained: Arc<[(Publication, Stamp)]>,
}

/// The bounds of one worker's sessions, with what it has of the store, if there is one.
pub(super) fn bounds(kept: Option<&KeptPart>, limits: &Limits, workers: u16) -> Bounds {
    Bounds { stored_bytes: kept.map_or(0, |kept| kept.stored_bytes), ..Bounds::of(limits, workers) }
}

/// One worker's part of it.
pub(super) struct KeptPart {
    pub(super) changes: ChangeSender,
    stored_bytes: u64,
    recording: Recording,
    sessions: Vec<KeptSession>,
    retained: Arc<[(Publication, Stamp)]>,
}

impl Kept {
    /// As many parts as there are workers, by worker.
    pub(super) fn parts(self, exchange: &Exchange) -> Vec<Option<KeptPart>> {
        exchange.note_key(self.next_key);
        let stored_bytes = self.stored_bytes / self.sessions.len().max(1) as u64;
        let part = |sessions| KeptPart {
            changes: self.changes.clone(),
            stored_bytes,
            recording: self.recording.clone(),
            sessions,
            retained: Arc::clone(&self.retained),
        };
        self.sessions.into_iter().map(part).map(Some).collect()
    }
}

impl KeptPart {
    /// The shard begins with what there is. What its sessions have to say to the homes of their groups is said before any of them
    /// turns.
    pub(super) fn begin(self, shard: &mut Shard, worker: WorkerId, mailboxes: &[Mailbox], now: Moment) -> ChangeSender {
        shard.begin_recording(self.recording);
        for (publication, stamp) in self.retained.iter() {
            shard.restore_retained(publication.clone(), *stamp, now);
        }
        for session in self.sessions {
            shard.restore(session, now);
        }
        for (other, mailbox) in mailboxes.iter().enumerate().filter(|(other, _)| *other != worker.index()) {
            mailbox.tell(worker, shard.take_outgoing(WorkerId(other as u16)));
        }
        self.changes
    }
}

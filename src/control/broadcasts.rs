//! Broadcasts under way and those that ended lately: what each worker last told of its share.
//!
//! Bounded: so many run at a time, so many are remembered; the oldest that is over is forgotten first.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::link::WorkerId;

/// Broadcasts that run at a time.
pub(super) const RUNNING_MAX: usize = 16;
/// Broadcasts that are known, running ones among them.
pub(super) const KNOWN_MAX: usize = 256;

/// Every broadcast that can be asked for.
#[derive(Debug)]
pub(super) struct Broadcasts {
    workers: usize,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// The number that the next one gets; from 1.
    next: u64,
    /// By number.
    broadcasts: BTreeMap<u64, Broadcast>,
}

#[derive(Debug)]
struct Broadcast {
    /// By worker.
    shares: Vec<Share>,
    is_cancelled: bool,
}

/// How far one worker has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    /// Devices it was said to.
    pub(super) sent: u64,
    /// Devices that did not take it.
    pub(super) refused: u64,
    /// Nothing more will come.
    pub(super) is_over: bool,
}

/// How far a broadcast has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// What it does now.
    pub(super) stage: Stage,
    /// By worker.
    pub(super) shares: Vec<Share>,
}

/// What a broadcast does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A worker still has devices to tell, or has not heard yet that it was cancelled.
    Running,
    /// Every worker has told all its devices.
    Done,
    /// It was cancelled, and every worker has ended it.
    Cancelled,
}

impl Stage {
    /// The word of the API.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Stage::Running => "running",
            Stage::Done => "done",
            Stage::Cancelled => "cancelled",
        }
    }
}

impl Broadcast {
    fn stage(&self) -> Stage {
        match (self.shares.iter().all(|share| share.is_over), self.is_cancelled) {
            (false, _) => Stage::Running,
            (true, false) => Stage::Done,
            (true, true) => Stage::Cancelled,
        }
    }
}

impl Broadcasts {
    /// None yet, for so many workers.
    pub(super) fn new(workers: usize) -> Self {
        Self { workers, known: Mutex::new(Known { next: 1, broadcasts: BTreeMap::new() }) }
    }

    /// A new one, whose share every worker is about to get. `None` when too many run.
    pub(super) fn begin(&self) -> Option<u64> {
        let mut known = self.known.lock().expect("no holder panics");
        let running = |broadcast: &&Broadcast| broadcast.stage() == Stage::Running;
        if known.broadcasts.values().filter(running).count() >= RUNNING_MAX {
            return None;
        }
        if known.broadcasts.len() >= KNOWN_MAX {
            let oldest = known.broadcasts.iter().find(|(_, broadcast)| broadcast.stage() != Stage::Running);
            let oldest = *oldest.expect("fewer run than are known").0;
            known.broadcasts.remove(&oldest);
        }
        let number = known.next;
        known.next += 1;
        let shares = vec![Share::default(); self.workers];
        known.broadcasts.insert(number, Broadcast { shares, is_cancelled: false });
        Some(number)
    }

    /// What a worker tells of its share.
    pub(super) fn report(&self, number: u64, worker: WorkerId, share: Share) {
        let mut known = self.known.lock().expect("no holder panics");
        // One that is over may be forgotten; its last report cannot come after that.
        if let Some(broadcast) = known.broadcasts.get_mut(&number) {
            broadcast.shares[worker.index()] = share;
        }
    }

    /// Marks one as cancelled if it still runs; gives back which workers have not ended it. `None`: not known.
    pub(super) fn cancel(&self, number: u64) -> Option<Vec<WorkerId>> {
        let mut known = self.known.lock().expect("no holder panics");
        let broadcast = known.broadcasts.get_mut(&number)?;
        if broadcast.stage() != Stage::Running {
            return Some(Vec::new());
        }
        broadcast.is_cancelled = true;
        let running = broadcast.shares.iter().enumerate().filter(|(_, share)| !share.is_over);
        Some(running.map(|(worker, _)| WorkerId(worker as u16)).collect())
    }

    /// How far one has come. `None`: not known, or forgotten.
    pub(super) fn progress(&self, number: u64) -> Option<Progress> {
        let known = self.known.lock().expect("no holder panics");
        let broadcast = known.broadcasts.get(&number)?;
        Some(Progress { stage: broadcast.stage(), shares: broadcast.shares.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(sent: u64) -> Share {
        Share { sent, refused: 1, is_over: true }
    }

    #[test]
    fn a_broadcast_is_done_when_every_worker_is() {
        let broadcasts = Broadcasts::new(2);
        let number = broadcasts.begin().unwrap();
        broadcasts.report(number, WorkerId(0), over(3));
        assert_eq!(broadcasts.progress(number).unwrap().stage, Stage::Running);
        broadcasts.report(number, WorkerId(1), over(4));
        let progress = broadcasts.progress(number).unwrap();
        assert_eq!(progress, Progress { stage: Stage::Done, shares: vec![over(3), over(4)] });
        // Too late to cancel.
        assert_eq!(broadcasts.cancel(number), Some(Vec::new()));
        assert_eq!(broadcasts.progress(number).unwrap().stage, Stage::Done);
        assert_eq!((broadcasts.cancel(99), broadcasts.progress(99)), (None, None));
    }

    #[test]
    fn a_cancelled_one_runs_until_every_worker_has_ended_it() {
        let broadcasts = Broadcasts::new(3);
        let number = broadcasts.begin().unwrap();
        broadcasts.report(number, WorkerId(1), over(2));
        assert_eq!(broadcasts.cancel(number), Some(vec![WorkerId(0), WorkerId(2)]));
        broadcasts.report(number, WorkerId(0), over(2));
        assert_eq!(broadcasts.progress(number).unwrap().stage, Stage::Running);
        broadcasts.report(number, WorkerId(2), over(2));
        assert_eq!(broadcasts.progress(number).unwrap().stage, Stage::Cancelled);
    }

    #[test]
    fn the_number_of_broadcasts_is_bounded() {
        let broadcasts = Broadcasts::new(1);
        let running: Vec<_> = (0..RUNNING_MAX).map(|_| broadcasts.begin().unwrap()).collect();
        assert_eq!(broadcasts.begin(), None);
        broadcasts.report(running[3], WorkerId(0), over(1));
        for _ in RUNNING_MAX..=KNOWN_MAX {
            let number = broadcasts.begin().unwrap();
            broadcasts.report(number, WorkerId(0), over(1));
        }
        // The oldest that was over had to go; those that run stay.
        assert_eq!(broadcasts.progress(running[3]), None);
        assert!(running.iter().filter(|&&number| number != running[3]).all(|&n| broadcasts.progress(n).is_some()));
        assert_eq!(broadcasts.known.lock().unwrap().broadcasts.len(), KNOWN_MAX);
    }
}

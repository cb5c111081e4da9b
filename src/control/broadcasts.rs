//! Broadcasts under way and those that ended lately: what each worker last told of its share, and in a fleet each other gateway of
//! its part.
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
    /// What other gateways do of it. `None`: it is about this one alone.
    parts: Option<Vec<Part>>,
}

/// What another gateway does of a broadcast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Its name.
    pub(super) node: String,
    /// How it is.
    pub(super) state: PartState,
    /// What it last told.
    pub(super) sent: u64,
    /// What it last told.
    pub(super) refused: u64,
}

/// How another gateway's part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PartState {
    /// It has begun, under this id there, and does so.
    Begun {
        /// Its id there.
        id: String,
        /// What it does, as it last told.
        stage: Stage,
        /// Whether it answered when it was asked last.
        answers: bool,
    },
    /// It did not begin; why.
    NotBegun(String),
    /// It was told to begin and has not answered: it may have.
    Unsure,
}

impl Part {
    /// Whether more may come of it that it would tell.
    fn is_running(&self) -> bool {
        matches!(self.state, PartState::Begun { stage: Stage::Running, answers: true, .. })
    }

    /// Whether it is known to be over, and how.
    fn is_known(&self) -> bool {
        matches!(self.state, PartState::Begun { stage: Stage::Done | Stage::Cancelled, .. })
    }
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
    /// What it does now, everywhere.
    pub(super) stage: Stage,
    /// What it does at this gateway.
    pub(super) here: Stage,
    /// By worker.
    pub(super) shares: Vec<Share>,
    /// What other gateways do of it. `None`: it is about this one alone.
    pub(super) parts: Option<Vec<Part>>,
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
    /// Of a whole fleet: it is over wherever that is known, and there are gateways that did not begin or do not answer.
    Partial,
}

impl Stage {
    /// The word of the API.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Stage::Running => "running",
            Stage::Done => "done",
            Stage::Cancelled => "cancelled",
            Stage::Partial => "partial",
        }
    }

    /// What it does that another gateway says so.
    pub(super) fn of_label(label: &str) -> Option<Self> {
        [Stage::Running, Stage::Done, Stage::Cancelled].into_iter().find(|stage| stage.label() == label)
    }
}

impl Broadcast {
    /// What it does at this gateway.
    fn stage_here(&self) -> Stage {
        match (self.shares.iter().all(|share| share.is_over), self.is_cancelled) {
            (false, _) => Stage::Running,
            (true, false) => Stage::Done,
            (true, true) => Stage::Cancelled,
        }
    }

    /// What it does everywhere.
    fn stage(&self) -> Stage {
        let (here, parts) = (self.stage_here(), self.parts.as_deref().unwrap_or_default());
        if here == Stage::Running || parts.iter().any(Part::is_running) {
            Stage::Running
        } else if parts.iter().all(Part::is_known) {
            let is_cut = |part: &Part| matches!(part.state, PartState::Begun { stage: Stage::Cancelled, .. });
            if parts.iter().any(is_cut) { Stage::Cancelled } else { here }
        } else {
            Stage::Partial
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
        let running = |broadcast: &&Broadcast| broadcast.stage_here() == Stage::Running;
        if known.broadcasts.values().filter(running).count() >= RUNNING_MAX {
            return None;
        }
        if known.broadcasts.len() >= KNOWN_MAX {
            let oldest = known.broadcasts.iter().find(|(_, broadcast)| broadcast.stage_here() != Stage::Running);
            let oldest = *oldest.expect("fewer run than are known").0;
            known.broadcasts.remove(&oldest);
        }
        let number = known.next;
        known.next += 1;
        let shares = vec![Share::default(); self.workers];
        known.broadcasts.insert(number, Broadcast { shares, is_cancelled: false, parts: None });
        Some(number)
    }

    /// What other gateways do of it, as it is known now. Forgotten ones have none.
    pub(super) fn set_parts(&self, number: u64, parts: Vec<Part>) {
        let mut known = self.known.lock().expect("no holder panics");
        if let Some(broadcast) = known.broadcasts.get_mut(&number) {
            broadcast.parts = Some(parts);
        }
    }

    /// What another gateway told of its part; `None`: it does not answer. What is over stays over.
    pub(super) fn report_part(&self, number: u64, node: &str, told: Option<(Stage, u64, u64)>) {
        let mut known = self.known.lock().expect("no holder panics");
        let parts = known.broadcasts.get_mut(&number).and_then(|broadcast| broadcast.parts.as_mut());
        let Some(part) = parts.into_iter().flatten().find(|part| part.node == node) else { return };
        let PartState::Begun { stage, answers, .. } = &mut part.state else { return };
        *answers = told.is_some();
        if let Some((now, sent, refused)) = told
            && *stage == Stage::Running
        {
            (*stage, part.sent, part.refused) = (now, sent, refused);
        }
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
        if broadcast.stage_here() != Stage::Running {
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
        let Broadcast { shares, parts, .. } = broadcast;
        let (stage, here) = (broadcast.stage(), broadcast.stage_here());
        Some(Progress { stage, here, shares: shares.clone(), parts: parts.clone() })
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
        let shares = vec![over(3), over(4)];
        assert_eq!(progress, Progress { stage: Stage::Done, here: Stage::Done, shares, parts: None });
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
    fn one_of_a_fleet_is_done_when_every_gateway_is_and_partial_where_that_is_not_known() {
        let broadcasts = Broadcasts::new(1);
        let number = broadcasts.begin().unwrap();
        let begun = |node: &str| Part {
            node: node.to_owned(),
            state: PartState::Begun { id: "7-1".to_owned(), stage: Stage::Running, answers: true },
            sent: 0,
            refused: 0,
        };
        let stage = || broadcasts.progress(number).unwrap().stage;
        broadcasts.set_parts(number, vec![begun("b"), begun("c")]);
        broadcasts.report(number, WorkerId(0), over(3));
        assert_eq!(stage(), Stage::Running, "others are not over");
        broadcasts.report_part(number, "b", Some((Stage::Done, 5, 0)));
        assert_eq!(stage(), Stage::Running);
        broadcasts.report_part(number, "c", None);
        assert_eq!(stage(), Stage::Partial, "c does not answer");
        broadcasts.report_part(number, "c", Some((Stage::Running, 2, 0)));
        assert_eq!(stage(), Stage::Running);
        broadcasts.report_part(number, "c", Some((Stage::Done, 4, 1)));
        assert_eq!(stage(), Stage::Done);
        // A gateway that has died since takes back nothing, and neither does one that has forgotten it.
        broadcasts.report_part(number, "c", None);
        assert_eq!(stage(), Stage::Done);
        let parts = broadcasts.progress(number).unwrap().parts.unwrap();
        assert_eq!(parts.iter().map(|part| (part.sent, part.refused)).collect::<Vec<_>>(), [(5, 0), (4, 1)]);
        // Two that are not known to have told theirs.
        for state in [PartState::Unsure, PartState::NotBegun("busy".to_owned())] {
            broadcasts.set_parts(number, vec![Part { state, ..begun("b") }]);
            assert_eq!(stage(), Stage::Partial);
        }
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

//! Whether a worker gets on: with what it is told, and with what it has to tell others.
//!
//! A loop that turns and takes nothing is as stuck as one that does not turn. So what counts as progress is not the turn but
//! what was done in it: the inbox was emptied or something was taken from it, and whoever waits for room in another's inbox was
//! given some.

use crate::time::Moment;

/// When each of them last got on, or had nothing to do.
pub(super) struct Progress {
    inbox: Moment,
    /// By worker: what waits for its inbox.
    outgoing: Vec<Moment>,
}

impl Progress {
    pub(super) fn new(workers: usize, now: Moment) -> Self {
        Self { inbox: now, outgoing: vec![now; workers] }
    }

    /// The inbox was looked at: it was found empty, or something was taken from it.
    pub(super) fn note_inbox(&mut self, now: Moment) {
        self.inbox = now;
    }

    /// Nothing waits for this worker's inbox, or some of it has just gone there.
    pub(super) fn note_outgoing(&mut self, worker: usize, now: Moment) {
        self.outgoing[worker] = now;
    }

    /// Since when whatever waits longest has waited; the time of the latest look where nothing waits.
    pub(super) fn latest(&self) -> Moment {
        self.outgoing.iter().copied().fold(self.inbox, Moment::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_waits_longest_is_what_counts() {
        let at = Moment::from_micros;
        let mut progress = Progress::new(2, at(1));
        progress.note_inbox(at(5));
        progress.note_outgoing(0, at(5));
        progress.note_outgoing(1, at(5));
        assert_eq!(progress.latest(), at(5));
        // It turns, and takes nothing.
        progress.note_outgoing(0, at(9));
        progress.note_outgoing(1, at(9));
        assert_eq!(progress.latest(), at(5));
        progress.note_inbox(at(9));
        assert_eq!(progress.latest(), at(9));
        // One other worker takes nothing.
        progress.note_inbox(at(12));
        progress.note_outgoing(0, at(12));
        assert_eq!(progress.latest(), at(9));
    }
}

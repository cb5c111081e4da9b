//! How far a poll's answer can be trusted: a poll and the look at the clock behind it are two steps, and a process may be
//! stopped between them.

use std::time::Duration;

use crate::time::{Moment, TICK_MICROS};

/// One question to the poll: when it was asked, and how long it may wait.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub at: Moment,
    pub timeout: Duration,
}

impl Asked {
    /// The time for which its answer stands, when it is looked at `now`. An answer that is more than a tick late may
    /// have been given at any time since it was asked for: the process was stopped, or had no core, with the answer in
    /// its hands. (One that is not cannot make anybody overdue: no deadline lies before the end of the wait.)
    pub(super) fn answered_for(self, now: Moment) -> Moment {
        let late = now.since(self.at) > self.timeout + Duration::from_micros(TICK_MICROS);
        if late { self.at } else { now }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_comes_late_stands_for_when_it_was_asked_for() {
        let at = |millis: u64| Moment::from_micros(millis * 1_000);
        let asked = Asked { at: at(1_000), timeout: Duration::from_millis(500) };
        for prompt in [1_000, 1_100, 1_500, 1_600] {
            assert_eq!(asked.answered_for(at(prompt)), at(prompt));
        }
        for late in [1_601, 4_000] {
            assert_eq!(asked.answered_for(at(late)), at(1_000));
        }
    }
}

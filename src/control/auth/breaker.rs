//! Whether a service that does not answer is asked at all.
//!
//! ```text
//!            FAILURES_MAX in a row           its wait is over: one question
//!   Closed ───────────────────────▶ Open ───────────────────────────────▶ Trying
//!     ▲                               ▲                                      │
//!     │                               └──── failed: the wait is doubled ─────┤
//!     └──────────────────────────────── answered ────────────────────────────┘
//! ```

use std::time::{Duration, Instant};

/// Failures in a row after which nobody is asked.
const FAILURES_MAX: u32 = 5;
/// For how long at first.
const WAIT_FIRST: Duration = Duration::from_secs(1);
/// For how long at most.
const WAIT_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant, wait: Duration },
    Trying { wait: Duration },
}

#[derive(Debug)]
pub(super) struct Breaker(State);

impl Breaker {
    pub(super) fn new() -> Self {
        Self(State::Closed { failures: 0 })
    }

    /// Whether it may be asked now. Once its wait is over, one question may.
    pub(super) fn lets_through(&mut self, now: Instant) -> bool {
        match self.0 {
            State::Closed { .. } => true,
            State::Open { until, wait } if until <= now => {
                self.0 = State::Trying { wait };
                true
            }
            State::Open { .. } | State::Trying { .. } => false,
        }
    }

    /// Whether nobody is asked just now.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        match self.0 {
            State::Closed { .. } => false,
            State::Open { until, .. } => until > now,
            State::Trying { .. } => true,
        }
    }

    /// It has answered. Whether it had not before.
    pub(super) fn note_answer(&mut self) -> bool {
        let was_closed = matches!(self.0, State::Closed { .. });
        self.0 = State::Closed { failures: 0 };
        !was_closed
    }

    /// It has not. Whether nobody is asked from now on who would have been before.
    pub(super) fn note_failure(&mut self, now: Instant) -> bool {
        match self.0 {
            State::Closed { failures } if failures + 1 < FAILURES_MAX => {
                self.0 = State::Closed { failures: failures + 1 };
                false
            }
            State::Closed { .. } => {
                self.0 = State::Open { until: now + WAIT_FIRST, wait: WAIT_FIRST };
                true
            }
            State::Trying { wait } => {
                let wait = (wait * 2).min(WAIT_MAX);
                self.0 = State::Open { until: now + wait, wait };
                false
            }
            // A question from before.
            State::Open { .. } => false,
        }
    }

    /// For how long it asks nobody after the latest failure.
    #[cfg(test)]
    fn wait(&self) -> Option<Duration> {
        match self.0 {
            State::Closed { .. } => None,
            State::Open { wait, .. } | State::Trying { wait } => Some(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_failures_it_waits_longer_and_longer_and_one_question_finds_out() {
        let mut now = Instant::now();
        let mut breaker = Breaker::new();
        for failure in 1..=FAILURES_MAX {
            assert!(breaker.lets_through(now));
            assert_eq!(breaker.note_failure(now), failure == FAILURES_MAX);
        }
        let mut waits = Vec::new();
        for _ in 0..8 {
            assert!(breaker.is_open(now) && !breaker.lets_through(now));
            let wait = breaker.wait().unwrap();
            waits.push(wait.as_secs());
            now += wait;
            assert!(!breaker.is_open(now));
            assert!(breaker.lets_through(now), "one question");
            assert!(!breaker.lets_through(now), "and no other");
            assert!(!breaker.note_failure(now));
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30, 30]);
        now += WAIT_MAX;
        assert!(breaker.lets_through(now));
        assert!(breaker.note_answer(), "it is back");
        assert!(!breaker.is_open(now) && breaker.lets_through(now) && breaker.lets_through(now));
        // Failures that answers lie between are none in a row.
        for _ in 0..20 {
            assert!(!breaker.note_failure(now));
            assert!(!breaker.note_answer());
        }
    }
}

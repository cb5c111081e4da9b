//! How many rows are written in a second: a storm of devices is not a storm of writes.

use std::time::{Duration, Instant};

/// So much of a second may be written at once.
const BURST: f64 = 0.1;

/// What may be written by now.
#[derive(Debug)]
pub struct Pace {
    per_second: f64,
    allowance: f64,
    at: Instant,
}

impl Pace {
    /// Up to so many in a second, from now on.
    pub fn new(per_second: u32, now: Instant) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, allowance: (per_second * BURST).max(1.0), at: now }
    }

    /// When the next one may be written; not later than now: at once.
    pub fn due(&mut self, now: Instant) -> Instant {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.allowance = (self.allowance + passed * self.per_second).min((self.per_second * BURST).max(1.0));
        let missing = (1.0 - self.allowance).max(0.0);
        now + Duration::from_secs_f64(missing / self.per_second)
    }

    /// One was written.
    pub fn take(&mut self) {
        self.allowance -= 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_written_than_may_be() {
        let start = Instant::now();
        let (mut pace, mut now, mut written) = (Pace::new(1_000, start), start, 0);
        while now < start + Duration::from_secs(5) {
            let due = pace.due(now);
            if due > now {
                now = due;
            } else {
                pace.take();
                written += 1;
            }
        }
        assert!((5_000..=5_110).contains(&written), "{written}");
        // What was not used is not saved.
        now += Duration::from_mins(1);
        let mut at_once = 0;
        while pace.due(now) <= now {
            pace.take();
            at_once += 1;
        }
        assert_eq!(at_once, 100);
    }
}

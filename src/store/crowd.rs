//! Whether a group of the store waits for company (decision D19).
//!
//! Whoever publishes alone, one message after the other, is to wait for nothing but the disk. Where many publish, each fsync, and
//! each wake of the threads that tell about it, is to serve as many as come within [`GATHER`]. How many were in the last group does
//! not tell them apart: a fast disk makes small groups of a large crowd. So it goes by both: how many come within that time, and that
//! groups hold more than one.
//!
//! A crowd that comes whatever the store does is gathered for longer still, since each group costs the same: for [`GATHER_MORE`] at a time,
//! until the group is worth its cost ([`WORTH`]) or was gathered for [`STEPS`] of these. One that waits for its acknowledgements before it goes
//! on (a bridge with twenty messages in flight) brings nothing more in it and would only be slowed down: where not half as many came as the
//! rate promises, it is not tried again for [`TRIED_AFTER`] groups.

use std::time::{Duration, Instant};

/// While many come, a group is gathered for so long before it is written.
pub(super) const GATHER: Duration = Duration::from_millis(2);
/// Then it is gathered for so much longer at a time,
pub(super) const GATHER_MORE: Duration = Duration::from_millis(5);
/// so often at most,
pub(super) const STEPS: u32 = 3;
/// and until so many are together.
pub(super) const WORTH: usize = 200;
/// After how many groups it is tried again whether more come then.
const TRIED_AFTER: u8 = 32;
/// So many within [`GATHER`] are many.
const MANY: f64 = 8.0;
/// Whoever is alone makes groups of one.
const COMPANY: f64 = 1.5;
/// How much a group counts against those before it.
const WEIGHT: f64 = 0.25;

/// What has come while a group was gathered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Came {
    /// How many, in that time.
    pub(super) count: usize,
    /// The group is worth its cost by now, or somebody waits for it to be written.
    pub(super) is_enough: bool,
}

/// What the latest groups were like.
#[derive(Debug)]
pub(super) struct Crowd {
    latest: Instant,
    in_group: f64,
    in_gather: f64,
    /// Groups for which it is not gathered for longer.
    untried: u8,
}

impl Crowd {
    /// Nobody has come yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { latest: now, in_group: 0.0, in_gather: 0.0, untried: 0 }
    }

    /// A group of so many was taken.
    pub(super) fn note(&mut self, count: usize, now: Instant) {
        // Two groups at the same instant say nothing of a rate.
        let since = now.duration_since(self.latest).max(GATHER / 16);
        self.latest = now;
        let (count, part) = (count as f64, GATHER.as_secs_f64() / since.as_secs_f64());
        self.in_group += (count - self.in_group) * WEIGHT;
        self.in_gather += (count * part - self.in_gather) * WEIGHT;
    }

    /// Whether the next group is to be gathered.
    pub(super) fn is_many(&self) -> bool {
        self.in_gather >= MANY && self.in_group >= COMPANY
    }

    /// Gathers a group: `wait` waits for so long, and says what has come then. `is_long`: as long as it pays, and not for [`GATHER`] alone.
    pub(super) fn gather(&mut self, is_long: bool, mut wait: impl FnMut(Duration) -> Came) {
        let mut came = wait(GATHER);
        if !is_long || !self.is_tried() {
            return;
        }
        for _ in 0..STEPS {
            if came.is_enough {
                return;
            }
            came = wait(GATHER_MORE);
            if !self.goes_on(came.count) {
                self.untried = TRIED_AFTER;
                return;
            }
        }
    }

    fn is_tried(&mut self) -> bool {
        let is_tried = self.untried == 0;
        self.untried = self.untried.saturating_sub(1);
        is_tried
    }

    /// So many came within [`GATHER_MORE`]: whether they come whatever the store does.
    fn goes_on(&self, came: usize) -> bool {
        let promised = self.in_gather * GATHER_MORE.as_secs_f64() / GATHER.as_secs_f64();
        came as f64 >= (promised / 2.0).max(MANY / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether groups are gathered in the end, where `per_second` come and a group takes `disk` to write.
    fn gathers(per_second: f64, disk: Duration) -> bool {
        let mut now = Instant::now();
        let (mut crowd, mut waiting) = (Crowd::new(now), 0.0);
        for _ in 0..200 {
            let spent = disk + if crowd.is_many() { GATHER } else { Duration::ZERO };
            now += spent;
            waiting += per_second * spent.as_secs_f64();
            crowd.note(waiting as usize, now);
            waiting -= waiting.floor();
        }
        crowd.is_many()
    }

    #[test]
    fn many_are_gathered_whatever_the_disk() {
        for micros in [300, 1_000, 5_000, 30_000] {
            assert!(gathers(8_000.0, Duration::from_micros(micros)), "a disk that takes {micros} us");
            assert!(gathers(100_000.0, Duration::from_micros(micros)));
            assert!(!gathers(500.0, Duration::from_micros(micros)));
        }
    }

    #[test]
    fn whoever_is_alone_waits_for_the_disk_alone_however_fast_it_is() {
        let mut now = Instant::now();
        let mut crowd = Crowd::new(now);
        for _ in 0..1_000 {
            now += Duration::from_micros(100);
            crowd.note(1, now);
            assert!(!crowd.is_many());
        }
    }

    /// How often each of 990 groups of a crowd that is known is waited for, where so many come within the first time and so many within each
    /// that follows.
    fn waits(first: usize, then: usize, is_long: bool) -> Vec<usize> {
        let (mut now, mut crowd) = (Instant::now(), Crowd::new(Instant::now()));
        let mut gather = || {
            let (mut waits, mut all) = (0, 0);
            // What the disk takes: whoever is not gathered has come by then.
            now += GATHER / 4;
            if !crowd.is_many() {
                crowd.note(first, now);
                return 1;
            }
            crowd.gather(is_long, |time| {
                (waits, now) = (waits + 1, now + time);
                let count = if waits == 1 { first } else { then };
                all += count;
                Came { count, is_enough: all >= WORTH }
            });
            crowd.note(all, now);
            waits
        };
        (0..1_020).map(|_| gather()).skip(30).collect()
    }

    #[test]
    fn a_crowd_that_comes_whatever_the_store_does_is_gathered_until_it_is_worth_it() {
        assert!(waits(10, 25, true).iter().all(|waits| *waits == 4), "17 ms, and no longer");
        assert!(waits(40, 100, true).iter().all(|waits| *waits == 3), "as many as are worth it");
        assert!(waits(400, 1_000, true).iter().all(|waits| *waits == 1));
        assert!(waits(10, 25, false).iter().all(|waits| *waits == 1), "where it is not to be long");
    }

    #[test]
    fn who_waits_for_what_was_said_before_is_not_waited_for() {
        // Each waits for its acknowledgement, whoever else comes: it is tried once in 33 groups.
        for trickle in [0, 5] {
            let waits = waits(20, trickle, true);
            assert_eq!(waits.iter().filter(|waits| **waits > 1).count(), 30, "{trickle}");
            assert!(waits.iter().all(|waits| *waits <= 2), "{trickle}");
        }
    }

    #[test]
    fn a_crowd_that_has_gone_is_forgotten() {
        let mut now = Instant::now();
        let mut crowd = Crowd::new(now);
        for _ in 0..50 {
            now += GATHER;
            crowd.note(60, now);
        }
        assert!(crowd.is_many());
        for _ in 0..50 {
            now += Duration::from_millis(50);
            crowd.note(1, now);
        }
        assert!(!crowd.is_many());
    }
}

//! Whether a group of the store waits for company (decision D7).
//!
//! Whoever publishes alone, one message after the other, is to wait for nothing but the disk. Where many publish, each fsync, and
//! each wake of the threads that tell about it, is to serve as many as come within [`GATHER`]. How many were in the last group does
//! not tell them apart: a fast disk makes small groups of a large crowd. So it goes by both: how many come within that time, and that
//! groups hold more than one.
//!
//! A crowd that comes whatever the store does is gathered for longer still, since each group costs the same: for [`GATHER_MORE`] at a time,
//! until the group is worth its cost ([`WORTH`]) or was gathered for [`STEPS`] of these. One that waits for its acknowledgements before it goes
//! on (a bridge with twenty messages in flight) brings nothing more in it and would only be slowed down: where too few came, it is not tried
//! again for [`TRIED_AFTER`] groups.

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

    /// Whether the next group is gathered for [`GATHER_MORE`] once it was for [`GATHER`].
    pub(super) fn is_tried(&mut self) -> bool {
        let is_tried = self.untried == 0;
        self.untried = self.untried.saturating_sub(1);
        is_tried
    }

    /// So many came within [`GATHER_MORE`]. Whether they were enough to go on.
    pub(super) fn note_more(&mut self, came: usize) -> bool {
        let is_enough = came as f64 >= MANY / 2.0;
        if !is_enough {
            self.untried = TRIED_AFTER;
        }
        is_enough
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

    /// Of 1,000 groups, how many are gathered for longer, where so many come within [`GATHER_MORE`].
    fn gathered_for_longer(came: usize) -> usize {
        let mut crowd = Crowd::new(Instant::now());
        let is_longer = |crowd: &mut Crowd| {
            let is_tried = crowd.is_tried();
            if is_tried {
                crowd.note_more(came);
            }
            is_tried
        };
        (0..1_000).filter(|_| is_longer(&mut crowd)).count()
    }

    #[test]
    fn who_waits_for_what_was_said_before_is_not_waited_for() {
        assert_eq!(gathered_for_longer(15), 1_000, "they come whatever the store does");
        assert_eq!(gathered_for_longer(0), 31, "each waits for its acknowledgement: tried once in 33 groups");
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

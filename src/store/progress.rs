//! How far one consumer has come: what it was handed, what it has acknowledged, and what was lost to it.
//!
//! ```text
//!   acknowledged, or missed │ handed out: each range until a time │ not yet
//!   ────────────────────────┼──────┬────────┬────────┬────────────┼──────────────▶ seq
//!                        cursor   leased   ahead    leased       next         head
//! ```
//!
//! The cursor moves by acknowledgement only. Several readers of one consumer share it: each is handed a range of its
//! own, and a range that is not acknowledged in time is handed out again. What is acknowledged behind a range that is
//! not waits in `ahead`. Pure: the time is an argument, and nothing here is stored.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Ranges that may be handed out or acknowledged ahead at a time: what several readers of one consumer can hold.
pub(super) const RANGES_MAX: usize = 1_024;

/// Events `first..=last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub first: u64,
    /// The last, not before the first.
    pub last: u64,
}

/// What an acknowledgement altered of the ranges ahead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Altered {
    /// First and last of those that are no more.
    pub(super) gone: Vec<(u64, u64)>,
    pub(super) new: Option<Range>,
}

/// One consumer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Every event up to this one is acknowledged or was missed.
    pub(super) cursor: u64,
    /// Events that retention dropped before they were acknowledged.
    pub(super) missed: u64,
    /// Of these, what no reader was told yet.
    pub(super) untold: u64,
    /// Acknowledged beyond the cursor: first to last, apart from each other.
    pub(super) ahead: BTreeMap<u64, u64>,
    /// Handed out and not acknowledged: first to last, and until when.
    leased: BTreeMap<u64, (u64, Instant)>,
}

impl Progress {
    /// One that has acknowledged up to `cursor`.
    pub(super) fn at(cursor: u64) -> Self {
        Self { cursor, ..Self::default() }
    }

    /// The next range for a reader, of at most `count` events up to `head`: one whose time is over before a new one.
    /// `None`: there is nothing, or so many ranges are out that some must come back first.
    pub(super) fn hand_out(&mut self, head: u64, count: u64, now: Instant, lease: Duration) -> Option<Range> {
        let expired =
            self.leased.iter().find(|(_, (_, until))| *until <= now).map(|(&first, &(last, _))| (first, last));
        if let Some((first, last)) = expired {
            let end = last.min(first + count - 1);
            self.leased.remove(&first);
            if end < last {
                self.leased.insert(end + 1, (last, now));
            }
            self.leased.insert(first, (end, now + lease));
            return Some(Range { first, last: end });
        }
        if self.leased.len() + self.ahead.len() >= RANGES_MAX {
            return None;
        }
        let first = self.next_free();
        // Up to what was handed out or acknowledged behind it: a seek can leave such islands.
        let island = self.leased.range(first..).next().map(|(&next, _)| next);
        let island = island.into_iter().chain(self.ahead.range(first..).next().map(|(&next, _)| next)).min();
        let last = head.min(first + count - 1).min(island.map_or(u64::MAX, |next| next - 1));
        if last < first {
            return None;
        }
        self.leased.insert(first, (last, now + lease));
        Some(Range { first, last })
    }

    /// The first event that is neither acknowledged nor handed out.
    fn next_free(&self) -> u64 {
        let mut free = self.cursor + 1;
        loop {
            let leased = self.leased.get(&free).map(|&(last, _)| last);
            match leased.or_else(|| self.ahead.get(&free).copied()) {
                Some(last) => free = last + 1,
                None => return free,
            }
        }
    }

    /// When the first range is due to be handed out again.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.leased.values().map(|&(_, until)| until).min()
    }

    /// `range` is acknowledged; what it names that was acknowledged before stays so. Gives back what that alters of the ranges ahead.
    pub(super) fn acknowledge(&mut self, range: Range) -> Altered {
        self.release(range);
        let mut first = range.first.max(self.cursor + 1);
        let mut last = range.last;
        if last < first {
            return Altered::default();
        }
        // Merged with all that it touches.
        let gone = self.touching(first, last);
        for &(start, end) in &gone {
            self.ahead.remove(&start);
            first = first.min(start);
            last = last.max(end);
        }
        if first == self.cursor + 1 {
            self.cursor = last;
            return Altered { gone, new: None };
        }
        self.ahead.insert(first, last);
        Altered { gone, new: Some(Range { first, last }) }
    }

    /// Ranges ahead, first and last, that one acknowledgement takes in.
    fn touching(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        // They lie in order and apart: from the last of them back to the first.
        let from_last = self.ahead.range(..=last.saturating_add(1)).rev();
        from_last.take_while(|&(_, &end)| end + 1 >= first).map(|(&first, &end)| (first, end)).collect()
    }

    /// Whether `range` can be acknowledged: it would not be one more range ahead than may be.
    pub(super) fn has_room_for(&self, range: Range) -> bool {
        let first = range.first.max(self.cursor + 1);
        self.ahead.len() < RANGES_MAX
            || first == self.cursor + 1
            || range.last < first
            || !self.touching(first, range.last).is_empty()
    }

    /// How many events up to `head` are not acknowledged.
    pub(super) fn waiting(&self, head: u64) -> u64 {
        let ahead: u64 = self.ahead.iter().map(|(first, last)| last - first + 1).sum();
        head.saturating_sub(self.cursor).saturating_sub(ahead)
    }

    /// Nobody holds anything of `range` any more: it is the next reader's.
    pub(super) fn release(&mut self, range: Range) {
        let held: Vec<_> = self
            .leased
            .range(..=range.last)
            .filter(|(_, (last, _))| *last >= range.first)
            .map(|(&first, &held)| (first, held))
            .collect();
        for (first, (last, until)) in held {
            self.leased.remove(&first);
            if first < range.first {
                self.leased.insert(first, (range.first - 1, until));
            }
            if last > range.last {
                self.leased.insert(range.last + 1, (last, until));
            }
        }
    }

    /// These events are gone, in order of their numbers: those that were not acknowledged are missed. Gives back how many.
    pub(super) fn miss(&mut self, gone: &[u64]) -> u64 {
        let gone = &gone[gone.partition_point(|seq| *seq <= self.cursor)..];
        let mut missed = gone.len() as u64;
        for (first, last) in &self.ahead {
            missed -= (gone.partition_point(|seq| seq <= last) - gone.partition_point(|seq| seq < first)) as u64;
        }
        self.missed += missed;
        self.untold += missed;
        missed
    }

    /// Nothing is left up to `last`.
    pub(super) fn pass(&mut self, last: u64) {
        if last > self.cursor {
            self.acknowledge(Range { first: self.cursor + 1, last });
        }
    }

    /// Begins anew behind `cursor`: what was handed out is nobody's.
    pub(super) fn seek(&mut self, cursor: u64) {
        self.cursor = cursor;
        self.ahead.clear();
        self.leased.clear();
    }

    /// How many events were missed since somebody was told last.
    pub(super) fn take_untold(&mut self) -> u64 {
        std::mem::take(&mut self.untold)
    }

    /// Panics when the parts disagree. For tests.
    #[cfg(test)]
    fn check_invariants(&self) {
        let mut end = self.cursor;
        for (&first, &last) in &self.ahead {
            assert!(first > end + 1, "acknowledged ranges touch or overlap: {self:?}");
            assert!(last >= first);
            end = last;
        }
        let mut end = self.cursor;
        for (&first, &(last, _)) in &self.leased {
            assert!(first > end, "handed out twice: {self:?}");
            assert!(last >= first);
            assert!(self.ahead.iter().all(|(&a, &b)| last < a || first > b), "handed out and acknowledged: {self:?}");
            end = last;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const LEASE: Duration = Duration::from_secs(30);

    fn range(first: u64, last: u64) -> Range {
        Range { first, last }
    }

    #[test]
    fn two_readers_share_and_the_cursor_waits_for_the_slower() {
        let (mut progress, now) = (Progress::default(), Instant::now());
        assert_eq!(progress.hand_out(100, 10, now, LEASE), Some(range(1, 10)));
        assert_eq!(progress.hand_out(100, 10, now, LEASE), Some(range(11, 20)));
        progress.acknowledge(range(11, 20));
        assert_eq!(progress.cursor, 0);
        progress.acknowledge(range(1, 10));
        assert_eq!((progress.cursor, progress.ahead.len()), (20, 0));
    }

    #[test]
    fn ranges_ahead_of_the_cursor_are_bounded_and_each_costs_what_it_alters() {
        let mut progress = Progress::default();
        let island = |number: u64| range(2 * number, 2 * number);
        for number in 1..=RANGES_MAX as u64 {
            assert!(progress.has_room_for(island(number)));
            let altered = progress.acknowledge(island(number));
            assert_eq!(altered, Altered { gone: Vec::new(), new: Some(island(number)) });
        }
        // One more is too many; what joins two, what the cursor reaches, and what was said before is not.
        assert!(!progress.has_room_for(island(RANGES_MAX as u64 + 1)));
        assert!([range(3, 3), range(1, 1), range(4, 4), range(1, 9_000)].iter().all(|one| progress.has_room_for(*one)));
        let joined = progress.acknowledge(range(5, 5));
        assert_eq!(joined, Altered { gone: vec![(6, 6), (4, 4)], new: Some(range(4, 6)) });
        let reached = progress.acknowledge(range(1, 1));
        assert_eq!((reached, progress.cursor), (Altered { gone: vec![(2, 2)], new: None }, 2));
        assert!(progress.has_room_for(island(RANGES_MAX as u64 + 1)));
        progress.check_invariants();
    }

    #[test]
    fn what_is_not_acknowledged_in_time_is_handed_out_again() {
        let (mut progress, now) = (Progress::default(), Instant::now());
        assert_eq!(progress.hand_out(5, 10, now, LEASE), Some(range(1, 5)));
        assert_eq!(progress.hand_out(5, 10, now, LEASE), None);
        assert_eq!(progress.next_due(), Some(now + LEASE));
        // In parts, when the next reader wants fewer.
        assert_eq!(progress.hand_out(5, 2, now + LEASE, LEASE), Some(range(1, 2)));
        assert_eq!(progress.hand_out(5, 10, now + LEASE, LEASE), Some(range(3, 5)));
        progress.check_invariants();
    }

    #[test]
    fn what_retention_drops_is_counted_once_and_told_once() {
        let (mut progress, now) = (Progress::default(), Instant::now());
        progress.hand_out(100, 10, now, LEASE);
        progress.hand_out(100, 10, now, LEASE);
        progress.acknowledge(range(11, 20));
        let drop_through = |progress: &mut Progress, last| {
            let missed = progress.miss(&(1..=last).collect::<Vec<_>>());
            progress.pass(last);
            missed
        };
        assert_eq!(drop_through(&mut progress, 15), 10);
        assert_eq!((progress.cursor, progress.missed), (20, 10));
        assert_eq!(drop_through(&mut progress, 18), 0);
        assert_eq!((progress.take_untold(), progress.take_untold()), (10, 0));
        // One in the middle is missed when it goes, and not again with those before it.
        assert_eq!((progress.miss(&[20, 25]), progress.miss(&[21, 22])), (1, 2));
        progress.pass(26);
        assert_eq!((progress.cursor, progress.missed), (26, 13));
        progress.check_invariants();
    }

    /// Random readers, against a set of numbers.
    #[test]
    fn whatever_readers_do_each_event_is_acknowledged_or_out_or_to_come() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut progress, mut now, mut head) = (Progress::default(), Instant::now(), 0);
            let (mut out, mut done): (Vec<Range>, BTreeSet<u64>) = (Vec::new(), BTreeSet::new());
            for _ in 0..300 {
                match random.u8(..6) {
                    0 => head += random.u64(..20),
                    1 | 2 => out.extend(progress.hand_out(head, random.u64(1..8), now, LEASE)),
                    3 if !out.is_empty() => {
                        let range = out.swap_remove(random.usize(..out.len()));
                        progress.acknowledge(range);
                        done.extend(range.first..=range.last);
                    }
                    4 => now += Duration::from_secs(random.u64(..20)),
                    _ => {
                        let dropped = random.u64(..=head);
                        let before = progress.cursor;
                        let lost = (before + 1..=dropped).filter(|seq| !done.contains(seq)).count() as u64;
                        assert_eq!(progress.miss(&(1..=dropped).collect::<Vec<_>>()), lost, "seed {seed}");
                        progress.pass(dropped);
                        done.extend(1..=dropped);
                    }
                }
                progress.check_invariants();
                let cursor = (1..=u64::MAX).find(|seq| !done.contains(seq)).unwrap() - 1;
                assert_eq!(progress.cursor, cursor, "seed {seed}");
            }
            // Nothing is forgotten: a patient reader gets all the rest.
            now += LEASE * 2;
            while let Some(range) = progress.hand_out(head, 1_000, now, LEASE) {
                progress.acknowledge(range);
            }
            assert_eq!(progress.cursor, head.max(progress.cursor), "seed {seed}");
        }
    }
}

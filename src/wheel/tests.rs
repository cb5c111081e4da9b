//! The wheel against a sorted map, and what a single call may cost.

use std::collections::BTreeSet;

use super::*;

/// The wheel beside the plainest thing that does the same, on unwrapped time.
struct Pair {
    wheel: Wheel,
    armed: BTreeSet<(u64, u32)>,
    deadlines: Vec<Option<u64>>,
    now: u64,
}

impl Pair {
    fn new(now: u64, indices: usize) -> Self {
        let wheel = Wheel::new(Tick(now as u32));
        Self { wheel, armed: BTreeSet::new(), deadlines: vec![None; indices], now }
    }

    fn arm(&mut self, index: u32, deadline: u64) {
        self.forget(index);
        self.armed.insert((deadline, index));
        self.deadlines[index as usize] = Some(deadline);
        self.wheel.arm(index, Tick(deadline as u32));
    }

    fn cancel(&mut self, index: u32) {
        self.forget(index);
        self.wheel.cancel(index);
    }

    fn forget(&mut self, index: u32) -> Option<u64> {
        let deadline = self.deadlines[index as usize].take()?;
        assert!(self.armed.remove(&(deadline, index)));
        Some(deadline)
    }

    fn earliest(&self) -> Option<u64> {
        self.armed.first().map(|&(deadline, _)| deadline)
    }

    /// One call; every index that comes out must be due, and none may be left behind when the wheel says it is done.
    fn expire(&mut self, limit: usize) -> bool {
        let mut due = Vec::new();
        let more = self.wheel.expire(Tick(self.now as u32), limit, &mut due);
        assert!(due.len() <= limit);
        for index in due {
            let deadline = self.forget(index).expect("fired, and not armed");
            assert!(deadline <= self.now, "index {index} fired {} ticks early", deadline - self.now);
        }
        if !more {
            assert!(self.earliest().is_none_or(|earliest| earliest > self.now), "a due entry was left behind");
        }
        more
    }

    fn check(&self) {
        self.wheel.check_invariants();
        assert_eq!(self.wheel.len(), self.armed.len());
        for (index, &deadline) in self.deadlines.iter().enumerate() {
            assert_eq!(self.wheel.deadline(index as u32), deadline.map(|deadline| Tick(deadline as u32)));
        }
        self.check_next();
    }

    fn check_next(&self) {
        let Some(earliest) = self.earliest() else { return assert_eq!(self.wheel.next(), None) };
        let next = self.wheel.next().expect("something is armed");
        // Overdue entries make the wheel's time the answer, which is not later than `now`.
        assert!(!next.is_after(Tick(earliest.max(self.now) as u32)), "woken too late");
    }
}

/// A distance in ticks with every level of the wheel as likely as the others.
fn random_ahead(random: &mut fastrand::Rng) -> u64 {
    let bits = random.u32(0..=30);
    random.u64(0..1 << bits)
}

fn seed() -> u64 {
    let seed = std::env::var("WHEEL_SEED").ok().map(|text| text.parse().expect("WHEEL_SEED is a number"));
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("replay with WHEEL_SEED={seed}");
    seed
}

#[test]
fn agrees_with_a_sorted_map_under_random_operations() {
    const INDICES: u32 = 700;
    let mut random = fastrand::Rng::with_seed(seed());
    for _ in 0..10 {
        // Just before the wrap, or anywhere.
        let base = 1 << 32;
        let start = if random.bool() { base - random.u64(0..3_000) } else { base + random.u64(0..base) };
        let mut pair = Pair::new(start, INDICES as usize);
        let mut more = false;
        for operation in 0..20_000 {
            match random.u32(0..100) {
                0..55 => {
                    let ahead = random_ahead(&mut random);
                    let deadline = if random.u32(0..20) == 0 { pair.now - ahead.min(5_000) } else { pair.now + ahead };
                    pair.arm(random.u32(0..INDICES), deadline);
                }
                55..65 => pair.cancel(random.u32(0..INDICES)),
                65..90 => {
                    pair.now += random.u64(0..3);
                    more = pair.expire(random.usize(0..40));
                }
                90..97 => {
                    pair.now += random_ahead(&mut random) >> random.u32(0..16);
                    more = pair.expire(random.usize(0..200));
                }
                _ => {
                    // Sleep until the wheel asks to be woken, as a loop does.
                    while pair.expire(usize::MAX) {}
                    if let Some(next) = pair.wheel.next() {
                        pair.now += u64::from(next.since(Tick(pair.now as u32)));
                    }
                    more = pair.expire(usize::MAX);
                }
            }
            pair.check_next();
            // The wheel's time may stay behind; distances must stay within half the circle.
            if more && pair.wheel.now.since(pair.wheel.time) > 1 << 29 {
                while pair.expire(1_000) {}
            }
            if operation % 50 == 0 {
                pair.check();
            }
        }
        while pair.expire(10_000) {}
        pair.now += i32::MAX as u64;
        while pair.expire(10_000) {}
        assert!(pair.wheel.is_empty() && pair.wheel.next().is_none());
        pair.check();
    }
}

#[test]
fn a_loop_that_sleeps_until_next_fires_everything_on_its_tick() {
    let mut random = fastrand::Rng::with_seed(seed());
    let mut pair = Pair::new((1 << 32) - 200_000, 400);
    for index in 0..400 {
        pair.arm(index, pair.now + 1 + random.u64(0..1 << 22));
    }
    while let Some(next) = pair.wheel.next() {
        pair.now += u64::from(next.since(Tick(pair.now as u32)));
        let earliest = pair.earliest().expect("next() without anything armed");
        assert!(earliest >= pair.now, "woken {} ticks late", pair.now - earliest);
        assert!(!pair.expire(usize::MAX));
        pair.check();
    }
    assert!(pair.armed.is_empty());
}

#[test]
fn the_furthest_deadline_fits() {
    for start in [0, 1, (1 << 28) - 1, u32::MAX - 5, i32::MAX as u32] {
        let mut wheel = Wheel::new(Tick(start));
        let furthest = Tick(start).plus(i32::MAX as u32);
        wheel.arm(3, furthest);
        wheel.check_invariants();
        let mut due = Vec::new();
        assert!(!wheel.expire(Tick(furthest.0.wrapping_sub(1)), usize::MAX, &mut due));
        assert!(due.is_empty());
        assert_eq!(wheel.next(), Some(furthest));
        assert!(!wheel.expire(furthest, usize::MAX, &mut due));
        assert_eq!(due, [3]);
        wheel.check_invariants();
    }
}

#[test]
fn what_is_overdue_fires_on_the_next_call_even_within_the_same_tick() {
    let mut wheel = Wheel::new(Tick(1_000));
    let mut due = Vec::new();
    wheel.arm(1, Tick(1_000));
    wheel.arm(2, Tick(3));
    assert_eq!(wheel.deadline(2), Some(Tick(3)));
    assert_eq!(wheel.next(), Some(Tick(1_000)));
    assert!(!wheel.expire(Tick(1_000), 10, &mut due));
    due.sort_unstable();
    assert_eq!(due, [1, 2]);
}

#[test]
fn an_index_can_be_armed_again_and_cancelled_twice() {
    let mut wheel = Wheel::new(Tick(0));
    wheel.cancel(9);
    assert!(!wheel.is_armed(9));
    wheel.arm(9, Tick(5));
    wheel.arm(9, Tick(500_000));
    assert_eq!((wheel.len(), wheel.deadline(9)), (1, Some(Tick(500_000))));
    wheel.check_invariants();
    wheel.cancel(9);
    wheel.cancel(9);
    assert_eq!((wheel.len(), wheel.next()), (0, None));
    wheel.check_invariants();
}

#[test]
fn heartbeats_within_a_hundred_seconds_are_never_cascaded() {
    let mut random = fastrand::Rng::with_seed(7);
    let mut wheel = Wheel::new(Tick(u32::MAX - 3_000));
    let mut now = Tick(u32::MAX - 3_000);
    for index in 0..2_000 {
        wheel.arm(index, now.plus(random.u32(1..=1_024)));
    }
    let mut due = Vec::new();
    for _ in 0..10_000 {
        now = now.plus(1);
        assert!(!wheel.expire(now, usize::MAX, &mut due));
        for index in due.drain(..) {
            wheel.arm(index, now.plus(random.u32(540..=1_024)));
        }
    }
    assert_eq!(wheel.work().cascaded, 0);
}

#[test]
fn the_worst_tick_moves_a_thousandth_of_the_fullest_slot() {
    const COUNT: u32 = 200_000;
    // One slot of level 1, one of level 2 and one of level 3, each with everything of its span.
    for first in [4 * 1_024, 3 * (1 << 16), 2 * (1 << 22)] {
        let mut random = fastrand::Rng::with_seed(11);
        let mut wheel = Wheel::new(Tick(0));
        let mut armed = vec![Vec::new(); 1_024];
        for index in 0..COUNT {
            let offset = random.u32(0..1_024);
            armed[offset as usize].push(index);
            wheel.arm(index, Tick(first + offset));
        }
        let (mut due, mut worst) = (Vec::new(), 0);
        let mut now = Tick(first - 70_000.min(first));
        assert!(!wheel.expire(now, usize::MAX, &mut due));
        while !wheel.is_empty() {
            let before = wheel.work().cascaded;
            assert!(!wheel.expire(now, usize::MAX, &mut due), "a tick left work over");
            worst = worst.max(wheel.work().cascaded - before);
            if now.0 >= first {
                let expected = &mut armed[(now.0 - first) as usize];
                due.sort_unstable();
                assert_eq!(due, *expected, "at {now:?}");
            } else {
                assert!(due.is_empty());
            }
            due.clear();
            now = now.plus(1);
        }
        assert!(worst <= u64::from(COUNT) / 1_024 + 1 + 64, "{worst} moves in one tick");
        assert!(wheel.work().cascaded >= u64::from(COUNT));
    }
}

#[test]
fn after_a_long_stop_each_call_does_a_bounded_share() {
    const LIMIT: usize = 1_000;
    const COUNT: u32 = 100_000;
    let mut random = fastrand::Rng::with_seed(13);
    let mut wheel = Wheel::new(Tick(50));
    for index in 0..COUNT {
        wheel.arm(index, Tick(51 + random.u32(0..200_000)));
    }
    // Five hours later: nearly all is due.
    let now = Tick(180_000);
    let (mut due, mut total) = (Vec::new(), 0);
    loop {
        let before = wheel.work().cascaded;
        let more = wheel.expire(now, LIMIT, &mut due);
        assert!(wheel.work().cascaded - before < CASCADE_MIN as u64 + 4 * u64::from(SLICE_MIN));
        assert!(due.len() <= LIMIT);
        total += due.len();
        due.clear();
        if !more {
            break;
        }
    }
    wheel.check_invariants();
    assert_eq!(total + wheel.len(), COUNT as usize);
    assert!(wheel.next().is_some_and(|next| next.is_after(now)));
}

#[test]
fn empty_time_costs_nothing() {
    let mut wheel = Wheel::new(Tick(0));
    wheel.arm(0, Tick(2_000_000_000));
    let mut due = Vec::new();
    assert!(!wheel.expire(Tick(1_999_999_999), usize::MAX, &mut due));
    assert!(!wheel.expire(Tick(2_000_000_000), usize::MAX, &mut due));
    assert_eq!(due, [0]);
    // One step for each level that the entry came down, and one to fire.
    assert!(wheel.work().steps <= 2 * LEVELS as u64, "{:?}", wheel.work());
}

#[test]
#[should_panic(expected = "time went back")]
fn time_never_goes_back() {
    let mut wheel: Wheel = Wheel::new(Tick(10));
    wheel.expire(Tick(11), 1, &mut Vec::new());
    wheel.expire(Tick(10), 1, &mut Vec::new());
}

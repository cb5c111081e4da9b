//! Timers as a gateway has them: one per connection, 60 s ahead give or take 10 %, in ticks of 100 ms.

mod rivals;

use std::time::Duration;

use pulsegate::time::Tick;
use pulsegate::wheel::Wheel;
use tokio::runtime::Handle;

use crate::arguments::Arguments;
use crate::clock::{median, ns_each, thread_cpu};
use crate::report::{Column, Table, Unit, ns, ratio};
use rivals::{Delays, HeapLazy, MapOfLists, SetOfPairs};

/// Timers are armed so many ticks ahead: 60 s ± 10 %.
const AHEAD: std::ops::Range<u32> = 540..661;
/// Ticks that pass while timers expire and are inserted again: every timer fires at least once.
const TICKS: u32 = 700;

/// What to run.
pub struct Options {
    pub sizes: Vec<u32>,
    pub rounds: u32,
}

impl From<&Arguments> for Options {
    fn from(arguments: &Arguments) -> Self {
        let sizes = arguments.size.map_or_else(|| vec![10_000, 100_000, 1_000_000], |size| vec![size]);
        Self { sizes, rounds: arguments.rounds }
    }
}

/// Deadlines by index, each index armed once at most.
trait Timers {
    const NAME: &'static str;
    /// Empty, for indices below `size`, at tick 0.
    fn new(size: u32) -> Self;
    /// Arms an index that is not armed.
    fn insert(&mut self, index: u32, deadline: u32);
    /// Moves the deadline of an index that is armed.
    fn rearm(&mut self, index: u32, deadline: u32);
    /// Appends every index whose deadline is `now` or earlier. `now` grows by one from call to call.
    fn expire(&mut self, now: u32, due: &mut Vec<u32>);
    /// The runtime within which the others are called, where they need one.
    fn runtime(&self) -> Option<Handle> {
        None
    }
}

impl Timers for Wheel {
    const NAME: &'static str = "wheel";

    fn new(_: u32) -> Self {
        Wheel::new(Tick(0))
    }

    fn insert(&mut self, index: u32, deadline: u32) {
        self.arm(index, Tick(deadline));
    }

    fn rearm(&mut self, index: u32, deadline: u32) {
        self.arm(index, Tick(deadline));
    }

    fn expire(&mut self, now: u32, due: &mut Vec<u32>) {
        while Wheel::expire(self, Tick(now), usize::MAX, due) {}
    }
}

/// What one round costs: nanoseconds for each insert, re-arm, and expiry with its insert; milliseconds of the worst
/// tick.
type Costs = [f64; 4];

/// Every size against every rival.
pub fn run(options: &Options) -> Vec<Table> {
    options.sizes.iter().map(|&size| compare(size, options.rounds)).collect()
}

fn compare(size: u32, rounds: u32) -> Table {
    let work = Work::new(size);
    // One round of each in turn, so that whatever the machine does besides, it does to all.
    let mut all: [Vec<Costs>; 5] = Default::default();
    for _ in 0..rounds {
        all[0].push(measure::<Wheel>(&work));
        all[1].push(measure::<SetOfPairs>(&work));
        all[2].push(measure::<MapOfLists>(&work));
        all[3].push(measure::<HeapLazy>(&work));
        all[4].push(measure::<Delays>(&work));
    }
    let names = [Wheel::NAME, SetOfPairs::NAME, MapOfLists::NAME, HeapLazy::NAME, Delays::NAME];
    let costs = all.map(|rounds| -> Costs {
        std::array::from_fn(|figure| median(&rounds.iter().map(|round| round[figure]).collect::<Vec<_>>()))
    });
    let own = costs[0];
    let row = |(name, costs): (&&str, &Costs)| {
        let ratios = costs.iter().zip(own).map(|(cost, own)| Some(cost / own));
        ((*name).to_owned(), ratios.chain(costs.iter().copied().map(Some)).collect())
    };
    Table {
        title: format!("{size} timers, each 60 s ± 10 % ahead, ticks of 100 ms"),
        of: "timers",
        columns: vec![
            ratio("insert"),
            ratio("re-arm"),
            ratio("expire"),
            ratio("worst tick"),
            ns("an insert"),
            ns("a re-arm"),
            ns("expire + insert"),
            Column { name: "the worst tick", unit: Unit::Milliseconds },
        ],
        rows: names.iter().zip(&costs).map(row).collect(),
        notes: vec!["Ratios: how many times the wheel's cost.".to_owned()],
    }
}

/// The same work for all, drawn beforehand.
struct Work {
    size: u32,
    first: Vec<u32>,
    second: Vec<u32>,
    order: Vec<u32>,
    third: Vec<u32>,
}

impl Work {
    fn new(size: u32) -> Self {
        let mut random = fastrand::Rng::with_seed(u64::from(size));
        let mut draw = || (0..size).map(|_| random.u32(AHEAD)).collect();
        let (first, second, third) = (draw(), draw(), draw());
        let mut order: Vec<u32> = (0..size).collect();
        random.shuffle(&mut order);
        Self { size, first, second, order, third }
    }
}

fn measure<T: Timers>(work: &Work) -> Costs {
    let count = work.size as usize;
    let mut timers = T::new(work.size);
    let runtime = timers.runtime();
    let _inside = runtime.as_ref().map(Handle::enter);
    let insert = ns_each(count, || {
        for (index, &deadline) in (0..).zip(&work.first) {
            timers.insert(index, deadline);
        }
    });
    let rearm = ns_each(count, || {
        for (&index, &deadline) in work.order.iter().zip(&work.second) {
            timers.rearm(index, deadline);
        }
    });
    let (mut expired, mut spent, mut worst) = (0, Duration::ZERO, Duration::ZERO);
    let mut due = Vec::with_capacity(count);
    for now in 1..=TICKS {
        let before = thread_cpu();
        timers.expire(now, &mut due);
        for &index in &due {
            timers.insert(index, now + work.third[index as usize]);
        }
        let tick = thread_cpu().saturating_sub(before);
        expired += due.len();
        due.clear();
        spent += tick;
        worst = worst.max(tick);
    }
    assert!(expired >= count, "{}: {expired} of {count} timers have fired", T::NAME);
    [insert, rearm, spent.as_nanos() as f64 / expired as f64, worst.as_secs_f64() * 1e3]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fires at each tick while timers are inserted, moved and inserted again.
    fn fired<T: Timers>(work: &Work) -> Vec<Vec<u32>> {
        let mut timers = T::new(work.size);
        let runtime = timers.runtime();
        let _inside = runtime.as_ref().map(Handle::enter);
        for index in 0..work.size {
            timers.insert(index, work.first[index as usize]);
        }
        for (&index, &deadline) in work.order.iter().zip(&work.second).take(work.size as usize / 2) {
            timers.rearm(index, deadline);
        }
        (1..=TICKS)
            .map(|now| {
                let mut due = Vec::new();
                timers.expire(now, &mut due);
                for &index in &due {
                    timers.insert(index, now + work.third[index as usize]);
                }
                due.sort_unstable();
                due
            })
            .collect()
    }

    #[test]
    fn the_rivals_do_the_same_work() {
        let work = Work::new(500);
        let own = fired::<Wheel>(&work);
        assert!(own.iter().map(Vec::len).sum::<usize>() >= 500);
        assert_eq!(fired::<SetOfPairs>(&work), own);
        assert_eq!(fired::<MapOfLists>(&work), own);
        assert_eq!(fired::<HeapLazy>(&work), own);
        assert_eq!(fired::<Delays>(&work), own);
    }

    #[test]
    fn a_small_size_runs() {
        let tables = run(&Options { sizes: vec![2_000], rounds: 1 });
        tables[0].assert_measured();
        assert!((tables[0].figure("wheel", "insert") - 1.0).abs() < 1e-9);
    }
}

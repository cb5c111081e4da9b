//! The CPU time that this thread has had, and medians of it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time of the calling thread since it began. The call itself takes some hundred nanoseconds: never time single
/// operations with it.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What `work` costs in CPU time of this thread, in nanoseconds for each of `operations`.
pub fn ns_each(operations: usize, work: impl FnOnce()) -> f64 {
    let before = thread_cpu();
    work();
    let spent = thread_cpu().saturating_sub(before);
    spent.as_nanos() as f64 / operations as f64
}

/// The median; of an even number, the mean of the two in the middle. There must be one.
pub fn median(figures: &[f64]) -> f64 {
    assert!(!figures.is_empty());
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

/// Runs `round` so many times and returns the median of each of its figures.
pub fn medians<const N: usize>(rounds: u32, mut round: impl FnMut() -> [f64; N]) -> [f64; N] {
    let all: Vec<[f64; N]> = (0..rounds).map(|_| round()).collect();
    std::array::from_fn(|figure| median(&all.iter().map(|round| round[figure]).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_stand_in_the_middle() {
        assert!((median(&[9.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 9.0]) - 3.0).abs() < 1e-9);
        let mut round = 0.0;
        let [up, down] = medians(3, || {
            round += 1.0;
            [round, -round]
        });
        assert!((up - 2.0).abs() < 1e-9 && (down + 2.0).abs() < 1e-9);
    }

    #[test]
    fn sleeping_costs_no_cpu_time() {
        let slept = ns_each(1, || std::thread::sleep(Duration::from_millis(50)));
        assert!(slept < 20e6, "{slept}");
    }
}

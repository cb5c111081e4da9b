//! The copy of a worker's counters that other threads read.

use std::sync::atomic::{AtomicU64, Ordering};

use super::counters::{Arrivals, BUCKETS};
use super::{Counters, Histogram, LISTENERS_MAX, ListenerMetric, Metric, Timing};

/// The copy of one worker's counters that other threads read.
///
/// Each value is copied on its own: a reader may see metrics of two adjacent turns side by side, never a torn one.
#[derive(Debug)]
pub struct Published {
    values: [AtomicU64; Metric::COUNT],
    timings: [[AtomicU64; BUCKETS + 1]; Timing::COUNT],
    closed: Vec<AtomicU64>,
    refused: Vec<AtomicU64>,
    listeners: Box<[[AtomicU64; ListenerMetric::COUNT]]>,
    arrivals: Box<[PublishedArrivals]>,
}

/// The copy of [`Arrivals`], made anew only when these have changed.
#[derive(Debug)]
struct PublishedArrivals {
    changes: AtomicU64,
    refused: Vec<AtomicU64>,
    handshakes: [AtomicU64; BUCKETS + 1],
}

impl Published {
    /// All zero, for counters made with the same arguments.
    #[must_use]
    pub fn new(closed: usize, refused: usize) -> Self {
        let zeros = |count| std::iter::repeat_with(AtomicU64::default).take(count).collect();
        Self {
            values: [const { AtomicU64::new(0) }; Metric::COUNT],
            timings: [const { [const { AtomicU64::new(0) }; BUCKETS + 1] }; Timing::COUNT],
            closed: zeros(closed),
            refused: zeros(refused),
            listeners: std::iter::repeat_with(|| [const { AtomicU64::new(0) }; ListenerMetric::COUNT])
                .take(LISTENERS_MAX)
                .collect(),
            arrivals: std::iter::repeat_with(|| PublishedArrivals {
                changes: AtomicU64::default(),
                refused: zeros(refused),
                handshakes: [const { AtomicU64::new(0) }; BUCKETS + 1],
            })
            .take(LISTENERS_MAX)
            .collect(),
        }
    }

    /// Copies the worker's counters out.
    pub fn publish(&self, counters: &Counters) {
        let copy = |to: &[AtomicU64], from: &[u64]| {
            for (to, &from) in to.iter().zip(from) {
                to.store(from, Ordering::Relaxed);
            }
        };
        copy(&self.values, &counters.values);
        copy(&self.closed, &counters.closed);
        copy(&self.refused, &counters.refused);
        for (to, from) in self.listeners.iter().zip(&counters.listeners) {
            copy(to, from);
        }
        let copy_histogram = |to: &[AtomicU64; BUCKETS + 1], from: &Histogram| {
            copy(&to[..BUCKETS], &from.counts);
            to[BUCKETS].store(from.sum_micros, Ordering::Relaxed);
        };
        for (to, from) in self.timings.iter().zip(&counters.timings) {
            copy_histogram(to, from);
        }
        for (to, from) in self.arrivals.iter().zip(&counters.arrivals) {
            if to.changes.swap(from.changes, Ordering::Relaxed) != from.changes {
                copy(&to.refused, &from.refused);
                copy_histogram(&to.handshakes, &from.handshakes);
            }
        }
    }

    /// The latest copy as plain integers.
    #[must_use]
    pub fn read(&self) -> Counters {
        let load = |from: &[AtomicU64]| from.iter().map(|value| value.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let mut counters = Counters::new(0, 0);
        counters.closed = load(&self.closed);
        counters.refused = load(&self.refused);
        counters.listeners =
            self.listeners.iter().map(|of| of.each_ref().map(|value| value.load(Ordering::Relaxed))).collect();
        for (to, from) in counters.values.iter_mut().zip(&self.values) {
            *to = from.load(Ordering::Relaxed);
        }
        let histogram = |from: &[AtomicU64; BUCKETS + 1]| {
            let mut to = Histogram { sum_micros: from[BUCKETS].load(Ordering::Relaxed), ..Histogram::default() };
            for (to, from) in to.counts.iter_mut().zip(from) {
                *to = from.load(Ordering::Relaxed);
            }
            to
        };
        for (to, from) in counters.timings.iter_mut().zip(&self.timings) {
            *to = histogram(from);
        }
        let arrivals = |from: &PublishedArrivals| Arrivals {
            changes: from.changes.load(Ordering::Relaxed),
            refused: load(&from.refused),
            handshakes: histogram(&from.handshakes),
        };
        counters.arrivals = self.arrivals.iter().map(arrivals).collect();
        counters
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_published_is_what_was_counted() {
        let mut counters = Counters::new(3, 2);
        counters.add(Metric::Accepted, 5);
        counters.set(Metric::LoopLateness, 7);
        counters.count_closed(2);
        counters.count_refused_by(2, 1);
        counters.observe_handshake(2, Duration::from_micros(60));
        counters.add_to_listener(1, ListenerMetric::Devices, 3);
        counters.subtract_from_listener(1, ListenerMetric::Devices, 1);
        counters.observe(Timing::Turn, Duration::from_micros(60));
        counters.observe(Timing::Turn, Duration::from_hours(1));
        let published = Published::new(3, 2);
        published.publish(&counters);
        let copy = published.read();
        assert_eq!(copy.value(Metric::Accepted), 5);
        assert_eq!(copy.value(Metric::LoopLateness), 7);
        assert_eq!(copy.closed(), [0, 0, 1]);
        assert_eq!([0, 1, 2, 3].map(|listener| copy.refused_by(listener, 1)), [0, 0, 1, 0]);
        assert_eq!((copy.handshakes_of(2).counts[1], copy.handshakes_of(1).count()), (1, 0));
        assert_eq!(copy.timing(Timing::Handshake), &copy.handshakes_of(2), "that of all has it too");
        counters.count_refused_by(2, 0);
        published.publish(&counters);
        assert_eq!(published.read().refused_by(2, 0), 1, "what has changed is copied anew");
        assert_eq!(copy.refused(), [0, 1]);
        assert_eq!([0, 1, 2].map(|listener| copy.listener_value(listener, ListenerMetric::Devices)), [0, 2, 0]);
        assert_eq!(copy.timing(Timing::Turn).counts[1], 1);
        assert_eq!(*copy.timing(Timing::Turn).counts.last().unwrap(), 1);
        assert_eq!(copy.timing(Timing::Turn).count(), 2);
    }
}

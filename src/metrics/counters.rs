//! What one worker counts: plain integers, of which its own thread alone knows.

use std::time::Duration;

use super::{Kind, LISTENERS_MAX, ListenerMetric, Metric, Timing};

/// Upper bounds of the histograms' buckets, in microseconds; a last bucket takes the rest.
pub const BUCKETS_MICROS: [u64; 16] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000,
    30_000_000,
];

pub(super) const BUCKETS: usize = BUCKETS_MICROS.len() + 1;

/// One histogram's counts: not cumulative, the last bucket unbounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Observations per bucket.
    pub counts: [u64; BUCKETS],
    /// The sum of all observations, in microseconds.
    pub sum_micros: u64,
}

impl Histogram {
    /// Adds one observation.
    pub fn observe(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_MICROS.partition_point(|&bound| bound < micros);
        self.counts[bucket] += 1;
        self.sum_micros = self.sum_micros.saturating_add(micros);
    }

    /// Adds what another one has seen.
    pub fn add(&mut self, other: &Histogram) {
        for (to, from) in self.counts.iter_mut().zip(other.counts) {
            *to += from;
        }
        self.sum_micros = self.sum_micros.saturating_add(other.sum_micros);
    }

    /// How many observations there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// One worker's metrics as plain integers. `reasons` and `refusals` are indexed by the labels that the owner of the
/// reasons defines; this module only carries them.
#[derive(Clone, Debug)]
pub struct Counters {
    pub(super) values: [u64; Metric::COUNT],
    pub(super) timings: [Histogram; Timing::COUNT],
    pub(super) closed: Vec<u64>,
    pub(super) refused: Vec<u64>,
    /// By listener, as far as any was heard of.
    pub(super) listeners: Vec<[u64; ListenerMetric::COUNT]>,
    /// The same, of what is rarer than turns.
    pub(super) arrivals: Vec<Arrivals>,
}

/// What a listener has seen of newcomers.
#[derive(Clone, Debug, Default)]
pub(super) struct Arrivals {
    /// How often any of it has changed.
    pub(super) changes: u64,
    pub(super) refused: Vec<u64>,
    pub(super) handshakes: Histogram,
}

impl Counters {
    /// All zero, with `closed` close reasons and `refused` refusals.
    #[must_use]
    pub fn new(closed: usize, refused: usize) -> Self {
        Self {
            values: [0; Metric::COUNT],
            timings: [Histogram::default(); Timing::COUNT],
            closed: vec![0; closed],
            refused: vec![0; refused],
            listeners: Vec::new(),
            arrivals: Vec::new(),
        }
    }

    fn arrivals_of(&mut self, listener: usize) -> &mut Arrivals {
        assert!(listener < LISTENERS_MAX);
        if listener >= self.arrivals.len() {
            let nobody = Arrivals { refused: vec![0; self.refused.len()], ..Arrivals::default() };
            self.arrivals.resize(listener + 1, nobody);
        }
        let arrivals = &mut self.arrivals[listener];
        arrivals.changes += 1;
        arrivals
    }

    /// Counts one refusal of the listener with this index, with the reason of this index.
    pub fn count_refused_by(&mut self, listener: usize, refusal: usize) {
        self.refused[refusal] += 1;
        self.add_to_listener(listener, ListenerMetric::Refused, 1);
        self.arrivals_of(listener).refused[refusal] += 1;
    }

    /// Adds a handshake of the listener with this index, to its histogram and to that of all.
    pub fn observe_handshake(&mut self, listener: usize, duration: Duration) {
        self.observe(Timing::Handshake, duration);
        self.arrivals_of(listener).handshakes.observe(duration);
    }

    /// Refusals of a listener so far, by refusal index.
    #[must_use]
    pub fn refused_by(&self, listener: usize, refusal: usize) -> u64 {
        self.arrivals.get(listener).and_then(|arrivals| arrivals.refused.get(refusal)).copied().unwrap_or(0)
    }

    /// The handshakes of a listener.
    #[must_use]
    pub fn handshakes_of(&self, listener: usize) -> Histogram {
        self.arrivals.get(listener).map_or_else(Histogram::default, |arrivals| arrivals.handshakes)
    }

    /// Adds `by` to a metric.
    pub fn add(&mut self, metric: Metric, by: u64) {
        self.values[metric as usize] += by;
    }

    /// Takes `by` from a gauge. A gauge below zero is our own error, and panics.
    pub fn subtract(&mut self, metric: Metric, by: u64) {
        debug_assert!(metric.kind() == Kind::Gauge);
        let value = &mut self.values[metric as usize];
        *value = value.checked_sub(by).expect("a gauge fell below zero");
    }

    /// Sets a gauge.
    pub fn set(&mut self, metric: Metric, value: u64) {
        debug_assert!(metric.kind() == Kind::Gauge);
        self.values[metric as usize] = value;
    }

    /// Adds `by` to a metric of the listener with this index.
    pub fn add_to_listener(&mut self, listener: usize, metric: ListenerMetric, by: u64) {
        self.of_listener(listener)[metric as usize] += by;
    }

    /// Takes `by` from a gauge of the listener with this index. Below zero is our own error, and panics.
    pub fn subtract_from_listener(&mut self, listener: usize, metric: ListenerMetric, by: u64) {
        debug_assert!(metric.kind() == Kind::Gauge);
        let value = &mut self.of_listener(listener)[metric as usize];
        *value = value.checked_sub(by).expect("a gauge fell below zero");
    }

    fn of_listener(&mut self, listener: usize) -> &mut [u64; ListenerMetric::COUNT] {
        assert!(listener < LISTENERS_MAX);
        if listener >= self.listeners.len() {
            self.listeners.resize(listener + 1, [0; ListenerMetric::COUNT]);
        }
        &mut self.listeners[listener]
    }

    /// A metric of the listener with this index.
    #[must_use]
    pub fn listener_value(&self, listener: usize, metric: ListenerMetric) -> u64 {
        self.listeners.get(listener).map_or(0, |values| values[metric as usize])
    }

    /// One metric's value.
    #[must_use]
    pub fn value(&self, metric: Metric) -> u64 {
        self.values[metric as usize]
    }

    /// Adds an observation to a histogram.
    pub fn observe(&mut self, timing: Timing, duration: Duration) {
        self.timings[timing as usize].observe(duration);
    }

    /// One histogram.
    #[must_use]
    pub fn timing(&self, timing: Timing) -> &Histogram {
        &self.timings[timing as usize]
    }

    /// Counts one close with the reason of this index.
    pub fn count_closed(&mut self, reason: usize) {
        self.closed[reason] += 1;
    }

    /// Closes so far, by reason index.
    #[must_use]
    pub fn closed(&self) -> &[u64] {
        &self.closed
    }

    /// Refusals so far, by refusal index.
    #[must_use]
    pub fn refused(&self) -> &[u64] {
        &self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "below zero")]
    fn a_gauge_cannot_fall_below_zero() {
        Counters::new(0, 0).subtract(Metric::Devices, 1);
    }
}

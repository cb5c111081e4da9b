//! How long to wait after a try that failed: twice as long each time, up to a bound, and never the same for two gateways.

use std::time::Duration;

/// The waits of one sink, or of one of its connections.
#[derive(Clone, Debug)]
pub struct Backoff {
    least: Duration,
    most: Duration,
    failures: u32,
    random: fastrand::Rng,
}

impl Backoff {
    /// From `least` to `most`; `seed` makes it another one than others have.
    #[must_use]
    pub fn new((least, most): (Duration, Duration), seed: u64) -> Self {
        Self { least, most, failures: 0, random: fastrand::Rng::with_seed(seed) }
    }

    /// How long to wait after one more failure: between half of what it has come to, and that. `asked` is what the other
    /// side asked for (Retry-After): it is the least, whatever else holds, up to the bound.
    pub fn fail(&mut self, asked: Option<Duration>) -> Duration {
        let doubled = self.least.saturating_mul(1 << self.failures.min(20)).min(self.most);
        self.failures = self.failures.saturating_add(1);
        let half = doubled / 2;
        let jittered = half + half.mul_f64(self.random.f64());
        jittered.max(asked.unwrap_or_default().min(self.most))
    }

    /// It went well: the next failure is the first again.
    pub fn succeed(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_begin_anew() {
        let bounds = (Duration::from_millis(100), Duration::from_secs(2));
        let mut backoff = Backoff::new(bounds, 1);
        for expected in [100, 200, 400, 800, 1_600, 2_000, 2_000] {
            let wait = backoff.fail(None).as_millis();
            assert!((expected / 2..=expected).contains(&wait), "{wait} is not within {expected}");
        }
        backoff.succeed();
        assert!(backoff.fail(None) <= Duration::from_millis(100));
    }

    #[test]
    fn what_was_asked_for_is_the_least_up_to_the_bound() {
        let mut backoff = Backoff::new((Duration::from_millis(100), Duration::from_secs(2)), 1);
        assert_eq!(backoff.fail(Some(Duration::from_secs(1))), Duration::from_secs(1));
        assert_eq!(backoff.fail(Some(Duration::from_hours(1))), Duration::from_secs(2));
    }

    #[test]
    fn two_gateways_wait_differently() {
        let bounds = (Duration::from_secs(1), Duration::from_secs(9));
        assert_ne!(Backoff::new(bounds, 1).fail(None), Backoff::new(bounds, 2).fail(None));
    }
}

//! The two clocks, for whatever is not below a worker: the one that only goes forward, and the time of day, joined by a [`Timeline`]
//! that is made anew when the time of day was set. Shards read the latest of them ([`SharedTimeline`]), and no clock.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use crate::time::{Moment, SharedTimeline, Timeline};

/// Smaller differences between the clocks are the wall's own pace, and leave the bridge as it is: so one moment is told
/// as one time.
const SET_BEYOND: Duration = Duration::from_millis(50);
/// What RFC 3339 can say, in milliseconds since 1970: nothing before it here, and no year beyond 9999.
const UNIX_MILLIS_MAX: i64 = 253_402_300_799_999;

/// When the gateway started, and what the time of day is since.
pub struct Clock {
    /// Moment zero on the clock that only goes forward.
    started: Instant,
    /// The time of day, read at this moment.
    wall: Box<dyn Fn(Moment) -> SystemTime + Send + Sync>,
    /// The bridge in use.
    in_use: SharedTimeline,
}

impl Clock {
    /// Moment zero is `started`; the time of day is the system's.
    #[must_use]
    pub fn new(started: Instant) -> Self {
        Self::with_wall(started, |_| SystemTime::now())
    }

    /// The same with another time of day, told for the moment that it is.
    #[must_use]
    pub fn with_wall(started: Instant, wall: impl Fn(Moment) -> SystemTime + Send + Sync + 'static) -> Self {
        let clock = Self { started, wall: Box::new(wall), in_use: SharedTimeline::default() };
        clock.in_use.set(clock.read());
        clock
    }

    /// The moment that it is.
    #[must_use]
    pub fn now(&self) -> Moment {
        Moment::from_micros(self.uptime().as_micros() as u64)
    }

    /// A moment on the clock that only goes forward.
    #[must_use]
    pub fn instant(&self, moment: Moment) -> Instant {
        self.started + Duration::from_micros(moment.micros())
    }

    /// The time since the start.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// The bridge to the time of day. Made anew when the wall's clock was set since the last time, forward or back: what
    /// happened before is told by the new one too, because the old one was wrong.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        let in_use = self.in_use.get();
        let read = self.read();
        if read.distance(in_use) <= SET_BEYOND {
            return in_use;
        }
        self.in_use.set(read);
        read
    }

    /// The bridge for those who read no clock: as [`Clock::timeline`] said last, whoever asked.
    #[must_use]
    pub fn shared(&self) -> SharedTimeline {
        self.in_use.clone()
    }

    /// A moment as Unix time in milliseconds; negative before 1970.
    #[must_use]
    pub fn unix_ms(&self, moment: Moment) -> i64 {
        self.timeline().unix_millis_at(moment)
    }

    /// A moment as RFC 3339 in UTC, to the millisecond.
    #[must_use]
    pub fn format(&self, moment: Moment) -> String {
        let millis = self.timeline().unix_millis_at(moment).clamp(0, UNIX_MILLIS_MAX);
        humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_millis(millis as u64)).to_string()
    }

    fn read(&self) -> Timeline {
        // Both clocks are read twice and the closer pair counts: whoever is put to sleep between the two readings would
        // see the wall's clock set.
        let read = || {
            let before = self.now();
            let wall = (self.wall)(before);
            (self.now().since(before), Timeline::anchored(before, wall))
        };
        let (first, second) = (read(), read());
        if first.0 <= second.0 { first.1 } else { second.1 }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock")
            .field("started", &self.started)
            .field("timeline", &self.timeline())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    #[test]
    fn times_follow_the_clock_when_it_is_set() {
        let offset = Arc::new(AtomicI64::new(1_700_000_000_000_000));
        let wall = {
            let offset = offset.clone();
            move |moment: Moment| {
                let micros = offset.load(Ordering::Relaxed) + moment.micros() as i64;
                let duration = Duration::from_micros(micros.unsigned_abs());
                if micros < 0 { SystemTime::UNIX_EPOCH - duration } else { SystemTime::UNIX_EPOCH + duration }
            }
        };
        let clock = Clock::with_wall(Instant::now(), wall);
        let happened = Moment::from_micros(1_500_000);
        assert_eq!(clock.format(happened), "2023-11-14T22:13:21.500Z");
        // A clock that is slewed is not followed step by step: one moment keeps one time.
        offset.fetch_add(20_000, Ordering::Relaxed);
        assert_eq!(clock.format(happened), "2023-11-14T22:13:21.500Z");
        // Set forward by a day, and back by two.
        offset.fetch_add(86_400_000_000, Ordering::Relaxed);
        assert_eq!(clock.format(happened), "2023-11-15T22:13:21.520Z");
        offset.fetch_sub(2 * 86_400_000_000, Ordering::Relaxed);
        assert_eq!(clock.format(happened), "2023-11-13T22:13:21.520Z");
        // Before 1970, and beyond what can be written: told as the nearest that can.
        offset.store(-86_400_000_000, Ordering::Relaxed);
        assert_eq!(clock.format(happened), "1970-01-01T00:00:00.000Z");
        offset.store(i64::MAX / 2, Ordering::Relaxed);
        assert_eq!(clock.format(happened), "9999-12-31T23:59:59.999Z");
    }
}

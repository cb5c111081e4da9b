//! Time as the gateway counts it: values, never a clock.
//!
//! The worker reads the one clock; everything below it is handed a [`Moment`] or a [`Tick`]. That is what lets a
//! simulation drive a whole shard through hours in a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

/// Microseconds in one tick.
pub const TICK_MICROS: u64 = 100_000;

/// A point in time: microseconds since the gateway started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// The moment `micros` microseconds after the gateway's start.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the gateway's start.
    #[must_use]
    pub const fn micros(self) -> u64 {
        self.0
    }

    /// The tick that this moment lies in.
    #[must_use]
    pub const fn tick(self) -> Tick {
        // Truncation is the meaning: a tick is a wrapping count (13.6 years).
        Tick((self.0 / TICK_MICROS) as u32)
    }

    /// The moment `duration` after this one.
    #[must_use]
    pub const fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_micros() as u64))
    }

    /// The time from `earlier` to this moment; zero when `earlier` is in fact later.
    #[must_use]
    pub const fn since(self, earlier: Moment) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// The gateway's coarse unit of time: 100 ms since its start, wrapping after 13.6 years.
///
/// Ticks compare by wrapping distance, so two that are compared must lie within 6.8 years of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tick(pub u32);

impl Tick {
    /// The tick `ticks` after this one. At most `i32::MAX` ticks.
    #[must_use]
    pub const fn plus(self, ticks: u32) -> Tick {
        debug_assert!(ticks <= i32::MAX as u32);
        Tick(self.0.wrapping_add(ticks))
    }

    /// The first tick at which `ticks` whole ticks have passed since *any* moment within this one.
    ///
    /// A moment lies somewhere inside its tick, so a wait that must never end early needs one tick more than its
    /// length. Every deadline that ends a connection is made here.
    #[must_use]
    pub const fn deadline_after(self, ticks: u32) -> Tick {
        self.plus(ticks + 1)
    }

    /// Ticks from `earlier` to this one; zero when `earlier` is in fact later.
    #[must_use]
    pub const fn since(self, earlier: Tick) -> u32 {
        if earlier.is_after(self) { 0 } else { self.0.wrapping_sub(earlier.0) }
    }

    /// Whether this tick lies strictly after `other`, by wrapping distance.
    #[must_use]
    pub const fn is_after(self, other: Tick) -> bool {
        (self.0.wrapping_sub(other.0) as i32) > 0
    }

    /// The moment at which this tick began, given a `near` moment within 6.8 years of it.
    #[must_use]
    pub fn start_near(self, near: Moment) -> Moment {
        let distance = i64::from(self.0.wrapping_sub(near.tick().0) as i32);
        let ticks = (near.micros() / TICK_MICROS).saturating_add_signed(distance);
        Moment(ticks * TICK_MICROS)
    }
}

/// A duration as whole ticks, rounded up: a wait is never shorter than it was asked to be.
/// Saturates at `i32::MAX` ticks (6.8 years).
#[must_use]
pub fn ticks_ceil(duration: Duration) -> u32 {
    let ticks = duration.as_micros().div_ceil(u128::from(TICK_MICROS));
    u32::try_from(ticks).unwrap_or(u32::MAX).min(i32::MAX as u32)
}

/// The bridge between moments and the time of day, as a value: what the clock on the wall shows at moment zero, by its latest
/// reading. Whoever reads clocks makes one (`clock::Clock`); it is made anew when the wall's clock was set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// Microseconds since 1970 at moment zero; negative before.
    zero: i64,
}

impl Timeline {
    /// The bridge on which the time of day is `at` at this moment.
    #[must_use]
    pub fn anchored(moment: Moment, at: SystemTime) -> Self {
        let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        let at = match at.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => micros(since),
            Err(before) => -micros(before.duration()),
        };
        Self { zero: at.saturating_sub_unsigned(moment.0) }
    }

    /// The bridge with this many microseconds since 1970 at moment zero.
    #[must_use]
    pub const fn from_unix_micros(zero: i64) -> Self {
        Self { zero }
    }

    /// Microseconds since 1970 at moment zero.
    #[must_use]
    pub const fn unix_micros(self) -> i64 {
        self.zero
    }

    /// The time of day at a moment, in milliseconds since 1970; negative before.
    #[must_use]
    pub const fn unix_millis_at(self, moment: Moment) -> i64 {
        self.zero.saturating_add_unsigned(moment.0).div_euclid(1_000)
    }

    /// The moment at which the clock shows so many milliseconds since 1970; moment zero for all that was before it.
    #[must_use]
    pub const fn moment_of(self, unix_millis: i64) -> Moment {
        let micros = unix_millis.saturating_mul(1_000).saturating_sub(self.zero);
        Moment(if micros < 0 { 0 } else { micros as u64 })
    }

    /// By how many milliseconds this one shows the same moment later than `earlier`; negative: before it.
    #[must_use]
    pub const fn millis_after(self, earlier: Timeline) -> i64 {
        self.zero.saturating_sub(earlier.zero) / 1_000
    }

    /// How far the two show the same moment apart.
    #[must_use]
    pub const fn distance(self, other: Timeline) -> Duration {
        Duration::from_micros(self.zero.abs_diff(other.zero))
    }
}

/// The latest [`Timeline`], for those who read no clock: whoever does sets it. Clones are of the same one.
#[derive(Clone, Debug, Default)]
pub struct SharedTimeline(Arc<AtomicI64>);

impl SharedTimeline {
    /// As it was set last.
    #[must_use]
    pub fn get(&self) -> Timeline {
        Timeline { zero: self.0.load(Ordering::Relaxed) }
    }

    /// The wall's clock was read, or set.
    pub fn set(&self, timeline: Timeline) {
        self.0.store(timeline.zero, Ordering::Relaxed);
    }
}

impl From<Timeline> for SharedTimeline {
    fn from(timeline: Timeline) -> Self {
        Self(Arc::new(AtomicI64::new(timeline.zero)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_compare_across_the_wrap() {
        let before = Tick(u32::MAX - 1);
        let after = before.plus(5);
        assert_eq!(after, Tick(3));
        assert!(after.is_after(before));
        assert!(!before.is_after(after));
        assert_eq!(after.since(before), 5);
        assert_eq!(before.since(after), 0);
    }

    #[test]
    fn a_deadline_is_never_early_wherever_in_its_tick_the_wait_began() {
        for start_micros in [0, 1, 50_000, 99_999] {
            let start = Moment::from_micros(start_micros);
            let deadline = start.tick().deadline_after(ticks_ceil(Duration::from_millis(250)));
            let fires = deadline.start_near(start);
            assert!(fires.since(start) >= Duration::from_millis(250), "{start_micros}");
        }
    }

    #[test]
    fn a_tick_finds_its_moment_again_after_the_wrap() {
        let near = Moment::from_micros((u64::from(u32::MAX) + 10) * TICK_MICROS);
        assert_eq!(near.tick(), Tick(9));
        assert_eq!(Tick(u32::MAX).start_near(near), Moment::from_micros(u64::from(u32::MAX) * TICK_MICROS));
        assert_eq!(Tick(12).start_near(near).since(near), Duration::from_millis(300));
    }

    #[test]
    fn durations_round_up_to_ticks() {
        assert_eq!(ticks_ceil(Duration::ZERO), 0);
        assert_eq!(ticks_ceil(Duration::from_millis(1)), 1);
        assert_eq!(ticks_ceil(Duration::from_millis(100)), 1);
        assert_eq!(ticks_ceil(Duration::from_millis(101)), 2);
        assert_eq!(ticks_ceil(Duration::MAX), i32::MAX as u32);
    }

    #[test]
    fn a_timeline_joins_moments_to_the_time_of_day() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let started = Moment::from_micros(5_000_000);
        let timeline = Timeline::anchored(started, at);
        assert_eq!(timeline.unix_millis_at(started), 1_700_000_000_123);
        assert_eq!(timeline.unix_millis_at(Moment::default()), 1_699_999_995_123);
        assert_eq!(timeline.moment_of(1_700_000_001_123), Moment::from_micros(6_000_000));
        assert_eq!(timeline.moment_of(-1), Moment::default());
        assert_eq!(Timeline::from_unix_micros(timeline.unix_micros()), timeline);
        // A device's clock may stand before 1970, or anywhere.
        let early = Timeline::anchored(started, SystemTime::UNIX_EPOCH - Duration::from_mins(1));
        assert_eq!(early.unix_millis_at(started), -60_000);
        assert_eq!(early.moment_of(-60_000), started);
        let late = Timeline::from_unix_micros(i64::MAX);
        assert_eq!(late.unix_millis_at(started), i64::MAX / 1_000);
        assert_eq!(timeline.distance(early), early.distance(timeline));
    }
}

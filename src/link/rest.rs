//! How a thread that others wake all the time gathers what comes.
//!
//! Where messages go from worker to worker, and to the store and back, each small batch wakes somebody, and threads that are awake for
//! a moment each do in many turns what could be done in few: a turn, a wake and a segment to the subscriber for a message or two. So
//! whoever has had such turns one after the other lies down for the rest of a span before it looks what is there. It is not woken
//! meanwhile, and those who have something for it need not ring. Nobody waits longer for that than for the span, and whoever speaks
//! with no other thread, or seldom, never rests: a worker's own devices are answered at once.
//!
//! Between two turns with a word from or to another thread there may be several for a worker's own devices alone: they count as well,
//! as long as the last word is no older than two spans. Lying down costs what waiting costs: where a rest has gathered too little,
//! there is no other one for a while.
//!
//! ```text
//!        a turn within a span of the last one, or of the end of a rest, and a word from or to another thread lately
//!   busy ──────────────────────────────▶ busy + 1, up to BUSY_MAX     rests from BUSY on
//!        any other turn
//!   busy ──────────────────────────────▶ busy − 1
//!        a rest that has gathered little
//!   busy ──────────────────────────────▶ 0
//! ```

use std::time::Duration;

use crate::time::Moment;

/// So many busy turns more than others make it rest.
const BUSY: u8 = 8;
const BUSY_MAX: u8 = 16;

/// How busy the others keep this thread.
#[derive(Debug)]
pub struct Rest {
    /// From one beginning of a turn to the next, while it rests.
    span: Duration,
    /// So much must have come during a rest.
    worth_it: usize,
    woken: Moment,
    busy: u8,
    has_rested: bool,
    is_soon: bool,
    /// The turn that had something from another thread, or for one.
    spoken: Option<Moment>,
}

impl Rest {
    /// One that has not been woken yet; `span` from turn to turn while it rests, in which so much as is `worth_it` must come.
    #[must_use]
    pub fn new(span: Duration, worth_it: usize) -> Self {
        Self { span, worth_it, woken: Moment::default(), busy: 0, has_rested: false, is_soon: false, spoken: None }
    }

    /// How long it rests from `now` on, before it looks what is there.
    pub fn before_poll(&mut self, now: Moment) -> Duration {
        let left = self.span.saturating_sub(now.since(self.woken));
        self.has_rested = self.busy >= BUSY && !left.is_zero();
        if self.has_rested { left } else { Duration::ZERO }
    }

    /// A turn begins, because so much has come.
    pub fn note_woken(&mut self, now: Moment, come: usize) {
        // After a rest it cannot be sooner than that.
        self.is_soon = now.since(self.woken) < if self.has_rested { 2 * self.span } else { self.span };
        self.woken = now;
        if self.has_rested && come < self.worth_it {
            (self.busy, self.is_soon) = (0, false);
        }
    }

    /// The turn ends; whether it had something from another worker, or for one.
    pub fn note_turn(&mut self, with_others: bool) {
        if with_others {
            self.spoken = Some(self.woken);
        }
        let is_busy = self.is_soon && self.spoken.is_some_and(|spoken| self.woken.since(spoken) <= 2 * self.span);
        self.busy = if is_busy { (self.busy + 1).min(BUSY_MAX) } else { self.busy.saturating_sub(1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_micros(500);
    const WORTH_IT: usize = 4;

    fn rest() -> Rest {
        Rest::new(SPAN, WORTH_IT)
    }

    fn at(micros: u64) -> Moment {
        Moment::from_micros(micros)
    }

    /// Turns as often as `every`, each of 20 us; how many there are in a second, where it rests when it is told to.
    fn turns_in_a_second(every: u64, with_others: impl Fn(u32) -> bool) -> u32 {
        let (mut rest, mut now, mut turns) = (rest(), 1_000_000, 0);
        while now < 2_000_000 {
            now += rest.before_poll(at(now)).as_micros() as u64;
            // The next thing comes, or what came meanwhile is there.
            let come = (now - rest.woken.micros()) / every;
            now = now.div_ceil(every) * every;
            rest.note_woken(at(now), come.max(1) as usize);
            now += 20;
            rest.note_turn(with_others(turns));
            turns += 1;
        }
        turns
    }

    #[test]
    fn who_is_woken_all_the_time_by_others_turns_no_more_often_than_every_span() {
        assert!((1_900..=2_100).contains(&turns_in_a_second(100, |_| true)));
        assert!(
            (1_900..=2_100).contains(&turns_in_a_second(100, |turn| turn % 4 == 0)),
            "turns between two words count"
        );
        assert!((10_000..=10_001).contains(&turns_in_a_second(100, |_| false)), "its own devices are answered at once");
        let seldom = turns_in_a_second(100, |turn| turn % 100 == 0);
        assert!(seldom > 9_000, "whoever speaks seldom is hardly ever late: {seldom}");
        let poor = turns_in_a_second(200, |_| true);
        assert!((4_000..=5_000).contains(&poor), "a rest that gathers two things is not worth it: {poor}");
        assert!((500..=501).contains(&turns_in_a_second(2_000, |_| true)), "whoever is told seldom is told at once");
    }

    #[test]
    fn rest_is_never_longer_than_the_bound_and_ends_with_the_load() {
        for with_others in [true, false] {
            let mut rest = rest();
            for turn in 0..100 {
                rest.note_woken(at(turn * 100), WORTH_IT);
                rest.note_turn(true);
                assert!(rest.before_poll(at(turn * 100 + 20)) <= SPAN);
            }
            // From here on something comes every 5 ms, from others or not.
            let (mut now, mut rested) = (10_000, 0);
            for _ in 0..20 {
                rested += u32::from(!rest.before_poll(at(now + 20)).is_zero());
                now += 5_000;
                rest.note_woken(at(now), 1);
                rest.note_turn(with_others);
            }
            assert!((1..=u32::from(BUSY_MAX - BUSY + 1)).contains(&rested), "{rested}");
        }
    }
}

//! How many questions to NATS are under way at a time: as many as it answers soon. Pure: time is an argument.
//!
//! A storm of devices asks more than a server answers in a second. Were all of it asked at once, each answer would come behind
//! those of all others, and the last ones later than anybody waits. So the window grows while answers come soon and shrinks when
//! they come late; what does not fit waits here, where it costs nothing. A question that has no answer at all halves it, and nothing
//! further is asked for a moment: who has no answer to give, for want of a leader, says so at once.

use std::time::{Duration, Instant};

/// The most under way at a time,
pub const MOST: f64 = 512.0;
/// and the least.
const LEAST: f64 = 4.0;
/// At the beginning.
const FIRST: f64 = 64.0;
/// An answer within this comes soon.
const SOON: Duration = Duration::from_millis(200);
/// By so much it grows with each answer that comes soon: a tenth with each window of them.
const GROWS: f64 = 0.1;
/// It shrinks to this part of itself, once for all that was asked before it shrank last.
const SHRINKS: f64 = 0.7;
/// How long nothing is asked after the first question without an answer; it doubles with each further one,
const PAUSE: Duration = Duration::from_millis(50);
/// up to this.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The window.
#[derive(Debug)]
pub struct Window {
    size: f64,
    /// What was asked before this does not shrink it again.
    shrank: Instant,
    /// Until when nothing is asked.
    pause: Instant,
    losses: u32,
}

impl Window {
    /// One at its beginning.
    pub fn new(now: Instant) -> Self {
        Self { size: FIRST, shrank: now, pause: now, losses: 0 }
    }

    /// Whether there is room for one more beside so many.
    pub fn has_room(&self, under_way: usize) -> bool {
        (under_way as f64) < self.size
    }

    /// When the next may be asked, by the clock.
    pub fn due(&self) -> Instant {
        self.pause
    }

    /// An answer to what was asked then.
    pub fn answered(&mut self, asked: Instant, now: Instant) {
        self.losses = 0;
        if now.saturating_duration_since(asked) <= SOON {
            self.size = (self.size + GROWS).min(MOST);
        } else {
            self.shrink(asked, now, SHRINKS);
        }
    }

    /// What was asked then has no answer.
    pub fn lost(&mut self, asked: Instant, now: Instant) {
        if self.shrink(asked, now, 0.5) {
            self.pause = now + (PAUSE * (1 << self.losses.min(8))).min(PAUSE_MAX);
            self.losses += 1;
        }
    }

    /// `false`: it was asked before it shrank last.
    fn shrink(&mut self, asked: Instant, now: Instant, to: f64) -> bool {
        if asked < self.shrank {
            return false;
        }
        self.size = (self.size * to).max(LEAST);
        self.shrank = now;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Asks `count` questions of a server that answers one each `each`, in order, by way of a window; how long the longest answer
    /// and all of them took. `cap`: what is under way at the most, whatever the window says.
    fn storm(count: usize, each: Duration, gateways: usize, cap: Option<usize>) -> (Duration, Duration) {
        let start = Instant::now();
        let mut windows: Vec<_> = (0..gateways).map(|_| (Window::new(start), 0_usize, count)).collect();
        let (mut now, mut queue, mut worst) = (start, VecDeque::new(), Duration::ZERO);
        while windows.iter().any(|(_, under_way, left)| under_way + left > 0) {
            for (number, (window, under_way, left)) in windows.iter_mut().enumerate() {
                while *left > 0 && cap.map_or_else(|| window.has_room(*under_way), |cap| *under_way < cap) {
                    queue.push_back((number, now));
                    (*under_way, *left) = (*under_way + 1, *left - 1);
                }
            }
            now += each;
            let (number, asked) = queue.pop_front().unwrap();
            worst = worst.max(now - asked);
            windows[number].0.answered(asked, now);
            windows[number].1 -= 1;
        }
        (worst, now - start)
    }

    #[test]
    fn a_storm_that_a_slow_server_cannot_take_at_once_is_only_slower() {
        // Three gateways with 2,000 questions each, 400 answers a second: with all that may be under way each would wait for
        // almost four seconds, longer than the timeout.
        let each = Duration::from_micros(2_500);
        let (worst, _) = storm(2_000, each, 3, Some(MOST as usize));
        assert!(worst > Duration::from_millis(3_300), "{worst:?}");
        let (worst, all) = storm(2_000, each, 3, None);
        assert!(worst < Duration::from_secs(1), "{worst:?}");
        assert_eq!(all, each * 6_000, "the server is never left without a question");
    }

    #[test]
    fn a_server_that_answers_soon_gets_as_many_as_may_be() {
        let (start, mut window) = (Instant::now(), Window::new(Instant::now()));
        (0..10_000).for_each(|_| window.answered(start, start + Duration::from_millis(5)));
        assert!(window.has_room(MOST as usize - 1) && !window.has_room(MOST as usize));
    }

    #[test]
    fn what_has_no_answer_is_followed_by_a_pause_that_grows_and_ends_with_an_answer() {
        let mut now = Instant::now();
        let mut window = Window::new(now);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            // All that was under way is lost at once: that is one loss.
            let asked = now;
            now += Duration::from_millis(1);
            (0..64).for_each(|_| window.lost(asked, now));
            pauses.push(window.due() - now);
            now = window.due();
        }
        assert_eq!((pauses[0], pauses[1], pauses[9]), (PAUSE, PAUSE * 2, PAUSE_MAX));
        assert!(window.has_room(3) && !window.has_room(4), "never none");
        window.answered(now, now);
        window.lost(now, now + PAUSE);
        assert_eq!(window.due(), now + PAUSE * 2, "the first pause again");
    }
}

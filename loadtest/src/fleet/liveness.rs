//! When a silent device must be expired, computed from what the device itself saw and from nothing else.
//!
//! ```text
//!      last byte sent                first PING          second           third       expiry
//!           |------- interval ------------|---- timeout ----|---- timeout ----|---- timeout ----|
//!           L                             P
//!      deadline = min(L + interval, P) + (1 + retries) x (timeout + one tick)
//! ```
//! The first PING of a connection may come sooner than `interval` (docs/PROTOCOL.md), hence the `min`; a PING that comes
//! late does not move the deadline. The gateway counts in ticks of 100 ms and rounds each wait up, so as never to end one
//! early: that one tick for each wait is in the deadline, and not in the promise that nobody is expired sooner.

use crate::clock::Micros;

/// The gateway's tick.
const TICK: Micros = 100_000;

/// What one device knows of how its silence is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// The device's last byte was sent then.
    last_sent: Micros,
    /// The first PING after it came then; 0: none.
    first_ping: Micros,
    terms: Terms,
    /// PINGs since the last byte.
    pings: u8,
}

/// The rules that WELCOME told, or that the command line told where the protocol has no WELCOME.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Silence before the first probe, in milliseconds.
    pub interval_ms: u32,
    /// The wait for each answer, in milliseconds.
    pub timeout_ms: u32,
    /// Further probes after the first.
    pub retries: u8,
    /// Whether probes are seen by the device.
    pub probes: bool,
}

impl Terms {
    /// The longest that a silent device stays, without the rounding to ticks.
    pub fn bound(&self) -> Micros {
        (u64::from(self.interval_ms) + u64::from(self.timeout_ms) * self.waits()) * 1_000
    }

    fn waits(&self) -> u64 {
        u64::from(self.retries) + 1
    }

    /// Waits that are each rounded up to a tick: with probes those for an answer, else the one for any sign of life.
    fn rounded(&self) -> u64 {
        if self.probes { self.waits() } else { 1 }
    }
}

/// How an expiry is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Sooner than promised, or without the PINGs that it was owed.
    False,
    /// So many microseconds after the exact deadline; 0 when before it, within the rounding.
    Late(Micros),
}

impl Watch {
    /// A device that was told `terms`.
    pub fn new(terms: Terms, now: Micros) -> Self {
        Self { last_sent: now, first_ping: 0, terms, pings: 0 }
    }

    /// The device sent something.
    pub fn handle_sent(&mut self, now: Micros) {
        self.last_sent = now;
        self.first_ping = 0;
        self.pings = 0;
    }

    /// The device was pinged, and did not answer yet.
    pub fn handle_ping(&mut self, now: Micros) {
        if self.pings == 0 {
            self.first_ping = now;
        }
        self.pings = self.pings.saturating_add(1);
    }

    /// Where the waits for an answer begin.
    fn base(&self) -> Micros {
        let due = self.last_sent + u64::from(self.terms.interval_ms) * 1_000;
        if self.pings == 0 { due } else { due.min(self.first_ping) }
    }

    /// When the device is owed its expiry.
    pub fn deadline(&self) -> Micros {
        self.earliest() + self.terms.rounded() * TICK
    }

    /// Nothing may expire the device before.
    fn earliest(&self) -> Micros {
        self.base() + u64::from(self.terms.timeout_ms) * 1_000 * self.terms.waits()
    }

    /// What an expiry seen at `now` is.
    pub fn judge(&self, now: Micros) -> Verdict {
        let unheard = self.terms.probes && u64::from(self.pings) < self.terms.waits();
        if unheard || now < self.earliest() {
            return Verdict::False;
        }
        Verdict::Late(now.saturating_sub(self.deadline()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Micros = 1_000_000;
    const TERMS: Terms = Terms { interval_ms: 60_000, timeout_ms: 10_000, retries: 2, probes: true };

    fn pinged(at: [Micros; 3]) -> Watch {
        let mut watch = Watch::new(TERMS, 0);
        watch.handle_sent(100 * SECOND);
        for at in at {
            watch.handle_ping(at);
        }
        watch
    }

    #[test]
    fn the_deadline_is_interval_and_every_timeout_with_a_tick_for_each() {
        let watch = pinged([160 * SECOND, 170 * SECOND, 180 * SECOND]);
        assert_eq!(watch.deadline(), 190 * SECOND + 3 * TICK);
        assert_eq!(watch.judge(190 * SECOND + 3 * TICK + 5), Verdict::Late(5));
        assert_eq!(watch.judge(190 * SECOND), Verdict::Late(0));
        assert_eq!(watch.judge(190 * SECOND - 1), Verdict::False);
    }

    #[test]
    fn a_first_ping_that_came_early_brings_the_deadline_forward_and_a_late_one_does_not_move_it() {
        let early = pinged([130 * SECOND, 140 * SECOND, 150 * SECOND]);
        assert_eq!(early.deadline(), 160 * SECOND + 3 * TICK);
        let late = pinged([165 * SECOND, 175 * SECOND, 185 * SECOND]);
        assert_eq!(late.judge(195 * SECOND + 3 * TICK), Verdict::Late(5 * SECOND));
    }

    #[test]
    fn whoever_was_not_asked_often_enough_is_expired_falsely() {
        let mut watch = Watch::new(TERMS, 0);
        watch.handle_ping(60 * SECOND);
        watch.handle_ping(70 * SECOND);
        assert_eq!(watch.judge(500 * SECOND), Verdict::False);
        // An answer begins everything anew.
        watch.handle_sent(71 * SECOND);
        assert_eq!(watch.deadline(), 161 * SECOND + 3 * TICK);
    }

    #[test]
    fn without_probes_silence_alone_counts() {
        let watch = Watch::new(Terms { probes: false, ..TERMS }, 7 * SECOND);
        assert_eq!(watch.deadline(), 97 * SECOND + TICK);
        assert_eq!(watch.judge(97 * SECOND + 2 * TICK), Verdict::Late(TICK));
        assert_eq!(watch.judge(96 * SECOND), Verdict::False);
        assert_eq!(TERMS.bound(), 90 * SECOND);
    }
}

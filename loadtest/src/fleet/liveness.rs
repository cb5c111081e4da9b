//! When a silent device must be expired, computed from what the device itself saw and from nothing else.
//!
//! ```text
//!      last byte sent                first PING          second           third       expiry
//!           |------- interval ------------|---- timeout ----|---- timeout ----|---- timeout ----|
//!           L
//!      deadline = L + interval + (1 + retries) x (timeout + one tick)
//! ```
//! The first PING of a connection may come sooner than `interval` (docs/PROTOCOL.md); neither that nor a PING that comes
//! late moves the deadline. The gateway counts in ticks of 100 ms and rounds each wait up, so as never to end one early:
//! that one tick for each wait is in the deadline, and not in the promise that nobody is expired sooner.

use crate::clock::Micros;

/// The gateway's tick.
const TICK: Micros = 100_000;

/// What one device knows of how its silence is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// The device's last byte was sent then.
    last_sent: Micros,
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
    /// Messages of the device that may be unacknowledged at a time: MQTT's Receive Maximum.
    pub window: u16,
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

/// What an expiry was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiryCheck {
    /// Sooner than promised, or without the PINGs that it was owed.
    False,
    /// So many microseconds after the exact deadline; 0 when before it, within the rounding.
    Late(Micros),
}

impl Watch {
    /// The device was told `terms`. Its last byte is older than that: the server heard it before it answered.
    pub fn handle_terms(&mut self, terms: Terms) {
        self.terms = terms;
        self.pings = 0;
    }

    /// The device sent something.
    pub fn handle_sent(&mut self, now: Micros) {
        self.last_sent = now;
        self.pings = 0;
    }

    /// The device was pinged, and did not answer yet.
    pub fn handle_ping(&mut self) {
        self.pings = self.pings.saturating_add(1);
    }

    /// When the device is owed its expiry.
    pub fn deadline(&self) -> Micros {
        self.earliest() + self.terms.rounded() * TICK
    }

    /// Nothing may expire the device before.
    fn earliest(&self) -> Micros {
        self.last_sent + self.terms.bound()
    }

    /// What an expiry seen at `now` is.
    pub fn check_expiry(&self, now: Micros) -> ExpiryCheck {
        let unheard = self.terms.probes && u64::from(self.pings) < self.terms.waits();
        if unheard || now < self.earliest() {
            return ExpiryCheck::False;
        }
        ExpiryCheck::Late(now.saturating_sub(self.deadline()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Micros = 1_000_000;
    const TERMS: Terms = Terms { interval_ms: 60_000, timeout_ms: 10_000, retries: 2, probes: true, window: u16::MAX };

    fn pinged(times: u8) -> Watch {
        let mut watch = Watch::default();
        watch.handle_sent(100 * SECOND);
        watch.handle_terms(TERMS);
        (0..times).for_each(|_| watch.handle_ping());
        watch
    }

    #[test]
    fn the_deadline_is_interval_and_every_timeout_with_a_tick_for_each() {
        let watch = pinged(3);
        assert_eq!(watch.deadline(), 190 * SECOND + 3 * TICK);
        assert_eq!(watch.check_expiry(190 * SECOND + 3 * TICK + 5), ExpiryCheck::Late(5));
        assert_eq!(watch.check_expiry(190 * SECOND), ExpiryCheck::Late(0));
        assert_eq!(watch.check_expiry(190 * SECOND - 1), ExpiryCheck::False);
    }

    #[test]
    fn whoever_was_not_asked_often_enough_is_expired_falsely() {
        let mut watch = pinged(2);
        assert_eq!(watch.check_expiry(500 * SECOND), ExpiryCheck::False);
        watch.handle_ping();
        assert_eq!(watch.check_expiry(191 * SECOND), ExpiryCheck::Late(SECOND - 3 * TICK));
        // An answer begins everything anew.
        watch.handle_sent(191 * SECOND);
        assert_eq!(watch.check_expiry(500 * SECOND), ExpiryCheck::False);
        assert_eq!(watch.deadline(), 281 * SECOND + 3 * TICK);
    }

    /// HELLO was heard a while before WELCOME is read: who falls silent in between is owed nothing for that while.
    #[test]
    fn the_last_byte_counts_and_not_the_answer_to_it() {
        let mut watch = Watch::default();
        watch.handle_sent(SECOND);
        watch.handle_terms(Terms { probes: false, ..TERMS });
        assert_eq!(watch.check_expiry(91 * SECOND), ExpiryCheck::Late(0));
        assert_eq!(watch.check_expiry(91 * SECOND - 1), ExpiryCheck::False);
    }

    #[test]
    fn without_probes_silence_alone_counts() {
        let mut watch = Watch::default();
        watch.handle_sent(7 * SECOND);
        watch.handle_terms(Terms { probes: false, ..TERMS });
        assert_eq!(watch.deadline(), 97 * SECOND + TICK);
        assert_eq!(watch.check_expiry(97 * SECOND + 2 * TICK), ExpiryCheck::Late(TICK));
        assert_eq!(watch.check_expiry(96 * SECOND), ExpiryCheck::False);
        assert_eq!(TERMS.bound(), 90 * SECOND);
    }
}

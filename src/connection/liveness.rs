//! What the gateway believes of a peer: heard from, probed, expired. Twelve bytes and no clock.
//!
//! ```text
//!            silence ≥ interval               answer owed for `timeout`,
//!   ┌──────┐  (the first: jittered)   ┌────────┐  fewer than 1 + retries sent
//!   │ Heard │ ──── send a probe ────▶ │ Probed │ ──┐ send another
//!   └──────┘ ◀──── any byte ───────── └────────┘ ◀─┘
//!                                         │ all unanswered
//!                                         ▼
//!                     Suspect: one last read decides (the caller's part)
//! ```
//!
//! Traffic only writes `last_heard`. The connection's one wheel entry stays where it is, and finds out when it fires
//! that it is early.

use std::time::Duration;

use crate::time::{Moment, Tick};

/// How one connection is kept alive: the listener's settings, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Silence before the first probe.
    pub interval: u32,
    /// Wait for the answer to one probe.
    pub timeout: u32,
    /// Further probes after the first.
    pub retries: u8,
    /// Whether there is anything to send as a probe. Without, silence alone expires the connection, after the same time.
    pub probes: bool,
}

impl Schedule {
    /// Whether silence means nothing: a device that has asked for no keep-alive.
    #[must_use]
    pub const fn is_endless(&self) -> bool {
        self.interval == 0
    }

    /// Ticks of silence after which a connection is expired.
    const fn bound(&self) -> u32 {
        self.interval + self.timeout * (self.retries as u32 + 1)
    }

    /// The first deadline of a new connection. With probes it lies in the second half of the interval, by `jitter`
    /// (any number, evenly drawn): a reconnect storm does not become a heartbeat storm.
    #[must_use]
    pub fn first_deadline(&self, now: Tick, jitter: u32) -> Tick {
        if !self.probes {
            return now.deadline_after(self.bound());
        }
        let half = self.interval / 2;
        let spread = (u64::from(jitter) * u64::from(half + 1)) >> 32;
        now.plus(self.interval - spread as u32)
    }
}

/// What one peer's silence has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    last_heard: Tick,
    probe: Probe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    /// None was sent and nothing was heard since it began.
    None,
    /// None was sent yet, and the peer was heard.
    NotNeeded,
    /// `count` are unanswered; the latest went out at `sent` (microseconds, wrapping after 71 minutes).
    Unanswered { count: u8, sent: u32 },
    /// The latest measured round trip, in microseconds.
    Answered { round_trip: u32 },
    /// Answered after a retry: which probe was answered is anybody's guess, so nothing was measured (Karn's rule).
    AnsweredLate,
}

/// What a byte from the peer meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heard {
    /// How many probes it answered.
    pub answered: u8,
    /// The round trip, where it can be told.
    pub round_trip: Option<Duration>,
}

/// What a deadline means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It came early: the peer spoke in the meantime. Arm again.
    Wait(Tick),
    /// Send a probe and arm again.
    Probe(Tick),
    /// Nothing is left to try but a last read.
    Suspect,
}

impl Liveness {
    /// A peer heard just now.
    #[must_use]
    pub const fn new(now: Tick) -> Self {
        Self { last_heard: now, probe: Probe::None }
    }

    /// When the peer was last heard.
    #[must_use]
    pub const fn last_heard(&self) -> Tick {
        self.last_heard
    }

    /// Whether a probe waits for its answer.
    #[must_use]
    pub const fn is_probed(&self) -> bool {
        matches!(self.probe, Probe::Unanswered { .. })
    }

    /// The latest measured round trip.
    #[must_use]
    pub const fn round_trip(&self) -> Option<Duration> {
        match self.probe {
            Probe::Answered { round_trip } => Some(Duration::from_micros(round_trip as u64)),
            Probe::None | Probe::NotNeeded | Probe::Unanswered { .. } | Probe::AnsweredLate => None,
        }
    }

    /// The peer was heard: any byte counts.
    pub fn handle_heard(&mut self, now: Moment) -> Heard {
        self.last_heard = now.tick();
        let Probe::Unanswered { count, sent } = self.probe else {
            if self.probe == Probe::None {
                self.probe = Probe::NotNeeded;
            }
            return Heard { answered: 0, round_trip: None };
        };
        if count > 1 {
            self.probe = Probe::AnsweredLate;
            return Heard { answered: count, round_trip: None };
        }
        let round_trip = (now.micros() as u32).wrapping_sub(sent);
        self.probe = Probe::Answered { round_trip };
        Heard { answered: 1, round_trip: Some(Duration::from_micros(u64::from(round_trip))) }
    }

    /// The connection's deadline has come. `drained` is the time up to which every readable socket was read: silence
    /// is judged by it, never by the clock alone. `now` is when the probe, if there is one, goes out.
    pub fn handle_deadline(&mut self, schedule: &Schedule, drained: Tick, now: Moment) -> Due {
        if !schedule.probes {
            let expires = self.last_heard.deadline_after(schedule.bound());
            return if expires.is_after(drained) { Due::Wait(expires) } else { Due::Suspect };
        }
        let count = match self.probe {
            Probe::Unanswered { count, sent: _ } if count > schedule.retries => {
                // A jittered first probe went out before the whole interval was over: the rest of it is still due.
                let expires = self.last_heard.deadline_after(schedule.bound());
                return if expires.is_after(drained) { Due::Wait(expires) } else { Due::Suspect };
            }
            Probe::Unanswered { count, sent: _ } => count + 1,
            // Silent since it began: the first deadline was jittered and means what it says.
            Probe::None => 1,
            Probe::NotNeeded | Probe::Answered { .. } | Probe::AnsweredLate => {
                let silent_until = self.last_heard.plus(schedule.interval);
                if silent_until.is_after(drained) {
                    return Due::Wait(silent_until);
                }
                1
            }
        };
        self.probe = Probe::Unanswered { count, sent: now.micros() as u32 };
        Due::Probe(now.tick().deadline_after(schedule.timeout))
    }

    /// After the last read: whether the peer stays silent (`None`), or when to look again.
    #[must_use]
    pub fn recheck(&self, schedule: &Schedule, now: Tick) -> Option<Tick> {
        let expires = self.last_heard.deadline_after(schedule.bound());
        match self.probe {
            _ if !schedule.probes => expires.is_after(now).then_some(expires),
            Probe::Unanswered { .. } => None,
            _ => Some(self.last_heard.plus(schedule.interval)),
        }
    }
}

const _: () = assert!(size_of::<Liveness>() == 12);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::TICK_MICROS;

    const SCHEDULE: Schedule = Schedule { interval: 600, timeout: 100, retries: 2, probes: true };

    fn at(tick: u32) -> Moment {
        Moment::from_micros(u64::from(tick) * TICK_MICROS)
    }

    /// Runs the deadlines of a peer that answers until `silent_from`; returns the tick at which it became a suspect and
    /// the probes sent.
    fn run(schedule: &Schedule, answers_until: u32) -> (u32, u32) {
        let mut liveness = Liveness::new(Tick(0));
        let mut deadline = schedule.first_deadline(Tick(0), 0);
        let mut probes = 0;
        for _ in 0..100_000 {
            let now = deadline;
            match liveness.handle_deadline(schedule, now, at(now.0)) {
                Due::Wait(next) => deadline = next,
                Due::Probe(next) => {
                    probes += 1;
                    deadline = next;
                    if now.0 < answers_until {
                        liveness.handle_heard(at(now.0 + 1));
                    }
                }
                Due::Suspect => {
                    assert_eq!(liveness.recheck(schedule, now), None);
                    return (now.0, probes);
                }
            }
        }
        panic!("never expired");
    }

    #[test]
    fn a_silent_peer_is_probed_one_plus_retries_times_then_suspected() {
        assert_eq!(run(&SCHEDULE, 0), (600 + 3 * 101, 3));
    }

    #[test]
    fn an_early_first_probe_expires_nobody_early() {
        for jitter in [1 << 29, 1 << 31, u32::MAX] {
            let mut liveness = Liveness::new(Tick(0));
            let mut deadline = SCHEDULE.first_deadline(Tick(0), jitter);
            assert!(deadline.0 < 600);
            let mut probes = 0;
            loop {
                match liveness.handle_deadline(&SCHEDULE, deadline, at(deadline.0)) {
                    Due::Probe(next) => {
                        probes += 1;
                        deadline = next;
                    }
                    Due::Wait(next) => deadline = next,
                    Due::Suspect => break,
                }
            }
            assert_eq!((deadline.0, probes), (901, 3), "jitter {jitter}");
        }
    }

    #[test]
    fn a_busy_peer_is_not_probed_and_one_that_falls_silent_is_after_the_interval() {
        let mut liveness = Liveness::new(Tick(0));
        liveness.handle_heard(at(250));
        let first = SCHEDULE.first_deadline(Tick(0), u32::MAX);
        assert_eq!(liveness.handle_deadline(&SCHEDULE, first, at(first.0)), Due::Wait(Tick(850)));
        liveness.handle_heard(at(800));
        assert_eq!(liveness.handle_deadline(&SCHEDULE, Tick(850), at(850)), Due::Wait(Tick(1_400)));
        assert_eq!(liveness.handle_deadline(&SCHEDULE, Tick(1_400), at(1_400)), Due::Probe(Tick(1_501)));
    }

    #[test]
    fn a_peer_that_answers_is_never_suspected_while_it_does() {
        let (expired, probes) = run(&SCHEDULE, 60_000);
        assert!(expired > 60_000 && probes > 90, "{expired} {probes}");
    }

    #[test]
    fn without_probes_silence_alone_expires_after_the_same_bound() {
        let schedule = Schedule { probes: false, ..SCHEDULE };
        let mut liveness = Liveness::new(Tick(0));
        let first = schedule.first_deadline(Tick(0), 123);
        assert_eq!(first, Tick(901));
        liveness.handle_heard(at(500));
        assert_eq!(liveness.handle_deadline(&schedule, first, at(first.0)), Due::Wait(Tick(1401)));
        assert_eq!(liveness.handle_deadline(&schedule, Tick(1401), at(1401)), Due::Suspect);
        assert_eq!(liveness.recheck(&schedule, Tick(1401)), None);
        liveness.handle_heard(at(1401));
        assert_eq!(liveness.recheck(&schedule, Tick(1401)), Some(Tick(2302)));
    }

    #[test]
    fn round_trips_are_measured_on_first_probes_only() {
        let mut liveness = Liveness::new(Tick(0));
        assert_eq!(liveness.handle_deadline(&SCHEDULE, Tick(600), at(600)), Due::Probe(Tick(701)));
        let heard = liveness.handle_heard(Moment::from_micros(at(600).micros() + 1_234));
        assert_eq!(heard, Heard { answered: 1, round_trip: Some(Duration::from_micros(1_234)) });
        assert_eq!(liveness.round_trip(), Some(Duration::from_micros(1_234)));

        assert_eq!(liveness.handle_deadline(&SCHEDULE, Tick(1_200), at(1_200)), Due::Probe(Tick(1_301)));
        assert_eq!(liveness.handle_deadline(&SCHEDULE, Tick(1_301), at(1_301)), Due::Probe(Tick(1_402)));
        assert_eq!(liveness.handle_heard(at(1_302)), Heard { answered: 2, round_trip: None });
        assert_eq!(liveness.round_trip(), None);
    }

    #[test]
    fn silence_is_judged_by_the_drained_time() {
        let mut liveness = Liveness::new(Tick(0));
        liveness.handle_deadline(&SCHEDULE, Tick(600), at(600));
        liveness.handle_heard(at(601));
        // The clock says 5,000, but sockets were read only up to 1,000: nothing is owed yet.
        assert_eq!(liveness.handle_deadline(&SCHEDULE, Tick(1_000), at(5_000)), Due::Wait(Tick(1_201)));
    }

    #[test]
    fn jitter_spreads_first_deadlines_over_half_the_interval() {
        let deadlines: Vec<u32> =
            (0..=16u32).map(|n| SCHEDULE.first_deadline(Tick(0), n.wrapping_mul(1 << 28).max(n)).0).collect();
        assert!(deadlines.iter().all(|&deadline| (300..=600).contains(&deadline)), "{deadlines:?}");
        assert_eq!(SCHEDULE.first_deadline(Tick(0), 0), Tick(600));
        assert_eq!(SCHEDULE.first_deadline(Tick(0), u32::MAX), Tick(300));
    }
}

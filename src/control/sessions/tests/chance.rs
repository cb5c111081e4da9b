//! What happens in a world, and what goes wrong in it.

use std::time::Duration;

use tokio::time::Instant;

use super::nats::name;
use super::troubles::Trouble;
use super::wills::End;
use super::{DEVICES, GATEWAYS, World};

/// In a fair world one thing goes wrong, and the next one so much later, at least.
const FAIR_FOR: Duration = Duration::from_secs(14);
/// A gateway stands still for so long at most.
const STILL_MS: u64 = 24_000;
/// Where all is written down something is published that often,
const PUBLISHED_EVERY: Duration = Duration::from_millis(150);
/// and this is done besides: so many milliseconds after the beginning, by a device.
const SCRIPT: &[(u64, usize, Deed)] = &[
    (400, 0, Deed::Comes(0, Some(0))),
    (700, 1, Deed::Comes(1, Some(2))),
    (2_500, 0, Deed::Comes(1, Some(6))),
    (4_000, 1, Deed::Leaves(End::Lost)),
    (5_000, 1, Deed::Comes(2, Some(0))),
    (6_500, 0, Deed::Begins(2, Some(2))),
    (8_000, 1, Deed::Leaves(End::Goodbye)),
    (8_500, 2, Deed::Comes(0, None)),
    (9_500, 1, Deed::Comes(0, Some(2))),
    (10_500, 0, Deed::Comes(0, Some(0))),
];

/// What a device does where all is written down.
#[derive(Clone, Copy)]
enum Deed {
    /// It comes to a gateway, with a will that waits for so long.
    Comes(usize, Option<u32>),
    /// The same, and wants a new session.
    Begins(usize, Option<u32>),
    Leaves(End),
}

/// How much goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Very much, and at the same time.
    Rough,
    /// One thing after the other: what must hold where nothing is wrong can be seen.
    Fair,
    /// Nothing, but that the lease of whoever asks NATS something is over by this question.
    LeaseEnds(u64),
}

impl Weather {
    pub fn lasts(self) -> Duration {
        match self {
            Self::Rough | Self::Fair => Duration::from_secs(75),
            Self::LeaseEnds(_) => Duration::from_secs(12),
        }
    }
}

impl World {
    pub fn act(&mut self) {
        match self.weather {
            Weather::Rough => self.act_rough(),
            Weather::Fair => self.act_fair(),
            Weather::LeaseEnds(at) => self.act_as_written(at),
        }
    }

    fn act_rough(&mut self) {
        let (at, number) = (self.random.usize(..GATEWAYS), self.random.usize(..DEVICES));
        match self.random.u16(..1_000) {
            0..500 => self.publish(at),
            500..600 if self.devices[number].place.is_none() => self.connect(number, at),
            600..607 => self.connect(number, at),
            607..612 => self.go(number),
            630..638 => self.kill(at),
            638..644 => self.cut(at),
            644..648 => self.freeze(at),
            648..653 => self.end_lease(at),
            _ => {}
        }
    }

    fn act_fair(&mut self) {
        let (at, number, now) = (self.random.usize(..GATEWAYS), self.random.usize(..DEVICES), self.now());
        let stays_away = self.devices[number].away_until.is_some_and(|until| now < until);
        match self.random.u16(..1_000) {
            0..250 => self.publish(at),
            250..500 if self.devices[number].place.is_none() && !stays_away => self.connect(number, at),
            500..508 => self.connect(number, at),
            508..520 => {
                self.go(number);
                let most = self.random.choice([1, 5, 30]).expect("there are some");
                self.devices[number].away_until = Some(now + Duration::from_secs(self.random.u64(..most)));
            }
            _ => {}
        }
        let is_well = (0..GATEWAYS).all(|at| self.is_well(at));
        if is_well && now >= self.next_due {
            self.next_due = now + FAIR_FOR + Duration::from_millis(self.random.u64(..10_000));
            match self.random.u8(..4) {
                0 => self.kill(at),
                1 => self.cut(at),
                2 => self.freeze(at),
                _ => self.end_lease(at),
            }
        } else if !is_well {
            self.next_due = self.next_due.max(now + FAIR_FOR);
        }
    }

    fn act_as_written(&mut self, ends_at: u64) {
        self.nats.state().ends_at = Some(ends_at);
        let (now, before) = (self.now(), self.next_due);
        if now < before + PUBLISHED_EVERY {
            return;
        }
        self.next_due = now;
        let ms = |instant: Instant| instant.duration_since(self.began).as_millis() as u64;
        let due = SCRIPT.iter().filter(|(at, ..)| (ms(before)..ms(now)).contains(at));
        for &(_, number, deed) in due.collect::<Vec<_>>() {
            match deed {
                Deed::Comes(at, delay_s) => self.connect_as(number, at, false, delay_s),
                Deed::Begins(at, delay_s) => self.connect_as(number, at, true, delay_s),
                Deed::Leaves(end) => self.disconnect(number, end, true),
            }
        }
        let at = self.messages.len() % GATEWAYS;
        self.publish(at);
    }

    /// A device goes.
    fn go(&mut self, number: usize) {
        let end = if self.random.u8(..3) == 0 { End::Goodbye } else { End::Lost };
        let is_seen = self.random.u8(..3) > 0;
        self.disconnect(number, end, is_seen);
    }

    // --- What goes wrong ----------------------------------------------------------------------------------------------

    pub fn begin_trouble(&mut self, at: usize, trouble: Trouble) {
        let now = self.now();
        self.nats.state().troubles.begin(at, trouble, now);
    }

    pub fn end_trouble(&mut self, at: usize, trouble: Trouble) {
        let now = self.now();
        self.nats.state().troubles.end(at, trouble, now);
    }

    fn is_well(&self, at: usize) -> bool {
        self.back_at[at].is_none() && self.frozen_until[at].is_none() && self.cut_until[at].is_none()
    }

    fn soon(&mut self, ms: u64) -> Instant {
        self.now() + Duration::from_millis(self.random.u64(..ms))
    }

    fn cut(&mut self, at: usize) {
        if self.cut_until[at].is_none() {
            self.note(&format!("gate-{at} is cut off"));
            self.cut_until[at] = Some(self.soon(20_000));
            self.nats.set_cut(at, true);
        }
    }

    fn freeze(&mut self, at: usize) {
        if self.frozen_until[at].is_none() && self.back_at[at].is_none() {
            self.note(&format!("gate-{at} stands still"));
            self.frozen_until[at] = Some(self.soon(STILL_MS));
            self.begin_trouble(at, Trouble::Frozen);
        }
    }

    fn end_lease(&mut self, at: usize) {
        self.note(&format!("the lease of gate-{at} is over"));
        let now = self.now();
        self.nats.state().end_lease(&name(at), now);
    }

    /// Whoever was away for long enough is back.
    pub fn heal(&mut self, is_all: bool) {
        let now = self.now();
        let is_due = |until: Option<Instant>| until.is_some_and(|until| is_all || until <= now);
        for at in 0..GATEWAYS {
            if is_due(self.back_at[at]) {
                self.begin(at);
            }
            if is_due(self.frozen_until[at]) {
                self.note(&format!("gate-{at} goes on"));
                self.frozen_until[at] = None;
                self.end_trouble(at, Trouble::Frozen);
            }
            if is_due(self.cut_until[at]) {
                self.note(&format!("gate-{at} is cut off no more"));
                self.cut_until[at] = None;
                self.nats.set_cut(at, false);
            }
        }
    }
}

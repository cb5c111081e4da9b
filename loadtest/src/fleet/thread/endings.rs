//! How connections end: by chance, by order, or by no doing of ours.

use super::super::ComeBack;
use super::super::device::{Failure, Link, ReadMode};
use super::super::liveness::ExpiryCheck;
use super::super::source::reset_on_close;
use super::{Count, FleetThread, exponential, record};
use crate::clock::{Micros, TICK_MICROS, micros, tick_from};

/// Before a failed attempt is repeated when devices come back at once.
const AT_ONCE: Micros = 50_000;
/// The longest back-off.
const BACK_OFF_MAX: Micros = 300_000_000;

impl FleetThread {
    pub(super) fn leave_by_chance(&mut self, index: u32) {
        let Some(churn) = self.churn else { return };
        let polite = self.random.f64() < churn.polite;
        self.leave(index, polite);
        let wait = exponential(&mut self.random, churn.pause);
        self.call_at(index, self.now + 1 + Micros::from(wait) * TICK_MICROS);
    }

    pub(super) fn leave(&mut self, index: u32, polite: bool) {
        let device = &mut self.devices[index as usize];
        if device.is_up() {
            self.counts.add(if polite { Count::LeftPolitely } else { Count::LeftRudely }, 1);
        }
        if polite && device.is_up() {
            device.encode_goodbye(&self.options.protocol, &mut self.out);
            // Whether the goodbye arrives is no longer of interest.
            let _ = self.write(index);
        } else if let Some(socket) = device.socket.as_ref().filter(|_| !polite) {
            reset_on_close(socket);
        }
        self.hang_up(index);
    }

    /// A connection ended without our doing, or never came up.
    pub(super) fn fail(&mut self, index: u32, failure: Failure) {
        let device = &self.devices[index as usize];
        let (was_up, was_silent, had_stopped_reading) =
            (device.is_up(), device.is_silent, device.had_stopped_reading());
        if was_silent {
            self.check_silence(index, failure);
        } else if had_stopped_reading {
            self.findings.failures[failure as usize] += 1;
            self.counts.add(Count::NotReadingEnded, 1);
        } else {
            self.findings.failures[failure as usize] += 1;
            self.counts.add(if was_up { Count::Lost } else { Count::Failed }, 1);
            if was_up && failure == Failure::Expired {
                self.counts.add(Count::FalselyExpired, 1);
            }
            if was_up && self.is_control(index) {
                self.findings.control_lost += 1;
            }
        }
        self.hang_up(index);
        let device = &mut self.devices[index as usize];
        device.failures = device.failures.saturating_add(1);
        if was_silent || had_stopped_reading {
            return;
        }
        match self.come_back {
            ComeBack::Never => {}
            ComeBack::AtOnce => self.retry_at(index, self.now + AT_ONCE),
            ComeBack::BackOff(base) => {
                let span = micros(base).saturating_mul(1 << device.failures.min(20)).min(BACK_OFF_MAX);
                let wait = self.random.u64(0..=span);
                self.retry_at(index, self.now + wait);
            }
        }
    }

    /// A further attempt; what it takes counts from when the first one was due.
    pub(super) fn retry_at(&mut self, index: u32, at: Micros) {
        self.wheel.arm(index, tick_from(at));
    }

    pub(super) fn check_silence(&mut self, index: u32, failure: Failure) {
        let watch = &self.devices[index as usize].watch;
        let found = &mut self.findings;
        // A protocol without CLOSE has no other way to tell than the end.
        let told = failure == Failure::Expired || self.options.protocol.has_no_close_reason();
        match watch.check_expiry(self.now) {
            _ if !told => found.expiries.wrong_reason += 1,
            ExpiryCheck::False => found.expiries.early += 1,
            ExpiryCheck::Late(late) => {
                found.expiries.right += 1;
                record(&mut found.expiry_lateness, late);
            }
        }
    }

    /// Gives up the socket and all that goes with it.
    pub(super) fn hang_up(&mut self, index: u32) {
        let device = &mut self.devices[index as usize];
        match std::mem::replace(&mut device.link, Link::Down) {
            Link::Down => {}
            Link::Up(_) => self.counts.sub(Count::Up, 1),
            Link::Connecting | Link::Handshaking(_) | Link::Greeting(_) => self.counts.sub(Count::InFlight, 1),
        }
        if std::mem::take(&mut device.is_silent) {
            self.counts.sub(Count::Silent, 1);
        }
        if std::mem::replace(&mut device.read_mode, ReadMode::Reading) != ReadMode::Reading {
            self.counts.sub(Count::NotReading, 1);
        }
        device.socket = None;
        device.leftover = None;
        device.awaiting = 0;
        device.next_duty = 0;
        device.leaves = 0;
        self.wheel.cancel(index);
        self.out.wire.clear();
        self.out.plain.clear();
    }
}

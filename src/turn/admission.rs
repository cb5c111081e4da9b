//! Who may begin: two questions, for what is known at accept and for the address of the device itself.
//!
//! The second is asked at accept too where the socket's peer is the device. Behind a proxy that announces addresses it is
//! asked when the announcement was read.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::config::Limits;
use crate::link::Refusal;
use crate::time::{Moment, ticks_ceil};

/// At most so many addresses are told apart in one second; those beyond are not limited.
const ADDRESSES_MAX: usize = 65_536;

/// What is admitted at most.
#[derive(Clone, Copy, Debug)]
pub struct AdmissionLimits {
    /// Connections of the whole gateway.
    pub connections: u32,
    /// Sockets in this worker's descriptor table.
    pub sockets: usize,
    /// Lateness of the loop above which new connections are refused.
    pub shed_lateness: Duration,
    /// Ticks for which a connection may have waited for its handshake; behind one that has waited for longer, whoever
    /// comes is refused at once.
    pub waiting_ticks: u32,
    /// New connections from one address in a second; 0: as many as like.
    pub connections_per_address: u32,
}

impl AdmissionLimits {
    /// As they are configured, with room for so many `sockets` in the worker's descriptor table.
    #[must_use]
    pub fn new(limits: &Limits, sockets: usize) -> Self {
        Self {
            connections: limits.connections,
            sockets,
            shed_lateness: limits.shed_lateness,
            // Three quarters of the time for a handshake: whoever would wait for longer is refused at once.
            waiting_ticks: ticks_ceil(limits.handshake_time) * 3 / 4,
            connections_per_address: limits.connections_per_address,
        }
    }
}

/// How much there is to do, when somebody comes.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// The gateway comes down.
    pub is_draining: bool,
    /// Connections of the whole gateway.
    pub connections: u32,
    /// Sockets of this worker.
    pub sockets: usize,
    /// How late the loop is.
    pub lateness: Duration,
    /// For how many ticks somebody has waited for a handshake.
    pub waiting: u32,
}

/// Decides who may begin. An overloaded gateway refuses the new and keeps the old.
pub struct Admission {
    limits: AdmissionLimits,
    /// New connections by address within the current second.
    counts: HashMap<IpAddr, u32>,
    since: Moment,
}

impl Admission {
    /// Nobody has come yet.
    #[must_use]
    pub fn new(limits: AdmissionLimits) -> Self {
        Self { limits, counts: HashMap::new(), since: Moment::default() }
    }

    /// Goes on with other bounds.
    pub fn replace_limits(&mut self, limits: AdmissionLimits) {
        self.limits = limits;
    }

    /// Whether there is room for one connection more, whoever it is.
    ///
    /// # Errors
    /// Why not.
    pub fn at_accept(&self, load: &Load) -> Result<(), Refusal> {
        if load.is_draining {
            Err(Refusal::Draining)
        } else if load.connections >= self.limits.connections {
            Err(Refusal::ConnectionLimit)
        } else if !self.has_place(load.sockets) {
            Err(Refusal::DescriptorLimit)
        } else if load.lateness > self.limits.shed_lateness || load.waiting > self.limits.waiting_ticks {
            Err(Refusal::Overloaded)
        } else {
            Ok(())
        }
    }

    /// Whether one connection more from this address is within the bound (`limits.connections_per_address`).
    ///
    /// # Errors
    /// Why not.
    pub fn at_address(&mut self, address: IpAddr, now: Moment) -> Result<(), Refusal> {
        let per_second = self.limits.connections_per_address;
        if per_second == 0 {
            return Ok(());
        }
        if now.since(self.since) >= Duration::from_secs(1) {
            self.counts.clear();
            self.since = now;
        }
        if self.counts.len() >= ADDRESSES_MAX && !self.counts.contains_key(&address) {
            return Ok(());
        }
        let count = self.counts.entry(address).or_insert(0);
        *count += 1;
        if *count <= per_second { Ok(()) } else { Err(Refusal::AddressRate) }
    }

    /// Whether this worker's descriptor table has a place, with so many sockets in it.
    #[must_use]
    pub fn has_place(&self, sockets: usize) -> bool {
        sockets < self.limits.sockets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: AdmissionLimits = AdmissionLimits {
        connections: 10,
        sockets: 5,
        shed_lateness: Duration::from_millis(100),
        waiting_ticks: 75,
        connections_per_address: 2,
    };
    const IDLE: Load =
        Load { is_draining: false, connections: 9, sockets: 4, lateness: Duration::from_millis(100), waiting: 75 };

    #[test]
    fn each_bound_refuses_beyond_it_and_not_at_it() {
        let at_accept = |load| Admission::new(LIMITS).at_accept(&load);
        assert_eq!(at_accept(IDLE), Ok(()));
        assert_eq!(at_accept(Load { is_draining: true, ..IDLE }), Err(Refusal::Draining));
        assert_eq!(at_accept(Load { connections: 10, ..IDLE }), Err(Refusal::ConnectionLimit));
        assert_eq!(at_accept(Load { sockets: 5, ..IDLE }), Err(Refusal::DescriptorLimit));
        assert_eq!(at_accept(Load { lateness: Duration::from_millis(101), ..IDLE }), Err(Refusal::Overloaded));
        assert_eq!(at_accept(Load { waiting: 76, ..IDLE }), Err(Refusal::Overloaded));
    }

    #[test]
    fn addresses_are_limited_each_on_its_own_for_a_second() {
        let mut admission = Admission::new(LIMITS);
        let (one, two) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let mut admits = |address, micros| admission.at_address(address, Moment::from_micros(micros)).is_ok();
        assert_eq!([0, 1, 2].map(|micros| admits(one, micros)), [true, true, false]);
        assert!(admits(two, 3));
        assert!(!admits(one, 999_999));
        assert!(admits(one, 1_000_000));
        let mut unlimited = Admission::new(AdmissionLimits { connections_per_address: 0, ..LIMITS });
        assert!((0..100).all(|_| unlimited.at_address(one, Moment::default()).is_ok()));
    }
}

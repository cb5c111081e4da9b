//! Who may begin: two questions, for what is known at accept and for the address of the device itself.
//!
//! The second is asked at accept too where the socket's peer is the device. Behind a proxy that announces addresses it is
//! asked when the announcement was read. A connection that was let in is counted of its address until its slot is freed.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{self, Limits};
use crate::link::{AddressBounds, AddressRules, AddressTable, ConnectionId, Counted, Refusal, WorkerId};
use crate::network::Network;
use crate::slot::ConnectionSlot;
use crate::time::{Moment, ticks_ceil};

/// What is admitted at most.
#[derive(Clone, Debug)]
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
    /// Of each address and each network.
    pub rules: AddressRules,
    /// Networks that these rules are not about.
    pub allow: Arc<[Network]>,
}

impl AdmissionLimits {
    /// As they are configured, with room for so many `sockets` in the worker's descriptor table.
    #[must_use]
    pub fn new(limits: &Limits, admission: &config::Admission, sockets: usize) -> Self {
        let bounds = |bounds: &config::ConnectionBounds| AddressBounds {
            connections: bounds.connections,
            per_second: bounds.per_second,
            burst: bounds.burst,
        };
        Self {
            connections: limits.connections,
            sockets,
            shed_lateness: limits.shed_lateness,
            // Three quarters of the time for a handshake: whoever would wait for longer is refused at once.
            waiting_ticks: ticks_ceil(limits.handshake_time) * 3 / 4,
            rules: AddressRules { address: bounds(&admission.address), network: bounds(&admission.network) },
            allow: admission.allow.as_slice().into(),
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
    addresses: Arc<AddressTable>,
    /// By slot: where its connection is counted. Four bytes each, where live connections have a bound.
    counted: Vec<Counted>,
}

impl Admission {
    /// For one of the workers that share `addresses`.
    #[must_use]
    pub fn new(limits: AdmissionLimits, addresses: Arc<AddressTable>) -> Self {
        Self { limits, addresses, counted: Vec::new() }
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

    /// Whether one connection more from this address is within its bounds. It is counted then, and must be
    /// [placed](Admission::place) into its slot.
    ///
    /// # Errors
    /// Why not.
    pub fn at_address(&self, address: IpAddr, now: Moment) -> Result<Counted, Refusal> {
        if self.limits.allow.iter().any(|network| network.contains(address)) {
            return Ok(Counted::NOWHERE);
        }
        self.addresses.admit(address, &self.limits.rules, now)
    }

    /// The connection in this slot of the worker `here` leaves for its home: it takes along where it is counted.
    pub fn depart(&mut self, here: WorkerId, id: ConnectionId) {
        if let Some(counted) = self.counted.get_mut(id.slot.index())
            && *counted != Counted::NOWHERE
        {
            self.addresses.depart(here, id, std::mem::replace(counted, Counted::IN_MOTION));
        }
    }

    /// A connection has come home into this slot; it was `origin` at the worker `from`.
    pub fn arrive(&mut self, slot: ConnectionSlot, from: WorkerId, origin: ConnectionId) {
        let counted = self.addresses.arrive(from, origin);
        self.place(slot, counted);
    }

    /// The connection stays at the worker `here` after all.
    pub fn stay(&mut self, here: WorkerId, id: ConnectionId) {
        if self.counted.get(id.slot.index()) == Some(&Counted::IN_MOTION) {
            self.counted[id.slot.index()] = self.addresses.arrive(here, id);
        }
    }

    /// The connection has this slot.
    pub fn place(&mut self, slot: ConnectionSlot, counted: Counted) {
        let slot = slot.index();
        if slot >= self.counted.len() {
            if counted == Counted::NOWHERE {
                return;
            }
            self.counted.resize(slot + 1, Counted::NOWHERE);
        }
        self.addresses.release(std::mem::replace(&mut self.counted[slot], counted));
    }

    /// The slot of the connection `id` at the worker `here` is freed. `has_moved`: it lives on at its home. `was_last`: no
    /// connection is left, and after a mass disconnect the memory goes back.
    pub fn release(&mut self, here: WorkerId, id: ConnectionId, has_moved: bool, was_last: bool) {
        if let Some(counted) = self.counted.get_mut(id.slot.index()) {
            match std::mem::take(counted) {
                // Its home has it, or will never ask.
                Counted::IN_MOTION if has_moved => {}
                Counted::IN_MOTION => self.addresses.release(self.addresses.arrive(here, id)),
                counted => self.addresses.release(counted),
            }
        }
        if was_last {
            self.counted = Vec::new();
        }
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

    const IDLE: Load =
        Load { is_draining: false, connections: 9, sockets: 4, lateness: Duration::from_millis(100), waiting: 75 };

    fn limits() -> AdmissionLimits {
        let address = AddressBounds { connections: 2, per_second: 0, burst: 0 };
        AdmissionLimits {
            connections: 10,
            sockets: 5,
            shed_lateness: Duration::from_millis(100),
            waiting_ticks: 75,
            rules: AddressRules { address, ..AddressRules::default() },
            allow: Arc::new(["10.0.0.0/8".parse().unwrap()]),
        }
    }

    fn table() -> Arc<AddressTable> {
        Arc::new(AddressTable::new([0; 16]))
    }

    #[test]
    fn each_bound_refuses_beyond_it_and_not_at_it() {
        let at_accept = |load| Admission::new(limits(), table()).at_accept(&load);
        assert_eq!(at_accept(IDLE), Ok(()));
        assert_eq!(at_accept(Load { is_draining: true, ..IDLE }), Err(Refusal::Draining));
        assert_eq!(at_accept(Load { connections: 10, ..IDLE }), Err(Refusal::ConnectionLimit));
        assert_eq!(at_accept(Load { sockets: 5, ..IDLE }), Err(Refusal::DescriptorLimit));
        assert_eq!(at_accept(Load { lateness: Duration::from_millis(101), ..IDLE }), Err(Refusal::Overloaded));
        assert_eq!(at_accept(Load { waiting: 76, ..IDLE }), Err(Refusal::Overloaded));
    }

    #[test]
    fn a_connection_is_counted_of_its_address_until_its_slot_is_free_at_whichever_worker() {
        let addresses = table();
        let (mut here, mut home) =
            (Admission::new(limits(), Arc::clone(&addresses)), Admission::new(limits(), Arc::clone(&addresses)));
        let address = IpAddr::from([192, 0, 2, 1]);
        for slot in (0..2).map(ConnectionSlot) {
            let counted = here.at_address(address, Moment::default()).unwrap();
            here.place(slot, counted);
        }
        assert_eq!(home.at_address(address, Moment::default()), Err(Refusal::AddressConnections));
        let (one, other) = (WorkerId(0), WorkerId(1));
        let id = |slot| ConnectionId { slot: ConnectionSlot(slot), generation: 7 };
        // It moves, and is never counted twice.
        here.depart(one, id(0));
        assert_eq!(addresses.live(address), 2);
        home.arrive(ConnectionSlot(5), one, id(0));
        here.release(one, id(0), true, false);
        assert_eq!(addresses.live(address), 2);
        // The other one is sent and comes back; then it is sent, and ends here before it has arrived.
        here.depart(one, id(1));
        here.stay(one, id(1));
        here.depart(one, id(1));
        here.release(one, id(1), false, true);
        assert_eq!(addresses.live(address), 1);
        assert!(here.counted.is_empty());
        home.release(other, id(5), false, false);
        home.release(other, id(5), false, false);
        assert_eq!(addresses.live(address), 0);
        let friend = IpAddr::from([10, 0, 0, 1]);
        assert!((0..9).all(|_| here.at_address(friend, Moment::default()) == Ok(Counted::NOWHERE)));
    }

    #[test]
    fn without_a_bound_of_live_connections_a_slot_costs_nothing() {
        let mut admission = Admission::new(AdmissionLimits { rules: AddressRules::default(), ..limits() }, table());
        let address = IpAddr::from([192, 0, 2, 1]);
        for slot in (0..100).map(ConnectionSlot) {
            let counted = admission.at_address(address, Moment::default()).unwrap();
            admission.place(slot, counted);
        }
        assert!(admission.counted.is_empty());
    }
}

//! What must hold of a shard between two calls. Tests and simulations ask after every step.

use super::Shard;
use crate::connection::Connection;
use crate::metrics::Metric;

impl Shard {
    /// Panics when the parts of the shard disagree. Walks every connection: for tests, not for the loop.
    pub fn check_invariants(&self) {
        let mut devices = 0;
        let mut handshakes = 0;
        let mut waiting = 0;
        let mut closed = 0;
        let mut unsent = 0;
        for (slot, connection) in self.connections.iter() {
            assert!(slot.index() < self.slots, "slot {slot} lies beyond the highest ever used");
            if connection.is_closed() {
                closed += 1;
                assert!(self.closed.contains(&slot), "slot {slot} is closed and nobody will reap it");
                assert!(self.wheel.deadline(slot).is_none(), "slot {slot} is closed and has a deadline");
                continue;
            }
            assert!(self.wheel.deadline(slot).is_some(), "slot {slot} has no deadline");
            unsent += connection.unsent().len();
            devices += usize::from(connection.is_device());
            handshakes += u64::from(connection.is_handshaking());
            waiting += u64::from(connection.is_waiting() || connection.is_called());
            if connection.is_device() {
                assert_eq!(self.find(connection.device()), Some(slot), "the device table disagrees about slot {slot}");
                assert_eq!(self.home.of(connection.device()), self.worker, "slot {slot} is not at home");
            }
            let queued = |id: &&crate::link::ConnectionId| id.slot == slot && id.generation == connection.generation();
            if connection.is_waiting() {
                assert_eq!(self.places.waiting().filter(queued).count(), 1, "slot {slot} must wait exactly once");
            }
            if connection.is_paused() {
                // Either the shard resumes it when there is room, or its session when it has been answered.
                let is_held = self.broker.of(slot).is_some_and(|session| self.broker.is_held(session));
                let listed = self.paused.iter().chain(&self.yielding).chain(&self.unfinished).filter(queued).count();
                assert_eq!(listed + usize::from(is_held), 1, "slot {slot} must be resumed by exactly one");
            }
        }
        self.check_kept();
        self.broker.check_invariants(|slot| self.connections.get(slot).is_some_and(Connection::is_device));
        assert_eq!(self.closed.len(), closed, "a slot is to be reaped that is not closed, or twice");
        assert_eq!(self.devices.len(), devices, "the device table holds somebody who is not there");
        assert_eq!(self.wheel.len(), self.connections.len() - closed, "the wheel holds somebody who is not there");
        assert_eq!(self.counters.value(Metric::Devices), devices as u64);
        assert_eq!(self.counters.value(Metric::Connections), self.connections.len() as u64);
        assert_eq!(self.counters.value(Metric::HandshakesInFlight), handshakes);
        assert_eq!(self.counters.value(Metric::HandshakesWaiting), waiting);
        assert_eq!(self.counters.value(Metric::BufferedBytes), unsent as u64);
        assert!(handshakes as usize <= self.handshakes_max_ever, "{handshakes} handshakes in progress");
    }
}

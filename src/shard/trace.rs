//! What operators follow of this shard's connections ([`crate::link::trace`]).
//!
//! Nothing is kept for a connection while nobody follows anything: each place that tells something asks one question, whether
//! any trace is there. While one is, the slots of those who come from traced networks are known; a device is compared by its id
//! whenever something happens to it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::Shard;
use crate::connection::{Connection, PacketLog};
use crate::link::{
    ListenerId, Refusal, TRACE_CONNECTIONS_MAX, TRACE_EVENTS_PER_SECOND, TRACES_MAX, Trace, TraceEvent, TraceSubject,
    TraceWhat, TracedPacket,
};
use crate::slot::ConnectionSlot;
use crate::time::{Moment, TICK_MICROS};

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_micros(TICK_MICROS);

/// A set of traces, by their places among those that are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Set(u8);

const _: () = assert!(TRACES_MAX <= u8::BITS as usize);

impl Set {
    fn with(self, place: usize) -> Self {
        Self(self.0 | 1 << place)
    }

    fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    fn within(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The same set where what was at each place is at another now, or gone.
    fn moved(self, places: &[Option<usize>]) -> Self {
        let stays = places.iter().enumerate().filter(|(before, _)| self.has(*before));
        stays.filter_map(|(_, after)| *after).fold(Self::default(), Self::with)
    }

    fn has(self, place: usize) -> bool {
        self.0 & 1 << place != 0
    }
}

/// What is followed, and what is to be told of it at the end of this turn.
#[derive(Default)]
pub(super) struct Tracer {
    traces: Vec<Followed>,
    /// Of connections from traced networks.
    places: HashMap<ConnectionSlot, Set>,
    events: Vec<(Set, TraceEvent)>,
    log: PacketLog,
    /// The next slot to be looked at for who was there before; none: all were.
    next_slot: Option<ConnectionSlot>,
}

#[derive(Clone)]
struct Followed {
    trace: Arc<Trace>,
    /// Since when this second's events are counted.
    since: Moment,
    count: u32,
}

impl Tracer {
    /// Whether nobody follows anything.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.traces.is_empty()
    }

    /// Follows these instead: those that were followed before go on as they were. Returns the others.
    fn replace(&mut self, traces: &[Arc<Trace>], now: Moment) -> Vec<Arc<Trace>> {
        let place = |followed: &Followed| traces.iter().position(|trace| Arc::ptr_eq(trace, &followed.trace));
        let moved: Vec<Option<usize>> = self.traces.iter().map(place).collect();
        let (mut next, mut fresh) = (Vec::with_capacity(traces.len()), Vec::new());
        for trace in traces {
            let before = self.traces.iter().find(|followed| Arc::ptr_eq(trace, &followed.trace)).cloned();
            next.push(before.unwrap_or_else(|| {
                fresh.push(Arc::clone(trace));
                Followed { trace: Arc::clone(trace), since: now, count: 0 }
            }));
        }
        self.traces = next;
        self.places = self.places.drain().map(|(slot, set)| (slot, set.moved(&moved))).collect();
        self.places.retain(|_, set| !set.is_empty());
        for (set, _) in &mut self.events {
            *set = set.moved(&moved);
        }
        fresh
    }

    fn place(&self, slot: ConnectionSlot) -> Set {
        self.places.get(&slot).copied().unwrap_or_default()
    }

    fn set_where(&self, is_about: impl Fn(&Trace) -> bool) -> Set {
        let places = self.traces.iter().enumerate().filter(|(_, followed)| is_about(&followed.trace));
        places.fold(Set::default(), |set, (place, _)| set.with(place))
    }

    fn of_address(&self, address: IpAddr) -> Set {
        self.set_where(|trace| matches!(&trace.subject, TraceSubject::Network(network) if network.contains(address)))
    }

    fn of_device(&self, device: &str) -> Set {
        self.set_where(|trace| matches!(&trace.subject, TraceSubject::Device(id) if **id == *device))
    }

    fn of_connection(&self, slot: ConnectionSlot, device: &str) -> Set {
        self.place(slot).and(self.of_device(device))
    }

    fn with_packets(&self) -> Set {
        self.set_where(|trace| trace.depth.packets)
    }

    fn begin_log(&mut self) -> &mut PacketLog {
        self.log.begin(self.traces.iter().any(|followed| followed.trace.depth.payloads));
        &mut self.log
    }

    /// Where the packets of a connection are noted during one call. Of one that is not known yet they are noted in case it turns
    /// out to be who is followed.
    pub(super) fn log_for(&mut self, slot: ConnectionSlot, device: &str) -> Option<&mut PacketLog> {
        let packets = self.with_packets();
        let of_devices = self.set_where(|trace| matches!(trace.subject, TraceSubject::Device(_)));
        let of_it = self.of_connection(slot, device);
        let set = if device.is_empty() { of_it.and(of_devices) } else { of_it };
        let is_wanted = !set.within(packets).is_empty();
        is_wanted.then(|| self.begin_log())
    }

    /// The connection in this slot comes from there.
    fn note_address(&mut self, slot: ConnectionSlot, address: IpAddr) {
        let set = self.of_address(address);
        if set.is_empty() {
            self.places.remove(&slot);
        } else if self.places.len() < TRACE_CONNECTIONS_MAX || self.places.contains_key(&slot) {
            self.places.insert(slot, set);
        } else {
            // It is followed no further, and that is said.
            self.leave_out(set, 1);
        }
    }

    fn leave_out(&self, set: Set, count: u64) {
        let left_out = self.traces.iter().enumerate().filter(|(place, _)| set.has(*place));
        left_out.for_each(|(_, followed)| followed.trace.leave_out(count));
    }

    /// Keeps an event for those in `set` that have room for it in this second.
    fn keep(&mut self, set: Set, event: TraceEvent) {
        let mut wanted = Set::default();
        for (place, followed) in self.traces.iter_mut().enumerate().filter(|(place, _)| set.has(*place)) {
            if event.at >= followed.trace.until {
                continue;
            }
            if event.at.since(followed.since) >= SECOND {
                (followed.since, followed.count) = (event.at, 0);
            }
            followed.count = followed.count.saturating_add(1);
            if followed.count > TRACE_EVENTS_PER_SECOND {
                followed.trace.leave_out(1);
            } else {
                wanted = wanted.with(place);
            }
        }
        if !wanted.is_empty() {
            self.events.push((wanted, event));
        }
    }

    /// The slot is free.
    pub(super) fn forget(&mut self, slot: ConnectionSlot) {
        if !self.places.is_empty() {
            self.places.remove(&slot);
        }
    }
}

impl Shard {
    // --- What is followed -------------------------------------------------------------------------------------------

    /// From now on these traces are followed, and no others. Who is there already is looked for by [`Shard::advance_traces`].
    pub fn follow(&mut self, traces: &[Arc<Trace>], now: Moment) {
        assert!(traces.len() <= TRACES_MAX);
        let fresh = self.tracer.replace(traces, now);
        let is_about_network = |trace: &Trace| matches!(trace.subject, TraceSubject::Network(_));
        if fresh.iter().any(|trace| is_about_network(trace)) {
            self.tracer.next_slot = Some(ConnectionSlot(0));
        } else if !traces.iter().any(|trace| is_about_network(trace)) {
            self.tracer.next_slot = None;
        }
        for trace in fresh {
            if let TraceSubject::Device(device) = &trace.subject
                && let Some(slot) = self.find(device)
            {
                let set = self.tracer.set_where(|followed| std::ptr::eq(followed, &raw const *trace));
                let event = self.trace_event(slot, now, TraceWhat::Present);
                self.tracer.keep(set, event);
            }
        }
    }

    /// Whether there are connections to be looked at for whether they come from a traced network.
    #[must_use]
    pub fn has_untraced(&self) -> bool {
        self.tracer.next_slot.is_some()
    }

    /// Looks at `limit` slots more. `address`: where the peer of the socket in a slot is.
    pub fn advance_traces(
        &mut self,
        limit: usize,
        address: impl Fn(ConnectionSlot) -> Option<SocketAddr>,
        now: Moment,
    ) {
        let Some(begin) = self.tracer.next_slot else { return };
        let end = (begin.index() + limit).min(self.slots);
        for slot in (begin.index()..end).map(ConnectionSlot::at) {
            let is_there = self.connections.get(slot).is_some_and(|connection| !connection.is_closed());
            if !is_there {
                continue;
            }
            let Some(address) = self.address(slot).or_else(|| address(slot)) else { continue };
            let before = self.tracer.place(slot);
            self.tracer.note_address(slot, address.ip());
            let set = self.tracer.place(slot).without(before);
            if !set.is_empty() {
                let event = self.trace_event(slot, now, TraceWhat::Present);
                self.tracer.keep(set, event);
            }
        }
        self.tracer.next_slot = (end < self.slots).then_some(ConnectionSlot::at(end));
    }

    // --- What happens -----------------------------------------------------------------------------------------------

    /// Tells what happens to a connection, if anybody follows it. Where nobody follows anything this is one branch.
    #[inline]
    pub(super) fn trace(&mut self, slot: ConnectionSlot, now: Moment, what: impl FnOnce() -> TraceWhat) {
        if !self.tracer.is_idle() {
            self.trace_anyway(slot, now, what());
        }
    }

    fn trace_anyway(&mut self, slot: ConnectionSlot, now: Moment, what: TraceWhat) {
        let set = self.tracer.of_connection(slot, self.connections[slot].device());
        if !set.is_empty() {
            let event = self.trace_event(slot, now, what);
            self.tracer.keep(set, event);
        }
    }

    fn trace_event(&self, slot: ConnectionSlot, now: Moment, what: TraceWhat) -> TraceEvent {
        let connection = &self.connections[slot];
        let address = self.address(slot);
        TraceEvent {
            at: now,
            worker: self.worker,
            connection: Some(self.id(slot)),
            listener: connection.listener(),
            address: address.map(|address| address.ip()),
            port: address.map_or(0, |address| address.port()),
            device: connection.device().into(),
            what,
        }
    }

    /// A socket from this address was accepted into this slot.
    pub fn trace_accepted(&mut self, slot: ConnectionSlot, address: IpAddr, now: Moment) {
        if !self.tracer.is_idle() {
            self.tracer.note_address(slot, address);
            self.trace_anyway(slot, now, TraceWhat::Accepted);
        }
    }

    /// A proxy has said whose connection it is: it is followed for its own address from now on, and not for the proxy's.
    pub(super) fn trace_announced(&mut self, slot: ConnectionSlot, now: Moment) {
        if !self.tracer.is_idle()
            && let Some(address) = self.address(slot)
        {
            self.tracer.note_address(slot, address.ip());
            self.trace_anyway(slot, now, TraceWhat::Announced);
        }
    }

    /// A connection has come home; its socket's peer is there.
    pub fn trace_arrived(&mut self, slot: ConnectionSlot, peer: impl FnOnce() -> Option<SocketAddr>, now: Moment) {
        if !self.tracer.is_idle() {
            if let Some(address) = self.address(slot).or_else(peer) {
                self.tracer.note_address(slot, address.ip());
            }
            self.trace_anyway(slot, now, TraceWhat::Arrived);
        }
    }

    /// A socket was refused before it had a slot.
    pub fn trace_refused(&mut self, address: IpAddr, listener: ListenerId, refusal: Refusal, now: Moment) {
        if self.tracer.is_idle() {
            return;
        }
        let set = self.tracer.of_address(address);
        if !set.is_empty() {
            let event = TraceEvent {
                at: now,
                worker: self.worker,
                connection: None,
                listener,
                address: Some(address),
                port: 0,
                device: Box::default(),
                what: TraceWhat::Refused(refusal),
            };
            self.tracer.keep(set, event);
        }
    }

    /// The call on a connection is over in which its packets were noted.
    pub(super) fn trace_packets(&mut self, slot: ConnectionSlot, now: Moment) {
        if self.tracer.log.is_empty() {
            return;
        }
        let (packets, left_out) = self.tracer.log.take();
        let device = self.connections[slot].device();
        let set = self.tracer.of_connection(slot, device).within(self.tracer.with_packets());
        if set.is_empty() {
            return;
        }
        let payloads = set.within(self.tracer.set_where(|trace| trace.depth.payloads));
        let names = set.without(payloads);
        self.tracer.leave_out(set, left_out);
        for packet in packets {
            if !payloads.is_empty() {
                let event = self.trace_event(slot, now, TraceWhat::Packet(Box::new(packet.clone())));
                self.tracer.keep(payloads, event);
            }
            if !names.is_empty() {
                let packet = TracedPacket { payload: None, ..packet };
                let event = self.trace_event(slot, now, TraceWhat::Packet(Box::new(packet)));
                self.tracer.keep(names, event);
            }
        }
    }

    /// TLS stands.
    pub(super) fn trace_established(&mut self, slot: ConnectionSlot, is_resumed: bool, now: Moment) {
        if self.tracer.is_idle() {
            return;
        }
        let connection = &self.connections[slot];
        let (version, suite, _) = connection.facts().unwrap_or_default();
        let is_certified = self.sweep.mark(slot).is_some();
        self.trace_anyway(slot, now, TraceWhat::Established { version, suite, is_resumed, is_certified });
    }

    /// Its handshake has begun.
    pub(super) fn trace_handshake(&mut self, slot: ConnectionSlot, now: Moment) {
        self.trace_about(slot, now, |connection| {
            // When it came is known by its tick alone.
            TraceWhat::Handshake { waited: TICK * now.tick().since(connection.connected_at()) }
        });
    }

    /// It has answered a probe.
    pub(super) fn trace_answered(&mut self, slot: ConnectionSlot, now: Moment) {
        self.trace_about(slot, now, |connection| TraceWhat::Answered {
            round_trip: connection.liveness().round_trip(),
        });
    }

    fn trace_about(&mut self, slot: ConnectionSlot, now: Moment, what: impl FnOnce(&Connection) -> TraceWhat) {
        if !self.tracer.is_idle() {
            let what = what(&self.connections[slot]);
            self.trace_anyway(slot, now, what);
        }
    }

    // --- To whom it is told -----------------------------------------------------------------------------------------

    /// Hands what happened to those who follow it, and never waits for them. `peer`: where the peer of the socket in a slot is;
    /// to be called before slots are freed.
    pub fn tell_traces(&mut self, peer: impl Fn(ConnectionSlot) -> Option<SocketAddr>) {
        if self.tracer.events.is_empty() {
            return;
        }
        for (set, mut event) in std::mem::take(&mut self.tracer.events) {
            if event.address.is_none()
                && let Some(peer) = event.connection.and_then(|connection| peer(connection.slot))
            {
                (event.address, event.port) = (Some(peer.ip()), peer.port());
            }
            for (place, followed) in self.tracer.traces.iter().enumerate() {
                if set.has(place) {
                    followed.trace.tell(event.clone());
                }
            }
        }
    }
}

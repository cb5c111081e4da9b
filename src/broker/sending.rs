//! What is written to one device: what a former connection left first, then what waits, then what is retained, then what has just
//! come; as far as there is room for it, and each no more than once on one connection.

use std::sync::Arc;
use std::time::Duration;

use super::delivery::{SESSION_LOOKS, SendBudget};
use super::inflight::{Delivery, Sending};
use super::journal::Waiting;
use super::lifecycle::{NO_KEY, Session, Walk};
use super::replay::Replays;
use super::retained::{Position, Step};
use super::settlement::NOTHING;
use super::{ALIASES_MAX, Broker, RequestEnd};
use crate::codec::mqtt::ack::Ack;
use crate::codec::mqtt::{Outgoing, Packet, Properties, QoS, Reason, Version};
use crate::metrics::Metric;
use crate::slot::SessionSlot;
use crate::time::Moment;

/// Why no more retained messages go to a session now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    /// Its looks of this turn are used up.
    Walk,
    /// The device is being sent enough.
    Room,
    /// As many as may be are unacknowledged; or nothing is left.
    Window,
}

/// How far what is in flight has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resent {
    /// All of it was sent on this connection.
    All,
    /// The next one waits until it is recorded.
    Unrecorded,
    /// The device is being sent enough.
    Stopped,
}

/// How an attempt to send ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// It was encoded.
    Encoded,
    /// It has no room now.
    NoRoom,
    /// It can never go on this connection: it is longer than the device takes.
    TooLong,
}

impl Broker {
    /// What had no room waits for the next turn, or for the socket if that is what it is short of.
    pub(super) fn wait_for_room(&mut self, session: SessionSlot, budget: &SendBudget) {
        if budget.unsent == 0 {
            self.note_backlog(session);
        }
    }

    /// Sends again what a former connection left unacknowledged, then what waits, as far as there is room.
    pub(super) fn send_waiting(&mut self, session: SessionSlot, budget: &mut SendBudget) {
        let maximum = self.inflight_maximum(session);
        if self.is_ungreeted(session) {
            return;
        }
        let mut waits = match self.resend(session, maximum, budget) {
            Resent::All => false,
            Resent::Unrecorded => true,
            Resent::Stopped => return,
        };
        loop {
            let inflight = self.sessions[session].inflight.as_deref_mut();
            let Some(inflight) = inflight else { return };
            let has_stored = inflight.has_stored();
            let Some(next) = inflight.peek() else {
                if has_stored {
                    self.read_stored(session);
                } else {
                    self.send_retained(session, budget);
                }
                return;
            };
            let qos = next.qos;
            if qos.is_acknowledged() && (waits || self.is_recorded_first(session, qos)) {
                if !self.begin_later(session, maximum, budget) {
                    return;
                }
                waits = true;
                continue;
            }
            let inflight = self.sessions.inflight(session);
            if qos.is_acknowledged() && !inflight.may_send(maximum) {
                return;
            }
            let delivery = inflight.dequeue().expect("one was seen");
            if let Err(delivery) = self.send_new(session, delivery, budget) {
                self.sessions.inflight(session).put_back(delivery);
                return self.wait_for_room(session, budget);
            }
            self.admit_waiting(session);
        }
    }

    /// Sends again what a former connection left unacknowledged, and what has waited until it was recorded.
    fn resend(&mut self, session: SessionSlot, maximum: usize, budget: &mut SendBudget) -> Resent {
        while let Some(inflight) = self.sessions[session].inflight.as_deref()
            && let Some(outbound) = inflight.next_to_resend()
        {
            if inflight.owes_pubrel() {
                // Of what came before it: when that is said it goes on.
                return Resent::Stopped;
            }
            if !self.journal.is_safe(outbound.mark) {
                return Resent::Unrecorded;
            }
            let (packet, dup) = (outbound.packet, !outbound.is_new);
            let sent = match &outbound.state {
                Sending::Released => {
                    // [MQTT-4.4.0-1]
                    let version = self.sessions[session].profile.version;
                    let pubrel = Ack { packet_id: packet, reason: Reason::SUCCESS, properties: Properties::EMPTY };
                    Packet::Pubrel(pubrel).encode(version, budget.out);
                    Sent::Encoded
                }
                // The next acknowledgement makes room [v5 MQTT-3.3.4-9].
                Sending::Sent(_) | Sending::Stored { .. } if !inflight.may_resend(maximum) => return Resent::Stopped,
                Sending::Stored { .. } => {
                    self.read_stored(session);
                    return Resent::Stopped;
                }
                Sending::Sent(delivery) => {
                    let delivery = Delivery::clone(delivery);
                    encode(&mut self.sessions[session], self.deliveries.turn, &delivery, packet, dup, budget)
                }
            };
            match sent {
                Sent::Encoded => self.sessions.inflight(session).resent(),
                Sent::NoRoom => {
                    self.wait_for_room(session, budget);
                    return Resent::Stopped;
                }
                Sent::TooLong => {
                    budget.counters.add(Metric::DroppedTooLarge, 1);
                    if let Some(given_up) = self.sessions.inflight(session).give_up() {
                        self.end_too_large(given_up.request, given_up.is_lent());
                        self.record_done(session, given_up.number);
                    }
                }
            }
        }
        Resent::All
    }

    /// Whether a message of this quality must be recorded as sent before it is: the device knows it by its packet identifier.
    pub(super) fn is_recorded_first(&self, session: SessionSlot, qos: QoS) -> bool {
        qos == QoS::ExactlyOnce && self.sessions[session].key != NO_KEY
    }

    /// Gives the next message that waits its packet identifier; it is sent when that is recorded. `false`: not now.
    fn begin_later(&mut self, session: SessionSlot, maximum: usize, budget: &mut SendBudget) -> bool {
        let inflight = self.sessions.inflight(session);
        if inflight.unacknowledged() >= maximum {
            return false;
        }
        let Some(mut delivery) = inflight.dequeue() else { return false };
        if delivery.publication.is_expired(budget.now) {
            // [v5 MQTT-3.3.2-5]
            budget.counters.add(Metric::DroppedExpired, 1);
            self.drop_of(session, &delivery);
        } else {
            let packet = self.next_packet(session);
            self.record_sent(session, &mut delivery, packet);
            let mark = self.journal.mark();
            self.sessions.inflight(session).begin_later(packet, delivery, mark);
            let id = self.id(session);
            self.when_safe(Waiting::Backlog(id));
        }
        self.admit_waiting(session);
        true
    }

    /// Sends what new subscriptions find retained, as far as there is room and as far as may be looked for it in one turn.
    /// What is kept is looked up when it goes, so that none is older than what went before it. All of it comes behind SUBACK: there
    /// are clients that know of their own subscription only then, and throw away what came before.
    fn send_retained(&mut self, session: SessionSlot, budget: &mut SendBudget) {
        let inflight = self.sessions[session].inflight.as_deref_mut().filter(|inflight| !inflight.has_suback());
        let Some(mut replays) = inflight.and_then(|inflight| inflight.replays.take()) else { return };
        let stopped = self.send_replays(session, &mut replays, budget);
        if replays.is_empty() {
            return;
        }
        self.sessions.inflight(session).replays = Some(replays);
        match stopped {
            Stopped::Walk => self.note_walk(session),
            Stopped::Room => self.wait_for_room(session, budget),
            // The next acknowledgement goes on.
            Stopped::Window => {}
        }
    }

    fn send_replays(&mut self, session: SessionSlot, replays: &mut Replays, budget: &mut SendBudget) -> Stopped {
        let maximum = self.inflight_maximum(session);
        let mut looks = self.looks_for(session);
        let allowed = looks;
        let stopped = loop {
            let Some((filter, replay)) = replays.first() else { break Stopped::Window };
            let inflight = self.sessions[session].inflight.as_deref();
            // Whoever may be sent nothing now needs no look.
            if replay.qos().is_acknowledged() && !inflight.is_none_or(|inflight| inflight.may_send(maximum)) {
                break Stopped::Window;
            }
            if looks == 0 {
                break Stopped::Walk;
            }
            match self.routing.retained.next_matching(filter, replay.arrivals(), replay.position(), &mut looks) {
                Step::End => replays.finish(),
                Step::Later(topic) => replays.set_position(Position::At(topic)),
                Step::Found(publication) => {
                    let publication = Arc::clone(publication);
                    let delivery = replay.delivery(&publication);
                    if !publication.is_expired(budget.now) && self.send_new(session, delivery, budget).is_err() {
                        break Stopped::Room;
                    }
                    replays.set_position(Position::After(publication));
                }
            }
        };
        self.deliveries.looks -= (allowed - looks).min(self.deliveries.looks);
        stopped
    }

    /// How often this session may look at retained messages now. Those that wait for it take turns.
    fn looks_for(&mut self, session: SessionSlot) -> usize {
        let walk = &mut self.sessions[session].walk;
        let may = match walk {
            Walk::Due => true,
            Walk::Waits => false,
            Walk::None => self.deliveries.walks.is_empty(),
        };
        if *walk == Walk::Due {
            *walk = Walk::None;
        }
        if may { self.deliveries.looks.min(SESSION_LOOKS) } else { 0 }
    }

    fn note_walk(&mut self, session: SessionSlot) {
        let known = &mut self.sessions[session];
        if known.walk != Walk::Waits {
            known.walk = Walk::Waits;
            self.deliveries.walks.push_back((session, known.generation));
        }
    }

    /// Sends a message for the first time. It comes back when there is no room for it now.
    pub(super) fn send_new(
        &mut self,
        session: SessionSlot,
        delivery: Delivery,
        budget: &mut SendBudget,
    ) -> Result<(), Delivery> {
        if delivery.publication.is_expired(budget.now) {
            // [v5 MQTT-3.3.2-5]
            budget.counters.add(Metric::DroppedExpired, 1);
            self.drop_of(session, &delivery);
            return Ok(());
        }
        let packet = if delivery.qos.is_acknowledged() { self.next_packet(session) } else { 0 };
        match encode(&mut self.sessions[session], self.deliveries.turn, &delivery, packet, false, budget) {
            Sent::Encoded => {
                budget.counters.add(Metric::Delivered, 1);
                let (token, mut was_recorded) = (delivery.token, false);
                if delivery.qos.is_acknowledged() {
                    let mut delivery = Delivery { token: NOTHING, ..delivery };
                    was_recorded = self.record_sent(session, &mut delivery, packet);
                    self.sessions.inflight(session).begin(packet, delivery);
                }
                self.settle_kept(token, was_recorded);
                Ok(())
            }
            Sent::NoRoom => Err(delivery),
            Sent::TooLong => {
                // As if it had been delivered [v5 MQTT-3.1.2-25].
                budget.counters.add(Metric::DroppedTooLarge, 1);
                self.drop_too_large(session, delivery);
                Ok(())
            }
        }
    }

    /// A message that the session never takes. Of one for a group the fleet hears that it is done with: it might be too large for all of
    /// its members (v5 3.1.2.11.4).
    pub(super) fn drop_too_large(&mut self, session: SessionSlot, mut delivery: Delivery) {
        let is_lent = delivery.is_lent();
        self.end_too_large(std::mem::take(&mut delivery.request), is_lent);
        self.drop_of(session, &delivery);
    }

    fn end_too_large(&mut self, request: u64, is_lent: bool) {
        if is_lent {
            self.requests.push((request, RequestEnd::Published));
        } else {
            self.give_up_request(request);
        }
    }

    /// The next packet identifier: not 0, and not one in use [MQTT-2.2.1-3].
    fn next_packet(&mut self, session: SessionSlot) -> u16 {
        let known = &mut self.sessions[session];
        loop {
            known.next_packet = known.next_packet.wrapping_add(1);
            let packet = known.next_packet;
            if packet != 0 && !known.inflight.as_deref().is_some_and(|inflight| inflight.uses(packet)) {
                return packet;
            }
        }
    }
}

/// Appends a PUBLISH, if there is room.
fn encode(
    session: &mut Session,
    turn: u32,
    delivery: &Delivery,
    packet: u16,
    dup: bool,
    budget: &mut SendBudget,
) -> Sent {
    if session.turn != turn {
        (session.turn, session.turn_bytes) = (turn, 0);
    }
    let spent = session.turn_bytes as usize + budget.unsent;
    let version = session.profile.version;
    let publication = &*delivery.publication;
    let (alias, is_new) = choose_alias(session, &publication.topic);
    let mut outgoing = Outgoing {
        topic: if alias.is_some() && !is_new { "" } else { &publication.topic },
        alias,
        qos: delivery.qos,
        retain: delivery.retain,
        dup,
        packet_id: packet,
        message_expiry: publication.expires.map(|expires| seconds_left(expires, budget.now)),
        subscription_identifiers: delivery.identifiers.as_slice(),
        forwarded: &publication.properties,
        payload: &publication.payload,
    };
    let maximum = session.profile.packet_maximum as usize;
    let mut length = outgoing.encoded_len(version);
    if length > maximum && is_new {
        outgoing.alias = None;
        length = outgoing.encoded_len(version);
    }
    if length > maximum {
        return Sent::TooLong;
    }
    // One always goes when nothing else is on its way, however long it is.
    if spent > 0 && spent + length > budget.turn_bytes {
        return Sent::NoRoom;
    }
    if is_new && outgoing.alias.is_some() {
        session.inflight.get_or_insert_default().aliases_out.push(publication.topic.clone());
    }
    outgoing.encode(version, budget.out);
    session.turn_bytes = (session.turn_bytes as usize + length).min(u32::MAX as usize) as u32;
    Sent::Encoded
}

/// The number that the topic has on this connection, or gets. The first topics get them: devices have few.
fn choose_alias(session: &Session, topic: &str) -> (Option<u16>, bool) {
    let maximum = session.profile.alias_maximum.min(ALIASES_MAX);
    if maximum == 0 || session.profile.version != Version::V5 {
        return (None, false);
    }
    let known = session.inflight.as_deref().map_or(&[][..], |inflight| &inflight.aliases_out);
    match known.iter().position(|known| **known == *topic) {
        Some(place) => (Some(place as u16 + 1), false),
        None if known.len() < usize::from(maximum) => (Some(known.len() as u16 + 1), true),
        None => (None, false),
    }
}

/// To the nearest second, and at least one as long as it has not expired [v5 MQTT-3.3.2-6]. Rounded, since the shard that
/// sends may be a little behind the one that received.
fn seconds_left(expires: Moment, now: Moment) -> u32 {
    let left = expires.since(now) + Duration::from_millis(500);
    u32::try_from(left.as_secs().max(1)).unwrap_or(u32::MAX)
}

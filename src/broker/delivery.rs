//! From deliveries to bytes: what may go to a device now, what waits, what goes again, and what it acknowledges.
//!
//! A device is sent no more in one turn than its outbox could hold, so that a flood makes it wait, not end. What waits
//! is bounded. Beyond the bound a message with an acknowledgement waits unsettled for a device that takes what it is sent, and
//! its publisher with it; for a device that is away, or stalled, and without an acknowledgement it is dropped and counted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::inbound::FilterLooks;
use super::inflight::{Delivery, Enqueued, Inflight, QueueBound, Released, Sending, WrongAck};
use super::journal::Waiting;
use super::lifecycle::{NO_KEY, Session, Walk};
use super::replay::Replays;
use super::retained::{BURIED_IN_A_TURN, Position, Step};
use super::settlement::{NOTHING, Part, Token};
use super::{ALIASES_MAX, Broker, RequestEnd};
use crate::codec::mqtt::ack::Ack;
use crate::codec::mqtt::{Outgoing, Packet, Properties, QoS, Reason, Version};
use crate::image::Change;
use crate::metrics::{Counters, Metric};
use crate::pool::Class;
use crate::slot::{ConnectionSlot, SessionSlot};
use crate::time::{Moment, Tick};

/// Looks at retained messages in one turn, all sessions together: at some 0.3 µs each.
pub(super) const TURN_LOOKS: usize = 4_096;
/// Those of one session, as long as others wait.
pub(super) const SESSION_LOOKS: usize = 256;

/// What lies in the store for one device that is away is at most such a part of what is free there.
const STORED_PART: u64 = 8;

impl QueueBound {
    /// What counts a message that is refused beside so many messages and bytes.
    fn refused_as(&self, (messages, bytes): (usize, usize), next: &Delivery) -> Metric {
        let is_own = messages >= self.messages || bytes + next.publication.bytes() > self.bytes;
        if !is_own && self.is_store_short(bytes, next) { Metric::DroppedStoreFull } else { Metric::DroppedQueueFull }
    }
}

/// What a connection lends while its device is written to.
pub struct SendBudget<'a> {
    /// Plaintext for the device, appended.
    pub out: &'a mut Vec<u8>,
    /// Bytes that the socket did not take yet.
    pub unsent: usize,
    /// Bytes that the device may be sent in one turn.
    pub turn_bytes: usize,
    /// The time of this call.
    pub now: Moment,
    /// The shard's figures.
    pub counters: &'a mut Counters,
}

/// Deliveries of one session, in their order.
#[derive(Debug)]
pub struct SessionBatch {
    /// The session's slot.
    pub session: SessionSlot,
    /// Its generation: the slot may be another's by the time it is looked at.
    pub generation: u32,
    /// The deliveries.
    pub deliveries: Vec<Delivery>,
}

/// A delivery and whose it is.
pub(super) struct RoutedDelivery {
    pub(super) session: SessionSlot,
    pub(super) generation: u32,
    delivery: Delivery,
}

/// What was routed and is not with its session yet, and the sessions that could be sent more.
#[derive(Default)]
pub(super) struct Deliveries {
    pub(super) routed: VecDeque<RoutedDelivery>,
    /// Those for devices that are away, in order, while what came before is not safe in the store: see [`Broker::waits_for_store`].
    pub(super) held: VecDeque<RoutedDelivery>,
    /// Sessions whose devices did not take all at once.
    backlog: Vec<(SessionSlot, u32)>,
    /// Sessions whose retained messages are to be looked up, in turns.
    walks: VecDeque<(SessionSlot, u32)>,
    /// Looks at retained messages that are left in this turn.
    looks: usize,
    turn: u32,
}

impl Deliveries {
    pub(super) fn len(&self) -> usize {
        self.routed.len() + self.held.len()
    }

    /// Whether nothing is to be done but with what is held.
    pub(super) fn is_empty(&self) -> bool {
        self.routed.is_empty() && self.backlog.is_empty() && self.walks.is_empty()
    }

    pub(super) fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// What is held goes on, before what came later.
    pub(super) fn release_held(&mut self) {
        if !self.held.is_empty() {
            self.held.append(&mut self.routed);
            self.routed = std::mem::take(&mut self.held);
        }
    }

    pub(super) fn push(&mut self, session: SessionSlot, generation: u32, delivery: Delivery) {
        self.routed.push_back(RoutedDelivery { session, generation, delivery });
    }
}

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
    // --- The shard's part -------------------------------------------------------------------------------------------

    /// Begins a turn: every device may be sent as much as its outbox holds again.
    pub fn begin_turn(&mut self) {
        self.staged.begin_turn();
        self.advance_matching();
        self.advance_ends();
        self.deliveries.turn = self.deliveries.turn.wrapping_add(1);
        self.deliveries.looks = TURN_LOOKS;
        self.filter_looks = FilterLooks::of_turn();
        self.routing.retained.bury(&self.exchange, BURIED_IN_A_TURN);
    }

    /// Takes out at most `limit` deliveries, gathered by session in their order; and, without deliveries, the sessions whose
    /// devices had no room for all that there was, and those whose turn it is to look for retained messages.
    pub fn next_deliveries(&mut self, limit: usize) -> Vec<SessionBatch> {
        let mut batches: Vec<SessionBatch> = Vec::new();
        for (session, generation) in std::mem::take(&mut self.deliveries.backlog) {
            if self.sessions.is_current(session, generation) {
                self.sessions[session].is_backlogged = false;
                batches.push(SessionBatch { session, generation, deliveries: Vec::new() });
            }
        }
        for _ in 0..TURN_LOOKS / SESSION_LOOKS {
            let Some((session, generation)) = self.deliveries.walks.pop_front() else { break };
            if self.sessions.is_current(session, generation) {
                self.sessions[session].walk = Walk::Due;
                batches.push(SessionBatch { session, generation, deliveries: Vec::new() });
            }
        }
        let mut now = self.take_routed(limit);
        now.sort_by_key(|delivery| delivery.session);
        for RoutedDelivery { session, generation, delivery } in now {
            match batches.last_mut() {
                Some(batch)
                    if (batch.session, batch.generation) == (session, generation) && !batch.deliveries.is_empty() =>
                {
                    batch.deliveries.push(delivery);
                }
                _ => batches.push(SessionBatch { session, generation, deliveries: vec![delivery] }),
            }
        }
        batches
    }

    /// The slot of a session's connection; `None` if its device is away, or the session is not the one that was meant.
    #[must_use]
    pub fn connection_of(&self, session: SessionSlot, generation: u32) -> Option<ConnectionSlot> {
        self.sessions.connection_of(session, generation)
    }

    /// Keeps deliveries for a device that is away, as far as they are to be acknowledged.
    pub fn keep(&mut self, batch: SessionBatch, now: Moment, counters: &mut Counters) {
        let is_current = self.sessions.is_current(batch.session, batch.generation);
        for delivery in batch.deliveries {
            self.staged.note_arrived(batch.session, batch.generation, delivery.number);
            if is_current {
                self.keep_one(batch.session, delivery, now, counters);
            } else {
                self.drop_delivery(&delivery);
            }
        }
        if is_current {
            self.spill_when_safe(batch.session);
            self.sessions.shed_empty_inflight(batch.session);
        }
    }

    /// The socket of a connection has taken everything: what its session could not send goes on.
    pub fn handle_drained(&mut self, connection: ConnectionSlot) {
        if let Some(session) = self.of(connection) {
            self.note_backlog(session);
        }
    }

    // --- Writing to a device ----------------------------------------------------------------------------------------

    /// Sends what is in `deliveries`, and before it whatever of the session's older messages there is room for.
    pub fn write(&mut self, session: SessionSlot, deliveries: Vec<Delivery>, budget: &mut SendBudget) {
        self.send_waiting(session, budget);
        for delivery in deliveries {
            self.staged.note_arrived(session, self.sessions[session].generation, delivery.number);
            self.write_one(session, delivery, budget);
        }
        self.sessions.shed_empty_inflight(session);
    }

    fn write_one(&mut self, session: SessionSlot, delivery: Delivery, budget: &mut SendBudget) {
        let maximum = self.inflight_maximum(session);
        let inflight = self.sessions[session].inflight.as_deref();
        let waits = inflight.is_some_and(|inflight| {
            inflight.queued().0 > 0
                || inflight.greeting.is_some()
                || (delivery.qos.is_acknowledged() && !inflight.may_send(maximum))
        });
        if self.is_recorded_first(session, delivery.qos) {
            self.enqueue(session, delivery, budget.now.tick(), budget.counters);
            return self.send_waiting(session, budget);
        }
        if waits {
            return self.enqueue(session, delivery, budget.now.tick(), budget.counters);
        }
        if let Err(delivery) = self.send_new(session, delivery, budget) {
            self.enqueue(session, delivery, budget.now.tick(), budget.counters);
            self.wait_for_room(session, budget);
        }
    }

    /// What had no room waits for the next turn, or for the socket if that is what it is short of.
    fn wait_for_room(&mut self, session: SessionSlot, budget: &SendBudget) {
        if budget.unsent == 0 {
            self.note_backlog(session);
        }
    }

    /// Sends again what a former connection left unacknowledged, then what waits, as far as there is room.
    fn send_waiting(&mut self, session: SessionSlot, budget: &mut SendBudget) {
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
                        self.give_up_request(given_up.request);
                        self.record_done(session, given_up.number);
                    }
                }
            }
        }
        Resent::All
    }

    /// Whether a message of this quality must be recorded as sent before it is: the device knows it by its packet identifier.
    fn is_recorded_first(&self, session: SessionSlot, qos: QoS) -> bool {
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

    // --- What is recorded -------------------------------------------------------------------------------------------

    /// Records that a message is sent under a packet identifier, if its session is recorded. Whether it was.
    fn record_sent(&mut self, session: SessionSlot, delivery: &mut Delivery, packet: u16) -> bool {
        let key = self.sessions[session].key;
        if key == NO_KEY {
            return false;
        }
        if delivery.number == 0 {
            self.journal.record_message(key, delivery, Some(packet));
        } else {
            self.journal.record(Change::Sent { session: key, number: delivery.number, packet });
        }
        true
    }

    /// Records the message of a session that is within the bound at this place. Whether it was recorded now.
    fn record_kept(&mut self, session: SessionSlot, place: usize) -> bool {
        let known = &mut self.sessions[session];
        let key = known.key;
        let Some(inflight) = known.inflight.as_deref_mut().filter(|_| key != NO_KEY) else { return false };
        let Some(delivery) = inflight.kept_mut(place) else { return false };
        let is_new = delivery.qos.is_acknowledged() && delivery.number == 0;
        if is_new {
            self.journal.record_message(key, delivery, None);
        }
        is_new
    }

    /// A message of a session is done with.
    fn record_done(&mut self, session: SessionSlot, number: u64) {
        let key = self.sessions[session].key;
        if number != 0 && key != NO_KEY {
            self.journal.record(Change::Done { session: key, number });
        }
    }

    /// A message is with its session: that part of its settlement is done, or will be when what was recorded is safe.
    fn settle_kept(&mut self, token: Token, was_recorded: bool) {
        if was_recorded && token != NOTHING {
            self.when_safe(Waiting::Part(token));
        } else {
            self.settle(token, Part::Taken);
        }
    }

    /// A message of a session goes nowhere. Whoever drops it has counted it.
    fn drop_of(&mut self, session: SessionSlot, delivery: &Delivery) {
        self.record_done(session, delivery.number);
        self.drop_delivery(delivery);
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
    fn send_new(&mut self, session: SessionSlot, delivery: Delivery, budget: &mut SendBudget) -> Result<(), Delivery> {
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
                self.drop_of(session, &delivery);
                Ok(())
            }
        }
    }

    /// Puts a message into the session's queue, or behind it where its publisher may wait for the device.
    fn enqueue(&mut self, session: SessionSlot, delivery: Delivery, now: Tick, counters: &mut Counters) {
        let queued = self.sessions.inflight(session).queued();
        let bound = self.queue_bound(session);
        let may_wait = self.sessions[session].is_online() && delivery.qos.is_acknowledged();
        match self.sessions.inflight(session).enqueue(delivery, &bound, may_wait) {
            Ok(Enqueued::Kept(token)) => {
                let place = self.sessions.inflight(session).kept().0 - 1;
                let was_recorded = self.record_kept(session, place);
                self.settle_kept(token, was_recorded);
            }
            Ok(Enqueued::FirstWaits) => {
                self.sessions.inflight(session).begin_pace(now);
                self.paces.watch(session, self.sessions[session].generation, now);
            }
            Ok(Enqueued::Waits) => {}
            Err(delivery) => {
                counters.add(bound.refused_as(queued, &delivery), 1);
                self.drop_of(session, &delivery);
            }
        }
    }

    /// There is room in the queue: those that wait behind it come in, and are safe.
    fn admit_waiting(&mut self, session: SessionSlot) {
        let bound = self.queue_bound(session);
        let (mut settled, mut first) = (Vec::new(), 0);
        if let Some(inflight) = self.sessions[session].inflight.as_deref_mut() {
            first = inflight.kept().0;
            inflight.admit_waiting(&bound, &mut settled);
        }
        for (place, token) in (first..).zip(settled) {
            let was_recorded = self.record_kept(session, place);
            self.settle_kept(token, was_recorded);
        }
    }

    /// What may wait in a session now: what the configuration says, and no more than the pool has for one holder.
    fn queue_bound(&self, session: SessionSlot) -> QueueBound {
        let known = &self.sessions[session];
        let inflight = known.inflight.as_deref();
        let (_, queued) = inflight.map_or((0, 0), Inflight::kept);
        // Beside what waits: what is in flight, and what each message takes beside its bytes.
        let others = inflight.map_or(0, Inflight::charged).saturating_sub(queued);
        let room = (self.pool.largest(Class::Queues) as usize).saturating_sub(others);
        let is_online = known.is_online();
        let is_stored = known.is_spilled();
        // As in the pool: whoever has some gets more only while that is at most a part of what is free.
        let free = self.bounds.stored_bytes.saturating_sub(self.sessions.stored_bytes);
        let stored = is_stored.then_some((free / STORED_PART) as usize);
        QueueBound { messages: self.bounds.messages, bytes: self.bounds.bytes, room, stored, is_online }
    }

    /// A message goes nowhere: nobody waits for it any more. Whoever drops it has counted it.
    fn drop_delivery(&mut self, delivery: &Delivery) {
        self.give_up_request(delivery.request);
        self.settle(delivery.token, Part::Taken);
    }

    fn give_up_request(&mut self, request: u64) {
        if request != 0 {
            self.requests.push((request, RequestEnd::Unacknowledged));
        }
    }

    /// The connection has ended: whoever waited for what it was to be sent is told.
    pub(super) fn release(&mut self, session: SessionSlot, released: Released, counters: &mut Counters) {
        counters.add(Metric::DroppedQueueFull, released.dropped as u64);
        for request in released.requests {
            self.give_up_request(request);
        }
        for number in released.numbers {
            self.record_done(session, number);
        }
        for token in released.tokens {
            self.settle(token, Part::Taken);
        }
    }

    /// A message for a device that is away: kept if it is to be acknowledged.
    fn keep_one(&mut self, session: SessionSlot, delivery: Delivery, now: Moment, counters: &mut Counters) {
        self.give_up_request(delivery.request);
        let delivery = Delivery { request: 0, ..delivery };
        if delivery.qos.is_acknowledged() && !delivery.publication.is_expired(now) {
            self.enqueue(session, delivery, now.tick(), counters);
        } else {
            self.drop_of(session, &delivery);
        }
    }

    pub(super) fn note_backlog(&mut self, session: SessionSlot) {
        let known = &mut self.sessions[session];
        if !known.is_backlogged && known.inflight.as_deref().is_some_and(Inflight::has_waiting) {
            known.is_backlogged = true;
            self.deliveries.backlog.push((session, known.generation));
        }
    }

    pub(super) fn inflight_maximum(&self, session: SessionSlot) -> usize {
        let known = &self.sessions[session];
        let charged = known.inflight.as_deref().map_or(0, Inflight::charged);
        if charged as u64 > self.pool.largest(Class::Queues) {
            // It has its part of the pool: one after the other, so that it goes on.
            return 1;
        }
        usize::from(known.profile.receive_maximum.min(self.bounds.inflight))
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

    // --- What the device acknowledges ---------------------------------------------------------------------------------

    /// PUBACK. `Ok(false)`: no such message is in flight. `confirmed` is handed the request that waited for it.
    ///
    /// # Errors
    /// [`WrongAck`] if the message waits for another acknowledgement.
    pub fn handle_puback(
        &mut self,
        session: SessionSlot,
        packet: u16,
        confirmed: impl FnOnce(u64),
    ) -> Result<bool, WrongAck> {
        let Some(inflight) = self.sessions[session].inflight.as_deref_mut() else { return Ok(false) };
        let (number, _) = inflight.number_of(packet);
        let Some(request) = inflight.handle_puback(packet)? else { return Ok(false) };
        if request != 0 {
            confirmed(request);
        }
        self.record_done(session, number);
        self.after_acknowledgement(session);
        Ok(true)
    }

    /// PUBREC; `failed`: with a reason that ends the message. `Ok(false)`: no such message is in flight.
    ///
    /// # Errors
    /// [`WrongAck`] if the message waits for another acknowledgement.
    pub fn handle_pubrec(
        &mut self,
        session: SessionSlot,
        packet: u16,
        failed: bool,
        confirmed: impl FnOnce(u64),
    ) -> Result<bool, WrongAck> {
        let Some(inflight) = self.sessions[session].inflight.as_deref_mut() else { return Ok(false) };
        let (number, was_released) = inflight.number_of(packet);
        let Some(request) = inflight.handle_pubrec(packet, failed)? else { return Ok(false) };
        if request != 0 {
            confirmed(request);
        }
        if failed {
            self.record_done(session, number);
        } else if !was_released && number != 0 {
            self.journal.record(Change::Released { session: self.sessions[session].key, number });
        }
        self.after_acknowledgement(session);
        Ok(true)
    }

    /// PUBCOMP. `Ok(false)`: no such message is in flight.
    ///
    /// # Errors
    /// [`WrongAck`] if the message waits for another acknowledgement.
    pub fn handle_pubcomp(&mut self, session: SessionSlot, packet: u16) -> Result<bool, WrongAck> {
        let Some(inflight) = self.sessions[session].inflight.as_deref_mut() else { return Ok(false) };
        let (number, _) = inflight.number_of(packet);
        let done = inflight.handle_pubcomp(packet)?;
        if done {
            self.record_done(session, number);
        }
        self.after_acknowledgement(session);
        Ok(done)
    }

    fn after_acknowledgement(&mut self, session: SessionSlot) {
        self.sessions.shed_empty_inflight(session);
        self.note_backlog(session);
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

//! From deliveries to bytes: what may go to a device now, what waits, what goes again, and what it acknowledges.
//!
//! A device is sent no more in one turn than its outbox could hold, so that a flood makes it wait, not end. What waits
//! is bounded; what goes beyond the bound is dropped and counted, QoS 0 and above alike.

use std::sync::Arc;
use std::time::Duration;

use super::inflight::{Answer, Delivery, Inflight, Receiving, Sending, WrongAck};
use super::replay::Replays;
use super::retained::{Position, Step};
use super::{ALIASES_MAX, Broker, NOBODY, RoutedDelivery, Session, Walk};
use crate::codec::mqtt::ack::Ack;
use crate::codec::mqtt::{Outgoing, Packet, Properties, QoS, Reason, Version};
use crate::link::SessionId;
use crate::metrics::{Counters, Figure};
use crate::time::Moment;

/// Looks at retained messages in one turn, all sessions together: at some 0.3 µs each.
pub(super) const TURN_LOOKS: usize = 4_096;
/// Those of one session, as long as others wait.
pub(super) const SESSION_LOOKS: usize = 256;

/// What a connection lends while its device is written to.
pub struct SendBudget<'a> {
    /// Plaintext for the device, appended.
    pub out: &'a mut Vec<u8>,
    /// Bytes that the socket did not take yet.
    pub unsent: usize,
    /// Bytes that the device may be sent in one turn.
    pub turn_bytes: usize,
    /// When.
    pub now: Moment,
    /// The shard's figures.
    pub counters: &'a mut Counters,
}

/// Deliveries of one session, in their order.
#[derive(Debug)]
pub struct SessionBatch {
    /// The session's slot.
    pub session: u32,
    /// Its generation: the slot may be another's by the time it is looked at.
    pub generation: u32,
    /// The deliveries.
    pub deliveries: Vec<Delivery>,
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

/// How an attempt to send ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Yes,
    /// It has no room now.
    Later,
    /// It can never go on this connection: it is longer than the device takes.
    Never,
}

impl Broker {
    // --- The shard's part -------------------------------------------------------------------------------------------

    /// Begins a turn: every device may be sent as much as its outbox holds again.
    pub fn begin_turn(&mut self) {
        self.turn = self.turn.wrapping_add(1);
        self.looks = TURN_LOOKS;
        self.retained.bury(&self.exchange);
    }

    /// Takes out at most `limit` deliveries, gathered by session in their order; and, without deliveries, the sessions whose
    /// devices had no room for all that there was, and those whose turn it is to look for retained messages.
    pub fn next_deliveries(&mut self, limit: usize) -> Vec<SessionBatch> {
        let mut batches: Vec<SessionBatch> = Vec::new();
        for (session, generation) in std::mem::take(&mut self.backlog) {
            if self.is_current(session, generation) {
                self.all[session as usize].is_backlogged = false;
                batches.push(SessionBatch { session, generation, deliveries: Vec::new() });
            }
        }
        for _ in 0..TURN_LOOKS / SESSION_LOOKS {
            let Some((session, generation)) = self.walks.pop_front() else { break };
            if self.is_current(session, generation) {
                self.all[session as usize].walk = Walk::Due;
                batches.push(SessionBatch { session, generation, deliveries: Vec::new() });
            }
        }
        let mut routed: Vec<RoutedDelivery> = self.deliveries.drain(..self.deliveries.len().min(limit)).collect();
        if self.deliveries.is_empty() && self.deliveries.capacity() > limit {
            self.deliveries.shrink_to(limit);
        }
        routed.sort_by_key(|delivery| delivery.session);
        for RoutedDelivery { session, generation, delivery } in routed {
            if !self.is_current(session, generation) {
                continue;
            }
            match batches.last_mut() {
                Some(batch) if batch.session == session && !batch.deliveries.is_empty() => {
                    batch.deliveries.push(delivery);
                }
                _ => batches.push(SessionBatch { session, generation, deliveries: vec![delivery] }),
            }
        }
        batches
    }

    /// The slot of a session's connection; `None` if its device is away, or the session is not the one that was meant.
    #[must_use]
    pub fn connection_of(&self, session: u32, generation: u32) -> Option<u32> {
        let known = self.all.get(session as usize).filter(|known| known.generation == generation)?;
        Some(known.connection).filter(|&connection| connection != NOBODY)
    }

    /// Keeps deliveries for a device that is away, as far as they are to be acknowledged.
    pub fn keep(&mut self, batch: SessionBatch, now: Moment, counters: &mut Counters) {
        if !self.is_current(batch.session, batch.generation) {
            let requests = batch.deliveries.iter().map(|delivery| delivery.request);
            return self.unanswered.extend(requests.filter(|&request| request != 0));
        }
        for delivery in batch.deliveries {
            self.keep_one(batch.session, delivery, now, counters);
        }
    }

    /// The socket of a connection has taken everything: what its session could not send goes on.
    pub fn handle_drained(&mut self, connection: u32) {
        if let Some(session) = self.of(connection) {
            self.note_backlog(session);
        }
    }

    /// The backbone holds a message of this session, or will not. The connection to tell of it, if there is one.
    pub fn handle_settled(&mut self, id: SessionId, packet: u16, accepted: bool) -> Option<u32> {
        let session = self.resolve(id)?;
        let known = &mut self.all[session as usize];
        let inflight = known.inflight.as_mut()?;
        inflight.settle(packet, if accepted { Reason::SUCCESS } else { Reason::QUOTA_EXCEEDED });
        let connection = known.connection;
        if connection != NOBODY {
            return Some(connection);
        }
        // Nobody is there to be told: what QoS 2 was taken is answered when it comes again.
        inflight.disconnect(|_| {});
        self.shed_empty_inflight(session);
        None
    }

    // --- Writing to a device ----------------------------------------------------------------------------------------

    /// Sends what is in `deliveries`, and before it whatever of the session's older messages there is room for.
    pub fn write(&mut self, session: u32, deliveries: Vec<Delivery>, budget: &mut SendBudget) {
        self.send_waiting(session, budget);
        for delivery in deliveries {
            self.write_one(session, delivery, budget);
        }
        self.shed_empty_inflight(session);
    }

    fn write_one(&mut self, session: u32, delivery: Delivery, budget: &mut SendBudget) {
        let maximum = self.inflight_maximum(session);
        let inflight = self.all[session as usize].inflight.as_deref();
        let waits = inflight
            .is_some_and(|inflight| inflight.queued().0 > 0 || (delivery.qos > 0 && !inflight.may_send(maximum)));
        if waits {
            return self.enqueue(session, delivery, budget.counters);
        }
        if let Err(delivery) = self.send_new(session, delivery, budget) {
            self.enqueue(session, delivery, budget.counters);
            self.wait_for_room(session, budget);
        }
    }

    /// What had no room waits for the next turn, or for the socket if that is what it is short of.
    fn wait_for_room(&mut self, session: u32, budget: &SendBudget) {
        if budget.unsent == 0 {
            self.note_backlog(session);
        }
    }

    /// Sends again what a former connection left unacknowledged, then what waits, as far as there is room.
    fn send_waiting(&mut self, session: u32, budget: &mut SendBudget) {
        let maximum = self.inflight_maximum(session);
        while let Some(inflight) = self.all[session as usize].inflight.as_deref()
            && let Some(outbound) = inflight.next_to_resend()
        {
            let packet = outbound.packet;
            let sent = match &outbound.state {
                Sending::Released => {
                    // [MQTT-4.4.0-1]
                    let version = self.all[session as usize].profile.version;
                    let pubrel = Ack { packet_id: packet, reason: Reason::SUCCESS, properties: Properties::EMPTY };
                    Packet::Pubrel(pubrel).encode(version, budget.out);
                    Sent::Yes
                }
                // The next acknowledgement makes room [v5 MQTT-3.3.4-9].
                Sending::Sent(_) if !inflight.may_resend(maximum) => return,
                Sending::Sent(delivery) => {
                    let delivery = Delivery::clone(delivery);
                    encode(&mut self.all[session as usize], self.turn, &delivery, packet, true, budget)
                }
            };
            match sent {
                Sent::Yes => self.inflight(session).resent(),
                Sent::Later => return self.wait_for_room(session, budget),
                Sent::Never => {
                    budget.counters.add(Figure::DroppedTooLarge, 1);
                    let given_up = self.inflight(session).give_up();
                    self.unanswered.extend(given_up.map(|outbound| outbound.request).filter(|&request| request != 0));
                }
            }
        }
        loop {
            let inflight = self.all[session as usize].inflight.as_deref_mut();
            let Some(inflight) = inflight else { return };
            let Some(next) = inflight.peek() else { return self.send_retained(session, budget) };
            if next.qos > 0 && !inflight.may_send(maximum) {
                return;
            }
            let delivery = inflight.dequeue().expect("one was seen");
            if let Err(delivery) = self.send_new(session, delivery, budget) {
                self.inflight(session).put_back(delivery);
                return self.wait_for_room(session, budget);
            }
        }
    }

    /// Sends what new subscriptions find retained, as far as there is room and as far as may be looked for it in one turn.
    /// What is kept is looked up when it goes, so that none is older than what went before it.
    fn send_retained(&mut self, session: u32, budget: &mut SendBudget) {
        let inflight = self.all[session as usize].inflight.as_deref_mut();
        let Some(mut replays) = inflight.and_then(|inflight| inflight.replays.take()) else { return };
        let stopped = self.send_replays(session, &mut replays, budget);
        if replays.is_empty() {
            return;
        }
        self.inflight(session).replays = Some(replays);
        match stopped {
            Stopped::Walk => self.note_walk(session),
            Stopped::Room => self.wait_for_room(session, budget),
            // The next acknowledgement goes on.
            Stopped::Window => {}
        }
    }

    fn send_replays(&mut self, session: u32, replays: &mut Replays, budget: &mut SendBudget) -> Stopped {
        let maximum = self.inflight_maximum(session);
        let mut looks = self.looks_for(session);
        let allowed = looks;
        let stopped = loop {
            let Some((filter, replay)) = replays.first() else { break Stopped::Window };
            let inflight = self.all[session as usize].inflight.as_deref();
            // Whoever may be sent nothing now needs no look.
            if replay.qos() > 0 && !inflight.is_none_or(|inflight| inflight.may_send(maximum)) {
                break Stopped::Window;
            }
            if looks == 0 {
                break Stopped::Walk;
            }
            match self.retained.next_matching(filter, replay.arrivals(), replay.position(), &mut looks) {
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
        self.looks -= (allowed - looks).min(self.looks);
        stopped
    }

    /// How often this session may look at retained messages now. Those that wait for it take turns.
    fn looks_for(&mut self, session: u32) -> usize {
        let walk = &mut self.all[session as usize].walk;
        let may = match walk {
            Walk::Due => true,
            Walk::Waits => false,
            Walk::None => self.walks.is_empty(),
        };
        if *walk == Walk::Due {
            *walk = Walk::None;
        }
        if may { self.looks.min(SESSION_LOOKS) } else { 0 }
    }

    fn note_walk(&mut self, session: u32) {
        let known = &mut self.all[session as usize];
        if known.walk != Walk::Waits {
            known.walk = Walk::Waits;
            self.walks.push_back((session, known.generation));
        }
    }

    /// Sends a message for the first time. It comes back when there is no room for it now.
    fn send_new(&mut self, session: u32, delivery: Delivery, budget: &mut SendBudget) -> Result<(), Delivery> {
        if delivery.publication.is_expired(budget.now) {
            // [v5 MQTT-3.3.2-5]
            budget.counters.add(Figure::DroppedExpired, 1);
            self.unanswered.extend(Some(delivery.request).filter(|&request| request != 0));
            return Ok(());
        }
        let packet = if delivery.qos > 0 { self.next_packet(session) } else { 0 };
        match encode(&mut self.all[session as usize], self.turn, &delivery, packet, false, budget) {
            Sent::Yes => {
                budget.counters.add(Figure::Delivered, 1);
                if delivery.qos > 0 {
                    self.inflight(session).begin(packet, delivery);
                }
                Ok(())
            }
            Sent::Later => Err(delivery),
            Sent::Never => {
                // As if it had been delivered [v5 MQTT-3.1.2-25].
                budget.counters.add(Figure::DroppedTooLarge, 1);
                self.unanswered.extend(Some(delivery.request).filter(|&request| request != 0));
                Ok(())
            }
        }
    }

    fn enqueue(&mut self, session: u32, delivery: Delivery, counters: &mut Counters) {
        let (messages, bytes) = (self.bounds.messages, self.bounds.bytes);
        if let Err(delivery) = self.inflight(session).enqueue(delivery, messages, bytes) {
            counters.add(Figure::DroppedQueueFull, 1);
            self.unanswered.extend(Some(delivery.request).filter(|&request| request != 0));
        }
    }

    /// A message for a device that is away: kept if it is to be acknowledged.
    fn keep_one(&mut self, session: u32, delivery: Delivery, now: Moment, counters: &mut Counters) {
        if delivery.request != 0 {
            self.unanswered.push(delivery.request);
        }
        if delivery.qos > 0 && !delivery.publication.is_expired(now) {
            self.enqueue(session, Delivery { request: 0, ..delivery }, counters);
        }
    }

    pub(super) fn note_backlog(&mut self, session: u32) {
        let known = &mut self.all[session as usize];
        if !known.is_backlogged && known.inflight.as_deref().is_some_and(Inflight::has_waiting) {
            known.is_backlogged = true;
            self.backlog.push((session, known.generation));
        }
    }

    fn inflight_maximum(&self, session: u32) -> usize {
        usize::from(self.all[session as usize].profile.receive_maximum.min(self.bounds.inflight))
    }

    /// The next packet identifier: not 0, and not one in use [MQTT-2.2.1-3].
    fn next_packet(&mut self, session: u32) -> u16 {
        let known = &mut self.all[session as usize];
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
    pub fn handle_puback(&mut self, session: u32, packet: u16, confirmed: impl FnOnce(u64)) -> Result<bool, WrongAck> {
        let Some(inflight) = self.all[session as usize].inflight.as_deref_mut() else { return Ok(false) };
        let Some(request) = inflight.handle_puback(packet)? else { return Ok(false) };
        if request != 0 {
            confirmed(request);
        }
        self.after_acknowledgement(session);
        Ok(true)
    }

    /// PUBREC; `failed`: with a reason that ends the message. `Ok(false)`: no such message is in flight.
    ///
    /// # Errors
    /// [`WrongAck`] if the message waits for another acknowledgement.
    pub fn handle_pubrec(
        &mut self,
        session: u32,
        packet: u16,
        failed: bool,
        confirmed: impl FnOnce(u64),
    ) -> Result<bool, WrongAck> {
        let Some(inflight) = self.all[session as usize].inflight.as_deref_mut() else { return Ok(false) };
        let Some(request) = inflight.handle_pubrec(packet, failed)? else { return Ok(false) };
        if request != 0 {
            confirmed(request);
        }
        self.after_acknowledgement(session);
        Ok(true)
    }

    /// PUBCOMP. `Ok(false)`: no such message is in flight.
    ///
    /// # Errors
    /// [`WrongAck`] if the message waits for another acknowledgement.
    pub fn handle_pubcomp(&mut self, session: u32, packet: u16) -> Result<bool, WrongAck> {
        let Some(inflight) = self.all[session as usize].inflight.as_deref_mut() else { return Ok(false) };
        let done = inflight.handle_pubcomp(packet)?;
        self.after_acknowledgement(session);
        Ok(done)
    }

    fn after_acknowledgement(&mut self, session: u32) {
        self.shed_empty_inflight(session);
        self.note_backlog(session);
    }

    // --- What the device publishes ------------------------------------------------------------------------------------

    /// What is known of a message of the device with an acknowledgement: `None`: it is new.
    #[must_use]
    pub fn receiving(&self, session: u32, packet: u16, qos: u8) -> Option<Known> {
        let inflight = self.all[session as usize].inflight.as_deref()?;
        inflight.receiving(packet, qos).map(|state| match state {
            Receiving::Received => Known::Answered,
            Receiving::Waiting | Receiving::Settled(_) => Known::Waiting,
        })
    }

    /// How many messages of the device came on this connection and are not done with (v5 4.9).
    #[must_use]
    pub fn received(&self, session: u32) -> usize {
        self.all[session as usize].inflight.as_deref().map_or(0, Inflight::received)
    }

    /// A message that is known has come again. `true`: for the first time on this connection.
    pub fn receive_again(&mut self, session: u32, packet: u16, qos: u8) -> bool {
        self.inflight(session).receive_again(packet, qos)
    }

    /// A message with an acknowledgement has come from the device. `settled`: its answer is known already, since it is
    /// safe or refused; it is given when it is its turn.
    pub fn receive(&mut self, session: u32, packet: u16, qos: u8, settled: Option<Reason>) {
        let inflight = self.inflight(session);
        inflight.receive(packet, qos);
        if let Some(reason) = settled {
            inflight.settle(packet, reason);
        }
    }

    /// The next answer that the device may be given.
    pub fn next_answer(&mut self, session: u32) -> Option<Answer> {
        let answer = self.all[session as usize].inflight.as_deref_mut()?.next_answer();
        self.shed_empty_inflight(session);
        answer
    }

    /// PUBREL. `Ok(false)`: no such message was received.
    ///
    /// # Errors
    /// [`WrongAck`] if PUBREC was not said of the message.
    pub fn handle_pubrel(&mut self, session: u32, packet: u16) -> Result<bool, WrongAck> {
        let Some(inflight) = self.all[session as usize].inflight.as_deref_mut() else { return Ok(false) };
        let known = inflight.handle_pubrel(packet)?;
        self.shed_empty_inflight(session);
        Ok(known)
    }

    /// The device gives a topic a number, `1..=ALIASES_MAX` [v5 MQTT-3.3.2-10].
    pub fn set_alias(&mut self, session: u32, alias: u16, topic: &str) {
        debug_assert!((1..=ALIASES_MAX).contains(&alias));
        let aliases = &mut self.inflight(session).aliases_in;
        let place = usize::from(alias) - 1;
        if aliases.len() <= place {
            aliases.resize(place + 1, None);
        }
        aliases[place] = Some(topic.into());
    }

    /// The topic that the device gave a number.
    #[must_use]
    pub fn alias(&self, session: u32, alias: u16) -> Option<&str> {
        let inflight = self.all[session as usize].inflight.as_deref()?;
        inflight.aliases_in.get(usize::from(alias).checked_sub(1)?)?.as_deref()
    }
}

/// What is known of a message that the device sends again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It will be answered when it is safe.
    Waiting,
    /// It was answered, with PUBREC.
    Answered,
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
        qos: QoS::try_from(delivery.qos).unwrap_or(QoS::AtMostOnce),
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
        return Sent::Never;
    }
    // One always goes when nothing else is on its way, however long it is.
    if spent > 0 && spent + length > budget.turn_bytes {
        return Sent::Later;
    }
    if is_new && outgoing.alias.is_some() {
        session.inflight.get_or_insert_default().aliases_out.push(publication.topic.clone());
    }
    outgoing.encode(version, budget.out);
    session.turn_bytes = (session.turn_bytes as usize + length).min(u32::MAX as usize) as u32;
    Sent::Yes
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

//! Deliveries between routing and the device: gathered by session, and what waits in a session's queue (`sending` writes it,
//! `acknowledgement` hears of it).
//!
//! A device is sent no more in one turn than its outbox could hold, so that a flood makes it wait, not end. What waits
//! is bounded. Beyond the bound a message with an acknowledgement waits unsettled for a device that takes what it is sent, and
//! its publisher with it; for a device that is away, or stalled, and without an acknowledgement it is dropped and counted.

use std::collections::VecDeque;

use super::inbound::FilterLooks;
use super::inflight::{Delivery, Enqueued, Inflight, QueueBound, Released};
use super::lifecycle::Walk;
use super::retained::BURIED_IN_A_TURN;
use super::settlement::Part;
use super::{Broker, RequestEnd};
use crate::link::{GROUP_ROOM_MAX, ShardMessage};
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
    /// How many were made before it.
    place: u64,
}

/// What was routed and is not with its session yet, and the sessions that could be sent more.
#[derive(Default)]
pub(super) struct Deliveries {
    pub(super) routed: VecDeque<RoutedDelivery>,
    /// Those for devices that are away, in order, while what came before is not safe in the store: see [`Broker::waits_for_store`].
    pub(super) held: VecDeque<RoutedDelivery>,
    /// Sessions whose devices did not take all at once.
    pub(super) backlog: Vec<(SessionSlot, u32)>,
    /// Sessions whose retained messages are to be looked up, in turns.
    pub(super) walks: VecDeque<(SessionSlot, u32)>,
    /// Looks at retained messages that are left in this turn.
    pub(super) looks: usize,
    pub(super) turn: u32,
    /// How many were made.
    made: u64,
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

    /// Whether there is something for this session.
    pub(super) fn has_for(&self, session: SessionSlot, generation: u32) -> bool {
        let is_it = |one: &RoutedDelivery| (one.session, one.generation) == (session, generation);
        self.routed.iter().chain(&self.held).any(is_it)
    }

    pub(super) fn push(&mut self, session: SessionSlot, generation: u32, delivery: Delivery) {
        self.routed.push_back(RoutedDelivery { session, generation, delivery, place: self.made });
        self.made += 1;
    }

    /// How many were made.
    pub(super) fn made(&self) -> u64 {
        self.made
    }

    /// Whether so many, the first that were made, are with their sessions.
    pub(super) fn are_done(&self, count: u64) -> bool {
        // Those that are held are older than the others.
        self.held.front().or(self.routed.front()).is_none_or(|next| next.place >= count)
    }
}

impl Broker {
    /// Begins a turn: every device may be sent as much as its outbox holds again.
    pub fn begin_turn(&mut self) {
        self.exchange.set_short(self.worker, self.pool.is_short(Class::Unsettled));
        self.staged.begin_turn();
        self.advance_matching();
        self.advance_ends();
        self.advance_redispatches();
        self.advance_interest();
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
        for RoutedDelivery { session, generation, delivery, .. } in now {
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
            } else if let Err(delivery) = self.return_to_group(delivery) {
                self.drop_delivery(&delivery);
            }
        }
        if is_current {
            self.spill_when_safe(batch.session);
            self.sessions.shed_empty_inflight(batch.session);
            self.note_shortage(batch.session);
        }
    }

    /// The socket of a connection has taken everything: what its session could not send goes on.
    pub fn handle_drained(&mut self, connection: ConnectionSlot) {
        if let Some(session) = self.of(connection) {
            self.note_backlog(session);
        }
    }

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
        if delivery.is_lent() && inflight.map_or(0, Inflight::lent) >= u32::from(self.group_room(session)) {
            return self.give_to_another(session, delivery);
        }
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

    /// Puts a message into the session's queue, or behind it where its publisher may wait for the device.
    pub(super) fn enqueue(&mut self, session: SessionSlot, delivery: Delivery, now: Tick, counters: &mut Counters) {
        let queued = self.sessions.inflight(session).queued();
        let bound = self.queue_bound(session);
        let may_wait = self.sessions[session].is_online() && delivery.qos.is_acknowledged();
        let token = delivery.token;
        match self.sessions.inflight(session).enqueue(delivery, &bound, may_wait) {
            Ok(Enqueued::Kept(token)) => {
                let place = self.sessions.inflight(session).kept().0 - 1;
                let was_recorded = self.record_kept(session, place);
                self.settle_kept(token, was_recorded);
            }
            Ok(Enqueued::FirstWaits) => {
                self.sessions.inflight(session).begin_pace(now);
                self.paces.watch(session, self.sessions[session].generation, now);
                self.park(token);
                self.note_outstanding(session);
            }
            Ok(Enqueued::Waits) => {
                self.park(token);
                self.note_outstanding(session);
            }
            Err(delivery) => {
                let never_fits = bound.messages == 0 || delivery.publication.bytes() > bound.bytes;
                if delivery.is_lent() && !never_fits {
                    // Nothing is lost.
                    return self.give_to_another(session, delivery);
                }
                counters.add(bound.refused_as(queued, &delivery), 1);
                if never_fits {
                    self.drop_too_large(session, delivery);
                } else {
                    self.drop_of(session, &delivery);
                }
            }
        }
    }

    /// There is room in the queue: those that wait behind it come in, and are safe.
    pub(super) fn admit_waiting(&mut self, session: SessionSlot) {
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

    /// How much of what the fleet gives to groups a connected session may have that its device has not acknowledged: as much as that takes
    /// at a time.
    pub(super) fn group_room(&self, session: SessionSlot) -> u16 {
        let most = self.sessions[session].profile.receive_maximum.min(self.bounds.inflight);
        most.clamp(1, GROUP_ROOM_MAX)
    }

    /// A member acknowledges less than the others: what the fleet gives is not to wait for it, and its group's home chooses again.
    fn give_to_another(&mut self, session: SessionSlot, delivery: Delivery) {
        let member = self.id(session);
        let Delivery { group, publication, request, tried, token, .. } = delivery;
        match group {
            Some(group) => {
                self.tell_group(ShardMessage::NoRoom {
                    group,
                    member,
                    publication,
                    request,
                    tried: tried.saturating_add(1),
                });
            }
            None => self.give_up_request(request),
        }
        self.settle(token, Part::Taken);
    }

    /// What may wait in a session now: what the configuration says, and no more than the pool has for one holder. What goes to the store as
    /// soon as that is safe is bounded there: it is in memory already, and if the pool is short the next turn holds what comes behind it
    /// ([`Broker::holds_for_store`]).
    pub(super) fn queue_bound(&self, session: SessionSlot) -> QueueBound {
        let known = &self.sessions[session];
        let inflight = known.inflight.as_deref();
        let (_, queued) = inflight.map_or((0, 0), Inflight::kept);
        // Beside what waits: what is in flight, and what each message takes beside its bytes.
        let others = inflight.map_or(0, Inflight::charged).saturating_sub(queued);
        let is_stored = known.is_spilled();
        let leaves = is_stored && !self.staged.holds(session, known.generation);
        let pool = (self.pool.largest(Class::Queues) as usize).saturating_sub(others);
        let room = if leaves { usize::MAX } else { pool };
        let goes_on = known.is_online() || is_stored;
        // As in the pool: whoever has some gets more only while that is at most a part of what is free.
        let free = self.bounds.stored_bytes.saturating_sub(self.sessions.stored_bytes);
        let stored = is_stored.then_some((free / STORED_PART) as usize);
        QueueBound { messages: self.bounds.messages, bytes: self.bounds.bytes, room, stored, goes_on }
    }

    /// A message goes nowhere: nobody waits for it any more. Whoever drops it has counted it.
    pub(super) fn drop_delivery(&mut self, delivery: &Delivery) {
        self.give_up_request(delivery.request);
        self.settle(delivery.token, Part::Taken);
    }

    pub(super) fn give_up_request(&mut self, request: u64) {
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
        self.requests.extend(released.kept_requests.into_iter().map(|request| (request, RequestEnd::Published)));
        for number in released.numbers {
            self.record_done(session, number);
        }
        for token in released.tokens {
            self.settle(token, Part::Taken);
        }
    }

    /// A message for a device that is away: kept if it is to be acknowledged.
    pub(super) fn keep_one(&mut self, session: SessionSlot, delivery: Delivery, now: Moment, counters: &mut Counters) {
        if delivery.is_lent() {
            // The fleet gives it to somebody who is there.
            return self.drop_delivery(&delivery);
        }
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
}

//! Between connections and their MQTT sessions: deliveries delivered, wills published, what other shards say.

use std::sync::Arc;

use super::Shard;
use crate::broker::{DueWill, Recording, RequestEnd, Ticket};
use crate::codec::mqtt::{QoS, topic};
use crate::config::Protocol;
use crate::connection::{Connection, Termination};
use crate::image;
use crate::link::{
    ChangeMark, Changes, CloseReason, DelayedWill, Downlink, Giver, ListenerId, Load, Loaded, Message, NOT_SUBSCRIBED,
    Outcome, Outgoing, Passed, Publication, SUBSCRIBED_WITHOUT_ACK, ShardMessage, Stamp, WorkerEvent, WorkerId,
};
use crate::metrics::Metric;
use crate::pool::{ALLOCATION_BYTES, Charge, Class};
use crate::slot::ConnectionSlot;
use crate::time::{Moment, Tick};

/// Deliveries delivered in one turn; the rest waits for the next.
const DELIVERIES: usize = 16_384;

impl Shard {
    // --- A phase of the turn ----------------------------------------------------------------------------------------

    /// Delivers what was published, a bounded part of it in one turn.
    pub fn deliver(&mut self, now: Moment) {
        self.publish_due_wills(now);
        self.broker.begin_turn();
        for batch in self.broker.next_deliveries(DELIVERIES) {
            // Whoever was there when the turn began may have ended since.
            let Some(slot) = self.broker.connection_of(batch.session, batch.generation) else {
                self.broker.keep(batch, now, &mut self.counters);
                continue;
            };
            let said = self.with(slot, now, |connection, settings, cx| {
                connection.handle_deliveries(batch.deliveries, settings, cx)
            });
            if let Err(termination) = said {
                self.end(slot, &termination, now);
            }
        }
        self.answer(now);
        self.uplink.extend(self.broker.take_group_events());
        self.uplink.extend(self.broker.take_interest());
        self.uplink.extend(self.broker.take_gone().into_iter().map(WorkerEvent::SessionGone));
        self.tell_sessions();
        self.broker.count(&mut self.counters);
    }

    /// Tells requests of the API, and devices, what has become true.
    fn answer(&mut self, now: Moment) {
        for (request, end) in self.broker.take_requests() {
            let outcome = match end {
                RequestEnd::Unacknowledged => Outcome::Unacknowledged,
                RequestEnd::Published => Outcome::Delivered,
                RequestEnd::NotRetained => Outcome::Refused("there is no room for another retained message"),
            };
            self.uplink.push(WorkerEvent::Sent { request, outcome });
        }
        for (session, generation) in self.broker.take_answerable() {
            let Some(slot) = self.broker.connection_of(session, generation) else { continue };
            if let Err(termination) = self.with(slot, now, Connection::handle_answerable) {
                self.end(slot, &termination, now);
            } else if self.broker.take_held(session) {
                self.connections[slot].resume();
                self.ready.push(slot);
            }
        }
    }

    /// Whether there is something to deliver.
    #[must_use]
    pub fn has_deliveries(&self) -> bool {
        self.broker.has_deliveries() || !self.due_wills.is_empty()
    }

    /// Whether so much waits to be delivered that what others publish should wait too.
    #[must_use]
    pub fn is_congested(&self) -> bool {
        self.broker.is_congested()
    }

    /// Whether so much waits to be delivered that no more should be taken from the inbox this turn.
    #[must_use]
    pub fn has_many_deliveries(&self) -> bool {
        self.broker.has_many_deliveries()
    }

    /// Whether no more can be delivered before the store says that something is safe: that is a command.
    #[must_use]
    pub fn waits_for_store(&self) -> bool {
        self.broker.waits_for_store()
    }

    /// What goes to another shard now: all answers, and what there is credit for.
    pub fn take_outgoing(&mut self, worker: WorkerId) -> Outgoing {
        self.broker.take_outgoing(worker)
    }

    /// How many things would go to another shard now.
    #[must_use]
    pub fn outgoing(&self, worker: WorkerId) -> usize {
        self.broker.outgoing(worker)
    }

    /// Whether anything waits for credit of another shard.
    #[must_use]
    pub fn waits_for(&self, worker: WorkerId) -> bool {
        self.broker.waits_for(worker)
    }

    // --- The store --------------------------------------------------------------------------------------------------

    /// From now on what must outlive the process is said.
    pub fn begin_recording(&mut self, recording: Recording) {
        self.broker.begin_recording(recording);
    }

    /// A session that an earlier process has left: see [`Broker::restore`](crate::broker::Broker::restore).
    pub fn restore(&mut self, session: image::KeptSession, now: Moment) {
        self.broker.restore(session, now);
    }

    /// A retained message that an earlier process has left.
    pub fn restore_retained(&mut self, publication: image::Publication, stamp: Stamp, now: Moment) {
        self.broker.restore_retained(publication, stamp, now);
    }

    /// Whether something has changed that the store was not told.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        self.broker.has_changes()
    }

    /// Offers what has changed to the store: see [`Broker::hand_over`](crate::broker::Broker::hand_over).
    pub fn hand_over(&mut self, keep: impl FnOnce(Changes) -> Result<(), Changes>) {
        self.broker.hand_over(keep);
    }

    /// So many changes are safe.
    pub fn handle_safe(&mut self, mark: ChangeMark) {
        self.broker.handle_safe(mark);
    }

    /// What is to be asked of the store: see [`Broker::take_loads`](crate::broker::Broker::take_loads).
    pub fn take_loads(&mut self) -> Vec<Load> {
        self.broker.take_loads()
    }

    /// The store answers. A device whose messages cannot be read is asked to come back.
    pub fn handle_loaded(&mut self, loaded: Loaded, now: Moment) {
        if let Some(slot) = self.broker.handle_loaded(loaded, now) {
            let what = "what waits for it in the store cannot be read: the log says why";
            self.end(slot, &Termination::because(CloseReason::SessionUnreadable, what), now);
        }
    }

    // --- Commands ---------------------------------------------------------------------------------------------------

    /// What another shard has to say.
    pub fn handle_shard_messages(&mut self, from: WorkerId, answers: Vec<ShardMessage>) {
        for answer in answers {
            self.broker.handle_shard_message(from, answer);
        }
    }

    /// What another shard passes on, with credit.
    pub fn handle_passed(&mut self, from: WorkerId, passed: Vec<Passed>) {
        for passed in passed {
            self.broker.handle_passed(from, passed, &mut self.counters);
        }
    }

    /// What was told of what is wanted of other gateways is held.
    pub fn handle_interest_held(&mut self, version: u64) {
        self.broker.handle_interest_held(version);
    }

    /// It is decided who gives to a group whose home this shard is.
    pub fn handle_group_served(&mut self, group: &str, life: u32, giver: Giver) {
        self.broker.handle_group_served(group, life, giver);
    }

    /// The fleet gives a message to a group. The answer goes up when it is with a member, or with nobody.
    pub fn handle_given_to_group(&mut self, request: u64, group: &str, publication: Publication) {
        self.broker.give_from_fleet(request, group, &Arc::new(publication));
    }

    /// The owner publishes a message. The answer goes up when every shard has taken it.
    pub fn handle_publish(&mut self, request: u64, publication: Publication) {
        let ticket = self.broker.request(request);
        self.broker.publish(publication, ticket, &mut self.counters);
    }

    /// A retained message of the fleet. The answer goes up when every shard has taken it.
    pub fn handle_retain(&mut self, request: u64, publication: Publication) {
        let ticket = self.broker.request(request);
        self.broker.keep_retained(publication, ticket, &mut self.counters);
    }

    /// Says something to one device under a subscription of its own. `Delivered`: it is on its way, or waits for those
    /// before it; with a `request` the device's acknowledgement goes up later.
    pub(super) fn send_to_session(
        &mut self,
        slot: ConnectionSlot,
        downlink: &Downlink,
        request: Option<u64>,
    ) -> Outcome {
        // Between its arrival and its CONNECT it has none; where that waits for its session, there may be one soon.
        let Some(session) = self.broker.of(slot) else {
            let is_waited_for = self.broker.is_waiting(slot);
            return if is_waited_for { Outcome::Refused(NOT_SUBSCRIBED) } else { Outcome::Offline };
        };
        if !topic::is_topic_name(&downlink.topic) {
            return Outcome::Refused("the topic is no MQTT topic name");
        }
        let Some(subscriber) = self.broker.subscription_for(session, &downlink.topic) else {
            return Outcome::Refused(NOT_SUBSCRIBED);
        };
        if request.is_some() && !subscriber.qos().is_acknowledged() {
            return Outcome::Refused(SUBSCRIBED_WITHOUT_ACK);
        }
        let qos = if request.is_some() { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let publication = Publication::plain(downlink.topic.clone(), downlink.payload.clone(), qos);
        self.counters.add(Metric::MessagesSent, 1);
        self.broker.write_to(session, Arc::new(publication), subscriber, request.unwrap_or(0));
        Outcome::Delivered
    }

    // --- Sessions ---------------------------------------------------------------------------------------------------

    /// A device's connection has ended: its session stays or ends, and its will is published, now or later.
    pub(super) fn detach_session(&mut self, slot: ConnectionSlot, reason: CloseReason, now: Moment) {
        let device = self.connections[slot].device();
        // When the gateway itself ends, no device has died.
        let with_will = reason != CloseReason::Shutdown;
        let due_will = self.broker.detach(slot, device, with_will, now, &mut self.counters);
        self.due_wills.extend(due_will);
    }

    pub(super) fn handle_session_deadlines(&mut self, drained: Tick, now: Moment, limit: usize) -> bool {
        let (sessions, due_wills) = (&mut self.broker, &mut self.due_wills);
        sessions.handle_deadlines(drained, now, limit, due_wills, &mut self.counters)
    }

    /// Publishes wills, as their devices would have. In a fleet, those that waited for their delay are asked about first.
    pub(super) fn publish_due_wills(&mut self, now: Moment) {
        if self.due_wills.is_empty() {
            return;
        }
        for DueWill { device, listener, publication, was_delayed } in std::mem::take(&mut self.due_wills) {
            if self.is_of_fleet && was_delayed {
                let charge = Some(Charge::of(&self.pool, Class::Wills, publication.bytes() + ALLOCATION_BYTES));
                let publication = Box::new(publication);
                self.uplink.push(WorkerEvent::WillDue(Box::new(DelayedWill { device, listener, publication, charge })));
            } else {
                self.publish_will(device, listener, publication, now);
            }
        }
    }

    /// A delayed will was asked about: its device is at no other gateway.
    pub fn handle_will(&mut self, device: Box<str>, listener: ListenerId, publication: Publication, now: Moment) {
        if listener.index() < self.settings.len() {
            self.publish_will(device, listener, publication, now);
        }
    }

    fn publish_will(&mut self, device: Box<str>, listener: ListenerId, mut publication: Publication, now: Moment) {
        if topic::is_of_server(&publication.topic) {
            // A mosquitto bridge has one: see `take_connect`.
            self.counters.add(Metric::DroppedUnauthorized, 1);
            return;
        }
        // It may be the will of a session that was at another gateway.
        publication.owner = self.broker.owner(&device);
        if let Protocol::Mqtt(mqtt) = &self.settings[listener.index()].protocol
            && mqtt.uplink.iter().any(|filter| topic::matches(filter, &publication.topic))
        {
            self.counters.add(Metric::MessagesReceived, 1);
            self.broker.send_up(&mut publication);
            self.broker.stamp(&mut publication, now);
            let (topic, payload) = (publication.topic.clone(), publication.payload.clone());
            let connection = crate::link::ConnectionId { slot: ConnectionSlot(u32::MAX), generation: 0 };
            let charge = Some(Charge::of(&self.pool, Class::Up, publication.bytes() + ALLOCATION_BYTES));
            self.uplink.push(WorkerEvent::Message(Message {
                device,
                connection,
                topic,
                payload,
                published: Some(publication.traits()),
                receipt: None,
                charge,
            }));
        }
        self.broker.publish(publication, Ticket::NOBODY, &mut self.counters);
    }
}

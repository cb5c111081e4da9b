//! What a device acknowledges, and what is recorded of a message on its way: kept, sent under a packet identifier, released, done.

use super::inflight::{Delivery, WrongAck};
use super::journal::Waiting;
use super::lifecycle::NO_KEY;
use super::settlement::{NOTHING, Part, Token};
use super::{Broker, RequestEnd};
use crate::codec::mqtt::QoS;
use crate::image::Change;
use crate::slot::SessionSlot;

impl Broker {
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
        let is_of_group = inflight.is_of_group(packet);
        let Some(request) = inflight.handle_puback(packet)? else { return Ok(false) };
        self.confirm(request, is_of_group, confirmed);
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
        let is_of_group = inflight.is_of_group(packet);
        let Some(request) = inflight.handle_pubrec(packet, failed)? else { return Ok(false) };
        self.confirm(request, is_of_group, confirmed);
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

    /// The device has acknowledged what somebody has asked to be told of. What the fleet gave to a group is done with, whatever the
    /// reason code: nobody else may get it [v5 MQTT-4.8.2-6].
    fn confirm(&mut self, request: u64, is_of_group: bool, confirmed: impl FnOnce(u64)) {
        match (request, is_of_group) {
            (0, _) => {}
            (request, true) => self.requests.push((request, RequestEnd::Published)),
            (request, false) => confirmed(request),
        }
    }

    fn after_acknowledgement(&mut self, session: SessionSlot) {
        self.sessions.shed_empty_inflight(session);
        self.note_backlog(session);
    }

    /// Records that a message is sent under a packet identifier, if its session is recorded. Whether it was. Not one of QoS 1 that is
    /// lent: should the process end, another member gets it, and nobody is to find it here.
    pub(super) fn record_sent(&mut self, session: SessionSlot, delivery: &mut Delivery, packet: u16) -> bool {
        let key = self.sessions[session].key;
        if key == NO_KEY || (delivery.is_lent() && delivery.qos != QoS::ExactlyOnce) {
            return false;
        }
        if delivery.number == 0 {
            self.journal.record_message(key, delivery, Some(packet));
            self.note_outstanding(session);
        } else {
            self.journal.record(Change::Sent { session: key, number: delivery.number, packet });
        }
        true
    }

    /// Records the message of a session that is within the bound at this place. Whether it was recorded now.
    pub(super) fn record_kept(&mut self, session: SessionSlot, place: usize) -> bool {
        let known = &mut self.sessions[session];
        let key = known.key;
        let Some(inflight) = known.inflight.as_deref_mut().filter(|_| key != NO_KEY) else { return false };
        let Some(delivery) = inflight.kept_mut(place) else { return false };
        // Of what is lent only that is recorded which the device knows by a packet identifier, when it is sent.
        let is_new = delivery.qos.is_acknowledged() && delivery.number == 0 && !delivery.is_lent();
        if is_new {
            self.journal.record_message(key, delivery, None);
            self.note_outstanding(session);
        }
        is_new
    }

    /// A message of a session is done with.
    pub(super) fn record_done(&mut self, session: SessionSlot, number: u64) {
        let key = self.sessions[session].key;
        if number != 0 && key != NO_KEY {
            self.journal.record(Change::Done { session: key, number });
        }
    }

    /// A message is with its session: that part of its settlement is done, or will be when what was recorded is safe.
    pub(super) fn settle_kept(&mut self, token: Token, was_recorded: bool) {
        if was_recorded && token != NOTHING {
            self.when_safe(Waiting::Part(token));
        } else {
            self.settle(token, Part::Taken);
        }
    }

    /// A message of a session goes nowhere. Whoever drops it has counted it.
    pub(super) fn drop_of(&mut self, session: SessionSlot, delivery: &Delivery) {
        self.record_done(session, delivery.number);
        self.drop_delivery(delivery);
    }
}

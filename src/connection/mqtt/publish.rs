//! PUBLISH from the device: checked, sent to whoever subscribed and up to the backbone, and acknowledged when it is safe.

use std::time::Duration;

use bytes::Bytes;

use super::super::transport::OpenConnection;
use super::super::{Step, Termination};
use super::{PacketOutcome, broken};
use crate::broker::{ALIASES_MAX, Known, Ticket};
use crate::codec::mqtt::{Ack, Packet, Properties, Publish, QoS, Reason, Version, topic};
use crate::config::Mqtt;
use crate::link::{CloseReason, Message, Publication, Reach, Receipt, WorkerEvent};
use crate::metrics::Metric;
use crate::slot::SessionSlot;

impl OpenConnection<'_, '_> {
    pub(super) fn handle_publish(
        &mut self,
        session: SessionSlot,
        publish: &Publish,
        mqtt: &Mqtt,
    ) -> Result<PacketOutcome, Termination> {
        if publish.properties.subscription_identifier().is_some() {
            return Err(broken("a device sends a Subscription Identifier", "v5 MQTT-3.3.4-6"));
        }
        if self.cx.broker.is_congested() || self.cx.broker.is_matching(session) {
            // What others are to get waits already: this device waits too, in its socket.
            return Ok(PacketOutcome::Deferred(Step::Paused));
        }
        // First of all, since one that comes again gives its topic a number too on this connection.
        let topic: Box<str> = self.resolve_topic(session, publish)?.into();
        if publish.qos != QoS::AtMostOnce {
            if self.is_known(session, publish)? {
                return Ok(PacketOutcome::Consumed);
            }
            self.check_receive_maximum(session, 1)?;
            self.check_exchanges(session, publish.qos)?;
            if self.cx.broker.hold(session) {
                // As many of its messages as it may have in flight are not safe yet: it waits for their answers.
                return Ok(PacketOutcome::Deferred(Step::Held));
            }
        }
        if topic::level_count(&topic) > self.settings.topic_levels {
            return self.refuse_publish(session, publish, Reason::TOPIC_NAME_INVALID);
        }
        if !may(self.acl(mqtt).publish, self.device, &topic) {
            self.cx.counters.add(Metric::DroppedUnauthorized, 1);
            return self.refuse_publish(session, publish, Reason::NOT_AUTHORIZED);
        }
        let goes_up = mqtt.uplink.iter().any(|filter| topic::matches(filter, &topic));
        let is_full = goes_up && self.cx.is_uplink_full();
        if is_full && publish.qos != QoS::AtMostOnce {
            return Ok(PacketOutcome::Deferred(Step::Paused));
        }
        if goes_up && !is_full && publish.qos == QoS::AtMostOnce && self.cx.is_uplink_crowded() {
            return Ok(PacketOutcome::Deferred(Step::Yielding));
        }
        let ticket = match publish.qos {
            QoS::AtMostOnce => Ticket::NOBODY,
            qos => self.cx.broker.receive(session, publish.packet_id, qos),
        };
        let mut publication = self.make_publication(session, topic, publish);
        if is_full {
            self.cx.counters.add(Metric::MessagesDropped, 1);
        } else if goes_up {
            self.cx.broker.send_up(&mut publication);
        }
        self.cx.broker.stamp(&mut publication, self.cx.now);
        if publication.reach == Reach::Fleet {
            self.send_publication_up(&publication, ticket);
        }
        self.cx.broker.publish(publication, ticket, self.cx.counters);
        self.encode_answers(session)?;
        Ok(PacketOutcome::Consumed)
    }

    /// A message with an acknowledgement that has come before is answered again, and goes nowhere
    /// [v5 MQTT-4.3.3-10, v3.1.1 MQTT-4.3.3-2]. One of QoS 1 is that only if the device says so: without DUP it is another
    /// message under an identifier that is in use, and neither is lost [v5 MQTT-4.3.2-2, v3.1.1 MQTT-4.3.2-2].
    fn is_known(&mut self, session: SessionSlot, publish: &Publish) -> Result<bool, Termination> {
        if publish.qos == QoS::AtLeastOnce && !publish.dup {
            return Ok(false);
        }
        let (packet, qos) = (publish.packet_id, publish.qos);
        let Some(known) = self.cx.broker.receiving(session, packet, qos) else { return Ok(false) };
        if self.cx.broker.receive_again(session, packet, qos) {
            self.check_receive_maximum(session, 0)?;
        }
        if known == Known::Answered {
            self.encode_ack(session, packet, qos, Reason::SUCCESS);
        }
        Ok(true)
    }

    /// The topic, from its alias if need be.
    fn resolve_topic(&mut self, session: SessionSlot, publish: &Publish) -> Result<String, Termination> {
        let Some(alias) = publish.properties.topic_alias() else { return Ok(publish.topic.to_owned()) };
        if alias > ALIASES_MAX {
            let what = "a topic alias is above the maximum [v5 MQTT-3.3.2-9]";
            let code = Reason::TOPIC_ALIAS_INVALID.0;
            return Err(Termination::because(CloseReason::ProtocolError, what).with_code(code));
        }
        if publish.topic.is_empty() {
            // The number itself is valid: this is a plain protocol error, 0x82.
            let known = self.cx.broker.alias(session, alias).map(str::to_owned);
            return known.ok_or_else(|| broken("a topic alias stands for nothing", "v5 3.3.4"));
        }
        self.cx.broker.set_alias(session, alias, publish.topic);
        Ok(publish.topic.to_owned())
    }

    /// A device of v5 may have no more unanswered on one connection than it was told [v5 MQTT-3.3.4-9], `more` of them
    /// still to be counted. One of v3.1.1 was told nothing; the pool bounds it.
    fn check_receive_maximum(&self, session: SessionSlot, more: usize) -> Result<(), Termination> {
        let is_v5 = self.cx.broker.profile(session).version == Version::V5;
        let maximum = usize::from(self.cx.broker.bounds().inflight);
        if is_v5 && self.cx.broker.received(session) + more > maximum {
            let what = "more messages are unanswered than Receive Maximum allows [v5 MQTT-3.3.4-9]";
            let code = Reason::RECEIVE_MAXIMUM_EXCEEDED.0;
            return Err(Termination::because(CloseReason::ProtocolError, what).with_code(code));
        }
        Ok(())
    }

    /// More open exchanges than it always may have need room. It is not held until there is some: the PUBRELs that make room lie behind
    /// this in its socket.
    fn check_exchanges(&self, session: SessionSlot, qos: QoS) -> Result<(), Termination> {
        if qos == QoS::ExactlyOnce && !self.cx.broker.may_begin_exchange(session) {
            let what = "its open exchanges of QoS 2 have no room in limits.pool_bytes";
            return Err(Termination::because(CloseReason::PoolFull, what));
        }
        Ok(())
    }

    fn make_publication(&self, session: SessionSlot, topic: Box<str>, publish: &Publish) -> Publication {
        let mut properties = Vec::new();
        publish.properties.forwardable(&mut properties);
        let expiry = publish.properties.message_expiry_interval();
        Publication {
            retain: publish.retain,
            properties: properties.into(),
            expires: expiry.map(|seconds| self.cx.now.plus(Duration::from_secs(seconds.into()))),
            owner: if publish.retain { self.cx.broker.owner(self.device) } else { 0 },
            publisher: Some(self.cx.broker.id(session)),
            ..Publication::plain(topic, Bytes::copy_from_slice(publish.payload), publish.qos)
        }
    }

    fn send_publication_up(&mut self, publication: &Publication, ticket: Ticket) {
        self.cx.counters.add(Metric::MessagesReceived, 1);
        let wants_answer = ticket != Ticket::NOBODY;
        let receipt = wants_answer.then(|| Receipt::Publication(self.cx.broker.expect_uplink(ticket)));
        self.cx.uplink.push(WorkerEvent::Message(Message {
            device: self.device.clone(),
            connection: self.id,
            topic: publication.topic.clone(),
            payload: publication.payload.clone(),
            published: Some(publication.traits()),
            receipt,
            charge: Some(self.cx.charge_up(publication.bytes())),
        }));
    }

    /// A message that is not taken. It is answered in its turn, like those that are [MQTT-4.6.0-2, MQTT-4.6.0-3].
    fn refuse_publish(
        &mut self,
        session: SessionSlot,
        publish: &Publish,
        reason: Reason,
    ) -> Result<PacketOutcome, Termination> {
        if publish.qos != QoS::AtMostOnce {
            self.cx.broker.refuse(session, publish.packet_id, publish.qos, reason);
            self.encode_answers(session)?;
        }
        Ok(PacketOutcome::Consumed)
    }

    /// Whatever may be answered by now, in its order.
    pub(in crate::connection) fn encode_answers(&mut self, session: SessionSlot) -> Result<(), Termination> {
        while let Some(answer) = self.cx.broker.next_answer(session) {
            let is_v5 = self.cx.broker.profile(session).version == Version::V5;
            let reason = match answer.reason {
                reason if is_v5 => reason,
                // It could not be kept, and v3.1.1 has no word for that: neither "safe" nor silence would be true.
                Reason::QUOTA_EXCEEDED => {
                    let what = "a message could not be kept, which MQTT 3.1.1 cannot be told";
                    return Err(Termination::because(CloseReason::MessageRefused, what));
                }
                // It may not be published, and v3.1.1 has no word for that: acknowledged, lest it come again and again.
                _ => Reason::SUCCESS,
            };
            self.cx.counters.add(Metric::MessagesAcknowledged, u64::from(answer.reason == Reason::SUCCESS));
            self.encode_ack(session, answer.packet, answer.qos, reason);
        }
        Ok(())
    }

    fn encode_ack(&mut self, session: SessionSlot, packet_id: u16, qos: QoS, reason: Reason) {
        let ack = Ack { packet_id, reason, properties: Properties::EMPTY };
        self.encode(session, &if qos == QoS::AtLeastOnce { Packet::Puback(ack) } else { Packet::Pubrec(ack) });
    }
}

/// Whether a device may publish to a topic under these rules. Names that begin with `$` are the server's, except to
/// somebody who may publish everywhere or whom a rule names them; `$SYS` is nobody's.
pub(super) fn may(rules: &[String], device: &str, name: &str) -> bool {
    !topic::is_of_server(name)
        && rules
            .iter()
            .any(|rule| (rule == "#") || expand(rule, device).is_some_and(|rule| topic::matches(&rule, name)))
}

/// A rule with the device's id in it; `None` where the id would be more than a level: it could reach what is not its own.
pub(super) fn expand<'a>(rule: &'a str, device: &str) -> Option<std::borrow::Cow<'a, str>> {
    if !rule.contains("{device}") {
        return Some(rule.into());
    }
    (!device.contains(['/', '+', '#'])).then(|| rule.replace("{device}", device).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_reaches_its_own_and_nothing_by_a_clever_name() {
        let own = ["devices/{device}/#".to_owned(), "fleet/+".to_owned()];
        assert!(may(&own, "m1", "devices/m1/up") && may(&own, "m1", "devices/m1") && may(&own, "m1", "fleet/x"));
        for name in ["devices/m2/up", "devices", "fleet/x/y", "$SYS/x", "other"] {
            assert!(!may(&own, "m1", name), "{name}");
        }
        for device in ["+", "#", "m1/x"] {
            assert!(!may(&own, device, "devices/m1/x/up"), "{device}");
        }
        let open = ["#".to_owned()];
        assert!(may(&open, "m1", "$x/y") && !may(&open, "m1", "$SYS/broker"));
    }
}

//! SUBSCRIBE and UNSUBSCRIBE.

use super::super::transport::OpenConnection;
use super::super::{Step, Termination};
use super::publish::expand;
use super::{PacketOutcome, broken};
use crate::broker::{FilterLooks, Granted, PendingSuback, Unsubscribed};
use crate::codec::mqtt::{Options, Packet, Properties, Reason, Suback, Subscribe, Unsuback, Unsubscribe, topic};
use crate::config::Mqtt;
use crate::slot::SessionSlot;

impl OpenConnection<'_, '_> {
    pub(super) fn handle_subscribe(
        &mut self,
        session: SessionSlot,
        subscribe: &Subscribe,
        mqtt: &Mqtt,
    ) -> Result<PacketOutcome, Termination> {
        if subscribe.properties.subscription_identifiers().count() > 1 {
            return Err(broken("SUBSCRIBE has more than one Subscription Identifier", "v5 3.8.2.1.2"));
        }
        let identifier = subscribe.properties.subscription_identifier().unwrap_or(0);
        let Some(mut pending) = self.cx.broker.begin_filters(session, subscribe.packet_id) else {
            // One SUBACK waits at a time.
            return Ok(PacketOutcome::Deferred(Step::Held));
        };
        let mut looks = FilterLooks::of_packet();
        for (filter, options) in subscribe.filters().skip(pending.codes.len()) {
            if !self.cx.broker.may_look(session, filter, &mut looks) {
                self.cx.broker.put_off_filters(session, pending);
                return Ok(PacketOutcome::Deferred(Step::Unfinished));
            }
            let code = self.subscribe(session, filter, options, identifier, mqtt, &mut pending);
            pending.codes.push(code.0);
        }
        // What is published behind SUBACK reaches the device, and every group: it waits until it is safe, and their homes know.
        self.cx.broker.expect_subscribed(session, &mut pending);
        if let Some(PendingSuback { packet, codes, .. }) = self.cx.broker.end_filters(session, pending) {
            self.encode_suback(session, packet, &codes);
        }
        Ok(PacketOutcome::Consumed)
    }

    /// The SUBACK for which homes of groups and the session's row were waited for, if it may be said; or UNSUBACK.
    pub(super) fn say_suback(&mut self, session: SessionSlot) {
        match self.cx.broker.take_suback(session) {
            Some(PendingSuback { packet, codes, is_unsubscribe: true, .. }) => {
                self.encode_unsuback(session, packet, &codes);
            }
            Some(PendingSuback { packet, codes, .. }) => self.encode_suback(session, packet, &codes),
            None => {}
        }
    }

    /// The same [v5 MQTT-3.10.4-4, MQTT-3.11.3-1, MQTT-3.11.3-2].
    fn encode_unsuback(&mut self, session: SessionSlot, packet: u16, codes: &[u8]) {
        let unsuback = Unsuback { packet_id: packet, properties: Properties::EMPTY, codes };
        self.encode(session, &Packet::Unsuback(unsuback));
    }

    /// One code for each filter, in order [v5 MQTT-3.8.4-6, v3.1.1 MQTT-3.8.4-5]. Retained messages follow behind.
    fn encode_suback(&mut self, session: SessionSlot, packet: u16, codes: &[u8]) {
        let suback = Suback { packet_id: packet, properties: Properties::EMPTY, codes };
        self.encode(session, &Packet::Suback(suback));
    }

    fn subscribe(
        &mut self,
        session: SessionSlot,
        filter: &str,
        options: Options,
        identifier: u32,
        mqtt: &Mqtt,
        pending: &mut PendingSuback,
    ) -> Reason {
        if topic::level_count(filter) > self.settings.topic_levels {
            return Reason::TOPIC_FILTER_INVALID;
        }
        let plain = topic::shared(filter).map_or(filter, |(_, filter)| filter);
        if !self.may_subscribe(self.acl(mqtt).subscribe, plain) {
            return Reason::NOT_AUTHORIZED;
        }
        match self.cx.broker.subscribe(session, filter, options, identifier, pending) {
            Granted::Subscribed => Reason(options.qos as u8),
            Granted::TooMany => Reason::QUOTA_EXCEEDED,
        }
    }

    pub(super) fn may_subscribe(&self, rules: &[String], filter: &str) -> bool {
        rules
            .iter()
            .any(|rule| rule == "#" || expand(rule, self.device).is_some_and(|rule| topic::covers(&rule, filter)))
    }

    pub(super) fn handle_unsubscribe(&mut self, session: SessionSlot, unsubscribe: &Unsubscribe) -> PacketOutcome {
        let Some(mut pending) = self.cx.broker.begin_filters(session, unsubscribe.packet_id) else {
            return PacketOutcome::Deferred(Step::Held);
        };
        let mut looks = FilterLooks::of_packet();
        for filter in unsubscribe.filters().skip(pending.codes.len()) {
            if !self.cx.broker.may_look(session, filter, &mut looks) {
                self.cx.broker.put_off_filters(session, pending);
                return PacketOutcome::Deferred(Step::Unfinished);
            }
            pending.codes.push(match self.cx.broker.unsubscribe(session, filter) {
                Unsubscribed::Removed => Reason::SUCCESS.0,
                Unsubscribed::NoSuch => Reason::NO_SUBSCRIPTION_EXISTED.0,
            });
        }
        pending.is_unsubscribe = true;
        self.cx.broker.expect_row(session, &mut pending);
        if let Some(PendingSuback { packet, codes, .. }) = self.cx.broker.end_filters(session, pending) {
            self.encode_unsuback(session, packet, &codes);
        }
        PacketOutcome::Consumed
    }
}

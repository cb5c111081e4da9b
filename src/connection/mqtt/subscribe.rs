//! SUBSCRIBE and UNSUBSCRIBE.

use super::super::transport::OpenConnection;
use super::super::{Step, Termination};
use super::publish::expand;
use super::{PacketOutcome, broken};
use crate::broker::{Granted, PendingSuback, Unsubscribed};
use crate::codec::mqtt::{Options, Packet, Properties, Reason, Suback, Subscribe, Unsuback, Unsubscribe, topic};
use crate::config::Mqtt;

impl OpenConnection<'_, '_> {
    pub(super) fn handle_subscribe(
        &mut self,
        session: u32,
        subscribe: &Subscribe,
        mqtt: &Mqtt,
    ) -> Result<PacketOutcome, Termination> {
        if subscribe.properties.subscription_identifiers().count() > 1 {
            return Err(broken("SUBSCRIBE has more than one Subscription Identifier", "v5 3.8.2.1.2"));
        }
        let identifier = subscribe.properties.subscription_identifier().unwrap_or(0);
        if self.cx.broker.hold(session) {
            // One SUBACK waits at a time.
            return Ok(PacketOutcome::Deferred(Step::Held));
        }
        let waits = self.cx.broker.begin_subscribe();
        let (mut codes, mut homes) = (Vec::new(), 0);
        for (filter, options) in subscribe.filters() {
            codes.push(self.subscribe(session, filter, options, identifier, mqtt, &mut homes).0);
        }
        if homes > 0 {
            // What is published behind SUBACK reaches the group: it waits until the group's home knows.
            self.cx.broker.hold_suback(session, waits, homes, subscribe.packet_id, codes);
            return Ok(PacketOutcome::Consumed);
        }
        // One for each, in order [v5 MQTT-3.8.4-6, v3.1.1 MQTT-3.8.4-5]. Retained messages follow behind.
        let suback = Suback { packet_id: subscribe.packet_id, properties: Properties::EMPTY, codes: &codes };
        self.encode(session, &Packet::Suback(suback));
        Ok(PacketOutcome::Consumed)
    }

    /// The SUBACK for which homes of groups were waited for, if they have all answered.
    pub(super) fn say_suback(&mut self, session: u32) {
        if let Some(PendingSuback { packet, codes, .. }) = self.cx.broker.take_suback(session) {
            let suback = Suback { packet_id: packet, properties: Properties::EMPTY, codes: &codes };
            self.encode(session, &Packet::Suback(suback));
        }
    }

    /// `homes`: how many homes of groups have to answer.
    fn subscribe(
        &mut self,
        session: u32,
        filter: &str,
        options: Options,
        identifier: u32,
        mqtt: &Mqtt,
        homes: &mut usize,
    ) -> Reason {
        if topic::level_count(filter) > self.settings.topic_levels {
            return Reason::TOPIC_FILTER_INVALID;
        }
        let plain = topic::shared(filter).map_or(filter, |(_, filter)| filter);
        if !self.may_subscribe(&mqtt.subscribe, plain) {
            return Reason::NOT_AUTHORIZED;
        }
        match self.cx.broker.subscribe(session, filter, options, identifier) {
            Granted::Subscribed => {}
            Granted::Joining => *homes += 1,
            Granted::TooMany => return Reason::QUOTA_EXCEEDED,
        }
        Reason(options.qos as u8)
    }

    fn may_subscribe(&self, rules: &[String], filter: &str) -> bool {
        rules
            .iter()
            .any(|rule| rule == "#" || expand(rule, self.device).is_some_and(|rule| topic::covers(&rule, filter)))
    }

    pub(super) fn handle_unsubscribe(&mut self, session: u32, unsubscribe: &Unsubscribe) {
        let mut codes = Vec::new();
        for filter in unsubscribe.filters() {
            codes.push(match self.cx.broker.unsubscribe(session, filter) {
                Unsubscribed::Removed => Reason::SUCCESS.0,
                Unsubscribed::NoSuch => Reason::NO_SUBSCRIPTION_EXISTED.0,
            });
        }
        // [v5 MQTT-3.10.4-4, MQTT-3.11.3-1, MQTT-3.11.3-2]
        let unsuback = Unsuback { packet_id: unsubscribe.packet_id, properties: Properties::EMPTY, codes: &codes };
        self.encode(session, &Packet::Unsuback(unsuback));
    }
}

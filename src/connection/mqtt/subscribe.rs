//! SUBSCRIBE and UNSUBSCRIBE.

use super::super::Termination;
use super::super::transport::OpenConnection;
use super::broken;
use super::publish::expand;
use crate::broker::{Granted, Unsubscribed};
use crate::codec::mqtt::{Options, Packet, Properties, Reason, Suback, Subscribe, Unsuback, Unsubscribe, topic};
use crate::config::Mqtt;

impl OpenConnection<'_, '_> {
    pub(super) fn handle_subscribe(
        &mut self,
        session: u32,
        subscribe: &Subscribe,
        mqtt: &Mqtt,
    ) -> Result<(), Termination> {
        if subscribe.properties.subscription_identifiers().count() > 1 {
            return Err(broken("SUBSCRIBE has more than one Subscription Identifier", "v5 3.8.2.1.2"));
        }
        let identifier = subscribe.properties.subscription_identifier().unwrap_or(0);
        self.cx.broker.begin_subscribe();
        let mut codes = Vec::new();
        for (filter, options) in subscribe.filters() {
            codes.push(self.subscribe(session, filter, options, identifier, mqtt).0);
        }
        // One for each, in order [v5 MQTT-3.8.4-6, v3.1.1 MQTT-3.8.4-5]. Retained messages follow behind.
        let suback = Suback { packet_id: subscribe.packet_id, properties: Properties::EMPTY, codes: &codes };
        self.encode(session, &Packet::Suback(suback));
        Ok(())
    }

    fn subscribe(&mut self, session: u32, filter: &str, options: Options, identifier: u32, mqtt: &Mqtt) -> Reason {
        if topic::level_count(filter) > self.settings.topic_levels {
            return Reason::TOPIC_FILTER_INVALID;
        }
        let plain = topic::shared(filter).map_or(filter, |(_, filter)| filter);
        if !self.may_subscribe(&mqtt.subscribe, plain) {
            return Reason::NOT_AUTHORIZED;
        }
        match self.cx.broker.subscribe(session, filter, options, identifier) {
            Granted::Yes => Reason(options.qos as u8),
            Granted::TooMany => Reason::QUOTA_EXCEEDED,
        }
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
                Unsubscribed::Yes => Reason::SUCCESS.0,
                Unsubscribed::NoSuch => Reason::NO_SUBSCRIPTION_EXISTED.0,
            });
        }
        // [v5 MQTT-3.10.4-4, MQTT-3.11.3-1, MQTT-3.11.3-2]
        let unsuback = Unsuback { packet_id: unsubscribe.packet_id, properties: Properties::EMPTY, codes: &codes };
        self.encode(session, &Packet::Unsuback(unsuback));
    }
}

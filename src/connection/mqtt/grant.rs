//! What the device was granted: by which rules it publishes and subscribes, and AUTH, by which it stays for longer
//! (v5 4.12.1).
//!
//! ```text
//!   CONNECT with method "token" ─▶ granted until T ── AUTH 0x19 with a fresh token ─▶ granted until T' ── AUTH 0x00 ─▶
//!                                                                                 └─ wrong, or nobody knows: DISCONNECT
//! ```
//! Until it is answered everything goes on as it was granted before.

use super::super::transport::OpenConnection;
use super::super::{Step, Termination};
use super::{PacketOutcome, broken};
use crate::codec::mqtt::{Auth, Packet, PropertiesBuilder, Property, Reason, topic};
use crate::config::{Mqtt, Protocol};
use crate::link::Credentials;
use crate::slot::SessionSlot;

/// The one authentication method: the authentication data is the token, whole, in CONNECT and in AUTH.
pub(super) const METHOD: &str = "token";

/// By which filters a device publishes and subscribes.
pub(super) struct Acl<'r> {
    pub(super) publish: &'r [String],
    pub(super) subscribe: &'r [String],
}

impl<'x> OpenConnection<'_, 'x> {
    /// Those of its grant, where that has any, and otherwise the listener's.
    pub(super) fn acl<'r>(&self, mqtt: &'r Mqtt) -> Acl<'r>
    where
        'x: 'r,
    {
        let grant = self.cx.grant;
        Acl {
            publish: grant.and_then(|grant| grant.publish.as_deref()).unwrap_or(&mqtt.publish),
            subscribe: grant.and_then(|grant| grant.subscribe.as_deref()).unwrap_or(&mqtt.subscribe),
        }
    }

    /// What the session subscribed to under other rules and the device may not have any more ends.
    pub(super) fn end_forbidden_subscriptions(&mut self, session: SessionSlot, mqtt: &Mqtt) {
        let rules = self.acl(mqtt).subscribe;
        if rules.iter().any(|rule| rule == "#") {
            return;
        }
        let plain = |filter: &str| topic::shared(filter).map_or(filter.to_owned(), |(_, filter)| filter.to_owned());
        let mut forbidden = self.cx.broker.filters(session);
        forbidden.retain(|filter| !self.may_subscribe(rules, &plain(filter)));
        for filter in &forbidden {
            self.cx.broker.unsubscribe(session, filter);
        }
    }

    pub(super) fn handle_auth(&mut self, auth: &Auth) -> Result<PacketOutcome, Termination> {
        if !self.cx.grant.is_some_and(|grant| grant.is_renewable) {
            return Err(broken("AUTH, and CONNECT has named no authentication method", "v5 MQTT-4.12.0-7"));
        }
        if auth.properties.authentication_method() != Some(METHOD) {
            return Err(broken("AUTH has another authentication method than CONNECT had", "v5 MQTT-4.12.1-1"));
        }
        if auth.reason != Reason::REAUTHENTICATE {
            return Err(broken("AUTH, and no authentication is under way", "v5 4.12.1"));
        }
        let data = auth.properties.authentication_data().unwrap_or_default();
        Ok(PacketOutcome::Taken(Step::Verify(Box::new(Credentials {
            device: self.device.clone(),
            name: self.device.clone(),
            secret: Credentials::keep(data),
            is_certified: false,
            has_method: true,
            is_renewal: true,
        }))))
    }

    /// The grant was renewed: it is in force, and the device is told so.
    pub(in crate::connection) fn send_renewed(&mut self) -> Result<(), Termination> {
        let Protocol::Mqtt(mqtt) = &self.settings.protocol else { unreachable!("AUTH is a packet of MQTT") };
        let Some(session) = self.session() else { return Ok(()) };
        self.end_forbidden_subscriptions(session, mqtt);
        // [v5 MQTT-4.12.0-5]
        let mut told = PropertiesBuilder::default();
        told.push(&Property::AuthenticationMethod(METHOD));
        self.encode(session, &Packet::Auth(Auth { reason: Reason::SUCCESS, properties: told.properties() }));
        self.seal_plain()
    }
}

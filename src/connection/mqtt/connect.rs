//! CONNECT: who the device is and whether it may come (first look), and its session (second look).

use super::super::transport::OpenConnection;
use super::super::{Naming, Phase, Step, Termination};
use super::grant::METHOD;
use super::{PacketOutcome, publish};
use crate::broker::{ALIASES_MAX, Arrival, Attached, Claim, Profile, Will};
use crate::codec::mqtt::{
    self, Connack, Connect, Packet, Properties, PropertiesBuilder, Property, Reason, Version, topic,
};
use crate::codec::native;
use crate::config::{IdentityFrom, Mqtt};
use crate::link::{CloseReason, Credentials, Publication, SessionWanted, WorkerEvent};

impl OpenConnection<'_, '_> {
    // --- The first look: who it is ----------------------------------------------------------------------------------

    /// Names the device, or sends its password to be judged. CONNECT stays in the input either way.
    pub(super) fn look_at_connect(&mut self, connect: &Connect, mqtt: &Mqtt) -> Result<PacketOutcome, Termination> {
        let has_method = match connect.properties.authentication_method() {
            None => false,
            Some(METHOD) if self.settings.entry.takes_method => true,
            Some(_) => {
                return Err(self.refuse(
                    connect.version,
                    Reason::BAD_AUTHENTICATION_METHOD,
                    CloseReason::ProtocolError,
                    "an authentication method was asked for that is not known here [v5 MQTT-4.12.0-1]",
                ));
            }
        };
        let is_certified = self.is_certified();
        if let Some(max) = mqtt.keep_alive_max
            && connect.version != Version::V5
            && !(1..=max.as_secs()).contains(&u64::from(connect.keep_alive))
        {
            // It cannot be told a shorter one, and to cut it by another than its own would cut a live device.
            return Err(self.refuse(
                connect.version,
                Reason::CLIENT_IDENTIFIER_NOT_VALID,
                CloseReason::ProtocolError,
                "its keep-alive is longer than listener.mqtt.keep_alive_max, and MQTT 3.1.1 cannot be told",
            ));
        }
        let device = match self.name(connect) {
            Ok(device) => device,
            Err((reason, close, why)) => return Err(self.refuse(connect.version, reason, close, why)),
        };
        // Empty: it gets a name when it is settled.
        *self.device = device;
        *self.interval = keep_alive(connect, mqtt);
        let entry = self.settings.entry;
        if !entry.asks || (entry.certificate_passes && is_certified && !has_method) {
            return Ok(PacketOutcome::Deferred(Step::Named));
        }
        let secret = if has_method { connect.properties.authentication_data() } else { connect.password };
        let secret = secret.unwrap_or_default();
        if secret.is_empty() && entry.needs_secret {
            return Err(self.refuse(
                connect.version,
                Reason::BAD_USER_NAME_OR_PASSWORD,
                CloseReason::TokenRejected,
                "CONNECT carries no user name and password",
            ));
        }
        *self.phase = Phase::Verifying;
        Ok(PacketOutcome::Deferred(Step::Verify(Box::new(Credentials {
            device: self.device.clone(),
            name: connect.username.unwrap_or_default().into(),
            secret: Credentials::keep(secret),
            is_certified,
            has_method,
            is_renewal: false,
        }))))
    }

    /// The device's id under the listener's rule; empty: one is to be made for it.
    fn name(&mut self, connect: &Connect) -> Result<Box<str>, (Reason, CloseReason, &'static str)> {
        let invalid = Reason::CLIENT_IDENTIFIER_NOT_VALID;
        let asked = connect.client_id;
        if !asked.is_empty() && !native::is_id(asked) {
            let why = "the client identifier is no device id: 1 to 128 bytes without control characters";
            return Err((invalid, CloseReason::ProtocolError, why));
        }
        let needs_id = match connect.version {
            // 1 to 23 characters (3.1 3.1); longer ones are taken, as everywhere.
            Version::V31 => true,
            // [v3.1.1 MQTT-3.1.3-8]
            Version::V311 => !connect.clean_start,
            Version::V5 => false,
        };
        if asked.is_empty() && needs_id {
            return Err((invalid, CloseReason::ProtocolError, "a session needs a client identifier"));
        }
        let known: Option<&str> = match self.naming {
            // The certificate has named it.
            Naming::Rule(IdentityFrom::CertCn | IdentityFrom::CertSanDns | IdentityFrom::CertSanUri) => {
                if self.device.is_empty() && self.settings.entry.names_otherwise {
                    // What it proves itself by is to name it, and then it is held against what it calls itself.
                    *self.naming = Naming::Granted;
                    return Ok(asked.into());
                }
                if self.device.is_empty() {
                    let reason = if connect.version == Version::V5 { invalid } else { Reason::NOT_AUTHORIZED };
                    let why =
                        "the client certificate has no name that could be the device id under the listener's rule";
                    return Err((reason, CloseReason::IdentityMissing, why));
                }
                Some(&**self.device)
            }
            Naming::Rule(IdentityFrom::Username) => {
                let why = "there is no user name that could be the device id";
                let refused = (Reason::BAD_USER_NAME_OR_PASSWORD, CloseReason::IdentityMissing, why);
                Some(connect.username.filter(|name| native::is_id(name)).ok_or(refused)?)
            }
            Naming::Rule(_) | Naming::Generated | Naming::Granted => None,
        };
        match known {
            Some(known) if asked.is_empty() || asked == known => Ok(known.into()),
            Some(_) => {
                Err((invalid, CloseReason::IdentityMismatch, "the client identifier is not the device's own name"))
            }
            None if asked.is_empty() => {
                *self.naming = Naming::Generated;
                Ok(Box::default())
            }
            None => Ok(asked.into()),
        }
    }

    // --- The second look: its session -------------------------------------------------------------------------------

    /// The device is at home and in the device table: it gets its session, and CONNACK.
    pub(super) fn take_connect(&mut self, connect: &Connect, mqtt: &Mqtt) -> Result<PacketOutcome, Termination> {
        // The will of a mosquitto bridge is under $SYS: the bridge may come, and its will is dropped when it is due.
        if let Some(will) = &connect.will
            && !topic::is_of_server(will.topic)
            && !publish::may(self.acl(mqtt).publish, self.device, will.topic)
        {
            return Err(self.refuse(
                connect.version,
                Reason::NOT_AUTHORIZED,
                CloseReason::ProtocolError,
                "the device may not publish where its will would go",
            ));
        }
        let asked = asked_expiry(connect);
        let mut expiry_s = expiry(asked, mqtt);
        if expiry_s > 0 && !self.cx.broker.may_keep_more() && connect.version == Version::V5 {
            expiry_s = 0;
        }
        let profile = self.profile(connect, expiry_s);
        let will = connect.will.as_ref().map(|will| Box::new(make_will(will)));
        if will.as_ref().is_some_and(|will| !self.cx.broker.has_room_for(will)) {
            return Err(self.refuse(
                connect.version,
                Reason::QUOTA_EXCEEDED,
                CloseReason::PoolFull,
                "there is no room for its will (limits.pool_bytes)",
            ));
        }
        if let Some(step) = self.wait_for_session(connect.clean_start, &profile, will.as_deref()) {
            return Ok(PacketOutcome::Deferred(step));
        }
        let arrival =
            Arrival { connection: self.id.slot, device: self.device, clean_start: connect.clean_start, profile, will };
        let mut attached = self.cx.broker.attach(arrival, self.cx.now);
        if let Some(due_will) = attached.due_will.take() {
            self.cx.due_wills.push(due_will);
        }
        self.end_forbidden_subscriptions(attached.session, mqtt);
        let mut told = PropertiesBuilder::default();
        if connect.version == Version::V5 {
            self.encode_limits(connect, asked, &profile, &mut told);
        }
        // [v5 MQTT-3.2.2-2, MQTT-3.2.2-3; v3.1.1 MQTT-3.2.2-1, MQTT-3.2.2-2]
        let connack =
            Connack { session_present: attached.was_present, reason: Reason::SUCCESS, properties: told.properties() };
        let start = self.cx.plain.len();
        self.encode(attached.session, &Packet::Connack(connack));
        if self.cx.plain.len() == start {
            let what = "the device takes no packet as long as its CONNACK [v5 MQTT-3.1.2-24]";
            return Err(Termination::because(CloseReason::ProtocolError, what));
        }
        self.hold_connack(&attached, start);
        Ok(PacketOutcome::Consumed)
    }

    /// What the device says of itself, as it is in force.
    fn profile(&self, connect: &Connect, expiry_s: u32) -> Profile {
        let properties = &connect.properties;
        Profile {
            version: connect.version,
            listener: self.settings.listener,
            keep_alive_s: *self.interval,
            expiry_s,
            receive_maximum: properties.receive_maximum().unwrap_or(u16::MAX),
            packet_maximum: properties.maximum_packet_size().unwrap_or(u32::MAX),
            alias_maximum: properties.topic_alias_maximum().unwrap_or(0),
        }
    }

    /// In a fleet its session may be at another gateway: CONNECT waits until that is known. One that begins anew and ends with its
    /// connection waits for nobody.
    fn wait_for_session(&mut self, is_clean: bool, profile: &Profile, will: Option<&Will>) -> Option<Step> {
        if !self.cx.broker.is_of_fleet() {
            return None;
        }
        let is_kept = profile.expiry_s > 0;
        let wait = is_kept || !is_clean;
        let claim = self.cx.broker.claim(self.id.slot);
        if claim == Claim::Ask {
            let connection = wait.then_some(self.id);
            let head = if wait { self.cx.broker.head_to_be(self.device, profile, will).map(Box::new) } else { None };
            let wanted = SessionWanted { device: self.device.clone(), connection, is_clean, is_kept, head };
            self.cx.uplink.push(WorkerEvent::SessionWanted(Box::new(wanted)));
        }
        (wait && claim != Claim::Cleared).then_some(Step::Held)
    }

    /// What stands behind `start` is said when it is safe.
    fn hold_connack(&mut self, attached: &Attached, start: usize) {
        if !attached.is_safe {
            let connack = self.cx.plain.split_off(start);
            self.cx.broker.hold_greeting(attached.session, connack);
        }
    }

    /// CONNACK tells what differs from what was asked for, and every bound that is not the protocol's own.
    fn encode_limits(&self, connect: &Connect, asked_expiry: u32, profile: &Profile, told: &mut PropertiesBuilder) {
        if profile.expiry_s != asked_expiry {
            told.push(&Property::SessionExpiryInterval(profile.expiry_s));
        }
        told.push(&Property::ReceiveMaximum(self.cx.broker.bounds().inflight));
        told.push(&Property::MaximumPacketSize(self.settings.frame_bytes as u32));
        told.push(&Property::TopicAliasMaximum(ALIASES_MAX));
        if connect.client_id.is_empty() {
            // [v5 MQTT-3.1.3-6, MQTT-3.2.2-16]
            told.push(&Property::AssignedClientIdentifier(self.device));
        }
        if let Some(method) = connect.properties.authentication_method() {
            // [v5 MQTT-4.12.0-5]
            told.push(&Property::AuthenticationMethod(method));
        }
        if profile.keep_alive_s != connect.keep_alive {
            told.push(&Property::ServerKeepAlive(profile.keep_alive_s));
        }
    }

    // --- Refusals ---------------------------------------------------------------------------------------------------

    /// CONNACK with the reason; the connection ends [v5 MQTT-3.1.4-2, v3.1.1 MQTT-3.2.2-5].
    fn refuse(&mut self, version: Version, reason: Reason, close: CloseReason, why: &'static str) -> Termination {
        encode_refusal(version, reason, self.cx.plain);
        Termination::because(close, why).with_code(reason.0).already_sent()
    }

    /// CONNECT could not be decoded. Only of a level that is not spoken is more than the end said: in the words of
    /// v3.1.1, which every client that can fall back reads [v3.1.1 MQTT-3.1.2-2].
    pub(super) fn refuse_connect_bytes(&mut self, error: &mqtt::Error) {
        if error.is_unknown_level {
            encode_refusal(Version::V311, error.reason, self.cx.plain);
        }
    }

    /// The end has come between CONNECT and CONNACK: it is still in the input that was saved.
    pub(super) fn refuse_waiting(&mut self, termination: &Termination) {
        let saved = self.buffers.as_deref().map_or(&[][..], |buffers| &buffers.saved.plain);
        let reason = match termination.reason {
            CloseReason::Shutdown => Some(Reason::SERVER_UNAVAILABLE),
            reason => super::reason_of(reason),
        };
        if !termination.is_sent
            && let Some(reason) = reason
        {
            refuse_pending(saved, reason.for_connack(), self.cx.plain);
        }
    }
}

impl OpenConnection<'_, '_> {
    /// The end has come before CONNACK was said.
    pub(super) fn refuse_ungreeted(&mut self, version: Version, reason: Reason) {
        encode_refusal(version, reason.for_connack(), self.cx.plain);
    }
}

/// Refuses a CONNECT that waits in `plain`, if one does.
fn refuse_pending(plain: &[u8], reason: Reason, out: &mut Vec<u8>) {
    if let Ok(Some((Packet::Connect(connect), _))) = mqtt::decode(plain, None, usize::MAX) {
        encode_refusal(connect.version, reason, out);
    }
}

fn encode_refusal(version: Version, reason: Reason, out: &mut Vec<u8>) {
    let connack = Connack { session_present: false, reason, properties: Properties::EMPTY };
    Packet::Connack(connack).encode(version, out);
}

/// The session expiry interval that CONNECT asks for, in seconds. A session of MQTT 3.1.1 that is not clean has no end
/// of its own.
fn asked_expiry(connect: &Connect) -> u32 {
    match connect.version {
        Version::V5 => connect.properties.session_expiry_interval().unwrap_or(0),
        Version::V31 | Version::V311 if connect.clean_start => 0,
        Version::V31 | Version::V311 => u32::MAX,
    }
}

/// The session expiry interval in force for one that was asked for, in seconds.
pub(super) fn expiry(asked_s: u32, mqtt: &Mqtt) -> u32 {
    asked_s.min(u32::try_from(mqtt.session_expiry_max.as_secs()).unwrap_or(u32::MAX))
}

/// The keep-alive in force, in seconds; 0: none [v5 MQTT-3.1.2-21].
fn keep_alive(connect: &Connect, mqtt: &Mqtt) -> u16 {
    let Some(max) = mqtt.keep_alive_max else { return connect.keep_alive };
    let max = u16::try_from(max.as_secs()).unwrap_or(u16::MAX);
    if connect.keep_alive == 0 { max } else { connect.keep_alive.min(max) }
}

fn make_will(will: &mqtt::Will) -> Will {
    let mut properties = Vec::new();
    will.properties.forwardable(&mut properties);
    Will {
        publication: Publication {
            retain: will.retain,
            properties: properties.into(),
            ..Publication::plain(will.topic, bytes::Bytes::copy_from_slice(will.payload), will.qos)
        },
        expiry_s: will.properties.message_expiry_interval(),
        delay_s: will.properties.will_delay_interval().unwrap_or(0),
    }
}

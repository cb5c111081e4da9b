//! MQTT within an open connection: packets to what they mean for the device's session, and back.
//!
//! ```text
//!   Unnamed ──CONNECT: who it is──▶ Named, perhaps at another worker ──the same CONNECT again: its session──▶ greeted
//! ```
//!
//! CONNECT is looked at twice. First where the connection was accepted, for the device's name and whether it may come;
//! it is left in the input, travels with the connection to its home, and is taken there, where the session is. Everything
//! that concerns more than this connection is in [`crate::broker`]; nothing here knows another connection.

mod connect;
mod grant;
mod outbound;
mod publish;
mod subscribe;

use super::transport::{OpenConnection, Progress};
use super::{Input, Phase, Step, Termination};
use crate::broker::{Qos2Reply, WrongAck};
use crate::codec::mqtt::{self, Ack, Disconnect, Packet, Properties, Reason, Version};
use crate::config::Mqtt;
use crate::link::{CloseReason, Outcome, WorkerEvent};
use crate::metrics::Metric;
use crate::slot::SessionSlot;

/// What became of a packet.
enum PacketOutcome {
    /// It is done with.
    Consumed,
    /// It stays where it is, and this is to be done first.
    Deferred(Step),
    /// It is done with, and this is to be done next.
    Taken(Step),
}

impl OpenConnection<'_, '_> {
    pub(super) fn handle_mqtt(&mut self, input: &mut Input, mqtt: &Mqtt) -> Result<Progress, Termination> {
        loop {
            let version = self.session().map(|session| self.cx.broker.profile(session).version);
            let longest = if version.is_some() { self.settings.frame_bytes } else { self.settings.connect_bytes };
            let decoded = mqtt::decode(input.plain(), version, longest);
            let packet = decoded.map_err(|error| self.refuse_bytes(&error))?;
            let Some((packet, length)) = packet else { return Ok(Progress::NeedsMore) };
            let outcome = self.handle_packet(&packet, mqtt);
            if !matches!(outcome, Ok(PacketOutcome::Deferred(_))) {
                self.trace_packet(&packet, length);
            }
            match outcome? {
                PacketOutcome::Consumed => input.consume_plain(length),
                PacketOutcome::Deferred(step) => return Ok(Progress::Do(step)),
                PacketOutcome::Taken(step) => {
                    input.consume_plain(length);
                    return Ok(Progress::Do(step));
                }
            }
        }
    }

    /// The session, once CONNECT was taken at home.
    fn session(&self) -> Option<SessionSlot> {
        self.cx.broker.of(self.id.slot)
    }

    fn handle_packet(&mut self, packet: &Packet, mqtt: &Mqtt) -> Result<PacketOutcome, Termination> {
        let Some(session) = self.session() else {
            return match packet {
                Packet::Connect(connect) if *self.phase == Phase::Unnamed => self.look_at_connect(connect, mqtt),
                Packet::Connect(connect) => self.take_connect(connect, mqtt),
                // Before CONNECT the codec lets nothing else through.
                _ => unreachable!("{} came through before CONNECT", packet.name()),
            };
        };
        if self.cx.broker.is_ungreeted(session) {
            // It hears CONNACK first, when that is true.
            self.cx.broker.hold(session);
            return Ok(PacketOutcome::Deferred(Step::Held));
        }
        match packet {
            Packet::Publish(publish) => return self.handle_publish(session, publish, mqtt),
            Packet::Puback(ack) => self.handle_puback(session, ack)?,
            Packet::Pubrec(ack) => self.handle_pubrec(session, ack)?,
            Packet::Pubrel(ack) => self.handle_pubrel(session, ack)?,
            Packet::Pubcomp(ack) => self.handle_pubcomp(session, ack)?,
            Packet::Subscribe(subscribe) => return self.handle_subscribe(session, subscribe, mqtt),
            Packet::Unsubscribe(unsubscribe) => return Ok(self.handle_unsubscribe(session, unsubscribe)),
            Packet::Pingreq => {
                self.cx.counters.add(Metric::HeartbeatsReceived, 1);
                self.encode(session, &Packet::Pingresp);
            }
            Packet::Disconnect(disconnect) => return Err(self.handle_disconnect(session, disconnect, mqtt)),
            Packet::Connect(_) => return Err(broken("a second CONNECT", "MQTT-3.1.0-2")),
            Packet::Auth(auth) => return self.handle_auth(auth),
            Packet::Connack(_) | Packet::Suback(_) | Packet::Unsuback(_) | Packet::Pingresp => {
                return Err(Termination::because(
                    CloseReason::ProtocolError,
                    format!("{} is for servers to send", packet.name()),
                )
                .with_code(Reason::PROTOCOL_ERROR.0));
            }
        }
        Ok(PacketOutcome::Consumed)
    }

    // --- Acknowledgements -------------------------------------------------------------------------------------------

    fn handle_puback(&mut self, session: SessionSlot, ack: &Ack) -> Result<(), Termination> {
        let (sessions, uplink, counters) = (&mut *self.cx.broker, &mut *self.cx.uplink, &mut *self.cx.counters);
        let outcome = if ack.reason.is_error() { Outcome::Unacknowledged } else { Outcome::Acknowledged };
        // One for nothing that is in flight is no fault: it may be late.
        let taken = sessions.handle_puback(session, ack.packet_id, |request| {
            counters.add(Metric::MessagesConfirmed, 1);
            uplink.push(WorkerEvent::Sent { request, outcome });
        });
        taken.map(drop).map_err(|wrong| wrong_ack(wrong, "PUBACK for a message of QoS 2"))
    }

    fn handle_pubrec(&mut self, session: SessionSlot, ack: &Ack) -> Result<(), Termination> {
        let failed = ack.reason.is_error();
        let (sessions, uplink, counters) = (&mut *self.cx.broker, &mut *self.cx.uplink, &mut *self.cx.counters);
        let outcome = if failed { Outcome::Unacknowledged } else { Outcome::Acknowledged };
        let known = sessions.handle_pubrec(session, ack.packet_id, failed, |request| {
            counters.add(Metric::MessagesConfirmed, 1);
            uplink.push(WorkerEvent::Sent { request, outcome });
        });
        let known = known.map_err(|wrong| wrong_ack(wrong, "PUBREC for a message that does not wait for it"))?;
        if failed {
            return Ok(());
        }
        // [MQTT-4.3.3-1]; for what is not known v5 has a reason code (3.6.2.1).
        let reason = if known { Reason::SUCCESS } else { Reason::PACKET_IDENTIFIER_NOT_FOUND };
        self.reply(session, Qos2Reply { packet: ack.packet_id, reason, is_pubrel: true });
        Ok(())
    }

    fn handle_pubcomp(&mut self, session: SessionSlot, ack: &Ack) -> Result<(), Termination> {
        let taken = self.cx.broker.handle_pubcomp(session, ack.packet_id);
        taken.map(drop).map_err(|wrong| wrong_ack(wrong, "PUBCOMP for a message that was not released"))
    }

    fn handle_pubrel(&mut self, session: SessionSlot, ack: &Ack) -> Result<(), Termination> {
        // [MQTT-4.3.3-2]: answered even if it is not known, since the answer may have been lost.
        let known = self.cx.broker.handle_pubrel(session, ack.packet_id);
        let known = known.map_err(|wrong| wrong_ack(wrong, "PUBREL for a message that PUBREC was not said of"))?;
        let reason = if known { Reason::SUCCESS } else { Reason::PACKET_IDENTIFIER_NOT_FOUND };
        self.reply(session, Qos2Reply { packet: ack.packet_id, reason, is_pubrel: false });
        Ok(())
    }

    /// The second half of an exchange of QoS 2, now or when what it says is safe.
    fn reply(&mut self, session: SessionSlot, reply: Qos2Reply) {
        if let Some(reply) = self.cx.broker.reply_when_safe(session, reply) {
            self.encode_reply(session, reply);
        }
    }

    pub(super) fn encode_reply(&mut self, session: SessionSlot, reply: Qos2Reply) {
        let ack = Ack { packet_id: reply.packet, reason: reply.reason, properties: Properties::EMPTY };
        self.encode(session, &if reply.is_pubrel { Packet::Pubrel(ack) } else { Packet::Pubcomp(ack) });
    }

    // --- Ends -------------------------------------------------------------------------------------------------------

    fn handle_disconnect(&mut self, session: SessionSlot, disconnect: &Disconnect, mqtt: &Mqtt) -> Termination {
        if !disconnect.reason.is_disconnect_of_client() {
            return broken("DISCONNECT has a reason that servers alone say", "v5 MQTT-3.14.2-1");
        }
        let profile = *self.cx.broker.profile(session);
        if let Some(expiry_s) = disconnect.properties.session_expiry_interval() {
            if profile.expiry_s == 0 && expiry_s != 0 {
                return broken("DISCONNECT makes a session that CONNECT did not", "v5 3.14.2.2.2");
            }
            self.cx.broker.set_expiry(session, connect::expiry(expiry_s, mqtt));
        }
        // Only this one lets the will be forgotten [v5 MQTT-3.14.4-3, v3.1.1 MQTT-3.14.4-3].
        if disconnect.reason == Reason::SUCCESS {
            self.cx.broker.forget_will(session);
        }
        Termination::new(CloseReason::DeviceClosed)
    }

    /// DISCONNECT with a reason, in v5; CONNACK to one that was not greeted yet.
    pub(super) fn encode_disconnect(&mut self, termination: &Termination) {
        let Some(session) = self.session() else { return self.refuse_waiting(termination) };
        let profile = *self.cx.broker.profile(session);
        let Some(reason) = termination.code.map(Reason).or_else(|| reason_of(termination.reason)) else { return };
        if self.cx.broker.is_ungreeted(session) {
            return self.refuse_ungreeted(profile.version, reason);
        }
        if profile.version == Version::V5 {
            self.encode(session, &Packet::Disconnect(Disconnect { reason, properties: Properties::EMPTY }));
        }
    }

    /// Bytes that are no packet.
    fn refuse_bytes(&mut self, error: &mqtt::Error) -> Termination {
        if self.session().is_none() {
            self.refuse_connect_bytes(error);
        }
        let is_too_large = error.reason == Reason::PACKET_TOO_LARGE;
        let reason = if is_too_large { CloseReason::FrameTooLarge } else { CloseReason::ProtocolError };
        Termination::from_error(reason, error).with_code(error.reason.0)
    }

    /// Encodes one packet, unless it is longer than the device takes [v5 MQTT-3.1.2-24].
    fn encode(&mut self, session: SessionSlot, packet: &Packet) {
        let profile = self.cx.broker.profile(session);
        let (version, start) = (profile.version, self.cx.plain.len());
        packet.encode(version, self.cx.plain);
        if self.cx.plain.len() - start > profile.packet_maximum as usize {
            self.cx.plain.truncate(start);
        }
    }
}

fn broken(what: &'static str, statement: &'static str) -> Termination {
    Termination::because(CloseReason::ProtocolError, format!("{what} [{statement}]"))
        .with_code(Reason::PROTOCOL_ERROR.0)
}

/// An acknowledgement that is out of order [v5 MQTT-4.13.1-1, v3.1.1 MQTT-4.8.0-1].
fn wrong_ack(_: WrongAck, what: &'static str) -> Termination {
    broken(what, "v5 MQTT-4.13.1-1, v3.1.1 MQTT-4.8.0-1")
}

/// What a device is told of an end, in DISCONNECT; `None` where nobody is there to be told.
const fn reason_of(reason: CloseReason) -> Option<Reason> {
    Some(match reason {
        CloseReason::Shutdown => Reason::SERVER_SHUTTING_DOWN,
        CloseReason::TakenOver => Reason::SESSION_TAKEN_OVER,
        CloseReason::Expired => Reason::KEEP_ALIVE_TIMEOUT,
        CloseReason::ProtocolError => Reason::PROTOCOL_ERROR,
        CloseReason::FrameTooLarge => Reason::PACKET_TOO_LARGE,
        CloseReason::Denied => Reason::BANNED,
        CloseReason::Requested => Reason::ADMINISTRATIVE_ACTION,
        CloseReason::CertificateRevoked
        | CloseReason::CertificateExpired
        | CloseReason::JwtRejected
        | CloseReason::HookRejected => Reason::NOT_AUTHORIZED,
        CloseReason::ConnectionAge | CloseReason::GrantExpired => Reason::MAXIMUM_CONNECT_TIME,
        CloseReason::RateExceeded => Reason::MESSAGE_RATE_TOO_HIGH,
        CloseReason::HomeFull
        | CloseReason::PoolFull
        | CloseReason::SessionUnreadable
        | CloseReason::SessionElsewhere
        | CloseReason::TokenUnanswered
        | CloseReason::JwtUnanswered
        | CloseReason::HookUnanswered
        | CloseReason::TakeoverLoop => Reason::SERVER_BUSY,
        CloseReason::IdentityMissing | CloseReason::IdentityMismatch => Reason::CLIENT_IDENTIFIER_NOT_VALID,
        CloseReason::TokenRejected => Reason::BAD_USER_NAME_OR_PASSWORD,
        CloseReason::MessageRefused
        | CloseReason::DeviceClosed
        | CloseReason::HelloTimeout
        | CloseReason::PeerClosed
        | CloseReason::PeerReset
        | CloseReason::SlowConsumer
        | CloseReason::HandshakeAbandoned
        | CloseReason::HandshakeTimeout
        | CloseReason::HandshakeFailed
        | CloseReason::NotTls
        | CloseReason::ProxyHeader
        | CloseReason::ProxyCheck
        | CloseReason::AddressRefused
        | CloseReason::CertificateRejected
        | CloseReason::TlsError => return None,
    })
}

//! What a traced connection says and is told, packet by packet, for people to read: names and headers, never a secret, and of
//! payloads no more than was asked for.
//!
//! Where nobody follows a connection there is no [`PacketLog`], and each place that would write into one is a branch. What goes
//! out is decoded again from what was encoded: so nothing that is sent can be forgotten here.

use std::fmt::Write as _;

use bytes::Bytes;

use super::transport::OpenConnection;
use super::websocket::Carrier;
use crate::codec::mqtt::{self, Packet, QoS, Version};
use crate::codec::native::{self, Frame};
use crate::codec::raw::{self, Payload};
use crate::config::{self, Protocol};
use crate::link::{Direction, TRACE_EVENTS_PER_SECOND, TRACE_PAYLOAD_MAX, TRACE_WORDS_MAX, TracedPacket};

/// Filters of a SUBSCRIBE or UNSUBSCRIBE that are named.
const FILTERS_SHOWN: usize = 8;

/// The packets of one call, in their order.
#[derive(Default)]
pub struct PacketLog {
    packets: Vec<TracedPacket>,
    left_out: u64,
    has_payloads: bool,
}

impl PacketLog {
    /// For a call on a connection whose payloads are to be seen too, or not.
    pub fn begin(&mut self, has_payloads: bool) {
        debug_assert!(self.packets.is_empty());
        self.has_payloads = has_payloads;
    }

    /// Whether nothing was said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// What was said, and how many packets more.
    pub fn take(&mut self) -> (Vec<TracedPacket>, u64) {
        (std::mem::take(&mut self.packets), std::mem::take(&mut self.left_out))
    }

    fn note(&mut self, direction: Direction, name: &'static str, bytes: usize, summary: Summary) {
        // One read may hold tens of thousands of packets: more than a second's bound is never told.
        if self.packets.len() >= TRACE_EVENTS_PER_SECOND as usize {
            self.left_out += 1;
            return;
        }
        let mut words = summary.words;
        words.truncate(words.floor_char_boundary(TRACE_WORDS_MAX));
        let shown = summary.payload.filter(|payload| self.has_payloads && !payload.is_empty());
        let payload = shown.map(|payload| Bytes::copy_from_slice(&payload[..payload.len().min(TRACE_PAYLOAD_MAX)]));
        self.packets.push(TracedPacket { direction, name, bytes, words, payload });
    }

    fn note_frame(&mut self, direction: Direction, frame: &Frame, bytes: usize) {
        self.note(direction, frame.name(), bytes, Summary::of_frame(frame));
    }

    fn note_packet(&mut self, direction: Direction, packet: &Packet, bytes: usize) {
        self.note(direction, packet.name(), bytes, Summary::of_packet(packet));
    }

    fn note_raw(&mut self, direction: Direction, bytes: &[u8], raw: &config::Raw) {
        let (name, summary) = match direction {
            Direction::In => match raw::classify(&raw.heartbeat, bytes) {
                Payload::Heartbeats(count) => ("HEARTBEAT", Summary::words(format!("{count} of them"))),
                Payload::Data(bytes) => ("DATA", Summary::words(String::new()).with(bytes)),
            },
            Direction::Out if bytes == raw.reply => ("REPLY", Summary::words(String::new())),
            Direction::Out if bytes == raw.probe => ("PROBE", Summary::words(String::new())),
            Direction::Out => ("DATA", Summary::words(String::new()).with(bytes)),
        };
        self.note(direction, name, bytes.len(), summary);
    }

    /// Everything that was encoded since the last time. `version`: of MQTT, where the device has said it.
    fn note_out(&mut self, mut bytes: &[u8], protocol: &Protocol, version: Option<Version>) {
        while !bytes.is_empty() {
            let length = match protocol {
                Protocol::Raw(raw) => {
                    self.note_raw(Direction::Out, bytes, raw);
                    Some(bytes.len())
                }
                Protocol::Native => native::decode(bytes, native::BODY_MAX).ok().flatten().map(|(frame, length)| {
                    self.note_frame(Direction::Out, &frame, length);
                    length
                }),
                Protocol::Mqtt(_) => decode_own(bytes, version).map(|(packet, length)| {
                    self.note_packet(Direction::Out, &packet, length);
                    length
                }),
            };
            let Some(length) = length else {
                return self.note(Direction::Out, "BYTES", bytes.len(), Summary::words(String::new()));
            };
            bytes = &bytes[length..];
        }
    }
}

/// A packet of our own. Who was not greeted is refused in the version that it spoke, which nobody has noted: CONNACK of v5 is
/// longer.
fn decode_own(bytes: &[u8], version: Option<Version>) -> Option<(Packet<'_>, usize)> {
    let decode = |version| mqtt::decode(bytes, Some(version), usize::MAX).ok().flatten();
    match version {
        Some(version) => decode(version),
        None => decode(Version::V5).or_else(|| decode(Version::V311)),
    }
}

/// What is told of a packet besides its name and length.
struct Summary<'a> {
    words: String,
    payload: Option<&'a [u8]>,
}

impl<'a> Summary<'a> {
    fn words(words: String) -> Self {
        Self { words, payload: None }
    }

    fn with(self, payload: &'a [u8]) -> Self {
        Self { payload: Some(payload), ..self }
    }

    fn of_frame(frame: &Frame<'a>) -> Self {
        match frame {
            Frame::Hello(hello) => {
                let token = if hello.token.is_empty() { "no token" } else { "a token" };
                Self::words(format!("id {:?}, heartbeat {} ms, {token}", hello.id, hello.heartbeat_ms))
            }
            Frame::Welcome(welcome) => Self::words(format!(
                "heartbeat {} ms, timeout {} ms, retries {}",
                welcome.heartbeat_ms, welcome.timeout_ms, welcome.retries
            )),
            Frame::Ping(_) | Frame::Pong(_) => Self::words(String::new()),
            Frame::Message(message) => Self::words(format!("id {}, topic {:?}", message.id, message.topic)),
            Frame::Ack(id) => Self::words(format!("id {id}")),
            Frame::Close(close) => {
                let mut words = format!("{}, {:?}", close.code, close.reason);
                if close.retry_after_ms > 0 {
                    let _ = write!(words, ", come back after {} ms", close.retry_after_ms);
                }
                Self::words(words)
            }
        }
        .with_payload_of(frame)
    }

    fn with_payload_of(self, frame: &Frame<'a>) -> Self {
        match frame {
            Frame::Message(message) => self.with(message.payload),
            _ => self,
        }
    }

    fn of_packet(packet: &Packet<'a>) -> Self {
        let words = match packet {
            Packet::Connect(connect) => words_of_connect(connect),
            Packet::Connack(connack) => {
                let session = if connack.session_present { "session present" } else { "no session" };
                format!("{}, {session}", connack.reason)
            }
            Packet::Publish(publish) => return Self::words(words_of_publish(publish)).with(publish.payload),
            Packet::Puback(ack) | Packet::Pubrec(ack) | Packet::Pubrel(ack) | Packet::Pubcomp(ack) => {
                format!("id {}, {}", ack.packet_id, ack.reason)
            }
            Packet::Subscribe(subscribe) => {
                let filters =
                    subscribe.filters().map(|(filter, options)| format!("{filter:?} qos {}", options.qos as u8));
                words_of_filters(subscribe.packet_id, filters)
            }
            Packet::Unsubscribe(unsubscribe) => {
                words_of_filters(unsubscribe.packet_id, unsubscribe.filters().map(|filter| format!("{filter:?}")))
            }
            Packet::Suback(suback) => format!("id {}, codes {:02x?}", suback.packet_id, suback.codes),
            Packet::Unsuback(unsuback) => format!("id {}, codes {:02x?}", unsuback.packet_id, unsuback.codes),
            Packet::Disconnect(disconnect) => disconnect.reason.to_string(),
            Packet::Auth(auth) => auth.reason.to_string(),
            Packet::Pingreq | Packet::Pingresp => String::new(),
        };
        Self::words(words)
    }
}

fn words_of_connect(connect: &mqtt::Connect) -> String {
    let version = match connect.version {
        Version::V31 => "3.1",
        Version::V311 => "3.1.1",
        Version::V5 => "5.0",
    };
    let mut words = format!(
        "version {version}, client id {:?}, keep alive {} s, clean start {}",
        connect.client_id, connect.keep_alive, connect.clean_start
    );
    if let Some(user) = connect.username {
        let _ = write!(words, ", user {user:?}");
    }
    if connect.password.is_some() {
        words.push_str(", a password");
    }
    if let Some(will) = &connect.will {
        let _ = write!(words, ", will to {:?} qos {}", will.topic, will.qos as u8);
    }
    words
}

fn words_of_publish(publish: &mqtt::Publish) -> String {
    let mut words = format!("topic {:?}, qos {}", publish.topic, publish.qos as u8);
    if publish.qos != QoS::AtMostOnce {
        let _ = write!(words, ", id {}", publish.packet_id);
    }
    for (is_set, name) in [(publish.retain, "retain"), (publish.dup, "again")] {
        if is_set {
            let _ = write!(words, ", {name}");
        }
    }
    let _ = write!(words, ", payload {} bytes", publish.payload.len());
    words
}

fn words_of_filters(packet_id: u16, mut filters: impl Iterator<Item = String>) -> String {
    let shown: Vec<String> = filters.by_ref().take(FILTERS_SHOWN).collect();
    let more = filters.count();
    let mut words = format!("id {packet_id}, {}", shown.join(", "));
    if more > 0 {
        let _ = write!(words, " and {more} more");
    }
    words
}

impl OpenConnection<'_, '_> {
    /// A frame was taken.
    #[inline]
    pub(super) fn trace_frame(&mut self, frame: &Frame, bytes: usize) {
        if let Some(log) = &mut self.cx.trace {
            log.note_frame(Direction::In, frame, bytes);
        }
    }

    /// A packet was taken.
    #[inline]
    pub(super) fn trace_packet(&mut self, packet: &Packet, bytes: usize) {
        if let Some(log) = &mut self.cx.trace {
            log.note_packet(Direction::In, packet, bytes);
        }
    }

    /// Bytes of a raw device were taken.
    #[inline]
    pub(super) fn trace_raw(&mut self, bytes: &[u8], raw: &config::Raw) {
        if let Some(log) = &mut self.cx.trace {
            log.note_raw(Direction::In, bytes, raw);
        }
    }

    /// What was encoded is about to be sealed.
    #[inline]
    pub(super) fn trace_plain(&mut self) {
        if self.cx.trace.is_some() {
            self.trace_plain_anyway();
        }
    }

    fn trace_plain_anyway(&mut self) {
        if !matches!(*self.carrier, Carrier::Plain | Carrier::Frames) {
            return;
        }
        let version = self.cx.broker.of(self.id.slot).map(|session| self.cx.broker.profile(session).version);
        if let Some(log) = &mut self.cx.trace {
            log.note_out(self.cx.plain, &self.settings.protocol, version);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::mqtt::{Ack, Connack, Connect, Properties, Reason};

    fn said(log: &mut PacketLog) -> Vec<(&'static str, usize, String, Option<Bytes>)> {
        let packets = log.take().0.into_iter();
        packets.map(|packet| (packet.name, packet.bytes, packet.words, packet.payload)).collect()
    }

    #[test]
    fn what_goes_out_is_told_packet_by_packet_without_payloads_and_secrets() {
        let mqtt = Protocol::Mqtt(config::Mqtt::default());
        let publish = mqtt::Publish {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain: true,
            topic: "a/b",
            packet_id: 7,
            properties: Properties::EMPTY,
            payload: b"secret",
        };
        let mut bytes = Vec::new();
        Packet::Publish(publish).encode(Version::V5, &mut bytes);
        let first = bytes.len();
        Packet::Pubrec(Ack { packet_id: 8, reason: Reason::SUCCESS, properties: Properties::EMPTY })
            .encode(Version::V5, &mut bytes);
        let mut log = PacketLog::default();
        log.note_out(&bytes, &mqtt, Some(Version::V5));
        let told = said(&mut log);
        assert_eq!(told[0], ("PUBLISH", first, "topic \"a/b\", qos 1, id 7, retain, payload 6 bytes".into(), None));
        assert_eq!((told[1].0, told.len()), ("PUBREC", 2));
        log.begin(true);
        log.note_out(&bytes, &mqtt, Some(Version::V5));
        assert_eq!(said(&mut log)[0].3.as_deref(), Some(&b"secret"[..]));

        let connect = Connect {
            version: Version::V311,
            client_id: "meter",
            clean_start: true,
            keep_alive: 60,
            will: None,
            username: Some("user"),
            password: Some(b"secret"),
            properties: Properties::EMPTY,
        };
        log.note_packet(Direction::In, &Packet::Connect(connect), 30);
        log.note_frame(
            Direction::In,
            &Frame::Hello(native::Hello { heartbeat_ms: 9, id: "meter", token: b"secret" }),
            9,
        );
        let told = said(&mut log);
        assert_eq!(told[1].2, "id \"meter\", heartbeat 9 ms, a token");
        assert!(told[0].2.contains("user \"user\", a password"), "{told:?}");
        assert!(told.iter().all(|(_, _, words, payload)| !words.contains("secret") && payload.is_none()), "{told:?}");
    }

    #[test]
    fn a_refusal_is_read_in_whichever_version_it_was_said() {
        let mqtt = Protocol::Mqtt(config::Mqtt::default());
        for version in [Version::V311, Version::V5] {
            let (session_present, properties) = (false, Properties::EMPTY);
            let reason = Reason::NOT_AUTHORIZED;
            let mut bytes = Vec::new();
            Packet::Connack(Connack { session_present, reason, properties }).encode(version, &mut bytes);
            let mut log = PacketLog::default();
            log.note_out(&bytes, &mqtt, None);
            let told = said(&mut log);
            assert_eq!((told.len(), told[0].0, told[0].1), (1, "CONNACK", bytes.len()), "{version:?}: {told:?}");
        }
    }

    #[test]
    fn a_flood_of_packets_and_long_words_are_bounded_and_counted() {
        let mut log = PacketLog::default();
        let count = TRACE_EVENTS_PER_SECOND as usize + 5;
        let raw = config::Raw { heartbeat: b"beat".to_vec(), reply: b"ok".to_vec(), probe: b"?".to_vec() };
        for _ in 0..count {
            log.note_raw(Direction::In, b"beatbeat", &raw);
        }
        let (packets, left_out) = log.take();
        assert_eq!((packets.len(), left_out), (count - 5, 5));
        assert_eq!((packets[0].name, packets[0].words.as_str()), ("HEARTBEAT", "2 of them"));
        log.begin(true);
        let topic = "ä".repeat(600);
        log.note_frame(Direction::In, &Frame::Message(native::Message { id: 1, topic: &topic, payload: &[7; 999] }), 9);
        let (packets, left_out) = log.take();
        assert!(packets[0].words.len() <= TRACE_WORDS_MAX && left_out == 0);
        assert_eq!(packets[0].payload.as_ref().map(Bytes::len), Some(TRACE_PAYLOAD_MAX));
    }
}

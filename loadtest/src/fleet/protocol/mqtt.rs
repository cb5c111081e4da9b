//! MQTT 3.1.1 and 5.0 as a device speaks it: CONNECT, one subscription, PINGREQ, PUBLISH of QoS 0 and 1 both ways.
//!
//! The packets are the gateway's own codec's, in the role of the client. Server-driven probes do not exist here: it is the
//! device that must say something within each keep-alive, and the server that ends it after one and a half.

use std::ops::Range;

use clap::ValueEnum;
use pulsegate::codec::mqtt::{
    self, Ack, Connect, Disconnect, Options, Packet, Properties, Publish, QoS, Reason, Subscribe, Version,
};
use pulsegate::codec::native::CloseCode;
use serde::Serialize;

use super::super::ledger::Stamp;
use super::super::liveness::Terms;
use super::websocket::{self, Event};
use super::{Broken, Received};

/// The longest packet that a device takes. Servers of this fleet send nothing near it.
const PACKET_MAX: usize = 1 << 20;
/// Packet identifiers that there are: 1 to 65,535.
const PACKET_IDS: u32 = 65_535;
/// The one SUBSCRIBE of a device; its answer is told apart by its kind.
const SUBSCRIPTION_ID: u16 = 1;

/// Which MQTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
pub enum MqttVersion {
    /// 3.1.1.
    #[value(name = "3")]
    #[serde(rename = "3")]
    V311,
    /// 5.0.
    #[value(name = "5")]
    #[serde(rename = "5")]
    V5,
}

/// What the devices of one run say.
#[derive(Clone, Debug)]
pub struct Mqtt {
    pub version: MqttVersion,
    /// In seconds; 0: none.
    pub keep_alive_s: u16,
    /// Whether the server is to forget what it knows of the device.
    pub clean_start: bool,
    pub username: Option<String>,
    pub password: Option<String>,
    pub subscription: Option<Subscription>,
    /// Packets are carried in WebSocket frames, for which this path is asked.
    pub websocket: Option<String>,
    /// How messages are sent whose acknowledgement is not asked for by the scenario: never above QoS 1.
    pub subscription_qos: u8,
}

/// What devices subscribe to.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// `{device}` stands for the device's id.
    pub filter: String,
    /// Who subscribes.
    pub devices: Range<u32>,
}

impl Mqtt {
    fn version(&self) -> Version {
        match self.version {
            MqttVersion::V311 => Version::V311,
            MqttVersion::V5 => Version::V5,
        }
    }

    /// Whether the server can say why it ends a connection.
    pub fn has_close_reasons(&self) -> bool {
        self.version == MqttVersion::V5
    }

    /// What is said before CONNECT: nothing, or what a WebSocket is opened with.
    pub(super) fn open(&self, out: &mut Vec<u8>) {
        if let Some(path) = &self.websocket {
            websocket::request(path, out);
        }
    }

    /// Appends a packet as it is carried.
    fn put(&self, packet: &Packet<'_>, out: &mut Vec<u8>) {
        let start = out.len();
        packet.encode(self.version(), out);
        if self.websocket.is_some() {
            websocket::frame(start, out);
        }
    }

    pub(super) fn connect(&self, id: &str, out: &mut Vec<u8>) {
        let packet = Packet::Connect(Connect {
            version: self.version(),
            client_id: id,
            clean_start: self.clean_start,
            keep_alive: self.keep_alive_s,
            will: None,
            username: self.username.as_deref(),
            password: self.password.as_deref().map(str::as_bytes),
            properties: Properties::EMPTY,
        });
        self.put(&packet, out);
    }

    /// False when the device subscribes to nothing.
    pub(super) fn subscribe(&self, id: &str, number: u32, out: &mut Vec<u8>) -> bool {
        let Some(subscription) =
            self.subscription.as_ref().filter(|subscription| subscription.devices.contains(&number))
        else {
            return false;
        };
        let filter = subscription.filter.replace("{device}", id);
        let qos = QoS::try_from(self.subscription_qos).expect("the command line takes 0 and 1");
        let mut filters = Vec::new();
        Subscribe::put_filter(&filter, Options::plain(qos), &mut filters);
        let subscribe = Subscribe::new(SUBSCRIPTION_ID, Properties::EMPTY, &filters);
        self.put(&Packet::Subscribe(subscribe), out);
        true
    }

    pub(super) fn ping(&self, out: &mut Vec<u8>) {
        self.put(&Packet::Pingreq, out);
    }

    pub(super) fn publish(&self, topic: &str, id: u32, payload: &[u8], out: &mut Vec<u8>) {
        let (qos, packet_id) = match id {
            0 => (QoS::AtMostOnce, 0),
            id => (QoS::AtLeastOnce, packet_id(id)),
        };
        let properties = Properties::EMPTY;
        let publish = Publish { dup: false, qos, retain: false, topic, packet_id, properties, payload };
        self.put(&Packet::Publish(publish), out);
    }

    pub(super) fn disconnect(&self, out: &mut Vec<u8>) {
        let packet = Packet::Disconnect(Disconnect { reason: Reason::SUCCESS, properties: Properties::EMPTY });
        self.put(&packet, out);
    }

    pub(super) fn handle(
        &self,
        bytes: &[u8],
        answers: bool,
        out: &mut Vec<u8>,
        mut on_received: impl FnMut(Received),
    ) -> Result<usize, Broken> {
        if self.websocket.is_some() {
            return self.handle_frames(bytes, answers, out, on_received);
        }
        self.handle_packets(bytes, answers, out, &mut on_received)
    }

    fn handle_packets(
        &self,
        bytes: &[u8],
        answers: bool,
        out: &mut Vec<u8>,
        on_received: &mut impl FnMut(Received),
    ) -> Result<usize, Broken> {
        let mut taken = 0;
        while let Some((packet, length)) = self.decode(&bytes[taken..])? {
            on_received(self.handle_packet(&packet, answers, out)?);
            taken += length;
        }
        Ok(taken)
    }

    fn decode<'a>(&self, bytes: &'a [u8]) -> Result<Option<(Packet<'a>, usize)>, Broken> {
        mqtt::decode(bytes, Some(self.version()), PACKET_MAX).map_err(|_| Broken)
    }

    /// Takes frames up to the end of the last one with which a packet ends, too: then nothing is to be kept but bytes.
    fn handle_frames(
        &self,
        bytes: &[u8],
        answers: bool,
        out: &mut Vec<u8>,
        mut on_received: impl FnMut(Received),
    ) -> Result<usize, Broken> {
        let (mut at, mut taken, mut pending) = (0, 0, Vec::new());
        while let Some((event, length)) = websocket::next(&bytes[at..])? {
            at += length;
            if let Event::Data(payload) = event {
                pending.extend_from_slice(payload);
            }
            if !self.is_whole(&pending)? {
                continue;
            }
            self.handle_packets(&pending, answers, out, &mut on_received)?;
            pending.clear();
            taken = at;
            match event {
                Event::Opened => on_received(Received::Opened),
                // One within a packet of several frames is not answered.
                Event::Ping(payload) => websocket::pong(payload, out),
                Event::Close => on_received(Received::Close(CloseCode::NORMAL)),
                Event::Data(_) | Event::Pong => {}
            }
        }
        Ok(taken)
    }

    /// Whether these are whole packets.
    fn is_whole(&self, mut bytes: &[u8]) -> Result<bool, Broken> {
        while let Some((_, length)) = self.decode(bytes)? {
            bytes = &bytes[length..];
        }
        Ok(bytes.is_empty())
    }

    fn handle_packet(&self, packet: &Packet<'_>, answers: bool, out: &mut Vec<u8>) -> Result<Received, Broken> {
        Ok(match packet {
            Packet::Connack(connack) if connack.reason.is_error() => Received::Close(close_code(connack.reason)),
            Packet::Connack(connack) => {
                // [MQTT-3.1.2-21]: the server's own keep-alive is the one that counts.
                let keep_alive = connack.properties.server_keep_alive().unwrap_or(self.keep_alive_s);
                // 65,535 where nothing is said [v5 3.2.2.3.3]; in 3.1.1 nothing is.
                let window = connack.properties.receive_maximum().unwrap_or(u16::MAX);
                Received::Welcome(Terms { window, ..terms(keep_alive) })
            }
            Packet::Suback(suback) if suback.codes.iter().any(|&code| Reason(code).is_error()) => {
                Received::Close(CloseCode::NORMAL)
            }
            Packet::Suback(_) => Received::Subscribed,
            Packet::Pingresp => Received::Pong(None),
            Packet::Publish(publish) => {
                if publish.qos == QoS::AtLeastOnce && answers {
                    let (reason, properties) = (Reason::SUCCESS, Properties::EMPTY);
                    self.put(&Packet::Puback(Ack { packet_id: publish.packet_id, reason, properties }), out);
                }
                Received::Message(Stamp::decode(publish.payload))
            }
            Packet::Puback(ack) if ack.reason.is_error() => Received::Refused,
            Packet::Puback(ack) => Received::Acknowledged(ack.packet_id.into()),
            Packet::Disconnect(disconnect) => Received::Close(close_code(disconnect.reason)),
            _ => return Err(Broken),
        })
    }
}

/// How silence is judged under this keep-alive.
fn terms(keep_alive_s: u16) -> Terms {
    // [MQTT-3.1.2-24] of v3.1.1: "one and a half times the Keep Alive time period".
    Terms { interval_ms: u32::from(keep_alive_s) * 1_500, timeout_ms: 0, retries: 0, probes: false, window: u16::MAX }
}

/// The packet identifier of a device's `id`th message, counted from 1.
fn packet_id(id: u32) -> u16 {
    ((id - 1) % PACKET_IDS + 1) as u16
}

/// Which message was acknowledged, counted from 0: the latest of those published that bears this packet identifier.
pub(super) fn round(packet_id: u32, published: u32) -> Option<u32> {
    let latest = published.checked_sub(1)?;
    let place = packet_id.checked_sub(1)?;
    let back = (latest % PACKET_IDS + PACKET_IDS - place % PACKET_IDS) % PACKET_IDS;
    latest.checked_sub(back)
}

/// The native code that means the same.
fn close_code(reason: Reason) -> CloseCode {
    match reason {
        Reason::KEEP_ALIVE_TIMEOUT => CloseCode::EXPIRED,
        Reason::SESSION_TAKEN_OVER => CloseCode::TAKEN_OVER,
        Reason::SERVER_SHUTTING_DOWN => CloseCode::GOING_AWAY,
        Reason::SERVER_BUSY | Reason::SERVER_UNAVAILABLE => CloseCode::TRY_LATER,
        _ => CloseCode::NORMAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mqtt(version: MqttVersion) -> Mqtt {
        Mqtt {
            version,
            keep_alive_s: 60,
            clean_start: true,
            username: None,
            password: None,
            subscription: Some(Subscription { filter: "devices/{device}/#".to_owned(), devices: 0..10 }),
            subscription_qos: 1,
            websocket: None,
        }
    }

    fn handled(mqtt: &Mqtt, packet: &Packet<'_>) -> (Result<usize, Broken>, Vec<Received>, Vec<u8>) {
        let (mut bytes, mut received, mut out) = (Vec::new(), Vec::new(), Vec::new());
        packet.encode(mqtt.version(), &mut bytes);
        let taken = mqtt.handle(&bytes, true, &mut out, |what| received.push(what));
        (taken, received, out)
    }

    #[test]
    fn packet_identifiers_go_around_and_find_their_message_again() {
        for published in [1, 2, 65_535, 65_536, 200_000] {
            for round_trip in published - published.min(40_000)..published {
                let id = packet_id(round_trip + 1);
                assert!(id > 0);
                assert_eq!(round(id.into(), published), Some(round_trip));
            }
        }
        assert_eq!(round(0, 5), None);
        assert_eq!(round(1, 0), None);
        assert_eq!(round(9, 5), None);
    }

    #[test]
    fn a_message_of_quality_1_is_acknowledged_and_one_of_quality_0_is_not() {
        for version in [MqttVersion::V311, MqttVersion::V5] {
            let mqtt = mqtt(version);
            let mut bytes = Vec::new();
            let mut payload = Vec::new();
            let stamp = Stamp { slot: 7, due: 9 };
            stamp.encode(40, &mut payload);
            mqtt.publish("a", 3, &payload, &mut bytes);
            let (mut received, mut out) = (Vec::new(), Vec::new());
            assert_eq!(mqtt.handle(&bytes, true, &mut out, |what| received.push(what)), Ok(bytes.len()));
            assert_eq!(received, [Received::Message(Some(stamp))]);
            let mut again = Vec::new();
            assert_eq!(mqtt.handle(&out, true, &mut again, |what| received.push(what)), Ok(out.len()));
            assert_eq!(received[1], Received::Acknowledged(3));
            bytes.clear();
            out.clear();
            mqtt.publish("a", 0, &payload, &mut bytes);
            mqtt.handle(&bytes, true, &mut out, |_| {}).unwrap();
            assert!(out.is_empty());
        }
    }

    #[test]
    fn the_keep_alive_counts_one_and_a_half_times_and_whatever_is_refused_ends_it() {
        let mqtt = mqtt(MqttVersion::V5);
        let connack =
            |reason| Packet::Connack(mqtt::Connack { session_present: false, reason, properties: Properties::EMPTY });
        let terms = Terms { interval_ms: 90_000, timeout_ms: 0, retries: 0, probes: false, window: u16::MAX };
        assert_eq!(handled(&mqtt, &connack(Reason::SUCCESS)).1, [Received::Welcome(terms)]);
        assert_eq!(handled(&mqtt, &connack(Reason::SERVER_BUSY)).1, [Received::Close(CloseCode::TRY_LATER)]);
        assert_eq!(handled(&mqtt, &Packet::Pingreq).0, Err(Broken));
        assert_eq!(handled(&mqtt, &Packet::Pingresp).1, [Received::Pong(None)]);
    }

    #[test]
    fn packets_come_out_of_frames_however_they_are_cut() {
        let mqtt = Mqtt { websocket: Some("/mqtt".to_owned()), ..mqtt(MqttVersion::V5) };
        let connack = mqtt::Connack { session_present: false, reason: Reason::SUCCESS, properties: Properties::EMPTY };
        let mut packets = Vec::new();
        Packet::Connack(connack).encode(mqtt.version(), &mut packets);
        Packet::Pingresp.encode(mqtt.version(), &mut packets);
        for cut in 0..=packets.len() {
            let mut bytes = b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec();
            for part in [&packets[..cut], &packets[cut..]] {
                bytes.extend_from_slice(&[0x82, part.len() as u8]);
                bytes.extend_from_slice(part);
            }
            // As they come, byte by byte; what was not taken is handed in again.
            let (mut kept, mut received, mut out) = (Vec::new(), Vec::new(), Vec::new());
            for byte in bytes {
                kept.push(byte);
                let taken = mqtt.handle(&kept, true, &mut out, |what| received.push(what)).unwrap();
                kept.drain(..taken);
            }
            assert!(kept.is_empty() && out.is_empty(), "cut at {cut}");
            assert!(
                matches!(received[..], [Received::Opened, Received::Welcome(_), Received::Pong(None)]),
                "cut at {cut}: {received:?}"
            );
        }
    }

    #[test]
    fn whoever_is_not_named_subscribes_to_nothing() {
        let mqtt = mqtt(MqttVersion::V311);
        let mut out = Vec::new();
        assert!(!mqtt.subscribe("load-10", 10, &mut out) && out.is_empty());
        assert!(mqtt.subscribe("load-9", 9, &mut out));
        assert!(out.windows(17).any(|window| window == b"devices/load-9/#\x01"));
    }
}

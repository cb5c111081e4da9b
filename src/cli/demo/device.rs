//! The life of a simulated device: it comes, reports, takes what it is told, and after a while says goodbye, or falls silent and
//! vanishes; then it comes back.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pulsegate::codec::mqtt::{self, Connect, Packet, Properties, Publish, QoS, Version};
use pulsegate::codec::native::{self, Frame, Hello, Message};
use serde_json::Value;

use super::link::Link;
use super::{Say, Tls};

/// Gives up when so many attempts in a row have failed.
const ATTEMPTS: u32 = 3;
/// How long one connection lasts, in seconds.
const LIFE: std::ops::Range<u64> = 20..90;
/// One in so many falls silent at the end instead of saying goodbye.
const SILENT_ONE_IN: u32 = 4;
/// For how long it is silent before it vanishes, and away before it comes back.
const SILENCE: Duration = Duration::from_secs(15);
const AWAY: std::ops::Range<u64> = 1..6;
/// Between two reports, in milliseconds.
const REPORT_EVERY: std::ops::Range<u64> = 1_000..4_000;
const KEEP_ALIVE_S: u16 = 30;
/// What a WebSocket of the native protocol is called.
const NATIVE_SUBPROTOCOL: &str = "pulsegate";
const PACKET_MAX: usize = 1 << 18;

/// Who it is, and where it connects.
pub(super) struct Plan {
    id: String,
    protocol: Protocol,
    address: SocketAddr,
    /// The WebSocket's, where there is one.
    path: Option<String>,
    /// The application protocol that the gateway prefers there, if it says one.
    alpn: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Native,
    Raw,
    Mqtt,
}

impl Plan {
    /// Device `number` of a listener as the overview tells of it; `None` for what this program does not know.
    pub fn new(listener: &Value, number: u16) -> Option<Self> {
        let protocol = match listener["protocol"].as_str()? {
            "native" => Protocol::Native,
            "raw" => Protocol::Raw,
            "mqtt" => Protocol::Mqtt,
            _ => return None,
        };
        let bound: SocketAddr = listener["address"].as_str()?.parse().ok()?;
        let ip = match bound.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        let name = listener["name"].as_str()?;
        let path = (listener["transport"] == "websocket").then(|| listener["path"].as_str().unwrap_or("/").to_owned());
        let alpn = listener["alpn"][0].as_str().map(str::to_owned);
        Some(Self {
            id: format!("demo-{name}-{number}"),
            protocol,
            address: SocketAddr::new(ip, bound.port()),
            path,
            alpn,
        })
    }

    /// Path and subprotocol.
    fn websocket(&self) -> Option<(&str, &'static str)> {
        let protocol = if self.protocol == Protocol::Mqtt { "mqtt" } else { NATIVE_SUBPROTOCOL };
        Some((self.path.as_deref()?, protocol))
    }

    fn alpn(&self) -> &[u8] {
        if let Some(name) = &self.alpn {
            return name.as_bytes();
        }
        match (self.protocol, &self.path) {
            (_, Some(_)) => b"http/1.1",
            (Protocol::Native, None) => native::ALPN,
            (Protocol::Mqtt, None) => mqtt::ALPN,
            (Protocol::Raw, None) => b"",
        }
    }
}

/// Lives until it is over. Whether it ever got in.
pub(super) fn live(plan: &Plan, tls: &Tls, over: &AtomicBool, say: &Say) -> bool {
    let client = tls.client(plan.alpn());
    let is_over = || over.load(Ordering::Relaxed);
    let (mut got_in, mut failures) = (false, 0);
    rest(Duration::from_millis(fastrand::u64(0..2_000)), over);
    while !is_over() {
        let came = Link::open(plan.address, tls, &client, plan.websocket());
        let lived = came.and_then(|link| Life::begin(plan, link, say)?.go_on(over));
        match lived {
            Ok(()) => (got_in, failures) = (true, 0),
            Err(error) => {
                failures += 1;
                // Who prints has gone only when it is over.
                let _ = say.send(format!("{}: {error}", plan.id));
            }
        }
        if failures >= ATTEMPTS {
            let _ = say.send(format!("{}: gives up", plan.id));
            break;
        }
        rest(Duration::from_secs(fastrand::u64(AWAY)), over);
    }
    got_in
}

fn rest(span: Duration, over: &AtomicBool) {
    let until = Instant::now() + span;
    while Instant::now() < until && !over.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(50).min(until.saturating_duration_since(Instant::now())));
    }
}

/// One connection.
struct Life<'a> {
    plan: &'a Plan,
    link: Link,
    say: &'a Say,
    until: Instant,
    next_report: Instant,
    reports: u32,
    /// Grid power, or whatever it may be: a walk at random.
    value: i32,
}

impl<'a> Life<'a> {
    fn begin(plan: &'a Plan, mut link: Link, say: &'a Say) -> io::Result<Self> {
        let mut hello = Vec::new();
        match plan.protocol {
            Protocol::Raw => {}
            Protocol::Native => Frame::Hello(Hello { heartbeat_ms: 0, id: &plan.id, token: b"" }).encode(&mut hello),
            Protocol::Mqtt => put_connect(&plan.id, &mut hello),
        }
        link.send(&hello)?;
        let now = Instant::now();
        let until = now + Duration::from_secs(fastrand::u64(LIFE));
        Ok(Self { plan, link, say, until, next_report: now, reports: 0, value: 230 })
    }

    fn go_on(mut self, over: &AtomicBool) -> io::Result<()> {
        loop {
            self.link.receive()?;
            self.take()?;
            let now = Instant::now();
            if over.load(Ordering::Relaxed) {
                return self.say_goodbye();
            }
            if now >= self.until {
                if fastrand::u32(..SILENT_ONE_IN) > 0 {
                    return self.say_goodbye();
                }
                // Neither reads nor answers, and is gone without a word.
                rest(SILENCE, over);
                return Ok(());
            }
            if now >= self.next_report {
                self.report()?;
                self.next_report = now + Duration::from_millis(fastrand::u64(REPORT_EVERY));
            }
        }
    }

    fn report(&mut self) -> io::Result<()> {
        self.value += fastrand::i32(-3..=3);
        self.reports += 1;
        let payload = format!("{{\"w\":{},\"n\":{}}}", self.value, self.reports);
        let mut bytes = Vec::new();
        match self.plan.protocol {
            Protocol::Raw => bytes.extend(format!("{payload}\n").bytes()),
            Protocol::Native => {
                Frame::Message(Message { id: self.reports, topic: "power", payload: payload.as_bytes() })
                    .encode(&mut bytes);
            }
            Protocol::Mqtt => put_publish(&self.plan.id, self.reports, payload.as_bytes(), &mut bytes),
        }
        self.link.send(&bytes)
    }

    /// Takes everything whole that came.
    fn take(&mut self) -> io::Result<()> {
        let taken = std::mem::take(&mut self.link.inbox);
        let length = match self.plan.protocol {
            Protocol::Raw => {
                if !taken.is_empty() {
                    self.tell("", &taken);
                }
                taken.len()
            }
            Protocol::Native => self.take_frames(&taken)?,
            Protocol::Mqtt => self.take_packets(&taken)?,
        };
        self.link.inbox.splice(0..0, taken[length..].iter().copied());
        Ok(())
    }

    fn take_frames(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut at = 0;
        while let Some((frame, length)) = native::decode(&bytes[at..], PACKET_MAX).map_err(io::Error::other)? {
            at += length;
            let mut answer = Vec::new();
            match frame {
                Frame::Ping(body) => Frame::Pong(body).encode(&mut answer),
                Frame::Message(message) => {
                    self.tell(message.topic, message.payload);
                    if message.id != 0 {
                        Frame::Ack(message.id).encode(&mut answer);
                    }
                }
                Frame::Close(close) => return Err(io::Error::other(format!("closed: {}", close.code.name()))),
                Frame::Welcome(_) | Frame::Pong(_) | Frame::Ack(_) | Frame::Hello(_) => {}
            }
            self.link.send(&answer)?;
        }
        Ok(at)
    }

    fn take_packets(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let version = Some(Version::V311);
        let mut at = 0;
        while let Some((packet, length)) = mqtt::decode(&bytes[at..], version, PACKET_MAX).map_err(io::Error::other)? {
            at += length;
            match packet {
                Packet::Publish(publish) => {
                    self.tell(publish.topic, publish.payload);
                    if publish.qos == QoS::AtLeastOnce {
                        let [high, low] = publish.packet_id.to_be_bytes();
                        // PUBACK (3.4).
                        self.link.send(&[0x40, 2, high, low])?;
                    }
                }
                Packet::Connack(connack) if connack.reason != mqtt::Reason::SUCCESS => {
                    return Err(io::Error::other(format!("the gateway says no: {:?}", connack.reason)));
                }
                _ => {}
            }
        }
        Ok(at)
    }

    fn tell(&self, topic: &str, payload: &[u8]) {
        let payload = String::from_utf8_lossy(&payload[..payload.len().min(200)]);
        let topic = if topic.is_empty() { String::new() } else { format!("{topic}: ") };
        // Who prints has gone only when it is over.
        let _ = self.say.send(format!("{} is told {topic}{payload}", self.plan.id));
    }

    fn say_goodbye(mut self) -> io::Result<()> {
        let goodbye: &[u8] = match self.plan.protocol {
            // DISCONNECT (3.14).
            Protocol::Mqtt => &[0xe0, 0],
            Protocol::Native | Protocol::Raw => &[],
        };
        self.link.send(goodbye)?;
        self.link.close();
        Ok(())
    }
}

/// CONNECT, and SUBSCRIBE to all that is the device's own.
fn put_connect(id: &str, out: &mut Vec<u8>) {
    let connect = Connect {
        version: Version::V311,
        client_id: id,
        clean_start: true,
        keep_alive: KEEP_ALIVE_S,
        will: None,
        username: None,
        password: None,
        properties: Properties::EMPTY,
    };
    Packet::Connect(connect).encode(Version::V311, out);
    let filter = format!("devices/{id}/#");
    // SUBSCRIBE (3.8): packet identifier 1, one filter, QoS 1.
    out.extend([0x82, (filter.len() + 5) as u8, 0, 1, 0, filter.len() as u8]);
    out.extend(filter.bytes());
    out.push(1);
}

fn put_publish(id: &str, number: u32, payload: &[u8], out: &mut Vec<u8>) {
    let topic = format!("devices/{id}/power");
    let publish = Publish {
        dup: false,
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: &topic,
        // Never 0 [MQTT-2.3.1-1].
        packet_id: (number % 65_535) as u16 + 1,
        properties: Properties::EMPTY,
        payload,
    };
    Packet::Publish(publish).encode(Version::V311, out);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_plan_follows_from_what_the_gateway_tells() {
        let listener = |address: &str, transport: &str| json!({"name": "ws", "protocol": "mqtt", "transport": transport, "address": address, "path": "/mqtt"});
        let plan = Plan::new(&listener("0.0.0.0:8884", "websocket"), 2).unwrap();
        assert_eq!((plan.id.as_str(), plan.address.to_string().as_str()), ("demo-ws-2", "127.0.0.1:8884"));
        assert_eq!((plan.path.as_deref(), plan.alpn()), (Some("/mqtt"), &b"http/1.1"[..]));
        let plan = Plan::new(&listener("[::]:8883", "tls"), 1).unwrap();
        assert_eq!(
            (plan.address.to_string().as_str(), plan.path.as_deref(), plan.alpn()),
            ("[::1]:8883", None, mqtt::ALPN)
        );
        assert!(Plan::new(&json!({"name": "a", "protocol": "new", "address": "127.0.0.1:1"}), 1).is_none());
    }

    #[test]
    fn the_packets_are_as_the_gateway_reads_them() {
        let mut bytes = Vec::new();
        put_connect("demo-mqtt-1", &mut bytes);
        let (packet, length) = mqtt::decode(&bytes, None, PACKET_MAX).unwrap().unwrap();
        assert!(matches!(packet, Packet::Connect(connect) if connect.client_id == "demo-mqtt-1"));
        let (packet, rest) = mqtt::decode(&bytes[length..], Some(Version::V311), PACKET_MAX).unwrap().unwrap();
        assert!(matches!(packet, Packet::Subscribe(subscribe) if subscribe.packet_id == 1));
        assert_eq!(length + rest, bytes.len());
        for number in [1, 65_534, 65_535, 131_070] {
            let mut bytes = Vec::new();
            put_publish("a", number, b"x", &mut bytes);
            let (packet, length) = mqtt::decode(&bytes, Some(Version::V311), PACKET_MAX).unwrap().unwrap();
            assert!(matches!(packet, Packet::Publish(publish) if publish.packet_id != 0 && publish.payload == b"x"));
            assert_eq!(length, bytes.len());
        }
    }
}

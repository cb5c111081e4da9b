//! What devices say within TLS. A further protocol is a further variant here, and nothing else changes.

use clap::ValueEnum;
use pulsegate::codec::mqtt::{self, Packet, Version};
use pulsegate::codec::native::{self, CloseCode, Frame, Hello};
use serde::Serialize;

use super::ledger::Stamp;
use super::liveness::Terms;
use super::mqtt as mqtt_device;
use crate::clock::Micros;

/// What devices speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Pulsegate's own framing: HELLO, WELCOME, PING, PONG.
    Native,
    /// Opaque bytes: the heartbeat is the word `heartbeat`, and whatever comes back is its answer.
    Raw,
    /// MQTT 3.1.1: CONNECT, one subscription, PINGREQ.
    Mqtt3,
    /// MQTT 5.0, the same.
    Mqtt5,
}

/// What a message of the harness carries: who sent it, which of its messages it is, and when it was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// When it was due.
    pub intended: Micros,
    /// The number of the device that sent it.
    pub publisher: u32,
    /// Its place among that device's messages, from 0.
    pub sequence: u32,
}

impl Envelope {
    /// As a payload.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.intended.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.publisher.to_be_bytes());
        bytes[12..].copy_from_slice(&self.sequence.to_be_bytes());
        bytes
    }

    /// From a payload; `None` where it is somebody else's.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 16] = bytes.try_into().ok()?;
        let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let intended = u64::from(word(0)) << 32 | u64::from(word(4));
        Some(Self { intended, publisher: word(8), sequence: word(12) })
    }
}

/// The raw heartbeat, as Pulsegate's built-in configuration has it.
pub const RAW_HEARTBEAT: &[u8] = b"heartbeat";

/// Something that a device was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It is known, under these terms. `None`: those that the harness was told.
    Welcome(Option<Terms>),
    /// It is asked whether it lives; the answer is in `plain` already, unless it is to keep silent.
    Ping,
    /// Its heartbeat, which was due at this time, was answered. `None`: the protocol does not say which one.
    Pong(Option<Micros>),
    /// It is told to go.
    Close(CloseCode),
    /// A message, and which one; `None`: not one of this run's.
    Message(Option<Stamp>),
    /// A message of a stream.
    Streamed(Envelope),
    /// One of its messages of a stream was acknowledged.
    StreamAcknowledged,
    /// Its message of this id is safe.
    Acknowledged(u32),
    /// Anything else.
    Data,
}

/// The peer broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

impl Protocol {
    /// The protocol's name in ALPN, if it has one.
    pub fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Protocol::Native => &[native::ALPN],
            Protocol::Raw => &[],
            Protocol::Mqtt3 | Protocol::Mqtt5 => &[mqtt::ALPN],
        }
    }

    /// The version, where it is MQTT.
    fn version(self) -> Version {
        if self == Protocol::Mqtt3 { Version::V311 } else { Version::V5 }
    }

    /// Whether it is MQTT.
    pub fn is_mqtt(self) -> bool {
        matches!(self, Protocol::Mqtt3 | Protocol::Mqtt5)
    }

    /// Whether a server of this protocol ends a connection without saying why.
    pub fn tells_no_reason(self) -> bool {
        matches!(self, Protocol::Raw | Protocol::Mqtt3)
    }

    /// Appends what a device says first; an MQTT device subscribes to `filter`. False when it has nothing to say, and is up
    /// as soon as TLS is.
    pub fn greet(self, id: &str, wanted_interval_ms: u32, filter: &str, plain: &mut Vec<u8>) -> bool {
        match self {
            Protocol::Native => {
                Frame::Hello(Hello { heartbeat_ms: wanted_interval_ms, id, token: &[] }).encode(plain);
                true
            }
            Protocol::Raw => false,
            Protocol::Mqtt3 | Protocol::Mqtt5 => {
                let keep_alive = u16::try_from(wanted_interval_ms.div_ceil(1_000)).unwrap_or(u16::MAX);
                mqtt_device::greet(self.version(), id, keep_alive, filter, plain);
                true
            }
        }
    }

    /// Appends a message of a stream; MQTT only.
    pub fn message(self, topic: &str, envelope: &Envelope, acknowledge: bool, plain: &mut Vec<u8>) {
        match self {
            Protocol::Native | Protocol::Raw => {}
            Protocol::Mqtt3 | Protocol::Mqtt5 => {
                mqtt_device::publish(self.version(), topic, envelope, acknowledge, plain);
            }
        }
    }

    /// Appends a heartbeat that is due at `intended`.
    pub fn heartbeat(self, intended: Micros, plain: &mut Vec<u8>) {
        match self {
            Protocol::Native => Frame::Ping(&intended.to_be_bytes()).encode(plain),
            Protocol::Raw => plain.extend_from_slice(RAW_HEARTBEAT),
            Protocol::Mqtt3 | Protocol::Mqtt5 => mqtt_device::say(self.version(), &Packet::Pingreq, plain),
        }
    }

    /// Appends a message; `id` is what its acknowledgement will carry, 0: none is wanted. False where the protocol has no
    /// messages that could be told apart.
    pub fn publish(self, topic: &str, id: u32, payload: &[u8], plain: &mut Vec<u8>) -> bool {
        match self {
            Protocol::Native => {
                Frame::Message(native::Message { id, topic, payload }).encode(plain);
                true
            }
            // Their messages are streams: see `message`.
            Protocol::Raw | Protocol::Mqtt3 | Protocol::Mqtt5 => false,
        }
    }

    /// Appends a polite goodbye.
    pub fn say_goodbye(self, plain: &mut Vec<u8>) {
        match self {
            Protocol::Native => {
                let close = native::Close { code: CloseCode::NORMAL, retry_after_ms: 0, reason: "" };
                Frame::Close(close).encode(plain);
            }
            Protocol::Raw => {}
            Protocol::Mqtt3 | Protocol::Mqtt5 => {
                let goodbye = mqtt::Disconnect { reason: mqtt::Reason::SUCCESS, properties: mqtt::Properties::EMPTY };
                mqtt_device::say(self.version(), &Packet::Disconnect(goodbye), plain);
            }
        }
    }

    /// Takes what is complete at the front of `bytes`: how much that was. Answers go to `plain`.
    ///
    /// # Errors
    /// [`Broken`] when the peer does not speak this protocol.
    pub fn handle(
        self,
        bytes: &[u8],
        answers: bool,
        plain: &mut Vec<u8>,
        mut tell: impl FnMut(Said),
    ) -> Result<usize, Broken> {
        match self {
            Protocol::Mqtt3 | Protocol::Mqtt5 => mqtt_device::handle(self.version(), bytes, answers, plain, tell),
            Protocol::Raw => {
                if !bytes.is_empty() {
                    tell(Said::Pong(None));
                }
                Ok(bytes.len())
            }
            Protocol::Native => {
                let mut taken = 0;
                while let Some((frame, length)) =
                    native::decode(&bytes[taken..], native::BODY_MAX).map_err(|_| Broken)?
                {
                    tell(handle_frame(&frame, answers, plain)?);
                    taken += length;
                }
                Ok(taken)
            }
        }
    }
}

fn handle_frame(frame: &Frame, answers: bool, plain: &mut Vec<u8>) -> Result<Said, Broken> {
    Ok(match frame {
        Frame::Welcome(welcome) => Said::Welcome(Some(Terms {
            interval_ms: welcome.heartbeat_ms,
            timeout_ms: welcome.timeout_ms,
            retries: welcome.retries,
            probes: true,
        })),
        Frame::Ping(echo) => {
            if answers {
                Frame::Pong(echo).encode(plain);
            }
            Said::Ping
        }
        Frame::Pong(echo) => Said::Pong((*echo).try_into().ok().map(Micros::from_be_bytes)),
        Frame::Close(close) => Said::Close(close.code),
        Frame::Message(message) => {
            if message.id != 0 && answers {
                Frame::Ack(message.id).encode(plain);
            }
            Said::Message(Stamp::decode(message.payload))
        }
        Frame::Ack(id) => Said::Acknowledged(*id),
        Frame::Hello(_) => return Err(Broken),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_the_envelope_that_it_was() {
        let envelope = Envelope { intended: 1 << 40 | 7, publisher: 3, sequence: 9 };
        assert_eq!(Envelope::from_bytes(&envelope.to_bytes()), Some(envelope));
        assert_eq!(Envelope::from_bytes(b"short"), None);
        for protocol in [Protocol::Mqtt3, Protocol::Mqtt5] {
            let (mut sent, mut answer, mut said) = (Vec::new(), Vec::new(), Vec::new());
            protocol.message("load", &envelope, true, &mut sent);
            let taken = protocol.handle(&sent, true, &mut answer, |what| said.push(what));
            assert_eq!((taken, &*said), (Ok(sent.len()), &[Said::Streamed(envelope)][..]), "{protocol:?}");
            assert!(!answer.is_empty(), "it is to be acknowledged");
            said.clear();
            let taken = protocol.handle(&answer, true, &mut Vec::new(), |what| said.push(what));
            assert_eq!((taken, &*said), (Ok(answer.len()), &[Said::StreamAcknowledged][..]));
        }
    }

    fn told(bytes: &[u8], answers: bool) -> (Result<usize, Broken>, Vec<Said>, Vec<u8>) {
        let (mut said, mut plain) = (Vec::new(), Vec::new());
        let taken = Protocol::Native.handle(bytes, answers, &mut plain, |what| said.push(what));
        (taken, said, plain)
    }

    #[test]
    fn a_ping_is_answered_with_its_own_bytes_unless_the_device_keeps_silent() {
        let mut ping = Vec::new();
        Frame::Ping(b"abc").encode(&mut ping);
        let mut answer = Vec::new();
        Frame::Pong(b"abc").encode(&mut answer);
        assert_eq!(told(&ping, true), (Ok(6), vec![Said::Ping], answer));
        assert_eq!(told(&ping, false), (Ok(6), vec![Said::Ping], vec![]));
    }

    #[test]
    fn a_heartbeat_comes_back_with_the_time_it_was_due() {
        let mut ping = Vec::new();
        Protocol::Native.heartbeat(1_234_567, &mut ping);
        ping[0] = native::Type::Pong as u8;
        let half = ping.len() - 1;
        assert_eq!(told(&ping[..half], true).0, Ok(0));
        assert_eq!(told(&ping, true).1, vec![Said::Pong(Some(1_234_567))]);
    }

    #[test]
    fn what_only_a_device_may_say_breaks_the_protocol() {
        let mut hello = Vec::new();
        assert!(Protocol::Native.greet("a", 0, "", &mut hello));
        assert_eq!(told(&hello, true).0, Err(Broken));
        assert_eq!(told(&[0xff], true).0, Err(Broken));
    }
}

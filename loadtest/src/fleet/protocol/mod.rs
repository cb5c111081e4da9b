//! What devices say within TLS. A further protocol is a further variant here, and nothing else changes.

mod mqtt;
mod websocket;

use clap::ValueEnum;
use pulsegate::codec::native::{self, CloseCode, Frame, Hello};
use serde::Serialize;

pub use mqtt::{Mqtt, MqttVersion, Subscription};

use super::ledger::Stamp;
use super::liveness::Terms;
use crate::clock::Micros;

/// What devices speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Pulsegate's own framing: HELLO, WELCOME, PING, PONG.
    Native,
    /// Opaque bytes: the heartbeat is the word `heartbeat`, and whatever comes back is its answer.
    Raw,
    /// MQTT: CONNECT, SUBSCRIBE, PINGREQ, PUBLISH.
    Mqtt,
}

/// How the devices of one run speak.
#[derive(Clone, Debug)]
pub enum DeviceProtocol {
    /// The heartbeat interval that devices ask for, in milliseconds; 0: the server's own.
    Native {
        wanted_interval_ms: u32,
    },
    Raw,
    Mqtt(Mqtt),
}

/// What a device says when TLS stands, and what follows when it is known; any of it may be empty.
#[derive(Debug, Default)]
pub struct Greeting {
    /// Before all others, and answered by [`Received::Opened`].
    pub opening: Vec<u8>,
    pub first: Vec<u8>,
    pub second: Vec<u8>,
}

/// The raw heartbeat, as Pulsegate's built-in configuration has it.
pub const RAW_HEARTBEAT: &[u8] = b"heartbeat";

/// Something that a device was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// What its protocol is carried in is open.
    Opened,
    /// It is known, under these terms.
    Welcome(Terms),
    /// What it says second was heard, too.
    Subscribed,
    /// It is asked whether it lives; the answer is in `plain` already, unless it is to keep silent.
    Ping,
    /// Its heartbeat, which was due at this time, was answered. `None`: the protocol does not say which one.
    Pong(Option<Micros>),
    /// It is told to go.
    Close(CloseCode),
    /// A message, and which one; `None`: not one of this run's.
    Message(Option<Stamp>),
    /// Its message of this id is safe.
    Acknowledged(u32),
    /// A message of its own was not taken.
    Refused,
}

/// The peer broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

impl Protocol {
    /// The protocol's name in ALPN, if it has one that every server of it knows.
    pub fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Protocol::Native => &[native::ALPN],
            Protocol::Raw | Protocol::Mqtt => &[],
        }
    }
}

impl DeviceProtocol {
    /// Whether a server of this protocol ends a connection without saying why.
    pub fn has_no_close_reason(&self) -> bool {
        match self {
            DeviceProtocol::Native { .. } => false,
            DeviceProtocol::Raw => true,
            DeviceProtocol::Mqtt(mqtt) => !mqtt.has_close_reasons(),
        }
    }

    /// Whether devices are told under which terms their silence is judged.
    pub fn has_terms(&self) -> bool {
        !matches!(self, DeviceProtocol::Raw)
    }

    /// How often a device must say something by itself, in seconds; 0: whenever it likes.
    pub fn keep_alive_s(&self) -> u16 {
        match self {
            DeviceProtocol::Native { .. } | DeviceProtocol::Raw => 0,
            DeviceProtocol::Mqtt(mqtt) => mqtt.keep_alive_s,
        }
    }

    /// What a device says at first. When that is nothing, it is up as soon as TLS is.
    pub fn greet(&self, id: &str, number: u32, greeting: &mut Greeting) {
        greeting.opening.clear();
        greeting.first.clear();
        greeting.second.clear();
        match self {
            DeviceProtocol::Native { wanted_interval_ms } => {
                let hello = Hello { heartbeat_ms: *wanted_interval_ms, id, token: &[] };
                Frame::Hello(hello).encode(&mut greeting.first);
            }
            DeviceProtocol::Raw => {}
            DeviceProtocol::Mqtt(mqtt) => {
                mqtt.open(&mut greeting.opening);
                mqtt.connect(id, &mut greeting.first);
                mqtt.subscribe(id, number, &mut greeting.second);
            }
        }
    }

    /// Appends a heartbeat that is due at `intended`.
    pub fn heartbeat(&self, intended: Micros, plain: &mut Vec<u8>) {
        match self {
            DeviceProtocol::Native { .. } => Frame::Ping(&intended.to_be_bytes()).encode(plain),
            DeviceProtocol::Raw => plain.extend_from_slice(RAW_HEARTBEAT),
            DeviceProtocol::Mqtt(mqtt) => mqtt.ping(plain),
        }
    }

    /// Appends a message, the `id`th of its device counted from 1, which is to be acknowledged; 0: none is. Raw devices have
    /// no messages that could be told apart.
    pub fn publish(&self, topic: &str, id: u32, payload: &[u8], plain: &mut Vec<u8>) {
        match self {
            DeviceProtocol::Native { .. } => Frame::Message(native::Message { id, topic, payload }).encode(plain),
            DeviceProtocol::Raw => {}
            DeviceProtocol::Mqtt(mqtt) => mqtt.publish(topic, id, payload, plain),
        }
    }

    /// Which message of a device was acknowledged, counted from 0, when it has published so many.
    pub fn acknowledged_round(&self, id: u32, published: u32) -> Option<u32> {
        match self {
            DeviceProtocol::Native { .. } => id.checked_sub(1),
            DeviceProtocol::Raw => None,
            DeviceProtocol::Mqtt(_) => mqtt::round(id, published),
        }
    }

    /// Appends a polite goodbye.
    pub fn encode_goodbye(&self, plain: &mut Vec<u8>) {
        match self {
            DeviceProtocol::Native { .. } => {
                let close = native::Close { code: CloseCode::NORMAL, retry_after_ms: 0, reason: "" };
                Frame::Close(close).encode(plain);
            }
            DeviceProtocol::Raw => {}
            DeviceProtocol::Mqtt(mqtt) => mqtt.disconnect(plain),
        }
    }

    /// Takes what is complete at the front of `bytes`: how much that was. Answers go to `plain`.
    ///
    /// # Errors
    /// [`Broken`] when the peer does not speak this protocol.
    pub fn handle(
        &self,
        bytes: &[u8],
        answers: bool,
        plain: &mut Vec<u8>,
        mut on_received: impl FnMut(Received),
    ) -> Result<usize, Broken> {
        match self {
            DeviceProtocol::Raw => {
                if !bytes.is_empty() {
                    on_received(Received::Pong(None));
                }
                Ok(bytes.len())
            }
            DeviceProtocol::Native { .. } => {
                let mut taken = 0;
                while let Some((frame, length)) =
                    native::decode(&bytes[taken..], native::BODY_MAX).map_err(|_| Broken)?
                {
                    on_received(handle_frame(&frame, answers, plain)?);
                    taken += length;
                }
                Ok(taken)
            }
            DeviceProtocol::Mqtt(mqtt) => mqtt.handle(bytes, answers, plain, on_received),
        }
    }
}

fn handle_frame(frame: &Frame, answers: bool, plain: &mut Vec<u8>) -> Result<Received, Broken> {
    Ok(match frame {
        Frame::Welcome(welcome) => Received::Welcome(Terms {
            interval_ms: welcome.heartbeat_ms,
            timeout_ms: welcome.timeout_ms,
            retries: welcome.retries,
            probes: true,
            window: u16::MAX,
        }),
        Frame::Ping(echo) => {
            if answers {
                Frame::Pong(echo).encode(plain);
            }
            Received::Ping
        }
        Frame::Pong(echo) => Received::Pong((*echo).try_into().ok().map(Micros::from_be_bytes)),
        Frame::Close(close) => Received::Close(close.code),
        Frame::Message(message) => {
            if message.id != 0 && answers {
                Frame::Ack(message.id).encode(plain);
            }
            Received::Message(Stamp::decode(message.payload))
        }
        Frame::Ack(id) => Received::Acknowledged(*id),
        Frame::Hello(_) => return Err(Broken),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NATIVE: DeviceProtocol = DeviceProtocol::Native { wanted_interval_ms: 0 };

    fn handled(bytes: &[u8], answers: bool) -> (Result<usize, Broken>, Vec<Received>, Vec<u8>) {
        let (mut received, mut plain) = (Vec::new(), Vec::new());
        let taken = NATIVE.handle(bytes, answers, &mut plain, |what| received.push(what));
        (taken, received, plain)
    }

    #[test]
    fn a_ping_is_answered_with_its_own_bytes_unless_the_device_keeps_silent() {
        let mut ping = Vec::new();
        Frame::Ping(b"abc").encode(&mut ping);
        let mut answer = Vec::new();
        Frame::Pong(b"abc").encode(&mut answer);
        assert_eq!(handled(&ping, true), (Ok(6), vec![Received::Ping], answer));
        assert_eq!(handled(&ping, false), (Ok(6), vec![Received::Ping], vec![]));
    }

    #[test]
    fn a_heartbeat_comes_back_with_the_time_it_was_due() {
        let mut ping = Vec::new();
        NATIVE.heartbeat(1_234_567, &mut ping);
        ping[0] = native::Type::Pong as u8;
        let half = ping.len() - 1;
        assert_eq!(handled(&ping[..half], true).0, Ok(0));
        assert_eq!(handled(&ping, true).1, vec![Received::Pong(Some(1_234_567))]);
    }

    #[test]
    fn what_only_a_device_may_say_breaks_the_protocol() {
        let mut greeting = Greeting::default();
        NATIVE.greet("a", 0, &mut greeting);
        assert!(greeting.second.is_empty());
        assert_eq!(handled(&greeting.first, true).0, Err(Broken));
        assert_eq!(handled(&[0xff], true).0, Err(Broken));
    }
}

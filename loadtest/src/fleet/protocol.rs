//! What devices say within TLS. A further protocol is a further variant here, and nothing else changes.

use clap::ValueEnum;
use pulsegate::codec::native::{self, CloseCode, Frame, Hello};
use serde::Serialize;

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
}

/// The raw heartbeat, as Pulsegate's built-in configuration has it.
pub const RAW_HEARTBEAT: &[u8] = b"heartbeat";

/// Something that a device was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It is known, under these terms.
    Welcome(Terms),
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
        }
    }

    /// Whether a server of this protocol ends a connection without saying why.
    pub fn tells_no_reason(self) -> bool {
        self == Protocol::Raw
    }

    /// Appends what a device says first. False when it has nothing to say, and is up as soon as TLS is.
    pub fn greet(self, id: &str, wanted_interval_ms: u32, plain: &mut Vec<u8>) -> bool {
        match self {
            Protocol::Native => {
                Frame::Hello(Hello { heartbeat_ms: wanted_interval_ms, id, token: &[] }).encode(plain);
                true
            }
            Protocol::Raw => false,
        }
    }

    /// Appends a heartbeat that is due at `intended`.
    pub fn heartbeat(self, intended: Micros, plain: &mut Vec<u8>) {
        match self {
            Protocol::Native => Frame::Ping(&intended.to_be_bytes()).encode(plain),
            Protocol::Raw => plain.extend_from_slice(RAW_HEARTBEAT),
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
            Protocol::Raw => false,
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
        Frame::Welcome(welcome) => Said::Welcome(Terms {
            interval_ms: welcome.heartbeat_ms,
            timeout_ms: welcome.timeout_ms,
            retries: welcome.retries,
            probes: true,
        }),
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
        assert!(Protocol::Native.greet("a", 0, &mut hello));
        assert_eq!(told(&hello, true).0, Err(Broken));
        assert_eq!(told(&[0xff], true).0, Err(Broken));
    }
}

//! The native framing (docs/PROTOCOL.md): borrowed frames in, bytes out.
//!
//! It knows no connection: which side may send what, and when, is checked by the caller. It never copies what it reads
//! and never panics on bytes from the network.
//!
//! ```text
//!          0      1      2      3
//!          +------+------+------+----------------------+
//! frame    | type |   length    |  body: length bytes  |
//!          +------+------+------+----------------------+
//!
//! HELLO    version u8 | heartbeat_ms u32 | id_length u8 | id | token_length u16 | token
//! WELCOME  version u8 | heartbeat_ms u32 | timeout_ms u32 | retries u8 | body_max u16
//! PING     0 to 8 opaque bytes
//! PONG     the bytes of the PING
//! MESSAGE  id u32 | topic_length u8 | topic | payload: the rest
//! ACK      id u32
//! CLOSE    code u8 | retry_after_ms u32 | reason: the rest
//! ```
//!
//! Integers are big-endian. Each frame's fields are read in one place (`Frame::parse`) and written in one place
//! ([`Frame::encode`]), in the order drawn here.

mod close;
mod error;
#[cfg(test)]
mod tests;

pub use close::CloseCode;
pub use error::Error;

use crate::wire::Reader;

/// The protocol's name in ALPN.
pub const ALPN: &[u8] = b"pulsegate/1";
/// The version that HELLO and WELCOME carry.
pub const VERSION: u8 = 1;
/// Bytes before the body: type and length.
pub const HEADER_BYTES: usize = 3;
/// The longest body that a header can tell.
pub const BODY_MAX: usize = u16::MAX as usize;
/// The longest device id, in bytes.
pub const ID_MAX: usize = 128;
/// The longest token, in bytes.
pub const TOKEN_MAX: usize = 1024;
/// The longest body of a PING or PONG.
pub const PING_MAX: usize = 8;
/// The longest topic, in bytes.
pub const TOPIC_MAX: usize = 255;
/// The longest reason text in a CLOSE, in bytes.
pub const REASON_MAX: usize = 255;
/// The longest body of a version 1 HELLO: a gateway's `body_max` should not be below it.
pub const HELLO_BODY_MAX: usize = 1 + 4 + 1 + ID_MAX + 2 + TOKEN_MAX;
/// What a MESSAGE's body holds besides its topic and payload, in bytes.
pub const MESSAGE_OVERHEAD: usize = 4 + 1;

/// The first byte of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Type {
    /// Device to gateway: who it is. The first frame of a connection.
    Hello = 0x01,
    /// Gateway to device: it is known; how its life will be watched.
    Welcome = 0x02,
    /// Either side: say something.
    Ping = 0x03,
    /// Either side: the answer to PING.
    Pong = 0x04,
    /// Either side: bytes for the other.
    Message = 0x05,
    /// Either side: the message of this id is safe here.
    Ack = 0x06,
    /// Either side: the end, and why.
    Close = 0x07,
}

impl Type {
    const fn from_byte(byte: u8) -> Option<Type> {
        Some(match byte {
            0x01 => Type::Hello,
            0x02 => Type::Welcome,
            0x03 => Type::Ping,
            0x04 => Type::Pong,
            0x05 => Type::Message,
            0x06 => Type::Ack,
            0x07 => Type::Close,
            _ => return None,
        })
    }

    /// The frame's name in docs, logs and errors.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Type::Hello => "HELLO",
            Type::Welcome => "WELCOME",
            Type::Ping => "PING",
            Type::Pong => "PONG",
            Type::Message => "MESSAGE",
            Type::Ack => "ACK",
            Type::Close => "CLOSE",
        }
    }

    /// The shortest and longest body. Those that carry a version are left open, so that a newer peer is told about its
    /// version and not about its length.
    const fn body_bounds(self) -> (usize, usize) {
        match self {
            Type::Hello | Type::Welcome => (1, BODY_MAX),
            Type::Ping | Type::Pong => (0, PING_MAX),
            Type::Message => (4 + 1, BODY_MAX),
            Type::Ack => (4, 4),
            Type::Close => (1 + 4, 1 + 4 + REASON_MAX),
        }
    }
}

/// One frame. Text and bytes are borrowed from what was decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Device to gateway, first.
    Hello(Hello<'a>),
    /// Gateway to device, in answer to HELLO.
    Welcome(Welcome),
    /// At most [`PING_MAX`] bytes, to be echoed.
    Ping(&'a [u8]),
    /// The bytes of the PING that it answers.
    Pong(&'a [u8]),
    /// Application data.
    Message(Message<'a>),
    /// The message of this id is safe; never 0.
    Ack(u32),
    /// The end.
    Close(Close<'a>),
}

/// Who a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// The silence after which it wants to be probed, in milliseconds; 0: whatever the gateway's is.
    pub heartbeat_ms: u32,
    /// 1 to [`ID_MAX`] bytes without control characters.
    pub id: &'a str,
    /// At most [`TOKEN_MAX`] opaque bytes; empty: none.
    pub token: &'a [u8],
}

/// How a device's life will be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Silence before the first PING, in milliseconds.
    pub heartbeat_ms: u32,
    /// How long one PING may stay unanswered, in milliseconds.
    pub timeout_ms: u32,
    /// Further PINGs after the first.
    pub retries: u8,
    /// The longest frame body that the gateway takes, in bytes.
    pub body_max: u16,
}

/// Application data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Under which the sender wants an ACK; 0: none wanted.
    pub id: u32,
    /// At most [`TOPIC_MAX`] bytes without control characters; may be empty.
    pub topic: &'a str,
    /// Opaque bytes, passed on as they are.
    pub payload: &'a [u8],
}

/// The end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close<'a> {
    /// The cause, as a code.
    pub code: CloseCode,
    /// Do not come back sooner than this, in milliseconds; 0: no advice.
    pub retry_after_ms: u32,
    /// For a human; at most [`REASON_MAX`] bytes of any text.
    pub reason: &'a str,
}

/// The first frame in `bytes` and how many bytes it took, or `None` when it is not complete yet.
///
/// `body_max` is the longest body taken, in bytes.
///
/// # Errors
/// Whatever is wrong, as soon as it can be seen: type and length without waiting for the body. Nothing after an
/// error can be decoded.
///
/// ```
/// use pulsegate::codec::native::{Frame, decode};
///
/// let mut bytes = Vec::new();
/// Frame::Ping(b"12").encode(&mut bytes);
/// assert_eq!(decode(&bytes, 1_024)?, Some((Frame::Ping(b"12"), bytes.len())));
///
/// // What is not all there yet is no error, and nothing is consumed.
/// assert_eq!(decode(&bytes[..4], 1_024)?, None);
/// # Ok::<(), pulsegate::codec::native::Error>(())
/// ```
pub fn decode(bytes: &[u8], body_max: usize) -> Result<Option<(Frame<'_>, usize)>, Error> {
    let Some(&type_byte) = bytes.first() else { return Ok(None) };
    let kind = Type::from_byte(type_byte).ok_or(Error::UnknownType(type_byte))?;
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[1], header[2]]));
    if length > body_max {
        return Err(Error::TooLong { frame: kind.name(), length, body_max });
    }
    let (shortest, longest) = kind.body_bounds();
    if !(shortest..=longest).contains(&length) {
        return Err(Error::BodyLength { frame: kind.name(), length });
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    let frame = Frame::parse(kind, body)?;
    Ok(Some((frame, HEADER_BYTES + length)))
}

impl<'a> Frame<'a> {
    /// The frame's type.
    #[must_use]
    pub const fn kind(&self) -> Type {
        match self {
            Frame::Hello(_) => Type::Hello,
            Frame::Welcome(_) => Type::Welcome,
            Frame::Ping(_) => Type::Ping,
            Frame::Pong(_) => Type::Pong,
            Frame::Message(_) => Type::Message,
            Frame::Ack(_) => Type::Ack,
            Frame::Close(_) => Type::Close,
        }
    }

    /// The frame's name in docs, logs and errors.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// Appends the frame. Its fields are our own: one beyond its bound, or a body beyond [`BODY_MAX`], panics.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[self.kind() as u8, 0, 0]);
        match *self {
            Frame::Hello(Hello { heartbeat_ms, id, token }) => {
                assert!((1..=ID_MAX).contains(&id.len()) && token.len() <= TOKEN_MAX);
                out.push(VERSION);
                out.extend_from_slice(&heartbeat_ms.to_be_bytes());
                out.push(id.len() as u8);
                out.extend_from_slice(id.as_bytes());
                out.extend_from_slice(&(token.len() as u16).to_be_bytes());
                out.extend_from_slice(token);
            }
            Frame::Welcome(Welcome { heartbeat_ms, timeout_ms, retries, body_max }) => {
                out.push(VERSION);
                out.extend_from_slice(&heartbeat_ms.to_be_bytes());
                out.extend_from_slice(&timeout_ms.to_be_bytes());
                out.push(retries);
                out.extend_from_slice(&body_max.to_be_bytes());
            }
            Frame::Ping(opaque) | Frame::Pong(opaque) => {
                assert!(opaque.len() <= PING_MAX);
                out.extend_from_slice(opaque);
            }
            Frame::Message(Message { id, topic, payload }) => {
                assert!(topic.len() <= TOPIC_MAX);
                out.extend_from_slice(&id.to_be_bytes());
                out.push(topic.len() as u8);
                out.extend_from_slice(topic.as_bytes());
                out.extend_from_slice(payload);
            }
            Frame::Ack(id) => {
                assert!(id != 0);
                out.extend_from_slice(&id.to_be_bytes());
            }
            Frame::Close(Close { code, retry_after_ms, reason }) => {
                assert!(reason.len() <= REASON_MAX);
                out.push(code.0);
                out.extend_from_slice(&retry_after_ms.to_be_bytes());
                out.extend_from_slice(reason.as_bytes());
            }
        }
        let length = u16::try_from(out.len() - start - HEADER_BYTES).expect("a frame body of our own is too long");
        out[start + 1..start + HEADER_BYTES].copy_from_slice(&length.to_be_bytes());
    }

    fn parse(kind: Type, body: &'a [u8]) -> Result<Frame<'a>, Error> {
        let mut fields = Fields { frame: kind.name(), rest: Reader::new(body) };
        let frame = match kind {
            Type::Hello => {
                fields.version()?;
                let heartbeat_ms = fields.u32()?;
                let id_length = fields.u8()?;
                let id = fields.label("id", id_length.into())?;
                if !is_id(id) {
                    return Err(fields.out_of_bounds("id"));
                }
                let token_length = fields.u16()?;
                let token = fields.take(token_length.into())?;
                if token.len() > TOKEN_MAX {
                    return Err(fields.out_of_bounds("token"));
                }
                Frame::Hello(Hello { heartbeat_ms, id, token })
            }
            Type::Welcome => {
                fields.version()?;
                Frame::Welcome(Welcome {
                    heartbeat_ms: fields.u32()?,
                    timeout_ms: fields.u32()?,
                    retries: fields.u8()?,
                    body_max: fields.u16()?,
                })
            }
            Type::Ping => Frame::Ping(fields.rest()),
            Type::Pong => Frame::Pong(fields.rest()),
            Type::Message => {
                let id = fields.u32()?;
                let topic_length = fields.u8()?;
                let topic = fields.label("topic", topic_length.into())?;
                Frame::Message(Message { id, topic, payload: fields.rest() })
            }
            Type::Ack => match fields.u32()? {
                0 => return Err(fields.out_of_bounds("id")),
                id => Frame::Ack(id),
            },
            Type::Close => {
                let code = CloseCode(fields.u8()?);
                let retry_after_ms = fields.u32()?;
                let reason = fields.rest();
                Frame::Close(Close { code, retry_after_ms, reason: fields.text("reason", reason)? })
            }
        };
        fields.end()?;
        Ok(frame)
    }
}

/// Whether `name` can be a device id: 1 to [`ID_MAX`] bytes of UTF-8 without control characters.
#[must_use]
pub fn is_id(name: &str) -> bool {
    (1..=ID_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
}

/// What is left of a body, read front to back: errors say of which frame.
struct Fields<'a> {
    frame: &'static str,
    rest: Reader<'a>,
}

impl<'a> Fields<'a> {
    fn short(&self) -> Error {
        Error::Short { frame: self.frame }
    }

    fn u8(&mut self) -> Result<u8, Error> {
        self.rest.u8().map_err(|_| self.short())
    }

    fn u16(&mut self) -> Result<u16, Error> {
        self.rest.u16().map_err(|_| self.short())
    }

    fn u32(&mut self) -> Result<u32, Error> {
        self.rest.u32().map_err(|_| self.short())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        self.rest.take(length).map_err(|_| self.short())
    }

    fn rest(&mut self) -> &'a [u8] {
        self.rest.take_all()
    }

    fn version(&mut self) -> Result<(), Error> {
        match self.u8()? {
            VERSION => Ok(()),
            version => Err(Error::Version { frame: self.frame, version }),
        }
    }

    fn text(&self, field: &'static str, bytes: &'a [u8]) -> Result<&'a str, Error> {
        str::from_utf8(bytes).map_err(|_| Error::Text { frame: self.frame, field })
    }

    /// Text that names something: it ends up in logs, URLs and topics, so it holds no control characters.
    fn label(&mut self, field: &'static str, length: usize) -> Result<&'a str, Error> {
        let bytes = self.take(length)?;
        let text = self.text(field, bytes)?;
        if text.chars().any(char::is_control) {
            return Err(Error::ControlCharacter { frame: self.frame, field });
        }
        Ok(text)
    }

    fn out_of_bounds(&self, field: &'static str) -> Error {
        Error::OutOfBounds { frame: self.frame, field }
    }

    fn end(&self) -> Result<(), Error> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(Error::Trailing { frame: self.frame, bytes }),
        }
    }
}

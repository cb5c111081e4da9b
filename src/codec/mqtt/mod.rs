//! MQTT 3.1, 3.1.1 and 5.0: packets as views over bytes, a file for each, every version and both roles.
//!
//! MQTT 3.1 (protocol name `MQIsdp`, level 3) is spoken as 3.1.1 is, but where its own text differs: flags that it calls
//! unused are not looked at, and SUBACK has no failure code. Where a version is not named, 3.1 is meant with 3.1.1.
//!
//! Statements of the specifications are cited as `[v5 MQTT-x.y.z-n]` and `[v3.1.1 MQTT-x.y.z-n]`, and without a version
//! where both number them alike. What needs more than the packet itself to be judged (whether a device may, whether an
//! identifier is known) is not judged here.

pub mod ack;
pub mod auth;
pub mod connack;
pub mod connect;
pub mod disconnect;
mod error;
pub mod outgoing;
pub mod properties;
pub mod publish;
mod reason;
pub mod suback;
pub mod subscribe;
pub mod topic;
pub mod unsubscribe;
mod wire;

#[cfg(test)]
mod tests;

pub use ack::Ack;
pub use auth::Auth;
pub use connack::Connack;
pub use connect::{Connect, Will};
pub use disconnect::Disconnect;
pub use error::Error;
pub use outgoing::Outgoing;
pub use properties::{Properties, PropertiesBuilder, Property};
pub use publish::Publish;
pub use reason::Reason;
use reason::Table;
pub use suback::{Suback, Unsuback};
pub use subscribe::{Options, Subscribe};
pub use unsubscribe::Unsubscribe;
use wire::Reader;

/// The protocol's name in ALPN.
pub const ALPN: &[u8] = b"mqtt";

/// The longest Remaining Length, in bytes (2.2.3; v5 1.5.5): four bytes of seven bits.
pub const REMAINING_MAX: usize = 268_435_455;

/// Which MQTT is spoken: decided by CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 3.1: protocol name `MQIsdp`, level 3.
    V31,
    /// 3.1.1: protocol level 4.
    V311,
    /// 5.0: protocol level 5.
    V5,
}

impl Version {
    /// The protocol level in CONNECT.
    #[must_use]
    pub const fn level(self) -> u8 {
        match self {
            Version::V31 => 3,
            Version::V311 => 4,
            Version::V5 => 5,
        }
    }

    /// The version with this protocol level.
    #[must_use]
    pub const fn of_level(level: u8) -> Option<Self> {
        match level {
            3 => Some(Version::V31),
            4 => Some(Version::V311),
            5 => Some(Version::V5),
            _ => None,
        }
    }
}

/// Quality of service: how surely a message arrives (v5 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum QoS {
    /// 0: it is sent once, and may be lost.
    AtMostOnce = 0,
    /// 1: it is sent until PUBACK comes, and may come twice.
    AtLeastOnce = 1,
    /// 2: it is sent until PUBREC comes, and comes once.
    ExactlyOnce = 2,
}

impl QoS {
    /// Whether it is acknowledged.
    #[must_use]
    pub const fn is_acknowledged(self) -> bool {
        !matches!(self, QoS::AtMostOnce)
    }
}

impl TryFrom<u8> for QoS {
    type Error = ();

    fn try_from(value: u8) -> Result<Self, ()> {
        match value {
            0 => Ok(QoS::AtMostOnce),
            1 => Ok(QoS::AtLeastOnce),
            2 => Ok(QoS::ExactlyOnce),
            _ => Err(()),
        }
    }
}

/// Any packet.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "each is documented in its file")]
pub enum Packet<'a> {
    Connect(Connect<'a>),
    Connack(Connack<'a>),
    Publish(Publish<'a>),
    Puback(Ack<'a>),
    Pubrec(Ack<'a>),
    Pubrel(Ack<'a>),
    Pubcomp(Ack<'a>),
    Subscribe(Subscribe<'a>),
    Suback(Suback<'a>),
    Unsubscribe(Unsubscribe<'a>),
    Unsuback(Unsuback<'a>),
    /// PINGREQ (3.12): a device shows that it lives.
    Pingreq,
    /// PINGRESP (3.13): the answer to it.
    Pingresp,
    Disconnect(Disconnect<'a>),
    Auth(Auth<'a>),
}

/// The packet types of the fixed header's high half (2.1.2).
mod kind {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const CONNACK: u8 = 2;
    pub(super) const PUBLISH: u8 = 3;
    pub(super) const PUBACK: u8 = 4;
    pub(super) const PUBREC: u8 = 5;
    pub(super) const PUBREL: u8 = 6;
    pub(super) const PUBCOMP: u8 = 7;
    pub(super) const SUBSCRIBE: u8 = 8;
    pub(super) const SUBACK: u8 = 9;
    pub(super) const UNSUBSCRIBE: u8 = 10;
    pub(super) const UNSUBACK: u8 = 11;
    pub(super) const PINGREQ: u8 = 12;
    pub(super) const PINGRESP: u8 = 13;
    pub(super) const DISCONNECT: u8 = 14;
    pub(super) const AUTH: u8 = 15;
}

/// Decodes the packet at the start of `bytes`: it and its length, or `None` while it is not all there.
///
/// `version` is that of the connection; `None` before CONNECT, when nothing else may come [MQTT-3.1.0-1].
/// `packet_bytes` bounds the whole packet, its fixed header included.
///
/// # Errors
/// [`Error`] when the bytes are no packet that may stand here. One that is too long is found out by its header.
///
/// ```
/// use pulsegate::codec::mqtt::{Packet, Version, decode};
///
/// let bytes = b"\x30\x06\x00\x01tabc\xC0\x00"; // PUBLISH to "t", then PINGREQ
/// let Some((Packet::Publish(publish), length)) = decode(bytes, Some(Version::V311), 1_000)? else { panic!() };
/// assert_eq!((publish.topic, publish.payload), ("t", &b"abc"[..]));
/// assert_eq!(decode(&bytes[length..], Some(Version::V311), 1_000)?, Some((Packet::Pingreq, 2)));
///
/// // What is not all there yet is no error, and nothing is consumed.
/// assert_eq!(decode(&bytes[..5], Some(Version::V311), 1_000)?, None);
/// # Ok::<(), pulsegate::codec::mqtt::Error>(())
/// ```
pub fn decode(
    bytes: &[u8],
    version: Option<Version>,
    packet_bytes: usize,
) -> Result<Option<(Packet<'_>, usize)>, Error> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let (kind, flags) = (first >> 4, first & 0x0F);
    if version.is_none() && kind != kind::CONNECT {
        return Err(Error::protocol("the first packet is not CONNECT", "MQTT-3.1.0-1"));
    }
    check_flags(kind, flags, version)?;
    let Some((remaining, header)) = wire::remaining_length(&bytes[1..])? else { return Ok(None) };
    let length = 1 + header + remaining;
    if length > packet_bytes {
        return Err(Error::new(Reason::PACKET_TOO_LARGE, "the packet is longer than is taken", "v5 MQTT-3.2.2-15"));
    }
    let Some(body) = bytes.get(1 + header..length) else { return Ok(None) };
    let mut body = Reader::new(body);
    let packet = match (kind, version) {
        (kind::CONNECT, _) => Packet::Connect(Connect::decode(flags, &mut body)?),
        (_, None) => unreachable!("found out above"),
        (kind, Some(version)) => decode_body(kind, flags, &mut body, version)?,
    };
    body.finish()?;
    Ok(Some((packet, length)))
}

fn decode_body<'a>(kind: u8, flags: u8, body: &mut Reader<'a>, version: Version) -> Result<Packet<'a>, Error> {
    Ok(match kind {
        kind::CONNACK => Packet::Connack(Connack::decode(body, version)?),
        kind::PUBLISH => Packet::Publish(Publish::decode(flags, body, version)?),
        kind::PUBACK => Packet::Puback(Ack::decode(body, version, Table::PUBACK)?),
        kind::PUBREC => Packet::Pubrec(Ack::decode(body, version, Table::PUBREC)?),
        kind::PUBREL => Packet::Pubrel(Ack::decode(body, version, Table::PUBREL)?),
        kind::PUBCOMP => Packet::Pubcomp(Ack::decode(body, version, Table::PUBCOMP)?),
        kind::SUBSCRIBE => Packet::Subscribe(Subscribe::decode(body, version)?),
        kind::SUBACK => Packet::Suback(Suback::decode(body, version)?),
        kind::UNSUBSCRIBE => Packet::Unsubscribe(Unsubscribe::decode(body, version)?),
        kind::UNSUBACK => Packet::Unsuback(Unsuback::decode(body, version)?),
        kind::PINGREQ => Packet::Pingreq,
        kind::PINGRESP => Packet::Pingresp,
        kind::DISCONNECT => Packet::Disconnect(Disconnect::decode(body, version)?),
        kind::AUTH if version == Version::V5 => Packet::Auth(Auth::decode(body)?),
        _ => return Err(Error::malformed("there is no packet of this type", "MQTT-2.1.2-1")),
    })
}

/// The low half of the first byte is fixed for every packet but PUBLISH (2.1.3; v3.1.1 2.2.2). In 3.1 it is not used, and
/// devices set DUP when they send SUBSCRIBE, UNSUBSCRIBE or PUBREL again (3.1 2.1). CONNECT tells the version: its own
/// flags are looked at behind it.
fn check_flags(kind: u8, flags: u8, version: Option<Version>) -> Result<(), Error> {
    let fixed = match kind {
        kind::PUBLISH | kind::CONNECT => return Ok(()),
        kind::PUBREL | kind::SUBSCRIBE | kind::UNSUBSCRIBE => 0b0010,
        0 => return Err(Error::malformed("packet type 0 is reserved", "MQTT-2.1.2-1")),
        _ => 0,
    };
    if flags == fixed || version == Some(Version::V31) { Ok(()) } else { Err(RESERVED_FLAGS) }
}

const RESERVED_FLAGS: Error =
    Error::malformed("reserved flags of the fixed header are set", "v5 MQTT-2.1.3-1, v3.1.1 MQTT-2.2.2-2");

impl Packet<'_> {
    /// Appends the packet as it is spoken in `version`.
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        match self {
            Packet::Connect(connect) => wire::packet(kind::CONNECT << 4, out, |out| connect.encode(out)),
            Packet::Connack(connack) => wire::packet(kind::CONNACK << 4, out, |out| connack.encode(version, out)),
            Packet::Publish(publish) => {
                wire::packet(kind::PUBLISH << 4 | publish.flags(), out, |out| publish.encode(version, out));
            }
            Packet::Puback(ack) => wire::packet(kind::PUBACK << 4, out, |out| ack.encode(version, out)),
            Packet::Pubrec(ack) => wire::packet(kind::PUBREC << 4, out, |out| ack.encode(version, out)),
            Packet::Pubrel(ack) => wire::packet(kind::PUBREL << 4 | 2, out, |out| ack.encode(version, out)),
            Packet::Pubcomp(ack) => wire::packet(kind::PUBCOMP << 4, out, |out| ack.encode(version, out)),
            Packet::Subscribe(subscribe) => {
                wire::packet(kind::SUBSCRIBE << 4 | 2, out, |out| subscribe.encode(version, out));
            }
            Packet::Suback(suback) => wire::packet(kind::SUBACK << 4, out, |out| suback.encode(version, out)),
            Packet::Unsubscribe(unsubscribe) => {
                wire::packet(kind::UNSUBSCRIBE << 4 | 2, out, |out| unsubscribe.encode(version, out));
            }
            Packet::Unsuback(unsuback) => wire::packet(kind::UNSUBACK << 4, out, |out| unsuback.encode(version, out)),
            Packet::Pingreq => out.extend_from_slice(&[kind::PINGREQ << 4, 0]),
            Packet::Pingresp => out.extend_from_slice(&[kind::PINGRESP << 4, 0]),
            Packet::Disconnect(disconnect) => {
                wire::packet(kind::DISCONNECT << 4, out, |out| disconnect.encode(version, out));
            }
            Packet::Auth(auth) => wire::packet(kind::AUTH << 4, out, |out| auth.encode(out)),
        }
    }

    /// What the specification calls it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Packet::Connect(_) => "CONNECT",
            Packet::Connack(_) => "CONNACK",
            Packet::Publish(_) => "PUBLISH",
            Packet::Puback(_) => "PUBACK",
            Packet::Pubrec(_) => "PUBREC",
            Packet::Pubrel(_) => "PUBREL",
            Packet::Pubcomp(_) => "PUBCOMP",
            Packet::Subscribe(_) => "SUBSCRIBE",
            Packet::Suback(_) => "SUBACK",
            Packet::Unsubscribe(_) => "UNSUBSCRIBE",
            Packet::Unsuback(_) => "UNSUBACK",
            Packet::Pingreq => "PINGREQ",
            Packet::Pingresp => "PINGRESP",
            Packet::Disconnect(_) => "DISCONNECT",
            Packet::Auth(_) => "AUTH",
        }
    }
}

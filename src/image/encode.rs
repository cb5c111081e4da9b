//! Their one form in bytes. Decoding distrusts its input: it never panics, never allocates more than a small multiple of
//! what it was given, and takes one form of each value only, so that what is decoded is encoded to the same bytes.
//!
//! ```text
//! publication   expires ?i64 | qos and retain u8 (bits 0-1, bit 2) | topic text | properties bytes | payload bytes
//! profile       version u8 | listener text | keep-alive u16 | expiry u32 | receive maximum u16 | packet maximum u32
//!               | alias maximum u16
//! will          delay u32 | expiry ?u32 | publication
//! head          key u64 | name text | profile | away since ?i64 | last packet u16 | ?will
//! subscription  filter text | options u8 | identifier u32
//! message       number u64 | packet u16, 0: none | qos, retain and group u8 (bits 0-1, bit 2, bit 3) | group text, if bit 3 is set
//!               | identifiers: length, u32 each | origin u64 | publication
//! outstanding   number u64 | packet u16
//! received      packet u16 | origin u64
//! session       head | subscriptions, messages, outstanding, received: length and each
//! stamp         clock u64 | node u64
//! change        which u8 | its fields
//! ?x            flag | x, if the flag is 1
//! ```
//! Integers, lengths, texts and flags are those of `wire`. On their own each begins with its tag; within another it does
//! not. `i64` is two's complement.

use std::sync::Arc;

use super::parts::{get_all, get_optional, put_all, put_optional};
use super::{
    Change, Head, ImageError, Message, Outstanding, Profile, Publication, Received, Session, SessionKey, Stamp,
    Subscription, Will,
};
use crate::codec::mqtt::{Options, Properties, QoS, REMAINING_MAX, Version, topic};
use crate::wire::{Reader, Tagged, Writer};

/// The tags of what stands on its own.
pub const PUBLICATION: Tagged = Tagged { kind: 0x50, version: 1 };
/// See [`PUBLICATION`].
pub const HEAD: Tagged = Tagged { kind: 0x48, version: 1 };
/// See [`PUBLICATION`]. Version 2 has groups in messages; version 1 is read.
pub const SESSION: Tagged = Tagged { kind: 0x53, version: 2 };
/// See [`SESSION`]. Version 3 has the stamp of a retained message behind it, as another kind of change; what was before is read.
pub const CHANGE: Tagged = Tagged { kind: 0x43, version: 3 };

const QOS_BITS: u8 = 0b011;
const RETAIN_BIT: u8 = 0b100;
const GROUP_BIT: u8 = 0b1000;

fn ensure(holds: bool, otherwise: &'static str) -> Result<(), ImageError> {
    if holds { Ok(()) } else { Err(ImageError::Content(otherwise)) }
}

macro_rules! on_its_own {
    ($($type:ty: $tag:ident),+) => {
        $(impl $type {
            /// Appends it, with its tag.
            pub fn encode(&self, out: &mut Vec<u8>) {
                let mut writer = Writer::new(out);
                writer.tag($tag);
                self.put(&mut writer);
            }

            /// From exactly these bytes.
            ///
            /// # Errors
            /// They are anything else.
            pub fn decode(bytes: &[u8]) -> Result<Self, ImageError> {
                let mut reader = Reader::new(bytes);
                reader.tag($tag.kind, 1..=$tag.version)?;
                let decoded = Self::get(&mut reader)?;
                reader.finish()?;
                Ok(decoded)
            }
        })+
    };
}

on_its_own!(Publication: PUBLICATION, Head: HEAD, Session: SESSION, Change: CHANGE);

fn put_delivery(qos: QoS, retain: bool, out: &mut Writer) {
    out.u8(qos as u8 | if retain { RETAIN_BIT } else { 0 });
}

fn get_delivery(from: &mut Reader) -> Result<(QoS, bool), ImageError> {
    delivery_of(from.u8()?)
}

fn get_group(from: &mut Reader) -> Result<Box<str>, ImageError> {
    let group = from.text()?;
    ensure(topic::is_topic_filter(group) && topic::shared(group).is_some(), "a group is no shared subscription")?;
    Ok(group.into())
}

fn delivery_of(byte: u8) -> Result<(QoS, bool), ImageError> {
    ensure(byte & !(QOS_BITS | RETAIN_BIT) == 0, "bits are set that mean nothing")?;
    let qos = QoS::try_from(byte & QOS_BITS).map_err(|()| ImageError::Content("the QoS is 3"))?;
    Ok((qos, byte & RETAIN_BIT != 0))
}

impl Publication {
    fn put(&self, out: &mut Writer) {
        put_optional(self.expires_ms, out, |expires_ms, out| out.u64(expires_ms as u64));
        put_delivery(self.qos, self.retain, out);
        out.text(&self.topic);
        out.bytes(&self.properties);
        out.bytes(&self.payload);
    }

    fn get(from: &mut Reader) -> Result<Self, ImageError> {
        let expires_ms = get_optional(from, |from| Ok(from.u64()? as i64))?;
        let (qos, retain) = get_delivery(from)?;
        let topic: Box<str> = from.text()?.into();
        ensure(topic::is_topic_name(&topic), "a topic is no topic name")?;
        let properties: Box<[u8]> = from.bytes()?.into();
        ensure(Properties::check_forwarded(&properties).is_ok(), "properties are none that go along with a message")?;
        let payload = bytes::Bytes::copy_from_slice(from.bytes()?);
        Ok(Self { topic, payload, qos, retain, properties, expires_ms })
    }
}

impl Profile {
    fn put(&self, out: &mut Writer) {
        out.u8(self.version);
        out.text(&self.listener);
        out.u16(self.keep_alive_s);
        out.u32(self.expiry_s);
        out.u16(self.receive_maximum);
        out.u32(self.packet_maximum);
        out.u16(self.alias_maximum);
    }

    fn get(from: &mut Reader) -> Result<Self, ImageError> {
        let profile = Self {
            version: from.u8()?,
            listener: from.text()?.into(),
            keep_alive_s: from.u16()?,
            expiry_s: from.u32()?,
            receive_maximum: from.u16()?,
            packet_maximum: from.u32()?,
            alias_maximum: from.u16()?,
        };
        ensure((3..=5).contains(&profile.version), "there is no such protocol level")?;
        ensure(profile.receive_maximum > 0, "the receive maximum is 0")?;
        Ok(profile)
    }
}

impl Will {
    fn put(&self, out: &mut Writer) {
        out.u32(self.delay_s);
        put_optional(self.expiry_s, out, |expiry_s, out| out.u32(expiry_s));
        self.publication.put(out);
    }

    fn get(from: &mut Reader) -> Result<Self, ImageError> {
        let delay_s = from.u32()?;
        let expiry_s = get_optional(from, |from| Ok(from.u32()?))?;
        Ok(Self { publication: Publication::get(from)?, expiry_s, delay_s })
    }
}

impl Head {
    fn put(&self, out: &mut Writer) {
        out.u64(self.key.0);
        out.text(&self.name);
        self.profile.put(out);
        put_optional(self.away_since_ms, out, |away_since_ms, out| out.u64(away_since_ms as u64));
        out.u16(self.last_packet);
        put_optional(self.will.as_deref(), out, Will::put);
    }

    fn get(from: &mut Reader) -> Result<Self, ImageError> {
        let head = Self {
            key: SessionKey(from.u64()?),
            name: from.text()?.into(),
            profile: Profile::get(from)?,
            away_since_ms: get_optional(from, |from| Ok(from.u64()? as i64))?,
            last_packet: from.u16()?,
            will: get_optional(from, Will::get)?.map(Box::new),
        };
        ensure(!head.name.is_empty(), "a session is nobody's")?;
        Ok(head)
    }
}

impl Subscription {
    fn put(&self, out: &mut Writer) {
        out.text(&self.filter);
        out.u8(self.options);
        out.u32(self.identifier);
    }

    fn get(from: &mut Reader) -> Result<Self, ImageError> {
        let found = Self { filter: from.text()?.into(), options: from.u8()?, identifier: from.u32()? };
        found.check()?;
        Ok(found)
    }

    /// Whether it can be one.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), ImageError> {
        ensure(topic::is_topic_filter(&self.filter), "a filter is no topic filter")?;
        ensure(self.identifier == 0 || is_identifier(self.identifier), "a subscription identifier is none")?;
        ensure(Options::from_byte(self.options, Version::V5).is_ok(), "subscription options are none")
    }
}

impl Message {
    fn put(&self, out: &mut Writer) {
        out.u64(self.number);
        out.u16(self.packet.unwrap_or(0));
        let group = if self.group.is_some() { GROUP_BIT } else { 0 };
        out.u8(self.qos as u8 | if self.retain { RETAIN_BIT } else { 0 } | group);
        if let Some(group) = &self.group {
            out.text(group);
        }
        put_all(&self.identifiers, out, |&identifier, out| out.u32(identifier));
        out.u64(self.origin);
        self.publication.put(out);
    }

    fn get(from: &mut Reader) -> Result<Self, ImageError> {
        let number = from.u64()?;
        let packet = Some(from.u16()?).filter(|&packet| packet != 0);
        let byte = from.u8()?;
        let (qos, retain) = delivery_of(byte & !GROUP_BIT)?;
        let group = if byte & GROUP_BIT != 0 { Some(get_group(from)?) } else { None };
        let identifiers = get_all(from, |from| Ok(from.u32()?))?;
        ensure(identifiers.iter().all(|&identifier| is_identifier(identifier)), "a subscription identifier is none")?;
        let origin = from.u64()?;
        let publication = Arc::new(Publication::get(from)?);
        Ok(Self { number, packet, qos, retain, identifiers, group, publication, origin })
    }
}

impl Outstanding {
    fn put(&self, out: &mut Writer) {
        out.u64(self.number);
        out.u16(self.packet);
    }

    fn get(from: &mut Reader) -> Result<Self, ImageError> {
        Ok(Self { number: from.u64()?, packet: get_packet(from)? })
    }
}

impl Received {
    fn put(&self, out: &mut Writer) {
        out.u16(self.packet);
        out.u64(self.origin);
    }

    fn get(from: &mut Reader) -> Result<Self, ImageError> {
        Ok(Self { packet: get_packet(from)?, origin: from.u64()? })
    }
}

/// A Subscription Identifier is a number of four bytes of seven bits (v5 3.8.2.1.2).
fn is_identifier(identifier: u32) -> bool {
    (1..=REMAINING_MAX).contains(&(identifier as usize))
}

fn get_packet(from: &mut Reader) -> Result<u16, ImageError> {
    let packet = from.u16()?;
    ensure(packet != 0, "a packet identifier is 0")?;
    Ok(packet)
}

impl Session {
    fn put(&self, out: &mut Writer) {
        self.head.put(out);
        put_all(&self.subscriptions, out, Subscription::put);
        put_all(&self.messages, out, Message::put);
        put_all(&self.outstanding, out, Outstanding::put);
        put_all(&self.received, out, Received::put);
    }

    fn get(from: &mut Reader) -> Result<Self, ImageError> {
        let session = Self {
            head: Head::get(from)?,
            subscriptions: get_all(from, Subscription::get)?,
            messages: get_all(from, Message::get)?,
            outstanding: get_all(from, Outstanding::get)?,
            received: get_all(from, Received::get)?,
        };
        let numbers_ascend = session.messages.is_sorted_by(|one, other| one.number < other.number)
            && session.outstanding.is_sorted_by(|one, other| one.number < other.number);
        ensure(numbers_ascend, "messages are not in their order")?;
        ensure(
            session.received.is_sorted_by(|one, other| one.packet < other.packet),
            "packet identifiers are not in their order",
        )?;
        Ok(session)
    }
}

/// The first byte of each change.
mod which {
    pub(super) const KEPT: u8 = 0;
    pub(super) const ENDED: u8 = 1;
    pub(super) const SUBSCRIBED: u8 = 2;
    pub(super) const UNSUBSCRIBED: u8 = 3;
    pub(super) const QUEUED: u8 = 4;
    pub(super) const SENT: u8 = 5;
    pub(super) const RELEASED: u8 = 6;
    pub(super) const DONE: u8 = 7;
    pub(super) const RECEIVED: u8 = 8;
    pub(super) const COMPLETED: u8 = 9;
    pub(super) const RETAINED: u8 = 10;
    pub(super) const UNRETAINED: u8 = 11;
    pub(super) const RETAINED_OF_FLEET: u8 = 12;
}

fn get_retained(stamp: Stamp, from: &mut Reader) -> Result<Change, ImageError> {
    let publication = Publication::get(from)?;
    ensure(!publication.payload.is_empty(), "a retained message is empty")?;
    Ok(Change::Retained { publication: Arc::new(publication), stamp })
}

impl Change {
    fn put(&self, out: &mut Writer) {
        let session = |which, session: &SessionKey, out: &mut Writer| {
            out.u8(which);
            out.u64(session.0);
        };
        match self {
            Change::Kept(head) => {
                out.u8(which::KEPT);
                head.put(out);
            }
            Change::Ended { session: key } => session(which::ENDED, key, out),
            Change::Subscribed { session: key, subscription } => {
                session(which::SUBSCRIBED, key, out);
                subscription.put(out);
            }
            Change::Unsubscribed { session: key, filter } => {
                session(which::UNSUBSCRIBED, key, out);
                out.text(filter);
            }
            Change::Queued { session: key, message } => {
                session(which::QUEUED, key, out);
                message.put(out);
            }
            Change::Sent { session: key, number, packet } => {
                session(which::SENT, key, out);
                Outstanding { number: *number, packet: *packet }.put(out);
            }
            Change::Released { session: key, number } => {
                session(which::RELEASED, key, out);
                out.u64(*number);
            }
            Change::Done { session: key, number } => {
                session(which::DONE, key, out);
                out.u64(*number);
            }
            Change::Received { session: key, received } => {
                session(which::RECEIVED, key, out);
                received.put(out);
            }
            Change::Completed { session: key, packet } => {
                session(which::COMPLETED, key, out);
                out.u16(*packet);
            }
            Change::Retained { publication, stamp: Stamp::NONE } => {
                out.u8(which::RETAINED);
                publication.put(out);
            }
            Change::Retained { publication, stamp } => {
                out.u8(which::RETAINED_OF_FLEET);
                out.u64(stamp.clock);
                out.u64(stamp.node);
                publication.put(out);
            }
            Change::Unretained { topic } => {
                out.u8(which::UNRETAINED);
                out.text(topic);
            }
        }
    }

    fn get(from: &mut Reader) -> Result<Self, ImageError> {
        let which = from.u8()?;
        match which {
            which::KEPT => return Ok(Change::Kept(Box::new(Head::get(from)?))),
            which::RETAINED => return get_retained(Stamp::NONE, from),
            which::RETAINED_OF_FLEET => {
                let stamp = Stamp { clock: from.u64()?, node: from.u64()? };
                ensure(!stamp.is_none(), "a retained message of the fleet has no stamp")?;
                return get_retained(stamp, from);
            }
            which::UNRETAINED => {
                let topic: Box<str> = from.text()?.into();
                ensure(topic::is_topic_name(&topic), "a topic is no topic name")?;
                return Ok(Change::Unretained { topic });
            }
            _ => {}
        }
        let session = SessionKey(from.u64()?);
        Ok(match which {
            which::ENDED => Change::Ended { session },
            which::SUBSCRIBED => Change::Subscribed { session, subscription: Subscription::get(from)? },
            which::UNSUBSCRIBED => {
                let filter: Box<str> = from.text()?.into();
                ensure(topic::is_topic_filter(&filter), "a filter is no topic filter")?;
                Change::Unsubscribed { session, filter }
            }
            which::QUEUED => Change::Queued { session, message: Box::new(Message::get(from)?) },
            which::SENT => {
                let Outstanding { number, packet } = Outstanding::get(from)?;
                Change::Sent { session, number, packet }
            }
            which::RELEASED => Change::Released { session, number: from.u64()? },
            which::DONE => Change::Done { session, number: from.u64()? },
            which::RECEIVED => Change::Received { session, received: Received::get(from)? },
            which::COMPLETED => Change::Completed { session, packet: get_packet(from)? },
            _ => return Err(ImageError::Content("there is no such change")),
        })
    }
}

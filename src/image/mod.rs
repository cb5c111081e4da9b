//! What outlives a process, as values: a session, a message that waits for its device, a retained message, and what a
//! shard says when one of them changes (decisions D7, D8). `encode` is the one form of them in bytes, for the store, the
//! live upgrade and the fleet alike.
//!
//! ```text
//!   Session  = Head          who, how it was asked for, since when its device is away, its will
//!            + Subscription  each filter, shared ones too
//!            + Message       each message that is not acknowledged, with its number in the session
//!            + Outstanding   each message of QoS 2 of which PUBREL was said and PUBCOMP is owed
//!            + Received      each packet identifier of QoS 2 of which PUBREC was said, or will be, and PUBREL is owed
//!
//!   Change   = one of these, begun, altered or ended; in the order in which they happened in their shard
//! ```
//!
//! Times are times of day, in milliseconds since 1970, for a moment means nothing to another process. What holds only
//! within a process (slots, generations, settlements) is not here. Nothing here reads a clock or a disk.

mod encode;
mod parts;
mod stamp;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::mqtt::QoS;
use crate::wire::WireError;
pub use stamp::Stamp;

/// What a row, an entry or a packet of each takes beside its texts, in bytes: what it counts where changes are bounded.
const CHANGE_BYTES: usize = 96;

/// A session's number: no two that one store holds, and no two of one run of the gateway, have the same. A device that begins
/// anew has another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey(pub u64);

/// A published message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Under which topic: a valid topic name.
    pub topic: Box<str>,
    /// The payload: opaque bytes.
    pub payload: Bytes,
    /// The quality of service with which it was published: 0, 1 or 2.
    pub qos: QoS,
    /// Whether it was published to be retained.
    pub retain: bool,
    /// The encoded MQTT 5 properties that go along with it unaltered; often empty.
    pub properties: Box<[u8]>,
    /// After this time of day it is of no use to anybody.
    pub expires_ms: Option<i64>,
}

/// What a device said of itself when it came last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The protocol level: 3 (MQTT 3.1), 4 (3.1.1) or 5.
    pub version: u8,
    /// The name of the listener that it came through: listeners have no number across two configurations.
    pub listener: Box<str>,
    /// Keep-alive in seconds; 0: none.
    pub keep_alive_s: u16,
    /// How long the session outlives the connection, in seconds; `u32::MAX`: for ever.
    pub expiry_s: u32,
    /// Messages with QoS above 0 that the device takes at a time, at least 1.
    pub receive_maximum: u16,
    /// The longest packet that the device takes, in bytes.
    pub packet_maximum: u32,
    /// Topic aliases that the device takes.
    pub alias_maximum: u16,
}

/// What is published when a device does not come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Will {
    /// The message. It expires so long after it was published, not at a time of day.
    pub publication: Publication,
    /// Its Message Expiry Interval in seconds.
    pub expiry_s: Option<u32>,
    /// How long after the end of the connection it is published, in seconds.
    pub delay_s: u32,
}

/// A session without what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub key: SessionKey,
    /// The id of its device; not empty.
    pub name: Box<str>,
    /// What the device said of itself.
    pub profile: Profile,
    /// Since when its device is away. `None`: it is connected, or was when the process ended without a word.
    pub away_since_ms: Option<i64>,
    /// The packet identifier that was given last.
    pub last_packet: u16,
    /// What is still to be published, if anything.
    pub will: Option<Box<Will>>,
}

/// A subscription, shared (`$share/GROUP/FILTER`) or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// A valid filter.
    pub filter: Box<str>,
    /// The options byte of SUBSCRIBE (v5 3.8.3.1).
    pub options: u8,
    /// The Subscription Identifier; 0: none.
    pub identifier: u32,
}

/// A message of a session that its device has not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its place in the session: they are sent in this order. Never given twice in one session.
    pub number: u64,
    /// The packet identifier under which it was sent; `None`: it was not sent.
    pub packet: Option<u16>,
    /// The quality of service of this delivery: 1 or 2, or 0 where it waits for a device without being acknowledged.
    pub qos: QoS,
    /// Whether it carries RETAIN.
    pub retain: bool,
    /// The Subscription Identifiers of the subscriptions that matched, each at least 1.
    pub identifiers: Vec<u32>,
    /// The group of shared subscribers that it is for, as `$share/NAME/FILTER`: another member gets it should the session end.
    pub group: Option<Box<str>>,
    /// The published message, shared by all who get it.
    pub publication: Arc<Publication>,
    /// It must not be sent while a packet is received under this origin ([`Received`]); 0: none.
    pub origin: u64,
}

/// A message of QoS 2 that the device has, and whose end it has not heard: PUBREL is owed, or PUBCOMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// Its place in the session.
    pub number: u64,
    /// Its packet identifier.
    pub packet: u16,
}

/// A message of QoS 2 that came from the device, and whose PUBREL has not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its packet identifier.
    pub packet: u16,
    /// Under which number it was published, as long as not everything is safe that it causes: PUBREC was not said, and should
    /// the process end, what it has caused is void, for it comes again. 0: it is swallowed when it comes again. No two have the
    /// same.
    pub origin: u64,
}

/// All of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Whose it is, and what holds for all of it.
    pub head: Head,
    /// In any order.
    pub subscriptions: Vec<Subscription>,
    /// In order of their numbers.
    pub messages: Vec<Message>,
    /// In order of their numbers.
    pub outstanding: Vec<Outstanding>,
    /// In ascending order of the identifiers.
    pub received: Vec<Received>,
}

/// A session without the messages themselves: those are read when its device takes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptSession {
    /// Who.
    pub head: Head,
    /// In any order.
    pub subscriptions: Vec<Subscription>,
    /// Messages that were sent, in order of their numbers.
    pub sent: Vec<SentMessage>,
    /// In order of their numbers.
    pub outstanding: Vec<Outstanding>,
    /// In ascending order of the identifiers.
    pub received: Vec<Received>,
    /// Messages that were not sent.
    pub waiting: Waiting,
}

/// A message that was sent and that its device has not acknowledged, without what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentMessage {
    /// Its place in the session.
    pub number: u64,
    /// Its packet identifier.
    pub packet: u16,
    /// The quality of service of this delivery: 1 or 2.
    pub qos: QoS,
    /// Its bytes: topic, properties and payload.
    pub bytes: u64,
}

/// Messages that wait in a session and were not sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// How many.
    pub messages: u64,
    /// Their bytes: topics, properties and payloads.
    pub bytes: u64,
    /// The largest number in the session, of whatever kind; 0: there is none.
    pub last_number: u64,
}

/// What a shard says when something changes that outlives the process. Each is small; they are true in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A session is new, or its head is another from now on. A new one has a new key.
    Kept(Box<Head>),
    /// It is no more, nor is anything in it.
    Ended {
        /// Whose session: its key.
        session: SessionKey,
    },
    /// It has subscribed, or asks for the filter in another way than before.
    Subscribed {
        /// Whose session: its key.
        session: SessionKey,
        /// The subscription.
        subscription: Subscription,
    },
    /// It has no such subscription any more.
    Unsubscribed {
        /// Whose session: its key.
        session: SessionKey,
        /// The filter as it was written.
        filter: Box<str>,
    },
    /// A message waits for its device, or is sent to it.
    Queued {
        /// Whose session: its key.
        session: SessionKey,
        /// The message.
        message: Box<Message>,
    },
    /// A message of it is sent under a packet identifier.
    Sent {
        /// Whose session: its key.
        session: SessionKey,
        /// The message's number.
        number: u64,
        /// The packet identifier under which it is sent.
        packet: u16,
    },
    /// PUBREC has come: the message is with the device, its identifier is in use until PUBCOMP.
    Released {
        /// Whose session: its key.
        session: SessionKey,
        /// The message's number.
        number: u64,
    },
    /// A message of it is done with: acknowledged, expired or dropped.
    Done {
        /// Whose session: its key.
        session: SessionKey,
        /// The message's number.
        number: u64,
    },
    /// A message of QoS 2 was received from its device, and is swallowed when it comes again.
    Received {
        /// Whose session: its key.
        session: SessionKey,
        /// Its packet identifier, and the number of what it has caused.
        received: Received,
    },
    /// PUBREL has come: the next message under this identifier is another one.
    Completed {
        /// Whose session: its key.
        session: SessionKey,
        /// The packet identifier.
        packet: u16,
    },
    /// The retained message of its topic from now on.
    Retained {
        /// The message.
        publication: Arc<Publication>,
        /// Its place among those of its topic in the whole fleet; none: it is no other gateway's.
        stamp: Stamp,
    },
    /// The topic has no retained message any more.
    Unretained {
        /// The topic.
        topic: Box<str>,
    },
}

impl Publication {
    /// What it counts as where messages are bounded by bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.topic.len() + self.payload.len() + self.properties.len()
    }

    /// Whether it is of no use any more.
    #[must_use]
    pub fn is_expired(&self, now_ms: i64) -> bool {
        self.expires_ms.is_some_and(|expires_ms| now_ms >= expires_ms)
    }
}

impl Head {
    /// When the session ends, if its device does not come back; `None`: never, or its device is there.
    #[must_use]
    pub fn expires_ms(&self) -> Option<i64> {
        let expiry_s = Some(self.profile.expiry_s).filter(|&expiry_s| expiry_s != u32::MAX)?;
        Some(self.away_since_ms?.saturating_add(i64::from(expiry_s) * 1_000))
    }
}

impl Change {
    /// What it counts as where changes that wait are bounded by bytes. A message that others share is counted whole.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let content = match self {
            Change::Kept(head) => {
                let will = head.will.as_ref().map_or(0, |will| will.publication.bytes());
                head.name.len() + head.profile.listener.len() + will
            }
            Change::Subscribed { subscription, .. } => subscription.filter.len(),
            Change::Unsubscribed { filter, .. } => filter.len(),
            Change::Queued { message, .. } => {
                let group = message.group.as_ref().map_or(0, |group| group.len());
                message.publication.bytes() + 4 * message.identifiers.len() + group
            }
            Change::Retained { publication, .. } => publication.bytes(),
            Change::Unretained { topic } => topic.len(),
            Change::Ended { .. }
            | Change::Sent { .. }
            | Change::Released { .. }
            | Change::Done { .. }
            | Change::Received { .. }
            | Change::Completed { .. } => 0,
        };
        CHANGE_BYTES + content
    }
}

/// The bytes are not what was to be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// They are not of this form.
    Form(WireError),
    /// They are, and say what cannot be.
    Content(&'static str),
}

impl From<WireError> for ImageError {
    fn from(error: WireError) -> Self {
        Self::Form(error)
    }
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form(error) => error.fmt(f),
            Self::Content(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for ImageError {}

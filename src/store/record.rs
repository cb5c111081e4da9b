//! One event of the uplink, on its way into the store and out of it.

use bytes::Bytes;

use crate::link::{QoS, Receipt, Stamp, WorkerId};

/// What a row takes beside its texts: numbers, lengths, its share of a page.
const ROW_BYTES: usize = 48;

/// Something that the owner's backend is to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When, as Unix time in milliseconds.
    pub at_ms: i64,
    /// Whose home worker saw it.
    pub worker: WorkerId,
    /// Which device.
    pub device: Box<str>,
    /// What happened to it.
    pub what: What,
    /// To whom to say that it is safe, if anybody waits for that.
    pub receipt: Option<Receipt>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A device came.
    Connected(Facts),
    /// A device went, and the label of why.
    Disconnected(Facts, Box<str>),
    /// A device said something.
    Message {
        /// Under which topic; empty where the protocol has none.
        topic: Box<str>,
        /// The payload: opaque bytes.
        payload: Bytes,
        /// How it was published, where subscribers at other gateways are to get it.
        published: Option<Published>,
    },
}

/// How a message was published, beside its topic and its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The quality of service: 0, 1 or 2.
    pub qos: QoS,
    /// Whether it was published to be retained.
    pub retain: bool,
    /// The encoded MQTT 5 properties that go along with it unaltered; often empty.
    pub properties: Box<[u8]>,
    /// After this time it is of no use to anybody, as Unix time in milliseconds.
    pub expires_ms: Option<i64>,
    /// Its place among retained messages of its topic; none: it is not one, or an earlier version has written it.
    pub stamp: Stamp,
    /// Groups of shared subscribers that got it at this gateway, where the fleet would have given it to them: their keys, between commas.
    pub groups: Option<Box<str>>,
}

/// What belongs to a presence event besides who and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The listener's name.
    pub listener: Box<str>,
    /// The run of the gateway.
    pub epoch: u64,
    /// Which of the device's connections, within the epoch.
    pub generation: u64,
    /// The event's place among all presence events of its worker.
    pub sequence: u64,
    /// When the device was last heard, as Unix time in milliseconds.
    pub last_heard_ms: i64,
    /// More of it; absent in what a gateway wrote that did not keep it.
    pub details: Option<Details>,
}

/// What else is known of a device's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// From where it came; empty where that is not known.
    pub peer: Box<str>,
    /// How the device's id was learned.
    pub identity: Box<str>,
    /// The version of TLS.
    pub tls_version: Box<str>,
    /// Since when it was there, as Unix time in milliseconds.
    pub connected_ms: i64,
    /// What can be said of its end besides the cause; may be empty.
    pub detail: Box<str>,
}

impl What {
    /// How a message was published that is for subscribers at other gateways too.
    #[must_use]
    pub fn published(&self) -> Option<&Published> {
        match self {
            What::Message { published, .. } => published.as_ref(),
            What::Connected(_) | What::Disconnected(..) => None,
        }
    }
}

/// RETAIN in [`Published::to_byte`].
const RETAIN: u8 = 0b100;

impl Published {
    /// QoS in bits 0 and 1, RETAIN in bit 2.
    pub(super) fn to_byte(&self) -> u8 {
        self.qos as u8 | if self.retain { RETAIN } else { 0 }
    }

    /// What [`Published::to_byte`] says, with the rest. `None`: no such byte was written.
    pub(super) fn from_parts(byte: u8, properties: Vec<u8>, expires_ms: Option<i64>, stamp: Stamp) -> Option<Self> {
        let qos = QoS::try_from(byte & !RETAIN).ok()?;
        let properties = properties.into();
        Some(Self { qos, retain: byte & RETAIN != 0, properties, expires_ms, stamp, groups: None })
    }

    fn bytes(&self) -> usize {
        self.properties.len() + self.groups.as_ref().map_or(0, |groups| groups.len())
    }
}

impl Facts {
    fn bytes(&self) -> usize {
        let of = |details: &Details| {
            details.peer.len() + details.identity.len() + details.tls_version.len() + details.detail.len()
        };
        self.listener.len() + self.details.as_ref().map_or(0, of)
    }
}

impl Entry {
    /// What it counts as where events are bounded by bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let texts = match &self.what {
            What::Connected(facts) => facts.bytes(),
            What::Disconnected(facts, cause) => facts.bytes() + cause.len(),
            What::Message { topic, payload, published } => {
                topic.len() + payload.len() + published.as_ref().map_or(0, Published::bytes)
            }
        };
        ROW_BYTES + self.device.len() + texts
    }
}

/// One event as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its number: from 1, without gaps, never given twice.
    pub seq: u64,
    /// What it says; without a receipt.
    pub entry: Entry,
}

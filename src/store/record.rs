//! One event of the uplink, on its way into the store and out of it.

use bytes::Bytes;

use crate::link::{Receipt, WorkerId};

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
    },
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
            What::Message { topic, payload } => topic.len() + payload.len(),
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

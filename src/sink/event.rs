//! An event of the uplink as JSON: over the API and to sinks it looks the same.

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;

use crate::store::{Facts, Stored, What};

/// One event, borrowed.
#[derive(Serialize)]
pub struct Event<'a> {
    seq: u64,
    kind: &'static str,
    device: &'a str,
    at: String,
    worker: u16,
    #[serde(flatten)]
    what: Details<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Details<'a> {
    Message {
        topic: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        payload: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        payload_base64: Option<String>,
    },
    Presence {
        node: &'a str,
        listener: &'a str,
        epoch: u64,
        generation: u64,
        sequence: u64,
        last_heard: String,
        /// From here on each is left out where it is not known, as in what a gateway wrote that did not keep it.
        #[serde(skip_serializing_if = "Option::is_none")]
        peer: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        identity: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        connected_at: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cause: Option<&'a str>,
        /// More of the cause, where there is more.
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<&'a str>,
    },
}

impl<'a> Event<'a> {
    /// What `stored` says, of the gateway `node`.
    #[must_use]
    pub fn new(node: &'a str, stored: &'a Stored) -> Self {
        let entry = &stored.entry;
        let said = |text: &'a str| (!text.is_empty()).then_some(text);
        let presence = |facts: &'a Facts, cause| {
            let details = facts.details.as_ref();
            Details::Presence {
                node,
                listener: &facts.listener,
                epoch: facts.epoch,
                generation: facts.generation,
                sequence: facts.sequence,
                last_heard: time(facts.last_heard_ms),
                peer: details.and_then(|details| said(&details.peer)),
                identity: details.map(|details| &*details.identity),
                connected_at: details.map(|details| time(details.connected_ms)),
                cause,
                detail: details.filter(|_| cause.is_some()).and_then(|details| said(&details.detail)),
            }
        };
        let (kind, what) = match &entry.what {
            What::Connected(facts) => ("connected", presence(facts, None)),
            What::Disconnected(facts, cause) => ("disconnected", presence(facts, Some(&**cause))),
            What::Message { topic, payload, .. } => {
                let text = std::str::from_utf8(payload).ok();
                let payload_base64 = text.is_none().then(|| BASE64_STANDARD.encode(payload));
                ("message", Details::Message { topic, payload: text, payload_base64 })
            }
        };
        Self { seq: stored.seq, kind, device: &entry.device, at: time(entry.at_ms), worker: entry.worker.0, what }
    }

    /// Its JSON, without a line's end in it.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("plain data")
    }
}

/// RFC 3339 in UTC, to the millisecond. Before 1970 it is 1970: no clock is right there.
pub fn time(unix_ms: i64) -> String {
    let since = Duration::from_millis(u64::try_from(unix_ms).unwrap_or(0));
    humantime::format_rfc3339_millis(UNIX_EPOCH + since).to_string()
}

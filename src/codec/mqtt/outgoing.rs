//! PUBLISH from server to device, encoded from its parts: the one packet that is made very often.

use super::publish::flags;
use super::wire;
use super::{QoS, Version};

/// The parts.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// A topic name; empty where `alias` stands for it.
    pub topic: &'a str,
    /// Topic Alias.
    pub alias: Option<u16>,
    /// Its quality of service.
    pub qos: QoS,
    /// RETAIN.
    pub retain: bool,
    /// DUP.
    pub dup: bool,
    /// Not sent with QoS 0.
    pub packet_id: u16,
    /// Message Expiry Interval that is left, in seconds.
    pub message_expiry: Option<u32>,
    /// Subscription Identifiers, each at least 1.
    pub subscription_identifiers: &'a [u32],
    /// Encoded properties: see [`Properties::forwardable`](super::Properties::forwardable).
    pub forwarded: &'a [u8],
    /// The payload: opaque bytes.
    pub payload: &'a [u8],
}

const MESSAGE_EXPIRY_INTERVAL: u8 = 0x02;
const SUBSCRIPTION_IDENTIFIER: u8 = 0x0B;
const TOPIC_ALIAS: u8 = 0x23;

impl Outgoing<'_> {
    /// How long the whole packet is, in bytes.
    #[must_use]
    pub fn encoded_len(&self, version: Version) -> usize {
        let body = self.body_len(version);
        1 + wire::variable_len(body) + body
    }

    /// Appends it. In v3.1.1 properties are left out.
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) {
        let body = self.body_len(version);
        out.reserve(body + 5);
        out.push(super::kind::PUBLISH << 4 | flags(self.dup, self.qos, self.retain));
        wire::put_variable(body, out);
        let start = out.len();
        wire::put_string(self.topic, out);
        if self.qos != QoS::AtMostOnce {
            out.extend_from_slice(&self.packet_id.to_be_bytes());
        }
        if version == Version::V5 {
            wire::put_variable(self.properties_len(), out);
            if let Some(seconds) = self.message_expiry {
                out.push(MESSAGE_EXPIRY_INTERVAL);
                out.extend_from_slice(&seconds.to_be_bytes());
            }
            if let Some(alias) = self.alias {
                out.push(TOPIC_ALIAS);
                out.extend_from_slice(&alias.to_be_bytes());
            }
            for &identifier in self.subscription_identifiers {
                out.push(SUBSCRIPTION_IDENTIFIER);
                wire::put_variable(identifier as usize, out);
            }
            out.extend_from_slice(self.forwarded);
        }
        out.extend_from_slice(self.payload);
        debug_assert_eq!(out.len() - start, body);
    }

    fn body_len(&self, version: Version) -> usize {
        let packet_id = if self.qos == QoS::AtMostOnce { 0 } else { 2 };
        let properties = match version {
            Version::V31 | Version::V311 => 0,
            Version::V5 => {
                let length = self.properties_len();
                wire::variable_len(length) + length
            }
        };
        2 + self.topic.len() + packet_id + properties + self.payload.len()
    }

    fn properties_len(&self) -> usize {
        let identifiers: usize =
            self.subscription_identifiers.iter().map(|&identifier| 1 + wire::variable_len(identifier as usize)).sum();
        let expiry = if self.message_expiry.is_some() { 5 } else { 0 };
        let alias = if self.alias.is_some() { 3 } else { 0 };
        expiry + alias + identifiers + self.forwarded.len()
    }
}

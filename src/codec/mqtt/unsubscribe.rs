//! UNSUBSCRIBE (3.10): what the device wants to hear of no more.

use super::properties::{self, Properties};
use super::wire::{self, Reader};
use super::{Error, Version};

/// UNSUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unsubscribe<'a> {
    /// For UNSUBACK.
    pub packet_id: u16,
    /// None in v3.1.1.
    pub properties: Properties<'a>,
    /// Filters as they are encoded: at least one, checked.
    filters: &'a [u8],
}

impl<'a> Unsubscribe<'a> {
    /// One whose `filters` were appended by [`Unsubscribe::put_filter`].
    #[must_use]
    pub fn new(packet_id: u16, properties: Properties<'a>, filters: &'a [u8]) -> Self {
        Self { packet_id, properties, filters }
    }

    /// Appends a filter as it is encoded; it is at most 65,535 bytes long.
    pub fn put_filter(filter: &str, out: &mut Vec<u8>) {
        wire::put_string(filter, out);
    }

    /// Filters in their order: each a valid one, shared or not.
    pub fn filters(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut rest = Reader::new(self.filters);
        std::iter::from_fn(move || if rest.is_empty() { None } else { rest.string().ok() })
    }

    pub(super) fn decode(body: &mut Reader<'a>, version: Version) -> Result<Self, Error> {
        let packet_id = body.packet_id()?;
        let properties = match version {
            Version::V31 | Version::V311 => Properties::EMPTY,
            Version::V5 => Properties::decode(body, properties::In::UNSUBSCRIBE)?,
        };
        if body.is_empty() {
            return Err(Error::protocol("UNSUBSCRIBE has no filter", "MQTT-3.10.3-2"));
        }
        let filters = body.take_all();
        let mut rest = Reader::new(filters);
        while !rest.is_empty() {
            rest.topic_filter()?;
        }
        Ok(Self { packet_id, properties, filters })
    }

    pub(super) fn encode(&self, version: Version, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.packet_id.to_be_bytes());
        self.properties.encode(version, out);
        out.extend_from_slice(self.filters);
    }
}

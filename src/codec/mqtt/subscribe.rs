//! SUBSCRIBE (3.8): what the device wants to hear of.

use super::properties::{self, Properties};
use super::wire::{self, Reader};
use super::{Error, QoS, Version, topic};

/// SUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Subscribe<'a> {
    /// For SUBACK.
    pub packet_id: u16,
    /// None in v3.1.1.
    pub properties: Properties<'a>,
    /// Filters and options as they are encoded: at least one, checked.
    filters: &'a [u8],
}

/// How a subscription is wanted (v5 3.8.3.1); in v3.1.1 the QoS alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The highest quality of service.
    pub qos: QoS,
    /// Not what the device has published itself.
    pub no_local: bool,
    /// RETAIN as it was published.
    pub retain_as_published: bool,
    /// Retained messages are sent: 0 always, 1 if the subscription is new, 2 never.
    pub retain_handling: u8,
}

impl Options {
    /// No Local in [`Options::to_byte`].
    pub const NO_LOCAL: u8 = 0x04;
    /// Retain As Published in [`Options::to_byte`].
    pub const RETAIN_AS_PUBLISHED: u8 = 0x08;

    /// Of this QoS and nothing else.
    #[must_use]
    pub const fn plain(qos: QoS) -> Self {
        Self { qos, no_local: false, retain_as_published: false, retain_handling: 0 }
    }

    /// As it stands in SUBSCRIBE.
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        let no_local = if self.no_local { Self::NO_LOCAL } else { 0 };
        let as_published = if self.retain_as_published { Self::RETAIN_AS_PUBLISHED } else { 0 };
        self.qos as u8 | no_local | as_published | self.retain_handling << 4
    }

    /// # Errors
    /// [`Error`] when reserved bits are set, or the QoS or Retain Handling is 3.
    pub fn from_byte(byte: u8, version: Version) -> Result<Self, Error> {
        let reserved = match version {
            Version::V31 | Version::V311 => 0xFC,
            Version::V5 => 0xC0,
        };
        if byte & reserved != 0 {
            let statement = "v5 MQTT-3.8.3-5, v3.1.1 MQTT-3-8.3-4";
            return Err(Error::malformed("reserved bits of the subscription options are set", statement));
        }
        let qos = QoS::try_from(byte & 3)
            .map_err(|()| Error::malformed("the QoS asked for is 3", "v5 MQTT-3.8.3-5, v3.1.1 MQTT-3-8.3-4"))?;
        let retain_handling = byte >> 4 & 3;
        if retain_handling == 3 {
            return Err(Error::protocol("Retain Handling is 3", "v5 3.8.3.1"));
        }
        let (no_local, retain_as_published) = (byte & Self::NO_LOCAL != 0, byte & Self::RETAIN_AS_PUBLISHED != 0);
        Ok(Self { qos, no_local, retain_as_published, retain_handling })
    }
}

impl<'a> Subscribe<'a> {
    /// One whose `filters` were appended by [`Subscribe::put_filter`].
    #[must_use]
    pub fn new(packet_id: u16, properties: Properties<'a>, filters: &'a [u8]) -> Self {
        Self { packet_id, properties, filters }
    }

    /// Appends a filter and its options as they are encoded; a filter is at most 65,535 bytes long.
    pub fn put_filter(filter: &str, options: Options, out: &mut Vec<u8>) {
        wire::put_string(filter, out);
        out.push(options.to_byte());
    }

    /// Filters and options in their order. Each is a valid filter, shared or not.
    pub fn filters(&self) -> impl Iterator<Item = (&'a str, Options)> + use<'a> {
        let mut rest = Reader::new(self.filters);
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let filter = rest.string().ok()?;
            // As in v5: the bits of v3.1.1 are among those.
            Some((filter, Options::from_byte(rest.u8().ok()?, Version::V5).ok()?))
        })
    }

    pub(super) fn decode(body: &mut Reader<'a>, version: Version) -> Result<Self, Error> {
        let packet_id = body.packet_id()?;
        let properties = match version {
            Version::V31 | Version::V311 => Properties::EMPTY,
            Version::V5 => Properties::decode(body, properties::In::SUBSCRIBE)?,
        };
        if body.is_empty() {
            return Err(Error::protocol("SUBSCRIBE has no filter", "v5 MQTT-3.8.3-2, v3.1.1 MQTT-3.8.3-3"));
        }
        let filters = body.take_all();
        let mut rest = Reader::new(filters);
        while !rest.is_empty() {
            let filter = rest.topic_filter()?;
            let options = Options::from_byte(rest.u8()?, version)?;
            if options.no_local && topic::shared(filter).is_some() {
                return Err(Error::protocol("No Local on a shared subscription", "v5 MQTT-3.8.3-4"));
            }
        }
        Ok(Self { packet_id, properties, filters })
    }

    pub(super) fn encode(&self, version: Version, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.packet_id.to_be_bytes());
        self.properties.encode(version, out);
        out.extend_from_slice(self.filters);
    }
}

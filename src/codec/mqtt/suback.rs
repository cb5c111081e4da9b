//! SUBACK and UNSUBACK (3.9, 3.11): what became of each filter.

use super::properties::{self, Properties};
use super::reason::Table;
use super::wire::Reader;
use super::{Error, Version};

/// SUBACK.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Suback<'a> {
    /// That of SUBSCRIBE.
    pub packet_id: u16,
    /// None in v3.1.1.
    pub properties: Properties<'a>,
    /// One for each filter, in order: a [`Reason`](super::Reason); in v3.1.1 every failure is 0x80,
    /// in v3.1 there is none.
    pub codes: &'a [u8],
}

/// UNSUBACK.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unsuback<'a> {
    /// That of UNSUBSCRIBE.
    pub packet_id: u16,
    /// None in v3.1.1.
    pub properties: Properties<'a>,
    /// One for each filter, in order: a [`Reason`](super::Reason). None in v3.1.1.
    pub codes: &'a [u8],
}

impl<'a> Suback<'a> {
    pub(super) fn decode(body: &mut Reader<'a>, version: Version) -> Result<Self, Error> {
        let (packet_id, properties, codes) = decode(body, version)?;
        if codes.is_empty() {
            return Err(Error::malformed("SUBACK has no code", "v5 MQTT-3.8.4-6, v3.1.1 MQTT-3.8.4-5"));
        }
        // What v3.1 grants is never a failure: it has none.
        let granted: &[u8] = if version == Version::V31 { &[0, 1, 2] } else { &[0, 1, 2, 0x80] };
        if version != Version::V5 && codes.iter().any(|code| !granted.contains(code)) {
            return Err(Error::malformed("SUBACK has a reserved code", "v3.1.1 MQTT-3.9.3-2"));
        }
        if version == Version::V5 {
            codes.iter().try_for_each(|&code| Table::SUBACK.check(code).map(drop))?;
        }
        Ok(Self { packet_id, properties, codes })
    }

    pub(super) fn encode(&self, version: Version, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.packet_id.to_be_bytes());
        self.properties.encode(version, out);
        match version {
            Version::V5 => out.extend_from_slice(self.codes),
            // [v3.1.1 MQTT-3.9.3-2]
            Version::V311 => out.extend(self.codes.iter().map(|&code| code.min(0x80))),
            // It has no word for a failure: "a positive acknowledgement" is all that may be said (3.1 3.8).
            Version::V31 => out.extend(self.codes.iter().map(|&code| if code < 0x80 { code } else { 0 })),
        }
    }
}

impl<'a> Unsuback<'a> {
    pub(super) fn decode(body: &mut Reader<'a>, version: Version) -> Result<Self, Error> {
        let (packet_id, properties, codes) = decode(body, version)?;
        if version != Version::V5 && !codes.is_empty() {
            return Err(Error::malformed("UNSUBACK has a payload", "v3.1.1 3.11.3"));
        }
        codes.iter().try_for_each(|&code| Table::UNSUBACK.check(code).map(drop))?;
        Ok(Self { packet_id, properties, codes })
    }

    pub(super) fn encode(&self, version: Version, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.packet_id.to_be_bytes());
        self.properties.encode(version, out);
        if version == Version::V5 {
            out.extend_from_slice(self.codes);
        }
    }
}

fn decode<'a>(body: &mut Reader<'a>, version: Version) -> Result<(u16, Properties<'a>, &'a [u8]), Error> {
    let packet_id = body.packet_id()?;
    let properties = match version {
        Version::V31 | Version::V311 => Properties::EMPTY,
        Version::V5 => Properties::decode(body, properties::In::SUBACK)?,
    };
    Ok((packet_id, properties, body.take_all()))
}

//! PUBACK, PUBREC, PUBREL and PUBCOMP (3.4 to 3.7): one shape, four meanings.

use super::properties::{self, Properties};
use super::reason::Table;
use super::wire::Reader;
use super::{Error, Reason, Version};

/// Any of the four.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ack<'a> {
    /// Which message.
    pub packet_id: u16,
    /// Success, always in v3.1.1.
    pub reason: Reason,
    /// None in v3.1.1.
    pub properties: Properties<'a>,
}

impl<'a> Ack<'a> {
    /// `table`: that of the packet.
    pub(super) fn decode(body: &mut Reader<'a>, version: Version, table: Table) -> Result<Self, Error> {
        let packet_id = body.packet_id()?;
        // Both may be left out (3.4.2.1).
        let has_more = version == Version::V5 && !body.is_empty();
        let reason = if has_more { table.check(body.u8()?)? } else { Reason::SUCCESS };
        let properties = if has_more && !body.is_empty() {
            Properties::decode(body, properties::In::ACK)?
        } else {
            Properties::EMPTY
        };
        Ok(Self { packet_id, reason, properties })
    }

    pub(super) fn encode(&self, version: Version, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.packet_id.to_be_bytes());
        if version != Version::V5 || (self.reason == Reason::SUCCESS && self.properties.is_empty()) {
            return;
        }
        out.push(self.reason.0);
        if !self.properties.is_empty() {
            self.properties.encode(version, out);
        }
    }
}

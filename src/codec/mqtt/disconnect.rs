//! DISCONNECT (3.14): a goodbye, in v5 from either side and with a reason.

use super::properties::{self, Properties};
use super::reason::Table;
use super::wire::Reader;
use super::{Error, Reason, Version};

/// DISCONNECT.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Disconnect<'a> {
    /// Why; success (a normal end) always in v3.1.1.
    pub reason: Reason,
    /// None in v3.1.1.
    pub properties: Properties<'a>,
}

impl<'a> Disconnect<'a> {
    pub(super) fn decode(body: &mut Reader<'a>, version: Version) -> Result<Self, Error> {
        // Both may be left out (3.14.2.1).
        let has_more = version == Version::V5 && !body.is_empty();
        let reason = if has_more { Table::DISCONNECT.check(body.u8()?)? } else { Reason::SUCCESS };
        let properties = if has_more && !body.is_empty() {
            Properties::decode(body, properties::In::DISCONNECT)?
        } else {
            Properties::EMPTY
        };
        Ok(Self { reason, properties })
    }

    pub(super) fn encode(&self, version: Version, out: &mut Vec<u8>) {
        if version != Version::V5 || (self.reason == Reason::SUCCESS && self.properties.is_empty()) {
            return;
        }
        out.push(self.reason.0);
        if !self.properties.is_empty() {
            self.properties.encode(version, out);
        }
    }
}

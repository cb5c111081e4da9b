//! AUTH (v5 3.15): a step of an authentication of more than one.

use super::properties::{self, Properties};
use super::reason::Table;
use super::wire::Reader;
use super::{Error, Reason, Version};

/// AUTH.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Auth<'a> {
    /// Where the authentication stands.
    pub reason: Reason,
    /// Method and data.
    pub properties: Properties<'a>,
}

impl<'a> Auth<'a> {
    pub(super) fn decode(body: &mut Reader<'a>) -> Result<Self, Error> {
        // Both may be left out (3.15.2.1).
        if body.is_empty() {
            return Ok(Self { reason: Reason::SUCCESS, properties: Properties::EMPTY });
        }
        let reason = Table::AUTH.check(body.u8()?)?;
        let properties =
            if body.is_empty() { Properties::EMPTY } else { Properties::decode(body, properties::In::AUTH)? };
        Ok(Self { reason, properties })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        if self.reason == Reason::SUCCESS && self.properties.is_empty() {
            return;
        }
        out.push(self.reason.0);
        if !self.properties.is_empty() {
            self.properties.encode(Version::V5, out);
        }
    }
}

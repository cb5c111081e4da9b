//! CONNACK (3.2): whether the device may stay, and what holds for it.

use super::properties::{self, Properties};
use super::reason::Table;
use super::wire::Reader;
use super::{Error, Reason, Version};

/// CONNACK.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Connack<'a> {
    /// Whether the device's session is there.
    pub session_present: bool,
    /// Success, or why not. In v3.1.1 it travels as a return code.
    pub reason: Reason,
    /// None in v3.1.1.
    pub properties: Properties<'a>,
}

impl<'a> Connack<'a> {
    pub(super) fn decode(body: &mut Reader<'a>, version: Version) -> Result<Self, Error> {
        let flags = body.u8()?;
        if flags > 1 {
            return Err(Error::malformed("reserved flags of CONNACK are set", "v5 MQTT-3.2.2-1"));
        }
        let code = body.u8()?;
        let (reason, properties) = match version {
            Version::V31 | Version::V311 => {
                let unknown = Error::malformed("the return code is not known", "v3.1.1 MQTT-3.2.2-6");
                (Reason::from_connect_return_code(code).ok_or(unknown)?, Properties::EMPTY)
            }
            Version::V5 => (Table::CONNACK.check(code)?, Properties::decode(body, properties::In::CONNACK)?),
        };
        if flags == 1 && reason.is_error() {
            let statement = "v5 MQTT-3.2.2-6, v3.1.1 MQTT-3.2.2-4";
            return Err(Error::protocol("CONNACK refuses and has a session present", statement));
        }
        Ok(Self { session_present: flags == 1, reason, properties })
    }

    pub(super) fn encode(&self, version: Version, out: &mut Vec<u8>) {
        // With a failure, never [v5 MQTT-3.2.2-6, v3.1.1 MQTT-3.2.2-4].
        debug_assert!(!(self.session_present && self.reason.is_error()));
        out.push(u8::from(self.session_present));
        out.push(match version {
            Version::V31 | Version::V311 => self.reason.connect_return_code(),
            Version::V5 => self.reason.0,
        });
        self.properties.encode(version, out);
    }
}

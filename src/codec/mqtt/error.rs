//! What is wrong with bytes that are no packet.

use std::fmt;

use super::Reason;

/// The bytes are no packet that may stand here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// What the peer is told, in MQTT 5.
    pub reason: Reason,
    /// In words.
    pub what: &'static str,
    /// The statement of the specification that is broken.
    pub statement: &'static str,
    /// CONNECT asks for a protocol level that is not spoken here: the peer is told so before the end.
    pub is_unknown_level: bool,
}

impl Error {
    pub(super) const fn new(reason: Reason, what: &'static str, statement: &'static str) -> Self {
        Self { reason, what, statement, is_unknown_level: false }
    }

    /// Bytes that cannot be parsed [v5 MQTT-4.13.1-1].
    pub(super) const fn malformed(what: &'static str, statement: &'static str) -> Self {
        Self::new(Reason::MALFORMED_PACKET, what, statement)
    }

    /// Bytes that can be parsed and may not be [v5 MQTT-4.13.1-1].
    pub(super) const fn protocol(what: &'static str, statement: &'static str) -> Self {
        Self::new(Reason::PROTOCOL_ERROR, what, statement)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.what, self.statement)
    }
}

impl std::error::Error for Error {}

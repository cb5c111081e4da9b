//! Our own TLS record layer: an established connection as 203 bytes of plain data.
//!
//! The handshake ends with keys, ivs, sequence numbers and (TLS 1.3) traffic secrets. That is all that a connection
//! needs from then on, so it is all that is kept. To work on it a [`Burst`] is begun, which rebuilds the keys in the
//! form that opens and seals; records are opened in place and sealed into the caller's buffer.
//!
//! ```text
//! RecordLayer
//! | tx: secret 48 | key 32 | iv 12 | sequence 7 |   what we send
//! | rx: secret 48 | key 32 | iv 12 | sequence 7 |   what the peer sends
//! | suite 1 | status 1 | empty records 1 | key updates 1 | shape 1 |
//! ```
//!
//! It does all that is left of the protocol after the handshake: closure and error alerts, key updates, refusal of
//! renegotiation, and the bounds on what a peer may send to no purpose. It must never: read a clock or a socket, keep
//! bytes between two calls, allocate beyond the caller's buffer and the AEAD's own context, or panic on what a peer
//! sent.

#![forbid(unsafe_code)]

mod shape;
mod suite;

mod error;

mod framing;

mod keys;
mod tls12;
mod tls13;

mod burst;

mod handover;

#[cfg(test)]
mod tests;

use std::fmt;

use zeroize::Zeroize;

pub use burst::{Burst, Handled, Opened};
pub use error::{Alert, FramingError, RecordError};
pub use framing::{HEADER_LEN, PLAINTEXT_MAX, RECORD_MAX, Stage, next_record, plaintext_alert};
pub use handover::{Early, HandoverError, TrafficSecrets, seal_early};
pub use keys::DirectionSecrets;
pub use shape::RecordLimit;
pub use suite::{Role, Suite, Version};

use keys::Direction;
use shape::Shape;

/// Records without content that a peer may send in a row. They are legal (RFC 8446 5.1: "useful as a traffic analysis
/// countermeasure") and cost us a decryption each.
pub const EMPTY_RECORDS_MAX: u8 = 32;

/// Warning alerts that a peer may send on one connection.
pub const WARNINGS_MAX: u8 = 4;

/// Key updates that a peer may send without application data between them.
pub const KEY_UPDATES_MAX: u8 = 32;

/// All of an established TLS connection. No heap; the keys are wiped when it is dropped, and as soon as it has failed.
///
/// (Rust may leave copies behind when a value moves; keep it where it is, and move it only between shards.)
pub struct RecordLayer {
    tx: Direction,
    rx: Direction,
    suite: Suite,
    status: Status,
    empty_records: u8,
    key_updates: u8,
    shape: Shape,
}

const _: () = assert!(size_of::<RecordLayer>() <= 203 && align_of::<RecordLayer>() == 1);
// The connection's state enum finds its niche in the suite.
const _: () = assert!(size_of::<Option<RecordLayer>>() == size_of::<RecordLayer>());

impl RecordLayer {
    /// A connection whose handshake is done. Panics when a secret's or key's length does not fit the suite.
    #[must_use]
    pub fn new(role: Role, suite: Suite, tx: &DirectionSecrets<'_>, rx: &DirectionSecrets<'_>) -> Self {
        Self {
            tx: Direction::new(suite, tx),
            rx: Direction::new(suite, rx),
            suite,
            status: Status::new(role),
            empty_records: 0,
            key_updates: 0,
            shape: Shape::new(RecordLimit::MAX),
        }
    }

    /// The same connection, whose data is sealed into records of at most this much plaintext.
    #[must_use]
    pub fn with_record_limit(mut self, limit: RecordLimit) -> Self {
        self.shape.set_limit(limit);
        self
    }

    /// How much plaintext one record of ours may carry.
    #[must_use]
    pub fn record_limit(&self) -> RecordLimit {
        self.shape.limit()
    }

    /// Which end we are.
    #[must_use]
    pub fn role(&self) -> Role {
        if self.status.has(Status::SERVER) { Role::Server } else { Role::Client }
    }

    /// The negotiated version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.suite.version()
    }

    /// The negotiated suite.
    #[must_use]
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// The suite's IANA name.
    #[must_use]
    pub fn suite_name(&self) -> &'static str {
        self.suite.name()
    }

    /// Whether data may still be sealed: false after our close_notify, after an error, and in TLS 1.2 after the peer's
    /// close_notify too.
    #[must_use]
    pub fn can_seal(&self) -> bool {
        // RFC 5246 7.2.1: whoever receives close_notify answers with its own and closes, "discarding any pending
        // writes". RFC 8446 6.1 lets the other direction live on.
        let peer_closed = self.status.has(Status::READ_CLOSED) && self.version() == Version::Tls12;
        !self.status.has(Status::WRITE_CLOSED) && !peer_closed
    }

    /// Begins to work on the connection. The keys are made at their first use and live as long as the burst: open and
    /// seal all that is there in one, then let it go.
    pub fn burst(&mut self) -> Burst<'_> {
        Burst::new(self)
    }

    /// The connection has failed: nothing is opened or sealed any more, and RFC 5246 7.2.2 wants its keys forgotten.
    fn fail(&mut self) {
        self.status.set(Status::FAILED | Status::WRITE_CLOSED);
        self.wipe();
    }

    fn wipe(&mut self) {
        self.tx.zeroize();
        self.rx.zeroize();
    }
}

impl Drop for RecordLayer {
    fn drop(&mut self) {
        self.wipe();
    }
}

/// Never the secrets.
impl fmt::Debug for RecordLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordLayer")
            .field("role", &self.role())
            .field("suite", &self.suite_name())
            .field("tx_sequence", &self.tx.sequence())
            .field("rx_sequence", &self.rx.sequence())
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

/// One byte of what happened so far.
///
/// ```text
/// bit  7 6 5            4               3        2              1             0
///      warning alerts   renegotiation   failed   write closed   read closed   server
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Status(u8);

impl Status {
    const SERVER: u8 = 1 << 0;
    /// The peer said close_notify.
    const READ_CLOSED: u8 = 1 << 1;
    /// We said close_notify or a fatal alert.
    const WRITE_CLOSED: u8 = 1 << 2;
    const FAILED: u8 = 1 << 3;
    /// A renegotiation was refused.
    const RENEGOTIATION: u8 = 1 << 4;
    const WARNING: u8 = 1 << 5;

    fn new(role: Role) -> Self {
        Self(if role == Role::Server { Self::SERVER } else { 0 })
    }

    fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    fn set(&mut self, bits: u8) {
        self.0 |= bits;
    }

    fn warnings(self) -> u8 {
        self.0 / Self::WARNING
    }

    /// The caller has seen to it that there are fewer than [`WARNINGS_MAX`].
    fn add_warning(&mut self) {
        self.0 += Self::WARNING;
    }
}

//! Where one record ends and the next begins, and the one kind of record that is sent unprotected.
//!
//! ```text
//!  0      1      2      3      4      5
//!  | type |   version   |   length    |  content, `length` bytes ...
//! ```

use super::error::{Alert, FramingError};
use super::suite::Version;

/// Bytes before a record's content.
pub const HEADER_LEN: usize = 5;

/// Bytes of plaintext that one record may carry (RFC 8446 5.1, RFC 5246 6.2.1).
pub const PLAINTEXT_MAX: usize = 1 << 14;

/// Bytes that a record of any kind can have, header included: RFC 5246 6.2.3 allows the most.
pub const RECORD_MAX: usize = HEADER_LEN + PLAINTEXT_MAX + 2048;

/// What a record carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ContentType {
    ChangeCipherSpec = 20,
    Alert = 21,
    Handshake = 22,
    ApplicationData = 23,
}

impl ContentType {
    pub(super) const fn from_byte(byte: u8) -> Option<ContentType> {
        match byte {
            20 => Some(ContentType::ChangeCipherSpec),
            21 => Some(ContentType::Alert),
            22 => Some(ContentType::Handshake),
            23 => Some(ContentType::ApplicationData),
            _ => None,
        }
    }
}

/// How far the connection is: it decides which records may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing was received yet: what comes may not be TLS at all.
    First,
    /// Within the handshake: unprotected records and, in TLS 1.3, protected ones.
    Handshake,
    /// After the handshake: protected records only.
    Protected(Version),
}

/// Finds the record at the front of `bytes`: its length with the header, or `None` while it is incomplete.
///
/// # Errors
/// [`FramingError`] as soon as a byte of the header is wrong, before the rest has come.
pub fn next_record(bytes: &[u8], stage: Stage) -> Result<Option<usize>, FramingError> {
    let Some(&type_byte) = bytes.first() else { return Ok(None) };
    let kind = check_type(type_byte, stage)?;
    check_version(&bytes[1..bytes.len().min(3)], stage)?;
    let Some(&[high, low]) = bytes.get(3..HEADER_LEN) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > content_max(kind, stage) {
        return Err(FramingError::Overflow);
    }
    // RFC 8446 5.1: "Implementations MUST NOT send zero-length fragments of Handshake types". A protected record of
    // no length is left to fail its authentication.
    if length == 0 && kind != ContentType::ApplicationData && !matches!(stage, Stage::Protected(_)) {
        return Err(FramingError::Empty);
    }
    let whole = HEADER_LEN + length;
    Ok((bytes.len() >= whole).then_some(whole))
}

fn check_type(byte: u8, stage: Stage) -> Result<ContentType, FramingError> {
    use ContentType::{Alert, ApplicationData, Handshake};
    let unexpected = if stage == Stage::First { FramingError::NotTls } else { FramingError::UnexpectedType(byte) };
    let kind = ContentType::from_byte(byte).ok_or(unexpected)?;
    let expected = match stage {
        // A client begins with ClientHello; a server may answer that with nothing but an alert.
        Stage::First => matches!(kind, Handshake | Alert),
        Stage::Handshake => true,
        // RFC 8446 5.2: the outer type of a protected record is always application_data. What else comes now is not
        // protected, and so "an unexpected record type" (section 5), whatever it says.
        Stage::Protected(Version::Tls13) => kind == ApplicationData,
        // A change_cipher_spec would end another handshake (RFC 5246 7.1), and we refuse those.
        Stage::Protected(Version::Tls12) => matches!(kind, Alert | Handshake | ApplicationData),
    };
    if expected { Ok(kind) } else { Err(unexpected) }
}

/// `version` is as much of the two bytes as has come.
fn check_version(version: &[u8], stage: Stage) -> Result<(), FramingError> {
    match stage {
        Stage::First if version.first().is_some_and(|&major| major != 3) => Err(FramingError::NotTls),
        Stage::Handshake if version.first().is_some_and(|&major| major != 3) => Err(FramingError::Version),
        Stage::Protected(Version::Tls12) if !&[3, 3].starts_with(version) => Err(FramingError::Version),
        // RFC 8446 5.1: legacy_record_version "MUST be ignored for all purposes".
        _ => Ok(()),
    }
}

const fn content_max(kind: ContentType, stage: Stage) -> usize {
    match (stage, kind) {
        // RFC 5246 6.2.3: "The length MUST NOT exceed 2^14 + 2048."
        (Stage::Protected(Version::Tls12), _) => PLAINTEXT_MAX + 2048,
        // RFC 8446 5.2: "The length MUST NOT exceed 2^14 + 256 bytes."
        (Stage::Protected(Version::Tls13), _) | (Stage::Handshake, ContentType::ApplicationData) => PLAINTEXT_MAX + 256,
        // RFC 8446 5.1: "The length MUST NOT exceed 2^14 bytes."
        (Stage::First | Stage::Handshake, _) => PLAINTEXT_MAX,
    }
}

/// Appends an unprotected alert record, for a connection that has no keys yet.
pub fn plaintext_alert(alert: Alert, out: &mut Vec<u8>) {
    // RFC 8446 5.1: legacy_record_version is 0x0303 for all but an initial ClientHello.
    out.extend_from_slice(&[ContentType::Alert as u8, 3, 3, 0, 2]);
    out.extend_from_slice(&alert.message());
}

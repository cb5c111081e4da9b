//! One protected record of TLS 1.2 with an AEAD (RFC 5246 6.2.3.3, RFC 5288, RFC 7905).
//!
//! ```text
//! | type | 3 3 | length | explicit nonce | AEAD( content ) | tag |
//!                        8 with AES-GCM,                    16
//!                        0 with ChaCha20
//! AAD:   | sequence number, 8 | type | 3 3 | length of the content, 2 |
//! nonce: AES-GCM   first 4 bytes of the iv (the salt) | explicit nonce
//!        ChaCha20  iv XOR sequence number, as in TLS 1.3
//! ```
//!
//! Our own explicit nonce is the rest of the iv XOR the sequence number: unique, and it goes on where rustls stopped.

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};

use super::error::RecordError;
use super::framing::{ContentType, HEADER_LEN, PLAINTEXT_MAX};
use super::keys::Direction;
use super::suite::Suite;
use super::tls13::TAG_LEN;

const SALT_LEN: usize = 4;
const EXPLICIT_LEN: usize = NONCE_LEN - SALT_LEN;

/// Bytes that a record adds to its content, at most.
pub(super) const OVERHEAD: usize = HEADER_LEN + EXPLICIT_LEN + TAG_LEN;

/// Appends one record around `content`, of at most [`PLAINTEXT_MAX`] bytes.
pub(super) fn seal(
    key: &LessSafeKey,
    suite: Suite,
    direction: &Direction,
    kind: ContentType,
    content: &[u8],
    out: &mut Vec<u8>,
) {
    assert!(content.len() <= PLAINTEXT_MAX);
    let nonce = direction.nonce();
    let explicit = &nonce[SALT_LEN..SALT_LEN + explicit_len(suite)];
    let [high, low] = ((explicit.len() + content.len() + TAG_LEN) as u16).to_be_bytes();
    out.extend_from_slice(&[kind as u8, 3, 3, high, low]);
    out.extend_from_slice(explicit);
    let start = out.len();
    out.extend_from_slice(content);
    let aad = Aad::from(additional_data(direction, kind as u8, content.len()));
    let sealed = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut out[start..]);
    out.extend_from_slice(sealed.expect("a record is shorter than any AEAD's limit").as_ref());
}

/// Opens one whole record in place: its content type and its content.
pub(super) fn open<'r>(
    key: &LessSafeKey,
    suite: Suite,
    direction: &Direction,
    record: &'r mut [u8],
) -> Result<(ContentType, &'r [u8]), RecordError> {
    let (header, body) = record.split_at_mut(HEADER_LEN);
    // RFC 5246 6.2.3.3: "If the decryption fails, a fatal bad_record_mac alert MUST be generated." What is too short
    // to hold nonce and tag cannot be decrypted.
    let (explicit, sealed) = body.split_at_mut_checked(explicit_len(suite)).ok_or(RecordError::BadMac)?;
    let length = sealed.len().checked_sub(TAG_LEN).ok_or(RecordError::BadMac)?;
    let mut nonce = direction.nonce();
    nonce[SALT_LEN..SALT_LEN + explicit.len()].copy_from_slice(explicit);
    let aad = Aad::from(additional_data(direction, header[0], length));
    let content: &'r [u8] =
        key.open_in_place(Nonce::assume_unique_for_key(nonce), aad, sealed).map_err(|_| RecordError::BadMac)?;
    // RFC 5246 6.2.2 and 7.2.2: without compression the content, too, has at most 2^14 bytes.
    if content.len() > PLAINTEXT_MAX {
        return Err(RecordError::Overflow);
    }
    let kind = ContentType::from_byte(header[0]).ok_or(RecordError::UnexpectedMessage)?;
    Ok((kind, content))
}

pub(super) const fn explicit_len(suite: Suite) -> usize {
    if suite.has_explicit_nonce() { EXPLICIT_LEN } else { 0 }
}

fn additional_data(direction: &Direction, kind: u8, length: usize) -> [u8; 13] {
    let mut data = [0; 13];
    data[..8].copy_from_slice(&direction.sequence().to_be_bytes());
    data[8..11].copy_from_slice(&[kind, 3, 3]);
    data[11..].copy_from_slice(&(length as u16).to_be_bytes());
    data
}

//! One protected record of TLS 1.3 (RFC 8446 5.2).
//!
//! ```text
//! | 23 | 3 3 | length |  AEAD( content | content type | zeros )  | tag |
//! '------- AAD -------'                                           16
//! ```

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce};

use super::error::RecordError;
use super::framing::{ContentType, HEADER_LEN, PLAINTEXT_MAX};
use super::keys::Direction;

/// Bytes of the authentication tag, the same in every suite.
pub(super) const TAG_LEN: usize = 16;

/// Bytes that a record adds to its content.
pub(super) const OVERHEAD: usize = HEADER_LEN + 1 + TAG_LEN;

/// Appends one record around `content`, at most [`PLAINTEXT_MAX`] bytes. No padding: shaping traffic is not our task.
pub(super) fn seal(key: &LessSafeKey, direction: &Direction, kind: ContentType, content: &[u8], out: &mut Vec<u8>) {
    assert!(content.len() <= PLAINTEXT_MAX);
    let [high, low] = ((content.len() + 1 + TAG_LEN) as u16).to_be_bytes();
    let header = [ContentType::ApplicationData as u8, 3, 3, high, low];
    out.extend_from_slice(&header);
    let start = out.len();
    out.extend_from_slice(content);
    out.push(kind as u8);
    let nonce = Nonce::assume_unique_for_key(direction.nonce());
    let sealed = key.seal_in_place_separate_tag(nonce, Aad::from(header), &mut out[start..]);
    out.extend_from_slice(sealed.expect("a record is shorter than any AEAD's limit").as_ref());
}

/// Opens one whole record in place: its inner content type and its content.
pub(super) fn open<'r>(
    key: &LessSafeKey,
    direction: &Direction,
    record: &'r mut [u8],
) -> Result<(ContentType, &'r [u8]), RecordError> {
    let (header, body) = record.split_at_mut(HEADER_LEN);
    let nonce = Nonce::assume_unique_for_key(direction.nonce());
    // RFC 8446 5.2: "If the decryption fails, the receiver MUST terminate the connection with a "bad_record_mac"
    // alert."
    let inner: &'r [u8] = key.open_in_place(nonce, Aad::from(&*header), body).map_err(|_| RecordError::BadMac)?;
    // RFC 8446 5.4: the full encoded TLSInnerPlaintext must not exceed 2^14 + 1 octets.
    if inner.len() > PLAINTEXT_MAX + 1 {
        return Err(RecordError::Overflow);
    }
    // RFC 8446 5.4: "If a receiving implementation does not find a non-zero octet in the cleartext, it MUST terminate
    // the connection with an "unexpected_message" alert."
    let type_at = inner.iter().rposition(|&byte| byte != 0).ok_or(RecordError::UnexpectedMessage)?;
    let kind = ContentType::from_byte(inner[type_at]).ok_or(RecordError::UnexpectedMessage)?;
    Ok((kind, &inner[..type_at]))
}

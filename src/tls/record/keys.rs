//! One direction of a connection: its secret, key, iv and sequence number, and how they follow from each other.

use aws_lc_rs::aead::{LessSafeKey, NONCE_LEN, UnboundKey};
use aws_lc_rs::hkdf;
use zeroize::Zeroize;

use super::suite::Suite;

const SECRET_MAX: usize = 48;
const KEY_MAX: usize = 32;
/// Seven bytes of a record's number are kept: nobody seals 2^56 records, and an eighth would cost every connection two.
const SEQUENCE_BYTES: usize = 7;

/// The last number: RFC 8446 5.3 says that they must not wrap. It stays unused.
pub(super) const SEQUENCE_MAX: u64 = (1 << (8 * SEQUENCE_BYTES)) - 1;

/// What protects one direction, as the handshake left it.
#[derive(Clone, Copy)]
pub struct DirectionSecrets<'a> {
    /// TLS 1.3: the application traffic secret, as long as the suite's hash. TLS 1.2: empty.
    pub secret: &'a [u8],
    /// The record key, as long as the suite's AEAD demands.
    pub key: &'a [u8],
    /// The iv. TLS 1.2 with AES-GCM: the salt, then the start of the explicit part.
    pub iv: &'a [u8; NONCE_LEN],
    /// The next record's number.
    pub sequence: u64,
}

/// One direction, as plain data of one size for all suites. Unused tails are zero.
pub(super) struct Direction {
    secret: [u8; SECRET_MAX],
    key: [u8; KEY_MAX],
    pub(super) iv: [u8; NONCE_LEN],
    sequence: [u8; SEQUENCE_BYTES],
}

impl Direction {
    /// Panics when a length does not fit the suite, and above [`SEQUENCE_MAX`].
    pub(super) fn new(suite: Suite, from: &DirectionSecrets<'_>) -> Self {
        assert_eq!(from.secret.len(), suite.secret_len(), "a traffic secret does not fit its suite");
        assert_eq!(from.key.len(), suite.key_len(), "a record key does not fit its suite");
        let mut direction =
            Self { secret: [0; SECRET_MAX], key: [0; KEY_MAX], iv: *from.iv, sequence: [0; SEQUENCE_BYTES] };
        direction.secret[..from.secret.len()].copy_from_slice(from.secret);
        direction.key[..from.key.len()].copy_from_slice(from.key);
        direction.set_sequence(from.sequence);
        direction
    }

    pub(super) fn secret(&self, suite: Suite) -> &[u8] {
        &self.secret[..suite.secret_len()]
    }

    pub(super) fn key(&self, suite: Suite) -> &[u8] {
        &self.key[..suite.key_len()]
    }

    /// The next record's number.
    pub(super) fn sequence(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes[..SEQUENCE_BYTES].copy_from_slice(&self.sequence);
        u64::from_le_bytes(bytes)
    }

    fn set_sequence(&mut self, sequence: u64) {
        assert!(sequence <= SEQUENCE_MAX, "a record beyond the last number");
        self.sequence.copy_from_slice(&sequence.to_le_bytes()[..SEQUENCE_BYTES]);
    }

    /// One record more. The caller has seen to it that there is a number left.
    pub(super) fn advance(&mut self) {
        self.set_sequence(self.sequence() + 1);
    }

    /// The next record's nonce (RFC 8446 5.3, RFC 7905 section 2): the iv with the number XORed into its end.
    pub(super) fn nonce(&self) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence().to_be_bytes()) {
            *byte ^= number;
        }
        nonce
    }

    /// The key in the form that opens and seals: about 100 ns to make and 640 bytes to keep.
    pub(super) fn aead(&self, suite: Suite) -> LessSafeKey {
        let key = UnboundKey::new(suite.algorithm(), self.key(suite)).expect("the key has its suite's length");
        LessSafeKey::new(key)
    }

    /// The next generation of secret, key and iv (RFC 8446 7.2 and 7.3), counting from zero again. TLS 1.3 only.
    pub(super) fn update(&mut self, suite: Suite) {
        let secret_len = suite.secret_len();
        assert!(secret_len > 0, "TLS 1.2 has no key update");
        let mut next = [0; SECRET_MAX];
        expand_label(suite, self.secret(suite), b"traffic upd", &mut next[..secret_len]);
        self.secret = next;
        next.zeroize();
        derive(suite, &self.secret[..secret_len], &mut self.key[..suite.key_len()], &mut self.iv);
        self.sequence = [0; SEQUENCE_BYTES];
    }
}

impl Zeroize for Direction {
    fn zeroize(&mut self) {
        self.secret.zeroize();
        self.key.zeroize();
        self.iv.zeroize();
    }
}

/// Key and iv of a traffic secret (RFC 8446 7.3).
pub(super) fn derive(suite: Suite, secret: &[u8], key: &mut [u8], iv: &mut [u8; NONCE_LEN]) {
    expand_label(suite, secret, b"key", key);
    expand_label(suite, secret, b"iv", iv);
}

/// HKDF-Expand-Label with an empty context (RFC 8446 7.1).
///
/// ```text
/// | length, 2 bytes | label length, 1 | "tls13 " label | context length, 1: zero |
/// ```
fn expand_label(suite: Suite, secret: &[u8], label: &[u8], out: &mut [u8]) {
    const PREFIX: &[u8] = b"tls13 ";
    let length = (out.len() as u16).to_be_bytes();
    let label_length = [(PREFIX.len() + label.len()) as u8];
    let info = [&length[..], &label_length, PREFIX, label, &[0]];
    let prk = hkdf::Prk::new_less_safe(suite.hash().hkdf(), secret);
    let expanded = prk.expand(&info, OutputLen(out.len())).and_then(|okm| okm.fill(out));
    expanded.expect("every output of the key schedule is shorter than 255 hashes");
}

struct OutputLen(usize);

impl hkdf::KeyType for OutputLen {
    fn len(&self) -> usize {
        self.0
    }
}

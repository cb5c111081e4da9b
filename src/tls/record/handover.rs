//! How a connection comes to us from rustls, and how it travels to another shard or process.
//!
//! The travelling form, all numbers big-endian, lengths as the suite has them:
//!
//! ```text
//! | form 1 | suite 1 | status 1 | empty records 1 | key updates 1 | shape 1 |
//! | tx: secret 0, 32, 48 | key 16, 32 | iv 12 | sequence 8 |  rx: the same |
//! ```
//!
//! That is 142 bytes (AES-128), 174 (ChaCha20) or 206 (AES-256) with TLS 1.3, and 78 or 110 with TLS 1.2.

use std::fmt;

use aws_lc_rs::aead::NONCE_LEN;
use rustls::{CipherSuite, ConnectionTrafficSecrets, ExtractedSecrets};
use zeroize::Zeroize;

use super::keys::{Direction, DirectionSecrets, SEQUENCE_MAX, derive};
use super::suite::{Aead, Role, Suite, Version};
use super::{Alert, EMPTY_RECORDS_MAX, KEY_UPDATES_MAX, RecordLayer, Shape, Status, WARNINGS_MAX};

/// The number of the travelling form. A reader refuses any other.
const FORM: u8 = 2;

/// The first generation of TLS 1.3 application traffic secrets, as a key log names them.
#[derive(Clone, Copy)]
pub struct TrafficSecrets<'a> {
    /// `CLIENT_TRAFFIC_SECRET_0`.
    pub client: &'a [u8],
    /// `SERVER_TRAFFIC_SECRET_0`.
    pub server: &'a [u8],
}

/// Why a finished handshake could not be taken over. All of them are our own mistakes, not the peer's; but a peer may
/// have found the way to them, so they end one connection and not the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandoverError {
    /// rustls negotiated a suite that this layer does not know.
    UnsupportedSuite(u16),
    /// A TLS 1.3 connection came without traffic secrets: its keys could not be updated.
    MissingTrafficSecrets,
    /// The extracted keys are not the suite's, or not those that the traffic secrets lead to.
    Mismatch,
}

impl fmt::Display for HandoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandoverError::UnsupportedSuite(code) => write!(f, "no record layer for cipher suite {code:#06x}"),
            HandoverError::MissingTrafficSecrets => f.write_str("the key log holds no traffic secrets"),
            HandoverError::Mismatch => f.write_str("the extracted keys do not fit suite and traffic secrets"),
        }
    }
}

impl std::error::Error for HandoverError {}

impl RecordLayer {
    /// Takes over a connection whose handshake rustls has finished. `traffic` is needed for TLS 1.3 and ignored for
    /// TLS 1.2.
    ///
    /// # Errors
    /// [`HandoverError`]; in TLS 1.3 the traffic secrets are proven to be those of the extracted keys.
    pub fn from_rustls(
        role: Role,
        suite: CipherSuite,
        secrets: &ExtractedSecrets,
        traffic: Option<TrafficSecrets<'_>>,
    ) -> Result<RecordLayer, HandoverError> {
        let code = u16::from(suite);
        let suite = Suite::from_code(code).ok_or(HandoverError::UnsupportedSuite(code))?;
        let (tx_secret, rx_secret) = match (suite.version(), traffic, role) {
            (Version::Tls12, ..) => (&[][..], &[][..]),
            (Version::Tls13, None, _) => return Err(HandoverError::MissingTrafficSecrets),
            (Version::Tls13, Some(traffic), Role::Client) => (traffic.client, traffic.server),
            (Version::Tls13, Some(traffic), Role::Server) => (traffic.server, traffic.client),
        };
        let tx = take(suite, &secrets.tx, tx_secret)?;
        let rx = take(suite, &secrets.rx, rx_secret)?;
        Ok(RecordLayer::new(role, suite, &tx, &rx))
    }

    /// The same connection, for who has [sent a message](Early::Message) under its key already.
    #[must_use]
    pub fn after_early_message(mut self) -> RecordLayer {
        self.tx.advance();
        self
    }

    /// Appends the connection in its travelling form. These bytes are the connection's secrets: wipe them when they
    /// have been sent, and drop the connection here before it goes on there: two that seal under the same key and
    /// number betray it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[FORM, self.suite as u8, self.status.0]);
        out.extend_from_slice(&[self.empty_records, self.key_updates, self.shape.byte()]);
        for direction in [&self.tx, &self.rx] {
            out.extend_from_slice(direction.secret(self.suite));
            out.extend_from_slice(direction.key(self.suite));
            out.extend_from_slice(&direction.iv);
            out.extend_from_slice(&direction.sequence().to_be_bytes());
        }
    }

    /// Reads one connection from the front of `bytes`, with the number of bytes that it took. `None` when they are
    /// incomplete or of a form that this version does not know.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<(RecordLayer, usize)> {
        let (&[form, suite, status, empty_records, key_updates, shape], mut rest) = bytes.split_first_chunk()?;
        let (suite, status, shape) = (Suite::from_number(suite)?, Status(status), Shape::from_byte(shape)?);
        let counts_fit =
            status.warnings() <= WARNINGS_MAX && empty_records <= EMPTY_RECORDS_MAX && key_updates <= KEY_UPDATES_MAX;
        if form != FORM || !counts_fit {
            return None;
        }
        let tx = decode_direction(suite, &mut rest)?;
        let rx = decode_direction(suite, &mut rest)?;
        let layer = RecordLayer {
            tx: Direction::new(suite, &tx),
            rx: Direction::new(suite, &rx),
            suite,
            status,
            empty_records,
            key_updates,
            shape,
        };
        Some((layer, bytes.len() - rest.len()))
    }
}

/// What a TLS 1.3 server says itself before rustls's connection is taken over: as soon as its Finished is said,
/// everything that it sends is under its first application traffic secret (RFC 8446 section 7.1 and appendix A.2), and
/// an alert in the clear is none.
#[derive(Clone, Copy, Debug)]
pub enum Early<'a> {
    /// A fatal alert: the handshake has failed.
    Alert(Alert),
    /// A handshake message that fits into one record. The connection that is taken over then
    /// [counts](RecordLayer::after_early_message) it.
    Message(&'a [u8]),
}

/// Appends the one record that may come before the connection is taken over. False, and nothing done, when the suite or
/// the secret is none of ours.
pub fn seal_early(suite: CipherSuite, server_secret: &[u8], said: Early<'_>, out: &mut Vec<u8>) -> bool {
    let suite = Suite::from_code(u16::from(suite)).filter(|suite| suite.version() == Version::Tls13);
    let Some(suite) = suite.filter(|suite| suite.secret_len() == server_secret.len()) else { return false };
    let (mut key, mut iv) = ([0; 32], [0; NONCE_LEN]);
    let key = &mut key[..suite.key_len()];
    derive(suite, server_secret, key, &mut iv);
    let secrets = DirectionSecrets { secret: server_secret, key, iv: &iv, sequence: 0 };
    let mut records = RecordLayer::new(Role::Server, suite, &secrets, &secrets);
    match said {
        Early::Alert(alert) => records.burst().alert(alert, out),
        Early::Message(message) => records.burst().handshake_message(message, out),
    }
    key.zeroize();
    iv.zeroize();
    true
}

fn decode_direction<'a>(suite: Suite, rest: &mut &'a [u8]) -> Option<DirectionSecrets<'a>> {
    Some(DirectionSecrets {
        secret: rest.split_off(..suite.secret_len())?,
        key: rest.split_off(..suite.key_len())?,
        iv: rest.split_off(..NONCE_LEN)?.try_into().ok()?,
        sequence: Some(u64::from_be_bytes(rest.split_off(..8)?.try_into().ok()?)).filter(|&at| at <= SEQUENCE_MAX)?,
    })
}

/// One direction of what rustls extracted, proven against its traffic secret.
fn take<'a>(
    suite: Suite,
    (sequence, extracted): &'a (u64, ConnectionTrafficSecrets),
    secret: &'a [u8],
) -> Result<DirectionSecrets<'a>, HandoverError> {
    let (aead, key, iv) = match extracted {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Aead::Aes128Gcm, key, iv),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Aead::Aes256Gcm, key, iv),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (Aead::ChaCha20Poly1305, key, iv),
        _ => return Err(HandoverError::Mismatch),
    };
    let (key, iv) = (key.as_ref(), iv.as_ref().try_into().map_err(|_| HandoverError::Mismatch)?);
    let fits = aead == suite.aead() && key.len() == suite.key_len() && secret.len() == suite.secret_len();
    if !fits || (suite.version() == Version::Tls13 && !leads_to(suite, secret, key, iv)) {
        return Err(HandoverError::Mismatch);
    }
    Ok(DirectionSecrets { secret, key, iv, sequence: *sequence })
}

/// Whether `secret` is the traffic secret of this key and iv.
fn leads_to(suite: Suite, secret: &[u8], key: &[u8], iv: &[u8; NONCE_LEN]) -> bool {
    let (mut derived_key, mut derived_iv) = ([0; 32], [0; NONCE_LEN]);
    let derived = &mut derived_key[..suite.key_len()];
    derive(suite, secret, derived, &mut derived_iv);
    let same = *derived == *key && derived_iv == *iv;
    derived_key.zeroize();
    derived_iv.zeroize();
    same
}

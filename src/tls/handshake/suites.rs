//! The server's cipher suites: those of the library, in our order, and with ticket nonces that every client can keep.
//!
//! rustls draws 32 bytes for `ticket_nonce` (RFC 8446 section 4.6.1). The RFC allows up to 255; wolfSSL, which runs on
//! very many devices, keeps 8 and fails. All that the nonce is for is that two tickets of one connection differ, and we
//! send one. It goes into one derivation only, so that is where a short one takes its place; the ticket's message
//! itself is ours (`tickets.rs`).

use std::sync::LazyLock;

use rustls::crypto::tls13::{Hkdf, HkdfExpander, OkmBlock, OutputLengthError};
use rustls::crypto::{ActiveKeyExchange, CipherSuiteCommon, CryptoProvider, aws_lc_rs, hmac};
use rustls::{Error, SupportedCipherSuite, Tls13CipherSuite};

use super::scope;

/// The nonce of every ticket. As long as OpenSSL's.
pub(super) const TICKET_NONCE: [u8; 8] = [0; 8];

/// The label of the derivation that a ticket's nonce goes into.
const RESUMPTION: &[u8] = b"resumption";

/// All suites of the library, those that hash with SHA-256 first.
pub(super) fn server_provider() -> CryptoProvider {
    static TLS13: LazyLock<Vec<Tls13CipherSuite>> = LazyLock::new(|| {
        let suites = aws_lc_rs::ALL_CIPHER_SUITES.iter();
        suites.filter_map(SupportedCipherSuite::tls13).map(with_short_nonce).collect()
    });
    let mut provider = aws_lc_rs::default_provider();
    for suite in &mut provider.cipher_suites {
        if let Some(ours) = TLS13.iter().find(|ours| ours.common.suite == suite.suite()) {
            *suite = SupportedCipherSuite::Tls13(ours);
        }
    }
    provider.cipher_suites.sort_by_key(hash_bytes);
    provider
}

/// The length of a suite's hash. The key schedule of TLS 1.3 hashes some thirty times in a handshake; processors have
/// instructions for SHA-256 and none for SHA-384, which costs a fifth of the whole handshake.
fn hash_bytes(suite: &SupportedCipherSuite) -> usize {
    let common = match suite {
        SupportedCipherSuite::Tls12(suite) => &suite.common,
        SupportedCipherSuite::Tls13(suite) => &suite.common,
    };
    common.hash_provider.output_len()
}

/// The library's suites live for as long as the program, and so do ours: made once.
fn with_short_nonce(suite: &'static Tls13CipherSuite) -> Tls13CipherSuite {
    Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: suite.common.suite,
            hash_provider: suite.common.hash_provider,
            confidentiality_limit: suite.common.confidentiality_limit,
        },
        hkdf_provider: Box::leak(Box::new(ShortNonce(suite.hkdf_provider))),
        aead_alg: suite.aead_alg,
        quic: None,
    }
}

/// The library's key schedule, but for the nonce of a ticket.
struct ShortNonce(&'static dyn Hkdf);

impl Hkdf for ShortNonce {
    fn extract_from_zero_ikm(&self, salt: Option<&[u8]>) -> Box<dyn HkdfExpander> {
        self.0.extract_from_zero_ikm(salt)
    }

    fn extract_from_secret(&self, salt: Option<&[u8]>, secret: &[u8]) -> Box<dyn HkdfExpander> {
        self.0.extract_from_secret(salt, secret)
    }

    fn extract_from_kx_shared_secret(
        &self,
        salt: Option<&[u8]>,
        kx: Box<dyn ActiveKeyExchange>,
        peer_pub_key: &[u8],
    ) -> Result<Box<dyn HkdfExpander>, Error> {
        self.0.extract_from_kx_shared_secret(salt, kx, peer_pub_key)
    }

    fn expander_for_okm(&self, okm: &OkmBlock) -> Box<dyn HkdfExpander> {
        Box::new(ShortNonceExpander(self.0.expander_for_okm(okm)))
    }

    fn hmac_sign(&self, key: &OkmBlock, message: &[u8]) -> hmac::Tag {
        self.0.hmac_sign(key, message)
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

struct ShortNonceExpander(Box<dyn HkdfExpander>);

impl HkdfExpander for ShortNonceExpander {
    fn expand_slice(&self, info: &[&[u8]], output: &mut [u8]) -> Result<(), OutputLengthError> {
        self.0.expand_slice(info, output)
    }

    fn expand_block(&self, info: &[&[u8]]) -> OkmBlock {
        // | length | label's length | "tls13 " | label | nonce's length | nonce |
        match info {
            [length, label_length, prefix, label, _, _] if *label == RESUMPTION => {
                scope::note_ticket_secret();
                let nonce_length = [TICKET_NONCE.len() as u8];
                self.0.expand_block(&[length, label_length, prefix, label, &nonce_length, &TICKET_NONCE])
            }
            _ => self.0.expand_block(info),
        }
    }

    fn hash_len(&self) -> usize {
        self.0.hash_len()
    }
}

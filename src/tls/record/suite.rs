//! What a handshake agreed on: who is who, which version, which suite, and the sizes and limits that follow.

use std::fmt;

use aws_lc_rs::{aead, hkdf};

use super::keys::SEQUENCE_MAX;

/// Which end of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We opened the connection.
    Client,
    /// The peer did.
    Server,
}

/// The protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

impl Version {
    /// `TLSv1.2` or `TLSv1.3`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Version::Tls12 => "TLSv1.2",
            Version::Tls13 => "TLSv1.3",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

macro_rules! suites {
    ($($variant:ident = $number:literal, $code:literal, $name:literal, $version:ident, $aead:ident, $hash:ident;)+) => {
        /// A cipher suite. Its version is part of it, and for TLS 1.2 the kind of the server's certificate.
        ///
        /// The numbers go over the wire when a connection moves between processes: never reuse one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Suite { $(#[doc = concat!("`", $name, "`.")] $variant = $number,)+ }

        impl Suite {
            /// Every suite.
            pub const ALL: &'static [Suite] = &[$(Suite::$variant,)+];

            /// The suite of this number (not its IANA code), if there is one.
            pub(super) const fn from_number(number: u8) -> Option<Suite> {
                match number { $($number => Some(Suite::$variant),)+ _ => None }
            }

            /// The suite's code in the IANA registry.
            #[must_use]
            pub const fn code(self) -> u16 { match self { $(Suite::$variant => $code,)+ } }

            /// The suite's name in the IANA registry.
            #[must_use]
            pub const fn name(self) -> &'static str { match self { $(Suite::$variant => $name,)+ } }

            /// The version that the suite belongs to.
            #[must_use]
            pub const fn version(self) -> Version { match self { $(Suite::$variant => Version::$version,)+ } }

            pub(super) const fn aead(self) -> Aead { match self { $(Suite::$variant => Aead::$aead,)+ } }

            pub(super) const fn hash(self) -> Hash { match self { $(Suite::$variant => Hash::$hash,)+ } }
        }
    };
}

suites! {
    Tls13Aes128GcmSha256 = 1, 0x1301, "TLS_AES_128_GCM_SHA256",
        Tls13, Aes128Gcm, Sha256;
    Tls13Aes256GcmSha384 = 2, 0x1302, "TLS_AES_256_GCM_SHA384",
        Tls13, Aes256Gcm, Sha384;
    Tls13ChaCha20Poly1305Sha256 = 3, 0x1303, "TLS_CHACHA20_POLY1305_SHA256",
        Tls13, ChaCha20Poly1305, Sha256;
    EcdheEcdsaAes128GcmSha256 = 4, 0xc02b, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        Tls12, Aes128Gcm, Sha256;
    EcdheEcdsaAes256GcmSha384 = 5, 0xc02c, "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        Tls12, Aes256Gcm, Sha384;
    EcdheEcdsaChaCha20Poly1305Sha256 = 6, 0xcca9, "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        Tls12, ChaCha20Poly1305, Sha256;
    EcdheRsaAes128GcmSha256 = 7, 0xc02f, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        Tls12, Aes128Gcm, Sha256;
    EcdheRsaAes256GcmSha384 = 8, 0xc030, "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
        Tls12, Aes256Gcm, Sha384;
    EcdheRsaChaCha20Poly1305Sha256 = 9, 0xcca8, "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        Tls12, ChaCha20Poly1305, Sha256;
}

/// The algorithm that protects the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aead {
    Aes128Gcm,
    Aes256Gcm,
    ChaCha20Poly1305,
}

/// The hash behind the key schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha384,
}

impl Hash {
    pub(super) fn hkdf(self) -> hkdf::Algorithm {
        match self {
            Hash::Sha256 => hkdf::HKDF_SHA256,
            Hash::Sha384 => hkdf::HKDF_SHA384,
        }
    }
}

impl Suite {
    /// The suite with this IANA code, if it is one of ours.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Suite> {
        Self::ALL.iter().copied().find(|suite| suite.code() == code)
    }

    pub(super) fn algorithm(self) -> &'static aead::Algorithm {
        match self.aead() {
            Aead::Aes128Gcm => &aead::AES_128_GCM,
            Aead::Aes256Gcm => &aead::AES_256_GCM,
            Aead::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }

    /// Bytes in a record key.
    pub(super) const fn key_len(self) -> usize {
        match self.aead() {
            Aead::Aes128Gcm => 16,
            Aead::Aes256Gcm | Aead::ChaCha20Poly1305 => 32,
        }
    }

    /// Bytes in a traffic secret; TLS 1.2 has none, its keys live as long as the connection.
    pub(super) const fn secret_len(self) -> usize {
        match (self.version(), self.hash()) {
            (Version::Tls12, _) => 0,
            (Version::Tls13, Hash::Sha256) => 32,
            (Version::Tls13, Hash::Sha384) => 48,
        }
    }

    /// Whether each record carries eight bytes of its nonce (TLS 1.2 with AES-GCM, RFC 5288 section 3).
    pub(super) const fn has_explicit_nonce(self) -> bool {
        matches!((self.version(), self.aead()), (Version::Tls12, Aead::Aes128Gcm | Aead::Aes256Gcm))
    }

    /// Records that may be sealed under one key.
    ///
    /// RFC 8446 5.5: for AES-GCM up to 2^24.5 full-size records keep a safety margin of 2^-57; we stop at 2^24, in TLS
    /// 1.2 too. "For ChaCha20/Poly1305, the record sequence number would wrap before the safety limit is reached", and
    /// 5.3: sequence numbers "MUST NOT wrap".
    pub(super) const fn records_per_key(self) -> u64 {
        match self.aead() {
            Aead::Aes128Gcm | Aead::Aes256Gcm => 1 << 24,
            Aead::ChaCha20Poly1305 => SEQUENCE_MAX,
        }
    }
}

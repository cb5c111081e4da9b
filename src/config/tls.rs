//! `[listener.tls]`: with which certificates, for whom, and for how long.

use std::path::PathBuf;
use std::time::Duration;

/// `[listener.tls]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// At least one certificate chain with its key; by SNI, the first one also for clients that send none.
    pub certificates: Vec<CertificateFiles>,
    /// The authorities that client certificates are checked against; present unless `client_auth` is off.
    pub client_ca: Option<PathBuf>,
    /// Whether client certificates are asked for.
    pub client_auth: ClientAuth,
    /// The revocation lists of client certificates.
    pub crl: Option<Crl>,
    /// What becomes of a live connection whose certificate was revoked.
    pub on_revoked: WhenOver,
    /// What becomes of a live connection whose certificate ends.
    pub on_expired: WhenOver,
    /// The protocol versions that are spoken.
    pub versions: TlsVersions,
    /// The longest record, with all that stands around its plaintext, for a client that wished for nothing smaller.
    pub record_bytes: usize,
    /// How sessions are resumed; none: not at all.
    pub tickets: Option<Tickets>,
    /// The longest that a connection lives, if it is bounded: it ends somewhere in the last tenth before.
    pub max_connection_age: Option<Duration>,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            certificates: Vec::new(),
            client_ca: None,
            client_auth: ClientAuth::Off,
            crl: None,
            on_revoked: WhenOver::Close,
            on_expired: WhenOver::Keep,
            versions: TlsVersions::Both,
            record_bytes: RECORD_BYTES,
            tickets: Some(Tickets::default()),
            max_connection_age: None,
        }
    }
}

/// A whole record fits 4 KB: a small device may have no room for more.
const RECORD_BYTES: usize = 4_096;

/// `[listener.tls.crl]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crl {
    /// PEM files, each with at least one list.
    pub files: Vec<PathBuf>,
    /// Whether a list that should have been renewed still counts.
    pub accept_expired: bool,
    /// Whether a certificate that no list is about gets in.
    pub accept_unknown: bool,
    /// Whether the device's own certificate alone is looked up.
    pub leaf_only: bool,
}

/// What becomes of a live connection whose certificate holds no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenOver {
    /// It is closed.
    Close,
    /// It lives on until it ends for another reason.
    Keep,
}

/// The protocol versions that are spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersions {
    /// TLS 1.2 and 1.3.
    Both,
    /// TLS 1.2 alone.
    Tls12,
    /// TLS 1.3 alone.
    Tls13,
}

/// How sessions are resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tickets {
    /// From the full handshake on.
    pub lifetime: Duration,
    /// Keys that a fleet of gateways shares; none: keys of one's own.
    pub keys: Option<PathBuf>,
}

impl Default for Tickets {
    fn default() -> Self {
        Self { lifetime: Duration::from_hours(12), keys: None }
    }
}

/// A PEM certificate chain and its PEM private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, leaf first.
    pub cert: PathBuf,
    /// The leaf's private key (PKCS#8, SEC1 or PKCS#1).
    pub key: PathBuf,
    /// An OCSP response (DER) that is shown with it.
    pub ocsp: Option<PathBuf>,
}

/// Whether client certificates are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Not asked for.
    Off,
    /// Asked for; one that is sent must be right.
    Optional,
    /// A connection without a right one is refused.
    Required,
}

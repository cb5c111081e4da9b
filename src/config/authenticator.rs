//! `[[listener.authenticator]]`: who is asked whether a device may come in, in order; the first that applies decides.

use std::path::PathBuf;
use std::time::Duration;

use crate::codec::mqtt::topic;

/// Authenticators of one listener: one of each kind.
pub const AUTHENTICATORS_MAX: usize = 4;

/// One way to prove who one is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authenticator {
    /// A client certificate that names the device. Applies to whoever has one.
    Certificate,
    /// A token file (native) or password file (MQTT). Applies to the names in it, and to whoever has a name if it is the
    /// last in the list.
    Secrets(Secrets),
    /// JSON Web Tokens. Applies to whatever looks like one.
    Jwt(Box<Jwt>),
    /// An HTTP service that is asked. Applies to everybody.
    Hook(Box<Hook>),
}

impl Authenticator {
    /// A file of secrets, which the configuration names by this key of the listener.
    #[must_use]
    pub fn secrets(file: PathBuf, key: impl Into<String>) -> Self {
        Self::Secrets(Secrets { file, key: key.into() })
    }

    /// The word used in the configuration.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Authenticator::Certificate => "certificate",
            Authenticator::Secrets(_) => "secrets",
            Authenticator::Jwt(_) => "jwt",
            Authenticator::Hook(_) => "hook",
        }
    }
}

/// A file with lines `name:argon2-hash`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secrets {
    /// Where it is.
    pub file: PathBuf,
    /// The key of the listener that names it.
    pub key: String,
}

/// How JSON Web Tokens are verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwt {
    /// The index in the list.
    pub position: usize,
    /// Where the keys come from.
    pub keys: KeySource,
    /// The algorithm of RSA keys that say none themselves; every other key has one.
    pub rsa: RsaAlgorithm,
    /// Who must have issued it (`iss`); empty: whoever has the key.
    pub issuer: String,
    /// For whom it must be (`aud`), one of these; empty: for anybody.
    pub audience: Vec<String>,
    /// How far the clocks may be apart.
    pub leeway: Duration,
    /// Where in it the device's id is: the name of a claim, or a JSON pointer.
    pub device_claim: String,
    /// Where the filters are that the device may publish to; None: the listener's rules hold.
    pub publish_claim: Option<String>,
    /// Where the filters are that it may subscribe to.
    pub subscribe_claim: Option<String>,
}

/// Where the keys come from that tokens are checked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A PEM file with public keys, or a JWKS file.
    File(PathBuf),
    /// A JWKS that is fetched, and again after `refresh`; the last good one is kept.
    Url {
        /// From where.
        endpoint: Endpoint,
        /// How often.
        refresh: Duration,
    },
}

/// The algorithm of an RSA key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RsaAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// The same with SHA-384.
    Rs384,
    /// The same with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// The same with SHA-384.
    Ps384,
    /// The same with SHA-512.
    Ps512,
}

/// An HTTP service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `http://` or `https://`.
    pub url: String,
    /// The authorities that its certificate is checked against; present with `https://`.
    pub ca: Option<PathBuf>,
}

/// An HTTP service that is asked about devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The index in the list.
    pub position: usize,
    /// Who is asked.
    pub endpoint: Endpoint,
    /// A file with the token that the gateway shows to it.
    pub bearer_file: Option<PathBuf>,
    /// How long one question may take.
    pub timeout: Duration,
    /// Questions under way at a time.
    pub in_flight: usize,
    /// Devices that may wait for their question.
    pub waiting: usize,
    /// For how long a yes holds without asking again; 0: never.
    pub cache: Duration,
    /// For how long a no does.
    pub cache_denied: Duration,
    /// Bytes that answers which are kept may take.
    pub cache_bytes: usize,
    /// With [`OnError::AllowCached`]: for how long a yes serves while the service does not answer.
    pub stale: Duration,
    /// What becomes of a device while it does not.
    pub on_error: OnError,
}

/// What becomes of a device while the hook does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnError {
    /// It is told to come again.
    Deny,
    /// If the last answer about the same credentials was yes and is not too old, it comes in; others are told to come again.
    AllowCached,
}

/// Bytes of all answers that hooks of these lists keep, at most.
#[must_use]
pub fn cache_bytes<'a>(authenticators: impl Iterator<Item = &'a Authenticator>) -> u64 {
    let bytes = |one: &Authenticator| match one {
        Authenticator::Hook(hook) => hook.cache_bytes as u64,
        _ => 0,
    };
    authenticators.map(bytes).sum()
}

/// Whether this can be a rule about topics: a plain topic filter, in which `{device}` stands for the device's id.
#[must_use]
pub fn is_topic_rule(rule: &str) -> bool {
    let plain = rule.replace("{device}", "x");
    !plain.contains(['{', '}']) && topic::is_topic_filter(&plain) && topic::shared(&plain).is_none()
}

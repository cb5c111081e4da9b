//! `[admin]`: where the HTTP API listens, over what, and who may ask it what.

use super::Secret;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The control plane's HTTP listener.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The bearer tokens of which requests must carry one; some when `listen` is not a loopback address. Names and secrets
    /// are unique.
    pub tokens: Vec<AdminToken>,
    /// The files that they were read from.
    pub token_files: Vec<PathBuf>,
    /// Names under which the API answers besides addresses, loopback names and the node's name.
    pub hosts: Vec<String>,
    /// What it is spoken over; none: plain HTTP.
    pub tls: Option<AdminTls>,
}

/// `[admin.tls]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminTls {
    /// A PEM file with the certificate chain, leaf first.
    pub cert: PathBuf,
    /// A PEM file with its key.
    pub key: PathBuf,
    /// The authorities of whoever may ask: every connection must show a certificate of theirs. None: nobody is asked for one.
    pub client_ca: Option<PathBuf>,
}

/// One bearer token of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminToken {
    /// Who holds it, for the log.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// The token.
    pub secret: Secret,
}

/// What a token of the API allows; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// To look, at metrics and messages too.
    Read,
    /// To say something to devices, to publish, and to end connections.
    Command,
    /// To change the gateway itself.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 3] = [Role::Read, Role::Command, Role::Admin];

    /// The word used in the configuration, the API and the log.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Role::Read => "read",
            Role::Command => "command",
            Role::Admin => "admin",
        }
    }
}

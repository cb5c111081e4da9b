//! How a device's id was learned, and the id that a client certificate names.

use super::{ListenerSettings, Termination};
use crate::codec::native;
use crate::config::IdentityFrom;
use crate::link::CloseReason;
use crate::tls::certs::PeerIdentity;

/// How the device's id was learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// By the listener's rule, or from HELLO.
    Rule(IdentityFrom),
    /// The gateway made it up.
    Generated,
    /// What the device proved itself by names it.
    Granted,
}

impl Naming {
    /// Whether a client certificate names the device, or should have.
    pub(super) const fn is_by_certificate(self) -> bool {
        use IdentityFrom::{CertCn, CertSanDns, CertSanUri};
        matches!(self, Naming::Rule(CertCn | CertSanDns | CertSanUri))
    }

    /// As it is called to people.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Naming::Rule(from) => from.label(),
            Naming::Generated => "generated",
            Naming::Granted => "granted",
        }
    }

    /// In an image.
    pub(super) const fn code(self) -> u8 {
        match self {
            Naming::Generated => 0,
            Naming::Granted => 7,
            Naming::Rule(IdentityFrom::Hello) => 1,
            Naming::Rule(IdentityFrom::CertCn) => 2,
            Naming::Rule(IdentityFrom::CertSanDns) => 3,
            Naming::Rule(IdentityFrom::CertSanUri) => 4,
            Naming::Rule(IdentityFrom::ClientId) => 5,
            Naming::Rule(IdentityFrom::Username) => 6,
        }
    }

    pub(super) const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Naming::Generated,
            1 => Naming::Rule(IdentityFrom::Hello),
            2 => Naming::Rule(IdentityFrom::CertCn),
            3 => Naming::Rule(IdentityFrom::CertSanDns),
            4 => Naming::Rule(IdentityFrom::CertSanUri),
            5 => Naming::Rule(IdentityFrom::ClientId),
            6 => Naming::Rule(IdentityFrom::Username),
            7 => Naming::Granted,
            _ => return None,
        })
    }
}

/// The id that the listener's rule finds in the client certificate; `Ok(None)`: the rule is about something else.
pub(super) fn name_by_certificate(
    settings: &ListenerSettings,
    peer: Option<&PeerIdentity>,
) -> Result<Option<Box<str>>, Termination> {
    let name = match (settings.identity, peer) {
        (IdentityFrom::Hello | IdentityFrom::ClientId | IdentityFrom::Username, _) => return Ok(None),
        (_, None) => None,
        (IdentityFrom::CertCn, Some(peer)) => peer.common_name.as_deref(),
        (IdentityFrom::CertSanDns, Some(peer)) => peer.dns_names.first().map(|name| &**name),
        (IdentityFrom::CertSanUri, Some(peer)) => peer.uris.first().map(|name| &**name),
    };
    match name {
        Some(name) if native::is_id(name) => Ok(Some(name.into())),
        Some(_) => Err(Termination::because(
            CloseReason::IdentityMissing,
            "the name in the client certificate is not a device id: 1 to 128 bytes without control characters",
        )),
        None => Err(Termination::because(
            CloseReason::IdentityMissing,
            format!("no client certificate with a name for the rule {}", settings.identity.label()),
        )),
    }
}

//! `[listener.identity]`: how a device says who it is, and how that is proven.

use super::authenticator::{self, Authenticator, Hook, Jwt};

/// `[listener.identity]`.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Where a device's id comes from.
    pub from: IdentityFrom,
    /// Who is asked, in order; the first that applies decides. Empty: nobody, and whoever TLS lets in comes in. `token_file`
    /// and `password_file` are a list of one.
    pub authenticators: Vec<Authenticator>,
}

impl Identity {
    /// The file of tokens or passwords, if there is one.
    #[must_use]
    pub fn secrets(&self) -> Option<&authenticator::Secrets> {
        self.authenticators.iter().find_map(|one| match one {
            Authenticator::Secrets(secrets) => Some(secrets),
            _ => None,
        })
    }

    /// How tokens are verified, if they are.
    #[must_use]
    pub fn jwt(&self) -> Option<&Jwt> {
        self.authenticators.iter().find_map(|one| match one {
            Authenticator::Jwt(jwt) => Some(&**jwt),
            _ => None,
        })
    }

    /// The HTTP service that is asked, if there is one.
    #[must_use]
    pub fn hook(&self) -> Option<&Hook> {
        self.authenticators.iter().find_map(|one| match one {
            Authenticator::Hook(hook) => Some(&**hook),
            _ => None,
        })
    }
}

/// Where a device's id comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityFrom {
    /// The device says it (native only).
    Hello,
    /// The client identifier in CONNECT (MQTT only).
    ClientId,
    /// The user name in CONNECT, which the client identifier must equal or leave empty (MQTT only).
    Username,
    /// The common name of the client certificate's subject. On a raw listener, connections without a certificate get a
    /// generated id.
    CertCn,
    /// The first DNS name of the client certificate's subject alternative names.
    CertSanDns,
    /// The first URI of the client certificate's subject alternative names.
    CertSanUri,
}

impl IdentityFrom {
    /// The word used in the configuration and the API.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            IdentityFrom::Hello => "hello",
            IdentityFrom::ClientId => "client-id",
            IdentityFrom::Username => "username",
            IdentityFrom::CertCn => "cert-cn",
            IdentityFrom::CertSanDns => "cert-san-dns",
            IdentityFrom::CertSanUri => "cert-san-uri",
        }
    }
}

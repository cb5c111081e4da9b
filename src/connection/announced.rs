//! Behind a proxy: whose connection this is. One that passes TLS on says so before it (`codec::proxy`), one that opens it in the
//! request for a WebSocket (X-Forwarded-For). Only a trusted proxy is listened to, and it must say something.

use std::net::SocketAddr;

use super::{Connection, Input, State, Termination};
use crate::codec::proxy::{self, Header, Proxied};
use crate::link::CloseReason;

/// Whether a proxy is still to announce a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announcement {
    /// No: the peer is who it is, or was announced.
    Complete,
    /// Yes: nothing else may come first.
    Expected,
    /// Yes, in the request for a WebSocket.
    Forwarded,
    /// The proxy speaks for itself, or for nobody that it could name: it may only look whether somebody is here.
    Check,
}

/// What a trusted proxy says of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// Where the device is.
    pub source: Option<SocketAddr>,
    /// The address that it had connected to.
    pub destination: Option<SocketAddr>,
    /// The server name that it asked the proxy for.
    pub authority: Option<Box<str>>,
    /// The Common Name of a client certificate that the proxy has verified. It names nobody here: the device's own TLS does.
    pub common_name: Option<Box<str>>,
    /// The protocol that it agreed on with the proxy.
    pub alpn: Option<Box<[u8]>>,
}

/// What came of looking for an announcement.
#[derive(Debug)]
pub enum Announcing {
    /// It is not all there: the connection waits for bytes, and has no place.
    Partial,
    /// TLS may begin. A device was announced now; `None`: none had to be, or the proxy speaks for itself.
    Complete(Option<Box<Announced>>),
    /// It is none: the connection ends.
    Wrong(Termination),
}

impl From<Proxied<'_>> for Announced {
    fn from(proxied: Proxied<'_>) -> Self {
        let verified = proxied.ssl.filter(|ssl| ssl.is_verified);
        Self {
            source: proxied.source,
            destination: proxied.destination,
            authority: proxied.authority.map(Into::into),
            common_name: verified.and_then(|ssl| ssl.common_name).map(Into::into),
            alpn: proxied.alpn.map(Into::into),
        }
    }
}

impl Connection {
    /// It comes from a trusted proxy, which says whose connection it is.
    pub fn expect_announcement(&mut self, announcement: Announcement) {
        assert!(self.is_accepted());
        self.announcement = announcement;
    }

    /// Whether a proxy made it for itself, to see whether somebody is here, as far as is known.
    #[must_use]
    pub fn is_proxy_check(&self) -> bool {
        matches!(self.announcement, Announcement::Check | Announcement::Forwarded)
    }

    /// Looks for the header in front of the first record, when it is the connection's turn.
    pub fn handle_announcement(&mut self, input: &mut Input) -> Announcing {
        assert!(self.is_called());
        if self.announcement != Announcement::Expected {
            return Announcing::Complete(None);
        }
        let (announced, length) = match proxy::decode(input.cipher()) {
            Ok(Some((Header::Proxied(proxied), length))) if proxied.source.is_some() => {
                (Some(Box::new(Announced::from(proxied))), length)
            }
            // Of its own, or of nobody that it could name: version 1 has no other word for a check.
            Ok(Some((Header::Local | Header::Proxied(_), length))) => (None, length),
            Ok(None) => {
                self.state = State::Accepted;
                return Announcing::Partial;
            }
            Err(error) => return Announcing::Wrong(Termination::from_error(CloseReason::ProxyHeader, &error)),
        };
        input.skip_record(length);
        self.announcement = if announced.is_some() { Announcement::Complete } else { Announcement::Check };
        Announcing::Complete(announced)
    }
}

//! The handshake: all of rustls behind one type, for both roles.
//!
//! ```text
//!  server(tls) / client(tls, out)
//!      |
//!      v        one whole record in, answers out
//!  handle_record --> Continue --.
//!      |  ^---------------------'
//!      |  '--> HandshakeError, its alert in `out`
//!      v
//!     Done ------> finish --> Established: plain data; rustls and all its buffers are gone
//! ```
//! rustls must be fed exactly one record at a time, and nothing after `Done`: what it has decrypted when its secrets
//! are taken is lost, silently, although the sequence number counts it. The caller keeps the bytes, cuts the records,
//! and whatever follows the last one belongs to the record layer.

mod client;
mod error;
mod hello;
mod scope;
mod self_test;
mod server;
mod suites;
mod tickets;
mod verifier;

#[cfg(test)]
mod tests;

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustls::{ClientConnection, Connection, HandshakeKind, ServerConnection};
use zeroize::Zeroizing;

pub use client::{ClientOptions, ClientResumption, ClientTls, Roots, Versions};
pub use error::{CertificateFault, Choice, Detail, HandshakeError};
pub use hello::{HELLO_BYTES_MAX, Hello, RecordWish, Wishes, scan};
pub use self_test::{SelfTestError, self_test};
pub use server::{ClientAuth, RevocationOptions, ServerOptions, ServerTls, TICKET_LIFETIME, TicketOptions, TlsPolicy};

use super::certs::{CertificateFacts, Leaf, PeerIdentity, Validity};
use super::record::{self, Alert, Early, HEADER_LEN, RecordLayer, Role, TrafficSecrets, Version};
use scope::{Captured, CapturedSecrets, Origin};

/// The most bytes that a client may send behind its ClientHello until the handshake is done: its certificates, above all.
pub const FLIGHT_BYTES_MAX: usize = 16 * 1024;

/// One handshake in progress: about 2 KB, and up to 10 KB with what rustls allocates while it runs.
pub struct Handshake {
    connection: Connection,
    side: Side,
    /// TLS 1.3: present from the moment that rustls made them.
    traffic: Option<CapturedSecrets>,
    /// TLS 1.3, server: what the ticket is to hold.
    session: Option<Zeroizing<Vec<u8>>>,
    /// Which full handshake this one goes back to.
    origin: Origin,
    /// Which certificate was refused, in words.
    refused: Option<Box<str>>,
    /// TLS 1.3, server: our ticket is on its way.
    has_sent_ticket: bool,
    /// Bytes that were handed in.
    received: usize,
    /// Whether a record was handed in.
    is_begun: bool,
    /// Whether `Done` was told.
    is_done: bool,
}

enum Side {
    Server {
        policy: Arc<TlsPolicy>,
        wish: RecordWish,
    },
    Client {
        tls: ClientTls,
        /// What came while a ticket was waited for.
        early_plaintext: Vec<u8>,
    },
}

/// How far a handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// The next record is needed.
    Continue,
    /// [`Handshake::finish`] is next; the handshake takes no further record.
    Done,
}

/// A connection whose handshake is over.
#[derive(Debug)]
pub struct Established {
    /// What protects everything from now on.
    pub records: RecordLayer,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
    /// The name that the client asked for (SNI), in lower case. Server role only.
    pub server_name: Option<Box<str>>,
    /// The application protocol that was agreed on, as its position in the `alpn` option.
    pub alpn: Option<u8>,
    /// The key exchange group's IANA number; none in a resumed TLS 1.2 handshake, which has no key exchange.
    pub key_exchange: Option<u16>,
    /// The names in the client's certificate, which was verified now or, when resumed, in the handshake before.
    /// Server role only.
    pub peer: Option<PeerIdentity>,
    /// What tells that certificate from all others. Server role only.
    pub certificate: Option<CertificateFacts>,
    /// Application data that came before the ticket that a client waited for, in order before anything that
    /// `records` opens. Empty in all other cases.
    pub early_plaintext: Vec<u8>,
}

impl Handshake {
    /// Answers a client: its first record is awaited. `wish` is what it said of its records ([`scan`]).
    #[must_use]
    pub fn server(tls: &ServerTls, wish: RecordWish) -> Self {
        let policy = tls.policy();
        let connection = ServerConnection::new(policy.config(wish));
        let connection = connection.expect("fails for record sizes that are never configured");
        Self::new(Connection::Server(connection), Side::Server { policy, wish })
    }

    /// Opens a connection: the ClientHello is appended to `out`.
    ///
    /// # Errors
    /// [`HandshakeError::Internal`] when there is no randomness, or no key exchange group for any offered suite.
    pub fn client(tls: &ClientTls, out: &mut Vec<u8>) -> Result<Self, HandshakeError> {
        let connection = ClientConnection::new(tls.config.clone(), tls.server_name.clone())?;
        let side = Side::Client { tls: tls.clone(), early_plaintext: Vec::new() };
        let mut handshake = Self::new(Connection::Client(connection), side);
        handshake.drain_output(out);
        Ok(handshake)
    }

    fn new(connection: Connection, side: Side) -> Self {
        Self {
            connection,
            side,
            traffic: None,
            session: None,
            origin: Origin::default(),
            refused: None,
            has_sent_ticket: false,
            received: 0,
            is_begun: false,
            is_done: false,
        }
    }

    /// Handles exactly one whole record, header included, and appends what there is to say to `out`: after an error
    /// too, when it is the alert that tells the peer.
    ///
    /// # Errors
    /// [`HandshakeError`]; the handshake is over.
    ///
    /// # Panics
    /// When it was `Done` before.
    pub fn handle_record(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        assert!(!self.is_done, "a record after the handshake belongs to the record layer");
        let answer_start = out.len();
        let is_first = !std::mem::replace(&mut self.is_begun, true);
        let handled = self.process(record, out);
        if let Err(error) = &handled
            && (is_first || self.is_server())
            && out.len() == answer_start
            && let Some(alert) = error.fallback_alert()
        {
            // rustls said nothing.
            self.refuse(alert, out);
        }
        self.is_done = handled == Ok(Progress::Done);
        if self.is_done {
            self.has_sent_ticket = self.send_ticket(out);
        }
        handled
    }

    /// Ends a handshake whose peer sent what is no record: appends the alert in the form that the peer expects now. A
    /// server's TLS 1.3 is protected as soon as its first flight is out (RFC 8446 section 6); all else that a server says
    /// before the handshake is over is not.
    pub fn refuse(&mut self, alert: Alert, out: &mut Vec<u8>) {
        let suite = self.connection.negotiated_cipher_suite();
        match (&self.traffic, suite) {
            (Some(traffic), Some(suite)) if self.is_server() => {
                record::seal_early(suite.suite(), traffic.server(), Early::Alert(alert), out);
            }
            _ => record::plaintext_alert(alert, out),
        }
    }

    /// Which certificate of the peer's was refused: its names, its serial number, its issuer.
    #[must_use]
    pub fn refused_certificate(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    fn is_server(&self) -> bool {
        matches!(self.side, Side::Server { .. })
    }

    fn process(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<Progress, HandshakeError> {
        if !is_one_record(record) {
            return Err(HandshakeError::peer_did("not one whole record"));
        }
        self.received += record.len();
        if self.is_server() && self.received > HELLO_BYTES_MAX + FLIGHT_BYTES_MAX {
            return Err(HandshakeError::peer_did("more than 32 KB before the end of its handshake"));
        }
        let connection = &mut self.connection;
        let (processed, captured) = scope::capture(self.origin, || feed(connection, record));
        self.keep(captured);
        self.drain_output(out);
        let io = processed?;
        if io.peer_has_closed() {
            return Err(HandshakeError::PeerClosed);
        }
        self.take_plaintext(io.plaintext_bytes_to_read())?;
        Ok(if self.is_complete() && !self.awaits_ticket() { Progress::Done } else { Progress::Continue })
    }

    fn keep(&mut self, captured: Captured) {
        if captured.traffic.is_some() {
            assert!(self.traffic.is_none(), "a connection has one pair of first traffic secrets");
            self.traffic = captured.traffic;
        }
        self.session = captured.session.or(self.session.take());
        self.refused = captured.refused.or(self.refused.take());
        self.origin = captured.origin;
    }

    /// Whether both sides have proven themselves. A client that is told [`ClientResumption::AwaitTicket`] is not
    /// `Done` with that, but may already [`finish`](Self::finish) if it no longer wants to wait.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.connection.is_handshaking()
    }

    /// Takes what the handshake brought, and drops rustls with all its buffers.
    ///
    /// # Errors
    /// [`HandshakeError::CertificateRejected`] when a client's certificate cannot be read; the alert is appended to
    /// `out`. [`HandshakeError::Handover`] when the record layer cannot go on from here.
    ///
    /// # Panics
    /// When the handshake is not complete.
    pub fn finish(self, out: &mut Vec<u8>) -> Result<Established, HandshakeError> {
        assert!(self.is_complete(), "an unfinished handshake has no secrets");
        let Handshake { connection, side, traffic, has_sent_ticket, .. } = self;
        let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let key_exchange = connection.negotiated_key_exchange_group().map(|group| group.name().into());
        let alpn = connection.alpn_protocol().map(|agreed| side.alpn_position(agreed));
        let server_name = match &connection {
            Connection::Server(server) => server.server_name().map(Box::from),
            Connection::Client(_) => None,
        };
        let peer = match &side {
            Side::Server { policy, .. } => identify(&connection, policy),
            Side::Client { .. } => Ok(None),
        };
        let role = if matches!(side, Side::Server { .. }) { Role::Server } else { Role::Client };
        let suite = connection.negotiated_cipher_suite().expect("a complete handshake has a suite").suite();
        let extracted = connection.dangerous_extract_secrets().map_err(HandshakeError::internal)?;
        let traffic = traffic.as_ref().map(|both| TrafficSecrets { client: both.client(), server: both.server() });
        let mut records =
            RecordLayer::from_rustls(role, suite, &extracted, traffic).map_err(HandshakeError::Handover)?;
        let peer = peer.map_err(|fault| {
            records.burst().alert(fault.alert(), out);
            HandshakeError::CertificateRejected(fault)
        })?;
        let early_plaintext = match side {
            Side::Server { policy, wish } => {
                let limit = policy.record_limit(wish, records.version());
                records = records.with_record_limit(limit);
                if has_sent_ticket {
                    records = records.after_early_message();
                }
                Vec::new()
            }
            Side::Client { early_plaintext, .. } => early_plaintext,
        };
        let (peer, certificate) = peer.map(|leaf| (leaf.names, leaf.facts)).unzip();
        Ok(Established { records, resumed, server_name, alpn, key_exchange, peer, certificate, early_plaintext })
    }

    /// Sends a TLS 1.3 client its ticket, if it fits into one record of those that the client can take: who has so little
    /// memory has none to put a message together from several.
    fn send_ticket(&self, out: &mut Vec<u8>) -> bool {
        let Side::Server { policy, wish } = &self.side else { return false };
        let (Some(session), Some(ticketer)) = (&self.session, &policy.ticketer) else { return false };
        let (Some(traffic), Some(suite)) = (&self.traffic, self.connection.negotiated_cipher_suite()) else {
            return false;
        };
        let resumed = self.connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let limit = policy.record_limit(*wish, Version::Tls13).bytes();
        let message = ticketer.message(self.origin, resumed, session).filter(|message| message.len() <= limit);
        message
            .is_some_and(|message| record::seal_early(suite.suite(), traffic.server(), Early::Message(&message), out))
    }

    /// Until the first ticket or the first application data, should that come before it.
    fn awaits_ticket(&self) -> bool {
        match (&self.connection, &self.side) {
            (Connection::Client(connection), Side::Client { tls, early_plaintext }) => {
                tls.resumption == ClientResumption::AwaitTicket
                    && connection.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3)
                    && connection.tls13_tickets_received() == 0
                    && early_plaintext.is_empty()
            }
            _ => false,
        }
    }

    /// Keeps what rustls has decrypted: extraction would lose it.
    fn take_plaintext(&mut self, available: usize) -> Result<(), HandshakeError> {
        if available == 0 {
            return Ok(());
        }
        let Side::Client { early_plaintext, .. } = &mut self.side else {
            // A server is done with the record that completes its handshake, and no record is of two types.
            return Err(HandshakeError::peer_did("application data within the handshake"));
        };
        let start = early_plaintext.len();
        early_plaintext.resize(start + available, 0);
        let read = self.connection.reader().read_exact(&mut early_plaintext[start..]);
        read.expect("rustls has as much plaintext as it says");
        Ok(())
    }

    fn drain_output(&mut self, out: &mut Vec<u8>) {
        while self.connection.wants_write() {
            self.connection.write_tls(out).expect("a Vec takes everything");
        }
    }
}

impl Side {
    fn alpn_position(&self, agreed: &[u8]) -> u8 {
        let tls = match self {
            Side::Server { policy, .. } => return policy.alpn_position(agreed),
            Side::Client { tls, .. } => tls,
        };
        let position = tls.config.alpn_protocols.iter().position(|protocol| protocol == agreed);
        position.expect("rustls agrees to nothing that we did not offer") as u8
    }
}

/// Whether the length in the header is that of the slice.
fn is_one_record(record: &[u8]) -> bool {
    let Some((&[_, _, _, high, low], content)) = record.split_first_chunk::<HEADER_LEN>() else { return false };
    content.len() == usize::from(u16::from_be_bytes([high, low]))
}

fn feed(connection: &mut Connection, record: &[u8]) -> Result<rustls::IoState, rustls::Error> {
    let mut rest = record;
    // rustls reads in steps of 4 KiB. It stops early at a record that is longer than any may be, whose header alone
    // it then refuses, and at the end of its 64 KiB for one handshake message.
    while !rest.is_empty() {
        match connection.read_tls(&mut rest) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    let io = connection.process_new_packets()?;
    if rest.is_empty() { Ok(io) } else { Err(rustls::Error::PeerSentOversizedRecord) }
}

/// What the client's certificate says, if it has one.
///
/// A full handshake has verified it just now. A resumed one has taken it from a ticket that is declined when the
/// certificate has ended; the clock is looked at once more, because it may have been between the two looks.
fn identify(connection: &Connection, policy: &TlsPolicy) -> Result<Option<Leaf>, CertificateFault> {
    let Some(certificate) = connection.peer_certificates().and_then(|chain| chain.first()) else { return Ok(None) };
    let leaf = Leaf::from_der(certificate).ok_or(CertificateFault::Unreadable)?;
    if connection.handshake_kind() == Some(HandshakeKind::Resumed) {
        let now = policy.clock.current_time().ok_or(CertificateFault::Other)?;
        match Validity::of(&leaf, UNIX_EPOCH + Duration::from_secs(now.as_secs())) {
            Validity::Valid | Validity::EndsSoon(_) => {}
            Validity::Expired(_) => return Err(CertificateFault::Expired),
            Validity::NotYetValid(_) => return Err(CertificateFault::NotYetValid),
        }
    }
    Ok(Some(leaf))
}

//! What rustls tells our hooks while it handles one record, on its way to the connection that the record was for.
//!
//! rustls calls a configuration's hooks (its key log, its tickets, its verifier) without saying for which connection, on
//! the thread that feeds the connection, within that call. So a thread-local that is empty before every call and
//! emptied after every call can hold only what belongs to the connection that was fed. This is the one thread-local of
//! the data plane; a shared map by client random would be a lock and a leak instead.
//!
//! * Traffic secrets (TLS 1.3): extraction gives keys and ivs, but a key update needs the secrets that they were made
//!   from, and the key log alone is shown those.
//! * The session that a TLS 1.3 ticket is to hold: the ticket's message is our own.
//! * The [`Proof`] that a session goes back to, and why a certificate was refused.

use std::cell::RefCell;
use std::fmt;

use rustls::KeyLog;
use zeroize::{Zeroize, Zeroizing};

/// The longest secret of any suite: SHA-384.
const SECRET_BYTES_MAX: usize = 48;

thread_local! {
    static SCOPE: RefCell<Scope> = const { RefCell::new(Scope::EMPTY) };
}

/// The full handshake that a session goes back to, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Proof {
    /// When it was.
    pub since: u64,
    /// The last second in which it would have the same outcome: no certificate of the client's chain ends before.
    pub until: u64,
}

/// What was learned within one call.
pub(super) struct Captured {
    /// The first application traffic secrets.
    pub traffic: Option<CapturedSecrets>,
    /// The session that a TLS 1.3 ticket is to hold.
    pub session: Option<Zeroizing<Vec<u8>>>,
    /// What is known of the full handshake behind this one.
    pub origin: Origin,
    /// Which certificate was refused, and why.
    pub refused: Option<Box<str>>,
}

/// Where a connection's right to be there comes from; kept from one record to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Origin {
    /// From a ticket that was opened. rustls may still have decided for a full handshake.
    pub ticket: Option<Proof>,
    /// A client certificate was verified, and holds until then.
    pub verified_until: Option<u64>,
}

struct Scope {
    secrets: CapturedSecrets,
    /// A secret for a TLS 1.3 ticket was derived: the session that comes next is for one.
    has_ticket_secret: bool,
    session: Option<Zeroizing<Vec<u8>>>,
    origin: Origin,
    ticket_lifetime: Option<u32>,
    refused: Option<Box<str>>,
}

impl Scope {
    const EMPTY: Self = Self {
        secrets: CapturedSecrets::EMPTY,
        has_ticket_secret: false,
        session: None,
        origin: Origin { ticket: None, verified_until: None },
        ticket_lifetime: None,
        refused: None,
    };
}

/// Runs `feed`, which feeds one connection, of which `origin` is known. Returns what our hooks were told meanwhile.
pub(super) fn capture<R>(origin: Origin, feed: impl FnOnce() -> R) -> (R, Captured) {
    SCOPE.with_borrow_mut(|scope| {
        let is_empty = scope.secrets.is_empty() && scope.session.is_none() && scope.refused.is_none();
        assert!(is_empty, "secrets of another connection were left behind");
        scope.origin = origin;
        (scope.has_ticket_secret, scope.ticket_lifetime) = (false, None);
    });
    let result = feed();
    let captured = SCOPE.with_borrow_mut(|scope| Captured {
        traffic: scope.secrets.take(),
        session: scope.session.take(),
        origin: std::mem::take(&mut scope.origin),
        refused: scope.refused.take(),
    });
    (result, captured)
}

/// A ticket's secret was derived.
pub(super) fn note_ticket_secret() {
    SCOPE.with_borrow_mut(|scope| scope.has_ticket_secret = true);
}

/// Keeps the session of a TLS 1.3 ticket for us to make the ticket; false for one of TLS 1.2, which rustls makes.
pub(super) fn keep_session(plain: &[u8]) -> bool {
    SCOPE.with_borrow_mut(|scope| {
        let is_ours = std::mem::take(&mut scope.has_ticket_secret);
        if is_ours {
            scope.session = Some(Zeroizing::new(plain.to_vec()));
        }
        is_ours
    })
}

/// What is known so far of the full handshake behind the connection that is being fed.
pub(super) fn origin() -> Origin {
    SCOPE.with_borrow(|scope| scope.origin)
}

/// A ticket was opened, and names this full handshake.
pub(super) fn note_ticket(proof: Proof) {
    SCOPE.with_borrow_mut(|scope| scope.origin.ticket = Some(proof));
}

/// A client's certificate was verified, and its chain holds until then.
pub(super) fn note_verified(until: u64) {
    SCOPE.with_borrow_mut(|scope| scope.origin.verified_until = Some(until));
}

/// A client's certificate was refused.
pub(super) fn note_refused(detail: Box<str>) {
    SCOPE.with_borrow_mut(|scope| scope.refused = Some(detail));
}

/// For how long the TLS 1.2 ticket that is being made is good, in seconds.
pub(super) fn set_ticket_lifetime(seconds: u32) {
    SCOPE.with_borrow_mut(|scope| scope.ticket_lifetime = Some(seconds));
}

/// The same, for who asks after it was made.
pub(super) fn ticket_lifetime() -> Option<u32> {
    SCOPE.with_borrow(|scope| scope.ticket_lifetime)
}

/// The first application traffic secrets of both directions (RFC 8446 section 7.1), wiped on drop.
pub(super) struct CapturedSecrets {
    client: [u8; SECRET_BYTES_MAX],
    server: [u8; SECRET_BYTES_MAX],
    client_len: u8,
    server_len: u8,
}

impl CapturedSecrets {
    const EMPTY: Self =
        Self { client: [0; SECRET_BYTES_MAX], server: [0; SECRET_BYTES_MAX], client_len: 0, server_len: 0 };

    /// `client_application_traffic_secret_0`, as long as the suite's hash.
    pub fn client(&self) -> &[u8] {
        &self.client[..usize::from(self.client_len)]
    }

    /// `server_application_traffic_secret_0`, as long as the suite's hash.
    pub fn server(&self) -> &[u8] {
        &self.server[..usize::from(self.server_len)]
    }

    fn is_empty(&self) -> bool {
        self.client_len == 0 && self.server_len == 0
    }

    /// Moves the secrets out and leaves nothing behind; none when there are none.
    fn take(&mut self) -> Option<Self> {
        if self.is_empty() {
            return None;
        }
        assert_eq!(self.client_len, self.server_len, "rustls makes both secrets in one step");
        let taken = Self { ..*self };
        self.wipe();
        Some(taken)
    }

    fn wipe(&mut self) {
        let Self { client, server, client_len, server_len } = self;
        client.zeroize();
        server.zeroize();
        client_len.zeroize();
        server_len.zeroize();
    }
}

impl Drop for CapturedSecrets {
    fn drop(&mut self) {
        self.wipe();
    }
}

impl fmt::Debug for CapturedSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CapturedSecrets(..)")
    }
}

/// The configuration's side of [`capture`].
#[derive(Debug)]
pub(super) struct CaptureTrafficSecrets;

const CLIENT_LABEL: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER_LABEL: &str = "SERVER_TRAFFIC_SECRET_0";

impl KeyLog for CaptureTrafficSecrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        SCOPE.with_borrow_mut(|scope| {
            let captured = &mut scope.secrets;
            let (place, length) = match label {
                CLIENT_LABEL => (&mut captured.client, &mut captured.client_len),
                SERVER_LABEL => (&mut captured.server, &mut captured.server_len),
                _ => return,
            };
            assert_eq!(*length, 0, "a connection has one first traffic secret a direction");
            place[..secret.len()].copy_from_slice(secret);
            *length = secret.len() as u8;
        });
    }

    fn will_log(&self, label: &str) -> bool {
        label == CLIENT_LABEL || label == SERVER_LABEL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_once_and_nothing_stays() {
        let log = CaptureTrafficSecrets;
        let ((), captured) = capture(Origin::default(), || {
            log.log(CLIENT_LABEL, &[0; 32], &[1; 32]);
            log.log("CLIENT_HANDSHAKE_TRAFFIC_SECRET", &[0; 32], &[9; 32]);
            log.log(SERVER_LABEL, &[0; 32], &[2; 32]);
        });
        let taken = captured.traffic.unwrap();
        assert_eq!((taken.client(), taken.server()), (&[1; 32][..], &[2; 32][..]));
        SCOPE.with_borrow(|scope| {
            let left = &scope.secrets;
            assert!(left.is_empty() && left.client == [0; 48] && left.server == [0; 48]);
        });
        assert!(capture(Origin::default(), || ()).1.traffic.is_none());
    }

    #[test]
    #[should_panic(expected = "secrets of another connection")]
    fn what_was_left_behind_is_never_handed_to_the_next_connection() {
        CaptureTrafficSecrets.log(SERVER_LABEL, &[0; 32], &[2; 32]);
        let _ = capture(Origin::default(), || ());
    }
}

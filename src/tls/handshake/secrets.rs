//! How the TLS 1.3 traffic secrets leave rustls.
//!
//! Extraction gives keys and ivs, but a key update needs the secrets that they were made from, and rustls shows those
//! to the configuration's one [`KeyLog`] only, which does not learn whose they are in any form that we could look up.
//! It is called on the thread that feeds the connection, within that call: so a thread-local that is empty before
//! every call and emptied after every call can hold only what belongs to the connection that was fed. This is the one
//! thread-local of the data plane; a shared map by client random would be a lock and a leak instead.

use std::cell::RefCell;
use std::fmt;

use rustls::KeyLog;
use zeroize::Zeroize;

/// The longest secret of any suite: SHA-384.
const SECRET_BYTES_MAX: usize = 48;

thread_local! {
    static CAPTURED: RefCell<CapturedSecrets> = const { RefCell::new(CapturedSecrets::EMPTY) };
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

/// Runs `feed`, which feeds one connection, and returns the traffic secrets that this gave birth to, if it did.
pub(super) fn capture<R>(feed: impl FnOnce() -> R) -> (R, Option<CapturedSecrets>) {
    CAPTURED.with_borrow(|captured| assert!(captured.is_empty(), "secrets of another connection were left behind"));
    let result = feed();
    (result, CAPTURED.with_borrow_mut(CapturedSecrets::take))
}

/// The configuration's side of [`capture`].
#[derive(Debug)]
pub(super) struct CaptureTrafficSecrets;

const CLIENT_LABEL: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER_LABEL: &str = "SERVER_TRAFFIC_SECRET_0";

impl KeyLog for CaptureTrafficSecrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        CAPTURED.with_borrow_mut(|captured| {
            let captured = &mut *captured;
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
        let ((), taken) = capture(|| {
            log.log(CLIENT_LABEL, &[0; 32], &[1; 32]);
            log.log("CLIENT_HANDSHAKE_TRAFFIC_SECRET", &[0; 32], &[9; 32]);
            log.log(SERVER_LABEL, &[0; 32], &[2; 32]);
        });
        let taken = taken.unwrap();
        assert_eq!((taken.client(), taken.server()), (&[1; 32][..], &[2; 32][..]));
        CAPTURED.with_borrow(|left| assert!(left.is_empty() && left.client == [0; 48] && left.server == [0; 48]));
        assert!(capture(|| ()).1.is_none());
    }

    #[test]
    #[should_panic(expected = "secrets of another connection")]
    fn what_was_left_behind_is_never_handed_to_the_next_connection() {
        CaptureTrafficSecrets.log(SERVER_LABEL, &[0; 32], &[2; 32]);
        let _ = capture(|| ());
    }
}

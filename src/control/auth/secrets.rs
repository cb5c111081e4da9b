//! What waits to be judged takes memory: a secret waits for its hash, its signature or its question longer than its connection stays, so
//! its bytes are in no share of any connection's. They are bounded here, for all listeners and all ways of judging together.
//!
//! Short ones always find room: how many wait is bounded where they wait. A long one does while all together take no more than
//! [`WAITING_BYTES_MAX`]; otherwise its device is told to come again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// The longest secret and the longest user name, in bytes: nothing of a longer one is looked at.
pub(super) const SECRET_BYTES_MAX: usize = 4_096;
/// A user name and a secret that take no more than this together are short.
const SHORT_BYTES: usize = 256;
/// So many bytes of user names and secrets may wait before a long one finds no room. It is part of what the control plane is printed
/// with (`config::budget::CONTROL_BYTES`).
const WAITING_BYTES_MAX: usize = 4 << 20;

/// How many bytes wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    bytes: Arc<AtomicUsize>,
}

/// A secret that is counted until the last who has it lets it go.
struct Counted {
    secret: Bytes,
    bytes: usize,
    waiting: Arc<AtomicUsize>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.secret
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Waiting {
    /// The same secret, counted with its user name for as long as somebody has it. `None`: there is no room.
    pub(super) fn count(&self, name: &str, secret: Bytes) -> Option<Bytes> {
        let bytes = name.len() + secret.len();
        if bytes > SHORT_BYTES && self.bytes.load(Ordering::Relaxed) + bytes > WAITING_BYTES_MAX {
            return None;
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Some(Bytes::from_owner(Counted { secret, bytes, waiting: Arc::clone(&self.bytes) }))
    }
}

/// Whether a user name or a secret is longer than anybody looks at.
pub(super) fn is_too_long(name: &str, secret: &[u8]) -> bool {
    name.len().max(secret.len()) > SECRET_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_secrets_are_bounded_together_and_short_ones_always_find_room() {
        let waiting = Waiting::default();
        let long = || Bytes::from(vec![b'x'; SECRET_BYTES_MAX]);
        let held: Vec<Bytes> = (0..10_000).map_while(|_| waiting.count("meter", long())).collect();
        assert_eq!(held.len(), WAITING_BYTES_MAX / (SECRET_BYTES_MAX + 5));
        assert_eq!(held[0], long());
        let short = waiting.count("meter", Bytes::from_static(b"secret")).unwrap();
        // A copy is the same bytes, and counts until it is gone too.
        let copy = held[0].clone();
        drop(held);
        assert_eq!(waiting.bytes.load(Ordering::Relaxed), 5 + SECRET_BYTES_MAX + 5 + 6);
        drop((copy, short));
        assert_eq!(waiting.bytes.load(Ordering::Relaxed), 0);
        assert!(is_too_long(&"n".repeat(4_097), b"") && is_too_long("", &[0; 4_097]) && !is_too_long("n", &[0; 4_096]));
    }
}

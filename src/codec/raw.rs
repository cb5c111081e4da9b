//! Opaque bytes over TLS: tells heartbeats from data, and cuts data into chunks.
//!
//! It never looks across records: what a device sends with one write arrives as one record, and that is all
//! the framing that there is.

/// What the plaintext of one record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// The heartbeat, so many times (at least once) and nothing else: life, but nothing for the backend.
    Heartbeats(usize),
    /// For the backend, all of it.
    Data(&'a [u8]),
}

/// What `bytes`, the plaintext of one record, are to a listener with this `heartbeat` (empty: it has none).
///
/// Heartbeats that stand beside anything else are data: only the device knows what they mean there.
///
/// ```
/// use pulsegate::codec::raw::{Payload, classify};
///
/// assert_eq!(classify(b"beat", b"beatbeat"), Payload::Heartbeats(2));
/// assert_eq!(classify(b"beat", b"beat 230 V"), Payload::Data(b"beat 230 V"));
/// ```
#[must_use]
pub fn classify<'a>(heartbeat: &[u8], bytes: &'a [u8]) -> Payload<'a> {
    if heartbeat.is_empty() || bytes.is_empty() || !bytes.len().is_multiple_of(heartbeat.len()) {
        return Payload::Data(bytes);
    }
    if bytes.chunks_exact(heartbeat.len()).all(|chunk| chunk == heartbeat) {
        Payload::Heartbeats(bytes.len() / heartbeat.len())
    } else {
        Payload::Data(bytes)
    }
}

/// `data` in pieces of `size_max` bytes (at least 1), the last one shorter; none for no data.
pub fn chunks(data: &[u8], size_max: usize) -> impl ExactSizeIterator<Item = &[u8]> {
    data.chunks(size_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_heartbeats_are_counted() {
        assert_eq!(classify(b"heartbeat", b"heartbeat"), Payload::Heartbeats(1));
        assert_eq!(classify(b"heartbeat", b"heartbeatheartbeatheartbeat"), Payload::Heartbeats(3));
        assert_eq!(classify(b"\0", b"\0\0"), Payload::Heartbeats(2));
        // Two of "aa", not three that overlap.
        assert_eq!(classify(b"aa", b"aaaa"), Payload::Heartbeats(2));
    }

    #[test]
    fn everything_else_is_data_as_a_whole() {
        for bytes in [&b""[..], b"heartbea", b"heartbeats", b"heartbeatheartbeaT", b"xheartbeat", b"heartbeat\n"] {
            assert_eq!(classify(b"heartbeat", bytes), Payload::Data(bytes));
        }
    }

    #[test]
    fn without_a_heartbeat_all_is_data() {
        assert_eq!(classify(b"", b"heartbeat"), Payload::Data(b"heartbeat"));
        assert_eq!(classify(b"", b""), Payload::Data(b""));
    }

    #[test]
    fn chunks_hold_all_bytes_in_order() {
        let data: Vec<u8> = (0..=255).collect();
        for size in [1, 7, 255, 256, 1_000] {
            let pieces = chunks(&data, size);
            assert_eq!(pieces.len(), data.len().div_ceil(size));
            let pieces: Vec<&[u8]> = pieces.collect();
            assert!(pieces.iter().all(|piece| (1..=size).contains(&piece.len())));
            assert_eq!(pieces.concat(), data);
        }
        assert_eq!(chunks(b"", 5).len(), 0);
    }
}

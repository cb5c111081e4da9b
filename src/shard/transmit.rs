//! What one turn has to say to its sockets: sealed bytes of many connections in one buffer, in the order in which they
//! were sealed. Filled by the shard, emptied by the turn's flush.

use crate::slot::ConnectionSlot;

/// A buffer that grew beyond this in a storm is given back when it has been flushed.
const KEPT_BYTES: usize = 1 << 16;

/// The bytes and whose they are.
#[derive(Default)]
pub struct Transmit {
    bytes: Vec<u8>,
    segments: Vec<Segment>,
}

/// `bytes[start..end]` is for the connection in slot `slot`.
#[derive(Clone, Copy, Debug)]
struct Segment {
    slot: ConnectionSlot,
    start: usize,
    end: usize,
}

impl Transmit {
    /// A buffer with what it keeps anyway, written once: every page is there before the first device is.
    #[must_use]
    pub fn prepared() -> Self {
        let mut bytes = vec![0xA5; KEPT_BYTES];
        bytes.clear();
        Self { bytes, segments: Vec::with_capacity(KEPT_BYTES / 64) }
    }

    /// Where sealed bytes are appended.
    pub(super) fn wire(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// How many bytes there are: the mark at which the next segment begins.
    pub(super) fn mark(&self) -> usize {
        self.bytes.len()
    }

    /// Whatever was appended since `mark` is for the connection in slot `slot`.
    pub(super) fn assign(&mut self, slot: ConnectionSlot, mark: usize) {
        let end = self.bytes.len();
        if end == mark {
            return;
        }
        match self.segments.last_mut() {
            Some(last) if last.slot == slot && last.end == mark => last.end = end,
            _ => self.segments.push(Segment { slot, start: mark, end }),
        }
    }

    /// The connection in slot `slot` will send nothing more: the flush phase visits it, even where there are no bytes,
    /// and shuts the socket down for writing.
    pub(super) fn end(&mut self, slot: ConnectionSlot) {
        let end = self.bytes.len();
        if self.segments.last().is_none_or(|last| last.slot != slot) {
            self.segments.push(Segment { slot, start: end, end });
        }
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// What is to be sent, in order: the slot and its bytes. No bytes: the connection has nothing to say and ends.
    pub fn segments(&self) -> impl Iterator<Item = (ConnectionSlot, &[u8])> {
        self.segments.iter().map(|segment| (segment.slot, &self.bytes[segment.start..segment.end]))
    }

    /// Everything was sent or kept elsewhere.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES {
            self.bytes.shrink_to(KEPT_BYTES);
            self.segments.shrink_to(KEPT_BYTES / 64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_keep_their_order_and_owner() {
        let mut transmit = Transmit::default();
        for (slot, bytes) in [(1, "ab"), (1, "c"), (2, ""), (2, "d"), (1, "e")] {
            let mark = transmit.mark();
            transmit.wire().extend_from_slice(bytes.as_bytes());
            transmit.assign(ConnectionSlot(slot), mark);
        }
        let segments: Vec<_> = transmit.segments().map(|(slot, bytes)| (slot.0, bytes)).collect();
        assert_eq!(segments, [(1, &b"abc"[..]), (2, b"d"), (1, b"e")]);
        transmit.clear();
        assert!(transmit.is_empty());
    }

    #[test]
    fn an_end_without_words_is_a_segment_and_one_with_words_needs_none() {
        let mut transmit = Transmit::default();
        transmit.end(ConnectionSlot(3));
        let mark = transmit.mark();
        transmit.wire().extend_from_slice(b"bye");
        transmit.assign(ConnectionSlot(4), mark);
        transmit.end(ConnectionSlot(4));
        let segments: Vec<_> = transmit.segments().map(|(slot, bytes)| (slot.0, bytes)).collect();
        assert_eq!(segments, [(3, &b""[..]), (4, b"bye")]);
    }
}

//! One connection's bytes while they are looked at: a scratch that belongs to the worker and serves every connection in
//! turn.
//!
//! ```text
//!   0         plain.start   plain.end      cipher.start    cipher.end        capacity
//!   ├─ consumed ─┼── plaintext ──┼─ gap ─────┼── ciphertext ──┼── free: reads ──┤
//! ```
//!
//! Records are opened in place and their plaintext is moved down to `plain.end`; a record is always longer than its
//! plaintext, so the two never meet. What is left when there is nothing more to do with it (half a record, half a
//! frame) is [saved](Input::save) to the connection's own memory, and loaded back before the next read.

use std::ops::Range;

use zeroize::Zeroize;

/// Room for one whole protected record: RFC 8446 5.2 and RFC 5246 6.2.3 (the larger).
const RECORD_MAX: usize = 5 + 16_384 + 2_048;

/// The scratch.
pub struct Input {
    bytes: Box<[u8]>,
    plain: Range<usize>,
    cipher: Range<usize>,
    read_bytes: usize,
}

/// What a connection keeps of half-received things: plaintext, ciphertext.
#[derive(Default)]
pub struct Saved {
    /// Opened bytes that are not yet a whole frame.
    pub plain: Vec<u8>,
    /// Bytes that are not yet a whole record, or that wait for their turn.
    pub cipher: Vec<u8>,
    /// There may be a secret in it, for it was kept before its connection was a device's: it is wiped when it goes.
    pub is_secret: bool,
}

impl Drop for Saved {
    fn drop(&mut self) {
        if self.is_secret {
            self.plain.zeroize();
        }
    }
}

impl Saved {
    /// Nothing half-received.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.cipher.is_empty()
    }

    /// How many bytes are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.plain.len() + self.cipher.len()
    }
}

impl Input {
    /// A scratch for frames of at most `frame_bytes` and reads of at most `read_bytes`.
    #[must_use]
    pub fn new(frame_bytes: usize, read_bytes: usize) -> Self {
        // Plaintext: what is short of a frame, and one record that completes it. Ciphertext: what is short of a record
        // or was left by the read before, and the read.
        let capacity = frame_bytes + RECORD_MAX + RECORD_MAX + 2 * read_bytes;
        // Written once, so that every page is there before the first device is.
        let mut bytes = vec![0u8; capacity].into_boxed_slice();
        bytes.fill(0xA5);
        Self { bytes, plain: 0..0, cipher: 0..0, read_bytes }
    }

    /// Begins with what the connection had saved.
    pub fn load(&mut self, saved: &Saved) {
        let plain = saved.plain.len();
        self.bytes[..plain].copy_from_slice(&saved.plain);
        let cipher = plain..plain + saved.cipher.len();
        self.bytes[cipher.clone()].copy_from_slice(&saved.cipher);
        self.plain = 0..plain;
        self.cipher = cipher;
    }

    /// Where the next read goes; at most the bound for one turn. Empty when the scratch is full.
    pub fn space(&mut self) -> &mut [u8] {
        let start = self.cipher.end;
        let end = self.bytes.len().min(start + self.read_bytes);
        &mut self.bytes[start..end]
    }

    /// `count` bytes were read into [`Input::space`].
    pub fn filled(&mut self, count: usize) {
        self.cipher.end += count;
        assert!(self.cipher.end <= self.bytes.len());
    }

    /// How much of the scratch this connection has used.
    #[must_use]
    pub fn used(&self) -> usize {
        self.cipher.end
    }

    /// Wipes the first `used` bytes, which nobody needs any more.
    pub fn wipe(&mut self, used: usize) {
        self.bytes[..used].zeroize();
    }

    /// The ciphertext that is there.
    #[must_use]
    pub fn cipher(&self) -> &[u8] {
        &self.bytes[self.cipher.clone()]
    }

    /// The first `length` bytes of the ciphertext: one record, to be opened in place.
    pub fn record(&mut self, length: usize) -> &mut [u8] {
        let record = self.cipher.start..self.cipher.start + length;
        assert!(record.end <= self.cipher.end);
        &mut self.bytes[record]
    }

    /// The record of `length` bytes is done with; `plaintext`, a range of [`Input::record`], is kept for the frames.
    pub fn keep_plaintext(&mut self, length: usize, plaintext: Range<usize>) {
        self.gather(plaintext);
        self.skip_record(length);
    }

    /// Keeps a part of [`Input::record`] for the frames. The record is not done with.
    pub fn gather(&mut self, part: Range<usize>) {
        let from = self.cipher.start + part.start..self.cipher.start + part.end;
        if self.plain.is_empty() {
            self.plain = 0..0;
        }
        // Parts are gathered in their order: what lies behind is not overwritten.
        assert!(self.plain.end <= from.start);
        let kept = from.len();
        self.bytes.copy_within(from, self.plain.end);
        self.plain.end += kept;
    }

    /// The record of `length` bytes is done with.
    pub fn skip_record(&mut self, length: usize) {
        self.cipher.start += length;
        assert!(self.cipher.start <= self.cipher.end);
    }

    /// The plaintext that no frame has consumed.
    #[must_use]
    pub fn plain(&self) -> &[u8] {
        &self.bytes[self.plain.clone()]
    }

    /// The first `length` bytes of plaintext were a frame.
    pub fn consume_plain(&mut self, length: usize) {
        self.plain.start += length;
        assert!(self.plain.start <= self.plain.end);
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.plain.is_empty() && self.cipher.is_empty()
    }

    /// What is left, to be kept by the connection.
    #[must_use]
    pub fn save(&self) -> Saved {
        Saved { plain: self.plain().to_vec(), cipher: self.cipher().to_vec(), is_secret: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plaintext_is_gathered_across_records_and_reads() {
        let mut input = Input::new(100, 64);
        input.load(&Saved::default());
        input.space()[..12].copy_from_slice(b"hhABtthhCDtt");
        input.filled(12);
        assert_eq!(input.record(6), b"hhABtt");
        input.keep_plaintext(6, 2..4);
        assert_eq!(input.plain(), b"AB");
        input.record(6);
        input.keep_plaintext(6, 2..4);
        assert_eq!(input.plain(), b"ABCD");
        input.consume_plain(3);
        input.space()[..3].copy_from_slice(b"hhE");
        input.filled(3);
        let saved = input.save();
        assert_eq!((saved.plain.as_slice(), saved.cipher.as_slice()), (&b"D"[..], &b"hhE"[..]));

        input.load(&saved);
        input.space()[..2].copy_from_slice(b"tt");
        input.filled(2);
        input.keep_plaintext(5, 2..3);
        assert_eq!(input.plain(), b"DE");
        input.consume_plain(2);
        assert!(input.is_empty());
    }

    #[test]
    fn a_read_is_bounded() {
        let mut input = Input::new(100, 64);
        input.load(&Saved::default());
        assert_eq!(input.space().len(), 64);
        input.filled(64);
        assert_eq!(input.space().len(), 64);
    }
}

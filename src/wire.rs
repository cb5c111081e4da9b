//! Bytes of our own formats: a reader and a writer of integers, lengths and text, and the tag that every format begins with.
//!
//! It knows no format. It never allocates when it reads, never panics on what it is given, and accepts one encoding of
//! each value only, so that what was read and written again is the same bytes.
//!
//! ```text
//! integers   big-endian, 1 to 8 bytes
//! length     unsigned LEB128: seven bits a byte, the lowest first, the top bit set on all but the last byte;
//!            at most five bytes, and in no more of them than it takes
//! bytes      length | so many bytes
//! text       the same, UTF-8
//! tag        kind u8 | version u8
//! ```
//!
//! ```
//! use pulsegate::wire::{Reader, Tagged, WireError, Writer};
//!
//! const LAMP: Tagged = Tagged { kind: 0x4C, version: 1 };
//!
//! let mut bytes = Vec::new();
//! let mut writer = Writer::new(&mut bytes);
//! writer.tag(LAMP);
//! writer.text("kitchen");
//! writer.u16(250);
//!
//! let mut reader = Reader::new(&bytes);
//! assert_eq!(reader.tag(LAMP.kind, 1..=LAMP.version)?, 1);
//! assert_eq!((reader.text()?, reader.u16()?), ("kitchen", 250));
//! reader.finish()?;
//! # Ok::<(), WireError>(())
//! ```

use std::fmt;
use std::ops::RangeInclusive;

/// The bytes are not what was to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// They end before the last field does.
    Truncated,
    /// There are more of them than fields.
    Excess,
    /// A length takes more bytes than it needs, or more than five.
    Length,
    /// Text is not UTF-8.
    Text,
    /// A byte that is 0 or 1 is neither.
    Flag,
    /// They are of another kind.
    Kind(u8),
    /// They are of a version that this program does not read.
    Version(u8),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::Truncated => f.write_str("the bytes end before the last field does"),
            WireError::Excess => f.write_str("bytes are left behind the last field"),
            WireError::Length => f.write_str("a length is not in its shortest form"),
            WireError::Text => f.write_str("text is not UTF-8"),
            WireError::Flag => f.write_str("a flag is neither 0 nor 1"),
            WireError::Kind(kind) => write!(f, "the bytes are of kind {kind}, which is not the one wanted"),
            WireError::Version(version) => write!(f, "the bytes are of version {version}, which is not known here"),
        }
    }
}

impl std::error::Error for WireError {}

/// What a format begins with: which one it is, and which version of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tagged {
    /// Which format.
    pub kind: u8,
    /// Which version of it; the first is 1.
    pub version: u8,
}

/// What is left to read, front to back. Nothing is taken by a read that fails.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader of all of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.rest.len()
    }

    /// Whether nothing is left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// So many bytes as they are.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when there are fewer; so in every method below.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// All that is left.
    pub fn take_all(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// So many bytes as an array.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(*taken)
    }

    /// An integer of one byte.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(u8::from_be_bytes)
    }

    /// An integer of two bytes.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    /// An integer of four bytes.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    /// An integer of eight bytes.
    ///
    /// # Errors
    /// [`WireError::Truncated`].
    pub fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A byte that is 0 or 1.
    ///
    /// # Errors
    /// [`WireError::Flag`] for any other, [`WireError::Truncated`].
    pub fn flag(&mut self) -> Result<bool, WireError> {
        let before = *self;
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => {
                *self = before;
                Err(WireError::Flag)
            }
        }
    }

    /// A length.
    ///
    /// # Errors
    /// [`WireError::Length`] when it is not in its shortest form or beyond 32 bits, [`WireError::Truncated`].
    pub fn length(&mut self) -> Result<u32, WireError> {
        let mut value = 0u64;
        for (place, &byte) in self.rest.iter().take(5).enumerate() {
            value |= u64::from(byte & 0x7F) << (7 * place);
            if byte & 0x80 == 0 {
                let is_shortest = byte != 0 || place == 0;
                let value = u32::try_from(value).ok().filter(|_| is_shortest).ok_or(WireError::Length)?;
                self.rest = &self.rest[place + 1..];
                return Ok(value);
            }
        }
        Err(if self.rest.len() < 5 { WireError::Truncated } else { WireError::Length })
    }

    /// A length and so many bytes. They are borrowed: what an input claims is never allocated.
    ///
    /// # Errors
    /// Those of [`length`](Self::length), [`WireError::Truncated`].
    pub fn bytes(&mut self) -> Result<&'a [u8], WireError> {
        let before = *self;
        let length = self.length()?;
        self.take(length as usize).inspect_err(|_| *self = before)
    }

    /// The same as text.
    ///
    /// # Errors
    /// Those of [`bytes`](Self::bytes), [`WireError::Text`].
    pub fn text(&mut self) -> Result<&'a str, WireError> {
        let before = *self;
        std::str::from_utf8(self.bytes()?).map_err(|_| {
            *self = before;
            WireError::Text
        })
    }

    /// The version of a format of this kind, one of `versions`.
    ///
    /// # Errors
    /// [`WireError::Kind`], [`WireError::Version`], [`WireError::Truncated`].
    pub fn tag(&mut self, kind: u8, versions: RangeInclusive<u8>) -> Result<u8, WireError> {
        let before = *self;
        let [found, version] = self.array()?;
        let checked = match () {
            () if found != kind => Err(WireError::Kind(found)),
            () if !versions.contains(&version) => Err(WireError::Version(version)),
            () => return Ok(version),
        };
        *self = before;
        checked
    }

    /// Ends the reading: nothing may be left.
    ///
    /// # Errors
    /// [`WireError::Excess`].
    pub const fn finish(self) -> Result<(), WireError> {
        if self.is_empty() { Ok(()) } else { Err(WireError::Excess) }
    }
}

/// Appends to the caller's buffer what a [`Reader`] reads.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    /// A writer that appends to `out`.
    pub const fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    /// Bytes as they are, without their length.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// An integer of one byte.
    pub fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    /// An integer of two bytes.
    pub fn u16(&mut self, value: u16) {
        self.raw(&value.to_be_bytes());
    }

    /// An integer of four bytes.
    pub fn u32(&mut self, value: u32) {
        self.raw(&value.to_be_bytes());
    }

    /// An integer of eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.raw(&value.to_be_bytes());
    }

    /// 0 or 1.
    pub fn flag(&mut self, value: bool) {
        self.u8(u8::from(value));
    }

    /// A length.
    pub fn length(&mut self, value: u32) {
        let mut rest = value;
        while rest >= 0x80 {
            self.u8(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.u8(rest as u8);
    }

    /// A length and the bytes.
    ///
    /// # Panics
    /// Beyond 4 GiB: nothing that is kept is nearly so long.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.length(u32::try_from(bytes.len()).expect("what is kept is bounded far below 4 GiB"));
        self.raw(bytes);
    }

    /// The same for text.
    ///
    /// # Panics
    /// As [`bytes`](Self::bytes).
    pub fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// What a format begins with.
    pub fn tag(&mut self, tag: Tagged) {
        self.raw(&[tag.kind, tag.version]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut bytes = vec![0xEE];
        write(&mut Writer::new(&mut bytes));
        assert_eq!(bytes.remove(0), 0xEE, "a writer appends");
        bytes
    }

    #[test]
    fn fields_are_read_as_they_were_written_and_cut_at_every_byte_they_are_truncated() {
        let bytes = written(|writer| {
            writer.tag(Tagged { kind: 9, version: 2 });
            writer.u8(7);
            writer.u16(0x0102);
            writer.u32(0x0304_0506);
            writer.u64(0x0708_090A_0B0C_0D0E);
            writer.flag(true);
            writer.text("ä/ö");
            writer.bytes(&[1; 200]);
        });
        let read = |bytes: &[u8]| -> Result<(), WireError> {
            let mut reader = Reader::new(bytes);
            assert_eq!(reader.tag(9, 1..=2)?, 2);
            assert_eq!(reader.u8()?, 7);
            assert_eq!(reader.u16()?, 0x0102);
            assert_eq!(reader.u32()?, 0x0304_0506);
            assert_eq!(reader.u64()?, 0x0708_090A_0B0C_0D0E);
            assert!(reader.flag()?);
            assert_eq!(reader.text()?, "ä/ö");
            assert_eq!(reader.bytes()?, [1; 200]);
            reader.finish()
        };
        assert_eq!(read(&bytes), Ok(()));
        for length in 0..bytes.len() {
            assert_eq!(read(&bytes[..length]), Err(WireError::Truncated), "{length}");
        }
        let longer: Vec<u8> = bytes.iter().copied().chain([0]).collect();
        assert_eq!(read(&longer), Err(WireError::Excess));
    }

    #[test]
    fn lengths_have_one_form() {
        for (value, bytes) in [
            (0, &[0][..]),
            (127, &[0x7F]),
            (128, &[0x80, 1]),
            (300, &[0xAC, 2]),
            (u32::MAX, &[0xFF, 0xFF, 0xFF, 0xFF, 0x0F]),
        ] {
            assert_eq!(written(|writer| writer.length(value)), bytes);
            assert_eq!(Reader::new(bytes).length(), Ok(value));
        }
        for bytes in [&[0x80, 0][..], &[0xFF, 0], &[0xFF, 0xFF, 0xFF, 0xFF, 0x10], &[0x80; 5], &[0xFF; 9]] {
            assert_eq!(Reader::new(bytes).length(), Err(WireError::Length), "{bytes:x?}");
        }
        assert_eq!(Reader::new(&[0x80]).length(), Err(WireError::Truncated));
    }

    #[test]
    fn a_read_that_fails_takes_nothing() {
        for (bytes, error) in [
            (&[2, 0xC3, 0x28][..], WireError::Text),
            (&[3, b'a'], WireError::Truncated),
            (&[0x80, 0, 0], WireError::Length),
        ] {
            let mut reader = Reader::new(bytes);
            assert_eq!(reader.text(), Err(error));
            assert_eq!(reader.take_all(), bytes);
        }
        let mut reader = Reader::new(&[5, 4]);
        assert_eq!(reader.flag(), Err(WireError::Flag));
        assert_eq!(reader.tag(6, 1..=9), Err(WireError::Kind(5)));
        assert_eq!(reader.tag(5, 1..=3), Err(WireError::Version(4)));
        assert_eq!((reader.len(), reader.u32()), (2, Err(WireError::Truncated)));
        assert_eq!(reader.tag(5, 1..=4), Ok(4));
    }

    /// Whatever the bytes: what is read is written as the same bytes, and nothing is read beyond them.
    #[test]
    fn arbitrary_bytes_are_read_in_one_way_or_not_at_all() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..random.usize(..12)).map(|_| random.u8(..)).collect();
            let mut reader = Reader::new(&bytes);
            if let Ok(field) = reader.bytes() {
                let again = written(|writer| writer.bytes(field));
                assert_eq!(again, bytes[..bytes.len() - reader.len()]);
            }
        }
    }
}

//! How large our records are, and how much of a key update has come: one byte for both.
//!
//! ```text
//! bit  7 6 5                               4 3 2 1 0
//!      bytes of a fragmented KeyUpdate     place in the table of limits
//! ```

/// The most plaintext that one record of ours carries. What a peer wished for (RFC 6066 section 4, RFC 8449) or what
/// the operator allows, rounded down to one of the sizes of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordLimit(u8);

/// What stands around the plaintext of one record: at most its header (5), the nonce of TLS 1.2 (8) and the tag (16).
const AROUND: usize = 32;

/// Powers of two, and one byte less of each: in TLS 1.3 the limit of RFC 8449 counts the content type too. And for whole
/// records of a power of two the plaintext in them.
#[rustfmt::skip]
const LIMITS: [u16; 21] = [
    63, 64, 127, 128, 255, 256, 512 - 32, 511, 512, 1_024 - 32, 1_023, 1_024, 2_048 - 32, 2_047, 2_048, 4_096 - 32, 4_095,
    4_096, 8_192 - 32, 8_192, 16_384,
];

impl RecordLimit {
    /// What the protocol allows: 2^14 bytes.
    pub const MAX: RecordLimit = RecordLimit(LIMITS.len() as u8 - 1);
    #[cfg(test)]
    pub(super) const MAX_PLACE: u8 = Self::MAX.0;

    /// The largest limit of at most `bytes`; the smallest there is for fewer than 63.
    #[must_use]
    pub const fn at_most(bytes: usize) -> RecordLimit {
        let mut place = LIMITS.len() - 1;
        while place > 0 && LIMITS[place] as usize > bytes {
            place -= 1;
        }
        RecordLimit(place as u8)
    }

    /// What records of at most so many bytes carry, with all that stands around it: they fit a buffer of that size. From
    /// 2^14 bytes on, what the protocol allows.
    #[must_use]
    pub const fn of_records(bytes: usize) -> RecordLimit {
        if bytes >= RecordLimit::MAX.bytes() {
            RecordLimit::MAX
        } else {
            RecordLimit::at_most(bytes.saturating_sub(AROUND))
        }
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        LIMITS[self.0 as usize] as usize
    }
}

/// The bits of a place in the table.
const PLACE: u8 = 0x1f;

/// See the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape(u8);

impl Shape {
    /// Bytes of a KeyUpdate that can wait for its last one.
    pub const PARTIAL_MAX: usize = 4;

    pub const fn new(limit: RecordLimit) -> Self {
        Self(limit.0)
    }

    /// From the travelling form; none when the byte is none of ours.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        let fits = (byte >> 5) as usize <= Self::PARTIAL_MAX && ((byte & PLACE) as usize) < LIMITS.len();
        if fits { Some(Self(byte)) } else { None }
    }

    pub const fn byte(self) -> u8 {
        self.0
    }

    pub const fn limit(self) -> RecordLimit {
        RecordLimit(self.0 & PLACE)
    }

    pub const fn set_limit(&mut self, limit: RecordLimit) {
        self.0 = self.0 & !PLACE | limit.0;
    }

    /// How many bytes of a KeyUpdate have come; they can only be the first of its one encoding.
    pub const fn partial(self) -> usize {
        (self.0 >> 5) as usize
    }

    pub const fn set_partial(&mut self, bytes: usize) {
        assert!(bytes <= Self::PARTIAL_MAX);
        self.0 = self.0 & PLACE | (bytes as u8) << 5;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_the_largest_size_that_is_not_above_the_wish() {
        for (wish, bytes) in [
            (0, 63),
            (63, 63),
            (64, 64),
            (511, 511),
            (512, 512),
            (1_000, 992),
            (1_023, 1_023),
            (4_097, 4_096),
            (8_191, 8_160),
            (16_384, 16_384),
            (1 << 20, 16_384),
        ] {
            assert_eq!(RecordLimit::at_most(wish).bytes(), bytes, "{wish}");
        }
        assert_eq!(RecordLimit::at_most(1 << 14), RecordLimit::MAX);
        assert!(LIMITS.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn whole_records_fit_the_buffer_that_they_are_for() {
        for (buffer, bytes) in [(512, 480), (4_096, 4_064), (5_000, 4_096), (8_192, 8_160), (16_384, 16_384), (0, 63)] {
            assert_eq!(RecordLimit::of_records(buffer).bytes(), bytes, "{buffer}");
        }
    }

    #[test]
    fn limit_and_partial_message_share_a_byte_and_do_not_touch() {
        let mut shape = Shape::new(RecordLimit::at_most(512));
        for partial in [1, 4, 0, 3] {
            shape.set_partial(partial);
            assert_eq!((shape.partial(), shape.limit().bytes()), (partial, 512));
        }
        shape.set_limit(RecordLimit::MAX);
        assert_eq!((shape.partial(), shape.limit()), (3, RecordLimit::MAX));
        assert_eq!(Shape::from_byte(shape.byte()), Some(shape));
        assert_eq!(Shape::from_byte(5 << 5), None);
        assert_eq!(Shape::from_byte(LIMITS.len() as u8), None);
    }
}

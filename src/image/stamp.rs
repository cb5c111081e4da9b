//! The place of a retained message among all others of its topic, in the process or in a fleet: the later one stays (decision 0029).
//!
//! A hybrid logical clock: milliseconds since 1970 and a count, never less than any that was seen, so that whatever was published
//! by somebody who could know of another message is later than that. Two gateways may say the same; then the gateway's number decides.

use std::fmt;
use std::str::FromStr;

/// The low bits of a clock count within a millisecond, and on into the next ones where that is not enough.
const COUNT_BITS: u32 = 20;

/// See the head of this file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stamp {
    /// When: even; what lies right behind it, odd, is its withdrawal.
    pub clock: u64,
    /// At which gateway: a hash of its name. 0: it is one of no fleet.
    pub node: u64,
}

impl Stamp {
    /// None was given: before any other.
    pub const NONE: Self = Self { clock: 0, node: 0 };

    /// The first clock of a millisecond since 1970.
    #[must_use]
    pub const fn clock_at(unix_ms: u64) -> u64 {
        unix_ms << COUNT_BITS
    }

    /// In which millisecond since 1970, as far as its gateway knew.
    #[must_use]
    pub const fn unix_ms(self) -> u64 {
        self.clock >> COUNT_BITS
    }

    /// Whether none was given.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// The place right behind it, which is given to nobody else: a message is withdrawn in it, which deletes that and older ones, and no
    /// later one.
    #[must_use]
    pub const fn withdrawal(self) -> Self {
        Self { clock: self.clock | 1, node: self.node }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}", self.clock, self.node)
    }
}

/// It is no stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoStamp;

impl FromStr for Stamp {
    type Err = NoStamp;

    fn from_str(text: &str) -> Result<Self, NoStamp> {
        let number = |digits: &str| {
            let is_written_so =
                digits.len() == 16 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            is_written_so.then(|| u64::from_str_radix(digits, 16).ok()).flatten().ok_or(NoStamp)
        };
        let (clock, node) = text.split_once('-').ok_or(NoStamp)?;
        Ok(Self { clock: number(clock)?, node: number(node)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let stamp = Stamp { clock: Stamp::clock_at(1_700_000_000_123) + 4, node: u64::MAX };
        assert_eq!((stamp.to_string().parse(), stamp.unix_ms()), (Ok(stamp), 1_700_000_000_123));
        assert!(stamp < stamp.withdrawal() && stamp.withdrawal().clock < stamp.clock + 2);
        for text in ["", "-", "1-2", "+00000000000000f-0000000000000001", "000000000000000F-0000000000000001"] {
            assert_eq!(text.parse::<Stamp>(), Err(NoStamp), "{text}");
        }
    }
}

//! The codes of CLOSE.

use std::fmt;

/// Why a side ends the connection. A newer peer may send codes that are not listed here; they are kept as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CloseCode(pub u8);

impl CloseCode {
    /// The sender has nothing more to say.
    pub const NORMAL: Self = Self(0);
    /// The gateway ends or restarts.
    pub const GOING_AWAY: Self = Self(1);
    /// A newer connection of the same device took this one's place.
    pub const TAKEN_OVER: Self = Self(2);
    /// The device was silent for too long.
    pub const EXPIRED: Self = Self(3);
    /// The receiver of this code broke the protocol.
    pub const PROTOCOL_ERROR: Self = Self(4);
    /// The receiver of this code sent a frame longer than `body_max`.
    pub const FRAME_TOO_LARGE: Self = Self(5);
    /// The client certificate names another device than HELLO, or none.
    pub const IDENTITY_MISMATCH: Self = Self(6);
    /// HELLO carried no token or a wrong one.
    pub const TOKEN_REJECTED: Self = Self(7);
    /// HELLO did not come in time.
    pub const HELLO_TIMEOUT: Self = Self(8);
    /// The device does not read what it is sent.
    pub const SLOW_CONSUMER: Self = Self(9);
    /// The gateway has no place for the device at this time.
    pub const TRY_LATER: Self = Self(10);
    /// The owner of the gateway ended the connection.
    pub const REQUESTED: Self = Self(11);
    /// The owner of the gateway keeps the device out.
    pub const DENIED: Self = Self(12);

    /// The code's name in docs and logs; `unknown` for one that is not listed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NORMAL => "normal",
            Self::GOING_AWAY => "going_away",
            Self::TAKEN_OVER => "taken_over",
            Self::EXPIRED => "expired",
            Self::PROTOCOL_ERROR => "protocol_error",
            Self::FRAME_TOO_LARGE => "frame_too_large",
            Self::IDENTITY_MISMATCH => "identity_mismatch",
            Self::TOKEN_REJECTED => "token_rejected",
            Self::HELLO_TIMEOUT => "hello_timeout",
            Self::SLOW_CONSUMER => "slow_consumer",
            Self::TRY_LATER => "try_later",
            Self::REQUESTED => "requested",
            Self::DENIED => "denied",
            _ => "unknown",
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

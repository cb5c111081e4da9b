//! What can be wrong with a frame. All of it is the sender's fault.

use std::fmt;

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The first byte is no frame type.
    UnknownType(u8),
    /// The header tells of a body longer than the receiver takes.
    TooLong {
        /// The frame's name.
        frame: &'static str,
        /// The body's length, in bytes.
        length: usize,
        /// What would have been taken.
        body_max: usize,
    },
    /// The header tells of a body that a frame of this type cannot have.
    BodyLength {
        /// The frame's name.
        frame: &'static str,
        /// The body's length, in bytes.
        length: usize,
    },
    /// HELLO or WELCOME of another version of the protocol.
    Version {
        /// The frame's name.
        frame: &'static str,
        /// The version it carries.
        version: u8,
    },
    /// The body ends within a field.
    Short {
        /// The frame's name.
        frame: &'static str,
    },
    /// The body goes on after its last field.
    Trailing {
        /// The frame's name.
        frame: &'static str,
        /// By how many bytes.
        bytes: usize,
    },
    /// Text that is not UTF-8.
    Text {
        /// The frame's name.
        frame: &'static str,
        /// The field's name.
        field: &'static str,
    },
    /// A name with a control character in it.
    ControlCharacter {
        /// The frame's name.
        frame: &'static str,
        /// The field's name.
        field: &'static str,
    },
    /// A field with a value or length that it may not have.
    OutOfBounds {
        /// The frame's name.
        frame: &'static str,
        /// The field's name.
        field: &'static str,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Error::UnknownType(byte) => write!(f, "unknown frame type {byte:#04x}"),
            Error::TooLong { frame, length, body_max } => {
                write!(f, "{frame} body of {length} bytes, at most {body_max} are taken")
            }
            Error::BodyLength { frame, length } => write!(f, "{frame} cannot have a body of {length} bytes"),
            Error::Version { frame, version } => write!(f, "{frame} of unknown protocol version {version}"),
            Error::Short { frame } => write!(f, "{frame} ends within a field"),
            Error::Trailing { frame, bytes } => write!(f, "{frame} goes on {bytes} bytes after its last field"),
            Error::Text { frame, field } => write!(f, "{field} of {frame} is not UTF-8"),
            Error::ControlCharacter { frame, field } => write!(f, "{field} of {frame} holds a control character"),
            Error::OutOfBounds { frame, field } => write!(f, "{field} of {frame} is out of bounds"),
        }
    }
}

impl std::error::Error for Error {}

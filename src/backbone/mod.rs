//! What carries uplink events beyond this process: [`Backbone`], embedded: the latest events in memory.
//!
//! It is one type, called directly, and not one of an enum. Who takes events and says later that they are safe is the store, or
//! without a store this ring: that is decided in one file, `control/hub.rs`. NATS carries commands and who has which device
//! (`fleet`), and takes events as a sink of the store, from its log; where a device's acknowledgement is to wait for it,
//! `control/forwarded.rs` holds back what the store has settled until the sink is so far. So there is no second variant.

mod embedded;
mod record;

use std::fmt;

pub use embedded::{Backbone, Head, Held, Slice};
pub use record::{DETAIL_BYTES_MAX, Event, Facts, Kind, What};

/// Why the backbone did not take an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It alone is larger than all that the backbone may hold, in bytes.
    TooLarge {
        /// The event's size.
        bytes: usize,
        /// The backbone's bound.
        bytes_max: usize,
    },
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::TooLarge { bytes, bytes_max } => {
                write!(f, "an event of {bytes} bytes is larger than the backbone's {bytes_max} bytes")
            }
        }
    }
}

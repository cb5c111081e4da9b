//! Sessions that go with their devices from one gateway of a fleet to another: what shards ask and are told (decision 0030).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ConnectionId;
use crate::image::{Message, Session, SessionKey};

/// A device has come, and whether its session is at another gateway is to be found out. Answered by `WorkerCommand::SessionSettled`
/// where somebody waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionWanted {
    /// Its id.
    pub device: Box<str>,
    /// The connection whose CONNECT waits; `None`: nobody waits, its session begins anew and ends with its connection.
    pub connection: Option<ConnectionId>,
    /// Whether what it had is to end.
    pub is_clean: bool,
    /// Whether its session outlives its connection.
    pub is_kept: bool,
}

/// Whether a device whose CONNECT waited may go on with the session that its shard has, or begin one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionVerdict {
    /// It may.
    GoesOn,
    /// Its session is elsewhere, and could not be brought here in time: it is to come again.
    ComesAgain,
}

/// How much of a session there is to be handed over, told by the shard that has it.
#[derive(Clone, Debug, Default)]
pub struct Cut(Arc<AtomicU64>);

impl Cut {
    /// The number of the latest message that is part of it.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// See [`Cut::number`].
    pub fn set(&self, number: u64) {
        self.0.store(number, Ordering::Release);
    }
}

/// Why a session is not handed over: its device is connected there.
pub const STILL_CONNECTED: &str = "the device is connected";
/// Why one is not taken: there is no room.
pub const NO_ROOM_FOR_SESSION: &str = "there is no room for another session";

/// What is asked of the shard that is a device's home. Each is answered by `WorkerEvent::Sent`: delivered, when it is done and safe;
/// offline: there is no such session; unacknowledged: not now; refused, and why.
#[derive(Clone)]
pub enum SessionOrder {
    /// Whether there is a session, of a device that is connected or away.
    Exists,
    /// Whether the CONNECT of this connection still waits.
    Waits(ConnectionId),
    /// Another gateway wants the session: it is to be whole in the store up to `cut`, and has no delayed will any more, for its device is
    /// there. It goes on taking messages.
    Offer {
        /// Is told how far.
        cut: Cut,
    },
    /// The session is another gateway's, or is to end: it goes from here.
    Forget {
        /// Which; `None`: whichever there is.
        key: Option<SessionKey>,
        /// It ends everywhere: its will is published, and what it had for groups goes to other members.
        ends: bool,
    },
    /// A session comes from another gateway: it begins to take messages here, and nobody else finds it yet.
    Adopt(Box<Session>),
    /// Messages of it, in their order.
    Adopted(Vec<Message>),
    /// All of it is here: it is the device's from now on. What the device had here before goes.
    Reveal,
    /// It does not come after all.
    Abandon,
}

impl fmt::Debug for SessionOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exists => "Exists",
            Self::Waits(_) => "Waits",
            Self::Offer { .. } => "Offer",
            Self::Forget { .. } => "Forget",
            Self::Adopt(_) => "Adopt",
            Self::Adopted(_) => "Adopted",
            Self::Reveal => "Reveal",
            Self::Abandon => "Abandon",
        })
    }
}

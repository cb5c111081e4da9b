//! Sessions that go with their devices from one gateway of a fleet to another: what shards ask and are told (decision 0030).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::{ConnectionId, SessionId};
use crate::image::{Head, Message, Session, SessionKey};

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
    /// What its session is to be like, where somebody waits: its row says so before CONNACK.
    pub head: Option<Box<Head>>,
}

/// What stands in the row of a session has changed. Answered by `WorkerCommand::SessionWritten` where somebody waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionChanged {
    /// Its device.
    pub device: Box<str>,
    /// The session whose SUBACK waits, and under which number; `None`: nobody waits.
    pub waits: Option<(SessionId, u32)>,
}

/// Whether a device whose CONNECT waited may go on with the session that its shard has, or begin one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionVerdict {
    /// It may, and the row of the session says what its CONNECT does.
    GoesOn,
    /// It may, and nobody has asked: NATS is away.
    GoesOnUnasked,
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

/// Something that a shard tells who has asked it, beside the answer.
pub struct Told<T>(Arc<Mutex<Option<T>>>);

impl<T> Told<T> {
    /// What was told; once.
    #[must_use]
    pub fn take(&self) -> Option<T> {
        self.0.lock().expect("no holder panics").take()
    }

    /// Tells it.
    pub fn set(&self, told: T) {
        *self.0.lock().expect("no holder panics") = Some(told);
    }
}

impl<T> Default for Told<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Clone for Told<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Told<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Told")
    }
}

/// A session without what is in it, as its row is to have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Its head and its subscriptions.
    pub session: Session,
    /// How it stands.
    pub standing: Standing,
}

/// How a session stands to what the fleet's stream has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is outstanding in it.
    Even,
    /// Something is, and holds up the cursor of the gateway.
    Behind,
    /// Its row has a place of its own.
    Placed,
}

/// A round: all that belongs to places up to that of this round is with the shard. Answered by `WorkerEvent::Sent` when it is with its
/// sessions: delivered, and `told` how they stand; unacknowledged: another round has begun meanwhile.
#[derive(Clone, Debug)]
pub struct Round {
    /// The number that the answer carries.
    pub request: u64,
    /// Which: grows.
    pub number: u64,
    /// The round that the cursor of the gateway holds up to.
    pub floor: u64,
    /// The gateway ends: all that lag are told.
    pub is_last: bool,
    /// How they stand.
    pub told: Told<Lag>,
}

/// How the sessions of a shard stand in a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// No session without a place of its own needs anything of rounds up to this one.
    pub oldest: u64,
    /// Sessions that are to have a place of their own, by their devices, and that of which round. Not all, where they are many.
    pub slow: Vec<(Box<str>, u64)>,
    /// Those that need it no more.
    pub near: Vec<Box<str>>,
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
    /// Another gateway has begun the session again while this one was not there: it goes from here without a word, but what it had for groups
    /// goes to other members, for it is not there.
    Disown,
    /// A session comes from another gateway: it begins to take messages here, and nobody else finds it yet.
    Adopt(Box<Session>),
    /// Messages of it, in their order.
    Adopted(Vec<Message>),
    /// All of it is here: it is the device's from now on. What the device had here before goes.
    Reveal,
    /// It does not come after all.
    Abandon,
    /// What its row is to say of it.
    Outline(Told<Outline>),
    /// Its row has a place of its own, of this round.
    Placed(u64),
    /// Its row is to have none any more; unacknowledged: it still needs it. `floor`: the round that the cursor of the gateway holds up to.
    Unplace {
        /// See there.
        floor: u64,
    },
}

impl fmt::Debug for SessionOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exists => "Exists",
            Self::Waits(_) => "Waits",
            Self::Offer { .. } => "Offer",
            Self::Forget { .. } => "Forget",
            Self::Disown => "Disown",
            Self::Adopt(_) => "Adopt",
            Self::Adopted(_) => "Adopted",
            Self::Reveal => "Reveal",
            Self::Abandon => "Abandon",
            Self::Outline(_) => "Outline",
            Self::Placed(_) => "Placed",
            Self::Unplace { .. } => "Unplace",
        })
    }
}

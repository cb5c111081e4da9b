//! What a worker may be told.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{
    AuthAnswer, ChangeMark, ConnectionId, ListenerId, Loaded, Publication, Receipt, Round, SessionId, SessionOrder,
    SessionVerdict, ShardMessage, Trace, WorkerId,
};

/// One thing said to a worker from another thread. Requests carry a number that their answer ([`super::WorkerEvent`])
/// carries.
#[derive(Clone, Debug)]
pub enum WorkerCommand {
    /// The answer to [`super::WorkerEvent::Authenticate`].
    Authenticated {
        /// The connection whose HELLO, CONNECT or AUTH waits.
        connection: ConnectionId,
        /// What was found.
        answer: AuthAnswer,
    },
    /// The backbone holds a message, or will not; the device may be told so.
    MessageSettled {
        /// To whom it is said.
        receipt: Receipt,
        /// Whether the backbone holds it.
        accepted: bool,
    },
    /// What this worker said of its sessions and retained messages is safe up to this mark: answers that waited for it may
    /// leave. Said too when changes were refused for want of room and there is some now.
    Safe {
        /// The latest that is safe; never less than before.
        mark: ChangeMark,
    },
    /// Messages of a session that were asked of the store ([`Load`](super::Load)), or that there will be none.
    Loaded(Box<Loaded>),
    /// Describe one device; answered by [`super::WorkerEvent::Described`].
    Describe {
        /// The number that the answer carries.
        request: u64,
        /// The device asked for; this worker is its home.
        device: Box<str>,
    },
    /// List devices of this shard in order of their ids; answered by [`super::WorkerEvent::Listed`].
    List {
        /// The number that the answer carries.
        request: u64,
        /// Which devices.
        filter: DeviceFilter,
    },
    /// Say something to one device; answered by [`super::WorkerEvent::Sent`].
    Send {
        /// The number that the answer carries.
        request: u64,
        /// The device; this worker is its home.
        device: Box<str>,
        /// The message for the device.
        downlink: Downlink,
        /// Whether the device is asked to acknowledge it, and the answer waits for that.
        acknowledge: bool,
    },
    /// End a device's connection with [`super::CloseReason::Requested`]; answered by [`super::WorkerEvent::Sent`], as
    /// delivered or offline.
    Disconnect {
        /// The number that the answer carries.
        request: u64,
        /// The device; this worker is its home.
        device: Box<str>,
    },
    /// End a device's connection because another gateway of the fleet has the device now. Not answered.
    Disown {
        /// The device; this worker is its home.
        device: Box<str>,
        /// Which of its connections; a newer one stays.
        generation: u64,
        /// Whether it ends because two places fight over the id: [`super::CloseReason::TakeoverLoop`], else
        /// [`super::CloseReason::TakenOver`].
        is_loop: bool,
    },
    /// Say something to many devices of this shard, a slice a turn; told of by [`super::WorkerEvent::Broadcast`].
    Broadcast {
        /// The broadcast's number.
        broadcast: u64,
        /// Only devices whose ids begin so; empty for all.
        prefix: Box<str>,
        /// The message for the device.
        downlink: Downlink,
        /// At most so many devices of this shard in one second, at least 1.
        per_second: u32,
    },
    /// Publish a will that was due ([`super::WorkerEvent::WillDue`]), as its device would have. Not answered.
    PublishWill {
        /// Whose it is; this worker is its home.
        device: Box<str>,
        /// Through which listener the device had come.
        listener: ListenerId,
        /// The message.
        publication: Box<Publication>,
    },
    /// The answer to [`super::WorkerEvent::Interest`]: what others publish comes here as far as it is wanted, or other gateways cannot be
    /// reached. Whoever waits for that goes on.
    InterestHeld {
        /// Which change; the latest that was said.
        version: u64,
    },
    /// The answer to [`super::WorkerEvent::Group`], and said again when it changes: who gives to a group what is published and goes up.
    GroupServed {
        /// Which, as `$share/NAME/FILTER`; this worker is its home.
        group: Arc<str>,
        /// Which of its lives was told of; another one is not meant.
        life: u32,
        /// Who.
        giver: Giver,
    },
    /// In a fleet: a member of this group that is connected here gets a message. Answered by [`super::WorkerEvent::Sent`], when it is safe
    /// with the member or acknowledged; [`super::Outcome::Unacknowledged`]: somebody else is to get it.
    GiveToGroup {
        /// The number that the answer carries.
        request: u64,
        /// Which, as `$share/NAME/FILTER`; this worker is its home.
        group: Arc<str>,
        /// What.
        publication: Box<Publication>,
    },
    /// The answer to [`super::WorkerEvent::SessionWanted`].
    SessionSettled {
        /// Whose CONNECT waits.
        connection: ConnectionId,
        /// How it goes on.
        verdict: SessionVerdict,
    },
    /// Something about the session of a device, which comes from another gateway or goes there.
    Session {
        /// The number that the answer carries.
        request: u64,
        /// The device; this worker is its home.
        device: Box<str>,
        /// What.
        order: SessionOrder,
    },
    /// The answer to [`super::WorkerEvent::SessionChanged`]: the row of the session says so, or nobody can write it.
    SessionWritten {
        /// Whose SUBACK waits,
        session: SessionId,
        /// and under which number.
        waits: u32,
        /// Whether it says so.
        is_true: bool,
    },
    /// How the sessions stand; answered by [`super::WorkerEvent::Sent`].
    Round(Round),
    /// Say [`super::WorkerEvent::Fence`]: behind all that was said before.
    Fence {
        /// The number that it carries.
        request: u64,
    },
    /// Publish a message to whoever has subscribed to its topic, in every shard; answered by [`super::WorkerEvent::Sent`] with
    /// [`super::Outcome::Delivered`] when every shard has taken it.
    Publish {
        /// The number that the answer carries.
        request: u64,
        /// What: `stamp` and `publisher` are not set yet.
        publication: Box<Publication>,
    },
    /// A retained message of the fleet, or an empty one: its topic has none any more. Whatever was published later stays; subscribers get
    /// it in another way. Answered like [`WorkerCommand::Publish`].
    Retain {
        /// The number that the answer carries.
        request: u64,
        /// What, with its stamp; this worker is its topic's home.
        publication: Box<Publication>,
    },
    /// What another shard has to say, in its order. What it passes on has a lane of its own.
    Peers {
        /// Who says it.
        from: WorkerId,
        /// Answers, credit, and words about groups.
        answers: Vec<ShardMessage>,
    },
    /// Go no further with a broadcast; its last [`super::WorkerEvent::Broadcast`] says how far it went.
    CancelBroadcast {
        /// The broadcast's number.
        broadcast: u64,
    },
    /// These traces are followed from now on, and no others.
    Trace(Arc<[Arc<Trace>]>),
    /// The gateway ends: accept nothing more, tell every device within `window`, then end the worker.
    Shutdown {
        /// Over how long the goodbyes are spread.
        window: Duration,
    },
}

/// Who gives to a group of shared subscribers what is published and goes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Giver {
    /// The fleet: one member of it somewhere gets each message, whichever gateway it was published at.
    Fleet,
    /// This gateway, what was published at it, until the fleet does again: others are told which messages.
    Here,
    /// Each gateway what was published at it: the fleet knows nothing of this group.
    Each,
}

impl WorkerCommand {
    /// Whether it goes with messages, as many times a second as these: what other shards and the store say. All else is asked once.
    #[must_use]
    pub fn goes_with_messages(&self) -> bool {
        matches!(self, Self::MessageSettled { .. } | Self::Safe { .. } | Self::Peers { .. })
    }
}

/// Something for a device. Its payload is shared, not copied, on its way to many.
#[derive(Clone, Debug)]
pub struct Downlink {
    /// Under which topic; not used where the protocol has none.
    pub topic: Box<str>,
    /// The payload: opaque bytes.
    pub payload: Bytes,
}

/// Which devices a listing wants: the first `limit` ids after `after` that begin with `prefix`, in byte order.
#[derive(Clone, Debug, Default)]
pub struct DeviceFilter {
    /// Only ids strictly greater; empty for all.
    pub after: Box<str>,
    /// Only ids that begin so; empty for all.
    pub prefix: Box<str>,
    /// At most so many.
    pub limit: usize,
}

impl DeviceFilter {
    /// Whether `device` belongs to the listing (its bound aside).
    #[must_use]
    pub fn matches(&self, device: &str) -> bool {
        device.starts_with(&*self.prefix) && (self.after.is_empty() || device > &*self.after)
    }
}

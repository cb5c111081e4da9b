//! What a worker says: batches of events, one a turn at most.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{
    CloseReason, ConnectionId, Cover, Credentials, ListenerId, Publication, SessionChanged, SessionWanted, Traits,
    WorkerId,
};
use crate::pool::Charge;
use crate::time::Moment;

/// What one worker said in one turn, in the order in which it happened.
#[derive(Debug)]
pub struct Batch {
    /// Who says it.
    pub worker: WorkerId,
    /// What happened; never empty.
    pub events: Vec<WorkerEvent>,
    /// Whether somebody waits for any of it.
    pub is_awaited: bool,
}

impl Batch {
    /// What `worker` says. Looks once at each event, for all who handle it.
    #[must_use]
    pub fn new(worker: WorkerId, events: Vec<WorkerEvent>) -> Self {
        let is_awaited = events.iter().any(WorkerEvent::is_awaited);
        Self { worker, events, is_awaited }
    }
}

/// One thing that a worker says.
#[derive(Debug)]
pub enum WorkerEvent {
    /// A device is here.
    Connected(Presence),
    /// A device is gone. Exactly one for each [`WorkerEvent::Connected`], with the same generation.
    Disconnected(Presence, CloseReason),
    /// A connection ended that had not become a device: for whoever asks why a device does not come in.
    NotAdmitted(Box<NotAdmitted>),
    /// Two places take a device's id from each other again and again, and from now on newcomers wait. Once for each such fight.
    TakeoverLoop(Box<TakeoverLoop>),
    /// A device is to be kept out for a while: it sent more than it may for too long.
    KeepOut {
        /// Which.
        device: Box<str>,
        /// For how long.
        span: Duration,
    },
    /// A device said something for the backend.
    Message(Message),
    /// A device offers what somebody with time must check; answered by `WorkerCommand::Authenticated`.
    Authenticate {
        /// The connection that waits.
        connection: ConnectionId,
        /// Through which listener it came: what is asked of it is the listener's.
        listener: ListenerId,
        /// What it offers as proof.
        credentials: Box<Credentials>,
        /// From where it comes: nobody is to keep others out. The shard leaves it out, the worker fills it in.
        peer: Option<IpAddr>,
    },
    /// In a fleet: a will that waited for its delay is due. Answered by `WorkerCommand::PublishWill`, unless the device is at another
    /// gateway by now.
    WillDue(Box<DelayedWill>),
    /// In a fleet: what this shard's sessions have subscribed to has changed. Answered by `WorkerCommand::InterestHeld`, and said again
    /// only after that.
    Interest {
        /// Which change of it: grows.
        version: u64,
        /// What of what others publish is to come here.
        cover: Box<Cover>,
    },
    /// In a fleet: a group of shared subscribers whose home this shard is has come, gone, or changed much. Answered by
    /// `WorkerCommand::GroupServed` when it has come.
    Group {
        /// Which, as `$share/NAME/FILTER`.
        group: Arc<str>,
        /// Which of its lives this is.
        life: u32,
        /// How many have subscribed; 0: it is no more.
        members: u32,
        /// How much those of them that are connected may have of what the fleet gives and they have not acknowledged; 0: none is.
        room: u32,
    },
    /// In a fleet: a device has come whose session may be at another gateway.
    SessionWanted(Box<SessionWanted>),
    /// In a fleet: what stands in the row of a session has changed.
    SessionChanged(SessionChanged),
    /// In a fleet: a device's session has ended, and no other has begun.
    SessionGone(Box<str>),
    /// The answer to `WorkerCommand::Fence`: all that this worker said before is with the control plane.
    Fence {
        /// The number of the request.
        request: u64,
    },
    /// The answer to `WorkerCommand::Describe`.
    Described {
        /// The number of the request.
        request: u64,
        /// The device, if it is here.
        description: Option<Box<Description>>,
    },
    /// The answer to `WorkerCommand::Send` or `WorkerCommand::Disconnect`.
    Sent {
        /// The number of the request.
        request: u64,
        /// What became of it.
        outcome: Outcome,
    },
    /// How far a broadcast has come on this shard: at least once a second while it goes on, and once at its end.
    Broadcast {
        /// The broadcast's number.
        broadcast: u64,
        /// Devices it was said to so far.
        sent: u64,
        /// Devices that did not take it so far.
        refused: u64,
        /// Nothing more will come of it: it has reached all, or was cancelled.
        is_over: bool,
    },
    /// The answer to `WorkerCommand::List`.
    Listed {
        /// The number of the request.
        request: u64,
        /// In byte order of their ids.
        devices: Vec<Description>,
    },
}

/// What became of something said to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is on its way on a live connection; whether it arrives nobody promises.
    Delivered,
    /// The device has acknowledged it.
    Acknowledged,
    /// The device is not connected.
    Offline,
    /// The connection ended, or newer messages took its place, before the device had acknowledged it. It may have arrived.
    Unacknowledged,
    /// The device takes no such message: its protocol has no acknowledgements, or the message is too long for it.
    Refused(&'static str),
}

/// Why an MQTT device takes a message not now: it may subscribe yet.
pub const NOT_SUBSCRIBED: &str = "the device has not subscribed to this topic";
/// Why an MQTT device takes no message now whose acknowledgement is wanted.
pub const SUBSCRIBED_WITHOUT_ACK: &str =
    "the device has subscribed to this topic with QoS 0, which has no acknowledgements";

/// Whether a device that refuses for this reason may take the same message later.
#[must_use]
pub fn is_refused_for_now(why: &str) -> bool {
    [NOT_SUBSCRIBED, SUBSCRIBED_WITHOUT_ACK].contains(&why)
}

/// The facts of a presence event. Node and epoch are the same for the whole process and are added where the event
/// leaves it.
#[derive(Clone, Debug)]
pub struct Presence {
    /// The id of the device.
    pub device: Box<str>,
    /// Through which listener.
    pub listener: ListenerId,
    /// Which of the device's connections: grows with each one, within an epoch.
    pub generation: u64,
    /// This event's place among all of its shard's presence events, from 1 and without gaps.
    pub sequence: u64,
    /// When it happened.
    pub at: Moment,
    /// When the device was last heard, to a tick.
    pub last_heard: Moment,
    /// Its connection.
    pub facts: Box<ConnectionFacts>,
}

/// What is known of a connection that begins or ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionFacts {
    /// Which.
    pub connection: ConnectionId,
    /// From where. The shard leaves it out, the worker fills it in; unknown only when the kernel does not know any more.
    pub peer: Option<SocketAddr>,
    /// How the id was learned, by the label of the rule; empty before the TLS handshake was complete.
    pub identity: &'static str,
    /// `TLSv1.2` or `TLSv1.3`; empty before the TLS handshake was complete.
    pub tls_version: &'static str,
    /// Since when it was there, to a tick.
    pub connected_at: Moment,
    /// What can be said of its end besides the reason, in words; may be empty.
    pub detail: Cow<'static, str>,
}

/// The end of a connection that was no device.
#[derive(Clone, Debug)]
pub struct NotAdmitted {
    /// Who it says that it is; empty where it had not come to that.
    pub device: Box<str>,
    /// Through which listener.
    pub listener: ListenerId,
    /// Why.
    pub reason: CloseReason,
    /// When.
    pub at: Moment,
    /// Its connection.
    pub facts: ConnectionFacts,
}

/// Two places fight over a device's id.
#[derive(Clone, Debug)]
pub struct TakeoverLoop {
    /// Whose.
    pub device: Box<str>,
    /// Through which listener the newcomer came that is the first to wait.
    pub listener: ListenerId,
    /// Its connection.
    pub connection: ConnectionId,
    /// From where it came; the other one is in the device's own description. The shard leaves it out, the worker fills it in.
    pub peer: Option<SocketAddr>,
    /// When.
    pub at: Moment,
}

/// Something that a device said for the backend.
#[derive(Debug)]
pub struct Message {
    /// Who said it.
    pub device: Box<str>,
    /// The connection that it came through.
    pub connection: ConnectionId,
    /// Under which topic; empty where the protocol has none.
    pub topic: Box<str>,
    /// The payload: opaque bytes.
    pub payload: Bytes,
    /// How it was published, where it is for subscribers too.
    pub published: Option<Traits>,
    /// To whom to say that the backbone holds it, if anybody wants to hear it.
    pub receipt: Option<Receipt>,
    /// What it takes of its shard's pool until the backbone has it.
    pub charge: Option<Charge>,
}

/// A will that has waited for its delay.
#[derive(Debug)]
pub struct DelayedWill {
    /// Whose it is.
    pub device: Box<str>,
    /// Through which listener the device had come.
    pub listener: ListenerId,
    /// The message, ready to be published.
    pub publication: Box<Publication>,
    /// What it takes of its shard's pool.
    pub charge: Option<Charge>,
}

/// To whom a message's acceptance by the backbone is to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// To the connection it came from, under the id that the device gave it.
    Connection(ConnectionId, u32),
    /// To the shard it came from, under the number that its settlement has there.
    Publication(u32),
}

/// All that the gateway knows of one connected device.
#[derive(Clone, Debug)]
pub struct Description {
    /// Its id.
    pub device: Box<str>,
    /// Its connection.
    pub connection: ConnectionId,
    /// Its home.
    pub worker: WorkerId,
    /// `heard` or `probed`.
    pub state: &'static str,
    /// Through which listener.
    pub listener: ListenerId,
    /// From where; unknown only while the connection is ending.
    pub peer: Option<SocketAddr>,
    /// `TLSv1.2` or `TLSv1.3`.
    pub tls_version: &'static str,
    /// The suite by its IANA name.
    pub tls_suite: &'static str,
    /// How the id was learned: `hello`, `cert-cn`, `cert-san-dns`, `cert-san-uri` or `generated`.
    pub identity: &'static str,
    /// Since when.
    pub connected_at: Moment,
    /// When it was last heard, to a tick.
    pub last_heard: Moment,
    /// The latest heartbeat's round trip, if one was measured.
    pub round_trip: Option<Duration>,
    /// Which of the device's connections.
    pub generation: u64,
    /// Its MQTT session, where it speaks that.
    pub session: Option<Box<SessionFacts>>,
}

/// What is known of a connected device's MQTT session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionFacts {
    /// `3.1.1` or `5.0`.
    pub version: &'static str,
    /// The keep-alive in force, in seconds; 0: none.
    pub keep_alive_s: u16,
    /// How long the session outlives the connection, in seconds; `u32::MAX`: for ever.
    pub expiry_s: u32,
    /// What it has subscribed to: the filter as written, and the QoS granted. Not all, where they are many or long.
    pub subscriptions: Vec<(Box<str>, u8)>,
    /// How many there are.
    pub subscription_count: usize,
    /// Messages to the device that wait for its acknowledgement.
    pub inflight: usize,
    /// Messages to the device that wait for their turn.
    pub queued: usize,
    /// Bytes that these take.
    pub queued_bytes: usize,
}

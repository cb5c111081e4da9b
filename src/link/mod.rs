//! The seam between the planes and between shards: what may be said across threads, as plain data.
//!
//! Workers and the control plane never name each other; both speak in [`WorkerCommand`] (into a worker) and [`WorkerEvent`]
//! (out of a worker). Nothing here touches a socket or waits.

pub mod addresses;
pub mod changes;
pub mod command;
pub mod deny;
pub mod doorbell;
pub mod event;
pub mod event_channel;
pub mod grant;
pub mod groups;
pub mod handover;
pub mod home;
pub mod interest;
pub mod mailbox;
pub mod publication;
pub mod reason;
pub mod rest;
pub mod shard_message;
pub mod trace;

use std::fmt;

pub use crate::codec::mqtt::QoS;
pub use crate::image::Stamp;
pub use crate::slot::{ConnectionSlot, SessionSlot};
pub use addresses::{ADDRESS_ENTRIES, ADDRESS_ENTRY_BYTES, AddressBounds, AddressRules, AddressTable, Counted};
pub use changes::{ChangeMark, Changes, Load, Loaded};
pub use command::{DeviceFilter, Downlink, Giver, WorkerCommand};
pub use deny::{
    DENIED_CERTIFICATES_MAX, DENIED_DEVICES_MAX, DENIED_NETWORKS_MAX, DenyList, Fingerprint, NotAFingerprint, Subject,
};
pub use doorbell::Doorbell;
pub use event::{
    Batch, ConnectionFacts, DelayedWill, Description, Message, NOT_SUBSCRIBED, NotAdmitted, Outcome, Presence, Receipt,
    SUBSCRIBED_WITHOUT_ACK, SessionFacts, TakeoverLoop, WorkerEvent, is_refused_for_now,
};
pub use event_channel::{EventReceiver, EventSender, event_channel};
pub use grant::{AuthAnswer, Credentials, GRANT_BYTES_MAX, GRANT_FILTERS_MAX, Grant};
pub use groups::{
    GROUP_ROOM_MAX, GROUPS_HERE_MAX, GroupNames, GroupsHere, group_filter, group_key, group_keys, group_wants,
};
pub use handover::{
    Cut, Lag, NO_ROOM_FOR_SESSION, Outline, Round, STILL_CONNECTED, SessionChanged, SessionOrder, SessionVerdict,
    SessionWanted, Standing, Told,
};
pub use home::Home;
pub use interest::{COVER_FILTERS, Cover};
pub use mailbox::{Inbox, Mailbox, MailboxFull, mailbox};
pub use publication::{Publication, Reach, SessionId, Traits};
pub use reason::{CloseReason, Refusal};
pub use rest::Rest;
pub use shard_message::{Choice, Class, Credit, Exchange, Outgoing, Passed, Recipient, ShardMessage};
pub use trace::{
    Direction, TRACE_BYTES, TRACE_CONNECTIONS_MAX, TRACE_EVENTS_PER_SECOND, TRACE_PAYLOAD_MAX, TRACE_WORDS_MAX,
    TRACES_MAX, Trace, TraceDepth, TraceEvent, TraceSubject, TraceWhat, TracedPacket,
};

/// A worker, and so its shard: `0..workers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u16);

impl WorkerId {
    /// The worker's place in any per-worker array.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A handle to a connection within one shard. A stale one finds nothing: slots are reused, generations are not
/// (until 2^32 newer connections have come to the same shard).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    /// The slot in the shard's slab.
    pub slot: ConnectionSlot,
    /// The low half of the shard's count of connections when this one took its slot.
    pub generation: u32,
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot, self.generation)
    }
}

/// Which of the configured listeners a connection came through: its index in `Config::listeners`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerId(pub u8);

impl ListenerId {
    /// The listener's place in `Config::listeners`.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

//! Traces: what an operator wants to see of a device or of a network while it happens, and where the workers put it.
//!
//! ```text
//!   control ──WorkerCommand::Trace(all that are followed)──▶ worker: which connections are they about?
//!      ▲                                                  │ tell: never waits
//!      └───────── TRACE_EVENTS_WAITING events, and how many were left out ◀┘
//! ```
//!
//! They do not go through the uplink: whoever looks at a gateway in trouble neither waits behind what it is in trouble with, nor
//! makes a device wait. Everything is bounded, and what is left out at a bound is counted and told to whoever follows.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};

use super::{CloseReason, ConnectionId, ListenerId, Refusal, WorkerId};
use crate::network::Network;
use crate::time::Moment;

/// Traces at a time: each costs every event of every connection a comparison.
pub const TRACES_MAX: usize = 4;
/// Events of one trace that wait for whoever follows it.
pub const TRACE_EVENTS_WAITING: usize = 1_024;
/// Events of one trace in one second and one worker: what a person, or a disk, can follow.
pub const TRACE_EVENTS_PER_SECOND: u32 = 1_000;
/// Connections of one worker that are known to be in traced networks at a time.
pub const TRACE_CONNECTIONS_MAX: usize = 4_096;
/// Bytes of a payload that are shown.
pub const TRACE_PAYLOAD_MAX: usize = 256;
/// Bytes of an event's words.
pub const TRACE_WORDS_MAX: usize = 512;

/// What all traces together hold at the very most.
pub const TRACE_BYTES: usize = TRACES_MAX
    * TRACE_EVENTS_WAITING
    * (size_of::<TraceEvent>() + size_of::<TracedPacket>() + TRACE_PAYLOAD_MAX + TRACE_WORDS_MAX);

/// Whom a trace is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceSubject {
    /// The device with this id, from when it is known.
    Device(Box<str>),
    /// Whoever comes from there, from accept on.
    Network(Network),
}

/// How much of it is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TraceDepth {
    /// Packets by name, with what is in their headers.
    pub packets: bool,
    /// The first bytes of what devices say and are told, too.
    pub payloads: bool,
}

/// One trace: whom it is about, and the way to who follows it.
#[derive(Debug)]
pub struct Trace {
    /// Whom it is about.
    pub subject: TraceSubject,
    /// How much is shown.
    pub depth: TraceDepth,
    /// It is over then, whether its follower has noticed or not.
    pub until: Moment,
    events: Sender<TraceEvent>,
    left_out: AtomicU64,
}

impl Trace {
    /// A trace, and where its events arrive.
    #[must_use]
    pub fn new(subject: TraceSubject, depth: TraceDepth, until: Moment) -> (Arc<Self>, Receiver<TraceEvent>) {
        let (events, arrive) = crossbeam_channel::bounded(TRACE_EVENTS_WAITING);
        (Arc::new(Self { subject, depth, until, events, left_out: AtomicU64::new(0) }), arrive)
    }

    /// Puts an event where its follower finds it. Never waits: where there is no room it is left out.
    pub fn tell(&self, event: TraceEvent) {
        if self.events.try_send(event).is_err() {
            self.leave_out(1);
        }
    }

    /// Events of it were not told.
    pub fn leave_out(&self, count: u64) {
        self.left_out.fetch_add(count, Ordering::Relaxed);
    }

    /// How many were not since this was asked last.
    pub fn take_left_out(&self) -> u64 {
        self.left_out.swap(0, Ordering::Relaxed)
    }
}

/// One thing that happened to a traced connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceEvent {
    /// When.
    pub at: Moment,
    /// Where.
    pub worker: WorkerId,
    /// To which connection; none: it got no slot.
    pub connection: Option<ConnectionId>,
    /// Through which listener.
    pub listener: ListenerId,
    /// From where. The shard leaves it out where no proxy has said it, the turn fills it in.
    pub address: Option<IpAddr>,
    /// The port there; 0: not known.
    pub port: u16,
    /// Who it says that it is; empty: it has not come to that.
    pub device: Box<str>,
    /// What.
    pub what: TraceWhat,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceWhat {
    /// A socket was accepted.
    Accepted,
    /// A socket was closed at once, or a connection as soon as a proxy had said whose it is.
    Refused(Refusal),
    /// A proxy has said whose connection it is.
    Announced,
    /// Its TLS handshake has begun, so long after it was accepted: for want of bytes, or of a place.
    Handshake {
        /// How long, in whole ticks: it may be one less or more.
        waited: Duration,
    },
    /// TLS is established.
    Established {
        /// `TLSv1.2` or `TLSv1.3`.
        version: &'static str,
        /// The suite by its IANA name.
        suite: &'static str,
        /// It was a resumption.
        is_resumed: bool,
        /// The client has shown a certificate.
        is_certified: bool,
    },
    /// An authenticator is asked about it.
    Asked {
        /// It is a device, and wants to stay for longer.
        is_renewal: bool,
    },
    /// It may come in, or stay.
    Granted,
    /// It leaves for the worker where it is at home.
    Moving {
        /// Which.
        home: WorkerId,
    },
    /// It has come home.
    Arrived,
    /// It is a device now.
    Connected {
        /// How its id was learned.
        identity: &'static str,
    },
    /// It was silent for as long as it may, and is asked for a sign of life.
    Probed,
    /// It has answered.
    Answered {
        /// How long it took; none: nobody can tell.
        round_trip: Option<Duration>,
    },
    /// It is not read on for now: there is no room for what it says.
    Paused,
    /// Its socket takes no more: so many bytes wait.
    Unsent {
        /// How many.
        bytes: usize,
    },
    /// A packet.
    Packet(Box<TracedPacket>),
    /// It was there when the trace began.
    Present,
    /// It has ended.
    Ended {
        /// Why.
        reason: CloseReason,
        /// More of it, in words; may be empty.
        detail: Cow<'static, str>,
    },
}

impl TraceWhat {
    /// The word for it.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            TraceWhat::Accepted => "accepted",
            TraceWhat::Refused(_) => "refused",
            TraceWhat::Announced => "announced",
            TraceWhat::Handshake { .. } => "handshake",
            TraceWhat::Established { .. } => "established",
            TraceWhat::Asked { .. } => "asked",
            TraceWhat::Granted => "granted",
            TraceWhat::Moving { .. } => "moving",
            TraceWhat::Arrived => "arrived",
            TraceWhat::Connected { .. } => "connected",
            TraceWhat::Probed => "probed",
            TraceWhat::Answered { .. } => "answered",
            TraceWhat::Paused => "paused",
            TraceWhat::Unsent { .. } => "unsent",
            TraceWhat::Packet(_) => "packet",
            TraceWhat::Present => "present",
            TraceWhat::Ended { .. } => "ended",
        }
    }
}

/// Where a packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device said it.
    In,
    /// The gateway said it.
    Out,
}

/// A packet of a device protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracedPacket {
    /// Who said it.
    pub direction: Direction,
    /// What its protocol calls it.
    pub name: &'static str,
    /// Its length.
    pub bytes: usize,
    /// What is in its header, in words. Never a secret, never a payload.
    pub words: String,
    /// The first bytes of its payload, where these are shown and it has one.
    pub payload: Option<Bytes>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_is_counted_once_and_nobody_waits() {
        let (trace, arrive) =
            Trace::new(TraceSubject::Device("a".into()), TraceDepth::default(), Moment::from_micros(1));
        let event = TraceEvent {
            at: Moment::default(),
            worker: WorkerId(0),
            connection: None,
            listener: ListenerId(0),
            address: None,
            port: 0,
            device: Box::default(),
            what: TraceWhat::Accepted,
        };
        for _ in 0..TRACE_EVENTS_WAITING + 3 {
            trace.tell(event.clone());
        }
        trace.leave_out(2);
        assert_eq!((arrive.len(), trace.take_left_out(), trace.take_left_out()), (TRACE_EVENTS_WAITING, 5, 0));
        drop(arrive);
        trace.tell(event);
        assert_eq!(trace.take_left_out(), 1, "nobody is there");
    }
}

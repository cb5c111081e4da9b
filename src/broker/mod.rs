//! MQTT sessions of one shard: what outlives a connection, who has subscribed to what, and which message goes to whom.
//!
//! ```text
//!                attach (CONNECT)                     the session expires,
//!   (none) ───────────────────────▶ Online           or begins anew
//!                                   │    ▲ attach          ▲
//!                            detach │    │                 │
//!                                   ▼    │                 │
//!                                   Away ──────────────────┘
//! ```
//!
//! A session lives in its device's home shard, so that all of it is single-threaded. It knows its connection by slot
//! only and never seals or sends: what a device is to get is encoded into a buffer that the connection lends. What
//! other shards are to get is left in [`Broker::take_outgoing`]. Nothing here reads a clock.
//!
//! The parts: [`subscriptions`] (filters to sessions), [`retained`], `groups` (shared subscriptions), `inflight` (what is in
//! flight), `replay` (retained messages for new subscriptions), `routing` (from a publication to deliveries), `delivery` (from deliveries to bytes), `lifecycle` (attach, detach, expiry).

mod delivery;
mod groups;
mod inflight;
mod lifecycle;
mod replay;
mod routing;

pub mod retained;
pub mod subscriptions;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use slab::Slab;

pub use delivery::{Known, SendBudget, SessionBatch};
pub use inflight::{Answer, Delivery, Identifiers, WrongAck};
pub use lifecycle::{Arrival, Attached, DueWill, Will};
pub use routing::{Granted, Unsubscribed};

use crate::codec::mqtt::Version;
use crate::config::Limits;
use crate::devices::Devices;
use crate::link::{Exchange, Home, ListenerId, Peer, SessionId, WorkerId};
use crate::metrics::{Counters, Figure};
use crate::pool::Pool;
use crate::time::Tick;
use crate::wheel::Wheel;
use groups::Groups;
use inflight::Inflight;
use retained::Retained;
use subscriptions::{Subscriber, Subscriptions};

/// Topic aliases of one connection, each way.
pub const ALIASES_MAX: u16 = 16;

/// Deliveries that wait to be delivered, and things for one other shard that wait for its inbox, at which publishers are
/// read no further.
const CONGESTED_AT: usize = 8_192;

/// No connection.
const NOBODY: u32 = u32::MAX;

/// The bounds of one shard's sessions.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Sessions kept while their devices are away.
    pub away: usize,
    /// Messages in flight in one session, each way.
    pub inflight: u16,
    /// Messages waiting in one session.
    pub messages: usize,
    /// Bytes of them.
    pub bytes: usize,
    /// Subscriptions of one session.
    pub subscriptions: usize,
    /// Retained messages.
    pub retained_messages: usize,
    /// Bytes of them.
    pub retained_bytes: usize,
    /// The shard's pool of variable bytes.
    pub pool_bytes: usize,
}

impl Bounds {
    /// Each shard's, of a gateway with `workers` workers.
    #[must_use]
    pub fn of(limits: &Limits, workers: u16) -> Self {
        Self {
            away: (limits.sessions as usize).div_ceil(usize::from(workers)),
            inflight: limits.session_inflight,
            messages: limits.session_messages,
            bytes: limits.session_bytes,
            subscriptions: limits.session_subscriptions,
            retained_messages: limits.retained_messages,
            retained_bytes: limits.retained_bytes,
            pool_bytes: limits.pool_bytes / usize::from(workers),
        }
    }
}

/// What a shard's sessions are made with.
pub struct Setup {
    /// Whose they are.
    pub worker: WorkerId,
    /// Where devices and groups live.
    pub home: Home,
    /// What all shards share.
    pub exchange: Arc<Exchange>,
    /// The bounds.
    pub bounds: Bounds,
    /// Keys the hashes of topic levels, so that nobody outside can choose levels that collide.
    pub key: u64,
}

/// What the device has said of itself in CONNECT, as it is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The protocol's version.
    pub version: Version,
    /// The listener it came through.
    pub listener: ListenerId,
    /// Keep-alive in seconds; 0: none.
    pub keep_alive_s: u16,
    /// How long the session outlives the connection, in seconds; `u32::MAX`: for ever.
    pub expiry_s: u32,
    /// Messages with QoS above 0 that the device takes at a time.
    pub receive_maximum: u16,
    /// The longest packet that the device takes, in bytes.
    pub packet_maximum: u32,
    /// Topic aliases that the device takes.
    pub alias_maximum: u16,
}

/// One session.
struct Session {
    profile: Profile,
    generation: u32,
    /// The slot of its connection, or [`NOBODY`].
    connection: u32,
    next_packet: u16,
    /// Whether it is listed in [`Broker::backlog`].
    is_backlogged: bool,
    walk: Walk,
    /// Bytes that it has been sent in this turn: a device is sent no more at a time than its outbox could hold.
    turn_bytes: u32,
    turn: u32,
    /// The device's id, while it is away: until then the connection has it.
    device: Box<str>,
    /// When the device went away.
    away_since: Tick,
    will: Option<Box<Will>>,
    inflight: Option<Box<Inflight>>,
    groups: Vec<Membership>,
}

const _: () = assert!(size_of::<Session>() <= 112);

/// How a session stands among those whose retained messages are looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Walk {
    /// Nothing is to be looked up, or the device takes nothing now.
    #[default]
    None,
    /// It is listed in [`Broker::walks`].
    Waits,
    /// It is its turn.
    Due,
}

/// A shared subscription as its member knows it.
struct Membership {
    group: Arc<str>,
    options: u8,
    identifier: u32,
}

/// A delivery and whose it is.
struct RoutedDelivery {
    session: u32,
    generation: u32,
    delivery: Delivery,
}

/// All MQTT state of one shard. See the head of this file.
pub struct Broker {
    worker: WorkerId,
    home: Home,
    exchange: Arc<Exchange>,
    bounds: Bounds,
    pool: Arc<Pool>,

    all: Slab<Session>,
    generations: u32,
    /// By connection: the slot of its session, or [`NOBODY`].
    attached: Vec<u32>,
    /// Sessions of devices that are away.
    away: Devices,
    /// When something is due in a session whose device is away.
    wheel: Wheel,
    due: Vec<u32>,

    subscriptions: Subscriptions,
    groups: Groups,
    retained: Retained,

    deliveries: std::collections::VecDeque<RoutedDelivery>,
    /// Sessions whose devices did not take all at once.
    backlog: Vec<(u32, u32)>,
    /// Sessions whose retained messages are to be looked up, in turns.
    walks: std::collections::VecDeque<(u32, u32)>,
    /// Looks at retained messages that are left in this turn.
    looks: usize,
    /// How many SUBSCRIBE packets have come.
    packets: u32,
    /// By worker.
    outgoing: Vec<Vec<Peer>>,
    /// Requests of the API whose messages will not be acknowledged any more.
    unanswered: Vec<u64>,
    turn: u32,
    found: Vec<Subscriber>,
}

impl Broker {
    /// No sessions yet.
    #[must_use]
    pub fn new(setup: Setup, now: Tick) -> Self {
        let workers = setup.exchange.workers();
        let (messages_max, bytes_max) = (setup.bounds.retained_messages, setup.bounds.retained_bytes);
        Self {
            worker: setup.worker,
            home: setup.home,
            exchange: setup.exchange,
            bounds: setup.bounds,
            pool: Arc::new(Pool::new(setup.bounds.pool_bytes)),
            all: Slab::new(),
            generations: 0,
            attached: Vec::new(),
            away: Devices::default(),
            wheel: Wheel::new(now),
            due: Vec::new(),
            subscriptions: Subscriptions::new(setup.key),
            groups: Groups::new(setup.key.rotate_left(32)),
            retained: Retained::new(setup.worker, workers, messages_max, bytes_max),
            deliveries: std::collections::VecDeque::new(),
            backlog: Vec::new(),
            walks: std::collections::VecDeque::new(),
            looks: 0,
            packets: 0,
            outgoing: (0..workers).map(|_| Vec::new()).collect(),
            unanswered: Vec::new(),
            turn: 0,
            found: Vec::new(),
        }
    }

    // --- Getters ----------------------------------------------------------------------------------------------------

    /// The bounds.
    #[must_use]
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// The shard's pool of variable bytes, for those beside the sessions who take from it too.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The session of a connection.
    #[must_use]
    pub fn of(&self, connection: u32) -> Option<u32> {
        self.attached.get(connection as usize).copied().filter(|&session| session != NOBODY)
    }

    /// A session's handle across shards.
    #[must_use]
    pub fn id(&self, session: u32) -> SessionId {
        SessionId { worker: self.worker, index: session, generation: self.all[session as usize].generation }
    }

    /// What the device has said of itself.
    #[must_use]
    pub fn profile(&self, session: u32) -> &Profile {
        &self.all[session as usize].profile
    }

    /// Whether so much waits to be delivered that publishers are to be read no further: their messages wait in their
    /// sockets, and none is lost.
    #[must_use]
    pub fn is_congested(&self) -> bool {
        self.has_many_deliveries() || self.outgoing.iter().any(|peers| peers.len() >= CONGESTED_AT)
    }

    /// Whether so many deliveries wait to be delivered that no more should be made this turn. They wait for nobody but the
    /// deliver phase.
    #[must_use]
    pub fn has_many_deliveries(&self) -> bool {
        self.deliveries.len() >= CONGESTED_AT
    }

    /// Whether deliveries wait to be delivered, or retained messages to be looked up.
    #[must_use]
    pub fn has_deliveries(&self) -> bool {
        !self.deliveries.is_empty() || !self.backlog.is_empty() || !self.walks.is_empty()
    }

    /// Whether anything waits for another shard.
    #[must_use]
    pub fn has_outgoing(&self) -> bool {
        self.outgoing.iter().any(|peers| !peers.is_empty())
    }

    /// What is to be said to this worker, in order; what it did not take is given back with
    /// [`Broker::give_back_outgoing`].
    pub fn take_outgoing(&mut self, worker: WorkerId) -> Vec<Peer> {
        std::mem::take(&mut self.outgoing[worker.index()])
    }

    /// The worker's inbox is full.
    pub fn give_back_outgoing(&mut self, worker: WorkerId, mut peers: Vec<Peer>) {
        let newer = &mut self.outgoing[worker.index()];
        peers.append(newer);
        *newer = peers;
    }

    /// Requests of the API whose messages will not be acknowledged any more.
    pub fn take_unanswered(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.unanswered)
    }

    /// When a session has something due, if nothing happens before: never later than the earliest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        self.wheel.next()
    }

    /// A session that is not the one that was meant finds nothing.
    fn is_current(&self, session: u32, generation: u32) -> bool {
        self.all.get(session as usize).is_some_and(|known| known.generation == generation)
    }

    fn resolve(&self, id: SessionId) -> Option<u32> {
        (id.worker == self.worker && self.is_current(id.index, id.generation)).then_some(id.index)
    }

    /// Sets the gauges.
    pub fn count(&self, counters: &mut Counters) {
        counters.set(Figure::Sessions, self.all.len() as u64);
        counters.set(Figure::SessionsAway, self.away.len() as u64);
        counters.set(Figure::Subscriptions, self.subscriptions.len() as u64);
        counters.set(Figure::RetainedMessages, self.retained.len() as u64);
        counters.set(Figure::PoolUsed, self.pool.used_in_all());
        let refused = self.pool.refused_in_all();
        counters.add(Figure::PoolRefused, refused - counters.figure(Figure::PoolRefused));
    }

    /// Panics when the parts disagree. `is_device` says whether a slot holds a connected device. For tests.
    pub fn check_invariants(&self, is_device: impl Fn(u32) -> bool) {
        self.subscriptions.check_invariants();
        self.groups.check_invariants();
        self.retained.check_invariants();
        let mut away = 0;
        for (index, session) in &self.all {
            let slot = index as u32;
            if session.connection == NOBODY {
                away += 1;
                assert!(!session.device.is_empty(), "session {index} is away and has no name");
                let found = self.away.find(self.home.hash(&session.device), |other| other == slot);
                assert!(found.is_some(), "session {index} is away and cannot be found");
            } else {
                assert_eq!(self.of(session.connection), Some(slot), "session {index} and its connection disagree");
                assert!(is_device(session.connection), "session {index} has a connection that is no device");
                assert!(self.wheel.deadline(slot).is_none(), "session {index} is online and has a deadline");
            }
            if let Some(inflight) = &session.inflight {
                assert!(!inflight.is_empty(), "session {index} keeps an empty table of what is in flight");
                inflight.check_invariants();
            }
        }
        assert_eq!(away, self.away.len(), "somebody is listed as away who is not");
        let attached = self.attached.iter().filter(|&&session| session != NOBODY).count();
        assert_eq!(attached + away, self.all.len());
    }
}

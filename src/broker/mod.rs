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
//! | field of [`Broker`] | what it holds | file |
//! | --- | --- | --- |
//! | `sessions` | the table: who there is, online or away, and when that ends | `lifecycle` |
//! | `routing` | filters ([`subscriptions`]), groups of shared subscribers, [`retained`] messages | `routing`, `groups` |
//! | `deliveries` | what was routed and is not with its session yet; sessions that could send more | `delivery`; `sending` writes it, `acknowledgement` hears of it |
//! | `matching` | publications whose subscribers are not all found yet | `matching` |
//! | `settlements` | publications whose publishers wait to hear that they are safe | `settlement` |
//! | `journal` | what must outlive the process and is not safe yet, and what waits until it is | `journal` |
//! | `spills` | messages that go from memory to the store, and come back from there | `spill` |
//! | `interest` | what is wanted of what other gateways of a fleet publish | `interest` |
//! | `handovers` | sessions that come from other gateways of a fleet, CONNECTs that wait for them, and what is to stand in rows | `handover` |
//! | `needs` | what sessions need of what the fleet's stream has, should this gateway die | `needs` |
//! | `redispatches` | what ended sessions had of messages for groups, on its way to other members | `redispatch` |
//! | `staged` | messages of QoS 2 that may not be sent yet | `staging` |
//! | `ways` | what goes to other shards, and the credit for it | `ways` |
//!
//! What is in flight between one session and its device is in the session (`inflight`); what its device publishes comes in
//! by `inbound`. [`Broker`] itself is what needs more than one of them.

mod acknowledgement;
mod answers;
mod coalesce;
mod delivery;
mod groups;
mod handover;
mod inbound;
mod inflight;
mod interest;
mod journal;
mod lifecycle;
mod matching;
mod needs;
mod pace;
mod redispatch;
mod replay;
mod restore;
mod routing;
mod sending;
mod settlement;
mod spill;
mod staging;
mod ways;

pub mod retained;
pub mod subscriptions;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::store::ModelStore;

use std::collections::VecDeque;
use std::sync::Arc;

pub use delivery::{SendBudget, SessionBatch};
pub use handover::{Claim, Row};
pub use inbound::{FilterLooks, Known, Ticket, UNFINISHED_IN_A_TURN};
pub use inflight::{Answer, Delivery, Identifiers, PendingSuback, Qos2Reply, WrongAck};
pub use journal::Recording;
pub use lifecycle::{Arrival, Attached, DueWill, Will};
pub use routing::{Granted, Unsubscribed};

use crate::codec::mqtt::Version;
use crate::config::Limits;
use crate::link::{Credit, Exchange, Home, ListenerId, Outgoing, SessionId, WorkerId};
use crate::metrics::{Counters, Metric};
use crate::pool::{Class, Pool};
use crate::slot::{ConnectionSlot, SessionSlot};
use crate::time::Tick;
use delivery::Deliveries;
use handover::Handovers;
use interest::Interest;
use journal::Journal;
use lifecycle::Sessions;
use matching::Matching;
use needs::Needs;
use pace::Paces;
use redispatch::Redispatches;
use routing::Routing;
use settlement::Settlements;
use spill::Spills;
use staging::Staged;
use subscriptions::Subscriber;
use ways::Ways;

/// Topic aliases of one connection, each way.
pub const ALIASES_MAX: u16 = 16;

/// Deliveries that wait for their phase of the turn, and those that are staged, at which publishers are read no further.
const CONGESTED_AT: usize = 8_192;

/// What other shards may have in an inbox is one in so many bytes of the pool: half of the share of what is between shards
/// ([`crate::pool::Class::Between`]). A quarter is for what waits in the senders, each of whom stops at half of what it may have
/// in an inbox.
const INBOX_PART: usize = 16;
/// Tombstones take one in so many bytes of the pool: the last quarter.
const TOMBSTONE_PART: usize = 32;

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
    /// Bytes of messages that lie in the store alone, for devices that are away.
    pub stored_bytes: u64,
    /// The shard's pool of variable bytes.
    pub pool_bytes: usize,
    /// Messages from all other shards that one shard has taken and not dealt with.
    pub inbox_messages: usize,
}

impl Bounds {
    /// Each shard's, of a gateway with `workers` workers and without a store.
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
            stored_bytes: 0,
            pool_bytes: limits.pool_bytes / usize::from(workers),
            inbox_messages: limits.inbox_length,
        }
    }
}

/// What a shard's sessions are made with.
pub struct BrokerOptions {
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

/// All MQTT state of one shard. See the head of this file.
pub struct Broker {
    worker: WorkerId,
    home: Home,
    exchange: Arc<Exchange>,
    bounds: Bounds,
    pool: Arc<Pool>,
    sessions: Sessions,
    routing: Routing,
    deliveries: Deliveries,
    settlements: Settlements,
    journal: Journal,
    staged: Staged,
    spills: Spills,
    redispatches: Redispatches,
    ways: Ways,
    paces: Paces,
    /// How often a device was read no further because of what it has unsettled.
    held_for_room: u64,
    /// Sessions whose devices can be told something: that a message of theirs is safe, or that they have subscribed.
    answerable: Vec<(SessionSlot, u32)>,
    /// Requests of the API that are answered: those whose messages will not be acknowledged any more, and publications.
    requests: Vec<(u64, RequestEnd)>,
    /// How many SUBSCRIBE packets have come: the number of the latest.
    subscribes: u32,
    /// What filters may still cost in this turn.
    filter_looks: FilterLooks,
    matching: Matching,
    interest: Interest,
    handovers: Handovers,
    needs: Needs,
    found: Vec<Subscriber>,
    /// Sessions that have ended and whose subscriptions are still to be removed.
    ends: VecDeque<SessionSlot>,
}

/// What became of a request of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestEnd {
    /// The device will not acknowledge its message any more.
    Unacknowledged,
    /// What was to be published is with everybody whom it is for.
    Published,
    /// It was to be retained, and there is no room.
    NotRetained,
}

impl Broker {
    /// No sessions yet.
    #[must_use]
    pub fn new(setup: BrokerOptions, now: Tick) -> Self {
        let bounds = setup.bounds;
        let pool = Arc::new(Pool::new(bounds.pool_bytes));
        let inbox = Credit { messages: bounds.inbox_messages, bytes: bounds.pool_bytes / INBOX_PART };
        Self {
            worker: setup.worker,
            home: setup.home,
            bounds,
            sessions: Sessions::new(setup.worker, setup.home, Arc::clone(&pool), now),
            routing: Routing::new(setup.worker, setup.exchange.workers(), setup.key, &bounds, &pool),
            deliveries: Deliveries::default(),
            settlements: Settlements::default(),
            journal: Journal::default(),
            staged: Staged::default(),
            spills: Spills::new(&pool),
            redispatches: Redispatches::default(),
            ways: Ways::new(setup.exchange.workers(), inbox),
            paces: Paces::default(),
            held_for_room: 0,
            exchange: setup.exchange,
            pool,
            answerable: Vec::new(),
            requests: Vec::new(),
            subscribes: 0,
            filter_looks: FilterLooks::of_turn(),
            matching: Matching::new(),
            interest: Interest::default(),
            handovers: Handovers::default(),
            needs: Needs::default(),
            found: Vec::new(),
            ends: VecDeque::new(),
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
    pub fn of(&self, connection: ConnectionSlot) -> Option<SessionSlot> {
        self.sessions.of(connection)
    }

    /// A session's handle across shards.
    #[must_use]
    pub fn id(&self, session: SessionSlot) -> SessionId {
        self.sessions.id(session)
    }

    /// What the device has said of itself.
    #[must_use]
    pub fn profile(&self, session: SessionSlot) -> &Profile {
        &self.sessions[session].profile
    }

    /// Whether so much waits that publishers are to be read no further: their messages wait in their sockets, and none is
    /// lost.
    #[must_use]
    pub fn is_congested(&self) -> bool {
        self.has_many_deliveries()
            || self.pool.is_full(Class::Unsettled)
            || self.ways.is_congested()
            || self.journal.is_congested()
            || self.staged.len() >= CONGESTED_AT
            || self.matching.is_congested()
    }

    /// Whether so many deliveries wait that no more should be made this turn. They wait for nobody but the deliver phase.
    #[must_use]
    pub fn has_many_deliveries(&self) -> bool {
        self.deliveries.len() + self.staged.in_turn() >= CONGESTED_AT
    }

    /// Whether deliveries wait, or what is done a part in each turn: matching, and what is left of sessions that have ended.
    #[must_use]
    pub fn has_deliveries(&self) -> bool {
        let holds = self.holds_for_store();
        let may_match = !holds || !self.has_many_deliveries();
        !self.deliveries.is_empty()
            || (!holds && self.deliveries.has_held())
            || !self.answerable.is_empty()
            || !self.requests.is_empty()
            || (may_match && !self.matching.is_empty())
            || !self.ends.is_empty()
            || self.may_redispatch()
            || self.has_left_loads()
            || self.interest.has_work()
            || self.routing.groups.has_events()
            || self.has_changed()
            || self.has_round()
    }

    /// What goes to this worker now, in order: all answers, and what there is credit for.
    pub fn take_outgoing(&mut self, worker: WorkerId) -> Outgoing {
        // What it causes there would be with the store before what caused it.
        self.ways.take(worker, !self.journal.is_refused())
    }

    /// How many things would go to this worker now.
    #[must_use]
    pub fn outgoing(&self, worker: WorkerId) -> usize {
        self.ways.ready(worker, !self.journal.is_refused())
    }

    /// Whether anything waits for credit of this worker.
    #[must_use]
    pub fn waits_for(&self, worker: WorkerId) -> bool {
        self.ways.waits_for(worker)
    }

    /// Requests of the API that are answered.
    pub fn take_requests(&mut self) -> Vec<(u64, RequestEnd)> {
        std::mem::take(&mut self.requests)
    }

    /// Sessions whose devices can be told something, by slot and generation. [`Broker::next_answer`] and
    /// [`Broker::take_suback`] say what.
    pub fn take_answerable(&mut self) -> Vec<(SessionSlot, u32)> {
        let all = std::mem::take(&mut self.answerable);
        for &(session, generation) in &all {
            if self.sessions.is_current(session, generation) {
                self.sessions[session].is_answerable = false;
            }
        }
        all
    }

    /// When something is due, if nothing happens before: never later than the earliest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        let ends = self.sessions.next_deadline();
        match (ends, self.paces.next_deadline()) {
            (Some(end), Some(pace)) if end.is_after(pace) => Some(pace),
            (end, pace) => end.or(pace),
        }
    }

    /// Sets the gauges.
    pub fn count(&self, counters: &mut Counters) {
        counters.set(Metric::Sessions, self.sessions.len() as u64);
        counters.set(Metric::SessionsAway, self.sessions.count_away() as u64);
        counters.set(Metric::Subscriptions, self.routing.subscriptions.len() as u64);
        counters.set(Metric::RetainedMessages, self.routing.retained.len() as u64);
        counters.set(Metric::Unsettled, self.settlements.len() as u64);
        counters.set(Metric::UnsettledBytes, self.pool.used(Class::Unsettled));
        counters.set(Metric::PoolUsed, self.pool.used_in_all());
        for (metric, since_start) in [
            (Metric::Redispatched, self.redispatches.given),
            (Metric::DroppedNoMember, self.redispatches.without_member),
            (Metric::Held, self.held_for_room),
        ] {
            counters.add(metric, since_start - counters.value(metric));
        }
        let refused = self.pool.refused_in_all();
        counters.add(Metric::PoolRefused, refused - counters.value(Metric::PoolRefused));
    }

    fn note_answerable(&mut self, session: SessionSlot) {
        let known = &mut self.sessions[session];
        if !known.is_answerable {
            known.is_answerable = true;
            let generation = known.generation;
            self.answerable.push((session, generation));
        }
    }

    /// Panics when the parts disagree. `is_device` says whether a slot holds a connected device. For tests.
    pub fn check_invariants(&self, is_device: impl Fn(ConnectionSlot) -> bool) {
        self.routing.check_invariants();
        let reserved = self.spills.reserved() + self.redispatches.charged();
        self.sessions.check_invariants(is_device, reserved, self.redispatches.stored_bytes());
        self.redispatches.check_invariants();
        self.settlements.check_invariants();
        self.journal.check_invariants();
        self.staged.check_invariants();
        self.ways.check_invariants();
    }
}

//! All of one core, without its sockets: connections, timing wheel, device table. Everything about one device happens
//! here, on one thread, in one order; so takeover and presence need no lock.
//!
//! A shard never reads a clock, never touches a socket and never waits. It is handed bytes and the time, and leaves
//! behind: sealed bytes to write ([`Shard::take_transmit`]), slots to reap ([`Shard::next_closed`]), connections to
//! move ([`Shard::next_move`]), and what goes up ([`Shard::uplink`]). A slot is freed in one place only
//! ([`Shard::reap`]), at the end of a turn, so that no event of the same turn can find a stranger in it.

mod announced;
mod describe;
mod downlink;
mod ends;
mod grants;
mod handle;
mod handover;
mod invariants;
mod kept;
mod mqtt;
mod pace;
mod places;
mod sweep;
mod takeovers;
mod trace;
mod transmit;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::broker::{self, Broker, DueWill};
use crate::connection::{Connection, Context, Kept, ListenerSettings, Termination};
use crate::devices::Devices;
use crate::link::{CloseReason, ConnectionId, Exchange, Home, Refusal, WorkerEvent, WorkerId};
use crate::metrics::{Counters, Metric};
use crate::pool::Pool;
use crate::slot::{ConnectionSlot, Table};
use crate::time::{Moment, Tick};
use crate::wheel::Wheel;
pub use describe::Listing;
pub use downlink::Broadcast;
use ends::End;
use grants::Grants;
use pace::Paces;
use places::Places;
use sweep::Sweep;
use takeovers::Takeovers;
use trace::Tracer;
pub use transmit::Transmit;

/// Connections from denied networks that are ended in one turn.
const DENIED_IN_A_TURN: usize = 64;
/// Whoever says what nobody waits for keeps off a crowded way up for so long at most.
pub const YIELD_MAX: Duration = Duration::from_secs(1);

/// What a shard is made with.
pub struct ShardOptions {
    /// Whose shard it is.
    pub worker: WorkerId,
    /// Where devices live.
    pub home: Home,
    /// What holds for the connections of each listener, by [`ListenerId`](crate::link::ListenerId).
    pub settings: Arc<[ListenerSettings]>,
    /// Handshakes in progress at a time.
    pub handshakes: usize,
    /// Events waiting to go up at which no more messages are taken.
    pub uplink_length: usize,
    /// Seeds jitter and generated ids.
    pub seed: u64,
    /// Whether there are other gateways: they are asked before a delayed will is published, whose device may be there, and what they
    /// publish comes here as far as it is wanted.
    pub is_of_fleet: bool,
    /// What all shards share about messages.
    pub exchange: Arc<Exchange>,
    /// The bounds of MQTT sessions.
    pub sessions: broker::Bounds,
}

/// One shard. See the head of this file.
pub struct Shard {
    worker: WorkerId,
    home: Home,
    settings: Arc<[ListenerSettings]>,
    handshakes_max: usize,
    /// The largest such bound so far.
    handshakes_max_ever: usize,
    uplink_length: usize,
    random: fastrand::Rng,

    connections: Table<ConnectionSlot, Connection>,
    /// One more than the highest slot ever used.
    slots: usize,
    wheel: Wheel<ConnectionSlot>,
    devices: Devices<ConnectionSlot>,
    /// How many generations were given out.
    generations: u64,
    /// How many presence events were made.
    sequence: u64,
    /// The latest id given to a message for a device.
    messages: u32,
    broker: Broker,
    /// Wills to be published.
    due_wills: Vec<DueWill>,
    is_of_fleet: bool,

    /// Who has a place among the handshakes, and who waits for one.
    places: Places,
    /// Which connections hold no longer.
    sweep: Sweep,
    /// What devices were granted.
    grants: Grants,
    /// Who sends how fast, where that is bounded.
    paces: Paces,
    /// Which devices are taken over again and again.
    takeovers: Takeovers,
    /// What operators follow.
    tracer: Tracer,
    /// The next slot to be looked at for whether it comes from a network that is denied now; none: all were.
    next_denied: Option<ConnectionSlot>,
    /// Devices that are not read on until the uplink has room.
    paused: Vec<ConnectionId>,
    /// Devices that say what nobody waits for, and are not read on until little is on its way up.
    yielding: Vec<ConnectionId>,
    /// While much is on its way up: since when none of it has got there, and what had until then.
    crowded: Option<(Moment, u64)>,
    /// Paused too, by packets that ask for more than one turn does; they go on in turns.
    unfinished: VecDeque<ConnectionId>,
    /// Connections to be looked at again this turn or the next, though no event says so.
    ready: Vec<ConnectionSlot>,
    closed: Vec<ConnectionSlot>,
    /// Ends of this turn, for the log.
    ends: Vec<End>,
    moves: VecDeque<ConnectionSlot>,

    transmit: Transmit,
    plain: Vec<u8>,
    uplink: Vec<WorkerEvent>,
    due: Vec<ConnectionSlot>,
    /// Who was probed by the deadlines of this turn.
    probed: Vec<ConnectionSlot>,
    counters: Counters,
    pool: Arc<Pool>,
    /// What was taken from it for each connection that keeps anything.
    kept: HashMap<ConnectionSlot, Kept>,
    /// Addresses of devices behind proxies.
    addresses: HashMap<ConnectionSlot, SocketAddr>,
    /// Connections that a proxy has announced and nobody has admitted yet.
    announced: VecDeque<ConnectionId>,
}

/// Whether a socket should be read now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Read it.
    Read,
    /// Read it when live connections have been served: it is a handshake.
    ReadLater,
    /// Do not read it; the shard says when.
    Leave,
}

impl Shard {
    /// An empty shard at the time `now`.
    #[must_use]
    pub fn new(setup: ShardOptions, now: Tick) -> Self {
        assert!(setup.worker.0 < setup.home.workers());
        let sessions = broker::BrokerOptions {
            worker: setup.worker,
            home: setup.home,
            exchange: setup.exchange,
            bounds: setup.sessions,
            key: setup.seed.rotate_left(17),
        };
        let mut broker = Broker::new(sessions, now);
        if setup.is_of_fleet {
            broker.begin_interest();
        }
        let pool = Arc::clone(broker.pool());
        Self {
            worker: setup.worker,
            home: setup.home,
            settings: setup.settings,
            handshakes_max: setup.handshakes,
            handshakes_max_ever: setup.handshakes,
            uplink_length: setup.uplink_length,
            random: fastrand::Rng::with_seed(setup.seed),
            connections: Table::new(),
            slots: 0,
            wheel: Wheel::new(now),
            devices: Devices::default(),
            generations: 0,
            sequence: 0,
            messages: 0,
            broker,
            due_wills: Vec::new(),
            is_of_fleet: setup.is_of_fleet,
            places: Places::new(setup.handshakes),
            sweep: Sweep::default(),
            grants: Grants::default(),
            paces: Paces::default(),
            takeovers: Takeovers::default(),
            tracer: Tracer::default(),
            next_denied: None,
            paused: Vec::new(),
            yielding: Vec::new(),
            crowded: None,
            unfinished: VecDeque::new(),
            ready: Vec::new(),
            closed: Vec::new(),
            ends: Vec::new(),
            moves: VecDeque::new(),
            transmit: Transmit::prepared(),
            plain: Vec::new(),
            uplink: Vec::new(),
            due: Vec::new(),
            probed: Vec::new(),
            counters: Counters::new(CloseReason::COUNT, Refusal::COUNT),
            pool,
            kept: HashMap::new(),
            addresses: HashMap::new(),
            announced: VecDeque::new(),
        }
    }

    /// The pool of its variable bytes.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// From now on these settings hold, for connections that are there too: of as many listeners, with the same protocols and
    /// sizes. At most so many `handshakes` are begun beside those in progress. Devices that are denied now are ended.
    pub fn replace_settings(&mut self, settings: Arc<[ListenerSettings]>, handshakes: usize, now: Moment) {
        assert_eq!(settings.len(), self.settings.len());
        if let (Some(before), Some(after)) = (self.settings.first(), settings.first())
            && after.deny.denies_more_networks_than(&before.deny)
        {
            self.next_denied = Some(ConnectionSlot(0));
        }
        self.settings = settings;
        self.sweep.begin();
        self.handshakes_max = handshakes;
        self.places.set_max(handshakes);
        self.handshakes_max_ever = self.handshakes_max_ever.max(handshakes);
        let Some(deny) = self.settings.first().map(|settings| Arc::clone(&settings.deny)) else { return };
        for device in deny.devices().filter(|device| deny.refuses_device(device, now)) {
            if let Some(slot) = self.find(device) {
                self.end(slot, &Termination::new(CloseReason::Denied), now);
            }
        }
    }

    /// Whether there are connections to be looked at for whether they come from a network that is denied now.
    #[must_use]
    pub fn has_undenied(&self) -> bool {
        self.next_denied.is_some()
    }

    /// Looks at `limit` slots more, and ends those who come from a network that is denied now, `DENIED_IN_A_TURN` at most.
    /// `peer`: where the peer of the socket in a slot is.
    pub fn advance_denied(&mut self, limit: usize, peer: impl Fn(ConnectionSlot) -> Option<SocketAddr>, now: Moment) {
        let Some(begin) = self.next_denied else { return };
        let end = (begin.index() + limit).min(self.slots);
        let mut ended = 0;
        for slot in (begin.index()..end).map(ConnectionSlot::at) {
            if ended == DENIED_IN_A_TURN {
                self.next_denied = Some(slot);
                return;
            }
            let is_there = |connection: &Connection| !connection.is_closed() && !connection.is_moving();
            if !self.connections.get(slot).is_some_and(is_there) {
                continue;
            }
            let address = self.address(slot).or_else(|| peer(slot));
            if address.is_some_and(|address| self.refuses_address(address.ip(), now)) {
                ended += 1;
                self.end(slot, &Termination::new(CloseReason::Denied), now);
            }
        }
        self.next_denied = (end < self.slots).then_some(ConnectionSlot::at(end));
    }

    /// A connection has come home, whose network may have been denied on its way: then it ends. `peer`: where its socket's is.
    pub fn check_arrival(&mut self, slot: ConnectionSlot, peer: impl FnOnce() -> Option<SocketAddr>, now: Moment) {
        let has_networks = self.settings.first().is_some_and(|settings| settings.deny.has_networks());
        if has_networks
            && let Some(address) = self.address(slot).or_else(peer)
            && self.refuses_address(address.ip(), now)
        {
            self.end(slot, &Termination::new(CloseReason::Denied), now);
        }
    }

    /// Whether nobody from this address may come in.
    #[must_use]
    pub fn refuses_address(&self, address: IpAddr, now: Moment) -> bool {
        self.settings.first().is_some_and(|settings| settings.deny.refuses_address(address, now))
    }

    // --- Getters ----------------------------------------------------------------------------------------------------

    /// Whose shard it is.
    #[must_use]
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// How many connections are held, in whatever state.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// One more than the highest slot ever used.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The handle of the connection in a slot.
    #[must_use]
    pub fn id(&self, slot: ConnectionSlot) -> ConnectionId {
        ConnectionId { slot, generation: self.connections[slot].generation() }
    }

    /// Whether a handle still means what it meant.
    #[must_use]
    pub fn is_current(&self, id: ConnectionId) -> bool {
        self.connections
            .get(id.slot)
            .is_some_and(|connection| connection.generation() == id.generation && !connection.is_closed())
    }

    /// When the shard has something to do if nothing happens before: never later than its earliest deadline.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Tick> {
        let look = if self.handshakes() < self.handshakes_max { None } else { self.places.next_look() };
        let all = [self.wheel.next(), self.broker.next_deadline(), look, self.sweep.next(), self.paces.next()]
            .into_iter()
            .flatten();
        all.reduce(|one, other| if one.is_after(other) { other } else { one })
    }

    /// The figures of this shard and of its worker.
    pub fn counters(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// What goes up, in order. Its owner takes from the front.
    pub fn uplink(&mut self) -> &mut Vec<WorkerEvent> {
        &mut self.uplink
    }

    /// When the connection that has waited longest for a handshake was accepted.
    pub fn longest_waiting(&mut self) -> Option<Tick> {
        self.longest_in_line(false).or_else(|| self.longest_in_line(true))
    }

    /// The same of those who would come before somebody from this address.
    pub fn longest_waiting_before(&mut self, address: IpAddr) -> Option<Tick> {
        let is_crowded = self.places.is_crowded(address);
        self.longest_in_line(is_crowded)
    }

    fn longest_in_line(&mut self, is_crowded: bool) -> Option<Tick> {
        let connections = &self.connections;
        // One that has ended while it waited is gone.
        let is_gone = |id: ConnectionId| {
            connections.get(id.slot).is_none_or(|one| one.generation() != id.generation || one.is_closed())
        };
        let places = &mut self.places;
        let first = if is_crowded { places.first_crowded(is_gone) } else { places.first_waiting(is_gone) };
        let first = &self.connections[first?.slot];
        // One that has sent a part of its ClientHello before waited for its own bytes, and not for us.
        (!first.has_saved()).then(|| first.connected_at())
    }

    // --- What is left behind ----------------------------------------------------------------------------------------

    /// Swaps the sealed bytes of this turn for an empty buffer; the caller writes them, and gives the buffer back the
    /// same way.
    pub fn take_transmit(&mut self, other: &mut Transmit) {
        debug_assert!(other.is_empty());
        std::mem::swap(&mut self.transmit, other);
    }

    /// Whether there are connections to be looked at though no event says so.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
            || !self.unfinished.is_empty()
            || self.sweep.is_underway()
            || self.has_untraced()
            || self.has_undenied()
    }

    /// Takes out the connections to be looked at though no event says so.
    pub fn take_ready(&mut self, into: &mut VecDeque<ConnectionSlot>) {
        into.extend(self.ready.drain(..));
    }

    /// The next connection to be moved, and where to.
    pub fn next_move(&mut self) -> Option<(ConnectionId, WorkerId)> {
        loop {
            let slot = self.moves.pop_front()?;
            let Some(connection) = self.connections.get(slot) else { continue };
            if connection.is_moving() {
                return Some((self.id(slot), self.home.of(connection.device())));
            }
        }
    }

    /// Appends a moving connection as bytes.
    pub fn pack(&self, id: ConnectionId, out: &mut Vec<u8>) {
        assert!(self.is_current(id));
        self.pack_address(id.slot, out);
        self.grants.pack(id.slot, out);
        self.connections[id.slot].pack(out);
        self.sweep.pack(id.slot, out);
    }

    /// The next slot whose socket is to be closed; it must be [reaped](Shard::reap).
    pub fn next_closed(&mut self) -> Option<ConnectionSlot> {
        self.closed.pop()
    }

    /// Frees a slot. The only place where that happens. `true`: its connection lives on at its home.
    pub fn reap(&mut self, slot: ConnectionSlot) -> bool {
        let connection = self.connections.remove(slot);
        self.grants.set(slot, None);
        self.account_anyway(slot);
        if !self.addresses.is_empty() {
            self.addresses.remove(&slot);
        }
        assert!(connection.is_closed() && self.wheel.deadline(slot).is_none());
        self.counters.subtract(Metric::Connections, 1);
        self.places.forget(slot);
        self.paces.forget(slot);
        self.tracer.forget(slot);
        self.sweep.set_mark(slot, None);
        if self.connections.is_empty() {
            // After a mass disconnect the memory goes back.
            self.connections = Table::new();
            self.slots = 0;
            self.sweep.forget_all();
            self.grants.forget_all();
        }
        connection.is_moved()
    }

    /// Whether there is a connection in this slot.
    #[must_use]
    pub fn holds(&self, slot: ConnectionSlot) -> bool {
        self.connections.contains(slot)
    }

    /// Whether the connection in this slot is on its way home.
    #[must_use]
    pub fn is_moving(&self, slot: ConnectionSlot) -> bool {
        self.connections.get(slot).is_some_and(Connection::is_moving)
    }

    /// Bytes that a socket did not take earlier.
    #[must_use]
    pub fn unsent(&self, slot: ConnectionSlot) -> &[u8] {
        self.connections[slot].unsent()
    }

    /// Whether the socket in this slot is to be shut for writing now: all was sent. `true` once for each connection.
    pub fn take_shutdown(&mut self, slot: ConnectionSlot) -> bool {
        self.connections.get_mut(slot).is_some_and(Connection::take_shutdown)
    }

    // --- Helpers ----------------------------------------------------------------------------------------------------

    fn settings_of(&self, slot: ConnectionSlot) -> &ListenerSettings {
        &self.settings[self.connections[slot].listener().index()]
    }

    /// Hands one connection what it may use; what it appends to the wire becomes its segment of the turn's bytes.
    fn with<R>(
        &mut self,
        slot: ConnectionSlot,
        now: Moment,
        act: impl FnOnce(&mut Connection, &ListenerSettings, &mut Context) -> R,
    ) -> R {
        let way_up_moves = self.way_up_moves(now);
        let connection = &mut self.connections[slot];
        let settings = &self.settings[connection.listener().index()];
        let mark = self.transmit.mark();
        let trace = if self.tracer.is_idle() { None } else { self.tracer.log_for(slot, connection.device()) };
        let is_traced = trace.is_some();
        let mut context = Context {
            slot,
            now,
            wire: self.transmit.wire(),
            plain: &mut self.plain,
            counters: &mut self.counters,
            pool: &self.pool,
            broker: &mut self.broker,
            due_wills: &mut self.due_wills,
            uplink: &mut self.uplink,
            uplink_length: self.uplink_length,
            way_up_moves,
            grant: self.grants.get(slot),
            trace,
        };
        let result = act(connection, settings, &mut context);
        debug_assert!(self.plain.is_empty(), "something was said and not sealed");
        self.transmit.assign(slot, mark);
        if is_traced {
            self.trace_packets(slot, now);
        }
        result
    }

    fn find(&self, device: &str) -> Option<ConnectionSlot> {
        self.devices.find(self.home.hash(device), |slot| self.connections[slot].device() == device)
    }

    fn handshakes(&self) -> usize {
        self.counters.value(Metric::HandshakesInFlight) as usize
    }

    fn insert(&mut self, connection: Connection, deadline: Tick) -> ConnectionSlot {
        let slot = self.connections.insert(connection);
        self.slots = self.slots.max(slot.index() + 1);
        self.wheel.arm(slot, deadline);
        self.counters.add(Metric::Connections, 1);
        slot
    }

    fn next_generation(&mut self) -> u32 {
        self.generations += 1;
        self.generations as u32
    }

    /// The whole generation of a connection that carries only the low half. Exact as long as fewer than 2^32
    /// generations lie between the connection's own and the newest.
    fn full_generation(&self, generation: u32) -> u64 {
        self.generations - u64::from((self.generations as u32).wrapping_sub(generation))
    }
}

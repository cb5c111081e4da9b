//! One turn of a worker's event loop: the order of its phases, and who may begin, over any [`Io`].
//!
//! A turn never waits but in its poll, and each phase is bounded ([`Bounds`]); what is left over is known, and the next
//! poll does not wait. The worker runs this loop over real sockets; the simulation, the fuzzer, the tests and the
//! benches run the same one over memory, and nobody keeps a copy of its order.

mod admission;
mod asked;
mod commands;
mod drain;
mod drained;
mod handoff;
mod io;
mod progress;
mod reading;
mod writing;

use std::collections::VecDeque;
use std::time::Duration;

pub use admission::{Admission, AdmissionLimits, Load};
pub use io::{
    Accepted, Broken, Closing, Event, Handoff, HandoffAck, Interrupted, Io, NewPolicy, ReadError, Readiness, Received,
};

use crate::connection::Input;
use crate::link::{Rest, WorkerEvent, WorkerId};
use crate::metrics::{Metric, Timing};
use crate::shard::{Broadcast, Listing, Shard, Transmit, YIELD_MAX};
use crate::slot::ConnectionSlot;
use crate::time::{Moment, Tick};
use asked::Asked;
use drain::Drain;
use drained::Drained;
use progress::Progress;

/// The longest sleep: figures stay fresh.
pub const SLEEP_MAX: Duration = Duration::from_secs(5);
/// The longest sleep while something waits for somebody who does not ring.
const RETRY: Duration = Duration::from_millis(5);
/// Another worker that was told nothing for so long is told at once. Short beside the way to a device, long beside a turn.
const TOLD_AFTER: Duration = Duration::from_micros(500);
/// A worker that other threads wake all the time turns no more often than so.
const REST: Duration = Duration::from_millis(2);
/// So much must come while it rests: sockets, and a bell.
const WORTH_A_REST: usize = 2;
const LATENESS_WINDOW: Duration = Duration::from_secs(10);

/// How much of each kind one turn does at most. What is left over is done by the next.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Events of one poll. Batches of 16 to 64 are the cheapest per event; a storm is better seen in larger ones.
    pub events: usize,
    /// New connections taken from one listener.
    pub accepts: usize,
    /// Handshake steps: at about 100 µs each they are the most expensive thing that a turn does, and live connections
    /// wait for no more than so many of them.
    pub handshakes: usize,
    /// Messages received from one other worker.
    pub handoffs: usize,
    /// Commands and answers taken from the inbox.
    pub commands: usize,
    /// Deadlines handled.
    pub deadlines: usize,
    /// Slots that a listing looks at.
    pub listed_slots: usize,
    /// Slots that each broadcast looks at.
    pub broadcast_slots: usize,
    /// Connections told that the gateway ends.
    pub goodbyes: usize,
    /// Slots looked at for them.
    pub goodbye_slots: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            events: 256,
            accepts: 64,
            handshakes: 16,
            handoffs: 8,
            commands: 16_384,
            deadlines: 1_024,
            listed_slots: 4_096,
            broadcast_slots: 256,
            goodbyes: 1_024,
            goodbye_slots: 16_384,
        }
    }
}

/// The phases of a turn, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// What the poll told is sorted.
    Sort,
    /// New connections are taken or refused.
    Accept,
    /// Live connections are read.
    ReadLive,
    /// Handshakes are read.
    ReadHandshakes,
    /// Connections come home.
    ReceiveMoved,
    /// Commands, and what they have begun.
    Commands,
    /// Deadlines.
    Expire,
    /// Devices are told that the gateway ends.
    Drain,
    /// Messages are delivered to sessions here, and told to other shards.
    Deliver,
    /// Everything is written.
    Flush,
    /// Connections leave for their homes.
    MoveAway,
    /// Slots are freed.
    Reap,
    /// What goes up is sent, and the figures are shown.
    FlushEvents,
}

/// What a turn is made with.
pub struct TurnOptions {
    /// How many workers there are.
    pub workers: u16,
    /// The worker's shard.
    pub shard: Shard,
    /// The scratch for what is read.
    pub input: Input,
    /// Who may begin.
    pub admission: Admission,
    /// How much one turn does.
    pub bounds: Bounds,
    /// What the poll reports besides sockets: the doorbell, listeners, channels to other workers.
    pub other_sources: usize,
}

/// The event loop of one worker, turn by turn.
pub struct Turn<I: Io> {
    io: I,
    workers: u16,
    shard: Shard,
    admission: Admission,
    bounds: Bounds,

    events: Vec<Event>,
    input: Input,
    transmit: Transmit,
    drained: Drained,
    drained_until: Tick,
    suspects: Vec<ConnectionSlot>,
    listings: VecDeque<Listing>,
    broadcasts: Vec<Broadcast>,
    todo: Todo,
    progress: Progress,
    /// By worker: when it was told something last.
    told: Vec<Moment>,
    lateness: Lateness,
    /// This turn has found something to do. One that has not is counted: it should not have been.
    has_worked: bool,
    /// This turn has had something of messages from another worker or the store, or something for a worker.
    with_others: bool,
    rest: Rest,
    /// Events at the front of the uplink that have their addresses: nobody took them yet.
    addressed: usize,
    drain: Option<Drain>,
}

/// What is known to be there and was left for its phase, or for a later turn.
#[derive(Default)]
struct Todo {
    /// Sockets of live connections to read. `true`: to the end, for the poll said that there is one.
    reads: VecDeque<(ConnectionSlot, bool)>,
    /// Sockets of connections in their handshake to read.
    handshakes: VecDeque<(ConnectionSlot, bool)>,
    /// Sockets that take bytes again, or may.
    writes: Vec<ConnectionSlot>,
    /// What the shard wants looked at again.
    ready: VecDeque<ConnectionSlot>,
    /// Listeners, by position.
    listeners: Vec<Backlog>,
    /// Channels with messages to receive.
    handoffs: VecDeque<WorkerId>,
    commands: bool,
    deadlines: bool,
    /// Events could not go up yet.
    uplink: bool,
    /// When something for other shards goes that was left for a little later, together with what comes until then.
    peers: Option<Moment>,
}

/// What is known of those who wait to be accepted.
#[derive(Clone, Copy, Default)]
struct Backlog {
    /// The poll said that somebody waits, and `accept` has not said otherwise.
    ready: bool,
    /// Somebody waits for whom there was no room: tried again each turn.
    is_starved: bool,
}

/// How late the loop is.
struct Lateness {
    /// Of this turn.
    current: Duration,
    worst: Duration,
    worst_since: Moment,
}

impl<I: Io> Turn<I> {
    /// A loop that has not turned yet.
    pub fn new(setup: TurnOptions, mut io: I) -> Self {
        let now = io.now();
        let todo = Todo { listeners: vec![Backlog::default(); io.listeners()], ..Todo::default() };
        Self {
            io,
            workers: setup.workers,
            shard: setup.shard,
            admission: setup.admission,
            bounds: setup.bounds,
            events: Vec::with_capacity(setup.bounds.events),
            input: setup.input,
            transmit: Transmit::prepared(),
            drained: Drained::new(now.tick(), setup.other_sources),
            drained_until: now.tick(),
            suspects: Vec::new(),
            listings: VecDeque::new(),
            broadcasts: Vec::new(),
            todo,
            progress: Progress::new(usize::from(setup.workers), now),
            told: vec![Moment::default(); usize::from(setup.workers)],
            lateness: Lateness { current: Duration::ZERO, worst: Duration::ZERO, worst_since: now },
            has_worked: false,
            with_others: false,
            rest: Rest::new(REST, WORTH_A_REST),
            addressed: 0,
            drain: None,
        }
    }

    /// The world that it runs in.
    pub fn io(&mut self) -> &mut I {
        &mut self.io
    }

    /// The shard that it drives.
    pub fn shard(&mut self) -> &mut Shard {
        &mut self.shard
    }

    /// One turn. `false`: it was the last.
    pub fn turn(&mut self) -> bool {
        let deadline = self.shard.next_deadline();
        let asked = self.wait(deadline);
        let woken = self.io.now();
        self.rest.note_woken(woken, self.events.len());
        self.with_others = false;
        // After the longest sleep there is something to do: the figures are made fresh.
        self.has_worked = asked.timeout == SLEEP_MAX && woken.since(asked.at) >= SLEEP_MAX;
        self.note_lateness(deadline, woken);
        self.sort_events(asked.answered_for(woken));
        self.end_phase(Phase::Sort);
        self.take_policy(woken);
        self.accept(woken);
        self.end_phase(Phase::Accept);
        self.read_live(woken);
        self.end_phase(Phase::ReadLive);
        self.read_handshakes(woken);
        self.admit_announced(woken);
        self.end_phase(Phase::ReadHandshakes);
        // Never before what was read: a device does not leave before it came.
        let now = self.io.now();
        self.receive_moved(now);
        self.end_phase(Phase::ReceiveMoved);
        self.receive_commands(now);
        self.advance_listings(now);
        self.advance_broadcasts(now);
        self.advance_traces(now);
        self.advance_denied(now);
        self.end_phase(Phase::Commands);
        self.expire(deadline, now);
        self.end_phase(Phase::Expire);
        self.drain(now);
        self.end_phase(Phase::Drain);
        self.deliver(now);
        self.hand_over();
        self.tell_peers(now);
        self.end_phase(Phase::Deliver);
        self.flush(now);
        self.end_phase(Phase::Flush);
        // Before somebody's home can tell how it goes on.
        self.tell_traces();
        self.move_away(now);
        self.end_phase(Phase::MoveAway);
        self.add_addresses();
        self.log_ends();
        self.tell_traces();
        self.reap();
        self.end_phase(Phase::Reap);
        self.flush_events(woken);
        self.rest.note_turn(self.with_others);
        self.end_phase(Phase::FlushEvents);
        !self.is_drained(now)
    }

    fn end_phase(&mut self, phase: Phase) {
        self.io.between_phases(phase, &mut self.shard);
    }

    // --- Waiting ----------------------------------------------------------------------------------------------------

    fn wait(&mut self, deadline: Option<Tick>) -> Asked {
        let mut timeout = self.timeout_until(deadline);
        if !timeout.is_zero() {
            let now = self.io.now();
            let rest = self.rest.before_poll(now);
            if !rest.is_zero() {
                self.io.rest(rest);
                timeout = self.timeout_until(deadline);
            }
        }
        self.events.clear();
        loop {
            let asked = Asked { at: self.io.now(), timeout };
            match self.io.poll(timeout, &mut self.events) {
                Ok(()) => return asked,
                Err(Interrupted) => timeout = Duration::ZERO,
            }
        }
    }

    /// How long the next poll may wait.
    pub fn timeout(&mut self) -> Duration {
        let deadline = self.shard.next_deadline();
        self.timeout_until(deadline)
    }

    fn timeout_until(&mut self, deadline: Option<Tick>) -> Duration {
        if self.has_todo() {
            return Duration::ZERO;
        }
        let longest = match (self.waits_for_others(), self.shard.is_yielding()) {
            (true, _) => RETRY,
            (false, true) => YIELD_MAX,
            (false, false) => SLEEP_MAX,
        };
        let now = self.io.now();
        let longest = self.todo.peers.map_or(longest, |at| at.since(now).min(longest));
        // However fast one may be, devices are told in bundles.
        let broadcast = self.broadcasts.iter().map(|broadcast| broadcast.next_due().since(now).max(RETRY)).min();
        let longest = broadcast.map_or(longest, |due| due.min(longest));
        match deadline {
            None => longest,
            Some(deadline) => deadline.start_near(now).since(now).min(longest),
        }
    }

    /// Whether something was left over that needs nobody else.
    fn has_todo(&self) -> bool {
        let todo = &self.todo;
        !todo.reads.is_empty()
            || !todo.handshakes.is_empty()
            || !todo.writes.is_empty()
            || !todo.ready.is_empty()
            || self.shard.has_ready()
            || self.shard.has_deliveries()
            || !todo.handoffs.is_empty()
            || todo.commands
            || todo.deadlines
            || self.shard.has_waiting()
            || !self.listings.is_empty()
            || todo.listeners.iter().any(|listener| listener.ready)
    }

    /// Whether something waits for somebody who does not ring when it can go on.
    fn waits_for_others(&self) -> bool {
        self.drain.is_some() || self.todo.listeners.iter().any(|listener| listener.is_starved) || self.io.has_handoffs()
    }

    /// The loop is late by what has passed since its earliest deadline when it woke, or by the length of its turn.
    fn note_lateness(&mut self, deadline: Option<Tick>, now: Moment) {
        let overdue = deadline.map_or(Duration::ZERO, |deadline| now.since(deadline.start_near(now)));
        let lateness = &mut self.lateness;
        lateness.current = overdue.max(lateness.current);
        if now.since(lateness.worst_since) > LATENESS_WINDOW {
            lateness.worst = Duration::ZERO;
            lateness.worst_since = now;
        }
        lateness.worst = lateness.worst.max(lateness.current);
        self.shard.counters().set(Metric::LoopLateness, self.lateness.worst.as_micros() as u64);
    }

    // --- The end of the turn ----------------------------------------------------------------------------------------

    /// The only place where a slot is freed and a socket closed.
    fn reap(&mut self) {
        while let Some(slot) = self.shard.next_closed() {
            self.has_worked = true;
            let id = self.shard.id(slot);
            let has_moved = self.shard.reap(slot);
            self.io.close(slot, if has_moved { Closing::Moved } else { Closing::Ended });
            self.admission.release(self.shard.worker(), id, has_moved, self.shard.is_empty());
        }
    }

    /// Says from where those come of whom something is said, where no proxy has said it. Their sockets are here until they are reaped.
    fn add_addresses(&mut self) {
        // What was not taken before has its addresses.
        let newer = self.shard.uplink().len().saturating_sub(self.addressed);
        let (is_watching, mut places) = (self.shard.is_watching_takeovers(), Vec::new());
        for event in self.shard.uplink().iter_mut().rev().take(newer) {
            match event {
                WorkerEvent::Authenticate { connection, peer, .. } => {
                    *peer = peer.or_else(|| self.io.peer(connection.slot).map(|address| address.ip()));
                }
                WorkerEvent::Connected(presence) => {
                    let facts = &mut presence.facts;
                    facts.peer = facts.peer.or_else(|| self.io.peer(facts.connection.slot));
                    if is_watching {
                        places.extend(facts.peer.map(|peer| (presence.device.clone(), peer.ip(), presence.at)));
                    }
                }
                WorkerEvent::Disconnected(presence, _) => {
                    let facts = &mut presence.facts;
                    facts.peer = facts.peer.or_else(|| self.io.peer(facts.connection.slot));
                }
                WorkerEvent::TakeoverLoop(told) => {
                    told.peer = told.peer.or_else(|| self.io.peer(told.connection.slot));
                }
                WorkerEvent::NotAdmitted(end) => {
                    let facts = &mut end.facts;
                    facts.peer = facts.peer.or_else(|| self.io.peer(facts.connection.slot));
                }
                _ => {}
            }
        }
        for (device, place, at) in places.into_iter().rev() {
            self.shard.note_place(&device, place, at);
        }
    }

    /// The log says of each end from where the connection came.
    fn log_ends(&mut self) {
        let io = &self.io;
        self.shard.log_ends(|slot| io.peer(slot));
    }

    /// What operators follow, with the addresses of the sockets: those are here until they are reaped.
    fn tell_traces(&mut self) {
        let io = &self.io;
        self.shard.tell_traces(|slot| io.peer(slot));
    }

    fn flush_events(&mut self, woken: Moment) {
        self.has_worked |= self.drain.is_some();
        self.hand_over();
        // What does not go now waits for the bell, which rings when there is room; so does what the store has not taken.
        self.todo.uplink = !self.io.send_up(self.shard.uplink());
        if self.shard.waits_for_backbone() {
            self.io.wait_for_room_above();
        }
        self.addressed = self.shard.uplink().len();
        self.shard.resume_paused(woken);
        let turn = self.io.now().since(woken);
        self.lateness.current = turn;
        let counters = self.shard.counters();
        counters.add(Metric::Turns, 1);
        counters.add(Metric::IdleTurns, u64::from(!self.has_worked));
        counters.set(Metric::LatestProgress, self.progress.latest().since(Moment::default()).as_secs());
        counters.observe(Timing::Turn, turn);
        self.io.publish(self.shard.counters());
    }
}

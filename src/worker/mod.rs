//! The thread of one core: sockets, the one clock, the scratch buffers, and the turn.
//!
//! A worker owns its share of the connections outright: its own listening sockets, descriptor table and [`Shard`]. It
//! shares nothing but its inbox, the way to each other worker, and the copy of its counters. It must never wait for
//! anything but its poll, and never let one phase of a turn run without a bound.

mod arrivals;
mod asked;
mod courier;
pub mod descriptors;
mod drained;
mod outgoing;
mod policy;
mod progress;
mod start;
mod turn;

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use mio::net::TcpListener;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};

use crate::config::Limits;
use crate::connection::Input;
use crate::link::{Batch, Command, Doorbell, ListenerId, Mailbox, WorkerId};
use crate::metrics::Published;
use crate::shard::{Broadcast, Listing, Shard, Transmit};
use crate::time::{Moment, Tick, ticks_ceil};
use arrivals::AddressRate;
use courier::{Courier, Received};
use drained::Drained;
pub use policy::{Policy, PolicySwitch};
use progress::Progress;
pub use start::{Setup, StartError, Workers, start};

/// One worker. Its turn is in `turn.rs`.
struct Worker {
    id: WorkerId,
    started: Instant,
    poll: Poll,
    events: Events,
    shard: Shard,
    sockets: Sockets,
    listeners: Vec<Listener>,
    address_rate: AddressRate,
    bounds: Bounds,
    /// Connections held by all workers.
    held: Arc<AtomicU32>,

    couriers: Vec<Option<Courier>>,
    received: Received,

    inbox: Receiver<Command>,
    /// The inboxes of all workers, by worker.
    mailboxes: Vec<Mailbox>,
    policy: PolicySwitch,
    /// The generation of the policy that holds here.
    policy_taken: u64,
    bell: Arc<Doorbell>,
    uplink: Sender<Batch>,
    published: Arc<Published>,

    input: Input,
    transmit: Transmit,
    drained: Drained,
    drained_until: Tick,
    suspects: Vec<u32>,
    listings: VecDeque<Listing>,
    broadcasts: Vec<Broadcast>,
    todo: Todo,
    progress: Progress,
    lateness: Lateness,
    /// This turn has found something to do. One that does not is counted: it should not have been.
    has_worked: bool,
    ending: Option<Ending>,
}

/// What is known to be there and was left for its phase, or for a later turn.
#[derive(Default)]
struct Todo {
    /// Sockets of live connections to read. `true`: to the end, for the poll said that there is one.
    reads: VecDeque<(u32, bool)>,
    /// Sockets of connections in their handshake to read.
    handshakes: VecDeque<(u32, bool)>,
    /// Sockets that take bytes again.
    writes: Vec<u32>,
    /// What the shard wants looked at again.
    ready: VecDeque<u32>,
    /// Ways with messages to receive, by worker.
    couriers: VecDeque<usize>,
    commands: bool,
    deadlines: bool,
    uplink: bool,
}

/// Bounds of this worker.
struct Bounds {
    /// Connections of the whole gateway.
    connections: u32,
    /// Sockets in this worker's descriptor table.
    sockets: usize,
    shed_lateness: Duration,
    /// Three quarters of the time for a handshake: whoever would wait longer is refused at once.
    waiting_ticks: u32,
}

impl Bounds {
    /// With room for so many `sockets`.
    fn new(limits: &Limits, sockets: usize) -> Self {
        Self {
            connections: limits.connections,
            sockets,
            shed_lateness: limits.shed_lateness,
            waiting_ticks: ticks_ceil(limits.handshake_time) * 3 / 4,
        }
    }
}

struct Listener {
    id: ListenerId,
    socket: TcpListener,
    /// The poll said that somebody waits, and `accept` has not said otherwise.
    ready: bool,
    /// Somebody waits for whom there was no room: tried again each turn.
    is_starved: bool,
}

/// The gateway comes down.
struct Ending {
    began: Moment,
    /// Over how long the goodbyes are spread.
    window: Duration,
    /// How many connections there were.
    connections: usize,
    /// How many were told so far.
    told: usize,
    /// The slot at which to go on.
    position: usize,
}

/// How late the loop is.
struct Lateness {
    /// Of this turn.
    current: Duration,
    worst: Duration,
    worst_since: Moment,
}

/// The sockets of one worker, by the slots of its shard. Four bytes each, and so the standard library's: mio's own
/// are larger.
#[derive(Default)]
struct Sockets {
    slots: Vec<Option<TcpStream>>,
    open: usize,
}

impl Sockets {
    fn get(&self, index: u32) -> Option<&TcpStream> {
        self.slots.get(index as usize)?.as_ref()
    }

    fn descriptor(&self, index: u32) -> Option<BorrowedFd<'_>> {
        self.get(index).map(AsFd::as_fd)
    }

    fn peer(&self, index: u32) -> Option<SocketAddr> {
        self.get(index)?.peer_addr().ok()
    }

    fn insert(&mut self, index: u32, socket: TcpStream) {
        let slot = index as usize;
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, || None);
        }
        let previous = self.slots[slot].replace(socket);
        assert!(previous.is_none(), "slot {index} had a socket already");
        self.open += 1;
    }

    fn remove(&mut self, index: u32) -> Option<TcpStream> {
        let socket = self.slots.get_mut(index as usize)?.take()?;
        self.open -= 1;
        if self.open == 0 {
            self.slots = Vec::new();
        }
        Some(socket)
    }
}

const _: () = assert!(size_of::<Option<TcpStream>>() == 4);

/// What a poll's token means. Connections have their slot; everything else lies above all slots.
mod token {
    use mio::Token;

    const OTHERS: usize = 1 << 32;
    pub(super) const BELL: Token = Token(OTHERS);
    const LISTENERS: usize = OTHERS + 0x1_0000;
    const COURIERS: usize = OTHERS + 0x2_0000;

    /// Whose event it is.
    pub(super) enum Source {
        Connection(u32),
        Bell,
        Listener(usize),
        Courier(usize),
    }

    pub(super) fn connection(index: u32) -> Token {
        Token(index as usize)
    }

    pub(super) fn listener(position: usize) -> Token {
        Token(LISTENERS + position)
    }

    pub(super) fn courier(worker: usize) -> Token {
        Token(COURIERS + worker)
    }

    pub(super) fn source(token: Token) -> Source {
        match token.0 {
            index if index < OTHERS => Source::Connection(index as u32),
            OTHERS => Source::Bell,
            position if position < COURIERS => Source::Listener(position - LISTENERS),
            worker => Source::Courier(worker - COURIERS),
        }
    }
}

impl Worker {
    /// Turns until the gateway comes down.
    fn run(mut self) {
        while self.turn() {}
        let open = self.sockets.open as u32;
        self.held.fetch_sub(open, Ordering::Relaxed);
        tracing::debug!(worker = self.id.0, connections = open, "worker ended");
    }

    /// The one clock. It is read at the start of a turn, behind each socket that was read, and after all of them.
    fn read_clock(&self) -> Moment {
        Moment::from_micros(self.started.elapsed().as_micros() as u64)
    }

    /// Registers a connection's socket once and for all: edges of both directions. Nothing has to be armed later, so
    /// nothing can be forgotten.
    fn register(&self, index: u32) -> io::Result<()> {
        let Some(socket) = self.sockets.get(index) else { return Ok(()) };
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), token::connection(index), interest)
    }

    /// Takes a socket out of the poll, while it stays open.
    fn deregister(&self, index: u32) -> io::Result<()> {
        let Some(socket) = self.sockets.get(index) else { return Ok(()) };
        self.poll.registry().deregister(&mut SourceFd(&socket.as_raw_fd()))
    }
}

//! The world of one worker's turn in memory, for whoever drives a turn by itself: the fuzzer and the benches. Sockets are filled and
//! emptied by the caller, the clock goes by hand, nothing goes wrong by itself (that is the simulation's part), and what
//! the turn does to the world is noted down. What a turn may never do to it is asserted here.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use pulsegate::connection::Input;
use pulsegate::link::{
    AddressBounds, AddressRules, AddressTable, ConnectionId, ListenerId, Outgoing, Passed, Refusal, WorkerCommand,
    WorkerEvent, WorkerId,
};
use pulsegate::metrics::Counters;
use pulsegate::shard::Shard;
use pulsegate::slot::ConnectionSlot;
use pulsegate::time::Moment;
use pulsegate::turn::{
    Accepted, Admission, AdmissionLimits, Bounds, Broken, Closing, Event, Handoff, HandoffAck, Interrupted, Io, Phase,
    ReadError, Readiness, Received, Turn, TurnOptions,
};

/// How the peer's side of a stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerEnd {
    InOrder,
    ByReset,
}

/// A connected socket.
pub struct MemorySocket {
    /// Where its peer is; the slot is its port.
    address: IpAddr,
    /// From the peer; what is in front of `taken` was read.
    received: Vec<u8>,
    taken: usize,
    end: Option<PeerEnd>,
    /// Bytes that it still takes.
    room: usize,
    /// A write found too little room: the poll tells when there is some.
    wants_room: bool,
    is_shut: bool,
    is_registered: bool,
}

impl MemorySocket {
    /// One that takes all that is written to it.
    fn open(address: IpAddr) -> Self {
        Self {
            address,
            received: Vec::new(),
            taken: 0,
            end: None,
            room: usize::MAX,
            wants_room: false,
            is_shut: false,
            is_registered: false,
        }
    }
}

/// Connections that arrive together from another worker.
#[derive(Default)]
pub struct Arrivals {
    images: Vec<u8>,
    connections: VecDeque<(ConnectionId, Range<usize>, MemorySocket)>,
    acks: VecDeque<HandoffAck>,
}

impl Arrivals {
    /// One more: its handle at the sender's, and its image, which `write` appends.
    pub fn push(&mut self, origin: ConnectionId, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.images.len();
        write(&mut self.images);
        let socket = MemorySocket::open([10, 0, 0, 2].into());
        self.connections.push_back((origin, start..self.images.len(), socket));
    }

    /// What the other worker says of a connection that it was sent.
    pub fn push_ack(&mut self, ack: HandoffAck) {
        self.acks.push_back(ack);
    }
}

/// The one worker's world. It has one listener for each of the shard's, at the same position.
pub struct MemoryIo {
    pub now: Moment,
    /// Asserts the shard's invariants behind every phase.
    pub checks_phases: bool,
    workers: u16,
    listeners: usize,
    /// By slot.
    sockets: Vec<Option<MemorySocket>>,
    held: usize,
    events: VecDeque<Event>,
    events_max: usize,
    /// By listener: from where those come who wait.
    backlog: Vec<VecDeque<IpAddr>>,
    arrivals: VecDeque<Arrivals>,
    message: Arrivals,
    commands: VecDeque<WorkerCommand>,
    passed: VecDeque<(WorkerId, Vec<Passed>)>,
    offered: Vec<(WorkerId, ConnectionId)>,
    written: Vec<u8>,
    segments: Vec<(ConnectionSlot, usize)>,
    /// Slots that were given sockets, and slots whose sockets were closed.
    pub opened: Vec<ConnectionSlot>,
    pub closed: Vec<ConnectionSlot>,
    /// Connections that were sent away, to whom, with their images.
    pub sent: Vec<(WorkerId, ConnectionId, Vec<u8>)>,
    /// What was said of connections that arrived, in their order.
    pub acks: Vec<HandoffAck>,
    /// What was told to other shards.
    pub told: Vec<(WorkerId, Outgoing)>,
    /// What went up, and how many events more have room there.
    pub up: Vec<WorkerEvent>,
    pub up_room: usize,
}

impl MemoryIo {
    /// Of a worker of `workers`, with so many listeners. A poll tells at most so many events.
    pub fn new(workers: u16, listeners: usize, events_max: usize, now: Moment) -> Self {
        Self {
            now,
            checks_phases: false,
            workers,
            listeners,
            sockets: Vec::new(),
            held: 0,
            events: VecDeque::new(),
            events_max,
            backlog: vec![VecDeque::new(); listeners],
            arrivals: VecDeque::new(),
            message: Arrivals::default(),
            commands: VecDeque::new(),
            passed: VecDeque::new(),
            offered: Vec::new(),
            written: Vec::new(),
            segments: Vec::new(),
            opened: Vec::new(),
            closed: Vec::new(),
            sent: Vec::new(),
            acks: Vec::new(),
            told: Vec::new(),
            up: Vec::new(),
            up_room: usize::MAX,
        }
    }

    /// The memory for so many sockets, at once.
    pub fn reserve(&mut self, sockets: usize) {
        self.sockets.reserve(sockets);
    }

    // --- What the caller does -----------------------------------------------------------------------------------------

    /// Somebody connects through this listener.
    pub fn connect(&mut self, listener: ListenerId, from: IpAddr) {
        self.backlog[listener.index()].push_back(from);
        self.events.push_back(Event::Listener(listener.index()));
    }

    /// Whether the slot has a socket that is polled.
    pub fn is_polled(&self, slot: ConnectionSlot) -> bool {
        self.socket(slot).is_some_and(|socket| socket.is_registered)
    }

    /// Bytes arrive at a socket; behind the peer's end none do.
    pub fn receive(&mut self, slot: ConnectionSlot, bytes: &[u8]) {
        let Some(socket) = self.sockets.get_mut(slot.index()).and_then(Option::as_mut) else { return };
        if socket.end.is_none() {
            if socket.taken == socket.received.len() {
                socket.received.clear();
                socket.taken = 0;
            }
            socket.received.extend_from_slice(bytes);
            self.raise(slot, Readiness { readable: true, ..Readiness::default() });
        }
    }

    /// Whether the gateway has ended its side.
    pub fn is_shut(&self, slot: ConnectionSlot) -> bool {
        self.socket(slot).is_some_and(|socket| socket.is_shut)
    }

    /// The poll says that the socket is readable, whether it is or not.
    pub fn nudge(&mut self, slot: ConnectionSlot) {
        self.raise(slot, Readiness { readable: true, ..Readiness::default() });
    }

    /// The poll is silent about a socket until something else happens to it.
    pub fn forget_events(&mut self, slot: ConnectionSlot) {
        self.events.retain(|event| !matches!(event, Event::Socket(of, _) if *of == slot));
    }

    /// The peer's side ends.
    pub fn end(&mut self, slot: ConnectionSlot, end: PeerEnd) {
        let Some(socket) = self.sockets.get_mut(slot.index()).and_then(Option::as_mut) else { return };
        socket.end = Some(end);
        self.raise(slot, Readiness { readable: true, writable: false, to_the_end: true });
    }

    /// The socket takes so many bytes from now on.
    pub fn set_room(&mut self, slot: ConnectionSlot, room: usize) {
        let Some(socket) = self.sockets.get_mut(slot.index()).and_then(Option::as_mut) else { return };
        socket.room = room;
        if socket.wants_room && room > 0 {
            self.raise(slot, Readiness { writable: true, ..Readiness::default() });
        }
    }

    /// Connections, or answers, arrive from another worker.
    pub fn arrive(&mut self, from: WorkerId, arrivals: Arrivals) {
        self.arrivals.push_back(arrivals);
        self.events.push_back(Event::Handoff(from));
    }

    /// Another thread says something.
    pub fn command(&mut self, command: WorkerCommand) {
        self.commands.push_back(command);
        self.events.push_back(Event::Bell);
    }

    /// Another shard passes messages on.
    pub fn pass(&mut self, from: WorkerId, passed: Vec<Passed>) {
        self.passed.push_back((from, passed));
        self.events.push_back(Event::Bell);
    }

    /// Whether the next poll tells something.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// What was written since it was cleared, in its order: the slot and the bytes.
    pub fn written(&self) -> impl Iterator<Item = (ConnectionSlot, &[u8])> {
        let mut start = 0;
        self.segments.iter().map(move |&(slot, end)| {
            let bytes = &self.written[start..end];
            start = end;
            (slot, bytes)
        })
    }

    /// Forgets what was written. A buffer that grew for once is given back.
    pub fn clear_written(&mut self) {
        self.written.clear();
        self.segments.clear();
        self.written.shrink_to(1 << 16);
        self.segments.shrink_to(1 << 12);
    }

    fn socket(&self, slot: ConnectionSlot) -> Option<&MemorySocket> {
        self.sockets.get(slot.index())?.as_ref()
    }

    fn socket_mut(&mut self, slot: ConnectionSlot) -> &mut MemorySocket {
        self.sockets[slot.index()].as_mut().expect("whoever is there has a socket")
    }

    fn raise(&mut self, slot: ConnectionSlot, readiness: Readiness) {
        if self.is_polled(slot) {
            self.events.push_back(Event::Socket(slot, readiness));
        }
    }

    fn insert(&mut self, slot: ConnectionSlot, socket: MemorySocket) {
        let position = slot.index();
        if position >= self.sockets.len() {
            self.sockets.resize_with(position + 1, || None);
        }
        assert!(self.sockets[position].replace(socket).is_none(), "slot {slot} had a socket already");
        self.held += 1;
        self.opened.push(slot);
    }
}

/// The turn of a worker that never refuses anybody, over memory.
pub fn memory_turn(io: MemoryIo, shard: Shard, input: Input, bounds: Bounds) -> Turn<MemoryIo> {
    let limits = AdmissionLimits {
        connections: u32::MAX,
        sockets: usize::MAX,
        shed_lateness: Duration::MAX,
        waiting_ticks: u32::MAX,
        rules: AddressRules {
            // Never met, and counted all the same: what is counted must be given back.
            address: AddressBounds { connections: u32::MAX, ..AddressBounds::default() },
            ..AddressRules::default()
        },
        allow: Arc::new([]),
    };
    let setup = TurnOptions {
        workers: io.workers,
        shard,
        input,
        admission: Admission::new(limits, Arc::new(AddressTable::new([5; 16]))),
        bounds: Bounds { events: io.events_max, ..bounds },
        other_sources: 1 + io.listeners + usize::from(io.workers),
    };
    Turn::new(setup, io)
}

impl Io for MemoryIo {
    type Socket = MemorySocket;

    fn now(&mut self) -> Moment {
        self.now
    }

    fn poll(&mut self, _timeout: Duration, events: &mut Vec<Event>) -> Result<(), Interrupted> {
        let count = self.events.len().min(self.events_max);
        events.extend(self.events.drain(..count));
        Ok(())
    }

    // --- Listeners --------------------------------------------------------------------------------------------------

    fn listeners(&self) -> usize {
        self.listeners
    }

    fn accept(&mut self, position: usize) -> Accepted<MemorySocket> {
        let Some(address) = self.backlog[position].pop_front() else { return Accepted::Nobody };
        Accepted::Connection { socket: MemorySocket::open(address), listener: ListenerId(position as u8), address }
    }

    fn refuse(&mut self, _socket: MemorySocket, _address: IpAddr, _listener: ListenerId, _refusal: Refusal) {}

    fn close_listeners(&mut self) {
        self.backlog.iter_mut().for_each(VecDeque::clear);
    }

    // --- Sockets ----------------------------------------------------------------------------------------------------

    fn connections(&self) -> u32 {
        self.held as u32
    }

    fn sockets(&self) -> usize {
        self.held
    }

    fn admit(&mut self, slot: ConnectionSlot, socket: MemorySocket) -> Result<(), Broken> {
        self.take_in(slot, socket)
    }

    fn take_in(&mut self, slot: ConnectionSlot, socket: MemorySocket) -> Result<(), Broken> {
        self.insert(slot, socket);
        self.register(slot)
    }

    fn read(&mut self, slot: ConnectionSlot, space: &mut [u8]) -> Result<usize, ReadError> {
        let socket = self.socket_mut(slot);
        let rest = &socket.received[socket.taken..];
        match (rest.len().min(space.len()), socket.end) {
            (_, Some(PeerEnd::ByReset)) => Err(ReadError::Broken),
            (0, Some(PeerEnd::InOrder)) => Ok(0),
            (0, None) => Err(ReadError::WouldBlock),
            (count, _) => {
                space[..count].copy_from_slice(&rest[..count]);
                socket.taken += count;
                Ok(count)
            }
        }
    }

    fn write(&mut self, slot: ConnectionSlot, bytes: &[u8]) -> Result<usize, Broken> {
        let socket = self.socket_mut(slot);
        assert!(!socket.is_shut, "slot {slot} has something to say after its end");
        if socket.end == Some(PeerEnd::ByReset) {
            return Err(Broken);
        }
        let count = bytes.len().min(socket.room);
        if socket.room != usize::MAX {
            socket.room -= count;
        }
        socket.wants_room |= count < bytes.len();
        if count > 0 {
            self.written.extend_from_slice(&bytes[..count]);
            self.segments.push((slot, self.written.len()));
        }
        Ok(count)
    }

    fn shut_write(&mut self, slot: ConnectionSlot) {
        let socket = self.socket_mut(slot);
        assert!(!std::mem::replace(&mut socket.is_shut, true), "slot {slot} is shut for the second time");
    }

    fn close(&mut self, slot: ConnectionSlot, _why: Closing) {
        let socket = self.sockets[slot.index()].take();
        assert!(socket.is_some(), "slot {slot} is closed and has no socket");
        self.held -= 1;
        // A socket that is gone is told of no more: no event of it meets who has its slot next.
        self.forget_events(slot);
        self.closed.push(slot);
    }

    fn peer(&self, slot: ConnectionSlot) -> Option<SocketAddr> {
        self.socket(slot).map(|socket| (socket.address, slot.0 as u16).into())
    }

    // --- Handoff to other workers -----------------------------------------------------------------------------------

    fn unregister(&mut self, slot: ConnectionSlot) -> Result<(), Broken> {
        self.socket_mut(slot).is_registered = false;
        self.forget_events(slot);
        Ok(())
    }

    fn register(&mut self, slot: ConnectionSlot) -> Result<(), Broken> {
        let socket = self.socket_mut(slot);
        socket.is_registered = true;
        socket.wants_room = false;
        let (readable, to_the_end) = (socket.taken < socket.received.len(), socket.end.is_some());
        if readable || to_the_end {
            self.raise(slot, Readiness { readable: true, writable: false, to_the_end });
        }
        Ok(())
    }

    fn offer(&mut self, home: WorkerId, id: ConnectionId) -> Result<(), Broken> {
        self.offered.push((home, id));
        Ok(())
    }

    fn acknowledge(&mut self, _worker: WorkerId, ack: HandoffAck) {
        self.acks.push(ack);
    }

    fn send_handoffs(&mut self, shard: &Shard, _refused: &mut Vec<ConnectionId>) {
        for (home, id) in std::mem::take(&mut self.offered) {
            if shard.is_current(id) {
                let mut image = Vec::new();
                shard.pack(id, &mut image);
                self.sent.push((home, id, image));
            }
        }
    }

    fn has_handoffs(&self) -> bool {
        !self.offered.is_empty()
    }

    fn receive_handoffs(&mut self, _from: WorkerId) -> Received {
        let Some(message) = self.arrivals.pop_front() else { return Received::Nothing };
        self.message = message;
        Received::Message
    }

    fn next_handoff(&mut self) -> Option<Handoff<MemorySocket>> {
        if let Some(ack) = self.message.acks.pop_front() {
            return Some(Handoff::Ack(ack));
        }
        let Some((origin, image, socket)) = self.message.connections.pop_front() else {
            self.message = Arrivals::default();
            return None;
        };
        Some(Handoff::Connection { origin, image, socket: Some(socket) })
    }

    fn image(&self, bytes: Range<usize>) -> &[u8] {
        &self.message.images[bytes]
    }

    // --- Words with other threads -----------------------------------------------------------------------------------

    fn answer_bell(&mut self) {}

    fn next_command(&mut self) -> Option<WorkerCommand> {
        self.commands.pop_front()
    }

    fn next_passed(&mut self) -> Option<(WorkerId, Vec<Passed>)> {
        self.passed.pop_front()
    }

    fn tell_peer(&mut self, worker: WorkerId, outgoing: Outgoing) {
        self.told.push((worker, outgoing));
    }

    fn send_up(&mut self, events: &mut Vec<WorkerEvent>) -> bool {
        let count = events.len().min(self.up_room);
        if self.up_room != usize::MAX {
            self.up_room -= count;
        }
        self.up.extend(events.drain(..count));
        events.is_empty()
    }

    /// Whoever makes room lets the loop turn, too.
    fn wait_for_room_above(&mut self) {}

    fn publish(&mut self, _counters: &Counters) {}

    fn between_phases(&mut self, _phase: Phase, shard: &mut Shard) {
        if self.checks_phases {
            shard.check_invariants();
        }
    }
}

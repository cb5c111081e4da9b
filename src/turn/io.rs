//! What a turn needs of the world: a clock, a poll, sockets, listeners, other workers, the control plane. The worker
//! implements it with the kernel; the simulation, the fuzzer, the tests and the benches with memory. Dispatch is static.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::{AdmissionLimits, Phase};
use crate::connection::ListenerSettings;
use crate::link::{
    Changes, ConnectionId, ListenerId, Load, Outgoing, Passed, Refusal, WorkerCommand, WorkerEvent, WorkerId,
};
use crate::metrics::Counters;
use crate::shard::Shard;
use crate::slot::ConnectionSlot;
use crate::time::Moment;

/// Everything outside of the shard that a turn touches. No method waits, [`Io::poll`] excepted.
pub trait Io {
    /// A connected socket that is in no slot yet.
    type Socket;

    // --- Time and readiness -----------------------------------------------------------------------------------------

    /// The one clock.
    fn now(&mut self) -> Moment;

    /// Waits for at most `timeout` and appends what became ready since it was told last, each edge once, in the order
    /// in which it came, at most [`Bounds::events`](super::Bounds::events).
    ///
    /// # Errors
    /// [`Interrupted`]: it came back early and has told nothing.
    fn poll(&mut self, timeout: Duration, events: &mut Vec<Event>) -> Result<(), Interrupted>;

    /// Does nothing for `time`, and tells of nothing meanwhile: what comes is there afterwards. A world whose time passes by itself
    /// need not wait.
    fn rest(&mut self, _time: Duration) {}

    // --- Listeners --------------------------------------------------------------------------------------------------

    /// How many listeners there are.
    fn listeners(&self) -> usize;
    /// Accepts one connection from the listener at this position.
    fn accept(&mut self, position: usize) -> Accepted<Self::Socket>;
    /// Closes a socket that gets no slot: whose it was, through which listener, and why.
    fn refuse(&mut self, socket: Self::Socket, address: IpAddr, listener: ListenerId, refusal: Refusal);
    /// Listens no more.
    fn close_listeners(&mut self);

    // --- Sockets ----------------------------------------------------------------------------------------------------

    /// Connections that the whole gateway holds.
    fn connections(&self) -> u32;
    /// Sockets that this worker holds.
    fn sockets(&self) -> usize;
    /// Puts the socket of a new connection into its slot and registers it, once and for all, for edges of both
    /// directions.
    ///
    /// # Errors
    /// It is in its slot and cannot be polled.
    fn admit(&mut self, slot: ConnectionSlot, socket: Self::Socket) -> Result<(), Broken>;
    /// The same for a connection that came from another worker: the gateway holds it already.
    ///
    /// # Errors
    /// It is in its slot and cannot be polled.
    fn take_in(&mut self, slot: ConnectionSlot, socket: Self::Socket) -> Result<(), Broken>;
    /// Reads once. 0: the peer has ended its side.
    ///
    /// # Errors
    /// Nothing is there, or the socket has failed.
    fn read(&mut self, slot: ConnectionSlot, space: &mut [u8]) -> Result<usize, ReadError>;
    /// Writes once, and tells how much was taken; 0: nothing now. When that is not all, and only then, the poll tells when
    /// there is room again, as often as there is until the socket leaves this worker.
    ///
    /// # Errors
    /// The socket has failed.
    fn write(&mut self, slot: ConnectionSlot, bytes: &[u8]) -> Result<usize, Broken>;
    /// Ends this side of the stream.
    fn shut_write(&mut self, slot: ConnectionSlot);
    /// Empties a slot and closes its socket.
    fn close(&mut self, slot: ConnectionSlot, why: Closing);
    /// Where the peer is.
    fn peer(&self, slot: ConnectionSlot) -> Option<SocketAddr>;

    // --- Handoff to other workers -----------------------------------------------------------------------------------

    /// Takes a socket out of the poll, while it stays in its slot.
    ///
    /// # Errors
    /// It cannot be done; the connection stays here.
    fn unregister(&mut self, slot: ConnectionSlot) -> Result<(), Broken>;
    /// Puts it back. The poll tells nothing of room before a write has found none.
    ///
    /// # Errors
    /// It cannot be polled.
    fn register(&mut self, slot: ConnectionSlot) -> Result<(), Broken>;
    /// Queues a connection for its home; it leaves with [`Io::send_handoffs`].
    ///
    /// # Errors
    /// There is no channel to that worker.
    fn offer(&mut self, home: WorkerId, id: ConnectionId) -> Result<(), Broken>;
    /// Queues the answer to a connection that came from `worker`.
    fn acknowledge(&mut self, worker: WorkerId, ack: HandoffAck);
    /// Sends queued answers and connections, as far as the channels take them. A connection that the shard does not hold
    /// any more is left out; one that can never be sent is appended to `refused`.
    fn send_handoffs(&mut self, shard: &Shard, refused: &mut Vec<ConnectionId>);
    /// Whether something is queued.
    fn has_handoffs(&self) -> bool;
    /// Receives one message from another worker; what it holds is taken by [`Io::next_handoff`], all of it before the
    /// next is received.
    fn receive_handoffs(&mut self, from: WorkerId) -> Received;
    /// What the message holds, one after the other.
    fn next_handoff(&mut self) -> Option<Handoff<Self::Socket>>;
    /// The bytes of an image that the message holds.
    fn image(&self, bytes: Range<usize>) -> &[u8];

    // --- Words with other threads -----------------------------------------------------------------------------------

    /// The doorbell was heard: to be said before the inbox is emptied.
    fn answer_bell(&mut self);
    /// The next command of the inbox.
    fn next_command(&mut self) -> Option<WorkerCommand>;
    /// The next messages of the inbox that another shard passes on.
    fn next_passed(&mut self) -> Option<(WorkerId, Vec<Passed>)>;
    /// Says something to another shard, which always has room for it: it asked for it, or gave credit.
    fn tell_peer(&mut self, worker: WorkerId, outgoing: Outgoing);
    /// Sends events to the control plane from the front, as far as it takes them. `true`: all went; otherwise the doorbell rings
    /// when there is room.
    fn send_up(&mut self, events: &mut Vec<WorkerEvent>) -> bool;
    /// The doorbell rings when so little of what the control plane was sent is on its way that [`Shard::waits_for_backbone`] may be over. To
    /// be said before one looks for the last time whether it is.
    fn wait_for_room_above(&mut self);
    /// Hands to the store what has changed, in order. [`WorkerCommand::Safe`] says when it is safe. Never called where nothing is recorded.
    ///
    /// # Errors
    /// It has no room now: the changes come back, to be handed over again.
    fn keep(&mut self, changes: Changes) -> Result<(), Changes> {
        Err(changes)
    }
    /// Asks the store for messages; [`WorkerCommand::Loaded`] brings them. Never called where nothing is recorded.
    fn load(&mut self, _load: Load) {}
    /// What holds from now on, if that has changed since it was asked for last.
    fn take_policy(&mut self) -> Option<NewPolicy> {
        None
    }
    /// Shows the counters to other threads.
    fn publish(&mut self, counters: &Counters);

    /// Called behind each phase of a turn. The simulation checks the shard's invariants here, and plants its faults.
    fn between_phases(&mut self, _phase: Phase, _shard: &mut Shard) {}
}

/// Something that the poll tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A connection's socket, by its slot.
    Socket(ConnectionSlot, Readiness),
    /// The doorbell: there are commands.
    Bell,
    /// The listener at this position: somebody waits.
    Listener(usize),
    /// The channel to another worker: there are messages.
    Handoff(WorkerId),
}

/// What a socket is ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// There are bytes, or an end.
    pub readable: bool,
    /// There is room.
    pub writable: bool,
    /// The peer has ended its side, or the socket has failed: it must be read until it says so.
    pub to_the_end: bool,
}

/// A poll came back because of a signal, or because the process was stopped and goes on. It says nothing about the
/// sockets: an answer without events would count as all of them drained.
#[derive(Clone, Copy, Debug)]
pub struct Interrupted;

/// A call that the system does not do, and never will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// Why nothing was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// Nothing is there.
    WouldBlock,
    /// The socket has failed: reset by the peer, or unreachable.
    Broken,
}

/// What came of one attempt to accept.
pub enum Accepted<S> {
    /// A connection.
    Connection {
        /// Its socket.
        socket: S,
        /// Through which listener it came.
        listener: ListenerId,
        /// From where.
        address: IpAddr,
    },
    /// Nobody waits.
    Nobody,
    /// This one was gone before it was accepted; those behind it, of whom the poll has told once, are still there.
    Failed,
    /// The process or the machine has no room for a new connection. Whoever waits goes on waiting, and nobody will say
    /// when there is room again.
    NoRoom,
}

/// Why a socket is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// The connection has ended.
    Ended,
    /// It lives on at its home, which has a socket of its own for it.
    Moved,
}

/// What one attempt to receive from another worker came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A message: [`Io::next_handoff`] takes it apart.
    Message,
    /// None is there.
    Nothing,
}

/// One thing in a message from another worker.
pub enum Handoff<S> {
    /// A connection whose home is here.
    Connection {
        /// Its handle at the sender's, for the answer.
        origin: ConnectionId,
        /// Where its image is in the message.
        image: Range<usize>,
        /// Its socket; `None` when this worker's table is full.
        socket: Option<S>,
    },
    /// What became of a connection that was sent from here.
    Ack(HandoffAck),
}

/// What holds for connections, new ones and those that are there.
pub struct NewPolicy {
    /// Of each listener: as many as before.
    pub settings: Arc<[ListenerSettings]>,
    /// Handshakes in progress at a time.
    pub handshakes: usize,
    /// Who may begin.
    pub admission: AdmissionLimits,
}

/// What a home says of a connection that it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandoffAck {
    /// The handle that the connection has, or had, at the sender's.
    pub origin: ConnectionId,
    /// Whether the home holds it now.
    pub taken: bool,
}

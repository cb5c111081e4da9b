//! What a turn needs of the world, with the kernel: one poll, the sockets, the channels.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};

use super::handoff::{HandoffChannel, Message};
use super::listen::{Attempt, Listener, accept};
use super::policy::PolicySwitch;
use super::sockets::Sockets;
use super::uplink_batch::UplinkBatches;
use crate::link::{
    Changes, ConnectionId, Doorbell, Inbox, ListenerId, Load, Mailbox, Outgoing, Passed, Refusal, WorkerCommand,
    WorkerEvent, WorkerId,
};
use crate::metrics::{Counters, Published};
use crate::shard::Shard;
use crate::slot::ConnectionSlot;
use crate::store::ChangeSender;
use crate::time::Moment;
use crate::turn::{
    Accepted, AdmissionLimits, Broken, Closing, Event, Handoff, HandoffAck, Interrupted, Io, NewPolicy, ReadError,
    Readiness, Received,
};

/// The world of one worker.
pub(super) struct WorkerIo {
    pub id: WorkerId,
    pub started: Instant,
    pub poll: Poll,
    pub events: Events,
    pub sockets: Sockets,
    /// So many have room in this worker's descriptor table.
    pub sockets_max: usize,
    pub listeners: Vec<Listener>,
    /// Connections held by all workers.
    pub held: Arc<AtomicU32>,

    /// The channels to other workers, by worker; none to itself.
    pub channels: Vec<Option<HandoffChannel>>,
    pub message: Message,

    pub inbox: Inbox,
    /// The inboxes of all workers, by worker.
    pub mailboxes: Vec<Mailbox>,
    pub policy: PolicySwitch,
    /// The generation of the policy that holds here.
    pub policy_taken: u64,
    pub bell: Arc<Doorbell>,
    pub refusals: Sampled,
    pub uplink: UplinkBatches,
    pub published: Arc<Published>,
    /// Where it is said what must outlive the process; none: nowhere.
    pub changes: Option<ChangeSender>,
}

/// Of lines that may be as many as somebody likes, one in a second is written.
#[derive(Default)]
pub(super) struct Sampled {
    latest: Option<Instant>,
    unlogged: u64,
}

impl Sampled {
    /// Whether one is to be written now, and if so how many were not since the last.
    fn sample(&mut self, now: Instant) -> Option<u64> {
        if self.latest.is_some_and(|latest| now.duration_since(latest) < Duration::from_secs(1)) {
            self.unlogged += 1;
            return None;
        }
        self.latest = Some(now);
        Some(std::mem::take(&mut self.unlogged))
    }
}

/// What a poll's token means. Connections have their slot; everything else lies above all slots.
pub(super) mod token {
    use mio::Token;

    use crate::slot::ConnectionSlot;

    const OTHERS: usize = 1 << 32;
    pub(in super::super) const BELL: Token = Token(OTHERS);
    const LISTENERS: usize = OTHERS + 0x1_0000;
    const CHANNELS: usize = OTHERS + 0x2_0000;

    /// Whose event it is.
    pub(super) enum Source {
        Connection(ConnectionSlot),
        Bell,
        Listener(usize),
        Channel(usize),
    }

    pub(super) fn connection(slot: ConnectionSlot) -> Token {
        Token(slot.index())
    }

    pub(in super::super) fn listener(position: usize) -> Token {
        Token(LISTENERS + position)
    }

    pub(in super::super) fn channel(worker: usize) -> Token {
        Token(CHANNELS + worker)
    }

    pub(super) fn source(token: Token) -> Source {
        match token.0 {
            slot if slot < OTHERS => Source::Connection(ConnectionSlot::at(slot)),
            OTHERS => Source::Bell,
            position if position < CHANNELS => Source::Listener(position - LISTENERS),
            worker => Source::Channel(worker - CHANNELS),
        }
    }
}

fn event(event: &mio::event::Event) -> Event {
    match token::source(event.token()) {
        token::Source::Connection(slot) => {
            let to_the_end = event.is_read_closed() || event.is_error();
            let readiness = Readiness { readable: event.is_readable(), writable: event.is_writable(), to_the_end };
            Event::Socket(slot, readiness)
        }
        token::Source::Bell => Event::Bell,
        token::Source::Listener(position) => Event::Listener(position),
        token::Source::Channel(worker) => Event::Handoff(WorkerId(worker as u16)),
    }
}

impl WorkerIo {
    /// The gateway holds no connection of this worker any more.
    pub(super) fn end(&mut self) {
        let open = self.sockets.open as u32;
        self.held.fetch_sub(open, Ordering::Relaxed);
        tracing::debug!(worker = self.id.0, connections = open, "worker ended");
    }

    fn registered(&self, what: &str, result: io::Result<()>) -> Result<(), Broken> {
        result.map_err(|error| {
            tracing::warn!(worker = self.id.0, %error, "{what} could not be polled");
            Broken
        })
    }

    /// Edges of what can be read. A socket begins with room, and to be told so would make a turn for nothing.
    fn poll_socket(&mut self, slot: ConnectionSlot) -> io::Result<()> {
        self.sockets.waits_for_room.remove(&slot);
        let Some(socket) = self.sockets.get(slot) else { return Ok(()) };
        self.poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), token::connection(slot), Interest::READABLE)
    }

    /// Edges of both directions from now on. Called where a write took less than it was given, the one place: nothing that is
    /// unsent can be forgotten. Should there be room again by now, the poll says so at once.
    fn poll_for_room(&mut self, slot: ConnectionSlot) -> Result<(), Broken> {
        if self.sockets.waits_for_room.contains(&slot) {
            return Ok(());
        }
        let Some(socket) = self.sockets.get(slot) else { return Ok(()) };
        let interest = Interest::READABLE | Interest::WRITABLE;
        let source = &mut SourceFd(&socket.as_raw_fd());
        let polled = self.poll.registry().reregister(source, token::connection(slot), interest);
        self.sockets.waits_for_room.insert(slot);
        self.registered("a connection with unsent bytes", polled)
    }
}

impl Io for WorkerIo {
    type Socket = TcpStream;

    fn now(&mut self) -> Moment {
        Moment::from_micros(self.started.elapsed().as_micros() as u64)
    }

    fn poll(&mut self, timeout: Duration, events: &mut Vec<Event>) -> Result<(), Interrupted> {
        let timeout = if timeout.is_zero() || self.bell.doze() { timeout } else { Duration::ZERO };
        let polled = self.poll.poll(&mut self.events, Some(timeout));
        if self.bell.wake() {
            events.push(Event::Bell);
        }
        match polled {
            Ok(()) => {
                // The bell's own event says only that it was rung, which is known.
                events.extend(self.events.iter().map(event).filter(|event| *event != Event::Bell));
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(Interrupted),
            Err(error) => panic!("the event loop cannot poll: {error}"),
        }
    }

    fn rest(&mut self, time: Duration) {
        std::thread::sleep(time);
    }

    // --- Listeners --------------------------------------------------------------------------------------------------

    fn listeners(&self) -> usize {
        self.listeners.len()
    }

    fn accept(&mut self, position: usize) -> Accepted<TcpStream> {
        let listener = &mut self.listeners[position];
        let attempt = accept(&listener.socket);
        let was_starved = std::mem::replace(&mut listener.is_starved, matches!(attempt, Attempt::NoRoom(_)));
        match attempt {
            Attempt::Stream(socket, address) => Accepted::Connection { socket, listener: listener.id, address },
            Attempt::Nobody => Accepted::Nobody,
            Attempt::Failed(error) => {
                tracing::debug!(worker = self.id.0, %error, "a connection could not be accepted");
                Accepted::Failed
            }
            Attempt::NoRoom(error) => {
                if !was_starved {
                    tracing::warn!(worker = self.id.0, %error, "no room for new connections: they wait until there is");
                }
                Accepted::NoRoom
            }
        }
    }

    fn refuse(&mut self, socket: TcpStream, address: IpAddr, listener: ListenerId, refusal: Refusal) {
        drop(socket);
        if let Some(unlogged) = self.refusals.sample(Instant::now()) {
            let listener = self.policy.current().settings[listener.index()].name.clone();
            tracing::debug!(
                target: "pulsegate::connection",
                peer = %address, %listener, cause = refusal.label(), unlogged, "a connection was refused before TLS",
            );
        }
    }

    fn close_listeners(&mut self) {
        self.listeners.clear();
    }

    // --- Sockets ----------------------------------------------------------------------------------------------------

    fn connections(&self) -> u32 {
        self.held.load(Ordering::Relaxed)
    }

    fn sockets(&self) -> usize {
        self.sockets.open
    }

    fn admit(&mut self, slot: ConnectionSlot, socket: TcpStream) -> Result<(), Broken> {
        self.held.fetch_add(1, Ordering::Relaxed);
        self.sockets.insert(slot, socket);
        let polled = self.poll_socket(slot);
        self.registered("a connection", polled)
    }

    fn take_in(&mut self, slot: ConnectionSlot, socket: TcpStream) -> Result<(), Broken> {
        self.sockets.insert(slot, socket);
        let polled = self.poll_socket(slot);
        self.registered("a moved connection", polled)
    }

    fn read(&mut self, slot: ConnectionSlot, space: &mut [u8]) -> Result<usize, ReadError> {
        let Some(mut socket) = self.sockets.get(slot) else { return Err(ReadError::WouldBlock) };
        loop {
            match socket.read(space) {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(ReadError::WouldBlock),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(ReadError::Broken),
            }
        }
    }

    fn write(&mut self, slot: ConnectionSlot, bytes: &[u8]) -> Result<usize, Broken> {
        let Some(mut socket) = self.sockets.get(slot) else { return Ok(bytes.len()) };
        let count = loop {
            match socket.write(bytes) {
                Ok(count) => break count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break 0,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken),
            }
        };
        if count < bytes.len() {
            self.poll_for_room(slot)?;
        }
        Ok(count)
    }

    fn shut_write(&mut self, slot: ConnectionSlot) {
        if let Some(socket) = self.sockets.get(slot) {
            // A socket that is not connected any more needs no end.
            let _ = socket.shutdown(Shutdown::Write);
        }
    }

    fn close(&mut self, slot: ConnectionSlot, why: Closing) {
        // Closing takes the socket out of the poll, unless it was moved and is out already.
        drop(self.sockets.remove(slot));
        if why == Closing::Ended {
            self.held.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn peer(&self, slot: ConnectionSlot) -> Option<SocketAddr> {
        self.sockets.peer(slot)
    }

    // --- Handoff to other workers -----------------------------------------------------------------------------------

    fn unregister(&mut self, slot: ConnectionSlot) -> Result<(), Broken> {
        let Some(socket) = self.sockets.get(slot) else { return Ok(()) };
        self.poll.registry().deregister(&mut SourceFd(&socket.as_raw_fd())).map_err(|_| Broken)
    }

    fn register(&mut self, slot: ConnectionSlot) -> Result<(), Broken> {
        let polled = self.poll_socket(slot);
        self.registered("a connection that came back", polled)
    }

    fn offer(&mut self, home: WorkerId, id: ConnectionId) -> Result<(), Broken> {
        let channel = self.channels[home.index()].as_mut().ok_or(Broken)?;
        channel.add(id);
        Ok(())
    }

    fn acknowledge(&mut self, worker: WorkerId, ack: HandoffAck) {
        if let Some(channel) = &mut self.channels[worker.index()] {
            channel.acknowledge(ack);
        }
    }

    fn send_handoffs(&mut self, shard: &Shard, refused: &mut Vec<ConnectionId>) {
        let sockets = &self.sockets;
        for channel in self.channels.iter_mut().flatten() {
            channel.send(
                |id, out| {
                    if !shard.is_current(id) {
                        return None;
                    }
                    shard.pack(id, out);
                    sockets.descriptor(id.slot)
                },
                refused,
            );
        }
    }

    fn has_handoffs(&self) -> bool {
        self.channels.iter().flatten().any(HandoffChannel::has_outgoing)
    }

    fn receive_handoffs(&mut self, from: WorkerId) -> Received {
        let Some(channel) = &mut self.channels[from.index()] else { return Received::Nothing };
        match channel.receive(&mut self.message) {
            Ok(true) => Received::Message,
            Ok(false) => Received::Nothing,
            Err(error) => {
                // That worker has ended; so will this one.
                tracing::debug!(worker = self.id.0, from = from.0, %error, "the channel to another worker has ended");
                self.channels[from.index()] = None;
                Received::Nothing
            }
        }
    }

    fn next_handoff(&mut self) -> Option<Handoff<TcpStream>> {
        self.message.next()
    }

    fn image(&self, bytes: Range<usize>) -> &[u8] {
        self.message.bytes(bytes)
    }

    // --- Words with other threads -----------------------------------------------------------------------------------

    fn answer_bell(&mut self) {
        self.bell.answer();
    }

    fn next_command(&mut self) -> Option<WorkerCommand> {
        self.inbox.commands.try_recv().ok()
    }

    fn next_passed(&mut self) -> Option<(WorkerId, Vec<Passed>)> {
        self.inbox.passed.try_recv().ok()
    }

    fn tell_peer(&mut self, worker: WorkerId, outgoing: Outgoing) {
        self.mailboxes[worker.index()].tell(self.id, outgoing);
    }

    fn send_up(&mut self, events: &mut Vec<WorkerEvent>) -> bool {
        self.uplink.send(events)
    }

    fn wait_for_room_above(&mut self) {
        self.uplink.wait();
    }

    fn keep(&mut self, changes: Changes) -> Result<(), Changes> {
        match &self.changes {
            Some(sender) => sender.offer(changes),
            None => Err(changes),
        }
    }

    fn load(&mut self, load: Load) {
        if let Some(sender) = &self.changes {
            sender.load(load);
        }
    }

    fn take_policy(&mut self) -> Option<NewPolicy> {
        let policy = self.policy.newer_than(&mut self.policy_taken)?;
        // It is put into force before this thread does anything else.
        self.policy.took(self.id, self.policy_taken);
        Some(NewPolicy {
            settings: Arc::clone(&policy.settings),
            handshakes: policy.limits.handshakes as usize,
            admission: AdmissionLimits::new(&policy.limits, &policy.admission, self.sockets_max),
        })
    }

    fn publish(&mut self, counters: &Counters) {
        self.published.publish(counters);
    }
}

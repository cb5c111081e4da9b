//! Sockets and polls without a kernel: byte streams with room, ends of every kind, and readiness told by edges, in the
//! order in which it came, once.

use std::collections::VecDeque;

use pulsegate::slot::ConnectionSlot;
use pulsegate::time::Moment;
use pulsegate::turn::Readiness;

/// A socket, and so the peer behind it.
pub type SocketId = u32;

/// How a side of a stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    StillOpen,
    InOrder,
    ByReset,
}

/// What a call on a socket comes to that does not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    WouldBlock,
    Broken,
}

/// One connection between a peer and the gateway.
#[expect(clippy::struct_excessive_bools, reason = "what is so of it, each on its own")]
struct Socket {
    /// Peer to gateway, not yet read.
    up: VecDeque<u8>,
    up_ended: Ended,
    /// When a byte last arrived here.
    last_arrival: Moment,
    /// Gateway to peer, not yet taken.
    down: Vec<u8>,
    down_ended: Ended,
    /// Bytes that the gateway may still write before the peer reads.
    room: usize,
    /// A write found no room.
    wants_room: bool,
    /// Since a write has found none.
    is_polled_for_room: bool,
    /// In whose poll, and as which slot; the number tells registrations apart.
    registered: Option<(u16, ConnectionSlot)>,
    registration: u32,
    pending: Readiness,
    is_queued: bool,
    is_closed: bool,
    is_dirty: bool,
}

/// What a peer does while the process is stopped.
enum Held {
    Bytes(Vec<u8>),
    End(Ended),
}

/// All sockets, and each worker's poll.
#[derive(Default)]
pub struct Network {
    sockets: Vec<Socket>,
    polls: Vec<VecDeque<(SocketId, u32)>>,
    /// Sockets that have something new for their peers.
    pub dirty: Vec<SocketId>,
    /// Bytes that a socket takes before its peer reads.
    room: usize,
    /// What peers do while the process is stopped, once that is known: nobody sees it before.
    held: Option<Vec<(SocketId, Held)>>,
}

impl Network {
    pub fn new(workers: u16, room: usize) -> Self {
        Self { sockets: Vec::new(), polls: vec![VecDeque::new(); workers.into()], dirty: Vec::new(), room, held: None }
    }

    /// A new connection; nobody has accepted it yet.
    pub fn connect(&mut self, now: Moment) -> SocketId {
        self.sockets.push(Socket {
            up: VecDeque::new(),
            up_ended: Ended::StillOpen,
            last_arrival: now,
            down: Vec::new(),
            down_ended: Ended::StillOpen,
            room: self.room,
            wants_room: false,
            is_polled_for_room: false,
            registered: None,
            registration: 0,
            pending: Readiness::default(),
            is_queued: false,
            is_closed: false,
            is_dirty: false,
        });
        self.sockets.len() as SocketId - 1
    }

    // --- The gateway's side -----------------------------------------------------------------------------------------

    pub fn register(&mut self, id: SocketId, worker: u16, slot: ConnectionSlot) {
        let socket = &mut self.sockets[id as usize];
        assert!(socket.registered.is_none() && !socket.is_closed, "socket {id} is registered or closed");
        socket.registered = Some((worker, slot));
        socket.registration += 1;
        socket.is_polled_for_room = false;
        let (readable, over) = (!socket.up.is_empty(), socket.up_ended != Ended::StillOpen);
        if readable || over {
            self.raise(id, Readiness { readable: true, writable: false, to_the_end: over });
        }
    }

    pub fn deregister(&mut self, id: SocketId) {
        let socket = &mut self.sockets[id as usize];
        socket.registered = None;
        socket.is_queued = false;
        socket.pending = Readiness::default();
    }

    fn raise(&mut self, id: SocketId, what: Readiness) {
        let socket = &mut self.sockets[id as usize];
        let Some((worker, _)) = socket.registered else { return };
        let writable = what.writable && socket.is_polled_for_room;
        if !writable && !what.readable && !what.to_the_end {
            return;
        }
        let pending = &mut socket.pending;
        pending.readable |= what.readable;
        pending.writable |= writable;
        pending.to_the_end |= what.to_the_end;
        if !std::mem::replace(&mut socket.is_queued, true) {
            self.polls[usize::from(worker)].push_back((id, socket.registration));
        }
    }

    pub fn has_events(&self, worker: u16) -> bool {
        !self.polls[usize::from(worker)].is_empty()
    }

    /// The next event of a worker's poll: the slot as it was registered, and what there is.
    pub fn next_event(&mut self, worker: u16) -> Option<(ConnectionSlot, Readiness)> {
        loop {
            let (id, registration) = self.polls[usize::from(worker)].pop_front()?;
            let socket = &mut self.sockets[id as usize];
            let Some((_, slot)) = socket.registered else { continue };
            if socket.registration == registration && std::mem::take(&mut socket.is_queued) {
                return Some((slot, std::mem::take(&mut socket.pending)));
            }
        }
    }

    pub fn read(&mut self, id: SocketId, space: &mut [u8]) -> Result<usize, Fault> {
        let socket = &mut self.sockets[id as usize];
        assert!(!socket.is_closed, "socket {id} is read after it was closed");
        if socket.up_ended == Ended::ByReset {
            return Err(Fault::Broken);
        }
        if socket.up.is_empty() {
            return if socket.up_ended == Ended::InOrder { Ok(0) } else { Err(Fault::WouldBlock) };
        }
        let count = socket.up.len().min(space.len());
        for (to, from) in space.iter_mut().zip(socket.up.drain(..count)) {
            *to = from;
        }
        if socket.up.is_empty() {
            socket.up = VecDeque::new();
        }
        Ok(count)
    }

    /// Takes at most `most` bytes, and no more than there is room for.
    pub fn write(&mut self, id: SocketId, bytes: &[u8], most: usize) -> Result<usize, Fault> {
        let socket = &mut self.sockets[id as usize];
        assert!(!socket.is_closed, "socket {id} is written after it was closed");
        if socket.up_ended == Ended::ByReset || socket.down_ended != Ended::StillOpen {
            return Err(Fault::Broken);
        }
        let count = bytes.len().min(socket.room).min(most);
        socket.down.extend_from_slice(&bytes[..count]);
        socket.room -= count;
        socket.wants_room |= count < bytes.len();
        socket.is_polled_for_room |= count < bytes.len();
        if socket.wants_room && socket.down.is_empty() {
            // Nothing that the peer takes will make room: it is there already.
            socket.wants_room = false;
            self.raise(id, Readiness { writable: true, ..Readiness::default() });
        }
        self.mark_dirty(id);
        Ok(count)
    }

    pub fn shut_down_writing(&mut self, id: SocketId) {
        let socket = &mut self.sockets[id as usize];
        if socket.down_ended == Ended::StillOpen {
            socket.down_ended = Ended::InOrder;
            self.mark_dirty(id);
        }
        // As a kernel does: a socket that was shut, however often, is told of as writable.
        self.raise(id, Readiness { writable: true, ..Readiness::default() });
    }

    /// Closes the gateway's end. Over unread bytes that is a reset, and the peer loses what it has not taken.
    pub fn close(&mut self, id: SocketId) {
        self.deregister(id);
        let socket = &mut self.sockets[id as usize];
        assert!(!std::mem::replace(&mut socket.is_closed, true), "socket {id} is closed twice");
        if socket.up.is_empty() {
            if socket.down_ended == Ended::StillOpen {
                socket.down_ended = Ended::InOrder;
            }
        } else {
            socket.down_ended = Ended::ByReset;
            socket.down = Vec::new();
            socket.up = VecDeque::new();
        }
        self.mark_dirty(id);
    }

    fn mark_dirty(&mut self, id: SocketId) {
        if !std::mem::replace(&mut self.sockets[id as usize].is_dirty, true) {
            self.dirty.push(id);
        }
    }

    // --- Planted errors ---------------------------------------------------------------------------------------------

    /// What the peer has not taken is lost.
    pub fn forget_unsent(&mut self, id: SocketId) {
        self.sockets[id as usize].down = Vec::new();
    }

    /// A socket is told of as writable though nothing has changed.
    pub fn repeat_event(&mut self, id: SocketId) {
        self.sockets[id as usize].is_polled_for_room = true;
        self.raise(id, Readiness { writable: true, ..Readiness::default() });
    }

    // --- The peer's side --------------------------------------------------------------------------------------------

    /// Bytes arrive. A closed end answers with a reset.
    pub fn send(&mut self, id: SocketId, bytes: &[u8], now: Moment) {
        if let Some(held) = &mut self.held {
            return held.push((id, Held::Bytes(bytes.to_vec())));
        }
        let socket = &mut self.sockets[id as usize];
        if bytes.is_empty() || socket.up_ended != Ended::StillOpen {
            return;
        }
        if socket.is_closed {
            socket.down_ended = Ended::ByReset;
            self.mark_dirty(id);
            return;
        }
        socket.up.extend(bytes);
        socket.last_arrival = now;
        self.raise(id, Readiness { readable: true, ..Readiness::default() });
    }

    /// The peer's side ends.
    pub fn end(&mut self, id: SocketId, how: Ended) {
        if let Some(held) = &mut self.held {
            return held.push((id, Held::End(how)));
        }
        let socket = &mut self.sockets[id as usize];
        if socket.is_closed || socket.up_ended == Ended::ByReset {
            return;
        }
        socket.up_ended = how;
        if how == Ended::ByReset {
            socket.up = VecDeque::new();
        }
        self.raise(id, Readiness { readable: true, writable: how == Ended::ByReset, to_the_end: true });
    }

    /// The process will be stopped: what peers do from here on is there when it goes on.
    pub fn hold(&mut self) {
        self.held = Some(Vec::new());
    }

    /// The process goes on.
    pub fn release(&mut self, now: Moment) {
        for (id, what) in self.held.take().unwrap_or_default() {
            match what {
                Held::Bytes(bytes) => self.send(id, &bytes, now),
                Held::End(how) => self.end(id, how),
            }
        }
    }

    /// What there is for the peer, and whether more will come. It has then room again.
    pub fn take(&mut self, id: SocketId) -> (Vec<u8>, Ended) {
        let socket = &mut self.sockets[id as usize];
        let taken = std::mem::take(&mut socket.down);
        socket.room += taken.len();
        let ended = socket.down_ended;
        if !taken.is_empty() && std::mem::take(&mut socket.wants_room) {
            self.raise(id, Readiness { writable: true, ..Readiness::default() });
        }
        (taken, ended)
    }

    pub fn take_dirty(&mut self) -> Vec<SocketId> {
        let dirty = std::mem::take(&mut self.dirty);
        for &id in &dirty {
            self.sockets[id as usize].is_dirty = false;
        }
        dirty
    }

    // --- For the model ----------------------------------------------------------------------------------------------

    pub fn unread(&self, id: SocketId) -> usize {
        self.sockets[id as usize].up.len()
    }

    pub fn last_arrival(&self, id: SocketId) -> Moment {
        self.sockets[id as usize].last_arrival
    }

    pub fn is_closed(&self, id: SocketId) -> bool {
        self.sockets[id as usize].is_closed
    }
}

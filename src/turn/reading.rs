//! What comes in from sockets: events sorted, new connections taken, live ones read before handshakes.

use std::net::IpAddr;

use super::{Accepted, Event, Io, Load, ReadError, Turn};
use crate::connection::Announcement;
use crate::link::{Counted, Refusal};
use crate::shard::Plan;
use crate::slot::ConnectionSlot;
use crate::time::{Moment, Tick};

/// Whether there is more to be had where something was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    More,
    Nothing,
}

/// What one read came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// As much as there was room for.
    Full,
    /// Less: the socket is empty, unless its end is behind it.
    Short,
    /// No bytes, or nobody to read them.
    Nothing,
}

impl<I: Io> Turn<I> {
    /// `polled` is the time for which the poll's answer stands.
    pub(super) fn sort_events(&mut self, polled: Moment) {
        let count = self.events.len();
        for event in self.events.drain(..) {
            match event {
                Event::Socket(slot, readiness) => {
                    if readiness.writable {
                        self.todo.writes.push(slot);
                    }
                    let to_the_end = readiness.to_the_end;
                    if readiness.readable || to_the_end {
                        match self.shard.plan_read(slot) {
                            Plan::Read => self.todo.reads.push_back((slot, to_the_end)),
                            Plan::ReadLater => self.todo.handshakes.push_back((slot, to_the_end)),
                            Plan::Leave => {}
                        }
                    }
                }
                Event::Bell => self.todo.commands = true,
                Event::Listener(position) => {
                    // One that listens no more may have been told of in the same breath.
                    if let Some(listener) = self.todo.listeners.get_mut(position) {
                        listener.ready = true;
                    }
                }
                Event::Handoff(worker) => self.todo.handoffs.push_back(worker),
            }
        }
        self.drained_until = self.drained.handle_poll(polled.tick(), count, self.bounds.events, self.io.sockets());
    }

    /// Live connections first. What was left over from the last turn comes before what is new.
    pub(super) fn read_live(&mut self, now: Moment) {
        self.shard.take_ready(&mut self.todo.ready);
        while let Some(slot) = self.todo.ready.pop_front() {
            self.has_worked = true;
            if self.shard.load_input(slot, &mut self.input) {
                self.shard.handle_input(slot, &mut self.input, 0, now);
                // Edge-triggered: readiness that was reported while it was not read is not repeated.
                self.todo.reads.push_back((slot, true));
            }
        }
        for _ in 0..self.todo.reads.len() {
            let Some((slot, to_the_end)) = self.todo.reads.pop_front() else { break };
            if self.read(slot, to_the_end, now) == Left::More {
                self.todo.reads.push_back((slot, to_the_end));
            }
        }
    }

    /// Handshakes in progress before new ones.
    pub(super) fn read_handshakes(&mut self, now: Moment) {
        for _ in 0..self.bounds.handshakes {
            let (slot, to_the_end) = match self.todo.handshakes.pop_front() {
                Some(read) => read,
                None => match self.shard.next_waiting() {
                    Some(slot) => (slot, true),
                    None => break,
                },
            };
            if self.read(slot, to_the_end, now) == Left::More {
                self.todo.reads.push_back((slot, to_the_end));
            }
        }
    }

    /// Whether a connection from this address may begin: none of a denied network, and of others not too many.
    fn at_address(&self, address: IpAddr, now: Moment) -> Result<Counted, Refusal> {
        if self.shard.refuses_address(address, now) {
            return Err(Refusal::Denied);
        }
        self.admission.at_address(address, now)
    }

    /// Decides about connections that proxies have announced.
    pub(super) fn admit_announced(&mut self, now: Moment) {
        while let Some((slot, address)) = self.shard.next_announced() {
            match self.at_address(address, now) {
                Ok(counted) => self.admission.place(slot, counted),
                Err(refusal) => self.shard.refuse(slot, refusal, now),
            }
        }
    }

    /// Reads one socket, up to the bound for one turn. `to_the_end`: until it says that nothing is left, or how it ended.
    pub(super) fn read(&mut self, slot: ConnectionSlot, to_the_end: bool, now: Moment) -> Left {
        match self.read_once(slot, now) {
            Read::Full => Left::More,
            // At once: nearly always there is nothing, and a turn of its own for that would be one for nothing.
            Read::Short if to_the_end && self.read_once(slot, now) != Read::Nothing => Left::More,
            Read::Short | Read::Nothing => Left::Nothing,
        }
    }

    fn read_once(&mut self, slot: ConnectionSlot, now: Moment) -> Read {
        if !self.shard.load_input(slot, &mut self.input) {
            return Read::Nothing;
        }
        let space = self.input.space();
        let room = space.len();
        assert!(room > 0, "the scratch has room for a read behind whatever a connection can have saved");
        match self.io.read(slot, space) {
            Ok(0) => self.shard.handle_eof(slot, now),
            Ok(count) => {
                self.has_worked = true;
                // Its own look at the clock: the process may have been stopped since the turn began, and what came in
                // the meantime was not heard then. A device that sends nothing but its keep-alives would be expired for
                // it.
                let now = self.io.now();
                self.input.filled(count);
                self.shard.handle_input(slot, &mut self.input, count, now);
                return if count == room { Read::Full } else { Read::Short };
            }
            Err(ReadError::WouldBlock) => {
                self.shard.handle_nothing(slot);
                return Read::Nothing;
            }
            Err(ReadError::Broken) => self.shard.handle_reset(slot, now),
        }
        self.has_worked = true;
        Read::Nothing
    }

    // --- Policy -----------------------------------------------------------------------------------------------------

    /// Before anybody is accepted: whoever comes after a change finds what was changed.
    pub(super) fn take_policy(&mut self, now: Moment) {
        let Some(policy) = self.io.take_policy() else { return };
        self.has_worked = true;
        self.admission.replace_limits(policy.admission);
        self.shard.replace_settings(policy.settings, policy.handshakes, now);
    }

    // --- Arrivals ---------------------------------------------------------------------------------------------------

    pub(super) fn accept(&mut self, now: Moment) {
        for position in 0..self.todo.listeners.len() {
            let listener = &mut self.todo.listeners[position];
            // Whoever is left in the backlog for want of room was announced once.
            listener.ready |= listener.is_starved;
            for _ in 0..self.bounds.accepts {
                if !self.todo.listeners[position].ready {
                    break;
                }
                self.accept_one(position, now);
            }
        }
    }

    /// A connection is accepted as early as possible and refused at once when it must be. One that is left in the
    /// backlog would be served when its peer has long given up.
    fn accept_one(&mut self, position: usize, now: Moment) {
        let backlog = &mut self.todo.listeners[position];
        let (socket, listener, address) = match self.io.accept(position) {
            Accepted::Connection { socket, listener, address } => (socket, listener, address),
            Accepted::Nobody => {
                (backlog.ready, backlog.is_starved) = (false, false);
                return;
            }
            Accepted::Failed => return,
            Accepted::NoRoom => {
                (backlog.ready, backlog.is_starved) = (false, true);
                return;
            }
        };
        backlog.is_starved = false;
        self.has_worked = true;
        let announcement = self.shard.announcement(listener, address);
        let load = self.load(address, now);
        let verdict = match self.admission.at_accept(&load) {
            // Behind a proxy it is asked when that has said the device's address.
            Ok(()) if announcement == Announcement::Complete => self.at_address(address, now),
            verdict => verdict.map(|()| Counted::NOWHERE),
        };
        let counted = match verdict {
            Ok(counted) => counted,
            Err(refusal) => {
                self.io.refuse(socket, address, listener, refusal);
                self.shard.trace_refused(address, listener, refusal, now);
                let counters = self.shard.counters();
                counters.count_refused_by(listener.index(), refusal as usize);
                return;
            }
        };
        let slot = self.shard.handle_accept(listener, now);
        self.admission.place(slot, counted);
        self.shard.trace_accepted(slot, address, now);
        if announcement == Announcement::Complete {
            self.shard.note_peer(slot, address);
        } else {
            self.shard.expect_announcement(slot, announcement);
        }
        if self.io.admit(slot, socket).is_err() {
            self.shard.handle_reset(slot, now);
        }
    }

    /// How much there is to do here before somebody from this address, for the question whether more may come.
    fn load(&mut self, address: IpAddr, now: Moment) -> Load {
        Load {
            is_draining: self.drain.is_some(),
            connections: self.io.connections(),
            sockets: self.io.sockets(),
            lateness: self.lateness.current,
            waiting: self.shard.longest_waiting_before(address).map_or(0, |since| now.tick().since(since)),
        }
    }

    // --- Deadlines --------------------------------------------------------------------------------------------------

    /// Nobody is expired unheard (decision D5): deadlines run on the drained time, and a suspect is read once more.
    pub(super) fn expire(&mut self, deadline: Option<Tick>, now: Moment) {
        self.has_worked |= deadline.is_some_and(|deadline| !deadline.is_after(self.drained_until));
        let mut suspects = std::mem::take(&mut self.suspects);
        self.todo.deadlines =
            self.shard.handle_deadlines(self.drained_until, now, self.bounds.deadlines, &mut suspects);
        for slot in suspects.drain(..) {
            if self.read(slot, false, now) == Left::More {
                self.todo.reads.push_back((slot, false));
            }
            self.shard.recheck_suspect(slot, now);
        }
        self.suspects = suspects;
    }
}

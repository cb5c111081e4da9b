//! One turn of the event loop. Each phase is bounded; what is left over is known in `todo`, and the next poll does not
//! wait.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::arrivals::{Accepted, accept};
use super::asked::Asked;
use super::courier::{Courier, Verdict};
use super::outgoing::send_up;
use super::token::{self, Source};
use super::{Bounds, Ending, Worker};
use crate::link::{Command, Refusal, Uplink, WorkerId};
use crate::metrics::{Figure, Timing};
use crate::shard::{Broadcast, Listing, Plan};
use crate::time::{Moment, Tick};

/// Events of one poll. Batches of 16 to 64 are the cheapest per event; a storm is better seen in larger ones.
pub(super) const EVENTS: usize = 256;
/// New connections taken from one listener in one turn.
const ACCEPTS: usize = 64;
/// Handshake steps in one turn: at about 100 µs each they are the dearest thing that a turn does, and live connections
/// wait for no more than so many of them.
const HANDSHAKES: usize = 16;
/// Messages received from one other worker in one turn.
const PARCEL_MESSAGES: usize = 8;
const COMMANDS: usize = 1_024;
const DEADLINES: usize = 1_024;
/// Slots that a listing looks at in one turn.
const LISTED_SLOTS: usize = 4_096;
/// Slots that each broadcast looks at in one turn.
const BROADCAST_SLOTS: usize = 256;
/// Connections told in one turn that the gateway ends.
const GOODBYES: usize = 1_024;
/// Slots looked at for them.
const GOODBYE_SLOTS: usize = 16_384;
/// How long the last bytes may take when everybody was told.
const ENDING: Duration = Duration::from_secs(3);
/// Devices are asked to come back no earlier than this after the goodbye; and no later than that and the window again,
/// so that they come back as spread out as they went.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);
/// The longest sleep: figures stay fresh.
const SLEEP_MAX: Duration = Duration::from_secs(5);
/// The longest sleep while something waits for somebody who does not ring.
const RETRY: Duration = Duration::from_millis(5);
const LATENESS_WINDOW: Duration = Duration::from_secs(10);

impl Worker {
    /// One turn. `false`: it was the last.
    pub(super) fn turn(&mut self) -> bool {
        let deadline = self.shard.next_deadline();
        let asked = self.wait(deadline);
        let woken = self.read_clock();
        // After the longest sleep there is always something: the figures are made fresh.
        self.has_worked = asked.timeout == SLEEP_MAX && woken.since(asked.at) >= SLEEP_MAX;
        self.note_lateness(deadline, woken);
        self.sort_events(asked.answered_for(woken));
        self.take_policy();
        self.accept(woken);
        self.read_live(woken);
        self.read_handshakes(woken);
        // Never before what was read: a device does not leave before it came.
        let now = self.read_clock();
        self.receive_moved(now);
        self.receive_commands(now);
        self.advance_listings(now);
        self.advance_broadcasts(now);
        self.expire(deadline, now);
        self.end(now);
        self.has_worked |= self.shard.has_deliveries();
        self.shard.deliver(now);
        self.tell_peers(now);
        self.flush(now);
        self.move_away(now);
        self.reap();
        self.publish(woken);
        !self.is_over(now)
    }

    // --- Waiting ----------------------------------------------------------------------------------------------------

    fn wait(&mut self, deadline: Option<Tick>) -> Asked {
        let mut timeout = self.timeout(deadline);
        loop {
            let asked = Asked { at: self.read_clock(), timeout };
            match self.poll.poll(&mut self.events, Some(timeout)) {
                Ok(()) => return asked,
                // A signal, or the process was stopped and goes on. Either way it says nothing about the sockets: an
                // empty poll would count as all of them drained, and what came while we were stopped be overlooked.
                Err(error) if error.kind() == ErrorKind::Interrupted => timeout = Duration::ZERO,
                Err(error) => panic!("the event loop cannot poll: {error}"),
            }
        }
    }

    fn timeout(&self, deadline: Option<Tick>) -> Duration {
        let todo = &self.todo;
        let pending = !todo.reads.is_empty()
            || !todo.handshakes.is_empty()
            || !todo.ready.is_empty()
            || self.shard.has_ready()
            || self.shard.has_deliveries()
            || !todo.couriers.is_empty()
            || todo.commands
            || todo.deadlines
            || self.shard.has_waiting()
            || !self.listings.is_empty()
            || self.listeners.iter().any(|listener| listener.ready);
        if pending {
            return Duration::ZERO;
        }
        let retry = todo.uplink
            || self.shard.has_outgoing()
            || self.ending.is_some()
            || !self.broadcasts.is_empty()
            || self.listeners.iter().any(|listener| listener.is_starved)
            || self.couriers.iter().flatten().any(Courier::has_outgoing);
        let longest = if retry { RETRY } else { SLEEP_MAX };
        let now = self.read_clock();
        match deadline {
            None => longest,
            Some(deadline) => deadline.start_near(now).since(now).min(longest),
        }
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
        self.shard.counters().set(Figure::LoopLateness, self.lateness.worst.as_micros() as u64);
    }

    // --- Reading ----------------------------------------------------------------------------------------------------

    /// `polled` is the time for which the poll's answer stands.
    fn sort_events(&mut self, polled: Moment) {
        let mut count = 0;
        for event in &self.events {
            count += 1;
            match token::source(event.token()) {
                Source::Connection(index) => {
                    if event.is_writable() {
                        self.todo.writes.push(index);
                    }
                    let to_the_end = event.is_read_closed() || event.is_error();
                    if event.is_readable() || to_the_end {
                        match self.shard.plan_read(index) {
                            Plan::Read => self.todo.reads.push_back((index, to_the_end)),
                            Plan::ReadLater => self.todo.handshakes.push_back((index, to_the_end)),
                            Plan::Leave => {}
                        }
                    }
                }
                Source::Bell => self.todo.commands = true,
                Source::Listener(position) => self.listeners[position].ready = true,
                Source::Courier(worker) => self.todo.couriers.push_back(worker),
            }
        }
        self.drained_until = self.drained.handle_poll(polled.tick(), count, EVENTS, self.sockets.open);
    }

    /// Live connections first. What was left over from the last turn comes before what is new.
    fn read_live(&mut self, now: Moment) {
        self.shard.take_ready(&mut self.todo.ready);
        while let Some(index) = self.todo.ready.pop_front() {
            self.has_worked = true;
            if self.shard.load_input(index, &mut self.input) {
                self.shard.handle_input(index, &mut self.input, 0, now);
                // Whatever the poll said while nobody listened was said once.
                self.todo.reads.push_back((index, true));
            }
        }
        for _ in 0..self.todo.reads.len() {
            let Some((index, to_the_end)) = self.todo.reads.pop_front() else { break };
            if self.read(index, to_the_end, now) == Left::More {
                self.todo.reads.push_back((index, to_the_end));
            }
        }
    }

    /// Handshakes in progress before new ones.
    fn read_handshakes(&mut self, now: Moment) {
        for _ in 0..HANDSHAKES {
            let (index, to_the_end) = match self.todo.handshakes.pop_front() {
                Some(read) => read,
                None => match self.shard.next_waiting() {
                    Some(index) => (index, true),
                    None => break,
                },
            };
            if self.read(index, to_the_end, now) == Left::More {
                self.todo.reads.push_back((index, to_the_end));
            }
        }
    }

    /// Reads one socket, up to the bound for one turn.
    fn read(&mut self, index: u32, to_the_end: bool, now: Moment) -> Left {
        if !self.shard.load_input(index, &mut self.input) {
            return Left::Nothing;
        }
        let Some(mut socket) = self.sockets.get(index) else { return Left::Nothing };
        let space = self.input.space();
        let room = space.len();
        assert!(room > 0, "the scratch has room for a read behind whatever a connection can have saved");
        loop {
            match socket.read(space) {
                Ok(0) => {
                    self.has_worked = true;
                    self.shard.handle_eof(index, now);
                }
                Ok(count) => {
                    // Its own look at the clock: the process may have been stopped since the turn began, and what came
                    // in the meantime was not heard then. A device that sends nothing but its keep-alives would be
                    // expired for it.
                    let now = self.read_clock();
                    self.has_worked = true;
                    self.input.filled(count);
                    self.shard.handle_input(index, &mut self.input, count, now);
                    // A short read has emptied the socket; a second one would only say so, unless there is an end to
                    // be found.
                    if count == room || to_the_end {
                        return Left::More;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.shard.handle_nothing(index),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => {
                    self.has_worked = true;
                    self.shard.handle_reset(index, now);
                }
            }
            return Left::Nothing;
        }
    }

    // --- Policy -----------------------------------------------------------------------------------------------------

    /// Before anybody is accepted: whoever comes after a change finds what was changed.
    fn take_policy(&mut self) {
        let Some(policy) = self.policy.newer_than(&mut self.policy_taken) else { return };
        self.has_worked = true;
        self.bounds = Bounds::new(&policy.limits, self.bounds.sockets);
        self.address_rate.limit(policy.limits.connections_per_address);
        self.shard.replace_settings(Arc::clone(&policy.settings), policy.limits.handshakes as usize);
        self.policy.took(self.id, self.policy_taken);
    }

    // --- Arrivals ---------------------------------------------------------------------------------------------------

    fn accept(&mut self, now: Moment) {
        for position in 0..self.listeners.len() {
            // Whoever is left in the backlog for want of room was announced once.
            self.listeners[position].ready |= self.listeners[position].is_starved;
            for _ in 0..ACCEPTS {
                if !self.listeners[position].ready {
                    break;
                }
                self.accept_one(position, now);
            }
        }
    }

    fn accept_one(&mut self, position: usize, now: Moment) {
        let listener = &mut self.listeners[position];
        let (socket, address) = match accept(&listener.socket) {
            Accepted::Stream(socket, address) => (socket, address),
            Accepted::Nobody => {
                (listener.ready, listener.is_starved) = (false, false);
                return;
            }
            Accepted::Failed(error) => {
                tracing::debug!(worker = self.id.0, %error, "a connection could not be accepted");
                return;
            }
            Accepted::NoRoom(error) => {
                if !listener.is_starved {
                    tracing::warn!(worker = self.id.0, %error, "no room for new connections: they wait until there is");
                }
                (listener.ready, listener.is_starved) = (false, true);
                return;
            }
        };
        listener.is_starved = false;
        self.has_worked = true;
        let listener = listener.id;
        if let Some(refusal) = self.refusal(address, now) {
            self.shard.counters().count_refused(refusal as usize);
            return;
        }
        self.held.fetch_add(1, Ordering::Relaxed);
        let index = self.shard.handle_accept(listener, now);
        self.sockets.insert(index, socket);
        if let Err(error) = self.register(index) {
            tracing::warn!(worker = self.id.0, %error, "a connection could not be polled");
            self.shard.handle_reset(index, now);
        }
    }

    /// Why a new connection must not be, if so. An overloaded gateway refuses the new and keeps the old.
    fn refusal(&mut self, address: std::net::IpAddr, now: Moment) -> Option<Refusal> {
        let waiting = self.shard.longest_waiting().map_or(0, |since| now.tick().since(since));
        if self.ending.is_some() {
            Some(Refusal::Draining)
        } else if self.held.load(Ordering::Relaxed) >= self.bounds.connections {
            Some(Refusal::ConnectionLimit)
        } else if self.sockets.open >= self.bounds.sockets {
            Some(Refusal::DescriptorLimit)
        } else if self.lateness.current > self.bounds.shed_lateness || waiting > self.bounds.waiting_ticks {
            Some(Refusal::Overloaded)
        } else if !self.address_rate.admits(address, now) {
            Some(Refusal::AddressRate)
        } else {
            None
        }
    }

    // --- Moves ------------------------------------------------------------------------------------------------------

    /// Takes in connections whose home is here, and hears what became of those that were sent away.
    fn receive_moved(&mut self, now: Moment) {
        for _ in 0..self.todo.couriers.len() {
            let Some(from) = self.todo.couriers.pop_front() else { break };
            if self.receive_from(from, now) == Left::More {
                self.todo.couriers.push_back(from);
            }
        }
    }

    fn receive_from(&mut self, from: usize, now: Moment) -> Left {
        let Some(mut way) = self.couriers[from].take() else { return Left::Nothing };
        let mut received = std::mem::take(&mut self.received);
        let mut left = Left::More;
        for _ in 0..PARCEL_MESSAGES {
            match way.receive(&mut received) {
                Ok(true) => {}
                Ok(false) => {
                    left = Left::Nothing;
                    break;
                }
                Err(error) => {
                    // That worker has ended; so will this one.
                    tracing::debug!(worker = self.id.0, from, %error, "the way to another worker has ended");
                    self.received = received;
                    return Left::Nothing;
                }
            }
            self.has_worked = true;
            let (parcels, verdicts) = received.read();
            for parcel in parcels {
                let taken = parcel.socket.is_some_and(|socket| self.take_in(parcel.bytes, socket, now));
                if !taken {
                    self.shard.counters().add(Figure::MovesRefused, 1);
                }
                way.answer(Verdict { origin: parcel.origin, taken });
            }
            for verdict in verdicts {
                self.handle_verdict(verdict, now);
            }
            received.wipe();
        }
        self.received = received;
        self.couriers[from] = Some(way);
        left
    }

    fn take_in(&mut self, parcel: &[u8], socket: std::os::fd::OwnedFd, now: Moment) -> bool {
        if self.ending.is_some() || self.sockets.open >= self.bounds.sockets {
            return false;
        }
        let index = match self.shard.unpack(parcel, now) {
            Ok(index) => index,
            Err(error) => {
                tracing::error!(worker = self.id.0, %error, "a moved connection was refused");
                return false;
            }
        };
        self.sockets.insert(index, TcpStream::from(socket));
        match self.register(index) {
            Ok(()) => self.shard.handle_arrival(index, now),
            Err(error) => {
                tracing::warn!(worker = self.id.0, %error, "a moved connection could not be polled");
                self.shard.handle_reset(index, now);
            }
        }
        true
    }

    fn handle_verdict(&mut self, verdict: Verdict, now: Moment) {
        if verdict.taken {
            self.shard.handle_moved(verdict.origin);
            return;
        }
        self.keep_refused(verdict.origin, now);
    }

    /// A connection that its home does not take ends here, in order.
    fn keep_refused(&mut self, id: crate::link::ConnectionId, now: Moment) {
        if !self.shard.is_current(id) {
            return;
        }
        if let Err(error) = self.register(id.index) {
            tracing::warn!(worker = self.id.0, %error, "a connection that came back could not be polled");
        }
        self.shard.handle_move_refused(id, now);
    }

    /// Sends connections to their homes. After the flush: what they have still to say travels along as unsent.
    fn move_away(&mut self, now: Moment) {
        while let Some((id, home)) = self.shard.next_move() {
            self.has_worked = true;
            // Before the other worker has it: the old poll would go on reporting it.
            let deregistered = self.deregister(id.index);
            let way = self.couriers[home.index()].as_mut();
            match (way, deregistered) {
                (Some(way), Ok(())) => way.add(id),
                _ => self.shard.handle_move_refused(id, now),
            }
        }
        let mut refused = Vec::new();
        let (shard, sockets) = (&self.shard, &self.sockets);
        for way in self.couriers.iter_mut().flatten() {
            way.send(
                |id, out| {
                    if !shard.is_current(id) {
                        return None;
                    }
                    shard.pack(id, out);
                    sockets.descriptor(id.index)
                },
                &mut refused,
            );
        }
        for id in refused {
            self.keep_refused(id, now);
        }
    }

    // --- Commands ---------------------------------------------------------------------------------------------------

    fn receive_commands(&mut self, now: Moment) {
        if !self.todo.commands {
            // Nobody has rung since it was found empty.
            return self.progress.note_inbox(now);
        }
        self.bell.answer();
        for _ in 0..COMMANDS {
            if self.shard.has_many_deliveries() {
                // Its own work, which waits for nobody: the deliver phase of this turn makes room.
                return;
            }
            let Ok(command) = self.inbox.try_recv() else {
                self.todo.commands = false;
                return self.progress.note_inbox(now);
            };
            self.has_worked = true;
            self.progress.note_inbox(now);
            self.shard.counters().add(Figure::Commands, 1);
            self.handle_command(command, now);
        }
    }

    fn handle_command(&mut self, command: Command, now: Moment) {
        match command {
            Command::Describe { request, device } => {
                let description = self.shard.describe(&device, now).map(|mut description| {
                    description.peer = self.sockets.peer(description.connection.index);
                    Box::new(description)
                });
                self.shard.uplink().push(Uplink::Described { request, description });
            }
            Command::List { request, filter } => self.listings.push_back(Listing::new(request, filter)),
            Command::Send { request, device, downlink, acknowledge } => {
                self.shard.handle_send(request, &device, &downlink, acknowledge, now);
            }
            Command::Disconnect { request, device } => self.shard.handle_disconnect(request, &device, now),
            Command::Broadcast { broadcast, prefix, downlink, per_second } => {
                self.broadcasts.push(Broadcast::new(broadcast, prefix, downlink, per_second, now));
            }
            Command::CancelBroadcast { broadcast } => {
                for cancelled in self.broadcasts.extract_if(.., |going| going.number() == broadcast) {
                    self.shard.cancel_broadcast(&cancelled);
                }
            }
            Command::Shutdown { window } => {
                let connections = self.shard.len();
                self.ending.get_or_insert(Ending { began: now, window, connections, told: 0, position: 0 });
            }
            Command::TokenVerdict { connection, accepted } => self.shard.handle_verdict(connection, accepted, now),
            Command::MessageSettled { receipt, accepted } => self.shard.handle_settled(receipt, accepted, now),
            Command::Publish { request, publication } => self.shard.handle_publish(request, *publication),
            Command::Peers(peers) => self.shard.handle_peers(peers),
        }
    }

    /// What was published here and is wanted elsewhere goes there before its publisher is told anything.
    fn tell_peers(&mut self, now: Moment) {
        for worker in (0..self.mailboxes.len() as u16).map(WorkerId) {
            let peers = self.shard.take_outgoing(worker);
            if peers.is_empty() {
                self.progress.note_outgoing(worker.index(), now);
                continue;
            }
            match self.mailboxes[worker.index()].send(Command::Peers(peers)) {
                Ok(()) => self.progress.note_outgoing(worker.index(), now),
                Err(full) => {
                    if let Command::Peers(peers) = *full.0 {
                        self.shard.give_back_outgoing(worker, peers);
                    }
                }
            }
        }
    }

    fn advance_listings(&mut self, now: Moment) {
        let Some(listing) = self.listings.front_mut() else { return };
        self.has_worked = true;
        if !self.shard.advance_listing(listing, LISTED_SLOTS) {
            return;
        }
        let request = listing.request();
        let mut devices = self.shard.finish_listing(listing, now);
        for description in &mut devices {
            description.peer = self.sockets.peer(description.connection.index);
        }
        self.shard.uplink().push(Uplink::Listed { request, devices });
        self.listings.pop_front();
    }

    fn advance_broadcasts(&mut self, now: Moment) {
        self.has_worked |= !self.broadcasts.is_empty();
        let shard = &mut self.shard;
        self.broadcasts.retain_mut(|broadcast| !shard.advance_broadcast(broadcast, BROADCAST_SLOTS, now));
    }

    // --- Deadlines --------------------------------------------------------------------------------------------------

    /// Nobody is expired unheard (decision D5): deadlines run on the drained time, and a suspect is read once more.
    fn expire(&mut self, deadline: Option<Tick>, now: Moment) {
        self.has_worked |= deadline.is_some_and(|deadline| !deadline.is_after(self.drained_until));
        let mut suspects = std::mem::take(&mut self.suspects);
        self.todo.deadlines = self.shard.handle_deadlines(self.drained_until, now, DEADLINES, &mut suspects);
        for index in suspects.drain(..) {
            if self.read(index, false, now) == Left::More {
                self.todo.reads.push_back((index, false));
            }
            self.shard.settle_suspect(index, now);
        }
        self.suspects = suspects;
    }

    // --- Writing ----------------------------------------------------------------------------------------------------

    /// The only writer: everything that this turn has to say, and what earlier ones could not.
    fn flush(&mut self, now: Moment) {
        let mut writes = std::mem::take(&mut self.todo.writes);
        for &index in &writes {
            self.write_unsent(index, now);
        }
        let mut transmit = std::mem::take(&mut self.transmit);
        self.shard.take_transmit(&mut transmit);
        self.has_worked |= !transmit.is_empty();
        for (index, bytes) in transmit.segments() {
            self.write(index, bytes, now);
        }
        // Not before all is written: a connection may have more than one segment, and the goodbye is in the last.
        for index in writes.drain(..).chain(transmit.segments().map(|(index, _)| index)) {
            self.finish_writing(index);
        }
        transmit.clear();
        self.transmit = transmit;
        self.todo.writes = writes;
        if self.shard.has_probed() {
            let flushed = self.read_clock();
            self.shard.handle_flushed(flushed);
        }
    }

    fn write(&mut self, index: u32, bytes: &[u8], now: Moment) {
        // What a connection on its way home has still to say travels with it, and leaves together with the greeting.
        if self.shard.is_moving(index) || !self.shard.unsent(index).is_empty() {
            return self.shard.handle_unsent(index, bytes, now);
        }
        let Some(socket) = self.sockets.get(index) else { return };
        match write_once(socket, bytes) {
            Ok(count) => {
                self.shard.counters().add(Figure::SentBytes, count as u64);
                if count < bytes.len() {
                    self.shard.handle_unsent(index, &bytes[count..], now);
                }
            }
            Err(_) => self.shard.handle_reset(index, now),
        }
    }

    fn write_unsent(&mut self, index: u32, now: Moment) {
        if !self.shard.holds(index) || self.shard.unsent(index).is_empty() {
            return;
        }
        let Some(socket) = self.sockets.get(index) else { return };
        match write_once(socket, self.shard.unsent(index)) {
            Ok(count) => {
                self.has_worked |= count > 0;
                self.shard.counters().add(Figure::SentBytes, count as u64);
                self.shard.handle_sent(index, count);
            }
            Err(_) => self.shard.handle_reset(index, now),
        }
    }

    /// A connection that lingers and has said all ends its side of the stream, so that the peer sees an end, not a
    /// reset.
    fn finish_writing(&mut self, index: u32) {
        if self.shard.take_shutdown(index)
            && let Some(socket) = self.sockets.get(index)
        {
            // A socket that is not connected any more needs no ending.
            let _ = socket.shutdown(Shutdown::Write);
            self.has_worked = true;
        }
    }

    // --- The end of the turn ----------------------------------------------------------------------------------------

    /// The only place where a slot is freed and a socket closed.
    fn reap(&mut self) {
        while let Some(index) = self.shard.next_closed() {
            self.has_worked = true;
            let moved = self.shard.reap(index);
            // Closing takes the socket out of the poll, unless it was moved and is out already.
            drop(self.sockets.remove(index));
            if !moved {
                self.held.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn publish(&mut self, woken: Moment) {
        self.has_worked |= self.ending.is_some();
        self.todo.uplink = !send_up(self.id, self.shard.uplink(), &self.uplink);
        self.shard.resume_paused();
        let turn = self.read_clock().since(woken);
        self.lateness.current = turn;
        self.shard.counters().add(Figure::Turns, 1);
        self.shard.counters().add(Figure::IdleTurns, u64::from(!self.has_worked));
        let progress = self.progress.latest().since(Moment::default());
        self.shard.counters().set(Figure::LatestProgress, progress.as_secs());
        self.shard.counters().observe(Timing::Turn, turn);
        self.published.publish(self.shard.counters());
    }

    /// While the gateway comes down: everybody is told, a slice a turn.
    fn end(&mut self, now: Moment) {
        if self.ending.is_none() {
            return;
        }
        self.listeners.clear();
        let Some(ending) = &mut self.ending else { return };
        let passed = now.since(ending.began);
        let due = if passed >= ending.window {
            usize::MAX
        } else {
            // The first at once: a gateway with one device does not wait for the end of the window to tell it.
            1 + (ending.connections as u128 * passed.as_micros() / ending.window.as_micros()) as usize
        };
        let count = due.saturating_sub(ending.told).min(GOODBYES);
        let earliest = RETRY_AFTER_MIN.as_millis() as u32;
        let latest = earliest + ending.window.as_millis() as u32;
        let (position, told) = self.shard.shut_down(ending.position, GOODBYE_SLOTS, count, &(earliest..=latest), now);
        ending.position = position;
        ending.told += told;
    }

    fn is_over(&self, now: Moment) -> bool {
        self.ending.as_ref().is_some_and(|ending| {
            let done = self.shard.is_empty() && !self.todo.uplink;
            done || now.since(ending.began) > ending.window + ENDING
        })
    }
}

/// Whether there is more to be had where something was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    More,
    Nothing,
}

/// Writes once; a socket that takes nothing now has taken zero bytes.
fn write_once(mut socket: &TcpStream, bytes: &[u8]) -> std::io::Result<usize> {
    loop {
        match socket.write(bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            result => return result,
        }
    }
}

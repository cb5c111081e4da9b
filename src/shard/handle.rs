//! What happens to a shard: bytes, ends, deadlines, commands, arrivals.

use std::borrow::Cow;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::announced::take_address;
use super::grants::{Grants, TRY_LATER_MS};
use super::{Plan, Shard, Sweep, YIELD_MAX};
use crate::broker::UNFINISHED_IN_A_TURN;
use crate::connection::{Announcing, Connection, Input, InvalidImage, Step, Termination, TlsEstablished};
use crate::link::{
    CloseReason, ConnectionFacts, ConnectionId, ListenerId, NotAdmitted, Presence, Receipt, TraceWhat, WorkerEvent,
};
use crate::metrics::{ListenerMetric, Metric};
use crate::pool::Class;
use crate::slot::ConnectionSlot;
use crate::time::{Moment, Tick};

impl Shard {
    // --- Sockets ----------------------------------------------------------------------------------------------------

    /// A socket was accepted. Returns its slot.
    pub fn handle_accept(&mut self, listener: ListenerId, now: Moment) -> ConnectionSlot {
        let generation = self.next_generation();
        let deadline = now.tick().deadline_after(self.settings[listener.index()].handshake_ticks);
        self.counters.add(Metric::Accepted, 1);
        self.counters.add_to_listener(listener.index(), ListenerMetric::Accepted, 1);
        self.insert(Connection::accept(listener, generation, now.tick()), deadline)
    }

    /// A socket is readable: says whether to read it. A new connection takes its place in the queue for a handshake.
    pub fn plan_read(&mut self, slot: ConnectionSlot) -> Plan {
        let Some(connection) = self.connections.get_mut(slot) else { return Plan::Leave };
        if connection.is_accepted() {
            connection.begin_waiting();
            let id = ConnectionId { slot, generation: connection.generation() };
            self.places.wait(id);
            self.counters.add(Metric::HandshakesWaiting, 1);
            Plan::Leave
        } else if !connection.wants_read() {
            Plan::Leave
        } else if connection.is_handshaking() {
            Plan::ReadLater
        } else {
            Plan::Read
        }
    }

    /// The connection that has waited longest for a handshake, if there is a place; it must be read now. Reading it
    /// finds out whether the peer is still there before anything is spent on it.
    pub fn next_waiting(&mut self) -> Option<ConnectionSlot> {
        while self.handshakes() < self.handshakes_max {
            let id = self.places.next()?;
            if self.is_current(id) && self.connections[id.slot].is_waiting() {
                self.connections[id.slot].call();
                return Some(id.slot);
            }
        }
        None
    }

    /// Whether [`Shard::next_waiting`] would find somebody.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        self.places.has_waiting() && self.handshakes() < self.handshakes_max
    }

    /// Loads what a connection has half-received, before its socket is read. `false`: it is not to be read at all. A
    /// slot that was noted down in an earlier turn may hold somebody else by now, who is not to be read yet, or for whom
    /// one read more changes nothing.
    pub fn load_input(&self, slot: ConnectionSlot, input: &mut Input) -> bool {
        match self.connections.get(slot) {
            Some(connection) if connection.wants_read() => {
                connection.load(input);
                true
            }
            _ => false,
        }
    }

    /// Bytes were read into `input` (`received` of them; none when what was left is looked at again).
    pub fn handle_input(&mut self, slot: ConnectionSlot, input: &mut Input, received: usize, now: Moment) {
        if received > 0 {
            let connection = &mut self.connections[slot];
            self.counters.add(Metric::ReceivedBytes, received as u64);
            let settings = &self.settings[connection.listener().index()];
            if let Some(deadline) = connection.handle_heard(now, settings, &mut self.counters) {
                self.arm_device(slot, deadline, now);
                self.trace_answered(slot, now);
            }
        }
        let before = self.settings_of(slot).rates.map(|rules| (rules, self.messages_of(slot)));
        let (is_device, used) = (self.connections[slot].is_device(), input.used());
        self.take_input(slot, input, received, now);
        if !is_device && !self.connections[slot].is_handshaking() {
            // Its secret was in it, or a part of that.
            input.wipe(used);
        }
        if let Some((rules, before)) = before {
            let messages = self.messages_of(slot).saturating_sub(before);
            self.charge(slot, &rules, messages, received as u64, now);
        }
    }

    fn take_input(&mut self, slot: ConnectionSlot, input: &mut Input, received: usize, now: Moment) {
        if self.connections[slot].is_called() {
            assert!(received > 0, "a handshake begins with bytes");
            if !self.begin(slot, input, now) {
                return;
            }
        }
        loop {
            let handshaking = self.connections[slot].is_handshaking();
            let step = self.with(slot, now, |connection, settings, cx| connection.handle_input(input, settings, cx));
            if handshaking && !self.connections[slot].is_handshaking() {
                self.counters.subtract(Metric::HandshakesInFlight, 1);
                let silence = match &step {
                    Step::Established(established) => Some(established.silence),
                    _ => None,
                };
                self.places.end(slot, silence);
            }
            match step {
                Step::Wait => break,
                Step::Established(established) => {
                    self.handle_established(slot, &established, now);
                    if self.is_certificate_denied(slot, now) {
                        return self.end(slot, &Termination::new(CloseReason::Denied), now);
                    }
                }
                Step::Named => {
                    if !self.assign_home(slot, now) {
                        break;
                    }
                }
                Step::Announced(announced) => {
                    self.handle_announced(slot, &announced, now);
                    // It is asked about in this turn, and goes on in the next one.
                    self.unfinished.push_back(self.id(slot));
                    return self.pause(slot, input, now);
                }
                Step::Verify(credentials) => {
                    let Some(goes_on) = self.ask_to_verify(slot, credentials, now) else { return };
                    if !goes_on {
                        break;
                    }
                }
                Step::Paused | Step::Yielding | Step::Unfinished | Step::Held => {
                    self.note_paused(slot, &step);
                    return self.pause(slot, input, now);
                }
                Step::End(termination) => return self.end(slot, &termination, now),
            }
        }
        self.connections[slot].save(input);
        self.account_or_end(slot, now);
        self.publish_due_wills(now);
    }

    /// Whoever resumes it finds it in one place; one that is held is resumed by its session.
    fn note_paused(&mut self, slot: ConnectionSlot, step: &Step) {
        let id = self.id(slot);
        match step {
            Step::Paused => self.paused.push(id),
            Step::Yielding => self.yielding.push(id),
            Step::Unfinished => self.unfinished.push_back(id),
            _ => {}
        }
    }

    fn pause(&mut self, slot: ConnectionSlot, input: &Input, now: Moment) {
        self.connections[slot].pause(input);
        self.trace(slot, now, || TraceWhat::Paused);
        self.account_or_end(slot, now);
    }

    /// A socket that was to be read had nothing. Only a connection that was called for its handshake wants to know.
    pub fn handle_nothing(&mut self, slot: ConnectionSlot) {
        let connection = &mut self.connections[slot];
        if connection.is_called() {
            connection.end_waiting();
            self.counters.subtract(Metric::HandshakesWaiting, 1);
        }
    }

    /// The peer has ended its side of the stream.
    pub fn handle_eof(&mut self, slot: ConnectionSlot, now: Moment) {
        let connection = &self.connections[slot];
        let has_unsent = !connection.unsent().is_empty();
        if connection.is_lingering() && has_unsent {
            // It still reads, as far as anybody knows: `handle_sent` looks again when it has got all.
            return;
        }
        let reason = if connection.facts().is_some() { CloseReason::PeerClosed } else { left_early(connection) };
        let termination = Termination::new(reason);
        self.end(slot, &if has_unsent { termination.heard() } else { termination }, now);
    }

    /// The socket has failed: reset by the peer, or unreachable.
    pub fn handle_reset(&mut self, slot: ConnectionSlot, now: Moment) {
        let connection = &self.connections[slot];
        let reason = if connection.facts().is_some() { CloseReason::PeerReset } else { left_early(connection) };
        self.end(slot, &Termination::new(reason), now);
    }

    /// The socket did not take `bytes`: they are kept, up to the outbox's bound.
    pub fn handle_unsent(&mut self, slot: ConnectionSlot, bytes: &[u8], now: Moment) {
        let bound = self.settings_of(slot).outbox_bytes;
        let connection = &mut self.connections[slot];
        if connection.is_closed() {
            return;
        }
        let kept = connection.keep_unsent(bytes);
        self.counters.add(Metric::BufferedBytes, bytes.len() as u64);
        // What a connection on its way home has still to say travels with it.
        if !self.connections[slot].is_moving() {
            self.trace(slot, now, || TraceWhat::Unsent { bytes: kept });
        }
        if self.account(slot).is_err() {
            let detail = "so many bytes are unsent, of this connection or of all, that limits.pool_bytes has no room";
            self.end(slot, &Termination::because(CloseReason::SlowConsumer, detail), now);
        } else if kept > bound {
            let detail = format!("{kept} bytes unsent, limits.outbox_bytes is {bound}");
            self.end(slot, &Termination::because(CloseReason::SlowConsumer, detail), now);
        }
    }

    /// The socket took `count` bytes of what was unsent.
    pub fn handle_sent(&mut self, slot: ConnectionSlot, count: usize) {
        let connection = &mut self.connections[slot];
        connection.sent(count);
        self.account_anyway(slot);
        let connection = &self.connections[slot];
        if connection.unsent().is_empty() {
            if connection.is_lingering() {
                // The peer's end of the stream may have been seen before its last bytes were taken.
                self.ready.push(slot);
            }
            self.broker.handle_drained(slot);
        }
        // What a closed connection has left is counted no more, though it may still go before the socket does.
        if !connection.is_closed() {
            self.counters.subtract(Metric::BufferedBytes, count as u64);
        }
    }

    // --- Deadlines --------------------------------------------------------------------------------------------------

    /// Handles at most `limit` deadlines up to `drained`, the time up to which every readable socket was read. Peers
    /// with nothing left but a last read, and handshakes that are to give way to others, are appended to `suspects`: each must be read once more and then
    /// [rechecked](Shard::recheck_suspect). `true`: more are due.
    pub fn handle_deadlines(
        &mut self,
        drained: Tick,
        now: Moment,
        limit: usize,
        suspects: &mut Vec<ConnectionSlot>,
    ) -> bool {
        self.probed.clear();
        self.make_way(now, suspects);
        self.sweep(now);
        self.release_held(now, limit);
        let more_sessions = self.handle_session_deadlines(drained, now, limit);
        let mut due = std::mem::take(&mut self.due);
        let more = self.wheel.expire(drained, limit, &mut due);
        for slot in due.drain(..) {
            self.handle_deadline(slot, drained, now, suspects);
        }
        self.due = due;
        more || more_sessions
    }

    fn handle_deadline(
        &mut self,
        slot: ConnectionSlot,
        drained: Tick,
        now: Moment,
        suspects: &mut Vec<ConnectionSlot>,
    ) {
        let connection = &self.connections[slot];
        if connection.is_device() {
            self.handle_device_deadline(slot, drained, now, suspects);
        } else if connection.is_moving() {
            // Its home will answer, however late it is.
            let again = now.tick().deadline_after(self.settings_of(slot).hello_ticks);
            self.wheel.arm(slot, again);
        } else if connection.is_verifying() {
            self.end_unanswered(slot, CloseReason::TokenUnanswered, Cow::Borrowed(""), now);
        } else if connection.facts().is_some() {
            self.end(slot, &Termination::new(CloseReason::HelloTimeout), now);
        } else {
            // A lingering connection has its reason already; this one is not counted again.
            self.end(slot, &Termination::new(CloseReason::HandshakeTimeout), now);
        }
    }

    /// Whether the latest [`Shard::handle_deadlines`] has sent probes.
    #[must_use]
    pub fn has_probed(&self) -> bool {
        !self.probed.is_empty()
    }

    /// The probes of this turn were written by `flushed`: the wait for their answers begins then, however long the turn
    /// took, or was stopped, after they were said.
    pub fn handle_flushed(&mut self, flushed: Moment) {
        let mut probed = std::mem::take(&mut self.probed);
        for slot in probed.drain(..) {
            if !self.connections.get(slot).is_some_and(Connection::is_device) {
                continue;
            }
            let deadline = flushed.tick().deadline_after(self.settings_of(slot).schedule.timeout);
            if self.wheel.deadline(slot).is_some_and(|armed| deadline.is_after(armed)) {
                self.arm_device(slot, deadline, flushed);
            }
        }
        self.probed = probed;
    }

    /// A suspect was read once more: it is expired, or gives way, unless it was heard.
    pub fn recheck_suspect(&mut self, slot: ConnectionSlot, now: Moment) {
        let Some(connection) = self.connections.get(slot) else { return };
        if let Some(heard) = connection.heard_in_handshake() {
            return self.recheck_silent(slot, heard, now);
        }
        if !connection.is_device() {
            return;
        }
        match connection.recheck(self.settings_of(slot), now.tick()) {
            Some(deadline) => {
                self.counters.add(Metric::LastReadsHeard, 1);
                self.arm_device(slot, deadline, now);
            }
            None => self.end(slot, &Termination::new(CloseReason::Expired), now),
        }
    }

    // --- Commands ---------------------------------------------------------------------------------------------------

    /// The backbone holds a message, or will not: the device is told so, if it is still there.
    pub fn handle_settled(&mut self, receipt: Receipt, accepted: bool, now: Moment) {
        match receipt {
            Receipt::Connection(id, message) if accepted => self.handle_accepted(id, message, now),
            // The native protocol has no word for it: the device says it again when it has waited for long enough.
            Receipt::Connection(..) => {}
            Receipt::Publication(number) => self.broker.handle_settled(number, accepted),
        }
    }

    fn handle_accepted(&mut self, id: ConnectionId, message: u32, now: Moment) {
        if !self.is_current(id) || !self.connections[id.slot].is_device() {
            return;
        }
        let said = self
            .with(id.slot, now, |connection, settings, cx| connection.handle_message_accepted(message, settings, cx));
        if let Err(termination) = said {
            self.end(id.slot, &termination, now);
        }
    }

    /// Lets paused devices go on: some of those whose packets have asked for more than one turn does, and all others when the
    /// uplink, and whatever is to be delivered or waits for other shards, has room again.
    pub fn resume_paused(&mut self, now: Moment) {
        for _ in 0..UNFINISHED_IN_A_TURN {
            let Some(id) = self.unfinished.pop_front() else { break };
            self.resume(id);
        }
        let given = self.pool.given(Class::Up);
        self.crowded = match self.crowded {
            _ if !self.pool.is_crowded(Class::Up) => None,
            Some(stuck) if stuck.1 == given => Some(stuck),
            _ => Some((now, given)),
        };
        if self.crowded.is_none() || !self.way_up_moves(now) {
            for id in std::mem::take(&mut self.yielding) {
                self.resume(id);
            }
        }
        if self.paused.is_empty() || self.is_uplink_full() || self.broker.is_congested() {
            return;
        }
        for id in std::mem::take(&mut self.paused) {
            self.resume(id);
        }
    }

    fn resume(&mut self, id: ConnectionId) {
        if self.is_current(id) {
            self.connections[id.slot].resume();
            self.ready.push(id.slot);
        }
    }

    /// Whether devices wait for messages before them to reach the backbone, though none is left here to be sent up.
    #[must_use]
    pub fn waits_for_backbone(&self) -> bool {
        self.is_yielding() && self.pool.is_crowded(Class::Up) || !self.paused.is_empty() && self.pool.is_full(Class::Up)
    }

    /// Whether devices wait that say what nobody waits for. They are to be looked at again after [`YIELD_MAX`].
    #[must_use]
    pub fn is_yielding(&self) -> bool {
        !self.yielding.is_empty()
    }

    /// A way up that is crowded, and on which nothing has arrived for [`YIELD_MAX`], does not get on: a disk is full, say. Then
    /// whoever says what nobody waits for goes on, for it has heartbeats to say as well, and what it says is dropped where there
    /// is no room at all.
    pub(super) fn way_up_moves(&self, now: Moment) -> bool {
        self.crowded.is_none_or(|(since, _)| now.since(since) < YIELD_MAX)
    }

    fn is_uplink_full(&self) -> bool {
        self.uplink.len() >= self.uplink_length || self.pool.is_full(Class::Up)
    }

    /// The gateway ends: looks at `slots` slots from `position` on, and ends at most `limit` of the connections there,
    /// asking each to come back after a time drawn from `retry_after_ms`. Returns where to go on, round and round:
    /// whoever was on the way to another worker is found when it has come back.
    pub fn shut_down(
        &mut self,
        position: usize,
        slots: usize,
        limit: usize,
        retry_after_ms: &RangeInclusive<u32>,
        now: Moment,
    ) -> (usize, usize) {
        let mut ended = 0;
        let end = (position + slots).min(self.slots);
        for slot in (position..end).map(ConnectionSlot::at) {
            if ended == limit {
                return (slot.index(), ended);
            }
            let Some(connection) = self.connections.get(slot) else { continue };
            if !(connection.is_closed() || connection.is_lingering() || connection.is_moving()) {
                let retry_after = self.random.u32(retry_after_ms.clone());
                self.end(slot, &Termination::new(CloseReason::Shutdown).with_retry_after(retry_after), now);
                ended += 1;
            }
        }
        (if end == self.slots { 0 } else { end }, ended)
    }

    // --- Moves ------------------------------------------------------------------------------------------------------

    /// A connection has come home. Returns its slot; its socket is to be put there, and then it
    /// [arrives](Shard::handle_arrival).
    ///
    /// # Errors
    /// [`InvalidImage`] when the bytes are no connection, or one of a listener or a home that is not here, or with more
    /// half-received than there is room for.
    pub fn unpack(&mut self, image: &[u8], now: Moment) -> Result<ConnectionSlot, InvalidImage> {
        let generation = self.next_generation();
        let fits = |connection: &Connection| {
            let settings = self.settings.get(connection.listener().index());
            self.home.of(connection.device()) == self.worker
                && settings.is_some_and(|settings| connection.fits(settings))
        };
        let (image, mark) = Sweep::unpack(image).unwrap_or_default();
        let unpacked = take_address(image).ok_or(InvalidImage).and_then(|(address, image)| {
            let (grant, image) = Grants::unpack(image).ok_or(InvalidImage)?;
            Connection::unpack(image, generation, now.tick()).map(|connection| (address, connection, grant))
        });
        let (address, mut connection, grant) = unpacked
            .and_then(|unpacked| if fits(&unpacked.1) { Ok(unpacked) } else { Err(InvalidImage) })
            .inspect_err(|error| tracing::error!(worker = self.worker.0, %error, "a moved connection was refused"))?;
        let settings = &self.settings[connection.listener().index()];
        let deadline = now.tick().deadline_after(settings.hello_ticks);
        self.counters.add(Metric::MovesReceived, 1);
        // What its first home had to say goes out with the greeting.
        let unsent = connection.take_unsent();
        let slot = self.insert(connection, deadline);
        self.sweep.set_mark(slot, mark);
        self.grants.set(slot, grant);
        self.account_anyway(slot);
        if let Some(address) = address {
            self.addresses.insert(slot, address);
        }
        let mark = self.transmit.mark();
        self.transmit.wire().extend_from_slice(&unsent);
        self.transmit.assign(slot, mark);
        Ok(slot)
    }

    /// The connection in this slot has its socket: it becomes a device here.
    pub fn handle_arrival(&mut self, slot: ConnectionSlot, now: Moment) {
        self.register(slot, now);
        self.ready.push(slot);
    }

    /// The home has taken a connection: nothing of it is left here but a slot to reap.
    pub fn handle_moved(&mut self, id: ConnectionId) {
        if !self.is_current(id) {
            return;
        }
        let connection = &mut self.connections[id.slot];
        let unsent = connection.unsent().len() as u64;
        connection.forget();
        self.counters.add(Metric::MovesSent, 1);
        self.counters.subtract(Metric::BufferedBytes, unsent);
        self.wheel.cancel(id.slot);
        self.closed.push(id.slot);
    }

    /// The home has no place for a connection: it is told so from here.
    pub fn handle_move_refused(&mut self, id: ConnectionId, now: Moment) {
        if self.is_current(id) {
            let retry_after = self.random.u32(TRY_LATER_MS);
            self.end(id.slot, &Termination::new(CloseReason::HomeFull).with_retry_after(retry_after), now);
        }
    }

    // --- The life of one connection ---------------------------------------------------------------------------------

    /// False: what came is less than a ClientHello, and no place is taken for it.
    fn begin_handshake(&mut self, slot: ConnectionSlot, input: &Input, now: Moment) -> bool {
        let connection = &mut self.connections[slot];
        self.counters.subtract(Metric::HandshakesWaiting, 1);
        let port = connection.listener();
        if !connection.begin_handshake(input, &self.settings, now) {
            return false;
        }
        if connection.listener() != port {
            self.counters.add_to_listener(connection.listener().index(), ListenerMetric::Accepted, 1);
        }
        self.counters.add(Metric::HandshakesInFlight, 1);
        self.places.begin(ConnectionId { slot, generation: connection.generation() }, now);
        self.trace_handshake(slot, now);
        true
    }

    /// The first bytes that are looked at: what a proxy says, and the ClientHello. False: there is nothing more to do with them now.
    fn begin(&mut self, slot: ConnectionSlot, input: &mut Input, now: Moment) -> bool {
        match self.connections[slot].handle_announcement(input) {
            Announcing::Wrong(termination) => {
                self.end(slot, &termination, now);
                return false;
            }
            Announcing::Partial => self.counters.subtract(Metric::HandshakesWaiting, 1),
            Announcing::Complete(announced) => {
                if let Some(announced) = announced {
                    self.handle_announced(slot, &announced, now);
                }
                if self.begin_handshake(slot, input, now) {
                    return true;
                }
            }
        }
        self.connections[slot].save(input);
        self.account_or_end(slot, now);
        // Once more in its turn: what else the poll has told of, an end of the stream too, is not told again.
        self.plan_read(slot);
        false
    }

    /// The address of a peer whose handshake has not begun.
    pub fn note_peer(&mut self, slot: ConnectionSlot, address: IpAddr) {
        self.places.note_peer(slot, address);
    }

    /// All places are taken and somebody waits: those that have been silent for longest give way, if a last read finds nothing.
    fn make_way(&mut self, now: Moment, suspects: &mut Vec<ConnectionSlot>) {
        let mut asked = 0;
        while self.places.has_waiting() && self.handshakes() >= self.handshakes_max + asked {
            let connections = &self.connections;
            let heard = |id: ConnectionId| {
                let connection = connections.get(id.slot)?;
                if connection.generation() == id.generation { connection.heard_in_handshake() } else { None }
            };
            let Some((id, _)) = self.places.gives_way(now, heard) else { break };
            suspects.push(id.slot);
            asked += 1;
        }
        let waits = self.longest_waiting().map_or(0, |since| now.tick().since(since));
        self.counters.set(Metric::HandshakesLongestWait, 100 * u64::from(waits));
    }

    /// A handshake that is to give way was read once more. What it had said may have waited for its turn, or the process was
    /// stopped: then it keeps its place.
    fn recheck_silent(&mut self, slot: ConnectionSlot, heard: Moment, now: Moment) {
        if heard >= now {
            self.counters.add(Metric::LastReadsHeard, 1);
            return self.places.keep(self.id(slot), heard);
        }
        self.counters.add(Metric::HandshakesGaveWay, 1);
        let detail = format!("silent for {} ms while others waited for a place", now.since(heard).as_millis());
        self.end(slot, &Termination::because(CloseReason::HandshakeTimeout, detail), now);
    }

    fn handle_established(&mut self, slot: ConnectionSlot, established: &TlsEstablished, now: Moment) {
        self.sweep.set_mark(slot, established.certificate);
        self.trace_established(slot, established.resumed, now);
        self.counters.add(if established.resumed { Metric::HandshakesResumed } else { Metric::HandshakesFull }, 1);
        let connection = &self.connections[slot];
        let (listener, facts) = (connection.listener().index(), connection.facts());
        let is_old = facts.is_some_and(|(version, ..)| version == "TLSv1.2");
        let version = if is_old { ListenerMetric::HandshakesTls12 } else { ListenerMetric::HandshakesTls13 };
        self.counters.add_to_listener(listener, version, 1);
        let deadline = now.tick().deadline_after(self.settings_of(slot).hello_ticks);
        self.wheel.arm(slot, deadline);
        self.places.forget(slot);
    }

    /// The device is known: it goes home, or is registered here. `true`: it is here.
    pub(super) fn assign_home(&mut self, slot: ConnectionSlot, now: Moment) -> bool {
        if self.connections[slot].device().is_empty() {
            let protocol = self.settings_of(slot).protocol.label();
            let id = self.generate_id(protocol);
            self.connections[slot].set_generated_id(id);
        }
        let device = self.connections[slot].device();
        if self.settings_of(slot).deny.refuses_device(device, now) {
            self.end(slot, &Termination::new(CloseReason::Denied), now);
            return false;
        }
        let connection = &mut self.connections[slot];
        if self.home.of(connection.device()) != self.worker {
            connection.begin_move();
            self.moves.push_back(slot);
            let home = self.home.of(self.connections[slot].device());
            self.trace(slot, now, || TraceWhat::Moving { home });
            return false;
        }
        self.register(slot, now);
        self.connections[slot].is_device()
    }

    /// An id for a device that has none. Drawn until its home is here, so that nothing has to move.
    fn generate_id(&mut self, protocol: &str) -> Box<str> {
        loop {
            let id = format!("{protocol}-{:016x}", self.random.u64(..));
            if self.home.of(&id) == self.worker && self.find(&id).is_none() {
                return id.into();
            }
        }
    }

    /// Takes the connection into the device table; a connection that the device had before is taken over.
    fn register(&mut self, slot: ConnectionSlot, now: Moment) {
        let hash = self.home.hash(self.connections[slot].device());
        if let Some(old) = self.find(self.connections[slot].device()) {
            if self.is_takeover_damped(slot, hash, now) {
                return;
            }
            self.end(old, &Termination::new(CloseReason::TakenOver), now);
        }
        self.devices.insert(hash, slot);
        self.counters.add(Metric::Devices, 1);
        let listener = self.connections[slot].listener().index();
        self.counters.add_to_listener(listener, ListenerMetric::Devices, 1);
        let generation = self.next_generation();
        let jitter = self.random.u32(..);
        let begun =
            self.with(slot, now, |connection, settings, cx| connection.begin_device(generation, settings, jitter, cx));
        // What it had half-received is a device's from now on.
        self.account_anyway(slot);
        let presence = self.presence(slot, Cow::Borrowed(""), now);
        let identity = presence.facts.identity;
        self.uplink.push(WorkerEvent::Connected(presence));
        self.trace(slot, now, || TraceWhat::Connected { identity });
        match begun {
            Ok(deadline) => self.arm_device(slot, deadline, now),
            Err(termination) => self.end(slot, &termination, now),
        }
    }

    fn presence(&mut self, slot: ConnectionSlot, detail: Cow<'static, str>, now: Moment) -> Presence {
        self.sequence += 1;
        let connection = &self.connections[slot];
        Presence {
            device: connection.device().into(),
            listener: connection.listener(),
            generation: self.full_generation(connection.generation()),
            sequence: self.sequence,
            at: now,
            last_heard: connection.liveness().last_heard().start_near(now),
            facts: Box::new(self.connection_facts(slot, detail, now)),
        }
    }

    fn connection_facts(&self, slot: ConnectionSlot, detail: Cow<'static, str>, now: Moment) -> ConnectionFacts {
        let connection = &self.connections[slot];
        let (tls_version, _, identity) = connection.facts().unwrap_or_default();
        ConnectionFacts {
            connection: self.id(slot),
            peer: self.address(slot),
            identity,
            tls_version,
            connected_at: connection.connected_at().start_near(now),
            detail,
        }
    }

    /// The end of a connection: the one place where it is counted, logged and told.
    pub(super) fn end(&mut self, slot: ConnectionSlot, termination: &Termination, now: Moment) {
        let connection = &self.connections[slot];
        if connection.is_closed() {
            return;
        }
        let counted = connection.is_lingering();
        let was_device = connection.is_device();
        if !counted {
            self.counters.count_closed(termination.reason as usize);
            self.counters.add_to_listener(connection.listener().index(), ListenerMetric::Closed, 1);
            self.note_end(slot, termination);
            self.leave_state(slot, termination, now);
        }
        let before = self.connections[slot].unsent().len();
        self.with(slot, now, |connection, settings, cx| connection.end(termination, settings, cx));
        self.account_anyway(slot);
        if !counted {
            let (reason, detail) = (termination.reason, &termination.detail);
            self.trace(slot, now, || TraceWhat::Ended { reason, detail: detail.clone() });
        }
        if was_device {
            // Not before: until its goodbye is said, the session knows how.
            self.detach_session(slot, termination.reason, now);
        }
        let connection = &mut self.connections[slot];
        if connection.is_closed() {
            self.counters.subtract(Metric::BufferedBytes, before as u64);
            self.wheel.cancel(slot);
            self.closed.push(slot);
        } else {
            let deadline = now.tick().deadline_after(self.settings_of(slot).linger_ticks);
            self.wheel.arm(slot, deadline);
            self.transmit.end(slot);
            // What arrived while it was not read was reported once.
            self.ready.push(slot);
        }
    }

    /// Accounts for what a connection has half-received. If the pool has no room for it, it is asked to come back.
    fn account_or_end(&mut self, slot: ConnectionSlot, now: Moment) {
        if self.account(slot).is_err() {
            let retry_after = self.random.u32(TRY_LATER_MS);
            let detail = "what it has half-sent has no room in limits.pool_bytes";
            let termination = Termination::because(CloseReason::PoolFull, detail).with_retry_after(retry_after);
            self.end(slot, &termination, now);
        }
    }

    /// Says that a connection did not become a device. Of those that had not even said who they are nothing is said while the
    /// uplink is full: scanners do not keep devices' messages waiting.
    fn tell_not_admitted(&mut self, slot: ConnectionSlot, reason: CloseReason, detail: Cow<'static, str>, now: Moment) {
        let connection = &self.connections[slot];
        if connection.device().is_empty() && self.uplink.len() >= self.uplink_length {
            return;
        }
        let (device, listener) = (connection.device().into(), connection.listener());
        let facts = self.connection_facts(slot, detail, now);
        self.uplink.push(WorkerEvent::NotAdmitted(Box::new(NotAdmitted { device, listener, reason, at: now, facts })));
    }

    /// Takes an ending connection out of whatever its state has put it into.
    fn leave_state(&mut self, slot: ConnectionSlot, termination: &Termination, now: Moment) {
        let (reason, detail) = (&termination.reason, &termination.detail);
        let connection = &self.connections[slot];
        if !connection.is_device() {
            self.tell_not_admitted(slot, *reason, detail.clone(), now);
        }
        let connection = &self.connections[slot];
        if connection.is_waiting() || connection.is_called() {
            self.counters.subtract(Metric::HandshakesWaiting, 1);
        } else if connection.is_device() {
            let hash = self.home.hash(connection.device());
            self.devices.remove(hash, slot);
            self.counters.subtract(Metric::Devices, 1);
            self.counters.subtract_from_listener(connection.listener().index(), ListenerMetric::Devices, 1);
            let presence = self.presence(slot, detail.clone(), now);
            self.uplink.push(WorkerEvent::Disconnected(presence, *reason));
        } else if connection.is_handshaking() {
            self.counters.subtract(Metric::HandshakesInFlight, 1);
            self.places.end(slot, None);
        }
    }
}

/// Why a connection ends whose peer leaves before TLS stands. A proxy that looks whether somebody is here does just that.
fn left_early(connection: &Connection) -> CloseReason {
    if connection.is_proxy_check() { CloseReason::ProxyCheck } else { CloseReason::HandshakeAbandoned }
}

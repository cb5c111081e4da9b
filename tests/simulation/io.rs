//! The world of one worker in memory: what its turn reads, writes and hears goes over sockets that are not real, and
//! under a clock that the simulation owns. What it does with it is the turn's own.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use pulsegate::link::{
    CloseReason, ConnectionId, ListenerId, Outgoing, Passed, Recipient, Refusal, ShardMessage, WorkerCommand,
    WorkerEvent, WorkerId,
};
use pulsegate::metrics::Counters;
use pulsegate::shard::Shard;
use pulsegate::slot::ConnectionSlot;
use pulsegate::time::Moment;
use pulsegate::turn::{
    Accepted, Broken, Closing, Event, Handoff, HandoffAck, Interrupted, Io, Phase, ReadError, Received,
};

use crate::gateway::Build;
use crate::network::{Fault, Network, SocketId};

/// The generation of connections that come from no worker.
pub const FROM_OUTSIDE: u32 = u32::MAX;

/// For so long something is kept back on its way to another shard.
const KEPT_BACK: Duration = Duration::from_mins(2);

/// What goes wrong in a worker's world, "one in so many"; 0: never.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Events that the way to the backbone holds.
    pub channel: usize,
    /// Messages of other shards that a worker gives credit for (`limits.inbox_length`).
    pub inbox: usize,
    /// Writes that are cut short.
    pub short_writes: u32,
    /// Moved connections for which their home has no place.
    pub home_full: u32,
    /// Turns in which the channels to other workers take nothing.
    pub channel_full: u32,
    /// Polls that a signal interrupts.
    pub interrupted: u32,
    /// Steps in which the process is stopped somewhere.
    pub stopped: u32,
    /// The shard's invariants are checked after every phase, not only when the world asks for it.
    pub check_phases: bool,
}

/// An error that is planted into the world, to see whether the simulation notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    None,
    /// The poll keeps back what it should tell, and last reads find nothing: deadlines run on a clock that nobody drained.
    DeafPoll,
    /// Slots are freed as soon as their connections end, and not at the end of the turn.
    FreeEarly,
    /// Now and then the backbone's answer to a message is lost.
    LoseAnswers,
    /// What a socket has not delivered is lost when it is shut.
    ShutEarly,
    /// Reads stop halfway, and nobody tells of the rest.
    ShortReads,
    /// Now and then what is said to another shard is lost.
    LosePeers,
    /// What ended sessions have left to groups goes to a group of nobody.
    LoseLeft,
    /// The first design of the inbox: what another shard passes on is not taken while the own way to others is congested.
    StopsHearing,
    /// Whoever has subscribed to a group is told so before the group's home knows.
    EarlySuback,
    /// Whoever has published a retained message is told that it is kept before the other shards have it.
    EarlyPuback,
    /// A socket that was shut is told of as writable by every poll.
    RepeatEdges,
}

/// What goes from worker to worker.
pub enum WorkerMessage {
    Image { origin: ConnectionId, bytes: Vec<u8>, socket: SocketId },
    Ack(HandoffAck),
}

/// Silence after which a peer may be expired at the earliest: every probe unanswered for its time.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub micros: u64,
}

#[expect(clippy::struct_excessive_bools, reason = "what is so of it, each on its own")]
pub struct SimIo {
    id: WorkerId,
    /// Lent for each turn.
    pub network: Network,
    pub now: Moment,
    /// After so many more looks at the clock the process is stopped for so long.
    pub stop: Option<(u32, Duration)>,
    /// Events of one poll.
    room: usize,
    faults: Faults,
    patience: Patience,
    sabotage: Sabotage,
    random: fastrand::Rng,
    phase: Phase,
    /// How many phases have passed in all, and what arrives in which.
    pub point: u32,
    pub script: VecDeque<(u32, SocketId, Vec<u8>)>,

    sockets: Vec<Option<SocketId>>,
    open: usize,
    backlog: VecDeque<(SocketId, ListenerId)>,
    is_announced: bool,

    /// From each worker, and from outside.
    mail: Vec<VecDeque<WorkerMessage>>,
    mail_events: VecDeque<WorkerId>,
    message: Option<WorkerMessage>,
    image: Vec<u8>,
    offered: Vec<(WorkerId, ConnectionId)>,
    acks: Vec<(WorkerId, HandoffAck)>,
    /// Sent in this turn.
    pub outbox: Vec<(WorkerId, WorkerMessage)>,

    inbox: VecDeque<WorkerCommand>,
    is_rung: bool,
    passed: VecDeque<(WorkerId, Vec<Passed>)>,
    /// The shard is congested, as of the latest phase.
    is_congested: bool,
    /// What was kept back on its way to other shards, and until when.
    kept_back: Vec<(Moment, WorkerId, Outgoing)>,
    /// Said to other shards in this turn.
    pub said: Vec<(WorkerId, Outgoing)>,
    pub channel: VecDeque<WorkerEvent>,
    /// How often the worker has said that it waits: the bell rings when something is taken out.
    waits_for_room: u32,

    /// Events of the shard that were looked at.
    seen: usize,
    /// The sockets of present devices.
    devices: HashMap<Box<str>, SocketId>,
    /// Whether anything was done since this was set to `false`.
    pub has_moved: bool,
    pub expired: u64,
    /// Sockets whose peers did not read, or not all in the time that they had, before their connections ended.
    pub slow: HashSet<SocketId>,
    short: HashSet<SocketId>,
    shut: Vec<SocketId>,
    /// Sockets that were offered to another worker.
    pub moved: Vec<SocketId>,
    /// When somebody last waited for a handshake and there was no place.
    pub crowded_at: Option<Moment>,
}

impl SimIo {
    pub fn new(id: u16, build: &Build, seed: u64) -> Self {
        Self {
            id: WorkerId(id),
            network: Network::default(),
            now: Moment::default(),
            stop: None,
            room: build.bounds.events,
            faults: build.faults,
            patience: build.patience,
            sabotage: build.sabotage,
            random: fastrand::Rng::with_seed(seed),
            phase: Phase::FlushEvents,
            point: 0,
            script: VecDeque::new(),
            sockets: Vec::new(),
            open: 0,
            backlog: VecDeque::new(),
            is_announced: false,
            mail: (0..=build.workers).map(|_| VecDeque::new()).collect(),
            mail_events: VecDeque::new(),
            message: None,
            image: Vec::new(),
            offered: Vec::new(),
            acks: Vec::new(),
            outbox: Vec::new(),
            inbox: VecDeque::new(),
            is_rung: false,
            passed: VecDeque::new(),
            is_congested: false,
            kept_back: Vec::new(),
            said: Vec::new(),
            channel: VecDeque::new(),
            waits_for_room: 0,
            seen: 0,
            devices: HashMap::new(),
            has_moved: false,
            expired: 0,
            slow: HashSet::new(),
            short: HashSet::new(),
            shut: Vec::new(),
            moved: Vec::new(),
            crowded_at: None,
        }
    }

    // --- For the world ----------------------------------------------------------------------------------------------

    /// Somebody connects.
    pub fn arrive(&mut self, socket: SocketId, listener: ListenerId) {
        self.backlog.push_back((socket, listener));
        self.is_announced = true;
    }

    /// A message from another worker, or from outside: under the number after the last worker's.
    pub fn post(&mut self, from: WorkerId, message: WorkerMessage) {
        self.mail[from.index()].push_back(message);
        if !self.mail_events.contains(&from) {
            self.mail_events.push_back(from);
        }
    }

    /// Puts a command into the inbox and rings.
    pub fn command(&mut self, command: WorkerCommand) {
        self.inbox.push_back(command);
        self.is_rung = true;
    }

    /// What another shard says arrives.
    pub fn hear(&mut self, from: WorkerId, outgoing: Outgoing) {
        let Outgoing { answers, passed } = outgoing;
        if !passed.is_empty() {
            self.passed.push_back((from, passed));
        }
        if !answers.is_empty() {
            self.inbox.push_back(WorkerCommand::Peers { from, answers });
        }
        self.is_rung = true;
    }

    /// Whether a poll would come back at once.
    pub fn has_events(&self, network: &Network) -> bool {
        self.is_announced || self.is_rung || !self.mail_events.is_empty() || network.has_events(self.id.0)
    }

    fn one_in(&mut self, many: u32) -> bool {
        many > 0 && self.random.u32(..many) == 0
    }

    fn socket(&self, slot: ConnectionSlot) -> SocketId {
        self.sockets[slot.index()].expect("whoever is there has a socket")
    }

    fn insert(&mut self, slot: ConnectionSlot, socket: SocketId) {
        let position = slot.index();
        if position >= self.sockets.len() {
            self.sockets.resize(position + 1, None);
        }
        assert!(self.sockets[position].replace(socket).is_none(), "slot {slot} had a socket already");
        self.open += 1;
    }

    // --- What must be true within a turn ----------------------------------------------------------------------------

    /// Looks at what the shard has said since it was looked at last.
    fn look(&mut self, shard: &mut Shard) {
        let events = std::mem::take(shard.uplink());
        for event in &events[self.seen.min(events.len())..] {
            match event {
                WorkerEvent::Connected(presence) => {
                    if let Some(description) = shard.describe(&presence.device, self.now) {
                        self.devices.insert(presence.device.clone(), self.socket(description.connection.slot));
                    }
                }
                WorkerEvent::Disconnected(presence, reason) => {
                    let socket = self.devices.remove(&presence.device);
                    if *reason == CloseReason::Expired {
                        self.check_expired(socket.expect("whoever is expired was there"));
                    }
                }
                _ => {}
            }
        }
        self.seen = events.len();
        *shard.uplink() = events;
    }

    /// Decision D5, seen from outside: whoever is expired has nothing unread, and was silent for long enough.
    fn check_expired(&mut self, socket: SocketId) {
        self.expired += 1;
        assert_eq!(self.network.unread(socket), 0, "peer {socket} was expired unheard");
        let silence = self.now.since(self.network.last_arrival(socket)).as_micros() as u64;
        assert!(silence >= self.patience.micros, "peer {socket} was expired after {silence} µs of silence");
    }

    /// Slots are freed too early.
    fn free(&mut self, shard: &mut Shard) {
        while let Some(slot) = shard.next_closed() {
            let why = if shard.reap(slot) { Closing::Moved } else { Closing::Ended };
            self.close(slot, why);
        }
    }

    /// Answers in the place of another worker what it was not told yet.
    fn answer_early(&mut self, worker: WorkerId, outgoing: &mut Outgoing) {
        let mut late = Outgoing::default();
        let mut answers = Vec::new();
        for answer in &mut outgoing.answers {
            if let ShardMessage::Join { member, waits, .. } = answer
                && self.sabotage == Sabotage::EarlySuback
                && *waits != 0
            {
                answers.push(ShardMessage::Joined { member: *member, waits: std::mem::take(waits) });
                late.answers.push(answer.clone());
            }
        }
        if !late.answers.is_empty() {
            outgoing.answers.retain(|answer| !matches!(answer, ShardMessage::Join { waits: 0, .. }));
        }
        if self.sabotage == Sabotage::EarlyPuback {
            late.passed =
                outgoing.passed.extract_if(.., |passed| passed.publication.retain && passed.token != 0).collect();
            for passed in &mut late.passed {
                answers.push(ShardMessage::Taken { token: std::mem::take(&mut passed.token), is_refused: false });
            }
        }
        if !answers.is_empty() {
            self.hear(worker, Outgoing { answers, passed: Vec::new() });
            self.kept_back.push((self.now.plus(KEPT_BACK), worker, late));
        }
    }

    /// What was kept back for long enough goes.
    fn send_kept_back(&mut self) {
        let now = self.now;
        let due = self.kept_back.extract_if(.., |(until, ..)| *until <= now);
        self.said.extend(due.map(|(_, worker, outgoing)| (worker, outgoing)));
    }

    /// The control plane takes something.
    pub fn take_up(&mut self) -> Option<WorkerEvent> {
        let taken = self.channel.pop_front();
        if taken.is_some() && std::mem::take(&mut self.waits_for_room) > 0 {
            self.is_rung = true;
        }
        taken
    }
}

impl Io for SimIo {
    type Socket = SocketId;

    fn now(&mut self) -> Moment {
        if let Some((looks, length)) = self.stop {
            self.stop = Some((looks.saturating_sub(1), length));
            if looks == 0 {
                self.stop = None;
                self.now = self.now.plus(length);
                self.network.release(self.now);
            }
        }
        self.now
    }

    fn poll(&mut self, _timeout: Duration, events: &mut Vec<Event>) -> Result<(), Interrupted> {
        if self.one_in(self.faults.interrupted) {
            return Err(Interrupted);
        }
        let mut room = self.room;
        if self.sabotage == Sabotage::DeafPoll {
            room = self.random.usize(..room);
        }
        if room > 0 && std::mem::take(&mut self.is_announced) {
            events.push(Event::Listener(0));
        }
        if events.len() < room && std::mem::take(&mut self.is_rung) {
            events.push(Event::Bell);
        }
        while events.len() < room
            && let Some(from) = self.mail_events.pop_front()
        {
            events.push(Event::Handoff(from));
        }
        while events.len() < room
            && let Some((slot, readiness)) = self.network.next_event(self.id.0)
        {
            events.push(Event::Socket(slot, readiness));
        }
        for &socket in &self.shut {
            self.network.repeat_event(socket);
        }
        Ok(())
    }

    // --- Listeners --------------------------------------------------------------------------------------------------

    fn listeners(&self) -> usize {
        1
    }

    fn accept(&mut self, _position: usize) -> Accepted<SocketId> {
        let Some((socket, listener)) = self.backlog.pop_front() else { return Accepted::Nobody };
        self.has_moved = true;
        Accepted::Connection { socket, listener, address: IpAddr::from([10, 0, 0, 1]) }
    }

    fn refuse(&mut self, socket: SocketId, _address: IpAddr, _listener: ListenerId, _refusal: Refusal) {
        self.network.close(socket);
    }

    fn close_listeners(&mut self) {
        for (socket, _) in self.backlog.drain(..) {
            self.network.close(socket);
        }
    }

    // --- Sockets ----------------------------------------------------------------------------------------------------

    fn connections(&self) -> u32 {
        self.open as u32
    }

    fn sockets(&self) -> usize {
        self.open
    }

    fn admit(&mut self, slot: ConnectionSlot, socket: SocketId) -> Result<(), Broken> {
        self.insert(slot, socket);
        self.network.register(socket, self.id.0, slot);
        Ok(())
    }

    fn take_in(&mut self, slot: ConnectionSlot, socket: SocketId) -> Result<(), Broken> {
        self.insert(slot, socket);
        self.network.register(socket, self.id.0, slot);
        Ok(())
    }

    fn read(&mut self, slot: ConnectionSlot, space: &mut [u8]) -> Result<usize, ReadError> {
        if self.sabotage == Sabotage::DeafPoll && self.phase == Phase::Commands {
            return Err(ReadError::WouldBlock);
        }
        let socket = self.socket(slot);
        let room = match self.sabotage {
            Sabotage::ShortReads => space.len().min(self.network.unread(socket).div_ceil(2)),
            _ => space.len(),
        };
        match self.network.read(socket, &mut space[..room]) {
            Ok(count) => {
                self.has_moved = true;
                Ok(count)
            }
            Err(Fault::WouldBlock) => Err(ReadError::WouldBlock),
            Err(Fault::Broken) => Err(ReadError::Broken),
        }
    }

    fn write(&mut self, slot: ConnectionSlot, bytes: &[u8]) -> Result<usize, Broken> {
        let most = if self.one_in(self.faults.short_writes) { self.random.usize(..40) } else { usize::MAX };
        let socket = self.socket(slot);
        let count = self.network.write(socket, bytes, most).map_err(|_| Broken)?;
        self.has_moved |= count > 0;
        if count < bytes.len() {
            self.short.insert(socket);
        } else {
            self.short.remove(&socket);
        }
        Ok(count)
    }

    fn shut_write(&mut self, slot: ConnectionSlot) {
        let socket = self.socket(slot);
        if self.sabotage == Sabotage::ShutEarly {
            self.network.forget_unsent(socket);
        }
        self.network.shut_down_writing(socket);
        if self.sabotage == Sabotage::RepeatEdges {
            self.shut.push(socket);
        }
    }

    fn close(&mut self, slot: ConnectionSlot, why: Closing) {
        let socket = self.sockets[slot.index()].take().expect("whoever ends has a socket");
        self.open -= 1;
        self.has_moved = true;
        self.shut.retain(|&shut| shut != socket);
        if why == Closing::Ended {
            if self.short.remove(&socket) {
                self.slow.insert(socket);
            }
            self.network.close(socket);
        }
    }

    fn peer(&self, slot: ConnectionSlot) -> Option<SocketAddr> {
        self.sockets.get(slot.index())?.map(|socket| ([10, 0, 0, 1], socket as u16).into())
    }

    // --- Handoff to other workers -----------------------------------------------------------------------------------

    fn unregister(&mut self, slot: ConnectionSlot) -> Result<(), Broken> {
        let socket = self.socket(slot);
        self.network.deregister(socket);
        self.moved.push(socket);
        Ok(())
    }

    fn register(&mut self, slot: ConnectionSlot) -> Result<(), Broken> {
        self.network.register(self.socket(slot), self.id.0, slot);
        Ok(())
    }

    fn offer(&mut self, home: WorkerId, id: ConnectionId) -> Result<(), Broken> {
        assert_ne!(home, self.id, "it is at home");
        self.offered.push((home, id));
        Ok(())
    }

    fn acknowledge(&mut self, worker: WorkerId, ack: HandoffAck) {
        self.acks.push((worker, ack));
    }

    fn send_handoffs(&mut self, shard: &Shard, _refused: &mut Vec<ConnectionId>) {
        if self.one_in(self.faults.channel_full) {
            return;
        }
        let outside = self.mail.len() - 1;
        let acks = self.acks.drain(..).filter(|(worker, _)| worker.index() != outside);
        self.outbox.extend(acks.map(|(worker, ack)| (worker, WorkerMessage::Ack(ack))));
        for (home, origin) in std::mem::take(&mut self.offered) {
            if !shard.is_current(origin) {
                continue;
            }
            self.has_moved = true;
            let mut bytes = Vec::new();
            shard.pack(origin, &mut bytes);
            let socket = self.socket(origin.slot);
            self.outbox.push((home, WorkerMessage::Image { origin, bytes, socket }));
        }
    }

    fn has_handoffs(&self) -> bool {
        !self.offered.is_empty() || !self.acks.is_empty()
    }

    fn receive_handoffs(&mut self, from: WorkerId) -> Received {
        self.message = self.mail[from.index()].pop_front();
        self.has_moved |= self.message.is_some();
        if self.message.is_some() { Received::Message } else { Received::Nothing }
    }

    fn next_handoff(&mut self) -> Option<Handoff<SocketId>> {
        Some(match self.message.take()? {
            WorkerMessage::Image { origin, bytes, socket } => {
                self.image = bytes;
                // Those from outside have no other worker to go back to.
                let is_real = origin.generation != FROM_OUTSIDE;
                let is_dropped = is_real && self.one_in(self.faults.home_full);
                Handoff::Connection { origin, image: 0..self.image.len(), socket: (!is_dropped).then_some(socket) }
            }
            WorkerMessage::Ack(ack) => Handoff::Ack(ack),
        })
    }

    fn image(&self, bytes: Range<usize>) -> &[u8] {
        &self.image[bytes]
    }

    // --- Words with other threads -----------------------------------------------------------------------------------

    fn answer_bell(&mut self) {}

    fn next_command(&mut self) -> Option<WorkerCommand> {
        loop {
            let command = self.inbox.pop_front()?;
            self.has_moved = true;
            let is_answer = matches!(command, WorkerCommand::MessageSettled { .. });
            if self.sabotage == Sabotage::LoseAnswers && is_answer && self.random.u32(..10) == 0 {
                continue;
            }
            return Some(command);
        }
    }

    fn next_passed(&mut self) -> Option<(WorkerId, Vec<Passed>)> {
        if self.sabotage == Sabotage::StopsHearing && self.is_congested {
            return None;
        }
        let mut passed = self.passed.pop_front()?;
        self.has_moved = true;
        for Passed { recipient, .. } in &mut passed.1 {
            if self.sabotage == Sabotage::LoseLeft && matches!(recipient, Recipient::Group(_)) {
                *recipient = Recipient::Group("$share/of/nobody".into());
            }
        }
        Some(passed)
    }

    fn tell_peer(&mut self, worker: WorkerId, mut outgoing: Outgoing) {
        self.has_moved = true;
        self.answer_early(worker, &mut outgoing);
        if self.sabotage != Sabotage::LosePeers || self.random.u32(..50) != 0 {
            self.said.push((worker, outgoing));
        }
    }

    fn send_up(&mut self, events: &mut Vec<WorkerEvent>) -> bool {
        let count = events.len().min(self.faults.channel.saturating_sub(self.channel.len()));
        self.has_moved |= count > 0;
        self.channel.extend(events.drain(..count));
        self.seen -= count;
        self.waits_for_room += u32::from(!events.is_empty());
        events.is_empty()
    }

    fn wait_for_room_above(&mut self) {
        self.waits_for_room += 1;
    }

    fn publish(&mut self, _counters: &Counters) {}

    fn between_phases(&mut self, phase: Phase, shard: &mut Shard) {
        self.phase = phase;
        self.point += 1;
        while let Some((_, socket, bytes)) = self.script.pop_front_if(|(at, ..)| *at <= self.point) {
            self.network.send(socket, &bytes, self.now);
        }
        if phase == Phase::ReadHandshakes && shard.longest_waiting().is_some() && !shard.has_waiting() {
            self.crowded_at = Some(self.now);
        }
        if phase != Phase::FlushEvents {
            self.look(shard);
        }
        if self.faults.check_phases {
            shard.check_invariants();
        }
        if self.sabotage == Sabotage::StopsHearing {
            let was_congested = std::mem::replace(&mut self.is_congested, shard.is_congested());
            self.is_rung |= was_congested && !self.is_congested;
        }
        self.send_kept_back();
        if phase == Phase::Expire && self.sabotage == Sabotage::FreeEarly {
            self.free(shard);
        }
    }
}

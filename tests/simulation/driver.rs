//! What stands in for a worker: the phases of its turn, by the same names and in the same order, over sockets that are
//! not real. Whatever the worker knows that the shard does not is done here as it is done there.

use std::collections::{HashSet, VecDeque};

use pulsegate::connection::Input;
use pulsegate::link::{Command, ConnectionId, ListenerId, Uplink, WorkerId};
use pulsegate::shard::{Plan, Shard, Transmit};
use pulsegate::time::{Moment, Tick};

use crate::drained::Drained;
use crate::network::{Fault, Network, SocketId};

/// The bounds of a turn. Small ones leave more to later turns.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub events: usize,
    pub accepts: usize,
    pub handshakes: usize,
    pub commands: usize,
    pub deadlines: usize,
    /// Events that the way to the backbone holds.
    pub channel: usize,
    /// One write in so many is cut short; 0: none.
    pub short_writes: u32,
    /// One moved connection in so many is refused by its home; 0: none.
    pub home_full: u32,
    /// After every phase, not only when the world asks for it.
    pub check_phases: bool,
}

/// An error that is planted into the driver, to see whether the simulation notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    None,
    /// Deadlines run on the clock, and suspects are not read once more.
    ExpireOnTheClock,
    /// Slots are freed as soon as their connections end, and not at the end of the turn.
    FreeEarly,
    /// Now and then the backbone's answer to a message is lost.
    LoseAnswers,
    /// Sockets are shut for writing with the first segment of those that end.
    ShutEarly,
}

/// What goes from worker to worker.
pub enum Letter {
    Parcel { origin: Option<(u16, ConnectionId)>, bytes: Vec<u8>, socket: SocketId },
    Verdict { origin: ConnectionId, is_taken: bool },
}

/// Silence after which a peer may be expired at the earliest: every probe unanswered for its time.
pub struct Patience {
    pub micros: u64,
}

pub struct Driver {
    pub id: u16,
    pub shard: Shard,
    sockets: Vec<Option<SocketId>>,
    open: usize,
    bounds: Bounds,
    patience: Patience,
    sabotage: Sabotage,
    random: fastrand::Rng,

    pub backlog: VecDeque<(SocketId, ListenerId)>,
    pub letters: VecDeque<Letter>,
    pub outbox: Vec<(WorkerId, Letter)>,
    pub commands: VecDeque<Command>,
    pub channel: VecDeque<Uplink>,

    input: Input,
    transmit: Transmit,
    drained: Drained,
    drained_until: Tick,
    suspects: Vec<u32>,
    reads: VecDeque<(u32, bool)>,
    handshakes: VecDeque<(u32, bool)>,
    writes: Vec<u32>,
    ready: VecDeque<u32>,
    more_deadlines: bool,
    slept_since: Moment,
    pub expired: u64,
    /// Sockets whose peers did not read, or not all in the time that they had, before their connections ended.
    pub slow: HashSet<SocketId>,
    /// When somebody last waited for a handshake and there was no place.
    pub crowded_at: Option<Moment>,
}

#[derive(PartialEq)]
enum Left {
    More,
    Nothing,
}

impl Driver {
    pub fn new(
        id: u16,
        shard: Shard,
        input: Input,
        bounds: Bounds,
        patience: Patience,
        sabotage: Sabotage,
        seed: u64,
    ) -> Self {
        Self {
            id,
            shard,
            sockets: Vec::new(),
            open: 0,
            bounds,
            patience,
            sabotage,
            random: fastrand::Rng::with_seed(seed),
            backlog: VecDeque::new(),
            letters: VecDeque::new(),
            outbox: Vec::new(),
            commands: VecDeque::new(),
            channel: VecDeque::new(),
            input,
            transmit: Transmit::default(),
            drained: Drained::new(Tick(0), 0),
            drained_until: Tick(0),
            suspects: Vec::new(),
            reads: VecDeque::new(),
            handshakes: VecDeque::new(),
            writes: Vec::new(),
            ready: VecDeque::new(),
            more_deadlines: false,
            slept_since: Moment::default(),
            expired: 0,
            slow: HashSet::new(),
            crowded_at: None,
        }
    }

    /// Whether the poll would come back by now.
    pub fn is_awake(&self, network: &Network, now: Moment) -> bool {
        let pending = !self.reads.is_empty()
            || !self.handshakes.is_empty()
            || !self.ready.is_empty()
            || self.shard.has_ready()
            || self.more_deadlines
            || self.shard.has_waiting();
        let told = network.has_events(self.id)
            || !self.backlog.is_empty()
            || !self.letters.is_empty()
            || !self.commands.is_empty();
        let retry = self.channel.len() >= self.bounds.channel;
        let due = self.shard.next_deadline().is_some_and(|deadline| !deadline.is_after(now.tick()));
        pending || told || due || retry || now.since(self.slept_since).as_secs() >= 5
    }

    pub fn turn(&mut self, network: &mut Network, now: Moment) {
        self.slept_since = now;
        self.sort_events(network, now);
        self.accept(network, now);
        self.read_live(network, now);
        self.check();
        self.read_handshakes(network, now);
        self.check();
        self.receive_moved(network, now);
        self.check();
        self.receive_commands(now);
        self.check();
        self.expire(network, now);
        self.check();
        self.flush(network, now);
        self.check();
        self.move_away(network, now);
        self.reap(network);
        self.publish();
        self.check();
    }

    fn check(&self) {
        if self.bounds.check_phases {
            self.shard.check_invariants();
        }
    }

    fn one_in(&mut self, many: u32) -> bool {
        many > 0 && self.random.u32(..many) == 0
    }

    // --- Reading ----------------------------------------------------------------------------------------------------

    fn sort_events(&mut self, network: &mut Network, now: Moment) {
        let mut count = 0;
        while count < self.bounds.events
            && let Some((index, readiness)) = network.next_event(self.id)
        {
            count += 1;
            if readiness.writable {
                self.writes.push(index);
            }
            if readiness.readable || readiness.to_the_end {
                match self.shard.plan_read(index) {
                    Plan::Read => self.reads.push_back((index, readiness.to_the_end)),
                    Plan::ReadLater => self.handshakes.push_back((index, readiness.to_the_end)),
                    Plan::Leave => {}
                }
            }
        }
        self.drained_until = self.drained.handle_poll(now.tick(), count, self.bounds.events, self.open);
    }

    fn read_live(&mut self, network: &mut Network, now: Moment) {
        self.shard.take_ready(&mut self.ready);
        while let Some(index) = self.ready.pop_front() {
            if self.shard.load_input(index, &mut self.input) {
                self.shard.handle_input(index, &mut self.input, 0, now);
                self.reads.push_back((index, true));
            }
        }
        for _ in 0..self.reads.len() {
            let Some((index, to_the_end)) = self.reads.pop_front() else { break };
            if self.read(network, index, to_the_end, now) == Left::More {
                self.reads.push_back((index, to_the_end));
            }
        }
    }

    fn read_handshakes(&mut self, network: &mut Network, now: Moment) {
        if self.shard.longest_waiting().is_some() && !self.shard.has_waiting() {
            self.crowded_at = Some(now);
        }
        for _ in 0..self.bounds.handshakes {
            let (index, to_the_end) = match self.handshakes.pop_front() {
                Some(read) => read,
                None => match self.shard.next_waiting() {
                    Some(index) => (index, true),
                    None => break,
                },
            };
            if self.read(network, index, to_the_end, now) == Left::More {
                self.reads.push_back((index, to_the_end));
            }
        }
    }

    fn read(&mut self, network: &mut Network, index: u32, to_the_end: bool, now: Moment) -> Left {
        if !self.shard.load_input(index, &mut self.input) {
            return Left::Nothing;
        }
        let socket = self.socket(index);
        let space = self.input.space();
        let room = space.len();
        assert!(room > 0, "no room for a read");
        match network.read(socket, space) {
            Ok(0) => self.shard.handle_eof(index, now),
            Ok(count) => {
                self.input.filled(count);
                self.shard.handle_input(index, &mut self.input, count, now);
                if count == room || to_the_end {
                    return Left::More;
                }
            }
            Err(Fault::WouldBlock) => self.shard.handle_nothing(index),
            Err(Fault::Broken) => self.shard.handle_reset(index, now),
        }
        Left::Nothing
    }

    // --- Arrivals ---------------------------------------------------------------------------------------------------

    fn accept(&mut self, network: &mut Network, now: Moment) {
        for _ in 0..self.bounds.accepts {
            let Some((socket, listener)) = self.backlog.pop_front() else { break };
            let index = self.shard.handle_accept(listener, now);
            self.insert(index, socket);
            network.register(socket, self.id, index);
        }
    }

    fn receive_moved(&mut self, network: &mut Network, now: Moment) {
        while let Some(letter) = self.letters.pop_front() {
            match letter {
                Letter::Parcel { origin, bytes, socket } => {
                    let is_taken = !(origin.is_some() && self.one_in(self.bounds.home_full));
                    if is_taken {
                        let index = self.shard.unpack(&bytes, now).expect("a parcel of our own");
                        self.insert(index, socket);
                        network.register(socket, self.id, index);
                        self.shard.handle_arrival(index, now);
                    }
                    if let Some((worker, origin)) = origin {
                        self.outbox.push((WorkerId(worker), Letter::Verdict { origin, is_taken }));
                    }
                }
                Letter::Verdict { origin, is_taken: true } => self.shard.handle_moved(origin),
                Letter::Verdict { origin, is_taken: false } => {
                    if self.shard.is_current(origin) {
                        network.register(self.socket(origin.index), self.id, origin.index);
                        self.shard.handle_move_refused(origin, now);
                    }
                }
            }
        }
    }

    fn move_away(&mut self, network: &mut Network, now: Moment) {
        while let Some((id, home)) = self.shard.next_move() {
            assert_ne!(home.0, self.id, "it is at home");
            assert!(self.shard.is_current(id), "{now:?}: somebody moves who is not there");
            let socket = self.socket(id.index);
            network.deregister(socket);
            let mut bytes = Vec::new();
            self.shard.pack(id, &mut bytes);
            self.outbox.push((home, Letter::Parcel { origin: Some((self.id, id)), bytes, socket }));
        }
    }

    // --- Commands ---------------------------------------------------------------------------------------------------

    fn receive_commands(&mut self, now: Moment) {
        for _ in 0..self.bounds.commands {
            let Some(command) = self.commands.pop_front() else { break };
            let shard = &mut self.shard;
            match command {
                Command::Send { request, device, downlink, acknowledge } => {
                    shard.handle_send(request, &device, &downlink, acknowledge, now);
                }
                Command::Disconnect { request, device } => shard.handle_disconnect(request, &device, now),
                Command::Describe { request, device } => {
                    let description = shard.describe(&device, now).map(Box::new);
                    shard.uplink().push(Uplink::Described { request, description });
                }
                Command::TokenVerdict { connection, accepted } => shard.handle_verdict(connection, accepted, now),
                Command::MessageSettled { receipt, accepted } => {
                    if self.sabotage != Sabotage::LoseAnswers || self.random.u32(..50) != 0 {
                        shard.handle_settled(receipt, accepted, now);
                    }
                }
                other => unreachable!("nobody says {other:?} here"),
            }
        }
    }

    // --- Deadlines --------------------------------------------------------------------------------------------------

    fn expire(&mut self, network: &mut Network, now: Moment) {
        let on_the_clock = self.sabotage == Sabotage::ExpireOnTheClock;
        let drained = if on_the_clock { now.tick() } else { self.drained_until };
        let mut suspects = std::mem::take(&mut self.suspects);
        self.more_deadlines = self.shard.handle_deadlines(drained, now, self.bounds.deadlines, &mut suspects);
        for index in suspects.drain(..) {
            let id = self.shard.id(index);
            if !on_the_clock && self.read(network, index, false, now) == Left::More {
                self.reads.push_back((index, false));
            }
            let was_there = self.shard.is_current(id);
            self.shard.settle_suspect(index, now);
            if was_there && !self.shard.is_current(id) {
                self.judge_expired(network, self.socket(index), now);
            }
        }
        self.suspects = suspects;
    }

    /// Decision D5, seen from outside: whoever is expired has nothing unread, and was silent for long enough.
    fn judge_expired(&mut self, network: &Network, socket: SocketId, now: Moment) {
        self.expired += 1;
        assert_eq!(network.unread(socket), 0, "peer {socket} was expired unheard");
        let silence = now.since(network.last_arrival(socket)).as_micros() as u64;
        assert!(silence >= self.patience.micros, "peer {socket} was expired after {silence} µs of silence");
    }

    // --- Writing ----------------------------------------------------------------------------------------------------

    fn flush(&mut self, network: &mut Network, now: Moment) {
        if self.sabotage == Sabotage::FreeEarly {
            self.reap(network);
        }
        let mut writes = std::mem::take(&mut self.writes);
        for &index in &writes {
            self.write_unsent(network, index, now);
        }
        let mut transmit = std::mem::take(&mut self.transmit);
        self.shard.take_transmit(&mut transmit);
        for (index, bytes) in transmit.segments() {
            self.write(network, index, bytes, now);
            if self.sabotage == Sabotage::ShutEarly {
                self.finish_writing(network, index);
            }
        }
        for index in writes.drain(..).chain(transmit.segments().map(|(index, _)| index)) {
            self.finish_writing(network, index);
        }
        transmit.clear();
        self.transmit = transmit;
        self.writes = writes;
        if self.shard.has_probed() {
            self.shard.handle_flushed(now);
        }
    }

    fn write(&mut self, network: &mut Network, index: u32, bytes: &[u8], now: Moment) {
        if !self.shard.unsent(index).is_empty() {
            return self.keep(index, bytes, now);
        }
        let most = self.most();
        match network.write(self.socket(index), bytes, most) {
            Ok(count) if count < bytes.len() => self.keep(index, &bytes[count..], now),
            Ok(_) => {}
            Err(_) => self.shard.handle_reset(index, now),
        }
    }

    fn keep(&mut self, index: u32, bytes: &[u8], now: Moment) {
        let id = self.shard.id(index);
        let was_there = self.shard.is_current(id);
        self.shard.handle_unsent(index, bytes, now);
        if was_there && !self.shard.is_current(id) {
            self.slow.insert(self.socket(index));
        }
    }

    fn write_unsent(&mut self, network: &mut Network, index: u32, now: Moment) {
        if !self.shard.holds(index) || self.shard.unsent(index).is_empty() {
            return;
        }
        let most = self.most();
        match network.write(self.socket(index), self.shard.unsent(index), most) {
            Ok(count) => self.shard.handle_sent(index, count),
            Err(_) => self.shard.handle_reset(index, now),
        }
    }

    /// How much the socket takes at most, this time.
    fn most(&mut self) -> usize {
        if self.one_in(self.bounds.short_writes) { self.random.usize(..40) } else { usize::MAX }
    }

    fn finish_writing(&mut self, network: &mut Network, index: u32) {
        if self.shard.take_shutdown(index) {
            network.shut_down_writing(self.socket(index));
        }
    }

    // --- The end of the turn ----------------------------------------------------------------------------------------

    fn reap(&mut self, network: &mut Network) {
        while let Some(index) = self.shard.next_closed() {
            let socket = self.sockets[index as usize].take().expect("whoever ends has a socket");
            if !self.shard.unsent(index).is_empty() {
                self.slow.insert(socket);
            }
            let is_moved = self.shard.reap(index);
            self.open -= 1;
            if !is_moved {
                network.close(socket);
            }
        }
    }

    fn publish(&mut self) {
        let uplink = self.shard.uplink();
        let count = uplink.len().min(self.bounds.channel.saturating_sub(self.channel.len()));
        self.channel.extend(uplink.drain(..count));
        self.shard.resume_paused();
    }

    fn socket(&self, index: u32) -> SocketId {
        self.sockets[index as usize].expect("whoever is there has a socket")
    }

    fn insert(&mut self, index: u32, socket: SocketId) {
        let slot = index as usize;
        if slot >= self.sockets.len() {
            self.sockets.resize(slot + 1, None);
        }
        assert!(self.sockets[slot].replace(socket).is_none(), "slot {slot} had a socket already");
        self.open += 1;
    }
}

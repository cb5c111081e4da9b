//! The gateway under simulation: the turns of its workers, what is on its way between them, and the clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pulsegate::broker;
use pulsegate::config::Limits;
use pulsegate::connection::{Input, ListenerSettings};
use pulsegate::link::{
    AddressBounds, AddressRules, AddressTable, ConnectionId, Exchange, Home, ListenerId, WorkerCommand, WorkerEvent,
    WorkerId,
};
use pulsegate::metrics::Metric;
use pulsegate::shard::{self, Shard};
use pulsegate::slot::ConnectionSlot;
use pulsegate::time::{Moment, Tick};
use pulsegate::tls::record::RecordLayer;
use pulsegate::turn::{self, Admission, AdmissionLimits, Bounds, HandoffAck, Turn};

use crate::io::{FROM_OUTSIDE, Faults, Patience, Sabotage, SimIo, WorkerMessage};
use crate::network::{Network, SocketId};

/// Turns in a row that move nothing, though something calls for them, at which a loop is found to spin.
const IDLE_MAX: u32 = 100;
/// What an image says of a client certificate, at its end.
const CERTIFICATE_MARK_BYTES: usize = 20;
/// The longest time for which the process is stopped within a turn.
const STOP: Duration = Duration::from_mins(1);

/// The process is stopped while a worker turns.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    worker: usize,
    /// The worker's looks at the clock before it.
    looks: u32,
    pub length: Duration,
}

/// How a gateway is made, and what goes wrong in it.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    pub workers: u16,
    pub bounds: Bounds,
    pub faults: Faults,
    pub sabotage: Sabotage,
    pub patience: Patience,
    /// Bytes that a socket takes before its peer reads.
    pub room: usize,
}

/// What an image of a connection begins with.
#[derive(Clone, Copy)]
pub struct ImageHead<'a> {
    pub listener: ListenerId,
    /// How it was named, by its code.
    pub naming: u8,
    /// Ticks of silence before a probe.
    pub interval: u16,
    pub device: &'a str,
}

pub struct Gateway {
    pub now: Moment,
    pub network: Network,
    pub home: Home,
    build: Build,
    turns: Vec<Turn<SimIo>>,
    slept_since: Vec<Moment>,
    late_until: Vec<Moment>,
    /// Turns in a row in which nothing moved, by worker.
    idle: Vec<u32>,
    /// Workers that have ended.
    over: Vec<bool>,
    /// What is on its way between workers: when it arrives, from whom, for whom.
    mail: BTreeMap<(u64, u64), (WorkerId, WorkerId, WorkerMessage)>,
    serial: u64,
    random: fastrand::Rng,
    /// Nothing more goes wrong.
    pub is_calm: bool,
    /// Sockets that were offered to another worker.
    pub moved: Vec<SocketId>,
}

impl Gateway {
    pub fn new(build: Build, settings: &Arc<[ListenerSettings]>, limits: &Limits, seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut key = [0; 16];
        random.fill(&mut key);
        let home = Home::new(key, build.workers);
        let exchange = Arc::new(Exchange::new(build.workers));
        let addresses = Arc::new(AddressTable::new(key));
        let admission = AdmissionLimits {
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
        let turn = |id| {
            let setup = shard::ShardOptions {
                worker: WorkerId(id),
                home,
                settings: Arc::clone(settings),
                handshakes: limits.handshakes as usize,
                uplink_length: limits.uplink_length,
                seed: random.u64(..),
                is_of_fleet: false,
                exchange: Arc::clone(&exchange),
                sessions: broker::Bounds {
                    inbox_messages: build.faults.inbox,
                    ..broker::Bounds::of(limits, build.workers)
                },
            };
            let frame_bytes = settings.iter().map(|settings| settings.frame_bytes).max().expect("listeners");
            let setup = turn::TurnOptions {
                workers: build.workers,
                shard: Shard::new(setup, Tick(0)),
                input: Input::new(frame_bytes, limits.read_bytes),
                admission: Admission::new(admission.clone(), Arc::clone(&addresses)),
                bounds: build.bounds,
                other_sources: 2 + usize::from(build.workers),
            };
            Turn::new(setup, SimIo::new(id, &build, random.u64(..)))
        };
        let turns: Vec<_> = (0..build.workers).map(turn).collect();
        Self {
            now: Moment::default(),
            network: Network::new(build.workers, build.room),
            home,
            build,
            slept_since: vec![Moment::default(); turns.len()],
            late_until: vec![Moment::default(); turns.len()],
            idle: vec![0; turns.len()],
            over: vec![false; turns.len()],
            turns,
            mail: BTreeMap::new(),
            serial: 0,
            random,
            is_calm: false,
            moved: Vec::new(),
        }
    }

    pub fn workers(&self) -> usize {
        self.turns.len()
    }

    pub fn io(&mut self, worker: usize) -> &mut SimIo {
        self.turns[worker].io()
    }

    /// Sums what is known of each worker.
    pub fn sum(&mut self, of: impl FnMut(&mut Turn<SimIo>) -> u64) -> u64 {
        self.turns.iter_mut().map(of).sum()
    }

    pub fn value(&mut self, metric: Metric) -> u64 {
        self.sum(|turn| turn.shard().counters().value(metric))
    }

    pub fn check_invariants(&mut self) {
        self.turns.iter_mut().for_each(|turn| turn.shard().check_invariants());
    }

    /// What a worker has sent up, taken by the backbone.
    pub fn take_up(&mut self, worker: usize) -> Option<WorkerEvent> {
        self.turns[worker].io().take_up()
    }

    pub fn command(&mut self, worker: usize, command: WorkerCommand) {
        self.turns[worker].io().command(command);
    }

    /// A connection that is accepted by some worker.
    pub fn connect(&mut self, socket: SocketId, listener: ListenerId) {
        let worker = self.random.usize(..self.turns.len());
        self.turns[worker].io().arrive(socket, listener);
    }

    /// A connection whose handshake was somewhere else comes home, as one that is moved does.
    pub fn arrive(&mut self, device: &str, bytes: Vec<u8>, socket: SocketId) {
        let outside = WorkerId(self.build.workers);
        let origin = ConnectionId { slot: ConnectionSlot(0), generation: FROM_OUTSIDE };
        self.post(outside, self.home.of(device), WorkerMessage::Image { origin, bytes, socket });
    }

    /// The image of a named connection that no worker has sent: what it carries is as `Shard::pack` writes it.
    pub fn image(&self, head: ImageHead, plain: &[u8], cipher: &[u8], records: &RecordLayer) -> Vec<u8> {
        // No announced address, no grant, the version, the listener, how it was named, carried by TLS alone.
        let mut bytes = vec![0, 0, 2, head.listener.0, head.naming, 0];
        bytes.extend_from_slice(&head.interval.to_be_bytes());
        bytes.extend_from_slice(&self.now.tick().0.to_be_bytes());
        bytes.push(head.device.len() as u8);
        bytes.extend_from_slice(head.device.as_bytes());
        for part in [plain, cipher, &[], &[]] {
            bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
            bytes.extend_from_slice(part);
        }
        records.encode(&mut bytes);
        // It has no certificate.
        bytes.extend_from_slice(&[0; CERTIFICATE_MARK_BYTES]);
        bytes
    }

    /// Answers for a connection that was never sent.
    pub fn post_stale_acks(&mut self, worker: usize, origin: ConnectionId) {
        for taken in [true, false] {
            let from = WorkerId(worker as u16);
            self.turns[worker].io().post(from, WorkerMessage::Ack(HandoffAck { origin, taken }));
        }
    }

    /// Whether every worker has ended.
    pub fn is_over(&self) -> bool {
        self.over.iter().all(|&over| over)
    }

    /// A worker falls behind for a while.
    pub fn delay_a_worker(&mut self, longest: Duration) {
        let worker = self.random.usize(..self.turns.len());
        let late = self.random.u64(..=longest.as_micros() as u64);
        self.late_until[worker] = self.now.plus(Duration::from_micros(late));
    }

    /// Nothing goes wrong any more.
    pub fn calm_down(&mut self) {
        self.is_calm = true;
        self.late_until.fill(self.now);
    }

    /// Whether the process is stopped in the turns that come. What arrives meanwhile is held by the network until then.
    pub fn draw_stop(&mut self) -> Option<Stop> {
        let many = self.build.faults.stopped;
        (!self.is_calm && many > 0 && self.random.u32(..many) == 0).then(|| Stop {
            worker: self.random.usize(..self.turns.len()),
            looks: self.random.u32(..6),
            length: self.sooner_or_later(STOP),
        })
    }

    /// Every worker turns as often as it would by now, or a few times.
    pub fn turns(&mut self, mut stop: Option<Stop>) {
        while let Some(entry) = self.mail.first_entry()
            && entry.key().0 <= self.now.micros()
        {
            let (from, to, message) = entry.remove();
            self.turns[to.index()].io().post(from, message);
        }
        let first = self.random.usize(..self.turns.len());
        for offset in 0..self.turns.len() {
            let worker = (first + offset) % self.turns.len();
            for _ in 0..4 {
                if self.over[worker] || self.now < self.late_until[worker] || !self.is_awake(worker) {
                    break;
                }
                let stop = stop.take_if(|stop| stop.worker == worker);
                self.turn(worker, stop);
            }
        }
        if let Some(stop) = stop {
            self.stop_between_turns(stop.length);
        }
    }

    fn stop_between_turns(&mut self, length: Duration) {
        self.now = self.now.plus(length);
        self.network.release(self.now);
    }

    /// Whether the worker's poll would come back by now.
    fn is_awake(&mut self, worker: usize) -> bool {
        let turn = &mut self.turns[worker];
        turn.io().now = self.slept_since[worker];
        let timeout = turn.timeout();
        let is_called = timeout.is_zero() || turn.io().has_events(&self.network);
        if !is_called {
            self.idle[worker] = 0;
        }
        is_called || self.now.since(self.slept_since[worker]) >= timeout
    }

    fn turn(&mut self, worker: usize, stop: Option<Stop>) {
        let turn = &mut self.turns[worker];
        let is_due = turn.shard().next_deadline().is_some_and(|deadline| !deadline.is_after(self.now.tick()));
        let io = turn.io();
        std::mem::swap(&mut io.network, &mut self.network);
        (io.now, io.stop, io.has_moved) = (self.now, stop.map(|stop| (stop.looks, stop.length)), is_due);
        self.over[worker] = !turn.turn();
        let io = turn.io();
        let is_yet_to_stop = io.stop.take();
        std::mem::swap(&mut io.network, &mut self.network);
        self.now = io.now;
        if let Some((_, length)) = is_yet_to_stop {
            self.stop_between_turns(length);
        }
        let io = self.turns[worker].io();
        self.slept_since[worker] = self.now;
        self.idle[worker] = if io.has_moved { 0 } else { self.idle[worker] + 1 };
        assert!(self.idle[worker] < IDLE_MAX, "worker {worker} turns and turns and does nothing");
        self.moved.append(&mut io.moved);
        let (outbox, said) = (std::mem::take(&mut io.outbox), std::mem::take(&mut io.said));
        for (to, message) in outbox {
            self.post(WorkerId(worker as u16), to, message);
        }
        for (to, outgoing) in said {
            self.turns[to.index()].io().hear(WorkerId(worker as u16), outgoing);
        }
    }

    fn post(&mut self, from: WorkerId, to: WorkerId, message: WorkerMessage) {
        self.serial += 1;
        let after = self.sooner_or_later(Duration::from_secs(2));
        self.mail.insert((self.now.plus(after).micros(), self.serial), (from, to, message));
    }

    /// Evenly over the orders of magnitude: as likely within a millisecond as within the last half of the time.
    fn sooner_or_later(&mut self, longest: Duration) -> Duration {
        let exponent = self.random.f64() * (longest.as_micros() as f64).ln();
        Duration::from_micros(exponent.exp() as u64)
    }
}

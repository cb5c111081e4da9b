//! The harness: does by hand what the worker's turn does.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::connection::Input;
use crate::connection::fixtures::{Client, Fixtures};
use crate::link::{Exchange, ListenerId, Presence};
use crate::tls::handshake::{ClientTls, Versions};

/// One shard, its clock, and the clients behind its slots.
pub struct ShardHarness {
    pub shard: Shard,
    pub now: Moment,
    pub input: Input,
    pub clients: HashMap<u32, Client>,
    pub tls: ClientTls,
    /// Slots that were shut for writing.
    pub shut: Vec<u32>,
}

impl ShardHarness {
    pub fn new() -> Self {
        Self::of(1).pop().unwrap()
    }

    /// The harnesses of `workers` shards of one gateway.
    pub fn of(workers: u16) -> Vec<Self> {
        let fixtures = Fixtures::new();
        Self::with(
            workers,
            &fixtures,
            vec![fixtures.settings(0, &Fixtures::native()), fixtures.settings(1, &Fixtures::raw())],
        )
    }

    /// The same with these listeners.
    pub fn with(workers: u16, fixtures: &Fixtures, settings: Vec<ListenerSettings>) -> Vec<Self> {
        let settings: Arc<[ListenerSettings]> = settings.into();
        let home = Home::new([3; 16], workers);
        let exchange = Arc::new(Exchange::new(workers));
        let harness = |worker| {
            let setup = Setup {
                worker: WorkerId(worker),
                home,
                settings: Arc::clone(&settings),
                handshakes: 2,
                uplink_length: 8,
                seed: u64::from(worker),
                exchange: Arc::clone(&exchange),
                sessions: broker::Bounds::of(&Fixtures::limits(), workers),
            };
            ShardHarness {
                shard: Shard::new(setup, Tick(0)),
                now: Moment::from_micros(50_000),
                input: Input::new(Fixtures::limits().frame_bytes, Fixtures::limits().read_bytes),
                clients: HashMap::new(),
                tls: fixtures.client(None, Versions::Tls13),
                shut: Vec::new(),
            }
        };
        (0..workers).map(harness).collect()
    }

    /// A client connects; its ClientHello is on the way.
    pub fn accept(&mut self, listener: ListenerId) -> u32 {
        let index = self.shard.handle_accept(listener, self.now);
        self.clients.insert(index, Client::new(&self.tls));
        self.shard.check_invariants();
        index
    }

    /// What the client has said is read, as far as the shard wants it; handshakes begin when there is a place.
    pub fn read(&mut self, index: u32) {
        if self.shard.plan_read(index) == Plan::Leave {
            self.call();
        } else {
            self.read_once(index);
        }
        self.shard.check_invariants();
    }

    /// Connections that wait for their handshakes are called.
    pub fn call(&mut self) {
        while let Some(called) = self.shard.next_waiting() {
            self.read_once(called);
        }
    }

    pub fn read_once(&mut self, index: u32) {
        while self.shard.load_input(index, &mut self.input) {
            let out = &mut self.clients.get_mut(&index).unwrap().out;
            let space = self.input.space();
            let count = out.len().min(space.len());
            space[..count].copy_from_slice(&out[..count]);
            out.drain(..count);
            if count == 0 {
                return self.shard.handle_nothing(index);
            }
            self.input.filled(count);
            self.shard.handle_input(index, &mut self.input, count, self.now);
        }
    }

    /// What the shard wants looked at again.
    pub fn look_again(&mut self) {
        let mut ready = VecDeque::new();
        self.shard.take_ready(&mut ready);
        for index in ready {
            if self.shard.load_input(index, &mut self.input) {
                self.shard.handle_input(index, &mut self.input, 0, self.now);
                self.read_once(index);
            }
            self.shard.check_invariants();
        }
    }

    pub fn flush(&mut self) {
        let mut transmit = Transmit::default();
        self.shard.take_transmit(&mut transmit);
        for (index, bytes) in transmit.segments() {
            assert!(!self.shut.contains(&index), "slot {index} has something to say after its end");
            self.clients.get_mut(&index).unwrap().receive(bytes);
        }
        for (index, _) in transmit.segments() {
            if self.shard.take_shutdown(index) {
                self.shut.push(index);
            }
        }
    }

    pub fn reap(&mut self) -> Vec<u32> {
        let mut reaped = Vec::new();
        while let Some(index) = self.shard.next_closed() {
            self.shard.reap(index);
            self.clients.remove(&index);
            self.shut.retain(|&shut| shut != index);
            reaped.push(index);
            self.shard.check_invariants();
        }
        reaped
    }

    /// A client shakes hands; the turn goes round until nothing moves.
    pub fn shake_hands(&mut self, listener: ListenerId) -> u32 {
        let index = self.accept(listener);
        for _ in 0..3 {
            self.read(index);
            self.flush();
        }
        assert!(self.clients[&index].records.is_some(), "the handshake has not come to its end");
        index
    }

    /// A native device.
    pub fn connect(&mut self, id: &str) -> u32 {
        let index = self.shake_hands(NATIVE);
        self.client(index).say_hello(id);
        self.read(index);
        self.flush();
        index
    }

    pub fn client(&mut self, index: u32) -> &mut Client {
        self.clients.get_mut(&index).unwrap()
    }

    pub fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
    }

    /// Runs deadlines up to now; suspects are read once more and settled.
    pub fn expire(&mut self) {
        let mut suspects = Vec::new();
        while self.shard.handle_deadlines(self.now.tick(), self.now, 16, &mut suspects) {}
        for index in suspects {
            self.read_once(index);
            self.shard.recheck_suspect(index, self.now);
        }
        self.shard.check_invariants();
        self.flush();
    }

    pub fn take_uplink(&mut self) -> Vec<WorkerEvent> {
        std::mem::take(self.shard.uplink())
    }

    /// Presence events since the last time, in short: `+device generation` and `-device generation reason`.
    pub fn presence(&mut self) -> Vec<String> {
        let short = |sign: &str, presence: &Presence| format!("{sign}{} {}", presence.device, presence.generation);
        self.take_uplink()
            .iter()
            .filter_map(|event| match event {
                WorkerEvent::Connected(presence) => Some(short("+", presence)),
                WorkerEvent::Disconnected(presence, reason) => Some(format!("{} {reason}", short("-", presence))),
                _ => None,
            })
            .collect()
    }

    pub fn value(&mut self, metric: Metric) -> u64 {
        self.shard.counters().value(metric)
    }

    pub fn closed(&mut self, reason: CloseReason) -> u64 {
        self.shard.counters().closed()[reason as usize]
    }
}

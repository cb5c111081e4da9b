//! A shard in its turns, over memory, and the clients behind its slots.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::connection::Input;
use crate::connection::fixtures::{Client, Fixtures};
use crate::link::{ConnectionId, Exchange, ListenerId, Presence};
use crate::tls::handshake::{ClientTls, Versions};
use crate::turn::{Bounds, HandoffAck, Turn};
use memory_io::{Arrivals, MemoryIo, PeerEnd, memory_turn};

/// One worker's turns, and the clients behind its slots.
pub struct ShardHarness {
    turn: Turn<MemoryIo>,
    pub clients: HashMap<ConnectionSlot, Client>,
    pub tls: ClientTls,
}

impl ShardHarness {
    pub fn new() -> Self {
        Self::of(1).pop().unwrap()
    }

    /// Those of `workers` shards of one gateway.
    pub fn of(workers: u16) -> Vec<Self> {
        let fixtures = Fixtures::new();
        let settings = vec![fixtures.settings(0, &Fixtures::native()), fixtures.settings(1, &Fixtures::raw())];
        Self::with_settings(workers, &fixtures, settings)
    }

    /// The same with these listeners.
    pub fn with_settings(workers: u16, fixtures: &Fixtures, settings: Vec<ListenerSettings>) -> Vec<Self> {
        let settings: Arc<[ListenerSettings]> = settings.into();
        let home = Home::new([3; 16], workers);
        let exchange = Arc::new(Exchange::new(workers));
        let harness = |worker| {
            let setup = ShardOptions {
                worker: WorkerId(worker),
                home,
                settings: Arc::clone(&settings),
                handshakes: 2,
                uplink_length: 8,
                seed: u64::from(worker),
                is_of_fleet: false,
                exchange: Arc::clone(&exchange),
                sessions: broker::Bounds::of(&Fixtures::limits(), workers),
            };
            let (bounds, now) = (Bounds::default(), Moment::from_micros(50_000));
            let mut io = MemoryIo::new(workers, settings.len(), bounds.events, now);
            io.checks_phases = true;
            let input = Input::new(Fixtures::limits().frame_bytes, Fixtures::limits().read_bytes);
            let turn = memory_turn(io, Shard::new(setup, Tick(0)), input, bounds);
            ShardHarness { turn, clients: HashMap::new(), tls: fixtures.client(None, Versions::Tls13) }
        };
        (0..workers).map(harness).collect()
    }

    pub fn shard(&mut self) -> &mut Shard {
        self.turn.shard()
    }

    pub fn io(&mut self) -> &mut MemoryIo {
        self.turn.io()
    }

    pub fn now(&mut self) -> Moment {
        self.turn.io().now
    }

    /// Does something with the shard between two turns.
    pub fn with<R>(&mut self, act: impl FnOnce(&mut Shard, Moment) -> R) -> R {
        let now = self.now();
        let result = act(self.turn.shard(), now);
        self.turn.shard().check_invariants();
        result
    }

    /// One turn. What it writes arrives; gives back the slots that it has freed, whose clients stay until others have them.
    pub fn turn(&mut self) -> Vec<ConnectionSlot> {
        self.turn.turn();
        let io = self.turn.io();
        for (slot, bytes) in io.written() {
            if let Some(client) = self.clients.get_mut(&slot) {
                client.receive(bytes);
            }
        }
        io.clear_written();
        std::mem::take(&mut io.closed)
    }

    /// One turn, and all the bytes that it writes.
    pub fn turn_and_tell(&mut self) -> Vec<u8> {
        self.turn.turn();
        let io = self.turn.io();
        let bytes = io.written().flat_map(|(_, bytes)| bytes.to_vec()).collect();
        io.clear_written();
        bytes
    }

    /// Somebody connects; its ClientHello is not sent yet.
    pub fn accept(&mut self, listener: ListenerId) -> ConnectionSlot {
        self.accept_from(listener, [10, 0, 0, 1].into())
    }

    pub fn accept_from(&mut self, listener: ListenerId, from: IpAddr) -> ConnectionSlot {
        self.io().opened.clear();
        self.io().connect(listener, from);
        self.turn();
        let [slot] = self.io().opened[..] else { panic!("one is accepted") };
        self.clients.insert(slot, Client::new(&self.tls));
        slot
    }

    /// What a client has said is on its way.
    pub fn send(&mut self, slot: ConnectionSlot) {
        let out = std::mem::take(&mut self.client(slot).out);
        self.io().receive(slot, &out);
    }

    /// The same, and a turn.
    pub fn read(&mut self, slot: ConnectionSlot) -> Vec<ConnectionSlot> {
        self.send(slot);
        self.turn()
    }

    /// A peer's side of the stream ends, and a turn.
    pub fn end(&mut self, slot: ConnectionSlot, end: PeerEnd) -> Vec<ConnectionSlot> {
        self.io().end(slot, end);
        self.turn()
    }

    /// A client shakes hands.
    pub fn shake_hands(&mut self, listener: ListenerId) -> ConnectionSlot {
        let slot = self.accept(listener);
        for _ in 0..3 {
            self.read(slot);
        }
        assert!(self.clients[&slot].records.is_some(), "the handshake has not come to its end");
        slot
    }

    /// A native device.
    pub fn connect(&mut self, id: &str) -> ConnectionSlot {
        let slot = self.shake_hands(NATIVE);
        self.client(slot).say_hello(id);
        self.read(slot);
        slot
    }

    pub fn client(&mut self, slot: ConnectionSlot) -> &mut Client {
        self.clients.get_mut(&slot).unwrap()
    }

    pub fn pass(&mut self, time: Duration) {
        let io = self.turn.io();
        io.now = io.now.plus(time);
    }

    /// The one connection that has left for another worker: its handle, its home and its image.
    pub fn take_sent(&mut self) -> (ConnectionId, WorkerId, Vec<u8>) {
        let [(home, id, image)] = &mut self.io().sent[..] else { panic!("one connection leaves") };
        let sent = (*id, *home, std::mem::take(image));
        self.io().sent.clear();
        sent
    }

    /// A connection comes home, and with it its client; says in which slot it is.
    pub fn arrive(&mut self, origin: ConnectionId, image: &[u8], client: Client) -> ConnectionSlot {
        let mut arrivals = Arrivals::default();
        arrivals.push(origin, |out| out.extend_from_slice(image));
        self.io().opened.clear();
        self.io().arrive(WorkerId(0), arrivals);
        let slots = self.turn.shard().slots();
        let free = (0..=slots).map(ConnectionSlot::at).find(|&slot| !self.turn.shard().holds(slot)).unwrap();
        self.clients.insert(free, client);
        self.turn();
        let acks = std::mem::take(&mut self.io().acks);
        assert_eq!((&self.io().opened[..], &acks[..]), (&[free][..], &[HandoffAck { origin, taken: true }][..]));
        free
    }

    /// Its home has taken a connection that was sent from here, or has not; gives back the slots that become free.
    pub fn acknowledge(&mut self, origin: ConnectionId, taken: bool) -> Vec<ConnectionSlot> {
        let mut arrivals = Arrivals::default();
        arrivals.push_ack(HandoffAck { origin, taken });
        self.io().arrive(WorkerId(1), arrivals);
        self.turn()
    }

    /// What went up since the last time.
    pub fn take_uplink(&mut self) -> Vec<WorkerEvent> {
        std::mem::take(&mut self.io().up)
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
        self.shard().counters().value(metric)
    }

    pub fn closed(&mut self, reason: CloseReason) -> u64 {
        self.shard().counters().closed()[reason as usize]
    }
}

//! The turns of one worker, and whatever can happen to it: connections that come, go, move, speak nonsense within TLS and
//! without, sockets that take little, commands, messages of other shards, in an order that the input chooses. Its
//! invariants hold behind each phase of each turn.
//!
//! Input: steps of `what, which, length, bytes …`. Behind a step the worker turns, unless the highest bit of `what` says
//! that more is to happen first.
#![no_main]

// What the benches share with this target names the package.
extern crate pulsegate_fuzz as pulsegate;

#[path = "../../tests/turn/memory_io.rs"]
#[allow(dead_code, reason = "the benches use more of it")]
mod memory_io;

use pulsegate::slot::{ConnectionSlot, SessionSlot};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use memory_io::{Arrivals, MemoryIo, PeerEnd, memory_turn};
use pulsegate_fuzz::config::{self, Authenticator, Heartbeat, Identity, IdentityFrom, Limits, Listener, Mqtt, Protocol, Raw};
use pulsegate_fuzz::connection::{Input, ListenerSettings};
use pulsegate_fuzz::link::{
    AuthAnswer, Choice, CloseReason, ConnectionId, Credit, DeviceFilter, Downlink, Exchange, Home, ListenerId, Passed, Publication, QoS, Reach, Receipt, Recipient, SessionId,
    ShardMessage, WorkerCommand, WorkerEvent, WorkerId,
};
use pulsegate_fuzz::broker;
use pulsegate_fuzz::shard::{Shard, ShardOptions};
use pulsegate_fuzz::time::{Moment, Tick};
use pulsegate_fuzz::tls::certs::development;
use pulsegate_fuzz::tls::handshake::{ClientAuth, ServerOptions, ServerTls};
use pulsegate_fuzz::tls::record::{DirectionSecrets, RecordLayer, Role, Suite};
use pulsegate_fuzz::turn::{Bounds, HandoffAck, Turn};

fn limits() -> Limits {
    Limits {
        frame_bytes: 300,
        read_bytes: 600,
        outbox_bytes: 2_000,
        packet_bytes: 300,
        session_inflight: 3,
        session_messages: 4,
        session_bytes: 100,
        session_subscriptions: 3,
        topic_levels: 4,
        retained_messages: 2,
        ..Limits::default()
    }
}

fn settings() -> Arc<[ListenerSettings]> {
    static RULES: OnceLock<Arc<[ListenerSettings]>> = OnceLock::new();
    Arc::clone(RULES.get_or_init(|| {
        let directory = std::env::temp_dir().join(format!("pulsegate-fuzz-{}", std::process::id()));
        let certs = development::ensure(&directory, &[], SystemTime::now()).expect("certificates");
        let pair = [(&*certs.server.cert, &*certs.server.key)];
        let options = ServerOptions { certificates: &pair, client_auth: ClientAuth::Off, alpn: &[], ..ServerOptions::default() };
        let (tls, _) = ServerTls::load(&options).expect("a server's TLS");
        std::fs::remove_dir_all(&directory).expect("what was made just now");
        let raw = Raw { heartbeat: b"hb".to_vec(), reply: b"ok".to_vec(), probe: b"?".to_vec() };
        let listener = |protocol, tokens: bool| Listener {
            name: "fuzz".into(),
            listen: ([127, 0, 0, 1], 0).into(),
            shares: None,
            alpn: None,
            protocol,
            transport: config::Transport::Tls,
            proxy_protocol: Vec::new(),
            tls: config::Tls::default(),
            heartbeat: Heartbeat { interval: Duration::from_secs(5), timeout: Duration::from_secs(1), retries: 1, ..Heartbeat::default() },
            identity: Identity { from: IdentityFrom::Hello, authenticators: if tokens { vec![Authenticator::secrets("tokens".into(), "identity.token_file")] } else { Vec::new() } },
            rates: config::Rates::default(),
        };
        let settings =
            |id, protocol, tokens| ListenerSettings::new(ListenerId(id), &listener(protocol, tokens), &limits(), tls.clone());
        let open = || vec!["#".to_owned()];
        let mqtt = Mqtt { publish: open(), subscribe: open(), ..Mqtt::default() };
        [
            settings(0, Protocol::Native, false),
            settings(1, Protocol::Raw(raw), false),
            settings(2, Protocol::Native, true),
            settings(3, Protocol::Mqtt(mqtt), false),
        ]
        .into()
    }))
}

/// A record layer and its peer's.
fn layers() -> (RecordLayer, RecordLayer) {
    let suite = Suite::Tls13Aes128GcmSha256;
    let secrets = |byte| DirectionSecrets {
        secret: &[1; 32],
        key: &[3; 16],
        iv: if byte == 0 { &[5; 12] } else { &[6; 12] },
        sequence: 0,
    };
    (
        RecordLayer::new(Role::Server, suite, &secrets(0), &secrets(1)),
        RecordLayer::new(Role::Client, suite, &secrets(1), &secrets(0)),
    )
}

/// The other worker: what is not at home here goes there, and what it says is made up by the input.
const OTHER: WorkerId = WorkerId(1);
/// The handle at the other worker of a connection that comes from there.
const ORIGIN: ConnectionId = ConnectionId { slot: ConnectionSlot(7), generation: 7 };
const DEVICES: [&str; 4] = ["a", "b", "c", "d"];

/// A worker and the clients whose keys are known, by slot.
struct World {
    turn: Turn<MemoryIo>,
    exchange: Arc<Exchange>,
    peers: HashMap<ConnectionSlot, RecordLayer>,
    /// Handles of connections that were there once.
    seen: Vec<ConnectionId>,
    /// Messages that the backbone has not answered for.
    receipts: Vec<Receipt>,
    is_over: bool,
}

impl World {
    fn new() -> Self {
        let exchange = Arc::new(Exchange::new(2));
        let settings = settings();
        let listeners = settings.len();
        let setup = ShardOptions {
            is_of_fleet: false,
            worker: WorkerId(0),
            home: Home::new([0; 16], 2),
            settings,
            handshakes: 2,
            uplink_length: 6,
            seed: 1,
            exchange: Arc::clone(&exchange),
            sessions: broker::Bounds::of(&limits(), 2),
        };
        let input = Input::new(limits().frame_bytes, limits().read_bytes);
        // Small ones: whatever a turn leaves over is met.
        let bounds = Bounds {
            accepts: 2,
            handshakes: 1,
            handoffs: 1,
            commands: 3,
            deadlines: 3,
            listed_slots: 2,
            broadcast_slots: 2,
            goodbyes: 1,
            goodbye_slots: 2,
            ..Bounds::default()
        };
        let mut io = MemoryIo::new(2, listeners, 4, Moment::from_micros(0));
        io.checks_phases = true;
        let turn = memory_turn(io, Shard::new(setup, Tick(0)), input, bounds);
        Self { turn, exchange, peers: HashMap::new(), seen: Vec::new(), receipts: Vec::new(), is_over: false }
    }

    fn io(&mut self) -> &mut MemoryIo {
        self.turn.io()
    }

    /// The slot that the input means, if there is somebody.
    fn slot(&mut self, which: u8) -> Option<ConnectionSlot> {
        let shard = self.turn.shard();
        let slot = ConnectionSlot(u32::from(which) % (shard.slots() as u32).max(1));
        shard.holds(slot).then_some(slot)
    }

    fn step(&mut self, what: u8, which: u8, bytes: &[u8]) {
        match what & 0x1f {
            0 => self.io().connect(ListenerId(which % 4), [10, 0, 0, which].into()),
            1..4 => self.with_slot(which, |world, slot| world.io().receive(slot, bytes)),
            4..8 => self.say(which, bytes, what & 0x60 == 0x20),
            8 => self.with_slot(which, |world, slot| world.io().end(slot, PeerEnd::InOrder)),
            9 => self.with_slot(which, |world, slot| world.io().end(slot, PeerEnd::ByReset)),
            10 => self.arrive(which, &[]),
            11 => self.arrive(which, bytes),
            12 => self.arrive_as(|image| image.extend_from_slice(bytes)),
            13 => self.answer_moves(which),
            14 | 15 => {
                let io = self.io();
                io.now = io.now.plus(Duration::from_millis(u64::from(which) * 100));
            }
            // Some sockets take all, some a little, some nothing.
            16 | 17 => {
                let room = [0, bytes.len(), usize::MAX][usize::from(which % 3)];
                self.with_slot(which / 3, |world, slot| world.io().set_room(slot, room));
            }
            18..20 => self.command(which, bytes),
            20 => self.authenticate(which),
            21 => self.io().up_room = usize::from(which),
            22 => self.settle(which),
            23..26 => self.pass(what, which, bytes),
            26 => self.say_as_shard(which),
            27 | 28 => self.answer_told(which),
            29 => {
                let publication = Box::new(self.publication(which, bytes));
                self.io().command(WorkerCommand::Publish { request: 9, publication });
            }
            _ => {}
        }
        if what & 0x80 == 0 {
            self.turn();
        }
    }

    fn turn(&mut self) {
        if self.is_over {
            return;
        }
        self.is_over = !self.turn.turn();
        let io = self.turn.io();
        io.clear_written();
        for slot in io.closed.drain(..) {
            self.peers.remove(&slot);
        }
        io.acks.clear();
        for event in io.up.drain(..) {
            match event {
                WorkerEvent::Message(message) => self.receipts.extend(message.receipt),
                WorkerEvent::Connected(presence) => self.seen.push(presence.facts.connection),
                WorkerEvent::Authenticate { connection, .. } => self.seen.push(connection),
                _ => {}
            }
        }
    }

    fn with_slot(&mut self, which: u8, act: impl FnOnce(&mut Self, ConnectionSlot)) {
        if let Some(slot) = self.slot(which) {
            act(self, slot);
        }
    }

    /// A peer whose keys are known says something within TLS.
    fn say(&mut self, which: u8, bytes: &[u8], updates_keys: bool) {
        let Some(slot) = self.slot(which) else { return };
        let Some(peer) = self.peers.get_mut(&slot) else { return };
        let mut wire = Vec::new();
        if updates_keys {
            peer.burst().update_keys(true, &mut wire);
        }
        peer.burst().seal(bytes, &mut wire).expect("young keys");
        self.io().receive(slot, &wire);
    }

    // --- Moves ------------------------------------------------------------------------------------------------------

    /// A named connection comes home, with bytes that it had half-received and bytes that it had still to say.
    fn arrive(&mut self, which: u8, bytes: &[u8]) {
        let (server, client) = layers();
        self.io().opened.clear();
        self.arrive_as(|image| {
            // No address; version 2, listener, named by HELLO, TLS alone, interval, connected at the beginning.
            image.extend_from_slice(&[0, 0, 2, which % 4, 1, 0, 0, 50, 0, 0, 0, 0]);
            image.extend_from_slice(&[1, b'a' + which / 4 % 4]);
            for part in [&bytes[..bytes.len() / 2], &[], &bytes[bytes.len() / 2..], &[]] {
                image.extend_from_slice(&(part.len() as u32).to_be_bytes());
                image.extend_from_slice(part);
            }
            server.encode(image);
            // No client certificate.
            image.extend_from_slice(&[0; 20]);
        });
        self.turn();
        if let [slot] = self.io().opened[..] {
            self.peers.insert(slot, client);
        }
    }

    fn arrive_as(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut arrivals = Arrivals::default();
        arrivals.push(ORIGIN, write);
        self.io().arrive(OTHER, arrivals);
    }

    /// The other worker takes, or refuses, what it was sent; and says so again of what it was sent long ago.
    fn answer_moves(&mut self, which: u8) {
        let sent = std::mem::take(&mut self.io().sent);
        let mut arrivals = Arrivals::default();
        for (home, origin, _) in sent {
            assert_eq!(home, OTHER);
            arrivals.push_ack(HandoffAck { origin, taken: which & 1 == 0 });
            self.seen.push(origin);
        }
        let stale = self.seen.get(usize::from(which / 2)).copied();
        if let Some(origin) = stale.filter(|&id| !self.turn.shard().is_current(id)) {
            arrivals.push_ack(HandoffAck { origin, taken: which & 1 != 0 });
        }
        self.io().arrive(OTHER, arrivals);
    }

    // --- What other threads say -------------------------------------------------------------------------------------

    fn command(&mut self, which: u8, bytes: &[u8]) {
        let device = || DEVICES[usize::from(which % 4)].into();
        let downlink = Downlink { topic: "t".into(), payload: bytes.to_vec().into() };
        let filter = DeviceFilter { after: "".into(), prefix: "".into(), limit: usize::from(which / 64) };
        self.io().command(match which / 4 % 8 {
            0 => WorkerCommand::Send { request: 1, device: device(), downlink, acknowledge: true },
            1 => WorkerCommand::Send { request: 2, device: device(), downlink, acknowledge: false },
            2 => WorkerCommand::Disconnect { request: 3, device: device() },
            3 => WorkerCommand::Describe { request: 4, device: device() },
            4 => WorkerCommand::List { request: 5, filter },
            5 => WorkerCommand::Broadcast { broadcast: 6, prefix: "".into(), downlink, per_second: 1_000 },
            6 => WorkerCommand::CancelBroadcast { broadcast: 6 },
            // The last that happens.
            _ if which > 247 => WorkerCommand::Shutdown { window: Duration::from_secs(1) },
            _ => return,
        });
    }

    /// What was found about somebody who waits for it, or does not.
    fn authenticate(&mut self, which: u8) {
        let Some(&connection) = self.seen.get(usize::from(which % 128)) else { return };
        let answer = if which > 127 { AuthAnswer::plain() } else { AuthAnswer::Rejected(CloseReason::TokenRejected, "".into()) };
        self.io().command(WorkerCommand::Authenticated { connection, answer });
    }

    /// The backbone answers for a message, or for one that nobody waits for.
    fn settle(&mut self, which: u8) {
        let stale = self.seen.get(usize::from(which)).map(|&id| Receipt::Connection(id, 7));
        if let Some(receipt) = self.receipts.pop().or(stale) {
            self.io().command(WorkerCommand::MessageSettled { receipt, accepted: which & 1 == 0 });
        }
    }

    // --- What happens to sessions without their devices -------------------------------------------------------------

    fn publication(&mut self, which: u8, bytes: &[u8]) -> Publication {
        let now = self.io().now;
        Publication {
            topic: ["t", "t/u", "v"][usize::from(which % 3)].into(),
            payload: bytes.to_vec().into(),
            qos: [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(which % 3)],
            retain: which & 8 != 0,
            properties: Box::default(),
            expires: (which & 16 != 0).then(|| now.plus(Duration::from_secs(1))),
            // As the other shard was given it: what shards tell each other is right, and what is not panics.
            stamp: self.exchange.next_stamp(OTHER, 0),
            shard: Some(OTHER),
            origin: 0,
            owner: u32::from(which),
            publisher: None,
            reach: if which & 32 == 0 { Reach::Here } else { Reach::Elsewhere },
            groups: None,
        }
    }

    fn group(which: u8) -> Arc<str> {
        ["$share/g/t", "$share/h/#", "nothing"][usize::from(which % 3)].into()
    }

    fn member(which: u8) -> SessionId {
        SessionId { worker: WorkerId(u16::from(which & 1)), slot: SessionSlot(u32::from(which >> 1 & 3)), generation: u32::from(which >> 3) }
    }

    /// The other shard passes a message on.
    fn pass(&mut self, what: u8, which: u8, bytes: &[u8]) {
        let (options, identifier) = (which % 3, u32::from(which));
        let (group, member) = (Self::group(which), Self::member(which));
        let choice = || Box::new(Choice { group: Arc::clone(&group), member, options, identifier, request: 0, tried: 0 });
        let recipient = match what & 0x60 {
            0x40 => Recipient::Member(choice()),
            0x60 => Recipient::Group(Self::group(which)),
            _ => Recipient::Subscribers,
        };
        let publication = Arc::new(self.publication(which, bytes));
        self.io().pass(OTHER, vec![Passed { publication, token: identifier, recipient }]);
    }

    /// The other shard's sessions join and leave groups. Those of this shard do so by themselves.
    fn say_as_shard(&mut self, which: u8) {
        let (group, member) = (Self::group(which), SessionId { worker: OTHER, ..Self::member(which) });
        let (options, identifier) = (which % 3, u32::from(which));
        let message = match which / 64 {
            0 | 1 => ShardMessage::Join { group, member, options, identifier, room: u16::from(which & 32), waits: 1 },
            2 => ShardMessage::Leave { group, member },
            _ => ShardMessage::Joined { member: Self::member(which), waits: identifier },
        };
        self.io().command(WorkerCommand::Peers { from: OTHER, answers: vec![message] });
    }

    /// The other shard takes what this one has passed on, or sends it back, and returns the credit. What other shards
    /// answer is asked for by number: what nobody asked for is a fault of ours, and panics.
    fn answer_told(&mut self, which: u8) {
        for (_, outgoing) in std::mem::take(&mut self.io().told) {
            for passed in outgoing.passed {
                let mut credit = [Credit::default(); 2];
                credit[passed.class().index()] = Credit { messages: 1, bytes: passed.publication.bytes() };
                let Passed { publication, token, recipient } = passed;
                let answer = match recipient {
                    Recipient::Member(choice) if which & 1 == 0 => ShardMessage::Returned { token, choice, publication },
                    _ => ShardMessage::Taken { token, is_refused: which & 2 == 0 },
                };
                let is_asked = token != 0 || matches!(answer, ShardMessage::Returned { .. });
                let answers = is_asked.then_some(answer).into_iter().chain([ShardMessage::Credit(credit)]).collect();
                self.io().command(WorkerCommand::Peers { from: OTHER, answers });
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = input;
    let mut world = World::new();
    while let Some((&[what, which, length], rest)) = input.split_first_chunk() {
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(length) * 2));
        world.step(what, which, bytes);
        input = rest;
    }
    world.turn();
});

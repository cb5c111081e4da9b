//! Every order in which a device's words can arrive while its connection moves home, and while it is read no further for want of room
//! and read on. The clock stands still: a byte that nobody reads is not found by a probe or a deadline later, so a lost edge is seen.
//!
//! A native HELLO is looked at by whoever accepts and is done with at home; a CONNECT is read twice, the second time at home.

use std::collections::VecDeque;
use std::sync::Arc;

use pulsegate::broker;
use pulsegate::codec::mqtt::{self, Connect, Packet, Properties, Publish, QoS, Reason, Version};
use pulsegate::config::{self, Heartbeat, Identity, IdentityFrom, Limits, Listener, Mqtt, Protocol};
use pulsegate::connection::{Input, ListenerSettings};
use pulsegate::link::{AddressTable, Exchange, Home, ListenerId, WorkerCommand, WorkerEvent, WorkerId};
use pulsegate::shard::{self, Shard};
use pulsegate::time::{Moment, Tick};
use pulsegate::turn::{self, Admission, AdmissionLimits, Bounds, Turn};

use crate::certificates::Certificates;
use crate::gateway::Build;
use crate::io::{Faults, Patience, Sabotage, SimIo, WorkerMessage};
use crate::network::{Network, SocketId};
use crate::peer::{Peer, Speaks};
use crate::world;

/// Phases that a move and all its turns take, and some more.
const POINTS: u32 = 80;

/// When the parts of what a device says arrive, counted in phases of turns, and how slow the way between workers is.
#[derive(Clone, Copy, Debug)]
struct Order {
    speaks: Speech,
    /// HELLO or CONNECT is cut behind so many of its bytes.
    cut: usize,
    /// When the rest of it arrives, and when the messages behind it do.
    rest_at: u32,
    messages_at: [u32; 2],
    room: Room,
    /// Rounds that a message between workers takes.
    way: u32,
    first: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speech {
    Native,
    Mqtt,
}

/// How much goes up before it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// All of it.
    Enough,
    /// One event in the worker and one on its way, of which one is taken every so many rounds: whoever says more is read no further
    /// until then.
    One(u32),
}

struct Stage {
    speaks: Speech,
    room: Room,
    /// Of MQTT: what it has heard and not understood, whether it is in, and how many of its messages were acknowledged.
    heard: Vec<u8>,
    is_in: bool,
    acknowledged: u32,
    /// Messages that have come up.
    arrived: usize,
    turns: Vec<Turn<SimIo>>,
    network: Network,
    peer: Peer,
    socket: SocketId,
    mail: VecDeque<(u32, WorkerId, WorkerId, WorkerMessage)>,
    first: usize,
    way: u32,
    point: u32,
    script: VecDeque<(u32, SocketId, Vec<u8>)>,
}

impl Stage {
    fn new(order: &Order, certificates: &Certificates, settings: &Arc<[ListenerSettings]>, sabotage: Sabotage) -> Self {
        let room = if order.room == Room::Enough { 1_000 } else { 1 };
        let limits = world::limits(room);
        let faults = Faults {
            channel: room,
            inbox: 1_000,
            short_writes: 0,
            home_full: 0,
            channel_full: 0,
            interrupted: 0,
            stopped: 0,
            check_phases: false,
        };
        let build = Build {
            workers: 2,
            bounds: Bounds::default(),
            faults,
            sabotage,
            patience: Patience { micros: 0 },
            room: 1 << 20,
        };
        let shared = (Arc::new(Exchange::new(2)), Arc::new(AddressTable::new([0; 16])));
        let turns = (0..2).map(|id| turn(id, &build, &limits, settings, &shared)).collect();
        let mut network = Network::new(2, build.room);
        let socket = network.connect(Moment::default());
        let mut peer = Peer::connecting(0, &certificates.client);
        if order.speaks == Speech::Mqtt {
            peer.speaks = Speaks::Bytes;
        }
        Self {
            speaks: order.speaks,
            room: order.room,
            heard: Vec::new(),
            is_in: false,
            acknowledged: 0,
            arrived: 0,
            turns,
            network,
            peer,
            socket,
            mail: VecDeque::new(),
            first: 0,
            way: 0,
            point: 0,
            script: VecDeque::new(),
        }
    }

    /// Turns until nobody has anything to do.
    fn drive(&mut self) {
        for round in 1..2_000 {
            let mut is_quiet = self.mail.is_empty();
            for offset in 0..2 {
                let worker = (self.first + offset) % 2;
                let turn = &mut self.turns[worker];
                if turn.timeout().is_zero() || turn.io().has_events(&self.network) {
                    is_quiet = false;
                    self.turn(worker);
                }
            }
            for _ in 0..self.mail.len() {
                let Some((rounds, from, to, message)) = self.mail.pop_front() else { break };
                match rounds.checked_sub(1) {
                    Some(rounds) => self.mail.push_back((rounds, from, to, message)),
                    None => self.turns[to.index()].io().post(from, message),
                }
            }
            self.hear();
            let is_taken = match self.room {
                Room::Enough => is_quiet,
                Room::One(rounds) => is_quiet || round % rounds == 0,
            };
            if is_taken && self.backbone() {
                continue;
            }
            if is_quiet {
                // What is said later than anything happens is said now.
                let Some((_, socket, bytes)) = self.script.pop_front() else { return };
                self.network.send(socket, &bytes, Moment::default());
            }
        }
        panic!("the workers do not come to rest");
    }

    fn turn(&mut self, worker: usize) {
        let io = self.turns[worker].io();
        std::mem::swap(&mut io.network, &mut self.network);
        std::mem::swap(&mut io.script, &mut self.script);
        io.point = self.point;
        self.turns[worker].turn();
        let io = self.turns[worker].io();
        std::mem::swap(&mut io.network, &mut self.network);
        std::mem::swap(&mut io.script, &mut self.script);
        self.point = io.point;
        for (to, message) in std::mem::take(&mut io.outbox) {
            self.mail.push_back((self.way, WorkerId(worker as u16), to, message));
        }
    }

    fn hear(&mut self) {
        self.network.take_dirty();
        let (bytes, _) = self.network.take(self.socket);
        self.peer.hear(&bytes, Moment::default(), &mut Vec::new());
        if self.speaks == Speech::Native {
            self.is_in = self.peer.welcomed.is_some();
            self.acknowledged = self.peer.sure_acknowledged;
            return;
        }
        self.heard.extend(self.peer.take_plain());
        while let Some((packet, length)) =
            mqtt::decode(&self.heard, Some(Version::V311), 1 << 16).expect("the gateway speaks MQTT")
        {
            match packet {
                Packet::Connack(connack) => {
                    assert!(connack.reason == Reason::SUCCESS && !self.is_in, "{connack:?}");
                    self.is_in = true;
                }
                Packet::Puback(ack) => {
                    self.acknowledged += 1;
                    assert_eq!(u32::from(ack.packet_id), self.acknowledged, "in order");
                }
                other => panic!("nobody asked for {other:?}"),
            }
            self.heard.drain(..length);
        }
    }

    /// HELLO or CONNECT, sealed.
    fn introduction(&mut self, id: &str) -> Vec<u8> {
        match self.speaks {
            Speech::Native => self.peer.say_hello(id, 0),
            Speech::Mqtt => self.say(&Packet::Connect(Connect {
                version: Version::V311,
                client_id: id,
                clean_start: true,
                keep_alive: 60,
                will: None,
                username: None,
                password: None,
                properties: Properties::EMPTY,
            })),
        }
        self.said()
    }

    /// A message that is to be acknowledged, sealed.
    fn message(&mut self, number: u16) -> Vec<u8> {
        match self.speaks {
            Speech::Native => self.peer.say_sure(0),
            Speech::Mqtt => self.say(&Packet::Publish(Publish {
                dup: false,
                qos: QoS::AtLeastOnce,
                retain: false,
                topic: "t",
                packet_id: number,
                properties: Properties::EMPTY,
                payload: b"sure",
            })),
        }
        self.said()
    }

    fn say(&mut self, packet: &Packet) {
        let mut bytes = Vec::new();
        packet.encode(Version::V311, &mut bytes);
        self.peer.say_bytes(&bytes);
    }

    /// What the peer has said since, to be sent.
    fn said(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.peer.out)
    }

    /// Takes what the workers have sent up, or one of it; messages are accepted. `false`: there was nothing.
    fn backbone(&mut self) -> bool {
        let most = if self.room == Room::Enough { usize::MAX } else { 1 };
        let mut taken = 0;
        for turn in &mut self.turns {
            while taken < most
                && let Some(event) = turn.io().take_up()
            {
                taken += 1;
                if let WorkerEvent::Message(message) = event {
                    self.arrived += 1;
                    let receipt = message.receipt.expect("it wants to hear");
                    self.peer.sure_held += 1;
                    turn.io().command(WorkerCommand::MessageSettled { receipt, accepted: true });
                }
            }
        }
        taken > 0
    }
}

fn turn(
    id: u16,
    build: &Build,
    limits: &Limits,
    settings: &Arc<[ListenerSettings]>,
    (exchange, addresses): &(Arc<Exchange>, Arc<AddressTable>),
) -> Turn<SimIo> {
    let setup = shard::ShardOptions {
        worker: WorkerId(id),
        home: Home::new([0; 16], 2),
        settings: Arc::clone(settings),
        handshakes: 16,
        uplink_length: limits.uplink_length,
        seed: u64::from(id),
        is_of_fleet: false,
        exchange: Arc::clone(exchange),
        sessions: broker::Bounds::of(limits, 2),
    };
    let setup = turn::TurnOptions {
        workers: 2,
        shard: Shard::new(setup, Tick(0)),
        input: Input::new(limits.frame_bytes, limits.read_bytes),
        admission: Admission::new(
            AdmissionLimits::new(limits, &config::Admission::for_connections(1_000), usize::MAX),
            Arc::clone(addresses),
        ),
        bounds: build.bounds,
        other_sources: 4,
    };
    Turn::new(setup, SimIo::new(id, build, 1))
}

/// Plays one order; `Err` says what the device did not hear.
fn play(
    order: Order,
    certificates: &Certificates,
    settings: &Arc<[ListenerSettings]>,
    sabotage: Sabotage,
) -> Result<(), &'static str> {
    let mut stage = Stage::new(&order, certificates, settings, sabotage);
    let hello = stage.said();
    stage.turns[0].io().arrive(stage.socket, ListenerId(0));
    stage.network.send(stage.socket, &hello, Moment::default());
    for _ in 0..8 {
        stage.drive();
        let said = stage.said();
        stage.network.send(stage.socket, &said, Moment::default());
    }
    if stage.peer.is_unanswered() {
        return Err("the end of its handshake");
    }
    let home = Home::new([0; 16], 2);
    let id = (0..1_000).map(|n| format!("device-{n}")).find(|id| home.of(id) == WorkerId(1)).expect("half of all");
    let introduction = stage.introduction(&id);
    let (begin, rest) = introduction.split_at(order.cut.min(introduction.len()));
    let messages = [stage.message(1), stage.message(2)];
    stage.script = [
        (0, begin),
        (order.rest_at, rest),
        (order.messages_at[0], &messages[0][..]),
        (order.messages_at[1], &messages[1][..]),
    ]
    .into_iter()
    .map(|(at, bytes)| (at, stage.socket, bytes.to_vec()))
    .collect();
    (stage.point, stage.first, stage.way) = (0, order.first, order.way);
    stage.drive();
    if !stage.is_in {
        return Err("that it is welcome");
    }
    if stage.arrived != 2 {
        return Err("that its messages were taken");
    }
    if stage.acknowledged == 2 { Ok(()) } else { Err("the acknowledgements of its messages") }
}

/// One listener, of MQTT.
fn mqtt_settings(certificates: &Certificates) -> Arc<[ListenerSettings]> {
    let all = || vec!["#".to_owned()];
    let listener = Listener {
        name: "simulated".into(),
        listen: ([127, 0, 0, 1], 0).into(),
        shares: None,
        alpn: None,
        protocol: Protocol::Mqtt(Mqtt { publish: all(), subscribe: all(), uplink: all(), ..Mqtt::default() }),
        transport: config::Transport::Tls,
        proxy_protocol: Vec::new(),
        tls: config::Tls::default(),
        heartbeat: Heartbeat::default(),
        identity: Identity { from: IdentityFrom::ClientId, authenticators: Vec::new() },
        rates: config::Rates::default(),
    };
    [ListenerSettings::new(ListenerId(0), &listener, &world::limits(1_000), certificates.server.clone())].into()
}

/// All orders of a device that speaks so, or as many as it takes to find one that goes wrong.
fn play_all(speaks: Speech, rooms: &[Room], sabotage: Sabotage) -> Result<u32, String> {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(directory.path());
    let settings = match speaks {
        Speech::Native => world::settings(&world::limits(1_000), &certificates),
        Speech::Mqtt => mqtt_settings(&certificates),
    };
    let mut played = 0;
    for &room in rooms {
        for cut in [0, 4, 30] {
            for rest_at in 0..POINTS {
                for behind in [[0, 0], [1, 2], [14, 3]] {
                    let messages_at = [rest_at + behind[0], rest_at + behind[0] + behind[1]];
                    let (way, first) = (rest_at % 3, (rest_at / 3 % 2) as usize);
                    for (way, first) in [(way, first), (2 - way, 1 - first)] {
                        let order = Order { speaks, cut, rest_at, messages_at, room, way, first };
                        play(order, &certificates, &settings, sabotage)
                            .map_err(|what| format!("the device never heard {what}: {order:?}"))?;
                        played += 1;
                    }
                }
            }
        }
    }
    Ok(played)
}

/// As many as there are in each room.
const ORDERS: u32 = 3 * POINTS * 3 * 2;

#[test]
fn arrival_in_every_phase_of_a_move_is_read() {
    for speaks in [Speech::Native, Speech::Mqtt] {
        let played = play_all(speaks, &[Room::Enough], Sabotage::None).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(played, ORDERS);
    }
}

#[test]
fn arrival_while_reading_is_paused_and_resumed_is_read() {
    let rooms = [Room::One(1), Room::One(2), Room::One(5)];
    for speaks in [Speech::Native, Speech::Mqtt] {
        let played = play_all(speaks, &rooms, Sabotage::None).unwrap_or_else(|fault| panic!("{fault}"));
        assert_eq!(played, 3 * ORDERS);
    }
}

/// A read that is short and has not emptied the socket: the kernel does not do that, and the turn relies on it.
#[test]
fn arrival_that_is_not_read_to_its_end_is_caught() {
    for (speaks, room) in [(Speech::Native, Room::Enough), (Speech::Mqtt, Room::Enough), (Speech::Mqtt, Room::One(2))] {
        let fault = play_all(speaks, &[room], Sabotage::ShortReads).expect_err("half of what is there was read");
        assert!(fault.contains("never heard"), "{fault}");
    }
}

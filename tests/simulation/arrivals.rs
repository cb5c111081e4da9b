//! Every order in which a device's words can arrive while its connection moves home. The clock stands still: a byte that
//! nobody reads is not found by a probe or a deadline later, so a lost edge is seen.

use std::collections::VecDeque;
use std::sync::Arc;

use pulsegate::broker;
use pulsegate::config::{self, Limits};
use pulsegate::connection::{Input, ListenerSettings};
use pulsegate::link::{AddressTable, Exchange, Home, ListenerId, WorkerCommand, WorkerEvent, WorkerId};
use pulsegate::shard::{self, Shard};
use pulsegate::time::{Moment, Tick};
use pulsegate::turn::{self, Admission, AdmissionLimits, Bounds, Turn};

use crate::certificates::Certificates;
use crate::gateway::Build;
use crate::io::{Faults, Patience, Sabotage, SimIo, WorkerMessage};
use crate::network::{Network, SocketId};
use crate::peer::Peer;
use crate::world;

/// Phases that a move and all its turns take, and some more.
const POINTS: u32 = 80;

/// When the parts of what a device says arrive, counted in phases of turns, and how slow the way between workers is.
#[derive(Clone, Copy, Debug)]
struct Order {
    /// HELLO is cut behind so many of its bytes.
    cut: usize,
    /// When the rest of it arrives, and when the message behind it does.
    rest_at: u32,
    message_at: u32,
    /// Rounds that a message between workers takes.
    way: u32,
    first: usize,
}

struct Stage {
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
    fn new(certificates: &Certificates, settings: &Arc<[ListenerSettings]>, sabotage: Sabotage) -> Self {
        let limits = world::limits(1_000);
        let faults = Faults {
            channel: 1_000,
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
        let peer = Peer::connecting(0, &certificates.client);
        let (mail, script) = (VecDeque::new(), VecDeque::new());
        Self { turns, network, peer, socket, mail, first: 0, way: 0, point: 0, script }
    }

    /// Turns until nobody has anything to do.
    fn drive(&mut self) {
        for _ in 0..1_000 {
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
    }

    /// What the peer has said since, to be sent.
    fn said(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.peer.out)
    }

    /// What the workers have sent up; messages are accepted.
    fn backbone(&mut self) -> usize {
        let mut messages = 0;
        for turn in &mut self.turns {
            while let Some(event) = turn.io().take_up() {
                if let WorkerEvent::Message(message) = event {
                    messages += 1;
                    let receipt = message.receipt.expect("it wants to hear");
                    self.peer.sure_held += 1;
                    turn.io().command(WorkerCommand::MessageSettled { receipt, accepted: true });
                }
            }
        }
        messages
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
        uplink_length: 1_000,
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
    let mut stage = Stage::new(certificates, settings, sabotage);
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
    stage.peer.say_hello(&id, 0);
    let hello = stage.said();
    stage.peer.say_sure(0);
    let message = stage.said();
    let (begin, rest) = hello.split_at(order.cut.min(hello.len()));
    stage.script = [(0, begin), (order.rest_at, rest), (order.message_at, &message[..])]
        .into_iter()
        .map(|(at, bytes)| (at, stage.socket, bytes.to_vec()))
        .collect();
    (stage.point, stage.first, stage.way) = (0, order.first, order.way);
    stage.drive();
    if stage.peer.welcomed.is_none() {
        return Err("WELCOME");
    }
    if stage.backbone() != 1 {
        return Err("that its message was taken");
    }
    stage.drive();
    if stage.peer.sure_acknowledged == 1 { Ok(()) } else { Err("the ACK of its message") }
}

/// All orders, or as many as it takes to find one that goes wrong.
fn play_all(sabotage: Sabotage) -> Result<u32, String> {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(directory.path());
    let settings = world::settings(&world::limits(1_000), &certificates);
    let mut played = 0;
    for cut in [0, 4, 30] {
        for rest_at in 0..POINTS {
            for message_at in [rest_at, rest_at + 1, rest_at + 14] {
                let (way, first) = (rest_at % 3, (rest_at / 3 % 2) as usize);
                for (way, first) in [(way, first), (2 - way, 1 - first)] {
                    let order = Order { cut, rest_at, message_at, way, first };
                    play(order, &certificates, &settings, sabotage)
                        .map_err(|what| format!("the device never heard {what}: {order:?}"))?;
                    played += 1;
                }
            }
        }
    }
    Ok(played)
}

#[test]
fn arrival_in_every_phase_of_a_move_is_read() {
    let played = play_all(Sabotage::None).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(played, 3 * POINTS * 3 * 2);
}

/// A read that is short and has not emptied the socket: the kernel does not do that, and the turn relies on it.
#[test]
fn arrival_that_is_not_read_to_its_end_is_caught() {
    let fault = play_all(Sabotage::ShortReads).expect_err("half of what is there was read");
    assert!(fault.contains("never heard"), "{fault}");
}

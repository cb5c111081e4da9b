//! The virtual clock, the faults, and everybody who acts by it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use pulsegate::codec::native::CloseCode;
use pulsegate::config::{self, Heartbeat, Identity, IdentityFrom, Limits, Listener, Protocol, Raw};
use pulsegate::connection::ListenerSettings;
use pulsegate::link::{AuthAnswer, ConnectionId, Downlink, ListenerId, Receipt, WorkerCommand, WorkerEvent};
use pulsegate::metrics::Metric;
use pulsegate::time::Moment;
use pulsegate::tls::handshake::ClientTls;
use pulsegate::turn::Bounds;

use crate::certificates::Certificates;
use crate::gateway::{Build, Gateway, ImageHead};
use crate::io::{Faults, Patience, Sabotage};
use crate::network::{Ended, SocketId};
use crate::peer::{Fate, HEARTBEAT, PROBE, Peer, Reaction, Speaks};
use crate::shadow::{Shadow, device_id};

const NATIVE: ListenerId = ListenerId(0);
const RAW: ListenerId = ListenerId(1);
/// Raw devices that are not probed: they send a heartbeat of their own accord, and silence alone ends them.
const BEATING: ListenerId = ListenerId(2);
const TIMEOUT: Duration = Duration::from_secs(5);
const RETRIES: u8 = 2;
/// The longest jump of the clock.
const JUMP: Duration = Duration::from_mins(10);
/// What has a time of its own (handshakes, goodbyes) has more than a jump and all delays together.
const PATIENCE: Duration = Duration::from_mins(20);

/// One run: how many, for how long, and what goes wrong how often. Rates are "one in so many"; 0: never.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub workers: u16,
    pub devices: u32,
    /// Connections that shake hands for real, about.
    pub handshakes: u32,
    pub time: Duration,
    /// A step of the clock lasts up to this.
    pub step: Duration,
    /// Silence before a device is probed, in ticks: one of these.
    pub intervals: &'static [u16],
    /// A device does something of its own accord about so often.
    pub act_every: Duration,
    /// Connections that are lost in some way, sooner or later.
    pub lost: u32,
    /// Sends that arrive in pieces.
    pub split: u32,
    /// Steps in which a loop falls behind, the clock jumps, the backbone stops, or a storm of commands comes.
    pub late: u32,
    pub jump: u32,
    pub backlog: u32,
    pub storm: u32,
    /// Invariants are checked every so many steps.
    pub check_every: u64,
    pub uplink_length: usize,
    /// Bytes that a socket takes before its peer reads.
    pub room: usize,
    pub bounds: Bounds,
    pub faults: Faults,
    pub sabotage: Sabotage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Connect(u32),
    Pump(SocketId),
    Hello(SocketId),
    Act(SocketId),
    Answer(SocketId),
    Beat(SocketId),
    Lose(SocketId),
    Bye(SocketId),
}

pub struct World {
    plan: Plan,
    gateway: Gateway,
    random: fastrand::Rng,
    backbone_stops_until: Moment,
    peers: Vec<Peer>,
    /// How many connections each device has begun.
    connects: Vec<u32>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    /// Numbers what would otherwise be equal.
    serial: u64,
    client: ClientTls,
    handshakes_left: u32,
    shadow: Shadow,
    steps: u64,
    pub account: Account,
    reactions: Vec<Reaction>,
}

/// What a run was worth.
#[derive(Clone, Debug, Default)]
pub struct Account {
    pub steps: u64,
    pub turns: u64,
    pub idle_turns: u64,
    pub connections: u64,
    pub handshakes: u64,
    pub heartbeats: u64,
    pub messages: u64,
    pub dropped: u64,
    pub commands: u64,
    pub moves: u64,
    pub expired: u64,
    pub last_reads: u64,
    pub checks: u64,
    pub reasons: Vec<String>,
}

pub fn limits(uplink_length: usize) -> Limits {
    Limits {
        handshakes: 16,
        // The faults are the simulation's own; these must not be what ends a polite peer.
        handshake_time: PATIENCE,
        hello_time: PATIENCE,
        linger_time: PATIENCE,
        frame_bytes: 1_024,
        read_bytes: 1_024,
        outbox_bytes: 4_096,
        uplink_length,
        ..Limits::default()
    }
}

/// A native listener, a raw one, and one of devices that beat of their own accord.
pub fn settings(limits: &Limits, certificates: &Certificates) -> Arc<[ListenerSettings]> {
    let listener = |protocol| Listener {
        name: "simulated".into(),
        listen: ([127, 0, 0, 1], 0).into(),
        shares: None,
        alpn: None,
        protocol,
        transport: config::Transport::Tls,
        proxy_protocol: Vec::new(),
        tls: config::Tls::default(),
        heartbeat: Heartbeat {
            interval: Duration::from_mins(1),
            timeout: TIMEOUT,
            retries: RETRIES,
            ..Heartbeat::default()
        },
        identity: Identity { from: IdentityFrom::Hello, authenticators: Vec::new() },
        rates: config::Rates::default(),
    };
    let raw = |probe: &[u8]| Raw { heartbeat: HEARTBEAT.to_vec(), reply: Vec::new(), probe: probe.to_vec() };
    let settings = |id, protocol| ListenerSettings::new(id, &listener(protocol), limits, certificates.server.clone());
    [
        settings(NATIVE, Protocol::Native),
        settings(RAW, Protocol::Raw(raw(PROBE))),
        settings(BEATING, Protocol::Raw(raw(b""))),
    ]
    .into()
}

/// No handshake gives way to another before its peer was silent for so long.
const SILENCE_MIN: Duration = Duration::from_millis(500);

impl World {
    pub fn new(plan: Plan, certificates: &Certificates) -> Self {
        let mut random = fastrand::Rng::with_seed(plan.seed);
        let build = Build {
            workers: plan.workers,
            bounds: plan.bounds,
            faults: plan.faults,
            sabotage: plan.sabotage,
            patience: Patience { micros: TIMEOUT.as_micros() as u64 * (u64::from(RETRIES) + 1) },
            room: plan.room,
        };
        let limits = limits(plan.uplink_length);
        let gateway = Gateway::new(build, &settings(&limits, certificates), &limits, random.u64(..));
        let mut world = Self {
            gateway,
            backbone_stops_until: Moment::default(),
            peers: Vec::new(),
            connects: vec![0; plan.devices as usize],
            events: BinaryHeap::new(),
            serial: 0,
            client: certificates.client.clone(),
            handshakes_left: plan.handshakes,
            shadow: Shadow::new(plan.workers),
            steps: 0,
            account: Account::default(),
            reactions: Vec::new(),
            random,
            plan,
        };
        let storm = world.plan.time / 10;
        for device in 0..world.plan.devices {
            let after = world.within(storm);
            world.later(after, Event::Connect(device));
        }
        world
    }

    /// The whole run: the storm and all that goes wrong, then calm, then the audit.
    pub fn run(mut self) -> Account {
        while self.gateway.now.since(Moment::default()) < self.plan.time {
            self.step();
        }
        // Nothing more goes wrong; what was dead is found, what is owed is paid.
        self.gateway.calm_down();
        self.backbone_stops_until = self.gateway.now;
        let longest = Duration::from_millis(u64::from(*self.plan.intervals.iter().max().expect("some")) * 100);
        let rest = self
            .gateway
            .now
            .plus(longest * 2 + TIMEOUT * (u32::from(RETRIES) + 3) + PATIENCE * 2 + Duration::from_mins(1));
        self.plan.step = self.plan.step.max(Duration::from_millis(200));
        while self.gateway.now < rest {
            self.step();
        }
        // A world that was overloaded needs longer; as long as it goes on, it is no fault.
        let (mut least, mut idle) = (u64::MAX, 0);
        while self.owed() > 0 && idle < 3_000 {
            self.step();
            idle += 1;
            if self.owed() < least {
                (least, idle) = (self.owed(), 0);
            }
        }
        assert_eq!(self.buffered(), 0, "bytes are kept for nobody");
        self.audit();
        self.account
    }

    fn later(&mut self, after: Duration, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((self.gateway.now.plus(after).micros(), self.serial, event)));
    }

    fn within(&mut self, time: Duration) -> Duration {
        Duration::from_micros(self.random.u64(..=time.as_micros() as u64))
    }

    /// Evenly over the orders of magnitude: as likely within a millisecond as within the last half of the run.
    fn sooner_or_later(&mut self, longest: Duration) -> Duration {
        let exponent = self.random.f64() * (longest.as_micros() as f64).ln();
        Duration::from_micros(exponent.exp() as u64)
    }

    fn one_in(&mut self, many: u32) -> bool {
        many > 0 && !self.gateway.is_calm && self.random.u32(..many) == 0
    }

    // --- Time -------------------------------------------------------------------------------------------------------

    fn step(&mut self) {
        self.steps += 1;
        let length = self.within(self.plan.step);
        self.gateway.now = self.gateway.now.plus(length);
        if self.one_in(self.plan.jump) {
            let jump = self.within(JUMP);
            self.gateway.now = self.gateway.now.plus(jump);
        }
        if self.one_in(self.plan.late) {
            self.gateway.delay_a_worker(Duration::from_secs(40));
        }
        if self.one_in(self.plan.backlog) {
            let stop = self.within(Duration::from_secs(20));
            self.backbone_stops_until = self.gateway.now.plus(stop);
        }
        if self.one_in(self.plan.storm) {
            self.command_storm();
        }
        while let Some(&Reverse((at, _, event))) = self.events.peek()
            && at <= self.gateway.now.micros()
        {
            self.events.pop();
            self.handle(event);
        }
        let stop = self.gateway.draw_stop();
        if let Some(stop) = stop {
            self.live_through(stop.length);
        }
        self.gateway.turns(stop);
        for socket in std::mem::take(&mut self.gateway.moved) {
            self.peers[socket as usize].has_moved = true;
        }
        self.backbone();
        self.tell_peers();
        if self.steps.is_multiple_of(self.plan.check_every) {
            self.account.checks += 1;
            self.gateway.check_invariants();
        }
    }

    /// Peers go on while the process is stopped: the kernel has what they said meanwhile when it goes on.
    fn live_through(&mut self, length: Duration) {
        self.tell_peers();
        self.gateway.network.hold();
        let begun = self.gateway.now;
        let until = begun.plus(length).micros();
        let mut later = Vec::new();
        while let Some(&Reverse((at, serial, event))) = self.events.peek()
            && at <= until
        {
            self.events.pop();
            if let Event::Connect(_) = event {
                later.push(Reverse((until, serial, event)));
            } else {
                self.gateway.now = Moment::from_micros(at);
                self.handle(event);
            }
        }
        self.events.extend(later);
        self.gateway.now = begun;
    }

    // --- The backbone -----------------------------------------------------------------------------------------------

    fn backbone(&mut self) {
        if self.gateway.now < self.backbone_stops_until {
            return;
        }
        for worker in 0..self.gateway.workers() {
            while let Some(event) = self.gateway.take_up(worker) {
                self.take_up(worker, event);
            }
        }
    }

    fn take_up(&mut self, worker: usize, event: WorkerEvent) {
        match event {
            WorkerEvent::Connected(presence) => self.shadow.connected(worker as u16, &presence),
            WorkerEvent::Disconnected(presence, reason) => self.shadow.disconnected(worker as u16, &presence, reason),
            WorkerEvent::Message(message) => {
                let id = message.receipt.map(|receipt| match receipt {
                    Receipt::Connection(_, id) => id,
                    Receipt::Publication(_) => unreachable!("no device here has a session"),
                });
                self.shadow.held(&mut self.peers, &message.device, &message.payload, id);
                if let Some(receipt) = message.receipt {
                    self.gateway.command(worker, WorkerCommand::MessageSettled { receipt, accepted: true });
                }
                // A handle from long ago, for a slot that somebody has.
                if self.random.u8(..) == 0 {
                    let ConnectionId { slot, generation } = message.connection;
                    let older = generation.wrapping_sub(self.random.u32(1..1_000));
                    let connection = ConnectionId { slot, generation: older };
                    let receipt = Receipt::Connection(connection, 99);
                    self.gateway.command(worker, WorkerCommand::MessageSettled { receipt, accepted: true });
                    self.gateway
                        .command(worker, WorkerCommand::Authenticated { connection, answer: AuthAnswer::plain() });
                    self.gateway.post_stale_acks(worker, connection);
                }
            }
            WorkerEvent::Sent { request, outcome } => self.shadow.answered(request, outcome),
            WorkerEvent::Described { request, description } => self.shadow.describe(request, description.is_some()),
            // Counted by its reason; the shadow knows devices.
            WorkerEvent::NotAdmitted(_) => {}
            other => unreachable!("nobody asked for {other:?}"),
        }
    }

    fn command_storm(&mut self) {
        let count = self.random.u32(1..=self.plan.devices.min(2_000));
        let favourite = self.random.u32(..self.plan.devices);
        for _ in 0..count {
            let device = if self.random.u8(..4) == 0 { favourite } else { self.random.u32(..self.plan.devices) };
            let name: Box<str> = device_id(device).into();
            let kind = self.random.u8(..100);
            let request = self.shadow.ask(device, kind < 90, self.gateway.now);
            let worker = self.gateway.home.of(&name).index();
            let command = match kind {
                0..90 => WorkerCommand::Send {
                    request,
                    device: name,
                    downlink: Downlink { topic: "t".into(), payload: request.to_be_bytes().to_vec().into() },
                    acknowledge: kind < 45,
                },
                90..98 => WorkerCommand::Describe { request, device: name },
                _ => {
                    self.shadow.disconnected.insert(device);
                    WorkerCommand::Disconnect { request, device: name }
                }
            };
            self.gateway.command(worker, command);
            self.account.commands += 1;
        }
    }

    // --- Peers ------------------------------------------------------------------------------------------------------

    fn handle(&mut self, event: Event) {
        match event {
            Event::Connect(device) => {
                if !self.gateway.is_calm {
                    self.connect(device);
                }
            }
            Event::Pump(id) => {
                self.peers[id as usize].is_pumping = false;
                self.pump(id);
            }
            Event::Hello(id) => self.with_live(id, |world, id| {
                let heartbeat_ms = 100 * u32::from(world.interval());
                let peer = &mut world.peers[id as usize];
                peer.say_hello(&device_id(peer.device), heartbeat_ms);
            }),
            Event::Answer(id) => self.with_live(id, |world, id| world.peers[id as usize].say_alive()),
            Event::Beat(id) => self.with_live(id, |world, id| {
                let peer = &mut world.peers[id as usize];
                peer.say_alive();
                let every = peer.beats_every.expect("whoever beats does so for ever");
                world.later(every, Event::Beat(id));
            }),
            Event::Act(id) => self.with_live(id, Self::act),
            Event::Lose(id) => {
                if self.peers[id as usize].fate == Fate::Live && !self.gateway.is_calm {
                    self.lose(id);
                }
            }
            Event::Bye(id) => self.gateway.network.end(id, Ended::InOrder),
        }
    }

    fn with_live(&mut self, id: SocketId, act: impl FnOnce(&mut Self, SocketId)) {
        if self.peers[id as usize].fate == Fate::Live {
            act(self, id);
            self.pump(id);
        }
    }

    fn interval(&mut self) -> u16 {
        self.plan.intervals[self.random.usize(..self.plan.intervals.len())]
    }

    fn connect(&mut self, device: u32) {
        self.connects[device as usize] += 1;
        self.account.connections += 1;
        let id = self.gateway.network.connect(self.gateway.now);
        assert_eq!(id as usize, self.peers.len());
        if self.random.u32(..self.plan.devices) < self.handshakes_left.min(self.plan.handshakes) {
            self.handshakes_left = self.handshakes_left.saturating_sub(1);
            self.peers.push(Peer::connecting(device, &self.client));
            self.gateway.connect(id, NATIVE);
        } else {
            self.arrive(id, device);
        }
        let after = self.within(self.plan.act_every * 2);
        self.later(after, Event::Act(id));
        if self.one_in(self.plan.lost) {
            let after = self.sooner_or_later(self.plan.time);
            self.later(after, Event::Lose(id));
        }
        self.pump(id);
    }

    /// A connection whose handshake was somewhere else comes home, as one that is moved does; part of what it has said
    /// since comes along.
    fn arrive(&mut self, id: SocketId, device: u32) {
        let (listener, speaks) = match self.random.u8(..10) {
            0 => (RAW, Speaks::Raw),
            1 => (BEATING, Speaks::Raw),
            _ => (NATIVE, Speaks::Native),
        };
        let interval = self.interval();
        let (mut peer, records) = Peer::established(device, speaks, &mut self.random);
        if speaks == Speaks::Raw {
            peer.welcomed = Some(self.gateway.now);
        }
        if listener == BEATING {
            peer.beats_every = Some(Duration::from_millis(u64::from(interval) * 90));
            self.later(Duration::ZERO, Event::Beat(id));
        }
        for _ in 0..self.random.u32(..3) {
            peer.say_sure(id);
        }
        let came_along: Vec<u8> = peer.out.drain(..self.random.usize(..=peer.out.len())).collect();
        let name = device_id(device);
        let head = ImageHead { listener, naming: 1, interval, device: &name };
        let bytes = self.gateway.image(head, &[], &came_along, &records);
        self.peers.push(peer);
        self.gateway.arrive(&name, bytes, id);
    }

    fn act(&mut self, id: SocketId) {
        let after = self.within(self.plan.act_every * 2);
        self.later(after, Event::Act(id));
        let peer = &mut self.peers[id as usize];
        if self.gateway.is_calm || peer.welcomed.is_none() {
            return;
        }
        match self.random.u32(..1_000) {
            0..400 => (0..self.random.u32(1..8)).for_each(|_| peer.say_sure(id)),
            400..600 => (0..self.random.u32(1..8)).for_each(|_| peer.say_loose(id)),
            600..990 => peer.say_ping(),
            990..998 => peer.update_keys(),
            _ => peer.say_nonsense(&mut self.random),
        }
    }

    /// Sends what a peer has to say: at once, or in pieces.
    fn pump(&mut self, id: SocketId) {
        let peer = &self.peers[id as usize];
        if peer.is_pumping || peer.out.is_empty() {
            return;
        }
        let mut count = peer.out.len();
        if self.one_in(self.plan.split) {
            count = self.random.usize(1..=count);
        }
        let peer = &mut self.peers[id as usize];
        let piece: Vec<u8> = peer.out.drain(..count).collect();
        if peer.out.is_empty() {
            peer.out = Vec::new();
        } else {
            peer.is_pumping = true;
            let after = self.sooner_or_later(Duration::from_millis(500));
            self.later(after, Event::Pump(id));
        }
        self.gateway.network.send(id, &piece, self.gateway.now);
    }

    fn lose(&mut self, id: SocketId) {
        let peer = &mut self.peers[id as usize];
        let device = peer.device;
        match self.random.u8(..5) {
            0 => {
                peer.say_goodbye();
                let last = std::mem::take(&mut peer.out);
                peer.settle(Fate::Left);
                if !peer.is_pumping {
                    self.gateway.network.send(id, &last, self.gateway.now);
                }
                self.gateway.network.end(id, Ended::InOrder);
            }
            1 => {
                peer.settle(Fate::Left);
                self.gateway.network.end(id, Ended::InOrder);
            }
            2 => {
                peer.settle(Fate::Left);
                self.gateway.network.end(id, Ended::ByReset);
            }
            _ => peer.settle(Fate::Vanished),
        }
        self.come_back(device);
    }

    fn come_back(&mut self, device: u32) {
        let after = self.sooner_or_later(Duration::from_mins(5));
        self.later(after, Event::Connect(device));
    }

    fn tell_peers(&mut self) {
        for id in self.gateway.network.take_dirty() {
            if self.peers[id as usize].fate != Fate::Vanished {
                self.tell(id);
            }
        }
    }

    fn tell(&mut self, id: SocketId) {
        let (bytes, ended) = self.gateway.network.take(id);
        let mut reactions = std::mem::take(&mut self.reactions);
        let peer = &mut self.peers[id as usize];
        if peer.fate == Fate::Live {
            peer.hear(&bytes, self.gateway.now, &mut reactions);
            for reaction in reactions.drain(..) {
                self.react(id, reaction);
            }
            self.pump(id);
        }
        self.reactions = reactions;
        if ended != Ended::StillOpen && !std::mem::replace(&mut self.peers[id as usize].wire_ended, true) {
            self.end_of_stream(id, ended);
        }
    }

    fn react(&mut self, id: SocketId, reaction: Reaction) {
        match reaction {
            Reaction::Answer => {
                let after = self.sooner_or_later(Duration::from_secs(2));
                self.later(after, Event::Answer(id));
            }
            Reaction::Heard(request) => self.shadow.heard(self.peers[id as usize].device, request),
            Reaction::Established => {
                let after = self.sooner_or_later(Duration::from_secs(5));
                self.later(after, Event::Hello(id));
            }
            Reaction::Goodbye => {}
        }
    }

    /// Whether a peer's handshake was not finished while there were too few places: the longest silent gives way
    /// (decision D17), from half a second on.
    fn was_crowded_out(&mut self, id: SocketId) -> bool {
        let now = self.gateway.now;
        let waited = now.since(self.gateway.network.last_arrival(id));
        let is_recent = |at: Moment| now.since(at) <= PATIENCE;
        let mut crowded = false;
        for worker in 0..self.gateway.workers() {
            crowded |= self.gateway.io(worker).crowded_at.is_some_and(is_recent);
        }
        self.peers[id as usize].is_unanswered() && waited >= SILENCE_MIN && crowded
    }

    /// The gateway has ended its side: was there a reason?
    fn end_of_stream(&mut self, id: SocketId, ended: Ended) {
        let was_crowded_out = self.was_crowded_out(id);
        let was_slow = (0..self.gateway.workers()).any(|worker| self.gateway.io(worker).slow.contains(&id));
        let peer = &mut self.peers[id as usize];
        let was_live = peer.fate == Fate::Live;
        let device = peer.device;
        peer.settle(Fate::Ended(None));
        let after = self.sooner_or_later(Duration::from_secs(1));
        self.later(after, Event::Bye(id));
        if !was_live {
            return;
        }
        let peer = &self.peers[id as usize];
        let replaced = self.connects[device as usize] > 1 || self.shadow.disconnected.contains(&device);
        let Fate::Ended(code) = peer.fate else { unreachable!("settled just now") };
        let is_right = match code {
            _ if peer.is_rude => true,
            None if peer.speaks == Speaks::Raw && replaced => true,
            // Whoever does not read is told nothing; nor is whoever has waited for all its time behind the handshakes of
            // peers that had vanished: there is no TLS to tell it by.
            None => was_slow || was_crowded_out,
            Some(CloseCode::TAKEN_OVER) => self.connects[device as usize] > 1,
            Some(CloseCode::REQUESTED) => self.shadow.disconnected.contains(&device),
            Some(CloseCode::TRY_LATER) => peer.has_moved && self.plan.faults.home_full > 0,
            Some(_) => false,
        };
        let (speaks, has_moved, unanswered) = (peer.speaks, peer.has_moved, peer.is_unanswered());
        assert!(
            is_right,
            "peer {id} (device {device}, {speaks:?}, moved: {has_moved}, in its handshake: {unanswered}) was ended for no reason \
             of its own: {code:?}, {ended:?}, {:?} after {:?}",
            self.gateway.now,
            self.gateway.network.last_arrival(id),
        );
        // Another connection took over, or the device shall come back.
        if code != Some(CloseCode::TAKEN_OVER) || self.random.bool() {
            self.come_back(device);
        }
    }

    /// What is on its way: promised messages that were not acknowledged, bytes that sockets have not taken.
    fn owed(&mut self) -> u64 {
        let waiting = |peer: &Peer| match peer.speaks {
            Speaks::Native => peer.sure_sent - peer.sure_acknowledged,
            Speaks::Raw | Speaks::Bytes => peer.sure_sent - peer.sure_held,
        };
        let messages: u32 = self.peers.iter().filter(|peer| peer.is_healthy()).map(waiting).sum();
        u64::from(messages) + self.buffered()
    }

    /// Bytes that sockets have not taken.
    fn buffered(&mut self) -> u64 {
        self.gateway.value(Metric::BufferedBytes)
    }

    // --- The end ----------------------------------------------------------------------------------------------------

    fn audit(&mut self) {
        assert!(!self.gateway.is_over(), "nobody has ended the gateway");
        self.shadow.audit(&self.peers);
        let healthy = self.peers.iter().filter(|peer| peer.is_healthy()).count();
        for (id, peer) in self.peers.iter().enumerate() {
            let is_open = !self.gateway.network.is_closed(id as SocketId);
            assert_eq!(is_open, peer.is_healthy(), "peer {id}'s socket: {peer}");
        }
        let held = self.gateway.sum(|turn| turn.shard().len() as u64) as usize;
        assert_eq!(held, healthy, "connections are held that nobody has");
        let account = &mut self.account;
        account.steps = self.steps;
        self.gateway.check_invariants();
        let ended = self.gateway.sum(|turn| turn.shard().counters().closed().iter().sum());
        account.expired = self.gateway.sum(|turn| turn.io().expired);
        account.turns = self.gateway.value(Metric::Turns);
        account.idle_turns = self.gateway.value(Metric::IdleTurns);
        account.handshakes = self.gateway.value(Metric::HandshakesFull) + self.gateway.value(Metric::HandshakesResumed);
        account.heartbeats = self.gateway.value(Metric::HeartbeatsSent);
        account.messages = self.gateway.value(Metric::MessagesReceived);
        account.dropped = self.gateway.value(Metric::MessagesDropped);
        account.moves = self.gateway.value(Metric::MovesSent);
        account.last_reads = self.gateway.value(Metric::LastReadsHeard);
        assert_eq!(ended + healthy as u64, account.connections, "a connection has no reason, or two");
        assert_eq!(
            account.messages,
            self.shadow.sure_held + self.shadow.loose_held,
            "a message was lost on its way up"
        );
        let mut reasons: Vec<_> = self.shadow.ended.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        reasons.sort();
        account.reasons = reasons;
    }
}

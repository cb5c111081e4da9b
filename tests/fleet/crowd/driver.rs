//! The thread that drives the devices of a crowd: MQTT 5 over TLS, each with a session that outlives its connections, and one message of
//! QoS 1 under way at a time.
//!
//! ```text
//!   away ──▶ coming (TCP, TLS, CONNECT) ──▶ subscribing ──▶ up ──▶ left
//!    ▲            │ no answer                  │             │ its connection ended, or nothing is answered
//!    └────────────┴────────────────────────────┴─────────────┘ to another gateway, after a back-off
//! ```
//! A device that is not answered goes elsewhere and keeps what it had open, so that it is seen how that ends.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Events, Poll};
use pulsegate::codec::mqtt::{
    self, Ack, Connect, Disconnect, Options, Packet, Properties, PropertiesBuilder, Property, Publish, QoS, Reason,
    Subscribe, Version,
};
use pulsegate::tls::handshake::ClientTls;

use super::journal::{Connection, Journal, addressee, name};
use super::line::{Gone, Line};

/// Connections on their way up at a time: what waits longer than a gateway allows would only make work.
const COMING_MAX: usize = 256;
/// So long one may be on its way up: longer than CONNECT ever waits.
const COMING_TIME: Duration = Duration::from_secs(30);
/// A device whose message is not acknowledged for so long asks whether anybody is there,
const ASKS_AFTER: Duration = Duration::from_secs(3);
/// and goes elsewhere when nobody has answered that for so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first back-off is a part of this, and each further one of twice as much,
const BACK_OFF: Duration = Duration::from_millis(500);
/// up to this.
const BACK_OFF_MAX: Duration = Duration::from_secs(16);
/// So often it is looked at who has something to do.
const LOOK: Duration = Duration::from_millis(50);
/// So often it is looked at what has not come yet, when nothing new is said.
const LOOK_FOR_MISSING: Duration = Duration::from_millis(500);
const SESSION_EXPIRY_S: u32 = 3_600;
const PACKET_MAX: usize = 1 << 20;
/// No message has this identifier.
const SUBSCRIBE_ID: u16 = u16::MAX;

/// What a crowd is told, and what it tells.
#[derive(Default)]
pub struct Shared {
    /// Where gateways are that take devices, and in which of their lives they are.
    pub gates: Mutex<Vec<(Option<SocketAddr>, usize)>>,
    /// Whether devices say anything new.
    pub speaks: AtomicBool,
    /// Whether they are to leave in order.
    pub leaves: AtomicBool,
    pub stops: AtomicBool,
    /// Devices that are up, for each gateway.
    pub up: [AtomicUsize; 3],
    pub acknowledged: AtomicUsize,
    /// Messages that are not acknowledged yet.
    pub under_way: AtomicUsize,
    /// Acknowledged messages that have not come to their devices; known when nothing new is said, and nothing is under way.
    pub missing: AtomicUsize,
    /// Connections that their devices have abandoned and that have not ended.
    pub abandoned: AtomicUsize,
    /// All that have not ended.
    pub connections: AtomicUsize,
}

impl Shared {
    pub fn up(&self) -> usize {
        self.up.iter().map(|up| up.load(Ordering::Relaxed)).sum()
    }

    /// From now on a gateway takes devices there, or not at all.
    pub fn offer(&self, gate: usize, address: Option<SocketAddr>, life: usize) {
        self.gates.lock().unwrap()[gate] = (address, life);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Away,
    Coming,
    Subscribing,
    Up,
    Left,
}

struct Device {
    state: State,
    /// Of one that is away: when it comes again. Else: when the state began.
    at: Instant,
    /// Its connection, by its place in the journal.
    line: Option<usize>,
    gate: usize,
    failures: u32,
    /// It has subscribed, in a session that is there.
    has_session: bool,
    /// The number of the message that is under way, or comes next, and when it was or will be said.
    number: u32,
    is_under_way: bool,
    speaks_at: Instant,
    /// It has asked whether anybody is there.
    asked: Option<Instant>,
}

pub struct Driver {
    shared: Arc<Shared>,
    poll: Poll,
    tls: Vec<ClientTls>,
    /// Between two messages of a device.
    every: Duration,
    devices: Vec<Device>,
    lines: HashMap<usize, Line>,
    abandoned: BTreeSet<usize>,
    coming: usize,
    journal: Journal,
    buffer: Vec<u8>,
    looked_for_missing: Instant,
}

impl Driver {
    /// Devices that come to the gateways of `shared` from now on, each of which speaks so often.
    pub fn start(devices: usize, every: Duration, tls: Vec<ClientTls>, shared: &Arc<Shared>) -> JoinHandle<Journal> {
        let (now, gates) = (Instant::now(), tls.len());
        let device = |number: usize| Device {
            state: State::Away,
            at: now,
            line: None,
            gate: number % gates,
            failures: 0,
            has_session: false,
            number: 0,
            is_under_way: false,
            speaks_at: now + every.mul_f64(fastrand::f64()),
            asked: None,
        };
        let mut driver = Self {
            shared: Arc::clone(shared),
            poll: Poll::new().unwrap(),
            tls,
            every,
            devices: (0..devices).map(device).collect(),
            lines: HashMap::new(),
            abandoned: BTreeSet::new(),
            coming: 0,
            journal: Journal::new(devices),
            buffer: vec![0; 64 << 10],
            looked_for_missing: now,
        };
        std::thread::spawn(move || {
            driver.run();
            driver.journal
        })
    }

    fn run(&mut self) {
        let mut events = Events::with_capacity(1_024);
        let mut looks = Instant::now();
        while !self.shared.stops.load(Ordering::Relaxed) {
            self.poll.poll(&mut events, Some(LOOK)).unwrap();
            for event in &events {
                self.turn(event.token().0);
            }
            let now = Instant::now();
            if now >= looks {
                looks = now + LOOK;
                (0..self.devices.len()).for_each(|device| self.look(device, now));
                self.tell(now);
            }
        }
    }

    fn tell(&mut self, now: Instant) {
        let shared = &self.shared;
        for (gate, up) in shared.up.iter().enumerate() {
            let is_up = |device: &&Device| device.state == State::Up && device.gate == gate;
            up.store(self.devices.iter().filter(is_up).count(), Ordering::Relaxed);
        }
        let under_way = self.devices.iter().filter(|device| device.is_under_way).count();
        shared.under_way.store(under_way, Ordering::Relaxed);
        shared.abandoned.store(self.abandoned.len(), Ordering::Relaxed);
        shared.connections.store(self.lines.len(), Ordering::Relaxed);
        let is_silent = under_way == 0 && !shared.speaks.load(Ordering::Relaxed);
        if is_silent && now >= self.looked_for_missing {
            self.looked_for_missing = now + LOOK_FOR_MISSING;
            shared.missing.store(self.journal.unheard().count(), Ordering::Relaxed);
        }
    }

    // --- Connections ------------------------------------------------------------------------------------------------

    fn come(&mut self, device: usize, now: Instant) {
        let (gate, address, life) = {
            let gates = self.shared.gates.lock().unwrap();
            let mut places = (0..gates.len()).map(|further| (self.devices[device].gate + further) % gates.len());
            let Some(gate) = places.find(|gate| gates[*gate].0.is_some()) else { return };
            (gate, gates[gate].0.unwrap(), gates[gate].1)
        };
        let serial = self.journal.connections.len();
        let dialed = Line::dial(address, self.poll.registry(), serial);
        let port = dialed.as_ref().map_or(0, Line::port);
        let (welcome, abandoned, told, end) = (None, None, None, None);
        self.journal.connections.push(Connection { device, gate, life, port, welcome, abandoned, told, end });
        let one = &mut self.devices[device];
        (one.gate, one.state, one.at, one.line) = (gate, State::Coming, now, Some(serial));
        self.coming += 1;
        match dialed {
            Ok(begun) => drop(self.lines.insert(serial, begun)),
            Err(error) => self.end(serial, Gone::Broke(error.kind())),
        }
    }

    /// Something has happened to this connection.
    fn turn(&mut self, serial: usize) {
        let Some(line) = self.lines.get_mut(&serial) else { return };
        let Connection { device, gate, .. } = self.journal.connections[serial];
        let turned = line.turn(&self.tls[gate], &mut self.buffer);
        if turned == Ok(true) {
            line.say(&connect(device));
        }
        let plain = std::mem::take(&mut line.plain);
        let mut taken = 0;
        while let Some((packet, length)) =
            mqtt::decode(&plain[taken..], Some(Version::V5), PACKET_MAX).expect("a gateway speaks MQTT")
        {
            taken += length;
            self.handle(serial, &packet);
        }
        if let Some(line) = self.lines.get_mut(&serial) {
            line.plain = plain[taken..].to_vec();
        }
        if let Err(gone) = turned {
            self.end(serial, gone);
        }
    }

    fn end(&mut self, serial: usize, gone: Gone) {
        self.lines.remove(&serial);
        self.abandoned.remove(&serial);
        let connection = &mut self.journal.connections[serial];
        connection.end = Some((Instant::now(), gone));
        let device = connection.device;
        if self.devices[device].line == Some(serial) {
            self.go_elsewhere(device);
        }
    }

    /// What the device had is no longer its connection.
    fn go_elsewhere(&mut self, device: usize) {
        let one = &mut self.devices[device];
        if matches!(one.state, State::Coming | State::Subscribing) {
            self.coming -= 1;
        }
        one.line = None;
        if self.shared.leaves.load(Ordering::Relaxed) {
            one.state = State::Left;
            return;
        }
        let span = (BACK_OFF * 2_u32.saturating_pow(one.failures.min(10))).min(BACK_OFF_MAX);
        one.failures += 1;
        (one.state, one.at) = (State::Away, Instant::now() + span.mul_f64(fastrand::f64()));
        one.gate = (one.gate + fastrand::usize(1..self.tls.len())) % self.tls.len();
        one.asked = None;
    }

    /// Nobody answers there any more: the connection stays as it is, and the device comes elsewhere.
    fn abandon(&mut self, device: usize, now: Instant) {
        let serial = self.devices[device].line.expect("it is up");
        self.journal.connections[serial].abandoned = Some(now);
        self.abandoned.insert(serial);
        self.go_elsewhere(device);
    }

    // --- What devices do --------------------------------------------------------------------------------------------

    fn look(&mut self, device: usize, now: Instant) {
        let Device { state, at, line, .. } = self.devices[device];
        let leaves = self.shared.leaves.load(Ordering::Relaxed);
        match state {
            State::Away if leaves => self.devices[device].state = State::Left,
            State::Away if now >= at && self.coming < COMING_MAX => self.come(device, now),
            State::Coming | State::Subscribing if now >= at + COMING_TIME => {
                self.end(line.expect("it is coming"), Gone::Broke(std::io::ErrorKind::TimedOut));
            }
            State::Up if leaves => {
                let goodbye = Packet::Disconnect(Disconnect { reason: Reason::SUCCESS, properties: Properties::EMPTY });
                self.say(line.expect("it is up"), &goodbye);
                self.devices[device].state = State::Left;
            }
            State::Up => self.speak(device, now),
            State::Away | State::Coming | State::Subscribing | State::Left => {}
        }
    }

    fn speak(&mut self, device: usize, now: Instant) {
        let speaks = self.shared.speaks.load(Ordering::Relaxed);
        let one = &mut self.devices[device];
        let serial = one.line.expect("it is up");
        if !one.is_under_way {
            if speaks && now >= one.speaks_at {
                one.is_under_way = true;
                self.publish(device, now, false);
            }
            return;
        }
        match one.asked {
            None if now >= one.speaks_at + ASKS_AFTER => {
                one.asked = Some(now);
                self.say(serial, &Packet::Pingreq);
            }
            Some(asked) if now >= asked + PATIENCE => self.abandon(device, now),
            _ => {}
        }
    }

    /// Says what is under way.
    fn publish(&mut self, device: usize, now: Instant, dup: bool) {
        let devices = self.devices.len();
        let one = &mut self.devices[device];
        one.speaks_at = now;
        let (serial, number) = (one.line.expect("it is up"), one.number);
        let topic = addressee(device, number, devices).map_or_else(|| "up".to_owned(), topic_to);
        let payload = format!("{device}.{number}").into_bytes();
        let (qos, packet_id, properties) = (QoS::AtLeastOnce, packet_id(number), Properties::EMPTY);
        let message = Publish { dup, qos, retain: false, topic: &topic, packet_id, properties, payload: &payload };
        self.say(serial, &Packet::Publish(message));
    }

    fn say(&mut self, serial: usize, packet: &Packet<'_>) {
        let mut plain = Vec::new();
        packet.encode(Version::V5, &mut plain);
        if let Some(line) = self.lines.get_mut(&serial) {
            line.say(&plain);
        }
    }

    // --- What devices hear ------------------------------------------------------------------------------------------

    fn handle(&mut self, serial: usize, packet: &Packet<'_>) {
        let device = self.journal.connections[serial].device;
        if let Packet::Disconnect(disconnect) = packet {
            self.journal.connections[serial].told = Some(disconnect.reason.0);
        }
        if self.devices[device].line != Some(serial) {
            // What it hears where it is no more it neither takes nor acknowledges.
            return;
        }
        match packet {
            Packet::Connack(connack) if connack.reason.is_error() => {
                *self.journal.refusals.entry(connack.reason.0).or_default() += 1;
            }
            Packet::Connack(connack) => self.welcome(serial, device, connack.session_present),
            Packet::Suback(suback) if suback.codes == [1] => self.rise(device),
            Packet::Publish(publish) => {
                self.journal.hear(device, publish.topic, publish.payload);
                let (packet_id, reason) = (publish.packet_id, Reason::SUCCESS);
                self.say(serial, &Packet::Puback(Ack { packet_id, reason, properties: Properties::EMPTY }));
            }
            Packet::Puback(ack) => self.acknowledge(device, ack),
            Packet::Pingresp => {
                let one = &mut self.devices[device];
                (one.asked, one.speaks_at) = (None, Instant::now());
            }
            Packet::Disconnect(_) => {}
            other => self.journal.wrongs.push(format!("{} heard {other:?}", name(device))),
        }
    }

    fn welcome(&mut self, serial: usize, device: usize, has_session: bool) {
        let connection = &mut self.journal.connections[serial];
        connection.welcome = Some(has_session);
        if has_session {
            return self.rise(device);
        }
        if self.devices[device].has_session {
            self.journal.wrongs.push(format!("connection #{serial}: the session is gone of {}", name(device)));
        }
        self.devices[device].state = State::Subscribing;
        let mut filters = Vec::new();
        Subscribe::put_filter(&topic_to(device), Options::plain(QoS::AtLeastOnce), &mut filters);
        self.say(serial, &Packet::Subscribe(Subscribe::new(SUBSCRIBE_ID, Properties::EMPTY, &filters)));
    }

    /// It is up; what was not acknowledged is said again.
    fn rise(&mut self, device: usize) {
        self.coming -= 1;
        let (one, now) = (&mut self.devices[device], Instant::now());
        (one.state, one.at, one.failures, one.has_session) = (State::Up, now, 0, true);
        if one.is_under_way {
            self.publish(device, now, true);
        }
    }

    fn acknowledge(&mut self, device: usize, ack: &Ack<'_>) {
        let one = &mut self.devices[device];
        if !one.is_under_way || ack.packet_id != packet_id(one.number) {
            return self.journal.wrongs.push(format!("{} heard PUBACK {} of nothing", name(device), ack.packet_id));
        }
        (one.is_under_way, one.asked, one.speaks_at) = (false, None, Instant::now() + self.every);
        if ack.reason.is_error() {
            *self.journal.refused.entry(ack.reason.0).or_default() += 1;
            return;
        }
        one.number += 1;
        self.journal.acknowledged[device] = one.number;
        self.shared.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
}

fn topic_to(device: usize) -> String {
    format!("to/{device}/set")
}

fn packet_id(number: u32) -> u16 {
    (number % u32::from(SUBSCRIBE_ID - 1)) as u16 + 1
}

fn connect(device: usize) -> Vec<u8> {
    let (mut properties, mut plain) = (PropertiesBuilder::default(), Vec::new());
    properties.push(&Property::SessionExpiryInterval(SESSION_EXPIRY_S));
    let connect = Connect {
        version: Version::V5,
        client_id: &name(device),
        clean_start: false,
        keep_alive: 0,
        will: None,
        username: None,
        password: None,
        properties: properties.properties(),
    };
    Packet::Connect(connect).encode(Version::V5, &mut plain);
    plain
}

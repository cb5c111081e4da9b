//! A world of MQTT devices: they come, go and come back, subscribe and publish, under a clock and faults of its own.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pulsegate::codec::mqtt::{
    Disconnect, Options, Packet, Properties, Publish, QoS, Reason, Subscribe, Unsubscribe, Version,
};
use pulsegate::config::{self, Heartbeat, Identity, IdentityFrom, Limits, Listener, Mqtt, Protocol};
use pulsegate::connection::ListenerSettings;
use pulsegate::link::{ListenerId, WorkerCommand, WorkerEvent};
use pulsegate::metrics::Metric;
use pulsegate::time::Moment;

use super::client::{Client, Heard};
use super::coverage::Coverage;
use super::device::{Belief, Connection, Device, Inflight, Keeps};
use super::ledger::{Arrival, GROUP, Message, Subscription};
use crate::certificates::Certificates;
use crate::gateway::{Build, Gateway, ImageHead};
use crate::network::{Ended, SocketId};

const TOPICS: u32 = 6;
pub const KEEP_ALIVE: Duration = Duration::from_mins(10);
/// How long a session is kept by devices that want that for a while.
pub const FOR_A_WHILE: Duration = Duration::from_mins(5);
/// By so much a session may end later than it should: ticks, turns, and loops that are late.
const LATE: Duration = Duration::from_mins(2);
/// Messages that wait for their acknowledgement at a time.
const INFLIGHT: usize = 4;

/// One run. Rates are "one in so many"; 0: never.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub seed: u64,
    pub devices: usize,
    /// So many of them speak with each other and with nobody else: what a message costs must not grow with the world.
    pub neighbourhood: usize,
    pub time: Duration,
    /// A step of the clock lasts up to this.
    pub step: Duration,
    pub act_every: Duration,
    pub split: u32,
    pub late: u32,
    pub backlog: u32,
    pub check_every: u64,
    pub uplink_length: usize,
    pub build: Build,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Connect(usize),
    Act(usize, u32),
    Send(usize, u32),
}

pub struct World {
    plan: Plan,
    gateway: Gateway,
    random: fastrand::Rng,
    devices: Vec<Device>,
    /// Whose a socket is.
    owners: Vec<usize>,
    messages: Vec<Message>,
    neighbourhoods: Vec<Neighbourhood>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    /// Numbers all that happens, in its order.
    serial: u64,
    backbone_stops_until: Moment,
    pub coverage: Coverage,
}

/// Devices that speak with each other.
#[derive(Clone, Default)]
struct Neighbourhood {
    /// The latest value of each retained topic that its owner knows to be held.
    values: BTreeMap<Rc<str>, u32>,
    /// When the session of a member of the group ended last: what it had been given under QoS 2 may be lost with it.
    group_left: u64,
}

fn limits(plan: &Plan) -> Limits {
    Limits {
        uplink_length: plan.uplink_length,
        outbox_bytes: 1 << 20,
        session_inflight: 8,
        session_messages: 100_000,
        retained_messages: 8 * plan.devices + 8,
        session_bytes: 64 << 20,
        sessions: 8 * plan.devices as u32 + 8,
        pool_bytes: 4 << 30,
        ..Limits::default()
    }
}

fn settings(plan: &Plan, certificates: &Certificates) -> Arc<[ListenerSettings]> {
    let open = || vec!["#".to_owned()];
    let mqtt = Mqtt {
        publish: open(),
        subscribe: open(),
        uplink: vec!["t/+/0".to_owned(), "r/#".to_owned()],
        ..Mqtt::default()
    };
    let listener = Listener {
        name: "simulated".into(),
        listen: ([127, 0, 0, 1], 0).into(),
        shares: None,
        alpn: None,
        protocol: Protocol::Mqtt(mqtt),
        transport: config::Transport::Tls,
        proxy_protocol: Vec::new(),
        tls: config::Tls::default(),
        heartbeat: Heartbeat::default(),
        identity: Identity { from: IdentityFrom::ClientId, authenticators: Vec::new() },
        rates: config::Rates::default(),
    };
    [ListenerSettings::new(ListenerId(0), &listener, &limits(plan), certificates.server.clone())].into()
}

impl World {
    pub fn new(plan: Plan, certificates: &Certificates) -> Self {
        let mut random = fastrand::Rng::with_seed(plan.seed);
        let gateway = Gateway::new(plan.build, &settings(&plan, certificates), &limits(&plan), random.u64(..));
        let new_device = |number| Device::new(number, number / plan.neighbourhood, &mut random);
        let devices = (0..plan.devices).map(new_device).collect();
        let neighbourhoods = vec![Neighbourhood::default(); plan.devices.div_ceil(plan.neighbourhood)];
        let mut world = Self {
            gateway,
            random,
            devices,
            owners: Vec::new(),
            messages: Vec::new(),
            neighbourhoods,
            events: BinaryHeap::new(),
            serial: 0,
            backbone_stops_until: Moment::default(),
            coverage: Coverage::default(),
            plan,
        };
        for device in 0..plan.devices {
            let after = world.within(plan.time / 10);
            world.later(after, Event::Connect(device));
        }
        world
    }

    /// The whole run: everything goes wrong, then calm, then all come back and get what is theirs.
    pub fn run(mut self) -> Coverage {
        let end = self.gateway.now.plus(self.plan.time);
        while self.gateway.now < end {
            self.step();
        }
        self.gateway.calm_down();
        self.backbone_stops_until = self.gateway.now;
        // Those that fell silent are found out, and sessions that end have ended.
        let rest = self.gateway.now.plus(KEEP_ALIVE * 2 + LATE);
        while self.gateway.now < rest {
            self.step();
        }
        let (mut least, mut idle) = (usize::MAX, 0);
        while idle < 2_000 {
            self.step();
            idle += 1;
            let owed = self.owed();
            if owed < least {
                (least, idle) = (owed, 0);
            }
            if owed == 0 && idle > 50 {
                break;
            }
        }
        self.audit();
        self.shut_down();
        self.coverage
    }

    /// The neighbourhood of a device.
    fn around(&mut self, number: usize) -> &mut Neighbourhood {
        &mut self.neighbourhoods[number / self.plan.neighbourhood]
    }

    /// Everybody in it.
    fn neighbours(&self, number: usize) -> Range<usize> {
        let first = number - number % self.plan.neighbourhood;
        first..self.devices.len().min(first.saturating_add(self.plan.neighbourhood))
    }

    fn within(&mut self, time: Duration) -> Duration {
        Duration::from_micros(self.random.u64(..=time.as_micros() as u64))
    }

    fn one_in(&mut self, many: u32) -> bool {
        many > 0 && !self.gateway.is_calm && self.random.u32(..many) == 0
    }

    fn later(&mut self, after: Duration, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((self.gateway.now.plus(after).micros(), self.serial, event)));
    }

    fn next(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    // --- Time -------------------------------------------------------------------------------------------------------

    fn step(&mut self) {
        self.coverage.steps += 1;
        let length = self.within(self.plan.step);
        self.gateway.now = self.gateway.now.plus(length);
        if self.one_in(self.plan.late) {
            self.gateway.delay_a_worker(Duration::from_secs(20));
        }
        if self.one_in(self.plan.backlog) {
            let stop = self.within(Duration::from_secs(20));
            self.backbone_stops_until = self.gateway.now.plus(stop);
        }
        while let Some(&Reverse((at, _, event))) = self.events.peek()
            && at <= self.gateway.now.micros()
        {
            self.events.pop();
            self.handle(event);
        }
        let stop = self.gateway.draw_stop();
        self.gateway.turns(stop);
        self.gateway.moved.clear();
        if self.gateway.now >= self.backbone_stops_until {
            self.backbone();
        }
        for socket in self.gateway.network.take_dirty() {
            self.hear(socket);
        }
        if self.coverage.steps.is_multiple_of(self.plan.check_every) {
            self.gateway.check_invariants();
        }
    }

    fn backbone(&mut self) {
        for worker in 0..self.gateway.workers() {
            while let Some(event) = self.gateway.take_up(worker) {
                if let WorkerEvent::Message(message) = event
                    && let Some(receipt) = message.receipt
                {
                    self.gateway.command(worker, WorkerCommand::MessageSettled { receipt, accepted: true });
                }
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Connect(device) => self.connect(device),
            Event::Act(device, connects) => {
                if self.devices[device].connects == connects && self.devices[device].connection.is_some() {
                    self.act(device);
                    let after = self.within(self.plan.act_every * 2);
                    self.later(after, Event::Act(device, connects));
                }
            }
            Event::Send(device, connects) => {
                if self.devices[device].connects == connects
                    && let Some(connection) = &mut self.devices[device].connection
                {
                    connection.is_sending = false;
                    self.pump(device);
                }
            }
        }
    }

    // --- What devices do --------------------------------------------------------------------------------------------

    fn connect(&mut self, number: usize) {
        if self.devices[number].connection.is_some() {
            return;
        }
        self.coverage.connects += 1;
        let now = self.gateway.now;
        let is_new = self.devices[number].version == Version::V5;
        let clean = self.devices[number].keeps == Keeps::Nothing || (is_new && self.one_in(20));
        // The will of the connection before may still be published, by this one's taking it over.
        let will = (self.random.u8(..3) == 0 && !self.gateway.is_calm)
            .then(|| self.publication(number, self.devices[number].will_topic(), QoS::AtLeastOnce, false));
        let socket = self.gateway.network.connect(now);
        self.owners.push(number);
        assert_eq!(self.owners.len() - 1, socket as usize);
        let device = &mut self.devices[number];
        device.connects += 1;
        device.will = will;
        if let Some((forgotten, at)) = device.goodbye.take()
            && now.since(at) < LATE
        {
            // This connection may take over the one before, whose DISCONNECT is not read yet.
            self.messages[forgotten as usize].is_forbidden = false;
        }
        let (client, server) = Client::new(device.version, &mut self.random);
        let plain = device.connect_packet(clean, will);
        let head = ImageHead { listener: ListenerId(0), naming: 5, interval: 0, device: &device.name };
        let bytes = self.gateway.image(head, &plain, &[], &server);
        let connection =
            Connection { socket, client, is_welcomed: false, clean_start: clean, is_sending: false, said_at: now };
        device.connection = Some(connection);
        let (name, connects) = (device.name.clone(), device.connects);
        self.gateway.arrive(&name, bytes, socket);
        let after = self.within(self.plan.act_every);
        self.later(after, Event::Act(number, connects));
    }

    /// A message with a number of its own.
    fn publication(&mut self, publisher: usize, topic: String, qos: QoS, retain: bool) -> u32 {
        let sent = self.next();
        self.messages.push(Message {
            topic: topic.into(),
            qos,
            publisher,
            sent,
            is_resent: false,
            is_acknowledged: false,
            acknowledged: 0,
            retain,
            is_forbidden: false,
            members: BTreeSet::new(),
        });
        self.coverage.published += 1;
        self.messages.len() as u32 - 1
    }

    fn act(&mut self, number: usize) {
        let device = &self.devices[number];
        let connection = device.connection.as_ref().expect("asked before");
        if !connection.is_welcomed {
            // Its greeting was lost with a connection that the gateway has ended, or is late.
            return;
        }
        if self.gateway.is_calm {
            return self.ping(number);
        }
        match self.random.u8(..100) {
            0..55 => self.publish(number),
            55..70 => self.subscribe(number),
            70..76 => self.unsubscribe(number),
            76..86 => self.ping(number),
            86..91 => self.say_goodbye(number),
            91..96 => self.lose(number, true),
            _ => self.lose(number, false),
        }
    }

    fn ping(&mut self, number: usize) {
        let connection = self.devices[number].connection.as_mut().expect("asked before");
        connection.client.say(&Packet::Pingreq);
        self.pump(number);
    }

    fn publish(&mut self, number: usize) {
        if self.devices[number].inflight.len() >= INFLIGHT {
            return self.ping(number);
        }
        let qos = QoS::try_from(self.random.u8(..3)).expect("below three");
        let here = self.devices[number].neighbourhood;
        let (topic, retain) = match self.random.u8(..10) {
            0..6 => (format!("t/{here}/{}", self.random.u32(..TOPICS)), false),
            6..8 => (format!("s/{here}/{}", self.random.u32(..TOPICS)), false),
            _ => (format!("r/{here}/{number}"), true),
        };
        if retain && qos == QoS::AtMostOnce {
            // It takes the place of the value before, and may be lost on its way to each subscriber.
            self.around(number).values.remove(&*topic);
            let neighbours = self.neighbours(number);
            for device in &mut self.devices[neighbours] {
                device.account.owed_values.remove(&*topic);
            }
        }
        let message = self.publication(number, topic, qos, retain);
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { self.devices[number].take_id() };
        if packet_id != 0 {
            self.devices[number].inflight.push(Inflight { packet_id, number: message, is_released: false });
        }
        self.say_publish(number, message, packet_id, false);
        self.pump(number);
    }

    fn say_publish(&mut self, number: usize, message: u32, packet_id: u16, dup: bool) {
        let Message { topic, qos, retain, .. } = &self.messages[message as usize];
        let payload = message.to_be_bytes();
        let publish = Publish {
            dup,
            qos: *qos,
            retain: *retain,
            topic,
            packet_id,
            properties: Properties::EMPTY,
            payload: &payload,
        };
        let connection = self.devices[number].connection.as_mut().expect("whoever publishes is connected");
        connection.client.say(&Packet::Publish(publish));
    }

    fn subscribe(&mut self, number: usize) {
        let here = self.devices[number].neighbourhood;
        let filter = match self.random.u8(..10) {
            0..5 => format!("t/{here}/{}", self.random.u32(..TOPICS)),
            5 => format!("t/{here}/#"),
            6 => format!("w/{here}/+"),
            7 => format!("r/{here}/{}", self.random.usize(self.neighbours(number))),
            8 => format!("r/{here}/+"),
            // A member without a session that is lost without a trace takes messages with it until it is missed.
            _ if self.devices[number].keeps == Keeps::Nothing => format!("r/{here}/+"),
            _ => format!("{GROUP}s/{here}/#"),
        };
        // A member of the group at QoS 0 loses, with its connection, what nobody else gets: then nothing would be owed.
        let lowest = u8::from(filter.starts_with(GROUP));
        let qos = QoS::try_from(self.random.u8(lowest..3)).expect("below three");
        let asked = self.next();
        let device = &mut self.devices[number];
        if device.account.subscriptions.contains_key(&filter) {
            return;
        }
        let packet_id = device.take_id();
        let subscription = Subscription { qos, packet_id, asked, confirmed: None, ending: None };
        device.account.subscriptions.insert(filter.clone(), subscription);
        if filter.starts_with("r/") && qos > QoS::AtMostOnce {
            let matching = |topic: &str| filter.ends_with('+') || filter == topic;
            let held = self.neighbourhoods[here].values.iter().filter(|(topic, _)| matching(topic));
            device.account.owed_values.extend(held.map(|(topic, &value)| (topic.clone(), value)));
        }
        let mut filters = Vec::new();
        Subscribe::put_filter(&filter, Options::plain(qos), &mut filters);
        let connection = device.connection.as_mut().expect("asked before");
        connection.client.say(&Packet::Subscribe(Subscribe::new(packet_id, Properties::EMPTY, &filters)));
        self.pump(number);
    }

    fn unsubscribe(&mut self, number: usize) {
        let device = &mut self.devices[number];
        let is_settled = |one: &&String| {
            let subscription = &device.account.subscriptions[*one];
            subscription.confirmed.is_some() && subscription.ending.is_none()
        };
        let Some(filter) = device.account.subscriptions.keys().find(is_settled).cloned() else { return };
        let packet_id = device.take_id();
        device.account.note_unsubscribing(&filter, packet_id, &self.messages);
        if filter.starts_with(GROUP) {
            self.neighbourhoods[device.neighbourhood].group_left = self.serial;
        }
        let mut filters = Vec::new();
        Unsubscribe::put_filter(&filter, &mut filters);
        let connection = device.connection.as_mut().expect("asked before");
        connection.client.say(&Packet::Unsubscribe(Unsubscribe::new(packet_id, Properties::EMPTY, &filters)));
        self.pump(number);
    }

    /// DISCONNECT, and the end of the stream behind it: the will is forgotten.
    fn say_goodbye(&mut self, number: usize) {
        let device = &mut self.devices[number];
        let connection = device.connection.as_mut().expect("asked before");
        if connection.is_sending {
            return;
        }
        let disconnect = Disconnect { reason: Reason::SUCCESS, properties: Properties::EMPTY };
        connection.client.say(&Packet::Disconnect(disconnect));
        let last = std::mem::take(&mut connection.client.out);
        let socket = connection.socket;
        if let Some(will) = device.will.take() {
            self.messages[will as usize].is_forbidden = true;
            device.goodbye = Some((will, self.gateway.now));
        }
        self.gateway.network.send(socket, &last, self.gateway.now);
        self.gateway.network.end(socket, Ended::InOrder);
        self.go_away(number);
    }

    /// The connection is lost: with a reset, or without a trace.
    fn lose(&mut self, number: usize, is_told: bool) {
        let socket = self.devices[number].connection.as_ref().expect("asked before").socket;
        if is_told {
            self.gateway.network.end(socket, Ended::ByReset);
        }
        self.go_away(number);
    }

    fn go_away(&mut self, number: usize) {
        let device = &mut self.devices[number];
        let connection = device.connection.take().expect("asked before");
        device.last_alive = connection.said_at;
        device.account.forget_unsure_values();
        if let Some(will) = device.will.take() {
            // It is said when the gateway notices; whoever had subscribed before that surely gets it.
            let sent = self.next();
            let message = &mut self.messages[will as usize];
            message.sent = sent;
            self.coverage.wills += 1;
            self.note_acknowledged(will);
        }
        if connection.is_welcomed {
            let device = &mut self.devices[number];
            if device.keeps == Keeps::Nothing {
                self.end_session(number);
            }
        }
        if !self.gateway.is_calm || self.devices[number].belief != Belief::None {
            let after = self.within(Duration::from_mins(8));
            self.later(after, Event::Connect(number));
        }
    }

    /// Sends what a device has to say: at once, or in pieces.
    fn pump(&mut self, number: usize) {
        let (now, split) = (self.gateway.now, self.one_in(self.plan.split));
        let device = &mut self.devices[number];
        let connection = device.connection.as_mut().expect("whoever speaks is connected");
        if connection.is_sending || connection.client.out.is_empty() {
            return;
        }
        let mut count = connection.client.out.len();
        if split {
            count = self.random.usize(1..=count);
        }
        let piece: Vec<u8> = connection.client.out.drain(..count).collect();
        connection.said_at = now;
        let (socket, connects) = (connection.socket, device.connects);
        if !connection.client.out.is_empty() {
            connection.is_sending = true;
            let after = Duration::from_micros(self.random.u64(..500_000));
            self.later(after, Event::Send(number, connects));
        }
        self.gateway.network.send(socket, &piece, now);
    }

    // --- What devices hear ------------------------------------------------------------------------------------------

    fn hear(&mut self, socket: SocketId) {
        let number = self.owners[socket as usize];
        let is_its = |connection: &Connection| connection.socket == socket;
        if !self.devices[number].connection.as_ref().is_some_and(is_its) {
            return;
        }
        let (bytes, ended) = self.gateway.network.take(socket);
        let connection = self.devices[number].connection.as_mut().expect("asked before");
        for heard in connection.client.hear(&bytes) {
            self.take(number, heard);
        }
        self.pump(number);
        if ended != Ended::StillOpen {
            let silence = self.gateway.now.since(self.devices[number].connection.as_ref().expect("there").said_at);
            assert!(silence >= KEEP_ALIVE, "device {number} was ended for no reason of its own, {ended:?}");
            self.go_away(number);
        }
    }

    fn take(&mut self, number: usize, heard: Heard) {
        match heard {
            Heard::Connack { session_present, is_accepted } => {
                assert!(is_accepted, "device {number} was refused");
                self.welcome(number, session_present);
            }
            Heard::Publish { dup, qos, retain, topic, packet_id, number: message } => {
                self.receive(number, &Arrival { number: message, topic: &topic, qos, dup, retain }, packet_id);
            }
            Heard::Puback { packet_id, is_taken } => {
                let message = self.devices[number].finish(packet_id);
                assert!(is_taken, "device {number}: message {message} was refused");
                self.note_acknowledged(message);
            }
            Heard::Pubrec { packet_id, is_taken } => {
                assert!(is_taken, "device {number}: packet {packet_id} was refused");
                let device = &mut self.devices[number];
                let one = device.inflight.iter_mut().find(|one| one.packet_id == packet_id);
                let one = one.unwrap_or_else(|| panic!("device {number}: PUBREC {packet_id} for nothing"));
                let message = one.number;
                one.is_released = true;
                device.say_ack(Packet::Pubrel, packet_id);
                self.note_acknowledged(message);
            }
            Heard::Pubcomp(packet_id) => drop(self.devices[number].finish(packet_id)),
            Heard::Pubrel(packet_id) => {
                self.devices[number].open_qos_2.remove(&packet_id);
                self.devices[number].say_ack(Packet::Pubcomp, packet_id);
            }
            Heard::Suback { packet_id, is_granted } => {
                assert!(is_granted, "device {number}: a subscription was refused");
                let at = self.next();
                let account = &mut self.devices[number].account;
                for subscription in account.subscriptions.values_mut() {
                    if subscription.packet_id == packet_id && subscription.confirmed.is_none() {
                        subscription.confirmed = Some(at);
                    }
                }
            }
            Heard::Unsuback(packet_id) => {
                let at = self.next();
                self.devices[number].account.note_unsubscribed(packet_id, at);
            }
            Heard::Disconnect(reason) => {
                let silence = self.gateway.now.since(self.devices[number].connection.as_ref().expect("there").said_at);
                assert!(silence >= KEEP_ALIVE, "device {number} was told to go: {reason:#04x}");
            }
        }
    }

    fn welcome(&mut self, number: usize, session_present: bool) {
        let now = self.gateway.now;
        let at = self.next();
        let device = &mut self.devices[number];
        let connection = device.connection.as_mut().expect("whoever hears is connected");
        assert!(!std::mem::replace(&mut connection.is_welcomed, true), "device {number} was greeted twice");
        let expected = if connection.clean_start { Some(false) } else { device.expects_session(now) };
        assert!(
            expected.is_none_or(|expected| expected == session_present),
            "device {number} ({:?}, {:?}): session present {session_present}, away since {:?}, now {now:?}",
            device.keeps,
            device.belief,
            device.last_alive,
        );
        device.belief = Belief::Kept;
        if !session_present {
            self.end_session(number);
            let device = &mut self.devices[number];
            device.account.begun = at;
            device.belief = Belief::Kept;
            return;
        }
        self.coverage.resumed += 1;
        for one in self.devices[number].inflight.clone() {
            if one.is_released {
                self.devices[number].say_ack(Packet::Pubrel, one.packet_id);
            } else {
                self.messages[one.number as usize].is_resent = true;
                self.say_publish(number, one.number, one.packet_id, true);
            }
        }
        self.devices[number].forget_unanswered();
    }

    fn end_session(&mut self, number: usize) {
        let at = self.next();
        let device = &mut self.devices[number];
        if device.account.subscriptions.keys().any(|filter| filter.starts_with(GROUP)) {
            self.neighbourhoods[device.neighbourhood].group_left = at;
        }
        device.end_session();
    }

    fn receive(&mut self, number: usize, arrival: &Arrival, packet_id: u16) {
        let device = &mut self.devices[number];
        if arrival.qos == QoS::ExactlyOnce {
            device.say_ack(Packet::Pubrec, packet_id);
            if !device.open_qos_2.insert(packet_id) {
                assert!(arrival.dup, "device {number}: packet {packet_id} came again and does not say so");
                return;
            }
        }
        if arrival.qos == QoS::AtLeastOnce {
            device.say_ack(Packet::Puback, packet_id);
        }
        self.coverage.received += 1;
        device.account.receive(number, arrival, &mut self.messages);
    }

    /// The gateway holds a message: who subscribed before it was sent is owed it.
    fn note_acknowledged(&mut self, number: u32) {
        let at = self.next();
        let message = &mut self.messages[number as usize];
        if std::mem::replace(&mut message.is_acknowledged, true) {
            return;
        }
        message.acknowledged = at;
        self.coverage.acknowledged += 1;
        let (publisher, topic) = (message.publisher, message.topic.clone());
        if message.retain {
            self.around(publisher).values.insert(topic.clone(), number);
        }
        if topic.starts_with("s/") {
            return;
        }
        let (message, neighbours) = (&self.messages[number as usize], self.neighbours(publisher));
        self.devices[neighbours].iter_mut().for_each(|device| device.account.note_acknowledged(number, message));
    }

    // --- The end ----------------------------------------------------------------------------------------------------

    fn owed(&self) -> usize {
        let owed = |device: &Device| {
            let account = &device.account;
            account.owed.len() + account.owed_values.len() + device.inflight.len() + device.open_qos_2.len()
        };
        self.devices.iter().map(owed).sum()
    }

    fn audit(&mut self) {
        self.gateway.check_invariants();
        for (number, device) in self.devices.iter().enumerate() {
            let account = &device.account;
            assert!(account.owed.is_empty(), "device {number} never got {:?}", account.owed);
            assert!(account.owed_values.is_empty(), "device {number} was never told {:?}", account.owed_values);
            assert!(device.inflight.is_empty(), "device {number}: a message was never acknowledged");
            assert!(device.open_qos_2.is_empty(), "device {number}: {:?} were never released", device.open_qos_2);
        }
        self.audit_group();
        for dropped in [Metric::DroppedQueueFull, Metric::DroppedTooLarge, Metric::DroppedUnauthorized] {
            assert_eq!(self.gateway.value(dropped), 0, "{dropped:?}");
        }
        self.coverage.redispatched = self.gateway.value(Metric::Redispatched);
        self.coverage.turns = self.gateway.value(Metric::Turns);
        self.coverage.idle_turns = self.gateway.value(Metric::IdleTurns);
        self.coverage.expired_sessions = self.gateway.value(Metric::SessionsExpired);
        self.coverage.values = self.neighbourhoods.iter().map(|one| one.values.len() as u64).sum();
    }

    /// Some member got each message, whichever sessions have ended meanwhile: what they had went to others. But for QoS 2, which may be
    /// with whoever was sent it [v5 MQTT-4.8.2-5].
    fn audit_group(&mut self) {
        for (number, message) in self.messages.iter().enumerate() {
            if !message.topic.starts_with("s/") || !message.is_acknowledged || message.qos == QoS::AtMostOnce {
                continue;
            }
            let is_member = |device: &Device| device.account.is_member_for(message);
            let group_left = self.neighbourhoods[message.publisher / self.plan.neighbourhood].group_left;
            let neighbours = self.neighbours(message.publisher);
            let may_be_lost = message.qos == QoS::ExactlyOnce && message.sent <= group_left;
            if !may_be_lost && self.devices[neighbours].iter().any(is_member) {
                self.coverage.shared += 1;
                assert!(!message.members.is_empty(), "message {number} reached no member of the group");
            }
        }
    }

    /// The gateway comes down in order: every worker ends by itself, and every socket is closed.
    fn shut_down(&mut self) {
        let window = Duration::from_secs(10);
        for worker in 0..self.gateway.workers() {
            self.gateway.command(worker, WorkerCommand::Shutdown { window });
        }
        let deadline = self.gateway.now.plus(window + Duration::from_secs(10));
        while !self.gateway.is_over() {
            assert!(self.gateway.now < deadline, "the gateway does not end");
            self.gateway.now = self.gateway.now.plus(Duration::from_millis(50));
            self.gateway.turns(None);
            self.backbone();
            for socket in self.gateway.network.take_dirty() {
                let (_, ended) = self.gateway.network.take(socket);
                if ended != Ended::StillOpen {
                    self.gateway.network.end(socket, Ended::InOrder);
                }
            }
        }
    }
}

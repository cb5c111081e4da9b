//! Whole shards' sessions under a model that knows what each subscriber must get and must not: random devices that come,
//! go, are taken over and lose their connections at any step; messages of every quality; wills; late and split deliveries
//! between shards. A seed replays a run.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::codec::mqtt::{self, Options, Packet, QoS};
use crate::link::{CloseReason, Refusal};
use crate::time::{Moment, TICK_MICROS};

const WORKERS: u16 = 3;
const DEVICES: usize = 12;
const TOPICS: [&str; 4] = ["a", "a/b", "c", "w"];
const FILTERS: [&str; 5] = ["a", "a/#", "+", "+/b", "#"];

/// One device as it sees itself.
struct Device {
    name: String,
    /// The slot of its connection in its home, while it is connected.
    connection: Option<u32>,
    /// Its session survives a connection.
    is_kept: bool,
    /// What it has subscribed to, and the QoS.
    subscriptions: BTreeMap<&'static str, u8>,
    /// By message: how often it was received (QoS 2 by its own rule: once for each packet identifier that is open).
    received: HashMap<u32, u32>,
    /// Messages whose QoS and subscription say that they must have come by the end.
    owed: BTreeSet<u32>,
    /// Messages that nothing had asked for when they were published: they must not come.
    open_qos_2: BTreeSet<u16>,
    /// Messages that may have been lost with a session that was not kept.
    excused: BTreeSet<u32>,
    has_will: bool,
}

struct World {
    random: fastrand::Rng,
    now: Moment,
    home: Home,
    shards: Vec<Sessions>,
    /// Between shards, by sender and receiver: in order, but late.
    ways: HashMap<(u16, u16), VecDeque<Peer>>,
    devices: Vec<Device>,
    /// By message: which devices may receive it, and the QoS at most.
    wanted: HashMap<u32, HashMap<usize, u8>>,
    messages: u32,
    slots: Vec<u32>,
    counters: Counters,
}

impl World {
    fn new(seed: u64) -> Self {
        let home = Home::new([9; 16], WORKERS);
        let exchange = Arc::new(Exchange::new(WORKERS));
        let bounds = Bounds {
            away: 100,
            inflight: 3,
            messages: 1_000_000,
            bytes: 1 << 30,
            subscriptions: 100,
            retained_messages: 100,
            retained_bytes: 1 << 20,
        };
        let shard = |worker| {
            let exchange = Arc::clone(&exchange);
            Sessions::new(Setup { worker: WorkerId(worker), home, exchange, bounds, key: seed }, Tick(0))
        };
        let device = |number| Device {
            name: format!("device-{number}"),
            connection: None,
            is_kept: number % 3 > 0,
            subscriptions: BTreeMap::new(),
            received: HashMap::new(),
            owed: BTreeSet::new(),
            open_qos_2: BTreeSet::new(),
            excused: BTreeSet::new(),
            has_will: false,
        };
        Self {
            random: fastrand::Rng::with_seed(seed),
            now: Moment::from_micros(TICK_MICROS),
            home,
            shards: (0..WORKERS).map(shard).collect(),
            ways: HashMap::new(),
            devices: (0..DEVICES).map(device).collect(),
            wanted: HashMap::new(),
            messages: 0,
            slots: vec![0; usize::from(WORKERS)],
            counters: Counters::new(CloseReason::COUNT, Refusal::COUNT),
        }
    }

    fn worker(&self, device: usize) -> usize {
        self.home.of(&self.devices[device].name).index()
    }

    // --- What devices do --------------------------------------------------------------------------------------------

    fn connect(&mut self, number: usize) {
        if self.devices[number].connection.is_some() {
            // Taken over: the old connection ends first.
            self.disconnect(number, true);
        }
        let worker = self.worker(number);
        self.slots[worker] += 1;
        let connection = self.slots[worker];
        let has_will = self.random.u8(..4) == 0;
        let will = has_will.then(|| {
            let publication = self.publication("w", 1, Some(number));
            Box::new(Will { publication, expiry_s: None, delay_s: 0 })
        });
        let device = &mut self.devices[number];
        let profile = Profile {
            version: mqtt::Version::V5,
            listener: ListenerId(0),
            keep_alive_s: 0,
            expiry_s: if device.is_kept { u32::MAX } else { 0 },
            receive_maximum: 2,
            packet_maximum: u32::MAX,
            alias_maximum: 0,
        };
        let arrival = Arrival { connection, device: &device.name, clean_start: !device.is_kept, profile, will };
        let attached = self.shards[worker].attach(arrival, self.now);
        assert!(device.is_kept || !attached.was_present);
        assert!(attached.bequest.is_none(), "no will has a delay here");
        device.connection = Some(connection);
        device.has_will = has_will;
        if !device.is_kept {
            device.subscriptions.clear();
            device.open_qos_2.clear();
        }
    }

    fn disconnect(&mut self, number: usize, with_will: bool) {
        let worker = self.worker(number);
        let device = &mut self.devices[number];
        let Some(connection) = device.connection.take() else { return };
        let detached = self.shards[worker].detach(connection, &device.name, with_will, self.now, &mut self.counters);
        assert_eq!(detached.bequest.is_some(), with_will && device.has_will, "a will on every end but the polite one");
        if !device.is_kept {
            // Whatever was on its way is gone with the session.
            device.excused.extend(std::mem::take(&mut device.owed));
            device.subscriptions.clear();
        }
        if let Some(bequest) = detached.bequest {
            let message = message_of(&bequest.publication.payload);
            self.note_wanted(message, "w", 1);
            self.shards[worker].publish(bequest.publication, self.now, &mut self.counters);
        }
    }

    fn subscribe(&mut self, number: usize) {
        let filter = FILTERS[self.random.usize(..FILTERS.len())];
        let qos = self.random.u8(..3);
        let worker = self.worker(number);
        let Some(session) = self.devices[number].connection.and_then(|slot| self.shards[worker].of(slot)) else {
            return;
        };
        // Whether a message that is on its way meets the subscription is not told by anybody: it waits.
        self.settle();
        let options = Options::plain(QoS::try_from(qos).unwrap());
        assert_eq!(self.shards[worker].subscribe(session, filter, options, 0, self.now), Granted::Yes);
        self.devices[number].subscriptions.insert(filter, qos);
    }

    fn unsubscribe(&mut self, number: usize) {
        let filter = FILTERS[self.random.usize(..FILTERS.len())];
        let worker = self.worker(number);
        let Some(session) = self.devices[number].connection.and_then(|slot| self.shards[worker].of(slot)) else {
            return;
        };
        self.settle();
        let known = self.devices[number].subscriptions.remove(filter).is_some();
        let expected = if known { Unsubscribed::Yes } else { Unsubscribed::NoSuch };
        assert_eq!(self.shards[worker].unsubscribe(session, filter), expected);
    }

    fn publish(&mut self, number: usize) {
        let worker = self.worker(number);
        if self.devices[number].connection.is_none() {
            return;
        }
        let topic = TOPICS[self.random.usize(..TOPICS.len())];
        let qos = self.random.u8(..3);
        let publication = self.publication(topic, qos, None);
        self.note_wanted(message_of(&publication.payload), topic, qos);
        self.shards[worker].publish(publication, self.now, &mut self.counters);
    }

    /// A message with a number of its own.
    fn publication(&mut self, topic: &str, qos: u8, _of: Option<usize>) -> Publication {
        self.messages += 1;
        Publication {
            topic: topic.into(),
            payload: Bytes::from(self.messages.to_be_bytes().to_vec()),
            qos,
            retain: false,
            properties: Box::default(),
            expires: None,
            stamp: 0,
            publisher: None,
        }
    }

    /// Whoever has subscribed now is owed the message, if both sides want it acknowledged.
    fn note_wanted(&mut self, message: u32, topic: &str, qos: u8) {
        let mut wanted = HashMap::new();
        for (number, device) in self.devices.iter_mut().enumerate() {
            let matching = device.subscriptions.iter().filter(|(filter, _)| mqtt::topic::matches(filter, topic));
            let Some(granted) = matching.map(|(_, granted)| *granted).max() else { continue };
            let granted = granted.min(qos);
            wanted.insert(number, granted);
            if granted > 0 {
                device.owed.insert(message);
            }
        }
        self.wanted.insert(message, wanted);
    }

    // --- What happens meanwhile -------------------------------------------------------------------------------------

    /// Letters of one shard reach its devices; some devices lose their connection in the middle of it.
    fn deliver(&mut self, worker: usize) {
        self.shards[worker].begin_turn();
        for run in self.shards[worker].next_deliveries(3) {
            let (session, generation) = (run.session, run.generation);
            let Some(connection) = self.shards[worker].connection_of(session, generation) else {
                self.shards[worker].keep(run, self.now, &mut self.counters);
                continue;
            };
            let mut out = Vec::new();
            let mut desk = Desk {
                out: &mut out,
                unsent: 0,
                turn_bytes: self.random.usize(1..200),
                now: self.now,
                counters: &mut self.counters,
            };
            self.shards[worker].write(session, run.letters, &mut desk);
            let is_it = |device: &&mut Device| device.connection == Some(connection);
            let workers: Vec<usize> = (0..DEVICES).map(|number| self.worker(number)).collect();
            let (number, _) = self
                .devices
                .iter_mut()
                .enumerate()
                .filter(|(number, _)| workers[*number] == worker)
                .find(|(_, device)| is_it(device))
                .expect("who is written to is connected");
            self.receive(number, &out);
        }
    }

    /// The device takes what was sent, as far as its connection lives, and acknowledges it.
    fn receive(&mut self, number: usize, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((packet, length)) = mqtt::decode(rest, Some(mqtt::Version::V5), 1 << 20).unwrap() {
            rest = &rest[length..];
            if self.random.u8(..20) == 0 {
                return self.disconnect(number, true);
            }
            let worker = self.worker(number);
            let session = self.devices[number].connection.and_then(|slot| self.shards[worker].of(slot)).unwrap();
            let answers = self.random.u8(..20) > 0;
            match packet {
                Packet::Publish(publish) => {
                    self.take(number, &publish);
                    let shard = &mut self.shards[worker];
                    match publish.qos {
                        QoS::AtLeastOnce if answers => {
                            assert!(shard.handle_puback(session, publish.packet_id, |_| {}));
                        }
                        QoS::ExactlyOnce if answers => {
                            assert!(shard.handle_pubrec(session, publish.packet_id, false, |_| {}));
                            self.devices[number].open_qos_2.remove(&publish.packet_id);
                            assert!(shard.handle_pubcomp(session, publish.packet_id));
                        }
                        // An answer that is lost, is lost with the connection.
                        _ if publish.qos != QoS::AtMostOnce => return self.disconnect(number, true),
                        _ => {}
                    }
                }
                Packet::Pubrel(ack) => {
                    self.devices[number].open_qos_2.remove(&ack.packet_id);
                    self.shards[worker].handle_pubcomp(session, ack.packet_id);
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(rest.is_empty());
    }

    fn take(&mut self, number: usize, publish: &mqtt::Publish) {
        let message = message_of(publish.payload);
        let granted = self.wanted[&message].get(&number);
        let device = &mut self.devices[number];
        assert_eq!(granted.copied(), Some(publish.qos as u8), "{} got message {message}", device.name);
        if publish.qos == QoS::ExactlyOnce && !device.open_qos_2.insert(publish.packet_id) {
            // The same message again: the device has it.
            assert!(publish.dup);
            return;
        }
        let count = device.received.entry(message).or_insert(0);
        *count += 1;
        assert!(*count == 1 || (publish.dup && publish.qos == QoS::AtLeastOnce), "message {message} came twice");
        device.owed.remove(&message);
    }

    fn carry(&mut self) {
        for from in 0..WORKERS {
            for to in (0..WORKERS).filter(|&to| to != from) {
                let outgoing = self.shards[usize::from(from)].take_outgoing(WorkerId(to));
                self.ways.entry((from, to)).or_default().extend(outgoing);
            }
        }
    }

    fn arrive(&mut self, from: u16, to: u16) {
        let Some(peer) = self.ways.get_mut(&(from, to)).and_then(VecDeque::pop_front) else { return };
        self.shards[usize::from(to)].handle_peer(peer, self.now, &mut self.counters);
    }

    /// Everything that is under way between shards arrives.
    fn settle(&mut self) {
        self.carry();
        for from in 0..WORKERS {
            for to in 0..WORKERS {
                while self.ways.get(&(from, to)).is_some_and(|way| !way.is_empty()) {
                    self.arrive(from, to);
                }
            }
        }
    }

    fn check(&self) {
        for (worker, shard) in self.shards.iter().enumerate() {
            let connected = |slot| {
                (0..DEVICES)
                    .any(|number| self.worker(number) == worker && self.devices[number].connection == Some(slot))
            };
            shard.check_invariants(connected);
        }
    }

    fn step(&mut self) {
        self.now = self.now.plus(Duration::from_millis(self.random.u64(..200)));
        let number = self.random.usize(..DEVICES);
        let worker = self.random.usize(..usize::from(WORKERS));
        match self.random.u8(..40) {
            0..=5 => self.connect(number),
            6 => self.disconnect(number, true),
            7 => self.disconnect(number, false),
            8..=11 => self.subscribe(number),
            12 => self.unsubscribe(number),
            13..=22 => self.publish(number),
            23..=32 => self.deliver(worker),
            33..=35 => self.carry(),
            _ => {
                let (from, to) = (self.random.u16(..WORKERS), self.random.u16(..WORKERS));
                self.arrive(from, to);
            }
        }
        self.check();
    }

    /// All come back and stay, and take what is theirs.
    fn end(&mut self) {
        for _ in 0..10_000 {
            for number in 0..DEVICES {
                if self.devices[number].connection.is_none() {
                    self.connect(number);
                }
            }
            self.settle();
            (0..usize::from(WORKERS)).for_each(|worker| self.deliver(worker));
            let is_over = self.shards.iter().all(|shard| !shard.has_deliveries() && !shard.has_outgoing());
            if is_over && self.devices.iter().all(|device| device.owed.is_empty() && device.connection.is_some()) {
                return self.check();
            }
        }
        let owed: Vec<_> = self.devices.iter().filter(|device| !device.owed.is_empty()).collect();
        panic!("{} never got {:?}", owed[0].name, owed[0].owed);
    }
}

fn message_of(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload.try_into().unwrap())
}

#[test]
fn whoever_subscribed_gets_each_message_and_nobody_else_does() {
    let (mut messages, mut received) = (0, 0);
    for seed in 0..1_000 {
        let mut world = World::new(seed);
        for _ in 0..600 {
            world.step();
        }
        world.end();
        messages += world.messages;
        received += world.devices.iter().flat_map(|device| device.received.values()).sum::<u32>();
    }
    assert!(messages > 10_000 && received > messages, "{messages} messages, {received} received: too little happened");
}

#[test]
fn a_session_is_small() {
    assert!(size_of::<Session>() <= 112);
    let mut world = World::new(1);
    world.connect(1);
    let session = world.shards[world.worker(1)].of(world.devices[1].connection.unwrap()).unwrap();
    let shard = &world.shards[world.worker(1)];
    assert!(shard.all[session as usize].flow.is_none(), "nothing is in flight, and nothing is kept for it");
}

//! Sessions of several shards over a model store that keeps only what was committed: the process ends at any commit, and the
//! next one begins with what there is, with another number of shards. Every message that a publisher was told of reaches every
//! subscriber; at QoS 2 once, and in the order in which they were published.

mod needs;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use bytes::Bytes;

use super::store::{ModelStore, Planted};
use super::*;
use crate::codec::mqtt::{self, Options, QoS};
use crate::link::{CloseReason, Load, Refusal, Stamp};
use crate::time::TICK_MICROS;

const CLIENTS: usize = 5;
const TOPICS: [&str; 3] = ["a", "b", "c"];
/// Each is published to by one client alone.
const KEPT: [&str; CLIENTS] = ["kept/0", "kept/1", "kept/2", "kept/3", "kept/4"];

/// A message on its way from a client.
#[derive(Clone)]
struct Out {
    packet: u16,
    number: u32,
    qos: QoS,
    topic: &'static str,
    /// It went on this connection.
    is_sent: bool,
    /// It went before.
    is_dup: bool,
    /// PUBREC has come.
    is_received: bool,
}

/// A client that keeps its session, and never forgets what it must send again.
#[derive(Default)]
struct Client {
    name: String,
    /// Its shard and slot.
    connection: Option<(usize, ConnectionSlot)>,
    is_greeted: bool,
    was_greeted: bool,
    has_subscribed: bool,
    next_packet: u16,
    out: VecDeque<Out>,
    acknowledged: BTreeSet<u32>,
    /// Messages of QoS 2 whose PUBREL has not come.
    open: HashSet<u16>,
    got: Vec<u32>,
}

/// What was published under a number.
struct Published {
    by: usize,
    topic: &'static str,
    qos: QoS,
    /// Clients that had subscribed by then.
    owed: Vec<usize>,
}

struct World {
    seed: u64,
    random: fastrand::Rng,
    /// The clock on the wall, in milliseconds.
    wall_ms: i64,
    now: Moment,
    store: ModelStore,
    home: Home,
    shards: Vec<Broker>,
    ways: HashMap<(usize, usize), (VecDeque<ShardMessage>, VecDeque<Passed>)>,
    slots: u32,
    /// What the shards have asked of the store, by shard.
    loads: Vec<VecDeque<Load>>,
    /// Between the store and a session; what comes twice came while a piece was read.
    planted: Planted,
    loaded: usize,
    clients: Vec<Client>,
    published: BTreeMap<u32, Published>,
    counters: Counters,
    crashes: u32,
    /// Batches that were committed while nothing was said of the end, and behind which of them the process ends.
    commits: u32,
    crash_behind: Option<u32>,
    /// Whether it is one of a fleet.
    is_of_fleet: bool,
    /// The place of each message in the fleet's stream, the latest one, and how many there are.
    stream: BTreeMap<u32, u64>,
    places: u64,
    /// Requests that are answered.
    requests: Vec<u64>,
}

fn budget<'a>(out: &'a mut Vec<u8>, turn_bytes: usize, now: Moment, counters: &'a mut Counters) -> SendBudget<'a> {
    SendBudget { out, unsent: 0, turn_bytes, now, counters }
}

impl World {
    fn new(seed: u64, planted: Planted) -> Self {
        let clients = (0..CLIENTS).map(|number| Client { name: format!("client {number}"), ..Client::default() });
        let mut world = Self {
            seed,
            random: fastrand::Rng::with_seed(seed),
            wall_ms: 1_700_000_000_000,
            now: Moment::default(),
            store: ModelStore::default(),
            home: Home::new([9; 16], 1),
            shards: Vec::new(),
            ways: HashMap::new(),
            slots: 0,
            loads: Vec::new(),
            planted,
            loaded: 0,
            clients: clients.collect(),
            published: BTreeMap::new(),
            counters: Counters::new(CloseReason::COUNT, Refusal::COUNT),
            crashes: 0,
            commits: 0,
            crash_behind: None,
            is_of_fleet: false,
            stream: BTreeMap::new(),
            places: 0,
            requests: Vec::new(),
        };
        world.begin();
        world
    }

    // --- The process ------------------------------------------------------------------------------------------------

    /// A process begins with what the store has.
    fn begin(&mut self) {
        let workers = self.random.u16(1..=3);
        self.home = Home::new([self.random.u8(..); 16], workers);
        self.now = Moment::from_micros(self.random.u64(1..100) * TICK_MICROS);
        let bounds = Bounds {
            away: 100,
            inflight: 4,
            messages: 1_000,
            bytes: 1 << 20,
            subscriptions: 100,
            retained_messages: 100,
            retained_bytes: 1 << 20,
            stored_bytes: 1 << 20,
            pool_bytes: 1 << 28,
            inbox_messages: 16,
        };
        let (home, now, key) = (self.home, self.now, self.seed);
        self.shards = self.store.shards(home, workers, bounds, key, now, Some(self.wall_ms));
        self.loads = vec![VecDeque::new(); usize::from(workers)];
        if self.is_of_fleet {
            self.shards.iter_mut().for_each(Broker::begin_interest);
        }
        let (sessions, retained) = self.store.load();
        for session in sessions {
            self.shards[home.of(&session.head.name).index()].restore(session, now);
        }
        for publication in retained {
            self.shards.iter_mut().for_each(|shard| shard.restore_retained(publication.clone(), Stamp::NONE, now));
        }
        for (client, topic) in self.clients.iter().zip(KEPT) {
            let told = |number: &&u32| self.published[number].topic == topic;
            let Some(&told) = client.acknowledged.iter().rfind(told) else { continue };
            let kept = self.shards.iter().map(|shard| shard.routing.retained.get(topic));
            kept.for_each(|kept| assert!(kept.is_some_and(|kept| message_of(&kept.payload) >= told), "{topic}"));
        }
        self.check();
    }

    /// The process is no more, nor is whatever was not committed.
    fn crash(&mut self) {
        self.crashes += 1;
        self.store.crash();
        self.ways.clear();
        self.loads.clear();
        self.wall_ms += self.random.i64(1..5_000);
        self.clients.iter_mut().for_each(Client::lose_connection);
        self.begin();
    }

    /// Some of what waits is committed at once, and told.
    fn commit(&mut self) {
        for _ in 0..self.random.usize(1..6) {
            let safe = self.store.commit(1);
            self.commits += u32::try_from(safe.len()).expect("one at a time");
            if self.crash_behind.is_some_and(|behind| behind == self.commits) {
                // It is on the disk, and nobody was told.
                self.crash_behind = None;
                return self.crash();
            }
            for (worker, mark) in safe {
                self.shards[worker.index()].handle_safe(mark);
            }
        }
    }

    // --- Clients ----------------------------------------------------------------------------------------------------

    fn connect(&mut self, number: usize) {
        self.disconnect(number);
        let worker = self.home.of(&self.clients[number].name).index();
        self.slots += 1;
        let client = &mut self.clients[number];
        let profile = profile(u32::MAX, 3);
        let arrival = Arrival {
            connection: ConnectionSlot(self.slots),
            device: &client.name,
            clean_start: false,
            profile,
            will: None,
        };
        let attached = self.shards[worker].attach(arrival, self.now);
        assert!(attached.was_present || !client.was_greeted, "{}: its session is gone", client.name);
        assert!(!attached.is_safe, "CONNACK waits for the store");
        self.shards[worker].hold_greeting(attached.session, Vec::new());
        client.connection = Some((worker, ConnectionSlot(self.slots)));
    }

    fn disconnect(&mut self, number: usize) {
        let client = &mut self.clients[number];
        let Some((worker, slot)) = client.connection else { return };
        client.lose_connection();
        let due_will = self.shards[worker].detach(slot, &client.name, true, self.now, &mut self.counters);
        assert!(due_will.is_none());
    }

    /// The shard and the session of a client that may speak.
    fn session(&self, number: usize) -> Option<(usize, SessionSlot)> {
        let (worker, slot) = self.clients[number].connection.filter(|_| self.clients[number].is_greeted)?;
        Some((worker, self.shards[worker].of(slot)?))
    }

    fn publish(&mut self, number: usize) {
        let client = &mut self.clients[number];
        if client.out.len() >= 4 || !client.has_subscribed {
            return;
        }
        let (topic, qos) = if self.random.u8(..6) == 0 {
            (KEPT[number], QoS::AtLeastOnce)
        } else {
            (TOPICS[self.random.usize(..TOPICS.len())], QoS::try_from(self.random.u8(1..=2)).unwrap())
        };
        let message = self.published.len() as u32 + 1;
        let owed = (0..CLIENTS).filter(|&one| self.clients[one].has_subscribed && TOPICS.contains(&topic)).collect();
        self.published.insert(message, Published { by: number, topic, qos, owed });
        let client = &mut self.clients[number];
        client.next_packet += 1;
        client.out.push_back(Out {
            packet: client.next_packet,
            number: message,
            qos,
            topic,
            is_sent: false,
            is_dup: false,
            is_received: false,
        });
        self.speak(number);
    }

    /// The client sends what it has not sent on this connection, in order.
    fn speak(&mut self, number: usize) {
        let Some((worker, session)) = self.session(number) else { return };
        if !self.clients[number].has_subscribed {
            self.subscribe(number, worker, session);
        }
        while let Some(place) = self.clients[number].out.iter().position(|out| !out.is_sent) {
            let out = self.clients[number].out[place].clone();
            let shard = &mut self.shards[worker];
            if !out.is_received && (shard.is_congested() || shard.hold(session)) {
                return;
            }
            self.clients[number].out[place].is_sent = true;
            if out.is_received {
                self.release(number, worker, session, out.packet);
            } else {
                self.send(number, worker, session, &out);
            }
        }
    }

    /// SUBACK comes when it is safe: until then it may be void.
    fn subscribe(&mut self, number: usize, worker: usize, session: SessionSlot) {
        let shard = &mut self.shards[worker];
        let Some(mut pending) = shard.begin_filters(session, 1) else { return };
        for topic in TOPICS {
            let options = Options::plain(QoS::ExactlyOnce);
            let granted = shard.subscribe(session, topic, options, number as u32 + 1, &mut pending);
            assert_eq!(granted, Granted::Subscribed);
        }
        shard.expect_subscribed(session, &mut pending);
        assert!(shard.end_filters(session, pending).is_none(), "SUBACK waits for the store");
    }

    fn send(&mut self, number: usize, worker: usize, session: SessionSlot, out: &Out) {
        let shard = &mut self.shards[worker];
        self.clients[number].out.iter_mut().filter(|one| one.packet == out.packet).for_each(|one| one.is_dup = true);
        if (out.qos == QoS::ExactlyOnce || out.is_dup)
            && let Some(known) = shard.receiving(session, out.packet, out.qos)
        {
            shard.receive_again(session, out.packet, out.qos);
            if known == Known::Answered {
                self.hear_answer(number, worker, session, out.packet, out.qos);
            }
            return;
        }
        let ticket = shard.receive(session, out.packet, out.qos);
        let publication = Publication {
            retain: out.topic.starts_with("kept"),
            publisher: Some(shard.id(session)),
            ..Publication::plain(out.topic, Bytes::from(out.number.to_be_bytes().to_vec()), out.qos)
        };
        // It goes up as it is published.
        self.places += 1;
        self.stream.insert(out.number, self.places);
        shard.publish(publication, ticket, &mut self.counters);
    }

    fn hear_answer(&mut self, number: usize, worker: usize, session: SessionSlot, packet: u16, qos: QoS) {
        let client = &mut self.clients[number];
        let place = client.out.iter().position(|out| out.packet == packet).expect("what is answered was sent");
        client.acknowledged.insert(client.out[place].number);
        if qos == QoS::AtLeastOnce {
            client.out.remove(place);
        } else {
            client.out[place].is_received = true;
            self.release(number, worker, session, packet);
        }
    }

    /// PUBREL goes, and PUBCOMP comes now or later.
    fn release(&mut self, number: usize, worker: usize, session: SessionSlot, packet: u16) {
        let shard = &mut self.shards[worker];
        assert!(shard.handle_pubrel(session, packet).is_ok());
        let reply = Qos2Reply { packet, reason: mqtt::Reason::SUCCESS, is_pubrel: false };
        if let Some(reply) = shard.reply_when_safe(session, reply) {
            self.clients[number].complete(reply.packet);
        }
    }

    // --- Turns ------------------------------------------------------------------------------------------------------

    fn turn(&mut self, worker: usize) {
        self.shards[worker].begin_turn();
        for batch in self.shards[worker].next_deliveries(4) {
            let Some(slot) = self.shards[worker].connection_of(batch.session, batch.generation) else {
                self.shards[worker].keep(batch, self.now, &mut self.counters);
                continue;
            };
            let (mut out, most) = (Vec::new(), self.random.usize(1..200));
            let budget = &mut budget(&mut out, most, self.now, &mut self.counters);
            self.shards[worker].write(batch.session, batch.deliveries, budget);
            self.hear_bytes(worker, slot, &out);
        }
        for (session, generation) in self.shards[worker].take_answerable() {
            if let Some(slot) = self.shards[worker].connection_of(session, generation) {
                self.hear_answers(worker, slot, session);
            }
        }
        self.ask(worker);
        self.hand_over(worker);
        self.carry(worker);
        self.requests.extend(self.shards[worker].take_requests().into_iter().map(|(request, _)| request));
        self.answer_fleet(worker);
    }

    /// What shards ask of the store is answered some time later, as things are when it is read.
    fn ask(&mut self, worker: usize) {
        let loads = self.shards[worker].take_loads();
        self.loads[worker].extend(loads);
    }

    fn answer(&mut self, worker: usize) {
        let Some(mut load) = self.loads[worker].pop_front() else { return };
        // As often as not one by one.
        load.bytes_max *= usize::from(self.random.bool());
        let mut loaded = self.store.read(&load);
        let messages = loaded.messages.as_mut().expect("the model can be read");
        self.loaded += messages.len();
        match self.planted {
            Planted::Lost if self.random.u8(..20) == 0 => drop(messages.pop()),
            // As if what comes while a piece is read could be in it.
            Planted::Twice => loaded = self.store.read(&Load { through: u64::MAX, ..load }),
            Planted::Nothing | Planted::Lost => {}
        }
        let unreadable = self.shards[worker].handle_loaded(loaded, self.now);
        assert!(unreadable.is_none());
    }

    fn hand_over(&mut self, worker: usize) {
        let is_full = self.random.u8(..4) == 0;
        let store = &mut self.store;
        self.shards[worker].hand_over(|changes| {
            if is_full {
                return Err(changes);
            }
            store.push(changes);
            Ok(())
        });
    }

    fn hear_answers(&mut self, worker: usize, slot: ConnectionSlot, session: SessionSlot) {
        let number = self.number_of(worker, slot);
        if self.shards[worker].take_greeting(session).is_some() {
            (self.clients[number].is_greeted, self.clients[number].was_greeted) = (true, true);
        }
        if self.shards[worker].take_suback(session).is_some() {
            self.clients[number].has_subscribed = true;
        }
        while let Some(answer) = self.shards[worker].next_answer(session) {
            assert_eq!(answer.reason, mqtt::Reason::SUCCESS);
            self.hear_answer(number, worker, session, answer.packet, answer.qos);
        }
        while let Some(reply) = self.shards[worker].next_reply(session) {
            if reply.is_pubrel {
                self.hear_pubrel(number, worker, session, reply.packet);
            } else {
                self.clients[number].complete(reply.packet);
            }
        }
        self.shards[worker].take_held(session);
        self.speak(number);
    }

    fn number_of(&self, worker: usize, slot: ConnectionSlot) -> usize {
        let is_it = |client: &Client| client.connection == Some((worker, slot));
        self.clients.iter().position(is_it).expect("who is written to is connected")
    }

    /// What was sent arrives, as far as the connection lives.
    fn hear_bytes(&mut self, worker: usize, slot: ConnectionSlot, mut bytes: &[u8]) {
        while let Some((packet, length)) = mqtt::decode(bytes, Some(mqtt::Version::V5), 1 << 20).unwrap() {
            bytes = &bytes[length..];
            let number = self.number_of(worker, slot);
            assert!(self.clients[number].is_greeted, "{} is told before CONNACK", self.clients[number].name);
            if self.random.u8(..30) == 0 {
                return self.disconnect(number);
            }
            let Some((_, session)) = self.session(number) else { return };
            match packet {
                Packet::Publish(publish) => self.hear_publish(number, worker, session, &publish),
                Packet::Pubrel(ack) => self.hear_pubrel(number, worker, session, ack.packet_id),
                other => panic!("{other:?}"),
            }
        }
    }

    fn hear_publish(&mut self, number: usize, worker: usize, session: SessionSlot, publish: &mqtt::Publish) {
        let (client, shard) = (&mut self.clients[number], &mut self.shards[worker]);
        let is_new = publish.qos == QoS::AtLeastOnce || client.open.insert(publish.packet_id);
        assert!(is_new || publish.dup, "{}: another message under an identifier in use", client.name);
        if is_new {
            client.got.push(message_of(publish.payload));
        }
        if publish.qos == QoS::AtLeastOnce {
            assert_eq!(shard.handle_puback(session, publish.packet_id, |_| {}), Ok(true));
            return;
        }
        assert_eq!(shard.handle_pubrec(session, publish.packet_id, false, |_| {}), Ok(true));
        let reply = Qos2Reply { packet: publish.packet_id, reason: mqtt::Reason::SUCCESS, is_pubrel: true };
        if let Some(reply) = shard.reply_when_safe(session, reply) {
            self.hear_pubrel(number, worker, session, reply.packet);
        }
    }

    fn hear_pubrel(&mut self, number: usize, worker: usize, session: SessionSlot, packet: u16) {
        self.clients[number].open.remove(&packet);
        assert!(self.shards[worker].handle_pubcomp(session, packet).is_ok());
    }

    fn carry(&mut self, from: usize) {
        for to in (0..self.shards.len()).filter(|&to| to != from) {
            let outgoing = self.shards[from].take_outgoing(WorkerId(to as u16));
            let way = self.ways.entry((from, to)).or_default();
            way.0.extend(outgoing.answers);
            way.1.extend(outgoing.passed);
        }
    }

    fn arrive(&mut self, from: usize, to: usize) -> bool {
        let Some((answers, passed)) = self.ways.get_mut(&(from, to)) else { return false };
        if (self.random.bool() || passed.is_empty())
            && let Some(answer) = answers.pop_front()
        {
            self.shards[to].handle_shard_message(WorkerId(from as u16), answer);
        } else if let Some(passed) = passed.pop_front() {
            self.shards[to].handle_passed(WorkerId(from as u16), passed, &mut self.counters);
        } else {
            return false;
        }
        true
    }

    fn step(&mut self, crashes: bool) {
        let number = self.random.usize(..CLIENTS);
        let shards = self.shards.len();
        let worker = self.random.usize(..shards);
        match self.random.u8(..60) {
            0 if crashes => self.crash(),
            1..=2 => self.connect(number),
            3 => self.disconnect(number),
            4..=15 => self.publish(number),
            16..=33 => self.turn(worker),
            34..=41 => self.commit(),
            42..=44 => self.answer(worker),
            _ => {
                let to = self.random.usize(..shards);
                self.arrive(worker, to);
            }
        }
        self.check();
    }

    fn check(&self) {
        for (worker, shard) in self.shards.iter().enumerate() {
            let is_device = |slot| self.clients.iter().any(|client| client.connection == Some((worker, slot)));
            shard.check_invariants(is_device);
        }
    }

    // --- The end ----------------------------------------------------------------------------------------------------

    /// No more crashes: all come, stay, and take what is theirs.
    fn end(&mut self) {
        for _ in 0..3_000 {
            for number in 0..CLIENTS {
                if self.clients[number].connection.is_none() {
                    self.connect(number);
                }
                self.speak(number);
            }
            for worker in 0..self.shards.len() {
                self.turn(worker);
                while !self.loads[worker].is_empty() {
                    self.answer(worker);
                }
                for from in 0..self.shards.len() {
                    while self.arrive(from, worker) {}
                }
            }
            self.commit();
            self.check();
            if self.is_over() {
                return self.check_outcome();
            }
        }
        let waits: Vec<_> = self.clients.iter().map(|client| (client.out.len(), client.is_greeted)).collect();
        panic!("seed {}: it does not come to an end: {waits:?}", self.seed);
    }

    fn is_over(&self) -> bool {
        let shard_is_quiet = |shard: &Broker| {
            !shard.has_deliveries()
                && !shard.has_changes()
                && shard.settlements.len() == 0
                && shard.staged.len() == 0
                && shard.sessions.iter().all(|session| session.inflight.is_none())
                && shard.sessions.stored_bytes == 0
        };
        self.store.is_quiet()
            && self.shards.iter().all(shard_is_quiet)
            && self.ways.values().all(|way| way.0.is_empty() && way.1.is_empty())
            && self.clients.iter().all(|client| client.is_greeted && client.has_subscribed && client.out.is_empty())
    }

    fn check_outcome(&mut self) {
        let seed = self.seed;
        for (number_of_client, client) in self.clients.iter().enumerate() {
            let mut firsts = BTreeSet::new();
            let first: Vec<u32> = client.got.iter().copied().filter(|number| firsts.insert(*number)).collect();
            for (number, published) in &self.published {
                let count = client.got.iter().filter(|got| *got == number).count();
                let (name, by) = (&client.name, &self.clients[published.by].name);
                assert!(self.clients[published.by].acknowledged.contains(number));
                let is_owed = published.owed.contains(&number_of_client);
                assert!(count > 0 || !is_owed, "seed {seed}: {name} never got {number} of {by}");
                assert!(
                    count <= 1 || published.qos == QoS::AtLeastOnce,
                    "seed {seed}: {name} got {number} of {by} twice"
                );
            }
            // In order for each publisher, topic and quality, of what it had subscribed to when it went for the first time.
            let mut latest = HashMap::new();
            for number in first {
                let Published { by, topic, qos, owed } = &self.published[&number];
                if !owed.contains(&number_of_client) {
                    continue;
                }
                let before = latest.insert((by, topic, qos), number);
                let what = format!("{} of {by} under {topic} at {qos:?}", client.name);
                assert!(before.is_none_or(|before| before < number), "seed {seed}: {what}: {number} behind {before:?}");
            }
        }
    }
}

impl Client {
    fn lose_connection(&mut self) {
        (self.connection, self.is_greeted) = (None, false);
        self.out.iter_mut().for_each(|out| out.is_sent = false);
    }

    fn complete(&mut self, packet: u16) {
        self.out.retain(|out| out.packet != packet);
    }
}

/// Many worlds, each with many ends of the process.
fn play(worlds: std::ops::Range<u64>, planted: Planted) -> (usize, u32, usize) {
    let (mut published, mut crashes, mut loaded) = (0, 0, 0);
    for seed in worlds {
        let mut world = World::new(seed, planted);
        for _ in 0..1_500 {
            world.step(true);
        }
        world.end();
        published += world.published.len();
        crashes += world.crashes;
        loaded += world.loaded;
    }
    (published, crashes, loaded)
}

#[test]
fn whatever_was_acknowledged_survives_a_crash_and_at_qos_2_comes_once() {
    let (published, crashes, loaded) = play(0..100, Planted::Nothing);
    assert!(published > 3_000 && crashes > 1_500, "too little happened: {published} messages, {crashes} crashes");
    assert!(loaded > 3_000, "too little was read again: {loaded} messages");
}

/// A world whose process ends once, behind this commit: how many commits there were by then, or in all.
fn play_to(seed: u64, behind: Option<u32>, planted: Planted) -> u32 {
    let mut world = World::new(seed, planted);
    world.crash_behind = behind;
    for _ in 0..600 {
        world.step(false);
    }
    let commits = world.commits;
    assert_eq!(
        world.crashes,
        u32::from(behind.is_some()),
        "seed {seed}: it ends behind {behind:?} of {commits} commits"
    );
    world.end();
    commits
}

#[test]
fn whatever_was_acknowledged_survives_an_end_behind_each_commit_of_a_life() {
    let mut boundaries = 0;
    for seed in 1_000..1_004 {
        // Up to there it is the same life each time.
        let commits = play_to(seed, None, Planted::Nothing);
        for behind in 1..=commits {
            play_to(seed, Some(behind), Planted::Nothing);
        }
        boundaries += commits;
    }
    assert!(boundaries > 200, "too little was committed: {boundaries}");
}

/// How a planted fault is found.
fn found(planted: Planted) -> String {
    let found = std::panic::catch_unwind(|| play(0..10, planted)).expect_err("it is not found");
    let text = found.downcast_ref::<String>().cloned();
    text.or_else(|| found.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

#[test]
fn message_that_is_lost_on_its_way_out_of_the_store_is_missed() {
    let found = found(Planted::Lost);
    assert!(found.contains("the store has lost some") || found.contains("never got"), "{found}");
}

#[test]
fn message_that_comes_while_others_are_read_must_not_be_read_too() {
    // Counted twice too, there is one of it in the store when it is read the next time.
    let found = found(Planted::Twice);
    let ways = ["it lies in two places", "twice", "the store has lost some"];
    assert!(ways.iter().any(|way| found.contains(way)), "{found}");
}

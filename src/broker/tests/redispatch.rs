//! Members of a group that end their sessions with messages in flight, in their queues and in the store, in every way in which a
//! session ends, with and without a store, and with processes that end meanwhile. Each message that was answered for is acknowledged by
//! a member at last; at QoS 2 exactly one is sent it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;

use super::store::{ModelStore, Planted};
use super::*;
use crate::codec::mqtt::{self, Options, Packet, QoS};
use crate::link::{CloseReason, Load, Publication, Recipient, Refusal};
use crate::time::TICK_MICROS;

const GROUP: &str = "$share/g/t";
/// The first keeps its session for ever, so that there always is a member.
const MEMBERS: usize = 4;
const WORKERS: u16 = 3;

#[derive(Default)]
struct Member {
    name: String,
    connection: Option<(usize, ConnectionSlot)>,
    /// What it was sent on this connection and has not acknowledged.
    pending: VecDeque<(u16, QoS, u32)>,
    expiry_s: u32,
}

struct World {
    seed: u64,
    random: fastrand::Rng,
    /// On the way to the home of a group.
    planted: Planted,
    is_stored: bool,
    crashes_happen: bool,
    wall_ms: i64,
    now: Moment,
    store: ModelStore,
    home: Home,
    shards: Vec<Broker>,
    loads: Vec<VecDeque<Load>>,
    ways: HashMap<(usize, usize), (VecDeque<ShardMessage>, VecDeque<Passed>)>,
    slots: u32,
    members: Vec<Member>,
    published: u32,
    quality: BTreeMap<u32, QoS>,
    answered: BTreeSet<u32>,
    /// By message: members that were sent it for the first time on a connection, and how often it was acknowledged.
    sent_to: BTreeMap<u32, BTreeSet<usize>>,
    acknowledged: BTreeMap<u32, u32>,
    counters: Counters,
    crashes: u32,
    given: u64,
}

impl World {
    fn new(seed: u64, is_stored: bool, crashes_happen: bool, planted: Planted) -> Self {
        let member = |number| Member { name: format!("member {number}"), ..Member::default() };
        let mut world = Self {
            seed,
            random: fastrand::Rng::with_seed(seed),
            planted,
            is_stored,
            crashes_happen,
            wall_ms: 1_700_000_000_000,
            now: Moment::default(),
            store: ModelStore::default(),
            home: Home::new([9; 16], WORKERS),
            shards: Vec::new(),
            loads: Vec::new(),
            ways: HashMap::new(),
            slots: 0,
            members: (0..MEMBERS).map(member).collect(),
            published: 0,
            quality: BTreeMap::new(),
            answered: BTreeSet::new(),
            sent_to: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            counters: Counters::new(CloseReason::COUNT, Refusal::COUNT),
            crashes: 0,
            given: 0,
        };
        world.begin();
        world.connect(0, false);
        world.settle();
        world
    }

    fn begin(&mut self) {
        self.home = Home::new([self.random.u8(..); 16], WORKERS);
        self.now = Moment::from_micros(self.random.u64(1..100) * TICK_MICROS);
        let limits = Limits { session_inflight: 4, inbox_length: 64, ..Limits::default() };
        let bounds = Bounds { stored_bytes: 1 << 20, ..Bounds::of(&limits, WORKERS) };
        let (home, now, key) = (self.home, self.now, self.seed);
        let wall_ms = self.is_stored.then_some(self.wall_ms);
        self.shards = self.store.shards(home, WORKERS, bounds, key, now, wall_ms);
        self.loads = vec![VecDeque::new(); usize::from(WORKERS)];
        for session in self.store.load().0 {
            self.shards[home.of(&session.head.name).index()].restore(session, now);
        }
        // What sessions have to say to the homes of their groups is said before anybody turns.
        (0..self.shards.len()).for_each(|from| self.carry(from));
        for from in 0..self.shards.len() {
            for to in 0..self.shards.len() {
                while self.arrive(from, to) {}
            }
        }
    }

    fn crash(&mut self) {
        self.crashes += 1;
        self.given += self.shards.iter().map(|shard| shard.redispatches.given).sum::<u64>();
        self.store.crash();
        self.ways.clear();
        self.wall_ms += self.random.i64(1..1_500);
        for member in &mut self.members {
            member.connection = None;
            member.pending.clear();
        }
        self.begin();
    }

    // --- Members ----------------------------------------------------------------------------------------------------

    fn connect(&mut self, number: usize, clean_start: bool) {
        self.disconnect(number, None);
        let member = &mut self.members[number];
        let worker = self.home.of(&member.name).index();
        self.slots += 1;
        let connection = ConnectionSlot(self.slots);
        // Where processes crash nobody has a session that ends with them: what such a one was sent goes with it.
        let expiries = if self.crashes_happen { [1, 2, 3, u32::MAX] } else { [0, 1, 3, u32::MAX] };
        member.expiry_s = if number == 0 { u32::MAX } else { *self.random.choice(&expiries).unwrap() };
        let profile = profile(member.expiry_s, 3);
        let arrival = Arrival { connection, device: &member.name, clean_start, profile, will: None };
        let attached = self.shards[worker].attach(arrival, self.now);
        if !attached.is_safe {
            self.shards[worker].hold_greeting(attached.session, Vec::new());
        }
        member.connection = Some((worker, connection));
        self.shards[worker].begin_subscribe();
        self.shards[worker].subscribe_one(attached.session, GROUP, Options::plain(QoS::ExactlyOnce), 0);
    }

    /// `expiry_s`: it says goodbye and asks for this expiry.
    fn disconnect(&mut self, number: usize, expiry_s: Option<u32>) {
        let member = &mut self.members[number];
        let Some((worker, slot)) = member.connection.take() else { return };
        member.pending.clear();
        let session = self.shards[worker].of(slot).unwrap();
        if let Some(expiry_s) = expiry_s.filter(|_| number != 0) {
            self.shards[worker].set_expiry(session, expiry_s);
        }
        if self.random.bool() && number != 0 {
            // As whoever ends in order does.
            self.shards[worker].unsubscribe(session, GROUP);
        }
        self.shards[worker].detach(slot, &member.name, true, self.now, &mut self.counters);
    }

    fn acknowledge(&mut self, number: usize) {
        let member = &mut self.members[number];
        let Some((worker, slot)) = member.connection else { return };
        let Some((packet, qos, message)) = member.pending.pop_front() else { return };
        let shard = &mut self.shards[worker];
        let session = shard.of(slot).unwrap();
        if qos == QoS::AtLeastOnce {
            assert_eq!(shard.handle_puback(session, packet, |_| {}), Ok(true));
        } else {
            // PUBREL is said at once or later; it is as good as said to this member.
            assert_eq!(shard.handle_pubrec(session, packet, false, |_| {}), Ok(true));
            assert_eq!(shard.handle_pubcomp(session, packet), Ok(true));
        }
        *self.acknowledged.entry(message).or_default() += 1;
    }

    fn publish(&mut self) {
        self.published += 1;
        let number = self.published;
        let qos = if self.random.bool() { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        self.quality.insert(number, qos);
        let publication = Publication::plain("t", Bytes::copy_from_slice(&number.to_be_bytes()), qos);
        let worker = self.random.usize(..self.shards.len());
        let ticket = self.shards[worker].request(u64::from(number));
        self.shards[worker].publish(publication, ticket, &mut self.counters);
    }

    // --- Turns ------------------------------------------------------------------------------------------------------

    fn turn(&mut self, worker: usize) {
        let shard = &mut self.shards[worker];
        shard.handle_deadlines(self.now.tick(), self.now, 10, &mut Vec::new(), &mut self.counters);
        shard.begin_turn();
        for batch in shard.next_deliveries(4) {
            let shard = &mut self.shards[worker];
            let Some(slot) = shard.connection_of(batch.session, batch.generation) else {
                shard.keep(batch, self.now, &mut self.counters);
                continue;
            };
            let mut out = Vec::new();
            let (now, counters, turn_bytes) = (self.now, &mut self.counters, self.random.usize(1..60));
            let budget = &mut SendBudget { out: &mut out, unsent: 0, turn_bytes, now, counters };
            shard.write(batch.session, batch.deliveries, budget);
            self.hear(worker, slot, &out);
        }
        let shard = &mut self.shards[worker];
        for (session, generation) in shard.take_answerable() {
            if shard.connection_of(session, generation).is_some() {
                shard.take_greeting(session);
            }
        }
        self.loads[worker].extend(shard.take_loads());
        if self.is_stored {
            let store = &mut self.store;
            shard.hand_over(|changes| {
                store.push(changes);
                Ok(())
            });
        }
        self.carry(worker);
        for (number, end) in self.shards[worker].take_requests() {
            assert_eq!(end, RequestEnd::Published);
            self.answered.insert(number as u32);
        }
    }

    fn hear(&mut self, worker: usize, slot: ConnectionSlot, mut bytes: &[u8]) {
        let is_it = |member: &Member| member.connection == Some((worker, slot));
        let number = self.members.iter().position(is_it).expect("only members are sent anything");
        while let Some((packet, length)) = mqtt::decode(bytes, Some(mqtt::Version::V5), 1 << 20).unwrap() {
            bytes = &bytes[length..];
            match packet {
                Packet::Publish(publish) => {
                    let message = message_of(publish.payload);
                    self.sent_to.entry(message).or_default().insert(number);
                    self.members[number].pending.push_back((publish.packet_id, publish.qos, message));
                }
                // Of a message that it has acknowledged.
                Packet::Pubrel(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn carry(&mut self, from: usize) {
        for to in (0..self.shards.len()).filter(|&to| to != from) {
            let outgoing = self.shards[from].take_outgoing(WorkerId(to as u16));
            let way = self.ways.entry((from, to)).or_default();
            way.0.extend(outgoing.answers);
            way.1.extend(outgoing.passed);
        }
    }

    /// Answers come before what was passed on with them, as in an inbox.
    fn arrive(&mut self, from: usize, to: usize) -> bool {
        let Some((answers, passed)) = self.ways.get_mut(&(from, to)) else { return false };
        let (from, shard) = (WorkerId(from as u16), &mut self.shards[to]);
        if let Some(answer) = answers.pop_front() {
            shard.handle_shard_message(from, answer);
        } else if let Some(passed) = passed.pop_front() {
            let is_left = matches!(passed.recipient, Recipient::Group(_));
            match self.planted {
                Planted::Lost if is_left => return true,
                Planted::Twice if is_left => {
                    let again = Passed { token: 0, ..passed.clone() };
                    shard.handle_passed(from, again, &mut self.counters);
                }
                _ => {}
            }
            shard.handle_passed(from, passed, &mut self.counters);
        } else {
            return false;
        }
        true
    }

    fn step(&mut self) {
        let number = self.random.usize(..MEMBERS);
        let (worker, to) = (self.random.usize(..self.shards.len()), self.random.usize(..self.shards.len()));
        match self.random.u8(..64) {
            0 if self.crashes_happen => self.crash(),
            1..=3 => {
                let clean_start = number != 0 && self.random.u8(..3) == 0;
                self.connect(number, clean_start);
            }
            4 => self.disconnect(number, None),
            5 => self.disconnect(number, Some(0)),
            6..=12 => self.publish(),
            13..=16 => self.acknowledge(number),
            17..=32 => self.turn(worker),
            33..=40 => self.commit(),
            41..=44 => self.answer(worker),
            45..=46 => self.now = self.now.plus(std::time::Duration::from_millis(300)),
            _ => drop(self.arrive(worker, to)),
        }
        self.check();
    }

    fn commit(&mut self) {
        let batches = self.random.usize(1..6);
        for (worker, mark) in self.store.commit(batches) {
            self.shards[worker.index()].handle_safe(mark);
        }
    }

    fn answer(&mut self, worker: usize) {
        let Some(mut load) = self.loads[worker].pop_front() else { return };
        load.bytes_max *= usize::from(self.random.bool());
        let loaded = self.store.read(&load);
        assert!(self.shards[worker].handle_loaded(loaded, self.now).is_none());
    }

    fn check(&self) {
        for (worker, shard) in self.shards.iter().enumerate() {
            shard.check_invariants(|slot| self.members.iter().any(|one| one.connection == Some((worker, slot))));
        }
    }

    /// Everything that is on its way arrives.
    fn settle(&mut self) {
        for _ in 0..60 {
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
        }
    }

    /// The members that are there take what there is, and the others' sessions end.
    fn end(&mut self) {
        for number in 1..MEMBERS {
            let expiry_s = self.random.bool().then_some(0);
            self.disconnect(number, expiry_s);
            if self.random.bool() {
                self.connect(number, true);
                self.disconnect(number, Some(0));
            }
        }
        self.connect(0, false);
        for round in 0..120 {
            self.settle();
            while !self.members[0].pending.is_empty() {
                self.acknowledge(0);
            }
            if round == 1 {
                // Whoever was to keep its session for ever ends it after all.
                for number in 1..MEMBERS {
                    self.connect(number, false);
                    self.settle();
                    self.disconnect(number, Some(0));
                }
            }
            let is_over = |shard: &Broker| shard.settlements.len() == 0 && !shard.has_deliveries();
            let is_stored = |shard: &Broker| shard.sessions.stored_bytes > 0;
            if round > 2 && self.shards.iter().all(is_over) && !self.shards.iter().any(is_stored) {
                break;
            }
        }
        self.given += self.shards.iter().map(|shard| shard.redispatches.given).sum::<u64>();
        let seed = self.seed;
        for message in &self.answered {
            let sent_to = self.sent_to.get(message).map_or(0, BTreeSet::len);
            let acknowledged = self.acknowledged.get(message).copied().unwrap_or_default();
            let qos = self.quality[message];
            // A process that has crashed does not know of QoS 2 whether it was sent to the one that has ended [v5 MQTT-4.8.2-5].
            let may_be_lost = qos == QoS::ExactlyOnce && self.crashes > 0;
            assert!(sent_to > 0 || may_be_lost, "seed {seed}: nobody ever got {message} of {qos:?}");
            match qos {
                QoS::ExactlyOnce => {
                    assert!(sent_to == 1 || self.crashes > 0, "seed {seed}: {message} was sent to {sent_to} members");
                }
                _ => assert!(acknowledged > 0, "seed {seed}: {message} was acknowledged by nobody"),
            }
            assert!(
                acknowledged <= 1 || self.crashes > 0,
                "seed {seed}: {message} was acknowledged {acknowledged} times"
            );
        }
        assert_eq!(self.counters.value(Metric::DroppedQueueFull), 0);
        assert!(self.shards.iter().all(|shard| shard.redispatches.without_member == 0));
        assert!(!self.is_stored || self.store.load().0.len() == 1, "seed {seed}: an ended session is in the store");
    }
}

fn play(seeds: std::ops::Range<u64>, is_stored: bool, crashes: bool, planted: Planted) -> (u64, u32) {
    let (mut given, mut ends) = (0, 0);
    for seed in seeds {
        let mut world = World::new(seed, is_stored, crashes, planted);
        (0..600).for_each(|_| world.step());
        world.end();
        given += world.given;
        ends += world.crashes;
    }
    (given, ends)
}

#[test]
fn redispatch_gives_what_ended_sessions_had_to_other_members() {
    let (given, _) = play(0..60, false, false, Planted::Nothing);
    assert!(given > 600, "{given}");
}

#[test]
fn redispatch_reads_what_lies_in_the_store_alone() {
    let (given, _) = play(0..60, true, false, Planted::Nothing);
    assert!(given > 600, "{given}");
}

#[test]
fn redispatch_goes_on_in_the_next_process() {
    let (given, crashes) = play(0..80, true, true, Planted::Nothing);
    assert!(given > 600 && crashes > 300, "{given} {crashes}");
}

/// How a planted fault is found.
fn found(planted: Planted) -> String {
    let found = std::panic::catch_unwind(|| play(0..10, false, false, planted)).expect_err("it is not found");
    let text = found.downcast_ref::<String>().cloned();
    text.or_else(|| found.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

#[test]
fn redispatch_that_loses_or_doubles_is_found() {
    let (lost, twice) = (found(Planted::Lost), found(Planted::Twice));
    assert!(lost.contains("nobody"), "{lost}");
    assert!(twice.contains("members") || twice.contains("times"), "{twice}");
}

/// The last member ends: what it had goes nowhere, by name.
#[test]
fn redispatch_without_a_member_is_counted() {
    let mut world = World::new(1, false, false, Planted::Nothing);
    (0..5).for_each(|_| world.publish());
    world.settle();
    let (worker, slot) = world.members[0].connection.take().unwrap();
    let session = world.shards[worker].of(slot).unwrap();
    world.shards[worker].set_expiry(session, 0);
    world.shards[worker].detach(slot, "member 0", true, world.now, &mut world.counters);
    world.settle();
    let unsent = world.quality.values().filter(|qos| **qos == QoS::AtLeastOnce).count().max(1);
    let mut counters = Counters::new(CloseReason::COUNT, Refusal::COUNT);
    let mut dropped = 0;
    for shard in &world.shards {
        counters = Counters::new(CloseReason::COUNT, Refusal::COUNT);
        shard.count(&mut counters);
        dropped += counters.value(Metric::DroppedNoMember);
        assert!(!shard.has_deliveries() && shard.settlements.len() == 0);
    }
    assert!(dropped >= unsent as u64, "{dropped} of {unsent}: {}", counters.value(Metric::Redispatched));
}

//! Whole shards at all of their bounds at once: full lanes, full queues, full windows, devices that stop reading, and every
//! kind of traffic. When publishers stop, everything must come to its end by itself: every publisher has its answer, no credit
//! is lost, and whoever has read all the time has lost nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::device::message_of;
use super::*;
use crate::link::{CloseReason, Refusal};
use crate::time::TICK_MICROS;

const PUBLISHERS: usize = 6;
const SUBSCRIBERS: usize = 8;
const TURNS: u32 = 250;
/// In so many turns everything must have come to its end: a stalled device is given up after 50 ticks.
const TURNS_TO_DRAIN: u32 = 2_000;
const TOPICS: [&str; 3] = ["t/0", "t/1", "t/2"];
const FILTERS: [&str; 5] = ["#", "t/1", "+/2", "$share/g/#", "$share/h/t/1"];

/// A fault that is put in on purpose, to see that it is found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// The first design: a worker that cannot pass on takes nothing from its inbox.
    StopsHearing,
    /// Credit that comes back is lost on the way, once in a while.
    LosesCredit,
    /// So is the word that a message was taken.
    LosesTaken,
}

/// Why a world was not as it should be.
type Fault = String;

struct Publisher {
    worker: usize,
    session: SessionSlot,
    next_packet: u16,
    /// By packet identifier: the message that waits for its answer.
    waiting: BTreeMap<u16, u32>,
    is_held: bool,
}

struct Subscriber {
    name: String,
    worker: usize,
    connection: ConnectionSlot,
    filter: &'static str,
    qos: QoS,
    /// It reads all the time and never goes.
    is_steady: bool,
    is_frozen: bool,
    /// What it was sent and has not acknowledged.
    pending: VecDeque<(u16, QoS)>,
    got: BTreeSet<u32>,
}

struct World {
    random: fastrand::Rng,
    now: Moment,
    planted: Planted,
    shards: Vec<Broker>,
    /// By receiver: what each sender has said, both lanes.
    lanes: Vec<Vec<(VecDeque<ShardMessage>, VecDeque<Passed>)>>,
    publishers: Vec<Publisher>,
    subscribers: Vec<Subscriber>,
    /// By message: its topic and QoS.
    messages: BTreeMap<u32, (&'static str, QoS)>,
    answered: BTreeSet<u32>,
    connections: u32,
    counters: Counters,
}

impl World {
    fn new(seed: u64, planted: Planted) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let workers = random.u16(2..=4);
        let home = Home::new([5; 16], workers);
        let exchange = Arc::new(Exchange::new(workers));
        let bounds = Bounds {
            away: 100,
            inflight: 4,
            messages: 3,
            bytes: 1 << 20,
            subscriptions: 100,
            retained_messages: 2,
            retained_bytes: 1 << 20,
            inbox_messages: 16,
            stored_bytes: 0,
            pool_bytes: 1 << 30,
        };
        let now = Moment::from_micros(TICK_MICROS);
        let shard = |worker| {
            let exchange = Arc::clone(&exchange);
            Broker::new(BrokerOptions { worker: WorkerId(worker), home, exchange, bounds, key: seed }, now.tick())
        };
        let lanes = || (0..workers).map(|_| (VecDeque::new(), VecDeque::new())).collect();
        let mut world = Self {
            now,
            planted,
            shards: (0..workers).map(shard).collect(),
            lanes: (0..workers).map(|_| lanes()).collect(),
            publishers: Vec::new(),
            subscribers: Vec::new(),
            messages: BTreeMap::new(),
            answered: BTreeSet::new(),
            connections: 0,
            counters: Counters::new(CloseReason::COUNT, Refusal::COUNT),
            random,
        };
        for number in 0..SUBSCRIBERS {
            world.add_subscriber(number, home);
        }
        for number in 0..PUBLISHERS {
            let name = format!("publisher {number}");
            let worker = home.of(&name).index();
            let (_, session) = world.attach(worker, &name);
            let waiting = BTreeMap::new();
            world.publishers.push(Publisher { worker, session, next_packet: 0, waiting, is_held: false });
        }
        // Whoever has subscribed is known everywhere before the first message.
        for _ in 0..4 {
            (0..world.shards.len()).for_each(|worker| world.carry(worker));
            (0..world.shards.len()).for_each(|worker| world.hear(worker));
        }
        world
    }

    fn attach(&mut self, worker: usize, name: &str) -> (ConnectionSlot, SessionSlot) {
        self.connections += 1;
        let connection = ConnectionSlot(self.connections);
        let profile = profile(1_000, 2);
        let arrival = Arrival { connection, device: name, clean_start: false, profile, will: None };
        (connection, self.shards[worker].attach(arrival, self.now).session)
    }

    fn add_subscriber(&mut self, number: usize, home: Home) {
        let name = format!("subscriber {number}");
        let worker = home.of(&name).index();
        let (connection, session) = self.attach(worker, &name);
        let (filter, qos) = (FILTERS[number % FILTERS.len()], [QoS::AtLeastOnce, QoS::ExactlyOnce][number % 2]);
        let shard = &mut self.shards[worker];
        shard.begin_subscribe();
        shard.subscribe_one(session, filter, Options::plain(qos), 0);
        self.subscribers.push(Subscriber {
            name,
            worker,
            connection,
            filter,
            qos,
            // The other half stops reading, and comes and goes.
            is_steady: number < 5,
            is_frozen: false,
            pending: VecDeque::new(),
            got: BTreeSet::new(),
        });
    }

    // --- One turn of one worker -------------------------------------------------------------------------------------

    fn turn(&mut self, worker: usize, publishes: bool) {
        self.hear(worker);
        if publishes {
            (0..self.publishers.len())
                .filter(|&p| self.publishers[p].worker == worker)
                .collect::<Vec<_>>()
                .into_iter()
                .for_each(|p| self.publish(p));
        }
        self.acknowledge(worker);
        let (tick, now) = (self.now.tick(), self.now);
        let mut due_wills = Vec::new();
        self.shards[worker].handle_deadlines(tick, now, 16, &mut due_wills, &mut self.counters);
        self.deliver(worker);
        self.answer(worker);
        self.carry(worker);
    }

    /// The inbox: answers always and all of them, then what was passed on.
    fn hear(&mut self, worker: usize) {
        if self.planted == Planted::StopsHearing && self.shards[worker].is_congested() {
            return;
        }
        for from in 0..self.shards.len() {
            let (answers, passed) = std::mem::take(&mut self.lanes[worker][from]);
            let from = WorkerId(from as u16);
            for answer in answers {
                let is_lost = self.random.u8(..50) == 0
                    && matches!(
                        (self.planted, &answer),
                        (Planted::LosesCredit, ShardMessage::Credit(_))
                            | (Planted::LosesTaken, ShardMessage::Taken { .. })
                    );
                if !is_lost {
                    self.shards[worker].handle_shard_message(from, answer);
                }
            }
            for passed in passed {
                self.shards[worker].handle_passed(from, passed, &mut self.counters);
            }
        }
    }

    /// A publisher's socket is read: as far as nothing stops it.
    fn publish(&mut self, number: usize) {
        for _ in 0..self.random.u8(..6) {
            let publisher = &mut self.publishers[number];
            let shard = &mut self.shards[publisher.worker];
            let qos = QoS::try_from(self.random.u8(..3)).unwrap();
            if shard.is_congested() || publisher.is_held {
                return;
            }
            if qos.is_acknowledged() && shard.hold(publisher.session) {
                publisher.is_held = true;
                return;
            }
            let message = self.messages.len() as u32 + 1;
            let topic = TOPICS[self.random.usize(..TOPICS.len())];
            let payload = Bytes::from(message.to_be_bytes().to_vec());
            let mut publication = Publication::plain(topic, payload, qos);
            publication.retain = self.random.u8(..4) == 0;
            let ticket = if qos == QoS::AtMostOnce {
                Ticket::NOBODY
            } else {
                publisher.next_packet = publisher.next_packet % 60_000 + 1;
                publisher.waiting.insert(publisher.next_packet, message);
                shard.receive(publisher.session, publisher.next_packet, qos)
            };
            self.messages.insert(message, (topic, qos));
            shard.publish(publication, ticket, &mut self.counters);
        }
    }

    /// What publishers are told.
    fn answer(&mut self, worker: usize) {
        let shard = &mut self.shards[worker];
        for (session, _) in shard.take_answerable() {
            let Some(publisher) =
                self.publishers.iter_mut().find(|known| (known.worker, known.session) == (worker, session))
            else {
                shard.take_suback(session);
                continue;
            };
            while let Some(answer) = shard.next_answer(session) {
                let message = publisher.waiting.remove(&answer.packet).expect("an answer to what was asked");
                assert!(self.answered.insert(message), "message {message} is answered twice");
                if answer.qos == QoS::ExactlyOnce && answer.reason == crate::codec::mqtt::Reason::SUCCESS {
                    assert_eq!(shard.handle_pubrel(session, answer.packet), Ok(true));
                }
            }
            if shard.take_held(session) {
                publisher.is_held = false;
            }
        }
    }

    /// Devices read, as fast as they do, and some not at all.
    fn acknowledge(&mut self, worker: usize) {
        for subscriber in self.subscribers.iter_mut().filter(|known| known.worker == worker && !known.is_frozen) {
            let shard = &mut self.shards[worker];
            let Some(session) = shard.of(subscriber.connection) else { continue };
            for (packet, qos) in subscriber.pending.drain(..) {
                if qos == QoS::AtLeastOnce {
                    assert_eq!(shard.handle_puback(session, packet, |_| {}), Ok(true));
                } else {
                    assert_eq!(shard.handle_pubrec(session, packet, false, |_| {}), Ok(true));
                    assert_eq!(shard.handle_pubcomp(session, packet), Ok(true));
                }
            }
        }
    }

    fn deliver(&mut self, worker: usize) {
        let shard = &mut self.shards[worker];
        shard.begin_turn();
        for batch in shard.next_deliveries(100) {
            let (session, generation) = (batch.session, batch.generation);
            let Some(connection) = shard.connection_of(session, generation) else {
                shard.keep(batch, self.now, &mut self.counters);
                continue;
            };
            let mut out = Vec::new();
            let (now, counters) = (self.now, &mut self.counters);
            let budget = &mut SendBudget { out: &mut out, unsent: 0, turn_bytes: 200, now, counters };
            shard.write(session, batch.deliveries, budget);
            let is_it = |known: &&mut Subscriber| (known.worker, known.connection) == (worker, connection);
            let subscriber = self.subscribers.iter_mut().find(is_it).expect("only subscribers are sent anything");
            let mut rest = &out[..];
            while let Some((packet, length)) = mqtt::decode(rest, Some(mqtt::Version::V5), 1 << 20).unwrap() {
                rest = &rest[length..];
                let Packet::Publish(publish) = packet else { continue };
                subscriber.got.insert(message_of(publish.payload));
                if publish.qos != QoS::AtMostOnce {
                    subscriber.pending.push_back((publish.packet_id, publish.qos));
                }
            }
        }
    }

    fn carry(&mut self, worker: usize) {
        for to in 0..self.shards.len() {
            let outgoing = self.shards[worker].take_outgoing(WorkerId(to as u16));
            let lane = &mut self.lanes[to][worker];
            lane.0.extend(outgoing.answers);
            lane.1.extend(outgoing.passed);
        }
    }

    // --- What happens meanwhile -------------------------------------------------------------------------------------

    /// Somebody stops reading, or reads on; somebody goes, or comes back.
    fn disturb(&mut self) {
        let number = self.random.usize(..SUBSCRIBERS);
        if self.subscribers[number].is_steady {
            return;
        }
        match self.random.u8(..4) {
            0 => self.subscribers[number].is_frozen = !self.subscribers[number].is_frozen,
            1 => self.reconnect(number),
            _ => {}
        }
    }

    fn reconnect(&mut self, number: usize) {
        let subscriber = &mut self.subscribers[number];
        let (worker, name) = (subscriber.worker, subscriber.name.clone());
        subscriber.pending.clear();
        let connection = subscriber.connection;
        if self.shards[worker].of(connection).is_some() {
            self.shards[worker].detach(connection, &name, true, self.now, &mut self.counters);
        } else {
            self.subscribers[number].connection = self.attach(worker, &name).0;
        }
    }

    fn pass(&mut self, ticks: u64) {
        self.now = self.now.plus(std::time::Duration::from_micros(ticks * TICK_MICROS));
    }

    fn check(&self) {
        let subscribers = || self.subscribers.iter().map(|known| (known.worker, known.connection));
        for (worker, shard) in self.shards.iter().enumerate() {
            let publishers = |slot| {
                self.publishers.iter().any(|known| known.worker == worker && shard.of(slot) == Some(known.session))
            };
            shard.check_invariants(|slot| publishers(slot) || subscribers().any(|known| known == (worker, slot)));
        }
    }

    // --- How it ends ------------------------------------------------------------------------------------------------

    fn run(mut self) -> Result<Self, Fault> {
        for _ in 0..TURNS {
            self.disturb();
            let (worker, ticks) = (self.random.usize(..self.shards.len()), self.random.u64(..2));
            self.pass(ticks);
            self.turn(worker, true);
            if self.planted == Planted::Nothing {
                self.check();
            }
        }
        for _ in 0..TURNS_TO_DRAIN {
            (0..self.shards.len()).for_each(|worker| self.turn(worker, false));
            self.pass(1);
            if self.is_quiet() {
                return self.check_outcome();
            }
        }
        Err("it never comes to its end".to_owned())
    }

    fn is_quiet(&self) -> bool {
        let all = || (0..self.shards.len()).map(|worker| WorkerId(worker as u16));
        self.lanes.iter().flatten().all(|lane| lane.0.is_empty() && lane.1.is_empty())
            && self.shards.iter().all(|shard| {
                shard.settlements.len() == 0 && !shard.has_deliveries() && all().all(|worker| !shard.waits_for(worker))
            })
            && self.publishers.iter().all(|publisher| publisher.waiting.is_empty() && !publisher.is_held)
            && self.subscribers.iter().filter(|known| known.is_steady).all(|known| {
                let shard = &self.shards[known.worker];
                shard.of(known.connection).is_none_or(|session| shard.sessions[session].inflight.is_none())
            })
    }

    fn check_outcome(self) -> Result<Self, Fault> {
        for (from, shard) in self.shards.iter().enumerate() {
            for (to, there) in self.shards.iter().enumerate() {
                let used = shard.ways.used(WorkerId(to as u16));
                let untold = there.ways.untold(WorkerId(from as u16));
                if used != untold {
                    return Err(format!("credit is lost between {from} and {to}: {used:?}, {untold:?}"));
                }
            }
        }
        for subscriber in self.subscribers.iter().filter(|known| known.is_steady && !known.filter.starts_with('$')) {
            let owed = |(_, (topic, qos)): &(&u32, &(&str, QoS))| {
                (*qos).min(subscriber.qos).is_acknowledged() && mqtt::topic::matches(subscriber.filter, topic)
            };
            let lost: Vec<&u32> = self
                .messages
                .iter()
                .filter(owed)
                .map(|(message, _)| message)
                .filter(|message| !subscriber.got.contains(message))
                .collect();
            if !lost.is_empty() {
                let (stalled, full) =
                    (self.counters.value(Metric::Stalled), self.counters.value(Metric::DroppedQueueFull));
                let lost: Vec<_> = lost.into_iter().map(|message| (message, self.messages[message])).collect();
                return Err(format!(
                    "{} has read all the time and lost {lost:?} ({stalled} stalled, {full} dropped)",
                    subscriber.name
                ));
            }
        }
        Ok(self)
    }
}

fn run(seed: u64, planted: Planted) -> Result<World, Fault> {
    World::new(seed, planted).run()
}

#[test]
fn every_world_drains_and_whoever_reads_loses_nothing() {
    let (mut messages, mut stalled, mut refused) = (0, 0, 0);
    for seed in 0..400 {
        let world = run(seed, Planted::Nothing).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        messages += world.messages.len();
        stalled += world.counters.value(Metric::Stalled);
        refused += world.counters.value(Metric::RetainedRefused);
        let answered = world.messages.values().filter(|(_, qos)| qos.is_acknowledged()).count();
        assert_eq!(world.answered.len(), answered, "seed {seed}");
    }
    assert!(messages > 40_000, "too little happened: {messages} messages");
    assert!(stalled > 100 && refused > 1_000, "too little happened: {stalled} stalled, {refused} not retained");
}

#[test]
fn planted_faults_are_found() {
    for (planted, name) in [
        (Planted::StopsHearing, "a worker that cannot pass on stops hearing"),
        (Planted::LosesCredit, "credit is lost"),
        (Planted::LosesTaken, "an answer is lost"),
    ] {
        let found = (0..40).filter(|&seed| run(seed, planted).is_err()).count();
        assert!(found > 0, "{name}: not found");
    }
}

//! One subscriber that takes little, and keeps every rule: it holds up its own publishers, and nobody else, wherever they are; or
//! others for no longer than a moment.

use std::collections::VecDeque;

use bytes::Bytes;

use super::*;
use crate::link::{CloseReason, Refusal};
use crate::pool;
use crate::time::TICK_MICROS;

const WORKERS: u16 = 2;
const SECOND: u32 = 10;
/// Messages that a connection may have unanswered.
const WINDOW: u16 = 64;

/// A publisher, and whether its messages are for the subscriber that takes little.
struct Publisher {
    worker: usize,
    session: SessionSlot,
    is_for_slow: bool,
    packet: u16,
    is_held: bool,
    /// Since when its latest message waits for an answer, or to be read.
    since: Option<u32>,
    longest: u32,
    answered: u32,
}

struct World {
    now: Moment,
    tick: u32,
    shards: Vec<Broker>,
    /// By receiver and sender: what was said, both lanes.
    lanes: Vec<Vec<(VecDeque<ShardMessage>, VecDeque<Passed>)>>,
    publishers: Vec<Publisher>,
    slow: SessionSlot,
    /// What it was sent and has not acknowledged.
    pending: VecDeque<u16>,
    taken: u32,
    /// It acknowledges so many messages every so many ticks.
    pace: (u32, u32),
    size: usize,
    /// By worker: whose socket is read first.
    first: [usize; WORKERS as usize],
    connections: u32,
    counters: Counters,
}

impl World {
    /// The subscriber is in the first shard; so many publish to it from each.
    fn new(publishers: usize, size: usize, pace: (u32, u32), receive_maximum: u16) -> Self {
        let home = Home::new([5; 16], WORKERS);
        let exchange = Arc::new(Exchange::new(WORKERS));
        let bounds = Bounds {
            away: 100,
            inflight: WINDOW,
            messages: 4,
            bytes: 1 << 20,
            subscriptions: 100,
            retained_messages: 2,
            retained_bytes: 1 << 20,
            inbox_messages: 1_024,
            stored_bytes: 0,
            pool_bytes: 16 << 20,
        };
        let now = Moment::from_micros(TICK_MICROS);
        let shard = |worker| {
            let exchange = Arc::clone(&exchange);
            Broker::new(BrokerOptions { worker: WorkerId(worker), home, exchange, bounds, key: 3 }, now.tick())
        };
        let lanes = || (0..WORKERS).map(|_| (VecDeque::new(), VecDeque::new())).collect();
        let mut world = Self {
            now,
            tick: 0,
            shards: (0..WORKERS).map(shard).collect(),
            lanes: (0..WORKERS).map(|_| lanes()).collect(),
            publishers: Vec::new(),
            slow: SessionSlot(0),
            pending: VecDeque::new(),
            taken: 0,
            pace,
            size,
            first: [0; WORKERS as usize],
            connections: 0,
            counters: Counters::new(CloseReason::COUNT, Refusal::COUNT),
        };
        world.slow = world.attach(home, 0, receive_maximum);
        world.shards[0].begin_subscribe();
        world.shards[0].subscribe_one(world.slow, "slow", Options::plain(QoS::AtLeastOnce), 0);
        for worker in 0..usize::from(WORKERS) {
            for number in 0..=publishers {
                let session = world.attach(home, worker, 1);
                world.publishers.push(Publisher {
                    worker,
                    session,
                    is_for_slow: number < publishers,
                    packet: 0,
                    is_held: false,
                    since: None,
                    longest: 0,
                    answered: 0,
                });
            }
        }
        world
    }

    fn attach(&mut self, home: Home, worker: usize, receive_maximum: u16) -> SessionSlot {
        let name = (0..).map(|number| format!("{worker}-{}-{number}", self.connections));
        let name = name.into_iter().find(|name| home.of(name).index() == worker).expect("there are many");
        self.connections += 1;
        let profile = profile(1_000, receive_maximum);
        let connection = ConnectionSlot(self.connections);
        let arrival = Arrival { connection, device: &name, clean_start: false, profile, will: None };
        self.shards[worker].attach(arrival, self.now).session
    }

    fn run(&mut self, ticks: u32) {
        for _ in 0..ticks {
            self.tick += 1;
            self.now = self.now.plus(std::time::Duration::from_micros(TICK_MICROS));
            // A turn takes much less than a tick.
            for turn in 0..2 * u32::from(WORKERS) {
                self.turn(turn as usize % usize::from(WORKERS));
            }
            let (many, every) = self.pace;
            if self.tick.is_multiple_of(every) {
                for packet in self.pending.drain(..self.pending.len().min(many as usize)) {
                    assert_eq!(self.shards[0].handle_puback(self.slow, packet, |_| {}), Ok(true));
                    self.taken += 1;
                }
            }
            self.check();
        }
    }

    fn turn(&mut self, worker: usize) {
        for from in 0..usize::from(WORKERS) {
            let (answers, passed) = std::mem::take(&mut self.lanes[worker][from]);
            let from = WorkerId(from as u16);
            for answer in answers {
                self.shards[worker].handle_shard_message(from, answer);
            }
            for passed in passed {
                self.shards[worker].handle_passed(from, passed, &mut self.counters);
            }
        }
        // Whoever had to wait comes first: sockets are read in turns, a few messages of each.
        let (first, count) = (self.first[worker], self.publishers.len());
        for publisher in (0..count).map(|offset| (first + offset) % count) {
            if self.publishers[publisher].worker == worker {
                let was_congested = self.shards[worker].is_congested();
                (0..4).take_while(|_| self.publish(publisher)).count();
                if !was_congested && self.shards[worker].is_congested() {
                    self.first[worker] = publisher + 1;
                }
            }
        }
        let shard = &mut self.shards[worker];
        shard.handle_deadlines(self.now.tick(), self.now, 16, &mut Vec::new(), &mut self.counters);
        self.deliver(worker);
        self.answer(worker);
        for to in 0..usize::from(WORKERS) {
            let outgoing = self.shards[worker].take_outgoing(WorkerId(to as u16));
            let lane = &mut self.lanes[to][worker];
            lane.0.extend(outgoing.answers);
            lane.1.extend(outgoing.passed);
        }
    }

    /// The next message of a publisher's socket is read, if it may be. Whoever publishes something else has one on its way at a time.
    fn publish(&mut self, number: usize) -> bool {
        let publisher = &mut self.publishers[number];
        let shard = &mut self.shards[publisher.worker];
        if publisher.is_held || (!publisher.is_for_slow && publisher.since.is_some_and(|_| publisher.packet != 0)) {
            return false;
        }
        publisher.since.get_or_insert(self.tick);
        if shard.is_congested() {
            return false;
        }
        if shard.hold(publisher.session) {
            publisher.is_held = true;
            return false;
        }
        publisher.packet = publisher.packet % 60_000 + 1;
        let (topic, size) = if publisher.is_for_slow { ("slow", self.size) } else { ("fine", 1) };
        let publication = Publication::plain(topic, Bytes::from(vec![0; size]), QoS::AtLeastOnce);
        let ticket = shard.receive(publisher.session, publisher.packet, QoS::AtLeastOnce);
        shard.publish(publication, ticket, &mut self.counters);
        true
    }

    fn deliver(&mut self, worker: usize) {
        let shard = &mut self.shards[worker];
        shard.begin_turn();
        for batch in shard.next_deliveries(1_000) {
            let mut out = Vec::new();
            let (now, counters) = (self.now, &mut self.counters);
            let budget = &mut SendBudget { out: &mut out, unsent: 0, turn_bytes: 1 << 20, now, counters };
            shard.write(batch.session, batch.deliveries, budget);
            let mut rest = &out[..];
            while let Some((packet, length)) = mqtt::decode(rest, Some(mqtt::Version::V5), 1 << 20).unwrap() {
                rest = &rest[length..];
                let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
                self.pending.push_back(publish.packet_id);
            }
        }
    }

    fn answer(&mut self, worker: usize) {
        let shard = &mut self.shards[worker];
        for (session, _) in shard.take_answerable() {
            let is_it = |known: &&mut Publisher| (known.worker, known.session) == (worker, session);
            let Some(publisher) = self.publishers.iter_mut().find(is_it) else { continue };
            while shard.next_answer(session).is_some() {
                publisher.answered += 1;
                publisher.longest = publisher.longest.max(self.tick - publisher.since.take().unwrap_or(self.tick));
                if !publisher.is_for_slow {
                    publisher.packet = 0;
                }
            }
            if shard.take_held(session) {
                publisher.is_held = false;
            }
        }
    }

    /// What is booked, and where, is bounded, whoever publishes.
    fn check(&self) {
        for (worker, shard) in self.shards.iter().enumerate() {
            let sessions: Vec<SessionSlot> =
                self.publishers.iter().filter(|own| own.worker == worker).map(|own| own.session).collect();
            shard.check_invariants(|slot| {
                shard
                    .of(slot)
                    .is_some_and(|session| sessions.contains(&session) || (worker == 0 && session == self.slow))
            });
            let (used, share) = (shard.pool.used(pool::Class::Unsettled), shard.pool.share(pool::Class::Unsettled));
            assert!(used <= share + self.size as u64 + 1_024, "{used} of {share} bytes");
        }
    }

    /// For how many ticks somebody who publishes something else has waited at the longest.
    fn longest_of_others(&self) -> u32 {
        let others = self.publishers.iter().filter(|own| !own.is_for_slow);
        others.map(|own| own.longest.max(own.since.map_or(0, |since| self.tick - since))).max().expect("two")
    }

    fn others_answered(&self) -> u32 {
        self.publishers.iter().filter(|own| !own.is_for_slow).map(|own| own.answered).sum()
    }

    fn dropped(&self) -> u64 {
        self.counters.value(Metric::DroppedQueueFull)
    }
}

/// A message in four seconds, with a window of one; its publishers fill theirs with long messages, or many do with short ones.
#[test]
fn a_slow_subscriber_holds_up_its_own_publishers_alone() {
    for (publishers, size) in [(1, 200_000), (10, 8_000), (20, 10)] {
        let mut world = World::new(publishers, size, (1, 4 * SECOND), 1);
        world.run(60 * SECOND);
        assert!(world.longest_of_others() <= 1, "{publishers}: others waited for {} ticks", world.longest_of_others());
        assert!(world.others_answered() > 2 * 59 * SECOND, "{publishers}: {}", world.others_answered());
        assert!(world.taken >= 14, "{publishers}: it took {}", world.taken);
        assert!(world.shards.iter().any(|shard| shard.held_for_room > 0) || size == 10, "{publishers}");
    }
}

/// So many publish to it that they fill what there is with a message or two of each: the others wait until it was given up.
#[test]
fn a_crowd_of_its_publishers_holds_up_others_for_a_moment() {
    // Until it is given up, and until it is their turn again.
    for (publishers, size) in [(300, 8_000), (60, 100_000)] {
        let mut world = World::new(publishers, size, (1, 4 * SECOND), 1);
        world.run(30 * SECOND);
        assert!(
            world.longest_of_others() <= 3 * SECOND,
            "{size}: others waited for {} ticks",
            world.longest_of_others()
        );
        assert!(world.counters.value(Metric::Stalled) > 0 && world.dropped() > 0);
    }
}

/// Just as many publish, and it takes what it is sent as fast as it comes: nothing is dropped.
#[test]
fn whoever_takes_what_it_is_sent_loses_nothing_to_a_crowd() {
    let mut world = World::new(100, 8_000, (40, 1), WINDOW);
    world.run(20 * SECOND);
    assert_eq!((world.dropped(), world.counters.value(Metric::Stalled)), (0, 0));
    assert!(world.taken > 4_000, "it took {}", world.taken);
}

/// Messages of a group go to its home first, and from there to the member: it has the credit of neither while they wait.
#[test]
fn a_slow_member_of_a_group_holds_up_its_own_publishers_alone() {
    let mut world = World::new(10, 8_000, (1, 4 * SECOND), 1);
    // The home is the other shard, so that what the first one publishes goes there and comes back.
    let home = world.shards[0].home;
    let mut groups = (0..100).map(|number| format!("$share/{number}/slow"));
    let group = groups.find(|group| home.of(group).index() == 1).unwrap();
    let mut pending = PendingSuback {
        waits: world.shards[0].begin_subscribe(),
        homes: 0,
        is_whole: false,
        is_unsubscribe: false,
        packet: 1,
        codes: Vec::new(),
    };
    world.shards[0].unsubscribe(world.slow, "slow");
    world.shards[0].subscribe(world.slow, &group, Options::plain(QoS::AtLeastOnce), 0, &mut pending);
    world.run(60 * SECOND);
    assert!(world.longest_of_others() <= 2, "others waited for {} ticks", world.longest_of_others());
    assert!(world.taken >= 14, "it took {}", world.taken);
}

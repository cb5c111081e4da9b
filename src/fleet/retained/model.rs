//! Gateways, their clocks and the bucket, in any order: what is retained is the same at all of them in the end, and the latest of its topic,
//! whatever was written at the same time, lost on the way back, deleted while somebody was away, swept, or has expired. Faults that are put
//! in are found.

use std::collections::VecDeque;

use super::*;
use crate::link::Exchange;
use crate::sink::nats::bucket::{Step, is_ahead_of, step};

const GATEWAYS: usize = 3;
const TOPICS: u8 = 3;
const HOUR_MS: u64 = 3_600_000;

/// What goes wrong, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// Of two stamps the earlier one stays in the bucket.
    Reversed,
    /// A deletion does not go up.
    DeletionForgotten,
    /// The sweeper takes away whatever the topic has by then.
    SweepsByTopic,
    /// Whoever comes back does not look for what is no longer there.
    UnseenForgotten,
    /// What has expired is kept like any other message.
    ExpiryForgotten,
    /// A clock does not follow the stamps that it sees.
    ClockStandsAlone,
}

/// A message; 0: it deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message {
    stamp: Stamp,
    payload: u32,
    expires_ms: Option<u64>,
}

impl Message {
    /// What a newcomer finds of it.
    fn seen(&self, now_ms: u64) -> u32 {
        if self.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms) { 0 } else { self.payload }
    }

    fn held(&self) -> Held {
        let expires_ms = self.expires_ms.and_then(|expires_ms| i64::try_from(expires_ms).ok());
        Held { stamp: self.stamp, publishing: Some(Publishing { expires_ms, ..deletion(self.stamp) }) }
    }
}

struct Gateway {
    exchange: Exchange,
    /// Its clock beside the true one, in milliseconds.
    offset_ms: i64,
    table: HashMap<u8, Message>,
    /// What has not gone up.
    log: VecDeque<(u8, Message)>,
    /// Revisions that it knows of.
    known: HashMap<u8, (u64, Stamp)>,
    /// So far it has read the bucket.
    read: u64,
    unseen: HashMap<u8, Stamp>,
    graves: HashMap<Box<str>, (u64, u64)>,
    is_away: bool,
}

struct World {
    random: fastrand::Rng,
    planted: Planted,
    now_ms: u64,
    rows: BTreeMap<u8, (u64, Message)>,
    revisions: u64,
    payloads: u32,
    gateways: Vec<Gateway>,
    /// The latest that anybody has published, by topic.
    latest: HashMap<u8, Message>,
}

impl World {
    fn new(seed: u64, planted: Planted) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let gateways = (0..GATEWAYS).map(|number| Gateway {
            exchange: Exchange::of_fleet(1, &format!("gate-{number}")),
            // Within what is followed.
            offset_ms: random.i64(-200_000..200_000),
            table: HashMap::new(),
            log: VecDeque::new(),
            known: HashMap::new(),
            read: 0,
            unseen: HashMap::new(),
            graves: HashMap::new(),
            is_away: false,
        });
        let gateways = gateways.collect();
        let (rows, latest) = (BTreeMap::new(), HashMap::new());
        Self { random, planted, now_ms: 1_000 * HOUR_MS, rows, revisions: 0, payloads: 0, gateways, latest }
    }

    /// What the clock of a gateway shows.
    fn clock(&self, at: usize) -> u64 {
        self.now_ms.saturating_add_signed(self.gateways[at].offset_ms)
    }

    fn publish(&mut self, at: usize, topic: u8) {
        let now_ms = self.clock(at);
        self.payloads += 1;
        let payload = if self.random.u8(..3) == 0 { 0 } else { self.payloads };
        let expires_ms = (payload != 0 && self.random.u8(..4) == 0).then(|| now_ms + self.random.u64(1..HOUR_MS));
        let gateway = &mut self.gateways[at];
        let message = Message { stamp: gateway.exchange.stamp(now_ms), payload, expires_ms };
        gateway.keep(topic, message);
        if self.planted != Planted::DeletionForgotten || payload != 0 {
            gateway.log.push_back((topic, message));
        }
        let latest = self.latest.entry(topic).or_insert(message);
        if latest.stamp < message.stamp {
            *latest = message;
        }
    }

    /// One try to bring up the first that has not gone.
    fn go_up(&mut self, at: usize) {
        let now_ms = self.clock(at);
        let gateway = &mut self.gateways[at];
        let Some(&(topic, message)) = gateway.log.front() else { return };
        let there = gateway.known.get(&topic).copied();
        let is_ahead = |stamp| is_ahead_of(stamp, now_ms);
        let step = match there {
            Some((revision, held)) if self.planted == Planted::Reversed => {
                step(Some((revision, message.stamp)), held, is_ahead)
            }
            there => step(there, message.stamp, is_ahead),
        };
        let Step::Write(expected) = step else {
            gateway.log.pop_front();
            return;
        };
        let now = self.rows.get(&topic).map(|(revision, row)| (*revision, row.stamp));
        if now.map_or(0, |(revision, _)| revision) != expected {
            // It is asked what is there.
            match now {
                Some(now) => drop(gateway.known.insert(topic, now)),
                None => drop(gateway.known.remove(&topic)),
            }
            return;
        }
        self.revisions += 1;
        self.rows.insert(topic, (self.revisions, message));
        // An answer may be lost: it is written again, over what it does not know of.
        if self.random.u8(..4) > 0 {
            gateway.known.insert(topic, (self.revisions, message.stamp));
            gateway.log.pop_front();
        }
    }

    /// Reads the next of the bucket. `false`: there is none.
    fn read(&mut self, at: usize) -> bool {
        let now_ms = self.clock(at);
        let gateway = &mut self.gateways[at];
        let next = self.rows.iter().filter(|(_, (revision, _))| *revision > gateway.read);
        let Some((&topic, &(revision, message))) = next.min_by_key(|(_, (revision, _))| *revision) else {
            for (topic, stamp) in std::mem::take(&mut gateway.unseen) {
                if self.planted != Planted::UnseenForgotten {
                    gateway.keep(topic, Message { stamp: stamp.withdrawal(), payload: 0, expires_ms: None });
                }
            }
            return false;
        };
        gateway.read = revision;
        gateway.unseen.remove(&topic);
        match goes_at(message.payload == 0, &message.held()) {
            Some(goes_ms) => drop(gateway.graves.insert(topic.to_string().into(), (revision, goes_ms))),
            None => drop(gateway.graves.remove(&*topic.to_string())),
        }
        if is_ahead_of(message.stamp, now_ms) {
            return true;
        }
        if self.planted != Planted::ClockStandsAlone {
            gateway.exchange.note_stamp(message.stamp);
        }
        let is_forgotten = self.planted == Planted::ExpiryForgotten;
        gateway.keep(topic, Message { expires_ms: message.expires_ms.filter(|_| !is_forgotten), ..message });
        true
    }

    fn sweep(&mut self) {
        let now_ms = self.clock(0);
        for (name, at) in due(&self.gateways[0].graves, now_ms) {
            let topic: u8 = name.parse().unwrap();
            let is_by_topic = self.planted == Planted::SweepsByTopic;
            self.rows.retain(|of, (revision, _)| *of != topic || (*revision != at && !is_by_topic));
            self.gateways[0].graves.remove(&name);
        }
    }

    /// All that is said goes up, and is read by whoever is there.
    fn settle(&mut self) {
        for at in 0..GATEWAYS {
            while !self.gateways[at].log.is_empty() {
                self.go_up(at);
            }
        }
        for at in 0..GATEWAYS {
            while !self.gateways[at].is_away && self.read(at) {}
        }
    }

    fn act(&mut self) {
        let at = self.random.usize(..GATEWAYS);
        match self.random.u8(..20) {
            0..6 if !self.gateways[at].is_away => {
                let topic = self.random.u8(..TOPICS);
                self.publish(at, topic);
            }
            6..11 if !self.gateways[at].is_away => self.go_up(at),
            11..16 if !self.gateways[at].is_away => drop(self.read(at)),
            16 => {
                self.sweep();
            }
            17 => self.now_ms += self.random.u64(..HOUR_MS / 60),
            // Whoever sweeps looks at all that he has.
            18 if at != 0 && self.gateways[at].is_away => self.gateways[at].come_back(),
            18 if at != 0 => {
                while !self.gateways[at].log.is_empty() {
                    self.go_up(at);
                }
                self.gateways[at].is_away = true;
            }
            19 if self.random.u8(..4) == 0 => {
                self.settle();
                self.now_ms += 26 * HOUR_MS;
            }
            _ => {}
        }
    }

    /// What is wrong in the end.
    fn fault(&mut self) -> Option<String> {
        self.settle();
        for gateway in self.gateways.iter_mut().filter(|gateway| gateway.is_away) {
            gateway.come_back();
        }
        self.settle();
        for topic in 0..TOPICS {
            let latest = self.latest.get(&topic).map_or(0, |latest| latest.seen(self.now_ms));
            for (at, gateway) in self.gateways.iter().enumerate() {
                let found = gateway.table.get(&topic).map_or(0, |found| found.seen(self.now_ms));
                if found != latest {
                    return Some(format!("topic {topic} at gateway {at}: {found}, and not {latest}"));
                }
            }
        }
        None
    }
}

impl Gateway {
    /// As a shard does.
    fn keep(&mut self, topic: u8, message: Message) {
        let kept = self.table.entry(topic).or_insert(message);
        if kept.stamp < message.stamp {
            *kept = message;
        }
    }

    /// It reads the whole bucket again. All that was published here went up before it was away.
    fn come_back(&mut self) {
        self.is_away = false;
        self.read = 0;
        self.graves.clear();
        let kept = self.table.iter().filter(|(_, message)| message.payload != 0);
        self.unseen = kept.map(|(&topic, message)| (topic, message.stamp)).collect();
    }
}

fn fault_of(seed: u64, planted: Planted) -> Option<String> {
    let mut world = World::new(seed, planted);
    (0..300).for_each(|_| world.act());
    world.fault()
}

#[test]
fn all_agree_on_the_latest_in_any_order() {
    for seed in 0..1_500 {
        assert_eq!(fault_of(seed, Planted::Nothing), None, "seed {seed}");
    }
}

#[test]
fn faults_that_are_put_in_are_found() {
    for planted in [
        Planted::Reversed,
        Planted::DeletionForgotten,
        Planted::SweepsByTopic,
        Planted::UnseenForgotten,
        Planted::ExpiryForgotten,
    ] {
        assert!((0..1_500).any(|seed| fault_of(seed, planted).is_some()), "{planted:?} is not found");
    }
}

/// Whoever has seen a message from a gateway whose clock is ahead, and publishes then, is later: at a clock of its own it would be earlier.
#[test]
fn a_clock_that_is_ahead_carries_the_others_along() {
    let told = |planted| {
        let mut world = World::new(1, planted);
        (world.gateways[0].offset_ms, world.gateways[1].offset_ms) = (300_000, 0);
        for at in [0, 1] {
            world.publish(at, 0);
            world.latest.get_mut(&0).unwrap().payload = 1;
            world.settle();
        }
        let stamp = world.rows[&0].1.stamp;
        (stamp.node == world.gateways[1].exchange.stamp(0).node, stamp.unix_ms() >= world.now_ms + 300_000)
    };
    assert_eq!(told(Planted::Nothing), (true, true));
    assert_eq!(told(Planted::ClockStandsAlone), (false, true));
}

/// One that is too far ahead is followed by nobody, and gives way to whatever is published elsewhere. When its gateway's clock is mended and
/// that time has come, all agree again.
#[test]
fn a_clock_that_is_too_far_ahead_is_not_followed() {
    let mut world = World::new(1, Planted::Nothing);
    for (at, offset_ms) in [(0, 0), (1, HOUR_MS as i64), (2, 0)] {
        world.gateways[at].offset_ms = offset_ms;
    }
    let ahead = Message { stamp: world.gateways[1].exchange.stamp(world.clock(1)), payload: 7, expires_ms: None };
    let put = |world: &mut World, at: usize, message: Message| {
        world.gateways[at].keep(0, message);
        world.gateways[at].log.push_back((0, message));
        world.settle();
    };
    put(&mut world, 1, ahead);
    let seen = |world: &World, at: usize| world.gateways[at].table.get(&0).map(|message| message.payload);
    assert_eq!([0, 1, 2].map(|at| seen(&world, at)), [None, Some(7), None]);
    let clock = world.clock(2);
    let now = Message { stamp: world.gateways[2].exchange.stamp(clock), payload: 8, expires_ms: None };
    assert!(now.stamp < ahead.stamp, "nobody was led into the future");
    put(&mut world, 2, now);
    assert_eq!((world.rows[&0].1, [0, 1, 2].map(|at| seen(&world, at))), (now, [Some(8), Some(7), Some(8)]));
    world.now_ms += HOUR_MS;
    world.gateways[1].offset_ms = 0;
    let clock = world.clock(1);
    let mended = Message { stamp: world.gateways[1].exchange.stamp(clock), payload: 9, expires_ms: None };
    assert!(mended.stamp > ahead.stamp);
    put(&mut world, 1, mended);
    assert_eq!([0, 1, 2].map(|at| seen(&world, at)), [Some(9); 3]);
}

/// What has expired is found by nobody, holds up what is older, and goes from the bucket a day later; what was published under its topic
/// meanwhile stays, though the sweeper has not read it.
#[test]
fn what_has_expired_goes_and_what_came_after_it_stays() {
    let mut world = World::new(1, Planted::Nothing);
    world.gateways.iter_mut().for_each(|gateway| gateway.offset_ms = 0);
    let message = |world: &World, at: usize, payload, expires_ms| Message {
        stamp: world.gateways[at].exchange.stamp(world.now_ms),
        payload,
        expires_ms,
    };
    let older = message(&world, 2, 1, None);
    world.now_ms += 10;
    for topic in [0, 1] {
        let expiring = message(&world, 1, 2, Some(world.now_ms + 1_000));
        world.gateways[1].keep(topic, expiring);
        world.gateways[1].log.push_back((topic, expiring));
    }
    world.settle();
    world.now_ms += 1_000;
    world.gateways[2].log.push_back((0, older));
    world.settle();
    let seen =
        |world: &World, topic| world.gateways.iter().map(|one| one.table[&topic].seen(world.now_ms)).sum::<u32>();
    assert_eq!((seen(&world, 0), world.rows[&0].1.payload), (0, 2), "it is known to be later");
    world.now_ms += 24 * HOUR_MS - 1_001;
    world.sweep();
    assert_eq!(world.rows.len(), 2, "a day is not over");
    world.now_ms += 2_000;
    let newer = message(&world, 2, 3, None);
    world.gateways[2].keep(0, newer);
    world.gateways[2].log.push_back((0, newer));
    while !world.gateways[2].log.is_empty() {
        world.go_up(2);
    }
    assert_eq!(world.gateways[0].graves.len(), 2, "it has not read it");
    world.sweep();
    assert_eq!(world.rows.into_iter().map(|(topic, (_, row))| (topic, row.payload)).collect::<Vec<_>>(), [(0, 3)]);
}

//! Publications across gateways under a model of NATS (decision 0028): the places and interests of the program, in worlds in which
//! messages are lost on their way, consumers vanish, NATS is away and gateways are killed, each step drawn from a seed.
//!
//! What must hold: what was published after SUBACK comes to the session that has subscribed, at least once, and in one life of a gateway
//! never twice and never out of order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::interests::{Held, Interests};
use super::place::{Place, Position, StreamFacts};
use crate::link::{Cover, QoS, WorkerId};
use crate::sink::nats::subject;

const PREFIX: &str = "p";
const GATEWAYS: usize = 3;
const WORKERS: u16 = 2;
const TOPICS: [&str; 6] = ["a", "b/1", "b/2", "c/x/1", "c/y/1", "d"];
const FILTERS: [&str; 6] = ["a", "b/+", "b/2", "c/#", "+/1", "d"];
const STEPS: usize = 800;
const WORLDS: u64 = 60;
const WORLDS_VARIABLE: &str = "SIM_RUNS";

/// What a world may plant, to see it found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// How far it has come is kept before what came is safe with its sessions.
    KeptTooSoon,
    /// SUBACK does not wait until what is published elsewhere is read.
    SubackTooSoon,
}

struct Message {
    topic: &'static str,
    qos: QoS,
    node: usize,
}

impl Message {
    fn subject(&self) -> String {
        subject::of_message(PREFIX, &format!("device-{}", self.node), self.topic)
    }
}

/// A filter of a session.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subscription {
    /// SUBACK waits.
    Asked,
    /// It was answered while nobody read: what is read from now on comes, as soon as somebody does.
    Unserved,
    /// What is published behind this message must come.
    Served(u64),
}

/// One session for each shard. It lies in the store.
#[derive(Default)]
struct Session {
    filters: BTreeMap<&'static str, Subscription>,
    /// Messages that must come,
    owed: BTreeSet<u64>,
}

/// What a process is while it lives.
struct Life {
    interests: Interests,
    versions: [u64; WORKERS as usize],
    place: Option<Place>,
    consumer: Option<Vec<String>>,
    /// Passed on to shards, and not safe with their sessions yet: up to where, and whether it is a message for them.
    under_way: VecDeque<(Position, bool)>,
    /// The latest that was passed on.
    latest: u64,
    is_nats_there: bool,
}

struct Gateway {
    sessions: Vec<Session>,
    kept: Option<Position>,
    life: Option<Life>,
}

struct World {
    random: fastrand::Rng,
    fault: Fault,
    stream: Vec<Message>,
    gateways: Vec<Gateway>,
    broken: Vec<String>,
}

fn facts(stream: &[Message]) -> StreamFacts {
    StreamFacts { created: "t".into(), first: 1, last: stream.len() as u64 }
}

/// [MQTT-4.7.1], for filters without `$share` and topics without `$`.
fn matches(filter: &str, topic: &str) -> bool {
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
}

impl Gateway {
    fn cover(&self, worker: usize) -> Cover {
        let mut cover = Cover::default();
        for filter in self.sessions[worker].filters.keys() {
            cover.add(filter);
        }
        cover
    }

    /// Shards say what their sessions want, as they do when a process begins.
    fn begin(&mut self, now: Instant) {
        let mut interests = Interests::new(WORKERS.into());
        for worker in 0..WORKERS {
            // What was not answered is not there.
            let session = &mut self.sessions[usize::from(worker)];
            session.filters.retain(|_, known| *known != Subscription::Asked);
            interests.say(WorkerId(worker), 1, self.cover(worker.into()), now);
        }
        self.life = Some(Life {
            interests,
            versions: [1; WORKERS as usize],
            place: None,
            consumer: None,
            under_way: VecDeque::new(),
            latest: 0,
            is_nats_there: false,
        });
    }

    /// These changes are held: whoever waited for SUBACK hears it.
    fn hear_held(&mut self, held: &[Held], last: u64) {
        let Some(life) = &self.life else { return };
        for (worker, version) in held {
            if life.versions[usize::from(worker.0)] != *version {
                continue;
            }
            let served = if life.consumer.is_some() { Subscription::Served(last) } else { Subscription::Unserved };
            for known in self.sessions[usize::from(worker.0)].filters.values_mut() {
                if *known == Subscription::Asked {
                    *known = served;
                }
            }
        }
    }

    /// What is read is made what is wanted: as `Intake::follow` and `Intake::open` do.
    fn follow(&mut self, stream: &[Message], is_read: bool) {
        let Some(life) = self.life.as_mut().filter(|life| life.is_nats_there) else { return };
        let (wanted, facts) = (life.interests.wanted(PREFIX), facts(stream));
        let had_consumer = life.consumer.is_some();
        match &mut life.place {
            None => {
                let mut place = Place::new(self.kept.as_ref(), &facts);
                place.resume(&wanted);
                // It is kept at once where nothing was kept before: SUBACK comes behind it.
                self.kept.get_or_insert(place.position());
                life.place = Some(place);
            }
            Some(place) => {
                place.look(&facts);
                if place.wanted() != wanted {
                    if !had_consumer && !place.wanted().is_empty() {
                        place.resume(&wanted);
                    } else {
                        place.want(&wanted, facts.last, is_read && had_consumer);
                    }
                }
            }
        }
        life.consumer = (!wanted.is_empty()).then(|| wanted.clone());
        let held = life.interests.handle_read(PREFIX, &wanted);
        self.hear_held(&held, facts.last);
        // Who was answered while nobody read is served from here on.
        for known in self.sessions.iter_mut().flat_map(|session| session.filters.values_mut()) {
            if *known == Subscription::Unserved {
                *known = Subscription::Served(facts.last);
            }
        }
    }

    /// The next message that the consumer brings: its number.
    fn next(&self, stream: &[Message]) -> Option<u64> {
        let life = self.life.as_ref()?;
        let (consumer, place) = (life.consumer.as_ref()?, life.place.as_ref()?);
        let from = place.position().position + 1;
        let is_wanted = |seq: &u64| {
            let subject = stream[*seq as usize - 1].subject();
            consumer.iter().any(|filter| subject::covers(filter, &subject))
        };
        (from..=stream.len() as u64).find(is_wanted)
    }
}

impl World {
    fn new(seed: u64, fault: Fault) -> Self {
        let gateway =
            || Gateway { sessions: (0..WORKERS).map(|_| Session::default()).collect(), kept: None, life: None };
        let mut world = Self {
            random: fastrand::Rng::with_seed(seed),
            fault,
            stream: Vec::new(),
            gateways: (0..GATEWAYS).map(|_| gateway()).collect(),
            broken: Vec::new(),
        };
        world.heal();
        world
    }

    /// Every gateway lives, and reads.
    fn heal(&mut self) {
        let now = Instant::now();
        for gateway in &mut self.gateways {
            if gateway.life.is_none() {
                gateway.begin(now);
            }
            let life = gateway.life.as_mut().expect("it has just begun");
            if !std::mem::replace(&mut life.is_nats_there, true) {
                life.interests.begin();
            }
            if life.consumer.is_none() {
                gateway.follow(&self.stream, false);
            }
        }
    }

    fn publish(&mut self) {
        let node = self.random.usize(..GATEWAYS);
        if self.gateways[node].life.is_none() {
            return;
        }
        let qos = if self.random.bool() { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let topic = TOPICS[self.random.usize(..TOPICS.len())];
        self.stream.push(Message { topic, qos, node });
        let seq = self.stream.len() as u64;
        for (at, gateway) in self.gateways.iter_mut().enumerate() {
            // Its own sessions have it at once.
            if at == node || !qos.is_acknowledged() {
                continue;
            }
            for session in &mut gateway.sessions {
                let must_come = session.filters.iter().any(|(filter, known)| {
                    matches!(known, Subscription::Served(from) if seq > *from) && matches(filter, topic)
                });
                if must_come {
                    session.owed.insert(seq);
                }
            }
        }
    }

    fn subscribe(&mut self, at: usize) {
        let (worker, filter) = (self.random.usize(..usize::from(WORKERS)), FILTERS[self.random.usize(..FILTERS.len())]);
        let last = self.stream.len() as u64;
        let gateway = &mut self.gateways[at];
        if gateway.life.is_none() {
            return;
        }
        let session = &mut gateway.sessions[worker];
        if session.filters.remove(filter).is_some() {
            // What was under way of it may come or not, unless another one that was answered wants it too.
            let answered = session.filters.iter().filter(|(_, known)| **known != Subscription::Asked);
            let filters: Vec<_> = answered.map(|(filter, _)| *filter).collect();
            let stream = &self.stream;
            let is_owed = |seq: &u64| filters.iter().any(|filter| matches(filter, stream[*seq as usize - 1].topic));
            session.owed.retain(is_owed);
        } else {
            let first =
                if self.fault == Fault::SubackTooSoon { Subscription::Served(last) } else { Subscription::Asked };
            session.filters.insert(filter, first);
        }
        let cover = gateway.cover(worker);
        let Some(life) = &mut gateway.life else { return };
        life.versions[worker] += 1;
        let held = life.interests.say(WorkerId(worker as u16), life.versions[worker], cover, Instant::now());
        gateway.hear_held(held.as_slice(), last);
    }

    /// The next message comes; it may be lost on its way, which is noticed.
    fn read(&mut self, at: usize) {
        let is_lost = self.random.u8(..12) == 0;
        let gateway = &mut self.gateways[at];
        let Some(seq) = gateway.next(&self.stream) else { return };
        let life = gateway.life.as_mut().expect("it reads");
        if is_lost {
            life.consumer = None;
            return;
        }
        let message = &self.stream[seq as usize - 1];
        let place = life.place.as_mut().expect("it reads");
        let is_for_somebody = place.take(seq, &message.subject(), message.qos) && message.node != at;
        if is_for_somebody && seq <= life.latest {
            self.broken.push(format!("{seq} comes behind {} in one life", life.latest));
        }
        if is_for_somebody {
            life.latest = seq;
        }
        life.under_way.push_back((place.position(), is_for_somebody));
        if self.fault == Fault::KeptTooSoon {
            gateway.kept = Some(place.position());
        }
    }

    /// What was passed on first is safe with its sessions, and how far that is may be kept.
    fn settle(&mut self, at: usize) {
        let is_kept = self.random.bool();
        let gateway = &mut self.gateways[at];
        let Some((position, is_message)) = gateway.life.as_mut().and_then(|life| life.under_way.pop_front()) else {
            return;
        };
        if is_message {
            for session in &mut gateway.sessions {
                session.owed.remove(&position.position);
            }
        }
        if is_kept {
            gateway.kept = Some(position);
        }
    }

    fn step(&mut self) {
        let at = self.random.usize(..GATEWAYS);
        let last = self.stream.len() as u64;
        match self.random.u8(..100) {
            0..20 => self.publish(),
            20..28 => self.subscribe(at),
            28..60 => self.read(at),
            60..85 => self.settle(at),
            // What is wanted is looked at; whether all before was read is known at times.
            85..93 => {
                let is_read = self.gateways[at].next(&self.stream).is_none() && self.random.bool();
                self.gateways[at].follow(&self.stream, is_read);
            }
            // The consumer is gone; NATS is.
            93..95 => {
                if let Some(life) = &mut self.gateways[at].life {
                    life.consumer = None;
                }
            }
            95..97 => {
                let Some(life) = &mut self.gateways[at].life else { return };
                (life.consumer, life.is_nats_there) = (None, false);
                let held = life.interests.end();
                self.gateways[at].hear_held(&held, last);
            }
            97 => self.gateways[at].life = None,
            _ => self.heal(),
        }
    }

    /// All of its faults, in words.
    fn run(mut self) -> Vec<String> {
        for _ in 0..STEPS {
            self.step();
        }
        self.heal();
        for at in 0..GATEWAYS {
            self.gateways[at].follow(&self.stream, false);
            let mut rounds = 0;
            while self.gateways[at].next(&self.stream).is_some() && rounds < 10 * STEPS {
                rounds += 1;
                self.read(at);
                self.heal();
            }
            while self.gateways[at].life.as_ref().is_some_and(|life| !life.under_way.is_empty()) {
                self.settle(at);
            }
            for (worker, session) in self.gateways[at].sessions.iter().enumerate() {
                if !session.owed.is_empty() {
                    let seqs: Vec<_> = session.owed.iter().take(5).collect();
                    self.broken
                        .push(format!("{} of session {worker} at {at} never came: {seqs:?}", session.owed.len()));
                }
            }
        }
        self.broken
    }
}

fn worlds() -> u64 {
    std::env::var(WORLDS_VARIABLE).map_or(WORLDS, |worlds| worlds.parse().expect("a number of worlds"))
}

fn faults(fault: Fault) -> usize {
    (0..worlds()).filter(|&seed| !World::new(seed, fault).run().is_empty()).count()
}

#[test]
fn what_is_published_after_suback_comes_whatever_is_lost_or_dies() {
    for seed in 0..worlds() {
        let broken = World::new(seed, Fault::None).run();
        assert!(broken.is_empty(), "seed {seed}: {broken:#?}");
    }
}

#[test]
fn a_place_that_is_kept_before_its_messages_are_safe_is_found() {
    assert!(faults(Fault::KeptTooSoon) > 0, "no world has found it");
}

#[test]
fn a_suback_before_what_is_published_elsewhere_is_read_is_found() {
    assert!(faults(Fault::SubackTooSoon) > 0, "no world has found it");
}

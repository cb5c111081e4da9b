//! Groups of shared subscribers under a model of NATS (decision 0033): three gateways with the program's own parts, from the broker that gives to
//! members up to the row of the group, and a durable consumer as the server keeps it. Connections are cut with what is on its way, answers are
//! lost or late, acknowledgements are lost or doubled, members go with what they have and come again, gateways are killed.
//!
//! What must hold: without any of that each message goes to one member, once, and what is to come once though its member goes and comes again; with
//! it to one at least. NATS is told of no message that it is taken before a device has acknowledged it, but for what has gone with a session that is to
//! get it once. What is under way is counted and bounded, and as soon as all works again everything that waits is given.

mod gateway;
mod server;

use std::collections::BTreeSet;

use super::*;
use gateway::{Gateway, Got};
use server::{Nats, Up};

use crate::codec::mqtt::QoS;
use crate::fleet::membership::model::Rows;
use crate::fleet::membership::{Ask, Membership};

const GATEWAYS: usize = 3;
/// What a member takes at a time.
const RECEIVE_MAXIMUM: u16 = 10;
/// Members at a gateway, at most.
const MEMBERS: usize = 3;
const GROUP: &str = "$share/workers/jobs";
const TOPIC: &str = "jobs";
const STEPS: usize = 1_500;
const WORLDS: u64 = 30;
const WORLDS_VARIABLE: &str = "SIM_RUNS";
const SEED_VARIABLE: &str = "SIM_SEED";

/// What a world may plant, to see it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// NATS is told that a message is with a member when the gateway has it.
    TakenTooSoon,
    /// What a member leaves behind is said to be taken.
    LeftIsTaken,
    /// What comes when the last member here has just gone is said to be taken.
    StrayIsTaken,
    /// Nobody tells NATS that a message is being dealt with.
    NeverUnderway,
    /// What was asked over a connection that is gone is waited for.
    OldQuestions,
    /// What was sent of QoS 2 goes back when the connection of its session ends.
    SentGoesBack,
}

/// What goes wrong by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    Calm,
    Rough,
}

/// A message as the world knows it.
#[derive(Clone, Debug)]
struct Published {
    number: u32,
    at: usize,
    /// Groups that are given it at its own gateway, as it says.
    groups: Option<Box<str>>,
    /// How much had been disturbed at its gateway when it was published.
    disturbed: u32,
}

struct World {
    random: fastrand::Rng,
    fault: Fault,
    weather: Weather,
    now: Instant,
    nats: Nats,
    gateways: Vec<Gateway>,
    published: Vec<Published>,
    got: Got,
    /// What some device has acknowledged, or nobody else may get.
    acknowledged: BTreeSet<u32>,
    broken: BTreeSet<String>,
}

impl World {
    fn new(seed: u64, fault: Fault, weather: Weather) -> Self {
        let now = Instant::now();
        let mut random = fastrand::Rng::with_seed(seed);
        let gateways = (0..GATEWAYS).map(|at| Gateway::new(at, &mut random, now)).collect();
        let mut world = Self {
            random,
            fault,
            weather,
            now,
            nats: Nats::default(),
            gateways,
            published: Vec::new(),
            got: Got::new(),
            acknowledged: BTreeSet::new(),
            broken: BTreeSet::new(),
        };
        (0..GATEWAYS).for_each(|at| world.reconnect(at));
        // Here somebody is always a member, so what the group is owed stays with it.
        world.come(0);
        world
    }

    fn chance(&mut self, of: u32) -> bool {
        self.random.u32(..of) == 0
    }

    // --- What happens to a gateway ------------------------------------------------------------------------------------

    fn turn(&mut self, at: usize) {
        let Self { gateways, now, fault, got, acknowledged, .. } = self;
        acknowledged.extend(gateways[at].acknowledged.drain(..));
        gateways[at].turn(*now, *fault, got);
    }

    fn come(&mut self, at: usize) {
        let is_kept = self.random.u8(..4) == 0;
        self.gateways[at].come(is_kept);
        self.turn(at);
    }

    fn go(&mut self, at: usize) {
        let online = self.gateways[at].online();
        if online.len() <= usize::from(at == 0) {
            return;
        }
        let member = self.random.choice(online).expect("there are some");
        if self.weather == Weather::Calm && !self.gateways[at].may_go_quietly(member) {
            return;
        }
        self.gateways[at].go(member, self.fault);
        self.turn(at);
    }

    /// A member leaves the group and joins it at once: the last one here takes the group with it.
    fn leave_and_join(&mut self, at: usize) {
        let online = self.gateways[at].online();
        if online.len() <= usize::from(at == 0) {
            return;
        }
        let member = self.random.choice(online).expect("there are some");
        if self.gateways[at].leave(member) {
            self.turn(at);
            self.gateways[at].join(member);
            self.turn(at);
        }
    }

    fn publish(&mut self, at: usize) {
        let number = self.published.len() as u32 + 1;
        let groups = self.gateways[at].publish(number);
        let disturbed = self.gateways[at].disturbed;
        self.published.push(Published { number, at, groups, disturbed });
        self.turn(at);
    }

    fn reconnect(&mut self, at: usize) {
        let link = self.nats.connect();
        self.gateways[at].connect(link, self.now, self.fault);
        self.turn(at);
    }

    fn cut(&mut self, at: usize) {
        let Self { gateways, random, now, nats, .. } = self;
        if let Some(link) = gateways[at].disconnect(*now) {
            // Some of what was said arrives all the same.
            let arrive = random.usize(..=link.up.len());
            nats.hear_some(at, link, arrive, *now);
        }
        self.turn(at);
    }

    fn kill(&mut self, at: usize) {
        self.cut(at);
        let (random, now) = (&mut self.random, self.now);
        self.gateways[at].begin_anew(random, now);
        if at == 0 {
            self.come(0);
        }
    }

    // --- The network --------------------------------------------------------------------------------------------------

    /// The server hears what a gateway has said.
    fn hear(&mut self, at: usize) -> bool {
        let is_rough = self.weather == Weather::Rough;
        let (is_lost, is_doubled) = (is_rough && self.chance(25), is_rough && self.chance(25));
        let Self { gateways, nats, now, published, acknowledged, broken, .. } = self;
        let Some(link) = &mut gateways[at].link else { return false };
        let Some(said) = link.up.pop_front() else { return false };
        if let Up::Say(reply, Said::Taken) = &said {
            let message = &published[nats.message_of(reply) as usize - 1];
            if message.groups.is_none() && !acknowledged.contains(&message.number) {
                broken.insert(format!("it is said to be taken and no device has acknowledged it: {message:?}"));
            }
        }
        nats.hear(at, link, said, (is_lost, is_doubled), *now);
        true
    }

    /// Something from the server arrives.
    fn arrive(&mut self, at: usize) -> bool {
        let Self { gateways, now, published, .. } = self;
        let groups = |number: u32| published[number as usize - 1].groups.clone();
        let did = gateways[at].arrive(groups, *now);
        self.turn(at);
        did
    }

    /// One step of a join or a leave.
    fn walk(&mut self, at: usize) -> bool {
        let is_rough = self.weather == Weather::Rough;
        let is_lost = is_rough && self.chance(20);
        let is_late = is_rough && self.chance(20);
        let Self { gateways, random, nats, now, .. } = self;
        let did = gateways[at].walk(nats, random, (is_lost, is_late), *now);
        self.turn(at);
        did
    }

    fn pass_time(&mut self) {
        self.now += Duration::from_millis(self.random.u64(..1_000));
        for at in 0..GATEWAYS {
            if self.weather == Weather::Calm || self.random.bool() {
                self.gateways[at].look(self.now);
                self.turn(at);
            }
            // Nothing is on its way for so long: else the connection is given up.
            while self.hear(at) {}
            while self.arrive(at) {}
        }
    }

    fn step(&mut self) {
        let at = self.random.usize(..GATEWAYS);
        let is_rough = self.weather == Weather::Rough;
        match self.random.u8(..100) {
            0..14 => self.publish(at),
            14..17 if self.gateways[at].online().len() < MEMBERS => self.come(at),
            17..19 => self.go(at),
            19 => self.leave_and_join(at),
            20..32 => {
                let random = &mut self.random;
                self.gateways[at].acknowledge_one(random);
                self.turn(at);
            }
            32..50 => drop(self.hear(at)),
            50..66 => drop(self.arrive(at)),
            66..82 => self.serve(),
            82..90 => drop(self.walk(at)),
            90..95 => self.pass_time(),
            95 if is_rough => self.cut(at),
            96 if is_rough => self.kill(at),
            97 if is_rough => self.nats.do_late(&mut self.random),
            98.. if self.gateways[at].link.is_none() => self.reconnect(at),
            _ => {}
        }
        self.check();
    }

    fn serve(&mut self) {
        let Self { gateways, nats, now, .. } = self;
        nats.serve(gateways, *now);
    }

    /// What must hold at any time.
    fn check(&mut self) {
        for gateway in &self.gateways {
            if !gateway.is_counted() {
                self.broken.insert("a group does not know how much of what it was given is not settled".to_owned());
            }
            let (.., unsettled) = gateway.serving.standing();
            if unsettled > u64::from(RECEIVE_MAXIMUM) * (MEMBERS as u64 + 1) {
                self.broken.insert(format!("{unsettled} messages are under way at once"));
            }
            for consumer in gateway.held() {
                let row = self.nats.rows.row.as_ref();
                let is_there =
                    row.is_some_and(|(_, row)| row.consumer == consumer && row.nodes.contains(&gateway.name));
                if !is_there || !self.nats.rows.consumers.contains_key(&consumer) {
                    self.broken.insert("a gateway serves by a consumer that is not the row's".to_owned());
                }
            }
        }
    }

    /// Everything works again, all have members, and those take what comes.
    fn calm_down(&mut self) {
        self.weather = Weather::Calm;
        while self.nats.has_late() {
            self.nats.do_late(&mut self.random);
        }
        for round in 0..600 {
            for at in 0..GATEWAYS {
                if self.gateways[at].link.is_none() {
                    self.reconnect(at);
                }
                while self.gateways[at].members.is_empty() || self.gateways[at].has_away() {
                    self.come(at);
                }
                while self.walk(at) {}
                while self.hear(at) {}
                self.serve();
                while self.arrive(at) {}
                self.gateways[at].acknowledge_all();
                self.turn(at);
            }
            self.pass_time();
            if round > 60 && self.nats.is_drained() && self.gateways.iter().all(Gateway::is_drained) {
                return;
            }
        }
        self.broken.insert(format!("it stands still: {}", self.nats.describe()));
    }

    fn check_outcome(&mut self, was_calm: bool) {
        for published in &self.published {
            let count = self.got.get(&published.number).map_or(0, Vec::len);
            let is_disturbed =
                published.groups.is_some() && self.gateways[published.at].disturbed != published.disturbed;
            let is_owed = self.nats.is_owed(published.number) || published.groups.is_some();
            if count == 0 && is_owed && !is_disturbed {
                self.broken.insert(format!("a message is lost: {published:?}"));
            }
            if was_calm && count > 1 {
                self.broken.insert(format!("a message goes to two: {published:?} {:?}", self.got[&published.number]));
            }
        }
    }

    /// All of its faults, in words, and how many messages the fleet gave.
    fn run(mut self) -> (Vec<String>, u64) {
        let was_calm = self.weather == Weather::Calm;
        for _ in 0..STEPS {
            self.step();
        }
        self.calm_down();
        self.check_outcome(was_calm);
        let given = self.gateways.iter().map(|gateway| gateway.serving.counts().given).sum();
        (self.broken.into_iter().collect(), given)
    }
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    match number(SEED_VARIABLE) {
        Some(seed) => seed..seed + 1,
        None => 0..number(WORLDS_VARIABLE).unwrap_or(WORLDS),
    }
}

fn play(weather: Weather) -> u64 {
    let mut all = 0;
    for seed in seeds() {
        let (broken, given) = World::new(seed, Fault::None, weather).run();
        assert!(broken.is_empty(), "seed {seed}: {broken:#?}");
        all += given;
    }
    all
}

fn found(fault: Fault, weather: Weather) -> Vec<String> {
    let found = (0..WORLDS).find_map(|seed| {
        let (broken, _) = World::new(seed, fault, weather).run();
        (!broken.is_empty()).then_some(broken)
    });
    found.unwrap_or_else(|| panic!("no world has found {fault:?}"))
}

#[test]
fn each_message_goes_to_one_member_where_nothing_fails() {
    let given = play(Weather::Calm);
    assert!(given > 30 * seeds().count() as u64, "too little happened: {given} messages");
}

#[test]
fn each_message_goes_to_a_member_whatever_is_cut_lost_late_or_killed() {
    let given = play(Weather::Rough);
    assert!(given > 30 * seeds().count() as u64, "too little happened: {given} messages");
}

#[test]
fn what_loses_a_message_is_found() {
    for fault in [Fault::TakenTooSoon, Fault::LeftIsTaken, Fault::StrayIsTaken] {
        let broken = found(fault, Weather::Rough);
        let is_it = |words: &String| words.contains("is lost") || words.contains("no device has acknowledged it");
        assert!(broken.iter().any(is_it), "{fault:?}: {broken:?}");
    }
}

#[test]
fn what_gives_a_message_to_two_is_found() {
    for fault in [Fault::NeverUnderway, Fault::SentGoesBack] {
        let broken = found(fault, Weather::Calm);
        assert!(broken.iter().any(|words| words.contains("goes to two")), "{fault:?}: {broken:?}");
    }
}

/// A gateway has left, and was cut off before it heard so; it has members again, and its first look at the row is lost. By seed 107.
#[test]
fn whoever_was_cut_off_while_it_left_serves_by_no_consumer_until_it_has_joined_anew() {
    let (broken, _) = World::new(107, Fault::None, Weather::Rough).run();
    assert!(broken.is_empty(), "{broken:#?}");
    let now = Instant::now();
    let (mut serving, mut wanted, mut out) =
        (Serving::new(fastrand::Rng::with_seed(1), now), GroupsWanted::default(), Vec::new());
    let group: Arc<str> = GROUP.into();
    let say = |wanted: &mut GroupsWanted, members| {
        drop(wanted.say(WorkerId(0), (Arc::clone(&group), 1), (members, members), now));
    };
    wanted.begin();
    say(&mut wanted, 1);
    serving.begin(now);
    serving.follow(&wanted, now, &mut out);
    serving.handle_joined(&group, Ok(held("made")), &mut wanted, now, &mut out);
    assert_eq!(serving.standing().0, 1);
    say(&mut wanted, 0);
    serving.follow(&wanted, now, &mut out);
    assert!(matches!(out.last(), Some(Effect::Leave(_))), "{out:?}");
    assert_eq!(serving.standing(), (0, 0, 0), "a group that is left is not one that nobody serves");
    serving.end(&mut wanted, now, &mut out);
    wanted.begin();
    say(&mut wanted, 1);
    serving.begin(now);
    out.clear();
    serving.follow(&wanted, now, &mut out);
    serving.ask(now, &mut out);
    assert!(matches!(out[..], [Effect::Join(_)]), "{out:?}");
}

/// Of two gateways that join at once one loses, and while it does the other has members, gives them what comes, and leaves with the last of
/// them: what comes to be the group's then gives none of that again. By seed 456.
#[test]
fn whoever_joins_while_others_come_and_go_gives_nothing_that_they_gave() {
    let (broken, _) = World::new(456, Fault::None, Weather::Calm).run();
    assert!(broken.is_empty(), "{broken:#?}");
    let mut rows = Rows::<()>::default();
    let step = |membership: &mut Membership, ask: &mut Ask, rows: &mut Rows<()>| {
        let told = rows.answer(ask, || ());
        *ask = membership.handle(told);
    };
    let begin = |node: &str| (Membership::join(node, GROUP, format!("of-{node}")), Membership::first());
    let ((mut slow, mut asks), (mut quick, mut asked)) = (begin("slow"), begin("quick"));
    // There is no row, and room for one: it is about to begin one.
    while !matches!(asks, Ask::Write(0, _)) {
        step(&mut slow, &mut asks, &mut rows);
    }
    assert!(rows.consumers.is_empty(), "it would be older than its row: {:?}", rows.consumers);
    while !matches!(asked, Ask::Over(_)) {
        step(&mut quick, &mut asked, &mut rows);
    }
    let (mut leave, mut asked) = (Membership::leave("quick", GROUP), Membership::first());
    while !matches!(asked, Ask::Over(_)) {
        step(&mut leave, &mut asked, &mut rows);
    }
    assert!(rows.row.is_none() && rows.consumers.is_empty(), "{:?}", rows.row);
    while !matches!(asks, Ask::Over(_)) {
        step(&mut slow, &mut asks, &mut rows);
    }
    assert_eq!(asks, Ask::Over(End::Held("of-slow-1".to_owned())));
}

/// A join that ends well, by the consumer `c` of a stream that was made then.
fn held(made: &str) -> Joined {
    Joined { end: End::Held("c".to_owned()), stream: made.to_owned(), last: 0 }
}

/// What serves a group that has a member here, with room for eight; it is about to be joined.
fn with_a_member(now: Instant) -> (Serving, GroupsWanted, Arc<str>) {
    let (mut serving, mut wanted) = (Serving::new(fastrand::Rng::with_seed(1), now), GroupsWanted::default());
    let group: Arc<str> = GROUP.into();
    wanted.begin();
    wanted.say(WorkerId(0), (Arc::clone(&group), 1), (1, 8), now);
    serving.begin(now);
    serving.follow(&wanted, now, &mut Vec::new());
    (serving, wanted, group)
}

/// The stream was removed and made again, and the consumer in it by its name in the row: places begin anew, and what stands at one is what was there
/// never before. What was given of the stream that is no more is acknowledged to nobody.
#[test]
fn in_a_stream_that_was_made_anew_nothing_is_known_of_places_of_before() {
    let now = Instant::now();
    let (mut serving, wanted, group) = with_a_member(now);
    let mut out = Vec::new();
    let come = |serving: &mut Serving, seq| {
        let publishing = Publishing { qos: QoS::AtLeastOnce, ..Publishing::plain("gate") };
        let publication = Some((publishing, TOPIC.into(), Bytes::new()));
        let came = Came { consumer: "c".to_owned(), seq, tries: 1, reply: format!("{seq}").into(), publication };
        let mut out = Vec::new();
        serving.handle_message(came, &wanted, 0, &mut out);
        match out.pop() {
            Some(Effect::Give(given)) => given.number,
            other => panic!("it is not given: {other:?}"),
        }
    };
    let mut wanted_now = GroupsWanted::default();
    serving.handle_joined(&group, Ok(held("once")), &mut wanted_now, now, &mut out);
    let (first, second) = (come(&mut serving, 1), come(&mut serving, 2));
    serving.settle(first, true, &mut out);
    serving.handle_joined(&group, Ok(held("again")), &mut wanted_now, now, &mut out);
    out.clear();
    // What was settled there, and what is not yet.
    let again = [come(&mut serving, 1), come(&mut serving, 2)];
    serving.settle(second, true, &mut out);
    assert!(out.is_empty(), "it would acknowledge another message: {out:?}");
    for number in again {
        serving.settle(number, true, &mut out);
    }
    assert!(matches!(out[..], [Effect::Say(_, Said::Taken), Effect::Say(_, Said::Taken)]), "{out:?}");
}

/// What nobody took is somebody else's at once; what comes back again waits, so that it does not go round and round.
#[test]
fn what_is_given_back_is_given_to_another_at_once_and_the_second_time_later() {
    let now = Instant::now();
    let (mut serving, mut wanted, group) = with_a_member(now);
    let mut out = Vec::new();
    serving.handle_joined(&group, Ok(held("made")), &mut wanted, now, &mut out);
    for (tries, expected) in [(1, None), (2, Some(GIVEN_BACK_FOR)), (3, Some(GIVEN_BACK_FOR))] {
        let publishing = Publishing { qos: QoS::AtLeastOnce, ..Publishing::plain("gate") };
        let publication = Some((publishing, TOPIC.into(), Bytes::new()));
        out.clear();
        serving.handle_message(
            Came { consumer: "c".to_owned(), seq: 1, tries, reply: "r".into(), publication },
            &wanted,
            0,
            &mut out,
        );
        let Some(Effect::Give(given)) = out.pop() else { panic!("{out:?}") };
        serving.settle(given.number, false, &mut out);
        assert!(matches!(out[..], [Effect::Say(_, Said::Back(after))] if after == expected), "{tries}: {out:?}");
    }
}

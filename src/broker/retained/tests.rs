//! Retained messages against plain lists, whatever the order of arrival.

use bytes::Bytes;

use super::*;
use crate::codec::mqtt::topic;
use crate::link::Stamp;

/// A stamp, and whose it is.
fn next(exchange: &Exchange, worker: WorkerId) -> (Stamp, Option<WorkerId>) {
    (exchange.next_stamp(worker, 0), Some(worker))
}

fn publication(topic: &str, payload: &'static str, (stamp, shard): (Stamp, Option<WorkerId>)) -> Arc<Publication> {
    let plain = Publication::plain(topic, Bytes::from_static(payload.as_bytes()), crate::link::QoS::AtMostOnce);
    Arc::new(Publication { retain: true, stamp, shard, ..plain })
}

/// One shard alone.
fn alone(messages_max: usize, bytes_max: usize) -> (Retained, Exchange) {
    (Retained::new(WorkerId(0), 1, messages_max, bytes_max, 0), Exchange::new(1))
}

fn all_matching(retained: &Retained, filter: &str, arrivals: u64, looks_at_once: usize) -> (Vec<String>, usize) {
    let (mut position, mut found, mut used) = (Position::Start, Vec::new(), 0);
    loop {
        let mut looks = looks_at_once;
        let step = retained.next_matching(filter, arrivals, &position, &mut looks);
        used += looks_at_once - looks;
        match step {
            Step::Found(publication) => {
                found.push(publication.topic.to_string());
                position = Position::After(Arc::clone(publication));
            }
            Step::Later(at) => position = Position::At(at),
            Step::End => return (found, used),
        }
    }
}

#[test]
fn order_of_arrival_from_three_shards_does_not_matter() {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for payloads in [["a", "", "b"], ["a", "b", ""], ["", "a", ""]] {
        for order in orders {
            let exchange = Exchange::new(4);
            let stamps = [1, 2, 3].map(|worker| next(&exchange, WorkerId(worker)));
            let mut retained = Retained::new(WorkerId(0), 4, 10, 100, 10_000);
            for place in order {
                retained.set(&publication("t", payloads[place], stamps[place]), &exchange);
                retained.check_invariants();
            }
            let left = retained.get("t").map(|publication| publication.payload.clone());
            assert_eq!(left.unwrap_or_default(), payloads[2], "{order:?}");
            assert_eq!(retained.len(), usize::from(!payloads[2].is_empty()));
            retained.bury(&exchange, 10);
            assert_eq!(retained.tombstones(), (0, 0), "{order:?}: nothing is on its way, and something is remembered");
        }
    }
}

#[test]
fn deletion_leaves_a_tombstone_only_while_an_older_message_may_come() {
    let exchange = Exchange::new(2);
    let (here, there) = (WorkerId(0), WorkerId(1));
    let mut retained = Retained::new(here, 2, 10, 100, 10_000);
    // Nothing is on its way: nothing is remembered, whether there was such a topic or not.
    for topic in ["never", "kept"] {
        retained.set(&publication("kept", "x", next(&exchange, here)), &exchange);
        assert_eq!(retained.set(&publication(topic, "", next(&exchange, here)), &exchange), Set::Deleted);
        assert_eq!(retained.tombstones(), (0, 0));
    }
    // The other shard has published and is not heard yet.
    let old = publication("t", "old", next(&exchange, there));
    retained.set(&publication("t", "", next(&exchange, here)), &exchange);
    retained.set(&publication("u", "", next(&exchange, here)), &exchange);
    assert_eq!(retained.tombstones(), (2, 2 * (TOMBSTONE_BYTES + 1)));
    assert_eq!(retained.set(&old, &exchange), Set::Stale);
    assert_eq!(retained.tombstones(), (0, 0), "all that came before is here");
    // The topic was set again before its tombstone could go.
    next(&exchange, there);
    retained.set(&publication("t", "", next(&exchange, here)), &exchange);
    retained.set(&publication("t", "new", next(&exchange, here)), &exchange);
    retained.check_invariants();
    retained.set(&publication("v", "x", next(&exchange, there)), &exchange);
    assert_eq!((retained.tombstones(), retained.len()), ((0, 0), 2));
    retained.check_invariants();
}

/// Every deletion is done, and what is not known to be deleted any more is refused.
#[test]
fn tombstones_beyond_their_bound_become_a_floor_below_which_nothing_new_is_taken() {
    const MAX: usize = 100 * (TOMBSTONE_BYTES + 8);
    let exchange = Exchange::new(2);
    let (here, there) = (WorkerId(0), WorkerId(1));
    let mut retained = Retained::new(here, 2, 10, 100, MAX);
    retained.set(&publication("kept", "x", next(&exchange, here)), &exchange);
    let late = ["first", "other", "kept", "last"].map(|topic| publication(topic, "late", next(&exchange, there)));
    let delete = |retained: &mut Retained, topic: &str| {
        assert_eq!(retained.set(&publication(topic, "", next(&exchange, here)), &exchange), Set::Deleted);
        retained.check_invariants();
        assert!(retained.tombstones().1 <= MAX);
    };
    delete(&mut retained, "first");
    (0..1_000).for_each(|number| delete(&mut retained, &number.to_string()));
    delete(&mut retained, &"long".repeat(MAX));
    delete(&mut retained, "last");
    let (count, _) = retained.tombstones();
    assert!((100..110).contains(&count), "{count}");
    assert_eq!(late.map(|late| retained.set(&late, &exchange)), [Set::Full, Set::Full, Set::Stored, Set::Stale]);
    // What is published now is above the floor.
    assert_eq!(retained.set(&publication("first", "new", next(&exchange, there)), &exchange), Set::Stored);
    retained.bury(&exchange, 1_000);
    assert_eq!((retained.tombstones(), retained.len()), ((0, 0), 2));
    retained.check_invariants();
}

/// What goes wrong at one of them, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// Whatever arrives last stays, and not what was published last.
    ByArrival,
    /// A deletion is forgotten.
    DeletionForgotten,
}

/// Three shards, what each says to each in order but late, and as the broker does it: what one of them refuses, all withdraw.
struct Crowd {
    exchange: Exchange,
    shards: Vec<Retained>,
    /// By sender and receiver: what was published, and withdrawals, which may overtake that.
    ways: Vec<[VecDeque<Arc<Publication>>; 2]>,
    /// By stamp: who has not taken it yet, and whether one of them refused it.
    open: std::collections::BTreeMap<Stamp, (usize, bool)>,
    refused: usize,
    planted: Planted,
}

impl Crowd {
    const SIZE: usize = 3;

    fn new(tombstone_bytes_max: usize, planted: Planted) -> Self {
        let shard =
            |worker| Retained::new(WorkerId(worker as u16), Self::SIZE as u16, 100, 10_000, tombstone_bytes_max);
        Self {
            exchange: Exchange::new(Self::SIZE as u16),
            shards: (0..Self::SIZE).map(shard).collect(),
            ways: vec![Default::default(); Self::SIZE * Self::SIZE],
            open: std::collections::BTreeMap::new(),
            refused: 0,
            planted,
        }
    }

    fn publish(&mut self, from: usize, topic: &str, payload: &'static str) -> Stamp {
        let message = publication(topic, payload, next(&self.exchange, WorkerId(from as u16)));
        self.open.insert(message.stamp, (Self::SIZE, false));
        self.tell(from, &message, 0);
        self.take(from, &message);
        message.stamp
    }

    fn tell(&mut self, from: usize, message: &Arc<Publication>, lane: usize) {
        for to in (0..Self::SIZE).filter(|&to| to != from) {
            self.ways[from * Self::SIZE + to][lane].push_back(Arc::clone(message));
        }
    }

    fn take(&mut self, at: usize, message: &Arc<Publication>) {
        let is_refused = self.set(at, message) == Set::Full;
        if is_refused {
            self.shards[at].set(&Arc::new(message.withdrawal()), &self.exchange);
        }
        self.shards[at].check_invariants();
        let Some((left, any_refused)) = self.open.get_mut(&message.stamp) else { return };
        *left -= 1;
        *any_refused |= is_refused;
        if (*left, *any_refused) == (0, true) {
            let (from, withdrawal) =
                (message.shard.expect("it is published here").index(), Arc::new(message.withdrawal()));
            self.tell(from, &withdrawal, 1);
            self.shards[from].set(&withdrawal, &self.exchange);
            self.refused += 1;
        }
    }

    fn set(&mut self, at: usize, message: &Arc<Publication>) -> Set {
        let is_at_fault = at == Self::SIZE - 1 && message.stamp.clock & 1 == 0;
        match self.planted {
            Planted::DeletionForgotten if is_at_fault && message.payload.is_empty() => Set::Deleted,
            Planted::ByArrival if is_at_fault => {
                let stamp = self.exchange.stamp(0);
                self.shards[at].set(&Arc::new(Publication { stamp, ..Publication::clone(message) }), &self.exchange)
            }
            _ => self.shards[at].set(message, &self.exchange),
        }
    }

    /// Something that is on its way arrives, if anything is.
    fn hear(&mut self, random: &mut fastrand::Rng) -> bool {
        let full = |way: &[VecDeque<_>; 2], lane: usize| !way[lane].is_empty();
        let choice: Vec<_> = (0..self.ways.len() * 2).filter(|at| full(&self.ways[at / 2], at % 2)).collect();
        let Some(&at) = random.choice(&choice) else { return false };
        let message = self.ways[at / 2][at % 2].pop_front().expect("it was looked at");
        self.take(at / 2 % Self::SIZE, &message);
        true
    }
}

/// How many messages were refused.
///
/// # Errors
/// What a shard has that it should not.
fn agree(seed: u64, planted: Planted) -> Result<usize, String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let room = [0, 3 * (TOMBSTONE_BYTES + 1), 1 << 20][seed as usize % 3];
    let mut crowd = Crowd::new(room, planted);
    let mut latest = [(Stamp::NONE, ""); 6];
    for _ in 0..60 {
        let topic = random.usize(..6);
        let payload = if random.bool() { "" } else { ["x", "y"][random.usize(..2)] };
        let stamp = crowd.publish(random.usize(..Crowd::SIZE), &"abcdef"[topic..=topic], payload);
        latest[topic] = (stamp, payload);
        for _ in 0..random.usize(..5) {
            crowd.hear(&mut random);
        }
    }
    while crowd.hear(&mut random) {}
    for (topic, (stamp, payload)) in latest.into_iter().enumerate() {
        let kept = |shard: &Retained| {
            shard
                .get(&"abcdef"[topic..=topic])
                .map_or("", |kept| if kept.payload == "x" { "x" } else { "y" })
                .to_owned()
        };
        let expected = if crowd.open.get(&stamp).is_some_and(|(_, is_refused)| *is_refused) { "" } else { payload };
        let all: Vec<_> = crowd.shards.iter().map(kept).collect();
        if all.iter().any(|kept| kept != expected) {
            return Err(format!("topic {topic} holds {all:?}, and not {expected:?}"));
        }
    }
    Ok(crowd.refused)
}

#[test]
fn shards_agree_in_any_order_however_little_room_there_is_for_tombstones() {
    let mut refused = [0; 3];
    for seed in 0..600 {
        refused[seed as usize % 3] += agree(seed, Planted::Nothing).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    assert!(refused[0] > 0 && refused[1] > 0 && refused[2] == 0, "{refused:?}");
}

#[test]
fn faults_that_are_put_in_are_found() {
    for planted in [Planted::ByArrival, Planted::DeletionForgotten] {
        // With room for all tombstones: otherwise much is refused.
        assert!((0..60).any(|seed| agree(3 * seed + 2, planted).is_err()), "{planted:?} is not found");
    }
}

#[test]
fn bounds_are_for_new_topics_and_longer_messages() {
    let (mut retained, exchange) = alone(2, 10);
    let mut set = |topic: &str, payload: &'static str| {
        retained.set(&publication(topic, payload, next(&exchange, WorkerId(0))), &exchange)
    };
    assert_eq!(set("a", "1234"), Set::Stored);
    assert_eq!(set("b", "1234"), Set::Stored);
    assert_eq!(set("c", "x"), Set::Full);
    assert_eq!(set("a", "12345"), Set::Full);
    assert_eq!(set("a", "123"), Set::Stored);
    assert_eq!(set("b", ""), Set::Deleted);
    assert_eq!(set("c", "12345"), Set::Stored);
    assert_eq!((retained.len(), retained.bytes()), (2, 10));
    retained.check_invariants();
}

/// Random topics and filters of levels that lie close together in the order of bytes, with as few looks at a time as
/// can be.
#[test]
fn walk_finds_what_a_list_finds() {
    let levels = ["", "a", "b", "a-", "a0", "b/", "$x", "!", "ab", "+", "#"];
    let mut random = fastrand::Rng::with_seed(11);
    let make = |random: &mut fastrand::Rng, choice: &[&str]| {
        let depth = random.usize(1..5);
        (0..depth).map(|_| choice[random.usize(..choice.len())]).collect::<Vec<_>>().join("/")
    };
    for _ in 0..200 {
        let (mut retained, exchange) = alone(1_000, 10_000);
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..random.usize(..80) {
            let name = make(&mut random, &levels[..9]);
            if topic::is_topic_name(&name) {
                retained.set(&publication(&name, "x", next(&exchange, WorkerId(0))), &exchange);
                names.insert(name);
            }
        }
        let arrivals = retained.arrivals();
        retained.set(&publication("a/later", "x", next(&exchange, WorkerId(0))), &exchange);
        names.remove("a/later");
        for _ in 0..50 {
            let filter = make(&mut random, &levels);
            if !topic::is_topic_filter(&filter) || topic::shared(&filter).is_some() {
                continue;
            }
            let expected: Vec<&String> = names.iter().filter(|name| topic::matches(&filter, name)).collect();
            for looks in [1, 3, 1_000] {
                let (found, used) = all_matching(&retained, &filter, arrivals, looks);
                assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{filter} over {names:?}");
                assert!(used <= names.len() + 1, "{filter} looked {used} times at {} topics", names.len());
            }
        }
    }
}

#[test]
fn walk_seeks_past_what_cannot_match() {
    let (mut retained, exchange) = alone(100_000, 10 << 20);
    for device in 0..1_000 {
        for name in ["state", "up/1", "up/2", "up/3", "up/4", "up/5", "up/6", "up/7", "up/8", "up/9"] {
            let topic = format!("devices/m{device}/{name}");
            retained.set(&publication(&topic, "x", next(&exchange, WorkerId(0))), &exchange);
        }
    }
    let looks = |filter: &str| {
        let (found, used) = all_matching(&retained, filter, retained.arrivals(), 100);
        (found.len(), used)
    };
    assert_eq!(looks("+/b"), (0, 1));
    assert_eq!(looks("+/+/none"), (0, 1_000));
    assert_eq!(looks("+/+/t"), (0, 2_000), "a seek within the level, and one behind it");
    assert_eq!(looks("devices/m7/#"), (10, 11));
    assert_eq!(looks("devices/m7/state"), (1, 2));
    assert_eq!(looks("devices/+/state"), (1_000, 2_000));
    assert_eq!(looks("#"), (10_000, 10_000));
    // A long topic is more than one look.
    let long = format!("devices/m7/{}", "x".repeat(60_000));
    retained.set(&publication(&long, "x", next(&exchange, WorkerId(0))), &exchange);
    assert_eq!(all_matching(&retained, "devices/m7/x", retained.arrivals(), 1_000).1, 1 + long.len() / LOOK_BYTES);
}

/// However much one device wants to be kept, others find room, and nobody is kept from bringing its own up to date.
#[test]
fn one_device_comes_to_half_of_the_store_and_the_next_to_half_of_the_rest() {
    for by_bytes in [false, true] {
        let (mut retained, exchange) = if by_bytes { alone(10_000, 1_024 * 8) } else { alone(1_024, 1 << 30) };
        let mut set = |owner: u32, topic: &str, payload: &'static str| {
            let mut publication = Publication::clone(&publication(topic, payload, next(&exchange, WorkerId(0))));
            publication.owner = owner;
            let set = retained.set(&Arc::new(publication), &exchange);
            retained.check_invariants();
            set
        };
        // Eight bytes each.
        let mut fill = |owner: u32| {
            (0..2_000).take_while(|number| set(owner, &format!("{owner}/{number:04}"), "xx") == Set::Stored).count()
        };
        assert_eq!([fill(1), fill(2), fill(3)], [512, 256, 128]);
        assert_eq!(set(4, "4/state", "x"), Set::Stored, "somebody who holds nothing");
        assert_eq!(set(1, "1/0000", "yy"), Set::Stored, "as long as the old one");
        assert_eq!(
            set(1, "1/0000", if by_bytes { "longer" } else { "" }),
            if by_bytes { Set::Full } else { Set::Deleted }
        );
        assert_eq!(set(0, "of the owner", "x"), Set::Stored);
        // What is taken over by somebody else is in that one's share.
        assert_eq!(set(5, "1/0001", "zz"), Set::Stored);
        assert_eq!(set(5, "1/0001", ""), Set::Deleted);
        for number in 2..400 {
            assert_eq!(set(1, &format!("1/{number:04}"), ""), Set::Deleted);
        }
        assert_eq!(set(1, "1/0000", "longer"), Set::Stored, "there is room again");
    }
}

/// What comes from other gateways comes whenever it does: whatever was deleted or set here later stays, and nothing is refused for its age.
#[test]
fn in_a_fleet_the_latest_stamp_stays_however_late_others_come() {
    let here = WorkerId(0);
    let exchange = Exchange::of_fleet(1, "here");
    let mut retained = Retained::new(here, 1, 100, 10_000, 3 * (TOMBSTONE_BYTES + 1));
    let elsewhere = |clock| (Stamp { clock, node: 1 }, None);
    let old = [elsewhere(2), elsewhere(4)];
    exchange.note_stamp(Stamp { clock: 1 << 30, node: 1 });
    assert_eq!(retained.set(&publication("set", "new", next(&exchange, here)), &exchange), Set::Stored);
    assert_eq!(retained.set(&publication("gone", "", next(&exchange, here)), &exchange), Set::Deleted);
    retained.bury(&exchange, 1_000);
    for old in old {
        assert_eq!(retained.set(&publication("set", "old", old), &exchange), Set::Stale);
        assert_eq!(retained.set(&publication("gone", "old", old), &exchange), Set::Stale);
    }
    // The same in whatever order, and one's own that comes back.
    let (one, other) = (publication("t", "one", elsewhere(100)), publication("t", "other", elsewhere(98)));
    assert_eq!([&one, &other, &one].map(|each| retained.set(each, &exchange)), [Set::Stored, Set::Stale, Set::Stale]);
    let (own, same) = ((Stamp { clock: 100, node: 7 }, None), (Stamp { clock: 100, node: 0 }, None));
    assert_eq!(retained.set(&publication("t", "by number", own), &exchange), Set::Stored);
    assert_eq!(retained.set(&publication("t", "by number", same), &exchange), Set::Stale);
    // Beyond the bound of tombstones nothing is known, and what comes is taken; of what is published here it would be refused.
    for n in 0..10 {
        retained.set(&publication(&n.to_string(), "", next(&exchange, here)), &exchange);
    }
    assert_eq!(retained.set(&publication("gone", "old", elsewhere(6)), &exchange), Set::Stored);
    retained.check_invariants();
}

//! Whole shards' sessions under a model that knows what each subscriber must get and must not: random devices that come,
//! go, are taken over and lose their connections at any step; sessions that expire and wills that wait; messages of every
//! quality; late and split deliveries between shards. A seed replays a run.

mod away;
mod congestion;
mod crash;
mod device;
mod gifts;
mod handover;
mod interest;
mod model;
mod redispatch;
mod slow;
pub mod store;

use super::*;
use crate::codec::mqtt::{self, Options, Packet, QoS};
use crate::link::{Class, Passed, Publication, ShardMessage};
use crate::time::Moment;
use device::message_of;
use model::{Coverage, World};
use routing::SHARED_MAX;

/// What an MQTT 5 client brings that says nothing but this: when its session ends, and how many messages it takes at a time.
fn profile(expiry_s: u32, receive_maximum: u16) -> Profile {
    Profile {
        version: mqtt::Version::V5,
        listener: ListenerId(0),
        keep_alive_s: 0,
        expiry_s,
        receive_maximum,
        packet_maximum: u32::MAX,
        alias_maximum: 0,
    }
}

#[test]
fn whoever_subscribed_gets_each_message_and_nobody_else_does() {
    let mut total = Coverage::default();
    for seed in 0..2_000 {
        let mut world = World::new(seed);
        for _ in 0..800 {
            world.step();
        }
        world.end();
        total.add(&world.coverage);
    }
    assert!(total.is_enough(), "too little happened: {total:?}");
}

impl Broker {
    /// One filter, in the SUBSCRIBE that has begun last.
    fn subscribe_one(&mut self, session: SessionSlot, filter: &str, options: Options, identifier: u32) -> Granted {
        let waits = self.subscribes;
        let mut pending =
            PendingSuback { waits, homes: 0, is_whole: false, is_unsubscribe: false, packet: 1, codes: Vec::new() };
        self.subscribe(session, filter, options, identifier, &mut pending)
    }
}

/// Far more than may wait in a session, and more than may be in flight.
#[test]
fn a_subscription_gets_every_retained_message_and_none_that_is_older_than_what_went_before() {
    const COUNT: u32 = 2_000;
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut world = World::new(7);
        let worker = world.devices[0].worker;
        world.shards[worker].bounds.messages = 5;
        for number in 0..COUNT {
            let mut publication = world.publication(&format!("kept/{number:05}"), qos);
            publication.retain = true;
            world.shards[worker].publish(publication, Ticket::NOBODY, &mut world.counters);
        }
        world.connect(0);
        let session = world.session_of(0).unwrap();
        let options = Options::plain(qos);
        assert_eq!(world.shards[worker].subscribe_one(session, "kept/#", options, 0), Granted::Subscribed);
        // One is replaced before its turn: what comes is the new one, once, as the live message that it is.
        let mut publication = world.publication("kept/01999", qos);
        publication.retain = true;
        world.shards[worker].publish(publication, Ticket::NOBODY, &mut world.counters);
        let (mut kept, mut live) = (Vec::new(), Vec::new());
        for _ in 0..2 * COUNT {
            world.shards[worker].begin_turn();
            for batch in world.shards[worker].next_deliveries(10) {
                let mut out = Vec::new();
                let budget = &mut SendBudget {
                    out: &mut out,
                    unsent: 0,
                    turn_bytes: 300,
                    now: world.now,
                    counters: &mut world.counters,
                };
                world.shards[worker].write(session, batch.deliveries, budget);
                let mut rest = &out[..];
                while let Some((packet, length)) = mqtt::decode(rest, Some(mqtt::Version::V5), 1 << 20).unwrap() {
                    rest = &rest[length..];
                    let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
                    if publish.retain { &mut kept } else { &mut live }.push(message_of(publish.payload));
                    let shard = &mut world.shards[worker];
                    match publish.qos {
                        QoS::AtMostOnce => {}
                        QoS::AtLeastOnce => {
                            assert_eq!(shard.handle_puback(session, publish.packet_id, |_| {}), Ok(true));
                        }
                        QoS::ExactlyOnce => {
                            assert_eq!(shard.handle_pubrec(session, publish.packet_id, false, |_| {}), Ok(true));
                            assert_eq!(shard.handle_pubcomp(session, publish.packet_id), Ok(true));
                        }
                    }
                }
            }
            world.check();
        }
        assert!(
            kept.iter().copied().eq(1..COUNT),
            "{qos:?}: {} of {} came, or in another order",
            kept.len(),
            COUNT - 1
        );
        assert_eq!(live, [COUNT + 1]);
        assert_eq!(world.counters.value(Metric::DroppedQueueFull), 0);
        assert!(!world.shards[worker].has_deliveries(), "nothing is left to be done");
    }
}

/// What a session was sent, as topics, in one turn of its shard.
fn turn_of(world: &mut World, worker: usize, connected: &[SessionSlot]) -> Vec<(SessionSlot, String)> {
    world.shards[worker].begin_turn();
    let mut sent = Vec::new();
    for batch in world.shards[worker].next_deliveries(1_000) {
        assert!(connected.contains(&batch.session));
        let mut out = Vec::new();
        let (now, counters) = (world.now, &mut world.counters);
        let budget = &mut SendBudget { out: &mut out, unsent: 0, turn_bytes: 1 << 20, now, counters };
        world.shards[worker].write(batch.session, batch.deliveries, budget);
        let mut rest = &out[..];
        while let Some((packet, length)) = mqtt::decode(rest, Some(mqtt::Version::V5), 1 << 20).unwrap() {
            rest = &rest[length..];
            let Packet::Publish(publish) = packet else { panic!("{packet:?}") };
            sent.push((batch.session, publish.topic.to_owned()));
        }
    }
    sent
}

/// One subscribes with filters that must look at everything and find nothing; another, later, with one that finds at once.
#[test]
fn walk_for_retained_messages_is_bounded_in_a_turn_and_others_take_turns_with_it() {
    const COUNT: usize = 20_000;
    let mut world = World::new(7);
    let worker = world.devices[0].worker;
    let other = (1..world.devices.len()).find(|&device| world.devices[device].worker == worker).unwrap();
    let retain = |world: &mut World, topic: &str| {
        let mut publication = world.publication(topic, QoS::AtMostOnce);
        publication.retain = true;
        world.shards[worker].publish(publication, Ticket::NOBODY, &mut world.counters);
    };
    world.shards[worker].bounds.retained_messages = 2 * COUNT;
    world.shards[worker].routing.retained =
        retained::Retained::new(WorkerId(worker as u16), 3, 2 * COUNT, 1 << 24, 1 << 20);
    for number in 0..COUNT {
        retain(&mut world, &format!("s/{number:05}/s"));
    }
    retain(&mut world, "t");
    let sessions = [0, other].map(|device| {
        world.connect(device);
        world.session_of(device).unwrap()
    });
    let shard = &mut world.shards[worker];
    shard.begin_subscribe();
    for _ in 0..100 {
        assert_eq!(
            shard.subscribe_one(sessions[0], "+/+/none", Options::plain(QoS::AtMostOnce), 0),
            Granted::Subscribed
        );
    }
    let (mut turns, mut found_after) = (0, None);
    while world.shards[worker].has_deliveries() {
        if turns == 1 {
            world.shards[worker].begin_subscribe();
            world.shards[worker].subscribe_one(sessions[1], "t", Options::plain(QoS::AtMostOnce), 0);
        }
        let sent = turn_of(&mut world, worker, &sessions);
        if !sent.is_empty() {
            assert_eq!(sent, [(sessions[1], "t".to_owned())]);
            assert!(found_after.is_none());
            found_after = Some(turns);
        }
        world.shards[worker].check_invariants(|_| true);
        turns += 1;
    }
    // One look for each topic. The filter was repeated, and looked up once.
    let expected = COUNT / delivery::SESSION_LOOKS;
    assert!((expected..expected + 20).contains(&turns), "{turns} turns");
    assert_eq!(found_after, Some(1), "another waited for a walk that found nothing");
}

#[test]
fn retained_message_comes_once_for_each_packet_that_asks() {
    let mut world = World::new(7);
    let worker = world.devices[0].worker;
    let mut publication = world.publication("r", QoS::AtMostOnce);
    publication.retain = true;
    world.shards[worker].publish(publication, Ticket::NOBODY, &mut world.counters);
    world.connect(0);
    let session = world.session_of(0).unwrap();
    let mut subscribe = |filters: &[&str], retain_handling| {
        world.shards[worker].begin_subscribe();
        for filter in filters {
            let options = Options { retain_handling, ..Options::plain(QoS::AtMostOnce) };
            world.shards[worker].subscribe_one(session, filter, options, 0);
        }
    };
    // In the order of their packets: asked for; not again, since the subscription is known; never; and again.
    subscribe(&["r", "r"], 0);
    subscribe(&["r"], 1);
    subscribe(&["r"], 2);
    subscribe(&["r", "r"], 0);
    subscribe(&["$share/g/r"], 0);
    let mut sent = Vec::new();
    while world.shards[worker].has_deliveries() {
        sent.extend(turn_of(&mut world, worker, &[session]));
    }
    assert_eq!(sent, [(session, "r".to_owned()), (session, "r".to_owned())]);
    // Whoever unsubscribes in time gets none.
    world.shards[worker].begin_subscribe();
    world.shards[worker].subscribe_one(session, "+", Options::plain(QoS::AtMostOnce), 0);
    world.shards[worker].unsubscribe(session, "+");
    assert_eq!(turn_of(&mut world, worker, &[session]), []);
    assert!(world.shards[worker].sessions[session].inflight.is_none());
}

/// As many filters as a binary tree has leaves, all of which a topic may come to; three sessions.
#[test]
fn publication_through_many_filters_goes_on_in_later_turns_and_holds_up_no_other() {
    const LEVELS: usize = 12;
    let mut world = World::new(7);
    let worker = world.devices[0].worker;
    let on_it: Vec<usize> = (0..world.devices.len()).filter(|&device| world.devices[device].worker == worker).collect();
    let sessions: Vec<SessionSlot> = on_it[..2]
        .iter()
        .map(|&device| {
            world.connect(device);
            world.session_of(device).unwrap()
        })
        .collect();
    world.shards[worker].bounds.subscriptions = 1 << LEVELS;
    let options = Options::plain(QoS::AtMostOnce);
    for number in 0..1 << LEVELS {
        let levels: Vec<&str> = (0..LEVELS).map(|bit| if number >> bit & 1 == 1 { "+" } else { "a" }).collect();
        let filter = format!("{}/z", levels.join("/"));
        assert_eq!(world.shards[worker].subscribe_one(sessions[0], &filter, options, 0), Granted::Subscribed);
    }
    world.shards[worker].subscribe_one(sessions[1], "#", options, 0);
    let deep = format!("{}z", "a/".repeat(LEVELS));
    let publish = |world: &mut World, topic: &str| {
        let mut publication = world.publication(topic, QoS::AtLeastOnce);
        publication.publisher = Some(world.shards[worker].id(sessions[0]));
        let shard = &mut world.shards[worker];
        let ticket = shard.request(u64::from(message_of(&publication.payload)));
        shard.publish(publication, ticket, &mut world.counters);
    };
    publish(&mut world, &deep);
    publish(&mut world, "other");
    publish(&mut world, &deep);
    assert!(world.shards[worker].is_matching(sessions[0]) && !world.shards[worker].is_matching(sessions[1]));
    let (mut sent, mut answered, mut turns) = (Vec::new(), Vec::new(), 0);
    while world.shards[worker].has_deliveries() {
        let (now, counters) = (world.now, &mut world.counters);
        let shard = &mut world.shards[worker];
        shard.begin_turn();
        for batch in shard.next_deliveries(1_000) {
            let topics = batch.deliveries.iter().map(|delivery| delivery.publication.topic.to_string());
            sent.extend(topics.map(|topic| (turns, batch.session, topic)));
            let mut out = Vec::new();
            let budget = &mut SendBudget { out: &mut out, unsent: 0, turn_bytes: 1 << 20, now, counters };
            shard.write(batch.session, batch.deliveries, budget);
        }
        answered.extend(shard.take_requests().into_iter().map(|(request, _)| (turns, request)));
        turns += 1;
    }
    world.shards[worker].check_invariants(|_| true);
    let least = (1 << LEVELS) / matching::PUBLICATION_VISITS;
    assert!(turns >= 2 * least, "{turns} turns");
    // The other topic goes at once; each subscriber gets all of them once, in their order.
    assert_eq!(sent[0], (0, sessions[1], "other".to_owned()));
    for session in sessions {
        let got: Vec<&str> =
            sent.iter().filter(|sent| sent.1 == session && sent.2 != "other").map(|sent| &*sent.2).collect();
        assert_eq!(got, [&deep, &deep]);
    }
    // Who published is told when all is done, and not before.
    assert_eq!(answered.iter().map(|(_, request)| *request).collect::<Vec<_>>(), [2, 1, 3]);
    assert!(answered[0].0 == 0 && answered[1].0 + 1 >= least && answered[2].0 > answered[1].0);
    assert!(!world.shards[worker].is_matching(SessionSlot(on_it[0] as u32)));
}

#[test]
fn session_with_many_subscriptions_ends_in_steps_and_gets_nothing_meanwhile() {
    let mut world = World::new(7);
    let worker = world.devices[0].worker;
    world.connect(0);
    let session = world.session_of(0).unwrap();
    world.shards[worker].bounds.subscriptions = 100_000;
    for number in 0..20_000 {
        world.shards[worker].subscribe_one(session, &format!("{number}/#"), Options::plain(QoS::AtMostOnce), 0);
    }
    let (now, counters) = (world.now, &mut world.counters);
    let shard = &mut world.shards[worker];
    shard.set_expiry(session, 0);
    let connection = (0..100).map(ConnectionSlot).find(|&connection| shard.of(connection) == Some(session)).unwrap();
    shard.detach(connection, "gone", false, now, counters);
    let mut turns = 0;
    while shard.has_deliveries() {
        for number in [0, 19_999] {
            let publication =
                crate::link::Publication::plain(format!("{number}/x"), bytes::Bytes::new(), QoS::AtMostOnce);
            shard.publish(publication, Ticket::NOBODY, counters);
        }
        assert!(turns == 0 || shard.sessions.len() == 0);
        shard.begin_turn();
        assert!(shard.next_deliveries(100).is_empty());
        turns += 1;
    }
    assert!((4..8).contains(&turns), "{turns} turns");
    shard.check_invariants(|_| true);
    assert!(shard.routing.subscriptions.is_empty());
}

/// Far more is published to devices that are away than the pool has for what waits, and far more is subscribed to.
#[test]
fn pool_bounds_queues_filters_and_wills_and_leaves_something_for_others() {
    use crate::pool::Class as Part;

    let mut world = World::new(7);
    let worker = world.devices[0].worker;
    let (now, counters) = (world.now, &mut world.counters);
    let shard = &mut world.shards[worker];
    let bounds = Bounds { pool_bytes: 1 << 20, subscriptions: 100_000, ..*shard.bounds() };
    let setup = BrokerOptions {
        worker: WorkerId(worker as u16),
        home: shard.home,
        exchange: Arc::clone(&shard.exchange),
        bounds,
        key: 1,
    };
    *shard = Broker::new(setup, now.tick());
    let pool = Arc::clone(shard.pool());
    let profile = profile(u32::MAX, 10);
    let options = Options::plain(QoS::AtLeastOnce);
    let attach = |shard: &mut Broker, connection: u32| {
        let device = format!("{connection}");
        shard
            .attach(
                Arrival {
                    connection: ConnectionSlot(connection),
                    device: &device,
                    clean_start: true,
                    profile,
                    will: None,
                },
                now,
            )
            .session
    };
    // One that subscribes without end gets its part, and another's filter is refused none of its own.
    let greedy = attach(shard, 0);
    let granted = (0..100_000).take_while(|number| {
        shard.subscribe_one(greedy, &format!("x/{number:0100}"), options, 0) == Granted::Subscribed
    });
    assert!((10..1_000).contains(&granted.count()) && pool.used(Part::Filters) <= pool.share(Part::Filters));
    let devices: Vec<SessionSlot> = (1..20).map(|connection| attach(shard, connection)).collect();
    for &session in &devices {
        assert_eq!(shard.subscribe_one(session, "all", options, 0), Granted::Subscribed);
    }
    for connection in 0..20 {
        shard.detach(ConnectionSlot(connection), &format!("{connection}"), false, now, counters);
    }
    for _ in 0..500 {
        let publication = crate::link::Publication::plain("all", bytes::Bytes::from(vec![0; 2_000]), QoS::AtLeastOnce);
        shard.publish(publication, Ticket::NOBODY, counters);
        shard.begin_turn();
        for batch in shard.next_deliveries(1_000) {
            shard.keep(batch, now, counters);
        }
    }
    shard.check_invariants(|_| false);
    assert!(pool.used(Part::Queues) <= pool.share(Part::Queues), "{} bytes", pool.used(Part::Queues));
    assert!(counters.value(Metric::DroppedQueueFull) > 1_000);
    for &session in &devices {
        let (queued, _) = shard.sessions[session].inflight.as_deref().unwrap().queued();
        assert!((1..=100).contains(&queued), "{queued} messages wait in one session");
    }
    // Wills: a short one is part of its session, a long one must find room.
    let will = |bytes: usize| {
        let publication = crate::link::Publication::plain("w", bytes::Bytes::from(vec![0; bytes]), QoS::AtLeastOnce);
        Will { publication, expiry_s: None, delay_s: 0 }
    };
    assert!(shard.has_room_for(&will(30)) && shard.has_room_for(&will(4_000)) && !shard.has_room_for(&will(100_000)));
    // All of it comes back.
    for device in 0..20 {
        let device = format!("{device}");
        let arrival = Arrival {
            connection: ConnectionSlot(1),
            device: &device,
            clean_start: true,
            profile,
            will: Some(Box::new(will(4_000))),
        };
        assert!(!shard.attach(arrival, now).was_present);
        let session = shard.of(ConnectionSlot(1)).unwrap();
        assert!(pool.used(Part::Wills) > 3_000);
        shard.set_expiry(session, 0);
        shard.detach(ConnectionSlot(1), &device, false, now, counters);
    }
    while shard.has_deliveries() {
        shard.begin_turn();
        shard.next_deliveries(1_000);
    }
    shard.check_invariants(|_| false);
    assert_eq!(pool.used_in_all(), 0);
}

#[test]
fn description_of_a_session_shows_its_filters_up_to_a_bound_and_counts_all() {
    let mut world = World::new(7);
    world.connect(0);
    let (session, shard) = (world.session_of(0).unwrap(), &mut world.shards[world.devices[0].worker]);
    for number in 0..99 {
        shard.subscribe_one(session, &format!("{number:010}"), Options::plain(QoS::AtMostOnce), 0);
    }
    shard.subscribe_one(session, "$share/g/x", Options::plain(QoS::AtMostOnce), 0);
    let shown = |bytes| shard.describe(session, bytes).subscriptions.len();
    assert_eq!((shown(0), shown(35), shown(1_000)), (0, 3, 100));
    assert_eq!(shard.describe(session, 0).subscription_count, 100);
}

#[test]
fn a_session_is_small() {
    assert!(size_of::<lifecycle::Session>() <= 112);
    let mut world = World::new(1);
    world.connect(1);
    let session = world.session_of(1).unwrap();
    let shard = &world.shards[world.devices[1].worker];
    assert!(shard.sessions[session].inflight.is_none(), "nothing is in flight, and nothing is kept for it");
}

/// However many filters there are, and however long, a turn deals with so many; a packet goes on with what was left of it.
#[test]
fn filters_are_dealt_with_so_many_in_a_turn() {
    let mut world = World::new(7);
    let worker = world.devices[0].worker;
    world.connect(0);
    let session = world.session_of(0).unwrap();
    let shard = &mut world.shards[worker];
    let long = "x".repeat(64 * 15);
    let (mut turns, mut done, mut held) = (0, 0, 0);
    while done < 10_000 {
        let mut in_turn = 0;
        // Many packets of one turn have no more than its share together.
        for _ in 0..20 {
            let mut looks = FilterLooks::of_packet();
            let mut pending = shard.begin_filters(session, 3).expect("it goes on");
            let before = pending.codes.len();
            while shard.may_look(session, if done % 2 == 0 { "x" } else { &long }, &mut looks) {
                pending.codes.push(0);
                done += 1;
                in_turn += 1;
            }
            assert!(pending.codes.len() - before <= 256 / 8);
            shard.put_off_filters(session, pending);
            shard.check_invariants(|_| true);
            held += usize::from(shard.take_suback(session).is_some());
        }
        assert!((1..=2_048 / 8).contains(&in_turn), "{in_turn} filters in a turn");
        turns += 1;
        shard.begin_turn();
    }
    assert!(turns >= 10_000 / (2_048 / 8) && held == 0, "{turns} turns, {held} answers too early");
    let pending = shard.begin_filters(session, 3).unwrap();
    assert_eq!(shard.end_filters(session, pending).unwrap().codes.len(), done);
}

/// Its homes are told of each when the device comes and goes: so there is a bound of their own.
#[test]
fn shared_subscriptions_have_a_bound_of_their_own() {
    let mut world = World::new(7);
    let worker = world.devices[0].worker;
    world.connect(0);
    let session = world.session_of(0).unwrap();
    let shard = &mut world.shards[worker];
    shard.bounds.subscriptions = 1_000_000;
    let options = Options::plain(QoS::AtMostOnce);
    let mut join = |number: usize| shard.subscribe_one(session, &format!("$share/{number}/a"), options, 0);
    assert!((0..SHARED_MAX).all(|number| join(number) == Granted::Subscribed));
    assert_eq!(join(SHARED_MAX), Granted::TooMany);
    assert_eq!(join(0), Granted::Subscribed, "one that it has");
    assert_eq!(shard.subscribe_one(session, "a", options, 0), Granted::Subscribed);
}

//! Whole shards' sessions under a model that knows what each subscriber must get and must not: random devices that come,
//! go, are taken over and lose their connections at any step; sessions that expire and wills that wait; messages of every
//! quality; late and split deliveries between shards. A seed replays a run.

mod congestion;
mod device;
mod model;

use super::*;
use crate::codec::mqtt::{self, Options, Packet, QoS};
use crate::link::{Class, Passed, Peer, Publication};
use crate::time::Moment;
use device::message_of;
use model::{Tally, World};

#[test]
fn whoever_subscribed_gets_each_message_and_nobody_else_does() {
    let mut total = Tally::default();
    for seed in 0..2_000 {
        let mut world = World::new(seed);
        for _ in 0..800 {
            world.step();
        }
        world.end();
        total.add(&world.tally);
    }
    assert!(total.is_enough(), "too little happened: {total:?}");
}

/// Far more than may wait in a session, and more than may be in flight.
#[test]
fn a_subscription_gets_every_retained_message_and_none_that_is_older_than_what_went_before() {
    const COUNT: u32 = 2_000;
    for qos in [0, 1, 2] {
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
        let options = Options::plain(QoS::try_from(qos).unwrap());
        assert_eq!(world.shards[worker].subscribe(session, "kept/#", options, 0), Granted::Subscribed);
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
            "QoS {qos}: {} of {} came, or in another order",
            kept.len(),
            COUNT - 1
        );
        assert_eq!(live, [COUNT + 1]);
        assert_eq!(world.counters.figure(Figure::DroppedQueueFull), 0);
        assert!(!world.shards[worker].has_deliveries(), "nothing is left to be done");
    }
}

/// What a session was sent, as topics, in one turn of its shard.
fn turn_of(world: &mut World, worker: usize, connected: &[u32]) -> Vec<(u32, String)> {
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
        let mut publication = world.publication(topic, 0);
        publication.retain = true;
        world.shards[worker].publish(publication, Ticket::NOBODY, &mut world.counters);
    };
    world.shards[worker].bounds.retained_messages = 2 * COUNT;
    world.shards[worker].routing.retained = retained::Retained::new(WorkerId(worker as u16), 3, 2 * COUNT, 1 << 24);
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
        assert_eq!(shard.subscribe(sessions[0], "+/+/none", Options::plain(QoS::AtMostOnce), 0), Granted::Subscribed);
    }
    let (mut turns, mut found_after) = (0, None);
    while world.shards[worker].has_deliveries() {
        if turns == 1 {
            world.shards[worker].begin_subscribe();
            world.shards[worker].subscribe(sessions[1], "t", Options::plain(QoS::AtMostOnce), 0);
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
    let mut publication = world.publication("r", 0);
    publication.retain = true;
    world.shards[worker].publish(publication, Ticket::NOBODY, &mut world.counters);
    world.connect(0);
    let session = world.session_of(0).unwrap();
    let mut subscribe = |filters: &[&str], retain_handling| {
        world.shards[worker].begin_subscribe();
        for filter in filters {
            let options = Options { retain_handling, ..Options::plain(QoS::AtMostOnce) };
            world.shards[worker].subscribe(session, filter, options, 0);
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
    world.shards[worker].subscribe(session, "+", Options::plain(QoS::AtMostOnce), 0);
    world.shards[worker].unsubscribe(session, "+");
    assert_eq!(turn_of(&mut world, worker, &[session]), []);
    assert!(world.shards[worker].sessions[session].inflight.is_none());
}

#[test]
fn description_of_a_session_shows_its_filters_up_to_a_bound_and_counts_all() {
    let mut world = World::new(7);
    world.connect(0);
    let (session, shard) = (world.session_of(0).unwrap(), &mut world.shards[world.devices[0].worker]);
    for number in 0..99 {
        shard.subscribe(session, &format!("{number:010}"), Options::plain(QoS::AtMostOnce), 0);
    }
    shard.subscribe(session, "$share/g/x", Options::plain(QoS::AtMostOnce), 0);
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

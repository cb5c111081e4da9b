//! What is wanted of other gateways: told one change at a time, waited for by SUBACK, narrowed when filters have gone; and what others
//! publish, which goes to subscribers and to no group.

use super::*;
use crate::link::{Cover, Reach, WorkerEvent};

/// One shard, told to say what it wants, and a session in it.
fn stage() -> (World, usize, SessionSlot) {
    let mut world = World::new(7);
    let worker = world.devices[0].worker;
    world.shards[worker].begin_interest();
    world.connect(0);
    let session = world.session_of(0).unwrap();
    (world, worker, session)
}

fn told(shard: &mut Broker) -> Option<(u64, Cover)> {
    shard.take_interest().map(|event| match event {
        WorkerEvent::Interest { version, cover } => (version, *cover),
        other => panic!("{other:?}"),
    })
}

/// Subscribes in one packet. `true`: SUBACK may be said.
fn subscribe(shard: &mut Broker, session: SessionSlot, filters: &[&str]) -> bool {
    let mut pending = shard.begin_filters(session, 1).unwrap();
    for filter in filters {
        let granted = shard.subscribe(session, filter, Options::plain(QoS::AtLeastOnce), 0, &mut pending);
        assert_eq!(granted, Granted::Subscribed);
        pending.codes.push(1);
    }
    shard.expect_subscribed(session, &mut pending);
    shard.end_filters(session, pending).is_some()
}

/// Turns until nothing is left to be looked through.
fn turns(shard: &mut Broker) {
    for _ in 0..1_000 {
        shard.begin_turn();
        if !shard.interest.has_work() || shard.interest.version > shard.interest.told {
            return;
        }
    }
    panic!("it is looked through for ever");
}

#[test]
fn suback_waits_until_what_is_new_is_held_and_no_longer() {
    let (mut world, worker, session) = stage();
    let shard = &mut world.shards[worker];
    // What there was at the beginning is told, though it be nothing.
    let (first, cover) = told(shard).unwrap();
    assert!(cover.is_empty() && told(shard).is_none());
    shard.handle_interest_held(first);
    assert!(!subscribe(shard, session, &["devices/1/set", "a/#"]), "it is not held yet");
    let (second, cover) = told(shard).unwrap();
    assert_eq!(cover.filters(), ["devices/1/set".into(), "a/#".into()]);
    // Nothing more is told before the answer.
    shard.interest.note_subscribed("b");
    assert!(told(shard).is_none() && shard.take_suback(session).is_none());
    shard.handle_interest_held(second);
    assert_eq!(shard.take_answerable().len(), 1);
    assert_eq!(shard.take_suback(session).unwrap().codes, [1, 1]);
    let (third, _) = told(shard).unwrap();
    shard.handle_interest_held(third);
    // What is covered waits for nobody.
    assert!(subscribe(shard, session, &["a/b/c", "devices/1/set"]));
    assert!(told(shard).is_none() && !shard.interest.has_work());
}

#[test]
fn without_a_fleet_nothing_is_told_and_nothing_waits() {
    let mut world = World::new(7);
    let worker = world.devices[0].worker;
    world.connect(0);
    let session = world.session_of(0).unwrap();
    let shard = &mut world.shards[worker];
    assert!(subscribe(shard, session, &["a", "b/#"]));
    shard.begin_turn();
    assert!(told(shard).is_none() && !shard.interest.has_work() && shard.interest.cover.is_empty());
}

#[test]
fn what_is_wanted_no_more_is_told_when_enough_has_gone() {
    let (mut world, worker, session) = stage();
    let shard = &mut world.shards[worker];
    let (version, _) = told(shard).unwrap();
    shard.handle_interest_held(version);
    let filters: Vec<_> = (0..1_000).map(|number| format!("devices/{number}/set")).collect();
    shard.bounds.subscriptions = 2_000;
    subscribe(shard, session, &filters.iter().map(String::as_str).collect::<Vec<_>>());
    let (version, cover) = told(shard).unwrap();
    assert_eq!(cover.filters(), ["devices/+/set".into()]);
    shard.handle_interest_held(version);
    assert!(shard.take_suback(session).is_some());
    // A few that go are not worth a look.
    for filter in &filters[..100] {
        assert_eq!(shard.unsubscribe(session, filter), Unsubscribed::Removed);
    }
    turns(shard);
    assert!(told(shard).is_none());
    for filter in &filters[100..990] {
        shard.unsubscribe(session, filter);
    }
    // One that comes while it is looked through is not missed.
    shard.begin_turn();
    assert!(shard.interest.anew.is_some());
    assert!(subscribe(shard, session, &["devices/new/set"]), "it is covered for now");
    turns(shard);
    let (_, cover) = told(shard).unwrap();
    assert_eq!(cover.filters().len(), 11);
    assert!(cover.covers("devices/new/set") && cover.covers("devices/999/set") && !cover.covers("devices/5/set"));
}

#[test]
fn what_others_publish_goes_to_subscribers_and_to_no_group() {
    let (mut world, worker, session) = stage();
    let options = Options::plain(QoS::AtMostOnce);
    assert_eq!(world.shards[worker].subscribe_one(session, "jobs", options, 0), Granted::Subscribed);
    let shard = &mut world.shards[worker];
    let mut groups = (0..).map(|number| format!("$share/g{number}/jobs"));
    let group = groups.find(|group| shard.home.of(group) == shard.worker).unwrap();
    assert_eq!(shard.subscribe_one(session, &group, options, 0), Granted::Subscribed);
    let publish = |world: &mut World, reach| {
        let publication = Publication { reach, ..world.publication("jobs", QoS::AtMostOnce) };
        world.shards[worker].publish(publication, Ticket::NOBODY, &mut world.counters);
        turn_of(world, worker, &[session]).len()
    };
    assert_eq!(publish(&mut world, Reach::Elsewhere), 1);
    assert_eq!(publish(&mut world, Reach::Here), 2);
}

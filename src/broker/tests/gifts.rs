//! What the fleet gives to groups: who gets it, when it is said to be with somebody, and when it goes back.

use super::device::Keeps;
use super::inflight::Inflight;
use super::lifecycle::NO_KEY;
use super::*;
use crate::image::Change;
use crate::link::{Giver, Reach, WorkerEvent};
use crate::time::Timeline;

const REQUEST: u64 = 77;

/// A shard of a fleet, and a session in it that is a member of a group which is at home there.
fn stage() -> (World, usize, SessionSlot, String) {
    stage_of(World::new(7))
}

/// The same, of a session that outlives its connection, with a store or without.
fn stage_with(is_stored: bool) -> (World, usize, SessionSlot, String) {
    let mut world = World::new(7);
    world.devices[0].keeps = Keeps::ForEver;
    if is_stored {
        let recording = Recording { timeline: Timeline::from_unix_micros(0).into(), listeners: ["l".into()].into() };
        world.shards[world.devices[0].worker].begin_recording(recording);
    }
    let stage = stage_of(world);
    assert_eq!(stage.0.shards[stage.1].sessions[stage.2].key != NO_KEY, is_stored);
    stage
}

fn stage_of(mut world: World) -> (World, usize, SessionSlot, String) {
    let worker = world.devices[0].worker;
    world.shards[worker].begin_interest();
    world.connect(0);
    let session = world.session_of(0).unwrap();
    let shard = &world.shards[worker];
    let mut groups = (0..).map(|number| format!("$share/g{number}/jobs"));
    let group = groups.find(|group| shard.home.of(group) == shard.worker).unwrap();
    (world, worker, session, group)
}

/// Subscribes. `true`: SUBACK may be said.
fn subscribe(shard: &mut Broker, session: SessionSlot, filter: &str) -> bool {
    let mut pending = shard.begin_filters(session, 1).unwrap();
    let granted = shard.subscribe(session, filter, Options::plain(QoS::AtLeastOnce), 0, &mut pending);
    assert_eq!(granted, Granted::Subscribed);
    pending.codes.push(1);
    shard.end_filters(session, pending).is_some()
}

/// What was said of messages since this was asked, which is safe by now: so many were recorded, and so many are done with.
fn recorded(shard: &mut Broker) -> (usize, usize) {
    let mut said = Vec::new();
    let mut mark = None;
    shard.hand_over(|changes| {
        mark = Some(changes.mark);
        said = changes.changes;
        Ok(())
    });
    if let Some(mark) = mark {
        shard.handle_safe(mark);
    }
    let queued = said.iter().filter(|change| matches!(change, Change::Queued { .. })).count();
    (queued, said.iter().filter(|change| matches!(change, Change::Done { .. })).count())
}

/// The session's connection ends.
fn go(world: &mut World, worker: usize, session: SessionSlot) {
    let generation = world.shards[worker].sessions[session].generation;
    let connection = world.shards[worker].connection_of(session, generation).unwrap();
    let name = world.devices[0].name.clone();
    let now = world.now;
    world.shards[worker].detach(connection, &name, false, now, &mut world.counters);
}

fn told(shard: &mut Broker) -> Vec<(String, u32, u32, u32)> {
    let events = shard.take_group_events().into_iter();
    let told = events.map(|event| match event {
        WorkerEvent::Group { group, life, members, room } => (group.to_string(), life, members, room),
        other => panic!("{other:?}"),
    });
    told.collect()
}

#[test]
fn suback_of_a_group_waits_until_it_is_decided_who_gives() {
    let (mut world, worker, session, group) = stage();
    let shard = &mut world.shards[worker];
    assert!(!subscribe(shard, session, &group), "it is not decided");
    assert!(shard.has_deliveries(), "something is to be told");
    let room = u32::from(shard.group_room(session));
    assert!(room > 0);
    assert_eq!(told(shard), [(group.clone(), 1, 1, room)]);
    assert_eq!(told(shard), []);
    shard.handle_group_served(&group, 7, Giver::Fleet);
    assert!(shard.take_answerable().is_empty(), "that was another life of it");
    shard.handle_group_served(&group, 1, Giver::Fleet);
    assert_eq!(shard.take_answerable().len(), 1);
    assert!(shard.take_suback(session).is_some());
    // From then on nobody waits.
    assert!(subscribe(shard, session, &group));
    shard.unsubscribe(session, &group);
    assert_eq!(told(shard), [(group, 1, 0, 0)]);
}

#[test]
fn whoever_waits_for_a_group_that_goes_waits_no_longer() {
    let (mut world, worker, session, group) = stage();
    let shard = &mut world.shards[worker];
    assert!(!subscribe(shard, session, &group));
    shard.unsubscribe(session, &group);
    assert!(shard.take_suback(session).is_some());
}

/// What goes up is the fleet's to give, or this gateway's where it says so; what stays here is always given here.
#[test]
fn what_goes_up_is_given_here_only_where_it_says_so() {
    let (mut world, worker, session, group) = stage();
    subscribe(&mut world.shards[worker], session, &group);
    let publish = |world: &mut World, reach| {
        let mut publication = Publication { reach, ..world.publication("jobs", QoS::AtMostOnce) };
        if reach == Reach::Fleet {
            world.shards[worker].send_up(&mut publication);
        }
        let groups = publication.groups.clone();
        world.shards[worker].publish(publication, Ticket::NOBODY, &mut world.counters);
        (groups.is_some(), turn_of(world, worker, &[session]).len())
    };
    assert_eq!(publish(&mut world, Reach::Fleet), (true, 1), "it is not decided");
    let decide = |world: &mut World, giver| world.shards[worker].handle_group_served(&group, 1, giver);
    decide(&mut world, Giver::Fleet);
    assert_eq!(publish(&mut world, Reach::Fleet), (false, 0));
    assert_eq!(publish(&mut world, Reach::Here), (false, 1));
    decide(&mut world, Giver::Here);
    assert_eq!(publish(&mut world, Reach::Fleet), (true, 1));
    decide(&mut world, Giver::Each);
    assert_eq!(publish(&mut world, Reach::Fleet), (false, 1), "the fleet knows nothing of it");
    assert_eq!(publish(&mut world, Reach::Elsewhere), (false, 0));
}

/// What was published while this gateway gave is given here, whoever gives by the time it arrives.
#[test]
fn whoever_publishes_decides() {
    let (mut world, worker, session, group) = stage();
    subscribe(&mut world.shards[worker], session, &group);
    let mut said = world.publication("jobs", QoS::AtMostOnce);
    world.shards[worker].send_up(&mut said);
    world.shards[worker].handle_group_served(&group, 1, Giver::Fleet);
    let mut unsaid = world.publication("jobs", QoS::AtMostOnce);
    world.shards[worker].send_up(&mut unsaid);
    world.shards[worker].handle_group_served(&group, 1, Giver::Here);
    world.shards[worker].publish(unsaid, Ticket::NOBODY, &mut world.counters);
    assert_eq!(turn_of(&mut world, worker, &[session]).len(), 0);
    world.shards[worker].publish(said, Ticket::NOBODY, &mut world.counters);
    assert_eq!(turn_of(&mut world, worker, &[session]).len(), 1);
}

#[test]
fn what_nobody_is_there_to_take_goes_back() {
    let (mut world, worker, session, group) = stage();
    let publication = Arc::new(world.publication("jobs", QoS::AtLeastOnce));
    let shard = &mut world.shards[worker];
    shard.give_from_fleet(REQUEST, &group, &publication);
    assert_eq!(shard.take_requests(), [(REQUEST, RequestEnd::Unacknowledged)]);
    // Nor is a member that is away.
    subscribe(shard, session, &group);
    world.shards[worker].sessions[session].profile.expiry_s = 100;
    go(&mut world, worker, session);
    let shard = &mut world.shards[worker];
    shard.give_from_fleet(REQUEST, &group, &publication);
    assert_eq!(shard.take_requests(), [(REQUEST, RequestEnd::Unacknowledged)]);
}

/// A device's word is waited for, and when its connection ends without one, the message goes back, whole, though the session stays. In
/// the store it never was: should the process end, another member gets it, and the session has it no more.
#[test]
fn a_member_has_it_when_its_device_says_so() {
    for (is_acknowledged, is_stored) in [(true, false), (false, false), (true, true), (false, true)] {
        let (mut world, worker, session, group) = stage_with(is_stored);
        subscribe(&mut world.shards[worker], session, &group);
        let publication = Arc::new(world.publication("jobs", QoS::AtLeastOnce));
        world.shards[worker].give_from_fleet(REQUEST, &group, &publication);
        assert_eq!(turn_of(&mut world, worker, &[session]).len(), 1);
        let shard = &mut world.shards[worker];
        assert_eq!(recorded(shard), (0, 0));
        assert_eq!(shard.take_requests(), [], "nobody has said anything");
        let packet = shard.sessions[session].next_packet;
        if is_acknowledged {
            // Whatever the reason code: it goes to nobody else [v5 MQTT-4.8.2-6].
            let told = |_| panic!("it is no request of the API");
            assert!(shard.handle_puback(session, packet, told).unwrap());
            assert_eq!(shard.take_requests(), [(REQUEST, RequestEnd::Published)]);
        }
        go(&mut world, worker, session);
        let shard = &mut world.shards[worker];
        let back: &[_] = if is_acknowledged { &[] } else { &[(REQUEST, RequestEnd::Unacknowledged)] };
        assert_eq!(shard.take_requests(), back);
        assert_eq!(recorded(shard), (0, 0));
        assert!(shard.sessions[session].inflight.is_none(), "it is somebody else's");
        shard.check_invariants(|_| false);
    }
}

/// Of QoS 2 what was never sent goes back; what was is this session's, in its store too, and done with at PUBREC.
#[test]
fn what_was_sent_of_qos_2_stays_with_its_session() {
    for (is_acknowledged, is_stored) in [(true, false), (false, false), (true, true), (false, true)] {
        let (mut world, worker, session, group) = stage_with(is_stored);
        let shard = &mut world.shards[worker];
        let mut pending = shard.begin_filters(session, 1).unwrap();
        let granted = shard.subscribe(session, &group, Options::plain(QoS::ExactlyOnce), 0, &mut pending);
        assert_eq!(granted, Granted::Subscribed);
        // Of what it takes at a time others have two, where nothing is recorded.
        let others = if is_stored { 0 } else { 2 };
        shard.sessions[session].profile.receive_maximum = 2 + others;
        let subscriber =
            Subscriber { slot: session, identifier: 0, options: Options::plain(QoS::AtLeastOnce).to_byte() };
        let plain = Arc::new(world.publication("others", QoS::AtLeastOnce));
        for _ in 0..others {
            world.shards[worker].write_to(session, Arc::clone(&plain), subscriber, 0);
        }
        turn_of(&mut world, worker, &[session]);
        let publication = Arc::new(world.publication("jobs", QoS::ExactlyOnce));
        world.shards[worker].give_from_fleet(REQUEST, &group, &publication);
        let mut sent = turn_of(&mut world, worker, &[session]).len();
        assert_eq!(
            recorded(&mut world.shards[worker]),
            (usize::from(is_stored), 0),
            "a device knows it by its identifier"
        );
        sent += turn_of(&mut world, worker, &[session]).len();
        assert_eq!(sent, 1);
        // The second one is not sent before it is known to be safe, or one of those before it is acknowledged; nor is the third, for
        // which there is no room where they are recorded.
        let packet = world.shards[worker].sessions[session].next_packet;
        world.shards[worker].sessions[session].profile.receive_maximum = 2 + others / 2;
        for request in [REQUEST + 1, REQUEST + 2] {
            world.shards[worker].give_from_fleet(request, &group, &publication);
        }
        assert_eq!(turn_of(&mut world, worker, &[session]).len(), 0);
        let shard = &mut world.shards[worker];
        let mut ends = shard.take_requests();
        assert_eq!(ends.len(), usize::from(is_stored));
        if is_acknowledged {
            let told = |_| panic!("it is no request of the API");
            assert!(shard.handle_pubrec(session, packet, false, told).unwrap());
            assert_eq!(shard.take_requests(), [(REQUEST, RequestEnd::Published)]);
        }
        go(&mut world, worker, session);
        let shard = &mut world.shards[worker];
        ends.extend(shard.take_requests());
        ends.sort_by_key(|(request, _)| *request);
        let unsent = [1, 2].map(|more| (REQUEST + more, RequestEnd::Unacknowledged));
        let kept = (!is_acknowledged).then_some((REQUEST, RequestEnd::Published));
        assert_eq!(ends, kept.into_iter().chain(unsent).collect::<Vec<_>>());
        let second = usize::from(is_stored);
        assert_eq!(recorded(shard), (second, second), "what goes back is nobody's here");
        let left = shard.sessions[session].inflight.as_deref().map(Inflight::unacknowledged);
        assert_eq!(left, Some(1 + usize::from(others)), "it is sent again, or its PUBREL is");
        shard.check_invariants(|_| false);
    }
}

/// Whoever is connected and acknowledges nothing keeps its own part, and not that of the others.
#[test]
fn a_silent_member_has_no_more_than_was_asked_for_it() {
    for is_stored in [false, true] {
        let (mut world, worker, session, group) = stage_with(is_stored);
        subscribe(&mut world.shards[worker], session, &group);
        let publication = Arc::new(world.publication("jobs", QoS::AtLeastOnce));
        world.shards[worker].sessions[session].profile.receive_maximum = 9;
        let beyond = u64::from(world.shards[worker].group_room(session));
        for request in 0..beyond + 2 {
            world.shards[worker].give_from_fleet(REQUEST + request, &group, &publication);
        }
        turn_of(&mut world, worker, &[session]);
        let back = [beyond, beyond + 1].map(|request| (REQUEST + request, RequestEnd::Unacknowledged));
        assert_eq!(world.shards[worker].take_requests(), back);
        let packet = world.shards[worker].sessions[session].next_packet;
        let shard = &mut world.shards[worker];
        assert!(shard.handle_puback(session, packet, |_| panic!("it is no request of the API")).unwrap());
        assert_eq!(shard.take_requests().len(), 1);
        world.shards[worker].give_from_fleet(1, &group, &publication);
        turn_of(&mut world, worker, &[session]);
        assert_eq!(world.shards[worker].take_requests(), [], "there is room for one");
        world.shards[worker].check_invariants(|_| true);
    }
}

/// What a slow member has no room for goes to the next one, in the turn after; and back only where all have been tried.
#[test]
fn what_a_member_has_no_room_for_goes_to_another_at_once() {
    let (mut world, worker, slow, group) = stage();
    let other = (1..world.devices.len()).find(|&device| world.devices[device].worker == worker).unwrap();
    world.connect(other);
    let quick = world.session_of(other).unwrap();
    for session in [slow, quick] {
        subscribe(&mut world.shards[worker], session, &group);
        world.shards[worker].sessions[session].profile.receive_maximum = 3;
    }
    let publication = Arc::new(world.publication("jobs", QoS::AtLeastOnce));
    let (mut of_slow, mut of_quick) = (0, Vec::new());
    for request in 1..=10 {
        world.shards[worker].give_from_fleet(request, &group, &publication);
        for _ in 0..3 {
            for (session, _) in turn_of(&mut world, worker, &[slow, quick]) {
                if session == slow {
                    of_slow += 1;
                    continue;
                }
                let shard = &mut world.shards[worker];
                let packet = shard.sessions[quick].next_packet;
                assert!(shard.handle_puback(quick, packet, |_| panic!("it is no request of the API")).unwrap());
                of_quick.extend(shard.take_requests());
            }
        }
    }
    assert_eq!((of_slow, of_quick.len()), (3, 7));
    assert!(of_quick.iter().all(|(_, end)| *end == RequestEnd::Published), "{of_quick:?}");
    // Nobody has room any more.
    for request in 11..=14 {
        world.shards[worker].give_from_fleet(request, &group, &publication);
        (0..4).for_each(|_| drop(turn_of(&mut world, worker, &[slow, quick])));
    }
    assert_eq!(world.shards[worker].take_requests(), [(14, RequestEnd::Unacknowledged)]);
    world.shards[worker].check_invariants(|_| true);
}

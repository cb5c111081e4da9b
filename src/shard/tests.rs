//! A shard in its turns, over memory: clients without sockets.

#[path = "../../tests/turn/memory_io.rs"]
#[allow(dead_code, reason = "the fuzzer and the benches use more of it")]
mod memory_io;

mod harness;
mod places;
mod sweep;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::codec::native::CloseCode;
use crate::connection::Input;
use crate::connection::fixtures::{End, Fixtures, ReceivedFrame};
use crate::link::{AuthAnswer, DeviceFilter, Downlink, ListenerId, Outcome, Receipt, WorkerCommand};
use crate::pool::{Charge, Class};
use harness::ShardHarness;
use memory_io::PeerEnd;

const NATIVE: ListenerId = ListenerId(0);
const RAW: ListenerId = ListenerId(1);

#[test]
fn handshakes_wait_for_a_place_and_go_in_the_order_in_which_they_came() {
    let mut harness = ShardHarness::new();
    let slots: Vec<ConnectionSlot> = (0..4).map(|_| harness.accept(NATIVE)).collect();
    for &slot in &slots {
        harness.send(slot);
    }
    harness.turn();
    assert_eq!((harness.value(Metric::HandshakesWaiting), harness.value(Metric::HandshakesInFlight)), (2, 2));
    assert!(!harness.shard().has_waiting(), "there is no place for them");
    let now = harness.now();
    assert_eq!(harness.shard().longest_waiting(), Some(now.tick()));
    for &slot in &slots {
        assert_eq!(harness.client(slot).out.is_empty(), slots[2..].contains(&slot), "slot {slot}");
    }
    // The first two answer, and make room for the others.
    for &slot in &slots[..2] {
        harness.send(slot);
    }
    harness.turn();
    assert_eq!((harness.value(Metric::HandshakesWaiting), harness.value(Metric::HandshakesInFlight)), (0, 2));
    assert_eq!(harness.value(Metric::HandshakesFull), 2);
}

#[test]
fn whoever_is_called_and_has_nothing_to_say_waits_for_its_bytes_again() {
    let mut harness = ShardHarness::new();
    let slot = harness.accept(NATIVE);
    harness.io().nudge(slot);
    harness.turn();
    assert_eq!((harness.value(Metric::HandshakesWaiting), harness.value(Metric::HandshakesInFlight)), (0, 0));
    for _ in 0..2 {
        harness.read(slot);
    }
    assert!(harness.clients[&slot].records.is_some());
    // One that leaves in the queue is not missed by those behind it.
    let (gone, next) = (harness.accept(NATIVE), harness.accept(NATIVE));
    harness.with(|shard, now| {
        shard.plan_read(gone);
        shard.plan_read(next);
        shard.handle_reset(gone, now);
    });
    harness.send(next);
    assert_eq!(harness.turn(), [gone]);
    assert_eq!(harness.value(Metric::HandshakesInFlight), 1);
}

/// What was noted down about a slot in an earlier turn must not touch whoever has it now.
#[test]
fn a_slot_that_was_noted_down_and_given_to_somebody_else_is_not_read() {
    let mut harness = ShardHarness::new();
    let slot = harness.connect("a");
    let mut input = Input::new(Fixtures::limits().frame_bytes, Fixtures::limits().read_bytes);
    harness.client(slot).say_bytes(&[0xff; 3]);
    harness.read(slot);
    assert_eq!(harness.closed(CloseReason::ProtocolError), 1);
    // It lingers, and is to be looked at; before that, it is gone, and a new connection has its slot.
    harness.with(|shard, now| {
        assert!(shard.has_ready());
        shard.handle_reset(slot, now);
        assert_eq!(shard.next_closed(), Some(slot));
        shard.reap(slot);
        assert_eq!(shard.handle_accept(NATIVE, now), slot);
        let mut ready = VecDeque::new();
        shard.take_ready(&mut ready);
        assert!(ready.contains(&slot));
        assert!(!shard.load_input(slot, &mut input), "it was never called for its handshake");
        // The same while it waits in the queue: it would take a place that nobody gave it.
        assert_eq!(shard.plan_read(slot), Plan::Leave);
        assert!(!shard.load_input(slot, &mut input));
        assert_eq!(shard.next_waiting(), Some(slot));
        assert!(shard.load_input(slot, &mut input));
    });
}

#[test]
fn a_device_is_welcomed_once_it_is_named_and_its_presence_is_told() {
    let mut harness = ShardHarness::new();
    let slot = harness.connect("meter-1");
    assert!(
        matches!(harness.client(slot).frames()[..], [ReceivedFrame::Welcome(welcome)] if welcome.heartbeat_ms == 10_000)
    );
    assert_eq!(harness.presence(), ["+meter-1 2"]);
    assert_eq!(harness.end(slot, PeerEnd::InOrder), [slot]);
    assert_eq!(harness.presence(), ["-meter-1 2 peer_closed"]);
    assert!(harness.shard().is_empty());
}

#[test]
fn a_newer_connection_takes_over_and_generations_grow_whoever_was_accepted_first() {
    let mut harness = ShardHarness::new();
    let older = harness.shake_hands(NATIVE);
    let newer = harness.connect("a");
    // Accepted first, named last: its generation is the greatest nevertheless.
    harness.client(older).say_hello("a");
    harness.read(older);
    let presence = harness.presence();
    assert_eq!(presence, ["+a 3", "-a 3 taken_over", "+a 4"]);
    assert!(matches!(
        &harness.client(newer).frames()[..],
        [ReceivedFrame::Welcome(_), ReceivedFrame::Close(CloseCode::TAKEN_OVER, 0, _)]
    ));
    assert_eq!(harness.client(newer).end, Some(End::CloseNotify));
    assert!(matches!(harness.client(older).frames()[..], [ReceivedFrame::Welcome(_)]));
    assert!(harness.io().is_shut(newer), "it is shut for writing when all was said");
    assert_eq!(harness.with(|shard, now| shard.describe("a", now)).unwrap().generation, 4);
    assert_eq!(harness.end(newer, PeerEnd::InOrder), [newer]);
}

#[test]
fn a_device_that_another_gateway_has_is_ended_and_no_newer_connection_of_it() {
    let mut harness = ShardHarness::new();
    let slot = harness.connect("a");
    harness.client(slot).frames();
    let generation = harness.with(|shard, now| shard.describe("a", now)).unwrap().generation;
    harness.presence();
    let disown =
        |device: &str, generation, is_loop| WorkerCommand::Disown { device: device.into(), generation, is_loop };
    for command in
        [disown("a", generation - 1, false), disown("a", generation + 1, false), disown("b", generation, false)]
    {
        harness.io().command(command);
        harness.turn();
        assert!(harness.presence().is_empty() && harness.client(slot).frames().is_empty());
    }
    harness.io().command(disown("a", generation, false));
    harness.turn();
    assert_eq!(harness.presence(), [format!("-a {generation} taken_over")]);
    assert!(matches!(harness.client(slot).frames()[..], [ReceivedFrame::Close(CloseCode::TAKEN_OVER, 0, _)]));
    // Where two places fight, it is told when to come again.
    let slot = harness.connect("a");
    let generation = harness.with(|shard, now| shard.describe("a", now)).unwrap().generation;
    harness.client(slot).frames();
    harness.io().command(disown("a", generation, true));
    harness.turn();
    let told = harness.client(slot).frames();
    assert!(matches!(told[..], [ReceivedFrame::Close(CloseCode::TRY_LATER, 10_000..=30_000, _)]), "{told:?}");
    assert_eq!(harness.closed(CloseReason::TakeoverLoop), 1);
}

/// Several things said to one connection in one turn may lie apart; nothing may be shut before the last.
#[test]
fn a_goodbye_that_lies_apart_from_what_was_said_before_arrives() {
    let mut harness = ShardHarness::new();
    let (a, b) = (harness.connect("a"), harness.connect("b"));
    let ping = crate::codec::native::Frame::Ping(b"x");
    for slot in [a, b] {
        harness.client(slot).frames();
        harness.client(slot).say(&ping);
        harness.send(slot);
    }
    harness.io().command(WorkerCommand::Disconnect { request: 1, device: "a".into() });
    harness.turn();
    let told = harness.client(a).frames();
    assert!(matches!(&told[..], [ReceivedFrame::Pong(_), ReceivedFrame::Close(CloseCode::REQUESTED, ..)]), "{told:?}");
    assert_eq!(harness.client(a).end, Some(End::CloseNotify));
}

#[test]
fn an_end_without_words_is_flushed_too() {
    let mut harness = ShardHarness::new();
    let slot = harness.accept(NATIVE);
    harness.client(slot).out = b"GET / HTTP/1.1\r\n".to_vec();
    harness.read(slot);
    assert_eq!(harness.closed(CloseReason::NotTls), 1);
    assert!(harness.io().is_shut(slot), "the peer would wait for the end of the stream");
    harness.pass(Duration::from_secs(3));
    assert_eq!(harness.turn(), [slot]);
    assert_eq!(harness.shard().counters().closed().iter().sum::<u64>(), 1, "it has one reason");
}

#[test]
fn deadlines_of_those_who_are_not_yet_devices() {
    let mut harness = ShardHarness::new();
    let (silent, slow, nameless) = (harness.accept(NATIVE), harness.accept(NATIVE), harness.shake_hands(NATIVE));
    harness.shard().plan_read(slow);
    harness.pass(Duration::from_millis(9_900));
    assert!(harness.turn().is_empty(), "ten seconds have not passed");
    harness.pass(Duration::from_millis(300));
    let mut reaped = harness.turn();
    reaped.sort_unstable();
    assert_eq!(reaped, [silent, slow]);
    assert_eq!((harness.closed(CloseReason::HandshakeTimeout), harness.closed(CloseReason::HelloTimeout)), (2, 1));
    assert!(matches!(&harness.client(nameless).frames()[..], [ReceivedFrame::Close(CloseCode::HELLO_TIMEOUT, ..)]));
}

#[test]
fn a_silent_device_is_probed_then_read_once_more_then_expired() {
    let mut harness = ShardHarness::new();
    let (dead, late) = (harness.connect("dead"), harness.connect("late"));
    for _ in 0..2 {
        harness.pass(Duration::from_secs(10));
        harness.turn();
    }
    assert_eq!(harness.value(Metric::HeartbeatsSent), 4);
    // The answer of one is in its socket, though no event has told of it.
    let pong = crate::codec::native::Frame::Pong(b"");
    harness.client(late).say(&pong);
    harness.send(late);
    harness.io().forget_events(late);
    harness.presence();
    harness.pass(Duration::from_secs(10));
    assert_eq!(harness.turn(), [dead]);
    assert_eq!(harness.presence(), ["-dead 2 expired"]);
    assert_eq!(harness.value(Metric::LastReadsHeard), 1);
    assert!(matches!(
        &harness.client(dead).frames()[..],
        [
            ReceivedFrame::Welcome(_),
            ReceivedFrame::Ping,
            ReceivedFrame::Ping,
            ReceivedFrame::Close(CloseCode::EXPIRED, ..)
        ]
    ));
    assert!(harness.with(|shard, now| shard.describe("late", now)).is_some());
}

/// A gateway that is stopped with a probe in its hands: the device is asked when it goes on, and has its time from there.
#[test]
fn the_wait_for_an_answer_begins_when_its_probe_was_written() {
    let mut harness = ShardHarness::new();
    let (asked, left) = (harness.connect("asked"), harness.connect("left"));
    harness.pass(Duration::from_secs(10));
    let mut suspects = Vec::new();
    let goodbye = harness.with(|shard, now| {
        shard.handle_deadlines(now.tick(), now, 16, &mut suspects);
        assert!(shard.has_probed());
        let as_said = shard.wheel.deadline(asked).unwrap();
        shard.handle_disconnect(1, "left", now);
        // In time, nothing changes.
        shard.handle_flushed(now.plus(Duration::from_millis(20)));
        assert_eq!(shard.wheel.deadline(asked), Some(as_said));
        shard.wheel.deadline(left)
    });
    harness.pass(Duration::from_secs(1));
    harness.with(|shard, now| {
        shard.handle_deadlines(now.tick(), now, 16, &mut suspects);
        assert!(!shard.has_probed(), "nothing is due before the timeout is over");
    });
    harness.pass(Duration::from_millis(200));
    harness.with(|shard, now| {
        shard.handle_deadlines(now.tick(), now, 16, &mut suspects);
        assert!(shard.has_probed(), "the second and last probe");
    });
    harness.pass(Duration::from_mins(1));
    harness.with(|shard, now| {
        shard.handle_flushed(now);
        assert_eq!(shard.wheel.deadline(asked), Some(now.tick().deadline_after(10)));
        assert_eq!(shard.wheel.deadline(left), goodbye);
    });
    harness.turn();
    harness.pass(Duration::from_secs(1));
    harness.turn();
    assert_eq!(harness.closed(CloseReason::Expired), 0);
    harness.pass(Duration::from_millis(100));
    harness.turn();
    assert_eq!(harness.closed(CloseReason::Expired), 1);
}

/// Where the interval is shorter than the timeout, a probe's own deadline would be too late for the next one.
#[test]
fn the_answer_to_a_probe_moves_the_deadline_of_a_device_and_not_that_of_a_goodbye() {
    let mut harness = ShardHarness::new();
    let (lives, leaves) = (harness.connect("lives"), harness.connect("leaves"));
    harness.pass(Duration::from_secs(10));
    harness.turn();
    assert_eq!(harness.value(Metric::HeartbeatsSent), 2);
    harness.io().command(WorkerCommand::Disconnect { request: 1, device: "leaves".into() });
    harness.turn();
    let goodbye = harness.shard().wheel.deadline(leaves);
    let pong = crate::codec::native::Frame::Pong(b"");
    for slot in [lives, leaves] {
        harness.client(slot).say(&pong);
        harness.read(slot);
    }
    harness.with(|shard, now| {
        let interval = shard.settings_of(lives).schedule.interval;
        assert_eq!(shard.wheel.deadline(lives), Some(now.tick().plus(interval)));
        assert_eq!(shard.wheel.deadline(leaves), goodbye);
    });
}

#[test]
fn nobody_is_judged_by_a_time_up_to_which_nothing_was_read() {
    let mut harness = ShardHarness::new();
    harness.connect("a");
    let drained = harness.now().tick();
    harness.pass(Duration::from_hours(1));
    let mut suspects = Vec::new();
    harness.with(|shard, now| shard.handle_deadlines(drained, now, 16, &mut suspects));
    assert!(suspects.is_empty());
    assert_eq!(harness.value(Metric::HeartbeatsSent), 0);
}

/// A shard to which a connection came, the shard where it is at home, and its slot; its HELLO is on the way.
fn away_from_home() -> (ShardHarness, ShardHarness, ConnectionSlot) {
    let mut harnesses = ShardHarness::of(2);
    let (there, mut here) = (harnesses.pop().unwrap(), harnesses.pop().unwrap());
    let home = here.shard().home;
    let id = (0..10_000).map(|n| format!("device-{n}")).find(|id| home.of(id) == WorkerId(1)).unwrap();
    let slot = here.shake_hands(NATIVE);
    here.client(slot).say_hello(&id);
    (here, there, slot)
}

#[test]
fn a_connection_moves_home_and_goes_on_where_it_was() {
    let (mut here, mut there, slot) = away_from_home();
    here.client(slot).say_message(7, b"said before the move");
    here.read(slot);
    assert!(here.take_uplink().is_empty(), "it is no device here");
    let (moving, home, image) = here.take_sent();
    assert_eq!((moving.slot, home), (slot, WorkerId(1)));
    assert_eq!(here.shard().plan_read(slot), Plan::Leave);
    // However late the answer is, it stays.
    here.pass(Duration::from_mins(5));
    assert!(here.turn().is_empty() && here.shard().is_current(moving));

    let client = here.clients.remove(&slot).unwrap();
    let arrived = there.arrive(moving, &image, client);
    assert_eq!(here.acknowledge(moving, true), [slot]);
    assert!(here.acknowledge(moving, true).is_empty());
    assert!(here.shard().is_empty());

    there.turn();
    let uplink = there.take_uplink();
    let [WorkerEvent::Connected(_), WorkerEvent::Message(message)] = &uplink[..] else { panic!("{uplink:?}") };
    let receipt = Receipt::Connection(message.connection, 7);
    assert_eq!((&*message.payload, message.receipt), (&b"said before the move"[..], Some(receipt)));
    there.io().command(WorkerCommand::MessageSettled { receipt, accepted: true });
    there.turn();
    assert!(matches!(there.client(arrived).frames()[..], [ReceivedFrame::Welcome(_), ReceivedFrame::Ack(7)]));
    // An image for a home that is not here, or with more than there is room for.
    assert!(here.with(|shard, now| shard.unpack(&image, now)).is_err());
}

#[test]
fn what_a_connection_had_to_say_before_it_moved_leaves_with_the_greeting() {
    let (mut here, mut there, slot) = away_from_home();
    here.with(|shard, now| shard.handle_unsent(slot, b"still to be said", now));
    here.read(slot);
    assert!(here.shard().is_moving(slot));
    let (_, _, image) = here.take_sent();
    // What is written there is seen as bytes: the client's keys know nothing of what was made up here.
    there.with(|shard, now| {
        let arrived = shard.unpack(&image, now).unwrap();
        shard.handle_arrival(arrived, now);
        assert!(shard.unsent(arrived).is_empty());
        let mut transmit = Transmit::default();
        shard.take_transmit(&mut transmit);
        let segments: Vec<_> = transmit.segments().collect();
        let [(to, bytes)] = segments[..] else { panic!("{segments:?}") };
        assert_eq!(to, arrived);
        let greeting = bytes.strip_prefix(b"still to be said").unwrap();
        assert!(!greeting.is_empty());
    });
}

#[test]
fn a_connection_that_its_home_refuses_is_told_from_here() {
    let (mut here, _, slot) = away_from_home();
    here.read(slot);
    let (moving, ..) = here.take_sent();
    assert!(here.acknowledge(moving, false).is_empty());
    let told = here.client(slot).frames();
    assert!(matches!(&told[..], [ReceivedFrame::Close(CloseCode::TRY_LATER, 5_000..=15_000, _)]), "{told:?}");
    let uplink = here.take_uplink();
    let [WorkerEvent::NotAdmitted(end)] = &uplink[..] else { panic!("it never was a device: {uplink:?}") };
    assert!(end.device.starts_with("device-") && end.reason == CloseReason::HomeFull, "{end:?}");
    here.acknowledge(moving, false);
    here.acknowledge(moving, true);
    assert!(here.take_uplink().is_empty());
}

#[test]
fn a_full_uplink_drops_what_may_be_dropped_and_pauses_who_must_not_be_lost() {
    let mut harness = ShardHarness::new();
    let slot = harness.connect("a");
    let other = harness.connect("b");
    harness.take_uplink();
    harness.io().up_room = 0;
    for n in 1..=6 {
        harness.client(slot).say_message(n, b"m");
    }
    for _ in 0..4 {
        harness.client(slot).say_message(0, b"may be dropped");
    }
    harness.client(slot).say_message(7, b"must not be dropped");
    harness.client(slot).say_message(0, b"behind it");
    harness.read(slot);
    assert_eq!(harness.shard().uplink().len(), 8);
    assert_eq!(harness.value(Metric::MessagesDropped), 2);
    assert!(harness.shard().connections[slot].is_paused());
    assert_eq!(harness.shard().plan_read(slot), Plan::Leave);
    // Heartbeats of others go on.
    harness.client(other).say(&crate::codec::native::Frame::Ping(b"1"));
    harness.read(other);
    assert!(harness.client(other).frames().contains(&ReceivedFrame::Pong(b"1".to_vec())));
    // Silence while it is not read means nothing.
    for _ in 0..10 {
        harness.pass(Duration::from_secs(5));
        harness.client(other).say(&crate::codec::native::Frame::Ping(b""));
        harness.read(other);
    }
    assert!(!harness.shard().has_ready(), "there is no room yet");
    harness.io().up_room = usize::MAX;
    harness.turn();
    assert!(harness.shard().has_ready());
    harness.take_uplink();
    harness.turn();
    let uplink = harness.take_uplink();
    let payloads: Vec<&[u8]> = uplink
        .iter()
        .map(|event| if let WorkerEvent::Message(message) = event { &message.payload[..] } else { b"" })
        .collect();
    assert_eq!(payloads, [&b"must not be dropped"[..], b"behind it"]);
    assert!(harness.shard().connections[slot].buffered() == 0);
}

/// What a device may drop keeps off the way up while much is on it, so that those go on who wait for an acknowledgement.
#[test]
fn what_nobody_waits_for_keeps_off_a_crowded_way_up() {
    let mut harness = ShardHarness::new();
    let (flood, other) = (harness.connect("a"), harness.connect("b"));
    harness.take_uplink();
    let pool = Arc::clone(&harness.shard().pool);
    let crowd = Charge::of(&pool, Class::Up, pool.share(Class::Up) as usize / 16);
    harness.client(flood).say_message(0, b"nobody waits");
    harness.read(flood);
    harness.client(other).say_message(1, b"is awaited");
    harness.read(other);
    assert_eq!(harness.take_uplink().len(), 1);
    let shard = harness.shard();
    assert!(shard.connections[flood].is_paused() && shard.is_yielding() && shard.waits_for_backbone());
    assert!(!shard.connections[other].is_paused());
    harness.turn();
    assert!(!harness.shard().has_ready(), "it is as crowded as before");
    drop(crowd);
    harness.turn();
    assert!(!harness.shard().is_yielding());
    harness.turn();
    assert_eq!((harness.take_uplink().len(), harness.value(Metric::MessagesDropped)), (1, 0), "late, and not lost");
}

/// What is acknowledged may keep the way crowded for as long as it likes.
#[test]
fn a_crowded_way_up_that_gets_on_holds_whoever_can_wait() {
    let mut harness = ShardHarness::new();
    let slot = harness.connect("a");
    harness.take_uplink();
    let pool = Arc::clone(&harness.shard().pool);
    let crowd = Charge::of(&pool, Class::Up, pool.share(Class::Up) as usize / 16);
    harness.client(slot).say_message(0, b"nobody waits");
    harness.read(slot);
    for _ in 0..5 {
        drop(Charge::of(&pool, Class::Up, 1));
        harness.pass(YIELD_MAX);
        harness.turn();
        assert!(harness.shard().is_yielding() && harness.take_uplink().is_empty());
    }
    drop(crowd);
    harness.turn();
    harness.turn();
    assert_eq!(harness.take_uplink().len(), 1);
}

#[test]
fn a_way_up_that_does_not_get_on_holds_nobody_for_long() {
    let mut harness = ShardHarness::new();
    let slot = harness.connect("a");
    harness.take_uplink();
    let pool = Arc::clone(&harness.shard().pool);
    let crowd = Charge::of(&pool, Class::Up, pool.share(Class::Up) as usize / 16);
    harness.client(slot).say_message(0, b"1");
    harness.read(slot);
    harness.turn();
    assert!(harness.shard().is_yielding() && harness.take_uplink().is_empty());
    harness.pass(YIELD_MAX);
    harness.turn();
    harness.turn();
    assert_eq!(harness.take_uplink().len(), 1);
    // Until some of the crowd has gone.
    harness.client(slot).say_message(0, b"2");
    harness.read(slot);
    assert_eq!(harness.take_uplink().len(), 1);
    drop(crowd);
    harness.turn();
    let crowd = Charge::of(&pool, Class::Up, pool.share(Class::Up) as usize / 16);
    harness.client(slot).say_message(0, b"3");
    harness.read(slot);
    assert!(harness.shard().is_yielding());
    drop(crowd);
}

#[test]
fn what_goes_up_is_bounded_by_its_bytes_until_the_backbone_has_it() {
    let mut harness = ShardHarness::new();
    let slot = harness.connect("a");
    harness.take_uplink();
    let pool = Arc::clone(&harness.shard().pool);
    harness.client(slot).say_message(1, b"taken");
    harness.read(slot);
    let taken = harness.take_uplink();
    let held = pool.used(Class::Up);
    assert!(held >= 5, "on its way it is counted: {held}");
    // Others' messages take the rest.
    let rest = Charge::of(&pool, Class::Up, (pool.share(Class::Up) - held) as usize);
    harness.client(slot).say_message(0, b"may be dropped");
    harness.client(slot).say_message(2, b"must not be dropped");
    harness.read(slot);
    assert!(harness.take_uplink().is_empty() && harness.shard().waits_for_backbone());
    assert_eq!(harness.value(Metric::MessagesDropped), 1);
    harness.turn();
    assert!(!harness.shard().has_ready(), "there is no room yet");
    drop(taken);
    harness.turn();
    assert!(harness.shard().has_ready() && !harness.shard().waits_for_backbone());
    harness.turn();
    assert_eq!(harness.take_uplink().len(), 1);
    drop(rest);
    assert_eq!(pool.used(Class::Up), 0);
}

#[test]
fn raw_bytes_wait_for_room_and_none_is_lost() {
    let mut harness = ShardHarness::new();
    let slot = harness.shake_hands(RAW);
    harness.read(slot);
    assert_eq!(harness.value(Metric::Devices), 1);
    assert!(harness.presence()[0].starts_with("+raw-"));
    for n in 0..20u8 {
        harness.client(slot).say_bytes(&[n; 30]);
    }
    harness.client(slot).say_bytes(b"heartbeatheartbeat");
    harness.io().up_room = 0;
    harness.read(slot);
    let mut got = Vec::new();
    while harness.shard().connections[slot].is_paused() || !harness.shard().uplink().is_empty() {
        assert!(harness.shard().uplink().len() <= 8);
        harness.io().up_room = 3;
        harness.turn();
        for event in harness.take_uplink() {
            let WorkerEvent::Message(message) = event else { panic!("{event:?}") };
            got.extend_from_slice(&message.payload);
        }
    }
    let expected: Vec<u8> = (0..20).flat_map(|n| [n; 30]).collect();
    assert_eq!(got, expected);
    assert_eq!(harness.client(slot).heard, b"ok", "one reply for the record of two heartbeats");
}

#[test]
fn a_paused_device_that_is_taken_over_is_not_resumed() {
    let mut harness = ShardHarness::new();
    let slot = harness.connect("a");
    harness.take_uplink();
    harness.io().up_room = 0;
    for n in 1..=9 {
        harness.client(slot).say_message(n, b"m");
    }
    harness.read(slot);
    assert!(harness.shard().connections[slot].is_paused());
    let newer = harness.connect("a");
    harness.io().up_room = usize::MAX;
    harness.turn();
    harness.take_uplink();
    harness.turn();
    assert!(harness.take_uplink().is_empty(), "what a connection has left unread ends with it");
    assert!(harness.shard().connections[newer].is_device());
}

#[test]
fn a_peer_that_does_not_read_is_a_slow_consumer_at_its_bound_and_not_before() {
    let mut harness = ShardHarness::new();
    let slot = harness.connect("a");
    let bound = Fixtures::limits().outbox_bytes;
    let send = |harness: &mut ShardHarness, request, length| {
        let downlink = Downlink { topic: "t".into(), payload: vec![0; length].into() };
        let command = WorkerCommand::Send { request, device: "a".into(), downlink, acknowledge: true };
        harness.io().command(command);
        harness.turn();
    };
    harness.io().set_room(slot, 0);
    for request in 0..3 {
        send(&mut harness, request, 1_000);
    }
    // As much as fits, to the byte: each message has a header, a topic, and a record around it.
    let overhead = harness.value(Metric::BufferedBytes) as usize / 3 - 1_000;
    let rest = bound - 3 * (1_000 + overhead) - overhead;
    send(&mut harness, 3, rest);
    assert!(harness.shard().connections[slot].is_device());
    assert_eq!(harness.value(Metric::BufferedBytes), bound as u64);
    harness.io().set_room(slot, overhead);
    harness.turn();
    harness.take_uplink();
    send(&mut harness, 4, 1);
    assert_eq!(harness.closed(CloseReason::SlowConsumer), 1);
    assert_eq!(harness.value(Metric::BufferedBytes), 0);
    // Whoever waits for an ACK hears that it will not come.
    let waiting = |event: &WorkerEvent| matches!(event, WorkerEvent::Sent { outcome: Outcome::Unacknowledged, .. });
    assert_eq!(harness.take_uplink().iter().filter(|event| waiting(event)).count(), 5);
    assert!(!harness.shard().holds(slot));
}

/// Its end of the stream is no reason to cut what is on its way to a peer in the middle of a record (RFC 8446 6.1).
#[test]
fn a_peer_that_sends_no_more_gets_what_was_unsent() {
    let mut harness = ShardHarness::new();
    let slot = harness.connect("a");
    harness.io().set_room(slot, 0);
    let downlink = Downlink { topic: "t".into(), payload: vec![0; 100].into() };
    harness.io().command(WorkerCommand::Send { request: 1, device: "a".into(), downlink, acknowledge: false });
    harness.turn();
    assert!(harness.end(slot, PeerEnd::InOrder).is_empty());
    assert_eq!(harness.closed(CloseReason::PeerClosed), 1);
    assert!(harness.shard().connections[slot].is_lingering());
    // However often the end is seen.
    assert!(harness.end(slot, PeerEnd::InOrder).is_empty());
    let left = harness.shard().unsent(slot).len();
    assert!(left >= 100 && !harness.io().is_shut(slot));
    harness.io().set_room(slot, 60);
    harness.turn();
    assert_eq!(harness.shard().unsent(slot).len(), left - 60);
    assert!(harness.end(slot, PeerEnd::InOrder).is_empty());
    assert!(harness.shard().connections[slot].is_lingering());
    harness.io().set_room(slot, left);
    assert!(harness.turn().is_empty());
    assert!(harness.io().is_shut(slot) && harness.shard().has_ready(), "it is looked at once more");
    assert_eq!(harness.turn(), [slot]);
    assert_eq!((harness.closed(CloseReason::PeerClosed), harness.value(Metric::BufferedBytes)), (1, 0));
}

/// The peer's stream breaks, and it takes bytes, in one turn.
#[test]
fn bytes_that_leave_after_the_end_are_not_counted_twice() {
    let mut harness = ShardHarness::new();
    let slot = harness.connect("a");
    harness.with(|shard, now| shard.handle_unsent(slot, &[0; 100], now));
    harness.with(|shard, now| shard.handle_reset(slot, now));
    assert_eq!(harness.value(Metric::BufferedBytes), 0);
    assert_eq!(harness.shard().unsent(slot).len(), 100);
    harness.with(|shard, _| shard.handle_sent(slot, 60));
    assert_eq!(harness.turn(), [slot]);
}

#[test]
fn commands_with_stale_handles_do_nothing() {
    let mut harness = ShardHarness::new();
    let slot = harness.connect("a");
    let stale = harness.shard().id(slot);
    let receipt = Receipt::Connection(stale, 1);
    harness.with(|shard, now| {
        shard.handle_reset(slot, now);
        assert!(!shard.is_current(stale));
    });
    harness.io().command(WorkerCommand::MessageSettled { receipt, accepted: true });
    assert_eq!(harness.turn(), [slot]);
    assert_eq!(harness.connect("b"), slot);
    harness.client(slot).frames();
    harness.io().command(WorkerCommand::MessageSettled { receipt, accepted: true });
    harness.io().command(WorkerCommand::Authenticated { connection: stale, answer: AuthAnswer::plain() });
    harness.acknowledge(stale, true);
    harness.acknowledge(stale, false);
    assert!(harness.client(slot).frames().is_empty());
}

#[test]
fn a_listing_walks_in_slices_and_answers_in_order() {
    let mut harness = ShardHarness::new();
    for id in ["c", "a", "b2", "b1", "d"] {
        harness.connect(id);
    }
    let mut list = |after: &str, prefix: &str, limit| {
        let filter = DeviceFilter { after: after.into(), prefix: prefix.into(), limit };
        let mut listing = Listing::new(9, filter);
        harness.with(|shard, now| {
            while !shard.advance_listing(&mut listing, 2) {}
            let found = shard.finish_listing(&listing, now);
            found.iter().map(|description| description.device.to_string()).collect::<Vec<_>>()
        })
    };
    assert_eq!(list("", "", 10), ["a", "b1", "b2", "c", "d"]);
    assert_eq!(list("a", "", 2), ["b1", "b2"]);
    assert_eq!(list("", "b", 1), ["b1"]);
    assert_eq!(list("b1", "b", 9), ["b2"]);
    assert!(list("", "", 0).is_empty());
}

#[test]
fn the_end_tells_everybody_a_slice_at_a_time() {
    let mut harness = ShardHarness::new();
    let slots: Vec<ConnectionSlot> = ["a", "b", "c"].into_iter().map(|id| harness.connect(id)).collect();
    let shaking = harness.accept(NATIVE);
    let mut position = 0;
    for (ended, next) in [(2, 2), (2, 0), (0, 0)] {
        assert_eq!(harness.with(|shard, now| shard.shut_down(position, 10, 2, &(100..=200), now)), (next, ended));
        position = next;
    }
    harness.turn();
    for slot in slots {
        let told = harness.client(slot).frames();
        assert!(
            matches!(&told[..], [ReceivedFrame::Welcome(_), ReceivedFrame::Close(CloseCode::GOING_AWAY, 100..=200, _)]),
            "{told:?}"
        );
        assert_eq!(harness.end(slot, PeerEnd::InOrder), [slot]);
    }
    assert!(harness.io().is_shut(shaking));
    assert_eq!(harness.end(shaking, PeerEnd::InOrder), [shaking]);
    assert!(harness.shard().is_empty());
    assert_eq!(harness.shard().next_deadline(), None);
    assert_eq!(harness.closed(CloseReason::Shutdown), 4);
}

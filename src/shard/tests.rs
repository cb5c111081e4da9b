//! A shard without sockets: clients in memory, and a desk that does by hand what the worker's turn does.

mod desk;
mod places;
mod sweep;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::codec::native::CloseCode;
use crate::connection::lab::{End, Lab, Said};
use crate::link::{AuthAnswer, DeviceFilter, Downlink, ListenerId, Outcome, Receipt};
use crate::pool::{Charge, Class};
use desk::Desk;

const NATIVE: ListenerId = ListenerId(0);
const RAW: ListenerId = ListenerId(1);

#[test]
fn handshakes_wait_for_a_place_and_go_in_the_order_in_which_they_came() {
    let mut desk = Desk::new();
    let slots: Vec<u32> = (0..4).map(|_| desk.accept(NATIVE)).collect();
    for &index in &slots {
        assert_eq!(desk.shard.plan_read(index), Plan::Leave);
    }
    assert_eq!(desk.value(Metric::HandshakesWaiting), 4);
    desk.call();
    assert_eq!((desk.value(Metric::HandshakesWaiting), desk.value(Metric::HandshakesInFlight)), (2, 2));
    assert!(!desk.shard.has_waiting());
    assert_eq!(desk.shard.longest_waiting(), Some(desk.now.tick()));
    desk.flush();
    // The first two answer, and make room for the others.
    for &index in &slots[..2] {
        assert_eq!(desk.shard.plan_read(index), Plan::ReadLater);
        desk.read_once(index);
    }
    assert!(desk.shard.has_waiting());
    desk.call();
    assert_eq!((desk.value(Metric::HandshakesWaiting), desk.value(Metric::HandshakesInFlight)), (0, 2));
    assert_eq!(desk.value(Metric::HandshakesFull), 2);
}

#[test]
fn whoever_is_called_and_has_nothing_to_say_waits_for_its_bytes_again() {
    let mut desk = Desk::new();
    let index = desk.accept(NATIVE);
    let hello = std::mem::take(&mut desk.client(index).out);
    desk.read(index);
    assert_eq!((desk.value(Metric::HandshakesWaiting), desk.value(Metric::HandshakesInFlight)), (0, 0));
    desk.client(index).out = hello;
    for _ in 0..2 {
        desk.read(index);
        desk.flush();
    }
    assert!(desk.clients[&index].records.is_some());
    // One that leaves in the queue is not missed by those behind it.
    let (gone, next) = (desk.accept(NATIVE), desk.accept(NATIVE));
    desk.shard.plan_read(gone);
    desk.shard.plan_read(next);
    desk.shard.handle_reset(gone, desk.now);
    assert_eq!(desk.reap(), [gone]);
    assert_eq!(desk.shard.next_waiting(), Some(next));
}

/// What was noted down about a slot in an earlier turn must not touch whoever has it now.
#[test]
fn a_slot_that_was_noted_down_and_given_to_somebody_else_is_not_read() {
    let mut desk = Desk::new();
    let index = desk.connect("a");
    desk.client(index).say_bytes(&[0xff; 3]);
    desk.read(index);
    assert_eq!(desk.closed(CloseReason::ProtocolError), 1);
    // It lingers, and is to be looked at; before that, it is gone, and a new connection has its slot.
    assert!(desk.shard.has_ready());
    desk.flush();
    desk.shard.handle_reset(index, desk.now);
    assert_eq!(desk.reap(), [index]);
    assert_eq!(desk.accept(NATIVE), index);
    desk.look_again();
    assert!(!desk.shard.load_input(index, &mut desk.input), "it was never called for its handshake");
    // The same while it waits in the queue: it would take a place that nobody gave it.
    assert_eq!(desk.shard.plan_read(index), Plan::Leave);
    assert!(!desk.shard.load_input(index, &mut desk.input));
    desk.call();
    desk.flush();
    desk.read(index);
    assert!(desk.clients[&index].records.is_some());
}

#[test]
fn a_device_is_welcomed_once_it_is_named_and_its_presence_is_told() {
    let mut desk = Desk::new();
    let index = desk.connect("meter-1");
    assert!(matches!(desk.client(index).frames()[..], [Said::Welcome(welcome)] if welcome.heartbeat_ms == 10_000));
    assert_eq!(desk.presence(), ["+meter-1 2"]);
    desk.shard.handle_eof(index, desk.now);
    assert_eq!(desk.presence(), ["-meter-1 2 peer_closed"]);
    assert_eq!(desk.reap(), [index]);
    assert!(desk.shard.is_empty());
}

#[test]
fn a_newer_connection_takes_over_and_generations_grow_whoever_was_accepted_first() {
    let mut desk = Desk::new();
    let older = desk.shake_hands(NATIVE);
    let newer = desk.connect("a");
    // Accepted first, named last: its generation is the greatest nevertheless.
    desk.client(older).say_hello("a");
    desk.read(older);
    desk.flush();
    let presence = desk.presence();
    assert_eq!(presence, ["+a 3", "-a 3 taken_over", "+a 4"]);
    assert!(matches!(&desk.client(newer).frames()[..], [Said::Welcome(_), Said::Close(CloseCode::TAKEN_OVER, 0, _)]));
    assert_eq!(desk.client(newer).end, Some(End::CloseNotify));
    assert!(matches!(desk.client(older).frames()[..], [Said::Welcome(_)]));
    assert_eq!(desk.shut, [newer], "it is shut for writing when all was said");
    assert_eq!(desk.shard.describe("a", desk.now).unwrap().generation, 4);
    desk.shard.handle_eof(newer, desk.now);
    assert_eq!(desk.reap(), [newer]);
}

/// Several things said to one connection in one turn may lie apart; nothing may be shut before the last.
#[test]
fn a_goodbye_that_lies_apart_from_what_was_said_before_arrives() {
    let mut desk = Desk::new();
    let (a, b) = (desk.connect("a"), desk.connect("b"));
    let ping = crate::codec::native::Frame::Ping(b"x");
    for index in [a, b] {
        desk.client(index).frames();
        desk.client(index).say(&ping);
        desk.read(index);
    }
    desk.shard.handle_disconnect(1, "a", desk.now);
    desk.flush();
    let told = desk.client(a).frames();
    assert!(matches!(&told[..], [Said::Pong(_), Said::Close(CloseCode::REQUESTED, ..)]), "{told:?}");
    assert_eq!(desk.client(a).end, Some(End::CloseNotify));
}

#[test]
fn an_end_without_words_is_flushed_too() {
    let mut desk = Desk::new();
    let index = desk.accept(NATIVE);
    desk.client(index).out = b"GET / HTTP/1.1\r\n".to_vec();
    desk.read(index);
    assert_eq!(desk.closed(CloseReason::NotTls), 1);
    desk.flush();
    assert_eq!(desk.shut, [index], "the peer would wait for the end of the stream");
    desk.pass(Duration::from_secs(3));
    desk.expire();
    assert_eq!(desk.reap(), [index]);
    assert_eq!(desk.shard.counters().closed().iter().sum::<u64>(), 1, "it has one reason");
}

#[test]
fn deadlines_of_those_who_are_not_yet_devices() {
    let mut desk = Desk::new();
    let (silent, slow, nameless) = (desk.accept(NATIVE), desk.accept(NATIVE), desk.shake_hands(NATIVE));
    desk.shard.plan_read(slow);
    desk.pass(Duration::from_millis(9_900));
    desk.expire();
    assert!(desk.reap().is_empty(), "ten seconds have not passed");
    desk.pass(Duration::from_millis(300));
    desk.expire();
    let mut reaped = desk.reap();
    reaped.sort_unstable();
    assert_eq!(reaped, [silent, slow]);
    assert_eq!((desk.closed(CloseReason::HandshakeTimeout), desk.closed(CloseReason::HelloTimeout)), (2, 1));
    assert!(matches!(&desk.client(nameless).frames()[..], [Said::Close(CloseCode::HELLO_TIMEOUT, ..)]));
}

#[test]
fn a_silent_device_is_probed_then_read_once_more_then_expired() {
    let mut desk = Desk::new();
    let (dead, late) = (desk.connect("dead"), desk.connect("late"));
    for _ in 0..2 {
        desk.pass(Duration::from_secs(10));
        desk.expire();
    }
    assert_eq!(desk.value(Metric::HeartbeatsSent), 4);
    // The answer of one is in its socket, though no event has told of it.
    let pong = crate::codec::native::Frame::Pong(b"");
    desk.client(late).say(&pong);
    desk.presence();
    desk.pass(Duration::from_secs(10));
    desk.expire();
    assert_eq!(desk.presence(), ["-dead 2 expired"]);
    assert_eq!(desk.value(Metric::LastReadsHeard), 1);
    assert!(matches!(
        &desk.client(dead).frames()[..],
        [Said::Welcome(_), Said::Ping, Said::Ping, Said::Close(CloseCode::EXPIRED, ..)]
    ));
    assert_eq!(desk.reap(), [dead]);
    assert!(desk.shard.describe("late", desk.now).is_some());
}

/// A gateway that is stopped with a probe in its hands: the device is asked when it goes on, and has its time from there.
#[test]
fn the_wait_for_an_answer_begins_when_its_probe_was_written() {
    let mut desk = Desk::new();
    let (asked, left) = (desk.connect("asked"), desk.connect("left"));
    desk.pass(Duration::from_secs(10));
    let mut suspects = Vec::new();
    desk.shard.handle_deadlines(desk.now.tick(), desk.now, 16, &mut suspects);
    assert!(desk.shard.has_probed());
    let as_said = desk.shard.wheel.deadline(asked).unwrap();
    desk.shard.handle_disconnect(1, "left", desk.now);
    let goodbye = desk.shard.wheel.deadline(left);
    // In time, nothing changes.
    let written = desk.now.plus(Duration::from_millis(20));
    desk.shard.handle_flushed(written);
    assert_eq!(desk.shard.wheel.deadline(asked), Some(as_said));

    desk.pass(Duration::from_secs(1));
    desk.shard.handle_deadlines(desk.now.tick(), desk.now, 16, &mut suspects);
    assert!(!desk.shard.has_probed(), "nothing is due before the timeout is over");
    desk.pass(Duration::from_millis(200));
    desk.shard.handle_deadlines(desk.now.tick(), desk.now, 16, &mut suspects);
    assert!(desk.shard.has_probed(), "the second and last probe");
    desk.pass(Duration::from_mins(1));
    desk.shard.handle_flushed(desk.now);
    desk.flush();
    assert_eq!(desk.shard.wheel.deadline(asked), Some(desk.now.tick().deadline_after(10)));
    assert_eq!(desk.shard.wheel.deadline(left), goodbye);
    desk.pass(Duration::from_secs(1));
    desk.expire();
    assert_eq!(desk.closed(CloseReason::Expired), 0);
    desk.pass(Duration::from_millis(100));
    desk.expire();
    assert_eq!(desk.closed(CloseReason::Expired), 1);
}

/// Where the interval is shorter than the timeout, a probe's own deadline would be too late for the next one.
#[test]
fn the_answer_to_a_probe_moves_the_deadline_of_a_device_and_not_that_of_a_goodbye() {
    let mut desk = Desk::new();
    let (lives, leaves) = (desk.connect("lives"), desk.connect("leaves"));
    desk.pass(Duration::from_secs(10));
    desk.expire();
    assert_eq!(desk.value(Metric::HeartbeatsSent), 2);
    desk.shard.handle_disconnect(1, "leaves", desk.now);
    desk.flush();
    let goodbye = desk.shard.wheel.deadline(leaves);
    let pong = crate::codec::native::Frame::Pong(b"");
    for index in [lives, leaves] {
        desk.client(index).say(&pong);
        desk.read(index);
    }
    let interval = desk.shard.settings_of(lives).schedule.interval;
    assert_eq!(desk.shard.wheel.deadline(lives), Some(desk.now.tick().plus(interval)));
    assert_eq!(desk.shard.wheel.deadline(leaves), goodbye);
    desk.shard.check_invariants();
}

#[test]
fn nobody_is_judged_by_a_time_up_to_which_nothing_was_read() {
    let mut desk = Desk::new();
    desk.connect("a");
    let drained = desk.now.tick();
    desk.pass(Duration::from_hours(1));
    let mut suspects = Vec::new();
    desk.shard.handle_deadlines(drained, desk.now, 16, &mut suspects);
    assert!(suspects.is_empty());
    assert_eq!(desk.value(Metric::HeartbeatsSent), 0);
}

/// A shard to which a connection came, the shard where it is at home, and its slot; its HELLO is on the way.
fn away_from_home() -> (Desk, Desk, u32) {
    let mut desks = Desk::of(2);
    let (there, mut here) = (desks.pop().unwrap(), desks.pop().unwrap());
    let home = here.shard.home;
    let id = (0..10_000).map(|n| format!("device-{n}")).find(|id| home.of(id) == WorkerId(1)).unwrap();
    let index = here.shake_hands(NATIVE);
    here.client(index).say_hello(&id);
    (here, there, index)
}

#[test]
fn a_connection_moves_home_and_goes_on_where_it_was() {
    let (mut here, mut there, index) = away_from_home();
    here.client(index).say_message(7, b"said before the move");
    here.read(index);
    assert!(here.take_uplink().is_empty(), "it is no device here");
    let (moving, home) = here.shard.next_move().unwrap();
    assert_eq!((moving.index, home), (index, WorkerId(1)));
    assert!(here.shard.next_move().is_none());
    assert_eq!(here.shard.plan_read(index), Plan::Leave);
    // However late the answer is, it stays.
    here.pass(Duration::from_mins(5));
    here.expire();
    assert!(here.shard.is_current(moving));

    let mut image = Vec::new();
    here.shard.pack(moving, &mut image);
    let arrived = there.shard.unpack(&image, there.now).unwrap();
    there.shard.check_invariants();
    there.shard.handle_arrival(arrived, there.now);
    there.shard.check_invariants();
    here.shard.handle_moved(moving);
    here.shard.handle_moved(moving);
    here.shard.check_invariants();
    let client = here.clients.remove(&index).unwrap();
    there.clients.insert(arrived, client);
    assert!(here.shard.next_closed() == Some(index) && here.shard.reap(index));
    assert!(here.shard.is_empty());

    there.look_again();
    there.flush();
    let uplink = there.take_uplink();
    let [WorkerEvent::Connected(_), WorkerEvent::Message(message)] = &uplink[..] else { panic!("{uplink:?}") };
    assert_eq!(
        (&*message.payload, message.receipt),
        (&b"said before the move"[..], Some(Receipt::Connection(message.connection, 7)))
    );
    there.shard.handle_settled(Receipt::Connection(message.connection, 7), true, there.now);
    there.flush();
    assert!(matches!(there.client(arrived).frames()[..], [Said::Welcome(_), Said::Ack(7)]));
    // An image for a home that is not here, or with more than there is room for.
    assert!(here.shard.unpack(&image, here.now).is_err());
}

#[test]
fn what_a_connection_had_to_say_before_it_moved_leaves_with_the_greeting() {
    let (mut here, mut there, index) = away_from_home();
    assert!(!here.shard.is_moving(index));
    here.read(index);
    assert!(here.shard.is_moving(index));
    here.shard.handle_unsent(index, b"still to be said", here.now);
    here.shard.check_invariants();

    let (moving, _) = here.shard.next_move().unwrap();
    let mut image = Vec::new();
    here.shard.pack(moving, &mut image);
    let arrived = there.shard.unpack(&image, there.now).unwrap();
    there.shard.handle_arrival(arrived, there.now);
    there.shard.check_invariants();
    assert!(there.shard.unsent(arrived).is_empty());
    let mut transmit = Transmit::default();
    there.shard.take_transmit(&mut transmit);
    let segments: Vec<_> = transmit.segments().collect();
    let [(to, bytes)] = segments[..] else { panic!("{segments:?}") };
    assert_eq!(to, arrived);
    let greeting = bytes.strip_prefix(b"still to be said").unwrap();
    assert!(!greeting.is_empty());
}

#[test]
fn a_connection_that_its_home_refuses_is_told_from_here() {
    let (mut here, _, index) = away_from_home();
    here.read(index);
    let (moving, _) = here.shard.next_move().unwrap();
    here.shard.handle_move_refused(moving, here.now);
    here.shard.check_invariants();
    here.flush();
    let told = here.client(index).frames();
    assert!(matches!(&told[..], [Said::Close(CloseCode::TRY_LATER, 5_000..=15_000, _)]), "{told:?}");
    let uplink = here.take_uplink();
    let [WorkerEvent::NotAdmitted(end)] = &uplink[..] else { panic!("it never was a device: {uplink:?}") };
    assert!(end.device.starts_with("device-") && end.reason == CloseReason::HomeFull, "{end:?}");
    here.shard.handle_move_refused(moving, here.now);
    here.shard.handle_moved(moving);
    here.shard.check_invariants();
}

#[test]
fn a_full_uplink_drops_what_may_be_dropped_and_pauses_who_must_not_be_lost() {
    let mut desk = Desk::new();
    let index = desk.connect("a");
    let other = desk.connect("b");
    desk.take_uplink();
    for n in 1..=6 {
        desk.client(index).say_message(n, b"m");
    }
    for _ in 0..4 {
        desk.client(index).say_message(0, b"may be dropped");
    }
    desk.client(index).say_message(7, b"must not be dropped");
    desk.client(index).say_message(0, b"behind it");
    desk.read(index);
    assert_eq!(desk.shard.uplink().len(), 8);
    assert_eq!(desk.value(Metric::MessagesDropped), 2);
    assert!(desk.shard.connections[index as usize].is_paused());
    assert_eq!(desk.shard.plan_read(index), Plan::Leave);
    // Heartbeats of others go on.
    desk.client(other).say(&crate::codec::native::Frame::Ping(b"1"));
    desk.read(other);
    desk.flush();
    assert!(desk.client(other).frames().contains(&Said::Pong(b"1".to_vec())));
    // Silence while it is not read means nothing.
    for _ in 0..10 {
        desk.pass(Duration::from_secs(5));
        desk.client(other).say(&crate::codec::native::Frame::Ping(b""));
        desk.read(other);
        desk.expire();
    }
    desk.shard.resume_paused();
    assert!(!desk.shard.has_ready(), "there is no room yet");
    desk.take_uplink();
    desk.shard.resume_paused();
    assert!(desk.shard.has_ready());
    desk.look_again();
    let uplink = desk.take_uplink();
    let payloads: Vec<&[u8]> = uplink
        .iter()
        .map(|event| if let WorkerEvent::Message(message) = event { &message.payload[..] } else { b"" })
        .collect();
    assert_eq!(payloads, [&b"must not be dropped"[..], b"behind it"]);
    assert!(desk.shard.connections[index as usize].buffered() == 0);
}

#[test]
fn what_goes_up_is_bounded_by_its_bytes_until_the_backbone_has_it() {
    let mut desk = Desk::new();
    let index = desk.connect("a");
    desk.take_uplink();
    let pool = Arc::clone(&desk.shard.pool);
    desk.client(index).say_message(1, b"taken");
    desk.read(index);
    let taken = desk.take_uplink();
    let held = pool.used(Class::Up);
    assert!(held >= 5, "on its way it is counted: {held}");
    // Others' messages take the rest.
    let rest = Charge::of(&pool, Class::Up, (pool.share(Class::Up) - held) as usize);
    desk.client(index).say_message(0, b"may be dropped");
    desk.client(index).say_message(2, b"must not be dropped");
    desk.read(index);
    assert!(desk.shard.uplink().is_empty() && desk.shard.waits_for_backbone());
    assert_eq!(desk.value(Metric::MessagesDropped), 1);
    desk.shard.resume_paused();
    assert!(!desk.shard.has_ready(), "there is no room yet");
    drop(taken);
    desk.shard.resume_paused();
    assert!(desk.shard.has_ready() && !desk.shard.waits_for_backbone());
    desk.look_again();
    assert_eq!(desk.take_uplink().len(), 1);
    drop(rest);
    assert_eq!(pool.used(Class::Up), 0);
}

#[test]
fn raw_bytes_wait_for_room_and_none_is_lost() {
    let mut desk = Desk::new();
    let index = desk.shake_hands(RAW);
    desk.read(index);
    assert_eq!(desk.value(Metric::Devices), 1);
    assert!(desk.presence()[0].starts_with("+raw-"));
    for n in 0..20u8 {
        desk.client(index).say_bytes(&[n; 30]);
    }
    desk.client(index).say_bytes(b"heartbeatheartbeat");
    desk.read(index);
    let mut got = Vec::new();
    while desk.shard.connections[index as usize].is_paused() || !desk.shard.uplink().is_empty() {
        assert!(desk.shard.uplink().len() <= 8);
        for event in desk.take_uplink() {
            let WorkerEvent::Message(message) = event else { panic!("{event:?}") };
            got.extend_from_slice(&message.payload);
        }
        desk.shard.resume_paused();
        desk.look_again();
    }
    let expected: Vec<u8> = (0..20).flat_map(|n| [n; 30]).collect();
    assert_eq!(got, expected);
    desk.flush();
    assert_eq!(desk.client(index).heard, b"ok", "one reply for the record of two heartbeats");
}

#[test]
fn a_paused_device_that_is_taken_over_is_not_resumed() {
    let mut desk = Desk::new();
    let index = desk.connect("a");
    for n in 1..=9 {
        desk.client(index).say_message(n, b"m");
    }
    desk.read(index);
    assert!(desk.shard.connections[index as usize].is_paused());
    let newer = desk.connect("a");
    desk.take_uplink();
    desk.shard.resume_paused();
    desk.look_again();
    assert!(desk.take_uplink().is_empty(), "what a connection has left unread ends with it");
    assert!(desk.shard.connections[newer as usize].is_device());
}

#[test]
fn a_peer_that_does_not_read_is_a_slow_consumer_at_its_bound_and_not_before() {
    let mut desk = Desk::new();
    let index = desk.connect("a");
    let downlink = Downlink { topic: "t".into(), payload: vec![0; 1_000].into() };
    for request in 0..4 {
        desk.shard.handle_send(request, "a", &downlink, true, desk.now);
    }
    let mut transmit = Transmit::default();
    desk.shard.take_transmit(&mut transmit);
    let bytes: Vec<u8> = transmit.segments().flat_map(|(_, bytes)| bytes.to_vec()).collect();
    let bound = Lab::limits().outbox_bytes;
    desk.shard.handle_unsent(index, &bytes[..bound], desk.now);
    assert!(desk.shard.connections[index as usize].is_device());
    assert_eq!(desk.value(Metric::BufferedBytes), bound as u64);
    desk.shard.check_invariants();
    desk.shard.handle_sent(index, 10);
    desk.take_uplink();
    desk.shard.handle_unsent(index, &bytes[..11], desk.now);
    desk.shard.check_invariants();
    assert_eq!(desk.closed(CloseReason::SlowConsumer), 1);
    assert_eq!(desk.value(Metric::BufferedBytes), 0);
    // Whoever waits for an ACK hears that it will not come.
    let waiting = |event: &WorkerEvent| matches!(event, WorkerEvent::Sent { outcome: Outcome::Unacknowledged, .. });
    assert_eq!(desk.take_uplink().iter().filter(|event| waiting(event)).count(), 4);
    assert_eq!(desk.reap(), [index]);
}

/// Its end of the stream is no reason to cut what is on its way to a peer in the middle of a record (RFC 8446 6.1).
#[test]
fn a_peer_that_sends_no_more_gets_what_was_unsent() {
    let mut desk = Desk::new();
    let index = desk.connect("a");
    desk.shard.handle_unsent(index, &[0; 100], desk.now);
    desk.shard.handle_eof(index, desk.now);
    assert_eq!(desk.closed(CloseReason::PeerClosed), 1);
    assert!(desk.shard.connections[index as usize].is_lingering());
    // However often the end is seen.
    desk.shard.handle_eof(index, desk.now);
    let left = desk.shard.unsent(index).len();
    assert!(left >= 100 && !desk.shard.take_shutdown(index));
    desk.shard.handle_sent(index, 60);
    desk.shard.check_invariants();
    desk.shard.handle_eof(index, desk.now);
    assert!(desk.shard.connections[index as usize].is_lingering());
    desk.shard.handle_sent(index, left - 60);
    assert!(desk.shard.take_shutdown(index) && desk.shard.has_ready(), "it is looked at once more");
    desk.shard.handle_eof(index, desk.now);
    desk.shard.check_invariants();
    assert_eq!((desk.closed(CloseReason::PeerClosed), desk.value(Metric::BufferedBytes)), (1, 0));
    assert_eq!(desk.reap(), [index]);
}

/// The peer's stream breaks, and it takes bytes, in one turn.
#[test]
fn bytes_that_leave_after_the_end_are_not_counted_twice() {
    let mut desk = Desk::new();
    let index = desk.connect("a");
    desk.shard.handle_unsent(index, &[0; 100], desk.now);
    desk.shard.handle_reset(index, desk.now);
    assert_eq!(desk.value(Metric::BufferedBytes), 0);
    assert_eq!(desk.shard.unsent(index).len(), 100);
    desk.shard.handle_sent(index, 60);
    desk.shard.check_invariants();
    assert_eq!(desk.reap(), [index]);
}

#[test]
fn commands_with_stale_handles_do_nothing() {
    let mut desk = Desk::new();
    let index = desk.connect("a");
    let stale = desk.shard.id(index);
    desk.shard.handle_reset(index, desk.now);
    assert!(!desk.shard.is_current(stale));
    desk.shard.handle_settled(Receipt::Connection(stale, 1), true, desk.now);
    desk.reap();
    assert_eq!(desk.connect("b"), index);
    desk.client(index).frames();
    desk.shard.handle_settled(Receipt::Connection(stale, 1), true, desk.now);
    desk.shard.handle_authenticated(stale, AuthAnswer::plain(), desk.now);
    desk.shard.handle_moved(stale);
    desk.shard.handle_move_refused(stale, desk.now);
    desk.flush();
    assert!(desk.client(index).frames().is_empty());
    desk.shard.check_invariants();
}

#[test]
fn a_listing_walks_in_slices_and_answers_in_order() {
    let mut desk = Desk::new();
    for id in ["c", "a", "b2", "b1", "d"] {
        desk.connect(id);
    }
    let list = |desk: &Desk, after: &str, prefix: &str, limit| {
        let filter = DeviceFilter { after: after.into(), prefix: prefix.into(), limit };
        let mut listing = Listing::new(9, filter);
        while !desk.shard.advance_listing(&mut listing, 2) {}
        let found = desk.shard.finish_listing(&listing, desk.now);
        found.iter().map(|description| description.device.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(list(&desk, "", "", 10), ["a", "b1", "b2", "c", "d"]);
    assert_eq!(list(&desk, "a", "", 2), ["b1", "b2"]);
    assert_eq!(list(&desk, "", "b", 1), ["b1"]);
    assert_eq!(list(&desk, "b1", "b", 9), ["b2"]);
    assert!(list(&desk, "", "", 0).is_empty());
}

#[test]
fn the_end_tells_everybody_a_slice_at_a_time() {
    let mut desk = Desk::new();
    let slots: Vec<u32> = ["a", "b", "c"].into_iter().map(|id| desk.connect(id)).collect();
    let shaking = desk.accept(NATIVE);
    let mut position = 0;
    for (ended, next) in [(2, 2), (2, 0), (0, 0)] {
        assert_eq!(desk.shard.shut_down(position, 10, 2, &(100..=200), desk.now), (next, ended));
        desk.shard.check_invariants();
        position = next;
    }
    desk.flush();
    for index in slots {
        let told = desk.client(index).frames();
        assert!(matches!(&told[..], [Said::Welcome(_), Said::Close(CloseCode::GOING_AWAY, 100..=200, _)]), "{told:?}");
        desk.shard.handle_eof(index, desk.now);
    }
    assert!(desk.shut.contains(&shaking));
    desk.shard.handle_eof(shaking, desk.now);
    assert_eq!(desk.reap().len(), 4);
    assert!(desk.shard.is_empty());
    assert_eq!(desk.shard.next_deadline(), None);
    assert_eq!(desk.closed(CloseReason::Shutdown), 4);
}

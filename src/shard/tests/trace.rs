//! What operators follow: who is told what, at which bound nothing more is told, and that the rest of the fleet is nothing to them.

use super::*;
use crate::codec::native::{Frame, Message};
use crate::link::{
    Direction, TRACE_CONNECTIONS_MAX, TRACE_EVENTS_PER_SECOND, Trace, TraceDepth, TraceEvent, TraceSubject, TraceWhat,
};
use crossbeam_channel::Receiver;
use std::net::SocketAddr;

/// A trace and where its events arrive.
type Following = (Arc<Trace>, Receiver<TraceEvent>);

const PACKETS: TraceDepth = TraceDepth { packets: true, payloads: false };
const LATE: Moment = Moment::from_micros(1_000_000_000);

fn of_device(device: &str, depth: TraceDepth) -> Following {
    Trace::new(TraceSubject::Device(device.into()), depth, LATE)
}

fn of_network(network: &str, depth: TraceDepth) -> Following {
    Trace::new(TraceSubject::Network(network.parse().unwrap()), depth, LATE)
}

fn follow(harness: &mut ShardHarness, traces: &[&Following]) {
    let traces: Vec<_> = traces.iter().map(|(trace, _)| Arc::clone(trace)).collect();
    harness.with(|shard, now| shard.follow(&traces, now));
}

/// Where the peer of each slot's socket is: a network for the even ones, another for the odd.
fn peer(ConnectionSlot(slot): ConnectionSlot) -> Option<SocketAddr> {
    (slot < 64).then(|| SocketAddr::from(([192, 0, (slot % 2) as u8, 1], 7)))
}

/// What was told since the last time, in words.
fn told(harness: &mut ShardHarness, (_, arrive): &Following) -> Vec<String> {
    harness.shard().tell_traces(peer);
    let word = |event: TraceEvent| match event.what {
        TraceWhat::Packet(packet) => {
            let direction = if packet.direction == Direction::In { '<' } else { '>' };
            format!("{direction}{}", packet.name)
        }
        TraceWhat::Ended { reason, .. } => format!("ended {}", reason.label()),
        what => what.label().to_owned(),
    };
    arrive.try_iter().map(word).collect()
}

#[test]
fn a_device_is_followed_from_its_first_frame_on_and_nobody_else_is() {
    let mut harness = ShardHarness::new();
    let following = of_device("a", PACKETS);
    follow(&mut harness, &[&following]);
    let slot = harness.connect("a");
    harness.connect("b");
    assert_eq!(told(&mut harness, &following), ["<HELLO", ">WELCOME", "connected"]);
    harness.client(slot).say_message(3, b"x");
    harness.read(slot);
    harness.end(slot, PeerEnd::InOrder);
    assert_eq!(told(&mut harness, &following), ["<MESSAGE", "ended peer_closed"]);
    // Nobody follows anything any more.
    follow(&mut harness, &[]);
    assert!(harness.shard().tracer.is_idle());
    let slot = harness.accept(NATIVE);
    harness.end(slot, PeerEnd::ByReset);
    assert_eq!(told(&mut harness, &following), [""; 0]);
}

#[test]
fn whoever_comes_from_a_network_is_followed_from_accept_on_and_before_it_has_a_name() {
    let mut harness = ShardHarness::new();
    let following = of_network("192.0.2.0/24", TraceDepth::default());
    follow(&mut harness, &[&following]);
    let slot = harness.accept_from(NATIVE, [192, 0, 2, 9].into());
    let other = harness.accept_from(NATIVE, [192, 0, 3, 9].into());
    harness.client(slot).out = b"GET / HTTP/1.1\r\n\r\n".to_vec();
    harness.read(slot);
    harness.end(other, PeerEnd::ByReset);
    harness.with(|shard, now| shard.trace_refused([192, 0, 2, 8].into(), NATIVE, Refusal::Overloaded, now));
    assert_eq!(told(&mut harness, &following), ["accepted", "handshake", "ended not_tls", "refused"]);
    harness.end(slot, PeerEnd::ByReset);
    // Its slot is somebody else's now.
    assert_eq!(harness.accept_from(NATIVE, [192, 0, 3, 9].into()), slot);
    harness.end(slot, PeerEnd::ByReset);
    assert_eq!(told(&mut harness, &following), [""; 0]);
}

#[test]
fn who_is_there_already_is_found_slice_by_slice_and_told_once_to_each_new_trace() {
    let mut harness = ShardHarness::new();
    for device in ["a", "b", "c", "d"] {
        harness.connect(device);
    }
    let even = of_network("192.0.0.0/24", PACKETS);
    follow(&mut harness, &[&even]);
    assert!(harness.shard().has_untraced() && harness.shard().has_ready());
    harness.with(|shard, now| shard.advance_traces(3, peer, now));
    assert_eq!(told(&mut harness, &even), ["present"; 2]);
    assert!(harness.shard().has_untraced());
    harness.with(|shard, now| shard.advance_traces(3, peer, now));
    assert!(!harness.shard().has_untraced() && !harness.shard().has_ready());
    assert_eq!(told(&mut harness, &even), [""; 0]);
    // A second one hears of whom it is about; the first goes on as it was, whatever its place.
    let all = of_network("192.0.0.0/16", TraceDepth::default());
    let named = of_device("b", TraceDepth::default());
    follow(&mut harness, &[&all, &named, &even]);
    harness.with(|shard, now| shard.advance_traces(9, peer, now));
    assert_eq!(told(&mut harness, &all), ["present"; 4]);
    harness.with(|shard, now| shard.handle_disconnect(1, "a", now));
    assert_eq!(told(&mut harness, &even), [">CLOSE", "ended requested"]);
    assert_eq!(
        (told(&mut harness, &all), told(&mut harness, &named)),
        (vec!["ended requested".into()], vec!["present".into()])
    );
    let event = {
        harness.with(|shard, now| shard.handle_disconnect(2, "b", now));
        harness.shard().tell_traces(peer);
        named.1.try_recv().unwrap()
    };
    assert_eq!((event.address, event.port, &*event.device), (Some([192, 0, 1, 1].into()), 7, "b"));
}

#[test]
fn payloads_are_told_to_those_alone_who_asked_for_them() {
    let mut harness = ShardHarness::new();
    let names = of_device("a", PACKETS);
    let payloads = of_device("a", TraceDepth { packets: true, payloads: true });
    let slot = harness.connect("a");
    follow(&mut harness, &[&names, &payloads]);
    harness.client(slot).say(&Frame::Message(Message { id: 0, topic: "t", payload: b"secret" }));
    harness.read(slot);
    harness.shard().tell_traces(peer);
    let packet = |(_, arrive): &Following| {
        arrive.try_iter().find_map(|event| match event.what {
            TraceWhat::Packet(packet) => Some(*packet),
            _ => None,
        })
    };
    let (without, with) = (packet(&names).unwrap(), packet(&payloads).unwrap());
    assert_eq!((without.payload, with.payload.as_deref()), (None, Some(&b"secret"[..])));
    assert_eq!((without.name, without.words), (with.name, with.words));
}

#[test]
fn at_each_bound_it_is_counted_what_is_left_out() {
    let mut harness = ShardHarness::new();
    let following = of_device("a", PACKETS);
    let (trace, arrive) = &following;
    let slot = harness.connect("a");
    follow(&mut harness, &[&following]);
    let mut expected = 1; // It is there.
    for _ in 0..6 {
        // Each is asked and answered; the uplink is not needed for it.
        (0..100).for_each(|_| harness.client(slot).say(&Frame::Ping(b"")));
        harness.read(slot);
        expected += 200;
    }
    harness.shard().tell_traces(peer);
    let heard = arrive.try_iter().count() as u64;
    assert_eq!((heard, trace.take_left_out()), (u64::from(TRACE_EVENTS_PER_SECOND), expected - heard));
    // In the next second there is room again; and beyond its end there is none.
    harness.pass(Duration::from_secs(1));
    harness.client(slot).say(&Frame::Ping(b""));
    harness.read(slot);
    assert_eq!(told(&mut harness, &following), ["<PING", ">PONG"]);
    harness.io().now = LATE;
    harness.client(slot).say(&Frame::Ping(b""));
    harness.read(slot);
    assert_eq!((told(&mut harness, &following), trace.take_left_out()), (vec![], 0));

    // So many connections of a network are known.
    let following = of_network("192.0.2.0/24", TraceDepth::default());
    harness.io().now = Moment::from_micros(60_000);
    follow(&mut harness, &[&following]);
    for _ in 0..TRACE_CONNECTIONS_MAX + 2 {
        harness.with(|shard, now| {
            let slot = shard.handle_accept(NATIVE, now);
            shard.trace_accepted(slot, [192, 0, 2, 9].into(), now);
        });
        harness.pass(Duration::from_millis(2));
        harness.shard().tell_traces(peer);
        following.1.try_iter().for_each(drop);
    }
    assert_eq!(following.0.take_left_out(), 2);
}

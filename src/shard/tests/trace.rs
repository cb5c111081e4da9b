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

fn follow(desk: &mut Desk, traces: &[&Following]) {
    let traces: Vec<_> = traces.iter().map(|(trace, _)| Arc::clone(trace)).collect();
    desk.shard.follow(&traces, desk.now);
}

/// Where the peer of each slot's socket is: a network for the even ones, another for the odd.
fn peer(slot: u32) -> Option<SocketAddr> {
    (slot < 64).then(|| SocketAddr::from(([192, 0, (slot % 2) as u8, 1], 7)))
}

/// What was told since the last time, in words.
fn told(desk: &mut Desk, (_, arrive): &Following) -> Vec<String> {
    desk.shard.tell_traces(peer);
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
    let mut desk = Desk::new();
    let following = of_device("a", PACKETS);
    follow(&mut desk, &[&following]);
    let index = desk.connect("a");
    desk.connect("b");
    assert_eq!(told(&mut desk, &following), ["<HELLO", ">WELCOME", "connected"]);
    desk.client(index).say_message(3, b"x");
    desk.read(index);
    desk.shard.handle_eof(index, desk.now);
    assert_eq!(told(&mut desk, &following), ["<MESSAGE", "ended peer_closed"]);
    // Nobody follows anything any more.
    follow(&mut desk, &[]);
    assert!(desk.shard.tracer.is_idle());
    desk.flush();
    desk.reap();
    let index = desk.accept(NATIVE);
    desk.shard.handle_reset(index, desk.now);
    assert_eq!(told(&mut desk, &following), [""; 0]);
}

#[test]
fn whoever_comes_from_a_network_is_followed_from_accept_on_and_before_it_has_a_name() {
    let mut desk = Desk::new();
    let following = of_network("192.0.2.0/24", TraceDepth::default());
    follow(&mut desk, &[&following]);
    let index = desk.accept(NATIVE);
    desk.shard.trace_accepted(index, [192, 0, 2, 9].into(), desk.now);
    let other = desk.accept(NATIVE);
    desk.shard.trace_accepted(other, [192, 0, 3, 9].into(), desk.now);
    desk.client(index).out = b"GET / HTTP/1.1\r\n\r\n".to_vec();
    desk.read(index);
    desk.shard.handle_reset(other, desk.now);
    desk.shard.trace_refused([192, 0, 2, 8].into(), NATIVE, Refusal::Overloaded, desk.now);
    assert_eq!(told(&mut desk, &following), ["accepted", "handshake", "ended not_tls", "refused"]);
    desk.flush();
    desk.shard.handle_reset(index, desk.now);
    desk.reap();
    // Its slot is somebody else's now.
    assert_eq!(desk.accept(NATIVE), index);
    desk.shard.handle_reset(index, desk.now);
    assert_eq!(told(&mut desk, &following), [""; 0]);
}

#[test]
fn who_is_there_already_is_found_slice_by_slice_and_told_once_to_each_new_trace() {
    let mut desk = Desk::new();
    for device in ["a", "b", "c", "d"] {
        desk.connect(device);
    }
    let even = of_network("192.0.0.0/24", PACKETS);
    follow(&mut desk, &[&even]);
    assert!(desk.shard.has_untraced() && desk.shard.has_ready());
    desk.shard.advance_traces(3, peer, desk.now);
    assert_eq!(told(&mut desk, &even), ["present"; 2]);
    assert!(desk.shard.has_untraced());
    desk.shard.advance_traces(3, peer, desk.now);
    assert!(!desk.shard.has_untraced() && !desk.shard.has_ready());
    assert_eq!(told(&mut desk, &even), [""; 0]);
    // A second one hears of whom it is about; the first goes on as it was, whatever its place.
    let all = of_network("192.0.0.0/16", TraceDepth::default());
    let named = of_device("b", TraceDepth::default());
    follow(&mut desk, &[&all, &named, &even]);
    desk.shard.advance_traces(9, peer, desk.now);
    assert_eq!(told(&mut desk, &all), ["present"; 4]);
    desk.shard.handle_disconnect(1, "a", desk.now);
    assert_eq!(told(&mut desk, &even), [">CLOSE", "ended requested"]);
    assert_eq!(
        (told(&mut desk, &all), told(&mut desk, &named)),
        (vec!["ended requested".into()], vec!["present".into()])
    );
    let event = {
        desk.shard.handle_disconnect(2, "b", desk.now);
        desk.shard.tell_traces(peer);
        named.1.try_recv().unwrap()
    };
    assert_eq!((event.address, event.port, &*event.device), (Some([192, 0, 1, 1].into()), 7, "b"));
}

#[test]
fn payloads_are_told_to_those_alone_who_asked_for_them() {
    let mut desk = Desk::new();
    let names = of_device("a", PACKETS);
    let payloads = of_device("a", TraceDepth { packets: true, payloads: true });
    let index = desk.connect("a");
    follow(&mut desk, &[&names, &payloads]);
    desk.client(index).say(&Frame::Message(Message { id: 0, topic: "t", payload: b"secret" }));
    desk.read(index);
    desk.shard.tell_traces(peer);
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
    let mut desk = Desk::new();
    let following = of_device("a", PACKETS);
    let (trace, arrive) = &following;
    let index = desk.connect("a");
    follow(&mut desk, &[&following]);
    let mut expected = 1; // It is there.
    for _ in 0..6 {
        // Each is asked and answered; the uplink is not needed for it.
        (0..100).for_each(|_| desk.client(index).say(&Frame::Ping(b"")));
        desk.read(index);
        desk.flush();
        expected += 200;
    }
    desk.shard.tell_traces(peer);
    let heard = arrive.try_iter().count() as u64;
    assert_eq!((heard, trace.take_left_out()), (u64::from(TRACE_EVENTS_PER_SECOND), expected - heard));
    // In the next second there is room again; and beyond its end there is none.
    desk.now = desk.now.plus(Duration::from_secs(1));
    desk.client(index).say(&Frame::Ping(b""));
    desk.read(index);
    assert_eq!(told(&mut desk, &following), ["<PING", ">PONG"]);
    desk.now = LATE;
    desk.client(index).say(&Frame::Ping(b""));
    desk.read(index);
    assert_eq!((told(&mut desk, &following), trace.take_left_out()), (vec![], 0));

    // So many connections of a network are known.
    let following = of_network("192.0.2.0/24", TraceDepth::default());
    desk.now = Moment::from_micros(60_000);
    follow(&mut desk, &[&following]);
    for _ in 0..TRACE_CONNECTIONS_MAX + 2 {
        let index = desk.shard.handle_accept(NATIVE, desk.now);
        desk.shard.trace_accepted(index, [192, 0, 2, 9].into(), desk.now);
        desk.now = desk.now.plus(Duration::from_millis(2));
        desk.shard.tell_traces(peer);
        following.1.try_iter().for_each(drop);
    }
    assert_eq!(following.0.take_left_out(), 2);
}

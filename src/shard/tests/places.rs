//! Places among the handshakes: who gets one, and who gives way.

use super::*;

/// A byte, or half a ClientHello, holds its bytes and no place.
#[test]
fn places_are_for_whole_client_hellos() {
    let mut harness = ShardHarness::new();
    let idlers: Vec<ConnectionSlot> = (0..8).map(|_| harness.accept(NATIVE)).collect();
    for (number, &slot) in idlers.iter().enumerate() {
        let keep = [1, 300][number % 2];
        let rest = harness.client(slot).out.split_off(keep);
        harness.read(slot);
        harness.client(slot).out = rest;
    }
    assert_eq!((harness.value(Metric::HandshakesWaiting), harness.value(Metric::HandshakesInFlight)), (0, 0));
    assert_eq!(harness.shard().connections[idlers[0]].buffered(), 1);
    harness.connect("a");
    // What comes to its end is a ClientHello like any other.
    for _ in 0..3 {
        harness.read(idlers[0]);
    }
    assert!(harness.clients[&idlers[0]].records.is_some());
}

/// A part of a ClientHello that lies there for long is no sign that newcomers wait.
#[test]
fn who_waits_for_its_own_bytes_does_not_wait_for_us() {
    let mut harness = ShardHarness::new();
    let slot = harness.accept(NATIVE);
    let rest = harness.client(slot).out.split_off(5);
    harness.read(slot);
    harness.client(slot).out = rest;
    harness.pass(Duration::from_secs(8));
    assert_eq!(harness.shard().plan_read(slot), Plan::Leave);
    assert_eq!(harness.shard().longest_waiting(), None);
}

#[test]
fn a_client_hello_without_end_is_refused() {
    let mut harness = ShardHarness::new();
    let slot = harness.accept(NATIVE);
    harness.io().receive(slot, &[22, 3, 1, 0x20, 0, 1, 0, 0x40, 0]);
    // It hears what was said as bytes: it is no client that would understand it.
    harness.clients.remove(&slot);
    assert_eq!(harness.turn_and_tell(), [21, 3, 3, 0, 2, 2, 50], "decode_error");
    assert_eq!(harness.closed(CloseReason::HandshakeFailed), 1);
}

/// All places are taken by peers that say ClientHello and nothing more.
#[test]
fn the_longest_silent_gives_way_to_who_waits() {
    let mut harness = ShardHarness::new();
    harness.connect("known");
    let stalled = [harness.accept(NATIVE), harness.accept(NATIVE)];
    for &slot in &stalled {
        harness.read(slot);
        harness.client(slot).out.clear();
        harness.pass(Duration::from_millis(100));
    }
    let newcomer = harness.accept(NATIVE);
    harness.read(newcomer);
    assert_eq!(harness.value(Metric::HandshakesInFlight), 2);
    // Not before its time, and the shard says when that is.
    harness.turn();
    assert_eq!(harness.closed(CloseReason::HandshakeTimeout), 0);
    let (look, now) = (harness.shard().next_deadline().unwrap(), harness.now());
    assert!(!look.is_after(now.tick().plus(10)), "{look:?}");
    harness.io().now = look.start_near(now);
    let reaped = harness.turn();
    assert_eq!((harness.closed(CloseReason::HandshakeTimeout), harness.value(Metric::HandshakesGaveWay)), (1, 1));
    assert_eq!(reaped, [stalled[0]]);
    for _ in 0..3 {
        harness.read(newcomer);
    }
    assert!(harness.clients[&newcomer].records.is_some());
}

//! Places among the handshakes: who gets one, and who gives way.

use super::*;

/// A byte, or half a ClientHello, holds its bytes and no place.
#[test]
fn places_are_for_whole_client_hellos() {
    let mut desk = Desk::new();
    let idlers: Vec<u32> = (0..8).map(|_| desk.accept(NATIVE)).collect();
    for (number, &index) in idlers.iter().enumerate() {
        let keep = [1, 300][number % 2];
        let rest = desk.client(index).out.split_off(keep);
        desk.read(index);
        desk.client(index).out = rest;
    }
    assert_eq!((desk.value(Metric::HandshakesWaiting), desk.value(Metric::HandshakesInFlight)), (0, 0));
    assert_eq!(desk.shard.connections[idlers[0] as usize].buffered(), 1);
    desk.connect("a");
    // What comes to its end is a ClientHello like any other.
    for _ in 0..3 {
        desk.read(idlers[0]);
        desk.flush();
    }
    assert!(desk.clients[&idlers[0]].records.is_some());
    desk.shard.check_invariants();
}

/// A part of a ClientHello that lies there for long is no sign that newcomers wait.
#[test]
fn who_waits_for_its_own_bytes_does_not_wait_for_us() {
    let mut desk = Desk::new();
    let index = desk.accept(NATIVE);
    let rest = desk.client(index).out.split_off(5);
    desk.read(index);
    desk.client(index).out = rest;
    desk.pass(Duration::from_secs(8));
    assert_eq!(desk.shard.plan_read(index), Plan::Leave);
    assert_eq!(desk.shard.longest_waiting(), None);
}

#[test]
fn a_client_hello_without_end_is_refused() {
    let mut desk = Desk::new();
    let index = desk.accept(NATIVE);
    desk.client(index).out = vec![22, 3, 1, 0x20, 0, 1, 0, 0x40, 0];
    desk.read(index);
    assert_eq!(desk.closed(CloseReason::HandshakeFailed), 1);
    let mut transmit = Transmit::default();
    desk.shard.take_transmit(&mut transmit);
    let said: Vec<u8> = transmit.segments().flat_map(|(_, bytes)| bytes.to_vec()).collect();
    assert_eq!(said, [21, 3, 3, 0, 2, 2, 50], "decode_error");
}

/// All places are taken by peers that say ClientHello and nothing more.
#[test]
fn the_longest_silent_gives_way_to_who_waits() {
    let mut desk = Desk::new();
    desk.connect("known");
    let stalled = [desk.accept(NATIVE), desk.accept(NATIVE)];
    for &index in &stalled {
        desk.read(index);
        desk.flush();
        desk.clients.get_mut(&index).unwrap().out.clear();
        desk.pass(Duration::from_millis(100));
    }
    let newcomer = desk.accept(NATIVE);
    desk.read(newcomer);
    assert_eq!(desk.value(Metric::HandshakesInFlight), 2);
    // Not before its time, and the shard says when that is.
    desk.expire();
    assert_eq!(desk.closed(CloseReason::HandshakeTimeout), 0);
    let look = desk.shard.next_deadline().unwrap();
    assert!(!look.is_after(desk.now.tick().plus(10)), "{look:?}");
    desk.now = look.start_near(desk.now);
    desk.expire();
    assert_eq!((desk.closed(CloseReason::HandshakeTimeout), desk.value(Metric::HandshakesGaveWay)), (1, 1));
    assert_eq!(desk.reap(), [stalled[0]]);
    desk.call();
    for _ in 0..2 {
        desk.flush();
        desk.read(newcomer);
    }
    desk.flush();
    assert!(desk.clients[&newcomer].records.is_some());
}

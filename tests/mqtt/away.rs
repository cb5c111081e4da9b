//! What waits for a device that is away lies in the store: more than is read at a time, in its order, whatever happens meanwhile.

use std::net::SocketAddr;

use pulsegate::codec::mqtt::Packet;
use pulsegate::tls::handshake::ClientTls;
use rustix::process::Signal;

use crate::support::{Gateway, SOON, Site, wait_until};
use crate::survival::{Connection, Heard, Out, begin, lasting};

/// So many messages are more than one piece of what is read.
const MESSAGES: u16 = 300;
/// Longer than what is acknowledged to a device at a time.
const WINDOW: u16 = 30;

fn open(address: SocketAddr, tls: &ClientTls, id: &str) -> Connection {
    Connection::open(address, tls, lasting(id)).expect("it is greeted").0
}

/// Publishes these numbers, half a kilobyte each, and hears all of them acknowledged.
fn publish(connection: &mut Connection, numbers: std::ops::Range<u16>) {
    let mut heard = numbers.start;
    for number in numbers.clone() {
        connection.publish(&Out::new(number, "a/b", format!("{number}.{}", "x".repeat(500)), 1)).unwrap();
        while number - heard >= WINDOW {
            assert_eq!(connection.hear(), Some(Heard::Puback(heard)));
            heard += 1;
        }
    }
    for number in heard..numbers.end {
        assert_eq!(connection.hear(), Some(Heard::Puback(number)));
    }
}

/// The next message: its number, packet identifier, and whether it may have come before.
fn take(connection: &mut Connection) -> (u16, u16, bool) {
    match connection.hear() {
        Some(Heard::Message { payload, packet, dup, .. }) => {
            (payload.split('.').next().unwrap().parse().unwrap(), packet, dup)
        }
        other => panic!("{other:?}"),
    }
}

/// Takes these, in their order, and acknowledges each.
fn take_all(connection: &mut Connection, numbers: std::ops::Range<u16>) {
    for number in numbers {
        let (taken, packet, _) = take(connection);
        assert_eq!(taken, number);
        connection.acknowledge(Packet::Puback, packet).unwrap();
    }
}

/// Bytes of the pool that are taken for messages, in all workers.
fn in_memory(gateway: &Gateway) -> u64 {
    gateway.metric("pulsegate_pool_used_bytes")
}

#[test]
fn a_long_queue_comes_whole_and_in_order_though_more_comes_and_the_gateway_is_killed() {
    let site = Site::new();
    let tls = site.tls_with(None, |options| options.alpn = &[b"mqtt"]);
    let gateway = begin(&site, "workers = 2");
    let address = gateway.address("mqtt");
    let mut away = open(address, &tls, "away");
    away.subscribe("a/#").unwrap();
    assert_eq!(away.hear(), Some(Heard::Suback));
    let mut publisher = open(address, &tls, "publisher");
    // Some are in flight when it goes.
    publish(&mut publisher, 1..5);
    let sent: Vec<_> = (0..4).map(|_| take(&mut away)).collect();
    drop(away);
    wait_until("the device is away", SOON, || gateway.metric("pulsegate_mqtt_sessions_away") == 1);
    publish(&mut publisher, 5..MESSAGES);
    wait_until("nothing of it is in memory", SOON, || in_memory(&gateway) < 8_192);
    assert_eq!(gateway.metric("pulsegate_store_waiting_messages"), u64::from(MESSAGES) - 1);

    // What was sent comes again under its identifiers, then the others; more is said while they are read.
    let mut away = open(address, &tls, "away");
    for (number, packet, _) in sent {
        assert_eq!(take(&mut away), (number, packet, true));
        away.acknowledge(Packet::Puback, packet).unwrap();
    }
    take_all(&mut away, 5..40);
    publish(&mut publisher, MESSAGES..MESSAGES + 20);
    take_all(&mut away, 40..80);
    gateway.signal(Signal::KILL);
    drop((gateway, away, publisher));

    let gateway = begin(&site, "workers = 1");
    assert!(in_memory(&gateway) < 8_192, "messages are read when they are wanted");
    let mut away = open(gateway.address("mqtt"), &tls, "away");
    let (mut number, packet, _) = take(&mut away);
    // Of what it had acknowledged some may not have been safe.
    assert!((5..=80).contains(&number), "{number}");
    away.acknowledge(Packet::Puback, packet).unwrap();
    while number < MESSAGES + 19 {
        let (next, packet, _) = take(&mut away);
        assert_eq!(next, number + 1);
        away.acknowledge(Packet::Puback, packet).unwrap();
        number = next;
    }
    wait_until("all of it is done with", SOON, || gateway.metric("pulsegate_store_waiting_messages") == 0);
}

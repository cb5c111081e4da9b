//! Whoever does nothing costs nothing: in no state of a connection does an idle peer make an event loop turn.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use pulsegate::codec::native::{Frame, Hello};

use crate::support::{Device, Event, Gateway, Listener, SOON, Site, client_hello, dial, native, raw, wait_until};

/// For how long turns are counted.
const WINDOW: Duration = Duration::from_millis(500);
/// Turns of two loops in that time that are nobody's doing: sleeps that end, ticks of the timing wheel.
const FEW: u64 = 8;

/// Waits for a time in which the gateway hardly turns, while its peers stay as they are.
#[track_caller]
fn expect_quiet(gateway: &Gateway, state: &str) {
    wait_until(&format!("the loops rest with a peer that is {state}"), SOON, || {
        let before = gateway.metric("pulsegate_turns_total");
        std::thread::sleep(WINDOW);
        gateway.metric("pulsegate_turns_total") - before <= FEW
    });
}

/// The peer has said `bytes` and keeps its socket open, whatever it hears.
fn stranger(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut socket = dial(address).unwrap();
    socket.write_all(bytes).unwrap();
    socket
}

/// The same, when it has heard the gateway's end.
fn ended_stranger(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut socket = stranger(address, bytes);
    socket.read_to_end(&mut Vec::new()).unwrap();
    socket
}

fn told_to_the_end(mut device: Device) -> Device {
    device.hear_all();
    device
}

#[test]
fn an_idle_peer_costs_no_turns_in_any_state() {
    let site = Site::new();
    let top = "workers = 2\n[limits]\nlinger_time = \"60s\"\nhandshake_time = \"60s\"\nhello_time = \"60s\"";
    let gateway = site.start(top, &[native(), raw(), Listener::new("mqtt", "mqtt")]);
    let tls = site.tls();
    let plain = site.tls_with(None, |options| options.alpn = &[]);
    let native = gateway.devices();
    let (raw, mqtt) = (gateway.address("raw"), gateway.address("mqtt"));
    let open_mqtt = |id: u8| {
        let mut device = Device::raw(mqtt, &plain).unwrap();
        device.send_plain(&[&b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01"[..], &[id]].concat());
        assert_eq!(device.hear(), Event::Data(b"\x20\x02\0\0".to_vec()));
        device
    };

    let mut strangers = Vec::new();
    let mut devices = Vec::new();
    strangers.push(stranger(native, b""));
    expect_quiet(&gateway, "silent");
    strangers.push(stranger(native, &client_hello(&tls)[..50]));
    expect_quiet(&gateway, "in the middle of its ClientHello");
    strangers.push(stranger(native, &client_hello(&tls)));
    expect_quiet(&gateway, "in its handshake");
    devices.push(Device::connect(native, &tls).unwrap());
    expect_quiet(&gateway, "without a name");
    devices.push(Device::welcomed(native, &tls, "open"));
    devices.push(Device::raw(raw, &plain).unwrap());
    devices.push(open_mqtt(b'a'));
    expect_quiet(&gateway, "open");

    strangers.push(ended_stranger(native, b"GET / HTTP/1.0\r\n\r\n"));
    expect_quiet(&gateway, "told that it speaks no TLS");
    let mut rude = Device::welcomed(native, &tls, "rude");
    rude.send(&[Frame::Hello(Hello { heartbeat_ms: 0, id: "again", token: b"" })]);
    devices.push(told_to_the_end(rude));
    expect_quiet(&gateway, "told that it breaks the protocol");
    let older = Device::welcomed(native, &tls, "twin");
    devices.push(Device::welcomed(native, &tls, "twin"));
    devices.push(told_to_the_end(older));
    expect_quiet(&gateway, "taken over");
    for (id, last) in [(b'b', &b"\xe0\0"[..]), (b'c', b"\xf3\0")] {
        let mut device = open_mqtt(id);
        device.send_plain(last);
        devices.push(told_to_the_end(device));
    }
    expect_quiet(&gateway, "closing, by MQTT's own words");
    let mut impatient = Device::connect(native, &tls).unwrap();
    impatient.send(&[Frame::Ping(b"too soon")]);
    devices.push(told_to_the_end(impatient));
    expect_quiet(&gateway, "told that it has no name");

    // They were all there to the end.
    gateway.expect_connections(strangers.len() + devices.len());
    let (idle, turns) = (gateway.metric("pulsegate_idle_turns_total"), gateway.metric("pulsegate_turns_total"));
    assert!(idle <= turns / 50, "{idle} of {turns} turns had nothing to do");
}

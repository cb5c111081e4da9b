//! Whoever does nothing costs nothing: in no state of a connection does an idle peer make an event loop turn.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use pulsegate::codec::native::{Frame, Hello};
use serde_json::json;

use crate::support::{
    Device, Event, Listener, SOON, Site, SmallDisk, client_hello, dial, message, native, raw, wait_until,
};

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
    gateway.expect_quiet("silent");
    strangers.push(stranger(native, &client_hello(&tls)[..50]));
    gateway.expect_quiet("in the middle of its ClientHello");
    strangers.push(stranger(native, &client_hello(&tls)));
    gateway.expect_quiet("in its handshake");
    devices.push(Device::connect(native, &tls).unwrap());
    gateway.expect_quiet("without a name");
    devices.push(Device::welcomed(native, &tls, "open"));
    devices.push(Device::raw(raw, &plain).unwrap());
    devices.push(open_mqtt(b'a'));
    gateway.expect_quiet("open");

    strangers.push(ended_stranger(native, b"GET / HTTP/1.0\r\n\r\n"));
    gateway.expect_quiet("told that it speaks no TLS");
    let mut rude = Device::welcomed(native, &tls, "rude");
    rude.send(&[Frame::Hello(Hello { heartbeat_ms: 0, id: "again", token: b"" })]);
    devices.push(told_to_the_end(rude));
    gateway.expect_quiet("told that it breaks the protocol");
    let older = Device::welcomed(native, &tls, "twin");
    devices.push(Device::welcomed(native, &tls, "twin"));
    devices.push(told_to_the_end(older));
    gateway.expect_quiet("taken over");
    for (id, last) in [(b'b', &b"\xe0\0"[..]), (b'c', b"\xf3\0")] {
        let mut device = open_mqtt(id);
        device.send_plain(last);
        devices.push(told_to_the_end(device));
    }
    gateway.expect_quiet("closing, by MQTT's own words");
    let mut impatient = Device::connect(native, &tls).unwrap();
    impatient.send(&[Frame::Ping(b"too soon")]);
    devices.push(told_to_the_end(impatient));
    gateway.expect_quiet("told that it has no name");

    // They were all there to the end.
    gateway.expect_connections(strangers.len() + devices.len());
    let (idle, turns) = (gateway.metric("pulsegate_idle_turns_total"), gateway.metric("pulsegate_turns_total"));
    assert!(idle <= turns / 50, "{idle} of {turns} turns had nothing to do");
}

/// What a browser asks for.
const UPGRADE: &[u8] = b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";

#[test]
fn an_idle_peer_costs_no_turns_before_it_speaks_its_protocol() {
    let site = Site::new();
    let top = "workers = 2\n[limits]\nlinger_time = \"60s\"\nhandshake_time = \"60s\"\nhello_time = \"60s\"";
    // Nobody answers for the hook: connections to it wait for ever.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let hook = format!(
        "kind = \"hook\"\nurl = \"http://{}/\"\ntimeout = \"30s\"\non_error = \"deny\"\n",
        silent.local_addr().unwrap()
    );
    let gateway = site.start(
        top,
        &[
            native().key("proxy_protocol", "[\"127.0.0.1/32\"]"),
            Listener::new("browsers", "mqtt").key("transport", "\"websocket\""),
            Listener::new("asked", "native").authenticator(&hook),
        ],
    );
    let (tls, plain) = (site.tls(), site.tls_with(None, |options| options.alpn = &[]));
    let (proxied, browsers) = (gateway.devices(), gateway.address("browsers"));

    let mut strangers = vec![stranger(proxied, b"")];
    gateway.expect_quiet("not announced");
    strangers.push(stranger(proxied, b"PROXY TCP4 192.0.2.1 "));
    gateway.expect_quiet("in the middle of being announced");
    strangers.push(stranger(proxied, b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n"));
    gateway.expect_quiet("announced and silent");

    let mut devices = vec![Device::raw(browsers, &plain).unwrap()];
    gateway.expect_quiet("silent where a WebSocket begins");
    let mut half = Device::raw(browsers, &plain).unwrap();
    half.send_plain(&UPGRADE[..60]);
    devices.push(half);
    gateway.expect_quiet("in the middle of its upgrade");
    let mut upgraded = Device::raw(browsers, &plain).unwrap();
    upgraded.send_plain(UPGRADE);
    let Event::Data(answer) = upgraded.hear() else { panic!("no answer to an upgrade") };
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", answer.escape_ascii());
    // The head of a frame, and nothing of what is in it.
    upgraded.send_plain(b"\x82\x8e\0\0\0\0");
    devices.push(upgraded);
    gateway.expect_quiet("silent within its WebSocket");

    let mut asked = Device::connect(gateway.address("asked"), &tls).unwrap();
    asked.send(&[Frame::Hello(Hello { heartbeat_ms: 0, id: "asked", token: b"secret" })]);
    wait_until("the hook is asked", SOON, || gateway.metric("pulsegate_hook_asked_total") > 0);
    devices.push(asked);
    gateway.expect_quiet("judged by a hook that does not answer");
    gateway.expect_connections(strangers.len() + devices.len());
}

#[test]
fn an_idle_peer_costs_no_turns_while_it_is_held_or_told_something_slowly() {
    let site = Site::new();
    let rates = "messages_per_second = 1\nburst = \"1s\"\npatience = \"0s\"\n";
    let gateway = site.start("workers = 2\n", &[native(), Listener::new("slow", "native").table("rates", rates)]);
    let tls = site.tls();
    let mut held = Device::welcomed(gateway.address("slow"), &tls, "held");
    for number in 0..60 {
        held.send(&[message(number, b"more than it may say")]);
    }
    wait_until("it is held", SOON, || gateway.metric("pulsegate_rate_held_total") > 0);
    gateway.expect_quiet("held for what it has sent");
    let mut told: Vec<_> =
        (0..40).map(|number| Device::welcomed(gateway.devices(), &tls, &format!("told-{number}"))).collect();
    let order = json!({"prefix": "told-", "payload": "x", "per_second": 2});
    assert_eq!(gateway.post("/v1/broadcast", &order).0, 202);
    gateway.expect_quiet("told something by a broadcast that takes its time");
    // It goes on all the same: each worker has its share.
    wait_until("some have heard it", 3 * SOON, || {
        told.iter_mut().filter_map(|device| device.hear_within(Duration::from_millis(1))).count() > 0
    });
}

#[test]
fn an_idle_peer_costs_no_turns_while_it_waits_for_a_store_without_room() {
    let site = Site::new();
    let data = site.path("data");
    let Some(disk) = SmallDisk::mount(&data, 6 << 10) else { return };
    let gateway = site.start("workers = 2\ndata_dir = \"data\"", &[native()]);
    let mut held = Device::welcomed(gateway.devices(), &site.tls(), "held");
    held.send(&[message(1, &[1; 1_000])]);
    assert_eq!(held.hear(), Event::Ack(1));
    // Somebody is to read it: it does not give way.
    gateway.get_json("/v1/uplink?consumer=c&max=1");
    disk.fill();
    // Until the journal's last page is written there may be room for some.
    let mut sent = 1;
    wait_until("there is no room", SOON, || {
        sent += 1;
        held.send(&[message(sent, &[2; 10_000])]);
        gateway.metric("pulsegate_store_without_room") == 1
    });
    gateway.expect_quiet("held for a store that has no room");
    assert_eq!(gateway.metric("pulsegate_store_without_room"), 1, "it was held all the time");
    disk.make_room();
    wait_until("all of it is acknowledged", SOON, || held.hear() == Event::Ack(sent));
}

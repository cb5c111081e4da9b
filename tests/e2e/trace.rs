//! `pulsegate trace` and its API: step by step, from accept on, in every protocol, within bounds, and over when it is.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use pulsegate::codec::mqtt::{Connect, Options, Packet, Properties, Publish, QoS, Subscribe, Version};
use pulsegate::codec::native::Frame;
use serde_json::Value;

use crate::support::{
    Device, Event, Gateway, Listener, Program, SOON, Site, dial_from, giving_up, hello, message, native, raw, wait_for,
    wait_until,
};

/// Where the traced come from.
const HERE: [u8; 4] = [127, 0, 7, 1];

fn address(gateway: &Gateway) -> SocketAddr {
    gateway.admin().strip_prefix("http://").unwrap().parse().unwrap()
}

/// A trace over HTTP. It has begun: whatever happens from now on is in it.
struct Trace {
    lines: BufReader<TcpStream>,
}

impl Trace {
    #[track_caller]
    fn begin(gateway: &Gateway, query: &str) -> Self {
        let mut stream = giving_up(TcpStream::connect(address(gateway)).unwrap());
        write!(stream, "GET /v1/trace?{query} HTTP/1.0\r\n\r\n").unwrap();
        let mut trace = Self { lines: BufReader::new(stream) };
        let began = trace.next().expect("it begins");
        assert_eq!(began["kind"], "began", "{began}");
        // The workers have been told, and have emptied their inboxes when they answer.
        gateway.get_json("/v1/devices");
        trace
    }

    /// Up to and with the first event of which this holds.
    #[track_caller]
    fn until(&mut self, holds: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let event = self.next().unwrap_or_else(|| panic!("the stream ended: {events:#?}"));
            events.push(event);
            if holds(events.last().unwrap()) {
                return events;
            }
        }
    }
}

impl Iterator for Trace {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.lines.read_line(&mut line).expect("events come in time") == 0 {
                return None;
            }
            if let Some(data) = line.strip_prefix("data:") {
                return Some(serde_json::from_str(data).unwrap());
            }
        }
    }
}

/// An event in a word or two: `accepted`, `<HELLO`, `ended not_tls`.
fn word(event: &Value) -> String {
    let text = |key: &str| event[key].as_str().unwrap_or_default();
    match text("kind") {
        "packet" => format!("{}{}", if text("direction") == "in" { '<' } else { '>' }, text("packet")),
        kind @ ("ended" | "refused") => format!("{kind} {}", text("reason")),
        kind => kind.to_owned(),
    }
}

fn words(events: &[Value]) -> Vec<String> {
    events.iter().map(word).collect()
}

fn is(wanted: &str) -> impl Fn(&Value) -> bool + use<'_> {
    move |event| word(event) == wanted
}

fn start(site: &Site) -> Gateway {
    let raw = raw().table("raw", "heartbeat = \"beat\"\nreply = \"ok\"\n");
    let mqtt = Listener::new("mqtt", "mqtt").table("mqtt", "publish = [\"#\"]\nsubscribe = [\"#\"]\n");
    site.start("workers = 2", &[native(), raw, mqtt])
}

fn connect(gateway: &Gateway, site: &Site, listener: &str, alpn: &'static [&'static [u8]]) -> Device {
    let tls = site.tls_with(None, |options| options.alpn = alpn);
    Device::over(dial_from(HERE, gateway.address(listener)), &tls).unwrap()
}

fn native_device(gateway: &Gateway, site: &Site, id: &str) -> Device {
    let mut device = connect(gateway, site, "devices", &[b"pulsegate/1"]);
    device.send(&[hello(id)]);
    device.expect_welcome();
    device
}

#[test]
fn a_network_is_followed_from_accept_to_the_end_in_every_protocol() {
    let site = Site::new();
    let gateway = start(&site);
    let mut trace = Trace::begin(&gateway, "address=127.0.7.0/24&packets=true");

    // A stranger that never becomes a device, and one from elsewhere, of whom nothing is told.
    let mut elsewhere = dial_from([127, 0, 8, 1], gateway.devices());
    elsewhere.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut stranger = dial_from(HERE, gateway.devices());
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    stranger.read_to_end(&mut Vec::new()).unwrap();
    let events = trace.until(is("ended not_tls"));
    assert_eq!(words(&events), ["accepted", "handshake", "ended not_tls"]);
    assert!(events[0]["peer"].as_str().unwrap().starts_with("127.0.7.1:"), "{events:?}");
    assert!(events[2]["meaning"].is_string() && events[2].get("device").is_none(), "{events:?}");

    // Devices until one of them has moved to its home, and was followed across, and one has not.
    let (mut moved, mut stayed) = (0, 0);
    while moved == 0 || stayed == 0 {
        assert!(moved + stayed < 64, "{moved} have moved, {stayed} have not");
        let id = format!("meter-{}", moved + stayed);
        let mut device = native_device(&gateway, &site, &id);
        device.send(&[message(7, b"the payload")]);
        assert_eq!(device.hear(), Event::Ack(7));
        device.leave();
        let events = trace.until(is("ended peer_closed"));
        let mut told = words(&events);
        if let Some(place) = told.iter().position(|word| word == "moving") {
            assert_eq!(told.drain(place..place + 2).collect::<Vec<_>>(), ["moving", "arrived"], "{events:#?}");
            moved += 1;
        } else {
            stayed += 1;
        }
        let expected = [
            "accepted",
            "handshake",
            "established",
            "<HELLO",
            ">WELCOME",
            "connected",
            "<MESSAGE",
            ">ACK",
            "ended peer_closed",
        ];
        assert_eq!(told, expected, "{events:#?}");
        assert!(events.last().unwrap()["device"] == id.as_str(), "{events:#?}");
        assert!(!format!("{events:?}").contains("the payload"), "payloads were not asked for");
    }

    let mut raw =
        Device::raw_over(dial_from(HERE, gateway.address("raw")), &site.tls_with(None, |options| options.alpn = &[]))
            .unwrap();
    raw.send_plain(b"beatbeat");
    assert_eq!(raw.hear(), Event::Data(b"ok".to_vec()));
    raw.send_plain(b"21 degrees");
    raw.leave();
    let events = trace.until(is("ended peer_closed"));
    let packets: Vec<_> = words(&events).into_iter().filter(|word| word.starts_with(['<', '>'])).collect();
    assert_eq!(packets, ["<HEARTBEAT", ">REPLY", "<DATA"], "{events:#?}");

    mqtt_is_followed(&gateway, &site, &mut trace);
}

fn mqtt_is_followed(gateway: &Gateway, site: &Site, trace: &mut Trace) {
    let mut device = connect(gateway, site, "mqtt", &[b"mqtt"]);
    let mut plain = Vec::new();
    let mut say = |packet: Packet| packet.encode(Version::V5, &mut plain);
    say(Packet::Connect(Connect {
        version: Version::V5,
        client_id: "pump",
        clean_start: true,
        keep_alive: 60,
        will: None,
        username: Some("user"),
        password: Some(b"never shown"),
        properties: Properties::EMPTY,
    }));
    let mut filters = Vec::new();
    let options = Options { qos: QoS::AtMostOnce, no_local: false, retain_as_published: false, retain_handling: 0 };
    Subscribe::put_filter("a/+", options, &mut filters);
    say(Packet::Subscribe(Subscribe::new(3, Properties::EMPTY, &filters)));
    say(Packet::Publish(Publish {
        dup: false,
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: "a/b",
        packet_id: 4,
        properties: Properties::EMPTY,
        payload: b"the payload",
    }));
    device.send_plain(&plain);
    let mut events = trace.until(is(">PUBACK"));
    if !words(&events).contains(&">PUBLISH".to_owned()) {
        events.extend(trace.until(is(">PUBLISH")));
    }
    device.send_plain(&[0xC0, 0, 0xE0, 0]);
    events.extend(trace.until(is("ended device_closed")));
    let mut packets: Vec<_> = words(&events).into_iter().filter(|word| word.starts_with(['<', '>'])).collect();
    packets.sort();
    let expected = [
        "<CONNECT",
        "<DISCONNECT",
        "<PINGREQ",
        "<PUBLISH",
        "<SUBSCRIBE",
        ">CONNACK",
        ">PINGRESP",
        ">PUBACK",
        ">PUBLISH",
        ">SUBACK",
    ];
    assert_eq!(packets, expected, "{events:#?}");
    let details: Vec<_> = events.iter().filter_map(|event| event["detail"].as_str()).collect();
    let text = details.join("\n");
    for part in ["client id \"pump\"", "user \"user\", a password", "\"a/+\" qos 0", "topic \"a/b\", qos 1, id 4"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let text = format!("{events:?}");
    assert!(!text.contains("never shown") && !text.contains("the payload"), "{text}");
}

#[test]
fn one_device_is_followed_by_its_id_with_its_payloads_where_they_are_asked_for() {
    let site = Site::new();
    let gateway = start(&site);
    let mut device = native_device(&gateway, &site, "meter-1");
    let mut other = native_device(&gateway, &site, "meter-2");
    let mut names = Trace::begin(&gateway, "device=meter-1&packets=true");
    let mut payloads = Trace::begin(&gateway, "device=meter-1&packets=true&payloads=true");
    other.send(&[message(0, b"of another")]);
    device.send(&[message(9, b"\xff\x00")]);
    assert_eq!(device.hear(), Event::Ack(9));
    let events = names.until(is(">ACK"));
    assert_eq!(words(&events), ["present", "<MESSAGE", ">ACK"]);
    assert!(events[1].get("payload").is_none() && events[1].get("payload_base64").is_none(), "{events:?}");
    let events = payloads.until(is(">ACK"));
    assert_eq!(events[1]["payload_base64"], "/wA=");
    // It comes again, from where nobody looked before it had said its name.
    let _second = native_device(&gateway, &site, "meter-1");
    let events = names.until(is("connected"));
    let told = words(&events);
    for part in ["ended taken_over", ">CLOSE", "<HELLO", ">WELCOME"] {
        assert!(told.contains(&part.to_owned()), "{part} is not in {told:?}");
    }
}

#[test]
fn a_trace_ends_at_its_time_with_its_follower_and_with_the_gateway() {
    let site = Site::new();
    let mut gateway = start(&site);
    let mut short = Trace::begin(&gateway, "device=a&for=1s");
    let began = Instant::now();
    let over = short.next().unwrap();
    assert_eq!((over["kind"].as_str(), over["why"].as_str()), (Some("over"), Some("time")));
    assert!(short.next().is_none() && began.elapsed() >= Duration::from_millis(800));

    let mut four: Vec<_> = (0..4).map(|_| Trace::begin(&gateway, "device=a")).collect();
    let (status, body) = gateway.get("/v1/trace?device=a");
    assert!(status == 503 && body.contains("too_many_traces"), "{status}: {body}");
    four.pop();
    wait_until("the place of whoever went is free", SOON, || {
        let mut stream = TcpStream::connect(address(&gateway)).unwrap();
        write!(stream, "GET /v1/trace?device=a HTTP/1.0\r\n\r\n").unwrap();
        let mut head = String::new();
        BufReader::new(stream).read_line(&mut head).unwrap();
        head.contains(" 200 ")
    });
    for (query, part) in [
        ("", "name either a device or an address"),
        ("?device=a&address=127.0.0.1", "name either a device or an address"),
        ("?address=meter", "is not a network"),
        ("?device=a&payloads=true", "payloads are a part of packets"),
        ("?device=a&for=1y", "write a duration from 1s to 24h"),
    ] {
        let (status, body) = gateway.get(&format!("/v1/trace{query}"));
        assert!(status == 400 && body.contains(part), "{query}: {status}: {body}");
    }

    let mut trace = four.pop().unwrap();
    drop(four);
    let mut device = native_device(&gateway, &site, "a");
    gateway.signal(rustix::process::Signal::TERM);
    let events = trace.until(is("over"));
    assert_eq!(events.last().unwrap()["why"], "shutdown");
    assert!(words(&events).contains(&"ended shutdown".to_owned()), "{events:#?}");
    device.hear_all();
    assert!(gateway.wait(SOON).success());
}

#[test]
fn what_a_trace_has_no_room_for_is_counted_in_the_stream_and_the_device_notices_nothing() {
    const PINGS: u64 = 5_000;
    let site = Site::new();
    let gateway = start(&site);
    let mut device = native_device(&gateway, &site, "a");
    let mut trace = Trace::begin(&gateway, "device=a&packets=true");
    let frames: Vec<_> = (0..PINGS).map(|_| Frame::Ping(b"12345678")).collect();
    device.send(&frames);
    for _ in 0..PINGS {
        assert!(matches!(device.hear(), Event::Pong(_)));
    }
    // Beyond the second in which it was too much: all before it is told or counted by then.
    let (mut told, mut left_out) = (0, 0);
    let mut last = 0;
    wait_for("all are told or counted", SOON, || {
        device.send(&[Frame::Ping(b"1")]);
        last += 2;
        for event in trace.by_ref() {
            match word(&event).as_str() {
                "<PING" | ">PONG" => told += 1,
                "left_out" => left_out += event["count"].as_u64().unwrap(),
                _ => {}
            }
            if told + left_out == 2 * PINGS + last {
                return Some(());
            }
        }
        None
    });
    assert!(left_out > 0 && told >= 999, "{told} told, {left_out} left out");
}

#[test]
fn the_command_prints_a_line_for_each_and_ends_by_itself() {
    let site = Site::new();
    let gateway = start(&site);
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    let admin = gateway.admin();
    command.args(["trace", "--address", "127.0.7.0/24", "--packets", "--for", "3s", "--admin", &admin]);
    let mut program = Program::start(command);
    program.expect("followed until");
    gateway.get_json("/v1/devices");
    native_device(&gateway, &site, "meter-1").leave();
    for part in
        ["accepted        through devices", "TLSv1.3, ", "in  HELLO", "id \"meter-1\"", "ended           peer_closed"]
    {
        program.expect(part);
    }
    program.expect("the trace is over: time");
    assert!(program.wait(SOON).success());
}

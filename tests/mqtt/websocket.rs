//! MQTT over WebSocket (v5 6) through the real program: frames by hand, and stock clients over `wss`.

use crate::support::{Device, Event, Gateway, Listener, SOON, Site, dial_from};

const REQUEST: &str = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";
const GRANTED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";
/// CONNECT, level 4, clean session, client identifier `w`.
const CONNECT: &[u8] = b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01w";
const CONNACK: &[u8] = b"\x20\x02\x00\x00";

/// A listener `ws` that speaks MQTT over WebSocket.
pub fn listener(origins: &str) -> Listener {
    let open = "publish = [\"#\"]\nsubscribe = [\"#\"]\n";
    Listener::new("ws", "mqtt")
        .key("transport", "\"websocket\"")
        .table("websocket", &format!("origins = {origins}\n"))
        .table("mqtt", open)
}

fn start(site: &Site) -> Gateway {
    site.start("workers = 2\n", &[listener("[\"https://fleet.example\"]")])
}

/// A client's frame of less than 126 bytes.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x12, 0x34, 0x56, 0x78];
    let head = [first, 0x80 | payload.len() as u8];
    let masked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    head.into_iter().chain(mask).chain(masked).collect()
}

/// The next bytes that come are these.
#[track_caller]
fn expect(device: &mut Device, expected: &[u8]) {
    let mut heard = Vec::new();
    while heard.len() < expected.len() {
        match device.hear_within(SOON) {
            Some(Event::Data(bytes)) => heard.extend(bytes),
            other => panic!("heard {:?} and then {other:?}", heard.escape_ascii().to_string()),
        }
    }
    assert_eq!(heard.escape_ascii().to_string(), expected.escape_ascii().to_string());
}

#[track_caller]
fn expect_end(device: &mut Device) {
    match device.hear_within(SOON) {
        Some(Event::CloseNotify | Event::Eof | Event::Reset) => {}
        other => panic!("expected the end, heard {other:?}"),
    }
}

fn open(site: &Site, gateway: &Gateway, request: &str) -> Device {
    let tls = site.tls_with(None, |options| options.alpn = &[b"http/1.1"]);
    let mut device = Device::raw(gateway.address("ws"), &tls).expect("the gateway takes connections");
    device.send_plain(request.as_bytes());
    device
}

/// Packets span frames, frames span records, control frames stand between, in any cut; each record is sent alone. Half of the
/// connections move to the other worker with a frame that has begun.
#[test]
fn packets_across_frames_and_frames_across_records_mean_the_same_however_they_are_cut() {
    let site = Site::new();
    let gateway = start(&site);
    let publish = b"\x30\x04\x00\x01tx";
    for size in [1, 2, 7, 1_000] {
        for id in 0..4u8 {
            let connect = [&CONNECT[..CONNECT.len() - 1], &[b'a' + id]].concat();
            let subscribe = b"\x82\x06\x00\x01\x00\x01t\x00";
            let stream = [
                frame(0x02, &connect[..5]),
                frame(0x89, b"ping"),
                frame(0x00, b""),
                frame(0x80, &[&connect[5..], &subscribe[..3]].concat()),
                frame(0x82, &[&subscribe[3..], &publish[..]].concat()),
                frame(0x8A, b"unasked"),
            ]
            .concat();
            let mut device = open(&site, &gateway, REQUEST);
            expect(&mut device, GRANTED.as_bytes());
            for piece in stream.chunks(size) {
                device.send_plain(piece);
            }
            let mut heard = Vec::new();
            while !heard.contains(&b'x') {
                match device.hear_within(SOON) {
                    Some(Event::Data(bytes)) => heard.extend(bytes),
                    other => panic!("heard {:?} and then {other:?}", heard.escape_ascii().to_string()),
                }
            }
            // How packets are gathered in frames is the gateway's own; what they are is not.
            let (mut packets, mut pongs) = (Vec::new(), 0);
            let mut rest = &heard[..];
            while let [first, length, behind @ ..] = rest {
                let (payload, behind) = behind.split_at(usize::from(*length));
                match first {
                    0x82 => packets.extend_from_slice(payload),
                    0x8A => pongs += usize::from(payload == b"ping"),
                    other => panic!("a frame {other:02x}"),
                }
                rest = behind;
            }
            assert_eq!(packets, [CONNACK, b"\x90\x03\x00\x01\x00", publish].concat(), "in pieces of {size}");
            assert_eq!(pongs, 1);
            device.send_plain(&frame(0x88, &1000u16.to_be_bytes()));
            expect(&mut device, &[0x88, 2, 0x03, 0xE8]);
            expect_end(&mut device);
        }
    }
    gateway.wait_until_empty();
}

#[test]
fn what_is_no_websocket_or_not_allowed_is_told_in_http() {
    let site = Site::new();
    let gateway = start(&site);
    let origin = |origin: &str| REQUEST.replace("Host:", &format!("Origin: {origin}\r\nHost:"));
    let refused = [
        (REQUEST.replace("/mqtt ", "/other "), "HTTP/1.1 404 "),
        (origin("https://elsewhere.example"), "HTTP/1.1 403 "),
        (REQUEST.replace("Protocol: mqtt", "Protocol: stomp"), "HTTP/1.1 400 "),
        (REQUEST.replace("Version: 13", "Version: 8"), "HTTP/1.1 426 "),
        (format!("{REQUEST}more"), "HTTP/1.1 400 "),
        (String::from_utf8(CONNECT.to_vec()).unwrap(), "HTTP/1.1 400 "),
        (format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(9_000)), "HTTP/1.1 431 "),
    ];
    for (number, (request, status)) in (1..).zip(&refused) {
        let mut device = open(&site, &gateway, request);
        let Some(Event::Data(answer)) = device.hear_within(SOON) else { panic!("no answer to {request:?}") };
        assert!(answer.starts_with(status.as_bytes()), "{:?}", answer.escape_ascii().to_string());
        expect_end(&mut device);
        gateway.expect_closed("protocol_error", number);
    }
    for granted in [origin("https://fleet.example"), REQUEST.replace("Protocol: mqtt", "Protocol: x, mqtt")] {
        expect(&mut open(&site, &gateway, &granted), GRANTED.as_bytes());
    }
}

#[test]
fn frames_that_may_not_come_end_the_connection_with_their_code() {
    let site = Site::new();
    let gateway = start(&site);
    let ends: [(&[u8], u16); 4] = [
        (&frame(0x81, b"text"), 1003),
        (&[0x82, 0x02, 0xC0, 0x00], 1002),
        (&frame(0xC2, b"rsv"), 1002),
        (&frame(0x82, b"\xC1\x00"), 1002),
    ];
    for (bytes, code) in ends {
        let mut device = open(&site, &gateway, REQUEST);
        expect(&mut device, GRANTED.as_bytes());
        device.send_plain(&frame(0x82, CONNECT));
        expect(&mut device, &[&[0x82, 4], CONNACK].concat());
        device.send_plain(bytes);
        expect(&mut device, &[&[0x88, 2][..], &code.to_be_bytes()].concat());
        expect_end(&mut device);
    }
    gateway.expect_closed("protocol_error", 4);
    gateway.wait_until_empty();
}

/// An HTTP proxy in front says for whom it asks. That address is the device's: in the API, for the deny list, for who may come.
#[test]
fn a_trusted_proxy_names_the_device_s_address_and_nobody_else_does() {
    let site = Site::new();
    let trusted = listener("[]\nforwarded_from = [\"127.0.0.1/32\", \"10.0.0.0/8\"]");
    let gateway = site.start("workers = 2\n", &[trusted]);
    let tls = site.tls_with(None, |options| options.alpn = &[b"http/1.1"]);
    let ask = |source: [u8; 4], forwarded: &str| {
        let socket = dial_from(source, gateway.address("ws"));
        let mut device = Device::raw_over(socket, &tls).unwrap();
        let forwarded = if forwarded.is_empty() { String::new() } else { format!("X-Forwarded-For: {forwarded}\r\n") };
        device.send_plain(REQUEST.replace("Upgrade: ", &format!("{forwarded}Upgrade: ")).as_bytes());
        device
    };
    let connect = |id: u8| frame(0x82, &[&CONNECT[..CONNECT.len() - 1], &[id]].concat());
    let cases = [
        ([127, 0, 0, 1], "a", "198.51.100.7, 10.1.2.3", "198.51.100.7:0"),
        ([127, 0, 0, 1], "b", "192.0.2.66, 198.51.100.8:4711,10.0.0.1", "198.51.100.8:0"),
        ([127, 0, 0, 1], "c", "[2001:db8::7]:99", "[2001:db8::7]:0"),
        ([127, 0, 0, 1], "d", "10.1.1.1, 10.2.2.2", "10.1.1.1:0"),
    ];
    let mut devices = Vec::new();
    for (source, id, forwarded, peer) in cases {
        let mut device = ask(source, forwarded);
        expect(&mut device, GRANTED.as_bytes());
        device.send_plain(&connect(id.as_bytes()[0]));
        expect(&mut device, &[&[0x82, 4], CONNACK].concat());
        assert_eq!(gateway.device(id).unwrap()["peer"], peer, "{forwarded}");
        devices.push(device);
    }
    // Whoever is not trusted may write what it likes.
    let mut own = ask([127, 0, 0, 2], "198.51.100.7");
    expect(&mut own, GRANTED.as_bytes());
    own.send_plain(&connect(b'e'));
    expect(&mut own, &[&[0x82, 4], CONNACK].concat());
    assert!(gateway.device("e").unwrap()["peer"].as_str().unwrap().starts_with("127.0.0.2:"));
    // The proxy must say something, and an address.
    for forwarded in ["", "unknown", "198.51.100.7, somebody"] {
        let mut device = ask([127, 0, 0, 1], forwarded);
        let Some(Event::Data(answer)) = device.hear_within(SOON) else { panic!("no answer to {forwarded:?}") };
        assert!(answer.starts_with(b"HTTP/1.1 400 "), "{:?}", answer.escape_ascii().to_string());
        expect_end(&mut device);
    }
    gateway.expect_closed("protocol_error", 3);
    // It may look whether somebody is here.
    drop(dial_from([127, 0, 0, 1], gateway.address("ws")));
    gateway.expect_closed("proxy_check", 1);
    assert_eq!(gateway.post("/v1/blocks", &serde_json::json!({"network": "198.51.100.0/24"})).0, 204);
    gateway.expect_closed("denied", 2);
    let mut denied = ask([127, 0, 0, 1], "198.51.100.9");
    gateway.expect_closed("address_refused", 1);
    denied.send_plain(&connect(b'f'));
    while !matches!(denied.hear_within(SOON), Some(Event::CloseNotify | Event::Eof | Event::Reset)) {}
    assert!(gateway.device("f").is_none() && gateway.device("c").is_some() && gateway.device("d").is_some());
}

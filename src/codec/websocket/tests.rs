//! The opening handshake, and frames cut anywhere.

use std::net::IpAddr;

use super::*;

const REQUEST: &str = "GET /mqtt?x=1 HTTP/1.1\r\nHost: gateway:8884\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nOrigin: https://a.example\r\n\
    Sec-WebSocket-Protocol: mqttv3.1, mqtt\r\n\r\n";

#[test]
fn a_request_is_waited_for_to_its_last_byte_and_answered_as_rfc_6455_says() {
    for length in 0..REQUEST.len() {
        assert_eq!(decode_request(&REQUEST.as_bytes()[..length]), Ok(None), "cut to {length}");
    }
    let followed = format!("{REQUEST}\u{1}");
    let (request, length) = decode_request(followed.as_bytes()).unwrap().unwrap();
    assert_eq!((length, request.path(), request.host), (REQUEST.len(), "/mqtt", "gateway:8884"));
    assert_eq!(request.origin, Some("https://a.example"));
    assert!(request.offers("mqtt") && request.offers("mqttv3.1") && !request.offers("MQTT") && !request.offers("mq"));
    let mut answer = Vec::new();
    encode_accept(request.key, Some("mqtt"), &mut answer);
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\r\n\r\n"));
    // The example of 1.3.
    assert!(answer.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{answer}");
    assert!(answer.contains("\r\nSec-WebSocket-Protocol: mqtt\r\n"));
}

#[test]
fn the_last_address_that_is_no_trusted_proxy_s_is_the_client_s() {
    let is_trusted = |address: IpAddr| address.is_loopback() || address.to_string().starts_with("10.");
    let named = |lines: &[&str]| {
        let lines = lines.iter().flat_map(|line| ["x-forwarded-FOR: ", line, "\r\n"]).chain(["Host:"]);
        let request = REQUEST.replacen("Host:", &lines.collect::<String>(), 1);
        let (request, _) = decode_request(request.as_bytes()).unwrap().unwrap();
        request.forwarded_for(is_trusted).map(|address| address.to_string())
    };
    for (lines, expected) in [
        (&[][..], None),
        (&["192.0.2.1"], Some("192.0.2.1")),
        (&["spoofed, 192.0.2.1 ,10.0.0.1"], Some("192.0.2.1")),
        (&["192.0.2.9", "192.0.2.1", "10.0.0.1, 127.0.0.1"], Some("192.0.2.1")),
        (&["192.0.2.1:443, [::1]:80"], Some("192.0.2.1")),
        (&["[2001:db8::1]"], Some("2001:db8::1")),
        (&["2001:db8::1"], Some("2001:db8::1")),
        (&["::ffff:192.0.2.1, ::ffff:10.0.0.1"], Some("192.0.2.1")),
        (&["10.0.0.2, 10.0.0.1"], Some("10.0.0.2")),
        (&["unknown, 10.0.0.1"], None),
        (&["192.0.2.1, "], None),
        (&["192.0.2.1,,10.0.0.1"], None),
        (&["192.0.2.1:x"], None),
        (&["[192.0.2.1"], None),
    ] {
        assert_eq!(named(lines).as_deref(), expected, "{lines:?}");
    }
}

#[test]
fn names_of_headers_and_words_are_compared_without_case() {
    let request = REQUEST
        .replace("Upgrade: websocket", "UPGRADE:  h2c , WebSocket ")
        .replace("Sec-WebSocket-K", "sec-websocket-k");
    assert!(decode_request(request.as_bytes()).is_ok_and(|request| request.is_some()));
}

#[test]
fn what_is_no_wish_for_a_websocket_is_refused_by_name() {
    let refusal = |request: &str| decode_request(request.as_bytes()).unwrap_err();
    let without = |line: &str| {
        let lines: Vec<&str> = REQUEST.split_inclusive("\r\n").filter(|other| !other.starts_with(line)).collect();
        assert!(lines.concat().len() < REQUEST.len(), "{line}");
        refusal(&lines.concat())
    };
    assert!(matches!(without("Host"), Refusal::BadRequest(_)));
    assert!(matches!(without("Sec-WebSocket-Key"), Refusal::BadRequest(_)));
    for line in ["Upgrade", "Connection", "Sec-WebSocket-Version"] {
        assert_eq!(without(line), Refusal::UpgradeRequired, "{line}");
    }
    assert_eq!(refusal(&REQUEST.replace("Version: 13", "Version: 8")), Refusal::UpgradeRequired);
    assert_eq!(refusal("POST / HTTP/1.1\r\n"), Refusal::MethodNotAllowed);
    for (from, to) in [
        ("HTTP/1.1", "HTTP/1.0"),
        ("GET /mqtt?x=1 HTTP", "GET  /mqtt HTTP"),
        ("GET /mqtt?x=1", "GET http://gateway/mqtt"),
        ("Host: gateway:8884", "Host: one\r\nHost: two"),
        ("Host: gateway:8884", "Host: one\r\n two"),
        ("Host: gateway:8884", "Host : one"),
        ("Host: gateway:8884", "Host: one\u{7f}"),
        ("b25jZQ==", "b25jZ==="),
        ("Origin: https://a.example", "Content-Length: 5"),
        ("Origin: https://a.example", "Transfer-Encoding: chunked"),
    ] {
        let request = REQUEST.replace(from, to);
        assert_ne!(request, REQUEST);
        assert!(matches!(refusal(&request), Refusal::BadRequest(_)), "{to}");
    }
    assert!(matches!(refusal("\u{10}\u{0}\u{4}MQTT"), Refusal::BadRequest(_)));
    let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(HEAD_BYTES_MAX));
    assert_eq!(refusal(&endless), Refusal::TooLong);
    let many = REQUEST.replace("Origin: https://a.example\r\n", &"X: y\r\n".repeat(100));
    assert_eq!(refusal(&many), Refusal::TooLong);
    for refusal in [Refusal::NotFound, Refusal::Forbidden, Refusal::UpgradeRequired, Refusal::TooLong] {
        let mut answer = Vec::new();
        encode_refusal(refusal, &mut answer);
        assert!(answer.starts_with(b"HTTP/1.1 4") && answer.ends_with(b"Connection: close\r\n\r\n"));
    }
}

/// A client's frame.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xFA, 0x21, 0x3D];
    let mut out = vec![first];
    match payload.len() {
        short @ 0..126 => out.push(0x80 | short as u8),
        medium @ 126..65_536 => {
            out.push(0xFE);
            out.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            out.push(0xFF);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// What a stream holds, whichever way it came.
#[derive(Debug, Default, PartialEq)]
struct Heard {
    data: Vec<u8>,
    messages: usize,
    pings: Vec<Vec<u8>>,
    pongs: usize,
    close: Option<Close>,
}

/// Feeds the stream in these pieces. The decoder goes over to another process, as bytes, between any two of them.
fn hear(pieces: &[&[u8]]) -> Result<(Heard, Decoder), Error> {
    let (mut heard, mut decoder) = (Heard::default(), Decoder::default());
    for piece in pieces {
        let (mut bytes, mut at) = (piece.to_vec(), 0);
        while heard.close.is_none() {
            let (next, event) = decoder.next(&mut bytes, at)?;
            assert!(next >= at && next <= bytes.len());
            at = next;
            match event {
                None => break,
                Some(Event::Data { payload, is_last, .. }) => {
                    heard.data.extend_from_slice(&bytes[payload]);
                    heard.messages += usize::from(is_last);
                }
                Some(Event::Ping(payload)) => heard.pings.push(payload.as_slice().to_vec()),
                Some(Event::Pong) => heard.pongs += 1,
                Some(Event::Close(close)) => heard.close = Some(close),
            }
        }
        let mut image = Vec::new();
        decoder.encode(&mut image);
        assert_eq!(Decoder::decode(&image).as_ref(), Some(&decoder), "{image:02x?}");
    }
    Ok((heard, decoder))
}

#[test]
fn a_stream_of_frames_means_the_same_however_it_is_cut() {
    let stream = [
        frame(0x82, b"one"),
        frame(0x02, b"tw"),
        frame(0x89, b"still there?"),
        frame(0x00, b""),
        frame(0x80, b"o"),
        frame(0x8A, b""),
        frame(0x82, &[7; 126]),
        frame(0x82, b""),
        frame(0x89, b""),
        frame(0x88, &[0x03, 0xE8, b'b', b'y', b'e']),
        frame(0x82, b"unheard"),
    ]
    .concat();
    let (whole, _) = hear(&[&stream]).unwrap();
    assert_eq!(whole.data, [&b"onetwo"[..], &[7; 126]].concat());
    assert_eq!((whole.messages, whole.pongs, whole.close), (4, 1, Some(Close { code: Some(1000) })));
    assert_eq!(whole.pings, [&b"still there?"[..], b""]);
    for cut in 0..stream.len() {
        assert_eq!(hear(&[&stream[..cut], &stream[cut..]]).unwrap().0, whole, "cut at {cut}");
    }
    let bytes: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(hear(&bytes).unwrap().0, whole, "byte by byte");
}

#[test]
fn between_messages_there_is_nothing_to_keep() {
    assert!(hear(&[&frame(0x82, b"x")]).unwrap().1.is_idle());
    assert!(hear(&[&frame(0x89, b"")]).unwrap().1.is_idle());
    for unfinished in [&frame(0x02, b"x")[..], &frame(0x82, b"xy")[..7], &[0x82]] {
        assert!(!hear(&[unfinished]).unwrap().1.is_idle());
    }
}

#[test]
fn a_long_payload_goes_through_in_parts() {
    let long = vec![0x5A; 70_000];
    let stream = frame(0x82, &long);
    let pieces: Vec<&[u8]> = stream.chunks(1_000).collect();
    let (heard, decoder) = hear(&pieces).unwrap();
    assert_eq!((heard.data.len(), heard.messages, decoder.is_idle()), (70_000, 1, true));
    assert!(heard.data.iter().all(|&byte| byte == 0x5A));
}

#[test]
fn what_a_client_may_not_send_is_refused_with_its_first_wrong_byte() {
    let masked = |first: u8, rest: &[u8]| [&[first], rest, &[0; 200]].concat();
    let protocol = [
        ("unmasked", vec![0x82, 0x01, b'x']),
        ("RSV1", frame(0xC2, b"x")),
        ("RSV3", frame(0x92, b"x")),
        ("an unknown data opcode", frame(0x83, b"x")),
        ("an unknown control opcode", frame(0x8B, b"")),
        ("a continuation of nothing", frame(0x80, b"x")),
        ("a message within a message", [frame(0x02, b"x"), frame(0x82, b"y")].concat()),
        ("a fragmented control frame", frame(0x09, b"")),
        ("a long control frame", masked(0x89, &[0xFE, 0, 126])),
        ("16 bits where 7 do", masked(0x82, &[0xFE, 0, 125])),
        ("64 bits where 16 do", masked(0x82, &[0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF])),
        ("the highest bit of a length", masked(0x82, &[0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0])),
        ("CLOSE with half a code", frame(0x88, &[3])),
        ("CLOSE with 1005", frame(0x88, &[0x03, 0xED])),
        ("CLOSE with 999", frame(0x88, &[0x03, 0xE7])),
    ];
    for (what, bytes) in protocol {
        assert_eq!(hear(&[&bytes]).unwrap_err().code, 1002, "{what}");
    }
    assert_eq!(hear(&[&frame(0x88, &[0x03, 0xE8, 0xFF])]).unwrap_err().code, 1007);
}

#[test]
fn our_frames_are_what_the_standard_says() {
    for (length, header) in [
        (0, &[0x82, 0][..]),
        (125, &[0x82, 125]),
        (126, &[0x82, 126, 0, 126]),
        (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
    ] {
        let mut out = Vec::new();
        encode_header(Kind::Binary, length, &mut out);
        assert_eq!(out, header);
    }
    let mut out = Vec::new();
    encode_close(Some(1001), &mut out);
    encode_close(None, &mut out);
    let Ok((1.., Some(Event::Ping(ping)))) = Decoder::default().next(&mut frame(0x89, b"hi"), 0) else { panic!() };
    encode_pong(&ping, &mut out);
    assert_eq!(out, [0x88, 2, 0x03, 0xE9, 0x88, 0, 0x8A, 2, b'h', b'i']);
}

#[test]
fn no_bytes_make_it_panic_and_no_image_is_trusted() {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..20_000 {
        let mut bytes: Vec<u8> = (0..random.usize(..40)).map(|_| random.u8(..)).collect();
        if random.bool() {
            let mut stream = [frame(0x02, b"abc"), frame(0x89, b"ping"), frame(0x80, &[1; 130])].concat();
            let place = random.usize(..stream.len());
            stream[place] = random.u8(..);
            bytes = stream;
        }
        let cut = random.usize(..=bytes.len());
        let _ = hear(&[&bytes[..cut], &bytes[cut..]]);
        let _ = decode_request(&bytes);
        if let Some(decoder) = Decoder::decode(&bytes[..bytes.len().min(20)]) {
            let mut image = Vec::new();
            decoder.encode(&mut image);
            assert_eq!(image, bytes[..bytes.len().min(20)]);
        }
    }
}

//! Round trips, truncation, every error by name, and the examples of docs/PROTOCOL.md.

use super::*;

const EVERY_FRAME: &[Frame] = &[
    Frame::Hello(Hello { heartbeat_ms: 30_000, id: "meter-0042", token: b"opensesame" }),
    Frame::Hello(Hello { heartbeat_ms: 0, id: "Zähler 7", token: b"" }),
    Frame::Welcome(Welcome { heartbeat_ms: 60_000, timeout_ms: 10_000, retries: 2, body_max: 16_384 }),
    Frame::Ping(&[]),
    Frame::Ping(&[0, 1, 2, 3, 4, 5, 6, 7]),
    Frame::Pong(&[0xff]),
    Frame::Message(Message { id: 0, topic: "", payload: b"" }),
    Frame::Message(Message { id: u32::MAX, topic: "readings/power", payload: &[0xff, 0, 10] }),
    Frame::Ack(7),
    Frame::Close(Close { code: CloseCode::GOING_AWAY, retry_after_ms: 5_000, reason: "upgrade\n" }),
    Frame::Close(Close { code: CloseCode(250), retry_after_ms: 0, reason: "" }),
];

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut out = Vec::new();
    frame.encode(&mut out);
    out
}

/// A frame of `kind` around any body.
fn framed(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind, length[0], length[1]], body].concat()
}

#[track_caller]
fn refused(bytes: &[u8], error: Error) {
    assert_eq!(decode(bytes, BODY_MAX), Err(error));
}

#[test]
fn every_frame_comes_back_as_it_was_sent() {
    for frame in EVERY_FRAME {
        // Whatever stands in the buffer before it, and whatever comes after it on the wire.
        let mut bytes = vec![0xaa; 5];
        frame.encode(&mut bytes);
        let length = bytes.len() - 5;
        bytes.extend([0x07; 9]);
        assert_eq!(decode(&bytes[5..], BODY_MAX), Ok(Some((*frame, length))));
    }
}

#[test]
fn a_frame_cut_anywhere_asks_for_more() {
    for frame in EVERY_FRAME {
        let bytes = encoded(frame);
        for cut in 0..bytes.len() {
            assert_eq!(decode(&bytes[..cut], BODY_MAX), Ok(None), "{} cut at {cut}", frame.name());
        }
    }
}

#[test]
fn fields_at_their_bounds_are_taken() {
    let (id, reason, topic) = ("i".repeat(ID_MAX), "r".repeat(REASON_MAX), "t".repeat(TOPIC_MAX));
    let hello = Frame::Hello(Hello { heartbeat_ms: u32::MAX, id: &id, token: &[0; TOKEN_MAX] });
    let payload = vec![1; BODY_MAX - 5 - TOPIC_MAX];
    let message = Frame::Message(Message { id: 1, topic: &topic, payload: &payload });
    let close = Frame::Close(Close { code: CloseCode::NORMAL, retry_after_ms: u32::MAX, reason: &reason });
    assert_eq!(encoded(&hello).len(), HEADER_BYTES + HELLO_BODY_MAX);
    for frame in [hello, message, close] {
        let bytes = encoded(&frame);
        assert_eq!(decode(&bytes, BODY_MAX), Ok(Some((frame, bytes.len()))));
    }
}

#[test]
fn an_unknown_type_is_refused_on_its_first_byte() {
    for kind in (0..=u8::MAX).filter(|kind| !(1..=7).contains(kind)) {
        refused(&[kind], Error::UnknownType(kind));
    }
}

#[test]
fn a_length_beyond_the_bound_is_refused_with_the_header() {
    let header = [0x05, 0x01, 0x01];
    assert_eq!(decode(&header, 257), Ok(None));
    assert_eq!(decode(&header, 256), Err(Error::TooLong { frame: "MESSAGE", length: 257, body_max: 256 }));
}

#[test]
fn a_length_that_the_type_cannot_have_is_refused_with_the_header() {
    for (kind, length) in [(1, 0), (2, 0), (3, 9), (4, 9), (5, 4), (6, 3), (6, 5), (7, 4), (7, 261)] {
        let frame = Type::from_byte(kind).unwrap().name();
        let [high, low] = (length as u16).to_be_bytes();
        refused(&[kind, high, low], Error::BodyLength { frame, length });
    }
}

#[test]
fn another_version_is_told_from_a_broken_frame() {
    refused(&framed(1, &[2]), Error::Version { frame: "HELLO", version: 2 });
    refused(&framed(2, &[0; 40]), Error::Version { frame: "WELCOME", version: 0 });
}

#[test]
fn bodies_that_end_early_or_late_are_refused() {
    let hello = [&[1, 0, 0, 0, 0, 2][..], b"id", &[0, 1], b"t"].concat();
    assert!(decode(&framed(1, &hello), BODY_MAX).is_ok());
    for cut in 1..hello.len() {
        refused(&framed(1, &hello[..cut]), Error::Short { frame: "HELLO" });
    }
    refused(&framed(1, &[&hello[..], &[0, 0]].concat()), Error::Trailing { frame: "HELLO", bytes: 2 });

    let welcome = &encoded(&EVERY_FRAME[2])[HEADER_BYTES..];
    for cut in 1..welcome.len() {
        refused(&framed(2, &welcome[..cut]), Error::Short { frame: "WELCOME" });
    }
    refused(&framed(2, &[welcome, &[0]].concat()), Error::Trailing { frame: "WELCOME", bytes: 1 });

    // A topic longer than what is there.
    refused(&framed(5, &[0, 0, 0, 1, 4, b'a', b'b', b'c']), Error::Short { frame: "MESSAGE" });
}

#[test]
fn names_are_utf8_without_control_characters() {
    let hello = |id: &[u8]| framed(1, &[&[1, 0, 0, 0, 0, id.len() as u8], id, &[0, 0]].concat());
    let message = |topic: &[u8]| framed(5, &[&[0, 0, 0, 0, topic.len() as u8], topic].concat());
    refused(&hello(b"caf\xe9"), Error::Text { frame: "HELLO", field: "id" });
    refused(&message(b"\xff"), Error::Text { frame: "MESSAGE", field: "topic" });
    refused(&framed(7, &[0, 0, 0, 0, 0, 0xc0]), Error::Text { frame: "CLOSE", field: "reason" });
    for control in ["\0", "a\nb", "\x7f", "\u{85}"] {
        refused(&hello(control.as_bytes()), Error::ControlCharacter { frame: "HELLO", field: "id" });
        refused(&message(control.as_bytes()), Error::ControlCharacter { frame: "MESSAGE", field: "topic" });
    }
}

#[test]
fn fields_out_of_bounds_are_named() {
    let hello = |id: usize, token: usize| {
        let [high, low] = (token as u16).to_be_bytes();
        framed(1, &[&[1, 0, 0, 0, 0, id as u8], &*vec![b'x'; id], &[high, low], &*vec![0; token]].concat())
    };
    refused(&hello(0, 0), Error::OutOfBounds { frame: "HELLO", field: "id" });
    refused(&hello(ID_MAX + 1, 0), Error::OutOfBounds { frame: "HELLO", field: "id" });
    refused(&hello(1, TOKEN_MAX + 1), Error::OutOfBounds { frame: "HELLO", field: "token" });
    refused(&framed(6, &[0; 4]), Error::OutOfBounds { frame: "ACK", field: "id" });
}

#[test]
fn any_bytes_decode_to_a_frame_that_encodes_to_the_same_bytes() {
    let mut random = fastrand::Rng::with_seed(3);
    let mut frames = 0;
    for _ in 0..50_000 {
        let mut bytes = encoded(random.choice(EVERY_FRAME).unwrap());
        for _ in 0..random.usize(0..4) {
            let place = random.usize(0..bytes.len());
            bytes[place] = random.u8(..);
        }
        if let Ok(Some((frame, length))) = decode(&bytes, BODY_MAX) {
            assert_eq!(encoded(&frame), bytes[..length]);
            frames += 1;
        }
    }
    assert!((10_000..50_000).contains(&frames), "{frames}: the test looks at one side only");
}

#[test]
#[should_panic(expected = "too long")]
fn a_body_of_our_own_beyond_the_length_field_panics() {
    encoded(&Frame::Message(Message { id: 0, topic: "", payload: &vec![0; BODY_MAX] }));
}

/// The worked examples of the page: title and bytes of each block fenced as `hex FRAME`. What follows a `|` explains.
fn examples(page: &str) -> Vec<(&str, Vec<u8>)> {
    let mut examples = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some(title) = line.trim_start().strip_prefix("```hex ") else { continue };
        let hex: String = lines
            .by_ref()
            .take_while(|line| !line.trim_start().starts_with("```"))
            .flat_map(|line| line.split('|').next().unwrap().split_whitespace())
            .collect();
        let digits: Vec<u8> = hex.chars().map(|digit| digit.to_digit(16).expect("a hex digit") as u8).collect();
        examples.push((title, digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()));
    }
    examples
}

#[test]
fn the_examples_of_the_protocol_page_are_right() {
    let expected = [
        Frame::Hello(Hello { heartbeat_ms: 30_000, id: "meter-0042", token: b"opensesame" }),
        Frame::Welcome(Welcome { heartbeat_ms: 30_000, timeout_ms: 10_000, retries: 2, body_max: 16_384 }),
        Frame::Message(Message { id: 1, topic: "power", payload: b"{\"w\":230}" }),
        Frame::Ack(1),
        Frame::Ping(&[0, 0, 0, 5]),
        Frame::Pong(&[0, 0, 0, 5]),
        Frame::Close(Close { code: CloseCode::GOING_AWAY, retry_after_ms: 5_000, reason: "upgrade" }),
        Frame::Hello(Hello { heartbeat_ms: 0, id: "a", token: b"" }),
        Frame::Message(Message { id: 9, topic: "set/relay", payload: b"on" }),
        Frame::Ack(9),
    ];
    let examples = examples(include_str!("../../../docs/PROTOCOL.md"));
    assert_eq!(examples.len(), expected.len());
    for ((title, bytes), frame) in examples.iter().zip(expected) {
        assert_eq!(*title, frame.name());
        assert_eq!(decode(bytes, BODY_MAX), Ok(Some((frame, bytes.len()))), "{title}");
        assert_eq!(encoded(&frame), *bytes, "{title}");
    }
}

#[test]
fn the_protocol_page_lists_every_close_code() {
    let page = include_str!("../../../docs/PROTOCOL.md");
    for code in (0..=u8::MAX).map(CloseCode).filter(|code| code.name() != "unknown") {
        let row = format!("| {} | `{}` |", code.0, code.name());
        assert!(page.contains(&row), "docs/PROTOCOL.md has no row {row}");
    }
}

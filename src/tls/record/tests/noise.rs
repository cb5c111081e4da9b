//! Spoiled and random bytes: refused by name, never a panic.

use super::*;

#[test]
fn a_record_with_any_byte_spoiled_is_refused() {
    for &suite in Suite::ALL {
        let (mut client, _) = pair(suite);
        let bytes = data(&mut client, b"forty bytes of application data, or so..");
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut spoiled = bytes.clone();
                spoiled[at] ^= flip;
                let (_, mut server) = pair(suite);
                let mut out = Vec::new();
                let error = server.burst().open(&mut spoiled, &mut out).expect_err("spoiled");
                let expected: &[_] = match at {
                    0 => &[RecordError::UnexpectedMessage, RecordError::BadMac],
                    1 | 2 if suite.version() == Version::Tls12 => &[RecordError::Version],
                    3 | 4 => &[RecordError::Decode, RecordError::Overflow],
                    _ => &[RecordError::BadMac],
                };
                assert!(expected.contains(&error), "{suite:?}: byte {at}: {error:?}");
                assert!(!out.is_empty());
                assert_dead(&mut server);
            }
        }
    }
}

#[test]
fn replayed_dropped_and_reordered_records_are_refused() {
    for &suite in Suite::ALL {
        let (mut client, mut server) = pair(suite);
        let (first, second) = (data(&mut client, b"first"), data(&mut client, b"second"));
        let (_, mut other) = pair(suite);
        assert_eq!(open_into(&mut other, &second, &mut Vec::new()).1, Some(RecordError::BadMac));
        assert_eq!(open(&mut server, &first).len(), 1);
        assert_eq!(open_into(&mut server, &first, &mut Vec::new()).1, Some(RecordError::BadMac));
    }
}

#[test]
fn a_record_of_the_other_direction_is_refused() {
    for &suite in Suite::ALL {
        let (mut client, _) = pair(suite);
        let echoed = data(&mut client, b"mirror");
        assert_eq!(open_into(&mut client, &echoed, &mut Vec::new()).1, Some(RecordError::BadMac));
    }
}

#[test]
fn short_records_are_refused() {
    for &suite in Suite::ALL {
        for length in 0..40 {
            let (mut client, mut server) = pair(suite);
            let bytes = [&[23, 3, 3, 0, length as u8], &vec![0; length][..]].concat();
            assert_refused(&mut client, &mut server, &bytes, RecordError::BadMac);
        }
    }
}

#[test]
fn random_bytes_are_refused() {
    let mut random = fastrand::Rng::with_seed(8446);
    for round in 0..20_000 {
        let suite = Suite::ALL[round % Suite::ALL.len()];
        let (_, mut server) = pair(suite);
        let mut bytes = vec![0; random.usize(0..100)];
        random.fill(&mut bytes);
        if random.bool() && bytes.len() >= HEADER_LEN {
            let length = (bytes.len() - HEADER_LEN) as u8;
            bytes[..HEADER_LEN].copy_from_slice(&[random.u8(20..25), 3, 3, 0, length]);
        }
        let mut out = Vec::new();
        assert!(server.burst().open(&mut bytes, &mut out).is_err());
        assert_dead(&mut server);
    }
}

#[test]
fn random_authentic_content_never_panics() {
    let mut random = fastrand::Rng::with_seed(5246);
    for round in 0..20_000 {
        let suite = Suite::ALL[round % Suite::ALL.len()];
        let (mut client, mut server) = pair(suite);
        let kind = [ContentType::Alert, ContentType::Handshake, ContentType::ApplicationData][random.usize(0..3)];
        let mut content = vec![0; random.usize(0..12)];
        content.fill_with(|| [0, 1, 2, 4, 24, random.u8(..)][random.usize(0..6)]);
        let (from, to) = if random.bool() { (&mut client, &mut server) } else { (&mut server, &mut client) };
        let bytes = record(from, kind, &content);
        let mut out = Vec::new();
        match open_into(to, &bytes, &mut out) {
            (_, Some(_)) => assert_dead(to),
            (events, None) => assert_eq!(events.len(), 1),
        }
        // Whatever it answers is a record that the other end can read.
        open_into(from, &out, &mut Vec::new());
    }
}

#[test]
fn the_header_is_judged_byte_by_byte() {
    use FramingError::{Empty, NotTls, Overflow, UnexpectedType, Version as WrongVersion};
    let protected13 = Stage::Protected(Version::Tls13);
    let protected12 = Stage::Protected(Version::Tls12);
    for (bytes, stage, expected) in [
        // A byte is enough to know that it is not TLS.
        (&b""[..], Stage::First, Ok(None)),
        (b"G", Stage::First, Err(NotTls)),
        (b"GET / HTTP/1.1\r\n", Stage::First, Err(NotTls)),
        (b"SSH-2.0-", Stage::First, Err(NotTls)),
        (&[0x10, 0x2f], Stage::First, Err(NotTls)),
        (&[0x80, 0x2e, 1], Stage::First, Err(NotTls)),
        (&[22, 2], Stage::First, Err(NotTls)),
        (&[20, 3, 3], Stage::First, Err(NotTls)),
        (&[23], Stage::First, Err(NotTls)),
        (&[22], Stage::First, Ok(None)),
        (&[22, 3, 1, 0], Stage::First, Ok(None)),
        (&[22, 3, 1, 0, 1], Stage::First, Ok(None)),
        (&[22, 3, 1, 0, 1, 1], Stage::First, Ok(Some(6))),
        (&[22, 3, 1, 0, 1, 1, 22], Stage::First, Ok(Some(6))),
        (&[22, 3, 1, 0, 0], Stage::First, Err(Empty)),
        (&[22, 3, 1, 0x40, 0], Stage::First, Ok(None)),
        (&[22, 3, 1, 0x40, 1], Stage::First, Err(Overflow)),
        (&[21, 3, 3, 0, 2, 2, 40], Stage::First, Ok(Some(7))),
        (&[24], Stage::Handshake, Err(UnexpectedType(24))),
        (&[22, 4], Stage::Handshake, Err(WrongVersion)),
        (&[20, 3, 3, 0, 1, 1], Stage::Handshake, Ok(Some(6))),
        (&[20, 3, 3, 0, 0], Stage::Handshake, Err(Empty)),
        (&[22, 3, 3, 0x40, 1], Stage::Handshake, Err(Overflow)),
        (&[23, 3, 3, 0x41, 0], Stage::Handshake, Ok(None)),
        (&[23, 3, 3, 0x41, 1], Stage::Handshake, Err(Overflow)),
        (&[22], protected13, Err(UnexpectedType(22))),
        (&[23, 0], protected13, Ok(None)),
        (&[23, 3, 3, 0x41, 1], protected13, Err(Overflow)),
        (&[23, 3, 3, 0, 0], protected13, Ok(Some(5))),
        (&[20], protected12, Err(UnexpectedType(20))),
        (&[23, 2], protected12, Err(WrongVersion)),
        (&[23, 3, 1], protected12, Err(WrongVersion)),
        (&[21, 3, 3, 0x48, 0], protected12, Ok(None)),
        (&[21, 3, 3, 0x48, 1], protected12, Err(Overflow)),
    ] {
        assert_eq!(next_record(bytes, stage), expected, "{bytes:?} {stage:?}");
    }
    assert_eq!(NotTls.alert(), None);
}

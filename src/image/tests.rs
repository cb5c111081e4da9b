//! Every form in bytes: golden files, cut at every byte, and with each byte altered.

use std::fmt::Write as _;

use super::*;

/// A file of `golden/`: the bytes as hexadecimal digits, in lines.
macro_rules! golden {
    ($name:literal) => {
        (concat!("src/image/golden/", $name), include_str!(concat!("golden/", $name)))
    };
}

fn publication(topic: &str, payload: &'static [u8]) -> Publication {
    Publication {
        topic: topic.into(),
        payload: Bytes::from_static(payload),
        qos: QoS::ExactlyOnce,
        retain: true,
        // Content Type "text/x", User Property "a": "b".
        properties: (*b"\x03\0\x06text/x\x26\0\x01a\0\x01b").into(),
        expires_ms: Some(1_800_000_000_123),
    }
}

fn head() -> Head {
    Head {
        key: SessionKey(0x0102_0304_0506_0708),
        name: "meter-17".into(),
        profile: Profile {
            version: 5,
            listener: "mqtt".into(),
            keep_alive_s: 1_200,
            expiry_s: 86_400,
            receive_maximum: 20,
            packet_maximum: 65_536,
            alias_maximum: 16,
        },
        away_since_ms: Some(1_700_000_000_000),
        last_packet: 513,
        will: Some(Box::new(Will {
            publication: Publication { expires_ms: None, ..publication("gone/meter-17", b"lost") },
            expiry_s: Some(60),
            delay_s: 300,
        })),
    }
}

fn message(number: u64, packet: Option<u16>) -> Message {
    let publication = Arc::new(publication("site/4/set", b"on"));
    let identifiers = vec![7, 268_435_455];
    Message { number, packet, qos: QoS::AtLeastOnce, retain: false, identifiers, group: None, publication, origin: 5 }
}

fn group_message(number: u64) -> Message {
    Message { group: Some("$share/workers/site/+/set".into()), ..message(number, None) }
}

fn session() -> Session {
    let subscription = |filter: &str, options, identifier| Subscription { filter: filter.into(), options, identifier };
    Session {
        head: head(),
        subscriptions: vec![subscription("site/+/set", 0x2E, 7), subscription("$share/workers/jobs/#", 1, 0)],
        messages: vec![message(4, Some(512)), group_message(6)],
        outstanding: vec![Outstanding { number: 3, packet: 511 }],
        received: vec![Received { packet: 1, origin: 0 }, Received { packet: 65_535, origin: 9 }],
    }
}

/// As it could be before messages knew their groups.
fn session_of_version_1() -> Session {
    Session { messages: vec![message(4, Some(512)), message(6, None)], ..session() }
}

fn retained(publication: Publication, stamp: Stamp) -> Change {
    Change::Retained { publication: Arc::new(publication), stamp }
}

/// One of each.
fn changes() -> Vec<Change> {
    let of_fleet = retained(publication("state/18", b"{}"), Stamp { clock: 1 << 60, node: 7 });
    changes_of_version_2().into_iter().chain([of_fleet]).collect()
}

/// As they could be before gateways shared retained messages.
fn changes_of_version_2() -> Vec<Change> {
    let session = SessionKey(9);
    let grouped = Change::Queued { session, message: Box::new(group_message(13)) };
    changes_of_version_1().into_iter().chain([grouped]).collect()
}

fn changes_of_version_1() -> Vec<Change> {
    let session = SessionKey(9);
    vec![
        Change::Kept(Box::new(Head { away_since_ms: None, will: None, ..head() })),
        Change::Ended { session },
        Change::Subscribed { session, subscription: Subscription { filter: "a/#".into(), options: 2, identifier: 1 } },
        Change::Unsubscribed { session, filter: "a/#".into() },
        Change::Queued { session, message: Box::new(message(12, None)) },
        Change::Sent { session, number: 12, packet: 3 },
        Change::Released { session, number: 12 },
        Change::Done { session, number: 12 },
        Change::Received { session, received: Received { packet: 8, origin: 9 } },
        Change::Completed { session, packet: 8 },
        retained(publication("state/17", b"{}"), Stamp::NONE),
        Change::Unretained { topic: "state/17".into() },
    ]
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes);
    bytes
}

/// The lines of 32 bytes each.
fn digits(bytes: &[u8]) -> String {
    let mut digits = String::new();
    for line in bytes.chunks(32) {
        for byte in line {
            write!(digits, "{byte:02x}").unwrap();
        }
        digits.push('\n');
    }
    digits
}

fn bytes_of(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// Bytes that were released are read for ever, and written until there is a newer version.
#[test]
fn bytes_of_each_version_are_what_they_were() {
    let sum: Vec<u8> = changes().iter().flat_map(|change| encoded(|out| change.encode(out))).collect();
    for ((file, golden), bytes) in [
        (golden!("publication-1.hex"), encoded(|out| publication("site/4/set", b"on").encode(out))),
        (golden!("head-1.hex"), encoded(|out| head().encode(out))),
        (golden!("session-2.hex"), encoded(|out| session().encode(out))),
        (golden!("changes-3.hex"), sum),
    ] {
        assert_eq!(golden, digits(&bytes), "{file}");
    }
    assert_eq!(Publication::decode(&bytes_of(golden!("publication-1.hex").1)), Ok(publication("site/4/set", b"on")));
    assert_eq!(Head::decode(&bytes_of(golden!("head-1.hex").1)), Ok(head()));
    assert_eq!(Session::decode(&bytes_of(golden!("session-1.hex").1)), Ok(session_of_version_1()));
    assert_eq!(Session::decode(&bytes_of(golden!("session-2.hex").1)), Ok(session()));
    // Those of each version stand one behind the other; but for the tag they are what is written today.
    for (version, golden, changes) in [
        (1, golden!("changes-1.hex").1, changes_of_version_1()),
        (2, golden!("changes-2.hex").1, changes_of_version_2()),
    ] {
        let mut golden = &bytes_of(golden)[..];
        for change in changes {
            let length = encoded(|out| change.encode(out)).len();
            let (one, rest) = golden.split_at(length);
            assert_eq!((one[1], Change::decode(one)), (version, Ok(change)));
            golden = rest;
        }
        assert!(golden.is_empty());
    }
}

#[test]
fn changes_are_decoded_as_they_were_encoded() {
    for change in changes() {
        assert_eq!(Change::decode(&encoded(|out| change.encode(out))), Ok(change));
    }
}

#[test]
fn bytes_cut_anywhere_are_refused() {
    let bytes = encoded(|out| session().encode(out));
    for length in 0..bytes.len() {
        assert!(Session::decode(&bytes[..length]).is_err(), "{length}");
    }
    let longer: Vec<u8> = bytes.iter().copied().chain([0]).collect();
    assert_eq!(Session::decode(&longer), Err(ImageError::Form(WireError::Excess)));
    let newer: Vec<u8> = [bytes[0], 3].into_iter().chain(bytes[2..].iter().copied()).collect();
    assert_eq!(Session::decode(&newer), Err(ImageError::Form(WireError::Version(3))));
}

/// Each byte as every other: what is taken is encoded to the same bytes again.
#[test]
fn altered_bytes_have_one_meaning_or_none() {
    let (session, head) = (encoded(|out| session().encode(out)), encoded(|out| head().encode(out)));
    let mut taken = 0;
    let mut count = |again: &[u8], bytes: &[u8]| {
        // The version is that of today.
        assert_eq!(again[2..], bytes[2..]);
        taken += 1;
    };
    let alter = |original: &[u8], look: &mut dyn FnMut(&[u8])| {
        for place in 0..original.len() {
            for value in 0..=255 {
                let mut bytes = original.to_vec();
                bytes[place] = value;
                look(&bytes);
            }
        }
    };
    alter(&session, &mut |bytes| {
        if let Ok(found) = Session::decode(bytes) {
            count(&encoded(|out| found.encode(out)), bytes);
        }
    });
    alter(&head, &mut |bytes| {
        if let Ok(found) = Head::decode(bytes) {
            count(&encoded(|out| found.encode(out)), bytes);
        }
    });
    for change in changes() {
        alter(&encoded(|out| change.encode(out)), &mut |bytes| {
            if let Ok(found) = Change::decode(bytes) {
                count(&encoded(|out| found.encode(out)), bytes);
            }
        });
    }
    assert!(taken > 1_000, "{taken}: payloads, numbers and times may be anything");
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |change: Change| {
        let bytes = encoded(|out| change.encode(out));
        assert!(matches!(Change::decode(&bytes), Err(ImageError::Content(_))), "{change:?}");
    };
    let session = SessionKey(9);
    let subscribed = |filter: &str, options| Change::Subscribed {
        session,
        subscription: Subscription { filter: filter.into(), options, identifier: 0 },
    };
    refused(subscribed("a/#/b", 1));
    refused(subscribed("$share/+/b", 1));
    refused(subscribed("a", 3));
    refused(subscribed("a", 0x40));
    let grouped = |group: &str| Message { group: Some(group.into()), ..message(1, None) };
    refused(Change::Queued { session, message: Box::new(grouped("a/#")) });
    refused(Change::Queued { session, message: Box::new(grouped("$share/+/a")) });
    refused(Change::Sent { session, number: 1, packet: 0 });
    refused(Change::Received { session, received: Received { packet: 0, origin: 9 } });
    refused(Change::Unretained { topic: "a/+".into() });
    refused(retained(publication("a", b""), Stamp::NONE));
    refused(retained(publication("a", b""), Stamp { clock: 2, node: 1 }));
    // Message Expiry Interval is reckoned anew each time, and never goes along.
    let stale = Publication { properties: (*b"\x02\0\0\0\x01").into(), ..publication("a", b"x") };
    refused(retained(stale, Stamp::NONE));
    refused(Change::Kept(Box::new(Head { name: "".into(), ..head() })));
    refused(Change::Kept(Box::new(Head { profile: Profile { version: 6, ..head().profile }, ..head() })));
    let disordered = Session { messages: vec![message(6, None), message(6, None)], ..session_without_messages() };
    assert!(matches!(Session::decode(&encoded(|out| disordered.encode(out))), Err(ImageError::Content(_))));
}

fn session_without_messages() -> Session {
    Session { messages: Vec::new(), ..session() }
}

#[test]
fn sessions_end_in_real_time() {
    assert_eq!(head().expires_ms(), Some(1_700_086_400_000));
    assert_eq!(Head { away_since_ms: None, ..head() }.expires_ms(), None);
    let for_ever = Profile { expiry_s: u32::MAX, ..head().profile };
    assert_eq!(Head { profile: for_ever, ..head() }.expires_ms(), None);
    let publication = publication("a", b"x");
    assert!(!publication.is_expired(1_800_000_000_122));
    assert!(publication.is_expired(1_800_000_000_123));
}

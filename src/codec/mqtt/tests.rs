//! Packets there and back, cut, and broken.

use super::*;

/// What a random packet borrows from.
#[derive(Default)]
struct Parts {
    properties: Vec<PropertiesBuilder>,
    filters: Vec<u8>,
    codes: Vec<u8>,
    texts: Vec<String>,
    payload: Vec<u8>,
}

const TEXTS: &[&str] = &["", "a", "devices/meter-1/up", "ä/ö", "x y", "\u{feff}", "$SYS/x", "0123456789"];
const TOPICS: &[&str] = &["a", "devices/meter-1/up", "/", "ä/ö", "$z"];
const FILTERS: &[&str] = &["a", "+/b", "#", "$share/g/a/#", "$share", "/"];

fn pick<'a>(random: &mut fastrand::Rng, from: &[&'a str]) -> &'a str {
    from[random.usize(..from.len())]
}

/// Random properties that may stand in this place.
fn properties(random: &mut fastrand::Rng, place: properties::In) -> PropertiesBuilder {
    let mut builder = PropertiesBuilder::default();
    let candidates = [
        Property::PayloadFormatIndicator(random.u8(..2)),
        Property::MessageExpiryInterval(random.u32(..)),
        Property::ContentType(pick(random, TEXTS)),
        Property::ResponseTopic(pick(random, TOPICS)),
        Property::CorrelationData(b"\x00\xff"),
        Property::SubscriptionIdentifier(random.u32(1..REMAINING_MAX as u32)),
        Property::SessionExpiryInterval(random.u32(..)),
        Property::AssignedClientIdentifier(pick(random, TEXTS)),
        Property::ServerKeepAlive(random.u16(..)),
        Property::AuthenticationMethod(pick(random, TEXTS)),
        Property::AuthenticationData(b"data"),
        Property::RequestProblemInformation(random.u8(..2)),
        Property::WillDelayInterval(random.u32(..)),
        Property::RequestResponseInformation(random.u8(..2)),
        Property::ResponseInformation(pick(random, TEXTS)),
        Property::ServerReference(pick(random, TEXTS)),
        Property::ReasonString(pick(random, TEXTS)),
        Property::ReceiveMaximum(random.u16(1..)),
        Property::TopicAliasMaximum(random.u16(..)),
        Property::TopicAlias(random.u16(1..)),
        Property::MaximumQoS(random.u8(..2)),
        Property::RetainAvailable(random.u8(..2)),
        Property::UserProperty((pick(random, TEXTS), pick(random, TEXTS))),
        Property::MaximumPacketSize(random.u32(1..)),
        Property::WildcardSubscriptionAvailable(random.u8(..2)),
        Property::SubscriptionIdentifierAvailable(random.u8(..2)),
        Property::SharedSubscriptionAvailable(random.u8(..2)),
        Property::UserProperty((pick(random, TEXTS), pick(random, TEXTS))),
    ];
    let mut has_method = false;
    for property in &candidates {
        // Data without a method is no authentication.
        let is_allowed = has_method || !matches!(property, Property::AuthenticationData(_));
        if random.u8(..3) == 0 && property.may_stand(place) && is_allowed {
            has_method |= matches!(property, Property::AuthenticationMethod(_));
            builder.push(property);
        }
    }
    builder
}

fn parts(random: &mut fastrand::Rng, version: Version) -> Parts {
    use properties::In;
    let places = [
        In::CONNECT,
        In::WILL,
        In::CONNACK,
        In::PUBLISH,
        In::ACK,
        In::SUBSCRIBE,
        In::SUBACK,
        In::UNSUBSCRIBE,
        In::DISCONNECT,
        In::AUTH,
    ];
    let mut parts = Parts::default();
    for place in places {
        let made = if version == Version::V5 { properties(random, place) } else { PropertiesBuilder::default() };
        parts.properties.push(made);
    }
    for _ in 0..random.usize(1..4) {
        let filter = pick(random, FILTERS);
        let qos = QoS::try_from(random.u8(..3)).unwrap();
        let mut options = Options::plain(qos);
        if version == Version::V5 {
            options.retain_as_published = random.bool();
            options.retain_handling = random.u8(..3);
            options.no_local = random.bool() && !filter.starts_with("$share");
        }
        Subscribe::put_filter(filter, options, &mut parts.filters);
        parts.codes.push(random.u8(..3));
    }
    parts.texts = (0..4).map(|_| pick(random, TEXTS).to_owned()).collect();
    parts.payload = (0..random.usize(..300)).map(|_| random.u8(..)).collect();
    parts
}

/// Every packet that `parts` can make.
fn packets<'a>(
    random: &mut fastrand::Rng,
    version: Version,
    parts: &'a Parts,
    only: &'a mut Vec<u8>,
) -> Vec<Packet<'a>> {
    let properties = |place: usize| parts.properties[place].properties();
    let packet_id = random.u16(1..);
    let qos = QoS::try_from(random.u8(..3)).unwrap();
    let mut reason = |table: reason::Table| {
        let codes: Vec<u8> = (0..=u8::MAX).filter(|&code| table.check(code).is_ok()).collect();
        if version == Version::V5 { Reason(codes[random.usize(..codes.len())]) } else { Reason::SUCCESS }
    };
    let mut ack = |table| Ack { packet_id, reason: reason(table), properties: properties(4) };
    let acks = [
        Packet::Puback(ack(reason::Table::PUBACK)),
        Packet::Pubrec(ack(reason::Table::PUBREC)),
        Packet::Pubrel(ack(reason::Table::PUBREL)),
        Packet::Pubcomp(ack(reason::Table::PUBCOMP)),
    ];
    let disconnect = Disconnect { reason: reason(reason::Table::DISCONNECT), properties: properties(8) };
    let auth = Auth { reason: reason(reason::Table::AUTH), properties: properties(9) };
    let reason_of_connack = match version {
        Version::V5 => reason(reason::Table::CONNACK),
        _ => Reason::from_connect_return_code(random.u8(..6)).unwrap(),
    };
    let username = random.bool().then_some(&*parts.texts[1]);
    for (filter, _) in Subscribe::new(1, Properties::EMPTY, &parts.filters).filters() {
        Unsubscribe::put_filter(filter, only);
    }
    let mut packets = vec![
        Packet::Connect(Connect {
            version,
            client_id: &parts.texts[0],
            clean_start: random.bool(),
            keep_alive: random.u16(..),
            will: random.bool().then(|| Will {
                topic: pick(random, TOPICS),
                payload: &parts.payload,
                qos,
                retain: random.bool(),
                properties: properties(1),
            }),
            username,
            password: username.and(Some(&*parts.payload)),
            properties: properties(0),
        }),
        Packet::Connack(Connack {
            session_present: !reason_of_connack.is_error() && random.bool(),
            reason: reason_of_connack,
            properties: properties(2),
        }),
        Packet::Publish(Publish {
            dup: qos != QoS::AtMostOnce && random.bool(),
            qos,
            retain: random.bool(),
            topic: pick(random, TOPICS),
            packet_id: if qos == QoS::AtMostOnce { 0 } else { packet_id },
            properties: properties(3),
            payload: &parts.payload,
        }),
        Packet::Subscribe(Subscribe::new(packet_id, properties(5), &parts.filters)),
        Packet::Suback(Suback { packet_id, properties: properties(6), codes: &parts.codes }),
        Packet::Unsubscribe(Unsubscribe::new(packet_id, properties(7), only)),
        Packet::Unsuback(Unsuback {
            packet_id,
            properties: properties(6),
            codes: if version == Version::V5 { &[0x00, 0x11, 0x87][..parts.codes.len()] } else { &[] },
        }),
        Packet::Pingreq,
        Packet::Pingresp,
        Packet::Disconnect(disconnect),
    ];
    packets.extend(acks);
    if version == Version::V5 {
        packets.push(Packet::Auth(auth));
    }
    packets
}

const LONGEST: usize = usize::MAX;

#[test]
fn every_packet_comes_back_as_it_was_and_is_waited_for_to_its_last_byte() {
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let version = [Version::V31, Version::V311, Version::V5][random.usize(..3)];
        let (parts, mut only) = (parts(&mut random, version), Vec::new());
        for packet in packets(&mut random, version, &parts, &mut only) {
            let mut bytes = b"before".to_vec();
            packet.encode(version, &mut bytes);
            let encoded = &bytes[6..];
            assert_eq!(&bytes[..6], b"before");
            let decoded = decode(encoded, Some(version), LONGEST);
            assert_eq!(decoded, Ok(Some((packet, encoded.len()))), "seed {seed}");
            for length in 0..encoded.len() {
                assert_eq!(
                    decode(&encoded[..length], Some(version), LONGEST),
                    Ok(None),
                    "seed {seed}, cut to {length}"
                );
            }
            let mut followed = encoded.to_vec();
            followed.extend_from_slice(b"\x30\x00");
            assert_eq!(decode(&followed, Some(version), LONGEST), Ok(Some((packet, encoded.len()))));
            let too_long = decode(encoded, Some(version), encoded.len() - 1).unwrap_err();
            assert_eq!(too_long.reason, Reason::PACKET_TOO_LARGE);
        }
    }
}

#[test]
fn whatever_is_changed_is_a_packet_or_an_error_and_never_a_panic() {
    for seed in 0..300 {
        let mut random = fastrand::Rng::with_seed(seed);
        let version = [Version::V31, Version::V311, Version::V5][random.usize(..3)];
        let (parts, mut only) = (parts(&mut random, version), Vec::new());
        for packet in packets(&mut random, version, &parts, &mut only) {
            let mut bytes = Vec::new();
            packet.encode(version, &mut bytes);
            for _ in 0..20 {
                let mut changed = bytes.clone();
                for _ in 0..random.usize(1..4) {
                    let place = random.usize(..changed.len());
                    changed[place] = random.u8(..);
                }
                for version in [None, Some(Version::V31), Some(Version::V311), Some(Version::V5)] {
                    if let Ok(Some((packet, length))) = decode(&changed, version, LONGEST) {
                        assert!(length <= changed.len());
                        // What was taken can be said, and be taken again.
                        let spoken = match (&packet, version) {
                            (Packet::Connect(connect), _) => connect.version,
                            (_, version) => version.unwrap(),
                        };
                        let mut again = Vec::new();
                        packet.encode(spoken, &mut again);
                        assert!(matches!(decode(&again, version, LONGEST), Ok(Some(_))), "{packet:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn an_outgoing_message_is_what_a_publish_would_be() {
    let mut random = fastrand::Rng::with_seed(5);
    for _ in 0..500 {
        let version = [Version::V31, Version::V311, Version::V5][random.usize(..3)];
        let qos = QoS::try_from(random.u8(..3)).unwrap();
        let mut forwarded = Vec::new();
        properties(&mut random, properties::In::WILL).properties().forwardable(&mut forwarded);
        let payload = vec![7; random.usize(..20_000)];
        let outgoing = Outgoing {
            topic: pick(&mut random, TOPICS),
            alias: random.bool().then(|| random.u16(1..)),
            qos,
            retain: random.bool(),
            dup: qos != QoS::AtMostOnce && random.bool(),
            packet_id: if qos == QoS::AtMostOnce { 0 } else { 9 },
            message_expiry: random.bool().then(|| random.u32(..)),
            subscription_identifiers: if random.bool() { &[] } else { &[1, 300] },
            forwarded: &forwarded,
            payload: &payload,
        };
        let mut bytes = Vec::new();
        outgoing.encode(version, &mut bytes);
        assert_eq!(bytes.len(), outgoing.encoded_len(version));
        let Ok(Some((Packet::Publish(publish), length))) = decode(&bytes, Some(version), LONGEST) else {
            panic!("it is no PUBLISH")
        };
        assert_eq!((length, publish.topic, publish.qos), (bytes.len(), outgoing.topic, qos));
        assert_eq!((publish.dup, publish.retain, publish.payload), (outgoing.dup, outgoing.retain, &*payload));
        if version == Version::V5 {
            assert_eq!(publish.properties.topic_alias(), outgoing.alias);
            assert_eq!(publish.properties.message_expiry_interval(), outgoing.message_expiry);
            let identifiers: Vec<u32> = publish.properties.subscription_identifiers().collect();
            assert_eq!(identifiers, outgoing.subscription_identifiers);
            let mut again = Vec::new();
            publish.properties.forwardable(&mut again);
            assert_eq!(again, forwarded);
        }
    }
}

#[test]
fn lengths_are_the_specification_s() {
    // Table 2.4 of v3.1.1, table 1-1 of v5.
    for (value, bytes) in [
        (0usize, &[0x00][..]),
        (127, &[0x7F]),
        (128, &[0x80, 0x01]),
        (16_383, &[0xFF, 0x7F]),
        (16_384, &[0x80, 0x80, 0x01]),
        (2_097_151, &[0xFF, 0xFF, 0x7F]),
        (2_097_152, &[0x80, 0x80, 0x80, 0x01]),
        (268_435_455, &[0xFF, 0xFF, 0xFF, 0x7F]),
    ] {
        let mut encoded = Vec::new();
        wire::put_variable(value, &mut encoded);
        assert_eq!((&*encoded, wire::variable_len(value)), (bytes, bytes.len()));
        assert_eq!(wire::remaining_length(bytes), Ok(Some((value, bytes.len()))));
    }
}

#[test]
fn return_codes_stand_for_reasons() {
    for code in 0..=5 {
        assert_eq!(Reason::from_connect_return_code(code).unwrap().connect_return_code(), code);
    }
    assert_eq!(Reason::from_connect_return_code(6), None);
    assert_eq!(Reason::SERVER_BUSY.connect_return_code(), 3);
    assert_eq!(Reason::SESSION_TAKEN_OVER.to_string(), "session taken over (0x8E)");
}

/// What MQTT 3.1 calls unused is not looked at, and is malformed in the versions after it.
#[test]
fn old_devices_may_set_what_their_version_does_not_use() {
    let subscribe = b"\x8a\x06\x00\x01\x00\x01a\x00";
    let pubrel = b"\x6a\x02\x00\x01";
    for bytes in [&subscribe[..], pubrel] {
        assert!(matches!(decode(bytes, Some(Version::V31), LONGEST), Ok(Some(_))));
        assert_eq!(decode(bytes, Some(Version::V311), LONGEST), Err(RESERVED_FLAGS));
    }
    // A first byte with flags, a reserved flag, the RETAIN of no will, a user name that is not there.
    let connect = |first: u8, flags: u8| [&[first, 15, 0, 6], &b"MQIsdp\x03"[..], &[flags, 0, 60, 0, 1, b'a']].concat();
    for (first, flags) in
        [(0x10, 0x02), (0x1B, 0x02), (0x10, 0x03), (0x10, 0x22), (0x10, 0x3A), (0x10, 0x82), (0x10, 0xC2)]
    {
        let bytes = connect(first, flags);
        let Ok(Some((Packet::Connect(connect), _))) = decode(&bytes, None, LONGEST) else { panic!("{bytes:02x?}") };
        assert_eq!((connect.version, connect.client_id, connect.username), (Version::V31, "a", None));
        assert!(connect.will.is_none() && connect.password.is_none() && connect.clean_start);
    }
    assert!(decode(&connect(0x10, 0x42), None, LONGEST).is_err(), "a password needs a user name");
}

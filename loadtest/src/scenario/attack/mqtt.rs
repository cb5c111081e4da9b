//! What attackers say in MQTT: packets that keep the rules, or nearly, and cost a server more than they cost their sender.

use pulsegate::codec::mqtt::{Connect, Options, Packet, Properties, Publish, QoS, Subscribe, Version};

use super::Attack;

/// Packets of one step.
const PACKETS: usize = 200;
/// Levels of a deep filter: nearly as many as are allowed.
const LEVELS: usize = 180;
/// Filters in one SUBSCRIBE.
const FILTERS: usize = 250;
/// What half a CONNECT says that its length is, and how much of it comes in one step.
const CONNECT_BYTES: usize = 253_000;
const CONNECT_PIECE: usize = 16_000;

/// Appends what the attacker with this number says in its `step`th step, of which the first is CONNECT.
pub(super) fn plaintext(attack: Attack, number: u32, step: usize, out: &mut Vec<u8>) {
    match (attack, step) {
        (Attack::HalfConnect, step) => half_connect(step, out),
        (attack, 0) => connect(attack, number, out),
        (Attack::Tombstones, step) => {
            (0..PACKETS)
                .for_each(|n| publish(&format!("soak/never/{number}/{step}/{n}"), QoS::AtMostOnce, 0, true, out));
        }
        (Attack::DeepFilters, step) => {
            let deep = format!("soak/deep/{number}/{}{}", step % 16, "/".repeat(LEVELS));
            subscribe([deep.as_str()], out);
            publish(&deep, QoS::AtMostOnce, 0, false, out);
        }
        (Attack::WideSubscribe, _) => {
            let filters: Vec<String> = (0..FILTERS).map(|n| format!("+/+/{n}/#")).collect();
            subscribe(filters.iter().map(String::as_str), out);
        }
        (Attack::OpenExchanges, step) => {
            let first = step * PACKETS;
            (first..first + PACKETS).for_each(|n| {
                publish("soak/open", QoS::ExactlyOnce, (n % 65_535 + 1) as u16, false, out);
            });
        }
        (Attack::NeverReads, 1) => subscribe(["soak/#"], out),
        (Attack::GarbagePackets, _) => out.extend((0..256).map(|_| fastrand::u8(..))),
        // Whoever is taken over by the next one with its id has nothing more to say.
        _ => Packet::Pingreq.encode(Version::V311, out),
    }
}

fn connect(attack: Attack, number: u32, out: &mut Vec<u8>) {
    let client_id = match attack {
        Attack::Takeovers => "soak-attacker".to_owned(),
        _ => format!("soak-attacker-{number}"),
    };
    let connect = Connect {
        version: Version::V311,
        client_id: &client_id,
        clean_start: true,
        keep_alive: 60,
        will: None,
        username: None,
        password: None,
        properties: Properties::EMPTY,
    };
    Packet::Connect(connect).encode(Version::V311, out);
}

/// The header of a long CONNECT, then as much of it as there may be without it ever being whole.
fn half_connect(step: usize, out: &mut Vec<u8>) {
    if step == 0 {
        out.push(0x10);
        let mut rest = CONNECT_BYTES;
        while rest >= 0x80 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
        out.extend_from_slice(b"\x00\x04MQTT\x05\xC2\x00\x3C\x00\x00\x01a\xFF\xFF");
    } else if (step + 1) * CONNECT_PIECE < CONNECT_BYTES {
        out.resize(out.len() + CONNECT_PIECE, b'x');
    }
}

fn subscribe<'a>(filters: impl IntoIterator<Item = &'a str>, out: &mut Vec<u8>) {
    let mut encoded = Vec::new();
    for filter in filters {
        Subscribe::put_filter(filter, Options::plain(QoS::AtLeastOnce), &mut encoded);
    }
    Packet::Subscribe(Subscribe::new(1, Properties::EMPTY, &encoded)).encode(Version::V311, out);
}

fn publish(topic: &str, qos: QoS, packet_id: u16, retain: bool, out: &mut Vec<u8>) {
    let publish = Publish { dup: false, qos, retain, topic, packet_id, properties: Properties::EMPTY, payload: b"" };
    Packet::Publish(publish).encode(Version::V311, out);
}

#[cfg(test)]
mod tests {
    use pulsegate::codec::mqtt::decode;

    use super::*;

    /// All packets of a step, or `None` where the last one is not whole.
    fn packets(attack: Attack, steps: usize) -> Option<Vec<&'static str>> {
        let mut bytes = Vec::new();
        (0..steps).for_each(|step| plaintext(attack, 7, step, &mut bytes));
        let (mut rest, mut version, mut names) = (&bytes[..], None, Vec::new());
        while !rest.is_empty() {
            let (packet, length) = decode(rest, version, 1 << 20).unwrap()?;
            version = Some(Version::V311);
            names.push(packet.name());
            rest = &rest[length..];
        }
        Some(names)
    }

    #[test]
    fn attackers_connect_and_then_do_what_their_kind_says() {
        for (attack, second) in [
            (Attack::Tombstones, "PUBLISH"),
            (Attack::DeepFilters, "SUBSCRIBE"),
            (Attack::WideSubscribe, "SUBSCRIBE"),
            (Attack::OpenExchanges, "PUBLISH"),
            (Attack::NeverReads, "SUBSCRIBE"),
            (Attack::Takeovers, "PINGREQ"),
        ] {
            let names = packets(attack, 3).unwrap_or_else(|| panic!("{attack:?} says half a packet"));
            assert_eq!(names[..2], ["CONNECT", second], "{attack:?}");
        }
    }

    #[test]
    fn half_a_connect_is_never_whole() {
        assert_eq!(packets(Attack::HalfConnect, 100), None);
    }
}

//! The MQTT device: CONNECT with one subscription, PINGREQ, PUBLISH and what answers them.

use pulsegate::codec::mqtt::{
    Ack, Connect, Options, Outgoing, Packet, Properties, Publish, QoS, Reason, Subscribe, Version, decode,
};
use pulsegate::codec::native::CloseCode;

use super::protocol::{Broken, Envelope, Said};

/// Packets longer than this are not taken.
const PACKET_MAX: usize = 1 << 20;
/// The packet identifier of the one SUBSCRIBE.
const SUBSCRIBE_ID: u16 = 1;

/// Appends CONNECT and SUBSCRIBE, one behind the other: the device is up when both are answered.
pub fn greet(version: Version, id: &str, keep_alive: u16, filter: &str, plain: &mut Vec<u8>) {
    let properties = Properties::EMPTY;
    let connect = Connect {
        version,
        client_id: id,
        clean_start: true,
        keep_alive,
        will: None,
        username: None,
        password: None,
        properties,
    };
    Packet::Connect(connect).encode(version, plain);
    let mut filters = Vec::new();
    Subscribe::put_filter(filter, Options::plain(QoS::AtLeastOnce), &mut filters);
    Packet::Subscribe(Subscribe::new(SUBSCRIBE_ID, properties, &filters)).encode(version, plain);
}

/// Appends a message.
pub fn publish(version: Version, topic: &str, envelope: &Envelope, acknowledge: bool, plain: &mut Vec<u8>) {
    let payload = envelope.to_bytes();
    let outgoing = Outgoing {
        topic,
        alias: None,
        qos: if acknowledge { QoS::AtLeastOnce } else { QoS::AtMostOnce },
        retain: false,
        dup: false,
        packet_id: (envelope.sequence % 65_535 + 1) as u16,
        message_expiry: None,
        subscription_identifiers: &[],
        forwarded: &[],
        payload: &payload,
    };
    outgoing.encode(version, plain);
}

/// Appends DISCONNECT or PINGREQ.
pub fn say(version: Version, packet: &Packet, plain: &mut Vec<u8>) {
    packet.encode(version, plain);
}

/// Takes whole packets at the front of `bytes`: how much that was.
pub fn handle(
    version: Version,
    bytes: &[u8],
    answers: bool,
    plain: &mut Vec<u8>,
    mut tell: impl FnMut(Said),
) -> Result<usize, Broken> {
    let mut taken = 0;
    while let Some((packet, length)) = decode(&bytes[taken..], Some(version), PACKET_MAX).map_err(|_| Broken)? {
        taken += length;
        match packet {
            Packet::Connack(connack) if connack.reason == Reason::SUCCESS => {}
            Packet::Connack(_) => tell(Said::Close(CloseCode::TRY_LATER)),
            Packet::Suback(suback) if suback.codes.iter().all(|&code| code < 0x80) => tell(Said::Welcome(None)),
            Packet::Pingresp => tell(Said::Pong(None)),
            Packet::Puback(_) => tell(Said::StreamAcknowledged),
            Packet::Publish(publish) => tell(receive(version, &publish, answers, plain)),
            Packet::Disconnect(disconnect) => tell(Said::Close(match disconnect.reason {
                Reason::KEEP_ALIVE_TIMEOUT => CloseCode::EXPIRED,
                Reason::SESSION_TAKEN_OVER => CloseCode::TAKEN_OVER,
                Reason::SERVER_SHUTTING_DOWN => CloseCode::GOING_AWAY,
                Reason::SERVER_BUSY => CloseCode::TRY_LATER,
                _ => CloseCode::NORMAL,
            })),
            _ => return Err(Broken),
        }
    }
    Ok(taken)
}

fn receive(version: Version, publish: &Publish, answers: bool, plain: &mut Vec<u8>) -> Said {
    if publish.qos == QoS::AtLeastOnce && answers {
        let ack = Ack { packet_id: publish.packet_id, reason: Reason::SUCCESS, properties: Properties::EMPTY };
        Packet::Puback(ack).encode(version, plain);
    }
    Envelope::from_bytes(publish.payload).map_or(Said::Data, Said::Streamed)
}

//! The client role of one MQTT connection: records, packets, and nothing that outlives it.

use pulsegate::codec::mqtt::{self, Ack, Packet, Properties, QoS, Reason, Version};
use pulsegate::tls::record::{DirectionSecrets, Opened, RecordLayer, Role, Suite};

/// The longest packet that a client takes.
const PACKET_MAX: usize = 1 << 16;

/// What a client has heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Connack { session_present: bool, is_accepted: bool },
    Publish { dup: bool, qos: QoS, retain: bool, topic: String, packet_id: u16, number: u32 },
    Puback { packet_id: u16, is_taken: bool },
    Pubrec { packet_id: u16, is_taken: bool },
    Pubrel(u16),
    Pubcomp(u16),
    Suback { packet_id: u16, is_granted: bool },
    Unsuback(u16),
    Disconnect(u8),
}

pub struct Client {
    pub version: Version,
    records: RecordLayer,
    inbox: Vec<u8>,
    plain: Vec<u8>,
    /// Sealed, not yet sent.
    pub out: Vec<u8>,
}

impl Client {
    /// A client whose handshake has been, and the gateway's side of it.
    pub fn new(version: Version, random: &mut fastrand::Rng) -> (Self, RecordLayer) {
        let mut bytes = [0u8; 2 * 60];
        random.fill(&mut bytes);
        let [one, two] = [&bytes[..60], &bytes[60..]].map(|bytes| DirectionSecrets {
            secret: &bytes[..32],
            key: &bytes[32..48],
            iv: bytes[48..].try_into().expect("twelve bytes"),
            sequence: 1,
        });
        let suite = Suite::Tls13Aes128GcmSha256;
        let records = RecordLayer::new(Role::Client, suite, &one, &two);
        let server = RecordLayer::new(Role::Server, suite, &two, &one);
        (Self { version, records, inbox: Vec::new(), plain: Vec::new(), out: Vec::new() }, server)
    }

    pub fn say(&mut self, packet: &Packet) {
        let mut bytes = Vec::new();
        packet.encode(self.version, &mut bytes);
        self.records.burst().seal(&bytes, &mut self.out).expect("young keys");
    }

    /// One of the four acknowledgements, which only name a message.
    pub fn acknowledge(&mut self, packet: impl Fn(Ack<'static>) -> Packet<'static>, packet_id: u16) {
        self.say(&packet(Ack { packet_id, reason: Reason::SUCCESS, properties: Properties::EMPTY }));
    }

    /// What bytes from the gateway mean.
    pub fn hear(&mut self, bytes: &[u8]) -> Vec<Heard> {
        self.inbox.extend_from_slice(bytes);
        let mut answers = Vec::new();
        let mut burst = self.records.burst();
        while let Some(length) = burst.next_record(&self.inbox, &mut answers).expect("the gateway speaks TLS") {
            let mut record: Vec<u8> = self.inbox.drain(..length).collect();
            match burst.open(&mut record, &mut answers).expect("a polite client is sent no alert") {
                Opened::Data(data) => self.plain.extend_from_slice(data),
                Opened::Handled(_) | Opened::CloseNotify => {}
            }
        }
        drop(burst);
        self.out.append(&mut answers);
        let (mut heard, mut at) = (Vec::new(), 0);
        while let Some((packet, length)) =
            mqtt::decode(&self.plain[at..], Some(self.version), PACKET_MAX).expect("the gateway speaks MQTT")
        {
            at += length;
            heard.extend(own(&packet));
        }
        self.plain.drain(..at);
        heard
    }
}

/// What a packet says, without its buffer. `None`: nothing that matters.
fn own(packet: &Packet) -> Option<Heard> {
    let is_taken = |ack: &Ack| ack.reason.0 < 0x80;
    Some(match packet {
        Packet::Connack(connack) => {
            Heard::Connack { session_present: connack.session_present, is_accepted: connack.reason == Reason::SUCCESS }
        }
        Packet::Publish(publish) => Heard::Publish {
            dup: publish.dup,
            qos: publish.qos,
            retain: publish.retain,
            topic: publish.topic.to_owned(),
            packet_id: publish.packet_id,
            number: u32::from_be_bytes(publish.payload.try_into().expect("a message's number")),
        },
        Packet::Puback(ack) => Heard::Puback { packet_id: ack.packet_id, is_taken: is_taken(ack) },
        Packet::Pubrec(ack) => Heard::Pubrec { packet_id: ack.packet_id, is_taken: is_taken(ack) },
        Packet::Pubrel(ack) => Heard::Pubrel(ack.packet_id),
        Packet::Pubcomp(ack) => Heard::Pubcomp(ack.packet_id),
        Packet::Suback(suback) => {
            Heard::Suback { packet_id: suback.packet_id, is_granted: suback.codes.iter().all(|&code| code < 0x80) }
        }
        Packet::Unsuback(unsuback) => Heard::Unsuback(unsuback.packet_id),
        Packet::Disconnect(disconnect) => Heard::Disconnect(disconnect.reason.0),
        Packet::Pingresp => return None,
        other => panic!("a gateway does not say {other:?}"),
    })
}

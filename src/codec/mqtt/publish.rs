//! PUBLISH (3.3): a message.

use super::properties::{self, Properties};
use super::wire::{self, Reader};
use super::{Error, QoS, Reason, Version, topic};

const FLAG_RETAIN: u8 = 0x01;
const FLAG_DUP: u8 = 0x08;

/// PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Publish<'a> {
    /// It may have been sent before.
    pub dup: bool,
    /// Its quality of service.
    pub qos: QoS,
    /// RETAIN.
    pub retain: bool,
    /// A valid topic name; in v5 it may be empty where an alias stands for it.
    pub topic: &'a str,
    /// 0 with QoS 0.
    pub packet_id: u16,
    /// None in v3.1.1.
    pub properties: Properties<'a>,
    /// The payload: opaque bytes.
    pub payload: &'a [u8],
}

impl<'a> Publish<'a> {
    pub(super) fn decode(flags: u8, body: &mut Reader<'a>, version: Version) -> Result<Self, Error> {
        let qos = QoS::try_from(flags >> 1 & 3)
            .map_err(|()| Error::malformed("QoS is 3", "v5 MQTT-3.3.1-4, v3.1.1 MQTT-3.3.1-4"))?;
        let dup = flags & FLAG_DUP != 0;
        if dup && qos == QoS::AtMostOnce {
            return Err(Error::malformed("DUP is set with QoS 0", "MQTT-3.3.1-2"));
        }
        let topic = body.string()?;
        let packet_id = if qos == QoS::AtMostOnce { 0 } else { body.packet_id()? };
        let properties = match version {
            Version::V31 | Version::V311 => Properties::EMPTY,
            Version::V5 => Properties::decode(body, properties::In::PUBLISH)?,
        };
        let has_alias = properties.topic_alias().is_some();
        if topic.is_empty() && version == Version::V5 && !has_alias {
            return Err(Error::protocol("there is neither a topic nor an alias for it", "v5 MQTT-3.3.2-8"));
        }
        if !(topic::is_topic_name(topic) || (topic.is_empty() && has_alias)) {
            let statement = "v5 MQTT-3.3.2-2, v3.1.1 MQTT-3.3.2-2";
            return Err(Error::new(Reason::TOPIC_NAME_INVALID, "the topic is no topic name", statement));
        }
        let payload = body.take_all();
        Ok(Self { dup, qos, retain: flags & FLAG_RETAIN != 0, topic, packet_id, properties, payload })
    }

    pub(super) fn flags(&self) -> u8 {
        flags(self.dup, self.qos, self.retain)
    }

    pub(super) fn encode(&self, version: Version, out: &mut Vec<u8>) {
        wire::put_string(self.topic, out);
        if self.qos != QoS::AtMostOnce {
            out.extend_from_slice(&self.packet_id.to_be_bytes());
        }
        self.properties.encode(version, out);
        out.extend_from_slice(self.payload);
    }
}

pub(super) fn flags(dup: bool, qos: QoS, retain: bool) -> u8 {
    (qos as u8) << 1 | if dup { FLAG_DUP } else { 0 } | if retain { FLAG_RETAIN } else { 0 }
}

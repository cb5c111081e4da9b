//! A publication in the fleet's stream: its headers say where it was published and how, so that other gateways give it to their
//! subscribers as it was. A message without them is for no subscriber.
//!
//! | header | what it says |
//! | --- | --- |
//! | `Pulsegate-Node` | the gateway where it was published, percent-encoded as a token of a subject |
//! | `Pulsegate-QoS` | 0, 1 or 2 |
//! | `Pulsegate-Retain` | `1`, where it was published to be retained |
//! | `Pulsegate-Stamp` | its place among retained messages of its topic, where it was published to be retained: `image::Stamp` |
//! | `Pulsegate-Expires` | Unix time in milliseconds, after which it is of no use |
//! | `Pulsegate-Groups` | groups of shared subscribers that got it at its own gateway already: `link::group_key`, between commas |
//! | `Pulsegate-Properties` | the MQTT 5 properties that go along with it unaltered, as in PUBLISH, in base64 |

use async_nats::{HeaderMap, HeaderValue};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::subject;
use crate::link::{QoS, Stamp};

const NODE: &str = "Pulsegate-Node";
const QOS: &str = "Pulsegate-QoS";
const RETAIN: &str = "Pulsegate-Retain";
const STAMP: &str = "Pulsegate-Stamp";
const EXPIRES: &str = "Pulsegate-Expires";
const GROUPS: &str = "Pulsegate-Groups";
const PROPERTIES: &str = "Pulsegate-Properties";

/// How a message was published, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publishing {
    /// The gateway.
    pub node: String,
    /// The quality of service.
    pub qos: QoS,
    /// Whether it was published to be retained.
    pub retain: bool,
    /// The encoded MQTT 5 properties that go along with it; often empty.
    pub properties: Box<[u8]>,
    /// After this time it is of no use to anybody, as Unix time in milliseconds.
    pub expires_ms: Option<i64>,
    /// Its place among retained messages of its topic; none: it is not one, or is of its own gateway alone.
    pub stamp: Stamp,
    /// Groups of shared subscribers that got it at its own gateway already: their keys, between commas.
    pub groups: Option<Box<str>>,
}

impl Publishing {
    /// At a gateway, as simply as can be.
    #[cfg(test)]
    pub fn plain(node: &str) -> Self {
        let properties = Box::default();
        Self {
            node: node.to_owned(),
            qos: QoS::AtMostOnce,
            retain: false,
            properties,
            expires_ms: None,
            stamp: Stamp::NONE,
            groups: None,
        }
    }

    /// Whether a group, by its key, got it at its own gateway.
    pub fn was_given_to(&self, key: &str) -> bool {
        self.groups.iter().flat_map(|all| all.split(',')).any(|given| given == key)
    }

    /// Says it in headers.
    pub fn write(&self, headers: &mut HeaderMap) {
        let mut node = String::with_capacity(self.node.len());
        subject::encode(&self.node, &mut node);
        headers.insert(NODE, node);
        headers.insert(QOS, (self.qos as u8).to_string());
        if self.retain {
            headers.insert(RETAIN, "1");
        }
        if !self.stamp.is_none() {
            headers.insert(STAMP, self.stamp.to_string());
        }
        if let Some(expires_ms) = self.expires_ms {
            headers.insert(EXPIRES, expires_ms.to_string());
        }
        if let Some(groups) = &self.groups {
            headers.insert(GROUPS, &**groups);
        }
        if !self.properties.is_empty() {
            headers.insert(PROPERTIES, BASE64_STANDARD.encode(&self.properties));
        }
    }

    /// What headers say; `None`: it is no publication, or none of a gateway. Whether the properties are any is not looked at.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name).map(HeaderValue::as_str);
        let qos = text(QOS)?.parse::<u8>().ok()?;
        let expires_ms = text(EXPIRES).map(str::parse).transpose().ok()?;
        let stamp = text(STAMP).map(str::parse).transpose().ok()?;
        let properties = text(PROPERTIES).map(|written| BASE64_STANDARD.decode(written)).transpose().ok()?;
        Some(Self {
            node: subject::decode(text(NODE)?)?,
            qos: QoS::try_from(qos).ok()?,
            retain: text(RETAIN) == Some("1"),
            properties: properties.unwrap_or_default().into(),
            expires_ms,
            stamp: stamp.unwrap_or_default(),
            groups: text(GROUPS).map(Into::into),
        })
    }
}

/// What headers take in a message, in bytes: the version line, and each name and value in a line of its own.
pub fn header_bytes(headers: &HeaderMap) -> usize {
    const VERSION_AND_END: usize = 14;
    let lines = headers.iter().map(|(name, values)| {
        let name: &str = name.as_ref();
        values.iter().map(|value| name.len() + value.as_str().len() + 4).sum::<usize>()
    });
    VERSION_AND_END + lines.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publishing(qos: QoS) -> Publishing {
        Publishing { qos, ..Publishing::plain("gate 1") }
    }

    #[test]
    fn what_is_written_is_read() {
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let plain = publishing(qos);
            let stamp = Stamp { clock: 8, node: 9 };
            let full = Publishing {
                retain: true,
                stamp,
                properties: [1, 0, 255].into(),
                expires_ms: Some(-7),
                groups: Some("0a,1b".into()),
                ..plain.clone()
            };
            for said in [plain, full] {
                let mut headers = HeaderMap::new();
                said.write(&mut headers);
                assert_eq!(Publishing::read(&headers), Some(said));
            }
        }
    }

    #[test]
    fn which_groups_got_it_is_told_by_their_whole_keys() {
        let mut said = publishing(QoS::AtLeastOnce);
        assert!(!said.was_given_to("0a"));
        said.groups = Some("0a,1b".into());
        assert!(
            said.was_given_to("0a") && said.was_given_to("1b") && !said.was_given_to("a") && !said.was_given_to("")
        );
    }

    #[test]
    fn what_no_gateway_says_is_no_publication() {
        let mut whole = HeaderMap::new();
        publishing(QoS::AtLeastOnce).write(&mut whole);
        assert!(header_bytes(&whole) > "NATS/1.0\r\nPulsegate-Node: gate%201\r\nPulsegate-QoS: 1\r\n\r\n".len() - 4);
        for (name, value) in [
            (QOS, "3"),
            (QOS, "x"),
            (QOS, ""),
            (NODE, "a.b"),
            (NODE, ""),
            (EXPIRES, "soon"),
            (STAMP, "1-2"),
            (PROPERTIES, "%"),
        ] {
            let mut headers = whole.clone();
            headers.insert(name, value);
            assert_eq!(Publishing::read(&headers), None, "{name}: {value}");
        }
        assert_eq!(Publishing::read(&HeaderMap::new()), None);
    }
}

//! CONNECT (3.1): who the device is, and how it wants to be treated.

use super::properties::{self, Properties};
use super::wire::{self, Reader};
use super::{Error, QoS, RESERVED_FLAGS, Reason, Version, topic};

const NAME: &str = "MQTT";
/// The name in MQTT 3.1.
const NAME_V31: &str = "MQIsdp";
const FLAG_RESERVED: u8 = 0x01;
const FLAG_CLEAN_START: u8 = 0x02;
const FLAG_WILL: u8 = 0x04;
const FLAG_WILL_QOS: u8 = 0x18;
const FLAG_WILL_RETAIN: u8 = 0x20;
const FLAG_PASSWORD: u8 = 0x40;
const FLAG_USERNAME: u8 = 0x80;

/// CONNECT.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Connect<'a> {
    /// Which MQTT the connection speaks.
    pub version: Version,
    /// The client identifier; may be empty.
    pub client_id: &'a str,
    /// Clean Start (v3.1.1: Clean Session).
    pub clean_start: bool,
    /// Seconds between two packets of the device at most; 0: no bound.
    pub keep_alive: u16,
    /// What is published when the connection ends without a goodbye.
    pub will: Option<Will<'a>>,
    /// The user name.
    pub username: Option<&'a str>,
    /// The password.
    pub password: Option<&'a [u8]>,
    /// None in v3.1.1.
    pub properties: Properties<'a>,
}

/// The will of a CONNECT.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Will<'a> {
    /// Its topic: a valid topic name.
    pub topic: &'a str,
    /// Its payload.
    pub payload: &'a [u8],
    /// Its quality of service.
    pub qos: QoS,
    /// Whether it is retained.
    pub retain: bool,
    /// None in v3.1.1.
    pub properties: Properties<'a>,
}

impl<'a> Connect<'a> {
    pub(super) fn decode(header_flags: u8, body: &mut Reader<'a>) -> Result<Self, Error> {
        let version = decode_version(body)?;
        if header_flags != 0 && version != Version::V31 {
            return Err(RESERVED_FLAGS);
        }
        let flags = body.u8()?;
        check_flags(flags, version)?;
        let keep_alive = body.u16()?;
        let properties = match version {
            Version::V31 | Version::V311 => Properties::EMPTY,
            Version::V5 => Properties::decode(body, properties::In::CONNECT)?,
        };
        if properties.authentication_data().is_some() && properties.authentication_method().is_none() {
            return Err(Error::protocol("there is authentication data and no method", "v5 3.1.2.11.10"));
        }
        let client_id = body.string()?;
        let will = if flags & FLAG_WILL != 0 { Some(Will::decode(flags, body, version)?) } else { None };
        // In 3.1 "the Remaining Length field takes precedence over the User Name flag" (3.1 3.1), and over the other.
        let is_cut = |body: &Reader| version == Version::V31 && body.is_empty();
        let username = if flags & FLAG_USERNAME != 0 && !is_cut(body) { Some(body.string()?) } else { None };
        let password = if flags & FLAG_PASSWORD != 0 && !is_cut(body) { Some(body.binary()?) } else { None };
        let clean_start = flags & FLAG_CLEAN_START != 0;
        Ok(Self { version, client_id, clean_start, keep_alive, will, username, password, properties })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (name, level) = match self.version {
            Version::V31 => (NAME_V31, 3),
            Version::V311 => (NAME, 4),
            Version::V5 => (NAME, 5),
        };
        wire::put_string(name, out);
        out.push(level);
        out.push(self.flags());
        out.extend_from_slice(&self.keep_alive.to_be_bytes());
        self.properties.encode(self.version, out);
        wire::put_string(self.client_id, out);
        if let Some(will) = &self.will {
            will.properties.encode(self.version, out);
            wire::put_string(will.topic, out);
            wire::put_binary(will.payload, out);
        }
        if let Some(username) = self.username {
            wire::put_string(username, out);
        }
        if let Some(password) = self.password {
            wire::put_binary(password, out);
        }
    }

    fn flags(&self) -> u8 {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let will = self.will.map_or(0, |will| FLAG_WILL | (will.qos as u8) << 3 | flag(will.retain, FLAG_WILL_RETAIN));
        will | flag(self.clean_start, FLAG_CLEAN_START)
            | flag(self.username.is_some(), FLAG_USERNAME)
            | flag(self.password.is_some(), FLAG_PASSWORD)
    }
}

/// Protocol name and level.
fn decode_version(body: &mut Reader) -> Result<Version, Error> {
    let name = body.string()?;
    if name != NAME && name != NAME_V31 {
        return Err(Error::new(
            Reason::UNSUPPORTED_PROTOCOL_VERSION,
            "the protocol's name is neither MQTT nor MQIsdp",
            "v5 MQTT-3.1.2-1, v3.1.1 MQTT-3.1.2-1",
        ));
    }
    match (name, body.u8()?) {
        (NAME_V31, 3) => Ok(Version::V31),
        (NAME, 4) => Ok(Version::V311),
        (NAME, 5) => Ok(Version::V5),
        _ => {
            let what = "the protocol level is neither 3 of MQIsdp (3.1) nor 4 (3.1.1) nor 5";
            let error = Error::new(Reason::UNSUPPORTED_PROTOCOL_VERSION, what, "MQTT-3.1.2-2");
            Err(Error { is_unknown_level: true, ..error })
        }
    }
}

fn check_flags(flags: u8, version: Version) -> Result<(), Error> {
    let refuse = |what, statement| Err(Error::malformed(what, statement));
    // Bit 0 is not used in 3.1, and without a will its QoS and RETAIN are disregarded (3.1 3.1).
    let is_strict = version != Version::V31;
    if is_strict && flags & FLAG_RESERVED != 0 {
        return refuse("the reserved flag of CONNECT is set", "MQTT-3.1.2-3");
    }
    if flags & FLAG_WILL_QOS == FLAG_WILL_QOS && (is_strict || flags & FLAG_WILL != 0) {
        return refuse("the will's QoS is 3", "v5 MQTT-3.1.2-12, v3.1.1 MQTT-3.1.2-14");
    }
    if is_strict && flags & FLAG_WILL == 0 && flags & (FLAG_WILL_QOS | FLAG_WILL_RETAIN) != 0 {
        return refuse("there is no will, and its QoS or RETAIN is set", "v5 MQTT-3.1.2-11, v3.1.1 MQTT-3.1.2-13");
    }
    if version != Version::V5 && flags & FLAG_USERNAME == 0 && flags & FLAG_PASSWORD != 0 {
        return refuse("there is a password and no user name", "v3.1.1 MQTT-3.1.2-22");
    }
    Ok(())
}

impl<'a> Will<'a> {
    fn decode(flags: u8, body: &mut Reader<'a>, version: Version) -> Result<Self, Error> {
        let properties = match version {
            Version::V31 | Version::V311 => Properties::EMPTY,
            Version::V5 => Properties::decode(body, properties::In::WILL)?,
        };
        let topic = body.string()?;
        if !topic::is_topic_name(topic) {
            let statement = "v5 MQTT-3.3.2-2, v3.1.1 MQTT-3.3.2-2";
            return Err(Error::new(Reason::TOPIC_NAME_INVALID, "the will's topic is no topic name", statement));
        }
        let payload = body.binary()?;
        let qos = QoS::try_from((flags & FLAG_WILL_QOS) >> 3).expect("checked with the flags");
        Ok(Self { topic, payload, qos, retain: flags & FLAG_WILL_RETAIN != 0, properties })
    }
}

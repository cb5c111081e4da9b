//! What gateways say to each other, and what comes back: JSON, so that a person can read and say it too (`nats request`).

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::blocks::BlockRow;
use super::sessions::SessionAsk;

/// The longest request taken, in bytes: the longest payload in base64, with its topic and device.
pub const REQUEST_BYTES_MAX: usize = 128 << 10;

/// Something said to one gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Say something to a device.
    Send {
        /// The device.
        device: Box<str>,
        /// Under which topic.
        topic: Box<str>,
        /// The payload.
        #[serde(with = "base64_text")]
        payload: Bytes,
        /// Whether its acknowledgement is waited for,
        acknowledge: bool,
        /// and for how long, in milliseconds.
        patience_ms: u64,
    },
    /// End a device's connection.
    Disconnect {
        /// The device.
        device: Box<str>,
    },
    /// Whether a device is there, and for how long it has been.
    Has {
        /// The device.
        device: Box<str>,
    },
    /// A device was taken over: its row was written over.
    Taken {
        /// The device.
        device: Box<str>,
        /// Under which lease the row had been written,
        lease: Box<str>,
        /// and for which connection.
        generation: u64,
        /// The revision that stands there now.
        revision: u64,
    },
    /// The session of a device that has come to another gateway.
    Session {
        /// The device.
        device: Box<str>,
        /// What is wanted.
        ask: SessionAsk,
    },
    /// Ask the gateway itself something, or have it do something to all of its devices.
    Call {
        /// What.
        call: Call,
    },
}

/// What a gateway is asked about itself, as its API would be: answered by [`Reply::Said`], which holds what that would answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub enum Call {
    /// A page of its devices.
    Devices {
        /// Only ids greater than this one; empty: all.
        after: Box<str>,
        /// Only ids that begin so.
        prefix: Box<str>,
        /// At most so many.
        limit: usize,
    },
    /// One of its devices; [`Reply::Offline`] where it has none such.
    Device {
        /// The device.
        device: Box<str>,
    },
    /// How the latest connections of a device ended there.
    History {
        /// The device.
        device: Box<str>,
    },
    /// Say something to all of its devices, or many.
    Broadcast {
        /// Under which topic.
        topic: Box<str>,
        /// The payload.
        #[serde(with = "base64_text")]
        payload: Bytes,
        /// Only to ids that begin so.
        prefix: Box<str>,
        /// At most to so many in a second.
        per_second: u32,
    },
    /// How far a broadcast of that gateway has come.
    Progress {
        /// By its id there.
        broadcast: Box<str>,
    },
    /// Go no further with one.
    Cancel {
        /// By its id there.
        broadcast: Box<str>,
    },
    /// Keep somebody out of the fleet: it is written already.
    Block {
        /// Whom, and until when.
        row: BlockRow,
    },
    /// Something waits for a device that is there by now.
    Commands {
        /// The device.
        device: Box<str>,
    },
    /// Let somebody in again: the row is gone already.
    Unblock {
        /// Whom.
        row: BlockRow,
    },
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Reply {
    /// It is on its way on a live connection.
    Delivered,
    /// The device has acknowledged it.
    Acknowledged,
    /// The device is not connected there.
    Offline,
    /// The connection ended before the device had acknowledged it. It may have arrived.
    Unacknowledged,
    /// The device did not acknowledge it in time. It may have arrived.
    Late,
    /// The device does not take it.
    Refused {
        /// Why.
        why: String,
    },
    /// The gateway has too much to do; nothing was done.
    Busy,
    /// It is here: for `Request::Has`, which is else answered by `Reply::Offline`.
    Here {
        /// For how long it has been, in microseconds.
        age_us: u64,
    },
    /// It was heard: for `Request::Taken`.
    Heard,
    /// It has the session, and gives it: for `Request::Session`.
    Session {
        /// Under which number it has it: another one is another session.
        key: u64,
    },
    /// What its API would answer: for `Request::Call`.
    Said {
        /// JSON.
        body: String,
    },
    /// The error that its API would answer; nothing was done.
    Failed {
        /// Its code,
        code: String,
        /// and its sentence.
        why: String,
    },
    /// The request is none.
    NotUnderstood {
        /// Why.
        why: String,
    },
}

impl Request {
    /// As bytes.
    pub fn to_bytes(&self) -> Bytes {
        serde_json::to_vec(self).expect("it has no keys but texts").into()
    }

    /// From bytes of the network.
    ///
    /// # Errors
    /// Why they are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > REQUEST_BYTES_MAX {
            return Err(format!("it is longer than {REQUEST_BYTES_MAX} bytes"));
        }
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }
}

impl Reply {
    /// As bytes.
    pub fn to_bytes(&self) -> Bytes {
        serde_json::to_vec(self).expect("it has no keys but texts").into()
    }

    /// From bytes of the network.
    ///
    /// # Errors
    /// Why they are none.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }
}

mod base64_text {
    use serde::{Deserializer, Serializer};

    use super::{BASE64_STANDARD, Bytes, Deserialize, Engine};

    pub fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64_STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64_STANDARD.decode(text).map(Bytes::from).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_are_read_as_they_were_written() {
        let requests = [
            (
                Request::Send {
                    device: "meter \"7\"".into(),
                    topic: "set".into(),
                    payload: Bytes::from_static(&[0, 255]),
                    acknowledge: true,
                    patience_ms: 5_000,
                },
                r#"{"do":"send","device":"meter \"7\"","topic":"set","payload":"AP8=","acknowledge":true,"patience_ms":5000}"#,
            ),
            (Request::Disconnect { device: "d".into() }, r#"{"do":"disconnect","device":"d"}"#),
            (Request::Has { device: "d".into() }, r#"{"do":"has","device":"d"}"#),
            (
                Request::Taken { device: "d".into(), lease: "l".into(), generation: 7, revision: 9 },
                r#"{"do":"taken","device":"d","lease":"l","generation":7,"revision":9}"#,
            ),
            (
                Request::Session { device: "d".into(), ask: SessionAsk::Messages { after: 7 } },
                r#"{"do":"session","device":"d","ask":{"wants":"messages","after":7}}"#,
            ),
            (
                Request::Call { call: Call::Devices { after: "a".into(), prefix: "".into(), limit: 7 } },
                r#"{"do":"call","call":{"what":"devices","after":"a","prefix":"","limit":7}}"#,
            ),
            (
                Request::Call {
                    call: Call::Broadcast {
                        topic: "t".into(),
                        payload: Bytes::from_static(&[0, 255]),
                        prefix: "m".into(),
                        per_second: 5,
                    },
                },
                r#"{"do":"call","call":{"what":"broadcast","topic":"t","payload":"AP8=","prefix":"m","per_second":5}}"#,
            ),
        ];
        for (request, text) in requests {
            assert_eq!(request.to_bytes(), text);
            assert_eq!(Request::parse(text.as_bytes()), Ok(request));
        }
        let refused = Reply::Refused { why: "it is too long".to_owned() };
        assert_eq!(refused.to_bytes(), r#"{"outcome":"refused","why":"it is too long"}"#);
        assert_eq!(Reply::Here { age_us: 7 }.to_bytes(), r#"{"outcome":"here","age_us":7}"#);
        let said = Reply::Said { body: r#"{"id":"1-1"}"#.to_owned() };
        assert_eq!(said.to_bytes(), r#"{"outcome":"said","body":"{\"id\":\"1-1\"}"}"#);
        let failed = Reply::Failed { code: "api_busy".to_owned(), why: "w".to_owned() };
        for reply in
            [refused, Reply::Here { age_us: u64::MAX }, Reply::Delivered, Reply::Late, Reply::Heard, said, failed]
        {
            assert_eq!(Reply::parse(&reply.to_bytes()), Ok(reply));
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in
            ["", "{}", "[]", r#"{"do":"else"}"#, r#"{"do":"disconnect"}"#, r#"{"do":"disconnect","device":"d","x":1}"#]
        {
            assert!(Request::parse(text.as_bytes()).is_err(), "{text}");
        }
        let long = format!(r#"{{"do":"disconnect","device":"{}"}}"#, "d".repeat(REQUEST_BYTES_MAX));
        assert!(Request::parse(long.as_bytes()).is_err_and(|why| why.contains("longer")));
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..2_000 {
            let bytes: Vec<u8> = (0..random.usize(..60)).map(|_| random.u8(..)).collect();
            assert!(Request::parse(&bytes).is_err() && Reply::parse(&bytes).is_err());
        }
    }
}

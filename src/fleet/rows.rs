//! What is written of sessions for the whole fleet: a row for each, and how far each gateway has come (decisions 0030, 0032). Pure.
//!
//! ```text
//!   key of PREFIX_sessions   {"node": …, "moves": …, "session": base64 of the image without its messages, "from": a place}
//!   key of PREFIX_cursors    {"stream": …, "position": …}
//!
//!   stream ────────────┼──────────────────────────────▶
//!                      from, or else the cursor of the row's gateway: whatever its device has not acknowledged is behind it,
//!                      or was brought there by another way
//! ```
//!
//! A row without `session` is of a gateway before this version, or of a session that is too large: what such a session has is with
//! its gateway alone. A gateway before this version reads node and moves, and writes rows without the rest.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use super::place::Position;
use crate::image::Session;

/// The longest image in a row, in bytes: with its base64 it fits into the smallest message that servers are usually let take.
pub const ROW_IMAGE_MAX: usize = 256 << 10;

/// A place in the fleet's stream: all that is needed lies behind it. Under a gateway's name: of each of its sessions that has no place
/// of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// Which stream: when it was made. Of another one all is needed.
    pub stream: Box<str>,
    /// Every message up to this one is needed no more.
    pub position: u64,
}

impl From<&Position> for Cursor {
    fn from(position: &Position) -> Self {
        Self { stream: (&*position.stream).into(), position: position.position }
    }
}

/// What stands in the row of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// The gateway that has it.
    pub node: Box<str>,
    /// How often it has moved. What a gateway has of an earlier time is void.
    #[serde(default)]
    pub moves: u64,
    /// Its head and its subscriptions: see [`SessionRow::outline`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Box<str>>,
    /// From behind which place in the fleet's stream what its device has not acknowledged is to be read; `None`: its gateway's cursor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Cursor>,
    /// Somebody else has published its will, while its gateway was dead.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_willed: bool,
}

impl SessionRow {
    /// The session without its messages, as its gateway wrote it last: under no key, and without what changes with each packet. `None`:
    /// there is none, or it cannot be read.
    #[must_use]
    pub fn outline(&self) -> Option<Session> {
        let bytes = BASE64_STANDARD.decode(&**self.session.as_ref()?).ok()?;
        Session::decode(&bytes).inspect_err(|error| tracing::warn!(%error, "the row of a session holds none")).ok()
    }

    /// Whether a will that `node` still has of the session is no more its affair: the session is at another gateway, or, while this one was
    /// away, its will was published.
    #[must_use]
    pub fn voids_will_of(&self, node: &str) -> bool {
        self.is_willed || (!self.node.is_empty() && *self.node != *node)
    }

    /// Writes the session into the row, without its messages. `false`: it is too large for one, and is not in it.
    pub fn set_outline(&mut self, session: Session) -> bool {
        self.session = encoded(session);
        self.session.is_some()
    }
}

/// How it stands in a row: what is the same is the same bytes. `None`: it is too large.
fn encoded(mut session: Session) -> Option<Box<str>> {
    session.head.key = crate::image::SessionKey::default();
    (session.head.last_packet, session.head.away_since_ms) = (0, None);
    (session.messages, session.outstanding, session.received) = (Vec::new(), Vec::new(), Vec::new());
    session.subscriptions.sort_by(|one, other| one.filter.cmp(&other.filter));
    let mut bytes = Vec::new();
    session.encode(&mut bytes);
    (bytes.len() <= ROW_IMAGE_MAX).then(|| BASE64_STANDARD.encode(bytes).into())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::image::{Head, Profile, Publication, Received, SessionKey, Subscription, Will};
    use crate::link::QoS;

    fn session() -> Session {
        let profile = Profile {
            version: 5,
            listener: "mqtt".into(),
            keep_alive_s: 30,
            expiry_s: 3_600,
            receive_maximum: 20,
            packet_maximum: 65_536,
            alias_maximum: 0,
        };
        let publication = Publication {
            topic: "gone".into(),
            payload: Bytes::from_static(b"meter"),
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: Box::default(),
            expires_ms: None,
        };
        let will = Some(Box::new(Will { publication, expiry_s: None, delay_s: 5 }));
        let (key, name) = (SessionKey(7), "meter".into());
        let head = Head { key, name, profile, away_since_ms: Some(9), last_packet: 11, will };
        let subscription = |filter: &str| Subscription { filter: filter.into(), options: 1, identifier: 0 };
        Session {
            head,
            subscriptions: vec![subscription("set/#"), subscription("$share/g/all")],
            messages: Vec::new(),
            outstanding: Vec::new(),
            received: vec![Received { packet: 3, origin: 0 }],
        }
    }

    #[test]
    fn a_row_has_the_session_without_what_changes_with_each_packet() {
        let mut row = SessionRow { node: "gate-1".into(), moves: 2, session: None, from: None, is_willed: false };
        assert!(row.set_outline(session()));
        row.from = Some(Cursor { stream: "2026-01-01T00:00:00Z".into(), position: 41 });
        let text = serde_json::to_string(&row).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"node":"gate-1","moves":2,"session":"UwIAAAAAAAAAAAVtZXRlcgUEbXF0dAAeAAAOEAAUAAEAAAAAAAAAAQAAAAUAAAEEZ29u"#,
                r#"ZQAFbWV0ZXICDCRzaGFyZS9nL2FsbAEAAAAABXNldC8jAQAAAAAAAAA=","#,
                r#""from":{"stream":"2026-01-01T00:00:00Z","position":41}}"#
            )
        );
        assert_eq!(serde_json::from_str::<SessionRow>(&text).unwrap(), row);
        let read = row.outline().unwrap();
        assert_eq!((&*read.head.name, read.head.key, read.head.last_packet), ("meter", SessionKey(0), 0));
        assert_eq!((read.head.will.clone(), read.subscriptions.len()), (session().head.will, 2));
        // In another order, later, and with something half done: nothing to write.
        let (mut again, mut other) = (session(), row.clone());
        again.subscriptions.reverse();
        (again.head.last_packet, again.head.away_since_ms) = (99, None);
        assert!(other.set_outline(again) && other == row);
    }

    #[test]
    fn rows_of_the_version_before_are_read_and_nonsense_is_no_session() {
        let row: SessionRow = serde_json::from_str(r#"{"node":"a","moves":3}"#).unwrap();
        assert_eq!(row, SessionRow { node: "a".into(), moves: 3, session: None, from: None, is_willed: false });
        assert_eq!(
            (row.outline(), serde_json::to_string(&row).unwrap()),
            (None, r#"{"node":"a","moves":3}"#.to_owned())
        );
        for session in ["", "!", "UwIA", "AAAA"] {
            let row = SessionRow { session: Some(session.into()), ..SessionRow::default() };
            assert_eq!(row.outline(), None, "{session}");
        }
    }

    #[test]
    fn a_session_that_is_too_large_is_not_in_its_row() {
        let mut large = session();
        let filter =
            |number: usize| Subscription { filter: format!("{number:0>1000}").into(), options: 1, identifier: 0 };
        large.subscriptions = (0..300).map(filter).collect();
        let mut row = SessionRow::default();
        assert!(!row.set_outline(large.clone()) && row.session.is_none());
        large.subscriptions.truncate(250);
        assert!(row.set_outline(large) && row.outline().unwrap().subscriptions.len() == 250);
    }
}

//! The fleet's bucket of retained messages: `PREFIX_retained`, a key for each topic, the latest of which stays (decision 0029).
//!
//! ```text
//!   key      a level of the topic a token: site/4/power is site.4.power; what a key does not take is =XX
//!   value    the payload; headers say how it was published, and its stamp. A deletion is empty and says KV-Operation: DEL
//! ```
//!
//! A write expects the revision that was seen, so that of two at the same time one is told; it reads what is there, and the later stamp
//! stays. So a key's stamps only grow, whoever writes and whatever is sent again.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;

use super::publication::Publishing;
use super::subject::unescape;
use super::{SUBJECT_BYTES_MAX, in_words, is_refusal};
use crate::link::Stamp;

/// The server's answers to a write whose key is not as expected.
pub const NOT_AS_EXPECTED: [ErrorCode; 2] =
    [ErrorCode::STREAM_WRONG_LAST_SEQUENCE, ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT];
/// A stamp so far ahead of the clock here is none of a gateway that can be followed: it counts as older than any other.
pub const AHEAD_MAX: Duration = Duration::from_mins(10);
/// How often one message is tried while others write under the same topic.
const TRIES: usize = 32;
/// Keys whose revisions are remembered; then all are forgotten, which costs a question more for each.
const KNOWN_MAX: usize = 8_192;
/// How a client of buckets says that a key is no more.
const OPERATION: &str = "KV-Operation";
const DELETED: &str = "DEL";

/// See [`RetainedBucket::put`].
#[derive(Debug)]
pub enum NotKept {
    /// The server will not take it for what it is. Why.
    Refused(String),
    /// It did not answer, or not so that it is there. Why.
    Lost(String),
}

/// What stands under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its place among those of its topic.
    pub stamp: Stamp,
    /// How it was published; none: somebody deleted the key by hand.
    pub publishing: Option<Publishing>,
}

/// See the head of this file.
pub struct RetainedBucket {
    context: Context,
    stream: Stream<()>,
    prefix: String,
    /// By subject: the revision that was written here, and its stamp.
    known: Mutex<HashMap<String, (u64, Stamp)>>,
    /// Messages that were not written because later ones were there.
    superseded: Arc<AtomicU64>,
}

impl RetainedBucket {
    /// That of the fleet whose names begin so. Asks nobody. What gives way to something later is counted in `superseded`.
    ///
    /// # Errors
    /// The prefix makes no name of a stream.
    pub async fn new(context: &Context, prefix: &str, superseded: Arc<AtomicU64>) -> Result<Self, String> {
        let stream = context.get_stream_no_info(format!("KV_{}", name(prefix))).await;
        let stream = stream.map_err(|error| in_words(&error))?;
        Ok(Self { context: context.clone(), stream, prefix: prefix.to_owned(), known: Mutex::default(), superseded })
    }

    /// Keeps a message as the one of its topic, or deletes that where it is empty, unless a later one is there. Returns when the bucket
    /// has it, or that one.
    ///
    /// # Errors
    /// [`NotKept`]: it may be there nevertheless.
    pub async fn put(&self, topic: &str, payload: Bytes, how: &Publishing) -> Result<(), NotKept> {
        let subject = subject(&self.prefix, topic);
        if subject.len() > SUBJECT_BYTES_MAX {
            return Err(NotKept::Refused("its topic is longer than a bucket takes".to_owned()));
        }
        let mut there = self.known(&subject);
        for _ in 0..TRIES {
            let expected = match step(there, how.stamp, is_ahead) {
                Step::Write(expected) => expected,
                Step::GivesWay { is_later } => {
                    self.superseded.fetch_add(u64::from(is_later), Ordering::Relaxed);
                    return Ok(());
                }
            };
            if let Some(revision) = self.write(&subject, expected, payload.clone(), how).await? {
                self.remember(subject, revision, how.stamp);
                return Ok(());
            }
            let last = self.last(&subject).await.map_err(NotKept::Lost)?;
            there = last.map(|(revision, held)| (revision, held.stamp));
        }
        Err(NotKept::Lost(format!("others write under {subject} again and again")))
    }

    /// The revision; `None`: the key was not as expected.
    async fn write(
        &self,
        subject: &str,
        expected: u64,
        payload: Bytes,
        how: &Publishing,
    ) -> Result<Option<u64>, NotKept> {
        let mut headers = HeaderMap::new();
        how.write(&mut headers);
        headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
        if payload.is_empty() {
            headers.insert(OPERATION, DELETED);
        }
        let settled = match self.context.publish_with_headers(subject.to_owned(), headers, payload).await {
            Ok(acknowledged) => acknowledged.await,
            Err(error) => Err(error),
        };
        match settled {
            Ok(acknowledged) => Ok(Some(acknowledged.sequence)),
            Err(error) if is_conflict(&error) => Ok(None),
            Err(error) if is_refusal(&error) => Err(NotKept::Refused(in_words(&error))),
            Err(error) => Err(NotKept::Lost(in_words(&error))),
        }
    }

    /// What stands there, and its revision, as the stream's leader has it.
    async fn last(&self, subject: &str) -> Result<Option<(u64, Held)>, String> {
        match self.stream.get_last_raw_message_by_subject(subject).await {
            Ok(message) => Ok(Some((message.sequence, held(&message)))),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(in_words(&error)),
        }
    }

    fn known(&self, subject: &str) -> Option<(u64, Stamp)> {
        self.known.lock().expect("no holder panics").get(subject).copied()
    }

    fn remember(&self, subject: String, revision: u64, stamp: Stamp) {
        let mut known = self.known.lock().expect("no holder panics");
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        // Of two at the same time the later revision has the later stamp.
        let entry = known.entry(subject).or_insert((revision, stamp));
        if entry.0 < revision {
            *entry = (revision, stamp);
        }
    }
}

/// What is to be done about a message while this stands under its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is written over this revision; 0: over nothing.
    Write(u64),
    /// It is there already, or a later one is (`is_later`).
    GivesWay {
        /// See there.
        is_later: bool,
    },
}

/// See [`Step`]. `there`: a revision and its stamp. What is further ahead than a clock may be counts as older than whatever is published.
pub fn step(there: Option<(u64, Stamp)>, stamp: Stamp, is_ahead: impl FnOnce(Stamp) -> bool) -> Step {
    match there {
        None => Step::Write(0),
        Some((_, held)) if held >= stamp && !is_ahead(held) => Step::GivesWay { is_later: held > stamp },
        Some((revision, _)) => Step::Write(revision),
    }
}

/// Whether a stamp is further ahead of the clock here than a gateway's may be.
pub fn is_ahead(stamp: Stamp) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    is_ahead_of(stamp, u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// The same of a clock that shows this, in milliseconds since 1970.
pub fn is_ahead_of(stamp: Stamp, now_ms: u64) -> bool {
    stamp.unix_ms() > now_ms.saturating_add(AHEAD_MAX.as_millis() as u64)
}

/// Whether the key was not as expected.
pub fn is_conflict(error: &PublishError) -> bool {
    let code = std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<jetstream::Error>())
        .map(jetstream::Error::error_code);
    error.kind() == PublishErrorKind::WrongLastSequence || code.is_some_and(|code| NOT_AS_EXPECTED.contains(&code))
}

fn held(message: &StreamMessage) -> Held {
    held_of(&message.headers, message.time.unix_timestamp_nanos())
}

/// What a message in the bucket says that the server has since this time, in nanoseconds since 1970.
pub fn held_of(headers: &HeaderMap, since_ns: i128) -> Held {
    if let Some(publishing) = Publishing::read(headers).filter(|publishing| !publishing.stamp.is_none()) {
        return Held { stamp: publishing.stamp, publishing: Some(publishing) };
    }
    // Deleted by hand, or written by somebody else: as of when that was.
    let unix_ms = u64::try_from(since_ns / 1_000_000).unwrap_or(0);
    Held { stamp: Stamp { clock: Stamp::clock_at(unix_ms), node: 0 }, publishing: None }
}

/// Whether headers say that the key is no more.
pub fn is_deletion(headers: &HeaderMap) -> bool {
    headers.get(OPERATION).map(HeaderValue::as_str).is_some_and(|said| matches!(said, DELETED | "PURGE"))
}

/// The bucket's name.
pub fn name(prefix: &str) -> String {
    format!("{prefix}_retained")
}

/// The subject of a topic's key.
pub fn subject(prefix: &str, topic: &str) -> String {
    let mut subject = format!("$KV.{}", name(prefix));
    for level in topic.split('/') {
        subject.push('.');
        push_key(level, &mut subject);
    }
    subject
}

/// Whose key a subject is; `None`: no topic's.
pub fn topic_of(prefix: &str, subject: &str) -> Option<String> {
    let key = subject.strip_prefix("$KV.")?.strip_prefix(&*name(prefix))?.strip_prefix('.')?;
    let levels: Option<Vec<String>> = key.split('.').map(unkey).collect();
    Some(levels?.join("/"))
}

/// The key of a name.
pub fn key(name: &str) -> String {
    let mut key = String::with_capacity(name.len());
    push_key(name, &mut key);
    key
}

fn push_key(name: &str, key: &mut String) {
    if name.is_empty() {
        key.push_str("=_");
    }
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            key.push(byte as char);
        } else {
            let _ = write!(key, "={byte:02X}");
        }
    }
}

/// The name of a key; `None`: [`key`] never wrote it.
pub fn unkey(written: &str) -> Option<String> {
    if written == "=_" {
        return Some(String::new());
    }
    unescape(written, b'=').filter(|name| key(name) == written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_topic_has_a_key_of_its_own_that_is_read_back() {
        assert_eq!(subject("p", "site/4/power"), "$KV.p_retained.site.4.power");
        assert_eq!(subject("p", "/a.b//ä"), "$KV.p_retained.=_.a=2Eb.=_.=C3=A4");
        assert_eq!(topic_of("p", "$KV.p_retained.a..b"), None);
        assert_eq!(topic_of("p", "$KV.q_retained.a"), None);
        let alphabet = ['a', '0', '/', '.', '*', '>', '=', '%', ' ', '$', 'é', '_', 'E'];
        let mut random = fastrand::Rng::with_seed(6);
        let mut all = HashMap::new();
        for _ in 0..20_000 {
            let topic: String = (0..random.usize(1..7)).map(|_| alphabet[random.usize(..alphabet.len())]).collect();
            let subject = subject("p", &topic);
            assert_eq!(topic_of("p", &subject).as_deref(), Some(&*topic), "{subject}");
            assert!(subject.split('.').all(|token| !token.is_empty()) && !subject.contains(['*', '>', ' ']));
            assert_eq!(all.entry(subject).or_insert_with(|| topic.clone()), &topic);
        }
    }

    #[test]
    fn what_a_key_says_is_what_was_written_or_when_it_was_deleted() {
        let stamp = Stamp { clock: 6, node: 4 };
        let how = Publishing { stamp, retain: true, ..Publishing::plain("n") };
        let mut headers = HeaderMap::new();
        how.write(&mut headers);
        assert_eq!(held_of(&headers, 0), Held { stamp, publishing: Some(how) });
        let mut by_hand = HeaderMap::new();
        by_hand.insert(OPERATION, "PURGE");
        let then = Held { stamp: Stamp { clock: Stamp::clock_at(5), node: 0 }, publishing: None };
        assert_eq!((is_deletion(&by_hand), held_of(&by_hand, 5_999_999)), (true, then));
        assert!(!is_deletion(&headers) && !is_ahead(stamp) && is_ahead(Stamp { clock: u64::MAX, node: 0 }));
    }
}

//! Who is kept out of the whole fleet: a row for each in a bucket of its own, which every gateway reads when it connects and whenever
//! it has changed.
//!
//! A change is told to the others at once; a gateway that does not hear finds it in the bucket when it is back. What was changed
//! while the bucket was being read is left as it was said, and the bucket is read again.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::server::{Server, Written};
use super::{Fleet, Unreachable};
use crate::link::Subject;

/// The most rows that are read: more than any gateway's list takes.
const ROWS_MAX: usize = 250_000;

/// One who is kept out, and the time of day until which; `None`: for good.
pub type Blocked = (Subject, Option<SystemTime>);

/// Which state a bucket is in: another one, if anything was written or removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// The latest revision there ever was; 0: nothing was ever written.
    pub last: u64,
    /// Rows that are there.
    pub rows: u64,
}

/// A row. What it is about is said by exactly one of the three.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRow {
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<String>,
    /// As Unix time in milliseconds; none: for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    until_ms: Option<u64>,
}

impl BlockRow {
    /// As it is written.
    pub fn new((subject, until): &Blocked) -> Self {
        let since = |time: &SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut row = Self { until_ms: until.as_ref().map(|until| since(until).as_millis() as u64), ..Self::default() };
        match subject {
            Subject::Device(id) => row.device = Some(id.clone()),
            Subject::Certificate(fingerprint) => row.certificate = Some(fingerprint.to_string()),
            Subject::Network(network) => row.network = Some(network.to_string()),
        }
        row
    }

    /// What it says; `None`: nothing that is understood.
    pub fn blocked(self) -> Option<Blocked> {
        let subject = match (self.device, self.certificate, self.network) {
            (Some(id), None, None) if !id.is_empty() => Subject::Device(id),
            (None, Some(fingerprint), None) => Subject::Certificate(fingerprint.parse().ok()?),
            (None, None, Some(network)) => Subject::Network(network.parse().ok()?),
            _ => return None,
        };
        let until = self.until_ms.map(|ms| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
        match until {
            None => Some((subject, None)),
            // Beyond all time is for good.
            Some(until) => Some((subject, until)),
        }
    }
}

/// Whom a change was about, and when by the count of changes: whoever reads the bucket meanwhile may have read what was before it.
#[derive(Debug, Default)]
pub struct Touched(Mutex<Touches>);

#[derive(Debug, Default)]
struct Touches {
    count: u64,
    latest: HashMap<Subject, u64>,
}

impl Touched {
    fn lock(&self) -> MutexGuard<'_, Touches> {
        self.0.lock().expect("no holder panics")
    }

    /// Somebody is about to be kept out or let in, or just was.
    fn touch(&self, subject: &Subject) {
        let mut touches = self.lock();
        touches.count += 1;
        let count = touches.count;
        touches.latest.insert(subject.clone(), count);
    }

    /// How many changes there were.
    pub fn count(&self) -> u64 {
        self.lock().count
    }

    /// Whom changes were about that came after the first `count`. Those before are forgotten.
    fn since(&self, count: u64) -> BTreeSet<Subject> {
        let mut touches = self.lock();
        touches.latest.retain(|_, at| *at > count);
        touches.latest.keys().cloned().collect()
    }
}

impl Fleet {
    /// A block is about to be changed here, or just was: what the bucket is found to say of it meanwhile does not count.
    pub fn touch_block(&self, subject: &Subject) {
        self.shared.touched.touch(subject);
    }

    /// Whom blocks were about that were changed after the first `count` changes ([`super::Order::Blocks`]).
    #[must_use]
    pub fn touched_since(&self, count: u64) -> BTreeSet<Subject> {
        self.shared.touched.since(count)
    }

    /// Writes that somebody is kept out of the fleet, for whoever connects.
    ///
    /// # Errors
    /// [`Unreachable::Away`]: it is not known to be written.
    pub async fn write_block(&self, blocked: &Blocked, deadline: Instant) -> Result<(), Unreachable> {
        let server = self.shared.server().ok_or(Unreachable::Away)?;
        let row = serde_json::to_vec(&BlockRow::new(blocked)).expect("it has no keys but texts");
        let written = server.put(server.names.block(&blocked.0), row.into());
        match within(deadline, written).await {
            Some(Written::At(_)) => Ok(()),
            _ => Err(Unreachable::Away),
        }
    }

    /// Takes that away. `true`: it was there.
    ///
    /// # Errors
    /// [`Unreachable::Away`]: it is not known to be gone.
    pub async fn remove_block(&self, subject: &Subject, deadline: Instant) -> Result<bool, Unreachable> {
        let server = self.shared.server().ok_or(Unreachable::Away)?;
        let removed = within(deadline, server.remove_block(subject)).await;
        removed.and_then(Result::ok).ok_or(Unreachable::Away)
    }
}

async fn within<T>(deadline: Instant, asked: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(deadline.saturating_duration_since(Instant::now()), asked).await.ok()
}

/// All rows of the bucket. Rows that say nothing that is understood are passed over, and so are those that have ended, which go.
///
/// # Errors
/// There is no answer; why.
pub async fn read_all(server: &Server) -> Result<Vec<Blocked>, String> {
    let (mut all, mut revision, today) = (Vec::new(), 0, SystemTime::now());
    while let Some((at, payload)) = server.next_block(revision + 1).await? {
        revision = at;
        if all.len() >= ROWS_MAX {
            return Err(format!("the bucket of blocks has more than {ROWS_MAX} rows: no gateway writes so many"));
        }
        let row: BlockRow = serde_json::from_slice(&payload).unwrap_or_default();
        match row.blocked() {
            Some((_, Some(until))) if until <= today => {
                server.remove_block_at(at).await?;
            }
            Some(blocked) => all.push(blocked),
            None => tracing::warn!(
                revision,
                "a row of the bucket of blocks is not understood: whoever wrote it is newer, or no gateway"
            ),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_they_were_written() {
        let until = SystemTime::UNIX_EPOCH + Duration::from_millis(1_764_108_000_123);
        for (blocked, text) in [
            ((Subject::Device("a \"b\"".into()), None), r#"{"device":"a \"b\""}"#.to_owned()),
            (
                (Subject::Network("192.0.2.0/24".parse().unwrap()), Some(until)),
                r#"{"network":"192.0.2.0/24","until_ms":1764108000123}"#.to_owned(),
            ),
            (
                (Subject::Certificate("ab".repeat(32).parse().unwrap()), None),
                format!(r#"{{"certificate":"{}"}}"#, "ab".repeat(32)),
            ),
        ] {
            assert_eq!(serde_json::to_string(&BlockRow::new(&blocked)).unwrap(), text);
            assert_eq!(serde_json::from_str::<BlockRow>(&text).unwrap().blocked(), Some(blocked));
        }
        for text in ["{}", r#"{"device":""}"#, r#"{"device":"a","network":"192.0.2.0/24"}"#, r#"{"certificate":"12"}"#]
        {
            assert_eq!(serde_json::from_str::<BlockRow>(text).unwrap().blocked(), None, "{text}");
        }
        let far = format!(r#"{{"device":"a","until_ms":{}}}"#, u64::MAX);
        assert!(serde_json::from_str::<BlockRow>(&far).unwrap().blocked().is_some());
    }

    #[test]
    fn what_was_changed_while_the_bucket_was_read_is_known() {
        let device = |id: &str| Subject::Device(id.into());
        let touched = Touched::default();
        touched.touch(&device("before"));
        touched.touch(&device("begun before"));
        let begun = touched.count();
        touched.touch(&device("begun before"));
        touched.touch(&device("meanwhile"));
        assert_eq!(touched.since(begun), BTreeSet::from([device("begun before"), device("meanwhile")]));
        let later = touched.count();
        assert_eq!(touched.since(later), BTreeSet::new());
        assert!(touched.lock().latest.is_empty(), "nothing is kept for nobody");
    }
}

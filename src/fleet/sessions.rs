//! Where the session of each device is: a row of a bucket for each session that outlives its connection (decision 0030).
//!
//! Whoever has written the row has the session. Each write names the revision that it replaces, so of two that want a session one
//! gets it, and whoever lost it finds another's name there and disowns its copy. A row stays as it is while a device comes and goes
//! at one gateway: only a move writes, the first CONNECT, and the end.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::requests;
use super::rows::{Cursor, SessionRow};
use super::server::{Server, Written};
use super::wire::Request;
use super::{Arrival, Fleet, Unreachable};

/// How long a gateway may take to answer one question about a session.
pub const SESSION_ASK_MAX: Duration = Duration::from_secs(3);
/// How long all that others have published until now may take to come.
const END_MAX: Duration = Duration::from_secs(2);

/// What one gateway wants of another about a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "wants", rename_all = "snake_case", deny_unknown_fields)]
pub enum SessionAsk {
    /// To take it: answered by `Reply::Session`, `Reply::Offline` where there is none, `Reply::Unacknowledged` where its device is
    /// connected there, and `Reply::Busy` where it cannot be given now.
    Offer,
    /// Its head, and as many of its subscriptions from this one on as one answer holds: a `Session` as `image` encodes it.
    Head {
        /// The number of the first.
        from: usize,
    },
    /// What was published until now is to be with it: answered as `Offer`.
    Cut,
    /// Messages behind this number, as many as one answer holds: a `Session` as `image` encodes it; without one there is no more.
    Messages {
        /// The number.
        after: u64,
    },
    /// It is the other's now: it goes from here. `ends`: it has ended instead.
    Forget {
        /// Whether it has ended.
        ends: bool,
    },
}

/// What became of a change of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowChange {
    /// It is so, at this revision.
    Done(u64),
    /// It was another one.
    Conflict,
    /// Nobody knows.
    Lost(String),
}

impl Fleet {
    /// What this gateway is called.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.shared.node
    }

    /// Whether NATS is there.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared.server().is_some()
    }

    /// How often it has come to be one of the fleet: after each time others may have what it had.
    #[must_use]
    pub fn joined(&self) -> u64 {
        self.shared.joined.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Whether no gateway has any session, as far as was known a moment ago.
    #[must_use]
    pub fn has_no_sessions(&self) -> bool {
        self.shared.session_rows.load(std::sync::atomic::Ordering::Relaxed) == 0
    }

    /// The row of a device's session and its revision; `None`: it has none.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn session_row(&self, device: &str) -> Result<Option<(u64, SessionRow)>, String> {
        self.server()?.session_row(device).await
    }

    /// Writes a session's row over this revision; 0: if there is none.
    pub async fn write_row(&self, device: &str, expected: u64, row: &SessionRow) -> RowChange {
        let server = match self.server() {
            Ok(server) => server,
            Err(why) => return RowChange::Lost(why),
        };
        let payload = serde_json::to_vec(row).expect("it has no keys but texts");
        match server.write(server.names.session(device), expected, payload.into()).await {
            Written::At(revision) => {
                self.shared.session_rows.fetch_add(u64::from(expected == 0), std::sync::atomic::Ordering::Relaxed);
                RowChange::Done(revision)
            }
            Written::Conflict => RowChange::Conflict,
            Written::Lost(why) => RowChange::Lost(why),
        }
    }

    /// Writes how far this gateway has come with its sessions. `false`: it may not have been written.
    pub async fn write_cursor(&self, cursor: &Cursor) -> bool {
        let Ok(server) = self.server() else { return false };
        matches!(server.write_cursor(&self.shared.node, cursor).await, Written::At(_))
    }

    /// Takes away the row of this revision, and no newer one. `true`: it was there.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn remove_session_row(&self, revision: u64) -> Result<bool, String> {
        self.server()?.remove_session_row(revision).await
    }

    /// Whether a gateway has a lease, as was read a moment ago, once for all who ask. One without has died, or begins anew.
    ///
    /// # Errors
    /// There is no answer; why.
    pub async fn is_live(&self, node: &str) -> Result<bool, String> {
        self.shared.leases.has_any(&self.server()?, node).await
    }

    /// Asks another gateway about a session. Its answer as bytes: a `Reply`, or an image.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub async fn ask_session(&self, node: &str, device: &str, ask: SessionAsk) -> Result<Bytes, Unreachable> {
        let server = self.shared.server().ok_or(Unreachable::Away)?;
        let request = Request::Session { device: device.into(), ask };
        let answer =
            requests::ask(&server, node, request.to_bytes(), SESSION_ASK_MAX + Duration::from_millis(500)).await;
        answer.map_err(|_| Unreachable::Silent(node.to_owned()))
    }

    /// Ends when all that was published elsewhere until now, and is wanted here, is with everybody here whom it is for. `false`: it
    /// has not come in time.
    pub async fn reach_end(&self) -> bool {
        if !self.has_stream {
            return true;
        }
        let (reached, end) = oneshot::channel();
        self.shared.ends().push(reached);
        self.shared.interest_bell.notify_one();
        matches!(tokio::time::timeout(END_MAX, end).await, Ok(Ok(())))
    }

    pub(super) fn server(&self) -> Result<Server, String> {
        self.shared.server().ok_or_else(|| "NATS is away".to_owned())
    }
}

/// Those who wait until all that was published until a place in the stream has come.
#[derive(Debug, Default)]
pub(super) struct Ends {
    waiting: Vec<(u64, oneshot::Sender<()>)>,
}

impl Ends {
    /// Further ones wait for this place.
    pub fn wait(&mut self, place: u64, new: Vec<oneshot::Sender<()>>) {
        self.waiting.extend(new.into_iter().map(|end| (place, end)));
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// It has come so far; `is_read`: all that there is has.
    pub fn reach(&mut self, position: u64, is_read: bool) -> Vec<Arrival> {
        let reached = |(place, end): &mut (u64, oneshot::Sender<()>)| is_read || *place <= position || end.is_closed();
        self.waiting.extract_if(.., reached).map(|(_, end)| Arrival::End(end)).collect()
    }
}

/// When the ends are looked at again.
pub(super) const ENDS_EVERY: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_is_told_when_his_place_has_come_or_all_there_is() {
        let mut ends = Ends::default();
        let wait = |ends: &mut Ends, place| {
            let (end, waits) = oneshot::channel();
            ends.wait(place, vec![end]);
            waits
        };
        let (first, second, third) = (wait(&mut ends, 5), wait(&mut ends, 9), wait(&mut ends, 20));
        assert_eq!(ends.reach(4, false).len(), 0);
        assert_eq!(ends.reach(5, false).len(), 1);
        drop(third);
        assert_eq!(ends.reach(6, false).len(), 1, "who has given up is kept no longer");
        assert_eq!(ends.reach(6, true).len(), 1, "the stream ends before the place: nothing is left to come");
        assert!(ends.is_empty());
        drop((first, second));
    }
}

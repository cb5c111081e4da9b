//! One session, read for another gateway of the fleet that takes it (decision 0030).

use rusqlite::{Connection, OptionalExtension};
use tokio::sync::oneshot;

use super::queue::Request;
use super::reading::Reader;
use super::sessions::{Unreadable, unreadable};
use super::{Store, StoreError};
use crate::image::{Head, Outstanding, Received, Session, SessionKey, Subscription};

impl Reader {
    /// The session of this device, without its messages ([`Reader::messages`]).
    ///
    /// # Errors
    /// The file cannot be read, or says what cannot be.
    pub fn session(&self, device: &str) -> Result<Option<Session>, StoreError> {
        self.look(|connection| read_session(connection, device))
    }

    /// Sessions by the order of their keys behind this one, at most so many: each one's key and whose it is.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn session_names(&self, after: SessionKey, count: usize) -> Result<Vec<(SessionKey, Box<str>)>, StoreError> {
        self.query(|connection| {
            let sql = "SELECT key, name FROM session WHERE key > ?1 ORDER BY key LIMIT ?2";
            let mut statement = connection.prepare_cached(sql)?;
            let name = |row: &rusqlite::Row<'_>| Ok((SessionKey(row.get(0)?), row.get::<_, String>(1)?.into()));
            statement.query_map([after.0, count as u64], name)?.collect()
        })
    }
}

impl Store {
    /// The number of the latest event, once all events that were offered before are safe.
    ///
    /// # Errors
    /// The store is closed, or has no room.
    pub async fn behind(&self) -> Result<u64, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.shared.queue.ask(Request::Behind { answer });
        answered.await.unwrap_or(Err(StoreError::Closed))?;
        Ok(self.head().borrow().last)
    }
}

fn read_session(connection: &Connection, device: &str) -> Result<Option<Session>, Unreadable> {
    let sql = "SELECT image, away_since FROM session WHERE name = ?1";
    let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?));
    let Some((image, away_since_ms)) = connection.prepare_cached(sql)?.query_row([device], row).optional()? else {
        return Ok(None);
    };
    let head = Head::decode(&image).map_err(unreadable(format_args!("the session of {device:?}")))?;
    let key = head.key.0;
    let sql = "SELECT filter, options, identifier FROM subscription WHERE session = ?1 ORDER BY filter";
    let mut subscriptions = Vec::new();
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([key])?;
    while let Some(row) = rows.next()? {
        let filter = row.get::<_, String>(0)?.into();
        let subscription = Subscription { filter, options: row.get(1)?, identifier: row.get(2)? };
        subscription.check().map_err(unreadable(format_args!("a subscription of {device:?}")))?;
        subscriptions.push(subscription);
    }
    let sql = "SELECT number, packet FROM queue WHERE session = ?1 AND message IS NULL AND packet IS NOT NULL ORDER BY number";
    let outstanding = connection
        .prepare_cached(sql)?
        .query_map([key], |row| Ok(Outstanding { number: row.get(0)?, packet: row.get(1)? }))?
        .collect::<rusqlite::Result<_>>()?;
    let sql = "SELECT packet, origin FROM received WHERE session = ?1 ORDER BY packet";
    let received = connection
        .prepare_cached(sql)?
        .query_map([key], |row| Ok(Received { packet: row.get(0)?, origin: row.get(1)? }))?
        .collect::<rusqlite::Result<_>>()?;
    let head = Head { away_since_ms, ..head };
    Ok(Some(Session { head, subscriptions, messages: Vec::new(), outstanding, received }))
}

//! What the store keeps for sinks beside their cursors.
//!
//! A sink reads as a consumer whose name nobody else can take: [`SINK_PREFIX`] and its own. Where it was in the middle of
//! a batch is kept, so that after a restart the same events go out together and can be known by whoever has them already.

use rusqlite::{OptionalExtension, Transaction, params};

use super::error::StoreError;
use super::reading::Reader;

/// How the names of the consumers begin that are sinks'. No other name holds a colon.
pub const SINK_PREFIX: &str = "sink:";

/// What a sink must know of itself after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkNote {
    /// Whether it was told to wait.
    Paused(bool),
    /// The last event of the batch that it begins to send.
    Batch(u64),
}

/// All such notes, as they were written last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkState {
    /// It was told to wait.
    pub is_paused: bool,
    /// The last event of the batch that was begun latest; 0: none was.
    pub batch_last: u64,
}

pub(super) fn write(transaction: &Transaction<'_>, consumer: &str, note: SinkNote) -> rusqlite::Result<()> {
    let fresh = "INSERT INTO sink VALUES (?1, 0, 0) ON CONFLICT DO NOTHING";
    transaction.prepare_cached(fresh)?.execute([consumer])?;
    match note {
        SinkNote::Paused(is_paused) => transaction
            .prepare_cached("UPDATE sink SET is_paused = ?2 WHERE consumer = ?1")?
            .execute(params![consumer, is_paused])?,
        SinkNote::Batch(last) => transaction
            .prepare_cached("UPDATE sink SET batch_last = ?2 WHERE consumer = ?1")?
            .execute(params![consumer, last])?,
    };
    Ok(())
}

impl Reader {
    /// What was noted of the sink whose consumer is `consumer`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn sink(&self, consumer: &str) -> Result<SinkState, StoreError> {
        self.query(|connection| {
            let mut statement =
                connection.prepare_cached("SELECT is_paused, batch_last FROM sink WHERE consumer = ?1")?;
            let state = statement
                .query_row([consumer], |row| Ok(SinkState { is_paused: row.get(0)?, batch_last: row.get(1)? }));
            Ok(state.optional()?.unwrap_or_default())
        })
    }

    /// Twelve hexadecimal digits that no other store has.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn identity(&self) -> Result<String, StoreError> {
        self.query(|connection| connection.query_row("SELECT store FROM identity", [], |row| row.get(0)))
    }
}

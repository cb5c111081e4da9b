//! How far what was published at other gateways of a fleet has come here: beside the sessions that it went to, so that a gateway which
//! begins anew goes on where its sessions are.

use rusqlite::{OptionalExtension, Transaction, params};

use super::Store;
use super::error::StoreError;
use super::queue::Request;
use super::reading::Reader;

/// A place in the fleet's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetPosition {
    /// Which stream: when it was made.
    pub stream: Box<str>,
    /// Every message up to this one was taken, and is with everybody here whom it is for.
    pub position: u64,
}

/// Gives back the position.
pub(super) fn write(transaction: &Transaction<'_>, at: &FleetPosition) -> rusqlite::Result<u64> {
    let sql = "INSERT INTO fleet VALUES (1, ?1, ?2) ON CONFLICT DO UPDATE SET stream = ?1, position = ?2";
    transaction.prepare_cached(sql)?.execute(params![at.stream, at.position]).map(|_| at.position)
}

impl Store {
    /// Keeps how far what was published at other gateways has come here. Answered when it is safe.
    ///
    /// # Errors
    /// The store is closed.
    pub async fn keep_fleet_position(&self, at: FleetPosition) -> Result<u64, StoreError> {
        self.ask(|answer| Request::Fleet { at, answer }).await
    }
}

impl Reader {
    /// How far it had come; `None`: this gateway was never one of a fleet.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn fleet_position(&self) -> Result<Option<FleetPosition>, StoreError> {
        self.query(|connection| {
            let mut statement = connection.prepare_cached("SELECT stream, position FROM fleet")?;
            let row = |row: &rusqlite::Row<'_>| {
                Ok(FleetPosition { stream: row.get::<_, String>(0)?.into(), position: row.get(1)? })
            };
            statement.query_row([], row).optional()
        })
    }
}

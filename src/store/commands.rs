//! Commands that wait for devices of a gateway that is alone, and what became of them: the [`Place`] on this gateway's own disk.
//!
//! Each write is a request to the writer, so that many of them share one fsync; what is read is read beside it. Whoever is told that a
//! command waits may rely on it as on an acknowledgement: under [`Durability::Group`](super::Durability::Group) it is on the disk.

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::queue::Request;
use super::{Store, StoreError};
use crate::commands::{
    ALL_MAX, Brief, Command, Fate, Known, Listed, NotPut, OUTCOMES_FOR, PER_DEVICE_MAX, Place, id_of,
};

/// What a command takes in the file beside its texts and its payload, where they are bounded in bytes.
const COMMAND_BYTES: u64 = 128;
/// How many outcomes are kept, the latest: some 15 MB of the file.
pub const OUTCOMES_MAX: u64 = 100_000;
/// So many old ones go with each that comes.
const OUTCOMES_GO: u64 = 2;
/// Commands that are listed in one go.
const PAGE: u64 = 500;

/// What waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandStamp {
    /// The number of the latest command that there ever was; 0: there was none.
    pub last: u64,
    /// How many wait.
    pub rows: u64,
}

/// What the tables hold, as the writer counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) stamp: CommandStamp,
    bytes: u64,
    outcomes: u64,
}

/// What is to be done to them.
#[derive(Debug)]
pub(super) enum Step {
    Put { device: Box<str>, command: Command },
    Remove { number: u64 },
    Outcome { id: String, revision: u64, known: Known },
}

/// The room that there is for them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Bytes that commands may take.
    pub(super) bytes_max: u64,
    /// There is no room on the disk: nothing is taken that would stay there.
    pub(super) is_disk_full: bool,
}

impl Waiting {
    /// Counts what there is.
    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let (rows, bytes) = connection.query_row("SELECT count(*), ifnull(sum(bytes), 0) FROM command", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
        let last = "SELECT ifnull((SELECT seq FROM sqlite_sequence WHERE name = 'command'), 0)";
        let last = connection.query_row(last, [], |row| row.get(0))?;
        let outcomes = connection.query_row("SELECT count(*) FROM command_outcome", [], |row| row.get(0))?;
        Ok(Self { stamp: CommandStamp { last, rows }, bytes, outcomes })
    }
}

/// Does it. The outer error is the disk's, the inner one the asker's. The number of a command that was put; of an outcome its
/// revision, 0 where another one stands; of a command that was let go 1, 0 where there was none.
pub(super) fn take(
    transaction: &Transaction<'_>,
    waiting: &mut Waiting,
    step: &Step,
    room: Room,
    now_ms: i64,
) -> rusqlite::Result<Result<u64, StoreError>> {
    match step {
        Step::Put { device, command } => put(transaction, waiting, device, command, room),
        Step::Remove { number } => {
            let sql = "DELETE FROM command WHERE number = ?1 RETURNING bytes";
            let gone = transaction.prepare_cached(sql)?.query_row([number], |row| row.get::<_, u64>(0)).optional()?;
            if let Some(bytes) = gone {
                waiting.stamp.rows = waiting.stamp.rows.saturating_sub(1);
                waiting.bytes = waiting.bytes.saturating_sub(bytes);
            }
            Ok(Ok(u64::from(gone.is_some())))
        }
        Step::Outcome { id, revision, known } => write(transaction, waiting, id, *revision, known, now_ms).map(Ok),
    }
}

fn put(
    transaction: &Transaction<'_>,
    waiting: &mut Waiting,
    device: &str,
    command: &Command,
    room: Room,
) -> rusqlite::Result<Result<u64, StoreError>> {
    let Command { tag, topic, payload, put_ms, expires_ms, by } = command;
    let bytes = COMMAND_BYTES + (device.len() + topic.len() + payload.len() + by.len()) as u64;
    let full = |why: String| Ok(Err(StoreError::TooManyCommands(why)));
    if room.is_disk_full {
        return full("there is no room on the disk of the store".to_owned());
    }
    if waiting.stamp.rows >= u64::from(ALL_MAX) {
        return full(format!("{ALL_MAX} commands wait"));
    }
    if waiting.bytes + bytes > room.bytes_max {
        return full(format!("commands that wait take the {} bytes that they may", room.bytes_max));
    }
    let of_device: u64 = transaction
        .prepare_cached("SELECT count(*) FROM command WHERE device = ?1")?
        .query_row([device], |row| row.get(0))?;
    if of_device >= u64::from(PER_DEVICE_MAX) {
        return full(format!("{PER_DEVICE_MAX} commands wait for it"));
    }
    transaction
        .prepare_cached(
            "INSERT INTO command (device, tag, put, expires, node, bytes, topic, payload)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![device, tag, put_ms, expires_ms, by, bytes, topic, &payload[..]])?;
    let number = transaction.last_insert_rowid() as u64;
    waiting.stamp.last = number;
    waiting.stamp.rows += 1;
    waiting.bytes += bytes;
    Ok(Ok(number))
}

/// Its new revision; 0: another one stands there.
fn write(
    transaction: &Transaction<'_>,
    waiting: &mut Waiting,
    id: &str,
    revision: u64,
    known: &Known,
    now_ms: i64,
) -> rusqlite::Result<u64> {
    let Known { device, fate, at_ms, tries, node, why } = known;
    let after = revision + 1;
    let written = if revision == 0 {
        let sql = "INSERT INTO command_outcome VALUES (?1, 1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING";
        transaction.prepare_cached(sql)?.execute(params![id, device, fate.label(), at_ms, tries, node, why])?
    } else {
        let sql = "UPDATE command_outcome SET revision = ?8, device = ?2, state = ?3, at = ?4, tries = ?5, node = ?6, why = ?7
                   WHERE id = ?1 AND revision = ?9";
        let row = params![id, device, fate.label(), at_ms, tries, node, why, after, revision];
        transaction.prepare_cached(sql)?.execute(row)?
    };
    if written == 0 {
        return Ok(0);
    }
    if revision == 0 {
        waiting.outcomes += 1;
        // The oldest go, by their age or for want of room.
        let over = now_ms.saturating_sub(OUTCOMES_FOR.as_millis() as i64);
        let since = if waiting.outcomes > OUTCOMES_MAX { i64::MAX } else { over };
        let sql = "DELETE FROM command_outcome WHERE id IN
                       (SELECT id FROM command_outcome WHERE at < ?1 ORDER BY at LIMIT ?2) AND id <> ?3";
        let gone = transaction.prepare_cached(sql)?.execute(params![since, OUTCOMES_GO, id])?;
        waiting.outcomes = waiting.outcomes.saturating_sub(gone as u64);
    }
    Ok(after)
}

const COMMAND: &str = "device, tag, put, expires, node, topic, payload";

fn command(row: &Row<'_>) -> rusqlite::Result<Command> {
    Ok(Command {
        tag: row.get::<_, String>("tag")?.into(),
        topic: row.get::<_, String>("topic")?.into(),
        payload: Bytes::from(row.get::<_, Vec<u8>>("payload")?),
        put_ms: row.get("put")?,
        expires_ms: row.get("expires")?,
        by: row.get::<_, String>("node")?.into(),
    })
}

const BRIEF: &str = "number, device, tag, put, expires, node";

fn brief(row: &Row<'_>) -> rusqlite::Result<Brief> {
    let number = row.get("number")?;
    Ok(Brief {
        number,
        id: id_of(number, &row.get::<_, String>("tag")?),
        device: row.get::<_, String>("device")?.into(),
        put_ms: row.get("put")?,
        expires_ms: row.get("expires")?,
        by: row.get::<_, String>("node")?.into(),
    })
}

fn known(row: &Row<'_>) -> rusqlite::Result<(u64, Option<Known>)> {
    let state: String = row.get("state")?;
    let known = Fate::ALL.into_iter().find(|fate| fate.label() == state).map(|fate| {
        Ok::<_, rusqlite::Error>(Known {
            device: row.get::<_, String>("device")?.into(),
            fate,
            at_ms: row.get("at")?,
            tries: row.get("tries")?,
            node: row.get::<_, String>("node")?.into(),
            why: row.get("why")?,
        })
    });
    Ok((row.get("revision")?, known.transpose()?))
}

impl Store {
    async fn ask_commands(&self, step: Step) -> Result<u64, StoreError> {
        self.ask(|answer| Request::Commands { step, answer }).await
    }

    /// What waits, as of one instant; whoever holds it hears when that changes.
    #[must_use]
    pub fn commands(&self) -> tokio::sync::watch::Receiver<CommandStamp> {
        self.shared.commands.subscribe()
    }
}

/// Looks into the file, in a thread that may wait for the disk.
async fn look<T: Send + 'static>(
    store: &Arc<Store>,
    look: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, String> {
    let store = Arc::clone(store);
    let looked = tokio::task::spawn_blocking(move || store.reader().query(look)).await;
    looked.map_err(|_| "the gateway ends".to_owned())?.map_err(|error| error.to_string())
}

impl Place for Arc<Store> {
    async fn put(&self, device: &str, command: &Command) -> Result<u64, NotPut> {
        let step = Step::Put { device: device.into(), command: command.clone() };
        self.ask_commands(step).await.map_err(|error| match error {
            StoreError::TooManyCommands(why) => NotPut::Full(why),
            StoreError::NoRoom { .. } => NotPut::Full(error.to_string()),
            error => NotPut::Lost(error.to_string()),
        })
    }

    async fn next(&self, device: &str, from: u64) -> Result<Option<(u64, Option<Command>)>, String> {
        let device = device.to_owned();
        look(self, move |connection| {
            let sql = format!(
                "SELECT number, {COMMAND} FROM command WHERE device = ?1 AND number >= ?2 ORDER BY number LIMIT 1"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let found = |row: &Row<'_>| Ok((row.get("number")?, Some(command(row)?)));
            statement.query_row(params![device, from], found).optional()
        })
        .await
    }

    async fn page(&self, from: u64, over_ms: Option<u64>) -> Result<Vec<Listed>, String> {
        look(self, move |connection| {
            let of_time = if over_ms.is_some() { "INDEXED BY command_expires" } else { "" };
            let sql = format!(
                "SELECT {BRIEF} FROM command {of_time} WHERE number >= ?1 AND expires <= ?2 ORDER BY number LIMIT {PAGE}"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let listed = |row: &Row<'_>| {
                let brief = brief(row)?;
                Ok(Listed { number: brief.number, device: Some(brief.device.clone()), brief: Some(brief) })
            };
            let until = over_ms.map_or(i64::MAX, |over_ms| i64::try_from(over_ms).unwrap_or(i64::MAX));
            statement.query_map(params![from, until], listed)?.collect()
        })
        .await
    }

    async fn at(&self, number: u64) -> Result<Option<Brief>, String> {
        // No number of ours is larger, and none can be asked for.
        let Ok(number) = i64::try_from(number) else { return Ok(None) };
        look(self, move |connection| {
            let sql = format!("SELECT {BRIEF} FROM command WHERE number = ?1");
            connection.prepare_cached(&sql)?.query_row([number], brief).optional()
        })
        .await
    }

    async fn remove(&self, number: u64) -> Result<(), String> {
        self.ask_commands(Step::Remove { number }).await.map(drop).map_err(|error| error.to_string())
    }

    async fn outcome(&self, id: &str) -> Result<(u64, Option<Known>), String> {
        let id = id.to_owned();
        look(self, move |connection| {
            let sql = "SELECT revision, device, state, at, tries, node, why FROM command_outcome WHERE id = ?1";
            let found = connection.prepare_cached(sql)?.query_row([id], known).optional()?;
            Ok(found.unwrap_or((0, None)))
        })
        .await
    }

    async fn write_outcome(&self, id: &str, revision: u64, known: &Known) -> Result<bool, String> {
        let step = Step::Outcome { id: id.to_owned(), revision, known: known.clone() };
        self.ask_commands(step).await.map(|after| after > 0).map_err(|error| error.to_string())
    }
}

//! Reading the uplink: a connection of its own, beside the writer.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, Rows, params};

use super::error::StoreError;
use super::progress::Range;
use super::record::{Details, Entry, Facts, Published, Stored, What};
use super::schema;
use super::sessions::{self, Unreadable};
use super::stamp;
use crate::image::{KeptSession, Message, Publication, SessionKey, Stamp};
use crate::link::WorkerId;

const COLUMNS: &str = "seq, at, kind, device, topic, payload, listener, epoch, generation, sequence, last_heard, cause, \
                       worker, peer, identity, tls, connected, detail, published, properties, expires, clock, node, given";

/// Reads the store's file.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Reader {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// It is no store, or cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { path: path.into(), connection: Mutex::new(schema::open_reader(path)?) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn query<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let connection = self.connection.lock().expect("no holder panics");
        read(&connection).map_err(|error| StoreError::sqlite(&self.path, error))
    }

    /// The events of `range` that are held, oldest first, until they take more than `bytes_max`: at least one.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn range(&self, range: Range, bytes_max: usize) -> Result<Vec<Stored>, StoreError> {
        self.query(|connection| {
            let sql = format!("SELECT {COLUMNS} FROM uplink WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq");
            let mut statement = connection.prepare_cached(&sql)?;
            up_to(statement.query(params![range.first, range.last])?, bytes_max)
        })
    }

    /// The first `count` events behind `seq` that are held, oldest first, however many numbers lie between them, until they take more
    /// than `bytes_max`: at least one, if there is one.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn behind(&self, seq: u64, count: usize, bytes_max: usize) -> Result<Vec<Stored>, StoreError> {
        self.query(|connection| {
            let sql = format!("SELECT {COLUMNS} FROM uplink WHERE seq > ?1 ORDER BY seq LIMIT ?2");
            let mut statement = connection.prepare_cached(&sql)?;
            up_to(statement.query(params![seq, count as u64])?, bytes_max)
        })
    }

    /// The number of the oldest event held, if there is one.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn first(&self) -> Result<Option<u64>, StoreError> {
        self.query(|connection| connection.query_row("SELECT min(seq) FROM uplink", [], |row| row.get(0)))
    }

    /// The number of the first event at or after this Unix time in milliseconds, if there is one.
    pub(super) fn first_at(&self, at_ms: i64) -> Result<Option<u64>, StoreError> {
        self.query(|connection| {
            let sql = "SELECT seq FROM uplink WHERE at >= ?1 ORDER BY seq LIMIT 1";
            connection.query_row(sql, [at_ms], |row| row.get(0)).optional()
        })
    }

    /// The latest presence events of one device, newest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn presence(&self, device: &str, count: u32) -> Result<Vec<Stored>, StoreError> {
        self.query(|connection| {
            let sql = format!(
                "SELECT {COLUMNS} FROM uplink INDEXED BY uplink_presence
                 WHERE device = ?1 AND kind <> 2 ORDER BY seq DESC LIMIT ?2"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            statement.query_map(params![device, count], stored)?.collect()
        })
    }

    /// Every session, in no order of their names, without the messages that wait in them.
    ///
    /// # Errors
    /// The file cannot be read, or says what cannot be.
    pub fn sessions(&self, each: impl FnMut(KeptSession)) -> Result<(), StoreError> {
        self.look(|connection| sessions::read_sessions(connection, each))
    }

    /// Every retained message with its stamp, which is none where it is no other gateway's, in the order of topics.
    ///
    /// # Errors
    /// The file cannot be read, or says what cannot be.
    pub fn retained(&self, each: impl FnMut(Publication, Stamp)) -> Result<(), StoreError> {
        self.look(|connection| sessions::read_retained(connection, each))
    }

    /// The topic and the stamp of every retained message that has one, in the order of topics.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn retained_stamps(&self, mut each: impl FnMut(&str, Stamp)) -> Result<(), StoreError> {
        self.query(|connection| {
            let sql = "SELECT topic, clock, node FROM retained WHERE clock IS NOT NULL ORDER BY topic";
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                each(row.get_ref(0)?.as_str()?, stamp::of(row.get(1)?, row.get(2)?));
            }
            Ok(())
        })
    }

    /// The messages of a session behind the first of these numbers and up to the second, in their order, until they take more
    /// than `bytes_max`: at least one, if there is one. `true`: there are no more of them.
    ///
    /// # Errors
    /// The file cannot be read, or says what cannot be.
    pub fn messages(
        &self,
        session: SessionKey,
        numbers: (u64, u64),
        bytes_max: usize,
    ) -> Result<(Vec<Message>, bool), StoreError> {
        self.look(|connection| sessions::read_messages(connection, session, numbers, bytes_max))
    }

    pub(super) fn look<T>(&self, read: impl FnOnce(&Connection) -> Result<T, Unreadable>) -> Result<T, StoreError> {
        let connection = self.connection.lock().expect("no holder panics");
        read(&connection).map_err(|error| error.of(&self.path))
    }

    /// When the first event behind `seq` happened, as Unix time in milliseconds.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn time_after(&self, seq: u64) -> Result<Option<i64>, StoreError> {
        self.query(|connection| {
            let sql = "SELECT at FROM uplink WHERE seq > ?1 ORDER BY seq LIMIT 1";
            connection.prepare_cached(sql)?.query_row([seq], |row| row.get(0)).optional()
        })
    }
}

fn up_to(mut rows: Rows<'_>, bytes_max: usize) -> rusqlite::Result<Vec<Stored>> {
    let (mut events, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let event = stored(row)?;
        bytes += event.entry.bytes();
        events.push(event);
        if bytes > bytes_max {
            break;
        }
    }
    Ok(events)
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let what = match row.get::<_, u8>("kind")? {
        0 => What::Connected(facts(row)?),
        1 => What::Disconnected(facts(row)?, row.get::<_, String>("cause")?.into()),
        _ => What::Message {
            topic: row.get::<_, String>("topic")?.into(),
            payload: Bytes::from(row.get::<_, Vec<u8>>("payload")?),
            published: published(row)?,
        },
    };
    let entry = Entry {
        at_ms: row.get("at")?,
        worker: WorkerId(row.get("worker")?),
        device: row.get::<_, String>("device")?.into(),
        what,
        receipt: None,
    };
    Ok(Stored { seq: row.get("seq")?, entry })
}

fn published(row: &Row<'_>) -> rusqlite::Result<Option<Published>> {
    // Since version 7, and in a fleet.
    let Some(byte) = row.get("published")? else { return Ok(None) };
    let properties = row.get::<_, Option<Vec<u8>>>("properties")?.unwrap_or_default();
    let stamp = stamp::of(row.get("clock")?, row.get("node")?);
    let groups = row.get::<_, Option<String>>("given")?.map(Into::into);
    Ok(Published::from_parts(byte, properties, row.get("expires")?, stamp).map(|said| Published { groups, ..said }))
}

fn facts(row: &Row<'_>) -> rusqlite::Result<Facts> {
    Ok(Facts {
        listener: row.get::<_, String>("listener")?.into(),
        epoch: row.get::<_, i64>("epoch")? as u64,
        generation: row.get::<_, i64>("generation")? as u64,
        sequence: row.get::<_, i64>("sequence")? as u64,
        last_heard_ms: row.get("last_heard")?,
        details: details(row)?,
    })
}

fn details(row: &Row<'_>) -> rusqlite::Result<Option<Details>> {
    // Since version 4, and then all of them.
    let Some(connected_ms) = row.get("connected")? else { return Ok(None) };
    Ok(Some(Details {
        peer: row.get::<_, String>("peer")?.into(),
        identity: row.get::<_, String>("identity")?.into(),
        tls_version: row.get::<_, String>("tls")?.into(),
        connected_ms,
        detail: row.get::<_, String>("detail")?.into(),
    }))
}

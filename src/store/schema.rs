//! The tables, and how a file becomes one of ours: its application id, its version, its pragmas.
//!
//! A version is never changed once it was released; a newer one is a step in [`MIGRATIONS`]. CHANGELOG.md (Formats) lists them.

use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::Durability;
use super::error::StoreError;

/// "Puls", so that `file` and a careful reader know whose it is.
const APPLICATION_ID: i32 = i32::from_be_bytes(*b"Puls");

/// Each step from one version to the next; a new file takes all of them.
const MIGRATIONS: &[&str] = &[
    // 1: the uplink and its consumers.
    "CREATE TABLE uplink (
         seq        INTEGER PRIMARY KEY,
         at         INTEGER NOT NULL,  -- Unix time in milliseconds
         kind       INTEGER NOT NULL,  -- 0 connected, 1 disconnected, 2 message
         device     TEXT NOT NULL,
         topic      TEXT,              -- of a message
         payload    BLOB,              -- of a message
         listener   TEXT,              -- of a presence event, as are the following
         epoch      INTEGER,
         generation INTEGER,
         sequence   INTEGER,
         last_heard INTEGER,           -- Unix time in milliseconds
         cause      TEXT,              -- of a disconnection
         worker     INTEGER NOT NULL
     ) STRICT;
     CREATE INDEX uplink_presence ON uplink (device, seq) WHERE kind <> 2;
     CREATE TABLE uplink_state (
         id     INTEGER PRIMARY KEY CHECK (id = 1),
         next   INTEGER NOT NULL,      -- the number that the next event gets: none is given twice
         events INTEGER NOT NULL,      -- how many are held
         bytes  INTEGER NOT NULL       -- and what they take
     ) STRICT;
     INSERT INTO uplink_state VALUES (1, 1, 0, 0);
     CREATE TABLE consumer (
         name    TEXT PRIMARY KEY,
         cursor  INTEGER NOT NULL,     -- every event up to this one is acknowledged or was missed
         missed  INTEGER NOT NULL,     -- events that retention dropped before they were acknowledged
         created INTEGER NOT NULL,     -- Unix time in milliseconds
         seen    INTEGER NOT NULL      -- the latest acknowledgement, Unix time in milliseconds
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE consumer_ahead (     -- acknowledged beyond the cursor, by one of several readers
         consumer TEXT NOT NULL,
         first    INTEGER NOT NULL,
         last     INTEGER NOT NULL,
         PRIMARY KEY (consumer, first)
     ) STRICT, WITHOUT ROWID;
     CREATE VIEW events AS
         SELECT seq, strftime('%Y-%m-%dT%H:%M:%fZ', at / 1000.0, 'unixepoch') AS at,
                CASE kind WHEN 0 THEN 'connected' WHEN 1 THEN 'disconnected' ELSE 'message' END AS kind,
                device, topic, payload, listener, generation, cause
         FROM uplink;",
    // 2: sinks, and which store this is: what goes out carries it, so that it is known when it comes again.
    "CREATE TABLE sink (
         consumer   TEXT PRIMARY KEY,
         is_paused  INTEGER NOT NULL,
         batch_last INTEGER NOT NULL   -- the last event of the batch that was begun latest; 0: none was
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE identity (
         id    INTEGER PRIMARY KEY CHECK (id = 1),
         store TEXT NOT NULL
     ) STRICT;
     INSERT INTO identity VALUES (1, lower(hex(randomblob(6))));",
    // 3: sessions, what waits in them, and retained messages. An image is in the form of `image::encode`.
    "CREATE TABLE session (
         key        INTEGER PRIMARY KEY,
         name       TEXT NOT NULL UNIQUE,  -- the device's id
         away_since INTEGER,               -- Unix time in milliseconds; NULL: it is connected, or was when the process ended
         expiry     INTEGER,               -- how long it outlives its connection, in seconds; NULL: for ever
         image      BLOB NOT NULL
     ) STRICT;
     CREATE TABLE subscription (
         session    INTEGER NOT NULL,
         filter     TEXT NOT NULL,
         options    INTEGER NOT NULL,      -- the options byte of SUBSCRIBE: QoS in bits 0 and 1
         identifier INTEGER NOT NULL,      -- 0: none
         PRIMARY KEY (session, filter)
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE message (                -- what waits in a session or in several
         id         INTEGER PRIMARY KEY,
         uses       INTEGER NOT NULL,      -- in how many
         image      BLOB NOT NULL
     ) STRICT;
     CREATE TABLE queue (
         session     INTEGER NOT NULL,
         number      INTEGER NOT NULL,     -- the order in which they are sent
         message     INTEGER,              -- NULL: the device has it, and PUBCOMP is owed
         packet      INTEGER,              -- the packet identifier under which it was sent; NULL: it was not
         delivery    INTEGER NOT NULL,     -- QoS in bits 0 and 1, RETAIN in bit 2
         identifiers BLOB,                 -- Subscription Identifiers, four bytes each
         bytes       INTEGER NOT NULL,
         origin      INTEGER NOT NULL,     -- of QoS 2: which received packet caused it; 0: that is answered
         PRIMARY KEY (session, number)
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE received (               -- packet identifiers of QoS 2 of which PUBREL is owed
         session INTEGER NOT NULL,
         packet  INTEGER NOT NULL,
         origin  INTEGER NOT NULL,         -- 0: it is answered, or may be
         PRIMARY KEY (session, packet)
     ) STRICT, WITHOUT ROWID;
     CREATE TABLE retained (
         topic   TEXT PRIMARY KEY,
         expires INTEGER,                  -- Unix time in milliseconds
         bytes   INTEGER NOT NULL,
         image   BLOB NOT NULL
     ) STRICT, WITHOUT ROWID;
     CREATE VIEW sessions AS
         SELECT key, name, strftime('%Y-%m-%dT%H:%M:%fZ', away_since / 1000.0, 'unixepoch') AS away_since,
                strftime('%Y-%m-%dT%H:%M:%fZ', away_since / 1000.0 + expiry, 'unixepoch') AS expires,
                (SELECT count(*) FROM subscription WHERE session = key) AS subscriptions,
                (SELECT count(*) FROM queue WHERE session = key) AS waiting,
                (SELECT ifnull(sum(bytes), 0) FROM queue WHERE session = key) AS waiting_bytes
         FROM session;",
    // 4: what else is known of a connection that came or went; NULL in what was there before.
    "ALTER TABLE uplink ADD COLUMN peer TEXT;          -- of a presence event: from where, empty where that is not known
     ALTER TABLE uplink ADD COLUMN identity TEXT;      -- how the device's id was learned
     ALTER TABLE uplink ADD COLUMN tls TEXT;           -- TLSv1.2 or TLSv1.3
     ALTER TABLE uplink ADD COLUMN connected INTEGER;  -- Unix time in milliseconds
     ALTER TABLE uplink ADD COLUMN detail TEXT;        -- more of the cause, in words
     DROP VIEW events;
     CREATE VIEW events AS
         SELECT seq, strftime('%Y-%m-%dT%H:%M:%fZ', at / 1000.0, 'unixepoch') AS at,
                CASE kind WHEN 0 THEN 'connected' WHEN 1 THEN 'disconnected' ELSE 'message' END AS kind,
                device, topic, payload, listener, generation, cause, peer, identity, detail
         FROM uplink;",
    // 5: events that went before older ones, because their devices held more than their share.
    "ALTER TABLE uplink_state ADD COLUMN gone INTEGER NOT NULL DEFAULT 0; -- numbers behind the oldest event whose events are gone",
    // 6: messages for groups of shared subscribers, which other members get when a session ends. One that has ended, and whose
    // messages are on their way to others, has a name that begins with U+0000.
    "ALTER TABLE queue ADD COLUMN share TEXT;          -- the group as $share/NAME/FILTER; NULL: it is for none
     DROP VIEW sessions;
     CREATE VIEW sessions AS
         SELECT key, name, strftime('%Y-%m-%dT%H:%M:%fZ', away_since / 1000.0, 'unixepoch') AS away_since,
                strftime('%Y-%m-%dT%H:%M:%fZ', away_since / 1000.0 + expiry, 'unixepoch') AS expires,
                (SELECT count(*) FROM subscription WHERE session = key) AS subscriptions,
                (SELECT count(*) FROM queue WHERE session = key) AS waiting,
                (SELECT ifnull(sum(bytes), 0) FROM queue WHERE session = key) AS waiting_bytes
         FROM session WHERE hex(name) NOT LIKE '00%';",
    // 7: several gateways: how a message was published, for subscribers at others, and how far what others published has come here.
    "ALTER TABLE uplink ADD COLUMN published INTEGER;  -- QoS in bits 0 and 1, RETAIN in bit 2; NULL: it is for no subscriber elsewhere
     ALTER TABLE uplink ADD COLUMN properties BLOB;    -- of MQTT 5, encoded; NULL where published is
     ALTER TABLE uplink ADD COLUMN expires INTEGER;    -- Unix time in milliseconds
     CREATE TABLE fleet (
         id       INTEGER PRIMARY KEY CHECK (id = 1),
         stream   TEXT NOT NULL,       -- which stream: when it was made
         position INTEGER NOT NULL     -- every message up to this one was taken
     ) STRICT;",
    // 8: commands that wait for devices of a gateway that is alone, and what became of them.
    "CREATE TABLE command (
         number  INTEGER PRIMARY KEY AUTOINCREMENT, -- its id begins so; none is given twice
         device  TEXT NOT NULL,
         tag     TEXT NOT NULL,        -- and ends so
         put     INTEGER NOT NULL,     -- Unix time in milliseconds
         expires INTEGER NOT NULL,     -- Unix time in milliseconds
         node    TEXT NOT NULL,        -- the gateway that took it
         bytes   INTEGER NOT NULL,
         topic   TEXT NOT NULL,
         payload BLOB NOT NULL
     ) STRICT;
     CREATE INDEX command_device ON command (device, number);
     CREATE INDEX command_expires ON command (expires);
     CREATE TABLE command_outcome (
         id       TEXT PRIMARY KEY,
         revision INTEGER NOT NULL,    -- how often it was written
         device   TEXT NOT NULL,
         state    TEXT NOT NULL,       -- sent, acknowledged, expired, refused or cancelled
         at       INTEGER NOT NULL,    -- Unix time in milliseconds
         tries    INTEGER NOT NULL,
         node     TEXT NOT NULL,       -- the gateway that tried last
         why      TEXT                 -- it was refused
     ) STRICT, WITHOUT ROWID;
     CREATE INDEX command_outcome_at ON command_outcome (at);",
    // 9: retained messages that several gateways share: the place of each among those of its topic.
    "ALTER TABLE uplink ADD COLUMN clock INTEGER;      -- of a message that was published to be retained: `image::Stamp`
     ALTER TABLE uplink ADD COLUMN node INTEGER;
     ALTER TABLE retained ADD COLUMN clock INTEGER;    -- the same; NULL: it is no other gateway's
     ALTER TABLE retained ADD COLUMN node INTEGER;",
    // 10: groups of shared subscribers over a fleet: those that got a message at this gateway.
    "ALTER TABLE uplink ADD COLUMN given TEXT;          -- their keys, between commas; NULL: none",
];

/// How long one connection waits for another's write: a backup or a reader never takes longer.
const BUSY: Duration = Duration::from_secs(10);

/// Opens the store's file for its one writer, makes it or brings it up to date.
pub(super) fn open_writer(path: &Path, durability: Durability, bytes_max: u64) -> Result<Connection, StoreError> {
    let failed = |error| StoreError::sqlite(path, error);
    let mut connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(BUSY).map_err(failed)?;
    check_identity(&connection, path)?;
    let synchronous = if durability == Durability::Group { "FULL" } else { "NORMAL" };
    let page_bytes: u64 = connection.query_row("PRAGMA page_size", [], |row| row.get(0)).map_err(failed)?;
    for (pragma, value) in [("journal_mode", "WAL"), ("synchronous", synchronous)] {
        connection.pragma_update(None, pragma, value).map_err(failed)?;
    }
    keep_to_itself(&connection).map_err(failed)?;
    connection.pragma_update(None, "max_page_count", (bytes_max / page_bytes).max(64)).map_err(failed)?;
    migrate(&mut connection).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Opens the file for reading only, beside the writer and without waiting for it.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let failed = |error| StoreError::sqlite(path, error);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY).map_err(failed)?;
    keep_to_itself(&connection).map_err(failed)?;
    check_identity(&connection, path)?;
    Ok(connection)
}

/// What a statement puts aside (a sort, the rows of RETURNING, the journal of a statement) stays in memory. In a file it would lie in
/// `/tmp`: on another disk, which may be full or not be there, and readable for others than the store. The writer sorts nothing, and
/// puts aside what one group deletes; `store check` alone sorts what waits, in a process of its own, at some 20 bytes a message.
///
/// How a statement is carried out does not follow the values that it is given: else SQLite, which is built with statistics here, would
/// parse and plan anew whatever has a value in its LIMIT, with each group.
fn keep_to_itself(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")
}

/// A file of somebody else, or of a newer version, is left alone.
fn check_identity(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let failed = |error| StoreError::sqlite(path, error);
    let foreign = |what| StoreError::Foreign { path: path.into(), what };
    let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0));
    let application = pragma("application_id").map_err(failed)?;
    let version = pragma("user_version").map_err(failed)?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    if tables > 0 && application != i64::from(APPLICATION_ID) {
        return Err(foreign("this is a database of another program".into()));
    }
    if version > MIGRATIONS.len() as i64 {
        return Err(foreign(format!("the store has version {version}, this gateway knows {}", MIGRATIONS.len())));
    }
    Ok(())
}

fn migrate(connection: &mut Connection) -> rusqlite::Result<()> {
    let version: usize = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    for (step, sql) in MIGRATIONS.iter().enumerate().skip(version) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", step + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_aside_lies_in_no_file() {
        let directory = tempfile::TempDir::new().unwrap();
        let path = directory.path().join(crate::store::FILE);
        let place = |connection: &Connection| -> u8 {
            connection.query_row("PRAGMA temp_store", [], |row| row.get(0)).unwrap()
        };
        let writer = open_writer(&path, Durability::Group, 64 << 20).unwrap();
        assert_eq!((place(&writer), place(&open_reader(&path).unwrap())), (2, 2), "2 is memory");
    }
}

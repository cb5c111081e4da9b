//! The store's files: who may open them, room kept for a full disk, and what a person does with them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rusqlite::Connection;
use rustix::fs::{FlockOperation, flock};

use super::error::StoreError;
use super::{FILE, schema, sessions};

/// Held by the one process that writes.
const LOCK: &str = "store.lock";
/// Room that is given up when the disk is full, so that cursors can still be written.
const RESERVE: &str = "store.reserve";
const RESERVE_BYTES: usize = 1 << 20;
/// Written to see whether there is room, and removed at once.
const PROBE: &str = "store.probe";
const PROBE_BYTES: usize = 64 << 10;
/// Messages and cursors are for nobody else to read.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

fn io(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    move |error| StoreError::Io { path: path.into(), error }
}

/// The right to write. Given up when it is dropped, or when the process ends in any way.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held open")] File);

/// Makes the directory if it is not there, and takes the lock in it.
pub(super) fn lock(directory: &Path) -> Result<Lock, StoreError> {
    if !directory.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(io(directory))?;
    }
    let path = directory.join(LOCK);
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(FILE_MODE);
    let file = options.open(&path).map_err(io(&path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(StoreError::InUse { path }),
        Err(error) => return Err(StoreError::Io { path, error: error.into() }),
    }
    // SQLite gives its journal the mode of the file.
    let store = directory.join(FILE);
    options.open(&store).map_err(io(&store))?;
    Ok(Lock(file))
}

/// Whether the system says that there is no room.
fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Writes real bytes that are for nobody: a hole takes no room.
fn write_filler(path: &Path, bytes: usize) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(FILE_MODE).open(path)?;
    file.write_all(&vec![0xa5; bytes])?;
    file.sync_all()
}

/// What the system says of a write beside the store's file at `path`.
pub(super) fn probe(path: &Path) -> io::Result<()> {
    let probe = path.with_file_name(PROBE);
    let written = write_filler(&probe, PROBE_BYTES);
    // It is not there if it could not be made.
    let _ = fs::remove_file(&probe);
    written
}

/// Whether there is no room beside the store's file at `path`: on the disk, or for this user.
pub(super) fn is_full(path: &Path) -> bool {
    probe(path).is_err_and(|error| is_no_room(&error))
}

/// Room on the disk that is kept for the time when there is none.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// Makes it, unless it is there.
    pub(super) fn make(directory: &Path) -> Result<Self, StoreError> {
        let reserve = Self { path: directory.join(RESERVE) };
        // A disk that is full at the start has none; it is made when there is room again.
        match reserve.restore() {
            Err(error) if !is_no_room(&error) => Err(io(&reserve.path)(error)),
            _ => Ok(reserve),
        }
    }

    /// Gives the room to others.
    pub(super) fn release(&self) {
        // It may be gone already.
        let _ = fs::remove_file(&self.path);
    }

    /// Takes the room again.
    pub(super) fn restore(&self) -> io::Result<()> {
        if fs::metadata(&self.path).is_ok_and(|known| known.len() == RESERVE_BYTES as u64) {
            return Ok(());
        }
        write_filler(&self.path, RESERVE_BYTES).inspect_err(|_| self.release())
    }
}

/// What [`check`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// What is wrong, a line each; empty: nothing.
    pub damage: Vec<String>,
    /// Events held.
    pub events: u64,
    /// The first and the last of them; 0 when there is none.
    pub range: (u64, u64),
    /// Consumers.
    pub consumers: u64,
    /// Sessions.
    pub sessions: u64,
    /// Messages that wait in them.
    pub waiting: u64,
    /// Retained messages.
    pub retained: u64,
}

/// Reads the whole store in `directory`, also beside a gateway that writes it, and says what is wrong with it.
///
/// # Errors
/// It cannot be opened or read at all.
pub fn check(directory: &Path) -> Result<Check, StoreError> {
    let path = directory.join(FILE);
    let connection = schema::open_reader(&path)?;
    let failed = |error| StoreError::sqlite(&path, error);
    let mut found = Check::default();
    for pragma in ["integrity_check", "foreign_key_check"] {
        let mut statement = connection.prepare(&format!("PRAGMA {pragma}")).map_err(failed)?;
        let lines = statement.query_map([], |row| row.get::<_, String>(0)).map_err(failed)?;
        for line in lines {
            let line = line.map_err(failed)?;
            if line != "ok" {
                found.damage.push(line);
            }
        }
    }
    let (events, first, last): (u64, u64, u64) = connection
        .query_row("SELECT count(*), ifnull(min(seq), 0), ifnull(max(seq), 0) FROM uplink", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .map_err(failed)?;
    let (next, counted, gone): (u64, u64, u64) = connection
        .query_row("SELECT next, events, gone FROM uplink_state", [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .map_err(failed)?;
    if events > 0 && (last - first + 1 != events + gone || last + 1 != next) {
        found.damage.push(format!(
            "{events} events are held from {first} to {last}, {gone} being gone between, the next being {next}"
        ));
    }
    if events != counted {
        found.damage.push(format!("{events} events are held, {counted} are counted"));
    }
    let ahead: u64 = connection
        .query_row("SELECT count(*) FROM consumer WHERE cursor >= ?1", [next], |row| row.get(0))
        .map_err(failed)?;
    if ahead > 0 {
        found.damage.push(format!("{ahead} consumers have acknowledged events that there never were"));
    }
    found.damage.extend(sessions::contradictions(&connection).map_err(|error| error.of(&path))?);
    let count =
        |table| connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).map_err(failed);
    (found.sessions, found.waiting, found.retained) = (count("session")?, count("queue")?, count("retained")?);
    found.consumers = connection.query_row("SELECT count(*) FROM consumer", [], |row| row.get(0)).map_err(failed)?;
    (found.events, found.range) = (events, (first, last));
    Ok(found)
}

/// Writes a copy of the store in `directory` to `to`, also beside a gateway that writes it: the copy is as the store
/// was at one instant.
///
/// # Errors
/// There is a file at `to`, or one of both cannot be used.
pub fn backup(directory: &Path, to: &Path) -> Result<(), StoreError> {
    let path = directory.join(FILE);
    if to.exists() {
        return Err(StoreError::Io { path: to.into(), error: io::ErrorKind::AlreadyExists.into() });
    }
    let connection: Connection = schema::open_reader(&path)?;
    let Some(name) = to.to_str() else {
        return Err(StoreError::Io { path: to.into(), error: io::ErrorKind::InvalidFilename.into() });
    };
    // Its mode before its content.
    OpenOptions::new().create_new(true).write(true).mode(FILE_MODE).open(to).map_err(io(to))?;
    let copied = connection.execute("VACUUM INTO ?1", [name]);
    copied.map(drop).map_err(|error| {
        let _ = fs::remove_file(to);
        StoreError::sqlite(to, error)
    })
}

/// Moves a damaged store in `directory` aside, so that an empty one is begun. Gives back where it lies now.
///
/// # Errors
/// It is in use, or cannot be moved.
pub fn move_aside(directory: &Path) -> Result<PathBuf, StoreError> {
    let _lock = lock(directory)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let aside = directory.join(format!("store.damaged-{now}"));
    fs::DirBuilder::new().mode(DIRECTORY_MODE).create(&aside).map_err(io(&aside))?;
    for suffix in ["", "-wal", "-shm"] {
        let name = format!("{FILE}{suffix}");
        match fs::rename(directory.join(&name), aside.join(&name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(&directory.join(name))(error)),
            _ => {}
        }
    }
    Ok(aside)
}

//! What can go wrong with the store, and who must do something about it.

use std::fmt;
use std::path::PathBuf;

use rusqlite::ffi;

use super::progress::RANGES_MAX;

/// Why the store does not open, or does not do what it was asked for. The text names the file and the remedy.
#[derive(Debug)]
pub enum StoreError {
    /// The directory or a file in it cannot be used.
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// Another process has the store open.
    InUse {
        /// The lock that it holds.
        path: PathBuf,
    },
    /// The file is no store, or one of a newer version.
    Foreign {
        /// Which.
        path: PathBuf,
        /// In what it differs.
        what: String,
    },
    /// The file's content is damaged.
    Damaged {
        /// Which.
        path: PathBuf,
        /// What SQLite says.
        what: String,
    },
    /// There is no room on the disk, or within `store.bytes`.
    NoRoom {
        /// For which file.
        path: PathBuf,
    },
    /// SQLite failed in another way.
    Sqlite {
        /// On which file.
        path: PathBuf,
        /// What SQLite says.
        error: rusqlite::Error,
    },
    /// There is no such consumer.
    NoConsumer(String),
    /// So much is acknowledged ahead of its cursor that one more range is not taken.
    TooManyRanges {
        /// The event that is to be acknowledged before.
        next: u64,
    },
    /// There are as many consumers as there may be.
    TooManyConsumers(usize),
    /// There is no room for one more command that waits: the text says why.
    TooManyCommands(String),
    /// A position that cannot be acknowledged or sought: the text says why.
    Position(String),
    /// The store has failed or is ending; nothing is acknowledged any more.
    Closed,
}

impl StoreError {
    /// Names an error of SQLite on the file at `path`.
    pub(super) fn sqlite(path: impl Into<PathBuf>, error: rusqlite::Error) -> Self {
        let path = path.into();
        match Fault::of(&error) {
            Fault::Damage => Self::Damaged { path, what: error.to_string() },
            Fault::NoRoom => Self::NoRoom { path },
            _ => Self::Sqlite { path, error },
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, error } => {
                write!(f, "{}: {error}: give the gateway's user this directory", path.display())
            }
            Self::InUse { path } => write!(
                f,
                "{}: another gateway has this store open: end it, or give this one a data_dir of its own",
                path.display()
            ),
            Self::Foreign { path, what } => {
                write!(f, "{}: {what}: run the version that wrote it, or move the file away", path.display())
            }
            Self::Damaged { path, what } => write!(
                f,
                "{}: the store is damaged ({what}): `pulsegate store check` says more; restore a backup, or start \
                 once with --accept-data-loss, which moves it aside and begins an empty one",
                path.display()
            ),
            Self::NoRoom { path } => {
                write!(f, "{}: there is no room: make some on its disk, or write a larger store.bytes", path.display())
            }
            Self::Sqlite { path, error } => write!(f, "{}: {error}", path.display()),
            Self::NoConsumer(name) => write!(f, "there is no consumer {name:?}"),
            Self::TooManyConsumers(most) => write!(f, "there are {most} consumers already: delete one first"),
            Self::TooManyRanges { next } => write!(
                f,
                "{RANGES_MAX} ranges are acknowledged ahead of event {next}, which is not: acknowledge that first"
            ),
            Self::Position(why) | Self::TooManyCommands(why) => f.write_str(why),
            Self::Closed => f.write_str("the store is closed"),
        }
    }
}

impl std::error::Error for StoreError {}

/// What a failed write means for what is to be acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// There is no room: it can be tried again when there is.
    NoRoom,
    /// The content contradicts itself.
    Damage,
    /// The disk has failed, perhaps while it synchronised: what was written before may be lost although a second try
    /// would succeed, so there is no second try.
    Disk,
    /// Anything else: our own mistake.
    Other,
}

impl Fault {
    /// Judges an error of SQLite by its codes (sqlite.org/rescode.html).
    pub(super) fn of(error: &rusqlite::Error) -> Self {
        let rusqlite::Error::SqliteFailure(ffi::Error { extended_code, .. }, _) = error else { return Self::Other };
        match extended_code & 0xff {
            ffi::SQLITE_FULL => Self::NoRoom,
            ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB => Self::Damage,
            ffi::SQLITE_IOERR | ffi::SQLITE_READONLY | ffi::SQLITE_CANTOPEN => Self::Disk,
            _ => Self::Other,
        }
    }

    /// The same for a write, with a look at the disk where SQLite does not tell: it knows a full disk, but neither a quota that is
    /// used up nor a disk on which the index of its journal finds no room. A synchronisation that failed is never tried again,
    /// whatever it was for.
    pub(super) fn of_write(error: &rusqlite::Error, is_full: impl FnOnce() -> bool) -> Self {
        let fault = Self::of(error);
        let rusqlite::Error::SqliteFailure(ffi::Error { extended_code, .. }, _) = error else { return fault };
        let may_be_room = [ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_IOERR_SHMSIZE].contains(extended_code);
        if may_be_room && is_full() { Self::NoRoom } else { fault }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_judged_by_their_codes() {
        let fault = |code| Fault::of(&rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
        assert_eq!(fault(ffi::SQLITE_FULL), Fault::NoRoom);
        assert_eq!(fault(ffi::SQLITE_IOERR_FSYNC), Fault::Disk);
        assert_eq!(fault(ffi::SQLITE_IOERR_WRITE), Fault::Disk);
        assert_eq!(fault(ffi::SQLITE_READONLY), Fault::Disk);
        assert_eq!(fault(ffi::SQLITE_CORRUPT), Fault::Damage);
        assert_eq!(fault(ffi::SQLITE_CONSTRAINT), Fault::Other);
    }

    #[test]
    fn write_that_failed_is_want_of_room_only_if_the_disk_is_full_and_a_failed_synchronisation_never_is() {
        let fault =
            |code, is_full| Fault::of_write(&rusqlite::Error::SqliteFailure(ffi::Error::new(code), None), || is_full);
        for code in [ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_IOERR_SHMSIZE] {
            assert_eq!((fault(code, true), fault(code, false)), (Fault::NoRoom, Fault::Disk));
        }
        for code in [ffi::SQLITE_IOERR_FSYNC, ffi::SQLITE_IOERR_READ, ffi::SQLITE_READONLY] {
            assert_eq!(fault(code, true), Fault::Disk);
        }
        assert_eq!(fault(ffi::SQLITE_FULL, false), Fault::NoRoom);
    }
}

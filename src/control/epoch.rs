//! Which life of this gateway it is: a number that grows with each start, whatever the clock does meanwhile.
//!
//! It is the time of day in milliseconds, or one more than the last one where the clock stands behind that. The last one lies
//! in the data directory as decimal text, in the file `epoch`. Readers of events compare epochs to know whether positions are
//! of this life; one that went back would make old positions look new.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use crate::whole_file;

const FILE: &str = "epoch";

/// The epoch of a start at `now`, greater than any that was given out over this data directory before. The error says
/// why it could not be kept there: then only the clock tells that the next one is greater.
pub fn next(data_dir: &Path, now: SystemTime) -> (u64, Option<io::Error>) {
    let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let last = match read(data_dir) {
        Ok(last) => last,
        Err(error) => return (since_1970, Some(error)),
    };
    let epoch = since_1970.max(last.map_or(1, |last| last.saturating_add(1)));
    (epoch, write(data_dir, epoch).err())
}

fn read(data_dir: &Path) -> io::Result<Option<u64>> {
    match fs::read_to_string(data_dir.join(FILE)) {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| {
            let path = data_dir.join(FILE);
            io::Error::new(io::ErrorKind::InvalidData, format!("{} holds no number", path.display()))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write(data_dir: &Path, epoch: u64) -> io::Result<()> {
    fs::create_dir_all(data_dir)?;
    whole_file::replace(&data_dir.join(FILE), format!("{epoch}\n").as_bytes(), 0o644)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_epoch_is_greater_than_the_last_whatever_the_clock_says() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("made/here");
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let next = |now| {
            let (epoch, error) = next(&data_dir, now);
            assert!(error.is_none(), "{error:?}");
            epoch
        };
        assert_eq!(next(at(1_700_000_000_000)), 1_700_000_000_000);
        assert_eq!(next(at(1_700_000_000_000)), 1_700_000_000_001);
        assert_eq!(next(at(5)), 1_700_000_000_002, "a clock that was set back");
        assert_eq!(next(SystemTime::UNIX_EPOCH - Duration::from_secs(9)), 1_700_000_000_003, "before 1970");
        assert_eq!(next(at(1_800_000_000_000)), 1_800_000_000_000);
    }

    #[test]
    fn a_first_start_before_1970_has_an_epoch_too() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(next(directory.path(), SystemTime::UNIX_EPOCH - Duration::from_secs(9)).0, 1);
    }

    #[test]
    fn what_cannot_be_kept_is_said_and_starts_nevertheless() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_millis(77);
        fs::write(directory.path().join(FILE), "yesterday\n").unwrap();
        let (epoch, error) = next(directory.path(), now);
        assert_eq!(epoch, 77);
        assert!(error.unwrap().to_string().contains("holds no number"));
        fs::write(directory.path().join("file"), "").unwrap();
        let (epoch, error) = next(&directory.path().join("file"), now);
        assert_eq!((epoch, error.is_some()), (77, true));
    }
}

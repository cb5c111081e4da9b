//! Whether files have changed: by what the system says of the file at the end of each path.
//!
//! A path is followed through its symbolic links each time, so the swap of a link (Kubernetes' `..data`, certbot's
//! `live`) is seen like a file that was written in place or renamed over: another inode, size or time of change. The
//! latter cannot be set back. A look costs one system call a file, so that a watch by inotify, which misses links and
//! network file systems, would save nothing.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the system says of some files at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature(BTreeMap<PathBuf, Option<FileState>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileState {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Since 1970.
    changed: Duration,
    modified: Duration,
}

impl Signature {
    /// That of `files` now.
    pub fn of(files: Vec<PathBuf>) -> Self {
        let state = |file: &PathBuf| {
            let metadata = std::fs::metadata(file).ok()?;
            let time = |seconds: i64, nanos: i64| {
                Duration::new(seconds.max(0).unsigned_abs(), u32::try_from(nanos).unwrap_or_default())
            };
            Some(FileState {
                device: metadata.dev(),
                inode: metadata.ino(),
                bytes: metadata.size(),
                changed: time(metadata.ctime(), metadata.ctime_nsec()),
                modified: time(metadata.mtime(), metadata.mtime_nsec()),
            })
        };
        let with_state = |file: PathBuf| {
            let state = state(&file);
            (file, state)
        };
        Self(files.into_iter().map(with_state).collect())
    }

    /// Whether a file that both are about has changed from the one to the other.
    pub fn differs_from(&self, before: &Signature) -> bool {
        self.0.iter().any(|(file, state)| before.0.get(file).is_some_and(|before| before != state))
    }

    /// Whether somebody may still be at it: a file is not there, or was changed within `span` before `now`.
    pub fn is_unsettled(&self, span: Duration, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.0.values().any(|state| state.is_none_or(|state| now.saturating_sub(state.changed) < span))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_way_to_change_a_file_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        // As Kubernetes mounts a secret: tls.pem -> ..data/tls.pem, ..data -> ..1
        for (version, text) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(path(version)).unwrap();
            fs::write(path(version).join("tls.pem"), text).unwrap();
        }
        symlink("..1", path("..data")).unwrap();
        symlink("..data/tls.pem", path("tls.pem")).unwrap();
        let look = || Signature::of(vec![path("tls.pem"), path("none")]);
        let mut before = look();
        assert!(!look().differs_from(&before));
        let mut changed = |what: &str| {
            assert!(look().differs_from(&before), "{what}");
            before = look();
        };
        symlink("..2", path("..new")).unwrap();
        fs::rename(path("..new"), path("..data")).unwrap();
        changed("the link of its directory was swapped");
        fs::write(path("..2/tls.pem"), "owt").unwrap();
        changed("it was written in place, to the same length");
        fs::write(path("fresh"), "owt").unwrap();
        fs::rename(path("fresh"), path("..2/tls.pem")).unwrap();
        changed("another was renamed over it");
        fs::write(path("none"), "").unwrap();
        changed("a file came");
        fs::remove_file(path("tls.pem")).unwrap();
        changed("a file went");
    }

    #[test]
    fn what_was_changed_just_now_may_be_half_written() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a");
        fs::write(&file, "x").unwrap();
        let signature = Signature::of(vec![file.clone()]);
        let span = Duration::from_secs(5);
        assert!(signature.is_unsettled(span, SystemTime::now()));
        assert!(!signature.is_unsettled(span, SystemTime::now() + span * 2));
        fs::remove_file(&file).unwrap();
        assert!(Signature::of(vec![file]).is_unsettled(span, SystemTime::now() + span * 2));
    }
}

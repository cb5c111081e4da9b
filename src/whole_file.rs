//! Small files that are there as a whole or as they were: written beside their place, synced, and renamed into it.
//!
//! A disk that is full leaves what there was, and a machine that loses its power finds the old one or the new one.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Puts a file in its place, new or in the place of an old one, with the permissions `mode`. When it returns it is on the disk.
///
/// # Errors
/// What the system says; then the place is as it was.
pub fn replace(place: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    Fresh::write(place, content, mode)?.put()
}

/// A file that is written and has no place yet. It is gone with this value unless it is put there. Several that belong
/// together are all written before the first is put.
#[derive(Debug)]
pub struct Fresh<'a> {
    path: PathBuf,
    place: &'a Path,
}

impl<'a> Fresh<'a> {
    /// Writes all of it out, beside its place, with `.new` behind the name.
    ///
    /// # Errors
    /// What the system says; then nothing is left.
    pub fn write(place: &'a Path, content: &[u8], mode: u32) -> io::Result<Self> {
        let mut name = place.as_os_str().to_owned();
        name.push(".new");
        let path = PathBuf::from(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let fresh = Self { path, place };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh.path)?;
        file.write_all(content)?;
        file.sync_all()?;
        Ok(fresh)
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// What the system says.
    pub fn put(self) -> io::Result<()> {
        std::fs::rename(&self.path, self.place)?;
        let directory = self.place.parent().filter(|directory| !directory.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Fresh<'_> {
    fn drop(&mut self) {
        // In its place by now, or of no use.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_new_or_old_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("file");
        std::fs::write(directory.path().join("file.new"), "left by a process that was killed").unwrap();
        for content in ["one", "two, which is longer", ""] {
            replace(&place, content.as_bytes(), 0o600).unwrap();
            assert_eq!(std::fs::read_to_string(&place).unwrap(), content);
        }
        assert_eq!(std::fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o600);
        drop(Fresh::write(&place, b"never put", 0o600).unwrap());
        assert_eq!(std::fs::read_to_string(&place).unwrap(), "");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_leaves_what_there_was() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("file");
        std::fs::write(&place, "old").unwrap();
        std::fs::create_dir_all(directory.path().join("file.new/in the way")).unwrap();
        assert!(replace(&place, b"new", 0o600).is_err());
        assert_eq!(std::fs::read_to_string(&place).unwrap(), "old");
    }
}

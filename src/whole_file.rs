//! Small files that are there as a whole or as they were: written beside their place, synced, and renamed into it; and read
//! as a whole, whatever stands at the path.
//!
//! A disk that is full leaves what there was, and a machine that loses its power finds the old one or the new one. A path that
//! leads to a pipe or a device by mistake is an error at once: it neither waits for a writer nor reads without an end.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// How many bytes a file may have that is read as a whole: a million lines of a token file, and larger than any revocation list.
pub const FILE_BYTES_MAX: u64 = 128 << 20;

/// Opens a file for reading without ever waiting for it. A directory is opened too: to read it is the error that says so.
///
/// # Errors
/// What the system says, or that it is neither a file nor a directory.
pub fn open(path: &Path) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() || kind.is_dir() {
        Ok(file)
    } else {
        Err(io::Error::other("it is a pipe or a device, not a file"))
    }
}

/// All of a file's bytes.
///
/// # Errors
/// As [`open`], and it has more than [`FILE_BYTES_MAX`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let too_large = || io::Error::other(format!("it has more than {FILE_BYTES_MAX} bytes"));
    let bytes = file.metadata()?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(too_large());
    }
    // All of it at once: a secret leaves no shorter copies behind.
    let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or_default());
    // One that grows meanwhile, or does not tell its length, is bounded as well.
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FILE_BYTES_MAX { Err(too_large()) } else { Ok(content) }
}

/// All of a file's text.
///
/// # Errors
/// As [`read`], and it is no UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    let no_text = |_| io::Error::new(io::ErrorKind::InvalidData, "it is not text in UTF-8");
    String::from_utf8(read(path)?).map_err(no_text)
}

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
    fn what_is_no_file_is_an_error_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let says = |path: &Path| read(path).unwrap_err().to_string();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(says(&path).contains("a pipe or a device"), "nobody writes into it");
        let writer = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        assert!(says(&path).contains("a pipe or a device"), "somebody might");
        drop(writer);
        assert!(says(Path::new("/dev/zero")).contains("a pipe or a device"));
        assert_eq!(read(directory.path()).unwrap_err().kind(), io::ErrorKind::IsADirectory);
    }

    #[test]
    fn a_file_is_read_up_to_its_bound_and_not_beyond() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "text").unwrap();
        assert_eq!(read_text(&path).unwrap(), "text");
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(read(&path).unwrap(), [0xff]);
        assert!(read_text(&path).unwrap_err().to_string().contains("UTF-8"));
        // A hole, which takes no room on the disk.
        File::create(&path).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("more than 134217728 bytes"));
        // One of the system, whose length is not told before.
        assert!(read_text(Path::new("/proc/self/status")).unwrap().contains("Name:"));
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

//! Whose data directory it is: a number that is drawn once and kept, so that a gateway that was restarted is known as the one
//! that had its name, and another one that was given the same name by mistake is not.

use std::path::Path;
use std::{fs, io};

use crate::whole_file;

const FILE: &str = "fleet-instance";

/// The one of this directory; `fresh` where it has none yet, which is kept there if that can be.
///
/// # Errors
/// It cannot be kept: then a restarted gateway waits for its own lease to end.
pub fn of(data_dir: &Path, fresh: &str) -> io::Result<String> {
    match fs::read_to_string(data_dir.join(FILE)) {
        Ok(text) if is_instance(text.trim()) => return Ok(text.trim().to_owned()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs::create_dir_all(data_dir)?;
    whole_file::replace(&data_dir.join(FILE), format!("{fresh}\n").as_bytes(), 0o644)?;
    Ok(fresh.to_owned())
}

fn is_instance(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_drawn_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("made/here");
        assert_eq!(of(&data_dir, "0123456789abcdef").unwrap(), "0123456789abcdef");
        assert_eq!(of(&data_dir, "ffffffffffffffff").unwrap(), "0123456789abcdef");
        fs::write(data_dir.join(FILE), "nonsense").unwrap();
        assert_eq!(of(&data_dir, "ffffffffffffffff").unwrap(), "ffffffffffffffff");
    }
}

//! The token file of a listener: which device proves itself with which secret. Only argon2id hashes are kept, never a
//! token.
//!
//! ```text
//! # one device a line; everything up to the last colon is the device's id
//! meter-17:$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0c2FsdA$…
//! ```

use std::collections::HashMap;
use std::collections::hash_map;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::constant_time;

use crate::whole_file;

/// The most memory that one hash may ask for, in KiB: 256 MiB.
pub const MEMORY_KIB_MAX: u32 = 256 * 1024;
/// The most passes over its memory that one hash may ask for.
pub const PASSES_MAX: u32 = 16;
/// The most lanes that one hash may ask for.
pub const LANES_MAX: u32 = 16;
/// The shortest salt taken, in bytes.
pub const SALT_BYTES_MIN: usize = 8;
/// The shortest hash taken, in bytes; the format ends at 64.
pub const HASH_BYTES_MIN: usize = 16;

/// A token file, read and checked.
#[derive(Debug, Default)]
pub struct TokenFile {
    index: HashMap<Box<str>, u32>,
    entries: Vec<Entry>,
}

/// One device's hash and what it costs to compute.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    params: Params,
    salt: Box<[u8]>,
    hash: Box<[u8]>,
}

impl TokenFile {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`TokenFileError`]: the file cannot be read, or one of its lines is wrong.
    pub fn load(path: &Path) -> Result<TokenFile, TokenFileError> {
        let text = whole_file::read_text(path)
            .map_err(|error| TokenFileError { path: path.to_owned(), fault: Fault::Unreadable(error) })?;
        Self::parse(&text).map_err(|fault| TokenFileError { path: path.to_owned(), fault })
    }

    /// How many devices the file names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it names none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The device's place in the file: `0..len`.
    #[must_use]
    pub fn find(&self, device: &str) -> Option<u32> {
        self.index.get(device).copied()
    }

    /// Whether `token` is that of the device at `place`. Takes as long as the hash was made to take (tens of
    /// milliseconds), and its memory; the comparison takes the same time whatever differs.
    #[must_use]
    pub fn verify(&self, place: u32, token: &[u8]) -> bool {
        let entry = &self.entries[place as usize];
        let mut computed = [0; 64];
        let computed = &mut computed[..entry.hash.len()];
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, entry.params.clone());
        match argon2.hash_password_into(token, &entry.salt, computed) {
            Ok(()) => constant_time::verify_slices_are_equal(computed, &entry.hash).is_ok(),
            // Parameters were checked at load; what remains is a token beyond argon2's 4 GiB.
            Err(_) => false,
        }
    }

    /// The places of the devices whose hashes are the same as in an `older` file, and their places there.
    pub(in crate::control) fn unchanged_since<'a>(
        &'a self,
        older: &'a TokenFile,
    ) -> impl Iterator<Item = (u32, u32)> + 'a {
        self.index.iter().filter_map(|(device, &place)| {
            let old_place = older.find(device)?;
            (self.entries[place as usize] == older.entries[old_place as usize]).then_some((place, old_place))
        })
    }

    fn parse(text: &str) -> Result<TokenFile, Fault> {
        let mut file = TokenFile::default();
        let mut lines: Vec<usize> = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            // An id may hold colons (a URN, a hardware address); a PHC string never does.
            let (device, hash) = text.rsplit_once(':').ok_or(Fault::NoColon { line })?;
            if device.is_empty() {
                return Err(Fault::NoDevice { line });
            }
            let entry = Entry::parse(hash).map_err(|fault| Fault::Hash { line, fault })?;
            let place = u32::try_from(file.entries.len()).map_err(|_| Fault::TooLong { line })?;
            match file.index.entry(device.into()) {
                hash_map::Entry::Occupied(first) => {
                    let first_line = lines[*first.get() as usize];
                    return Err(Fault::Duplicate { line, first_line, device: device.to_owned() });
                }
                hash_map::Entry::Vacant(vacant) => vacant.insert(place),
            };
            file.entries.push(entry);
            lines.push(line);
        }
        Ok(file)
    }
}

impl Entry {
    fn parse(text: &str) -> Result<Entry, HashFault> {
        let hash = PasswordHash::new(text).map_err(|_| HashFault::NotPhc)?;
        if hash.algorithm.as_str() != "argon2id" || hash.version != Some(Version::V0x13.into()) {
            return Err(HashFault::NotArgon2id);
        }
        if hash.params.iter().any(|(name, _)| !["m", "t", "p"].contains(&name.as_str())) {
            return Err(HashFault::UnknownParameter);
        }
        let params = Params::try_from(&hash).map_err(|_| HashFault::BadParameters)?;
        if params.m_cost() > MEMORY_KIB_MAX || params.t_cost() > PASSES_MAX || params.p_cost() > LANES_MAX {
            return Err(HashFault::TooCostly);
        }
        let (Some(salt), Some(output)) = (hash.salt, hash.hash) else { return Err(HashFault::Incomplete) };
        if salt.len() < SALT_BYTES_MIN || output.len() < HASH_BYTES_MIN {
            return Err(HashFault::TooShort);
        }
        Ok(Entry { params, salt: salt.as_ref().into(), hash: output.as_bytes().into() })
    }
}

/// What is wrong with a token file, and where.
#[derive(Debug)]
pub struct TokenFileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: Fault,
}

impl fmt::Display for TokenFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.fault {
            Fault::Unreadable(error) => write!(f, "{path}: the token file cannot be read: {error}"),
            Fault::NoColon { line } => {
                write!(f, "{path}, line {line}: no colon; write the device's id, a colon and its argon2id hash")
            }
            Fault::NoDevice { line } => write!(f, "{path}, line {line}: there is no device id before the colon"),
            Fault::Duplicate { line, first_line, device } => {
                write!(f, "{path}, line {line}: the device {device:?} has a hash already, in line {first_line}")
            }
            Fault::TooLong { line } => write!(f, "{path}, line {line}: the file names too many devices"),
            Fault::Hash { line, fault } => write!(f, "{path}, line {line}: {fault}"),
        }
    }
}

impl std::error::Error for TokenFileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.fault {
            Fault::Unreadable(error) => Some(error),
            _ => None,
        }
    }
}

/// What is wrong with a token file; lines count from 1.
#[derive(Debug)]
pub enum Fault {
    /// It cannot be read, or is not UTF-8.
    Unreadable(io::Error),
    /// A line without a colon.
    NoColon {
        /// The number of the line in the file, from 1.
        line: usize,
    },
    /// A line that begins with its only colon.
    NoDevice {
        /// The number of the line in the file, from 1.
        line: usize,
    },
    /// A device that an earlier line names too.
    Duplicate {
        /// The number of the line in the file, from 1.
        line: usize,
        /// The earlier line.
        first_line: usize,
        /// The device.
        device: String,
    },
    /// More than 2^32 devices.
    TooLong {
        /// The number of the line in the file, from 1.
        line: usize,
    },
    /// A hash that cannot be used.
    Hash {
        /// The number of the line in the file, from 1.
        line: usize,
        /// Why not.
        fault: HashFault,
    },
}

/// Why a hash cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashFault {
    /// It is no PHC string.
    NotPhc,
    /// It is another algorithm or version than argon2id 0x13.
    NotArgon2id,
    /// It has a parameter besides m, t and p.
    UnknownParameter,
    /// A parameter is outside what argon2 allows.
    BadParameters,
    /// It asks for more than [`MEMORY_KIB_MAX`], [`PASSES_MAX`] or [`LANES_MAX`].
    TooCostly,
    /// The salt or the hash itself is missing.
    Incomplete,
    /// The salt is shorter than [`SALT_BYTES_MIN`] or the hash than [`HASH_BYTES_MIN`].
    TooShort,
}

impl fmt::Display for HashFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HashFault::NotPhc => f.write_str("not a hash of the form $argon2id$v=19$m=19456,t=2,p=1$salt$hash"),
            HashFault::NotArgon2id => f.write_str("the hash must begin with $argon2id$v=19$"),
            HashFault::UnknownParameter => f.write_str("the hash has a parameter besides m, t and p"),
            HashFault::BadParameters => f.write_str("argon2 does not allow the parameters of the hash"),
            HashFault::TooCostly => write!(
                f,
                "the hash costs too much: at most m={MEMORY_KIB_MAX} (KiB), t={PASSES_MAX}, p={LANES_MAX} are computed"
            ),
            HashFault::Incomplete => f.write_str("the hash lacks its salt or its value"),
            HashFault::TooShort => write!(
                f,
                "the salt must have at least {SALT_BYTES_MIN} bytes and the hash value at least {HASH_BYTES_MIN}"
            ),
        }
    }
}

/// The line of a token file for `device` with `token`, cheap enough for tests.
#[cfg(test)]
pub(in crate::control) fn line_for(device: &str, token: &[u8]) -> String {
    use argon2::password_hash::CustomizedPasswordHasher;
    let params = Params::new(64, 1, 1, None).unwrap();
    let hash: PasswordHash = Argon2::default().hash_password_with_params(token, b"saltsaltsaltsalt", params).unwrap();
    format!("{device}:{hash}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_by_its_token() {
        let text = format!("# the fleet\n\n{}  {}\r\n", line_for("meter-1", b"one"), line_for("urn:dev:2", b"two"));
        let file = TokenFile::parse(&text).unwrap();
        assert_eq!(file.len(), 2);
        let (first, second) = (file.find("meter-1").unwrap(), file.find("urn:dev:2").unwrap());
        assert!(file.verify(first, b"one") && file.verify(second, b"two"));
        assert!(!file.verify(first, b"two") && !file.verify(first, b"") && !file.verify(second, b"one"));
        assert_eq!(file.find("meter-3"), None);
        assert!(TokenFile::parse("# nobody\n").unwrap().is_empty());
    }

    #[test]
    fn hashes_made_elsewhere_verify() {
        // By the reference implementation, through Python's argon2-cffi.
        let line = "horse:$argon2id$v=19$m=1024,t=2,p=2$YS0xNi1ieXRlLXNhbHQhIQ$\
                    MlqYoc52yuNRlN9l1P7xxjqjoFi/lFUuihUYZT+J5hY";
        let file = TokenFile::parse(line).unwrap();
        assert!(file.verify(file.find("horse").unwrap(), b"correct horse"));
        assert!(!file.verify(file.find("horse").unwrap(), b"battery staple"));
    }

    #[test]
    fn errors_name_the_file_the_line_and_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("devices.tokens");
        let good = line_for("a", b"x");
        let salt_and_hash = "$c2FsdHNhbHQ$MTIzNDU2Nzg5MDEyMzQ1Njc4OTA";
        let cases = [
            ("meter\n".to_owned(), "line 1: no colon"),
            (":$argon2id\n".to_owned(), "line 1: there is no device id"),
            (format!("{good}\n{good}"), "line 3: the device \"a\" has a hash already, in line 1"),
            ("a:secret\n".to_owned(), "line 1: not a hash of the form"),
            (format!("a:$argon2i$v=19$m=64,t=1,p=1{salt_and_hash}"), "must begin with $argon2id$v=19$"),
            (format!("a:$argon2id$v=16$m=64,t=1,p=1{salt_and_hash}"), "must begin with $argon2id$v=19$"),
            (format!("a:$argon2id$v=19$m=64,t=1,p=1,x=1{salt_and_hash}"), "besides m, t and p"),
            (format!("a:$argon2id$v=19$m=1,t=1,p=1{salt_and_hash}"), "does not allow the parameters"),
            (format!("a:$argon2id$v=19$m=999999,t=1,p=1{salt_and_hash}"), "costs too much"),
            ("a:$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ".to_owned(), "lacks its salt or its value"),
            ("a:$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$MTIzNDU2Nzg5MDE".to_owned(), "at least 16"),
        ];
        for (text, expected) in cases {
            std::fs::write(&path, &text).unwrap();
            let error = TokenFile::load(&path).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("devices.tokens"), "{text}: {error}");
        }
        let error = TokenFile::load(&directory.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("cannot be read"), "{error}");
    }
}

//! What is wrong with a configuration: always the operator's to mend, so each error names file, line, key and remedy.

use std::path::{Path, PathBuf};
use std::{fmt, io};

use super::locate;

/// A configuration that cannot be used. Its text is one line.
#[derive(Debug)]
pub enum ConfigError {
    /// The configuration file itself cannot be read.
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
    /// The file is not TOML, holds a key that does not exist, or a value of the wrong type.
    Malformed {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The key, as far as there is one.
        key: String,
        /// What is wrong and what was expected.
        message: String,
    },
    /// A value that the gateway cannot work with.
    Refused {
        /// The file; absent for the built-in configuration.
        file: Option<PathBuf>,
        /// The line of the key, or of the table that lacks it, from 1.
        line: Option<usize>,
        /// The key and what to do about it.
        problem: Box<Problem>,
    },
}

impl ConfigError {
    /// What the TOML parser said about `text`.
    pub(super) fn malformed(file: &Path, text: &str, error: &toml::de::Error) -> Self {
        let offset = error.span().map_or(0, |span| span.start);
        Self::Malformed {
            file: file.to_owned(),
            line: locate::line_at(text, offset),
            key: error.span().and_then(|span| locate::key_at(text, &span)).unwrap_or_default(),
            message: error.message().replace('\n', ", "),
        }
    }

    /// A problem found in `text`.
    pub(super) fn refused(file: &Path, text: &str, problem: Problem) -> Self {
        let line = problem.place.line_in(text);
        Self::Refused { file: Some(file.to_owned()), line, problem: Box::new(problem) }
    }

    /// The path of the key in the file, as far as it is about one.
    pub(super) fn path(&self) -> Option<String> {
        match self {
            ConfigError::Unreadable { .. } => None,
            ConfigError::Malformed { key, .. } => Some(key.clone()).filter(|key| !key.is_empty()),
            ConfigError::Refused { problem, .. } => Some(problem.place.path()),
        }
    }

    /// A problem of the built-in configuration.
    pub(super) fn built_in(problem: Problem) -> Self {
        Self::Refused { file: None, line: None, problem: Box::new(problem) }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Unreadable { file, error } => {
                write!(f, "{}: the configuration file cannot be read: {error}", file.display())
            }
            ConfigError::Malformed { file, line, key, message } => {
                write!(f, "{}:{line}: ", file.display())?;
                if !key.is_empty() {
                    write!(f, "{key}: ")?;
                }
                f.write_str(message)
            }
            ConfigError::Refused { file, line, problem } => {
                match file {
                    Some(file) => write!(f, "{}:", file.display())?,
                    None => write!(f, "the built-in configuration:")?,
                }
                if let Some(line) = line {
                    write!(f, "{line}:")?;
                }
                write!(f, " {problem}")
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// One wrong value: where, what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key.
    pub place: ConfigKey,
    /// What is wrong, as a clause.
    pub what: String,
    /// What to write instead, as a clause in the imperative.
    pub remedy: String,
}

impl Problem {
    /// A problem with the key at `place`.
    pub(super) fn new(place: ConfigKey, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { place, what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.place, self.what, self.remedy)
    }
}

/// A key of the configuration: `limits.connections`, or `heartbeat.interval` of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigKey {
    listener: Option<(usize, String)>,
    key: String,
}

impl ConfigKey {
    /// A key outside the listeners, dotted.
    pub fn top(key: impl Into<String>) -> Self {
        Self { listener: None, key: key.into() }
    }

    /// A key of the listener with this index and name (empty if it has none), dotted. An empty key is the listener as
    /// a whole.
    pub fn of_listener(index: usize, name: &str, key: impl Into<String>) -> Self {
        Self { listener: Some((index, name.to_owned())), key: key.into() }
    }

    /// The line of `text` at which the key stands, or the nearest table around it that is written, from 1.
    #[must_use]
    pub fn line_in(&self, text: &str) -> Option<usize> {
        locate::line_of(text, &self.path())
    }

    /// The path in the file: `listener[1].heartbeat.interval`.
    fn path(&self) -> String {
        match &self.listener {
            None => self.key.clone(),
            Some((index, _)) => format!("listener[{index}].{}", self.key),
        }
    }
}

impl fmt::Display for ConfigKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((index, name)) = &self.listener {
            write!(f, "listener[{index}]")?;
            if !name.is_empty() {
                write!(f, " {name:?}")?;
            }
            if !self.key.is_empty() {
                f.write_str(": ")?;
            }
        }
        f.write_str(&self.key)
    }
}

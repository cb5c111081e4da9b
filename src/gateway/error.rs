//! Why a gateway cannot be started, or goes on with what it had: always with what to do about it.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use crate::config::{ConfigError, ConfigKey};
use crate::tls::certs::development::DevelopmentError;
use crate::whole_file;

/// One thing that is wrong. Its text is one line.
#[derive(Debug)]
pub enum GatewayError {
    /// The configuration is wrong.
    Config(ConfigError),
    /// A file that a listener names cannot be used: the configuration file if there is one, the key, and why.
    File(Option<PathBuf>, ConfigKey, Box<dyn Error + Send + Sync>),
    /// Development certificates could not be made.
    Development(DevelopmentError),
    /// The system, or another program, is in the way.
    Start(String),
}

impl GatewayError {
    /// Whether it may be that a file was caught while somebody wrote it, or one half of a pair before the other.
    pub(super) fn may_be_half_written(&self) -> bool {
        matches!(self, GatewayError::File(..))
    }
}

impl fmt::Display for GatewayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GatewayError::Config(error) => error.fmt(f),
            GatewayError::File(file, place, error) => {
                if let Some(file) = file {
                    write!(f, "{}:", file.display())?;
                    // Read once more for the error alone; a file that is gone by now has no lines.
                    match whole_file::read_text(file).ok().and_then(|text| place.line_in(&text)) {
                        Some(line) => write!(f, "{line}: ")?,
                        None => f.write_str(" ")?,
                    }
                }
                write!(f, "{place}: {error}")
            }
            GatewayError::Development(error) => write!(f, "development certificates: {error}"),
            GatewayError::Start(what) => f.write_str(what),
        }
    }
}

impl Error for GatewayError {}

impl From<ConfigError> for GatewayError {
    fn from(error: ConfigError) -> Self {
        GatewayError::Config(error)
    }
}

impl From<DevelopmentError> for GatewayError {
    fn from(error: DevelopmentError) -> Self {
        GatewayError::Development(error)
    }
}

/// Everything that is wrong, at least one thing. Its text has a line for each.
#[derive(Debug)]
pub struct Problems(pub Vec<GatewayError>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, problem) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl Error for Problems {}

impl From<GatewayError> for Problems {
    fn from(problem: GatewayError) -> Self {
        Problems(vec![problem])
    }
}

//! The blocks that were made over the API, in `blocks.json` of the data directory: a meter that was stolen is kept out by
//! the next process too.
//!
//! ```json
//! {"version":1,"blocks":[{"device":"meter-17"},{"network":"192.0.2.0/24","until":"2026-11-25T22:00:00.000Z"}]}
//! ```
//!
//! What the fleet keeps out (`"fleet": true`, version 2 of the file) is there too, for a start while NATS is away.
//! What the gateway itself keeps out for a while (`rate_exceeded`) is not there: it ends with the process. A file that cannot
//! be read, or is of another version, is an error at the start: those who were kept out would come in.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::link::Subject;
use crate::network::Network;
use crate::whole_file;

const FILE: &str = "blocks.json";
const VERSION: u32 = 1;
/// With entries of a fleet.
const VERSION_FLEET: u32 = 2;
/// It names devices: for the gateway's user alone.
const MODE: u32 = 0o600;

/// A block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeptBlock {
    /// Who is kept out.
    pub(super) subject: Subject,
    /// The time of day until which it holds; `None`: for good.
    pub(super) until: Option<SystemTime>,
    /// Whether it was said to the fleet, and not to this gateway alone.
    pub(super) is_of_fleet: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    version: u32,
    blocks: Vec<Entry>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    fleet: bool,
}

/// Where they are kept.
#[derive(Debug)]
pub(super) struct BlocksFile(PathBuf);

impl BlocksFile {
    pub(super) fn of(data_dir: &Path) -> Self {
        Self(data_dir.join(FILE))
    }

    /// What an earlier process has left; none where there is no file.
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    pub(super) fn read(&self) -> Result<Vec<KeptBlock>, String> {
        let text = match std::fs::read(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.fault(&format!("cannot be read: {error}"))),
        };
        let whole: Whole = serde_json::from_slice(&text).map_err(|error| self.fault(&error.to_string()))?;
        if ![VERSION, VERSION_FLEET].contains(&whole.version) {
            let known = format!("{VERSION} and {VERSION_FLEET} are known");
            return Err(self.fault(&format!("is of version {}, and {known}", whole.version)));
        }
        let blocks = whole.blocks.into_iter().map(Entry::into_block).collect::<Option<_>>();
        blocks.ok_or_else(|| self.fault("an entry names no device, certificate or network"))
    }

    fn fault(&self, what: &str) -> String {
        format!(
            "{}: {what}: mend it or move it away; without it whoever was blocked over the API may come in again",
            self.0.display()
        )
    }

    /// Keeps these and no others. When it returns they are on the disk.
    ///
    /// # Errors
    /// Names the file and what the system says.
    pub(super) fn write(&self, blocks: impl IntoIterator<Item = KeptBlock>) -> Result<(), String> {
        let blocks: Vec<_> = blocks.into_iter().map(Entry::from_block).collect();
        // A gateway of an earlier version reads what needs no fleet.
        let version = if blocks.iter().any(|entry| entry.fleet) { VERSION_FLEET } else { VERSION };
        let whole = Whole { version, blocks };
        let written = || {
            if let Some(directory) = self.0.parent() {
                std::fs::create_dir_all(directory)?;
            }
            whole_file::replace(&self.0, &serde_json::to_vec(&whole)?, MODE)
        };
        written().map_err(|error| format!("{}: {error}", self.0.display()))
    }
}

impl Entry {
    fn from_block(KeptBlock { subject, until, is_of_fleet }: KeptBlock) -> Self {
        let until = until.map(|until| humantime::format_rfc3339_millis(until).to_string());
        let mut entry = Self { until, fleet: is_of_fleet, ..Self::default() };
        match subject {
            Subject::Device(id) => entry.device = Some(id.into()),
            Subject::Certificate(fingerprint) => entry.certificate = Some(fingerprint.to_string()),
            Subject::Network(network) => entry.network = Some(network.to_string()),
        }
        entry
    }

    fn into_block(self) -> Option<KeptBlock> {
        let subject = match (self.device, self.certificate, self.network) {
            (Some(device), None, None) => Subject::Device(device.into()),
            (None, Some(fingerprint), None) => Subject::Certificate(fingerprint.parse().ok()?),
            (None, None, Some(network)) => Subject::Network(Network::around(&network).ok()?),
            _ => return None,
        };
        let until = self.until.map(|until| humantime::parse_rfc3339(&until)).transpose().ok()?;
        Some(KeptBlock { subject, until, is_of_fleet: self.fleet })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_kept_is_read_again_and_what_is_damaged_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = BlocksFile::of(&directory.path().join("made/here"));
        assert_eq!(file.read().unwrap(), []);
        let until = SystemTime::UNIX_EPOCH + Duration::from_millis(1_764_108_000_123);
        let kept = |subject, until| KeptBlock { subject, until, is_of_fleet: false };
        let mut all = [
            kept(Subject::Device("a \"quoted\" id".into()), None),
            kept(Subject::Certificate("ab".repeat(32).parse().unwrap()), Some(until)),
            kept(Subject::Network("2001:db8::/32".parse().unwrap()), None),
        ];
        for version in ["\"version\":1", "\"version\":2"] {
            file.write(all.clone()).unwrap();
            assert_eq!(file.read().unwrap(), all);
            assert!(std::fs::read_to_string(&file.0).unwrap().contains(version));
            all[1].is_of_fleet = true;
        }
        file.write([]).unwrap();
        assert_eq!(file.read().unwrap(), []);
        for (text, part) in [
            ("", "EOF"),
            (r#"{"version":3,"blocks":[]}"#, "version 3"),
            (r#"{"version":1,"blocks":[{}]}"#, "no device"),
            (r#"{"version":1,"blocks":[{"device":"a","more":1}]}"#, "more"),
        ] {
            std::fs::write(&file.0, text).unwrap();
            let error = file.read().unwrap_err();
            assert!(error.contains(part) && error.contains("blocks.json") && error.contains("move it away"), "{error}");
        }
        std::fs::remove_file(&file.0).unwrap();
        std::fs::create_dir(&file.0).unwrap();
        assert!(file.read().unwrap_err().contains("cannot be read"));
        assert!(file.write([]).unwrap_err().contains("blocks.json"));
    }
}

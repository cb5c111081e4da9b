//! What the other side will not take: lines of JSON in a file of bounded size, for people to look at.
//!
//! A line holds why, and the event as it was to go. It is on the disk before the sink's cursor passes the event. A file that
//! is full takes no more: then the sink waits, so that nothing is lost for want of somebody who reads it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::event::Event;

/// The directory within the data directory.
const DIRECTORY: &str = "dead-letter";

/// The dead letters of one sink.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    path: PathBuf,
    bytes_max: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    at: String,
    sink: &'a str,
    why: &'a str,
    event: &'a Event<'a>,
}

impl DeadLetters {
    /// Those of `sink`, of a gateway that keeps its own in `data_dir`.
    #[must_use]
    pub fn new(data_dir: &Path, sink: &str, bytes_max: u64) -> Self {
        Self { path: data_dir.join(DIRECTORY).join(format!("{sink}.jsonl")), bytes_max }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds `events`, all of them or none; on the disk when it returns.
    ///
    /// # Errors
    /// There is no room in the file ([`io::ErrorKind::QuotaExceeded`]), or it cannot be written.
    pub fn add<'a>(&self, sink: &str, why: &str, events: impl Iterator<Item = Event<'a>>) -> io::Result<()> {
        let at = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mut text = Vec::new();
        for event in events {
            let line = Line { at: at.clone(), sink, why, event: &event };
            serde_json::to_writer(&mut text, &line)?;
            text.push(b'\n');
        }
        let directory = self.path.parent().expect("it is in a directory");
        fs::create_dir_all(directory)?;
        let mut file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        let before = file.metadata()?.len();
        if before.saturating_add(text.len() as u64) > self.bytes_max {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let written = file.write_all(&text).and_then(|()| file.sync_all());
        if written.is_err() {
            // Half a line would spoil the next one.
            let _ = file.set_len(before);
        } else if before == 0 {
            // A new file is on the disk when its directory is.
            File::open(directory)?.sync_all()?;
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::link::WorkerId;
    use crate::store::{Entry, Stored, What};

    #[test]
    fn lines_are_added_until_the_file_is_full() {
        let directory = tempfile::tempdir().unwrap();
        let letters = DeadLetters::new(directory.path(), "cloud", 600);
        let what = What::Message { topic: "t".into(), payload: Bytes::from_static(b"1"), published: None };
        let entry = Entry { at_ms: 0, worker: WorkerId(0), device: "meter-1".into(), what, receipt: None };
        let stored = Stored { seq: 7, entry };
        let add = || letters.add("cloud", "400: no", std::iter::once(Event::new("edge-1", &stored)));
        let mut added = 0;
        let full = loop {
            match add() {
                Ok(()) => added += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::QuotaExceeded);
        let text = fs::read_to_string(letters.path()).unwrap();
        assert!(added >= 2 && text.len() <= 600);
        assert_eq!(text.lines().count(), added);
        let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!((&line["why"], &line["event"]["seq"]), (&"400: no".into(), &7.into()));
        // Emptied by whoever has read it, it takes more.
        fs::remove_file(letters.path()).unwrap();
        add().unwrap();
    }
}

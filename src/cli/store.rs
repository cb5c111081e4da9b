//! `store`: what a person does with the store's file, beside the gateway or without it.

use std::fmt::Write;
use std::io;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use pulsegate::config::Machine;
use pulsegate::gateway::Source;
use pulsegate::store::{self, FILE, Range, Reader, StoreError, Stored, What};
use serde_json::{Value, json};

use super::arguments::{Store, StoreOf};
use super::{CliError, print, raise_descriptor_limit};

/// Events read at a time, and bytes of them.
const COUNT: u64 = 1_000;
const BYTES: usize = 1 << 20;

/// Does what is asked.
pub fn store(options: &Store) -> Result<(), CliError> {
    match options {
        Store::Check(of) => check(of),
        Store::Export(of) => export(of),
        Store::Backup { of, to } => {
            store::backup(&directory(of)?, to).map_err(|error| failed(&error))?;
            print(&format!("{}\n", to.display()))
        }
    }
}

fn failed(error: &StoreError) -> CliError {
    CliError::Run(error.to_string())
}

fn directory(of: &StoreOf) -> Result<PathBuf, CliError> {
    let source = Source { file: of.config.clone(), machine: Machine::detect(raise_descriptor_limit()) };
    Ok(source.load()?.config.data_dir)
}

fn check(of: &StoreOf) -> Result<(), CliError> {
    let directory = directory(of)?;
    let found = store::check(&directory).map_err(|error| failed(&error))?;
    let path = directory.join(FILE);
    if found.damage.is_empty() {
        let (first, last) = found.range;
        let held = match found.events {
            0 => "no events".to_owned(),
            events => format!("{events} events, {first} to {last}"),
        };
        return print(&format!("{}: sound; {held}, {} consumers\n", path.display(), found.consumers));
    }
    for line in &found.damage {
        print(&format!("{}: {line}\n", path.display()))?;
    }
    Err(CliError::Run(format!("{}: the store is damaged: restore a backup", path.display())))
}

fn export(of: &StoreOf) -> Result<(), CliError> {
    let reader = Reader::open(&directory(of)?.join(FILE)).map_err(|error| failed(&error))?;
    let mut first = reader.first().map_err(|error| failed(&error))?;
    while let Some(from) = first {
        let events =
            reader.range(Range { first: from, last: from + COUNT - 1 }, BYTES).map_err(|error| failed(&error))?;
        let mut lines = String::new();
        for event in &events {
            let _ = writeln!(lines, "{}", line(event));
        }
        match print(&lines) {
            Err(CliError::Io(_, error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            done => done?,
        }
        first = events.last().map(|event| event.seq + 1);
    }
    Ok(())
}

/// One event; times are Unix times in milliseconds.
fn line(stored: &Stored) -> Value {
    let entry = &stored.entry;
    let mut line = json!({"seq": stored.seq, "at_ms": entry.at_ms, "device": entry.device, "worker": entry.worker.0});
    let mut put = |key: &str, value: Value| drop(line.as_object_mut().expect("an object").insert(key.into(), value));
    match &entry.what {
        What::Message { topic, payload } => {
            put("kind", "message".into());
            put("topic", (&**topic).into());
            match std::str::from_utf8(payload) {
                Ok(text) => put("payload", text.into()),
                Err(_) => put("payload_base64", BASE64_STANDARD.encode(payload).into()),
            }
        }
        What::Connected(facts) | What::Disconnected(facts, _) => {
            put("listener", (&*facts.listener).into());
            put("epoch", facts.epoch.into());
            put("generation", facts.generation.into());
            put("sequence", facts.sequence.into());
            put("last_heard_ms", facts.last_heard_ms.into());
            match &entry.what {
                What::Disconnected(_, cause) => {
                    put("kind", "disconnected".into());
                    put("cause", (&**cause).into());
                }
                _ => put("kind", "connected".into()),
            }
        }
    }
    line
}

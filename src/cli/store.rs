//! `store`: what a person does with the store's file, beside the gateway or without it.

use std::fmt::Write;
use std::io;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use pulsegate::config::Machine;
use pulsegate::gateway::Source;
use pulsegate::image::Publication;
use pulsegate::store::{self, FILE, Range, Reader, StoreError, Stored, What};
use serde_json::{Map, Value, json};

use super::arguments::{Exported, Store, StoreOf};
use super::{CliError, print, raise_descriptor_limit};

/// Events read at a time, and bytes of them.
const COUNT: u64 = 1_000;
const BYTES: usize = 1 << 20;

/// Does what is asked.
pub fn store(options: &Store) -> Result<(), CliError> {
    match options {
        Store::Check(of) => check(of),
        Store::Export { of, what } => {
            let reader = Reader::open(&directory(of)?.join(FILE)).map_err(|error| failed(&error))?;
            match what {
                Exported::Events => events(&reader),
                Exported::Sessions => sessions(&reader),
                Exported::Messages => messages(&reader),
                Exported::Retained => retained(&reader),
            }
        }
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
        let store::Check { consumers, sessions, waiting, retained, .. } = found;
        return print(&format!(
            "{}: sound; {held}, {consumers} consumers; {sessions} sessions, {waiting} messages for them, {retained} retained\n",
            path.display()
        ));
    }
    for line in &found.damage {
        print(&format!("{}: {line}\n", path.display()))?;
    }
    Err(CliError::Run(format!("{}: the store is damaged: restore a backup", path.display())))
}

/// Prints lines; `false`: nobody reads them any more.
fn put(lines: &str) -> Result<bool, CliError> {
    match print(lines) {
        Err(CliError::Io(_, error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        done => done.map(|()| true),
    }
}

fn events(reader: &Reader) -> Result<(), CliError> {
    let mut first = reader.first().map_err(|error| failed(&error))?;
    while let Some(from) = first {
        let events =
            reader.range(Range { first: from, last: from + COUNT - 1 }, BYTES).map_err(|error| failed(&error))?;
        let mut lines = String::new();
        for event in &events {
            let _ = writeln!(lines, "{}", line(event));
        }
        if !put(&lines)? {
            break;
        }
        first = events.last().map(|event| event.seq + 1);
    }
    Ok(())
}

/// Prints what is found as it is found, in lines of some length together.
struct Lines {
    text: String,
    outcome: Result<bool, CliError>,
}

impl Lines {
    fn new() -> Self {
        Self { text: String::new(), outcome: Ok(true) }
    }

    fn push(&mut self, line: &Value) {
        if matches!(self.outcome, Ok(true)) {
            let _ = writeln!(self.text, "{line}");
            if self.text.len() > BYTES {
                self.outcome = put(&std::mem::take(&mut self.text));
            }
        }
    }

    fn finish(self) -> Result<(), CliError> {
        if self.outcome? { put(&self.text).map(drop) } else { Ok(()) }
    }
}

fn sessions(reader: &Reader) -> Result<(), CliError> {
    let mut lines = Lines::new();
    let read = reader.sessions(|session| {
        let head = &session.head;
        let subscriptions: Vec<Value> = session
            .subscriptions
            .iter()
            .map(|one| json!({"filter": one.filter, "qos": one.options & 3, "identifier": one.identifier}))
            .collect();
        lines.push(&json!({
            "kind": "session",
            "device": head.name,
            "key": head.key.0,
            "protocol_level": head.profile.version,
            "listener": head.profile.listener,
            "expiry_s": head.profile.expiry_s,
            "away_since_ms": head.away_since_ms,
            "expires_ms": head.expires_ms(),
            "will": head.will.as_ref().map(|will| json!({"topic": will.publication.topic, "delay_s": will.delay_s})),
            "subscriptions": subscriptions,
            "messages": session.waiting.messages + session.sent.len() as u64,
            "bytes": session.waiting.bytes + session.sent.iter().map(|sent| sent.bytes).sum::<u64>(),
            "outstanding": session.outstanding.len(),
            "received": session.received.len(),
        }));
    });
    read.map_err(|error| failed(&error))?;
    lines.finish()
}

fn messages(reader: &Reader) -> Result<(), CliError> {
    let mut owners = Vec::new();
    let read = reader.sessions(|session| {
        if session.waiting.messages > 0 || !session.sent.is_empty() {
            owners.push((session.head.key, session.head.name));
        }
    });
    read.map_err(|error| failed(&error))?;
    let mut lines = Lines::new();
    for (key, device) in owners {
        let mut after = 0;
        loop {
            let (found, is_all) = reader.messages(key, (after, u64::MAX), BYTES).map_err(|error| failed(&error))?;
            after = found.last().map_or(after, |last| last.number);
            for message in &found {
                let mut line = json!({"kind": "message", "device": device, "number": message.number});
                let object = line.as_object_mut().expect("an object");
                object.insert("packet".into(), message.packet.into());
                object.insert("delivery_qos".into(), (message.qos as u8).into());
                describe(&message.publication, object);
                lines.push(&line);
            }
            if is_all {
                break;
            }
        }
    }
    lines.finish()
}

fn retained(reader: &Reader) -> Result<(), CliError> {
    let mut lines = Lines::new();
    let read = reader.retained(|publication| {
        let mut line = json!({"kind": "retained"});
        describe(&publication, line.as_object_mut().expect("an object"));
        lines.push(&line);
    });
    read.map_err(|error| failed(&error))?;
    lines.finish()
}

fn describe(publication: &Publication, line: &mut Map<String, Value>) {
    line.insert("topic".into(), (&*publication.topic).into());
    line.insert("qos".into(), (publication.qos as u8).into());
    line.insert("expires_ms".into(), publication.expires_ms.into());
    put_payload(&publication.payload, line);
}

fn put_payload(payload: &[u8], line: &mut Map<String, Value>) {
    match std::str::from_utf8(payload) {
        Ok(text) => line.insert("payload".into(), text.into()),
        Err(_) => line.insert("payload_base64".into(), BASE64_STANDARD.encode(payload).into()),
    };
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
            put_payload(payload, line.as_object_mut().expect("an object"));
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

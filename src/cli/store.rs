//! `store`: what a person does with the store's file, beside the gateway or without it.

use std::fmt::Write;
use std::io;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use pulsegate::config::{Config, Machine};
use pulsegate::gateway::Source;
use pulsegate::image::Publication;
use pulsegate::sink::{Event, time};
use pulsegate::store::{self, FILE, Range, Reader, StoreError};
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
            let config = config(of)?;
            let reader = Reader::open(&config.data_dir.join(FILE)).map_err(|error| failed(&error))?;
            match what {
                Exported::Events => events(&reader, &config.node),
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

fn config(of: &StoreOf) -> Result<Config, CliError> {
    let source = Source { file: of.config.clone(), machine: Machine::detect(raise_descriptor_limit()) };
    Ok(source.load()?.config)
}

fn directory(of: &StoreOf) -> Result<PathBuf, CliError> {
    Ok(config(of)?.data_dir)
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

/// Each as `/v1/uplink` and sinks have it, as one of the gateway `node`.
fn events(reader: &Reader, node: &str) -> Result<(), CliError> {
    let mut first = reader.first().map_err(|error| failed(&error))?;
    while let Some(from) = first {
        let events =
            reader.range(Range { first: from, last: from + COUNT - 1 }, BYTES).map_err(|error| failed(&error))?;
        let mut lines = String::new();
        for event in &events {
            let _ = writeln!(lines, "{}", Event::new(node, event).to_json());
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
            "away_since": head.away_since_ms.map(time),
            "expires": head.expires_ms().map(time),
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
    let read = reader.retained(|publication, _| {
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
    line.insert("expires".into(), publication.expires_ms.map(time).into());
    let payload = &publication.payload;
    match std::str::from_utf8(payload) {
        Ok(text) => line.insert("payload".into(), text.into()),
        Err(_) => line.insert("payload_base64".into(), BASE64_STANDARD.encode(payload).into()),
    };
}

//! `uplink`: reads as a consumer, prints a line for each event, acknowledges what was printed.

use std::fmt::Write;
use std::io::{self, BufRead, BufReader};

use serde_json::{Value, json};

use super::{ANSWER, Client, encoded, harmless};
use crate::cli::arguments::Uplink;
use crate::cli::{CliError, print};

/// Events asked for at a time.
const BATCH: u32 = 500;
/// How long the gateway is to wait for an event when there is none.
const WAIT: &str = "30s";

/// Prints what is there, or with `--follow` also what comes.
pub fn uplink(options: &Uplink) -> Result<(), CliError> {
    let client = Client::new(&options.gateway, Some(ANSWER))?;
    let Some(consumer) = options.consumer.as_deref().filter(|_| !options.list) else { return list(&client) };
    let wait = if options.follow { WAIT } else { "0s" };
    let (name, from) = (encoded(consumer), encoded(&options.from));
    let path = format!("/v1/uplink?consumer={name}&max={BATCH}&wait={wait}&from={from}");
    loop {
        let batch = Batch::read(&client, &path)?;
        if batch.missed > 0 {
            eprintln!("{} events were dropped before {consumer} had read them", batch.missed);
        }
        let Some((first, last)) = batch.range else {
            if options.follow {
                continue;
            }
            return Ok(());
        };
        match print(&batch.lines) {
            // Whoever reads has gone: what it has not taken is not acknowledged.
            Err(CliError::Io(_, error)) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            done => done?,
        }
        if !options.no_ack {
            client.post("/v1/uplink/ack", &json!({"consumer": consumer, "first": first, "last": last}))?;
        }
    }
}

struct Batch {
    /// The events, a line each.
    lines: String,
    /// The first and the last of them.
    range: Option<(u64, u64)>,
    missed: u64,
}

impl Batch {
    fn read(client: &Client, path: &str) -> Result<Self, CliError> {
        let response = client.ask_as("GET", path, String::new(), Some("application/x-ndjson"))?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let missed = header("pulsegate-missed").and_then(|missed| missed.parse().ok()).unwrap_or(0);
        let range = header("pulsegate-ack").and_then(|range| {
            let (first, last) = range.split_once('-')?;
            Some((first.parse().ok()?, last.parse().ok()?))
        });
        let mut lines = String::new();
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            lines.push_str(&line.map_err(|error| CliError::Api(format!("the gateway is gone: {error}")))?);
            lines.push('\n');
        }
        Ok(Self { lines, range, missed })
    }
}

fn list(client: &Client) -> Result<(), CliError> {
    let listed = client.get("/v1/uplink/consumers")?;
    let mut text = format!("{:<24}  {:>12}  {:>10}  {:>10}  {:>8}\n", "CONSUMER", "CURSOR", "BEHIND", "MISSED", "LAG");
    for consumer in listed["consumers"].as_array().into_iter().flatten() {
        let number = |key: &str| consumer[key].as_u64().unwrap_or(0);
        let name = harmless(consumer["name"].as_str().unwrap_or("-"));
        let lag = humantime::format_duration(std::time::Duration::from_secs(number("lag_s")));
        let (cursor, behind, missed) = (number("cursor"), number("behind"), number("missed"));
        let _ = writeln!(text, "{name:<24}  {cursor:>12}  {behind:>10}  {missed:>10}  {lag:>8}");
    }
    let events = |key: &str| listed[key].as_u64().map_or(Value::Null, Value::from);
    let _ = writeln!(text, "events {} to {} are held", events("first"), events("last"));
    print(&text)
}

//! `sinks`: how far each is, and pause, resume, seek.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::{ANSWER, Client, encoded, harmless};
use crate::cli::arguments::{SinkOrder, Sinks};
use crate::cli::{CliError, print};

/// Lists them, or orders one.
pub fn sinks(options: &Sinks) -> Result<(), CliError> {
    let client = Client::new(&options.gateway, Some(ANSWER))?;
    let path = |name: &str, what: &str| format!("/v1/sinks/{}/{what}", encoded(name));
    match &options.order {
        None | Some(SinkOrder::List) => list(&client),
        Some(SinkOrder::Pause { name }) => {
            client.post(&path(name, "pause"), &json!({}))?;
            print("paused\n")
        }
        Some(SinkOrder::Resume { name }) => {
            client.post(&path(name, "resume"), &json!({}))?;
            print("resumed\n")
        }
        Some(SinkOrder::Seek { name, to }) => {
            let answer = client.post(&path(name, "seek"), &json!({"to": to}))?;
            print(&format!("goes on behind event {}\n", answer["cursor"]))
        }
    }
}

fn list(client: &Client) -> Result<(), CliError> {
    let listed = client.get("/v1/sinks")?;
    let mut text = format!(
        "{:<20}  {:<5}  {:<9}  {:>10}  {:>8}  {:>10}  {:>8}  {:>8}\n",
        "SINK", "TYPE", "STATE", "BEHIND", "LAG", "SENT", "FAILED", "DEAD"
    );
    let sinks = listed["sinks"].as_array().map(Vec::as_slice).unwrap_or_default();
    for sink in sinks {
        let number = |key: &str| sink[key].as_u64().unwrap_or(0);
        let word = |key: &str| harmless(sink[key].as_str().unwrap_or("-"));
        let lag = humantime::format_duration(Duration::from_secs(number("lag_s"))).to_string();
        let _ = writeln!(
            text,
            "{:<20}  {:<5}  {:<9}  {:>10}  {lag:>8}  {:>10}  {:>8}  {:>8}",
            word("name"),
            word("type"),
            word("state"),
            number("behind"),
            number("sent"),
            number("failed"),
            number("dead_lettered")
        );
        if let Value::String(error) = &sink["error"] {
            let _ = writeln!(text, "  {}: {}", word("target"), harmless(error));
        }
    }
    print(if sinks.is_empty() { "no sink is configured\n" } else { &text })
}

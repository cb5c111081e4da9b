//! `trace`: a line for each thing that happens to a device, or to whoever comes from a network, until the time is over or nobody
//! reads.

use std::io::{self, BufRead, BufReader, Write};
use std::time::Duration;

use serde_json::Value;

use super::{Client, encoded, harmless};
use crate::cli::arguments::Trace;
use crate::cli::{CliError, write_out};

/// The gateway ends the stream itself, at its own time. One that has said nothing so much later is gone.
const GRACE: Duration = Duration::from_secs(30);

/// Prints what happens until the trace is over.
pub fn trace(options: &Trace) -> Result<(), CliError> {
    let client = Client::new(&options.gateway, Some(options.span + GRACE))?;
    let response = client.ask("GET", &format!("/v1/trace?{}", query(options)), String::new())?;
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let line = line.map_err(|error| CliError::Away(format!("the gateway is gone: {error}")))?;
        let Some(event) = line.strip_prefix("data:") else { continue };
        let event: Value = serde_json::from_str(event).unwrap_or_default();
        let is_over = event["kind"] == "over";
        // What begins and ends a trace is a remark to people, and in JSON an event like the others.
        if !options.json && (is_over || event["kind"] == "began") {
            let _ = write!(io::stderr(), "{}", remark(&event));
        } else if let Err(error) = write_out(&if options.json { format!("{event}\n") } else { told(&event) }) {
            // `pulsegate trace … | head` is done when head is.
            let nobody_reads = error.kind() == io::ErrorKind::BrokenPipe;
            return if nobody_reads { Ok(()) } else { Err(CliError::Io("stdout", error)) };
        }
        if is_over {
            return if event["why"] == "time" { Ok(()) } else { Err(CliError::Away("the gateway ends".to_owned())) };
        }
    }
    Err(CliError::Away("the gateway has ended the stream".to_owned()))
}

fn query(options: &Trace) -> String {
    let subject = match (&options.whom.device, &options.whom.address) {
        (Some(device), _) => format!("device={}", encoded(device)),
        (None, address) => format!("address={}", encoded(address.as_deref().unwrap_or_default())),
    };
    let (packets, payloads) = (options.packets || options.payloads, options.payloads);
    let span = humantime::format_duration(options.span).to_string();
    format!("{subject}&packets={packets}&payloads={payloads}&for={}", encoded(&span))
}

fn remark(event: &Value) -> String {
    match event["kind"].as_str() {
        Some("began") => format!("pulsegate: followed until {}\n", event["until"].as_str().unwrap_or("?")),
        _ => format!("pulsegate: the trace is over: {}\n", event["why"].as_str().unwrap_or("?")),
    }
}

/// One event in a line.
fn told(event: &Value) -> String {
    let text = |key: &str| harmless(event[key].as_str().unwrap_or_default());
    if event["kind"] == "left_out" {
        return format!("… {} events are left out: more came than a trace takes\n", event["count"]);
    }
    let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    let (kind, mut words) = match event["kind"].as_str() {
        Some("packet") => {
            let kind = format!("{:<3} {}", text("direction"), text("packet"));
            (kind, vec![format!("{} bytes", event["bytes"])])
        }
        _ => (text("kind"), Vec::new()),
    };
    if event["kind"] == "accepted" {
        words.push(format!("through {}", text("listener")));
    }
    words.extend([text("reason"), text("detail")].into_iter().filter(|word| !word.is_empty()));
    if let Some(meaning) = event["meaning"].as_str() {
        words.push(format!("({})", harmless(meaning)));
    }
    match (&event["payload"], &event["payload_base64"]) {
        (Value::String(payload), _) => words.push(harmless(payload)),
        (_, Value::String(payload)) => words.push(format!("base64 {}", harmless(payload))),
        _ => {}
    }
    let connection = event["connection"].as_str().map_or_else(String::new, |id| format!("{}/{id}", event["worker"]));
    let (peer, device) = (or_dash(text("peer")), or_dash(text("device")));
    let words = words.join("  ");
    let line = format!("{}  {connection:<8}  {peer:<21}  {device:<16}  {kind:<14}  {words}", text("at"));
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_event_is_a_line_that_steers_no_terminal() {
        let at = "2023-11-14T22:13:21.500Z";
        let base = json!({"at": at, "worker": 1, "connection": "3.7", "listener": "devices", "peer": "192.0.2.7:1"});
        let with = |more: Value| {
            let mut event = base.clone();
            event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            told(&event)
        };
        assert_eq!(
            with(json!({"kind": "accepted"})),
            "2023-11-14T22:13:21.500Z  1/3.7     192.0.2.7:1            -                 accepted        through devices\n"
        );
        let packet = json!({
            "kind": "packet", "device": "me\u{1b}ter", "direction": "in", "packet": "PUBLISH", "bytes": 12,
            "detail": "topic \"a\", qos 0", "payload": "x\ny"
        });
        assert!(with(packet).ends_with("me\\u{1b}ter       in  PUBLISH     12 bytes  topic \"a\", qos 0  x\\ny\n"));
        let ended = json!({"kind": "ended", "reason": "expired", "detail": "", "meaning": "it was silent"});
        assert!(with(ended).ends_with("ended           expired  (it was silent)\n"));
        assert_eq!(
            told(&json!({"kind": "left_out", "count": 3})),
            "… 3 events are left out: more came than a trace takes\n"
        );
    }
}

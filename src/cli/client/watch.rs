//! `watch`: a line for each event, as long as the gateway runs.

use std::io::{self, BufRead, BufReader};

use serde_json::Value;

use super::{Client, encoded, harmless};
use crate::cli::arguments::Watch;
use crate::cli::{CliError, shortened, write_out};

/// Of a payload or a name so many characters are shown.
const SHOWN_MAX: usize = 200;

/// Prints what happens until the gateway ends, or nobody reads.
pub fn watch(options: &Watch) -> Result<(), CliError> {
    let client = Client::new(&options.gateway, None)?;
    let keys = [("device", &options.device), ("kind", &options.kind)];
    let keys = keys.iter().filter_map(|(key, value)| Some(format!("{key}={}", encoded(value.as_ref()?))));
    let query = keys.collect::<Vec<_>>().join("&");
    let response = client.ask("GET", &format!("/v1/events?{query}"), String::new())?;
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let line = line.map_err(|error| CliError::Api(format!("the gateway is gone: {error}")))?;
        // Each event is one line of data; what stands around it says the same.
        let Some(data) = line.strip_prefix("data:") else { continue };
        let event = serde_json::from_str(data).unwrap_or_default();
        match write_out(&describe(&event)) {
            // `pulsegate watch | head` is done when head is.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.map_err(|error| CliError::Io("stdout", error))?,
        }
    }
    Err(CliError::Api("the gateway has ended the stream".to_owned()))
}

/// One event in a line.
fn describe(event: &Value) -> String {
    let text = |key: &str| shortened(&harmless(event[key].as_str().unwrap_or("-")), SHOWN_MAX);
    let kind = text("kind");
    let what = match kind.as_str() {
        "connected" => format!("through {}, generation {}", text("listener"), event["generation"]),
        "disconnected" => format!("{}, last heard {}", text("cause"), text("last_heard")),
        "message" => message(event),
        "missed" if event["count"].is_null() => return "… the gateway was started anew\n".to_owned(),
        "missed" => return format!("… {} events are gone\n", event["count"]),
        "lagged" => return format!("… {} events came too fast for this reader\n", event["count"]),
        _ => String::new(),
    };
    format!("{}  {kind:<12}  {:<24}  {what}\n", text("at"), text("device"))
}

fn message(event: &Value) -> String {
    let topic = event["topic"].as_str().unwrap_or_default();
    let topic = if topic.is_empty() { String::new() } else { format!("{}: ", shortened(&harmless(topic), SHOWN_MAX)) };
    let (form, payload) = match (&event["payload"], &event["payload_base64"]) {
        (Value::String(text), _) => ("", text.as_str()),
        (_, Value::String(base64)) => ("base64 ", base64.as_str()),
        _ => ("", ""),
    };
    let mut shown = harmless(&payload.chars().take(SHOWN_MAX).collect::<String>());
    if payload.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    format!("{topic}{form}{shown}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_event_is_a_line() {
        let at = "2023-11-14T22:13:21.500Z";
        let event = json!({"kind": "connected", "device": "a", "listener": "devices", "generation": 7, "at": at});
        assert_eq!(
            describe(&event),
            "2023-11-14T22:13:21.500Z  connected     a                         through devices, generation 7\n"
        );
        let event = json!({"kind": "message", "device": "a", "topic": "t", "payload": "{\"x\"}\ny\u{1b}", "at": at});
        assert!(describe(&event).ends_with("  t: {\"x\"}\\ny\\u{1b}\n"), "{}", describe(&event));
        let event = json!({"kind": "message", "device": "a", "topic": "", "payload_base64": "/wA=", "at": at});
        assert!(describe(&event).ends_with("  base64 /wA=\n"));
        let event = json!({"kind": "message", "device": "a", "topic": "", "payload": "x".repeat(300), "at": at});
        assert!(describe(&event).ends_with(&format!("  {}…\n", "x".repeat(200))));
        assert_eq!(describe(&json!({"kind": "missed", "count": 3})), "… 3 events are gone\n");
    }
}

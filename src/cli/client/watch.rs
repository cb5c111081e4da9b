//! `watch`: a line for each event, as long as somebody reads. The gateway may end and come back meanwhile: its events have
//! ids, and whoever names the last that it has seen hears what came since, or how much of that is gone.

use std::io::{self, BufRead, BufReader, Write};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::{Client, encoded, harmless};
use crate::cli::arguments::Watch;
use crate::cli::{CliError, shortened, write_out};

/// Of a payload or a name so many characters are shown.
const SHOWN_MAX: usize = 200;
/// For how long one request is followed; the next goes on behind it. So a gateway that is gone without a word, behind a network
/// that has forgotten the connection, is noticed.
const STRETCH: Duration = Duration::from_mins(1);
/// The first wait before coming back; doubled each time, up to the last.
const COME_BACK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Prints what happens until nobody reads.
pub fn watch(options: &Watch) -> Result<(), CliError> {
    let patience = if options.no_reconnect { None } else { Some(STRETCH) };
    let client = Client::new(&options.gateway, patience)?;
    let mut cursor = Cursor::new(options.since.as_deref(), &client, SystemTime::now())?;
    let mut wait = COME_BACK.0;
    loop {
        let heard_before = cursor.heard;
        let end = match follow(&client, options, &mut cursor) {
            Ok(End::NobodyReads) => return Ok(()),
            Ok(End::Stretch) if !options.no_reconnect => continue,
            Ok(_) => CliError::Away("the gateway has ended the stream".to_owned()),
            Err(error) => error,
        };
        // Whoever asks for what is not there is told once; a gateway that was never reached is no gateway that has gone.
        if options.no_reconnect || cursor.heard == 0 || !matches!(end, CliError::Away(_)) {
            return Err(end);
        }
        if cursor.heard > heard_before {
            wait = COME_BACK.0;
        }
        // A remark to people: whoever does not read it wants none.
        let _ = writeln!(io::stderr(), "pulsegate: {end}: trying again in {}", humantime::format_duration(wait));
        thread::sleep(wait);
        wait = (wait * 2).min(COME_BACK.1);
    }
}

/// How far it has come.
struct Cursor {
    /// All before it has been seen.
    id: Option<String>,
    /// What happened before it is not shown, as RFC 3339.
    not_before: Option<String>,
    /// Lines that came.
    heard: u64,
}

impl Cursor {
    fn new(since: Option<&str>, client: &Client, now: SystemTime) -> Result<Self, CliError> {
        let first = || -> Result<String, CliError> {
            let overview = client.get("/v1/overview")?;
            Ok(format!("{}-0", overview["epoch"].as_u64().unwrap_or(0)))
        };
        let (id, not_before) = match since {
            None => (None, None),
            Some("first") => (Some(first()?), None),
            Some(id) if is_event_id(id) => (Some(id.to_owned()), None),
            Some(span) => {
                let span = humantime::parse_duration(span).map_err(|_| {
                    CliError::Input(
                        "--since takes `first`, the id of an event such as 1795459594671-3, or a duration such as 10m",
                    )
                })?;
                let time = now.checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH);
                (Some(first()?), Some(humantime::format_rfc3339_millis(time).to_string()))
            }
        };
        Ok(Self { id, not_before, heard: 0 })
    }
}

fn is_event_id(text: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('-').is_some_and(|(life, position)| is_number(life) && is_number(position))
}

/// Why a stream is read no further.
enum End {
    /// Nobody reads what is printed: `pulsegate watch | head` is done when head is.
    NobodyReads,
    /// The gateway has ended it.
    Gateway,
    /// It was long enough.
    Stretch,
}

fn follow(client: &Client, options: &Watch, cursor: &mut Cursor) -> Result<End, CliError> {
    let keys = [("device", &options.device), ("kind", &options.kind), ("last_event_id", &cursor.id)];
    let keys = keys.iter().filter_map(|(key, value)| Some(format!("{key}={}", encoded(value.as_ref()?))));
    let query = keys.collect::<Vec<_>>().join("&");
    let response = client.ask("GET", &format!("/v1/events?{query}"), String::new())?;
    let mut data = None;
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let line = match line {
            Ok(line) => line,
            Err(error) if is_timeout(&error) => return Ok(End::Stretch),
            Err(error) => return Err(CliError::Away(format!("the gateway is gone: {error}"))),
        };
        cursor.heard += 1;
        if let Some(event) = line.strip_prefix("data:") {
            data = Some(serde_json::from_str::<Value>(event).unwrap_or_default());
        } else if let Some(id) = line.strip_prefix("id:") {
            cursor.id = Some(id.trim().to_owned());
        } else if line.is_empty()
            && let Some(event) = data.take()
            && let Some(end) = show(&event, options, cursor)?
        {
            return Ok(end);
        }
    }
    Ok(End::Gateway)
}

/// Prints an event, if it is wanted; the end when nobody reads.
fn show(event: &Value, options: &Watch, cursor: &Cursor) -> Result<Option<End>, CliError> {
    if let (Some(at), Some(not_before)) = (event["at"].as_str(), &cursor.not_before)
        && at < not_before.as_str()
    {
        return Ok(None);
    }
    let text = if options.json {
        let mut event = event.clone();
        if let (Value::Object(fields), Some(id)) = (&mut event, &cursor.id) {
            fields.insert("id".to_owned(), id.as_str().into());
        }
        format!("{event}\n")
    } else {
        describe(event)
    };
    match write_out(&text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Some(End::NobodyReads)),
        written => written.map(|()| None).map_err(|error| CliError::Io("stdout", error)),
    }
}

/// The end of a stretch comes as an error of the one who reads.
fn is_timeout(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
    error.kind() == io::ErrorKind::TimedOut || matches!(inner, Some(ureq::Error::Timeout(_)))
}

/// One event in a line.
fn describe(event: &Value) -> String {
    let text = |key: &str| shortened(&harmless(event[key].as_str().unwrap_or("-")), SHOWN_MAX);
    let kind = text("kind");
    let what = match kind.as_str() {
        "connected" => format!("through {}, generation {}", text("listener"), event["generation"]),
        "disconnected" => format!("{}, last heard {}", text("cause"), text("last_heard")),
        "message" => message(event),
        "takeover_loop" => format!("two places take this id from each other; {} waits", text("peer")),
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

    #[test]
    fn the_id_of_an_event_is_no_duration() {
        assert!(is_event_id("1795459594671-3") && is_event_id("42-0"));
        for other in ["10m", "42", "42-", "-3", "42-x", ""] {
            assert!(!is_event_id(other), "{other}");
        }
    }
}

//! `why`: the latest ends of a device, newest first, with what their reasons mean.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde_json::Value;

use super::{ANSWER, Client, encoded, harmless};
use crate::cli::arguments::Why;
use crate::cli::{CliError, print};

/// Tells why a device went, or does not come in.
pub fn why(options: &Why) -> Result<(), CliError> {
    let client = Client::new(&options.gateway, Some(ANSWER))?;
    let history = client.get(&format!("/v1/devices/{}/history", encoded(&options.device)))?;
    print(&told(&options.device, history["ends"].as_array().map_or(&[][..], Vec::as_slice)))?;
    let unanswered = super::names(&history["unanswered"]);
    if !unanswered.is_empty() {
        let _ = writeln!(io::stderr(), "without what {} knows: no answer", harmless(&unanswered.join(", ")));
    }
    if let Some(error) = history["error"].as_str() {
        let _ = writeln!(io::stderr(), "of this gateway alone: {}", harmless(error));
    }
    Ok(())
}

fn told(device: &str, ends: &[Value]) -> String {
    let device = harmless(device);
    if ends.is_empty() {
        return format!(
            "Nothing is remembered of {device}: it has not left, nor failed since the gateway started, or has another id.\n"
        );
    }
    let mut text = String::new();
    let mut explained = Vec::new();
    for end in ends {
        let field = |key: &str| harmless(end[key].as_str().unwrap_or_default());
        let reason = field("reason");
        let peer = end["peer"].as_str().map_or_else(|| "an unknown address".to_owned(), harmless);
        let _ = write!(text, "{}  {reason}", field("at"));
        match end["was_connected"].as_bool() {
            Some(true) => {
                let _ = write!(text, "  was connected since {}", field("connected_at"));
            }
            _ => text.push_str("  was not let in"),
        }
        let _ = write!(text, "\n    from {peer} through {} ({})", field("listener"), field("protocol"));
        match end["node"].as_str() {
            Some(node) => {
                let _ = writeln!(text, " of {}", harmless(node));
            }
            None => text.push('\n'),
        }
        if !field("detail").is_empty() {
            let _ = writeln!(text, "    {}", field("detail"));
        }
        // Once is enough, however often it happened.
        if !explained.contains(&reason) {
            let _ = writeln!(text, "    means:   {}", field("meaning"));
            let _ = writeln!(text, "    look at: {}", field("look_at"));
            let _ = writeln!(text, "    do:      {}", field("remedy"));
            explained.push(reason);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_end_is_told_and_each_reason_explained_once() {
        let end = |at: &str, reason: &str, was_connected: bool| {
            json!({
                "at": at, "reason": reason, "detail": "the \u{1b}detail", "was_connected": was_connected, "connected_at": "T0",
                "listener": "devices", "protocol": "native", "peer": if was_connected { json!("192.0.2.7:1") } else { json!(null) },
                "meaning": "M", "look_at": "L", "remedy": "R",
            })
        };
        let ends = [end("T3", "expired", true), end("T2", "token_rejected", false), end("T1", "expired", true)];
        assert_eq!(
            told("meter", &ends),
            "T3  expired  was connected since T0\n    from 192.0.2.7:1 through devices (native)\n    the \\u{1b}detail\n    \
             means:   M\n    look at: L\n    do:      R\n\
             T2  token_rejected  was not let in\n    from an unknown address through devices (native)\n    the \\u{1b}detail\n    \
             means:   M\n    look at: L\n    do:      R\n\
             T1  expired  was connected since T0\n    from 192.0.2.7:1 through devices (native)\n    the \\u{1b}detail\n"
        );
        let mut elsewhere = end("T3", "expired", true);
        elsewhere["node"] = "edge-2".into();
        assert!(told("meter", &[elsewhere]).contains("through devices (native) of edge-2\n"));
        assert!(told("no\nbody", &[]).starts_with("Nothing is remembered of no\\nbody"));
    }
}

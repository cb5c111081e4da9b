//! Devices as a table: columns as wide as they must be.

use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::harmless;
use crate::cli::shortened;

/// A name may have thousands of letters; in a table it is told by the first.
const CELL_LETTERS_MAX: usize = 100;

const COLUMNS: usize = 9;
const TITLES: [&str; COLUMNS] =
    ["DEVICE", "GATEWAY", "STATE", "PROTOCOL", "LISTENER", "PEER", "CONNECTED", "HEARD", "ROUND TRIP"];

/// Which column is shown of a fleet alone.
const GATEWAY: usize = 1;

/// The table, titles first; one line when there is nobody whose id begins with `prefix`. `with_gateway`: which has each.
pub fn devices(devices: &[Value], prefix: &str, with_gateway: bool) -> String {
    if devices.is_empty() {
        let which = if prefix.is_empty() { String::new() } else { format!(" whose id begins with {prefix:?}") };
        return format!("no device{which} is connected\n");
    }
    let now = SystemTime::now();
    let rows: Vec<[String; COLUMNS]> = devices.iter().map(|device| row(device, now)).collect();
    let titles = TITLES.map(str::to_owned);
    let width = |column: usize| {
        let cells = rows.iter().chain([&titles]).map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..TITLES.len()).map(width).collect();
    [&titles].into_iter().chain(&rows).fold(String::new(), |mut text, row| {
        let shown = row.iter().zip(&widths).enumerate().filter(|(column, _)| *column != GATEWAY || with_gateway);
        let cells = shown.map(|(_, (cell, &width))| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
        text
    })
}

fn row(device: &Value, now: SystemTime) -> [String; COLUMNS] {
    let text = |key: &str| shortened(&harmless(device[key].as_str().unwrap_or("-")), CELL_LETTERS_MAX);
    let round_trip = device["round_trip_ms"].as_f64().map_or("-".to_owned(), |millis| format!("{millis:.1} ms"));
    [
        text("id"),
        text("node"),
        text("state"),
        text("protocol"),
        text("listener"),
        text("peer"),
        ago(&text("connected_at"), now),
        ago(&text("last_heard"), now),
        round_trip,
    ]
}

/// How long ago a time of the gateway was, by the clock here: to a second, at least zero.
fn ago(time: &str, now: SystemTime) -> String {
    let Ok(time) = humantime::parse_rfc3339(time) else { return "-".to_owned() };
    let passed = now.duration_since(time).unwrap_or_default();
    format!("{} ago", humantime::format_duration(Duration::from_secs(passed.as_secs())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_stand_under_their_titles() {
        let device = |id: &str, peer: Value| {
            json!({
                "id": id, "state": "heard", "protocol": "native", "listener": "devices", "peer": peer,
                "connected_at": "2023-11-14T22:13:21.500Z", "last_heard": "2999-01-01T00:00:00.000Z",
                "round_trip_ms": 12.345,
            })
        };
        let text =
            devices(&[device("a", json!("192.0.2.7:40000")), device("meter-\u{1b}[31m", Value::Null)], "", false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        for title in ["STATE", "LISTENER", "PEER", "CONNECTED", "HEARD", "ROUND TRIP"] {
            let column = lines[0].find(title).unwrap();
            assert!(lines[1..].iter().all(|line| line.as_bytes()[column - 1] == b' '), "{text}");
        }
        assert!(lines[1].contains("  0s ago  ") && lines[1].ends_with("12.3 ms"), "{text}");
        assert!(lines[2].contains("meter-\\u{1b}[31m"), "an id cannot steer the terminal: {text}");
        assert!(!text.contains("GATEWAY"), "{text}");
        let mut of_fleet = device("a", Value::Null);
        of_fleet["node"] = "edge-2".into();
        assert!(devices(&[of_fleet], "", true).starts_with("DEVICE  GATEWAY  STATE"), "where each is");
        assert_eq!(devices(&[], "", false), "no device is connected\n");
        assert_eq!(devices(&[], "pump", false), "no device whose id begins with \"pump\" is connected\n");
    }
}

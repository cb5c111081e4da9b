//! Single values: text and numbers of the file into durations, addresses and integers within their ranges.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::error::{ConfigKey, Problem};

/// An integer within `range`, or `default` where none is written.
pub fn integer(
    place: ConfigKey,
    written: Option<i64>,
    default: i64,
    range: RangeInclusive<i64>,
    unit: &str,
) -> Result<i64, Problem> {
    debug_assert!(range.contains(&default));
    let value = written.unwrap_or(default);
    if range.contains(&value) {
        return Ok(value);
    }
    let remedy = format!("write {} to {} {unit}", range.start(), range.end());
    Err(Problem::new(place, format!("{value} is out of range"), remedy))
}

/// A duration within `range`, or `default` where none is written.
pub fn duration(
    place: ConfigKey,
    written: Option<&str>,
    default: Duration,
    range: RangeInclusive<Duration>,
) -> Result<Duration, Problem> {
    debug_assert!(range.contains(&default));
    let Some(text) = written else { return Ok(default) };
    let Ok(value) = humantime::parse_duration(text) else {
        let remedy = "write a number with its unit, such as \"60s\", \"500ms\", \"2m\" or \"1h30m\"";
        return Err(Problem::new(place, format!("{text:?} is not a duration"), remedy));
    };
    if range.contains(&value) {
        return Ok(value);
    }
    let [least, most] = [range.start(), range.end()].map(|bound| humantime::format_duration(*bound));
    Err(Problem::new(place, format!("{text:?} is out of range"), format!("write \"{least}\" to \"{most}\"")))
}

/// A listening address.
pub fn address(place: ConfigKey, written: &str, example: &str) -> Result<SocketAddr, Problem> {
    written.parse().map_err(|_| {
        let remedy = format!("write an IP address and a port, such as \"{example}\" or \"[::]:7443\"");
        Problem::new(place, format!("{written:?} is not an address"), remedy)
    })
}

/// Whether two listening addresses cannot be bound beside each other. Port 0 collides with nothing.
pub fn addresses_collide(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port()
        && one.port() != 0
        && one.is_ipv4() == other.is_ipv4()
        && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

/// One of a few words.
pub fn word<T: Copy>(place: ConfigKey, written: &str, words: &[(&str, T)]) -> Result<T, Problem> {
    if let Some(&(_, value)) = words.iter().find(|(word, _)| *word == written) {
        return Ok(value);
    }
    let list: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
    Err(Problem::new(place, format!("{written:?} is not known"), format!("write one of {}", list.join(", "))))
}

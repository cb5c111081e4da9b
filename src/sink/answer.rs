//! What an HTTP answer means for the batch that it answers.

use std::time::{Duration, SystemTime};

/// What becomes of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchOutcome {
    /// The other side has it.
    Taken,
    /// The other side cannot take it now (RFC 9110: 408, 425, 429, 5xx), or nobody answered: it is sent again.
    Failed,
    /// The other side lets nobody in, or is not there where it was looked for (3xx, 401, 403, 404, 405, 407, 410): no batch
    /// would fare better, so that it waits for somebody to mend that.
    Barred,
    /// The other side will not take this batch for what it is: the other 4xx.
    Refused,
}

impl BatchOutcome {
    /// What a status means.
    #[must_use]
    pub fn of(status: u16) -> Self {
        match status {
            200..=299 => Self::Taken,
            300..=399 | 401 | 403 | 404 | 405 | 407 | 410 => Self::Barred,
            408 | 425 | 429 => Self::Failed,
            400..=499 => Self::Refused,
            _ => Self::Failed,
        }
    }
}

/// How long the other side wants to be left alone: seconds, or a date (RFC 9110, 10.2.3). Nonsense is nothing.
#[must_use]
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    // "Sun, 06 Nov 1994 08:49:37 GMT"
    let mut words = value.split_once(", ")?.1.split(' ');
    let (day, month, year, time, zone) = (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|name| *name == month)? + 1;
    if zone != "GMT" {
        return None;
    }
    let at = humantime::parse_rfc3339(&format!("{year}-{month:02}-{day}T{time}Z")).ok()?;
    Some(at.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_sent_again_is_told_from_what_cannot() {
        for (status, outcome) in [
            (200, BatchOutcome::Taken),
            (204, BatchOutcome::Taken),
            (301, BatchOutcome::Barred),
            (400, BatchOutcome::Refused),
            (401, BatchOutcome::Barred),
            (404, BatchOutcome::Barred),
            (408, BatchOutcome::Failed),
            (413, BatchOutcome::Refused),
            (422, BatchOutcome::Refused),
            (429, BatchOutcome::Failed),
            (500, BatchOutcome::Failed),
            (503, BatchOutcome::Failed),
            (100, BatchOutcome::Failed),
        ] {
            assert_eq!(BatchOutcome::of(status), outcome, "{status}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = humantime::parse_rfc3339("1994-11-06T08:49:00Z").unwrap();
        assert_eq!(retry_after("119", now), Some(Duration::from_secs(119)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(37)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:48:37 GMT", now), Some(Duration::ZERO));
        for nonsense in ["", "soon", "-1", "Sun, 06 Xyz 1994 08:49:37 GMT", "Sun, 06", "a, b c d e f"] {
            assert_eq!(retry_after(nonsense, now), None, "{nonsense}");
        }
    }
}

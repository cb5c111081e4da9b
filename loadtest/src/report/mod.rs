//! What a run found: one object, the same for JSON, the table and the page.

pub mod duel;
pub mod page;
pub mod plot;
pub mod table;

use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::observe::Machine;

/// Everything about one run. Keys that other tools rely on are always there, `null` where the scenario has no such figure.
#[derive(Debug, Serialize)]
pub struct Report {
    pub scenario: &'static str,
    pub target: String,
    pub passed: bool,
    pub conditions: Vec<Condition>,
    pub connections: Connections,
    pub memory: Memory,
    pub cpu: Cpu,
    pub expiry: Expiry,
    pub latency_us: Percentiles,
    pub connect_latency_us: Percentiles,
    pub recovery_s: Recovery,
    pub messages: Messages,
    pub generator: Generator,
    /// Failed attempts and lost connections by what happened.
    pub failures: Map<String, Value>,
    /// What only this scenario has.
    pub details: Map<String, Value>,
    pub configuration: Value,
    pub commit: Option<String>,
    pub machine: Machine,
    /// When the run began, in seconds since 1970.
    pub started_unix_s: u64,
    pub timeline: Vec<Sample>,
    pub units: Value,
    /// For the plots; the JSON has the percentiles.
    #[serde(skip)]
    pub curves: Vec<Curve>,
}

impl Report {
    /// When the run began, as RFC 3339.
    pub fn started(&self) -> String {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(self.started_unix_s)).to_string()
    }

    /// What `latency_us` measures in this scenario.
    pub fn latency_is_of(&self) -> &'static str {
        match self.scenario {
            "uplink" | "fan-in" => "message from a device",
            "downlink" | "broadcast" | "fan-out" => "message to a device",
            _ => "heartbeat round trip",
        }
    }
}

/// Something that must hold.
#[derive(Clone, Debug, Serialize)]
pub struct Condition {
    pub name: String,
    pub holds: bool,
    pub found: String,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Connections {
    pub asked: u64,
    /// Up at the end.
    pub held: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Were up and ended without the harness's doing.
    pub lost: u64,
    /// Came up, over the whole run.
    pub established: u64,
    /// Of them, by resumption.
    pub resumed: u64,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Memory {
    /// Growth of the server's RSS by connection.
    pub user_bytes_per_connection: Option<f64>,
    /// The same from PSS.
    pub user_pss_bytes_per_connection: Option<f64>,
    /// The same from the last half of the connections alone: without what is paid once.
    pub user_marginal_bytes_per_connection: Option<f64>,
    /// The kernel's growth by connection, one end.
    pub kernel_bytes_per_connection: Option<f64>,
    pub kernel_slab_bytes_per_connection: Option<f64>,
    pub rss_before_bytes: Option<u64>,
    pub rss_after_bytes: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Cpu {
    pub us_per_handshake: Option<f64>,
    pub us_per_heartbeat: Option<f64>,
    pub us_per_message: Option<f64>,
    /// Of one core, while nothing but the server's own heartbeats happened.
    pub idle_share: Option<f64>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Expiry {
    pub r#false: Option<u64>,
    pub missed: Option<u64>,
    pub right: Option<u64>,
    pub lateness_ms: Percentiles,
}

/// Percentiles in the unit of whoever has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub p999: Option<f64>,
    pub max: Option<f64>,
    pub count: u64,
}

impl Percentiles {
    /// Of microseconds, divided by `unit_micros`.
    pub fn of(histogram: &Histogram<u64>, unit_micros: f64) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| Some(histogram.value_at_quantile(quantile) as f64 / unit_micros);
        Self {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: Some(histogram.max() as f64 / unit_micros),
            count: histogram.len(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Recovery {
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub p100: Option<f64>,
}

impl Recovery {
    /// The times after which a half, 99 % and all of `expected` devices were back; `null` for what did not happen.
    pub fn of(histogram: &Histogram<u64>, expected: u64) -> Self {
        let at = |share: f64| {
            let needed = (expected as f64 * share).ceil() as u64;
            if expected == 0 || histogram.len() < needed {
                return None;
            }
            let quantile = needed as f64 / histogram.len() as f64;
            Some(histogram.value_at_quantile(quantile) as f64 / 1e6)
        };
        Self { p50: at(0.5), p99: at(0.99), p100: at(1.0) }
    }
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Messages {
    /// Of these the server said that it takes them, where it says so.
    pub sent: Option<u64>,
    pub received: Option<u64>,
    pub lost: Option<u64>,
    pub duplicated: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Generator {
    /// Whether the harness itself was the bottleneck.
    pub saturated: bool,
    pub why: Option<String>,
    pub threads: usize,
    /// The busiest thread's share of a core, over the worst second and while measuring.
    pub busiest_thread_share: f64,
    pub lateness_us: Percentiles,
    pub rss_bytes: Option<u64>,
}

/// One point in time.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Sample {
    pub at_s: f64,
    pub connected: u64,
    pub connects_per_s: f64,
    pub failures: u64,
    pub server_rss_bytes: Option<u64>,
    pub server_cpu_share: Option<f64>,
    pub generator_cpu_share: f64,
    pub lateness_ms: f64,
}

/// A distribution to be drawn: a name, and pairs of quantile and milliseconds.
#[derive(Clone, Debug)]
pub struct Curve {
    pub name: &'static str,
    pub points: Vec<(f64, f64)>,
    /// Whether it belongs to the lateness plot rather than to the latencies.
    pub is_lateness: bool,
}

impl Curve {
    /// The distribution of a histogram of microseconds; none when it is empty.
    pub fn of(name: &'static str, histogram: &Histogram<u64>, is_lateness: bool) -> Option<Self> {
        if histogram.is_empty() {
            return None;
        }
        let nines = |step: u32| 1.0 - 10f64.powf(-f64::from(step) / 20.0);
        let steps = (20.0 * (histogram.len() as f64).log10()).ceil().clamp(1.0, 120.0) as u32;
        let quantiles = (0..steps).map(nines).chain([1.0]);
        let points = quantiles.map(|quantile| (quantile, histogram.value_at_quantile(quantile) as f64 / 1e3)).collect();
        Some(Self { name, points, is_lateness })
    }
}

/// A value for people: numbers without a fraction that says nothing, objects as pairs.
pub fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(pairs) => {
            let pairs = pairs.iter().map(|(name, value)| format!("{} {}", name.replace('_', " "), shown(value)));
            pairs.collect::<Vec<_>>().join(", ")
        }
        Value::Number(number) => match number.as_f64() {
            Some(value) if value.fract() == 0.0 => format!("{value:.0}"),
            Some(value) => format!("{value:.2}"),
            None => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// The unit of every figure, by its path.
pub fn units() -> Value {
    json!({
        "connections": "count",
        "memory.*_bytes_per_connection": "bytes; user: of the server's process; kernel: one end of the connection",
        "memory.rss_*_bytes": "bytes",
        "cpu.us_per_handshake": "microseconds of the server's CPU time, user and kernel mode",
        "cpu.us_per_heartbeat": "microseconds of the server's CPU time, user and kernel mode",
        "cpu.us_per_message": "microseconds of the server's CPU time, user and kernel mode, for each message sent",
        "cpu.idle_share": "share of one core",
        "expiry.false": "count", "expiry.missed": "count", "expiry.right": "count",
        "expiry.lateness_ms": "milliseconds after the exact deadline",
        "latency_us": "microseconds from the time a heartbeat was due to its answer; in scenarios about messages from the time a message was due to its arrival",
        "connect_latency_us": "microseconds from the time a connection was due to be opened until it was up",
        "recovery_s": "seconds from the cut until so many devices were up again",
        "messages": "count",
        "generator.busiest_thread_share": "share of one core",
        "generator.lateness_us": "microseconds that the harness's loop was late",
        "generator.rss_bytes": "bytes",
        "failures": "count",
        "timeline[].at_s": "seconds since the run began",
        "timeline[].connects_per_s": "connections per second",
        "timeline[].*_cpu_share": "share of one core",
        "timeline[].lateness_ms": "milliseconds",
        "timeline[].server_rss_bytes": "bytes",
        "machine.memory_bytes": "bytes"
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::histogram;

    fn seconds(values: impl Iterator<Item = u64>) -> Histogram<u64> {
        let mut histogram = histogram();
        values.for_each(|value| histogram.record(value * 1_000_000).unwrap());
        histogram
    }

    #[test]
    fn recovery_counts_those_that_never_came_back() {
        let all = Recovery::of(&seconds(1..=100), 100);
        let round = |value: Option<f64>| value.map(|seconds| seconds.round() as u64);
        assert_eq!((round(all.p50), round(all.p99), round(all.p100)), (Some(50), Some(99), Some(100)));
        let half = Recovery::of(&seconds(1..=60), 100);
        assert_eq!((round(half.p50), half.p99, half.p100), (Some(50), None, None));
        assert_eq!(Recovery::of(&seconds(0..0), 0), Recovery::default());
    }

    #[test]
    fn percentiles_are_in_the_unit_asked_for_and_absent_without_values() {
        let percentiles = Percentiles::of(&seconds(1..=1_000), 1_000.0);
        assert_eq!(percentiles.count, 1_000);
        assert!((percentiles.p50.unwrap() / 500_000.0 - 1.0).abs() < 0.002);
        assert!((percentiles.max.unwrap() / 1_000_000.0 - 1.0).abs() < 0.002);
        assert_eq!(Percentiles::of(&histogram(), 1.0), Percentiles::default());
    }

    #[test]
    fn values_are_shown_as_people_write_them() {
        let value = json!({"longest_life_s": 10.305, "ended": 100.0, "why": "x"});
        assert_eq!(shown(&value), "longest life s 10.30, ended 100, why x");
    }

    #[test]
    fn the_keys_that_other_tools_rely_on_are_there_even_when_there_is_no_figure() {
        let cli: crate::cli::Cli = clap::Parser::try_parse_from(["loadtest", "hold"]).unwrap();
        let crate::cli::Command::Scenario(scenario) = cli.command else { panic!("a scenario") };
        let report = crate::run::empty_report(&scenario);
        let report = serde_json::to_value(report).unwrap();
        for path in [
            "scenario",
            "target",
            "connections.asked",
            "connections.held",
            "connections.failed",
            "memory.user_bytes_per_connection",
            "memory.kernel_bytes_per_connection",
            "cpu.us_per_handshake",
            "cpu.us_per_heartbeat",
            "expiry.false",
            "expiry.missed",
            "expiry.lateness_ms.p50",
            "expiry.lateness_ms.p99",
            "expiry.lateness_ms.p999",
            "expiry.lateness_ms.max",
            "latency_us.p50",
            "latency_us.p99",
            "latency_us.p999",
            "latency_us.max",
            "recovery_s.p50",
            "recovery_s.p99",
            "recovery_s.p100",
            "messages.sent",
            "messages.received",
            "messages.lost",
            "messages.duplicated",
            "generator.saturated",
            "configuration",
            "commit",
            "machine.cores",
            "machine.memory_bytes",
            "machine.kernel",
            "units",
        ] {
            let pointer = format!("/{}", path.replace('.', "/"));
            assert!(report.pointer(&pointer).is_some(), "{path}");
        }
    }

    #[test]
    fn a_curve_ends_at_the_maximum() {
        let curve = Curve::of("x", &seconds(1..=1_000), false).unwrap();
        let &(quantile, last) = curve.points.last().unwrap();
        assert!(quantile >= 1.0);
        assert!((last / 1e6 - 1.0).abs() < 0.002);
        assert!(curve.points.is_sorted_by(|one, other| one.0 <= other.0 && one.1 <= other.1));
        assert!(Curve::of("x", &histogram(), false).is_none());
    }
}

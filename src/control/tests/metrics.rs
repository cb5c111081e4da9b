//! The text of `/metrics`, and the page that explains it.

use tempfile::TempDir;

use super::*;
use crate::metrics::{CONSUMER_BEHIND, CONSUMER_MISSED, LISTENER_HANDSHAKE, ListenerMetric, NOT_AFTER, QueueMetric};

/// The full name of a metric's family: name and unit.
fn family(name: &str, unit: &str) -> String {
    if unit.is_empty() { name.to_owned() } else { format!("{name}_{unit}") }
}

/// Every family that must be there, with its type.
fn families() -> Vec<(String, &'static str)> {
    let kind = |kind| if kind == Kind::Counter { "counter" } else { "gauge" };
    let figures = Metric::ALL.iter().map(|metric| (family(metric.name(), metric.unit()), kind(metric.kind())));
    let reasons = ReasonMetric::ALL.iter().map(|metric| (family(metric.name(), metric.unit()), kind(metric.kind())));
    let process = ProcessMetric::ALL.iter().map(|metric| (family(metric.name(), metric.unit()), kind(metric.kind())));
    let timings = Timing::ALL.iter().map(|timing| (family(timing.name(), "seconds"), "histogram"));
    let build = [(crate::metrics::BUILD_NAME.to_owned(), "info")];
    let consumers = [(CONSUMER_BEHIND.0.to_owned(), "gauge"), (CONSUMER_MISSED.0.to_owned(), "counter")];
    let listeners = ListenerMetric::ALL.iter().map(|metric| (metric.name().to_owned(), kind(metric.kind())));
    let expiries = [(family(NOT_AFTER.0, "seconds"), "gauge"), (family(LISTENER_HANDSHAKE.0, "seconds"), "histogram")];
    let queue = QueueMetric::ALL.iter().map(|metric| (metric.name().to_owned(), kind(metric.kind())));
    figures
        .chain(queue)
        .chain(listeners)
        .chain(expiries)
        .chain(reasons)
        .chain(process)
        .chain(timings)
        .chain(build)
        .chain(consumers)
        .collect()
}

#[test]
fn the_exposition_is_well_formed_and_complete() {
    let directory = TempDir::new().unwrap();
    let stage = Stage::new(Plan { store: Some(directory.path().into()), ..Plan::default() });
    stage.get("/v1/uplink?consumer=billing");
    stage.publish(2, |counters| {
        counters.add(Metric::ReceivedBytes, 12_345);
        counters.set(Metric::Connections, 7);
        counters.count_closed(CloseReason::Expired as usize);
        counters.add_to_listener(1, ListenerMetric::HandshakesTls12, 4);
        counters.count_refused_by(1, Refusal::Overloaded as usize);
        counters.observe_handshake(1, Duration::from_micros(60));
        for micros in [10, 60, 60, 700, 99_000_000] {
            counters.observe(Timing::RoundTrip, Duration::from_micros(micros));
        }
    });
    let answer = stage.request("GET", "/metrics", &[("accept", "application/openmetrics-text; version=1.0.0")]);
    assert_eq!((answer.status, answer.headers["content-type"].as_str()), (200, Format::OpenMetrics.content_type()));
    let text = answer.text;
    assert!(text.ends_with("# EOF\n"));

    let mut described: BTreeMap<String, String> = BTreeMap::new();
    let mut current = String::new();
    let mut helped = String::new();
    let mut bucket: Option<(String, u64)> = None;
    for line in text.lines().filter(|line| *line != "# EOF") {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(help.ends_with('.') && !help.contains(['"', '\\']), "{line}");
            name.clone_into(&mut helped);
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, helped, "help comes before type");
            assert!(described.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} comes twice");
            name.clone_into(&mut current);
        } else if let Some(unit) = line.strip_prefix("# UNIT ") {
            let (name, unit) = unit.split_once(' ').unwrap();
            assert!(name == current && name.ends_with(&format!("_{unit}")), "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let suffix = name.strip_prefix(&current).unwrap_or_else(|| panic!("{line} under {current}"));
            let suffixes: &[&str] = match described[&current].as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "info" => &["_info"],
                "histogram" => &["_bucket", "_sum", "_count"],
                other => panic!("{other}"),
            };
            assert!(suffixes.contains(&suffix), "{line}");
            let number: f64 = value.parse().unwrap();
            assert!(number >= 0.0);
            if suffix == "_bucket" {
                let worker = labels.split_once(',').unwrap().1.to_owned();
                if let Some((_, before)) = bucket.as_ref().filter(|(of, _)| *of == format!("{name}{worker}")) {
                    assert!(number as u64 >= *before, "buckets are cumulative: {line}");
                }
                bucket = Some((format!("{name}{worker}"), number as u64));
            }
        }
    }
    let expected: BTreeMap<_, _> = families().into_iter().map(|(name, kind)| (name, kind.to_owned())).collect();
    assert_eq!(described, expected);

    let has = |line: &str| assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    has("pulsegate_received_bytes_total{worker=\"2\"} 12345");
    has("pulsegate_connections{worker=\"2\"} 7");
    has("pulsegate_listener_handshakes_tls12_total{listener=\"meters\"} 4");
    has("pulsegate_listener_devices{listener=\"devices\"} 0");
    has("pulsegate_listener_refused_total{listener=\"meters\",reason=\"overloaded\"} 1");
    has("pulsegate_listener_refused_total{listener=\"meters\",reason=\"draining\"} 0");
    has("pulsegate_listener_refused_total{listener=\"devices\",reason=\"overloaded\"} 0");
    has("pulsegate_listener_handshake_seconds_bucket{le=\"0.00005\",listener=\"meters\"} 0");
    has("pulsegate_listener_handshake_seconds_bucket{le=\"0.0001\",listener=\"meters\"} 1");
    has("pulsegate_listener_handshake_seconds_count{listener=\"devices\"} 0");
    has("pulsegate_connections_closed_total{worker=\"2\",reason=\"expired\"} 1");
    has("pulsegate_connections_closed_total{worker=\"0\",reason=\"home_full\"} 0");
    has("pulsegate_connections_refused_total{worker=\"1\",reason=\"draining\"} 0");
    has("pulsegate_heartbeat_round_trip_seconds_bucket{le=\"0.00005\",worker=\"2\"} 1");
    has("pulsegate_heartbeat_round_trip_seconds_bucket{le=\"0.0001\",worker=\"2\"} 3");
    has("pulsegate_heartbeat_round_trip_seconds_bucket{le=\"30.0\",worker=\"2\"} 4");
    has("pulsegate_heartbeat_round_trip_seconds_bucket{le=\"+Inf\",worker=\"2\"} 5");
    has("pulsegate_heartbeat_round_trip_seconds_count{worker=\"2\"} 5");
    has("pulsegate_heartbeat_round_trip_seconds_sum{worker=\"2\"} 99.00083");
    has(&format!("pulsegate_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));

    // The same samples in the format that every tool reads.
    let plain = stage.get("/metrics");
    assert_eq!(plain.headers["content-type"], Format::Text.content_type());
    let names = |text: &str| -> Vec<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
    };
    assert_eq!(names(&plain.text), names(&text));
    assert!(plain.text.contains("# TYPE pulsegate_build_info gauge\n"));
    assert!(!plain.text.contains("# EOF") && !plain.text.contains("# UNIT"));
}

#[test]
fn the_api_page_names_every_metric() {
    let page = include_str!("../../../docs/API.md");
    for (name, kind) in families() {
        let sample = match kind {
            "counter" => format!("`{name}_total`"),
            "info" => format!("`{name}_info`"),
            _ => format!("`{name}`"),
        };
        assert!(page.contains(&sample), "docs/API.md lacks {sample}");
    }
    for metric in crate::metrics::SinkMetric::ALL {
        // With the unit where there is one; of those the metric of a counter ends in `_total`.
        let unit = if metric.unit().is_empty() { String::new() } else { format!("_{}", metric.unit()) };
        let total = if metric.kind() == crate::metrics::Kind::Counter { "_total" } else { "" };
        let sample = format!("`{}{unit}{total}`", metric.name());
        assert!(page.contains(&sample), "docs/API.md lacks {sample}");
    }
    for reason in CloseReason::ALL.iter().map(|reason| reason.label()).chain(Refusal::ALL.iter().map(|r| r.label())) {
        assert!(page.contains(&format!("`{reason}`")), "docs/API.md lacks the reason {reason}");
    }
}

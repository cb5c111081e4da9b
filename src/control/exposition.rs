//! `/metrics`: the published counters and the process's own figures, made at each scrape, as OpenMetrics 1.0 or as the
//! Prometheus text format 0.0.4, whichever the scraper prefers.

use std::fmt::{self, Write};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use serde::Serialize;
use tikv_jemalloc_ctl::{epoch, stats};

use super::State;
use super::policy::Expiry;
use super::sessions;
use crate::commands;
use crate::fleet;
use crate::link::{CloseReason, Refusal};
use crate::metrics::{
    BUCKETS_MICROS, BUILD_HELP, BUILD_NAME, CONSUMER_BEHIND, CONSUMER_MISSED, Counters, FleetMetric, Histogram, Kind,
    LISTENER_HANDSHAKE, ListenerMetric, Metric, NOT_AFTER, ProcessMetric, QueueMetric, ReasonMetric, SinkMetric,
    Timing,
};
use crate::sink::{Report, Sinks};
use crate::store::{Backlog, Health, Stats, Store};

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// The Prometheus text format 0.0.4, which every tool reads.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// What it is called in HTTP.
    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// The format that a request prefers, by its Accept headers: OpenMetrics only where it is asked for by name and
    /// nothing is preferred to it.
    pub(super) fn preferred<'a>(accept: impl Iterator<Item = &'a str>) -> Format {
        let (mut open_metrics, mut text) = (0.0, 0.0);
        for range in accept.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse::<f32>().ok());
            let weight = weight.unwrap_or(0.0);
            match kind.as_str() {
                "application/openmetrics-text" => open_metrics = weight.max(open_metrics),
                "text/plain" | "text/*" | "*/*" => text = weight.max(text),
                _ => {}
            }
        }
        if open_metrics > 0.0 && open_metrics >= text { Format::OpenMetrics } else { Format::Text }
    }
}

/// Every metric of the gateway.
pub(super) fn encode(state: &State, format: Format) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape::new(state)));
    let mut text = String::new();
    text::encode(&mut text, &registry).expect("a string takes everything");
    match format {
        Format::OpenMetrics => text,
        Format::Text => to_text_format(&text),
    }
}

/// OpenMetrics as the text format 0.0.4: a family has the name of its samples, there are no units and no type `info`.
fn to_text_format(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = "";
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|family| family.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                other => ("", other),
            };
            let _ = writeln!(text, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// What the process takes of the machine's memory, in bytes; `None` where the system does not say.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "they are the keys of the JSON: units last")]
pub(super) struct Memory {
    /// Held by the program from its allocator.
    allocated_bytes: Option<u64>,
    /// Held by the allocator from the system, in physical memory.
    resident_bytes: Option<u64>,
    /// The process's physical memory (VmRSS).
    process_resident_bytes: Option<u64>,
}

impl Memory {
    /// Reads it now.
    pub(super) fn read() -> Memory {
        // The allocator's figures are those of the last advance of its epoch.
        let fresh = epoch::advance().is_ok();
        let read = |metric: Result<usize, _>| metric.ok().filter(|_| fresh).map(|bytes| bytes as u64);
        Memory {
            allocated_bytes: read(stats::allocated::read()),
            resident_bytes: read(stats::resident::read()),
            process_resident_bytes: process_resident(),
        }
    }
}

/// `VmRSS:      5320 kB` of proc_pid_status(5).
fn process_resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// All values at the time of one scrape.
#[derive(Debug)]
struct Scrape {
    /// By worker.
    counters: Vec<Counters>,
    /// By [`ProcessMetric`]; what could not be read is left out.
    process: [Option<u64>; ProcessMetric::COUNT],
    consumers: Vec<Backlog>,
    sinks: Vec<Report>,
    fleet: Option<fleet::Report>,
    /// Of a gateway at which commands can wait.
    queue: Option<commands::Counts>,
    sessions: sessions::Counts,
    now_ms: i64,
    /// Names, by listener.
    listeners: Vec<String>,
    expiries: Arc<[Expiry]>,
}

impl Scrape {
    fn new(state: &State) -> Self {
        let counters = state.published.iter().map(|published| published.read()).collect();
        Self {
            counters,
            process: Self::process_figures(state),
            listeners: state.config.listeners.iter().map(|listener| listener.name.clone()).collect(),
            expiries: state.expiries(),
            consumers: state.store.as_deref().map_or(Vec::new(), Store::backlogs),
            sinks: state.sinks.as_ref().map_or(Vec::new(), Sinks::reports),
            fleet: state.fleet_report(),
            queue: state.command_counts(),
            sessions: state.sessions.counters.counts(),
            now_ms: state.clock.unix_ms(state.clock.now()),
        }
    }

    fn process_figures(state: &State) -> [Option<u64>; ProcessMetric::COUNT] {
        let memory = Memory::read();
        let load = |count: &AtomicU64| Some(count.load(Ordering::Relaxed));
        let store = state.store.as_deref();
        let stored = |count: fn(&Stats) -> &AtomicU64| store.and_then(|store| load(count(store.stats())));
        let value = |metric| match metric {
            ProcessMetric::Uptime => Some(state.clock.uptime().as_secs()),
            ProcessMetric::MemoryAllocated => memory.allocated_bytes,
            ProcessMetric::MemoryResident => memory.resident_bytes,
            ProcessMetric::ProcessResident => memory.process_resident_bytes,
            ProcessMetric::UplinkBatchesWaiting => Some(state.uplink.events.len() as u64),
            ProcessMetric::TokensVerified => load(&state.counters.tokens_verified),
            ProcessMetric::TokensCached => load(&state.counters.tokens_cached),
            ProcessMetric::TokensRejected => load(&state.counters.tokens_rejected),
            ProcessMetric::TokensUnanswered => load(&state.counters.tokens_unanswered),
            ProcessMetric::JwtAccepted => load(&state.counters.jwt_accepted),
            ProcessMetric::JwtRejected => load(&state.counters.jwt_rejected),
            ProcessMetric::JwtUnanswered => load(&state.counters.jwt_unanswered),
            ProcessMetric::KeysFetched => load(&state.counters.keys_fetched),
            ProcessMetric::KeysFailed => load(&state.counters.keys_failed),
            ProcessMetric::HookAsked => load(&state.counters.hook_asked),
            ProcessMetric::HookFailures => load(&state.counters.hook_failures),
            ProcessMetric::HookCached => load(&state.counters.hook_cached),
            ProcessMetric::HookStale => load(&state.counters.hook_stale),
            ProcessMetric::HookAccepted => load(&state.counters.hook_accepted),
            ProcessMetric::HookRejected => load(&state.counters.hook_rejected),
            ProcessMetric::HookUnanswered => load(&state.counters.hook_unanswered),
            ProcessMetric::EventsAccepted => Some(state.backbone.accepted()),
            ProcessMetric::EventsDropped => Some(state.backbone.dropped()),
            ProcessMetric::EventsRefused => Some(state.backbone.refused()),
            ProcessMetric::AnswersDropped => load(&state.counters.answers_dropped),
            ProcessMetric::AnswersWithoutRoom => Some(state.answers.refused()),
            ProcessMetric::AnswersCut => Some(state.answers.cut()),
            ProcessMetric::Reloads => load(&state.counters.reloads),
            ProcessMetric::ReloadsRefused => load(&state.counters.reloads_refused),
            ProcessMetric::ReloadRefused => load(&state.counters.is_reload_refused),
            ProcessMetric::LogLinesLost => load(&state.log_lines_lost),
            ProcessMetric::StoreEvents => stored(|stats| &stats.events),
            ProcessMetric::StoreHeld => stored(|stats| &stats.bytes),
            ProcessMetric::StoreAppended => stored(|stats| &stats.appended),
            ProcessMetric::StoreDropped => stored(|stats| &stats.dropped),
            ProcessMetric::StoreDroppedShare => stored(|stats| &stats.dropped_share),
            ProcessMetric::StoreGaveWay => stored(|stats| &stats.gave_way),
            ProcessMetric::StoreRefused => stored(|stats| &stats.refused),
            ProcessMetric::StoreGroups => stored(|stats| &stats.groups),
            ProcessMetric::StoreCommit => stored(|stats| &stats.commit_micros),
            ProcessMetric::StoreSessions => stored(|stats| &stats.kept.sessions),
            ProcessMetric::StoreWaiting => stored(|stats| &stats.kept.messages),
            ProcessMetric::StoreWaitingBytes => stored(|stats| &stats.kept.bytes),
            ProcessMetric::StoreRetained => stored(|stats| &stats.kept.retained),
            ProcessMetric::StoreChanges => stored(|stats| &stats.kept.changes),
            ProcessMetric::StoreSteps => stored(|stats| &stats.kept.steps),
            ProcessMetric::StoreWithoutRoom => store.map(|store| u64::from(store.health() != Health::Well)),
        };
        let mut process = [None; ProcessMetric::COUNT];
        for &metric in ProcessMetric::ALL {
            process[metric as usize] = value(metric);
        }
        process
    }

    fn encode_metric(&self, encoder: &mut DescriptorEncoder<'_>, metric: Metric) -> fmt::Result {
        let unit = unit(metric.unit());
        let kind = metric_type(metric.kind());
        let mut family = encoder.encode_descriptor(metric.name(), metric.help(), unit.as_ref(), kind)?;
        for (worker, counters) in self.counters.iter().enumerate() {
            let labels = [("worker", worker.to_string())];
            let mut sample = family.encode_family(&labels)?;
            encode_value(&mut sample, metric.kind(), counters.value(metric), metric.per_unit())?;
        }
        Ok(())
    }

    fn encode_reasons(&self, encoder: &mut DescriptorEncoder<'_>, metric: ReasonMetric) -> fmt::Result {
        let kind = metric_type(metric.kind());
        let mut family = encoder.encode_descriptor(metric.name(), metric.help(), None, kind)?;
        for (worker, counters) in self.counters.iter().enumerate() {
            let worker = worker.to_string();
            let mut encode = |reason: &'static str, count| {
                let labels = [("worker", worker.as_str()), ("reason", reason)];
                encode_value(&mut family.encode_family(&labels)?, metric.kind(), count, 1)
            };
            match metric {
                ReasonMetric::Closed => {
                    for &reason in CloseReason::ALL {
                        encode(reason.label(), counters.closed()[reason as usize])?;
                    }
                }
                ReasonMetric::Refused => {
                    for &refusal in Refusal::ALL {
                        encode(refusal.label(), counters.refused()[refusal as usize])?;
                    }
                }
            }
        }
        Ok(())
    }

    fn encode_listeners(&self, encoder: &mut DescriptorEncoder<'_>, metric: ListenerMetric) -> fmt::Result {
        let kind = metric_type(metric.kind());
        let mut family = encoder.encode_descriptor(metric.name(), metric.help(), None, kind)?;
        for (position, listener) in self.listeners.iter().enumerate() {
            if metric == ListenerMetric::Refused {
                for &refusal in Refusal::ALL {
                    let labels = [("listener", listener.as_str()), ("reason", refusal.label())];
                    let refused = self.counters.iter().map(|counters| counters.refused_by(position, refusal as usize));
                    encode_value(&mut family.encode_family(&labels)?, metric.kind(), refused.sum(), 1)?;
                }
                continue;
            }
            let value = self.counters.iter().map(|counters| counters.listener_value(position, metric)).sum();
            encode_value(&mut family.encode_family(&[("listener", listener.as_str())])?, metric.kind(), value, 1)?;
        }
        Ok(())
    }

    fn encode_expiries(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let (name, help) = NOT_AFTER;
        let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Gauge)?;
        for expiry in self.expiries.iter() {
            let number = expiry.number.to_string();
            let labels = [("listener", expiry.listener.as_str()), ("kind", expiry.kind.label()), ("number", &number)];
            family.encode_family(&labels)?.encode_gauge(&(expiry.not_after_s as f64))?;
        }
        Ok(())
    }

    fn encode_timing(&self, encoder: &mut DescriptorEncoder<'_>, timing: Timing) -> fmt::Result {
        let kind = MetricType::Histogram;
        let mut family = encoder.encode_descriptor(timing.name(), timing.help(), Some(&Unit::Seconds), kind)?;
        for (worker, counters) in self.counters.iter().enumerate() {
            let labels = [("worker", worker.to_string())];
            encode_histogram(&mut family.encode_family(&labels)?, counters.timing(timing))?;
        }
        Ok(())
    }

    fn encode_listener_handshakes(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let ((name, help), kind) = (LISTENER_HANDSHAKE, MetricType::Histogram);
        let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), kind)?;
        for (position, listener) in self.listeners.iter().enumerate() {
            let mut all = Histogram::default();
            self.counters.iter().for_each(|counters| all.add(&counters.handshakes_of(position)));
            encode_histogram(&mut family.encode_family(&[("listener", listener.as_str())])?, &all)?;
        }
        Ok(())
    }

    fn encode_consumers(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        (name, help): (&str, &str),
        kind: Kind,
        value: impl Fn(&Backlog) -> u64,
    ) -> fmt::Result {
        if self.consumers.is_empty() {
            return Ok(());
        }
        let mut family = encoder.encode_descriptor(name, help, None, metric_type(kind))?;
        for consumer in &self.consumers {
            let labels = [("consumer", &*consumer.name)];
            encode_value(&mut family.encode_family(&labels)?, kind, value(consumer), 1)?;
        }
        Ok(())
    }

    fn encode_sinks(&self, encoder: &mut DescriptorEncoder<'_>, metric: SinkMetric) -> fmt::Result {
        let (kind, unit) = (metric.kind(), unit(metric.unit()));
        let mut family = encoder.encode_descriptor(metric.name(), metric.help(), unit.as_ref(), metric_type(kind))?;
        for report in &self.sinks {
            let value = match metric {
                SinkMetric::Lag => report.lag_s(self.now_ms),
                SinkMetric::Behind => report.backlog.as_ref().map_or(0, |backlog| backlog.behind),
                SinkMetric::Up => u64::from(report.state == "running"),
                SinkMetric::Paused => u64::from(report.state == "paused"),
                SinkMetric::Sent => report.sent,
                SinkMetric::Failed => report.failed,
                SinkMetric::DeadLettered => report.dead_lettered,
                SinkMetric::Commands => report.commands,
                SinkMetric::CommandsFailed => report.commands_failed,
            };
            encode_value(&mut family.encode_family(&[("sink", report.name.as_str())])?, kind, value, 1)?;
        }
        Ok(())
    }

    fn encode_queue(
        encoder: &mut DescriptorEncoder<'_>,
        metric: QueueMetric,
        counts: &commands::Counts,
    ) -> fmt::Result {
        let value = match metric {
            QueueMetric::Waiting => counts.waiting,
            QueueMetric::Put => counts.queued,
            QueueMetric::Acknowledged => counts.acknowledged,
            QueueMetric::Expired => counts.expired,
            QueueMetric::Refused => counts.refused,
            QueueMetric::Cancelled => counts.cancelled,
        };
        let kind = metric_type(metric.kind());
        let mut family = encoder.encode_descriptor(metric.name(), metric.help(), None, kind)?;
        encode_value(&mut family, metric.kind(), value, 1)
    }

    fn encode_fleet(
        encoder: &mut DescriptorEncoder<'_>,
        metric: FleetMetric,
        (report, sessions): (&fleet::Report, &sessions::Counts),
    ) -> fmt::Result {
        let value = match metric {
            FleetMetric::Up => u64::from(report.state == fleet::State::Connected),
            FleetMetric::Claimed => report.devices_held,
            FleetMetric::Waiting => report.devices_waiting,
            FleetMetric::Written => report.rows_written,
            FleetMetric::Removed => report.rows_removed,
            FleetMetric::Conflicts => report.conflicts,
            FleetMetric::Taken => report.taken,
            FleetMetric::Lost => report.lost,
            FleetMetric::Damped => report.damped,
            FleetMetric::Untold => report.untold,
            FleetMetric::Unanswered => report.unanswered,
            FleetMetric::WillsWithheld => report.wills_withheld,
            FleetMetric::SessionsTaken => sessions.taken,
            FleetMetric::SessionsRevived => sessions.revived,
            FleetMetric::SessionsWithHoles => sessions.holes,
            FleetMetric::SessionMessagesGivenWay => sessions.given_way,
            FleetMetric::SessionMessagesTaken => sessions.messages,
            FleetMetric::SessionsGiven => sessions.given,
            FleetMetric::SessionsExpired => sessions.expired,
            FleetMetric::SessionWills => sessions.wills,
            FleetMetric::SessionsPutOff => sessions.put_off,
            FleetMetric::SessionsBegunAnew => sessions.begun_anew,
            FleetMetric::SessionsDisowned => sessions.disowned,
            FleetMetric::SessionsUnasked => sessions.unasked,
            FleetMetric::SessionRowsWritten => sessions.rows_written,
            FleetMetric::SessionRowsPlaced => sessions.rows_placed,
            FleetMetric::SessionRowsTooLarge => sessions.rows_too_large,
            FleetMetric::Connects => report.connects,
            FleetMetric::ConnectsFailed => report.connects_failed,
            FleetMetric::Forwarded => report.forwarded,
            FleetMetric::ForwardsFailed => report.forwards_failed,
            FleetMetric::CallsUnanswered => report.calls_unanswered,
            FleetMetric::Received => report.received,
            FleetMetric::Subjects => report.subjects,
            FleetMetric::PublicationsBehind => report.publications_behind,
            FleetMetric::PublicationsTaken => report.publications_taken,
            FleetMetric::PublicationsOwn => report.publications_own,
            FleetMetric::PublicationsInvalid => report.publications_invalid,
            FleetMetric::PublicationsMissed => report.publications_missed,
            FleetMetric::RetainedTombstones => report.retained.tombstones,
            FleetMetric::RetainedTaken => report.retained.taken,
            FleetMetric::RetainedDropped => report.retained.dropped,
            FleetMetric::RetainedRefused => report.retained.refused,
            FleetMetric::RetainedInvalid => report.retained.invalid,
            FleetMetric::RetainedAhead => report.retained.ahead,
            FleetMetric::RetainedSuperseded => report.retained.superseded,
            of_groups => group_value(of_groups, &report.groups),
        };
        let kind = metric_type(metric.kind());
        let mut family = encoder.encode_descriptor(metric.name(), metric.help(), None, kind)?;
        encode_value(&mut family, metric.kind(), value, 1)
    }

    fn encode_process(&self, encoder: &mut DescriptorEncoder<'_>, metric: ProcessMetric) -> fmt::Result {
        let Some(value) = self.process[metric as usize] else { return Ok(()) };
        let unit = unit(metric.unit());
        let kind = metric_type(metric.kind());
        let mut family = encoder.encode_descriptor(metric.name(), metric.help(), unit.as_ref(), kind)?;
        encode_value(&mut family, metric.kind(), value, metric.per_unit())
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        encoder
            .encode_descriptor(BUILD_NAME, BUILD_HELP, None, MetricType::Info)?
            .encode_info(&[("version", env!("CARGO_PKG_VERSION"))])?;
        for &metric in ProcessMetric::ALL {
            self.encode_process(&mut encoder, metric)?;
        }
        for &metric in Metric::ALL {
            self.encode_metric(&mut encoder, metric)?;
        }
        for &metric in ReasonMetric::ALL {
            self.encode_reasons(&mut encoder, metric)?;
        }
        for &metric in ListenerMetric::ALL {
            self.encode_listeners(&mut encoder, metric)?;
        }
        self.encode_expiries(&mut encoder)?;
        self.encode_consumers(&mut encoder, CONSUMER_BEHIND, Kind::Gauge, |consumer| consumer.behind)?;
        self.encode_consumers(&mut encoder, CONSUMER_MISSED, Kind::Counter, |consumer| consumer.missed)?;
        // Without sinks there are no such families.
        for &metric in SinkMetric::ALL.iter().filter(|_| !self.sinks.is_empty()) {
            self.encode_sinks(&mut encoder, metric)?;
        }
        for (&metric, counts) in
            self.queue.iter().flat_map(|counts| QueueMetric::ALL.iter().map(move |it| (it, counts)))
        {
            Self::encode_queue(&mut encoder, metric, counts)?;
        }
        for (&metric, report) in
            self.fleet.iter().flat_map(|report| FleetMetric::ALL.iter().map(move |it| (it, report)))
        {
            Self::encode_fleet(&mut encoder, metric, (report, &self.sessions))?;
        }
        for &timing in Timing::ALL {
            self.encode_timing(&mut encoder, timing)?;
        }
        self.encode_listener_handshakes(&mut encoder)?;
        Ok(())
    }
}

fn metric_type(kind: Kind) -> MetricType {
    match kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
    }
}

fn unit(unit: &str) -> Option<Unit> {
    (!unit.is_empty()).then(|| Unit::Other(unit.to_owned()))
}

/// `per_unit` of what `value` counts make one of the metric's unit.
fn encode_value(family: &mut MetricEncoder<'_>, kind: Kind, value: u64, per_unit: u64) -> fmt::Result {
    match (kind, per_unit) {
        (Kind::Counter, 1) => family.encode_counter::<NoLabelSet, _, u64>(&value, None),
        (Kind::Gauge, 1) => family.encode_gauge(&value),
        (Kind::Counter, _) => family.encode_counter::<NoLabelSet, _, u64>(&(value as f64 / per_unit as f64), None),
        (Kind::Gauge, _) => family.encode_gauge(&(value as f64 / per_unit as f64)),
    }
}

/// The encoder takes one count per bucket and makes them cumulative itself.
fn encode_histogram(family: &mut MetricEncoder<'_>, histogram: &Histogram) -> fmt::Result {
    let bounds = BUCKETS_MICROS.iter().map(|&micros| micros as f64 / 1e6).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(histogram.counts).collect();
    let sum = histogram.sum_micros as f64 / 1e6;
    family.encode_histogram::<NoLabelSet>(sum, histogram.count(), &buckets, None)
}

fn group_value(metric: FleetMetric, groups: &fleet::GroupsReport) -> u64 {
    match metric {
        FleetMetric::GroupsServed => groups.served,
        FleetMetric::GroupsUnserved => groups.unserved,
        FleetMetric::GroupsUnsettled => groups.unsettled,
        FleetMetric::GroupsGiven => groups.given,
        FleetMetric::GroupsReturned => groups.returned,
        FleetMetric::GroupsGivenElsewhere => groups.given_elsewhere,
        _ => unreachable!("all others are told where they are listed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scraper_gets_what_it_prefers() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, expected) in [
            (&[][..], Format::Text),
            (&["*/*"], Format::Text),
            (&["text/html, */*; q=0.1"], Format::Text),
            (&[prometheus], Format::OpenMetrics),
            (&["application/openmetrics-text"], Format::OpenMetrics),
            (&["text/plain", "Application/OpenMetrics-Text; version=1.0.0"], Format::OpenMetrics),
            (&["application/openmetrics-text;q=0.2, text/plain;q=0.7"], Format::Text),
            (&["application/openmetrics-text;q=0"], Format::Text),
            (&["application/openmetrics-text;q=x"], Format::Text),
            (
                &["application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;q=0.6,text/plain;q=0.5"],
                Format::Text,
            ),
        ] {
            assert_eq!(Format::preferred(accept.iter().copied()), expected, "{accept:?}");
        }
    }

    #[test]
    fn families_of_the_text_format_have_the_names_of_their_samples() {
        let open_metrics = "# HELP a_build What it is.\n# TYPE a_build info\na_build_info{version=\"1\"} 1\n\
                            # HELP a_bytes Bytes, in all.\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\na_bytes_total{w=\"0\"} 7\n\
                            # HELP a_now Now.\n# TYPE a_now gauge\na_now 3\n# EOF\n";
        assert_eq!(
            to_text_format(open_metrics),
            "# HELP a_build_info What it is.\n# TYPE a_build_info gauge\na_build_info{version=\"1\"} 1\n\
             # HELP a_bytes_total Bytes, in all.\n# TYPE a_bytes_total counter\na_bytes_total{w=\"0\"} 7\n\
             # HELP a_now Now.\n# TYPE a_now gauge\na_now 3\n"
        );
    }
}

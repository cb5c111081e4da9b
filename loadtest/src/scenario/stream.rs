//! `fan-in`, `fan-out`: messages at a steady rate, each of them accounted for.

use std::time::Duration;

use crate::cli::{STREAM_TOPIC, Stream};
use crate::clock::micros;
use crate::fleet::{ComeBack, Count, Counts, Order, Streaming};
use crate::report::{Messages, Percentiles};
use crate::run::Run;

/// How long the last messages may take.
const LAST: Duration = Duration::from_secs(30);

/// Who speaks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All but the first to the first.
    FanIn,
    /// The first to all others.
    FanOut,
}

/// Passes when every message came to all whom it was for, none came twice, and nobody was lost.
pub fn run(run: &mut Run, options: &Stream, kind: Kind) {
    let all = options.common.connections;
    if !options.common.protocol.is_mqtt() {
        return run.require("devices speak MQTT", false, "--protocol mqtt3 or mqtt5 is needed for subscribers");
    }
    run.fleet.order(&Order::ComeBack(ComeBack::Never));
    run.wait_for_calm();
    let start = run.snapshot();
    let up = run.connect(0..all).get(Count::Up);
    run.pass("settling", options.common.settle);
    let settled = run.snapshot();
    run.measure_memory(&start, &settled, up);
    run.begin_measuring();
    let publishers = match kind {
        Kind::FanIn => 1..all,
        Kind::FanOut => 0..1,
    };
    // How often each message is to be received.
    let copies = if kind == Kind::FanOut { u64::from(all) - 1 } else { 1 };
    run.fleet.order(&Order::Stream(Streaming {
        devices: publishers,
        from: run.now(),
        every: micros(options.every),
        topic: STREAM_TOPIC.into(),
        acknowledge: options.ack,
    }));
    run.pass("streaming", options.common.duration);
    run.fleet.order(&Order::Quiet);
    let has_all = |counts: &Counts| {
        let sent = counts.get(Count::StreamSent);
        let received = counts.get(Count::StreamReceived) >= sent * copies;
        received && (!options.ack || counts.get(Count::StreamAcknowledged) >= sent)
    };
    // The order takes a moment to reach every thread.
    run.pass("coming to rest", Duration::from_millis(500));
    run.wait("waiting for the last", LAST, has_all);
    let after = run.snapshot();
    run.collect();
    report(run, options, copies, settled.usage, &after);
    let end = run.snapshot();
    let lost = run.measure_end(&end).get(Count::Lost);
    run.require("no connection was lost", lost == 0, format!("{lost} lost"));
}

fn report(
    run: &mut Run,
    options: &Stream,
    copies: u64,
    before: Option<crate::observe::Usage>,
    after: &crate::run::Snapshot,
) {
    let counts = run.fleet.counts();
    let sent = counts.get(Count::StreamSent);
    let (received, expected) = (counts.get(Count::StreamReceived), sent * copies);
    let duplicated = counts.get(Count::StreamDuplicated);
    run.report.latency_us = Percentiles::of(&run.findings.messages, 1.0);
    run.report.messages = Messages {
        sent: Some(sent),
        received: Some(received),
        lost: Some(expected.saturating_sub(received.saturating_sub(duplicated))),
        duplicated: Some(duplicated),
    };
    run.detail("messages_per_s", (received as f64 / options.common.duration.as_secs_f64()).round());
    if let (Some(before), Some(after)) = (before, after.usage) {
        let per = (after.cpu_micros - before.cpu_micros) as f64 / received.max(1) as f64;
        run.detail("server_cpu_us_per_message_received", (per * 100.0).round() / 100.0);
    }
    let text = format!("{received} of {expected}, {duplicated} twice");
    run.require("every message arrived exactly once", received == expected && duplicated == 0, text);
    if options.ack {
        let acknowledged = counts.get(Count::StreamAcknowledged);
        run.require("every message was acknowledged", acknowledged == sent, format!("{acknowledged} of {sent}"));
    }
    if let Some(max) = options.max_p99 {
        let p99 = run.report.latency_us.p99.unwrap_or(f64::INFINITY);
        let holds = p99 <= max.as_micros() as f64;
        run.require("the 99th percentile is in bounds", holds, format!("{:.1} ms", p99 / 1e3));
    }
}

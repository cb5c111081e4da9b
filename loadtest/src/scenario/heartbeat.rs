//! `heartbeat`: all devices connect and beat, evenly spread.

use std::time::Duration;

use crate::cli::Heartbeat;
use crate::fleet::{ComeBack, Count, Order};
use crate::report::{Messages, Percentiles};
use crate::run::Run;

/// Passes when every heartbeat was answered and no connection was lost.
pub fn run(run: &mut Run, options: &Heartbeat) {
    let all = options.common.connections;
    run.fleet.order(&Order::ComeBack(ComeBack::BackOff(Duration::from_secs(1))));
    run.wait_for_calm();
    let start = run.snapshot();
    let up = run.connect(0..all).get(Count::Up);
    let connected = run.snapshot();
    run.report.cpu.us_per_handshake = Run::cpu_per(&start, &connected, run.fleet.counts().get(Count::Established));
    run.pass("settling", options.common.settle);
    let settled = run.snapshot();
    run.measure_memory(&start, &settled, up);

    // The first heartbeats find everything cold.
    run.fleet.order(&Order::Beat { devices: 0..all, from: run.now(), every: options.every });
    run.pass("warming up", options.every.min(Duration::from_secs(5)));
    run.begin_measuring();
    let (before, earlier) = (run.snapshot(), run.fleet.counts());
    run.pass("beating", options.common.duration);
    let (after, later) = (run.snapshot(), run.fleet.counts());
    run.collect();
    run.report.latency_us = Percentiles::of(&run.findings.beats, 1.0);

    run.fleet.order(&Order::Quiet);
    run.wait("waiting for answers", Duration::from_secs(10), |counts| {
        counts.get(Count::BeatsAnswered) >= counts.get(Count::BeatsSent)
    });
    let answered = later.get(Count::BeatsAnswered) - earlier.get(Count::BeatsAnswered);
    run.report.cpu.us_per_heartbeat = Run::cpu_per(&before, &after, answered);
    run.detail("heartbeats_per_s", (answered as f64 / options.common.duration.as_secs_f64()).round());
    if let (Some(before), Some(after)) = (&before.metrics, &after.metrics) {
        let counted = after.growth(before, "pulsegate_heartbeats_received_total", "");
        run.detail("server_heartbeats_received", counted);
    }
    let end = run.snapshot();
    let counts = run.measure_end(&end);
    let (sent, received) = (counts.get(Count::BeatsSent), counts.get(Count::BeatsAnswered));
    run.report.messages = Messages {
        sent: Some(sent),
        received: Some(received),
        lost: Some(sent.saturating_sub(received)),
        duplicated: Some(received.saturating_sub(sent)),
    };
    let (held, lost) = (run.report.connections.held, counts.get(Count::Lost));
    run.require("every device is connected at the end", held == u64::from(all), format!("{held} of {all}"));
    run.require("no connection was lost", lost == 0, format!("{lost} lost"));
    run.require("every heartbeat was answered once", received == sent, format!("{received} answers to {sent}"));
}

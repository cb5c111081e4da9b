//! `slow`: a share of the devices stops reading while messages pour in for them.

use std::sync::Arc;
use std::time::Duration;

use super::senders::{Plan, Senders};
use crate::cli::{Slow, portion};
use crate::fleet::{Count, Ledger, Order};
use crate::report::{Messages, Percentiles};
use crate::run::Run;

/// Growth of the server's memory that is not those devices' doing, in bytes.
const ALLOWANCE: f64 = 16.0 * 1024.0 * 1024.0;
/// How long a device that had stopped reading may take to read what is left, at whose end its connection ends.
const READING_ON: Duration = Duration::from_secs(30);

/// Passes when those who do not read are ended as such, in bounded memory, and the others notice nothing.
pub fn run(run: &mut Run, options: &Slow) {
    let all = options.common.connections;
    let slow = portion(all, options.share).min(all);
    let control = all - slow;
    super::begin_in_calm(run, 0..control, options.every);

    run.fleet.order(&Order::StopReading { devices: control..all });
    run.wait("stopping to read", Duration::from_secs(5), |counts| counts.get(Count::NotReading) >= u64::from(slow));
    run.begin_measuring();
    let (before, began) = (run.snapshot(), run.elapsed());
    let seconds = options.patience.as_secs_f64();
    let total = (options.messages_per_second * seconds).ceil() as u64;
    let taken = Arc::new(Ledger::new(all, total.div_ceil(slow.max(1).into())));
    let plan = Plan {
        prefix: options.common.device_prefix.clone(),
        devices: (control, slow),
        total,
        rate: options.messages_per_second,
        from: run.now() + 100_000,
        bytes: options.payload,
        ack: false,
        taken: Arc::clone(&taken),
    };
    let senders = Senders::start(plan, options.senders, &run.admin(), run.clock());
    run.wait("pouring", options.patience, |_| senders.gone() >= u64::from(slow) || senders.are_done());
    let gone = senders.gone();
    let took = run.elapsed().saturating_sub(began);
    let sent = senders.end();
    run.collect();
    run.report.latency_us = Percentiles::of(&run.findings.beats_control, 1.0);
    let peak = peak(run, began.as_secs_f64());
    let after = run.snapshot();
    run.fleet.order(&Order::ResumeReading);
    run.wait("reading on", READING_ON, |counts| counts.get(Count::NotReadingEnded) >= u64::from(slow));
    run.pass("afterwards", options.common.settle);
    run.collect();

    let end = run.snapshot();
    let counts = run.measure_end(&end);
    run.report.messages = Messages { sent: Some(taken.sums().received), ..Messages::default() };
    run.detail("do_not_read", slow);
    run.detail("all_ended_after_s", took.as_secs_f64());
    run.detail(
        "bytes_taken_for_each",
        (taken.sums().received * options.payload as u64) as f64 / f64::from(slow.max(1)),
    );
    run.detail("outcomes", serde_json::to_value(&sent.outcomes).expect("counts are plain data"));

    let held = counts.get(Count::Up) - counts.get(Count::NotReading);
    run.require("all others are connected at the end", held >= u64::from(control), format!("{held} of {control}"));
    let lost = run.findings.control_lost;
    run.require("the others lost no connection", lost == 0, format!("{lost} lost"));
    let (limit, p99) = (options.max_p99.as_secs_f64() * 1e6, run.report.latency_us.p99.unwrap_or(f64::INFINITY));
    let name = format!("99 % of the others' round trips took at most {:.0} ms", limit / 1e3);
    run.require(name, p99 <= limit, format!("{:.1} ms", p99 / 1e3));
    let ended = counts.get(Count::NotReadingEnded);
    run.require("whoever did not read is offline to the server", gone == u64::from(slow), format!("{gone} of {slow}"));
    run.require("and finds its connection ended", ended == u64::from(slow), format!("{ended} of {slow}"));
    if let (Some(before), Some(after)) = (&before.metrics, &after.metrics) {
        let counted = after.growth(before, "pulsegate_connections_closed_total", "reason=\"slow_consumer\"");
        let holds = (counted - f64::from(slow)).abs() < 0.5;
        run.require("each of them as a slow consumer", holds, format!("{counted:.0} of {slow}"));
    }
    if let (Some(before), Some(peak)) = (before.usage, peak) {
        let growth = peak as f64 - before.rss_bytes as f64;
        let limit = f64::from(slow) * options.max_growth + ALLOWANCE;
        run.detail("server_memory_growth_bytes", growth);
        let name = format!("the server's memory grew by at most {:.1} MiB", limit / 1_048_576.0);
        run.require(name, growth <= limit, format!("{:.1} MiB", growth / 1_048_576.0));
    }
}

/// The server's largest resident memory since `from_s`.
fn peak(run: &Run, from_s: f64) -> Option<u64> {
    let since = run.report.timeline.iter().filter(|sample| sample.at_s >= from_s);
    since.filter_map(|sample| sample.server_rss_bytes).max()
}

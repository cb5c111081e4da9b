//! The result for people at a terminal.

use std::fmt::Write;

use super::{Percentiles, Report, shown};

/// A table of whatever was measured, and the verdict in the last lines.
pub fn render(report: &Report) -> String {
    let mut rows = Rows(String::new());
    let kind = format!("{} {}", report.configuration["protocol"].as_str().unwrap_or(""), report.target);
    rows.row("scenario", &format!("{} against {kind}", report.scenario));
    let machine = &report.machine;
    rows.row("started", &format!("{}, {} cores, load {}", report.started(), machine.cores, machine.load_average));
    let connections = &report.connections;
    rows.row(
        "connections",
        &format!(
            "{} asked, {} held, {} attempts failed, {} lost",
            connections.asked, connections.held, connections.failed, connections.lost
        ),
    );
    let resumed = if connections.resumed > 0 { format!(", {} resumed", connections.resumed) } else { String::new() };
    rows.row("established", &format!("{}{resumed}", connections.established));
    rows.percentiles("time to connect", &report.connect_latency_us, 1_000.0, "ms");
    memory(&mut rows, report);
    cpu(&mut rows, report);
    rows.percentiles(report.latency_is_of(), &report.latency_us, 1_000.0, "ms");
    messages(&mut rows, report);
    recovery(&mut rows, report);
    expiry(&mut rows, report);
    for (name, value) in &report.details {
        rows.row(&name.replace('_', " "), &shown(value));
    }
    for (name, value) in &report.failures {
        rows.row(&format!("failure: {}", name.replace('_', " ")), &shown(value));
    }
    let generator = &report.generator;
    let share = generator.busiest_thread_share * 100.0;
    let memory = generator.rss_bytes.map_or(String::new(), |bytes| format!(", {:.1} MiB", mebibytes(bytes)));
    rows.row("harness", &format!("{} threads, the busiest at {share:.0} % CPU{memory}", generator.threads));
    rows.percentiles("harness late by", &generator.lateness_us, 1_000.0, "ms");
    verdict(rows.0, report)
}

fn memory(rows: &mut Rows, report: &Report) {
    let memory = &report.memory;
    if let Some(user) = memory.user_bytes_per_connection {
        let mut text = format!("{user:.0} bytes per connection");
        if let Some(marginal) = memory.user_marginal_bytes_per_connection {
            let _ = write!(text, ", {marginal:.0} for each of the second half");
        }
        rows.row("server, user space", &text);
    }
    if let (Some(before), Some(after)) = (memory.rss_before_bytes, memory.rss_after_bytes) {
        rows.row(
            "server, resident",
            &format!("{:.1} MiB before, {:.1} MiB after", mebibytes(before), mebibytes(after)),
        );
    }
    if let Some(kernel) = memory.kernel_bytes_per_connection {
        rows.row(
            "kernel",
            &format!("{kernel:.0} bytes per connection and end (all of this machine's slab and buffers)"),
        );
    }
}

fn cpu(rows: &mut Rows, report: &Report) {
    let cpu = &report.cpu;
    if let Some(micros) = cpu.us_per_handshake {
        rows.row("server CPU per handshake", &format!("{micros:.0} us, with accept and greeting"));
    }
    if let Some(micros) = cpu.us_per_heartbeat {
        rows.row("server CPU per heartbeat", &format!("{micros:.1} us"));
    }
    if let Some(micros) = cpu.us_per_message {
        rows.row("server CPU per message", &format!("{micros:.1} us"));
    }
    if let Some(share) = cpu.idle_share {
        rows.row("server CPU while idle", &format!("{:.2} % of a core", share * 100.0));
    }
}

fn messages(rows: &mut Rows, report: &Report) {
    let messages = &report.messages;
    if let (Some(sent), Some(received)) = (messages.sent, messages.received) {
        let (lost, twice) = (messages.lost.unwrap_or(0), messages.duplicated.unwrap_or(0));
        rows.row("messages", &format!("{sent} sent, {received} received, {lost} lost, {twice} duplicated"));
    }
}

fn recovery(rows: &mut Rows, report: &Report) {
    let recovery = &report.recovery_s;
    if recovery.p50.is_some() {
        let show = |seconds: Option<f64>| seconds.map_or("never".to_owned(), |seconds| format!("{seconds:.2} s"));
        let text = format!("50 % {}, 99 % {}, all {}", show(recovery.p50), show(recovery.p99), show(recovery.p100));
        rows.row("back after", &text);
    }
}

fn expiry(rows: &mut Rows, report: &Report) {
    let expiry = &report.expiry;
    if let Some(missed) = expiry.missed {
        let (right, wrong) = (expiry.right.unwrap_or(0), expiry.r#false.unwrap_or(0));
        rows.row("expiries", &format!("{right} in time, {wrong} false, {missed} missed"));
    }
    rows.percentiles("expired after deadline", &expiry.lateness_ms, 1.0, "ms");
}

fn verdict(mut text: String, report: &Report) -> String {
    text.push('\n');
    for condition in &report.conditions {
        let mark = if condition.holds { "ok    " } else { "FAILED" };
        let _ = writeln!(text, "{mark}  {}: {}", condition.name, condition.found);
    }
    if let Some(why) = &report.generator.why {
        let _ =
            writeln!(text, "\nThe harness itself was the bottleneck: {why}. Latencies and rates are partly its own.");
    }
    let _ = writeln!(text, "\n{}", if report.passed { "passed" } else { "failed" });
    text
}

struct Rows(String);

impl Rows {
    fn row(&mut self, name: &str, value: &str) {
        let _ = writeln!(self.0, "{name:<30} {value}");
    }

    fn percentiles(&mut self, name: &str, percentiles: &Percentiles, divisor: f64, unit: &str) {
        let &Percentiles { p50: Some(p50), p99: Some(p99), p999: Some(p999), max: Some(max), count } = percentiles
        else {
            return;
        };
        let [p50, p99, p999, max] = [p50, p99, p999, max].map(|value| value / divisor);
        self.row(name, &format!("p50 {p50:.2}, p99 {p99:.2}, p99.9 {p999:.2}, max {max:.2} {unit} ({count} times)"));
    }
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

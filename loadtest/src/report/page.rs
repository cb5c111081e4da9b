//! The result as one page that needs nothing else: no script, no font, no file beside it.

use std::fmt::Write;

use super::duel::{Bar, Duel};
use super::plot::{self, Axis, Series};
use super::{Percentiles, Report, Sample, shown};
use crate::observe::Machine;

/// The page.
pub fn render(report: &Report) -> String {
    let mut body = String::new();
    head(&mut body, report);
    cards(&mut body, report);
    conditions(&mut body, report);
    body.push_str("<div class=plots>");
    timelines(&mut body, report);
    distributions(&mut body, report);
    body.push_str("</div>");
    details(&mut body, report);
    frame(&format!("loadtest {} · {}", report.scenario, report.target), &body)
}

/// The page of several targets: each figure as bars side by side.
pub fn render_duel(duel: &Duel) -> String {
    let (word, class) = if duel.passed() { ("passed", "good") } else { ("failed", "bad") };
    let mut body = format!("<h1>duel · {}<span class=\"badge {class}\">{word}</span></h1>", duel.of);
    if let Some(first) = duel.parties.first().and_then(|party| party.turns.first()) {
        let turns = duel.turns();
        let _ = write!(
            body,
            "<p class=sub>{} connections, {turns} · {} · in parentheses how many times the first one's</p>",
            grouped(first.connections.asked),
            escaped(&machine(&first.machine))
        );
    }
    body.push_str("<div class=plots>");
    for (name, bars) in duel.bars() {
        let _ = write!(body, "<div class=plot><h2>{name}</h2><table class=bars>");
        for Bar { party, shown, share } in bars {
            let width = (share * 100.0).max(0.5);
            let _ = write!(
                body,
                "<tr><th>{}</th><td><i style=\"width:{width:.1}%\"></i></td><td class=n>{}</td></tr>",
                escaped(&party),
                escaped(&shown)
            );
        }
        body.push_str("</table></div>");
    }
    body.push_str("</div>");
    frame(&format!("loadtest duel {}", duel.of), &body)
}

fn frame(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width,initial-scale=1\">\
         <title>{}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n",
        escaped(title)
    )
}

fn machine(machine: &Machine) -> String {
    let memory = machine.memory_bytes as f64 / f64::from(1 << 30);
    format!("{}, {} cores, {memory:.0} GiB, Linux {}", machine.processor, machine.cores, machine.kernel)
}

const STYLE: &str = "
:root{--ink:#1b2330;--dim:#5a6270;--line:#e4e7ec;--ground:#f6f7f9;--good:#1b8f6a;--bad:#c8322b}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:32px 20px 60px}h1{font-size:26px;margin:0}h2{font-size:16px;margin:0 0 4px}
.sub{color:var(--dim);margin:2px 0 22px}.badge{color:#fff;border-radius:6px;padding:3px 11px;font-size:15px;vertical-align:3px;margin-left:10px}
.good{background:var(--good)}.bad{background:var(--bad)}.cards{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(190px,1fr))}
.card,.plot,.box{background:#fff;border:1px solid var(--line);border-radius:10px;padding:14px 16px}.card b{display:block;font-size:25px;font-weight:600;letter-spacing:-.02em}
.card span{color:var(--dim);font-size:13px}.box{margin:12px 0}.box ul{list-style:none;margin:0;padding:0}.box li{padding:2px 0}
.mark{display:inline-block;width:62px;font-weight:600}.ok{color:var(--good)}.no{color:var(--bad)}.warn{border-color:#e3a008;background:#fffaeb}
.plots{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(440px,1fr))}.plot svg{width:100%;height:auto;display:block}
.legend{color:var(--dim);font-size:13px}.legend span{margin-right:16px}.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px}
table{border-collapse:collapse;width:100%;font-size:13.5px}td,th{text-align:left;padding:4px 10px 4px 0;border-bottom:1px solid var(--line);vertical-align:top;font-weight:400}
td.n{text-align:right;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}th{color:var(--dim)}.bars td:nth-child(2){width:50%}.bars i{display:block;height:14px;border-radius:3px;background:#1f6feb}.bars tr:not(:first-child) i{background:#d95f02}.two{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(440px,1fr))}";

fn head(body: &mut String, report: &Report) {
    let (word, class) = if report.passed { ("passed", "good") } else { ("failed", "bad") };
    let commit = report.commit.as_deref().map_or("unknown", |commit| &commit[..commit.len().min(10)]);
    let _ = write!(
        body,
        "<h1>{}<span class=\"badge {class}\">{word}</span></h1><p class=sub>{} · {} {} · {} · commit {}</p>",
        report.scenario,
        report.started(),
        escaped(report.configuration["protocol"].as_str().unwrap_or("")),
        escaped(&report.target),
        escaped(&machine(&report.machine)),
        escaped(commit),
    );
}

fn cards(body: &mut String, report: &Report) {
    let connections = &report.connections;
    let mut all = vec![(
        grouped(connections.held),
        format!("connections held of {}, {} lost", grouped(connections.asked), grouped(connections.lost)),
    )];
    let mut add = |value: Option<f64>, digits: usize, unit: &str, what: &str| {
        if let Some(value) = value {
            all.push((format!("{value:.digits$} {unit}"), what.to_owned()));
        }
    };
    add(report.memory.user_bytes_per_connection, 0, "B", "user space per connection");
    add(report.memory.kernel_bytes_per_connection, 0, "B", "kernel per connection, one end");
    add(report.cpu.us_per_handshake, 0, "µs", "server CPU per handshake");
    add(report.cpu.us_per_heartbeat, 1, "µs", "server CPU per heartbeat");
    add(report.cpu.idle_share.map(|share| share * 100.0), 2, "%", "of a core while idle");
    add(report.cpu.us_per_message, 1, "µs", "server CPU per message");
    let latency = format!("{}, 99th percentile", report.latency_is_of());
    add(report.latency_us.p99.map(|micros| micros / 1e3), 2, "ms", &latency);
    add(report.messages.received.map(|received| received as f64), 0, "", "messages received");
    add(report.messages.lost.map(|lost| lost as f64), 0, "", "lost");
    add(report.messages.duplicated.map(|twice| twice as f64), 0, "", "duplicated");
    add(report.recovery_s.p100, 2, "s", "until all were back");
    add(report.expiry.missed.and(report.expiry.right).map(|right| right as f64), 0, "", "expired in time");
    add(report.expiry.lateness_ms.p999, 1, "ms", "after the deadline, 99.9th percentile");
    body.push_str("<div class=cards>");
    for (value, what) in all {
        let _ = write!(body, "<div class=card><b>{value}</b><span>{what}</span></div>");
    }
    body.push_str("</div>");
}

fn conditions(body: &mut String, report: &Report) {
    body.push_str("<div class=box><ul>");
    for condition in &report.conditions {
        let (word, class) = if condition.holds { ("ok", "ok") } else { ("failed", "no") };
        let (name, found) = (escaped(&condition.name), escaped(&condition.found));
        let _ = write!(body, "<li><span class=\"mark {class}\">{word}</span>{name}: {found}</li>");
    }
    body.push_str("</ul></div>");
    if let Some(why) = &report.generator.why {
        let why = escaped(why);
        let _ = write!(
            body,
            "<div class=\"box warn\"><b>The harness itself was the bottleneck</b>: {why}. Latencies and rates are partly its own.</div>"
        );
    }
}

fn timelines(body: &mut String, report: &Report) {
    let line = |name: &str, of: &dyn Fn(&Sample) -> Option<f64>| Series {
        name: name.to_owned(),
        points: report.timeline.iter().filter_map(|sample| Some((sample.at_s, of(sample)?))).collect(),
    };
    plot(
        body,
        "Connections",
        Axis::Seconds,
        "connected",
        &[line("connected", &|sample| Some(sample.connected as f64))],
    );
    let rates = [line("came up", &|sample| Some(sample.connects_per_s))];
    plot(body, "New connections", Axis::Seconds, "per second", &rates);
    let memory = |sample: &Sample| Some(sample.server_rss_bytes? as f64 / f64::from(1 << 20));
    plot(body, "Server memory", Axis::Seconds, "MiB resident", &[line("resident", &memory)]);
    let cpu = [
        line("server", &|sample| Some(sample.server_cpu_share? * 100.0)),
        line("busiest thread of the harness", &|sample| Some(sample.generator_cpu_share * 100.0)),
    ];
    plot(body, "CPU", Axis::Seconds, "% of a core", &cpu);
    let late = [line("worst in each half second", &|sample| Some(sample.lateness_ms))];
    plot(body, "Lateness of the harness", Axis::Seconds, "ms", &late);
}

fn distributions(body: &mut String, report: &Report) {
    let of = |is_lateness: bool| {
        let curves = report.curves.iter().filter(move |curve| curve.is_lateness == is_lateness);
        let place_of_max = |points: &[(f64, f64)]| {
            let tail = points.iter().rev().find(|point| point.0 < 1.0).map_or(1.0, |point| plot::nines(point.0, 9.0));
            (tail + 0.5).max(1.5)
        };
        let last = report.curves.iter().filter(|curve| curve.is_lateness == is_lateness);
        let last = last.map(|curve| place_of_max(&curve.points)).fold(1.5, f64::max);
        let series = curves.map(|curve| Series {
            name: curve.name.to_owned(),
            points: curve.points.iter().map(|&(quantile, ms)| (plot::nines(quantile, last), ms)).collect(),
        });
        series.collect::<Vec<_>>()
    };
    plot(body, "Latency distribution", Axis::Nines, "ms", &of(false));
    plot(body, "Lateness distribution", Axis::Nines, "ms", &of(true));
}

fn plot(body: &mut String, title: &str, axis: Axis, unit: &str, series: &[Series]) {
    if let Some(svg) = plot::draw(axis, unit, series) {
        let legend = plot::legend(series);
        let _ = write!(body, "<div class=plot><h2>{title}</h2><div class=legend>{legend}</div>{svg}</div>");
    }
}

fn details(body: &mut String, report: &Report) {
    body.push_str("<div class=two style=\"margin-top:12px\"><div class=box><h2>Metrics</h2><table>");
    body.push_str("<tr><th></th><th>p50</th><th>p99</th><th>p99.9</th><th>max</th><th>times</th></tr>");
    percentiles(body, "time to connect, ms", &report.connect_latency_us, 1e3);
    percentiles(body, &format!("{}, ms", report.latency_is_of()), &report.latency_us, 1e3);
    percentiles(body, "expiry after deadline, ms", &report.expiry.lateness_ms, 1.0);
    percentiles(body, "harness late by, ms", &report.generator.lateness_us, 1e3);
    body.push_str("</table><table>");
    for (name, value) in report.details.iter().chain(&report.failures) {
        row(body, &name.replace('_', " "), value);
    }
    body.push_str("</table></div><div class=box><h2>Configuration</h2><table>");
    for (name, value) in report.configuration.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        row(body, &name.replace('_', " "), value);
    }
    body.push_str("</table></div></div>");
}

fn row(body: &mut String, name: &str, value: &serde_json::Value) {
    let _ = write!(body, "<tr><td>{}</td><td class=n>{}</td></tr>", escaped(name), escaped(&shown(value)));
}

fn percentiles(body: &mut String, name: &str, percentiles: &Percentiles, divisor: f64) {
    if percentiles.count == 0 {
        return;
    }
    let _ = write!(body, "<tr><td>{name}</td>");
    for value in [percentiles.p50, percentiles.p99, percentiles.p999, percentiles.max].into_iter().flatten() {
        let _ = write!(body, "<td class=n>{:.2}</td>", value / divisor);
    }
    let _ = write!(body, "<td class=n>{}</td></tr>", grouped(percentiles.count));
}

/// 1234567 as 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_text_cannot_become_markup() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(escaped("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}

//! `broadcast`: the whole fleet is told something, several times.

use std::sync::Arc;
use std::time::Duration;

use crate::admin::Admin;
use crate::cli::Broadcast;
use crate::fleet::{ComeBack, Count, Ledger, Listening, Order, Stamp, Whose};
use crate::report::{Messages, Percentiles};
use crate::run::Run;

/// How long after the server is done messages may still be under way.
const LAST_ONES: Duration = Duration::from_secs(10);

/// Passes when each device was told each broadcast exactly once.
pub fn run(run: &mut Run, options: &Broadcast) {
    let all = options.common.connections;
    let total = u64::from(all) * u64::from(options.rounds);
    run.fleet.order(&Order::ComeBack(ComeBack::BackOff(Duration::from_secs(1))));
    let up = run.connect(0..all).get(Count::Up);
    run.pass("settling", options.common.settle);

    let ledger = Arc::new(Ledger::new(all, options.rounds.into()));
    run.fleet.order(&Order::Listen(Listening { ledger: Arc::clone(&ledger), whose: Whose::ToAll }));
    run.begin_measuring();
    let admin = run.admin();
    let before = run.snapshot();
    // The server shares the rate out among its workers, and an uneven share takes longer.
    let limit = Duration::from_secs_f64(f64::from(all) / f64::from(options.per_second)) * 4 + LAST_ONES;
    let (mut told, mut refused, mut longest) = (0, 0, 0.0f64);
    for round in 0..options.rounds {
        let (began, expected) = (run.elapsed(), ledger.received() + u64::from(all));
        let stamp = Stamp { slot: ledger.slot(0, round.into()), due: run.now() };
        let Some(place) = begin(&admin, options, stamp) else { continue };
        run.wait("broadcasting", limit, |_| ledger.received() >= expected);
        longest = longest.max(run.elapsed().saturating_sub(began).as_secs_f64());
        let progress = end(run, &admin, &place);
        told += progress.0;
        refused += progress.1;
    }
    let after = run.snapshot();
    run.pass("watching for duplicates", options.common.settle);
    run.collect();

    let sums = ledger.sums();
    run.report.latency_us = Percentiles::of(&run.findings.messages, 1.0);
    run.report.messages = Messages {
        sent: Some(told),
        received: Some(sums.received),
        lost: Some(told.saturating_sub(sums.received)),
        duplicated: Some(sums.duplicated),
    };
    run.report.cpu.us_per_message = Run::cpu_per(&before, &after, sums.received);
    run.detail("longest_broadcast_s", longest);
    run.detail("shortest_possible_s", f64::from(all) / f64::from(options.per_second));
    run.detail("refused", refused);
    let end = run.snapshot();
    let counts = run.measure_end(&end);
    let lost = counts.get(Count::Lost);
    run.require("every device was connected", up == u64::from(all), format!("{up} of {all}"));
    run.require("no connection was lost", lost == 0, format!("{lost} lost"));
    run.require("the server has told every device each time", told == total, format!("{told} of {total}"));
    run.require("every message arrived", sums.received == total, format!("{} of {total}", sums.received));
    run.require("none arrived twice", sums.duplicated == 0, format!("{}", sums.duplicated));
}

/// Begins one; where its progress is shown, if the server took it.
fn begin(admin: &Admin, options: &Broadcast, stamp: Stamp) -> Option<String> {
    let mut payload = Vec::new();
    stamp.encode(options.payload, &mut payload);
    let text = std::str::from_utf8(&payload).expect("a stamp is ASCII");
    let (prefix, rate) = (&options.common.device_prefix, options.per_second);
    let body = format!(r#"{{"topic":"load","payload":"{text}","prefix":"{prefix}","per_second":{rate}}}"#);
    let (_, answer) = admin.post("/v1/broadcast", &body).ok()?;
    Some(answer["url"].as_str()?.to_owned())
}

/// Waits until the server is done with it: how many devices it told, and how many took nothing.
fn end(run: &mut Run, admin: &Admin, place: &str) -> (u64, u64) {
    let mut progress = serde_json::Value::Null;
    for _ in 0..LAST_ONES.as_millis() / 100 {
        progress = admin.get(place).map_or(serde_json::Value::Null, |(_, body)| body);
        if progress["state"] == "done" {
            break;
        }
        run.pass("waiting for the server's count", Duration::from_millis(100));
    }
    (progress["sent"].as_u64().unwrap_or(0), progress["refused"].as_u64().unwrap_or(0))
}

//! `uplink`: devices publish; whoever follows the gateway's events counts what comes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::follower::Follower;
use crate::cli::Uplink;
use crate::fleet::{ComeBack, Count, Ledger, Order, Publishing};
use crate::report::{Curve, Messages, Percentiles};
use crate::run::Run;

/// How long messages and acknowledgements may still be under way at the end.
const LAST_ONES: Duration = Duration::from_secs(10);

/// Passes when each message came to the backend once, or, without acknowledgements, was dropped and counted so.
pub fn run(run: &mut Run, options: &Uplink) {
    let all = options.common.connections;
    let rounds = options.load.total(options.common.duration).div_ceil(all.into());
    let total = rounds * u64::from(all);
    run.fleet.order(&Order::ComeBack(ComeBack::BackOff(Duration::from_secs(1))));
    let up = run.connect(0..all).get(Count::Up);
    run.pass("settling", options.common.settle);

    let follower = Arc::new(Follower::new(Ledger::new(all, rounds), &options.common.device_prefix));
    follower.start(run.admin(), run.clock());
    run.wait("finding the events", LAST_ONES, |_| follower.has_begun.load(Ordering::Relaxed));
    let acknowledged = options.ack.then(|| Arc::new(Ledger::new(all, rounds)));
    run.begin_measuring();
    let (before, began) = (run.snapshot(), run.elapsed());
    let every = Duration::from_secs_f64(f64::from(all) / options.load.messages_per_second);
    run.fleet.order(&Order::Publish(Publishing {
        devices: 0..all,
        from: run.now() + 10_000,
        every,
        rounds: u32::try_from(rounds).unwrap_or(u32::MAX),
        topic: Arc::from("load"),
        bytes: options.load.payload,
        acknowledged: acknowledged.clone(),
    }));
    let limit = every.mul_f64(rounds as f64) * 2 + Duration::from_mins(1);
    run.wait("publishing", limit, |counts| counts.get(Count::MessagesSent) >= total);
    let took = run.elapsed().saturating_sub(began);
    run.wait("waiting for the last ones", LAST_ONES, |_| {
        let answered = acknowledged.as_ref().is_none_or(|ledger| ledger.received() >= total);
        follower.ledger.received() >= total && answered
    });
    let after = run.snapshot();
    run.pass("watching for duplicates", options.common.settle);
    run.collect();
    follower.is_over.store(true, Ordering::Relaxed);

    let (sent, arrived) = (run.fleet.counts().get(Count::MessagesSent), follower.ledger.sums());
    let seen = follower.latencies();
    run.report.latency_us = Percentiles::of(&seen, 1.0);
    run.report.curves.extend(Curve::of("message from a device", &seen, false));
    run.report.messages = Messages {
        sent: Some(sent),
        received: Some(arrived.received),
        lost: Some(sent.saturating_sub(arrived.received)),
        duplicated: Some(arrived.duplicated),
    };
    run.report.cpu.us_per_message = Run::cpu_per(&before, &after, sent);
    run.detail("messages_per_s", (sent as f64 / took.as_secs_f64()).round());
    run.detail("events_missed_by_the_harness", follower.missed.load(Ordering::Relaxed));
    run.detail("other_messages", follower.others.load(Ordering::Relaxed));
    let dropped = before
        .metrics
        .zip(after.metrics)
        .map_or(0.0, |(before, after)| after.growth(&before, "pulsegate_messages_dropped_total", ""));
    run.detail("server_dropped", dropped);
    let end = run.snapshot();
    let counts = run.measure_end(&end);
    let lost = counts.get(Count::Lost);
    run.require("every device was connected", up == u64::from(all), format!("{up} of {all}"));
    run.require("no connection was lost", lost == 0, format!("{lost} lost"));
    run.require("every message was sent", sent == total, format!("{sent} of {total}"));
    if let Some(ledger) = &acknowledged {
        let latencies = Percentiles::of(&run.findings.acknowledged, 1.0);
        run.detail("acknowledged_latency_us", serde_json::to_value(latencies).expect("percentiles are plain data"));
        let sums = ledger.sums();
        run.require("every message was acknowledged", sums.received == total, format!("{} of {total}", sums.received));
        run.require("none was acknowledged twice", sums.duplicated == 0, format!("{}", sums.duplicated));
        run.require("every message arrived", arrived.received == total, format!("{} of {total}", arrived.received));
    } else {
        let accounted = arrived.received + dropped as u64;
        let text = format!("{} arrived, {dropped:.0} dropped, of {total}", arrived.received);
        run.require("every message arrived, or was dropped and counted", accounted == total, text);
    }
    run.require("none arrived twice", arrived.duplicated == 0, format!("{}", arrived.duplicated));
    run.require("none came under another name", arrived.strays == 0, format!("{}", arrived.strays));
}

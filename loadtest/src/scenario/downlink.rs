//! `downlink`: commands to single devices through the HTTP API.

use std::sync::Arc;
use std::time::Duration;

use super::senders::{Plan, Senders};
use crate::cli::Downlink;
use crate::fleet::{ComeBack, Count, Ledger, Listening, Order, Whose};
use crate::report::{Curve, Messages, Percentiles};
use crate::run::Run;

/// How long messages that the server took may still be under way at the end.
const LAST_ONES: Duration = Duration::from_secs(10);

/// Passes when each message was taken, came to its device, and came once.
pub fn run(run: &mut Run, options: &Downlink) {
    let all = options.common.connections;
    let told = options.to.unwrap_or(all).min(all);
    let total = options.load.total(options.common.duration);
    run.fleet.order(&Order::ComeBack(ComeBack::BackOff(Duration::from_secs(1))));
    let up = run.connect(0..all).get(Count::Up);
    run.pass("settling", options.common.settle);

    let rounds = total.div_ceil(told.into());
    let (arrived, taken) = (Arc::new(Ledger::new(all, rounds)), Arc::new(Ledger::new(all, rounds)));
    run.fleet.order(&Order::Listen(Listening { ledger: Arc::clone(&arrived), whose: Whose::Own }));
    run.begin_measuring();
    let (before, began) = (run.snapshot(), run.elapsed());
    let plan = Plan {
        prefix: options.common.device_prefix.clone(),
        devices: (0, told),
        total,
        rate: options.load.messages_per_second,
        // The senders need a moment to come up.
        from: run.now() + 100_000,
        bytes: options.load.payload,
        ack: options.ack,
        taken: Arc::clone(&taken),
    };
    let senders = Senders::start(plan, options.senders, &run.admin(), run.clock());
    let limit = Duration::from_secs_f64(total as f64 / options.load.messages_per_second) * 4 + Duration::from_mins(1);
    run.wait("sending", limit, |_| senders.are_done());
    let took = run.elapsed().saturating_sub(began);
    let sent = senders.end();
    run.wait("waiting for the last ones", LAST_ONES, |_| arrived.received() >= taken.received());
    let after = run.snapshot();
    // What comes twice may come late.
    run.pass("watching for duplicates", options.common.settle);
    run.collect();

    let (taken, arrived) = (taken.sums().received, arrived.sums());
    run.report.latency_us = Percentiles::of(&run.findings.messages, 1.0);
    run.report.messages = Messages {
        sent: Some(taken),
        received: Some(arrived.received),
        lost: Some(taken.saturating_sub(arrived.received)),
        duplicated: Some(arrived.duplicated),
    };
    run.report.cpu.us_per_message = Run::cpu_per(&before, &after, taken);
    run.report.curves.extend(Curve::of("answer to the command", &sent.answers, false));
    let answers = Percentiles::of(&sent.answers, 1.0);
    run.detail("answer_latency_us", serde_json::to_value(answers).expect("percentiles are plain data"));
    let late = Percentiles::of(&sent.begun_late, 1.0);
    run.detail("requests_begun_late_us", serde_json::to_value(late).expect("percentiles are plain data"));
    run.detail("messages_per_s", (taken as f64 / took.as_secs_f64()).round());
    run.detail("outcomes", serde_json::to_value(&sent.outcomes).expect("counts are plain data"));
    let end = run.snapshot();
    let counts = run.measure_end(&end);
    let lost = counts.get(Count::Lost);
    run.require("every device was connected", up == u64::from(all), format!("{up} of {all}"));
    run.require("no connection was lost", lost == 0, format!("{lost} lost"));
    let wanted = if options.ack { "acknowledged" } else { "delivered" };
    let answered = sent.times(wanted);
    run.require(format!("every message was {wanted}"), answered == total, format!("{answered} of {total}"));
    run.require("every message arrived", arrived.received == total, format!("{} of {total}", arrived.received));
    run.require("none arrived twice", arrived.duplicated == 0, format!("{}", arrived.duplicated));
    run.require("none came to another device", arrived.strays == 0, format!("{}", arrived.strays));
}

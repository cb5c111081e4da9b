//! `fan-in` and `fan-out`: many publishers and one subscriber, and the other way round, over MQTT.
//!
//! ```text
//!  fan-in:   1, 2, 3 ... publish  --> server --> 0 subscribes
//!  fan-out:  0 publishes          --> server --> 1, 2, 3 ... subscribe
//! ```

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::cli::{FAN_TOPIC, Fan};
use crate::fleet::{ComeBack, Count, Ledger, Listening, Order, Publishing, Whose};
use crate::report::{Messages, Percentiles};
use crate::run::Run;

/// How long messages may still be under way at the end.
const LAST_ONES: Duration = Duration::from_secs(20);

/// What differs between the two.
struct Way {
    publishers: Range<u32>,
    whose: Whose,
    /// Deliveries of each message.
    copies: u64,
}

/// Passes when the one subscriber got every message once.
pub fn run_in(run: &mut Run, options: &Fan) {
    let way = Way { publishers: 1..options.common.connections, whose: Whose::FromAny, copies: 1 };
    run_either(run, options, &way);
}

/// Passes when every subscriber got every message once.
pub fn run_out(run: &mut Run, options: &Fan) {
    let subscribers = options.common.connections.saturating_sub(1);
    let way = Way { publishers: 0..1, whose: Whose::ToAll, copies: subscribers.into() };
    run_either(run, options, &way);
}

fn run_either(run: &mut Run, options: &Fan, way: &Way) {
    let (all, settle) = (options.common.connections, options.common.settle);
    let publishers = way.publishers.len().max(1) as u64;
    let rounds = options.load.total(options.common.duration).div_ceil(publishers);
    let (total, deliveries) = (rounds * publishers, rounds * publishers * way.copies);
    run.fleet.order(&Order::ComeBack(ComeBack::BackOff(Duration::from_secs(1))));
    let up = run.connect(0..all).get(Count::Up);
    run.pass("settling", settle);

    let arrived = Arc::new(Ledger::new(all, rounds));
    let acknowledged = (options.qos > 0).then(|| Arc::new(Ledger::new(all, rounds)));
    run.fleet.order(&Order::Listen(Listening { ledger: Arc::clone(&arrived), whose: way.whose }));
    run.begin_measuring();
    let (before, began) = (run.snapshot(), run.elapsed());
    let every = Duration::from_secs_f64(publishers as f64 / options.load.messages_per_second);
    run.fleet.order(&Order::Publish(Publishing {
        devices: way.publishers.clone(),
        from: run.now() + 10_000,
        every,
        rounds: u32::try_from(rounds).unwrap_or(u32::MAX),
        topic: Arc::from(FAN_TOPIC),
        bytes: options.load.payload,
        acknowledged: acknowledged.clone(),
    }));
    let limit = every.mul_f64(rounds as f64) * 2 + Duration::from_mins(1);
    run.wait("publishing", limit, |counts| counts.get(Count::MessagesSent) >= total);
    let took = run.elapsed().saturating_sub(began);
    // What is on its way arrives as long as anything does.
    let mut before_that = u64::MAX;
    while arrived.received() != before_that && arrived.received() < deliveries {
        before_that = arrived.received();
        run.wait("waiting for the last ones", LAST_ONES, |_| arrived.received() >= deliveries);
    }
    let until = run.elapsed().saturating_sub(began);
    let after = run.snapshot();
    run.pass("watching for duplicates", settle);
    run.collect();

    let (sent, sums) = (run.fleet.counts().get(Count::MessagesSent), arrived.sums());
    run.report.latency_us = Percentiles::of(&run.findings.messages, 1.0);
    run.report.messages = Messages {
        sent: Some(sent),
        received: Some(sums.received),
        lost: Some((sent * way.copies).saturating_sub(sums.received)),
        duplicated: Some(sums.duplicated),
    };
    run.report.cpu.us_per_message = Run::cpu_per(&before, &after, deliveries.max(total));
    run.detail("messages_per_s", (sent as f64 / took.as_secs_f64()).round());
    run.detail("deliveries_per_s", (sums.received as f64 / until.as_secs_f64()).round());
    let end = run.snapshot();
    let counts = run.measure_end(&end);
    let lost = counts.get(Count::Lost);
    run.require("every device was connected", up == u64::from(all), format!("{up} of {all}"));
    run.require("no connection was lost", lost == 0, format!("{lost} lost"));
    run.require("every message was sent", sent == total, format!("{sent} of {total}"));
    run.require("every message arrived", sums.received == deliveries, format!("{} of {deliveries}", sums.received));
    run.require("none arrived twice", sums.duplicated == 0, format!("{}", sums.duplicated));
    run.require("none came that was never sent", sums.strays == 0, format!("{}", sums.strays));
    if let Some(ledger) = &acknowledged {
        let latencies = Percentiles::of(&run.findings.acknowledged, 1.0);
        run.detail("acknowledged_latency_us", serde_json::to_value(latencies).expect("percentiles are plain data"));
        let sums = ledger.sums();
        run.require("every message was acknowledged", sums.received == total, format!("{} of {total}", sums.received));
    }
}

//! `dark`: a share of the fleet falls silent without closing.

use std::time::Duration;

use crate::cli::{Dark, portion};
use crate::fleet::{ComeBack, Count, Order};
use crate::report::Percentiles;
use crate::run::Run;

/// Passes when each silent device was expired in its time and for that reason, and nobody else was.
pub fn run(run: &mut Run, options: &Dark) {
    let all = options.common.connections;
    let dark = portion(all, options.share).min(all);
    run.fleet.order(&Order::ComeBack(ComeBack::Never));
    run.connect(0..all);
    // Silence falls upon each phase of the heartbeat: after a whole interval all have been pinged once.
    run.pass("settling", options.common.settle);
    let before = run.snapshot();
    run.begin_measuring();
    let was_up = run.fleet.counts().get(Count::Up);
    let from = run.elapsed();
    run.fleet.order(&Order::Silence { devices: 0..dark });
    run.wait("falling silent", Duration::from_secs(10), |counts| counts.get(Count::Silent) >= u64::from(dark));
    let bound = Duration::from_millis(run.fleet.counts().get(Count::LongestBound));
    run.wait("waiting for expiries", bound + options.grace, |counts| counts.get(Count::Silent) == 0);
    let took = run.elapsed().saturating_sub(from);
    let missed = run.fleet.counts().get(Count::Silent);
    // The others are watched as long again as the silent ones were.
    run.pass("watching the others", options.common.duration);

    run.collect();
    let end = run.snapshot();
    let counts = run.measure_end(&end);
    let expiries = run.findings.expiries.clone();
    let falsely = counts.get(Count::FalselyExpired) + expiries.early;
    run.report.expiry.r#false = Some(falsely);
    run.report.expiry.missed = Some(missed);
    // Those that were missed may have been expired since.
    let in_time = expiries.right.saturating_sub(missed);
    run.report.expiry.right = Some(in_time);
    let lateness = Percentiles::of(&run.findings.expiry_lateness, 1_000.0);
    let within = |ms: u64| run.findings.expiry_lateness.count_between(0, ms * 1_000 + 999);
    let within: serde_json::Map<_, _> =
        [10, 100, 200, 300, 500].map(|ms| (ms.to_string(), within(ms).into())).into_iter().collect();
    run.detail("expired_within_ms_of_deadline", within);
    run.detail("silent", dark);
    run.detail("last_expiry_after_s", took.as_secs_f64());
    run.detail("wrong_reason", expiries.wrong_reason);
    let lost = counts.get(Count::Lost);

    run.require("every device was connected before", was_up == u64::from(all), format!("{was_up} of {all}"));
    run.require("nobody was expired falsely", falsely == 0, format!("{falsely}"));
    run.require(
        "nobody was missed",
        missed == 0 && expiries.right + expiries.early + expiries.wrong_reason == u64::from(dark),
        format!("{missed} missed, {in_time} of {dark} expired in time"),
    );
    run.require(
        "each was told the right reason",
        expiries.wrong_reason == 0,
        format!("{} were not", expiries.wrong_reason),
    );
    run.require("no other connection was lost", lost == 0, format!("{lost} lost"));
    let limit = options.max_lateness.as_secs_f64() * 1e3;
    let late = lateness.p999.unwrap_or(0.0);
    run.require(
        format!("99.9 % were expired within {limit:.0} ms of their deadline"),
        late <= limit,
        format!("{late:.1} ms"),
    );
    if let (Some(before), Some(after)) = (&before.metrics, &end.metrics) {
        let counted = after.growth(before, "pulsegate_connections_closed_total", "reason=\"expired\"");
        let holds = (counted - f64::from(dark)).abs() < 0.5;
        run.require("the server counts as many expired", holds, format!("{counted:.0} of {dark}"));
        let devices = after.sum("pulsegate_devices", "");
        let rest = f64::from(all - dark);
        run.require(
            "the server counts all others as connected",
            (devices - rest).abs() < 0.5,
            format!("{devices:.0} of {rest:.0}"),
        );
    }
}

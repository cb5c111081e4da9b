//! `storm`: all but a control group are cut off at once and come back.

use crate::cli::{CutKind, Storm};
use crate::fleet::{ComeBack, Count, Cut, Order};
use crate::report::{Percentiles, Recovery};
use crate::run::Run;

/// Passes when all are back, and the control group lost no connection and was not falsely expired.
pub fn run(run: &mut Run, options: &Storm) {
    let all = options.common.connections;
    let control = crate::cli::portion(all, options.control);
    let come_back = if options.back_off.is_zero() { ComeBack::AtOnce } else { ComeBack::BackOff(options.back_off) };
    let calm_share = super::begin_in_calm(run, 0..control, options.every);

    run.fleet.order(&Order::ComeBack(come_back));
    run.findings.connect.reset();
    let (before, earlier) = (run.snapshot(), run.fleet.counts());
    let how = match options.cut {
        CutKind::Reset => Cut::Reset,
        CutKind::Fin => Cut::Fin,
    };
    run.fleet.order(&Order::Cut { devices: control..all, how });
    let cut = u64::from(all - control);
    let goal = earlier.get(Count::Established) + cut;
    let patience = options.common.duration + options.common.connect_timeout;
    run.wait("coming back", patience, |counts| counts.get(Count::Established) >= goal);
    let (after, later) = (run.snapshot(), run.fleet.counts());
    let came = later.get(Count::Established) - earlier.get(Count::Established);
    // What the control group needs is known from the calm; it is not the handshakes'.
    let calm = calm_share.map(|share| share * after.at.duration_since(before.at).as_secs_f64() * 1e6);
    run.report.cpu.us_per_handshake =
        Run::cpu_per(&before, &after, came).zip(calm).map(|(micros, calm)| micros - calm / came as f64);
    run.collect();
    // Of the storm alone: what follows is calm again.
    run.report.latency_us = Percentiles::of(&run.findings.beats_control, 1.0);
    run.pass("afterwards", options.common.settle);

    run.collect();
    run.report.recovery_s = Recovery::of(&run.findings.recovery, cut);
    let end = run.snapshot();
    let counts = run.measure_end(&end);
    run.detail("cut", cut);
    run.detail("control_group", control);
    run.detail("resumed_in_the_storm", counts.get(Count::Resumed) - earlier.get(Count::Resumed));
    if let (Some(before), Some(after)) = (&before.metrics, &end.metrics) {
        for kind in ["full", "resumed"] {
            let name = format!("pulsegate_handshakes_{kind}_total");
            run.detail(&format!("server_handshakes_{kind}"), after.growth(before, &name, ""));
        }
        run.detail("server_refused", after.growth(before, "pulsegate_connections_refused_total", ""));
        run.detail("server_expired", after.growth(before, "pulsegate_connections_closed_total", "reason=\"expired\""));
    }
    let (held, lost, expired) =
        (run.report.connections.held, run.findings.control_lost, counts.get(Count::FalselyExpired));
    run.require("every device is back", held == u64::from(all), format!("{held} of {all}"));
    run.require("the control group lost no connection", lost == 0, format!("{lost} of {control} lost"));
    run.require("nobody was falsely expired", expired == 0, format!("{expired}"));
}

//! `churn`: devices come and go by chance, for a long time.

use std::time::Duration;

use crate::cli::Churn;
use crate::fleet::{self, ComeBack, Count, Order};
use crate::report::Sample;
use crate::run::Run;

/// Passes when both sides agree on who is there at the end, nobody was lost, and (where asked) memory does not grow.
pub fn run(run: &mut Run, options: &Churn) {
    let all = options.common.connections;
    run.fleet.order(&Order::ComeBack(ComeBack::BackOff(Duration::from_secs(1))));
    run.wait_for_calm();
    let start = run.snapshot();
    run.connect(0..all);
    run.begin_measuring();
    let earlier = run.fleet.counts();
    let (before, from) = (run.snapshot(), run.elapsed());
    let churn = fleet::Churn { life: options.life, pause: options.pause, polite: options.polite };
    run.fleet.order(&Order::Churn(churn));
    run.pass("coming and going", options.common.duration);
    let (after, later) = (run.snapshot(), run.fleet.counts());
    let came = later.get(Count::Established) - earlier.get(Count::Established);
    run.report.cpu.us_per_handshake = Run::cpu_per(&before, &after, came);
    run.detail("came_back", came);
    run.detail("came_back_per_s", (came as f64 / options.common.duration.as_secs_f64()).round());
    run.detail("left_politely", later.get(Count::LeftPolitely));
    run.detail("left_rudely", later.get(Count::LeftRudely));

    // The second half: the first one still fills what is filled once.
    let middle = (from + options.common.duration / 2).as_secs_f64();
    let slope = memory_slope(&run.report.timeline, middle);
    if let Some(slope) = slope {
        run.detail("memory_slope_bytes_per_minute", slope.round());
    }

    run.fleet.order(&Order::Leave { devices: 0..all });
    run.wait("leaving", Duration::from_secs(30), |counts| counts.get(Count::Up) + counts.get(Count::InFlight) == 0);
    run.pass("settling", options.common.settle);
    let end = run.snapshot();
    let counts = run.measure_end(&end);
    let lost = counts.get(Count::Lost);
    run.report.connections.held = later.get(Count::Up);
    run.require("no connection was lost", lost == 0, format!("{lost} lost"));
    run.require("every device could leave", counts.get(Count::Up) == 0, format!("{} remain", counts.get(Count::Up)));
    if let (Some(start), Some(end)) = (&start.metrics, &end.metrics) {
        let (there, expected) = (end.sum("pulsegate_connections", ""), start.sum("pulsegate_connections", ""));
        let holds = (there - expected).abs() < 0.5;
        run.require(
            "the server holds as many connections as before",
            holds,
            format!("{there:.0}, before {expected:.0}"),
        );
        let closed = end.growth(start, "pulsegate_connections_closed_total", "");
        let accepted = end.growth(start, "pulsegate_connections_accepted_total", "");
        let holds = (accepted - closed).abs() < 0.5;
        let text = format!("{accepted:.0} accepted, {closed:.0} ended");
        run.require("the server has ended as many as it accepted", holds, text);
    }
    if let Some(limit) = options.max_slope {
        let found = slope.map_or("not measured".to_owned(), |slope| format!("{slope:.0}"));
        let name = format!("memory grows by at most {limit:.0} bytes a minute");
        run.require(name, slope.is_some_and(|slope| slope <= limit), found);
    }
}

/// The slope of the line that fits best through the server's memory after `from_s`, in bytes a minute.
fn memory_slope(timeline: &[Sample], from_s: f64) -> Option<f64> {
    let after = timeline.iter().filter(|sample| sample.at_s >= from_s);
    let points: Vec<(f64, f64)> =
        after.filter_map(|sample| Some((sample.at_s / 60.0, sample.server_rss_bytes? as f64))).collect();
    if points.len() < 3 {
        return None;
    }
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
    let (covariance, variance) = points.iter().fold((0.0, 0.0), |(covariance, variance), (x, y)| {
        (covariance + (x - mean_x) * (y - mean_y), variance + (x - mean_x).powi(2))
    });
    Some(covariance / variance)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_s: f64, rss: u64) -> Sample {
        Sample { at_s, server_rss_bytes: Some(rss), ..Sample::default() }
    }

    #[test]
    fn the_slope_is_that_of_the_second_half() {
        let timeline: Vec<_> = (0..120u32)
            .map(|second| sample(f64::from(second), if second < 60 { 7 } else { 1_000_000 + u64::from(second) * 100 }))
            .collect();
        assert!((memory_slope(&timeline, 60.0).unwrap() - 6_000.0).abs() < 1e-3);
        assert_eq!(memory_slope(&timeline, 118.5), None);
    }
}

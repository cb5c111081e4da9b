//! `hostile`: attacks of every kind beside a healthy control group.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use super::attack::{self, Attack, Means, Outcome};
use crate::cli::Hostile;
use crate::fleet::Count;
use crate::fleet::protocol::Protocol;
use crate::report::Percentiles;
use crate::run::{Run, client_tls};

/// Passes when the control group notices nothing, and no attacker is borne for long.
pub fn run(run: &mut Run, options: &Hostile) {
    let all = options.common.connections;
    super::begin_in_calm(run, 0..all, options.every);
    let before = run.snapshot();
    let tls = client_tls(&options.common).expect("the fleet has loaded the same files");
    let means = Arc::new(Means::new(options.common.target, tls, options.attackers as usize));
    let attacks: Vec<_> = attacks(options.common.protocol).map(|kind| (kind, begin(kind, &means))).collect();
    run.pass("under attack", options.common.duration);
    run.collect();
    run.report.latency_us = Percentiles::of(&run.findings.beats_control, 1.0);
    let during = run.snapshot();
    means.is_over.store(true, Ordering::Relaxed);
    let outcomes: Vec<_> = attacks.into_iter().map(|(kind, thread)| (kind, end(thread))).collect();
    run.pass("afterwards", options.common.settle);

    let end = run.snapshot();
    let counts = run.measure_end(&end);
    let mut longest = 0.0f64;
    for (kind, outcome) in &outcomes {
        longest = longest.max(outcome.longest_life_s);
        run.detail(kind.label(), serde_json::to_value(outcome).expect("an outcome is plain data"));
    }
    if let (Some(before), Some(during)) = (before.usage, during.usage) {
        run.detail("server_memory_growth_bytes", during.rss_bytes as i64 - before.rss_bytes as i64);
    }
    if let Some(share) = Run::cpu_share(&before, &during) {
        run.detail("server_cpu_share", share);
    }
    let (held, lost) = (run.report.connections.held, counts.get(Count::Lost));
    let p99 = run.report.latency_us.p99.unwrap_or(f64::INFINITY);
    let (limit, life) = (options.max_p99.as_secs_f64() * 1e6, options.max_life.as_secs_f64());
    run.require("every healthy device is connected at the end", held == u64::from(all), format!("{held} of {all}"));
    run.require("no healthy connection was lost", lost == 0, format!("{lost} lost"));
    run.require(
        format!("99 % of the round trips took at most {:.0} ms", limit / 1e3),
        p99 <= limit,
        format!("{:.1} ms", p99 / 1e3),
    );
    run.require(
        format!("no attacker was borne for longer than {life:.0} s"),
        longest <= life,
        format!("{longest:.1} s at most"),
    );
    let idle = outcomes.iter().filter(|(_, outcome)| outcome.opened == 0).count();
    run.require("every attack took place", idle == 0, format!("{idle} never had a connection"));
}

/// Without frames there is nothing that a frame could do wrong, and no word that is awaited.
fn attacks(protocol: Protocol) -> impl Iterator<Item = Attack> {
    let of_frames = [Attack::SilentTls, Attack::SlowHello, Attack::OversizedFrame, Attack::GarbageFrames];
    Attack::ALL.into_iter().filter(move |attack| protocol == Protocol::Native || !of_frames.contains(attack))
}

fn begin(kind: Attack, means: &Arc<Means>) -> JoinHandle<Outcome> {
    attack::start(kind, Arc::clone(means)).expect("a further thread can be started")
}

fn end(thread: JoinHandle<Outcome>) -> Outcome {
    thread.join().expect("an attacker has panicked")
}

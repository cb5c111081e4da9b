//! The scenarios: each drives the fleet, fills in its figures, and states what must hold.

mod attack;
mod broadcast;
mod churn;
mod dark;
mod downlink;
mod fan;
mod follower;
mod heartbeat;
mod hold;
mod hostile;
mod senders;
mod slow;
mod soak;
mod storm;
mod uplink;

use std::ops::Range;
use std::time::Duration;

use crate::cli::Scenario;
use crate::fleet::{ComeBack, Order};
use crate::report::Percentiles;
use crate::run::Run;

/// A calm is looked at for at least so long.
const CALM_MIN: Duration = Duration::from_secs(5);

/// Runs it.
///
/// # Errors
/// A sentence, when a part of it could not begin.
pub fn run(run: &mut Run, scenario: &Scenario) -> Result<(), String> {
    match scenario {
        Scenario::Hold(options) => hold::run(run, options),
        Scenario::Heartbeat(options) => heartbeat::run(run, options),
        Scenario::Storm(options) => storm::run(run, options),
        Scenario::Dark(options) => dark::run(run, options),
        Scenario::Churn(options) => churn::run(run, options),
        Scenario::Hostile(options) => hostile::run(run, options),
        Scenario::Uplink(options) => uplink::run(run, options),
        Scenario::Downlink(options) => downlink::run(run, options),
        Scenario::Broadcast(options) => broadcast::run(run, options),
        Scenario::Slow(options) => slow::run(run, options),
        Scenario::FanIn(options) => fan::run_in(run, options),
        Scenario::FanOut(options) => fan::run_out(run, options),
        Scenario::Soak(options) => soak::run(run, options)?,
    }
    Ok(())
}

/// How many of a soak's devices are steady native ones.
pub fn soak_share(all: u32) -> u32 {
    soak::steady_native(all)
}

/// Connects everybody, has these devices send heartbeats, and looks at them before anything happens to anybody. The
/// server's CPU time meanwhile is returned, as a share of one core, and measuring begins anew.
fn begin_in_calm(run: &mut Run, beating: Range<u32>, every: Duration) -> Option<f64> {
    run.fleet.order(&Order::ComeBack(ComeBack::BackOff(Duration::from_secs(1))));
    run.connect(0..run.common.connections);
    run.fleet.order(&Order::Beat { devices: beating, from: run.now(), every });
    run.pass("settling", run.common.settle);
    run.begin_measuring();
    let before = run.snapshot();
    run.pass("calm", every.max(CALM_MIN));
    run.collect();
    let share = Run::cpu_share(&before, &run.snapshot());
    let calm = Percentiles::of(&run.findings.beats_control, 1.0);
    run.detail("round_trip_before_us", serde_json::to_value(calm).expect("percentiles are plain data"));
    run.begin_measuring();
    share
}

//! The scenarios: each drives the fleet, fills in its figures, and states what must hold.

mod attack;
mod broadcast;
mod churn;
mod dark;
mod downlink;
mod fan;
mod heartbeat;
mod hold;
mod hostile;
mod senders;
mod slow;
mod storm;
mod uplink;

use crate::cli::Scenario;
use crate::run::Run;
pub use fan::TOPIC;

/// Runs it.
pub fn run(run: &mut Run, scenario: &Scenario) {
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
    }
}

//! The scenarios: each drives the fleet, fills in its figures, and states what must hold.

mod attack;
mod churn;
mod dark;
mod heartbeat;
mod hold;
mod hostile;
mod storm;
mod stream;

use crate::cli::Scenario;
use crate::run::Run;

/// Runs it.
pub fn run(run: &mut Run, scenario: &Scenario) {
    match scenario {
        Scenario::Hold(options) => hold::run(run, options),
        Scenario::Heartbeat(options) => heartbeat::run(run, options),
        Scenario::Storm(options) => storm::run(run, options),
        Scenario::Dark(options) => dark::run(run, options),
        Scenario::Churn(options) => churn::run(run, options),
        Scenario::Hostile(options) => hostile::run(run, options),
        Scenario::Uplink(options) => stream::run(run, options, stream::Kind::Uplink),
        Scenario::FanIn(options) => stream::run(run, options, stream::Kind::FanIn),
        Scenario::FanOut(options) => stream::run(run, options, stream::Kind::FanOut),
    }
}

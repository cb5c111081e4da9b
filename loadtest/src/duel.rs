//! `duel`: the same scenario against several targets in turns, so that whatever else the machine does, it does to all.

use std::time::Duration;

use crate::cli::{Common, Opponents, Scenario};
use crate::report::Report;
use crate::report::duel::{Duel, Party};
use crate::run::Run;
use crate::scenario;

/// Between two turns, so that no server still ends connections while another one is measured.
const REST: Duration = Duration::from_secs(2);

/// Takes all turns.
///
/// # Errors
/// A sentence, when a turn could not begin.
pub fn run(opponents: &Opponents, mut scenario: Scenario) -> Result<Duel, String> {
    let first = scenario.common().clone();
    let mut parties = vec![(Party::new(&opponents.name), first.clone())];
    for opponent in &opponents.against {
        let common = Common {
            target: opponent.address,
            protocol: opponent.protocol.unwrap_or(first.protocol),
            pid: Some(opponent.pid),
            admin: None,
            ..first.clone()
        };
        parties.push((Party::new(&opponent.name), common));
    }
    for turn in 0..opponents.turns {
        for (party, common) in &mut parties {
            if turn > 0 || !party.turns.is_empty() || party.name != opponents.name {
                std::thread::sleep(REST);
            }
            scenario.common_mut().clone_from(common);
            eprintln!("turn {} of {}: {}", turn + 1, opponents.turns, party.name);
            let report = take_turn(&scenario).map_err(|error| format!("{}: {error}", party.name))?;
            party.turns.push(report);
        }
    }
    Ok(Duel { of: scenario.name(), parties: parties.into_iter().map(|(party, _)| party).collect() })
}

fn take_turn(scenario: &Scenario) -> Result<Report, String> {
    let mut run = Run::start(scenario)?;
    scenario::run(&mut run, scenario)?;
    Ok(run.finish())
}

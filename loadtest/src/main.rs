//! `loadtest`: a fleet of TLS devices against a server, and what it costs that server.
//!
//! ```text
//!  cli --> run ----> scenario --orders--> fleet (threads of devices)
//!           |            '---figures---> report --> table, JSON, page
//!           '-- observe: the server's process, the kernel, a Pulsegate's metrics
//! ```
//! It speaks TLS as the gateway does, through the client role of the same handshake and record layer, so that one process
//! holds as many devices as the gateway does connections.

mod admin;
mod clock;
mod observe;

mod fleet;

mod cli;
mod duel;
mod progress;
mod report;
mod run;
mod scenario;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, Common, Opponents, Scenario};
use run::Run;

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Scenario(scenario) => single(&scenario),
        Command::Duel(duel) => {
            let (opponents, scenario) = duel.parts();
            several(&opponents, scenario)
        }
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("loadtest: {error}");
            ExitCode::from(2)
        }
    }
}

/// One scenario against one target: whether it has passed.
fn single(scenario: &Scenario) -> Result<bool, String> {
    let mut run = Run::start(scenario)?;
    scenario::run(&mut run, scenario)?;
    let report = run.finish();
    print!("{}", report::table::render(&report));
    write(scenario.common(), &report, || report::page::render(&report))?;
    Ok(report.passed)
}

/// One scenario against several targets: whether the first of them has passed.
fn several(opponents: &Opponents, scenario: Scenario) -> Result<bool, String> {
    let common = scenario.common().clone();
    let duel = duel::run(opponents, scenario)?;
    print!("{}", duel.table());
    write(&common, &duel.json(), || report::page::render_duel(&duel))?;
    Ok(duel.passed())
}

fn write(common: &Common, report: &impl serde::Serialize, page: impl FnOnce() -> String) -> Result<(), String> {
    let to =
        |path: &Path, text: String| std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()));
    if let Some(path) = &common.json {
        to(path, serde_json::to_string_pretty(report).expect("a report is plain data") + "\n")?;
    }
    common.html.as_deref().map_or(Ok(()), |path| to(path, page()))
}

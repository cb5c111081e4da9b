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
mod progress;
mod report;
mod run;
mod scenario;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use cli::Cli;
use report::Report;
use run::Run;

fn main() -> ExitCode {
    let Cli { scenario } = Cli::parse();
    let mut run = match Run::start(&scenario) {
        Ok(run) => run,
        Err(error) => {
            eprintln!("loadtest: {error}");
            return ExitCode::from(2);
        }
    };
    scenario::run(&mut run, &scenario);
    let report = run.finish();
    print!("{}", report::table::render(&report));
    let common = scenario.common();
    let json = common.json.as_deref().map(|path| write(path, &json(&report)));
    let page = common.html.as_deref().map(|path| write(path, &report::page::render(&report)));
    if let Some(error) = [json, page].into_iter().flatten().find_map(Result::err) {
        eprintln!("loadtest: {error}");
        return ExitCode::from(2);
    }
    if report.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn json(report: &Report) -> String {
    serde_json::to_string_pretty(report).expect("a report is plain data") + "\n"
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

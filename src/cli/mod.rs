//! The command line: what was asked for, done, or refused in one line on stderr. Exit codes: 0 done, 1 refused or
//! failed, 2 not understood.

mod allocator;
mod arguments;
mod ca;
mod check_config;
mod client;
mod demo;
mod describe;
mod doctor;
mod import;
mod logging;
mod serve;
mod signals;
mod startup;
mod store;
mod supervisor;
mod tools;

use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use pulsegate::gateway::{GatewayError, Problems};
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

use arguments::{Arguments, Command};

/// No complaint is longer; a wrong value is quoted in it.
const COMPLAINT_LETTERS_MAX: usize = 2_000;

/// Does what the command line says.
pub fn run() -> ExitCode {
    keep_memory_private();
    let arguments = Arguments::parse();
    let done = match arguments.command.unwrap_or(Command::Serve(arguments.serve)) {
        // It says itself what is wrong: through its log, which waits for nobody.
        Command::Serve(options) => return serve::serve(&options),
        Command::CheckConfig(options) => check_config::check_config(&options),
        Command::Health(options) => client::health(&options),
        Command::Devices(options) => client::devices(&options),
        Command::Why(options) => client::why(&options),
        Command::Send(options) => client::send(&options),
        Command::Queued(options) => client::queued(&options),
        Command::Publish(options) => client::publish(&options),
        Command::Top(options) => client::top(&options),
        Command::Reload(options) => client::reload(&options),
        Command::Block(options) => client::block(&options),
        Command::Unblock(options) => client::unblock(&options),
        Command::Blocks(options) => client::blocks(&options),
        Command::Watch(options) => client::watch(&options),
        Command::Trace(options) => client::trace(&options),
        Command::Uplink(options) => client::uplink(&options),
        Command::Sinks(options) => client::sinks(&options),
        Command::Store(options) => store::store(&options),
        Command::Doctor(options) => doctor::doctor(&options),
        Command::Demo(options) => demo::demo(&options),
        Command::Import(options) => import::import(&options),
        Command::Completions(options) => tools::completions(&options),
        Command::Man(options) => tools::man(&options),
        Command::DevCerts(options) => tools::dev_certs(&options),
        Command::Ca(options) => ca::ca(&options),
        Command::HashToken(options) => tools::hash_token(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&error),
    }
}

/// Says why not.
fn refuse(error: &CliError) -> ExitCode {
    // Where nobody reads it there is nobody else to tell.
    let _ = writeln!(io::stderr(), "{}", complaint(error));
    ExitCode::FAILURE
}

/// A line for each thing that is wrong.
fn complaint(error: &CliError) -> String {
    let text = error.to_string();
    let lines = text.lines().map(|line| format!("pulsegate: {}", shortened(line, COMPLAINT_LETTERS_MAX)));
    lines.collect::<Vec<_>>().join("\n")
}

/// Says what surely is not as meant.
fn warn(text: &str) {
    let _ = writeln!(io::stderr(), "pulsegate: warning: {text}");
}

/// Why a command could not be done. Its text has a line for each reason.
#[derive(Debug)]
pub enum CliError {
    /// What is configured is wrong, or the gateway cannot be started.
    Gateway(Problems),
    /// Standard input or output failed.
    Io(&'static str, io::Error),
    /// The input cannot be used.
    Input(&'static str),
    /// The token could not be hashed.
    Hash(argon2::password_hash::Error),
    /// The gateway could not be started, or could not go on.
    Run(String),
    /// A running gateway could not be asked, or said no.
    Api(String),
    /// A running gateway could not be reached, or cannot answer now: it may in a moment.
    Away(String),
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CliError::Gateway(problems) => problems.fmt(f),
            CliError::Io(what, error) => write!(f, "{what}: {error}"),
            CliError::Input(what) => f.write_str(what),
            CliError::Hash(error) => write!(f, "the token cannot be hashed: {error}"),
            CliError::Run(what) | CliError::Api(what) | CliError::Away(what) => f.write_str(what),
        }
    }
}

impl Error for CliError {}

impl From<Problems> for CliError {
    fn from(problems: Problems) -> Self {
        CliError::Gateway(problems)
    }
}

impl From<GatewayError> for CliError {
    fn from(error: GatewayError) -> Self {
        CliError::Gateway(error.into())
    }
}

/// Raises the soft limit of descriptors to the hard one, for this process and its threads, and returns what holds.
fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let effective = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        // Refused by a sandbox: the soft limit is then what there is.
        Err(_) => limit.current,
    };
    effective.unwrap_or(u64::MAX)
}

/// Passwords and private keys are in memory: it goes into no core dump, and only root may look into it. Where a sandbox
/// allows neither, its settings are what protects the memory.
fn keep_memory_private() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Writes to stdout in one piece. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<(), CliError> {
    match write_out(text) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| CliError::Io("stdout", error)),
    }
}

fn write_out(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// A text of which the end is left out where it is long: what somebody has written may be quoted in it whole.
fn shortened(text: &str, letters: usize) -> String {
    match text.char_indices().nth(letters) {
        Some((end, _)) => format!("{}… ({} bytes more)", &text[..end], text.len() - end),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::dumpable_behavior;

    use super::*;

    #[test]
    fn what_is_long_is_cut_and_what_is_not_is_not() {
        assert_eq!(shortened("äöü", 3), "äöü");
        assert_eq!(shortened("äöüß", 2), "äö… (4 bytes more)");
    }

    #[test]
    fn nobody_but_root_looks_into_memory() {
        keep_memory_private();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(getrlimit(Resource::Core).maximum, Some(0));
    }
}

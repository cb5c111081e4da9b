//! Log lines, to stderr: stdout belongs to the start-up message. They are written by a thread of their own
//! ([`pulsegate::gateway::log`]), so that neither a full disk nor a hung collector holds a worker up.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal};
use std::panic::{self, PanicHookInfo};
use std::thread;
use std::time::Duration;

use pulsegate::gateway::log::{LineFormat, Log, Stderr, Weight};
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::CliError;
use super::arguments::{LogFormat, Serve};

/// How long the last lines of the process may take.
pub const LAST_LINES: Duration = Duration::from_secs(1);

/// Starts logging as the command line says. Once per process.
pub fn start(options: &Serve) -> Result<Log, CliError> {
    let format = match options.log_format {
        LogFormat::Text => LineFormat::Text,
        LogFormat::Json => LineFormat::Json,
    };
    let log = Log::start(Stderr, format).map_err(|error| CliError::Io("the log's thread cannot be started", error))?;
    let filter = EnvFilter::try_new(&options.log_filter).expect("the command line's parser has checked the filter");
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Lines(log.clone()));
    match options.log_format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    let last_words = log.clone();
    panic::set_hook(Box::new(move |panic| {
        last_words.say("ERROR", &account_of(panic));
        last_words.flush(LAST_LINES);
    }));
    Ok(log)
}

/// What std's own hook would print: that one writes to stderr itself, and would wait for whoever reads it.
fn account_of(panic: &PanicHookInfo<'_>) -> String {
    let thread = thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let account = format!("thread '{name}' {panic}");
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => format!("{account}\n{backtrace}"),
        _ => account,
    }
}

/// Makes tracing's lines into the log's.
struct Lines(Log);

/// One line on its way.
struct Line<'a> {
    log: &'a Log,
    weight: Weight,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { log: &self.0, weight: Weight::Ordinary }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line<'a> {
        let weight = if *meta.level() <= Level::WARN { Weight::Important } else { Weight::Ordinary };
        Line { log: &self.0, weight }
    }
}

impl io::Write for Line<'_> {
    /// tracing writes each line in one piece.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.log.push(line, self.weight);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

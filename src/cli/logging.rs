//! Log lines, to stderr: stdout belongs to the start-up message.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use super::arguments::{LogFormat, Serve};

/// Starts logging as the command line says. Once per process.
pub fn start(options: &Serve) {
    let filter = EnvFilter::try_new(&options.log_filter).expect("the command line's parser has checked the filter");
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match options.log_format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

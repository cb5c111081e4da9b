//! `check-config`: all that `serve` would find out before it binds an address, said and not done.

use std::fmt::Write;

use pulsegate::config::Machine;
use pulsegate::gateway::Source;

use super::arguments::CheckConfig;
use super::{CliError, describe, print, raise_descriptor_limit};

/// Loads the configuration and everything that it names, and shows what would be in effect.
pub fn check_config(options: &CheckConfig) -> Result<(), CliError> {
    let source = Source { file: options.config.clone(), machine: Machine::detect(raise_descriptor_limit()) };
    // The built-in configuration's certificates are made when it first serves.
    let loaded = match &source.file {
        Some(_) => source.prepare()?.loaded,
        None => source.load()?,
    };
    let config = &loaded.config;
    let addresses: Vec<_> = config.listeners.iter().map(|listener| listener.listen).collect();
    let name = source.file.as_ref().map_or("the built-in configuration".to_owned(), |file| file.display().to_string());
    let mut text = format!("In effect, node {}\n\n", config.node);
    text.push_str(&describe::in_effect(&loaded, &addresses, config.admin.listen));
    text.push('\n');
    text.push_str(&describe::remarks("warning", &loaded.warnings));
    text.push_str(&describe::remarks("note", &loaded.notes));
    let _ = writeln!(text, "{name} is usable");
    print(&text)
}

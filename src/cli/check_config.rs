//! `check-config`: all that `serve` would find out before it binds an address, said and not done.

use std::fmt::Write;

use pulsegate::config::Machine;

use super::arguments::CheckConfig;
use super::{CliError, describe, files, load_configuration, print, raise_descriptor_limit};

/// Loads the configuration and everything that it names, and shows what would be in effect.
pub fn check_config(options: &CheckConfig) -> Result<(), CliError> {
    let machine = Machine::detect(raise_descriptor_limit());
    let file = options.config.as_deref();
    let mut loaded = load_configuration(file, &machine)?;
    files::check_tokens(&loaded.config, file)?;
    // The built-in configuration's certificates are made when it first serves.
    if file.is_some() {
        let (_, warnings) = files::load_certificates(&loaded.config, file)?;
        loaded.warnings.extend(warnings);
    }
    let config = &loaded.config;
    let addresses: Vec<_> = config.listeners.iter().map(|listener| listener.listen).collect();
    let name = file.map_or("the built-in configuration".to_owned(), |file| file.display().to_string());
    let mut text = format!("In effect, node {}\n\n", config.node);
    text.push_str(&describe::in_effect(&loaded, &addresses, config.admin.listen));
    text.push('\n');
    text.push_str(&describe::remarks("warning", &loaded.warnings));
    text.push_str(&describe::remarks("note", &loaded.notes));
    let _ = writeln!(text, "{name} is usable");
    print(&text)
}

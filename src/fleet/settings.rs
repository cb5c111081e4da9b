//! What the fleet was configured with, proven; files are read again for each connection, so that what was renewed is used.

use std::path::PathBuf;

use crate::config::Fleet;
use crate::sink::nats::{NatsAccess, files_of_login};
use crate::sink::{Fault, Reading};

/// A server that says nothing at all is given up after three of so many parts of the lease: before the lease ends.
const PINGS_IN_LEASE: u32 = 5;

/// Proven settings.
#[derive(Clone, Debug)]
pub struct Settings {
    config: Fleet,
}

impl Settings {
    /// Reads the files of `config` and proves them. Reaches for nobody.
    ///
    /// # Errors
    /// The first thing that is wrong, by its key within `[backbone.nats]`.
    pub fn prove(config: &Fleet) -> Result<Self, Fault> {
        let settings = Self { config: config.clone() };
        settings.access()?;
        Ok(settings)
    }

    pub(super) fn config(&self) -> &Fleet {
        &self.config
    }

    /// How to come in, as the files say now.
    pub(super) fn access(&self) -> Result<NatsAccess, Fault> {
        let config = &self.config;
        let (place, tls) = ((&*config.urls, "[backbone.nats]".to_owned()), config.is_tls.then_some(&config.tls));
        let access = NatsAccess::load(place, &config.login, tls, config.timeout, &mut Reading::default())?;
        Ok(access.with_ping_interval(config.lease / PINGS_IN_LEASE))
    }
}

/// Every file that the fleet names: its key, and whether it holds a secret.
pub fn files_of(config: &Fleet) -> Vec<(&'static str, PathBuf, bool)> {
    let mut files: Vec<_> = files_of_login(&config.login).into_iter().map(|(key, path)| (key, path, true)).collect();
    files.extend(config.tls.ca.clone().map(|path| ("tls.ca", path, false)));
    if let Some((cert, key)) = config.tls.client.clone() {
        files.extend([("tls.cert", cert, false), ("tls.key", key, true)]);
    }
    files
}

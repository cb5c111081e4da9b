//! What a sink was configured with, proven: files read, keys fitting, addresses well formed.

use std::fmt;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use zeroize::Zeroizing;

use super::http::HttpClient;
use super::mqtt::MqttTarget;
use super::nats::{NatsTarget, files_of_login};
use super::selection::Selection;
use super::tls;
use crate::config::{Sink, SinkKind};

/// What is wrong with a sink: which key of its table, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The key within `[[sink]]`.
    pub key: &'static str,
    what: String,
}

impl Fault {
    pub(crate) fn new(key: &'static str, what: impl Into<String>) -> Self {
        Self { key, what: what.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// The files of a sink while they are read: what they hold, taken together, tells whether anything has changed.
pub struct Reading(Context);

impl Default for Reading {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl Reading {
    /// What a file holds.
    pub(super) fn read(&mut self, key: &'static str, path: &Path) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let content = tls::read(path).map_err(|error| {
            Fault::new(
                key,
                format!("{} cannot be read: {error}: name a file that the gateway may read", path.display()),
            )
        })?;
        self.0.update(&(content.len() as u64).to_ne_bytes());
        self.0.update(&content);
        Ok(content)
    }

    /// The one line of text that a file holds.
    pub(super) fn line(&mut self, key: &'static str, path: &Path) -> Result<Zeroizing<String>, Fault> {
        let content = self.read(key, path)?;
        let text = std::str::from_utf8(&content).ok().map(str::trim).filter(|text| !text.is_empty());
        let text = text.filter(|text| !text.contains(char::is_control));
        let fault = || Fault::new(key, format!("{} does not hold one line of text: write it there", path.display()));
        text.map(|text| Zeroizing::new(text.to_owned())).ok_or_else(fault)
    }
}

/// A sink's settings.
pub struct Settings {
    /// As configured.
    pub(super) config: Sink,
    /// Which events concern it.
    pub(super) selection: Selection,
    /// How it speaks.
    pub(super) target: Target,
    digest: Vec<u8>,
}

/// How a sink speaks.
pub(super) enum Target {
    Http(Box<HttpClient>),
    Mqtt(Box<MqttTarget>),
    Nats(Box<NatsTarget>),
}

impl Settings {
    /// Reads the files of `config` and proves all of it. Reaches for nobody.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn prove(config: &Sink) -> Result<Self, Fault> {
        let mut reading = Reading::default();
        let target = match &config.kind {
            SinkKind::Http(http) => Target::Http(Box::new(HttpClient::new(config, http, &mut reading)?)),
            SinkKind::Nats(nats) => Target::Nats(Box::new(NatsTarget::new(config, nats, &mut reading)?)),
            SinkKind::Mqtt(mqtt) => Target::Mqtt(Box::new(MqttTarget::new(config, mqtt, &mut reading)?)),
        };
        let selection = Selection::new(&config.topics, config.presence);
        let digest = reading.0.finish().as_ref().to_vec();
        Ok(Self { config: config.clone(), selection, target, digest })
    }

    /// Whether nothing of it has changed, nor in its files.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.config == other.config && self.digest == other.digest
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.config.name
    }
}

/// Every file that a sink names: its key, and whether it holds a secret.
pub fn files_of(config: &Sink) -> Vec<(&'static str, PathBuf, bool)> {
    let mut files = Vec::new();
    let mut add = |key, path: Option<&PathBuf>, is_secret| {
        files.extend(path.map(|path| (key, path.clone(), is_secret)));
    };
    add("tls.ca", config.tls.ca.as_ref(), false);
    add("tls.cert", config.tls.client.as_ref().map(|(cert, _)| cert), false);
    add("tls.key", config.tls.client.as_ref().map(|(_, key)| key), true);
    match &config.kind {
        SinkKind::Http(http) => {
            add("secret_file", http.secret_file.as_ref(), true);
            add("authorization_file", http.authorization_file.as_ref(), true);
        }
        SinkKind::Nats(nats) => {
            for (key, path) in files_of_login(&nats.login) {
                add(key, Some(&path), true);
            }
        }
        SinkKind::Mqtt(mqtt) => add("password_file", mqtt.password_file.as_ref(), true),
    }
    files
}

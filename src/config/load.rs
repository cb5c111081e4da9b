//! From a file, or from nothing, to a checked configuration.

use std::fs;
use std::path::{Path, PathBuf};

use super::check::{self, CertificateFilesAre};
use super::machine::Machine;
use super::raw::{RawConfig, RawIdentity, RawListener, RawMqtt, RawTls};
use super::{ConfigError, Loaded};

/// The configuration in `file`, checked against `machine`. Certificates are only looked for: their contents are for
/// `tls` to judge, as a token file's lines are for the control plane.
///
/// # Errors
/// [`ConfigError`]: the first thing found wrong, with file, line, key and remedy.
pub fn load(file: &Path, machine: &Machine) -> Result<Loaded, ConfigError> {
    let text = fs::read_to_string(file).map_err(|error| ConfigError::Unreadable { file: file.to_owned(), error })?;
    let raw: RawConfig = toml::from_str(&text).map_err(|error| ConfigError::malformed(file, &text, &error))?;
    let base = file.parent().unwrap_or(Path::new(""));
    check::resolve(raw, base, machine, CertificateFilesAre::Present)
        .map_err(|problem| ConfigError::refused(file, &text, problem))
}

/// Where the development certificates of the built-in configuration lie: below `data_dir`.
pub const DEVELOPMENT_CERTIFICATES: &str = "certs";

/// The configuration without a file: one listener of each protocol on the loopback address, with the development
/// certificates of `certs` below `./pulsegate-data` (`server.pem`, `server.key`, `ca.pem`), which need not exist yet.
///
/// # Errors
/// [`ConfigError`] when the machine has not the memory for it.
pub fn built_in(machine: &Machine) -> Result<Loaded, ConfigError> {
    check::resolve(built_in_raw(), Path::new(""), machine, CertificateFilesAre::MadeAtStart)
        .map_err(ConfigError::built_in)
}

fn built_in_raw() -> RawConfig {
    let certificate = |name: &str| {
        let path: PathBuf = [check::DATA_DIR, DEVELOPMENT_CERTIFICATES, name].iter().collect();
        Some(path.to_string_lossy().into_owned())
    };
    let listener = |name: &str, listen: &str, protocol: &str, client_auth: &str, from: &str| RawListener {
        name: Some(name.to_owned()),
        listen: Some(listen.to_owned()),
        protocol: Some(protocol.to_owned()),
        tls: Some(RawTls {
            cert: certificate("server.pem"),
            key: certificate("server.key"),
            client_ca: certificate("ca.pem"),
            client_auth: Some(client_auth.to_owned()),
            ..RawTls::default()
        }),
        identity: RawIdentity { from: Some(from.to_owned()), ..RawIdentity::default() },
        ..RawListener::default()
    };
    let anywhere = || Some(vec!["#".to_owned()]);
    let open = RawMqtt { publish: anywhere(), subscribe: anywhere(), ..RawMqtt::default() };
    RawConfig {
        listeners: vec![
            listener("devices", "127.0.0.1:7443", "native", "optional", "hello"),
            listener("raw", "127.0.0.1:7444", "raw", "optional", "cert-cn"),
            RawListener { mqtt: Some(open), ..listener("mqtt", "127.0.0.1:8883", "mqtt", "optional", "client-id") },
        ],
        ..RawConfig::default()
    }
}

//! From a file, or from nothing, to a checked configuration.

use std::path::{Path, PathBuf};

use super::check::{self, CertificateFilesAre};
use super::machine::Machine;
use super::raw::{RawConfig, RawIdentity, RawListener, RawMqtt, RawTls};
use super::{ConfigError, Loaded, locate};
use crate::whole_file;

/// More mistakes than anybody reads at once.
const ERRORS_MAX: usize = 50;

/// The configuration in `file`, checked against `machine`. Certificates are only looked for: their contents are for
/// `tls` to judge, as a token file's lines are for the control plane.
///
/// # Errors
/// [`ConfigError`]: the first thing found wrong, with file, line, key and remedy.
pub fn load(file: &Path, machine: &Machine) -> Result<Loaded, ConfigError> {
    load_all(file, machine).map_err(|mut errors| errors.swap_remove(0))
}

/// The same, with everything that is found wrong.
///
/// # Errors
/// At least one [`ConfigError`].
pub fn load_all(file: &Path, machine: &Machine) -> Result<Loaded, Vec<ConfigError>> {
    let mut text = whole_file::read_text(file).map_err(|error| vec![unreadable(file, error)])?;
    let mut errors: Vec<ConfigError> = Vec::new();
    // What is wrong is blanked out and the rest looked at again, so that no mistake hides another.
    loop {
        let found = match read(file, &text, machine) {
            Ok(loaded) if errors.is_empty() => return Ok(loaded),
            Ok(_) => return Err(errors),
            Err(found) => found,
        };
        let mut goes_on = false;
        for error in found {
            // A key that is wrong is missing the next time.
            if errors.iter().any(|known| known.path().is_some() && known.path() == error.path()) {
                continue;
            }
            goes_on |= error.path().is_some_and(|path| locate::blank(&mut text, &path));
            errors.push(error);
        }
        if !goes_on || errors.len() >= ERRORS_MAX {
            return Err(errors);
        }
    }
}

fn unreadable(file: &Path, error: std::io::Error) -> ConfigError {
    ConfigError::Unreadable { file: file.to_owned(), error }
}

fn read(file: &Path, text: &str, machine: &Machine) -> Result<Loaded, Vec<ConfigError>> {
    let raw: RawConfig = toml::from_str(text).map_err(|error| vec![ConfigError::malformed(file, text, &error)])?;
    let base = file.parent().unwrap_or(Path::new(""));
    check::resolve(raw, base, machine, CertificateFilesAre::Present)
        .map_err(|problems| problems.into_iter().map(|problem| ConfigError::refused(file, text, problem)).collect())
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
        .map_err(|mut problems| ConfigError::built_in(problems.swap_remove(0)))
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

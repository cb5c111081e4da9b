//! The files that listeners name: certificates become what is shown in handshakes, token files are looked into.

use std::path::Path;

use pulsegate::codec::{mqtt, native};
use pulsegate::config::{ClientAuth, Config, Listener, Place, Protocol, Tls};
use pulsegate::control::auth::tokens::TokenFile;
use pulsegate::tls::certs::{LoadWarning, TlsLoadError};
use pulsegate::tls::handshake::{self, ServerOptions, ServerTls};

use super::CliError;

/// Every listener's TLS, in the order of the configuration, and what is doubtful about its certificates. `file` is the
/// configuration's, for the error.
pub fn load_certificates(config: &Config, file: Option<&Path>) -> Result<(Vec<ServerTls>, Vec<String>), CliError> {
    let mut loaded = Vec::with_capacity(config.listeners.len());
    let mut warnings = Vec::new();
    for (index, listener) in config.listeners.iter().enumerate() {
        let place = |path: Option<&Path>| Place::of_listener(index, &listener.name, key_of(&listener.tls, path));
        let (tls, doubts) = load_listener(listener).map_err(|error| {
            let place = place(error.path.as_deref());
            CliError::File(file.map(Path::to_owned), place, Box::new(error))
        })?;
        warnings.extend(doubts.iter().map(|doubt| format!("{}: {doubt}", place(Some(&doubt.path)))));
        loaded.push(tls);
    }
    Ok((loaded, warnings))
}

/// Whether every token file can be used, found out before anything is bound. The control plane reads them for good.
pub fn check_tokens(config: &Config, file: Option<&Path>) -> Result<(), CliError> {
    for (index, listener) in config.listeners.iter().enumerate() {
        let Some(tokens) = &listener.identity.token_file else { continue };
        TokenFile::load(tokens).map_err(|error| {
            let key = match listener.protocol {
                Protocol::Mqtt(_) => "identity.password_file",
                Protocol::Native | Protocol::Raw(_) => "identity.token_file",
            };
            let place = Place::of_listener(index, &listener.name, key);
            CliError::File(file.map(Path::to_owned), place, Box::new(error))
        })?;
    }
    Ok(())
}

fn load_listener(listener: &Listener) -> Result<(ServerTls, Vec<LoadWarning>), TlsLoadError> {
    let tls = &listener.tls;
    let certificates: Vec<(&Path, &Path)> =
        tls.certificates.iter().map(|files| (files.cert.as_path(), files.key.as_path())).collect();
    let client_auth = match (tls.client_auth, &tls.client_ca) {
        (ClientAuth::Off, _) => handshake::ClientAuth::Off,
        (ClientAuth::Optional, Some(authorities)) => handshake::ClientAuth::Optional(authorities),
        (ClientAuth::Required, Some(authorities)) => handshake::ClientAuth::Required(authorities),
        (_, None) => unreachable!("the configuration demands authorities where client certificates are asked for"),
    };
    let alpn: &[&[u8]] = match listener.protocol {
        Protocol::Native => &[native::ALPN],
        Protocol::Raw(_) => &[],
        Protocol::Mqtt(_) => &[mqtt::ALPN],
    };
    ServerTls::load(&ServerOptions { certificates: &certificates, client_auth, alpn })
}

/// The key of `[listener.tls]` that names this file.
fn key_of(tls: &Tls, path: Option<&Path>) -> String {
    let names = |file: &Path| path == Some(file);
    for (index, files) in tls.certificates.iter().enumerate() {
        let key = match (names(&files.cert), names(&files.key)) {
            (true, _) => "cert",
            (false, true) => "key",
            (false, false) => continue,
        };
        // The first pair stands in the table itself, further ones in its list.
        return match index {
            0 => format!("tls.{key}"),
            _ => format!("tls.certificates[{}].{key}", index - 1),
        };
    }
    if tls.client_ca.as_deref().is_some_and(names) { "tls.client_ca".to_owned() } else { "tls".to_owned() }
}

#[cfg(test)]
mod tests {
    use pulsegate::config::CertificateFiles;

    use super::*;

    #[test]
    fn a_file_has_the_key_that_names_it() {
        let files =
            |name: &str| CertificateFiles { cert: format!("{name}.pem").into(), key: format!("{name}.key").into() };
        let tls = Tls {
            certificates: vec![files("a"), files("b"), files("c")],
            client_ca: Some("ca.pem".into()),
            client_auth: ClientAuth::Optional,
        };
        let key = |path: &str| key_of(&tls, Some(Path::new(path)));
        assert_eq!(key("a.pem"), "tls.cert");
        assert_eq!(key("a.key"), "tls.key");
        assert_eq!(key("b.pem"), "tls.certificates[0].cert");
        assert_eq!(key("c.key"), "tls.certificates[1].key");
        assert_eq!(key("ca.pem"), "tls.client_ca");
        assert_eq!(key_of(&tls, None), "tls");
    }
}

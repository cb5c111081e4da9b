//! How a client of NATS comes in: TLS, and one of credentials, NKey and password, from files.

use std::future::ready;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_nats::ConnectOptions;
use tokio::sync::Notify;
use zeroize::Zeroizing;

use crate::config::{NatsLogin, SinkTls};
use crate::sink::settings::{Fault, Reading};
use crate::sink::tls::ClientTls;

/// Older servers are refused by name: their compare-and-set is not exclusive (fixed in 2.9.21), and deduplication and headers
/// behave as this one's do.
pub const VERSION_MIN: (u64, u64, u64) = (2, 10, 0);

/// What was read, proven.
pub struct NatsAccess {
    proof: Proof,
    tls: Option<ClientTls>,
    timeout: Duration,
}

enum Proof {
    None,
    Credentials(Zeroizing<String>),
    NKey(Zeroizing<String>),
    Password(String, Zeroizing<String>),
}

impl NatsAccess {
    /// Reads the files. `tls`: how the server is known, where it is spoken to over TLS.
    ///
    /// # Errors
    /// The first file that is not what it should be, by its key.
    pub fn load(
        login: &NatsLogin,
        tls: Option<&SinkTls>,
        timeout: Duration,
        reading: &mut Reading,
    ) -> Result<Self, Fault> {
        let proof = if let Some(path) = &login.credentials_file {
            let content = reading.read("credentials_file", path)?;
            let text = std::str::from_utf8(&content).unwrap_or_default();
            // Tried here, so that a wrong file is a fault of the configuration and not of the server.
            ConnectOptions::new().credentials(text).map_err(|error| {
                Fault::new("credentials_file", format!("{}: {error}: name a file made by nsc", path.display()))
            })?;
            Proof::Credentials(Zeroizing::new(text.to_owned()))
        } else if let Some(path) = &login.nkey_file {
            Proof::NKey(reading.line("nkey_file", path)?)
        } else if let Some(name) = &login.username {
            let password = login.password_file.as_ref().map(|path| reading.line("password_file", path)).transpose()?;
            Proof::Password(name.clone(), password.unwrap_or_default())
        } else {
            Proof::None
        };
        let tls = tls.map(|tls| ClientTls::load(tls, reading)).transpose()?;
        Ok(Self { proof, tls, timeout })
    }

    /// How to connect, as a client of this name. `broken` hears of it when the connection is gone.
    ///
    /// # Errors
    /// The credentials are none.
    pub fn options(&self, name: &str, broken: Arc<Notify>) -> Result<ConnectOptions, String> {
        let mut options = ConnectOptions::new()
            .name(name)
            .connection_timeout(self.timeout)
            .request_timeout(Some(self.timeout))
            .event_callback(move |event| {
                if matches!(event, async_nats::Event::Disconnected | async_nats::Event::Closed) {
                    broken.notify_one();
                }
                ready(())
            });
        options = match &self.proof {
            Proof::None => options,
            Proof::Credentials(text) => options.credentials(text).map_err(|error| error.to_string())?,
            Proof::NKey(seed) => options.nkey(seed.to_string()),
            Proof::Password(name, password) => options.user_and_password(name.clone(), password.to_string()),
        };
        if let Some(tls) = &self.tls {
            options = options.require_tls(true).tls_client_config((*tls.rustls).clone());
        }
        Ok(options)
    }
}

/// Every file that a login names: its key and where it is. All of them hold secrets.
pub fn files_of_login(login: &NatsLogin) -> Vec<(&'static str, PathBuf)> {
    let files = [
        ("credentials_file", &login.credentials_file),
        ("nkey_file", &login.nkey_file),
        ("password_file", &login.password_file),
    ];
    files.into_iter().filter_map(|(key, file)| Some((key, file.clone()?))).collect()
}

/// The three numbers of `2.15.1`, or of `2.9.25-RC.1`.
pub fn version(text: &str) -> Option<(u64, u64, u64)> {
    let mut parts = text.split(['.', '-', '+']).map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next().flatten().unwrap_or_default()))
}

/// Whether a server of this version may be spoken to.
///
/// # Errors
/// Why not, in words.
pub fn check_version(text: &str) -> Result<(), String> {
    if version(text).is_some_and(|version| version >= VERSION_MIN) {
        return Ok(());
    }
    let (major, minor, _) = VERSION_MIN;
    Err(format!("nats-server {text} is too old: it takes {major}.{minor} or newer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(version("2.15.1"), Some((2, 15, 1)));
        assert_eq!(version("2.9.25-RC.1"), Some((2, 9, 25)));
        assert_eq!(version("2.11"), Some((2, 11, 0)));
        assert!(check_version("2.9.25").is_err_and(|why| why.contains("2.9.25 is too old")));
        assert!(check_version("2.10.0").is_ok() && check_version("3.0.0-beta").is_ok());
        assert!(check_version("dev").is_err());
    }
}

//! How a client of NATS comes in: TLS, and one of credentials, NKey and password, from files; and why it is not let in.

use std::future::ready;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerError};
use nkeys::{KeyPair, KeyPairType};
use tokio::sync::Notify;
use zeroize::Zeroizing;

use crate::config::{NatsLogin, SinkTls};
use crate::sink::settings::{Fault, Reading};
use crate::sink::tls::ClientTls;

/// Older servers are refused by name: their compare-and-set is not exclusive (fixed in 2.9.21), and deduplication and headers
/// behave as this one's do.
pub const VERSION_MIN: (u64, u64, u64) = (2, 10, 0);

/// How often a connection asks whether the server is there, unless it says otherwise.
const PING_INTERVAL: Duration = Duration::from_mins(1);
/// The longest text of what the server does not allow that is kept, in bytes.
const REFUSAL_BYTES_MAX: usize = 300;

/// What was read, proven.
pub struct NatsAccess {
    urls: Vec<String>,
    /// Where it is configured, in words.
    place: String,
    proof: Proof,
    tls: Option<ClientTls>,
    timeout: Duration,
    ping_interval: Duration,
}

/// What a connection hears beside answers.
#[derive(Default)]
pub struct Signals {
    broken: Notify,
    refused: Notify,
    refusal: Mutex<Option<String>>,
}

impl Signals {
    /// Ends when the connection is gone.
    pub async fn broken(&self) {
        self.broken.notified().await;
    }

    /// Ends when the server has refused something; what, in its words.
    pub async fn refused(&self) -> String {
        loop {
            self.refused.notified().await;
            if let Some(refusal) = self.refusal() {
                return refusal;
            }
        }
    }

    /// What the server refused last.
    pub fn refusal(&self) -> Option<String> {
        self.refusal.lock().expect("no holder panics").clone()
    }

    /// `why` something has no answer, with what the server has refused: it does not answer what an account may not ask.
    pub fn explain(&self, why: &str) -> String {
        match self.refusal() {
            None => why.to_owned(),
            Some(refusal) => format!(
                "{refusal}: let the account do that on the server; docs/OPERATING.md lists the rights that it needs ({why})"
            ),
        }
    }

    fn hear(&self, event: Event) {
        match event {
            Event::Disconnected | Event::Closed => self.broken.notify_one(),
            Event::ServerError(ServerError::Other(text)) if text.to_lowercase().contains("permissions violation") => {
                let text = text.replace(char::is_control, " ");
                let text = &text[..text.floor_char_boundary(REFUSAL_BYTES_MAX)];
                *self.refusal.lock().expect("no holder panics") = Some(text.to_owned());
                self.refused.notify_one();
            }
            _ => {}
        }
    }
}

enum Proof {
    None,
    Credentials(Zeroizing<String>),
    NKey(Zeroizing<String>),
    Password(String, Zeroizing<String>),
}

impl NatsAccess {
    /// Reads the files. `place`: where it is configured, in words. `tls`: how the server is known, where it is spoken to over
    /// TLS.
    ///
    /// # Errors
    /// The first file that is not what it should be, by its key.
    pub fn load(
        (urls, place): (&[String], String),
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
            let seed = reading.line("nkey_file", path)?;
            let is_user = KeyPair::from_seed(&seed).is_ok_and(|pair| pair.key_pair_type() == KeyPairType::User);
            if !is_user {
                let what = format!(
                    "{} does not hold the seed of a user: one line that begins with SU, made by nk",
                    path.display()
                );
                return Err(Fault::new("nkey_file", what));
            }
            Proof::NKey(seed)
        } else if let Some(name) = &login.username {
            let password = login.password_file.as_ref().map(|path| reading.line("password_file", path)).transpose()?;
            Proof::Password(name.clone(), password.unwrap_or_default())
        } else {
            Proof::None
        };
        let tls = tls.map(|tls| ClientTls::load(tls, reading)).transpose()?;
        Ok(Self { urls: urls.to_vec(), place, proof, tls, timeout, ping_interval: PING_INTERVAL })
    }

    /// The same; a server that says nothing at all for some three times `interval` is taken for gone.
    pub fn with_ping_interval(self, interval: Duration) -> Self {
        Self { ping_interval: interval, ..self }
    }

    /// Connects as a client of this name. `signals` hears what becomes of the connection.
    ///
    /// # Errors
    /// Why it does not: where, and what to do.
    pub async fn connect(&self, name: &str, signals: Arc<Signals>) -> Result<Client, String> {
        self.options(name, signals)?.connect(&self.urls).await.map_err(|error| self.refusal(&error))
    }

    /// Why the server cannot be reached or does not let one in.
    fn refusal(&self, error: &ConnectError) -> String {
        let (urls, place, what) = (self.urls.join(", "), &self.place, in_words(error));
        let kind = error.kind();
        let is_refused = matches!(kind, ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication);
        let remedy = if is_refused {
            match &self.proof {
                Proof::None => {
                    format!("it lets nobody in unnamed: write credentials_file, nkey_file or username in {place}")
                }
                Proof::Credentials(_) => {
                    format!("it does not know these credentials: check credentials_file in {place}")
                }
                Proof::NKey(_) => format!("it does not know this key: check nkey_file in {place}"),
                Proof::Password(..) => {
                    format!(
                        "it does not know this name with this password: check username and password_file in {place}"
                    )
                }
            }
        } else if what.contains("certificate") || what.contains("Certificate") {
            format!("check tls.ca, tls.cert and tls.key in {place}")
        } else if what.contains("corrupt message") || (kind == ConnectErrorKind::Tls && self.tls.is_some()) {
            format!("it does not speak TLS on that port: write nats://, or another port, in {place}")
        } else if kind == ConnectErrorKind::TimedOut {
            format!("nobody there speaks NATS: check the host and the port (4222 as a rule) in {place}")
        } else {
            format!("check the host and the port in {place}, and that nats-server runs there")
        };
        format!("{urls}: {what}: {remedy}")
    }

    /// How to connect.
    fn options(&self, name: &str, signals: Arc<Signals>) -> Result<ConnectOptions, String> {
        let mut options = ConnectOptions::new()
            .name(name)
            .connection_timeout(self.timeout)
            .request_timeout(Some(self.timeout))
            .ping_interval(self.ping_interval)
            .event_callback(move |event| {
                signals.hear(event);
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

/// An error with what is behind it.
pub fn in_words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
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

    fn access(proof: Proof) -> NatsAccess {
        NatsAccess {
            urls: vec!["tls://a:4222".to_owned(), "tls://b:4222".to_owned()],
            place: "[backbone.nats]".to_owned(),
            proof,
            tls: None,
            timeout: Duration::from_secs(1),
            ping_interval: PING_INTERVAL,
        }
    }

    #[test]
    fn whoever_is_not_let_in_is_told_which_keys_to_look_at() {
        let password = Proof::Password("u".to_owned(), Zeroizing::new("secret".to_owned()));
        for (proof, keys) in [
            (Proof::None, "write credentials_file, nkey_file or username in [backbone.nats]"),
            (Proof::NKey(Zeroizing::default()), "check nkey_file in [backbone.nats]"),
            (Proof::Credentials(Zeroizing::default()), "check credentials_file in [backbone.nats]"),
            (password, "check username and password_file in [backbone.nats]"),
        ] {
            let said = access(proof).refusal(&ConnectError::new(ConnectErrorKind::AuthorizationViolation));
            assert!(said.starts_with("tls://a:4222, tls://b:4222: authorization violation: it "), "{said}");
            assert!(said.contains(keys) && !said.contains("secret"), "{said}");
        }
        let io = |text: &str| ConnectError::with_source(ConnectErrorKind::Io, text.to_owned());
        for (error, remedy) in [
            (
                io("received corrupt message of type InvalidContentType"),
                "it does not speak TLS on that port: write nats://",
            ),
            (io("invalid peer certificate: UnknownIssuer"), "check tls.ca, tls.cert and tls.key in [backbone.nats]"),
            (
                io("Connection refused"),
                "check the host and the port in [backbone.nats], and that nats-server runs there",
            ),
            (ConnectError::new(ConnectErrorKind::TimedOut), "nobody there speaks NATS"),
        ] {
            let said = access(Proof::None).refusal(&error);
            assert!(said.contains(remedy), "{said}");
        }
    }

    #[test]
    fn a_file_that_holds_no_seed_of_a_user_is_a_fault_of_the_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seed");
        let login = NatsLogin { nkey_file: Some(path.clone()), ..NatsLogin::default() };
        let load = || {
            NatsAccess::load((&[], String::new()), &login, None, Duration::from_secs(1), &mut Reading::default())
                .map(drop)
        };
        // The pair that the documentation of NATS shows, its public half, another kind of key, and no key at all.
        std::fs::write(&path, "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY\n").unwrap();
        assert_eq!(load(), Ok(()));
        let account = KeyPair::new_account().seed().unwrap();
        for text in ["UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4", &account, "edge-1", "SUAC"] {
            std::fs::write(&path, text).unwrap();
            let fault = load().unwrap_err();
            assert_eq!(fault.key, "nkey_file");
            let said = fault.to_string();
            assert!(said.contains("does not hold the seed of a user"), "{said}");
            assert!(!said.contains(text), "{said}");
        }
    }

    #[test]
    fn what_the_server_does_not_allow_is_said_with_what_has_no_answer() {
        let signals = Signals::default();
        assert_eq!(signals.explain("timed out"), "timed out");
        let refusal = "Permissions Violation for Publish to \"$JS.API.INFO\"";
        signals.hear(Event::ServerError(ServerError::Other(refusal.to_owned())));
        signals.hear(Event::ServerError(ServerError::Other("else".to_owned())));
        let said = signals.explain("timed out");
        assert!(
            said.starts_with(refusal) && said.contains("let the account") && said.ends_with("(timed out)"),
            "{said}"
        );
    }

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

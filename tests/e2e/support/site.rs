//! Where a gateway is set up: a directory with certificates and a configuration.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use pulsegate::codec::native::ALPN;
use pulsegate::tls::certs::development;
use pulsegate::tls::handshake::{ClientOptions, ClientResumption, ClientTls, Roots, Versions};

use super::Gateway;

/// A directory that goes when the test ends.
pub struct Site {
    directory: tempfile::TempDir,
}

/// One `[[listener]]` of a configuration, with the development certificate for localhost.
pub struct Listener {
    head: String,
    tls: String,
    tables: String,
}

/// A native listener named `devices`.
pub fn native() -> Listener {
    Listener::new("devices", "native")
}

/// A raw listener named `raw`.
pub fn raw() -> Listener {
    Listener::new("raw", "raw")
}

impl Listener {
    /// A listener on a free port of the loopback address.
    pub fn new(name: &str, protocol: &str) -> Self {
        Self {
            head: format!("[[listener]]\nname = {name:?}\nlisten = \"127.0.0.1:0\"\nprotocol = {protocol:?}\n"),
            tls: "cert = \"certs/server.pem\"\nkey = \"certs/server.key\"\n".to_owned(),
            tables: String::new(),
        }
    }

    /// A listener at the port of another one.
    pub fn sharing(name: &str, protocol: &str, owner: &str) -> Self {
        let listener = Self::new(name, protocol);
        Self { head: listener.head.replace("listen = \"127.0.0.1:0\"", &format!("shares = {owner:?}")), ..listener }
    }

    /// Any further key of the listener itself, with its value as it is written.
    pub fn key(mut self, key: &str, value: &str) -> Self {
        let _ = writeln!(self.head, "{key} = {value}");
        self
    }

    /// Asks for client certificates: `optional` or `required`.
    pub fn client_auth(mut self, mode: &str) -> Self {
        let _ = write!(self.tls, "client_ca = \"certs/ca.pem\"\nclient_auth = {mode:?}\n");
        self
    }

    /// Asks for client certificates of these authorities: `optional` or `required`.
    pub fn clients_of(mut self, authorities: &str, mode: &str) -> Self {
        let _ = write!(self.tls, "client_ca = {authorities:?}\nclient_auth = {mode:?}\n");
        self
    }

    /// Shows another certificate.
    pub fn certificate(mut self, cert: &str, key: &str) -> Self {
        self.tls = format!("cert = {cert:?}\nkey = {key:?}\n");
        self
    }

    /// `[listener.heartbeat]`, in milliseconds.
    pub fn heartbeat(self, interval: u32, timeout: u32, retries: u8) -> Self {
        let table = format!("interval = \"{interval}ms\"\ntimeout = \"{timeout}ms\"\nretries = {retries}\n");
        self.table("heartbeat", &table)
    }

    /// `[listener.identity]`, `from` alone.
    pub fn identity(self, from: &str) -> Self {
        self.table("identity", &format!("from = {from:?}\n"))
    }

    /// Any further table of the listener.
    pub fn table(mut self, name: &str, lines: &str) -> Self {
        let _ = write!(self.tables, "[listener.{name}]\n{lines}");
        self
    }

    /// One of `[[listener.authenticator]]`.
    pub fn authenticator(mut self, lines: &str) -> Self {
        let _ = writeln!(self.tables, "[[listener.authenticator]]\n{lines}");
        self
    }

    /// As it stands in a configuration.
    pub fn text(&self) -> String {
        format!("{}[listener.tls]\n{}{}", self.head, self.tls, self.tables)
    }
}

impl Site {
    /// A directory with an authority and a server certificate.
    pub fn new() -> Self {
        let site = Self { directory: tempfile::tempdir().unwrap() };
        site.certify(&[]);
        site
    }

    /// Where a file of this site lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The directory itself.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The authority of this site's certificates.
    pub fn authority(&self) -> PathBuf {
        self.path("certs/ca.pem")
    }

    /// Writes a file.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Makes client certificates.
    pub fn certify(&self, ids: &[&str]) {
        development::ensure(&self.path("certs"), ids, SystemTime::now()).unwrap();
    }

    /// A client certificate of this site and its key, made if need be.
    pub fn identity(&self, id: &str) -> (PathBuf, PathBuf) {
        self.certify(&[id]);
        (self.path(&format!("certs/client-{id}.pem")), self.path(&format!("certs/client-{id}.key")))
    }

    /// A certificate for localhost that nobody has signed but its own RSA key: `NAME.pem` and `NAME.key`.
    #[track_caller]
    pub fn self_signed(&self, name: &str) {
        let (cert, key) = (format!("{name}.pem"), format!("{name}.key"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "30"])
            .args(["-addext", "subjectAltName=DNS:localhost", "-out", &cert, "-keyout", &key])
            .current_dir(self.directory())
            .output()
            .expect("openssl is installed");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// What a plain device brings to a handshake.
    pub fn tls(&self) -> ClientTls {
        self.tls_with(None, |_| {})
    }

    /// What a device with a client certificate brings to a handshake.
    pub fn tls_as(&self, id: &str) -> ClientTls {
        self.tls_with(Some(&self.identity(id)), |_| {})
    }

    /// What a device brings to a handshake, with wishes.
    pub fn tls_with(
        &self,
        identity: Option<&(PathBuf, PathBuf)>,
        adjust: impl FnOnce(&mut ClientOptions<'_>),
    ) -> ClientTls {
        let authority = self.authority();
        let mut options = ClientOptions {
            roots: Roots::Pem(&authority),
            server_name: "localhost",
            identity: identity.map(|(cert, key)| (&**cert, &**key)),
            alpn: &[ALPN],
            versions: Versions::Both,
            cipher_suites: None,
            key_exchange: None,
            resumption: ClientResumption::Off,
        };
        adjust(&mut options);
        ClientTls::load(&options).unwrap()
    }

    /// Writes a configuration: `top` holds its first lines (keys of no table, and the table `[limits]`).
    pub fn configure(&self, top: &str, listeners: &[Listener]) {
        let mut text = format!("{top}\n");
        if !top.contains("[admin]") {
            text += "[admin]\nlisten = \"127.0.0.1:0\"\n";
        }
        for listener in listeners {
            text += &listener.text();
        }
        self.write("pulsegate.toml", &text);
    }

    /// Configures and starts a gateway.
    pub fn start(&self, top: &str, listeners: &[Listener]) -> Gateway {
        self.configure(top, listeners);
        Gateway::start(self.directory())
    }
}

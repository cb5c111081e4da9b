//! What the benches work on: pairs of connections with keys that a seed decides, rustls's own connections, and a
//! gateway's configuration with certificates of its own.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use pulsegate::config::{self, ClientAuth, Config, Machine};
use pulsegate::connection::ListenerSettings;
use pulsegate::link::ListenerId;
use pulsegate::tls::certs::development::{self, DevelopmentCerts};
use pulsegate::tls::handshake::{self, ServerOptions, ServerTls};
use pulsegate::tls::record::{DirectionSecrets, RecordLayer, Role, Suite, Version};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, RootCertStore, ServerConfig, ServerConnection, SideData,
};

/// The suite that a heartbeat is measured with: what two rustls ends agree on, left to themselves.
pub const SUITE: Suite = Suite::Tls13Aes256GcmSha384;

/// The interval of heartbeats in every configuration made here, in seconds.
pub const INTERVAL_SECONDS: u32 = 60;

// --- Our own record layer -------------------------------------------------------------------------------------------

/// The two ends, client and server, of one connection whose handshake is over.
pub fn record_pair(suite: Suite, random: &mut fastrand::Rng) -> (RecordLayer, RecordLayer) {
    let (client, server) = (Secrets::draw(suite, random), Secrets::draw(suite, random));
    (
        RecordLayer::new(Role::Client, suite, &client.borrowed(), &server.borrowed()),
        RecordLayer::new(Role::Server, suite, &server.borrowed(), &client.borrowed()),
    )
}

struct Secrets {
    secret: Vec<u8>,
    key: Vec<u8>,
    iv: [u8; 12],
}

impl Secrets {
    /// Nobody checks that a key follows from its secret until the first key update, which no bench comes to.
    fn draw(suite: Suite, random: &mut fastrand::Rng) -> Self {
        let secret_bytes = match suite.version() {
            Version::Tls12 => 0,
            Version::Tls13 if suite.name().ends_with("SHA384") => 48,
            Version::Tls13 => 32,
        };
        let key_bytes = if suite.name().contains("AES_128") { 16 } else { 32 };
        let mut secrets = Self { secret: vec![0; secret_bytes], key: vec![0; key_bytes], iv: [0; 12] };
        random.fill(&mut secrets.secret);
        random.fill(&mut secrets.key);
        random.fill(&mut secrets.iv);
        secrets
    }

    fn borrowed(&self) -> DirectionSecrets<'_> {
        DirectionSecrets { secret: &self.secret, key: &self.key, iv: &self.iv, sequence: 0 }
    }
}

/// What stands behind a moved connection: the mark of its client certificate.
pub const MARK_BYTES: usize = 20;

/// A named connection in its travelling form, as `connection::image` draws it: nothing half-received, nothing unsent.
pub fn image(device: &str, records: &RecordLayer, out: &mut Vec<u8>) {
    const NO_ADDRESS: u8 = 0;
    const NO_GRANT: u8 = 0;
    const VERSION: u8 = 2;
    const NAMED_BY_HELLO: u8 = 1;
    const TLS_ALONE: u8 = 0;
    out.extend_from_slice(&[NO_ADDRESS, NO_GRANT, VERSION, 0, NAMED_BY_HELLO, TLS_ALONE]);
    out.extend_from_slice(&(INTERVAL_SECONDS as u16 * 10).to_be_bytes());
    out.extend_from_slice(&0u32.to_be_bytes());
    out.push(u8::try_from(device.len()).expect("a device id is short"));
    out.extend_from_slice(device.as_bytes());
    out.extend_from_slice(&[0; 4 * 4]);
    records.encode(out);
    // No client certificate.
    out.extend_from_slice(&[0; MARK_BYTES]);
}

/// The id of the device with this number; all are equally long.
pub fn device_id(number: u32) -> String {
    format!("meter-{number:010}")
}

// --- rustls's own connection ----------------------------------------------------------------------------------------

/// rustls on both sides, with one suite.
pub struct Rustls {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Rustls {
    /// With any suite that goes with an ECDSA certificate.
    pub fn new(suite: Suite) -> Self {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.retain(|offered| u16::from(offered.suite()) == suite.code());
        assert_eq!(provider.cipher_suites.len(), 1, "rustls knows {}", suite.name());
        let provider = Arc::new(provider);
        let versions = match suite.version() {
            Version::Tls12 => [&rustls::version::TLS12],
            Version::Tls13 => [&rustls::version::TLS13],
        };
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).expect("a certificate of our own");
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)
            .expect("a suite of that version")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("the key is the certificate's");
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .expect("a suite of that version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { client: Arc::new(client), server: Arc::new(server) }
    }

    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// A client that trusts [`Rustls::server_config`].
    pub fn client(&self) -> ClientConnection {
        let name = ServerName::try_from("localhost").expect("a name");
        ClientConnection::new(Arc::clone(&self.client), name).expect("a client")
    }

    /// Two connections whose handshake is over, with nothing on its way between them.
    pub fn pair(&self) -> (ClientConnection, ServerConnection) {
        let mut client = self.client();
        let mut server = ServerConnection::new(self.server_config()).expect("a server");
        let mut way = Vec::new();
        while client.wants_write() || server.wants_write() {
            while client.wants_write() {
                client.write_tls(&mut way).expect("a Vec takes everything");
            }
            feed(&mut server, &mut way);
            while server.wants_write() {
                server.write_tls(&mut way).expect("a Vec takes everything");
            }
            feed(&mut client, &mut way);
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        (client, server)
    }
}

/// Hands all that is in `way` to one rustls connection, and empties it.
pub fn feed<Side: SideData>(connection: &mut ConnectionCommon<Side>, way: &mut Vec<u8>) {
    let mut rest = &way[..];
    while !rest.is_empty() {
        connection.read_tls(&mut rest).expect("bytes that are there");
        connection.process_new_packets().expect("a peer with manners");
    }
    way.clear();
}

// --- A gateway's configuration --------------------------------------------------------------------------------------

/// A directory with certificates and a configuration of one native listener; gone when dropped.
pub struct Deployment {
    directory: PathBuf,
    certificates: DevelopmentCerts,
}

impl Deployment {
    /// A gateway of one worker that listens on the loopback address at these ports, and will not probe by itself
    /// within the first `interval_seconds`.
    pub fn new(port: u16, admin_port: u16, interval_seconds: u32) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pulsegate-bench-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).expect("the temporary directory can be written to");
        let certificates = development::ensure(&directory, &[], SystemTime::now()).expect("certificates can be made");
        let mut text = String::new();
        let written = write!(
            text,
            "data_dir = \"data\"\nworkers = 1\n[admin]\nlisten = \"127.0.0.1:{admin_port}\"\n\
             [limits]\nconnections = 16000\n\
             [[listener]]\nname = \"devices\"\nlisten = \"127.0.0.1:{port}\"\nprotocol = \"native\"\n\
             [listener.tls]\ncert = \"server.pem\"\nkey = \"server.key\"\n\
             [listener.heartbeat]\ninterval = \"{interval_seconds}s\"\n"
        );
        written.expect("a String takes everything");
        let deployment = Self { directory, certificates };
        fs::write(deployment.file(), text).expect("the temporary directory can be written to");
        deployment
    }

    /// The configuration's file.
    pub fn file(&self) -> PathBuf {
        self.directory.join("pulsegate.toml")
    }

    /// The certificate of the authority that clients verify the gateway with.
    pub fn authority(&self) -> &Path {
        &self.certificates.authority.cert
    }

    /// The gateway's certificate and key.
    pub fn server(&self) -> (&Path, &Path) {
        (&self.certificates.server.cert, &self.certificates.server.key)
    }

    /// The configuration, checked.
    pub fn config(&self) -> Config {
        // A worker's own table is checked against what there is when it starts; this check is for operators.
        let machine = Machine::detect(1 << 20);
        config::load(&self.file(), &machine).expect("a configuration of our own").config
    }

    /// What holds for the connections of the one listener.
    pub fn settings(&self) -> Arc<[ListenerSettings]> {
        let config = self.config();
        let listener = &config.listeners[0];
        assert_eq!(listener.tls.client_auth, ClientAuth::Off);
        let files: Vec<(&Path, &Path)> =
            listener.tls.certificates.iter().map(|pair| (&*pair.cert, &*pair.key)).collect();
        let options = ServerOptions {
            certificates: &files,
            client_auth: handshake::ClientAuth::Off,
            alpn: &[pulsegate::codec::native::ALPN],
            ..ServerOptions::default()
        };
        let (tls, _) = ServerTls::load(&options).expect("certificates of our own");
        [ListenerSettings::new(ListenerId(0), listener, &config.limits, tls)].into()
    }
}

impl Drop for Deployment {
    fn drop(&mut self) {
        // What cannot be removed is the temporary directory's to keep.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

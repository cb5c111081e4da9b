//! TLS whose every message has the same length in every run, though never the same bytes: a seed could not be replayed
//! otherwise. Hence Ed25519, whose signatures do not vary in length, a serial number of our own, and no tickets used.

use std::path::Path;

use pulsegate::tls::handshake::{
    ClientAuth, ClientOptions, ClientResumption, ClientTls, Roots, ServerOptions, ServerTls, Versions,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ED25519, SerialNumber};

pub struct Certificates {
    pub server: ServerTls,
    pub client: ClientTls,
}

impl Certificates {
    /// Makes an authority and a server's certificate in `directory`.
    pub fn new(directory: &Path) -> Self {
        let params = |names: Vec<String>| {
            let mut params = CertificateParams::new(names).expect("a host name");
            params.serial_number = Some(SerialNumber::from(7_000_000_007));
            params
        };
        let key = || KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let mut authority = params(Vec::new());
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = key();
        let root = authority.self_signed(&authority_key).expect("a root");
        let server_key = key();
        let server = params(vec!["localhost".to_owned()]);
        let server = server.signed_by(&server_key, &Issuer::new(authority, authority_key)).expect("a certificate");
        let (cert_file, key_file) = (directory.join("server.pem"), directory.join("server.key"));
        std::fs::write(&cert_file, server.pem()).expect("a file");
        std::fs::write(&key_file, server_key.serialize_pem()).expect("a file");

        let pair = [(&*cert_file, &*key_file)];
        let options =
            ServerOptions { certificates: &pair, client_auth: ClientAuth::Off, alpn: &[], ..ServerOptions::default() };
        let (server, _) = ServerTls::load(&options).expect("a server's TLS");
        let client = ClientTls::load(&ClientOptions {
            roots: Roots::Der(root.der()),
            server_name: "localhost",
            identity: None,
            alpn: &[],
            versions: Versions::Both,
            cipher_suites: None,
            key_exchange: None,
            resumption: ClientResumption::Off,
        });
        Self { server, client: client.expect("a client's TLS") }
    }
}

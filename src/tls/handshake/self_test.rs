//! Whether a listener's TLS works at all, found out before the first device does: every chain shakes hands in memory,
//! in both versions, and one record goes each way. It also brings the code into memory that the first storm needs.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureAlgorithm, SignatureScheme};

use super::scope::CaptureTrafficSecrets;
use super::{
    CertificateFault, ClientResumption, ClientTls, Established, Handshake, HandshakeError, Progress, RecordWish,
    ServerTls, Versions,
};
use crate::tls::certs::Chain;
use crate::tls::record::{Opened, RecordLayer, Stage, next_record};

/// Why a listener's TLS does not work.
#[derive(Clone, Debug, PartialEq)]
pub struct SelfTestError {
    /// Which of the listener's certificates, from 0.
    pub certificate: usize,
    /// In which version.
    pub version: &'static str,
    /// What went wrong; none when the handshake was right and its records were not.
    pub error: Option<HandshakeError>,
}

impl fmt::Display for SelfTestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a trial handshake in {} with certificate {} failed: ", self.version, self.certificate + 1)?;
        match &self.error {
            Some(error) => error.fmt(f),
            None => f.write_str("the two sides do not understand each other"),
        }
    }
}

impl std::error::Error for SelfTestError {}

/// Shakes hands with `tls` in memory, once for each of its certificates and versions. Where client certificates are
/// required it ends when the server asks for one.
///
/// # Errors
/// [`SelfTestError`] about the first that fails.
pub fn self_test(tls: &ServerTls) -> Result<(), SelfTestError> {
    let policy = tls.policy();
    for (certificate, chain) in policy.chooser.chains().iter().enumerate() {
        for (versions, version) in [(Versions::Tls13, "TLS 1.3"), (Versions::Tls12, "TLS 1.2")] {
            // Keys of the newest kinds have no place in TLS 1.2.
            let has_tls12 = matches!(
                chain.certified.key.algorithm(),
                SignatureAlgorithm::ECDSA | SignatureAlgorithm::RSA | SignatureAlgorithm::ED25519
            );
            let is_spoken = policy.versions == Versions::Both || policy.versions == versions;
            if !is_spoken || versions == Versions::Tls12 && !has_tls12 {
                continue;
            }
            let fault = |error| SelfTestError { certificate, version, error };
            match shake_hands(tls, &client_for(chain, versions)) {
                Ok(mut trial) => {
                    if !trial.speaks() {
                        return Err(fault(None));
                    }
                }
                Err(HandshakeError::CertificateRejected(CertificateFault::Missing)) => {}
                Err(error) => return Err(fault(Some(error))),
            }
        }
    }
    Ok(())
}

/// A client that knows only the ways to sign of this chain's key and asks for its name, so that it is shown this chain.
fn client_for(chain: &Chain, versions: Versions) -> ClientTls {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let can_sign = |scheme: &SignatureScheme| chain.certified.key.choose_scheme(&[*scheme]).is_some();
    let schemes = algorithms.supported_schemes().into_iter().filter(can_sign).collect();
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions.list());
    let mut config = builder
        .expect("the provider has suites for both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(SignatureOnly { algorithms, schemes }))
        .with_no_client_auth();
    config.enable_secret_extraction = true;
    config.key_log = Arc::new(CaptureTrafficSecrets);
    config.resumption = Resumption::disabled();
    let mut names = chain.dns_names.iter().map(|name| name.replacen('*', "self-test", 1));
    let server_name = names.find_map(|name| ServerName::try_from(name).ok());
    // An address is not sent as SNI: right for a chain without DNS names.
    let server_name = server_name.unwrap_or_else(|| ServerName::from(std::net::IpAddr::from([127, 0, 0, 1])));
    ClientTls { config: Arc::new(config), server_name, resumption: ClientResumption::Off }
}

/// Two ends of one connection.
struct Trial {
    server: Established,
    client: Established,
    /// What the server sent beyond the client's handshake: a ticket, which the client's record layer must see first.
    to_client: Vec<u8>,
}

impl Trial {
    /// Whether what each side seals is what the other opens.
    fn speaks(&mut self) -> bool {
        let (server, client) = (&mut self.server.records, &mut self.client.records);
        hears(client, server, &mut Vec::new()) && hears(server, client, &mut self.to_client)
    }
}

pub(super) fn hears(from: &mut RecordLayer, to: &mut RecordLayer, wire: &mut Vec<u8>) -> bool {
    let mut answers = Vec::new();
    if from.burst().seal(b"?", wire).is_err() {
        return false;
    }
    let mut rest = &mut wire[..];
    while let Ok(Some(length)) = to.burst().next_record(rest, &mut answers) {
        let (record, behind) = rest.split_at_mut(length);
        match to.burst().open(record, &mut answers) {
            Ok(Opened::Data(data)) => return data == b"?" && behind.is_empty(),
            Ok(Opened::Handled(_)) => rest = behind,
            Ok(Opened::CloseNotify) | Err(_) => return false,
        }
    }
    false
}

fn shake_hands(server: &ServerTls, client: &ClientTls) -> Result<Trial, HandshakeError> {
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut server = Handshake::server(server, RecordWish::default());
    let mut client = Handshake::client(client, &mut to_server)?;
    // The server first: where both fail, its error is the cause and the client's is the alert about it.
    while !(server.is_done && client.is_done) {
        let server_moved = deliver(&mut server, &mut to_server, &mut to_client)?;
        let client_moved = deliver(&mut client, &mut to_client, &mut to_server)?;
        if !(server_moved || client_moved) {
            return Err(HandshakeError::peer_did("fell silent"));
        }
    }
    let mut out = Vec::new();
    Ok(Trial { server: server.finish(&mut out)?, client: client.finish(&mut out)?, to_client })
}

/// Feeds one side until it is done or `from` is used up; says whether anything was fed.
fn deliver(to: &mut Handshake, from: &mut Vec<u8>, answers: &mut Vec<u8>) -> Result<bool, HandshakeError> {
    let mut used = 0;
    while !to.is_done {
        let next = next_record(&from[used..], Stage::Handshake);
        let Some(length) = next.map_err(|_| HandshakeError::peer_did("sent no record"))? else { break };
        let record = &from[used..used + length];
        used += length;
        match to.handle_record(record, answers)? {
            Progress::Continue => {}
            Progress::Done => break,
        }
    }
    from.drain(..used);
    Ok(used > 0)
}

/// Trusts whoever holds the key of the certificate that it shows: whether others trust that certificate is theirs to
/// decide, and we speak to ourselves.
#[derive(Debug)]
struct SignatureOnly {
    algorithms: WebPkiSupportedAlgorithms,
    schemes: Vec<SignatureScheme>,
}

impl ServerCertVerifier for SignatureOnly {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes.clone()
    }
}

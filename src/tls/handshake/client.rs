//! What a client brings to every handshake: made once, shared by all its connections. The load harness and the tests are
//! clients.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::SingleCertAndKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};

use super::scope::CaptureTrafficSecrets;
use crate::tls::certs::{LoadProblem, TlsLoadError, load_authorities, load_chain};

/// What a client brings: the load harness and the tests are clients, the gateway itself never is.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions<'a> {
    /// Whom to trust.
    pub roots: Roots<'a>,
    /// The server's name: a DNS name (sent as SNI) or an IP address (not sent).
    pub server_name: &'a str,
    /// PEM files with the client's certificate chain and key, if it has any.
    pub identity: Option<(&'a Path, &'a Path)>,
    /// Application protocols, the preferred one first.
    pub alpn: &'a [&'a [u8]],
    /// Which versions are offered.
    pub versions: Versions,
    /// The cipher suites that are offered, by their IANA numbers, the preferred one first; none: all.
    pub cipher_suites: Option<&'a [u16]>,
    /// The key exchange groups that are offered, by their IANA numbers, the preferred one first; none: all.
    pub key_exchange: Option<&'a [u16]>,
    /// Whether sessions are kept and resumed, and, in TLS 1.3, whether the handshake counts as done only when the
    /// first ticket is here.
    pub resumption: ClientResumption,
}

/// Whom a client trusts.
#[derive(Clone, Copy, Debug)]
pub enum Roots<'a> {
    /// A PEM file with one or more authorities.
    Pem(&'a Path),
    /// One authority in DER.
    Der(&'a [u8]),
}

/// The protocol versions that a client offers, or a server takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// TLS 1.2 and 1.3.
    Both,
    /// TLS 1.2 alone.
    Tls12,
    /// TLS 1.3 alone.
    Tls13,
}

impl Versions {
    pub(super) fn list(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self {
            Versions::Both => &BOTH,
            Versions::Tls12 => &BOTH[1..],
            Versions::Tls13 => &BOTH[..1],
        }
    }
}

/// What a client does about sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientResumption {
    /// Each handshake is a full one.
    Off,
    /// Sessions are resumed when there is one. A TLS 1.3 ticket arrives after the handshake and is not waited for, so
    /// that only TLS 1.2 profits.
    On,
    /// As `On`, but a TLS 1.3 handshake is done only when the first ticket is here, or, from servers that send none,
    /// the first application data.
    AwaitTicket,
}

/// A client's TLS. Cloning shares it, and with it the sessions to resume.
#[derive(Clone, Debug)]
pub struct ClientTls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) server_name: ServerName<'static>,
    pub(super) resumption: ClientResumption,
}

impl ClientTls {
    /// Loads and checks everything.
    ///
    /// # Errors
    /// [`TlsLoadError`], with the file or option at fault.
    pub fn load(options: &ClientOptions<'_>) -> Result<ClientTls, TlsLoadError> {
        let now = SystemTime::now();
        let server_name = ServerName::try_from(options.server_name.to_owned())
            .map_err(|_| TlsLoadError::of_option(LoadProblem::BadServerName(options.server_name.to_owned())))?;
        let provider = Arc::new(restricted_provider(options)?);
        let roots = match options.roots {
            Roots::Pem(path) => load_authorities(path, now)?.0.roots,
            Roots::Der(der) => {
                let mut roots = RootCertStore::empty();
                let added = roots.add(CertificateDer::from(der.to_vec()));
                added.map_err(|_| TlsLoadError::of_option(LoadProblem::BadAuthority(1)))?;
                roots
            }
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(options.versions.list())
            .map_err(inconsistent)?
            .with_root_certificates(roots);
        let mut config = match options.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let (chain, _) = load_chain(&provider, cert, key, now)?;
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(chain.certified)))
            }
        };
        config.alpn_protocols = options.alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(CaptureTrafficSecrets);
        config.resumption = fresh_sessions(options.resumption);
        Ok(ClientTls { config: Arc::new(config), server_name, resumption: options.resumption })
    }

    /// The same client with sessions of its own: a fleet of simulated devices shares everything but those, or each
    /// would resume as any other.
    #[must_use]
    pub fn with_own_sessions(&self) -> ClientTls {
        let mut config = ClientConfig::clone(&self.config);
        config.resumption = fresh_sessions(self.resumption);
        ClientTls { config: Arc::new(config), ..self.clone() }
    }
}

fn fresh_sessions(resumption: ClientResumption) -> Resumption {
    match resumption {
        ClientResumption::Off => Resumption::disabled(),
        // One server, hence one place.
        _ => Resumption::store(Arc::new(ClientSessionMemoryCache::new(1))),
    }
}

/// The provider with only the suites and groups that were asked for, in that order.
fn restricted_provider(options: &ClientOptions<'_>) -> Result<CryptoProvider, TlsLoadError> {
    let unknown = |number: u16| TlsLoadError::of_option(LoadProblem::UnknownAlgorithm(number));
    let mut provider = aws_lc_rs::default_provider();
    if let Some(wanted) = options.cipher_suites {
        let find = |number: &u16| {
            let all = aws_lc_rs::ALL_CIPHER_SUITES;
            all.iter().find(|suite| u16::from(suite.suite()) == *number).copied().ok_or_else(|| unknown(*number))
        };
        provider.cipher_suites = wanted.iter().map(find).collect::<Result<_, _>>()?;
    }
    if let Some(wanted) = options.key_exchange {
        let find = |number: &u16| {
            let all = aws_lc_rs::ALL_KX_GROUPS;
            all.iter().find(|group| u16::from(group.name()) == *number).copied().ok_or_else(|| unknown(*number))
        };
        provider.kx_groups = wanted.iter().map(find).collect::<Result<_, _>>()?;
    }
    Ok(provider)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
pub(super) fn inconsistent(error: rustls::Error) -> TlsLoadError {
    TlsLoadError::of_option(LoadProblem::Inconsistent(error.to_string()))
}

//! How a sink knows the other side, and is known to it: authorities and a client certificate, from files.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use zeroize::Zeroizing;

use super::Fault;
use super::settings::Reading;
use crate::config::SinkTls;
use crate::whole_file;

/// Both forms in which libraries want it.
#[derive(Clone)]
pub struct ClientTls {
    /// For MQTT.
    pub rustls: Arc<ClientConfig>,
    /// For HTTP.
    pub ureq: TlsConfig,
}

impl ClientTls {
    /// Reads the files and proves that they fit together.
    pub fn load(config: &SinkTls, reading: &mut Reading) -> Result<Self, Fault> {
        let authorities = match &config.ca {
            Some(path) => certificates("tls.ca", path, &reading.read("tls.ca", path)?)?,
            None => of_the_system()?,
        };
        let mut roots = RootCertStore::empty();
        let (taken, _) = roots.add_parsable_certificates(authorities.iter().cloned());
        if taken == 0 {
            return Err(Fault::new("tls.ca", "it holds no authority that can be used: name a PEM file with one"));
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Fault::new("tls", error.to_string()))?
            .with_root_certificates(roots);
        let roots = RootCerts::from(authorities.iter().map(|der| Certificate::from_der(der).to_owned()));
        let Some((cert, key)) = &config.client else {
            return Ok(Self { rustls: Arc::new(builder.with_no_client_auth()), ureq: for_http(roots, None, provider) });
        };
        let chain = certificates("tls.cert", cert, &reading.read("tls.cert", cert)?)?;
        let key_pem = reading.read("tls.key", key)?;
        let no_key = |error: String| {
            Fault::new("tls.key", format!("{}: {error}: name a PEM file with the key of tls.cert", key.display()))
        };
        let key_der = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| no_key(error.to_string()))?;
        let for_ureq = PrivateKey::from_pem(&key_pem).map_err(|error| no_key(error.to_string()))?;
        let certs: Vec<_> = chain.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
        let client = ClientCert::new_with_certs(&certs, for_ureq);
        let rustls = builder.with_client_auth_cert(chain, key_der).map_err(|error| no_key(error.to_string()))?;
        Ok(Self { rustls: Arc::new(rustls), ureq: for_http(roots, Some(client), provider) })
    }
}

fn for_http(roots: RootCerts, client: Option<ClientCert>, provider: Arc<CryptoProvider>) -> TlsConfig {
    TlsConfig::builder().root_certs(roots).client_cert(client).unversioned_rustls_crypto_provider(provider).build()
}

fn certificates(
    key: &'static str,
    path: &Path,
    pem: &Zeroizing<Vec<u8>>,
) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(Fault::new(key, format!("{} holds no certificate: name a PEM file with one", path.display()))),
    }
}

fn of_the_system() -> Result<Vec<CertificateDer<'static>>, Fault> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let what = "this machine has no list of authorities: install ca-certificates, or name a file";
        return Err(Fault::new("tls.ca", what));
    }
    Ok(found.certs)
}

/// Reads a whole file that may hold a secret.
pub(super) fn read(path: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
    whole_file::read(path).map(Zeroizing::new)
}

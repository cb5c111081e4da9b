//! How a gateway is known whose API is spoken over TLS, and how whoever asks is known to it: from files.

use std::path::Path;
use std::sync::Arc;

use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use crate::cli::CliError;
use crate::cli::arguments::Gateway;

/// What an `https` URL needs.
pub(super) fn config(gateway: &Gateway) -> Result<TlsConfig, CliError> {
    let roots = match &gateway.admin_ca {
        Some(file) => certificates(file)?,
        None => of_the_system()?,
    };
    let client = match (&gateway.admin_cert, &gateway.admin_key) {
        (Some(cert), Some(key)) => Some(identity(cert, key)?),
        _ => None,
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let roots = RootCerts::from(roots);
    Ok(TlsConfig::builder().root_certs(roots).client_cert(client).unversioned_rustls_crypto_provider(provider).build())
}

fn read(file: &Path) -> Result<Vec<u8>, CliError> {
    std::fs::read(file).map_err(|error| CliError::Api(format!("{} cannot be read: {error}", file.display())))
}

fn certificates(file: &Path) -> Result<Vec<Certificate<'static>>, CliError> {
    let text = read(file)?;
    let found = parse_pem(&text).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    let found: Vec<_> = found.collect();
    if found.is_empty() {
        return Err(CliError::Api(format!("{} holds no certificate: name a PEM file with one", file.display())));
    }
    Ok(found)
}

fn identity(cert: &Path, key: &Path) -> Result<ClientCert, CliError> {
    let chain = certificates(cert)?;
    let key_of = |error| CliError::Api(format!("{} holds no private key that can be used: {error}", key.display()));
    Ok(ClientCert::new_with_certs(&chain, PrivateKey::from_pem(&read(key)?).map_err(key_of)?))
}

fn of_the_system() -> Result<Vec<Certificate<'static>>, CliError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let what = "this machine has no list of authorities: name the gateway's with --admin-ca";
        return Err(CliError::Api(what.to_owned()));
    }
    Ok(found.certs.iter().map(|der| Certificate::from_der(der).to_owned()).collect())
}

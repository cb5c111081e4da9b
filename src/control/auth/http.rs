//! Asking an HTTP service, from a thread that may wait: one request at a time, bounded in time and in bytes.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ureq::Agent;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use crate::config::{Endpoint, Secret};
use crate::whole_file;

/// The longest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// A service, and how it is asked. Clones share their connections.
#[derive(Clone)]
pub(super) struct HttpClient {
    agent: Agent,
    url: String,
    authorization: Option<Secret>,
}

impl HttpClient {
    /// For `endpoint`, whose answers may take `timeout` from the first byte of the question to the last one of the answer.
    ///
    /// # Errors
    /// Its authorities cannot be used: in words.
    pub(super) fn new(endpoint: &Endpoint, bearer: Option<Secret>, timeout: Duration) -> Result<Self, String> {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // What stands in the environment is not the configuration.
            .proxy(None)
            .max_response_header_size(HEAD_BYTES_MAX)
            .timeout_global(Some(timeout));
        if let Some(file) = &endpoint.ca {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let roots = RootCerts::from(authorities(file)?);
            let tls = TlsConfig::builder().root_certs(roots).unversioned_rustls_crypto_provider(provider).build();
            config = config.https_only(true).tls_config(tls);
        }
        Ok(Self { agent: config.build().new_agent(), url: endpoint.url.clone(), authorization: bearer })
    }

    /// What the service has there. Only status 200 is an answer, of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub(super) fn get(&self, bytes_max: u64) -> Result<Vec<u8>, NoAnswer> {
        let mut request = self.agent.get(&self.url);
        if let Some(token) = &self.authorization {
            request = request.header("authorization", format!("Bearer {}", token.reveal()));
        }
        read(request.call(), bytes_max)
    }

    /// What the service says to this JSON; the same.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub(super) fn post(&self, json: &[u8], bytes_max: u64) -> Result<Vec<u8>, NoAnswer> {
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        if let Some(token) = &self.authorization {
            request = request.header("authorization", format!("Bearer {}", token.reveal()));
        }
        read(request.send(json), bytes_max)
    }
}

type Outcome = Result<ureq::http::Response<ureq::Body>, ureq::Error>;

fn read(outcome: Outcome, bytes_max: u64) -> Result<Vec<u8>, NoAnswer> {
    let mut answer = outcome.map_err(|error| NoAnswer(error.to_string()))?;
    let status = answer.status().as_u16();
    if status != 200 {
        return Err(NoAnswer(format!("it answers with status {status}")));
    }
    let body = answer.body_mut().with_config().limit(bytes_max).read_to_vec();
    body.map_err(|error| NoAnswer(error.to_string()))
}

fn authorities(file: &Path) -> Result<Vec<ureq::tls::Certificate<'static>>, String> {
    let path = file.display();
    let text = whole_file::read(file).map_err(|error| format!("{path} cannot be read: {error}"))?;
    let mut found = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| format!("{path} is no PEM: {error}"))? {
            found.push(certificate);
        }
    }
    if found.is_empty() { Err(format!("{path} holds no certificate in PEM")) } else { Ok(found) }
}

/// Why there is no answer, in words.
#[derive(Debug)]
pub(super) struct NoAnswer(String);

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

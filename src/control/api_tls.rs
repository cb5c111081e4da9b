//! TLS of the HTTP API: what it shows, what it demands, and a connection that may begin with a handshake.
//!
//! Handshakes are made by the connection's own task when it is read first, within the time that a request's head has: nobody who
//! stops halfway keeps others from being accepted.

use std::fmt;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

use crate::config::AdminTls;

/// What the API is spoken over, ready to use.
#[derive(Clone)]
pub struct ApiTls(Arc<ServerConfig>);

/// Why it cannot be used.
#[derive(Debug)]
pub struct ApiTlsError {
    /// The key of `[admin.tls]`.
    pub key: &'static str,
    /// What is wrong, and what to do.
    pub what: String,
}

impl fmt::Display for ApiTlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for ApiTlsError {}

impl fmt::Debug for ApiTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiTls")
    }
}

impl ApiTls {
    /// Reads the files and proves that they fit together.
    ///
    /// # Errors
    /// [`ApiTlsError`] about the first that does not.
    pub fn load(config: &AdminTls) -> Result<Self, ApiTlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = certificates("cert", &config.cert)?;
        let wrong_key = |what: String| ApiTlsError { key: "key", what: format!("{}: {what}", config.key.display()) };
        let key = PrivateKeyDer::from_pem_file(&config.key)
            .map_err(|error| wrong_key(format!("{error}: name a PEM file with the key of admin.tls.cert")))?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong_key(error.to_string()))?;
        let builder = match &config.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let wrong =
                    |what: String| ApiTlsError { key: "client_ca", what: format!("{}: {what}", file.display()) };
                let mut roots = RootCertStore::empty();
                for authority in certificates("client_ca", file)? {
                    roots.add(authority).map_err(|error| wrong(error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().map_err(|error| wrong(error.to_string()))?)
            }
        };
        let config = builder.with_single_cert(chain, key);
        let mut config =
            config.map_err(|error| wrong_key(format!("{error}: name a PEM file with the key of admin.tls.cert")))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }
}

fn certificates(key: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, ApiTlsError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let what = match read {
        Ok(found) if !found.is_empty() => return Ok(found),
        Ok(_) => "it holds no certificate: name a PEM file with one".to_owned(),
        Err(error) => format!("{error}: name a PEM file with certificates that the gateway may read"),
    };
    Err(ApiTlsError { key, what: format!("{}: {what}", file.display()) })
}

/// What a connection of the API is made of.
pub(super) enum Transport {
    Plain(TcpStream),
    /// Its handshake is not over.
    Opening(Box<Accept<TcpStream>>),
    Open(Box<TlsStream<TcpStream>>),
    /// Its handshake came to nothing.
    Failed,
}

impl Transport {
    /// Over `tls`, if the API has it now.
    pub(super) fn new(stream: TcpStream, tls: Option<&ApiTls>) -> Self {
        match tls {
            None => Transport::Plain(stream),
            Some(ApiTls(config)) => Transport::Opening(Box::new(TlsAcceptor::from(Arc::clone(config)).accept(stream))),
        }
    }

    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Transport::Opening(accept) = self else { return Poll::Ready(Ok(())) };
        match ready!(Pin::new(accept.as_mut()).poll(context)) {
            Ok(stream) => {
                *self = Transport::Open(Box::new(stream));
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                *self = Transport::Failed;
                tracing::debug!(%error, "a TLS handshake with the HTTP API failed");
                Poll::Ready(Err(error))
            }
        }
    }
}

fn failed() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_open(context))?;
        match &mut *self {
            Transport::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Transport::Open(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
            Transport::Opening(_) | Transport::Failed => Poll::Ready(Err(failed())),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(context))?;
        match &mut *self {
            Transport::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Transport::Open(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
            Transport::Opening(_) | Transport::Failed => Poll::Ready(Err(failed())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(context))?;
        match &mut *self {
            Transport::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Transport::Open(stream) => Pin::new(stream.as_mut()).poll_write_vectored(context, parts),
            Transport::Opening(_) | Transport::Failed => Poll::Ready(Err(failed())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Transport::Plain(stream) => stream.is_write_vectored(),
            Transport::Open(stream) => stream.is_write_vectored(),
            Transport::Opening(_) | Transport::Failed => false,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(context),
            Transport::Open(stream) => Pin::new(stream.as_mut()).poll_flush(context),
            // Nothing was written.
            Transport::Opening(_) | Transport::Failed => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Transport::Open(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
            Transport::Opening(_) | Transport::Failed => Poll::Ready(Ok(())),
        }
    }
}

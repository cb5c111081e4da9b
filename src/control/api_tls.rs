//! TLS of the HTTP API: what it shows, what it demands, and a connection that may begin with a handshake.
//!
//! Handshakes are made by the connection's own task when it is read first, within the time that a request's head has: nobody who
//! stops halfway keeps others from being accepted. Whoever speaks plain HTTP here is told so in plain HTTP.

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
                    roots.add(authority).map_err(|error| {
                        wrong(format!("{error}: name a PEM file with authorities of whoever may ask"))
                    })?;
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

/// To whoever speaks plain HTTP where TLS is spoken; the same form as every error of the API.
const HTTPS_NEEDED: &str = concat!(
    "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: 114\r\n\r\n",
    r#"{"error":{"code":"https_needed","message":"this API is spoken over TLS: write https:// in place of http:// here"}}"#
);
/// Bytes of such a request that are taken, so that the answer is not lost with a reset.
const REQUEST_MAX: usize = 64 << 10;

/// What a connection of the API is made of.
pub(super) enum Transport {
    Plain(TcpStream),
    /// What it speaks is to be seen.
    Looking(TcpStream, ApiTls),
    /// It speaks plain HTTP, and is told what to do.
    Refusing(Refusing),
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
            Some(tls) => Transport::Looking(stream, tls.clone()),
        }
    }

    fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Transport::Looking(stream, _) = self {
            let mut first = [0];
            let looked = ready!(stream.poll_peek(context, &mut ReadBuf::new(&mut first)));
            // A method begins with a capital, and no record of TLS does (RFC 8446 5.1).
            let is_http = matches!(looked, Ok(1)) && first[0].is_ascii_uppercase();
            let Transport::Looking(stream, ApiTls(config)) = std::mem::replace(self, Transport::Failed) else {
                unreachable!("looked at just now")
            };
            *self = if is_http {
                tracing::debug!("somebody speaks plain HTTP to the HTTP API, which has TLS");
                Transport::Refusing(Refusing { stream, received: 0, sent: 0, is_shut: false })
            } else {
                Transport::Opening(Box::new(TlsAcceptor::from(config).accept(stream)))
            };
        }
        if let Transport::Refusing(refusing) = self {
            let over = ready!(refusing.poll(context));
            *self = Transport::Failed;
            return Poll::Ready(over);
        }
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

/// A connection that is told that TLS is spoken here.
pub(super) struct Refusing {
    stream: TcpStream,
    received: usize,
    sent: usize,
    is_shut: bool,
}

impl Refusing {
    /// Takes what is said, answers, and waits for the peer's end; its time is that of a request's head. Never `Ok`.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut scratch = [0; 1_024];
        let mut has_ended = false;
        // A socket that is closed with bytes unread is reset, and the answer may be lost.
        while !has_ended {
            let mut buffer = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(read) => read?,
            }
            has_ended = buffer.filled().is_empty();
            self.received += buffer.filled().len();
            if self.received > REQUEST_MAX {
                return Poll::Ready(Err(failed()));
            }
        }
        while self.sent < HTTPS_NEEDED.len() {
            let rest = &HTTPS_NEEDED.as_bytes()[self.sent..];
            self.sent += ready!(Pin::new(&mut self.stream).poll_write(context, rest))?;
        }
        if !self.is_shut {
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
            self.is_shut = true;
        }
        if has_ended { Poll::Ready(Err(failed())) } else { Poll::Pending }
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
            Transport::Looking(..) | Transport::Refusing(_) | Transport::Opening(_) | Transport::Failed => {
                Poll::Ready(Err(failed()))
            }
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_open(context))?;
        match &mut *self {
            Transport::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Transport::Open(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
            Transport::Looking(..) | Transport::Refusing(_) | Transport::Opening(_) | Transport::Failed => {
                Poll::Ready(Err(failed()))
            }
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
            Transport::Looking(..) | Transport::Refusing(_) | Transport::Opening(_) | Transport::Failed => {
                Poll::Ready(Err(failed()))
            }
        }
    }

    /// Asked before the first byte has come. Either kind is; were it said otherwise, answers would be copied once more, into memory that
    /// nobody counts.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(context),
            Transport::Open(stream) => Pin::new(stream.as_mut()).poll_flush(context),
            // Nothing was written.
            Transport::Looking(..) | Transport::Refusing(_) | Transport::Opening(_) | Transport::Failed => {
                Poll::Ready(Ok(()))
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Transport::Open(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
            Transport::Looking(..) | Transport::Refusing(_) | Transport::Opening(_) | Transport::Failed => {
                Poll::Ready(Ok(()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plain_answer_is_as_long_as_it_says() {
        let (head, body) = HTTPS_NEEDED.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{} bytes", body.len());
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["code"], "https_needed");
        assert!(include_str!("../../docs/API.md").contains("`https_needed`"));
    }
}

//! The check of client certificates: the library's, and beside it what the library does not tell. How long the chain
//! that was shown holds, so that no resumption outlives it; and which certificate it was that was refused.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::scope;
use crate::tls::certs::{Leaf, describe};

/// The most certificates of a refused chain that are told of.
const DESCRIBED_MAX: usize = 3;

/// The library's verifier, with something said to the connection that it verifies for.
#[derive(Debug)]
pub(super) struct NotingVerifier {
    pub inner: Arc<dyn ClientCertVerifier>,
    /// When a revocation list that must be fresh ends; in seconds since 1970.
    pub lists_until: u64,
}

impl ClientCertVerifier for NotingVerifier {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now);
        let chain = || std::iter::once(end_entity).chain(intermediates);
        if verified.is_ok() {
            // Those that were sent and not needed count too: all that they can do is to shorten a ticket.
            let ends = chain().filter_map(|der| Leaf::from_der(der)).map(|leaf| leaf.not_after);
            let earliest = ends.map(|end| u64::try_from(end).unwrap_or(0)).min().unwrap_or(0);
            scope::note_verified(earliest.min(self.lists_until));
        } else {
            let told: Vec<_> = chain().take(DESCRIBED_MAX).map(|der| describe(der)).collect();
            scope::note_refused(told.join("; sent with ").into());
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

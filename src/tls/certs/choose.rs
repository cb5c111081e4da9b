//! Which of a listener's certificate chains a client is shown.
//!
//! ```text
//!   1. chains with exactly the name that the client asked for (SNI, RFC 6066 section 3)
//!   2. chains with a wildcard that stands for it: `*.example` for one label, never for more or none
//!   3. all chains, as for a client that asks for no name
//!   4. the first chain
//! ```
//! The first step wins that holds a chain whose key can sign in a way the client understands; within a step the
//! operator's order counts. Step 4 makes the handshake fail with the alert that says why.

use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::Chain;

/// The certificate chains of one listener, in the operator's order: at least one.
#[derive(Debug)]
pub(in crate::tls) struct CertificateChooser {
    chains: Vec<Chain>,
}

impl CertificateChooser {
    /// # Panics
    /// When there is no chain.
    pub fn new(chains: Vec<Chain>) -> Self {
        assert!(!chains.is_empty(), "a listener has at least one certificate");
        Self { chains }
    }

    pub fn chains(&self) -> &[Chain] {
        &self.chains
    }

    fn choose(&self, server_name: Option<&str>, schemes: &[SignatureScheme]) -> &Chain {
        let usable = |chain: &&Chain| chain.certified.key.choose_scheme(schemes).is_some();
        let named = server_name.and_then(|wanted| {
            let with = |matches: fn(&str, &str) -> bool| {
                let has_name = |chain: &&Chain| chain.dns_names.iter().any(|pattern| matches(pattern, wanted));
                self.chains.iter().filter(has_name).find(usable)
            };
            with(matches_exactly).or_else(|| with(matches_wildcard))
        });
        named.or_else(|| self.chains.iter().find(usable)).unwrap_or(&self.chains[0])
    }
}

impl ResolvesServerCert for CertificateChooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.choose(hello.server_name(), hello.signature_schemes()).certified))
    }
}

fn matches_exactly(pattern: &str, wanted: &str) -> bool {
    pattern.eq_ignore_ascii_case(wanted)
}

/// RFC 9525 section 6.3: the wildcard is the whole left-most label, and stands for exactly one label.
fn matches_wildcard(pattern: &str, wanted: &str) -> bool {
    match (pattern.strip_prefix("*."), wanted.split_once('.')) {
        (Some(parent), Some((label, rest))) => !label.is_empty() && parent.eq_ignore_ascii_case(rest),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::certs::fixtures::{self, Algorithm};

    fn chooser(chains: &[(Algorithm, &[&str])]) -> CertificateChooser {
        CertificateChooser::new(chains.iter().map(|(algorithm, names)| fixtures::chain(*algorithm, names)).collect())
    }

    /// The position of the chain that is chosen.
    fn chosen(chooser: &CertificateChooser, name: Option<&str>, schemes: &[SignatureScheme]) -> usize {
        let chain = chooser.choose(name, schemes);
        chooser.chains.iter().position(|candidate| std::ptr::eq(candidate, chain)).unwrap()
    }

    const ANY: &[SignatureScheme] =
        &[SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::RSA_PSS_SHA256, SignatureScheme::ED25519];

    #[test]
    fn a_name_finds_its_chain_before_a_wildcard_and_before_the_first() {
        let chooser = chooser(&[
            (Algorithm::EcdsaP256, &["first.example"]),
            (Algorithm::EcdsaP256, &["*.fleet.example"]),
            (Algorithm::EcdsaP256, &["a.fleet.example", "B.example"]),
        ]);
        for (name, expected) in [
            (None, 0),
            (Some("unknown.example"), 0),
            (Some("first.example"), 0),
            (Some("a.fleet.example"), 2),
            (Some("A.FLEET.example"), 2),
            (Some("b.example"), 2),
            (Some("z.fleet.example"), 1),
            (Some("y.z.fleet.example"), 0),
            (Some("fleet.example"), 0),
            (Some(".fleet.example"), 0),
        ] {
            assert_eq!(chosen(&chooser, name, ANY), expected, "{name:?}");
        }
    }

    #[test]
    fn among_chains_of_one_name_the_client_s_signature_schemes_decide() {
        let chooser = chooser(&[
            (Algorithm::Ed25519, &["a.example"]),
            (Algorithm::EcdsaP256, &["b.example"]),
            (Algorithm::Rsa2048, &["b.example"]),
        ]);
        let ecdsa = &[SignatureScheme::ECDSA_NISTP256_SHA256][..];
        let rsa = &[SignatureScheme::RSA_PKCS1_SHA256][..];
        for (name, schemes, expected) in [
            (Some("b.example"), ANY, 1),
            (Some("b.example"), ecdsa, 1),
            (Some("b.example"), rsa, 2),
            (Some("a.example"), ANY, 0),
            // Nothing of that name can sign for this client: better another name than no common scheme.
            (Some("a.example"), rsa, 2),
            (None, ecdsa, 1),
            (None, rsa, 2),
            (None, &[SignatureScheme::ED448][..], 0),
        ] {
            assert_eq!(chosen(&chooser, name, schemes), expected, "{name:?} {schemes:?}");
        }
    }
}

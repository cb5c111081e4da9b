//! Certificates for the tests of this crate: any algorithm, any time, any names.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
    PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize, SanType,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;

use super::Chain;

const DAY: Duration = Duration::from_hours(24);

/// Test authorities made so far.
static AUTHORITIES: AtomicUsize = AtomicUsize::new(0);

/// The kinds of keys that chains come with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    EcdsaP256,
    Rsa2048,
    Ed25519,
}

impl Algorithm {
    pub const ALL: [Algorithm; 3] = [Algorithm::EcdsaP256, Algorithm::Rsa2048, Algorithm::Ed25519];

    fn generate(self) -> KeyPair {
        match self {
            Algorithm::EcdsaP256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            Algorithm::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
            Algorithm::Ed25519 => KeyPair::generate_for(&PKCS_ED25519),
        }
        .unwrap()
    }
}

/// When a certificate holds, as seen from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Time {
    Now,
    Past,
    Future,
}

/// An authority in a directory that vanishes with it.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub directory: tempfile::TempDir,
    pub pem: PathBuf,
}

impl Authority {
    pub fn new(algorithm: Algorithm) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = algorithm.generate();
        // Names of their own: an unknown authority is then unknown, and not one whose signatures are wrong.
        let number = AUTHORITIES.fetch_add(1, Ordering::Relaxed);
        let mut params = params(&format!("test authority {number}"), Time::Now);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = directory.path().join("ca.pem");
        std::fs::write(&pem, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), directory, pem }
    }

    /// A certificate and key signed by this authority, as files `NAME.pem` and `NAME.key`.
    pub fn issue(&self, name: &str, algorithm: Algorithm, time: Time, alternatives: &[SanType]) -> (PathBuf, PathBuf) {
        let key = algorithm.generate();
        let mut params = params(name, time);
        params.subject_alt_names = alternatives.to_vec();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |extension| self.directory.path().join(format!("{name}.{extension}"));
        write(&file("pem"), &certificate.pem());
        write(&file("key"), &key.serialize_pem());
        (file("pem"), file("key"))
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

pub(crate) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

/// A chain of one self-signed certificate.
pub(in crate::tls) fn chain(algorithm: Algorithm, names: &[&str]) -> Chain {
    let key = algorithm.generate();
    let mut params = params("test", Time::Now);
    params.subject_alt_names = names.iter().map(|name| dns(name)).collect();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let certified = CertifiedKey::from_der(vec![certificate], key, &aws_lc_rs::default_provider()).unwrap();
    Chain { certified: Arc::new(certified), dns_names: names.iter().map(|name| (*name).to_owned()).collect() }
}

fn params(common_name: &str, time: Time) -> CertificateParams {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = rcgen::date_time_ymd(1970, 1, 1) + now;
    let (from, to) = match time {
        Time::Now => (now - DAY, now + 30 * DAY),
        Time::Past => (now - 30 * DAY, now - DAY),
        Time::Future => (now + DAY, now + 30 * DAY),
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = from;
    params.not_after = to;
    params.use_authority_key_identifier_extension = true;
    params
}

//! Certificates for the tests of this crate: any algorithm, any time, any names.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256, RevokedCertParams, RsaKeySize,
    SanType, SerialNumber,
};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

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

    /// The same for a device, whose certificate holds for `life` from now.
    pub fn issue_for(&self, name: &str, life: Duration) -> (PathBuf, PathBuf) {
        let key = Algorithm::EcdsaP256.generate();
        let mut params = params(name, Time::Now);
        params.not_after = params.not_before + DAY + life;
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        self.write_pair(name, &certificate.pem(), &key)
    }

    /// The same, signed by an authority in between that holds for `life` from now. The file has both certificates.
    pub fn issue_through(&self, name: &str, life: Duration) -> (PathBuf, PathBuf) {
        let between_key = Algorithm::EcdsaP256.generate();
        let mut between = params(&format!("between for {name}"), Time::Now);
        between.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        between.not_after = between.not_before + DAY + life;
        let between_pem = between.signed_by(&between_key, &self.issuer).unwrap().pem();
        let issuer = Issuer::new(between, between_key);
        let key = Algorithm::EcdsaP256.generate();
        let certificate = params(name, Time::Now).signed_by(&key, &issuer).unwrap();
        self.write_pair(name, &(certificate.pem() + &between_pem), &key)
    }

    /// A revocation list of this authority that names these certificates and holds for a week, as a file `NAME.crl`.
    pub fn revoke(&self, name: &str, certificates: &[&Path]) -> PathBuf {
        let now = rcgen::date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let entry = |path: &&Path| {
            let der = CertificateDer::from_pem_file(path).unwrap();
            let (_, certificate) = X509Certificate::from_der(&der).unwrap();
            RevokedCertParams {
                serial_number: SerialNumber::from_slice(certificate.raw_serial()),
                revocation_time: now,
                reason_code: None,
                invalidity_date: None,
            }
        };
        let list = CertificateRevocationListParams {
            this_update: now - Duration::from_mins(1),
            next_update: now + 7 * DAY,
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: certificates.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.directory.path().join(format!("{name}.crl"));
        write(&path, &list.signed_by(&self.issuer).unwrap().pem().unwrap());
        path
    }

    fn write_pair(&self, name: &str, pem: &str, key: &KeyPair) -> (PathBuf, PathBuf) {
        let file = |extension| self.directory.path().join(format!("{name}.{extension}"));
        write(&file("pem"), pem);
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
    let dns_names = names.iter().map(|name| (*name).to_owned()).collect();
    Chain { certified: Arc::new(certified), dns_names, not_after: i64::MAX }
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

//! Certificates to begin with: an authority of one's own, a server certificate for this machine, and a certificate for
//! each device that one wants to try out.
//!
//! ```text
//!   ca.pem      ca.key       made once, never overwritten; 10 years
//!   server.pem  server.key   localhost, 127.0.0.1, ::1; 825 days, made anew when it no longer serves
//!   client-ID.pem  .key      CN = ID, and ID as DNS name (where it is one) and as urn:pulsegate:device:ID; 825 days
//! ```
//! For development and first steps: the authority's key lies beside what it signs, which no fleet should live with.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};
use zeroize::Zeroizing;

use super::{Leaf, Validity};
use crate::whole_file::{self, Fresh};

const DAY: Duration = Duration::from_hours(24);
const AUTHORITY_LIFE: Duration = DAY.saturating_mul(3_653);
/// The longest that all common verifiers accept of a certificate from an authority of one's own.
const LEAF_LIFE: Duration = DAY.saturating_mul(825);
/// Certificates hold from a little before now, for devices whose clocks are behind.
const CLOCK_SLACK: Duration = Duration::from_hours(1);
/// A common name has at most so many characters (RFC 5280 appendix A, `ub-common-name`).
pub(super) const ID_BYTES_MAX: usize = 64;

/// What lies in the directory now.
#[derive(Clone, Debug)]
pub struct DevelopmentCerts {
    /// The authority: what clients verify the server with, and the server its clients.
    pub authority: CertificatePair,
    /// The server's certificate.
    pub server: CertificatePair,
    /// One for each id that was asked for, in that order.
    pub clients: Vec<CertificatePair>,
}

/// A certificate and its key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificatePair {
    /// The certificate.
    pub cert: PathBuf,
    /// The private key, readable by its owner alone.
    pub key: PathBuf,
    /// Whether it was made just now; otherwise it was there and still serves.
    pub is_new: bool,
}

/// Why certificates could not be made.
#[derive(Debug)]
pub enum DevelopmentError {
    /// The id cannot be part of a file's name.
    UnsafeId(String),
    /// A file or the directory could not be read or written.
    Io(PathBuf, std::io::Error),
    /// One half of the authority is missing.
    HalfAnAuthority(PathBuf),
    /// The authority in this file cannot sign anything.
    UnusableAuthority(PathBuf, &'static str),
    /// Making a key or a certificate failed.
    Signing(rcgen::Error),
}

impl fmt::Display for DevelopmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DevelopmentError::UnsafeId(id) => write!(
                f,
                "{id:?} cannot be the id of a certificate: use 1 to {ID_BYTES_MAX} letters, digits, '-', '_', '.' and \
                 ':', beginning with a letter or digit"
            ),
            DevelopmentError::Io(path, error) => write!(f, "{}: {error}", path.display()),
            DevelopmentError::HalfAnAuthority(path) => write!(
                f,
                "{} is missing, but its other half is there; put it back, or move the other half away to begin anew",
                path.display()
            ),
            DevelopmentError::UnusableAuthority(path, reason) => {
                write!(f, "{}: {reason}; move the authority's files away to begin anew", path.display())
            }
            DevelopmentError::Signing(error) => write!(f, "cannot make a certificate: {error}"),
        }
    }
}

impl std::error::Error for DevelopmentError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            DevelopmentError::Io(_, error) => Some(error),
            DevelopmentError::Signing(error) => Some(error),
            _ => None,
        }
    }
}

impl From<rcgen::Error> for DevelopmentError {
    fn from(error: rcgen::Error) -> Self {
        DevelopmentError::Signing(error)
    }
}

/// Sees to it that `directory` (made if need be) holds an authority, a server certificate and a client certificate for
/// each of `client_ids`, all of which serve at `now`. What serves already is kept.
///
/// # Errors
/// Any [`DevelopmentError`]; what was made before it stays.
pub fn ensure(directory: &Path, client_ids: &[&str], now: SystemTime) -> Result<DevelopmentCerts, DevelopmentError> {
    if let Some(id) = client_ids.iter().find(|id| !is_safe_id(id)) {
        return Err(DevelopmentError::UnsafeId((*id).to_owned()));
    }
    std::fs::create_dir_all(directory).map_err(|error| DevelopmentError::Io(directory.to_owned(), error))?;
    let (authority, pair) = Authority::ensure(directory, now)?;
    let server = authority.ensure_leaf(directory, "server", server_params(), now)?;
    let clients = client_ids
        .iter()
        .map(|id| authority.ensure_leaf(directory, &format!("client-{id}"), client_params(id)?, now))
        .collect::<Result<_, _>>()?;
    Ok(DevelopmentCerts { authority: pair, server, clients })
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its subject key identifier, which all that it signed refers to.
    key_identifier: Vec<u8>,
    /// No certificate outlives its authority.
    not_after: i64,
}

impl Authority {
    fn ensure(directory: &Path, now: SystemTime) -> Result<(Authority, CertificatePair), DevelopmentError> {
        let mut pair = CertificatePair::at(directory, "ca");
        match (exists(&pair.cert)?, exists(&pair.key)?) {
            (true, true) => {}
            (false, false) => {
                Self::make(&pair, now)?;
                pair.is_new = true;
            }
            (true, false) => return Err(DevelopmentError::HalfAnAuthority(pair.key)),
            (false, true) => return Err(DevelopmentError::HalfAnAuthority(pair.cert)),
        }
        Ok((Self::load(&pair, now)?, pair))
    }

    fn make(pair: &CertificatePair, now: SystemTime) -> Result<(), DevelopmentError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params_named("Pulsegate development CA");
        set_validity(&mut params, now, AUTHORITY_LIFE, i64::MAX);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        put_pair(pair, &Zeroizing::new(key.serialize_pem()), &certificate.pem())
    }

    fn load(pair: &CertificatePair, now: SystemTime) -> Result<Authority, DevelopmentError> {
        let unusable = |path: &Path, reason| DevelopmentError::UnusableAuthority(path.to_owned(), reason);
        let not_an_authority = || unusable(&pair.cert, "this is not the certificate of an authority");
        let der = CertificateDer::from_pem_file(&pair.cert).map_err(|_| not_an_authority())?;
        let leaf = Leaf::from_der(&der).ok_or_else(not_an_authority)?;
        let key = read_key_pair(&pair.key).ok_or_else(|| unusable(&pair.key, "this is not a private key"))?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|_| not_an_authority())?;
        if !certificate.is_ca() {
            return Err(not_an_authority());
        }
        if certificate.public_key().raw != key.subject_public_key_info() {
            return Err(unusable(&pair.key, "this private key does not belong to the authority's certificate"));
        }
        if Validity::of(&leaf, now) != Validity::Valid {
            return Err(unusable(&pair.cert, "the authority's certificate is expired or not yet valid"));
        }
        let key_identifier = identifiers(&certificate).subject.ok_or_else(not_an_authority)?;
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Authority { issuer, key_identifier, not_after: leaf.not_after })
    }

    fn ensure_leaf(
        &self,
        directory: &Path,
        name: &str,
        mut params: CertificateParams,
        now: SystemTime,
    ) -> Result<CertificatePair, DevelopmentError> {
        let mut pair = CertificatePair::at(directory, name);
        if self.serves(&pair, now) {
            return Ok(pair);
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        set_validity(&mut params, now, LEAF_LIFE, self.not_after);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        put_pair(&pair, &Zeroizing::new(key.serialize_pem()), &certificate.pem())?;
        pair.is_new = true;
        Ok(pair)
    }

    /// Whether a pair is there, fits together, was signed by this authority, and holds at `now`.
    fn serves(&self, pair: &CertificatePair, now: SystemTime) -> bool {
        let Ok(der) = CertificateDer::from_pem_file(&pair.cert) else { return false };
        let (Some(leaf), Some(key)) = (Leaf::from_der(&der), read_key_pair(&pair.key)) else { return false };
        let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return false };
        Validity::of(&leaf, now) == Validity::Valid
            && certificate.public_key().raw == key.subject_public_key_info()
            && identifiers(&certificate).authority.as_ref() == Some(&self.key_identifier)
    }
}

impl CertificatePair {
    pub(super) fn at(directory: &Path, name: &str) -> Self {
        let file = |extension| directory.join(format!("{name}.{extension}"));
        Self { cert: file("pem"), key: file("key"), is_new: false }
    }
}

fn server_params() -> CertificateParams {
    let mut params = params_named("localhost");
    params.subject_alt_names = vec![
        SanType::DnsName("localhost".try_into().expect("ASCII")),
        SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        SanType::IpAddress(IpAddr::V6(Ipv6Addr::LOCALHOST)),
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

pub(super) fn client_params(id: &str) -> Result<CertificateParams, DevelopmentError> {
    let mut params = params_named(id);
    if is_dns_name(id) {
        params.subject_alt_names.push(SanType::DnsName(id.try_into()?));
    }
    params.subject_alt_names.push(SanType::URI(format!("urn:pulsegate:device:{id}").try_into()?));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

pub(super) fn params_named(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

pub(super) fn set_validity(params: &mut CertificateParams, now: SystemTime, life: Duration, not_after_max: i64) {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let end = (now + life).min(Duration::from_secs(not_after_max.unsigned_abs()));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(CLOCK_SLACK);
    params.not_after = epoch + end;
}

pub(super) fn is_safe_id(id: &str) -> bool {
    id.len() <= ID_BYTES_MAX
        && id.starts_with(|first: char| first.is_ascii_alphanumeric())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
}

/// A host name of RFC 1123 section 2.1: labels of letters, digits and inner hyphens, the last not all digits.
pub(super) fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let last = name.rsplit('.').next().unwrap_or(name);
    name.split('.').all(is_label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

#[derive(Default)]
struct KeyIdentifiers {
    subject: Option<Vec<u8>>,
    authority: Option<Vec<u8>>,
}

fn identifiers(certificate: &X509Certificate<'_>) -> KeyIdentifiers {
    let mut found = KeyIdentifiers::default();
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => found.subject = Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                found.authority = id.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            _ => {}
        }
    }
    found
}

pub(super) fn read_key_pair(path: &Path) -> Option<KeyPair> {
    let pem = Zeroizing::new(std::fs::read_to_string(path).ok()?);
    KeyPair::from_pem(&pem).ok()
}

pub(super) fn exists(path: &Path) -> Result<bool, DevelopmentError> {
    path.try_exists().map_err(|error| DevelopmentError::Io(path.to_owned(), error))
}

/// Puts a key and its certificate in their places, new or in the place of old ones. Nothing is there before all of it
/// is written out, so that a disk that is full leaves what there was. An end of power between the two leaves a pair
/// that does not fit together, which the next call sees.
pub(super) fn put_pair(pair: &CertificatePair, key: &str, certificate: &str) -> Result<(), DevelopmentError> {
    let fault = |place: &Path| {
        let place = place.to_owned();
        |error| DevelopmentError::Io(place, error)
    };
    let fresh_key = Fresh::write(&pair.key, key.as_bytes(), 0o600).map_err(fault(&pair.key))?;
    let fresh_certificate = Fresh::write(&pair.cert, certificate.as_bytes(), 0o644).map_err(fault(&pair.cert))?;
    fresh_key.put().map_err(fault(&pair.key))?;
    fresh_certificate.put().map_err(fault(&pair.cert))
}

/// Puts one file in its place, new or in the place of an old one.
pub(super) fn replace_file(place: &Path, text: &str, mode: u32) -> Result<(), DevelopmentError> {
    whole_file::replace(place, text.as_bytes(), mode).map_err(|error| DevelopmentError::Io(place.to_owned(), error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    fn now() -> SystemTime {
        SystemTime::now()
    }

    fn leaf(path: &Path) -> Leaf {
        Leaf::from_der(&CertificateDer::from_pem_file(path).unwrap()).unwrap()
    }

    #[test]
    fn a_set_is_made_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("certs");
        let first = ensure(&path, &["pump-17", "aa:bb_01"], now()).unwrap();
        assert!(first.authority.is_new && first.server.is_new && first.clients.iter().all(|pair| pair.is_new));
        for pair in [&first.authority, &first.server, &first.clients[0], &first.clients[1]] {
            assert_eq!(pair.key.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{pair:?}");
        }
        let contents = |pair: &CertificatePair| (std::fs::read(&pair.cert).unwrap(), std::fs::read(&pair.key).unwrap());
        let before = (contents(&first.authority), contents(&first.server), contents(&first.clients[0]));

        let again = ensure(&path, &["pump-17", "valve"], now()).unwrap();
        assert!(!again.authority.is_new && !again.server.is_new && !again.clients[0].is_new);
        assert!(again.clients[1].is_new);
        assert_eq!(before, (contents(&again.authority), contents(&again.server), contents(&again.clients[0])));
    }

    #[test]
    fn client_certificates_carry_the_id_in_every_place_that_has_room_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let made = ensure(directory.path(), &["pump-17", "aa:bb_01", "10.0.0.1"], now()).unwrap();
        let names = |index: usize| leaf(&made.clients[index].cert).names;
        assert_eq!(names(0).common_name.as_deref(), Some("pump-17"));
        assert_eq!(names(0).dns_names, ["pump-17"]);
        assert_eq!(names(0).uris, ["urn:pulsegate:device:pump-17"]);
        assert_eq!(names(1).common_name.as_deref(), Some("aa:bb_01"));
        assert_eq!((names(1).dns_names.len(), names(2).dns_names.len()), (0, 0));
        assert_eq!(names(1).uris, ["urn:pulsegate:device:aa:bb_01"]);
    }

    #[test]
    fn what_no_longer_serves_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        ensure(path, &["a"], now()).unwrap();
        // Time: the leaves are over, the authority is not, and the new leaves end no later than it.
        let later = now() + LEAF_LIFE + DAY;
        let renewed = ensure(path, &["a"], later).unwrap();
        assert!(!renewed.authority.is_new && renewed.server.is_new && renewed.clients[0].is_new);
        let near_the_end = now() + AUTHORITY_LIFE - DAY;
        let last = ensure(path, &[], near_the_end).unwrap();
        assert_eq!(leaf(&last.server.cert).not_after, leaf(&last.authority.cert).not_after);
        assert!(matches!(
            ensure(path, &[], now() + AUTHORITY_LIFE + DAY),
            Err(DevelopmentError::UnusableAuthority(..))
        ));

        // A half-written pair, and a pair of another authority.
        let made = ensure(path, &[], now()).unwrap();
        std::fs::copy(&made.authority.key, &made.server.key).unwrap();
        assert!(ensure(path, &[], now()).unwrap().server.is_new);
        std::fs::remove_file(&made.authority.cert).unwrap();
        std::fs::remove_file(&made.authority.key).unwrap();
        let other = ensure(path, &["a"], now()).unwrap();
        assert!(other.authority.is_new && other.server.is_new && other.clients[0].is_new);
    }

    #[test]
    fn an_authority_is_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        let made = ensure(path, &[], now()).unwrap();
        let key = std::fs::read(&made.authority.key).unwrap();

        std::fs::remove_file(&made.authority.key).unwrap();
        let error = ensure(path, &[], now()).unwrap_err().to_string();
        assert!(error.contains("ca.key") && error.contains("put it back"), "{error}");

        std::fs::copy(&made.server.key, &made.authority.key).unwrap();
        let error = ensure(path, &[], now()).unwrap_err().to_string();
        assert!(error.contains("ca.key") && error.contains("does not belong"), "{error}");

        std::fs::write(&made.authority.key, key).unwrap();
        std::fs::copy(&made.server.cert, &made.authority.cert).unwrap();
        let error = ensure(path, &[], now()).unwrap_err().to_string();
        assert!(error.contains("ca.pem") && error.contains("not the certificate of an authority"), "{error}");
        assert_eq!(std::fs::read(&made.authority.cert).unwrap(), std::fs::read(&made.server.cert).unwrap());
    }

    #[test]
    fn ids_that_could_leave_the_directory_are_refused_before_anything_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("untouched");
        let long = "x".repeat(65);
        for id in ["", ".", "..", "../a", "a/b", "-rf", ".hidden", "a b", "a\0", "ä", "a\n", &long] {
            let error = ensure(&path, &["fine", id], now()).unwrap_err();
            assert!(matches!(error, DevelopmentError::UnsafeId(_)), "{id:?}: {error}");
        }
        assert!(!path.exists());
    }

    #[test]
    fn a_verifier_that_we_did_not_write_accepts_them() {
        let directory = tempfile::tempdir().unwrap();
        let made = ensure(directory.path(), &["pump-17"], now()).unwrap();
        let verify = |arguments: &[&str], leaf: &Path| {
            let mut command = Command::new("openssl");
            command.args(["verify", "-x509_strict", "-CAfile"]).arg(&made.authority.cert).args(arguments).arg(leaf);
            let output = command.output().expect("openssl is installed");
            assert!(output.status.success(), "{arguments:?}: {output:?}");
        };
        verify(&["-purpose", "sslserver", "-verify_hostname", "localhost"], &made.server.cert);
        verify(&["-purpose", "sslserver", "-verify_ip", "127.0.0.1"], &made.server.cert);
        verify(&["-purpose", "sslserver", "-verify_ip", "::1"], &made.server.cert);
        verify(&["-purpose", "sslclient"], &made.clients[0].cert);
    }
}

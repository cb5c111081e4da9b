//! From PEM files to keys that can sign and authorities that can verify, or an error that names the file, what is
//! wrong with it, and what to do.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::Leaf;
use crate::whole_file;

/// Why TLS could not be set up.
#[derive(Debug)]
pub struct TlsLoadError {
    /// The file at fault; none when it is an option that is wrong.
    pub path: Option<PathBuf>,
    /// What is wrong.
    pub problem: LoadProblem,
}

/// What can be wrong with a file or an option. Its text also says what to do.
#[derive(Debug)]
pub enum LoadProblem {
    /// The file could not be read.
    Unreadable(std::io::Error),
    /// The file is not PEM, or a PEM section in it is damaged.
    NotPem,
    /// A certificate file without a certificate in it.
    NoCertificate,
    /// A certificate that cannot be understood; its position in the file, from 1.
    BadCertificate(usize),
    /// A key file without a private key in it.
    NoKey,
    /// A private key that is protected by a passphrase.
    EncryptedKey,
    /// A private key of a kind that cannot be used, or a damaged one.
    UnusableKey,
    /// The private key belongs to another certificate than the one in this file.
    KeyMismatch(PathBuf),
    /// An authority that nothing can be verified against; its position in the file, from 1.
    BadAuthority(usize),
    /// Not a DNS name or an IP address.
    BadServerName(String),
    /// A cipher suite or key exchange group, by its IANA number, that this program does not have.
    UnknownAlgorithm(u16),
    /// A revocation file without a revocation list in it.
    NoRevocationList,
    /// A revocation list that cannot be understood; its position in the file, from 1.
    BadRevocationList(usize),
    /// A revocation list whose issuer is none of the authorities; its position in the file, from 1.
    StrangeRevocationList(usize),
    /// A file that is no OCSP response.
    BadOcspResponse,
    /// A line of a ticket key file that is no key.
    BadTicketKey(usize),
    /// A ticket key file without a key in it.
    NoTicketKey,
    /// What is wanted does not go together; the TLS library's words.
    Inconsistent(String),
}

impl TlsLoadError {
    pub(in crate::tls) fn of_file(path: &Path, problem: LoadProblem) -> Self {
        Self { path: Some(path.to_owned()), problem }
    }

    pub(in crate::tls) fn of_option(problem: LoadProblem) -> Self {
        Self { path: None, problem }
    }
}

impl fmt::Display for TlsLoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.path {
            write!(f, "{}: ", path.display())?;
        }
        self.problem.fmt(f)
    }
}

impl LoadProblem {
    /// Those that can be told without naming anything.
    fn words(&self) -> Option<&'static str> {
        Some(match self {
            LoadProblem::NotPem => {
                "is not a PEM file, or is damaged; a DER certificate is converted with `openssl x509 -inform der`"
            }
            LoadProblem::NoCertificate => {
                "holds no certificate; it needs a BEGIN CERTIFICATE section, in a chain the server's own first"
            }
            LoadProblem::NoKey => {
                "holds no private key; it needs a section BEGIN PRIVATE KEY, BEGIN EC PRIVATE KEY or BEGIN RSA PRIVATE \
                 KEY"
            }
            LoadProblem::EncryptedKey => {
                "the private key is protected by a passphrase, which nobody is there to type; remove it with `openssl \
                 pkey`"
            }
            LoadProblem::UnusableKey => {
                "the private key cannot be used; give an ECDSA (P-256, P-384, P-521), RSA (2048 bits or more) or \
                 Ed25519 key"
            }
            LoadProblem::NoRevocationList => {
                "holds no revocation list; it needs a BEGIN X509 CRL section (a DER list is converted with `openssl crl \
                 -inform der`)"
            }
            LoadProblem::BadOcspResponse => {
                "is not an OCSP response in DER; fetch one with `openssl ocsp -respout`, or leave the key out"
            }
            LoadProblem::NoTicketKey => {
                "holds no ticket key; add a line made by `openssl rand -base64 48`, or leave the key out"
            }
            _ => return None,
        })
    }
}

impl fmt::Display for LoadProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoadProblem::Unreadable(error) => {
                write!(f, "cannot be read ({error}); check the path and the file's permissions")
            }
            LoadProblem::BadCertificate(position) => {
                write!(f, "certificate {position} cannot be understood; look at it with `openssl x509 -text`")
            }
            LoadProblem::KeyMismatch(certificate) => write!(
                f,
                "this private key does not belong to the first certificate in {}; give the key that it was issued for",
                certificate.display()
            ),
            LoadProblem::BadAuthority(position) => write!(
                f,
                "certificate {position} cannot serve as an authority; give the CA certificates that sign the peers'"
            ),
            LoadProblem::BadServerName(name) => write!(f, "{name:?} is neither a DNS name nor an IP address"),
            LoadProblem::UnknownAlgorithm(number) => {
                write!(f, "there is no cipher suite or key exchange group {number:#06x} here")
            }
            LoadProblem::BadRevocationList(position) => {
                write!(f, "revocation list {position} cannot be understood; look at it with `openssl crl -text`")
            }
            LoadProblem::StrangeRevocationList(position) => write!(
                f,
                "revocation list {position} is of none of the authorities in tls.client_ca; give the list that your \
                 authority has made (`openssl crl -issuer` shows whose it is)"
            ),
            LoadProblem::BadTicketKey(line) => write!(
                f,
                "line {line} is no ticket key; write a key of 32 bytes or more in base64 on each line, such as `openssl \
                 rand -base64 48` makes"
            ),
            LoadProblem::Inconsistent(words) => write!(f, "these TLS options do not go together: {words}"),
            other => f.write_str(other.words().expect("all others have words")),
        }
    }
}

impl std::error::Error for TlsLoadError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.problem {
            LoadProblem::Unreadable(error) => Some(error),
            _ => None,
        }
    }
}

/// A file that was loaded although its certificate does not hold now: the clock may be wrong, and a gateway that
/// starts is easier to mend than one that does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadWarning {
    /// The file.
    pub path: PathBuf,
    /// [`Validity::Expired`], [`Validity::NotYetValid`], or how long it still holds when that is not long.
    pub validity: Validity,
    /// What is in it.
    pub what: Dated,
}

/// What ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dated {
    /// A certificate.
    Certificate,
    /// A revocation list.
    RevocationList,
}

/// A certificate of ours that ends within this is warned of.
pub const ENDS_SOON: Duration = Duration::from_hours(14 * 24);

/// Whether a certificate holds at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// It does.
    Valid,
    /// It does for so many seconds more, which is not long.
    EndsSoon(u64),
    /// Its time is over, for so many seconds.
    Expired(u64),
    /// Its time begins in so many seconds.
    NotYetValid(u64),
}

impl Validity {
    pub(in crate::tls) fn of(leaf: &Leaf, now: SystemTime) -> Validity {
        // A clock before 1970 is far from any certificate: all of them are then not yet valid.
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        if now > leaf.not_after {
            Validity::Expired(now.abs_diff(leaf.not_after))
        } else if now < leaf.not_before {
            Validity::NotYetValid(now.abs_diff(leaf.not_before))
        } else {
            Validity::Valid
        }
    }
}

impl fmt::Display for LoadWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.path.display())?;
        let what = match self.what {
            Dated::Certificate => "certificate",
            Dated::RevocationList => "revocation list",
        };
        match self.validity {
            Validity::Valid => write!(f, "the {what} is valid"),
            Validity::EndsSoon(seconds) => {
                write!(f, "the {what} ends in {}; renew it and reload", approximate(seconds))
            }
            Validity::Expired(seconds) if self.what == Dated::RevocationList => write!(
                f,
                "the revocation list should have been renewed {} ago; with tls.crl.expired = \"refuse\" nobody with a \
                 certificate gets in until it is",
                approximate(seconds)
            ),
            Validity::Expired(seconds) => write!(
                f,
                "the certificate expired {} ago; peers that check it will refuse it until it is renewed",
                approximate(seconds)
            ),
            Validity::NotYetValid(seconds) => {
                write!(f, "the {what} is valid only in {}; check this machine's clock, or wait", approximate(seconds))
            }
        }
    }
}

fn approximate(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} seconds"),
        120..7_200 => format!("{} minutes", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A certificate chain with the key of its leaf.
#[derive(Clone, Debug)]
pub(in crate::tls) struct Chain {
    pub certified: Arc<CertifiedKey>,
    /// The DNS names that the leaf is for, wildcards among them, as the certificate has them.
    pub dns_names: Vec<String>,
    /// The last second in which the whole chain holds, since 1970.
    pub not_after: i64,
}

/// Loads a chain (leaf first) and the leaf's key, and checks that they fit. A chain that does not hold at `now` is
/// loaded with a warning.
pub(in crate::tls) fn load_chain(
    provider: &CryptoProvider,
    cert: &Path,
    key: &Path,
    now: SystemTime,
) -> Result<(Chain, Option<LoadWarning>), TlsLoadError> {
    let certificates = read_certificates(cert)?;
    let leaves = parse_all(cert, &certificates)?;
    let signer = provider
        .key_provider
        .load_private_key(read_key(key)?)
        .map_err(|_| TlsLoadError::of_file(key, LoadProblem::UnusableKey))?;
    let certified = CertifiedKey::new(certificates, signer);
    certified.keys_match().map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => TlsLoadError::of_file(key, LoadProblem::KeyMismatch(cert.to_owned())),
        // The leaf is one that x509-parser reads and the verifier of the peers would not.
        _ => TlsLoadError::of_file(cert, LoadProblem::BadCertificate(1)),
    })?;
    let dns_names = leaves[0].names.dns_names.clone();
    let not_after = leaves.iter().map(|leaf| leaf.not_after).min().expect("a chain has a leaf");
    let warning = first_warning(cert, &leaves, now).or_else(|| ends_soon(cert, not_after, now));
    Ok((Chain { certified: Arc::new(certified), dns_names, not_after }, warning))
}

/// The authorities of client certificates.
pub(in crate::tls) struct Authorities {
    pub roots: RootCertStore,
    /// Sorted: the order in the file says nothing.
    pub fingerprints: Vec<[u8; 32]>,
    /// Their subjects' names, as the certificates have them.
    pub names: Vec<Vec<u8>>,
    /// The last second in which all of them hold, since 1970.
    pub not_after: Option<i64>,
}

fn subject(der: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.subject().as_raw().to_vec())
}

/// An OCSP response that is shown with a certificate. What it says is for the clients to judge; that it is one is ours.
pub(in crate::tls) fn load_staple(path: &Path) -> Result<Vec<u8>, TlsLoadError> {
    let bytes = whole_file::read(path).map_err(|error| TlsLoadError::of_file(path, LoadProblem::Unreadable(error)))?;
    // RFC 6960 section 4.2.1: a sequence that begins with the status, which is 0 in a successful one.
    match der_sequence(&bytes) {
        Some([0x0a, 1, 0, ..]) => Ok(bytes),
        _ => Err(TlsLoadError::of_file(path, LoadProblem::BadOcspResponse)),
    }
}

/// One DER SEQUENCE that is all of its bytes.
fn der_sequence(bytes: &[u8]) -> Option<&[u8]> {
    let (&[tag, first], rest) = bytes.split_first_chunk()?;
    let (length, content) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (length, content) = rest.split_at_checked(usize::from(first - 0x80))?;
            (length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), content)
        }
        _ => return None,
    };
    (tag == 0x30 && content.len() == length).then_some(content)
}

/// Loads every authority in `path`. Those that do not hold at `now` are loaded with a warning about the first.
pub(in crate::tls) fn load_authorities(
    path: &Path,
    now: SystemTime,
) -> Result<(Authorities, Option<LoadWarning>), TlsLoadError> {
    let certificates = read_certificates(path)?;
    let leaves = parse_all(path, &certificates)?;
    let mut roots = RootCertStore::empty();
    let mut fingerprints: Vec<_> = leaves.iter().map(|leaf| leaf.facts.fingerprint).collect();
    fingerprints.sort_unstable();
    let names = certificates.iter().filter_map(|der| subject(der)).collect();
    for (index, certificate) in certificates.into_iter().enumerate() {
        roots.add(certificate).map_err(|_| TlsLoadError::of_file(path, LoadProblem::BadAuthority(index + 1)))?;
    }
    let not_after = leaves.iter().map(|leaf| leaf.not_after).min();
    Ok((Authorities { roots, fingerprints, names, not_after }, first_warning(path, &leaves, now)))
}

/// Every certificate of a PEM file: at least one.
fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsLoadError> {
    let sections = read_sections(path)?;
    let certificates: Vec<_> = sections
        .into_iter()
        .filter(|(kind, _)| *kind == SectionKind::Certificate)
        .map(|(_, der)| CertificateDer::from(der.to_vec()))
        .collect();
    if certificates.is_empty() {
        return Err(TlsLoadError::of_file(path, LoadProblem::NoCertificate));
    }
    Ok(certificates)
}

/// The first private key of a PEM file.
fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsLoadError> {
    let sections = read_sections(path)?;
    sections
        .into_iter()
        .find_map(|(kind, der)| PrivateKeyDer::from_pem(kind, der.to_vec()))
        .ok_or_else(|| TlsLoadError::of_file(path, LoadProblem::NoKey))
}

/// A PEM section as its kind and its DER, which is wiped because it may be a key.
type Section = (SectionKind, Zeroizing<Vec<u8>>);

pub(super) fn read_sections(path: &Path) -> Result<Vec<Section>, TlsLoadError> {
    let fault = |problem| TlsLoadError::of_file(path, problem);
    let bytes = Zeroizing::new(whole_file::read(path).map_err(|error| fault(LoadProblem::Unreadable(error)))?);
    // PKCS#8 says it in the section's name, OpenSSL's older form in a header that would read as a damaged section.
    let says = |words: &[u8]| bytes.windows(words.len()).any(|window| window == words);
    if says(b"BEGIN ENCRYPTED PRIVATE KEY") || says(b"Proc-Type: 4,ENCRYPTED") {
        return Err(fault(LoadProblem::EncryptedKey));
    }
    let mut sections = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(&bytes) {
        let (kind, der) = section.map_err(|_| fault(LoadProblem::NotPem))?;
        sections.push((kind, Zeroizing::new(der)));
    }
    // A file with no section at all may be DER; an empty one, or mere text, is simply without what is looked for.
    if sections.is_empty() && std::str::from_utf8(&bytes).is_err() {
        return Err(fault(LoadProblem::NotPem));
    }
    Ok(sections)
}

fn parse_all(path: &Path, certificates: &[CertificateDer<'_>]) -> Result<Vec<Leaf>, TlsLoadError> {
    let parse = |(index, der): (usize, &CertificateDer<'_>)| {
        Leaf::from_der(der).ok_or_else(|| TlsLoadError::of_file(path, LoadProblem::BadCertificate(index + 1)))
    };
    certificates.iter().enumerate().map(parse).collect()
}

/// A warning about a certificate of ours that holds, though not for long.
fn ends_soon(path: &Path, not_after: i64, now: SystemTime) -> Option<LoadWarning> {
    let now = now.duration_since(UNIX_EPOCH).ok()?.as_secs() as i64;
    let left = u64::try_from(not_after - now).ok().filter(|&left| left < ENDS_SOON.as_secs())?;
    Some(LoadWarning { path: path.to_owned(), validity: Validity::EndsSoon(left), what: Dated::Certificate })
}

fn first_warning(path: &Path, leaves: &[Leaf], now: SystemTime) -> Option<LoadWarning> {
    let validity = leaves.iter().map(|leaf| Validity::of(leaf, now)).find(|validity| *validity != Validity::Valid)?;
    Some(LoadWarning { path: path.to_owned(), validity, what: Dated::Certificate })
}

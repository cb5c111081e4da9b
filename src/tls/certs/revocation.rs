//! Revocation lists: which client certificates hold no longer. The verifier asks them in every full handshake; for
//! connections that are live when a list changes, their entries are a set of keys.

use std::collections::HashSet;
use std::path::Path;
use std::time::SystemTime;

use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::SectionKind;
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::leaf::{revocation_key, sha256};
use super::load::read_sections;
use super::{CertificateMark, Dated, LoadProblem, LoadWarning, TlsLoadError, Validity};

/// The lists of one listener.
#[derive(Default)]
pub(in crate::tls) struct RevocationLists {
    pub lists: Vec<CertificateRevocationListDer<'static>>,
    /// SHA-256 of each, sorted.
    pub fingerprints: Vec<[u8; 32]>,
    /// What they name.
    revoked: HashSet<u64>,
    /// The earliest time, in seconds since 1970, at which one of them should have been renewed.
    pub next_update: Option<i64>,
}

impl RevocationLists {
    /// Whether a list names the certificate.
    pub fn revokes(&self, mark: &CertificateMark) -> bool {
        self.revoked.contains(&mark.revocation)
    }

    /// How many certificates the lists name.
    pub fn len(&self) -> usize {
        self.revoked.len()
    }
}

/// Loads every list of every file: at least one of each. `authorities` are the names of those who may have made them;
/// a list of an authority in between is none of theirs, and is taken for a chain that is checked as a whole.
pub(in crate::tls) fn load_revocation_lists(
    paths: &[&Path],
    authorities: &[Vec<u8>],
    now: SystemTime,
) -> Result<(RevocationLists, Vec<LoadWarning>), TlsLoadError> {
    let mut all = RevocationLists::default();
    let mut warnings = Vec::new();
    let mut has_known_issuer = false;
    for path in paths {
        let sections = read_sections(path)?;
        let lists: Vec<_> = sections.into_iter().filter(|(kind, _)| *kind == SectionKind::Crl).collect();
        if lists.is_empty() {
            return Err(TlsLoadError::of_file(path, LoadProblem::NoRevocationList));
        }
        for (index, (_, der)) in lists.into_iter().enumerate() {
            let fault = || TlsLoadError::of_file(path, LoadProblem::BadRevocationList(index + 1));
            let (rest, list) = CertificateRevocationList::from_der(&der).map_err(|_| fault())?;
            if !rest.is_empty() {
                return Err(fault());
            }
            has_known_issuer |= authorities.iter().any(|name| name == list.issuer().as_raw());
            if let Some(validity) = validity(&list, now) {
                warnings.push(LoadWarning { path: (*path).to_owned(), validity, what: Dated::RevocationList });
            }
            all.add(&list, &der);
        }
    }
    if let (false, Some(path)) = (has_known_issuer, paths.first()) {
        return Err(TlsLoadError::of_file(path, LoadProblem::StrangeRevocationList(1)));
    }
    all.fingerprints.sort_unstable();
    Ok((all, warnings))
}

impl RevocationLists {
    fn add(&mut self, list: &CertificateRevocationList<'_>, der: &[u8]) {
        let issuer = sha256(list.issuer().as_raw());
        let keys = list.iter_revoked_certificates().map(|entry| revocation_key(&issuer, entry.raw_serial()));
        self.revoked.extend(keys);
        if let Some(next) = list.next_update() {
            let next = next.timestamp();
            self.next_update = Some(self.next_update.map_or(next, |earliest| earliest.min(next)));
        }
        self.fingerprints.push(sha256(der));
        self.lists.push(CertificateRevocationListDer::from(der.to_vec()));
    }
}

/// What is doubtful about the list's time.
fn validity(list: &CertificateRevocationList<'_>, now: SystemTime) -> Option<Validity> {
    let now = now.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    match (list.last_update().timestamp(), list.next_update().map(|next| next.timestamp())) {
        (made, _) if now < made => Some(Validity::NotYetValid(now.abs_diff(made))),
        (_, Some(next)) if now > next => Some(Validity::Expired(now.abs_diff(next))),
        _ => None,
    }
}

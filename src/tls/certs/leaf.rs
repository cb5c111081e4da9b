//! What the gateway wants to know of one certificate: its names and how long it holds.
//!
//! Reads only; whether a certificate is to be trusted was decided before, by the verifier.

use aws_lc_rs::digest::{Context, SHA256, digest};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Name, X509Version};

/// The names in a client's certificate, each as the certificate has it, unchecked and in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The subject's common name; none when there are several, because then nobody can say which one names the device.
    pub common_name: Option<String>,
    /// The DNS names among the subject alternative names.
    pub dns_names: Vec<String>,
    /// The URIs among the subject alternative names.
    pub uris: Vec<String>,
}

/// What tells one client certificate from all others, and how long it holds: for deny lists, revocation and the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// SHA-256 of the whole certificate.
    pub fingerprint: [u8; 32],
    /// The serial number, big-endian, without leading zeros.
    pub serial: Box<[u8]>,
    /// SHA-256 of the issuer's name as the certificate has it.
    pub issuer: [u8; 32],
    /// Last second in which it holds, since 1970.
    pub not_after: i64,
}

/// The same in 20 bytes, which is what a live connection keeps of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CertificateMark {
    /// Of issuer and serial number: what revocation lists name.
    pub revocation: u64,
    /// The first 8 bytes of the fingerprint.
    pub fingerprint: u64,
    /// Last second in which it holds, since 1970; the last that there is for those that never end.
    pub not_after: u32,
}

impl CertificateFacts {
    /// In 20 bytes.
    #[must_use]
    pub fn mark(&self) -> CertificateMark {
        CertificateMark {
            revocation: revocation_key(&self.issuer, &self.serial),
            fingerprint: first_u64(&self.fingerprint),
            not_after: u32::try_from(self.not_after).unwrap_or(u32::MAX),
        }
    }

    /// The fingerprint in hexadecimal.
    #[must_use]
    pub fn fingerprint_text(&self) -> String {
        hex(&self.fingerprint)
    }

    /// The serial number in hexadecimal, as `openssl x509 -serial` shows it.
    #[must_use]
    pub fn serial_text(&self) -> String {
        hex(&self.serial)
    }
}

/// What a certificate and a revocation list say alike of the same certificate. `issuer` is the SHA-256 of the name.
/// Sixty-four bits: among a million connections and a hundred thousand revoked certificates, one in a hundred million
/// fleets would see a connection closed by mistake, and that device comes back at once.
pub(super) fn revocation_key(issuer: &[u8; 32], serial: &[u8]) -> u64 {
    let mut context = Context::new(&SHA256);
    context.update(issuer);
    context.update(without_leading_zeros(serial));
    first_u64(context.finish().as_ref())
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn without_leading_zeros(serial: &[u8]) -> &[u8] {
    let start = serial.iter().position(|&byte| byte != 0).unwrap_or(serial.len());
    &serial[start..]
}

fn first_u64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(*bytes.first_chunk().expect("a hash has more than 8 bytes"))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a String takes everything");
    }
    text
}

/// One certificate in words, for who has to find out which it was: `CN=pump-17, serial 4f02, issued by CN=fleet, X.509
/// version 1 …`. Not more than a line, whatever a peer has put into it.
pub(in crate::tls) fn describe(der: &[u8]) -> String {
    const NAME_MAX: usize = 120;
    let short = |name: &X509Name<'_>| {
        let text: String = name.to_string().chars().filter(|c| !c.is_control()).collect();
        text[..text.floor_char_boundary(NAME_MAX)].to_owned()
    };
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return "one that cannot be read".to_owned() };
    let serial = without_leading_zeros(certificate.raw_serial());
    let serial = hex(&serial[..serial.len().min(20)]);
    let text = format!("{}, serial {serial}, issued by {}", short(certificate.subject()), short(certificate.issuer()));
    if certificate.version() == X509Version::V3 {
        return text;
    }
    let version = certificate.version().0 + 1;
    format!("{text}, X.509 version {version} where 3 is needed: give `openssl x509 -req` an -extfile")
}

/// A certificate's names and the time it holds for.
pub(in crate::tls) struct Leaf {
    pub names: PeerIdentity,
    pub facts: CertificateFacts,
    /// First second in which it holds, since 1970.
    pub not_before: i64,
    /// Last second in which it holds, since 1970.
    pub not_after: i64,
}

impl Leaf {
    /// Reads one DER certificate; none when it is not one, or when bytes follow it.
    pub fn from_der(der: &[u8]) -> Option<Leaf> {
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let mut common_names = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        let mut names = PeerIdentity { common_name: common_names.next().map(str::to_owned), ..PeerIdentity::default() };
        if common_names.next().is_some() {
            names.common_name = None;
        }
        if let Some(alternatives) = certificate.subject_alternative_name().ok()? {
            for name in &alternatives.value.general_names {
                match name {
                    GeneralName::DNSName(name) => names.dns_names.push((*name).to_owned()),
                    GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
                    _ => {}
                }
            }
        }
        let validity = certificate.validity();
        let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        let facts = CertificateFacts {
            fingerprint: sha256(der),
            serial: without_leading_zeros(certificate.raw_serial()).into(),
            issuer: sha256(certificate.issuer().as_raw()),
            not_after,
        };
        Some(Leaf { names, facts, not_before, not_after })
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn leaf(edit: impl FnOnce(&mut CertificateParams)) -> Option<Leaf> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        edit(&mut params);
        Leaf::from_der(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der())
    }

    #[test]
    fn every_kind_of_name_is_found_in_order() {
        let found = leaf(|params| {
            params.distinguished_name.push(DnType::OrganizationName, "plant 4");
            params.distinguished_name.push(DnType::CommonName, "pump-17");
            params.subject_alt_names = vec![
                SanType::URI("urn:plant:17".try_into().unwrap()),
                SanType::DnsName("pump-17.example".try_into().unwrap()),
                SanType::IpAddress([10, 0, 0, 1].into()),
                SanType::DnsName("old.example".try_into().unwrap()),
            ];
        })
        .unwrap();
        assert_eq!(found.names.common_name.as_deref(), Some("pump-17"));
        assert_eq!(found.names.dns_names, ["pump-17.example", "old.example"]);
        assert_eq!(found.names.uris, ["urn:plant:17"]);
        assert!(found.not_before < found.not_after);
    }

    #[test]
    fn no_name_and_two_names_are_no_common_name() {
        assert_eq!(leaf(|_| {}).unwrap().names, PeerIdentity::default());
        let two = leaf(|params| {
            params.distinguished_name.push(DnType::CommonName, "pump-17");
            // A second one under the same OID: rcgen keeps one per type, so it is named by its number.
            params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "pump-18");
        });
        assert_eq!(two.unwrap().names.common_name, None);
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused_at_every_length() {
        let der =
            CertificateParams::default().self_signed(&KeyPair::generate().unwrap()).unwrap().der().as_ref().to_vec();
        assert!(Leaf::from_der(&der).is_some());
        for cut in 0..der.len() {
            assert!(Leaf::from_der(&der[..cut]).is_none(), "{cut}");
        }
        assert!(Leaf::from_der(&[&der[..], &[0]].concat()).is_none());
    }
}

//! What the gateway wants to know of one certificate: its names and how long it holds.
//!
//! Reads only; whether a certificate is to be trusted was decided before, by the verifier.

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

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

/// A certificate's names and the time it holds for.
pub(in crate::tls) struct Leaf {
    pub names: PeerIdentity,
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
        Some(Leaf { names, not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp() })
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

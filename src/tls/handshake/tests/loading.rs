//! What an operator reads when something is wrong with the files, and that a trial handshake finds the rest.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateRevocationListDer, UnixTime};
use rustls::time_provider::DefaultTimeProvider;

use super::super::suites::server_provider;
use super::*;
use crate::tls::certs::{CertificateChooser, Chain, LoadProblem, TlsLoadError, Validity, fixtures};

fn load(cert: &Path, key: &Path, client_auth: ClientAuth<'_>) -> Result<ServerTls, TlsLoadError> {
    let options = ServerOptions { certificates: &[(cert, key)], client_auth, alpn: &[], ..ServerOptions::default() };
    ServerTls::load(&options).map(|(tls, _)| tls)
}

#[test]
fn an_unusable_file_is_named_with_the_reason_and_the_remedy() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let directory = fixtures.authority.directory.path();
    let (cert, key) = (&*fixtures.server.0, &*fixtures.server.1);
    let other = fixtures.authority.issue("other", Algorithm::EcdsaP256, Time::Now, &[]);
    let file = |name: &str, content: &[u8]| {
        let path = directory.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let missing = directory.join("missing.pem");
    let empty = file("empty.pem", b"");
    let binary = file("binary.pem", &[0x30, 0x82, 0xff, 0xfe]);
    let damaged = file("damaged.pem", b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n");
    let not_der = file("not-der.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let locked =
        file("locked.key", b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let old_locked = file(
        "old-locked.key",
        b"-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END EC PRIVATE KEY-----\n",
    );
    let bad_key = file("bad.key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let off = ClientAuth::Off;
    let mut seen = Vec::new();
    for (cert, key, auth, named, words) in [
        (&*missing, key, off, "missing.pem", "check the path"),
        (&empty, key, off, "empty.pem", "no certificate"),
        (key, key, off, "localhost.key", "no certificate"),
        (&binary, key, off, "binary.pem", "not a PEM file"),
        (&damaged, key, off, "damaged.pem", "damaged"),
        (&not_der, key, off, "not-der.pem", "certificate 1 cannot be understood"),
        (cert, &missing, off, "missing.pem", "check the path"),
        (cert, cert, off, "localhost.pem", "no private key"),
        (cert, &locked, off, "locked.key", "passphrase"),
        (cert, &old_locked, off, "old-locked.key", "passphrase"),
        (cert, &bad_key, off, "bad.key", "cannot be used"),
        (cert, &other.1, off, "other.key", "does not belong to the first certificate in"),
        (cert, key, ClientAuth::Required(&missing), "missing.pem", "check the path"),
        (cert, key, ClientAuth::Optional(key), "localhost.key", "no certificate"),
        (cert, key, ClientAuth::Optional(&not_der), "not-der.pem", "certificate 1"),
    ] {
        let error = load(cert, key, auth).expect_err(words);
        assert_eq!(error.path.as_deref(), Some(&*directory.join(named)), "{error}");
        let text = error.to_string();
        assert!(text.contains(named) && text.contains(words), "{text}");
        seen.push(text);
    }
    assert!(load(cert, key, ClientAuth::Required(&fixtures.authority.pem)).is_ok());
}

#[test]
fn wrong_options_are_named_too() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let with = |edit: &dyn Fn(&mut ClientOptions<'_>)| {
        let mut options = fixtures.options(Versions::Both);
        edit(&mut options);
        ClientTls::load(&options).unwrap_err()
    };
    let name = with(&|options| options.server_name = "not a name");
    assert!(matches!(name.problem, LoadProblem::BadServerName(_)) && name.path.is_none());
    let suite = with(&|options| options.cipher_suites = Some(&[0x0005]));
    assert_eq!(suite.to_string(), "there is no cipher suite or key exchange group 0x0005 here");
    let none = with(&|options| options.cipher_suites = Some(&[]));
    assert!(matches!(none.problem, LoadProblem::Inconsistent(_)), "{none}");
    let roots = with(&|options| options.roots = Roots::Der(b"nothing"));
    assert!(matches!(roots.problem, LoadProblem::BadAuthority(1)), "{roots}");
}

#[test]
fn certificates_that_do_not_hold_now_are_loaded_with_a_warning() {
    let authority = Authority::new(Algorithm::EcdsaP256);
    let past = authority.issue("past", Algorithm::EcdsaP256, Time::Past, &[]);
    let future = authority.issue("future", Algorithm::EcdsaP256, Time::Future, &[]);
    let now = authority.issue("now", Algorithm::EcdsaP256, Time::Now, &[]);
    let certificates = [(&*past.0, &*past.1), (&*now.0, &*now.1), (&*future.0, &*future.1)];
    let options = ServerOptions {
        certificates: &certificates,
        client_auth: ClientAuth::Optional(&past.0),
        alpn: &[],
        ..ServerOptions::default()
    };
    let (_, warnings) = ServerTls::load(&options).unwrap();
    let found: Vec<_> = warnings.iter().map(|warning| (&*warning.path, warning.validity)).collect();
    assert!(matches!(found[0], (path, Validity::Expired(seconds)) if path == past.0 && seconds / 3_600 == 24));
    assert!(matches!(found[1], (path, Validity::NotYetValid(_)) if path == future.0));
    assert!(matches!(found[2], (path, Validity::Expired(_)) if path == past.0));
    assert_eq!(found.len(), 3);
    let text = warnings[0].to_string();
    assert!(text.contains("past.pem") && text.contains("expired 24 hours ago"), "{text}");
}

#[test]
fn the_self_test_passes_whatever_the_options() {
    let authority = Authority::new(Algorithm::EcdsaP256);
    let files: Vec<_> = Algorithm::ALL
        .iter()
        .map(|&algorithm| authority.issue(&format!("{algorithm:?}"), algorithm, Time::Now, &[dns("*.fleet.test")]))
        .chain([authority.issue("nameless", Algorithm::Ed25519, Time::Past, &[])])
        .collect();
    let certificates: Vec<_> = files.iter().map(|(cert, key)| (&**cert, &**key)).collect();
    let ca = &*authority.pem;
    for client_auth in [ClientAuth::Off, ClientAuth::Optional(ca), ClientAuth::Required(ca)] {
        let options = ServerOptions {
            certificates: &certificates,
            client_auth,
            alpn: &[b"pulsegate/1"],
            ..ServerOptions::default()
        };
        assert_eq!(self_test(&ServerTls::load(&options).unwrap().0), Ok(()));
    }
}

#[test]
fn the_self_test_finds_a_key_that_signs_for_another_certificate() {
    let (good, other) = (
        fixtures::chain(Algorithm::EcdsaP256, &["good.test"]),
        fixtures::chain(Algorithm::EcdsaP256, &["broken.test"]),
    );
    let mut broken = (*other.certified).clone();
    broken.key = good.certified.key.clone();
    let broken = Chain { certified: Arc::new(broken), dns_names: other.dns_names, not_after: other.not_after };
    let chooser = CertificateChooser::new(vec![good, broken]);
    let (provider, clock) = (Arc::new(server_provider()), Arc::new(DefaultTimeProvider));
    let policy = TlsPolicy::load(&ServerOptions::default(), chooser, provider, clock, &mut Vec::new()).unwrap();
    let error = self_test(&ServerTls::of(policy)).unwrap_err();
    assert_eq!((error.certificate, error.version), (1, "TLS 1.3"));
    let text = error.to_string();
    assert!(text.starts_with("a trial handshake in TLS 1.3 with certificate 2 failed: "), "{text}");
}

#[test]
fn a_chain_that_ends_soon_is_loaded_with_a_warning() {
    let authority = Authority::new(Algorithm::EcdsaP256);
    let soon = authority.issue_for("soon", Duration::from_hours(72));
    let options = ServerOptions { certificates: &[(&soon.0, &soon.1)], ..ServerOptions::default() };
    let (tls, warnings) = ServerTls::load(&options).unwrap();
    let text = warnings[0].to_string();
    assert!(text.contains("soon.pem: the certificate ends in ") && text.contains("renew it"), "{text}");
    let left = tls.policy().chains_not_after().next().unwrap() - UnixTime::now().as_secs() as i64;
    assert!((70 * 3_600..=72 * 3_600).contains(&left), "{left}");
}

#[test]
fn an_unusable_revocation_list_or_ocsp_response_is_named_with_the_remedy() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let (cert, key) = (&*fixtures.server.0, &*fixtures.server.1);
    let directory = fixtures.authority.directory.path();
    let file = |name: &str, content: &[u8]| {
        let path = directory.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let good = fixtures.authority.revoke("good", &[cert]);
    let strange = Authority::new(Algorithm::EcdsaP256);
    let strange_list = strange.revoke("strange", &[]);
    let der = CertificateRevocationListDer::from_pem_file(&good).unwrap();
    for (list, words) in [
        (file("missing.crl", b"").parent().unwrap().join("none.crl"), "check the path"),
        (file("empty.crl", b""), "holds no revocation list"),
        (file("der.crl", &der), "is not a PEM file"),
        (fixtures.authority.pem.clone(), "holds no revocation list"),
        (file("bad.crl", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"), "revocation list 1 cannot"),
        (strange_list, "is of none of the authorities"),
    ] {
        let lists = [&*list];
        let revocation =
            Some(RevocationOptions { lists: &lists, accept_expired: true, accept_unknown: false, leaf_only: false });
        let options = ServerOptions {
            certificates: &[(cert, key)],
            client_auth: ClientAuth::Required(&fixtures.authority.pem),
            revocation,
            ..ServerOptions::default()
        };
        let error = ServerTls::load(&options).unwrap_err();
        assert_eq!(error.path.as_deref(), Some(&*list), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    for (staple, words) in [(file("pem.ocsp", b"-----BEGIN"), "not an OCSP response"), (good, "not an OCSP response")] {
        let options =
            ServerOptions { certificates: &[(cert, key)], staples: &[(0, &staple)], ..ServerOptions::default() };
        let error = ServerTls::load(&options).unwrap_err();
        assert!(error.path.as_deref() == Some(&*staple) && error.to_string().contains(words), "{error}");
    }
}

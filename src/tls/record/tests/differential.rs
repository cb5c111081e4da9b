//! Against rustls: it makes the handshake with itself, one end is taken over, and the conversation goes on.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex, OnceLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{AlertDescription, ClientConfig, ClientConnection, Connection, KeyLog, ServerConfig, ServerConnection};

use super::*;

/// The data sizes that matter: around nothing, a heartbeat, a whole record, and several.
const SIZES: [usize; 9] = [0, 1, 40, 1_000, 16_383, 16_384, 16_385, 32_768, 40_000];

#[derive(Debug, Default)]
struct Secrets(Mutex<Vec<(String, Vec<u8>)>>);

impl KeyLog for Secrets {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        self.0.lock().unwrap().push((label.to_owned(), secret.to_vec()));
    }
}

impl Secrets {
    fn find(&self, label: &str) -> Option<Vec<u8>> {
        self.0.lock().unwrap().iter().find(|(name, _)| name == label).map(|(_, secret)| secret.clone())
    }
}

/// A self-signed certificate of the kind that the suite demands.
fn certificate(suite: Suite) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    static ECDSA: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    static RSA: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    let (cell, algorithm) = if suite.name().contains("_RSA_") {
        (&RSA, &rcgen::PKCS_RSA_SHA256)
    } else {
        (&ECDSA, &rcgen::PKCS_ECDSA_P256_SHA256)
    };
    let (der, key) = cell.get_or_init(|| {
        let key = rcgen::KeyPair::generate_for(algorithm).expect("key");
        let parameters = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        (parameters.self_signed(&key).expect("certificate").der().to_vec(), key.serialize_der())
    });
    (CertificateDer::from(der.clone()), PrivatePkcs8KeyDer::from(key.clone()).into())
}

fn provider(suite: Suite) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|offered| u16::from(offered.suite()) == suite.code());
    assert_eq!(provider.cipher_suites.len(), 1);
    Arc::new(provider)
}

/// Our end, as a connection would hold it.
struct Ours {
    layer: RecordLayer,
    inbox: Vec<u8>,
    heard: Vec<u8>,
    handled: Vec<Handled>,
    closed: bool,
    error: Option<RecordError>,
    out: Vec<u8>,
    random: fastrand::Rng,
}

impl Ours {
    /// Takes bytes in pieces of random sizes, a burst for each.
    fn hear(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        loop {
            let mut burst = self.layer.burst();
            while let Ok(Some(whole)) = burst.next_record(&self.inbox, &mut self.out) {
                let mut record: Vec<u8> = self.inbox.drain(..whole).collect();
                match burst.open(&mut record, &mut self.out) {
                    Ok(Opened::Data(content)) => self.heard.extend_from_slice(content),
                    Ok(Opened::Handled(handled)) => self.handled.push(handled),
                    Ok(Opened::CloseNotify) => self.closed = true,
                    Err(error) => {
                        self.error = Some(error);
                        return;
                    }
                }
            }
            if rest.is_empty() {
                return;
            }
            let (piece, after) = rest.split_at(self.random.usize(1..=rest.len()));
            self.inbox.extend_from_slice(piece);
            rest = after;
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        self.layer.burst().seal(bytes, &mut self.out).expect("sealed");
    }
}

/// What rustls has to send.
fn drain(peer: &mut Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while peer.wants_write() {
        peer.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Gives rustls what was sent, and returns the data that it made of it.
fn deliver(peer: &mut Connection, bytes: &[u8]) -> Result<Vec<u8>, rustls::Error> {
    let (mut rest, mut heard) = (bytes, Vec::new());
    while !rest.is_empty() {
        peer.read_tls(&mut rest).unwrap();
        let state = peer.process_new_packets()?;
        let mut data = vec![0; state.plaintext_bytes_to_read()];
        peer.reader().read_exact(&mut data).unwrap();
        heard.extend(data);
    }
    Ok(heard)
}

/// A finished handshake: our end taken over, the other still rustls.
fn connect(suite: Suite, role: Role) -> (Ours, Connection) {
    let (certificate, key) = certificate(suite);
    let log = Arc::new(Secrets::default());
    let version = match suite.version() {
        Version::Tls12 => &rustls::version::TLS12,
        Version::Tls13 => &rustls::version::TLS13,
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider(suite))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut server = ServerConfig::builder_with_provider(provider(suite))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    if role == Role::Client {
        client.enable_secret_extraction = true;
        client.key_log = log.clone();
    } else {
        server.enable_secret_extraction = true;
        server.key_log = log.clone();
    }
    let client = Connection::from(ClientConnection::new(Arc::new(client), "localhost".try_into().unwrap()).unwrap());
    let server = Connection::from(ServerConnection::new(Arc::new(server)).unwrap());
    let (ours, mut peer) = if role == Role::Client { (client, server) } else { (server, client) };
    let (ours, inbox) = shake_hands(ours, &mut peer);
    let negotiated = ours.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(u16::from(negotiated), suite.code());
    let (from_client, from_server) = (log.find("CLIENT_TRAFFIC_SECRET_0"), log.find("SERVER_TRAFFIC_SECRET_0"));
    let traffic = from_client.as_ref().zip(from_server.as_ref());
    let traffic = traffic.map(|(client, server)| TrafficSecrets { client, server });
    let secrets = ours.dangerous_extract_secrets().unwrap();
    if suite.version() == Version::Tls13 {
        let swapped = traffic.map(|t| TrafficSecrets { client: t.server, server: t.client });
        let refused = |traffic| RecordLayer::from_rustls(role, negotiated, &secrets, traffic).map(|_| ()).unwrap_err();
        assert_eq!(refused(swapped), HandoverError::Mismatch);
        assert_eq!(refused(None), HandoverError::MissingTrafficSecrets);
    }
    let layer = RecordLayer::from_rustls(role, negotiated, &secrets, traffic).expect("taken over");
    assert_eq!((layer.role(), layer.suite(), layer.version()), (role, suite, suite.version()));
    let random = fastrand::Rng::with_seed(u64::from(suite.code()));
    let (heard, handled, out) = (Vec::new(), Vec::new(), Vec::new());
    (Ours { layer, inbox, heard, handled, closed: false, error: None, out, random }, peer)
}

/// Feeds our end one record at a time and stops when its handshake is done; what came too early is returned.
fn shake_hands(mut ours: Connection, peer: &mut Connection) -> (Connection, Vec<u8>) {
    let mut inbox = Vec::new();
    while ours.is_handshaking() || ours.wants_write() || peer.is_handshaking() {
        deliver(peer, &drain(&mut ours)).unwrap();
        inbox.extend(drain(peer));
        while ours.is_handshaking()
            && let Some(whole) = next_record(&inbox, Stage::Handshake).unwrap()
        {
            deliver(&mut ours, &inbox[..whole]).unwrap();
            inbox.drain(..whole);
        }
    }
    inbox.extend(drain(peer));
    (ours, inbox)
}

fn for_each_suite_and_role(test: impl Fn(Suite, Role)) {
    for &suite in Suite::ALL {
        test(suite, Role::Client);
        test(suite, Role::Server);
    }
}

/// Both say something and hear what the other said.
fn converse(ours: &mut Ours, peer: &mut Connection, size: usize) {
    let mut payload = vec![0; size];
    ours.random.fill(&mut payload);
    ours.say(&payload);
    assert_eq!(deliver(peer, &std::mem::take(&mut ours.out)).unwrap(), payload);
    ours.random.fill(&mut payload);
    peer.writer().write_all(&payload).unwrap();
    ours.hear(&drain(peer));
    assert_eq!(ours.error, None);
    assert!(std::mem::take(&mut ours.heard) == payload);
}

#[test]
fn data_flows_both_ways_in_every_suite_and_role() {
    for_each_suite_and_role(|suite, role| {
        let (mut ours, mut peer) = connect(suite, role);
        for size in SIZES {
            converse(&mut ours, &mut peer, size);
        }
        let tickets = suite.version() == Version::Tls13 && role == Role::Client;
        assert_eq!(!ours.handled.is_empty(), tickets, "{suite:?}");
        assert!(ours.handled.iter().all(|&handled| handled == Handled::SessionTickets));
        for _ in 0..20 {
            let size = ours.random.usize(0..=40_000);
            converse(&mut ours, &mut peer, size);
        }
    });
}

#[test]
fn data_behind_the_handshake_is_not_lost() {
    for &suite in Suite::ALL {
        let (mut ours, mut peer) = connect(suite, Role::Server);
        peer.writer().write_all(&vec![7; 40_000]).unwrap();
        ours.inbox = drain(&mut peer);
        ours.hear(&[]);
        assert!(ours.heard == vec![7; 40_000], "{suite:?}");
    }
}

#[test]
fn keys_are_updated_by_either_side_and_at_once() {
    for suite in suites(Version::Tls13) {
        for role in [Role::Client, Role::Server] {
            let (mut ours, mut peer) = connect(suite, role);
            converse(&mut ours, &mut peer, 100);
            ours.handled.clear();
            for request_peer in [false, true, true] {
                assert!(ours.layer.burst().update_keys(request_peer, &mut ours.out));
                converse(&mut ours, &mut peer, 20_000);
                let expected: &[_] = if request_peer { &[Handled::KeyUpdate { requested: false }] } else { &[] };
                assert_eq!(std::mem::take(&mut ours.handled), expected);
            }
            for _ in 0..3 {
                // rustls always asks for ours in return; the answer goes out in front of our next data.
                peer.refresh_traffic_keys().unwrap();
                ours.hear(&drain(&mut peer));
                assert_eq!(std::mem::take(&mut ours.handled), [Handled::KeyUpdate { requested: true }]);
                assert!(!ours.out.is_empty());
                converse(&mut ours, &mut peer, 20_000);
            }
            // They cross: each has asked before it heard the other.
            peer.refresh_traffic_keys().unwrap();
            let crossing = drain(&mut peer);
            assert!(ours.layer.burst().update_keys(true, &mut ours.out));
            ours.hear(&crossing);
            converse(&mut ours, &mut peer, 20_000);
            converse(&mut ours, &mut peer, 20_000);
        }
    }
}

#[test]
fn close_notify_is_understood_both_ways() {
    for_each_suite_and_role(|suite, role| {
        let (mut ours, mut peer) = connect(suite, role);
        converse(&mut ours, &mut peer, 10);
        ours.layer.burst().close_notify(&mut ours.out);
        let mut rest = &std::mem::take(&mut ours.out)[..];
        peer.read_tls(&mut rest).unwrap();
        assert!(peer.process_new_packets().unwrap().peer_has_closed(), "{suite:?}");
        assert_eq!(ours.layer.burst().seal(b"late", &mut ours.out), Err(RecordError::Closed));
        // Our side is closed; the peer's is not yet.
        peer.writer().write_all(b"last words").unwrap();
        peer.send_close_notify();
        ours.hear(&drain(&mut peer));
        assert_eq!((&ours.heard[..], ours.closed, ours.error), (&b"last words"[..], true, None));
        assert!(ours.out.is_empty());
    });
}

#[test]
fn our_alerts_reach_rustls() {
    for_each_suite_and_role(|suite, role| {
        let (mut ours, mut peer) = connect(suite, role);
        ours.layer.burst().alert(Alert::InternalError, &mut ours.out);
        let told = deliver(&mut peer, &ours.out).unwrap_err();
        assert_eq!(told, rustls::Error::AlertReceived(AlertDescription::InternalError), "{suite:?}");
        assert_dead(&mut ours.layer);
    });
}

#[test]
fn a_warning_does_not_disturb_rustls() {
    for_each_suite_and_role(|suite, role| {
        let (mut ours, mut peer) = connect(suite, role);
        ours.layer.burst().alert(Alert::UserCanceled, &mut ours.out);
        assert!(deliver(&mut peer, &std::mem::take(&mut ours.out)).unwrap().is_empty(), "{suite:?}");
        converse(&mut ours, &mut peer, 100);
    });
}

#[test]
fn the_alerts_of_rustls_reach_us() {
    for_each_suite_and_role(|suite, role| {
        let (mut ours, mut peer) = connect(suite, role);
        ours.say(b"to be spoiled");
        *ours.out.last_mut().unwrap() ^= 1;
        let spoiled = std::mem::take(&mut ours.out);
        assert_eq!(deliver(&mut peer, &spoiled), Err(rustls::Error::DecryptError));
        ours.hear(&drain(&mut peer));
        assert_eq!(ours.error, Some(RecordError::PeerAlert(Alert::BadRecordMac as u8)), "{suite:?}");
        assert!(ours.out.is_empty());
        assert_dead(&mut ours.layer);
    });
}

#[test]
fn a_spoiled_record_of_rustls_is_refused_with_the_alert_that_says_so() {
    for_each_suite_and_role(|suite, role| {
        let (mut ours, mut peer) = connect(suite, role);
        peer.writer().write_all(b"to be spoiled").unwrap();
        let mut spoiled = drain(&mut peer);
        *spoiled.last_mut().unwrap() ^= 1;
        ours.hear(&spoiled);
        assert_eq!(ours.error, Some(RecordError::BadMac), "{suite:?}");
        let told = deliver(&mut peer, &ours.out).unwrap_err();
        assert_eq!(told, rustls::Error::AlertReceived(AlertDescription::BadRecordMac));
        assert_dead(&mut ours.layer);
    });
}

#[test]
fn an_unprotected_alert_is_understood_within_the_handshake() {
    let suite = Suite::Tls13Aes128GcmSha256;
    let (certificate, _) = certificate(suite);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let config = ClientConfig::builder_with_provider(provider(suite))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut peer = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap().into();
    let hello = drain(&mut peer);
    assert_eq!(next_record(&hello, Stage::First), Ok(Some(hello.len())));
    let mut out = Vec::new();
    plaintext_alert(Alert::HandshakeFailure, &mut out);
    assert_eq!(next_record(&out, Stage::First), Ok(Some(out.len())));
    let told = deliver(&mut peer, &out).unwrap_err();
    assert_eq!(told, rustls::Error::AlertReceived(AlertDescription::HandshakeFailure));
}

#[test]
fn a_connection_moves_in_the_middle_of_its_conversation() {
    for_each_suite_and_role(|suite, role| {
        let (mut ours, mut peer) = connect(suite, role);
        for _ in 0..3 {
            converse(&mut ours, &mut peer, 20_000);
            if suite.version() == Version::Tls13 {
                ours.layer.burst().update_keys(true, &mut ours.out);
            }
            let mut bytes = Vec::new();
            ours.layer.encode(&mut bytes);
            let (moved, taken) = RecordLayer::decode(&bytes).expect("decoded");
            assert_eq!(taken, bytes.len());
            ours.layer = moved;
        }
        converse(&mut ours, &mut peer, 20_000);
    });
}

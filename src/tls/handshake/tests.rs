//! Both roles against each other, record by record, and against clients that we did not write.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::SanType;

use super::self_test::hears;
use super::*;
use crate::tls::certs::fixtures::{Algorithm, Authority, Time, dns};
use crate::tls::record::{Alert, Opened, RecordError, Stage, Version, next_record};

mod failures;
mod interop;
mod loading;
mod resumption;

const ALL_VERSIONS: [Versions; 2] = [Versions::Tls13, Versions::Tls12];

/// A server certificate for `localhost`, its authority, and client certificates of that authority.
struct Fixtures {
    authority: Authority,
    server: (PathBuf, PathBuf),
}

impl Fixtures {
    fn new(algorithm: Algorithm) -> Self {
        let authority = Authority::new(algorithm);
        let server = authority.issue("localhost", algorithm, Time::Now, &[dns("localhost")]);
        Self { authority, server }
    }

    fn client_certificate(&self, id: &str, time: Time) -> (PathBuf, PathBuf) {
        let uri = SanType::URI(format!("urn:fleet:{id}").try_into().unwrap());
        self.authority.issue(id, Algorithm::EcdsaP256, time, &[dns(id), uri])
    }

    fn server(&self, client_auth: ClientAuth<'_>, alpn: &[&[u8]]) -> ServerTls {
        let certificates = [(&*self.server.0, &*self.server.1)];
        let options = ServerOptions { certificates: &certificates, client_auth, alpn, ..ServerOptions::default() };
        ServerTls::load(&options).unwrap().0
    }

    /// A client with a certificate, or without one.
    fn client(&self, identity: Option<&(PathBuf, PathBuf)>, versions: Versions) -> ClientTls {
        let mut options = self.options(versions);
        options.identity = identity.map(|(cert, key)| (&**cert, &**key));
        ClientTls::load(&options).unwrap()
    }

    fn client_with_groups(&self, groups: &[u16]) -> ClientTls {
        let mut options = self.options(Versions::Tls13);
        options.key_exchange = Some(groups);
        ClientTls::load(&options).unwrap()
    }

    fn options(&self, versions: Versions) -> ClientOptions<'_> {
        ClientOptions {
            roots: Roots::Pem(&self.authority.pem),
            server_name: "localhost",
            identity: None,
            alpn: &[],
            versions,
            cipher_suites: None,
            key_exchange: None,
            resumption: ClientResumption::Off,
        }
    }
}

/// One end of a connection with what was sent to it.
struct End {
    handshake: Handshake,
    inbox: Vec<u8>,
    error: Option<HandshakeError>,
}

impl End {
    /// Handles the next record; false when there is none, or none is wanted.
    fn step(&mut self, peer: &mut Vec<u8>) -> bool {
        if self.handshake.is_done || self.error.is_some() {
            return false;
        }
        let Some(length) = next_record(&self.inbox, Stage::Handshake).unwrap() else { return false };
        let record: Vec<u8> = self.inbox.drain(..length).collect();
        match self.handshake.handle_record(&record, peer) {
            Ok(progress) => assert_eq!(progress == Progress::Done, self.handshake.is_done),
            Err(error) => self.error = Some(error),
        }
        true
    }
}

struct Pair {
    server: End,
    client: End,
}

/// Two established ends, and the bytes that their record layers are to see first.
struct ConnectedPair {
    server: Established,
    client: Established,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
}

impl Pair {
    fn new(server: &ServerTls, client: &ClientTls) -> Self {
        let mut inbox = Vec::new();
        let client = Handshake::client(client, &mut inbox).unwrap();
        let server = End { handshake: Handshake::server(server, RecordWish::default()), inbox, error: None };
        Self { server, client: End { handshake: client, inbox: Vec::new(), error: None } }
    }

    /// One record each way; false when nothing moves any more.
    fn step(&mut self) -> bool {
        let server = self.server.step(&mut self.client.inbox);
        let client = self.client.step(&mut self.server.inbox);
        server || client
    }

    fn run(mut self) -> Self {
        while self.step() {}
        self
    }

    fn finish(self) -> ConnectedPair {
        assert_eq!((self.server.error, self.client.error), (None, None));
        let mut out = Vec::new();
        let server = self.server.handshake.finish(&mut out).unwrap();
        let client = self.client.handshake.finish(&mut out).unwrap();
        assert!(out.is_empty());
        ConnectedPair { server, client, to_server: self.server.inbox, to_client: self.client.inbox }
    }

    /// The alert that the client learns of, within its handshake or, when it was done first, after it.
    fn alert_to_client(self) -> u8 {
        if let Some(error) = self.client.error {
            let HandshakeError::PeerAlert(alert) = error else { panic!("{error:?}") };
            return alert;
        }
        let mut records = self.client.handshake.finish(&mut Vec::new()).unwrap().records;
        let mut inbox = self.client.inbox;
        match records.burst().open(&mut inbox, &mut Vec::new()) {
            Err(RecordError::PeerAlert(alert)) => alert,
            other => panic!("{other:?}"),
        }
    }
}

impl ConnectedPair {
    /// Data both ways, before and after new keys both ways.
    fn check(&mut self) {
        let (server, client) = (&mut self.server.records, &mut self.client.records);
        assert!(hears(client, server, &mut self.to_server));
        assert!(hears(server, client, &mut self.to_client));
        if server.version() == Version::Tls13 {
            let mut wire = Vec::new();
            assert!(server.burst().update_keys(true, &mut wire));
            let mut answer = Vec::new();
            assert!(matches!(client.burst().open(&mut wire, &mut answer), Ok(Opened::Handled(_))));
            assert!(hears(client, server, &mut answer));
            assert!(hears(server, client, &mut Vec::new()));
        }
    }
}

fn connect(server: &ServerTls, client: &ClientTls) -> ConnectedPair {
    let mut pair = Pair::new(server, client).run().finish();
    pair.check();
    pair
}

#[test]
fn every_version_key_and_client_certificate_does_what_the_options_say() {
    for algorithm in Algorithm::ALL {
        let fixtures = Fixtures::new(algorithm);
        let good = fixtures.client_certificate("pump-17", Time::Now);
        let expired = fixtures.client_certificate("pump-18", Time::Past);
        let future = fixtures.client_certificate("pump-19", Time::Future);
        let elsewhere = Fixtures::new(Algorithm::EcdsaP256);
        let stranger = elsewhere.client_certificate("pump-17", Time::Now);
        let ca = &*fixtures.authority.pem;
        for versions in ALL_VERSIONS {
            let (off, optional, required) = (ClientAuth::Off, ClientAuth::Optional(ca), ClientAuth::Required(ca));
            for (auth, identity, expected) in [
                (off, None, Ok(None)),
                (off, Some(&good), Ok(None)),
                (optional, None, Ok(None)),
                (optional, Some(&good), Ok(Some("pump-17"))),
                (optional, Some(&stranger), Err((CertificateFault::UnknownIssuer, Alert::UnknownCa))),
                (required, Some(&good), Ok(Some("pump-17"))),
                (required, None, Err((CertificateFault::Missing, Alert::CertificateRequired))),
                (required, Some(&stranger), Err((CertificateFault::UnknownIssuer, Alert::UnknownCa))),
                (required, Some(&expired), Err((CertificateFault::Expired, Alert::CertificateExpired))),
                (required, Some(&future), Err((CertificateFault::NotYetValid, Alert::CertificateExpired))),
            ] {
                let case = format!("{algorithm:?} {versions:?} {auth:?} {identity:?}");
                let pair = Pair::new(&fixtures.server(auth, &[]), &fixtures.client(identity, versions)).run();
                match expected {
                    Ok(name) => {
                        let mut pair = pair.finish();
                        pair.check();
                        assert!(!pair.server.resumed && !pair.client.resumed, "{case}");
                        assert_eq!(pair.server.server_name.as_deref(), Some("localhost"), "{case}");
                        assert_eq!(pair.server.peer, name.map(identity_of), "{case}");
                        assert_eq!((pair.client.peer, pair.client.server_name), (None, None), "{case}");
                    }
                    Err((fault, alert)) => {
                        let error = pair.server.error.clone().expect(&case);
                        assert_eq!(error, HandshakeError::CertificateRejected(fault), "{case}");
                        assert_eq!(pair.alert_to_client(), alert as u8, "{case}");
                    }
                }
            }
        }
    }
}

fn identity_of(id: &str) -> PeerIdentity {
    PeerIdentity {
        common_name: Some(id.to_owned()),
        dns_names: vec![id.to_owned()],
        uris: vec![format!("urn:fleet:{id}")],
    }
}

#[test]
fn sessions_are_resumed_with_the_client_s_identity() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let (cert, key) = fixtures.client_certificate("pump-17", Time::Now);
    let server = fixtures.server(ClientAuth::Required(&fixtures.authority.pem), &[b"pulsegate/1"]);
    for versions in ALL_VERSIONS {
        let mut options = fixtures.options(versions);
        options.identity = Some((&cert, &key));
        options.alpn = &[b"pulsegate/1"];
        options.resumption = ClientResumption::AwaitTicket;
        let client = ClientTls::load(&options).unwrap();
        for round in 0..3 {
            let pair = connect(&server, &client);
            assert_eq!((pair.server.resumed, pair.client.resumed), (round > 0, round > 0), "{versions:?} {round}");
            assert_eq!(pair.server.peer, Some(identity_of("pump-17")), "{versions:?} {round}");
            assert_eq!(pair.server.server_name.as_deref(), Some("localhost"), "{versions:?} {round}");
            assert_eq!((pair.server.alpn, pair.client.alpn), (Some(0), Some(0)), "{versions:?} {round}");
            let has_key_exchange = versions == Versions::Tls13 || round == 0;
            assert_eq!(pair.server.key_exchange.is_some(), has_key_exchange, "{versions:?} {round}");
        }
        // Sessions of one's own, and tickets of another listener, begin at nothing.
        assert!(!connect(&server, &client.with_own_sessions()).server.resumed);
        assert!(!connect(&fixtures.server(ClientAuth::Off, &[]), &client).server.resumed);
    }
}

#[test]
fn a_ticket_is_not_waited_for_unless_wanted() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let server = fixtures.server(ClientAuth::Off, &[]);
    let mut options = fixtures.options(Versions::Tls13);
    options.resumption = ClientResumption::On;
    let client = ClientTls::load(&options).unwrap();
    let pair = Pair::new(&server, &client).run();
    assert_eq!(next_record(&pair.client.inbox, Stage::Handshake), Ok(Some(pair.client.inbox.len())), "the ticket");
    pair.finish().check();
    assert!(!connect(&server, &client).server.resumed);
}

#[test]
fn the_server_name_and_the_client_s_signature_schemes_choose_the_certificate() {
    let authority = Authority::new(Algorithm::EcdsaP256);
    let issue = |name: &str, algorithm, names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| dns(name)).collect();
        authority.issue(name, algorithm, Time::Now, &names)
    };
    let files = [
        issue("first", Algorithm::EcdsaP256, &["localhost"]),
        issue("exact", Algorithm::Ed25519, &["a.fleet.test"]),
        issue("wild", Algorithm::EcdsaP256, &["*.fleet.test"]),
        issue("wild-rsa", Algorithm::Rsa2048, &["*.fleet.test"]),
    ];
    let certificates: Vec<_> = files.iter().map(|(cert, key)| (&**cert, &**key)).collect();
    let options = ServerOptions {
        certificates: &certificates,
        client_auth: ClientAuth::Off,
        alpn: &[],
        ..ServerOptions::default()
    };
    let (server, warnings) = ServerTls::load(&options).unwrap();
    assert_eq!(warnings, []);
    // TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256: a client that can only do RSA.
    let rsa_only = Some(&[0xc02f][..]);
    for (name, suites, expected) in [
        ("localhost", None, 0),
        ("a.fleet.test", None, 1),
        ("b.fleet.test", None, 2),
        ("b.fleet.test", rsa_only, 3),
        ("unknown.test", None, 0),
        ("127.0.0.1", None, 0),
    ] {
        let client = ClientTls::load(&ClientOptions {
            roots: Roots::Pem(&authority.pem),
            server_name: name,
            identity: None,
            alpn: &[],
            versions: if suites.is_some() { Versions::Tls12 } else { Versions::Both },
            cipher_suites: suites,
            key_exchange: None,
            resumption: ClientResumption::Off,
        })
        .unwrap();
        let pair = Pair::new(&server, &client).run();
        if ["unknown.test", "127.0.0.1"].contains(&name) {
            // The fallback is shown, and the client finds that it is for another name.
            assert_eq!(
                pair.client.error,
                Some(HandshakeError::CertificateRejected(CertificateFault::WrongName)),
                "{name}"
            );
            continue;
        }
        assert_eq!(pair.client.error, None, "{name}");
        let shown = &pair.client.handshake.connection.peer_certificates().unwrap()[0];
        assert_eq!(shown, &server.policy().chooser.chains()[expected].certified.cert[0], "{name} {suites:x?}");
    }
}

#[test]
fn the_application_protocol_is_the_server_s_first_that_the_client_offers() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let both: &[&[u8]] = &[b"pulsegate/1", b"mqtt"];
    let server = fixtures.server(ClientAuth::Off, both);
    let cases: [(&[&[u8]], _, _); 4] = [
        (&[], None, None),
        (&[b"mqtt"], Some(1), Some(0)),
        (&[b"mqtt", b"pulsegate/1"], Some(0), Some(1)),
        (&[b"h2", b"mqtt"], Some(1), Some(1)),
    ];
    for versions in ALL_VERSIONS {
        for (offered, at_server, at_client) in cases {
            let mut options = fixtures.options(versions);
            options.alpn = offered;
            let pair = connect(&server, &ClientTls::load(&options).unwrap());
            assert_eq!((pair.server.alpn, pair.client.alpn), (at_server, at_client), "{offered:?}");
        }
        let mut options = fixtures.options(versions);
        options.alpn = &[b"h2", b"http/1.1"];
        let pair = Pair::new(&server, &ClientTls::load(&options).unwrap()).run();
        let refused = HandshakeError::NothingInCommon(Choice::ApplicationProtocol);
        assert_eq!(pair.server.error, Some(refused));
        assert_eq!(pair.alert_to_client(), Alert::NoApplicationProtocol as u8);
    }
}

#[test]
fn every_suite_and_key_exchange_is_carried_over() {
    let fixtures_ecdsa = Fixtures::new(Algorithm::EcdsaP256);
    let fixtures_rsa = Fixtures::new(Algorithm::Rsa2048);
    let suites = [0x1301, 0x1302, 0x1303, 0xc02b, 0xc02c, 0xcca9, 0xc02f, 0xc030, 0xcca8];
    for suite in suites {
        let fixtures = if [0xc02f, 0xc030, 0xcca8].contains(&suite) { &fixtures_rsa } else { &fixtures_ecdsa };
        let versions = if suite < 0x1400 { Versions::Tls13 } else { Versions::Tls12 };
        let mut options = fixtures.options(versions);
        let wanted = [suite];
        options.cipher_suites = Some(&wanted);
        let pair = connect(&fixtures.server(ClientAuth::Off, &[]), &ClientTls::load(&options).unwrap());
        assert_eq!(pair.server.records.suite().code(), suite);
        assert_eq!(pair.client.records.suite().code(), suite);
    }
    let server = fixtures_ecdsa.server(ClientAuth::Off, &[]);
    let by_default = connect(&server, &fixtures_ecdsa.client(None, Versions::Both));
    assert_eq!(by_default.server.key_exchange, Some(0x11ec), "X25519MLKEM768");
    for group in [0x001d, 0x0017, 0x0018, 0x11ec] {
        assert_eq!(connect(&server, &fixtures_ecdsa.client_with_groups(&[group])).server.key_exchange, Some(group));
    }
}

#[test]
fn sha_256_is_preferred_whatever_the_client_s_order() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let server = fixtures.server(ClientAuth::Off, &[]);
    let cases: [(&[u16], Versions, u16); 4] = [
        (&[0x1302, 0x1303, 0x1301], Versions::Tls13, 0x1301),
        (&[0x1302, 0x1303], Versions::Tls13, 0x1303),
        (&[0x1302], Versions::Tls13, 0x1302),
        (&[0xc02c, 0xcca9, 0xc02b], Versions::Tls12, 0xc02b),
    ];
    for (offered, versions, agreed) in cases {
        let mut options = fixtures.options(versions);
        options.cipher_suites = Some(offered);
        let pair = connect(&server, &ClientTls::load(&options).unwrap());
        assert_eq!(pair.server.records.suite().code(), agreed, "of {offered:x?}");
    }
}

#[test]
fn a_hello_retry_request_costs_a_round_trip_and_nothing_else() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let server = fixtures.server(ClientAuth::Off, &[]);
    // MLKEM768 alone, whose share the client sends, is not among the server's groups; X25519 is.
    let client = fixtures.client_with_groups(&[0x0201, 0x001d]);
    let pair = Pair::new(&server, &client).run();
    let kind = pair.server.handshake.connection.handshake_kind();
    assert_eq!(kind, Some(HandshakeKind::FullWithHelloRetryRequest));
    let mut pair = pair.finish();
    pair.check();
    assert_eq!(pair.server.key_exchange, Some(0x001d));
}

#[test]
fn what_follows_the_handshake_is_left_to_the_record_layer() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let server = fixtures.server(ClientAuth::Off, &[]);
    for versions in ALL_VERSIONS {
        let mut pair = Pair::new(&server, &fixtures.client(None, versions));
        // The client runs ahead: it is done and speaks at once, all in the flight that holds its Finished.
        while !pair.client.handshake.is_done {
            pair.server.step(&mut pair.client.inbox);
            while pair.client.step(&mut pair.server.inbox) {}
        }
        // In TLS 1.3 the client is done first, in TLS 1.2 the server.
        assert_eq!(pair.server.handshake.is_done, versions == Versions::Tls12);
        let mut client = pair.client.handshake.finish(&mut Vec::new()).unwrap().records;
        let sent: Vec<u8> = (0..40_000_u32).map(|index| index as u8).collect();
        client.burst().seal(&sent, &mut pair.server.inbox).unwrap();
        client.burst().close_notify(&mut pair.server.inbox);
        while pair.server.step(&mut pair.client.inbox) {}
        assert_eq!(pair.server.error, None);
        let mut records = pair.server.handshake.finish(&mut Vec::new()).unwrap().records;
        let (mut heard, mut closed, mut out) = (Vec::new(), false, Vec::new());
        let mut rest = &mut pair.server.inbox[..];
        while let Some(length) = records.burst().next_record(rest, &mut out).unwrap() {
            let (record, behind) = rest.split_at_mut(length);
            match records.burst().open(record, &mut out).unwrap() {
                Opened::Data(data) => heard.extend_from_slice(data),
                Opened::CloseNotify => closed = true,
                Opened::Handled(other) => panic!("{other:?}"),
            }
            rest = behind;
        }
        assert!(heard == sent && closed, "{versions:?}: {} bytes", heard.len());
    }
}

#[test]
fn handshakes_that_take_turns_on_one_thread_keep_their_secrets_apart() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let server = fixtures.server(ClientAuth::Off, &[]);
    let client = fixtures.client(None, Versions::Both);
    let mut pairs: Vec<_> = (0..8).map(|_| Pair::new(&server, &client)).collect();
    while pairs.iter_mut().map(Pair::step).filter(|moved| *moved).count() > 0 {}
    for pair in pairs {
        pair.finish().check();
    }
}

/// A server that sends no ticket, and a client that waits for one.
fn ticketless() -> Pair {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let certificates = [(&*fixtures.server.0, &*fixtures.server.1)];
    let options = ServerOptions { certificates: &certificates, tickets: None, ..ServerOptions::default() };
    let server = ServerTls::load(&options).unwrap().0;
    let mut options = fixtures.options(Versions::Tls13);
    options.resumption = ClientResumption::AwaitTicket;
    let pair = Pair::new(&server, &ClientTls::load(&options).unwrap()).run();
    assert!(pair.client.handshake.is_complete() && !pair.client.handshake.is_done);
    pair
}

#[test]
fn data_that_comes_before_the_awaited_ticket_is_not_lost() {
    let mut pair = ticketless();
    let mut server = pair.server.handshake.finish(&mut Vec::new()).unwrap().records;
    server.burst().seal(b"before any ticket", &mut pair.client.inbox).unwrap();
    assert!(pair.client.step(&mut pair.server.inbox));
    assert!(pair.client.handshake.is_done);
    let mut client = pair.client.handshake.finish(&mut Vec::new()).unwrap();
    assert_eq!(client.early_plaintext, b"before any ticket");
    assert!(hears(&mut server, &mut client.records, &mut Vec::new()));
    assert!(hears(&mut client.records, &mut server, &mut Vec::new()));
}

#[test]
fn a_client_may_stop_waiting_for_a_ticket() {
    let pair = ticketless();
    pair.finish().check();
}

#[test]
fn new_keys_or_an_end_before_the_awaited_ticket_are_errors() {
    let mut pair = ticketless();
    let mut server = pair.server.handshake.finish(&mut Vec::new()).unwrap().records;
    assert!(server.burst().update_keys(false, &mut pair.client.inbox));
    assert!(pair.client.step(&mut pair.server.inbox));
    assert_eq!(pair.client.error, None);
    let error = pair.client.handshake.finish(&mut Vec::new()).unwrap_err();
    assert!(matches!(error, HandshakeError::Handover(_)), "{error:?}");

    let mut pair = ticketless();
    let mut server = pair.server.handshake.finish(&mut Vec::new()).unwrap().records;
    server.burst().close_notify(&mut pair.client.inbox);
    assert!(pair.client.step(&mut pair.server.inbox));
    assert_eq!(pair.client.error, Some(HandshakeError::PeerClosed));
}

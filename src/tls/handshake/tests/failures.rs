//! What a broken or hostile peer gets: an error, an alert, and never a panic.

use super::*;

/// A record of any type around `content`.
fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[kind, 3, 3, high, low], content].concat()
}

fn server() -> (Fixtures, ServerTls) {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let server = fixtures.server(ClientAuth::Off, &[]);
    (fixtures, server)
}

fn client_hello(fixtures: &Fixtures, versions: Versions) -> Vec<u8> {
    let mut hello = Vec::new();
    let _handshake = Handshake::client(&fixtures.client(None, versions), &mut hello).unwrap();
    hello
}

/// The alert in an unprotected record, which must be all there is.
#[track_caller]
fn plain_alert(out: &[u8]) -> u8 {
    assert_eq!(out[..6], [21, 3, 3, 0, 2, 2], "one fatal alert: {out:x?}");
    assert_eq!(out.len(), 7);
    out[6]
}

#[test]
fn a_first_record_that_is_no_client_hello_is_answered_with_an_alert() {
    let (fixtures, tls) = server();
    let hello = client_hello(&fixtures, Versions::Both);
    let oversized = record(22, &vec![1; 65_535]);
    let almost = record(22, &vec![1; 20_000]);
    for (what, bytes, alert) in [
        ("another protocol", &b"GET / HTTP/1.1\r\n\r\n"[..], Alert::DecodeError),
        ("application data", &record(23, b"x"), Alert::UnexpectedMessage),
        ("a message without end", &record(22, &[1, 0xff, 0xff, 0xff]), Alert::DecodeError),
        ("oversized", &oversized, Alert::DecodeError),
        ("a little oversized", &almost, Alert::DecodeError),
        ("a truncated record", &hello[..hello.len() - 1], Alert::DecodeError),
        ("two records", &[&hello[..], &hello[..]].concat(), Alert::DecodeError),
        ("half a header", &hello[..3], Alert::DecodeError),
        ("nothing", &[], Alert::DecodeError),
    ] {
        let mut out = Vec::new();
        let error = Handshake::server(&tls, RecordWish::default()).handle_record(bytes, &mut out).expect_err(what);
        assert!(matches!(error, HandshakeError::Protocol(_)), "{what}: {error:?}");
        assert_eq!(plain_alert(&out), alert as u8, "{what}");
    }
}

/// Feeds one record to a new server: it goes on, or ends with an alert.
fn check(tls: &ServerTls, record: &[u8], case: &str) {
    let mut out = Vec::new();
    match Handshake::server(tls, RecordWish::default()).handle_record(record, &mut out) {
        Ok(progress) => assert_eq!(progress, Progress::Continue, "{case}"),
        Err(HandshakeError::Internal(detail)) => panic!("{case}: {detail}"),
        // A changed content type may have made an alert of it.
        Err(HandshakeError::PeerAlert(_)) => {}
        Err(error) => {
            // Some changes are found only after the ServerHello; the alert is then protected.
            let mut kind = 0;
            while let Some(length) = next_record(&out, Stage::Handshake).unwrap() {
                kind = out.drain(..length).next().unwrap();
            }
            assert!(out.is_empty() && [21, 23].contains(&kind), "{case}: {error}");
        }
    }
}

#[test]
fn client_hellos_cut_or_changed_anywhere_end_in_an_alert_or_go_on() {
    let (fixtures, tls) = server();
    for versions in ALL_VERSIONS {
        let hello = client_hello(&fixtures, versions);
        for cut in 0..hello.len() - HEADER_LEN {
            // The message's own length is right for what is left, so that the parser sees its end.
            let mut content = hello[HEADER_LEN..HEADER_LEN + cut].to_vec();
            if cut >= 4 {
                content[1..4].copy_from_slice(&((cut - 4) as u32).to_be_bytes()[1..]);
            }
            check(&tls, &record(22, &content), &format!("cut at {cut}"));
        }
        for position in HEADER_LEN..hello.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut changed = hello.clone();
                changed[position] ^= flip;
                check(&tls, &changed, &format!("{position} ^ {flip:#x}"));
            }
        }
    }
}

#[test]
fn a_server_flight_changed_anywhere_never_completes_the_client_s_handshake() {
    let (fixtures, tls) = server();
    for versions in ALL_VERSIONS {
        let flight_len = {
            let mut pair = Pair::new(&tls, &fixtures.client(None, versions));
            pair.server.step(&mut pair.client.inbox);
            pair.client.inbox.len()
        };
        // Signatures differ in length by a few bytes from one handshake to the next.
        for position in (0..flight_len - 16).step_by(7) {
            let mut pair = Pair::new(&tls, &fixtures.client(None, versions));
            pair.server.step(&mut pair.client.inbox);
            pair.client.inbox[position] ^= 0x55;
            while let Ok(Some(length)) = next_record(&pair.client.inbox, Stage::Handshake) {
                let record: Vec<u8> = pair.client.inbox.drain(..length).collect();
                match pair.client.handshake.handle_record(&record, &mut pair.server.inbox) {
                    Ok(progress) => assert_eq!(progress, Progress::Continue, "{versions:?} {position}"),
                    Err(HandshakeError::Internal(detail)) => panic!("{versions:?} {position}: {detail}"),
                    Err(_) => break,
                }
            }
        }
    }
}

/// A ClientHello of the time before TLS 1.3: one suite, one signature scheme, X25519.
fn old_client_hello(version: u16, suite: u16, scheme: u16) -> Vec<u8> {
    let (version, suite, scheme) = (version.to_be_bytes(), suite.to_be_bytes(), scheme.to_be_bytes());
    let schemes = [&[0, 13, 0, 4, 0, 2][..], &scheme].concat();
    let extensions = [&schemes[..], &[0, 10, 0, 4, 0, 2, 0, 29], &[0, 11, 0, 2, 1, 0]].concat();
    let suites = [&[0, 2][..], &suite, &[1, 0]].concat();
    let body = [&version[..], &[7; 32], &[0], &suites, &[0, extensions.len() as u8], &extensions].concat();
    record(22, &[&[1, 0, 0, body.len() as u8], &body[..]].concat())
}

#[test]
fn nothing_in_common_says_what() {
    let (fixtures, tls) = server();
    let mut out = Vec::new();
    let error = Handshake::server(&tls, RecordWish::default())
        .handle_record(&old_client_hello(0x0302, 0xc02b, 0x0403), &mut out)
        .unwrap_err();
    assert_eq!(error, HandshakeError::NothingInCommon(Choice::Version));
    assert_eq!(plain_alert(&out), Alert::ProtocolVersion as u8);
    assert_eq!(error.to_string(), "the peer shares no protocol version with us");

    // An RSA-only suite at an ECDSA-only server, and a group that it lacks.
    let mut options = fixtures.options(Versions::Tls12);
    options.cipher_suites = Some(&[0xc02f]);
    let pair = Pair::new(&tls, &ClientTls::load(&options).unwrap()).run();
    assert!(matches!(pair.server.error, Some(HandshakeError::NothingInCommon(_))), "{:?}", pair.server.error);
    assert_eq!(pair.alert_to_client(), Alert::HandshakeFailure as u8);

    // The only way to sign is one that a P-256 key has not, in an otherwise fine suite.
    let hello = old_client_hello(0x0303, 0xc02b, 0x0503);
    out.clear();
    let error = Handshake::server(&tls, RecordWish::default()).handle_record(&hello, &mut out).unwrap_err();
    assert_eq!(error, HandshakeError::NothingInCommon(Choice::SignatureScheme));
    assert_eq!(plain_alert(&out), Alert::HandshakeFailure as u8);

    let pair = Pair::new(&tls, &fixtures.client_with_groups(&[0x0201])).run();
    assert_eq!(pair.server.error, Some(HandshakeError::NothingInCommon(Choice::KeyExchange)));
    assert_eq!(pair.alert_to_client(), Alert::HandshakeFailure as u8);
}

#[test]
fn an_alert_ends_the_handshake_and_warnings_are_bounded() {
    let (_lab, tls) = server();
    let mut out = Vec::new();
    let refused =
        Handshake::server(&tls, RecordWish::default()).handle_record(&record(21, &[2, 48]), &mut out).unwrap_err();
    assert_eq!(refused, HandshakeError::PeerAlert(48));
    assert_eq!(refused.to_string(), "the peer refused with alert 48 (UnknownCA)");
    // Within the handshake nothing vouches for a close_notify: it counts as any other warning.
    let mut handshake = Handshake::server(&tls, RecordWish::default());
    let warnings = (0..100).take_while(|_| handshake.handle_record(&record(21, &[1, 0]), &mut out).is_ok()).count();
    assert_eq!(warnings, 4);
    assert_eq!(plain_alert(&out), Alert::DecodeError as u8);
}

#[test]
fn a_client_refuses_a_server_that_it_does_not_trust() {
    let (_lab, tls) = server();
    let stranger = Fixtures::new(Algorithm::EcdsaP256);
    for versions in ALL_VERSIONS {
        let pair = Pair::new(&tls, &stranger.client(None, versions)).run();
        let rejected = HandshakeError::CertificateRejected(CertificateFault::UnknownIssuer);
        assert_eq!(pair.client.error, Some(rejected));
        assert_eq!(pair.server.error, Some(HandshakeError::PeerAlert(Alert::UnknownCa as u8)));
    }
}

#[test]
#[should_panic(expected = "belongs to the record layer")]
fn a_record_after_the_handshake_is_the_caller_s_mistake() {
    let (fixtures, tls) = server();
    let mut pair = Pair::new(&tls, &fixtures.client(None, Versions::Tls13)).run();
    let _ = pair.server.handshake.handle_record(&record(23, &[0; 40]), &mut Vec::new());
}

/// RFC 8446 section 6: after ServerHello a server's alerts are protected.
#[test]
fn what_is_no_record_behind_the_server_hello_draws_a_sealed_alert() {
    let (fixtures, tls) = server();
    for (versions, is_sealed) in [(Versions::Tls13, true), (Versions::Tls12, false)] {
        let mut pair = Pair::new(&tls, &fixtures.client(None, versions));
        pair.server.step(&mut pair.client.inbox);
        let mut alert = Vec::new();
        pair.server.handshake.refuse(Alert::RecordOverflow, &mut alert);
        assert_eq!(alert[0], if is_sealed { 23 } else { 21 }, "{versions:?}");
        if is_sealed {
            // The client reads its way through the flight, and the alert with its own keys.
            while pair.client.step(&mut pair.server.inbox) {}
            let mut records = pair.client.handshake.finish(&mut Vec::new()).unwrap().records;
            let told = records.burst().open(&mut alert, &mut Vec::new());
            assert_eq!(told, Err(RecordError::PeerAlert(Alert::RecordOverflow as u8)));
        } else {
            assert_eq!(plain_alert(&alert), Alert::RecordOverflow as u8);
        }
    }
}

#[test]
fn an_error_that_rustls_says_nothing_about_is_told_all_the_same() {
    let (fixtures, tls) = server();
    let mut pair = Pair::new(&tls, &fixtures.client(None, Versions::Tls13));
    pair.server.step(&mut pair.client.inbox);
    let mut out = Vec::new();
    // Two records in one: nothing that a caller does, and nothing that reaches rustls.
    let both = [record(23, &[0; 40]), record(23, &[0; 40])].concat();
    let error = pair.server.handshake.handle_record(&both, &mut out).unwrap_err();
    assert!(matches!(error, HandshakeError::Protocol(_)));
    assert_eq!(out[0], 23, "sealed");
}

#[test]
fn a_client_may_not_send_certificates_without_end() {
    let fixtures = Fixtures::new(Algorithm::EcdsaP256);
    let tls = fixtures.server(ClientAuth::Required(&fixtures.authority.pem), &[]);
    let mut pair = Pair::new(&tls, &fixtures.client(None, Versions::Tls12));
    pair.server.step(&mut pair.client.inbox);
    // Certificate, of 64 KB, in records of 4 KB.
    let mut message = vec![0; 65_000];
    message[..4].copy_from_slice(&[11, 0, 0xfd, 0xe4]);
    let mut out = Vec::new();
    let taken = message
        .chunks(4_096)
        .take_while(|part| pair.server.handshake.handle_record(&record(22, part), &mut out).is_ok());
    let taken = taken.count() * 4_096;
    assert!(taken > FLIGHT_BYTES_MAX && taken <= HELLO_BYTES_MAX + FLIGHT_BYTES_MAX, "{taken}");
    assert_eq!(plain_alert(&out), Alert::DecodeError as u8);
}

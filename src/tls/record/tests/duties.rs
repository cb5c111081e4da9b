//! What the protocol demands after the handshake, message by message.

use ::aws_lc_rs::aead::{Aad, Nonce};

use super::*;
use crate::tls::record::error::{LEVEL_FATAL, LEVEL_WARNING};

const TLS13: Suite = Suite::Tls13Aes128GcmSha256;
const TLS12: Suite = Suite::EcdheEcdsaAes128GcmSha256;

const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
const KEY_UPDATE_REQUEST: [u8; 5] = [24, 0, 0, 1, 1];
const TICKET: [u8; 7] = [4, 0, 0, 3, 1, 2, 3];
const CLIENT_HELLO: [u8; 6] = [1, 0, 0, 2, 3, 3];
const HELLO_REQUEST: [u8; 4] = [0, 0, 0, 0];

/// A TLS 1.3 record around any inner plaintext, padding included.
fn inner(from: &mut RecordLayer, inner: &[u8]) -> Vec<u8> {
    let [high, low] = ((inner.len() + 16) as u16).to_be_bytes();
    let header = [23, 3, 3, high, low];
    let mut body = inner.to_vec();
    let nonce = Nonce::assume_unique_for_key(from.tx.nonce());
    let tag = from.tx.aead(from.suite).seal_in_place_separate_tag(nonce, Aad::from(header), &mut body).unwrap();
    from.tx.advance();
    [&header[..], &body, tag.as_ref()].concat()
}

/// A TLS 1.2 ChaCha20 record around more content than is allowed.
fn oversized_tls12(from: &mut RecordLayer, length: usize) -> Vec<u8> {
    let mut body = vec![1; length];
    let plain = (length as u16).to_be_bytes();
    let aad = [&from.tx.sequence().to_be_bytes()[..], &[23, 3, 3], &plain].concat();
    let nonce = Nonce::assume_unique_for_key(from.tx.nonce());
    let tag = from.tx.aead(from.suite).seal_in_place_separate_tag(nonce, Aad::from(aad), &mut body).unwrap();
    from.tx.advance();
    [&[23, 3, 3], &((length + 16) as u16).to_be_bytes()[..], &body, tag.as_ref()].concat()
}

/// Sends one record in each role of `suite` and expects the same refusal from both.
fn refused_by_both(suite: Suite, kind: ContentType, content: &[u8], error: RecordError) {
    let (mut client, mut server) = pair(suite);
    let bytes = record(&mut client, kind, content);
    assert_refused(&mut client, &mut server, &bytes, error);
    let (mut client, mut server) = pair(suite);
    let bytes = record(&mut server, kind, content);
    assert_refused(&mut server, &mut client, &bytes, error);
}

#[test]
fn a_layer_is_small() {
    assert_eq!(size_of::<RecordLayer>(), 203);
    assert_eq!(align_of::<RecordLayer>(), 1);
    assert_eq!(size_of::<Option<RecordLayer>>(), 203);
}

#[test]
fn keys_are_wiped() {
    // `assert_refused` shows it for every failure; an end in order is the drop's matter, which does the same.
    assert!(std::mem::needs_drop::<RecordLayer>());
    let (mut client, _) = pair(TLS13);
    client.wipe();
    assert_wiped(&client);
}

#[test]
fn suites_have_their_registered_codes() {
    for &suite in Suite::ALL {
        assert_eq!(Suite::from_code(suite.code()), Some(suite));
        let name = format!("{:?}", rustls::CipherSuite::from(suite.code()));
        assert_eq!(name.replace("TLS13_", "TLS_"), suite.name());
    }
    assert_eq!(Suite::from_code(0x1304), None);
    let ours = rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES;
    assert_eq!(ours.len(), Suite::ALL.len());
    assert!(ours.iter().all(|suite| Suite::from_code(u16::from(suite.suite())).is_some()));
}

#[test]
fn alerts_have_their_registered_codes() {
    for code in 0..=u8::MAX {
        if let Some(alert) = Alert::from_code(code) {
            assert_eq!(alert as u8, code);
            let theirs = format!("{:?}", rustls::AlertDescription::from(code));
            let theirs = theirs.to_lowercase().replace("unrecognised", "unrecognized");
            assert_eq!(theirs, alert.name().replace('_', ""));
        }
    }
}

#[test]
fn padding_is_stripped() {
    let (mut client, mut server) = pair(TLS13);
    for padding in [0, 1, 255, 1_000] {
        let bytes = inner(&mut client, &[&b"data"[..], &[23], &vec![0; padding]].concat());
        assert_eq!(open(&mut server, &bytes), [Event::Data(b"data".to_vec())]);
    }
    // Zeros before the type are content.
    let bytes = inner(&mut client, &[0, 0, 23, 0]);
    assert_eq!(open(&mut server, &bytes), [Event::Data(vec![0, 0])]);
    let full = [&vec![5; PLAINTEXT_MAX][..], &[23]].concat();
    let bytes = inner(&mut client, &full);
    assert_eq!(open(&mut server, &bytes), [Event::Data(vec![5; PLAINTEXT_MAX])]);
}

#[test]
fn an_inner_plaintext_without_a_type_is_unexpected() {
    for zeros in [0, 1, 100] {
        let (mut client, mut server) = pair(TLS13);
        let bytes = inner(&mut client, &vec![0; zeros]);
        assert_refused(&mut client, &mut server, &bytes, RecordError::UnexpectedMessage);
    }
}

#[test]
fn an_inner_type_that_does_not_belong_is_unexpected() {
    for kind in [1, 19, 20, 24, 255] {
        let (mut client, mut server) = pair(TLS13);
        let bytes = inner(&mut client, &[1, kind]);
        assert_refused(&mut client, &mut server, &bytes, RecordError::UnexpectedMessage);
    }
}

#[test]
fn content_beyond_the_limit_is_an_overflow() {
    // Padding counts: RFC 8446 5.4.
    for length in [PLAINTEXT_MAX + 2, PLAINTEXT_MAX + 240] {
        let (mut client, mut server) = pair(TLS13);
        let bytes = inner(&mut client, &[&b"x"[..], &[23], &vec![0; length - 2]].concat());
        assert_refused(&mut client, &mut server, &bytes, RecordError::Overflow);
    }
    for length in [PLAINTEXT_MAX + 1, PLAINTEXT_MAX + 2032] {
        let (mut client, mut server) = pair(Suite::EcdheRsaChaCha20Poly1305Sha256);
        let bytes = oversized_tls12(&mut client, length);
        assert_refused(&mut client, &mut server, &bytes, RecordError::Overflow);
    }
    let (mut client, mut server) = pair(Suite::EcdheRsaChaCha20Poly1305Sha256);
    let bytes = oversized_tls12(&mut client, PLAINTEXT_MAX);
    assert_eq!(open(&mut server, &bytes), [Event::Data(vec![1; PLAINTEXT_MAX])]);
}

#[test]
fn a_record_beyond_the_limit_is_an_overflow_as_soon_as_its_header_is_there() {
    for (suite, longest) in [(TLS13, PLAINTEXT_MAX + 256), (TLS12, PLAINTEXT_MAX + 2048)] {
        let header = |length: usize| [23, 3, 3, (length >> 8) as u8, length as u8];
        let (mut client, mut server) = pair(suite);
        let mut out = Vec::new();
        assert_eq!(server.burst().next_record(&header(longest), &mut out), Ok(None));
        assert_eq!(server.burst().next_record(&header(longest + 1), &mut out), Err(RecordError::Overflow));
        assert_eq!(
            open_into(&mut client, &out, &mut Vec::new()).1,
            Some(RecordError::PeerAlert(Alert::RecordOverflow as u8))
        );
        assert_dead(&mut server);
    }
}

#[test]
fn the_record_version_is_ignored_in_one_version_and_checked_in_the_other() {
    let (mut client, mut server) = pair(TLS13);
    // It is part of what is authenticated, so only framing can show that it is ignored.
    assert_eq!(next_record(&[23, 9, 9, 0, 1, 7], Stage::Protected(Version::Tls13)), Ok(Some(6)));
    let mut bytes = data(&mut client, b"x");
    bytes[1] = 9;
    assert_refused(&mut client, &mut server, &bytes, RecordError::BadMac);
    for at in [1, 2] {
        let (mut client, mut server) = pair(TLS12);
        let mut bytes = data(&mut client, b"x");
        bytes[at] ^= 1;
        assert_refused(&mut client, &mut server, &bytes, RecordError::Version);
    }
}

#[test]
fn unprotected_records_are_refused_after_the_handshake() {
    let mut alert = Vec::new();
    plaintext_alert(Alert::CloseNotify, &mut alert);
    let change_cipher_spec = vec![20, 3, 3, 0, 1, 1];
    let handshake = [&[22, 3, 3, 0, 5][..], &KEY_UPDATE].concat();
    for bytes in [&alert, &change_cipher_spec, &handshake] {
        let (mut client, mut server) = pair(TLS13);
        assert_refused(&mut client, &mut server, bytes, RecordError::UnexpectedMessage);
    }
    // TLS 1.2 has no other outer type for what is protected: there it is the authentication that fails.
    for (bytes, error) in [
        (&alert, RecordError::BadMac),
        (&change_cipher_spec, RecordError::UnexpectedMessage),
        (&handshake, RecordError::BadMac),
    ] {
        let (mut client, mut server) = pair(TLS12);
        assert_refused(&mut client, &mut server, bytes, error);
    }
}

#[test]
fn protected_change_cipher_spec_is_unexpected() {
    refused_by_both(TLS13, ContentType::ChangeCipherSpec, &[1], RecordError::UnexpectedMessage);
    refused_by_both(TLS12, ContentType::ChangeCipherSpec, &[1], RecordError::UnexpectedMessage);
}

#[test]
fn handshake_and_alert_records_without_content_are_unexpected() {
    for suite in [TLS13, TLS12] {
        refused_by_both(suite, ContentType::Handshake, &[], RecordError::UnexpectedMessage);
        refused_by_both(suite, ContentType::Alert, &[], RecordError::UnexpectedMessage);
    }
}

#[test]
fn a_record_that_is_not_whole_is_refused() {
    for &suite in Suite::ALL {
        let (mut client, mut server) = pair(suite);
        let bytes = data(&mut client, b"hello");
        for cut in [0, 4, 5, bytes.len() - 1] {
            let (_, mut server) = pair(suite);
            let mut out = Vec::new();
            assert_eq!(server.burst().open(&mut bytes.clone()[..cut], &mut out), Err(RecordError::Decode));
        }
        let (mut long, mut out) = ([&bytes[..], &[0]].concat(), Vec::new());
        assert_eq!(server.burst().open(&mut long, &mut out), Err(RecordError::Decode));
    }
}

#[test]
fn an_alert_record_holds_one_alert() {
    for suite in [TLS13, TLS12] {
        refused_by_both(suite, ContentType::Alert, &[1], RecordError::Decode);
        refused_by_both(suite, ContentType::Alert, &[1, 0, 0], RecordError::Decode);
        refused_by_both(suite, ContentType::Alert, &[1, 0, 1, 0], RecordError::Decode);
    }
}

#[test]
fn fatal_alerts_end_the_connection_without_an_answer() {
    for code in [10, 20, 22, 40, 47, 80, 200] {
        refused_by_both(TLS13, ContentType::Alert, &[LEVEL_FATAL, code], RecordError::PeerAlert(code));
        // RFC 8446 6: whatever the level, even an unknown one.
        refused_by_both(TLS13, ContentType::Alert, &[LEVEL_WARNING, code], RecordError::PeerAlert(code));
        refused_by_both(TLS13, ContentType::Alert, &[77, code], RecordError::PeerAlert(code));
        refused_by_both(TLS12, ContentType::Alert, &[LEVEL_FATAL, code], RecordError::PeerAlert(code));
    }
    refused_by_both(TLS12, ContentType::Alert, &[3, 10], RecordError::IllegalParameter);
}

#[test]
fn warnings_are_let_pass_four_times() {
    for (suite, code) in [(TLS13, 90), (TLS12, 90), (TLS12, 100), (TLS12, 112)] {
        let (mut client, mut server) = pair(suite);
        for _ in 0..WARNINGS_MAX {
            let bytes = record(&mut client, ContentType::Alert, &[LEVEL_WARNING, code]);
            assert_eq!(open(&mut server, &bytes), [Event::Handled(Handled::Warning(code))]);
            // Data between them does not help.
            let bytes = data(&mut client, b"data");
            assert_eq!(open(&mut server, &bytes), [Event::Data(b"data".to_vec())]);
        }
        let bytes = record(&mut client, ContentType::Alert, &[LEVEL_WARNING, code]);
        assert_refused(&mut client, &mut server, &bytes, RecordError::TooManyWarnings);
    }
}

#[test]
fn empty_records_are_let_pass_32_times_in_a_row() {
    for &suite in Suite::ALL {
        let (mut client, mut server) = pair(suite);
        for _ in 0..3 {
            for _ in 0..EMPTY_RECORDS_MAX {
                let bytes = record(&mut client, ContentType::ApplicationData, &[]);
                assert_eq!(open(&mut server, &bytes), [Event::Data(vec![])]);
            }
            let bytes = data(&mut client, b"x");
            assert_eq!(open(&mut server, &bytes), [Event::Data(b"x".to_vec())]);
        }
        let many: Vec<u8> =
            (0..EMPTY_RECORDS_MAX).flat_map(|_| record(&mut client, ContentType::ApplicationData, &[])).collect();
        assert_eq!(open(&mut server, &many).len(), usize::from(EMPTY_RECORDS_MAX));
        let one_more = record(&mut client, ContentType::ApplicationData, &[]);
        assert_refused(&mut client, &mut server, &one_more, RecordError::TooManyEmpty);
    }
}

#[test]
fn key_updates_are_let_pass_32_times_in_a_row() {
    let (mut client, mut server) = pair(TLS13);
    let update = |client: &mut RecordLayer| {
        let mut out = Vec::new();
        assert!(client.burst().update_keys(false, &mut out));
        out
    };
    for _ in 0..2 {
        for _ in 0..KEY_UPDATES_MAX {
            let bytes = update(&mut client);
            assert_eq!(open(&mut server, &bytes), [Event::Handled(Handled::KeyUpdate { requested: false })]);
        }
        // What carries no data buys no more of them.
        let bytes = record(&mut client, ContentType::ApplicationData, &[]);
        assert_eq!(open(&mut server, &bytes), [Event::Data(vec![])]);
        assert_eq!(server.key_updates, KEY_UPDATES_MAX);
        let bytes = data(&mut client, b"x");
        assert_eq!(open(&mut server, &bytes), [Event::Data(b"x".to_vec())]);
    }
    for _ in 0..KEY_UPDATES_MAX {
        let bytes = update(&mut client);
        open(&mut server, &bytes);
    }
    let bytes = update(&mut client);
    assert_refused(&mut client, &mut server, &bytes, RecordError::TooManyKeyUpdates);
}

#[test]
fn a_requested_key_update_is_answered_under_the_old_key() {
    for suite in suites(Version::Tls13) {
        let (mut client, mut server) = pair(suite);
        let mut request = Vec::new();
        assert!(client.burst().update_keys(true, &mut request));
        let (mut answer, old_key) = (Vec::new(), server.tx.aead(suite));
        let events = open_into(&mut server, &request, &mut answer);
        assert_eq!(events, (vec![Event::Handled(Handled::KeyUpdate { requested: true })], None));
        let (_, as_before) = pair(suite);
        let (kind, content) =
            tls13::open(&old_key, &as_before.tx, &mut answer.clone()).map(|(k, c)| (k, c.to_vec())).unwrap();
        assert_eq!((kind, &content[..]), (ContentType::Handshake, &KEY_UPDATE[..]));
        // One burst, old and new key: the answer and the data behind it.
        answer.extend(data(&mut server, b"under the new key"));
        let expected =
            [Event::Handled(Handled::KeyUpdate { requested: false }), Event::Data(b"under the new key".to_vec())];
        assert_eq!(open(&mut client, &answer), expected);
        assert_eq!(server.tx.sequence(), 1);
    }
}

#[test]
fn a_requested_key_update_is_not_answered_after_our_close_notify() {
    let (mut client, mut server) = pair(TLS13);
    server.burst().close_notify(&mut Vec::new());
    let mut request = Vec::new();
    assert!(client.burst().update_keys(true, &mut request));
    assert_eq!(open(&mut server, &request), [Event::Handled(Handled::KeyUpdate { requested: true })]);
    let bytes = data(&mut client, b"still heard");
    assert_eq!(open(&mut server, &bytes), [Event::Data(b"still heard".to_vec())]);
}

#[test]
fn a_key_update_stands_alone_at_the_end_of_its_record() {
    for behind in [&KEY_UPDATE[..], &TICKET, &[0], &KEY_UPDATE[..2]] {
        let content = [&KEY_UPDATE[..], behind].concat();
        refused_by_both(TLS13, ContentType::Handshake, &content, RecordError::UnexpectedMessage);
    }
    // In front of it there may be tickets.
    let (mut client, mut server) = pair(TLS13);
    let content = [&TICKET[..], &TICKET, &KEY_UPDATE].concat();
    let bytes = record(&mut server, ContentType::Handshake, &content);
    server.tx.update(TLS13);
    assert_eq!(open(&mut client, &bytes), [Event::Handled(Handled::KeyUpdate { requested: false })]);
    let bytes = data(&mut server, b"new key");
    assert_eq!(open(&mut client, &bytes), [Event::Data(b"new key".to_vec())]);
}

#[test]
fn a_malformed_key_update_is_refused() {
    for value in [2, 255] {
        refused_by_both(TLS13, ContentType::Handshake, &[24, 0, 0, 1, value], RecordError::IllegalParameter);
    }
    refused_by_both(TLS13, ContentType::Handshake, &[24, 0, 0, 0], RecordError::Decode);
    refused_by_both(TLS13, ContentType::Handshake, &[24, 0, 0, 2, 0, 0], RecordError::Decode);
}

#[test]
fn a_key_update_may_come_in_parts() {
    // Every way to cut its five bytes.
    for cuts in 0..16u8 {
        let (mut client, mut server) = pair(TLS13);
        let mut bytes = Vec::new();
        let mut part = Vec::new();
        for (place, &byte) in KEY_UPDATE_REQUEST.iter().enumerate() {
            part.push(byte);
            if place == 4 || cuts >> place & 1 == 1 {
                bytes.extend(record(&mut client, ContentType::Handshake, &part));
                part.clear();
            }
        }
        client.tx.update(TLS13);
        let mut answer = Vec::new();
        let (events, error) = open_into(&mut server, &bytes, &mut answer);
        assert_eq!(error, None, "{cuts:04b}");
        let (last, parts) = events.split_last().unwrap();
        assert_eq!(*last, Event::Handled(Handled::KeyUpdate { requested: true }), "{cuts:04b}");
        assert!(parts.iter().all(|part| *part == Event::Handled(Handled::Fragment)));
        assert_eq!(parts.len(), cuts.count_ones() as usize);
        assert_eq!(open(&mut client, &answer), [Event::Handled(Handled::KeyUpdate { requested: false })]);
        let bytes = data(&mut client, b"new key");
        assert_eq!(open(&mut server, &bytes), [Event::Data(b"new key".to_vec())]);
    }
}

#[test]
fn nothing_comes_between_the_parts_of_a_key_update_and_nothing_behind_them() {
    for (kind, content, error) in [
        (ContentType::ApplicationData, &b"data"[..], RecordError::UnexpectedMessage),
        (ContentType::ApplicationData, b"", RecordError::UnexpectedMessage),
        (ContentType::Alert, &[1, 90], RecordError::UnexpectedMessage),
        (ContentType::Handshake, b"", RecordError::UnexpectedMessage),
        (ContentType::Handshake, &[0, 1, 0, 24], RecordError::UnexpectedMessage),
        (ContentType::Handshake, &[0, 2], RecordError::Decode),
        (ContentType::Handshake, &[24], RecordError::Decode),
        (ContentType::Handshake, &[0, 1, 2], RecordError::IllegalParameter),
    ] {
        let (mut client, mut server) = pair(TLS13);
        let first = record(&mut client, ContentType::Handshake, &KEY_UPDATE[..2]);
        assert_eq!(open(&mut server, &first), [Event::Handled(Handled::Fragment)]);
        let bytes = record(&mut client, kind, content);
        assert_refused(&mut client, &mut server, &bytes, error);
    }
}

#[test]
fn half_a_key_update_travels_with_its_connection() {
    let (mut client, mut server) = pair(TLS13);
    let bytes = record(&mut client, ContentType::Handshake, &KEY_UPDATE[..3]);
    open(&mut server, &bytes);
    let mut image = Vec::new();
    server.encode(&mut image);
    let (mut server, _) = RecordLayer::decode(&image).unwrap();
    let bytes = record(&mut client, ContentType::Handshake, &KEY_UPDATE[3..]);
    assert_eq!(open(&mut server, &bytes), [Event::Handled(Handled::KeyUpdate { requested: false })]);
}

#[test]
fn a_whole_record_fits_the_buffer_that_it_is_for() {
    for suite in [TLS13, TLS12] {
        let (_, server) = pair(suite);
        let mut server = server.with_record_limit(RecordLimit::of_records(4_096));
        let wire = data(&mut server, &vec![7; 40_000]);
        let (mut rest, mut longest) = (&wire[..], 0);
        while !rest.is_empty() {
            let length = HEADER_LEN + usize::from(u16::from_be_bytes([rest[3], rest[4]]));
            longest = longest.max(length);
            rest = &rest[length..];
        }
        assert!((4_000..=4_096).contains(&longest), "{suite:?}: {longest}");
    }
}

#[test]
fn no_record_is_longer_than_the_peer_can_take() {
    for suite in [TLS13, TLS12] {
        for (wish, bytes) in [(64, 64), (512, 512), (600, 512), (1_023, 1_023), (4_096, 4_096), (1 << 14, 1 << 14)] {
            let (mut client, server) = pair(suite);
            let mut server = server.with_record_limit(RecordLimit::at_most(wish));
            let content = vec![7; 40_000];
            let wire = data(&mut server, &content);
            let mut got = Vec::new();
            for event in open(&mut client, &wire) {
                let Event::Data(part) = event else { panic!("{event:?}") };
                assert!(part.len() <= bytes && !part.is_empty(), "{wish}: {}", part.len());
                got.extend(part);
            }
            assert_eq!(got, content);
            assert_eq!(server.record_limit().bytes(), bytes);
        }
    }
}

#[test]
fn the_answers_to_what_was_right_leave_before_the_alert_about_what_was_not() {
    for suite in [TLS13, TLS12] {
        for damage in [true, false] {
            let (mut client, mut server) = pair(suite);
            let mut bytes = data(&mut client, b"wrong");
            if damage {
                *bytes.last_mut().unwrap() ^= 1;
            } else {
                bytes[0] = 99;
            }
            let (mut said, mut out) = (b"answer".to_vec(), Vec::new());
            let mut burst = server.burst();
            let opened = burst
                .next_record_behind(&bytes, &mut said, &mut out)
                .and_then(|length| burst.open_behind(&mut bytes[..length.unwrap()], &mut said, &mut out).map(|_| ()));
            let error = opened.unwrap_err();
            assert!(said.is_empty());
            let (events, told) = open_into(&mut client, &out, &mut Vec::new());
            assert_eq!(events, [Event::Data(b"answer".to_vec())]);
            assert_eq!(told, Some(RecordError::PeerAlert(error.alert().unwrap() as u8)));
            assert_dead(&mut server);
        }
    }
}

#[test]
fn fragments_of_other_messages_are_refused() {
    let (mut client, mut server) = pair(TLS13);
    let bytes = record(&mut server, ContentType::Handshake, &[&TICKET[..], &TICKET[..6]].concat());
    assert_refused(&mut server, &mut client, &bytes, RecordError::Fragmented);
    let (mut client, mut server) = pair(TLS12);
    let bytes = record(&mut client, ContentType::Handshake, &CLIENT_HELLO[..5]);
    assert_refused(&mut client, &mut server, &bytes, RecordError::Fragmented);
}

#[test]
fn messages_of_a_handshake_are_unexpected_after_it() {
    for kind in [0, 1, 2, 5, 8, 11, 13, 15, 20, 254] {
        let message = [kind, 0, 0, 2, 0, 0];
        refused_by_both(TLS13, ContentType::Handshake, &message, RecordError::UnexpectedMessage);
    }
    for kind in [2, 4, 11, 14, 16, 20, 24] {
        refused_by_both(TLS12, ContentType::Handshake, &[kind, 0, 0, 1, 0], RecordError::UnexpectedMessage);
    }
    // Each of these belongs to the other side.
    let (mut client, mut server) = pair(TLS13);
    let bytes = record(&mut client, ContentType::Handshake, &TICKET);
    assert_refused(&mut client, &mut server, &bytes, RecordError::UnexpectedMessage);
    let (mut client, mut server) = pair(TLS12);
    let bytes = record(&mut client, ContentType::Handshake, &HELLO_REQUEST);
    assert_refused(&mut client, &mut server, &bytes, RecordError::UnexpectedMessage);
    let (mut client, mut server) = pair(TLS12);
    let bytes = record(&mut server, ContentType::Handshake, &CLIENT_HELLO);
    assert_refused(&mut server, &mut client, &bytes, RecordError::UnexpectedMessage);
}

#[test]
fn renegotiation_is_refused_once_and_fatal_twice() {
    let (mut client, mut server) = pair(TLS12);
    refuse_twice(&mut client, &mut server, &CLIENT_HELLO);
    let (mut client, mut server) = pair(TLS12);
    refuse_twice(&mut server, &mut client, &HELLO_REQUEST);
    let (mut client, mut server) = pair(TLS12);
    let both = record(&mut server, ContentType::Handshake, &[HELLO_REQUEST; 2].concat());
    let mut out = Vec::new();
    assert_eq!(open_into(&mut client, &both, &mut out), (vec![], Some(RecordError::Renegotiation)));
}

fn refuse_twice(from: &mut RecordLayer, to: &mut RecordLayer, message: &[u8]) {
    let (bytes, mut out) = (record(from, ContentType::Handshake, message), Vec::new());
    let events = open_into(to, &bytes, &mut out);
    assert_eq!(events, (vec![Event::Handled(Handled::RenegotiationRefused)], None));
    assert_eq!(open(from, &out), [Event::Handled(Handled::Warning(Alert::NoRenegotiation as u8))]);
    let bytes = data(from, b"as before");
    assert_eq!(open(to, &bytes), [Event::Data(b"as before".to_vec())]);
    let bytes = record(from, ContentType::Handshake, message);
    assert_refused(from, to, &bytes, RecordError::Renegotiation);
}

#[test]
fn nothing_is_heard_after_the_peers_close_notify() {
    for &suite in Suite::ALL {
        let (mut client, mut server) = pair(suite);
        let mut bytes = Vec::new();
        client.burst().close_notify(&mut bytes);
        assert_eq!(open(&mut server, &bytes), [Event::CloseNotify]);
        let (_, mut other) = pair(suite);
        // Not even its form matters.
        for late in [data(&mut other, b"late"), vec![23, 3, 3, 0, 3, 1], b"plain text".to_vec()] {
            assert_eq!(open(&mut server, &late), [Event::Handled(Handled::AfterClose)]);
        }
        assert_eq!(server.burst().next_record(&[], &mut Vec::new()), Ok(None));
        // RFC 8446 6.1 keeps our direction open, RFC 5246 7.2.1 does not.
        let mut out = Vec::new();
        let sealed = server.burst().seal(b"answer", &mut out);
        if suite.version() == Version::Tls13 {
            assert_eq!((sealed, open(&mut client, &out)), (Ok(()), vec![Event::Data(b"answer".to_vec())]));
        } else {
            assert_eq!((sealed, &out[..]), (Err(RecordError::Closed), &[][..]));
        }
        out.clear();
        server.burst().close_notify(&mut out);
        server.burst().close_notify(&mut out);
        assert_eq!(open(&mut client, &out), [Event::CloseNotify]);
    }
}

#[test]
fn data_is_cut_at_the_record_limit() {
    for &suite in Suite::ALL {
        for (length, expected) in [(0, 0), (1, 1), (16_384, 1), (16_385, 2), (40_000, 3)] {
            let (mut client, mut server) = pair(suite);
            let payload: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let bytes = data(&mut client, &payload);
            assert!(bytes.len() <= payload.len() + expected * 29);
            let events = open(&mut server, &bytes);
            assert_eq!(events.len(), expected);
            let heard: Vec<u8> = events
                .into_iter()
                .flat_map(|event| match event {
                    Event::Data(content) => content,
                    other => panic!("{other:?}"),
                })
                .collect();
            assert!(heard == payload);
        }
    }
}

#[test]
fn output_is_appended() {
    let (mut client, mut server) = pair(TLS13);
    let mut out = b"before".to_vec();
    client.burst().seal(b"data", &mut out).unwrap();
    assert_eq!(&out[..6], b"before");
    assert_eq!(open(&mut server, &out[6..]), [Event::Data(b"data".to_vec())]);
}

#[test]
fn secrets_are_not_printed() {
    let (client, _) = pair(TLS13);
    let text = format!("{client:?}");
    assert!(text.contains("TLS_AES_128_GCM_SHA256"));
    assert!(text.len() < 200, "{text}");
}

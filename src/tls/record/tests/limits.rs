//! The end of a key's life, and of sequence numbers.

use super::*;
use crate::tls::record::keys::SEQUENCE_MAX;

const GCM_LIMIT: u64 = 1 << 24;
/// Records that data leaves to alerts.
const RESERVED: u64 = 4;

#[test]
fn an_aes_gcm_key_is_updated_before_it_has_sealed_2_to_the_24_records() {
    for suite in [Suite::Tls13Aes128GcmSha256, Suite::Tls13Aes256GcmSha384] {
        let last = GCM_LIMIT - RESERVED - 1;
        let (mut client, mut server) = pair_at(suite, last, 0);
        // In the middle of data of three records: one under the old key, two under the new one.
        let bytes = data(&mut client, &vec![7; 40_000]);
        let events = open(&mut server, &bytes);
        let lengths: Vec<_> =
            events.iter().map(|event| if let Event::Data(content) = event { content.len() } else { 0 }).collect();
        assert_eq!(lengths, [16_384, 0, 16_384, 7_232]);
        assert_eq!(events[1], Event::Handled(Handled::KeyUpdate { requested: false }));
        assert_eq!((client.tx.sequence(), server.rx.sequence()), (2, 2));
    }
}

#[test]
fn a_tls12_aes_gcm_key_is_used_up_after_2_to_the_24_records() {
    for suite in suites(Version::Tls12).filter(|suite| suite.name().contains("GCM")) {
        let (mut client, mut server) = pair_at(suite, GCM_LIMIT - RESERVED - 1, 0);
        // Two records do not fit, so nothing is sealed; one does.
        let mut out = Vec::new();
        assert_eq!(client.burst().seal(&vec![7; 16_385], &mut out), Err(RecordError::KeyExhausted));
        assert!(out.is_empty());
        let bytes = data(&mut client, b"the last");
        assert_eq!(open(&mut server, &bytes), [Event::Data(b"the last".to_vec())]);
        assert_eq!(client.burst().seal(b"x", &mut out), Err(RecordError::KeyExhausted));
        assert_eq!(client.burst().seal(b"", &mut out), Ok(()));
        assert!(out.is_empty());
        // There is room for the farewell, and what comes is still heard.
        let bytes = data(&mut server, b"heard");
        assert_eq!(open(&mut client, &bytes), [Event::Data(b"heard".to_vec())]);
        client.burst().close_notify(&mut out);
        assert_eq!(open(&mut server, &out), [Event::CloseNotify]);
    }
}

#[test]
fn no_key_seals_beyond_its_limit() {
    for &suite in Suite::ALL {
        let limit = suite.records_per_key();
        let (mut client, mut server) = pair_at(suite, limit - 2, 0);
        let (mut out, mut burst) = (Vec::new(), client.burst());
        for _ in 0..5 {
            burst.alert(Alert::UserCanceled, &mut out);
        }
        burst.close_notify(&mut out);
        assert!(!burst.update_keys(false, &mut out));
        assert_eq!(client.tx.sequence(), limit);
        assert_eq!(open(&mut server, &out).len(), 2);
        let (mut client, _) = pair_at(suite, limit, 0);
        out.clear();
        assert_eq!(client.burst().seal(b"x", &mut out), Err(RecordError::KeyExhausted));
        assert!(!client.burst().update_keys(false, &mut out));
        assert!(out.is_empty());
    }
}

#[test]
fn a_chacha20_key_lives_as_long_as_its_numbers() {
    let end = SEQUENCE_MAX - RESERVED;
    for &suite in Suite::ALL.iter().filter(|suite| suite.name().contains("CHACHA20")) {
        let (mut client, mut server) = pair_at(suite, end - 1, 0);
        let bytes = data(&mut client, b"one");
        assert_eq!(open(&mut server, &bytes), [Event::Data(b"one".to_vec())]);
        let mut out = Vec::new();
        let sealed = client.burst().seal(b"two", &mut out);
        if suite.version() == Version::Tls13 {
            assert_eq!(sealed, Ok(()));
            let updated = Event::Handled(Handled::KeyUpdate { requested: false });
            assert_eq!(open(&mut server, &out), [updated, Event::Data(b"two".to_vec())]);
        } else {
            assert_eq!(sealed, Err(RecordError::KeyExhausted));
            client.burst().close_notify(&mut out);
            assert_eq!(open(&mut server, &out), [Event::CloseNotify]);
        }
    }
}

#[test]
fn a_peer_without_numbers_left_is_refused() {
    for &suite in Suite::ALL {
        let (mut client, mut server) = pair_at(suite, 0, SEQUENCE_MAX);
        let mut out = Vec::new();
        let nonsense = [&[23, 3, 3, 0, 30][..], &[1; 30]].concat();
        assert_eq!(open_into(&mut client, &nonsense, &mut out), (vec![], Some(RecordError::SequenceExhausted)));
        let told = open_into(&mut server, &out, &mut Vec::new()).1;
        assert_eq!(told, Some(RecordError::PeerAlert(Alert::InternalError as u8)));
        assert_dead(&mut client);
    }
}

#[test]
fn numbers_carry_into_the_high_half() {
    for &suite in Suite::ALL.iter().filter(|suite| suite.name().contains("CHACHA20")) {
        let (mut client, mut server) = pair_at(suite, u64::from(u32::MAX) - 1, 5);
        for text in [&b"a"[..], b"b", b"c", b"d"] {
            let bytes = data(&mut client, text);
            assert_eq!(open(&mut server, &bytes), [Event::Data(text.to_vec())]);
        }
        assert_eq!(client.tx.sequence(), u64::from(u32::MAX) + 3);
    }
}

//! The travelling form.

use super::*;

fn encoded(layer: &RecordLayer) -> Vec<u8> {
    let mut out = Vec::new();
    layer.encode(&mut out);
    out
}

#[test]
fn the_form_has_the_sizes_that_were_promised() {
    for (suite, length) in [
        (Suite::Tls13Aes128GcmSha256, 142),
        (Suite::Tls13ChaCha20Poly1305Sha256, 174),
        (Suite::Tls13Aes256GcmSha384, 206),
        (Suite::EcdheRsaAes128GcmSha256, 78),
        (Suite::EcdheEcdsaAes256GcmSha384, 110),
        (Suite::EcdheEcdsaChaCha20Poly1305Sha256, 110),
    ] {
        assert_eq!(encoded(&pair(suite).0).len(), length);
    }
}

#[test]
fn a_decoded_connection_goes_on_where_it_was() {
    for &suite in Suite::ALL {
        let (mut client, mut server) = pair_at(suite, 1 << 20, 77);
        for round in 0..6 {
            // Something of every counter.
            let mut bytes = data(&mut client, &[round; 100]);
            bytes.extend(record(&mut client, ContentType::ApplicationData, &[]));
            if round < 4 {
                bytes.extend(record(&mut client, ContentType::Alert, &[1, 90]));
            }
            if suite.version() == Version::Tls13 {
                assert!(client.burst().update_keys(false, &mut bytes));
            }
            let events = open(&mut server, &bytes);
            assert_eq!(events[0], Event::Data(vec![round; 100]));
            let (image, mut behind) = (encoded(&server), encoded(&server));
            behind.extend_from_slice(b"the next connection");
            let (moved, taken) = RecordLayer::decode(&behind).expect("decoded");
            assert_eq!((taken, encoded(&moved)), (image.len(), image));
            server = moved;
            let bytes = data(&mut server, b"answer");
            assert_eq!(open(&mut client, &bytes), [Event::Data(b"answer".to_vec())]);
        }
        let bytes = record(&mut client, ContentType::Alert, &[1, 90]);
        assert_refused(&mut client, &mut server, &bytes, RecordError::TooManyWarnings);
        let (mut moved, _) = RecordLayer::decode(&encoded(&server)).expect("decoded");
        assert_dead(&mut moved);
    }
}

#[test]
fn what_is_cut_short_or_unknown_is_not_decoded() {
    for &suite in Suite::ALL {
        let image = encoded(&pair(suite).1);
        for cut in 0..image.len() {
            assert!(RecordLayer::decode(&image[..cut]).is_none(), "{cut}");
        }
        let with = |at: usize, value: u8| {
            let mut image = image.clone();
            image[at] = value;
            RecordLayer::decode(&image).is_some()
        };
        assert!(with(0, 2) && with(3, EMPTY_RECORDS_MAX) && with(4, KEY_UPDATES_MAX));
        assert!(!with(0, 1) && !with(0, 3));
        assert!(!with(1, 0) && !with(1, 10) && !with(1, 255));
        assert!(with(2, WARNINGS_MAX << 5) && !with(2, (WARNINGS_MAX + 1) << 5));
        assert!(!with(3, EMPTY_RECORDS_MAX + 1) && !with(4, KEY_UPDATES_MAX + 1));
        assert!(with(5, 4 << 5 | RecordLimit::MAX_PLACE) && !with(5, 5 << 5) && !with(5, RecordLimit::MAX_PLACE + 1));
    }
}

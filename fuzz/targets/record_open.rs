//! The record layer against a peer that has the keys and no manners: records that authenticate and hold anything,
//! records that were changed on their way, and bytes that are no records.
//!
//! Input: a byte that chooses the suite, then steps of `kind, length, type, padding, bytes …`.
#![no_main]

use aws_lc_rs::aead::{AES_128_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use libfuzzer_sys::fuzz_target;
use pulsegate_fuzz::tls::record::{DirectionSecrets, Handled, Opened, RecordError, RecordLayer, Role, Suite, Version};

const KEY: [u8; 32] = [0x42; 32];
const IV: [u8; 12] = [7; 12];
const SECRET: [u8; 32] = [9; 32];

/// A peer that seals whatever it likes, until the first key update.
struct Peer {
    suite: Suite,
    sequence: u64,
}

impl Peer {
    fn seal(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let mut nonce = IV;
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sequence = self.sequence;
        self.sequence += 1;
        if self.suite.version() == Version::Tls13 {
            let mut inner = content.to_vec();
            inner.push(kind);
            inner.resize(inner.len() + padding, 0);
            let [high, low] = ((inner.len() + 16) as u16).to_be_bytes();
            let mut record = vec![23, 3, 3, high, low];
            let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &KEY[..16]).unwrap());
            key.seal_in_place_append_tag(nonce, Aad::from(record.clone()), &mut inner).unwrap();
            record.extend_from_slice(&inner);
            record
        } else {
            let mut sealed = content.to_vec();
            let mut aad = sequence.to_be_bytes().to_vec();
            aad.extend_from_slice(&[kind, 3, 3]);
            aad.extend_from_slice(&(content.len() as u16).to_be_bytes());
            let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &KEY).unwrap());
            key.seal_in_place_append_tag(nonce, Aad::from(aad), &mut sealed).unwrap();
            let [high, low] = (sealed.len() as u16).to_be_bytes();
            let mut record = vec![kind, 3, 3, high, low];
            record.extend_from_slice(&sealed);
            record
        }
    }
}

fn take<'i>(input: &mut &'i [u8], count: usize) -> &'i [u8] {
    let (taken, rest) = input.split_at(count.min(input.len()));
    *input = rest;
    taken
}

fuzz_target!(|input: &[u8]| {
    let mut input = input;
    let &[choice] = take(&mut input, 1) else { return };
    let suite = if choice & 1 == 0 { Suite::Tls13Aes128GcmSha256 } else { Suite::EcdheEcdsaChaCha20Poly1305Sha256 };
    let role = if choice & 2 == 0 { Role::Server } else { Role::Client };
    let sequence = u64::from(choice >> 2);
    let (secret, key): (&[u8], &[u8]) =
        if suite.version() == Version::Tls13 { (&SECRET, &KEY[..16]) } else { (&[], &KEY) };
    let secrets = DirectionSecrets { secret, key, iv: &IV, sequence };
    let mut layer = RecordLayer::new(role, suite, &secrets, &secrets);
    let mut peer = Peer { suite, sequence };
    let mut has_old_keys = false;
    let mut out = Vec::new();

    while let &[kind, length, inner, padding] = take(&mut input, 4) {
        let bytes = take(&mut input, length.into());
        let mut is_authentic = true;
        let mut wire = match kind % 4 {
            0 | 1 => peer.seal(if kind % 4 == 0 { 23 } else { inner }, bytes, padding.into()),
            2 => {
                let mut record = peer.seal(23, bytes, padding.into());
                let place = 5 + usize::from(inner) % (record.len() - 5);
                record[place] ^= 1 << (padding % 8);
                is_authentic = false;
                record
            }
            _ => {
                is_authentic = false;
                bytes.to_vec()
            }
        };
        let before = out.len();
        let mut burst = layer.burst();
        let opened = match burst.next_record(&wire, &mut out) {
            Ok(None) => {
                assert!(!is_authentic, "a whole record is found");
                break;
            }
            Ok(Some(length)) => {
                assert!(length <= wire.len());
                burst.open(&mut wire[..length], &mut out)
            }
            Err(error) => Err(error),
        };
        match opened {
            Ok(Opened::Data(data)) => {
                assert!(is_authentic && !has_old_keys, "what nobody sealed was opened");
                if kind % 4 == 0 || suite.version() == Version::Tls12 {
                    assert_eq!(data, bytes);
                } else {
                    // A type of zero is padding, and what stands before it the type.
                    assert!(bytes.starts_with(data));
                }
            }
            // From here on this peer's keys are old.
            Ok(Opened::Handled(Handled::KeyUpdate { .. })) => has_old_keys = true,
            Ok(Opened::Handled(_) | Opened::CloseNotify) => {}
            Err(_) => {
                assert_eq!(layer.burst().open(&mut [23, 3, 3, 0, 0], &mut out), Err(RecordError::Closed));
                assert_eq!(layer.burst().seal(b"x", &mut out), Err(RecordError::Closed));
                assert!(out.len() - before <= 64, "more than an alert was said");
                break;
            }
        }
        // At most an answer to a key update, or a refusal.
        assert!(out.len() - before <= 64);
        let mut form = Vec::new();
        layer.encode(&mut form);
        let (again, length) = RecordLayer::decode(&form).expect("its own form");
        assert_eq!(length, form.len());
        layer = again;
    }
});

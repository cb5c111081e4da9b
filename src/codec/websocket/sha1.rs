//! SHA-1 (RFC 3174) and Base64 (RFC 4648), for the one line of the opening handshake that wants them. Nothing secret and
//! nothing that is trusted goes through them.

/// The digest of a short message.
pub(super) fn sha1(message: &[u8]) -> [u8; 20] {
    let mut padded = message.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend_from_slice(&(message.len() as u64 * 8).to_be_bytes());
    let mut state: [u32; 5] = [0x6745_2301, 0xEFCD_AB89, 0x98BA_DCFE, 0x1032_5476, 0xC3D2_E1F0];
    for block in padded.chunks_exact(64) {
        mix(&mut state, block);
    }
    let mut digest = [0; 20];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

fn mix(state: &mut [u32; 5], block: &[u8]) {
    let mut words = [0u32; 80];
    for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
        *word = u32::from_be_bytes(bytes.try_into().expect("chunks of four"));
    }
    for at in 16..80 {
        words[at] = (words[at - 3] ^ words[at - 8] ^ words[at - 14] ^ words[at - 16]).rotate_left(1);
    }
    // The variables A to E of the standard.
    let mut vars = *state;
    for (at, word) in words.into_iter().enumerate() {
        let [first, second, third, fourth, fifth] = vars;
        let (mixed, constant) = match at {
            0..20 => ((second & third) | (!second & fourth), 0x5A82_7999),
            20..40 => (second ^ third ^ fourth, 0x6ED9_EBA1),
            40..60 => ((second & third) | (second & fourth) | (third & fourth), 0x8F1B_BCDC),
            _ => (second ^ third ^ fourth, 0xCA62_C1D6u32),
        };
        let sum = [mixed, fifth, constant, word].into_iter().fold(first.rotate_left(5), u32::wrapping_add);
        vars = [sum, first, second.rotate_left(30), third, fourth];
    }
    for (word, more) in state.iter_mut().zip(vars) {
        *word = word.wrapping_add(more);
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Appends Base64 with its padding.
pub(super) fn put_base64(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..chunk.len()].copy_from_slice(chunk);
        let value = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for place in 0..4 {
            let digit = ALPHABET[(value >> (18 - 6 * place)) as usize & 63];
            out.push(if place <= chunk.len() { digit } else { b'=' });
        }
    }
}

/// Whether the text is sixteen bytes in Base64: what Sec-WebSocket-Key is (RFC 6455 4.2.1).
pub(super) fn is_key(text: &str) -> bool {
    match text.as_bytes() {
        [digits @ .., b'=', b'='] => digits.len() == 22 && digits.iter().all(|digit| ALPHABET.contains(digit)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_rfc_3174() {
        let hex = |bytes: &[u8]| bytes.iter().flat_map(|byte| format!("{byte:02X}").into_bytes()).collect::<Vec<u8>>();
        assert_eq!(hex(&sha1(b"abc")), b"A9993E364706816ABA3E25717850C26C9CD0D89D");
        let long = b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
        assert_eq!(hex(&sha1(long)), b"84983E441C3BD26EBAAE4AA1F95129E5E54670F1");
        assert_eq!(hex(&sha1(&[b'a'; 1_000])), b"291E9A6C66994949B57BA5E650361E98FC36B1BA");
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            let mut out = Vec::new();
            put_base64(bytes.as_bytes(), &mut out);
            assert_eq!(out, text.as_bytes());
        }
        assert!(is_key("dGhlIHNhbXBsZSBub25jZQ=="));
        for text in ["", "==", "dGhlIHNhbXBsZSBub25jZQ=", "dGhlIHNhbXBsZSBub25j====", "dGhlIHNhbXBsZSBub25jZ Q=="] {
            assert!(!is_key(text), "{text}");
        }
    }
}

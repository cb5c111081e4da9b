//! WebSocket: a stream of frames means the same in one piece and in two, its decoder travels as bytes, and a request is
//! waited for to its last byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pulsegate_fuzz::codec::websocket::{Decoder, Error, Event, decode_request};

/// Data and control frames as they were heard: (opcode's part, bytes).
fn hear(pieces: &[&[u8]]) -> Result<(Vec<u8>, usize, Decoder), Error> {
    let (mut data, mut controls, mut decoder) = (Vec::new(), 0, Decoder::default());
    for piece in pieces {
        let (mut bytes, mut at) = (piece.to_vec(), 0);
        loop {
            let (next, event) = decoder.next(&mut bytes, at)?;
            assert!(at <= next && next <= bytes.len());
            at = next;
            match event {
                None => break,
                Some(Event::Data { payload, .. }) => data.extend_from_slice(&bytes[payload]),
                Some(_) => controls += 1,
            }
        }
        let mut image = Vec::new();
        decoder.encode(&mut image);
        decoder = Decoder::decode(&image).expect("its own image");
    }
    Ok((data, controls, decoder))
}

fuzz_target!(|input: &[u8]| {
    if let Ok(Some((_, length))) = decode_request(input) {
        for cut in 0..length {
            assert!(!matches!(decode_request(&input[..cut]), Ok(Some(_))));
        }
    }
    let _ = Decoder::decode(input);
    let Some((&cut, bytes)) = input.split_first() else { return };
    let cut = bytes.len() * usize::from(cut) / 255;
    assert_eq!(hear(&[bytes]), hear(&[&bytes[..cut], &bytes[cut..]]));
});

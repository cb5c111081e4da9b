//! The native framing: bytes that decode must encode to the same bytes, whatever else follows and however they were cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pulsegate_fuzz::codec::native::{BODY_MAX, decode};

fuzz_target!(|input: &[u8]| {
    // The first byte chooses the receiver's bound: 0 to BODY_MAX.
    let Some((&bound, mut bytes)) = input.split_first() else { return };
    let body_max = BODY_MAX * usize::from(bound) / 255;
    while let Ok(Some((frame, length))) = decode(bytes, body_max) {
        let mut again = vec![0xaa; 3];
        frame.encode(&mut again);
        assert_eq!(again[3..], bytes[..length]);
        assert_eq!(decode(&bytes[..length - 1], body_max), Ok(None), "a cut frame asks for more");
        bytes = &bytes[length..];
    }
});

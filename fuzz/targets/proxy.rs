//! The PROXY protocol: nothing panics, a header ends where it says, cut it is waited for, and what follows is not looked at.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pulsegate_fuzz::codec::proxy::decode;

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some((header, length))) = decode(bytes) else { return };
    assert!(length <= bytes.len());
    for cut in 0..length {
        assert_eq!(decode(&bytes[..cut]), Ok(None));
    }
    let mut followed = bytes[..length].to_vec();
    followed.extend_from_slice(b"\x16\x03\x01 anything");
    assert_eq!(decode(&followed), Ok(Some((header, length))));
});

//! What outlives a process: bytes that decode must encode to the same bytes, whatever they are.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pulsegate_fuzz::image::{Change, Head, Publication, Session};

macro_rules! again {
    ($input:ident, $($type:ty),+) => {
        $(if let Ok(found) = <$type>::decode($input) {
            let mut again = vec![0xaa; 3];
            found.encode(&mut again);
            assert_eq!(again[3..], *$input);
        })+
    };
}

fuzz_target!(|input: &[u8]| {
    again!(input, Publication, Head, Session, Change);
});

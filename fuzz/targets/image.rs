//! What outlives a process: bytes that decode must encode to the same bytes, whatever they are. The tag alone is that of the version
//! that is written today.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pulsegate_fuzz::image::{Change, Head, Publication, Session};

/// Which form it is, and which version of it.
const TAG_BYTES: usize = 2;

macro_rules! again {
    ($input:ident, $($type:ty),+) => {
        $(if let Ok(found) = <$type>::decode($input) {
            let mut again = vec![0xaa; 3];
            found.encode(&mut again);
            assert_eq!(again[3 + TAG_BYTES..], $input[TAG_BYTES..]);
        })+
    };
}

fuzz_target!(|input: &[u8]| {
    again!(input, Publication, Head, Session, Change);
});

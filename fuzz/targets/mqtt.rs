//! MQTT packets from anybody: what decodes can be encoded, and decodes again to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pulsegate_fuzz::codec::mqtt::{Packet, Version, decode};

const LONGEST: usize = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    for version in [None, Some(Version::V31), Some(Version::V311), Some(Version::V5)] {
        let Ok(Some((packet, length))) = decode(bytes, version, LONGEST) else { continue };
        assert!(length <= bytes.len());
        let spoken = match (&packet, version) {
            (Packet::Connect(connect), _) => connect.version,
            (_, version) => version.expect("nothing but CONNECT comes before CONNECT"),
        };
        let mut again = Vec::new();
        packet.encode(spoken, &mut again);
        let (decoded, _) = decode(&again, version, usize::MAX).expect("it was right before").expect("it is whole");
        assert_eq!(decoded, packet);
    }
});

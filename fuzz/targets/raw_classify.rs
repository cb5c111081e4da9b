//! The raw protocol: heartbeats are counted exactly, and data is cut without losing a byte.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pulsegate_fuzz::codec::raw::{Payload, chunks, classify};

fuzz_target!(|input: &[u8]| {
    // The first byte tells how long the heartbeat is that follows; the rest is a record.
    let Some((&length, rest)) = input.split_first() else { return };
    let (heartbeat, record) = rest.split_at(rest.len().min(length.into()));
    match classify(heartbeat, record) {
        Payload::Heartbeats(count) => assert_eq!(heartbeat.repeat(count), record),
        Payload::Data(data) => {
            assert_eq!(data, record);
            let repeats = record.len().checked_div(heartbeat.len()).unwrap_or(0);
            assert!(repeats == 0 || heartbeat.repeat(repeats) != record, "heartbeats taken for data");
            let size = usize::from(length) + 1;
            assert_eq!(chunks(data, size).flatten().copied().collect::<Vec<u8>>(), data);
        }
    }
});

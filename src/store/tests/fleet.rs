//! What several gateways add: how a message was published, and how far others' messages have come.

use super::*;
use crate::link::{QoS, Stamp};
use crate::store::FleetPosition;

#[test]
fn how_a_message_was_published_is_read_as_it_was_written() {
    let directory = TempDir::new().unwrap();
    let (store, settled) = open(&options(directory.path()));
    let mut entries = Vec::new();
    for (number, qos) in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce].into_iter().enumerate() {
        for (retain, properties, expires_ms) in [(false, &[][..], None), (true, &[1, 0, 255][..], Some(-5))] {
            let mut entry = message(number as u32, 10);
            let What::Message { published, .. } = &mut entry.what else { unreachable!() };
            let stamp = if retain { Stamp { clock: u64::MAX - 1, node: u64::MAX } } else { Stamp::NONE };
            let groups = retain.then(|| "0a,1b".into());
            *published = Some(Published { qos, retain, properties: properties.into(), expires_ms, stamp, groups });
            entries.push(entry);
        }
    }
    entries.push(message(9, 10));
    offer_all(&store, entries.clone());
    wait(&settled, entries.len());
    let read: Vec<_> = all(&store).into_iter().map(|stored| stored.entry.what).collect();
    assert_eq!(read, entries.iter().map(|entry| entry.what.clone()).collect::<Vec<_>>());
    drop(store);
    assert_eq!(check(directory.path()).unwrap().damage, [""; 0]);
}

#[test]
fn a_place_in_the_fleets_stream_survives_a_crash() {
    let directory = TempDir::new().unwrap();
    let (store, _settled) = open(&options(directory.path()));
    assert_eq!(store.reader().fleet_position().unwrap(), None);
    let at = |stream: &str, position| FleetPosition { stream: stream.into(), position };
    for place in [at("2026-01-01T00:00:00Z", 7), at("2026-01-01T00:00:00Z", 9), at("later", 1 << 40)] {
        assert_eq!(block(store.keep_fleet_position(place.clone())).unwrap(), place.position);
        let (_directory, after) = after_crash(&directory);
        assert_eq!(after.reader().fleet_position().unwrap(), Some(place));
    }
}

//! A device has one connection: the newer wins, and the books are right whatever the storm.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pulsegate::codec::native::{CloseCode, Frame};

use crate::support::{Device, Event, SOON, Site, hello, native, wait_until};

#[test]
fn the_newer_connection_wins_and_the_older_is_told() {
    let site = Site::new();
    let gateway = site.start("workers = 4", &[native()]);
    let tls = site.tls();
    let mut first = Device::welcomed(gateway.devices(), &tls, "twin");
    let generation = |device: serde_json::Value| device["generation"].as_u64().unwrap();
    let before = generation(gateway.device("twin").unwrap());
    let mut second = Device::welcomed(gateway.devices(), &tls, "twin");
    assert_eq!(first.expect_close(CloseCode::TAKEN_OVER).0, "taken_over");
    assert!(generation(gateway.device("twin").unwrap()) > before);
    second.send(&[Frame::Ping(b"alive")]);
    assert_eq!(second.hear(), Event::Pong(b"alive".to_vec()));
    drop(first);
    gateway.expect_connections(1);
    gateway.expect_connected(1);
    gateway.expect_closed("taken_over", 1);
    second.leave();
    gateway.wait_until_empty();
    assert_eq!(gateway.all_closed(), [("peer_closed".to_owned(), 1), ("taken_over".to_owned(), 1)]);
}

#[test]
fn a_storm_of_one_id_leaves_exactly_one_connection() {
    const TWINS: usize = 50;
    const ROUNDS: usize = 4;
    let site = Site::new();
    let gateway = site.start("workers = 4", &[native()]);
    let (address, tls) = (gateway.devices(), site.tls());
    // Everybody waits for everybody, but not for ever.
    let ready = AtomicUsize::new(0);
    let survivors = std::thread::scope(|scope| {
        let twin = || {
            let mut kept = None;
            for round in 1..=ROUNDS {
                let mut device = Device::connect(address, &tls).unwrap();
                ready.fetch_add(1, Ordering::Relaxed);
                wait_until("all are ready", SOON, || ready.load(Ordering::Relaxed) >= round * TWINS);
                device.send(&[hello("twin")]);
                device.expect_welcome();
                if let Some(mut older) = kept.replace(device) {
                    Device::expect_close(&mut older, CloseCode::TAKEN_OVER);
                }
            }
            kept
        };
        let twins: Vec<_> = (0..TWINS).map(|_| scope.spawn(twin)).collect();
        let kept = twins.into_iter().filter_map(|twin| twin.join().unwrap());
        kept.filter_map(|mut device| match device.hear_within(Duration::from_millis(100)) {
            None => Some(device),
            Some(Event::Close { code: CloseCode::TAKEN_OVER, .. }) => None,
            Some(other) => panic!("{other:?}"),
        })
        .collect::<Vec<_>>()
    });
    assert_eq!(survivors.len(), 1);
    gateway.expect_connections(1);
    let all = (TWINS * ROUNDS) as u64;
    gateway.expect_closed("taken_over", all - 1);
    assert_eq!(gateway.all_closed().len(), 1);
    gateway.expect_connected(1);
    assert!(gateway.device("twin").is_some());
    // One presence event for each that came, and one for each that went.
    gateway.expect_metric("pulsegate_backbone_events_accepted_total", all + (all - 1));
    gateway.expect_metric("pulsegate_moves_sent_total", gateway.metric("pulsegate_moves_received_total"));
}

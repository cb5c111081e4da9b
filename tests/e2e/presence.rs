//! What `GET /v1/events` says of one device under a storm of takeovers: one life after the other, none doubled, none lost.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use pulsegate::codec::native::CloseCode;
use pulsegate::tls::handshake::ClientTls;
use serde_json::Value;

use crate::support::{Device, Follower, SOON, Site, hello, native, sized, wait_until};

/// Clients that are the same device.
const TWINS: usize = 50;

/// Connects, and becomes the device at one moment with all others, `rounds` times; every connection but its latest is
/// told that it was taken over. Hands back the latest, which may have been told so too.
fn be_a_twin(address: SocketAddr, tls: &ClientTls, rounds: usize, ready: &AtomicUsize) -> Device {
    let mut latest: Option<Device> = None;
    for round in 1..=rounds {
        let mut device = Device::connect(address, tls).unwrap();
        ready.fetch_add(1, Ordering::Relaxed);
        // Everybody waits for everybody, but not for ever.
        wait_until("all are ready", SOON, || ready.load(Ordering::Relaxed) >= round * TWINS);
        device.send(&[hello("twin")]);
        device.expect_welcome();
        if let Some(mut older) = latest.replace(device) {
            older.expect_close(CloseCode::TAKEN_OVER);
        }
    }
    latest.expect("there is a round")
}

/// Reads the events of one device until `lives` of its connections have ended, and holds each against those before.
fn check_lives(events: Follower, lives: usize) -> String {
    let number = |event: &Value, field: &str| event[field].as_u64().unwrap();
    let (mut live, mut generation, mut sequence, mut ended) = (None, 0, 0, 0);
    let mut cause = String::new();
    for event in events {
        assert_eq!((&event["device"], &event["epoch"].is_u64()), (&"twin".into(), &true));
        // Nobody else is there: the shard's presence events are the device's.
        sequence += 1;
        assert_eq!(number(&event, "sequence"), sequence, "{event}");
        if event["kind"] == "connected" {
            assert_eq!(live, None, "two at a time: {event}");
            assert!(number(&event, "generation") > generation, "{event}");
            generation = number(&event, "generation");
            live = Some(generation);
            assert!(event["cause"].is_null(), "{event}");
        } else {
            assert_eq!(event["kind"], "disconnected");
            assert_eq!(Some(number(&event, "generation")), live.take(), "{event}");
            ended += 1;
            event["cause"].as_str().unwrap().clone_into(&mut cause);
            if ended == lives {
                return cause;
            }
            assert_eq!(cause, "taken_over", "{event}");
        }
    }
    panic!("the events ended after {ended} lives")
}

/// 300 rounds of 50; with `PULSEGATE_FULL` a thousand.
#[test]
fn a_storm_of_takeovers_is_one_life_after_the_other() {
    let rounds = sized(300, 1_000);
    let lives = rounds * TWINS;
    let site = Site::new();
    // Whoever is refused because the machine is busy is no takeover.
    let gateway = site.start("workers = 4\n[limits]\nshed_lateness = \"10s\"", &[native()]);
    let (address, tls) = (gateway.devices(), site.tls());
    let events = gateway.follow("?device=twin&kind=connected,disconnected");
    let ready = AtomicUsize::new(0);
    let last_cause = thread::scope(|scope| {
        let reading = scope.spawn(move || check_lives(events, lives));
        let twin = || be_a_twin(address, &tls, rounds, &ready);
        let twins: Vec<_> = (0..TWINS).map(|_| scope.spawn(twin)).collect();
        let mut latest: Vec<Device> = twins.into_iter().map(|twin| twin.join().unwrap()).collect();
        gateway.expect_connected(1);
        gateway.expect_closed("taken_over", lives as u64 - 1);
        // The one that is left goes last.
        latest.clear();
        reading.join().unwrap()
    });
    assert!(["peer_closed", "peer_reset"].contains(&&*last_cause), "{last_cause}");
    gateway.wait_until_empty();
    gateway.expect_metric("pulsegate_backbone_events_accepted_total", 2 * lives as u64);
}

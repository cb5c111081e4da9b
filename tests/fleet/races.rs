//! Races that other brokers reported, each by its name there: a fleet of real gateways does not have them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pulsegate::codec::native::Frame;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Device, Event, Site, wait_until};
use crate::wills::{come, packet, text};
use crate::{LATE, Member, fleet, heard, moves};

/// For how long silence is listened to. Longer could only find more.
const QUIET: Duration = Duration::from_millis(300);
/// The same behind a delay of two seconds.
const DELAY_OVER: Duration = Duration::from_secs(3);

/// CONNECT of MQTT 5 with a will under `will/ID` that says `word` and waits for so many seconds.
fn connect(id: &str, word: &str, delay: u8) -> Vec<u8> {
    let session = [5, 0x11, 0, 0, 0, 60];
    let will = [&[5, 0x18, 0, 0, 0, delay][..], &text(&format!("will/{id}")), &text(word)].concat();
    packet(0x10, &[&text("MQTT")[..], &[5, 0x04, 0, 0], &session, &text(id), &will].concat())
}

/// Somebody who hears all wills at this gateway.
fn watcher(member: &Member, id: &str) -> Device {
    let mut device = come(member, &packet(0x10, &[&text("MQTT")[..], &[5, 0x02, 0, 0], &[0], &text(id)].concat()));
    device.send_plain(&packet(0x82, &[&[0, 1, 0][..], &text("will/#"), &[0]].concat()));
    assert!(matches!(device.hear(), Event::Data(told) if told[0] == 0x90));
    device
}

/// The will that is heard next.
#[track_caller]
fn will(watcher: &mut Device) -> String {
    let Event::Data(told) = watcher.hear() else { panic!("no will") };
    String::from_utf8_lossy(&told).into_owned()
}

/// emqx 17424: rows of a node that died blocked the ids of its devices until somebody removed them by hand.
#[test]
fn stale_rows_of_a_killed_gateway_block_no_id() {
    let site = Site::new();
    let (servers, mut fleet) = fleet(&site, 1, 2, "lease = \"30s\"");
    let devices: Vec<_> = (0..20).map(|number| fleet[0].device(&format!("meter-{number}"))).collect();
    fleet[0].wait_for_claims(20);
    let killed = fleet.remove(0);
    killed.gateway.signal(Signal::KILL);
    drop((devices, killed));
    // Its lease holds for half a minute, and nobody waits for that to be let in.
    let mut again: Vec<_> = (0..20).map(|number| fleet[0].device(&format!("meter-{number}"))).collect();
    for (number, device) in again.iter_mut().enumerate() {
        assert_eq!(fleet[0].send(&format!("meter-{number}"), "x").0, 200);
        assert_eq!(heard(device).1, "x");
    }
    fleet[0].wait_for_claims(20);
    assert_eq!(servers.rows("pulsegate_devices"), 20);
}

/// zuul 1280: the late end of an old connection removed the row of the newer one.
#[test]
fn a_late_end_removes_no_newer_owner() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 3, "");
    let old = fleet[0].claimed("meter-1");
    fleet[0].gateway.signal(Signal::STOP);
    // It ends where nobody sees it, and comes elsewhere; then its first gateway wakes, and sees the end.
    old.reset();
    let mut new = fleet[1].claimed("meter-1");
    fleet[0].gateway.signal(Signal::CONT);
    wait_until("the old connection has ended", LATE, || fleet[0].gateway.connected() == 0);
    fleet[0].wait_for_claims(0);
    assert_eq!(servers.rows("pulsegate_devices"), 1);
    for member in &fleet {
        assert_eq!(member.send("meter-1", "x").0, 200);
        assert_eq!(heard(&mut new).1, "x");
    }
}

/// harper 1604: the timer of an old connection published the will of the new one.
#[test]
fn a_timer_of_an_old_connection_publishes_no_will_of_the_new_one() {
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 2, "");
    let mut watchers = [watcher(&fleet[0], "watcher-0"), watcher(&fleet[1], "watcher-1")];
    come(&fleet[0], &connect("d", "old", 2)).reset();
    let new = come(&fleet[1], &connect("d", "new", 0));
    for watcher in &mut watchers {
        assert_eq!(watcher.hear_within(DELAY_OVER), None, "neither the old will nor the new one");
    }
    new.reset();
    assert!(will(&mut watchers[1]).contains("new"), "its own, when it is lost itself");
    assert_eq!(watchers[1].hear_within(QUIET), None, "once");
}

/// emqx 18565: the will of a connection that was taken over was not published [v5 MQTT-3.1.4-3].
#[test]
fn a_will_without_delay_is_published_when_another_gateway_takes_the_device_over() {
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 2, "");
    let mut watcher = watcher(&fleet[0], "watcher");
    let mut old = come(&fleet[0], &connect("d", "old", 0));
    fleet[0].wait_for_claims(2);
    let _new = come(&fleet[1], &connect("d", "new", 0));
    // DISCONNECT 0x8E, and the will.
    let Event::Data(told) = old.hear() else { panic!("it is not told") };
    assert_eq!((told[0], told[2]), (0xE0, 0x8E), "{told:?}");
    assert!(will(&mut watcher).contains("old"));
    assert_eq!(watcher.hear_within(QUIET), None, "once");
}

/// emqx 6183, vernemq 201: what was sent to a device while it moved was lost, or came to have two outcomes.
#[test]
fn commands_to_a_device_that_moves_all_the_time_have_one_outcome_each() {
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 3, "");
    let (mut received, mut results) = (BTreeSet::new(), Vec::new());
    let has_moved = AtomicBool::new(false);
    thread::scope(|scope| {
        let (fleet, has_moved) = (&fleet, &has_moved);
        let sender = scope.spawn(move || {
            let mut results = Vec::new();
            while !has_moved.load(Ordering::Relaxed) {
                let number = results.len();
                let order = json!({"payload": number.to_string(), "ack": true, "timeout": "2s", "queue": true});
                let (status, answer) = fleet[number % 3].gateway.post("/v1/devices/meter-1/messages", &order);
                results.push((number.to_string(), status, answer));
            }
            results
        });
        let (mut moved, enough) = (0, moves(24));
        let mut device = fleet[0].device("meter-1");
        loop {
            let is_over = sender.is_finished();
            // It hears for a moment what is said to it, however much that is, and is at another gateway.
            let until = Instant::now() + Duration::from_millis(50);
            while let Some(event) = device.hear_within(until.saturating_duration_since(Instant::now())) {
                match event {
                    Event::Message { id, payload, .. } => {
                        received.insert(String::from_utf8(payload).unwrap());
                        device.send(&[Frame::Ack(id)]);
                    }
                    Event::Close { code, .. } => panic!("{code:?}: it is in one place at a time"),
                    _ => {}
                }
            }
            if is_over {
                break;
            }
            device.reset();
            moved += 1;
            has_moved.store(moved >= enough, Ordering::Relaxed);
            device = fleet[moved % 3].device("meter-1");
        }
        results = sender.join().unwrap();
        // It stays: whatever waits comes now.
        let waits = |result: &(String, u16, Value)| result.1 == 202;
        let missing =
            |received: &BTreeSet<String>| results.iter().any(|result| waits(result) && !received.contains(&result.0));
        while missing(&received) {
            let (id, payload) = heard(&mut device);
            device.send(&[Frame::Ack(id)]);
            received.insert(payload);
        }
        for (number, status, answer) in &results {
            match (status, answer["error"]["code"].as_str()) {
                (200, _) => assert!(received.contains(number), "{number} was acknowledged: {answer}"),
                (202, _) => {
                    let url = answer["url"].as_str().unwrap();
                    let state = || fleet[0].gateway.get_json(url)["state"].as_str().unwrap().to_owned();
                    wait_until(&format!("{number} has its outcome"), LATE, || state() == "acknowledged");
                }
                // It may have come.
                (504, Some("ack_timeout" | "unacknowledged" | "gateway_silent")) => {}
                // Nothing was done.
                (503, Some("gateway_deaf")) | (507, Some("queue_full")) => {
                    assert!(!received.contains(number), "{number}: {answer}");
                }
                other => panic!("{number}: {other:?}"),
            }
        }
    });
    let queued = results.iter().filter(|(_, status, _)| *status == 202).count();
    println!("{} commands, of which {queued} waited", results.len());
}

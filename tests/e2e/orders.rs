//! Messages to thousands of devices: each arrives once, and each is acknowledged by the device that it was meant for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Behaviour, Event, Fleet, SOON, Site, native, wait_until};

/// Requests under way at a time; the API takes 128.
const SENDERS: usize = 32;

#[test]
fn ten_thousand_devices_acknowledge_a_message_each() {
    let count = 10_000;
    let site = Site::new();
    let gateway = site.start("workers = 2\n[limits]\nshed_lateness = \"10s\"", &[native()]);
    let fleet = Fleet::connect(gateway.devices(), &site.tls(), "meter-", count, Behaviour::Answer);
    gateway.expect_connected(count);

    let next = AtomicUsize::new(0);
    let send = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            let order = json!({"topic": "set", "payload": format!("{number}"), "ack": true, "timeout": "30s"});
            let answer = gateway.post(&format!("/v1/devices/meter-{number}/messages"), &order);
            assert_eq!(answer, (200, json!({"outcome": "acknowledged"})), "meter-{number}");
        }
    };
    thread::scope(|scope| {
        for _ in 0..SENDERS {
            scope.spawn(send);
        }
    });
    // An acknowledgement is said after its message was heard: nothing is on its way any more.
    let mut heard: Vec<(usize, Vec<u8>)> = Vec::new();
    for (index, event) in fleet.take_heard() {
        match event {
            Event::Message { id: 1.., payload, .. } => heard.push((index, payload)),
            other => panic!("meter-{index}: {other:?}"),
        }
    }
    heard.sort_unstable();
    let expected: Vec<_> = (0..count).map(|number| (number, number.to_string().into_bytes())).collect();
    assert!(heard == expected, "{} of {count} messages, or to somebody else", heard.len());
    gateway.expect_metric("pulsegate_messages_sent_total", count as u64);
    gateway.expect_metric("pulsegate_messages_confirmed_total", count as u64);

    // One at a time, to one among them all.
    let mut took: Vec<Duration> = (0..200)
        .map(|_| {
            let began = Instant::now();
            let order = json!({"payload": "now", "ack": true});
            assert_eq!(gateway.post("/v1/devices/meter-7/messages", &order).0, 200);
            began.elapsed()
        })
        .collect();
    took.sort_unstable();
    println!("of {count} devices one acknowledges in {:?} (median), {:?} at most", took[100], took[199]);
    wait_until("each was heard once", SOON, || {
        let metric = |name| gateway.metric(name);
        metric("pulsegate_messages_confirmed_total") == count as u64 + 200
    });
    assert_eq!(fleet.take_heard().len(), 200);
    assert_eq!((fleet.lost(), gateway.all_closed()), (0, vec![]));
}

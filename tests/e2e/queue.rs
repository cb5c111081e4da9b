//! Commands that wait in the store of a gateway that is alone: through `kill -9`, a full disk and restarts, each with one outcome.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use pulsegate::codec::native::Frame;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Device, Event, Gateway, Site, SmallDisk, message, native, wait_until};

const LATE: Duration = Duration::from_mins(1);

fn waiting(payload: &str) -> Value {
    json!({"topic": "set", "payload": payload, "queue": true})
}

/// Has a command wait; its id.
#[track_caller]
fn queue(gateway: &Gateway, device: &str, order: &Value) -> String {
    let (status, answer) = gateway.post(&format!("/v1/devices/{device}/messages"), order);
    assert_eq!((status, &answer["outcome"]), (202, &json!("queued")), "{answer}");
    answer["command"].as_str().unwrap().to_owned()
}

fn state(gateway: &Gateway, id: &str) -> String {
    gateway.get_json(&format!("/v1/commands/{id}"))["state"].as_str().unwrap().to_owned()
}

#[track_caller]
fn expect_state(gateway: &Gateway, id: &str, expected: &str) {
    wait_until(&format!("{id} is {expected}"), LATE, || state(gateway, id) == expected);
}

#[track_caller]
fn heard(device: &mut Device) -> (u32, String) {
    loop {
        match device.hear() {
            Event::Message { id, payload, .. } => break (id, String::from_utf8(payload).unwrap()),
            Event::Ping(_) | Event::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Hears a message that wants to be acknowledged, and does so; what it said.
#[track_caller]
fn acknowledge(device: &mut Device) -> String {
    let (id, payload) = heard(device);
    assert_ne!(id, 0, "{payload}");
    device.send(&[Frame::Ack(id)]);
    payload
}

#[test]
fn what_waits_survives_kill_nine_and_is_told_in_order_with_one_outcome_each() {
    let site = Site::new();
    site.configure("workers = 2", &[native()]);
    let gateway = Gateway::start(site.directory());
    let ids = ["a", "b", "c"].map(|payload| queue(&gateway, "meter%207", &waiting(payload)));
    let taken_back = queue(&gateway, "meter%207", &waiting("never"));
    assert_eq!(ids.each_ref().map(|id| state(&gateway, id)), ["queued"; 3]);
    gateway.signal(Signal::KILL);
    drop(gateway);

    let gateway = Gateway::start(site.directory());
    let url = format!("{}/v1/commands/{taken_back}", gateway.admin());
    assert_eq!(ureq::delete(&url).call().unwrap().status().as_u16(), 200);
    // It hears the first, and the gateway is killed before it hears that it arrived: told again, in the next life.
    let mut device = Device::welcomed(gateway.devices(), &site.tls(), "meter 7");
    assert_eq!(heard(&mut device).1, "a");
    gateway.signal(Signal::KILL);
    drop((gateway, device));

    let gateway = Gateway::start(site.directory());
    assert_eq!(state(&gateway, &ids[0]), "sent");
    let mut device = Device::welcomed(gateway.devices(), &site.tls(), "meter 7");
    for payload in ["a", "b", "c"] {
        assert_eq!(acknowledge(&mut device), payload);
    }
    for id in &ids {
        expect_state(&gateway, id, "acknowledged");
    }
    assert_eq!(state(&gateway, &taken_back), "cancelled");
    let known = gateway.get_json(&format!("/v1/commands/{}", ids[0]));
    assert_eq!((&known["device"], &known["tries"]), (&json!("meter 7"), &json!(2)));
    wait_until("nothing waits", LATE, || gateway.metric("pulsegate_queue_waiting") == 0);
    assert_eq!(gateway.metric("pulsegate_queue_acknowledged_total"), 3);
    // Whoever is there is told at once.
    let (status, answer) = gateway.post("/v1/devices/meter%207/messages", &waiting("now"));
    assert_eq!((status, answer), (200, json!({"outcome": "delivered"})));
    assert_eq!(heard(&mut device), (0, "now".to_owned()));
    // Outcomes outlive the process too.
    gateway.signal(Signal::KILL);
    drop(gateway);
    let gateway = Gateway::start(site.directory());
    assert_eq!(state(&gateway, &ids[2]), "acknowledged");
    assert_eq!(gateway.get("/v1/commands/99-0a1b2c3d").0, 404);
    assert_eq!(gateway.get("/v1/commands/%3E").0, 404);
}

#[test]
fn what_expires_is_refused_or_finds_no_room_has_that_outcome() {
    let site = Site::new();
    let gateway = site.start("workers = 2", &[native()]);
    let mut short = waiting("expired");
    short["expiry"] = "1s".into();
    let expired = queue(&gateway, "d", &short);
    expect_state(&gateway, &expired, "expired");
    for number in 0..32 {
        queue(&gateway, "d", &waiting(&format!("kept {number}")));
    }
    let (status, answer) = gateway.post("/v1/devices/d/messages", &waiting("no room"));
    assert_eq!((status, &answer["error"]["code"]), (507, &json!("queue_full")), "{answer}");
    let mut device = Device::welcomed(gateway.devices(), &site.tls(), "d");
    for number in 0..32 {
        assert_eq!(acknowledge(&mut device), format!("kept {number}"));
    }
    // Too long for a native device: for good.
    let long = queue(&gateway, "e", &json!({"payload": "x".repeat(65_535), "queue": true}));
    let _device = Device::welcomed(gateway.devices(), &site.tls(), "e");
    expect_state(&gateway, &long, "refused");
    // By list.
    let (status, answer) = gateway.post("/v1/messages", &json!({"devices": ["d", "f"], "payload": "x", "queue": true}));
    assert_eq!((status, &answer["done"], &answer["queued"]), (200, &json!(1), &json!(1)), "{answer}");
}

#[test]
fn without_a_store_nothing_waits() {
    let site = Site::new();
    let gateway = site.start("[store]\ndurability = \"memory\"", &[native()]);
    let (status, answer) = gateway.post("/v1/devices/d/messages", &waiting("x"));
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("no_queue")), "{answer}");
    assert_eq!(gateway.get("/v1/commands/1-0a1b2c3d").0, 409);
    assert!(!gateway.get("/metrics").1.contains("pulsegate_queue"), "there is none");
}

/// A full disk takes no command, and outcomes of those that wait are written all the same.
#[test]
fn a_full_disk_refuses_commands_and_lets_those_that_wait_go() {
    let site = Site::new();
    let data = site.path("data");
    let Some(disk) = SmallDisk::mount(&data, 6 << 10) else { return };
    let gateway = site.start("workers = 2\ndata_dir = \"data\"", &[native()]);
    let mut other = Device::welcomed(gateway.devices(), &site.tls(), "other");
    let id = queue(&gateway, "d", &waiting("x"));
    gateway.get_json("/v1/uplink?consumer=c&max=1");
    disk.fill();
    let mut sent = 0;
    wait_until("there is no room", LATE, || {
        sent += 1;
        other.send(&[message(sent, &[2; 10_000])]);
        gateway.metric("pulsegate_store_without_room") == 1
    });
    let (status, answer) = gateway.post("/v1/devices/e/messages", &waiting("y"));
    assert_eq!((status, &answer["error"]["code"]), (507, &json!("queue_full")), "{answer}");
    let mut device = Device::welcomed(gateway.devices(), &site.tls(), "d");
    assert_eq!(acknowledge(&mut device), "x");
    expect_state(&gateway, &id, "acknowledged");
    disk.make_room();
    wait_until("there is room", LATE, || gateway.metric("pulsegate_store_without_room") == 0);
    queue(&gateway, "e", &waiting("y"));
}

/// Devices come while commands to them are sent: each command is delivered at once or waits, and all of them arrive.
#[test]
fn no_command_is_missed_by_a_device_that_comes_while_it_is_put() {
    const DEVICES: usize = 60;
    let site = Site::new();
    let gateway = site.start("workers = 2", &[native()]);
    let queued = AtomicUsize::new(0);
    thread::scope(|scope| {
        for part in 0..4 {
            let (gateway, queued, site) = (&gateway, &queued, &site);
            scope.spawn(move || {
                for number in (part..DEVICES).step_by(4) {
                    let id = format!("meter-{number}");
                    let path = format!("/v1/devices/{id}/messages");
                    let sender = scope.spawn(move || {
                        let (status, answer) = gateway.post(&path, &waiting("x"));
                        assert!([200, 202].contains(&status), "{status} {answer}");
                        queued.fetch_add(usize::from(status == 202), Ordering::Relaxed);
                    });
                    let mut device = Device::welcomed(gateway.devices(), &site.tls(), &id);
                    let (ack, payload) = heard(&mut device);
                    assert_eq!(payload, "x");
                    if ack != 0 {
                        device.send(&[Frame::Ack(ack)]);
                    }
                    sender.join().unwrap();
                }
            });
        }
    });
    wait_until("each that waited has its outcome", LATE, || {
        gateway.metric("pulsegate_queue_acknowledged_total") == queued.load(Ordering::Relaxed) as u64
    });
}

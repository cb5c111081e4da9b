//! Commands that wait for devices that are nowhere: told at whichever gateway they come to, at least once, each with one outcome.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use pulsegate::codec::native::Frame;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Device, Event, Site, wait_for, wait_until};
use crate::{LATE, Member, fleet, heard};

/// Has a command wait; its id.
#[track_caller]
fn queue(member: &Member, device: &str, order: &Value) -> String {
    let (status, answer) = member.gateway.post(&format!("/v1/devices/{device}/messages"), order);
    assert_eq!((status, &answer["outcome"]), (202, &json!("queued")), "{answer}");
    let id = answer["command"].as_str().unwrap().to_owned();
    assert_eq!(answer["url"], format!("/v1/commands/{id}"));
    id
}

fn waiting(payload: &str) -> Value {
    json!({"topic": "set", "payload": payload, "queue": true})
}

fn state(member: &Member, id: &str) -> String {
    member.gateway.get_json(&format!("/v1/commands/{id}"))["state"].as_str().unwrap().to_owned()
}

#[track_caller]
fn expect_state(member: &Member, id: &str, expected: &str) {
    wait_until(&format!("{id} is {expected}"), LATE, || state(member, id) == expected);
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
fn what_waits_is_told_at_whichever_gateway_the_device_comes_to_in_order_and_each_has_one_outcome() {
    let site = Site::new();
    let (mut servers, fleet) = fleet(&site, 1, 3, "");
    let ids: Vec<_> = ["a", "b", "c"].map(|payload| queue(&fleet[0], "meter%207", &waiting(payload))).into();
    for member in &fleet {
        assert_eq!(state(member, &ids[1]), "queued");
    }
    // It lies on the server's disk.
    servers.stop(0, Signal::KILL);
    wait_until("NATS is away", LATE, || fleet[0].fleet()["state"] == "away");
    let (status, answer) = fleet[0].gateway.post("/v1/devices/meter%207/messages", &waiting("x"));
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("fleet_away")), "nothing was done");
    servers.start(0, &[]);
    fleet.iter().for_each(Member::wait_until_joined);
    // It comes, hears the first, and goes without a word: it is told again, elsewhere.
    let mut device = fleet[1].device("meter 7");
    assert_eq!(heard(&mut device).1, "a");
    device.reset();
    let mut device = fleet[2].device("meter 7");
    for payload in ["a", "b", "c"] {
        assert_eq!(acknowledge(&mut device), payload);
    }
    for id in &ids {
        expect_state(&fleet[0], id, "acknowledged");
    }
    let known = fleet[1].gateway.get_json(&format!("/v1/commands/{}", ids[0]));
    assert_eq!((&known["device"], &known["node"], &known["tries"]), (&json!("meter 7"), &json!("gate-2"), &json!(2)));
    // Whoever is there is told at once, and nothing is left.
    let (status, answer) = fleet[0].gateway.post("/v1/devices/meter%207/messages", &waiting("now"));
    assert_eq!((status, answer), (200, json!({"outcome": "delivered", "node": "gate-2"})));
    assert_eq!(heard(&mut device), (0, "now".to_owned()));
    let info = servers.ask("$JS.API.STREAM.INFO.pulsegate_commands", &json!({}));
    assert_eq!(info["state"]["messages"], 0, "{info}");
    assert_eq!(fleet[0].gateway.metric("pulsegate_queue_put_total"), 3);
    assert_eq!(fleet[2].gateway.metric("pulsegate_queue_acknowledged_total"), 3);
    assert_eq!(fleet[0].gateway.get("/v1/commands/99-0a1b2c3d").0, 404);
    assert_eq!(fleet[0].gateway.get("/v1/commands/%3E").0, 404);
}

#[test]
fn a_command_to_a_device_whose_gateway_was_just_killed_waits_for_it_elsewhere() {
    let site = Site::new();
    let (_servers, mut fleet) = fleet(&site, 1, 2, "lease = \"10s\"");
    let device = fleet[0].claimed("meter-1");
    // The gateway dies after it has said it, and before it hears that it arrived.
    let dead = fleet.remove(0);
    let rest = &fleet[0];
    dead.gateway.signal(Signal::KILL);
    drop(device);
    // Until NATS has noticed, nobody knows whether it was done; then it waits, though the lease holds.
    let id = wait_for("it waits", LATE, || {
        let (status, answer) = rest.gateway.post("/v1/devices/meter-1/messages", &waiting("x"));
        assert!(status == 202 || answer["error"]["code"] == "gateway_silent", "{answer}");
        answer["command"].as_str().map(str::to_owned)
    });
    assert_eq!(state(rest, &id), "queued");
    let mut device = rest.device("meter-1");
    assert_eq!(acknowledge(&mut device), "x");
    expect_state(rest, &id, "acknowledged");
}

#[test]
fn an_mqtt_device_is_told_once_it_has_subscribed_and_others_pass_what_it_has_not() {
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 2, "");
    let not_yet = queue(&fleet[0], "m1", &json!({"topic": "later", "payload": "L", "queue": true}));
    let at_once = queue(&fleet[0], "m1", &json!({"topic": "now", "payload": "N", "queue": true}));
    let clean = [&crate::wills::text("MQTT")[..], &[4, 0x02, 0, 0], &crate::wills::text("m1")].concat();
    let mut device = crate::wills::come(&fleet[1], &crate::wills::packet(0x10, &clean));
    let subscribe = |device: &mut Device, packet: u8, topic: &str| {
        let body = [&[0, packet][..], &crate::wills::text(topic), &[1]].concat();
        device.send_plain(&crate::wills::packet(0x82, &body));
    };
    // What the device hears of publications, each acknowledged.
    let published = |device: &mut Device, payload: u8| {
        let mut all: Vec<u8> = Vec::new();
        while all.last() != Some(&payload) {
            let Event::Data(data) = device.hear() else { panic!("it is closed") };
            all.extend(data);
        }
        // PUBLISH of QoS 1: its packet identifier stands behind the topic.
        let at = all.len() - 3;
        device.send_plain(&[0x40, 2, all[at], all[at + 1]]);
    };
    subscribe(&mut device, 1, "now");
    published(&mut device, b'N');
    expect_state(&fleet[0], &at_once, "acknowledged");
    wait_until("it was tried", LATE, || state(&fleet[0], &not_yet) == "sent");
    subscribe(&mut device, 2, "later");
    published(&mut device, b'L');
    expect_state(&fleet[0], &not_yet, "acknowledged");
}

#[test]
fn what_expires_is_cancelled_or_finds_no_room_has_that_outcome_and_is_not_told() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 2, "");
    let mut short = waiting("expired");
    short["expiry"] = "1s".into();
    let expired = queue(&fleet[0], "d", &short);
    let cancelled = queue(&fleet[0], "d", &waiting("cancelled"));
    let url = format!("{}/v1/commands/{cancelled}", fleet[1].gateway.admin());
    assert_eq!(ureq::delete(&url).call().unwrap().status().as_u16(), 200);
    assert_eq!(state(&fleet[0], &cancelled), "cancelled");
    expect_state(&fleet[1], &expired, "expired");
    // Bounded for each device, and what was there stays.
    let kept = queue(&fleet[0], "d", &waiting("kept 0"));
    for number in 1..32 {
        queue(&fleet[1], "d", &waiting(&format!("kept {number}")));
    }
    let (status, answer) = fleet[0].gateway.post("/v1/devices/d/messages", &waiting("no room"));
    assert_eq!((status, &answer["error"]["code"]), (507, &json!("queue_full")), "{answer}");
    assert_eq!(state(&fleet[0], &kept), "queued");
    // What no gateway put is let go, and holds up nobody.
    servers.ask("pulsegate.command.other", &json!("nonsense"));
    let other = queue(&fleet[0], "other", &waiting("o"));
    let mut device = fleet[0].device("other");
    assert_eq!(acknowledge(&mut device), "o");
    expect_state(&fleet[1], &other, "acknowledged");
    let mut device = fleet[1].device("d");
    for number in 0..32 {
        assert_eq!(acknowledge(&mut device), format!("kept {number}"));
    }
    expect_state(&fleet[0], &kept, "acknowledged");
    // An outcome is one: what has one cannot be taken back.
    let url = format!("{}/v1/commands/{kept}", fleet[1].gateway.admin());
    assert_eq!(ureq::delete(&url).call().unwrap().status().as_u16(), 200);
    assert_eq!(state(&fleet[0], &kept), "acknowledged");
    // Too long for a native device: for good.
    let long = queue(&fleet[0], "e", &json!({"payload": "x".repeat(65_535), "queue": true}));
    let _device = fleet[1].device("e");
    expect_state(&fleet[0], &long, "refused");
    // By list, and what is not as it must be.
    let (status, answer) =
        fleet[0].gateway.post("/v1/messages", &json!({"devices": ["d", "f"], "payload": "x", "queue": true}));
    assert_eq!((status, &answer["done"], &answer["queued"]), (200, &json!(1), &json!(1)), "{answer}");
    for body in [json!({"payload": "x", "expiry": "1h"}), json!({"payload": "x", "queue": true, "expiry": "8days"})] {
        let (status, answer) = fleet[0].gateway.post("/v1/devices/f/messages", &body);
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("invalid_body")), "{answer}");
    }
}

/// Devices come while commands to them are sent: each command is delivered at once or waits, and all of them arrive.
#[test]
fn no_command_is_missed_by_a_device_that_comes_while_it_is_put() {
    const DEVICES: usize = 60;
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 2, "");
    let queued = AtomicUsize::new(0);
    thread::scope(|scope| {
        for part in 0..4 {
            let (fleet, queued) = (&fleet, &queued);
            scope.spawn(move || {
                for number in (part..DEVICES).step_by(4) {
                    let id = format!("meter-{number}");
                    let sender = scope.spawn({
                        let id = id.clone();
                        move || {
                            let path = format!("/v1/devices/{id}/messages");
                            let (status, answer) = fleet[number % 2].gateway.post(&path, &waiting("x"));
                            assert!([200, 202].contains(&status), "{status} {answer}");
                            queued.fetch_add(usize::from(status == 202), Ordering::Relaxed);
                        }
                    });
                    let mut device = fleet[(number / 2) % 2].device(&id);
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
    let acknowledged =
        || fleet.iter().map(|member| member.gateway.metric("pulsegate_queue_acknowledged_total")).sum::<u64>();
    wait_until("each that waited has its outcome", LATE, || acknowledged() == queued.load(Ordering::Relaxed) as u64);
    assert!(queued.load(Ordering::Relaxed) > 0, "some came later than their commands");
}

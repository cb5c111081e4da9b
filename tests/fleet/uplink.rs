//! What devices say at any gateway goes into one stream, from the local log of each: through an outage, once and in order.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::servers::Servers;
use crate::support::{Device, Event, Gateway, Site, message, wait_until};
use crate::{LATE, Member, members};

/// Says numbers, each acknowledged before the next.
#[track_caller]
fn say(device: &mut Device, numbers: std::ops::RangeInclusive<u32>) {
    for number in numbers {
        device.send(&[message(number, number.to_string().as_bytes())]);
        loop {
            match device.hear() {
                Event::Ack(acknowledged) => break assert_eq!(acknowledged, number),
                Event::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// So many events are not in the stream yet.
pub fn behind(member: &Member) -> Value {
    let listed = member.gateway.get_json("/v1/sinks");
    let sink = listed["sinks"].as_array().unwrap().iter().find(|sink| sink["name"] == "fleet-uplink").unwrap();
    sink["behind"].clone()
}

#[test]
fn what_devices_say_at_any_gateway_goes_into_one_stream() {
    let site = Site::new();
    let mut servers = Servers::new(&site, 1);
    servers.start_all();
    let fleet = members(2, &servers.urls("nats"), "uplink = \"local\"");
    let mut devices: Vec<_> = (0..4).map(|number| fleet[number % 2].device(&format!("meter.{number}"))).collect();
    for device in &mut devices {
        say(device, 1..=5);
    }
    servers.stop(0, Signal::KILL);
    for device in &mut devices {
        say(device, 6..=10);
    }
    servers.start(0, &[]);
    for member in &fleet {
        wait_until("all is in the stream", LATE, || behind(member) == 0);
    }
    let info = servers.ask("$JS.API.STREAM.INFO.pulsegate_uplink", &json!({"subjects_filter": "pulsegate.up.>"}));
    let subjects = info["state"]["subjects"].as_object().unwrap();
    let counts: BTreeMap<_, _> =
        subjects.iter().map(|(name, count)| (name.as_str(), count.as_u64().unwrap())).collect();
    for number in 0..4 {
        let begins = format!("pulsegate.up.meter%2E{number}.");
        let of_device: Vec<_> = counts.iter().filter(|(subject, _)| subject.starts_with(&begins)).collect();
        assert!(matches!(of_device[..], [(_, 10)]), "once each: {counts:?}");
    }
    assert_eq!(info["config"]["max_age"], json!(7 * 24 * 3_600_000_000_000_u64), "as uplink.retention");
}

fn seek(member: &Member, to: &str) -> (u16, Value) {
    member.gateway.post("/v1/sinks/fleet-uplink/seek", &json!({ "to": to }))
}

/// So many messages of a device are in the stream.
fn in_stream(servers: &Servers<'_>, device: &str) -> u64 {
    let info = servers
        .ask("$JS.API.STREAM.INFO.pulsegate_uplink", &json!({"subjects_filter": format!("pulsegate.up.{device}.>")}));
    let subjects = info["state"]["subjects"].as_object();
    subjects.map_or(0, |subjects| subjects.values().map(|count| count.as_u64().unwrap()).sum())
}

/// Nothing but heartbeats is heard for a while.
#[track_caller]
fn hears_nothing(device: &mut Device, within: Duration) {
    let deadline = Instant::now() + within;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        match device.hear_within(left) {
            None | Some(Event::Ping(_)) => {}
            Some(other) => panic!("{other:?}"),
        }
    }
}

#[track_caller]
fn expect_acks(device: &mut Device, numbers: std::ops::RangeInclusive<u32>) {
    for number in numbers {
        loop {
            match device.hear() {
                Event::Ack(acknowledged) => break assert_eq!(acknowledged, number),
                Event::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn an_acknowledgement_means_that_the_stream_has_it() {
    let site = Site::new();
    let mut servers = Servers::new(&site, 1);
    servers.start_all();
    let member = Member::joined("gate-0", &servers.urls("nats"), "");
    let mut device = member.device("meter-1");
    for number in 1..=10 {
        say(&mut device, number..=number);
        assert_eq!(in_stream(&servers, "meter-1"), u64::from(number), "as soon as it is acknowledged");
    }
    // While NATS is away nothing is acknowledged, nobody is ended, and nothing is lost.
    servers.stop(0, Signal::KILL);
    wait_until("it is away", LATE, || member.fleet()["state"] == "away");
    for number in 11..=15 {
        device.send(&[message(number, number.to_string().as_bytes())]);
    }
    wait_until("they are in the log", LATE, || behind(&member).as_u64() >= Some(5));
    hears_nothing(&mut device, Duration::from_secs(1));
    servers.start(0, &[]);
    expect_acks(&mut device, 11..=15);
    assert_eq!(in_stream(&servers, "meter-1"), 15, "once each");
    // What was never acknowledged comes from the log of a gateway that was killed meanwhile.
    servers.stop(0, Signal::KILL);
    wait_until("it is away", LATE, || member.fleet()["state"] == "away");
    device.send(&[message(16, b"16")]);
    wait_until("it is in the log", LATE, || behind(&member).as_u64() >= Some(1));
    let Member { site: of_gateway, gateway } = member;
    gateway.signal(Signal::KILL);
    drop((device, gateway));
    servers.start(0, &[]);
    let member = Member { gateway: Gateway::start(of_gateway.directory()), site: of_gateway };
    member.wait_until_joined();
    wait_until("it has come", LATE, || in_stream(&servers, "meter-1") == 16);
    // Whoever sends it again because it heard nothing is served as any.
    let mut device = member.device("meter-1");
    say(&mut device, 17..=20);
    assert_eq!(in_stream(&servers, "meter-1"), 20);
}

#[test]
fn what_the_log_dropped_unsent_is_not_acknowledged_and_nobody_can_have_it_jumped() {
    let site = Site::new();
    let mut servers = Servers::new(&site, 1);
    servers.start_all();
    let member = Member::joined("gate-0", &servers.urls("nats"), "[uplink]\nretention_bytes = 1048576");
    let mut device = member.device("meter-1");
    say(&mut device, 1..=1);
    servers.stop(0, Signal::KILL);
    wait_until("it is away", LATE, || member.fleet()["state"] == "away");
    for number in 2..=6 {
        device.send(&[message(number, number.to_string().as_bytes())]);
    }
    wait_until("they are in the log", LATE, || behind(&member).as_u64() >= Some(5));
    // Acknowledgements wait for them: they cannot be jumped.
    let (status, answer) = seek(&member, "end");
    assert_eq!((status, &answer["error"]["code"]), (400, &json!("invalid_body")), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("it would jump events"), "{answer}");
    // The device says more than there is room for, and its own oldest go.
    let dropped = || member.gateway.metric("pulsegate_store_events_dropped_total");
    let large = vec![b'x'; 8 << 10];
    let deadline = Instant::now() + LATE;
    while dropped() < 20 {
        assert!(Instant::now() < deadline, "nothing is dropped");
        for _ in 0..10 {
            device.send(&[message(0, &large)]);
        }
    }
    servers.start(0, &[]);
    wait_until("all that is left is in the stream", LATE, || behind(&member) == 0);
    hears_nothing(&mut device, Duration::from_secs(1));
    // Whoever hears nothing says it again.
    say(&mut device, 2..=6);
    assert_eq!(seek(&member, "first").0, 200, "it may go back");
}

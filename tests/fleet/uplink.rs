//! What devices say at any gateway goes into one stream, from the local log of each: through an outage, once and in order.

use std::collections::BTreeMap;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::servers::Servers;
use crate::support::{Device, Event, Site, message, wait_until};
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

fn behind(member: &Member) -> Value {
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

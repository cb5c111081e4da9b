//! `type = "mqtt"`.

use std::collections::{BTreeMap, BTreeSet};

use rustix::process::Signal;
use serde_json::json;

use crate::broker::Broker;
use crate::support::{Device, Event, Gateway, Program, SOON, Site, native, wait_until};
use crate::{LATE, Meter, publish_all, sink, sink_metric};

fn configure(site: &Site, broker: &Broker<'_>, scheme: &str, further: &str) {
    let sink = format!(
        "[[sink]]\nname = \"cloud\"\ntype = \"mqtt\"\nurl = \"{scheme}://localhost:{}\"\ntopic = \"site-1/{{device}}/up\"\n\
         presence_topic = \"site-1/{{device}}/presence\"\nretry_min = \"10ms\"\nretry_max = \"200ms\"\n{further}\n",
        broker.port
    );
    site.configure(&format!("workers = 2\n[admin]\nlisten = \"127.0.0.1:0\"\n{sink}"), &[native()]);
}

/// What the listener was told of one device: numbers with their ids.
fn heard(listener: &Program) -> BTreeMap<String, Vec<(u32, String)>> {
    let mut heard: BTreeMap<String, Vec<(u32, String)>> = BTreeMap::new();
    let text = listener.text();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for line in whole.lines() {
        let mut parts = line.split('|');
        let (Some(topic), Some(payload), Some(properties)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let Some(device) = topic.strip_prefix("site-1/").and_then(|rest| rest.strip_suffix("/up")) else { continue };
        let id = properties.split_whitespace().find_map(|property| property.strip_prefix("pulsegate-id:"));
        let id = id.unwrap_or_else(|| panic!("no id: {line}")).to_owned();
        heard.entry(device.to_owned()).or_default().push((payload.parse().unwrap(), id));
    }
    heard
}

fn has_all(listener: &Program, meters: &[Meter]) -> bool {
    let heard = heard(listener);
    meters.iter().all(|meter| {
        let numbers: BTreeSet<u32> = heard.get(&meter.id).into_iter().flatten().map(|(number, _)| *number).collect();
        meter.acknowledged.is_subset(&numbers)
    })
}

/// Nothing is missing, nothing new comes before what is older, and what came twice has one id.
#[track_caller]
fn check(listener: &Program, meters: &[Meter]) {
    let heard = heard(listener);
    for meter in meters {
        let (mut last, mut ids) = (0, BTreeMap::new());
        for (number, id) in &heard[&meter.id] {
            assert!(*number <= last + 1, "{}: {number} came before {}", meter.id, last + 1);
            last = last.max(*number);
            let before = ids.insert(*number, id.clone());
            assert!(before.is_none_or(|before| before == *id), "{}: {number} has two ids", meter.id);
        }
        assert_eq!(last, meter.next, "{}", meter.id);
    }
}

fn outages(is_tls: bool) {
    let site = Site::new();
    site.identity("gateway-1");
    let mut broker = Broker::new(&site, is_tls, "max_inflight_messages 20");
    let tls = "[sink.tls]\nca = \"certs/ca.pem\"\ncert = \"certs/client-gateway-1.pem\"\nkey = \"certs/client-gateway-1.key\"\n";
    let (scheme, tls) = if is_tls { ("mqtts", tls) } else { ("mqtt", "") };
    configure(&site, &broker, scheme, &format!("connections = 3\ninflight = 5\ntimeout = \"3s\"\n{tls}"));
    broker.start();
    let listener = broker.listen("site-1/#");
    broker.stop();

    let mut meters = Meter::fleet(4);
    // There is nobody yet.
    let mut gateway = Gateway::start(site.directory());
    publish_all(&mut meters, &site, &gateway, 10);
    wait_until("tries fail", SOON, || sink(&gateway, "cloud")["state"] == "retrying");
    broker.start();
    wait_until("the first are there", LATE, || has_all(&listener, &meters));
    for round in 0..3 {
        match round {
            0 => {
                publish_all(&mut meters, &site, &gateway, 5);
                gateway.signal(Signal::KILL);
                drop(gateway);
                gateway = Gateway::start(site.directory());
            }
            1 => broker.stop(),
            _ => broker.freeze(true),
        }
        publish_all(&mut meters, &site, &gateway, 10);
        match round {
            0 => {}
            1 => broker.start(),
            _ => {
                let before = sink(&gateway, "cloud")["failed"].as_u64().unwrap();
                wait_until("it is given up", LATE, || sink(&gateway, "cloud")["failed"].as_u64().unwrap() > before);
                broker.freeze(false);
            }
        }
        publish_all(&mut meters, &site, &gateway, 5);
        wait_until("everything is there", LATE, || has_all(&listener, &meters));
    }
    wait_until("the cursor is at the end", LATE, || sink(&gateway, "cloud")["behind"] == 0);
    check(&listener, &meters);
    assert!(listener.text().contains("site-1/meter-1/presence|{\"seq\":"), "presence goes too");
    assert_eq!(sink_metric(&gateway, "pulsegate_sink_events_dead_lettered_total", "cloud"), 0);
    assert!(sink_metric(&gateway, "pulsegate_sink_events_sent_total", "cloud") > 0);
}

#[test]
fn bridge_gets_everything_in_order_through_any_outage() {
    outages(false);
}

#[test]
fn bridge_over_tls_does_too_with_its_certificate() {
    outages(true);
}

#[test]
fn bridge_refusals_go_to_the_dead_letters_and_hold_up_nobody() {
    let site = Site::new();
    site.write("acl", "topic readwrite #\n");
    // Too large for this broker, and so refused before it is sent.
    let mut broker = Broker::new(&site, false, "max_packet_size 400");
    configure(&site, &broker, "mqtt", "presence = false\ntries_refused = 2\n");
    broker.start();
    let listener = broker.listen("site-1/#");
    let gateway = Gateway::start(site.directory());
    let mut device = Device::welcomed(gateway.devices(), &site.tls(), "meter-1");
    let large = "7".repeat(1_000);
    for (number, payload) in [(1, "1"), (2, large.as_str()), (3, "2")] {
        device.send(&[crate::support::message(number, payload.as_bytes())]);
        assert_eq!(device.hear(), Event::Ack(number));
    }
    wait_until("the last one is there", LATE, || heard(&listener).get("meter-1").is_some_and(|all| all.len() == 2));
    assert_eq!(sink_metric(&gateway, "pulsegate_sink_events_dead_lettered_total", "cloud"), 1);
    let letters = std::fs::read_to_string(site.path("pulsegate-data/dead-letter/cloud.jsonl")).unwrap();
    assert!(letters.contains(&large) && letters.contains("Maximum Packet Size"), "{letters}");
    wait_until("the cursor is at the end", LATE, || sink(&gateway, "cloud")["behind"] == 0);
}

#[test]
fn bridge_brings_commands_back_and_says_what_became_of_them() {
    let site = Site::new();
    let mut broker = Broker::new(&site, false, "");
    configure(&site, &broker, "mqtt", "commands = \"site-1/{device}/cmd/{topic}\"\ncommand_session = \"1h\"\n");
    broker.start();
    let gateway = Gateway::start(site.directory());
    let mut device = Device::welcomed(gateway.devices(), &site.tls(), "meter/1");
    let next = |device: &mut Device| loop {
        match device.hear() {
            Event::Message { topic, payload, .. } => break (topic, payload),
            Event::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    };
    wait_until("the sink has subscribed", LATE, || broker.log().contains("Sending SUBACK to"));
    let answer = broker.request("site-1/meter%2F1/cmd/set/relay", "on");
    assert_eq!(answer, "{\"outcome\":\"delivered\"}");
    assert_eq!(next(&mut device), ("set/relay".to_owned(), b"on".to_vec()));
    assert_eq!(broker.request("site-1/nobody/cmd/set/relay", "on"), "{\"outcome\":\"device_offline\"}");
    assert_eq!(sink(&gateway, "cloud")["commands"], 1);
    assert_eq!(sink_metric(&gateway, "pulsegate_sink_commands_failed_total", "cloud"), 1);

    // What was said while the sink was away comes when it is back.
    let (status, _) = gateway.post("/v1/sinks/cloud/pause", &json!({}));
    assert_eq!(status, 200);
    wait_until("the connection is gone", LATE, || broker.log().contains("cloud-0 closed"));
    broker.publish("site-1/meter%2F1/cmd/set/relay", "off");
    assert_eq!(gateway.post("/v1/sinks/cloud/resume", &json!({})).0, 200);
    assert_eq!(next(&mut device), ("set/relay".to_owned(), b"off".to_vec()));
}

//! What is asked of all gateways at once: lists, what is known of a device, broadcasts and lists of devices, with a gateway that does
//! not answer named and waited for no longer than for the others.

use std::collections::BTreeMap;
use std::process::Command;

use pulsegate::codec::native::{CloseCode, Frame};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::servers::Servers;
use crate::support::{Device, Gateway, Site, hello, wait_until};
use crate::{LATE, Member, configure, disconnect, fleet, heard};

/// Three gateways, and so many devices at each, `NAME-NUMBER`, of which the fleet knows.
fn with_devices(site: &Site, count: usize) -> (Servers<'_>, Vec<Member>, Vec<Vec<Device>>) {
    let (servers, fleet) = crate::fleet(site, 1, 3, "lease = \"10s\"");
    let come = |(number, member): (usize, &Member)| {
        let devices = (0..count).map(|device| member.device(&format!("meter-{device}-{number}"))).collect();
        member.wait_for_claims(count as u64);
        devices
    };
    let devices = fleet.iter().enumerate().map(come).collect();
    (servers, fleet, devices)
}

/// What a command prints: its exit code, and both streams.
fn run(member: &Member, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pulsegate"))
        .args(arguments)
        .env("PULSEGATE_ADMIN", member.gateway.admin())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_devices_of_all_gateways_are_listed_page_by_page_with_where_each_is() {
    let site = Site::new();
    let (_servers, fleet, _devices) = with_devices(&site, 7);
    let (mut found, mut after) = (BTreeMap::new(), String::new());
    for page in 0.. {
        assert!(page < 10, "it comes to an end");
        let query = format!("/v1/devices?fleet=true&limit=4&prefix=meter-&after={after}");
        let answer = fleet[page % 3].gateway.get_json(&query);
        assert_eq!(answer["unanswered"], json!([]));
        for device in answer["devices"].as_array().unwrap() {
            let (id, node) = (device["id"].as_str().unwrap().to_owned(), device["node"].as_str().unwrap().to_owned());
            assert!(*id > *after, "{answer}");
            assert!(found.insert(id, node).is_none(), "{answer}");
        }
        match answer["next"].as_str() {
            Some(next) => next.clone_into(&mut after),
            None => break,
        }
    }
    assert_eq!(found.len(), 21);
    assert!(found.iter().all(|(id, node)| id.rsplit('-').next() == node.rsplit('-').next()), "{found:?}");
    // One gateway alone, as ever; and for people.
    assert_eq!(fleet[0].gateway.get_json("/v1/devices")["devices"].as_array().unwrap().len(), 7);
    let (code, table, remarks) = run(&fleet[1], &["devices", "--fleet", "--limit", "0"]);
    assert_eq!((code, table.lines().count(), &*remarks), (0, 22, ""), "{table}");
    assert!(table.starts_with("DEVICE     GATEWAY  STATE") && table.contains("meter-3-2  gate-2"), "{table}");

    // A gateway that stands still is named, and the others' devices are told all the same.
    fleet[2].gateway.signal(Signal::STOP);
    let answer = fleet[0].gateway.get_json("/v1/devices?fleet=true");
    assert_eq!(answer["unanswered"], json!(["gate-2"]), "{answer}");
    assert_eq!(answer["devices"].as_array().unwrap().len(), 14);
    let (code, table, remarks) = run(&fleet[1], &["devices", "--fleet"]);
    assert_eq!((code, table.lines().count()), (0, 15), "{table}");
    assert_eq!(remarks, "without the devices of gate-2: no answer\n");
    fleet[2].gateway.signal(Signal::CONT);
    assert!(fleet[0].gateway.metric("pulsegate_fleet_calls_unanswered_total") >= 1);
    let (status, answer) = fleet[0].gateway.get("/v1/devices?fleet=maybe");
    assert_eq!(status, 400, "{answer}");
}

#[test]
fn a_device_is_described_and_its_ends_are_told_wherever_it_is_and_was() {
    let site = Site::new();
    let (mut servers, fleet, _devices) = with_devices(&site, 1);
    for member in &fleet {
        let device = member.gateway.get_json("/v1/devices/meter-0-1");
        assert_eq!((&device["id"], &device["node"]), (&json!("meter-0-1"), &json!("gate-1")));
        assert_eq!(member.gateway.get("/v1/devices/nobody").0, 404);
    }
    // It goes from one to the next, and each saw another end.
    let mut moved = fleet[0].device("moved");
    for (number, member) in fleet.iter().enumerate() {
        fleet[number].wait_for_claims(2);
        let next = fleet[(number + 1) % 3].device("moved");
        moved.expect_close(CloseCode::TAKEN_OVER);
        wait_until("its end is known here", LATE, || {
            let here = member.gateway.get_json("/v1/devices/moved/history?fleet=false");
            here["ends"].as_array().unwrap().len() == 1
        });
        moved = next;
    }
    fleet[0].wait_for_claims(2);
    assert_eq!(disconnect(&fleet[2], "moved"), 204);
    let told = |member: &Member| member.gateway.get_json("/v1/devices/moved/history");
    wait_until("the last end is told", LATE, || told(&fleet[1])["ends"].as_array().unwrap().len() == 4);
    let history = told(&fleet[1]);
    let ends: Vec<_> = history["ends"].as_array().unwrap().iter().map(|end| (&end["node"], &end["reason"])).collect();
    let words = ["requested", "taken_over", "taken_over", "taken_over"].map(|word| json!(word));
    let nodes = ["gate-0", "gate-2", "gate-1", "gate-0"].map(|node| json!(node));
    assert_eq!(ends, nodes.iter().zip(&words).collect::<Vec<_>>(), "{history}");
    assert_eq!(history["unanswered"], json!([]));
    let (code, why, _) = run(&fleet[1], &["why", "moved"]);
    assert!(code == 0 && why.contains("(native) of gate-2\n") && why.contains("(native) of gate-0\n"), "{why}");

    // With a gateway that stands still, and without NATS, what is known is told.
    fleet[2].gateway.signal(Signal::STOP);
    let history = told(&fleet[1]);
    assert_eq!((&history["unanswered"], history["ends"].as_array().unwrap().len()), (&json!(["gate-2"]), 3));
    let (_, _, remarks) = run(&fleet[1], &["why", "moved"]);
    assert_eq!(remarks, "without what gate-2 knows: no answer\n");
    fleet[2].gateway.signal(Signal::CONT);
    servers.stop(0, Signal::KILL);
    wait_until("NATS is away", LATE, || fleet[1].fleet()["state"] == "away");
    let history = told(&fleet[1]);
    assert!(history["error"].as_str().unwrap().starts_with("NATS is away"), "{history}");
    assert_eq!(history["ends"].as_array().unwrap().len(), 1);
    let (status, answer) = fleet[1].gateway.get("/v1/devices?fleet=true");
    assert!(status == 503 && answer.contains("fleet_away"), "{answer}");
    assert_eq!(fleet[1].gateway.get("/v1/devices/meter-0-0").0, 503, "where it is is not known");
}

fn broadcast(member: &Member, order: &Value) -> Value {
    let (status, answer) = member.gateway.post("/v1/broadcast", order);
    assert!(status == 200 || status == 202, "{status} {answer}");
    answer
}

#[test]
fn a_broadcast_reaches_the_devices_of_every_gateway_once_and_tells_of_each() {
    let site = Site::new();
    let (_servers, fleet, mut devices) = with_devices(&site, 5);
    let mut other = fleet[1].device("pump-1");
    let order = json!({"payload": "first", "prefix": "meter-", "per_second": 1000, "wait": "30s"});
    let done = broadcast(&fleet[0], &order);
    assert_eq!((&done["state"], &done["sent"], &done["refused"]), (&json!("done"), &json!(15), &json!(0)), "{done}");
    let part = |number: usize| json!({"node": format!("gate-{number}"), "state": "done", "sent": 5, "refused": 0});
    assert_eq!(done["gateways"], json!([part(0), part(1), part(2)]));
    assert_eq!(done["unanswered"], json!([]));
    // It is asked for again where it was begun, and nowhere else.
    let url = format!("/v1/broadcasts/{}", done["id"].as_str().unwrap());
    assert_eq!(fleet[0].gateway.get_json(&url), done);
    assert_eq!(fleet[1].gateway.get(&url).0, 404);
    // Without waiting, and of one gateway alone.
    let begun = broadcast(&fleet[2], &json!({"payload": "second", "fleet": false}));
    let url = begun["url"].as_str().unwrap().to_owned();
    wait_until("it is done", LATE, || fleet[2].gateway.get_json(&url)["state"] == "done");
    let shown = fleet[2].gateway.get_json(&url);
    assert!(shown["sent"] == 5 && shown.get("gateways").is_none(), "{shown}");
    broadcast(&fleet[1], &json!({"payload": "third", "wait": "30s"}));
    for (number, devices) in devices.iter_mut().enumerate() {
        for device in devices {
            assert_eq!(heard(device).1, "first");
            if number == 2 {
                assert_eq!(heard(device).1, "second");
            }
            assert_eq!(heard(device).1, "third", "each once");
        }
    }
    assert_eq!(heard(&mut other).1, "third", "its id begins otherwise");
}

#[test]
fn a_broadcast_names_gateways_that_do_not_answer_and_they_do_not_carry_it_out_later() {
    let site = Site::new();
    let (mut servers, fleet, mut devices) = with_devices(&site, 3);
    fleet[2].gateway.signal(Signal::STOP);
    let shown = broadcast(&fleet[0], &json!({"payload": "first", "wait": "20s"}));
    assert_eq!((&shown["state"], &shown["sent"]), (&json!("partial"), &json!(6)), "{shown}");
    assert_eq!(shown["unanswered"], json!(["gate-2"]));
    assert_eq!(shown["gateways"][2]["state"], "unanswered");
    assert!(shown["gateways"][2]["error"].as_str().unwrap().contains("may have begun"), "{shown}");
    fleet[2].gateway.signal(Signal::CONT);
    fleet[2].wait_until_joined();
    // It was wanted too long ago.
    wait_until("it answers again", LATE, || {
        broadcast(&fleet[0], &json!({"payload": "second", "wait": "20s"}))["state"] == "done"
    });
    for device in &mut devices[2] {
        assert_eq!(heard(device).1, "second");
    }
    for device in devices[..2].iter_mut().flatten() {
        assert_eq!(heard(device).1, "first");
        assert_eq!(heard(device).1, "second");
    }
    // One that is cancelled ends everywhere, and one that has died since is named.
    let begun = broadcast(&fleet[0], &json!({"payload": "slow", "per_second": 3}));
    let url = begun["url"].as_str().unwrap().to_owned();
    fleet[1].gateway.signal(Signal::KILL);
    wait_until("the dead one is named", LATE, || {
        let shown = fleet[0].gateway.get_json(&url);
        shown["state"] == "partial" && shown["unanswered"] == json!(["gate-1"])
    });
    servers.stop(0, Signal::KILL);
    wait_until("NATS is away", LATE, || fleet[0].fleet()["state"] == "away");
    let (status, answer) = fleet[0].gateway.post("/v1/broadcast", &json!({"payload": "x"}));
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("fleet_away")));
    let here = broadcast(&fleet[0], &json!({"payload": "here", "fleet": false, "wait": "20s"}));
    assert_eq!((&here["state"], &here["sent"]), (&json!("done"), &json!(3)));
}

#[test]
fn a_list_of_devices_has_one_outcome_for_each_wherever_they_are() {
    let site = Site::new();
    let (_servers, fleet, mut devices) = with_devices(&site, 2);
    let list = ["meter-0-0", "meter-1-2", "nobody", "meter-0-1"];
    let order = json!({"devices": list, "payload": "on"});
    let (status, answer) = fleet[0].gateway.post("/v1/messages", &order);
    assert_eq!((status, &answer["done"], &answer["failed"]), (200, &json!(3), &json!(1)), "{answer}");
    let one = |place: usize| &answer["devices"][place];
    for (place, id) in list.iter().enumerate() {
        assert_eq!(one(place)["device"], *id);
    }
    assert_eq!((&one(1)["outcome"], &one(1)["node"]), (&json!("delivered"), &json!("gate-2")));
    assert_eq!(one(2)["error"]["code"], "device_offline");
    assert!(one(2).get("outcome").is_none() && one(0).get("error").is_none(), "{answer}");
    for (gateway, device) in [(0, 0), (2, 1), (1, 0)] {
        assert_eq!(heard(&mut devices[gateway][device]).1, "on");
    }
    // Acknowledgements are waited for side by side; one device takes it and says nothing.
    let order = json!({"devices": ["meter-0-0", "meter-0-1"], "payload": "x", "ack": true, "timeout": "2s"});
    let (status, answer) = std::thread::scope(|scope| {
        let asked = scope.spawn(|| fleet[2].gateway.post("/v1/messages", &order));
        let (id, _) = heard(&mut devices[0][0]);
        devices[0][0].send(&[Frame::Ack(id)]);
        asked.join().unwrap()
    });
    assert_eq!((status, &answer["devices"][0]["outcome"]), (200, &json!("acknowledged")), "{answer}");
    assert_eq!(answer["devices"][1]["error"]["code"], "ack_timeout", "{answer}");
}

/// Whether the device is told that it is kept out.
fn is_kept_out(member: &Member, id: &str) -> bool {
    let Ok(mut device) = Device::connect(member.gateway.devices(), &member.site.tls()) else { return false };
    device.send(&[hello(id)]);
    matches!(device.hear(), crate::support::Event::Close { code, .. } if code == CloseCode::DENIED)
}

fn blocks(member: &Member) -> Vec<String> {
    let answer = member.gateway.get_json("/v1/blocks");
    let text = |block: &Value| format!("{} {}", block["device"].as_str().unwrap(), block["source"].as_str().unwrap());
    answer["blocks"].as_array().unwrap().iter().map(text).collect()
}

#[test]
fn who_is_blocked_at_one_gateway_is_kept_out_by_all_and_by_those_that_were_away() {
    let site = Site::new();
    let (mut servers, mut fleet) = fleet(&site, 1, 3, "");
    let mut stolen = fleet[1].claimed("stolen");
    // One of them has died, and is not back yet.
    let dead = fleet.pop().unwrap();
    dead.gateway.signal(Signal::KILL);
    wait_until("its lease has ended", LATE, || servers.rows("pulsegate_gateways") == 2);
    let (code, told, _) = run(&fleet[0], &["block", "stolen", "--for", "1h"]);
    assert_eq!((code, &*told), (0, "blocked at gate-0, gate-1\n"));
    // When that is said it is gone where it was, and it comes in nowhere.
    stolen.expect_close(CloseCode::DENIED);
    assert!(is_kept_out(&fleet[0], "stolen") && is_kept_out(&fleet[1], "stolen"));
    assert_eq!(blocks(&fleet[1]), ["stolen fleet"]);
    assert_eq!(run(&fleet[1], &["block", "--here", "local"]), (0, "blocked\n".to_owned(), String::new()));
    assert_eq!(blocks(&fleet[0]), ["stolen fleet"]);
    // The one that was away finds it when it is back.
    let Member { site: dead_site, gateway } = dead;
    drop(gateway);
    let back = Member { gateway: Gateway::start(dead_site.directory()), site: dead_site };
    back.wait_until_joined();
    wait_until("it has read who is kept out", LATE, || blocks(&back) == ["stolen fleet"]);
    assert!(is_kept_out(&back, "stolen"));
    // It knows after kill -9 too, though NATS is away.
    servers.stop(0, Signal::KILL);
    back.gateway.signal(Signal::KILL);
    let Member { site: dead_site, gateway } = back;
    // It is gone, and with it its hold on the store.
    drop(gateway);
    let back = Member { gateway: Gateway::start(dead_site.directory()), site: dead_site };
    assert!(is_kept_out(&back, "stolen"));
    wait_until("NATS is away", LATE, || fleet[0].fleet()["state"] == "away");
    let (code, _, error) = run(&fleet[0], &["block", "other"]);
    assert!(code != 0 && error.contains("NATS is away"), "{error}");
    assert_eq!(blocks(&fleet[0]), ["stolen fleet"], "nothing was done");
    servers.start(0, &[]);
    for member in fleet.iter().chain([&back]) {
        member.wait_until_joined();
    }
    // Let in again everywhere, from anywhere.
    let (code, told, error) = run(&back, &["unblock", "stolen"]);
    assert_eq!((code, &*told), (0, "unblocked at gate-0, gate-1, gate-2\n"), "{error}");
    for member in fleet.iter().chain([&back]) {
        member.device("stolen").leave();
    }
    assert_eq!(blocks(&fleet[1]), ["local api"]);
    assert_eq!(run(&back, &["unblock", "stolen"]).0, 1, "there is no such entry any more");
}

#[test]
fn a_gateway_that_stands_still_keeps_out_later_and_a_bucket_that_is_deleted_is_written_again() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 2, "");
    fleet[1].gateway.signal(Signal::STOP);
    let (status, answer) = fleet[0].gateway.post("/v1/blocks", &json!({"device": "stolen"}));
    assert_eq!((status, answer), (200, json!({"gateways": ["gate-0"], "unanswered": ["gate-1"]})));
    fleet[1].gateway.signal(Signal::CONT);
    wait_until("it knows", LATE, || blocks(&fleet[1]) == ["stolen fleet"]);
    // Somebody takes the bucket away: who was kept out stays out, here and for those who come later.
    let answer = servers.ask("$JS.API.STREAM.DELETE.KV_pulsegate_blocks", &json!(null));
    assert_eq!(answer["success"], true, "{answer}");
    wait_until("it is there again", LATE, || servers.try_rows("pulsegate_blocks") == Some(1));
    let third = Member::joined("gate-2", &servers.urls("nats"), "");
    wait_until("a new one knows", LATE, || blocks(&third) == ["stolen fleet"]);
    assert!(fleet.iter().all(|member| is_kept_out(member, "stolen")));
    // What no gateway wrote is passed over; what has ended goes.
    let subject = "$KV.pulsegate_blocks.device=20";
    servers.ask(&format!("{subject}x"), &json!("nonsense"));
    servers.ask(&format!("{subject}y"), &json!({"device": "y", "until_ms": 1}));
    servers.ask(&format!("{subject}z"), &json!({"device": "z"}));
    for member in &fleet {
        wait_until("it is read", LATE, || blocks(member) == ["stolen fleet", "z fleet"]);
    }
    wait_until("what has ended is gone", LATE, || servers.rows("pulsegate_blocks") == 3);
    // Of a gateway that is alone.
    let alone = Site::new();
    configure(&alone, "alone", &servers.urls("nats"), "prefix = \"other\"");
    let alone = Member { gateway: Gateway::start(alone.directory()), site: alone };
    alone.wait_until_joined();
    assert_eq!(blocks(&alone), [""; 0]);
}

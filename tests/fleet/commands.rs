//! Commands to devices wherever they are, by HTTP at any gateway and by NATS.

use pulsegate::codec::native::{CloseCode, Frame};
use rustix::process::Signal;
use serde_json::json;

use crate::support::{Site, wait_until};
use crate::{LATE, disconnect, end, fleet, heard};

#[test]
fn a_command_finds_a_device_at_any_of_three_gateways() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 3, "");
    let mut device = fleet[0].claimed("meter 7.a");
    for (number, member) in fleet.iter().enumerate() {
        let (status, answer) = member.send("meter%207.a", &number.to_string());
        // Whichever was asked, and the one that has it too.
        assert_eq!((status, answer), (200, json!({"outcome": "delivered", "node": "gate-0"})));
        assert_eq!(heard(&mut device).1, number.to_string());
    }
    // An acknowledgement is waited for over both ways, and one that does not come is said to be none.
    let path = "/v1/devices/meter%207.a/messages";
    let acknowledged = std::thread::scope(|scope| {
        let asked =
            scope.spawn(|| fleet[2].gateway.post(path, &json!({"payload": "x", "ack": true, "timeout": "20s"})));
        let (id, _) = heard(&mut device);
        device.send(&[Frame::Ack(id)]);
        asked.join().unwrap()
    });
    assert_eq!(acknowledged, (200, json!({"outcome": "acknowledged", "node": "gate-0"})));
    let (status, answer) = fleet[1].gateway.post(path, &json!({"payload": "y", "ack": true, "timeout": "300ms"}));
    assert_eq!((status, &answer["error"]["code"]), (504, &json!("ack_timeout")));
    assert_eq!(heard(&mut device).1, "y");
    // Its connection is ended from anywhere, and then it is nowhere.
    assert_eq!(disconnect(&fleet[1], "meter%207.a"), 204);
    device.expect_close(CloseCode::REQUESTED);
    fleet[0].wait_for_claims(0);
    assert_eq!(servers.rows("pulsegate_devices"), 0, "nothing is left of it");
    for member in &fleet {
        let (status, answer) = member.send("meter%207.a", "z");
        assert_eq!((status, &answer["error"]["code"]), (404, &json!("device_offline")));
    }
    assert!(fleet[1].gateway.metric("pulsegate_fleet_commands_forwarded_total") >= 2);
    assert_eq!(fleet[0].gateway.metric("pulsegate_fleet_up"), 1);
}

#[test]
fn nats_itself_says_something_to_a_device() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 2, "prefix = \"edge\"");
    let mut device = fleet[1].claimed("a.b");
    // Whichever gateway hears it.
    for round in 0..8 {
        let answer = servers.ask("edge.send.a%2Eb", &json!({"topic": "set", "payload": round.to_string()}));
        assert_eq!(answer, json!({"outcome": "delivered", "node": "gate-1"}));
        assert_eq!(heard(&mut device).1, round.to_string());
    }
    // However much of the token is percent-encoded.
    for token in ["a%2eb", "%61%2E%62"] {
        let answer = servers.ask(&format!("edge.send.{token}"), &json!({"payload": token}));
        assert_eq!(answer["outcome"], "delivered", "{answer}");
        assert_eq!(heard(&mut device).1, token);
    }
    for (subject, body, code) in [
        ("edge.send.nobody", json!({"payload": "x"}), "device_offline"),
        ("edge.send.a%2Eb", json!({"payload": "x", "else": 1}), "invalid_body"),
        ("edge.send.a%2Eb", json!({}), "invalid_body"),
        ("edge.send.a%2", json!({"payload": "x"}), "invalid_path"),
        ("edge.send.%FF", json!({"payload": "x"}), "invalid_path"),
    ] {
        let answer = servers.ask(subject, &body);
        assert_eq!(answer["error"]["code"], code, "{subject} {body}: {answer}");
    }
    // What other gateways would say, said by somebody else: nonsense is answered and does no harm.
    for body in [json!([]), json!({"do": "else"}), json!({"do": "send", "device": "a.b"})] {
        assert_eq!(servers.ask("edge.gateway.gate-1", &body)["outcome"], "not_understood", "{body}");
    }
    let stale = json!({"do": "taken", "device": "a.b", "lease": "x", "generation": 1, "revision": 9});
    assert_eq!(servers.ask("edge.gateway.gate-1", &stale)["outcome"], "heard");
    assert_eq!(servers.ask("edge.send.a%2Eb", &json!({"payload": "still"}))["outcome"], "delivered");
    assert_eq!(heard(&mut device).1, "still");
}

#[test]
fn a_gateway_that_is_killed_costs_one_key_and_its_devices_are_found_where_they_come() {
    let site = Site::new();
    let (servers, mut fleet) = fleet(&site, 1, 2, "");
    let devices: Vec<_> = (0..20).map(|number| fleet[0].device(&format!("meter-{number}"))).collect();
    fleet[0].wait_for_claims(20);
    let dead = fleet.remove(0);
    dead.gateway.signal(Signal::KILL);
    let rest = &fleet[0];
    // Nobody is told that it is offline who may be there; and then that it is nowhere.
    let (_, answer) = rest.send("meter-3", "x");
    let code = answer["error"]["code"].as_str().unwrap();
    assert!(["gateway_silent", "gateway_deaf", "device_offline"].contains(&code), "{answer}");
    wait_until("its lease has ended", LATE, || rest.send("meter-3", "x").0 == 404);
    // Whoever was asked for is listed no more; the others' rows go later, and slowly.
    wait_until("its row has gone", LATE, || servers.rows("pulsegate_devices") < 20);
    drop(devices);
    let mut again: Vec<_> = (0..20).map(|number| rest.device(&format!("meter-{number}"))).collect();
    rest.wait_for_claims(20);
    assert_eq!(rest.fleet()["takeovers"]["won"], 0, "a dead gateway is taken nothing from");
    let third = crate::Member::joined("gate-2", &servers.urls("nats"), "");
    assert_eq!(third.send("meter-3", "here").0, 200);
    assert_eq!(heard(&mut again[3]).1, "here");
}

#[test]
fn an_orderly_end_gives_the_lease_back_at_once() {
    let site = Site::new();
    let (servers, mut fleet) = fleet(&site, 1, 2, "");
    let device = fleet[0].claimed("meter-1");
    let ended = fleet.remove(0);
    let (site_of_ended, gateway) = (ended.site, ended.gateway);
    end(gateway);
    assert_eq!(servers.rows("pulsegate_gateways"), 1);
    assert_eq!(fleet[0].send("meter-1", "x").0, 404);
    drop(device);
    // It comes back under its name at once, and so it does after kill -9: its data directory says that it is the same.
    for _ in 0..2 {
        let gateway = crate::Gateway::start(site_of_ended.directory());
        let member = crate::Member { site: Site::new(), gateway };
        member.wait_until_joined();
        member.gateway.signal(Signal::KILL);
    }
}

#[test]
fn devices_that_leave_at_once_leave_nothing_behind_and_do_not_cost_the_connection() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 1, "");
    let devices: Vec<_> = (0..300).map(|number| fleet[0].device(&format!("meter-{number}"))).collect();
    fleet[0].wait_for_claims(300);
    assert_eq!(servers.rows("pulsegate_devices"), 300);
    drop(devices);
    fleet[0].wait_for_claims(0);
    assert_eq!(servers.rows("pulsegate_devices"), 0);
    assert_eq!(fleet[0].gateway.metric("pulsegate_fleet_rows_removed_total"), 300);
    assert_eq!(fleet[0].gateway.metric("pulsegate_fleet_connects_total"), 1, "it was never given up");
}

//! NATS away: devices stay and are served, what cannot be known is said to be so, and when it is back all is claimed.

use rustix::process::Signal;
use serde_json::json;

use crate::proxy::Proxy;
use crate::servers::Servers;
use crate::support::{Event, Site, message, wait_until};
use crate::{LATE, Member, fleet, heard};

#[test]
fn devices_stay_while_nats_is_away_and_are_claimed_when_it_is_back() {
    let site = Site::new();
    // What devices say is acknowledged here and now.
    let (mut servers, fleet) = fleet(&site, 1, 2, "uplink = \"local\"");
    let mut before = fleet[0].claimed("before");
    wait_until("what the fleet publishes is read", LATE, || fleet[0].gateway.get("/readyz").0 == 200);
    for signal in [Signal::TERM, Signal::KILL] {
        servers.stop(0, signal);
        for member in &fleet {
            wait_until("it is said to be away", LATE, || member.gateway.get("/readyz").0 == 503);
        }
        let (_, body) = fleet[0].gateway.get("/readyz");
        assert!(body.contains("fleet_away"), "{body}");
        assert_eq!(fleet[0].gateway.metric("pulsegate_fleet_up"), 0);
        // Here all goes on: messages are acknowledged, commands arrive, devices come.
        before.send(&[message(1, b"x")]);
        while before.hear() != Event::Ack(1) {}
        assert_eq!(fleet[0].send("before", "here").0, 200);
        assert_eq!(heard(&mut before).1, "here");
        let mut meanwhile = fleet[1].device("meanwhile");
        // Where it is is not known elsewhere; that is not the same as nowhere.
        let (status, answer) = fleet[0].send("meanwhile", "x");
        assert_eq!((status, &answer["error"]["code"]), (503, &json!("fleet_away")));
        servers.start(0, &[]);
        fleet.iter().for_each(Member::wait_until_joined);
        fleet[0].wait_for_claims(1);
        fleet[1].wait_for_claims(1);
        assert_eq!(fleet[0].send("meanwhile", "found").0, 200);
        assert_eq!(heard(&mut meanwhile).1, "found");
        assert_eq!(fleet[1].send("before", "too").0, 200);
        assert_eq!(heard(&mut before).1, "too");
        wait_until("what the fleet publishes is read again", LATE, || fleet[0].gateway.get("/readyz").0 == 200);
        meanwhile.leave();
        fleet[1].wait_for_claims(0);
    }
    assert!(!fleet[0].gateway.logged("NATS is away: devices stay, and are not claimed until it is back").is_empty());
}

#[test]
fn a_server_that_hangs_is_given_up_and_found_again() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 2, "ready_without_nats = true");
    let mut device = fleet[0].claimed("meter-1");
    servers.signal(0, Signal::STOP);
    for member in &fleet {
        wait_until("it is given up", LATE, || member.fleet()["state"] == "away");
        assert_eq!(member.gateway.get("/readyz").0, 200, "as it was configured");
    }
    servers.signal(0, Signal::CONT);
    for member in &fleet {
        member.wait_until_joined();
    }
    fleet[0].wait_for_claims(1);
    assert_eq!(fleet[1].send("meter-1", "x").0, 200);
    assert_eq!(heard(&mut device).1, "x");
}

/// All that the server says comes late, later than a question is waited for: what was asked is asked again, and that is all.
#[test]
fn a_server_that_is_slow_is_not_one_that_is_away() {
    let site = Site::new();
    let mut servers = Servers::new(&site, 1);
    servers.start_all();
    let proxy = Proxy::new(servers.ports[0]);
    let member = Member::joined("gate-0", &proxy.urls(), "lease = \"20s\"");
    let other = Member::joined("gate-1", &servers.urls("nats"), "lease = \"20s\"");
    let mut devices = vec![member.device("meter-0")];
    member.wait_for_claims(1);
    wait_until("it has read what the fleet retains", LATE, || member.gateway.get("/readyz").0 == 200);
    proxy.hold(true);
    devices.extend((1..30).map(|number| member.device(&format!("meter-{number}"))));
    let unanswered = || member.gateway.metric("pulsegate_fleet_questions_unanswered_total");
    wait_until("questions have no answer", LATE, || unanswered() >= 2);
    assert_eq!((member.gateway.get("/readyz").0, &member.fleet()["state"]), (200, &json!("connected")));
    proxy.hold(false);
    member.wait_for_claims(30);
    assert_eq!(member.gateway.metric("pulsegate_fleet_connects_total"), 1, "it was never given up");
    assert_eq!(member.gateway.metric("pulsegate_fleet_connects_failed_total"), 0);
    for (number, device) in devices.iter_mut().enumerate() {
        assert_eq!(other.send(&format!("meter-{number}"), "x").0, 200);
        assert_eq!(heard(device).1, "x");
    }
}

#[test]
fn a_cluster_bears_the_loss_of_any_one_of_its_servers() {
    let site = Site::new();
    let (mut servers, fleet) = fleet(&site, 3, 3, "replicas = 3");
    let promise = fleet[0].fleet()["promise"].as_str().unwrap().to_owned();
    assert!(promise.contains("2 of 3 servers have it"), "{promise}");
    let mut devices: Vec<_> = (0..30).map(|number| fleet[number % 3].device(&format!("meter-{number}"))).collect();
    for member in &fleet {
        member.wait_for_claims(10);
    }
    for server in 0..3 {
        servers.stop(server, Signal::KILL);
        // Every device is found from every gateway, as soon as another server leads.
        for (number, device) in devices.iter_mut().enumerate() {
            let (member, text) = (&fleet[(number + 1) % 3], format!("{server}-{number}"));
            wait_until("it is found", LATE, || member.send(&format!("meter-{number}"), &text).0 == 200);
            while heard(device).1 != text {}
        }
        servers.start(server, &[]);
        for member in &fleet {
            member.wait_until_joined();
            member.wait_for_claims(10);
        }
    }
}

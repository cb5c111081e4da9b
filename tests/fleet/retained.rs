//! Retained messages are the fleet's: whatever was acknowledged at one gateway is what a newcomer finds at any other, through outages, ends
//! and races, the latest of each topic, and nothing twice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::mqtt::Client;
use crate::servers::Servers;
use crate::support::{Gateway, Site, wait_until};
use crate::{LATE, Member, end, fleet};

/// For how long silence is listened to. Longer could only find more.
const QUIET: Duration = Duration::from_millis(300);

/// What a newcomer finds at a gateway.
#[track_caller]
fn found(member: &Member, filter: &str) -> Vec<(String, String)> {
    Client::come(member, "newcomer", false).finds(filter, QUIET)
}

fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
    all.iter().map(|&(topic, payload)| (topic.to_owned(), payload.to_owned())).collect()
}

/// Waits until every gateway tells a newcomer this.
#[track_caller]
fn wait_until_found(fleet: &[Member], filter: &str, all: &[(&str, &str)]) {
    for member in fleet {
        wait_until(&format!("{all:?} is found"), LATE, || {
            // One that is on its way comes as what is published now: it is looked again.
            Client::come(member, "newcomer", false).looks(filter, QUIET) == Some(pairs(all))
        });
    }
}

fn retained(member: &Member) -> Value {
    member.fleet()["retained"].clone()
}

/// The bucket's rows and its last revision.
fn bucket(servers: &Servers) -> (u64, u64) {
    let info = servers.ask("$JS.API.STREAM.INFO.KV_pulsegate_retained", &json!({}));
    (info["state"]["messages"].as_u64().unwrap(), info["state"]["last_seq"].as_u64().unwrap())
}

#[test]
fn what_was_acknowledged_at_one_gateway_is_found_at_every_other() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 3, "");
    let mut publisher = Client::come(&fleet[0], "publisher", false);
    let mut live = Client::come(&fleet[1], "live", false);
    live.subscribe("state/#", 1);
    // Where nobody had such a subscription a newcomer finds it at once: its SUBACK waits for what was acknowledged before it came. Where
    // somebody had, a newcomer may get it as a message that is published now, until that one has it.
    for (number, topic) in ["state", "state/a.b/*", "state//ä b", "state/1"].into_iter().enumerate() {
        publisher.retain(topic, &number.to_string(), 1 + (number % 2) as u8);
        let filter = topic.replace("state/1", "+/1");
        assert_eq!(found(&fleet[2], &filter), pairs(&[(topic, &number.to_string())]));
        // Whoever was there hears of it as of any other message, once.
        live.hears(topic, &number.to_string(), 1);
        assert_eq!(found(&fleet[1], &filter), pairs(&[(topic, &number.to_string())]));
    }
    // The latest stays, and what goes is gone.
    publisher.retain("state/1", "new", 1);
    publisher.retain("state//ä b", "", 1);
    publisher.publish("state/1", "not retained", 1);
    for payload in [("state/1", "new"), ("state//ä b", ""), ("state/1", "not retained")] {
        live.hears(payload.0, payload.1, 1);
    }
    for member in &fleet {
        assert_eq!(found(member, "state/#"), pairs(&[("state", "0"), ("state/1", "new"), ("state/a.b/*", "1")]));
    }
    assert_eq!(live.message(QUIET), None);
    assert_eq!((bucket(&servers).0, retained(&fleet[2])["tombstones"].as_u64()), (4, Some(1)));
    // From any gateway, and over the API.
    live.retain("state/1", "back", 0);
    let order = json!({"topic": "state/api", "payload": "set", "qos": 1, "retain": true});
    assert_eq!(fleet[2].gateway.post("/v1/publish", &order).0, 202);
    let local = json!({"topic": "state/local", "payload": "here", "retain": true, "local": true});
    assert_eq!(fleet[2].gateway.post("/v1/publish", &local).0, 202);
    let everywhere = [("state", "0"), ("state/1", "back"), ("state/a.b/*", "1"), ("state/api", "set")];
    wait_until_found(&fleet[..2], "state/#", &everywhere);
    let here = [&everywhere[..], &[("state/local", "here")]].concat();
    wait_until_found(&fleet[2..], "state/#", &here);
}

/// A gateway that begins has all of it before it is ready, and loses none of it by its end.
#[test]
fn a_new_gateway_finds_a_thousand_and_keeps_what_it_has_through_a_kill() {
    const COUNT: usize = 1_000;
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 1, "");
    let mut publisher = Client::come(&fleet[0], "publisher", false);
    for begin in (0..COUNT).step_by(10) {
        let sent: Vec<_> = (begin..begin + 10)
            .map(|n| publisher.send_with(&format!("meter/{n}/state"), &n.to_string(), 1, 1))
            .collect();
        let (mut answered, deadline) = (0, Instant::now() + LATE);
        while answered < sent.len() {
            assert!(Instant::now() < deadline);
            answered += publisher.acknowledged(Duration::from_millis(5)).len();
        }
    }
    let member = Member::joined("gate-1", &servers.urls("nats"), "");
    wait_until("it is ready", LATE, || member.gateway.get("/readyz").0 == 200);
    assert_eq!(found(&member, "meter/#").len(), COUNT);
    let begun = Instant::now();
    // What is here is not taken again, and is found while NATS is away.
    let Member { site: of_gateway, gateway } = member;
    gateway.signal(Signal::KILL);
    drop(gateway);
    let mut servers = servers;
    servers.stop(0, Signal::KILL);
    let member = Member { gateway: Gateway::start(of_gateway.directory()), site: of_gateway };
    assert_eq!(found(&member, "meter/#").len(), COUNT);
    servers.start(0, &[]);
    member.wait_until_joined();
    wait_until("it has read it", LATE, || retained(&member)["read"] == true);
    assert_eq!(found(&member, "meter/#").len(), COUNT);
    assert_eq!(retained(&member)["dropped"], 0);
    assert!(begun.elapsed() < 4 * LATE);
}

/// Acknowledged with the gateway's own log (`uplink = "local"`), killed while NATS was away, and there in the end.
#[test]
fn what_waits_for_nats_survives_a_kill_and_is_merged_by_when_it_was_published() {
    let site = Site::new();
    let (mut servers, mut fleet) = fleet(&site, 1, 2, "uplink = \"local\"");
    let mut here = Client::come(&fleet[0], "here", false);
    let mut there = Client::come(&fleet[1], "there", false);
    for topic in ["one", "two", "three", "gone"] {
        here.retain(&format!("t/{topic}"), "old", 1);
    }
    wait_until_found(&fleet, "t/#", &[("t/gone", "old"), ("t/one", "old"), ("t/three", "old"), ("t/two", "old")]);
    servers.stop(0, Signal::KILL);
    for member in &fleet {
        wait_until("it is away", LATE, || member.fleet()["state"] == "away");
    }
    // Both publish under the same topics: whoever was later stays, whatever comes up first.
    here.retain("t/one", "here first", 1);
    there.retain("t/two", "there first", 1);
    there.retain("t/gone", "", 1);
    // The clock tells milliseconds.
    let then = SystemTime::now() + Duration::from_millis(2);
    wait_until("it is later", LATE, || SystemTime::now() > then);
    there.retain("t/one", "there last", 1);
    here.retain("t/two", "here last", 1);
    here.retain("t/mine", "kept", 1);
    // Local newcomers find what was published here.
    assert_eq!(
        found(&fleet[0], "t/#"),
        pairs(&[
            ("t/gone", "old"),
            ("t/mine", "kept"),
            ("t/one", "here first"),
            ("t/three", "old"),
            ("t/two", "here last")
        ])
    );
    let Member { site: of_gateway, gateway } = fleet.remove(0);
    gateway.signal(Signal::KILL);
    drop(gateway);
    servers.start(0, &[]);
    // One is back alone, and writes; then the other one comes with what it had published.
    fleet[0].wait_until_joined();
    wait_until_found(&fleet, "t/#", &[("t/one", "there last"), ("t/three", "old"), ("t/two", "there first")]);
    fleet.insert(0, Member { gateway: Gateway::start(of_gateway.directory()), site: of_gateway });
    fleet[0].wait_until_joined();
    let merged = [("t/mine", "kept"), ("t/one", "there last"), ("t/three", "old"), ("t/two", "here last")];
    wait_until_found(&fleet, "t/#", &merged);
    // An old one lost, and everybody knows.
    let lost: u64 = fleet.iter().map(|member| retained(member)["superseded"].as_u64().unwrap()).sum();
    assert_eq!(lost, 1, "t/one of the first");
    end(fleet.remove(0).gateway);
}

/// What was deleted while a gateway was away is gone there too, however little is left of the deletion; its own that was not written
/// comes.
#[test]
fn a_gateway_that_was_away_for_long_drops_what_is_no_longer_there() {
    let site = Site::new();
    let (servers, mut fleet) = fleet(&site, 1, 2, "");
    let mut here = Client::come(&fleet[0], "here", false);
    for topic in ["a", "b", "c"] {
        here.retain(&format!("t/{topic}"), "old", 1);
    }
    wait_until_found(&fleet, "t/#", &[("t/a", "old"), ("t/b", "old"), ("t/c", "old")]);
    let Member { site: of_gateway, gateway } = fleet.pop().unwrap();
    end(gateway);
    here.retain("t/a", "", 1);
    here.retain("t/b", "new", 1);
    // No tombstone tells of it any more, and one row was removed by hand.
    let purged =
        servers.ask("$JS.API.STREAM.PURGE.KV_pulsegate_retained", &json!({"filter": "$KV.pulsegate_retained.t.a"}));
    assert_eq!(purged["purged"], 1, "{purged}");
    let member = Member { gateway: Gateway::start(of_gateway.directory()), site: of_gateway };
    member.wait_until_joined();
    fleet.push(member);
    wait_until_found(&fleet, "t/#", &[("t/b", "new"), ("t/c", "old")]);
    assert_eq!(retained(&fleet[1])["dropped"], 1);
}

/// Two gateways retain under one topic as fast as they can, one is killed, NATS goes and comes: in the end all agree, and nothing older
/// than what was acknowledged last at either is what they agree on.
#[test]
fn all_gateways_agree_whatever_was_published_at_the_same_time() {
    const TOPICS: usize = 5;
    let site = Site::new();
    let (mut servers, fleet) = fleet(&site, 1, 3, "uplink = \"local\"");
    let mut clients: Vec<_> = (0..2).map(|n| Client::come(&fleet[n], &format!("c{n}"), false)).collect();
    let mut last = BTreeMap::new();
    for round in 0..60 {
        if round == 20 {
            servers.stop(0, Signal::KILL);
        }
        if round == 40 {
            servers.start(0, &[]);
        }
        for (n, client) in clients.iter_mut().enumerate() {
            let topic = format!("race/{}", (round + n) % TOPICS);
            // Deletions too.
            let payload = if round % 7 == 3 { String::new() } else { format!("{round:02}-{n}") };
            client.retain(&topic, &payload, 1);
            last.insert((topic, n), payload);
        }
    }
    let agreed = || {
        let all: Vec<_> = fleet.iter().map(|member| found(member, "race/#")).collect();
        all.iter().all(|one| *one == all[0]).then(|| all[0].clone())
    };
    for member in &fleet {
        wait_until("it is back, and all went up", LATE, || {
            let sinks = member.gateway.get_json("/v1/sinks");
            member.fleet()["state"] == "connected" && sinks["sinks"][0]["behind"] == 0
        });
    }
    let mut settled = None;
    wait_until("they agree", LATE, || {
        settled = agreed();
        settled.is_some()
    });
    let settled: BTreeMap<_, _> = settled.unwrap().into_iter().collect();
    for number in 0..TOPICS {
        let topic = format!("race/{number}");
        let said = [0, 1].map(|n| last[&(topic.clone(), n)].as_str());
        let held = settled.get(&topic).map_or("", String::as_str);
        assert!(said.contains(&held), "{topic} holds {held:?}, and the last were {said:?}");
    }
}

/// One's own message comes back from the bucket behind a later one of one's own: it stays the later one all the while.
#[test]
fn ones_own_echo_never_undoes_what_came_after_it() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 2, "uplink = \"local\"");
    let mut publisher = Client::come(&fleet[0], "publisher", false);
    for round in 0..30 {
        // Behind the server's back nothing comes from the bucket; then all of it at once, behind what was published meanwhile.
        servers.signal(0, Signal::STOP);
        publisher.retain("echo", &format!("{round}-a"), 1);
        publisher.retain("echo", &format!("{round}-b"), 1);
        publisher.retain("gone", "x", 1);
        servers.signal(0, Signal::CONT);
        publisher.retain("echo", &format!("{round}-c"), 1);
        publisher.retain("gone", "", 1);
        let all = [("echo", &*format!("{round}-c"))];
        assert_eq!(found(&fleet[0], "#"), pairs(&all), "round {round}");
    }
    wait_until_found(&fleet, "#", &[("echo", "29-c")]);
}

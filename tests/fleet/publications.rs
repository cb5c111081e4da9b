//! What is published at one gateway reaches the subscribers of the others: of every quality of service, under wildcards, over the API,
//! through outages, and nothing of it twice to whoever had it already.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::mqtt::Client;
use crate::proxy::Proxy;
use crate::rows::decoded;
use crate::servers::Servers;
use crate::support::{Gateway, Site, wait_until};
use crate::{LATE, Member, end, fleet};

/// For how long silence is listened to. Longer could only find more.
const QUIET: Duration = Duration::from_millis(300);

fn taken(member: &Member) -> u64 {
    member.fleet()["publications"]["taken"].as_u64().unwrap()
}

fn subjects(member: &Member) -> u64 {
    member.fleet()["publications"]["subjects"].as_u64().unwrap()
}

#[test]
fn what_is_published_at_one_gateway_reaches_subscribers_at_another() {
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 3, "");
    let mut publisher = Client::come(&fleet[0], "publisher", false);
    let mut here = Client::come(&fleet[0], "here", false);
    let mut there = Client::come(&fleet[1], "there", false);
    here.subscribe("site/+/power", 2);
    there.subscribe("site/+/power", 2);
    there.subscribe("other/#", 1);
    // What is said after SUBACK arrives, under the lower of both qualities of service, in the order of its publisher.
    for qos in 0..=2 {
        publisher.publish("site/4/power", &format!("q{qos}"), qos);
        publisher.publish("site/4/else", "nobody's", qos);
    }
    for qos in 0..=2 {
        there.hears("site/4/power", &format!("q{qos}"), qos);
        here.hears("site/4/power", &format!("q{qos}"), qos);
    }
    // `#` matches the parent level; what differs in how it must be written in a subject is the same here.
    for (number, topic) in ["other", "other/a.b/*", "other//", "other/ä b"].into_iter().enumerate() {
        publisher.publish(topic, &number.to_string(), 2);
        there.hears(topic, &number.to_string(), 1);
    }
    // Nothing comes twice to whoever had it at once, and nothing goes where nobody wants it.
    assert_eq!((here.message(QUIET), there.message(QUIET)), (None, None));
    assert_eq!((taken(&fleet[1]), taken(&fleet[2])), (7, 0));
    wait_until("its own is skipped", LATE, || fleet[0].gateway.metric("pulsegate_fleet_publications_own_total") == 3);
    // The way back.
    there.publish("site/1/power", "back", 1);
    here.hears("site/1/power", "back", 1);
    there.hears("site/1/power", "back", 1);
}

#[test]
fn unsubscribing_stops_it_and_nobody_gets_what_was_published_before() {
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 2, "");
    let mut publisher = Client::come(&fleet[0], "publisher", false);
    let mut there = Client::come(&fleet[1], "there", false);
    there.subscribe("a", 1);
    for number in 0..20 {
        publisher.publish("b", &number.to_string(), 1);
    }
    there.subscribe("b", 1);
    publisher.publish("b", "after", 1);
    there.hears("b", "after", 1);
    publisher.publish("a", "still", 1);
    there.hears("a", "still", 1);
    there.unsubscribe("a");
    there.unsubscribe("b");
    wait_until("nothing is wanted any more", LATE, || subjects(&fleet[1]) == 0);
    publisher.publish("a", "late", 1);
    publisher.publish("b", "late", 1);
    assert_eq!(there.message(QUIET), None);
    // And it comes again, with nothing of what was missed.
    there.subscribe("a", 1);
    publisher.publish("a", "again", 1);
    there.hears("a", "again", 1);
}

#[test]
fn what_is_published_over_the_api_reaches_all_gateways() {
    let site = Site::new();
    let (mut servers, fleet) = fleet(&site, 1, 2, "");
    let mut clients: Vec<_> = (0..2).map(|number| Client::come(&fleet[number], &format!("c{number}"), false)).collect();
    for client in &mut clients {
        client.subscribe("tariff/+", 1);
    }
    let publish = |body| fleet[0].gateway.post("/v1/publish", &body);
    let (status, answer) = publish(json!({"topic": "tariff/1", "payload": "2", "qos": 1}));
    assert_eq!((status, &answer["outcome"]), (202, &json!("accepted")), "{answer}");
    for client in &mut clients {
        client.hears("tariff/1", "2", 1);
    }
    assert_eq!(publish(json!({"topic": "tariff/1", "payload": "here", "qos": 1, "local": true})).0, 202);
    clients[0].hears("tariff/1", "here", 1);
    assert_eq!(clients[1].message(QUIET), None);
    servers.stop(0, Signal::KILL);
    wait_until("it is away", LATE, || fleet[0].fleet()["state"] == "away");
    let (status, answer) = publish(json!({"topic": "tariff/1", "payload": "3", "qos": 1}));
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("fleet_away")), "{answer}");
    assert_eq!(clients[0].message(QUIET), None, "nothing was published");
    assert_eq!(publish(json!({"topic": "tariff/1", "payload": "here", "qos": 1, "local": true})).0, 202);
    clients[0].hears("tariff/1", "here", 1);
}

/// A session that is away, at a gateway that is away too: what was published meanwhile at another one waits for both.
#[test]
fn who_is_away_gets_what_was_published_meanwhile_also_over_a_restart_and_a_kill() {
    let site = Site::new();
    let (_servers, mut fleet) = fleet(&site, 1, 2, "");
    let mut publisher = Client::come(&fleet[0], "publisher", false);
    let mut there = Client::come(&fleet[1], "there", true);
    there.subscribe("news/#", 1);
    there.cut();
    let mut number = 0;
    let mut say = |publisher: &mut Client, count: usize| {
        for _ in 0..count {
            number += 1;
            publisher.publish("news/a", &number.to_string(), 1 + (number % 2) as u8);
        }
    };
    say(&mut publisher, 5);
    let Member { site: of_gateway, gateway } = fleet.pop().unwrap();
    end(gateway);
    say(&mut publisher, 5);
    let gateway = Gateway::start(of_gateway.directory());
    say(&mut publisher, 5);
    gateway.signal(Signal::KILL);
    drop(gateway);
    say(&mut publisher, 5);
    let member = Member { gateway: Gateway::start(of_gateway.directory()), site: of_gateway };
    member.wait_until_joined();
    let mut there = Client::come(&member, "there", true);
    assert!(there.has_session);
    // At least once, the first time in order; without a kill it would be once.
    let mut firsts = Vec::new();
    while firsts.len() < 20 {
        let heard = there.message(LATE).unwrap_or_else(|| panic!("only {firsts:?}"));
        let number: usize = heard.payload.parse().unwrap();
        if !firsts.contains(&number) {
            firsts.push(number);
        }
    }
    assert_eq!(firsts, (1..=20).collect::<Vec<_>>());
    // What has no acknowledgement is for whoever was there.
    publisher.publish("news/a", "now", 0);
    while let Some(heard) = there.message(LATE) {
        if heard.payload == "now" {
            break;
        }
    }
}

/// Acknowledged where it was published is received where it was subscribed to, whatever becomes of NATS meanwhile; of each device in order.
#[test]
fn what_is_acknowledged_arrives_through_restarts_of_nats() {
    const DEVICES: usize = 4;
    let site = Site::new();
    let (mut servers, fleet) = fleet(&site, 1, 2, "");
    let mut devices: Vec<_> = (0..DEVICES).map(|n| Client::come(&fleet[0], &format!("d{n}"), true)).collect();
    let mut there = Client::come(&fleet[1], "there", true);
    there.subscribe("load/#", 1);
    let mut acknowledged = BTreeSet::new();
    let mut sent = vec![std::collections::BTreeMap::new(); DEVICES];
    let (mut count, begun) = (0, Instant::now());
    for round in 0..40 {
        if round == 10 || round == 25 {
            servers.stop(0, Signal::KILL);
        }
        if round == 15 || round == 30 {
            servers.start(0, &[]);
        }
        for (n, device) in devices.iter_mut().enumerate() {
            // No more than a device may have under way.
            while sent[n].len() < 15 {
                count += 1;
                let text = format!("{n}-{count:05}");
                sent[n].insert(device.send(&format!("load/{}", count % 3), &text, 1), text);
            }
            for number in device.acknowledged(Duration::from_millis(20)) {
                acknowledged.extend(sent[n].remove(&number));
            }
        }
        assert!(begun.elapsed() < 4 * LATE);
    }
    // All that was said is acknowledged in the end.
    let deadline = Instant::now() + LATE;
    while sent.iter().any(|sent| !sent.is_empty()) {
        assert!(Instant::now() < deadline, "{sent:?}");
        for (n, device) in devices.iter_mut().enumerate() {
            for number in device.acknowledged(Duration::from_millis(50)) {
                acknowledged.extend(sent[n].remove(&number));
            }
        }
    }
    assert_eq!(acknowledged.len(), count);
    let (mut received, mut latest) = (BTreeSet::new(), vec![String::new(); DEVICES]);
    while received.len() < count {
        let heard = there.message(LATE).unwrap_or_else(|| {
            panic!("{} of {count} came; {:?} did not", received.len(), acknowledged.difference(&received))
        });
        let device: usize = heard.payload[..1].parse().unwrap();
        if received.insert(heard.payload.clone()) {
            assert!(heard.payload > latest[device], "{} behind {}", heard.payload, latest[device]);
            latest[device] = heard.payload;
        }
    }
    assert_eq!(received, acknowledged);
}

/// More filters than there may be subjects: what a consumer is asked for stays within its bound, every SUBACK comes, and everybody gets his
/// own.
#[test]
fn a_storm_of_filters_is_read_by_few_subjects() {
    const CLIENTS: usize = 10;
    const FILTERS: usize = 60;
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 2, "");
    let mut clients: Vec<_> = (0..CLIENTS).map(|n| Client::come(&fleet[1], &format!("c{n}"), false)).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        let filters: Vec<_> = (0..FILTERS).map(|number| format!("devices/{n}-{number}/set")).collect();
        client.ask_to_subscribe(&filters.iter().map(String::as_str).collect::<Vec<_>>(), 1);
    }
    clients.iter_mut().for_each(Client::subscribed);
    wait_until("there are few subjects", LATE, || (1..=256).contains(&subjects(&fleet[1])));
    let mut publisher = Client::come(&fleet[0], "publisher", false);
    for (n, client) in clients.iter_mut().enumerate() {
        for number in [0, FILTERS - 1] {
            let topic = format!("devices/{n}-{number}/set");
            publisher.publish(&topic, "x", 1);
            client.hears(&topic, "x", 1);
        }
        publisher.publish(&format!("devices/{n}-0/up"), "x", 1);
    }
    assert_eq!(clients[0].message(QUIET), None);
    // Nothing alike at all: everything is read, and each gets his own still.
    let unlike = |n: usize, number: usize| format!("{n}-{number}/{n}-{number}");
    for (n, client) in clients.iter_mut().enumerate() {
        let filters: Vec<_> = (0..30).map(|number| unlike(n, number)).collect();
        client.ask_to_subscribe(&filters.iter().map(String::as_str).collect::<Vec<_>>(), 1);
    }
    clients.iter_mut().for_each(Client::subscribed);
    wait_until("everything is read", LATE, || subjects(&fleet[1]) == 2);
    for (n, client) in clients.iter_mut().enumerate() {
        let topic = unlike(n, 29);
        publisher.publish(&topic, "y", 1);
        client.hears(&topic, "y", 1);
    }
}

/// Without NATS nobody waits for it: whoever subscribes is told at once, and local publications go on.
#[test]
fn while_nats_is_away_nobody_waits_for_it() {
    let site = Site::new();
    let (mut servers, fleet) = fleet(&site, 1, 2, "uplink = \"local\"");
    let mut there = Client::come(&fleet[1], "there", true);
    there.subscribe("before", 1);
    servers.stop(0, Signal::KILL);
    for member in &fleet {
        wait_until("it is away", LATE, || member.fleet()["state"] == "away");
    }
    there.subscribe("meanwhile", 1);
    let mut publisher = Client::come(&fleet[0], "publisher", true);
    publisher.subscribe("before", 1);
    publisher.publish("before", "1", 1);
    publisher.hears("before", "1", 1);
    publisher.publish("meanwhile", "2", 1);
    assert_eq!(there.message(QUIET), None);
    servers.start(0, &[]);
    there.hears("before", "1", 1);
    there.hears("meanwhile", "2", 1);
}

/// Where nothing was wanted before, and somebody subscribes while NATS is away: SUBACK comes at once, and says that what others publish comes
/// when NATS is back, though those could reach it all the while; and nothing that is much older.
#[test]
fn what_is_first_wanted_while_nats_is_away_comes_when_it_is_back() {
    let site = Site::new();
    let mut servers = Servers::new(&site, 1);
    servers.start_all();
    let proxy = Proxy::new(servers.ports[0]);
    let member = Member::joined("gate-0", &proxy.urls(), "");
    let other = Member::joined("gate-1", &servers.urls("nats"), "");
    let mut publisher = Client::come(&other, "publisher", false);
    publisher.publish("late/a", "long before", 1);
    // It looks where the stream ends, though nothing is wanted.
    let asked = json!({"last_by_subj": "$KV.pulsegate_sessions.cursor.gate-0"});
    let end = || servers.ask("$JS.API.STREAM.INFO.pulsegate_uplink", &json!({}))["state"]["last_seq"].as_u64().unwrap();
    wait_until("it is at the stream's end", LATE, || {
        let found = servers.ask("$JS.API.STREAM.MSG.GET.KV_pulsegate_sessions", &asked);
        found["message"]["data"].as_str().is_some_and(|data| {
            let cursor: Value = serde_json::from_slice(&decoded(data)).unwrap();
            cursor["position"] == end()
        })
    });
    proxy.hold(true);
    wait_until("NATS is away", LATE, || member.fleet()["state"] == "away");
    let mut subscriber = Client::come(&member, "subscriber", true);
    subscriber.subscribe("late/#", 1);
    publisher.publish("late/a", "meanwhile", 1);
    proxy.hold(false);
    subscriber.hears("late/a", "meanwhile", 1);
    member.wait_until_joined();
    publisher.publish("late/a", "then", 1);
    subscriber.hears("late/a", "then", 1);
    assert_eq!(subscriber.message(QUIET), None);
}

//! Shared subscriptions over the fleet: each message goes to one member somewhere, wherever it was published; all members get as much; and
//! what a gateway had that died goes to the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::mqtt::Client;
use crate::support::{Gateway, Site, wait_until};
use crate::{LATE, Member, end, fleet};

/// For how long silence is listened to. Longer could only find more.
const QUIET: Duration = Duration::from_millis(300);

fn served(member: &Member) -> u64 {
    member.fleet()["groups"]["served"].as_u64().unwrap()
}

/// Members of one group that come to a gateway.
fn come(member: &Member, name: &str, count: usize, keeps: bool, filter: &str) -> Vec<Client> {
    let mut clients: Vec<_> = (0..count).map(|n| Client::come(member, &format!("{name}{n}"), keeps)).collect();
    for client in &mut clients {
        client.subscribe(filter, 1);
    }
    clients
}

/// What all of these hear until so many different messages have come: how often each, and how many each client.
#[track_caller]
fn hear(clients: &mut [Client], count: usize) -> (BTreeMap<String, usize>, Vec<usize>) {
    let (mut heard, mut each) = (BTreeMap::new(), vec![0; clients.len()]);
    let deadline = Instant::now() + LATE;
    while heard.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} came: {each:?}", heard.len());
        for (number, client) in clients.iter_mut().enumerate() {
            while let Some(message) = client.message(Duration::from_millis(5)) {
                *heard.entry(message.payload).or_default() += 1;
                each[number] += 1;
            }
        }
    }
    (heard, each)
}

#[test]
fn each_message_goes_to_one_member_wherever_it_is_published() {
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 3, "");
    let mut members = come(&fleet[0], "a", 1, false, "$share/g/jobs/+");
    members.extend(come(&fleet[1], "b", 1, false, "$share/g/jobs/+"));
    // A group of another name has its own, and so has whoever shares nothing.
    let mut other = come(&fleet[1], "other", 1, false, "$share/h/jobs/#");
    let mut plain = Client::come(&fleet[0], "plain", false);
    plain.subscribe("jobs/#", 1);
    let mut publishers: Vec<_> = (0..3).map(|n| Client::come(&fleet[n], &format!("p{n}"), false)).collect();
    for number in 0..30 {
        publishers[number % 3].publish("jobs/x", &number.to_string(), 1 + (number % 2) as u8);
    }
    let (heard, each) = hear(&mut members, 30);
    assert!(heard.values().all(|count| *count == 1), "{heard:?}");
    assert!(each.iter().all(|count| *count >= 8), "{each:?}");
    assert_eq!(hear(&mut other, 30).0.len(), 30);
    assert_eq!(hear(std::slice::from_mut(&mut plain), 30).0.len(), 30);
    // Over the API, and without an acknowledgement; what stays at its gateway is not the fleet's.
    let publish = |body| fleet[2].gateway.post("/v1/publish", &body).0;
    assert_eq!(publish(json!({"topic": "jobs/x", "payload": "api", "qos": 1})), 202);
    publishers[2].publish("jobs/x", "quick", 0);
    let (heard, _) = hear(&mut members, 2);
    assert_eq!(heard, BTreeMap::from([("api".to_owned(), 1), ("quick".to_owned(), 1)]));
    assert_eq!(publish(json!({"topic": "jobs/x", "payload": "here", "qos": 1, "local": true})), 202);
    assert_eq!(members.iter_mut().filter_map(|member| member.message(QUIET)).count(), 0);
    // What matches not is nobody's.
    publishers[2].publish("jobs/x/y", "deep", 1);
    assert_eq!(other[0].message(LATE).unwrap().payload, "api");
    assert_eq!(members.iter_mut().filter_map(|member| member.message(QUIET)).count(), 0);
}

#[test]
fn all_members_get_as_much_however_they_are_spread() {
    const MESSAGES: usize = 600;
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 3, "");
    let mut members = come(&fleet[0], "many", 9, false, "$share/g/jobs");
    members.extend(come(&fleet[1], "one", 1, false, "$share/g/jobs"));
    let mut publisher = Client::come(&fleet[2], "publisher", false);
    let (mut sent, mut heard) = (0, BTreeMap::new());
    let mut each = vec![0; members.len()];
    let deadline = Instant::now() + LATE;
    let mut open = 0;
    while heard.len() < MESSAGES {
        assert!(Instant::now() < deadline, "{} came: {each:?}", heard.len());
        while sent < MESSAGES && open < 15 {
            publisher.send("jobs", &sent.to_string(), 1);
            (sent, open) = (sent + 1, open + 1);
        }
        open -= publisher.acknowledged(Duration::from_millis(10)).len();
        for (number, member) in members.iter_mut().enumerate() {
            while let Some(message) = member.message(Duration::from_millis(1)) {
                *heard.entry(message.payload).or_insert(0) += 1;
                each[number] += 1;
            }
        }
    }
    assert!(heard.values().all(|count| *count == 1));
    let (of_many, of_one) = (each[..9].iter().sum::<usize>(), each[9]);
    assert!((40..=85).contains(&of_one), "{of_one} of {MESSAGES}, and {of_many} at the other gateway: {each:?}");
    assert!(each.iter().all(|count| *count > 30), "{each:?}");
}

/// One that acknowledges nothing has what it may have, and what it has no room for goes to its neighbour: nothing goes back and waits there.
#[test]
fn a_member_that_acknowledges_nothing_has_its_part_and_holds_up_nobody() {
    const ROOM: usize = 32;
    const MESSAGES: usize = 4 * ROOM;
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 2, "");
    let silent = come(&fleet[0], "silent", 1, false, "$share/g/jobs").remove(0);
    let mut quick = come(&fleet[0], "quick", 1, false, "$share/g/jobs");
    let mut publisher = Client::come(&fleet[1], "publisher", false);
    for number in 0..MESSAGES {
        publisher.publish("jobs", &number.to_string(), 1);
        quick[0].take_all();
    }
    let (heard, _) = hear(&mut quick, MESSAGES - ROOM);
    assert!(heard.values().all(|count| *count == 1), "{heard:?}");
    assert_eq!(quick[0].message(QUIET), None, "the others are with the one that is silent");
    wait_until("it has its part", LATE, || fleet[0].fleet()["groups"]["unsettled"] == ROOM as u64);
    assert_eq!(fleet[0].fleet()["groups"]["returned"], 0);
    silent.cut();
    let (rest, _) = hear(&mut quick, ROOM);
    assert!(rest.keys().all(|job| !heard.contains_key(job)), "{rest:?}");
}

/// SUBACK says that whatever is published from then on comes, wherever.
#[test]
fn what_is_published_elsewhere_right_after_suback_comes() {
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 2, "");
    let mut publisher = Client::come(&fleet[1], "publisher", false);
    for round in 0..20 {
        let topic = format!("jobs/{round}");
        publisher.publish(&topic, "before", 1);
        let mut member = come(&fleet[0], "m", 1, false, &format!("$share/g/{topic}")).remove(0);
        publisher.publish(&topic, "after", 1);
        member.hears(&topic, "after", 1);
    }
}

/// With the last member of the fleet the group is gone: whoever comes later gets nothing of what was published meanwhile.
#[test]
fn when_the_last_member_leaves_nothing_is_kept() {
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 2, "");
    let mut publisher = Client::come(&fleet[1], "publisher", false);
    let mut members = come(&fleet[0], "a", 1, false, "$share/g/jobs");
    members.extend(come(&fleet[1], "b", 1, false, "$share/g/jobs"));
    members[0].unsubscribe("$share/g/jobs");
    wait_until("it is served at one gateway", LATE, || (served(&fleet[0]), served(&fleet[1])) == (0, 1));
    for number in 0..5 {
        publisher.publish("jobs", &number.to_string(), 1);
        members[1].hears("jobs", &number.to_string(), 1);
    }
    members.pop().unwrap().cut();
    wait_until("it is served nowhere", LATE, || served(&fleet[0]) + served(&fleet[1]) == 0);
    publisher.publish("jobs", "nobody's", 1);
    let mut late = come(&fleet[0], "late", 1, false, "$share/g/jobs");
    publisher.publish("jobs", "somebody's", 1);
    late[0].hears("jobs", "somebody's", 1);
    assert_eq!((late[0].message(QUIET), members[0].message(QUIET)), (None, None));
}

/// A gateway is killed while its members are being given much: what they had not acknowledged goes to the members elsewhere.
#[test]
fn what_a_killed_gateway_had_goes_to_the_others() {
    const MESSAGES: usize = 400;
    let site = Site::new();
    let (_servers, mut fleet) = fleet(&site, 1, 3, "");
    let mut doomed = come(&fleet[0], "doomed", 4, false, "$share/g/jobs");
    // One that acknowledges nothing: what it is sent is lost with its gateway.
    let silent = come(&fleet[0], "silent", 1, false, "$share/g/jobs");
    let mut members = come(&fleet[1], "m", 2, false, "$share/g/jobs");
    let mut publisher = Client::come(&fleet[2], "publisher", false);
    let (mut acknowledged, mut sent) = (BTreeSet::new(), BTreeMap::new());
    let (mut received, mut count) = (BTreeSet::new(), 0);
    let deadline = Instant::now() + 2 * LATE;
    while acknowledged.len() < MESSAGES {
        assert!(Instant::now() < deadline, "{} are acknowledged", acknowledged.len());
        while sent.len() < 15 && count < MESSAGES {
            count += 1;
            sent.insert(publisher.send("jobs", &count.to_string(), 1), count.to_string());
        }
        for number in publisher.acknowledged(Duration::from_millis(5)) {
            acknowledged.extend(sent.remove(&number));
        }
        for member in members.iter_mut().chain(&mut doomed) {
            while let Some(message) = member.message(Duration::from_millis(1)) {
                received.insert(message.payload);
            }
        }
        if acknowledged.len() > MESSAGES / 2 && !doomed.is_empty() {
            let Member { gateway, .. } = fleet.remove(0);
            gateway.signal(Signal::KILL);
            drop(gateway);
            doomed.clear();
        }
    }
    assert!(received.len() < MESSAGES, "nothing was lost with the gateway");
    drop(silent);
    while received.len() < MESSAGES {
        let missing: Vec<_> = acknowledged.difference(&received).take(9).collect();
        assert!(Instant::now() < deadline, "{} of {MESSAGES} came; not {missing:?}", received.len());
        for member in &mut members {
            while let Some(message) = member.message(Duration::from_millis(50)) {
                received.insert(message.payload);
            }
        }
    }
    assert_eq!(received, acknowledged);
}

/// A gateway is killed and stays away; of what its members had, with sessions that are on its disk, the others get what was not
/// acknowledged. When it is back these sessions have nothing of it.
#[test]
fn what_a_stored_session_at_a_killed_gateway_had_goes_to_the_others() {
    const MESSAGES: usize = 5;
    let site = Site::new();
    let (_servers, mut fleet) = fleet(&site, 1, 2, "");
    let mut silent = come(&fleet[0], "silent", 1, true, "$share/g/jobs").remove(0);
    let mut publisher = Client::come(&fleet[1], "publisher", false);
    (0..MESSAGES).for_each(|number| publisher.publish("jobs", &number.to_string(), 1));
    let sent: Vec<_> = (0..MESSAGES).map(|_| silent.unanswered()).collect();
    silent.say(0x40, sent[0].1);
    let unsettled = |member: &Member| member.fleet()["groups"]["unsettled"].as_u64().unwrap();
    wait_until("one is acknowledged", LATE, || unsettled(&fleet[0]) == MESSAGES as u64 - 1);
    let mut member = come(&fleet[1], "member", 1, true, "$share/g/jobs").remove(0);
    let Member { site: of_gateway, gateway } = fleet.remove(0);
    gateway.signal(Signal::KILL);
    drop(gateway);
    let (heard, _) = hear(std::slice::from_mut(&mut member), MESSAGES - 1);
    let expected: BTreeMap<_, _> = sent[1..].iter().map(|(heard, _)| (heard.payload.clone(), 1)).collect();
    assert_eq!(heard, expected);
    let back = Member { gateway: Gateway::start(of_gateway.directory()), site: of_gateway };
    back.wait_until_joined();
    let mut again = Client::come(&back, "silent0", true);
    assert!(again.has_session);
    assert_eq!((again.message(QUIET), member.message(QUIET)), (None, None));
    wait_until("nothing is left", LATE, || unsettled(&fleet[0]) + unsettled(&back) == 0);
}

/// A member goes without having acknowledged what it got: somebody at another gateway gets it at once, whatever becomes of its session.
#[test]
fn what_a_member_has_not_acknowledged_goes_to_a_member_elsewhere() {
    for keeps in [false, true] {
        let site = Site::new();
        let (_servers, fleet) = fleet(&site, 1, 2, "");
        let mut silent = come(&fleet[0], "silent", 1, keeps, "$share/g/jobs").remove(0);
        let mut publisher = Client::come(&fleet[1], "publisher", false);
        publisher.publish("jobs", "1", 1);
        assert_eq!(silent.unanswered().0.payload, "1");
        let mut member = come(&fleet[1], "member", 1, false, "$share/g/jobs").remove(0);
        assert_eq!(member.message(QUIET), None, "it is another one's");
        silent.cut();
        member.hears("jobs", "1", 1);
    }
}

/// While NATS is away each gateway gives to its own members what is published at it, and nothing of that comes again.
#[test]
fn while_nats_is_away_groups_are_given_to_where_it_is_published() {
    let site = Site::new();
    let (mut servers, fleet) = fleet(&site, 1, 3, "uplink = \"local\"");
    let mut a = come(&fleet[0], "a", 1, false, "$share/g/jobs").remove(0);
    let mut b = come(&fleet[1], "b", 1, false, "$share/g/jobs").remove(0);
    let mut publishers: Vec<_> = (0..3).map(|n| Client::come(&fleet[n], &format!("p{n}"), false)).collect();
    servers.stop(0, Signal::KILL);
    for member in &fleet {
        wait_until("it is away", LATE, || member.fleet()["state"] == "away");
    }
    // Whoever comes now is told at once.
    let mut late = come(&fleet[1], "late", 1, false, "$share/late/jobs").remove(0);
    wait_until("its gateway gives", LATE, || {
        publishers[0].publish("jobs", "probe", 0);
        a.message(Duration::from_millis(100)).is_some()
    });
    while a.message(QUIET).is_some() {}
    for number in 0..10 {
        publishers[0].publish("jobs", &format!("a{number}"), 1);
        a.hears("jobs", &format!("a{number}"), 1);
        publishers[1].publish("jobs", &format!("b{number}"), 1);
        b.hears("jobs", &format!("b{number}"), 1);
        late.hears("jobs", &format!("b{number}"), 1);
        // Here is no member: it waits.
        publishers[2].publish("jobs", &format!("c{number}"), 1);
    }
    servers.start(0, &[]);
    let mut both = [a, b];
    let (heard, _) = hear(&mut both, 10);
    let expected: BTreeMap<_, _> = (0..10).map(|number| (format!("c{number}"), 1)).collect();
    assert_eq!(heard, expected, "once, and nothing that a member had already");
    for member in &fleet[..2] {
        wait_until("the fleet gives again", LATE, || member.gateway.metric("pulsegate_fleet_groups_unserved") == 0);
    }
    publishers[2].publish("jobs", "after", 1);
    assert_eq!(hear(&mut both, 1).0, BTreeMap::from([("after".to_owned(), 1)]));
}

/// Acknowledged is received, by one member, whatever becomes of NATS meanwhile.
#[test]
fn nothing_is_lost_when_nats_is_killed_under_load() {
    const MESSAGES: usize = 300;
    let site = Site::new();
    let (mut servers, fleet) = fleet(&site, 1, 3, "");
    let mut members = come(&fleet[0], "a", 2, false, "$share/g/jobs");
    members.extend(come(&fleet[1], "b", 2, false, "$share/g/jobs"));
    let mut publisher = Client::come(&fleet[2], "publisher", true);
    let (mut acknowledged, mut sent) = (BTreeSet::new(), BTreeMap::new());
    let (mut received, mut count, mut kills) = (BTreeSet::new(), 0, 0);
    let deadline = Instant::now() + 2 * LATE;
    while acknowledged.len() < MESSAGES || received.len() < MESSAGES {
        assert!(Instant::now() < deadline, "{} are acknowledged, {} came", acknowledged.len(), received.len());
        while sent.len() < 15 && count < MESSAGES {
            count += 1;
            sent.insert(publisher.send("jobs", &count.to_string(), 1), count.to_string());
        }
        for number in publisher.acknowledged(Duration::from_millis(5)) {
            acknowledged.extend(sent.remove(&number));
        }
        for member in &mut members {
            while let Some(message) = member.message(Duration::from_millis(1)) {
                received.insert(message.payload);
            }
        }
        if acknowledged.len() > MESSAGES / 3 * (kills + 1) && kills < 2 {
            kills += 1;
            servers.stop(0, Signal::KILL);
            servers.start(0, &[]);
        }
    }
    assert_eq!(received, acknowledged);
}

/// Members that are away with their sessions keep the group; whoever is there first gets what waits, at whichever gateway.
#[test]
fn what_is_published_while_all_members_are_away_waits_for_the_first() {
    let site = Site::new();
    let (_servers, mut fleet) = fleet(&site, 1, 2, "");
    let mut publisher = Client::come(&fleet[1], "publisher", false);
    let member = come(&fleet[0], "m", 1, true, "$share/g/jobs").remove(0);
    member.cut();
    wait_until("it is away", LATE, || fleet[0].gateway.metric("pulsegate_mqtt_sessions_away") == 1);
    for number in 0..5 {
        publisher.publish("jobs", &number.to_string(), 1);
    }
    // Its session goes with it to the other gateway, and what waits with the group.
    let mut moved = Client::come(&fleet[1], "m0", true);
    assert!(moved.has_session);
    assert_eq!(hear(std::slice::from_mut(&mut moved), 5).0.len(), 5);
    moved.cut();
    publisher.publish("jobs", "later", 1);
    // A gateway that ends in order, and comes again with the sessions that it has kept.
    let Member { site: of_gateway, gateway } = fleet.pop().unwrap();
    end(gateway);
    let back = Member { gateway: Gateway::start(of_gateway.directory()), site: of_gateway };
    back.wait_until_joined();
    let mut again = Client::come(&back, "m0", true);
    assert!(again.has_session);
    again.hears("jobs", "later", 1);
}

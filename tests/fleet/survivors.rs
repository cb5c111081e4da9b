//! Sessions survive their gateway: whichever dies, or is ended, the device goes on at another one with its subscriptions, and with what was
//! published to it. Nothing that was acknowledged to its publisher is lost.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use crate::mqtt::Client;
use crate::overheard::Overheard;
use crate::sessions::{QUIET, hears_all, metric, payloads, so_many_wait, void};
use crate::support::{Gateway, Site, wait_until};
use crate::{LATE, Member, end, fleet};

/// Devices that come at once.
const STORM: usize = 240;
/// For how long a will may still come that should not.
const WILLS_OVER: Duration = Duration::from_secs(3);

/// Kills a gateway; its place stays.
pub fn kill(fleet: &mut Vec<Member>, at: usize) -> Site {
    let Member { site, gateway } = fleet.remove(at);
    gateway.signal(Signal::KILL);
    drop(gateway);
    site
}

/// One that was killed, or ended, comes back.
pub fn back(site: Site) -> Member {
    let member = Member { gateway: Gateway::start(site.directory()), site };
    member.wait_until_joined();
    member
}

/// vernemq 1577: QoS 1 was lost with a node that was killed, because what waited there was nowhere else.
#[test]
fn a_device_that_was_away_finds_what_waited_at_a_gateway_that_died() {
    let site = Site::new();
    let (servers, mut fleet) = fleet(&site, 1, 3, "");
    let mut publisher = Client::come(&fleet[2], "publisher", false);
    Client::subscriber(&fleet[0], "meter", "set/#").cut();
    let expected = payloads(200);
    publisher.publish_all("set/a", &expected[..100]);
    let place = kill(&mut fleet, 0);
    publisher.publish_all("set/a", &expected[100..]);
    let mut device = Client::back(&fleet[0], "meter");
    hears_all(&mut device, &expected);
    publisher.publish("set/b", "now", 1);
    device.hears("set/b", "now", 1);
    let counts = ["revived", "taken", "begun_anew"].map(|name| metric(&fleet[0], name));
    assert_eq!(counts, [1, 0, 0]);
    // The dead one comes back: what it has is void, and the device finds its session when it comes there.
    let back = back(place);
    wait_until("it is void there", LATE, || void(&back) == 1);
    assert_eq!(back.gateway.metric("pulsegate_mqtt_sessions"), 0);
    device.cut();
    publisher.publish("set/c", "back", 1);
    let mut device = Client::back(&back, "meter");
    device.hears("set/c", "back", 1);
    assert_eq!(device.message(QUIET), None);
    assert_eq!(servers.rows("pulsegate_sessions"), 1);
}

/// Of a device that was connected: what it had not acknowledged comes again, of both qualities of service, and what it had long
/// acknowledged does not.
#[test]
fn a_device_that_was_connected_is_sent_again_what_it_had_not_acknowledged() {
    let site = Site::new();
    let (_servers, mut fleet) = fleet(&site, 1, 2, "");
    let mut publisher = Client::come(&fleet[1], "publisher", false);
    let mut device = Client::come(&fleet[0], "meter", true);
    device.subscribe("set/#", 2);
    for payload in payloads(50) {
        publisher.publish("set/a", &payload, 1);
        device.hears("set/a", &payload, 1);
    }
    // Longer than a gateway takes to say where its sessions are.
    std::thread::sleep(Duration::from_secs(3));
    for (payload, qos) in [("one", 1), ("two", 2), ("three", 1)] {
        publisher.publish("set/a", payload, qos);
        assert_eq!(&*device.unanswered().0.payload, payload);
    }
    kill(&mut fleet, 0);
    drop(device);
    let mut device = Client::back(&fleet[0], "meter");
    hears_all(&mut device, &["one", "two", "three"].map(str::to_owned));
    assert_eq!(device.message(QUIET), None, "nothing that was acknowledged");
}

/// Filters that overlap, with wildcards, and those that were taken back.
#[test]
fn what_it_had_subscribed_to_is_what_it_gets() {
    let site = Site::new();
    let (_servers, mut fleet) = fleet(&site, 1, 2, "");
    let mut publisher = Client::come(&fleet[1], "publisher", false);
    let mut device = Client::come(&fleet[0], "meter", true);
    for (filter, qos) in [("a/+/c", 1), ("a/#", 2), ("b", 1), ("gone/#", 1), ("quiet/#", 0), ("+/x", 1)] {
        device.subscribe(filter, qos);
    }
    device.unsubscribe("gone/#");
    device.cut();
    kill(&mut fleet, 0);
    let said =
        [("a/b/c", 2, 2), ("a", 1, 1), ("b", 2, 1), ("gone/a", 1, 0), ("quiet/a", 1, 0), ("a/x", 2, 2), ("z/x", 1, 1)];
    for (topic, qos, _) in said {
        publisher.publish(topic, topic, qos);
    }
    publisher.publish("b", "without", 0);
    let mut device = Client::back(&fleet[0], "meter");
    for (topic, _, granted) in said.into_iter().filter(|(.., granted)| *granted > 0) {
        device.hears(topic, topic, granted);
    }
    assert_eq!(device.message(QUIET), None, "each once, and nothing else");
}

/// A gateway that is ended in order, as all of them are one after the other where the fleet is given a new version: nobody begins anew.
/// Nothing comes twice, but to a session that was begun again a moment ago.
#[test]
fn a_rolling_restart_takes_nobody_his_session() {
    let site = Site::new();
    let (servers, mut fleet) = fleet(&site, 1, 3, "");
    let mut publisher = Client::come(&fleet[2], "publisher", false);
    Client::subscriber(&fleet[0], "away", "set/#").cut();
    let mut number = 0;
    let mut say = |publisher: &mut Client| {
        number += 1;
        publisher.publish("set/a", &number.to_string(), 1);
        number.to_string()
    };
    for round in 0..3 {
        let mut expected = vec![say(&mut publisher), say(&mut publisher)];
        // The one that has it ends, and it comes elsewhere before that one is back.
        let Member { site: place, gateway } = fleet.remove(0);
        end(gateway);
        if round == 2 {
            // The publisher was at the one that ended.
            publisher = Client::come(&fleet[0], "publisher", false);
        }
        expected.push(say(&mut publisher));
        let mut device = Client::come(&fleet[0], "away", true);
        assert!(device.has_session, "in round {round}");
        if round == 0 {
            for payload in expected {
                device.hears("set/a", &payload, 1);
            }
            assert_eq!(device.message(QUIET), None, "once");
            device.unsubscribe("nothing");
        } else {
            hears_all(&mut device, &expected);
        }
        device.cut();
        fleet.push(back(place));
    }
    assert_eq!(servers.rows("pulsegate_sessions"), 1);
    assert_eq!(fleet.iter().map(|member| metric(member, "begun_anew")).sum::<u64>(), 0);
}

/// The stream let a part go that it had not read: it goes on all the same, and it is counted.
#[test]
fn what_the_stream_let_go_is_counted() {
    let site = Site::new();
    let (servers, mut fleet) = fleet(&site, 1, 2, "");
    let mut publisher = Client::come(&fleet[1], "publisher", false);
    Client::subscriber(&fleet[0], "meter", "set/#").cut();
    wait_until("it has said how far it has come", LATE, || {
        let asked = json!({"last_by_subj": "$KV.pulsegate_sessions.cursor.gate-0"});
        servers.ask("$JS.API.STREAM.MSG.GET.KV_pulsegate_sessions", &asked)["error"].is_null()
    });
    kill(&mut fleet, 0);
    publisher.publish_all("set/a", &payloads(20));
    let uplink = servers.ask("$JS.API.STREAM.INFO.pulsegate_uplink", &json!({}));
    let last = uplink["state"]["last_seq"].as_u64().unwrap();
    servers.ask("$JS.API.STREAM.PURGE.pulsegate_uplink", &json!({"seq": last - 4}));
    let mut device = Client::back(&fleet[0], "meter");
    hears_all(&mut device, &payloads(20)[15..]);
    assert_eq!((metric(&fleet[0], "revived"), metric(&fleet[0], "revived_with_holes")), (1, 1));
}

/// More than a session may hold was published: the oldest gave way.
#[test]
fn of_what_is_too_much_the_latest_comes() {
    let site = Site::new();
    let (_servers, mut fleet) = fleet(&site, 1, 2, "[limits]\nsession_messages = 50");
    let mut publisher = Client::come(&fleet[1], "publisher", false);
    Client::subscriber(&fleet[0], "meter", "set/#").cut();
    kill(&mut fleet, 0);
    let all = payloads(300);
    publisher.publish_all("set/a", &all);
    let mut device = Client::back(&fleet[0], "meter");
    hears_all(&mut device, &all[250..]);
    assert_eq!(fleet[0].gateway.metric("pulsegate_fleet_session_messages_given_way_total"), 250);
}

/// What the log of the dead gateway alone had acknowledged comes when that gateway is back, and the rest at once.
#[test]
fn what_a_local_log_had_acknowledged_comes_when_its_gateway_is_back() {
    let site = Site::new();
    let (mut servers, mut fleet) = fleet(&site, 1, 2, "uplink = \"local\"");
    let mut publishers = [0, 1].map(|at: usize| Client::come(&fleet[at], &format!("publisher-{at}"), false));
    Client::subscriber(&fleet[0], "meter", "set/#").cut();
    let expected = payloads(60);
    publishers[0].publish_all("set/a", &expected[..20]);
    wait_until("all is in the stream", LATE, || crate::uplink::behind(&fleet[0]) == 0);
    servers.stop(0, Signal::KILL);
    wait_until("both are cut off", LATE, || fleet.iter().all(|member| member.fleet()["state"] == "away"));
    publishers[0].publish_all("set/a", &expected[20..40]);
    publishers[1].publish_all("set/a", &expected[40..]);
    let place = kill(&mut fleet, 0);
    servers.start(0, &[]);
    wait_until("the other one is back", LATE, || fleet[0].fleet()["state"] == "connected");
    let mut device = Client::back(&fleet[0], "meter");
    hears_all(&mut device, &[&expected[..20], &expected[40..]].concat());
    assert_eq!((device.message(QUIET), metric(&fleet[0], "revived")), (None, 1));
    let back = back(place);
    hears_all(&mut device, &expected[20..40]);
    wait_until("it is void there", LATE, || void(&back) == 1);
}

/// NATS dies while a session is begun again: it is whole in the end.
#[test]
fn nats_dies_on_the_way() {
    let site = Site::new();
    let (mut servers, mut fleet) = fleet(&site, 1, 2, "[limits]\nsession_messages = 5000");
    let mut publisher = Client::come(&fleet[1], "publisher", false);
    let expected = so_many_wait(&fleet[0], &mut publisher, 1_500);
    kill(&mut fleet, 0);
    wait_until("its lease has ended", LATE, || servers.rows("pulsegate_gateways") == 1);
    for delay in [20, 80, 200] {
        let asked = Client::ask_to_come(fleet[0].gateway.address("mqtt"), &fleet[0].site, "meter", true);
        std::thread::sleep(Duration::from_millis(delay));
        servers.stop(0, Signal::KILL);
        drop(asked);
        servers.start(0, &[]);
        wait_until("it is there again", LATE, || fleet[0].fleet()["state"] == "connected");
    }
    wait_until("the connections are gone", LATE, || fleet[0].gateway.connected() == 1);
    let mut device = Client::back(&fleet[0], "meter");
    hears_all(&mut device, &expected);
}

/// The gateway that begins it again dies on the way, again and again; and then the whole fleet does.
#[test]
fn whoever_begins_it_again_may_die_on_the_way() {
    let site = Site::new();
    let (_servers, mut fleet) = fleet(&site, 1, 3, "[limits]\nsession_messages = 5000");
    let mut publisher = Client::come(&fleet[2], "publisher", false);
    let expected = so_many_wait(&fleet[0], &mut publisher, 1_500);
    let mut places = vec![kill(&mut fleet, 0)];
    for delay in [2_000, 2_100, 2_300, 2_600] {
        let asked = Client::ask_to_come(fleet[0].gateway.address("mqtt"), &fleet[0].site, "meter", true);
        std::thread::sleep(Duration::from_millis(delay));
        let place = kill(&mut fleet, 0);
        drop(asked);
        fleet.insert(0, back(place));
    }
    let mut device = Client::back(&fleet[0], "meter");
    let heard = device.message(LATE).expect("the first");
    assert_eq!(heard.payload, expected[0]);
    // All die, with the device connected and most of it unacknowledged, and come back.
    drop(publisher);
    places.extend([kill(&mut fleet, 0), kill(&mut fleet, 0)]);
    drop(device);
    fleet.extend(places.into_iter().map(back));
    let mut device = Client::back(&fleet[2], "meter");
    let mut got = BTreeSet::from([heard.payload]);
    while got.len() < expected.len() {
        got.insert(device.message(LATE).unwrap_or_else(|| panic!("{} come", got.len())).payload);
    }
}

/// Twenty kills in a row, each of the gateway where the device is, while others publish at all gateways: what was acknowledged to its
/// publisher is received.
#[test]
fn nothing_is_lost_of_a_device_whose_gateways_are_killed_under_load() {
    const KILLS: usize = 20;
    let site = Site::new();
    // The place in its row is old as long as no gateway lives for seconds: much comes again, and has room.
    let roomy = "[limits]\nsession_messages = 50000\nsession_bytes = 16777216";
    let (_servers, mut fleet) = fleet(&site, 1, 3, roomy);
    let mut device = Client::subscriber(&fleet[0], "meter", "set/#");
    let stop = AtomicBool::new(false);
    let mut got = BTreeSet::new();
    let all = std::thread::scope(|scope| {
        // The last gateway is not killed; it is where they publish. What is published at one that dies is told by `cluster`.
        let steady = fleet.pop().unwrap();
        let (stop, address) = (&stop, steady.gateway.address("mqtt"));
        let (tls_site, mut number) = (&steady.site, 0_usize);
        let mut publisher = Client::ask_to_come(address, tls_site, "publisher", false);
        publisher.welcomed();
        let publishing = scope.spawn(move || {
            let mut sent = BTreeSet::new();
            while !stop.load(Ordering::Relaxed) {
                let payload = format!("{number:06}");
                publisher.publish("set/a", &payload, 1);
                sent.insert(payload);
                number += 1;
                std::thread::sleep(Duration::from_millis(3));
            }
            sent
        });
        for round in 0..KILLS {
            // It hears some of it, or is away.
            let until = Instant::now() + Duration::from_millis(150 * (round as u64 % 4));
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                got.extend(device.message(left).map(|heard| heard.payload));
            }
            let place = if round % 3 == 2 {
                device.cut();
                std::thread::sleep(Duration::from_millis(50));
                kill(&mut fleet, 0)
            } else {
                let place = kill(&mut fleet, 0);
                drop(device);
                place
            };
            device = Client::come(&fleet[0], "meter", true);
            assert!(device.has_session, "after kill {round}");
            got.extend(device.heard().map(|heard| heard.payload));
            fleet.push(back(place));
        }
        stop.store(true, Ordering::Relaxed);
        let sent = publishing.join().unwrap();
        let deadline = Instant::now() + LATE;
        while !sent.is_subset(&got) && Instant::now() < deadline {
            got.extend(device.message(Duration::from_secs(2)).map(|heard| heard.payload));
        }
        drop(steady);
        sent
    });
    let lost: Vec<_> = all.difference(&got).take(20).collect();
    assert!(lost.is_empty(), "{} of {} are lost: {lost:?}", all.difference(&got).count(), all.len());
}

/// All of these come to a gateway, eight at a time.
fn all_come(member: &Member, ids: &[String]) -> Vec<Client> {
    std::thread::scope(|scope| {
        let come = |part: usize| ids.iter().skip(part).step_by(8).map(|id| Client::come(member, id, true)).collect();
        let parts: Vec<_> = (0..8).map(|part| scope.spawn(move || -> Vec<Client> { come(part) })).collect();
        parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
    })
}

/// One gateway is gone for hundreds of devices at once. The rest of the fleet, and all devices.
fn storm(fleet: &mut Vec<Member>, goes: impl FnOnce(&mut Vec<Member>) -> Member) -> (Member, usize) {
    let ids: Vec<_> = (0..STORM).map(|number| format!("meter-{number}")).collect();
    let mut devices = all_come(&fleet[0], &ids);
    for device in &mut devices {
        device.subscribe("all", 1);
    }
    let mut publisher = Client::come(&fleet[1], "publisher", false);
    devices.drain(..STORM / 2).for_each(Client::cut);
    publisher.publish("all", "one", 1);
    let other = goes(fleet);
    drop(devices);
    publisher.publish("all", "two", 1);
    let since = Instant::now();
    let mut moved = all_come(&other, &ids);
    eprintln!("{STORM} devices have come within {:.1?}", since.elapsed());
    publisher.publish("all", "three", 1);
    for device in &mut moved {
        assert!(device.has_session);
        let mut heard = BTreeSet::new();
        while heard.len() < 3 {
            heard.insert(device.message(LATE).unwrap_or_else(|| panic!("only {heard:?}")).payload);
        }
    }
    let revived = metric(&other, "revived") as usize;
    (other, revived)
}

#[test]
fn a_storm_of_devices_of_a_dead_gateway() {
    let site = Site::new();
    let (servers, mut fleet) = fleet(&site, 1, 2, "");
    let (_other, revived) = storm(&mut fleet, |fleet| {
        kill(fleet, 0);
        fleet.remove(0)
    });
    assert_eq!(revived, STORM);
    assert_eq!(servers.rows("pulsegate_sessions"), STORM as u64);
}

#[test]
fn a_storm_of_devices_of_a_gateway_that_stands_still() {
    let site = Site::new();
    let (servers, mut fleet) = fleet(&site, 1, 2, "");
    let (_other, revived) = storm(&mut fleet, |fleet| {
        fleet[0].gateway.stop();
        fleet.remove(1)
    });
    assert_eq!(revived, STORM);
    assert_eq!(servers.rows("pulsegate_sessions"), STORM as u64);
    fleet[0].gateway.resume();
    wait_until("it is void there", LATE, || void(&fleet[0]) == STORM as u64);
}

/// A gateway that stands still for longer than its lease lasts: it is asked nothing any more, and nobody waits for it, whenever he comes.
#[test]
fn nobody_waits_for_a_gateway_that_stands_still_without_a_lease() {
    const DEVICES: u64 = 4;
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 2, "");
    let id = |number: u64| format!("meter-{number}");
    (0..DEVICES).for_each(|number| Client::subscriber(&fleet[0], &id(number), "set/#").cut());
    wait_until("all have gone", LATE, || servers.rows("pulsegate_devices") == 0);
    fleet[0].gateway.stop();
    wait_until("its lease has ended", LATE, || servers.rows("pulsegate_gateways") == 1);
    let mut overheard = Overheard::begin(servers.ports[0], "pulsegate.gateway.gate-0");
    for number in 0..DEVICES {
        let since = Instant::now();
        Client::back(&fleet[1], &id(number));
        eprintln!("{} has come within {:.1?}", id(number), since.elapsed());
        // Longer than one goes by what was read of a lease.
        std::thread::sleep(Duration::from_millis(1_200));
    }
    assert_eq!(overheard.so_far(), [""; 0]);
    assert_eq!(metric(&fleet[1], "revived"), DEVICES);
    fleet[0].gateway.resume();
    wait_until("they are void there", LATE, || void(&fleet[0]) == DEVICES);
}

/// What a member was given at a gateway that died and did not acknowledge comes to whoever is there, while that gateway is away; so does what
/// nobody had been given. When it is back it has nothing of either.
#[test]
fn what_a_group_was_given_goes_to_another_member() {
    let site = Site::new();
    let (_servers, mut fleet) = fleet(&site, 1, 2, "");
    Client::subscriber(&fleet[0], "two", "$share/g/jobs").cut();
    let mut one = Client::subscriber(&fleet[0], "one", "$share/g/jobs");
    let mut publisher = Client::come(&fleet[1], "publisher", false);
    let given = payloads(4);
    for job in &given {
        publisher.publish("jobs", job, 1);
        assert_eq!(&one.unanswered().0.payload, job);
    }
    wait_until("it is lent", LATE, || {
        fleet[0].gateway.metric("pulsegate_fleet_groups_unsettled") == given.len() as u64
    });
    let place = kill(&mut fleet, 0);
    publisher.publish("jobs", "meanwhile", 1);
    let mut one = Client::back(&fleet[0], "one");
    let expected: BTreeSet<_> = given.into_iter().chain(["meanwhile".to_owned()]).collect();
    let heard: BTreeSet<_> = expected.iter().map(|_| one.message(LATE).expect("all jobs").payload).collect();
    assert_eq!(heard, expected);
    let back = back(place);
    wait_until("it is void there", LATE, || void(&back) == 1);
    let mut two = Client::back(&back, "two");
    assert_eq!((two.message(QUIET), one.message(QUIET)), (None, None));
    // The one that went is a member where it is.
    drop(two);
    publisher.publish("jobs", "another", 1);
    one.hears("jobs", "another", 1);
}

fn payload_of(client: &mut Client, within: Duration) -> Option<String> {
    client.message(within).map(|heard| format!("{} {}", heard.topic, heard.payload))
}

/// Of a gateway that died: a will comes once, when its delay is over, unless its device has come or had gone in order; not again from the
/// gateway when it is back.
#[test]
fn a_will_comes_once_though_its_gateway_died() {
    let site = Site::new();
    let (servers, mut fleet) = fleet(&site, 1, 3, "");
    let mut watcher = Client::come(&fleet[2], "watcher", false);
    watcher.subscribe("wills/#", 1);
    let stays_away = Client::come_v5(&fleet[0], "stays-away", false, 300, Some(1));
    let comes = Client::come_v5(&fleet[0], "comes", false, 300, Some(1));
    Client::come_v5(&fleet[0], "in-order", false, 300, Some(1)).leave();
    // It was cut, and its delay is not over.
    Client::come_v5(&fleet[0], "was-away", false, 300, Some(4)).cut();
    wait_until("two are there", LATE, || fleet[0].gateway.connected() == 2);
    wait_until("rows are written", LATE, || servers.rows("pulsegate_sessions") == 4);
    let place = kill(&mut fleet, 0);
    drop((stays_away, comes));
    let comes = Client::come_v5(&fleet[0], "comes", false, 300, None);
    assert!(comes.has_session);
    let wills: BTreeSet<_> = (0..2).map(|_| payload_of(&mut watcher, LATE).expect("a will")).collect();
    assert_eq!(wills, BTreeSet::from(["wills/stays-away gone", "wills/was-away gone"].map(str::to_owned)));
    assert_eq!(payload_of(&mut watcher, WILLS_OVER), None);
    let sum = |fleet: &[Member]| -> u64 {
        fleet.iter().map(|member| member.gateway.metric("pulsegate_fleet_wills_of_dead_total")).sum()
    };
    assert_eq!(sum(&fleet), 2);
    let back = back(place);
    assert_eq!(payload_of(&mut watcher, WILLS_OVER), None, "not again");
    // A new connection has a new will, though it is the same.
    Client::come_v5(&back, "stays-away", false, 300, Some(1)).cut();
    assert_eq!(payload_of(&mut watcher, LATE).as_deref(), Some("wills/stays-away gone"));
    drop(comes);
}

/// Sessions of a dead gateway end when their time is over, and their wills come then at the latest.
#[test]
fn a_session_whose_gateway_died_ends_in_time() {
    let site = Site::new();
    let (servers, mut fleet) = fleet(&site, 1, 2, "");
    let mut watcher = Client::come(&fleet[1], "watcher", false);
    watcher.subscribe("wills/#", 1);
    let ends = Client::come_v5(&fleet[0], "ends", false, 3, Some(100));
    let stays = Client::come_v5(&fleet[0], "stays", false, 3_000, None);
    kill(&mut fleet, 0);
    drop((ends, stays));
    assert_eq!(servers.rows("pulsegate_sessions"), 2);
    assert_eq!(payload_of(&mut watcher, LATE).as_deref(), Some("wills/ends gone"));
    wait_until("one is left", LATE, || servers.rows("pulsegate_sessions") == 1);
    assert_eq!(fleet[0].gateway.metric("pulsegate_fleet_sessions_of_dead_expired_total"), 1);
    assert!(!Client::come_v5(&fleet[0], "ends", false, 300, None).has_session);
    assert!(Client::come_v5(&fleet[0], "stays", false, 300, None).has_session);
}

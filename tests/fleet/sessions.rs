//! Sessions go with their devices: whichever gateway a device comes to, it finds what waits for it and what is half done, once the other
//! gateway has given it; nothing is lost, and no will is published that should not be.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::mqtt::{Client, Heard};
use crate::support::{Gateway, Site, wait_until};
use crate::{LATE, Member, fleet, moves};

/// For as long nothing is heard that would come.
pub const QUIET: Duration = Duration::from_millis(700);

pub fn metric(member: &Member, name: &str) -> u64 {
    member.gateway.metric(&format!("pulsegate_fleet_sessions_{name}_total"))
}

/// Sessions here that are another gateway's by now: it has found so in their rows, or was told.
pub fn void(member: &Member) -> u64 {
    metric(member, "disowned") + metric(member, "given")
}

pub fn payloads(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{number:05}")).collect()
}

/// The device `meter` has come to a gateway, subscribed to `set/#`, and gone without a goodbye; so many messages wait for it since then.
#[track_caller]
pub fn so_many_wait(member: &Member, publisher: &mut Client, count: usize) -> Vec<String> {
    Client::subscriber(member, "meter", "set/#").cut();
    let expected = payloads(count);
    publisher.publish_all("set/a", &expected);
    expected
}

/// Until the gateway has taken all that the device has said: a connection that is reset takes the last acknowledgements with it.
#[track_caller]
fn settle(client: &mut Client) {
    client.unsubscribe("nothing/of/that/name");
}

/// What comes, until all of these have; each at least once, the first time in order. What was said before may come again between. It is
/// acknowledged when this returns.
#[track_caller]
pub fn hears_all(client: &mut Client, expected: &[String]) {
    let mut firsts = Vec::new();
    while firsts.len() < expected.len() {
        let heard = client.message(LATE).unwrap_or_else(|| panic!("{} of {} come", firsts.len(), expected.len()));
        if expected.contains(&heard.payload) && !firsts.contains(&heard.payload) {
            firsts.push(heard.payload);
        }
    }
    let wrong = firsts.iter().zip(expected).position(|(first, expected)| first != expected);
    assert_eq!(wrong.map(|at| &firsts[at..(at + 5).min(firsts.len())]), None);
    settle(client);
}

#[test]
fn a_device_that_moves_finds_its_session_and_what_waits_in_it() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 3, "");
    let mut publisher = Client::come(&fleet[2], "publisher", false);
    let mut device = Client::come(&fleet[0], "meter", true);
    assert!(!device.has_session);
    device.subscribe("set/#", 1);
    assert_eq!(servers.rows("pulsegate_sessions"), 1);
    // Away, with what waits.
    device.cut();
    let expected = payloads(300);
    publisher.publish_all("set/a", &expected);
    let mut device = Client::back(&fleet[1], "meter");
    hears_all(&mut device, &expected);
    publisher.publish("set/a", "now", 1);
    device.hears("set/a", "now", 1);
    wait_until("the other one has forgotten it", LATE, || metric(&fleet[0], "given") == 1);
    assert_eq!((metric(&fleet[1], "taken"), metric(&fleet[1], "begun_anew")), (1, 0));
    assert_eq!(fleet[1].gateway.metric("pulsegate_fleet_session_messages_taken_total"), 300);
    assert_eq!(fleet[0].gateway.metric("pulsegate_mqtt_sessions"), 0);
    // While it is connected: the other connection ends, and all is here.
    let mut again = Client::back(&fleet[2], "meter");
    publisher.publish("set/a", "there", 1);
    again.hears("set/a", "there", 1);
    drop(device);
    // It comes back to where its session was first.
    settle(&mut again);
    again.cut();
    publisher.publish("set/a", "back", 1);
    let mut back = Client::back(&fleet[0], "meter");
    back.hears("set/a", "back", 1);
    assert_eq!(back.message(QUIET), None, "nothing comes twice");
    assert_eq!(servers.rows("pulsegate_sessions"), 1);
    // It ends, and leaves nothing behind.
    back.cut();
    let clean = Client::come(&fleet[1], "meter", false);
    assert!(!clean.has_session);
    wait_until("its row is gone", LATE, || servers.rows("pulsegate_sessions") == 0);
    wait_until("so is its session", LATE, || fleet[0].gateway.metric("pulsegate_mqtt_sessions") == 0);
    drop(clean);
    assert!(!Client::come(&fleet[2], "meter", true).has_session);
}

/// Nobody turns a loop for a CONNECT that waits until another gateway gives its session.
#[test]
fn a_device_whose_session_is_under_way_costs_no_turns() {
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 2, "lease = \"30s\"");
    Client::subscriber(&fleet[0], "meter", "set/#").cut();
    wait_until("it is away", LATE, || fleet[0].gateway.connected() == 0);
    // What gives it says nothing, and lives for all that is known.
    fleet[0].gateway.signal(Signal::STOP);
    let mut device = Client::ask_to_come(fleet[1].gateway.address("mqtt"), &fleet[1].site, "meter", true);
    fleet[1].gateway.expect_connections(1);
    fleet[1].gateway.expect_quiet("waiting for its session");
    assert!(!device.is_answered(), "it waited all the time");
    fleet[0].gateway.signal(Signal::CONT);
    device.welcomed();
    assert!(device.has_session);
}

/// What was sent and is not acknowledged is sent again under its identifier; QoS 2 goes on where it was, both ways.
#[test]
fn what_is_half_done_goes_on_at_the_other_gateway() {
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 2, "");
    let mut publisher = Client::come(&fleet[0], "publisher", false);
    let mut watcher = Client::come(&fleet[0], "watcher", false);
    watcher.subscribe("up/#", 2);
    let mut device = Client::come(&fleet[0], "meter", true);
    device.subscribe("set/#", 2);
    for (payload, qos) in [("one", 2), ("two", 2), ("three", 1)] {
        publisher.publish("set/a", payload, qos);
    }
    // It has all of them, and says PUBREC of the first alone.
    let first = device.unanswered();
    let second = device.unanswered();
    let third = device.unanswered();
    assert_eq!((&*first.0.payload, &*second.0.payload, &*third.0.payload), ("one", "two", "three"));
    device.say(0x50, first.1);
    device.expect(0x62, first.1);
    // And it publishes, and hears PUBREC.
    let own = device.send("up/a", "mine", 2);
    device.expect(0x50, own);
    device.cut();
    publisher.publish("set/a", "four", 2);
    let mut device = Client::back(&fleet[1], "meter");
    // PUBREL of the first, the others again under their identifiers, and then the new one.
    device.expect(0x62, first.1);
    device.say(0x70, first.1);
    assert_eq!(device.unanswered(), second);
    assert_eq!(device.unanswered(), third);
    device.say(0x50, second.1);
    device.expect(0x62, second.1);
    device.say(0x70, second.1);
    device.say(0x40, third.1);
    device.hears("set/a", "four", 2);
    // What it says again of its own is swallowed, and ended.
    device.send_as("up/a", "mine", 2, own);
    device.expect(0x50, own);
    device.say(0x62, own);
    device.expect(0x70, own);
    watcher.hears("up/a", "mine", 2);
    assert_eq!(watcher.message(QUIET), None, "once");
    assert_eq!(device.message(QUIET), None);
}

#[test]
fn of_a_gateway_that_does_not_answer_or_has_died_the_session_is_begun_again_and_is_void_there() {
    let site = Site::new();
    let (servers, mut fleet) = fleet(&site, 1, 2, "");
    Client::subscriber(&fleet[0], "meter", "set/#").cut();
    wait_until("it is away", LATE, || fleet[0].gateway.connected() == 0);
    // Frozen, and then killed while it is.
    fleet[0].gateway.signal(Signal::STOP);
    let mut device = Client::back(&fleet[1], "meter");
    assert_eq!(metric(&fleet[1], "revived"), 1);
    device.subscribe("other/#", 1);
    fleet[0].gateway.signal(Signal::CONT);
    wait_until("it disowns what it lost", LATE, || {
        fleet[0].gateway.metric("pulsegate_mqtt_sessions") == 0 && fleet[0].fleet()["state"] == "connected"
    });
    // One that was killed, and comes back when the session is another's.
    device.cut();
    let mut device = Client::back(&fleet[0], "meter");
    device.subscribe("set/#", 1);
    let Member { site: of_gateway, gateway } = fleet.remove(0);
    gateway.signal(Signal::KILL);
    drop((gateway, device));
    let mut device = Client::back(&fleet[0], "meter");
    device.unsubscribe("set/#");
    device.subscribe("here/#", 1);
    let back = Member { gateway: Gateway::start(of_gateway.directory()), site: of_gateway };
    back.wait_until_joined();
    wait_until("it is void there", LATE, || void(&back) == 1);
    device.cut();
    let mut device = Client::back(&back, "meter");
    let mut publisher = Client::come(&back, "publisher", false);
    publisher.publish("set/a", "x", 1);
    publisher.publish("here/a", "y", 1);
    device.hears("here/a", "y", 1);
    assert_eq!(servers.rows("pulsegate_sessions"), 1);
    // A row of a gateway of the version before, which died, does not tell what the session was.
    let row = serde_json::json!({"node": "gate-9", "moves": 1});
    servers.ask("$KV.pulsegate_sessions.old", &row);
    assert!(!Client::come(&back, "old", true).has_session);
    assert_eq!(metric(&back, "begun_anew"), 1);
}

/// Either gateway is killed at some instant of the way. Whoever has it then has all of it.
#[test]
fn a_gateway_killed_on_the_way_loses_nothing() {
    let site = Site::new();
    // What a gateway had taken a moment before it died comes again, each time.
    let (_servers, mut fleet) = fleet(&site, 1, 2, "[limits]\nsession_messages = 20000");
    let mut publisher = Client::come(&fleet[0], "publisher", true);
    let expected = so_many_wait(&fleet[0], &mut publisher, 2_000);
    drop(publisher);
    // The one that takes it dies again and again.
    for delay in [5, 20, 40, 80, 160, 320] {
        let Member { site: of_gateway, gateway } = fleet.remove(1);
        let asked = Client::ask_to_come(gateway.address("mqtt"), &of_gateway, "meter", true);
        std::thread::sleep(Duration::from_millis(delay));
        gateway.signal(Signal::KILL);
        drop((gateway, asked));
        let member = Member { gateway: Gateway::start(of_gateway.directory()), site: of_gateway };
        member.wait_until_joined();
        fleet.push(member);
    }
    let mut device = Client::back(&fleet[1], "meter");
    hears_all(&mut device, &expected);
    // The one that gives it dies when it has been taken: it may not have been told.
    device.cut();
    let mut publisher = Client::come(&fleet[1], "publisher", true);
    let expected: Vec<_> = payloads(4_000).split_off(2_000);
    publisher.publish_all("set/a", &expected);
    let mut device = Client::back(&fleet[0], "meter");
    let Member { site: of_gateway, gateway } = fleet.remove(1);
    gateway.signal(Signal::KILL);
    drop((gateway, publisher));
    hears_all(&mut device, &expected);
    let back = Member { gateway: Gateway::start(of_gateway.directory()), site: of_gateway };
    back.wait_until_joined();
    device.cut();
    let mut device = Client::back(&back, "meter");
    assert_eq!(device.message(QUIET), None, "what it had had itself is void");
}

#[test]
fn while_nats_is_away_sessions_are_where_they_are_and_are_verified_afterwards() {
    let site = Site::new();
    let (mut servers, fleet) = fleet(&site, 1, 2, "");
    Client::subscriber(&fleet[0], "meter", "set/#").cut();
    servers.stop(0, Signal::KILL);
    for member in &fleet {
        wait_until("it is away", LATE, || member.fleet()["state"] == "away");
    }
    // Here it is found, there it is not.
    let device = Client::back(&fleet[0], "meter");
    drop(device);
    let mut new = Client::come(&fleet[1], "new", true);
    assert!(!new.has_session);
    new.subscribe("new/#", 1);
    assert!(metric(&fleet[1], "unasked") >= 1);
    servers.start(0, &[]);
    fleet.iter().for_each(Member::wait_until_joined);
    wait_until("what began meanwhile has a row", LATE, || servers.rows("pulsegate_sessions") == 2);
    drop(new);
    assert!(Client::come(&fleet[0], "new", true).has_session);
    assert!(Client::come(&fleet[1], "meter", true).has_session);
}

/// One device moves again and again, while others publish to it at both gateways and it publishes itself.
#[test]
fn nothing_is_lost_of_a_device_that_moves_under_load() {
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 2, "");
    let mut watcher = Client::subscriber(&fleet[0], "watcher", "up/#");
    let mut device = Client::subscriber(&fleet[0], "meter", "set/#");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (sent, heard, said) = std::thread::scope(|scope| {
        let publishers: Vec<_> = fleet
            .iter()
            .enumerate()
            .map(|(place, member)| {
                let stop = &stop;
                scope.spawn(move || {
                    let mut publisher = Client::come(member, &format!("publisher-{place}"), false);
                    let mut sent = Vec::new();
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let payload = format!("{place}-{:06}", sent.len());
                        publisher.publish("set/a", &payload, 1);
                        sent.push(payload);
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    sent
                })
            })
            .collect();
        let (mut heard, mut said) = (Vec::new(), Vec::new());
        for number in 0..moves(100) {
            let mut next = Client::come(&fleet[(number + 1) % 2], "meter", true);
            assert!(next.has_session, "at move {number}");
            // What the one before had been sent and had not acknowledged comes again.
            let until = Instant::now() + Duration::from_millis(60);
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                heard.extend(next.message(left));
            }
            next.publish("up/a", &number.to_string(), 1);
            said.push(number.to_string());
            heard.extend(next.heard());
            if number % 3 == 0 {
                next.cut();
            } else {
                drop(std::mem::replace(&mut device, next));
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let sent: Vec<Vec<String>> = publishers.into_iter().map(|publisher| publisher.join().unwrap()).collect();
        (sent, heard, said)
    });
    drop(device);
    let mut device = Client::come(&fleet[1], "meter", true);
    let all: BTreeSet<String> = sent.iter().flatten().cloned().collect();
    let mut got: BTreeSet<String> = heard.iter().map(|heard: &Heard| heard.payload.clone()).collect();
    let deadline = Instant::now() + LATE;
    while got.len() < all.len() && Instant::now() < deadline {
        got.extend(device.message(Duration::from_secs(2)).map(|heard| heard.payload));
    }
    let lost: Vec<_> = all.difference(&got).collect();
    assert!(lost.is_empty(), "{} of {} are lost: {lost:?}", lost.len(), all.len());
    let mut up = BTreeSet::new();
    while up.len() < said.len() {
        up.insert(watcher.message(LATE).expect("what it published").payload);
    }
    assert_eq!(fleet.iter().map(|member| metric(member, "begun_anew")).sum::<u64>(), 0);
}

/// Many at once, connected and away; and what a member of a group was given goes with its session.
#[test]
fn a_gateway_that_is_left_by_all_gives_all_of_them() {
    const DEVICES: usize = 120;
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 2, "");
    let id = |number: usize| format!("meter-{number}");
    let come = |member: &Member, keeps: bool| -> Vec<Client> {
        std::thread::scope(|scope| {
            let come = |part: usize| {
                (part..DEVICES).step_by(8).map(|number| Client::come(member, &id(number), keeps)).collect()
            };
            let parts: Vec<_> = (0..8).map(|part| scope.spawn(move || -> Vec<Client> { come(part) })).collect();
            parts.into_iter().flat_map(|part| part.join().unwrap()).collect()
        })
    };
    let mut devices = come(&fleet[0], true);
    for device in &mut devices {
        device.subscribe("all", 1);
    }
    Client::subscriber(&fleet[0], "member", "$share/g/jobs").cut();
    let mut publisher = Client::come(&fleet[0], "publisher", false);
    publisher.publish("jobs", "job", 1);
    // Half of them are away.
    devices.drain(..DEVICES / 2).for_each(Client::cut);
    publisher.publish("all", "one", 1);
    let mut moved = come(&fleet[1], true);
    publisher.publish("all", "two", 1);
    for device in &mut moved {
        assert!(device.has_session);
        let heard: BTreeSet<String> = (0..2).map(|_| device.message(LATE).expect("both").payload).collect();
        assert_eq!(heard.len(), 2, "one and two");
    }
    let mut member = Client::back(&fleet[1], "member");
    member.hears("jobs", "job", 1);
    let mut publisher = Client::come(&fleet[1], "publisher", false);
    publisher.publish("jobs", "another", 1);
    member.hears("jobs", "another", 1);
    drop(devices);
    wait_until("nothing is left there", LATE, || fleet[0].gateway.metric("pulsegate_mqtt_sessions") == 0);
    assert_eq!(servers.rows("pulsegate_sessions"), DEVICES as u64 + 1);
    assert_eq!(metric(&fleet[1], "taken"), DEVICES as u64 + 1);
}

/// NATS dies while a session is on its way, or the gateway that gives it stands still for longer than its lease: it is whole at one of the
/// two, or begun anew and void at the other.
#[test]
fn nats_dies_or_the_giver_stands_still_on_the_way() {
    let site = Site::new();
    let (mut servers, fleet) = fleet(&site, 1, 2, "[limits]\nsession_messages = 5000");
    let mut publisher = Client::come(&fleet[0], "publisher", true);
    let expected = so_many_wait(&fleet[0], &mut publisher, 1_000);
    drop(publisher);
    for delay in [10, 60, 150] {
        let asked = Client::ask_to_come(fleet[1].gateway.address("mqtt"), &fleet[1].site, "meter", true);
        std::thread::sleep(Duration::from_millis(delay));
        servers.stop(0, Signal::KILL);
        drop(asked);
        servers.start(0, &[]);
        for member in &fleet {
            wait_until("it is there again", LATE, || member.fleet()["state"] == "connected");
        }
    }
    wait_until("the connections are gone", LATE, || fleet[1].gateway.connected() == 0);
    let mut device = Client::back(&fleet[1], "meter");
    hears_all(&mut device, &expected);
    device.subscribe("more/#", 1);
    device.cut();
    let asked = Client::ask_to_come(fleet[0].gateway.address("mqtt"), &fleet[0].site, "meter", true);
    std::thread::sleep(Duration::from_millis(20));
    fleet[1].gateway.signal(Signal::STOP);
    let frozen = Instant::now();
    wait_until("its lease has ended", LATE, || servers.rows("pulsegate_gateways") == 1);
    assert!(frozen.elapsed() < LATE);
    drop(asked);
    let mut device = Client::come(&fleet[0], "meter", true);
    let has_all = device.has_session;
    fleet[1].gateway.signal(Signal::CONT);
    wait_until("it is back", LATE, || fleet[1].fleet()["state"] == "connected");
    wait_until("it has nothing of it", LATE, || fleet[1].gateway.metric("pulsegate_mqtt_sessions") == 0);
    if !has_all {
        device.subscribe("more/#", 1);
    }
    let mut publisher = Client::come(&fleet[1], "publisher", false);
    publisher.publish("more/a", "x", 1);
    hears_all(&mut device, &["x".to_owned()]);
}

/// A will of a device that has come elsewhere: one that waits is not published, of either protocol version.
#[test]
fn a_will_that_waits_is_forgotten_when_its_device_comes_elsewhere() {
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 2, "");
    let mut watcher = Client::come(&fleet[0], "watcher", false);
    watcher.subscribe("wills/#", 1);
    let first = Client::come_v5(&fleet[0], "meter", false, 300, Some(2));
    first.cut();
    wait_until("it is away", LATE, || fleet[0].gateway.connected() == 1);
    let second = Client::come_v5(&fleet[1], "meter", false, 300, None);
    assert!(second.has_session);
    second.cut();
    assert_eq!(watcher.message(Duration::from_secs(4)), None, "its delay was over while it was away elsewhere");
    // A clean start ends the session, and its will is published then.
    let third = Client::come_v5(&fleet[0], "meter", false, 300, Some(200));
    assert!(third.has_session);
    third.cut();
    wait_until("it is away", LATE, || fleet[0].gateway.connected() == 1);
    let fourth = Client::come_v5(&fleet[1], "meter", true, 300, None);
    assert!(!fourth.has_session);
    watcher.hears("wills/meter", "gone", 1);
}

/// emqx 14799: CONNACK came before the takeover was over, and what was published in between was lost. Here whatever is acknowledged after
/// CONNACK comes to the connection that has it, and the one before has ended.
#[test]
fn connack_comes_when_the_takeover_is_over() {
    let site = Site::new();
    let (_servers, fleet) = fleet(&site, 1, 2, "");
    let mut publishers = [0, 1].map(|at: usize| Client::come(&fleet[at], &format!("publisher-{at}"), false));
    let mut device = Client::subscriber(&fleet[0], "meter", "set/#");
    for number in 0..20 {
        let mut next = Client::come(&fleet[(number + 1) % 2], "meter", true);
        assert!(next.has_session, "at move {number}");
        // At the gateway that it left, and at the one that it came to.
        for (at, publisher) in publishers.iter_mut().enumerate() {
            let payload = format!("{number}-{at}");
            publisher.publish("set/a", &payload, 1);
            while next.message(LATE).unwrap_or_else(|| panic!("{payload} does not come")).payload != payload {}
        }
        settle(&mut next);
        device = next;
    }
    drop(device);
}

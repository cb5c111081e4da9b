//! What stands in the bucket of sessions for whoever goes on with them: rows that are true before a device is told, written where something
//! else is so and not for messages; and how far each gateway has come, which waits for nobody for long.

use std::time::{Duration, Instant};

use pulsegate::fleet::{Cursor, SessionRow};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::mqtt::Client;
use crate::servers::Servers;
use crate::support::{Site, wait_until};
use crate::{LATE, Member, end, fleet};

/// The last message under a subject of the bucket: its revision, and what it says.
fn last(servers: &Servers, key: &str) -> Option<(u64, Vec<u8>)> {
    let asked = json!({"last_by_subj": format!("$KV.pulsegate_sessions.{key}")});
    let answer = servers.ask("$JS.API.STREAM.MSG.GET.KV_pulsegate_sessions", &asked);
    let message = answer.get("message")?;
    Some((message["seq"].as_u64()?, decoded(message["data"].as_str()?)))
}

pub fn decoded(base64: &str) -> Vec<u8> {
    let value = |byte: u8| {
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".iter().position(|one| *one == byte)
    };
    let digits: Vec<usize> = base64.bytes().filter_map(value).collect();
    let group = |four: &[usize]| {
        let bits = four.iter().enumerate().fold(0, |bits, (place, digit)| bits | digit << (18 - 6 * place));
        (0..four.len() - 1).map(|place| (bits >> (16 - 8 * place)) as u8).collect::<Vec<_>>()
    };
    digits.chunks(4).flat_map(group).collect()
}

fn row(servers: &Servers, device: &str) -> Option<(u64, SessionRow)> {
    last(servers, device).map(|(revision, bytes)| (revision, serde_json::from_slice(&bytes).unwrap()))
}

fn cursor(servers: &Servers, node: &str) -> Option<Cursor> {
    last(servers, &format!("cursor.{node}")).map(|(_, bytes)| serde_json::from_slice(&bytes).unwrap())
}

fn filters(row: &SessionRow) -> Vec<String> {
    row.outline().unwrap().subscriptions.iter().map(|one| one.filter.to_string()).collect()
}

fn end_of_stream(servers: &Servers) -> u64 {
    let info: Value = servers.ask("$JS.API.STREAM.INFO.pulsegate_uplink", &json!({}));
    info["state"]["last_seq"].as_u64().unwrap()
}

#[track_caller]
fn wait_for_cursor(servers: &Servers, node: &str) {
    wait_until("all that was published is needed no more", LATE, || {
        cursor(servers, node).is_some_and(|cursor| cursor.position == end_of_stream(servers))
    });
}

#[test]
fn a_row_is_true_before_its_device_is_told_and_messages_write_nothing() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 2, "");
    let mut publisher = Client::come(&fleet[1], "publisher", false);
    let mut device = Client::come(&fleet[0], "meter", true);
    let (first, begun) = row(&servers, "meter").unwrap();
    assert_eq!((&*begun.node, filters(&begun)), ("gate-0", Vec::new()));
    device.subscribe("set/#", 1);
    let (second, subscribed) = row(&servers, "meter").unwrap();
    assert_eq!(filters(&subscribed), ["set/#"]);
    device.subscribe("$share/group/all", 1);
    assert_eq!(filters(&row(&servers, "meter").unwrap().1), ["$share/group/all", "set/#"]);
    device.unsubscribe("$share/group/all");
    let (third, now) = row(&servers, "meter").unwrap();
    assert!(first < second && second < third && now == subscribed);
    // It comes and goes, hears, and asks for what it has.
    for number in 0..50 {
        publisher.publish("set/a", &number.to_string(), 1);
        device.hears("set/a", &number.to_string(), 1);
    }
    device.cut();
    let mut device = Client::come(&fleet[0], "meter", true);
    device.subscribe("set/#", 1);
    assert!(device.has_session);
    assert_eq!(row(&servers, "meter").unwrap(), (third, now));
    wait_for_cursor(&servers, "gate-0");
    assert_eq!(row(&servers, "meter").unwrap().0, third);
}

/// Of a device that comes again and subscribes to what it has NATS is asked nothing beside its CONNECT.
#[test]
fn who_subscribes_to_what_it_has_waits_for_nobody() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 1, "lease = \"20s\"");
    let mut device = Client::come(&fleet[0], "meter", true);
    device.subscribe("set/#", 1);
    device.subscribe("$share/group/jobs", 1);
    device.cut();
    let mut device = Client::come(&fleet[0], "meter", true);
    // The server says nothing any more, and whoever asks it waits.
    servers.signal(0, Signal::STOP);
    let begun = Instant::now();
    device.subscribe("set/#", 1);
    device.subscribe("$share/group/jobs", 1);
    device.unsubscribe("nothing");
    let took = begun.elapsed();
    servers.signal(0, Signal::CONT);
    assert!(took < Duration::from_millis(500), "{took:?}: it has waited");
}

#[test]
fn a_will_that_is_gone_from_its_session_goes_from_its_row() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 1, "");
    let will = |servers: &Servers| row(servers, "meter").and_then(|(_, row)| row.outline().unwrap().head.will);
    let device = Client::come_v5(&fleet[0], "meter", false, 300, Some(1));
    assert_eq!(will(&servers).unwrap().delay_s, 1);
    device.cut();
    wait_until("it was published", LATE, || will(&servers).is_none());
    let device = Client::come_v5(&fleet[0], "meter", false, 200, Some(100));
    let (_, again) = row(&servers, "meter").unwrap();
    assert_eq!(again.outline().unwrap().head.profile.expiry_s, 200);
    assert_eq!(will(&servers).unwrap().delay_s, 100);
    drop(device);
}

#[test]
fn a_session_that_lags_gets_a_place_of_its_own_and_holds_up_the_others_no_more() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 2, "");
    let mut publisher = Client::come(&fleet[1], "publisher", false);
    let mut device = Client::come(&fleet[0], "meter", true);
    device.subscribe("set/#", 1);
    publisher.publish("set/a", "before", 1);
    device.hears("set/a", "before", 1);
    wait_for_cursor(&servers, "gate-0");
    let before = end_of_stream(&servers);
    device.cut();
    wait_until("it is away", LATE, || fleet[0].gateway.connected() == 0);
    publisher.publish("set/a", "waits", 1);
    wait_until("its row has a place", LATE, || row(&servers, "meter").unwrap().1.from.is_some());
    let from = row(&servers, "meter").unwrap().1.from.unwrap();
    assert!(from.position <= before, "{from:?} is past what waits behind {before}");
    publisher.publish("other", "x", 1);
    wait_for_cursor(&servers, "gate-0");
    let mut device = Client::come(&fleet[0], "meter", true);
    device.hears("set/a", "waits", 1);
    wait_until("it needs none any more", LATE, || row(&servers, "meter").unwrap().1.from.is_none());
    wait_for_cursor(&servers, "gate-0");
    assert!(fleet[0].gateway.metric("pulsegate_fleet_session_rows_placed_total") >= 1);
}

#[test]
fn while_nats_is_away_nobody_waits_for_rows_and_they_are_written_afterwards() {
    let site = Site::new();
    let (mut servers, fleet) = fleet(&site, 1, 1, "");
    let mut device = Client::come(&fleet[0], "meter", true);
    device.subscribe("set/#", 1);
    servers.stop(0, Signal::KILL);
    wait_until("it is away", LATE, || fleet[0].fleet()["state"] == "away");
    device.subscribe("more/#", 1);
    servers.start(0, &[]);
    wait_until("the row is written", LATE, || {
        row(&servers, "meter").is_some_and(|(_, row)| filters(&row) == ["more/#", "set/#"])
    });
}

/// Whoever goes on with its sessions has little to read again, and nothing of those who had all.
#[test]
fn a_gateway_that_ends_says_how_far_it_has_come() {
    let site = Site::new();
    let (servers, mut fleet) = fleet(&site, 1, 2, "");
    let mut publisher = Client::come(&fleet[1], "publisher", false);
    let mut waits = Client::come(&fleet[0], "waits", true);
    waits.subscribe("set/#", 1);
    waits.cut();
    let mut has_all = Client::come(&fleet[0], "has-all", true);
    has_all.subscribe("set/#", 1);
    wait_until("the other one is away", LATE, || fleet[0].gateway.connected() == 1);
    publisher.publish("set/a", "x", 1);
    has_all.hears("set/a", "x", 1);
    // It is acknowledged by then.
    has_all.unsubscribe("nothing");
    std::thread::sleep(Duration::from_millis(20));
    let Member { gateway, site: _site } = fleet.remove(0);
    end(gateway);
    assert_eq!(servers.rows("pulsegate_gateways"), 1, "its lease is given back");
    let from = row(&servers, "waits").unwrap().1.from.unwrap_or_else(|| cursor(&servers, "gate-0").unwrap());
    assert!(from.position < end_of_stream(&servers), "{from:?}: what waits is lost");
}

/// The longest image that a row holds, and more of filters than that.
const ROW_MAX: usize = 256 << 10;

/// A session that has subscribed to more than a row holds goes with its device as any other, in pieces, and survives no gateway. One that has
/// become smaller does.
#[test]
fn a_session_that_is_too_long_for_its_row_moves_and_does_not_survive_its_gateway() {
    let site = Site::new();
    let (servers, mut fleet) = fleet(&site, 1, 3, "");
    let mut publisher = Client::come(&fleet[0], "publisher", false);
    let long = "x".repeat(1_200);
    let filters: Vec<_> = (0..250).map(|number| format!("set/{number:03}/{long}")).collect();
    assert!(filters.iter().map(String::len).sum::<usize>() > ROW_MAX);
    let mut device = Client::come(&fleet[2], "meter", true);
    for some in filters.chunks(50) {
        device.ask_to_subscribe(&some.iter().map(String::as_str).collect::<Vec<_>>(), 1);
        device.subscribed();
    }
    let outline = |servers: &Servers| row(servers, "meter").unwrap().1.outline();
    assert!(outline(&servers).is_none());
    assert!(fleet[2].gateway.metric("pulsegate_fleet_session_rows_too_large_total") > 0);
    device.cut();
    publisher.publish(&filters[0], "waits", 1);
    let mut device = Client::back(&fleet[1], "meter");
    device.hears(&filters[0], "waits", 1);
    publisher.publish(&filters[249], "there", 1);
    device.hears(&filters[249], "there", 1);
    // Killed, it is gone; and can be begun anew.
    let site_of_dead = crate::survivors::kill(&mut fleet, 1);
    drop(device);
    publisher.publish(&filters[0], "lost", 1);
    let mut device = Client::come(&fleet[1], "meter", true);
    assert!(!device.has_session);
    assert_eq!(fleet[1].gateway.metric("pulsegate_fleet_sessions_begun_anew_total"), 1);
    for some in filters.chunks(50) {
        device.ask_to_subscribe(&some.iter().map(String::as_str).collect::<Vec<_>>(), 1);
        device.subscribed();
    }
    assert!(outline(&servers).is_none());
    for filter in &filters[..100] {
        device.unsubscribe(filter);
    }
    assert_eq!(outline(&servers).unwrap().subscriptions.len(), 150);
    crate::survivors::kill(&mut fleet, 1);
    drop(device);
    publisher.publish(&filters[249], "goes on", 1);
    let mut device = Client::back(&fleet[0], "meter");
    device.hears(&filters[249], "goes on", 1);
    let back = crate::survivors::back(site_of_dead);
    wait_until("it is void there", LATE, || back.gateway.metric("pulsegate_mqtt_sessions") == 0);
}

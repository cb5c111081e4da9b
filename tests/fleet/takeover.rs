//! One device, two gateways: the later connection stays, the other is told; and a gateway that stood still disowns what it lost.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use pulsegate::codec::native::CloseCode;
use rustix::process::Signal;
use serde_json::json;

use crate::nats::nats_tell;
use crate::servers::Servers;
use crate::support::{Device, Event, Site, wait_until};
use crate::{LATE, fleet, heard, members};

#[test]
fn the_later_connection_wins_across_gateways_and_the_other_is_told() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 3, "");
    let mut device = fleet[0].claimed("twin");
    for round in 1..30 {
        let member = &fleet[round % 3];
        let mut next = member.device("twin");
        device.expect_close(CloseCode::TAKEN_OVER);
        member.wait_for_claims(1);
        // The late end of the other connection takes nothing away.
        drop(device);
        for other in &fleet {
            wait_until("it is found where it is", LATE, || other.send("twin", "here").0 == 200);
            while heard(&mut next).1 != "here" {}
        }
        device = next;
    }
    assert_eq!(servers.rows("pulsegate_devices"), 1);
    let won = |member: &crate::Member| member.fleet()["takeovers"]["won"].as_u64().unwrap();
    assert_eq!(fleet.iter().map(won).sum::<u64>(), 29);
    device.leave();
    wait_until("nobody is listed", LATE, || servers.rows("pulsegate_devices") == 0);
}

#[test]
fn a_storm_of_one_id_over_three_gateways_leaves_one_connection() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 3, "");
    let twins: Vec<Device> = std::thread::scope(|scope| {
        let come = |number: usize| fleet[number % 3].device("twin");
        let twins: Vec<_> = (0..30).map(|number| scope.spawn(move || come(number))).collect();
        twins.into_iter().map(|twin| twin.join().unwrap()).collect()
    });
    wait_until("one is left", LATE, || fleet.iter().map(|member| member.gateway.connected()).sum::<u64>() == 1);
    wait_until("all is said", LATE, || fleet.iter().all(|member| member.fleet()["devices"]["waiting"] == 0));
    assert_eq!(servers.rows("pulsegate_devices"), 1);
    let claimed: Vec<u64> = fleet.iter().map(|member| member.fleet()["devices"]["claimed"].as_u64().unwrap()).collect();
    let there: Vec<u64> = fleet.iter().map(|member| member.gateway.connected()).collect();
    assert_eq!(claimed, there, "its row says where it is");
    for member in &fleet {
        assert_eq!(member.send("twin", "x").0, 200);
    }
    drop(twins);
}

/// What it would be told meanwhile is told to nobody: it might come behind what was said later.
#[test]
fn a_gateway_that_stood_still_carries_out_nothing_that_was_wanted_meanwhile() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 2, "");
    let mut device = fleet[0].claimed("meter-1");
    // A device of the other gateway is asked for by NATS: either of them hears that.
    let mut other = fleet[1].claimed("meter-2");
    fleet[0].gateway.signal(Signal::STOP);
    let mut told = Vec::new();
    std::thread::scope(|scope| {
        let mut asked = Vec::new();
        for round in 0..10 {
            let fleet = &fleet;
            asked.push(scope.spawn(move || fleet[1].send("meter-1", &format!("old {round}"))));
            told.push(nats_tell(
                servers.ports[0],
                "pulsegate.send.meter-2",
                &json!({"payload": format!("old {round}")}),
            ));
        }
        for answer in asked {
            let (status, answer) = answer.join().unwrap();
            assert!(status >= 500 || status == 404, "{answer}");
        }
    });
    fleet[0].gateway.signal(Signal::CONT);
    fleet[0].wait_until_joined();
    wait_until("it serves again", LATE, || fleet[1].send("meter-1", "new").0 == 200);
    assert_eq!(heard(&mut device).1, "new");
    // Those that the other gateway heard came at once; none comes behind what is said now.
    assert_eq!(fleet[1].send("meter-2", "new").0, 200);
    while heard(&mut other).1 != "new" {}
    assert!(!matches!(other.hear_within(Duration::from_secs(1)), Some(Event::Message { .. })));
}

#[test]
fn of_very_many_requests_to_a_frozen_gateway_none_is_carried_out_later() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 1, "");
    let member = &fleet[0];
    let mut device = member.device("meter-1");
    member.wait_for_claims(1);
    let before = member.gateway.metric("pulsegate_fleet_requests_total");
    member.gateway.signal(Signal::STOP);
    let frozen = Instant::now();
    let count = 2_000;
    let mut socket = TcpStream::connect(("127.0.0.1", servers.ports[0])).unwrap();
    socket.set_read_timeout(Some(LATE)).unwrap();
    let body = json!({"payload": "late"}).to_string();
    let requests = format!("PUB pulsegate.send.meter-1 _INBOX.x {}\r\n{body}\r\n", body.len()).repeat(count);
    socket.write_all(format!("CONNECT {{\"verbose\":false}}\r\n{requests}PING\r\n").as_bytes()).unwrap();
    let mut lines = BufReader::new(socket).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "PONG"), "the server has taken them");
    // It stands still for longer than what is asked may wait.
    while frozen.elapsed() < Duration::from_millis(1_500) {
        std::thread::sleep(Duration::from_millis(10));
    }
    member.gateway.signal(Signal::CONT);
    wait_until("it has heard all", LATE, || {
        member.gateway.metric("pulsegate_fleet_requests_total") >= before + count as u64
    });
    assert_eq!(member.send("meter-1", "new").0, 200);
    assert_eq!(heard(&mut device).1, "new");
}

#[test]
fn a_gateway_that_stood_still_for_longer_than_its_lease_disowns_what_it_lost() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 2, "");
    let mut moved = fleet[0].device("moved");
    let mut stays = fleet[0].device("stays");
    fleet[0].wait_for_claims(2);
    fleet[0].gateway.signal(Signal::STOP);
    let mut again = fleet[1].claimed("moved");
    wait_until("the lease has ended", LATE, || servers.rows("pulsegate_gateways") == 1);
    fleet[0].gateway.signal(Signal::CONT);
    moved.expect_close(CloseCode::TAKEN_OVER);
    fleet[0].wait_for_claims(1);
    assert_eq!(fleet[1].send("stays", "still here").0, 200);
    assert_eq!(heard(&mut stays).1, "still here");
    assert_eq!(fleet[0].send("moved", "and here").0, 200);
    assert_eq!(heard(&mut again).1, "and here");
    assert!(!matches!(again.hear_within(Duration::from_millis(1)), Some(Event::Close { .. })));
}

/// Of two connections the later one stays, whichever is claimed first: gateways say for how long they have had a device.
#[test]
fn whoever_came_last_stays_though_nats_was_away() {
    let site = Site::new();
    let (mut servers, fleet) = fleet(&site, 1, 2, "");
    let mut claimed = fleet[0].claimed("claimed before");
    servers.stop(0, Signal::KILL);
    for member in &fleet {
        wait_until("it is away", LATE, || member.fleet()["state"] == "away");
    }
    // At the other gateway later, and there and back.
    let mut moved = fleet[1].device("claimed before");
    let mut first = [fleet[0].device("to 1"), fleet[1].device("to 0")];
    let mut last = [fleet[1].device("to 1"), fleet[0].device("to 0")];
    servers.start(0, &[]);
    claimed.expect_close(CloseCode::TAKEN_OVER);
    for device in &mut first {
        device.expect_close(CloseCode::TAKEN_OVER);
    }
    fleet[0].wait_for_claims(1);
    fleet[1].wait_for_claims(2);
    for (id, device) in [("claimed%20before", &mut moved), ("to%201", &mut last[0])] {
        assert_eq!(fleet[0].send(id, "here").0, 200);
        assert_eq!(heard(device).1, "here");
    }
    assert_eq!(fleet[1].send("to%200", "here").0, 200);
    assert_eq!(heard(&mut last[1]).1, "here");
}

/// A row of a connection that has gone may stand for as long as its gateway has much to do: whoever comes is not ended for it.
#[test]
fn a_row_of_a_connection_that_is_gone_costs_no_newcomer_anything() {
    let site = Site::new();
    let mut servers = Servers::new(&site, 1);
    servers.start_all();
    let urls = servers.urls("nats");
    // This one writes and removes ten rows a second: the rows stand for seconds.
    let slow = crate::Member::joined("gate-0", &urls, "writes_per_second = 10");
    let other = crate::Member::joined("gate-1", &urls, "");
    let devices: Vec<_> = (0..40).map(|number| slow.device(&format!("meter-{number}"))).collect();
    slow.wait_for_claims(40);
    drop(devices);
    let mut again: Vec<_> = (0..40).map(|number| other.device(&format!("meter-{number}"))).collect();
    other.wait_for_claims(40);
    slow.wait_for_claims(0);
    assert_eq!(servers.rows("pulsegate_devices"), 40);
    assert_eq!((&other.fleet()["takeovers"]["lost"], &slow.fleet()["takeovers"]["lost"]), (&json!(0), &json!(0)));
    for (number, device) in again.iter_mut().enumerate() {
        assert_eq!(slow.send(&format!("meter-{number}"), "x").0, 200);
        assert_eq!(heard(device).1, "x");
    }
}

/// NATS gives each gateway its part of what is asked by `send`, one that stands still too, until the server notices.
#[test]
fn a_server_that_asks_often_gives_the_part_of_a_frozen_gateway_to_the_others() {
    let site = Site::new();
    let mut servers = Servers::new(&site, 1);
    site.write("nats.conf", "ping_interval: \"500ms\"\nping_max: 2\n");
    servers.start(0, &["-c", "nats.conf"]);
    let fleet = members(2, &servers.urls("nats"), "");
    let mut device = fleet[1].claimed("meter-1");
    fleet[0].gateway.signal(Signal::STOP);
    // Half of them are nobody's at first.
    let (mut round, mut in_a_row) = (0, 0);
    wait_until("all are answered", LATE, || {
        round += 1;
        let payload = round.to_string();
        let within = Duration::from_millis(300);
        match servers.ask_within("pulsegate.send.meter-1", &json!({"payload": payload}), within) {
            Some(answer) => {
                assert_eq!(answer, json!({"outcome": "delivered", "node": "gate-1"}));
                assert_eq!(heard(&mut device).1, payload);
                in_a_row += 1;
            }
            None => in_a_row = 0,
        }
        in_a_row == 20
    });
    fleet[0].gateway.signal(Signal::CONT);
    fleet[0].wait_until_joined();
    assert_eq!(fleet[0].send("meter-1", "again").0, 200);
    assert_eq!(heard(&mut device).1, "again");
}

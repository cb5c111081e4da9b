//! One device, two gateways: the later connection stays, the other is told; and a gateway that stood still disowns what it lost.

use std::time::Duration;

use pulsegate::codec::native::CloseCode;
use rustix::process::Signal;
use serde_json::json;

use crate::servers::Servers;
use crate::support::{Device, Event, Site, nats_tell, wait_until};
use crate::{LATE, heard, members};

#[test]
fn the_later_connection_wins_across_gateways_and_the_other_is_told() {
    let site = Site::new();
    let mut servers = Servers::new(&site, 1);
    servers.start_all();
    let fleet = members(3, &servers.urls("nats"), "");
    let mut device = fleet[0].device("twin");
    fleet[0].wait_for_claims(1);
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
    let mut servers = Servers::new(&site, 1);
    servers.start_all();
    let fleet = members(3, &servers.urls("nats"), "");
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
    let mut servers = Servers::new(&site, 1);
    servers.start_all();
    let fleet = members(2, &servers.urls("nats"), "");
    let mut device = fleet[0].device("meter-1");
    fleet[0].wait_for_claims(1);
    // A device of the other gateway is asked for by NATS: either of them hears that.
    let mut other = fleet[1].device("meter-2");
    fleet[1].wait_for_claims(1);
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
fn a_gateway_that_stood_still_for_longer_than_its_lease_disowns_what_it_lost() {
    let site = Site::new();
    let mut servers = Servers::new(&site, 1);
    servers.start_all();
    let fleet = members(2, &servers.urls("nats"), "");
    let mut moved = fleet[0].device("moved");
    let mut stays = fleet[0].device("stays");
    fleet[0].wait_for_claims(2);
    fleet[0].gateway.signal(Signal::STOP);
    let mut again = fleet[1].device("moved");
    fleet[1].wait_for_claims(1);
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

//! What stands in the buckets, whoever takes it away or leaves it behind.

use rustix::process::Signal;
use serde_json::json;

use crate::support::{Site, wait_until};
use crate::{LATE, fleet, heard};

#[test]
fn rows_of_a_gateway_that_died_go_without_anybody_asking() {
    let site = Site::new();
    let (servers, mut fleet) = fleet(&site, 1, 3, "");
    // The first by name, which would sweep, is the one that dies.
    let dead: Vec<_> = (0..20).map(|number| fleet[0].device(&format!("meter-{number}"))).collect();
    let mut alive = fleet[1].device("stays");
    fleet[0].wait_for_claims(20);
    fleet[1].wait_for_claims(1);
    let killed = fleet.remove(0);
    killed.gateway.signal(Signal::KILL);
    wait_until("the rows have gone", LATE, || servers.rows("pulsegate_devices") == 1);
    assert_eq!(fleet[1].send("stays", "x").0, 200);
    assert_eq!(heard(&mut alive).1, "x");
    drop(dead);
}

#[test]
fn rows_that_somebody_takes_away_are_written_again() {
    let site = Site::new();
    let (servers, fleet) = fleet(&site, 1, 2, "");
    let mut devices: Vec<_> = (0..5).map(|number| fleet[0].device(&format!("meter-{number}"))).collect();
    fleet[0].wait_for_claims(5);
    // One key alone, by hand, and a key that holds nonsense: whoever comes is claimed all the same.
    let subject = "$KV.pulsegate_devices.meter-9";
    servers.ask(subject, &json!("nonsense"));
    let mut nonsense = fleet[1].claimed("meter-9");
    assert_eq!(fleet[0].send("meter-9", "x").0, 200);
    assert_eq!(heard(&mut nonsense).1, "x");
    // All rows, and then the whole bucket.
    for what in ["PURGE", "DELETE"] {
        let answer = servers.ask(&format!("$JS.API.STREAM.{what}.KV_pulsegate_devices"), &json!(null));
        assert_eq!(answer["success"], true, "{answer}");
        wait_until("all are there again", LATE, || servers.try_rows("pulsegate_devices") == Some(6));
        for member in &fleet {
            member.wait_until_joined();
        }
        fleet[0].wait_for_claims(5);
        for (number, device) in devices.iter_mut().enumerate() {
            assert_eq!(fleet[1].send(&format!("meter-{number}"), what).0, 200);
            assert_eq!(heard(device).1, what);
        }
    }
}

//! The client that everything began with: `b'heartbeat'` over an ssl-wrapped socket every so often, and nothing else.

use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    Behaviour, Fleet, Gateway, Program, SOON, Site, hold_for, native, raw, time_of, wait_for, wait_until,
};

/// The raw listener's `interval + timeout × (retries + 1)`: 1.2 s and twice 0.4 s.
const BOUND: Duration = Duration::from_secs(2);
const OTHERS: usize = 1_000;

fn start(site: &Site) -> Gateway {
    let listeners = [native().heartbeat(1_000, 2_000, 2), raw().client_auth("optional").heartbeat(1_200, 400, 1)];
    site.start("workers = 2", &listeners)
}

fn client(site: &Site, gateway: &Gateway, more: &[&str]) -> Program {
    let port = gateway.address("raw").port().to_string();
    let mut arguments = vec!["localhost", &port, "certs/ca.pem", "0.3"];
    arguments.extend(more);
    Program::python(site.directory(), "article.py", &arguments)
}

/// The only device of the raw listener.
fn find(gateway: &Gateway) -> Option<Value> {
    let page = gateway.get_json("/v1/devices?prefix=raw-");
    page["devices"].as_array().unwrap().first().cloned()
}

#[test]
fn it_stays_while_it_sends_and_is_expired_when_it_stops_while_a_thousand_others_live_on() {
    let site = Site::new();
    let gateway = start(&site);
    let fleet = Fleet::connect(gateway.devices(), &site.tls(), "other-", OTHERS, Behaviour::Answer);
    let mut client = client(&site, &gateway, &[]);
    let device = wait_for("it is among the devices", SOON, || find(&gateway));
    let id = device["id"].as_str().unwrap().to_owned();
    for (field, value) in
        [("protocol", "raw"), ("listener", "raw"), ("identity", "generated"), ("tls_version", "TLSv1.3")]
    {
        assert_eq!(device[field], value, "{field}");
    }

    // For longer than its bound: it is its sending that keeps it.
    hold_for("it stays while it sends", BOUND + Duration::from_secs(1), || gateway.device(&id).is_some());
    assert!(gateway.metric("pulsegate_heartbeats_received_total") >= 5);
    assert_eq!(gateway.metric("pulsegate_messages_received_total"), 0, "heartbeats do not go up");

    client.signal(Signal::STOP);
    let stopped = SystemTime::now();
    let last_heard = wait_for("what it sent before it stopped was heard", SOON, || {
        let device = gateway.device(&id)?;
        // Two looks at the same time: nothing is on its way any more.
        let heard = time_of(&device, "last_heard");
        (SystemTime::now() > stopped + Duration::from_millis(300)).then_some(heard)
    });
    wait_until("it is expired", BOUND + SOON, || gateway.device(&id).is_none());
    let expired_at = wait_for("the log says so", SOON, || gateway.ended_at(&id, "expired"));
    let silence = expired_at.duration_since(last_heard).unwrap();
    assert!(silence >= BOUND, "expired after {silence:?}");

    gateway.expect_closed("expired", 1);
    gateway.expect_connected(OTHERS);
    assert_eq!((fleet.lost(), fleet.take_heard().len()), (0, 0));
    assert!(fleet.answered() >= OTHERS, "each has answered");
    assert!(client.is_running());
}

#[test]
fn its_certificate_names_it() {
    let site = Site::new();
    let gateway = start(&site);
    site.certify(&["pump-17"]);
    let identity = ["certs/client-pump-17.pem", "certs/client-pump-17.key"];
    let mut first = client(&site, &gateway, &identity);
    let device = wait_for("it is among the devices", SOON, || gateway.device("pump-17"));
    assert_eq!((&device["identity"], &device["listener"]), (&"cert-cn".into(), &"raw".into()));

    // The same device once more: the newer connection wins, and the older client notices.
    let _second = client(&site, &gateway, &identity);
    gateway.expect_closed("taken_over", 1);
    assert!(!first.wait(SOON).success());
    let again = wait_for("it is still among the devices", SOON, || gateway.device("pump-17"));
    assert!(again["generation"].as_u64() > device["generation"].as_u64());
    gateway.expect_connected(1);
}

//! Why a device went, or does not come in: from the API and from the command line.

use std::net::SocketAddr;
use std::process::Command;

use serde_json::Value;

use crate::support::{Device, Gateway, SOON, Site, hello, native, wait_for};

fn ends(gateway: &Gateway, device: &str, count: usize) -> Vec<Value> {
    wait_for("its ends are told", SOON, || {
        let ends = gateway.get_json(&format!("/v1/devices/{device}/history"))["ends"].as_array().unwrap().clone();
        (ends.len() == count).then_some(ends)
    })
}

fn is_of_this_machine(end: &Value) -> bool {
    end["peer"].as_str().and_then(|peer| peer.parse::<SocketAddr>().ok()).is_some_and(|peer| peer.ip().is_loopback())
}

#[test]
fn ends_are_told_with_address_reason_and_remedy() {
    let site = Site::new();
    let listener = native().client_auth("optional").identity("cert-cn");
    let gateway = site.start("workers = 2", &[listener]);

    // A connection that was reset: the kernel tells its address all the same.
    Device::welcomed(gateway.devices(), &site.tls_as("meter-1"), "meter-1").reset();
    let cut = ends(&gateway, "meter-1", 1);
    assert_eq!((&cut[0]["reason"], &cut[0]["was_connected"]), (&"peer_reset".into(), &true.into()));
    assert!(is_of_this_machine(&cut[0]), "{cut:?}");
    assert_eq!((&cut[0]["listener"], &cut[0]["identity"]), (&"devices".into(), &"cert-cn".into()));

    // One that calls itself by another name than its certificate: told under the name that is proven.
    let mut other = Device::connect(gateway.devices(), &site.tls_as("meter-2")).unwrap();
    other.send(&[hello("meter-3")]);
    let refused = ends(&gateway, "meter-2", 1);
    assert_eq!((&refused[0]["reason"], &refused[0]["was_connected"]), (&"identity_mismatch".into(), &false.into()));
    assert!(refused[0]["detail"].as_str().unwrap().contains("meter-3"), "{refused:?}");
    assert!(is_of_this_machine(&refused[0]), "{refused:?}");

    let why = |device: &str| {
        let admin = gateway.admin();
        let output =
            Command::new(env!("CARGO_BIN_EXE_pulsegate")).args(["why", device, "--admin", &admin]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let told = why("meter-2");
    for part in
        ["identity_mismatch  was not let in", "from 127.0.0.1:", "through devices (native)", "look at: ", "do:      "]
    {
        assert!(told.contains(part), "{part:?} is not in\n{told}");
    }
    assert!(why("nobody").starts_with("Nothing is remembered of nobody"));

    // The event says as much.
    let mut follower = gateway.follow("?device=meter-4&kind=disconnected");
    Device::welcomed(gateway.devices(), &site.tls_as("meter-4"), "meter-4").reset();
    let event = follower.next().unwrap();
    assert!(is_of_this_machine(&event), "{event}");
    assert_eq!(event["identity"], "cert-cn");
}

//! Who may begin: so many connections from one address and one network, and nobody who keeps the others out alone.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Device, Gateway, SOON, Site, client_hello, dial_from, hello, native, wait_until};

/// What a shared and busy machine may add to a second.
const LATE: Duration = Duration::from_secs(20);

fn device_from(site: &Site, gateway: &Gateway, source: [u8; 4], id: &str) -> Result<Device, String> {
    let socket = dial_from(source, gateway.devices());
    let mut device = Device::over(socket, &site.tls()).map_err(|error| format!("{error:?}"))?;
    device.send(&[hello(id)]);
    device.expect_welcome();
    Ok(device)
}

#[test]
fn live_connections_are_bounded_by_address_and_by_network_and_the_bounds_move_under_them() {
    let site = Site::new();
    let top = "workers = 2\n[admission.address]\nconnections = 3\n[admission.network]\nconnections = 5";
    let gateway = site.start(top, &[native()]);
    // They live at either worker, and the bound is the gateway's.
    let one: Vec<_> =
        (0..3).map(|n| device_from(&site, &gateway, [127, 0, 1, 1], &format!("one-{n}")).unwrap()).collect();
    gateway.expect_connected(3);
    assert!(device_from(&site, &gateway, [127, 0, 1, 1], "one-more").is_err());
    gateway.expect_refused("address_connections", 1);
    let two: Vec<_> =
        (0..2).map(|n| device_from(&site, &gateway, [127, 0, 1, 2], &format!("two-{n}")).unwrap()).collect();
    assert!(device_from(&site, &gateway, [127, 0, 1, 3], "three").is_err());
    gateway.expect_refused("network_connections", 1);
    let _other = device_from(&site, &gateway, [127, 0, 2, 1], "elsewhere").unwrap();
    // Whoever goes makes room, however it goes.
    let mut ends = one.into_iter();
    ends.next().unwrap().leave();
    ends.next().unwrap().reset();
    gateway.expect_connected(4);
    let back = device_from(&site, &gateway, [127, 0, 1, 3], "three").unwrap();
    gateway.expect_connected(5);
    // Who is allowed is not counted at all, from the next connection on.
    site.configure(&format!("{top}\n[admission]\nallow = [\"127.0.1.0/24\"]"), &[native()]);
    let (status, answer) = gateway.post("/v1/reload", &json!({}));
    assert_eq!((status, &answer["changed"]), (200, &json!(["admission"])), "{answer}");
    let many: Vec<_> =
        (0..9).map(|n| device_from(&site, &gateway, [127, 0, 1, 1], &format!("many-{n}")).unwrap()).collect();
    gateway.expect_connected(14);
    drop((ends, two, back, many));
}

#[test]
fn an_address_has_a_burst_and_its_neighbours_have_their_own() {
    let site = Site::new();
    let gateway = site.start("workers = 2\n[admission.address]\nper_second = 1\nburst = 4", &[native()]);
    let sockets: Vec<_> = (0..40).map(|_| dial_from([127, 0, 3, 1], gateway.devices())).collect();
    wait_until("all were taken or refused", SOON, || {
        gateway.refused("address_rate") + gateway.metric("pulsegate_connections_accepted_total") == 40
    });
    // However slow the machine is: one more for each second that it took.
    assert!(gateway.refused("address_rate") >= 10, "{}", gateway.refused("address_rate"));
    let _device = device_from(&site, &gateway, [127, 0, 3, 2], "neighbour").unwrap();
    let lines = gateway.logged("a connection was refused before TLS");
    assert_eq!((&lines[0]["peer"], &lines[0]["cause"]), (&json!("127.0.3.1"), &json!("address_rate")));
    drop(sockets);
}

/// 1,100 peers say ClientHello and nothing more: more than there are places. Nothing is known yet of how long handshakes
/// take, so that the gateway would be patient with each of them.
#[test]
fn stalled_handshakes_of_one_address_do_not_keep_a_newcomer_from_another_out() {
    const STALLED: usize = 1_100;
    let site = Site::new();
    let top = "workers = 2\n[limits]\nhandshakes = 512\nhandshake_time = \"5m\"\nhello_time = \"5m\"";
    let gateway = site.start(top, &[native()]);
    let said = client_hello(&site.tls());
    let stalled: Vec<_> = (0..STALLED)
        .map(|_| {
            let mut socket = dial_from([127, 0, 4, 1], gateway.devices());
            socket.write_all(&said).unwrap();
            socket
        })
        .collect();
    // The kernel spreads them over the workers, nearly evenly.
    wait_until("nearly all places are taken", 3 * SOON, || gateway.metric("pulsegate_handshakes_in_flight") > 900);
    // A few, so that both workers have some.
    for number in 0..8 {
        let began = Instant::now();
        let device = device_from(&site, &gateway, [127, 0, 5, number], &format!("newcomer-{number}")).unwrap();
        assert!(began.elapsed() < Duration::from_secs(1) + LATE, "{:?}", began.elapsed());
        device.leave();
    }
    assert!(gateway.metric("pulsegate_handshakes_gave_way_total") > 0);
    assert_eq!(gateway.refused("overloaded"), 0);
    drop(stalled);
}

//! Who may begin: so many connections from one address and one network, and nobody who keeps the others out alone.

use std::io::Write;
use std::time::{Duration, Instant};

use pulsegate::codec::native::{CloseCode, Frame};
use rustix::process::Signal;
use serde_json::json;

use crate::support::{
    Device, Event, Gateway, SOON, Site, client_hello, dial_from, encoded, hello, message, native, wait_until,
};

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

/// One device sends as fast as it can and asks for nothing; its neighbours' messages are all acknowledged and all there.
#[test]
fn a_device_that_floods_is_held_then_closed_and_kept_out_and_its_neighbours_lose_nothing() {
    const EACH: u32 = 60;
    let site = Site::new();
    let rates = "messages_per_second = 200\nburst = \"1s\"\npatience = \"1s\"\ndeny_for = \"1h\"\n";
    let gateway = site.start("workers = 2", &[native().table("rates", rates)]);
    let mut heard = gateway.follow("?kind=message");
    let mut flooder = Device::welcomed(gateway.devices(), &site.tls(), "flooder");
    let mut neighbours: Vec<_> =
        (0..4).map(|n| Device::welcomed(gateway.devices(), &site.tls(), &format!("neighbour-{n}"))).collect();
    let flood = std::thread::spawn(move || {
        let many: Vec<u8> = encoded(&vec![message(0, b"noise"); 500]);
        let wire = |device: &mut Device| device.seal(&many);
        // Until the gateway takes no more of it.
        loop {
            let sealed = wire(&mut flooder);
            if flooder.socket.write_all(&sealed).is_err() {
                return;
            }
        }
    });
    for number in 1..=EACH {
        for device in &mut neighbours {
            device.send(&[message(number, format!("{number}").as_bytes())]);
        }
        for device in &mut neighbours {
            assert_eq!(device.hear(), Event::Ack(number));
        }
    }
    gateway.expect_closed("rate_exceeded", 1);
    flood.join().unwrap();
    assert!(gateway.metric("pulsegate_rate_held_total") > 0, "it was made to wait first");
    wait_until("it is kept out", SOON, || gateway.get("/v1/blocks").1.contains("\"source\":\"gateway\""));
    let mut again = Device::connect(gateway.devices(), &site.tls()).unwrap();
    again.send(&[hello("flooder")]);
    again.expect_close(CloseCode::DENIED);
    // All that was acknowledged is there to be read, in its order and once.
    let mut expected = [1; 4];
    while expected.iter().any(|next| *next <= EACH) {
        let event = heard.next().expect("nobody is cut");
        let Some(place) = event["device"].as_str().and_then(|device| device.strip_prefix("neighbour-")) else {
            continue;
        };
        let next = &mut expected[place.parse::<usize>().unwrap()];
        assert_eq!(event["payload"], json!(next.to_string()));
        *next += 1;
    }
    for device in neighbours {
        device.leave();
    }
}

#[test]
fn two_places_that_fight_over_an_id_are_damped_and_one_place_is_not() {
    let site = Site::new();
    let gateway = site.start("workers = 2", &[native()]);
    let mut loops = gateway.follow("?kind=takeover_loop");
    // A device that comes again and again from where it was.
    let mut kept: Vec<_> = (0..30).map(|_| device_from(&site, &gateway, [127, 0, 6, 9], "roamer").unwrap()).collect();
    assert_eq!(gateway.closed("takeover_loop"), 0);
    let mut damped = None;
    for round in 0..40u8 {
        let mut device = Device::over(dial_from([127, 0, 6, 1 + round % 2], gateway.devices()), &site.tls()).unwrap();
        device.send(&[hello("copied")]);
        match device.hear() {
            Event::Welcome(_) => kept.push(device),
            Event::Close { code, .. } => {
                damped = Some(code);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(damped, Some(CloseCode::TRY_LATER));
    gateway.expect_closed("takeover_loop", 1);
    let told = loops.next().unwrap();
    assert_eq!((&told["device"], &told["listener"]), (&json!("copied"), &json!("devices")), "{told}");
    assert!(told["peer"].as_str().unwrap().starts_with("127.0.6."), "{told}");
    let warning = "two places take this id from each other again and again: newcomers wait, and whoever is there stays";
    wait_until("the log says so", SOON, || gateway.logged(warning).len() == 1);
    assert!(gateway.device("copied").is_some(), "whoever has it keeps it");
}

#[test]
fn a_network_that_is_denied_is_gone_and_nobody_else_is() {
    let site = Site::new();
    let gateway = site.start("workers = 2", &[native()]);
    let count = 300;
    let mut denied: Vec<_> = (0..count)
        .map(|number| device_from(&site, &gateway, [127, 0, 7, 9], &format!("denied-{number}")).unwrap())
        .collect();
    let mut stays = device_from(&site, &gateway, [127, 0, 8, 9], "stays").unwrap();
    // One that has not said who it is.
    let mut nobody = dial_from([127, 0, 7, 10], gateway.devices());
    gateway.expect_connections(count + 2);
    assert_eq!(gateway.post("/v1/blocks", &json!({"network": "127.0.7.0/24"})).0, 204);
    for device in &mut denied {
        device.expect_close(CloseCode::DENIED);
    }
    assert!(matches!(std::io::Read::read(&mut nobody, &mut [0; 1]), Ok(0) | Err(_)));
    drop(denied);
    gateway.expect_closed("denied", count as u64 + 1);
    gateway.expect_connected(1);
    stays.send(&[Frame::Ping(b"here")]);
    assert_eq!(stays.hear(), Event::Pong(b"here".to_vec()));
    // The log says from where each came.
    let ended = gateway.logged("connection ended");
    let is_told = |line: &&serde_json::Value| line["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.7."));
    assert_eq!(ended.iter().filter(is_told).count(), count + 1, "{ended:?}");
}

#[test]
fn a_certificate_is_kept_out_by_its_fingerprint_at_once_and_by_file() {
    let site = Site::new();
    site.certify(&["stolen", "honest"]);
    let top = "workers = 2\ndeny_file = \"deny\"";
    site.write("deny", "# nobody yet\n");
    let gateway = site.start(top, &[native().client_auth("required")]);
    let mut stolen = Device::welcomed(gateway.devices(), &site.tls_as("stolen"), "any-name");
    let honest = Device::welcomed(gateway.devices(), &site.tls_as("honest"), "other-name");
    let fingerprint = fingerprint(&site.identity("stolen").0);
    assert_eq!(gateway.post("/v1/blocks", &json!({"certificate": "12:34"})).0, 400);
    assert_eq!(gateway.post("/v1/blocks", &json!({"certificate": fingerprint})).0, 204);
    stolen.expect_close(CloseCode::DENIED);
    assert!(gateway.get("/v1/blocks").1.contains("\"certificate\":\""));
    let again = |id: &str| {
        let mut device = Device::connect(gateway.devices(), &site.tls_as("stolen")).ok()?;
        device.send(&[hello(id)]);
        Some(device.hear())
    };
    assert!(!matches!(again("another-name"), Some(Event::Welcome(_))));
    gateway.expect_closed("denied", 2);
    // The file says it as well, and goes on saying it.
    site.write("deny", &format!("certificate {fingerprint}\n"));
    assert_eq!(gateway.post("/v1/reload", &json!({})).0, 200);
    assert!(!matches!(again("third-name"), Some(Event::Welcome(_))));
    gateway.expect_connected(1);
    honest.leave();
}

/// As openssl shows it, with colons.
fn fingerprint(certificate: &std::path::Path) -> String {
    let shown = std::process::Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(certificate)
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    shown.trim().split_once('=').unwrap().1.to_owned()
}

#[test]
fn who_was_blocked_over_the_api_stays_out_when_the_gateway_was_killed() {
    let site = Site::new();
    let blocks = |gateway: &Gateway| {
        let told = gateway.get_json("/v1/blocks");
        let told = told["blocks"].as_array().unwrap().iter();
        told.map(|block| (block["device"].as_str().unwrap().to_owned(), block["until"].is_null())).collect::<Vec<_>>()
    };
    let mut gateway = site.start("workers = 2", &[native()]);
    let mut stolen = Device::welcomed(gateway.devices(), &site.tls(), "stolen");
    for order in [json!({"device": "stolen"}), json!({"device": "b", "for": "1h"})] {
        assert_eq!(gateway.post("/v1/blocks", &order).0, 204);
    }
    stolen.expect_close(CloseCode::DENIED);
    gateway.signal(Signal::KILL);
    gateway.wait_for_failure(SOON);
    drop(gateway);

    let gateway = Gateway::start(site.directory());
    assert_eq!(blocks(&gateway), [("b".to_owned(), false), ("stolen".to_owned(), true)]);
    let mut again = Device::connect(gateway.devices(), &site.tls()).unwrap();
    again.send(&[hello("stolen")]);
    again.expect_close(CloseCode::DENIED);
}

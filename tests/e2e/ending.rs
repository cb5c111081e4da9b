//! How a gateway ends, and what it says when it cannot begin.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pulsegate::codec::native::CloseCode;
use rustix::process::Signal;

use crate::support::{Behaviour, Device, Event, Fleet, Gateway, SOON, Site, dial, native, raw, wait_until};

const ENDING: Duration = Duration::from_secs(15);

#[test]
fn every_device_is_told_and_the_exit_code_is_zero() {
    let site = Site::new();
    let mut gateway = site.start("workers = 3", &[native(), raw()]);
    let tls = site.tls();
    let mut devices: Vec<_> =
        (0..60).map(|n| Device::welcomed(gateway.devices(), &tls, &format!("meter-{n}"))).collect();
    let plain = site.tls_with(None, |options| options.alpn = &[]);
    let mut raw = Device::raw(gateway.address("raw"), &plain).unwrap();
    let mut unnamed = Device::connect(gateway.devices(), &tls).unwrap();
    let handshaking = dial(gateway.devices()).unwrap();
    gateway.signal(Signal::TERM);
    for device in &mut devices {
        let (_, retry_after_ms) = device.expect_close(CloseCode::GOING_AWAY);
        assert!(retry_after_ms > 0, "they must not come back all at once");
    }
    unnamed.expect_close(CloseCode::GOING_AWAY);
    assert_eq!(raw.hear_all(), [Event::CloseNotify, Event::Eof]);
    drop((devices, raw, unnamed, handshaking));
    assert_eq!(gateway.wait(ENDING).code(), Some(0));
    assert_eq!(gateway.logged("ended").len(), 1);
}

#[test]
fn ten_thousand_are_told_over_the_window_and_none_by_reset() {
    const WINDOW: Duration = Duration::from_secs(3);
    let count = 10_000;
    let site = Site::new();
    let top = "workers = 2\n[drain]\nwindow = \"3s\"\n[limits]\nshed_lateness = \"10s\"";
    let mut gateway = site.start(top, &[native()]);
    let fleet = Fleet::connect(gateway.devices(), &site.tls(), "meter-", count, Behaviour::Answer);
    gateway.expect_connected(count);

    let began = Instant::now();
    gateway.signal(Signal::TERM);
    wait_until("the first are told", SOON, || fleet.lost() > 0);
    // Before half of the window is over nobody of the second half is told, however late somebody looks.
    let early = fleet.lost();
    assert!(began.elapsed() > WINDOW / 2 || early < count * 3 / 4, "{early} within {:?}", began.elapsed());
    wait_until("all are told", WINDOW + SOON, || fleet.lost() == count);
    assert!(began.elapsed() >= WINDOW * 3 / 4, "spread over {:?}", began.elapsed());
    assert_eq!(gateway.wait(ENDING).code(), Some(0));

    let mut farewells: BTreeMap<usize, Vec<Event>> = BTreeMap::new();
    for (index, event) in fleet.take_heard() {
        farewells.entry(index).or_default().push(event);
    }
    assert_eq!(farewells.len(), count);
    let mut waits = Vec::new();
    for (index, farewell) in farewells {
        match farewell.as_slice() {
            [Event::Close { code: CloseCode::GOING_AWAY, retry_after_ms, .. }, Event::CloseNotify, Event::Eof] => {
                waits.push(*retry_after_ms);
            }
            other => panic!("meter-{index}: {other:?}"),
        }
    }
    // They come back as spread out as they went.
    waits.sort_unstable();
    assert!(waits[0] >= 1_000 && waits[count - 1] <= 4_000, "{} to {}", waits[0], waits[count - 1]);
    assert!(waits[count / 4] < 2_000 && waits[count * 3 / 4] > 3_000, "not spread");
    // Nobody was left when the gateway ended.
    let ends = gateway.logged("worker ended");
    assert!(ends.len() == 2 && ends.iter().all(|end| end["connections"] == 0), "{ends:?}");
}

/// Whoever tries it out with one device does not wait for the end of the window.
#[test]
fn a_device_alone_is_told_at_once() {
    let site = Site::new();
    let mut gateway = site.start("workers = 2\n[drain]\nwindow = \"5m\"", &[native()]);
    let mut device = Device::welcomed(gateway.devices(), &site.tls(), "alone");
    gateway.signal(Signal::TERM);
    device.expect_close(CloseCode::GOING_AWAY);
    drop(device);
    assert_eq!(gateway.wait(ENDING).code(), Some(0));
}

#[test]
fn peers_that_do_not_leave_hold_nobody_up() {
    let site = Site::new();
    let mut gateway = site.start("workers = 2", &[native()]);
    let tls = site.tls();
    let _devices: Vec<_> = (0..20).map(|n| Device::welcomed(gateway.devices(), &tls, &format!("meter-{n}"))).collect();
    let _handshaking = dial(gateway.devices()).unwrap();
    gateway.signal(Signal::INT);
    assert_eq!(gateway.wait(ENDING).code(), Some(0));
}

#[test]
fn a_second_gateway_on_the_same_port_says_what_is_wrong() {
    let site = Site::new();
    let first = site.start("", &[native()]);
    let address = first.devices().to_string();
    let text = std::fs::read_to_string(site.path("pulsegate.toml")).unwrap();
    // The admin address, which comes first, stays free.
    let (head, listener) = text.split_once("[[listener]]").unwrap();
    site.write(
        "pulsegate.toml",
        &format!("data_dir = \"second\"\n{head}[[listener]]{}", listener.replace("127.0.0.1:0", &address)),
    );
    let second = Gateway::command(site.directory()).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let errors = String::from_utf8(second.stderr).unwrap();
    assert_eq!(errors.lines().count(), 1, "{errors}");
    for part in ["pulsegate: ", "listener \"devices\"", &address, "listener.listen", "in use"] {
        assert!(errors.contains(part), "{part} is not in {errors}");
    }
    // And the first one lives on.
    let device = Device::welcomed(first.devices(), &site.tls(), "meter-1");
    device.leave();
}

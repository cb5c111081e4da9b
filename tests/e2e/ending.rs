//! How a gateway ends, and what it says when it cannot begin.

use std::time::Duration;

use pulsegate::codec::native::CloseCode;
use rustix::process::Signal;

use crate::support::{Device, Event, Gateway, Site, dial, native, raw};

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
    site.write("pulsegate.toml", &format!("{head}[[listener]]{}", listener.replace("127.0.0.1:0", &address)));
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

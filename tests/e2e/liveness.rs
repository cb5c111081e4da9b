//! Who is alive: probes, answers, expiry in its bound and never before it, also when it is the gateway that sleeps.

use std::time::{Duration, Instant};

use pulsegate::codec::native::{CloseCode, Frame, Hello};

use crate::support::{Behaviour, Device, Event, Fleet, SOON, Site, hold_for, native, raw, wait_for, wait_until};

#[test]
fn a_round_trip_is_measured_and_shown() {
    let site = Site::new();
    let gateway = site.start("", &[native().heartbeat(400, 2_000, 2)]);
    let _fleet = Fleet::connect(gateway.devices(), &site.tls(), "meter-", 1, Behaviour::Answer);
    let device = wait_for("the round trip is shown", SOON, || {
        gateway.device("meter-0").filter(|device| !device["round_trip_ms"].is_null())
    });
    let round_trip = device["round_trip_ms"].as_f64().unwrap();
    assert!(round_trip > 0.0 && round_trip < 2_000.0, "{round_trip}");
    wait_until("it is counted", SOON, || gateway.metric("pulsegate_heartbeat_round_trip_seconds_count") >= 1);
    let answered = gateway.metric("pulsegate_heartbeats_answered_total");
    assert!(answered >= 1 && gateway.metric("pulsegate_heartbeats_sent_total") >= answered);
    gateway.expect_metric("pulsegate_devices", 1);
}

#[test]
fn a_silent_device_gets_every_probe_and_is_expired_in_its_bound_never_before() {
    const BOUND: Duration = Duration::from_millis(1_000 + 200 * 3);
    let site = Site::new();
    let gateway = site.start("", &[native().heartbeat(1_000, 200, 2)]);
    let tls = site.tls();
    // First probes are jittered: many devices, so that some have an early one.
    let silent: Vec<_> = (0..12)
        .map(|n| {
            let mut device = Device::connect(gateway.devices(), &tls).unwrap();
            let heard = Instant::now();
            let id = format!("silent-{n}");
            device.send(&[Frame::Hello(Hello { heartbeat_ms: 0, id: &id, token: b"" })]);
            std::thread::spawn(move || {
                device.expect_welcome();
                let heard_all = device.hear_all();
                (heard.elapsed(), heard_all)
            })
        })
        .collect();
    for device in silent {
        let (silence, heard) = device.join().unwrap();
        assert!(silence >= BOUND, "expired after {silence:?}");
        let pings = heard.iter().filter(|event| matches!(event, Event::Ping(_))).count();
        assert_eq!(pings, 3, "{heard:?}");
        assert!(
            matches!(&heard[3..], [Event::Close { code: CloseCode::EXPIRED, .. }, Event::CloseNotify, Event::Eof]),
            "{heard:?}"
        );
    }
    gateway.expect_closed("expired", 12);
    gateway.wait_until_empty();
}

#[test]
fn a_device_may_ask_for_an_interval_of_its_own() {
    let site = Site::new();
    let gateway = site.start("", &[native().heartbeat(60_000, 500, 0)]);
    let mut device = Device::connect(gateway.devices(), &site.tls()).unwrap();
    let heard = Instant::now();
    device.send(&[Frame::Hello(Hello { heartbeat_ms: 1_500, id: "impatient", token: b"" })]);
    let welcome = device.expect_welcome();
    assert_eq!((welcome.heartbeat_ms, welcome.timeout_ms, welcome.retries), (1_500, 500, 0));
    device.expect_close(CloseCode::EXPIRED);
    assert!(heard.elapsed() >= Duration::from_secs(2), "{:?}", heard.elapsed());
}

#[test]
fn a_raw_device_is_probed_with_the_configured_bytes() {
    let site = Site::new();
    let raw = raw().heartbeat(600, 300, 1).table("raw", "heartbeat = \"beat\"\nreply = \"ok\"\nprobe = \"there?\"\n");
    let gateway = site.start("", &[raw]);
    let tls = site.tls_with(None, |options| options.alpn = &[]);
    let mut device = Device::raw(gateway.address("raw"), &tls).unwrap();
    assert_eq!(device.hear(), Event::Data(b"there?".to_vec()));
    device.send_plain(b"yes");
    device.send_plain(b"beat");
    assert_eq!(device.hear(), Event::Data(b"ok".to_vec()));
    let heard = Instant::now();
    let probes = [Event::Data(b"there?".to_vec()), Event::Data(b"there?".to_vec())];
    let all = device.hear_all();
    assert_eq!(all, [&probes[..], &[Event::CloseNotify, Event::Eof]].concat());
    // A tick of slack: the reply came a moment after what it replied to was heard.
    assert!(heard.elapsed() >= Duration::from_millis(1_200 - 100), "{:?}", heard.elapsed());
    gateway.expect_closed("expired", 1);
    gateway.expect_metric("pulsegate_messages_received_total", 1);
}

#[test]
fn a_gateway_that_slept_expires_nobody_who_answered() {
    const DEVICES: usize = 500;
    let site = Site::new();
    let gateway = site.start("workers = 2", &[native().heartbeat(500, 300, 1)]);
    let answering = Fleet::connect(gateway.devices(), &site.tls(), "answering-", DEVICES / 2, Behaviour::Answer);
    let talking = Behaviour::AnswerAndPing(Duration::from_millis(300));
    let talking = Fleet::connect(gateway.devices(), &site.tls(), "talking-", DEVICES / 2, talking);
    let all_here = || gateway.connected() == DEVICES as u64 && answering.lost() + talking.lost() == 0;
    wait_until("all have answered", SOON, || answering.answered() > DEVICES && all_here());

    for _ in 0..2 {
        gateway.stop();
        // Nearly three times the bound of 500 + 300 × 2 ms.
        std::thread::sleep(Duration::from_secs(3));
        gateway.resume();
        hold_for("nobody is lost", Duration::from_secs(2), all_here);
    }
    assert_eq!(gateway.closed("expired"), 0);
    assert_eq!(gateway.all_closed(), []);
    assert_eq!(gateway.overview()["expired"], 0);
}

/// The answer to a probe that came while the gateway was stopped is read before another is sent. The poll that the stop
/// has interrupted returns nothing and must not count as one that found nothing.
#[test]
fn a_gateway_that_slept_reads_before_it_asks_again() {
    const DEVICES: usize = 60;
    let site = Site::new();
    let gateway = site.start("workers = 2", &[native().heartbeat(2_000, 2_500, 3)]);
    let tls = site.tls();
    let mut devices: Vec<_> =
        (0..DEVICES).map(|n| Device::welcomed(gateway.devices(), &tls, &format!("meter-{n}"))).collect();
    let mut probes = Vec::new();
    for device in &mut devices {
        match device.hear() {
            Event::Ping(opaque) => probes.push(opaque),
            other => panic!("{other:?}"),
        }
    }
    gateway.stop();
    for (device, opaque) in devices.iter_mut().zip(&probes) {
        device.send(&[Frame::Pong(opaque)]);
    }
    // Until each answer is overdue.
    std::thread::sleep(Duration::from_secs(3));
    gateway.resume();
    // Each is one probe and its answer, by which a round trip is told: none was asked again.
    gateway.expect_metric("pulsegate_heartbeats_answered_total", DEVICES as u64);
    gateway.expect_metric("pulsegate_heartbeat_round_trip_seconds_count", DEVICES as u64);
    assert_eq!(gateway.metric("pulsegate_heartbeats_sent_total"), DEVICES as u64);
    assert_eq!(gateway.all_closed(), []);
}

//! A device lives on its home worker, wherever the kernel put its connection: it moves there with all that it has said.

use pulsegate::codec::native::{CloseCode, Frame};

use crate::support::{Device, Event, Gateway, SOON, Site, encoded, hello, message, native, wait_until};

const WORKERS: usize = 4;

fn start(site: &Site) -> Gateway {
    site.start(&format!("workers = {WORKERS}"), &[native()])
}

#[track_caller]
fn check_moves(gateway: &Gateway, at_least: u64) {
    let count = |side| gateway.metric(&format!("pulsegate_moves_{side}_total"));
    // The last verdict may be on its way still.
    wait_until("as many have come as have gone", SOON, || count("sent") == count("received"));
    assert!(count("received") >= at_least, "only {} have moved", count("received"));
    assert_eq!(count("refused"), 0);
}

/// Hears an ACK of each id, once and in any order, and nothing else.
#[track_caller]
fn expect_acks(device: &mut Device, ids: impl Iterator<Item = u32>) {
    let mut expected: Vec<u32> = ids.collect();
    while !expected.is_empty() {
        match device.hear() {
            Event::Ack(id) => {
                let place = expected.iter().position(|expected| *expected == id);
                expected.swap_remove(place.unwrap_or_else(|| panic!("ACK {id} came twice or for nothing")));
            }
            other => panic!("an ACK was to come: {other:?}"),
        }
    }
    device.send(&[Frame::Ping(b"done")]);
    assert_eq!(device.hear(), Event::Pong(b"done".to_vec()));
}

#[test]
fn devices_live_on_every_worker_and_each_is_found() {
    const DEVICES: usize = 400;
    let site = Site::new();
    let gateway = start(&site);
    let tls = site.tls();
    let mut devices: Vec<_> =
        (0..DEVICES).map(|n| Device::welcomed(gateway.devices(), &tls, &format!("meter-{n}"))).collect();
    let mut by_worker = [0; WORKERS];
    for (n, connected) in devices.iter().enumerate() {
        let device = gateway.device(&format!("meter-{n}")).unwrap_or_else(|| panic!("meter-{n} is not found"));
        assert_eq!(device["peer"], connected.socket.local_addr().unwrap().to_string());
        by_worker[device["worker"].as_u64().unwrap() as usize] += 1;
    }
    // A fair hash strays from 100 by a few times 9.
    assert!(by_worker.iter().all(|count| (50..150).contains(count)), "{by_worker:?}");
    check_moves(&gateway, DEVICES as u64 / 2);
    for device in &mut devices {
        device.send(&[Frame::Ping(b"alive")]);
        assert_eq!(device.hear(), Event::Pong(b"alive".to_vec()));
    }
    drop(devices);
    gateway.wait_until_empty();
}

#[test]
fn messages_directly_behind_hello_are_acknowledged_once() {
    let site = Site::new();
    let gateway = start(&site);
    let tls = site.tls();
    for n in 0..32 {
        let mut device = Device::connect(gateway.devices(), &tls).unwrap();
        let id = format!("hasty-{n}");
        let (first, second) = (message(1, b"one"), message(2, b"two"));
        if n % 2 == 0 {
            // One record.
            device.send(&[hello(&id), first, second]);
        } else {
            // A record each, in one write.
            let wire: Vec<u8> = [hello(&id), first, second].iter().flat_map(|f| device.seal(&encoded(&[*f]))).collect();
            device.send_wire(&wire);
        }
        device.expect_welcome();
        expect_acks(&mut device, 1..=2);
    }
    check_moves(&gateway, 8);
    gateway.expect_metric("pulsegate_messages_acknowledged_total", 64);
}

#[test]
fn more_than_one_read_behind_hello_is_taken_along() {
    const MESSAGES: u32 = 64;
    let site = Site::new();
    let gateway = start(&site);
    let tls = site.tls();
    for n in 0..12 {
        let mut device = Device::connect(gateway.devices(), &tls).unwrap();
        let id = format!("heavy-{n}");
        let mut wire = device.seal(&encoded(&[hello(&id)]));
        for number in 1..=MESSAGES {
            wire.extend(device.seal(&encoded(&[message(number, &[7; 1_500])])));
        }
        device.send_wire(&wire);
        device.expect_welcome();
        expect_acks(&mut device, 1..=MESSAGES);
    }
    check_moves(&gateway, 3);
}

#[test]
fn half_a_frame_and_half_a_record_are_taken_along() {
    let site = Site::new();
    let gateway = start(&site);
    let tls = site.tls();
    for n in 0..24 {
        let mut device = Device::connect(gateway.devices(), &tls).unwrap();
        let id = format!("halved-{n}");
        let rest = encoded(&[message(7, b"the second half comes later")]);
        let (left, right) = rest.split_at(11);
        if n % 2 == 0 {
            let plain = [&encoded(&[hello(&id)]), left].concat();
            device.send_plain(&plain);
            device.expect_welcome();
            device.send_plain(right);
        } else {
            let mut wire = device.seal(&encoded(&[hello(&id)]));
            let record = device.seal(&rest);
            wire.extend_from_slice(&record[..record.len() / 2]);
            device.send_wire(&wire);
            device.expect_welcome();
            device.send_wire(&record[record.len() / 2..]);
        }
        expect_acks(&mut device, 7..=7);
    }
    check_moves(&gateway, 6);
}

#[test]
fn keys_that_were_updated_before_hello_go_on_at_home() {
    let site = Site::new();
    let gateway = start(&site);
    let tls = site.tls();
    for n in 0..24 {
        let mut device = Device::connect(gateway.devices(), &tls).unwrap();
        for round in 0..3 {
            device.update_keys(round % 2 == n % 2);
        }
        device.send(&[hello(&format!("renewed-{n}"))]);
        device.expect_welcome();
        device.update_keys(true);
        device.send(&[message(1, b"after")]);
        expect_acks(&mut device, 1..=1);
    }
    check_moves(&gateway, 6);
    wait_until("every update is counted", SOON, || gateway.metric("pulsegate_tls_key_updates_total") >= 24 * 4);
}

/// What the first worker said last, behind what travelled along, arrives.
#[test]
fn whoever_finds_no_place_at_home_is_told_to_try_later() {
    let site = Site::new();
    site.configure("workers = 2", &[native()]);
    // Some thirty connections in each worker, the limit that is told.
    let gateway = Gateway::start_with_descriptors(site.directory(), 100);
    let tls = site.tls();
    let (mut kept, mut told) = (Vec::new(), 0);
    for number in 0.. {
        assert!(number < 1_000, "{} devices fill no worker", kept.len());
        // Where its connection comes in there may be no place either.
        let Ok(mut device) = Device::connect(gateway.devices(), &tls) else { continue };
        let id = format!("device-{number}");
        device.send(&[hello(&id)]);
        match device.hear() {
            // The other worker has room, whoever comes.
            Event::Welcome(_) if gateway.device(&id).unwrap()["worker"] == 1 => device.leave(),
            Event::Welcome(_) => kept.push(device),
            Event::Close { code, .. } => {
                assert_eq!(
                    (code, device.hear(), device.hear()),
                    (CloseCode::TRY_LATER, Event::CloseNotify, Event::Eof)
                );
                told += 1;
            }
            other => panic!("{other:?}"),
        }
        if told == 3 {
            break;
        }
    }
    assert_eq!(kept.len(), 31, "as many as the table has room for");
    gateway.expect_closed("home_full", told);
    assert_eq!(gateway.metric("pulsegate_moves_refused_total"), told);
    for device in &mut kept {
        device.send(&[Frame::Ping(b"here")]);
        assert_eq!(device.hear(), Event::Pong(b"here".to_vec()));
    }
}

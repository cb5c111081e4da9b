//! Somebody stops reading: a follower of the events, and a device to which commands go on. The gateway keeps so much for
//! it and no more, and nobody else notices.

use std::time::{Duration, Instant};

use pulsegate::codec::native::{Frame, Message};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{Device, Event, SOON, Site, giving_up, hello, message, native};

/// What a process may grow by for reasons of its own: caches, fragments, stacks that are touched for the first time.
const SLACK: u64 = 8 << 20;

#[test]
fn a_follower_that_stops_reading_is_cut_and_others_hear_everything() {
    const ROUNDS: u32 = 150;
    const BATCH: u32 = 200;
    /// 30 MB in all, through a ring of one.
    const PAYLOAD: usize = 1_000;
    let site = Site::new();
    let gateway = site.start("workers = 2\n[backbone]\nevents = 4096\nbytes = 1048576", &[native()]);
    let mut device = Device::welcomed(gateway.devices(), &site.tls(), "talker");
    let mut reading = gateway.follow("?kind=message");
    let stalled = gateway.follow_without_reading("?kind=message");
    let talk = |device: &mut Device, first: u32| {
        for number in first..first + BATCH {
            let payload = format!("{number:0PAYLOAD$}").into_bytes();
            device.send(&[message(number, &payload)]);
        }
    };
    let mut before = 0;
    let mut most = 0;
    for round in 0..ROUNDS {
        let first = 1 + round * BATCH;
        talk(&mut device, first);
        for number in first..first + BATCH {
            assert_eq!(device.hear(), Event::Ack(number));
        }
        for number in first..first + BATCH {
            let event = reading.next().expect("whoever reads is not cut");
            assert_eq!((&event["kind"], &event["device"]), (&"message".into(), &"talker".into()));
            assert_eq!(event["payload"].as_str().unwrap().trim_start_matches('0'), number.to_string());
        }
        // By then the ring is full, and what one reader costs is paid for.
        if round == ROUNDS / 5 {
            before = gateway.resident();
        }
        most = most.max(gateway.resident());
    }
    assert!(most < before + SLACK, "from {before} to {most} bytes");
    // It reads on: what was on its way when it stopped, then why there is no more.
    let mut heard: Vec<_> = stalled.collect();
    let end = heard.pop().unwrap();
    assert_eq!(end["kind"], "lagged", "{end}");
    let missed = end["count"].as_u64().unwrap();
    assert!(missed > 0 && missed + (heard.len() as u64) < u64::from(ROUNDS * BATCH), "{end}");
    for (place, event) in heard.iter().enumerate() {
        assert_eq!(event["payload"].as_str().unwrap().trim_start_matches('0'), (place + 1).to_string());
    }
    device.leave();
    gateway.wait_until_empty();
}

/// A device whose kernel takes little for it.
fn deaf(address: std::net::SocketAddr, site: &Site) -> Device {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.connect(&address.into()).unwrap();
    let mut device = Device::over(giving_up(socket.into()), &site.tls()).unwrap();
    device.send(&[hello("deaf")]);
    device.expect_welcome();
    device
}

#[test]
fn a_device_that_stops_reading_while_commands_pour_in_is_cut_and_others_notice_nothing() {
    const OUTBOX: u64 = 131_072;
    const PAYLOAD: usize = 30_000;
    let site = Site::new();
    let gateway = site.start(&format!("workers = 1\n[limits]\noutbox_bytes = {OUTBOX}"), &[native()]);
    let mut other = Device::welcomed(gateway.devices(), &site.tls(), "other");
    let mut events = gateway.follow("?kind=disconnected");
    let payload = "x".repeat(PAYLOAD);
    // Once for what the first of everything costs.
    assert_eq!(gateway.post("/v1/devices/other/messages", &json!({"payload": payload})).0, 200);
    assert!(matches!(other.hear(), Event::Message { .. }));
    let before = gateway.resident();

    let deaf = deaf(gateway.devices(), &site);
    let (deadline, mut kept, mut most) = (Instant::now() + 6 * SOON, 0, 0);
    for number in 1.. {
        assert!(Instant::now() < deadline, "the gateway keeps everything");
        let (status, answer) = gateway.post("/v1/devices/deaf/messages", &json!({"payload": payload}));
        kept = kept.max(gateway.metric("pulsegate_buffered_bytes"));
        most = most.max(gateway.resident());
        // Up, down and echo: as if nothing was.
        other.send(&[Frame::Ping(b"still"), message(number, b"here")]);
        let mut heard = [other.hear(), other.hear()];
        heard.sort_by_key(|event| matches!(event, Event::Ack(_)));
        assert_eq!(heard, [Event::Pong(b"still".to_vec()), Event::Ack(number)]);
        if status == 404 {
            assert_eq!(answer["error"]["code"], "device_offline");
            break;
        }
        assert_eq!((status, &answer["outcome"]), (200, &"delivered".into()));
    }
    let end = events.next().unwrap();
    assert_eq!((&end["device"], &end["cause"]), (&"deaf".into(), &"slow_consumer".into()));
    assert!(kept <= OUTBOX + PAYLOAD as u64 + 1_024, "{kept} bytes were kept");
    assert!(most < before + SLACK, "from {before} to {most} bytes");
    drop(deaf);

    // The same with those who wait for its acknowledgement: none is left without an answer.
    let deaf = self::deaf(gateway.devices(), &site);
    let order = json!({"payload": payload, "ack": true, "timeout": "60s"});
    std::thread::scope(|scope| {
        let (gateway, order) = (&gateway, &order);
        let waiting: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(move || {
                    let mut answers = Vec::new();
                    while Instant::now() < deadline {
                        let (status, answer) = gateway.post("/v1/devices/deaf/messages", order);
                        answers.push(answer["error"]["code"].as_str().unwrap().to_owned());
                        if status == 404 {
                            return answers;
                        }
                    }
                    panic!("the gateway keeps everything")
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        // What pushes it over its bound, whatever the kernel takes.
        while gateway.post("/v1/devices/deaf/messages", &json!({"payload": payload})).0 == 200 {}
        for answers in waiting {
            let answers = answers.join().unwrap();
            let (last, before) = answers.split_last().unwrap();
            assert!(last == "device_offline" && before.iter().all(|code| code == "unacknowledged"), "{answers:?}");
        }
    });
    drop(deaf);
    other.send(&[Frame::Message(Message { id: 0, topic: "", payload: b"to the end" })]);
    other.leave();
    gateway.wait_until_empty();
    gateway.expect_closed("slow_consumer", 2);
}

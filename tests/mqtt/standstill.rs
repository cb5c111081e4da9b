//! Two workers that have more to say to each other than their inboxes hold: neither may wait for the other. And packets that
//! ask for more than one turn does: they go on, and what is behind them waits.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pulsegate::codec::mqtt::{Connect, Options, Packet, Properties, Publish, QoS, Subscribe, Unsubscribe, Version};
use pulsegate::tls::handshake::ClientTls;
use rustix::process::Signal;

use crate::support::{Device, Event, Listener, SOON, Site};

const PUBLISHERS: usize = 8;
/// How long they flood.
const FLOOD: Duration = Duration::from_secs(3);
/// Messages in one write.
const BLOCK: u16 = 1_000;

fn connect(address: SocketAddr, tls: &ClientTls, id: &str) -> Device {
    let mut device = Device::raw(address, tls).unwrap();
    let connect = Connect {
        version: Version::V311,
        client_id: id,
        clean_start: true,
        keep_alive: 0,
        will: None,
        username: None,
        password: None,
        properties: Properties::EMPTY,
    };
    let mut bytes = Vec::new();
    Packet::Connect(connect).encode(Version::V311, &mut bytes);
    device.send_plain(&bytes);
    assert_eq!(device.hear(), Event::Data(vec![0x20, 2, 0, 0]), "{id}");
    device
}

fn publish(topic: &str, packet_id: u16, retain: bool, out: &mut Vec<u8>) {
    let publish = Publish {
        dup: false,
        qos: QoS::AtLeastOnce,
        retain,
        topic,
        packet_id,
        properties: Properties::EMPTY,
        payload: b"x",
    };
    Packet::Publish(publish).encode(Version::V311, out);
}

/// Publishes without waiting for any answer, while another thread takes the answers.
fn flood(mut device: Device, topic: &str, until: Instant) {
    let mut answers = device.socket.try_clone().unwrap();
    answers.set_read_timeout(None).unwrap();
    let mut block = Vec::new();
    (1..=BLOCK).for_each(|packet_id| publish(topic, packet_id, true, &mut block));
    std::thread::scope(|scope| {
        scope.spawn(move || while answers.read(&mut [0; 16_384]).is_ok_and(|count| count > 0) {});
        while Instant::now() < until {
            let wire = device.seal(&block);
            // A gateway that reads no further stops it here: looked at below.
            if device.socket.write_all(&wire).is_err() {
                break;
            }
        }
        // It may have been stopped in the middle of a record.
        let _ = device.socket.shutdown(std::net::Shutdown::Both);
    });
}

#[test]
fn two_workers_with_full_inboxes_do_not_wait_for_each_other() {
    let site = Site::new();
    let open = "publish = [\"#\"]\nsubscribe = [\"#\"]\n";
    let limits = "workers = 2\n[drain]\nwindow = \"1s\"\n[limits]\ninbox_length = 16";
    let mut gateway = site.start(limits, &[Listener::new("mqtt", "mqtt").table("mqtt", open)]);
    let tls = site.tls_with(None, |options| options.alpn = &[b"mqtt"]);
    let address = gateway.address("mqtt");
    let until = Instant::now() + FLOOD;
    std::thread::scope(|scope| {
        for number in 0..PUBLISHERS {
            let device = connect(address, &tls, &format!("flood-{number}"));
            scope.spawn(move || flood(device, &format!("r/{number}"), until));
        }
    });
    // Whatever they are for, both workers answer: somebody new is at home on each.
    for number in 0..8 {
        let mut device = connect(address, &tls, &format!("later-{number}"));
        let mut bytes = Vec::new();
        publish("later", 7, false, &mut bytes);
        device.send_plain(&bytes);
        assert_eq!(device.hear_within(SOON), Some(Event::Data(vec![0x40, 2, 0, 7])), "PUBACK to later-{number}");
        assert!(gateway.device(&format!("later-{number}")).is_some());
        device.leave();
    }
    assert_eq!(gateway.get("/readyz").0, 200);
    gateway.signal(Signal::TERM);
    assert!(gateway.wait(SOON).success());
}

/// An empty message of QoS 2 under each of these identifiers.
fn begin_exchanges(identifiers: std::ops::RangeInclusive<u16>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for packet_id in identifiers {
        let (topic, properties) = ("x", Properties::EMPTY);
        let qos = QoS::ExactlyOnce;
        let publish = Publish { dup: false, qos, retain: false, topic, packet_id, properties, payload: b"" };
        Packet::Publish(publish).encode(Version::V311, &mut bytes);
    }
    bytes
}

#[test]
fn device_that_leaves_exchanges_open_ends_before_others_lack_memory() {
    let site = Site::new();
    let open = "publish = [\"#\"]\nsubscribe = [\"#\"]\nuplink = []\n";
    let limits = "workers = 1\n[limits]\npool_bytes = 1048576\nsession_inflight = 20";
    let gateway = site.start(limits, &[Listener::new("mqtt", "mqtt").table("mqtt", open)]);
    let tls = site.tls_with(None, |options| options.alpn = &[b"mqtt"]);
    let mut device = connect(gateway.address("mqtt"), &tls, "opens");
    let mut answers = 0;
    // A ninth of five sixteenths of the pool, at 16 bytes each, is some 2,200.
    'all: for first in (1..=8_000).step_by(500) {
        device.send_plain(&begin_exchanges(first..=first + 499));
        while answers < 4 * usize::from(first + 499) {
            match device.hear_within(SOON) {
                Some(Event::Data(bytes)) => answers += bytes.len(),
                _ => break 'all,
            }
        }
    }
    assert!((4 * 1_000..4 * 4_000).contains(&answers), "{answers} bytes of PUBREC");
    gateway.expect_closed("pool_full", 1);
    // Somebody else's few always find room.
    let mut other = connect(gateway.address("mqtt"), &tls, "opens few");
    other.send_plain(&begin_exchanges(1..=20));
    assert_eq!(hear_bytes(&mut other, 80).len(), 80);
}

/// Hears so many bytes.
fn hear_bytes(device: &mut Device, count: usize) -> Vec<u8> {
    let mut heard = Vec::new();
    while heard.len() < count {
        match device.hear_within(SOON) {
            Some(Event::Data(bytes)) => heard.extend(bytes),
            other => panic!("heard {} of {count} bytes, and then {other:?}", heard.len()),
        }
    }
    heard
}

#[test]
fn packets_of_thousands_of_filters_are_answered_whole_and_in_order() {
    const FILTERS: usize = 1_500;
    let site = Site::new();
    let open = "publish = [\"#\"]\nsubscribe = [\"#\"]\n";
    let limits = format!("workers = 2\n[limits]\nsession_subscriptions = {}", FILTERS - 1);
    let gateway = site.start(&limits, &[Listener::new("mqtt", "mqtt").table("mqtt", open)]);
    let tls = site.tls_with(None, |options| options.alpn = &[b"mqtt"]);
    let (mut wanted, mut unwanted) = (Vec::new(), Vec::new());
    for number in 0..FILTERS {
        let shared = if number % 100 == 0 { "$share/g/" } else { "" };
        Subscribe::put_filter(&format!("{shared}{number}/a"), Options::plain(QoS::AtLeastOnce), &mut wanted);
        Unsubscribe::put_filter(&format!("{shared}{number}/a"), &mut unwanted);
    }
    let (version, properties) = (Version::V311, Properties::EMPTY);
    let mut bytes = Vec::new();
    Packet::Subscribe(Subscribe::new(7, properties, &wanted)).encode(version, &mut bytes);
    Packet::Pingreq.encode(version, &mut bytes);
    let mut then = Vec::new();
    publish("1400/a", 9, false, &mut then);
    Packet::Unsubscribe(Unsubscribe::new(8, properties, &unwanted)).encode(version, &mut then);
    Packet::Pingreq.encode(version, &mut then);

    let mut devices: Vec<Device> =
        (0..8).map(|number| connect(gateway.address("mqtt"), &tls, &format!("wants-{number}"))).collect();
    for device in &mut devices {
        device.send_plain(&bytes);
    }
    for device in &mut devices {
        let heard = hear_bytes(device, 5 + FILTERS + 2);
        // The last is one more than a session may have.
        let suback = [&[0x90, 0xDE, 0x0B, 0, 7][..], &[1; FILTERS - 1], &[0x80]].concat();
        // It waits for the homes of groups, and PINGRESP need not.
        let is_whole = heard.strip_prefix(&[0xD0, 0]).or(heard.strip_suffix(&[0xD0, 0])) == Some(&suback);
        assert!(is_whole, "SUBACK is {:?} ... {:?}", &heard[..8], &heard[FILTERS - 2..]);
    }
    gateway.expect_metric("pulsegate_mqtt_subscriptions", (8 * (FILTERS - 1 - FILTERS / 100)) as u64);
    for device in &mut devices {
        device.send_plain(&then);
    }
    for device in &mut devices {
        let mut heard = Vec::new();
        // UNSUBACK, and PINGRESP right behind it; PUBACK when all have the message.
        let has = |heard: &[u8], wanted: &[u8]| heard.windows(wanted.len()).any(|window| window == wanted);
        while !has(&heard, &[0xB0, 2, 0, 8, 0xD0, 0]) || !has(&heard, &[0x40, 2, 0, 9]) {
            match device.hear_within(SOON) {
                Some(Event::Data(bytes)) => heard.extend(bytes),
                other => panic!("heard {heard:?}, and then {other:?}"),
            }
        }
    }
    gateway.expect_metric("pulsegate_mqtt_subscriptions", 0);
    drop(devices);
    gateway.wait_until_empty();
    gateway.expect_metric("pulsegate_pool_used_bytes", 0);
}

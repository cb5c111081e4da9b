//! Two workers that have more to say to each other than their inboxes hold: neither may wait for the other.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pulsegate::codec::mqtt::{Connect, Packet, Properties, Publish, QoS, Version};
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

//! Peers that vanish: at each step of the handshake, in order and by force, alone and in a storm.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use pulsegate::tls::handshake::{ClientTls, Handshake, Progress, Versions};
use pulsegate::tls::record::{Stage, next_record};

use crate::support::{Device, Event, Gateway, Site, dial, hello, native};

/// How far a peer comes before it vanishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Connected,
    HalfAClientHello,
    ClientHello,
    ServersAnswer,
    HalfAFinish,
    Finish,
}

const STEPS: [Step; 6] =
    [Step::Connected, Step::HalfAClientHello, Step::ClientHello, Step::ServersAnswer, Step::HalfAFinish, Step::Finish];

fn vanish(address: SocketAddr, tls: &ClientTls, step: Step, by_force: bool) {
    let mut socket = dial(address).unwrap();
    if by_force {
        socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    }
    let mut out = Vec::new();
    let mut handshake = Handshake::client(tls, &mut out).unwrap();
    match step {
        Step::Connected => return,
        Step::HalfAClientHello => return socket.write_all(&out[..out.len() / 2]).unwrap(),
        _ => socket.write_all(&std::mem::take(&mut out)).unwrap(),
    }
    if step == Step::ClientHello {
        return;
    }
    let mut inbox = Vec::new();
    let mut chunk = [0; 4_096];
    while out.is_empty() {
        while let Some(length) = next_record(&inbox, Stage::Handshake).unwrap() {
            let record: Vec<u8> = inbox.drain(..length).collect();
            if handshake.handle_record(&record, &mut out).unwrap() == Progress::Done {
                break;
            }
        }
        if out.is_empty() {
            let count = socket.read(&mut chunk).unwrap();
            assert!(count > 0, "the gateway left first");
            inbox.extend_from_slice(&chunk[..count]);
        }
    }
    match step {
        Step::ServersAnswer => {}
        Step::HalfAFinish => socket.write_all(&out[..out.len() / 2]).unwrap(),
        _ => socket.write_all(&out).unwrap(),
    }
}

#[track_caller]
fn check_alive(gateway: &Gateway, site: &Site) {
    let mut device = Device::welcomed(gateway.devices(), &site.tls(), "after-all");
    device.send(&[pulsegate::codec::native::Frame::Ping(b"still")]);
    assert_eq!(device.hear(), Event::Pong(b"still".to_vec()));
    device.leave();
}

#[test]
fn at_each_step_of_the_handshake() {
    const TIMES: u64 = 5;
    let site = Site::new();
    let gateway = site.start("workers = 2", &[native()]);
    let mut vanished = 0;
    for versions in [Versions::Tls13, Versions::Tls12] {
        let tls = site.tls_with(None, |options| options.versions = versions);
        for by_force in [false, true] {
            for step in STEPS {
                for _ in 0..TIMES {
                    vanish(gateway.devices(), &tls, step, by_force);
                    vanished += 1;
                }
            }
        }
    }
    gateway.expect_metric("pulsegate_connections_accepted_total", vanished);
    gateway.wait_until_empty();
    let closed = gateway.all_closed();
    // Who has sent all of its handshake may have been heard, or was cut off before by its own reset.
    let (before, after): (Vec<_>, Vec<_>) = closed.iter().partition(|(reason, _)| reason == "handshake_abandoned");
    assert!(after.iter().all(|(reason, _)| reason == "peer_closed" || reason == "peer_reset"), "{closed:?}");
    assert!(before[0].1 >= vanished * 5 / 6, "{closed:?}");
    check_alive(&gateway, &site);
}

/// Connections that come and go as fast as they can, in every way at once, so that slots are used again at once by
/// others than those that something was left over for.
#[test]
fn in_a_storm_nobody_is_mistaken_for_another() {
    const THREADS: usize = 8;
    const ROUNDS: usize = 60;
    let site = Site::new();
    let gateway = site.start("workers = 2", &[native()]);
    let (address, tls) = (gateway.devices(), site.tls());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let tls = &tls;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    match (round + thread) % 6 {
                        0 => dial(address).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap(),
                        1 => vanish(address, tls, STEPS[round % STEPS.len()], round % 4 == 1),
                        2 => Device::connect(address, tls).unwrap().reset(),
                        3 => {
                            let mut device = Device::connect(address, tls).unwrap();
                            device.send_plain(&[0x7f; 20]);
                            device.reset();
                        }
                        4 => {
                            let mut device = Device::connect(address, tls).unwrap();
                            device.send(&[hello(&format!("meter-{thread}"))]);
                            device.reset();
                        }
                        _ => Device::welcomed(address, tls, &format!("meter-{thread}")).leave(),
                    }
                }
            });
        }
    });
    let all = (THREADS * ROUNDS) as u64;
    gateway.expect_metric("pulsegate_connections_accepted_total", all);
    gateway.wait_until_empty();
    check_alive(&gateway, &site);
}

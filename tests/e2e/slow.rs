//! Whoever does not read what it asked for: the gateway keeps so much for it and no more.

use std::io::Write;
use std::time::{Duration, Instant};

use pulsegate::codec::native::Frame;
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{Device, SOON, Site, encoded, hello, native};

#[test]
fn a_device_that_never_reads_is_closed_with_bounded_memory() {
    const OUTBOX: u64 = 65_536;
    let site = Site::new();
    let gateway = site.start(&format!("workers = 1\n[limits]\noutbox_bytes = {OUTBOX}"), &[native()]);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    // Before it connects, so that its window is small from the beginning.
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.connect(&gateway.devices().into()).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut device = Device::over(socket.into(), &site.tls()).unwrap();
    device.send(&[hello("deaf")]);
    device.expect_welcome();
    gateway.expect_connected(1);
    let before = gateway.allocated();

    let pings = encoded(&vec![Frame::Ping(b"12345678"); 1_400]);
    let (deadline, mut most) = (Instant::now() + 2 * SOON, 0);
    while gateway.closed("slow_consumer") == 0 {
        assert!(Instant::now() < deadline, "the gateway keeps everything");
        for _ in 0..8 {
            let wire = device.seal(&pings);
            // Its end is what is waited for.
            if device.socket.write_all(&wire).is_err() {
                break;
            }
        }
        most = most.max(gateway.metric("pulsegate_buffered_bytes"));
    }
    // What one turn adds on top: the answers to one read.
    assert!(most <= OUTBOX + 65_536, "{most} bytes were kept");
    let grown = gateway.allocated().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes more than before");
    gateway.wait_until_empty();
    assert_eq!(gateway.all_closed(), [("slow_consumer".to_owned(), 1)]);
}

#[test]
fn a_device_that_reads_late_gets_everything() {
    const PINGS: usize = 40_000;
    let site = Site::new();
    let gateway = site.start("workers = 1\n[limits]\noutbox_bytes = 16777216", &[native()]);
    let mut device = Device::welcomed(gateway.devices(), &site.tls(), "late");
    let ping = encoded(&vec![Frame::Ping(b"12345678"); 1_000]);
    for _ in 0..PINGS / 1_000 {
        device.send_plain(&ping);
    }
    for n in 0..PINGS {
        assert!(matches!(device.hear(), crate::support::Event::Pong(_)), "PONG {n}");
    }
    device.leave();
    gateway.wait_until_empty();
}

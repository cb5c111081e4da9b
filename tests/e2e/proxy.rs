//! Behind a load balancer that speaks the PROXY protocol: HAProxy in TCP mode, and headers by hand.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use crate::support::{Device, Gateway, Program, SOON, Site, dial_from, hello, native, wait_for, wait_until};

/// Everybody on this machine has many addresses: this one is the proxy's.
const PROXY: [u8; 4] = [127, 0, 0, 1];
const STRANGER: [u8; 4] = [127, 0, 0, 9];

fn start(site: &Site, limits: &str) -> Gateway {
    site.start(&format!("workers = 2\n{limits}"), &[native().key("proxy_protocol", "[\"127.0.0.1/32\"]")])
}

/// A device that is connected, and its own address.
fn device(site: &Site, socket: TcpStream, id: &str) -> Device {
    let mut device = Device::over(socket, &site.tls()).expect("TLS stands");
    device.send(&[hello(id)]);
    device.expect_welcome();
    device
}

fn peer(gateway: &Gateway, id: &str) -> SocketAddr {
    gateway.device(id).expect("it is connected")["peer"].as_str().unwrap().parse().unwrap()
}

/// Where nobody listens.
fn free_port() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

#[test]
fn haproxy_in_tcp_mode_tells_who_the_device_is_in_both_versions() {
    let site = Site::new();
    let gateway = start(&site, "");
    let (one, two) = (free_port(), free_port());
    let server = gateway.devices();
    site.write(
        "haproxy.cfg",
        &format!(
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1m\n  timeout server 1m\n\
             listen one\n  bind {one}\n  server gateway {server} send-proxy check inter 100ms\n\
             listen two\n  bind {two}\n  server gateway {server} send-proxy-v2 check-send-proxy \
             proxy-v2-options crc32c,authority,unique-id check inter 100ms\n  unique-id-format %ci\n"
        ),
    );
    let mut command = Command::new("haproxy");
    command.current_dir(site.directory()).args(["-db", "-f", "haproxy.cfg"]);
    let mut haproxy = Program::start(command);
    for (version, address) in [("one", one), ("two", two)] {
        wait_for("haproxy listens", SOON, || {
            assert!(haproxy.is_running(), "{}", haproxy.text());
            TcpStream::connect(address).ok()
        });
        // Some of them live at the other worker than the one that took their connection.
        let devices: Vec<(String, SocketAddr, Device)> = (0..8u8)
            .map(|number| {
                let socket = dial_from([127, 0, 7, number], address);
                let (id, own) = (format!("{version}-{number}"), socket.local_addr().unwrap());
                (id.clone(), own, device(&site, socket, &id))
            })
            .collect();
        for (id, own, _) in &devices {
            assert_eq!(peer(&gateway, id), *own, "{id}");
        }
    }
    // What HAProxy connects for itself is no device that failed.
    wait_until("it has looked whether somebody is here", SOON, || gateway.closed("proxy_check") > 2);
    assert_eq!(gateway.closed("proxy_header") + gateway.closed("handshake_failed") + gateway.closed("not_tls"), 0);
    haproxy.signal(rustix::process::Signal::TERM);
}

/// A header of version 2 for TCP over IPv4 from this address, port 4660.
fn v2(source: [u8; 4]) -> Vec<u8> {
    let head = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c";
    [&head[..], &source, &[192, 0, 2, 1], &[0x12, 0x34, 0x1d, 0x13]].concat()
}

#[test]
fn a_trusted_proxy_must_announce_and_nobody_else_may() {
    let site = Site::new();
    let gateway = start(&site, "");
    let address = gateway.devices();
    // In one piece, and byte by byte.
    let mut socket = dial_from(PROXY, address);
    socket.write_all(b"PROXY TCP6 2001:db8::7 2001:db8::1 4660 7443\r\n").unwrap();
    let _v1 = device(&site, socket, "v1");
    assert_eq!(peer(&gateway, "v1"), "[2001:db8::7]:4660".parse().unwrap());
    let mut socket = dial_from(PROXY, address);
    socket.set_nodelay(true).unwrap();
    for byte in v2([203, 0, 113, 7]) {
        socket.write_all(&[byte]).unwrap();
    }
    let _v2 = device(&site, socket, "v2");
    assert_eq!(peer(&gateway, "v2"), "203.0.113.7:4660".parse().unwrap());
    // A proxy that does not know, or speaks for itself: its own address.
    for (id, header) in [("unknown", &b"PROXY UNKNOWN\r\n"[..]), ("local", b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00")] {
        let mut socket = dial_from(PROXY, address);
        socket.write_all(header).unwrap();
        let own = socket.local_addr().unwrap();
        let _device = device(&site, socket, id);
        assert_eq!(peer(&gateway, id), own);
    }
    // Not a word, or another one.
    for (number, bytes) in (1..).zip([&b"\x16\x03\x01\x00\x05hello"[..], b"PROXY TCP4 x\r\n", b"GET / HTTP/1.1\r\n"]) {
        let mut socket = dial_from(PROXY, address);
        socket.write_all(bytes).unwrap();
        assert_eq!(socket.read(&mut [0; 1]).unwrap_or(0), 0, "it is closed without a word");
        gateway.expect_closed("proxy_header", number);
    }
    // From elsewhere a device is itself, and what it says of others is no TLS.
    let socket = dial_from(STRANGER, address);
    let own = socket.local_addr().unwrap();
    let _direct = device(&site, socket, "direct");
    assert_eq!(peer(&gateway, "direct"), own);
    let mut liar = dial_from(STRANGER, address);
    liar.write_all(&v2([203, 0, 113, 7])).unwrap();
    gateway.expect_closed("not_tls", 1);
    // Whoever only looks is not taken for a device that gave up.
    for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"] {
        dial_from(PROXY, address).write_all(header).unwrap();
    }
    gateway.expect_closed("proxy_check", 2);
    assert_eq!(gateway.closed("handshake_abandoned"), 0);
}

/// The bound of an address is that of the device's, not of the proxy through which all of them come.
#[test]
fn limits_are_of_the_address_that_was_announced() {
    let site = Site::new();
    let gateway = start(&site, "[limits]\nconnections_per_address = 2\n");
    let announce = |source: [u8; 4]| {
        let mut socket = dial_from(PROXY, gateway.devices());
        socket.write_all(&v2(source)).unwrap();
        socket
    };
    let fleet: Vec<_> =
        (0..30u8).map(|number| device(&site, announce([203, 0, 113, number]), &format!("n-{number}"))).collect();
    gateway.expect_connected(fleet.len());
    assert_eq!(gateway.closed("address_refused"), 0);
    assert_eq!(gateway.refused("address_rate"), 0);
    let _many: Vec<_> = (0..50).map(|_| announce([203, 0, 113, 99])).collect();
    wait_until("the address has its bound", SOON, || gateway.closed("address_refused") > 0);
    // Two readings, between which there may be more.
    wait_until("each refusal is an end", SOON, || gateway.refused("address_rate") == gateway.closed("address_refused"));
    let one: IpAddr = "203.0.113.7".parse().unwrap();
    assert_eq!(peer(&gateway, "n-7").ip(), one);
}

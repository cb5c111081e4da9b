//! Whoever does it wrong: told why, in an alert or a CLOSE that really arrives, counted under its name, and gone.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use pulsegate::codec::native::{CloseCode, Frame, Welcome};
use pulsegate::tls::handshake::ClientTls;

use crate::support::{
    ConnectError, Device, Event, Gateway, SOON, Site, client_hello, dial, encoded, hello, message, native, wait_until,
};

const BAD_RECORD_MAC: u8 = 20;
const RECORD_OVERFLOW: u8 = 22;
const UNKNOWN_CA: u8 = 48;
const DECRYPT_ERROR: u8 = 51;
const CERTIFICATE_REQUIRED: u8 = 116;
const NO_APPLICATION_PROTOCOL: u8 = 120;

/// Everything up to the end of the stream, which must not be a reset.
#[track_caller]
fn read_to_end(socket: &mut TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    socket.read_to_end(&mut heard).unwrap();
    heard
}

#[track_caller]
fn check_counted(gateway: &Gateway, expected: &[(&str, u64)]) {
    gateway.wait_until_empty();
    let mut expected: Vec<_> = expected.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
    expected.sort();
    assert_eq!(gateway.all_closed(), expected);
}

#[test]
fn what_is_not_tls_gets_its_end_at_once() {
    let site = Site::new();
    // Lingering is for bytes that were said; the end itself does not wait for it.
    let gateway = site.start("[limits]\nlinger_time = \"30s\"", &[native()]);
    let garbage: Vec<u8> = (0..40_000u32).map(|n| (n * 7 + 1) as u8 | 0x80).collect();
    for bytes in [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".as_slice(), &garbage, b"SSH-2.0-x\r\n", b"\x80\x2e\x01\x03\x01"]
    {
        let mut socket = dial(gateway.devices()).unwrap();
        let began = Instant::now();
        socket.write_all(bytes).unwrap();
        read_to_end(&mut socket);
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    }
    check_counted(&gateway, &[("not_tls", 4)]);
}

#[test]
fn a_bad_client_hello_gets_its_alert() {
    let site = Site::new();
    let gateway = site.start("", &[native()]);
    let hello = client_hello(&site.tls());
    // A record that is longer than any may be; and one whose message is broken, with more behind it than is read.
    let mut socket = dial(gateway.devices()).unwrap();
    socket.write_all(&[22, 3, 1, 0xff, 0xff]).unwrap();
    assert_eq!(read_to_end(&mut socket), [21, 3, 3, 0, 2, 2, RECORD_OVERFLOW]);
    let mut broken = hello.clone();
    broken[43] = 0xff;
    broken.resize(100_000, 0x16);
    let mut socket = dial(gateway.devices()).unwrap();
    socket.write_all(&broken).unwrap();
    let heard = read_to_end(&mut socket);
    assert!(matches!(heard.as_slice(), [21, 3, _, 0, 2, 2, _]), "{heard:?}");
    check_counted(&gateway, &[("handshake_failed", 2)]);
}

#[test]
fn a_foreign_protocol_gets_its_alert() {
    let site = Site::new();
    let gateway = site.start("", &[native()]);
    let tls = site.tls_with(None, |options| options.alpn = &[b"mqtt"]);
    assert_eq!(Device::connect(gateway.devices(), &tls).err(), Some(ConnectError::Alert(NO_APPLICATION_PROTOCOL)));
    check_counted(&gateway, &[("handshake_failed", 1)]);
}

#[test]
fn a_handshake_byte_by_byte_has_its_time_and_no_more() {
    let site = Site::new();
    let gateway = site.start("[limits]\nhandshake_time = \"1s\"", &[native()]);
    let hello = client_hello(&site.tls());
    let mut socket = dial(gateway.devices()).unwrap();
    // From before it is accepted, as seen from here.
    let began = Instant::now();
    let mut slow = dial(gateway.devices()).unwrap();
    socket.write_all(&hello[..1]).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut sent = 1;
    loop {
        match socket.read(&mut [0; 64]) {
            Ok(0) => break,
            Ok(_) => panic!("an answer to half a ClientHello"),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                // It may end just now.
                let _ = socket.write_all(&hello[sent..=sent]);
                sent += 1;
            }
            Err(_) => break,
        }
        assert!(began.elapsed() < SOON && sent < hello.len());
    }
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    // And whoever says nothing at all.
    assert_eq!(read_to_end(&mut slow), b"");
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    check_counted(&gateway, &[("handshake_timeout", 2)]);
}

#[test]
fn whoever_says_no_hello_is_told_so() {
    let site = Site::new();
    let gateway = site.start("[limits]\nhello_time = \"700ms\"", &[native()]);
    let tls = site.tls();
    let mut silent = Device::connect(gateway.devices(), &tls).unwrap();
    let began = Instant::now();
    // Half a HELLO is none.
    let mut half = Device::connect(gateway.devices(), &tls).unwrap();
    half.send_plain(&encoded(&[hello("half")])[..5]);
    silent.expect_close(CloseCode::HELLO_TIMEOUT);
    half.expect_close(CloseCode::HELLO_TIMEOUT);
    drop((silent, half));
    // The end of the gateway's handshake lies a little before that of ours.
    assert!(began.elapsed() >= Duration::from_millis(600), "{:?}", began.elapsed());
    check_counted(&gateway, &[("hello_timeout", 2)]);
}

/// Sends this to a gateway that takes frames of 1,024 bytes, with much more behind it, and hears why it is over.
#[track_caller]
fn check_violation(prepare: &[Frame<'_>], plain: &[u8], code: CloseCode, reason: &str) {
    let site = Site::new();
    let gateway = site.start("workers = 2\n[limits]\nframe_bytes = 1024", &[native()]);
    let mut device = Device::connect(gateway.devices(), &site.tls()).unwrap();
    if !prepare.is_empty() {
        device.send(prepare);
        let Welcome { body_max, .. } = device.expect_welcome();
        assert_eq!(body_max, 1_024);
    }
    // A socket closed over unread bytes would answer with a reset, and its CLOSE be lost.
    let mut wire = device.seal(plain);
    wire.extend(device.seal(&vec![7; 200_000]));
    device.send_wire(&wire);
    device.expect_close(code);
    drop(device);
    check_counted(&gateway, &[(reason, 1)]);
}

#[test]
fn a_frame_that_is_too_large_is_refused_by_its_header() {
    check_violation(&[hello("a")], &[5, 4, 1], CloseCode::FRAME_TOO_LARGE, "frame_too_large");
}

#[test]
fn an_unknown_frame_is_refused() {
    check_violation(&[hello("a")], &[0x7f, 0, 0], CloseCode::PROTOCOL_ERROR, "protocol_error");
}

#[test]
fn a_frame_before_hello_is_refused() {
    check_violation(&[], &encoded(&[Frame::Ping(b"")]), CloseCode::PROTOCOL_ERROR, "protocol_error");
}

#[test]
fn a_second_hello_is_refused() {
    check_violation(&[hello("a")], &encoded(&[hello("a")]), CloseCode::PROTOCOL_ERROR, "protocol_error");
}

#[test]
fn a_newer_version_is_refused() {
    let mut newer = encoded(&[hello("a")]);
    newer[3] = 2;
    check_violation(&[], &newer, CloseCode::PROTOCOL_ERROR, "protocol_error");
}

#[test]
fn a_damaged_record_gets_its_alert() {
    let site = Site::new();
    let gateway = site.start("workers = 2", &[native()]);
    let mut device = Device::welcomed(gateway.devices(), &site.tls(), "damaged");
    let mut wire = device.seal(&encoded(&[message(1, b"damaged on its way")]));
    *wire.last_mut().unwrap() ^= 1;
    wire.extend(device.seal(&vec![7; 100_000]));
    device.send_wire(&wire);
    device.expect_alert(BAD_RECORD_MAC);
    drop(device);
    check_counted(&gateway, &[("tls_error", 1)]);
}

#[test]
fn a_wrong_certificate_gets_its_alert() {
    let (site, foreign) = (Site::new(), Site::new());
    let stranger = rcgen::generate_simple_self_signed(["pump-17".to_owned()]).unwrap();
    foreign.write("stranger.pem", &stranger.cert.pem());
    foreign.write("stranger.key", &stranger.signing_key.serialize_pem());
    let gateway = site.start("", &[native().client_auth("required").identity("cert-cn")]);
    let refused = |identity: Option<&_>, code| {
        let tls = site.tls_with(identity, |_| {});
        match Device::connect(gateway.devices(), &tls) {
            // A TLS 1.3 client is done before the server has looked at its certificate.
            Ok(mut device) => device.expect_alert(code),
            Err(error) => assert_eq!(error, ConnectError::Alert(code)),
        }
    };
    refused(Some(&(foreign.path("stranger.pem"), foreign.path("stranger.key"))), UNKNOWN_CA);
    // An authority of the same name, but another one.
    refused(Some(&foreign.identity("pump-17")), DECRYPT_ERROR);
    refused(None, CERTIFICATE_REQUIRED);
    check_counted(&gateway, &[("certificate_rejected", 3)]);
}

/// Whether the gateway takes a connection; if so, a device on it.
fn try_device(address: SocketAddr, tls: &ClientTls, id: &str) -> Option<Device> {
    match Device::connect(address, tls) {
        Ok(mut device) => {
            device.send(&[hello(id)]);
            device.expect_welcome();
            Some(device)
        }
        Err(ConnectError::Eof | ConnectError::Reset) => None,
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn beyond_the_connection_limit_nobody_is_taken() {
    let site = Site::new();
    let gateway = site.start("workers = 2\n[limits]\nconnections = 5", &[native()]);
    let tls = site.tls();
    let mut devices: Vec<_> =
        (0..5).map(|n| try_device(gateway.devices(), &tls, &format!("meter-{n}")).unwrap()).collect();
    for n in 1..=3 {
        assert!(try_device(gateway.devices(), &tls, "late").is_none());
        gateway.expect_refused("connection_limit", n);
    }
    gateway.expect_connections(5);
    devices.pop().unwrap().leave();
    gateway.expect_connections(4);
    devices.push(try_device(gateway.devices(), &tls, "late").unwrap());
    gateway.expect_metric("pulsegate_connections_accepted_total", 6);
}

/// Short of descriptors (or memory, for which this stands) nobody is refused: they wait in the backlog. The poll has
/// told of them once, and nobody rings when there is room again.
#[test]
fn whoever_finds_no_room_waits_and_is_taken_when_there_is_some() {
    const NO_ROOM: &str = "no room for new connections: they wait until there is";
    let site = Site::new();
    let gateway = site.start("workers = 1", &[native()]);
    let tls = site.tls();
    let mut before = Device::welcomed(gateway.devices(), &tls, "before");
    let usual = gateway.limit_descriptors(Some(3));
    let waiting = [dial(gateway.devices()).unwrap(), dial(gateway.devices()).unwrap()];
    wait_until("there is no room", SOON, || !gateway.logged(NO_ROOM).is_empty());
    before.send(&[Frame::Ping(b"still")]);
    assert_eq!(before.hear(), Event::Pong(b"still".to_vec()));
    gateway.limit_descriptors(usual);
    // Nobody comes after them: no event will say that they are there.
    for (n, socket) in waiting.into_iter().enumerate() {
        let mut device = Device::over(socket, &tls).unwrap();
        device.send(&[hello(&format!("waited-{n}"))]);
        device.expect_welcome();
        device.leave();
    }
    before.leave();
    gateway.wait_until_empty();
    assert_eq!(gateway.logged(NO_ROOM).len(), 1, "said once, not with every try");
}

#[test]
fn one_address_opens_only_so_many_in_a_second() {
    const ATTEMPTS: u64 = 40;
    let site = Site::new();
    let gateway = site.start("workers = 1\n[limits]\nconnections_per_address = 5", &[native()]);
    let began = Instant::now();
    let sockets: Vec<_> = (0..ATTEMPTS).map(|_| dial(gateway.devices())).collect();
    let seconds = began.elapsed().as_secs() + 2;
    wait_until("all were taken or refused", SOON, || {
        gateway.refused("address_rate") + gateway.metric("pulsegate_connections_accepted_total") == ATTEMPTS
    });
    let accepted = gateway.metric("pulsegate_connections_accepted_total");
    assert!((5..=5 * seconds).contains(&accepted), "{accepted} within {seconds} s");
    drop(sockets);
    gateway.wait_until_empty();
    assert!(gateway.closed("handshake_abandoned") == accepted);
}

#[test]
fn with_one_handshake_at_a_time_everybody_gets_through() {
    const CLIENTS: usize = 100;
    let site = Site::new();
    let gateway = site.start("workers = 2\n[limits]\nhandshakes = 1", &[native()]);
    let (address, tls) = (gateway.devices(), site.tls());
    // Those who left while they waited are in nobody's way.
    let gone: Vec<_> = (0..50).map(|_| dial(address).unwrap()).collect();
    let hello = client_hello(&tls);
    for mut socket in gone {
        socket.write_all(&hello[..100]).unwrap();
    }
    let devices: Vec<Device> = std::thread::scope(|scope| {
        let connect = |n| {
            let tls = &tls;
            scope.spawn(move || try_device(address, tls, &format!("meter-{n}")).expect("nobody is refused"))
        };
        let connecting: Vec<_> = (0..CLIENTS).map(connect).collect();
        connecting.into_iter().map(|device| device.join().unwrap()).collect()
    });
    gateway.expect_connected(CLIENTS);
    drop(devices);
    gateway.wait_until_empty();
}

#[test]
fn a_device_that_says_close_is_let_go() {
    use pulsegate::codec::native::Close;
    let site = Site::new();
    let gateway = site.start("workers = 2", &[native()]);
    let tls = site.tls();
    let mut device = Device::welcomed(gateway.devices(), &tls, "done");
    device.send(&[Frame::Close(Close { code: CloseCode::NORMAL, retry_after_ms: 0, reason: "done" })]);
    device.expect_close(CloseCode::NORMAL);
    drop(device);
    // One side of the stream is closed, and the other still says goodbye.
    let mut device = Device::welcomed(gateway.devices(), &tls, "leaving");
    let mut wire = Vec::new();
    device.records.burst().close_notify(&mut wire);
    device.send_wire(&wire);
    device.socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(device.hear_all(), [Event::CloseNotify, Event::Eof]);
    drop(device);
    check_counted(&gateway, &[("device_closed", 1), ("peer_closed", 1)]);
}

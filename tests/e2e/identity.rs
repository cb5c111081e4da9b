//! Who a device is: by its word, by its certificate, by its token.

use std::os::unix::fs::FileExt;
use std::process::Stdio;

use pulsegate::codec::native::{CloseCode, Frame, Hello};

use crate::support::{Device, Event, Gateway, SOON, Site, encoded, hello, message, native, raw, wait_for, wait_until};

/// A native device with this certificate that says to be `id`.
fn device(site: &Site, gateway: &Gateway, certificate: Option<&str>, id: &str) -> Device {
    let tls = certificate.map_or_else(|| site.tls(), |name| site.tls_as(name));
    let mut device = Device::connect(gateway.devices(), &tls).unwrap();
    device.send(&[hello(id)]);
    device
}

/// A device whose id is `id` by the rule `from` when its certificate is pump-17's, and what else is refused.
#[track_caller]
fn check_rule(from: &str, id: &str) {
    let site = Site::new();
    let gateway = site.start("", &[native().client_auth("optional").identity(from)]);
    let mut right = device(&site, &gateway, Some("pump-17"), id);
    right.expect_welcome();
    assert_eq!(gateway.device(id).unwrap()["identity"], from);

    let (reason, _) = device(&site, &gateway, Some("pump-17"), "pump-18").expect_close(CloseCode::IDENTITY_MISMATCH);
    assert!(reason.contains("pump-18") && reason.contains(id), "{reason}");
    gateway.expect_closed("identity_mismatch", 1);

    // Refused as soon as TLS stands, so that HELLO may not even be heard.
    let mut nobody = Device::connect(gateway.devices(), &site.tls()).unwrap();
    let (reason, _) = nobody.expect_close(CloseCode::IDENTITY_MISMATCH);
    assert!(reason.contains(from), "{reason}");
    drop(nobody);
    gateway.expect_closed("identity_missing", 1);
    gateway.expect_connected(1);
    right.leave();
    gateway.wait_until_empty();
}

#[test]
fn the_common_name_is_the_device() {
    check_rule("cert-cn", "pump-17");
}

#[test]
fn the_first_dns_name_is_the_device() {
    check_rule("cert-san-dns", "pump-17");
}

#[test]
fn the_first_uri_is_the_device() {
    check_rule("cert-san-uri", "urn:pulsegate:device:pump-17");
}

#[test]
fn a_certificate_without_such_a_name_is_refused() {
    let site = Site::new();
    let gateway = site.start("", &[native().client_auth("required").identity("cert-san-dns")]);
    // No DNS name can be made of this id.
    let tls = site.tls_as("meter:1");
    Device::connect(gateway.devices(), &tls).unwrap().expect_close(CloseCode::IDENTITY_MISMATCH);
    gateway.expect_closed("identity_missing", 1);
    gateway.wait_until_empty();
}

#[test]
fn a_resumed_connection_keeps_the_certificates_name() {
    use pulsegate::tls::handshake::{ClientResumption, Versions};
    let site = Site::new();
    let gateway = site.start("workers = 3", &[native().client_auth("required").identity("cert-cn")]);
    for versions in [Versions::Tls13, Versions::Tls12] {
        let tls = site.tls_with(Some(&site.identity("pump-17")), |options| {
            (options.versions, options.resumption) = (versions, ClientResumption::AwaitTicket);
        });
        for resumed in [false, true, true] {
            let mut device = Device::connect(gateway.devices(), &tls).unwrap();
            assert_eq!(device.resumed, resumed, "{versions:?}");
            device.send(&[hello("pump-17"), message(1, b"here")]);
            device.expect_welcome();
            assert_eq!(device.hear(), Event::Ack(1));
            device.leave();
        }
        let mut other = Device::connect(gateway.devices(), &tls).unwrap();
        assert!(other.resumed);
        other.send(&[hello("pump-18")]);
        other.expect_close(CloseCode::IDENTITY_MISMATCH);
    }
    gateway.expect_metric("pulsegate_handshakes_resumed_total", 6);
    gateway.wait_until_empty();
}

#[test]
fn a_raw_device_is_named_by_its_certificate_or_by_the_gateway() {
    for (from, id) in [("cert-cn", "pump-17"), ("cert-san-uri", "urn:pulsegate:device:pump-17")] {
        let site = Site::new();
        let gateway = site.start("workers = 3", &[raw().client_auth("optional").identity(from)]);
        let connect = |identity: Option<&_>| {
            let tls = site.tls_with(identity, |options| options.alpn = &[]);
            Device::raw(gateway.address("raw"), &tls).unwrap()
        };
        let named = connect(Some(&site.identity("pump-17")));
        let device = wait_for("it is found by its name", SOON, || gateway.device(id));
        assert_eq!(device["identity"], from);
        let unnamed = [connect(None), connect(None)];
        let page = wait_for("those without get names", SOON, || {
            let page = gateway.get_json("/v1/devices?prefix=raw-");
            (page["devices"].as_array().unwrap().len() == 2).then_some(page)
        });
        assert!(page["devices"].as_array().unwrap().iter().all(|device| device["identity"] == "generated"));
        drop((named, unnamed));
        gateway.wait_until_empty();
    }
}

/// Lines of a token file, with hashes that are cheap to check.
fn token_file(site: &Site, tokens: &[(&str, &str)]) {
    let mut text = "# id:hash\n".to_owned();
    for (id, token) in tokens {
        let hashed = std::process::Command::new(env!("CARGO_BIN_EXE_pulsegate"))
            .args(["hash-token", id, "--memory", "64", "--token", token])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(hashed.status.success());
        text += &String::from_utf8(hashed.stdout).unwrap();
    }
    site.write("devices.tokens", &text);
}

#[test]
fn a_token_proves_the_device() {
    let site = Site::new();
    token_file(&site, &[("meter-1", "open sesame"), ("urn:meter:2", "close sesame")]);
    let listener = native().table("identity", "token_file = \"devices.tokens\"\n");
    let gateway = site.start("workers = 3", &[listener]);
    let tls = site.tls();
    let says = |id: &str, token: &[u8]| {
        let mut device = Device::connect(gateway.devices(), &tls).unwrap();
        device.send(&[Frame::Hello(Hello { heartbeat_ms: 0, id, token })]);
        device
    };
    let mut right = [says("meter-1", b"open sesame"), says("urn:meter:2", b"close sesame")];
    for device in &mut right {
        device.expect_welcome();
    }
    for (id, token) in
        [("meter-1", &b"close sesame"[..]), ("meter-1", b""), ("meter-3", b"open sesame"), ("meter-3", b"")]
    {
        says(id, token).expect_close(CloseCode::TOKEN_REJECTED);
    }
    gateway.expect_closed("token_rejected", 4);
    gateway.expect_metric("pulsegate_tokens_rejected_total", 2);
    // Whoever failed to be meter-1 has not taken its place.
    gateway.expect_connected(2);
    assert_eq!(gateway.closed("taken_over"), 0);
    right[0].send(&[Frame::Ping(b"here")]);
    assert_eq!(right[0].hear(), Event::Pong(b"here".to_vec()));
}

/// While its token is checked a connection is not read, and nobody tells the poll again of what came with HELLO.
#[test]
fn what_comes_behind_a_hello_with_a_token_is_not_forgotten() {
    let site = Site::new();
    token_file(&site, &[("meter-1", "open sesame")]);
    let listener = native().table("identity", "token_file = \"devices.tokens\"\n").heartbeat(60_000, 60_000, 1);
    for workers in [1, 3] {
        let gateway = site.start(&format!("workers = {workers}"), std::slice::from_ref(&listener));
        let tls = site.tls();
        for _ in 0..8 {
            let mut device = Device::connect(gateway.devices(), &tls).unwrap();
            let hello = Hello { heartbeat_ms: 0, id: "meter-1", token: b"open sesame" };
            device.send(&[Frame::Hello(hello), message(1, b"hasty")]);
            device.expect_welcome();
            let waited = std::time::Instant::now();
            assert_eq!(device.hear(), Event::Ack(1));
            assert!(waited.elapsed().as_secs() < 2, "looked at after {:?} only", waited.elapsed());
        }
    }
}

/// Who has done its part and waits for a check that takes too long hears of no fault of its own: it is asked to come
/// back, and is taken when it does.
#[test]
fn a_device_whose_token_is_not_judged_in_time_is_asked_to_come_back() {
    let site = Site::new();
    token_file(&site, &[("meter-1", "open sesame")]);
    let tokens = std::fs::read_to_string(site.path("devices.tokens")).unwrap();
    // A second or more of hashing.
    let slow = "slow:$argon2id$v=19$m=131072,t=8,p=1$c2FsdHNhbHQ$MTIzNDU2Nzg5MDEyMzQ1Njc4OTA";
    site.write("devices.tokens", &format!("{tokens}{slow}\n"));
    let listener = native().table("identity", "token_file = \"devices.tokens\"\n");
    let gateway = site.start("workers = 2\n[limits]\nhello_time = \"300ms\"", &[listener]);
    let tls = site.tls();
    let says = |id: &str, token: &[u8]| {
        let mut device = Device::connect(gateway.devices(), &tls).unwrap();
        device.send(&[Frame::Hello(Hello { heartbeat_ms: 0, id, token })]);
        device
    };
    let mut slow = says("slow", b"whatever");
    wait_until("its check has begun, which takes 128 MiB", SOON, || gateway.resident() > 64 << 20);
    slow.send(&[message(1, b"hasty")]);
    let mut behind = says("meter-1", b"open sesame");
    for device in [&mut slow, &mut behind] {
        let (words, retry_after_ms) = device.expect_close(CloseCode::TRY_LATER);
        assert_eq!(words, "token_unanswered");
        assert!((5_000..=15_000).contains(&retry_after_ms), "{retry_after_ms}");
    }
    gateway.expect_closed("token_unanswered", 2);
    let mut device = wait_for("it is taken", 6 * SOON, || {
        let mut device = says("meter-1", b"open sesame");
        matches!(device.hear(), Event::Welcome(_)).then_some(device)
    });
    device.send(&[Frame::Ping(b"here")]);
    assert_eq!(device.hear(), Event::Pong(b"here".to_vec()));
    assert_eq!(gateway.closed("hello_timeout"), 0);
}

/// Where in the gateway's memory these bytes are; `None`: this user may not look.
fn found_in_memory(gateway: &Gateway, needle: &[u8]) -> Option<Vec<String>> {
    const PAGE: usize = 4_096;
    let proc = |file: &str| format!("/proc/{}/{file}", gateway.process());
    let memory = std::fs::File::open(proc("mem")).ok()?;
    let maps = std::fs::read_to_string(proc("maps")).ok()?;
    let mut found = Vec::new();
    for map in maps.lines().filter(|map| map.split(' ').nth(1).is_some_and(|rights| rights.starts_with("rw"))) {
        let (start, end) = map.split(' ').next().unwrap().split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16).unwrap());
        let mut bytes = vec![0; end - start];
        let Ok(read) = memory.read_at(&mut bytes, start as u64) else { continue };
        for page in (0..read).step_by(PAGE) {
            let window = &bytes[page..read.min(page + PAGE + needle.len() - 1)];
            if window.contains(&needle[0]) && window.windows(needle.len()).any(|part| part == needle) {
                found.push(format!("{map} at {page:#x}"));
            }
        }
    }
    Some(found)
}

#[test]
fn a_password_is_wiped_when_it_has_been_judged() {
    let site = Site::new();
    // The middle of it, which is what is looked for, begins with a byte that is rare.
    let (token, needle) = ("open \u{7fc} sesame and close it again", "\u{7fc} sesame and close");
    token_file(&site, &[("meter-1", token), ("meter-2", token), ("meter-3", token)]);
    let gateway = site.start("workers = 1", &[native().table("identity", "token_file = \"devices.tokens\"\n")]);
    let tls = site.tls();
    let hello =
        |id: &str, token: &str| encoded(&[Frame::Hello(Hello { heartbeat_ms: 0, id, token: token.as_bytes() })]);
    let mut whole = Device::connect(gateway.devices(), &tls).unwrap();
    whole.send_plain(&hello("meter-1", token));
    whole.expect_welcome();
    // In two parts, the first of which waits for the other with most of the secret in it.
    let mut halves = Device::connect(gateway.devices(), &tls).unwrap();
    let frame = hello("meter-2", token);
    halves.send_plain(&frame[..frame.len() - 2]);
    gateway.expect_connections(2);
    if found_in_memory(&gateway, needle.as_bytes()).is_none() {
        eprintln!("memory cannot be looked at by this user: nothing was proven");
        return;
    }
    wait_until("a half secret waits", SOON, || !found_in_memory(&gateway, needle.as_bytes()).unwrap().is_empty());
    halves.send_plain(&frame[frame.len() - 2..]);
    halves.expect_welcome();
    // One that is wrong, and one whose connection ends before it is whole.
    let mut wrong = Device::connect(gateway.devices(), &tls).unwrap();
    wrong.send_plain(&hello("meter-3", &token[1..]));
    wrong.expect_close(CloseCode::TOKEN_REJECTED);
    let mut gone = Device::connect(gateway.devices(), &tls).unwrap();
    gone.send_plain(&frame[..frame.len() - 2]);
    gone.leave();
    gateway.expect_connected(2);
    let mut left = Vec::new();
    wait_until("no secret is left", SOON, || {
        left = found_in_memory(&gateway, needle.as_bytes()).unwrap();
        for place in &left {
            eprintln!("left: {place}");
        }
        left.is_empty()
    });
}

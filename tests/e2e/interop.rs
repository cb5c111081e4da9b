//! Clients that we did not write: the `openssl` command and Python's `ssl` module, both versions, every suite, with and
//! without client certificates, resumed and full, with key updates.

use crate::support::{Gateway, Listener, Program, SOON, Site, native, raw, wait_until};

const TLS13: [&str; 3] = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];
const TLS12: [&str; 3] = ["AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305"];

/// `raw` answers each heartbeat with `pong`, `rsa` the same with an RSA certificate of its own, `devices` is native.
fn start(site: &Site) -> Gateway {
    site.self_signed("rsa");
    site.certify(&["pump-17"]);
    let reply = "reply = \"pong\"\n";
    let rsa = Listener::new("rsa", "raw").certificate("rsa.pem", "rsa.key").client_auth("optional");
    let listeners =
        [native().client_auth("optional"), raw().client_auth("optional").table("raw", reply), rsa.table("raw", reply)];
    site.start("workers = 2", &listeners)
}

/// `openssl s_client` to a listener, verifying it, with these further arguments.
fn s_client(site: &Site, gateway: &Gateway, listener: &str, more: &[&str]) -> Program {
    let address = gateway.address(listener).to_string();
    let authority = if listener == "rsa" { "rsa.pem" } else { "certs/ca.pem" };
    let mut arguments = vec!["s_client", "-connect", &address, "-CAfile", authority, "-verify_return_error"];
    arguments.extend(["-servername", "localhost", "-verify_hostname", "localhost"]);
    arguments.extend(more);
    Program::openssl(site.directory(), &arguments)
}

/// Sends a heartbeat, waits for its reply (the `replies`th), and checks what the gateway says of the device.
#[track_caller]
fn check_heartbeat(client: &mut Program, replies: usize) {
    client.write(b"heartbeat");
    client.expect_times(b"pong", replies);
}

#[track_caller]
fn end(mut client: Program) {
    client.end_input();
    assert!(client.wait(SOON).success());
}

#[track_caller]
fn check_suite(site: &Site, gateway: &Gateway, listener: &str, arguments: &[&str], version: &str, cipher: &str) {
    for identity in [&[][..], &["-cert", "certs/client-pump-17.pem", "-key", "certs/client-pump-17.key"]] {
        let mut client = s_client(site, gateway, listener, &[arguments, identity].concat());
        check_heartbeat(&mut client, 1);
        check_heartbeat(&mut client, 2);
        let page = gateway.get_json("/v1/devices");
        let device = &page["devices"][0];
        assert_eq!((&device["tls_version"], &device["tls_suite"]), (&version.into(), &cipher.into()), "{page}");
        let named = if identity.is_empty() { "generated" } else { "cert-cn" };
        assert_eq!(device["identity"], named);
        assert!(identity.is_empty() || device["id"] == "pump-17");
        end(client);
        gateway.expect_connections(0);
    }
}

#[test]
fn openssl_speaks_every_suite_of_tls_1_3() {
    let site = Site::new();
    let gateway = start(&site);
    for suite in TLS13 {
        check_suite(&site, &gateway, "raw", &["-tls1_3", "-ciphersuites", suite], "TLSv1.3", suite);
    }
    // openssl offers TLS_AES_256_GCM_SHA384 first; the gateway chooses.
    check_suite(&site, &gateway, "rsa", &["-tls1_3"], "TLSv1.3", "TLS_AES_128_GCM_SHA256");
    gateway.wait_until_empty();
    assert_eq!(gateway.all_closed(), [("peer_closed".to_owned(), 8)]);
}

#[test]
fn openssl_speaks_every_suite_of_tls_1_2() {
    let site = Site::new();
    let gateway = start(&site);
    for (listener, signature) in [("raw", "ECDSA"), ("rsa", "RSA")] {
        for suite in TLS12 {
            let cipher = format!("ECDHE-{signature}-{suite}");
            let name = match suite {
                "AES128-GCM-SHA256" => "AES_128_GCM_SHA256",
                "AES256-GCM-SHA384" => "AES_256_GCM_SHA384",
                _ => "CHACHA20_POLY1305_SHA256",
            };
            let name = format!("TLS_ECDHE_{signature}_WITH_{name}");
            check_suite(&site, &gateway, listener, &["-tls1_2", "-cipher", &cipher], "TLSv1.2", &name);
        }
    }
    gateway.wait_until_empty();
    assert_eq!(gateway.all_closed(), [("peer_closed".to_owned(), 12)]);
}

#[test]
fn openssl_resumes() {
    let site = Site::new();
    let gateway = start(&site);
    let identity = ["-cert", "certs/client-pump-17.pem", "-key", "certs/client-pump-17.key"];
    for (version, name) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        for identity in [&[][..], &identity] {
            let mut full = s_client(&site, &gateway, "raw", &[&[version, "-sess_out", "session"], identity].concat());
            full.expect(&format!("New, {name}"));
            check_heartbeat(&mut full, 1);
            end(full);
            for _ in 0..2 {
                let arguments = [&[version, "-sess_in", "session", "-sess_out", "session"], identity].concat();
                let mut resumed = s_client(&site, &gateway, "raw", &arguments);
                resumed.expect(&format!("Reused, {name}"));
                check_heartbeat(&mut resumed, 1);
                if !identity.is_empty() {
                    assert_eq!(gateway.device("pump-17").unwrap()["identity"], "cert-cn");
                }
                end(resumed);
            }
        }
    }
    gateway.expect_metric("pulsegate_handshakes_full_total", 4);
    gateway.expect_metric("pulsegate_handshakes_resumed_total", 8);
    gateway.wait_until_empty();
}

#[test]
fn openssl_updates_its_keys_and_ours() {
    let site = Site::new();
    let gateway = start(&site);
    for suite in TLS13 {
        let mut client = s_client(&site, &gateway, "raw", &["-tls1_3", "-ciphersuites", suite]);
        check_heartbeat(&mut client, 1);
        for (round, command) in ["k", "K", "K", "k", "K"].into_iter().enumerate() {
            let before = gateway.metric("pulsegate_tls_key_updates_total");
            client.write(command.as_bytes());
            wait_until("the key is updated", SOON, || gateway.metric("pulsegate_tls_key_updates_total") > before);
            check_heartbeat(&mut client, round + 2);
        }
        end(client);
    }
    gateway.wait_until_empty();
    assert_eq!(gateway.all_closed(), [("peer_closed".to_owned(), 3)]);
}

#[test]
fn openssl_is_refused_renegotiation_and_lives_on() {
    let site = Site::new();
    let gateway = start(&site);
    let mut client = s_client(&site, &gateway, "raw", &["-tls1_2"]);
    check_heartbeat(&mut client, 1);
    client.write(b"R");
    client.expect("RENEGOTIATING");
    // openssl gives up when it is refused; the gateway has not broken anything.
    client.expect("no renegotiation");
    drop(client);
    gateway.wait_until_empty();
    assert_eq!(gateway.closed("protocol_error"), 0);
}

#[test]
fn openssl_agrees_on_the_protocol_or_is_refused() {
    let site = Site::new();
    let gateway = start(&site);
    for version in ["-tls1_3", "-tls1_2"] {
        let client = s_client(&site, &gateway, "devices", &[version, "-alpn", "h2,pulsegate/1"]);
        client.expect("ALPN protocol: pulsegate/1");
        end(client);
        let mut client = s_client(&site, &gateway, "devices", &[version, "-alpn", "h2,mqtt"]);
        client.expect("alert no application protocol");
        assert!(!client.wait(SOON).success());
    }
    gateway.wait_until_empty();
    assert_eq!(gateway.all_closed(), [("handshake_failed".to_owned(), 2), ("peer_closed".to_owned(), 2)]);
}

#[test]
fn a_device_can_be_written_from_the_hex_of_the_page() {
    let site = Site::new();
    let gateway = start(&site);
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/PROTOCOL.md")).unwrap();
    let frames = |name: &str| -> Vec<Vec<u8>> {
        let head = format!("```hex {name}\n");
        page.split(&head).skip(1).map(|block| from_hex(block.split("```").next().unwrap())).collect()
    };
    let mut client = s_client(&site, &gateway, "devices", &["-quiet", "-alpn", "pulsegate/1"]);
    // The device of the page, with its token, which a listener without a token file ignores.
    client.write(&frames("HELLO")[0]);
    let welcome = [2, 0, 12, 1, 0, 0, 0x75, 0x30, 0, 0, 0x27, 0x10, 2, 0x40, 0];
    client.expect_times(&welcome, 1);
    assert_eq!(frames("WELCOME")[0], welcome);
    assert_eq!(gateway.device("meter-0042").unwrap()["identity"], "hello");
    client.write(&frames("MESSAGE")[0]);
    client.expect_times(&frames("ACK")[0], 1);
    client.write(&frames("PING")[0]);
    client.expect_times(&frames("PONG")[0], 1);
    client.write(&frames("CLOSE")[0]);
    // CLOSE normal comes back, and then the end.
    client.expect_times(&[7, 0], 1);
    client.wait(SOON);
    gateway.expect_closed("device_closed", 1);
}

/// The bytes of a hex block, whose comments stand behind `|`.
fn from_hex(block: &str) -> Vec<u8> {
    let lines = block.lines().filter_map(|line| line.split('|').next());
    lines.flat_map(str::split_whitespace).map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

#[test]
fn python_speaks_both_versions_and_both_protocols() {
    let site = Site::new();
    let gateway = start(&site);
    let ports = ["raw", "devices"].map(|listener| gateway.address(listener).port().to_string());
    for version in ["1.3", "1.2"] {
        for identity in [&[][..], &["certs/client-pump-17.pem", "certs/client-pump-17.key"]] {
            let arguments = [&[&*ports[0], &*ports[1], version], identity].concat();
            let mut client = Program::python(site.directory(), "interop.py", &arguments);
            let status = client.wait(2 * SOON);
            assert!(status.success());
            client.expect("refused");
            let printed = client.text();
            let expected = [
                format!("raw full TLSv{version} False pong"),
                format!("raw resumed TLSv{version} True pong"),
                "native pulsegate/1 2 (1, 60000, 10000, 2, 16384)".to_owned(),
                "pong (4, b'ping')".to_owned(),
                "ack (6, b'\\x00\\x00\\x00\\x01')".to_owned(),
                "close 7".to_owned(),
                "end b''".to_owned(),
                "refused SSLError".to_owned(),
            ];
            assert_eq!(printed.lines().collect::<Vec<_>>(), expected);
        }
    }
    gateway.wait_until_empty();
    let closed = gateway.all_closed();
    let expected = [("device_closed", 4), ("handshake_failed", 4), ("peer_closed", 8)];
    assert_eq!(closed, expected.map(|(reason, count)| (reason.to_owned(), count)));
}

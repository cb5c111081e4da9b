//! The HTTP API over TLS: for whom it is there, what it says to others, and a certificate that changes under way.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use pulsegate::tls::certs::development;
use serde_json::Value;

use crate::support::{Gateway, Program, SOON, Site, native, wait_for, wait_until};

const ADMIN: &str = "[admin]\nlisten = \"127.0.0.1:0\"\n[admin.tls]\ncert = \"api.pem\"\nkey = \"api.key\"\n";

/// A site whose API shows the development certificate, under names of its own.
fn site() -> Site {
    let site = Site::new();
    show(&site, "certs/server");
    site
}

/// From now on the API is to show this pair.
fn show(site: &Site, pair: &str) {
    // The key first: a pair that is caught in the middle is tried again.
    fs::copy(site.path(&format!("{pair}.key")), site.path("api.key")).unwrap();
    fs::copy(site.path(&format!("{pair}.pem")), site.path("api.pem")).unwrap();
}

fn address(gateway: &Gateway) -> SocketAddr {
    gateway.admin().strip_prefix("http://").unwrap().parse().unwrap()
}

/// The command line against the API: whether it did it, and all that it said.
fn run(gateway: &Gateway, site: &Site, scheme: &str, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    command.current_dir(site.directory()).args(arguments);
    command.args(["--admin", &format!("{scheme}://localhost:{}", address(gateway).port())]);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    (output.status.success(), text)
}

/// What openssl says of a handshake with the API.
fn handshake(gateway: &Gateway, site: &Site, more: &[&str]) -> String {
    let connect = address(gateway).to_string();
    let mut arguments = vec!["s_client", "-connect", &connect, "-CAfile", "certs/ca.pem"];
    arguments.extend(more);
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(site.directory())
        .stdin(std::process::Stdio::null())
        .output()
        .expect("openssl is installed");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

fn serial(path: &Path) -> String {
    let output = Command::new("openssl").args(["x509", "-noout", "-serial", "-in"]).arg(path).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn shown_serial(gateway: &Gateway, site: &Site) -> String {
    let text = handshake(gateway, site, &["-showcerts"]);
    let begin = text.find("-----BEGIN CERTIFICATE-----").unwrap_or_else(|| panic!("no certificate: {text}"));
    site.write("shown.pem", &text[begin..]);
    serial(&site.path("shown.pem"))
}

#[test]
fn the_api_is_spoken_over_both_versions_of_tls_and_nothing_else() {
    let site = site();
    let gateway = site.start(&format!("workers = 1\n{ADMIN}"), &[native()]);
    for version in ["-tls1_3", "-tls1_2"] {
        let text = handshake(&gateway, &site, &[version, "-alpn", "http/1.1"]);
        assert!(
            text.contains("Verify return code: 0") && text.contains("ALPN protocol: http/1.1"),
            "{version}: {text}"
        );
    }
    let (is_done, text) = run(&gateway, &site, "https", &["devices", "--admin-ca", "certs/ca.pem"]);
    assert!(is_done, "{text}");
    let (is_done, text) = run(&gateway, &site, "https", &["top", "--once", "--admin-ca", "certs/ca.pem"]);
    assert!(is_done && text.contains("0 devices"), "{text}");
    // Whoever knows another authority is told so; whoever speaks plain HTTP is told what to write, in plain HTTP.
    let (is_done, text) = run(&gateway, &site, "https", &["devices"]);
    assert!(!is_done && text.contains("cannot be reached"), "{text}");
    let (is_done, text) = run(&gateway, &site, "http", &["devices"]);
    assert!(!is_done && text.contains("write https:// in place of http://"), "{text}");
    for request in ["GET /v1/overview HTTP/1.1\r\nhost: localhost\r\n\r\n", "POST /v1/reload HTTP/1.0\r\n", "X"] {
        let mut stream = TcpStream::connect(address(&gateway)).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer and the end of the stream");
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("\"https_needed\""), "{answer}");
    }
    let (is_done, text) = run(&gateway, &site, "https", &["devices", "--admin-ca", "pulsegate.toml"]);
    assert!(!is_done && text.contains("pulsegate.toml holds no certificate"), "{text}");

    // Whoever stops halfway keeps nobody waiting, and is let go in the time that a head has.
    let mut halfway: Vec<_> = (0..64).map(|_| TcpStream::connect(address(&gateway)).unwrap()).collect();
    for stream in &mut halfway {
        stream.write_all(b"\x16\x03\x01").unwrap();
    }
    let (is_done, text) = run(&gateway, &site, "https", &["devices", "--admin-ca", "certs/ca.pem"]);
    assert!(is_done, "{text}");
    let mut first = halfway.remove(0);
    first.set_read_timeout(Some(SOON * 2)).unwrap();
    assert!(matches!(first.read(&mut [0; 16]), Ok(0) | Err(_)), "it is closed");
}

#[test]
fn with_authorities_of_its_own_it_answers_those_alone_who_show_a_certificate() {
    let site = site();
    site.certify(&["operator"]);
    let admin = format!("workers = 1\n{ADMIN}client_ca = \"certs/ca.pem\"\n");
    let gateway = site.start(&admin, &[native()]);
    let ca = ["--admin-ca", "certs/ca.pem"];
    let own = ["--admin-cert", "certs/client-operator.pem", "--admin-key", "certs/client-operator.key"];
    let (is_done, text) = run(&gateway, &site, "https", &[&["devices"][..], &ca, &own].concat());
    assert!(is_done, "{text}");
    let (is_done, text) = run(&gateway, &site, "https", &[&["devices"][..], &ca].concat());
    assert!(!is_done && text.contains("cannot be reached"), "{text}");
    // Another authority's.
    site.self_signed("stranger");
    let stranger = ["--admin-cert", "stranger.pem", "--admin-key", "stranger.key"];
    let (is_done, text) = run(&gateway, &site, "https", &[&["devices"][..], &ca, &stranger].concat());
    assert!(!is_done, "{text}");
}

#[test]
fn its_certificate_changes_under_way_and_a_wrong_one_changes_nothing() {
    let site = site();
    let gateway = site.start(&format!("workers = 1\n{ADMIN}"), &[native()]);
    let first = serial(&site.path("certs/server.pem"));
    assert_eq!(shown_serial(&gateway, &site), first);

    // A reader that follows meanwhile stays.
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    let admin = format!("https://localhost:{}", address(&gateway).port());
    command.current_dir(site.directory()).args(["watch", "--no-reconnect", "--json", "--since", "first"]);
    command.args(["--admin-ca", "certs/ca.pem", "--admin", &admin]);
    let mut reader = Program::start(command);

    fs::create_dir(site.path("other")).unwrap();
    for name in ["ca.pem", "ca.key"] {
        fs::copy(site.path(&format!("certs/{name}")), site.path(&format!("other/{name}"))).unwrap();
    }
    development::ensure(&site.path("other"), &[], SystemTime::now()).unwrap();
    fs::copy(site.path("other/server.pem"), site.path("api.pem")).unwrap();
    let (is_done, text) = run(&gateway, &site, "https", &["reload", "--admin-ca", "certs/ca.pem"]);
    assert!(!is_done && text.contains("admin.tls") && text.contains("all that was in effect stays"), "{text}");
    assert_eq!(shown_serial(&gateway, &site), first, "the pair does not fit, and the old one holds");

    fs::copy(site.path("other/server.key"), site.path("api.key")).unwrap();
    let second = serial(&site.path("other/server.pem"));
    assert_ne!(first, second);
    wait_until("the fresh certificate is shown", SOON * 2, || shown_serial(&gateway, &site) == second);
    let (is_done, text) = run(&gateway, &site, "https", &["devices", "--admin-ca", "certs/ca.pem"]);
    assert!(is_done, "{text}");
    // It is told when it ends.
    let metrics = gateway_metrics(&gateway, &site);
    assert!(metrics.contains("pulsegate_certificate_not_after_seconds{listener=\"[admin]\""), "{metrics}");

    crate::support::Device::welcomed(gateway.devices(), &site.tls(), "meter-1").leave();
    reader.expect("meter-1");
    assert!(reader.is_running());

    // And it may go altogether: what is open stays, what is new speaks plainly.
    let plain = fs::read_to_string(site.path("pulsegate.toml")).unwrap();
    let plain = plain.replace("[admin.tls]\ncert = \"api.pem\"\nkey = \"api.key\"\n", "");
    site.write("pulsegate.toml", &plain);
    let overview: Value = wait_for("the API speaks plain HTTP", SOON * 2, || {
        let (status, body) = gateway.try_get("/v1/overview")?;
        (status == 200).then(|| serde_json::from_str(&body).unwrap())
    });
    assert!(overview["devices"].is_u64());
    assert!(reader.is_running());
}

/// What a scraper gets.
fn gateway_metrics(gateway: &Gateway, site: &Site) -> String {
    let connect = address(gateway).to_string();
    let mut openssl = Program::openssl(
        site.directory(),
        &["s_client", "-quiet", "-connect", &connect, "-CAfile", "certs/ca.pem", "-verify_quiet"],
    );
    openssl.write(b"GET /metrics HTTP/1.0\r\n\r\n");
    openssl.expect("pulsegate_build_info");
    openssl.wait(SOON);
    openssl.text()
}

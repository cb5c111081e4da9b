//! What is configured changes under live connections, all of it or nothing of it.

use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use pulsegate::codec::native::{ALPN, Frame, Hello};
use pulsegate::tls::certs::development;
use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::support::{Device, Gateway, Heard, Site, wait_for};

/// A site whose native listener asks for tokens, and a second server certificate beside the first.
fn site() -> Site {
    let site = Site::new("[limits]\nconnections = 1000");
    let config = site.path().join("pulsegate.toml");
    let text = fs::read_to_string(&config).unwrap();
    let (devices, raw) = text.split_once("[[listener]]\nname = \"raw\"").unwrap();
    let tokens = "[listener.identity]\ntoken_file = \"tokens\"\n";
    fs::write(&config, format!("{devices}{tokens}[[listener]]\nname = \"raw\"{raw}")).unwrap();
    write_tokens(&site, &["stays"]);
    another_certificate(&site, "other");
    site
}

/// Makes another server certificate of the same authority, in a directory of its own.
fn another_certificate(site: &Site, directory: &str) -> PathBuf {
    let made = site.path().join(directory);
    fs::create_dir(&made).unwrap();
    for name in ["ca.pem", "ca.key"] {
        fs::copy(site.path().join("certs").join(name), made.join(name)).unwrap();
    }
    development::ensure(&made, &[], SystemTime::now()).unwrap();
    made
}

/// Each device's token is its own name.
fn write_tokens(site: &Site, devices: &[&str]) {
    let line = |device: &&str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
        command.args(["hash-token", device, "--memory", "64", "--token", device]);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let file = site.path().join("tokens");
    fs::write(&file, devices.iter().map(line).collect::<String>()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
}

#[track_caller]
fn say_hello(gateway: &Gateway, site: &Site, id: &str) -> (Device, Heard) {
    say_hello_from(Ipv4Addr::LOCALHOST, gateway, site, id)
}

fn say_hello_from(source: Ipv4Addr, gateway: &Gateway, site: &Site, id: &str) -> (Device, Heard) {
    let mut device = Device::over_from(source, gateway.devices, &site.path().join("certs/ca.pem"), Some(ALPN));
    device.say(&Frame::Hello(Hello { heartbeat_ms: 0, id, token: id.as_bytes() }));
    let heard = device.hear();
    (device, heard)
}

/// The certificate that a handshake of now is shown.
fn shown(gateway: &Gateway, site: &Site) -> CertificateDer<'static> {
    let (device, _) = say_hello(gateway, site, "nobody");
    device.stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
}

fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

fn copy_pair(from: &Path, to: &Path) {
    for name in ["server.pem", "server.key"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

#[track_caller]
fn reload(gateway: &Gateway) -> (u16, Value) {
    gateway.ask("POST", "/v1/reload", None)
}

#[test]
fn good_and_bad_reloads_in_turns_disconnect_nobody_and_hold_for_the_next_handshake() {
    let site = site();
    let (certs, other) = (site.path().join("certs"), site.path().join("other"));
    let first = another_certificate(&site, "first");
    copy_pair(&certs, &first);
    let gateway = site.start();
    let mut fleet: Vec<Device> = (0..20).map(|_| gateway.connect_raw()).collect();
    let say_something = |device: &mut Device| device.stream.write_all(b"heartbeat").unwrap();
    fleet.iter_mut().for_each(say_something);
    let (mut stays, welcome) = say_hello(&gateway, &site, "stays");
    assert_eq!(welcome, Heard::Welcome);

    for round in 0..20 {
        let source = if round % 2 == 0 { &other } else { &first };
        copy_pair(source, &certs);
        let newcomer = format!("new-{round}");
        write_tokens(&site, &["stays", &newcomer]);
        let (status, report) = reload(&gateway);
        assert_eq!(status, 200, "{report}");
        assert_eq!(shown(&gateway, &site), certificate(&source.join("server.pem")), "round {round}");
        assert_eq!(say_hello(&gateway, &site, &newcomer).1, Heard::Welcome, "round {round}");
        // From an address of its own: whoever goes on offering what is not right is asked to come later.
        let stranger = Ipv4Addr::new(127, 0, 1, 1 + round as u8);
        let gone = say_hello_from(stranger, &gateway, &site, &format!("new-{}", round - 1)).1;
        assert!(matches!(&gone, Heard::Close { code, .. } if code == "token_rejected"), "{gone:?}");

        // Wrong, each time in another way: all of the old stays, what is right beside it included.
        write_tokens(&site, &["stays", "too-early"]);
        let config = fs::read_to_string(site.path().join("pulsegate.toml")).unwrap();
        let named = match round {
            // What may be half written is tried for some seconds: few of those.
            7 => {
                fs::write(certs.join("server.key"), "half a k").unwrap();
                "certs/server.key"
            }
            0..=14 => {
                fs::write(site.path().join("pulsegate.toml"), config.replace("protocol = \"raw\"", "protocol = 7"))
                    .unwrap();
                "listener[1].protocol"
            }
            15 => {
                fs::write(site.path().join("tokens"), "stays:x\n").unwrap();
                "tokens, line 1"
            }
            _ => {
                let wrong = config.replace("name = \"raw\"", "name = \"devices\"");
                fs::write(site.path().join("pulsegate.toml"), wrong).unwrap();
                "another listener has this name"
            }
        };
        let (status, refused) = reload(&gateway);
        let message = refused["error"]["message"].as_str().unwrap_or_default();
        assert!(status == 422 && message.contains(named), "{status} {refused}");
        assert_eq!(say_hello(&gateway, &site, &newcomer).1, Heard::Welcome, "round {round}");
        assert_ne!(say_hello(&gateway, &site, "too-early").1, Heard::Welcome, "round {round}");
        assert_eq!(shown(&gateway, &site), certificate(&source.join("server.pem")), "round {round}");
        fs::write(site.path().join("pulsegate.toml"), config).unwrap();
    }

    // Whoever was there still is, and is served.
    fleet.iter_mut().for_each(say_something);
    assert_eq!(gateway.send("stays", &json!({"payload": "x"})).0, 200);
    assert!(matches!(stays.hear(), Heard::Message { .. }));
    let closed = gateway.ask("GET", "/v1/overview", None).1["closed"].clone();
    for reason in ["requested", "expired", "taken_over", "tls_error", "protocol_error", "shutdown"] {
        assert_eq!(closed[reason], 0, "{closed}");
    }
    assert_eq!(gateway.metric("pulsegate_devices"), Some(21), "{closed}");
    assert_eq!(gateway.metric("pulsegate_reload_refused"), Some(1));
}

/// As Kubernetes mounts a secret: the directory of the moment is behind a link, which is swapped.
#[test]
fn files_that_change_are_read_by_themselves() {
    let site = site();
    let path = |name: &str| site.path().join(name);
    fs::rename(path("certs"), path("..1")).unwrap();
    fs::rename(path("other"), path("..2")).unwrap();
    symlink("..1", path("certs")).unwrap();
    let gateway = site.start();
    assert_eq!(shown(&gateway, &site), certificate(&path("..1/server.pem")));
    symlink("..2", path("..fresh")).unwrap();
    fs::rename(path("..fresh"), path("certs")).unwrap();
    let wanted = certificate(&path("..2/server.pem"));
    wait_for("the new certificate is shown", || (shown(&gateway, &site) == wanted).then_some(()));
}

#[test]
fn a_pair_that_is_being_written_is_waited_for() {
    let site = site();
    let (certs, other) = (site.path().join("certs"), site.path().join("other"));
    let gateway = site.start();
    fs::copy(other.join("server.pem"), certs.join("server.pem")).unwrap();
    // The request finds certificate and key of two pairs, and waits for the second half.
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| reload(&gateway));
        gateway.program.expect("not yet reloaded", 1);
        fs::copy(other.join("server.key"), certs.join("server.key")).unwrap();
        let (status, report) = asked.join().unwrap();
        assert_eq!((status, &report["changed"][0]), (200, &json!("listener \"devices\": tls")), "{report}");
    });
    assert_eq!(shown(&gateway, &site), certificate(&other.join("server.pem")));
    assert_eq!(gateway.metric("pulsegate_reloads_refused_total"), Some(0));
}

#[test]
fn the_command_tells_what_changed_what_does_not_and_all_that_is_wrong() {
    let site = site();
    let gateway = site.start();
    let config = site.path().join("pulsegate.toml");
    let text = fs::read_to_string(&config).unwrap();
    assert_eq!(gateway.run(&["reload"], b""), (0, "nothing has changed\n".to_owned(), String::new()));

    let changed =
        text.replace("workers = 2\n[limits]\n", "workers = 3\n[limits]\nhello_time = \"3s\"\npacket_bytes = 2048\n");
    fs::write(&config, &changed).unwrap();
    let (code, told, errors) = gateway.run(&["reload"], b"");
    assert_eq!((code, errors.as_str()), (0, ""));
    let lines: Vec<&str> = told.lines().filter(|line| !line.starts_with("warning")).collect();
    let wanted =
        ["changed: limits.hello_time", "holds after a restart: workers", "holds after a restart: limits.packet_bytes"];
    assert_eq!(lines, wanted);

    fs::set_permissions(site.path().join("tokens"), fs::Permissions::from_mode(0o644)).unwrap();
    let (_, told, _) = gateway.run(&["reload"], b"");
    assert!(told.contains("every user may read") && told.contains("identity.token_file"), "{told}");

    let wrong = changed.replace("hello_time = \"3s\"", "hello_time = \"soon\"\nhandshakes = 0");
    fs::write(&config, wrong.replace("protocol = \"native\"", "protocol = \"nativ\"")).unwrap();
    let (code, told, errors) = gateway.run(&["reload"], b"");
    assert_eq!((code, told.as_str()), (1, ""));
    for part in ["pulsegate.toml:3: limits.hello_time:", ":4: limits.handshakes:", ": protocol: \"nativ\""] {
        assert!(errors.contains(part), "{part} is not in {errors}");
    }

    // A signal does the same, and its outcome is in the log.
    fs::write(&config, text).unwrap();
    gateway.program.signal(Signal::HUP);
    let line = gateway.program.expect("\"cause\":\"SIGHUP\"", 1);
    assert!(line.contains("limits.hello_time"), "{line}");
}

#[test]
fn who_is_denied_is_gone_at_once_and_does_not_come_in() {
    let site = site();
    write_tokens(&site, &["stays", "stolen", "sold"]);
    let config = site.path().join("pulsegate.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("deny_file = \"deny\"\n{text}")).unwrap();
    fs::write(site.path().join("deny"), "# none yet\n").unwrap();
    let gateway = site.start();
    let welcomed = |id: &str| {
        let (device, heard) = say_hello(&gateway, &site, id);
        assert_eq!(heard, Heard::Welcome, "{id}");
        device
    };
    let is_denied = |heard: &Heard| matches!(heard, Heard::Close { code, .. } if code == "denied");
    let (mut stays, mut stolen, mut sold) = (welcomed("stays"), welcomed("stolen"), welcomed("sold"));

    // By the API: when the command is done the device has gone, and it does not come back.
    assert_eq!(gateway.run(&["block", "stolen", "--for", "1h"], b"").0, 0);
    assert_eq!(gateway.ask("GET", "/v1/devices/stolen", None).0, 404);
    assert!(is_denied(&stolen.hear()));
    assert!(is_denied(&say_hello(&gateway, &site, "stolen").1));
    let (_, listed, _) = gateway.run(&["blocks"], b"");
    assert!(listed.starts_with("device      stolen  until ") && listed.ends_with(", by api\n"), "{listed}");

    // By the file, beside it, noticed by itself.
    fs::write(site.path().join("deny"), "device sold\n").unwrap();
    assert!(is_denied(&sold.hear()));
    assert!(is_denied(&say_hello(&gateway, &site, "stolen").1));
    assert_eq!(gateway.run(&["unblock", "sold"], b"").0, 1, "that is the file's");
    assert_eq!(gateway.run(&["unblock", "stolen"], b""), (0, "unblocked\n".to_owned(), String::new()));
    drop(welcomed("stolen"));

    // A network: refused before TLS, and who is connected goes.
    assert_eq!(gateway.run(&["block", "--network", "127.0.0.0/8"], b"").0, 0);
    let mut refused = std::net::TcpStream::connect(gateway.devices).unwrap();
    assert!(!matches!(std::io::Read::read(&mut refused, &mut [0; 1]), Ok(1..)), "it is closed without a byte");
    assert!(is_denied(&stays.hear()));
    let (status, answer) = gateway.ask("POST", "/v1/blocks", Some(&json!({"network": "127"})));
    assert!(status == 400 && answer["error"]["message"].as_str().unwrap().contains("192.0.2.0/24"), "{answer}");

    // A file that is wrong changes nothing.
    fs::write(site.path().join("deny"), "stolen\n").unwrap();
    gateway.program.expect("deny, line 1: write", 1);
    assert_eq!(gateway.run(&["unblock", "--network", "127.0.0.0/8"], b"").0, 0);
    assert!(is_denied(&say_hello(&gateway, &site, "sold").1));
}

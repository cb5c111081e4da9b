//! Reload after reload under load, right and wrong ones mixed: nobody who may stay notices, what is right holds for the next
//! handshake, and who is revoked is gone within a second. `PULSEGATE_RELOADS` says how many.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use pulsegate::codec::native::{CloseCode, Frame, Hello, Welcome};
use pulsegate::tls::certs::authority::FleetAuthority;
use serde_json::json;

use crate::support::{
    Device, Event, Gateway, Listener, Program, SOON, Site, dial_from, encoded, hello, message, wait_until,
};

const DAY: Duration = Duration::from_hours(24);
/// How soon a live connection must be gone whose certificate was revoked.
const REVOKED_WITHIN: Duration = Duration::from_secs(1);
/// Reloads where nothing else is said: each kind three times.
const RELOADS: usize = 24;
/// Of so many reloads the wrong ones among the first eight are wrong in a file, and all others in the configuration.
const WAITS_EVERY: usize = 200;
/// Devices that talk all the while, on each of the two listeners.
const TALKERS: usize = 6;

/// A gateway with a listener that asks for certificates of a fleet, and one that asks for tokens.
struct Stage {
    site: Site,
    gateway: Gateway,
    fleet: FleetAuthority,
    users: Vec<String>,
    interval_ms: u32,
}

fn config(interval: &str) -> String {
    let meters = Listener::new("meters", "native")
        .clients_of("fleet/ca.pem", "required")
        .table("tls.crl", "files = [\"fleet/ca.crl\"]\n")
        .table("heartbeat", &format!("interval = {interval:?}\n"));
    let taps = Listener::new("taps", "native").table("identity", "token_file = \"users\"\n");
    format!("workers = 2\n[admin]\nlisten = \"127.0.0.1:0\"\n{}{}", meters.text(), taps.text())
}

/// The line of somebody whose token is its own name.
fn user(name: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    command.args(["hash-token", name, "--memory", "64", "--token", name]);
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

impl Stage {
    fn new() -> Self {
        let site = Site::new();
        let now = SystemTime::now();
        let fleet = FleetAuthority::create(&site.path("fleet"), "Fleet", 365 * DAY, 30 * DAY, now).unwrap();
        another_certificate(&site, "pair-0");
        another_certificate(&site, "pair-1");
        // The talker, and who looks whether all is as it was.
        let users = vec![user("tap"), user("visitor")];
        site.write("users", &users.concat());
        site.write("pulsegate.toml", &config("60s"));
        let gateway = Gateway::start(site.directory());
        Self { site, gateway, fleet, users, interval_ms: 60_000 }
    }

    /// One more who may come, instead of the last who was added.
    fn add_user(&mut self, name: &str) {
        self.users.truncate(2);
        self.users.push(user(name));
        self.site.write("users", &self.users.concat());
    }

    /// A device of the fleet, with a certificate of its own.
    fn meter(&mut self, id: &str) -> Device {
        let pair = self.fleet.issue(id, None, 30 * DAY, SystemTime::now()).unwrap();
        Device::welcomed(self.gateway.address("meters"), &self.site.tls_with(Some(&(pair.cert, pair.key)), |_| {}), id)
    }

    fn tap(&self, name: &str) -> Result<(Device, Welcome), Event> {
        self.tap_from([127, 0, 0, 1], name)
    }

    /// From an address of its own: whoever goes on offering what is not right is asked to come later.
    fn is_stranger(&self, round: usize, name: &str) -> bool {
        self.tap_from([127, 9, (round / 250) as u8, (round % 250 + 1) as u8], name).is_err()
    }

    fn tap_from(&self, source: [u8; 4], name: &str) -> Result<(Device, Welcome), Event> {
        let mut device = Device::over(dial_from(source, self.gateway.address("taps")), &self.site.tls()).unwrap();
        device.send(&[Frame::Hello(Hello { heartbeat_ms: 0, id: name, token: name.as_bytes() })]);
        match device.hear() {
            Event::Welcome(welcome) => Ok((device, welcome)),
            other => Err(other),
        }
    }

    #[track_caller]
    fn reload(&self) {
        let (status, report) = self.gateway.post("/v1/reload", &json!({}));
        assert_eq!(status, 200, "{report}");
    }

    #[track_caller]
    fn reload_in_vain(&self, part: &str) {
        let (status, refused) = self.gateway.post("/v1/reload", &json!({}));
        let words = refused["error"]["message"].as_str().unwrap_or_default();
        assert!(status == 422 && words.contains(part), "{part} is not in {status}: {refused}");
    }

    /// The serial number of the certificate that a handshake of now is shown.
    fn shown(&self) -> String {
        let connect = self.gateway.address("taps").to_string();
        let script =
            "openssl s_client -connect \"$0\" -alpn pulsegate/1 </dev/null 2>/dev/null | openssl x509 -noout -serial";
        let output = Command::new("sh").args(["-c", script, &connect]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn serial(&self, file: &str) -> String {
        let output = Command::new("openssl")
            .args(["x509", "-noout", "-serial", "-in"])
            .arg(self.site.path(file))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// One reload of each kind in its turn. How long a revoked device was there yet, where one was.
    fn round(&mut self, round: usize) -> Option<Duration> {
        // A file that is wrong may be half written: it is tried until it has rested. Some of those, then.
        let waits = round % WAITS_EVERY < 8;
        match round % 8 {
            0 => self.change_certificate(round / 8),
            1 if waits => self.certificate_that_does_not_fit(),
            3 if waits => self.list_that_is_none(),
            5 if waits => self.users_that_are_none(),
            1 => self.wrong_config("cert = \"certs/server.pem\"", "cert = \"\"", "tls.cert"),
            2 => return Some(self.revoke(round)),
            3 => self.wrong_config("files = [\"fleet/ca.crl\"]", "files = []", "tls.crl.files"),
            4 => self.change_users(round),
            5 => self.wrong_config("token_file = \"users\"", "token_file = \"\"", "identity.token_file"),
            6 => self.change_rules(round),
            _ => self.rules_that_are_none(),
        }
        None
    }

    /// A file holds something else for a while, and nobody goes by it.
    fn wrong_file(&self, file: &str, text: &str, part: &str) {
        let before = fs::read_to_string(self.site.path(file)).unwrap();
        self.site.write(file, text);
        self.reload_in_vain(part);
        self.site.write(file, &before);
    }

    /// The configuration says something else for a while, and nobody goes by it.
    fn wrong_config(&mut self, from: &str, to: &str, part: &str) {
        let before = config(&format!("{}ms", self.interval_ms));
        let wrong = before.replacen(from, to, 1);
        assert_ne!(before, wrong);
        self.site.write("pulsegate.toml", &wrong);
        self.reload_in_vain(part);
        self.site.write("pulsegate.toml", &before);
    }

    fn change_certificate(&mut self, turn: usize) {
        let pair = format!("pair-{}", turn % 2);
        for end in ["key", "pem"] {
            fs::copy(self.site.path(&format!("{pair}/server.{end}")), self.site.path(&format!("certs/server.{end}")))
                .unwrap();
        }
        self.reload();
        assert_eq!(self.shown(), self.serial(&format!("{pair}/server.pem")));
    }

    fn certificate_that_does_not_fit(&mut self) {
        let shown = self.shown();
        self.wrong_file("certs/server.key", "half a k", "certs/server.key");
        assert_eq!(self.shown(), shown, "all of the old stays");
    }

    fn revoke(&mut self, round: usize) -> Duration {
        let id = format!("victim-{round}");
        let mut victim = self.meter(&id);
        self.fleet.revoke(&id, 30 * DAY, SystemTime::now()).unwrap();
        self.reload();
        let reloaded = Instant::now();
        victim.expect_close(CloseCode::REQUESTED);
        let took = reloaded.elapsed();
        let pair = self.site.path("fleet/devices");
        let identity = (pair.join(format!("{id}.pem")), pair.join(format!("{id}.key")));
        let tls = self.site.tls_with(Some(&identity), |_| {});
        let again = Device::connect(self.gateway.address("meters"), &tls).map(|mut device| device.hear_all());
        let is_out = again.as_ref().map_or(true, |heard| heard.iter().any(|event| matches!(event, Event::Alert(44))));
        assert!(is_out, "{id}: {again:?}");
        took
    }

    fn list_that_is_none(&mut self) {
        self.wrong_file("fleet/ca.crl", "no list at all\n", "fleet/ca.crl");
    }

    fn change_users(&mut self, round: usize) {
        let (id, before) = (format!("user-{round}"), round.checked_sub(8).map(|round| format!("user-{round}")));
        assert!(self.is_stranger(round, &id), "{id} is no user yet");
        self.add_user(&id);
        self.reload();
        self.tap(&id).map(drop).unwrap();
        if let Some(before) = before {
            assert!(self.is_stranger(round + 1, &before), "{before} is no user any more");
        }
    }

    fn users_that_are_none(&mut self) {
        self.wrong_file("users", "tap:x\n", "users, line 1");
        self.tap("visitor").map(drop).unwrap();
    }

    fn change_rules(&mut self, round: usize) {
        self.interval_ms = 60_000 + 1_000 * (round % 64) as u32;
        self.site.write("pulsegate.toml", &config(&format!("{}ms", self.interval_ms)));
        self.reload();
        self.expect_interval();
    }

    fn rules_that_are_none(&mut self) {
        self.site.write("pulsegate.toml", &config("soon"));
        self.reload_in_vain("heartbeat.interval");
        self.expect_interval();
        self.site.write("pulsegate.toml", &config(&format!("{}ms", self.interval_ms)));
    }

    /// Who comes now is told of the interval that holds.
    fn expect_interval(&mut self) {
        let pair = self.site.path("fleet/devices");
        let identity = (pair.join("talker-0.pem"), pair.join("talker-0.key"));
        let tls = self.site.tls_with(Some(&identity), |_| {});
        let mut device = Device::connect(self.gateway.address("meters"), &tls).unwrap();
        device.send(&[hello("looker")]);
        assert_eq!(device.expect_welcome().heartbeat_ms, self.interval_ms);
        device.leave();
    }
}

/// Makes another server certificate of the site's authority, in a directory of its own.
fn another_certificate(site: &Site, directory: &str) {
    fs::create_dir(site.path(directory)).unwrap();
    for name in ["ca.pem", "ca.key"] {
        fs::copy(site.path(&format!("certs/{name}")), site.path(&format!("{directory}/{name}"))).unwrap();
    }
    pulsegate::tls::certs::development::ensure(&site.path(directory), &[], SystemTime::now()).unwrap();
}

/// Talks until it is told to stop: every message is acknowledged, or this panics.
fn talk(mut device: Device, is_over: &AtomicBool, acknowledged: &AtomicU64) {
    let mut id = 0;
    while !is_over.load(Ordering::Relaxed) {
        id += 1;
        device.send(&[message(id, b"230 V")]);
        loop {
            match device.hear() {
                Event::Ping(opaque) => device.send(&[Frame::Pong(&opaque)]),
                heard => break assert_eq!(heard, Event::Ack(id)),
            }
        }
        acknowledged.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(5));
    }
    device.leave();
}

#[test]
fn reload_after_reload_under_load_disconnects_nobody_who_may_stay() {
    let count = std::env::var("PULSEGATE_RELOADS").map_or(RELOADS, |text| text.parse().expect("a number of reloads"));
    let mut stage = Stage::new();
    let meters: Vec<_> = (0..TALKERS).map(|number| stage.meter(&format!("talker-{number}"))).collect();
    let (is_over, acknowledged) = (AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    let mut gone_after = Vec::new();
    std::thread::scope(|scope| {
        for device in meters {
            scope.spawn(|| talk(device, &is_over, &acknowledged));
        }
        let (tap, _) = stage.tap("tap").unwrap();
        scope.spawn(|| talk(tap, &is_over, &acknowledged));
        for round in 0..count {
            gone_after.extend(stage.round(round));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let worst = gone_after.iter().max().copied().unwrap_or_default();
    println!(
        "{count} reloads in {:.1?}, {} messages acknowledged meanwhile, {} devices revoked, the last of them gone after {worst:.1?}",
        began.elapsed(),
        acknowledged.load(Ordering::Relaxed),
        gone_after.len(),
    );
    assert!(worst < REVOKED_WITHIN, "{gone_after:?}");
    let revoked = gone_after.len() as u64;
    stage.gateway.wait_until_empty();
    let closed = stage.gateway.all_closed();
    for (reason, number) in closed {
        match reason.as_str() {
            "certificate_revoked" => assert_eq!(number, revoked),
            // Those who left, those who were never let in, and openssl.
            "peer_closed" | "peer_reset" | "token_rejected" | "certificate_rejected" => {}
            other => panic!("{number} connections ended for {other}"),
        }
    }
    assert!(stage.gateway.metric("pulsegate_reloads_total") >= (count / 2) as u64);
    assert!(stage.gateway.metric("pulsegate_reloads_refused_total") >= (count / 2) as u64);
}

/// A session of openssl's from before a change.
fn session(stage: &Stage, version: &str, id: &str, file: &str) -> String {
    let connect = stage.gateway.address("meters").to_string();
    let (cert, key) = (format!("fleet/devices/{id}.pem"), format!("fleet/devices/{id}.key"));
    let arguments = [
        "s_client",
        "-connect",
        &connect,
        "-CAfile",
        "certs/ca.pem",
        "-alpn",
        "pulsegate/1",
        version,
        "-cert",
        &cert,
        "-key",
        &key,
        file,
        "session",
    ];
    let mut openssl = Program::openssl(stage.site.directory(), &arguments);
    // It says HELLO, so that it hears something behind its ticket.
    openssl.write(&encoded(&[hello(id)]));
    wait_until("it is in or out", SOON, || {
        // WELCOME, or the end.
        let printed = openssl.printed();
        printed.windows(4).any(|bytes| bytes == [2, 0, 12, 1]) || !openssl.is_running()
    });
    openssl.end_input();
    openssl.wait(SOON);
    openssl.text()
}

#[test]
fn a_session_from_before_a_revocation_lets_nobody_in() {
    let mut stage = Stage::new();
    for version in ["-tls1_3", "-tls1_2"] {
        let id = format!("stolen{}", &version[5..]);
        stage.fleet.issue(&id, None, 30 * DAY, SystemTime::now()).unwrap();
        assert!(session(&stage, version, &id, "-sess_out").contains("New, TLSv1."), "{version}");
        assert!(session(&stage, version, &id, "-sess_in").contains("Reused, TLSv1."), "{version}: it is good as yet");
        stage.fleet.revoke(&id, 30 * DAY, SystemTime::now()).unwrap();
        stage.reload();
        let text = session(&stage, version, &id, "-sess_in");
        assert!(!text.contains("Reused"), "{version}: {text}");
        let round = if version == "-tls1_3" { 1 } else { 2 };
        stage.gateway.expect_closed("certificate_rejected", round);
        // One that was new and one that was good, and nothing since.
        stage.gateway.expect_metric("pulsegate_handshakes_full_total", round);
        stage.gateway.expect_metric("pulsegate_handshakes_resumed_total", round);
        assert!(stage.gateway.device(&id).is_none());
    }
}

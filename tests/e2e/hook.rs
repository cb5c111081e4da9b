//! The HTTP hook against an identity server in Python: it answers, hangs, fails, is slow, is gone and returns.

use pulsegate::codec::native::{CloseCode, Frame, Hello};
use pulsegate::tls::handshake::ClientTls;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Behaviour, Device, Event, Fleet, Gateway, Program, SOON, Site, native, wait_for, wait_until};

/// The identity server.
struct Identity {
    program: Program,
    port: u16,
}

impl Identity {
    fn start(site: &Site, port: u16) -> Self {
        Self::start_with(site, &[&port.to_string(), "keys.json"])
    }

    fn start_with(site: &Site, arguments: &[&str]) -> Self {
        let program = Program::python(site.directory(), "identity.py", arguments);
        let line = wait_for("the identity server listens", 3 * SOON, || {
            program.text().lines().find_map(|line| line.strip_prefix("listening on ").map(str::to_owned))
        });
        Self { program, port: line.trim().parse().unwrap() }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn set(&self, mode: &str) {
        ureq::post(self.url("/mode")).send(mode).unwrap();
    }

    fn state(&self) -> Value {
        let mut answer = ureq::get(self.url("/asked")).call().unwrap();
        serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap()
    }

    fn asked(&self) -> u64 {
        self.state()["asked"].as_u64().unwrap()
    }

    /// It is gone, and with it its port.
    fn end(mut self) -> u16 {
        self.program.signal(Signal::KILL);
        self.program.wait(SOON);
        self.port
    }
}

fn says(gateway: &Gateway, tls: &ClientTls, id: &str, token: &str) -> Device {
    let mut device = Device::connect(gateway.devices(), tls).unwrap();
    device.send(&[Frame::Hello(Hello { heartbeat_ms: 0, id, token: token.as_bytes() })]);
    device
}

/// What a device with the right secret hears first.
fn first(gateway: &Gateway, tls: &ClientTls, id: &str) -> Event {
    says(gateway, tls, id, &format!("right-{id}")).hear_within(3 * SOON).expect("it hears something")
}

#[track_caller]
fn expect_in(gateway: &Gateway, tls: &ClientTls, id: &str) {
    let event = first(gateway, tls, id);
    assert!(matches!(event, Event::Welcome(_)), "{id}: {event:?}");
}

/// "Come again", with a time, and never "you are wrong".
#[track_caller]
fn expect_busy(gateway: &Gateway, tls: &ClientTls, id: &str) {
    let event = first(gateway, tls, id);
    match event {
        Event::Close { code: CloseCode::TRY_LATER, retry_after_ms: 5_000..=15_000, .. } => {}
        other => panic!("{id}: {other:?}"),
    }
}

#[test]
fn a_hook_that_does_not_answer_keeps_strangers_waiting_and_nobody_else() {
    let site = Site::new();
    let identity = Identity::start(&site, 0);
    site.write("bearer", "secret-of-the-gateway\n");
    let hook = format!(
        "kind = \"hook\"\nurl = {:?}\nbearer_file = \"bearer\"\ntimeout = \"700ms\"\nin_flight = 4\ncache = \"0s\"\n\
         cache_denied = \"0s\"\non_error = \"allow-cached\"\n",
        identity.url("/auth")
    );
    let gateway = site.start("workers = 2", &[native().authenticator(&hook).heartbeat(1_000, 20_000, 2)]);
    let tls = site.tls();
    let known = ["m1", "m2", "m3"];
    for id in known {
        expect_in(&gateway, &tls, id);
    }
    let mut wrong = says(&gateway, &tls, "m1", "guess");
    assert_eq!(wrong.expect_close(CloseCode::TOKEN_REJECTED).0, "unknown here");
    gateway.expect_closed("hook_rejected", 1);
    assert_eq!(identity.state()["bearer"], "Bearer secret-of-the-gateway");
    // Those who are in: their heartbeats go on, whatever the hook does. (A fleet has no tokens: these are single devices.)
    let mut live: Vec<Device> =
        (0..10).map(|n| says(&gateway, &tls, &format!("live{n}"), &format!("right-live{n}"))).collect();
    for device in &mut live {
        device.expect_welcome();
    }
    let mut strangers = (0..).map(|n| format!("stranger{n}"));
    let mut unanswered = 0;
    for mode in ["hang", "fail", "nonsense"] {
        identity.set(mode);
        for id in known {
            expect_in(&gateway, &tls, id);
        }
        for id in strangers.by_ref().take(3) {
            expect_busy(&gateway, &tls, &id);
            unanswered += 1;
        }
        gateway.expect_closed("hook_unanswered", unanswered);
        identity.set("answer");
        wait_until(&format!("it answers again after {mode}"), 6 * SOON, || {
            matches!(first(&gateway, &tls, &strangers.next().unwrap()), Event::Welcome(_))
        });
        unanswered = gateway.closed("hook_unanswered");
    }
    // Slow is no failure.
    identity.set("slow");
    for id in known {
        expect_in(&gateway, &tls, id);
    }
    let port = identity.end();
    for id in known {
        expect_in(&gateway, &tls, id);
    }
    // Many at once are all told to come again, by the breaker and not by a time-out each.
    for id in strangers.by_ref().take(40) {
        expect_busy(&gateway, &tls, &id);
    }
    let identity = Identity::start(&site, port);
    wait_until("it is back", 6 * SOON, || {
        matches!(first(&gateway, &tls, &strangers.next().unwrap()), Event::Welcome(_))
    });
    assert!(identity.asked() > 0);
    // Nobody who was in has noticed anything.
    for (n, device) in live.iter_mut().enumerate() {
        device.send(&[Frame::Ping(&[n as u8])]);
        let mut heard = Vec::new();
        while heard.last() != Some(&Event::Pong(vec![n as u8])) {
            heard.push(device.hear());
        }
        heard.pop();
        assert!(heard.iter().all(|event| matches!(event, Event::Ping(_))), "{heard:?}");
    }
    assert_eq!((gateway.closed("expired"), gateway.closed("hello_timeout")), (0, 0));
    assert_eq!(gateway.closed("hook_rejected"), 1, "nobody was called wrong because of the hook");
    assert!(gateway.metric("pulsegate_hook_stale_total") >= 12);
    assert!(gateway.metric("pulsegate_hook_failures_total") >= 4);
    let history = gateway.get_json("/v1/devices/stranger0/history").to_string();
    assert!(history.contains("hook_unanswered") && history.contains("the hook does not answer"), "{history}");
}

/// Answers are kept, so that a fleet that comes back at once does not all ask; and a no is, for whoever guesses.
#[test]
fn answers_are_kept_for_a_while() {
    let site = Site::new();
    let identity = Identity::start(&site, 0);
    let hook = format!("kind = \"hook\"\nurl = {:?}\ncache_denied = \"1h\"\n", identity.url("/auth"));
    let gateway = site.start("workers = 2", &[native().authenticator(&hook)]);
    let tls = site.tls();
    for _ in 0..5 {
        expect_in(&gateway, &tls, "m1");
        says(&gateway, &tls, "m1", "guess").expect_close(CloseCode::TOKEN_REJECTED);
        // What it was granted ends with its second, and then it is asked again.
        expect_in(&gateway, &tls, "m2");
    }
    assert_eq!(identity.asked(), 3);
    gateway.expect_metric("pulsegate_hook_cached_total", 12);
    for round in 1..=2 {
        let mut short = says(&gateway, &tls, "short", "right-short");
        short.expect_welcome();
        let (words, _) = short.expect_close(CloseCode::TOKEN_REJECTED);
        assert!(words.contains("granted has ended"), "{words}");
        gateway.expect_closed("grant_expired", round);
    }
    assert_eq!(identity.asked(), 5);
    // Kept across a reload that does not concern it.
    site.write("deny.txt", "");
    expect_in(&gateway, &tls, "m1");
    assert_eq!(identity.asked(), 5);
}

/// A certificate, else a token that the file knows, else the hook.
#[test]
fn the_first_that_applies_decides() {
    let site = Site::new();
    site.certify(&["certified"]);
    let identity = Identity::start(&site, 0);
    let hashed = std::process::Command::new(env!("CARGO_BIN_EXE_pulsegate"))
        .args(["hash-token", "filed", "--memory", "64", "--token", "secret"])
        .output()
        .unwrap();
    site.write("devices.tokens", &String::from_utf8(hashed.stdout).unwrap());
    let hook = format!("kind = \"hook\"\nurl = {:?}\n", identity.url("/auth"));
    let listener = native()
        .client_auth("optional")
        .identity("cert-cn")
        .authenticator("kind = \"certificate\"\n")
        .authenticator("kind = \"token\"\nfile = \"devices.tokens\"\n")
        .authenticator(&hook);
    let gateway = site.start("workers = 3", &[listener]);
    let (nobody, certified) = (site.tls(), site.tls_as("certified"));
    let mut by_certificate = says(&gateway, &certified, "certified", "whatever");
    by_certificate.expect_welcome();
    assert_eq!(gateway.device("certified").unwrap()["identity"], "cert-cn");
    says(&gateway, &nobody, "filed", "secret").expect_welcome();
    assert_eq!(identity.asked(), 0);
    says(&gateway, &nobody, "filed", "right-filed").expect_close(CloseCode::TOKEN_REJECTED);
    gateway.expect_closed("token_rejected", 1);
    assert_eq!(identity.asked(), 0, "the file knows the name, so it has decided");
    // Whoever has no certificate must be named by what it proves itself by.
    let mut unnamed = says(&gateway, &nobody, "m1", "right-m1");
    unnamed.expect_close(CloseCode::IDENTITY_MISMATCH);
    gateway.expect_closed("identity_missing", 1);
    let mut by_hook = says(&gateway, &nobody, "bounded1", "right-bounded1");
    by_hook.expect_welcome();
    assert_eq!(gateway.device("bounded1").unwrap()["identity"], "granted");
    assert_eq!(identity.asked(), 2);
}

/// Keys that are fetched: again when a token names one that is not there, and the last good ones stay.
#[test]
fn fetched_keys_are_rotated_and_the_last_good_ones_stay() {
    use crate::support::token::{Issuer, seconds_from_now};
    let site = Site::new();
    let (old, new) = (Issuer::ec(&site, "old"), Issuer::ec(&site, "new"));
    let write = |keys: Value| site.write("keys.json", &keys.to_string());
    write(serde_json::json!({"keys": [old.jwk()]}));
    let identity = Identity::start(&site, 0);
    let list = format!("kind = \"jwt\"\nurl = {:?}\naudience = [\"gateway\"]\n", identity.url("/jwks"));
    let gateway = site.start("workers = 2", &[native().authenticator(&list)]);
    let tls = site.tls();
    let token = |issuer: &Issuer| {
        let claims = serde_json::json!({"sub": "m1", "aud": "gateway", "exp": seconds_from_now(3_600)});
        issuer.token(&claims)
    };
    let (by_old, by_new) = (token(&old), token(&new));
    wait_until("the keys are there", 3 * SOON, || gateway.metric("pulsegate_jwt_keys_fetched_total") >= 1);
    says(&gateway, &tls, "m1", &by_old).expect_welcome();
    let (words, _) = says(&gateway, &tls, "m1", &by_new).expect_close(CloseCode::TRY_LATER);
    assert!(words.contains("no key \"new\""), "{words}");
    write(serde_json::json!({"keys": [old.jwk(), new.jwk()]}));
    wait_until("the new key is there", 6 * SOON, || {
        matches!(says(&gateway, &tls, "m1", &by_new).hear(), Event::Welcome(_))
    });
    assert!(gateway.closed("jwt_unanswered") >= 1);
    // Nonsense where the keys were, and nobody there at all.
    site.write("keys.json", "not a set of keys");
    let _ = says(&gateway, &tls, "m1", &token(&Issuer::ec(&site, "unknown"))).expect_close(CloseCode::TRY_LATER);
    wait_until("they could not be fetched", 6 * SOON, || gateway.metric("pulsegate_jwt_keys_failed_total") >= 1);
    for token in [&by_old, &by_new] {
        says(&gateway, &tls, "m1", token).expect_welcome();
    }
    identity.end();
    says(&gateway, &tls, "m1", &by_new).expect_welcome();
    assert_eq!(gateway.closed("jwt_rejected"), 0);
}

/// Over TLS the service is held against its authorities, for questions and for keys.
#[test]
fn a_service_over_https_is_who_its_certificate_says() {
    use crate::support::token::{Issuer, seconds_from_now};
    let site = Site::new();
    let issuer = Issuer::ec(&site, "ec");
    site.write("keys.json", &serde_json::json!({"keys": [issuer.jwk()]}).to_string());
    site.self_signed("stranger");
    let identity = Identity::start_with(&site, &["0", "keys.json", "certs/server.pem", "certs/server.key"]);
    let at = |path: &str, ca: &str| format!("url = \"https://localhost:{}{path}\"\nca = {ca:?}\n", identity.port);
    let both = |name: &str, ca: &str| {
        crate::support::Listener::new(name, "native")
            .authenticator(&format!("kind = \"jwt\"\naudience = [\"gateway\"]\n{}", at("/jwks", ca)))
            .authenticator(&format!("kind = \"hook\"\n{}", at("/auth", ca)))
    };
    let gateway = site.start("workers = 2", &[both("devices", "certs/ca.pem"), both("wrong", "stranger.pem")]);
    let tls = site.tls();
    let claims = serde_json::json!({"sub": "m1", "aud": "gateway", "exp": seconds_from_now(3_600)});
    let token = issuer.token(&claims);
    wait_until("the keys are there", 3 * SOON, || gateway.metric("pulsegate_jwt_keys_fetched_total") >= 1);
    says(&gateway, &tls, "m1", &token).expect_welcome();
    expect_in(&gateway, &tls, "m2");
    for secret in [token.as_str(), "right-m1"] {
        let mut device = Device::connect(gateway.address("wrong"), &tls).unwrap();
        device.send(&[Frame::Hello(Hello { heartbeat_ms: 0, id: "m1", token: secret.as_bytes() })]);
        device.expect_close(CloseCode::TRY_LATER);
    }
    gateway.expect_closed("jwt_unanswered", 1);
    gateway.expect_closed("hook_unanswered", 1);
}

/// Many who come back at once to a hook that hangs do not hold up those who are in.
#[test]
fn a_crowd_before_a_hanging_hook_moves_no_heartbeat() {
    let site = Site::new();
    let identity = Identity::start(&site, 0);
    identity.set("hang");
    let hook =
        format!("kind = \"hook\"\nurl = {:?}\ntimeout = \"1s\"\nin_flight = 2\nwaiting = 8\n", identity.url("/auth"));
    let open = native().heartbeat(500, 10_000, 1);
    let behind = crate::support::Listener::new("behind", "native").authenticator(&hook);
    let gateway = site.start("workers = 2", &[open, behind]);
    let tls = site.tls();
    let fleet = Fleet::connect(gateway.devices(), &tls, "live", 50, Behaviour::Answer);
    let crowd: Vec<Device> = (0..60)
        .map(|n| {
            let mut device = Device::connect(gateway.address("behind"), &tls).unwrap();
            let (id, token) = (format!("m{n}"), format!("right-m{n}"));
            device.send(&[Frame::Hello(Hello { heartbeat_ms: 0, id: &id, token: token.as_bytes() })]);
            device
        })
        .collect();
    for mut device in crowd {
        let (_, retry_after_ms) = device.expect_close(CloseCode::TRY_LATER);
        assert!((5_000..=15_000).contains(&retry_after_ms));
    }
    gateway.expect_closed("hook_unanswered", 60);
    let answered = fleet.answered();
    wait_until("heartbeats go on", 3 * SOON, || fleet.answered() >= answered + 50);
    assert_eq!((fleet.lost(), gateway.closed("expired")), (0, 0));
    assert!(identity.asked() < 20, "the breaker and the queue bound the questions: {}", identity.asked());
    drop(fleet);
}

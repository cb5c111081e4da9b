//! `type = "http"`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Device, Event, Gateway, Program, SOON, Site, message, native, wait_until};
use crate::{LATE, Meter, cli, free_port, publish_all, sink, sink_metric};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// The other side: a port, a mode, a ledger; the process may come and go.
struct Receiver<'a> {
    site: &'a Site,
    port: u16,
    program: Option<Program>,
    further: Vec<String>,
}

impl<'a> Receiver<'a> {
    fn new(site: &'a Site) -> Self {
        site.write("mode", "ok\n");
        site.write("ledger", "");
        Self { site, port: free_port(), program: None, further: vec![SECRET.to_owned()] }
    }

    fn start(&mut self) {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/sinks/receiver.py");
        let mut command = Command::new("python3");
        command.current_dir(self.site.directory()).arg(script).arg(self.port.to_string()).args(["mode", "ledger"]);
        command.args(&self.further);
        let program = Program::start(command);
        program.expect("listening");
        self.program = Some(program);
    }

    fn stop(&mut self) {
        self.program = None;
    }

    /// Written beside and moved over: the receiver never sees half of it.
    fn mode(&self, mode: &str) {
        self.site.write("mode.new", &format!("{mode}\n"));
        std::fs::rename(self.site.path("mode.new"), self.site.path("mode")).unwrap();
    }

    /// Every request so far, in its order.
    fn requests(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.site.path("ledger")).unwrap();
        // Behind the last line's end there may be half a line.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Numbers that were taken, by device, each once, in the order in which they were first seen.
    fn seen(&self) -> BTreeMap<String, Vec<u32>> {
        let mut seen: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for request in self.requests().iter().filter(|request| request["taken"] == true) {
            for event in request["events"].as_array().unwrap().iter().filter(|event| event["kind"] == "message") {
                let number = event["payload"].as_str().unwrap().parse().unwrap();
                let of_device = seen.entry(event["device"].as_str().unwrap().to_owned()).or_default();
                if !of_device.contains(&number) {
                    of_device.push(number);
                }
            }
        }
        seen
    }

    fn has_all(&self, meters: &[Meter]) -> bool {
        let seen = self.seen();
        let has = |meter: &Meter| seen.get(&meter.id).is_some_and(|seen| seen.len() >= meter.acknowledged.len());
        meters.iter().all(has)
    }

    /// Nothing is missing, nothing is out of order, and an event that came more than once came under one id.
    #[track_caller]
    fn check(&self, meters: &[Meter]) {
        let seen = self.seen();
        for meter in meters {
            let numbers = &seen[&meter.id];
            assert!(numbers.is_sorted(), "{}: {numbers:?}", meter.id);
            let numbers: BTreeSet<u32> = numbers.iter().copied().collect();
            let lost: Vec<_> = meter.acknowledged.difference(&numbers).collect();
            assert!(lost.is_empty(), "{}: acknowledged and lost: {lost:?}", meter.id);
        }
        let mut ids: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
        let mut bodies: BTreeMap<String, Value> = BTreeMap::new();
        for request in self.requests() {
            assert_eq!(request["signed"], true, "{request}");
            assert_eq!(request["id"], request["idempotency_key"]);
            let id = request["id"].as_str().unwrap().to_owned();
            let before = bodies.insert(id.clone(), request["events"].clone());
            assert!(before.is_none_or(|before| before == request["events"]), "{id} has two contents");
            for event in request["events"].as_array().unwrap() {
                ids.entry(event["seq"].as_u64().unwrap()).or_default().insert(id.clone());
            }
        }
        let twice: Vec<_> = ids.iter().filter(|(_, ids)| ids.len() > 1).collect();
        assert!(twice.is_empty(), "events under several ids: {twice:?}");
    }
}

fn configure(site: &Site, port: u16, further: &str) {
    site.write("secret", SECRET);
    let sink = format!(
        "[[sink]]\nname = \"cloud\"\ntype = \"http\"\nurl = \"http://127.0.0.1:{port}/in?tenant=7\"\nsecret_file = \"secret\"\n\
         retry_min = \"10ms\"\nretry_max = \"100ms\"\n{further}\n"
    );
    site.configure(&format!("workers = 2\n[admin]\nlisten = \"127.0.0.1:0\"\n{sink}"), &[native()]);
}

/// Down, faulty, throttling, hanging, restarted, and the gateway killed meanwhile.
#[test]
fn webhook_gets_everything_in_order_through_any_outage() {
    let site = Site::new();
    let mut receiver = Receiver::new(&site);
    configure(&site, receiver.port, "batch_events = 7\ntimeout = \"500ms\"");
    let mut meters = Meter::fleet(3);
    // There is nobody yet.
    let mut gateway = Gateway::start(site.directory());
    publish_all(&mut meters, &site, &gateway, 10);
    wait_until("tries fail", SOON, || sink(&gateway, "cloud")["state"] == "retrying");
    assert!(sink_metric(&gateway, "pulsegate_sink_behind", "cloud") >= 30);
    receiver.start();
    wait_until("the first are there", LATE, || receiver.has_all(&meters));
    for (round, mode) in ["500", "503 0", "429 1", "hang", "401", "302", "hang"].into_iter().enumerate() {
        receiver.mode(mode);
        publish_all(&mut meters, &site, &gateway, 5);
        let before = receiver.requests().len();
        wait_until("it was tried again", LATE, || receiver.requests().len() > before + 1);
        match round % 3 {
            0 => {
                gateway.signal(Signal::KILL);
                drop(gateway);
                gateway = Gateway::start(site.directory());
            }
            1 => {
                receiver.stop();
                receiver.start();
            }
            _ => {}
        }
        receiver.mode("ok");
        publish_all(&mut meters, &site, &gateway, 5);
        wait_until("everything is there", LATE, || receiver.has_all(&meters));
    }
    wait_until("the cursor is at the end", LATE, || sink(&gateway, "cloud")["behind"] == 0);
    receiver.check(&meters);
    assert_eq!(sink(&gateway, "cloud")["state"], "running");
    assert_eq!(sink_metric(&gateway, "pulsegate_sink_lag_seconds", "cloud"), 0);
    assert_eq!(sink_metric(&gateway, "pulsegate_sink_events_dead_lettered_total", "cloud"), 0);
    assert!(receiver.requests().iter().all(|request| request["path"] == "/in?tenant=7"));
    assert!(!sink(&gateway, "cloud").to_string().contains("tenant"), "a query may be secret");
}

/// Killed at chance moments under load, many times.
#[test]
fn webhook_survives_kill_nine_at_any_moment() {
    let site = Site::new();
    let mut receiver = Receiver::new(&site);
    receiver.start();
    configure(&site, receiver.port, "batch_events = 5");
    let mut meters = Meter::fleet(2);
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..crate::support::sized(8, 100) {
        let gateway = Gateway::start(site.directory());
        publish_all(&mut meters, &site, &gateway, 10);
        let wanted = receiver.requests().len() + random.usize(0..4);
        wait_until("it sends", LATE, || receiver.requests().len() >= wanted || receiver.has_all(&meters));
        gateway.signal(Signal::KILL);
    }
    let gateway = Gateway::start(site.directory());
    wait_until("everything is there", LATE, || receiver.has_all(&meters));
    wait_until("the cursor is at the end", LATE, || sink(&gateway, "cloud")["behind"] == 0);
    receiver.check(&meters);
}

#[test]
fn webhook_refusals_go_to_the_dead_letters_and_hold_up_nobody() {
    let site = Site::new();
    let mut receiver = Receiver::new(&site);
    receiver.start();
    receiver.mode("poison");
    configure(&site, receiver.port, "batch_events = 1\ntries_refused = 3\npresence = false\nformat = \"json\"");
    let gateway = Gateway::start(site.directory());
    let mut device = Device::welcomed(gateway.devices(), &site.tls(), "meter-1");
    for (number, payload) in [(1, "1"), (2, "poison"), (3, "3")] {
        device.send(&[message(number, payload.as_bytes())]);
        assert_eq!(device.hear(), Event::Ack(number));
    }
    wait_until("the last one is there", LATE, || {
        receiver.requests().iter().any(|request| request["events"][0]["payload"] == "3")
    });
    let poison = receiver.requests().iter().filter(|request| request["events"][0]["payload"] == "poison").count();
    assert_eq!(poison, 3);
    assert_eq!(sink_metric(&gateway, "pulsegate_sink_events_dead_lettered_total", "cloud"), 1);
    let letters = std::fs::read_to_string(site.path("pulsegate-data/dead-letter/cloud.jsonl")).unwrap();
    let letter: Value = serde_json::from_str(letters.trim()).unwrap();
    assert_eq!((&letter["event"]["payload"], &letter["sink"]), (&json!("poison"), &json!("cloud")));
    assert!(letter["why"].as_str().unwrap().starts_with("422 "), "{letter}");
    assert_eq!(gateway.logged("the other side will not take these: they are in the dead letters").len(), 1);
}

/// A receiver, its gateway, and a meter whose first two messages are there.
fn delivering(site: &Site) -> (Receiver<'_>, Gateway, Vec<Meter>) {
    let mut receiver = Receiver::new(site);
    receiver.start();
    configure(site, receiver.port, "presence = false");
    let gateway = Gateway::start(site.directory());
    let mut meters = Meter::fleet(1);
    meters[0].publish(site, &gateway, 2);
    wait_until("they are there", LATE, || receiver.has_all(&meters));
    (receiver, gateway, meters)
}

#[test]
fn webhook_waits_when_told_and_goes_on_elsewhere() {
    let site = Site::new();
    let (receiver, gateway, mut meters) = delivering(&site);
    assert_eq!(cli(&site, &gateway, &["sinks", "pause", "cloud"]), "paused\n");
    meters[0].publish(&site, &gateway, 3);
    drop(gateway);
    // Also after a restart.
    let gateway = Gateway::start(site.directory());
    assert_eq!(sink(&gateway, "cloud")["state"], "paused");
    assert_eq!(sink_metric(&gateway, "pulsegate_sink_paused", "cloud"), 1);
    let before = receiver.requests().len();
    wait_until("it falls behind", SOON, || sink_metric(&gateway, "pulsegate_sink_lag_seconds", "cloud") >= 1);
    assert_eq!(receiver.requests().len(), before);
    assert!(cli(&site, &gateway, &["sinks"]).contains("paused"));
    assert_eq!(cli(&site, &gateway, &["sinks", "resume", "cloud"]), "resumed\n");
    wait_until("the rest is there", LATE, || receiver.has_all(&meters));
    receiver.check(&meters);
    wait_until("the cursor is at the end", LATE, || sink(&gateway, "cloud")["behind"] == 0);

    // Sent again, from the first.
    let before = receiver.requests().len();
    assert_eq!(cli(&site, &gateway, &["sinks", "seek", "cloud", "--to", "first"]), "goes on behind event 0\n");
    let again = || -> Vec<u32> {
        let requests = receiver.requests().split_off(before);
        let events = requests.iter().flat_map(|request| request["events"].as_array().unwrap().clone());
        events.map(|event| event["payload"].as_str().unwrap().parse().unwrap()).collect()
    };
    wait_until("all came again", LATE, || again() == [1, 2, 3, 4, 5]);
    // Nobody else moves its cursor, and it is listed as what it is.
    let consumers = gateway.get_json("/v1/uplink/consumers");
    assert_eq!(consumers["consumers"][0]["sink"], "cloud");
    let (status, answer) = gateway.post("/v1/uplink/ack", &json!({"consumer": "sink:cloud", "last": 1}));
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("consumer_reserved")));
    assert_eq!(gateway.get("/v1/uplink?consumer=sink%3Acloud").0, 409);
}

/// One that floods loses its own oldest events, of which there may be more than a sink reads at a time.
#[test]
fn webhook_passes_a_hole_in_the_log() {
    let site = Site::new();
    let mut receiver = Receiver::new(&site);
    configure(&site, receiver.port, "presence = false\n[uplink]\nretention_bytes = 1048576");
    let gateway = Gateway::start(site.directory());
    let mut meters = Meter::fleet(1);
    meters[0].publish(&site, &gateway, 2);
    let mut flood = Device::welcomed(gateway.devices(), &site.tls(), "flood");
    let number = format!("{:0>400}", 7);
    let says: Vec<_> = (0..100).map(|_| message(0, number.as_bytes())).collect();
    let dropped = || gateway.metric("pulsegate_store_events_dropped_share_total");
    wait_until("there is a hole", LATE, || {
        flood.send(&says);
        dropped() > 2_500
    });
    receiver.start();
    wait_until("the sink has passed it", LATE, || sink(&gateway, "cloud")["behind"] == 0);
    let seen = receiver.seen();
    assert_eq!((&*seen["meter-1"], &*seen["flood"]), (&[1, 2][..], &[7][..]));
    assert!(sink(&gateway, "cloud")["missed"].as_u64().unwrap() > 2_500);
}

#[test]
fn webhook_settings_are_swapped_under_way() {
    let site = Site::new();
    let (receiver, gateway, mut meters) = delivering(&site);

    // Another key, in the same file, and a header: what is in the file counts.
    site.write("authorization", "Bearer of-good-news");
    configure(&site, receiver.port, "presence = true\nauthorization_file = \"authorization\"");
    let (status, report) = gateway.post("/v1/reload", &json!({}));
    assert_eq!((status, &report["changed"]), (200, &json!(["sink \"cloud\""])), "{report}");
    meters[0].publish(&site, &gateway, 1);
    wait_until("presence is there", LATE, || {
        let requests = receiver.requests();
        let last = requests.last().unwrap();
        last["authorization"] == "Bearer of-good-news"
            && last["events"].as_array().unwrap().iter().any(|event| event["kind"] == "disconnected")
    });
    receiver.check(&meters);

    // What is wrong is refused as a whole, by file, line and key.
    configure(&site, receiver.port, "authorization_file = \"nowhere\"");
    let (status, report) = gateway.post("/v1/reload", &json!({}));
    let said = report["error"]["message"].as_str().unwrap();
    assert!(status == 422 && said.contains("sink[0].authorization_file: ") && said.contains("nowhere"), "{said}");

    // Gone, and its consumer is anybody's to delete.
    site.configure("workers = 2\n[admin]\nlisten = \"127.0.0.1:0\"\n", &[native()]);
    let (_, report) = gateway.post("/v1/reload", &json!({}));
    assert_eq!(report["changed"], json!(["sink \"cloud\": it is gone"]));
    assert_eq!(gateway.get_json("/v1/sinks"), json!({"sinks": []}));
    assert_eq!(gateway.get_json("/v1/uplink/consumers")["consumers"][0]["name"], "sink:cloud");
}

#[test]
fn webhook_over_tls_shows_its_certificate_and_knows_its_authority() {
    let site = Site::new();
    let mut receiver = Receiver::new(&site);
    receiver.further.extend(["certs/server.pem", "certs/server.key", "certs/ca.pem"].map(str::to_owned));
    receiver.start();
    let (cert, key) = site.identity("gateway-1");
    let tls = |ca: &str| {
        format!(
            "[[sink]]\nname = \"cloud\"\ntype = \"http\"\nurl = \"https://localhost:{}/in\"\nsecret_file = \"secret\"\n\
             retry_min = \"10ms\"\nretry_max = \"100ms\"\n[sink.tls]\nca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n",
            receiver.port
        )
    };
    let configure = |ca: &str| {
        site.configure(&format!("[admin]\nlisten = \"127.0.0.1:0\"\n{}", tls(ca)), &[native()]);
    };
    site.write("secret", SECRET);
    site.self_signed("stranger");
    configure("stranger.pem");
    let gateway = Gateway::start(site.directory());
    let mut meters = Meter::fleet(1);
    meters[0].publish(&site, &gateway, 3);
    wait_until("a stranger is not believed", LATE, || sink(&gateway, "cloud")["state"] == "retrying");
    assert!(receiver.requests().is_empty());
    configure("certs/ca.pem");
    assert_eq!(gateway.post("/v1/reload", &json!({})).0, 200);
    wait_until("they are there", LATE, || receiver.has_all(&meters));
    receiver.check(&meters);
}

//! What was acknowledged is there: through `kill -9`, a full disk and a restart, for consumers that work meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use pulsegate::codec::native::Frame;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Device, Event, Gateway, SOON, Site, SmallDisk, encoded, hello, message, native, wait_until};

/// Lives of the gateway in the suite, and the variable that asks for more.
const LIVES: u32 = 6;
const LIVES_VARIABLE: &str = "CRASH_LIVES";
const DEVICES: u32 = 4;

/// One publisher: numbers its messages through all lives, and knows which were acknowledged.
struct Publisher {
    id: String,
    next: u32,
    acknowledged: BTreeSet<u32>,
}

impl Publisher {
    /// Publishes, some messages at a time, until the gateway is gone.
    fn publish(&mut self, site: &Site, gateway: &Gateway) {
        let Ok(mut device) = Device::connect(gateway.devices(), &site.tls()) else { return };
        if !try_send(&mut device, &[hello(&self.id)]) {
            return;
        }
        let mut is_welcome = false;
        loop {
            match device.hear_within(SOON) {
                Some(Event::Welcome(_)) => is_welcome = true,
                Some(Event::Ack(number)) => drop(self.acknowledged.insert(number)),
                Some(Event::Ping(_)) => continue,
                _ => return,
            }
            if is_welcome {
                let numbers = [self.next + 1, self.next + 2];
                self.next += 2;
                let payloads = numbers.map(u32::to_be_bytes);
                if !try_send(&mut device, &[message(numbers[0], &payloads[0]), message(numbers[1], &payloads[1])]) {
                    return;
                }
            }
        }
    }
}

/// `false`: the gateway is gone.
fn try_send(device: &mut Device, frames: &[Frame<'_>]) -> bool {
    let wire = device.seal(&encoded(frames));
    device.socket.write_all(&wire).is_ok()
}

/// A backend: acknowledges what it has seen.
#[derive(Default)]
struct Backend {
    seen: BTreeMap<u64, Value>,
    /// Everything up to here was acknowledged, and that was answered.
    cursor: u64,
}

impl Backend {
    /// One batch. `None`: the gateway is gone.
    fn work(&mut self, gateway: &Gateway) -> Option<usize> {
        let (status, text) = gateway.try_get("/v1/uplink?consumer=backend&max=50&lease=1s")?;
        assert_eq!(status, 200, "{text}");
        let mut batch: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(batch["missed"], 0);
        let events = batch["events"].as_array().unwrap().clone();
        for event in &events {
            let seq = event["seq"].as_u64().unwrap();
            assert!(seq > self.cursor, "event {seq} comes again, and {} was acknowledged", self.cursor);
            let before = self.seen.insert(seq, event.clone());
            assert!(before.is_none_or(|before| before == *event), "event {seq} has changed");
        }
        if !events.is_empty() {
            batch["ack"]["consumer"] = "backend".into();
            let (status, answer) = gateway.try_post("/v1/uplink/ack", &batch["ack"])?;
            assert_eq!(status, 200, "{answer}");
            self.cursor = answer["cursor"].as_u64().unwrap();
        }
        Some(events.len())
    }
}

fn number(event: &Value) -> u32 {
    use base64::Engine;
    let bytes = match &event["payload_base64"] {
        Value::String(base64) => base64::prelude::BASE64_STANDARD.decode(base64).unwrap(),
        _ => event["payload"].as_str().unwrap().as_bytes().to_vec(),
    };
    u32::from_be_bytes(bytes.try_into().unwrap())
}

#[test]
fn acknowledged_is_stored_and_handed_out_through_kill_nine() {
    let lives = std::env::var(LIVES_VARIABLE).map_or(LIVES, |lives| lives.parse().expect("a number of lives"));
    let site = Site::new();
    site.configure("workers = 2", &[native()]);
    let publisher = |number| Publisher { id: format!("meter-{number}"), next: 0, acknowledged: BTreeSet::new() };
    let mut publishers: Vec<_> = (0..DEVICES).map(publisher).collect();
    let mut backend = Backend::default();
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..lives {
        let gateway = Gateway::start(site.directory());
        let before: usize = publishers.iter().map(|publisher| publisher.acknowledged.len()).sum();
        let is_killed = AtomicBool::new(false);
        // At a chance moment behind the first acknowledgements; how long that takes is the machine's business.
        let further = random.u64(0..400);
        thread::scope(|scope| {
            for publisher in &mut publishers {
                scope.spawn(|| publisher.publish(&site, &gateway));
            }
            let backend = &mut backend;
            let (gateway, is_killed) = (&gateway, &is_killed);
            scope.spawn(move || while !is_killed.load(Ordering::Relaxed) && backend.work(gateway).is_some() {});
            wait_until("something is stored", SOON, || {
                gateway.try_get("/metrics").is_some_and(|(_, text)| {
                    let line =
                        text.lines().find_map(|line| line.strip_prefix("pulsegate_store_events_appended_total "));
                    line.is_some_and(|count| count.parse::<u64>().unwrap() > 20 + further)
                })
            });
            gateway.signal(Signal::KILL);
            is_killed.store(true, Ordering::Relaxed);
        });
        let after: usize = publishers.iter().map(|publisher| publisher.acknowledged.len()).sum();
        assert!(after > before, "nothing was acknowledged in this life");
    }
    let gateway = Gateway::start(site.directory());
    // However much is left of so many lives.
    let mut before = backend.cursor;
    while backend.work(&gateway).expect("the gateway stays") > 0 {
        assert!(backend.cursor > before, "what is acknowledged is handed out again");
        before = backend.cursor;
    }

    let seqs: Vec<u64> = backend.seen.keys().copied().collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "a number is missing");
    for publisher in &publishers {
        let of_device = |event: &&Value| event["device"] == publisher.id && event["kind"] == "message";
        let stored: Vec<u32> = backend.seen.values().filter(of_device).map(number).collect();
        assert!(stored.is_sorted_by(|a, b| a < b), "{}: out of order, or twice", publisher.id);
        let stored: BTreeSet<u32> = stored.into_iter().collect();
        let lost: Vec<_> = publisher.acknowledged.difference(&stored).collect();
        assert!(lost.is_empty(), "{}: acknowledged and lost: {lost:?}", publisher.id);
    }
}

#[test]
fn a_full_disk_holds_publishers_up_and_nobody_else() {
    let site = Site::new();
    let data = site.path("data");
    let Some(disk) = SmallDisk::mount(&data, 6 << 10) else { return };
    let gateway = site.start("workers = 2\ndata_dir = \"data\"", &[native()]);
    let tls = site.tls();
    let mut device = Device::welcomed(gateway.devices(), &tls, "meter-1");
    device.send(&[message(1, &[1; 1_000])]);
    assert_eq!(device.hear(), Event::Ack(1));
    gateway.get_json("/v1/uplink?consumer=c&max=1");

    disk.fill();
    // Until the journal's last page is written there may be room for some.
    let mut sent = 1;
    wait_until("there is no room", SOON, || {
        sent += 1;
        device.send(&[message(sent, &[2; 10_000])]);
        gateway.metric("pulsegate_store_without_room") == 1
    });
    let (status, text) = gateway.get("/readyz");
    assert!(status == 503 && text.contains("store_failed"), "{status}: {text}");
    // Cursors are written, devices come, heartbeats go on.
    let order = json!({"consumer": "c", "last": 1});
    assert_eq!(gateway.post("/v1/uplink/ack", &order).1["cursor"], 1);
    let mut other = Device::welcomed(gateway.devices(), &tls, "meter-2");
    assert!(gateway.device("meter-2").is_some(), "the API answers");
    other.send(&[Frame::Ping(b"there?")]);
    assert!(matches!(other.hear(), Event::Pong(_)));

    disk.make_room();
    let mut acknowledged = BTreeSet::from([1]);
    while acknowledged.len() < sent as usize {
        match device.hear() {
            Event::Ack(number) => assert!(acknowledged.insert(number)),
            Event::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
    wait_until("the gateway is ready again", SOON, || gateway.get("/readyz").0 == 200);
    gateway.expect_closed("expired", 0);
}

#[test]
fn a_disk_that_fails_ends_the_gateway_and_what_was_acknowledged_is_there() {
    let site = Site::new();
    let mut gateway = site.start("", &[native()]);
    let mut device = Device::welcomed(gateway.devices(), &site.tls(), "meter-1");
    device.send(&[message(1, b"before")]);
    assert_eq!(device.hear(), Event::Ack(1));
    // From here on the system refuses every write beyond a file's first bytes (EFBIG): an error that is no want of room.
    gateway.limit_file_size(4_096);
    device.send(&[message(2, b"behind")]);
    let heard = device.hear_all();
    assert!(!heard.iter().any(|event| matches!(event, Event::Ack(_))), "{heard:?}");
    assert_eq!(gateway.wait_for_failure(SOON).code(), Some(1));
    let said = gateway.logged("the store cannot be written");
    assert_eq!(said.len(), 1, "it is said once: there is no second try");
    assert!(said[0]["path"].as_str().unwrap().ends_with("store.sqlite"), "{said:?}");
    drop(gateway);

    let gateway = Gateway::start(site.directory());
    let events = gateway.get_json("/v1/uplink?consumer=c&max=100")["events"].take();
    let payloads: Vec<_> = events.as_array().unwrap().iter().filter_map(|event| event["payload"].as_str()).collect();
    assert_eq!(payloads, ["before"]);
}

/// Comes between the program and the system: once the file that `FAILING_SYNC` names is there, no synchronisation succeeds.
const FAILING_SYNC: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
static int call(const char *name, int fd) {
    const char *told = getenv("FAILING_SYNC");
    if (told && access(told, F_OK) == 0) { errno = EIO; return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}
int fsync(int fd) { return call("fsync", fd); }
int fdatasync(int fd) { return call("fdatasync", fd); }
"#;

/// What a disk says that has lost what it was given, to whoever asks whether it is there.
#[test]
fn a_synchronisation_that_fails_ends_the_gateway_and_nothing_is_acknowledged_behind_it() {
    let site = Site::new();
    let (source, object, told) = (site.path("sync.c"), site.path("sync.so"), site.path("fails"));
    std::fs::write(&source, FAILING_SYNC).unwrap();
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&object).arg(&source).arg("-ldl").status();
    if !compiled.is_ok_and(|status| status.success()) {
        eprintln!("not run: there is no C compiler");
        return;
    }
    site.configure("", &[native()]);
    let environment = [("LD_PRELOAD", &*object), ("FAILING_SYNC", &*told)];
    let mut gateway = Gateway::start_in(site.directory(), &environment);
    let mut device = Device::welcomed(gateway.devices(), &site.tls(), "meter-1");
    for number in 1..=20 {
        device.send(&[message(number, b"before")]);
        assert_eq!(device.hear(), Event::Ack(number));
    }
    std::fs::write(&told, "").unwrap();
    device.send(&[message(21, b"behind")]);
    let heard = device.hear_all();
    assert!(!heard.iter().any(|event| matches!(event, Event::Ack(_))), "{heard:?}");
    assert_eq!(gateway.wait_for_failure(SOON).code(), Some(1));
    assert_eq!(gateway.logged("the store cannot be written").len(), 1, "it is said once: there is no second try");
    drop(gateway);

    // What was not acknowledged may be there.
    let gateway = Gateway::start(site.directory());
    let events = gateway.get_json("/v1/uplink?consumer=c&max=100")["events"].take();
    let payloads = events.as_array().unwrap().iter().filter_map(|event| event["payload"].as_str());
    assert_eq!(payloads.filter(|payload| *payload == "before").count(), 20);
}

/// Files that nobody can write, until it is dropped.
struct Immutable(Vec<PathBuf>);

impl Immutable {
    fn make(files: Vec<PathBuf>) -> Option<Self> {
        let immutable = Self(files);
        immutable.set("+i").then_some(immutable)
    }

    fn set(&self, bit: &str) -> bool {
        Command::new("chattr").arg(bit).args(&self.0).status().is_ok_and(|status| status.success())
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        self.set("-i");
    }
}

/// The immutable bit stands for a disk that the system makes read only while files on it are open: a remount would be refused then.
#[test]
fn a_disk_that_is_read_only_from_now_on_ends_the_gateway_in_one_line() {
    let site = Site::new();
    let mut gateway = site.start("data_dir = \"data\"", &[native()]);
    let mut device = Device::welcomed(gateway.devices(), &site.tls(), "meter-1");
    device.send(&[message(1, b"before")]);
    assert_eq!(device.hear(), Event::Ack(1));
    let data = site.path("data");
    let Some(read_only) = Immutable::make(vec![data.join("store.sqlite-wal"), data.join("store.sqlite"), data]) else {
        eprintln!("not run: only root may make files immutable, and not on every file system");
        return;
    };
    device.send(&[message(2, b"behind")]);
    let heard = device.hear_all();
    let ended = gateway.wait_for_failure(SOON).code();
    drop(read_only);
    assert!(!heard.iter().any(|event| matches!(event, Event::Ack(_))), "{heard:?}");
    assert_eq!(ended, Some(1));
    let said = gateway.logged("the store cannot be written");
    assert_eq!(said.len(), 1, "it is said once: there is no second try");
    assert!(said[0]["system"].as_str().unwrap().contains("not permitted"), "{said:?}");
    drop(gateway);

    let gateway = Gateway::start(site.directory());
    let events = gateway.get_json("/v1/uplink?consumer=c&max=100")["events"].take();
    let payloads: Vec<_> = events.as_array().unwrap().iter().filter_map(|event| event["payload"].as_str()).collect();
    assert_eq!(payloads, ["before"]);
}

#[test]
fn a_read_only_disk_is_refused_by_name() {
    let site = Site::new();
    let data = site.path("data");
    let Some(disk) = SmallDisk::mount(&data, 1 << 10) else { return };
    site.configure("data_dir = \"data\"", &[native()]);
    disk.make_read_only();
    let refused = Gateway::command(site.directory()).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains("data/store.lock: Read-only file system"), "{said}");
}

#[test]
fn a_second_gateway_on_the_same_store_is_refused() {
    let site = Site::new();
    let _gateway = site.start("", &[native()]);
    let second = Gateway::command(site.directory()).output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1));
    assert!(said.contains("another gateway has this store open"), "{said}");
}

#[test]
fn a_damaged_store_is_refused_until_its_loss_is_accepted() {
    let site = Site::new();
    site.configure("", &[native()]);
    std::fs::create_dir_all(site.path("pulsegate-data")).unwrap();
    site.write("pulsegate-data/store.sqlite", &"not a database ".repeat(1_000));
    let refused = Gateway::command(site.directory()).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.contains("the store is damaged") && said.contains("--accept-data-loss"), "{said}");

    let gateway = Gateway::start_with(site.directory(), &["--accept-data-loss"]);
    assert_eq!(gateway.get_json("/v1/uplink/consumers")["last"], 0);
    let kept = std::fs::read_dir(site.path("pulsegate-data")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(kept.filter(|name| name.to_str().unwrap().starts_with("store.damaged-")).count(), 1);
}

#[test]
fn the_command_line_reads_checks_and_backs_up() {
    let site = Site::new();
    let gateway = site.start("", &[native()]);
    let mut device = Device::welcomed(gateway.devices(), &site.tls(), "meter-1");
    device.send(&[message(1, b"237")]);
    assert_eq!(device.hear(), Event::Ack(1));
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
        let output = command.current_dir(site.directory()).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    };
    let admin = gateway.admin();
    let lines = |text: &str| text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
    let read = lines(&run(&["uplink", "--consumer", "c", "--admin", &admin]));
    assert_eq!((read.len(), &read[1]["payload"]), (2, &json!("237")));
    assert_eq!(run(&["uplink", "--consumer", "c", "--admin", &admin]), "", "it was acknowledged");
    assert!(run(&["uplink", "--list", "--admin", &admin]).contains("events 1 to 2 are held"));

    let of = ["--config", "pulsegate.toml"];
    assert!(run(&["store", "check", of[0], of[1]]).contains("sound; 2 events, 1 to 2, 1 consumers"));
    assert_eq!(lines(&run(&["store", "export", of[0], of[1]])), read, "the same fields as over the API");
    run(&["store", "backup", of[0], of[1], "copy.sqlite"]);
    assert!(site.path("copy.sqlite").metadata().unwrap().len() > 0);
    // The gateway did not notice.
    device.send(&[message(2, b"238")]);
    assert_eq!(device.hear(), Event::Ack(2));
}

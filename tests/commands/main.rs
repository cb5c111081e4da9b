//! Commands, events and orderly ends, through the real program: from an HTTP request to a device and back.

mod people;
mod process;
mod reload;
mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use pulsegate::codec::native::{Frame, Message};
use rustix::process::Signal;
use serde_json::{Value, json};

use support::{Device, Gateway, Heard, Program, SOON, Site, wait_for};

const QUIET: Duration = Duration::from_millis(300);

fn message(topic: &str, payload: &str) -> Heard {
    Heard::Message { id: 0, topic: topic.to_owned(), payload: payload.as_bytes().to_vec() }
}

#[test]
fn a_message_arrives_exactly_once_and_its_ack_comes_back() {
    let site = Site::new("");
    let gateway = site.start();
    let mut device = gateway.connect("meter-1");
    let order = json!({"topic": "set/relay", "payload": "on"});
    assert_eq!(gateway.send("meter-1", &order), (200, json!({"outcome": "delivered"})));
    assert_eq!(device.hear(), message("set/relay", "on"));
    assert!(device.is_silent_for(QUIET));

    // With an acknowledgement: the answer waits for it.
    let acknowledged = json!({"payload_base64": "AP8=", "ack": true});
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| gateway.send("meter-1", &acknowledged));
        let Heard::Message { id, payload, .. } = device.hear() else { panic!() };
        assert!(id != 0 && payload == [0, 0xff]);
        std::thread::sleep(QUIET);
        assert!(!sent.is_finished());
        device.say(&Frame::Ack(id));
        assert_eq!(sent.join().unwrap(), (200, json!({"outcome": "acknowledged"})));
    });
    let code = |(status, body): (u16, Value)| (status, body["error"]["code"].as_str().unwrap().to_owned());
    let impatient = json!({"payload": "x", "ack": true, "timeout": "100ms"});
    assert_eq!(code(gateway.send("meter-1", &impatient)), (504, "ack_timeout".to_owned()));
    assert_eq!(code(gateway.send("meter-2", &order)), (404, "device_offline".to_owned()));

    // Gone before it has acknowledged.
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| gateway.send("meter-1", &json!({"payload": "y", "ack": true, "timeout": "10s"})));
        while !matches!(device.hear(), Heard::Message { payload, .. } if payload == b"y") {}
        drop(device);
        assert_eq!(code(sent.join().unwrap()), (504, "unacknowledged".to_owned()));
    });
}

#[test]
fn raw_devices_take_bytes_as_they_are_and_acknowledge_nothing() {
    let site = Site::new("");
    let gateway = site.start();
    let mut events = gateway.follow("");
    let mut device = gateway.connect_raw();
    device.stream.write_all(b"hi").unwrap();
    let id = events.next().unwrap()["device"].as_str().unwrap().to_owned();
    assert_eq!(events.next().unwrap()["payload"], "hi");
    let sent = gateway.send(&id, &json!({"topic": "not told", "payload": "bytes"}));
    assert_eq!(sent, (200, json!({"outcome": "delivered"})));
    let mut bytes = [0; 5];
    device.stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"bytes");
    let (status, refused) = gateway.send(&id, &json!({"payload": "x", "ack": true}));
    assert_eq!((status, refused["error"]["code"].as_str()), (409, Some("refused")));
}

#[test]
fn events_tell_a_life_in_order() {
    let site = Site::new("");
    let gateway = site.start();
    let mut events = gateway.follow("?device=meter-1");
    for round in 1..=3 {
        let mut device = gateway.connect("meter-1");
        device.say(&Frame::Message(Message { id: 9, topic: "power", payload: b"230" }));
        assert_eq!(device.hear(), Heard::Ack(9));
        drop(device);
        let life: Vec<Value> = events.by_ref().take(3).collect();
        let kinds: Vec<_> = life.iter().map(|event| event["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["connected", "message", "disconnected"]);
        assert_eq!((&life[1]["topic"], &life[1]["payload"]), (&json!("power"), &json!("230")));
        assert_eq!(life[0]["generation"], life[2]["generation"]);
        assert_eq!((&life[0]["sequence"], &life[2]["sequence"]), (&json!(round * 2 - 1), &json!(round * 2)));
        assert!(life[2]["cause"].is_string() && life[0].get("cause").is_none());
    }
}

#[test]
fn takeovers_are_one_arrival_and_one_end_each() {
    let site = Site::new("");
    let gateway = site.start();
    let mut events = gateway.follow("?kind=connected,disconnected&device=twin");
    let count = 20;
    let mut devices: Vec<Device> = (0..count).map(|_| gateway.connect("twin")).collect();
    let mut last = devices.pop().unwrap();
    for mut device in devices {
        assert!(matches!(device.hear(), Heard::Close { code, .. } if code == "taken_over"));
    }
    let mut live = None;
    let mut generation = 0;
    for event in events.by_ref().take(2 * count - 1) {
        if event["kind"] == "connected" {
            assert_eq!(live, None, "two at a time");
            assert!(event["generation"].as_u64().unwrap() > generation);
            generation = event["generation"].as_u64().unwrap();
            live = Some(generation);
        } else {
            assert_eq!((event["generation"].as_u64(), &event["cause"]), (live.take(), &json!("taken_over")));
        }
    }
    assert_eq!(gateway.send("twin", &json!({"payload": "you"})).0, 200);
    assert_eq!(last.hear(), message("", "you"));
}

#[test]
fn a_broadcast_reaches_each_device_of_its_prefix_once() {
    let site = Site::new("");
    let gateway = site.start();
    let mut meters: Vec<Device> = (0..300).map(|number| gateway.connect(&format!("meter-{number}"))).collect();
    let mut others: Vec<Device> = (0..5).map(|number| gateway.connect(&format!("valve-{number}"))).collect();
    let order = json!({"topic": "all", "payload": "hear", "prefix": "meter-", "per_second": 1_000});
    let begun = Instant::now();
    let (status, answer) = gateway.ask("POST", "/v1/broadcast", Some(&order));
    assert_eq!(status, 202);
    let url = answer["url"].as_str().unwrap();
    let done = wait_for("the broadcast is done", || {
        Some(gateway.ask("GET", url, None).1).filter(|progress| progress["state"] == "done")
    });
    assert_eq!((&done["sent"], &done["refused"]), (&json!(300), &json!(0)));
    // Paced: 150 a worker, 500 a second each.
    assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());
    for meter in &mut meters {
        assert_eq!(meter.hear(), message("all", "hear"));
    }
    assert!(others[0].is_silent_for(QUIET));
    assert!(meters.iter_mut().chain(&mut others).all(|device| device.is_silent_for(Duration::from_millis(1))));

    // One that is slow enough to be cancelled.
    let order = json!({"payload": "x", "prefix": "meter-", "per_second": 2});
    let (_, answer) = gateway.ask("POST", "/v1/broadcast", Some(&order));
    let url = answer["url"].as_str().unwrap();
    assert_eq!(gateway.ask("DELETE", url, None).0, 200);
    let end = wait_for("it is cancelled", || {
        Some(gateway.ask("GET", url, None).1).filter(|progress| progress["state"] == "cancelled")
    });
    assert!(end["sent"].as_u64().unwrap() < 20, "{end}");
}

#[test]
fn a_thousand_acknowledged_commands_have_exact_counts() {
    let site = Site::new("");
    let gateway = site.start();
    let count = 100;
    let devices: Vec<Device> = (0..count).map(|number| gateway.connect(&format!("m-{number}"))).collect();
    let heard = std::thread::scope(|scope| {
        let serving: Vec<_> = devices
            .into_iter()
            .map(|mut device| {
                scope.spawn(move || {
                    let mut heard = Vec::new();
                    while let Heard::Message { id, payload, .. } = device.hear() {
                        device.say(&Frame::Ack(id));
                        heard.push(String::from_utf8(payload).unwrap());
                    }
                    heard
                })
            })
            .collect();
        let gateway = &gateway;
        let sending: Vec<_> = (0..10)
            .map(|share| {
                scope.spawn(move || {
                    for number in (share..count * 10).step_by(10) {
                        let order = json!({"payload": number.to_string(), "ack": true, "timeout": "20s"});
                        let sent = gateway.send(&format!("m-{}", number % count), &order);
                        assert_eq!(sent, (200, json!({"outcome": "acknowledged"})));
                    }
                })
            })
            .collect();
        for sender in sending {
            sender.join().unwrap();
        }
        for number in 0..count {
            assert_eq!(gateway.ask("DELETE", &format!("/v1/devices/m-{number}/connection"), None).0, 204);
        }
        serving.into_iter().map(|device| device.join().unwrap()).collect::<Vec<_>>()
    });
    let mut counts = BTreeMap::<u32, u32>::new();
    for number in heard.iter().flatten() {
        *counts.entry(number.parse().unwrap()).or_default() += 1;
    }
    assert_eq!(counts, (0..count * 10).map(|number| (number, 1)).collect());
}

#[test]
fn a_device_that_is_sent_away_is_told_so() {
    let site = Site::new("");
    let gateway = site.start();
    let mut events = gateway.follow("?kind=disconnected");
    let mut device = gateway.connect("meter-1");
    assert_eq!(gateway.ask("DELETE", "/v1/devices/meter-1/connection", None), (204, Value::Null));
    assert!(matches!(device.hear(), Heard::Close { code, .. } if code == "requested"));
    assert_eq!(device.hear(), Heard::End);
    assert_eq!(events.next().unwrap()["cause"], "requested");
    assert_eq!(gateway.ask("DELETE", "/v1/devices/meter-1/connection", None).0, 404);
}

#[test]
fn the_end_is_told_to_devices_over_the_window_to_followers_and_to_the_supervisor() {
    let site = Site::new("[drain]\nwindow = \"1s\"");
    let notify = site.path().join("notify");
    let supervisor = UnixDatagram::bind(&notify).unwrap();
    // It reads all the time, as supervisors do.
    let (told, to_hear) = mpsc::channel();
    thread::spawn(move || {
        let mut text = [0; 256];
        while let Ok(length) = supervisor.recv(&mut text)
            && told.send(String::from_utf8(text[..length].to_vec()).unwrap()).is_ok()
        {}
    });
    let hear = || to_hear.recv_timeout(SOON).unwrap();
    let mut gateway = Gateway::start(site.path(), |command| {
        command.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "600000");
    });
    assert_eq!(hear().trim(), "READY=1");
    assert_eq!(hear().trim(), "WATCHDOG=1");
    assert_eq!(hear().trim(), "WATCHDOG=1");

    let events = gateway.follow("?kind=disconnected");
    let mut devices: Vec<Device> = (0..100).map(|number| gateway.connect(&format!("d-{number}"))).collect();
    let begun = Instant::now();
    gateway.program.signal(Signal::TERM);
    let mut waits = Vec::new();
    for device in &mut devices {
        let Heard::Close { code, retry_after_ms } = device.hear() else { panic!() };
        assert_eq!(code, "going_away");
        waits.push(retry_after_ms);
        assert_eq!(device.hear(), Heard::End);
    }
    assert!(begun.elapsed() >= Duration::from_millis(700), "{:?}", begun.elapsed());
    assert!(waits.iter().all(|wait| (1_000..=2_000).contains(wait)), "{waits:?}");
    waits.sort_unstable();
    assert!(waits[90] - waits[10] > 300, "not spread: {waits:?}");
    drop(devices);
    let ends: Vec<Value> = events.collect();
    assert_eq!(ends.len(), 100, "followers hear of every end before their own");
    assert!(ends.iter().all(|end| end["cause"] == "shutdown"));
    assert!(gateway.program.wait().success());
    let told: Vec<String> = std::iter::repeat_with(hear).find(|text| text.contains("STOPPING=1")).into_iter().collect();
    assert!(told[0].contains("EXTEND_TIMEOUT_USEC=16000000"), "{told:?}");
}

#[test]
fn a_supervisor_that_reads_nothing_does_not_keep_the_gateway_from_hearing_signals() {
    let site = Site::new("[drain]\nwindow = \"0s\"");
    let notify = site.path().join("notify");
    let _deaf = UnixDatagram::bind(&notify).unwrap();
    let mut gateway = Gateway::start(site.path(), |command| {
        command.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "3000");
    });
    // That takes much longer than the socket takes to be full.
    let _devices: Vec<Device> = (0..100).map(|number| gateway.connect(&format!("d-{number}"))).collect();
    gateway.program.signal(Signal::TERM);
    assert!(gateway.program.wait().success());
}

#[test]
fn a_second_signal_ends_at_once() {
    let site = Site::new("[drain]\nwindow = \"5m\"");
    let mut gateway = site.start();
    let _devices: Vec<Device> = (0..10).map(|number| gateway.connect(&format!("d-{number}"))).collect();
    gateway.program.signal(Signal::TERM);
    gateway.program.expect("a second signal ends at once", 1);
    gateway.program.signal(Signal::TERM);
    assert_eq!(gateway.program.wait().code(), Some(130));
}

#[test]
fn people_can_list_send_and_watch() {
    let site = Site::new("");
    let gateway = site.start();
    let watching = Program::start(gateway.command(&["watch", "--device", "meter-1"]));
    let ready = || gateway.connect("meter-1");
    // It watches from some moment on; until then devices come and go.
    let mut device = wait_for("it watches", || {
        let device = ready();
        std::thread::sleep(Duration::from_millis(50));
        watching.lines.lock().unwrap().iter().any(|line| line.contains("  connected  ")).then_some(device)
    });
    let (code, table, errors) = gateway.run(&["devices", "--prefix", "meter"], b"");
    assert_eq!((code, errors.as_str(), table.lines().count()), (0, "", 2), "{table}{errors}");
    assert!(
        table.starts_with("DEVICE ") && table.contains("\nmeter-1  heard  native    devices   127.0.0.1:"),
        "{table}"
    );

    assert_eq!(
        gateway.run(&["send", "meter-1", "--topic", "t", "hello"], b""),
        (0, "delivered\n".into(), String::new())
    );
    assert_eq!(device.hear(), message("t", "hello"));
    assert_eq!(gateway.run(&["send", "meter-1", "-"], &[0xff, 0]).1, "delivered\n");
    assert!(matches!(device.hear(), Heard::Message { payload, .. } if payload == [0xff, 0]));
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| gateway.run(&["send", "meter-1", "--ack", "--timeout", "10s", "x"], b""));
        let Heard::Message { id, .. } = device.hear() else { panic!() };
        device.say(&Frame::Ack(id));
        assert_eq!(sent.join().unwrap().1, "acknowledged\n");
    });
    device.say(&Frame::Message(Message { id: 0, topic: "power", payload: b"230 W" }));
    watching.expect("power: 230 W", 1);
    drop(device);
    watching.expect("  disconnected  ", 1);

    let refused = |arguments: &[&str], part: &str| {
        let (code, text, errors) = gateway.run(arguments, b"");
        assert_eq!((code, text.as_str(), errors.lines().count()), (1, "", 1), "{errors}");
        assert!(errors.starts_with("pulsegate: ") && errors.contains(part), "{errors}");
    };
    refused(&["send", "nobody", "x"], "no device \"nobody\" is connected");
    refused(&["watch", "--kind", "gone"], "unknown kind \"gone\"; known: connected, disconnected, message");
    refused(&["devices", "--token-file", "nowhere"], "nowhere cannot be read");
    let mut nobody = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    let output = nobody.args(["devices", "--admin", "http://127.0.0.1:1"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("does the gateway run?"), "{output:?}");
}

fn python(site: &Site, port: u16, arguments: &[&str]) -> Program {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python/device.py");
    let mut command = Command::new("python3");
    command.arg(script).current_dir(site.path());
    command.args(["--ca", "certs/ca.pem", "--host", "127.0.0.1", "--port", &port.to_string()]).args(arguments);
    Program::start(command)
}

#[test]
fn the_python_device_lives_through_a_restart() {
    let site = Site::new("[drain]\nwindow = \"100ms\"");
    let mut gateway = site.start();
    let device = python(&site, site.port, &["--id", "py-1", "--report", "0.2", "--heartbeat", "1"]);
    device.expect("connected as py-1, TLSv1.3, resumed: False, heartbeat 1 s", 1);
    device.expect("acknowledged", 2);
    let sent = gateway.send("py-1", &json!({"topic": "set", "payload": "on", "ack": true}));
    assert_eq!(sent, (200, json!({"outcome": "acknowledged"})));
    device.expect("message set b'on'", 1);

    // Sent away, it comes back with its ticket.
    assert_eq!(gateway.ask("DELETE", "/v1/devices/py-1/connection", None).0, 204);
    device.expect("closed: requested", 1);
    device.expect("connected as py-1, TLSv1.3, resumed: True", 1);

    gateway.program.signal(Signal::TERM);
    assert!(gateway.program.wait().success());
    device.expect("closed: going_away", 1);
    let gateway = site.start();
    device.expect("connected as py-1", 3);
    let before = device.lines.lock().unwrap().iter().filter(|line| line.contains("acknowledged")).count();
    device.expect("acknowledged", before + 1);
    let sent = gateway.send("py-1", &json!({"payload": "again", "ack": true}));
    assert_eq!(sent, (200, json!({"outcome": "acknowledged"})));
}

#[test]
fn the_python_device_notices_a_dead_gateway_and_a_wrong_one() {
    let site = Site::new("");
    let toml = site.path().join("pulsegate.toml");
    let config = std::fs::read_to_string(&toml).unwrap();
    let heartbeat = "protocol = \"native\"\n[listener.heartbeat]\ninterval = \"300ms\"\ntimeout = \"300ms\"\n";
    std::fs::write(&toml, config.replace("protocol = \"native\"\n", heartbeat)).unwrap();
    let gateway = site.start();
    let device = python(&site, site.port, &["--id", "py-1", "--report", "0"]);
    device.expect("connected as py-1", 1);
    // Stopped, it is not gone: its sockets stay, and nothing comes.
    gateway.program.signal(Signal::STOP);
    device.expect("closed: the gateway is dead", 1);
    gateway.program.signal(Signal::CONT);
    device.expect("connected as py-1", 2);

    let stranger = Site::new("");
    let suspicious = python(&stranger, site.port, &["--id", "py-2"]);
    suspicious.expect("closed: the gateway's certificate is not right", 1);
}

#[test]
fn the_raw_python_device_beats() {
    let site = Site::new("");
    let gateway = site.start();
    let mut events = gateway.follow("");
    let device = python(&site, gateway.raw.port(), &["--raw", "--heartbeat", "0.1"]);
    device.expect("connected, TLSv1.3", 1);
    let id = events.next().unwrap()["device"].as_str().unwrap().to_owned();
    wait_for("it beats", || {
        gateway.metric("pulsegate_heartbeats_received_total").filter(|&heartbeats| heartbeats >= 3)
    });
    assert_eq!(gateway.send(&id, &json!({"payload": "ho"})).0, 200);
    device.expect("received b'ho'", 1);
}

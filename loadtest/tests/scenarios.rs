//! The harness as a program, against a gateway in this process.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pulsegate::config::machine::{Memory, MemorySource};
use pulsegate::config::{Heartbeat, Machine, Protocol, Transport, WebSocket, built_in};
use pulsegate::connection::ListenerSettings;
use pulsegate::control::{Clock, Control, ControlParts, Inventory};
use pulsegate::link::{Home, ListenerId};
use pulsegate::tls::certs::development;
use pulsegate::tls::handshake::{ClientAuth, ServerOptions, ServerTls};
use pulsegate::worker::{self, WorkerOptions, Workers};
use serde_json::{Value, json};

struct Gateway {
    _directory: tempfile::TempDir,
    ca: PathBuf,
    /// Where the listener of native devices really listens, and those of raw and MQTT devices, and of MQTT within WebSocket.
    native: SocketAddr,
    raw: SocketAddr,
    mqtt: SocketAddr,
    websocket: SocketAddr,
    _workers: Workers,
    control: Control,
}

impl Gateway {
    /// Two workers, and a heartbeat that is soon over.
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let certs = development::ensure(directory.path(), &[], SystemTime::now()).unwrap();
        let machine = Machine {
            hostname: "test".to_owned(),
            cores: 2,
            memory: Memory { bytes: 8 << 30, source: MemorySource::Machine },
            descriptors: 10_000,
            outgoing_ports: None,
        };
        let mut config = built_in(&machine).unwrap().config;
        config.workers = 2;
        let mqtt = config.listeners.iter().find(|listener| matches!(listener.protocol, Protocol::Mqtt(_)));
        let mut websocket = mqtt.unwrap().clone();
        "websocket".clone_into(&mut websocket.name);
        websocket.transport = Transport::WebSocket(WebSocket::default());
        config.listeners.push(websocket);
        let mut settings = Vec::new();
        for (position, listener) in config.listeners.iter_mut().enumerate() {
            listener.listen = "127.0.0.1:0".parse().unwrap();
            listener.heartbeat = Heartbeat {
                interval: Duration::from_secs(1),
                timeout: Duration::from_millis(500),
                retries: 1,
                ..Heartbeat::default()
            };
            let options = ServerOptions {
                certificates: &[(&certs.server.cert, &certs.server.key)],
                client_auth: ClientAuth::Off,
                alpn: &[],
                ..ServerOptions::default()
            };
            let (tls, _) = ServerTls::load(&options).unwrap();
            settings.push(ListenerSettings::new(ListenerId(position as u8), listener, &config.limits, tls));
        }
        let home = Home::new([7; 16], config.workers);
        let setup = WorkerOptions {
            config: &config,
            settings: Arc::from(settings),
            home,
            started: Instant::now(),
            seed: 1,
            address_key: [1; 16],
        };
        let workers = worker::start(&setup, None).unwrap();
        let control = Control::start(ControlParts {
            inventory: Inventory::default(),
            config: Arc::new(config.clone()),
            home,
            exchange: Arc::clone(&workers.exchange),
            mailboxes: workers.mailboxes.clone(),
            uplink: workers.uplink.clone(),
            published: workers.published.clone(),
            listeners: workers.addresses.clone(),
            clock: Arc::new(Clock::new(setup.started)),
            epoch: 1,
            admin: TcpListener::bind("127.0.0.1:0").unwrap(),
            api_tls: None,
            log_lines_lost: Arc::default(),
            store: None,
            sinks: Vec::new(),
            fleet: None,
        });
        let address = |speaks: fn(&Protocol) -> bool| {
            let position = config.listeners.iter().position(|listener| speaks(&listener.protocol));
            workers.addresses[position.unwrap()]
        };
        Self {
            ca: certs.authority.cert,
            native: address(|protocol| matches!(protocol, Protocol::Native)),
            raw: address(|protocol| matches!(protocol, Protocol::Raw(_))),
            mqtt: address(|protocol| matches!(protocol, Protocol::Mqtt(_))),
            websocket: workers.addresses[config.listeners.len() - 1],
            _workers: workers,
            control: control.unwrap(),
            _directory: directory,
        }
    }

    fn run(&self, arguments: &str, json: &Path) -> (Output, Value) {
        let target = match arguments {
            _ if arguments.contains("--websocket") => self.websocket,
            _ if arguments.contains("--protocol mqtt") => self.mqtt,
            _ => self.native,
        };
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        command.args(arguments.split_ascii_whitespace()).args(["--target", &target.to_string()]);
        command.args(["--pid", &std::process::id().to_string()]).arg("--ca").arg(&self.ca).arg("--json").arg(json);
        command.args(["--admin", &format!("http://{}", self.control.admin_addr())]);
        let output = command.output().unwrap();
        let report = std::fs::read(json).unwrap_or_else(|_| panic!("no report: {output:?}"));
        (output, serde_json::from_slice(&report).unwrap())
    }
}

#[test]
fn a_fleet_is_held_and_whoever_falls_silent_is_found_out() {
    let gateway = Gateway::start();
    let directory = tempfile::tempdir().unwrap();
    let (json, page) = (directory.path().join("report.json"), directory.path().join("report.html"));

    let arguments = format!(
        "hold --connections 200 --threads 2 --rate 1000 --settle 100ms --duration 3s --html {}",
        page.display()
    );
    let (output, report) = gateway.run(&arguments, &json);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(report["scenario"], "hold");
    assert_eq!(report["connections"]["held"], 200);
    assert_eq!(report["connections"]["lost"], 0);
    assert!(report["details"]["server_pings"].as_u64().unwrap() >= 200, "{report}");
    assert!(report["memory"]["user_bytes_per_connection"].is_f64());
    assert!(std::fs::read_to_string(&page).unwrap().contains("<svg"));

    // A second process with the same ids: every device of the first is gone, so nobody is taken over.
    let arguments = "dark --connections 100 --share 0.2 --rate 1000 --settle 2s --duration 2s --max-lateness 1s";
    let (output, report) = gateway.run(arguments, &json);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(report["expiry"]["right"], 20);
    assert_eq!(report["expiry"]["false"], 0);
    assert_eq!(report["connections"]["held"], 80);
}

#[test]
fn messages_in_all_directions_are_counted_one_by_one() {
    let gateway = Gateway::start();
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("report.json");
    let common = "--rate 1000 --settle 200ms --messages-per-second 2000 --messages 600";
    let scenarios = [
        format!("uplink -n 60 --ack --device-prefix up- {common}"),
        format!("uplink -n 60 --device-prefix unasked- {common}"),
        format!("downlink -n 60 --ack --senders 8 --device-prefix down- {common}"),
        format!("downlink -n 60 --to 1 --senders 4 --device-prefix one- {common}"),
        "broadcast -n 200 --rounds 3 --rate 1000 --settle 200ms --device-prefix all-".to_owned(),
    ];
    for arguments in scenarios {
        let (output, report) = gateway.run(&arguments, &json);
        assert!(output.status.success(), "{arguments}: {output:?}");
        for (key, expected) in [("sent", 600), ("received", 600), ("lost", 0), ("duplicated", 0)] {
            assert_eq!(report["messages"][key], expected, "{arguments}: {key}");
        }
        assert!(report["latency_us"]["p50"].is_f64(), "{arguments}");
        assert!(report["cpu"]["us_per_message"].is_f64(), "{arguments}");
    }
}

#[test]
fn mqtt_devices_are_held_ended_in_time_and_hear_of_each_other() {
    let gateway = Gateway::start();
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("report.json");
    let common = "--protocol mqtt --rate 1000 --settle 200ms";
    for version in [3, 5] {
        let arguments = format!(
            "hold {common} --mqtt-version {version} -n 100 --subscribe devices/{{device}}/# --keep-alive 1s --duration 3s"
        );
        let (output, report) = gateway.run(&arguments, &json);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(report["connections"]["held"], 100);
        for qos in [0, 1] {
            let load = format!("--mqtt-version {version} --qos {qos} --messages-per-second 2000");
            let (output, report) = gateway.run(&format!("fan-in {common} {load} -n 21 --messages 400"), &json);
            assert!(output.status.success(), "{output:?}");
            assert_eq!(report["messages"]["received"], 400);
            let (output, report) = gateway.run(&format!("fan-out {common} {load} -n 21 --messages 20"), &json);
            assert!(output.status.success(), "{output:?}");
            assert_eq!(report["messages"]["received"], 400);
            assert_eq!(report["messages"]["duplicated"], 0);
        }
    }
    let within = "--websocket --mqtt-version 3 -n 21 --messages-per-second 2000";
    for scenario in ["fan-in --qos 1 --messages 400", "fan-out --messages 20"] {
        let (output, report) = gateway.run(&format!("{scenario} {common} {within}"), &json);
        assert!(output.status.success(), "{output:?}");
        assert_eq!((&report["messages"]["received"], &report["messages"]["lost"]), (&json!(400), &json!(0)));
    }
    // Nothing is served under another path.
    let (output, _) =
        gateway.run(&format!("hold {common} --websocket=/other -n 2 --duration 1s --connect-timeout 2s"), &json);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let arguments = format!("dark {common} -n 40 --share 0.25 --keep-alive 2s --duration 1s --max-lateness 1s");
    let (output, report) = gateway.run(&arguments, &json);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(report["expiry"]["right"], 10);
}

#[test]
fn a_duel_is_taken_in_turns_and_told_in_ratios() {
    let gateway = Gateway::start();
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("report.json");
    let arguments = format!(
        "duel heartbeat -n 20 --every 100ms --rate 1000 --settle 100ms --duration 1s --name native --turns 2 --against other=mqtt@{}:{}",
        gateway.mqtt,
        std::process::id()
    );
    let (output, report) = gateway.run(&arguments, &json);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(report["turns"]["native"].as_array().unwrap().len(), 2);
    assert_eq!(report["turns"]["other"][1]["messages"]["lost"], 0);
    // CPU time is counted in hundredths of a second, of which so few heartbeats may need none.
    assert!(report["turns"]["other"][0]["cpu"]["us_per_heartbeat"].is_f64());
    assert!(report["ratios"]["other"]["latency_us.p50"].as_f64().unwrap() > 0.0);
}

#[test]
fn whoever_does_not_read_is_ended_and_the_others_are_not() {
    let gateway = Gateway::start();
    let directory = tempfile::tempdir().unwrap();
    // What is measured is this process, in which other tests run too.
    let arguments = "slow -n 20 --share 0.1 --rate 1000 --settle 200ms --max-growth 100000000 --max-p99 10s";
    let (output, report) = gateway.run(arguments, &directory.path().join("report.json"));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(report["details"]["do_not_read"], 2);
    assert_eq!(report["connections"]["lost"], 0);
}

#[test]
fn soak_has_every_attack_and_every_way_to_fail_and_nobody_is_wronged() {
    let gateway = Gateway::start();
    let directory = tempfile::tempdir().unwrap();
    let pace = "--rate 1000 --settle 500ms --quiet 1s --duration 22s --every 200ms --publish-every 500ms --life 2s";
    let bounds = "--keep-alive 1s --raw-interval 1s --raw-timeout 500ms --raw-retries 1";
    // What is measured is this process, in which other tests run too; and it cannot stop itself.
    let judged = "--attackers 2 --freeze 0s --max-p99-factor 1000000 --max-growth 100000 --max-idle-turns 0.25";
    let targets = format!("--mqtt-target {} --raw-target {}", gateway.mqtt, gateway.raw);
    let arguments = format!("soak -n 300 {pace} {bounds} {judged} {targets}");
    let (output, report) = gateway.run(&arguments, &directory.path().join("report.json"));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(report["connections"]["lost"], 0);
    assert_eq!(report["expiry"]["false"], 0);
    assert!(report["expiry"]["right"].as_u64().unwrap() >= 60, "{report}");
    assert_eq!(report["messages"]["lost"], 0);
    assert!(report["messages"]["sent"].as_u64().unwrap() > 100, "{report}");
    for kind in ["plain_http", "half_connect", "takeovers"] {
        assert!(report["details"][kind]["opened"].as_u64().unwrap() > 0, "{kind}: {report}");
    }
}

#[test]
fn a_scenario_about_messages_needs_the_control_plane() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    let ca = tempfile::tempdir().unwrap();
    let output = command.arg("downlink").arg("--ca").arg(ca.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--admin"), "{output:?}");
}

#[test]
fn a_scenario_that_fails_exits_with_one_and_says_why() {
    let gateway = Gateway::start();
    let directory = tempfile::tempdir().unwrap();
    let json = directory.path().join("report.json");
    let arguments = "hold --connections 10 --settle 0s --duration 100ms --max-user-bytes -1000000000";
    let (output, report) = gateway.run(&arguments.replace("bytes -", "bytes=-"), &json);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(report["passed"], false);
    assert!(String::from_utf8_lossy(&output.stdout).contains("FAILED"));
}

#[test]
fn what_cannot_begin_exits_with_two() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    let output = command.args(["hold", "--ca", "/nonexistent/ca.pem"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/ca.pem"));
}

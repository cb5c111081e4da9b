//! Clients that we did not write: mosquitto_pub and mosquitto_sub, paho-mqtt, mqtt.js, rumqttc.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rumqttc::tokio_rustls::rustls::crypto::aws_lc_rs;
use rumqttc::{Client, Event, Incoming, LastWill, MqttOptions, QoS, RecvTimeoutError, Transport};
use rustix::process::Signal;

use crate::start;
use crate::support::{Gateway, Program, SOON, Site, hold_for, wait_until};
use crate::websocket;

/// A battery takes some seconds, most of them its own waiting.
const BATTERY: Duration = Duration::from_secs(80);

/// What `tests/run` has installed for the clients.
fn installed() -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_pulsegate")).ancestors().nth(2).expect("TARGET/debug/pulsegate");
    target.join("test-clients")
}

fn client(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mqtt/clients").join(name)
}

fn mosquitto(site: &Site, gateway: &Gateway, program: &str, arguments: &[&str]) -> Program {
    let mut command = Command::new(program);
    let port = gateway.address("mqtt").port().to_string();
    command.current_dir(site.directory()).args(["-h", "localhost", "-p", &port, "--cafile", "certs/ca.pem"]);
    command.args(arguments);
    Program::start(command)
}

/// Waits until the program has printed `part`, for longer than things take as a rule. Shows all that it has printed if it
/// ends without.
#[track_caller]
fn expect_within(program: &mut Program, part: &str, within: Duration) {
    wait_until(part, within, || program.text().contains(part) || !program.is_running());
    assert!(program.text().contains(part), "{part:?} is not in\n{}", program.text());
}

#[track_caller]
fn finish(mut program: Program) {
    assert!(program.wait(SOON).success(), "{}", program.text());
}

#[test]
fn mosquitto_publishes_and_subscribes_in_both_versions() {
    let site = Site::new();
    let gateway = start(&site);
    let publish = |arguments: &[&str]| finish(mosquitto(&site, &gateway, "mosquitto_pub", arguments));
    for version in ["mqttv311", "mqttv5"] {
        for qos in ["0", "1", "2"] {
            let topic = format!("{version}/{qos}");
            let subscribe = ["-V", version, "-i", "sub", "-t", &topic, "-q", qos, "-C", "2", "-F", "%t %q %r %p"];
            let subscriber = mosquitto(&site, &gateway, "mosquitto_sub", &subscribe);
            wait_until("it has subscribed", SOON, || {
                let device = gateway.device("sub");
                device.is_some_and(|device| device["session"]["subscriptions"][0]["filter"] == topic)
            });
            publish(&["-V", version, "-i", "pub", "-t", &topic, "-q", qos, "-m", "hello"]);
            publish(&["-V", version, "-i", "pub", "-t", &topic, "-q", qos, "-r", "-m", "kept"]);
            subscriber.expect(&format!("{topic} {qos} 0 hello\n{topic} {qos} 0 kept\n"));
            finish(subscriber);
            let again = ["-V", version, "-t", &topic, "-q", qos, "-C", "1", "-F", "%t %q %r %p"];
            let subscriber = mosquitto(&site, &gateway, "mosquitto_sub", &again);
            subscriber.expect(&format!("{topic} {qos} 1 kept\n"));
            finish(subscriber);
        }
    }
    gateway.wait_until_empty();
}

#[test]
fn a_client_that_was_stopped_is_gone_after_one_and_a_half_keep_alives_and_its_will_is_told() {
    let site = Site::new();
    let gateway = start(&site);
    let mut watcher = mosquitto(&site, &gateway, "mosquitto_sub", &["-i", "watcher", "-t", "wills/#", "-C", "1", "-v"]);
    let mortal = ["-i", "mortal", "-t", "x", "-k", "5", "--will-topic", "wills/mortal", "--will-payload", "gone"];
    let mortal = mosquitto(&site, &gateway, "mosquitto_sub", &mortal);
    gateway.expect_connected(2);
    wait_until("it has subscribed", SOON, || {
        gateway.device("watcher").is_some_and(|device| device["session"]["subscriptions"][0]["filter"] == "wills/#")
    });
    // It lives for longer than that while it shows life.
    hold_for("it is connected", Duration::from_secs(9), || gateway.device("mortal").is_some());
    mortal.signal(Signal::STOP);
    expect_within(&mut watcher, "wills/mortal gone\n", Duration::from_secs(20));
    gateway.expect_closed("expired", 1);
    assert!(gateway.device("mortal").is_none());
    mortal.signal(Signal::CONT);
    finish(watcher);
}

#[test]
fn paho_does_all_that_a_fleet_does_in_both_versions() {
    let site = Site::new();
    let gateway = start(&site);
    paho(&site, &gateway, "mqtt", &[]);
}

#[test]
fn paho_does_it_over_websocket() {
    let site = Site::new();
    let gateway = site.start("workers = 2\n", &[websocket::listener("[]")]);
    paho(&site, &gateway, "ws", &["/mqtt"]);
}

pub fn paho(site: &Site, gateway: &Gateway, listener: &str, path: &[&str]) {
    let port = gateway.address(listener).port().to_string();
    for version in ["3", "5"] {
        let mut command = Command::new("python3");
        command.current_dir(site.directory()).env("PYTHONPATH", installed().join("python"));
        command.arg(client("battery.py")).args([&port, "certs/ca.pem", version]).args(path);
        let mut battery = Program::start(command);
        expect_within(&mut battery, "done", BATTERY);
        finish(battery);
    }
    gateway.wait_until_empty();
    gateway.expect_metric("pulsegate_mqtt_sessions", 0);
    gateway.expect_metric("pulsegate_mqtt_subscriptions", 0);
}

#[test]
fn mqtt_js_does_all_that_a_fleet_does_in_both_versions() {
    let site = Site::new();
    let gateway = start(&site);
    mqtt_js(&site, &gateway, "mqtt", &[]);
}

#[test]
fn mqtt_js_does_it_over_websocket() {
    let site = Site::new();
    let gateway = site.start("workers = 2\n", &[websocket::listener("[]")]);
    mqtt_js(&site, &gateway, "ws", &["/mqtt"]);
}

fn mqtt_js(site: &Site, gateway: &Gateway, listener: &str, path: &[&str]) {
    let port = gateway.address(listener).port().to_string();
    for version in ["4", "5"] {
        let mut command = Command::new("node");
        command.current_dir(site.directory()).arg(client("battery.mjs"));
        command.args([&port, "certs/ca.pem", version]).arg(installed().join("node")).args(path);
        let mut battery = Program::start(command);
        expect_within(&mut battery, "done", BATTERY);
        finish(battery);
    }
    gateway.wait_until_empty();
}

/// What rumqttc heard next of this kind.
#[track_caller]
fn next<T>(events: &mut rumqttc::Connection, mut wanted: impl FnMut(Incoming) -> Option<T>) -> T {
    loop {
        match events.recv_timeout(SOON) {
            Ok(Ok(Event::Incoming(packet))) => {
                if let Some(value) = wanted(packet) {
                    return value;
                }
            }
            Ok(Ok(Event::Outgoing(_))) => {}
            Ok(Err(error)) => panic!("{error}"),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => panic!("nothing came"),
        }
    }
}

#[test]
fn rumqttc_publishes_subscribes_and_finds_its_session_again() {
    let site = Site::new();
    let gateway = start(&site);
    // Another test of the process may have been first.
    let _ = aws_lc_rs::default_provider().install_default();
    let authority = std::fs::read(site.authority()).unwrap();
    let connect = |id: &str, clean: bool| {
        let mut options = MqttOptions::new(id, "localhost", gateway.address("mqtt").port());
        options.set_transport(Transport::tls(authority.clone(), None, None));
        options.set_clean_session(clean).set_keep_alive(Duration::from_secs(20));
        options.set_last_will(LastWill::new("rum/will", "gone", QoS::AtLeastOnce, false));
        Client::new(options, 100)
    };
    let present = |packet| match packet {
        Incoming::ConnAck(connack) => Some(connack.session_present),
        _ => None,
    };
    let message = |packet| match packet {
        Incoming::Publish(publish) => Some((publish.topic.clone(), publish.payload.clone(), publish.qos)),
        _ => None,
    };
    let (sleeper, mut events) = connect("sleeper", false);
    assert!(!next(&mut events, present));
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        sleeper.subscribe(format!("rum/{}", qos as u8), qos).unwrap();
        next(&mut events, |packet| matches!(packet, Incoming::SubAck(_)).then_some(()));
        sleeper.publish(format!("rum/{}", qos as u8), qos, false, "own").unwrap();
        let heard = next(&mut events, message);
        assert_eq!(heard, (format!("rum/{}", qos as u8), "own".into(), qos));
    }
    // Its events drive it: it goes on until nothing is in flight, since a new client knows nothing of the old one's.
    wait_until("all is acknowledged", SOON, || {
        let _ = events.recv_timeout(Duration::from_millis(50));
        gateway.device("sleeper").is_some_and(|device| device["session"]["inflight"] == 0)
    });
    sleeper.disconnect().unwrap();
    wait_until("it has left", SOON, || events.recv_timeout(SOON).is_ok_and(|event| event.is_err()));
    drop(events);
    gateway.expect_connected(0);
    let (writer, mut events) = connect("writer", true);
    for number in 0..10 {
        writer.publish("rum/2", QoS::ExactlyOnce, false, number.to_string()).unwrap();
        next(&mut events, |packet| matches!(packet, Incoming::PubComp(_)).then_some(()));
    }
    let (_sleeper, mut events) = connect("sleeper", false);
    assert!(next(&mut events, present));
    for number in 0..10 {
        assert_eq!(next(&mut events, message), ("rum/2".to_owned(), number.to_string().into(), QoS::ExactlyOnce));
    }
}

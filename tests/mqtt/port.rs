//! One port for MQTT, WebSocket and native devices, who choose by ALPN (RFC 7301): stock clients, `openssl`, and a reload.

use pulsegate::codec::native;
use pulsegate::tls::handshake::ClientTls;
use serde_json::Value;

use crate::stock::paho;
use crate::support::{Device, Gateway, Listener, Program, SOON, Site, hello, message, wait_until};

/// `mqtt` has the port, and takes whoever says nothing; `devices` (native) asks for certificates; `ws` is WebSocket.
fn listeners() -> [Listener; 3] {
    let open = "publish = [\"#\"]\nsubscribe = [\"#\"]\n";
    [
        Listener::new("mqtt", "mqtt").table("mqtt", open),
        Listener::sharing("devices", "native", "mqtt").client_auth("required").heartbeat(5_000, 1_000, 1),
        Listener::sharing("ws", "mqtt", "mqtt").key("transport", "\"websocket\"").table("mqtt", open),
    ]
}

fn start(site: &Site) -> Gateway {
    site.start("workers = 2\n", &listeners())
}

/// A metric of one listener.
fn of_listener(gateway: &Gateway, metric: &str, listener: &str) -> u64 {
    let (_, text) = gateway.get("/metrics");
    let head = format!("{metric}{{listener=\"{listener}\"");
    let values = text.lines().filter(|line| line.starts_with(&head)).filter_map(|line| line.rsplit_once(' '));
    values.map(|(_, value)| value.parse::<f64>().unwrap() as u64).sum()
}

/// A native device with a certificate, and without.
fn native_tls(site: &Site, certificate: Option<&str>) -> ClientTls {
    site.tls_with(certificate.map(|id| site.identity(id)).as_ref(), |options| options.alpn = &[native::ALPN])
}

#[test]
fn one_port_serves_mqtt_websocket_and_native_devices() {
    let site = Site::new();
    let gateway = start(&site);
    let port = gateway.address("mqtt");
    assert!(["devices", "ws"].iter().all(|name| gateway.address(name) == port));

    // A stock client says nothing and finds MQTT; one that says `mqtt` does too.
    paho(&site, &gateway, "mqtt", &[]);
    paho(&site, &gateway, "mqtt", &["", "mqtt"]);
    paho(&site, &gateway, "mqtt", &["/mqtt", "http/1.1"]);
    let (mqtt, ws) = (of_listener(&gateway, "pulsegate_listener_accepted_total", "mqtt"), ["ws", "devices"]);
    let [ws, devices] = ws.map(|name| of_listener(&gateway, "pulsegate_listener_accepted_total", name));
    assert!(ws > 0 && devices == 0 && mqtt == 3 * ws, "{mqtt} came to the port, {ws} of them to WebSocket");
    assert_eq!(of_listener(&gateway, "pulsegate_listener_closed_total", "ws"), ws);
    assert_eq!(of_listener(&gateway, "pulsegate_listener_closed_total", "mqtt"), mqtt - ws);

    // The native device finds its own listener: who must show a certificate, and when it is heard.
    let mut device = Device::connect(port, &native_tls(&site, Some("pump-17"))).unwrap();
    device.send(&[hello("pump-17"), message(1, b"here")]);
    assert_eq!(device.expect_welcome().heartbeat_ms, 5_000);
    let known = gateway.device("pump-17").unwrap();
    assert_eq!((&known["listener"], &known["protocol"]), (&"devices".into(), &"native".into()), "{known}");
    assert_eq!(of_listener(&gateway, "pulsegate_listener_devices", "devices"), 1);
    device.leave();
    let nobody = Device::connect(port, &native_tls(&site, None));
    if let Ok(mut nobody) = nobody {
        // TLS 1.3: its own side of the handshake was over before it was refused.
        nobody.hear_within(SOON);
    }
    gateway.expect_closed("certificate_rejected", 1);
    // It is counted first, and written down by another thread.
    wait_until("it is in the log", SOON, || {
        let ended = gateway.logged("connection ended");
        ended.iter().any(|line| line["reason"] == "certificate_rejected" && line["listener"] == "devices")
    });
    gateway.wait_until_empty();
}

fn s_client(site: &Site, gateway: &Gateway, arguments: &[&str]) -> Program {
    let address = gateway.address("mqtt").to_string();
    let mut all = vec!["s_client", "-connect", &address, "-CAfile", "certs/ca.pem", "-verify_return_error"];
    all.extend(["-servername", "localhost"]);
    all.extend(arguments);
    Program::openssl(site.directory(), &all)
}

#[test]
fn openssl_is_given_what_it_asks_for_and_no_other_protocol() {
    let site = Site::new();
    site.certify(&["pump-17"]);
    let gateway = start(&site);
    let certificate = ["-cert", "certs/client-pump-17.pem", "-key", "certs/client-pump-17.key"];
    for version in ["-tls1_3", "-tls1_2"] {
        for (offered, agreed) in [
            ("pulsegate/1", "ALPN protocol: pulsegate/1"),
            ("h2,http/1.1", "ALPN protocol: http/1.1"),
            // The port's own listener is preferred, then those that share it in their order.
            ("http/1.1,pulsegate/1,mqtt", "ALPN protocol: mqtt"),
            ("http/1.1,pulsegate/1", "ALPN protocol: pulsegate/1"),
        ] {
            let mut client = s_client(&site, &gateway, &[&[version, "-alpn", offered][..], &certificate].concat());
            client.expect(agreed);
            client.end_input();
            client.wait(SOON);
        }
        let mut client = s_client(&site, &gateway, &[version]);
        client.expect("No ALPN negotiated");
        client.end_input();
        client.wait(SOON);
        // RFC 7301 3.2.
        let mut client = s_client(&site, &gateway, &[version, "-alpn", "h2,acme/1"]);
        client.expect("alert no application protocol");
        assert!(!client.wait(SOON).success());
    }
    gateway.expect_closed("handshake_failed", 2);
    gateway.wait_until_empty();
}

/// Whether a session that was begun at one listener is resumed at another.
fn is_resumed(site: &Site, gateway: &Gateway, version: &str, from: &str, to: &str) -> bool {
    let run = |alpn: &str, file: &str| {
        let certificate = ["-cert", "certs/client-pump-17.pem", "-key", "certs/client-pump-17.key"];
        let arguments = [&[version, "-alpn", alpn, file, "session"][..], &certificate].concat();
        let mut client = s_client(site, gateway, &arguments);
        wait_until("the handshake is over, and the session was kept", SOON, || {
            let is_kept = file == "-sess_in" || site.path("session").metadata().is_ok_and(|file| file.len() > 0);
            is_kept && client.text().contains("Verify return code")
        });
        client.end_input();
        client.wait(SOON);
        client.text()
    };
    // Of the one before; the first has none.
    let _ = std::fs::remove_file(site.path("session"));
    assert!(run(from, "-sess_out").contains("New, TLSv1."), "{from}");
    let text = run(to, "-sess_in");
    assert!(text.contains(&format!("ALPN protocol: {to}")), "{text}");
    text.contains("Reused, TLSv1.")
}

/// The listeners of a port, and with them their rules about clients, are as apart as if each had a port of its own; also where
/// all have the same ticket keys.
#[test]
fn a_session_is_resumed_at_its_own_listener_alone() {
    let site = Site::new();
    site.certify(&["pump-17"]);
    assert!(Program::openssl(site.directory(), &["rand", "-base64", "-out", "ticket.keys", "48"]).wait(SOON).success());
    for shared_keys in [false, true] {
        let keys = if shared_keys { "ticket_keys = \"ticket.keys\"\n" } else { "" };
        let text: String = listeners()
            .iter()
            .map(|one| one.text().replace("[listener.tls]\n", &format!("[listener.tls]\n{keys}")))
            .collect();
        site.write("pulsegate.toml", &format!("workers = 2\n[admin]\nlisten = \"127.0.0.1:0\"\n{text}"));
        let gateway = Gateway::start(site.directory());
        for version in ["-tls1_3", "-tls1_2"] {
            for from in ["mqtt", "pulsegate/1", "http/1.1"] {
                for to in ["mqtt", "pulsegate/1", "http/1.1"] {
                    let resumed = is_resumed(&site, &gateway, version, from, to);
                    assert_eq!(resumed, from == to, "{version}: from {from} to {to}, shared keys: {shared_keys}");
                }
            }
        }
    }
}

#[test]
fn protocols_of_a_port_change_under_way_and_who_shares_it_needs_another_start() {
    let site = Site::new();
    let gateway = start(&site);
    let port = gateway.address("mqtt");
    let mut device = Device::welcomed(port, &native_tls(&site, Some("pump-17")), "pump-17");
    let reload = |listeners: &[Listener]| -> (u16, Value) {
        site.configure("workers = 2\n", listeners);
        gateway.post("/v1/reload", &Value::Null)
    };
    let [mqtt, devices, ws] = listeners();
    let (status, report) = reload(&[mqtt, devices.key("alpn", "[\"acme/2\"]"), ws]);
    assert_eq!(status, 200, "{report}");
    assert!(report["changed"].as_array().unwrap().contains(&"listener \"devices\": alpn".into()), "{report}");
    // Whoever is there stays; whoever comes finds the new name and no longer the old one.
    device.send(&[message(1, b"still")]);
    assert_eq!(device.hear(), crate::support::Event::Ack(1));
    let identity = site.identity("pump-18");
    let tls = site.tls_with(Some(&identity), |options| options.alpn = &[b"acme/2"]);
    let newer = Device::welcomed(port, &tls, "pump-18");
    assert!(Device::connect(port, &native_tls(&site, Some("pump-19"))).is_err());

    // What is wrong leaves all as it is, and names key and remedy.
    let [mqtt, devices, ws] = listeners();
    let (status, report) = reload(&[mqtt, devices.key("alpn", "[\"mqtt\"]"), ws]);
    assert_eq!(status, 422, "{report}");
    assert!(report.to_string().contains("alpn: \\\"mqtt\\\" is listener"), "{report}");
    // A port cannot be left under way, and its clients find a listener until it has left; also where another one is to have its name.
    device.leave();
    newer.leave();
    for (name, waits) in [("mqtt", &["devices\": shares", "devices\": alpn"][..]), ("acme/2", &["mqtt\": alpn"])] {
        let [mqtt, _, ws] = listeners();
        let own = Listener::new("devices", "native").client_auth("required").heartbeat(5_000, 1_000, 1);
        let (status, report) = reload(&[mqtt.key("alpn", &format!("[{name:?}]")), own, ws]);
        assert_eq!(status, 200, "{report}");
        let needs_restart = report["needs_restart"].as_array().unwrap();
        assert!(waits.iter().all(|key| needs_restart.contains(&format!("listener \"{key}").into())), "{report}");
        Device::welcomed(port, &tls, "pump-18").leave();
        assert!(Device::connect(port, &native_tls(&site, Some("pump-19"))).is_err());
        let mut client = s_client(&site, &gateway, &["-alpn", "mqtt"]);
        client.expect("ALPN protocol: mqtt");
        client.end_input();
        client.wait(SOON);
    }
    gateway.wait_until_empty();
}

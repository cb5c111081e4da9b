//! Ports that several listeners share.

use super::*;

/// A second listener at the port of `devices`, with these keys and tables.
fn shared(keys: &str, tables: &str) -> String {
    format!("{LISTENER}{TLS}[[listener]]\nname = \"guest\"\n{keys}{TLS}{tables}")
}

const MQTT: &str = "shares = \"devices\"\nprotocol = \"mqtt\"\n";
const THIRD: &str = "[[listener]]\nname = \"page\"\nshares = \"devices\"\nprotocol = \"mqtt\"\n";

#[test]
fn a_port_is_shared_by_whoever_has_a_protocol_of_its_own() {
    let text = shared(MQTT, &format!("{THIRD}transport = \"websocket\"\n{TLS}"));
    let Loaded { config, warnings, .. } = loaded(&text);
    assert_eq!(warnings, [] as [&str; 0]);
    let [devices, guest, page] = &*config.listeners else { panic!("{:?}", config.listeners) };
    assert!(devices.shares.is_none() && devices.listen.port() == 7443);
    for listener in [guest, page] {
        assert_eq!((listener.shares.as_deref(), listener.listen), (Some("devices"), devices.listen));
    }
    let alpn = [devices, guest, page].map(|listener| listener.alpn().concat());
    assert_eq!(alpn, [&b"pulsegate/1"[..], b"mqtt", b"http/1.1"]);
    assert_eq!(config.ports(), 1);
    // The owner may stand behind, and a name of one's own lets any protocol in.
    let raw =
        "[[listener]]\nname = \"old\"\nshares = \"devices\"\nprotocol = \"raw\"\nalpn = [\"acme/1\", \"acme/2\"]\n";
    let Loaded { config, .. } = loaded(&format!("{raw}{TLS}{LISTENER}{TLS}"));
    assert_eq!(config.listeners[0].alpn(), [b"acme/1", b"acme/2"]);
    assert_eq!(config.listeners[0].listen.port(), 7443);
    // None: whatever a client offers.
    assert!(
        loaded(&native("").replace("[listener.tls]", "alpn = []\n[listener.tls]")).config.listeners[0]
            .alpn()
            .is_empty()
    );
}

#[test]
fn who_cannot_share_is_told_why_and_what_to_do() {
    let of = |key: &str| format!(": listener[1] \"guest\": {key}: ");
    let refused = |text: &str, key: &str, parts: &[&str]| super::refused(text, &[&[&*of(key)], parts].concat());
    let name = |name: &str| MQTT.replace("devices", name);
    refused(&shared(&name("nobody"), ""), "shares", &["no listener is called \"nobody\"", "has listen: \"devices\""]);
    refused(&shared(&name("guest"), ""), "shares", &["the listener itself", "write listen"]);
    refused(
        &shared(&format!("{MQTT}listen = \"0.0.0.0:1\"\n"), ""),
        "shares",
        &["a listen beside it", "one of the two"],
    );
    refused(&shared("protocol = \"mqtt\"\n", ""), "listen", &["it is missing", "or shares"]);
    refused(&shared(&MQTT.replace("mqtt", "native"), ""), "alpn", &["\"pulsegate/1\" is listener \"devices\"'s"]);
    refused(&shared(&MQTT.replace("mqtt", "raw"), ""), "alpn", &["no client can choose", "[\"acme/1\"]"]);
    refused(&shared(&format!("{MQTT}alpn = []\n"), ""), "alpn", &["no client can choose"]);
    refused(
        &shared(&format!("{MQTT}proxy_protocol = [\"10.0.0.0/8\"]\n"), ""),
        "proxy_protocol",
        &["before the client has chosen", "at listener \"devices\""],
    );
    refused(
        &shared(
            &format!("{MQTT}transport = \"websocket\"\n"),
            "[listener.websocket]\nforwarded_from = [\"10.0.0.0/8\"]\n",
        ),
        "shares",
        &["forwarded_from", "a listen of its own"],
    );
    for (alpn, part) in [
        ("[\"\"]", "has 0 bytes"),
        ("[\"h2\"]", "HTTP/2 is not spoken"),
        ("[\"a\", \"b\", \"a\"]", "\"a\" is there twice"),
        ("[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\"]", "there are 9: write at most 8"),
    ] {
        refused(&shared(&format!("{MQTT}alpn = {alpn}\n"), ""), "alpn", &[part]);
    }
    refused(&shared(&format!("{MQTT}alpn = [\"{}\"]\n", "x".repeat(256)), ""), "alpn", &["has 256 bytes"]);
    // Without TLS there is no protocol to choose by, and no listener.
    super::refused(&format!("{LISTENER}{TLS}[[listener]]\nname = \"guest\"\n{MQTT}"), &[&of("tls"), "it is missing"]);

    let of_page = [": listener[2] \"page\": "];
    let parts = ["alpn: ", "\"mqtt\" is listener \"guest\"'s"];
    super::refused(&shared(MQTT, &format!("{THIRD}{TLS}")), &[&of_page[..], &parts].concat());
    let parts = ["shares: ", "has no port of its own", "write shares = \"devices\""];
    super::refused(
        &shared(MQTT, &format!("{}{TLS}", THIRD.replace("devices", "guest"))),
        &[&of_page[..], &parts].concat(),
    );
}

/// Who was to be shared with has a fault of its own: that alone is told.
#[test]
fn a_fault_of_the_other_listener_is_told_once() {
    let directory = Directory::new();
    let file = directory.path("pulsegate.toml");
    fs::write(&file, shared(MQTT, "").replacen("\"native\"", "\"nonsense\"", 1)).unwrap();
    let problems = load_all(&file, &machine()).expect_err("a protocol that there is not");
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].to_string().contains("listener[0] \"devices\": protocol"), "{problems:?}");
}

#[test]
fn a_port_that_is_taken_says_how_it_is_shared() {
    let text = format!("{LISTENER}{TLS}{}{TLS}", RAW.replace("7444", "7443"));
    refused(&text, &["0.0.0.0:7443 is taken by listener \"devices\"", "shares = \"devices\""]);
}

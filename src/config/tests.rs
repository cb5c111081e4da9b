//! Every error names file, line, key and remedy; the reference in docs/OPERATING.md is what the defaults are.

mod authenticator;
mod fleet;
mod port;
mod sinks;
mod store;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::machine::{Machine, Memory, MemorySource};
use super::*;

/// A machine that has enough of everything.
fn machine() -> Machine {
    Machine {
        hostname: "edge-1".to_owned(),
        cores: 4,
        memory: Memory { bytes: 64 << 30, source: MemorySource::Machine },
        descriptors: 1 << 20,
        outgoing_ports: Some(32768..=60999),
    }
}

/// A directory with files of every name that the tests mention.
struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        let directory = Self(tempfile::tempdir().unwrap());
        for name in ["server.pem", "server.key", "ca.pem", "other.pem", "other.key"] {
            fs::write(directory.path(name), "looked for, not into").unwrap();
        }
        fs::write(directory.path("admin.token"), "0123456789abcdef0123456789abcdef\n").unwrap();
        fs::write(directory.path("short.token"), "short-one\n").unwrap();
        fs::write(directory.path("other.token"), "abcdef0123456789abcdef0123456789\n").unwrap();
        fs::write(directory.path("empty.token"), " \n").unwrap();
        fs::write(directory.path("two.token"), "first second\n").unwrap();
        fs::write(directory.path("devices.tokens"), "# ours\nmeter-1:$argon2id$v=19$m=8,t=1,p=1$c2FsdA$aGFzaA\n")
            .unwrap();
        fs::write(directory.path("nobody.tokens"), "# nobody yet\n\n").unwrap();
        directory
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn load_on(&self, text: &str, machine: &Machine) -> Result<Loaded, ConfigError> {
        let file = self.path("pulsegate.toml");
        fs::write(&file, text).unwrap();
        load(&file, machine)
    }

    fn load(&self, text: &str) -> Result<Loaded, ConfigError> {
        self.load_on(text, &machine())
    }
}

const LISTENER: &str = "[[listener]]\nname = \"devices\"\nlisten = \"0.0.0.0:7443\"\nprotocol = \"native\"\n";
const TLS: &str = "[listener.tls]\ncert = \"server.pem\"\nkey = \"server.key\"\n";
const RAW: &str = "[[listener]]\nname = \"legacy\"\nlisten = \"0.0.0.0:7444\"\nprotocol = \"raw\"\n";

/// An MQTT listener with `options` as its tail.
fn third(options: &str) -> String {
    let listener = RAW.replace("legacy", "mqtt").replace("7444", "8883").replace("raw", "mqtt");
    format!("{listener}{TLS}{options}")
}

/// A native listener without options, and a raw one with `options` as its tail.
fn second(options: &str) -> String {
    format!("{LISTENER}{TLS}{RAW}{TLS}{options}")
}

fn native(options: &str) -> String {
    format!("{LISTENER}{TLS}{options}")
}

#[track_caller]
fn refused(text: &str, parts: &[&str]) {
    refused_on(&machine(), text, parts);
}

/// The error must be one line that begins with the file and holds every part.
#[track_caller]
fn refused_on(machine: &Machine, text: &str, parts: &[&str]) {
    let directory = Directory::new();
    let error = directory.load_on(text, machine).expect_err("it was accepted").to_string();
    let file = directory.path("pulsegate.toml").display().to_string();
    let rest = error.strip_prefix(&file).unwrap_or_else(|| panic!("no file: {error}"));
    assert!(!rest.contains('\n'), "more than a line: {error}");
    for part in parts {
        assert!(rest.contains(part), "no {part:?} in {error:?}");
    }
}

#[track_caller]
fn loaded(text: &str) -> Loaded {
    match Directory::new().load(text) {
        Ok(loaded) => loaded,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_least_file_gets_every_default() {
    let Loaded { config, warnings, .. } = loaded(&native(""));
    assert_eq!((config.node.as_str(), config.workers), ("edge-1", 4));
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.admin.listen, "127.0.0.1:7480".parse::<SocketAddr>().unwrap());
    assert_eq!(config.admin.tokens, []);
    assert!(config.data_dir.ends_with("pulsegate-data") && config.data_dir.is_absolute());
    let [listener] = &*config.listeners else { panic!("{:?}", config.listeners) };
    assert_eq!(listener.protocol, Protocol::Native);
    assert_eq!(listener.tls.client_auth, ClientAuth::Off);
    assert_eq!(listener.heartbeat, Heartbeat::default());
    assert_eq!(listener.identity.from, IdentityFrom::Hello);
    assert_eq!(warnings, [] as [&str; 0]);
}

/// The form that was promised to operators, with the sections that belong to the other protocol.
#[test]
fn the_documented_form_is_taken_whole() {
    let text = format!(
        "data_dir = \"pulsegate-data\"\nworkers = 0\n[admin]\nlisten = \"127.0.0.1:7480\"\n\
         [limits]\nconnections = 200000\n\
         {LISTENER}{TLS}client_ca = \"ca.pem\"\nclient_auth = \"off\"\n\
         [listener.heartbeat]\ninterval = \"60s\"\ntimeout = \"10s\"\nretries = 2\n\
         [listener.identity]\nfrom = \"hello\"\n\
         [listener.raw]\nheartbeat = \"heartbeat\"\nreply = \"\"\nprobe = \"\"\n"
    );
    let Loaded { config, warnings, .. } = loaded(&text);
    assert_eq!(config.listeners[0].heartbeat.bound(), Duration::from_secs(90));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("listener[0] \"devices\": raw: "), "{warnings:?}");
}

#[test]
fn paths_are_relative_to_the_file() {
    let directory = Directory::new();
    let text = native(
        "certificates = [{ cert = \"other.pem\", key = \"other.key\" }]\n\
         [listener.identity]\ntoken_file = \"devices.tokens\"\n",
    );
    let config = directory.load(&text).unwrap().config;
    let tls = &config.listeners[0].tls;
    let files = |cert, key| CertificateFiles { cert: directory.path(cert), key: directory.path(key), ocsp: None };
    assert_eq!(tls.certificates, [files("server.pem", "server.key"), files("other.pem", "other.key")]);
    assert_eq!(config.listeners[0].identity.secrets().unwrap().file, directory.path("devices.tokens"));
    assert_eq!(config.data_dir, directory.path("pulsegate-data"));
}

#[test]
fn a_raw_listener_has_its_own_defaults_and_options() {
    let config = loaded(&second("")).config;
    let legacy = &config.listeners[1];
    let raw = Raw { heartbeat: b"heartbeat".to_vec(), ..Raw::default() };
    assert_eq!(legacy.protocol, Protocol::Raw(raw));
    assert_eq!(legacy.identity.from, IdentityFrom::CertCn);

    let options = "[listener.raw]\nheartbeat = [0xC0, 0x00]\nreply = \"pong\"\nprobe = \"\"\n";
    let config = loaded(&second(options)).config;
    let raw = Raw { heartbeat: vec![0xC0, 0], reply: b"pong".to_vec(), probe: Vec::new() };
    assert_eq!(config.listeners[1].protocol, Protocol::Raw(raw));
}

#[test]
fn a_missing_file_is_named() {
    let error = load(Path::new("/nowhere/pulsegate.toml"), &machine()).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere/pulsegate.toml: ") && error.contains("cannot be read"), "{error}");
    let error = load(Path::new("/dev/zero"), &machine()).unwrap_err().to_string();
    assert!(error.starts_with("/dev/zero: ") && error.contains("it is a pipe or a device"), "{error}");
}

#[test]
fn what_is_not_toml_has_a_line() {
    refused("workers = 1\nnode = \n", &[":2: "]);
    refused("workers = 1\nworkers = 2\n", &[":2: ", "duplicate key"]);
}

#[test]
fn unknown_keys_are_named_beside_those_that_exist() {
    refused("worker = 1\n", &[":1: ", "unknown field `worker`", "`workers`"]);
    refused("[limits]\nconections = 5\n", &[":2: ", "limits.conections", "unknown field", "`connections`"]);
    let text = second("[listener.heartbeat]\nintervall = \"5s\"\n");
    refused(&text, &["listener[1].heartbeat.intervall: ", "unknown field", "`interval`"]);
}

#[test]
fn wrong_types_are_named() {
    refused("[limits]\n\nconnections = \"many\"\n", &[":3: limits.connections: ", "invalid type", "many"]);
    refused(&second("[listener.raw]\nprobe = 7\n"), &["listener[1].raw.probe: ", "an array of bytes"]);
    refused(&second("[listener.raw]\nprobe = [256]\n"), &["listener[1].raw.probe", "256"]);
}

#[test]
fn durations_have_units_and_ranges() {
    let heartbeat = |line: &str| second(&format!("[listener.heartbeat]\n{line}\n"));
    refused(
        &heartbeat("interval = \"5x\""),
        &[":16: listener[1] \"legacy\": heartbeat.interval: \"5x\" is not a duration: write ", "\"60s\""],
    );
    refused(&heartbeat("interval = \"60\""), &["heartbeat.interval: \"60\" is not a duration"]);
    refused(
        &heartbeat("interval = \"50ms\""),
        &["heartbeat.interval: \"50ms\" is out of range: write \"100ms\" to \"1h\""],
    );
    refused(&heartbeat("interval = \"61m\""), &["heartbeat.interval: \"61m\" is out of range"]);
    refused(&heartbeat("timeout = \"2h\""), &["heartbeat.timeout: \"2h\" is out of range"]);
    refused(&heartbeat("retries = 16"), &["heartbeat.retries: 16 is out of range: write 0 to 15"]);
    let config = loaded(&heartbeat("interval = \"1m30s\"\ntimeout = \"100ms\"\nretries = 0")).config;
    let expected = Heartbeat {
        interval: Duration::from_secs(90),
        timeout: Duration::from_millis(100),
        retries: 0,
        ..Heartbeat::default()
    };
    assert_eq!(config.listeners[1].heartbeat, expected);
}

#[test]
fn every_limit_has_a_range() {
    let below = [
        ("connections", "0"),
        ("connections", "-5"),
        ("handshakes", "0"),
        ("handshake_time", "\"1ms\""),
        ("hello_time", "\"10m\""),
        ("read_bytes", "100"),
        ("frame_bytes", "65536"),
        ("outbox_bytes", "12"),
        ("inbox_length", "0"),
        ("uplink_length", "5000000"),
        ("connections_per_address", "-1"),
        ("shed_lateness", "\"0s\""),
        ("linger_time", "\"1h\""),
        ("packet_bytes", "1023"),
        ("packet_bytes", "16777217"),
        ("connect_bytes", "1023"),
        ("sessions", "-1"),
        ("session_inflight", "0"),
        ("session_inflight", "65536"),
        ("session_messages", "-1"),
        ("session_bytes", "-1"),
        ("session_subscriptions", "0"),
        ("topic_levels", "0"),
        ("retained_messages", "-1"),
        ("retained_bytes", "-1"),
        ("pool_bytes", "1000"),
    ];
    for (key, value) in below {
        let text = format!("[limits]\n{key} = {value}\n{}", native(""));
        refused(&text, &[&format!(":2: limits.{key}: "), " is out of range: write "]);
    }
    let text = format!("[limits]\nframe_bytes = 65535\noutbox_bytes = 65535\n{}", native(""));
    refused(&text, &[":3: limits.outbox_bytes: ", "limits.frame_bytes", "at least 66047"]);
}

#[test]
fn addresses_and_networks_have_bounds_that_an_older_key_may_set() {
    let admission = |text: &str| loaded(&format!("{text}{}", native(""))).config.admission;
    let usual = admission("");
    assert_eq!(usual, Admission::for_connections(200_000));
    assert!(
        admission("[limits]\nconnections = 500000\n").network.connections >= 500_000,
        "the whole fleet may come once"
    );
    let bounds = |connections, per_second, burst| ConnectionBounds { connections, per_second, burst };
    assert_eq!(admission("[admission.address]\nper_second = 7\n").address, bounds(65_536, 7, 7));
    assert_eq!(admission("[admission.address]\nper_second = 7\nburst = 70\n").address, bounds(65_536, 7, 70));
    assert_eq!(admission("[admission.network]\nconnections = 0\n").network, bounds(0, 4_000, 262_144));
    assert_eq!(admission("[limits]\nconnections_per_address = 5\n").address, bounds(65_536, 5, 5));
    assert_eq!(admission("[limits]\nconnections_per_address = 0\n").address.per_second, 0);
    assert_eq!(admission("[admission]\nallow = [\"10.0.0.0/8\", \"::1\"]\n").allow.len(), 2);
    let everybody = loaded(&format!("[admission]\nallow = [\"0.0.0.0/0\"]\n{}", native(""))).warnings;
    assert!(everybody[0].contains("admission.allow: every address"), "{everybody:?}");
    for (text, words) in [
        (
            "[admission]\nallow = [\"10.0.0.1/8\"]\n",
            ":2: admission.allow: \"10.0.0.1/8\" is no network: write an address",
        ),
        ("[admission.address]\nburst = 0\n", ":2: admission.address.burst: 0 is out of range: write 1 to "),
        ("[admission.network]\nper_second = -1\n", ":2: admission.network.per_second: -1 is out of range"),
        (
            "[limits]\nconnections_per_address = 5\n[admission.address]\nper_second = 5\n",
            ":2: limits.connections_per_address: admission.address.per_second says the same: remove it",
        ),
    ] {
        refused(&format!("{text}{}", native("")), &[words]);
    }
}

#[test]
fn workers_are_bounded_and_zero_means_cores() {
    refused(&format!("workers = 65\n{}", native("")), &[":1: workers: 65 is out of range: write 0 to 64"]);
    assert_eq!(loaded(&format!("workers = 64\n{}", native(""))).config.workers, 64);
    let many_cores = Machine { cores: 256, ..machine() };
    assert_eq!(Directory::new().load_on(&native(""), &many_cores).unwrap().config.workers, MAX_WORKERS);
}

#[test]
fn the_node_is_a_name() {
    refused(&format!("node = \"a b\"\n{}", native("")), &[":1: node: \"a b\" is not a name: write 1 to 64 letters"]);
    assert_eq!(loaded(&format!("node = \"eu-1.edge_7\"\n{}", native(""))).config.node, "eu-1.edge_7");
}

#[test]
fn a_gateway_needs_listeners_with_all_they_need() {
    refused("workers = 1\n", &["listener: there is none: add a [[listener]]"]);
    refused("[[listener]]\nlisten = \"0.0.0.0:1\"\n", &[":1: listener[0]: name: it is missing"]);
    refused("[[listener]]\nname = \"a\"\n", &[":1: listener[0] \"a\": listen: it is missing"]);
    refused("[[listener]]\nname = \"a\"\nlisten = \"0.0.0.0:7443\"\n", &["protocol: it is missing: write \"native\""]);
    refused("[[listener]]\nname = \"a b\"\n", &[":2: listener[0] \"a b\": name: \"a b\" is not a name"]);
    refused(&LISTENER.replace("0.0.0.0:7443", ":7443"), &["listen: \":7443\" is not an address: write an IP address"]);
    refused(LISTENER, &[":1: listener[0] \"devices\": tls: it is missing", "pulsegate dev-certs"]);
    let many = (0..65).map(|n| LISTENER.replace("devices", &format!("n{n}"))).collect::<String>();
    refused(&many, &["listener: there are 65: write at most 64"]);
}

#[test]
fn protocols_are_told_apart_from_transports_and_from_what_is_unknown() {
    let text = LISTENER.replace("native", "websocket");
    refused(&text, &[":4: ", "protocol: \"websocket\" is a transport", "write protocol = \"mqtt\" and transport ="]);
    refused(&LISTENER.replace("native", "telnet"), &["protocol: \"telnet\" is not known: write \"native\", \"raw\""]);
}

#[test]
fn a_websocket_has_a_path_and_origins_and_carries_what_has_packets_of_its_own() {
    let over = |tables: &str| third("").replace("protocol =", "transport = \"websocket\"\nprotocol =") + tables;
    let transport = |text: &str| loaded(text).config.listeners[0].transport.clone();
    assert_eq!(transport(&third("")), Transport::Tls);
    assert_eq!(transport(&over("")), Transport::WebSocket(WebSocket::default()));
    let written =
        over("[listener.websocket]\npath = \"/fleet\"\norigins = [\"https://fleet.example:8443\", \"null\"]\n");
    let origins = vec!["https://fleet.example:8443".to_owned(), "null".to_owned()];
    assert_eq!(
        transport(&written),
        Transport::WebSocket(WebSocket { path: "/fleet".to_owned(), origins, ..WebSocket::default() })
    );
    let written = over("[listener.websocket]\nforwarded_from = [\"10.0.0.0/8\", \"::1\"]\n");
    let Transport::WebSocket(websocket) = transport(&written) else { panic!("it is one") };
    assert_eq!(websocket.forwarded_from, ["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()]);
    let wrong = over("[listener.websocket]\nforwarded_from = [\"10.0.0.1/8\"]\n");
    refused(&wrong, &["websocket.forwarded_from: \"10.0.0.1/8\" is no network: write an address, or one with"]);
    let both = written.replace("protocol =", "proxy_protocol = [\"10.0.0.0/8\"]\nprotocol =");
    refused(&both, &["websocket.forwarded_from: proxy_protocol says already", "write one of the two"]);
    refused(&over("[listener.websocket]\npath = \"fleet\"\n"), &["websocket.path: \"fleet\" is no path: write a path"]);
    for origin in ["fleet.example", "https://", "https://fleet.example/", "https://*.example", "*"] {
        let text = over(&format!("[listener.websocket]\norigins = [{origin:?}]\n"));
        refused(&text, &["websocket.origins: ", "is no origin: write scheme, host and port"]);
    }
    let raw = format!("{}{TLS}", RAW.replace("protocol =", "transport = \"websocket\"\nprotocol ="));
    refused(
        &raw,
        &["transport: raw devices are known by their TLS records", "write protocol = \"mqtt\" or \"native\""],
    );
    refused(
        &third("").replace("protocol =", "transport = \"quic\"\nprotocol ="),
        &["transport: \"quic\" is not known"],
    );
}

#[test]
fn proxies_are_networks() {
    let behind = |networks: &str| native("").replace("protocol =", &format!("proxy_protocol = {networks}\nprotocol ="));
    let Loaded { config, warnings, .. } = loaded(&behind("[\"10.0.0.0/8\", \"::1\"]"));
    let written: Vec<String> = config.listeners[0].proxy_protocol.iter().map(ToString::to_string).collect();
    assert_eq!((written, warnings.len()), (vec!["10.0.0.0/8".to_owned(), "::1/128".to_owned()], 0));
    refused(
        &behind("[\"10.0.0.1/8\"]"),
        &["proxy_protocol: \"10.0.0.1/8\" is no network: write an address, or one with"],
    );
    assert!(loaded(&behind("[\"0.0.0.0/0\"]")).warnings[0].contains("everybody may say"));
}

#[test]
fn names_and_addresses_are_unique() {
    let twice = |second: String| format!("{}{second}", native(""));
    let namesake = native("").replace("7443", "7444");
    refused(&twice(namesake), &[":9: listener[1] \"devices\": name: another listener has this name"]);
    let neighbour = native("").replace("devices", "more");
    refused(&twice(neighbour.clone()), &[":10: listener[1] \"more\": listen: 0.0.0.0:7443 is taken by listener"]);
    refused(&twice(neighbour.replace("0.0.0.0", "127.0.0.1")), &["listen: 127.0.0.1:7443 is taken by"]);
    refused(&native("").replace("0.0.0.0:7443", "127.0.0.1:7480"), &["listen: ", "is taken by admin.listen"]);
    let any_port = |name: &str| native("").replace("7443", "0").replace("devices", name);
    assert_eq!(loaded(&format!("{}{}", any_port("a"), any_port("b"))).config.listeners.len(), 2);
}

#[test]
fn certificates_are_looked_for() {
    refused(
        &format!("{LISTENER}[listener.tls]\nkey = \"server.key\"\n"),
        &[":5: ", "tls.cert: it is missing: name the PEM"],
    );
    refused(&format!("{LISTENER}[listener.tls]\ncert = \"server.pem\"\n"), &["tls.key: it is missing: name the PEM"]);
    refused(&native("").replace("server.pem", "none.pem"), &[":6: ", "tls.cert: ", "none.pem cannot be read"]);
    refused(&native("").replace("server.key", "."), &[":7: ", "tls.key: ", " is a directory: name a file"]);
    let device = native("").replace("server.pem", "/dev/zero");
    refused(&device, &[":6: ", "tls.cert: ", "/dev/zero cannot be read: it is a pipe or a device", "name a file"]);
    refused(&native("").replace("server.key", ""), &["tls.key: the path is empty: write a path"]);
    let further = native("certificates = [{ cert = \"other.pem\", key = \"none.key\" }]\n");
    refused(&further, &[":8: ", "tls.certificates[0].key: ", "none.key cannot be read"]);
    refused(&native("certificates = [{ cert = \"other.pem\" }]\n"), &["tls.certificates[0].key: it is missing"]);
}

#[test]
fn client_certificates_need_authorities() {
    refused(
        &native("client_auth = \"optional\"\n"),
        &[":5: ", "tls.client_ca: it is missing", "tls.client_auth = \"off\""],
    );
    refused(&native("client_auth = \"on\"\n"), &[":8: ", "tls.client_auth: \"on\" is not known: write one of \"off\""]);
    let missing = native("client_auth = \"required\"\nclient_ca = \"none.pem\"\n");
    refused(&missing, &[":9: ", "tls.client_ca: ", "none.pem cannot be read"]);
    let Loaded { config, notes, .. } = loaded(&native("client_ca = \"ca.pem\"\n"));
    assert_eq!(config.listeners[0].tls.client_ca, None);
    assert!(notes.iter().any(|note| note.contains("tls.client_ca: it is not used")), "{notes:?}");
}

#[test]
fn identity_rules_fit_the_protocol_and_the_certificates() {
    let rule = |from: &str| format!("[listener.identity]\nfrom = \"{from}\"\n");
    refused(&native(&rule("name")), &[":9: ", "identity.from: \"name\" is not known: write one of \"hello\""]);
    refused(&native(&rule("cert-cn")), &["identity.from: \"cert-cn\" needs client certificates", "\"required\""]);
    refused(
        &second(&rule("hello")),
        &["listener[1] \"legacy\": identity.from: a raw device sends no HELLO", "\"cert-cn\""],
    );
    for client_auth in ["optional", "required"] {
        let tls = format!("client_auth = \"{client_auth}\"\nclient_ca = \"ca.pem\"\n{}", rule("cert-san-uri"));
        let listener = loaded(&native(&tls)).config.listeners.remove(0);
        assert_eq!(listener.identity.from, IdentityFrom::CertSanUri);
        assert!(listener.tls.client_ca.is_some_and(|path| path.ends_with("ca.pem")));
    }
    let Loaded { warnings, .. } = loaded(&second(&rule("cert-san-dns")));
    assert!(warnings[0].contains("identity.from: tls.client_auth is off"), "{warnings:?}");
    assert!(loaded(&second("")).warnings.is_empty());
}

#[test]
fn token_files_name_devices() {
    let tokens = |file: &str| format!("[listener.identity]\ntoken_file = \"{file}\"\n");
    refused(&native(&tokens("none")), &[":9: ", "identity.token_file: ", "none cannot be read"]);
    refused(&native(&tokens("nobody.tokens")), &["identity.token_file: nobody.tokens names nobody", "hash-token"]);
    refused(
        &second(&tokens("devices.tokens")),
        &["listener[1] \"legacy\": identity.token_file: a raw device sends no token"],
    );
}

#[test]
fn mqtt_rules_are_filters_and_identities_fit_the_protocol() {
    let mqtt = |keys: &str| third(&format!("[listener.mqtt]\n{keys}\n"));
    let identity = |keys: &str| third(&format!("[listener.identity]\n{keys}\n"));
    let written =
        mqtt("publish = [\"up/{device}\"]\nsubscribe = []\nkeep_alive_max = \"5m\"\nsession_expiry_max = \"0s\"");
    let Protocol::Mqtt(read) = loaded(&written).config.listeners.remove(0).protocol else { panic!("not MQTT") };
    assert_eq!(read.publish, ["up/{device}"]);
    assert!(read.subscribe.is_empty() && read.session_expiry_max.is_zero());
    assert_eq!(read.keep_alive_max, Some(Duration::from_mins(5)));
    assert_eq!(read.uplink, ["#"]);
    refused(&mqtt("publish = [\"a/#/b\"]"), &[":9: ", "mqtt.publish: \"a/#/b\" is not a topic filter"]);
    refused(&mqtt("subscribe = [\"$share/g/a\"]"), &["mqtt.subscribe: ", "is not a topic filter"]);
    refused(&mqtt("subscribe = [\"{who}/a\"]"), &["has a placeholder that is not known: write {device}"]);
    refused(&mqtt("uplink = [\"{device}/a\"]"), &["mqtt.uplink: ", "placeholder"]);
    refused(&mqtt("keep_alive_max = \"1500ms\""), &["mqtt.keep_alive_max: MQTT counts it in whole seconds"]);
    refused(&mqtt("keep_alive_max = \"19h\""), &["mqtt.keep_alive_max: \"19h\" is out of range"]);
    refused(&mqtt("session_expiry_max = \"1096d\""), &["mqtt.session_expiry_max: \"1096d\" is out of range"]);
    refused(&identity("from = \"hello\""), &["an MQTT device sends CONNECT, not HELLO"]);
    refused(&identity("from = \"username\""), &["a user name that nobody checks names nobody"]);
    refused(&identity("from = \"cert-cn\""), &["needs client certificates", "\"client-id\""]);
    refused(&identity("token_file = \"devices.tokens\""), &["write identity.password_file"]);
    refused(&native("[listener.identity]\nfrom = \"client-id\"\n"), &["is for listeners with protocol = \"mqtt\""]);
    refused(&native("[listener.identity]\npassword_file = \"devices.tokens\"\n"), &["write identity.token_file"]);
    let named = identity("from = \"username\"\npassword_file = \"devices.tokens\"");
    assert_eq!(loaded(&named).config.listeners[0].identity.from, IdentityFrom::Username);
    let Loaded { warnings, .. } = loaded(&third("[listener.heartbeat]\nretries = 1\n"));
    assert!(warnings[0].contains("listener[0] \"mqtt\": heartbeat: it has no effect here"), "{warnings:?}");
    let Loaded { notes, .. } = loaded(&mqtt("publish = [\"#\"]"));
    assert!(notes.iter().any(|note| note.contains("any device may publish anywhere")), "{notes:?}");
}

#[test]
fn raw_options_are_bounded_and_make_sense() {
    let long = "x".repeat(1025);
    refused(
        &second(&format!("[listener.raw]\nprobe = \"{long}\"\n")),
        &[":16: ", "raw.probe: it is 1025 bytes long: write at most 1024"],
    );
    refused(&second("[listener.raw]\nheartbeat = \"\"\nreply = \"ok\"\n"), &["raw.reply: there is no raw.heartbeat"]);
}

#[test]
fn an_admin_listener_that_others_reach_needs_a_token() {
    let admin = |lines: &str| format!("[admin]\n{lines}\n{}", native(""));
    refused(
        &admin("listen = \"0.0.0.0:7480\""),
        &[":2: admin.listen: 0.0.0.0:7480 can be reached", "admin.token_file"],
    );
    refused(&admin("token_file = \"none\""), &[":2: admin.token_file: ", "none cannot be read"]);
    refused(&admin("token_file = \"empty.token\""), &["admin.token_file: empty.token is empty", "openssl rand"]);
    refused(&admin("token_file = \"two.token\""), &["admin.token_file: two.token holds more than one word"]);
    refused(&admin("listen = \"localhost:7480\""), &["admin.listen: \"localhost:7480\" is not an address"]);
    for host in ["", "http://gate.example", "gate.example:80", "gäte"] {
        refused(&admin(&format!("hosts = [{host:?}]")), &[":2: admin.hosts: ", "is not the name of a host"]);
    }
    let loaded_hosts = loaded(&admin("hosts = [\"gate.example\", \"pulsegate\"]")).config.admin.hosts;
    assert_eq!(loaded_hosts, ["gate.example", "pulsegate"]);
    let Loaded { config, warnings, .. } = loaded(&admin("listen = \"[::]:7480\"\ntoken_file = \"admin.token\""));
    let [token] = &config.admin.tokens[..] else { panic!("{:?}", config.admin.tokens) };
    assert_eq!(
        (&*token.name, token.role, token.secret.reveal()),
        ("admin", Role::Admin, "0123456789abcdef0123456789abcdef")
    );
    assert!(warnings.is_empty());
    let Loaded { warnings, .. } = loaded(&admin("token_file = \"short.token\""));
    assert!(warnings[0].contains("admin.token_file: the token is shorter"), "{warnings:?}");
    refused(
        &admin("listen = \"[::]:7480\"\ntoken_file = \"short.token\""),
        &["admin.token_file: the token is shorter"],
    );
}

#[test]
fn tokens_of_the_api_have_names_and_roles() {
    let tokens = |lines: &str| format!("[admin]\nlisten = \"[::]:7480\"\n{lines}{}", native(""));
    let token = |name: &str, role: &str, file: &str| {
        format!("[[admin.token]]\nname = {name:?}\nrole = {role:?}\nfile = {file:?}\n")
    };
    let prometheus = token("prometheus", "read", "admin.token");
    let Loaded { config, .. } = loaded(&tokens(&format!("{prometheus}{}", token("shift", "command", "other.token"))));
    let shown: Vec<_> = config.admin.tokens.iter().map(|token| (&*token.name, token.role)).collect();
    assert_eq!(shown, [("prometheus", Role::Read), ("shift", Role::Command)]);
    assert!(!format!("{config:?}").contains("0123456789abcdef"), "no secret is printed");

    refused(&tokens(&token("a b", "read", "admin.token")), &["admin.token[0].name: \"a b\" is not a name"]);
    refused(&tokens(&token("a", "write", "admin.token")), &["admin.token[0].role: ", "\"command\""]);
    refused(&tokens(&token("a", "read", "none")), &["admin.token[0].file: ", "none cannot be read"]);
    refused(&tokens("[[admin.token]]\nname = \"a\"\nrole = \"read\"\n"), &["admin.token[0].file: it is missing"]);
    let twice = format!("{prometheus}{}", token("prometheus", "read", "other.token"));
    refused(&tokens(&twice), &["admin.token[1].name: ", "is the name of another token"]);
    let same = format!("{prometheus}{}", token("b", "admin", "admin.token"));
    refused(&tokens(&same), &["admin.token[1].file: the file holds the secret of another token"]);
}

#[test]
fn memory_that_is_not_there_is_an_error_where_it_was_asked_for() {
    let small = Machine { memory: Memory { bytes: 512 << 20, source: MemorySource::ControlGroup }, ..machine() };
    let text = format!("[limits]\nconnections = 150000\n{}", native(""));
    refused_on(&small, &text, &[":2: limits.connections: 150000 connections need ", "write at most "]);

    let Loaded { config, warnings, budget, .. } = Directory::new().load_on(&native(""), &small).unwrap();
    assert!(config.limits.connections < 200_000 && config.limits.connections > 50_000);
    assert!(!budget.is_exceeded());
    assert!(warnings.iter().any(|warning| warning.contains("the default of 200000 would need")), "{warnings:?}");

    let tiny = Machine { memory: Memory { bytes: 32 << 20, source: MemorySource::Machine }, ..machine() };
    refused_on(&tiny, &native(""), &["limits.connections: even without connections", "lower workers"]);
}

#[test]
fn sessions_and_retained_messages_are_part_of_the_budget_where_mqtt_is_spoken() {
    let items = |text: &str| loaded(text).budget.items.iter().map(|item| item.what).collect::<Vec<_>>();
    let kept = ["sessions", "away sessions", "retained", "retained index"];
    assert!(kept.iter().all(|what| !items(&native("")).contains(what)));
    assert!(kept.iter().all(|what| items(&third("")).contains(what)));

    let with = |mebibytes: u64| Machine {
        memory: Memory { bytes: mebibytes << 20, source: MemorySource::ControlGroup },
        cores: 1,
        ..machine()
    };
    // The defaults follow the memory that there is; what was written does not.
    let Loaded { config, .. } = Directory::new().load_on(&third(""), &with(256)).unwrap();
    let limits = config.limits;
    assert_eq!((limits.sessions, limits.retained_messages, limits.retained_bytes), (25_000, 25_000, 16 << 20));
    assert_eq!(limits.uplink_length, 16_384);
    assert!(built_in(&with(128)).unwrap().config.limits.connections > 1_000);
    let text = format!("[limits]\nretained_bytes = 1000000000\n{}", third(""));
    refused_on(&with(256), &text, &["even without connections", "limits.retained_bytes"]);
}

#[test]
fn options_of_another_protocol_are_pointed_out() {
    for (text, key, protocol) in [
        (native("[listener.mqtt]\npublish = []\n"), "mqtt", "mqtt"),
        (native("[listener.raw]\nprobe = \"\"\n"), "raw", "raw"),
        (third("[listener.raw]\nprobe = \"\"\n"), "raw", "raw"),
    ] {
        let Loaded { warnings, .. } = loaded(&text);
        let [warning] = &*warnings else { panic!("{warnings:?}") };
        let part = format!("{key}: it is for listeners with protocol = {protocol:?} and has no effect here");
        assert!(warning.ends_with(&part), "{warning}");
    }
}

#[test]
fn descriptors_that_are_not_there_lower_the_limit_aloud() {
    let few = Machine { descriptors: 20_000, ..machine() };
    let text = format!("[limits]\nconnections = 100000\n{}", native(""));
    let Loaded { config, warnings, budget, .. } = Directory::new().load_on(&text, &few).unwrap();
    let held = budget::connections_by_descriptors(4, 1, 20_000);
    assert_eq!(config.limits.connections, held);
    assert_eq!(budget.kernel.count, u64::from(held));
    assert!(warnings[0].contains("100000 is more than 4 worker(s) with 20000 descriptors"), "{warnings:?}");
    assert!(
        warnings[0].contains(&format!("in effect is {held}")) && warnings[0].contains("workers = 6"),
        "{warnings:?}"
    );
    let enough = format!("workers = 6\n{text}");
    assert!(Directory::new().load_on(&enough, &few).unwrap().warnings.is_empty());

    let none = Machine { descriptors: 64, ..machine() };
    refused_on(&none, &text, &[":2: limits.connections: a worker may open only 64 descriptors", "LimitNOFILE"]);
}

#[test]
fn rates_are_off_unless_they_are_written() {
    let rates = |text: &str| loaded(&native(text)).config.listeners[0].rates;
    let usual = rates("");
    assert_eq!((usual, usual.messages_per_second, usual.bytes_per_second), (Rates::default(), 0, 0));
    let written = rates("[listener.rates]\nmessages_per_second = 5\npatience = \"0s\"\n");
    assert_eq!((written.messages_per_second, written.patience), (5, Duration::ZERO));
    for (text, words) in [
        ("messages_per_second = -1", "rates.messages_per_second: -1 is out of range"),
        ("burst = \"10ms\"", "rates.burst: \"10ms\" is out of range: write \"1s\" to \"1h\""),
        ("deny_for = \"2days\"", "rates.deny_for: \"2days\" is out of range"),
    ] {
        refused(&native(&format!("[listener.rates]\n{text}\n")), &[words]);
    }
}

#[test]
fn doubtful_values_are_pointed_out() {
    let Loaded { warnings, .. } = loaded(&native("").replace("7443", "40000"));
    assert!(warnings[0].contains("listen: the kernel gives this port"), "{warnings:?}");
    let interval = |text: &str| loaded(&native(&format!("[listener.heartbeat]\ninterval = \"{text}\"\n"))).notes;
    assert!(interval("60s").iter().any(|note| note.contains("heartbeat.interval: many load balancers")));
    assert!(interval("55s").is_empty());
}

#[test]
fn without_a_file_there_is_a_listener_of_each_protocol() {
    let Loaded { config, warnings, .. } = built_in(&machine()).unwrap();
    assert_eq!(config.data_dir, Path::new("pulsegate-data"));
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:7480");
    let shape: Vec<_> = config
        .listeners
        .iter()
        .map(|listener| (listener.name.as_str(), listener.listen.to_string(), listener.protocol.label()))
        .collect();
    assert_eq!(
        shape,
        [
            ("devices", "127.0.0.1:7443".to_owned(), "native"),
            ("raw", "127.0.0.1:7444".to_owned(), "raw"),
            ("mqtt", "127.0.0.1:8883".to_owned(), "mqtt")
        ]
    );
    let tls = &config.listeners[1].tls;
    assert_eq!(tls.certificates[0].cert, Path::new("pulsegate-data/certs/server.pem"));
    assert_eq!(tls.client_auth, ClientAuth::Optional);
    assert!(warnings.is_empty());
    let none = Machine { memory: Memory { bytes: 1 << 20, source: MemorySource::Machine }, ..machine() };
    let error = built_in(&none).unwrap_err().to_string();
    assert!(error.starts_with("the built-in configuration: limits.connections: even without"), "{error}");
}

/// The reference in docs/OPERATING.md writes every key with its default: it must be what the defaults are, and
/// complete.
#[test]
fn the_documented_reference_is_the_defaults() {
    let guide = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPERATING.md")).unwrap();
    let reference = guide
        .split("```toml\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap())
        .find(|block| block.contains("data_dir"))
        .expect("docs/OPERATING.md has lost its reference");
    let (written, least) = (loaded(reference).config, loaded(&least_of_each()).config);
    let shape = |mut config: Config| {
        // What must be written has no default; the directories of the two files differ.
        config.data_dir = config.data_dir.file_name().unwrap().into();
        for listener in &mut config.listeners {
            listener.tls.certificates.clear();
        }
        format!("{config:#?}")
    };
    assert_eq!(shape(written), shape(least));
    for key in every_key() {
        let documented = reference.lines().map(|line| {
            let line = line.trim_start_matches(['#', ' ', '[']);
            let of_table = |table: &str| line.strip_prefix(table);
            ["listener.", "admin.", "admission.", "backbone.", "sink."].into_iter().find_map(of_table).unwrap_or(line)
        });
        let mut named = documented.filter_map(|line| line.strip_prefix(&*key));
        assert!(named.any(|rest| rest.starts_with([' ', ']', '.'])), "{key} is not in the reference");
    }
}

/// The listeners of the reference with nothing but what has no default.
fn least_of_each() -> String {
    let browsers = third("").replace("\"mqtt\"\nlisten", "\"browsers\"\nlisten").replace("8883", "8884");
    let over = browsers.replace("protocol =", "transport = \"websocket\"\nprotocol =");
    format!("{}{}{over}", second(""), third(""))
}

/// The keys of every table, as the parser lists them when it meets one that it does not know.
fn every_key() -> Vec<String> {
    let listener = |table: &str| format!("[[listener]]\n[listener.{table}]\n");
    let tables = [
        String::new(),
        "[admin]\n".to_owned(),
        "[backbone]\n".to_owned(),
        "[backbone.nats]\n".to_owned(),
        "[backbone.nats.tls]\n".to_owned(),
        "[limits]\n".to_owned(),
        "[admission]\n".to_owned(),
        "[admission.address]\n".to_owned(),
        "[drain]\n".to_owned(),
        "[store]\n".to_owned(),
        "[uplink]\n".to_owned(),
        "[[sink]]\n".to_owned(),
        "[[sink]]\n[sink.tls]\n".to_owned(),
        "[[listener]]\n".to_owned(),
        listener("tls"),
        listener("heartbeat"),
        listener("identity"),
        listener("rates"),
        listener("raw"),
        listener("mqtt"),
        listener("websocket"),
    ];
    let mut keys = Vec::new();
    for table in tables {
        let error = toml::from_str::<raw::RawConfig>(&format!("{table}nothing = 1\n")).unwrap_err();
        let known = error.message().split('`').skip(3).step_by(2).map(str::to_owned);
        let before = keys.len();
        keys.extend(known);
        assert!(keys.len() > before, "{}", error.message());
    }
    keys
}

#[test]
fn the_tls_table_has_versions_records_tickets_and_revocation_lists() {
    let tls = |text: &str| loaded(&native(text)).config.listeners.remove(0).tls;
    let plain = tls("");
    assert_eq!((plain.versions, plain.record_bytes, plain.crl), (TlsVersions::Both, 4_096, None));
    assert_eq!(plain.tickets, Some(Tickets { lifetime: Duration::from_hours(12), keys: None }));
    assert_eq!((plain.on_revoked, plain.on_expired), (WhenOver::Close, WhenOver::Keep));
    let old = tls("versions = [\"1.2\"]\ntickets = false\nrecord_bytes = 512\nmax_connection_age = \"1h\"\n");
    assert_eq!((old.versions, old.record_bytes, old.tickets), (TlsVersions::Tls12, 512, None));
    assert_eq!(old.max_connection_age, Some(Duration::from_hours(1)));
    let client = "client_auth = \"required\"\nclient_ca = \"ca.pem\"\n";
    let crl = |text: &str| native(&format!("{client}[listener.tls.crl]\n{text}"));
    let loose = "files = [\"ca.pem\"]\nexpired = \"accept\"\nunknown = \"accept\"\ndepth = \"leaf\"\n";
    let Some(crl_read) = loaded(&crl(loose)).config.listeners.remove(0).tls.crl else { panic!("it is there") };
    assert_eq!((crl_read.accept_expired, crl_read.accept_unknown, crl_read.leaf_only), (true, true, true));
    for (text, words) in [
        (native("record_bytes = 1000\n"), "tls.record_bytes: 1000 is no size for records: write one of 512, "),
        (native("versions = [\"1.1\"]\n"), "tls.versions: \"1.1\" is not known: write [\"1.2\", \"1.3\"]"),
        (native("versions = []\n"), "tls.versions: nobody could connect"),
        (native("ticket_lifetime = \"8d\"\n"), "tls.ticket_lifetime: \"8d\" is out of range"),
        (native("ticket_keys = \"none.keys\"\n"), "tls.ticket_keys: "),
        (native("on_revoked = \"warn\"\n"), "tls.on_revoked: \"warn\" is not known: write one of \"close\", \"keep\""),
        (crl(""), "tls.crl.files: there is no list"),
        (crl("files = [\"none.crl\"]\n"), "none.crl cannot be read"),
        (crl("files = [\"ca.pem\"]\nexpired = \"maybe\"\n"), "tls.crl.expired: \"maybe\" is not known"),
    ] {
        refused(&text, &[words]);
    }
}

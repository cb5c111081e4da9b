//! Files as people have them, and that the gateway takes what becomes of them.

use std::path::Path;

use pulsegate::config::Machine;

use super::*;

fn nothing(path: &Path) -> Result<String, String> {
    Err(format!("{} is not there", path.display()))
}

/// What the gateway makes of a configuration; its files need not be there.
fn loaded(toml: &str) -> pulsegate::config::Config {
    let directory = tempfile::tempdir().unwrap();
    let pairs = toml.lines().filter_map(|line| line.split_once(" = \""));
    for (key, value) in pairs.filter(|(key, _)| ["cert", "key", "client_ca", "password_file"].contains(key)) {
        let path = directory.path().join(value.split('"').next().unwrap());
        assert!(path.starts_with(directory.path()), "{key}");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let user = "alice:$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$MTIzNDU2Nzg5MDEyMzQ1Njc4OTA\n";
        fs::write(path, if key == "password_file" { user } else { "" }).unwrap();
    }
    fs::create_dir_all(directory.path().join("crl")).unwrap();
    fs::write(directory.path().join("crl/fleet.crl"), "").unwrap();
    let file = directory.path().join("pulsegate.toml");
    fs::write(&file, toml).unwrap();
    let machine = Machine { descriptors: 1 << 20, ..Machine::detect(1 << 20) };
    pulsegate::config::load(&file, &machine).unwrap_or_else(|error| panic!("{error}\n{toml}")).config
}

#[test]
fn a_fleet_with_certificates_carries_over() {
    let conf = Conf::parse(
        "# a fleet\nper_listener_settings false\npersistence true\npersistence_location /var/lib/mosquitto/\n\
         max_inflight_messages 20\nmax_queued_messages 500\nmax_packet_size 100000\nmax_keepalive 600\n\
         persistent_client_expiration 14d\nallow_anonymous false\nacl_file acl\n\
         listener 8883\ncafile tls/ca.pem\ncertfile tls/s.pem\nkeyfile tls/s.key\nrequire_certificate true\n\
         use_identity_as_username true\ncrlfile crl/fleet.crl\nmax_connections 5000\n\
         listener 9001 ::1\nprotocol websockets\ncertfile tls/s.pem\nkeyfile tls/s.key\nuse_identity_as_username true\n",
    );
    let acl = "pattern readwrite devices/%u/#\npattern read fleet/#\n";
    let (toml, remarks) =
        translate(&conf, |path| if path == Path::new("acl") { Ok(acl.to_owned()) } else { nothing(path) });
    assert_eq!(remarks, Vec::<String>::new());
    for part in [
        "durability = \"group\"",
        "session_inflight = 20\nsession_messages = 500\npacket_bytes = 100000\nconnections = 5000\n",
        "listen = \"0.0.0.0:8883\"",
        "client_ca = \"tls/ca.pem\"\nclient_auth = \"required\"",
        "files = [\"crl/fleet.crl\"]",
        "from = \"cert-cn\"",
        "keep_alive_max = \"600s\"\nsession_expiry_max = \"14days\"",
        "publish = [\"devices/{device}/#\"]\nsubscribe = [\"devices/{device}/#\", \"fleet/#\"]",
        "listen = \"[::1]:9001\"\nprotocol = \"mqtt\"\ntransport = \"websocket\"",
    ] {
        assert!(toml.contains(part), "{part:?} is not in\n{toml}");
    }
    // The second asks for no certificates, so its devices have no common name: that is for the gateway to say.
    let first = &toml[..toml.find("\n[[listener]]\nname = \"websocket-2\"").unwrap()];
    let config = loaded(first);
    assert_eq!((config.listeners.len(), config.limits.connections, config.limits.session_inflight), (1, 5_000, 20));
}

#[test]
fn what_does_not_carry_over_is_told() {
    let conf = Conf::parse(
        "listener 1883\nallow_anonymous true\npassword_file /etc/mosquitto/passwd\nlog_type all\nconnection bridge-1\n\
         address 192.0.2.1\nplugin /usr/lib/x.so\nmount_point edge/\nmax_queued_messages 0\nsurprise 1\n",
    );
    let (toml, remarks) = translate(&conf, nothing);
    for part in [
        "log_type all: the log goes to stderr",
        "connection bridge-1: there are no bridges",
        "plugin /usr/lib/x.so: there are no plugins",
        "max_queued_messages 0: 0 stands for no bound",
        "surprise 1: the gateway has nothing like it",
        "listener 1883: it has no TLS",
        "listener 1883: mount_point edge/: topics have no mount points",
        "/etc/mosquitto/passwd: mosquitto's hashes (PBKDF2) are not read",
        "allow_anonymous true beside a password file",
        "any device may publish and subscribe anywhere",
    ] {
        assert!(remarks.iter().any(|remark| remark.contains(part)), "{part:?} is not in {remarks:#?}");
        assert!(toml.contains(part), "{part:?} is in no comment");
    }
    let config = loaded(&toml);
    assert!(config.listeners[0].identity.secrets().is_some(), "whoever comes needs a password still");
}

#[test]
fn rules_of_users_carry_over_where_they_are_everybodys() {
    let same = "user m1\ntopic readwrite devices/m1/#\ntopic read fleet/#\nuser m2\ntopic readwrite devices/m2/#\ntopic read fleet/#\n";
    let access = acl::translate(same, "username");
    assert_eq!(access.publish, ["devices/{device}/#"]);
    assert_eq!(access.subscribe, ["devices/{device}/#", "fleet/#"]);
    assert!(access.remarks.is_empty());

    let different = "topic read public/#\nuser m1\ntopic write a/#\nuser admin\ntopic #\ntopic deny secret/#\npattern write %c/up\n\
                     pattern write x%u/y\nnonsense\n";
    let access = acl::translate(different, "client-id");
    assert_eq!((access.publish, access.subscribe), (vec!["{device}/up".to_owned()], vec!["public/#".to_owned()]));
    let told = access.remarks.join("\n");
    for part in
        ["user m1: a/#", "user admin: #", "topic deny secret/#", "x%u/y: a name must be", "nonsense: this is no rule"]
    {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    assert_eq!(acl::translate("pattern read %u/x", "client-id").subscribe, Vec::<String>::new());
}

#[test]
fn values_cannot_leave_their_place() {
    let conf = Conf::parse("listener 8883 \"]\ncertfile a\"b\\c.pem\nkeyfile k\u{1b}\nmax_connections -1\n");
    let (toml, remarks) = translate(&conf, nothing);
    let parsed: toml::Table = toml.parse().unwrap_or_else(|error| panic!("{error}\n{toml}"));
    let listener = &parsed["listener"][0];
    assert_eq!(
        (listener["tls"]["cert"].as_str(), listener["tls"]["key"].as_str()),
        (Some("a\"b\\c.pem"), Some("k\u{1b}"))
    );
    assert!(remarks.iter().any(|remark| remark.contains("is no IP address")));
    assert_eq!(mosquitto::span("2m").as_deref(), Some("2months"));
    for wrong in ["", "d", "0d", "1x", "ä", "1"] {
        assert_eq!(mosquitto::span(wrong), None, "{wrong}");
    }
}

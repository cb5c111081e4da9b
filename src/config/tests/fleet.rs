//! `[backbone.nats]`: what is written, what is not, and what is refused.

use super::*;

const LEAST: &str = "[backbone.nats]\nurls = [\"tls://nats-1.example.com\", \"tls://nats-2.example.com:4222\"]\n";

/// `text` before a listener: a table would take what follows it.
fn with(text: &str) -> String {
    format!("{text}\n{}", native(""))
}

#[test]
fn the_least_fleet_gets_every_default_and_has_its_row_in_the_budget() {
    let loaded = loaded(&with(LEAST));
    let fleet = loaded.config.fleet.unwrap();
    assert_eq!((fleet.urls.len(), fleet.is_tls, fleet.prefix.as_str(), fleet.replicas), (2, true, "pulsegate", 1));
    assert_eq!((fleet.lease, fleet.timeout), (Duration::from_secs(10), Duration::from_secs(10) / 3));
    assert_eq!(fleet.retry, (Duration::from_millis(250), Duration::from_secs(15)));
    assert_eq!((fleet.writes_per_second, fleet.ready_without_nats, fleet.uplink), (5_000, false, FleetUplink::Stream));
    assert_eq!(loaded.config.sinks.len(), 1, "the one of the uplink");
    assert_eq!((&fleet.login, &fleet.tls), (&NatsLogin::default(), &SinkTls::default()));
    let row = loaded.budget.items.iter().find(|item| item.what == "fleet").unwrap();
    assert_eq!((row.count, row.each), (u64::from(loaded.config.limits.connections), FLEET_DEVICE_BYTES));
    assert!(loaded.budget.items.iter().any(|item| item.each == FLEET_PUBLICATIONS_BYTES));
    assert!(loaded.budget.items.iter().all(|item| item.what != "sessions behind"), "nobody here has a session");
    assert!(loaded.warnings.iter().all(|warning| !warning.contains("nats")), "{:?}", loaded.warnings);
}

#[test]
fn without_it_nothing_is_there() {
    let loaded = loaded(&with(""));
    assert_eq!(loaded.config.fleet, None);
    assert!(loaded.budget.items.iter().all(|item| item.what != "fleet"));
}

#[test]
fn everything_of_a_fleet_that_can_be_written_is_taken() {
    let text = format!(
        "{LEAST}prefix = \"edge_1\"\nreplicas = 3\nlease = \"30s\"\ntimeout = \"2s\"\nretry_min = \"1s\"\nretry_max = \"1m\"\n\
         writes_per_second = 100\nready_without_nats = true\nusername = \"u\"\npassword_file = \"admin.token\"\n\
         [backbone.nats.tls]\nca = \"ca.pem\"\ncert = \"other.pem\"\nkey = \"other.key\"\n"
    );
    let fleet = loaded(&with(&text)).config.fleet.unwrap();
    assert_eq!((fleet.prefix.as_str(), fleet.replicas, fleet.lease), ("edge_1", 3, Duration::from_secs(30)));
    assert_eq!((fleet.writes_per_second, fleet.ready_without_nats), (100, true));
    assert_eq!(fleet.login.username.as_deref(), Some("u"));
    assert!(fleet.tls.ca.unwrap().is_absolute(), "relative to the file");
}

#[test]
fn the_uplink_of_a_fleet_is_a_sink_of_its_own() {
    let text = format!("{LEAST}uplink = \"local\"\nreplicas = 3\n[uplink]\nretention = \"2days\"\n");
    let config = loaded(&with(&text)).config;
    let [sink] = &*config.sinks else { panic!("{:?}", config.sinks) };
    assert_eq!((sink.name.as_str(), sink.presence, sink.from_first), (FLEET_SINK, true, true));
    let SinkKind::Nats(nats) = &sink.kind else { panic!("{sink:?}") };
    assert_eq!((nats.stream.as_str(), nats.prefix.as_str(), nats.urls.len()), ("pulsegate_uplink", "pulsegate", 2));
    assert_eq!(nats.make, Some(NatsStream { replicas: 3, retention: Duration::from_hours(48) }));
    for (text, words) in [
        (
            format!("{LEAST}uplink = \"on\"\n"),
            "backbone.nats.uplink: \"on\" is not known: write one of \"off\", \"local\", \"stream\"",
        ),
        (
            format!("{LEAST}uplink = \"local\"\n[store]\ndurability = \"memory\"\n"),
            "backbone.nats.uplink: it goes on where it was from the store",
        ),
        (
            format!(
                "{LEAST}uplink = \"local\"\n[[sink]]\nname = \"fleet-uplink\"\ntype = \"http\"\nurl = \"https://a.example/in\"\n"
            ),
            "backbone.nats.uplink: it is one of the 16 sinks that there may be, under the name \"fleet-uplink\"",
        ),
    ] {
        refused(&with(&text), &[words]);
    }
}

#[test]
fn an_uplink_that_nobody_wants_or_that_has_no_log_is_none() {
    for text in ["uplink = \"off\"\n", "[store]\ndurability = \"memory\"\n"] {
        let config = loaded(&with(&format!("{LEAST}{text}"))).config;
        assert_eq!(config.fleet.map(|fleet| fleet.uplink), Some(FleetUplink::Off));
        assert!(config.sinks.is_empty());
    }
}

#[test]
fn what_is_wrong_with_a_fleet_is_named() {
    for (text, words) in [
        ("[backbone.nats]\n".to_owned(), ":1: backbone.nats.urls: there are 0: write 1 to 16"),
        (LEAST.replace("tls://nats-1", "http://nats-1"), "backbone.nats.urls: the scheme is not known"),
        (LEAST.replace("tls://nats-1", "nats://nats-1"), "backbone.nats.urls: some are with TLS and some without"),
        (LEAST.replace(":4222", "/x"), "backbone.nats.urls: a server has no path"),
        (
            LEAST.replace("nats-1", "me:secret@nats-1"),
            "backbone.nats.urls: a URL is no place for a secret: write credentials_file or nkey_file",
        ),
        (format!("{LEAST}prefix = \"a.b\"\n"), ":3: backbone.nats.prefix: \"a.b\" is no prefix of a fleet"),
        (format!("{LEAST}replicas = 6\n"), "backbone.nats.replicas: 6 is out of range"),
        (format!("{LEAST}lease = \"1s\"\n"), "backbone.nats.lease"),
        (
            format!("{LEAST}timeout = \"6s\"\n"),
            "backbone.nats.timeout: a question may take longer than half of the lease",
        ),
        (
            format!("{LEAST}retry_min = \"5s\"\nretry_max = \"1s\"\n"),
            "backbone.nats.retry_max: it is less than retry_min",
        ),
        (format!("{LEAST}password_file = \"admin.token\"\n"), "backbone.nats.username: it is missing"),
        (
            format!("{LEAST}username = \"u\"\nnkey_file = \"admin.token\"\n"),
            "backbone.nats.credentials_file: the server takes one of credentials, NKey and password",
        ),
        (
            format!("{}[backbone.nats.tls]\nca = \"ca.pem\"\n", LEAST.replace("tls:", "nats:")),
            "backbone.nats.tls: the url is one without TLS",
        ),
        (format!("{LEAST}url = \"x\"\n"), "url"),
    ] {
        refused(&with(&text), &[words]);
    }
    let warnings = loaded(&with(&format!("{}replicas = 2\n", LEAST.replace("tls:", "nats:")))).warnings;
    for words in
        ["backbone.nats.replicas: an even number", "backbone.nats.urls: commands to devices go over the network"]
    {
        assert!(warnings.iter().any(|warning| warning.contains(words)), "{warnings:?}");
    }
}

//! `[[sink]]`: what is written, what is not, and what is refused.

use super::*;

const HTTP: &str = "[[sink]]\nname = \"cloud\"\ntype = \"http\"\nurl = \"https://example.com/in\"\n";
const MQTT: &str = "[[sink]]\nname = \"bridge\"\ntype = \"mqtt\"\nurl = \"mqtts://broker.example.com\"\n";

/// `text` before a listener: a table would take what follows it.
fn with(text: &str) -> String {
    format!("{text}\n{}", native(""))
}

#[test]
fn the_least_sinks_get_every_default() {
    let sinks = loaded(&with(&format!("{HTTP}{MQTT}"))).config.sinks;
    let [cloud, bridge] = &*sinks else { panic!("{sinks:?}") };
    assert_eq!(
        (cloud.name.as_str(), &*cloud.topics, cloud.presence, cloud.from_first),
        ("cloud", &["#".to_owned()][..], true, true)
    );
    assert_eq!((cloud.timeout, cloud.tries_refused, cloud.tries_failed), (Duration::from_secs(30), 5, 0));
    assert_eq!(cloud.retry, (Duration::from_millis(500), Duration::from_mins(1)));
    assert_eq!((cloud.dead_letter_bytes, &cloud.tls), (64 << 20, &SinkTls::default()));
    let SinkKind::Http(http) = &cloud.kind else { panic!("{cloud:?}") };
    assert_eq!(
        (http.url.as_str(), http.lines, http.batch_events, http.batch_bytes),
        ("https://example.com/in", true, 500, 262_144)
    );
    assert_eq!((&http.secret_file, &http.authorization_file), (&None, &None));
    let SinkKind::Mqtt(mqtt) = &bridge.kind else { panic!("{bridge:?}") };
    assert_eq!((mqtt.host.as_str(), mqtt.port, mqtt.is_tls), ("broker.example.com", 8883, true));
    assert_eq!((mqtt.client_id.as_str(), mqtt.connections, mqtt.inflight), ("edge-1-bridge", 1, 100));
    assert_eq!(mqtt.topic.to_string(), "pulsegate/{device}/up/{topic}");
    assert_eq!(mqtt.presence_topic.to_string(), "pulsegate/{device}/presence");
    assert_eq!((mqtt.keep_alive, &mqtt.commands), (Duration::from_secs(30), &None));
}

#[test]
fn everything_that_can_be_written_is_taken() {
    let text = format!(
        "{HTTP}topics = [\"a/#\", \"b\"]\npresence = false\nfrom = \"end\"\ntimeout = \"5s\"\nretry_min = \"1s\"\nretry_max = \"2s\"\n\
         tries_refused = 1\ntries_failed = 9\ndead_letter_bytes = 65536\nformat = \"json\"\nbatch_events = 1\nbatch_bytes = 1024\n\
         secret_file = \"admin.token\"\nauthorization_file = \"other.token\"\n[sink.tls]\nca = \"ca.pem\"\ncert = \"other.pem\"\nkey = \"other.key\"\n\
         {}client_id = \"me\"\nusername = \"u\"\npassword_file = \"admin.token\"\ntopic = \"x/{{device}}\"\npresence_topic = \"p/{{device}}\"\n\
         connections = 4\ninflight = 7\nkeep_alive = \"10s\"\ncommands = \"c/{{device}}/{{topic}}\"\ncommand_session = \"0s\"\n",
        MQTT.replace("mqtts://broker.example.com", "mqtts://broker:1")
    );
    let sinks = loaded(&with(&text)).config.sinks;
    assert_eq!((sinks[0].topics.len(), sinks[0].presence, sinks[0].from_first), (2, false, false));
    assert!(sinks[0].tls.ca.as_ref().unwrap().is_absolute(), "relative to the file");
    let SinkKind::Mqtt(mqtt) = &sinks[1].kind else { panic!("{sinks:?}") };
    assert_eq!((mqtt.port, mqtt.connections, mqtt.inflight, mqtt.client_id.as_str()), (1, 4, 7, "me"));
    assert_eq!(mqtt.commands.as_ref().unwrap().filter(), "c/+/#");
}

#[test]
fn what_is_wrong_with_a_sink_is_named() {
    let memory = format!("[store]\ndurability = \"memory\"\n{HTTP}");
    for (text, words) in [
        (memory, "sink: a sink goes on where it was from the store, and durability = \"memory\" has none: write store"),
        (HTTP.replace("cloud", "a b"), ":2: sink[0].name: \"a b\" is not a name"),
        (HTTP.replace("name = \"cloud\"\n", ""), ":1: sink[0].name: it is missing"),
        (
            HTTP.replace("\"http\"", "\"kafka\""),
            ":3: sink[0].type: \"kafka\" is not known: write one of \"http\", \"mqtt\", \"nats\"",
        ),
        (HTTP.replace("https", "ftp"), ":4: sink[0].url: the scheme is not known"),
        (HTTP.replace("https://example.com/in", "https://"), "sink[0].url: there is no host"),
        (HTTP.replace("example.com", "example.com:99999"), "sink[0].url: the port is not a number"),
        (
            HTTP.replace("example.com", "me:secret@example.com"),
            "sink[0].url: a URL is no place for a secret: write authorization_file",
        ),
        (format!("{HTTP}{HTTP}"), ":6: sink[1].name: another sink has the name \"cloud\""),
        (format!("{HTTP}topic = \"x\"\n"), ":5: sink[0].topic: it is for type = \"mqtt\""),
        (format!("{MQTT}format = \"json\"\n"), ":5: sink[0].format: it is for type = \"http\""),
        (format!("{HTTP}topics = [\"a#\"]\n"), "sink[0].topics: \"a#\" is not a topic filter"),
        (format!("{HTTP}topics = []\npresence = false\n"), "sink[0].topics: without topics and without presence"),
        (format!("{HTTP}retry_min = \"5s\"\nretry_max = \"1s\"\n"), "sink[0].retry_max: it is less than retry_min"),
        (format!("{HTTP}batch_bytes = 8388608\n"), "sink[0].batch_bytes: 8388608 is out of range"),
        (format!("{HTTP}[sink.tls]\ncert = \"other.pem\"\n"), "sink[0].tls.key: it is missing"),
        (
            format!("{}[sink.tls]\nca = \"ca.pem\"\n", HTTP.replace("https", "http")),
            "sink[0].tls: the url is one without TLS",
        ),
        (format!("{MQTT}topic = \"a/#\"\n"), "sink[0].topic: \"a/#\" holds a wildcard"),
        (format!("{MQTT}commands = \"{{device}}\"\n"), "sink[0].commands: in \"{device}\" the device cannot be told"),
        (format!("{MQTT}command_session = \"1h\"\n"), "sink[0].command_session: no commands are taken"),
        (format!("{MQTT}password_file = \"admin.token\"\n"), "sink[0].username: it is missing"),
        (MQTT.replace("broker.example.com", "[::1]:1883"), "sink[0].url: an IPv6 address is not taken here"),
        (MQTT.replace("broker.example.com", "broker/x"), "sink[0].url: a broker has no path"),
    ] {
        refused(&with(&text), &[words]);
    }
    let nats = "[[sink]]\nname = \"fleet\"\ntype = \"nats\"\nurl = \"tls://nats.example.com\"\nstream = \"UP\"\n";
    for (text, words) in [
        (nats.replace("stream = \"UP\"\n", ""), "sink[0].stream: it is missing"),
        (nats.replace("UP", "a b"), "sink[0].stream: \"a b\" is no name of a stream"),
        (format!("{nats}prefix = \"a.*\"\n"), "sink[0].prefix: \"a.*\" is no beginning of a subject"),
        (format!("{nats}topic = \"x\"\n"), "sink[0].topic: it is for type = \"mqtt\""),
        (format!("{HTTP}inflight = 5\n"), "sink[0].inflight: it is for type = \"mqtt\" or \"nats\""),
        (
            format!("{nats}username = \"u\"\nnkey_file = \"admin.token\"\n"),
            "sink[0].credentials_file: the server takes one of credentials, NKey and password",
        ),
    ] {
        refused(&with(&text), &[words]);
    }
    let sinks = loaded(&with(nats)).config.sinks;
    let SinkKind::Nats(sink) = &sinks[0].kind else { panic!("{sinks:?}") };
    assert_eq!((sink.prefix.as_str(), sink.stream.as_str(), sink.inflight), ("pulsegate", "UP", 100));
    let many: String = (0..17).map(|number| HTTP.replace("cloud", &format!("cloud-{number}"))).collect();
    refused(&with(&many), &["sink: there are 17: write at most 16"]);
    let loud = format!("{}authorization_file = \"admin.token\"\n", HTTP.replace("https", "http"));
    let warnings = loaded(&with(&loud)).warnings;
    assert!(warnings[0].contains("sink[0].authorization_file: it goes over the network in the clear"), "{warnings:?}");
}

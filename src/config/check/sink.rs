//! `[[sink]]`.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::{Context, check_name, values};
use crate::codec::mqtt::topic;
use crate::config::error::{ConfigKey, Problem};
use crate::config::raw::{RawSink, RawSinkTls};
use crate::config::template::Fault;
use crate::config::{
    Durability, HttpSink, MAX_SINKS, MqttSink, NatsLogin, NatsSink, SINK_WINDOW_BYTES, Sink, SinkKind, SinkTls,
    TopicTemplate,
};

/// The longest name: with its prefix it is the name of a consumer.
const NAME_BYTES_MAX: usize = 48;
const CLIENT_ID_BYTES_MAX: usize = 128;
const PREFIX_BYTES_MAX: usize = 128;
const URL_BYTES_MAX: usize = 2_048;
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(5);
const RETRY: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_hours(1);
const TRIES: RangeInclusive<i64> = 1..=1_000;
const TRIES_OR_NO_END: RangeInclusive<i64> = 0..=1_000_000;
const DEAD_LETTER_BYTES: RangeInclusive<i64> = 64 << 10..=1 << 40;
const BATCH_EVENTS: RangeInclusive<i64> = 1..=10_000;
const BATCH_BYTES: RangeInclusive<i64> = 1 << 10..=SINK_WINDOW_BYTES as i64;
const CONNECTIONS: RangeInclusive<i64> = 1..=16;
const INFLIGHT: RangeInclusive<i64> = 1..=1_000;
const KEEP_ALIVE: RangeInclusive<Duration> = Duration::from_secs(5)..=Duration::from_secs(65_535);
const COMMAND_SESSION: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(24 * 30);

/// What is spoken at a URL.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Http,
    Mqtt,
    Nats,
}

/// Which table is looked at.
pub(super) struct Entry {
    table: String,
}

impl Entry {
    /// The table of this name.
    pub(super) fn of_table(table: &str) -> Self {
        Self { table: table.to_owned() }
    }

    fn of_sink(index: usize) -> Self {
        Self { table: format!("sink[{index}]") }
    }

    /// One of its keys.
    pub(super) fn key(&self, key: &str) -> ConfigKey {
        ConfigKey::top(format!("{}.{key}", self.table))
    }

    fn missing(&self, key: &str, remedy: &str) -> Problem {
        Problem::new(self.key(key), "it is missing", remedy)
    }
}

/// Every sink that is right; what is wrong with the others goes to `problems`.
pub(super) fn resolve(
    context: &mut Context<'_>,
    raw: Vec<RawSink>,
    node: &str,
    durability: Durability,
    problems: &mut Vec<Problem>,
) -> Vec<Sink> {
    if raw.len() > MAX_SINKS {
        let what = format!("there are {}", raw.len());
        problems.push(Problem::new(ConfigKey::top("sink"), what, format!("write at most {MAX_SINKS}")));
    }
    if !raw.is_empty() && durability == Durability::Memory {
        let what = "a sink goes on where it was from the store, and durability = \"memory\" has none";
        let remedy = "write store.durability = \"group\" or \"interval\", or leave the sinks out";
        problems.push(Problem::new(ConfigKey::top("sink"), what, remedy));
        return Vec::new();
    }
    let mut sinks: Vec<Sink> = Vec::new();
    for (index, raw) in raw.into_iter().enumerate().take(MAX_SINKS) {
        let entry = Entry::of_sink(index);
        match sink(context, &entry, raw, node) {
            Ok(sink) if sinks.iter().any(|other| other.name == sink.name) => {
                let what = format!("another sink has the name {:?}", sink.name);
                problems.push(Problem::new(entry.key("name"), what, "give each sink its own name"));
            }
            Ok(sink) => sinks.push(sink),
            Err(problem) => problems.push(problem),
        }
    }
    sinks
}

fn sink(context: &mut Context<'_>, entry: &Entry, mut raw: RawSink, node: &str) -> Result<Sink, Problem> {
    let name = raw.name.take().ok_or_else(|| entry.missing("name", "name the sink, as in name = \"cloud\""))?;
    check_name(entry.key("name"), &name)?;
    if name.len() > NAME_BYTES_MAX {
        let what = format!("{name:?} is longer than {NAME_BYTES_MAX} bytes");
        return Err(Problem::new(entry.key("name"), what, "write a shorter one"));
    }
    let word = raw.r#type.take().ok_or_else(|| entry.missing("type", "write \"http\", \"mqtt\" or \"nats\""))?;
    let kinds = [("http", Kind::Http), ("mqtt", Kind::Mqtt), ("nats", Kind::Nats)];
    let kind = values::word(entry.key("type"), &word, &kinds)?;
    refuse_foreign_keys(entry, &raw, &word)?;
    let from = raw.from.as_deref().unwrap_or("first");
    let from_first = values::word(entry.key("from"), from, &[("first", true), ("end", false)])?;
    let retry = retry(entry, &raw)?;
    let timeout = values::duration(entry.key("timeout"), raw.timeout.as_deref(), Duration::from_secs(30), TIMEOUT)?;
    let tries_refused = values::integer(entry.key("tries_refused"), raw.tries_refused, 5, TRIES, "tries")?;
    let tries_failed = values::integer(entry.key("tries_failed"), raw.tries_failed, 0, TRIES_OR_NO_END, "tries")?;
    let dead =
        values::integer(entry.key("dead_letter_bytes"), raw.dead_letter_bytes, 64 << 20, DEAD_LETTER_BYTES, "bytes")?;
    let topics = topics(entry, raw.topics.take())?;
    let presence = raw.presence.unwrap_or(true);
    if topics.is_empty() && !presence {
        let what = "without topics and without presence nothing goes to it".to_owned();
        return Err(Problem::new(entry.key("topics"), what, "write filters, or leave the key out for all messages"));
    }
    let written =
        raw.url.take().ok_or_else(|| entry.missing("url", "write where to, as in \"https://example.com/in\""))?;
    let url = Url::parse(entry, "url", &written, kind)?;
    let tls = tls(context, entry, raw.tls.take(), url.is_tls)?;
    let kind = match kind {
        Kind::Http => SinkKind::Http(http(context, entry, &raw, written, url.is_tls)?),
        Kind::Mqtt => SinkKind::Mqtt(mqtt(context, entry, &raw, url, &format!("{node}-{name}"))?),
        Kind::Nats => SinkKind::Nats(nats(context, entry, &raw, written, &url)?),
    };
    Ok(Sink {
        name,
        topics,
        presence,
        from_first,
        timeout,
        retry,
        tries_refused: tries_refused as u32,
        tries_failed: tries_failed as u32,
        dead_letter_bytes: dead as u64,
        tls,
        kind,
    })
}

/// Keys of other types say nothing here, and whoever wrote them meant something.
fn refuse_foreign_keys(entry: &Entry, raw: &RawSink, kind: &str) -> Result<(), Problem> {
    let keys: [(&str, bool, &[&str]); 19] = [
        ("format", raw.format.is_some(), &["http"]),
        ("batch_events", raw.batch_events.is_some(), &["http"]),
        ("batch_bytes", raw.batch_bytes.is_some(), &["http"]),
        ("secret_file", raw.secret_file.is_some(), &["http"]),
        ("authorization_file", raw.authorization_file.is_some(), &["http"]),
        ("client_id", raw.client_id.is_some(), &["mqtt"]),
        ("username", raw.username.is_some(), &["mqtt", "nats"]),
        ("password_file", raw.password_file.is_some(), &["mqtt", "nats"]),
        ("topic", raw.topic.is_some(), &["mqtt"]),
        ("presence_topic", raw.presence_topic.is_some(), &["mqtt"]),
        ("connections", raw.connections.is_some(), &["mqtt"]),
        ("inflight", raw.inflight.is_some(), &["mqtt", "nats"]),
        ("keep_alive", raw.keep_alive.is_some(), &["mqtt"]),
        ("commands", raw.commands.is_some(), &["mqtt"]),
        ("command_session", raw.command_session.is_some(), &["mqtt"]),
        ("stream", raw.stream.is_some(), &["nats"]),
        ("prefix", raw.prefix.is_some(), &["nats"]),
        ("credentials_file", raw.credentials_file.is_some(), &["nats"]),
        ("nkey_file", raw.nkey_file.is_some(), &["nats"]),
    ];
    match keys.iter().find(|(_, is_written, kinds)| *is_written && !kinds.contains(&kind)) {
        None => Ok(()),
        Some((key, _, kinds)) => {
            let what = format!("it is for type = \"{}\"", kinds.join("\" or \""));
            Err(Problem::new(entry.key(key), what, "leave it out, or write another type"))
        }
    }
}

fn retry(entry: &Entry, raw: &RawSink) -> Result<(Duration, Duration), Problem> {
    let least = values::duration(entry.key("retry_min"), raw.retry_min.as_deref(), Duration::from_millis(500), RETRY)?;
    let default = Duration::from_mins(1).max(least);
    let most = values::duration(entry.key("retry_max"), raw.retry_max.as_deref(), default, RETRY)?;
    if most < least {
        return Err(Problem::new(entry.key("retry_max"), "it is less than retry_min", "write a longer one"));
    }
    Ok((least, most))
}

fn topics(entry: &Entry, written: Option<Vec<String>>) -> Result<Vec<String>, Problem> {
    let topics = written.unwrap_or_else(|| vec!["#".to_owned()]);
    for filter in &topics {
        if !topic::is_topic_filter(filter) || topic::shared(filter).is_some() {
            let what = format!("{filter:?} is not a topic filter");
            return Err(Problem::new(entry.key("topics"), what, "write filters, such as \"fleet/+/state\" or \"#\""));
        }
    }
    Ok(topics)
}

/// What must be known of where something goes.
pub(super) struct Url {
    pub(super) is_tls: bool,
    host: String,
    port: Option<u16>,
    pub(super) has_path: bool,
}

impl Url {
    /// `scheme://host[:port][/path]`. No names and passwords: they would stand in logs.
    pub(super) fn parse(entry: &Entry, key: &str, written: &str, kind: Kind) -> Result<Self, Problem> {
        let (example, schemes, secrets) = match kind {
            Kind::Http => ("https://example.com/in", ["http", "https"], "write authorization_file"),
            Kind::Mqtt => ("mqtts://broker.example.com:8883", ["mqtt", "mqtts"], "write username and password_file"),
            Kind::Nats => ("tls://nats.example.com:4222", ["nats", "tls"], "write credentials_file or nkey_file"),
        };
        let refuse = |what: &str| {
            let what = format!("{what}: {:?}", written.split('@').next_back().unwrap_or_default());
            Problem::new(entry.key(key), what, format!("write it as in {example:?}"))
        };
        let (scheme, rest) = written.split_once("://").ok_or_else(|| refuse("this is not a URL"))?;
        if !schemes.contains(&scheme) {
            return Err(refuse("the scheme is not known"));
        }
        let is_tls = scheme == schemes[1];
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(Problem::new(entry.key(key), "a URL is no place for a secret", secrets));
        }
        let fits = |byte: u8| byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte);
        if written.len() > URL_BYTES_MAX || !written.bytes().all(fits) {
            return Err(refuse("this is not a URL"));
        }
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                let port = port.parse().ok().filter(|port| *port > 0);
                (host, Some(port.ok_or_else(|| refuse("the port is not a number from 1 to 65535"))?))
            }
            _ => (authority, None),
        };
        if host.is_empty() {
            return Err(refuse("there is no host"));
        }
        Ok(Self { is_tls, host: host.to_owned(), port, has_path: !path.is_empty() && path != "/" })
    }
}

pub(super) fn tls(
    context: &Context<'_>,
    entry: &Entry,
    raw: Option<RawSinkTls>,
    is_tls: bool,
) -> Result<SinkTls, Problem> {
    let Some(raw) = raw else { return Ok(SinkTls::default()) };
    if !is_tls {
        let what = "the url is one without TLS".to_owned();
        return Err(Problem::new(
            entry.key("tls"),
            what,
            "write one with TLS (https://, mqtts://, tls://), or leave the table out",
        ));
    }
    let path = |key: &str, written: &Option<String>| {
        written.as_deref().map(|written| context.path(entry.key(&format!("tls.{key}")), written)).transpose()
    };
    let client = match (path("cert", &raw.cert)?, path("key", &raw.key)?) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) => return Err(entry.missing("tls.key", "name the file with the key of tls.cert")),
        (None, Some(_)) => return Err(entry.missing("tls.cert", "name the file with the certificate of tls.key")),
    };
    Ok(SinkTls { ca: path("ca", &raw.ca)?, client })
}

fn file(context: &Context<'_>, entry: &Entry, key: &str, written: Option<&String>) -> Result<Option<PathBuf>, Problem> {
    written.map(|written| context.path(entry.key(key), written)).transpose()
}

fn http(
    context: &mut Context<'_>,
    entry: &Entry,
    raw: &RawSink,
    url: String,
    is_tls: bool,
) -> Result<HttpSink, Problem> {
    let format = raw.format.as_deref().unwrap_or("lines");
    let lines = values::word(entry.key("format"), format, &[("lines", true), ("json", false)])?;
    let events = values::integer(entry.key("batch_events"), raw.batch_events, 500, BATCH_EVENTS, "events")?;
    let bytes = values::integer(entry.key("batch_bytes"), raw.batch_bytes, 256 << 10, BATCH_BYTES, "bytes")?;
    let secret_file = file(context, entry, "secret_file", raw.secret_file.as_ref())?;
    let authorization_file = file(context, entry, "authorization_file", raw.authorization_file.as_ref())?;
    if authorization_file.is_some() && !is_tls {
        context.warn(&entry.key("authorization_file"), "it goes over the network in the clear: write https://");
    }
    Ok(HttpSink {
        url,
        lines,
        batch_events: events as usize,
        batch_bytes: bytes as usize,
        secret_file,
        authorization_file,
    })
}

fn mqtt(
    context: &mut Context<'_>,
    entry: &Entry,
    raw: &RawSink,
    url: Url,
    default_id: &str,
) -> Result<MqttSink, Problem> {
    if url.has_path {
        return Err(Problem::new(entry.key("url"), "a broker has no path", "write it as in \"mqtts://host:8883\""));
    }
    if url.host.starts_with('[') {
        let what = "an IPv6 address is not taken here";
        return Err(Problem::new(entry.key("url"), what, "write the broker's name"));
    }
    let template = |key: &str, fault: Fault| Problem::new(entry.key(key), fault.0, fault.1);
    let topic = raw.topic.as_deref().unwrap_or("pulsegate/{device}/up/{topic}");
    let topic = TopicTemplate::parse(topic).map_err(|fault| template("topic", fault))?;
    let presence = raw.presence_topic.as_deref().unwrap_or("pulsegate/{device}/presence");
    let presence_topic = TopicTemplate::parse(presence).map_err(|fault| template("presence_topic", fault))?;
    let commands = raw.commands.as_deref().map(TopicTemplate::parse_readable).transpose();
    let commands = commands.map_err(|fault| template("commands", fault))?;
    if commands.is_none() && raw.command_session.is_some() {
        let what = "no commands are taken";
        return Err(Problem::new(entry.key("command_session"), what, "write commands, or leave it out"));
    }
    let client_id = raw.client_id.clone().unwrap_or_else(|| default_id.to_owned());
    if client_id.is_empty() || client_id.len() > CLIENT_ID_BYTES_MAX || client_id.contains(char::is_control) {
        let what = format!("{client_id:?} is no client identifier");
        return Err(Problem::new(entry.key("client_id"), what, "write 1 to 128 bytes without control characters"));
    }
    let password = (raw.username.as_ref(), raw.password_file.as_ref());
    let password_file = password_file(context, entry, password, url.is_tls)?;
    let keep_alive = Duration::from_secs(30);
    let session = Duration::from_hours(1);
    Ok(MqttSink {
        host: url.host,
        port: url.port.unwrap_or(if url.is_tls { 8883 } else { 1883 }),
        is_tls: url.is_tls,
        client_id,
        username: raw.username.clone(),
        password_file,
        topic,
        presence_topic,
        connections: values::integer(entry.key("connections"), raw.connections, 1, CONNECTIONS, "connections")?
            as usize,
        inflight: values::integer(entry.key("inflight"), raw.inflight, 100, INFLIGHT, "messages")? as u16,
        keep_alive: values::duration(entry.key("keep_alive"), raw.keep_alive.as_deref(), keep_alive, KEEP_ALIVE)?,
        commands,
        command_session: values::duration(
            entry.key("command_session"),
            raw.command_session.as_deref(),
            session,
            COMMAND_SESSION,
        )?,
    })
}

fn password_file(
    context: &mut Context<'_>,
    entry: &Entry,
    (username, written): (Option<&String>, Option<&String>),
    is_tls: bool,
) -> Result<Option<PathBuf>, Problem> {
    let file = file(context, entry, "password_file", written)?;
    if file.is_some() && username.is_none() {
        return Err(entry.missing("username", "write who the password belongs to"));
    }
    if file.is_some() && !is_tls {
        context.warn(&entry.key("password_file"), "it goes over the network in the clear: write a url with TLS");
    }
    Ok(file)
}

/// Who a client of NATS says that it is: `written` are its credentials_file, nkey_file, username and password_file.
pub(super) fn nats_login(
    context: &mut Context<'_>,
    entry: &Entry,
    written: [Option<&String>; 4],
    is_tls: bool,
) -> Result<NatsLogin, Problem> {
    let [credentials, nkey, username, password] = written;
    let credentials_file = file(context, entry, "credentials_file", credentials)?;
    let nkey_file = file(context, entry, "nkey_file", nkey)?;
    let ways = [credentials_file.is_some(), nkey_file.is_some(), username.is_some()];
    if ways.into_iter().filter(|way| *way).count() > 1 {
        let what = "the server takes one of credentials, NKey and password";
        return Err(Problem::new(
            entry.key("credentials_file"),
            what,
            "write one of credentials_file, nkey_file and username",
        ));
    }
    let password_file = password_file(context, entry, (username, password), is_tls)?;
    Ok(NatsLogin { credentials_file, nkey_file, username: username.cloned(), password_file })
}

fn nats(
    context: &mut Context<'_>,
    entry: &Entry,
    raw: &RawSink,
    written_url: String,
    url: &Url,
) -> Result<NatsSink, Problem> {
    if url.has_path {
        return Err(Problem::new(entry.key("url"), "a server has no path", "write it as in \"tls://host:4222\""));
    }
    let plain = |token: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        !token.is_empty() && token.len() <= 64 && token.bytes().all(fits)
    };
    let stream = raw.stream.clone().ok_or_else(|| entry.missing("stream", "name the stream, which must be there"))?;
    if !plain(&stream) {
        let what = format!("{stream:?} is no name of a stream");
        return Err(Problem::new(entry.key("stream"), what, "write 1 to 64 letters, digits, \"-\" and \"_\""));
    }
    let prefix = raw.prefix.clone().unwrap_or_else(|| "pulsegate".to_owned());
    if prefix.len() > PREFIX_BYTES_MAX || !prefix.split('.').all(plain) {
        let what = format!("{prefix:?} is no beginning of a subject");
        return Err(Problem::new(
            entry.key("prefix"),
            what,
            "write tokens of letters, digits, \"-\" and \"_\", as in \"site-1.edge\"",
        ));
    }
    let written = [&raw.credentials_file, &raw.nkey_file, &raw.username, &raw.password_file].map(Option::as_ref);
    let login = nats_login(context, entry, written, url.is_tls)?;
    let inflight = values::integer(entry.key("inflight"), raw.inflight, 100, INFLIGHT, "messages")? as u16;
    Ok(NatsSink { urls: vec![written_url], stream, make: None, prefix, inflight, login })
}

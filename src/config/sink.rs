//! `[[sink]]`: where what devices say goes by itself.

use std::path::PathBuf;
use std::time::Duration;

use super::TopicTemplate;

/// At most so many sinks: each has threads of its own.
pub const MAX_SINKS: usize = 16;
/// What one sink holds of the uplink in memory, at most, besides one event that is longer: what it has read, and the
/// body or the packets made of it.
pub const SINK_BYTES: u64 = 2 * SINK_WINDOW_BYTES as u64 + (1 << 20);
/// Bytes of events that a sink reads ahead.
pub const SINK_WINDOW_BYTES: usize = 4 << 20;

/// One sink. Its cursor is kept under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sink {
    /// Its name, unique.
    pub name: String,
    /// Messages under topics that one of these filters takes go to it.
    pub topics: Vec<String>,
    /// Whether it is told when devices come and go.
    pub presence: bool,
    /// Whether a sink that is new begins with the oldest event that is held, rather than with the next one.
    pub from_first: bool,
    /// How long a try may take.
    pub timeout: Duration,
    /// How long it waits after the first try that failed, and at most.
    pub retry: (Duration, Duration),
    /// Tries for what the other side refuses for what it is; then it goes to the dead letters.
    pub tries_refused: u32,
    /// Tries for what the other side answers with a fault of its own; 0: without end.
    pub tries_failed: u32,
    /// The largest size of the file of dead letters.
    pub dead_letter_bytes: u64,
    /// How the other side is known, and this one to it.
    pub tls: SinkTls,
    /// What it speaks.
    pub kind: SinkKind,
}

/// `[sink.tls]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkTls {
    /// The authorities of the other side; those of the system unless written.
    pub ca: Option<PathBuf>,
    /// A client certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// What a sink speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkKind {
    /// Batches in requests.
    Http(HttpSink),
    /// Messages to another MQTT broker.
    Mqtt(MqttSink),
    /// Messages to a stream of NATS JetStream.
    Nats(NatsSink),
}

impl SinkKind {
    /// The word in the configuration.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            SinkKind::Http(_) => "http",
            SinkKind::Mqtt(_) => "mqtt",
            SinkKind::Nats(_) => "nats",
        }
    }
}

/// `type = "http"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSink {
    /// Where to.
    pub url: String,
    /// A line of JSON for each event, rather than one object for all.
    pub lines: bool,
    /// At most so many events in a request.
    pub batch_events: usize,
    /// And about so many bytes: no event is added beyond.
    pub batch_bytes: usize,
    /// A file with the key that requests are signed with.
    pub secret_file: Option<PathBuf>,
    /// A file with the value of the header Authorization.
    pub authorization_file: Option<PathBuf>,
}

/// `type = "mqtt"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MqttSink {
    /// The broker's name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether it is spoken to over TLS.
    pub is_tls: bool,
    /// The client identifier; each connection adds its number.
    pub client_id: String,
    /// Who it says that it is.
    pub username: Option<String>,
    /// A file with the password.
    pub password_file: Option<PathBuf>,
    /// The topic of a message.
    pub topic: TopicTemplate,
    /// The topic of a presence event.
    pub presence_topic: TopicTemplate,
    /// Connections; the messages of one device all go through one of them.
    pub connections: usize,
    /// Messages under way on one connection; fewer where the broker says so.
    pub inflight: u16,
    /// The keep-alive.
    pub keep_alive: Duration,
    /// Topics from which commands to devices are taken.
    pub commands: Option<TopicTemplate>,
    /// How long the broker keeps commands while the sink is away.
    pub command_session: Duration,
}

/// `type = "nats"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsSink {
    /// Servers of one cluster, tried in turn; each names the others. At least one.
    pub urls: Vec<String>,
    /// The stream.
    pub stream: String,
    /// How it is made where it is missing; none: it must be there.
    pub make: Option<NatsStream>,
    /// How every subject begins: tokens of letters, digits, `-` and `_`.
    pub prefix: String,
    /// Messages under way; one of each device.
    pub inflight: u16,
    /// Who it says that it is.
    pub login: NatsLogin,
}

/// How a stream is made where it is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatsStream {
    /// How many servers keep it.
    pub replicas: usize,
    /// How long it keeps a message.
    pub retention: Duration,
}

/// How a client of NATS says who it is: one of these ways, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatsLogin {
    /// A file of credentials (JWT and seed).
    pub credentials_file: Option<PathBuf>,
    /// A file with the seed of an NKey.
    pub nkey_file: Option<PathBuf>,
    /// A name.
    pub username: Option<String>,
    /// A file with its password.
    pub password_file: Option<PathBuf>,
}

//! Configuration: what the operator wrote (`RawConfig`, in `raw`) becomes what is true ([`Config`]) in one place, or an
//! error that names file, key and remedy. Nothing below this module sees an unchecked option.

pub mod authenticator;
pub mod budget;
pub mod machine;

mod load;
mod raw;
mod secret;

mod check;
mod error;
mod fleet;
mod locate;
mod sink;
mod template;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::codec::{mqtt, native};
use crate::network::Network;

pub use authenticator::{Authenticator, Endpoint, Hook, Jwt, KeySource, OnError, RsaAlgorithm, is_topic_rule};
pub use budget::{MemoryBudget, memory_budget};
pub use error::{ConfigError, ConfigKey, Problem};
pub use fleet::{FLEET_DEVICE_BYTES, FLEET_SINK, Fleet};
pub use load::{DEVELOPMENT_CERTIFICATES, built_in, load, load_all};
pub use machine::Machine;
pub use secret::Secret;
pub use sink::{
    HttpSink, MAX_SINKS, MqttSink, NatsLogin, NatsSink, NatsStream, SINK_BYTES, SINK_WINDOW_BYTES, Sink, SinkKind,
    SinkTls,
};
pub use template::TopicTemplate;

/// The whole configuration, checked. Every path is absolute or relative to the working directory (paths in a file were
/// relative to that file).
#[derive(Clone, Debug)]
pub struct Config {
    /// This gateway's name in presence events; the host's name unless written.
    pub node: String,
    /// Where the gateway keeps what it makes itself (development certificates).
    pub data_dir: PathBuf,
    /// Worker threads, at least one; `workers = 0` has become the number of cores.
    pub workers: u16,
    /// Lines that name devices and networks that are kept out.
    pub deny_file: Option<PathBuf>,
    /// The control plane's HTTP listener.
    pub admin: Admin,
    /// Every bound.
    pub limits: Limits,
    /// How much may come from one address and from one network.
    pub admission: Admission,
    /// How the gateway ends.
    pub drain: Drain,
    /// What is kept of what happened.
    pub backbone: Backbone,
    /// How this gateway is one of a fleet; none: it is alone.
    pub fleet: Option<Fleet>,
    /// What an acknowledgement promises, and where that is kept.
    pub store: Store,
    /// How much of what devices say is kept for its consumers.
    pub uplink: Uplink,
    /// Where that goes by itself. At most [`MAX_SINKS`]; names are unique.
    pub sinks: Vec<Sink>,
    /// At least one, at most [`MAX_LISTENERS`]; names are unique.
    pub listeners: Vec<Listener>,
}

/// A checked configuration and what is to be said about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What is true.
    pub config: Config,
    /// What it costs; within the machine's memory.
    pub budget: MemoryBudget,
    /// What works, but surely not as meant.
    pub warnings: Vec<String>,
    /// What is worth knowing; for `check-config`.
    pub notes: Vec<String>,
}

/// At most so many listeners: their index travels with each connection as one byte.
pub const MAX_LISTENERS: usize = 64;
/// At most so many workers.
pub const MAX_WORKERS: u16 = 64;

/// The control plane's HTTP listener.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The bearer tokens of which requests must carry one; some when `listen` is not a loopback address. Names and secrets
    /// are unique.
    pub tokens: Vec<AdminToken>,
    /// The files that they were read from.
    pub token_files: Vec<PathBuf>,
    /// Names under which the API answers besides addresses, loopback names and the node's name.
    pub hosts: Vec<String>,
    /// What it is spoken over; none: plain HTTP.
    pub tls: Option<AdminTls>,
}

/// `[admin.tls]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminTls {
    /// A PEM file with the certificate chain, leaf first.
    pub cert: PathBuf,
    /// A PEM file with its key.
    pub key: PathBuf,
    /// The authorities of whoever may ask: every connection must show a certificate of theirs. None: nobody is asked for one.
    pub client_ca: Option<PathBuf>,
}

/// One bearer token of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminToken {
    /// Who holds it, for the log.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// The token.
    pub secret: Secret,
}

/// What a token of the API allows; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// To look, at metrics and messages too.
    Read,
    /// To say something to devices, to publish, and to end connections.
    Command,
    /// To change the gateway itself.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 3] = [Role::Read, Role::Command, Role::Admin];

    /// The word used in the configuration, the API and the log.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Role::Read => "read",
            Role::Command => "command",
            Role::Admin => "admin",
        }
    }
}

/// `[drain]`: how the gateway ends in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Over how long the goodbyes to devices are spread; 0: all at once.
    pub window: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self { window: Duration::from_secs(5) }
    }
}

/// `[backbone]`: the latest events, kept in memory for whoever follows them. Memory is taken as events come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backbone {
    /// At most so many events.
    pub events: usize,
    /// At most so many bytes.
    pub bytes: usize,
}

impl Default for Backbone {
    fn default() -> Self {
        Self { events: 65_536, bytes: 16 << 20 }
    }
}

/// What an acknowledgement promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It is on the disk before it is acknowledged: it survives a loss of power.
    Group,
    /// The system has it before it is acknowledged, and the disk within `store.sync_interval`: it survives the end of
    /// the process, and a loss of power but for that time.
    Interval,
    /// It is in the memory of this process and ends with it.
    Memory,
}

impl Durability {
    /// Every one, by its word.
    pub const WORDS: [(&str, Self); 3] =
        [("group", Self::Group), ("interval", Self::Interval), ("memory", Self::Memory)];

    /// Its word.
    #[must_use]
    pub fn label(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

/// `[store]`: what must survive the process, in a file in the data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// What an acknowledgement promises.
    pub durability: Durability,
    /// With [`Durability::Interval`]: how often what was written is brought to the disk.
    pub sync_interval: Duration,
    /// The file's largest size, in bytes, without its journal.
    pub bytes: u64,
    /// Bytes that may wait to be written, in memory.
    pub queue_bytes: usize,
    /// Bytes of messages that wait in it for devices that are away: topics, properties and payloads.
    pub sessions_bytes: u64,
}

/// What may lie in the store's file, in bytes: each has a bound of its own, so that none takes the place of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreShares {
    /// The uplink: the oldest events go first.
    pub uplink: u64,
    /// Messages of devices that are away.
    pub sessions: u64,
    /// Those of one of them.
    pub one_session: u64,
    /// What else is in sessions: as much as the pool lets them have (messages of devices that are there, filters, wills).
    pub pool: u64,
    /// Retained messages.
    pub retained: u64,
}

impl Config {
    /// Whether a listener speaks MQTT, so that any connection may have a session.
    #[must_use]
    pub fn speaks_mqtt(&self) -> bool {
        self.listeners.iter().any(|listener| matches!(listener.protocol, Protocol::Mqtt(_)))
    }

    /// What may lie in the store's file; `None`: there is no store.
    #[must_use]
    pub fn store_shares(&self) -> Option<StoreShares> {
        let limits = &self.limits;
        let of_mqtt = |bytes: u64| if self.speaks_mqtt() { bytes } else { 0 };
        (self.store.durability != Durability::Memory).then(|| StoreShares {
            uplink: self.uplink.retention_bytes,
            sessions: of_mqtt(self.store.sessions_bytes),
            one_session: of_mqtt(self.store.sessions_bytes.min(limits.session_bytes as u64)),
            pool: of_mqtt(limits.pool_bytes as u64 / 2),
            retained: of_mqtt(limits.retained_bytes as u64),
        })
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            durability: Durability::Group,
            sync_interval: Duration::from_secs(1),
            bytes: 2 << 30,
            queue_bytes: 4 << 20,
            sessions_bytes: 512 << 20,
        }
    }
}

impl Store {
    /// What the store takes of memory at the most: events and changes that wait, as much again in the group that is being
    /// written, once more the changes while the disk is full, and the pages that its three connections keep.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        const PAGES: u64 = 3 * (2_000 << 10);
        match self.durability {
            Durability::Memory => 0,
            Durability::Group | Durability::Interval => 5 * self.queue_bytes as u64 + PAGES,
        }
    }
}

/// `[uplink]`: what devices say and when they come and go, kept for consumers until it is too old or too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// For how long.
    pub retention: Duration,
    /// At most so many bytes.
    pub retention_bytes: u64,
}

impl Default for Uplink {
    fn default() -> Self {
        Self { retention: Duration::from_hours(7 * 24), retention_bytes: 1 << 30 }
    }
}

/// Every bound of the gateway (`[limits]`). Counts are of the whole gateway unless they say otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections held, devices and those that are still becoming one. No more than descriptors allow.
    pub connections: u32,
    /// TLS handshakes in progress, per worker; further ones wait their turn.
    pub handshakes: u32,
    /// From accept to the end of the handshake.
    pub handshake_time: Duration,
    /// From the end of the handshake until the device has named itself.
    pub hello_time: Duration,
    /// Bytes read from one connection in one turn; the rest waits for the next.
    pub read_bytes: usize,
    /// The longest frame body taken from a device, in bytes; at most 65,535.
    pub frame_bytes: usize,
    /// Unsent bytes kept for one connection before it is closed as a slow consumer.
    pub outbox_bytes: usize,
    /// Commands waiting in one worker's inbox.
    pub inbox_length: usize,
    /// Events waiting between one worker and the control plane before messages are refused.
    pub uplink_length: usize,
    /// New connections are refused before TLS while the loop is later than this.
    pub shed_lateness: Duration,
    /// How long a closed connection may go on delivering its last bytes.
    pub linger_time: Duration,
    /// The longest MQTT packet taken from a device, its fixed header included, in bytes (Maximum Packet Size).
    pub packet_bytes: usize,
    /// The longest CONNECT taken, of whoever it may be; at most `packet_bytes`.
    pub connect_bytes: usize,
    /// MQTT sessions kept while their devices are away.
    pub sessions: u32,
    /// QoS 1 and 2 messages in flight at a time in one session, each way (Receive Maximum).
    pub session_inflight: u16,
    /// Messages that wait in one session.
    pub session_messages: usize,
    /// Bytes that they may take, topics and payloads.
    pub session_bytes: usize,
    /// Subscriptions of one session.
    pub session_subscriptions: usize,
    /// Levels of a topic or filter.
    pub topic_levels: usize,
    /// Retained messages; each worker keeps them all (their payloads are shared).
    pub retained_messages: usize,
    /// Bytes that they may take, topics and payloads.
    pub retained_bytes: usize,
    /// Variable bytes of the whole gateway, divided among the workers: half packets, unsent bytes, messages that wait or
    /// are in flight, filters, wills, messages between workers.
    pub pool_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 200_000,
            handshakes: 512,
            handshake_time: Duration::from_secs(10),
            hello_time: Duration::from_secs(10),
            read_bytes: 16_384,
            frame_bytes: 16_384,
            outbox_bytes: 65_536,
            inbox_length: 8_192,
            uplink_length: 65_536,
            shed_lateness: Duration::from_secs(2),
            linger_time: Duration::from_secs(2),
            packet_bytes: 262_144,
            connect_bytes: 65_536,
            sessions: 100_000,
            session_inflight: 64,
            session_messages: 1_000,
            session_bytes: 1 << 20,
            session_subscriptions: 256,
            topic_levels: 200,
            retained_messages: 100_000,
            retained_bytes: 64 << 20,
            pool_bytes: 256 << 20,
        }
    }
}

/// `[admission]`: how much may come from one address and from one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Networks that these bounds are not about.
    pub allow: Vec<Network>,
    /// Of one IPv4 address, or one IPv6 /64.
    pub address: ConnectionBounds,
    /// Of one IPv4 /24, or one IPv6 /48.
    pub network: ConnectionBounds,
}

/// How many connections, and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionBounds {
    /// Live ones; 0: no bound.
    pub connections: u32,
    /// New ones in a second, once the burst is used up; 0: no bound.
    pub per_second: u32,
    /// New ones at once.
    pub burst: u32,
}

impl Admission {
    /// The defaults for a gateway that holds so many connections: what no fleet behind a NAT meets (docs/OPERATING.md says
    /// why).
    #[must_use]
    pub fn for_connections(connections: u32) -> Self {
        // A NAT has no more ports than this towards one port of ours.
        const PORTS: u32 = 65_536;
        let address = ConnectionBounds { connections: PORTS, per_second: 1_000, burst: PORTS };
        // A whole fleet may come out of one operator's network: four such addresses, and never less than all that there is
        // room for.
        let many = (4 * PORTS).max(connections).min(10_000_000);
        let network = ConnectionBounds { connections: many, per_second: 4_000, burst: many };
        Self { allow: Vec::new(), address, network }
    }
}

/// One listening address and all that holds for its connections.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its name in metrics and the API.
    pub name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// What is spoken within TLS.
    pub protocol: Protocol,
    /// What carries it there.
    pub transport: Transport,
    /// Networks of proxies that say, by the PROXY protocol, whose connections they bring.
    pub proxy_protocol: Vec<Network>,
    /// Certificates, and whether clients must have one.
    pub tls: Tls,
    /// How silence is probed and judged; not used by MQTT, whose devices bring their keep-alive.
    pub heartbeat: Heartbeat,
    /// Where device ids come from.
    pub identity: Identity,
    /// How fast each device may send.
    pub rates: Rates,
}

impl Listener {
    /// The protocols that are agreed on by ALPN; a client may offer none. Empty: whatever a client offers.
    #[must_use]
    pub const fn alpn(&self) -> &'static [&'static [u8]] {
        match (&self.transport, &self.protocol) {
            (Transport::WebSocket(_), _) => &[b"http/1.1"],
            (Transport::Tls, Protocol::Native) => &[native::ALPN],
            (Transport::Tls, Protocol::Raw(_)) => &[],
            (Transport::Tls, Protocol::Mqtt(_)) => &[mqtt::ALPN],
        }
    }
}

/// What carries the device protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TLS alone.
    Tls,
    /// WebSocket within TLS.
    WebSocket(WebSocket),
}

/// `[listener.websocket]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSocket {
    /// The path that is asked for.
    pub path: String,
    /// The origins of pages whose browsers may connect; empty: any.
    pub origins: Vec<String>,
    /// Networks of proxies that must say in X-Forwarded-For whose connections they bring.
    pub forwarded_from: Vec<Network>,
}

impl Default for WebSocket {
    fn default() -> Self {
        Self { path: "/mqtt".to_owned(), origins: Vec::new(), forwarded_from: Vec::new() }
    }
}

/// What is spoken within TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The native framing (docs/PROTOCOL.md).
    Native,
    /// Opaque bytes.
    Raw(Raw),
    /// MQTT 3.1, 3.1.1 and 5.0, as each CONNECT says.
    Mqtt(Mqtt),
}

impl Protocol {
    /// The word used in the configuration, the API and metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Protocol::Native => "native",
            Protocol::Raw(_) => "raw",
            Protocol::Mqtt(_) => "mqtt",
        }
    }
}

/// `[listener.raw]`. Each may be empty, which turns it off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Raw {
    /// Bytes that, arriving alone, are a heartbeat: life, but nothing for the backend.
    pub heartbeat: Vec<u8>,
    /// Sent back for each such heartbeat.
    pub reply: Vec<u8>,
    /// Sent by the gateway after silence.
    pub probe: Vec<u8>,
}

/// `[listener.mqtt]`. Rules and filters are topic filters; `{device}` in a rule stands for the device's own id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mqtt {
    /// The longest keep-alive taken; whole seconds. `None`: whatever a device asks for, also none at all.
    pub keep_alive_max: Option<Duration>,
    /// How long a session is kept while its device is away, whatever it asks for; whole seconds. Also how long those of
    /// MQTT 3.1.1 are, which cannot ask. 0: no session outlives its connection.
    pub session_expiry_max: Duration,
    /// Filters of the topics whose messages go up to the backbone too.
    pub uplink: Vec<String>,
    /// Where devices may publish.
    pub publish: Vec<String>,
    /// What devices may subscribe to.
    pub subscribe: Vec<String>,
}

impl Default for Mqtt {
    fn default() -> Self {
        let own = || vec!["devices/{device}/#".to_owned()];
        Self {
            keep_alive_max: None,
            session_expiry_max: Duration::from_hours(24 * 7),
            uplink: vec!["#".to_owned()],
            publish: own(),
            subscribe: own(),
        }
    }
}

/// `[listener.tls]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// At least one certificate chain with its key; by SNI, the first one also for clients that send none.
    pub certificates: Vec<CertificateFiles>,
    /// The authorities that client certificates are checked against; present unless `client_auth` is off.
    pub client_ca: Option<PathBuf>,
    /// Whether client certificates are asked for.
    pub client_auth: ClientAuth,
    /// The revocation lists of client certificates.
    pub crl: Option<Crl>,
    /// What becomes of a live connection whose certificate was revoked.
    pub on_revoked: WhenOver,
    /// What becomes of a live connection whose certificate ends.
    pub on_expired: WhenOver,
    /// The protocol versions that are spoken.
    pub versions: TlsVersions,
    /// The longest record, with all that stands around its plaintext, for a client that wished for nothing smaller.
    pub record_bytes: usize,
    /// How sessions are resumed; none: not at all.
    pub tickets: Option<Tickets>,
    /// The longest that a connection lives, if it is bounded: it ends somewhere in the last tenth before.
    pub max_connection_age: Option<Duration>,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            certificates: Vec::new(),
            client_ca: None,
            client_auth: ClientAuth::Off,
            crl: None,
            on_revoked: WhenOver::Close,
            on_expired: WhenOver::Keep,
            versions: TlsVersions::Both,
            record_bytes: RECORD_BYTES,
            tickets: Some(Tickets::default()),
            max_connection_age: None,
        }
    }
}

/// A whole record fits 4 KB: a small device may have no room for more.
const RECORD_BYTES: usize = 4_096;

/// `[listener.tls.crl]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crl {
    /// PEM files, each with at least one list.
    pub files: Vec<PathBuf>,
    /// Whether a list that should have been renewed still counts.
    pub accept_expired: bool,
    /// Whether a certificate that no list is about gets in.
    pub accept_unknown: bool,
    /// Whether the device's own certificate alone is looked up.
    pub leaf_only: bool,
}

/// What becomes of a live connection whose certificate holds no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenOver {
    /// It is closed.
    Close,
    /// It lives on until it ends for another reason.
    Keep,
}

/// The protocol versions that are spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsVersions {
    /// TLS 1.2 and 1.3.
    Both,
    /// TLS 1.2 alone.
    Tls12,
    /// TLS 1.3 alone.
    Tls13,
}

/// How sessions are resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tickets {
    /// From the full handshake on.
    pub lifetime: Duration,
    /// Keys that a fleet of gateways shares; none: keys of one's own.
    pub keys: Option<PathBuf>,
}

impl Default for Tickets {
    fn default() -> Self {
        Self { lifetime: Duration::from_hours(12), keys: None }
    }
}

/// A PEM certificate chain and its PEM private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, leaf first.
    pub cert: PathBuf,
    /// The leaf's private key (PKCS#8, SEC1 or PKCS#1).
    pub key: PathBuf,
    /// An OCSP response (DER) that is shown with it.
    pub ocsp: Option<PathBuf>,
}

/// Whether client certificates are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Not asked for.
    Off,
    /// Asked for; one that is sent must be right.
    Optional,
    /// A connection without a right one is refused.
    Required,
}

/// `[listener.heartbeat]`: after `interval` of silence a probe, after `timeout` without an answer another, `retries`
/// times; then the connection is expired. A silent device is gone after `interval + timeout × (retries + 1)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Silence before the first probe; also the interval for devices that ask for none.
    pub interval: Duration,
    /// Wait for the answer to one probe.
    pub timeout: Duration,
    /// Further probes after the first.
    pub retries: u8,
    /// The longest interval that a native device may ask for; one that asks for more gets this. At least `interval`.
    pub max: Duration,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self {
            interval: Duration::from_mins(1),
            timeout: Duration::from_secs(10),
            retries: 2,
            max: Duration::from_mins(10),
        }
    }
}

impl Heartbeat {
    /// How long a silent device stays: `interval + timeout × (retries + 1)`, to a tick.
    #[must_use]
    pub fn bound(&self) -> Duration {
        self.interval + self.timeout * (u32::from(self.retries) + 1)
    }
}

/// `[listener.rates]`: how fast each device may send. Whoever sends more is read no further until its rate has caught up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Messages; 0: no bound.
    pub messages_per_second: u32,
    /// Bytes on the wire; 0: no bound.
    pub bytes_per_second: u32,
    /// What these come to in so long may come at once.
    pub burst: Duration,
    /// A device that sends more than its rate for so long is closed; 0: never.
    pub patience: Duration,
    /// And is kept out for so long; 0: it may come back at once.
    pub deny_for: Duration,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            messages_per_second: 0,
            bytes_per_second: 0,
            burst: Duration::from_secs(10),
            patience: Duration::from_mins(1),
            deny_for: Duration::from_mins(10),
        }
    }
}

/// `[listener.identity]`.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Where a device's id comes from.
    pub from: IdentityFrom,
    /// Who is asked, in order; the first that applies decides. Empty: nobody, and whoever TLS lets in comes in. `token_file`
    /// and `password_file` are a list of one.
    pub authenticators: Vec<Authenticator>,
}

impl Identity {
    /// The file of tokens or passwords, if there is one.
    #[must_use]
    pub fn secrets(&self) -> Option<&authenticator::Secrets> {
        self.authenticators.iter().find_map(|one| match one {
            Authenticator::Secrets(secrets) => Some(secrets),
            _ => None,
        })
    }

    /// How tokens are verified, if they are.
    #[must_use]
    pub fn jwt(&self) -> Option<&Jwt> {
        self.authenticators.iter().find_map(|one| match one {
            Authenticator::Jwt(jwt) => Some(&**jwt),
            _ => None,
        })
    }

    /// The HTTP service that is asked, if there is one.
    #[must_use]
    pub fn hook(&self) -> Option<&Hook> {
        self.authenticators.iter().find_map(|one| match one {
            Authenticator::Hook(hook) => Some(&**hook),
            _ => None,
        })
    }
}

/// Where a device's id comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityFrom {
    /// The device says it (native only).
    Hello,
    /// The client identifier in CONNECT (MQTT only).
    ClientId,
    /// The user name in CONNECT, which the client identifier must equal or leave empty (MQTT only).
    Username,
    /// The common name of the client certificate's subject. On a raw listener, connections without a certificate get a
    /// generated id.
    CertCn,
    /// The first DNS name of the client certificate's subject alternative names.
    CertSanDns,
    /// The first URI of the client certificate's subject alternative names.
    CertSanUri,
}

impl IdentityFrom {
    /// The word used in the configuration and the API.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            IdentityFrom::Hello => "hello",
            IdentityFrom::ClientId => "client-id",
            IdentityFrom::Username => "username",
            IdentityFrom::CertCn => "cert-cn",
            IdentityFrom::CertSanDns => "cert-san-dns",
            IdentityFrom::CertSanUri => "cert-san-uri",
        }
    }
}

//! `[[listener]]`: where devices come in, in which protocol, and what holds for their connections.

use super::{Identity, Tls};
use crate::codec::{mqtt, native};
use crate::network::Network;
use std::net::SocketAddr;
use std::time::Duration;

/// The most application protocols of one listener.
pub const ALPN_MAX: usize = 8;

/// One listening address and all that holds for its connections.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its name in metrics and the API.
    pub name: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The listener whose port this is. Clients come to this one by their application protocol.
    pub shares: Option<String>,
    /// Application protocols, the preferred one first; none: that of what is spoken.
    pub alpn: Option<Vec<String>>,
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
    /// The protocols that are agreed on by ALPN (RFC 7301), the preferred one first; a client may offer none. Empty: whatever a
    /// client offers.
    #[must_use]
    pub fn alpn(&self) -> Vec<&[u8]> {
        if let Some(written) = &self.alpn {
            return written.iter().map(String::as_bytes).collect();
        }
        match (&self.transport, &self.protocol) {
            (Transport::WebSocket(_), _) => vec![b"http/1.1"],
            (Transport::Tls, Protocol::Native) => vec![native::ALPN],
            (Transport::Tls, Protocol::Raw(_)) => Vec::new(),
            (Transport::Tls, Protocol::Mqtt(_)) => vec![mqtt::ALPN],
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

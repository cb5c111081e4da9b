//! What the configuration says of a listener's connections, in the units in which they need it.

use std::sync::Arc;
use std::time::Duration;

use super::{Schedule, protocol};
use crate::config::{
    Authenticator, Heartbeat, Identity, IdentityFrom, Limits, Listener, Protocol, Rates, Transport, WebSocket, WhenOver,
};
use crate::link::{DenyList, ListenerId};
use crate::network::Network;
use crate::time::ticks_ceil;
use crate::tls::handshake::ServerTls;

/// What holds for every connection of one listener, from the configuration.
pub struct ListenerSettings {
    /// Which listener.
    pub listener: ListenerId,
    /// Networks of proxies that announce whose connections they bring.
    pub proxies: Vec<Network>,
    /// Its name, for the log.
    pub name: Box<str>,
    /// What is spoken.
    pub protocol: Protocol,
    /// The WebSocket that it is spoken over, if it is.
    pub websocket: Option<WebSocket>,
    /// Certificates and all else that a handshake needs.
    pub tls: ServerTls,
    /// The listeners that share its port.
    pub port: Port,
    /// What becomes of a connection whose certificate was revoked.
    pub on_revoked: WhenOver,
    /// What becomes of a connection whose certificate has ended.
    pub on_expired: WhenOver,
    /// The longest that a connection lives, in ticks.
    pub max_age_ticks: Option<u32>,
    /// Where ids come from.
    pub identity: IdentityFrom,
    /// What is asked of whoever comes.
    pub entry: Entry,
    /// Liveness as configured.
    pub heartbeat: Heartbeat,
    /// The same in ticks.
    pub schedule: Schedule,
    /// From accept to the end of the handshake, in ticks.
    pub handshake_ticks: u32,
    /// From there until the device is named, in ticks.
    pub hello_ticks: u32,
    /// How long the last bytes may take, in ticks.
    pub linger_ticks: u32,
    /// The longest frame body taken; of MQTT the longest packet.
    pub frame_bytes: usize,
    /// The longest CONNECT taken.
    pub connect_bytes: usize,
    /// The most bytes read at a time.
    pub read_bytes: usize,
    /// The most unsent bytes kept.
    pub outbox_bytes: usize,
    /// The most that an MQTT device is sent in one turn, but for one packet, which always goes.
    pub turn_bytes: usize,
    /// Levels of a topic.
    pub topic_levels: usize,
    /// Who may not come in; one list for all listeners.
    pub deny: Arc<DenyList>,
    /// How fast each device may send; none: as fast as it likes.
    pub rates: Option<RateRules>,
}

/// The listeners of one port, and the application protocols (ALPN, RFC 7301) by which clients choose among them. Empty: it is one
/// listener's alone. At most [`MAX_LISTENERS`](crate::config::MAX_LISTENERS) times [`ALPN_MAX`](crate::config::ALPN_MAX) protocols, looked at once
/// for each connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// The preferred one first.
    protocols: Vec<Box<[u8]>>,
    /// Whose they are.
    listeners: Vec<ListenerId>,
}

impl Port {
    /// That of the listener at this position: its own protocols first, then those of the others in their order.
    #[must_use]
    pub fn of(listeners: &[Listener], position: usize) -> Self {
        let owner = &listeners[position];
        let shares = |listener: &Listener| listener.shares.as_deref() == Some(&*owner.name);
        let mut port = Self::default();
        if !listeners.iter().any(shares) {
            return port;
        }
        let others = listeners.iter().enumerate().filter(|(_, listener)| shares(listener));
        for (position, listener) in std::iter::once((position, owner)).chain(others) {
            for protocol in listener.alpn() {
                port.protocols.push(protocol.into());
                port.listeners.push(ListenerId(position as u8));
            }
        }
        port
    }

    /// What its clients are looked at for.
    #[must_use]
    pub fn protocols(&self) -> &[Box<[u8]>] {
        &self.protocols
    }

    /// Whose the protocol at this position is.
    #[must_use]
    pub fn listener(&self, position: usize) -> ListenerId {
        self.listeners[position]
    }
}

/// How fast a device may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateRules {
    /// Messages; 0: no bound.
    pub messages_per_second: u32,
    /// Bytes on the wire; 0: no bound.
    pub bytes_per_second: u32,
    /// What these come to in so long may come at once.
    pub burst: Duration,
    /// For how long it may send more, if that is bounded.
    pub patience: Option<Duration>,
    /// For how long it is kept out then; zero: not at all.
    pub keep_out: Duration,
}

impl RateRules {
    fn of(rates: &Rates) -> Option<Self> {
        let is_on = rates.messages_per_second > 0 || rates.bytes_per_second > 0;
        is_on.then(|| Self {
            messages_per_second: rates.messages_per_second,
            bytes_per_second: rates.bytes_per_second,
            burst: rates.burst,
            patience: Some(rates.patience).filter(|patience| !patience.is_zero()),
            keep_out: rates.deny_for,
        })
    }
}

/// What of a listener's authenticators its connections must know; the rest is the control plane's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "independent answers to five questions")]
pub struct Entry {
    /// Somebody is asked before a device comes in.
    pub asks: bool,
    /// But for whom a client certificate names.
    pub certificate_passes: bool,
    /// Whoever offers no token and no password is refused without asking.
    pub needs_secret: bool,
    /// Where a certificate is to name the device and there is none, what else it proves itself by may.
    pub names_otherwise: bool,
    /// MQTT's authentication method "token" is taken.
    pub takes_method: bool,
}

impl Entry {
    fn new(identity: &Identity) -> Self {
        let list = &identity.authenticators;
        let has = |kind: fn(&Authenticator) -> bool| list.iter().any(kind);
        let has_certificate = has(|one| matches!(one, Authenticator::Certificate));
        let has_hook = has(|one| matches!(one, Authenticator::Hook(_)));
        Self {
            asks: !list.is_empty(),
            certificate_passes: matches!(list.first(), Some(Authenticator::Certificate)),
            needs_secret: !has_certificate && !has_hook,
            names_otherwise: has_certificate && list.len() > 1,
            takes_method: has_hook || has(|one| matches!(one, Authenticator::Jwt(_))),
        }
    }
}

impl ListenerSettings {
    /// The settings of the listener `id` as it is configured, with its loaded certificates.
    #[must_use]
    pub fn new(id: ListenerId, listener: &Listener, limits: &Limits, tls: ServerTls) -> Self {
        let heartbeat = listener.heartbeat;
        let schedule = Schedule {
            interval: ticks_ceil(heartbeat.interval),
            timeout: ticks_ceil(heartbeat.timeout),
            retries: heartbeat.retries,
            probes: protocol::has_probes(&listener.protocol),
        };
        assert!(u16::try_from(schedule.interval).is_ok(), "the configuration bounds intervals");
        let (frame_bytes, outbox_bytes) = protocol::bounds(&listener.protocol, limits);
        Self {
            listener: id,
            proxies: listener.proxy_protocol.clone(),
            name: listener.name.as_str().into(),
            protocol: listener.protocol.clone(),
            websocket: match &listener.transport {
                Transport::Tls => None,
                Transport::WebSocket(websocket) => Some(websocket.clone()),
            },
            tls,
            port: Port::default(),
            on_revoked: listener.tls.on_revoked,
            on_expired: listener.tls.on_expired,
            max_age_ticks: listener.tls.max_connection_age.map(ticks_ceil),
            identity: listener.identity.from,
            entry: Entry::new(&listener.identity),
            heartbeat,
            schedule,
            handshake_ticks: ticks_ceil(limits.handshake_time),
            hello_ticks: ticks_ceil(limits.hello_time),
            linger_ticks: ticks_ceil(limits.linger_time),
            frame_bytes,
            connect_bytes: limits.connect_bytes.min(frame_bytes),
            read_bytes: limits.read_bytes,
            outbox_bytes,
            turn_bytes: limits.outbox_bytes / 2,
            topic_levels: limits.topic_levels,
            deny: Arc::default(),
            rates: RateRules::of(&listener.rates),
        }
    }

    /// The same, at a port that others share.
    #[must_use]
    pub fn with_port(self, port: Port) -> Self {
        Self { port, ..self }
    }

    /// The same, with a list of who may not come in.
    #[must_use]
    pub fn with_deny(self, deny: Arc<DenyList>) -> Self {
        Self { deny, ..self }
    }
}

//! Configuration: what the operator wrote (`RawConfig`, in `raw`) becomes what is true ([`Config`]) in one place, or an
//! error that names file, key and remedy. Nothing below this module sees an unchecked option.

pub mod authenticator;
pub mod budget;
pub mod machine;

mod admin;
mod identity;
mod limits;
mod listener;
mod load;
mod raw;
mod secret;

mod check;
mod error;
mod fleet;
mod locate;
mod sink;
mod store;
mod template;
mod tls;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use admin::{Admin, AdminTls, AdminToken, Role};
pub use authenticator::{Authenticator, Endpoint, Hook, Jwt, KeySource, OnError, RsaAlgorithm, is_topic_rule};
pub use budget::{MemoryBudget, memory_budget};
pub use check::ports_fit;
pub use error::{ConfigError, ConfigKey, Problem};
pub use fleet::{
    FLEET_BEHIND_BYTES, FLEET_DEVICE_BYTES, FLEET_GROUPS_BYTES, FLEET_INTAKE_BYTES, FLEET_PUBLICATIONS_BYTES,
    FLEET_SINK, Fleet, FleetUplink,
};
pub use identity::{Identity, IdentityFrom};
pub use limits::{Admission, Backbone, ConnectionBounds, Drain, Limits, Uplink};
pub use listener::{ALPN_MAX, Heartbeat, Listener, Mqtt, Protocol, Rates, Raw, Transport, WebSocket};
pub use load::{DEVELOPMENT_CERTIFICATES, built_in, load, load_all};
pub use machine::Machine;
pub use secret::Secret;
pub use sink::{
    HttpSink, MAX_SINKS, MqttSink, NatsLogin, NatsSink, NatsStream, SINK_BYTES, SINK_WINDOW_BYTES, Sink, SinkKind,
    SinkTls,
};
pub use store::{Durability, Store, StoreShares};
pub use template::TopicTemplate;
pub use tls::{CertificateFiles, ClientAuth, Crl, Tickets, Tls, TlsVersions, WhenOver};

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

impl Config {
    /// Whether a listener speaks MQTT, so that any connection may have a session.
    #[must_use]
    pub fn speaks_mqtt(&self) -> bool {
        self.listeners.iter().any(|listener| matches!(listener.protocol, Protocol::Mqtt(_)))
    }

    /// How many ports devices come to.
    #[must_use]
    pub fn ports(&self) -> usize {
        self.listeners.iter().filter(|listener| listener.shares.is_none()).count()
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
            commands: if self.fleet.is_some() { 0 } else { self.store.commands_bytes },
        })
    }
}

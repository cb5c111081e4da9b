//! `[backbone.nats]`: several gateways that are one fleet, over NATS JetStream.

use std::time::Duration;

use super::{NatsLogin, SinkTls};

/// What the fleet keeps of one device in memory, in bytes: its row and what is to become of it, twice, because a device that has
/// left is known until its row is gone while another takes its place.
pub const FLEET_DEVICE_BYTES: u64 = 448;

/// What a shard keeps of one session that owes its device something, in bytes, at the fill that its table has on average: how far back in
/// the fleet's stream it may have to be read.
pub const FLEET_BEHIND_BYTES: u64 = 88;

/// Messages published at other gateways that are on their way to shards, and with them and not settled, in bytes at most.
pub const FLEET_INTAKE_BYTES: usize = 8 << 20;
/// Messages for groups of shared subscribers that NATS was asked for and that no shard has, in bytes, but for one larger one of each group.
pub const FLEET_GROUPS_BYTES: usize = 8 << 20;
/// Both with what one question to NATS brings, as the memory budget has it.
pub const FLEET_PUBLICATIONS_BYTES: u64 = (FLEET_INTAKE_BYTES + FLEET_GROUPS_BYTES) as u64 + (2 << 20);

/// The name of the sink by which what devices say goes into the fleet's stream.
pub const FLEET_SINK: &str = "fleet-uplink";

/// How this gateway is one of a fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fleet {
    /// Servers of one cluster, tried in turn; each names the others. At least one.
    pub urls: Vec<String>,
    /// Whether they are spoken to over TLS.
    pub is_tls: bool,
    /// How they are known, and this gateway to them.
    pub tls: SinkTls,
    /// Who it says that it is.
    pub login: NatsLogin,
    /// How every subject and every bucket of the fleet begins: one token of letters, digits, `-` and `_`.
    pub prefix: String,
    /// How many servers keep each bucket.
    pub replicas: usize,
    /// How long a gateway that says nothing counts as there. The same at every gateway.
    pub lease: Duration,
    /// How long one question to NATS may take.
    pub timeout: Duration,
    /// How long it waits after the first try to connect that failed, and at most.
    pub retry: (Duration, Duration),
    /// Rows of devices written or removed in a second, at most.
    pub writes_per_second: u32,
    /// Whether `/readyz` says yes while NATS is away.
    pub ready_without_nats: bool,
    /// What becomes of what devices say.
    pub uplink: FleetUplink,
}

/// What becomes of what devices say at a gateway of a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FleetUplink {
    /// It stays in the gateway's own log.
    Off,
    /// It is acknowledged when it is in the gateway's own log, and goes from there into a stream of the fleet.
    Local,
    /// It goes the same way, and is acknowledged when the stream has it.
    Stream,
}

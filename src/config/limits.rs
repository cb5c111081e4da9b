//! `[limits]`, `[admission]`, and the bounds of what is kept in memory, as they are meant; with their defaults.

use crate::network::Network;
use std::time::Duration;

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

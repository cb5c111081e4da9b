//! What a configuration costs at its bounds, item by item, and what the machine can carry: memory and descriptors.
//!
//! The items are what a full gateway holds, at rest, in a reconnect storm and under peers that are slow, silent or hostile:
//! whatever varies with what they do is taken from one pool of a fixed size (decision 0013).

use std::fmt;

use super::machine::{Memory, MemorySource};
use super::{Backbone, Limits, SINK_BYTES, Store};

/// The plain data of one idle connection, its slot included.
pub const CONNECTION_BYTES: u64 = 256;
/// Its entry in the timing wheel: two links and a deadline.
pub const WHEEL_ENTRY_BYTES: u64 = 12;
/// Its descriptor, in the worker's own array.
pub const SOCKET_BYTES: u64 = 4;
/// Its place in the device table, at the fill that the table has on average.
pub const TABLE_ENTRY_BYTES: u64 = 21;
/// Its device id on the heap.
pub const DEVICE_ID_BYTES: u64 = 32;
/// Where it is counted of its address, which it says when it ends.
pub const COUNTED_BYTES: u64 = 4;
/// All that the gateway itself keeps for one idle connection.
pub const IDLE_BYTES: u64 =
    CONNECTION_BYTES + WHEEL_ENTRY_BYTES + SOCKET_BYTES + TABLE_ENTRY_BYTES + DEVICE_ID_BYTES + COUNTED_BYTES;
/// A TLS handshake in progress.
pub const HANDSHAKE_BYTES: u64 = 9_728;
/// A worker's own: stack, scratch buffers, the wheel's slots, its batch of events.
pub const WORKER_BYTES: u64 = 1 << 20;
/// One place in a worker's inbox.
pub const INBOX_ENTRY_BYTES: u64 = 88;
/// One place in a worker's uplink.
pub const UPLINK_ENTRY_BYTES: u64 = 184;
/// The control plane, certificates, the program's own data.
pub const CONTROL_BYTES: u64 = 16 << 20;
/// Answers of the HTTP API that are made or not read yet, where there is memory enough;
pub const ANSWER_BYTES: u64 = 16 << 20;
/// where there is less, a part of what the pool has, which follows the memory that there is,
const ANSWER_PART: u64 = 16;
/// and so much in any case,
const ANSWER_BYTES_MIN: u64 = 2 << 20;
/// or so many times the longest packet, where that is more: it may be the only event of an answer.
const ANSWER_PACKETS: u64 = 16;
/// How many ends of connections are remembered.
pub const ENDS_MAX: u64 = 32_768;
/// What one end takes with its texts, at most.
pub const END_BYTES: u64 = 400;
/// The MQTT session of a connected device, with one subscription to a filter of its own.
pub const SESSION_BYTES: u64 = 280;
/// Of that, the filter with its subscription.
pub const FILTER_BYTES: u64 = 168;
/// The will of a connected device; what a longer one takes beyond that comes out of the pool.
pub const WILL_BYTES: u64 = 320;
/// The same while its device is away: the device's id and its place in a table are then the session's own, and what waits lies in
/// the store.
pub const AWAY_SESSION_BYTES: u64 =
    SESSION_BYTES + DEVICE_ID_BYTES + TABLE_ENTRY_BYTES + WHEEL_ENTRY_BYTES + STORED_BYTES;
/// How many messages lie in the store for a device that is away, in a table, at the fill that it has on average.
pub const STORED_BYTES: u64 = 56;
/// A retained message beyond its topic, properties and payload, and its publisher's entry among the shares, once for all workers.
pub const RETAINED_BYTES: u64 = 248;
/// Its place in one worker's table, at the fill that the table has on average.
pub const RETAINED_ENTRY_BYTES: u64 = 28;
/// Entries of the table of addresses, whose connections are counted.
pub const ADDRESSES: u64 = 65_536;
/// What one takes, its part of a lock included.
pub const ADDRESS_BYTES: u64 = 33;
/// Devices that are known to be waited for by commands, for each place where commands wait.
pub const COMMAND_DEVICES: u64 = 200_000;
/// What one takes: a hash of its id in a table, and its part of what is kept of the 2,048 that are told or are to be tried again.
pub const COMMAND_DEVICE_BYTES: u64 = 16;
/// What the kernel keeps for one quiet socket in epoll. Not in the process's figures, but of the same memory.
pub const KERNEL_BYTES: u64 = 4_040;
/// What a socket is asked to take before it is read; the kernel doubles it, for what it keeps beside. It grows no further.
pub const RECEIVE_BYTES: u64 = 64 << 10;
/// What it keeps unsent for a peer that does not read.
pub const UNSENT_BYTES: u64 = 16 << 10;
/// What the kernel keeps at most for a socket that waits: for its gateway, since publishers are made to wait, or for its peer.
pub const WAITING_BYTES: u64 = 2 * RECEIVE_BYTES + UNSENT_BYTES;
/// So many of those are provided for. How many there are is not up to the gateway: what more of them take comes out of what
/// net.ipv4.tcp_mem lets all sockets of the machine have, or out of the control group.
pub const WAITING_SOCKETS: u64 = 128;
/// Where there is less than 1 GiB of memory, it is one in so many bytes: what the machine lets sockets have is a part of its memory too.
const WAITING_PART: u64 = (1 << 30) / WAITING_SOCKETS;

/// The line of the budget for the sessions of connected devices.
const SESSIONS: &str = "sessions";
/// The line of the budget for their wills.
const WILLS: &str = "wills";

/// Places that a worker keeps free in its descriptor table for connections that come home: so many come in one message.
pub const DESCRIPTORS_SPARE: u64 = 64;
/// Of a thousand descriptors, so many are counted on: a hash never spreads devices quite evenly over the workers.
const DESCRIPTORS_USABLE_PER_THOUSAND: u64 = 980;

/// One line of the budget: `count` times `each` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// What it is for.
    pub what: &'static str,
    /// How many.
    pub count: u64,
    /// What one takes, in bytes.
    pub each: u64,
}

impl Item {
    /// `count × each`, in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.count.saturating_mul(self.each)
    }
}

/// The memory that the gateway needs at its bounds, beside what there is. `Display` draws it as a small table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryBudget {
    /// What the process itself holds.
    pub items: Vec<Item>,
    /// What the kernel holds for it.
    pub kernel: Item,
    /// What it holds beyond that for sockets that wait.
    pub waiting: Item,
    /// What there is.
    pub memory: Memory,
}

/// What answers of the HTTP API may take together.
#[must_use]
pub fn answer_bytes(limits: &Limits) -> u64 {
    let part = (limits.pool_bytes as u64 / ANSWER_PART).clamp(ANSWER_BYTES_MIN, ANSWER_BYTES);
    part.max(ANSWER_PACKETS * limits.packet_bytes as u64)
}

/// The budget of `limits` on `workers` workers, with what `backbone`, `store` and so many sinks keep. `with_mqtt`: a listener speaks MQTT, so that
/// any connection may have a session.
#[must_use]
pub fn memory_budget(
    limits: &Limits,
    workers: u16,
    backbone: Backbone,
    store: &Store,
    sinks: usize,
    with_mqtt: bool,
    memory: Memory,
) -> MemoryBudget {
    let workers = u64::from(workers);
    let connections = u64::from(limits.connections);
    let (inbox, uplink) = (limits.inbox_length as u64, limits.uplink_length as u64);
    let item = |what, count, each| Item { what, count, each };
    let mut items = vec![
        item("connections", connections, IDLE_BYTES),
        item("handshakes", (workers * u64::from(limits.handshakes)).min(connections), HANDSHAKE_BYTES),
        item("workers", workers, WORKER_BYTES),
        item("inboxes", workers * inbox, INBOX_ENTRY_BYTES),
        item("uplinks", workers * uplink, UPLINK_ENTRY_BYTES),
        item("events", 1, backbone.bytes as u64),
        item("pool", 1, limits.pool_bytes as u64),
        item("store", 1, store.memory_bytes()),
        item("ends", ENDS_MAX, END_BYTES),
        item("addresses", ADDRESSES, ADDRESS_BYTES),
        item("control plane", 1, CONTROL_BYTES),
        item("api answers", 1, answer_bytes(limits)),
    ];
    if sinks > 0 {
        items.push(item("sinks", sinks as u64, SINK_BYTES));
    }
    if with_mqtt {
        let retained = limits.retained_messages as u64;
        items.extend([
            item(SESSIONS, connections, SESSION_BYTES),
            item(WILLS, connections, WILL_BYTES),
            item("away sessions", u64::from(limits.sessions), AWAY_SESSION_BYTES),
            // The messages are shared among the workers; each has a table of its own.
            item("retained", 1, limits.retained_bytes as u64 + retained * RETAINED_BYTES),
            item("retained index", workers * retained, RETAINED_ENTRY_BYTES),
        ]);
    }
    let kernel = item("kernel", connections, KERNEL_BYTES);
    let sockets = connections.min(WAITING_SOCKETS).min(memory.bytes / WAITING_PART);
    let waiting = item("kernel, waiting", sockets, WAITING_BYTES);
    MemoryBudget { items, kernel, waiting, memory }
}

impl MemoryBudget {
    /// What the process itself holds, in bytes.
    #[must_use]
    pub fn user_bytes(&self) -> u64 {
        self.items.iter().map(Item::bytes).fold(0, u64::saturating_add)
    }

    /// Process and kernel together, in bytes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.user_bytes().saturating_add(self.kernel.bytes()).saturating_add(self.waiting.bytes())
    }

    /// Whether it is more than there is.
    #[must_use]
    pub fn is_exceeded(&self) -> bool {
        self.total_bytes() > self.memory.bytes
    }

    /// The most connections that would fit, were everything else as it is.
    #[must_use]
    pub fn connections_that_fit(&self) -> u32 {
        let of_sessions = self.items.iter().filter(|item| [SESSIONS, WILLS].contains(&item.what));
        let session: u64 = of_sessions.map(|item| item.each).sum();
        let per_connection = IDLE_BYTES + session + KERNEL_BYTES;
        let fixed = self.total_bytes().saturating_sub(self.kernel.count.saturating_mul(per_connection));
        let fit = self.memory.bytes.saturating_sub(fixed) / per_connection;
        u32::try_from(fit).unwrap_or(u32::MAX)
    }
}

impl fmt::Display for MemoryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, item: &Item| {
            let each = Bytes(item.each).to_string();
            writeln!(f, "  {:<15}{:>11} x {each:>9}{:>16}", item.what, Thousands(item.count), Bytes(item.bytes()))
        };
        self.items.iter().try_for_each(|item| line(f, item))?;
        writeln!(f, "  {:<14}{:>40}", "user space", Bytes(self.user_bytes()))?;
        line(f, &self.kernel)?;
        line(f, &self.waiting)?;
        let whose = match self.memory.source {
            MemorySource::Machine => "of the machine",
            MemorySource::ControlGroup => "that the control group allows",
            MemorySource::Unknown => {
                let total = Bytes(self.total_bytes());
                return write!(f, "  {:<14}{total:>40}  (how much there is, is not known: no /proc/meminfo)", "total");
            }
        };
        let (total, memory) = (Bytes(self.total_bytes()), Bytes(self.memory.bytes));
        write!(f, "  {:<14}{total:>40}  of {memory} {whose}", "total")
    }
}

/// The most connections that `workers` descriptor tables of `descriptors` places hold, with `listeners` listeners.
#[must_use]
pub fn connections_by_descriptors(workers: u16, listeners: usize, descriptors: u64) -> u32 {
    let usable = descriptors_for_connections(workers, listeners, descriptors) * DESCRIPTORS_USABLE_PER_THOUSAND / 1_000;
    u32::try_from(usable * u64::from(workers)).unwrap_or(u32::MAX)
}

/// How many of the `descriptors` places in the table of one of `workers` workers, with `listeners` listeners, are for
/// connections. The others: the poll, every worker's bell, the way to each other worker, the listeners, and
/// [`DESCRIPTORS_SPARE`].
#[must_use]
pub fn descriptors_for_connections(workers: u16, listeners: usize, descriptors: u64) -> u64 {
    let others = 2 * u64::from(workers) + listeners as u64 + DESCRIPTORS_SPARE;
    // No table is larger than this, whatever an unlimited limit says.
    descriptors.min(1 << 30).saturating_sub(others)
}

/// Bytes in the unit that suits them, binary: `329 B`, `9.5 KiB`, `62.0 MiB`.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        if self.0 < 8 << 10 {
            return f.pad(&format!("{} B", Thousands(self.0)));
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        f.pad(&format!("{value:.1} {}", UNITS[unit]))
    }
}

/// A count with commas between its thousands: `200,000`.
#[derive(Clone, Copy, Debug)]
pub struct Thousands(pub u64);

impl fmt::Display for Thousands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::with_capacity(digits.len() * 4 / 3);
        for (position, digit) in digits.char_indices() {
            if position > 0 && (digits.len() - position).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn memory(bytes: u64) -> Memory {
        Memory { bytes, source: MemorySource::Machine }
    }

    #[test]
    fn the_sum_is_that_of_its_items() {
        let limits = Limits { connections: 100_000, ..Limits::default() };
        let budget = memory_budget(&limits, 4, Backbone::default(), &Store::default(), 0, false, memory(8 * GIB));
        // Events and changes that wait and that are written, changes once more, and the pages of three connections.
        let store = 5 * (4 << 20) + 3 * (2_000 << 10);
        let user = 100_000 * 329
            + 4 * 512 * 9_728
            + (4 << 20)
            + 4 * (8_192 * 88 + 65_536 * 184)
            + 3 * (16 << 20)
            + (256 << 20)
            + 32_768 * 400
            + 65_536 * 33
            + store;
        assert_eq!(budget.user_bytes(), user);
        assert_eq!(budget.total_bytes(), user + 100_000 * 4_040 + 128 * (144 << 10));
        assert!(!budget.is_exceeded());
    }

    #[test]
    fn a_listener_that_speaks_mqtt_brings_sessions_and_retained_messages() {
        let limits = Limits { connections: 100_000, sessions: 50_000, ..Limits::default() };
        let budget = |with_mqtt| {
            memory_budget(&limits, 4, Backbone::default(), &Store::default(), 0, with_mqtt, memory(8 * GIB))
        };
        let more = budget(true).user_bytes() - budget(false).user_bytes();
        let retained = (64 << 20) + 100_000 * 248 + 4 * 100_000 * 28;
        assert_eq!(more, 100_000 * (280 + 320) + 50_000 * (280 + 65 + 56) + retained);
    }

    #[test]
    fn what_is_said_to_fit_fits_and_one_more_does_not() {
        for (bytes, with_mqtt) in [(GIB / 4, false), (GIB, false), (8 * GIB, false), (GIB, true), (8 * GIB, true)] {
            let mut limits = Limits { connections: 10_000_000, pool_bytes: 32 << 20, ..Limits::default() };
            let exceeds = |limits: &Limits| {
                let budget =
                    memory_budget(limits, 2, Backbone::default(), &Store::default(), 0, with_mqtt, memory(bytes));
                (budget.is_exceeded(), budget.connections_that_fit())
            };
            let (is_exceeded, fit) = exceeds(&limits);
            assert!(is_exceeded && fit > 0);
            limits.connections = fit;
            assert!(!exceeds(&limits).0, "{bytes} {with_mqtt}");
            limits.connections += 1;
            assert!(exceeds(&limits).0, "{bytes} {with_mqtt}");
        }
    }

    #[test]
    fn no_memory_holds_no_connection() {
        for with_mqtt in [false, true] {
            let budget = memory_budget(
                &Limits::default(),
                1,
                Backbone::default(),
                &Store::default(),
                0,
                with_mqtt,
                memory(1 << 20),
            );
            assert_eq!(budget.connections_that_fit(), 0);
        }
    }

    #[test]
    fn descriptors_bound_each_worker() {
        assert_eq!(connections_by_descriptors(1, 2, 20_000), (20_000 - 68) * 98 / 100);
        assert_eq!(connections_by_descriptors(4, 2, 20_000), (20_000 - 74) * 980 / 1000 * 4);
        assert_eq!(connections_by_descriptors(4, 2, 10), 0);
        assert!(connections_by_descriptors(64, 64, u64::MAX) > 1_000_000_000);
    }

    #[test]
    fn the_table_shows_every_item_and_the_sums() {
        let budget =
            memory_budget(&Limits::default(), 2, Backbone::default(), &Store::default(), 0, true, memory(24 * GIB));
        let table = budget.to_string();
        for item in budget.items.iter().chain([&budget.kernel, &budget.waiting]) {
            assert!(table.contains(item.what), "{table}");
        }
        assert!(table.contains("200,000 x     329 B        62.8 MiB"), "{table}");
        assert!(table.contains("of 24.0 GiB of the machine"), "{table}");
    }

    #[test]
    fn answers_have_less_where_there_is_less_and_enough_for_the_longest_packet() {
        let of = |pool_bytes: usize, packet_bytes: usize| {
            answer_bytes(&Limits { packet_bytes, pool_bytes, ..Limits::default() }) >> 20
        };
        assert_eq!((of(256 << 20, 262_144), of(1 << 30, 262_144)), (16, 16));
        assert_eq!((of(128 << 20, 262_144), of(16 << 20, 262_144), of(16 << 20, 1_024)), (8, 4, 2));
        assert_eq!(of(256 << 20, 16 << 20), 256);
    }

    #[test]
    fn figures_read_well() {
        assert_eq!(Thousands(0).to_string(), "0");
        assert_eq!(Thousands(999).to_string(), "999");
        assert_eq!(Thousands(1_000).to_string(), "1,000");
        assert_eq!(Thousands(12_345_678).to_string(), "12,345,678");
        assert_eq!(Bytes(4_040).to_string(), "4,040 B");
        assert_eq!(Bytes(9_728).to_string(), "9.5 KiB");
        assert_eq!(Bytes(3 * GIB / 2).to_string(), "1.5 GiB");
    }
}

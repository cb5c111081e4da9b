//! Bytes of an idle connection in this process, by cause, as the allocator hands them out: its size classes and the room
//! that tables keep for growth included.

use std::collections::HashSet;
use std::hint::black_box;

use pulsegate::connection::Connection;
use pulsegate::time::Tick;
use pulsegate::tls::handshake::{Handshake, RecordWish};
use pulsegate::wheel::Wheel;
use rustls::ServerConnection;
use tikv_jemalloc_ctl::thread;

use crate::arguments::Arguments;
use crate::fixtures::{Deployment, INTERVAL_SECONDS, MARK_BYTES, Rustls, SUITE, device_id, image, record_pair};
use crate::fleet::Host;
use crate::report::{Column, Table, Unit, ratio};

/// Connections of rustls's own to take the mean of, and handshakes.
const SAMPLES: usize = 200;

/// What to run.
pub struct Options {
    pub devices: u32,
}

impl From<&Arguments> for Options {
    fn from(arguments: &Arguments) -> Self {
        Self { devices: arguments.size.unwrap_or(100_000).min(2_000_000) }
    }
}

/// Bytes that this thread has been given and has not given back. Exact: the allocator counts for each thread.
fn balance() -> i64 {
    let given = thread::allocatedp::read().expect("jemalloc keeps statistics").get();
    let returned = thread::deallocatedp::read().expect("jemalloc keeps statistics").get();
    given.wrapping_sub(returned) as i64
}

/// What `make` keeps, and its result, which must be kept until then.
fn kept<T>(make: impl FnOnce() -> T) -> (f64, T) {
    let before = balance();
    let result = make();
    ((balance() - before) as f64, result)
}

/// What one idle connection keeps, and what it would keep elsewhere.
pub fn run(options: &Options) -> Vec<Table> {
    let causes = causes(options.devices);
    let whole = causes.total();
    vec![causes.table(), beside(whole)]
}

/// Bytes for each connection of one shard.
struct Causes {
    devices: u32,
    shard: f64,
    sockets: f64,
    slab: f64,
    wheel: f64,
    table: f64,
    ids: f64,
}

/// The connection alone: the address in front and the mark behind are the shard's.
fn unpacked(image: &[u8], number: u32) -> Option<Connection> {
    Connection::unpack(&image[2..image.len() - MARK_BYTES], number, Tick(0)).ok()
}

/// Fills a shard, then each of its parts alone, the way the shard fills them.
fn causes(devices: u32) -> Causes {
    let deployment = Deployment::new(7_443, 7_480, INTERVAL_SECONDS);
    let settings = deployment.settings();
    let each = f64::from(devices);
    let mut random = fastrand::Rng::with_seed(13);
    // What its world keeps of each socket is there before, and so not counted.
    let mut host = Host::new(settings, devices);
    let (shard, ()) = kept(|| {
        for number in 0..devices {
            let (_, server) = record_pair(SUITE, &mut random);
            host.take_in(number, &server);
            if number % 1_024 == 1_023 {
                host.forget_written();
            }
        }
        host.settle();
        host.forget_written();
    });
    drop(host);

    let (ids, names) = kept(|| {
        // The array that holds them here is the slab's part there.
        let mut names: Vec<Box<str>> = Vec::new();
        names.extend((0..devices).map(|number| device_id(number).into_boxed_str()));
        names
    });
    let ids = ids - (names.capacity() * size_of::<Box<str>>()) as f64;
    drop(names);

    let mut scratch = Vec::with_capacity(4_096);
    let (slab, connections) = kept(|| {
        let mut connections: Vec<Option<Connection>> = Vec::new();
        for number in 0..devices {
            let (_, server) = record_pair(SUITE, &mut random);
            scratch.clear();
            image(&device_id(number), &server, &mut scratch);
            connections.push(unpacked(&scratch, number));
        }
        assert!(connections.iter().all(Option::is_some));
        connections
    });
    drop(connections);

    let (wheel, timers) = kept(|| {
        let mut timers = Wheel::new(Tick(0));
        for index in 0..devices {
            timers.arm(index, Tick(600 + index % 64));
        }
        timers
    });
    drop(timers);

    // The device table's entries are eight bytes in the same kind of table.
    let (table, entries) = kept(|| {
        let mut entries: HashSet<u64> = HashSet::new();
        for number in 0..u64::from(devices) {
            entries.insert(black_box(number));
        }
        entries
    });
    drop(entries);

    let (sockets, descriptors) = kept(|| {
        let mut descriptors: Vec<i32> = Vec::new();
        for number in 0..devices {
            descriptors.resize(number as usize + 1, -1);
        }
        descriptors
    });
    drop(descriptors);
    Causes {
        devices,
        shard: shard / each,
        sockets: sockets / each,
        slab: (slab - ids) / each,
        wheel: wheel / each,
        table: table / each,
        ids: ids / each,
    }
}

impl Causes {
    fn total(&self) -> f64 {
        self.shard + self.sockets
    }

    /// What the parts do not explain: the worker's scratch, grown once, and whatever is amiss.
    fn rest(&self) -> f64 {
        self.shard - self.slab - self.wheel - self.table - self.ids
    }

    fn table(&self) -> Table {
        let total = self.total();
        let row =
            |name: &str, bytes: f64, used: Option<f64>| (name.to_owned(), vec![Some(bytes / total), Some(bytes), used]);
        let id = device_id(0).len() as f64;
        Table {
            title: format!("An idle native connection, {} in one shard, ids of {id} bytes", self.devices),
            of: "cause",
            columns: vec![
                ratio("share"),
                Column { name: "allocated", unit: Unit::Bytes },
                Column { name: "without room to grow", unit: Unit::Bytes },
            ],
            rows: vec![
                row("all of it", total, None),
                row("slab", self.slab, Some(size_of::<Option<Connection>>() as f64)),
                row("wheel", self.wheel, Some(12.0)),
                row("device table", self.table, Some(9.0)),
                row("device id", self.ids, Some(id)),
                row("descriptor", self.sockets, Some(4.0)),
                row("scratch and the rest", self.rest().max(f64::MIN_POSITIVE), None),
            ],
            notes: vec![
                "Arrays double when they are full: room to grow is address space until it is used.".to_owned(),
                "The kernel's part, about 4,040 bytes of each socket, is not the process's.".to_owned(),
            ],
        }
    }
}

/// One idle connection as we and as rustls keep it, and one in its handshake.
fn beside(ours: f64) -> Table {
    let each = SAMPLES as f64;
    let theirs = Rustls::new(SUITE);
    let (idle, connections) = kept(|| (0..SAMPLES).map(|_| Box::new(theirs.pair().1)).collect::<Vec<_>>());
    drop(connections);

    let deployment = Deployment::new(7_443, 7_480, INTERVAL_SECONDS);
    let settings = deployment.settings();
    let mut hello = Vec::new();
    theirs.client().write_tls(&mut hello).expect("a Vec takes everything");
    let mut answer = Vec::with_capacity(16_384);
    let begin = || Handshake::server(&settings[0].tls, RecordWish::default());
    let (fresh, handshakes) = kept(|| (0..SAMPLES).map(|_| Box::new(begin())).collect::<Vec<_>>());
    drop(handshakes);
    let (answered, handshakes) = kept(|| {
        let begin = |_| {
            let mut handshake = Box::new(begin());
            answer.clear();
            let _ = handshake.handle_record(&hello, &mut answer).expect("a ClientHello of rustls");
            handshake
        };
        (0..SAMPLES).map(begin).collect::<Vec<_>>()
    });
    drop(handshakes);
    let row = |name: &str, bytes: f64| (name.to_owned(), vec![Some(bytes / ours), Some(bytes)]);
    Table {
        title: "One connection, as one or the other keeps it".to_owned(),
        of: "form",
        columns: vec![ratio("to ours"), Column { name: "allocated", unit: Unit::Bytes }],
        rows: vec![
            row("ours, idle: everything above", ours),
            row("rustls ServerConnection, idle", idle / each),
            row("ours, handshake begun", fresh / each),
            row("ours, handshake, ClientHello answered", answered / each),
            row("rustls ServerConnection, the type alone", size_of::<ServerConnection>() as f64),
        ],
        notes: vec!["rustls's comes without socket, task, timer, table and id.".to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_causes_explain_the_whole() {
        // Just below a power of two, where arrays have little room to grow.
        let causes = causes(8_000);
        assert!((200.0..400.0).contains(&causes.total()), "{}", causes.total());
        // Scratch of one batch, shared by all.
        assert!((-1.0..120.0).contains(&causes.rest()), "{}", causes.rest());
        assert!(causes.slab >= 200.0 && causes.wheel >= 12.0 && causes.ids >= 16.0 && causes.sockets >= 4.0);
        causes.table().assert_measured();
    }

    #[test]
    fn a_small_size_runs() {
        let tables = run(&Options { devices: 1_000 });
        tables.iter().for_each(Table::assert_measured);
        assert!(tables[1].figure("rustls ServerConnection, idle", "to ours") > 3.0);
    }
}

//! What a start reads: sessions out of the store and into a shard, as a gateway does before it listens. All of them were connected
//! when the process before ended.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

use pulsegate::broker::{Bounds, Broker, BrokerOptions, Recording};
use pulsegate::clock::Clock;
use pulsegate::config::Limits;
use pulsegate::image::{Change, Head, Message, Profile, Publication, SessionKey, Subscription};
use pulsegate::link::{ChangeMark, Changes, Exchange, Home, QoS, WorkerId};
use pulsegate::store::{Durability, Options as StoreOptions, Settled, Store};
use pulsegate::time::{Moment, Timeline};
use tikv_jemalloc_ctl::thread;

use crate::arguments::Arguments;
use crate::report::{Column, Table, Unit};

/// Sessions that are written in one batch.
const BATCH: u64 = 5_000;
/// Messages that wait in each of the first of them, which are one in so many.
const WAITING: u64 = 10;
const HAVE_WAITING: u64 = 10;

/// By which times of day are written.
static CLOCK: LazyLock<Arc<Clock>> = LazyLock::new(|| Arc::new(Clock::new(Instant::now())));

/// What to run.
pub struct Options {
    pub sessions: u64,
}

impl From<&Arguments> for Options {
    fn from(arguments: &Arguments) -> Self {
        Self { sessions: u64::from(arguments.size.unwrap_or(100_000).min(5_000_000)) }
    }
}

/// A directory that goes when it is let go.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("pulsegate-bench-start-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory for the store");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left lies where what is temporary lies.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(directory: &Path) -> Store {
    let options = StoreOptions {
        directory: directory.into(),
        durability: Durability::Interval(Duration::from_secs(1)),
        bytes_max: 1 << 40,
        queue_bytes: 16 << 20,
        retention_age: Duration::from_hours(24),
        retention_bytes: 1 << 30,
        command_bytes: 1 << 20,
        clock: Arc::clone(&CLOCK),
    };
    Store::open(&options, |_: &[Settled]| {}).expect("the store opens")
}

/// A session of a device that is connected: a filter of its own, and in some of them messages.
fn session(key: u64, shared: &Arc<Publication>) -> Vec<Change> {
    let session = SessionKey(key);
    let profile = Profile {
        version: 5,
        listener: "mqtt".into(),
        keep_alive_s: 60,
        expiry_s: u32::MAX,
        receive_maximum: 20,
        packet_maximum: u32::MAX,
        alias_maximum: 0,
    };
    let name = format!("meter-{key:08}").into();
    let head = Head { key: session, name, profile, away_since_ms: None, last_packet: 0, will: None };
    let subscription = Subscription { filter: format!("site/{key}/set").into(), options: 1, identifier: 0 };
    let mut changes = vec![Change::Kept(Box::new(head)), Change::Subscribed { session, subscription }];
    let waiting = if key.is_multiple_of(HAVE_WAITING) { WAITING } else { 0 };
    changes.extend((1..=waiting).map(|number| {
        let publication = Arc::clone(shared);
        let message = Message {
            number,
            packet: None,
            qos: QoS::AtLeastOnce,
            retain: false,
            identifiers: vec![],
            group: None,
            publication,
            origin: 0,
        };
        Change::Queued { session, message: Box::new(message) }
    }));
    changes
}

fn fill(store: &Store, sessions: u64) {
    let sender = store.changes();
    let mut mark = 0;
    for first in (1..=sessions).step_by(BATCH as usize) {
        let publication = Publication {
            topic: "fleet/all".into(),
            payload: vec![7; 100].into(),
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: Box::default(),
            expires_ms: None,
        };
        let shared = Arc::new(publication);
        mark += 1;
        let changes = (first..(first + BATCH).min(sessions + 1)).flat_map(|key| session(key, &shared)).collect();
        let mut batch = Changes {
            worker: WorkerId(0),
            mark: ChangeMark(mark),
            changes,
            is_awaited: true,
            timeline: CLOCK.timeline(),
        };
        while let Err(back) = sender.offer(batch) {
            batch = back;
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    while store.stats().kept.sessions.load(Ordering::Relaxed) < sessions {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes that this thread has been given and has not given back.
fn balance() -> i64 {
    let given = thread::allocatedp::read().expect("jemalloc keeps statistics").get();
    let returned = thread::deallocatedp::read().expect("jemalloc keeps statistics").get();
    given.wrapping_sub(returned) as i64
}

/// How long it takes from nothing to a shard that knows all of them, and what each takes there.
pub fn run(options: &Options) -> Vec<Table> {
    let directory = Directory::new();
    let store = open(&directory.0);
    fill(&store, options.sessions);
    drop(store);

    let began = Instant::now();
    let store = open(&directory.0);
    let opened = began.elapsed();
    let now = Moment::from_micros(1_000_000);
    let exchange = Arc::new(Exchange::new(1));
    exchange.note_key(store.next_key().0);
    let limits = Limits { sessions: u32::MAX, ..Limits::default() };
    let setup = BrokerOptions {
        worker: WorkerId(0),
        home: Home::new([7; 16], 1),
        exchange,
        bounds: Bounds::of(&limits, 1),
        key: 7,
    };
    let mut broker = Broker::new(setup, now.tick());
    let timeline = Timeline::anchored(now, SystemTime::now());
    broker.begin_recording(Recording { timeline: timeline.into(), listeners: ["mqtt".into()].into() });
    let (before, began) = (balance(), Instant::now());
    store.sessions(|session| broker.restore(session, now)).expect("the store is read");
    let read = began.elapsed();
    let bytes = (balance() - before) as f64 / options.sessions as f64;
    black_box(&broker);

    let ms = |took: Duration| Some(took.as_secs_f64() * 1_000.0);
    let row = (options.sessions.to_string(), vec![ms(opened), ms(read), ms(opened + read), Some(bytes)]);
    vec![Table {
        title: format!(
            "one session in {HAVE_WAITING} with {WAITING} messages that wait: they are counted, and stay where they are"
        ),
        of: "sessions",
        columns: vec![
            Column { name: "opened", unit: Unit::Milliseconds },
            Column { name: "read", unit: Unit::Milliseconds },
            Column { name: "both", unit: Unit::Milliseconds },
            Column { name: "each takes", unit: Unit::Bytes },
        ],
        rows: vec![row],
        notes: Vec::new(),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_start_is_measured() {
        run(&Options { sessions: 300 }).iter().for_each(Table::assert_measured);
    }
}

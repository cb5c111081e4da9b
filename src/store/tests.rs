//! The store on a real file: what was settled is there after a crash, cursors move by acknowledgement only, and what
//! gives way at a bound is the oldest, counted.

mod commands;
mod earlier;
mod fleet;
mod kept;
mod set_clock;

use std::fs;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, unbounded};
use tempfile::TempDir;

use super::*;
use crate::clock::Clock;
use crate::link::{ConnectionId, Receipt, WorkerId};
use crate::pool::{Charge, Class, Pool};

const LEASE: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(20);

/// By which every store of these tests writes.
static CLOCK: LazyLock<Arc<Clock>> = LazyLock::new(|| Arc::new(Clock::new(Instant::now())));

fn options(directory: &Path) -> Options {
    Options {
        directory: directory.into(),
        durability: Durability::Group,
        bytes_max: 64 << 20,
        queue_bytes: 1 << 20,
        // Times are of 2023, and kept.
        retention_age: Duration::from_hours(100 * 365 * 24),
        retention_bytes: 32 << 20,
        command_bytes: 1 << 20,
        clock: Arc::clone(&CLOCK),
    }
}

fn open(options: &Options) -> (Store, Receiver<Settled>) {
    let (sender, settled) = unbounded();
    let settle = move |all: &[Settled]| all.iter().for_each(|one| sender.send(*one).unwrap());
    (Store::open(options, settle).unwrap(), settled)
}

fn unix_ms() -> i64 {
    CLOCK.unix_ms(CLOCK.now())
}

fn receipt(number: u32) -> Receipt {
    Receipt::Connection(ConnectionId { slot: crate::link::ConnectionSlot(0), generation: 1 }, number)
}

fn message(number: u32, payload: usize) -> Entry {
    let mut payload = vec![b'x'; payload];
    payload.extend(number.to_be_bytes());
    Entry {
        at_ms: 1_700_000_000_000 + i64::from(number),
        worker: WorkerId(0),
        device: "meter-1".into(),
        what: What::Message { topic: "t".into(), payload: Bytes::from(payload), published: None },
        receipt: Some(receipt(number)),
    }
}

fn number(event: &Stored) -> u32 {
    match &event.entry.what {
        What::Message { payload, .. } => u32::from_be_bytes(*payload.last_chunk().unwrap()),
        other => panic!("{other:?}"),
    }
}

fn presence(sequence: u64, cause: Option<&str>) -> Entry {
    let details = Details {
        peer: "[2001:db8::1]:7".into(),
        identity: "cert-cn".into(),
        tls_version: "TLSv1.3".into(),
        connected_ms: 4,
        detail: "\u{e4}".into(),
    };
    let details = Some(details);
    let facts = Facts { listener: "mqtt".into(), epoch: 7, generation: 1, sequence, last_heard_ms: 5, details };
    let what = match cause {
        None => What::Connected(facts),
        Some(cause) => What::Disconnected(facts, cause.into()),
    };
    Entry { at_ms: 1_700_000_000_000, worker: WorkerId(1), device: "meter-2".into(), what, receipt: None }
}

fn offer_all(store: &Store, entries: Vec<Entry>) {
    let mut entries = entries;
    assert_eq!(store.offer(&mut entries, &mut Vec::new()), Taken::All);
    assert!(entries.is_empty());
}

/// What `settled` says of so many events.
fn wait(settled: &Receiver<Settled>, count: usize) -> Vec<Settled> {
    (0..count).map(|_| settled.recv_timeout(DEADLINE).expect("the store settles what it was offered")).collect()
}

/// Waits until `last` events are safe.
fn wait_for_head(store: &Store, last: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut head = store.head();
    let reached = async { head.wait_for(|head| head.last >= last).await.map(|_| ()) };
    runtime.block_on(async { tokio::time::timeout(DEADLINE, reached).await }).expect("in time").unwrap();
}

fn block<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(DEADLINE, future).await }).expect("in time")
}

fn all(store: &Store) -> Vec<Stored> {
    store.reader().range(Range { first: 1, last: u64::MAX >> 1 }, usize::MAX).unwrap()
}

/// The files as a crash would leave them at this instant, opened as the next process would.
fn after_crash(directory: &TempDir) -> (TempDir, Store) {
    let copy = TempDir::new().unwrap();
    for suffix in ["", "-wal"] {
        let name = format!("{FILE}{suffix}");
        if directory.path().join(&name).exists() {
            fs::copy(directory.path().join(&name), copy.path().join(&name)).unwrap();
        }
    }
    let store = open(&options(copy.path())).0;
    (copy, store)
}

#[test]
fn settled_events_survive_a_crash_in_order() {
    let directory = TempDir::new().unwrap();
    let (store, settled) = open(&options(directory.path()));
    let mut expected = 0;
    for group in [1, 100, 3, 1_000] {
        offer_all(&store, (expected..expected + group).map(|number| message(number, 20)).collect());
        let told = wait(&settled, group as usize);
        let receipts: Vec<_> = (expected..expected + group).map(receipt).collect();
        assert_eq!(told.iter().map(|one| one.receipt).collect::<Vec<_>>(), receipts);
        assert!(told.iter().all(|one| one.accepted && one.worker == WorkerId(0)));
        expected += group;
        let (_copy, recovered) = after_crash(&directory);
        let numbers: Vec<_> = all(&recovered).iter().map(number).collect();
        assert_eq!(numbers, (0..expected).collect::<Vec<_>>());
    }
}

#[test]
fn presence_is_written_though_nobody_waits_and_is_found_by_device() {
    let directory = TempDir::new().unwrap();
    let (store, settled) = open(&options(directory.path()));
    offer_all(&store, vec![presence(1, None), presence(2, Some("expired"))]);
    wait_for_head(&store, 2);
    assert!(settled.is_empty());
    let found = store.reader().presence("meter-2", 1).unwrap();
    assert_eq!(found, [Stored { seq: 2, entry: presence(2, Some("expired")) }]);
    assert_eq!(store.reader().presence("meter-1", 9).unwrap(), []);
}

#[test]
fn cursors_move_by_acknowledgement_only_and_survive() {
    let directory = TempDir::new().unwrap();
    let (store, settled) = open(&options(directory.path()));
    offer_all(&store, (0..10).map(|number| message(number, 1)).collect());
    wait(&settled, 10);
    assert_eq!(block(store.create("billing", Position::First)).unwrap(), 0);
    assert_eq!(block(store.create("late", Position::End)).unwrap(), 10);

    let batch = store.hand_out("billing", 4, usize::MAX, LEASE).unwrap();
    assert_eq!(batch.range, Some(Range { first: 1, last: 4 }));
    assert_eq!(batch.events.iter().map(number).collect::<Vec<_>>(), [0, 1, 2, 3]);
    // Another reader of the same consumer gets others; one of another consumer gets its own.
    let other = store.hand_out("billing", 4, usize::MAX, LEASE).unwrap();
    assert_eq!(other.range, Some(Range { first: 5, last: 8 }));
    assert_eq!(store.hand_out("late", 4, usize::MAX, LEASE).unwrap().range, None);
    let (_copy, recovered) = after_crash(&directory);
    assert_eq!(recovered.hand_out("billing", 1, 1, LEASE).unwrap().range, Some(Range { first: 1, last: 1 }));

    // The second batch first: the cursor waits, and what was acknowledged is not handed out again after a crash.
    assert_eq!(block(store.acknowledge("billing", other.range.unwrap())).unwrap(), 0);
    let (_copy, recovered) = after_crash(&directory);
    assert_eq!(block(recovered.acknowledge("billing", Range { first: 1, last: 4 })).unwrap(), 8);
    let consumers = recovered.consumers().unwrap();
    assert_eq!((consumers[0].backlog.cursor, consumers[0].backlog.behind), (8, 2));
    assert_eq!(consumers[0].oldest_ms, Some(1_700_000_000_008));

    assert_eq!(store.position_at(1_700_000_000_006).unwrap(), Position::After(6));
    assert_eq!(store.position_at(0).unwrap(), Position::After(0));
    assert_eq!(store.position_at(i64::MAX).unwrap(), Position::End);
    assert_eq!(block(store.seek("billing", Position::After(6))).unwrap(), 6);
    assert_eq!(block(store.delete("late")).unwrap(), 10);
    assert!(matches!(block(store.acknowledge("late", Range { first: 1, last: 1 })), Err(StoreError::NoConsumer(_))));
    let beyond = block(store.acknowledge("billing", Range { first: 1, last: 11 }));
    // One that is only let go back stays where it is when it is asked to jump what it has not acknowledged.
    let jump = block(store.seek_back("billing", Position::End)).unwrap_err().to_string();
    assert!(jump.starts_with("it would jump events 7 to "), "{jump}");
    assert_eq!(store.cursor("billing"), Some(6));
    assert_eq!(block(store.seek_back("billing", Position::After(6))).unwrap(), 6);
    assert_eq!(block(store.seek_back("billing", Position::First)).unwrap(), 0);
    assert_eq!(block(store.seek("billing", Position::After(6))).unwrap(), 6);
    assert!(matches!(beyond, Err(StoreError::Position(_))));
}

#[test]
fn a_batch_that_is_cut_by_its_bytes_leaves_the_rest_to_the_next() {
    let directory = TempDir::new().unwrap();
    let (store, settled) = open(&options(directory.path()));
    offer_all(&store, (0..10).map(|number| message(number, 1_000)).collect());
    wait(&settled, 10);
    block(store.create("c", Position::First)).unwrap();
    let batch = store.hand_out("c", 10, 2_500, LEASE).unwrap();
    assert_eq!(batch.range, Some(Range { first: 1, last: 3 }));
    assert_eq!(store.hand_out("c", 10, 1, LEASE).unwrap().range, Some(Range { first: 4, last: 4 }));
}

#[test]
fn retention_drops_the_oldest_and_tells_each_consumer_what_it_missed() {
    let directory = TempDir::new().unwrap();
    let bounded = Options { retention_bytes: 20_000, ..options(directory.path()) };
    let (store, settled) = open(&bounded);
    offer_all(&store, (0..10).map(|number| message(number, 100)).collect());
    wait(&settled, 10);
    block(store.create("c", Position::First)).unwrap();
    block(store.acknowledge("c", Range { first: 3, last: 4 })).unwrap();
    for first in (10..1_000).step_by(10) {
        offer_all(&store, (first..first + 10).map(|number| message(number, 100)).collect());
        wait(&settled, 10);
    }
    let held = all(&store);
    assert_eq!(held.len() as u64, store.stats().events.load(Ordering::Relaxed));
    let bytes: u64 = held.iter().map(|event| event.entry.bytes() as u64).sum();
    assert_eq!(bytes, store.stats().bytes.load(Ordering::Relaxed));
    assert!(bytes <= 20_000 && held.len() > 50, "{bytes} bytes, {} events", held.len());
    assert_eq!((store.first(), held.last().unwrap().seq), (held[0].seq, 1_000));
    let batch = store.hand_out("c", 1, usize::MAX, LEASE).unwrap();
    assert_eq!((batch.missed, batch.range.unwrap().first), (store.first() - 1 - 2, store.first()));
    assert_eq!(store.consumers().unwrap()[0].backlog.missed, batch.missed);
    // A larger one than all that may be held is refused, and nothing else goes for it.
    offer_all(&store, vec![message(5_000, 30_000)]);
    assert!(!wait(&settled, 1)[0].accepted);
    drop(store);
    let (store, _) = open(&bounded);
    assert_eq!(store.consumers().unwrap()[0].backlog.missed, batch.missed);
    assert_eq!(check(directory.path()).unwrap().damage, Vec::<String>::new());
}

#[test]
fn a_device_that_floods_takes_its_own_place_and_not_that_of_others() {
    let directory = TempDir::new().unwrap();
    let bounded = Options { retention_bytes: 100_000, ..options(directory.path()) };
    let (store, settled) = open(&bounded);
    block(store.create("c", Position::First)).unwrap();
    let of = |device: &str, number| Entry { device: device.into(), ..message(number, 100) };
    // What many say is there, and one says seven times as much as there is room for; the others go on meanwhile.
    let quiet: Vec<_> = (0..150).map(|number| of(&format!("quiet-{}", number % 50), number)).collect();
    offer_all(&store, quiet);
    wait(&settled, 150);
    for first in (1_000..6_000).step_by(20) {
        let mut entries: Vec<_> = (first..first + 20).map(|number| of("flood", number)).collect();
        if first % 500 == 0 {
            entries.push(of("quiet-late", first));
        }
        let count = entries.len();
        offer_all(&store, entries);
        wait(&settled, count);
    }
    let held = all(&store);
    let of_others: Vec<_> = held.iter().filter(|event| &*event.entry.device != "flood").map(number).collect();
    assert_eq!(of_others[..150], (0..150).collect::<Vec<_>>());
    assert_eq!(of_others[150..], (1_000..6_000).step_by(500).collect::<Vec<_>>());
    let of_flood: Vec<_> = held.iter().filter(|event| &*event.entry.device == "flood").map(number).collect();
    assert_eq!((of_flood[0], of_flood.last()), (6_000 - of_flood.len() as u32, Some(&5_999)), "its latest are there");
    let stats = |of: fn(&Stats) -> &AtomicU64| of(store.stats()).load(Ordering::Relaxed);
    assert!(stats(|stats| &stats.bytes) <= 100_000 && of_flood.len() > 100);
    assert_eq!((stats(|stats| &stats.events), store.first()), (held.len() as u64, 1));
    let gone = 5_000 - of_flood.len() as u64;
    assert_eq!((stats(|stats| &stats.dropped), stats(|stats| &stats.dropped_share)), (gone, gone));

    // A consumer gets all that is there, in order, and misses what is not, once; also one event at a time, and after a restart.
    drop(store);
    assert_eq!(check(directory.path()).unwrap().damage, [""; 0]);
    let (store, _settled) = open(&bounded);
    let (mut taken, mut missed) = (Vec::new(), 0);
    loop {
        let count = if taken.len() < 155 { 1 } else { 1_000 };
        let batch = store.hand_out("c", count, usize::MAX, LEASE).unwrap();
        missed += batch.missed;
        let Some(range) = batch.range else { break };
        assert!(!batch.events.is_empty() && batch.events.len() as u64 <= count);
        taken.extend(batch.events.iter().map(|event| event.seq));
        block(store.acknowledge("c", range)).unwrap();
    }
    assert_eq!(taken, held.iter().map(|event| event.seq).collect::<Vec<_>>());
    assert_eq!((store.backlogs()[0].behind, store.backlogs()[0].missed), (0, gone));
    assert_eq!(missed, 0, "what was missed in an earlier life was counted there");
}

#[test]
fn old_events_are_dropped_by_age_though_nothing_comes() {
    let directory = TempDir::new().unwrap();
    let aged = Options { retention_age: Duration::from_hours(24), ..options(directory.path()) };
    let (store, settled) = open(&aged);
    // Their time is of 2023, and a day is kept: they go at once.
    offer_all(&store, (0..10).map(|number| message(number, 1)).collect());
    assert!(wait(&settled, 10).iter().all(|one| one.accepted));
    let deadline = Instant::now() + DEADLINE;
    while store.stats().events.load(Ordering::Relaxed) > 0 {
        assert!(Instant::now() < deadline, "the old events are still held");
        thread::yield_now();
    }
    assert_eq!(store.first(), 11);
}

#[test]
fn acknowledgements_ahead_of_a_cursor_are_bounded_and_what_closes_a_gap_is_taken() {
    let directory = TempDir::new().unwrap();
    let (store, settled) = open(&options(directory.path()));
    let most = progress::RANGES_MAX as u64;
    offer_all(&store, (0..2 * most as u32 + 2).map(|number| message(number, 1)).collect());
    wait(&settled, 2 * most as usize + 2);
    block(store.create("c", Position::First)).unwrap();
    let one = |seq| Range { first: seq, last: seq };
    for number in 1..=most {
        assert_eq!(block(store.acknowledge("c", one(2 * number))).unwrap(), 0);
    }
    let refused = block(store.acknowledge("c", one(2 * most + 2))).unwrap_err();
    let why = "1024 ranges are acknowledged ahead of event 1, which is not: acknowledge that first";
    assert_eq!(refused.to_string(), why);
    assert_eq!(block(store.acknowledge("c", one(3))).unwrap(), 0);
    assert_eq!(block(store.acknowledge("c", one(1))).unwrap(), 4);
    assert_eq!(block(store.acknowledge("c", one(2 * most + 2))).unwrap(), 4);
    let behind = store.backlogs();
    // What was written piece by piece is what is in memory.
    let (_copy, store) = after_crash(&directory);
    assert_eq!(store.backlogs(), behind);
    assert_eq!(behind[0].behind, most - 1);
}

#[test]
fn the_queue_is_bounded_and_gives_back_what_it_does_not_take() {
    let directory = TempDir::new().unwrap();
    let bounded = Options { queue_bytes: 10_000, ..options(directory.path()) };
    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock().unwrap();
    let (room, has_room) = unbounded();
    let (sender, settled) = unbounded();
    let settle = {
        let gate = gate.clone();
        move |all: &[Settled]| {
            drop(gate.lock().unwrap());
            if all.is_empty() {
                room.send(()).unwrap();
            }
            for one in all {
                sender.send(*one).unwrap();
            }
        }
    };
    let store = Store::open(&bounded, settle).unwrap();
    offer_all(&store, vec![message(0, 1)]);
    // While the writer is held up, the queue takes one batch, however large, and then no more than it may hold.
    let deadline = Instant::now() + DEADLINE;
    let mut sent = 1;
    loop {
        let mut entries = vec![message(sent, 5_000)];
        match store.offer(&mut entries, &mut Vec::new()) {
            Taken::All => sent += 1,
            Taken::Later => {
                assert_eq!(entries.len(), 1);
                break;
            }
        }
        assert!(Instant::now() < deadline && sent < 10, "the queue has no bound");
    }
    assert!(has_room.is_empty());
    drop(held);
    has_room.recv_timeout(DEADLINE).expect("whoever was given events back hears of room");
    assert_eq!(store.offer(&mut vec![message(sent, 5_000)], &mut Vec::new()), Taken::All);
    assert_eq!(wait(&settled, sent as usize + 1).len(), sent as usize + 1);
    assert!(has_room.is_empty(), "once");
}

/// What events take of their shards' pools is free when they are written, and then the hub is told, though nobody waits for them.
#[test]
fn charges_are_given_back_when_their_events_are_safe() {
    let directory = TempDir::new().unwrap();
    let pool = Arc::new(Pool::new(1 << 20));
    let (sender, told) = unbounded();
    let used = {
        let pool = Arc::clone(&pool);
        move || pool.used(Class::Up)
    };
    let store = Store::open(&options(directory.path()), move |all: &[Settled]| {
        sender.send((all.len(), used())).unwrap();
    })
    .unwrap();
    for receipt in [None, Some(receipt(1))] {
        let mut entries = vec![Entry { receipt, ..message(1, 100) }];
        let mut charges = vec![Charge::of(&pool, Class::Up, 1_000)];
        assert_eq!(store.offer(&mut entries, &mut charges), Taken::All);
        assert!(charges.is_empty());
        let settled = usize::from(receipt.is_some());
        assert_eq!(told.recv_timeout(DEADLINE), Ok((settled, 0)), "given back before it is told");
    }
}

#[test]
fn one_directory_has_one_writer() {
    let directory = TempDir::new().unwrap();
    let (store, _settled) = open(&options(directory.path()));
    let second = Store::open(&options(directory.path()), |_: &[Settled]| {});
    assert!(matches!(second, Err(StoreError::InUse { .. })), "{second:?}");
    drop(store);
    drop(open(&options(directory.path())));
}

#[test]
fn a_full_store_keeps_cursors_and_goes_on_when_there_is_room() {
    let directory = TempDir::new().unwrap();
    let full = Options { bytes_max: 512 << 10, ..options(directory.path()) };
    let (store, settled) = open(&full);
    block(store.create("c", Position::First)).unwrap();
    // One that has read nothing: nothing gives way.
    block(store.create("slow", Position::First)).unwrap();
    let (mut safe, deadline) = (0, Instant::now() + DEADLINE);
    offer_all(&store, vec![message(safe, 10_000)]);
    while store.health() == Health::Well {
        assert!(Instant::now() < deadline, "the store is never full");
        if let Ok(settled) = settled.recv_timeout(Duration::from_millis(1)) {
            assert!(settled.accepted);
            safe += 1;
            offer_all(&store, vec![message(safe, 10_000)]);
        }
    }
    assert_eq!(store.health(), Health::NoRoom);
    assert!(safe > 10 && settled.is_empty(), "{safe} events were safe when there was no room");
    // A cursor is a change in place.
    assert_eq!(block(store.acknowledge("c", Range { first: 1, last: 5 })).unwrap(), 5);
    // It ends, and what was acknowledged is there; the rest never was.
    drop(store);
    let (store, _settled) = open(&Options { bytes_max: 64 << 20, ..full });
    assert_eq!(all(&store).len(), safe as usize);
    assert_eq!(store.consumers().unwrap()[0].backlog.cursor, 5);
}

#[test]
fn history_that_every_consumer_has_acknowledged_gives_way_and_nothing_else_does() {
    let directory = TempDir::new().unwrap();
    let full = Options { bytes_max: 512 << 10, ..options(directory.path()) };
    let (store, settled) = open(&full);
    let gave_way = || store.stats().gave_way.load(Ordering::Relaxed);
    // Nobody reads: there is always room, at the cost of the oldest.
    for number in 0..100 {
        offer_all(&store, vec![message(number, 10_000)]);
        assert!(wait(&settled, 1)[0].accepted);
    }
    assert_eq!(store.health(), Health::Well);
    assert!(gave_way() > 50 && store.first() == gave_way() + 1, "{} events gave way", gave_way());

    // Two that have read nothing of what is held.
    for name in ["quick", "slow"] {
        block(store.create(name, Position::First)).unwrap();
    }
    let (first, before) = (store.first(), gave_way());
    let (mut sent, deadline) = (100, Instant::now() + DEADLINE);
    while store.health() == Health::Well {
        assert!(Instant::now() < deadline, "the store is never full");
        if settled.recv_timeout(Duration::from_millis(1)).is_ok() || sent == 100 {
            offer_all(&store, vec![message(sent, 10_000)]);
            sent += 1;
        }
    }
    assert_eq!((store.first(), gave_way()), (first, before));
    block(store.acknowledge("quick", Range { first, last: first + 9 })).unwrap();
    assert!(settled.recv_timeout(Duration::from_millis(1_500)).is_err(), "the slow one has not acknowledged it");
    block(store.acknowledge("slow", Range { first, last: first + 4 })).unwrap();
    // The one that waited is safe, and only what both were done with is gone.
    assert!(wait(&settled, 1)[0].accepted);
    assert_eq!((store.health(), store.first(), gave_way()), (Health::Well, first + 5, before + 5));
    assert!(store.consumers().unwrap().iter().all(|consumer| consumer.backlog.missed == 0));
    drop(store);
    let check = check(directory.path()).unwrap();
    assert_eq!((check.damage, check.range), (Vec::<String>::new(), (first + 5, u64::from(sent))));
}

#[test]
fn files_that_are_not_ours_are_left_alone() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join(FILE);
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE theirs (a)").unwrap();
    drop(other);
    let refused = Store::open(&options(directory.path()), |_: &[Settled]| {}).unwrap_err();
    assert!(matches!(refused, StoreError::Foreign { .. }), "{refused}");
    fs::write(&path, vec![7_u8; 8_192]).unwrap();
    let refused = Store::open(&options(directory.path()), |_: &[Settled]| {}).unwrap_err();
    assert!(matches!(refused, StoreError::Damaged { .. }), "{refused}");
    let aside = move_aside(directory.path()).unwrap();
    assert_eq!(fs::read(aside.join(FILE)).unwrap(), vec![7_u8; 8_192]);
    drop(open(&options(directory.path())));
}

#[test]
fn damage_is_found_by_check() {
    let directory = TempDir::new().unwrap();
    let (store, settled) = open(&options(directory.path()));
    offer_all(&store, (0..200).map(|number| message(number, 500)).collect());
    wait(&settled, 200);
    assert_eq!(check(directory.path()).unwrap().damage, Vec::<String>::new());
    let copy = directory.path().join("copy.sqlite");
    backup(directory.path(), &copy).unwrap();
    assert!(matches!(backup(directory.path(), &copy), Err(StoreError::Io { .. })), "a file is written over");
    drop(store);
    let elsewhere = TempDir::new().unwrap();
    fs::rename(&copy, elsewhere.path().join(FILE)).unwrap();
    assert_eq!(check(elsewhere.path()).unwrap(), check(directory.path()).unwrap());

    // An event is missing.
    let broken = rusqlite::Connection::open(directory.path().join(FILE)).unwrap();
    broken.execute("DELETE FROM uplink WHERE seq = 77", []).unwrap();
    drop(broken);
    assert_eq!(check(directory.path()).unwrap().damage.len(), 2);
}

#[test]
fn under_interval_it_survives_the_process_and_reaches_the_disk_in_time() {
    let directory = TempDir::new().unwrap();
    let every = Duration::from_millis(10);
    let (store, settled) = open(&Options { durability: Durability::Interval(every), ..options(directory.path()) });
    offer_all(&store, (0..10).map(|number| message(number, 1)).collect());
    wait(&settled, 10);
    assert_eq!(all(&after_crash(&directory).1).len(), 10);
    // After a checkpoint the file alone holds it.
    let deadline = Instant::now() + DEADLINE;
    loop {
        let alone = TempDir::new().unwrap();
        fs::copy(directory.path().join(FILE), alone.path().join(FILE)).unwrap();
        if Reader::open(&alone.path().join(FILE)).is_ok_and(|reader| {
            reader.range(Range { first: 1, last: 10 }, usize::MAX).is_ok_and(|events| events.len() == 10)
        }) {
            break;
        }
        assert!(Instant::now() < deadline, "the journal stays out of the file");
        thread::yield_now();
    }
}

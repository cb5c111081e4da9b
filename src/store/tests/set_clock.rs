//! The clock is set under a store: what was acknowledged before has the right time afterwards, and nothing goes for its age alone.

use std::sync::atomic::AtomicI64;
use std::time::SystemTime;

use super::*;
use crate::image::{Change, Head, Message, Profile, Publication, Stamp};
use crate::link::{ChangeMark, QoS};
use crate::time::Timeline;

const DAY_MS: i64 = 24 * 3_600_000;
/// What the wall shows: right, and before it was set.
const RIGHT_MS: i64 = 1_700_000_000_000;
const WRONG_MS: i64 = 7_000;

/// A clock that shows `wall` milliseconds since 1970, at any moment.
fn clock(wall: &Arc<AtomicI64>) -> Arc<Clock> {
    let wall = Arc::clone(wall);
    Arc::new(Clock::with_wall(Instant::now(), move |moment| {
        SystemTime::UNIX_EPOCH
            + Duration::from_millis(wall.load(Ordering::Relaxed) as u64)
            + Duration::from_micros(moment.micros())
    }))
}

fn publication(topic: &str, expires_ms: i64) -> Arc<Publication> {
    Arc::new(Publication {
        topic: topic.into(),
        payload: vec![1].into(),
        qos: QoS::AtLeastOnce,
        retain: true,
        properties: Box::default(),
        expires_ms: Some(expires_ms),
    })
}

fn head(key: u64, away_since_ms: i64) -> Change {
    let profile = Profile {
        version: 5,
        listener: "mqtt".into(),
        keep_alive_s: 60,
        expiry_s: 7 * 86_400,
        receive_maximum: 9,
        packet_maximum: 99,
        alias_maximum: 0,
    };
    Change::Kept(Box::new(Head {
        key: SessionKey(key),
        name: format!("d{key}").into(),
        profile,
        away_since_ms: Some(away_since_ms),
        last_packet: 1,
        will: None,
    }))
}

/// A session that is away since `now_ms`, with a message that lives for a day; and one that is retained for a day.
fn said(key: u64, now_ms: i64, timeline: Timeline) -> Changes {
    let session = SessionKey(key);
    let message = Message {
        number: 1,
        packet: None,
        qos: QoS::AtLeastOnce,
        retain: false,
        identifiers: Vec::new(),
        group: None,
        origin: 0,
        publication: publication("t", now_ms + DAY_MS),
    };
    let retained = publication(&format!("r/{key}"), now_ms + DAY_MS);
    let changes = vec![
        head(key, now_ms),
        Change::Queued { session, message: Box::new(message) },
        Change::Retained { publication: retained, stamp: Stamp::NONE },
    ];
    Changes { worker: WorkerId(0), mark: ChangeMark(key), changes, is_awaited: true, timeline }
}

fn at(number: u32, at_ms: i64) -> Entry {
    Entry { at_ms, ..message(number, 1) }
}

/// Away since, expiry of the message and of the retained one, by key.
fn times(store: &Store) -> Vec<[i64; 3]> {
    let mut all = Vec::new();
    let sessions = |session: KeptSession| all.push((session.head.key, session.head.away_since_ms.unwrap()));
    store.sessions(sessions).unwrap();
    let mut retained = Vec::new();
    store.retained(|publication, _| retained.push(publication.expires_ms.unwrap())).unwrap();
    let message = |key| store.reader().messages(key, (0, 9), 1 << 20).unwrap().0[0].publication.expires_ms.unwrap();
    all.into_iter().zip(retained).map(|((key, since), kept)| [since, message(key), kept]).collect()
}

#[test]
fn what_was_acknowledged_under_a_clock_that_was_wrong_has_the_right_time_when_it_is_set() {
    for (before, after) in [(WRONG_MS, RIGHT_MS), (RIGHT_MS + 400 * DAY_MS, RIGHT_MS)] {
        let directory = TempDir::new().unwrap();
        let wall = Arc::new(AtomicI64::new(before));
        let kept =
            Options { clock: clock(&wall), retention_age: Duration::from_hours(7 * 24), ..options(directory.path()) };
        let (store, settled) = open(&kept);
        let (changes, by_old) = (store.changes(), kept.clock.timeline());
        let now_ms = || kept.clock.unix_ms(kept.clock.now());
        let then = now_ms();
        changes.offer(said(1, then, by_old)).unwrap();
        // More than one group brings along.
        offer_all(&store, (0..10_000).map(|number| at(number, then)).collect());
        assert!(wait(&settled, 10_000).iter().all(|one| one.accepted));
        wall.store(after, Ordering::Relaxed);
        // On their way when the clock was set, by the old one and by the new one.
        changes.offer(said(2, then, by_old)).unwrap();
        changes.offer(said(3, now_ms(), kept.clock.timeline())).unwrap();
        offer_all(&store, vec![at(10_000, then), at(10_001, now_ms())]);
        wait(&settled, 2);
        store.close();
        drop(store);

        let (store, _settled) = open(&kept);
        let now = now_ms();
        let is_right = |at_ms: i64| at_ms.abs_diff(now) < 60_000;
        let found = times(&store);
        assert_eq!(found.len(), 3);
        for [since, message, retained] in found {
            assert!(
                is_right(since) && is_right(message - DAY_MS) && is_right(retained - DAY_MS),
                "{since} {message} {retained}, now {now}"
            );
        }
        let events = all(&store);
        assert_eq!(events.len(), 10_002, "none went for its age");
        assert!(events.iter().all(|event| is_right(event.entry.at_ms)));
    }
}

#[test]
fn what_an_earlier_process_wrote_stays_when_the_clock_is_set() {
    let directory = TempDir::new().unwrap();
    let wall = Arc::new(AtomicI64::new(RIGHT_MS));
    let earlier = Options { clock: clock(&wall), ..options(directory.path()) };
    let (store, settled) = open(&earlier);
    let then = earlier.clock.unix_ms(earlier.clock.now());
    store.changes().offer(said(1, then, earlier.clock.timeline())).unwrap();
    offer_all(&store, vec![at(0, then)]);
    wait(&settled, 1);
    store.close();
    drop(store);
    // The machine starts with no clock, and learns the time.
    wall.store(WRONG_MS, Ordering::Relaxed);
    let later = Options { clock: clock(&wall), ..options(directory.path()) };
    let (store, settled) = open(&later);
    wall.store(RIGHT_MS + 2 * DAY_MS, Ordering::Relaxed);
    offer_all(&store, vec![at(1, later.clock.unix_ms(later.clock.now()))]);
    wait(&settled, 1);
    store.close();
    drop(store);
    let (store, _settled) = open(&later);
    assert_eq!(times(&store), [[then, then + DAY_MS, then + DAY_MS]]);
    let events: Vec<_> = all(&store).iter().map(|event| event.entry.at_ms).collect();
    assert!(events[0] == then && (then + 2 * DAY_MS).abs_diff(events[1]) < 60_000, "{events:?}");
}

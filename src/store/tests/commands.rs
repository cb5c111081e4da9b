//! Commands that wait, and what became of them: what was said to wait is there after a crash, each bound refuses, and nothing gives way.

use super::*;
use crate::commands::{ALL_MAX, Command, Fate, Known, NotPut, PER_DEVICE_MAX, Place};
use crate::store::{COMMAND_OUTCOMES_MAX, CommandStamp};

const VERSION_8: &str = include_str!("version_8.sql");

fn command(payload: usize) -> Command {
    Command {
        tag: "0a1b2c3d".into(),
        topic: "t".into(),
        payload: vec![7; payload].into(),
        put_ms: 1,
        expires_ms: 5,
        by: "edge-1".into(),
    }
}

fn known(fate: Fate, at_ms: u64) -> Known {
    Known { device: "d".into(), fate, at_ms, tries: 1, node: "edge-1".into(), why: None }
}

fn open_shared(options: &Options) -> Arc<Store> {
    Arc::new(open(options).0)
}

/// Rows that were there before the store is opened.
fn fill(directory: &Path, sql: &str) {
    drop(open(&options(directory)));
    rusqlite::Connection::open(directory.join(FILE)).unwrap().execute_batch(sql).unwrap();
}

#[track_caller]
fn expect_full(put: Result<u64, NotPut>, words: &str) {
    let Err(NotPut::Full(why)) = put else { panic!("{put:?}") };
    assert!(why.contains(words), "{why}");
}

#[test]
fn what_waits_and_what_became_of_it_survives_a_crash_and_numbers_are_given_once() {
    let directory = TempDir::new().unwrap();
    let store = open_shared(&options(directory.path()));
    let now = unix_ms() as u64;
    block(async {
        for (number, device) in [(1, "a"), (2, "b"), (3, "a")] {
            assert_eq!(store.put(device, &command(10)).await, Ok(number));
        }
        assert!(store.write_outcome("1-0a1b2c3d", 0, &known(Fate::Sent, now)).await.unwrap());
        assert!(!store.write_outcome("1-0a1b2c3d", 0, &known(Fate::Expired, now)).await.unwrap(), "another stands");
        assert!(store.write_outcome("1-0a1b2c3d", 1, &known(Fate::Acknowledged, now)).await.unwrap());
        assert!(!store.write_outcome("1-0a1b2c3d", 1, &known(Fate::Cancelled, now)).await.unwrap(), "another stands");
        store.remove(1).await.unwrap();
        store.remove(3).await.unwrap();
    });
    assert_eq!(*store.commands().borrow(), CommandStamp { last: 3, rows: 1 });
    let (_copy, after) = after_crash(&directory);
    let after = Arc::new(after);
    assert_eq!(*after.commands().borrow(), CommandStamp { last: 3, rows: 1 });
    block(async {
        assert_eq!(after.outcome("1-0a1b2c3d").await, Ok((2, Some(known(Fate::Acknowledged, now)))));
        assert_eq!(after.outcome("2-0a1b2c3d").await, Ok((0, None)));
        assert_eq!(after.next("a", 1).await, Ok(None));
        assert_eq!(after.next("b", 1).await, Ok(Some((2, Some(command(10))))));
        assert_eq!(after.next("b", 3).await, Ok(None));
        assert_eq!(after.at(2).await, Ok(Some(command(10).brief(2, "b"))));
        assert_eq!((after.at(1).await, after.at(u64::MAX).await), (Ok(None), Ok(None)));
        // Of the latest nothing is left, and its number is not given again.
        assert_eq!(after.put("c", &Command { expires_ms: 9, ..command(0) }).await, Ok(4));
        let numbers = |over| {
            let after = &after;
            async move { after.page(1, over).await.unwrap().iter().map(|listed| listed.number).collect::<Vec<_>>() }
        };
        assert_eq!(
            (numbers(None).await, numbers(Some(8)).await, numbers(Some(4)).await),
            (vec![2, 4], vec![2], vec![])
        );
    });
    drop(after);
    assert_eq!(check(directory.path()).unwrap().damage, [""; 0]);
}

#[test]
fn each_bound_refuses_and_nothing_gives_way() {
    let directory = TempDir::new().unwrap();
    let bounded = Options { command_bytes: 20_000, ..options(directory.path()) };
    let store = open_shared(&bounded);
    block(async {
        for number in 1..=u64::from(PER_DEVICE_MAX) {
            assert_eq!(store.put("d", &command(0)).await, Ok(number));
        }
        expect_full(store.put("d", &command(0)).await, "32 commands wait for it");
        // 128 bytes and its texts: 14,672 bytes are left.
        expect_full(store.put("e", &command(16_000)).await, "take the 20000 bytes");
        let number = store.put("e", &command(10_000)).await.unwrap();
        expect_full(store.put("f", &command(10_000)).await, "take the 20000 bytes");
        store.remove(number).await.unwrap();
        store.put("f", &command(10_000)).await.unwrap();
        store.remove(1).await.unwrap();
        store.put("d", &command(0)).await.unwrap();
        assert_eq!(store.next("d", 1).await.unwrap().unwrap().0, 2, "nothing gave way");
    });
}

#[test]
fn there_are_so_many_in_all_and_so_many_outcomes() {
    let directory = TempDir::new().unwrap();
    let now = unix_ms();
    fill(
        directory.path(),
        &format!(
            "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {ALL_MAX})
             INSERT INTO command (device, tag, put, expires, node, bytes, topic, payload)
                 SELECT 'd-' || n, 'x', 1, 5, 'edge-1', 1, 't', X'' FROM n;
             WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < {COMMAND_OUTCOMES_MAX})
             INSERT INTO command_outcome SELECT n || '-x', 1, 'd', 'expired', {now} + n, 0, 'edge-1', NULL FROM n;"
        ),
    );
    let store = open_shared(&options(directory.path()));
    let outcomes = |connection: &rusqlite::Connection| {
        connection.query_row("SELECT count(*) FROM command_outcome", [], |row| row.get::<_, u64>(0))
    };
    block(async {
        expect_full(store.put("e", &command(0)).await, "100000 commands wait");
        store.remove(7).await.unwrap();
        store.put("e", &command(0)).await.unwrap();
        expect_full(store.put("f", &command(0)).await, "100000 commands wait");
        // The oldest give way to the latest.
        let later = now as u64 + 1_000_000;
        assert!(store.write_outcome("1-new", 0, &known(Fate::Sent, later)).await.unwrap());
        assert_eq!(store.outcome("1-x").await, Ok((0, None)));
        assert_eq!(store.outcome("1-new").await, Ok((1, Some(known(Fate::Sent, later)))));
        assert!(store.reader().query(outcomes).unwrap() <= COMMAND_OUTCOMES_MAX);
    });
    drop(store);
    // And those of more than seven days ago.
    fill(directory.path(), "UPDATE command_outcome SET at = 1000 WHERE id IN ('5-x', '6-x')");
    let store = open_shared(&options(directory.path()));
    block(async {
        store.write_outcome("2-new", 0, &known(Fate::Sent, now as u64)).await.unwrap();
        assert_eq!((store.outcome("5-x").await, store.outcome("6-x").await), (Ok((0, None)), Ok((0, None))));
    });
}

#[test]
fn a_store_of_version_8_is_read() {
    let directory = TempDir::new().unwrap();
    rusqlite::Connection::open(directory.path().join(FILE)).unwrap().execute_batch(VERSION_8).unwrap();
    let store = open_shared(&options(directory.path()));
    block(async {
        let (number, waits) = store.next("meter-1", 1).await.unwrap().unwrap();
        let waits = waits.unwrap();
        assert_eq!((number, &*waits.topic, &waits.payload[..]), (17, "set/relay", &[0, 0xff][..]));
        assert_eq!(waits.brief(number, "meter-1").id, "17-0a1b2c3d");
        let (revision, sent) = store.outcome("17-0a1b2c3d").await.unwrap();
        assert_eq!((revision, sent.map(|known| (known.fate, known.tries))), (2, Some((Fate::Sent, 2))));
        let (_, refused) = store.outcome("18-ffffffff").await.unwrap();
        assert_eq!(refused.unwrap().why.as_deref(), Some("the message is too long for it"));
        assert_eq!(store.put("meter-1", &command(0)).await, Ok(19), "18 was given");
    });
    drop(store);
    assert_eq!(check(directory.path()).unwrap().damage, [""; 0]);
}

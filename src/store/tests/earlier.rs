//! Stores of earlier versions, as gateways of their time have left them, are brought up to date and lose nothing.

use rusqlite::Connection;

use super::*;
use crate::image::{KeptSession, Stamp, Waiting};

/// Two comings and goings, messages of a device, a consumer, a session with four messages, a retained one.
const VERSION_3: &str = include_str!("version_3.sql");

fn pragma(directory: &Path, name: &str) -> i64 {
    let connection = Connection::open(directory.join(FILE)).unwrap();
    connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get(0)).unwrap()
}

#[test]
fn a_store_of_version_3_is_brought_up_to_date() {
    let directory = TempDir::new().unwrap();
    Connection::open(directory.path().join(FILE)).unwrap().execute_batch(VERSION_3).unwrap();
    assert_eq!(pragma(directory.path(), "user_version"), 3);

    let (store, settled) = open(&options(directory.path()));
    assert!(pragma(directory.path(), "user_version") > 3);
    // What was not kept then is not made up.
    let events = all(&store);
    assert_eq!(events.len(), 19);
    let details = |event: &Stored| match &event.entry.what {
        What::Connected(facts) | What::Disconnected(facts, _) => Some(facts.details.clone()),
        What::Message { .. } => None,
    };
    let told: Vec<_> = events.iter().filter_map(details).collect();
    assert!(told.len() > 10 && told.iter().all(Option::is_none));
    assert!(matches!(&events[1].entry.what, What::Disconnected(_, cause) if &**cause == "device_closed"));
    assert_eq!(store.cursor("backend"), Some(2));
    let mut sessions: Vec<KeptSession> = Vec::new();
    store.reader().sessions(|session| sessions.push(session)).unwrap();
    let [session] = &sessions[..] else { panic!("{sessions:?}") };
    assert_eq!((&*session.head.name, session.subscriptions.len()), ("meter-1", 2));
    assert_eq!(session.waiting, Waiting { messages: 4, bytes: 86, last_number: 4 });
    let (messages, is_all) = store.reader().messages(session.head.key, (0, 4), usize::MAX).unwrap();
    assert_eq!((&messages[2].publication.payload[..], messages.len(), is_all), (&b"value 3"[..], 4, true));
    let mut retained = Vec::new();
    store.retained(|publication, stamp| retained.push((publication.topic, stamp))).unwrap();
    assert_eq!(retained, [("site/1/state".into(), Stamp::NONE)]);

    // It goes on: what comes now has its details.
    let new = Entry { receipt: Some(receipt(7)), ..presence(1, Some("expired")) };
    offer_all(&store, vec![new]);
    wait(&settled, 1);
    let latest = store.reader().presence("meter-2", 1).unwrap();
    assert_eq!((latest[0].seq, details(&latest[0]).unwrap().is_some()), (20, true));
    drop(store);
    assert_eq!(check(directory.path()).unwrap().damage, [""; 0]);
}

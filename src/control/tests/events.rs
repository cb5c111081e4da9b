//! Followers of `/v1/events`.

use std::io::{BufRead, BufReader, Read};

use super::*;
use crate::config;

/// One event as a client sees it.
#[derive(Debug)]
struct Seen {
    id: Option<String>,
    event: String,
    data: Value,
}

/// What stands between two blank lines: an id, and an event with its data.
type Block = (Option<String>, Option<(String, Value)>);

/// A reader of the stream. Blank events (ids without data) are kept aside, as browsers do.
struct Follower {
    lines: std::io::Lines<BufReader<Box<dyn Read + Send>>>,
    last_id: Option<String>,
}

impl Follower {
    fn new(stage: &Stage, query: &str, headers: &[(&str, &str)]) -> Self {
        let mut request = ureq::http::Request::get(format!("http://{}/v1/events{query}", stage.control.admin_addr()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = stage.agent.run(request.body(()).unwrap()).unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-cache");
        let body: Box<dyn Read + Send> = Box::new(response.into_body().into_reader());
        let mut follower = Self { lines: BufReader::new(body).lines(), last_id: None };
        follower.read_block();
        assert!(follower.last_id.is_some(), "the greeting says where the stream begins");
        follower
    }

    /// One block, with data or without. `None`: the end.
    fn read_block(&mut self) -> Option<Block> {
        let (mut id, mut event, mut data) = (None, String::new(), None);
        loop {
            let line = self.lines.next()?.unwrap();
            match line.split_once(':') {
                None if line.is_empty() => break,
                Some(("", _)) => {}
                Some(("id", value)) => id = Some(value.trim_start().to_owned()),
                Some(("event", value)) => event = value.trim_start().to_owned(),
                Some(("data", value)) => data = Some(serde_json::from_str(value).unwrap()),
                Some(("retry", value)) => assert_eq!(value.trim(), "1000"),
                other => panic!("{other:?} in {line:?}"),
            }
        }
        if id.is_some() {
            self.last_id.clone_from(&id);
        }
        Some((id, data.map(|data| (event, data))))
    }

    /// The next event with data.
    fn next(&mut self) -> Option<Seen> {
        loop {
            let (id, what) = self.read_block()?;
            if let Some((event, data)) = what {
                openapi::check_event(&data);
                assert_eq!(data["kind"], event.as_str());
                return Some(Seen { id, event, data });
            }
        }
    }

    fn take(&mut self, count: usize) -> Vec<Seen> {
        (0..count).map(|_| self.next().expect("an event")).collect()
    }
}

fn connected(device: &str, sequence: u64) -> WorkerEvent {
    WorkerEvent::Connected(presence(device, sequence))
}

fn payload_of(seen: &Seen) -> u32 {
    let text = seen.data["payload"].as_str().expect("text");
    u32::from_be_bytes(text.as_bytes().try_into().unwrap())
}

#[test]
fn a_follower_sees_what_happens_in_order() {
    let stage = Stage::new(Plan::default());
    stage.say(1, vec![connected("before", 1)]);
    until("it is held", || stage.control.state.backbone.accepted() == 1);
    let mut follower = Follower::new(&stage, "", &[]);
    let gone = Presence {
        last_heard: Moment::from_micros(61_250_000),
        at: Moment::from_micros(90_001_999),
        facts: Box::new(facts("silent")),
        ..presence("d", 3)
    };
    let bytes = Message {
        device: "d".into(),
        connection: connection(1),
        topic: "t".into(),
        payload: Bytes::from_static(&[0xff, 0]),
        published: None,
        receipt: None,
        charge: None,
    };
    stage.say(1, vec![connected("d", 2), message("d", 7, None), WorkerEvent::Message(bytes)]);
    stage.say(1, vec![WorkerEvent::Disconnected(gone, CloseReason::Expired)]);

    let seen = follower.take(4);
    let ids: Vec<_> = seen.iter().map(|seen| seen.id.as_deref().unwrap()).collect();
    assert_eq!(ids, ["42-2", "42-3", "42-4", "42-5"]);
    assert_eq!(
        seen[0].data,
        json!({
            "kind": "connected", "device": "d", "node": "edge-1", "epoch": 42, "generation": 1, "sequence": 2,
            "last_heard": "2023-11-14T22:13:20.000Z", "listener": "devices", "worker": 1,
            "peer": "192.0.2.7:40000", "identity": "hello", "at": "2023-11-14T22:13:20.000Z",
        })
    );
    assert_eq!((payload_of(&seen[1]), &seen[1].data["topic"]), (7, &json!("t")));
    assert_eq!(seen[1].data.get("payload_base64"), None);
    assert_eq!((&seen[2].data["payload_base64"], seen[2].data.get("payload")), (&json!("/wA="), None));
    assert_eq!(
        seen[3].data,
        json!({
            "kind": "disconnected", "device": "d", "node": "edge-1", "epoch": 42, "generation": 1, "sequence": 3,
            "cause": "expired", "detail": "silent", "last_heard": "2023-11-14T22:14:21.250Z", "listener": "devices",
            "worker": 1, "peer": "192.0.2.7:40000", "identity": "hello", "at": "2023-11-14T22:14:50.001Z",
        })
    );
}

#[test]
fn filters_choose_and_wrong_ones_are_refused() {
    let stage = Stage::new(Plan::default());
    let mut one = Follower::new(&stage, "?device=a", &[]);
    let mut kinds = Follower::new(&stage, "?kind=connected,disconnected", &[]);
    let mut both = Follower::new(&stage, "?device=b&kind=message", &[]);
    for round in 0..50 {
        stage.say(0, vec![connected("a", round), message("a", 1, None), connected("b", round), message("b", 2, None)]);
    }
    assert!(one.take(100).iter().all(|seen| seen.data["device"] == "a"));
    assert!(kinds.take(100).iter().all(|seen| seen.event == "connected"));
    assert!(both.take(50).iter().all(|seen| seen.event == "message" && payload_of(seen) == 2));

    for (query, why) in [
        ("?kind=arrived", "unknown kind \"arrived\"; known: connected, disconnected, message"),
        ("?kind=", "unknown kind \"\""),
        ("?kind=connected,", "unknown kind \"\""),
        ("?kinds=message", "unknown key \"kinds\""),
        ("?device=a&device=b", "device is given twice"),
        ("?last_event_id=7", "\"7\" is not the id of an event"),
        ("?last_event_id=42-x", "is not the id of an event"),
        ("?last_event_id=42-201", "event 42-201 has not happened yet"),
    ] {
        let (status, code, message) = stage.get(&format!("/v1/events{query}")).error();
        assert_eq!((status, code.as_str()), (400, "invalid_query"), "{query}");
        assert!(message.contains(why), "{query}: {message}");
    }
}

#[test]
fn a_follower_resumes_behind_what_it_has_seen() {
    let stage = Stage::new(Plan::default());
    let mut follower = Follower::new(&stage, "", &[]);
    stage.say(0, (0..5).map(|number| message("d", number, None)).collect());
    let last = follower.take(3).pop().unwrap().id.unwrap();
    drop(follower);
    stage.say(0, (5..8).map(|number| message("d", number, None)).collect());
    for (query, headers) in [
        (format!("?last_event_id={last}"), vec![]),
        (String::new(), vec![("last-event-id", &*last)]),
        // A browser that comes back: what the header says is newer.
        ("?last_event_id=42-0".to_owned(), vec![("last-event-id", &*last)]),
    ] {
        let mut again = Follower::new(&stage, &query, &headers);
        assert_eq!(again.take(5).iter().map(payload_of).collect::<Vec<_>>(), [3, 4, 5, 6, 7]);
    }
    // All that is held, and what comes.
    let mut all = Follower::new(&stage, "?last_event_id=42-0", &[]);
    stage.say(0, vec![message("d", 8, None)]);
    assert_eq!(all.take(9).iter().map(payload_of).collect::<Vec<_>>(), (0..9).collect::<Vec<_>>());
}

#[test]
fn what_was_missed_is_told() {
    let backbone = config::Backbone { events: 16, bytes: 262_144 };
    let stage = Stage::new(Plan { backbone, ..Plan::default() });
    stage.say(0, (0..40).map(|number| message("d", number, None)).collect());
    until("all are held", || stage.control.state.backbone.accepted() == 40);
    let mut late = Follower::new(&stage, "?last_event_id=42-10", &[]);
    let seen = late.take(17);
    assert_eq!(seen[0].data, json!({"kind": "missed", "count": 14}));
    assert_eq!(seen[0].id.as_deref(), Some("42-24"), "who comes back now is not told again");
    assert_eq!(seen[1..].iter().map(payload_of).collect::<Vec<_>>(), (24..40).collect::<Vec<_>>());

    let mut stranger = Follower::new(&stage, "?last_event_id=41-1000", &[]);
    let seen = stranger.take(17);
    assert_eq!(seen[0].data, json!({"kind": "missed", "count": null}));
    assert_eq!(payload_of(&seen[1]), 24);
}

#[test]
fn a_slow_follower_is_told_and_cut_and_costs_nothing() {
    let backbone = config::Backbone { events: 4_096, bytes: 16 << 20 };
    let stage = Stage::new(Plan { backbone, ..Plan::default() });
    let mut slow = Follower::new(&stage, "", &[]);
    let mut quick = Follower::new(&stage, "?kind=connected", &[]);
    // Far more than any buffer between the two takes.
    let payload = Bytes::from(vec![b'x'; 1_000]);
    let rounds = 40_000;
    for round in 0..rounds {
        let connection = connection(0);
        let message = Message {
            device: "d".into(),
            connection,
            topic: "t".into(),
            payload: payload.clone(),
            published: None,
            receipt: None,
            charge: None,
        };
        stage.say(0, vec![WorkerEvent::Message(message)]);
        if round % 1_000 == 999 {
            // Whoever reads is served all the while.
            stage.say(0, vec![connected("d", round)]);
            assert_eq!(quick.next().unwrap().data["sequence"], round);
        }
    }
    let mut seen = Vec::new();
    while let Some(event) = slow.next() {
        seen.push(event);
    }
    let last = seen.pop().unwrap();
    assert_eq!((last.event.as_str(), last.id), ("lagged", None));
    let missed = last.data["count"].as_u64().unwrap();
    assert!(missed > 10_000, "{missed}");
    // What it saw was whole, and it knows from where to go on.
    assert!(seen.len() > 10);
    let position: usize = slow.last_id.as_deref().unwrap().strip_prefix("42-").unwrap().parse().unwrap();
    assert_eq!(position, seen.len());
    let mut again = Follower::new(&stage, "", &[("last-event-id", slow.last_id.as_deref().unwrap())]);
    let told = again.next().unwrap();
    assert_eq!(told.event, "missed");
    assert!(told.data["count"].as_u64().unwrap() >= missed);
    until("the place is free", || stage.control.state.readers.available_permits() == READERS_MAX - 2);
}

#[test]
fn the_number_of_followers_is_bounded_and_places_come_back() {
    let stage = Stage::new(Plan::default());
    let followers: Vec<_> = (0..READERS_MAX).map(|_| Follower::new(&stage, "", &[])).collect();
    let answer = stage.get("/v1/events");
    assert_eq!((answer.error().0, answer.error().1.as_str()), (503, "too_many_readers"));
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(stage.get("/v1/overview").status, 200);
    drop(followers);
    until("their places are free", || stage.control.state.readers.available_permits() == READERS_MAX);
}

#[test]
fn followers_hear_to_the_last_event_and_then_the_end() {
    let stage = Stage::new(Plan::default());
    let mut follower = Follower::new(&stage, "", &[]);
    for sequence in 1..=100 {
        let gone = WorkerEvent::Disconnected(presence("d", sequence), CloseReason::Shutdown);
        stage.uplink.events.send(Batch::new(WorkerId(0), vec![gone])).unwrap();
    }
    let begun = Instant::now();
    let Stage { control, .. } = stage;
    let ending = thread::spawn(move || control.shutdown());
    assert_eq!(follower.take(100).last().unwrap().data["sequence"], 100);
    assert!(follower.next().is_none());
    ending.join().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

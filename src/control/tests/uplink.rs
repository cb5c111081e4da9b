//! Consumers of `/v1/uplink`, as they see it.

use tempfile::TempDir;

use super::*;

fn stage(directory: &TempDir) -> Stage {
    Stage::new(Plan { silent: Some(1), store: Some(directory.path().into()), ..Plan::default() })
}

/// Lets worker 1 say `count` messages to be acknowledged, and waits for that.
fn say_messages(stage: &Stage, numbers: std::ops::Range<u32>) {
    stage.say(1, numbers.clone().map(|number| message("meter-1", number, Some(number))).collect());
    for number in numbers {
        match stage.silent[0].recv_timeout(DEADLINE).unwrap() {
            WorkerCommand::MessageSettled { receipt: Receipt::Connection(_, settled), accepted: true } => {
                assert_eq!(settled, number);
            }
            other => panic!("{other:?}"),
        }
    }
}

fn sequence(batch: &Value) -> Vec<u64> {
    batch["events"].as_array().unwrap().iter().map(|event| event["seq"].as_u64().unwrap()).collect()
}

#[test]
fn a_consumer_gets_each_event_until_it_is_acknowledged_also_after_a_restart() {
    let directory = TempDir::new().unwrap();
    let first = stage(&directory);
    first.say(1, vec![WorkerEvent::Connected(presence("meter-1", 1))]);
    say_messages(&first, 0..3);

    let batch = first.get("/v1/uplink?consumer=billing&max=2").json();
    assert_eq!((sequence(&batch), &batch["missed"]), (vec![1, 2], &json!(0)));
    assert_eq!(
        (&batch["events"][0]["kind"], &batch["events"][0]["listener"]),
        (&json!("connected"), &json!("devices"))
    );
    assert_eq!(batch["events"][1]["topic"], "t");
    // Another reader gets what the first one has not.
    assert_eq!(sequence(&first.get("/v1/uplink?consumer=billing").json()), [3, 4]);
    let mut ack = batch["ack"].clone();
    ack["consumer"] = "billing".into();
    assert_eq!(first.post("/v1/uplink/ack", &ack).json(), json!({"consumer": "billing", "cursor": 2}));
    first.control.shutdown();

    let second = stage(&directory);
    assert_eq!(sequence(&second.get("/v1/uplink?consumer=billing").json()), [3, 4]);
    assert_eq!(sequence(&second.get("/v1/uplink?consumer=other&from=end").json()), [0_u64; 0]);
    let listed = second.get("/v1/uplink/consumers").json();
    assert_eq!((&listed["first"], &listed["last"]), (&json!(1), &json!(4)));
    assert_eq!(listed["consumers"][0]["behind"], 2);
    assert_eq!(listed["consumers"][1]["behind"], 0);

    let seek = json!({"consumer": "other", "to": "first"});
    assert_eq!(second.post("/v1/uplink/seek", &seek).json()["cursor"], 0);
    // By a time: what was said in 2023 lies behind none of today, and all of it behind 1970.
    for (to, cursor) in [("1970-01-02T00:00:00Z", 0), ("2099-01-01T00:00:00Z", 4)] {
        let seek = json!({"consumer": "other", "to": to});
        assert_eq!(second.post("/v1/uplink/seek", &seek).json()["cursor"], cursor, "{to}");
    }
    let begun = second.get("/v1/uplink?consumer=by-time&from=1970-01-02T00:00:00Z").json();
    assert_eq!(sequence(&begun), [1, 2, 3, 4]);
    assert_eq!(second.send("DELETE", "/v1/uplink/consumers/by-time", &[], "").status, 200);
    assert_eq!(second.post("/v1/uplink/seek", &seek).json()["cursor"], 0);
    let deleted = second.send("DELETE", "/v1/uplink/consumers/other", &[], "");
    assert_eq!(deleted.json()["cursor"], 0);
    assert_eq!(second.send("DELETE", "/v1/uplink/consumers/other", &[], "").error().1, "consumer_not_found");
    second.control.shutdown();
}

#[test]
fn a_reader_that_waits_hears_of_the_next_event() {
    let directory = TempDir::new().unwrap();
    let stage = stage(&directory);
    assert_eq!(sequence(&stage.get("/v1/uplink?consumer=c").json()), [0_u64; 0]);
    thread::scope(|scope| {
        let reader = scope.spawn(|| stage.get("/v1/uplink?consumer=c&wait=20s").json());
        say_messages(&stage, 0..1);
        assert_eq!(sequence(&reader.join().unwrap()), [1]);
    });
    // What was not acknowledged in time comes again, to one who waits for it.
    let again = stage.get("/v1/uplink?consumer=d&lease=1s").json();
    assert_eq!(sequence(&again), [1]);
    assert_eq!(sequence(&stage.get("/v1/uplink?consumer=d&wait=20s").json()), [1]);
    stage.control.shutdown();
}

#[test]
fn lines_say_in_headers_what_to_acknowledge() {
    let directory = TempDir::new().unwrap();
    let stage = stage(&directory);
    say_messages(&stage, 0..2);
    let answer = stage.request("GET", "/v1/uplink?consumer=c", &[("accept", "application/x-ndjson")]);
    assert_eq!((&*answer.headers["pulsegate-ack"], &*answer.headers["pulsegate-missed"]), ("1-2", "0"));
    let lines: Vec<Value> = answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[1]["seq"]), (2, &json!(2)));
    stage.control.shutdown();
}

#[test]
fn what_a_consumer_may_not_ask_is_told() {
    let directory = TempDir::new().unwrap();
    let stage = stage(&directory);
    for (path, code) in [
        ("/v1/uplink", "invalid_query"),
        ("/v1/uplink?consumer=c&max=0", "invalid_query"),
        ("/v1/uplink?consumer=c&wait=2m", "invalid_query"),
        ("/v1/uplink?consumer=c&lease=10ms", "invalid_query"),
        ("/v1/uplink?consumer=c&from=yesterday", "invalid_query"),
        ("/v1/uplink?consumer=a%20b", "invalid_query"),
    ] {
        assert_eq!(stage.get(path).error().1, code, "{path}");
    }
    say_messages(&stage, 0..1);
    stage.get("/v1/uplink?consumer=c");
    for (order, code) in [
        (json!({"consumer": "c", "last": 2}), "invalid_body"),
        (json!({"consumer": "c", "first": 2, "last": 1}), "invalid_body"),
        (json!({"consumer": "nobody", "last": 1}), "consumer_not_found"),
    ] {
        assert_eq!(stage.post("/v1/uplink/ack", &order).error().1, code, "{order}");
    }
    stage.control.shutdown();

    let without = Stage::new(Plan::default());
    assert_eq!(without.get("/v1/uplink?consumer=c").error(), {
        let message = "nothing is kept for consumers: store.durability is \"memory\"; follow GET /v1/events instead";
        (409, "no_store".to_owned(), message.to_owned())
    });
}

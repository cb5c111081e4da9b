//! What devices are told, one by one or many at once.

use super::*;

fn devices(names: &[&str]) -> Plan {
    Plan { devices: names.iter().copied().map(str::to_owned).collect(), ..Plan::default() }
}

fn code(answer: &Answer) -> (u16, String) {
    let (status, code, _) = answer.error();
    (status, code)
}

#[test]
fn a_message_has_an_outcome() {
    let stage = Stage::new(devices(&["meter", "raw-1", "deaf-1", "gone-1", "a/b c"]));
    let send = |device: &str, body: Value| stage.post(&format!("/v1/devices/{device}/messages"), &body);
    let outcome = |answer: Answer| (answer.status, answer.json()["outcome"].clone());

    let hello = json!({"topic": "set", "payload": "on"});
    assert_eq!(outcome(send("meter", hello.clone())), (200, json!("delivered")));
    assert_eq!(stage.told(), ["meter set b\"on\" false"]);
    let base64 = json!({"topic": "set", "payload_base64": "AP8=", "ack": true, "timeout": "1s"});
    assert_eq!(outcome(send("meter", base64)), (200, json!("acknowledged")));
    assert_eq!(stage.told(), ["meter set b\"\\x00\\xff\" true"]);
    assert_eq!(outcome(send("a%2Fb%20c", json!({"payload": ""}))), (200, json!("delivered")));
    assert_eq!(stage.told(), ["a/b c  b\"\" false"]);

    assert_eq!(code(&send("nobody", hello.clone())), (404, "device_offline".to_owned()));
    let wants_ack = json!({"payload": "x", "ack": true, "timeout": "150ms"});
    let answer = send("raw-1", wants_ack.clone());
    assert_eq!(code(&answer), (409, "refused".to_owned()));
    assert!(answer.error().2.contains("its protocol has no acknowledgements"), "{}", answer.text);
    assert_eq!(code(&send("gone-1", wants_ack.clone())), (504, "unacknowledged".to_owned()));

    let begun = Instant::now();
    let answer = send("deaf-1", wants_ack);
    assert_eq!(code(&answer), (504, "ack_timeout".to_owned()));
    assert!(answer.error().2.contains("within 150ms"), "{}", answer.text);
    assert!(begun.elapsed() >= Duration::from_millis(150));
    assert_eq!(stage.control.state.sent.len(), 0);
}

#[test]
fn a_publication_goes_to_the_topic_s_worker() {
    let stage = Stage::new(Plan::default());
    let publish = |body: Value| stage.post("/v1/publish", &body);
    let answer = publish(json!({"topic": "a/b", "payload": "x"}));
    assert_eq!((answer.status, answer.json()), (202, json!({"outcome": "accepted"})));
    assert_eq!(stage.told(), ["publish a/b b\"x\" 0 false false"]);
    let whole = json!({"topic": "a", "payload_base64": "", "qos": 2, "retain": true, "expiry": "1m"});
    assert_eq!(publish(whole).status, 202);
    assert_eq!(stage.told(), ["publish a b\"\" 2 true true"]);
    for (body, why) in [
        (json!({"payload": "x"}), "missing field `topic`"),
        (json!({"topic": "", "payload": "x"}), "topic is empty"),
        (json!({"topic": "a/+", "payload": "x"}), "\"a/+\" holds a wildcard"),
        (json!({"topic": "a\u{0}", "payload": "x"}), "null character"),
        (json!({"topic": "$SYS/uptime", "payload": "x"}), "begins with $SYS"),
        (json!({"topic": "a".repeat(65_536), "payload": "x"}), "topic is 65536 bytes long; MQTT takes at most 65535"),
        (
            json!({"topic": "a".to_owned() + &"/a".repeat(200), "payload": "x"}),
            "201 levels; limits.topic_levels is 200",
        ),
        (json!({"topic": "a", "payload": "x", "qos": 3}), "qos must be 0, 1 or 2, not 3"),
        (json!({"topic": "a", "payload": "x", "expiry": "10ms"}), "at least \"1s\""),
        (json!({"topic": "a"}), "either payload or payload_base64"),
    ] {
        let answer = publish(body);
        assert_eq!(code(&answer), (400, "invalid_body".to_owned()));
        assert!(answer.error().2.contains(why), "{}", answer.text);
    }
    assert!(stage.told().is_empty());
    // Of MQTT's own length, which is more than what one device may be told takes.
    let long = "a".repeat(65_535);
    assert_eq!(publish(json!({"topic": long, "payload": "x"})).status, 202);
    assert_eq!(stage.told(), [format!("publish {long} b\"x\" 0 false false")]);
}

#[test]
fn a_publication_that_its_worker_does_not_take_fails_in_time() {
    let stage = Stage::new(Plan { silent: Some(0), inbox: 1, workers: 1, ..Plan::default() });
    let order = json!({"topic": "a", "payload": "x"});
    let answer = stage.post("/v1/publish", &order);
    assert_eq!(code(&answer), (503, "worker_busy".to_owned()));
    // The inbox is full now: no waiting.
    let begun = Instant::now();
    assert_eq!(code(&stage.post("/v1/publish", &order)), (503, "worker_busy".to_owned()));
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!(stage.control.state.sent.len(), 0);
}

#[test]
fn what_is_not_a_message_is_told_why() {
    let stage = Stage::new(devices(&["meter"]));
    let path = "/v1/devices/meter/messages";
    for (body, why) in [
        (json!({}), "either payload or payload_base64"),
        (json!({"payload": "a", "payload_base64": "YQ=="}), "either payload or payload_base64"),
        (json!({"payload": 7}), "expected a string"),
        (json!({"payload": "a", "pay": 1}), "unknown field `pay`"),
        (json!({"payload_base64": "YQ"}), "not base64"),
        (json!({"payload_base64": "Y!=="}), "not base64"),
        (json!({"payload": "a", "topic": "x\u{7}"}), "without control characters"),
        (json!({"payload": "a", "topic": "x".repeat(256)}), "at most 255 bytes"),
        (json!({"payload": "a", "ack": true, "timeout": "61s"}), "not \"61s\""),
        (json!({"payload": "a", "ack": true, "timeout": "5"}), "not \"5\""),
        (json!(["a"]), "not as it must be"),
    ] {
        let (status, code, message) = stage.post(path, &body).error();
        assert_eq!((status, code.as_str()), (400, "invalid_body"), "{body}");
        assert!(message.contains(why), "{body}: {message}");
    }
    let answer = stage.send("POST", path, &[("content-type", "application/json")], "{\"payload\": ");
    assert_eq!(code(&answer), (400, "invalid_body".to_owned()));
    // Anything else could be sent by any web page.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx"] {
        let answer = stage.send("POST", path, &[("content-type", kind)], "{\"payload\": \"a\"}");
        assert_eq!(code(&answer), (415, "unsupported_media_type".to_owned()), "{kind}");
    }
    let kind = [("content-type", "Application/JSON; charset=utf-8")];
    assert_eq!(stage.send("POST", path, &kind, "{\"payload\": \"a\"}").status, 200);

    assert_eq!(stage.post(path, &json!({"payload": "x".repeat(65_535)})).status, 200);
    assert_eq!(code(&stage.post(path, &json!({"payload": "x".repeat(65_536)}))), (413, "too_large".to_owned()));
    // The longest payload with every character escaped is still taken; a body that could hold no payload is not.
    let escaped = "\\u0001".repeat(65_535);
    let answer = stage.send("POST", path, &kind, &format!("{{\"payload\": \"{escaped}\"}}"));
    assert_eq!(answer.status, 200, "{}", answer.text);
    let huge = json!({"payload": "x".repeat(500_000)});
    assert_eq!(code(&stage.post(path, &huge)), (413, "too_large".to_owned()));
}

#[test]
fn a_device_can_be_sent_away() {
    let stage = Stage::new(devices(&["meter"]));
    let answer = stage.request("DELETE", "/v1/devices/meter/connection", &[]);
    assert_eq!((answer.status, answer.text.as_str()), (204, ""));
    assert_eq!(stage.told(), ["meter disconnect"]);
    let answer = stage.request("DELETE", "/v1/devices/nobody/connection", &[]);
    assert_eq!(code(&answer), (404, "device_offline".to_owned()));
}

#[test]
fn a_silent_worker_makes_commands_fail_in_time() {
    let stage = Stage::new(Plan { silent: Some(0), inbox: 3, workers: 1, ..Plan::default() });
    let begun = Instant::now();
    let answer = stage.post("/v1/devices/d/messages", &json!({"payload": "x"}));
    assert_eq!(code(&answer), (503, "worker_busy".to_owned()));
    assert_eq!(code(&stage.request("DELETE", "/v1/devices/d/connection", &[])), (503, "worker_busy".to_owned()));
    assert!(begun.elapsed() < Duration::from_secs(8));
    let order = json!({"payload": "x"});
    assert_eq!(stage.post("/v1/broadcast", &order).status, 202);
    // The inbox is full now.
    let begun = Instant::now();
    assert_eq!(code(&stage.post("/v1/broadcast", &order)), (503, "worker_busy".to_owned()));
    let answer = stage.post("/v1/devices/d/messages", &json!({"payload": "x"}));
    assert_eq!(code(&answer), (503, "worker_busy".to_owned()));
    assert!(begun.elapsed() < Duration::from_secs(1));
}

#[test]
fn who_waits_for_devices_takes_no_place_from_who_asks_the_gateway() {
    let stage = Stage::new(devices(&["deaf-1"]));
    let (agent, addr) = (&stage.agent, stage.control.admin_addr());
    let order = json!({"payload": "x", "ack": true, "timeout": "3s"}).to_string();
    let send = || {
        let headers = [("content-type", "application/json")];
        request(agent, addr, "POST", "/v1/devices/deaf-1/messages", &headers, &order)
    };
    thread::scope(|scope| {
        let sending: Vec<_> = (0..SENDS_MAX).map(|_| scope.spawn(send)).collect();
        until("all places are taken", || stage.control.state.sends.available_permits() == 0);
        assert_eq!(code(&send()), (503, "api_busy".to_owned()));
        assert_eq!(stage.get("/v1/overview").status, 200);
        for sent in sending {
            assert_eq!(code(&sent.join().unwrap()), (504, "ack_timeout".to_owned()));
        }
    });
}

#[test]
fn a_broadcast_is_begun_followed_and_done() {
    let names: Vec<_> = (0..40).map(|number| format!("meter-{number}")).chain(["other".to_owned()]).collect();
    let stage = Stage::new(Plan { devices: names, ..Plan::default() });
    let order = json!({"topic": "t", "payload": "all", "prefix": "meter-", "per_second": 10});
    let answer = stage.post("/v1/broadcast", &order);
    assert_eq!(answer.status, 202);
    let begun = answer.json();
    assert_eq!(begun, json!({"id": "42-1", "url": "/v1/broadcasts/42-1"}));
    assert_eq!(answer.headers["location"], "/v1/broadcasts/42-1");
    let mut progress = Value::Null;
    until("the broadcast is done", || {
        progress = stage.get("/v1/broadcasts/42-1").json();
        progress["state"] == "done"
    });
    assert_eq!((&progress["sent"], &progress["refused"]), (&json!(40), &json!(0)));
    let shares = progress["workers"].as_array().unwrap();
    assert_eq!(shares.iter().map(|share| share["sent"].as_u64().unwrap()).sum::<u64>(), 40);
    assert!(shares.iter().all(|share| share["over"] == true));
    let mut told = stage.told();
    told.sort_unstable();
    assert_eq!(
        told,
        ["broadcast meter- t b\"all\" 3/s", "broadcast meter- t b\"all\" 3/s", "broadcast meter- t b\"all\" 4/s"]
    );
    // One that is over stays as it is.
    assert_eq!(stage.request("DELETE", "/v1/broadcasts/42-1", &[]).json()["state"], "done");
}

#[test]
fn a_broadcast_can_be_cancelled() {
    let names: Vec<_> = (0..40).map(|number| format!("slow-{number}")).collect();
    let stage = Stage::new(Plan { devices: names, ..Plan::default() });
    let url = stage.post("/v1/broadcast", &json!({"payload": "x", "prefix": "slow-"})).json()["url"].clone();
    let url = url.as_str().unwrap();
    until("each worker has told one", || stage.get(url).json()["sent"] == 3);
    assert_eq!(stage.get(url).json()["state"], "running");
    assert_eq!(stage.request("DELETE", url, &[]).status, 200);
    until("it is cancelled", || stage.get(url).json()["state"] == "cancelled");
    assert_eq!(stage.get(url).json()["sent"], 3);
}

#[test]
fn broadcasts_that_are_not_there_or_not_right() {
    let stage = Stage::new(Plan::default());
    for id in ["42-1", "41-1", "1", "x-y", "42-", "-1"] {
        let path = format!("/v1/broadcasts/{id}");
        assert_eq!(code(&stage.get(&path)), (404, "broadcast_not_found".to_owned()), "{id}");
        assert_eq!(code(&stage.request("DELETE", &path, &[])), (404, "broadcast_not_found".to_owned()), "{id}");
    }
    for body in [
        json!({"payload": "x", "per_second": 0}),
        json!({"payload": "x", "per_second": 1_000_001}),
        json!({"payload": "x", "per_second": -1}),
        json!({"prefix": "x"}),
        json!({"payload": "x", "ack": true}),
    ] {
        assert_eq!(code(&stage.post("/v1/broadcast", &body)), (400, "invalid_body".to_owned()), "{body}");
    }
    assert_eq!(stage.told(), Vec::<String>::new());
}

#[test]
fn the_number_of_broadcasts_under_way_is_bounded() {
    let stage = Stage::new(Plan { workers: 1, ..devices(&["slow-1"]) });
    let order = json!({"payload": "x", "prefix": "slow-"});
    for _ in 0..crate::control::broadcasts::RUNNING_MAX {
        assert_eq!(stage.post("/v1/broadcast", &order).status, 202);
    }
    let answer = stage.post("/v1/broadcast", &order);
    assert_eq!(code(&answer), (503, "too_many_broadcasts".to_owned()));
    assert_eq!(answer.headers["retry-after"], "1");
}

#[test]
fn a_broadcast_that_not_every_worker_takes_is_taken_back() {
    let stage = Stage::new(Plan { silent: Some(2), inbox: 0, devices: vec!["slow-1".into()], ..Plan::default() });
    until("the played workers wait", || {
        let order = json!({"payload": "x", "prefix": "slow-"});
        let (status, _, message) = stage.post("/v1/broadcast", &order).error();
        status == 503 && message.contains("worker 2")
    });
    let broadcasts = &stage.control.state.broadcasts;
    until("it is cancelled", || {
        (1..100).all(|number| {
            let progress = broadcasts.progress(number);
            progress.is_none_or(|progress| progress.stage.label() == "cancelled")
        })
    });
}

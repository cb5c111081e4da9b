//! `/v1/devices/{id}/history`: what is told of ends.

use tempfile::TempDir;

use super::*;

#[test]
fn the_ends_of_a_device_are_told_with_all_that_is_known() {
    let stage = Stage::new(Plan::default());
    assert_eq!(stage.get("/v1/devices/nobody/history").json(), json!({"device": "nobody", "ends": []}));
    let gone = Presence {
        at: Moment::from_micros(90_001_999),
        generation: 7,
        facts: Box::new(facts("nothing was heard")),
        ..presence("meter/1", 3)
    };
    let refused = NotAdmitted {
        device: "meter/1".into(),
        listener: ListenerId(1),
        reason: CloseReason::TokenRejected,
        at: Moment::from_micros(95_000_000),
        facts: ConnectionFacts { peer: None, ..facts("the token is not right for this device") },
    };
    let stranger = NotAdmitted { device: "".into(), ..refused.clone() };
    stage.say(1, vec![WorkerEvent::Disconnected(gone, CloseReason::Expired)]);
    stage.say(0, vec![WorkerEvent::NotAdmitted(Box::new(refused)), WorkerEvent::NotAdmitted(Box::new(stranger))]);
    until("both ends are there", || stage.control.state.history.of("meter/1").len() == 2);

    let ends = stage.get("/v1/devices/meter%2F1/history").json()["ends"].take();
    assert_eq!(
        ends[1],
        json!({
            "at": "2023-11-14T22:14:50.001Z", "reason": "expired", "detail": "nothing was heard", "was_connected": true,
            "connected_at": "2023-11-14T22:13:20.000Z", "generation": 7, "listener": "devices", "protocol": "native",
            "peer": "192.0.2.7:40000", "identity": "hello", "tls_version": "TLSv1.3",
            "meaning": ends[1]["meaning"], "look_at": ends[1]["look_at"], "remedy": ends[1]["remedy"],
        })
    );
    assert!(ends[1]["meaning"].as_str().unwrap().starts_with("Nothing was heard"));
    let text = |key: &str| ends[0][key].as_str();
    assert_eq!((text("reason"), text("listener"), text("peer")), (Some("token_rejected"), Some("meters"), None));
    assert_eq!((&ends[0]["was_connected"], &ends[0]["generation"]), (&json!(false), &json!(null)));
    assert!(text("remedy").unwrap().contains("hash-token"));
}

#[test]
fn ends_of_connected_devices_are_told_in_the_next_life_too() {
    let directory = TempDir::new().unwrap();
    let stage = |epoch| Stage::new(Plan { store: Some(directory.path().into()), epoch, ..Plan::default() });
    let gone = |seconds: u64| Presence {
        at: Moment::from_micros(seconds * 1_000_000),
        generation: 7,
        facts: Box::new(facts("nothing was heard")),
        ..presence("meter-1", seconds)
    };
    let first = stage(42);
    for seconds in [1, 2] {
        first.say(
            1,
            vec![WorkerEvent::Connected(gone(seconds)), WorkerEvent::Disconnected(gone(seconds), CloseReason::Expired)],
        );
    }
    until("they are safe", || first.control.state.store.as_ref().unwrap().head().borrow().last == 4);
    let told = first.get("/v1/devices/meter-1/history").json()["ends"].take();
    assert_eq!(told.as_array().unwrap().len(), 2, "once, though the store has them too");
    first.control.shutdown();

    let second = stage(43);
    assert_eq!(second.get("/v1/devices/meter-1/history").json()["ends"], told);
    second.say(1, vec![WorkerEvent::Disconnected(gone(3), CloseReason::TakenOver)]);
    until("it is there", || second.control.state.history.of("meter-1").len() == 1);
    let all = second.get("/v1/devices/meter-1/history").json()["ends"].take();
    let reasons: Vec<_> = all.as_array().unwrap().iter().map(|end| end["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["taken_over", "expired", "expired"]);
    // As consumers have them.
    let events = second.get("/v1/uplink?consumer=c&max=2").json()["events"].take();
    assert_eq!(
        (&events[1]["peer"], &events[1]["identity"], &events[1]["detail"], &events[1]["connected_at"]),
        (&json!("192.0.2.7:40000"), &json!("hello"), &json!("nothing was heard"), &told[0]["connected_at"])
    );
    assert_eq!(events[0]["detail"], Value::Null);
}

//! The overview and the devices.

use super::*;

#[test]
fn the_overview_sums_what_workers_published() {
    // Told at 1,700,000,000 seconds: one ends three days and a second later, one has ended a second ago.
    let chain = |name: &str, not_after| ChainFacts { names: vec![name.to_owned()], not_after };
    let chains = vec![chain("a.example", 1_700_259_201 + 60), chain("b.example", 1_699_999_999)];
    let inventory = Inventory { certificates: vec![chains, Vec::new()], memory_budget: 123_456 };
    let stage = Stage::new(Plan { inventory, ..Plan::default() });
    for worker in 0..3 {
        stage.publish(worker, |counters| {
            let worker = worker as u64;
            counters.set(Metric::Connections, 100 + worker);
            counters.set(Metric::Devices, 90 + worker);
            counters.set(Metric::HandshakesInFlight, worker);
            counters.set(Metric::LoopLateness, 1_500 * worker);
            counters.set(Metric::HandshakesWaiting, 7 * worker);
            counters.set(Metric::HandshakesLongestWait, 40 * worker);
            counters.set(Metric::PoolUsed, 1_000);
            counters.add(Metric::Accepted, 110);
            counters.add(Metric::HandshakesFull, 60);
            counters.add(Metric::HandshakesResumed, 40);
            counters.add(Metric::MessagesReceived, 5);
            counters.add(Metric::MessagesSent, 4);
            counters.add(Metric::HeartbeatsSent, 10);
            counters.add(Metric::HeartbeatsAnswered, 9);
            counters.count_closed(CloseReason::Expired as usize);
            counters.count_refused_by(0, Refusal::AddressRate as usize);
        });
    }
    stage.publish(0, |counters| counters.count_closed(CloseReason::NotTls as usize));
    let answer = stage.get("/v1/overview");
    assert_eq!(answer.status, 200);
    let overview = answer.json();
    assert_eq!(overview["connections"], 203);
    assert_eq!(overview["devices"], 183);
    assert_eq!(overview["heartbeats_sent"], 20);
    assert_eq!(overview["heartbeats_answered"], 18);
    assert_eq!(overview["expired"], 2);
    assert_eq!(overview["closed"]["expired"], 2);
    assert_eq!(overview["closed"]["not_tls"], 1);
    assert_eq!(overview["closed"].as_object().unwrap().len(), CloseReason::COUNT);
    assert_eq!(overview["refused"]["address_rate"], 2);
    assert_eq!(overview["refused"].as_object().unwrap().len(), Refusal::COUNT);
    assert_eq!(
        overview["workers"][2],
        json!({"worker": 2, "connections": 102, "devices": 92, "handshakes_in_flight": 2, "handshakes_waiting": 14,
               "handshakes_longest_wait_ms": 80, "loop_lateness_ms": 3.0})
    );
    assert_eq!(
        overview["listeners"],
        json!([
            {"name": "devices", "protocol": "native", "transport": "tls", "path": null, "address": "127.0.0.1:7443", "alpn": ["pulsegate/1"], "certificates": [
                {"names": ["a.example"], "not_after": "2023-11-17T22:14:21Z", "days_left": 3},
                {"names": ["b.example"], "not_after": "2023-11-14T22:13:19Z", "days_left": -1},
            ]},
            {"name": "meters", "protocol": "raw", "transport": "tls", "path": null, "address": "127.0.0.1:7444", "alpn": [], "certificates": []},
        ])
    );
    assert_eq!((&overview["node"], &overview["epoch"]), (&json!("edge-1"), &json!(42)));
    let figures =
        ["accepted", "handshakes_full", "handshakes_resumed", "messages_received", "messages_sent", "sessions"];
    assert_eq!(figures.map(|key| overview[key].as_u64().unwrap()), [220, 120, 80, 10, 8, 0]);
    assert_eq!(overview["connections_max"], 1_000);
    assert_eq!(
        (&overview["memory"]["budget_bytes"], &overview["memory"]["pool_used_bytes"]),
        (&json!(123_456), &json!(2_000))
    );
    assert_eq!(overview["version"], env!("CARGO_PKG_VERSION"));
    assert!(overview["uptime_s"].as_u64().unwrap() < 60);
    assert!(overview["memory"]["process_resident_bytes"].as_u64().unwrap() > 1 << 20);
    assert!(overview["memory"]["resident_bytes"].is_u64());
}

#[test]
fn one_device_is_described_by_its_home() {
    let devices = ["meter-1", "mqtt-1", "urn:dev:a/b c?", "zähler"].map(str::to_owned).to_vec();
    let stage = Stage::new(Plan { devices, ..Plan::default() });
    let answer = stage.get("/v1/devices/meter-1");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.json(),
        json!({
            "id": "meter-1", "state": "heard", "protocol": "native", "listener": "devices",
            "peer": "192.0.2.7:40000", "tls_version": "TLSv1.3", "tls_suite": "TLS13_AES_128_GCM_SHA256",
            "identity": "hello", "connected_at": "2023-11-14T22:13:21.500Z", "last_heard": "2023-11-14T22:14:21.250Z",
            "round_trip_ms": 12.345, "generation": 17, "worker": stage.home.of("meter-1").0, "epoch": 42,
            "session": null,
        })
    );
    assert_eq!(
        stage.get("/v1/devices/mqtt-1").json()["session"],
        json!({
            "version": "5.0", "keep_alive_s": 60, "expiry_s": null, "inflight": 1, "queued": 2, "queued_bytes": 30,
            "subscriptions": [{"filter": "devices/+/set", "qos": 1}], "subscription_count": 1,
        })
    );
    assert_eq!(stage.get("/v1/devices/urn:dev:a%2Fb%20c%3F").json()["id"], "urn:dev:a/b c?");
    assert_eq!(stage.get("/v1/devices/z%C3%A4hler").json()["id"], "zähler");

    let (status, code, message) = stage.get("/v1/devices/meter-2").error();
    assert_eq!((status, code.as_str()), (404, "device_not_found"));
    assert!(message.contains("\"meter-2\""), "{message}");
    let (status, code, _) = stage.get("/v1/devices/%FF").error();
    assert_eq!((status, code.as_str()), (400, "invalid_path"));
}

#[test]
fn paging_walks_through_all_workers_once_and_in_order() {
    let mut devices: Vec<_> = (0..250).map(|number| format!("meter-{number}")).collect();
    devices.push("other".into());
    let stage = Stage::new(Plan { devices: devices.clone(), ..Plan::default() });
    devices.sort_unstable();
    let ids = |page: &Value| -> Vec<String> {
        page["devices"].as_array().unwrap().iter().map(|device| device["id"].as_str().unwrap().to_owned()).collect()
    };

    for limit in [7, 83, 250, 251, 1_000] {
        let (mut seen, mut after, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let page = stage.get(&format!("/v1/devices?limit={limit}&after={after}")).json();
            assert!(ids(&page).len() <= limit);
            seen.extend(ids(&page));
            pages += 1;
            match page["next"].as_str() {
                Some(next) => {
                    assert_eq!(ids(&page).len(), limit, "a page that is not the last is full");
                    next.clone_into(&mut after);
                }
                None => break,
            }
        }
        assert_eq!(seen, devices, "{limit}");
        assert!(pages <= devices.len() / limit + 1, "{pages} pages of {limit}");
    }

    let page = stage.get("/v1/devices").json();
    assert_eq!((ids(&page).len(), page["next"].as_str()), (100, Some(devices[99].as_str())));
    let page = stage.get("/v1/devices?prefix=oth").json();
    assert_eq!((ids(&page), &page["next"]), (vec!["other".to_owned()], &Value::Null));
    let page = stage.get("/v1/devices?prefix=meter-24&limit=3&after=meter-24").json();
    assert_eq!(ids(&page), ["meter-240", "meter-241", "meter-242"]);
    assert_eq!(stage.get("/v1/devices?prefix=none").json(), json!({"devices": [], "next": null}));
}

#[test]
fn a_wrong_query_is_told_what_is_wrong() {
    let stage = Stage::new(Plan::default());
    for (query, expected) in [
        ("limit=0", "limit must be a whole number from 1 to 1000, not \"0\""),
        ("limit=1001", "not \"1001\""),
        ("limit=-1", "not \"-1\""),
        ("limit=ten", "not \"ten\""),
        ("limit=", "not \"\""),
        ("limit=99999999999999999999999", "limit must be"),
        ("Limit=1", "unknown key \"Limit\""),
        ("limit=1&state=heard", "unknown key \"state\""),
        ("after=a&after=b", "after is given twice"),
    ] {
        let (status, code, message) = stage.get(&format!("/v1/devices?{query}")).error();
        assert_eq!((status, code.as_str()), (400, "invalid_query"), "{query}");
        assert!(message.contains(expected), "{query}: {message}");
    }
}

#[test]
fn a_silent_worker_costs_two_seconds_and_leaves_nothing_behind() {
    let stage = Stage::new(Plan { silent: Some(2), inbox: 2, ..Plan::default() });
    let device = (0..1_000).map(|number| number.to_string()).find(|id| stage.home.of(id) == WorkerId(2)).unwrap();
    for path in [format!("/v1/devices/{device}"), "/v1/devices".to_owned()] {
        let begun = Instant::now();
        let answer = stage.get(&path);
        let (status, code, message) = answer.error();
        assert_eq!((status, code.as_str()), (503, "worker_busy"));
        assert!(message.contains("worker 2"), "{message}");
        assert_eq!(answer.headers["retry-after"], "1");
        assert!((1_900..4_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    }
    // Its inbox is full now: no waiting.
    let begun = Instant::now();
    assert_eq!(stage.get("/v1/devices").error().1, "worker_busy");
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert_eq!((stage.control.state.described.len(), stage.control.state.listed.len()), (0, 0));

    // Answers that come too late find nobody.
    for command in stage.silent[0].try_iter().collect::<Vec<_>>() {
        let event = match command {
            WorkerCommand::Describe { request, .. } => WorkerEvent::Described { request, description: None },
            WorkerCommand::List { request, .. } => WorkerEvent::Listed { request, devices: Vec::new() },
            other => panic!("{other:?}"),
        };
        stage.say(2, vec![event]);
    }
    let others = (0..1_000).map(|number| number.to_string()).find(|id| stage.home.of(id) == WorkerId(0)).unwrap();
    assert_eq!(stage.get(&format!("/v1/devices/{others}")).status, 404);
}

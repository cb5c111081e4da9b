//! Signs of life, errors, limits and the token: what holds for every route.

use super::*;
use crate::control::auth::material::Material;

#[test]
fn probes_tell_life_from_readiness() {
    let stage = Stage::new(Plan::default());
    assert_eq!((stage.get("/healthz").status, stage.get("/healthz").text.as_str()), (200, "ok\n"));
    assert_eq!((stage.get("/readyz").status, stage.get("/readyz").text.as_str()), (200, "ready\n"));

    stage.publish(1, |counters| counters.set(Metric::LoopLateness, 250_000));
    assert_eq!(stage.get("/readyz").status, 200);
    stage.publish(1, |counters| counters.set(Metric::LoopLateness, 312_000));
    let (status, code, message) = stage.get("/readyz").error();
    assert_eq!((status, code.as_str()), (503, "overloaded"));
    assert!(message.contains("worker 1 was late by 312 ms"), "{message}");
    stage.publish(1, |_| {});
    assert_eq!(stage.get("/readyz").status, 200);

    stage.control.begin_shutdown();
    let (status, code, _) = stage.get("/readyz").error();
    assert_eq!((status, code.as_str()), (503, "shutting_down"));
    assert_eq!(stage.get("/healthz").status, 200);
    assert_eq!(stage.get("/v1/overview").status, 200);
}

#[test]
fn a_worker_that_gets_on_no_more_is_seen() {
    let stage = Stage::new(Plan { uptime: Duration::from_mins(1), ..Plan::default() });
    for worker in 0..3 {
        stage.publish(worker, |counters| counters.set(Metric::LatestProgress, 57));
    }
    assert_eq!(stage.get("/readyz").status, 200);
    // It may turn all the time: it takes nothing from its inbox.
    stage.publish(1, |counters| counters.set(Metric::LatestProgress, 40));
    let (status, code, message) = stage.get("/readyz").error();
    assert_eq!((status, code.as_str()), (503, "stuck"));
    assert!(message.contains("worker 1 has not got on with what waits for it for 2"), "{message}");
    assert_eq!(stage.get("/healthz").status, 200);
    stage.publish(1, |counters| counters.set(Metric::LatestProgress, 60));
    assert_eq!(stage.get("/readyz").status, 200);
}

#[test]
fn shutdown_is_bounded_and_closes_the_door() {
    let Stage { control, uplink, agent, .. } = Stage::new(Plan { silent: Some(0), ..Plan::default() });
    let addr = control.admin_addr();
    // A connection kept alive, and a request in progress that is not answered for two seconds.
    assert_eq!(request(&agent, addr, "GET", "/healthz", &[], "").status, 200);
    let asking = thread::spawn(move || request(&agent, addr, "GET", "/v1/devices", &[], "").status);
    thread::sleep(Duration::from_millis(200));
    for sequence in 1..=100 {
        let events = vec![WorkerEvent::Disconnected(presence("d", sequence), CloseReason::Shutdown)];
        uplink.events.send(Batch::new(WorkerId(0), events)).unwrap();
    }
    let state = control.state.clone();
    let begun = Instant::now();
    control.shutdown();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(state.backbone.accepted(), 100, "what the workers had said was taken");
    assert_eq!(asking.join().unwrap(), 503, "the request in progress got its answer");
    assert!(std::net::TcpStream::connect(addr).is_err());
}

#[test]
fn unknown_routes_and_methods_are_json_errors() {
    let stage = Stage::new(Plan::default());
    for path in ["/page", "/v1", "/v1/", "/v1/devices/", "/v1/devices/a/b", "/metrics/", "/v2/overview"] {
        let (status, code, _) = stage.get(path).error();
        assert_eq!((status, code.as_str()), (404, "not_found"), "{path}");
    }
    for path in ["/healthz", "/readyz", "/metrics", "/v1/overview", "/v1/devices", "/v1/devices/a"] {
        for method in ["DELETE", "POST", "PUT"] {
            let answer = stage.request(method, path, &[("content-length", "0")]);
            let (status, code, _) = answer.error();
            assert_eq!((status, code.as_str()), (405, "method_not_allowed"), "{method} {path}");
            assert_eq!(answer.headers["allow"], "GET,HEAD");
        }
    }
    assert_eq!(stage.request("HEAD", "/v1/overview", &[]).status, 200);
}

#[test]
fn too_many_requests_at_a_time_are_turned_away_but_not_probes() {
    let stage = Stage::new(Plan { silent: Some(0), inbox: 1_024, ..Plan::default() });
    let (agent, addr) = (&stage.agent, stage.control.admin_addr());
    thread::scope(|scope| {
        let ask = || request(agent, addr, "GET", "/v1/devices", &[], "").error();
        let asking: Vec<_> = (0..REQUESTS_MAX).map(|_| scope.spawn(ask)).collect();
        until("all places are taken", || stage.control.state.requests.available_permits() == 0);
        assert_eq!(stage.get("/healthz").status, 200);
        assert_eq!(stage.get("/readyz").status, 200);
        let answer = stage.get("/v1/overview");
        assert_eq!((answer.error().0, answer.error().1.as_str()), (503, "api_busy"));
        assert_eq!(answer.headers["retry-after"], "1");
        for asked in asking {
            assert_eq!(asked.join().unwrap().1, "worker_busy");
        }
    });
    assert_eq!(stage.get("/v1/overview").status, 200);
}

#[test]
fn a_token_opens_everything_and_probes_need_none() {
    let stage = Stage::new(Plan { admin_token: Some("sesame"), ..Plan::default() });
    assert_eq!(stage.get("/healthz").status, 200);
    assert_eq!(stage.get("/readyz").status, 200);
    for path in ["/metrics", "/v1/overview", "/v1/devices", "/v1/devices/a", "/nowhere", "/healthz/"] {
        let answer = stage.get(path);
        assert_eq!((answer.error().0, answer.error().1.as_str()), (401, "unauthorized"), "{path}");
        assert_eq!(answer.headers["www-authenticate"], "Bearer realm=\"pulsegate\"");
    }
    let with = |value| stage.request("GET", "/v1/overview", &[("authorization", value)]);
    for right in ["Bearer sesame", "bearer sesame", "BEARER  sesame"] {
        assert_eq!(with(right).status, 200, "{right}");
    }
    for wrong in ["Bearer sesam", "Bearer sesame2", "Bearer ", "Bearer open sesame", "Bearer sesamE"] {
        let answer = with(wrong);
        assert_eq!(answer.status, 401, "{wrong}");
    }
    let challenge = &with("Bearer sesam").headers["www-authenticate"];
    assert_eq!(challenge, "Bearer realm=\"pulsegate\", error=\"invalid_token\"");
    for other in ["Basic c2VzYW1lOg==", "sesame", "Bearersesame"] {
        assert_eq!(with(other).status, 401, "{other}");
    }
    let twice = [("authorization", "Bearer sesame"), ("authorization", "Bearer other")];
    assert_eq!(stage.request("GET", "/v1/overview", &twice).status, 401);
    // Who has no token learns nothing of which paths and methods exist.
    assert_eq!(stage.request("DELETE", "/v1/overview", &[]).status, 401);
}

#[test]
fn a_host_of_somebody_else_is_not_answered() {
    let stage = Stage::new(Plan::default());
    let ask = |path: &str, host: &str| stage.request("GET", path, &[("host", host)]);
    for own in [
        "127.0.0.1:7480",
        "localhost",
        "LOCALHOST:1",
        "a.localhost",
        "[::1]:80",
        "edge-1",
        "gate.example:7480",
        "gate.example.",
    ] {
        assert_eq!(ask("/v1/overview", own).status, 200, "{own}");
        assert_eq!(ask("/metrics", own).status, 200, "{own}");
    }
    for other in [
        "rebound.example",
        "rebound.example:7480",
        "localhost.rebound.example",
        "xlocalhost",
        "edge-1.example",
        "127.0.0.1.nip.io",
    ] {
        for path in ["/v1/overview", "/metrics", "/v1/events", "/v1/openapi.json", "/nowhere"] {
            let answer = ask(path, other);
            assert_eq!((answer.error().0, answer.error().1.as_str()), (421, "host_not_allowed"), "{other} {path}");
        }
        assert_eq!(ask("/healthz", other).status, 200, "signs of life are told under any name");
        assert_eq!(ask("/readyz", other).status, 200);
    }
    // A page in a browser has no token: with one, names are checked only where names are written.
    let guarded = Stage::new(Plan { admin_token: Some("sesame"), hosts: Vec::new(), ..Plan::default() });
    let ask = |token: &str| {
        let headers = [("host", "gateway.internal"), ("authorization", token)];
        guarded.request("GET", "/v1/overview", &headers).status
    };
    assert_eq!((ask("Bearer sesame"), ask("Bearer other")), (200, 401));
}

#[test]
fn a_probe_is_answered_however_many_connections_say_nothing() {
    let stage = Stage::new(Plan { admin_token: Some("sesame"), ..Plan::default() });
    let held = || -> Vec<_> {
        let connect = |_| std::net::TcpStream::connect(stage.control.admin_addr()).unwrap();
        (0..CONNECTIONS_MAX + 20).map(connect).collect()
    };
    let mut silent = held();
    // Before any time-out has passed, and again behind heads that are never whole.
    assert_eq!(stage.get("/healthz").status, 200);
    for stream in &mut silent {
        let _ = std::io::Write::write_all(stream, b"GET /healthz HTTP/1.1\r\nX: ");
    }
    let _more = held();
    let fresh = ureq::Agent::config_builder().timeout_global(Some(HEAD_MAX / 2)).build().new_agent();
    assert_eq!(request(&fresh, stage.control.admin_addr(), "GET", "/healthz", &[], "").status, 200);
}

#[test]
fn a_body_that_never_comes_holds_up_nobody_who_asks() {
    let stage = Stage::new(Plan { admin_token: Some("sesame"), ..Plan::default() });
    let begin = |length: u64| {
        let mut stream = std::net::TcpStream::connect(stage.control.admin_addr()).unwrap();
        stream.set_read_timeout(Some(HEAD_MAX * 6)).unwrap();
        let head = format!(
            "POST /v1/publish HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sesame\r\n\
             Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        );
        std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
        stream
    };
    let mut waiting: Vec<_> = (0..REQUESTS_MAX).map(|_| begin(30)).collect();
    for stream in &mut waiting {
        // Its body is waited for.
        let mut said = [0; 25];
        std::io::Read::read_exact(stream, &mut said).unwrap();
        assert_eq!(said, *b"HTTP/1.1 100 Continue\r\n\r\n");
    }
    let bearer = [("authorization", "Bearer sesame")];
    assert_eq!(stage.send("GET", "/v1/overview", &bearer, "").status, 200);
    // One that says how long it is does not come at all.
    let mut said = [0; 12];
    std::io::Read::read_exact(&mut begin(99_999_999_999), &mut said).unwrap();
    assert_eq!(said, *b"HTTP/1.1 413");
    // And they do not stay: their time is that of a head, far below the bound of this read.
    let ended = std::io::Read::read(&mut waiting[0], &mut said);
    assert!(ended.map_err(|error| error.kind()) != Err(std::io::ErrorKind::WouldBlock));
}

#[test]
fn a_role_allows_what_it_says_and_no_more() {
    let tokens = vec![admin_token("prometheus", Role::Read, "look"), admin_token("shift", Role::Command, "speak")];
    let devices = vec!["meter-1".to_owned()];
    let stage = Stage::new(Plan { admin_token: Some("sesame"), tokens, devices, ..Plan::default() });
    let ask = |token: &str, method: &str, path: &str, body: &str| {
        let bearer = format!("Bearer {token}");
        stage.send(method, path, &[("authorization", &bearer), ("content-type", "application/json")], body).status
    };
    for token in ["look", "speak", "sesame"] {
        for path in ["/v1/overview", "/metrics", "/v1/devices", "/v1/devices/meter-1", "/v1/devices/meter-1/history"] {
            assert_eq!(ask(token, "GET", path, ""), 200, "{token} {path}");
        }
    }
    let commands = [
        ("POST", "/v1/devices/meter-1/messages", r#"{"payload":"x"}"#, 200),
        ("POST", "/v1/publish", r#"{"topic":"t","payload":"x"}"#, 202),
        ("POST", "/v1/broadcast", r#"{"payload":"x"}"#, 202),
        ("DELETE", "/v1/devices/meter-1/connection", "", 204),
    ];
    for (method, path, body, status) in commands {
        assert_eq!(ask("look", method, path, body), 403, "{path}");
        assert_eq!(ask("speak", method, path, body), status, "{path}");
        assert_eq!(ask("sesame", method, path, body), status, "{path}");
    }
    // What is about the gateway itself, whatever comes to be there.
    assert_eq!(ask("speak", "POST", "/v1/overview", ""), 403);
    assert_eq!(ask("sesame", "POST", "/v1/overview", ""), 405);
    assert_eq!(ask("other", "GET", "/v1/overview", ""), 401);

    // Replaced while it runs.
    let policy = stage.control.policy();
    let replace = |tokens: Vec<AdminToken>| {
        let mut config = Config::clone(&policy.config());
        config.admin.tokens = tokens;
        let materials = vec![Material::default(), Material::default()];
        policy.replace(Arc::new(config), Inventory::default(), materials, Vec::new(), None).unwrap();
    };
    replace(vec![admin_token("new", Role::Read, "fresh")]);
    assert_eq!(["sesame", "look", "fresh"].map(|token| ask(token, "GET", "/v1/overview", "")), [401, 401, 200]);
    replace(Vec::new());
    assert_eq!(stage.get("/v1/overview").status, 200);
}

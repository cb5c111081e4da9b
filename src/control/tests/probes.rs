//! Signs of life, errors, limits and the token: what holds for every route.

use super::*;

#[test]
fn probes_tell_life_from_readiness() {
    let stage = Stage::new(Plan::default());
    assert_eq!((stage.get("/healthz").status, stage.get("/healthz").text.as_str()), (200, "ok\n"));
    assert_eq!((stage.get("/readyz").status, stage.get("/readyz").text.as_str()), (200, "ready\n"));

    stage.publish(1, |counters| counters.set(Figure::LoopLateness, 250_000));
    assert_eq!(stage.get("/readyz").status, 200);
    stage.publish(1, |counters| counters.set(Figure::LoopLateness, 312_000));
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
        stage.publish(worker, |counters| counters.set(Figure::LatestProgress, 57));
    }
    assert_eq!(stage.get("/readyz").status, 200);
    // It may turn all the time: it takes nothing from its inbox.
    stage.publish(1, |counters| counters.set(Figure::LatestProgress, 40));
    let (status, code, message) = stage.get("/readyz").error();
    assert_eq!((status, code.as_str()), (503, "stuck"));
    assert!(message.contains("worker 1 has not got on with what waits for it for 2"), "{message}");
    assert_eq!(stage.get("/healthz").status, 200);
    stage.publish(1, |counters| counters.set(Figure::LatestProgress, 60));
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
        let events = vec![Uplink::Disconnected(presence("d", sequence), CloseReason::Shutdown)];
        uplink.events.send(Batch { worker: WorkerId(0), events }).unwrap();
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
    for path in ["/", "/v1", "/v1/", "/v1/devices/", "/v1/devices/a/b", "/metrics/", "/v2/overview"] {
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

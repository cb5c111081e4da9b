//! What the gateway says over HTTP.

use crate::support::{Device, Site, native, raw};

#[test]
fn it_says_that_it_lives_and_what_it_counts() {
    let site = Site::new();
    let gateway = site.start("node = \"edge-7\"\nworkers = 3", &[native(), raw()]);
    assert_eq!(gateway.get("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(gateway.get("/readyz"), (200, "ready\n".to_owned()));
    let _device = Device::welcomed(gateway.devices(), &site.tls(), "meter-1");
    gateway.expect_connected(1);
    gateway.expect_connections(1);
    let overview = gateway.overview();
    assert_eq!(
        (&overview["node"], &overview["devices"], &overview["connections"]),
        (&"edge-7".into(), &1.into(), &1.into())
    );
    assert_eq!(overview["workers"].as_array().unwrap().len(), 3);
    let listeners = overview["listeners"].as_array().unwrap();
    for (listener, name) in listeners.iter().zip(["devices", "raw"]) {
        assert_eq!(listener["name"], name);
        assert_eq!(listener["address"], gateway.address(name).to_string());
    }
    gateway.expect_metric("pulsegate_handshakes_full_total", 1);
    gateway.expect_metric("pulsegate_handshake_seconds_count", 1);
    let (status, text) = gateway.get("/metrics");
    assert_eq!(status, 200);
    assert_eq!(text.lines().filter(|line| line.starts_with("pulsegate_devices{")).count(), 3);
}

#[test]
fn what_is_not_there_is_said_in_json() {
    let site = Site::new();
    let gateway = site.start("", &[native()]);
    for (path, status, code) in [
        ("/v1/devices/nobody", 404, "device_not_found"),
        ("/v1/device", 404, "not_found"),
        ("/v1/devices?limit=0", 400, "invalid_query"),
        ("/v1/devices?limt=3", 400, "invalid_query"),
        ("/v1/devices/%ff", 400, "invalid_path"),
    ] {
        let (answered, body) = gateway.get(path);
        let error: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((answered, &error["error"]["code"]), (status, &code.into()), "{path}");
    }
}

#[test]
fn a_walk_over_all_pages_meets_every_device_once_and_in_order() {
    const DEVICES: usize = 250;
    let site = Site::new();
    let gateway = site.start("workers = 4", &[native()]);
    let tls = site.tls();
    let _devices: Vec<_> =
        (0..DEVICES).map(|n| Device::welcomed(gateway.devices(), &tls, &format!("meter-{n:03}"))).collect();
    let _others: Vec<_> = (0..5).map(|n| Device::welcomed(gateway.devices(), &tls, &format!("pump/{n}"))).collect();
    for limit in [1_000, 64, 7] {
        let mut seen = Vec::new();
        let mut after = String::new();
        loop {
            let page = gateway.get_json(&format!("/v1/devices?prefix=meter-&limit={limit}{after}"));
            let devices = page["devices"].as_array().unwrap();
            assert!(devices.len() <= limit);
            seen.extend(devices.iter().map(|device| device["id"].as_str().unwrap().to_owned()));
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        assert_eq!(seen, (0..DEVICES).map(|n| format!("meter-{n:03}")).collect::<Vec<_>>(), "limit {limit}");
    }
    assert_eq!(gateway.get_json("/v1/devices?limit=1000")["devices"].as_array().unwrap().len(), DEVICES + 5);
    assert_eq!(gateway.device("pump/3").unwrap()["id"], "pump/3");
}

#[test]
fn the_admin_token_is_demanded_where_it_is_configured() {
    let site = Site::new();
    site.write("admin.token", "a-long-and-winding-secret\n");
    let top = "[admin]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"admin.token\"";
    let mut gateway = site.start(top, &[native()]);
    for path in ["/v1/overview", "/metrics", "/v1/devices", "/nowhere"] {
        assert_eq!(gateway.get(path).0, 401, "{path}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(gateway.get(path).0, 200, "{path}");
    }
    gateway.use_token("a-long-and-winding");
    assert_eq!(gateway.get("/v1/overview").0, 401);
    gateway.use_token("a-long-and-winding-secret");
    gateway.expect_connections(0);
    assert_eq!(gateway.get("/nowhere").0, 404);
}

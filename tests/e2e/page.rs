//! The page at the admin address in a real browser: Debian's Chromium, driven by playwright-core.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{Device, Event, Gateway, Listener, Site, native, raw, wait_until};

/// A browser on a busy machine takes its time; each of its steps has a deadline of its own.
const BROWSER: Duration = Duration::from_mins(4);
/// A device may call itself so: its id is bytes of its own choice.
const HOSTILE: &str = "<img src=x onerror=alert(1)>";

fn installed() -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_pulsegate")).ancestors().nth(2).expect("TARGET/debug/pulsegate");
    target.join("test-clients/node")
}

fn start(site: &Site) -> Gateway {
    let mut tokens = "[admin]\nlisten = \"127.0.0.1:0\"\n".to_owned();
    for (name, role) in [("looker", "read"), ("boss", "admin")] {
        let _ = write!(tokens, "[[admin.token]]\nname = \"{name}\"\nrole = \"{role}\"\nfile = \"{name}.token\"\n");
        site.write(&format!("{name}.token"), &format!("the-token-of-{name}\n"));
    }
    let mqtt = Listener::new("mqtt", "mqtt").table("mqtt", "publish = [\"#\"]\nsubscribe = [\"#\"]\n");
    let mut gateway = site.start(
        &format!("node = \"edge-7\"\nworkers = 2\n{tokens}"),
        &[native().heartbeat(600_000, 10_000, 2), raw(), mqtt],
    );
    gateway.use_token("the-token-of-boss");
    gateway
}

#[test]
fn people_look_and_command_in_a_browser() {
    let site = Site::new();
    let gateway = start(&site);
    let mut hostile = Device::welcomed(gateway.devices(), &site.tls(), HOSTILE);
    let mut demo = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    demo.args(["demo", "--devices", "2", "--for", "10m", "--ca"])
        .arg(site.authority())
        .args(["--admin", &gateway.admin()]);
    let demo = demo.env("PULSEGATE_TOKEN", "the-token-of-looker").stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut demo = Child(demo.unwrap());
    gateway.expect_connected(7);

    let mut browser = Command::new("node");
    browser.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/clients/page.mjs"));
    browser.args([&gateway.admin(), "the-token-of-looker", "the-token-of-boss", HOSTILE]);
    // Where somebody wants to look at it: what docs/images holds was made so.
    browser.arg(std::env::var_os("PAGE_IMAGES").unwrap_or_default());
    browser.env("NODE_PATH", installed().join("node_modules")).stdin(Stdio::null());
    let log = site.path("browser.log");
    let write = || std::fs::File::options().create(true).append(true).open(&log).unwrap();
    let mut browser = Child(browser.stdout(write()).stderr(write()).spawn().expect("node is installed"));
    let mut ended = None;
    wait_until("the browser has done everything", BROWSER, || {
        ended = browser.0.try_wait().unwrap();
        ended.is_some()
    });
    let told = std::fs::read_to_string(&log).unwrap();
    assert!(ended.is_some_and(|status| status.success()) && told.ends_with("done\n"), "{told}");
    // What was said in the page has arrived, and who was sent away is gone.
    let heard = hostile.hear_all();
    let is_it = |event: &Event| matches!(event, Event::Message { topic, payload, .. } if topic == "from/page" && payload == b"<b>hello</b>");
    assert!(heard.iter().any(is_it), "{heard:?}");
    assert_eq!(gateway.get_json("/v1/blocks")["blocks"].as_array().unwrap().len(), 0);
    assert!(demo.0.try_wait().unwrap().is_none(), "the demo goes on");
}

#[test]
fn a_page_is_a_device_by_mqtt_js() {
    let site = Site::new();
    // The page's origin is known before it is there; whoever takes the port in between makes this fail.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // At the port of another listener, as a browser says that it speaks HTTP/1.1.
    let browsers = Listener::sharing("browsers", "mqtt", "mqtt")
        .key("transport", "\"websocket\"")
        .table("websocket", &format!("origins = [\"http://localhost:{port}\"]\n"));
    let gateway = site.start("workers = 2\n", &[Listener::new("mqtt", "mqtt"), browsers]);
    let url = format!("wss://localhost:{}/mqtt", gateway.address("browsers").port());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut browser = Command::new("node");
    browser.arg(root.join("tests/e2e/clients/browser.mjs")).args([&url, &port.to_string()]);
    browser
        .env("NODE_PATH", installed().join("node_modules"))
        .env("EXAMPLES", root.join("examples"))
        .stdin(Stdio::null());
    let log = site.path("browser.log");
    let write = || std::fs::File::options().create(true).append(true).open(&log).unwrap();
    let mut browser = Child(browser.stdout(write()).stderr(write()).spawn().expect("node is installed"));
    let told = || std::fs::read_to_string(&log).unwrap();
    wait_until("the page has published", BROWSER, || {
        let has_ended = browser.0.try_wait().unwrap().is_some();
        assert!(!has_ended, "{}", told());
        told().contains("published\n")
    });
    let device = gateway.device("browser-1").expect("the page is connected");
    assert_eq!((&device["protocol"], &device["session"]["version"]), (&"mqtt".into(), &"5.0".into()));
    let order = serde_json::json!({"topic": "devices/browser-1/set", "payload": "on", "ack": true, "timeout": "30s"});
    assert_eq!(gateway.post("/v1/devices/browser-1/messages", &order).1["outcome"], "acknowledged");
    let mut ended = None;
    wait_until("the browser has done everything", BROWSER, || {
        ended = browser.0.try_wait().unwrap();
        ended.is_some()
    });
    assert!(ended.is_some_and(|status| status.success()) && told().ends_with("done\n"), "{}", told());
    assert!(gateway.closed("protocol_error") >= 1, "the other origin was refused");
}

/// A program that ends with this value.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

//! What a real Prometheus makes of the metrics, the alert rules and the dashboard in deploy/.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Device, Gateway, Program, Site, native, wait_for};

/// Two scrapes and an evaluation, on a machine that does other things as well.
const SCRAPED: Duration = Duration::from_mins(1);

fn deploy(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file)
}

#[track_caller]
fn promtool(arguments: &[&str], directory: &Path, input: &str) {
    let mut tool = Command::new("promtool")
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed (Debian: prometheus)");
    std::io::Write::write_all(&mut tool.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let output = tool.wait_with_output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{arguments:?}: {}{}", said(&output.stdout), said(&output.stderr));
}

#[test]
fn the_metrics_and_the_rules_pass_promtool() {
    let site = Site::new();
    let gateway = site.start("", &[native()]);
    let _device = Device::welcomed(gateway.devices(), &site.tls(), "meter-1");
    let (status, text) = gateway.get("/metrics");
    assert_eq!(status, 200);
    promtool(&["check", "metrics"], site.directory(), &text);
    let rules = deploy("prometheus");
    promtool(&["check", "rules", "pulsegate.rules.yml"], &rules, "");
    promtool(&["test", "rules", "pulsegate.rules.test.yml"], &rules, "");
}

/// A Prometheus that scrapes `gateway` each second, with the rules of deploy/, and its address.
fn prometheus(site: &Site, gateway: &Gateway) -> (Program, String) {
    let target = gateway.admin().trim_start_matches("http://").to_owned();
    let written = fs::read_to_string(deploy("prometheus/prometheus.yml")).unwrap();
    let config = written.replace("127.0.0.1:7480", &target).replace("15s", "1s");
    assert!(config.contains(&target), "{config}");
    site.write("prometheus.yml", &config);
    fs::copy(deploy("prometheus/pulsegate.rules.yml"), site.path("pulsegate.rules.yml")).unwrap();
    let mut command = Command::new("prometheus");
    command
        .args(["--config.file=prometheus.yml", "--storage.tsdb.path=tsdb", "--web.listen-address=127.0.0.1:0"])
        .current_dir(site.directory());
    let program = Program::start(command);
    let address = wait_for("Prometheus listens", SCRAPED, || {
        let text = program.text();
        let line = text.lines().find(|line| line.contains("Listening on"))?;
        line.split("address=").nth(1)?.split_whitespace().next().map(str::to_owned)
    });
    (program, format!("http://{address}"))
}

fn ask(address: &str, path: &str) -> Option<Value> {
    let mut response = ureq::get(format!("{address}{path}")).call().ok()?;
    serde_json::from_str(&response.body_mut().read_to_string().ok()?).ok()
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect::<Vec<_>>().concat()
}

#[test]
fn every_expression_of_the_dashboard_and_of_the_alerts_returns_series() {
    let site = Site::new();
    // A sink that nobody takes anything of, and a consumer.
    let top = "workers = 2\n[[sink]]\nname = \"cloud\"\ntype = \"http\"\nurl = \"http://127.0.0.1:9\"";
    let gateway = site.start(top, &[native()]);
    assert_eq!(gateway.get("/v1/uplink?consumer=billing&wait=0s").0, 200);
    let _device = Device::welcomed(gateway.devices(), &site.tls(), "meter-1");
    let (_program, address) = prometheus(&site, &gateway);

    let rules = wait_for("the rules were evaluated", SCRAPED, || {
        let answer = ask(&address, "/api/v1/rules")?;
        let rules = answer["data"]["groups"][0]["rules"].as_array()?.clone();
        rules.iter().all(|rule| rule["health"] == "ok").then_some(rules)
    });
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(deploy("grafana/pulsegate.json")).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let shown = panels.map(|panel| panel["targets"][0]["expr"].as_str().unwrap().to_owned());
    // An alert says nothing while all is well: what it compares must be there.
    let compared = rules.iter().map(|rule| {
        let text = rule["query"].as_str().unwrap();
        let end = text.find(" > ").or_else(|| text.find(" == ")).expect("an alert compares");
        text[..end].to_owned()
    });
    // Alone it is no fleet.
    let expressions: Vec<_> = shown.chain(compared).filter(|text| !text.starts_with("pulsegate_fleet_")).collect();
    assert!(expressions.len() > 20, "{expressions:?}");
    for expression in expressions {
        wait_for(&format!("{expression} returns series"), SCRAPED, || {
            let answer = ask(&address, &format!("/api/v1/query?query={}", encoded(&expression)))?;
            (!answer["data"]["result"].as_array()?.is_empty()).then_some(())
        });
    }
}

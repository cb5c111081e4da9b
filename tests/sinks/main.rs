//! Sinks of the real program: a webhook in Python's standard library and mosquitto as the other sides, each of them down,
//! hanging, refusing and restarted, and the gateway killed in between.
//!
//! What is shown each time: what devices were told is safe arrives; for each device in its order; what comes twice comes under the
//! id that it had before.

#[path = "../e2e/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the end-to-end tests")]
mod support;

mod broker;
mod mqtt;
mod nats;
#[path = "../fleet/nats.rs"]
mod server;
mod webhook;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::{Device, Event, Gateway, Site, message};

/// By when something has happened that may need several tries of a sink.
const LATE: Duration = Duration::from_mins(1);

/// A port that nothing listens on, for a server that is to come back on the same one.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A device that publishes numbers, and knows which of them the gateway has acknowledged.
struct Meter {
    id: String,
    next: u32,
    acknowledged: BTreeSet<u32>,
}

impl Meter {
    fn fleet(count: usize) -> Vec<Self> {
        (1..=count)
            .map(|number| Self { id: format!("meter-{number}"), next: 0, acknowledged: BTreeSet::new() })
            .collect()
    }

    /// Publishes `count` more, each acknowledged before the next.
    #[track_caller]
    fn publish(&mut self, site: &Site, gateway: &Gateway, count: u32) {
        let mut device = Device::welcomed(gateway.devices(), &site.tls(), &self.id);
        for _ in 0..count {
            self.next += 1;
            device.send(&[message(self.next, self.next.to_string().as_bytes())]);
            loop {
                match device.hear() {
                    Event::Ack(number) => break assert!(self.acknowledged.insert(number) && number == self.next),
                    Event::Ping(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        device.leave();
    }
}

fn publish_all(meters: &mut [Meter], site: &Site, gateway: &Gateway, count: u32) {
    for meter in meters {
        meter.publish(site, gateway, count);
    }
}

/// Runs the command line against a gateway, and gives back what it printed.
#[track_caller]
fn cli(site: &Site, gateway: &Gateway, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    let output =
        command.current_dir(site.directory()).args(arguments).args(["--admin", &gateway.admin()]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// What the gateway says of its sink `name`.
#[track_caller]
fn sink(gateway: &Gateway, name: &str) -> Value {
    let listed = gateway.get_json("/v1/sinks");
    let sinks = listed["sinks"].as_array().unwrap();
    sinks.iter().find(|sink| sink["name"] == name).unwrap_or_else(|| panic!("no {name} in {listed}")).clone()
}

/// A metric of a sink.
fn sink_metric(gateway: &Gateway, metric: &str, name: &str) -> u64 {
    let (_, text) = gateway.get("/metrics");
    let start = format!("{metric}{{sink=\"{name}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&start));
    line.unwrap_or_else(|| panic!("no {start}")).parse().unwrap()
}

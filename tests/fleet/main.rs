//! Several real gateways that are one fleet, over a real nats-server: commands find a device wherever it is, of two connections of
//! one device the later stays, and whatever dies, hangs or comes back, nobody is in two places or listed where it is not.

#[path = "../e2e/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the end-to-end tests")]
mod support;

mod away;
mod buckets;
mod cluster;
mod commands;
mod crowd;
mod everywhere;
mod exchanges;
mod groups;
mod mqtt;
mod nats;
mod overheard;
mod page;
mod proxy;
mod publications;
mod queue;
mod races;
mod refusals;
mod retained;
mod rows;
mod servers;
mod sessions;
mod survivors;
mod takeover;
mod uplink;
mod wills;

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use servers::Servers;
use support::{Device, Event, Gateway, Listener, Site, native, wait_until};

/// By when something has happened that may need several tries.
const LATE: Duration = Duration::from_mins(1);
/// The lease of the gateways of these tests.
const LEASE: &str = "2s";

/// How often a device moves: as often as fits into some seconds, or so often as this variable says.
const MOVES_VARIABLE: &str = "FLEET_MOVES";

fn moves(usual: usize) -> usize {
    std::env::var(MOVES_VARIABLE).map_or(usual, |text| text.parse().expect("a number of moves"))
}

/// One gateway of a fleet, in a place of its own.
struct Member {
    site: Site,
    gateway: Gateway,
}

impl Member {
    /// One called `node`, with further lines of `[backbone.nats]`.
    fn start(node: &str, urls: &str, further: &str) -> Self {
        let site = Site::new();
        configure(&site, node, urls, further);
        let gateway = Gateway::start(site.directory());
        Self { site, gateway }
    }

    /// The same, once it is one of the fleet.
    fn joined(node: &str, urls: &str, further: &str) -> Self {
        let member = Self::start(node, urls, further);
        member.wait_until_joined();
        member
    }

    #[track_caller]
    fn wait_until_joined(&self) {
        wait_until("it is one of the fleet", LATE, || self.fleet()["state"] == "connected");
    }

    fn fleet(&self) -> Value {
        self.gateway.get_json("/v1/fleet")
    }

    fn error(&self) -> String {
        self.fleet()["error"].as_str().unwrap_or_default().to_owned()
    }

    /// A device that comes here.
    fn device(&self, id: &str) -> Device {
        Device::welcomed(self.gateway.devices(), &self.site.tls(), id)
    }

    /// The only device that comes here, once the fleet knows of it.
    #[track_caller]
    fn claimed(&self, id: &str) -> Device {
        let device = self.device(id);
        self.wait_for_claims(1);
        device
    }

    /// Waits until the fleet knows of so many devices here, and nothing is left to be said of any.
    #[track_caller]
    fn wait_for_claims(&self, count: u64) {
        wait_until(&format!("{count} devices are claimed"), LATE, || {
            let devices = &self.fleet()["devices"];
            devices["claimed"] == count && devices["waiting"] == 0
        });
    }

    fn send(&self, device: &str, payload: &str) -> (u16, Value) {
        self.gateway.post(&format!("/v1/devices/{device}/messages"), &json!({"payload": payload}))
    }
}

fn configure(site: &Site, node: &str, urls: &str, further: &str) {
    let unless_named = |key: &str, value: &str| {
        if further.contains(&format!("{key} =")) { String::new() } else { format!("{key} = {value:?}\n") }
    };
    let (lease, timeout) = (unless_named("lease", LEASE), unless_named("timeout", "900ms"));
    let top = format!(
        "node = {node:?}\nworkers = 2\n[admin]\nlisten = \"127.0.0.1:0\"\n[backbone.nats]\nurls = {urls}\n{lease}{timeout}\
         retry_min = \"10ms\"\nretry_max = \"200ms\"\n{further}\n"
    );
    let mqtt = Listener::new("mqtt", "mqtt").table("mqtt", "publish = [\"#\"]\nsubscribe = [\"#\"]");
    site.configure(&top, &[native(), mqtt]);
}

fn members(count: usize, urls: &str, further: &str) -> Vec<Member> {
    (0..count).map(|number| Member::joined(&format!("gate-{number}"), urls, further)).collect()
}

/// So many gateways that are one fleet at so many servers, with further lines of `[backbone.nats]`.
fn fleet<'a>(site: &'a Site, servers: usize, gateways: usize, further: &str) -> (Servers<'a>, Vec<Member>) {
    let mut servers = Servers::new(site, servers);
    servers.start_all();
    let fleet = members(gateways, &servers.urls("nats"), further);
    (servers, fleet)
}

/// What a device hears next that is no heartbeat.
#[track_caller]
fn heard(device: &mut Device) -> (u32, String) {
    loop {
        match device.hear() {
            Event::Message { id, payload, .. } => break (id, String::from_utf8(payload).unwrap()),
            Event::Ping(_) | Event::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Ends a gateway in order.
#[track_caller]
fn end(mut gateway: Gateway) {
    gateway.signal(Signal::TERM);
    assert!(gateway.wait(LATE).success());
}

/// Ends a device's connection over the API of this gateway; the status.
#[track_caller]
fn disconnect(member: &Member, device: &str) -> u16 {
    let url = format!("{}/v1/devices/{device}/connection", member.gateway.admin());
    ureq::delete(url).call().unwrap().status().as_u16()
}

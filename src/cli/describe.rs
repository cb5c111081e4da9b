//! A configuration in words, for the start-up message and `check-config`.

use std::fmt::Write;
use std::net::SocketAddr;

use pulsegate::config::budget::{Bytes, Thousands};
use pulsegate::config::{
    AdminTls, Authenticator, ClientAuth, Config, Durability, Listener, Loaded, Mqtt, Protocol, StoreShares,
};

/// What is in effect: one line per listener, then the rest. `bound` are the listeners' addresses in the order of the
/// configuration, as they really are.
pub fn in_effect(loaded: &Loaded, bound: &[SocketAddr], admin: SocketAddr) -> String {
    let config = &loaded.config;
    debug_assert_eq!(bound.len(), config.listeners.len());
    let mut text = String::new();
    let name_width = config.listeners.iter().map(|listener| listener.name.len()).max().unwrap_or(0).max(11);
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<name_width$}  {value}");
    };
    for (listener, address) in config.listeners.iter().zip(bound) {
        line(&listener.name, &listener_in_words(listener, *address));
        if let Some(open) = openness(listener) {
            line("", open);
        }
    }
    let token = if config.admin.tokens.is_empty() { "" } else { ", bearer token required" };
    let (scheme, certificate) = match &config.admin.tls {
        None => ("http", ""),
        Some(AdminTls { client_ca: None, .. }) => ("https", ""),
        Some(AdminTls { client_ca: Some(_), .. }) => ("https", ", client certificate required"),
    };
    line("admin", &format!("{scheme}://{admin}{token}{certificate}"));
    line("connections", &format!("at most {}", Thousands(u64::from(config.limits.connections))));
    line("workers", &config.workers.to_string());
    line("data", &config.data_dir.display().to_string());
    line("durability", &durability_in_words(config));
    if let Some(shares) = config.store_shares() {
        line("store", &store_in_words(config, shares));
    }
    let _ = write!(text, "\nMemory budget\n{}\n", loaded.budget);
    text
}

/// The promise that an acknowledgement makes.
fn durability_in_words(config: &Config) -> String {
    let promise = match config.store.durability {
        Durability::Group => "acknowledged is on the disk".to_owned(),
        Durability::Interval => {
            let every = humantime::format_duration(config.store.sync_interval);
            format!("acknowledged outlives the process, and is on the disk within {every}")
        }
        Durability::Memory => return "memory: acknowledged is in memory, and ends with this process".to_owned(),
    };
    let label = config.store.durability.label();
    let age = humantime::format_duration(config.uplink.retention);
    let bytes = Bytes(config.uplink.retention_bytes);
    format!("{label}: {promise}; the uplink is kept for {age}, at most {bytes}")
}

/// Who may have how much of the store.
fn store_in_words(config: &Config, shares: StoreShares) -> String {
    let StoreShares { uplink, sessions, one_session, retained, commands, .. } = shares;
    let mut text = format!("at most {}: the uplink {}", Bytes(config.store.bytes), Bytes(uplink));
    if sessions > 0 {
        let [sessions, one, retained] = [sessions, one_session, retained].map(Bytes);
        let _ = write!(text, ", devices that are away {sessions} and one of them {one}, retained messages {retained}");
    }
    if commands > 0 {
        let _ = write!(text, ", commands that wait for devices {}", Bytes(commands));
    }
    text
}

fn listener_in_words(listener: &Listener, address: SocketAddr) -> String {
    let clients = match listener.tls.client_auth {
        ClientAuth::Off => "no client certificates",
        ClientAuth::Optional => "client certificates optional",
        ClientAuth::Required => "client certificates required",
    };
    let secret = match (&listener.identity.authenticators[..], &listener.protocol) {
        ([], _) => String::new(),
        ([Authenticator::Secrets(_)], Protocol::Mqtt(_)) => " with password".to_owned(),
        ([Authenticator::Secrets(_)], _) => " with token".to_owned(),
        (list, protocol) => {
            let word = |one: &Authenticator| match (one, protocol) {
                (Authenticator::Secrets(_), Protocol::Mqtt(_)) => "password",
                (Authenticator::Secrets(_), _) => "token",
                (other, _) => other.label(),
            };
            format!(" by {}", list.iter().map(word).collect::<Vec<_>>().join(", then "))
        }
    };
    let liveness = match &listener.protocol {
        Protocol::Mqtt(mqtt) => mqtt_in_words(mqtt),
        Protocol::Native | Protocol::Raw(_) => format!(
            "heartbeat {}, expired after {}",
            humantime::format_duration(listener.heartbeat.interval),
            humantime::format_duration(listener.heartbeat.bound()),
        ),
    };
    let (protocol, from) = (listener.protocol.label(), listener.identity.from.label());
    let chosen = match listener.shares {
        Some(_) => format!(" by ALPN {}", protocols_in_words(listener)),
        None => String::new(),
    };
    format!("{protocol:<6}  {address}{chosen}  {clients}, id from {from}{secret}, {liveness}")
}

/// The application protocols by which a listener is chosen.
pub fn protocols_in_words(listener: &Listener) -> String {
    let names: Vec<_> = listener.alpn().into_iter().map(String::from_utf8_lossy).collect();
    names.join(", ")
}

fn mqtt_in_words(mqtt: &Mqtt) -> String {
    match mqtt.keep_alive_max {
        Some(max) => format!("keep-alive at most {}", humantime::format_duration(max)),
        None => "expired after 1.5 x its keep-alive".to_owned(),
    }
}

/// What any device may do on a listener that is open.
fn openness(listener: &Listener) -> Option<&'static str> {
    let Protocol::Mqtt(mqtt) = &listener.protocol else { return None };
    let is_open = |rules: &[String]| rules.iter().any(|rule| rule == "#");
    match (is_open(&mqtt.publish), is_open(&mqtt.subscribe)) {
        (true, true) => Some("open: any device may publish and subscribe anywhere (listener.mqtt.publish, .subscribe)"),
        (true, false) => Some("open: any device may publish anywhere (listener.mqtt.publish)"),
        (false, true) => Some("open: any device may subscribe to anything (listener.mqtt.subscribe)"),
        (false, false) => None,
    }
}

/// `warning: …` or `note: …`, a line each.
pub fn remarks(kind: &str, remarks: &[String]) -> String {
    remarks.iter().fold(String::new(), |mut text, remark| {
        let _ = writeln!(text, "{kind}: {remark}");
        text
    })
}

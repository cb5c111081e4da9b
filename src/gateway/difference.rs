//! What a configuration that was read anew changes of the one that holds: what can be changed under live connections
//! is taken, and what cannot is named.

use crate::config::{Config, Durability, Limits, Listener, Protocol, Sink, ports_fit};

/// What is to hold from now on.
pub(super) struct Difference {
    /// The listeners of the old configuration in their order, with all that may change as it is written now.
    pub config: Config,
    /// By listener: its place in the new configuration. None: it is not there, or is another one, and stays as it was.
    pub sources: Vec<Option<usize>>,
    /// The keys whose new values hold now.
    pub changed: Vec<String>,
    /// The keys whose new values would need another start.
    pub needs_restart: Vec<String>,
}

/// What `fresh` changes of `running`.
pub(super) fn difference(running: &Config, fresh: &Config) -> Difference {
    let mut to = Difference {
        config: running.clone(),
        sources: Vec::with_capacity(running.listeners.len()),
        changed: Vec::new(),
        needs_restart: Vec::new(),
    };
    let mut stays = |key: &str, same: bool| {
        if !same {
            to.needs_restart.push(key.to_owned());
        }
    };
    stays("node", running.node == fresh.node);
    stays("data_dir", running.data_dir == fresh.data_dir);
    stays("workers", running.workers == fresh.workers);
    stays("admin.listen", running.admin.listen == fresh.admin.listen);
    stays("backbone", running.backbone == fresh.backbone);
    stays("backbone.nats", running.fleet == fresh.fleet);
    stays("store", running.store == fresh.store);
    stays("uplink", running.uplink == fresh.uplink);
    if running.admin.hosts != fresh.admin.hosts {
        to.changed.push("admin.hosts".to_owned());
        to.config.admin.hosts.clone_from(&fresh.admin.hosts);
    }
    if running.admin.tokens != fresh.admin.tokens {
        to.changed.push("admin.token_file".to_owned());
        to.config.admin.tokens.clone_from(&fresh.admin.tokens);
    }
    if running.deny_file != fresh.deny_file {
        to.changed.push("deny_file".to_owned());
        to.config.deny_file.clone_from(&fresh.deny_file);
    }
    if running.admission != fresh.admission {
        to.changed.push("admission".to_owned());
        to.config.admission.clone_from(&fresh.admission);
    }
    if running.drain != fresh.drain {
        to.changed.push("drain".to_owned());
        to.config.drain = fresh.drain;
    }
    merge_sinks(&mut to, &fresh.sinks);
    merge_limits(&mut to, &fresh.limits);
    for index in 0..running.listeners.len() {
        let source = merge_listener(&mut to, index, &fresh.listeners);
        to.sources.push(source);
    }
    keep_ports(&mut to, &running.listeners);
    for (index, before) in running.listeners.iter().enumerate() {
        if let Some(source) = to.sources[index] {
            tell_listener(&mut to, index, before, &fresh.listeners[source]);
        }
    }
    for added in &fresh.listeners {
        if running.listeners.iter().all(|listener| listener.name != added.name) {
            to.needs_restart.push(format!("listener {:?}: it is new", added.name));
        }
    }
    to
}

/// Sinks come, go and change at once: what they must know is in the store, if there is one. What has changed of them is
/// seen where their files are read.
fn merge_sinks(to: &mut Difference, fresh: &[Sink]) {
    if to.config.store.durability != Durability::Memory {
        to.config.sinks = fresh.to_vec();
    } else if to.config.sinks != fresh {
        to.needs_restart.push("sink".to_owned());
    }
}

macro_rules! merge {
    ($to:ident, $fresh:ident; live: $($live:ident)*; stays: $($stays:ident)*) => {
        // Named one by one, so that whoever adds a limit decides whether it changes under live connections.
        let Limits { $($live,)* $($stays,)* } = $fresh;
        $(if $to.config.limits.$live != *$live {
            $to.config.limits.$live.clone_from($live);
            $to.changed.push(concat!("limits.", stringify!($live)).to_owned());
        })*
        $(if $to.config.limits.$stays != *$stays {
            $to.needs_restart.push(concat!("limits.", stringify!($stays)).to_owned());
        })*
    };
}

/// Those that stay size something that is there, or were told to devices, which keep to them.
fn merge_limits(to: &mut Difference, fresh: &Limits) {
    merge! {
        to, fresh;
        live: connections handshakes handshake_time hello_time linger_time shed_lateness connect_bytes;
        stays: read_bytes frame_bytes outbox_bytes inbox_length uplink_length packet_bytes sessions session_inflight
            session_messages session_bytes session_subscriptions topic_levels retained_messages retained_bytes pool_bytes
    }
}

/// Takes over what may change of one listener, whose place in the new configuration comes back.
fn merge_listener(to: &mut Difference, index: usize, fresh: &[Listener]) -> Option<usize> {
    let listener = &mut to.config.listeners[index];
    let name = listener.name.clone();
    let Some(source) = fresh.iter().position(|fresh| fresh.name == name) else {
        to.needs_restart.push(format!("listener {name:?}: it is gone"));
        return None;
    };
    let fresh = &fresh[source];
    if !is_same_kind(&listener.protocol, &fresh.protocol) {
        to.needs_restart.push(format!("listener {name:?}: protocol"));
        return None;
    }
    // Connections that are open were begun as what it was.
    if std::mem::discriminant(&listener.transport) != std::mem::discriminant(&fresh.transport) {
        to.needs_restart.push(format!("listener {name:?}: transport"));
        return None;
    }
    let before = std::mem::replace(listener, fresh.clone());
    (listener.listen, listener.shares) = (before.listen, before.shares.clone());
    if !is_at_its_place(listener, fresh) {
        keep_choice(listener, &before);
    }
    Some(source)
}

/// Whether a listener, where it is, is where it is written. The address of one that shares a port is the other's.
fn is_at_its_place(listener: &Listener, fresh: &Listener) -> bool {
    listener.shares == fresh.shares && (listener.shares.is_some() || listener.listen == fresh.listen)
}

/// What was written for another place waits with it: that by which clients of a port choose among its listeners, and whose word
/// is taken for where they come from.
fn keep_choice(listener: &mut Listener, before: &Listener) {
    listener.alpn.clone_from(&before.alpn);
    listener.transport.clone_from(&before.transport);
    listener.proxy_protocol.clone_from(&before.proxy_protocol);
}

/// Where the listeners of a port would no longer fit together, since the place of one waits for another start, all of them keep what
/// their clients choose by: that did fit.
fn keep_ports(to: &mut Difference, running: &[Listener]) {
    for owner in running.iter().filter(|listener| listener.shares.is_none()) {
        let is_here = |one: &&Listener| one.name == owner.name || one.shares.as_ref() == Some(&owner.name);
        let here = to.config.listeners.iter().filter(is_here).cloned().collect();
        if !ports_fit(here) {
            let listeners = to.config.listeners.iter_mut().zip(running);
            listeners
                .filter(|(_, before)| is_here(before))
                .for_each(|(listener, before)| keep_choice(listener, before));
        }
    }
}

/// Names what is new at a listener that was `before`, and what of `fresh` waits for another start.
fn tell_listener(to: &mut Difference, index: usize, before: &Listener, fresh: &Listener) {
    let listener = &to.config.listeners[index];
    let name = &listener.name;
    if before.shares != fresh.shares {
        to.needs_restart.push(format!("listener {name:?}: shares"));
    } else if !is_at_its_place(listener, fresh) {
        to.needs_restart.push(format!("listener {name:?}: listen"));
    }
    for (key, is_as_before, is_as_written) in [
        (before.protocol.label(), listener.protocol == before.protocol, true),
        ("websocket", listener.transport == before.transport, listener.transport == fresh.transport),
        ("alpn", listener.alpn == before.alpn, listener.alpn == fresh.alpn),
        (
            "proxy_protocol",
            listener.proxy_protocol == before.proxy_protocol,
            listener.proxy_protocol == fresh.proxy_protocol,
        ),
        ("rates", listener.rates == before.rates, true),
        ("heartbeat", listener.heartbeat == before.heartbeat, true),
        ("identity.from", listener.identity.from == before.identity.from, true),
        ("authenticators", listener.identity.authenticators == before.identity.authenticators, true),
    ] {
        if !is_as_before {
            to.changed.push(format!("listener {name:?}: {key}"));
        }
        if !is_as_written {
            to.needs_restart.push(format!("listener {name:?}: {key}"));
        }
    }
}

fn is_same_kind(one: &Protocol, other: &Protocol) -> bool {
    one.label() == other.label()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::machine::{Memory, MemorySource};
    use crate::config::{Authenticator, Machine, built_in};

    fn config() -> Config {
        let machine = Machine {
            hostname: "edge-1".to_owned(),
            cores: 2,
            memory: Memory { bytes: 16 << 30, source: MemorySource::Machine },
            descriptors: 1 << 20,
            outgoing_ports: None,
        };
        built_in(&machine).unwrap().config
    }

    #[test]
    fn nothing_differs_from_itself() {
        let same = difference(&config(), &config());
        assert!(same.changed.is_empty() && same.needs_restart.is_empty());
        assert_eq!(same.sources, [Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn what_may_change_does_and_the_rest_is_named() {
        let running = config();
        let mut fresh = config();
        fresh.workers = 7;
        fresh.limits.hello_time = Duration::from_secs(3);
        fresh.limits.packet_bytes *= 2;
        fresh.drain.window = Duration::from_secs(9);
        fresh.listeners[0].heartbeat.interval = Duration::from_secs(20);
        fresh.listeners[0].listen.set_port(1);
        let users = Authenticator::secrets("users".into(), "identity.password_file");
        fresh.listeners[2].identity.authenticators = vec![users];
        let found = difference(&running, &fresh);
        let listener = ["listener \"devices\": heartbeat", "listener \"mqtt\": authenticators"];
        assert_eq!(found.changed, ["drain", "limits.hello_time", listener[0], listener[1]]);
        assert_eq!(found.needs_restart, ["workers", "limits.packet_bytes", "listener \"devices\": listen"]);
        assert_eq!(found.config.workers, running.workers);
        assert_eq!(found.config.limits.packet_bytes, running.limits.packet_bytes);
        assert_eq!(found.config.limits.hello_time, fresh.limits.hello_time);
        assert_eq!(found.config.listeners[0].listen, running.listeners[0].listen);
        assert_eq!(found.config.listeners[0].heartbeat, fresh.listeners[0].heartbeat);
        assert_eq!(found.config.listeners[2].identity.authenticators, fresh.listeners[2].identity.authenticators);
    }

    #[test]
    fn protocols_change_under_a_port_that_is_shared_and_who_shares_it_does_not() {
        let mut running = config();
        running.listeners[2].shares = Some("devices".to_owned());
        running.listeners[2].listen = running.listeners[0].listen;
        let mut fresh = running.clone();
        fresh.listeners[2].alpn = Some(vec!["mqtt".to_owned(), "acme".to_owned()]);
        fresh.listeners[0].listen.set_port(1);
        fresh.listeners[2].listen.set_port(1);
        let found = difference(&running, &fresh);
        assert_eq!(found.changed, ["listener \"mqtt\": alpn"]);
        assert_eq!(found.needs_restart, ["listener \"devices\": listen"], "the other one has no address of its own");
        assert_eq!(found.config.listeners[2].alpn, fresh.listeners[2].alpn);
        for (fresh, shares) in [(Some("raw".to_owned()), "raw"), (None, "nobody's")] {
            let mut other = running.clone();
            other.listeners[2].shares = fresh;
            let found = difference(&running, &other);
            assert_eq!(found.needs_restart, ["listener \"mqtt\": shares"], "{shares}");
            assert_eq!(found.config.listeners[2].shares.as_deref(), Some("devices"));
        }
    }

    /// Two listeners of MQTT at one port, told apart by their protocols; and what a file makes of them.
    fn two_at_a_port(write: impl FnOnce(&mut Listener, &mut Listener)) -> (Config, Config) {
        let mut running = config();
        running.listeners.swap(1, 2);
        running.listeners.truncate(2);
        running.listeners[0].protocol = running.listeners[1].protocol.clone();
        running.listeners[1].shares = Some("devices".to_owned());
        running.listeners[1].listen = running.listeners[0].listen;
        running.listeners[1].alpn = Some(vec!["mqtt-b".to_owned()]);
        let mut fresh = running.clone();
        let [owner, other] = &mut fresh.listeners[..] else { unreachable!("there are two") };
        write(owner, other);
        (running, fresh)
    }

    fn moves_away(other: &mut Listener) {
        (other.shares, other.alpn) = (None, None);
        other.listen.set_port(9);
        other.heartbeat.retries = 9;
    }

    #[test]
    fn what_is_written_for_another_port_waits_until_it_is_there() {
        let (running, fresh) = two_at_a_port(|_, other| {
            moves_away(other);
            other.proxy_protocol = vec!["10.0.0.0/8".parse().unwrap()];
        });
        let found = difference(&running, &fresh);
        assert_eq!(found.changed, ["listener \"mqtt\": heartbeat"]);
        let waits = ["shares", "alpn", "proxy_protocol"].map(|key| format!("listener \"mqtt\": {key}"));
        assert_eq!(found.needs_restart, waits);
        let other = &found.config.listeners[1];
        assert_eq!((other.alpn(), other.proxy_protocol.len()), (vec![&b"mqtt-b"[..]], 0), "its clients find it");
        assert_eq!(other.heartbeat.retries, 9, "what has nothing to do with the port is taken");

        let (running, fresh) = two_at_a_port(|owner, _| {
            owner.listen.set_port(9);
            owner.alpn = Some(vec!["mqtt-a".to_owned()]);
        });
        let found = difference(&running, &fresh);
        assert_eq!((found.changed.len(), &found.config.listeners[0].alpn), (0, &None));
        assert_eq!(found.needs_restart, ["listener \"devices\": listen", "listener \"devices\": alpn"]);
    }

    #[test]
    fn nobody_takes_a_protocol_that_is_anothers_until_the_other_is_gone() {
        let mqtt_b = Some(vec!["mqtt-b".to_owned()]);
        let (running, mut fresh) = two_at_a_port(|owner, other| {
            owner.alpn.clone_from(&mqtt_b);
            moves_away(other);
        });
        let kept = |fresh: &Config| {
            let found = difference(&running, fresh);
            assert_eq!(found.config.listeners[0].alpn, None);
            assert_eq!(found.config.listeners[1].alpn, mqtt_b);
            assert!(ports_fit(found.config.listeners));
            found.needs_restart
        };
        let names = ["devices\": alpn", "mqtt\": shares", "mqtt\": alpn"].map(|key| format!("listener \"{key}"));
        assert_eq!(kept(&fresh), names);
        // Nor from one that is written no more, and yet is there.
        fresh.listeners.truncate(1);
        assert_eq!(kept(&fresh), ["listener \"mqtt\": it is gone", "listener \"devices\": alpn"]);

        // What nobody has, and what they exchange, they take at once.
        let mqtt_a = Some(vec!["mqtt-a".to_owned()]);
        let (running, fresh) = two_at_a_port(|owner, other| {
            owner.alpn.clone_from(&mqtt_a);
            moves_away(other);
        });
        let found = difference(&running, &fresh);
        assert_eq!(found.config.listeners[0].alpn, mqtt_a);
        assert_eq!(found.changed, ["listener \"devices\": alpn", "listener \"mqtt\": heartbeat"]);
        let (running, fresh) = two_at_a_port(|owner, other| {
            owner.alpn.clone_from(&mqtt_b);
            other.alpn = None;
        });
        let found = difference(&running, &fresh);
        assert_eq!((&found.config.listeners[0].alpn, &found.config.listeners[1].alpn), (&mqtt_b, &None));
        assert!(found.needs_restart.is_empty());
    }

    #[test]
    fn listeners_are_known_by_their_names() {
        let running = config();
        let mut fresh = config();
        fresh.listeners.swap(0, 2);
        fresh.listeners[1].name = "other".to_owned();
        fresh.listeners[0].heartbeat.retries = 9;
        let found = difference(&running, &fresh);
        assert_eq!(found.sources, [Some(2), None, Some(0)]);
        assert_eq!(found.config.listeners[1].name, running.listeners[1].name);
        assert_eq!(found.config.listeners[2].heartbeat.retries, 9);
        assert_eq!(found.needs_restart, ["listener \"raw\": it is gone", "listener \"other\": it is new"]);

        let mut fresh = config();
        fresh.listeners[0].protocol = Protocol::Raw(crate::config::Raw::default());
        let found = difference(&running, &fresh);
        assert_eq!((found.sources[0], found.config.listeners[0].protocol.label()), (None, "native"));
        assert_eq!(found.needs_restart, ["listener \"devices\": protocol"]);
    }
}

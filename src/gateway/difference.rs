//! What a configuration that was read anew changes of the one that holds: what can be changed under live connections
//! is taken, and what cannot is named.

use crate::config::{Config, Durability, Limits, Listener, Protocol, Sink};

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
    if listener.shares != fresh.shares {
        to.needs_restart.push(format!("listener {name:?}: shares"));
    } else if listener.shares.is_none() && listener.listen != fresh.listen {
        to.needs_restart.push(format!("listener {name:?}: listen"));
    }
    let mut changes = |key: &str, same: bool| {
        if !same {
            to.changed.push(format!("listener {name:?}: {key}"));
        }
    };
    changes(listener.protocol.label(), listener.protocol == fresh.protocol);
    changes("websocket", listener.transport == fresh.transport);
    changes("alpn", listener.alpn == fresh.alpn);
    changes("proxy_protocol", listener.proxy_protocol == fresh.proxy_protocol);
    changes("rates", listener.rates == fresh.rates);
    changes("heartbeat", listener.heartbeat == fresh.heartbeat);
    changes("identity.from", listener.identity.from == fresh.identity.from);
    changes("authenticators", listener.identity.authenticators == fresh.identity.authenticators);
    *listener = Listener { listen: listener.listen, shares: listener.shares.take(), ..fresh.clone() };
    Some(source)
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

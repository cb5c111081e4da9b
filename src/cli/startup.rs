//! The start-up message: what is served where, what it may cost, and lines to paste for trying it.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use pulsegate::config::{ClientAuth, Listener, Loaded, Protocol};
use pulsegate::tls::certs::development::DevelopmentCerts;

use super::describe;

/// The message, once the listeners are bound. `bound` are their addresses in the order of the configuration, `admin`
/// that of the control plane; `development` are the certificates of the built-in configuration.
pub fn message(
    loaded: &Loaded,
    bound: &[SocketAddr],
    admin: SocketAddr,
    development: Option<&DevelopmentCerts>,
) -> String {
    let mut text = format!("Pulsegate {}, node {}\n\n", env!("CARGO_PKG_VERSION"), loaded.config.node);
    text.push_str(&describe::in_effect(loaded, bound, admin));
    text.push_str("\nTry it\n");
    if let Some(line) = device_line(loaded, bound, development) {
        let _ = writeln!(text, "  {line}");
    }
    let _ = writeln!(text, "  {}", overview_line(loaded, admin));
    if !loaded.warnings.is_empty() {
        text.push('\n');
        text.push_str(&describe::remarks("warning", &loaded.warnings));
    }
    text
}

/// A connection by hand: to a raw listener if there is one, as only that can be typed into; otherwise the TLS
/// handshake of the first listener is at least shown.
fn device_line(loaded: &Loaded, bound: &[SocketAddr], development: Option<&DevelopmentCerts>) -> Option<String> {
    let listeners = || loaded.config.listeners.iter().zip(bound);
    let is_raw = |listener: &Listener| matches!(listener.protocol, Protocol::Raw(_));
    let (listener, address) = listeners().find(|(listener, _)| is_raw(listener)).or_else(|| listeners().next())?;
    let mut line = format!("openssl s_client -connect {}", reachable(*address));
    if let Some(certificates) = development {
        let _ = write!(line, " -CAfile {}", quoted(&certificates.authority.cert));
    }
    match (listener.tls.client_auth, development.and_then(|certificates| certificates.clients.first())) {
        (ClientAuth::Off, _) | (ClientAuth::Optional, None) => {}
        (_, Some(client)) => {
            let _ = write!(line, " -cert {} -key {}", quoted(&client.cert), quoted(&client.key));
        }
        (ClientAuth::Required, None) => line.push_str(" -cert CLIENT.pem -key CLIENT.key"),
    }
    let offered = describe::protocols_in_words(listener).replace(", ", ",");
    if !offered.is_empty() {
        let _ = write!(line, " -alpn {}", quoted(Path::new(&offered)));
    }
    line.push_str(if is_raw(listener) { " -quiet" } else { " </dev/null" });
    Some(line)
}

fn overview_line(loaded: &Loaded, admin: SocketAddr) -> String {
    let token = if loaded.config.admin.tokens.is_empty() { "" } else { " -H \"Authorization: Bearer $TOKEN\"" };
    match &loaded.config.admin.tls {
        None => format!("curl{token} http://{}/v1/overview", reachable(admin)),
        Some(tls) => {
            let client = if tls.client_ca.is_some() { " --cert CLIENT.pem --key CLIENT.key" } else { "" };
            format!("curl{token} --cacert CA.pem{client} https://{}/v1/overview", reachable(admin))
        }
    }
}

/// Where to connect for an address that was bound: a wildcard is reached over the loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// A path as one word of a shell.
fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%".contains(&byte);
    if path.bytes().all(plain) { path } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use pulsegate::config::machine::{Machine, Memory, MemorySource};
    use pulsegate::config::{AdminToken, Mqtt, Raw, Role, Secret, built_in};
    use pulsegate::tls::certs::development::CertificatePair;

    use super::*;

    fn loaded() -> Loaded {
        built_in(&Machine {
            hostname: "edge-1".to_owned(),
            cores: 2,
            memory: Memory { bytes: 16 << 30, source: MemorySource::Machine },
            descriptors: 1 << 20,
            outgoing_ports: None,
        })
        .unwrap()
    }

    fn certificates(clients: usize) -> DevelopmentCerts {
        let pair = |name: &str| CertificatePair {
            cert: format!("certs/{name}.pem").into(),
            key: format!("certs/{name}.key").into(),
            is_new: true,
        };
        DevelopmentCerts { authority: pair("ca"), server: pair("server"), clients: vec![pair("client-a"); clients] }
    }

    fn addresses(texts: [&str; 3]) -> [SocketAddr; 3] {
        texts.map(|text| text.parse().unwrap())
    }

    #[test]
    fn it_tells_the_addresses_that_were_really_bound() {
        let bound = addresses(["127.0.0.1:21001", "0.0.0.0:21002", "127.0.0.1:21004"]);
        let text = message(&loaded(), &bound, "[::]:21003".parse().unwrap(), Some(&certificates(0)));
        assert!(text.starts_with(&format!("Pulsegate {}, node edge-1\n", env!("CARGO_PKG_VERSION"))));
        for part in [
            "devices      native  127.0.0.1:21001  ",
            "raw          raw     0.0.0.0:21002  client certificates optional, id from cert-cn",
            "expired after 1m 30s",
            "mqtt         mqtt    127.0.0.1:21004  ",
            "\n               open: any device may publish and subscribe anywhere (listener.mqtt.publish, .subscribe)\n",
            "at most 200,000",
            "data         pulsegate-data\n",
            "store        at most 2.0 GiB: the uplink 1.0 GiB, devices that are away 512.0 MiB and one of them 1.0 MiB, retained messages ",
            "Memory budget\n  connections",
            "\n  openssl s_client -connect 127.0.0.1:21002 -CAfile certs/ca.pem -quiet\n",
            "\n  curl http://[::1]:21003/v1/overview\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains("warning"));
    }

    #[test]
    fn it_tells_what_is_open_and_nothing_of_what_is_not() {
        let open = |publish: &str, subscribe: &str| {
            let mut loaded = loaded();
            let rules = |rule: &str| vec!["devices/{device}/#".to_owned(), rule.to_owned()];
            let (publish, subscribe) = (rules(publish), rules(subscribe));
            loaded.config.listeners[2].protocol = Protocol::Mqtt(Mqtt { publish, subscribe, ..Mqtt::default() });
            let bound = addresses(["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]);
            let text = message(&loaded, &bound, "127.0.0.1:4".parse().unwrap(), None);
            text.lines().find_map(|line| line.trim_start().strip_prefix("open: ")).map(str::to_owned)
        };
        assert!(open("#", "a/#").unwrap().starts_with("any device may publish anywhere"));
        assert!(open("a", "#").unwrap().starts_with("any device may subscribe to anything"));
        assert_eq!(open("a/#", "+"), None);
    }

    #[test]
    fn the_lines_to_paste_fit_the_configuration() {
        let mut loaded = loaded();
        let bound = addresses(["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]);
        let line = |loaded: &Loaded, development: Option<&DevelopmentCerts>| {
            device_line(loaded, &bound[..loaded.config.listeners.len()], development).unwrap()
        };
        let with_client = line(&loaded, Some(&certificates(1)));
        assert!(with_client.ends_with(" -cert certs/client-a.pem -key certs/client-a.key -quiet"), "{with_client}");
        loaded.config.listeners[1].tls.client_auth = ClientAuth::Required;
        assert!(line(&loaded, None).contains(" -cert CLIENT.pem"));
        loaded.config.listeners.truncate(1);
        loaded.config.listeners[0].tls.client_auth = ClientAuth::Off;
        assert_eq!(line(&loaded, None), "openssl s_client -connect 127.0.0.1:1 -alpn pulsegate/1 </dev/null");
        loaded.config.listeners[0].protocol = Protocol::Mqtt(Mqtt::default());
        assert_eq!(line(&loaded, None), "openssl s_client -connect 127.0.0.1:1 -alpn mqtt </dev/null");
        loaded.config.listeners[0].protocol = Protocol::Raw(Raw::default());
        loaded.config.listeners[0].alpn = Some(vec!["acme/1".to_owned(), "acme 2".to_owned()]);
        assert_eq!(line(&loaded, None), "openssl s_client -connect 127.0.0.1:1 -alpn 'acme/1,acme 2' -quiet");
        loaded.config.listeners[0].shares = Some("mqtt".to_owned());
        let text = message(&loaded, &bound[..1], bound[1], None);
        assert!(text.contains("  raw     127.0.0.1:1 by ALPN acme/1, acme 2  no client certificates"), "{text}");
        let secret = Secret::new("secret".to_owned());
        loaded.config.admin.tokens = vec![AdminToken { name: "admin".to_owned(), role: Role::Admin, secret }];
        let overview = overview_line(&loaded, loaded.config.admin.listen);
        assert!(overview.contains("Bearer $TOKEN") && !overview.contains("secret"));
        loaded.warnings.push("limits.connections: something".to_owned());
        let text = message(&loaded, &bound[..1], bound[1], None);
        assert!(text.ends_with("\nwarning: limits.connections: something\n"), "{text}");
    }

    #[test]
    fn paths_are_one_word_of_a_shell() {
        assert_eq!(quoted(Path::new("certs/ca.pem")), "certs/ca.pem");
        assert_eq!(quoted(Path::new("my certs/it's")), r"'my certs/it'\''s'");
    }
}

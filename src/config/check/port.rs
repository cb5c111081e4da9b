//! Where a listener's clients come to: an address of its own, or another one's port, at which they choose it by the application
//! protocol (ALPN) that they offer.

use std::net::{Ipv4Addr, SocketAddr};

use super::at::At;
use super::{Context, values};
use crate::config::error::{ConfigKey, Problem};
use crate::config::{ALPN_MAX, Listener, Transport};

/// Until [`share`] has found the port.
const NOT_YET: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
/// RFC 7301 section 3.1 gives a name's length one byte.
const ALPN_BYTES_MAX: usize = 255;

/// The address of `listen`, or that it is to be another listener's.
pub fn listen(
    context: &mut Context<'_>,
    at: &At<'_>,
    listen: Option<&str>,
    shares: Option<&str>,
) -> Result<SocketAddr, Problem> {
    let listen = match (listen, shares) {
        (Some(listen), None) => values::address(at.key("listen"), listen, "0.0.0.0:7443")?,
        (None, Some(_)) => return Ok(NOT_YET),
        (Some(_), Some(_)) => {
            let what = "there is a listen beside it, and a listener has one port";
            return Err(Problem::new(at.key("shares"), what, "write one of the two"));
        }
        (None, None) => {
            let remedy = "write an address, such as \"0.0.0.0:7443\" (or shares, with the name of the listener whose port it is)";
            return Err(Problem::new(at.key("listen"), "it is missing", remedy));
        }
    };
    if context.machine.outgoing_ports.as_ref().is_some_and(|ports| ports.contains(&listen.port())) {
        let text = "the kernel gives this port to outgoing connections too, so binding it may fail: take a lower one";
        context.warn(&at.key("listen"), text);
    }
    Ok(listen)
}

/// The names of application protocols.
pub fn alpn(at: &At<'_>, written: Vec<String>) -> Result<Vec<String>, Problem> {
    let refuse = |what: String, remedy: &str| Err(Problem::new(at.key("alpn"), what, remedy));
    if written.len() > ALPN_MAX {
        return refuse(format!("there are {}", written.len()), &format!("write at most {ALPN_MAX}"));
    }
    for (position, name) in written.iter().enumerate() {
        if name.is_empty() || name.len() > ALPN_BYTES_MAX {
            return refuse(
                format!("{name:?} has {} bytes", name.len()),
                "write names of 1 to 255 bytes, such as \"mqtt\"",
            );
        }
        if name == "h2" {
            return refuse("HTTP/2 is not spoken here".to_owned(), "leave \"h2\" out: browsers take \"http/1.1\"");
        }
        if written[..position].contains(name) {
            return refuse(format!("{name:?} is there twice"), "write each name once");
        }
    }
    Ok(written)
}

/// Gives each listener that shares a port its address, or says why it cannot. `names`: of all that are written, those with a
/// fault of their own too; `listeners`: what is right of them, with their places in the file.
pub fn share(listeners: &mut [(usize, Listener)], names: &[String], problems: &mut Vec<Problem>) {
    for position in 0..listeners.len() {
        let (index, listener) = &listeners[position];
        let Some(shares) = &listener.shares else { continue };
        let place = |key: &str| ConfigKey::of_listener(*index, &listener.name, key);
        let Some((_, owner)) = listeners.iter().find(|(_, other)| other.name == *shares) else {
            if !names.contains(shares) {
                problems.push(Problem::new(
                    place("shares"),
                    format!("no listener is called {shares:?}"),
                    remedy(listeners),
                ));
            }
            continue;
        };
        let before = listeners[..position].iter().map(|(_, other)| other);
        let before = before.filter(|other| other.shares.as_ref() == Some(shares) && other.name != owner.name);
        match may_share(listener, owner, before, place) {
            Ok(()) => listeners[position].1.listen = owner.listen,
            Err(problem) => problems.push(problem),
        }
    }
}

/// Whether these may stand at their ports together, as a file that has them would be asked: for listeners that come from two files,
/// one half of which needs another start.
#[must_use]
pub fn ports_fit(listeners: Vec<Listener>) -> bool {
    let mut problems = Vec::new();
    share(&mut listeners.into_iter().enumerate().collect::<Vec<_>>(), &[], &mut problems);
    problems.is_empty()
}

fn remedy(listeners: &[(usize, Listener)]) -> String {
    let ports = listeners.iter().filter(|(_, listener)| listener.shares.is_none());
    let ports: Vec<String> = ports.map(|(_, listener)| format!("{:?}", listener.name)).collect();
    match &ports[..] {
        [] => "write listen, with an address such as \"0.0.0.0:7443\"".to_owned(),
        ports => format!("write the name of a listener that has listen: {}", ports.join(", ")),
    }
}

/// Whether `listener` may stand at the port of `owner`, where those `before` it stand.
fn may_share<'a>(
    listener: &Listener,
    owner: &'a Listener,
    before: impl Iterator<Item = &'a Listener>,
    place: impl Fn(&str) -> ConfigKey,
) -> Result<(), Problem> {
    if owner.name == listener.name {
        let remedy = "write listen, or the name of another listener";
        return Err(Problem::new(place("shares"), "this is the listener itself, which has no port", remedy));
    }
    if let Some(port) = &owner.shares {
        let what = format!("listener {:?} has no port of its own", owner.name);
        return Err(Problem::new(place("shares"), what, format!("write shares = {port:?}, as it does")));
    }
    if !listener.proxy_protocol.is_empty() {
        let what = "what a proxy says comes before the client has chosen";
        let remedy = format!("write it at listener {:?}, whose port it is, for all that share it", owner.name);
        return Err(Problem::new(place("proxy_protocol"), what, remedy));
    }
    let forwards = |one: &Listener| matches!(&one.transport, Transport::WebSocket(ws) if !ws.forwarded_from.is_empty());
    if forwards(listener) || forwards(owner) {
        let what = "a port with websocket.forwarded_from is shared by nobody: not all that comes there would be HTTP";
        return Err(Problem::new(place("shares"), what, "give what comes through that proxy a listen of its own"));
    }
    let protocols = listener.alpn();
    if protocols.is_empty() {
        let what = "without an application protocol (ALPN) no client can choose this listener";
        return Err(Problem::new(place("alpn"), what, "write the name that its devices offer, such as [\"acme/1\"]"));
    }
    for other in std::iter::once(owner).chain(before) {
        if let Some(both) = other.alpn().into_iter().find(|protocol| protocols.contains(protocol)) {
            let what = format!("{:?} is listener {:?}'s at this port", String::from_utf8_lossy(both), other.name);
            let remedy = "write alpn with names that no other listener of the port has, or give it a listen of its own";
            return Err(Problem::new(place("alpn"), what, remedy));
        }
    }
    Ok(())
}

//! Under which names the API answers.
//!
//! A page in a browser may make its own name point at this gateway's address (DNS rebinding), and then read and command
//! the fleet as if it were its own server: the browser sends the page's name in Host. So a request must name the gateway by
//! an address, by a loopback name, by its node name, or by a name in `admin.hosts`. Signs of life are told under any
//! name; so is everything where requests carry a token, which such a page does not have, unless `admin.hosts` says more.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, Uri, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::{State, is_probe};
use crate::config::Config;

/// Lets a request pass that names this gateway.
pub(super) async fn demand_host(Shared(state): Shared<Arc<State>>, request: Request, next: Next) -> Response {
    let current = state.current();
    let is_open = current.bearer.is_some() && current.config.admin.hosts.is_empty();
    if !is_probe(&request) && !is_open {
        let allowed = match named_host(request.uri(), request.headers()) {
            Named::Host(host) => is_allowed(host, &current.config).then_some(()).ok_or_else(|| host.to_owned()),
            // Only HTTP/1.0 may leave it out (RFC 9112, section 3.2); no browser does.
            Named::Nothing if request.version() == Version::HTTP_10 => Ok(()),
            Named::Nothing | Named::Unclear => Err(String::new()),
        };
        if let Err(host) = allowed {
            return ApiError::Host(host).into_response();
        }
    }
    next.run(request).await
}

/// What a request says that it was sent to, without the port.
enum Named<'a> {
    Host(&'a str),
    Nothing,
    /// Two headers, or one that is no host.
    Unclear,
}

fn named_host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Named<'a> {
    let mut values = headers.get_all(header::HOST).iter();
    let header = match (values.next(), values.next()) {
        (None, _) => Named::Nothing,
        (Some(value), None) => value.to_str().ok().and_then(without_port).map_or(Named::Unclear, Named::Host),
        (Some(_), Some(_)) => return Named::Unclear,
    };
    // The absolute form of a request's target counts, and not the header (RFC 9112, section 3.2.2).
    uri.host().map_or(header, Named::Host)
}

/// `name:port`, `[::1]:port` or either without a port.
fn without_port(text: &str) -> Option<&str> {
    let (host, port) = match text.rfind(']') {
        Some(end) => text.split_at(end + 1),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let is_port =
        port.is_empty() || port.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    (is_port && !host.is_empty()).then_some(host)
}

fn is_allowed(host: &str, config: &Config) -> bool {
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if bracketed.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()) || host.parse::<IpAddr>().is_ok() {
        // An address cannot be rebound.
        return true;
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    let is = |name: &str| host.eq_ignore_ascii_case(name);
    let ends_in_localhost = host.rsplit('.').next().is_some_and(|label| label.eq_ignore_ascii_case("localhost"));
    ends_in_localhost || is(&config.node) || config.admin.hosts.iter().any(|name| is(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(hosts: &[&str]) -> HeaderMap {
        hosts.iter().map(|host| (header::HOST, host.parse().unwrap())).collect()
    }

    fn named(uri: &str, hosts: &[&str]) -> Option<String> {
        match named_host(&uri.parse().unwrap(), &headers(hosts)) {
            Named::Host(host) => Some(host.to_owned()),
            Named::Nothing => Some(String::new()),
            Named::Unclear => None,
        }
    }

    #[test]
    fn a_host_is_read_without_its_port() {
        for (hosts, expected) in [
            (&["gateway"][..], Some("gateway")),
            (&["gateway:7480"], Some("gateway")),
            (&["[::1]:7480"], Some("[::1]")),
            (&["[::1]"], Some("[::1]")),
            (&["127.0.0.1:7480"], Some("127.0.0.1")),
            (&[], Some("")),
            (&["a", "a"], None),
            (&["a:b"], None),
            (&["::1"], None),
            (&[""], None),
            (&["[::1]evil"], None),
        ] {
            assert_eq!(named("/v1/overview", hosts).as_deref(), expected, "{hosts:?}");
        }
        assert_eq!(named("http://other:1/v1", &["127.0.0.1"]).as_deref(), Some("other"), "the absolute form counts");
    }
}

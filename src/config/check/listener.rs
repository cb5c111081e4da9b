//! One `[[listener]]`.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::at::At;
use super::{Context, check_name, mqtt, port, tls, values};
use crate::config::error::{ConfigKey, Problem};
use crate::config::raw::{
    RawAuthenticator, RawBytes, RawHeartbeat, RawIdentity, RawListener, RawMqtt, RawRates, RawRaw, RawWebSocket,
};
use crate::config::{
    Authenticator, ClientAuth, Heartbeat, Identity, IdentityFrom, Limits, Listener, Protocol, Rates, Raw, Transport,
    WebSocket,
};
use crate::network::Network;

/// The range of heartbeat intervals and timeouts. A tick is the least; the most must fit 16 bits of ticks (6,553 s).
const HEARTBEAT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);
/// The ranges of `[listener.rates]`.
const RATE_BURST: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(1);
const RATE_PATIENCE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(1);
const RATE_DENY: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(24);
/// The most retries.
const RETRIES_MAX: i64 = 15;
/// Above this, load balancers that cut idle connections after 60 s come before the first probe.
const INTERVAL_NOTED: Duration = Duration::from_secs(55);
/// The longest of the raw listener's byte strings.
const RAW_BYTES_MAX: usize = 1_024;

/// The listener with this index.
pub fn resolve(
    context: &mut Context<'_>,
    index: usize,
    raw: RawListener,
    limits: &Limits,
) -> Result<Listener, Problem> {
    let written_name = raw.name.clone().unwrap_or_default();
    let at = At::new(index, &written_name);
    let Some(name) = raw.name else {
        return Err(Problem::new(at.key("name"), "it is missing", "write a name, such as \"devices\""));
    };
    check_name(at.key("name"), &name)?;
    let listen = port::listen(context, &at, raw.listen.as_deref(), raw.shares.as_deref())?;
    let alpn = raw.alpn.map(|written| port::alpn(&at, written)).transpose()?;
    let protocol = protocol(context, &at, raw.protocol.as_deref(), raw.raw, raw.mqtt, limits)?;
    let transport = transport(context, &at, raw.transport.as_deref(), raw.websocket, &protocol)?;
    let proxy_protocol = proxies(context, &at.key("proxy_protocol"), raw.proxy_protocol)?;
    if let Transport::WebSocket(websocket) = &transport
        && !websocket.forwarded_from.is_empty()
        && !proxy_protocol.is_empty()
    {
        let what = "proxy_protocol says already whose connections these are";
        return Err(Problem::new(at.key("websocket.forwarded_from"), what, "write one of the two"));
    }
    let tls = tls::resolve(context, &at, raw.tls)?;
    if raw.heartbeat.is_some() && matches!(protocol, Protocol::Mqtt(_)) {
        let text = "it has no effect here: an MQTT device says in CONNECT how often it will be heard (its keep-alive; \
                    mqtt.keep_alive_max bounds it)";
        context.warn(&at.key("heartbeat"), text);
    }
    let is_probed = !matches!(protocol, Protocol::Mqtt(_));
    let heartbeat = heartbeat(context, &at, &raw.heartbeat.unwrap_or_default(), is_probed)?;
    let identity = identity(context, &at, raw.identity, &protocol, tls.client_auth)?;
    let identity = with_list(context, &at, identity, raw.authenticators, &protocol, limits)?;
    let rates = rates(&at, &raw.rates)?;
    Ok(Listener {
        name,
        listen,
        shares: raw.shares,
        alpn,
        protocol,
        transport,
        proxy_protocol,
        tls,
        heartbeat,
        identity,
        rates,
    })
}

fn protocol(
    context: &mut Context<'_>,
    at: &At<'_>,
    written: Option<&str>,
    raw: Option<RawRaw>,
    options: Option<RawMqtt>,
    limits: &Limits,
) -> Result<Protocol, Problem> {
    let place = at.key("protocol");
    let remedy = "write \"native\", \"raw\" or \"mqtt\"";
    for (key, is_there) in [("raw", raw.is_some()), ("mqtt", options.is_some())] {
        if is_there && written != Some(key) {
            let text = format!("it is for listeners with protocol = {key:?} and has no effect here");
            context.warn(&at.key(key), &text);
        }
    }
    match written {
        Some("native") => Ok(Protocol::Native),
        Some("raw") => raw_options(at, raw.unwrap_or_default(), limits).map(Protocol::Raw),
        Some("mqtt") => mqtt::resolve(context, at, options.unwrap_or_default()).map(Protocol::Mqtt),
        Some("websocket") => {
            let remedy = "write protocol = \"mqtt\" and transport = \"websocket\"";
            Err(Problem::new(place, "\"websocket\" is a transport, and carries a protocol", remedy))
        }
        Some(other) => Err(Problem::new(place, format!("{other:?} is not known"), remedy)),
        None => Err(Problem::new(place, "it is missing", remedy)),
    }
}

fn transport(
    context: &mut Context<'_>,
    at: &At<'_>,
    written: Option<&str>,
    options: Option<RawWebSocket>,
    protocol: &Protocol,
) -> Result<Transport, Problem> {
    if options.is_some() && written != Some("websocket") {
        let text = "it is for listeners with transport = \"websocket\" and has no effect here";
        context.warn(&at.key("websocket"), text);
    }
    match (written, protocol) {
        (None | Some("tls"), _) => Ok(Transport::Tls),
        (Some("websocket"), Protocol::Native | Protocol::Mqtt(_)) => {
            websocket(context, at, options.unwrap_or_default()).map(Transport::WebSocket)
        }
        (Some("websocket"), Protocol::Raw(_)) => {
            let what = "raw devices are known by their TLS records, which a WebSocket does not keep";
            Err(Problem::new(at.key("transport"), what, "write protocol = \"mqtt\" or \"native\""))
        }
        (Some(other), _) => {
            let remedy = "write \"tls\" or \"websocket\"";
            Err(Problem::new(at.key("transport"), format!("{other:?} is not known"), remedy))
        }
    }
}

/// Networks of proxies.
fn proxies(
    context: &mut Context<'_>,
    place: &ConfigKey,
    written: Option<Vec<String>>,
) -> Result<Vec<Network>, Problem> {
    let mut networks = Vec::new();
    for text in written.unwrap_or_default() {
        let Ok(network) = text.parse::<Network>() else {
            let what = format!("{text:?} is no network");
            let remedy = "write an address, or one with the bits that count and no others, such as \"10.0.0.0/8\"";
            return Err(Problem::new(place.clone(), what, remedy));
        };
        if network.is_everybody() {
            let text = "everybody may say which address they come from";
            context.warn(place, text);
        }
        networks.push(network);
    }
    Ok(networks)
}

fn websocket(context: &mut Context<'_>, at: &At<'_>, raw: RawWebSocket) -> Result<WebSocket, Problem> {
    let default = WebSocket::default();
    let path = raw.path.unwrap_or(default.path);
    if !path.starts_with('/') || path.contains(['?', '#', ' ']) || path.chars().any(char::is_control) {
        let what = format!("{path:?} is no path");
        return Err(Problem::new(at.key("websocket.path"), what, "write a path, such as \"/mqtt\""));
    }
    let origins = raw.origins.unwrap_or(default.origins);
    if let Some(wrong) = origins.iter().find(|origin| !is_origin(origin)) {
        let remedy = "write scheme, host and port if it is not the scheme's own, such as \"https://fleet.example\"";
        return Err(Problem::new(at.key("websocket.origins"), format!("{wrong:?} is no origin"), remedy));
    }
    let forwarded_from = proxies(context, &at.key("websocket.forwarded_from"), raw.forwarded_from)?;
    Ok(WebSocket { path, origins, forwarded_from })
}

/// As browsers say it (RFC 6454 6.2): no path, not even a slash.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else { return text == "null" };
    !scheme.is_empty()
        && !host.is_empty()
        && !host.contains(['/', '?', '#', ' ', '*'])
        && !text.contains(char::is_control)
}

fn raw_options(at: &At<'_>, raw: RawRaw, limits: &Limits) -> Result<Raw, Problem> {
    let most = RAW_BYTES_MAX.min(limits.read_bytes);
    let bytes = |key: &str, written: Option<RawBytes>, default: &[u8]| {
        let bytes = written.map_or_else(|| default.to_vec(), |written| written.0);
        if bytes.len() > most {
            let what = format!("it is {} bytes long", bytes.len());
            return Err(Problem::new(at.key(key), what, format!("write at most {most} bytes")));
        }
        Ok(bytes)
    };
    let options = Raw {
        heartbeat: bytes("raw.heartbeat", raw.heartbeat, b"heartbeat")?,
        reply: bytes("raw.reply", raw.reply, b"")?,
        probe: bytes("raw.probe", raw.probe, b"")?,
    };
    if options.heartbeat.is_empty() && !options.reply.is_empty() {
        let remedy = "set raw.heartbeat to what is answered, or leave raw.reply out";
        return Err(Problem::new(at.key("raw.reply"), "there is no raw.heartbeat to reply to", remedy));
    }
    Ok(options)
}

/// `is_probed`: the gateway sends the heartbeats.
fn heartbeat(
    context: &mut Context<'_>,
    at: &At<'_>,
    raw: &RawHeartbeat,
    is_probed: bool,
) -> Result<Heartbeat, Problem> {
    let default = Heartbeat::default();
    let interval =
        values::duration(at.key("heartbeat.interval"), raw.interval.as_deref(), default.interval, HEARTBEAT)?;
    let timeout = values::duration(at.key("heartbeat.timeout"), raw.timeout.as_deref(), default.timeout, HEARTBEAT)?;
    let retries = i64::from(default.retries);
    let retries = values::integer(at.key("heartbeat.retries"), raw.retries, retries, 0..=RETRIES_MAX, "retries")? as u8;
    let max = values::duration(at.key("heartbeat.max"), raw.max.as_deref(), default.max, HEARTBEAT)?;
    if raw.max.is_some() && max < interval {
        let what = "it is shorter than heartbeat.interval, which devices get that ask for nothing";
        return Err(Problem::new(at.key("heartbeat.max"), what, "write at least heartbeat.interval, or leave it out"));
    }
    let heartbeat = Heartbeat { interval, timeout, retries, max: max.max(interval) };
    if is_probed && heartbeat.interval > INTERVAL_NOTED {
        let text = "many load balancers cut connections that are idle for 60 s (some for 350 s): behind one of those, \
                    write \"55s\" or less";
        context.note(&at.key("heartbeat.interval"), text);
    }
    Ok(heartbeat)
}

fn rates(at: &At<'_>, raw: &RawRates) -> Result<Rates, Problem> {
    let default = Rates::default();
    let rate = |key: &str, written, unit| {
        values::integer(at.key(key), written, 0, 0..=1_000_000_000, unit).map(|rate| rate as u32)
    };
    let unit = "messages in a second (0: no bound)";
    let messages_per_second = rate("rates.messages_per_second", raw.messages_per_second, unit)?;
    let unit = "bytes in a second (0: no bound)";
    let bytes_per_second = rate("rates.bytes_per_second", raw.bytes_per_second, unit)?;
    let span = |key: &str, written: &Option<String>, default, range| {
        values::duration(at.key(key), written.as_deref(), default, range)
    };
    Ok(Rates {
        messages_per_second,
        bytes_per_second,
        burst: span("rates.burst", &raw.burst, default.burst, RATE_BURST)?,
        patience: span("rates.patience", &raw.patience, default.patience, RATE_PATIENCE)?,
        deny_for: span("rates.deny_for", &raw.deny_for, default.deny_for, RATE_DENY)?,
    })
}

fn identity(
    context: &mut Context<'_>,
    at: &At<'_>,
    raw: RawIdentity,
    protocol: &Protocol,
    client_auth: ClientAuth,
) -> Result<Identity, Problem> {
    let place = at.key("identity.from");
    let from = match &raw.from {
        Some(written) => identity_from(place.clone(), written, protocol)?,
        None => match protocol {
            Protocol::Native => IdentityFrom::Hello,
            Protocol::Raw(_) => IdentityFrom::CertCn,
            Protocol::Mqtt(_) => IdentityFrom::ClientId,
        },
    };
    let by_certificate = matches!(from, IdentityFrom::CertCn | IdentityFrom::CertSanDns | IdentityFrom::CertSanUri);
    if by_certificate && client_auth == ClientAuth::Off {
        let says = match protocol {
            Protocol::Native => IdentityFrom::Hello.label(),
            Protocol::Mqtt(_) => IdentityFrom::ClientId.label(),
            Protocol::Raw(_) => {
                let text = "tls.client_auth is off, so that every connection gets a generated id";
                if raw.from.is_some() {
                    context.warn(&place, text);
                } else {
                    context.note(&place, text);
                }
                ""
            }
        };
        if !says.is_empty() {
            let what = format!("{:?} needs client certificates, and tls.client_auth is off", from.label());
            let remedy =
                format!("set tls.client_auth = \"required\" with a tls.client_ca, or identity.from = {says:?}");
            return Err(Problem::new(place, what, remedy));
        }
    }
    let authenticators: Vec<_> = secrets(context, at, raw, protocol)?.into_iter().collect();
    Ok(Identity { from, authenticators })
}

/// The same with the list of authenticators, if one is written.
fn with_list(
    context: &mut Context<'_>,
    at: &At<'_>,
    identity: Identity,
    written: Vec<RawAuthenticator>,
    protocol: &Protocol,
    limits: &Limits,
) -> Result<Identity, Problem> {
    let Identity { from, mut authenticators } = identity;
    if let (Some(Authenticator::Secrets(secrets)), false) = (authenticators.first(), written.is_empty()) {
        let remedy = "make it the one in the list: [[listener.authenticator]] with kind and file";
        return Err(Problem::new(at.key(&secrets.key), "there is a list of authenticators beside it", remedy));
    }
    if !written.is_empty() {
        authenticators = super::authenticator::resolve(context, at, written, protocol, from, limits)?;
    }
    if from == IdentityFrom::Username && authenticators.is_empty() {
        let what = "a user name that nobody checks names nobody";
        let remedy = "name an identity.password_file, or write identity.from = \"client-id\"";
        return Err(Problem::new(at.key("identity.from"), what, remedy));
    }
    Ok(Identity { from, authenticators })
}

fn identity_from(place: ConfigKey, written: &str, protocol: &Protocol) -> Result<IdentityFrom, Problem> {
    use IdentityFrom::{CertCn, CertSanDns, CertSanUri, ClientId, Hello, Username};
    let rules = [Hello, ClientId, Username, CertCn, CertSanDns, CertSanUri].map(|rule| (rule.label(), rule));
    let from = values::word(place.clone(), written, &rules)?;
    match (from, protocol) {
        (Hello, Protocol::Native)
        | (ClientId | Username, Protocol::Mqtt(_))
        | (CertCn | CertSanDns | CertSanUri, _) => Ok(from),
        (Hello, Protocol::Raw(_)) => {
            let what = "a raw device sends no HELLO that could name it";
            let remedy = "write \"cert-cn\", \"cert-san-dns\" or \"cert-san-uri\" (without a certificate it gets a \
                          generated id)";
            Err(Problem::new(place, what, remedy))
        }
        (_, Protocol::Mqtt(_)) => {
            let remedy = "write \"client-id\", \"username\", \"cert-cn\", \"cert-san-dns\" or \"cert-san-uri\"";
            Err(Problem::new(place, "an MQTT device sends CONNECT, not HELLO", remedy))
        }
        (_, Protocol::Native | Protocol::Raw(_)) => {
            let what = format!("{written:?} is for listeners with protocol = \"mqtt\"");
            Err(Problem::new(
                place,
                what,
                "write \"cert-cn\", \"cert-san-dns\", \"cert-san-uri\", or (native) \"hello\"",
            ))
        }
    }
}

/// The file of tokens, or of passwords.
fn secrets(
    context: &mut Context<'_>,
    at: &At<'_>,
    raw: RawIdentity,
    protocol: &Protocol,
) -> Result<Option<Authenticator>, Problem> {
    let refuse = |key: &str, what: &str, remedy: &str| Err(Problem::new(at.key(key), what, remedy));
    match (protocol, raw.token_file, raw.password_file) {
        (_, None, None) => Ok(None),
        (Protocol::Native, Some(written), None) => {
            let key = "identity.token_file";
            secret_file(context, at.key(key), &written, false).map(|file| Some(Authenticator::secrets(file, key)))
        }
        (Protocol::Mqtt(_), None, Some(written)) => {
            let key = "identity.password_file";
            secret_file(context, at.key(key), &written, false).map(|file| Some(Authenticator::secrets(file, key)))
        }
        (Protocol::Raw(_), Some(_), _) => {
            let remedy = "leave it out, and let tls.client_auth = \"required\" decide who may come";
            refuse("identity.token_file", "a raw device sends no token", remedy)
        }
        (Protocol::Mqtt(_), Some(_), _) => refuse(
            "identity.token_file",
            "an MQTT device sends a user name and a password",
            "write identity.password_file",
        ),
        (Protocol::Native, _, Some(_)) => {
            refuse("identity.password_file", "a native device sends a token", "write identity.token_file")
        }
        (Protocol::Raw(_), None, Some(_)) => {
            let remedy = "leave it out, and let tls.client_auth = \"required\" decide who may come";
            refuse("identity.password_file", "a raw device sends no password", remedy)
        }
    }
}

/// A file of secrets must be there, and name somebody unless there are `others` who let devices in; its lines are the control
/// plane's to judge.
pub(super) fn secret_file(
    context: &mut Context<'_>,
    place: ConfigKey,
    written: &str,
    others: bool,
) -> Result<PathBuf, Problem> {
    let text = context.text(place.clone(), written)?;
    let names_nobody = text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#'));
    if names_nobody && others {
        context.warn(&place, &format!("{written} names nobody as yet, so that nobody comes in by it"));
    } else if names_nobody {
        let what = format!("{written} names nobody, so that nobody could connect");
        return Err(Problem::new(place, what, "add lines made by `pulsegate hash-token NAME`, or leave the key out"));
    }
    context.path(place, written)
}

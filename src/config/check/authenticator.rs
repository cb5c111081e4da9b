//! `[[listener.authenticator]]`.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::at::At;
use super::listener::secret_file;
use super::{Context, values};
use crate::config::authenticator::{
    AUTHENTICATORS_MAX, Authenticator, Endpoint, Hook, Jwt, KeySource, OnError, RsaAlgorithm,
};
use crate::config::error::{ConfigKey, Problem};
use crate::config::raw::RawAuthenticator;
use crate::config::{IdentityFrom, Limits, Protocol};

/// How often keys may be fetched.
const REFRESH: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_hours(24);
/// How far clocks may be apart.
const LEEWAY: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_mins(10);
/// How long a question to a hook may take.
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(30);
/// How long answers may be kept.
const KEPT: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(24 * 7);

const MINUTE: Duration = Duration::from_mins(1);

/// The list of a listener, in its order.
pub(super) fn resolve(
    context: &mut Context<'_>,
    at: &At<'_>,
    raw: Vec<RawAuthenticator>,
    protocol: &Protocol,
    from: IdentityFrom,
    limits: &Limits,
) -> Result<Vec<Authenticator>, Problem> {
    let mut list: Vec<Authenticator> = Vec::with_capacity(raw.len());
    let has_others = raw.len() > 1;
    for (position, raw) in raw.into_iter().enumerate() {
        let entry = Entry { at, position, has_others };
        if matches!(protocol, Protocol::Raw(_)) {
            let remedy = "leave it out, and let tls.client_auth = \"required\" decide who may come";
            return Err(Problem::new(entry.key("kind"), "a raw device sends nothing that could be judged", remedy));
        }
        let one = authenticator(context, &entry, raw, protocol, limits)?;
        if list.iter().any(|before| before.label() == one.label()) {
            let remedy = "write each kind once: the first that applies decides";
            return Err(Problem::new(entry.key("kind"), "there is one of this kind already", remedy));
        }
        let by_certificate = matches!(from, IdentityFrom::CertCn | IdentityFrom::CertSanDns | IdentityFrom::CertSanUri);
        if matches!(one, Authenticator::Certificate) && !by_certificate {
            let what = format!("a certificate proves nothing of a device that is named by {:?}", from.label());
            let remedy = "write identity.from = \"cert-cn\", \"cert-san-dns\" or \"cert-san-uri\"";
            return Err(Problem::new(entry.key("kind"), what, remedy));
        }
        if matches!(list.last(), Some(Authenticator::Hook(_))) {
            let what = "a hook stands before it, which applies to everybody";
            return Err(Problem::new(entry.key("kind"), what, "let the hook be the last"));
        }
        list.push(one);
    }
    debug_assert!(list.len() <= AUTHENTICATORS_MAX, "there is one of each kind at most");
    Ok(list)
}

/// One of the list, for the keys that are named.
struct Entry<'a> {
    at: &'a At<'a>,
    position: usize,
    /// There are others in the list.
    has_others: bool,
}

impl Entry<'_> {
    fn path(&self, key: &str) -> String {
        format!("authenticator[{}].{key}", self.position)
    }

    fn key(&self, key: &str) -> ConfigKey {
        self.at.key(&self.path(key))
    }
}

/// What each kind may have, besides `kind`.
const KEYS: [(&str, &[&str]); 5] = [
    ("certificate", &[]),
    ("token", &["file"]),
    ("password", &["file"]),
    (
        "jwt",
        &[
            "file",
            "url",
            "ca",
            "refresh",
            "algorithm",
            "issuer",
            "audience",
            "leeway",
            "device_claim",
            "publish_claim",
            "subscribe_claim",
        ],
    ),
    (
        "hook",
        &[
            "url",
            "ca",
            "bearer_file",
            "timeout",
            "in_flight",
            "waiting",
            "cache",
            "cache_denied",
            "cache_bytes",
            "stale",
            "on_error",
        ],
    ),
];

fn authenticator(
    context: &mut Context<'_>,
    entry: &Entry<'_>,
    raw: RawAuthenticator,
    protocol: &Protocol,
    limits: &Limits,
) -> Result<Authenticator, Problem> {
    let kinds = KEYS.map(|(kind, _)| (kind, kind));
    let Some(written) = raw.kind.as_deref() else {
        let remedy = "write \"certificate\", \"jwt\", \"password\", \"token\" or \"hook\"";
        return Err(Problem::new(entry.key("kind"), "it is missing", remedy));
    };
    let kind = values::word(entry.key("kind"), written, &kinds)?;
    let allowed = KEYS.iter().find(|(name, _)| *name == kind).map_or(&[][..], |(_, keys)| keys);
    let allowed: BTreeSet<&str> = allowed.iter().copied().collect();
    if let Some(wrong) = raw.written().into_iter().find(|key| !allowed.contains(key)) {
        let what = format!("an authenticator of kind {kind:?} has no such key");
        return Err(Problem::new(entry.key(wrong), what, "leave it out"));
    }
    match (kind, protocol) {
        ("certificate", _) => Ok(Authenticator::Certificate),
        ("token", Protocol::Mqtt(_)) => {
            let what = "an MQTT device sends a user name and a password";
            Err(Problem::new(entry.key("kind"), what, "write kind = \"password\""))
        }
        ("password", Protocol::Native) => {
            Err(Problem::new(entry.key("kind"), "a native device sends a token", "write kind = \"token\""))
        }
        ("token" | "password", _) => {
            let Some(file) = raw.file else {
                let remedy = "name a file with lines made by `pulsegate hash-token NAME`";
                return Err(Problem::new(entry.key("file"), "it is missing", remedy));
            };
            let file = secret_file(context, entry.key("file"), &file, entry.has_others)?;
            Ok(Authenticator::secrets(file, entry.path("file")))
        }
        ("jwt", _) => jwt(context, entry, raw).map(|jwt| Authenticator::Jwt(Box::new(jwt))),
        _ => hook(context, entry, raw, limits).map(|hook| Authenticator::Hook(Box::new(hook))),
    }
}

fn jwt(context: &mut Context<'_>, entry: &Entry<'_>, raw: RawAuthenticator) -> Result<Jwt, Problem> {
    let keys = match (raw.file, &raw.url) {
        (Some(file), None) => {
            if let Some(key) = [("ca", raw.ca.is_some()), ("refresh", raw.refresh.is_some())].iter().find(|key| key.1) {
                let what = "it is for keys that are fetched (url)";
                return Err(Problem::new(entry.key(key.0), what, "leave it out: a file that changes is read again"));
            }
            context.text(entry.key("file"), &file)?;
            KeySource::File(context.path(entry.key("file"), &file)?)
        }
        (None, Some(_)) => {
            let refresh =
                values::duration(entry.key("refresh"), raw.refresh.as_deref(), Duration::from_mins(5), REFRESH)?;
            KeySource::Url { endpoint: endpoint(context, entry, raw.url, raw.ca)?, refresh }
        }
        (None, None) => {
            let remedy = "name a file with public keys (PEM or JWKS), or the url of a JWKS";
            return Err(Problem::new(entry.key("file"), "it is missing", remedy));
        }
        (Some(_), Some(_)) => {
            return Err(Problem::new(entry.key("url"), "the keys come from a file already", "write file or url"));
        }
    };
    let algorithms = [
        ("RS256", RsaAlgorithm::Rs256),
        ("RS384", RsaAlgorithm::Rs384),
        ("RS512", RsaAlgorithm::Rs512),
        ("PS256", RsaAlgorithm::Ps256),
        ("PS384", RsaAlgorithm::Ps384),
        ("PS512", RsaAlgorithm::Ps512),
    ];
    let rsa = match raw.algorithm.as_deref() {
        None => RsaAlgorithm::Rs256,
        Some(written) => values::word(entry.key("algorithm"), written, &algorithms)?,
    };
    let audience = raw.audience.unwrap_or_default();
    if audience.is_empty() {
        let text = "without an audience, a token that the issuer made for another service opens this one too";
        context.warn(&entry.key("audience"), text);
    }
    let claim = |key: &str, written: Option<String>| match written {
        Some(empty) if empty.is_empty() => {
            let remedy = "write the name of a claim, or a JSON pointer such as \"/pulsegate/publish\"";
            Err(Problem::new(entry.key(key), "it is empty", remedy))
        }
        other => Ok(other),
    };
    Ok(Jwt {
        position: entry.position,
        keys,
        rsa,
        issuer: raw.issuer.unwrap_or_default(),
        audience,
        leeway: values::duration(entry.key("leeway"), raw.leeway.as_deref(), Duration::from_secs(30), LEEWAY)?,
        device_claim: claim("device_claim", raw.device_claim)?.unwrap_or_else(|| "sub".to_owned()),
        publish_claim: claim("publish_claim", raw.publish_claim)?,
        subscribe_claim: claim("subscribe_claim", raw.subscribe_claim)?,
    })
}

fn hook(context: &mut Context<'_>, entry: &Entry<'_>, raw: RawAuthenticator, limits: &Limits) -> Result<Hook, Problem> {
    let endpoint = endpoint(context, entry, raw.url, raw.ca)?;
    let bearer_file = match raw.bearer_file {
        None => None,
        Some(written) => {
            let text = context.text(entry.key("bearer_file"), &written)?;
            let token = text.trim();
            if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                let what = format!("{written} holds no token of visible ASCII");
                let remedy = "write one line with a long random token into it (openssl rand -hex 32)";
                return Err(Problem::new(entry.key("bearer_file"), what, remedy));
            }
            Some(context.path(entry.key("bearer_file"), &written)?)
        }
    };
    let default = Duration::from_secs(2);
    let timeout = values::duration(entry.key("timeout"), raw.timeout.as_deref(), default, TIMEOUT)?;
    if timeout >= limits.hello_time {
        let most = humantime::format_duration(limits.hello_time);
        let what = format!("a device waits for {most} at most (limits.hello_time)");
        return Err(Problem::new(entry.key("timeout"), what, "write less than that, or raise limits.hello_time"));
    }
    let count = |key: &str, written, default: i64, range| {
        values::integer(entry.key(key), written, default, range, key).map(|value| value as usize)
    };
    let span = |key: &str, written: Option<&str>, default| values::duration(entry.key(key), written, default, KEPT);
    let on_error = match raw.on_error.as_deref() {
        None => OnError::Deny,
        Some(written) => {
            let words = [("deny", OnError::Deny), ("allow-cached", OnError::AllowCached)];
            values::word(entry.key("on_error"), written, &words)?
        }
    };
    if raw.stale.is_some() && on_error == OnError::Deny {
        let text = "it has no effect without on_error = \"allow-cached\"";
        context.warn(&entry.key("stale"), text);
    }
    Ok(Hook {
        position: entry.position,
        endpoint,
        bearer_file,
        timeout,
        in_flight: count("in_flight", raw.in_flight, 8, 1..=64)?,
        waiting: count("waiting", raw.waiting, 1_024, 1..=65_536)?,
        cache: span("cache", raw.cache.as_deref(), 5 * MINUTE)?,
        cache_denied: span("cache_denied", raw.cache_denied.as_deref(), Duration::from_secs(10))?,
        cache_bytes: count("cache_bytes", raw.cache_bytes, 8 << 20, 65_536..=1 << 30)?,
        stale: span("stale", raw.stale.as_deref(), 60 * MINUTE)?,
        on_error,
    })
}

fn endpoint(
    context: &Context<'_>,
    entry: &Entry<'_>,
    url: Option<String>,
    ca: Option<String>,
) -> Result<Endpoint, Problem> {
    let remedy = "write a URL, such as \"https://id.example.com/devices\" or \"http://127.0.0.1:8080/auth\"";
    let Some(url) = url else { return Err(Problem::new(entry.key("url"), "it is missing", remedy)) };
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let host = rest.map_or("", |rest| rest.split('/').next().unwrap_or_default());
    if host.is_empty() || host.contains('@') || url.chars().any(|c| c.is_control() || c.is_whitespace() || c == '#') {
        return Err(Problem::new(entry.key("url"), format!("{url:?} is no URL"), remedy));
    }
    let ca = match (url.starts_with("https://"), ca) {
        (true, None) => {
            let remedy =
                "name a PEM file of authorities (on Debian /etc/ssl/certs/ca-certificates.crt has the public ones)";
            return Err(Problem::new(entry.key("ca"), "https needs it", remedy));
        }
        (true, Some(written)) => {
            context.text(entry.key("ca"), &written)?;
            Some(context.path(entry.key("ca"), &written)?)
        }
        (false, Some(_)) => {
            return Err(Problem::new(entry.key("ca"), "the url is not https", "write https, or leave it out"));
        }
        (false, None) => None,
    };
    Ok(Endpoint { url, ca })
}

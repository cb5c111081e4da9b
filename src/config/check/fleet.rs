//! `[backbone.nats]`.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::sink::{Entry, Kind, Url, nats_login, tls};
use super::{Context, values};
use crate::config::error::Problem;
use crate::config::raw::RawFleet;
use crate::config::{
    Durability, FLEET_SINK, Fleet, FleetUplink, MAX_SINKS, NatsSink, NatsStream, Sink, SinkKind, Store, Uplink,
};

const URLS_MAX: usize = 16;
const PREFIX_BYTES_MAX: usize = 32;
const REPLICAS: RangeInclusive<i64> = 1..=5;
const LEASE: RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_mins(5);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(1);
const RETRY: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_mins(10);
/// As of a sink for which nothing is written.
const TRIES_REFUSED: u32 = 5;
const DEAD_LETTER_BYTES: u64 = 64 << 20;
/// Messages under way to the fleet's stream; one of each device.
const UPLINK_INFLIGHT: u16 = 500;
const WRITES: RangeInclusive<i64> = 10..=1_000_000;

/// How this gateway is one of a fleet, if it is.
pub(super) fn resolve(
    context: &mut Context<'_>,
    raw: Option<RawFleet>,
    store: Option<&Store>,
) -> Result<Option<Fleet>, Problem> {
    let Some(raw) = raw else { return Ok(None) };
    let entry = Entry::of_table("backbone.nats");
    let (urls, is_tls) = urls(&entry, raw.urls)?;
    let login = [raw.credentials_file, raw.nkey_file, raw.username, raw.password_file];
    let login = nats_login(context, &entry, login.each_ref().map(Option::as_ref), is_tls)?;
    let prefix = raw.prefix.unwrap_or_else(|| "pulsegate".to_owned());
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if prefix.is_empty() || prefix.len() > PREFIX_BYTES_MAX || !prefix.bytes().all(fits) {
        let remedy = format!("write 1 to {PREFIX_BYTES_MAX} letters, digits, \"-\" and \"_\"");
        return Err(Problem::new(entry.key("prefix"), format!("{prefix:?} is no prefix of a fleet"), remedy));
    }
    let lease = values::duration(entry.key("lease"), raw.lease.as_deref(), Duration::from_secs(10), LEASE)?;
    let default = Duration::from_secs(5).min(lease / 3);
    let timeout = values::duration(entry.key("timeout"), raw.timeout.as_deref(), default, TIMEOUT)?;
    if timeout > lease / 2 {
        let what =
            format!("a question may take longer than half of the lease of {}", humantime::format_duration(lease));
        return Err(Problem::new(entry.key("timeout"), what, "write a shorter one, or a longer lease"));
    }
    let shortest =
        values::duration(entry.key("retry_min"), raw.retry_min.as_deref(), Duration::from_millis(250), RETRY)?;
    let default = Duration::from_secs(15).max(shortest);
    let longest = values::duration(entry.key("retry_max"), raw.retry_max.as_deref(), default, RETRY)?;
    if longest < shortest {
        return Err(Problem::new(entry.key("retry_max"), "it is less than retry_min", "write a longer one"));
    }
    let replicas = values::integer(entry.key("replicas"), raw.replicas, 1, REPLICAS, "servers")?;
    let writes = values::integer(entry.key("writes_per_second"), raw.writes_per_second, 5_000, WRITES, "rows")?;
    // Without a store there is no log to go on from.
    let has_log = store.is_none_or(|store| store.durability != Durability::Memory);
    let default = if has_log { "stream" } else { "off" };
    let words = [("off", FleetUplink::Off), ("local", FleetUplink::Local), ("stream", FleetUplink::Stream)];
    let uplink = values::word(entry.key("uplink"), raw.uplink.as_deref().unwrap_or(default), &words)?;
    if replicas % 2 == 0 {
        context.warn(&entry.key("replicas"), "an even number bears no more losses than the odd one below it");
    }
    if !is_tls && urls.iter().any(|url| !is_local(url)) {
        context.warn(&entry.key("urls"), "commands to devices go over the network in the clear: write tls://");
    }
    Ok(Some(Fleet {
        tls: tls(context, &entry, raw.tls, is_tls)?,
        urls,
        is_tls,
        login,
        prefix,
        replicas: replicas as usize,
        lease,
        timeout,
        retry: (shortest, longest),
        writes_per_second: writes as u32,
        ready_without_nats: raw.ready_without_nats.unwrap_or(false),
        uplink,
    }))
}

/// What devices say goes into the fleet's stream as by any sink: from the local log, with a cursor of its own.
pub(super) fn add_uplink(
    fleet: Option<&Fleet>,
    store: &Store,
    uplink: &Uplink,
    sinks: &mut Vec<Sink>,
) -> Result<(), Problem> {
    let Some(fleet) = fleet.filter(|fleet| fleet.uplink != FleetUplink::Off) else { return Ok(()) };
    let key = Entry::of_table("backbone.nats").key("uplink");
    let refuse = |what: &str, remedy: &str| Err(Problem::new(key.clone(), what, remedy));
    if store.durability == Durability::Memory {
        let what = "it goes on where it was from the store, and durability = \"memory\" has none";
        return refuse(what, "write store.durability = \"group\" or \"interval\", or uplink = \"off\"");
    }
    if sinks.len() >= MAX_SINKS || sinks.iter().any(|sink| sink.name == FLEET_SINK) {
        let what = format!("it is one of the {MAX_SINKS} sinks that there may be, under the name {FLEET_SINK:?}");
        return refuse(&what, "take one of [[sink]] out, or give it another name, or write uplink = \"off\"");
    }
    sinks.push(Sink {
        name: FLEET_SINK.to_owned(),
        topics: vec!["#".to_owned()],
        presence: true,
        from_first: true,
        timeout: fleet.timeout,
        retry: fleet.retry,
        tries_refused: TRIES_REFUSED,
        tries_failed: 0,
        dead_letter_bytes: DEAD_LETTER_BYTES,
        tls: fleet.tls.clone(),
        kind: SinkKind::Nats(NatsSink {
            urls: fleet.urls.clone(),
            stream: format!("{}_uplink", fleet.prefix),
            make: Some(NatsStream { replicas: fleet.replicas, retention: uplink.retention }),
            prefix: fleet.prefix.clone(),
            inflight: UPLINK_INFLIGHT,
            login: fleet.login.clone(),
        }),
    });
    Ok(())
}

/// Where the servers are, and whether they are spoken to over TLS.
fn urls(entry: &Entry, written: Vec<String>) -> Result<(Vec<String>, bool), Problem> {
    if written.is_empty() || written.len() > URLS_MAX {
        let what = format!("there are {}", written.len());
        let remedy = format!("write 1 to {URLS_MAX}, as in urls = [\"tls://nats-1.example.com:4222\"]");
        return Err(Problem::new(entry.key("urls"), what, remedy));
    }
    let mut with_tls = Vec::with_capacity(written.len());
    for url in &written {
        let parsed = Url::parse(entry, "urls", url, Kind::Nats)?;
        if parsed.has_path {
            return Err(Problem::new(entry.key("urls"), "a server has no path", "write it as in \"tls://host:4222\""));
        }
        with_tls.push(parsed.is_tls);
    }
    let is_tls = with_tls[0];
    if with_tls.iter().any(|other| *other != is_tls) {
        let remedy = "write all of them with tls://, or all with nats://";
        return Err(Problem::new(entry.key("urls"), "some are with TLS and some without", remedy));
    }
    Ok((written, is_tls))
}

fn is_local(url: &str) -> bool {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    ["127.", "localhost", "[::1]"].iter().any(|local| host.starts_with(local))
}

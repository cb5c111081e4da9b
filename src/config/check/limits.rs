//! `[limits]`: every bound has a default and a range.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::values;
use crate::config::Limits;
use crate::config::error::{ConfigKey, Problem};
use crate::config::machine::Machine;
use crate::config::raw::RawLimits;

/// The range of `limits.connections`.
const CONNECTIONS: RangeInclusive<i64> = 1..=10_000_000;
/// The range of every wait for a peer that is not a device yet.
const PEER_TIME: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(5);
/// The range of `limits.shed_lateness`.
const SHED_LATENESS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_mins(1);
/// The range of `limits.linger_time`.
const LINGER_TIME: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_mins(1);
/// The range of what is kept in bytes.
const KEPT_BYTES: RangeInclusive<i64> = 0..=17_179_869_184;
/// The memory for which the defaults of `limits.sessions`, `limits.retained_*`, `limits.pool_bytes`, `limits.uplink_length` and
/// `store.queue_bytes` are made, in bytes.
const KEEPING_MEMORY: u64 = 1 << 30;

/// So much of a default that is made for [`KEEPING_MEMORY`] as the machine has of that memory.
pub(super) fn in_proportion(whole: u64, machine: &Machine) -> u64 {
    whole * machine.memory.bytes.min(KEEPING_MEMORY) / KEEPING_MEMORY
}

/// The least default of `limits.uplink_length`: what one worker may say in a few turns.
const UPLINK_LENGTH_LEAST: u64 = 4_096;
/// The range of `limits.pool_bytes`.
const POOL_BYTES: RangeInclusive<i64> = 1_048_576..=68_719_476_736;
/// What a frame takes on the wire beyond its body, sealed: the outbox must have room for it.
const FRAME_OVERHEAD_BYTES: usize = 512;

/// All of them, checked against each other.
pub(super) fn resolve(raw: &RawLimits, machine: &Machine) -> Result<Limits, Problem> {
    let limits = of_sessions(raw, &of_connections(raw, &defaults(machine))?)?;
    let least = limits.frame_bytes + FRAME_OVERHEAD_BYTES;
    if limits.outbox_bytes < least {
        let what = format!("{} bytes cannot hold one frame of limits.frame_bytes", limits.outbox_bytes);
        return Err(Problem::new(place("outbox_bytes"), what, format!("write at least {least}")));
    }
    Ok(limits)
}

/// The defaults. What MQTT keeps, and what may wait, is meant for a gibibyte of memory or more; where there is less, it is less in proportion.
fn defaults(machine: &Machine) -> Limits {
    let default = Limits::default();
    let part = |whole: u64| in_proportion(whole, machine);
    Limits {
        sessions: part(u64::from(default.sessions)) as u32,
        retained_messages: part(default.retained_messages as u64) as usize,
        retained_bytes: part(default.retained_bytes as u64) as usize,
        pool_bytes: part(default.pool_bytes as u64).max(*POOL_BYTES.start() as u64) as usize,
        uplink_length: part(default.uplink_length as u64).max(UPLINK_LENGTH_LEAST) as usize,
        ..default
    }
}

fn of_connections(raw: &RawLimits, default: &Limits) -> Result<Limits, Problem> {
    Ok(Limits {
        connections: count("connections", raw.connections, default.connections, CONNECTIONS, "connections")?,
        handshakes: count("handshakes", raw.handshakes, default.handshakes, 1..=65_536, "handshakes")?,
        handshake_time: time("handshake_time", raw.handshake_time.as_deref(), default.handshake_time, PEER_TIME)?,
        hello_time: time("hello_time", raw.hello_time.as_deref(), default.hello_time, PEER_TIME)?,
        read_bytes: size("read_bytes", raw.read_bytes, default.read_bytes, 1_024..=1_048_576, "bytes")?,
        frame_bytes: size("frame_bytes", raw.frame_bytes, default.frame_bytes, 256..=65_535, "bytes")?,
        outbox_bytes: size("outbox_bytes", raw.outbox_bytes, default.outbox_bytes, 1_024..=16_777_216, "bytes")?,
        inbox_length: size("inbox_length", raw.inbox_length, default.inbox_length, 16..=1_048_576, "commands")?,
        uplink_length: size("uplink_length", raw.uplink_length, default.uplink_length, 16..=1_048_576, "events")?,
        shed_lateness: time("shed_lateness", raw.shed_lateness.as_deref(), default.shed_lateness, SHED_LATENESS)?,
        linger_time: time("linger_time", raw.linger_time.as_deref(), default.linger_time, LINGER_TIME)?,
        ..default.clone()
    })
}

fn of_sessions(raw: &RawLimits, default: &Limits) -> Result<Limits, Problem> {
    let inflight = u32::from(default.session_inflight);
    Ok(Limits {
        packet_bytes: size("packet_bytes", raw.packet_bytes, default.packet_bytes, 1_024..=16_777_216, "bytes")?,
        connect_bytes: size("connect_bytes", raw.connect_bytes, default.connect_bytes, 1_024..=16_777_216, "bytes")?,
        sessions: count("sessions", raw.sessions, default.sessions, 0..=100_000_000, "sessions")?,
        session_inflight: count("session_inflight", raw.session_inflight, inflight, 1..=65_535, "messages")? as u16,
        session_messages: size(
            "session_messages",
            raw.session_messages,
            default.session_messages,
            0..=10_000_000,
            "messages",
        )?,
        session_bytes: size("session_bytes", raw.session_bytes, default.session_bytes, KEPT_BYTES, "bytes")?,
        session_subscriptions: size(
            "session_subscriptions",
            raw.session_subscriptions,
            default.session_subscriptions,
            1..=1_000_000,
            "subscriptions",
        )?,
        topic_levels: size("topic_levels", raw.topic_levels, default.topic_levels, 1..=1_024, "levels")?,
        retained_messages: size(
            "retained_messages",
            raw.retained_messages,
            default.retained_messages,
            0..=100_000_000,
            "messages",
        )?,
        retained_bytes: size("retained_bytes", raw.retained_bytes, default.retained_bytes, KEPT_BYTES, "bytes")?,
        pool_bytes: size("pool_bytes", raw.pool_bytes, default.pool_bytes, POOL_BYTES, "bytes")?,
        ..default.clone()
    })
}

fn place(key: &str) -> ConfigKey {
    ConfigKey::top(format!("limits.{key}"))
}

fn count(
    key: &str,
    written: Option<i64>,
    default: u32,
    range: RangeInclusive<i64>,
    unit: &str,
) -> Result<u32, Problem> {
    values::integer(place(key), written, i64::from(default), range, unit).map(|value| value as u32)
}

fn size(
    key: &str,
    written: Option<i64>,
    default: usize,
    range: RangeInclusive<i64>,
    unit: &str,
) -> Result<usize, Problem> {
    values::integer(place(key), written, default as i64, range, unit).map(|value| value as usize)
}

fn time(
    key: &str,
    written: Option<&str>,
    default: Duration,
    range: RangeInclusive<Duration>,
) -> Result<Duration, Problem> {
    values::duration(place(key), written, default, range)
}

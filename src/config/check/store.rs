//! `[store]` and `[uplink]`: what is kept on disk, and for how long.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{ConfigKey, Problem, limits, values};
use crate::config::machine::Machine;
use crate::config::raw::{RawStore, RawUplink};
use crate::config::{Durability, Store, Uplink};

const SYNC_INTERVAL: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_mins(1);
const STORE_BYTES: RangeInclusive<i64> = 16 << 20..=1 << 44;
const QUEUE_BYTES: RangeInclusive<i64> = 64 << 10..=1 << 30;
const SESSIONS_BYTES: RangeInclusive<i64> = 1 << 20..=1 << 43;
/// Unless it is written, what waits for devices that are away is at most such a part of the store.
const SESSIONS_PART: i64 = 4;
const COMMANDS_BYTES: RangeInclusive<i64> = 1 << 20..=256 << 20;
/// Unless it is written, what waits for devices that are nowhere is at most such a part of the store.
const COMMANDS_PART: i64 = 8;
const RETENTION: RangeInclusive<Duration> = Duration::from_mins(1)..=Duration::from_hours(10 * 365 * 24);
const RETENTION_BYTES: RangeInclusive<i64> = 1 << 20..=1 << 43;

/// `[store]`.
pub fn store(raw: &RawStore, machine: &Machine) -> Result<Store, Problem> {
    let default = Store::default();
    let place = |key: &str| ConfigKey::top(format!("store.{key}"));
    let durability = match &raw.durability {
        None => default.durability,
        Some(written) => values::word(place("durability"), written, &Durability::WORDS)?,
    };
    let interval = raw.sync_interval.as_deref();
    if interval.is_some() && durability != Durability::Interval {
        let what = format!("it says nothing with durability = {:?}", durability.label());
        return Err(Problem::new(place("sync_interval"), what, "remove it, or write durability = \"interval\""));
    }
    let sync_interval = values::duration(place("sync_interval"), interval, default.sync_interval, SYNC_INTERVAL)?;
    let bytes = values::integer(place("bytes"), raw.bytes, default.bytes as i64, STORE_BYTES, "bytes")?;
    let usual = limits::in_proportion(default.queue_bytes as u64, machine) as i64;
    let queue =
        values::integer(place("queue_bytes"), raw.queue_bytes, usual.max(*QUEUE_BYTES.start()), QUEUE_BYTES, "bytes")?;
    // Unless it is written, it is a part of what there is.
    let usual = (bytes / SESSIONS_PART).min(default.sessions_bytes as i64);
    let sessions = values::integer(place("sessions_bytes"), raw.sessions_bytes, usual, SESSIONS_BYTES, "bytes")?;
    if sessions > bytes && durability != Durability::Memory {
        let what = format!("{sessions} bytes do not fit into a store of {bytes}");
        return Err(Problem::new(place("sessions_bytes"), what, "write less, or a larger store.bytes"));
    }
    let usual = (bytes / COMMANDS_PART).min(default.commands_bytes as i64);
    let commands = values::integer(place("commands_bytes"), raw.commands_bytes, usual, COMMANDS_BYTES, "bytes")?;
    if commands > bytes && durability != Durability::Memory {
        let what = format!("{commands} bytes do not fit into a store of {bytes}");
        return Err(Problem::new(place("commands_bytes"), what, "write less, or a larger store.bytes"));
    }
    Ok(Store {
        durability,
        sync_interval,
        bytes: bytes as u64,
        queue_bytes: queue as usize,
        sessions_bytes: sessions as u64,
        commands_bytes: commands as u64,
    })
}

/// `[uplink]`. What is kept has to fit into the store, with what a database takes beside its content.
pub fn uplink(raw: &RawUplink, store: &Store) -> Result<Uplink, Problem> {
    let default = Uplink::default();
    let place = |key: &str| ConfigKey::top(format!("uplink.{key}"));
    let retention = values::duration(place("retention"), raw.retention.as_deref(), default.retention, RETENTION)?;
    let most = store.bytes / 3 * 2;
    // Unless it is written, it is what fits.
    let fits = default.retention_bytes.min(most) as i64;
    let bytes = values::integer(place("retention_bytes"), raw.retention_bytes, fits, RETENTION_BYTES, "bytes")? as u64;
    if bytes > most && store.durability != Durability::Memory {
        let what = format!("{bytes} bytes do not fit into a store of {} with room to spare", store.bytes);
        return Err(Problem::new(
            place("retention_bytes"),
            what,
            format!("write at most {most}, or a larger store.bytes"),
        ));
    }
    Ok(Uplink { retention, retention_bytes: bytes })
}

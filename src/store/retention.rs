//! What of the uplink goes: whatever is too old, and beyond the bytes that may be held first what a device holds beyond its share, then
//! the oldest. Consumers that had not acknowledged it miss it, and are told so. A statement and its table's index are all that is
//! read: no list is kept of what is in the file.

use rusqlite::{Transaction, params};

use super::consumers::store_progress;
use super::queue::Consumers;
use super::share::Shares;
use super::writer::Group;

/// What is kept: events of this time or later, up to so many bytes of them, and only those behind this number.
#[derive(Clone, Copy)]
pub(super) struct Retention {
    pub(super) since_ms: i64,
    pub(super) bytes: u64,
    pub(super) behind: u64,
}

/// What an event counts: `length` of a BLOB does not read it.
const BYTES: &str = "length(CAST(device AS BLOB)) + ifnull(length(CAST(topic AS BLOB)), 0)
                 + ifnull(length(payload), 0) + ifnull(length(CAST(listener AS BLOB)), 0)
                 + ifnull(length(CAST(cause AS BLOB)), 0) + ifnull(length(CAST(peer AS BLOB)), 0)
                 + ifnull(length(CAST(identity AS BLOB)), 0) + ifnull(length(CAST(tls AS BLOB)), 0)
                 + ifnull(length(CAST(detail AS BLOB)), 0) + ifnull(length(properties), 0) + 48";

/// Drops what is too old or too much, oldest first, at most `count` events: the rest goes with the next groups.
pub(super) fn trim(
    transaction: &Transaction<'_>,
    group: &mut Group,
    consumers: &mut Consumers,
    kept: Retention,
    count: u64,
) -> rusqlite::Result<()> {
    let mut dropped = Vec::new();
    {
        let sql = format!("SELECT seq, at, {BYTES} FROM uplink ORDER BY seq LIMIT ?1");
        let mut oldest = transaction.prepare_cached(&sql)?;
        let mut rows = oldest.query([count])?;
        while let Some(row) = rows.next()? {
            let (seq, at): (u64, i64) = (row.get(0)?, row.get(1)?);
            if seq > kept.behind && at >= kept.since_ms && group.state.bytes <= kept.bytes {
                break;
            }
            dropped.push(seq);
            group.state.bytes = group.state.bytes.saturating_sub(row.get(2)?);
        }
    }
    let Some(&last) = dropped.last() else { return Ok(()) };
    transaction.prepare_cached("DELETE FROM uplink WHERE seq <= ?1")?.execute([last])?;
    note_gone(transaction, group, consumers, &dropped)?;
    group.dropped_oldest = dropped;
    Ok(())
}

/// Drops, of the device that holds more than its share, its oldest events, as far as too much is held, in a search through at most
/// `count` events: the rest goes with the next groups, or with the oldest.
pub(super) fn trim_largest(
    transaction: &Transaction<'_>,
    group: &mut Group,
    consumers: &mut Consumers,
    shares: &Shares,
    bytes_max: u64,
    count: u64,
) -> rusqlite::Result<()> {
    if group.state.bytes <= bytes_max {
        return Ok(());
    }
    let Some((device, from)) = shares.largest(group.state.first()) else { return Ok(()) };
    let (mut dropped, mut through) = (Vec::new(), from);
    {
        let sql = format!("SELECT seq, device = ?2, {BYTES} FROM uplink WHERE seq >= ?1 ORDER BY seq LIMIT ?3");
        let mut search = transaction.prepare_cached(&sql)?;
        let mut rows = search.query(params![from, device, count])?;
        while group.state.bytes > bytes_max
            && let Some(row) = rows.next()?
        {
            through = row.get(0)?;
            if row.get(1)? {
                dropped.push(through);
                group.state.bytes = group.state.bytes.saturating_sub(row.get(2)?);
            }
        }
    }
    group.sampled.note_searched(device, through);
    if dropped.is_empty() {
        return Ok(());
    }
    let mut delete = transaction.prepare_cached("DELETE FROM uplink WHERE seq = ?1")?;
    for seq in &dropped {
        delete.execute([seq])?;
    }
    note_gone(transaction, group, consumers, &dropped)?;
    group.dropped_share = dropped;
    Ok(())
}

/// These are held no more: consumers are told, and what is left behind the oldest has holes, or not.
fn note_gone(
    transaction: &Transaction<'_>,
    group: &mut Group,
    consumers: &mut Consumers,
    dropped: &[u64],
) -> rusqlite::Result<()> {
    let state = &mut group.state;
    state.events -= dropped.len() as u64;
    let mut oldest = transaction.prepare_cached("SELECT min(seq) FROM uplink")?;
    let oldest: Option<u64> = oldest.query_row([], |row| row.get(0))?;
    state.gone = state.next - oldest.unwrap_or(state.next) - state.events;
    let behind = state.first() - 1;
    for (name, progress) in consumers.iter_mut() {
        let is_behind = progress.cursor < behind;
        let missed = progress.miss(dropped);
        progress.pass(behind);
        if missed > 0 || is_behind {
            store_progress(transaction, name, progress)?;
        }
    }
    Ok(())
}

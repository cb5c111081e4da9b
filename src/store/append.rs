//! Events into the log. A statement for each kind of row names the columns that it has and no others: a message has few of them, and most
//! events are messages.

use rusqlite::{Transaction, params};

use super::record::{Entry, Facts, Published, What};
use super::share::Shares;
use super::stamp;
use super::writer::Group;
use crate::link::WorkerId;

/// A message that is for nobody but the uplink.
const MESSAGE: &str =
    "INSERT INTO uplink (seq, at, kind, device, topic, payload, worker) VALUES (?1, ?2, 2, ?3, ?4, ?5, ?6)";
/// One that subscribers at other gateways are to get, too.
const PUBLICATION: &str = "INSERT INTO uplink (seq, at, kind, device, topic, payload, worker, published, properties, expires, clock, node, given)
     VALUES (?1, ?2, 2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
/// Somebody came or went.
const PRESENCE: &str = "INSERT INTO uplink (seq, at, kind, device, worker, listener, epoch, generation, sequence, last_heard, cause, peer, identity,
         tls, connected, detail)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";

/// Whose row it is, and when: its number, its time, its device, its worker.
type Head<'a> = (u64, i64, &'a str, WorkerId);

/// Adds all of `entries`, but for those that are larger than all that may be held.
pub(super) fn append(
    transaction: &Transaction<'_>,
    group: &mut Group,
    shares: &Shares,
    entries: &[Entry],
    bytes_max: u64,
) -> rusqlite::Result<()> {
    let mut message = transaction.prepare_cached(MESSAGE)?;
    for (position, entry) in entries.iter().enumerate() {
        let bytes = entry.bytes() as u64;
        if bytes > bytes_max {
            group.refused.push(position);
            continue;
        }
        let Entry { at_ms, worker, ref device, ref what, .. } = *entry;
        let head = (group.state.next, at_ms, &**device, worker);
        match what {
            What::Message { topic, payload, published: None } => {
                message.execute(params![head.0, at_ms, device, topic, &payload[..], worker.0])?;
            }
            What::Message { topic, payload, published: Some(published) } => {
                append_publication(transaction, head, (topic, payload), published)?;
            }
            What::Connected(facts) => append_presence(transaction, head, (0, facts), None)?,
            What::Disconnected(facts, cause) => append_presence(transaction, head, (1, facts), Some(cause))?,
        }
        shares.sample(&mut group.sampled, group.state.next, device, bytes);
        group.state.next += 1;
        group.state.events += 1;
        group.state.bytes += bytes;
    }
    Ok(())
}

fn append_publication(
    transaction: &Transaction<'_>,
    (seq, at_ms, device, worker): Head<'_>,
    (topic, payload): (&str, &[u8]),
    published: &Published,
) -> rusqlite::Result<()> {
    let (clock, node) = stamp::columns(published.stamp);
    transaction.prepare_cached(PUBLICATION)?.execute(params![
        seq,
        at_ms,
        device,
        topic,
        payload,
        worker.0,
        published.to_byte(),
        &published.properties[..],
        published.expires_ms,
        clock,
        node,
        published.groups.as_deref(),
    ])?;
    Ok(())
}

fn append_presence(
    transaction: &Transaction<'_>,
    (seq, at_ms, device, worker): Head<'_>,
    (kind, facts): (u8, &Facts),
    cause: Option<&str>,
) -> rusqlite::Result<()> {
    let details = facts.details.as_ref();
    transaction.prepare_cached(PRESENCE)?.execute(params![
        seq,
        at_ms,
        kind,
        device,
        worker.0,
        facts.listener,
        facts.epoch as i64,
        facts.generation as i64,
        facts.sequence as i64,
        facts.last_heard_ms,
        cause,
        details.map(|details| &details.peer),
        details.map(|details| &details.identity),
        details.map(|details| &details.tls_version),
        details.map(|details| details.connected_ms),
        details.map(|details| &details.detail),
    ])?;
    Ok(())
}

//! Sessions and retained messages in the file: a group's [`Plan`] as statements, and all of it read at the start.
//!
//! A message's body is a row of its own, however many sessions wait for it: a message to a whole fleet is written once in a
//! group, and its row goes with the last session that has it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator;
use rusqlite::{Connection, Row as SqlRow, Rows, Transaction, TransactionBehavior, params};

use super::StoreError;
use super::coalesce::{Held, Plan, Row};
use super::stamp;
use crate::image::{
    Head, ImageError, KeptSession, Message, Outstanding, Publication, Received, SentMessage, SessionKey, Stamp,
    Subscription, Waiting,
};
use crate::link::QoS;

/// RETAIN in the column `delivery`; the lower bits are the QoS.
const RETAIN_BIT: u8 = 0b100;

/// What a message takes beside its texts, where what is read at a time is bounded.
const MESSAGE_BYTES: usize = 128;

/// What is held of sessions and retained messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    /// The number that the next body gets.
    pub(super) next_body: u64,
    /// A number above the keys of all sessions, and all origins, that were there when the store was opened.
    pub(super) next_key: u64,
    pub(super) sessions: u64,
    /// Messages that wait in sessions, and their bytes: shared ones are counted for each.
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) retained: u64,
}

/// The same, counted for others.
#[derive(Debug, Default)]
pub struct KeptStats {
    /// Sessions.
    pub sessions: AtomicU64,
    /// Messages that wait in them.
    pub messages: AtomicU64,
    /// Bytes of those, topics, properties and payloads; shared ones are counted for each session.
    pub bytes: AtomicU64,
    /// Retained messages.
    pub retained: AtomicU64,
    /// Changes that came since the start.
    pub changes: AtomicU64,
    /// Steps that were left of them to be written.
    pub steps: AtomicU64,
}

/// Why something cannot be read.
#[derive(Debug)]
pub(super) enum Unreadable {
    Sqlite(rusqlite::Error),
    Image(String),
}

impl From<rusqlite::Error> for Unreadable {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl Unreadable {
    /// As an error of the file at `path`.
    pub(super) fn of(self, path: &Path) -> StoreError {
        match self {
            Self::Sqlite(error) => StoreError::sqlite(path, error),
            Self::Image(what) => StoreError::Damaged { path: path.into(), what },
        }
    }
}

pub(super) fn unreadable(what: impl std::fmt::Display) -> impl FnOnce(ImageError) -> Unreadable {
    move |error| Unreadable::Image(format!("{what}: {error}"))
}

impl Kept {
    /// Counts what there is.
    pub(super) fn load(connection: &Connection) -> rusqlite::Result<Self> {
        let number = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, u64>(0));
        let (messages, bytes) = connection.query_row(
            "SELECT count(*), ifnull(sum(bytes), 0) FROM queue WHERE message IS NOT NULL",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        Ok(Self {
            next_body: number("SELECT ifnull(max(id), 0) + 1 FROM message")?,
            next_key: number(
                "SELECT 1 + max((SELECT ifnull(max(key), 0) FROM session), (SELECT ifnull(max(origin), 0) FROM queue),
                                (SELECT ifnull(max(origin), 0) FROM received))",
            )?,
            sessions: number("SELECT count(*) FROM session")?,
            messages,
            bytes,
            retained: number("SELECT count(*) FROM retained")?,
        })
    }

    /// Tells others.
    pub(super) fn tell(&self, stats: &KeptStats) {
        stats.sessions.store(self.sessions, Ordering::Relaxed);
        stats.messages.store(self.messages, Ordering::Relaxed);
        stats.bytes.store(self.bytes, Ordering::Relaxed);
        stats.retained.store(self.retained, Ordering::Relaxed);
    }
}

/// What ends with a process is ended, before anything is read: devices that were connected are away since now, and what was
/// received under QoS 2 and not answered is void, with all that it caused: its device sends it again.
pub(super) fn begin(connection: &mut Connection, now_ms: i64) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute("UPDATE session SET away_since = ?1 WHERE away_since IS NULL", [now_ms])?;
    let mut bodies = Bodies::default();
    {
        let mut void = transaction.prepare(
            "DELETE FROM queue WHERE origin <> 0 AND origin IN (SELECT origin FROM received WHERE origin <> 0)
             RETURNING message, bytes",
        )?;
        give_up_all(void.query([])?, &mut Kept::default(), &mut bodies)?;
    }
    bodies.release(&transaction)?;
    transaction.execute("DELETE FROM received WHERE origin <> 0", [])?;
    transaction.commit()
}

/// Takes every step of a plan; `kept` is what is held afterwards.
pub(super) fn take(transaction: &Transaction<'_>, plan: &Plan<'_>, kept: &mut Kept) -> rusqlite::Result<()> {
    let mut bodies = Bodies::default();
    for &key in &plan.ended {
        end(transaction, key, kept, &mut bodies)?;
    }
    keep_heads(transaction, plan, kept)?;
    keep_subscriptions(transaction, plan)?;
    let inserted = keep_bodies(transaction, plan, kept)?;
    keep_queues(transaction, plan, kept, &inserted, &mut bodies)?;
    keep_received(transaction, plan)?;
    keep_retained(transaction, plan, kept)?;
    bodies.release(transaction)
}

/// Bodies that fewer sessions have than before: how many fewer.
#[derive(Default)]
struct Bodies(BTreeMap<u64, u64>);

impl Bodies {
    fn release(self, transaction: &Transaction<'_>) -> rusqlite::Result<()> {
        let mut last = transaction.prepare_cached("DELETE FROM message WHERE id = ?1 AND uses <= ?2")?;
        let mut fewer = transaction.prepare_cached("UPDATE message SET uses = uses - ?2 WHERE id = ?1")?;
        for (id, count) in self.0 {
            if last.execute([id, count])? == 0 {
                fewer.execute([id, count])?;
            }
        }
        Ok(())
    }
}

/// What is returned of a row of a queue that goes, or of the body that it gives up.
fn give_up(row: &SqlRow<'_>, kept: &mut Kept, bodies: &mut Bodies) -> rusqlite::Result<()> {
    // Without a body it was no message any more.
    if let Some(id) = row.get::<_, Option<u64>>(0)? {
        kept.messages = kept.messages.saturating_sub(1);
        kept.bytes = kept.bytes.saturating_sub(row.get(1)?);
        *bodies.0.entry(id).or_default() += 1;
    }
    Ok(())
}

fn give_up_all(mut rows: Rows<'_>, kept: &mut Kept, bodies: &mut Bodies) -> rusqlite::Result<()> {
    while let Some(row) = rows.next()? {
        give_up(row, kept, bodies)?;
    }
    Ok(())
}

fn end(
    transaction: &Transaction<'_>,
    SessionKey(key): SessionKey,
    kept: &mut Kept,
    bodies: &mut Bodies,
) -> rusqlite::Result<()> {
    let ended = transaction.prepare_cached("DELETE FROM session WHERE key = ?1")?.execute([key])?;
    kept.sessions = kept.sessions.saturating_sub(ended as u64);
    transaction.prepare_cached("DELETE FROM subscription WHERE session = ?1")?.execute([key])?;
    transaction.prepare_cached("DELETE FROM received WHERE session = ?1")?.execute([key])?;
    let mut queue = transaction.prepare_cached("DELETE FROM queue WHERE session = ?1 RETURNING message, bytes")?;
    give_up_all(queue.query([key])?, kept, bodies)
}

fn keep_heads(transaction: &Transaction<'_>, plan: &Plan<'_>, kept: &mut Kept) -> rusqlite::Result<()> {
    let mut update = transaction
        .prepare_cached("UPDATE session SET name = ?2, away_since = ?3, expiry = ?4, image = ?5 WHERE key = ?1")?;
    let mut insert = transaction.prepare_cached("INSERT INTO session VALUES (?1, ?2, ?3, ?4, ?5)")?;
    let mut image = Vec::new();
    for (&SessionKey(key), head) in &plan.heads {
        image.clear();
        head.encode(&mut image);
        let expiry_s = Some(head.profile.expiry_s).filter(|&expiry_s| expiry_s != u32::MAX);
        let row = params![key, head.name, head.away_since_ms, expiry_s, image];
        if update.execute(row)? == 0 {
            insert.execute(row)?;
            kept.sessions += 1;
        }
    }
    Ok(())
}

fn keep_subscriptions(transaction: &Transaction<'_>, plan: &Plan<'_>) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached("INSERT OR REPLACE INTO subscription VALUES (?1, ?2, ?3, ?4)")?;
    let mut delete = transaction.prepare_cached("DELETE FROM subscription WHERE session = ?1 AND filter = ?2")?;
    for (&(SessionKey(key), filter), subscription) in &plan.subscriptions {
        match subscription {
            Some(Subscription { options, identifier, .. }) => {
                insert.execute(params![key, filter, options, identifier])?;
            }
            None => drop(delete.execute(params![key, filter])?),
        }
    }
    Ok(())
}

/// Writes each body once that new rows of queues have, and gives back its number by where it lies in memory.
fn keep_bodies(
    transaction: &Transaction<'_>,
    plan: &Plan<'_>,
    kept: &mut Kept,
) -> rusqlite::Result<HashMap<*const Publication, u64>> {
    let mut uses: HashMap<*const Publication, (&Publication, u64)> = HashMap::new();
    // In the order of the queues, so that bodies lie in one too.
    let mut in_order = Vec::new();
    for row in plan.queue.values() {
        if let Row::Insert { message, is_released: false, .. } = row {
            let publication = Arc::as_ptr(&message.publication);
            let count = &mut uses.entry(publication).or_insert((&message.publication, 0)).1;
            *count += 1;
            if *count == 1 {
                in_order.push(publication);
            }
        }
    }
    let mut insert = transaction.prepare_cached("INSERT INTO message VALUES (?1, ?2, ?3)")?;
    let mut image = Vec::new();
    let mut inserted = HashMap::with_capacity(uses.len());
    for pointer in in_order {
        let (publication, count) = uses[&pointer];
        image.clear();
        publication.encode(&mut image);
        insert.execute(params![kept.next_body, count, image])?;
        inserted.insert(pointer, kept.next_body);
        kept.next_body += 1;
    }
    Ok(inserted)
}

fn keep_queues(
    transaction: &Transaction<'_>,
    plan: &Plan<'_>,
    kept: &mut Kept,
    inserted: &HashMap<*const Publication, u64>,
    bodies: &mut Bodies,
) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached("INSERT INTO queue VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
    let mut send = transaction.prepare_cached("UPDATE queue SET packet = ?3 WHERE session = ?1 AND number = ?2")?;
    // What is returned is what was there before, and is read in the statement before it is altered.
    let mut held = transaction.prepare_cached("SELECT message, bytes FROM queue WHERE session = ?1 AND number = ?2")?;
    let mut release = transaction.prepare_cached(
        "UPDATE queue SET message = NULL, bytes = 0, identifiers = NULL, share = NULL WHERE session = ?1 AND number = ?2",
    )?;
    let mut delete =
        transaction.prepare_cached("DELETE FROM queue WHERE session = ?1 AND number = ?2 RETURNING message, bytes")?;
    for (&(SessionKey(key), number), row) in &plan.queue {
        match *row {
            Row::Insert { message, packet, is_released } => {
                let delivery = message.qos as u8 | if message.retain { RETAIN_BIT } else { 0 };
                let body = inserted.get(&Arc::as_ptr(&message.publication)).filter(|_| !is_released);
                let bytes = if is_released { 0 } else { message.publication.bytes() as u64 };
                let identifiers = identifiers_of(message).filter(|_| !is_released);
                let group = message.group.as_deref().filter(|_| !is_released);
                insert.execute(params![
                    key,
                    number,
                    body,
                    packet,
                    delivery,
                    identifiers,
                    bytes,
                    message.origin,
                    group
                ])?;
                kept.messages += u64::from(!is_released);
                kept.bytes += bytes;
            }
            Row::Update { packet, is_released } => {
                if let Some(packet) = packet {
                    send.execute(params![key, number, packet])?;
                }
                if is_released {
                    give_up_all(held.query([key, number])?, kept, bodies)?;
                    release.execute([key, number])?;
                }
            }
            Row::Delete => give_up_all(delete.query([key, number])?, kept, bodies)?,
        }
    }
    Ok(())
}

fn identifiers_of(message: &Message) -> Option<Vec<u8>> {
    let bytes = || message.identifiers.iter().flat_map(|identifier| identifier.to_be_bytes()).collect();
    (!message.identifiers.is_empty()).then(bytes)
}

fn keep_received(transaction: &Transaction<'_>, plan: &Plan<'_>) -> rusqlite::Result<()> {
    let mut insert = transaction.prepare_cached("INSERT OR REPLACE INTO received VALUES (?1, ?2, ?3)")?;
    let mut delete = transaction.prepare_cached("DELETE FROM received WHERE session = ?1 AND packet = ?2")?;
    for (&(SessionKey(key), packet), held) in &plan.received {
        match held {
            Held::Insert(origin) => insert.execute(params![key, packet, origin])?,
            Held::Delete => delete.execute(params![key, packet])?,
        };
    }
    Ok(())
}

fn keep_retained(transaction: &Transaction<'_>, plan: &Plan<'_>, kept: &mut Kept) -> rusqlite::Result<()> {
    let mut update = transaction.prepare_cached(
        "UPDATE retained SET expires = ?2, bytes = ?3, image = ?4, clock = ?5, node = ?6 WHERE topic = ?1",
    )?;
    let mut insert = transaction.prepare_cached("INSERT INTO retained VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    let mut delete = transaction.prepare_cached("DELETE FROM retained WHERE topic = ?1")?;
    let mut image = Vec::new();
    for (topic, publication) in &plan.retained {
        let Some((publication, stamp)) = publication else {
            kept.retained = kept.retained.saturating_sub(delete.execute([topic])? as u64);
            continue;
        };
        image.clear();
        publication.encode(&mut image);
        let (clock, node) = stamp::columns(*stamp);
        let row = params![topic, publication.expires_ms, publication.bytes() as u64, image, clock, node];
        if update.execute(row)? == 0 {
            insert.execute(row)?;
            kept.retained += 1;
        }
    }
    Ok(())
}

// --- Reading --------------------------------------------------------------------------------------------------------

/// Every session, in the order of their keys, without the messages themselves. Four tables are read side by side, each once.
pub(super) fn read_sessions(connection: &Connection, mut each: impl FnMut(KeptSession)) -> Result<(), Unreadable> {
    let mut heads = connection.prepare("SELECT key, image, away_since FROM session ORDER BY key")?;
    let mut subscriptions =
        connection.prepare("SELECT session, filter, options, identifier FROM subscription ORDER BY session, filter")?;
    let mut queue = connection.prepare(
        "SELECT session, number, message IS NULL, packet, bytes, delivery FROM queue ORDER BY session, number",
    )?;
    let mut received = connection.prepare("SELECT session, packet, origin FROM received ORDER BY session, packet")?;
    let mut heads = heads.query([])?;
    let mut subscriptions = BySession::new(subscriptions.query([])?)?;
    let mut queue = BySession::new(queue.query([])?)?;
    let mut received = BySession::new(received.query([])?)?;
    while let Some(row) = heads.next()? {
        let key: u64 = row.get(0)?;
        let mut head = Head::decode(row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?)
            .map_err(unreadable(format_args!("session {key}")))?;
        // Of one that was connected when the process ended, the column alone says since when: see `begin`.
        head.away_since_ms = row.get(2)?;
        let mut session = KeptSession {
            head,
            subscriptions: Vec::new(),
            sent: Vec::new(),
            outstanding: Vec::new(),
            received: Vec::new(),
            waiting: Waiting::default(),
        };
        subscriptions.each(key, |row| {
            let subscription =
                Subscription { filter: row.get::<_, String>(1)?.into(), options: row.get(2)?, identifier: row.get(3)? };
            subscription.check().map_err(unreadable(format_args!("a subscription of session {key}")))?;
            session.subscriptions.push(subscription);
            Ok(())
        })?;
        queue.each(key, |row| {
            let number = row.get(1)?;
            session.waiting.last_number = number;
            match (row.get(2)?, row.get(3)?) {
                (true, Some(packet)) => session.outstanding.push(Outstanding { number, packet }),
                (true, None) => return Err(Unreadable::Image(format!("number {number} of session {key} is none"))),
                (false, Some(packet)) => {
                    let qos = qos_of(row.get(5)?, number)?;
                    session.sent.push(SentMessage { number, packet, qos, bytes: row.get(4)? });
                }
                (false, None) => {
                    session.waiting.messages += 1;
                    session.waiting.bytes += row.get::<_, u64>(4)?;
                }
            }
            Ok(())
        })?;
        received.each(key, |row| {
            session.received.push(Received { packet: row.get(1)?, origin: row.get(2)? });
            Ok(())
        })?;
        each(session);
    }
    Ok(())
}

/// Rows that begin with the key of their session, in its order.
struct BySession<'a> {
    rows: Rows<'a>,
    /// The key of the row that is next.
    next: Option<u64>,
}

impl<'a> BySession<'a> {
    fn new(mut rows: Rows<'a>) -> Result<Self, Unreadable> {
        let next = rows.next()?.map(|row| row.get(0)).transpose()?;
        Ok(Self { rows, next })
    }

    /// Takes those of the session `key`. Rows before it are nobody's, and are passed over.
    fn each(
        &mut self,
        key: u64,
        mut take: impl FnMut(&SqlRow<'_>) -> Result<(), Unreadable>,
    ) -> Result<(), Unreadable> {
        while let Some(next) = self.next.filter(|&next| next <= key) {
            if next == key
                && let Some(row) = self.rows.get()
            {
                take(row)?;
            }
            self.next = self.rows.next()?.map(|row| row.get(0)).transpose()?;
        }
        Ok(())
    }
}

/// Messages of one session behind the number `after` and up to `through`, in their order, until they take more than `bytes_max`:
/// at least one, if there is one. `true`: there are no more of them.
pub(super) fn read_messages(
    connection: &Connection,
    SessionKey(key): SessionKey,
    (after, through): (u64, u64),
    bytes_max: usize,
) -> Result<(Vec<Message>, bool), Unreadable> {
    let mut statement = connection.prepare_cached(
        "SELECT number, packet, delivery, identifiers, image, origin, id, uses, share FROM queue JOIN message ON id = message
         WHERE session = ?1 AND number > ?2 AND number <= ?3 ORDER BY number",
    )?;
    // SQLite's integers have a sign.
    let mut rows = statement.query([key, after, through.min(i64::MAX as u64)])?;
    let (mut messages, mut bytes, shared) = (Vec::<Message>::new(), 0, &mut SharedBodies::new());
    while let Some(row) = rows.next()? {
        if bytes > bytes_max {
            return Ok((messages, false));
        }
        let message = message_of(row, shared).map_err(|error| match error {
            Unreadable::Image(what) => Unreadable::Image(format!("a message of session {key}: {what}")),
            Unreadable::Sqlite(error) => error.into(),
        })?;
        // A message of no bytes counts too: what comes at a time is bounded in number.
        bytes += message.publication.bytes() + MESSAGE_BYTES;
        messages.push(message);
    }
    Ok((messages, true))
}

/// Bodies that several places have, as far as they were read.
type SharedBodies = HashMap<u64, Arc<Publication>>;

fn message_of(row: &SqlRow<'_>, shared: &mut SharedBodies) -> Result<Message, Unreadable> {
    let delivery: u8 = row.get(2)?;
    let identifiers = row.get_ref(3)?.as_blob_or_null().map_err(rusqlite::Error::from)?.unwrap_or_default();
    let (identifiers, rest) = identifiers.as_chunks();
    let number = row.get(0)?;
    if !rest.is_empty() || delivery & !RETAIN_BIT > 2 {
        return Err(Unreadable::Image(format!("number {number} is none")));
    }
    let (id, uses): (u64, u64) = (row.get(6)?, row.get(7)?);
    let publication = if let Some(known) = shared.get(&id) {
        Arc::clone(known)
    } else {
        let image = row.get_ref(4)?.as_blob().map_err(rusqlite::Error::from)?;
        Arc::new(Publication::decode(image).map_err(unreadable(format_args!("number {number}")))?)
    };
    if uses > 1 {
        shared.insert(id, Arc::clone(&publication));
    }
    Ok(Message {
        number,
        packet: row.get(1)?,
        qos: qos_of(delivery, number)?,
        retain: delivery & RETAIN_BIT != 0,
        identifiers: identifiers.iter().map(|identifier| u32::from_be_bytes(*identifier)).collect(),
        group: row.get::<_, Option<String>>(8)?.map(Into::into),
        origin: row.get(5)?,
        publication,
    })
}

/// The QoS in the byte that says how a message is delivered.
fn qos_of(delivery: u8, number: u64) -> Result<QoS, Unreadable> {
    QoS::try_from(delivery & !RETAIN_BIT).map_err(|()| Unreadable::Image(format!("number {number} has no QoS")))
}

/// Every retained message with its stamp, in the order of topics.
pub(super) fn read_retained(
    connection: &Connection,
    mut each: impl FnMut(Publication, Stamp),
) -> Result<(), Unreadable> {
    let mut statement = connection.prepare("SELECT topic, image, clock, node FROM retained ORDER BY topic")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let image = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
        let read = Publication::decode(image);
        match read {
            Ok(publication) => each(publication, stamp::of(row.get(2)?, row.get(3)?)),
            Err(error) => {
                let topic: String = row.get(0)?;
                return Err(Unreadable::Image(format!("the retained message of {topic:?}: {error}")));
            }
        }
    }
    Ok(())
}

/// What does not fit together in these tables, a line each.
pub(super) fn contradictions(connection: &Connection) -> Result<Vec<String>, Unreadable> {
    let mut found = Vec::new();
    let questions = [
        (
            "messages are counted for another number of sessions than have them",
            "SELECT count(*) FROM message LEFT JOIN
                 (SELECT message, count(*) AS n FROM queue WHERE message IS NOT NULL GROUP BY message) ON message = id
             WHERE ifnull(n, 0) <> uses",
        ),
        (
            "places in queues are of messages that are not there",
            "SELECT count(*) FROM queue WHERE message IS NOT NULL AND message NOT IN (SELECT id FROM message)",
        ),
        (
            "places in queues, subscriptions or packet identifiers are of sessions that are not there",
            "SELECT (SELECT count(*) FROM queue WHERE session NOT IN (SELECT key FROM session))
                  + (SELECT count(*) FROM subscription WHERE session NOT IN (SELECT key FROM session))
                  + (SELECT count(*) FROM received WHERE session NOT IN (SELECT key FROM session))",
        ),
        (
            "messages have the end of their delivery owed, and no packet identifier",
            "SELECT count(*) FROM queue WHERE message IS NULL AND packet IS NULL",
        ),
    ];
    for (what, sql) in questions {
        let count: u64 = connection.query_row(sql, [], |row| row.get(0))?;
        if count > 0 {
            found.push(format!("{count} {what}"));
        }
    }
    let mut note = |read: Result<(), Unreadable>| match read {
        Err(Unreadable::Image(what)) => {
            found.push(what);
            Ok(())
        }
        other => other,
    };
    note(read_sessions(connection, drop))?;
    note(read_retained(connection, |_, _| ()))?;
    let mut keys = connection.prepare("SELECT DISTINCT session FROM queue")?;
    let keys: Vec<u64> = keys.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for key in keys {
        let mut after = 0;
        loop {
            let read = read_messages(connection, SessionKey(key), (after, u64::MAX), 1 << 20);
            match read {
                Ok((_, true)) => break,
                Ok((messages, false)) => after = messages.last().map_or(u64::MAX, |last| last.number),
                Err(error) => break note(Err(error))?,
            }
        }
    }
    Ok(found)
}

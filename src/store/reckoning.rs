//! The time of day in the file goes along when the clock is set: a machine that has no clock of its own begins in 1970, and learns later
//! what time it is. What this process wrote until then is told by the clock as it is now, or sessions would end, and events go, for
//! their age alone. What an earlier process wrote stays: nobody knows by which clock.
//!
//! ```text
//!   the clock is set ──▶ sessions, retained messages, commands: in the same group
//!                   └──▶ events and bodies of messages: so many with each group; until then nothing goes for its age
//! ```
//!
//! What was told by the old clock, and comes to the writer behind that, is brought along before it is written.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use rusqlite::{OptionalExtension, Transaction, params};

use super::queue::Work;
use super::record::{Entry, What};
use crate::clock::Clock;
use crate::image::{Change, Publication};
use crate::link::Changes;
use crate::time::{Moment, Timeline};

/// Less than this, from one group to the next, is the wall's own pace, and alters no row.
const SET_BEYOND_MS: i64 = 1_000;
/// Events, and bodies, that one group brings along.
const AT_ONCE: u64 = 4_096;

/// By which clock the rows of this process are.
#[derive(Clone, Debug)]
pub(super) struct Reckoning {
    timeline: Timeline,
    /// When the store was opened.
    opened: Moment,
    /// The first event, body and command of this process.
    first_event: u64,
    first_body: u64,
    first_command: u64,
    /// What is still to be brought along, the oldest setting first.
    shifts: VecDeque<Shift>,
}

/// Events and bodies that are behind the clock by so much.
#[derive(Clone, Debug)]
struct Shift {
    by_ms: i64,
    events: Range<u64>,
    bodies: Range<u64>,
}

impl Reckoning {
    pub(super) fn begin(clock: &Clock, (first_event, first_body, first_command): (u64, u64, u64)) -> Self {
        let (timeline, opened, shifts) = (clock.timeline(), clock.now(), VecDeque::new());
        Self { timeline, opened, first_event, first_body, first_command, shifts }
    }

    /// Whether the clock was set, or something is still to be brought along.
    pub(super) fn is_due(&self, timeline: Timeline) -> bool {
        timeline != self.timeline || !self.shifts.is_empty()
    }

    /// Events before this time are too old. None is as long as some have the time of a clock that was set since.
    pub(super) fn since_ms(&self, age_ms: i64, now: Moment) -> i64 {
        if self.shifts.is_empty() { self.timeline.unix_millis_at(now).saturating_sub(age_ms) } else { i64::MIN }
    }

    /// Brings along what it can; `ends` are the event and the body that come next. Gives back what is true when that is committed.
    pub(super) fn follow(
        &self,
        transaction: &Transaction<'_>,
        timeline: Timeline,
        now: Moment,
        (next_event, next_body): (u64, u64),
        told: &Told,
    ) -> rusqlite::Result<Self> {
        let mut after = Self { timeline, ..self.clone() };
        let by_ms = timeline.millis_after(self.timeline);
        if by_ms.abs() >= SET_BEYOND_MS {
            tracing::warn!(by_ms, "the clock was set: times of day in the store that are of this process go along");
            self.shift_rows(transaction, by_ms, now)?;
            told.shift_retained(transaction, by_ms)?;
            let (events, bodies) = (self.first_event..next_event, self.first_body..next_body);
            after.shifts.push_back(Shift { by_ms, events, bodies });
        }
        if let Some(shift) = after.shifts.front_mut()
            && shift.step(transaction)?
        {
            after.shifts.pop_front();
        }
        Ok(after)
    }

    /// Whatever is few: one statement each.
    fn shift_rows(&self, transaction: &Transaction<'_>, by_ms: i64, now: Moment) -> rusqlite::Result<()> {
        // What this process wrote about itself lies between its start and now, by the old clock.
        let (since, until) = (self.timeline.unix_millis_at(self.opened), self.timeline.unix_millis_at(now));
        for (table, column) in
            [("session", "away_since"), ("command_outcome", "at"), ("consumer", "created"), ("consumer", "seen")]
        {
            let sql = format!("UPDATE {table} SET {column} = {column} + ?1 WHERE {column} BETWEEN ?2 AND ?3");
            transaction.execute(&sql, params![by_ms, since, until])?;
        }
        let sql = "UPDATE command SET put = put + ?1, expires = expires + ?1 WHERE number >= ?2";
        transaction.execute(sql, params![by_ms, self.first_command]).map(drop)
    }
}

impl Shift {
    /// Brings some along. `true`: there are no more.
    fn step(&mut self, transaction: &Transaction<'_>) -> rusqlite::Result<bool> {
        let events = take_front(&mut self.events);
        transaction
            .prepare_cached(
                "UPDATE uplink SET at = at + ?1, last_heard = last_heard + ?1, connected = connected + ?1,
                     expires = expires + ?1 WHERE seq >= ?2 AND seq < ?3",
            )?
            .execute(params![self.by_ms, events.start, events.end])?;
        let bodies = take_front(&mut self.bodies);
        let mut rows = transaction.prepare_cached("SELECT id, image FROM message WHERE id >= ?1 AND id < ?2")?;
        let rows =
            rows.query_map([bodies.start, bodies.end], |row| Ok((row.get::<_, u64>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
        let mut update = transaction.prepare_cached("UPDATE message SET image = ?2 WHERE id = ?1")?;
        for row in rows.collect::<rusqlite::Result<Vec<_>>>()? {
            if let Some((image, _)) = shifted(&row.1, self.by_ms) {
                update.execute(params![row.0, image])?;
            }
        }
        Ok(self.events.is_empty() && self.bodies.is_empty())
    }
}

/// Takes the first of them away.
fn take_front(all: &mut Range<u64>) -> Range<u64> {
    let end = all.start.saturating_add(AT_ONCE).min(all.end);
    let first = all.start..end;
    all.start = end;
    first
}

/// The image of a publication whose time to expire is another, and that; `None`: it never expires, or cannot be read, which is for
/// whoever reads it to say.
fn shifted(image: &[u8], by_ms: i64) -> Option<(Vec<u8>, i64)> {
    let mut publication = Publication::decode(image).ok()?;
    let expires_ms = publication.expires_ms?.saturating_add(by_ms);
    publication.expires_ms = Some(expires_ms);
    let mut image = Vec::new();
    publication.encode(&mut image);
    Some((image, expires_ms))
}

/// What is said to the writer, and by which clock.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) clock: Arc<Clock>,
    /// Topics of retained messages that expire and are of this process: at most as many as may be retained.
    expiring: BTreeSet<Box<str>>,
    /// By how much the clock was set last, and when.
    set: Option<(i64, Moment)>,
    latest: Timeline,
}

/// After the clock was set, events that were told by the old one may come for so long.
const STRAGGLERS_MS: u64 = 60_000;

impl Told {
    pub(super) fn begin(clock: &Arc<Clock>) -> Self {
        Self { clock: Arc::clone(clock), expiring: BTreeSet::new(), set: None, latest: clock.timeline() }
    }

    /// By which all is told that was brought along last.
    pub(super) fn timeline(&self) -> Timeline {
        self.latest
    }

    /// These are safe.
    pub(super) fn note(&mut self, all: &[Changes]) {
        for change in all.iter().flat_map(|changes| &changes.changes) {
            match change {
                Change::Retained { publication, .. } if publication.expires_ms.is_some() => {
                    self.expiring.insert(publication.topic.clone());
                }
                Change::Retained { publication: retained, .. } => drop(self.expiring.remove(&retained.topic)),
                Change::Unretained { topic } => drop(self.expiring.remove(topic)),
                _ => {}
            }
        }
    }

    fn shift_retained(&self, transaction: &Transaction<'_>, by_ms: i64) -> rusqlite::Result<()> {
        let mut find = transaction.prepare_cached("SELECT image FROM retained WHERE topic = ?1")?;
        let sql = "UPDATE retained SET image = ?2, expires = ?3 WHERE topic = ?1";
        let mut update = transaction.prepare_cached(sql)?;
        for topic in &self.expiring {
            let image: Option<Vec<u8>> = find.query_row([topic], |row| row.get(0)).optional()?;
            if let Some((image, expires_ms)) = image.and_then(|image| shifted(&image, by_ms)) {
                update.execute(params![topic, image, expires_ms])?;
            }
        }
        Ok(())
    }

    /// Whatever was told by another clock than that of now is told by this one.
    pub(super) fn bring_along(&mut self, work: &mut Work) {
        let (timeline, now) = (self.clock.timeline(), self.clock.now());
        let by_ms = timeline.millis_after(std::mem::replace(&mut self.latest, timeline));
        if by_ms.abs() >= SET_BEYOND_MS {
            self.set = Some((by_ms, now));
        }
        for changes in &mut work.changes {
            let by_ms = timeline.millis_after(changes.timeline);
            if by_ms.abs() >= SET_BEYOND_MS {
                bring_changes(&mut changes.changes, by_ms);
                changes.timeline = timeline;
            }
        }
        if let Some((by_ms, at)) = self.set
            && now.since(at).as_millis() < u128::from(STRAGGLERS_MS)
        {
            let now_ms = timeline.unix_millis_at(now);
            work.entries.iter_mut().for_each(|entry| bring_entry(entry, by_ms, now_ms));
        }
    }
}

fn bring_changes(changes: &mut [Change], by_ms: i64) {
    // Bodies that several sessions share stay shared.
    let mut brought = HashMap::new();
    let mut bring = |publication: &mut Arc<Publication>| {
        let Some(expires_ms) = publication.expires_ms else { return };
        let before = Arc::clone(publication);
        let (_, after) = brought.entry(Arc::as_ptr(&before)).or_insert_with(|| {
            let mut after = Publication::clone(&before);
            after.expires_ms = Some(expires_ms.saturating_add(by_ms));
            // The one before is kept, so that nothing else comes to lie where it is.
            (before, Arc::new(after))
        });
        *publication = Arc::clone(after);
    };
    for change in changes {
        match change {
            Change::Kept(head) => {
                head.away_since_ms = head.away_since_ms.map(|since| since.saturating_add(by_ms));
            }
            Change::Queued { message, .. } => bring(&mut message.publication),
            Change::Retained { publication, .. } => bring(publication),
            _ => {}
        }
    }
}

/// An event says no clock: it was a moment ago, by the one or by the other.
fn bring_entry(entry: &mut Entry, by_ms: i64, now_ms: i64) {
    let at_ms = entry.at_ms.saturating_add(by_ms);
    if at_ms.abs_diff(now_ms) >= entry.at_ms.abs_diff(now_ms) {
        return;
    }
    entry.at_ms = at_ms;
    match &mut entry.what {
        What::Connected(facts) | What::Disconnected(facts, _) => {
            facts.last_heard_ms = facts.last_heard_ms.saturating_add(by_ms);
            if let Some(details) = &mut facts.details {
                details.connected_ms = details.connected_ms.saturating_add(by_ms);
            }
        }
        What::Message { published: Some(published), .. } => {
            published.expires_ms = published.expires_ms.map(|expires| expires.saturating_add(by_ms));
        }
        What::Message { published: None, .. } => {}
    }
}

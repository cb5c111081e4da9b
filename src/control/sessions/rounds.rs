//! How far this gateway has come with its sessions, written for whoever goes on with them should it die: its cursor, and the places of
//! those that lag (decision 0032).
//!
//! ```text
//!   once a second:  the stream is settled up to P ──▶ all that shards have passed to each other is there (fence) ──▶ Round to every shard
//!                   ──▶ how their sessions stand ──▶ the cursor, if it is another ──▶ places of the slow ones, and of those that need none any more
//! ```
//!
//! What was published here and is in the stream up to P was passed on by its shard before it went up, or was published over the API and is
//! given to a shard after that, which is waited for. P is read before the fence: so when a shard hears of the round, all that belongs to
//! places up to P is with it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use super::around::{Around, Neighbours, within};
use super::course::Course;
use super::{LOOKS_MAX, State, rows};
use crate::fleet::{Cursor, Fleet};
use crate::link::Lag;

/// How far apart rounds are,
const EVERY: Duration = Duration::from_secs(1);
/// and while the gateway ends: what is acknowledged after the last one is brought to its devices again.
const LAST_EVERY: Duration = Duration::from_millis(150);
/// How long the end of the gateway waits for a round,
const SETTLE_MAX: Duration = Duration::from_millis(1_500);
/// and how often it is looked whether it has gone.
const SETTLE_LOOK: Duration = Duration::from_millis(5);
/// How long places may be written after one,
const PLACES_TIME: Duration = Duration::from_secs(2);
/// and while the gateway ends: in the next one the cursor goes on without those that have their places.
const LAST_PLACES_TIME: Duration = Duration::from_millis(600);
/// The cursor is written that often though it be the same: by its time others know when this gateway was there last.
const WRITTEN_EVERY: Duration = Duration::from_secs(30);

/// What was written last, and when.
struct Kept {
    course: Course,
    written: Option<(Cursor, Instant)>,
}

/// Keeps the cursor, until the gateway ends.
pub(in super::super) async fn keep_cursor<A: Around>(state: Arc<A>) {
    let Some(fleet) = state.fleet() else { return };
    if !state.has_store() || !state.has_stream() {
        return;
    }
    let mut kept: Option<Kept> = None;
    loop {
        let is_last = state.is_ending();
        let has_said = kept.as_ref().is_some_and(|kept| kept.written.is_some());
        tokio::select! {
            () = state.sleep(if is_last || !has_said { LAST_EVERY } else { EVERY }) => {}
            () = state.sessions().ending.notified() => {}
        }
        if !fleet.is_connected() {
            continue;
        }
        if kept.is_none() {
            kept = begin(fleet).await;
        }
        if let Some(kept) = &mut kept {
            let is_last = state.is_ending();
            let is_whole = go_round(&*state, fleet, kept).await.is_some();
            state.sessions().last_rounds.fetch_add(u64::from(is_last && is_whole), Ordering::Relaxed);
        }
    }
}

/// The gateway is about to end its devices' connections: blocks until it is written how far it has come, and the places of those that lag
/// are, for a moment at most.
pub(in super::super) fn settle(state: &State) {
    let is_of_fleet = state.fleet.as_ref().is_some_and(Fleet::is_connected);
    if !is_of_fleet || state.store.is_none() || !state.has_stream() {
        return;
    }
    let before = state.sessions.last_rounds.load(Ordering::Relaxed);
    let until = std::time::Instant::now() + SETTLE_MAX;
    state.sessions.ending.notify_one();
    // In the first one those that lag get places of their own, in the second the cursor waits for them no more.
    while state.sessions.last_rounds.load(Ordering::Relaxed) < before + 2 && std::time::Instant::now() < until {
        std::thread::sleep(SETTLE_LOOK);
    }
}

/// From where an earlier process of this gateway has left it.
async fn begin(fleet: &impl Neighbours) -> Option<Kept> {
    let found = fleet.session_cursor(fleet.node()).await.ok()?;
    // One that has never said so: whatever its sessions have may need all that there is.
    let cursor = found.unwrap_or_default();
    Some(Kept { course: Course::new(cursor), written: None })
}

/// `None`: it came to nothing.
async fn go_round<A: Around>(state: &A, fleet: &A::Fleet, kept: &mut Kept) -> Option<()> {
    let settled = state.sessions().settled.lock().expect("no holder panics").clone()?;
    let number = kept.course.begin(&settled);
    state.sessions().underway.pass().await?;
    state.pass_all().await?;
    let lags = state.ask_round(number, kept.course.floor()).await?;
    let oldest = lags.iter().map(|lag| lag.oldest).min().unwrap_or(number);
    let cursor = kept.course.advance(oldest);
    write(state, fleet, kept, cursor).await;
    let placing = place_all(state, &kept.course, lags);
    // What is left is told again in the next round.
    let time = if state.is_ending() { LAST_PLACES_TIME } else { PLACES_TIME };
    let _ = within(state, state.now() + time, placing).await;
    Some(())
}

async fn write<A: Around>(state: &A, fleet: &A::Fleet, kept: &mut Kept, cursor: Cursor) {
    let is_new = kept
        .written
        .as_ref()
        .is_none_or(|(known, at)| *known != cursor || state.now().duration_since(*at) >= WRITTEN_EVERY);
    if is_new && fleet.write_cursor(&cursor).await {
        kept.written = Some((cursor, state.now()));
    }
}

async fn place_all<A: Around>(state: &A, course: &Course, lags: Vec<Lag>) {
    let floor = course.floor();
    let (slow, near): (Vec<_>, Vec<_>) = lags.into_iter().map(|lag| (lag.slow, lag.near)).unzip();
    let slow = slow.into_iter().flatten().filter_map(|(device, since)| Some((device, since, course.place_of(since)?)));
    stream::iter(slow)
        .for_each_concurrent(LOOKS_MAX / 2, |(device, since, at)| async move {
            rows::place(state, &device, since, at).await;
        })
        .await;
    stream::iter(near.into_iter().flatten())
        .for_each_concurrent(LOOKS_MAX / 2, |device| async move { rows::unplace(state, &device, floor).await })
        .await;
}

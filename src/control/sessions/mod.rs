//! Sessions that go with their devices over a fleet: what shards and other gateways want, put together (decision 0030).
//!
//! ```text
//!   CONNECT ── SessionWanted ──▶ claim: whose is the session, by its row? ── nobody's, ours ──────────────▶ goes on
//!                                  │ another gateway's: asked for it, piece by piece ── durable here ──▶ the row is ours ──▶ goes on
//!                                  │                                                                      └──▶ the other one forgets it
//!                                  ▼ it does not answer: begun again, by its row and the fleet's stream (revive) ────────▶ goes on
//!   another gateway ── Order::Session ──▶ serve: as the shard and the store have it
//! ```
//!
//! Of one device one thing is under way at a time, here. Everything waits with a bound.

mod around;
mod claim;
mod course;
mod fence;
mod missed;
mod revive;
mod rounds;
mod rows;
mod serve;
mod sweep;
mod take;
mod verify;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, SemaphorePermit, mpsc};
use tokio::time::Instant;

use super::State;
use crate::fleet::Position;
use crate::link::{SessionChanged, SessionWanted, WorkerId};
use fence::{Rounds, Underway};
pub(super) use rounds::{keep_cursor, settle};
use rows::Rows;
use serve::Offered;
pub(super) use serve::serve;
pub(super) use sweep::sweep;
pub(super) use verify::verify;

/// Rows that are looked at, and written, at a time; further ones wait.
const LOOKS_MAX: usize = 256;
/// Sessions that come at a time; further ones wait.
const TAKEN_MAX: usize = 64;
/// Sessions that have ended, and whose rows are removed at a time.
const ENDS_MAX: usize = 64;
/// Sessions that are given to other gateways at a time; beyond that those are told to ask again.
const OFFERED_MAX: usize = 1_024;
/// Sessions of which it is looked whose they have become, at a time; further ones are looked at when this gateway joins the fleet again.
const DOUBTED_MAX: usize = 1_024;
/// Sessions of connected devices whose rows are others', at a time; whoever tells of further ones tells again.
const CONTESTED_MAX: usize = 256;
/// How long a shard and the store may take for one thing.
const SHARD_MAX: Duration = Duration::from_secs(8);

/// A device that has come, and to which worker.
type Wanted = (WorkerId, Box<SessionWanted>);
/// Devices that have come, and those whose sessions have ended.
type Heard = (mpsc::UnboundedReceiver<Wanted>, mpsc::UnboundedReceiver<Box<str>>);

/// What was counted.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Sessions that came from other gateways.
    pub(super) taken: AtomicU64,
    /// Sessions that were begun again from their rows and the stream, because the gateways that had them had died,
    pub(super) revived: AtomicU64,
    /// and those of them of which the stream had let messages go.
    pub(super) holes: AtomicU64,
    /// Messages in sessions of either kind,
    pub(super) messages: AtomicU64,
    /// and the oldest of such sessions that had no room.
    pub(super) given_way: AtomicU64,
    /// Sessions that went to other gateways.
    pub(super) given: AtomicU64,
    /// Sessions that ended, whose gateways had died,
    pub(super) expired: AtomicU64,
    /// and wills of such that were published.
    pub(super) wills: AtomicU64,
    /// Devices that were asked to come again, because their sessions could not be brought here in time.
    pub(super) put_off: AtomicU64,
    /// Sessions that were begun anew, because the gateway that had them did not answer.
    pub(super) begun_anew: AtomicU64,
    /// Sessions here that others have by now, and that went without a word.
    pub(super) disowned: AtomicU64,
    /// Devices whose sessions were not looked for elsewhere, because NATS was away.
    pub(super) unasked: AtomicU64,
    /// Rows that were written, after the first of a session,
    pub(super) rows_written: AtomicU64,
    /// and those among them for a place of its own.
    pub(super) rows_placed: AtomicU64,
    /// Rows without their sessions, because those are too large.
    pub(super) rows_too_large: AtomicU64,
}

/// The same, at one time.
#[derive(Debug)]
pub(super) struct Counts {
    pub(super) taken: u64,
    pub(super) revived: u64,
    pub(super) holes: u64,
    pub(super) messages: u64,
    pub(super) given_way: u64,
    pub(super) given: u64,
    pub(super) expired: u64,
    pub(super) wills: u64,
    pub(super) put_off: u64,
    pub(super) begun_anew: u64,
    pub(super) disowned: u64,
    pub(super) unasked: u64,
    pub(super) rows_written: u64,
    pub(super) rows_placed: u64,
    pub(super) rows_too_large: u64,
}

impl Counters {
    /// What they are now.
    pub(super) fn counts(&self) -> Counts {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            taken: load(&self.taken),
            revived: load(&self.revived),
            holes: load(&self.holes),
            given_way: load(&self.given_way),
            messages: load(&self.messages),
            given: load(&self.given),
            expired: load(&self.expired),
            wills: load(&self.wills),
            put_off: load(&self.put_off),
            begun_anew: load(&self.begun_anew),
            disowned: load(&self.disowned),
            unasked: load(&self.unasked),
            rows_written: load(&self.rows_written),
            rows_placed: load(&self.rows_placed),
            rows_too_large: load(&self.rows_too_large),
        }
    }
}

/// What is known of sessions on their way.
pub(super) struct Sessions {
    wanted: mpsc::UnboundedSender<Wanted>,
    gone: mpsc::UnboundedSender<Box<str>>,
    /// Until somebody hears.
    heard: Mutex<Option<Heard>>,
    looks: Semaphore,
    takes: Semaphore,
    /// Whoever finds a gateway silent asks on alone; the others wait for what he finds.
    probes: tokio::sync::Mutex<()>,
    busy: Mutex<HashSet<Box<str>>>,
    freed: Notify,
    offered: Mutex<HashMap<Box<str>, Offered>>,
    /// Devices whose sessions are here, whole, and perhaps not this gateway's: at which revision of their rows that was tried last.
    doubted: Mutex<HashMap<Box<str>, u64>>,
    /// Devices that are connected here, and whose sessions' rows are other gateways' all the same: they are looked at (`verify`).
    contested: Mutex<HashSet<Box<str>>>,
    /// All that was published here until now is in the fleet's stream,
    sent: Rounds,
    /// or all that was published anywhere until now is with the sessions here.
    taken: Rounds,
    /// What is to be written in rows.
    rows: Rows,
    /// The gateway ends: a round is to go now,
    ending: Notify,
    /// and how many have gone since.
    last_rounds: AtomicU64,
    /// What the API publishes into the fleet's stream.
    pub(super) underway: Underway,
    /// How far the fleet's stream is settled here.
    settled: Mutex<Option<Position>>,
    pub(super) counters: Counters,
}

/// What is done about a device's session, which nobody else touches meanwhile.
struct Held<'a> {
    sessions: &'a Sessions,
    device: Box<str>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.sessions.busy.lock().expect("no holder panics").remove(&self.device);
        self.sessions.freed.notify_waiters();
    }
}

impl Sessions {
    /// Nothing yet. What is said waits for [`run`]: bounded by devices and sessions that are here.
    pub(super) fn new() -> Self {
        let ((wanted, wants), (gone, goes)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        Self {
            wanted,
            gone,
            heard: Mutex::new(Some((wants, goes))),
            looks: Semaphore::new(LOOKS_MAX),
            takes: Semaphore::new(TAKEN_MAX),
            probes: tokio::sync::Mutex::default(),
            busy: Mutex::default(),
            freed: Notify::new(),
            offered: Mutex::default(),
            doubted: Mutex::default(),
            contested: Mutex::default(),
            sent: Rounds::default(),
            taken: Rounds::default(),
            rows: Rows::default(),
            ending: Notify::new(),
            last_rounds: AtomicU64::new(0),
            underway: Underway::default(),
            settled: Mutex::default(),
            counters: Counters::default(),
        }
    }

    /// A device has come to this worker. Never waits.
    pub(super) fn wanted(&self, worker: WorkerId, wanted: Box<SessionWanted>) {
        // The receiver is gone when the gateway ends.
        let _ = self.wanted.send((worker, wanted));
    }

    /// A session has ended, and its device has no other. Never waits.
    pub(super) fn gone(&self, device: Box<str>) {
        // As above.
        let _ = self.gone.send(device);
    }

    /// What stands in a session's row is no more so. Never waits.
    pub(super) fn changed(&self, worker: WorkerId, changed: SessionChanged) {
        self.rows.add(worker, changed, Instant::now());
    }

    /// Everything up to this place is with the sessions here that want it.
    pub(super) fn note_settled(&self, at: &Position) {
        *self.settled.lock().expect("no holder panics") = Some(at.clone());
    }

    /// A place among those who ask NATS for rows.
    async fn look(&self) -> SemaphorePermit<'_> {
        self.looks.acquire().await.expect("it is never closed")
    }

    /// Nobody else has to do with this device's session.
    async fn hold(&self, device: &str) -> Held<'_> {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if let Some(held) = self.try_hold(device) {
                return held;
            }
            freed.await;
        }
    }

    /// The same, if it is so now.
    fn try_hold(&self, device: &str) -> Option<Held<'_>> {
        let is_free = self.busy.lock().expect("no holder panics").insert(device.into());
        is_free.then(|| Held { sessions: self, device: device.into() })
    }

    fn doubted(&self) -> std::sync::MutexGuard<'_, HashMap<Box<str>, u64>> {
        self.doubted.lock().expect("no holder panics")
    }

    /// Whose a session is is to be looked at later. `false`: somebody does already, or there are too many.
    fn doubt(&self, device: &str, revision: u64) -> bool {
        let mut doubted = self.doubted();
        let is_known = doubted.contains_key(device);
        if is_known || doubted.len() < DOUBTED_MAX {
            doubted.insert(device.into(), revision);
        }
        !is_known && doubted.contains_key(device)
    }

    /// Another gateway says that the session of a device is its own that is connected here: one of them is wrong. `false`: there are too many.
    fn contest(&self, device: &str) -> bool {
        let mut contested = self.contested.lock().expect("no holder panics");
        contested.len() < CONTESTED_MAX && {
            contested.insert(device.into());
            true
        }
    }

    fn take_contested(&self) -> HashSet<Box<str>> {
        std::mem::take(&mut self.contested.lock().expect("no holder panics"))
    }

    fn offered(&self) -> std::sync::MutexGuard<'_, HashMap<Box<str>, Offered>> {
        self.offered.lock().expect("no holder panics")
    }
}

/// Deals with what shards say, until the gateway ends.
pub(super) async fn run(state: Arc<State>) {
    let Some((mut wanted, mut gone)) = state.sessions.heard.lock().expect("no holder panics").take() else { return };
    let places = Arc::new(Semaphore::new(ENDS_MAX));
    drop(tokio::spawn(rows::work(Arc::clone(&state))));
    loop {
        tokio::select! {
            // As many as there are devices whose CONNECT waits.
            Some((worker, wanted)) = wanted.recv() => {
                let state = Arc::clone(&state);
                tokio::spawn(async move { claim::claim(&state, worker, &wanted).await });
            }
            (place, Some(device)) = async { (places.clone().acquire_owned().await, gone.recv().await) } => {
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    claim::let_go(&state, &device).await;
                    drop(place);
                });
            }
            else => return,
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests;

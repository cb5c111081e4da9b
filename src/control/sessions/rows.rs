//! What stands in the rows of this gateway's sessions: enough for another one to begin them again should this one die (decision 0032).
//!
//! ```text
//!   SUBSCRIBE, UNSUBSCRIBE, a will that goes ── SessionChanged ──▶ listed, each device once ──▶ read, asked of the shard, written if it differs
//!                                                    │                                             │
//!   SUBACK ◀── at once: NATS is away; five seconds ──┴───────────── it is so ◀─────────────────────┘
//! ```
//!
//! What changes nothing is not told of: a device that comes again and subscribes to what it has is answered by its shard, which knows whether
//! the row is true ([`crate::broker::Row`]).
//!
//! While NATS is away nothing is listed: whatever differs is found when this gateway has joined again (`verify`).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::around::{Around, Neighbours, within};
use super::claim::AGAIN_AFTER;
use super::count;
use crate::fleet::{Cursor, RowChange, SessionRow};
use crate::image::Session;
use crate::link::{Outcome, Outline, SessionChanged, SessionId, SessionOrder, Standing, Told, WorkerCommand, WorkerId};

/// How long a SUBACK waits for its row, as for what others publish.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether one has waited for so long.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Rows written at a time.
const WRITTEN_MAX: usize = 128;

/// A SUBACK that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    worker: WorkerId,
    session: SessionId,
    waits: u32,
    until: Instant,
}

/// What is to be written. See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Rows {
    listed: Mutex<Listed>,
    bell: Notify,
}

#[derive(Debug, Default)]
struct Listed {
    order: VecDeque<Box<str>>,
    /// Those in `order`, and who waits.
    devices: HashMap<Box<str>, Vec<Waiting>>,
}

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// It says what is so; or the session has ended or is another gateway's.
    Done,
    /// Nobody knows, or somebody else has written it.
    Again,
}

impl Rows {
    pub(super) fn add(&self, worker: WorkerId, changed: SessionChanged, now: Instant) {
        let SessionChanged { device, waits } = changed;
        let waiting = waits.map(|(session, waits)| Waiting { worker, session, waits, until: now + PATIENCE });
        self.list(device, waiting.into_iter().collect());
    }

    /// A device's row is to be looked at, for those who wait.
    pub(super) fn list(&self, device: Box<str>, waiting: Vec<Waiting>) {
        let mut listed = self.listed.lock().expect("no holder panics");
        if !listed.devices.contains_key(&device) {
            listed.order.push_back(device.clone());
        }
        listed.devices.entry(device).or_default().extend(waiting);
        drop(listed);
        self.bell.notify_one();
    }

    /// The next device, and those who wait for its row.
    fn next(&self) -> Option<(Box<str>, Vec<Waiting>)> {
        let mut listed = self.listed.lock().expect("no holder panics");
        let device = listed.order.pop_front()?;
        let waiting = listed.devices.remove(&device).unwrap_or_default();
        Some((device, waiting))
    }

    /// Those who have waited for too long; their rows stay listed.
    fn give_up(&self, now: Instant) -> Vec<Waiting> {
        let mut listed = self.listed.lock().expect("no holder panics");
        listed.devices.values_mut().flat_map(|all| all.extract_if(.., |one| one.until <= now)).collect()
    }
}

/// Writes what is listed, until the gateway ends.
pub(super) async fn work<A: Around>(state: Arc<A>) {
    let places = Arc::new(Semaphore::new(WRITTEN_MAX));
    loop {
        tokio::select! {
            () = state.sessions().rows.bell.notified() => {}
            () = state.sleep(LOOK_EVERY) => {}
        }
        answer(&*state, state.sessions().rows.give_up(state.now()), false);
        while let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            let Some((device, waiting)) = state.sessions().rows.next() else { break };
            let state = Arc::clone(&state);
            Arc::clone(&state).spawn(async move {
                write(&state, device, waiting).await;
                drop(place);
                state.sessions().rows.bell.notify_one();
            });
        }
    }
}

async fn write<A: Around>(state: &Arc<A>, device: Box<str>, waiting: Vec<Waiting>) {
    let Some(fleet) = state.fleet() else { return };
    if !fleet.is_connected() {
        return answer(&**state, waiting, false);
    }
    let until = waiting.iter().map(|one| one.until).min().unwrap_or_else(|| state.now() + PATIENCE);
    let written = within(&**state, until, async {
        let _held = state.sessions().hold(&device).await;
        keep(&**state, &device).await
    });
    if written.await == Some(Kept::Done) {
        return answer(&**state, waiting, true);
    }
    state.sleep(AGAIN_AFTER).await;
    if fleet.is_connected() {
        state.sessions().rows.list(device, waiting);
    } else {
        answer(&**state, waiting, false);
    }
}

/// `is_true`: their row says so.
fn answer<A: Around>(state: &A, waiting: Vec<Waiting>, is_true: bool) {
    for Waiting { worker, session, waits, .. } in waiting {
        state.answer(worker, WorkerCommand::SessionWritten { session, waits, is_true });
    }
}

/// What a shard has of a session: `Ok(None)`: nothing.
///
/// # Errors
/// It does not answer in time.
pub(super) async fn outline<A: Around>(state: &A, device: &str) -> Result<Option<Outline>, ()> {
    let told = Told::default();
    match state.ask(device, SessionOrder::Outline(told.clone())).await {
        Some(Outcome::Delivered) => Ok(told.take()),
        Some(Outcome::Offline) => Ok(None),
        _ => Err(()),
    }
}

/// A row of this gateway.
pub(super) fn row<A: Around>(
    state: &A,
    fleet: &A::Fleet,
    moves: u64,
    session: Session,
    from: Option<Cursor>,
) -> SessionRow {
    let mut row = SessionRow { node: fleet.node().into(), moves, session: None, from, is_willed: false };
    let device = session.head.name.clone();
    if !row.set_outline(session) {
        count(&state.sessions().counters.rows_too_large);
        tracing::warn!(
            device,
            "what the device has subscribed to is too long for the fleet: should this gateway die, its session begins anew elsewhere"
        );
    }
    row
}

/// The row of a session that is here comes to say what is so. Nobody else has to do with the session.
pub(super) async fn keep<A: Around>(state: &A, device: &str) -> Kept {
    let Some(fleet) = state.fleet() else { return Kept::Done };
    let Ok(there) = fleet.session_row(device).await else { return Kept::Again };
    // After that: what stands there may have been written by this gateway, and the session have changed since.
    let outline = match outline(state, device).await {
        Ok(Some(outline)) => outline,
        Ok(None) => return Kept::Done,
        Err(()) => return Kept::Again,
    };
    let (revision, before) = match there {
        // Its device went on with it here while that was not known.
        Some((_, row)) if *row.node != *fleet.node() && fleet.holds_device(device) => {
            state.sessions().contest(device);
            return Kept::Again;
        }
        Some((_, row)) if *row.node != *fleet.node() => return Kept::Done,
        Some((revision, row)) => (revision, row),
        None => (0, SessionRow::default()),
    };
    let from = from(&before, outline.standing);
    let goes_with_row = outline.standing == Standing::Behind && from.is_some();
    let mut row = row(state, fleet, before.moves, outline.session, from);
    // Of the will that was published by somebody else nothing has changed.
    row.is_willed = before.is_willed && row.session == before.session;
    let kept = write_over(state, fleet, device, (revision, &before), row).await;
    if kept == Kept::Done && goes_with_row {
        state.ask(device, SessionOrder::Placed(0)).await;
    }
    kept
}

/// A session that lags gets a place of its own, of the round since which it does: its gateway's cursor is held up by it no longer.
pub(super) async fn place<A: Around>(state: &A, device: &str, since: u64, at: Cursor) {
    let (Some(fleet), Some(_held)) = (state.fleet(), state.sessions().try_hold(device)) else { return };
    let Ok(Some((revision, before))) = fleet.session_row(device).await else { return };
    if *before.node != *fleet.node() {
        return;
    }
    // Both hold, and the later one brings less twice: but of what an earlier process has left the cursor did not wait for one that had a
    // place of its own.
    let is_later = |known: &Cursor| since == 0 || (known.stream == at.stream && known.position >= at.position);
    let from = before.from.clone().filter(is_later).unwrap_or(at);
    let row = SessionRow { from: Some(from), ..before.clone() };
    if write_over(state, fleet, device, (revision, &before), row).await == Kept::Done {
        count(&state.sessions().counters.rows_placed);
        state.ask(device, SessionOrder::Placed(since)).await;
    }
}

/// A session that stands where all the others do has no place of its own any more. `floor`: the round that the cursor holds up to.
pub(super) async fn unplace<A: Around>(state: &A, device: &str, floor: u64) {
    let (Some(fleet), Some(_held)) = (state.fleet(), state.sessions().try_hold(device)) else { return };
    // First: from now on the cursor waits for it.
    if state.ask(device, SessionOrder::Unplace { floor }).await != Some(Outcome::Delivered) {
        return;
    }
    let written = match fleet.session_row(device).await {
        Ok(Some((revision, before))) if *before.node == *fleet.node() => {
            let row = SessionRow { from: None, ..before.clone() };
            write_over(state, fleet, device, (revision, &before), row).await
        }
        Ok(_) => Kept::Done,
        Err(_) => Kept::Again,
    };
    if written == Kept::Again {
        // Until it is written more comes twice than must.
        state.sessions().rows.list(device.into(), Vec::new());
    }
}

/// Where what is outstanding in a session is to be read from, by the row that it has.
pub(super) fn from(before: &SessionRow, standing: Standing) -> Option<Cursor> {
    match standing {
        Standing::Even => None,
        // What an earlier process has left there is no later than what is needed.
        Standing::Behind => before.from.clone(),
        // Somebody has taken it away who did not know.
        Standing::Placed => Some(before.from.clone().unwrap_or_default()),
    }
}

/// The row is this one, over that of a revision.
pub(super) async fn write_over<A: Around>(
    state: &A,
    fleet: &A::Fleet,
    device: &str,
    (revision, before): (u64, &SessionRow),
    row: SessionRow,
) -> Kept {
    let is_new = revision == 0;
    if is_new || row != *before {
        let place = state.sessions().look().await;
        let written = fleet.write_row(device, revision, &row).await;
        drop(place);
        if !matches!(written, RowChange::Done(_)) {
            return Kept::Again;
        }
        if !is_new {
            count(&state.sessions().counters.rows_written);
        }
    }
    Kept::Done
}

//! Whether this gateway still has the sessions that it has: looked at once whenever it has come to hold its lease, slowly. What
//! others have by now is disowned; what nobody has a row for, as it began while NATS was away, gets one, and so does what has changed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::around::{Around, Neighbours};
use super::claim::tell;
use super::count;
use super::rows::{self, Kept};
use crate::image::SessionKey;
use crate::link::{Outcome, SessionOrder};

/// So many sessions are looked at at a time,
const PAGE: usize = 64;
/// and then nobody for so long: a thousand in a second.
const PAUSE: Duration = Duration::from_millis(64);
/// So many that somebody else has to do with are remembered at a time: some tens of kilobytes, whatever the store holds.
const SKIPPED_MAX: usize = 4 * PAGE;
/// What somebody else has to do with is looked at again after so long.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often it is looked whether it has joined again.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Gateways whose sessions are void, should rows come to say so that were written over theirs without an answer: by device. Bounded by
/// sessions here whose devices are connected.
type Over = HashMap<Box<str>, Box<str>>;

/// Looks, until the gateway ends.
pub(in super::super) async fn verify<A: Around>(state: Arc<A>) {
    let (mut verified, mut over) = (0, Over::new());
    loop {
        state.sleep(LOOK_EVERY).await;
        let Some(fleet) = state.fleet() else { return };
        let joined = fleet.joined();
        if joined != verified && fleet.is_connected() && look_at_all(&state, &mut over).await.is_some() {
            verified = joined;
        }
        look_at_contested(&state, &mut over).await;
    }
}

/// Those of which it was found since that their rows are not this gateway's though their devices are here.
async fn look_at_contested<A: Around>(state: &Arc<A>, over: &mut Over) {
    for device in state.sessions().take_contested() {
        if look_at(state, &device, over).await != Some(Looked::Done) {
            state.sessions().contest(&device);
        }
    }
}

/// `None`: NATS has gone, or is there again, or the store cannot be read: it begins anew later.
async fn look_at_all<A: Around>(state: &Arc<A>, over: &mut Over) -> Option<()> {
    let (mut after, mut skipped, joined) = (SessionKey(0), Vec::new(), state.fleet()?.joined());
    loop {
        // However many devices come at once, no more of them are remembered than this: the walk goes on when there is room.
        while skipped.len() > SKIPPED_MAX - PAGE {
            look_again(state, &mut skipped, joined, over).await?;
        }
        let page = state.stored_names(after, PAGE).await?;
        let Some((last, _)) = page.last() else { break };
        after = *last;
        for (_, device) in page {
            // Those that have ended, or are on their way here, have names that no device has.
            if !device.starts_with(char::is_control) && look_at(state, &device, over).await? == Looked::Skipped {
                skipped.push(device);
            }
        }
        look_at_contested(state, over).await;
        state.sleep(PAUSE).await;
    }
    while !skipped.is_empty() {
        look_again(state, &mut skipped, joined, over).await?;
    }
    Some(())
}

/// Their devices were about to get what another gateway has; where that came to nothing, what is here is void all the same.
async fn look_again<A: Around>(
    state: &Arc<A>,
    skipped: &mut Vec<Box<str>>,
    joined: u64,
    over: &mut Over,
) -> Option<()> {
    state.sleep(AGAIN_AFTER).await;
    if state.fleet()?.joined() != joined {
        return None;
    }
    for device in std::mem::take(skipped) {
        if look_at(state, &device, over).await? == Looked::Skipped {
            skipped.push(device);
        }
    }
    Some(())
}

/// What became of a session that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looked {
    Done,
    /// Somebody has to do with it now, or nobody answers.
    Skipped,
}

async fn look_at<A: Around>(state: &Arc<A>, device: &str, over: &mut Over) -> Option<Looked> {
    let fleet = state.fleet()?;
    let Some(_held) = state.sessions().try_hold(device) else { return Some(Looked::Skipped) };
    match state.ask(device, SessionOrder::Exists).await {
        Some(Outcome::Delivered) => {}
        Some(_) => return Some(Looked::Done),
        None => return Some(Looked::Skipped),
    }
    let row = match fleet.session_row(device).await {
        Ok(row) => row,
        // An answer that does not come is asked for again, and not those of all who were before it.
        Err(_) if fleet.is_connected() => return Some(Looked::Skipped),
        Err(_) => return None,
    };
    if let Some((revision, row)) = row
        && *row.node != *fleet.node()
    {
        match state.ask(device, SessionOrder::Disown).await {
            Some(Outcome::Delivered) => {
                count(&state.sessions().counters.disowned);
                // What was written over its row may have arrived, and been written over.
                if let Some(node) = over.remove(device) {
                    tell(state, device, &node, false);
                }
                return Some(Looked::Done);
            }
            // Its device is here, and goes on with it: what the other one has is older. Unless that one has the device too by now, whose
            // connection here ends then.
            Some(Outcome::Offline) if fleet.holds_device(device) => {}
            _ => return Some(Looked::Skipped),
        }
        let outline = match rows::outline(&**state, device).await {
            Ok(Some(outline)) => outline,
            // It ends with its connection.
            Ok(None) => return Some(Looked::Done),
            Err(()) => return Some(Looked::Skipped),
        };
        let ours = rows::row(&**state, fleet, row.moves + 1, outline.session, None);
        if rows::write_over(&**state, fleet, device, (revision, &row), ours).await == Kept::Done {
            tell(state, device, &row.node, false);
            return Some(Looked::Done);
        }
        // It may have been written: then it is found later that the row says so.
        over.insert(device.into(), row.node);
        return Some(Looked::Skipped);
    }
    if let Some(node) = over.remove(device) {
        tell(state, device, &node, false);
    }
    if rows::keep(&**state, device).await == Kept::Again {
        state.sessions().rows.list(device.into(), Vec::new());
    }
    Some(Looked::Done)
}

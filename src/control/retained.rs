//! The fleet's retained messages, given to the shards as the bucket says them: each keeps the latest of its topic.
//!
//! What a shard has no room for holds up what comes behind it, like what others publish (`arrivals`); what is on its way is bounded by
//! what the fleet reads.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

use super::State;
use super::arrivals::{AGAIN_AFTER, FOR_EVER, give, publication};
use super::pending::Ticket;
use crate::config::FLEET_SINK;
use crate::fleet::{BucketChange, Retained};
use crate::link::{Outcome, Stamp, WorkerCommand, WorkerId};
use crate::store::SINK_PREFIX;

/// What was published here and is younger than the oldest event that has not gone up, or not by so much older, may not be in the bucket
/// yet: on its way from a shard into the log nothing takes longer.
const ON_ITS_WAY: Duration = Duration::from_mins(10);

/// Gives shards what comes, until the gateway ends.
pub(super) async fn pass_on(state: Arc<State>, mut changes: mpsc::UnboundedReceiver<BucketChange>) {
    let state = &*state;
    let mut settling = FuturesOrdered::new();
    // What a shard had no room for; nothing else is taken before it.
    let mut refused: Option<(WorkerId, Box<WorkerCommand>)> = None;
    loop {
        tokio::select! {
            biased;
            Some((at, is_kept, room)) = settling.next(), if !settling.is_empty() => {
                drop(room);
                let Some(fleet) = &state.fleet else { return };
                fleet.note_retained(at, is_kept);
            }
            () = tokio::time::sleep(AGAIN_AFTER), if refused.is_some() => {
                refused = refused.and_then(|(worker, command)| give(state, worker, *command));
            }
            change = changes.recv(), if refused.is_none() => match change {
                None => return,
                Some(BucketChange::Begin { answer }) => {
                    // Whoever asked may have given up.
                    let _ = answer.send(kept(state).await);
                }
                Some(BucketChange::Passed { at }) => settling.push_back(settled(None, at, None)),
                Some(BucketChange::Set(retained)) => {
                    let Retained { at, topic, payload, publishing, room } = *retained;
                    let worker = state.home.of(&topic);
                    let Some(mut publication) = publication(state, topic, payload, publishing) else {
                        settling.push_back(settled(None, at, Some(room)));
                        continue;
                    };
                    if publication.is_expired(state.clock.now()) {
                        // The topic holds nothing, and nothing that is older.
                        publication.payload = bytes::Bytes::new();
                    }
                    let ticket = state.sent.open();
                    let (request, publication) = (ticket.request(), Box::new(publication));
                    refused = give(state, worker, WorkerCommand::Retain { request, publication });
                    settling.push_back(settled(Some(ticket), at, Some(room)));
                }
            },
        }
    }
}

/// Ends when every shard has taken it, and it is safe; at once where nobody was asked. Whether it is kept.
async fn settled(
    ticket: Option<Ticket<'_, Outcome>>,
    at: u64,
    room: Option<OwnedSemaphorePermit>,
) -> (u64, bool, Option<OwnedSemaphorePermit>) {
    let outcome = match ticket {
        Some(ticket) => ticket.answer(Instant::now() + FOR_EVER).await,
        None => None,
    };
    (at, !matches!(outcome, Some(Outcome::Refused(_))), room)
}

/// What the store has of the fleet's retained messages, without what may be on its way into the bucket.
async fn kept(state: &State) -> HashMap<Box<str>, Stamp> {
    let Some(store) = state.store.clone() else { return HashMap::new() };
    let (own, now_ms) = (state.exchange.stamp(0).node, state.clock.unix_ms(state.clock.now()));
    let read = tokio::task::spawn_blocking(move || {
        let backlogs = store.backlogs();
        let sink = backlogs.iter().find(|one| one.name.strip_prefix(SINK_PREFIX) == Some(FLEET_SINK));
        let oldest = sink.and_then(|sink| store.reader().time_after(sink.cursor).ok().flatten());
        let since_ms = oldest.unwrap_or(now_ms).min(now_ms).saturating_sub(ON_ITS_WAY.as_millis() as i64);
        let since_ms = u64::try_from(since_ms).unwrap_or(0);
        let mut kept = HashMap::new();
        store.reader().retained_stamps(|topic, stamp| {
            if stamp.node != own || stamp.unix_ms() < since_ms {
                kept.insert(topic.into(), stamp);
            }
        })?;
        Ok::<_, crate::store::StoreError>(kept)
    });
    match read.await {
        Ok(Ok(kept)) => kept,
        Ok(Err(error)) => {
            tracing::warn!(%error, "which retained messages are kept here is not known: what was deleted meanwhile stays until it is");
            HashMap::new()
        }
        // The runtime ends.
        Err(_) => HashMap::new(),
    }
}

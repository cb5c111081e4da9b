//! What was published at other gateways, given to the shards as the API's publications are, and settled as they are: how far that has
//! come is kept in the store, beside the sessions that it went to.
//!
//! ```text
//!   the fleet's stream ──▶ Arrival ──▶ the publisher's home here, or the topic's ──▶ every shard ──▶ settled, in order ──▶ the place is kept
//! ```
//!
//! A shard that takes no more holds up what comes behind it: nothing is left out. What is on its way is bounded by what the fleet reads
//! (8 MiB), which reads no more before this is settled.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::Instant;

use super::State;
use super::pending::Ticket;
use crate::codec::mqtt::{Properties, topic};
use crate::fleet::{Arrival, Position, Publishing, Remote};
use crate::link::{MailboxFull, Publication, Reach, WorkerCommand, WorkerId};
use crate::store::FleetPosition;

/// The place is kept no more often than so: what was settled since comes again after `kill -9`.
const KEPT_EVERY: Duration = Duration::from_millis(200);
/// How soon a shard is asked again that takes no more.
pub(super) const AGAIN_AFTER: Duration = Duration::from_millis(2);
/// A settlement is waited for as long as it takes.
pub(super) const FOR_EVER: Duration = Duration::from_hours(24 * 365);

/// What is reached when everything before it is settled.
enum Reached {
    Place(Position),
    /// What somebody waits for.
    End(oneshot::Sender<()>),
}

/// Gives shards what comes, until the gateway ends.
pub(super) async fn pass_on(state: Arc<State>, mut arrivals: mpsc::UnboundedReceiver<Arrival>) {
    let state = &*state;
    let mut settling = FuturesOrdered::new();
    let mut kept = Kept::default();
    // What a shard had no room for; nothing else is taken before it.
    let mut refused: Option<(WorkerId, Box<WorkerCommand>)> = None;
    loop {
        tokio::select! {
            biased;
            Some((at, room)) = settling.next(), if !settling.is_empty() => {
                drop(room);
                match at {
                    Reached::Place(at) => {
                        state.sessions.note_settled(&at);
                        kept.reach(at);
                    }
                    Reached::End(end) => {
                        if kept.is_behind() {
                            kept.keep(state).await;
                        }
                        // Whoever waited may have given up.
                        let _ = end.send(());
                    }
                }
            }
            () = tokio::time::sleep(AGAIN_AFTER), if refused.is_some() => {
                refused = refused.and_then(|(worker, command)| give(state, worker, *command));
            }
            () = kept.due(), if kept.is_behind() => kept.keep(state).await,
            arrival = arrivals.recv(), if refused.is_none() => match arrival {
                None => return,
                Some(Arrival::Passed(at)) => settling.push_back(settled(None, Reached::Place(at), None)),
                Some(Arrival::End(end)) => settling.push_back(settled(None, Reached::End(end), None)),
                Some(Arrival::Message(remote)) => {
                    let Remote { at, device, topic, payload, publishing, room } = *remote;
                    // What one device publishes stays in its order, as at its own gateway.
                    let worker = state.home.of(device.as_deref().unwrap_or(&topic));
                    let Some(publication) = publication(state, topic, payload, publishing) else {
                        settling.push_back(settled(None, Reached::Place(at), Some(room)));
                        continue;
                    };
                    let ticket = state.sent.open();
                    let (request, publication) = (ticket.request(), Box::new(publication));
                    refused = give(state, worker, WorkerCommand::Publish { request, publication });
                    settling.push_back(settled(Some(ticket), Reached::Place(at), Some(room)));
                }
            },
        }
    }
}

/// Gives a shard something, or has it back.
pub(super) fn give(state: &State, worker: WorkerId, command: WorkerCommand) -> Option<(WorkerId, Box<WorkerCommand>)> {
    state.mailboxes[worker.index()].send(command).err().map(|MailboxFull(command)| (worker, command))
}

/// Ends when every shard has taken it, and what it caused is safe; at once where nobody was asked.
async fn settled(
    ticket: Option<Ticket<'_, crate::link::Outcome>>,
    at: Reached,
    room: Option<OwnedSemaphorePermit>,
) -> (Reached, Option<OwnedSemaphorePermit>) {
    if let Some(ticket) = ticket {
        ticket.answer(Instant::now() + FOR_EVER).await;
    }
    (at, room)
}

/// What subscribers here are to get; `None`: no gateway publishes such a thing.
pub(super) fn publication(state: &State, name: Box<str>, payload: Bytes, how: Publishing) -> Option<Publication> {
    let Publishing { qos, properties, expires_ms, retain, stamp, .. } = how;
    // Whoever may write into the stream is not necessarily a gateway.
    let is_valid = topic::is_topic_name(&name)
        && !topic::is_of_server(&name)
        && topic::level_count(&name) <= state.config.limits.topic_levels
        && Properties::check_forwarded(&properties).is_ok();
    if !is_valid {
        state.fleet.as_ref()?.note_invalid();
        return None;
    }
    let expires = expires_ms.map(|expires_ms| {
        let left = expires_ms.saturating_sub(state.clock.unix_ms(state.clock.now()));
        state.clock.now().plus(Duration::from_millis(u64::try_from(left).unwrap_or(0)))
    });
    // With a stamp it is kept as the latest of its topic, at the moment at which subscribers get it (decision 0029).
    let retain = retain && !stamp.is_none();
    if retain {
        state.exchange.note_stamp(stamp);
    }
    let reach = Reach::Elsewhere;
    Some(Publication { retain, properties, expires, stamp, reach, ..Publication::plain(name, payload, qos) })
}

/// How far it has come, and how far that is kept.
#[derive(Default)]
struct Kept {
    reached: Option<Position>,
    is_behind: bool,
    due: Option<Instant>,
}

impl Kept {
    fn reach(&mut self, at: Position) {
        if self.reached.as_ref() != Some(&at) {
            (self.reached, self.is_behind) = (Some(at), true);
        }
    }

    fn is_behind(&self) -> bool {
        self.is_behind
    }

    async fn due(&self) {
        if let Some(due) = self.due {
            tokio::time::sleep_until(due).await;
        }
    }

    async fn keep(&mut self, state: &State) {
        (self.is_behind, self.due) = (false, Some(Instant::now() + KEPT_EVERY));
        if let (Some(store), Some(Position { stream, position })) = (&state.store, &self.reached) {
            let at = FleetPosition { stream: (&**stream).into(), position: *position };
            if let Err(error) = store.keep_fleet_position(at).await {
                // The gateway ends, by this error or because it was told to.
                tracing::debug!(%error, "how far other gateways' messages have come is not kept");
            }
        }
    }
}

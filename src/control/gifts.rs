//! What the fleet gives to groups of shared subscribers: each message to the home of its group, which chooses a member; and back, what
//! became of it (decision 0033).
//!
//! A shard that takes no more holds up what comes behind it. What is on its way is bounded by what the fleet asks NATS for, and that by
//! what is settled here.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::State;
use super::arrivals::{AGAIN_AFTER, FOR_EVER, give, publication};
use super::pending::Ticket;
use crate::fleet::{Gift, Settle};
use crate::link::{Outcome, WorkerCommand, WorkerId};

/// Gives shards what comes, until the gateway ends.
pub(super) async fn pass_on(state: Arc<State>, mut gifts: mpsc::UnboundedReceiver<Gift>) {
    let state = &*state;
    let mut settling = FuturesUnordered::new();
    // What a shard had no room for; nothing else is taken before it.
    let mut refused: Option<(WorkerId, Box<WorkerCommand>)> = None;
    loop {
        tokio::select! {
            biased;
            Some(()) = settling.next(), if !settling.is_empty() => {}
            () = tokio::time::sleep(AGAIN_AFTER), if refused.is_some() => {
                refused = refused.and_then(|(worker, command)| give(state, worker, *command));
            }
            gift = gifts.recv(), if refused.is_none() => {
                let Some(Gift { group, worker, topic, payload, publishing, settle }) = gift else { return };
                let Some(publication) = publication(state, topic, payload, publishing) else {
                    settle.taken();
                    continue;
                };
                let ticket = state.sent.open();
                let (request, publication) = (ticket.request(), Box::new(publication));
                refused = give(state, worker, WorkerCommand::GiveToGroup { request, group, publication });
                settling.push(settled(ticket, settle));
            }
        }
    }
}

/// Ends when it is known what became of it: safe with a member, acknowledged by it, or back.
async fn settled(ticket: Ticket<'_, Outcome>, settle: Settle) {
    let outcome = ticket.answer(Instant::now() + FOR_EVER).await;
    if matches!(outcome, Some(Outcome::Delivered | Outcome::Acknowledged)) {
        settle.taken();
    }
}

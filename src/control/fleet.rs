//! The fleet beside the control plane: started with it; what other gateways want of this one is passed on to workers, and what is
//! asked of a device that is not here goes to the gateway that has it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::State;
use super::api::messages;
use crate::config::Config;
use crate::fleet::{Fleet, Identity, Order, Position, Reply, Settings, Wishes};
use crate::link::{DelayedWill, Outcome, WorkerCommand};
use crate::store::Store;

/// How long a worker has to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// This gateway's part of the fleet that `settings` describe, with a number that no other gateway draws.
pub(super) fn start(
    config: &Config,
    epoch: u64,
    settings: Option<(Settings, u64)>,
    store: Option<&Arc<Store>>,
    workers: usize,
) -> io::Result<(Option<Fleet>, Option<Wishes>)> {
    let Some((settings, seed)) = settings else { return Ok((None, None)) };
    let kept = store.map(|store| store.reader().fleet_position()).transpose().map_err(io::Error::other)?.flatten();
    let position = kept.map(|kept| Position { stream: (&*kept.stream).into(), position: kept.position });
    let identity = Identity { node: &config.node, epoch, data_dir: &config.data_dir, seed, workers, position };
    let (fleet, wishes) = Fleet::start(settings, &identity)?;
    Ok((Some(fleet), Some(wishes)))
}

/// Does what others want, until the gateway ends.
pub(super) async fn pass_on(state: Arc<State>, mut wishes: mpsc::UnboundedReceiver<Order>) {
    while let Some(wish) = wishes.recv().await {
        // An end must be heard, whatever else waits; it asks for no answer.
        if let Order::End { device, generation, is_loop } = wish {
            let worker = state.home.of(&device);
            // A worker that is gone has no devices.
            let _ = state.mailboxes[worker.index()].answer(WorkerCommand::Disown { device, generation, is_loop });
            continue;
        }
        if let Order::InterestHeld { worker, version } = wish {
            let _ = state.mailboxes[worker.index()].answer(WorkerCommand::InterestHeld { version });
            continue;
        }
        if let Order::Publish(will) = wish {
            let DelayedWill { device, listener, publication, charge } = *will;
            let worker = state.home.of(&device);
            let command = WorkerCommand::PublishWill { device, listener, publication };
            let _ = state.mailboxes[worker.index()].answer(command);
            drop(charge);
            continue;
        }
        let state = Arc::clone(&state);
        tokio::spawn(async move { pass_on_one(&state, wish).await });
    }
}

/// Whoever asked may have given up: an answer that nobody waits for is dropped.
async fn pass_on_one(state: &State, wish: Order) {
    match wish {
        Order::Send { device, downlink, patience, answer } => {
            let acknowledge = patience.is_some();
            let command = |request, device| WorkerCommand::Send { request, device, downlink, acknowledge };
            let outcome = ask(state, device, command, patience.unwrap_or(ANSWER_MAX)).await;
            let late = if acknowledge { Reply::Late } else { Reply::Busy };
            let _ = answer.send(outcome.map_or(late, reply));
        }
        Order::Disconnect { device, answer } => {
            let command = |request, device| WorkerCommand::Disconnect { request, device };
            let outcome = ask(state, device, command, ANSWER_MAX).await;
            let _ = answer.send(outcome.map_or(Reply::Busy, reply));
        }
        Order::Ask { device, body, answer } => {
            let _ = answer.send(messages::answer(state, &device, &body).await);
        }
        Order::End { .. } | Order::InterestHeld { .. } | Order::Publish(_) => {
            unreachable!("they are passed on at once")
        }
    }
}

/// Asks the worker that is the device's home. `None`: it does not answer in time, or has too much to do.
async fn ask(
    state: &State,
    device: Box<str>,
    command: impl FnOnce(u64, Box<str>) -> WorkerCommand,
    patience: Duration,
) -> Option<Outcome> {
    let worker = state.home.of(&device);
    let ticket = state.sent.open();
    let command = command(ticket.request(), device);
    state.mailboxes[worker.index()].send(command).ok()?;
    ticket.answer(Instant::now() + patience).await
}

fn reply(outcome: Outcome) -> Reply {
    match outcome {
        Outcome::Delivered => Reply::Delivered,
        Outcome::Acknowledged => Reply::Acknowledged,
        Outcome::Offline => Reply::Offline,
        Outcome::Unacknowledged => Reply::Unacknowledged,
        Outcome::Refused(why) => Reply::Refused { why: why.to_owned() },
    }
}

//! The fleet beside the control plane: started with it; what other gateways want of this one is passed on to workers, and what is
//! asked of a device that is not here goes to the gateway that has it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::State;
use super::api::error::ApiError;
use super::api::{broadcast, devices, history, messages};
use super::blocks::BlockError;
use super::{fleet_blocks, sessions};
use crate::config::Config;
use crate::fleet::{Call, Decided, Fleet, Identity, Order, Position, Reply, Report, Settings, Wishes};
use crate::link::{DelayedWill, DeviceFilter, Downlink, Outcome, Subject, WorkerCommand};
use crate::sink::Sinks;
use crate::store::Store;

/// How long a worker has to answer.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(2);

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

impl State {
    /// What is known of the fleet, with what its sink counts of it; `None`: there is none.
    pub(super) fn fleet_report(&self) -> Option<Report> {
        let mut report = self.fleet.as_ref()?.report();
        report.retained.superseded += self.sinks.as_ref().map_or(0, Sinks::superseded);
        Some(report)
    }
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
        if let Order::GroupServed(Decided { worker, group, life, giver }) = wish {
            let _ = state.mailboxes[worker.index()].answer(WorkerCommand::GroupServed { group, life, giver });
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
async fn pass_on_one(state: &Arc<State>, wish: Order) {
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
        Order::Call { call, answer } => {
            let _ = answer.send(called(state, call).await);
        }
        Order::Session { device, ask, answer } => {
            let _ = answer.send(sessions::serve(&**state, &device, ask).await);
        }
        Order::Blocks { all, since, answer } => {
            let _ = answer.send(fleet_blocks::take(state, all, since).await);
        }
        Order::End { .. } | Order::InterestHeld { .. } | Order::GroupServed(_) | Order::Publish(_) => {
            unreachable!("they are passed on at once")
        }
    }
}

/// What another gateway asks of this one. Such requests are bounded where they arrive.
async fn called(state: &Arc<State>, call: Call) -> Reply {
    let said = match call {
        Call::Devices { after, prefix, limit } => {
            devices::page_for_another(state, &DeviceFilter { after, prefix, limit }).await
        }
        Call::Device { device } => match devices::find_here(state, &device, Instant::now() + ANSWER_MAX).await {
            Ok(None) => return Reply::Offline,
            Ok(Some(found)) => Ok(as_json(&found)),
            Err(error) => Err(error),
        },
        Call::History { device } => history::ends_here(state, &device).await.map(|ends| as_json(&ends)),
        Call::Broadcast { topic, payload, prefix, per_second } => {
            broadcast::begin_for_another(state, Downlink { topic, payload }, prefix, per_second)
        }
        Call::Progress { broadcast } => broadcast::show_for_another(state, &broadcast, false),
        Call::Cancel { broadcast } => broadcast::show_for_another(state, &broadcast, true),
        Call::Block { row } => match row.blocked() {
            Some(blocked) => said_of(&blocked.0.clone(), fleet_blocks::block(state, blocked).await),
            None => return not_understood(),
        },
        Call::Unblock { row } => match row.blocked() {
            Some((subject, _)) => said_of(&subject.clone(), fleet_blocks::unblock(state, subject).await),
            None => return not_understood(),
        },
        Call::Commands { .. } => unreachable!("it is answered where it arrives"),
    };
    match said {
        Ok(body) => Reply::Said { body },
        Err(error) => failed(&error),
    }
}

/// A block was changed, or why not.
fn said_of(subject: &Subject, changed: Result<(), BlockError>) -> Result<String, ApiError> {
    changed.map(|()| "{}".to_owned()).map_err(|error| ApiError::of_block(error, &subject.to_string()))
}

fn not_understood() -> Reply {
    Reply::NotUnderstood { why: "it names nobody who can be kept out".to_owned() }
}

fn failed(error: &ApiError) -> Reply {
    Reply::Failed { code: error.code().to_owned(), why: error.to_string() }
}

fn as_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("it has no keys but texts")
}

/// Asks the worker that is the device's home. `None`: it does not answer in time, or has too much to do.
pub(super) async fn ask(
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

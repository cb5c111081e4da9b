//! Sinks beside the control plane: made with it, and what comes back through them for devices is passed on.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::State;
use super::forwarded::Forwarded;
use crate::config::{Config, FLEET_SINK, FleetUplink};
use crate::link::{Outcome, WorkerCommand};
use crate::sink::{Order, Sinks};
use crate::store::Store;

/// Commands under way at a time, from all sinks.
const UNDER_WAY_MAX: usize = 128;
/// How long a worker has to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// The sinks of a gateway that has a store, none of which runs yet; what comes back through them for devices; and what waits for one of
/// them.
pub(super) fn of(
    config: &Config,
    store: Option<&Arc<Store>>,
) -> (Option<Sinks>, Option<mpsc::Receiver<Order>>, Forwarded) {
    let Some(store) = store else { return (None, None, Forwarded::off()) };
    // Only so that two gateways do not try again at the same instants.
    let seed = RandomState::new().hash_one(&config.node);
    let (sinks, orders) = Sinks::new(Arc::clone(store), config.node.clone(), config.data_dir.clone(), seed);
    if config.fleet.as_ref().is_none_or(|fleet| fleet.uplink != FleetUplink::Stream) {
        return (Some(sinks), Some(orders), Forwarded::off());
    }
    let (forwarded, tell) = Forwarded::on();
    (Some(sinks.tell(FLEET_SINK, tell)), Some(orders), forwarded)
}

/// Tells devices what comes back for them, until there are no sinks any more.
pub(super) async fn pass_on(state: Arc<State>, mut orders: mpsc::Receiver<Order>) {
    let places = Arc::new(Semaphore::new(UNDER_WAY_MAX));
    while let Some(order) = orders.recv().await {
        // Whoever sends more waits, and so does the broker behind it.
        let place = Arc::clone(&places).acquire_owned().await;
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let _place = place;
            pass_on_one(&state, order).await;
        });
    }
}

async fn pass_on_one(state: &State, order: Order) {
    let Order { device, downlink, answer } = order;
    let worker = state.home.of(&device);
    let ticket = state.sent.open();
    let command = WorkerCommand::Send { request: ticket.request(), device, downlink, acknowledge: false };
    let outcome = match state.mailboxes[worker.index()].send(command) {
        Ok(()) => ticket.answer(Instant::now() + ANSWER_MAX).await,
        Err(_) => None,
    };
    // Whoever asked may have given up.
    let _ = answer.send(outcome.unwrap_or(Outcome::Refused("the gateway is busy")));
}

//! What must be behind a session that moves: what was published before its filters were at the new gateway is in the fleet's stream, and what
//! was published before it left the old one is with it. Both are asked of all shards at once, for all sessions that move at the time.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::State;
use super::around::{Around, Neighbours};
use crate::config::{FLEET_SINK, FleetUplink};
use crate::link::{Publication, QoS, WorkerCommand};
use crate::store::SINK_PREFIX;

/// How long it may take.
const FENCE_MAX: Duration = Duration::from_secs(4);
/// How often it is looked how far the stream is.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Nobody hears it but shards.
const BEHIND: &str = "$pulsegate/behind";

/// Whoever comes while one goes round waits for the next, and that is one for all of them.
#[derive(Default)]
pub(super) struct Rounds {
    wanted: AtomicU64,
    done: Mutex<u64>,
}

impl Rounds {
    /// Ends when one has gone round that began after this was called. `false`: it came to nothing.
    pub(super) async fn next<F: Future<Output = bool>>(&self, go: impl FnOnce() -> F) -> bool {
        let mine = self.wanted.fetch_add(1, Ordering::SeqCst) + 1;
        let mut done = self.done.lock().await;
        if *done >= mine {
            return true;
        }
        let upto = self.wanted.load(Ordering::SeqCst);
        let has_gone = go().await;
        if has_gone {
            *done = upto;
        }
        has_gone
    }
}

/// Publications of the API that may be in the fleet's stream and are not with a shard yet.
#[derive(Default)]
pub(in super::super) struct Underway {
    next: AtomicU64,
    all: std::sync::Mutex<BTreeSet<u64>>,
}

/// One of them, until it is with a shard.
pub(in super::super) struct OnItsWay<'a>(&'a Underway, u64);

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        self.0.all().remove(&self.1);
    }
}

impl Underway {
    /// One goes into the stream.
    pub(in super::super) fn begin(&self) -> OnItsWay<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.all().insert(number);
        OnItsWay(self, number)
    }

    /// Ends when all that are under way now are with their shards, or will never be. `None`: not in time.
    pub(super) async fn pass(&self) -> Option<()> {
        let until = Instant::now() + FENCE_MAX;
        let next = self.next.load(Ordering::Relaxed);
        while self.all().first().is_some_and(|first| *first < next) {
            if Instant::now() >= until {
                return None;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Some(())
    }

    fn all(&self) -> std::sync::MutexGuard<'_, BTreeSet<u64>> {
        self.all.lock().expect("no holder panics")
    }
}

/// All that was published here until now is in the fleet's stream. `false`: it is not known to be.
pub(super) async fn all_sent(state: &impl Around) -> bool {
    if !state.has_stream() {
        return true;
    }
    state.sessions().sent.next(|| async { state.send_all().await.is_some() }).await
}

/// All that was published anywhere until now is with the sessions here that want it, or on its way within their shards. `false`: it is
/// not known to be.
pub(super) async fn all_taken(state: &impl Around) -> bool {
    let Some(fleet) = state.fleet() else { return false };
    state.sessions().taken.next(|| async { fleet.reach_end().await && state.pass_all().await.is_some() }).await
}

pub(super) fn has_stream(state: &State) -> bool {
    state.config.fleet.as_ref().is_some_and(|fleet| fleet.uplink != FleetUplink::Off)
}

pub(super) async fn send_all(state: &State) -> Option<()> {
    let until = Instant::now() + FENCE_MAX;
    every(state, until, |request| WorkerCommand::Fence { request }).await?;
    let store = state.store.as_ref()?;
    let last = tokio::time::timeout_at(until, store.behind()).await.ok()?.ok()?;
    let sink = format!("{SINK_PREFIX}{FLEET_SINK}");
    while store.cursor(&sink)? < last {
        if Instant::now() >= until {
            return None;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Some(())
}

/// What any shard has passed on to another is there: nothing overtakes it.
pub(super) async fn pass_all(state: &State) -> Option<()> {
    let publication = || Box::new(Publication::plain(BEHIND, bytes::Bytes::new(), QoS::AtMostOnce));
    let until = Instant::now() + FENCE_MAX;
    every(state, until, |request| WorkerCommand::Publish { request, publication: publication() }).await
}

/// Asks every worker; ends when all have answered.
async fn every(state: &State, until: Instant, command: impl Fn(u64) -> WorkerCommand) -> Option<()> {
    let asked = state.mailboxes.iter().map(|mailbox| {
        let ticket = state.sent.open();
        mailbox.send(command(ticket.request())).ok().map(|()| ticket)
    });
    let asked: Option<Vec<_>> = asked.collect();
    let answers = join_all(asked?.into_iter().map(|ticket| ticket.answer(until))).await;
    answers.into_iter().all(|answer| answer.is_some()).then_some(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[tokio::test]
    async fn whoever_waits_is_served_by_one_round_that_began_later() {
        let (rounds, gone) = (Rounds::default(), AtomicUsize::new(0));
        let go = || async {
            gone.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            true
        };
        let all = join_all((0..50).map(|_| rounds.next(go))).await;
        assert!(all.into_iter().all(|is_done| is_done));
        assert!(gone.load(Ordering::SeqCst) <= 2, "one for all that came before it began");
        let failed = || async { false };
        assert!(!rounds.next(failed).await && rounds.next(go).await, "what came to nothing counts for nobody");
    }

    #[tokio::test]
    async fn whoever_waits_waits_for_those_under_way_and_not_for_later_ones() {
        let underway = Underway::default();
        assert_eq!(underway.pass().await, Some(()));
        let first = underway.begin();
        let (passed, later) = tokio::join!(underway.pass(), async {
            let later = underway.begin();
            drop(first);
            later
        });
        assert_eq!((passed, underway.all().len()), (Some(()), 1));
        drop(later);
    }
}

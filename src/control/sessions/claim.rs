//! A device has come: whose is its session? And a session that has ended: its row goes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::around::{Around, Neighbours};
use super::rows::{self, Kept};
use super::take::{Brought, take};
use super::{count, serve};
use crate::fleet::{LEASE_KNOWN_FOR, Reply, SessionAsk, SessionRow};
use crate::image::{Head, Session};
use crate::link::{
    Outcome, Outline, STILL_CONNECTED, SessionOrder, SessionVerdict, SessionWanted, Standing, WorkerCommand, WorkerId,
};

/// How long a device that has come may wait for its session, as long as nothing of it comes.
pub(super) const HANDOVER_MAX: Duration = Duration::from_secs(10);
/// How soon whoever goes on unasked is looked at, if NATS is there by then: long after its session is stored.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// How soon it is tried again.
pub(super) const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// How often another gateway that lives is told that it has a session no more,
const TELLS: u32 = 6;
/// and how far apart at first; twice as far each time.
const TELL_AFTER: Duration = Duration::from_secs(1);

/// Finds out whose the session of a device is that has come, and brings it here.
pub(super) async fn claim<A: Around>(state: &Arc<A>, worker: WorkerId, wanted: &SessionWanted) {
    let Some(fleet) = state.fleet() else { return };
    // Whoever keeps nothing costs a fleet nothing that keeps nothing.
    if wanted.connection.is_none() && fleet.has_no_sessions() {
        return;
    }
    let free = state.sessions().try_hold(&wanted.device);
    let has_waited = free.is_none();
    let held = match free {
        Some(held) => held,
        None => state.sessions().hold(&wanted.device).await,
    };
    let mut claim = Claim { state, fleet, wanted, until: state.now() + HANDOVER_MAX, over: None };
    // Whoever has gone while others had to do with its session wants nothing any more: a later one of the same device may have been served.
    if has_waited && !claim.is_there().await {
        return;
    }
    let verdict = claim.settle().await;
    claim.tell_in_doubt();
    if verdict == SessionVerdict::ComesAgain {
        count(&state.sessions().counters.put_off);
    }
    if let Some(connection) = wanted.connection {
        state.answer(worker, WorkerCommand::SessionSettled { connection, verdict });
    }
    drop(held);
    if verdict == SessionVerdict::GoesOnUnasked && wanted.is_kept {
        look_later(state, &wanted.device);
    }
}

/// NATS may have been found again since it was not there to be asked, and all sessions here may have been looked at (`verify`) before this one
/// was among them.
fn look_later<A: Around>(state: &Arc<A>, device: &str) {
    let (state, device) = (Arc::clone(state), Box::<str>::from(device));
    Arc::clone(&state).spawn(async move {
        state.sleep(LOOK_AFTER).await;
        // Should it have gone again, all are looked at when it is back.
        while state.fleet().is_some_and(Neighbours::is_connected) && !state.sessions().contest(&device) {
            state.sleep(LOOK_AFTER).await;
        }
    });
}

/// A session has ended here, and its device has no other: its row goes.
pub(super) async fn let_go<A: Around>(state: &Arc<A>, device: &str) {
    let Some(fleet) = state.fleet() else { return };
    let _held = state.sessions().hold(device).await;
    serve::withdraw(&**state, device);
    if state.ask(device, SessionOrder::Exists).await != Some(Outcome::Offline) {
        // Another has begun since.
        return;
    }
    // A row that stays because nobody answers is taken by whoever has the device next: its gateway says that it has none.
    if let Ok(Some((revision, row))) = fleet.session_row(device).await
        && *row.node == *fleet.node()
    {
        let _ = fleet.remove_session_row(revision).await;
    }
}

/// The device whose CONNECT waits.
pub(super) struct Claim<'a, A: Around> {
    pub(super) state: &'a Arc<A>,
    pub(super) fleet: &'a A::Fleet,
    pub(super) wanted: &'a SessionWanted,
    pub(super) until: Instant,
    /// The gateway whose session was begun anew here, should the row come to say so, and whether it ends as the device wants.
    pub(super) over: Option<(Box<str>, bool)>,
}

/// What one try came to.
enum Step {
    Done(SessionVerdict),
    /// Once more, from the row on.
    Again,
}

impl<A: Around> Claim<'_, A> {
    pub(super) fn device(&self) -> &str {
        &self.wanted.device
    }

    async fn settle(&mut self) -> SessionVerdict {
        // The device is back: another gateway that is about to take its session is to find another revision.
        let was_offered = serve::withdraw(&**self.state, self.device()).is_some();
        loop {
            if !self.fleet.is_connected() {
                count(&self.state.sessions().counters.unasked);
                return SessionVerdict::GoesOnUnasked;
            }
            let place = self.state.sessions().look().await;
            let row = self.fleet.session_row(self.device()).await;
            drop(place);
            let step = match row {
                Ok(row) => self.look(row, was_offered).await,
                Err(why) => {
                    tracing::debug!(why, "the row of a session cannot be read: it is tried again");
                    Step::Again
                }
            };
            match step {
                Step::Done(verdict) => return verdict,
                Step::Again if self.state.now() >= self.until || !self.is_there().await => {
                    return SessionVerdict::ComesAgain;
                }
                Step::Again => self.state.sleep(AGAIN_AFTER).await,
            }
        }
    }

    async fn look(&mut self, row: Option<(u64, SessionRow)>, was_offered: bool) -> Step {
        let Some((revision, row)) = row else {
            let step = if self.wanted.is_kept {
                self.own((0, &SessionRow::default()), 0).await
            } else {
                Step::Done(SessionVerdict::GoesOn)
            };
            return self.tell_over(step);
        };
        if *row.node == *self.fleet.node() {
            let step = self.own((revision, &row), row.moves + u64::from(was_offered)).await;
            return self.tell_over(step);
        }
        if self.wanted.is_clean {
            return self.begin_anew(revision, &row, true).await;
        }
        match take(self, revision, &row).await {
            Brought::Whole => Step::Done(SessionVerdict::GoesOn),
            Brought::Nothing => self.begin_anew(revision, &row, false).await,
            Brought::Silent => {
                let device = self.device();
                tracing::warn!(
                    device,
                    node = &*row.node,
                    "the gateway that has the session does not answer, and its row does not tell what it is: it begins anew"
                );
                count(&self.state.sessions().counters.begun_anew);
                self.begin_anew(revision, &row, false).await
            }
            Brought::Late => Step::Done(SessionVerdict::ComesAgain),
            Brought::Other => Step::Again,
        }
    }

    /// The row says that the session is here, and what it is to be like.
    async fn own(&self, (revision, before): (u64, &SessionRow), moves: u64) -> Step {
        let Some(head) = &self.wanted.head else { return Step::Done(SessionVerdict::GoesOn) };
        let here = if self.wanted.is_clean { Ok(None) } else { rows::outline(&**self.state, self.device()).await };
        let Ok(here) = here else { return Step::Again };
        let standing = here.as_ref().map_or(Standing::Even, |outline| outline.standing);
        let is_ours = *before.node == *self.fleet.node();
        let from = if is_ours { rows::from(before, standing) } else { None };
        let goes_with_row = standing == Standing::Behind && from.is_some();
        let row = rows::row(&**self.state, self.fleet, moves, to_be(head, here), from);
        if rows::write_over(&**self.state, self.fleet, self.device(), (revision, before), row).await == Kept::Again {
            tracing::debug!("the row of a session may not be written: it is looked at");
            return Step::Again;
        }
        if goes_with_row {
            self.state.ask(self.device(), SessionOrder::Placed(0)).await;
        }
        Step::Done(SessionVerdict::GoesOn)
    }

    /// What another gateway has of the session is void from now on, and so is what an earlier time has left here. `ends`: as its device
    /// wants.
    async fn begin_anew(&mut self, revision: u64, row: &SessionRow, ends: bool) -> Step {
        if !self.forget_here().await {
            return Step::Again;
        }
        // Should the answer be lost it is found later that the row says so.
        self.note_over(&row.node, ends);
        if !self.claim_row(revision, row).await {
            return Step::Again;
        }
        self.tell_over(Step::Done(SessionVerdict::GoesOn))
    }

    /// The row says what it is to say: who has nothing of the session any more is told.
    fn tell_over(&mut self, step: Step) -> Step {
        if matches!(step, Step::Done(_))
            && let Some((node, ends)) = self.over.take()
        {
            tell(self.state, self.device(), &node, ends);
        }
        step
    }

    /// What was written over a row of this gateway may have arrived, whatever comes to stand there.
    pub(super) fn note_over(&mut self, node: &str, ends: bool) {
        if self.over.as_ref().is_some_and(|(known, _)| **known != *node) {
            self.tell_in_doubt();
        }
        self.over = Some((node.into(), ends));
    }

    /// Whoever may have lost the session, to this gateway or to one that has it from here by now, is told: it looks at the row itself. Its will
    /// is not published, which would be wrong where it went on.
    fn tell_in_doubt(&mut self) {
        if let Some((node, _)) = self.over.take() {
            tell(self.state, self.device(), &node, false);
        }
    }

    /// The row is this gateway's, or nobody's where the session ends with its connection. `false`: it was another one, or nobody knows.
    async fn claim_row(&self, revision: u64, row: &SessionRow) -> bool {
        if self.wanted.is_kept {
            matches!(self.own((revision, row), row.moves + 1).await, Step::Done(_))
        } else {
            self.fleet.remove_session_row(revision).await == Ok(true)
        }
    }

    /// What an earlier time has left here goes, without a word. `false`: not now.
    pub(super) async fn forget_here(&self) -> bool {
        let order = SessionOrder::Forget { key: None, ends: false };
        match self.state.ask(self.device(), order).await {
            Some(Outcome::Delivered | Outcome::Offline) => true,
            // One that nobody waited for has begun anew already: nothing of an earlier time is left.
            Some(Outcome::Refused(why)) => why == STILL_CONNECTED,
            _ => false,
        }
    }

    /// Whether the device still waits.
    pub(super) async fn is_there(&self) -> bool {
        let Some(connection) = self.wanted.connection else { return true };
        let asked = self.state.ask(self.device(), SessionOrder::Waits(connection)).await;
        asked != Some(Outcome::Offline)
    }
}

/// The session that a device is to have: as it says by its CONNECT, and with what it has subscribed to.
pub(super) fn to_be(head: &Head, here: Option<Outline>) -> Session {
    let subscriptions = here.map(|outline| outline.session.subscriptions).unwrap_or_default();
    let (messages, outstanding, received) = (Vec::new(), Vec::new(), Vec::new());
    Session { head: head.clone(), subscriptions, messages, outstanding, received }
}

/// Tells a gateway that lives, until it has heard, that it has a session no more. If it never hears, it finds so in the row.
pub(super) fn tell<A: Around>(state: &Arc<A>, device: &str, node: &str, ends: bool) {
    let (state, device, node) = (Arc::clone(state), Box::<str>::from(device), Box::<str>::from(node));
    Arc::clone(&state).spawn(async move {
        let since = state.now();
        for told in 0..TELLS {
            let Some(fleet) = state.fleet() else { return };
            let mut is_live = fleet.is_live(&node).await;
            if is_live == Ok(false) && state.now() < since + LEASE_KNOWN_FOR {
                // What was read before that is no answer: it may have been back by then, and have looked at its sessions too soon.
                state.sleep(LEASE_KNOWN_FOR).await;
                is_live = fleet.is_live(&node).await;
            }
            if is_live == Ok(false) {
                return;
            }
            let answer = fleet.ask_session(&node, &device, SessionAsk::Forget { ends }).await;
            if answer.is_ok_and(|answer| Reply::parse(&answer) == Ok(Reply::Heard)) {
                return;
            }
            state.sleep(TELL_AFTER * (1 << told)).await;
        }
    });
}

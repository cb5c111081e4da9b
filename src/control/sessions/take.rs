//! A session comes from the gateway that has it, in steps between any two of which either may end:
//!
//! | step | the session is | should this gateway end now | should the other one end now |
//! | --- | --- | --- | --- |
//! | its head and filters are here, and it takes messages, hidden | the other's | what is hidden is forgotten at the next start | nothing comes any more: see `revive` |
//! | all published here before that is in the stream; all in the stream, and published there, is with it there | the other's | the same | the same |
//! | its messages are here, piece by piece, each durable | the other's | the same | the same |
//! | it is revealed: durable, under its name | the other's | the copy is replaced when the device comes, for the row says whose it is | it is here, whole: the row is written |
//! | the row says that it is here | this one's | it is here | it is here, and void there |
//! | the other one has forgotten it | this one's | it is here | |

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::SemaphorePermit;

use super::around::{Around, Neighbours, within};
use super::claim::{AGAIN_AFTER, Claim, HANDOVER_MAX, tell, to_be};
use super::revive::revive;
use super::{count, fence, rows};
use crate::fleet::{Cursor, Reply, RowChange, SessionAsk, SessionRow};
use crate::image::Session;
use crate::link::{NO_ROOM_FOR_SESSION, Outcome, SessionOrder, Standing};
use bytes::Bytes;

/// How often it is looked whether a session has become another's that could not be made this gateway's,
const LOOKS: u32 = 8;
/// and how much later at first; twice as much each time.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// How often a gateway that is silent is asked again,
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// and how often whoever waits for one looks whether it has its lease: that is read once in a second, for all of them.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Brought {
    /// It is here, all of it, and this gateway's.
    Whole,
    /// The other gateway has none.
    Nothing,
    /// The other gateway does not answer, or has died, and the row does not tell enough of it.
    Silent,
    /// It answers, and the session could not be brought here in time; or its device does not wait any more.
    Late,
    /// The row has changed, or the session is another one by now.
    Other,
}

/// Takes the session of a device from the gateway that its row names or, should that one not answer, begins it again.
pub(super) async fn take<A: Around>(claim: &mut Claim<'_, A>, revision: u64, row: &SessionRow) -> Brought {
    let mut taking = Taking { claim, node: &row.node, step: "asked for", from: row.from.clone() };
    let (mut brought, mut is_revived) = (taking.bring().await, false);
    if brought == Err(Brought::Silent) {
        taking.give_up().await;
        (brought, is_revived) = (revive(&mut taking, row).await, true);
    }
    match brought {
        Ok(messages) => {
            let brought = taking.own(revision, row).await;
            if brought == Brought::Whole {
                let counters = &claim.state.sessions().counters;
                count(if is_revived { &counters.revived } else { &counters.taken });
                counters.messages.fetch_add(messages, std::sync::atomic::Ordering::Relaxed);
                claim.over = claim.over.take().filter(|(node, _)| *node != row.node);
                tell(claim.state, claim.device(), &row.node, false);
            } else if brought == Brought::Late {
                drop_if_taken(claim.state, claim.device(), revision);
            }
            brought
        }
        Err(brought) => {
            let (device, node, step) = (taking.claim.device(), taking.node, taking.step);
            tracing::debug!(device, node, step, ?brought, "a session was not brought here");
            taking.give_up().await;
            brought
        }
    }
}

/// A session is here, whole, and it is not known whether its row comes to say so: its device has gone, or NATS is silent. What was written over
/// this revision may arrive as long as the row is at it. When the row is another gateway's by then the copy goes, which would take messages
/// for nobody. What is not known by the end is looked at when this gateway joins the fleet again (`verify`).
fn drop_if_taken<A: Around>(state: &Arc<A>, device: &str, revision: u64) {
    if !state.sessions().doubt(device, revision) {
        return;
    }
    let (state, device) = (Arc::clone(state), Box::<str>::from(device));
    Arc::clone(&state).spawn(async move {
        for looked in 0..LOOKS {
            state.sleep(LOOK_AFTER * (1 << looked)).await;
            if is_settled(&*state, &device).await {
                break;
            }
        }
        state.sessions().doubted().remove(&device);
    });
}

/// Whether it is known by now whose a session is, and a copy that is another's is gone.
async fn is_settled<A: Around>(state: &A, device: &str) -> bool {
    let (Some(fleet), Some(_held)) = (state.fleet(), state.sessions().try_hold(device)) else { return false };
    let row = fleet.session_row(device).await;
    // After that: it may have been tried once more since.
    let Some(revision) = state.sessions().doubted().get(device).copied() else { return true };
    match row {
        Ok(Some((_, row))) if *row.node == *fleet.node() => true,
        Ok(Some((now, _))) if now == revision => false,
        Ok(_) => {
            let outcome = state.ask(device, SessionOrder::Forget { key: None, ends: false }).await;
            matches!(outcome, Some(Outcome::Delivered | Outcome::Offline))
        }
        Err(why) => {
            tracing::debug!(why, "whose a session is cannot be read: it is looked at again");
            false
        }
    }
}

/// A session on its way here.
pub(super) struct Taking<'a, 'b, A: Around> {
    pub(super) claim: &'a mut Claim<'b, A>,
    /// The gateway that has it.
    node: &'a str,
    /// What it is at, for whoever asks why it took so long.
    pub(super) step: &'static str,
    /// From behind which place of the stream on what has come with it is to be read; `None`: from its gateway's cursor.
    pub(super) from: Option<Cursor>,
}

impl<'b, A: Around> Taking<'_, 'b, A> {
    /// All of it, hidden and then revealed. How many messages came.
    async fn bring(&mut self) -> Result<u64, Brought> {
        let mut key = self.offered(SessionAsk::Offer).await?;
        // Whoever waits for a place waits no longer than for anything else; it is asked again then, for much may have changed.
        let _place = if let Ok(place) = self.claim.state.sessions().takes.try_acquire() {
            place
        } else {
            let place = self.place().await?;
            key = self.offered(SessionAsk::Offer).await?;
            place
        };
        self.step = "its head is read";
        let session = self.head(key).await?;
        self.step = "it begins to take messages here";
        self.order(SessionOrder::Adopt(Box::new(session))).await?;
        self.step = "what was published here before is on its way into the stream";
        while !fence::all_sent(&**self.claim.state).await {
            self.wait().await?;
        }
        self.step = "what was published until now is on its way to it";
        if self.offered(SessionAsk::Cut).await? != key {
            return Err(Brought::Other);
        }
        self.step = "its messages are read";
        let (mut after, mut count) = (0, 0);
        loop {
            let piece = self.image(SessionAsk::Messages { after }, key).await?;
            let Some(last) = piece.messages.last() else { break };
            after = last.number;
            count += piece.messages.len() as u64;
            self.order(SessionOrder::Adopted(piece.messages)).await?;
        }
        self.step = "it is made whole";
        self.order(SessionOrder::Reveal).await?;
        Ok(count)
    }

    /// The row says so. A copy that is another's after all goes again.
    async fn own(&mut self, revision: u64, row: &SessionRow) -> Brought {
        let to_be = loop {
            match self.to_be(row).await {
                Ok(to_be) => break to_be,
                Err(why) => {
                    tracing::debug!(why, "what a session is to have in its row is not known: it is tried again");
                }
            }
            if let Err(late) = self.wait().await {
                return late;
            }
        };
        loop {
            let (fleet, device) = (self.claim.fleet, self.claim.device());
            let is_written = if let Some(row) = &to_be {
                fleet.write_row(device, revision, row).await
            } else {
                match fleet.remove_session_row(revision).await {
                    Ok(true) => RowChange::Done(0),
                    Ok(false) => RowChange::Conflict,
                    Err(why) => RowChange::Lost(why),
                }
            };
            match is_written {
                RowChange::Done(_) => return Brought::Whole,
                RowChange::Conflict => {}
                // Should it have arrived, and somebody have written over it before that is found, nobody else tells.
                RowChange::Lost(_) => self.claim.note_over(self.node, false),
            }
            match self.claim.fleet.session_row(self.claim.device()).await {
                // Its answer was lost.
                Ok(Some((_, now))) if *now.node == *self.claim.fleet.node() => return Brought::Whole,
                Ok(None) if !self.claim.wanted.is_kept => return Brought::Whole,
                Ok(Some((now, _))) if now == revision => {}
                Ok(_) => {
                    self.claim.forget_here().await;
                    return Brought::Other;
                }
                Err(why) => tracing::debug!(why, "whose a session is cannot be read: it is tried again"),
            }
            if let Err(late) = self.wait().await {
                // It may be this gateway's, and may not: whichever says so when the device comes again.
                return late;
            }
        }
    }

    /// The row of the session that is here now; `None`: it ends with its connection. What has come with it is to be read from where its
    /// gateway said, which that one still holds.
    async fn to_be(&self, before: &SessionRow) -> Result<Option<SessionRow>, String> {
        let Claim { state, fleet, wanted, .. } = &*self.claim;
        let Some(head) = wanted.head.as_ref().filter(|_| wanted.is_kept) else { return Ok(None) };
        let here =
            rows::outline(&***state, &wanted.device).await.map_err(|()| "its shard does not answer".to_owned())?;
        let from = match here.as_ref().map(|outline| outline.standing) {
            Some(Standing::Placed) => {
                let known = match &self.from {
                    Some(from) => Some(from.clone()),
                    None => fleet.session_cursor(self.node).await?,
                };
                // A gateway before this version has said nothing: all that there is.
                Some(known.unwrap_or_default())
            }
            _ => None,
        };
        Ok(Some(rows::row(&***state, *fleet, before.moves + 1, to_be(head, here), from)))
    }

    /// A place among those that come at a time. The time for that is over then, and its own begins: in a storm all wait for about as long as
    /// they may, and whoever had no more than what is left of it would come to nothing, having taken a place from somebody else.
    pub(super) async fn place(&mut self) -> Result<SemaphorePermit<'b>, Brought> {
        let state = self.claim.state;
        let place = within(&**state, self.claim.until, state.sessions().takes.acquire()).await;
        let place = place.ok_or(Brought::Late)?.expect("it is never closed");
        if !self.claim.is_there().await {
            return Err(Brought::Late);
        }
        self.goes_on();
        Ok(place)
    }

    /// As long as it comes, it is waited for.
    pub(super) fn goes_on(&mut self) {
        self.claim.until = self.claim.state.now() + HANDOVER_MAX;
    }

    async fn give_up(&self) {
        let _ = self.claim.state.ask(self.claim.device(), SessionOrder::Abandon).await;
    }

    // --- The other gateway --------------------------------------------------------------------------------------------

    /// Under which key it is offered.
    async fn offered(&mut self, ask: SessionAsk) -> Result<u64, Brought> {
        loop {
            match self.ask(ask.clone()).await?.1 {
                Some(Reply::Session { key }) => return Ok(key),
                Some(Reply::Offline) => return Err(Brought::Nothing),
                // It is connected there, which ends; or it cannot be given now.
                _ => self.wait().await?,
            }
        }
    }

    /// Its head, with all of its subscriptions.
    async fn head(&mut self, key: u64) -> Result<Session, Brought> {
        let mut session = self.image(SessionAsk::Head { from: 0 }, key).await?;
        loop {
            let more = self.image(SessionAsk::Head { from: session.subscriptions.len() }, key).await?;
            if more.subscriptions.is_empty() {
                return Ok(session);
            }
            session.subscriptions.extend(more.subscriptions);
        }
    }

    async fn image(&mut self, ask: SessionAsk, key: u64) -> Result<Session, Brought> {
        let (bytes, reply) = self.ask(ask).await?;
        if reply.is_some() {
            // It is not offered any more: it is asked for again, from the beginning.
            let goes_on = self.claim.is_there().await && self.claim.state.now() < self.claim.until;
            return Err(if goes_on { Brought::Other } else { Brought::Late });
        }
        let session = Session::decode(&bytes).map_err(|error| {
            tracing::warn!(node = self.node, %error, "a session from another gateway is none");
            Brought::Late
        })?;
        if session.head.key.0 != key {
            return Err(Brought::Other);
        }
        self.goes_on();
        Ok(session)
    }

    /// One question, asked until it has an answer: a reply, or none: an image.
    async fn ask(&mut self, ask: SessionAsk) -> Result<(Bytes, Option<Reply>), Brought> {
        if let Some(answer) = self.ask_once(&ask).await? {
            return Ok(answer);
        }
        let (state, until) = (self.claim.state, self.claim.state.now() + HANDOVER_MAX);
        // One asks on, of all whose sessions it has.
        let probe = within(&**state, until, state.sessions().probes.lock());
        let Some(_probe) = self.while_it_lives(probe).await? else { return Err(Brought::Silent) };
        while state.now() < until {
            if !self.claim.fleet.is_connected() || !self.claim.is_there().await {
                return Err(Brought::Late);
            }
            if let Some(answer) = self.ask_once(&ask).await? {
                return Ok(answer);
            }
            state.sleep(PROBE_EVERY).await;
        }
        Err(Brought::Silent)
    }

    /// `None`: it says nothing.
    async fn ask_once(&self, ask: &SessionAsk) -> Result<Option<(Bytes, Option<Reply>)>, Brought> {
        let asked = self.claim.fleet.ask_session(self.node, self.claim.device(), ask.clone());
        let answer = self.while_it_lives(asked).await?;
        Ok(answer.ok().map(|bytes| {
            let reply = Reply::parse(&bytes).ok();
            (bytes, reply)
        }))
    }

    /// What is waited for as long as the other gateway has a lease: without one it is dead, and nobody waits for it or asks it anything.
    async fn while_it_lives<T>(&self, waited: impl Future<Output = T>) -> Result<T, Brought> {
        let Claim { state, fleet, .. } = &*self.claim;
        if fleet.is_live(self.node).await == Ok(false) {
            return Err(Brought::Silent);
        }
        let dies = async {
            loop {
                state.sleep(LOOK_EVERY).await;
                if fleet.is_live(self.node).await == Ok(false) {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            done = waited => Ok(done),
            () = dies => Err(Brought::Silent),
        }
    }

    // --- Here ---------------------------------------------------------------------------------------------------------

    pub(super) async fn order(&mut self, order: SessionOrder) -> Result<(), Brought> {
        match self.claim.state.ask(self.claim.device(), order).await {
            Some(Outcome::Delivered) => Ok(()),
            Some(Outcome::Refused(why)) if why == NO_ROOM_FOR_SESSION => {
                tracing::warn!(device = self.claim.device(), node = self.node, "a session is not taken: {why}");
                Err(Brought::Late)
            }
            _ => Err(Brought::Late),
        }
    }

    /// A moment, as long as there is time and the device waits.
    pub(super) async fn wait(&self) -> Result<(), Brought> {
        if self.claim.state.now() >= self.claim.until
            || !self.claim.fleet.is_connected()
            || !self.claim.is_there().await
        {
            return Err(Brought::Late);
        }
        self.claim.state.sleep(AGAIN_AFTER).await;
        Ok(())
    }
}

//! Who is kept out of the fleet: what its bucket says becomes so here, and what other gateways say does at once.

use std::time::{Duration, Instant, SystemTime};

use tokio::sync::oneshot;

use super::State;
use super::blocks::{Block, BlockError, BlockOrder, BlockRequest, BlockSource};
use crate::fleet::{Blocked, Fleet};
use crate::link::Subject;

/// These and no others are kept out of the fleet, but for those about whom something was changed after so many changes. `None`: the
/// bucket was made anew, and is told what is known here. Whether it was done.
pub(super) async fn take(state: &State, all: Option<Vec<Blocked>>, since: u64) -> bool {
    let Some(fleet) = &state.fleet else { return false };
    let Some(all) = all else { return write_back(state, fleet).await };
    let today = SystemTime::now();
    let left = |(subject, until): Blocked| match until {
        None => Some((subject, None)),
        Some(until) => until.duration_since(today).ok().map(|span| (subject, Some(span))),
    };
    let all = all.into_iter().filter_map(left).collect();
    // Nothing is waited for between these two: whoever is blocked or let in meanwhile is known, or comes behind it.
    let except = fleet.touched_since(since);
    match put(state, BlockOrder::Fleet { all, except }) {
        // What cannot be kept holds all the same; the log has it.
        Some(answer) => matches!(answer.await, Ok(Ok(_) | Err(BlockError::NotKept(_)))),
        None => false,
    }
}

/// Tells a bucket that was made anew what its fleet keeps out, as far as it is known here.
async fn write_back(state: &State, fleet: &Fleet) -> bool {
    let Some(answer) = put(state, BlockOrder::List) else { return false };
    let Ok(Ok(blocks)) = answer.await else { return false };
    let mut written = 0_u32;
    for Block { subject, until, .. } in blocks.into_iter().filter(|block| block.source == BlockSource::Fleet) {
        let until = until.map(|until| state.clock.unix_ms(until).max(0) as u64);
        let until = until.map(|ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
        let deadline = Instant::now() + super::fleet::ANSWER_MAX;
        if fleet.write_block(&(subject, until), deadline).await.is_err() {
            return false;
        }
        written += 1;
    }
    if written > 0 {
        tracing::warn!(
            written,
            "the bucket of those who are kept out of the fleet was made anew: they were written again"
        );
    }
    true
}

/// Keeps somebody out because the fleet says so, from now on.
pub(super) async fn block(state: &State, (subject, until): Blocked) -> Result<(), BlockError> {
    let span = match until.map(|until| until.duration_since(SystemTime::now())) {
        None => None,
        Some(Ok(span)) => Some(span),
        // It has ended on its way.
        Some(Err(_)) => return Ok(()),
    };
    change(state, &subject.clone(), BlockOrder::Add { subject, span, source: BlockSource::Fleet }).await
}

/// Lets somebody in again.
pub(super) async fn unblock(state: &State, subject: Subject) -> Result<(), BlockError> {
    change(state, &subject.clone(), BlockOrder::Remove { subject }).await
}

async fn change(state: &State, subject: &Subject, order: BlockOrder) -> Result<(), BlockError> {
    let busy = || BlockError::NotKept("the gateway has too much to do, or ends".to_owned());
    if let Some(fleet) = &state.fleet {
        fleet.touch_block(subject);
    }
    let answer = put(state, order).ok_or_else(busy)?;
    answer.await.map_err(|_| busy())?.map(drop)
}

fn put(state: &State, order: BlockOrder) -> Option<oneshot::Receiver<Result<Vec<Block>, BlockError>>> {
    let (answer, answered) = oneshot::channel();
    state.blocks.try_send(BlockRequest { order, answer }).ok().map(|()| answered)
}

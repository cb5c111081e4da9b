//! The session of a gateway that has died: begun again from its row, which has what its device has subscribed to, and from the fleet's
//! stream, which has what was published (decision 0032).
//!
//! | step | should this gateway end now |
//! | --- | --- |
//! | its head and filters are here, from the row, and it takes messages, hidden | what is hidden is forgotten at the next start; the row is as it was |
//! | all published here before that is in the stream: its end by then is how far it is read | the same |
//! | what it had not, as far as the stream has it, is here, piece by piece, each durable | the same |
//! | it is revealed, and the row says that it is here | as with one that is taken from a gateway that lives (`take`) |
//!
//! What the dead one has of it is void: when it is back it finds another's name in the row.

use super::around::{Around, Neighbours, Pieces};
use super::claim::{Claim, HANDOVER_MAX};
use super::missed::{Room, Wants};
use super::take::{Brought, Taking};
use super::{count, fence};
use crate::fleet::{Cursor, Published, SessionRow, Span, StreamEnds};
use crate::image::{Session, Subscription};
use crate::link::{Cover, SessionOrder};

/// All identifiers by the golden ratio.
const IDENTIFIERS_APART: u64 = 40_503;

/// Begins the session again that the row tells of. How many messages came.
pub(super) async fn revive<A: Around>(taking: &mut Taking<'_, '_, A>, row: &SessionRow) -> Result<u64, Brought> {
    let Some(mut session) = outline_of(taking.claim.device(), row) else { return Err(Brought::Silent) };
    let state = taking.claim.state;
    taking.claim.until = state.now() + HANDOVER_MAX;
    let _place = taking.place().await?;
    session.head.last_packet = first_packet(row.moves + 1);
    let subscriptions = session.subscriptions.clone();
    taking.step = "it begins to take messages here";
    taking.order(SessionOrder::Adopt(Box::new(session))).await?;
    taking.step = "what was published here before is on its way into the stream";
    while !fence::all_sent(&**taking.claim.state).await {
        taking.wait().await?;
    }
    taking.goes_on();
    taking.step = "what the stream has for it is read";
    let brought = bring(taking, row, &subscriptions).await?;
    taking.step = "it is made whole";
    taking.order(SessionOrder::Reveal).await?;
    Ok(brought)
}

/// Behind which packet identifier a session sends that has moved so often. Under which ones the dead gateway had sent something last nobody knows,
/// and the device takes what comes under one that it still waits for PUBREL of as what it has, whichever gateway that was. So they begin far from
/// where the last ones did: any few in a row lie apart as evenly as may be.
fn first_packet(moves: u64) -> u16 {
    moves.wrapping_mul(IDENTIFIERS_APART) as u16
}

/// What its row has of it; `None`: nothing that it could be begun with again.
fn outline_of(device: &str, row: &SessionRow) -> Option<Session> {
    row.outline().filter(|session| *session.head.name == *device)
}

/// What it had not when its gateway died, as far as the stream has it.
async fn bring<A: Around>(
    taking: &mut Taking<'_, '_, A>,
    row: &SessionRow,
    subscriptions: &[Subscription],
) -> Result<u64, Brought> {
    let (state, fleet, device) = (taking.claim.state, taking.claim.fleet, taking.claim.wanted.device.clone());
    let limits = state.limits();
    let wants = Wants::new(&device, subscriptions, limits.topic_levels);
    let cover = wants.cover();
    if !fleet.has_stream() || cover.is_empty() {
        return Ok(0);
    }
    let (from, ends) = loop {
        match where_it_was(taking.claim, row).await {
            Ok(found) => break found,
            Err(why) => tracing::debug!(why, "what a session has missed cannot be read: it is tried again"),
        }
        taking.wait().await?;
    };
    taking.goes_on();
    let (after, gone) = ends.behind(from.as_ref());
    let mut room = Room::new(limits.session_messages, limits.session_bytes, after);
    let mut reader =
        Reader { cover, span: Span { after, upto: ends.last, is_measured: false }, missed: None, is_over: false };
    if !room.has_for(reader.pending(taking).await?, limits.packet_bytes) {
        reader.measure(taking, &wants, &mut room).await?;
    }
    reader.restart(room.after());
    // Should this gateway die too, it is read from there again.
    taking.from = Some(Cursor { stream: ends.stream, position: room.after() });
    let mut brought = 0;
    while let Some(piece) = reader.next(taking).await? {
        let now_ms = state.unix_ms();
        let is_for_it =
            |published: &Published| wants.bytes_of(published, now_ms).is_some_and(|bytes| !room.never_has(bytes));
        let messages: Vec<_> =
            piece.into_iter().filter(is_for_it).filter_map(|one| wants.message_of(one, now_ms)).collect();
        if !messages.is_empty() {
            brought += messages.len() as u64;
            taking.order(SessionOrder::Adopted(messages)).await?;
        }
    }
    note(taking.claim, (gone, room.given_way()));
    Ok(brought)
}

/// Behind which place of the stream it needs what is there, and what is there.
async fn where_it_was<A: Around>(
    claim: &Claim<'_, A>,
    row: &SessionRow,
) -> Result<(Option<Cursor>, StreamEnds), String> {
    let from = match &row.from {
        Some(from) => Some(from.clone()),
        None => claim.fleet.session_cursor(&row.node).await?,
    };
    Ok((from, claim.fleet.stream_ends().await?))
}

fn note<A: Around>(claim: &Claim<'_, A>, (gone, given_way): (u64, u64)) {
    let (counters, device) = (&claim.state.sessions().counters, claim.device());
    if gone > 0 {
        // How many of these were for it nobody knows.
        count(&counters.holes);
        tracing::warn!(
            device,
            gone,
            "the fleet's stream let messages go before a session was begun again with them: give it more room or a longer age (uplink.retention)"
        );
    }
    if given_way > 0 {
        counters.given_way.fetch_add(given_way, std::sync::atomic::Ordering::Relaxed);
        tracing::warn!(
            device,
            given_way,
            "the oldest messages of a session that is begun again have no room in it (limits.session_messages, limits.session_bytes)"
        );
    }
}

/// A span of the stream, read through whatever becomes of the connection to it.
struct Reader<M> {
    cover: Cover,
    span: Span,
    missed: Option<M>,
    /// The stream's leader has no more.
    is_over: bool,
}

impl<M: Pieces> Reader<M> {
    fn restart(&mut self, after: u64) {
        let is_new = self.span.is_measured || self.span.after != after;
        (self.span.after, self.span.is_measured) = (after, false);
        if is_new {
            (self.missed, self.is_over) = (None, false);
        }
    }

    /// How many it can be.
    async fn pending<A: Around<Fleet: Neighbours<Missed = M>>>(
        &mut self,
        taking: &mut Taking<'_, '_, A>,
    ) -> Result<u64, Brought> {
        Ok(self.open(taking).await?.map_or(0, |missed| missed.pending()))
    }

    /// How much room all of it takes.
    async fn measure<A: Around<Fleet: Neighbours<Missed = M>>>(
        &mut self,
        taking: &mut Taking<'_, '_, A>,
        wants: &Wants<'_>,
        room: &mut Room,
    ) -> Result<(), Brought> {
        (self.span.is_measured, self.missed, self.is_over) = (true, None, false);
        while let Some(piece) = self.next(taking).await? {
            let state = taking.claim.state;
            let now_ms = state.unix_ms();
            for published in piece {
                if let Some(bytes) = wants.bytes_of(&published, now_ms) {
                    room.take(published.at, bytes);
                }
            }
        }
        Ok(())
    }

    /// The next piece; `None`: that was all.
    async fn next<A: Around<Fleet: Neighbours<Missed = M>>>(
        &mut self,
        taking: &mut Taking<'_, '_, A>,
    ) -> Result<Option<Vec<Published>>, Brought> {
        loop {
            let Some(missed) = self.open(taking).await? else { return Ok(None) };
            match missed.next().await {
                Ok(piece) => {
                    self.span.after = missed.last();
                    if !taking.claim.is_there().await {
                        return Err(Brought::Late);
                    }
                    taking.goes_on();
                    let Some(piece) = piece else {
                        // Whether that was all the stream's leader knows.
                        self.missed = None;
                        continue;
                    };
                    return Ok(Some(piece));
                }
                Err(why) => tracing::debug!(why, "what a session has missed is read again from where it was"),
            }
            self.missed = None;
            taking.wait().await?;
        }
    }

    async fn open<A: Around<Fleet: Neighbours<Missed = M>>>(
        &mut self,
        taking: &mut Taking<'_, '_, A>,
    ) -> Result<Option<&mut M>, Brought> {
        while self.missed.is_none() {
            if self.is_over || self.span.after >= self.span.upto {
                return Ok(None);
            }
            match taking.claim.fleet.missed(&self.cover, self.span).await {
                Ok(missed) => (self.is_over, self.missed) = (missed.is_none(), missed),
                Err(why) => {
                    tracing::debug!(why, "what a session has missed cannot be read: it is tried again");
                    taking.wait().await?;
                }
            }
        }
        Ok(self.missed.as_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_of_eight_gateways_in_a_row_are_thousands_apart() {
        for before in 0..1_000 {
            for later in before + 1..before + 8 {
                let apart = first_packet(later).wrapping_sub(first_packet(before));
                assert!(apart.min(apart.wrapping_neg()) > 3_000, "{before} {later}");
            }
        }
    }
}

//! What other gateways want of sessions that are here.
//!
//! A session that is offered stays as it is and goes on taking messages, until the other gateway says that the row is its own. If the
//! device comes back here before, the offer is void: its claim writes the row anew, so that the other one finds another revision.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::around::{Around, Neighbours};
use super::{OFFERED_MAX, count, fence};
use crate::fleet::{Reply, SessionAsk};
use crate::image::{Head, Session, SessionKey, Subscription};
use crate::link::{Cut, Outcome, STILL_CONNECTED, SessionOrder};

/// Bytes of subscriptions in one answer, and one more.
const HEAD_BYTES: usize = 128 << 10;
/// Bytes of messages in one answer, and one message more.
const PIECE_BYTES: usize = 128 << 10;

/// Where there are too many offers, those give way about which nobody has asked for so long: whoever was to take them has died.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(1);

/// A session that another gateway is about to take.
#[derive(Clone)]
pub(super) struct Offered {
    head: Head,
    /// The latest message that goes with it.
    cut: u64,
    /// When it was last asked about.
    asked: Instant,
}

/// Answers.
pub(in super::super) async fn serve<A: Around>(state: &A, device: &str, ask: SessionAsk) -> Bytes {
    match ask {
        SessionAsk::Offer => offer(state, device).await.to_bytes(),
        SessionAsk::Cut if fence::all_taken(state).await => offer(state, device).await.to_bytes(),
        SessionAsk::Cut => Reply::Busy.to_bytes(),
        SessionAsk::Head { from } => head(state, device, from).await.unwrap_or_else(|| Reply::Busy.to_bytes()),
        SessionAsk::Messages { after } => {
            messages(state, device, after).await.unwrap_or_else(|| Reply::Busy.to_bytes())
        }
        SessionAsk::Forget { ends } => forget(state, device, ends).await.to_bytes(),
    }
}

async fn offer<A: Around>(state: &A, device: &str) -> Reply {
    let Some(_held) = state.sessions().try_hold(device) else { return Reply::Busy };
    if !make_room(&mut state.sessions().offered(), device, state.now()) {
        return Reply::Busy;
    }
    let cut = Cut::default();
    match state.ask(device, SessionOrder::Offer { cut: cut.clone() }).await {
        Some(Outcome::Delivered) => {}
        Some(Outcome::Offline) => return Reply::Offline,
        Some(Outcome::Refused(why)) if why == STILL_CONNECTED => return Reply::Unacknowledged,
        _ => return Reply::Busy,
    }
    let Some(session) = state.stored(device).await else { return Reply::Busy };
    let key = session.head.key.0;
    let offered = Offered { head: session.head, cut: cut.number(), asked: state.now() };
    state.sessions().offered().insert(device.into(), offered);
    Reply::Session { key }
}

/// Whether there is room for this one beside those that are offered.
fn make_room(offered: &mut HashMap<Box<str>, Offered>, device: &str, now: Instant) -> bool {
    if offered.len() >= OFFERED_MAX {
        offered.retain(|_, one| now.duration_since(one.asked) < FORGOTTEN_AFTER);
    }
    offered.len() < OFFERED_MAX || offered.contains_key(device)
}

/// What was offered of this one, which is asked about.
fn look_up<A: Around>(state: &A, device: &str) -> Option<Offered> {
    let mut offered = state.sessions().offered();
    let one = offered.get_mut(device)?;
    one.asked = state.now();
    Some(one.clone())
}

async fn head<A: Around>(state: &A, device: &str, from: usize) -> Option<Bytes> {
    let key = look_up(state, device)?.head.key;
    let mut session = state.stored(device).await.filter(|session| session.head.key == key)?;
    let mut bytes = 0;
    let fits = |subscription: &Subscription| {
        let fits = bytes < HEAD_BYTES;
        bytes += subscription.filter.len() + 16;
        fits
    };
    session.subscriptions = session.subscriptions.into_iter().skip(from).take_while(fits).collect();
    if from > 0 {
        (session.outstanding, session.received) = (Vec::new(), Vec::new());
    }
    Some(encode(&session))
}

async fn messages<A: Around>(state: &A, device: &str, after: u64) -> Option<Bytes> {
    let Offered { head, cut, .. } = look_up(state, device)?;
    let messages = state.stored_messages(head.key, (after, cut), PIECE_BYTES).await?;
    let (subscriptions, outstanding, received) = (Vec::new(), Vec::new(), Vec::new());
    Some(encode(&Session { head, subscriptions, messages, outstanding, received }))
}

fn encode(session: &Session) -> Bytes {
    let mut bytes = Vec::new();
    session.encode(&mut bytes);
    bytes.into()
}

/// It goes, if the row says that it is no more this gateway's.
async fn forget<A: Around>(state: &A, device: &str, ends: bool) -> Reply {
    let (Some(fleet), Some(_held)) = (state.fleet(), state.sessions().try_hold(device)) else { return Reply::Busy };
    match fleet.session_row(device).await {
        // A late word: it has come back.
        Ok(Some((_, row))) if *row.node == *fleet.node() => return Reply::Heard,
        Ok(_) => {}
        Err(_) => return Reply::Busy,
    }
    let key = state.sessions().offered().remove(device).map(|offered| offered.head.key);
    match state.ask(device, SessionOrder::Forget { key, ends }).await {
        Some(Outcome::Delivered) => {
            count(&state.sessions().counters.given);
            Reply::Heard
        }
        Some(Outcome::Offline) => Reply::Heard,
        Some(Outcome::Refused(why)) if why == STILL_CONNECTED => {
            state.sessions().contest(device);
            Reply::Busy
        }
        _ => Reply::Busy,
    }
}

/// The device is back, or the session is gone: nothing is offered any more. Whether something was.
pub(super) fn withdraw<A: Around>(state: &A, device: &str) -> Option<SessionKey> {
    state.sessions().offered().remove(device).map(|offered| offered.head.key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Profile;

    fn offer(asked: Instant) -> Offered {
        let profile = Profile {
            version: 5,
            listener: "a".into(),
            keep_alive_s: 0,
            expiry_s: 60,
            receive_maximum: 1,
            packet_maximum: 1,
            alias_maximum: 0,
        };
        let head =
            Head { key: SessionKey(1), name: "a".into(), profile, away_since_ms: None, last_packet: 0, will: None };
        Offered { head, cut: 0, asked }
    }

    #[test]
    fn offers_that_nobody_asks_about_give_way_and_the_others_do_not() {
        let then = Instant::now();
        let mut offered = HashMap::new();
        for number in 0..OFFERED_MAX {
            assert!(make_room(&mut offered, "new", then));
            offered.insert(number.to_string().into(), offer(then));
        }
        assert!(!make_room(&mut offered, "new", then + FORGOTTEN_AFTER / 2));
        assert!(make_room(&mut offered, "7", then + FORGOTTEN_AFTER / 2), "it has its place already");
        offered.get_mut("7").unwrap().asked = then + FORGOTTEN_AFTER / 2;
        assert!(make_room(&mut offered, "new", then + FORGOTTEN_AFTER));
        assert_eq!(offered.keys().map(|key| &**key).collect::<Vec<_>>(), ["7"]);
    }
}

//! Sessions of gateways that have died, whose devices have come nowhere since: their wills are published, and they end, in time (decision
//! 0032). The living gateway whose name comes first looks at all rows: when a gateway has gone, when something is due that it has seen, and
//! now and then.
//!
//! ```text
//!   row of a dead gateway ── the will's delay is over ──▶ the row says so ──▶ published here, as the device's
//!                         └─ the session's time is over ─▶ the row is gone ──▶ its will, if nobody has published it
//! ```
//!
//! Whoever has changed the row publishes: were there two who look, the other one would find another revision. A device that comes takes its
//! row before that, or after: then it finds no session, or one without a will.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::around::{Around, Neighbours};
use super::count;
use crate::fleet::{RowChange, SessionRow, SweepPlan};
use crate::image::Head;

/// How often it is looked whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Rows that are looked at before a pause,
const SLICE: usize = 50;
/// and how long that is: 500 rows a second.
const PAUSE: Duration = Duration::from_millis(100);

/// What is to be done about a session whose gateway is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// Its will is to be published,
    Will,
    /// or it has ended, and with it its will is published, if that was not done before.
    End,
    /// The next thing is due in so long.
    In(Duration),
    /// Nothing ever is.
    Never,
}

/// What is due of a session; it may be willed already.
fn due(head: &Head, is_willed: bool, dead_for: Duration) -> Due {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let end = Some(head.profile.expiry_s).filter(|&expiry_s| expiry_s != u32::MAX).map(seconds);
    let will = head.will.as_ref().filter(|_| !is_willed).map(|will| seconds(will.delay_s));
    match (end, will) {
        (Some(end), _) if dead_for >= end => Due::End,
        (_, Some(will)) if dead_for >= will => Due::Will,
        (end, will) => {
            end.into_iter().chain(will).min().map_or(Due::Never, |first| Due::In(first.saturating_sub(dead_for)))
        }
    }
}

/// Looks, until the gateway ends.
pub(in super::super) async fn sweep<A: Around>(state: Arc<A>) {
    let Some(fleet) = state.fleet() else { return };
    let lease = state.lease();
    let mut plan = SweepPlan::new(lease, state.now().into_std());
    let mut again: Option<Instant> = None;
    loop {
        state.sleep(LOOK_EVERY).await;
        if !fleet.is_connected() {
            continue;
        }
        let (living, now) = (fleet.living(), state.now().into_std());
        let is_first = living.first().is_some_and(|first| *first == *fleet.node());
        let is_due = is_first && again.is_some_and(|again| again <= now);
        if !(plan.handle_survey(living.clone(), fleet.node(), now) || is_due) {
            continue;
        }
        again = match look_at_all(&*state, fleet, &living).await {
            Ok(next) => next.map(|next| state.now().into_std() + next),
            Err(why) => {
                tracing::debug!(why, "not all sessions of gateways that have died were looked at");
                Some(state.now().into_std() + lease)
            }
        };
    }
}

/// In how long something is due that was seen.
async fn look_at_all<A: Around>(
    state: &A,
    fleet: &A::Fleet,
    living: &BTreeSet<String>,
) -> Result<Option<Duration>, String> {
    let (mut revision, mut looked, mut next) = (0, 0, None::<Duration>);
    let mut dead: HashMap<Box<str>, Option<Duration>> = HashMap::new();
    while let Some((at, device, row)) = fleet.next_session(revision + 1).await? {
        revision = at;
        if let Some(device) = device.filter(|_| !living.contains(&*row.node)) {
            if !dead.contains_key(&row.node) {
                dead.insert(row.node.clone(), fleet.dead_for(&row.node).await?);
            }
            if let Some(dead_for) = dead[&row.node]
                && let Some(due) = look_at(state, fleet, &device, (at, row), dead_for).await?
            {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        looked += 1;
        if looked % SLICE == 0 {
            state.sleep(PAUSE).await;
        }
    }
    fleet.forget_dead(|node| living.contains(node) || dead.contains_key(node)).await?;
    Ok(next)
}

/// In how long the next thing is due of one.
async fn look_at<A: Around>(
    state: &A,
    fleet: &A::Fleet,
    device: &str,
    (revision, row): (u64, SessionRow),
    dead_for: Duration,
) -> Result<Option<Duration>, String> {
    // Whoever has to do with it here is about to take it.
    let Some(_held) = state.sessions().try_hold(device) else { return Ok(Some(dead_for)) };
    let Some(session) = row.outline() else { return Ok(None) };
    let head = session.head;
    let is_willed = row.is_willed;
    match due(&head, is_willed, dead_for) {
        Due::Never => Ok(None),
        Due::In(left) => Ok(Some(left)),
        Due::End => {
            if fleet.remove_session_row(revision).await? {
                count(&state.sessions().counters.expired);
                publish(state, fleet, head, is_willed).await?;
            }
            Ok(None)
        }
        Due::Will => {
            let willed = SessionRow { is_willed: true, ..row };
            match fleet.write_row(device, revision, &willed).await {
                RowChange::Done(_) => {
                    let left = due(&head, true, dead_for);
                    publish(state, fleet, head, false).await?;
                    Ok(if let Due::In(left) = left { Some(left) } else { None })
                }
                // Its device has come, or another one looks too.
                RowChange::Conflict => Ok(None),
                RowChange::Lost(why) => Err(why),
            }
        }
    }
}

/// Its will is published as its device's, unless that is somewhere with another session, or none.
async fn publish<A: Around>(state: &A, fleet: &A::Fleet, head: Head, is_willed: bool) -> Result<(), String> {
    let Head { name: device, profile, will: Some(will), .. } = head else { return Ok(()) };
    if is_willed {
        return Ok(());
    }
    // Without an answer it is not known to be elsewhere.
    if fleet.has_device(&device).await.unwrap_or(false) {
        fleet.note_will_withheld();
        return Ok(());
    }
    count(&state.sessions().counters.wills);
    state.publish_will(device, &profile.listener, *will);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::mqtt::QoS;
    use crate::image::{Profile, SessionKey, Will};

    fn head(expiry_s: u32, delay_s: Option<u32>) -> Head {
        let profile = Profile {
            version: 5,
            listener: "mqtt".into(),
            keep_alive_s: 0,
            expiry_s,
            receive_maximum: 1,
            packet_maximum: 1,
            alias_maximum: 0,
        };
        let publication = crate::image::Publication {
            topic: "t".into(),
            payload: bytes::Bytes::new(),
            qos: QoS::AtMostOnce,
            retain: false,
            properties: Box::default(),
            expires_ms: None,
        };
        let will = delay_s.map(|delay_s| Box::new(Will { publication, expiry_s: None, delay_s }));
        Head { key: SessionKey(1), name: "d".into(), profile, away_since_ms: None, last_packet: 0, will }
    }

    #[test]
    fn what_is_due_is_counted_from_when_its_gateway_died() {
        let after = Duration::from_secs;
        for (expiry_s, delay_s, is_willed, dead_for, expected) in [
            (u32::MAX, None, false, 1_000_000, Due::Never),
            (60, None, false, 0, Due::In(after(60))),
            (60, None, false, 59, Due::In(after(1))),
            (60, None, false, 60, Due::End),
            (u32::MAX, Some(0), false, 0, Due::Will),
            (u32::MAX, Some(0), true, 0, Due::Never),
            (60, Some(5), false, 2, Due::In(after(3))),
            (60, Some(5), false, 5, Due::Will),
            (60, Some(5), true, 5, Due::In(after(55))),
            (60, Some(5), true, 60, Due::End),
            // A will is published when its session ends, at the latest.
            (60, Some(100), false, 10, Due::In(after(50))),
            (60, Some(100), false, 60, Due::End),
        ] {
            let found = due(&head(expiry_s, delay_s), is_willed, after(dead_for));
            assert_eq!(found, expected, "{expiry_s} {delay_s:?} {is_willed} {dead_for}");
        }
    }
}

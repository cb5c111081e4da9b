//! Changes that wait for a store without room come to no more than what is true at their end, so that they are bounded by
//! what there is, however long they wait.

use hashbrown::{HashMap, HashSet};

use crate::image::{Change, Received, SessionKey};

/// Leaves out whatever a later change makes void. What is left has the same effect, in the same order.
pub(super) fn coalesce(changes: &mut Vec<Change>) {
    let mut seen = Seen::default();
    let mut is_needed = vec![true; changes.len()];
    for place in (0..changes.len()).rev() {
        match &changes[place] {
            Change::Kept(head) if !seen.ended.contains(&head.key) => {
                // The first one makes the row that what follows needs; the last one is true.
                if let Some(later) = seen.heads.insert(head.key, place) {
                    changes.swap(place, later);
                    is_needed[later] = false;
                }
            }
            change => is_needed[place] = seen.is_needed(change),
        }
    }
    let mut is_needed = is_needed.into_iter();
    changes.retain(|_| is_needed.next().unwrap_or(true));
}

/// What the later changes say, seen from the end.
#[derive(Default)]
struct Seen {
    ended: HashSet<SessionKey>,
    /// Where the earliest is that was seen.
    heads: HashMap<SessionKey, usize>,
    filters: HashSet<(SessionKey, Box<str>)>,
    /// Messages that are done with.
    done: HashSet<(SessionKey, u64)>,
    /// Received packet identifiers.
    received: HashSet<(SessionKey, u16)>,
    topics: HashSet<Box<str>>,
}

impl Seen {
    fn is_needed(&mut self, change: &Change) -> bool {
        let session = match change {
            Change::Retained { publication, .. } => return self.topics.insert(publication.topic.clone()),
            Change::Unretained { topic } => return self.topics.insert(topic.clone()),
            Change::Ended { session } => return self.ended.insert(*session),
            Change::Kept(head) => head.key,
            Change::Subscribed { session, .. }
            | Change::Unsubscribed { session, .. }
            | Change::Queued { session, .. }
            | Change::Sent { session, .. }
            | Change::Released { session, .. }
            | Change::Done { session, .. }
            | Change::Received { session, .. }
            | Change::Completed { session, .. } => *session,
        };
        if self.ended.contains(&session) {
            return false;
        }
        match change {
            Change::Subscribed { subscription, .. } => self.filters.insert((session, subscription.filter.clone())),
            Change::Unsubscribed { filter, .. } => self.filters.insert((session, filter.clone())),
            Change::Done { number, .. } => self.done.insert((session, *number)),
            Change::Queued { message, .. } => !self.done.contains(&(session, message.number)),
            Change::Sent { number, .. } | Change::Released { number, .. } => !self.done.contains(&(session, *number)),
            Change::Received { received: Received { packet, .. }, .. } | Change::Completed { packet, .. } => {
                self.received.insert((session, *packet))
            }
            Change::Kept(_) | Change::Ended { .. } | Change::Retained { .. } | Change::Unretained { .. } => true,
        }
    }
}

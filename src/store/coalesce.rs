//! What a group's changes come to: one step for each row, whatever happened to it in between.
//!
//! A message that was queued and acknowledged before its group is written leaves nothing to write. Pure; in the order of
//! the tables' keys, so that neighbours are written together.
//!
//! The steps of a plan touch a row each, so they may be taken in any order; that those that make room go ahead when there
//! is none ([`Plan::keep_freeing`]) breaks nothing, since nothing is told to be safe before all of its batch is.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::image::{Change, Head, Message, Publication, Received, SessionKey, Stamp, Subscription};
use crate::link::Changes;

/// What becomes of a row of a session's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row<'a> {
    /// It is new.
    Insert { message: &'a Message, packet: Option<u16>, is_released: bool },
    /// It was there before.
    Update { packet: Option<u16>, is_released: bool },
    /// It goes.
    Delete,
}

/// What becomes of a received packet identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// It is held, with this origin, whether it was there or not.
    Insert(u64),
    /// It is not.
    Delete,
}

/// See the head of this file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan<'a> {
    /// Sessions that end: before anything else, for another one of the same name may follow.
    pub(super) ended: Vec<SessionKey>,
    pub(super) heads: BTreeMap<SessionKey, &'a Head>,
    /// `None`: it goes.
    pub(super) subscriptions: BTreeMap<(SessionKey, &'a str), Option<&'a Subscription>>,
    pub(super) queue: BTreeMap<(SessionKey, u64), Row<'a>>,
    pub(super) received: BTreeMap<(SessionKey, u16), Held>,
    /// `None`: it goes.
    pub(super) retained: BTreeMap<&'a str, Option<(&'a Arc<Publication>, Stamp)>>,
}

impl<'a> Plan<'a> {
    /// What these batches come to, in their order.
    pub(super) fn of(batches: &'a [Changes]) -> Self {
        let mut plan = Self::default();
        for change in batches.iter().flat_map(|batch| &batch.changes) {
            plan.add(change);
        }
        plan
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many steps it has.
    pub(super) fn len(&self) -> usize {
        self.ended.len()
            + self.heads.len()
            + self.subscriptions.len()
            + self.queue.len()
            + self.received.len()
            + self.retained.len()
    }

    /// Only what makes room.
    pub(super) fn keep_freeing(&mut self) {
        self.heads.clear();
        self.subscriptions.retain(|_, subscription| subscription.is_none());
        self.queue.retain(|_, row| *row == Row::Delete);
        self.received.retain(|_, held| *held == Held::Delete);
        self.retained.retain(|_, publication| publication.is_none());
    }

    fn add(&mut self, change: &'a Change) {
        match change {
            Change::Kept(head) => drop(self.heads.insert(head.key, head)),
            Change::Ended { session } => self.end(*session),
            Change::Subscribed { session, subscription } => {
                self.subscriptions.insert((*session, &*subscription.filter), Some(subscription));
            }
            Change::Unsubscribed { session, filter } => {
                self.subscriptions.insert((*session, &**filter), None);
            }
            Change::Queued { session, message } => {
                let row = Row::Insert { message, packet: message.packet, is_released: false };
                self.queue.insert((*session, message.number), row);
            }
            Change::Sent { session, number, packet: under } => {
                if let Row::Insert { packet, .. } | Row::Update { packet, .. } = self.row(*session, *number) {
                    *packet = Some(*under);
                }
            }
            Change::Released { session, number } => {
                if let Row::Insert { is_released, .. } | Row::Update { is_released, .. } = self.row(*session, *number) {
                    *is_released = true;
                }
            }
            Change::Done { session, number } => self.done(*session, *number),
            Change::Received { session, received: Received { packet, origin } } => {
                self.received.insert((*session, *packet), Held::Insert(*origin));
            }
            // It may have been there before.
            Change::Completed { session, packet } => drop(self.received.insert((*session, *packet), Held::Delete)),
            Change::Retained { publication, stamp } => {
                self.retained.insert(&publication.topic, Some((publication, *stamp)));
            }
            Change::Unretained { topic } => drop(self.retained.insert(topic, None)),
        }
    }

    fn row(&mut self, session: SessionKey, number: u64) -> &mut Row<'a> {
        self.queue.entry((session, number)).or_insert(Row::Update { packet: None, is_released: false })
    }

    fn done(&mut self, session: SessionKey, number: u64) {
        match self.queue.get(&(session, number)) {
            // Nobody ever needs to know.
            Some(Row::Insert { .. }) => drop(self.queue.remove(&(session, number))),
            _ => drop(self.queue.insert((session, number), Row::Delete)),
        }
    }

    fn end(&mut self, session: SessionKey) {
        let behind = SessionKey(session.0.saturating_add(1));
        self.heads.remove(&session);
        self.subscriptions.extract_if((session, "")..(behind, ""), |_, _| true).for_each(drop);
        self.queue.extract_if((session, 0)..(behind, 0), |_, _| true).for_each(drop);
        self.received.extract_if((session, 0)..(behind, 0), |_, _| true).for_each(drop);
        self.ended.push(session);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::link::{ChangeMark, QoS, WorkerId};

    const SESSION: SessionKey = SessionKey(7);

    fn queued(number: u64) -> Change {
        let publication = Publication {
            topic: "a".into(),
            payload: Bytes::from_static(b"x"),
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: Box::default(),
            expires_ms: None,
        };
        let publication = Arc::new(publication);
        let message = Message {
            number,
            packet: None,
            qos: QoS::AtLeastOnce,
            retain: false,
            identifiers: Vec::new(),
            group: None,
            publication,
            origin: 0,
        };
        Change::Queued { session: SESSION, message: Box::new(message) }
    }

    fn received(session: SessionKey, packet: u16) -> Change {
        Change::Received { session, received: Received { packet, origin: 5 } }
    }

    fn batches(changes: Vec<Change>) -> Vec<Changes> {
        vec![Changes {
            worker: WorkerId(0),
            mark: ChangeMark(1),
            changes,
            is_awaited: true,
            timeline: crate::time::Timeline::default(),
        }]
    }

    #[test]
    fn what_comes_and_goes_in_one_group_is_not_written() {
        let (session, number, packet) = (SESSION, 4, 9);
        let all = batches(vec![queued(4), Change::Sent { session, number, packet }, Change::Done { session, number }]);
        assert!(Plan::of(&all).is_empty());
    }

    #[test]
    fn what_was_written_before_is_altered_or_goes() {
        let (session, packet) = (SESSION, 9);
        let all = batches(vec![
            Change::Sent { session, number: 1, packet },
            Change::Released { session, number: 1 },
            Change::Sent { session, number: 2, packet },
            Change::Done { session, number: 2 },
            Change::Completed { session, packet },
            received(session, packet),
            Change::Completed { session, packet },
            queued(3),
            Change::Sent { session, number: 3, packet },
            Change::Released { session, number: 3 },
        ]);
        let plan = Plan::of(&all);
        assert_eq!(plan.queue[&(SESSION, 1)], Row::Update { packet: Some(9), is_released: true });
        assert_eq!(plan.queue[&(SESSION, 2)], Row::Delete);
        assert!(matches!(plan.queue[&(SESSION, 3)], Row::Insert { packet: Some(9), is_released: true, .. }));
        assert_eq!(plan.received[&(SESSION, 9)], Held::Delete);
    }

    #[test]
    fn end_of_a_session_takes_all_of_it_and_nothing_of_its_neighbours() {
        let neighbour = SessionKey(8);
        let all = batches(vec![
            queued(3),
            received(SESSION, 1),
            Change::Unsubscribed { session: SESSION, filter: "z".into() },
            received(neighbour, 1),
            Change::Unsubscribed { session: neighbour, filter: "".into() },
            Change::Done { session: neighbour, number: 0 },
            Change::Ended { session: SESSION },
        ]);
        let plan = Plan::of(&all);
        assert_eq!(plan.ended, [SESSION]);
        assert_eq!((plan.queue.len(), plan.received.len(), plan.subscriptions.len()), (1, 1, 1));
    }
}

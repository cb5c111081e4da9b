//! Retained messages on their way to new subscriptions of one session, one after the other as there is room: they may be
//! many, and wait where they are kept. A replay is a cursor: it is looked up, bounded in looks, when its turn comes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::inflight::{Delivery, Identifiers};
use super::retained::Position;
use super::settlement::NOTHING;
use super::subscriptions::Subscriber;
use crate::codec::mqtt::QoS;
use crate::link::Publication;

/// The retained messages of one subscription.
#[derive(Debug)]
pub(super) struct Replay {
    subscriber: Subscriber,
    /// How many messages had arrived when the subscription was made: the later ones go to it like any other message.
    arrivals: u64,
    position: Position,
    /// In which SUBSCRIBE of the shard it was asked for. A filter that one packet repeats is looked up once.
    packet: u32,
    /// Later packets have asked for them again, so many times [MQTT-3.3.1-9]: they follow when these have gone.
    again: u16,
    /// How many messages had arrived when the latest of them asked.
    latest_arrivals: u64,
    /// Of its entry in the order.
    serial: u32,
}

impl Replay {
    /// The quality of service of its messages at most.
    pub(super) fn qos(&self) -> QoS {
        self.subscriber.qos()
    }

    pub(super) fn arrivals(&self) -> u64 {
        self.arrivals
    }

    pub(super) fn position(&self) -> &Position {
        &self.position
    }

    /// What the subscription makes of a retained message.
    pub(super) fn delivery(&self, publication: &Arc<Publication>) -> Delivery {
        let mut identifiers = Identifiers::None;
        identifiers.push(self.subscriber.identifier);
        Delivery {
            publication: Arc::clone(publication),
            qos: publication.qos.min(self.qos()),
            // Because a subscription was made [MQTT-3.3.1-8].
            retain: true,
            identifiers,
            request: 0,
            group: None,
            tried: 0,
            token: NOTHING,
            number: 0,
        }
    }
}

/// All of one session: at most one for each subscription.
#[derive(Debug, Default)]
pub(super) struct Replays {
    by_filter: HashMap<Arc<str>, Replay>,
    /// In the order of their packets. One whose serial is not that of its replay stands for nothing.
    order: VecDeque<(Arc<str>, u32)>,
    serials: u32,
}

impl Replays {
    pub(super) fn is_empty(&self) -> bool {
        self.by_filter.is_empty()
    }

    /// A subscription wants retained messages, of those that had arrived by now.
    pub(super) fn add(&mut self, filter: &str, subscriber: Subscriber, arrivals: u64, packet: u32) {
        if let Some(known) = self.by_filter.get_mut(filter) {
            known.subscriber = subscriber;
            known.latest_arrivals = arrivals;
            if known.packet == packet {
                return;
            }
            known.packet = packet;
            known.again = known.again.saturating_add(1);
            return;
        }
        let filter: Arc<str> = filter.into();
        self.serials = self.serials.wrapping_add(1);
        let serial = self.serials;
        let replay = Replay {
            subscriber,
            arrivals,
            position: Position::Start,
            packet,
            again: 0,
            latest_arrivals: arrivals,
            serial,
        };
        self.order.push_back((Arc::clone(&filter), serial));
        self.by_filter.insert(filter, replay);
    }

    /// The subscription was made anew and does not ask again: what is on its way goes as it asks for now.
    pub(super) fn change(&mut self, filter: &str, subscriber: Subscriber) {
        if let Some(known) = self.by_filter.get_mut(filter) {
            known.subscriber = subscriber;
        }
    }

    /// The subscription is no more.
    pub(super) fn remove(&mut self, filter: &str) {
        self.by_filter.remove(filter);
        if self.order.len() > 2 * self.by_filter.len() + 16 {
            let by_filter = &self.by_filter;
            self.order.retain(|(filter, serial)| by_filter.get(filter).is_some_and(|known| known.serial == *serial));
        }
    }

    /// The one to go on with, and its filter.
    pub(super) fn first(&self) -> Option<(&Arc<str>, &Replay)> {
        self.order.iter().find_map(|(filter, serial)| {
            let (filter, replay) = self.by_filter.get_key_value(filter)?;
            (replay.serial == *serial).then_some((filter, replay))
        })
    }

    /// The first one goes on from here.
    pub(super) fn set_position(&mut self, position: Position) {
        self.skip_removed();
        if let Some((filter, _)) = self.order.front()
            && let Some(replay) = self.by_filter.get_mut(filter)
        {
            replay.position = position;
        }
    }

    /// The first one has come to its end.
    pub(super) fn finish(&mut self) {
        self.skip_removed();
        let Some((filter, serial)) = self.order.pop_front() else { return };
        let Some(replay) = self.by_filter.get_mut(&filter) else { return };
        if replay.again == 0 {
            self.by_filter.remove(&filter);
            return;
        }
        replay.again -= 1;
        replay.position = Position::Start;
        replay.arrivals = replay.latest_arrivals;
        self.order.push_back((filter, serial));
    }

    fn skip_removed(&mut self) {
        while let Some((filter, serial)) = self.order.front()
            && self.by_filter.get(filter).is_none_or(|replay| replay.serial != *serial)
        {
            self.order.pop_front();
        }
    }

    pub(super) fn check_invariants(&self) {
        for (filter, replay) in &self.by_filter {
            let is_it = |(other, serial): &&(Arc<str>, u32)| other == filter && *serial == replay.serial;
            assert_eq!(self.order.iter().filter(is_it).count(), 1, "{filter} has no turn, or more than one");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::SessionSlot;

    fn subscriber(options: u8) -> Subscriber {
        Subscriber { slot: SessionSlot(1), identifier: 0, options }
    }

    fn order(replays: &mut Replays) -> Vec<(String, u64)> {
        let mut order = Vec::new();
        while let Some((filter, replay)) = replays.first() {
            order.push((filter.to_string(), replay.arrivals()));
            replays.finish();
            replays.check_invariants();
        }
        order
    }

    #[test]
    fn replay_is_owed_once_for_each_packet() {
        let mut replays = Replays::default();
        for (filter, arrivals, packet) in [("a", 5, 1), ("b", 5, 1), ("a", 5, 1), ("a", 6, 2), ("a", 6, 2), ("a", 7, 3)]
        {
            replays.add(filter, subscriber(0), arrivals, packet);
        }
        replays.check_invariants();
        let order = order(&mut replays);
        assert_eq!(order.iter().filter(|(filter, _)| filter == "b").count(), 1);
        let arrivals: Vec<u64> = order.iter().filter(|(filter, _)| filter == "a").map(|(_, seen)| *seen).collect();
        assert_eq!(arrivals, [5, 7, 7]);
        assert!(replays.is_empty() && replays.order.is_empty());
    }

    #[test]
    fn removed_and_added_again_it_has_one_turn_and_keeps_no_memory_of_the_others() {
        let mut replays = Replays::default();
        replays.add("b", subscriber(0), 0, 0);
        for packet in 0..1_000 {
            replays.add("a", subscriber(0), 0, packet);
            replays.remove("a");
        }
        replays.add("a", subscriber(2), 9, 1_001);
        assert!(replays.order.len() <= 20);
        replays.check_invariants();
        replays.remove("b");
        replays.set_position(Position::At("x".into()));
        let (filter, replay) = replays.first().unwrap();
        assert!(&**filter == "a" && replay.qos() == QoS::ExactlyOnce && matches!(replay.position(), Position::At(_)));
        assert_eq!(order(&mut replays), [("a".to_owned(), 9)]);
    }
}

//! Retained messages: the latest of each topic, for those who subscribe later.
//!
//! Each shard keeps them all (their payloads are shared), so that a subscriber finds them without asking around, and never
//! sees an older one behind a newer. Messages reach the shards in different orders; so each carries a stamp from one order
//! of the whole process, and the later one stays. A deletion leaves a tombstone for a while, lest an older message that is
//! still on its way bring the topic back.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use crate::codec::mqtt::topic;
use crate::time::Tick;

/// For how long a tombstone is kept, in ticks: a message is on its way from shard to shard for less.
const TOMBSTONE_TICKS: u32 = 600;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// It is the latest of its topic.
    Stored,
    /// The topic has none any more.
    Deleted,
    /// A later one is here already.
    Stale,
    /// There is no room for another.
    Full,
}

struct Entry<M> {
    stamp: u64,
    /// `None`: a tombstone.
    message: Option<M>,
    bytes: usize,
}

/// The retained messages of one shard.
pub struct Retained<M> {
    topics: BTreeMap<Box<str>, Entry<M>>,
    /// Tombstones, oldest first.
    tombstones: VecDeque<(Tick, u64, Box<str>)>,
    count: usize,
    bytes: usize,
    messages_max: usize,
    bytes_max: usize,
}

impl<M> Retained<M> {
    /// None yet, and at most so many messages and bytes.
    #[must_use]
    pub fn new(messages_max: usize, bytes_max: usize) -> Self {
        let (topics, tombstones) = (BTreeMap::new(), VecDeque::new());
        Self { topics, tombstones, count: 0, bytes: 0, messages_max, bytes_max }
    }

    /// How many topics have one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether none has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What they count as, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The message of a topic.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&M> {
        self.topics.get(name)?.message.as_ref()
    }

    /// Keeps a message, which counts as `bytes`, or deletes the topic's (`None`), unless a later one was here before.
    pub fn set(&mut self, name: &str, stamp: u64, message: Option<M>, bytes: usize, now: Tick) -> Set {
        let known = self.topics.get(name);
        if known.is_some_and(|known| known.stamp >= stamp) {
            return Set::Stale;
        }
        let (had_message, had_bytes) = known.map_or((false, 0), |known| (known.message.is_some(), known.bytes));
        let deletes = message.is_none();
        let bytes = if deletes { 0 } else { bytes };
        if !deletes {
            let messages = self.count + usize::from(!had_message);
            if messages > self.messages_max || self.bytes - had_bytes + bytes > self.bytes_max {
                return Set::Full;
            }
        }
        self.count = self.count - usize::from(had_message) + usize::from(!deletes);
        self.bytes = self.bytes - had_bytes + bytes;
        if deletes {
            self.tombstones.push_back((now, stamp, name.into()));
        }
        self.topics.insert(name.into(), Entry { stamp, message, bytes });
        if deletes { Set::Deleted } else { Set::Stored }
    }

    /// Hands each message whose topic a valid filter (not a shared one) matches to `visit`, in the order of topics. A
    /// filter without wildcards is one look-up, one that begins with names looks at the topics that begin so, and one
    /// that begins with a wildcard at all.
    pub fn matching(&self, filter: &str, mut visit: impl FnMut(&str, &M)) {
        let Some(wildcard) = filter.find(['+', '#']) else {
            if let Some(message) = self.get(filter) {
                visit(filter, message);
            }
            return;
        };
        // "a/#" matches "a" too, which does not begin with "a/".
        let prefix = filter[..wildcard].trim_end_matches('/');
        let from = (Bound::Included(prefix), Bound::Unbounded);
        for (name, entry) in self.topics.range::<str, _>(from).take_while(|(name, _)| name.starts_with(prefix)) {
            if let Some(message) = &entry.message
                && topic::matches(filter, name)
            {
                visit(name, message);
            }
        }
    }

    /// Drops at most `limit` tombstones that are old enough.
    pub fn forget(&mut self, now: Tick, limit: usize) {
        for _ in 0..limit {
            match self.tombstones.front() {
                Some((since, _, _)) if now.since(*since) >= TOMBSTONE_TICKS => {}
                _ => return,
            }
            let Some((_, stamp, name)) = self.tombstones.pop_front() else { return };
            if self.topics.get(&name).is_some_and(|known| known.stamp == stamp) {
                self.topics.remove(&name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_of_arrival_comes_to_the_same() {
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        for messages in [[Some('a'), None, Some('b')], [Some('a'), Some('b'), None], [None, Some('a'), None]] {
            for order in orders {
                let mut retained = Retained::new(10, 100);
                for place in order {
                    retained.set("t", place as u64 + 1, messages[place], 1, Tick(0));
                }
                assert_eq!(retained.get("t").copied(), messages[2], "{order:?}");
                assert_eq!(
                    (retained.len(), retained.bytes()),
                    (messages[2].iter().count(), messages[2].iter().count())
                );
            }
        }
    }

    #[test]
    fn a_tombstone_goes_when_it_is_old_and_its_topic_is_still_dead() {
        let mut retained = Retained::new(10, 100);
        retained.set("a", 1, Some(1), 1, Tick(0));
        retained.set("a", 2, None, 0, Tick(0));
        retained.set("b", 3, None, 0, Tick(0));
        retained.set("b", 4, Some(4), 1, Tick(0));
        retained.forget(Tick(TOMBSTONE_TICKS - 1), 10);
        assert_eq!(retained.set("a", 1, Some(1), 1, Tick(0)), Set::Stale);
        retained.forget(Tick(TOMBSTONE_TICKS), 10);
        assert_eq!((retained.topics.len(), retained.len(), retained.get("b")), (1, 1, Some(&4)));
    }

    #[test]
    fn bounds_are_for_new_topics_and_longer_messages() {
        let mut retained = Retained::new(2, 10);
        assert_eq!(retained.set("a", 1, Some(()), 5, Tick(0)), Set::Stored);
        assert_eq!(retained.set("b", 2, Some(()), 5, Tick(0)), Set::Stored);
        assert_eq!(retained.set("c", 3, Some(()), 0, Tick(0)), Set::Full);
        assert_eq!(retained.set("a", 4, Some(()), 6, Tick(0)), Set::Full);
        assert_eq!(retained.set("a", 5, Some(()), 4, Tick(0)), Set::Stored);
        assert_eq!(retained.set("b", 6, None, 0, Tick(0)), Set::Deleted);
        assert_eq!(retained.set("c", 7, Some(()), 6, Tick(0)), Set::Stored);
        assert_eq!((retained.len(), retained.bytes()), (2, 10));
    }

    #[test]
    fn filters_find_what_they_match() {
        let mut retained = Retained::new(100, 100);
        let names = ["a", "a/b", "a/b/c", "ab", "a0", "b", "/a", "$SYS/x"];
        for (stamp, name) in (1..).zip(names) {
            retained.set(name, stamp, Some(()), 1, Tick(0));
        }
        for filter in ["#", "+", "a", "a/#", "a/+", "a/+/c", "+/b", "b/#", "/+", "$SYS/#", "x/#", "a/b"] {
            let mut found = Vec::new();
            retained.matching(filter, |name, ()| found.push(name.to_owned()));
            let mut expected: Vec<&str> = names.into_iter().filter(|name| topic::matches(filter, name)).collect();
            expected.sort_unstable();
            assert_eq!(found, expected, "{filter}");
        }
    }
}

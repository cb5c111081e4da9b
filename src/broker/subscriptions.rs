//! Who has subscribed to what: the filters of one shard as a tree of levels, and each session's own subscriptions.
//!
//! ```text
//!   edges: (parent, level) ──▶ node          nodes: parent, level, subscribers
//!
//!   "a/+/c"   ROOT ─a─▶ 1 ─+─▶ 2 ─c─▶ 3 [session 7, session 9]        session 7 ──▶ (node 3, position 0)
//!   "a/#"               1 ─#─▶ 4 [session 9]                          session 9 ──▶ (node 3, position 1), (node 4, 0)
//! ```
//!
//! A filter that many sessions share is there once. Every session knows its places, and every place is found from its
//! session, so a session leaves a filter in the time that its own subscriptions take, however many others share it.
//! All edges are in one table, so that a node is 40 bytes and a level with one child costs no table of its own. Matching
//! visits the nodes that can match and allocates nothing that stays.

use std::hash::{Hash, Hasher};

use hashbrown::HashTable;
use siphasher::sip::SipHasher13;
use slab::Slab;

use crate::codec::mqtt::topic;

/// What one session has asked for with one filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscriber {
    /// The session's slot.
    pub session: u32,
    /// The Subscription Identifier; 0: none.
    pub identifier: u32,
    /// The options byte of SUBSCRIBE (v5 3.8.3.1).
    pub options: u8,
}

impl Subscriber {
    /// The quality of service granted: 0, 1 or 2.
    #[must_use]
    pub const fn qos(&self) -> u8 {
        self.options & 0b11
    }
}

/// The parent of the first levels.
const ROOT: u32 = u32::MAX;

struct Node {
    parent: u32,
    children: u32,
    level: Box<str>,
    subscribers: Few<Subscriber>,
}

const _: () = assert!(size_of::<Node>() <= 40);

/// Where a session's subscription lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    node: u32,
    position: u32,
}

/// Nearly always one.
#[derive(Default)]
#[allow(clippy::box_collection, reason = "a vector itself would make every node larger")]
enum Few<T> {
    #[default]
    None,
    One([T; 1]),
    Many(Box<Vec<T>>),
}

impl<T> Few<T> {
    fn as_slice(&self) -> &[T] {
        match self {
            Few::None => &[],
            Few::One(one) => one,
            Few::Many(many) => many,
        }
    }

    fn as_mut_slice(&mut self) -> &mut [T] {
        match self {
            Few::None => &mut [],
            Few::One(one) => one,
            Few::Many(many) => many,
        }
    }

    fn push(&mut self, item: T) {
        *self = match std::mem::take(self) {
            Few::None => Few::One([item]),
            Few::One([first]) => Few::Many(Box::new(vec![first, item])),
            Few::Many(mut many) => {
                many.push(item);
                Few::Many(many)
            }
        };
    }

    fn swap_remove(&mut self, position: usize) -> T {
        let (removed, rest) = match std::mem::take(self) {
            Few::None => panic!("nothing is there to be removed"),
            Few::One([one]) => (one, Few::None),
            Few::Many(mut many) => {
                let removed = many.swap_remove(position);
                if many.len() == 1 {
                    (removed, many.pop().map_or(Few::None, |last| Few::One([last])))
                } else {
                    if many.len() < many.capacity() / 4 {
                        let room = many.len() * 2;
                        many.shrink_to(room);
                    }
                    (removed, Few::Many(many))
                }
            }
        };
        *self = rest;
        removed
    }
}

/// The subscriptions of one shard.
///
/// ```
/// use pulsegate::broker::subscriptions::{Subscriber, Subscriptions};
///
/// let mut subscriptions = Subscriptions::new(0x5EED); // keys the hashes
/// subscriptions.subscribe("site/+/power", Subscriber { session: 7, identifier: 0, options: 1 });
/// subscriptions.subscribe("site/#", Subscriber { session: 9, identifier: 3, options: 0 });
///
/// let mut found = Vec::new();
/// subscriptions.matching("site/4/power", &mut found);
/// found.sort_by_key(|subscriber| subscriber.session);
/// assert_eq!(found.iter().map(|subscriber| subscriber.session).collect::<Vec<_>>(), [7, 9]);
///
/// subscriptions.remove_all(7);
/// assert_eq!(subscriptions.len(), 1);
/// ```
pub struct Subscriptions {
    nodes: Slab<Node>,
    edges: HashTable<u32>,
    hasher: SipHasher13,
    /// By session.
    own: Vec<Few<Place>>,
    count: usize,
    stack: Vec<(u32, usize)>,
}

impl Subscriptions {
    /// None yet. `key` keys the hashes of levels, so that nobody outside can choose levels that collide.
    #[must_use]
    pub fn new(key: u64) -> Self {
        Self {
            nodes: Slab::new(),
            edges: HashTable::new(),
            hasher: SipHasher13::new_with_keys(key, !key),
            own: Vec::new(),
            count: 0,
            stack: Vec::new(),
        }
    }

    // --- Getters ----------------------------------------------------------------------------------------------------

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many a session has.
    #[must_use]
    pub fn count(&self, session: u32) -> usize {
        self.places(session).len()
    }

    /// A session's subscriptions.
    pub fn filters(&self, session: u32) -> impl Iterator<Item = (String, Subscriber)> + '_ {
        self.places(session).iter().map(|place| {
            let subscriber = self.nodes[place.node as usize].subscribers.as_slice()[place.position as usize];
            (self.filter_of(place.node), subscriber)
        })
    }

    /// Whether a session has subscribed to just this filter.
    #[must_use]
    pub fn has(&self, session: u32, filter: &str) -> bool {
        self.find_node(filter).is_some_and(|node| self.place_of(session, node).is_some())
    }

    /// The subscription of a session that matches a topic name; of several that with the highest QoS.
    #[must_use]
    pub fn find(&self, session: u32, name: &str) -> Option<Subscriber> {
        self.filters(session)
            .filter(|(filter, _)| topic::matches(filter, name))
            .map(|(_, subscriber)| subscriber)
            .max_by_key(Subscriber::qos)
    }

    /// Appends every subscription that matches a topic name. A session with several is there several times.
    pub fn matching(&mut self, name: &str, found: &mut Vec<Subscriber>) {
        if self.is_empty() {
            return;
        }
        let mut stack = std::mem::take(&mut self.stack);
        stack.push((ROOT, 0));
        // Behind the last level.
        let end = name.len() + 1;
        while let Some((parent, at)) = stack.pop() {
            // [MQTT-4.7.2-1]
            let takes_wildcards = !(parent == ROOT && name.starts_with('$'));
            let has_children = parent == ROOT || self.nodes[parent as usize].children > 0;
            if takes_wildcards
                && has_children
                && let Some(node) = self.child(parent, "#")
            {
                found.extend_from_slice(self.nodes[node as usize].subscribers.as_slice());
            }
            if at == end {
                found.extend_from_slice(self.nodes[parent as usize].subscribers.as_slice());
                continue;
            }
            if !has_children {
                continue;
            }
            let length = name[at..].find('/').unwrap_or(name.len() - at);
            let (level, next) = (&name[at..at + length], at + length + 1);
            if let Some(node) = self.child(parent, level) {
                stack.push((node, next));
            }
            if takes_wildcards && let Some(node) = self.child(parent, "+") {
                stack.push((node, next));
            }
        }
        self.stack = stack;
    }

    // --- Changes ----------------------------------------------------------------------------------------------------

    /// Subscribes a session to a valid filter (not a shared one). `false`: it had subscribed to it already, and what it
    /// asks for is another now [v5 MQTT-3.8.4-3].
    pub fn subscribe(&mut self, filter: &str, subscriber: Subscriber) -> bool {
        let node = self.make_node(filter);
        let session = subscriber.session as usize;
        if let Some(place) = self.place_of(subscriber.session, node) {
            self.nodes[node as usize].subscribers.as_mut_slice()[place.position as usize] = subscriber;
            return false;
        }
        let subscribers = &mut self.nodes[node as usize].subscribers;
        let position = subscribers.as_slice().len() as u32;
        subscribers.push(subscriber);
        if self.own.len() <= session {
            self.own.resize_with(session + 1, Few::default);
        }
        self.own[session].push(Place { node, position });
        self.count += 1;
        true
    }

    /// Ends a subscription. `false`: there was none.
    pub fn unsubscribe(&mut self, session: u32, filter: &str) -> bool {
        let Some(node) = self.find_node(filter) else { return false };
        let Some(at) = self.places(session).iter().position(|place| place.node == node) else { return false };
        let place = self.own[session as usize].swap_remove(at);
        self.leave(place);
        true
    }

    /// Ends every subscription of a session.
    pub fn remove_all(&mut self, session: u32) {
        let Some(own) = self.own.get_mut(session as usize) else { return };
        let own = std::mem::take(own);
        for &place in own.as_slice() {
            self.leave(place);
        }
    }

    // --- Helpers ----------------------------------------------------------------------------------------------------

    fn places(&self, session: u32) -> &[Place] {
        self.own.get(session as usize).map_or(&[], Few::as_slice)
    }

    fn place_of(&self, session: u32, node: u32) -> Option<Place> {
        self.places(session).iter().copied().find(|place| place.node == node)
    }

    /// Takes a subscriber, whose session does not know the place any more, out of its node.
    fn leave(&mut self, place: Place) {
        let Place { node, position } = place;
        let subscribers = &mut self.nodes[node as usize].subscribers;
        subscribers.swap_remove(position as usize);
        // Whoever was last has moved into the gap.
        if let Some(moved) = subscribers.as_slice().get(position as usize) {
            let last = subscribers.as_slice().len() as u32;
            let places = self.own[moved.session as usize].as_mut_slice();
            let place = places.iter_mut().find(|place| **place == Place { node, position: last });
            place.expect("a subscriber whose session does not know its place").position = position;
        }
        self.count -= 1;
        self.prune(node);
        if self.count == 0 {
            // After a mass disconnect the memory goes back.
            self.nodes = Slab::new();
            self.edges = HashTable::new();
            self.own = Vec::new();
        }
    }

    /// Removes a node that is of no use any more, and those above it that were there for it.
    fn prune(&mut self, mut node: u32) {
        while node != ROOT {
            let known = &self.nodes[node as usize];
            if known.children > 0 || !known.subscribers.as_slice().is_empty() {
                return;
            }
            let hash = self.hash(known.parent, &known.level);
            let entry = self.edges.find_entry(hash, |&edge| edge == node);
            entry.expect("a node without an edge to it").remove();
            let parent = self.nodes.remove(node as usize).parent;
            if parent != ROOT {
                self.nodes[parent as usize].children -= 1;
            }
            node = parent;
        }
    }

    fn make_node(&mut self, filter: &str) -> u32 {
        let mut parent = ROOT;
        for level in filter.split('/') {
            parent = match self.child(parent, level) {
                Some(node) => node,
                None => self.make_child(parent, level),
            };
        }
        parent
    }

    fn make_child(&mut self, parent: u32, level: &str) -> u32 {
        let hash = self.hash(parent, level);
        let node = Node { parent, children: 0, level: level.into(), subscribers: Few::None };
        let node = self.nodes.insert(node) as u32;
        let (nodes, hasher) = (&self.nodes, &self.hasher);
        self.edges.insert_unique(hash, node, |&edge| {
            let known = &nodes[edge as usize];
            hash_of(hasher, known.parent, &known.level)
        });
        if parent != ROOT {
            self.nodes[parent as usize].children += 1;
        }
        node
    }

    fn find_node(&self, filter: &str) -> Option<u32> {
        filter.split('/').try_fold(ROOT, |parent, level| self.child(parent, level))
    }

    fn child(&self, parent: u32, level: &str) -> Option<u32> {
        let is_it = |&edge: &u32| {
            let known = &self.nodes[edge as usize];
            known.parent == parent && *known.level == *level
        };
        self.edges.find(self.hash(parent, level), is_it).copied()
    }

    fn filter_of(&self, node: u32) -> String {
        let mut levels = Vec::new();
        let mut at = node;
        while at != ROOT {
            levels.push(&*self.nodes[at as usize].level);
            at = self.nodes[at as usize].parent;
        }
        levels.reverse();
        levels.join("/")
    }

    fn hash(&self, parent: u32, level: &str) -> u64 {
        hash_of(&self.hasher, parent, level)
    }

    /// Panics when the parts disagree. For tests.
    pub fn check_invariants(&self) {
        let mut count = 0;
        for (index, node) in &self.nodes {
            let slot = index as u32;
            assert_eq!(self.child(node.parent, &node.level), Some(slot), "node {index} cannot be found");
            let children = self.nodes.iter().filter(|(_, child)| child.parent == slot).count();
            assert_eq!(children, node.children as usize, "node {index} has miscounted its children");
            assert!(children > 0 || !node.subscribers.as_slice().is_empty(), "node {index} is of no use");
            for (position, subscriber) in node.subscribers.as_slice().iter().enumerate() {
                let place = Place { node: slot, position: position as u32 };
                assert!(self.places(subscriber.session).contains(&place), "{subscriber:?} does not know its place");
                count += 1;
            }
        }
        assert_eq!(count, self.count);
        assert_eq!(self.own.iter().map(|own| own.as_slice().len()).sum::<usize>(), self.count);
        assert_eq!(self.edges.len(), self.nodes.len());
    }
}

fn hash_of(hasher: &SipHasher13, parent: u32, level: &str) -> u64 {
    let mut hasher = *hasher;
    parent.hash(&mut hasher);
    hasher.write(level.as_bytes());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscriber(session: u32, options: u8) -> Subscriber {
        Subscriber { session, identifier: session + 100, options }
    }

    /// Random subscriptions beside a plain list of them.
    #[test]
    fn the_tree_finds_what_a_list_finds() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut tree = Subscriptions::new(3);
        let mut list: Vec<(String, Subscriber)> = Vec::new();
        let levels = ["a", "b", "", "$x", "+", "#"];
        let make = |random: &mut fastrand::Rng, choice: &[&str]| {
            let depth = random.usize(1..5);
            let levels: Vec<&str> = (0..depth).map(|_| choice[random.usize(..choice.len())]).collect();
            levels.join("/")
        };
        for step in 0..20_000 {
            let filter = make(&mut random, &levels);
            let session = random.u32(..12);
            match random.u8(..10) {
                0..=5 if topic::is_topic_filter(&filter) => {
                    let new = subscriber(session, random.u8(..3));
                    let known = list.iter_mut().find(|(text, known)| *text == filter && known.session == session);
                    assert_eq!(tree.subscribe(&filter, new), known.is_none());
                    match known {
                        Some((_, known)) => *known = new,
                        None => list.push((filter, new)),
                    }
                }
                6..=7 => {
                    let place = list.iter().position(|(text, known)| *text == filter && known.session == session);
                    assert_eq!(tree.unsubscribe(session, &filter), place.is_some());
                    place.map(|place| list.remove(place));
                }
                8 if random.u8(..20) == 0 => {
                    tree.remove_all(session);
                    list.retain(|(_, known)| known.session != session);
                }
                _ => {}
            }
            if step % 50 == 0 {
                tree.check_invariants();
            }
            let name = make(&mut random, &levels[..4]);
            let mut found = Vec::new();
            tree.matching(&name, &mut found);
            let matching = list.iter().filter(|(filter, _)| topic::matches(filter, &name));
            let mut expected: Vec<Subscriber> = matching.map(|(_, known)| *known).collect();
            let key = |known: &Subscriber| (known.session, known.identifier, known.options);
            found.sort_by_key(key);
            expected.sort_by_key(key);
            assert_eq!(found, expected, "{name}");
            let own = list.iter().filter(|(filter, known)| known.session == session && topic::matches(filter, &name));
            let best = own.map(|(_, known)| known.options & 3).max();
            assert_eq!(tree.find(session, &name).map(|known| known.options & 3), best);
        }
        assert_eq!(tree.len(), list.len());
        for session in 0..12 {
            tree.remove_all(session);
        }
        tree.check_invariants();
        assert!(tree.is_empty() && tree.nodes.is_empty());
    }

    #[test]
    fn a_hundred_thousand_leave_one_filter_one_by_one() {
        let mut tree = Subscriptions::new(1);
        for session in 0..100_000 {
            tree.subscribe("all/#", subscriber(session, 0));
        }
        let mut found = Vec::new();
        tree.matching("all/of/you", &mut found);
        assert_eq!((found.len(), tree.nodes.len()), (100_000, 2));
        // In an order in which the last one is never the one that goes.
        for session in 0..100_000 {
            assert!(tree.unsubscribe(session, "all/#"));
        }
        assert!(tree.is_empty());
    }

    #[test]
    fn a_subscription_of_ones_own_is_small() {
        let mut tree = Subscriptions::new(1);
        let count = 10_000;
        for session in 0..count {
            tree.subscribe(&format!("devices/meter-{session:06}/#"), subscriber(session, 1));
        }
        // Two nodes, their levels, their edges, and the place.
        let nodes =
            tree.nodes.len() * size_of::<Node>() + tree.nodes.iter().map(|(_, node)| node.level.len()).sum::<usize>();
        let edges = tree.edges.allocation_size();
        let own = tree.own.len() * size_of::<Few<Place>>();
        let each = (nodes + edges + own) / count as usize;
        assert!(each <= 140, "{each} bytes");
    }
}

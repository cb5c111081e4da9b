//! Who has subscribed to what: the filters of one shard as a tree of levels, and each session's own subscriptions.
//!
//! ```text
//!   edges: (parent, first level of the label) ──▶ node        nodes: parent, label, subscribers
//!
//!   "a/+/c"     ROOT ─a─▶ 1 "a" ─+─▶ 2 "+/c" [session 7, session 9]    session 7 ──▶ (node 2, position 0)
//!   "a/#"                       ─#─▶ 3 "#"   [session 9]               session 9 ──▶ (node 2, position 1), (node 3, 0)
//! ```
//!
//! A node's **label** is one level or more: a chain of levels that nobody has subscribed to between, and that branches nowhere,
//! is one node. So each filter makes at most two nodes, whatever its depth (one of 200 empty levels is 250 bytes, not 13 KB),
//! and a filter that many sessions share is there once. Every session knows its places, and every place is found from its
//! session, so a session leaves a filter in the same time however many others share it. All edges are in one table.
//!
//! **Matching** visits the nodes that can match, which may be as many as there are nodes: so it is a [`Walk`], bounded in visits
//! at a time, that goes on later. Whatever subscribes or leaves meanwhile, a subscription that was there all the while is
//! found once. Slots are reused and generations are not, and as long as a walk waits no two nodes become one.

mod places;
mod walk;

#[cfg(test)]
mod tests;

use std::hash::{Hash, Hasher};

use hashbrown::HashTable;
use siphasher::sip::SipHasher13;

use crate::codec::mqtt::{QoS, topic};
use crate::pool::ALLOCATION_BYTES;
use crate::slot::{SessionSlot, Slot, Table, slot};
use places::{Few, Place, Places};
pub use walk::Walk;

/// What one session has asked for with one filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscriber<S = SessionSlot> {
    /// The slot of the session, or of whatever else subscribes.
    pub slot: S,
    /// The Subscription Identifier; 0: none.
    pub identifier: u32,
    /// The options byte of SUBSCRIBE (v5 3.8.3.1).
    pub options: u8,
}

impl<S> Subscriber<S> {
    /// The quality of service granted.
    #[must_use]
    pub const fn qos(&self) -> QoS {
        match self.options & 0b11 {
            0 => QoS::AtMostOnce,
            1 => QoS::AtLeastOnce,
            // No SUBSCRIBE has 3: it is not decoded.
            _ => QoS::ExactlyOnce,
        }
    }
}

slot! {
    /// A node of the tree.
    pub(in super::super) struct NodeSlot
}

/// The parent of the first levels.
const ROOT: NodeSlot = NodeSlot(u32::MAX);
/// Nodes visited for one session's subscription before its own filters are looked through instead.
const FIND_VISITS: usize = 256;

struct Node<S> {
    parent: NodeSlot,
    children: u32,
    /// The children's slots, combined by exclusive or: where there is one, its slot.
    only_child: u32,
    generation: u32,
    /// One level or more, as in the filter.
    label: Box<str>,
    subscribers: Few<Subscriber<S>>,
}

const _: () = assert!(size_of::<Node<SessionSlot>>() <= 48);

/// What a node takes beside its label: itself, its edge, and what both tables keep free.
const NODE_BYTES: usize = size_of::<Node<SessionSlot>>() + size_of::<NodeSlot>() + 28;
/// A subscriber in its node and a place in its session, with what their vectors keep free.
const SUBSCRIPTION_BYTES: usize = 2 * (size_of::<Subscriber<SessionSlot>>() + size_of::<Place>());

/// The filters of one shard. See the head of this file.
///
/// ```
/// use pulsegate::broker::subscriptions::{Subscriber, Subscriptions};
/// use pulsegate::slot::SessionSlot;
///
/// let mut subscriptions = Subscriptions::new(0x5EED); // keys the hashes
/// subscriptions.subscribe("site/+/power", Subscriber { slot: SessionSlot(7), identifier: 0, options: 1 });
/// subscriptions.subscribe("site/#", Subscriber { slot: SessionSlot(9), identifier: 3, options: 0 });
///
/// let mut found = Vec::new();
/// subscriptions.matching("site/4/power", &mut found);
/// found.sort_by_key(|subscriber| subscriber.slot);
/// assert_eq!(found.iter().map(|subscriber| subscriber.slot).collect::<Vec<_>>(), [SessionSlot(7), SessionSlot(9)]);
///
/// subscriptions.remove_all(SessionSlot(7));
/// assert_eq!(subscriptions.len(), 1);
/// ```
pub struct Subscriptions<S = SessionSlot> {
    nodes: Table<NodeSlot, Node<S>>,
    edges: HashTable<NodeSlot>,
    hasher: SipHasher13,
    /// By session.
    own: Vec<Places>,
    count: usize,
    /// How many have gone since [`Subscriptions::forget_gone`].
    gone: usize,
    generations: u32,
    /// Bytes of the nodes.
    node_bytes: usize,
    /// Walks that wait.
    walks: usize,
    /// Nodes that would have become one with their only children, had no walk waited; with their generations.
    unmerged: Vec<(NodeSlot, u32)>,
}

impl<S: Slot> Subscriptions<S> {
    /// None yet. `key` keys the hashes of levels, so that nobody outside can choose levels that collide.
    #[must_use]
    pub fn new(key: u64) -> Self {
        Self {
            nodes: Table::new(),
            edges: HashTable::new(),
            hasher: SipHasher13::new_with_keys(key, !key),
            own: Vec::new(),
            count: 0,
            gone: 0,
            generations: 0,
            node_bytes: 0,
            walks: 0,
            unmerged: Vec::new(),
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

    /// What all of them take, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.node_bytes + self.count * SUBSCRIPTION_BYTES
    }

    /// What one more takes at most, in bytes.
    #[must_use]
    pub const fn bytes_of(filter: &str) -> usize {
        // A node that is divided gives its label to two.
        filter.len() + 2 * (NODE_BYTES + ALLOCATION_BYTES) + SUBSCRIPTION_BYTES
    }

    /// How many a session has.
    #[must_use]
    pub fn count(&self, session: S) -> usize {
        self.places(session).map_or(0, Places::len)
    }

    /// The bytes of a session's filters, as [`Subscriptions::bytes_of`] counts them.
    #[must_use]
    pub fn bytes_held(&self, session: S) -> usize {
        self.places(session).map_or(0, Places::bytes)
    }

    /// A session's subscriptions, in no order.
    pub fn filters(&self, session: S) -> impl Iterator<Item = (String, Subscriber<S>)> + '_ {
        self.places(session).into_iter().flat_map(Places::iter).map(|place| {
            let subscriber = self.nodes[place.node].subscribers.as_slice()[place.position as usize];
            (self.filter_of(place.node), subscriber)
        })
    }

    /// How many have gone since [`Subscriptions::forget_gone`].
    #[must_use]
    pub fn gone(&self) -> usize {
        self.gone
    }

    /// Those that have gone are counted anew.
    pub fn forget_gone(&mut self) {
        self.gone = 0;
    }

    /// The filters of at most `limit` nodes from `from` on; 0 is the first. Gives the node to go on from; `None`: there are no more.
    /// Whatever comes and goes in between, a filter that was there all the while is told once: its node stays where it is.
    pub fn look_through(&self, from: usize, limit: usize, mut each: impl FnMut(String)) -> Option<usize> {
        let end = self.nodes.end().min(from.saturating_add(limit));
        for place in from..end {
            let slot = NodeSlot(place as u32);
            if self.nodes.get(slot).is_some_and(|node| !node.subscribers.as_slice().is_empty()) {
                each(self.filter_of(slot));
            }
        }
        (end < self.nodes.end()).then_some(end)
    }

    /// The subscription of a session to just this filter.
    #[must_use]
    pub fn get(&self, session: S, filter: &str) -> Option<Subscriber<S>> {
        let node = self.find_node(filter)?;
        let place = self.place_of(session, node)?;
        Some(self.nodes[node].subscribers.as_slice()[place.position as usize])
    }

    /// The subscription of a session that matches a topic name; of several that with the highest QoS.
    #[must_use]
    pub fn find(&self, session: S, name: &str) -> Option<Subscriber<S>> {
        let (mut walk, mut visits) = (Walk::default(), FIND_VISITS);
        let mut best: Option<Subscriber<S>> = None;
        let is_done = self.visit(name, &mut walk, &mut visits, |node| {
            if let Some(place) = self.place_of(session, node) {
                let subscriber = self.nodes[node].subscribers.as_slice()[place.position as usize];
                best = best.into_iter().chain([subscriber]).max_by_key(Subscriber::qos);
            }
        });
        if is_done {
            return best;
        }
        let own = self.filters(session).filter(|(filter, _)| topic::matches(filter, name));
        own.map(|(_, subscriber)| subscriber).max_by_key(Subscriber::qos)
    }

    /// Appends every subscription that matches a topic name, however long it takes. A session with several is there
    /// several times.
    pub fn matching(&mut self, name: &str, found: &mut Vec<Subscriber<S>>) {
        let mut visits = usize::MAX;
        let is_done = self.advance(name, &mut Walk::default(), &mut visits, found);
        debug_assert!(is_done);
    }

    // --- Changes ----------------------------------------------------------------------------------------------------

    /// Subscribes a session to a valid filter (not a shared one). `false`: it had subscribed to it already, and what it
    /// asks for is another now [v5 MQTT-3.8.4-3].
    pub fn subscribe(&mut self, filter: &str, subscriber: Subscriber<S>) -> bool {
        self.merge_late();
        let node = self.make_node(filter);
        let session = subscriber.slot.number() as usize;
        if let Some(place) = self.place_of(subscriber.slot, node) {
            self.nodes[node].subscribers.as_mut_slice()[place.position as usize] = subscriber;
            return false;
        }
        let subscribers = &mut self.nodes[node].subscribers;
        let position = subscribers.as_slice().len() as u32;
        subscribers.push(subscriber);
        if self.own.len() <= session {
            self.own.resize_with(session + 1, Places::default);
        }
        self.own[session].insert(Place { node, position }, Self::bytes_of(filter));
        self.count += 1;
        true
    }

    /// Ends a subscription. `false`: there was none.
    pub fn unsubscribe(&mut self, session: S, filter: &str) -> bool {
        self.merge_late();
        let Some(node) = self.find_node(filter) else { return false };
        let Some(own) = self.own.get_mut(session.number() as usize) else { return false };
        let Some(place) = own.remove(node, Self::bytes_of(filter)) else { return false };
        self.leave(place);
        true
    }

    /// Ends at most `limit` subscriptions of a session that ends. `true`: it has none any more.
    pub fn remove_some(&mut self, session: S, limit: usize) -> bool {
        self.merge_late();
        for _ in 0..limit {
            let Some(place) = self.own.get_mut(session.number() as usize).and_then(Places::pop) else { return true };
            self.leave(place);
        }
        self.count(session) == 0
    }

    /// Ends every subscription of a session.
    pub fn remove_all(&mut self, session: S) {
        self.remove_some(session, usize::MAX);
    }

    // --- Helpers ----------------------------------------------------------------------------------------------------

    fn places(&self, session: S) -> Option<&Places> {
        self.own.get(session.number() as usize)
    }

    fn place_of(&self, session: S, node: NodeSlot) -> Option<Place> {
        self.places(session)?.find(node)
    }

    /// Takes a subscriber, whose session does not know the place any more, out of its node.
    fn leave(&mut self, place: Place) {
        let Place { node, position } = place;
        let subscribers = &mut self.nodes[node].subscribers;
        subscribers.swap_remove(position as usize);
        // Whoever was last has moved into the gap.
        if let Some(moved) = subscribers.as_slice().get(position as usize) {
            self.own[moved.slot.number() as usize].move_to(node, position);
        }
        self.count -= 1;
        self.gone += 1;
        self.prune(node);
        if self.count == 0 {
            debug_assert!(self.nodes.is_empty() && self.node_bytes == 0);
            // After a mass disconnect the memory goes back.
            self.nodes = Table::new();
            self.edges = HashTable::new();
            self.own = Vec::new();
            self.unmerged = Vec::new();
        }
    }

    /// The node of a filter, made if it is not there.
    fn make_node(&mut self, filter: &str) -> NodeSlot {
        let (mut parent, mut rest) = (ROOT, filter);
        loop {
            let Some(mut node) = self.child(parent, first_level(rest)) else { return self.add(parent, rest) };
            let common = common_levels(&self.nodes[node].label, rest);
            if common < self.nodes[node].label.len() {
                node = self.divide(node, common);
            }
            if common == rest.len() {
                return node;
            }
            (parent, rest) = (node, &rest[common + 1..]);
        }
    }

    fn find_node(&self, filter: &str) -> Option<NodeSlot> {
        let (mut parent, mut rest) = (ROOT, filter);
        loop {
            let node = self.child(parent, first_level(rest))?;
            let behind = rest.strip_prefix(&*self.nodes[node].label)?;
            if behind.is_empty() {
                return Some(node);
            }
            (parent, rest) = (node, behind.strip_prefix('/')?);
        }
    }

    fn add(&mut self, parent: NodeSlot, label: &str) -> NodeSlot {
        self.generations = self.generations.wrapping_add(1);
        self.node_bytes += NODE_BYTES + label.len() + ALLOCATION_BYTES;
        let generation = self.generations;
        let node = Node { parent, children: 0, only_child: 0, generation, label: label.into(), subscribers: Few::None };
        let node = self.nodes.insert(node);
        self.link(node);
        node
    }

    /// Removes a node that nobody is at and nothing is below, and what is of no use above it then.
    fn prune(&mut self, mut node: NodeSlot) {
        while node != ROOT {
            let known = &self.nodes[node];
            match (known.children, known.subscribers.as_slice().is_empty()) {
                (0, true) => {
                    let parent = known.parent;
                    self.unlink(node);
                    let removed = self.nodes.remove(node);
                    self.node_bytes -= NODE_BYTES + removed.label.len() + ALLOCATION_BYTES;
                    node = parent;
                }
                (1, true) if self.walks > 0 => return self.unmerged.push((node, known.generation)),
                (1, true) => return self.merge(node),
                _ => return,
            }
        }
    }

    /// Gives the first `at` bytes of a node's label to a new node above it, which is returned.
    fn divide(&mut self, node: NodeSlot, at: usize) -> NodeSlot {
        let (parent, label) = (self.nodes[node].parent, self.nodes[node].label.clone());
        self.unlink(node);
        let upper = self.add(parent, &label[..at]);
        self.node_bytes -= at + 1;
        (self.nodes[node].parent, self.nodes[node].label) = (upper, label[at + 1..].into());
        self.link(node);
        upper
    }

    /// Makes a node that nobody is at, and its only child, one: the child, so that its places stay what they are.
    fn merge(&mut self, node: NodeSlot) {
        let child = NodeSlot(self.nodes[node].only_child);
        self.unlink(child);
        self.unlink(node);
        let upper = self.nodes.remove(node);
        let lower = &mut self.nodes[child];
        lower.parent = upper.parent;
        lower.label = format!("{}/{}", upper.label, lower.label).into();
        self.node_bytes -= NODE_BYTES + ALLOCATION_BYTES - 1;
        self.link(child);
    }

    /// No walk waits any more: what was left as it was for them is put right.
    fn merge_late(&mut self) {
        if self.walks > 0 {
            return;
        }
        while let Some((node, generation)) = self.unmerged.pop() {
            if self.nodes.get(node).is_some_and(|known| known.generation == generation) {
                self.prune(node);
            }
        }
    }

    /// Makes a node a child of its parent.
    fn link(&mut self, node: NodeSlot) {
        let Node { parent, label, .. } = &self.nodes[node];
        let (hash, parent) = (self.hash(*parent, first_level(label)), *parent);
        let (nodes, hasher) = (&self.nodes, &self.hasher);
        self.edges.insert_unique(hash, node, |&edge| {
            let known = &nodes[edge];
            hash_of(hasher, known.parent, first_level(&known.label))
        });
        if parent != ROOT {
            self.nodes[parent].children += 1;
            self.nodes[parent].only_child ^= node.0;
        }
    }

    fn unlink(&mut self, node: NodeSlot) {
        let Node { parent, label, .. } = &self.nodes[node];
        let (hash, parent) = (self.hash(*parent, first_level(label)), *parent);
        let entry = self.edges.find_entry(hash, |&edge| edge == node);
        entry.expect("a node without an edge to it").remove();
        if parent != ROOT {
            self.nodes[parent].children -= 1;
            self.nodes[parent].only_child ^= node.0;
        }
    }

    fn child(&self, parent: NodeSlot, level: &str) -> Option<NodeSlot> {
        let is_it = |&edge: &NodeSlot| {
            let known = &self.nodes[edge];
            known.parent == parent && first_level(&known.label) == level
        };
        self.edges.find(self.hash(parent, level), is_it).copied()
    }

    fn filter_of(&self, node: NodeSlot) -> String {
        let mut labels = Vec::new();
        let mut at = node;
        while at != ROOT {
            labels.push(&*self.nodes[at].label);
            at = self.nodes[at].parent;
        }
        labels.reverse();
        labels.join("/")
    }

    fn hash(&self, parent: NodeSlot, level: &str) -> u64 {
        hash_of(&self.hasher, parent, level)
    }

    /// Panics when the parts disagree. For tests.
    pub fn check_invariants(&self) {
        let (mut count, mut bytes) = (0, 0);
        for (slot, node) in self.nodes.iter() {
            assert_eq!(self.child(node.parent, first_level(&node.label)), Some(slot), "node {slot} cannot be found");
            let children = self.nodes.iter().filter(|(_, child)| child.parent == slot);
            let (number, slots) = children.fold((0, 0), |(number, slots), (child, _)| (number + 1, slots ^ child.0));
            assert_eq!((number, slots), (node.children, node.only_child), "node {slot} has miscounted its children");
            let is_of_use = number > 1 || !node.subscribers.as_slice().is_empty();
            assert!(is_of_use || self.unmerged.contains(&(slot, node.generation)), "node {slot} is of no use");
            for (position, subscriber) in node.subscribers.as_slice().iter().enumerate() {
                let place = Place { node: slot, position: position as u32 };
                assert_eq!(self.place_of(subscriber.slot, slot), Some(place), "{subscriber:?} does not know its place");
                count += 1;
            }
            bytes += NODE_BYTES + node.label.len() + ALLOCATION_BYTES;
        }
        assert_eq!((count, bytes), (self.count, self.node_bytes));
        assert_eq!(self.own.iter().map(Places::len).sum::<usize>(), self.count);
        assert_eq!(self.edges.len(), self.nodes.len());
        assert!(self.walks > 0 || self.unmerged.len() <= self.nodes.len() || self.count == 0);
    }
}

fn first_level(label: &str) -> &str {
    label.split('/').next().unwrap_or(label)
}

/// How many bytes of two labels or filters are the same whole levels.
fn common_levels(one: &str, other: &str) -> usize {
    let same = one.split('/').zip(other.split('/')).take_while(|(one, other)| one == other);
    same.map(|(level, _)| level.len() + 1).sum::<usize>().saturating_sub(1)
}

fn hash_of(hasher: &SipHasher13, parent: NodeSlot, level: &str) -> u64 {
    let mut hasher = *hasher;
    parent.hash(&mut hasher);
    hasher.write(level.as_bytes());
    hasher.finish()
}

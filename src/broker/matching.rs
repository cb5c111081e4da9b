//! Matching as a cursor: what a publication comes to is found in steps, and what does not end in its turn goes on in the
//! next ones (decision 0014).
//!
//! ```text
//!   route ──▶ groups ──▶ subscribers ──▶ deliveries ──▶ (its part of the settlement is done)
//!               │             │               │
//!               └── visits are used up ───────┴── many deliveries wait ──▶ waits for the next turn
//! ```
//!
//! Nearly every publication ends at once: a few visits. Those that wait take turns, and do not hold up others: only what has
//! the same topic as one that waits goes behind it, in its order. A device of which one waits is read no further.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Broker;
use super::groups::GroupSlot;
use super::inflight::{Delivery, Identifiers};
use super::settlement::{Part, Token};
use super::subscriptions::{Subscriber, Walk};
use crate::codec::mqtt::subscribe::Options;
use crate::link::{Publication, Reach, SessionId};
use crate::slot::SessionSlot;

/// Nodes visited for what comes in one turn, at some 0.1 µs each; beyond that everything waits for the next turn.
const TURN_VISITS: usize = 16_384;
/// Nodes visited in one turn for what waits.
const WAITING_VISITS: usize = 8_192;
/// Nodes visited for one publication in one turn.
pub(super) const PUBLICATION_VISITS: usize = 1_024;
/// Publications that wait, at which publishers are read no further.
const WAITING_MAX: usize = 1_024;
/// Bytes of them at which they are not.
const WAITING_BYTES_MAX: usize = 4 << 20;

/// How far the matching of one publication has come.
#[derive(Debug, Default)]
struct Search {
    stage: Stage,
    walk: Walk,
    groups: Vec<Subscriber<GroupSlot>>,
    found: Vec<Found>,
    delivered: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Groups whose home is here.
    #[default]
    Groups,
    /// Sessions of this shard.
    Subscribers,
    /// One delivery for each session that was found.
    Deliveries,
}

/// A subscription that matches. By the time its delivery is made its session may have ended, and the slot be another's.
#[derive(Clone, Copy, Debug)]
struct Found {
    subscriber: Subscriber,
    generation: u32,
}

impl Search {
    fn clear(&mut self) {
        self.stage = Stage::Groups;
        self.walk.clear();
        self.groups.clear();
        self.found.clear();
        self.delivered = 0;
    }
}

/// A publication that waits.
#[derive(Debug)]
struct Waiting {
    publication: Arc<Publication>,
    token: Token,
    search: Search,
    /// One before it has the same topic.
    is_behind: bool,
}

/// The publications of one shard that are being matched.
#[derive(Debug, Default)]
pub(super) struct Matching {
    /// Visits left in this turn for what comes.
    visits: usize,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// Its buffers are used again.
    spare: Search,
}

impl Matching {
    pub(super) fn new() -> Self {
        Self { visits: TURN_VISITS, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn is_congested(&self) -> bool {
        self.waiting.len() >= WAITING_MAX || self.waiting_bytes >= WAITING_BYTES_MAX
    }

    fn has_topic(&self, topic: &str) -> bool {
        self.waiting.iter().any(|waiting| *waiting.publication.topic == *topic)
    }

    fn has_publisher(&self, publisher: SessionId) -> bool {
        self.waiting.iter().any(|waiting| waiting.publication.publisher == Some(publisher))
    }

    fn push(&mut self, waiting: Waiting) {
        self.waiting_bytes += waiting.publication.bytes();
        self.waiting.push_back(waiting);
    }

    /// One has come to its end: the next with its topic may go.
    fn remove(&mut self, at: usize) -> Option<Waiting> {
        let done = self.waiting.remove(at)?;
        self.waiting_bytes -= done.publication.bytes();
        let mut behind = self.waiting.iter_mut();
        if let Some(next) = behind.find(|waiting| waiting.publication.topic == done.publication.topic) {
            next.is_behind = false;
        }
        Some(done)
    }
}

impl Broker {
    /// Whether something that this session has published is still being matched.
    #[must_use]
    pub fn is_matching(&self, session: SessionSlot) -> bool {
        !self.matching.is_empty() && self.matching.has_publisher(self.id(session))
    }

    /// Finds who wants a publication, and makes a delivery for each, now or in later turns.
    pub(super) fn match_publication(&mut self, publication: &Arc<Publication>, token: Token) {
        let mut search = std::mem::take(&mut self.matching.spare);
        let is_behind = !self.matching.is_empty() && self.matching.has_topic(&publication.topic);
        if !is_behind {
            let allowed = self.matching.visits.min(PUBLICATION_VISITS);
            let mut visits = allowed;
            let is_done = self.search(publication, token, &mut search, &mut visits);
            self.matching.visits -= allowed - visits;
            if is_done {
                search.clear();
                self.matching.spare = search;
                return;
            }
        }
        self.settlements.add(token);
        self.matching.push(Waiting { publication: Arc::clone(publication), token, search, is_behind });
    }

    /// A new turn: what waits goes on.
    pub(super) fn advance_matching(&mut self) {
        self.matching.visits = TURN_VISITS;
        let (mut left, mut at) = (WAITING_VISITS, 0);
        while left > 0 && !self.has_many_deliveries() {
            let Some(waiting) = self.matching.waiting.get_mut(at) else { return };
            if waiting.is_behind {
                at += 1;
                continue;
            }
            let (publication, token) = (Arc::clone(&waiting.publication), waiting.token);
            let mut search = std::mem::take(&mut waiting.search);
            let allowed = left.min(PUBLICATION_VISITS);
            let mut visits = allowed;
            let is_done = self.search(&publication, token, &mut search, &mut visits);
            left -= allowed - visits;
            if is_done {
                self.matching.remove(at);
                self.settle(token, Part::Taken);
            } else {
                self.matching.waiting[at].search = search;
                at += 1;
            }
        }
    }

    /// Goes on with one. `true`: it has come to its end.
    fn search(
        &mut self,
        publication: &Arc<Publication>,
        token: Token,
        search: &mut Search,
        visits: &mut usize,
    ) -> bool {
        if search.stage == Stage::Groups && publication.reach == Reach::Elsewhere {
            // Groups get it from the fleet, once (decision 0033), or at its own gateway.
            search.stage = Stage::Subscribers;
        }
        if search.stage == Stage::Groups {
            if !self.routing.groups.advance(&publication.topic, &mut search.walk, visits, &mut search.groups) {
                return false;
            }
            for group in search.groups.drain(..) {
                if !self.routing.groups.gets_here(group, publication) {
                    continue;
                }
                if let Some((group, member)) = self.routing.groups.choose(group) {
                    self.give_to_member(group, member, publication, (token, 0, 0));
                }
            }
            search.walk.clear();
            search.stage = Stage::Subscribers;
        }
        if search.stage == Stage::Subscribers {
            if !self.find_subscribers(&publication.topic, search, visits) {
                return false;
            }
            // Overlapping subscriptions make one delivery.
            if search.found.len() > 1 {
                search.found.sort_by_key(|found| found.subscriber.slot);
            }
            search.stage = Stage::Deliveries;
        }
        self.make_deliveries(publication, token, search)
    }

    fn find_subscribers(&mut self, topic: &str, search: &mut Search, visits: &mut usize) -> bool {
        let mut found = std::mem::take(&mut self.found);
        let is_done = self.routing.subscriptions.advance(topic, &mut search.walk, visits, &mut found);
        let sessions = &self.sessions;
        search.found.extend(found.drain(..).filter_map(|subscriber| {
            let known = &sessions[subscriber.slot];
            (!known.is_retired()).then_some(Found { subscriber, generation: known.generation })
        }));
        self.found = found;
        is_done
    }

    fn make_deliveries(&mut self, publication: &Arc<Publication>, token: Token, search: &mut Search) -> bool {
        let publisher = publication.publisher.filter(|id| id.worker == self.worker);
        let publisher = publisher.and_then(|id| self.sessions.resolve(id));
        while let Some(&Found { subscriber, generation }) = search.found.get(search.delivered) {
            if self.has_many_deliveries() {
                return false;
            }
            let session = subscriber.slot;
            let rest = &search.found[search.delivered..];
            let own = rest.iter().take_while(|found| found.subscriber.slot == session);
            // No Local: not to the connection that published it [v5 MQTT-3.8.3-3].
            let is_wanted = |found: &&Found| {
                found.generation == generation
                    && !(publisher == Some(session) && found.subscriber.options & Options::NO_LOCAL != 0)
            };
            let wanted = own.clone().filter(is_wanted).map(|found| found.subscriber);
            let delivery = merge(publication, wanted, token);
            search.delivered += own.count();
            if let Some(delivery) = delivery.filter(|_| self.sessions.is_current(session, generation)) {
                self.push(session, delivery);
            }
        }
        true
    }
}

/// What the subscriptions of one session make of a publication: one delivery, under the highest QoS [v5 MQTT-3.3.4-2], and
/// with all identifiers [v5 MQTT-3.3.4-3, MQTT-3.3.4-4]. `None` where there are none.
pub(super) fn merge(
    publication: &Arc<Publication>,
    own: impl Iterator<Item = Subscriber>,
    token: Token,
) -> Option<Delivery> {
    let mut identifiers = Identifiers::None;
    let mut granted = None;
    let mut as_published = false;
    for subscriber in own {
        granted = granted.max(Some(subscriber.qos()));
        as_published |= subscriber.options & Options::RETAIN_AS_PUBLISHED != 0;
        identifiers.push(subscriber.identifier);
    }
    Some(Delivery {
        publication: Arc::clone(publication),
        qos: publication.qos.min(granted?),
        // [v5 MQTT-3.3.1-12, MQTT-3.3.1-13]; in v3.1.1 never [v3.1.1 MQTT-3.3.1-9].
        retain: publication.retain && as_published,
        identifiers,
        request: 0,
        group: None,
        tried: 0,
        token,
        number: 0,
    })
}

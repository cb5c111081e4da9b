//! Retained messages: the latest of each topic, for those who subscribe later.
//!
//! Each shard keeps them all (a message itself is shared), so that a subscriber finds them without asking around, and never
//! sees an older one behind a newer.
//!
//! **The tree of levels, laid flat.** The messages are one map in the byte order of their topics, in which everything below
//! a level is one unbroken range. So a walk prunes like a walk over a tree of levels, and seeks where that would descend: a
//! topic that a filter does not match tells the least topic behind it that the filter can match.
//!
//! ```text
//!   "+/b/#" over   a/b/x   a/c/1 … a/c/9   b/b   c/a …      looks: a/b/x (matches), a/c/1 → seek "a0",
//!                                                                  b/b (matches), c/a → seek "c/b", …
//! ```
//!
//! A message costs 16 bytes of the map: its topic is its own, and there are no nodes for levels. A walk's position is a
//! topic, valid whatever is stored or deleted meanwhile. A walk makes a bounded number of *looks* and then goes on later.
//!
//! **Order across shards.** Messages reach the shards in different orders; each carries a stamp from one order of the whole
//! process, and the later one stays. A deletion leaves a *tombstone*, lest an older message that is still on its way bring
//! the topic back: only while one can be on its way ([`Exchange::may_be_behind`]), and never longer. So there is none where
//! nothing is between shards. In a fleet an older message comes from another gateway whenever that comes back: there tombstones
//! stay as long as there is room. But one message may wait for long, for a subscriber who is slow, and as many deletions as
//! devices like come meanwhile. So tombstones have a bound in bytes, and beyond it the oldest become one number, the *floor*:
//! what was deleted at a lower stamp than that is not known any more. A message from below the floor is refused where its topic
//! has none, and then withdrawn by all shards: that is rare, and they agree. (Were the deletion refused instead, some
//! shards would tell newcomers of a message and some not.) Where the topic has one, no deletion came since, and it is kept.

mod shares;

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::{BTreeSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use crate::link::{Exchange, Publication, WorkerId};
use crate::pool::ALLOCATION_BYTES;
use shares::{Free, Shares};

/// Topics are compared byte by byte: beyond so many bytes one counts as a further look.
const LOOK_BYTES: usize = 256;
/// What a tombstone takes beyond its topic: the publication and its two counts, two allocations, a place in a tree at its usual
/// fill, and one in a queue that has doubled.
const TOMBSTONE_BYTES: usize = size_of::<Publication>() + 16 + 2 * ALLOCATION_BYTES + 28 + 16;
/// Tombstones forgotten for each message that comes: more than one, so that they go faster than they come.
const BURIED_AT_ONCE: usize = 4;
/// Tombstones forgotten in one turn in which nothing comes.
pub(super) const BURIED_IN_A_TURN: usize = 1_024;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// It is the latest of its topic.
    Stored,
    /// The topic has none any more.
    Deleted,
    /// A later one is here already.
    Stale,
    /// There is no room for another; or it comes from below the floor of what is known to be deleted, and its topic has none.
    Full,
}

/// Where a walk goes on.
#[derive(Clone, Debug, Default)]
pub enum Position {
    /// It has not begun.
    #[default]
    Start,
    /// Behind this message, which matched.
    After(Arc<Publication>),
    /// At this topic: the looks were used up before it.
    At(Box<str>),
}

/// What a walk came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// The next message that matches.
    Found(&'a Arc<Publication>),
    /// There are no more.
    End,
    /// The looks are used up; it goes on at this topic.
    Later(Box<str>),
}

/// A publication, in the order of topics.
struct Kept {
    publication: Arc<Publication>,
    /// The arrival sequence in this shard.
    arrival: u64,
}

impl Kept {
    fn topic(&self) -> &str {
        &self.publication.topic
    }
}

impl Borrow<str> for Kept {
    fn borrow(&self) -> &str {
        self.topic()
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.topic() == other.topic()
    }
}

impl Eq for Kept {}

impl PartialOrd for Kept {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Kept {
    fn cmp(&self, other: &Self) -> Ordering {
        self.topic().cmp(other.topic())
    }
}

const _: () = assert!(size_of::<Kept>() == 16);

/// The retained messages of one shard.
pub struct Retained {
    worker: WorkerId,
    /// The latest stamp heard from each worker: what one worker publishes arrives in its order.
    heard: Box<[u64]>,
    messages: BTreeSet<Kept>,
    /// Deletions that an older message could still undo.
    tombstones: BTreeSet<Kept>,
    /// The same, in the order of their arrival.
    graves: VecDeque<Arc<Publication>>,
    grave_bytes: usize,
    grave_bytes_max: usize,
    /// Deletions with lower stamps may be forgotten, though an older message may still be on its way.
    floor: u64,
    arrivals: u64,
    bytes: usize,
    messages_max: usize,
    bytes_max: usize,
    /// Of devices whose home this shard is.
    shares: Shares,
}

impl Retained {
    /// None yet, and at most so many messages and bytes of them, and bytes of tombstones, in the shard of `worker`, one of
    /// `workers`.
    #[must_use]
    pub fn new(
        worker: WorkerId,
        workers: u16,
        messages_max: usize,
        bytes_max: usize,
        tombstone_bytes_max: usize,
    ) -> Self {
        Self {
            worker,
            heard: vec![0; usize::from(workers)].into(),
            messages: BTreeSet::new(),
            tombstones: BTreeSet::new(),
            graves: VecDeque::new(),
            grave_bytes: 0,
            grave_bytes_max: tombstone_bytes_max,
            floor: 0,
            arrivals: 0,
            bytes: 0,
            messages_max,
            bytes_max,
            shares: Shares::default(),
        }
    }

    // --- Getters ----------------------------------------------------------------------------------------------------

    /// How many topics have one.
    #[must_use]
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether none has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// What they count as, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Deletions that are remembered, and their bytes.
    #[must_use]
    pub fn tombstones(&self) -> (usize, usize) {
        (self.graves.len(), self.grave_bytes)
    }

    /// The message of a topic.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Publication>> {
        self.messages.get(name).map(|kept| &kept.publication)
    }

    /// How many have arrived: whoever subscribes now hears of all later ones without asking here.
    #[must_use]
    pub fn arrivals(&self) -> u64 {
        self.arrivals
    }

    // --- Changes ----------------------------------------------------------------------------------------------------

    /// Keeps a publication with a stamp as the message of its topic, or, where its payload is empty, deletes that
    /// [v5 MQTT-3.3.1-6, MQTT-3.3.1-7], unless a later one was here before.
    pub fn set(&mut self, publication: &Arc<Publication>, exchange: &Exchange) -> Set {
        let (stamp, topic) = (publication.stamp, &*publication.topic);
        let is_later = |kept: &Kept| kept.publication.stamp >= stamp;
        debug_assert!(!stamp.is_none());
        let is_stale =
            self.messages.get(topic).is_some_and(is_later) || self.tombstones.get(topic).is_some_and(is_later);
        // Not before: it may be the last message that a tombstone was there for.
        if let Some(from) = publication.shard {
            let heard = &mut self.heard[from.index()];
            *heard = (*heard).max(stamp.clock);
        }
        self.bury(exchange, BURIED_AT_ONCE);
        match (is_stale, publication.payload.is_empty()) {
            (true, _) => Set::Stale,
            (false, true) => self.delete(publication, exchange),
            (false, false) => self.store(publication),
        }
    }

    /// Keeps a message that an earlier process has left, before any other: whatever is published is later. `false`: there is no
    /// room for it.
    pub fn restore(&mut self, publication: &Arc<Publication>) -> bool {
        self.store(publication) == Set::Stored
    }

    fn store(&mut self, publication: &Arc<Publication>) -> Set {
        let (topic, bytes) = (&*publication.topic, publication.bytes());
        // What comes from elsewhere is as old as it is.
        let is_below = publication.shard.is_some() && publication.stamp.clock < self.floor;
        if is_below && !self.messages.contains(topic) {
            return Set::Full;
        }
        let old = self.messages.get(topic).map(|kept| &*kept.publication);
        let others = self.messages.len() - usize::from(old.is_some());
        let other_bytes = self.bytes - old.map_or(0, Publication::bytes);
        let free = Free {
            messages: self.messages_max.saturating_sub(others),
            bytes: self.bytes_max.saturating_sub(other_bytes),
        };
        if free.messages == 0 || free.bytes < bytes {
            return Set::Full;
        }
        let is_own = self.is_own(publication);
        let own_old = old.filter(|old| self.is_own(old));
        if is_own && !self.shares.may_keep(publication, own_old, free) {
            return Set::Full;
        }
        self.bytes = other_bytes + bytes;
        self.arrivals += 1;
        let kept = Kept { publication: Arc::clone(publication), arrival: self.arrivals };
        if let Some(old) = self.messages.replace(kept) {
            self.note_gone(&old.publication);
        }
        if is_own {
            self.shares.note_kept(publication);
        }
        // Its place in `graves` is found to be nobody's when it is its turn.
        self.tombstones.remove(topic);
        Set::Stored
    }

    fn delete(&mut self, publication: &Arc<Publication>, exchange: &Exchange) -> Set {
        if exchange.is_of_fleet() || exchange.may_be_behind(publication.stamp.clock, self.worker, &self.heard) {
            self.entomb(publication);
        } else {
            self.tombstones.remove(&*publication.topic);
        }
        if let Some(deleted) = self.messages.take(&*publication.topic) {
            self.bytes -= deleted.publication.bytes();
            self.note_gone(&deleted.publication);
        }
        Set::Deleted
    }

    /// Remembers a deletion. The oldest ones make room for it, and raise the floor.
    fn entomb(&mut self, deletion: &Arc<Publication>) {
        let bytes = tombstone_bytes(deletion);
        if bytes > self.grave_bytes_max {
            self.floor = self.floor.max(deletion.stamp.clock);
            self.tombstones.remove(&*deletion.topic);
            return;
        }
        while self.grave_bytes + bytes > self.grave_bytes_max
            && let Some(oldest) = self.graves.pop_front()
        {
            self.floor = self.floor.max(oldest.stamp.clock);
            self.forget(&oldest);
        }
        self.grave_bytes += bytes;
        self.graves.push_back(Arc::clone(deletion));
        self.tombstones.replace(Kept { publication: Arc::clone(deletion), arrival: 0 });
    }

    /// A deletion has left the queue: its tombstone goes, unless it is a later one's.
    fn forget(&mut self, deletion: &Publication) {
        self.grave_bytes -= tombstone_bytes(deletion);
        if self.tombstones.get(&*deletion.topic).is_some_and(|kept| kept.publication.stamp == deletion.stamp) {
            self.tombstones.remove(&*deletion.topic);
        }
    }

    /// Whether a message is of a device whose home this shard is: its share is counted here, and nowhere else.
    fn is_own(&self, publication: &Publication) -> bool {
        publication.shard == Some(self.worker)
    }

    fn note_gone(&mut self, publication: &Publication) {
        if self.is_own(publication) {
            self.shares.note_gone(publication);
        }
    }

    /// Forgets at most `limit` tombstones before which nothing is on its way any more.
    pub fn bury(&mut self, exchange: &Exchange, limit: usize) {
        if exchange.is_of_fleet() {
            return;
        }
        for _ in 0..limit {
            let Some(oldest) = self.graves.front() else { return };
            if exchange.may_be_behind(oldest.stamp.clock, self.worker, &self.heard) {
                return;
            }
            let Some(oldest) = self.graves.pop_front() else { return };
            self.forget(&oldest);
        }
        if self.graves.len() < self.graves.capacity() / 4 {
            self.graves.shrink_to(self.graves.len() * 2);
        }
    }

    // --- Walks ------------------------------------------------------------------------------------------------------

    /// The next message, in the order of topics, whose topic a valid filter (not a shared one) matches, and which was not
    /// later than so many `arrivals`. Takes from `looks` what it needs, and stops when none are left.
    pub fn next_matching(&self, filter: &str, arrivals: u64, position: &Position, looks: &mut usize) -> Step<'_> {
        let mut from = match position {
            // Everything that matches begins with what is before the first wildcard; "a/#" matches "a" too.
            Position::Start => {
                let literal = filter.find(['+', '#']).unwrap_or(filter.len());
                let literal = if literal == filter.len() { filter } else { filter[..literal].trim_end_matches('/') };
                Bound::Included(literal.to_owned())
            }
            Position::After(last) => Bound::Excluded(last.topic.to_string()),
            Position::At(topic) => Bound::Included(topic.to_string()),
        };
        loop {
            let range = self.messages.range::<str, _>((from.as_ref().map(String::as_str), Bound::Unbounded));
            let mut seek = None;
            for kept in range {
                let topic = kept.topic();
                if *looks == 0 {
                    return Step::Later(topic.into());
                }
                *looks = looks.saturating_sub(1 + topic.len() / LOOK_BYTES);
                match compare(filter, topic) {
                    Compared::Matches if kept.arrival <= arrivals => return Step::Found(&kept.publication),
                    Compared::Matches | Compared::PerhapsNext => {}
                    Compared::PerhapsFrom(next) => {
                        debug_assert!(*next > *topic);
                        seek = Some(next);
                        break;
                    }
                    Compared::NoMore => return Step::End,
                }
            }
            let Some(next) = seek else { return Step::End };
            from = Bound::Included(next);
        }
    }

    /// Panics when the parts disagree. For tests.
    pub fn check_invariants(&self) {
        let bytes =
            |publications: &BTreeSet<Kept>| -> usize { publications.iter().map(|kept| kept.publication.bytes()).sum() };
        assert_eq!(self.bytes, bytes(&self.messages));
        self.shares.check(self.messages.iter().map(|kept| &kept.publication).filter(|kept| self.is_own(kept)));
        assert_eq!(self.grave_bytes, self.graves.iter().map(|grave| tombstone_bytes(grave)).sum::<usize>());
        assert!(self.grave_bytes <= self.grave_bytes_max);
        for tombstone in &self.tombstones {
            assert!(!self.messages.contains(tombstone), "a topic is dead and alive");
            let stamp = tombstone.publication.stamp;
            assert!(self.graves.iter().any(|grave| grave.stamp == stamp), "a tombstone that will never go");
        }
    }
}

/// What one takes, in bytes.
fn tombstone_bytes(deletion: &Publication) -> usize {
    deletion.bytes() + TOMBSTONE_BYTES
}

/// How a topic stands to a filter in a walk in the order of topics.
#[derive(Debug, PartialEq, Eq)]
enum Compared {
    Matches,
    /// It does not; the one behind it may.
    PerhapsNext,
    /// It does not, nor does any below this one, which is behind it.
    PerhapsFrom(String),
    /// It does not, nor does any behind it.
    NoMore,
}

fn compare(filter: &str, topic: &str) -> Compared {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        // [MQTT-4.7.2-1]
        return Compared::PerhapsFrom(char::from(b'$' + 1).to_string());
    }
    // Where the level of the topic begins, and where the last one ended that a "+" stood for: the next topic that has
    // another level there is the next chance.
    let (mut at, mut plus_ended) = (0, None);
    let mut wanted = filter.split('/').peekable();
    while let Some(level) = wanted.next() {
        if level == "#" {
            return Compared::Matches;
        }
        // Behind the last level of the topic.
        if at > topic.len() {
            return Compared::PerhapsNext;
        }
        let end = topic[at..].find('/').map_or(topic.len(), |length| at + length);
        if level == "+" {
            plus_ended = Some(end);
        } else if level != &topic[at..end] {
            let rest = &topic[at..];
            if rest < level {
                return Compared::PerhapsFrom(format!("{}{level}", &topic[..at]));
            }
            // "b-/c" is behind "b" and before "b/c".
            if wanted.peek().is_some() && rest.strip_prefix(level).is_some_and(|more| more < "/") {
                return Compared::PerhapsFrom(format!("{}{level}/", &topic[..at]));
            }
            return behind(topic, plus_ended);
        }
        at = end + 1;
    }
    if at > topic.len() { Compared::Matches } else { behind(topic, plus_ended) }
}

/// Behind everything that has the same level as `topic` where the last "+" of the filter stands.
fn behind(topic: &str, plus_ended: Option<usize>) -> Compared {
    match plus_ended {
        Some(end) => Compared::PerhapsFrom(format!("{}{}", &topic[..end], char::from(b'/' + 1))),
        None => Compared::NoMore,
    }
}

#[cfg(test)]
mod tests;

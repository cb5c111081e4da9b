//! Shared subscriptions: the groups whose home this shard is, and who of their members gets the next message.
//!
//! A group is known to one shard, its home, wherever its members live; so a message reaches exactly one of them without
//! a lock. Members whose devices are connected take turns; only when none is, those that are away do.

use std::sync::Arc;

use hashbrown::HashMap;
use slab::Slab;

use super::subscriptions::{Subscriber, Subscriptions, Walk};
use crate::link::SessionId;
use crate::pool::ALLOCATION_BYTES;

/// One session in one group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) session: SessionId,
    pub(super) options: u8,
    pub(super) identifier: u32,
    pub(super) is_online: bool,
}

struct Group {
    name: Arc<str>,
    members: Vec<Member>,
    next: usize,
    /// Slots are reused, generations are not.
    generation: u32,
}

/// A member in its group, with what the vector keeps free.
const MEMBER_BYTES: usize = 2 * size_of::<Member>();

/// A group beside its members and its filter, in bytes.
const fn group_bytes(name: &str) -> usize {
    size_of::<Group>() + 2 * size_of::<(Arc<str>, u32)>() + name.len() + ALLOCATION_BYTES
}

/// The groups at home here.
pub(super) struct Groups {
    all: Slab<Group>,
    by_name: HashMap<Arc<str>, u32>,
    /// The groups as subscribers of their filters, with their generations as identifiers.
    filters: Subscriptions,
    generations: u32,
    /// Bytes of names and members.
    bytes: usize,
}

impl Groups {
    pub(super) fn new(key: u64) -> Self {
        Self { all: Slab::new(), by_name: HashMap::new(), filters: Subscriptions::new(key), generations: 0, bytes: 0 }
    }

    /// What all of them take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.filters.bytes()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Takes in a member, or what has changed about one. `name` is `$share/NAME/FILTER`, with this `filter`.
    pub(super) fn join(&mut self, name: &Arc<str>, filter: &str, member: Member) {
        let index = self.by_name.get(name).copied().unwrap_or_else(|| self.make(name, filter));
        let members = &mut self.all[index as usize].members;
        if let Some(known) = members.iter_mut().find(|known| known.session == member.session) {
            *known = member;
        } else {
            members.push(member);
            self.bytes += MEMBER_BYTES;
        }
    }

    fn make(&mut self, name: &Arc<str>, filter: &str) -> u32 {
        self.generations = self.generations.wrapping_add(1);
        self.bytes += group_bytes(name);
        let generation = self.generations;
        let group = Group { name: Arc::clone(name), members: Vec::new(), next: 0, generation };
        let index = self.all.insert(group) as u32;
        self.by_name.insert(Arc::clone(name), index);
        self.filters.subscribe(filter, Subscriber { session: index, identifier: generation, options: 0 });
        index
    }

    /// Lets a member go; a group without any is no more.
    pub(super) fn leave(&mut self, name: &str, session: SessionId) {
        let Some(&index) = self.by_name.get(name) else { return };
        let group = &mut self.all[index as usize];
        let before = group.members.len();
        group.members.retain(|member| member.session != session);
        self.bytes -= (before - group.members.len()) * MEMBER_BYTES;
        if group.members.is_empty() {
            self.filters.remove_all(index);
            self.by_name.remove(name);
            self.bytes -= group_bytes(name);
            self.all.remove(index as usize);
        }
    }

    /// Goes on with a walk, as [`Subscriptions::advance`], for the groups that want a topic; [`Groups::choose`] takes what
    /// is found.
    pub(super) fn advance(
        &mut self,
        topic: &str,
        walk: &mut Walk,
        visits: &mut usize,
        found: &mut Vec<Subscriber>,
    ) -> bool {
        self.filters.advance(topic, walk, visits, found)
    }

    /// Chooses a member of a group that was found; `None` where the group is no more.
    pub(super) fn choose(&mut self, found: Subscriber) -> Option<(Arc<str>, Member)> {
        let group = self.all.get_mut(found.session as usize)?;
        if group.generation != found.identifier {
            return None;
        }
        group.choose().map(|member| (Arc::clone(&group.name), member))
    }

    /// Chooses a member of one group.
    pub(super) fn choose_in(&mut self, name: &str) -> Option<Member> {
        let &index = self.by_name.get(name)?;
        self.all[index as usize].choose()
    }

    pub(super) fn check_invariants(&self) {
        assert_eq!(self.all.len(), self.by_name.len());
        assert_eq!(self.all.len(), self.filters.len());
        let mut bytes = 0;
        for (_, group) in &self.all {
            assert!(!group.members.is_empty(), "a group without members");
            bytes += group_bytes(&group.name) + group.members.len() * MEMBER_BYTES;
        }
        assert_eq!(bytes, self.bytes);
    }
}

impl Group {
    fn choose(&mut self) -> Option<Member> {
        let count = self.members.len();
        let turns = || (0..count).map(|step| (self.next + step) % count);
        let place = turns().find(|&place| self.members[place].is_online).or_else(|| turns().next())?;
        self.next = (place + 1) % count;
        Some(self.members[place])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::WorkerId;

    fn member(index: u32, is_online: bool) -> Member {
        let session = SessionId { worker: WorkerId(0), index, generation: 1 };
        Member { session, options: 1, identifier: 0, is_online }
    }

    #[test]
    fn those_who_are_there_take_turns_and_the_others_come_last() {
        let name: Arc<str> = "$share/g/a/+".into();
        let mut groups = Groups::new(1);
        for index in 0..3 {
            groups.join(&name, "a/+", member(index, true));
        }
        groups.join(&name, "a/+", member(1, false));
        let mut next = || {
            let (mut found, mut visits) = (Vec::new(), 100);
            assert!(groups.advance("a/b", &mut Walk::default(), &mut visits, &mut found));
            assert_eq!(found.len(), 1);
            groups.choose(found[0]).unwrap().1.session.index
        };
        assert_eq!([next(), next(), next(), next()], [0, 2, 0, 2]);
        groups.leave(&name, member(0, true).session);
        groups.leave(&name, member(2, true).session);
        assert_eq!(groups.choose_in(&name).unwrap().session.index, 1);
        groups.leave(&name, member(1, true).session);
        assert!(groups.is_empty() && groups.choose_in(&name).is_none());
        groups.check_invariants();
    }
}

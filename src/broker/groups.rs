//! Shared subscriptions: the groups whose home this shard is, and who of their members gets the next message.
//!
//! A group is known to one shard, its home, wherever its members live; so a message reaches exactly one of them without
//! a lock. Members whose devices are connected take turns; only when none is, those that are away do.

use std::sync::Arc;

use hashbrown::HashMap;
use slab::Slab;

use super::subscriptions::{Subscriber, Subscriptions};
use crate::link::SessionId;

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
}

/// The groups at home here.
pub(super) struct Groups {
    all: Slab<Group>,
    by_name: HashMap<Arc<str>, u32>,
    /// The groups as subscribers of their filters.
    filters: Subscriptions,
}

impl Groups {
    pub(super) fn new(key: u64) -> Self {
        Self { all: Slab::new(), by_name: HashMap::new(), filters: Subscriptions::new(key) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Takes in a member, or what has changed about one. `name` is `$share/NAME/FILTER`, with this `filter`.
    pub(super) fn join(&mut self, name: &Arc<str>, filter: &str, member: Member) {
        let index = self.by_name.get(name).copied().unwrap_or_else(|| self.make(name, filter));
        let members = &mut self.all[index as usize].members;
        match members.iter_mut().find(|known| known.session == member.session) {
            Some(known) => *known = member,
            None => members.push(member),
        }
    }

    fn make(&mut self, name: &Arc<str>, filter: &str) -> u32 {
        let group = Group { name: Arc::clone(name), members: Vec::new(), next: 0 };
        let index = self.all.insert(group) as u32;
        self.by_name.insert(Arc::clone(name), index);
        self.filters.subscribe(filter, Subscriber { session: index, identifier: 0, options: 0 });
        index
    }

    /// Lets a member go; a group without any is no more.
    pub(super) fn leave(&mut self, name: &str, session: SessionId) {
        let Some(&index) = self.by_name.get(name) else { return };
        let group = &mut self.all[index as usize];
        group.members.retain(|member| member.session != session);
        if group.members.is_empty() {
            self.filters.remove_all(index);
            self.by_name.remove(name);
            self.all.remove(index as usize);
        }
    }

    /// Chooses a member in each group that wants the topic, and appends group and member.
    pub(super) fn choose(&mut self, topic: &str, scratch: &mut Vec<Subscriber>, chosen: &mut Vec<(Arc<str>, Member)>) {
        if self.all.is_empty() {
            return;
        }
        scratch.clear();
        self.filters.matching(topic, scratch);
        for subscriber in scratch.drain(..) {
            let group = &mut self.all[subscriber.session as usize];
            chosen.extend(group.choose().map(|member| (Arc::clone(&group.name), member)));
        }
    }

    /// Chooses a member of one group.
    pub(super) fn choose_in(&mut self, name: &str) -> Option<Member> {
        let &index = self.by_name.get(name)?;
        self.all[index as usize].choose()
    }

    pub(super) fn check_invariants(&self) {
        assert_eq!(self.all.len(), self.by_name.len());
        assert_eq!(self.all.len(), self.filters.len());
        for (_, group) in &self.all {
            assert!(!group.members.is_empty(), "a group without members");
        }
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
            let mut chosen = Vec::new();
            groups.choose("a/b", &mut Vec::new(), &mut chosen);
            assert_eq!(chosen.len(), 1);
            chosen[0].1.session.index
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

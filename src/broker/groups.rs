//! Shared subscriptions: the groups whose home this shard is, and who of their members gets the next message.
//!
//! A group is known to one shard, its home, wherever its members live; so a message reaches exactly one of them without
//! a lock. Members whose devices are connected take turns; only when none is, those that are away do. Whoever joins, leaves,
//! comes or goes is found by a table, and those who are connected stand before the others: none of it, and no choice, takes
//! longer in a group of 100,000 than in one of two.
//!
//! In a fleet the home of a group is told who gives it what goes up (decision 0033), and whoever subscribes waits until it was:
//!
//! ```text
//!   the first member ──▶ told of, undecided: this gateway gives ──▶ [`Giver`]: the fleet, this gateway for now, or each its own
//! ```

use std::sync::Arc;

use hashbrown::HashMap;

use super::subscriptions::{Subscriber, Subscriptions, Walk};
use crate::link::{Exchange, Giver, Publication, Reach, SessionId, WorkerEvent};
use crate::pool::ALLOCATION_BYTES;
use crate::slot::{Table, slot};

slot! {
    /// A group at its home.
    pub(super) struct GroupSlot
}

/// One session in one group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    pub(super) session: SessionId,
    pub(super) options: u8,
    pub(super) identifier: u32,
    /// How much of what the fleet gives it may have that is not acknowledged; 0: its device is not connected.
    pub(super) room: u16,
}

impl Member {
    fn is_online(&self) -> bool {
        self.room > 0
    }
}

struct Group {
    name: Arc<str>,
    /// Those whose devices are connected stand before the others.
    members: Vec<Member>,
    /// How many of them are connected,
    online: usize,
    /// and how much room they have together.
    room: u32,
    next: usize,
    /// Slots are reused, generations are not.
    generation: u32,
    /// Who gives it what goes up, and whether that was decided.
    giver: Giver,
    is_decided: bool,
    /// Whoever has subscribed and waits for that.
    waiting: Vec<Waiting>,
    /// Of how many members, and how much room, the control plane was told.
    told: (u32, u32),
    /// It is among those of whom something may be to be told.
    is_changed: bool,
}

/// A session that has subscribed, and the number of its SUBSCRIBE.
pub(super) type Waiting = (SessionId, u32);

/// So many members are tried for what the fleet gives, before it goes back to the fleet.
const TRIED_MAX: u8 = 16;

/// The control plane is told when as many members have come or gone as are one in so many of those it knows of.
const TOLD_PART: u32 = 8;

/// By group and session: where the member stands.
type Places = HashMap<(GroupSlot, SessionId), u32>;

/// A member in its group and in the table of places, with what both keep free.
const MEMBER_BYTES: usize = 2 * (size_of::<Member>() + size_of::<((GroupSlot, SessionId), u32)>());

/// A group beside its members and its filter, in bytes.
const fn group_bytes(name: &str) -> usize {
    size_of::<Group>() + 2 * size_of::<(Arc<str>, GroupSlot)>() + name.len() + ALLOCATION_BYTES
}

/// The groups at home here.
pub(super) struct Groups {
    all: Table<GroupSlot, Group>,
    by_name: HashMap<Arc<str>, GroupSlot>,
    places: Places,
    /// The groups as subscribers of their filters, with their generations as identifiers.
    filters: Subscriptions<GroupSlot>,
    generations: u32,
    /// Bytes of names and members.
    bytes: usize,
    /// What is said in a fleet; `None`: there is none.
    fleet: Option<Arc<Exchange>>,
    /// Those of whom something may be to be told, with their generations,
    changed: Vec<(GroupSlot, u32)>,
    /// and those that are no more.
    gone: Vec<(Arc<str>, u32)>,
}

impl Groups {
    pub(super) fn new(key: u64) -> Self {
        Self {
            all: Table::new(),
            by_name: HashMap::new(),
            places: HashMap::new(),
            filters: Subscriptions::new(key),
            generations: 0,
            bytes: 0,
            fleet: None,
            changed: Vec::new(),
            gone: Vec::new(),
        }
    }

    /// From now on it is said which groups there are.
    pub(super) fn begin_fleet(&mut self, exchange: Arc<Exchange>) {
        self.fleet = Some(exchange);
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
        let slot = self.by_name.get(name).copied().unwrap_or_else(|| self.make(name, filter));
        let group = &mut self.all[slot];
        let place = if let Some(&place) = self.places.get(&(slot, member.session)) {
            place as usize
        } else {
            self.bytes += MEMBER_BYTES;
            group.members.push(Member { room: 0, ..member });
            self.places.insert((slot, member.session), group.members.len() as u32 - 1);
            group.members.len() - 1
        };
        let before = std::mem::replace(&mut group.members[place], member);
        group.room = group.room + u32::from(member.room) - u32::from(before.room);
        if member.is_online() && !before.is_online() {
            group.swap(place, group.online, slot, &mut self.places);
            group.online += 1;
        } else if before.is_online() && !member.is_online() {
            group.online -= 1;
            group.swap(place, group.online, slot, &mut self.places);
        }
        self.note_changed(slot);
    }

    fn note_changed(&mut self, slot: GroupSlot) {
        let group = &mut self.all[slot];
        if self.fleet.is_some() && !group.is_changed {
            group.is_changed = true;
            self.changed.push((slot, group.generation));
        }
    }

    fn make(&mut self, name: &Arc<str>, filter: &str) -> GroupSlot {
        self.generations = self.generations.wrapping_add(1);
        self.bytes += group_bytes(name);
        let generation = self.generations;
        let is_noted = self.fleet.as_ref().is_some_and(|fleet| fleet.groups_here().add(name));
        let group = Group {
            name: Arc::clone(name),
            members: Vec::new(),
            online: 0,
            room: 0,
            next: 0,
            generation,
            giver: if is_noted { Giver::Here } else { Giver::Each },
            is_decided: self.fleet.is_none(),
            waiting: Vec::new(),
            told: (0, 0),
            is_changed: false,
        };
        let slot = self.all.insert(group);
        self.by_name.insert(Arc::clone(name), slot);
        self.filters.subscribe(filter, Subscriber { slot, identifier: generation, options: 0 });
        slot
    }

    /// Lets a member go; a group without any is no more. Whoever waited for what is decided about it does so no longer.
    pub(super) fn leave(&mut self, name: &str, session: SessionId) -> Vec<Waiting> {
        let Some(&slot) = self.by_name.get(name) else { return Vec::new() };
        let Some(place) = self.places.remove(&(slot, session)) else { return Vec::new() };
        let group = &mut self.all[slot];
        let mut place = place as usize;
        if place < group.online {
            group.online -= 1;
            group.swap(place, group.online, slot, &mut self.places);
            place = group.online;
        }
        let last = group.members.len() - 1;
        group.swap(place, last, slot, &mut self.places);
        let left = group.members.pop();
        group.room -= left.map_or(0, |left| u32::from(left.room));
        self.places.remove(&(slot, session));
        self.bytes -= MEMBER_BYTES;
        if group.members.is_empty() {
            self.filters.remove_all(slot);
            self.by_name.remove(name);
            self.bytes -= group_bytes(name);
            let Group { name, generation, told, waiting, .. } = self.all.remove(slot);
            if let Some(fleet) = &self.fleet {
                fleet.groups_here().remove(&name);
                if told.0 > 0 {
                    self.gone.push((name, generation));
                }
            }
            return waiting;
        }
        self.note_changed(slot);
        Vec::new()
    }

    // --- In a fleet ---------------------------------------------------------------------------------------------------

    /// Whether somebody who has just joined waits for what is decided about the group: then it is among those who are told.
    pub(super) fn wait(&mut self, name: &str, waiting: Waiting) -> bool {
        let Some(&slot) = self.by_name.get(name) else { return false };
        let group = &mut self.all[slot];
        if group.is_decided || waiting.1 == 0 {
            return false;
        }
        group.waiting.push(waiting);
        true
    }

    /// Whether it is not decided who gives to a group at home here.
    pub(super) fn is_undecided(&self, name: &str) -> bool {
        self.by_name.get(name).is_some_and(|&slot| !self.all[slot].is_decided)
    }

    /// It is decided who gives to a group. Whoever has waited for that.
    pub(super) fn decide(&mut self, name: &str, life: u32, giver: Giver) -> Vec<Waiting> {
        let (Some(&slot), Some(fleet)) = (self.by_name.get(name), &self.fleet) else { return Vec::new() };
        let group = &mut self.all[slot];
        if group.generation != life {
            return Vec::new();
        }
        group.giver = match giver {
            Giver::Here if !fleet.groups_here().add(&group.name) => Giver::Each,
            Giver::Here => Giver::Here,
            Giver::Fleet | Giver::Each => {
                fleet.groups_here().remove(name);
                giver
            }
        };
        group.is_decided = true;
        std::mem::take(&mut group.waiting)
    }

    /// Whether a group that was found gets this here: what goes up is the fleet's to give, but where whoever published it has said
    /// that it is given here.
    pub(super) fn gets_here(&self, found: Subscriber<GroupSlot>, publication: &Publication) -> bool {
        let Some(group) = self.all.get(found.slot) else { return false };
        if self.fleet.is_none() || publication.reach == Reach::Here || group.giver == Giver::Each {
            return true;
        }
        publication.groups.iter().flat_map(|all| all.iter()).any(|name| *name == group.name)
    }

    /// Whether something may be to be told.
    pub(super) fn has_events(&self) -> bool {
        !self.changed.is_empty() || !self.gone.is_empty()
    }

    /// What the control plane is to be told: which groups have come and gone, and of which many members have.
    pub(super) fn take_events(&mut self) -> Vec<WorkerEvent> {
        let gone = self.gone.drain(..);
        let gone = gone.map(|(group, life)| WorkerEvent::Group { group, life, members: 0, room: 0 });
        let mut events: Vec<WorkerEvent> = gone.collect();
        for (slot, generation) in std::mem::take(&mut self.changed) {
            let Some(group) = self.all.get_mut(slot).filter(|group| group.generation == generation) else { continue };
            group.is_changed = false;
            let (members, room) = (group.members.len() as u32, group.room);
            let is_little =
                |told: u32, now: u32| (told == 0) == (now == 0) && told.abs_diff(now) * TOLD_PART < told.max(1);
            if !is_little(group.told.0, members) || !is_little(group.told.1, room) {
                group.told = (members, room);
                events.push(WorkerEvent::Group { group: Arc::clone(&group.name), life: generation, members, room });
            }
        }
        events
    }

    /// Chooses a member of one group whose device is connected.
    pub(super) fn choose_online_in(&mut self, name: &str) -> Option<(Arc<str>, Member)> {
        let &slot = self.by_name.get(name)?;
        let group = &mut self.all[slot];
        if group.online == 0 {
            return None;
        }
        group.choose().map(|member| (Arc::clone(&group.name), member))
    }

    /// Chooses the next one after this member, which had no room, as so many have had none: whose turn it is does not change. `None` when they
    /// were as many as are connected, or [`TRIED_MAX`].
    pub(super) fn choose_after(&self, name: &str, member: SessionId, tried: u8) -> Option<(Arc<str>, Member)> {
        let &slot = self.by_name.get(name)?;
        let group = &self.all[slot];
        if usize::from(tried) >= group.online.min(usize::from(TRIED_MAX)) {
            return None;
        }
        let place = self.places.get(&(slot, member)).map_or(0, |&place| place as usize + 1);
        Some((Arc::clone(&group.name), group.members[place % group.online]))
    }

    /// Goes on with a walk, as [`Subscriptions::advance`], for the groups that want a topic; [`Groups::choose`] takes what
    /// is found.
    pub(super) fn advance(
        &mut self,
        topic: &str,
        walk: &mut Walk,
        visits: &mut usize,
        found: &mut Vec<Subscriber<GroupSlot>>,
    ) -> bool {
        self.filters.advance(topic, walk, visits, found)
    }

    /// Chooses a member of a group that was found; `None` where the group is no more.
    pub(super) fn choose(&mut self, found: Subscriber<GroupSlot>) -> Option<(Arc<str>, Member)> {
        let group = self.all.get_mut(found.slot)?;
        if group.generation != found.identifier {
            return None;
        }
        group.choose().map(|member| (Arc::clone(&group.name), member))
    }

    /// Chooses a member of one group.
    pub(super) fn choose_in(&mut self, name: &str) -> Option<Member> {
        let &slot = self.by_name.get(name)?;
        self.all[slot].choose()
    }

    pub(super) fn check_invariants(&self) {
        assert_eq!(self.all.len(), self.by_name.len());
        assert_eq!(self.all.len(), self.filters.len());
        let (mut bytes, mut members) = (0, 0);
        for (slot, group) in self.all.iter() {
            assert!(!group.members.is_empty(), "a group without members");
            assert_eq!(group.room, group.members.iter().map(|member| u32::from(member.room)).sum::<u32>());
            bytes += group_bytes(&group.name) + group.members.len() * MEMBER_BYTES;
            members += group.members.len();
            for (place, member) in group.members.iter().enumerate() {
                assert_eq!(self.places.get(&(slot, member.session)), Some(&(place as u32)));
                assert_eq!(member.is_online(), place < group.online, "those who are connected stand first");
            }
        }
        assert_eq!(members, self.places.len(), "there is a place of nobody");
        assert_eq!(bytes, self.bytes);
    }
}

impl Group {
    fn choose(&mut self) -> Option<Member> {
        let candidates = if self.online > 0 { &self.members[..self.online] } else { &self.members[..] };
        let place = self.next.checked_rem(candidates.len())?;
        self.next = place + 1;
        Some(candidates[place])
    }

    /// Two members change places; whoever is not in the table stays out of it.
    fn swap(&mut self, one: usize, other: usize, group: GroupSlot, places: &mut Places) {
        self.members.swap(one, other);
        for place in [one, other] {
            if let Some(known) = places.get_mut(&(group, self.members[place].session)) {
                *known = place as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::WorkerId;
    use crate::slot::SessionSlot;

    fn member(index: u32, is_online: bool) -> Member {
        let session = SessionId { worker: WorkerId(0), slot: SessionSlot(index), generation: 1 };
        Member { session, options: 1, identifier: 0, room: if is_online { 1 + index as u16 % 4 } else { 0 } }
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
            groups.choose(found[0]).unwrap().1.session.slot.0
        };
        assert_eq!([next(), next(), next(), next()], [0, 2, 0, 2]);
        groups.leave(&name, member(0, true).session);
        groups.leave(&name, member(2, true).session);
        assert_eq!(groups.choose_in(&name).unwrap().session.slot.0, 1);
        groups.leave(&name, member(1, true).session);
        assert!(groups.is_empty() && groups.choose_in(&name).is_none());
        groups.check_invariants();
    }

    #[test]
    fn who_has_no_room_is_followed_by_each_of_the_others_once() {
        let name: Arc<str> = "$share/g/a".into();
        let mut groups = Groups::new(1);
        (0..6).for_each(|index| groups.join(&name, "a", member(index, index != 3)));
        for first in [0, 2, 5] {
            let mut tried = vec![member(first, true).session];
            while let Some((_, next)) = groups.choose_after(&name, *tried.last().unwrap(), tried.len() as u8) {
                assert!(next.is_online() && !tried.contains(&next.session), "{tried:?}");
                tried.push(next.session);
            }
            assert_eq!(tried.len(), 5);
        }
        assert!(groups.choose_after(&name, member(3, false).session, 1).is_some(), "it has gone meanwhile");
        (6..40).for_each(|index| groups.join(&name, "a", member(index, true)));
        assert!(groups.choose_after(&name, member(7, true).session, TRIED_MAX).is_none());
    }

    /// Against a plain list: who is a member, who is connected, and that all who are get as much.
    #[test]
    fn a_large_group_is_what_a_list_would_be() {
        let mut random = fastrand::Rng::with_seed(7);
        let name: Arc<str> = "$share/g/a".into();
        let (mut groups, mut known) = (Groups::new(1), std::collections::BTreeMap::new());
        for _ in 0..4_000 {
            let (index, is_online) = (random.u32(..40), random.bool());
            if random.u32(..3) == 0 {
                groups.leave(&name, member(index, true).session);
                known.remove(&index);
            } else {
                groups.join(&name, "a", member(index, is_online));
                known.insert(index, is_online);
            }
            groups.check_invariants();
        }
        (0..40).for_each(|index| groups.join(&name, "a", member(index, index % 4 == 0)));
        let mut chosen = std::collections::BTreeMap::new();
        for _ in 0..30 {
            *chosen.entry(groups.choose_in(&name).unwrap().session.slot.0).or_insert(0) += 1;
        }
        assert_eq!(chosen, (0..40).step_by(4).map(|index| (index, 3)).collect());
    }
}

//! Groups of shared subscribers that have members here, as shards tell of them, and what they were told: who gives. Pure.
//!
//! A shard is told once when a group comes, and whenever that changes: that the fleet gives when it does, that this gateway does while NATS
//! is away, or when it has waited for [`PATIENCE`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::interests::PATIENCE;
use crate::link::{Giver, WorkerId};

/// What is to be told to the home of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The home.
    pub worker: WorkerId,
    /// The group, as `$share/NAME/FILTER`.
    pub group: Arc<str>,
    /// Which of its lives was told of.
    pub life: u32,
    /// Who gives.
    pub giver: Giver,
}

/// One group.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub worker: WorkerId,
    pub life: u32,
    /// How much room the members have that are connected; 0: none is.
    pub room: u32,
    /// What its home was told, and since when it waits for that.
    told: Option<Giver>,
    since: Instant,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct GroupsWanted {
    all: BTreeMap<Arc<str>, Wanted>,
    is_served: bool,
}

impl GroupsWanted {
    /// A shard tells of one; without members it is gone. What it is told at once.
    pub fn say(
        &mut self,
        worker: WorkerId,
        (group, life): (Arc<str>, u32),
        (members, room): (u32, u32),
        now: Instant,
    ) -> Option<Decided> {
        if members == 0 {
            self.all.remove(&group);
            return None;
        }
        let known = self.all.get(&group).filter(|known| known.life == life);
        let (told, since) = known.map_or((None, now), |known| (known.told, known.since));
        self.all.insert(Arc::clone(&group), Wanted { worker, life, room, told, since });
        if told.is_some() || self.is_served {
            return None;
        }
        self.decide(&group, Giver::Here)
    }

    /// Somebody serves them from now on.
    pub fn begin(&mut self) {
        self.is_served = true;
    }

    /// Nobody does any more: this gateway gives.
    pub fn end(&mut self) -> Vec<Decided> {
        self.is_served = false;
        let all: Vec<_> = self.all.keys().cloned().collect();
        all.iter().filter_map(|group| self.decide(group, Giver::Here)).collect()
    }

    /// Who gives to one; what its home is told, if that is news.
    pub fn decide(&mut self, group: &Arc<str>, giver: Giver) -> Option<Decided> {
        let known = self.all.get_mut(group)?;
        if known.told == Some(giver) {
            return None;
        }
        known.told = Some(giver);
        Some(Decided { worker: known.worker, group: Arc::clone(group), life: known.life, giver })
    }

    /// Those that have waited for as long as they may: this gateway gives until the fleet does.
    pub fn give_up(&mut self, now: Instant) -> Vec<Decided> {
        let late = |known: &Wanted| known.told.is_none() && now.saturating_duration_since(known.since) >= PATIENCE;
        let late: Vec<_> =
            self.all.iter().filter(|(_, known)| late(known)).map(|(group, _)| Arc::clone(group)).collect();
        late.iter().filter_map(|group| self.decide(group, Giver::Here)).collect()
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (&Arc<str>, &Wanted)> {
        self.all.iter()
    }

    /// One of them.
    pub fn get(&self, group: &str) -> Option<&Wanted> {
        self.all.get(group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(life: u32, giver: Giver) -> Decided {
        Decided { worker: WorkerId(1), group: "$share/g/a".into(), life, giver }
    }

    #[test]
    fn a_home_is_told_once_and_whenever_it_is_another() {
        let (mut groups, now) = (GroupsWanted::default(), Instant::now());
        let group: Arc<str> = "$share/g/a".into();
        let say = |groups: &mut GroupsWanted, life, members| {
            groups.say(WorkerId(1), (Arc::clone(&group), life), (members, 1), now)
        };
        // Nobody serves: at once.
        assert_eq!(say(&mut groups, 1, 1), Some(decided(1, Giver::Here)));
        assert_eq!(say(&mut groups, 1, 2), None);
        groups.begin();
        assert_eq!(groups.decide(&group, Giver::Fleet), Some(decided(1, Giver::Fleet)));
        assert_eq!(groups.decide(&group, Giver::Fleet), None);
        assert_eq!(groups.end(), [decided(1, Giver::Here)]);
        assert_eq!(groups.end(), []);
        groups.begin();
        // It goes and comes: another life, which was told nothing.
        assert_eq!(say(&mut groups, 1, 0), None);
        assert_eq!(groups.decide(&group, Giver::Fleet), None);
        assert_eq!(say(&mut groups, 2, 1), None);
        assert_eq!(groups.give_up(now), []);
        assert_eq!(groups.give_up(now + PATIENCE), [decided(2, Giver::Here)]);
        assert_eq!((groups.give_up(now + PATIENCE), groups.all().count()), (vec![], 1));
        assert_eq!(groups.decide(&group, Giver::Fleet), Some(decided(2, Giver::Fleet)));
    }
}

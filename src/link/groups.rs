//! Groups of shared subscribers in a fleet: their names in it, and which of them this gateway gives messages to by itself, because the
//! fleet cannot now (decision 0033).
//!
//! ```text
//!   a group's home ── the fleet does not give to it ──▶ GroupsHere ◀── which want this topic? ── a shard in which something is published
//! ```
//!
//! Whoever publishes decides, at one instant, for the home of the group and for all other gateways: what is written here goes along
//! with the message, to both.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::codec::mqtt::topic;

/// Groups that may be noted: each costs whoever publishes a look while the fleet gives nothing.
pub const GROUPS_HERE_MAX: usize = 256;

/// Messages under way to a member that a group of the fleet is given: at most so many are asked for each, and with one that has not acknowledged
/// them. Whoever wants fewer at a time says so by its Receive Maximum.
pub const GROUP_ROOM_MAX: u16 = 32;

/// Names of groups, `$share/NAME/FILTER`, shared by all who need them; in a pointer, since nearly always there are none.
pub type GroupNames = Arc<Vec<Arc<str>>>;

/// Groups and their filters. See the head of this file.
#[derive(Debug, Default)]
pub struct GroupsHere {
    all: RwLock<BTreeMap<Arc<str>, Box<str>>>,
    /// How many: nearly always none, and then nobody waits for a lock.
    count: AtomicUsize,
}

impl GroupsHere {
    /// From now on what is published here and wanted by this group, `$share/NAME/FILTER`, is given to it here. `false`: there are too many.
    pub fn add(&self, group: &Arc<str>) -> bool {
        let mut all = self.all.write().expect("no holder panics");
        if all.contains_key(group) {
            return true;
        }
        let filter = topic::shared(group).filter(|_| all.len() < GROUPS_HERE_MAX);
        if let Some((_, filter)) = filter {
            all.insert(Arc::clone(group), filter.into());
        }
        self.count.store(all.len(), Ordering::SeqCst);
        filter.is_some()
    }

    /// From now on it is not.
    pub fn remove(&self, group: &str) {
        let mut all = self.all.write().expect("no holder panics");
        all.remove(group);
        self.count.store(all.len(), Ordering::SeqCst);
    }

    /// Those that want what is published under a topic; `None`: none.
    #[must_use]
    pub fn wanting(&self, name: &str) -> Option<GroupNames> {
        if self.count.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let all = self.all.read().expect("no holder panics");
        let wanting = all.iter().filter(|(_, filter)| topic::matches(filter, name)).map(|(group, _)| Arc::clone(group));
        let wanting: Vec<Arc<str>> = wanting.collect();
        (!wanting.is_empty()).then(|| Arc::new(wanting))
    }
}

/// Whether a group, `$share/NAME/FILTER`, wants what is published under a topic.
#[must_use]
pub fn group_wants(group: &str, name: &str) -> bool {
    topic::shared(group).is_some_and(|(_, filter)| topic::matches(filter, name))
}

/// The filter of a group, `$share/NAME/FILTER`.
#[must_use]
pub fn group_filter(group: &str) -> Option<&str> {
    topic::shared(group).map(|(_, filter)| filter)
}

/// What a group, `$share/NAME/FILTER`, is called in the fleet, whatever is in its name: 32 hexadecimal digits, the same at every gateway.
#[must_use]
pub fn group_key(group: &str) -> String {
    let mut hasher = SipHasher13::new();
    std::hash::Hasher::write(&mut hasher, group.as_bytes());
    format!("{:032x}", u128::from(hasher.finish128()))
}

/// The keys of groups in one line.
#[must_use]
pub fn group_keys(groups: &[Arc<str>]) -> String {
    let keys: Vec<String> = groups.iter().map(|group| group_key(group)).collect();
    keys.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_publishes_is_told_which_groups_want_it() {
        let here = GroupsHere::default();
        assert_eq!(here.wanting("a/b"), None);
        let (one, other): (Arc<str>, Arc<str>) = ("$share/g/a/+".into(), "$share/h/#".into());
        assert!(here.add(&one) && here.add(&other) && here.add(&one));
        assert_eq!(here.wanting("a/b"), Some(Arc::new(vec![Arc::clone(&one), Arc::clone(&other)])));
        assert_eq!(here.wanting("c"), Some(Arc::new(vec![Arc::clone(&other)])));
        here.remove(&other);
        assert_eq!(here.wanting("c"), None);
        here.remove(&one);
        assert_eq!((here.wanting("a/b"), here.count.load(Ordering::SeqCst)), (None, 0));
    }

    #[test]
    fn they_are_no_more_than_a_publisher_has_time_for() {
        let here = GroupsHere::default();
        let names: Vec<Arc<str>> = (0..=GROUPS_HERE_MAX).map(|n| format!("$share/{n}/a").into()).collect();
        assert_eq!(names.iter().filter(|name| here.add(name)).count(), GROUPS_HERE_MAX);
        here.remove(&names[0]);
        assert!(here.add(&names[GROUPS_HERE_MAX]));
    }

    #[test]
    fn a_key_is_the_same_everywhere_and_another_one_for_each_group() {
        // Written down: gateways of other versions have the same.
        assert_eq!(group_key("$share/g/jobs"), group_key("$share/g/jobs"));
        assert_ne!(group_key("$share/g/jobs"), group_key("$share/g/jobs/"));
        assert_eq!(group_keys(&["a".into(), "b".into()]), format!("{},{}", group_key("a"), group_key("b")));
    }
}

//! What all shards of this gateway want of what is published elsewhere, and who waits for it. Pure.
//!
//! A shard tells one change at a time and goes on when that is held. It is held when what comes from the stream covers it, when NATS is
//! away (whatever is published elsewhere does not come then, and is read from the stream later), or when it has waited for
//! [`PATIENCE`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::link::{Cover, WorkerId};
use crate::sink::nats::subject;

/// How long a shard waits at most before its devices hear that they have subscribed.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// What one shard has said.
#[derive(Debug)]
struct Said {
    cover: Cover,
    /// Which change it is, and since when it waits; `None`: it is held.
    waits: Option<(u64, Instant)>,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Interests {
    workers: usize,
    shards: BTreeMap<u16, Said>,
    /// Whether somebody reads from the stream.
    is_served: bool,
}

/// A change of a shard that is held.
pub type Held = (WorkerId, u64);

impl Interests {
    /// Of so many shards, none of which has said anything.
    pub fn new(workers: usize) -> Self {
        Self { workers, shards: BTreeMap::new(), is_served: false }
    }

    /// Whether each shard has said what it wants: it does when it begins, with what an earlier process has left.
    pub fn is_complete(&self) -> bool {
        self.shards.len() >= self.workers
    }

    /// A shard says what it wants from now on. What is held by that, at once.
    pub fn say(&mut self, worker: WorkerId, version: u64, cover: Cover, now: Instant) -> Option<Held> {
        let waits = self.is_served.then_some((version, now));
        self.shards.insert(worker.0, Said { cover, waits });
        (!self.is_served).then_some((worker, version))
    }

    /// Somebody reads from the stream.
    pub fn begin(&mut self) {
        self.is_served = true;
    }

    /// Nobody does any more. What is held by that.
    pub fn end(&mut self) -> Vec<Held> {
        self.is_served = false;
        self.take(|_, _| true)
    }

    /// The subjects under which everything is published that is wanted, and perhaps more; none of them takes all that another one
    /// does, which a consumer may not have.
    pub fn wanted(&self, prefix: &str) -> Vec<String> {
        let mut all = Cover::default();
        for said in self.shards.values() {
            all.add_all(&said.cover);
        }
        subjects_of(prefix, &all)
    }

    /// What comes from the stream covers these subjects. What is held by that: whatever was said that they cover.
    pub fn handle_read(&mut self, prefix: &str, subjects: &[String]) -> Vec<Held> {
        let is_read = |subject: &String| subjects.iter().any(|known| subject::covers(known, subject));
        self.take(|cover, _| {
            cover.filters().iter().all(|filter| subject::of_filter(prefix, filter).iter().all(is_read))
        })
    }

    /// When the first has waited for as long as it may.
    pub fn due(&self) -> Option<Instant> {
        self.shards.values().filter_map(|said| said.waits).map(|(_, since)| since + PATIENCE).min()
    }

    /// Those that have waited for as long as they may.
    pub fn give_up(&mut self, now: Instant) -> Vec<Held> {
        self.take(|_, since| now.saturating_duration_since(since) >= PATIENCE)
    }

    fn take(&mut self, is_held: impl Fn(&Cover, Instant) -> bool) -> Vec<Held> {
        let held = self.shards.iter_mut().filter_map(|(&worker, said)| {
            let (version, since) = said.waits?;
            is_held(&said.cover, since).then(|| {
                said.waits = None;
                (WorkerId(worker), version)
            })
        });
        held.collect()
    }
}

/// The subjects under which everything is published that a cover's filters match, and perhaps more; none of them takes all that another
/// one does, which a consumer may not have.
pub fn subjects_of(prefix: &str, cover: &Cover) -> Vec<String> {
    let mut subjects: Vec<String> = Vec::new();
    for subject in cover.filters().iter().flat_map(|filter| subject::of_filter(prefix, filter)) {
        if !subjects.iter().any(|known| subject::covers(known, &subject)) {
            subjects.retain(|known| !subject::covers(&subject, known));
            subjects.push(subject);
        }
    }
    subjects.sort_unstable();
    subjects
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::COVER_FILTERS;

    fn cover(filters: &[&str]) -> Cover {
        let mut cover = Cover::default();
        for filter in filters {
            cover.add(filter);
        }
        cover
    }

    #[test]
    fn whoever_has_nobody_to_wait_for_goes_on_at_once() {
        let (mut interests, now) = (Interests::new(2), Instant::now());
        assert_eq!(interests.say(WorkerId(1), 3, cover(&["a"]), now), Some((WorkerId(1), 3)));
        assert!(!interests.is_complete());
        interests.say(WorkerId(0), 1, Cover::default(), now);
        assert!(interests.is_complete());
        interests.begin();
        assert_eq!(interests.say(WorkerId(1), 4, cover(&["a", "b"]), now), None);
        assert_eq!(interests.end(), [(WorkerId(1), 4)]);
        assert_eq!((interests.end().len(), interests.due()), (0, None));
    }

    #[test]
    fn a_change_is_held_when_what_is_read_covers_it() {
        let (mut interests, now) = (Interests::new(2), Instant::now());
        interests.begin();
        interests.say(WorkerId(0), 1, cover(&["a/+"]), now);
        interests.say(WorkerId(1), 7, cover(&["a/x", "c"]), now);
        let before = ["p.pub.a.*", "p.up.*.a.*"].map(str::to_owned);
        assert_eq!(interests.handle_read("p", &before), [(WorkerId(0), 1)]);
        assert_eq!(interests.handle_read("p", &before), []);
        let wanted = interests.wanted("p");
        assert_eq!(wanted, ["p.pub.a.*", "p.pub.c", "p.up.*.a.*", "p.up.*.c"]);
        assert_eq!(interests.handle_read("p", &wanted), [(WorkerId(1), 7)]);
        // Nobody waits for ever.
        interests.say(WorkerId(1), 8, cover(&["d"]), now);
        assert_eq!((interests.due(), interests.give_up(now).len()), (Some(now + PATIENCE), 0));
        assert_eq!(interests.give_up(now + PATIENCE), [(WorkerId(1), 8)]);
        assert_eq!(interests.due(), None);
    }

    /// As a server asks for: no subject takes all that another one takes, and they are no more than it is asked with.
    #[test]
    fn no_subject_takes_what_another_takes() {
        let mut random = fastrand::Rng::with_seed(8);
        for _ in 0..300 {
            let mut interests = Interests::new(4);
            let mut filters = Vec::new();
            for worker in 0..4 {
                let mut cover = Cover::default();
                for _ in 0..random.usize(..60) {
                    let level = |random: &mut fastrand::Rng| match random.u8(..5) {
                        0 => "+".to_owned(),
                        _ => random.u8(..6).to_string(),
                    };
                    let mut levels: Vec<_> = (0..random.usize(1..4)).map(|_| level(&mut random)).collect();
                    if random.u8(..4) == 0 {
                        levels.push("#".to_owned());
                    }
                    let filter = levels.join("/");
                    cover.add(&filter);
                    filters.push(filter);
                }
                interests.say(WorkerId(worker), 1, cover, Instant::now());
            }
            let wanted = interests.wanted("p");
            assert!(wanted.len() <= 4 * COVER_FILTERS);
            for (number, one) in wanted.iter().enumerate() {
                let others = wanted.iter().enumerate().filter(|(other, _)| *other != number);
                assert!(others.into_iter().all(|(_, other)| !subject::covers(other, one)), "{wanted:?}");
            }
            for subject in filters.iter().flat_map(|filter| subject::of_filter("p", filter)) {
                assert!(wanted.iter().any(|known| subject::covers(known, &subject)), "{subject} {wanted:?}");
            }
        }
    }
}

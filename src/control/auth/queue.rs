//! Whose secret is hashed next: fair between addresses, one at a time for each name, and rarely for whoever guesses.
//!
//! ```text
//!            ┌ blocked after wrong secrets ──────────────▶ busy
//! offer() ───┼ a hash for the name waits or is computed ─▶ follows it: what comes out may answer it without a hash
//!            └ otherwise ─▶ known names ┐ each a turn for each address
//!                           unknown ────┴─▶ next() ─▶ the thread ─▶ finish()
//! ```
//!
//! Nothing here reads a clock or computes anything: plain bookkeeping, every bound named.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::fair::{FairQueue, Origin};
use super::verifier::Job;
use crate::link::ListenerId;

/// Secrets for names in a file that may wait for their hash.
const KNOWN_WAITING_MAX: usize = 4_096;
/// Secrets for names that no file holds that may wait.
const UNKNOWN_WAITING_MAX: usize = 64;
/// Secrets that may wait for the hash of another one of the same name.
const FOLLOWERS_MAX: usize = 16;
/// Of these from one address.
const FOLLOWERS_PER_ORIGIN_MAX: usize = 2;
/// How long an address is blocked for a name after its first wrong secret; doubled with each further one.
const BLOCK_FIRST: Duration = Duration::from_millis(250);
/// How long at most.
const BLOCK_MAX: Duration = Duration::from_secs(30);
/// When a wrong secret is forgotten, after its block has ended.
const FORGET_AFTER: Duration = Duration::from_mins(5);
/// Addresses and names whose wrong secrets are remembered; the oldest is forgotten first.
const FAILURES_MAX: usize = 16_384;

/// A name at one listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::control) struct Name {
    pub(in crate::control) listener: ListenerId,
    pub(in crate::control) text: Box<str>,
}

/// What wrong secrets are remembered by. All unknown names of an address count as one.
type FailureKey = (Origin, ListenerId, Option<Box<str>>);

#[derive(Clone, Copy, Debug)]
struct Failure {
    count: u32,
    blocked_until: Instant,
    /// Its place in the order of insertion.
    number: u64,
}

/// Everything that waits.
#[derive(Debug)]
pub(in crate::control) struct HashQueue {
    known: FairQueue<Job>,
    unknown: FairQueue<Job>,
    /// Each name whose hash waits or is computed, and what waits for what comes out.
    names: HashMap<Name, VecDeque<Job>>,
    failures: HashMap<FailureKey, Failure>,
    /// The failures in the order of insertion; stale ones among them.
    order: VecDeque<(FailureKey, u64)>,
    inserted: u64,
    /// Found no place, lost it, or come from an address that guessed too often: they are told to come again.
    busy: Vec<Job>,
    /// How many were not worth their hash any more, since it was last asked: nobody waits for them.
    expired: u64,
}

impl Default for HashQueue {
    fn default() -> Self {
        Self {
            known: FairQueue::new(KNOWN_WAITING_MAX),
            unknown: FairQueue::new(UNKNOWN_WAITING_MAX),
            names: HashMap::new(),
            failures: HashMap::new(),
            order: VecDeque::new(),
            inserted: 0,
            busy: Vec::new(),
            expired: 0,
        }
    }
}

impl HashQueue {
    /// Takes a secret that must be hashed, or waits for one of the same name.
    pub(in crate::control) fn offer(&mut self, job: Job, now: Instant) {
        if self.is_blocked(&job, now) {
            self.busy.push(job);
        } else if let Some(followers) = self.names.get_mut(&job.name) {
            let from_there = followers.iter().filter(|follower| follower.origin() == job.origin()).count();
            if followers.len() >= FOLLOWERS_MAX || from_there >= FOLLOWERS_PER_ORIGIN_MAX {
                self.busy.push(job);
            } else {
                followers.push_back(job);
            }
        } else {
            self.enqueue(job, VecDeque::new());
        }
    }

    /// The next one to be hashed; its name is taken until [`HashQueue::finish`].
    pub(in crate::control) fn next(&mut self, now: Instant) -> Option<Job> {
        while let Some(job) = self.known.pop().or_else(|| self.unknown.pop()) {
            if job.expires > now {
                return Some(job);
            }
            self.expired += 1;
            let followers = self.finish(&job.name);
            self.follow(followers, now);
        }
        None
    }

    /// The hash of `name` is known. Gives back all that waited for it, in order; what is still to be hashed goes to
    /// [`HashQueue::follow`].
    pub(in crate::control) fn finish(&mut self, name: &Name) -> VecDeque<Job> {
        self.names.remove(name).unwrap_or_default()
    }

    /// Of secrets that waited for another of their name, the first becomes the next one for it and the others go on
    /// waiting.
    pub(in crate::control) fn follow(&mut self, followers: VecDeque<Job>, now: Instant) {
        let mut rest = VecDeque::with_capacity(followers.len());
        for follower in followers {
            if follower.expires <= now {
                self.expired += 1;
            } else if self.is_blocked(&follower, now) {
                self.busy.push(follower);
            } else {
                rest.push_back(follower);
            }
        }
        if let Some(first) = rest.pop_front() {
            self.enqueue(first, rest);
        }
    }

    /// Those that are told to come again.
    pub(in crate::control) fn take_busy(&mut self) -> Vec<Job> {
        std::mem::take(&mut self.busy)
    }

    /// How many were given up since the last time because nobody waits for them any more.
    pub(in crate::control) fn take_expired(&mut self) -> u64 {
        std::mem::take(&mut self.expired)
    }

    fn enqueue(&mut self, job: Job, followers: VecDeque<Job>) {
        let name = job.name.clone();
        let queue = if job.place.is_some() { &mut self.known } else { &mut self.unknown };
        match queue.push(job.origin(), job) {
            Ok(gone) => {
                if let Some(gone) = gone {
                    let behind = self.finish(&gone.name);
                    self.busy.push(gone);
                    self.busy.extend(behind);
                }
                self.names.insert(name, followers);
            }
            Err(job) => {
                self.busy.push(job);
                self.busy.extend(followers);
            }
        }
    }

    fn is_blocked(&self, job: &Job, now: Instant) -> bool {
        self.failures.get(&failure_key(job)).is_some_and(|failure| now < failure.blocked_until)
    }

    /// A secret was wrong: its address waits for longer and longer before another one for the name costs a hash.
    pub(in crate::control) fn note_failure(&mut self, job: &Job, now: Instant) {
        let key = failure_key(job);
        let number = self.inserted;
        let failure = self.failures.entry(key.clone()).or_insert(Failure { count: 0, blocked_until: now, number });
        if now > failure.blocked_until + FORGET_AFTER {
            failure.count = 0;
        }
        failure.count += 1;
        let doublings = (failure.count - 1).min(16);
        failure.blocked_until = now + (BLOCK_FIRST * (1 << doublings)).min(BLOCK_MAX);
        if failure.number == number {
            self.inserted += 1;
            self.order.push_back((key, number));
        }
        while self.failures.len() > FAILURES_MAX {
            let (key, number) = self.order.pop_front().expect("every failure has its place");
            if self.failures.get(&key).is_some_and(|failure| failure.number == number) {
                self.failures.remove(&key);
            }
        }
    }

    /// A secret was right: what was wrong before is forgotten.
    pub(in crate::control) fn note_success(&mut self, job: &Job) {
        self.failures.remove(&failure_key(job));
        if self.order.len() > FAILURES_MAX * 2 {
            let failures = &self.failures;
            self.order.retain(|(key, number)| failures.get(key).is_some_and(|failure| failure.number == *number));
        }
    }
}

fn failure_key(job: &Job) -> FailureKey {
    let name = job.place.map(|_| job.name.text.clone());
    (job.origin(), job.name.listener, name)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::tokens::TokenFile;
    use super::super::verifier::AuthRequest;
    use super::*;
    use crate::link::{ConnectionId, WorkerId};

    struct Fixture {
        queue: HashQueue,
        file: Arc<TokenFile>,
        now: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            Self { queue: HashQueue::default(), file: Arc::new(TokenFile::default()), now: Instant::now() }
        }

        /// A secret for a name (0 and up: in the file) from 192.0.2.`host`.
        fn job(&self, index: u32, place: Option<u32>, host: u8) -> Job {
            let text = place.map_or_else(|| format!("x{index}"), |place| place.to_string()).into();
            let name = Name { listener: ListenerId(0), text };
            let request = AuthRequest {
                worker: WorkerId(0),
                connection: ConnectionId { slot: crate::link::ConnectionSlot(index), generation: 1 },
                listener: ListenerId(0),
                peer: Some([192, 0, 2, host].into()),
                is_renewable: false,
                must_be_named: false,
            };
            let expires = self.now + Duration::from_secs(10);
            Job { request, file: self.file.clone(), name, place, token: Bytes::new(), expires }
        }

        /// Whether it waits.
        fn offer(&mut self, index: u32, place: Option<u32>, host: u8) -> bool {
            let job = self.job(index, place, host);
            self.queue.offer(job, self.now);
            !self.busy().contains(&index)
        }

        fn busy(&mut self) -> Vec<u32> {
            self.queue.take_busy().iter().map(|job| job.request.connection.slot.0).collect()
        }

        fn order(&mut self) -> Vec<u32> {
            std::iter::from_fn(|| self.queue.next(self.now)).map(|job| job.request.connection.slot.0).collect()
        }
    }

    #[test]
    fn addresses_take_turns_and_unknown_names_come_last() {
        let mut fixture = Fixture::new();
        assert!(fixture.offer(90, None, 1));
        for index in 0..5 {
            assert!(fixture.offer(index, Some(index), 1));
        }
        assert!(fixture.offer(10, Some(10), 2));
        assert!(fixture.offer(11, Some(11), 2));
        assert!(fixture.offer(20, Some(20), 3));
        assert_eq!(fixture.order(), [0, 10, 20, 1, 11, 2, 3, 4, 90]);
    }

    #[test]
    fn one_of_a_name_waits_and_few_follow() {
        let mut fixture = Fixture::new();
        assert!(fixture.offer(0, Some(7), 1));
        assert!(fixture.offer(1, Some(7), 1));
        assert!(fixture.offer(2, Some(7), 1));
        assert!(!fixture.offer(3, Some(7), 1), "one address holds two places behind a name");
        assert!(fixture.offer(4, Some(7), 2));
        assert_eq!(fixture.order(), [0], "only one of them is hashed");
        let followers = fixture.queue.finish(&Name { listener: ListenerId(0), text: "7".into() });
        assert_eq!(followers.iter().map(|job| job.request.connection.slot.0).collect::<Vec<_>>(), [1, 2, 4]);
        // The first was wrong, from the address of 1 and 2: they are told to come again, 4 is next.
        let first = fixture.job(0, Some(7), 1);
        fixture.queue.note_failure(&first, fixture.now);
        fixture.queue.follow(followers, fixture.now);
        assert_eq!(fixture.busy(), [1, 2]);
        assert_eq!(fixture.order(), [4]);
        for host in 10..10 + FOLLOWERS_MAX as u8 {
            assert!(fixture.offer(u32::from(host), Some(7), host));
        }
        assert!(!fixture.offer(99, Some(7), 99));
    }

    #[test]
    fn wrong_secrets_block_their_address_for_longer_and_longer() {
        let mut fixture = Fixture::new();
        let mut blocks = Vec::new();
        for index in 0..12 {
            let job = fixture.job(index, Some(1), 1);
            fixture.queue.note_failure(&job, fixture.now);
            let blocked_at = fixture.now;
            while !fixture.offer(100, Some(1), 1) {
                fixture.now += Duration::from_millis(50);
            }
            blocks.push(fixture.now - blocked_at);
            fixture.order();
            fixture.queue.finish(&Name { listener: ListenerId(0), text: "1".into() });
        }
        assert_eq!(blocks[..3], [250, 500, 1_000].map(Duration::from_millis));
        assert_eq!(blocks[11], BLOCK_MAX);
        // Other names of the address, and the name from elsewhere, are not blocked.
        let job = fixture.job(0, Some(1), 1);
        fixture.queue.note_failure(&job, fixture.now);
        assert!(!fixture.offer(1, Some(1), 1));
        assert!(fixture.offer(2, Some(2), 1));
        assert!(fixture.offer(3, Some(1), 2));
        // A right one ends it.
        fixture.queue.note_success(&job);
        assert!(fixture.offer(4, Some(1), 1));
        // All unknown names of an address are one.
        let stranger = fixture.job(50, None, 9);
        fixture.queue.note_failure(&stranger, fixture.now);
        assert!(!fixture.offer(51, None, 9));
    }

    #[test]
    fn a_full_queue_has_room_for_another_address() {
        let mut fixture = Fixture::new();
        for index in 0..UNKNOWN_WAITING_MAX as u32 {
            assert!(fixture.offer(index, None, 1));
        }
        assert!(!fixture.offer(500, None, 1), "its own address has the most");
        let job = fixture.job(501, None, 2);
        fixture.queue.offer(job, fixture.now);
        assert_eq!(fixture.busy(), [UNKNOWN_WAITING_MAX as u32 - 1], "the latest of who has the most gives way");
        assert_eq!(fixture.order()[..2], [0, 501]);
    }

    #[test]
    fn what_is_remembered_of_guessers_is_bounded() {
        let mut fixture = Fixture::new();
        for index in 0..FAILURES_MAX as u32 + 500 {
            let job = fixture.job(index, Some(index), 1);
            fixture.queue.note_failure(&job, fixture.now);
            if index % 3 == 0 {
                fixture.queue.note_success(&job);
            }
        }
        assert!(fixture.queue.failures.len() <= FAILURES_MAX);
        assert!(fixture.queue.order.len() <= FAILURES_MAX * 2 + 1, "{}", fixture.queue.order.len());
        assert!(!fixture.offer(1, Some(FAILURES_MAX as u32 + 499), 1), "the latest is kept");
    }

    #[test]
    fn expired_ones_are_skipped_and_their_followers_go_on() {
        let mut fixture = Fixture::new();
        fixture.offer(0, Some(7), 1);
        fixture.now += Duration::from_secs(6);
        fixture.offer(1, Some(7), 2);
        fixture.now += Duration::from_secs(5);
        let next = fixture.queue.next(fixture.now).unwrap();
        assert_eq!((next.request.connection.slot.0, fixture.queue.take_expired()), (1, 1));
    }

    #[test]
    fn networks_count_as_one_origin_where_addresses_are_plenty() {
        let of = |text: &str| Origin::of(Some(text.parse().unwrap()));
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}

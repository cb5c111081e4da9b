//! What a hook answered, kept for a while, in bytes that have a bound: the oldest answer goes first.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::link::Grant;

/// A keyed digest of who offered what.
pub(super) type Digest = [u8; 32];

/// What an entry takes besides its filters: its places in the table and in the order, and the grant.
const ENTRY_BYTES: usize = 2 * (size_of::<Digest>() + 8) + size_of::<Entry>() + 64;

#[derive(Debug)]
struct Entry {
    /// None: the answer was no.
    grant: Option<Grant>,
    at: Instant,
    /// Its place in the order of insertion.
    number: u64,
}

impl Entry {
    fn bytes(&self) -> usize {
        ENTRY_BYTES + self.grant.as_ref().map_or(0, |grant| grant.bytes() + grant.device.len())
    }
}

/// What is known of somebody.
#[derive(Debug, PartialEq)]
pub(super) enum Known {
    /// It may come in: asked so long ago.
    Granted(Grant, Duration),
    /// It may not.
    Denied(Duration),
}

/// The answers of one hook.
#[derive(Debug)]
pub(super) struct Answers {
    entries: HashMap<Digest, Entry>,
    order: VecDeque<(Digest, u64)>,
    inserted: u64,
    bytes: usize,
    bytes_max: usize,
}

impl Answers {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), inserted: 0, bytes: 0, bytes_max }
    }

    pub(super) fn get(&self, digest: &Digest, now: Instant) -> Option<Known> {
        let entry = self.entries.get(digest)?;
        let age = now.saturating_duration_since(entry.at);
        Some(match &entry.grant {
            Some(grant) => Known::Granted(grant.clone(), age),
            None => Known::Denied(age),
        })
    }

    /// What was known of the same before is forgotten.
    pub(super) fn insert(&mut self, digest: Digest, grant: Option<Grant>, now: Instant) {
        let entry = Entry { grant, at: now, number: self.inserted };
        self.order.push_back((digest, entry.number));
        self.inserted += 1;
        self.bytes += entry.bytes();
        if let Some(before) = self.entries.insert(digest, entry) {
            self.bytes -= before.bytes();
        }
        while self.bytes > self.bytes_max
            && let Some((digest, number)) = self.order.pop_front()
        {
            if self.entries.get(&digest).is_some_and(|entry| entry.number == number)
                && let Some(gone) = self.entries.remove(&digest)
            {
                self.bytes -= gone.bytes();
            }
        }
        if self.order.len() > 2 * self.entries.len() + 64 {
            let entries = &self.entries;
            self.order.retain(|(digest, number)| entries.get(digest).is_some_and(|entry| entry.number == *number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u32) -> Digest {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&number.to_be_bytes());
        digest
    }

    #[test]
    fn answers_take_no_more_than_their_bytes_and_the_oldest_go_first() {
        let start = Instant::now();
        let mut answers = Answers::new(100 * ENTRY_BYTES);
        for number in 0..1_000_u32 {
            let grant = number.is_multiple_of(2).then(Grant::default);
            answers.insert(digest(number), grant, start + Duration::from_secs(number.into()));
            assert!(answers.bytes <= answers.bytes_max);
        }
        let now = start + Duration::from_secs(1_000);
        assert_eq!(answers.entries.len(), 100);
        assert_eq!(answers.get(&digest(899), now), None);
        assert_eq!(answers.get(&digest(998), now), Some(Known::Granted(Grant::default(), Duration::from_secs(2))));
        assert_eq!(answers.get(&digest(999), now), Some(Known::Denied(Duration::from_secs(1))));
        // One that is asked about again and again takes its place once.
        for _ in 0..10_000 {
            answers.insert(digest(950), None, now);
            assert!(answers.order.len() <= 2 * answers.entries.len() + 65);
        }
        assert_eq!(answers.entries.len(), 100);
        assert_eq!(answers.get(&digest(950), now), Some(Known::Denied(Duration::ZERO)));
        let sum: usize = answers.entries.values().map(Entry::bytes).sum();
        assert_eq!(answers.bytes, sum);
    }
}

//! A share of the uplink for each device: one that says very much takes its own place, and not that of the others.
//!
//! ```text
//!   bytes of events, as they were written ───┬────────┬────────┬────────┬──▶
//!                                          sample   sample   sample   sample      one every 1/1024 of what may be held
//! ```
//!
//! When more bytes are held than may be, the oldest events go; but if one device holds more than an eighth of them, its own oldest
//! go first. Who that is is told by samples: the event that was being written at each 1/1024 of the bytes. So a few long messages count
//! for as much as many short ones, no list of devices is kept, and an event costs an addition. What an earlier process has written is in no
//! sample; it goes with the oldest.
//!
//! Pure: what is in the file is somebody else's.

use std::collections::{HashMap, VecDeque};

/// Samples of all that may be held.
const SAMPLES: u64 = 1_024;
/// A device may hold so many of them.
const SHARE: usize = SAMPLES as usize / 8;

/// The event that was written when so many bytes were full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    seq: u64,
    device: Box<str>,
}

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Shares {
    every: u64,
    /// Bytes since the latest sample.
    since: u64,
    samples: VecDeque<Sample>,
    /// Of whom events went last, and up to which: there the search goes on.
    searched: Option<(Box<str>, u64)>,
}

/// What a group adds, to be true when it is committed.
#[derive(Debug, Default)]
pub(super) struct Sampled {
    bytes: u64,
    samples: Vec<Sample>,
    /// Of whom events went, and up to which.
    searched: Option<(Box<str>, u64)>,
}

impl Shares {
    /// Nothing is known of what is there already.
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { every: (bytes_max / SAMPLES).max(1), since: 0, samples: VecDeque::new(), searched: None }
    }

    /// An event of a group is written.
    pub(super) fn sample(&self, sampled: &mut Sampled, seq: u64, device: &str, bytes: u64) {
        let before = self.since + sampled.bytes;
        sampled.bytes += bytes;
        // One as long as several parts counts for each.
        for _ in before / self.every..(self.since + sampled.bytes) / self.every {
            sampled.samples.push(Sample { seq, device: device.into() });
        }
    }

    /// The device that holds more than its share and the most of all, of the events from `first` on; and from where its own are to be looked
    /// for.
    pub(super) fn largest(&self, first: u64) -> Option<(Box<str>, u64)> {
        let mut held: HashMap<&str, (usize, u64)> = HashMap::new();
        for sample in self.samples.iter().filter(|sample| sample.seq >= first) {
            held.entry(&sample.device).or_insert((0, sample.seq)).0 += 1;
        }
        let most = held.into_iter().filter(|(_, (count, _))| *count > SHARE).max_by_key(|(_, (count, _))| *count);
        let (device, (_, seq)) = most?;
        let from = match &self.searched {
            Some((searched, through)) if **searched == *device => *through,
            // Its own began somewhere behind the sample before.
            _ => self.samples.iter().rev().find(|sample| sample.seq < seq).map_or(first, |sample| sample.seq),
        };
        Some((device.into(), from.max(first)))
    }

    /// The group is committed.
    pub(super) fn apply(&mut self, sampled: Sampled) {
        self.since = (self.since + sampled.bytes) % self.every;
        if let Some((device, through)) = sampled.searched {
            self.samples.retain(|sample| sample.device != device || sample.seq > through);
            self.searched = Some((device, through));
        }
        self.samples.extend(sampled.samples);
        let beyond = self.samples.len().saturating_sub(SAMPLES as usize);
        self.samples.drain(..beyond);
    }
}

impl Sampled {
    /// The events of this device up to here are gone, or will be.
    pub(super) fn note_searched(&mut self, device: Box<str>, through: u64) {
        self.searched = Some((device, through));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(shares: &mut Shares, next: &mut u64, device: &str, bytes: u64, count: u64) {
        let mut sampled = Sampled::default();
        for _ in 0..count {
            shares.sample(&mut sampled, *next, device, bytes);
            *next += 1;
        }
        shares.apply(sampled);
    }

    #[test]
    fn whoever_holds_more_than_an_eighth_of_the_bytes_is_found_and_nobody_else() {
        // Many short ones, or few long ones.
        for (bytes, count) in [(100, 20_000), (100_000, 20)] {
            let (mut shares, mut next) = (Shares::new(10_000_000), 1);
            for round in 0..80 {
                write(&mut shares, &mut next, &format!("meter-{round}"), 100, 1_000);
            }
            assert_eq!(shares.largest(1), None);
            let began = next;
            write(&mut shares, &mut next, "flood", bytes, count);
            let (device, from) = shares.largest(1).expect("it holds a fifth");
            assert_eq!(&*device, "flood");
            assert!(from <= began && began - from <= 200, "{from} of {began}");
            // Its older half is gone: so is what it has too much.
            let mut sampled = Sampled::default();
            sampled.note_searched(device, began + count / 2);
            shares.apply(sampled);
            assert_eq!(shares.largest(1), None);
        }
    }

    #[test]
    fn what_is_not_committed_counts_for_nothing_and_samples_are_bounded() {
        let (mut shares, mut next) = (Shares::new(1_024), 1);
        shares.sample(&mut Sampled::default(), 1, "flood", 1 << 20);
        assert_eq!(shares.largest(1), None);
        write(&mut shares, &mut next, "one", 100, 1_000);
        assert_eq!(shares.samples.len(), 1_024);
        assert_eq!(shares.largest(1).map(|(device, _)| device), Some("one".into()));
        assert_eq!(shares.largest(next), None, "nothing of it is left");
    }
}

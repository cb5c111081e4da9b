//! Which worker a device belongs to.

use siphasher::sip::SipHasher13;

use super::WorkerId;

/// The map from device id to home worker: SipHash-1-3 under a key drawn once per process, so that nobody outside can
/// choose ids that crowd one shard (decision D2).
///
/// ```
/// use pulsegate::link::Home;
///
/// let home = Home::new([7; 16], 4);
/// let worker = home.of("meter-17");
/// assert!(worker.0 < 4);
/// assert_eq!(home.of("meter-17"), worker); // always the same within a process
/// ```
#[derive(Clone, Copy)]
pub struct Home {
    hasher: SipHasher13,
    workers: u16,
}

impl Home {
    /// A map over `workers` workers (at least one) under `key`.
    #[must_use]
    pub fn new(key: [u8; 16], workers: u16) -> Self {
        assert!(workers > 0);
        Self { hasher: SipHasher13::new_with_key(&key), workers }
    }

    /// The device's hash: also what the shard's device table is keyed by.
    #[must_use]
    pub fn hash(&self, device: &str) -> u64 {
        self.hasher.hash(device.as_bytes())
    }

    /// The device's home worker. Taken from the high half of the hash, so that the low half still spreads evenly over
    /// the buckets of the home's own table.
    #[must_use]
    pub fn of(&self, device: &str) -> WorkerId {
        let high = self.hash(device) >> 32;
        WorkerId(((high * u64::from(self.workers)) >> 32) as u16)
    }

    /// How many workers devices are spread over.
    #[must_use]
    pub fn workers(&self) -> u16 {
        self.workers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_gets_its_share() {
        let home = Home::new([7; 16], 6);
        let mut counts = [0u32; 6];
        for device in 0..60_000 {
            counts[home.of(&format!("meter-{device}")).index()] += 1;
        }
        assert!(counts.iter().all(|&count| (9_500..10_500).contains(&count)), "{counts:?}");
    }

    #[test]
    fn the_key_decides() {
        let (one, two) = (Home::new([1; 16], 64), Home::new([2; 16], 64));
        let moved = (0..1_000).filter(|n| one.of(&n.to_string()) != two.of(&n.to_string())).count();
        assert!(moved > 900, "{moved}");
    }
}

//! A device table: device id → slot. Eight bytes an entry; the ids themselves stay where the slots are.
//!
//! A shard has one for its connections and one for the sessions whose devices are away.

use std::marker::PhantomData;

use hashbrown::HashTable;

use crate::slot::Slot;

/// One device: the hash is kept beside the slot, so that neither growing the table nor most failed look-ups touch what is
/// in the slot.
#[derive(Clone, Copy)]
struct Entry {
    hash: u32,
    slot: u32,
}

/// The table. The caller says what a slot's id is, since the table does not hold ids.
pub struct Devices<S> {
    table: HashTable<Entry>,
    kind: PhantomData<fn() -> S>,
}

impl<S> Default for Devices<S> {
    fn default() -> Self {
        Self { table: HashTable::new(), kind: PhantomData }
    }
}

impl<S: Slot> Devices<S> {
    /// The slot of the device with this `hash` (its low half counts) for which `is_device` holds.
    #[must_use]
    pub fn find(&self, hash: u64, is_device: impl Fn(S) -> bool) -> Option<S> {
        let short = hash as u32;
        let found = self.table.find(spread(short), |entry| entry.hash == short && is_device(S::new(entry.slot)));
        found.map(|entry| S::new(entry.slot))
    }

    /// Adds a device that is not there.
    pub fn insert(&mut self, hash: u64, slot: S) {
        let hash = hash as u32;
        self.table.insert_unique(spread(hash), Entry { hash, slot: slot.number() }, |entry| spread(entry.hash));
    }

    /// Takes the device out. It must be there: a table that disagrees with the slab is our own error.
    ///
    /// # Panics
    /// It is not there.
    pub fn remove(&mut self, hash: u64, slot: S) {
        let short = hash as u32;
        let Ok(entry) = self.table.find_entry(spread(short), |entry| entry.slot == slot.number()) else {
            panic!("the device in slot {slot:?} is not in the table")
        };
        entry.remove();
        if self.table.is_empty() {
            // After a mass disconnect the memory goes back.
            self.table.shrink_to(0, |entry| spread(entry.hash));
        }
    }

    /// How many devices there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

/// 32 bits of hash in both halves: hashbrown takes its tag from the high bits and the bucket from the low ones.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::ConnectionSlot;

    #[test]
    fn devices_with_the_same_hash_are_told_apart() {
        let ids = ["a", "b", "c"];
        let mut devices = Devices::default();
        for slot in 0..3 {
            devices.insert(42, ConnectionSlot(slot));
        }
        for (index, id) in ids.iter().enumerate() {
            assert_eq!(devices.find(42, |slot| ids[slot.index()] == *id), Some(ConnectionSlot(index as u32)));
        }
        devices.remove(42, ConnectionSlot(1));
        assert_eq!(devices.find(42, |slot: ConnectionSlot| ids[slot.index()] == "b"), None);
        assert_eq!(devices.len(), 2);
    }

    #[test]
    #[should_panic(expected = "not in the table")]
    fn removing_a_stranger_is_our_own_error() {
        Devices::default().remove(1, ConnectionSlot(1));
    }
}

//! Slots: the numbers by which a shard finds what it holds. Each kind is a type of its own, and a [`Table`] is indexed by one
//! kind alone; so that the slot of a session finds a connection cannot be written.
//!
//! A slot is used again as soon as it is free. Whoever keeps one for longer than a turn keeps a generation beside it.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Index, IndexMut};

use slab::Slab;

/// A kind of slot: a `u32` by another name, at no cost.
pub trait Slot: Copy + Eq + fmt::Debug {
    /// The slot with this number.
    fn new(number: u32) -> Self;

    /// Its number.
    fn number(self) -> u32;
}

/// Where there is one kind of slots alone, as in the load harness.
impl Slot for u32 {
    fn new(number: u32) -> Self {
        number
    }

    fn number(self) -> u32 {
        self
    }
}

/// Makes a kind of slot.
macro_rules! slot {
    ($(#[$about:meta])* $visibility:vis struct $name:ident) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        $visibility struct $name(pub u32);

        impl $crate::slot::Slot for $name {
            fn new(number: u32) -> Self {
                Self(number)
            }

            fn number(self) -> u32 {
                self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}
pub(crate) use slot;

slot! {
    /// A connection's slot in its shard, and that of its socket in the worker.
    pub struct ConnectionSlot
}

/// Of connections there are arrays beside the table.
impl ConnectionSlot {
    /// The slot's place in any array that has one for each.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The slot at a place in such an array.
    #[must_use]
    pub const fn at(index: usize) -> Self {
        Self(index as u32)
    }
}

slot! {
    /// A session's slot in its shard.
    pub struct SessionSlot
}

/// Whatever is held, by slot: a slab that knows which kind of slots are its own.
#[derive(Debug)]
pub struct Table<S, T> {
    slab: Slab<T>,
    kind: PhantomData<fn() -> S>,
}

impl<S, T> Default for Table<S, T> {
    fn default() -> Self {
        Self { slab: Slab::new(), kind: PhantomData }
    }
}

impl<S: Slot, T> Table<S, T> {
    /// An empty one, without memory of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many slots are taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// The slot that the next insertion takes.
    #[must_use]
    pub fn vacant(&self) -> S {
        S::new(self.slab.vacant_key() as u32)
    }

    /// Takes a slot. There are never more than 2^32: the memory of that many ends first.
    pub fn insert(&mut self, value: T) -> S {
        S::new(self.slab.insert(value) as u32)
    }

    /// Frees a slot, which must be taken.
    ///
    /// # Panics
    /// It is free.
    pub fn remove(&mut self, slot: S) -> T {
        self.slab.remove(slot.number() as usize)
    }

    /// No slot from this one on is taken: more than [`Table::len`] where some between are free.
    #[must_use]
    pub fn end(&self) -> usize {
        self.slab.capacity()
    }

    /// What is in a slot.
    #[must_use]
    pub fn get(&self, slot: S) -> Option<&T> {
        self.slab.get(slot.number() as usize)
    }

    /// What is in a slot, to be changed.
    pub fn get_mut(&mut self, slot: S) -> Option<&mut T> {
        self.slab.get_mut(slot.number() as usize)
    }

    /// Whether a slot is taken.
    #[must_use]
    pub fn contains(&self, slot: S) -> bool {
        self.slab.contains(slot.number() as usize)
    }

    /// All that are taken, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (S, &T)> {
        self.slab.iter().map(|(index, value)| (S::new(index as u32), value))
    }
}

impl<S: Slot, T> Index<S> for Table<S, T> {
    type Output = T;

    fn index(&self, slot: S) -> &T {
        &self.slab[slot.number() as usize]
    }
}

impl<S: Slot, T> IndexMut<S> for Table<S, T> {
    fn index_mut(&mut self, slot: S) -> &mut T {
        &mut self.slab[slot.number() as usize]
    }
}

const _: () = assert!(size_of::<Option<ConnectionSlot>>() == 8 && size_of::<SessionSlot>() == 4);
const _: () = assert!(size_of::<Table<SessionSlot, u64>>() == size_of::<Slab<u64>>());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_gives_a_freed_slot_again() {
        let mut table: Table<SessionSlot, &str> = Table::new();
        let (one, two) = (table.insert("one"), table.insert("two"));
        assert_eq!((one, two), (SessionSlot(0), SessionSlot(1)));
        assert_eq!(table.remove(one), "one");
        assert_eq!((table.get(one), table.contains(two), table.len()), (None, true, 1));
        assert_eq!(table.vacant(), one);
        assert_eq!(table.insert("three"), one);
        table[two] = "zwei";
        assert_eq!(table.iter().collect::<Vec<_>>(), [(one, &"three"), (two, &"zwei")]);
    }
}

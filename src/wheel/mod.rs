//! The timing wheel: one deadline per slab index, armed, moved and cancelled in constant time.
//!
//! It owns its links and knows nothing of what an index stands for, but of which kind of slots it is ([`Slot`]). It reads no clock, never fires early, and never
//! moves many entries at once because a tick happens to be round.
//!
//! ## How it is built
//!
//! Five levels, each a ring of slots; a slot is a list of entries. A slot of level 0 holds one tick, a slot of
//! a higher level as many ticks as one *page* of the level below. Every ring has two pages: time turns through
//! one of them while the other, the next one, is filled.
//!
//! ```text
//!            slot covers   slots      a page (half of them) covers
//! level 0    1 tick        2 x 1,024  2^10 ticks, 102.4 s
//! level 1    2^10 ticks    2 x 64     2^16 ticks, 1.8 hours
//! level 2    2^16 ticks    2 x 64     2^22 ticks, 4.9 days
//! level 3    2^22 ticks    2 x 64     2^28 ticks, 311 days
//! level 4    2^28 ticks    16         the whole circle of a u32
//! late       one list: what was armed at or before the wheel's time
//!
//! ticks      | page u              | page u+1            | page u+2            | page u+3  ...
//!                    ^ time
//! level 0    | fired | due soon    | being filled        |
//! level 1    | always empty        | slot u+1: draining  | slot u+2            | slot u+3  ...
//!                                     `-> some each tick, to level 0
//! ```
//!
//! Level 2 looks upon level 1 as level 1 does upon level 0, and so on up.
//!
//! * **Placing.** An entry goes to the lowest level that has its deadline on this page or the next. So everything less
//!   than 1,024 ticks (102.4 s) ahead is placed once, in the slot of its tick, and is never moved again: heartbeats
//!   do not cascade.
//! * **Cascading.** While time is anywhere on page `u` of a level, the slot of the level above that covers page `u+1` is
//!   *draining*. Nothing new can come into it (placing would choose the level below), so its length only falls. Every
//!   tick places `max(64, length / ticks left on the page)` of its entries again, further down; on the last tick of
//!   the page that is all that is left. So the slot is empty before its first deadline can be due, which
//!   is asserted whenever time moves, and a slot of `n` entries costs no tick more than `max(64, n / 1,024)` moves.
//! * **Jumps.** Occupancy words tell the next tick at which there is anything to do: a slot of level 0 to
//!   fire, a slot to go on draining, a page on which a draining begins. Time goes straight from one such tick to the
//!   next, so an hour that passed while the process was stopped costs what is in it, not 36,000 steps. Where even that
//!   is more than one call may do, the wheel's time stays behind and the next call goes on.
//! * **Finding.** An entry knows its level (three bits beside a link) and its deadline; the two give the slot,
//!   whatever the time is. Cancelling needs no search and slot lengths are exact.

#[cfg(test)]
mod tests;

use std::marker::PhantomData;

use crate::slot::Slot;
use crate::time::Tick;

/// Levels of slots, without the late list.
const LEVELS: usize = 5;
/// A slot of this level covers `2^SHIFT` ticks.
const SHIFT: [u32; LEVELS] = [0, 10, 16, 22, 28];
/// Slots of a level, both pages.
const SLOTS: [u32; LEVELS] = [2 * 1024, 2 * 64, 2 * 64, 2 * 64, 16];
/// Where a level's slots begin in [`Wheel::slots`]; the late list is behind them all.
const BASE: [u32; LEVELS] = [0, 2048, 2176, 2304, 2432];
const LATE_SLOT: usize = 2448;

/// The level that stands for the late list.
const LATE: u32 = LEVELS as u32;
/// The level of an entry that is not armed.
const UNARMED: u32 = 7;

/// Entries that a draining slot gives up in one tick even where fewer would do, so that a short slot is done
/// with at once instead of waking the loop every tick.
const SLICE_MIN: u32 = 64;
/// Entries that one call of [`Wheel::expire`] may cascade when its `limit` is smaller.
const CASCADE_MIN: usize = 2048;

/// A link is 29 bits wide; the three above it hold a level where the entry has one.
const LINK_BITS: u32 = 29;
const NONE: u32 = (1 << LINK_BITS) - 1;

/// Indices lie below this (536,870,911).
pub const INDEX_MAX: u32 = NONE;

#[derive(Clone, Copy)]
struct Entry {
    next: u32,
    /// The level in the upper three bits, the link in the others: [`NONE`] for the head of a list.
    level_prev: u32,
    deadline: Tick,
}

const _: () = assert!(size_of::<Entry>() == 12);

impl Entry {
    const VACANT: Entry = Entry { next: NONE, level_prev: UNARMED << LINK_BITS | NONE, deadline: Tick(0) };

    fn level(self) -> u32 {
        self.level_prev >> LINK_BITS
    }

    fn prev(self) -> u32 {
        self.level_prev & NONE
    }

    fn slot(self) -> usize {
        slot_of(self.level(), self.deadline)
    }
}

#[derive(Clone, Copy)]
struct SlotList {
    head: u32,
    length: u32,
}

/// What the wheel has done so far besides firing, for metrics and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Ticks at which it stopped because there was something to do.
    pub steps: u64,
    /// Entries placed again, at a lower level.
    pub cascaded: u64,
}

/// A hierarchical timing wheel over slab indices below [`INDEX_MAX`]. 12 bytes per index and 20 KiB.
///
/// ```
/// use pulsegate::slot::ConnectionSlot;
/// use pulsegate::time::Tick;
/// use pulsegate::wheel::Wheel;
///
/// let mut wheel = Wheel::new(Tick(0));
/// wheel.arm(ConnectionSlot(7), Tick(30));
/// wheel.arm(ConnectionSlot(9), Tick(10));
/// wheel.arm(ConnectionSlot(7), Tick(20)); // moves it
/// assert_eq!(wheel.next(), Some(Tick(10)));
///
/// let mut due = Vec::new();
/// let more = wheel.expire(Tick(25), 100, &mut due);
/// assert_eq!(due, [ConnectionSlot(9), ConnectionSlot(7)]); // the earlier deadline first
/// assert!(!more && wheel.is_empty());
/// ```
pub struct Wheel<S = u32> {
    entries: Vec<Entry>,
    slots: Box<[SlotList]>,
    /// One bit per slot of level 0 that is not empty, and one bit per word of these that is not zero.
    occupied: [u64; 32],
    occupied_words: u32,
    /// One bit per slot of levels 1 to 4.
    occupied_above: [u128; LEVELS - 1],
    /// Everything with an earlier deadline has fired. Behind `now` while a call has left work over.
    time: Tick,
    /// The latest `now` that was seen.
    now: Tick,
    armed: usize,
    work: Work,
    kind: PhantomData<fn() -> S>,
}

impl<S: Slot> Wheel<S> {
    /// An empty wheel whose time is `now`.
    #[must_use]
    pub fn new(now: Tick) -> Self {
        Self {
            entries: Vec::new(),
            slots: vec![SlotList { head: NONE, length: 0 }; LATE_SLOT + 1].into_boxed_slice(),
            occupied: [0; 32],
            occupied_words: 0,
            occupied_above: [0; LEVELS - 1],
            time: now,
            now,
            armed: 0,
            work: Work::default(),
            kind: PhantomData,
        }
    }

    /// Arms `slot` to fire once `deadline` has come, instead of at its earlier deadline if it had one. A deadline that has
    /// passed already fires on the next [`expire`](Self::expire). At most `i32::MAX` ticks ahead. O(1).
    pub fn arm(&mut self, slot: S, deadline: Tick) {
        let index = slot.number();
        assert!(index < INDEX_MAX, "index {index} is beyond what a link can hold");
        if index as usize >= self.entries.len() {
            self.entries.resize(index as usize + 1, Entry::VACANT);
        }
        let entry = self.entries[index as usize];
        if entry.level() != UNARMED {
            if entry.deadline == deadline {
                return;
            }
            self.unlink(index);
        }
        self.link(index, deadline);
    }

    /// Disarms `slot`; nothing happens if it is not armed. O(1).
    pub fn cancel(&mut self, slot: S) {
        if self.is_armed(slot) {
            self.unlink(slot.number());
        }
    }

    /// Whether `slot` has a deadline that has not fired.
    #[must_use]
    pub fn is_armed(&self, slot: S) -> bool {
        self.deadline(slot).is_some()
    }

    /// The deadline of `slot` as it was armed.
    #[must_use]
    pub fn deadline(&self, slot: S) -> Option<Tick> {
        let entry = self.entries.get(slot.number() as usize)?;
        (entry.level() != UNARMED).then_some(entry.deadline)
    }

    /// How many indices are armed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.armed
    }

    /// Whether nothing is armed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.armed == 0
    }

    /// Steps and cascaded entries since the wheel was made.
    #[must_use]
    pub fn work(&self) -> Work {
        self.work
    }

    /// Disarms entries whose deadline is at or before `now`, earlier ticks first, and appends their slots to `due`.
    ///
    /// At most `limit` of them, and besides at most `max(limit, 2,048)` entries are cascaded, give or take one tick's
    /// share. True when that bound was reached and work up to `now` is left: call again. `now` never goes back.
    pub fn expire(&mut self, now: Tick, limit: usize, due: &mut Vec<S>) -> bool {
        assert!(!self.now.is_after(now), "time went back from {:?} to {now:?}", self.now);
        self.now = now;
        let mut room = limit;
        let mut moves = limit.max(CASCADE_MIN);
        loop {
            room -= self.fire(LATE_SLOT, room, due);
            room -= self.fire(slot_of(0, self.time), room, due);
            let stop = match self.next() {
                Some(stop) if !stop.is_after(now) => stop,
                _ => {
                    self.advance(now);
                    return false;
                }
            };
            if room == 0 || moves == 0 {
                return true;
            }
            self.work.steps += 1;
            self.advance(stop);
            moves = moves.saturating_sub(self.cascade());
        }
    }

    /// When to call [`expire`](Self::expire) next: the earliest deadline, or a tick before it at which entries must be
    /// cascaded. Never later than the earliest deadline; `None` when nothing is armed. A few words are looked at.
    #[must_use]
    pub fn next(&self) -> Option<Tick> {
        if self.slots[LATE_SLOT].length > 0 || self.slots[slot_of(0, self.time)].length > 0 {
            return Some(self.time);
        }
        let mut ahead = self.first_occupied().unwrap_or(u32::MAX);
        for (level, occupied) in (1..).zip(self.occupied_above) {
            let unit = self.time.0 >> SHIFT[level];
            let work = match distance_in_ring(occupied, unit + 1, SLOTS[level]) {
                None => continue,
                // Draining: a slice every tick.
                Some(0) => 1,
                // Nothing to do before that slot's draining begins, one unit ahead of it.
                Some(units) => ((unit.wrapping_add(units)) << SHIFT[level]).wrapping_sub(self.time.0),
            };
            ahead = ahead.min(work);
        }
        (ahead != u32::MAX).then(|| self.time.plus(ahead))
    }

    /// Panics unless every list, bit, length and placement is as the module's head says. Walks everything.
    pub fn check_invariants(&self) {
        assert!(!self.time.is_after(self.now));
        let mut seen = 0;
        for (position, slot) in self.slots.iter().enumerate() {
            let (mut index, mut prev, mut length) = (slot.head, NONE, 0);
            while index != NONE {
                let entry = self.entries[index as usize];
                assert_eq!(entry.prev(), prev, "entry {index} does not point back");
                assert_eq!(entry.slot(), position, "entry {index} is in a list that is not its own");
                self.check_placement(index, entry);
                (prev, index, length) = (index, entry.next, length + 1);
            }
            assert_eq!(slot.length, length, "slot {position} counts wrong");
            assert_eq!(self.is_occupied(position), length > 0, "slot {position} has the wrong bit");
            seen += length as usize;
        }
        let armed = self.entries.iter().filter(|entry| entry.level() != UNARMED).count();
        assert_eq!((seen, armed), (self.armed, self.armed));
        for (word, bits) in self.occupied.iter().enumerate() {
            assert_eq!(*bits != 0, self.occupied_words >> word & 1 == 1);
        }
    }

    fn check_placement(&self, index: u32, entry: Entry) {
        let (level, time) = (entry.level() as usize, self.time);
        if entry.level() == LATE {
            assert!(!entry.deadline.is_after(time), "entry {index} is called late and is not");
            return;
        }
        assert!(!time.is_after(entry.deadline), "entry {index} was passed by");
        let page_ticks = u64::from(SLOTS[level] / 2) << SHIFT[level];
        let offset = u64::from(time.0) & (page_ticks - 1);
        assert!(offset + u64::from(entry.deadline.since(time)) < 2 * page_ticks, "entry {index} is two pages ahead");
        if level > 0 {
            assert_ne!(
                time.0 >> SHIFT[level],
                entry.deadline.0 >> SHIFT[level],
                "entry {index} was not drained in time"
            );
        }
    }

    /// Moves time to `to`. The slot that covers `to` must have been drained at every level.
    fn advance(&mut self, to: Tick) {
        self.time = to;
        for level in 1..LEVELS as u32 {
            let drained = self.slots[slot_of(level, to)].length == 0;
            assert!(drained, "level {level} was not drained before {to:?}");
        }
    }

    /// This tick's share of every draining slot. Returns how many entries were placed again.
    fn cascade(&mut self) -> usize {
        let mut moved = 0;
        for level in 1..LEVELS as u32 {
            let unit_ticks = 1 << SHIFT[level as usize];
            let position = slot_of(level, Tick(self.time.0.wrapping_add(unit_ticks)));
            let SlotList { head, length } = self.slots[position];
            // This tick is one of those that are left.
            let ticks_left = unit_ticks - (self.time.0 & (unit_ticks - 1));
            let slice = length.div_ceil(ticks_left).max(SLICE_MIN).min(length);
            let mut index = head;
            for _ in 0..slice {
                let Entry { next, deadline, .. } = self.entries[index as usize];
                self.link(index, deadline);
                index = next;
            }
            self.behead(position, slice, index);
            moved += slice as usize;
        }
        self.work.cascaded += moved as u64;
        moved
    }

    /// Disarms up to `room` entries of one slot into `due`. Returns how many.
    fn fire(&mut self, position: usize, room: usize, due: &mut Vec<S>) -> usize {
        let SlotList { head, length } = self.slots[position];
        let count = room.min(length as usize);
        let mut index = head;
        for _ in 0..count {
            due.push(S::new(index));
            index = std::mem::replace(&mut self.entries[index as usize], Entry::VACANT).next;
        }
        self.behead(position, count as u32, index);
        count
    }

    /// Takes the first `count` entries, which have been dealt with, off a list that goes on with `head`. Once for all of
    /// them: to unlink each would write to its neighbour, most likely not in the cache, for nothing.
    fn behead(&mut self, position: usize, count: u32, head: u32) {
        if count == 0 {
            return;
        }
        let slot = &mut self.slots[position];
        slot.head = head;
        slot.length -= count;
        self.armed -= count as usize;
        if head == NONE {
            self.set_occupied(position, false);
        } else {
            let entry = &mut self.entries[head as usize];
            entry.level_prev = entry.level() << LINK_BITS | NONE;
        }
    }

    fn link(&mut self, index: u32, deadline: Tick) {
        let level = level_of(self.time, deadline);
        let position = slot_of(level, deadline);
        let slot = &mut self.slots[position];
        let next = slot.head;
        slot.head = index;
        slot.length += 1;
        if next == NONE {
            self.set_occupied(position, true);
        } else {
            let entry = &mut self.entries[next as usize];
            entry.level_prev = entry.level() << LINK_BITS | index;
        }
        self.entries[index as usize] = Entry { next, level_prev: level << LINK_BITS | NONE, deadline };
        self.armed += 1;
    }

    fn unlink(&mut self, index: u32) {
        let entry = self.entries[index as usize];
        debug_assert!(entry.level() != UNARMED);
        self.entries[index as usize] = Entry::VACANT;
        if entry.next != NONE {
            let next = &mut self.entries[entry.next as usize];
            next.level_prev = next.level() << LINK_BITS | entry.prev();
        }
        let position = entry.slot();
        let slot = &mut self.slots[position];
        slot.length -= 1;
        if entry.prev() == NONE {
            slot.head = entry.next;
        } else {
            self.entries[entry.prev() as usize].next = entry.next;
        }
        if slot.length == 0 {
            self.set_occupied(position, false);
        }
        self.armed -= 1;
    }

    /// Ticks from the wheel's time to the first occupied slot of level 0 after it.
    fn first_occupied(&self) -> Option<u32> {
        let start = self.time.0.wrapping_add(1) % SLOTS[0];
        let (word, bit) = (start / 64, start % 64);
        let rest = self.occupied[word as usize] >> bit;
        if rest != 0 {
            return Some(1 + rest.trailing_zeros());
        }
        // This word's lower bits are the farthest of all: the search ends with it, 32 words on.
        let words = distance_in_ring(self.occupied_words.into(), (word + 1) % 32, 32)? + 1;
        let found = self.occupied[((word + words) % 32) as usize].trailing_zeros();
        Some(1 + words * 64 + found - bit)
    }

    fn set_occupied(&mut self, position: usize, occupied: bool) {
        match level_of_slot(position) {
            0 => {
                let word = position / 64;
                set_bit(&mut self.occupied[word], position % 64, occupied);
                let any = self.occupied[word] != 0;
                self.occupied_words = self.occupied_words & !(1 << word) | u32::from(any) << word;
            }
            LATE => {}
            level => {
                let word = &mut self.occupied_above[level as usize - 1];
                let bit = 1 << (position - BASE[level as usize] as usize);
                *word = if occupied { *word | bit } else { *word & !bit };
            }
        }
    }

    fn is_occupied(&self, position: usize) -> bool {
        match level_of_slot(position) {
            0 => self.occupied[position / 64] >> (position % 64) & 1 == 1,
            LATE => self.slots[position].length > 0,
            level => self.occupied_above[level as usize - 1] >> (position - BASE[level as usize] as usize) & 1 == 1,
        }
    }
}

/// The lowest level that has `deadline` on this page or the next, seen from `time`.
fn level_of(time: Tick, deadline: Tick) -> u32 {
    if !deadline.is_after(time) {
        return LATE;
    }
    let ahead = deadline.since(time);
    let mut level = 0;
    while level + 1 < LEVELS {
        // A page of this level is a slot of the next.
        let page_shift = SHIFT[level + 1];
        let offset = time.0 & ((1 << page_shift) - 1);
        if (offset + ahead) >> page_shift <= 1 {
            break;
        }
        level += 1;
    }
    level as u32
}

fn slot_of(level: u32, deadline: Tick) -> usize {
    if level == LATE {
        return LATE_SLOT;
    }
    let level = level as usize;
    (BASE[level] + (deadline.0 >> SHIFT[level]) % SLOTS[level]) as usize
}

fn level_of_slot(position: usize) -> u32 {
    match position {
        0..2048 => 0,
        LATE_SLOT => LATE,
        above => 1 + (above as u32 - BASE[1]) / SLOTS[1],
    }
}

fn set_bit(word: &mut u64, bit: usize, value: bool) {
    *word = *word & !(1 << bit) | u64::from(value) << bit;
}

/// How far behind place `start` (taken modulo `size`) the first occupied place of a ring is.
fn distance_in_ring(occupied: u128, start: u32, size: u32) -> Option<u32> {
    let start = start % size;
    let behind = occupied >> start;
    match (occupied, behind) {
        (0, _) => None,
        (_, 0) => Some(occupied.trailing_zeros() + size - start),
        _ => Some(behind.trailing_zeros()),
    }
}

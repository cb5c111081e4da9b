//! Which messages have arrived: one cell for each that will ever be sent, counted by whoever sees it arrive.
//!
//! ```text
//!  slot = round x devices + device        a message is the `round`th one to, or from, its device
//!  payload: slot in 16 hexadecimal digits | due in 16 (microseconds of the run's clock) | '.' up to the length asked for
//! ```
//! Text, so that it passes through JSON as it is. Exact counts come from the cells and never from sums of what each
//! side believes: what came twice is not taken for what never came.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::clock::Micros;

/// The shortest payload that can be told from any other.
pub const STAMP_BYTES: usize = 32;

/// Which message it is, and when it was due to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub slot: u64,
    pub due: Micros,
}

impl Stamp {
    /// Appends a payload of `length` bytes, at least [`STAMP_BYTES`].
    pub fn encode(self, length: usize, payload: &mut Vec<u8>) {
        let end = payload.len() + length.max(STAMP_BYTES);
        for number in [self.slot, self.due] {
            payload.extend((0..16).rev().map(|digit| HEX[(number >> (4 * digit)) as usize & 0xf]));
        }
        payload.resize(end, b'.');
    }

    /// Reads it back; `None` for anything that was not written by [`Stamp::encode`].
    pub fn decode(payload: &[u8]) -> Option<Stamp> {
        let number = |digits: &[u8]| {
            let digit = |&byte: &u8| char::from(byte).to_digit(16).map(u64::from);
            digits.iter().map(digit).try_fold(0, |number, digit| Some(number << 4 | digit?))
        };
        Some(Stamp { slot: number(payload.get(..16)?)?, due: number(payload.get(16..STAMP_BYTES)?)? })
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// How often each message has arrived.
pub struct Ledger {
    devices: u32,
    cells: Box<[AtomicU8]>,
    /// Messages that came to the wrong device, or that were never sent.
    strays: AtomicU64,
    received: AtomicU64,
}

/// The sums of a ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Messages that arrived at least once.
    pub received: u64,
    /// Arrivals beyond the first of each message.
    pub duplicated: u64,
    /// Arrivals at the wrong device, or of what was never sent.
    pub strays: u64,
}

impl Ledger {
    /// For `rounds` messages of each of `devices` devices.
    pub fn new(devices: u32, rounds: u64) -> Self {
        let cells = usize::try_from(u64::from(devices) * rounds).expect("a run's messages fit into memory");
        Self {
            devices,
            cells: (0..cells).map(|_| AtomicU8::new(0)).collect(),
            strays: AtomicU64::new(0),
            received: AtomicU64::new(0),
        }
    }

    /// The slot of a device's message.
    pub fn slot(&self, device: u32, round: u64) -> u64 {
        round * u64::from(self.devices) + u64::from(device)
    }

    /// The device that a slot belongs to.
    pub fn device(&self, slot: u64) -> u32 {
        (slot % u64::from(self.devices)) as u32
    }

    /// Which message of its device's a slot is.
    pub fn round(&self, slot: u64) -> u64 {
        slot / u64::from(self.devices)
    }

    /// A message has arrived that only `device` may have. Whether it was the first time.
    pub fn note(&self, slot: u64, device: u32) -> bool {
        let cell = usize::try_from(slot).ok().and_then(|slot| self.cells.get(slot));
        let Some(cell) = cell.filter(|_| self.device(slot) == device) else {
            self.strays.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        // A count that is full stays full: 255 times is wrong enough.
        let before = cell.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_add(1));
        let is_first = before == Ok(0);
        if is_first {
            self.received.fetch_add(1, Ordering::Relaxed);
        }
        is_first
    }

    /// How many messages are noted here and not in `other`, which is of the same devices and rounds.
    pub fn missing_in(&self, other: &Ledger) -> u64 {
        assert_eq!((self.devices, self.cells.len()), (other.devices, other.cells.len()));
        let is_noted = |cell: &AtomicU8| cell.load(Ordering::Relaxed) > 0;
        let missing = self.cells.iter().zip(&other.cells).filter(|(here, there)| is_noted(here) && !is_noted(there));
        missing.count() as u64
    }

    /// Messages that arrived so far, each counted once.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// What has arrived so far.
    pub fn sums(&self) -> Sums {
        let counts = || self.cells.iter().map(|cell| u64::from(cell.load(Ordering::Relaxed)));
        let received = counts().filter(|&count| count > 0).count() as u64;
        Sums { received, duplicated: counts().sum::<u64>() - received, strays: self.strays.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_as_it_was_written_and_nothing_else_is_taken_for_one() {
        let stamp = Stamp { slot: 0x1234_5678_9abc, due: u64::MAX };
        let mut payload = b"before".to_vec();
        stamp.encode(40, &mut payload);
        assert_eq!(payload.len(), 46);
        assert_eq!(Stamp::decode(&payload[6..]), Some(stamp));
        assert!(std::str::from_utf8(&payload).is_ok());
        assert_eq!(Stamp::decode(&payload[6..37]), None);
        assert_eq!(Stamp::decode(&payload), None);
        let mut shortest = Vec::new();
        stamp.encode(0, &mut shortest);
        assert_eq!(shortest.len(), STAMP_BYTES);
    }

    #[test]
    fn what_came_twice_is_not_taken_for_what_never_came() {
        let ledger = Ledger::new(3, 2);
        assert!(ledger.note(ledger.slot(2, 1), 2));
        assert!(!ledger.note(ledger.slot(2, 1), 2));
        assert!(ledger.note(ledger.slot(0, 0), 0));
        assert_eq!(ledger.sums(), Sums { received: 2, duplicated: 1, strays: 0 });
        assert_eq!(ledger.received(), 2);
    }

    #[test]
    fn what_was_acknowledged_and_never_arrived_is_missing() {
        let (acknowledged, arrived) = (Ledger::new(3, 2), Ledger::new(3, 2));
        acknowledged.note(0, 0);
        acknowledged.note(4, 1);
        arrived.note(4, 1);
        arrived.note(2, 2);
        assert_eq!(acknowledged.missing_in(&arrived), 1);
        arrived.note(0, 0);
        assert_eq!(acknowledged.missing_in(&arrived), 0);
    }

    #[test]
    fn what_comes_to_another_device_or_was_never_sent_is_astray() {
        let ledger = Ledger::new(3, 2);
        assert!(!ledger.note(ledger.slot(1, 0), 2));
        assert!(!ledger.note(6, 0));
        assert!(!ledger.note(u64::MAX, 0));
        assert_eq!(ledger.sums(), Sums { received: 0, duplicated: 0, strays: 3 });
    }
}

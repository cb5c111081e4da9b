//! What connections keep is taken from the shard's pool: half records and half packets, and bytes that sockets did not take
//! (decision 0013). Nothing is kept for a connection that is idle, and so it stands in no table here.

use std::collections::HashMap;

use super::Shard;
use crate::connection::Kept;
use crate::pool::{Class, Full};
use crate::slot::ConnectionSlot;

/// Accounts for which there is room when there are none.
const TABLE_KEPT: usize = 1_024;

impl Shard {
    /// Brings the account of a connection up to what it keeps now.
    ///
    /// # Errors
    /// [`Full`]: it keeps more than there is room for, and must end; its account is as it was.
    pub(super) fn account(&mut self, slot: ConnectionSlot) -> Result<(), Full> {
        if self.kept.is_empty() && self.kept_of(slot).is_none() {
            // As it is for nearly every one, at every read.
            return Ok(());
        }
        let (before, now) = self.accounts(slot);
        if now == before {
            return Ok(());
        }
        if now.class == before.class && now.received > before.received {
            self.pool.try_take(now.class, now.received - before.received, before.received)?;
        } else {
            self.pool.give(before.class, before.received);
            self.pool.take_anyway(now.class, now.received);
        }
        self.note_kept(slot, Kept { unsent: before.unsent, ..now });
        if now.unsent > before.unsent {
            self.pool.try_take(Class::Unsent, now.unsent - before.unsent, before.unsent)?;
        } else {
            self.pool.give(Class::Unsent, before.unsent - now.unsent);
        }
        self.note_kept(slot, now);
        Ok(())
    }

    /// The same for what is there already and cannot be refused: of a connection that has come home, or becomes a device.
    pub(super) fn account_anyway(&mut self, slot: ConnectionSlot) {
        let (before, now) = self.accounts(slot);
        if now == before {
            return;
        }
        self.pool.give(before.class, before.received);
        self.pool.give(Class::Unsent, before.unsent);
        self.pool.take_anyway(now.class, now.received);
        self.pool.take_anyway(Class::Unsent, now.unsent);
        self.note_kept(slot, now);
    }

    /// What was taken for the connection in this slot, and what it keeps. Nobody keeps nothing.
    fn accounts(&self, slot: ConnectionSlot) -> (Kept, Kept) {
        let now = self.kept_of(slot).unwrap_or_default();
        let before = if self.kept.is_empty() { None } else { self.kept.get(&slot).copied() };
        (before.unwrap_or(Kept { class: now.class, ..Kept::default() }), now)
    }

    /// What the connection in this slot keeps, what it was granted included.
    fn kept_of(&self, slot: ConnectionSlot) -> Option<Kept> {
        let connection = self.connections.get(slot)?;
        let granted = self.grants.bytes(slot);
        if granted == 0 {
            return connection.kept();
        }
        let class = if connection.is_device() { Class::Received } else { Class::Unauthenticated };
        let kept = connection.kept().unwrap_or(Kept { class, ..Kept::default() });
        Some(Kept { received: kept.received + granted, ..kept })
    }

    fn note_kept(&mut self, slot: ConnectionSlot, kept: Kept) {
        if kept.received + kept.unsent > 0 {
            self.kept.insert(slot, kept);
        } else {
            self.kept.remove(&slot);
        }
        if self.kept.is_empty() && self.kept.capacity() > TABLE_KEPT {
            // After a storm the memory goes back.
            self.kept = HashMap::new();
        }
    }

    /// What was taken is what is kept, of every connection.
    pub(super) fn check_kept(&self) {
        let mut held = 0;
        for (slot, _) in self.connections.iter() {
            let kept = self.kept_of(slot).unwrap_or_default();
            let taken = self.kept.get(&slot).copied().unwrap_or_default();
            assert_eq!((taken.received, taken.unsent), (kept.received, kept.unsent), "the account of slot {slot}");
            held += usize::from(kept.received + kept.unsent > 0);
        }
        assert_eq!(self.kept.len(), held, "there is an account of somebody who is not there");
        for class in [Class::Unauthenticated, Class::Received, Class::Unsent] {
            let of_class = |kept: &Kept| match class {
                Class::Unsent => kept.unsent,
                _ if kept.class == class => kept.received,
                _ => 0,
            };
            let sum: usize = self.kept.values().map(of_class).sum();
            assert_eq!(self.pool.used(class), sum as u64, "{}", class.label());
        }
    }
}

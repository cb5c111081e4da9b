//! What each device has of the retained messages: none may fill the store and keep the state of all others out.
//!
//! A device's home counts what is retained of its own messages, and refuses the message by which it would hold more than is
//! free. So one device alone comes to half of what there is, the next to half of the rest; whoever holds nothing finds half of
//! what the greediest left. Putting another message, no longer than the old, in the place of one's own is never refused for it. The
//! owner's messages are in nobody's share.

use std::collections::HashMap;

use crate::link::Publication;

/// Of one device: messages, and bytes of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    messages: u32,
    bytes: u64,
}

/// By device.
#[derive(Debug, Default)]
pub(super) struct Shares(HashMap<u32, Held>);

/// What is free of the store, the message that is replaced left out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Free {
    pub(super) messages: usize,
    pub(super) bytes: usize,
}

impl Shares {
    /// Whether a message may be kept for its publisher, where an `old` one of its own would go for it.
    pub(super) fn may_keep(&self, publication: &Publication, old: Option<&Publication>, free: Free) -> bool {
        let bytes = publication.bytes();
        let own = old.filter(|old| old.owner == publication.owner);
        if publication.owner == 0 || own.is_some_and(|old| bytes <= old.bytes()) {
            return true;
        }
        let held = self.0.get(&publication.owner).copied().unwrap_or_default();
        let messages = held.messages as usize - usize::from(own.is_some()) + 1;
        let bytes = held.bytes - own.map_or(0, Publication::bytes) as u64 + bytes as u64;
        (own.is_some() || messages <= free.messages) && bytes <= free.bytes as u64
    }

    /// A message is kept now.
    pub(super) fn note_kept(&mut self, publication: &Publication) {
        if publication.owner != 0 {
            let held = self.0.entry(publication.owner).or_default();
            held.messages += 1;
            held.bytes += publication.bytes() as u64;
        }
    }

    /// A message is kept no longer.
    pub(super) fn note_gone(&mut self, publication: &Publication) {
        if let Some(held) = self.0.get_mut(&publication.owner) {
            held.messages -= 1;
            held.bytes -= publication.bytes() as u64;
            if held.messages == 0 {
                self.0.remove(&publication.owner);
            }
        }
    }

    /// Panics when what is held is not what is kept. For tests.
    pub(super) fn check(&self, kept: impl Iterator<Item = impl AsRef<Publication>>) {
        let mut counted = Self::default();
        kept.for_each(|publication| counted.note_kept(publication.as_ref()));
        assert_eq!(self.0, counted.0, "what devices hold of the retained messages");
    }
}

//! The sockets of one worker, by the slots of its shard.

use crate::slot::ConnectionSlot;
use std::collections::HashSet;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use super::descriptors;

/// Four bytes each, and so the standard library's: mio's own are larger.
#[derive(Default)]
pub(super) struct Sockets {
    slots: Vec<Option<TcpStream>>,
    pub open: usize,
    /// Slots whose sockets have had no room at least once: they are polled for that too.
    pub waits_for_room: HashSet<ConnectionSlot>,
}

impl Sockets {
    pub(super) fn get(&self, slot: ConnectionSlot) -> Option<&TcpStream> {
        self.slots.get(slot.index())?.as_ref()
    }

    pub(super) fn descriptor(&self, slot: ConnectionSlot) -> Option<BorrowedFd<'_>> {
        self.get(slot).map(AsFd::as_fd)
    }

    pub(super) fn peer(&self, slot: ConnectionSlot) -> Option<SocketAddr> {
        self.get(slot).and_then(descriptors::peer_of)
    }

    pub(super) fn insert(&mut self, slot: ConnectionSlot, socket: TcpStream) {
        let position = slot.index();
        if position >= self.slots.len() {
            self.slots.resize_with(position + 1, || None);
        }
        let previous = self.slots[position].replace(socket);
        assert!(previous.is_none(), "slot {slot} had a socket already");
        self.open += 1;
    }

    pub(super) fn remove(&mut self, slot: ConnectionSlot) -> Option<TcpStream> {
        let socket = self.slots.get_mut(slot.index())?.take()?;
        self.open -= 1;
        self.waits_for_room.remove(&slot);
        if self.open == 0 {
            (self.slots, self.waits_for_room) = (Vec::new(), HashSet::new());
        }
        Some(socket)
    }
}

const _: () = assert!(size_of::<Option<TcpStream>>() == 4);

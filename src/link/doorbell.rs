//! Waking a worker: however many senders push between two turns, its loop is woken once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Wakes one worker's event loop, at most once between two answers.
///
/// An eventfd of its own and not `mio::Waker`, because each worker leaves the shared descriptor table and must name the
/// descriptors that it takes along: all bells, under the same numbers in every table. `mio::Waker` does not tell its
/// number.
#[derive(Debug)]
pub struct Doorbell {
    rung: AtomicBool,
    event: OwnedFd,
}

impl Doorbell {
    /// A bell. Made before any worker leaves the shared descriptor table.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { rung: AtomicBool::new(false), event })
    }

    /// Wakes the loop unless it was already rung.
    ///
    /// # Errors
    /// What the descriptor says; none is expected while the worker lives.
    pub fn ring(&self) -> io::Result<()> {
        if !self.rung.swap(true, Ordering::AcqRel) {
            rustix::io::write(&self.event, &1u64.to_ne_bytes())?;
        }
        Ok(())
    }

    /// Called by the worker *before* it empties its queue: what is pushed from here on rings again.
    ///
    /// The eventfd's count is left alone: polled by edges, every ring is an event, and 2^64 rings are not reached.
    pub fn answer(&self) {
        // A swap, not a store: it acquires what every ringer pushed before it rang.
        self.rung.swap(false, Ordering::AcqRel);
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

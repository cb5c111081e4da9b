//! Waking a worker: a queue with a bell. However many senders push between two turns, the loop is woken once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Sender, TrySendError};
use rustix::event::{EventfdFlags, eventfd};

use super::Command;

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

/// The worker's inbox holds `limits.inbox_length` commands already; the command comes back.
#[derive(Debug)]
pub struct MailboxFull(pub Box<Command>);

/// Where commands for one worker are put.
#[derive(Clone, Debug)]
pub struct Mailbox {
    sender: Sender<Command>,
    bell: Arc<Doorbell>,
}

impl Mailbox {
    /// A mailbox into the queue behind `sender`, whose worker hears `bell`.
    #[must_use]
    pub fn new(sender: Sender<Command>, bell: Arc<Doorbell>) -> Self {
        Self { sender, bell }
    }

    /// Wakes the worker without a command: something else that it looks at each turn has changed.
    pub fn ring(&self) {
        if let Err(error) = self.bell.ring() {
            // Whatever it is rung for is there; the worker finds it on its next turn all the same.
            tracing::warn!(%error, "a worker could not be woken");
        }
    }

    /// Puts one command and rings. Never waits.
    ///
    /// # Errors
    /// [`MailboxFull`] with the command when the queue is at its bound or the worker is gone.
    pub fn send(&self, command: Command) -> Result<(), MailboxFull> {
        match self.sender.try_send(command) {
            Ok(()) => {
                self.ring();
                Ok(())
            }
            Err(TrySendError::Full(command) | TrySendError::Disconnected(command)) => {
                Err(MailboxFull(Box::new(command)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn many_pushes_ring_once_and_every_push_after_an_answer_rings_again() {
        let bell = Arc::new(Doorbell::new().unwrap());
        let (sender, receiver) = crossbeam_channel::bounded(3);
        let mailbox = Mailbox::new(sender, Arc::clone(&bell));
        let rings = || {
            let mut count = [0; 8];
            rustix::io::read(&*bell, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
        };
        for _ in 0..3 {
            mailbox.send(Command::Shutdown { window: Duration::ZERO }).unwrap();
        }
        assert!(mailbox.send(Command::Shutdown { window: Duration::ZERO }).is_err());
        assert_eq!(rings(), 1);
        bell.answer();
        assert_eq!(receiver.try_iter().count(), 3);
        mailbox.send(Command::Shutdown { window: Duration::ZERO }).unwrap();
        assert_eq!(rings(), 1);
    }
}

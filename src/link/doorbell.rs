//! Waking a worker: a queue with a bell. However many senders push between two turns, the loop is woken once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Sender, TrySendError};

use super::Command;

/// Wakes one worker's event loop, at most once between two answers.
pub struct Doorbell {
    rung: AtomicBool,
    waker: mio::Waker,
}

impl Doorbell {
    /// A bell on `waker`. Made before the worker leaves the shared descriptor table: the waker's number must be the
    /// same file in every thread that rings.
    #[must_use]
    pub fn new(waker: mio::Waker) -> Self {
        Self { rung: AtomicBool::new(false), waker }
    }

    /// Wakes the loop unless it was already rung.
    ///
    /// # Errors
    /// What the waker's descriptor says; none is expected while the worker lives.
    pub fn ring(&self) -> io::Result<()> {
        if self.rung.swap(true, Ordering::AcqRel) { Ok(()) } else { self.waker.wake() }
    }

    /// Called by the worker *before* it empties its queue: what is pushed from here on rings again.
    pub fn answer(&self) {
        // A swap, not a store: it acquires what every ringer pushed before it rang.
        self.rung.swap(false, Ordering::AcqRel);
    }
}

/// The worker's inbox holds `limits.inbox_length` commands already; the command comes back.
#[derive(Debug)]
pub struct MailboxFull(pub Box<Command>);

/// Where commands for one worker are put.
#[derive(Clone)]
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

    /// Puts one command and rings. Never waits.
    ///
    /// # Errors
    /// [`MailboxFull`] with the command when the queue is at its bound or the worker is gone.
    pub fn send(&self, command: Command) -> Result<(), MailboxFull> {
        match self.sender.try_send(command) {
            Ok(()) => {
                if let Err(error) = self.bell.ring() {
                    // The queue holds the command; the worker finds it on its next turn all the same.
                    tracing::warn!(%error, "a worker could not be woken");
                }
                Ok(())
            }
            Err(TrySendError::Full(command) | TrySendError::Disconnected(command)) => {
                Err(MailboxFull(Box::new(command)))
            }
        }
    }
}

//! Waking a worker: its loop is woken when it sleeps, and not when it is awake.
//!
//! ```text
//!              ring: no system call              ring: one write
//!   Awake ───────────────────▶ Rung ◀─────────────────────────── Asleep
//!     ▲  ◀── answer, wake ──────┘                                  ▲
//!     └──────────────────────────── doze ──────────────────────────┘
//! ```
//!
//! Whoever rings has put what he has to say into a queue before. The worker dozes only if nobody has rung since it last
//! answered, and answers before it empties its queues: so nothing that was put there is slept over.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::event::{EventfdFlags, eventfd};

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const RUNG: u8 = 2;

/// Wakes one worker's event loop.
///
/// An eventfd of its own and not `mio::Waker`, because each worker leaves the shared descriptor table and must name the
/// descriptors that it takes along: all bells, under the same numbers in every table. `mio::Waker` does not tell its
/// number.
#[derive(Debug)]
pub struct Doorbell {
    state: AtomicU8,
    event: OwnedFd,
}

impl Doorbell {
    /// A bell. Made before any worker leaves the shared descriptor table.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { state: AtomicU8::new(AWAKE), event })
    }

    /// Wakes the loop if it sleeps.
    ///
    /// # Errors
    /// What the descriptor says; none is expected while the worker lives.
    pub fn ring(&self) -> io::Result<()> {
        if self.state.swap(RUNG, Ordering::AcqRel) == ASLEEP {
            rustix::io::write(&self.event, &1u64.to_ne_bytes())?;
        }
        Ok(())
    }

    /// Called by the worker before it sleeps. `false`: somebody has rung, and it must not.
    #[must_use]
    pub fn doze(&self) -> bool {
        self.state.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Called by the worker when it has slept, or has not slept after all. `true`: somebody has rung.
    ///
    /// The eventfd's count is left alone: polled by edges, every write is an event, and 2^64 are not reached.
    #[must_use]
    pub fn wake(&self) -> bool {
        // A swap, not a store: it acquires what every ringer pushed before it rang.
        self.state.swap(AWAKE, Ordering::AcqRel) == RUNG
    }

    /// Called by the worker *before* it empties its queues: what is pushed from here on rings again.
    pub fn answer(&self) {
        self.state.swap(AWAKE, Ordering::AcqRel);
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sleeper_costs_a_system_call_and_nobody_sleeps_over_a_ring() {
        let bell = Doorbell::new().unwrap();
        let writes = || {
            let mut count = [0; 8];
            rustix::io::read(&bell, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
        };
        bell.ring().unwrap();
        assert_eq!(writes(), 0, "it was awake");
        assert!(!bell.doze() && bell.wake());
        assert!(bell.doze());
        (0..3).for_each(|_| bell.ring().unwrap());
        assert_eq!(writes(), 1);
        assert!(bell.wake() && !bell.wake());
        bell.ring().unwrap();
        bell.answer();
        assert!(bell.doze(), "it was answered before the queues were emptied");
    }

    /// Two threads pass a token to and fro: a ring that is slept over stops them.
    #[test]
    fn no_ring_is_lost_between_threads() {
        use std::sync::atomic::AtomicU32;
        let (bells, turn) = ([Doorbell::new().unwrap(), Doorbell::new().unwrap()], AtomicU32::new(0));
        std::thread::scope(|scope| {
            for me in 0..2_u32 {
                let (bells, turn) = (&bells, &turn);
                scope.spawn(move || {
                    let (mine, other) = (&bells[me as usize], &bells[1 - me as usize]);
                    loop {
                        mine.answer();
                        match turn.load(Ordering::Acquire) {
                            20_000.. => return other.ring().unwrap(),
                            now if now % 2 == me => {
                                turn.store(now + 1, Ordering::Release);
                                other.ring().unwrap();
                            }
                            _ if mine.doze() => {
                                let mut polled = [rustix::event::PollFd::new(mine, rustix::event::PollFlags::IN)];
                                let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
                                let woken = rustix::event::poll(&mut polled, Some(&limit)).unwrap();
                                assert!(woken > 0, "slept over a ring at {}", turn.load(Ordering::Relaxed));
                                let _ = rustix::io::read(mine, &mut [0; 8]);
                                let _ = mine.wake();
                            }
                            _ => {
                                let _ = mine.wake();
                            }
                        }
                    }
                });
            }
        });
    }
}

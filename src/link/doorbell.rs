//! Waking a worker: its loop is woken when it sleeps, and not when it is awake.
//!
//! ```text
//!   ring: no system call                     ring: one write each, until it is awake
//!   Awake ──────────────▶ Rung               Asleep ──────────────▶ Asleep, rung
//!     ▲ ◀── answer, wake ──┘                    ▲                         │
//!     ├────────────────── doze ─────────────────┘                         │
//!     └──────────────────────────────── wake ─────────────────────────────┘
//! ```
//!
//! Whoever rings has put what he has to say into a queue before. The worker dozes only if nobody has rung since it last
//! answered, and answers before it empties its queues: so nothing that was put there is slept over. Whoever finds it asleep
//! writes, though somebody has rung before: that one may be stopped between its mark and its write for as long as the system
//! likes, and nobody waits for it. The tests go through every interleaving.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// Somebody has rung since the worker last answered.
const RUNG: u8 = 1;
/// The worker sleeps, or is about to.
const ASLEEP: u8 = 2;

/// What the worker and those who ring know of each other.
#[derive(Debug, Default)]
struct State(AtomicU8);

impl State {
    /// Somebody rings. `true`: the worker is to be woken.
    fn mark(&self) -> bool {
        self.0.fetch_or(RUNG, Ordering::AcqRel) & ASLEEP != 0
    }

    /// The worker would sleep. `false`: somebody has rung.
    fn doze(&self) -> bool {
        self.0.compare_exchange(0, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The worker is awake, and hears from here on of what is rung. `true`: somebody has rung.
    fn wake(&self) -> bool {
        // A swap, not a store: it acquires what every ringer pushed before it rang.
        self.0.swap(0, Ordering::AcqRel) & RUNG != 0
    }
}

/// Wakes one worker's event loop.
///
/// An eventfd of its own and not `mio::Waker`, because each worker leaves the shared descriptor table and must name the
/// descriptors that it takes along: all bells, under the same numbers in every table. `mio::Waker` does not tell its
/// number.
#[derive(Debug)]
pub struct Doorbell {
    state: State,
    event: OwnedFd,
}

impl Doorbell {
    /// A bell. Made before any worker leaves the shared descriptor table.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { state: State::default(), event })
    }

    /// Wakes the loop if it sleeps.
    ///
    /// # Errors
    /// What the descriptor says; none is expected while the worker lives.
    pub fn ring(&self) -> io::Result<()> {
        if self.state.mark() {
            rustix::io::write(&self.event, &1u64.to_ne_bytes())?;
        }
        Ok(())
    }

    /// Called by the worker before it sleeps. `false`: somebody has rung, and it must not.
    #[must_use]
    pub fn doze(&self) -> bool {
        self.state.doze()
    }

    /// Called by the worker when it has slept, or has not slept after all. `true`: somebody has rung.
    ///
    /// The eventfd's count is left alone: polled by edges, every write is an event, and 2^64 are not reached.
    #[must_use]
    pub fn wake(&self) -> bool {
        self.state.wake()
    }

    /// Called by the worker *before* it empties its queues: what is pushed from here on rings again.
    pub fn answer(&self) {
        self.state.wake();
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
        assert_eq!(writes(), 3, "each of them wakes it: none knows whether the others do");
        assert!(bell.wake() && !bell.wake());
        bell.ring().unwrap();
        bell.answer();
        assert!(bell.doze(), "it was answered before the queues were emptied");
    }

    /// One ringer: it pushes, marks, and writes if it must.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    enum Ringer {
        Pushes,
        Marks,
        Writes,
        HasRung,
    }

    /// Where the worker is in its turn.
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    enum Worker {
        Dozes,
        /// In its poll; `false`: which does not wait.
        Polls(bool),
        Wakes,
        Answers,
        Takes,
    }

    /// Everything that there is to know, between two steps of anybody.
    #[derive(Clone, PartialEq, Eq, Hash, Debug)]
    struct World {
        state: u8,
        /// The eventfd has an edge that no poll has told.
        event: bool,
        worker: Worker,
        /// What the worker knows to be there.
        commands: bool,
        ringers: Vec<Ringer>,
        /// Whose message is in the queue.
        queued: Vec<bool>,
    }

    impl World {
        fn new(ringers: usize) -> Self {
            Self {
                state: 0,
                event: false,
                worker: Worker::Dozes,
                commands: false,
                ringers: vec![Ringer::Pushes; ringers],
                queued: vec![false; ringers],
            }
        }

        fn with_state<T>(&mut self, act: impl FnOnce(&State) -> T) -> T {
            let state = State(AtomicU8::new(self.state));
            let outcome = act(&state);
            self.state = state.0.into_inner();
            outcome
        }

        /// The next step of a ringer. `mark` is the rule.
        fn ring(&mut self, who: usize, mark: fn(&State) -> bool) -> bool {
            let before = self.ringers[who];
            self.ringers[who] = match before {
                Ringer::Pushes => {
                    self.queued[who] = true;
                    Ringer::Marks
                }
                Ringer::Marks => {
                    if self.with_state(mark) {
                        Ringer::Writes
                    } else {
                        Ringer::HasRung
                    }
                }
                Ringer::Writes => {
                    self.event = true;
                    Ringer::HasRung
                }
                Ringer::HasRung => return false,
            };
            true
        }

        /// The next step of the worker, as `WorkerIo::poll` and `Turn::receive_commands` have it. `false`: it sleeps.
        fn turn(&mut self) -> bool {
            self.worker = match self.worker {
                Worker::Dozes => Worker::Polls(!self.commands && self.with_state(State::doze)),
                Worker::Polls(waits) if waits && !self.event => return false,
                Worker::Polls(_) => {
                    self.event = false;
                    Worker::Wakes
                }
                Worker::Wakes => {
                    self.commands |= self.with_state(State::wake);
                    if self.commands { Worker::Answers } else { Worker::Dozes }
                }
                Worker::Answers => {
                    self.with_state(State::wake);
                    Worker::Takes
                }
                Worker::Takes => {
                    if let Some(first) = self.queued.iter().position(|queued| *queued) {
                        self.queued[first] = false;
                        Worker::Takes
                    } else {
                        self.commands = false;
                        Worker::Dozes
                    }
                }
            };
            true
        }
    }

    /// Every state that any interleaving comes to; the first in which the worker sleeps though somebody has rung for what is in
    /// the queue, wherever the other ringers are.
    fn slept_over(ringers: usize, mark: fn(&State) -> bool) -> (usize, Option<World>) {
        let mut seen = std::collections::HashSet::new();
        let mut open = vec![World::new(ringers)];
        while let Some(world) = open.pop() {
            if !seen.insert(world.clone()) {
                continue;
            }
            let mut turned = world.clone();
            let sleeps = !turned.turn();
            let is_rung = |who: usize| world.ringers[who] == Ringer::HasRung && world.queued[who];
            if sleeps && (0..ringers).any(is_rung) {
                return (seen.len(), Some(world));
            }
            open.push(turned);
            for who in 0..ringers {
                let mut rung = world.clone();
                if rung.ring(who, mark) {
                    open.push(rung);
                }
            }
        }
        (seen.len(), None)
    }

    #[test]
    fn nobody_who_has_rung_is_slept_over_in_any_interleaving() {
        for ringers in 1..=4 {
            let (states, fault) = slept_over(ringers, State::mark);
            assert_eq!(fault, None);
            assert!(states > 10 * ringers, "{states} states");
        }
    }

    /// The rule that there was: only the first who finds the worker asleep writes. One that is stopped before it does keeps all who
    /// come later waiting.
    #[test]
    fn a_ringer_that_is_stopped_before_it_writes_is_found_to_hold_up_others() {
        let first_alone = |state: &State| state.0.swap(RUNG, Ordering::AcqRel) == ASLEEP;
        assert_eq!(slept_over(1, first_alone).1, None);
        let fault = slept_over(2, first_alone).1.expect("one waits for the other");
        assert!(fault.ringers.contains(&Ringer::Writes) && fault.ringers.contains(&Ringer::HasRung));
        let never = |_: &State| false;
        assert!(slept_over(1, never).1.is_some());
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

//! What holds for connections, and how it changes under them (D10): one set for all workers, swapped as a whole.
//!
//! Whoever changes it puts the new set into its place, rings every worker, and waits until each has taken it. A worker
//! looks at one number at the start of each turn; the lock is taken for the clone of a pointer, and only when the
//! number has changed. So within a turn one set holds, and connections carry no copy of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::{Admission, Limits};
use crate::connection::ListenerSettings;
use crate::link::{Mailbox, WorkerId};

/// How often whoever waits for the workers looks.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Everything that may change while connections live.
pub struct Policy {
    /// What holds for the connections of each listener: as many as the workers were started with, of the same
    /// protocols.
    pub settings: Arc<[ListenerSettings]>,
    /// Of these the ones that change under live connections.
    pub limits: Limits,
    /// How much may come from one address and from one network.
    pub admission: Admission,
}

/// Where the policy is, for workers and for whoever changes it. Clones share it.
#[derive(Clone)]
pub struct PolicySwitch {
    shared: Arc<Shared>,
    mailboxes: Vec<Mailbox>,
}

struct Shared {
    /// Counts the swaps.
    generation: AtomicU64,
    current: Mutex<Arc<Policy>>,
    /// By worker: the generation that it has taken.
    taken: Vec<AtomicU64>,
}

impl PolicySwitch {
    /// With a first policy, which every worker behind `mailboxes` has.
    pub(super) fn new(policy: Policy, mailboxes: Vec<Mailbox>) -> Self {
        let taken = mailboxes.iter().map(|_| AtomicU64::new(0)).collect();
        let shared = Shared { generation: AtomicU64::new(0), current: Mutex::new(Arc::new(policy)), taken };
        Self { shared: Arc::new(shared), mailboxes }
    }

    /// The policy that holds now.
    #[must_use]
    pub fn current(&self) -> Arc<Policy> {
        // A panic within the lock cannot leave half a pointer.
        self.shared.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a new policy in the place of the old one and waits until every worker has taken it, for `patience` at most:
    /// how many have not by then. They will at their next turn.
    #[must_use]
    pub fn swap(&self, policy: Policy, patience: Duration) -> usize {
        let before = self.current();
        assert_eq!(before.settings.len(), policy.settings.len(), "listeners are not added or taken away");
        let same = before.settings.iter().zip(&*policy.settings).all(|(before, after)| {
            before.protocol.label() == after.protocol.label()
                && before.frame_bytes == after.frame_bytes
                && before.read_bytes == after.read_bytes
        });
        assert!(same, "what connections were sized by stays");
        *self.shared.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
        let generation = self.shared.generation.fetch_add(1, Ordering::Release) + 1;
        for mailbox in &self.mailboxes {
            mailbox.ring();
        }
        let deadline = Instant::now() + patience;
        loop {
            let missing = self.shared.taken.iter().filter(|taken| taken.load(Ordering::Acquire) < generation).count();
            if missing == 0 || Instant::now() >= deadline {
                return missing;
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The policy, if it is newer than generation `known`, which becomes its own.
    pub(super) fn newer_than(&self, known: &mut u64) -> Option<Arc<Policy>> {
        let generation = self.shared.generation.load(Ordering::Acquire);
        if generation == *known {
            return None;
        }
        *known = generation;
        Some(self.current())
    }

    /// A worker goes by generation `known` from now on.
    pub(super) fn took(&self, worker: WorkerId, known: u64) {
        self.shared.taken[worker.index()].store(known, Ordering::Release);
    }
}

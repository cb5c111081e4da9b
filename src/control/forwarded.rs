//! Acknowledgements that wait for the fleet's stream (`uplink = "stream"`): a device hears that its message is safe when the store has
//! it and the stream has it too.
//!
//! ```text
//!   store: seq 7 is safe ──▶ waits ──── the sink: the stream has all up to 9 ──▶ the device's worker
//! ```
//!
//! The log of the store is what the sink goes on from, so what waits here needs nothing but its number. Pure, but for the number
//! that the sink's thread sets.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, bounded, never};

use crate::sink::TellDone;
use crate::store::Settled;

/// So many acknowledgements wait at the most (32 bytes each); then no more messages are taken from the workers, and publishers wait.
pub(super) const WAITING_MAX: usize = 65_536;

/// What waits.
pub(super) struct Forwarded {
    /// None: nothing waits for a stream.
    through: Option<Arc<AtomicU64>>,
    /// Rings when the number has changed.
    pub rung: Receiver<()>,
    waiting: VecDeque<Settled>,
}

impl Forwarded {
    /// Nothing waits.
    pub fn off() -> Self {
        Self { through: None, rung: never(), waiting: VecDeque::new() }
    }

    /// Waits for the sink that is given the other half.
    pub fn on() -> (Self, TellDone) {
        let (bell, rung) = bounded(1);
        let through = Arc::new(AtomicU64::new(0));
        let set = Arc::clone(&through);
        let tell: TellDone = Arc::new(move |seq| {
            // Whoever lets the sink go on from an earlier place takes back no acknowledgement.
            set.fetch_max(seq, Ordering::AcqRel);
            // It has rung already, or nobody hears any more.
            let _ = bell.try_send(());
        });
        (Self { through: Some(through), rung, waiting: VecDeque::new() }, tell)
    }

    /// What the store has settled, in its order: it is to be told at once, or `None`: it waits.
    pub fn hold(&mut self, settled: Settled) -> Option<Settled> {
        let Some(through) = &self.through else { return Some(settled) };
        // What the store refuses never comes to the stream; its refusal may pass what waits, as what it is about was never taken.
        if !settled.accepted || (self.waiting.is_empty() && settled.seq <= through.load(Ordering::Acquire)) {
            return Some(settled);
        }
        self.waiting.push_back(settled);
        None
    }

    /// The next that waits no longer.
    pub fn release(&mut self) -> Option<Settled> {
        let through = self.through.as_ref()?.load(Ordering::Acquire);
        self.waiting.pop_front_if(|settled| settled.seq <= through)
    }

    /// Whether no more are to be taken from the workers.
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= WAITING_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::{Receipt, WorkerId};

    fn settled(seq: u64, accepted: bool) -> Settled {
        Settled { worker: WorkerId(0), receipt: Receipt::Publication(seq as u32), accepted, seq }
    }

    #[test]
    fn without_a_stream_nothing_waits() {
        let mut forwarded = Forwarded::off();
        assert_eq!(forwarded.hold(settled(9, true)), Some(settled(9, true)));
        assert_eq!((forwarded.release(), forwarded.is_full()), (None, false));
    }

    #[test]
    fn what_is_safe_here_waits_until_the_stream_has_it_and_all_before_it() {
        let (mut forwarded, tell) = Forwarded::on();
        for seq in [3, 5, 8] {
            assert_eq!(forwarded.hold(settled(seq, true)), None);
        }
        assert_eq!(forwarded.hold(settled(0, false)), Some(settled(0, false)), "a refusal needs no stream");
        tell(4);
        assert!(forwarded.rung.try_recv().is_ok());
        assert_eq!(forwarded.release(), Some(settled(3, true)));
        assert_eq!(forwarded.release(), None);
        // One that the stream has before the store has said so still comes behind what waits.
        tell(9);
        assert_eq!(forwarded.hold(settled(9, true)), None);
        let released: Vec<u64> = std::iter::from_fn(|| forwarded.release()).map(|settled| settled.seq).collect();
        assert_eq!(released, [5, 8, 9]);
        assert_eq!(forwarded.hold(settled(9, true)), Some(settled(9, true)), "nobody waits before it");
        // The sink goes on from an earlier place.
        tell(2);
        assert_eq!(forwarded.hold(settled(7, true)), Some(settled(7, true)));
    }

    #[test]
    fn so_many_wait_and_no_more_are_taken() {
        let (mut forwarded, tell) = Forwarded::on();
        for seq in 1..=WAITING_MAX as u64 {
            assert!(!forwarded.is_full());
            forwarded.hold(settled(seq, true));
        }
        assert!(forwarded.is_full());
        tell(1);
        assert!(forwarded.release().is_some() && !forwarded.is_full());
    }
}

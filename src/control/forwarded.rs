//! Acknowledgements that wait for the fleet's stream (`uplink = "stream"`): a device hears that its message is safe when the store has
//! it and the stream has it too.
//!
//! ```text
//!   store: seq 7 is safe ──▶ waits ──── the sink: the stream has all up to 9 ──▶ the device's worker
//! ```
//!
//! The log of the store is what the sink goes on from, so what waits here needs nothing but its number. What the log dropped before the
//! sink had read it is told as not accepted. Pure, but for what the sink's thread tells.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use crossbeam_channel::{Receiver, bounded, never};

use crate::sink::{Tell, Told};
use crate::store::{Range, Settled};

/// So many acknowledgements wait at the most (32 bytes each); then no more messages are taken from the workers, and publishers wait.
pub(super) const WAITING_MAX: usize = 65_536;
/// So many holes in the log are known at the most. Beyond that the two oldest count as one: what the stream has of what lies between them
/// is not acknowledged, and comes again.
const HOLES_MAX: usize = 4_096;

/// What waits.
pub(super) struct Forwarded {
    /// None: nothing waits for a stream.
    reached: Option<Arc<Mutex<Reached>>>,
    /// Rings when the sink has come further.
    pub rung: Receiver<()>,
    waiting: VecDeque<Settled>,
    /// The number of the latest that the store has settled.
    heard: u64,
}

/// How far the sink has come.
#[derive(Default)]
struct Reached {
    through: u64,
    /// What the store dropped before the sink had read it, first to last; apart from each other.
    missed: BTreeMap<u64, u64>,
}

impl Reached {
    fn handle(&mut self, told: Told) {
        match told {
            // Whoever lets the sink go on from an earlier place takes back no acknowledgement.
            Told::Done(seq) => self.through = self.through.max(seq),
            Told::Missed(Range { first, last }) => self.miss(first.max(self.through + 1), last),
        }
    }

    fn miss(&mut self, mut first: u64, mut last: u64) {
        if last < first {
            return;
        }
        while let Some((&start, &end)) = self.missed.range(..=last + 1).next_back()
            && end + 1 >= first
        {
            self.missed.remove(&start);
            (first, last) = (first.min(start), last.max(end));
        }
        self.missed.insert(first, last);
        if self.missed.len() > HOLES_MAX
            && let (Some((first, _)), Some((_, last))) = (self.missed.pop_first(), self.missed.pop_first())
        {
            self.missed.insert(first, last);
        }
    }

    /// What became of one that waits no longer. What was dropped unsent is nowhere.
    fn settle(&self, settled: Settled) -> Settled {
        let is_missed = self.missed.range(..=settled.seq).next_back().is_some_and(|(_, &last)| last >= settled.seq);
        Settled { accepted: settled.accepted && !is_missed, ..settled }
    }

    /// Nobody waits for anything before this one any more.
    fn forget(&mut self, before: u64) {
        while let Some(hole) = self.missed.first_entry()
            && *hole.get() < before
        {
            hole.remove();
        }
    }
}

fn lock(reached: &Mutex<Reached>) -> MutexGuard<'_, Reached> {
    reached.lock().expect("no holder panics")
}

impl Forwarded {
    /// Nothing waits.
    pub fn off() -> Self {
        Self { reached: None, rung: never(), waiting: VecDeque::new(), heard: 0 }
    }

    /// Waits for the sink that is given the other half.
    pub fn on() -> (Self, Tell) {
        let (bell, rung) = bounded(1);
        let reached = Arc::new(Mutex::default());
        let set = Arc::clone(&reached);
        let tell: Tell = Arc::new(move |told| {
            lock(&set).handle(told);
            // It has rung already, or nobody hears any more.
            let _ = bell.try_send(());
        });
        (Self { reached: Some(reached), rung, waiting: VecDeque::new(), heard: 0 }, tell)
    }

    /// What the store has settled, in its order: it is to be told at once, or `None`: it waits.
    pub fn hold(&mut self, settled: Settled) -> Option<Settled> {
        let Some(reached) = &self.reached else { return Some(settled) };
        // What the store refuses never comes to the stream; its refusal may pass what waits, as what it is about was never taken.
        if !settled.accepted {
            return Some(settled);
        }
        self.heard = settled.seq;
        let reached = lock(reached);
        if self.waiting.is_empty() && settled.seq <= reached.through {
            return Some(reached.settle(settled));
        }
        self.waiting.push_back(settled);
        None
    }

    /// The next that waits no longer; not accepted: the store dropped it before the stream had it.
    pub fn release(&mut self) -> Option<Settled> {
        let mut reached = lock(self.reached.as_ref()?);
        if let Some(settled) = self.waiting.pop_front_if(|settled| settled.seq <= reached.through) {
            return Some(reached.settle(settled));
        }
        reached.forget(self.waiting.front().map_or(self.heard + 1, |first| first.seq));
        None
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
        tell(Told::Done(4));
        assert!(forwarded.rung.try_recv().is_ok());
        assert_eq!(forwarded.release(), Some(settled(3, true)));
        assert_eq!(forwarded.release(), None);
        // One that the stream has before the store has said so still comes behind what waits.
        tell(Told::Done(9));
        assert_eq!(forwarded.hold(settled(9, true)), None);
        let released: Vec<u64> = std::iter::from_fn(|| forwarded.release()).map(|settled| settled.seq).collect();
        assert_eq!(released, [5, 8, 9]);
        assert_eq!(forwarded.hold(settled(9, true)), Some(settled(9, true)), "nobody waits before it");
        // The sink goes on from an earlier place.
        tell(Told::Done(2));
        assert_eq!(forwarded.hold(settled(7, true)), Some(settled(7, true)));
    }

    #[test]
    fn what_the_log_dropped_unsent_is_not_acknowledged() {
        let (mut forwarded, tell) = Forwarded::on();
        for seq in 1..=10 {
            assert_eq!(forwarded.hold(settled(seq, true)), None);
        }
        let missed = |first, last| tell(Told::Missed(Range { first, last }));
        tell(Told::Done(2));
        missed(1, 3);
        missed(6, 7);
        missed(5, 6);
        assert_eq!(forwarded.release(), Some(settled(1, true)), "the stream had it before");
        assert_eq!(forwarded.release(), Some(settled(2, true)));
        assert_eq!(forwarded.release(), None, "what lies before a hole is not sent yet");
        tell(Told::Done(8));
        let released: Vec<_> = std::iter::from_fn(|| forwarded.release()).collect();
        let accepted = [(3, false), (4, true), (5, false), (6, false), (7, false), (8, true)];
        assert_eq!(released, accepted.map(|(seq, accepted)| settled(seq, accepted)));
        // The sink has passed a hole before the store says what was in it.
        missed(11, 12);
        tell(Told::Done(13));
        assert_eq!(std::iter::from_fn(|| forwarded.release()).count(), 2);
        for (seq, accepted) in [(11, false), (13, true)] {
            assert_eq!(forwarded.hold(settled(seq, true)), Some(settled(seq, accepted)));
        }
        assert_eq!(forwarded.release(), None);
        assert!(lock(forwarded.reached.as_ref().unwrap()).missed.is_empty(), "nothing is kept for nobody");
    }

    #[test]
    fn holes_are_bounded_and_none_of_them_is_forgotten() {
        let (mut forwarded, tell) = Forwarded::on();
        let last = HOLES_MAX as u64 * 4;
        for seq in 1..=last {
            assert_eq!(forwarded.hold(settled(seq, true)), None);
            if seq % 2 == 0 {
                tell(Told::Missed(Range { first: seq, last: seq }));
            }
        }
        assert_eq!(lock(forwarded.reached.as_ref().unwrap()).missed.len(), HOLES_MAX);
        tell(Told::Done(last));
        let released: Vec<_> = std::iter::from_fn(|| forwarded.release()).collect();
        assert_eq!(released.len() as u64, last);
        assert!(released.iter().all(|settled| !settled.accepted || settled.seq % 2 == 1));
        assert!(released[last as usize / 2 + 2..].iter().all(|settled| settled.accepted == (settled.seq % 2 == 1)));
    }

    #[test]
    fn so_many_wait_and_no_more_are_taken() {
        let (mut forwarded, tell) = Forwarded::on();
        for seq in 1..=WAITING_MAX as u64 {
            assert!(!forwarded.is_full());
            forwarded.hold(settled(seq, true));
        }
        assert!(forwarded.is_full());
        tell(Told::Done(1));
        assert!(forwarded.release().is_some() && !forwarded.is_full());
    }
}

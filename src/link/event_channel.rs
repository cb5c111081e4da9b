//! The way from the workers to the control plane: events in a lane that may be full, answers in one that never is.
//!
//! Events (presence, messages) wait for the store and stop their publishers when they must; answers to what the control
//! plane has asked, and questions about tokens, go on meanwhile. Answers need no bound of their own: there are no more of
//! them than requests under way, connections that prove themselves, and broadcasts.
//!
//! A worker that finds no room says that it waits, and for what, and looks once more; the control plane, when it has made room, wakes
//! those for whom there is some, in turn. So nobody looks again and again, and none is forgotten: whichever of both comes later sees the
//! other.
//!
//! | a worker waits | and is woken when |
//! | --- | --- |
//! | for a place in the lane | there is one for it: at most as many are woken as there are places, or all, if nothing is left there |
//! | because its part of the pool for what goes up is full | it is not |
//! | because that is crowded, for those who can wait | it is not |
//!
//! The control plane leaves what nobody waits for in its lane for a while, so that more comes together. Whoever puts something there
//! that is waited for, or waits for room himself, rings behind it ([`EventSender::hurry`]).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::{Batch, WorkerEvent, WorkerId};
use crate::pool::{Class, Pool};

/// As many as there are bits.
const WORKERS: u16 = 64;

/// The workers' end; each has a copy.
#[derive(Clone, Debug)]
pub struct EventSender {
    /// Takes batches of events as long as there is room.
    pub events: Sender<Batch>,
    /// Takes batches of answers alone, always.
    pub answers: Sender<Batch>,
    hurry: Sender<()>,
    waiting: Arc<Waiting>,
}

/// Workers that wait for room, a bit each.
#[derive(Debug)]
struct Waiting {
    /// For a place in the lane,
    lane: AtomicU64,
    /// because their parts of the pool are full,
    full: AtomicU64,
    /// or crowded.
    crowded: AtomicU64,
    /// The pool of each, once it has begun.
    pools: Box<[OnceLock<Arc<Pool>>]>,
    /// Who comes first the next time that there are not places for all.
    next: AtomicU32,
}

/// The control plane's end.
#[derive(Clone, Debug)]
pub struct EventReceiver {
    /// What happened, in order for each worker.
    pub events: Receiver<Batch>,
    /// Answers, and questions about tokens.
    pub answers: Receiver<Batch>,
    /// Says that somebody waits for something in the lane of events, or for room there.
    pub hurry: Receiver<()>,
    waiting: Arc<Waiting>,
}

impl EventSender {
    /// Somebody waits for what was put into the lane of events. To be said behind it.
    pub fn hurry(&self) {
        // Said by somebody else, it is heard once for both.
        let _ = self.hurry.try_send(());
    }

    /// This worker waits for a place in the lane: it is woken when there may be one. To be said before it looks for the last time.
    pub fn wait(&self, worker: WorkerId) {
        debug_assert!(worker.0 < WORKERS);
        self.waiting.lane.fetch_or(1 << worker.0, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.hurry();
    }

    /// That of a worker, which has what it sends up counted in this pool.
    #[must_use]
    pub fn of(self, worker: WorkerId, pool: &Arc<Pool>) -> Self {
        self.waiting.pools[worker.index()].get_or_init(|| Arc::clone(pool));
        self
    }

    /// This worker waits until less of what it has sent up is on its way: until that is not crowded any more, or not full if it is now. To
    /// be said before it looks for the last time.
    pub fn wait_above(&self, worker: WorkerId) {
        let Waiting { full, crowded, pools, .. } = &*self.waiting;
        let is_full = pools[worker.index()].get().is_some_and(|pool| pool.is_full(Class::Up));
        let bits = if is_full { full } else { crowded };
        bits.fetch_or(1 << worker.0, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.hurry();
    }
}

impl EventReceiver {
    /// There may be room: those that wait and for whom there is some, who are to be woken.
    pub fn take_waiting(&self) -> impl Iterator<Item = WorkerId> + use<> {
        // Behind whatever has made room.
        fence(Ordering::SeqCst);
        let Waiting { lane, full, crowded, .. } = &*self.waiting;
        let mut woken = 0;
        // Nearly always nobody waits.
        if lane.load(Ordering::SeqCst) != 0 {
            woken |= self.take_for_lane();
        }
        for (bits, is_short) in [(full, Pool::is_full as fn(&Pool, Class) -> bool), (crowded, Pool::is_crowded)] {
            if bits.load(Ordering::SeqCst) != 0 {
                woken |= self.take_for_pools(bits, is_short);
            }
        }
        (0..WORKERS).filter(move |worker| woken & (1 << worker) != 0).map(WorkerId)
    }

    fn take_for_lane(&self) -> u64 {
        let Waiting { lane, next, .. } = &*self.waiting;
        // Whatever is left there brings the control plane here again; nothing does not.
        let places = match self.events.len() {
            0 => usize::from(WORKERS),
            left => self.events.capacity().unwrap_or(usize::MAX).saturating_sub(left),
        };
        let (waiting, first) = (lane.load(Ordering::SeqCst), next.load(Ordering::Relaxed));
        let in_turn = (0..u32::from(WORKERS)).map(|number| (first + number) % u32::from(WORKERS));
        let taken: Vec<u32> = in_turn.filter(|worker| waiting & (1 << worker) != 0).take(places).collect();
        next.store(taken.last().map_or(first, |last| last + 1), Ordering::Relaxed);
        let woken = taken.iter().fold(0, |woken, worker| woken | 1 << worker);
        lane.fetch_and(!woken, Ordering::SeqCst);
        woken
    }

    fn take_for_pools(&self, bits: &AtomicU64, is_short: fn(&Pool, Class) -> bool) -> u64 {
        let (waiting, pools) = (bits.load(Ordering::SeqCst), &self.waiting.pools);
        let has_room = |worker: &usize| !pools[*worker].get().is_some_and(|pool| is_short(pool, Class::Up));
        let woken = (0..pools.len()).filter(|worker| waiting & (1 << worker) != 0).filter(has_room);
        let woken = woken.fold(0, |woken, worker| woken | 1 << worker);
        bits.fetch_and(!woken, Ordering::SeqCst);
        woken
    }
}

/// A way with room for so many batches of events.
#[must_use]
pub fn event_channel(batches: usize) -> (EventSender, EventReceiver) {
    let (events, taken_events) = bounded(batches);
    let (answers, taken_answers) = unbounded();
    let (hurry, hurried) = bounded(1);
    let waiting = Arc::new(Waiting {
        lane: AtomicU64::new(0),
        full: AtomicU64::new(0),
        crowded: AtomicU64::new(0),
        pools: (0..WORKERS).map(|_| OnceLock::new()).collect(),
        next: AtomicU32::new(0),
    });
    (
        EventSender { events, answers, hurry, waiting: Arc::clone(&waiting) },
        EventReceiver { events: taken_events, answers: taken_answers, hurry: hurried, waiting },
    )
}

impl WorkerEvent {
    /// Whether somebody waits for this, a device among them.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        match self {
            WorkerEvent::Message(message) => message.receipt.is_some(),
            WorkerEvent::Fence { .. } => true,
            other => other.is_answer(),
        }
    }

    /// Whether somebody in the control plane, or a connection that cannot go on without it, waits for this.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        match self {
            WorkerEvent::Connected(_)
            | WorkerEvent::Disconnected(..)
            | WorkerEvent::NotAdmitted(_)
            | WorkerEvent::TakeoverLoop(_)
            | WorkerEvent::KeepOut { .. }
            | WorkerEvent::WillDue(_)
            | WorkerEvent::SessionGone(_)
            | WorkerEvent::Fence { .. }
            | WorkerEvent::Message(_) => false,
            WorkerEvent::Authenticate { .. }
            | WorkerEvent::Described { .. }
            | WorkerEvent::Listed { .. }
            | WorkerEvent::Sent { .. }
            | WorkerEvent::Interest { .. }
            | WorkerEvent::Group { .. }
            | WorkerEvent::SessionWanted(_)
            | WorkerEvent::SessionChanged(_)
            | WorkerEvent::Broadcast { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::Charge;

    fn woken(receiver: &EventReceiver) -> Vec<u16> {
        receiver.take_waiting().map(|worker| worker.0).collect()
    }

    #[test]
    fn as_many_are_woken_as_there_are_places_and_each_in_turn() {
        let (sender, receiver) = event_channel(3);
        let send = || sender.events.try_send(Batch::new(WorkerId(0), Vec::new())).unwrap();
        (0..3).for_each(|_| send());
        (0..4).for_each(|worker| sender.wait(WorkerId(worker)));
        assert_eq!(woken(&receiver), [0; 0], "there is no place");
        receiver.events.recv().unwrap();
        assert_eq!(woken(&receiver), [0]);
        send();
        sender.wait(WorkerId(0));
        receiver.events.recv().unwrap();
        assert_eq!((woken(&receiver), woken(&receiver)), (vec![1], vec![2]), "nobody has taken it");
        receiver.events.recv().unwrap();
        assert_eq!(woken(&receiver), [0, 3]);
        // The control plane does not come by again when it has taken all.
        (5..9).for_each(|worker| sender.wait(WorkerId(worker)));
        receiver.events.recv().unwrap();
        assert_eq!((woken(&receiver), woken(&receiver)), (vec![5, 6, 7, 8], vec![]));
    }

    #[test]
    fn whose_part_of_the_pool_is_still_taken_sleeps_on() {
        let (sender, receiver) = event_channel(3);
        let pools = [0, 1].map(|_| Arc::new(Pool::new(1 << 20)));
        let share = pools[0].share(Class::Up) as usize;
        let full = Charge::of(&pools[0], Class::Up, share);
        let crowd = Charge::of(&pools[1], Class::Up, share / 2);
        let senders: Vec<_> =
            (0..2).map(|worker| sender.clone().of(WorkerId(worker), &pools[usize::from(worker)])).collect();
        let wait = || (0..2).for_each(|worker| senders[usize::from(worker)].wait_above(WorkerId(worker)));
        wait();
        assert_eq!(woken(&receiver), [0; 0]);
        let mut full = full;
        full.set(share - 1);
        assert_eq!(woken(&receiver), [0], "it is crowded, and not full any more");
        wait();
        assert_eq!(woken(&receiver), [0; 0]);
        drop(crowd);
        assert_eq!(woken(&receiver), [1]);
        drop(full);
        assert_eq!((woken(&receiver), woken(&receiver)), (vec![0], vec![]));
    }
}

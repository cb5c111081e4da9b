//! What one would use for timers instead: ordered maps, a heap, and tokio-util's queue.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};
use tokio::time::Instant;
use tokio_util::time::DelayQueue;
use tokio_util::time::delay_queue::Key;

use super::Timers;

const TICK: Duration = Duration::from_millis(100);

/// `(deadline, index)` in order, and each index's deadline beside it.
pub(super) struct SetOfPairs {
    order: BTreeSet<(u32, u32)>,
    deadlines: Vec<u32>,
}

impl Timers for SetOfPairs {
    const NAME: &'static str = "BTreeSet of pairs";

    fn new(size: u32) -> Self {
        Self { order: BTreeSet::new(), deadlines: vec![0; size as usize] }
    }

    fn insert(&mut self, index: u32, deadline: u32) {
        self.deadlines[index as usize] = deadline;
        self.order.insert((deadline, index));
    }

    fn rearm(&mut self, index: u32, deadline: u32) {
        self.order.remove(&(self.deadlines[index as usize], index));
        self.insert(index, deadline);
    }

    fn expire(&mut self, now: u32, due: &mut Vec<u32>) {
        while let Some(&(deadline, index)) = self.order.first() {
            if deadline > now {
                return;
            }
            self.order.pop_first();
            due.push(index);
        }
    }
}

/// A list of indices for each tick. A moved entry stays where it was, and is found to be stale when its tick comes.
pub(super) struct MapOfLists {
    ticks: BTreeMap<u32, Vec<u32>>,
    deadlines: Vec<u32>,
}

const UNARMED: u32 = u32::MAX;

impl Timers for MapOfLists {
    const NAME: &'static str = "BTreeMap of lists, lazy deletion";

    fn new(size: u32) -> Self {
        Self { ticks: BTreeMap::new(), deadlines: vec![UNARMED; size as usize] }
    }

    fn insert(&mut self, index: u32, deadline: u32) {
        self.deadlines[index as usize] = deadline;
        self.ticks.entry(deadline).or_default().push(index);
    }

    fn rearm(&mut self, index: u32, deadline: u32) {
        if self.deadlines[index as usize] != deadline {
            self.insert(index, deadline);
        }
    }

    fn expire(&mut self, now: u32, due: &mut Vec<u32>) {
        while let Some(first) = self.ticks.first_entry() {
            if *first.key() > now {
                return;
            }
            let (tick, list) = first.remove_entry();
            for index in list {
                if self.deadlines[index as usize] == tick {
                    self.deadlines[index as usize] = UNARMED;
                    due.push(index);
                }
            }
        }
    }
}

/// A heap with stale entries left in it, as above.
pub(super) struct HeapLazy {
    heap: BinaryHeap<Reverse<(u32, u32)>>,
    deadlines: Vec<u32>,
}

impl Timers for HeapLazy {
    const NAME: &'static str = "BinaryHeap, lazy deletion";

    fn new(size: u32) -> Self {
        Self { heap: BinaryHeap::new(), deadlines: vec![UNARMED; size as usize] }
    }

    fn insert(&mut self, index: u32, deadline: u32) {
        self.deadlines[index as usize] = deadline;
        self.heap.push(Reverse((deadline, index)));
    }

    fn rearm(&mut self, index: u32, deadline: u32) {
        if self.deadlines[index as usize] != deadline {
            self.insert(index, deadline);
        }
    }

    fn expire(&mut self, now: u32, due: &mut Vec<u32>) {
        while let Some(&Reverse((deadline, index))) = self.heap.peek() {
            if deadline > now {
                return;
            }
            self.heap.pop();
            if self.deadlines[index as usize] == deadline {
                self.deadlines[index as usize] = UNARMED;
                due.push(index);
            }
        }
    }
}

/// tokio-util's own wheel, under a clock that goes by hand.
pub(super) struct Delays {
    queue: DelayQueue<u32>,
    keys: Vec<Option<Key>>,
    start: Instant,
    runtime: Runtime,
}

impl Timers for Delays {
    const NAME: &'static str = "tokio-util DelayQueue";

    fn new(size: u32) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime");
        let inside = runtime.enter();
        let (queue, start) = (DelayQueue::new(), Instant::now());
        drop(inside);
        Self { queue, keys: vec![None; size as usize], start, runtime }
    }

    fn insert(&mut self, index: u32, deadline: u32) {
        self.keys[index as usize] = Some(self.queue.insert_at(index, self.start + TICK * deadline));
    }

    fn rearm(&mut self, index: u32, deadline: u32) {
        let key = self.keys[index as usize].as_ref().expect("the index is armed");
        self.queue.reset_at(key, self.start + TICK * deadline);
    }

    fn runtime(&self) -> Option<Handle> {
        Some(self.runtime.handle().clone())
    }

    fn expire(&mut self, _: u32, due: &mut Vec<u32>) {
        let Self { queue, runtime, .. } = self;
        let expire = async {
            tokio::time::advance(TICK).await;
            let mut context = Context::from_waker(Waker::noop());
            while let Poll::Ready(Some(expired)) = queue.poll_expired(&mut context) {
                due.push(expired.into_inner());
            }
        };
        // A task is made to yield after 128 of them; here all that is due is wanted.
        runtime.block_on(tokio::task::unconstrained(expire));
    }
}

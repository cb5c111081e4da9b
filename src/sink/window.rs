//! What is under way to a receiver that acknowledges one by one: read ahead, sent, acknowledged in any order, and how far
//! all of it is done with. Pure: no clock, no socket.
//!
//! ```text
//!                done  │ in flight, in order of its lane │ waits for its lane │ not read yet
//!   ───────────────────┼─────────────────────────────────┼────────────────────┼─────────────▶ seq
//!                   cursor
//! ```
//!
//! Events of one device always go through one lane, and a lane sends them in their order. When a lane breaks, all of
//! it that is not acknowledged is sent again, from its first.

use std::collections::VecDeque;

/// At most so many events are held.
pub const EVENTS_MAX: usize = 16_384;

#[derive(Debug)]
struct Slot<T> {
    seq: u64,
    bytes: usize,
    /// None: done with.
    item: Option<T>,
    tries: u32,
}

#[derive(Debug, Default)]
struct Lane {
    /// What is not acknowledged, in order.
    queue: VecDeque<u64>,
    /// So many of the first of them are in flight.
    sent: usize,
}

/// The window.
#[derive(Debug)]
pub struct Window<T> {
    slots: VecDeque<Slot<T>>,
    lanes: Vec<Lane>,
    bytes: usize,
    bytes_max: usize,
}

impl<T> Window<T> {
    /// An empty one, of at most `bytes_max` bytes of events.
    #[must_use]
    pub fn new(lanes: usize, bytes_max: usize) -> Self {
        let lanes = (0..lanes).map(|_| Lane::default()).collect();
        Self { slots: VecDeque::new(), lanes, bytes: 0, bytes_max }
    }

    /// Whether more may be read.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.slots.len() < EVENTS_MAX && self.bytes < self.bytes_max
    }

    /// Takes an event in, behind all others.
    pub fn push(&mut self, seq: u64, bytes: usize, lane: usize, item: T) {
        debug_assert!(self.slots.back().is_none_or(|last| last.seq < seq));
        self.bytes += bytes;
        self.slots.push_back(Slot { seq, bytes, item: Some(item), tries: 0 });
        self.lanes[lane].queue.push_back(seq);
    }

    /// An event that concerns nobody: done with as soon as those before it are.
    pub fn skip(&mut self, seq: u64) {
        debug_assert!(self.slots.back().is_none_or(|last| last.seq < seq));
        match self.slots.back_mut() {
            // What is done with needs one place, however much it is.
            Some(last) if last.item.is_none() => last.seq = seq,
            _ => self.slots.push_back(Slot { seq, bytes: 0, item: None, tries: 0 }),
        }
    }

    /// The next event that `lane` is to send, while fewer than `limit` of its are in flight; it is in flight then.
    pub fn next(&mut self, lane: usize, limit: usize) -> Option<(u64, &T)> {
        let Lane { queue, sent } = &mut self.lanes[lane];
        if *sent >= limit {
            return None;
        }
        let seq = *queue.get(*sent)?;
        *sent += 1;
        let slot = self.slot(seq).expect("what a lane has is in the window");
        Some((seq, self.slots[slot].item.as_ref().expect("it is not done with")))
    }

    /// The other side has the event, or it is given up. `false`: it was not in flight on that lane.
    pub fn acknowledge(&mut self, lane: usize, seq: u64) -> bool {
        let Lane { queue, sent } = &mut self.lanes[lane];
        let Some(place) = queue.iter().take(*sent).position(|sent| *sent == seq) else { return false };
        queue.remove(place);
        *sent -= 1;
        let slot = self.slot(seq).expect("what a lane has is in the window");
        self.slots[slot].item = None;
        true
    }

    /// The lane broke: what it had in flight is to be sent again. Gives back its first event, if it had one in flight, and
    /// how often that was so.
    pub fn reset(&mut self, lane: usize) -> Option<(u64, u32)> {
        let was_sent = std::mem::take(&mut self.lanes[lane].sent);
        let first = *self.lanes[lane].queue.front()?;
        if was_sent == 0 {
            return None;
        }
        let slot = self.slot(first).expect("what a lane has is in the window");
        self.slots[slot].tries += 1;
        Some((first, self.slots[slot].tries))
    }

    /// The event with this number, unless it is done with.
    #[must_use]
    pub fn get(&self, seq: u64) -> Option<&T> {
        self.slots[self.slot(seq)?].item.as_ref()
    }

    /// Forgets all that is done with before the first that is not, and says how far that is.
    pub fn take_done(&mut self) -> Option<u64> {
        let mut done = None;
        while let Some(slot) = self.slots.pop_front_if(|slot| slot.item.is_none()) {
            self.bytes -= slot.bytes;
            done = Some(slot.seq);
        }
        done
    }

    fn slot(&self, seq: u64) -> Option<usize> {
        self.slots.binary_search_by_key(&seq, |slot| slot.seq).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn window(lanes: usize) -> Window<u64> {
        Window::new(lanes, 1_000)
    }

    #[test]
    fn the_cursor_waits_for_the_oldest() {
        let mut window = window(1);
        for seq in 1..=3 {
            window.push(seq, 1, 0, seq);
            assert_eq!(window.next(0, 10), Some((seq, &seq)));
        }
        assert!(window.acknowledge(0, 3) && window.acknowledge(0, 2));
        assert_eq!(window.take_done(), None);
        assert!(window.acknowledge(0, 1));
        assert_eq!(window.take_done(), Some(3));
        assert!(window.slots.is_empty() && !window.acknowledge(0, 1), "once");
    }

    #[test]
    fn a_broken_lane_sends_again_from_its_first_and_others_do_not() {
        let mut window = window(2);
        for seq in 1..=4 {
            window.push(seq, 1, (seq % 2) as usize, seq);
            window.next((seq % 2) as usize, 10);
        }
        window.acknowledge(1, 3);
        assert_eq!(window.reset(1), Some((1, 1)));
        assert_eq!(window.next(1, 10), Some((1, &1)));
        assert_eq!(window.next(1, 10), None, "3 was acknowledged");
        assert_eq!(window.next(0, 10), None, "the other lane goes on");
        assert_eq!(window.reset(1), Some((1, 2)));
    }

    #[test]
    fn what_concerns_nobody_moves_the_cursor_and_takes_one_place() {
        let mut window = window(1);
        window.push(1, 1, 0, 1);
        (2..100).for_each(|seq| window.skip(seq));
        assert_eq!(window.slots.len(), 2);
        assert_eq!(window.take_done(), None);
        window.next(0, 1);
        window.acknowledge(0, 1);
        assert_eq!(window.take_done(), Some(99));
    }

    #[test]
    fn bounds_hold() {
        let mut window = window(1);
        window.push(1, 999, 0, 1);
        window.push(2, 1, 0, 2);
        assert!(!window.has_room());
        assert!(window.next(0, 1).is_some() && window.next(0, 1).is_none());
        window.acknowledge(0, 1);
        window.take_done();
        assert!(window.has_room());
    }

    /// Random acknowledgements, breaks and restarts of the reader against a receiver that remembers everything.
    #[test]
    fn whatever_happens_nothing_is_lost_and_each_device_is_in_order() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let lanes = random.usize(1..4);
            let (mut window, mut cursor, mut read) = (window(lanes), 0_u64, 0_u64);
            // By lane: what the receiver was sent and has not acknowledged. By device: what it saw.
            let mut flying: Vec<Vec<u64>> = vec![Vec::new(); lanes];
            let mut seen: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
            let device = |seq: u64| seq % 5;
            let is_for_nobody = |seq: u64| seq.is_multiple_of(7);
            for _ in 0..400 {
                let lane = random.usize(..lanes);
                match random.u8(..8) {
                    0 | 1 if window.has_room() && read < 200 => {
                        read += 1;
                        if is_for_nobody(read) {
                            window.skip(read);
                        } else {
                            window.push(read, 10, device(read) as usize % lanes, read);
                        }
                    }
                    2 | 3 => {
                        if let Some((seq, _)) = window.next(lane, 8) {
                            seen.entry(device(seq)).or_default().push(seq);
                            flying[lane].push(seq);
                        }
                    }
                    4 | 5 if !flying[lane].is_empty() => {
                        let chosen = random.usize(..flying[lane].len());
                        let seq = flying[lane].swap_remove(chosen);
                        assert!(window.acknowledge(lane, seq));
                    }
                    6 if random.u8(..10) == 0 => {
                        window.reset(lane);
                        flying[lane].clear();
                    }
                    7 if random.u8(..40) == 0 => {
                        // kill -9: only the cursor is left.
                        (window, read) = (Window::new(lanes, 1_000), cursor);
                        flying.iter_mut().for_each(Vec::clear);
                    }
                    _ => {}
                }
                if let Some(done) = window.take_done() {
                    assert!(done > cursor);
                    let missing = (cursor + 1..=done).find(|&seq| {
                        !is_for_nobody(seq) && !seen.get(&device(seq)).is_some_and(|all| all.contains(&seq))
                    });
                    assert_eq!(missing, None, "seed {seed}: the cursor is ahead of what was seen");
                    cursor = done;
                }
            }
            for all in seen.values() {
                // Nothing new is seen before what is older.
                let mut first: Vec<u64> = Vec::new();
                for &seq in all {
                    assert!(
                        first.contains(&seq) || first.last().is_none_or(|&last| last < seq),
                        "seed {seed}: {all:?}"
                    );
                    if !first.contains(&seq) {
                        first.push(seq);
                    }
                }
            }
        }
    }
}

//! The embedded backbone: a ring of the latest events, bounded in number and in bytes, in memory only.
//!
//! ```text
//!            segment            segment            segment, written to
//! dropped …  │ first │ … │ … │  │ … │ … │ … │ … │  │ … │ last │  next position
//!            └────────── held, at most `events` and `bytes` ──┘
//! ```
//!
//! Events lie as records (`record.rs`) in segments of some 16 KiB, each with its length before it. Segments are made as
//! they are needed, and dropped from the front, whole, when newer events need the room: at most a sixteenth of what may
//! be held goes at a time. Nobody who reads is ever waited for.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use super::Refused;
use super::record::{Event, get, put, take};
use crate::config;

/// Bytes of a segment, unless one event alone is larger.
const SEGMENT_BYTES: usize = 16 << 10;
/// Of what may be held, a segment holds no more than such a part.
const SEGMENTS_MIN: usize = 16;
/// Records that one read looks at: the lock is held no longer than that takes.
const LOOKED_AT_MAX: usize = 4_096;
/// Bytes that one read copies, not counting its last record.
const COPIED_MAX: usize = 128 << 10;

/// The latest events.
#[derive(Debug)]
pub struct Backbone {
    ring: Mutex<Ring>,
    head: watch::Sender<Head>,
    events_max: usize,
    bytes_max: usize,
    accepted: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
}

/// How far the backbone has come, as its readers are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The position that the next event gets; events before it can be read.
    pub next: u64,
    /// Nothing will come any more.
    pub is_closed: bool,
}

#[derive(Debug, Default)]
struct Ring {
    segments: VecDeque<Segment>,
    /// What all segments take.
    bytes: usize,
    /// What all segments hold.
    events: usize,
    /// The position that the next event gets.
    next: u64,
    /// Where records are made before they are put into a segment.
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Segment {
    /// The position of its first event.
    first: u64,
    events: usize,
    records: Vec<u8>,
}

/// One event as the ring holds it.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its position.
    pub position: u64,
    record: Box<[u8]>,
}

impl Held {
    /// The event.
    #[must_use]
    pub fn event(&self) -> Event<'_> {
        Event::decode(&self.record)
    }
}

/// What one read found.
#[derive(Debug)]
pub struct Slice {
    /// Where it began: later than asked for when what was asked for has been dropped.
    pub first: u64,
    /// Where the next read begins.
    pub next: u64,
    /// The events between the two that were wanted, oldest first.
    pub events: Vec<Held>,
}

impl Backbone {
    /// An empty one with the bounds of `bounds`.
    #[must_use]
    pub fn new(bounds: config::Backbone) -> Self {
        Self {
            ring: Mutex::default(),
            head: watch::Sender::default(),
            events_max: bounds.events,
            bytes_max: bounds.bytes,
            accepted: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// Takes an event, and drops the oldest ones where room is needed. Gives back the event's position, which grows
    /// by one with each event from 0. Readers hear of it with the next [`Backbone::announce`].
    ///
    /// # Errors
    /// [`Refused`]: the event is not held, and must not be acknowledged.
    pub fn accept(&self, event: &Event<'_>) -> Result<u64, Refused> {
        let mut ring = self.ring.lock().expect("no holder panics");
        let mut record = std::mem::take(&mut ring.scratch);
        record.clear();
        event.encode(&mut record);
        let accepted = self.place(&mut ring, &record);
        if record.capacity() <= SEGMENT_BYTES {
            ring.scratch = record;
        }
        let count = if accepted.is_ok() { &self.accepted } else { &self.refused };
        count.fetch_add(1, Ordering::Relaxed);
        accepted
    }

    fn place(&self, ring: &mut Ring, record: &[u8]) -> Result<u64, Refused> {
        // Its length goes before it, in at most ten bytes.
        let bytes = record.len() + 10;
        if bytes > self.bytes_max {
            return Err(Refused::TooLarge { bytes, bytes_max: self.bytes_max });
        }
        if !ring.segments.back().is_some_and(|segment| self.has_room(segment, bytes)) {
            let capacity = SEGMENT_BYTES.min(self.bytes_max / SEGMENTS_MIN).max(bytes);
            ring.finish_segment();
            self.make_room(ring, capacity);
            let segment = Segment { first: ring.next, events: 0, records: Vec::with_capacity(capacity) };
            ring.bytes += segment.records.capacity();
            ring.segments.push_back(segment);
        } else if ring.events >= self.events_max {
            self.make_room(ring, 0);
        }
        let segment = ring.segments.back_mut().expect("one was just made, or has room");
        put(&mut segment.records, record.len() as u64);
        segment.records.extend_from_slice(record);
        segment.events += 1;
        ring.events += 1;
        ring.next += 1;
        Ok(ring.next - 1)
    }

    fn has_room(&self, segment: &Segment, bytes: usize) -> bool {
        let events_max = (self.events_max / SEGMENTS_MIN).max(1);
        segment.events < events_max && segment.records.capacity() - segment.records.len() >= bytes
    }

    /// Drops the oldest segments until one more event, and `bytes` more, are within the bounds.
    fn make_room(&self, ring: &mut Ring, bytes: usize) {
        while ring.events >= self.events_max || ring.bytes + bytes > self.bytes_max {
            let oldest = ring.segments.pop_front().expect("an empty ring has room for every event that fits");
            ring.bytes -= oldest.records.capacity();
            ring.events -= oldest.events;
            self.dropped.fetch_add(oldest.events as u64, Ordering::Relaxed);
        }
    }

    /// Tells readers what there is by now. Once for each batch of events is enough.
    pub fn announce(&self) {
        let next = self.ring.lock().expect("no holder panics").next;
        self.head.send_if_modified(|head| std::mem::replace(&mut head.next, next) != next);
    }

    /// Tells readers that nothing will come any more.
    pub fn close(&self) {
        self.announce();
        self.head.send_modify(|head| head.is_closed = true);
    }

    /// Hears of what there is.
    #[must_use]
    pub fn head(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    /// The position of the oldest event held, and the one that the next event gets.
    #[must_use]
    pub fn held(&self) -> (u64, u64) {
        let ring = self.ring.lock().expect("no holder panics");
        (ring.first(), ring.next)
    }

    /// The events from `position` on that are `wanted`, oldest first: so many as one read may copy and look at. It
    /// begins at the next position to be given when there is nothing yet.
    #[must_use]
    pub fn read(&self, position: u64, wanted: impl Fn(&Event<'_>) -> bool) -> Slice {
        let ring = self.ring.lock().expect("no holder panics");
        let first = position.clamp(ring.first(), ring.next);
        let mut slice = Slice { first, next: first, events: Vec::new() };
        let (mut looked_at, mut copied) = (0, 0);
        let from = ring.segments.partition_point(|segment| segment.first + (segment.events as u64) <= first);
        for segment in ring.segments.range(from..) {
            let mut records = &segment.records[..];
            for position in segment.first..segment.first + segment.events as u64 {
                let length = get(&mut records) as usize;
                let record = take(&mut records, length);
                if position < first {
                    continue;
                }
                if looked_at == LOOKED_AT_MAX || copied >= COPIED_MAX {
                    return slice;
                }
                looked_at += 1;
                slice.next = position + 1;
                if wanted(&Event::decode(record)) {
                    copied += record.len();
                    slice.events.push(Held { position, record: record.into() });
                }
            }
        }
        slice
    }

    /// Events taken so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Events taken and since dropped for newer ones.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Events not taken.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Ring {
    /// The position of the oldest event held.
    fn first(&self) -> u64 {
        self.next - self.events as u64
    }

    /// Nothing more goes into the newest segment: it gives back what it did not need.
    fn finish_segment(&mut self) {
        let Some(segment) = self.segments.back_mut() else { return };
        self.bytes -= segment.records.capacity();
        segment.records.shrink_to_fit();
        self.bytes += segment.records.capacity();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::{Facts, What};
    use crate::link::{ListenerId, WorkerId};
    use crate::time::Moment;

    fn backbone(events: usize, bytes: usize) -> Backbone {
        Backbone::new(config::Backbone { events, bytes })
    }

    fn accept(backbone: &Backbone, number: u32, length: usize) -> Result<u64, Refused> {
        let mut payload = vec![0; length];
        payload.extend_from_slice(&number.to_be_bytes());
        let what = What::Message { topic: "t", payload: &payload };
        backbone.accept(&Event { worker: WorkerId(1), device: "d", at: Moment::from_micros(7_000), what })
    }

    fn numbers(slice: &Slice) -> Vec<u32> {
        let number = |held: &Held| match held.event().what {
            What::Message { payload, .. } => u32::from_be_bytes(*payload.last_chunk().unwrap()),
            other => panic!("{other:?}"),
        };
        slice.events.iter().map(number).collect()
    }

    fn all(backbone: &Backbone, from: u64) -> (u64, Vec<u32>) {
        let slice = backbone.read(from, |_| true);
        (slice.first, numbers(&slice))
    }

    #[test]
    fn the_latest_events_are_held_in_order() {
        let backbone = backbone(16, 1 << 20);
        assert_eq!(all(&backbone, 0), (0, vec![]));
        let positions: Vec<_> = (0..20).map(|number| accept(&backbone, number, 1).unwrap()).collect();
        assert_eq!(positions, (0..20).collect::<Vec<_>>());
        assert_eq!((backbone.accepted(), backbone.dropped(), backbone.refused()), (20, 4, 0));

        assert_eq!(all(&backbone, 0), (4, (4..20).collect()));
        assert_eq!(all(&backbone, 18), (18, vec![18, 19]));
        assert_eq!(all(&backbone, 99), (20, vec![]));
        let slice = backbone.read(17, |event| event.worker != WorkerId(1));
        assert_eq!((slice.first, slice.next, slice.events.len()), (17, 20, 0));
    }

    #[test]
    fn bounds_hold_whatever_comes() {
        let mut random = fastrand::Rng::with_seed(7);
        for (events, bytes) in [(16, 262_144), (1_000, 262_144), (50_000, 300_000)] {
            let backbone = backbone(events, bytes);
            for number in 0..20_000 {
                let length = if random.u8(..) == 0 { random.usize(..100_000) } else { random.usize(..200) };
                assert_eq!(accept(&backbone, number, length), Ok(u64::from(number)));
                let ring = backbone.ring.lock().unwrap();
                assert!(ring.events <= events && ring.bytes <= bytes, "{} events, {} bytes", ring.events, ring.bytes);
                assert_eq!(ring.events, ring.segments.iter().map(|segment| segment.events).sum::<usize>());
                assert_eq!(ring.bytes, ring.segments.iter().map(|segment| segment.records.capacity()).sum::<usize>());
            }
            // All that is held is found from anywhere, read by read.
            let (mut position, mut found) = (0, Vec::new());
            loop {
                let slice = backbone.read(position, |_| true);
                found.extend(numbers(&slice));
                if slice.next == slice.first {
                    break;
                }
                position = slice.next;
            }
            let first = 20_000 - backbone.ring.lock().unwrap().events as u32;
            assert_eq!(found, (first..20_000).collect::<Vec<_>>());
            assert_eq!(backbone.dropped(), u64::from(first));
        }
    }

    #[test]
    fn an_event_larger_than_the_ring_is_refused_and_drops_nothing() {
        let backbone = backbone(100, 262_144);
        accept(&backbone, 0, 10).unwrap();
        let refused = accept(&backbone, 1, 262_144).unwrap_err();
        assert!(matches!(refused, Refused::TooLarge { bytes_max: 262_144, .. }), "{refused}");
        assert_eq!(all(&backbone, 0), (0, vec![0]));
        // One that needs nearly all of it.
        accept(&backbone, 2, 262_120).unwrap();
        assert_eq!(all(&backbone, 0), (1, vec![2]));
        assert_eq!((backbone.accepted(), backbone.dropped(), backbone.refused()), (2, 1, 1));
    }

    #[test]
    fn presence_of_a_fleet_costs_little_and_an_empty_ring_nothing() {
        let backbone = backbone(65_536, 16 << 20);
        assert_eq!(backbone.ring.lock().unwrap().bytes, 0);
        for number in 0..15_000 {
            let device = format!("device-{number:05}");
            let facts = Facts {
                listener: ListenerId(0),
                generation: number,
                sequence: number,
                last_heard: Moment::default(),
                peer: Some(([192, 0, 2, 7], 40_000).into()),
                identity: "hello",
                detail: "",
            };
            let what = What::Connected(facts);
            let at = Moment::from_micros(number * 1_000);
            backbone.accept(&Event { worker: WorkerId(0), device: &device, at, what }).unwrap();
        }
        let bytes = backbone.ring.lock().unwrap().bytes;
        assert!(bytes < 15_000 * 44, "{} bytes each", bytes / 15_000);
    }

    #[test]
    fn readers_hear_once_for_a_batch_and_of_the_end() {
        let backbone = backbone(16, 262_144);
        let mut head = backbone.head();
        accept(&backbone, 0, 1).unwrap();
        accept(&backbone, 1, 1).unwrap();
        assert!(!head.has_changed().unwrap());
        backbone.announce();
        assert_eq!(*head.borrow_and_update(), Head { next: 2, is_closed: false });
        backbone.announce();
        assert!(!head.has_changed().unwrap());
        backbone.close();
        assert_eq!(*head.borrow_and_update(), Head { next: 2, is_closed: true });
    }
}

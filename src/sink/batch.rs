//! A batch of events as the body of one request, and the name under which it is known when it comes again.

use std::ops::ControlFlow;

use aws_lc_rs::digest::{SHA256, digest};

use super::event::Event;
use super::selection::Selection;
use crate::store::Stored;

/// One batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Everything up to here is in it, or does not concern the sink.
    pub last: u64,
    /// How many events are in it.
    pub count: usize,
    /// What is sent; empty when there are none.
    pub body: Vec<u8>,
    /// Its first and its last event.
    range: (u64, u64),
}

/// How a batch is made.
#[derive(Clone, Copy, Debug)]
pub struct Shape<'a> {
    /// This gateway's name.
    pub node: &'a str,
    /// A line for each event, rather than one object for all.
    pub lines: bool,
    /// At most so many events.
    pub events: usize,
    /// And about so many bytes.
    pub bytes: usize,
}

impl Batch {
    /// Of `events`, oldest first: those that `selection` takes, until it is full. `None`: there are no events.
    #[must_use]
    pub fn of(events: &[Stored], selection: &Selection, shape: Shape<'_>) -> Option<Self> {
        let mut batch = Self { last: 0, count: 0, body: Vec::new(), range: (0, 0) };
        let _full = events.iter().try_for_each(|stored| {
            if selection.takes(&stored.entry) {
                let json = Event::new(shape.node, stored).to_json();
                if batch.count == shape.events || (batch.count > 0 && batch.body.len() + json.len() > shape.bytes) {
                    return ControlFlow::Break(());
                }
                batch.push(&json, stored.seq, shape.lines);
            }
            batch.last = stored.seq;
            ControlFlow::Continue(())
        });
        if batch.count > 0 && !shape.lines {
            batch.body.extend_from_slice(b"]}");
        }
        (batch.last > 0).then_some(batch)
    }

    fn push(&mut self, json: &str, seq: u64, lines: bool) {
        if self.count == 0 {
            self.range.0 = seq;
            if !lines {
                self.body.extend_from_slice(b"{\"events\":[");
            }
        } else if !lines {
            self.body.push(b',');
        }
        self.body.extend_from_slice(json.as_bytes());
        if lines {
            self.body.push(b'\n');
        }
        self.count += 1;
        self.range.1 = seq;
    }

    /// The same for the same events from the same store, whenever they are sent; another one for any others.
    #[must_use]
    pub fn id(&self, store: &str) -> String {
        let digest = digest(&SHA256, &self.body);
        let short = digest.as_ref()[..4].iter().fold(0, |short, byte| short << 8 | u32::from(*byte));
        format!("{store}-{}-{}-{short:08x}", self.range.0, self.range.1)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::link::WorkerId;
    use crate::store::{Entry, What};

    fn message(seq: u64, topic: &str, payload: &str) -> Stored {
        let what = What::Message { topic: topic.into(), payload: Bytes::from(payload.to_owned()), published: None };
        let entry =
            Entry { at_ms: 1_700_000_000_000, worker: WorkerId(0), device: "meter-1".into(), what, receipt: None };
        Stored { seq, entry }
    }

    fn shape(lines: bool, events: usize, bytes: usize) -> Shape<'static> {
        Shape { node: "edge-1", lines, events, bytes }
    }

    #[test]
    fn lines_and_json_hold_the_same_events() {
        let events = [message(5, "a", "1"), message(6, "b", "2")];
        let all = Selection::new(&["#".into()], true);
        let lines = Batch::of(&events, &all, shape(true, 10, 10_000)).unwrap();
        let json = Batch::of(&events, &all, shape(false, 10, 10_000)).unwrap();
        let whole: serde_json::Value = serde_json::from_slice(&json.body).unwrap();
        let each: Vec<serde_json::Value> = lines
            .body
            .split_inclusive(|byte| *byte == b'\n')
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        assert_eq!(whole["events"].as_array().unwrap(), &each);
        assert_eq!((each[1]["seq"].as_u64(), each[1]["topic"].as_str()), (Some(6), Some("b")));
        assert_eq!((lines.count, lines.last), (2, 6));
    }

    #[test]
    fn a_batch_ends_where_it_is_full_and_passes_over_what_is_for_others() {
        let events = [message(1, "x", ""), message(2, "a/1", "1"), message(3, "x", ""), message(4, "a/2", "2")];
        let of_a = Selection::new(&["a/#".into()], true);
        let one = Batch::of(&events, &of_a, shape(true, 1, 10_000)).unwrap();
        assert_eq!((one.count, one.last, one.range), (1, 3, (2, 2)));
        let none = Batch::of(&events[..1], &of_a, shape(true, 1, 10_000)).unwrap();
        assert_eq!((none.count, none.last, none.body.len()), (0, 1, 0));
        assert!(Batch::of(&[], &of_a, shape(true, 1, 10_000)).is_none());
        // One event that is larger than all that may be in a batch goes alone.
        let large = Batch::of(&events, &of_a, shape(true, 10, 1)).unwrap();
        assert_eq!((large.count, large.last), (1, 3));
    }

    #[test]
    fn the_same_batch_has_the_same_id_and_no_other_has() {
        let events = [message(5, "a", "1"), message(6, "b", "2")];
        let all = Selection::new(&["#".into()], true);
        let id = |events: &[Stored], store| Batch::of(events, &all, shape(true, 10, 10_000)).unwrap().id(store);
        assert_eq!(id(&events, "s"), id(&events, "s"));
        assert_ne!(id(&events, "s"), id(&events, "t"));
        assert_ne!(id(&events, "s"), id(&events[..1], "s"));
        assert_ne!(id(&events, "s"), id(&[message(5, "a", "1"), message(6, "b", "3")], "s"));
    }
}

//! The way up: what a shard has said, in batches, into a channel that may be full.

use crossbeam_channel::Sender;

use crate::link::{Batch, Uplink, WorkerId};

/// Events of one batch.
pub(super) const BATCH: usize = 1_024;

/// Sends `events` from the front, as far as the channel takes them. `true`: all went.
pub(super) fn send_up(worker: WorkerId, events: &mut Vec<Uplink>, channel: &Sender<Batch>) -> bool {
    while !events.is_empty() {
        // Asked first, for to take a batch off the front and put it back moves everything behind it.
        if channel.is_full() {
            return false;
        }
        let rest = events.split_off(events.len().min(BATCH));
        let events_of_batch = std::mem::replace(events, rest);
        if let Err(full) = channel.try_send(Batch { worker, events: events_of_batch }) {
            // Another worker was quicker.
            let mut back = full.into_inner().events;
            back.append(events);
            *events = back;
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::bounded;

    use super::*;
    use crate::link::Outcome;

    fn said(requests: std::ops::Range<u64>) -> Vec<Uplink> {
        requests.map(|request| Uplink::Sent { request, outcome: Outcome::Delivered }).collect()
    }

    fn requests(events: &[Uplink]) -> Vec<u64> {
        let request = |event: &Uplink| match event {
            Uplink::Sent { request, .. } => *request,
            other => panic!("{other:?}"),
        };
        events.iter().map(request).collect()
    }

    #[test]
    fn what_the_channel_does_not_take_stays_in_order() {
        let all = 3 * BATCH as u64 + 7;
        let (channel, batches) = bounded(2);
        let mut events = said(0..all);
        let mut heard = Vec::new();
        while !send_up(WorkerId(1), &mut events, &channel) {
            let batch = batches.recv().unwrap();
            assert_eq!((batch.worker, batch.events.len()), (WorkerId(1), BATCH));
            heard.extend(requests(&batch.events));
        }
        heard.extend(batches.try_iter().flat_map(|batch| requests(&batch.events)));
        assert_eq!(heard, (0..all).collect::<Vec<_>>());
    }

    /// A full channel meets a long queue turn after turn: looking at it must not cost a copy of the queue.
    #[test]
    fn a_full_channel_moves_nothing() {
        let (channel, _batches) = bounded(1);
        assert!(send_up(WorkerId(0), &mut said(0..1), &channel));
        let mut events = said(0..10 * BATCH as u64);
        let before = (events.as_ptr(), events.capacity());
        assert!(!send_up(WorkerId(0), &mut events, &channel));
        assert_eq!((events.as_ptr(), events.capacity(), events.len()), (before.0, before.1, 10 * BATCH));
    }
}

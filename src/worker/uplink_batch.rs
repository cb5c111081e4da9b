//! The way up: what a shard has said, in batches, into a channel that may be full.

use crate::link::{Batch, EventSender, WorkerEvent, WorkerId};

/// Events of one batch.
pub(super) const BATCH: usize = 1_024;

/// One worker's way up.
pub(super) struct UplinkBatches {
    worker: WorkerId,
    channel: EventSender,
    /// How many of the events that wait at the front are known to be no answers.
    looked_at: usize,
}

impl UplinkBatches {
    pub(super) fn new(worker: WorkerId, channel: EventSender) -> Self {
        Self { worker, channel, looked_at: 0 }
    }

    /// Sends `events` from the front, as far as the channel takes them, and all answers among them at once. `true`: all
    /// went. Otherwise the worker is woken when there is room.
    pub(super) fn send(&mut self, events: &mut Vec<WorkerEvent>) -> bool {
        self.send_answers(events);
        while !events.is_empty() {
            // Asked first, for to take a batch off the front and put it back moves everything behind it.
            if self.channel.events.is_full() {
                self.channel.wait(self.worker);
                if self.channel.events.is_full() {
                    return false;
                }
            }
            let rest = events.split_off(events.len().min(BATCH));
            let batch = Batch::new(self.worker, std::mem::replace(events, rest));
            let (sent, is_awaited) = (batch.events.len(), batch.is_awaited);
            if let Err(full) = self.channel.events.try_send(batch) {
                // Another worker was quicker.
                let mut back = full.into_inner().events;
                back.append(events);
                *events = back;
                continue;
            }
            self.looked_at -= sent;
            if is_awaited {
                self.channel.hurry();
            }
        }
        true
    }

    /// The worker is woken when less of what was sent is on its way.
    pub(super) fn wait(&self) {
        self.channel.wait_above(self.worker);
    }

    /// Answers overtake the events, which may have to wait here or before the store. Each event is looked at once.
    fn send_answers(&mut self, events: &mut Vec<WorkerEvent>) {
        let answers: Vec<_> = events.extract_if(self.looked_at.., |event| event.is_answer()).collect();
        self.looked_at = events.len();
        if !answers.is_empty() {
            // The control plane is gone only when the gateway ends, and then nobody waits.
            let _ = self.channel.answers.send(Batch { worker: self.worker, events: answers, is_awaited: true });
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::slot::ConnectionSlot;
    use bytes::Bytes;

    use super::*;
    use crate::link::{ConnectionId, Message, Outcome, Receipt, event_channel};

    fn message(number: u32) -> WorkerEvent {
        WorkerEvent::Message(Message {
            device: "d".into(),
            connection: ConnectionId { slot: ConnectionSlot(0), generation: 1 },
            topic: "t".into(),
            payload: Bytes::copy_from_slice(&number.to_be_bytes()),
            published: None,
            receipt: None,
            charge: None,
        })
    }

    fn answer(request: u64) -> WorkerEvent {
        WorkerEvent::Sent { request, outcome: Outcome::Delivered }
    }

    fn messages(numbers: std::ops::Range<u32>) -> Vec<WorkerEvent> {
        numbers.map(message).collect()
    }

    fn numbers(events: &[WorkerEvent]) -> Vec<u32> {
        let number = |event: &WorkerEvent| match event {
            WorkerEvent::Message(message) => u32::from_be_bytes(message.payload[..].try_into().unwrap()),
            other => panic!("{other:?}"),
        };
        events.iter().map(number).collect()
    }

    #[test]
    fn what_the_channel_does_not_take_stays_in_order() {
        let all = 3 * BATCH as u32 + 7;
        let (sender, receiver) = event_channel(2);
        let mut batches = UplinkBatches::new(WorkerId(1), sender);
        let mut events = messages(0..all);
        let mut heard = Vec::new();
        while !batches.send(&mut events) {
            assert_eq!(receiver.take_waiting().count(), 0, "there is none");
            let batch = receiver.events.recv().unwrap();
            assert!(receiver.take_waiting().eq([WorkerId(1)]), "it is woken when there is room");
            assert_eq!(receiver.take_waiting().count(), 0);
            assert_eq!((batch.worker, batch.events.len()), (WorkerId(1), BATCH));
            heard.extend(numbers(&batch.events));
        }
        heard.extend(receiver.events.try_iter().flat_map(|batch| numbers(&batch.events)));
        assert_eq!(heard, (0..all).collect::<Vec<_>>());
        assert!(receiver.answers.is_empty() && receiver.take_waiting().next().is_none());
    }

    #[test]
    fn answers_overtake_events_and_each_event_is_looked_at_once() {
        let (sender, receiver) = event_channel(1);
        let mut batches = UplinkBatches::new(WorkerId(0), sender);
        assert!(batches.send(&mut messages(0..1)));
        let mut events = messages(1..4);
        events.insert(1, answer(7));
        assert!(!batches.send(&mut events));
        events.extend([message(4), answer(8)]);
        assert!(!batches.send(&mut events));
        let requests: Vec<_> = receiver.answers.try_iter().flat_map(|batch| batch.events).collect();
        assert!(matches!(requests[..], [WorkerEvent::Sent { request: 7, .. }, WorkerEvent::Sent { request: 8, .. }]));
        assert_eq!(numbers(&events), [1, 2, 3, 4]);
        // There is room: what waited goes, and whatever comes then is looked at anew.
        receiver.events.recv().unwrap();
        assert!(batches.send(&mut events));
        let mut events = vec![answer(9), message(5)];
        assert!(!batches.send(&mut events));
        assert_eq!((receiver.answers.len(), numbers(&events)), (1, vec![5]));
    }

    /// The control plane leaves what nobody waits for in the lane; for anything else it is rung.
    #[test]
    fn who_waits_for_something_in_the_lane_or_for_room_there_rings() {
        let (sender, receiver) = event_channel(3);
        let mut batches = UplinkBatches::new(WorkerId(0), sender);
        let rung = || receiver.hurry.try_iter().count();
        assert!(batches.send(&mut messages(0..4)));
        assert_eq!(rung(), 0, "nobody waits");
        let awaited = |number| match message(number) {
            WorkerEvent::Message(message) => {
                let receipt = Some(Receipt::Connection(message.connection, 7));
                WorkerEvent::Message(Message { receipt, ..message })
            }
            other => other,
        };
        assert!(batches.send(&mut vec![message(4), awaited(5), message(6)]));
        assert_eq!((rung(), receiver.events.len()), (1, 2), "behind what is waited for");
        assert!(batches.send(&mut vec![WorkerEvent::Fence { request: 1 }]));
        assert!(!batches.send(&mut messages(7..9)));
        assert_eq!(rung(), 1, "once for all, and for whoever waits for room");
        batches.wait();
        assert_eq!(rung(), 1);
    }

    /// A full channel meets a long queue turn after turn: looking at it must not cost a copy of the queue.
    #[test]
    fn a_full_channel_moves_nothing() {
        let (sender, _receiver) = event_channel(1);
        let mut batches = UplinkBatches::new(WorkerId(0), sender);
        assert!(batches.send(&mut messages(0..1)));
        let mut events = messages(0..10 * BATCH as u32);
        let before = (events.as_ptr(), events.capacity());
        assert!(!batches.send(&mut events));
        assert_eq!((events.as_ptr(), events.capacity(), events.len()), (before.0, before.1, 10 * BATCH));
        assert_eq!(batches.looked_at, events.len());
    }
}

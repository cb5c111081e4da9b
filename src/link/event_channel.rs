//! The way from the workers to the control plane: events in a lane that may be full, answers in one that never is.
//!
//! Events (presence, messages) wait for the store and stop their publishers when they must; answers to what the control
//! plane has asked, and questions about tokens, go on meanwhile. Answers need no bound of their own: there are no more of
//! them than requests under way, connections that prove themselves, and broadcasts.
//!
//! A worker that finds no room says that it waits, and looks once more; the control plane, when it has made room, wakes whoever
//! waits. So nobody looks again and again, and none is forgotten: whichever of both comes later sees the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::{Batch, WorkerEvent, WorkerId};

/// The workers' end; each has a copy.
#[derive(Clone, Debug)]
pub struct EventSender {
    /// Takes batches of events as long as there is room.
    pub events: Sender<Batch>,
    /// Takes batches of answers alone, always.
    pub answers: Sender<Batch>,
    waiting: Waiting,
}

/// Workers that wait for room, a bit each.
#[derive(Clone, Debug, Default)]
struct Waiting(Arc<AtomicU64>);

/// The control plane's end.
#[derive(Clone, Debug)]
pub struct EventReceiver {
    /// What happened, in order for each worker.
    pub events: Receiver<Batch>,
    /// Answers, and questions about tokens.
    pub answers: Receiver<Batch>,
    waiting: Waiting,
}

impl EventSender {
    /// This worker waits for room, in the lane of events or for what it has sent there: it is woken when there may be some. To be
    /// said before it looks for the last time.
    pub fn wait(&self, worker: WorkerId) {
        debug_assert!(worker.0 < 64);
        self.waiting.0.fetch_or(1 << worker.0, Ordering::SeqCst);
    }
}

impl EventReceiver {
    /// There is room: those that wait, who are to be woken.
    pub fn take_waiting(&self) -> impl Iterator<Item = WorkerId> + use<> {
        // Nearly always nobody does.
        let waiting = match self.waiting.0.load(Ordering::SeqCst) {
            0 => 0,
            _ => self.waiting.0.swap(0, Ordering::SeqCst),
        };
        (0..64).filter(move |worker| waiting & (1 << worker) != 0).map(WorkerId)
    }
}

/// A way with room for so many batches of events.
#[must_use]
pub fn event_channel(batches: usize) -> (EventSender, EventReceiver) {
    let (events, taken_events) = bounded(batches);
    let (answers, taken_answers) = unbounded();
    let waiting = Waiting::default();
    (
        EventSender { events, answers, waiting: waiting.clone() },
        EventReceiver { events: taken_events, answers: taken_answers, waiting },
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

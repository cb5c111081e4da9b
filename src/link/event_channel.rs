//! The way from the workers to the control plane: events in a lane that may be full, answers in one that never is.
//!
//! Events (presence, messages) wait for the store and stop their publishers when they must; answers to what the control
//! plane has asked, and questions about tokens, go on meanwhile. Answers need no bound of their own: there are no more of
//! them than requests under way, connections that prove themselves, and broadcasts.

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::{Batch, WorkerEvent};

/// The workers' end; each has a copy.
#[derive(Clone, Debug)]
pub struct EventSender {
    /// Takes batches of events as long as there is room.
    pub events: Sender<Batch>,
    /// Takes batches of answers alone, always.
    pub answers: Sender<Batch>,
}

/// The control plane's end.
#[derive(Clone, Debug)]
pub struct EventReceiver {
    /// What happened, in order for each worker.
    pub events: Receiver<Batch>,
    /// Answers, and questions about tokens.
    pub answers: Receiver<Batch>,
}

/// A way with room for so many batches of events.
#[must_use]
pub fn event_channel(batches: usize) -> (EventSender, EventReceiver) {
    let (events, taken_events) = bounded(batches);
    let (answers, taken_answers) = unbounded();
    (EventSender { events, answers }, EventReceiver { events: taken_events, answers: taken_answers })
}

impl WorkerEvent {
    /// Whether somebody in the control plane, or a connection that cannot go on without it, waits for this.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        match self {
            WorkerEvent::Connected(_)
            | WorkerEvent::Disconnected(..)
            | WorkerEvent::NotAdmitted(_)
            | WorkerEvent::TakeoverLoop(_)
            | WorkerEvent::KeepOut { .. }
            | WorkerEvent::Message(_) => false,
            WorkerEvent::Authenticate { .. }
            | WorkerEvent::Described { .. }
            | WorkerEvent::Listed { .. }
            | WorkerEvent::Sent { .. }
            | WorkerEvent::Broadcast { .. } => true,
        }
    }
}

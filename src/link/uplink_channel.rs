//! The way from the workers to the control plane: events in a lane that may be full, answers in one that never is.
//!
//! Events (presence, messages) wait for the store and stop their publishers when they must; answers to what the control
//! plane has asked, and questions about tokens, go on meanwhile. Answers need no bound of their own: there are no more of
//! them than requests under way, connections that prove themselves, and broadcasts.

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::{Batch, Uplink};

/// The workers' end; each has a copy.
#[derive(Clone, Debug)]
pub struct UplinkSender {
    /// Takes batches of events as long as there is room.
    pub events: Sender<Batch>,
    /// Takes batches of answers alone, always.
    pub answers: Sender<Batch>,
}

/// The control plane's end.
#[derive(Clone, Debug)]
pub struct UplinkReceiver {
    /// What happened, in order for each worker.
    pub events: Receiver<Batch>,
    /// Answers, and questions about tokens.
    pub answers: Receiver<Batch>,
}

/// A way with room for so many batches of events.
#[must_use]
pub fn uplink_channel(batches: usize) -> (UplinkSender, UplinkReceiver) {
    let (events, taken_events) = bounded(batches);
    let (answers, taken_answers) = unbounded();
    (UplinkSender { events, answers }, UplinkReceiver { events: taken_events, answers: taken_answers })
}

impl Uplink {
    /// Whether somebody in the control plane, or a connection that cannot go on without it, waits for this.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        match self {
            Uplink::Connected(_)
            | Uplink::Disconnected(..)
            | Uplink::NotAdmitted(_)
            | Uplink::TakeoverLoop(_)
            | Uplink::KeepOut { .. }
            | Uplink::Message(_) => false,
            Uplink::Authenticate { .. }
            | Uplink::Described { .. }
            | Uplink::Listed { .. }
            | Uplink::Sent { .. }
            | Uplink::Broadcast { .. } => true,
        }
    }
}

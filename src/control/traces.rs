//! Which traces are followed: a short list that every worker is told of whenever it changes.

use std::sync::{Arc, Mutex, PoisonError};

use crate::config::budget::CONTROL_BYTES;
use crate::link::{Mailbox, TRACE_BYTES, TRACES_MAX, Trace, WorkerCommand};

// What waits for followers is within what the budget gives the control plane.
const _: () = assert!(TRACE_BYTES as u64 <= CONTROL_BYTES / 2);

/// The traces that are followed.
#[derive(Default)]
pub(super) struct Traces(Mutex<Vec<Arc<Trace>>>);

impl Traces {
    /// Lets the workers follow one more. False: there are as many as there may be.
    pub(super) fn begin(&self, trace: &Arc<Trace>, mailboxes: &[Mailbox]) -> bool {
        self.change(mailboxes, |traces| {
            let has_room = traces.len() < TRACES_MAX;
            if has_room {
                traces.push(Arc::clone(trace));
            }
            has_room
        })
    }

    /// Nobody follows it any more.
    pub(super) fn end(&self, trace: &Arc<Trace>, mailboxes: &[Mailbox]) {
        self.change(mailboxes, |traces| {
            let before = traces.len();
            traces.retain(|followed| !Arc::ptr_eq(followed, trace));
            traces.len() < before
        });
    }

    /// Under the lock, so that the workers hear of the changes in their order. None of them waits for anybody.
    fn change(&self, mailboxes: &[Mailbox], change: impl FnOnce(&mut Vec<Arc<Trace>>) -> bool) -> bool {
        // A panic within the lock cannot leave half a list.
        let mut traces = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has_changed = change(&mut traces);
        if has_changed {
            let all: Arc<[Arc<Trace>]> = traces.as_slice().into();
            for mailbox in mailboxes {
                // A worker that is gone follows nothing.
                let _ = mailbox.answer(WorkerCommand::Trace(Arc::clone(&all)));
            }
        }
        has_changed
    }
}

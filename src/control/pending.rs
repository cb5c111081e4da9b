//! Questions to workers that are not answered yet, by number.
//!
//! A question that nobody waits for any more leaves no trace: its [`Ticket`] takes it out when it is dropped, and an
//! answer that comes later finds nothing.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// Questions whose answers are of type `T`.
pub(super) struct Pending<T> {
    next: AtomicU64,
    open: Mutex<HashMap<u64, oneshot::Sender<T>>>,
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self { next: AtomicU64::new(1), open: Mutex::default() }
    }
}

impl<T> Pending<T> {
    /// Opens a question; its number goes with it to the worker.
    pub(super) fn open(&self) -> Ticket<'_, T> {
        let request = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.open.lock().expect("no holder panics").insert(request, sender);
        Ticket { pending: self, request, answer }
    }

    /// Hands the answer to whoever waits for it, if anybody still does.
    pub(super) fn resolve(&self, request: u64, answer: T) {
        let waiting = self.open.lock().expect("no holder panics").remove(&request);
        if let Some(waiting) = waiting {
            // The asker may have given up just now.
            let _ = waiting.send(answer);
        }
    }

    /// How many questions are open.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.open.lock().unwrap().len()
    }
}

/// One open question.
pub(super) struct Ticket<'a, T> {
    pending: &'a Pending<T>,
    request: u64,
    answer: oneshot::Receiver<T>,
}

impl<T> Ticket<'_, T> {
    /// The question's number.
    pub(super) fn request(&self) -> u64 {
        self.request
    }

    /// Waits for the answer; `None` when it has not come by the deadline.
    pub(super) async fn answer(mut self, deadline: Instant) -> Option<T> {
        timeout_at(deadline, &mut self.answer).await.ok()?.ok()
    }
}

impl<T> Drop for Ticket<'_, T> {
    fn drop(&mut self) {
        self.pending.open.lock().expect("no holder panics").remove(&self.request);
    }
}

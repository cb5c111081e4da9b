//! The one place where everything that workers say arrives, and where every answer to them leaves.
//!
//! One thread, batch after batch, event after event: what one worker said in one order is seen in that order. It never
//! waits for a worker, for a hash or for a reader of events.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, never, select};

use super::State;
use super::auth::tokens::TokenFile;
use super::auth::verifier::{AuthRequest, Check, Verifier};
use super::broadcasts::Share;
use super::outbox::Outbox;
use crate::backbone::Event;
use crate::link::{Batch, Command, Message, Presence, Uplink, WorkerId};

/// How often a full mailbox is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(5);
/// How long the last batches may take at shutdown.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// The hub thread's own state.
pub(super) struct Hub {
    state: Arc<State>,
    verifier: Verifier,
    /// By worker.
    outboxes: Vec<Outbox>,
    /// When the outboxes are looked at again; set while something waits in one.
    retry_at: Option<Instant>,
}

impl Hub {
    /// A hub for the workers behind `state`.
    pub(super) fn new(state: Arc<State>, verifier: Verifier) -> Self {
        let outboxes = state.mailboxes.iter().cloned().map(Outbox::new).collect();
        Self { state, verifier, outboxes, retry_at: None }
    }

    /// Works until something arrives on `stop` (or its sender is gone); then takes what is still there.
    pub(super) fn run(mut self, stop: &Receiver<()>, token_files: &Receiver<Vec<Option<TokenFile>>>) {
        let mut uplink = self.state.uplink.clone();
        let mut results = self.verifier.results().clone();
        loop {
            let retry = self.retry_at.map_or_else(never, at);
            select! {
                recv(uplink) -> batch => match batch {
                    Ok(batch) => self.apply(batch),
                    // Every worker is gone; only `stop` is left to wait for.
                    Err(_) => uplink = never(),
                },
                recv(results) -> result => {
                    let result = result.expect("the token thread ended before its owner");
                    let (asked, accepted) = self.verifier.settle(&result);
                    self.tell(asked, accepted);
                }
                recv(token_files) -> files => {
                    // Its sender goes with the one of `stop`, which is then about to be seen.
                    if let Ok(files) = files {
                        self.verifier = self.verifier.with_files(files);
                        results = self.verifier.results().clone();
                    }
                }
                recv(retry) -> _ => self.retry(),
                recv(stop) -> _ => break,
            }
        }
        self.drain(&uplink);
        // The token thread ends early because nobody takes its results any more: all who could must let go.
        drop(results);
        self.verifier.stop();
    }

    fn drain(&mut self, uplink: &Receiver<Batch>) {
        let deadline = Instant::now() + DRAIN_MAX;
        while Instant::now() < deadline
            && let Ok(batch) = uplink.try_recv()
        {
            self.apply(batch);
        }
    }

    fn apply(&mut self, batch: Batch) {
        for event in batch.events {
            self.apply_event(batch.worker, event);
        }
        self.state.backbone.announce();
    }

    fn apply_event(&mut self, worker: WorkerId, event: Uplink) {
        match event {
            Uplink::Connected(presence) => {
                log_presence(&presence, "connected");
                self.offer(&Event::connected(worker, &presence));
            }
            Uplink::Disconnected(presence, reason) => {
                log_presence(&presence, reason.label());
                self.offer(&Event::disconnected(worker, &presence, reason));
            }
            Uplink::Message(message) => self.apply_message(worker, &message),
            Uplink::VerifyToken { connection, listener, device, token } => {
                let asked = AuthRequest { worker, connection, listener };
                let check = self.verifier.check(asked, &device, token, Instant::now());
                if let Check::Settled(accepted) = check {
                    self.tell(asked, accepted);
                }
            }
            Uplink::Described { request, description } => self.state.described.resolve(request, description),
            Uplink::Listed { request, devices } => self.state.listed.resolve(request, devices),
            Uplink::Sent { request, outcome } => self.state.sent.resolve(request, outcome),
            Uplink::Broadcast { broadcast, sent, refused, is_over } => {
                self.state.broadcasts.report(broadcast, worker, Share { sent, refused, is_over });
            }
        }
    }

    /// Acknowledged only when the backbone holds it (decision D6).
    fn apply_message(&mut self, worker: WorkerId, message: &Message) {
        let accepted = self.offer(&Event::message(worker, message, self.state.clock.now()));
        if let Some(receipt) = message.receipt {
            self.send(worker, Command::MessageSettled { receipt, accepted });
        }
    }

    /// Whether the backbone holds the event now; it counts what it refuses.
    fn offer(&self, event: &Event<'_>) -> bool {
        match self.state.backbone.accept(event) {
            Ok(_) => true,
            Err(refused) => {
                tracing::debug!(%refused, "the backbone refused an event");
                false
            }
        }
    }

    fn tell(&mut self, asked: AuthRequest, accepted: bool) {
        self.send(asked.worker, Command::TokenVerdict { connection: asked.connection, accepted });
    }

    fn send(&mut self, worker: WorkerId, answer: Command) {
        let dropped = self.outboxes[worker.index()].send(answer, Instant::now());
        self.count_dropped(worker, dropped);
        if !self.outboxes[worker.index()].is_empty() {
            self.retry_at.get_or_insert_with(|| Instant::now() + RETRY_EVERY);
        }
    }

    fn retry(&mut self) {
        for worker in 0..self.outboxes.len() {
            let dropped = self.outboxes[worker].retry(Instant::now());
            self.count_dropped(WorkerId(worker as u16), dropped);
        }
        let empty = self.outboxes.iter().all(Outbox::is_empty);
        self.retry_at = (!empty).then(|| Instant::now() + RETRY_EVERY);
    }

    fn count_dropped(&self, worker: WorkerId, dropped: usize) {
        // One line when a whole outbox is given up, or for each thousandth answer: never one for each.
        if dropped > 0 {
            let before = self.state.counters.answers_dropped.fetch_add(dropped as u64, Ordering::Relaxed);
            if dropped > 1 || before.is_multiple_of(1_000) {
                tracing::warn!(%worker, dropped, "a worker's inbox stays full: answers to it were given up");
            }
        }
    }
}

fn log_presence(presence: &Presence, cause: &str) {
    let Presence { device, generation, sequence, .. } = presence;
    tracing::debug!(%device, generation, sequence, cause, "presence");
}

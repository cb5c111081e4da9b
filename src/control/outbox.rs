//! Answers on their way to one worker: straight into its mailbox, or in order behind those that found it full.
//!
//! The worker is never waited for. What it does not take in time, or in number, is given up and counted: an
//! acknowledgement that does not come makes the device send again, a verdict that does not come ends at `hello_time`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::link::{Command, Mailbox, MailboxFull};

/// Answers that may wait for one worker.
const WAITING_MAX: usize = 16_384;
/// How long a mailbox may stay full before its answers are given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// The answers for one worker, in order.
pub(super) struct Outbox {
    mailbox: Mailbox,
    waiting: VecDeque<Command>,
    /// Since when the mailbox has taken nothing, while something waits.
    stuck_since: Option<Instant>,
}

impl Outbox {
    /// An empty outbox before `mailbox`.
    pub(super) fn new(mailbox: Mailbox) -> Self {
        Self { mailbox, waiting: VecDeque::new(), stuck_since: None }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends an answer, behind those that wait. Gives back how many answers were given up for it: none or one.
    #[must_use]
    pub(super) fn send(&mut self, answer: Command, now: Instant) -> usize {
        if self.waiting.is_empty() {
            let Err(MailboxFull(answer)) = self.mailbox.send(answer) else { return 0 };
            self.stuck_since = Some(now);
            self.waiting.push_back(*answer);
            return 0;
        }
        if self.waiting.len() == WAITING_MAX {
            return 1;
        }
        self.waiting.push_back(answer);
        0
    }

    /// Tries again with what waits. Gives back how many answers were given up: all of them, when the mailbox has
    /// taken nothing for ten seconds.
    #[must_use]
    pub(super) fn retry(&mut self, now: Instant) -> usize {
        while let Some(answer) = self.waiting.pop_front() {
            if let Err(MailboxFull(answer)) = self.mailbox.send(answer) {
                self.waiting.push_front(*answer);
                break;
            }
            self.stuck_since = Some(now);
        }
        match self.stuck_since {
            Some(since) if !self.waiting.is_empty() && now.duration_since(since) >= PATIENCE => {
                self.stuck_since = None;
                std::mem::take(&mut self.waiting).len()
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::mailbox;
    use super::*;
    use crate::link::{ConnectionId, Receipt};

    fn accepted(message: u32) -> Command {
        let receipt = Receipt::Connection(ConnectionId { index: 0, generation: 1 }, message);
        Command::MessageSettled { receipt, accepted: true }
    }

    fn numbers(inbox: &crossbeam_channel::Receiver<Command>) -> Vec<u32> {
        let number = |command| match command {
            Command::MessageSettled { receipt: Receipt::Connection(_, message), .. } => message,
            other => panic!("{other:?}"),
        };
        inbox.try_iter().map(number).collect()
    }

    #[test]
    fn answers_wait_in_order_for_a_full_mailbox() {
        let (mailbox, inbox) = mailbox(2);
        let mut outbox = Outbox::new(mailbox);
        let now = Instant::now();
        assert_eq!((1..=5).map(|message| outbox.send(accepted(message), now)).sum::<usize>(), 0);
        assert_eq!(numbers(&inbox), [1, 2]);
        // The mailbox has room again, but who came first goes first.
        assert_eq!(outbox.send(accepted(6), now), 0);
        assert_eq!(outbox.retry(now), 0);
        assert_eq!(numbers(&inbox), [3, 4]);
        assert_eq!(outbox.retry(now), 0);
        assert_eq!(numbers(&inbox), [5, 6]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn a_mailbox_that_stays_full_loses_its_answers_counted() {
        let (mailbox, inbox) = mailbox(1);
        let mut outbox = Outbox::new(mailbox);
        let start = Instant::now();
        assert_eq!((1..=4).map(|message| outbox.send(accepted(message), start)).sum::<usize>(), 0);
        assert_eq!(outbox.retry(start + PATIENCE.mul_f32(0.9)), 0);
        // One was taken: the patience begins anew.
        assert_eq!(numbers(&inbox), [1]);
        assert_eq!(outbox.retry(start + PATIENCE.mul_f32(0.9)), 0);
        assert_eq!(outbox.retry(start + PATIENCE.mul_f32(1.5)), 0);
        assert_eq!(outbox.retry(start + PATIENCE * 2), 2);
        assert!(outbox.is_empty());
        assert_eq!(numbers(&inbox), [2]);
        assert_eq!(outbox.send(accepted(5), start + PATIENCE * 2), 0);
        assert_eq!(numbers(&inbox), [5]);
    }

    #[test]
    fn the_number_of_waiting_answers_is_bounded() {
        let (mailbox, inbox) = mailbox(1);
        let mut outbox = Outbox::new(mailbox);
        let now = Instant::now();
        let sent = WAITING_MAX as u32 + 3;
        assert_eq!((1..=sent).map(|message| outbox.send(accepted(message), now)).sum::<usize>(), 2);
        assert_eq!(numbers(&inbox), [1]);
        assert_eq!(outbox.waiting.len(), WAITING_MAX);
    }
}

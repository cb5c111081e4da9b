//! The ways to other shards: what waits for credit, what goes with it, and the credit that is given back.
//!
//! A message that may not go yet waits here, and while any does the shard's publishers are read no further. Credit that has
//! come free is told when it is a quarter of all, so that it costs little: whoever waits has used all of it, so that a quarter
//! comes free as soon as the other shard has dealt with as much.

use std::collections::VecDeque;

use crate::link::{Class, Credit, Outgoing, Passed, ShardMessage, WorkerId};

/// Credit that has come free is told when it is one in so many of all.
const TOLD_AT: usize = 4;

/// What one shard may have of one class in another's inbox, as the sender counts it.
#[derive(Debug)]
struct Window {
    max: Credit,
    used: Credit,
}

impl Window {
    /// Whether one more may go. The last one may be longer than what is left, whatever it is: who has used all of his credit
    /// has used at least `max`.
    fn is_open(&self) -> bool {
        self.used.messages < self.max.messages && self.used.bytes < self.max.bytes
    }

    fn take(&mut self, bytes: usize) {
        self.used.messages += 1;
        self.used.bytes += bytes;
    }

    fn give_back(&mut self, credit: Credit) {
        let messages = self.used.messages.checked_sub(credit.messages);
        let bytes = self.used.bytes.checked_sub(credit.bytes);
        self.used.messages = messages.expect("no more credit comes back than was used");
        self.used.bytes = bytes.expect("no more credit comes back than was used");
    }
}

/// One way to one other shard.
#[derive(Debug)]
struct Way {
    answers: Vec<ShardMessage>,
    /// By class: what waits for credit.
    waiting: [VecDeque<Passed>; 2],
    waiting_bytes: usize,
    /// By class: what the other shard has of ours.
    windows: [Window; 2],
    /// By class: credit of the other shard's that has come free and was not told.
    free: [Credit; 2],
}

/// All of them, by worker.
pub(super) struct Ways {
    all: Vec<Way>,
    max: Credit,
}

impl Ways {
    /// Ways to so many workers, one of which is this one. Each takes at most `inbox` from all others together.
    pub(super) fn new(workers: u16, inbox: Credit) -> Self {
        let shares = 2 * (usize::from(workers) - 1).max(1);
        // Four, so that a quarter is a message.
        let max = Credit { messages: (inbox.messages / shares).max(TOLD_AT), bytes: (inbox.bytes / shares).max(1) };
        let window = || Window { max, used: Credit::default() };
        let way = || Way {
            answers: Vec::new(),
            waiting: [VecDeque::new(), VecDeque::new()],
            waiting_bytes: 0,
            windows: [window(), window()],
            free: [Credit::default(); 2],
        };
        Self { all: (0..workers).map(|_| way()).collect(), max }
    }

    /// Something that needs no credit.
    pub(super) fn answer(&mut self, worker: WorkerId, answer: ShardMessage) {
        self.all[worker.index()].answers.push(answer);
    }

    /// Something that does.
    pub(super) fn pass(&mut self, worker: WorkerId, passed: Passed) {
        let way = &mut self.all[worker.index()];
        way.waiting_bytes += passed.publication.bytes();
        way.waiting[passed.class().index()].push_back(passed);
    }

    /// The other shard has dealt with so much.
    pub(super) fn handle_credit(&mut self, worker: WorkerId, credit: [Credit; 2]) {
        let windows = &mut self.all[worker.index()].windows;
        for (window, credit) in windows.iter_mut().zip(credit) {
            window.give_back(credit);
        }
    }

    /// A message of the other shard's was dealt with.
    pub(super) fn free(&mut self, worker: WorkerId, class: Class, bytes: usize) {
        let free = &mut self.all[worker.index()].free[class.index()];
        free.messages += 1;
        free.bytes += bytes;
    }

    /// How many things would go to this worker now: answers, and messages that have credit, if any may be passed on.
    pub(super) fn ready(&self, worker: WorkerId, may_pass: bool) -> usize {
        let way = &self.all[worker.index()];
        let windows = way.waiting.iter().zip(&way.windows);
        let passed: usize =
            windows.map(|(waiting, window)| if may_pass && window.is_open() { waiting.len() } else { 0 }).sum();
        way.answers.len() + passed + usize::from(way.free.iter().any(|free| self.is_told(free)))
    }

    /// Whether so much credit has come free that it is told: a quarter of either, since either may be what the other shard is
    /// short of.
    fn is_told(&self, free: &Credit) -> bool {
        free.messages >= self.max.messages.div_ceil(TOLD_AT) || free.bytes >= self.max.bytes.div_ceil(TOLD_AT)
    }

    /// What goes to this worker now. `may_pass`: messages too.
    pub(super) fn take(&mut self, worker: WorkerId, may_pass: bool) -> Outgoing {
        let is_told = self.all[worker.index()].free.iter().any(|free| self.is_told(free));
        let way = &mut self.all[worker.index()];
        let mut outgoing = Outgoing { answers: std::mem::take(&mut way.answers), passed: Vec::new() };
        if is_told {
            outgoing.answers.push(ShardMessage::Credit(std::mem::take(&mut way.free)));
        }
        for (waiting, window) in way.waiting.iter_mut().zip(&mut way.windows) {
            while may_pass
                && window.is_open()
                && let Some(passed) = waiting.pop_front()
            {
                let bytes = passed.publication.bytes();
                window.take(bytes);
                way.waiting_bytes -= bytes;
                outgoing.passed.push(passed);
            }
        }
        outgoing
    }

    /// Whether anything waits for credit of this worker.
    pub(super) fn waits_for(&self, worker: WorkerId) -> bool {
        self.all[worker.index()].waiting.iter().any(|waiting| !waiting.is_empty())
    }

    /// Whether so much waits for credit that no more should be published here.
    pub(super) fn is_congested(&self) -> bool {
        self.all.iter().any(|way| {
            way.waiting_bytes >= self.max.bytes || way.waiting.iter().any(|waiting| waiting.len() >= self.max.messages)
        })
    }

    /// What this shard has of the other's credit, sent and not known to be dealt with, by class. For invariants.
    #[cfg(test)]
    pub(super) fn used(&self, worker: WorkerId) -> [Credit; 2] {
        let windows = &self.all[worker.index()].windows;
        [windows[0].used, windows[1].used]
    }

    /// What has come free for the other shard and was not told, by class. For invariants.
    #[cfg(test)]
    pub(super) fn untold(&self, worker: WorkerId) -> [Credit; 2] {
        self.all[worker.index()].free
    }

    pub(super) fn check_invariants(&self) {
        for way in &self.all {
            let bytes: usize = way.waiting.iter().flatten().map(|passed| passed.publication.bytes()).sum();
            assert_eq!(bytes, way.waiting_bytes);
            for window in &way.windows {
                assert!(window.used.messages <= window.max.messages);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::link::{Publication, Recipient};

    const THERE: WorkerId = WorkerId(1);

    fn passed(bytes: usize) -> Passed {
        let publication = Publication::plain("t", Bytes::from(vec![0; bytes - 1]), crate::link::QoS::AtLeastOnce);
        Passed { publication: Arc::new(publication), token: 1, recipient: Recipient::Subscribers }
    }

    #[test]
    fn what_has_no_credit_waits_in_order_and_goes_with_it() {
        let mut ways = Ways::new(2, Credit { messages: 16, bytes: 1 << 20 });
        (0..10).for_each(|_| ways.pass(THERE, passed(10)));
        assert_eq!(ways.take(THERE, true).passed.len(), 8, "half of the inbox is for each class");
        assert!(ways.take(THERE, true).is_empty() && ways.waits_for(THERE) && !ways.is_congested());
        (0..6).for_each(|_| ways.pass(THERE, passed(10)));
        assert!(ways.is_congested());
        ways.handle_credit(THERE, [Credit { messages: 2, bytes: 20 }, Credit::default()]);
        assert_eq!(ways.take(THERE, true).passed.len(), 2);
        ways.check_invariants();
    }

    /// Whoever waits for credit in bytes has used at least all of it, so that a quarter comes free.
    #[test]
    fn long_messages_never_leave_credit_that_is_not_told() {
        for length in [1, 30, 99, 100, 1_000] {
            let (mut here, mut there) = (
                Ways::new(2, Credit { messages: 1_000, bytes: 200 }),
                Ways::new(2, Credit { messages: 1_000, bytes: 200 }),
            );
            (0..50).for_each(|_| here.pass(THERE, passed(length)));
            let mut arrived = 0;
            for _ in 0..200 {
                for passed in here.take(THERE, true).passed {
                    arrived += 1;
                    there.free(WorkerId(0), passed.class(), passed.publication.bytes());
                }
                for answer in there.take(WorkerId(0), true).answers {
                    let ShardMessage::Credit(credit) = answer else { panic!("{answer:?}") };
                    here.handle_credit(THERE, credit);
                }
            }
            assert_eq!(arrived, 50, "{length}");
        }
    }
}

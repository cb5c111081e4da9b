//! Where a worker is told things: two lanes and one bell.
//!
//! *Commands and answers* are always taken in, and always worked through. Answers are bounded by what was asked: they never
//! find a bound here. What nobody has asked for, a request of the API, is refused where as much waits as may.
//!
//! *Messages that other shards pass on* have credit from this worker ([`super::shard_message`]): what is in the lane is never more
//! than it granted.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::{Doorbell, Outgoing, Passed, WorkerCommand, WorkerId};

/// The worker's inbox holds `limits.inbox_length` commands already, or the worker is gone; the command comes back.
#[derive(Debug)]
pub struct MailboxFull(pub Box<WorkerCommand>);

/// Where things for one worker are put.
#[derive(Clone, Debug)]
pub struct Mailbox {
    commands: Sender<WorkerCommand>,
    passed: Sender<(WorkerId, Vec<Passed>)>,
    bell: Arc<Doorbell>,
    requests_max: usize,
}

/// Where the worker finds them.
#[derive(Debug)]
pub struct Inbox {
    /// Commands and answers.
    pub commands: Receiver<WorkerCommand>,
    /// Messages that other shards pass on, and who does.
    pub passed: Receiver<(WorkerId, Vec<Passed>)>,
}

/// Both ends. While `requests_max` commands wait, no further request is taken. The worker hears `bell`.
#[must_use]
pub fn mailbox(requests_max: usize, bell: Arc<Doorbell>) -> (Mailbox, Inbox) {
    let (commands, commands_in) = unbounded();
    let (passed, passed_in) = unbounded();
    (Mailbox { commands, passed, bell, requests_max }, Inbox { commands: commands_in, passed: passed_in })
}

impl Inbox {
    /// Whether nothing waits in either lane.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty() && self.passed.is_empty()
    }
}

impl Mailbox {
    /// Puts a request and rings. Never waits.
    ///
    /// # Errors
    /// [`MailboxFull`] with the command when as many wait as may, or the worker is gone.
    pub fn send(&self, command: WorkerCommand) -> Result<(), MailboxFull> {
        if self.commands.len() >= self.requests_max {
            return Err(MailboxFull(Box::new(command)));
        }
        self.answer(command)
    }

    /// Puts an answer, or whatever must be heard, and rings. It finds no bound: there is one for each thing asked.
    ///
    /// # Errors
    /// [`MailboxFull`] with the command when the worker is gone.
    pub fn answer(&self, command: WorkerCommand) -> Result<(), MailboxFull> {
        self.put(command)?;
        self.ring();
        Ok(())
    }

    /// As [`Self::answer`], where more may follow: whoever puts it rings when he has put all.
    ///
    /// # Errors
    /// [`MailboxFull`] with the command when the worker is gone.
    pub fn put(&self, command: WorkerCommand) -> Result<(), MailboxFull> {
        self.commands.send(command).map_err(|gone| MailboxFull(Box::new(gone.0)))
    }

    /// Puts what another shard says. What is passed on has credit; a worker that is gone needs nothing.
    pub fn tell(&self, from: WorkerId, outgoing: Outgoing) {
        let Outgoing { answers, passed } = outgoing;
        if !passed.is_empty() {
            let _ = self.passed.send((from, passed));
        }
        if !answers.is_empty() {
            let _ = self.commands.send(WorkerCommand::Peers { from, answers });
        }
        self.ring();
    }

    /// Wakes the worker: something that it looks at each turn has changed.
    pub fn ring(&self) {
        if let Err(error) = self.bell.ring() {
            // Whatever it is rung for is there; the worker finds it on its next turn all the same.
            tracing::warn!(%error, "a worker could not be woken");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn command() -> WorkerCommand {
        WorkerCommand::Shutdown { window: Duration::ZERO }
    }

    #[test]
    fn requests_are_bounded_and_answers_are_not() {
        let (mailbox, inbox) = mailbox(2, Arc::new(Doorbell::new().unwrap()));
        mailbox.send(command()).unwrap();
        mailbox.send(command()).unwrap();
        assert!(mailbox.send(command()).is_err());
        mailbox.answer(command()).unwrap();
        assert_eq!(inbox.commands.try_iter().count(), 3);
        mailbox.send(command()).unwrap();
        drop(inbox);
        assert!(mailbox.answer(command()).is_err(), "nobody is there");
    }
}

//! What goes on when changes are safe: answers to devices and to other shards (decision D8).

use super::Broker;
use super::inflight::Qos2Reply;
use super::journal::{Recording, Waiting};
use super::lifecycle::NO_KEY;
use super::settlement::{NOTHING, Part, Token};
use crate::link::{ChangeMark, Changes};
use crate::slot::SessionSlot;

impl Broker {
    // --- The store --------------------------------------------------------------------------------------------------

    /// From now on what must outlive the process is said: to be called before anything has happened.
    pub fn begin_recording(&mut self, recording: Recording) {
        self.journal.begin(recording);
    }

    /// Whether something has changed that the store was not told.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        self.journal.has_changes()
    }

    /// Hands what has changed to the store, which takes all of it or gives it back. To be called before other shards are told anything: what something causes there is not to be stored before it.
    pub fn hand_over(&mut self, keep: impl FnOnce(Changes) -> Result<(), Changes>) {
        self.journal.hand_over(self.worker, keep);
    }

    /// So many changes are safe: whatever waits for them goes on.
    pub fn handle_safe(&mut self, mark: ChangeMark) {
        self.journal.set_safe(mark.0);
        while let Some(waiting) = self.journal.next_safe() {
            self.go_on(waiting);
        }
        self.spill_safe();
    }

    /// This goes on when all that was recorded so far is safe.
    pub(super) fn when_safe(&mut self, waiting: Waiting) {
        if let Some(waiting) = self.journal.wait(waiting) {
            self.go_on(waiting);
        }
    }

    /// A settlement has one part more, which is done when all that was recorded so far is safe.
    pub(super) fn add_when_safe(&mut self, token: Token) {
        if token != NOTHING {
            self.settlements.add(token);
            self.when_safe(Waiting::Part(token));
        }
    }

    fn go_on(&mut self, waiting: Waiting) {
        match waiting {
            Waiting::Part(token) => self.settle(token, Part::Taken),
            Waiting::Suback { session, waits } => {
                if let Some(session) = self.sessions.resolve(session) {
                    self.handle_joined(session, waits);
                }
            }
            Waiting::Device(session) => {
                if let Some(session) = self.sessions.resolve(session).filter(|&known| self.sessions[known].is_online())
                {
                    self.note_answerable(session);
                }
            }
            Waiting::Backlog(session) => {
                if let Some(session) = self.sessions.resolve(session) {
                    self.note_backlog(session);
                }
            }
            Waiting::Left(slot) => self.read_left(slot),
            Waiting::Prepared(prepared) => self.handle_prepared(*prepared),
        }
    }

    // --- Answers to devices -----------------------------------------------------------------------------------------

    /// Keeps CONNACK until what it says is safe. Nothing else is said to the device before, and nothing of it is read.
    pub fn hold_greeting(&mut self, session: SessionSlot, connack: Vec<u8>) {
        let mark = self.journal.mark();
        self.sessions.inflight(session).greeting = Some(Box::new((mark, connack)));
        let id = self.id(session);
        self.when_safe(Waiting::Device(id));
    }

    /// Whether CONNACK was not said yet.
    #[must_use]
    pub fn is_ungreeted(&self, session: SessionSlot) -> bool {
        self.sessions[session].inflight.as_deref().is_some_and(|inflight| inflight.greeting.is_some())
    }

    /// The CONNACK that may be said now.
    pub fn take_greeting(&mut self, session: SessionSlot) -> Option<Vec<u8>> {
        let inflight = self.sessions[session].inflight.as_deref_mut()?;
        let greeting = inflight.greeting.take_if(|greeting| self.journal.is_safe(greeting.0))?;
        self.sessions.shed_empty_inflight(session);
        self.note_backlog(session);
        Some(greeting.1)
    }

    /// PUBREL or PUBCOMP is to be said when what was recorded so far is safe. `Some`: it is.
    pub fn reply_when_safe(&mut self, session: SessionSlot, reply: Qos2Reply) -> Option<Qos2Reply> {
        let mark = self.journal.mark();
        if self.sessions[session].key == NO_KEY || self.journal.is_safe(mark) {
            return Some(reply);
        }
        let inflight = self.sessions.inflight(session);
        if reply.is_pubrel {
            // Nor is it said again before.
            inflight.set_mark(reply.packet, mark);
        }
        inflight.replies.push_back((mark, reply));
        let id = self.id(session);
        self.when_safe(Waiting::Device(id));
        None
    }

    /// The next PUBREL or PUBCOMP that may be said now.
    pub fn next_reply(&mut self, session: SessionSlot) -> Option<Qos2Reply> {
        let inflight = self.sessions[session].inflight.as_deref_mut()?;
        let &(mark, reply) = inflight.replies.front()?;
        if !self.journal.is_safe(mark) {
            return None;
        }
        inflight.replies.pop_front();
        self.sessions.shed_empty_inflight(session);
        if reply.is_pubrel {
            self.note_backlog(session);
        }
        Some(reply)
    }
}

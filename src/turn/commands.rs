//! What other threads say, what it begins, and what is said to other shards.

use super::{Drain, Io, TOLD_AFTER, Turn};
use crate::link::{WorkerCommand, WorkerEvent, WorkerId};
use crate::metrics::Metric;
use crate::shard::{Broadcast, Listing};
use crate::time::Moment;

/// As many things for another worker go at once, however soon after the last.
const TOLD_AT_ONCE: usize = 64;

impl<I: Io> Turn<I> {
    /// Empties the inbox (decision D12): all that was said, always, and of what other shards pass on as much as can be
    /// delivered. That is never more than they were given credit for, and waits for nobody but this turn's deliver phase.
    pub(super) fn receive_commands(&mut self, now: Moment) {
        if !self.todo.commands {
            // Nobody has rung since it was found empty.
            return self.progress.note_inbox(now);
        }
        self.io.answer_bell();
        self.has_worked = true;
        // What waits for the store is looked at again when it has said something.
        let is_emptied = self.take_commands(now) && (self.take_passed(now) || self.shard.waits_for_store());
        if is_emptied {
            self.todo.commands = false;
            self.progress.note_inbox(now);
        }
    }

    /// `true`: none is left.
    fn take_commands(&mut self, now: Moment) -> bool {
        for _ in 0..self.bounds.commands {
            let Some(command) = self.io.next_command() else { return true };
            self.progress.note_inbox(now);
            self.shard.counters().add(Metric::Commands, 1);
            self.with_others |= command.goes_with_messages();
            self.handle_command(command, now);
        }
        false
    }

    /// `true`: none is left.
    fn take_passed(&mut self, now: Moment) -> bool {
        while !self.shard.has_many_deliveries() {
            let Some((from, passed)) = self.io.next_passed() else { return true };
            self.progress.note_inbox(now);
            self.shard.counters().add(Metric::Commands, 1);
            self.with_others = true;
            self.shard.handle_passed(from, passed);
        }
        false
    }

    fn handle_command(&mut self, command: WorkerCommand, now: Moment) {
        match command {
            WorkerCommand::Describe { request, device } => {
                let description = self.shard.describe(&device, now).map(|mut description| {
                    description.peer = description.peer.or_else(|| self.io.peer(description.connection.slot));
                    Box::new(description)
                });
                self.shard.uplink().push(WorkerEvent::Described { request, description });
            }
            WorkerCommand::List { request, filter } => self.listings.push_back(Listing::new(request, filter)),
            WorkerCommand::Send { request, device, downlink, acknowledge } => {
                self.shard.handle_send(request, &device, &downlink, acknowledge, now);
            }
            WorkerCommand::Disconnect { request, device } => self.shard.handle_disconnect(request, &device, now),
            WorkerCommand::Disown { device, generation, is_loop } => {
                self.shard.handle_disown(&device, generation, is_loop, now);
            }
            WorkerCommand::Broadcast { broadcast, prefix, downlink, per_second } => {
                self.broadcasts.push(Broadcast::new(broadcast, prefix, downlink, per_second, now));
            }
            WorkerCommand::CancelBroadcast { broadcast } => {
                for cancelled in self.broadcasts.extract_if(.., |going| going.number() == broadcast) {
                    self.shard.cancel_broadcast(&cancelled);
                }
            }
            WorkerCommand::Shutdown { window } => {
                let connections = self.shard.len();
                self.drain.get_or_insert(Drain::new(now, window, connections));
            }
            WorkerCommand::Trace(traces) => self.shard.follow(&traces, now),
            WorkerCommand::Authenticated { connection, answer } => {
                self.shard.handle_authenticated(connection, answer, now);
            }
            WorkerCommand::MessageSettled { receipt, accepted } => self.shard.handle_settled(receipt, accepted, now),
            WorkerCommand::PublishWill { device, listener, publication } => {
                self.shard.handle_will(device, listener, *publication, now);
            }
            WorkerCommand::SessionSettled { connection, verdict } => {
                self.shard.handle_session_settled(connection, verdict, now);
            }
            WorkerCommand::Session { request, device, order } => {
                self.shard.handle_session(request, &device, order, now);
            }
            WorkerCommand::SessionWritten { session, waits, is_true } => {
                self.shard.handle_session_written(session, waits, is_true);
            }
            WorkerCommand::Round(round) => self.shard.handle_round(round),
            WorkerCommand::Fence { request } => self.shard.handle_fence(request),
            WorkerCommand::InterestHeld { version } => self.shard.handle_interest_held(version),
            WorkerCommand::GroupServed { group, life, giver } => self.shard.handle_group_served(&group, life, giver),
            WorkerCommand::GiveToGroup { request, group, publication } => {
                self.shard.handle_given_to_group(request, &group, *publication);
            }
            WorkerCommand::Publish { request, publication } => self.shard.handle_publish(request, *publication),
            WorkerCommand::Retain { request, publication } => self.shard.handle_retain(request, *publication),
            WorkerCommand::Safe { mark } => self.shard.handle_safe(mark),
            WorkerCommand::Loaded(loaded) => self.shard.handle_loaded(*loaded, now),
            WorkerCommand::Peers { from, answers } => self.shard.handle_shard_messages(from, answers),
        }
    }

    pub(super) fn advance_listings(&mut self, now: Moment) {
        let Some(listing) = self.listings.front_mut() else { return };
        self.has_worked = true;
        if !self.shard.advance_listing(listing, self.bounds.listed_slots) {
            return;
        }
        let request = listing.request();
        let mut devices = self.shard.finish_listing(listing, now);
        for description in &mut devices {
            description.peer = description.peer.or_else(|| self.io.peer(description.connection.slot));
        }
        self.shard.uplink().push(WorkerEvent::Listed { request, devices });
        self.listings.pop_front();
    }

    /// A trace of a network has begun: whoever is there already and comes from it is looked for, a slice a turn.
    pub(super) fn advance_traces(&mut self, now: Moment) {
        if self.shard.has_untraced() {
            self.has_worked = true;
            let io = &self.io;
            self.shard.advance_traces(self.bounds.listed_slots, |slot| io.peer(slot), now);
        }
    }

    /// A network is denied now: whoever is there and comes from it is ended, a slice a turn.
    pub(super) fn advance_denied(&mut self, now: Moment) {
        if self.shard.has_undenied() {
            self.has_worked = true;
            let io = &self.io;
            self.shard.advance_denied(self.bounds.listed_slots, |slot| io.peer(slot), now);
        }
    }

    pub(super) fn advance_broadcasts(&mut self, now: Moment) {
        self.has_worked |= self.broadcasts.iter().any(|broadcast| broadcast.next_due() <= now);
        let (shard, slots) = (&mut self.shard, self.bounds.broadcast_slots);
        self.broadcasts.retain_mut(|broadcast| !shard.advance_broadcast(broadcast, slots, now));
    }

    // --- Messages ---------------------------------------------------------------------------------------------------

    pub(super) fn deliver(&mut self, now: Moment) {
        self.has_worked |= self.shard.has_deliveries();
        self.shard.deliver(now);
        for load in self.shard.take_loads() {
            self.io.load(load);
        }
    }

    /// What must outlive the process goes to the store, before other shards are told what it causes there.
    pub(super) fn hand_over(&mut self) {
        if self.shard.has_changes() {
            let io = &mut self.io;
            self.shard.hand_over(|changes| io.keep(changes));
            // What the store does not take is offered again: that is no work.
            self.has_worked |= !self.shard.has_changes();
        }
    }

    /// What was published here and is wanted elsewhere goes there, as far as there is credit; and so do answers. At once, if
    /// that worker was told nothing for a while; else a little later, together with what comes until then: waking it for each
    /// message would cost more than the message.
    pub(super) fn tell_peers(&mut self, now: Moment) {
        self.todo.peers = None;
        for worker in (0..self.workers).map(WorkerId) {
            let ready = self.shard.outgoing(worker);
            let told = &mut self.told[worker.index()];
            if ready > 0 && ready < TOLD_AT_ONCE && now.since(*told) < TOLD_AFTER {
                let at = told.plus(TOLD_AFTER);
                self.todo.peers = Some(self.todo.peers.map_or(at, |earlier| earlier.min(at)));
                continue;
            }
            if ready > 0 || !self.shard.waits_for(worker) {
                self.progress.note_outgoing(worker.index(), now);
            }
            if ready > 0 {
                *told = now;
                (self.has_worked, self.with_others) = (true, true);
                let outgoing = self.shard.take_outgoing(worker);
                self.io.tell_peer(worker, outgoing);
            }
        }
    }
}

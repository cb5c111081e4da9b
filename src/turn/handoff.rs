//! Connections that come home, and connections that leave for theirs.

use std::ops::Range;

use super::reading::Left;
use super::{Handoff, HandoffAck, Io, Received, Turn};
use crate::link::{ConnectionId, WorkerId};
use crate::metrics::Metric;
use crate::time::Moment;

impl<I: Io> Turn<I> {
    /// Takes in connections whose home is here, and hears what became of those that were sent away.
    pub(super) fn receive_moved(&mut self, now: Moment) {
        for _ in 0..self.todo.handoffs.len() {
            let Some(from) = self.todo.handoffs.pop_front() else { break };
            if self.receive_from(from, now) == Left::More {
                self.todo.handoffs.push_back(from);
            }
        }
    }

    fn receive_from(&mut self, from: WorkerId, now: Moment) -> Left {
        for _ in 0..self.bounds.handoffs {
            if self.io.receive_handoffs(from) == Received::Nothing {
                return Left::Nothing;
            }
            self.has_worked = true;
            while let Some(handoff) = self.io.next_handoff() {
                match handoff {
                    Handoff::Connection { origin, image, socket } => {
                        let taken = socket.is_some_and(|socket| self.take_in(from, origin, image, socket, now));
                        if !taken {
                            self.shard.counters().add(Metric::MovesRefused, 1);
                        }
                        self.io.acknowledge(from, HandoffAck { origin, taken });
                    }
                    Handoff::Ack(HandoffAck { origin, taken: true }) => self.shard.handle_moved(origin),
                    Handoff::Ack(HandoffAck { origin, taken: false }) => self.keep_refused(origin, now),
                }
            }
        }
        Left::More
    }

    fn take_in(
        &mut self,
        from: WorkerId,
        origin: ConnectionId,
        image: Range<usize>,
        socket: I::Socket,
        now: Moment,
    ) -> bool {
        if self.drain.is_some() || !self.admission.has_place(self.io.sockets()) {
            return false;
        }
        let Ok(slot) = self.shard.unpack(self.io.image(image), now) else { return false };
        match self.io.take_in(slot, socket) {
            Ok(()) => {
                self.admission.arrive(slot, from, origin);
                let io = &self.io;
                self.shard.trace_arrived(slot, || io.peer(slot), now);
                self.shard.handle_arrival(slot, now);
                self.shard.check_arrival(slot, || io.peer(slot), now);
            }
            Err(_) => self.shard.handle_reset(slot, now),
        }
        true
    }

    /// A connection that its home does not take ends here, in order.
    fn keep_refused(&mut self, id: ConnectionId, now: Moment) {
        if !self.shard.is_current(id) {
            return;
        }
        self.admission.stay(self.shard.worker(), id);
        // One that cannot be polled any more is told all the same, and lingers no longer than it may.
        let _ = self.io.register(id.slot);
        self.shard.handle_move_refused(id, now);
        // What it had still to say may have found room before it left; nobody tells.
        self.todo.writes.push(id.slot);
    }

    /// Sends connections to their homes. After the flush: what they have still to say travels along as unsent.
    pub(super) fn move_away(&mut self, now: Moment) {
        while let Some((id, home)) = self.shard.next_move() {
            self.has_worked = true;
            // Before the other worker has it: the old poll would go on reporting it.
            let offered = self.io.unregister(id.slot).and_then(|()| self.io.offer(home, id));
            match offered {
                Ok(()) => self.admission.depart(self.shard.worker(), id),
                Err(_) => self.shard.handle_move_refused(id, now),
            }
        }
        let mut refused = Vec::new();
        self.io.send_handoffs(&self.shard, &mut refused);
        for id in refused {
            self.keep_refused(id, now);
        }
    }
}

//! The only writer to sockets.

use super::{Io, Turn};
use crate::metrics::Metric;
use crate::slot::ConnectionSlot;
use crate::time::Moment;

impl<I: Io> Turn<I> {
    /// Everything that this turn has to say, and what earlier ones could not.
    pub(super) fn flush(&mut self, now: Moment) {
        let mut writes = std::mem::take(&mut self.todo.writes);
        for &slot in &writes {
            self.write_unsent(slot, now);
        }
        let mut transmit = std::mem::take(&mut self.transmit);
        self.shard.take_transmit(&mut transmit);
        self.has_worked |= !transmit.is_empty();
        for (slot, bytes) in transmit.segments() {
            self.write(slot, bytes, now);
        }
        // Not before all is written: a connection may have more than one segment, and the goodbye is in the last.
        for slot in writes.drain(..).chain(transmit.segments().map(|(slot, _)| slot)) {
            self.finish_writing(slot);
        }
        transmit.clear();
        self.transmit = transmit;
        self.todo.writes = writes;
        if self.shard.has_probed() {
            let flushed = self.io.now();
            self.shard.handle_flushed(flushed);
        }
    }

    fn write(&mut self, slot: ConnectionSlot, bytes: &[u8], now: Moment) {
        // What a connection on its way home has still to say travels with it, and leaves together with the greeting.
        if self.shard.is_moving(slot) || !self.shard.unsent(slot).is_empty() {
            return self.shard.handle_unsent(slot, bytes, now);
        }
        if bytes.is_empty() {
            // It has nothing to say and ends.
            return;
        }
        match self.io.write(slot, bytes) {
            Ok(count) => {
                self.shard.counters().add(Metric::SentBytes, count as u64);
                if count < bytes.len() {
                    self.shard.handle_unsent(slot, &bytes[count..], now);
                }
            }
            Err(_) => self.shard.handle_reset(slot, now),
        }
    }

    fn write_unsent(&mut self, slot: ConnectionSlot, now: Moment) {
        if !self.shard.holds(slot) || self.shard.unsent(slot).is_empty() {
            return;
        }
        match self.io.write(slot, self.shard.unsent(slot)) {
            Ok(count) => {
                self.has_worked |= count > 0;
                self.shard.counters().add(Metric::SentBytes, count as u64);
                self.shard.handle_sent(slot, count);
            }
            Err(_) => self.shard.handle_reset(slot, now),
        }
    }

    /// A connection that lingers and has sent all ends its side of the stream, so that the peer sees an end, not a
    /// reset.
    fn finish_writing(&mut self, slot: ConnectionSlot) {
        if self.shard.take_shutdown(slot) {
            self.has_worked = true;
            self.io.shut_write(slot);
        }
    }
}

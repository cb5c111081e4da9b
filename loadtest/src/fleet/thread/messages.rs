//! Messages: those that devices publish, each at its time, and those that come to them.

use super::super::device::{Failure, ReadMode};
use super::super::ledger::Stamp;
use super::super::{Publishing, Whose};
use super::{Count, Duty, FleetThread, record};
use crate::clock::TICK_MICROS;

/// Messages that one device publishes in one turn at most, when it is behind its time.
const IN_ONE_TURN: usize = 64;
/// When a device that has published so many messages publishes the next, in milliseconds; 0: never.
pub(super) fn next(publishing: &Publishing, device: u32, published: u32, now_ms: u32) -> u32 {
    if published >= publishing.rounds || !publishing.devices.contains(&device) {
        return 0;
    }
    let due = publishing.due(device, published.into()).div_ceil(TICK_MICROS) as u32;
    // What is due already is done in the next turn.
    due.max(now_ms + 1)
}

impl FleetThread {
    /// Publishes all that is due and may be unacknowledged; false when nothing is due.
    pub(super) fn publish_due(&mut self, index: u32) -> Result<bool, Failure> {
        let number = self.number_of(index);
        let Duty::Publish(publishing) = &self.duty else { return Ok(false) };
        if !publishing.devices.contains(&number) {
            return Ok(false);
        }
        let device = &mut self.devices[index as usize];
        let (before, mut is_full) = (device.published, false);
        for _ in 0..IN_ONE_TURN {
            let round = device.published;
            let due = publishing.due(number, round.into());
            if round >= publishing.rounds || due > self.now {
                break;
            }
            // Whoever sends more than the server takes at a time is ended for it; the next waits, and is late.
            is_full = publishing.acknowledged.is_some() && device.unacknowledged >= device.window;
            if is_full {
                break;
            }
            let stamp = Stamp { slot: u64::from(round) * u64::from(self.options.devices) + u64::from(number), due };
            self.payload.clear();
            stamp.encode(publishing.bytes, &mut self.payload);
            let id = if publishing.acknowledged.is_some() { round + 1 } else { 0 };
            self.options.protocol.publish(&publishing.topic, id, &self.payload, &mut self.out.plain);
            device.published += 1;
            device.unacknowledged += u16::from(publishing.acknowledged.is_some());
            self.counts.add(Count::MessagesSent, 1);
            device.seal(&mut self.out)?;
        }
        let has_published = device.published > before;
        self.write(index)?;
        Ok(has_published || is_full)
    }

    pub(super) fn handle_message(&mut self, index: u32, stamp: Option<Stamp>) {
        self.counts.add(Count::MessagesReceived, 1);
        let (Some(stamp), Some(listening)) = (stamp, &self.listening) else { return };
        let (ledger, number) = (&listening.ledger, self.number_of(index));
        let is_first = match listening.whose {
            Whose::Own => ledger.note(stamp.slot, number),
            Whose::ToAll => ledger.note(ledger.slot(number, ledger.round(stamp.slot)), number),
            Whose::FromAny => ledger.note(stamp.slot, ledger.device(stamp.slot)),
        };
        if is_first {
            record(&mut self.findings.messages, self.now.saturating_sub(stamp.due));
        }
    }

    pub(super) fn handle_acknowledgement(&mut self, index: u32, id: u32) {
        let Duty::Publish(publishing) = &self.duty else { return };
        let Some(ledger) = &publishing.acknowledged else { return };
        let number = self.number_of(index);
        let published = self.devices[index as usize].published;
        let Some(round) = self.options.protocol.acknowledged_round(id, published).map(u64::from) else { return };
        if ledger.note(ledger.slot(number, round), number) {
            let due = publishing.due(number, round);
            record(&mut self.findings.acknowledged, self.now.saturating_sub(due));
        }
    }

    pub(super) fn stop_reading(&mut self, index: u32) {
        let device = &mut self.devices[index as usize];
        if !device.is_up() || device.had_stopped_reading() {
            return;
        }
        device.read_mode = ReadMode::Stopped;
        self.counts.add(Count::NotReading, 1);
        self.plan(index);
    }

    /// Reads what has come meanwhile, and goes on; an end that is found now was not earned.
    pub(super) fn thaw(&mut self, index: u32) {
        let device = &mut self.devices[index as usize];
        if device.read_mode != ReadMode::Stopped {
            return;
        }
        device.read_mode = ReadMode::Reading;
        self.counts.sub(Count::NotReading, 1);
        match self.read(index, true) {
            Ok(()) => self.plan(index),
            Err(failure) => self.fail(index, failure),
        }
    }

    /// Reads on; whoever was cut off meanwhile is found out.
    pub(super) fn resume_reading(&mut self, index: u32) {
        let device = &mut self.devices[index as usize];
        if device.read_mode != ReadMode::Stopped {
            return;
        }
        device.read_mode = ReadMode::Resumed;
        if let Err(failure) = self.read(index, true) {
            self.fail(index, failure);
        }
    }
}

//! What a shard says to its devices because somebody asked it to.

use std::time::Duration;

use super::Shard;
use super::takeovers::RETRY_AFTER_MS;
use crate::config::Protocol;
use crate::connection::Termination;
use crate::link::{CloseReason, Downlink, Outcome, WorkerEvent};
use crate::slot::ConnectionSlot;
use crate::time::Moment;

/// How often a broadcast tells how far it has come.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// A broadcast in progress. It walks the slots once: whoever is connected all the while is told once, whoever comes or
/// goes meanwhile may or may not be.
pub struct Broadcast {
    number: u64,
    prefix: Box<str>,
    downlink: Downlink,
    per_second: u32,
    began: Moment,
    reported: Moment,
    position: usize,
    sent: u64,
    refused: u64,
}

impl Broadcast {
    /// A broadcast that begins now.
    #[must_use]
    pub fn new(number: u64, prefix: Box<str>, downlink: Downlink, per_second: u32, now: Moment) -> Self {
        let per_second = per_second.max(1);
        Self { number, prefix, downlink, per_second, began: now, reported: now, position: 0, sent: 0, refused: 0 }
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// How many more devices may be told by now.
    fn allowance(&self, now: Moment) -> u64 {
        let elapsed = now.since(self.began).as_micros() as u64;
        // The first is due at once.
        let allowed = 1 + elapsed.saturating_mul(u64::from(self.per_second)) / 1_000_000;
        allowed.saturating_sub(self.tried())
    }

    /// How many devices it has told, or could not, so far.
    fn tried(&self) -> u64 {
        self.sent + self.refused
    }

    /// When it goes on at the latest: when the next device may be told, or when it tells how far it has come.
    #[must_use]
    pub fn next_due(&self) -> Moment {
        let micros = self.tried().saturating_mul(1_000_000).div_ceil(u64::from(self.per_second));
        let next = self.began.plus(Duration::from_micros(micros));
        next.min(self.reported.plus(REPORT_INTERVAL))
    }

    fn report(&self, is_over: bool) -> WorkerEvent {
        WorkerEvent::Broadcast { broadcast: self.number, sent: self.sent, refused: self.refused, is_over }
    }
}

impl Shard {
    /// Says something to one device. The answer goes up at once, or with the device's ACK.
    pub fn handle_send(&mut self, request: u64, device: &str, downlink: &Downlink, acknowledge: bool, now: Moment) {
        let outcome = match self.find(device) {
            Some(slot) => self.send(slot, downlink, acknowledge.then_some(request), now),
            None => Outcome::Offline,
        };
        if !(acknowledge && outcome == Outcome::Delivered) {
            self.uplink.push(WorkerEvent::Sent { request, outcome });
        }
    }

    /// Ends a device's connection because its owner wants it.
    pub fn handle_disconnect(&mut self, request: u64, device: &str, now: Moment) {
        let outcome = match self.find(device) {
            Some(slot) => {
                self.end(slot, &Termination::new(CloseReason::Requested), now);
                Outcome::Delivered
            }
            None => Outcome::Offline,
        };
        self.uplink.push(WorkerEvent::Sent { request, outcome });
    }

    /// Another gateway of the fleet has the device now: this connection of it ends, and no newer one (decision D9).
    pub fn handle_disown(&mut self, device: &str, generation: u64, is_loop: bool, now: Moment) {
        let Some(slot) = self.find(device) else { return };
        if self.full_generation(self.connections[slot].generation()) != generation {
            return;
        }
        let termination = if is_loop {
            let detail = "two gateways are asked for this id again and again, and the other one has it now";
            let retry_after = self.random.u32(RETRY_AFTER_MS);
            Termination::because(CloseReason::TakeoverLoop, detail).with_retry_after(retry_after)
        } else {
            self.broker.forget_delayed_will(slot);
            Termination::because(CloseReason::TakenOver, "another gateway of the fleet has it now")
        };
        self.end(slot, &termination, now);
    }

    /// Goes on with a broadcast, by at most `slots` slots. `true`: it is over.
    pub fn advance_broadcast(&mut self, broadcast: &mut Broadcast, slots: usize, now: Moment) -> bool {
        let mut allowance = broadcast.allowance(now);
        let end = (broadcast.position + slots).min(self.slots);
        while broadcast.position < end && allowance > 0 {
            let slot = ConnectionSlot::at(broadcast.position);
            broadcast.position += 1;
            let wanted = self.connections.get(slot).is_some_and(|connection| {
                connection.is_device() && connection.device().starts_with(&*broadcast.prefix)
            });
            if wanted {
                match self.send(slot, &broadcast.downlink, None, now) {
                    Outcome::Delivered => broadcast.sent += 1,
                    _ => broadcast.refused += 1,
                }
                allowance -= 1;
            }
        }
        let is_over = broadcast.position >= self.slots;
        if is_over || now.since(broadcast.reported) >= REPORT_INTERVAL {
            broadcast.reported = now;
            self.uplink.push(broadcast.report(is_over));
        }
        is_over
    }

    /// Goes no further with a broadcast.
    pub fn cancel_broadcast(&mut self, broadcast: &Broadcast) {
        self.uplink.push(broadcast.report(true));
    }

    fn send(&mut self, slot: ConnectionSlot, downlink: &Downlink, request: Option<u64>, now: Moment) -> Outcome {
        if let Protocol::Mqtt(_) = self.settings_of(slot).protocol {
            return self.send_to_session(slot, downlink, request);
        }
        let message = if request.is_some() { self.next_message() } else { 0 };
        let request = request.unwrap_or(0);
        let said = self.with(slot, now, |connection, settings, cx| {
            connection.handle_downlink(downlink, message, request, settings, cx)
        });
        match said {
            Ok(outcome) => outcome,
            Err(termination) => {
                // What was awaited goes up as unacknowledged; this one among them.
                self.end(slot, &termination, now);
                if message == 0 { Outcome::Offline } else { Outcome::Delivered }
            }
        }
    }

    /// An id for a message that is to be acknowledged: never 0, and not given out again for 2^32 messages, so that a
    /// late ACK cannot be taken for another's.
    fn next_message(&mut self) -> u32 {
        self.messages = self.messages.checked_add(1).unwrap_or(1);
        self.messages
    }
}

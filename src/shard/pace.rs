//! How fast devices may send: for each that has sent something of late, up to when that is paid for at its listener's rates
//! (`listener.rates`). Whoever has sent more is read no further until it is paid, then told so and kept out.
//!
//! A device that says nothing costs nothing: what is paid is forgotten, a little with each that is charged.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use super::Shard;
use crate::config::Protocol;
use crate::connection::{Connection, RateRules, Termination};
use crate::link::{CloseReason, ConnectionId, WorkerEvent};
use crate::metrics::Metric;
use crate::slot::ConnectionSlot;
use crate::time::{Moment, TICK_MICROS, Tick};

/// Others that are looked at with each that is charged: more than one, so that what is paid goes faster than it comes.
const LOOKED_AT: usize = 2;

/// What one device has sent.
#[derive(Clone, Copy, Debug)]
struct Pace {
    generation: u32,
    /// Up to when its messages are paid for.
    messages: Moment,
    /// The same of its bytes.
    bytes: Moment,
    /// Since when it has sent more than its rate, without a moment at which all was paid.
    over_since: Option<Moment>,
}

/// What is to be done with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RateDecision {
    /// Nothing.
    Within,
    /// It is read no further before this.
    Hold(Moment),
    /// It has sent more than its rate for too long.
    Over,
}

/// Of all devices of one shard.
#[derive(Default)]
pub(super) struct Paces {
    by_slot: HashMap<ConnectionSlot, Pace>,
    /// All of them, in the order in which they are looked at.
    order: VecDeque<ConnectionId>,
    /// Who is read on, and in which tick.
    held: BinaryHeap<Reverse<(u64, ConnectionSlot, u32)>>,
}

impl Paces {
    /// A device has sent this.
    pub fn charge(
        &mut self,
        id: ConnectionId,
        rules: &RateRules,
        messages: u64,
        bytes: u64,
        now: Moment,
    ) -> RateDecision {
        self.forget_paid(now);
        let fresh = Pace { generation: id.generation, messages: now, bytes: now, over_since: None };
        let pace = self.by_slot.entry(id.slot).or_insert_with(|| {
            self.order.push_back(id);
            fresh
        });
        if pace.generation != id.generation {
            *pace = fresh;
        }
        if pace.messages <= now && pace.bytes <= now {
            pace.over_since = None;
        }
        let after = |paid: Moment, count: u64, per_second: u32| {
            let cost = count.saturating_mul(1_000_000).checked_div(u64::from(per_second)).unwrap_or(0);
            paid.max(now).plus(Duration::from_micros(cost))
        };
        pace.messages = after(pace.messages, messages, rules.messages_per_second);
        pace.bytes = after(pace.bytes, bytes, rules.bytes_per_second);
        let owed = pace.messages.max(pace.bytes).since(now);
        let Some(beyond) = owed.checked_sub(rules.burst).filter(|beyond| !beyond.is_zero()) else {
            return RateDecision::Within;
        };
        let since = *pace.over_since.get_or_insert(now);
        let is_over = rules.patience.is_some_and(|patience| now.since(since) >= patience);
        if is_over { RateDecision::Over } else { RateDecision::Hold(now.plus(beyond)) }
    }

    /// A device is read no further before `until`.
    pub fn hold(&mut self, id: ConnectionId, until: Moment) {
        self.held.push(Reverse((until.micros().div_ceil(TICK_MICROS), id.slot, id.generation)));
    }

    /// When the next one is read on.
    pub fn next(&self) -> Option<Tick> {
        self.held.peek().map(|&Reverse((tick, ..))| Tick(tick as u32))
    }

    /// Whoever is read on now.
    pub fn next_due(&mut self, now: Moment) -> Option<ConnectionId> {
        let &Reverse((tick, slot, generation)) = self.held.peek()?;
        if tick > now.micros() / TICK_MICROS {
            return None;
        }
        self.held.pop();
        Some(ConnectionId { slot, generation })
    }

    /// A connection has ended.
    pub fn forget(&mut self, slot: ConnectionSlot) {
        if !self.by_slot.is_empty() {
            self.by_slot.remove(&slot);
        }
    }

    fn forget_paid(&mut self, now: Moment) {
        for _ in 0..LOOKED_AT {
            let Some(id) = self.order.pop_front() else { return };
            match self.by_slot.get(&id.slot) {
                Some(pace) if pace.messages <= now && pace.bytes <= now => {
                    self.by_slot.remove(&id.slot);
                }
                Some(_) => self.order.push_back(id),
                None => {}
            }
        }
        if self.by_slot.is_empty() {
            // What a storm has left goes back.
            self.by_slot = HashMap::new();
            self.order = VecDeque::new();
        }
    }
}

impl Shard {
    /// What counts of messages so far, over all devices of the protocol that this one speaks.
    pub(super) fn messages_of(&self, slot: ConnectionSlot) -> u64 {
        let figures = match self.connections.get(slot).map(|_| &self.settings_of(slot).protocol) {
            Some(Protocol::Mqtt(_)) => [Metric::Published, Metric::DroppedUnauthorized],
            _ => [Metric::MessagesReceived, Metric::MessagesDropped],
        };
        figures.map(|figure| self.counters.value(figure)).iter().sum()
    }

    /// A device has sent this. Where that is more than it may, its socket is read no further for a while: its own system makes
    /// it wait. Where it goes on so for longer than anybody is waited for, it is told so and kept out.
    pub(super) fn charge(&mut self, slot: ConnectionSlot, rules: &RateRules, messages: u64, bytes: u64, now: Moment) {
        if !self.connections.get(slot).is_some_and(Connection::is_device) {
            return;
        }
        let id = self.id(slot);
        match self.paces.charge(id, rules, messages, bytes, now) {
            RateDecision::Within => {}
            RateDecision::Hold(until) => {
                self.connections[slot].hold();
                self.counters.add(Metric::RateHeld, 1);
                self.paces.hold(id, until);
            }
            RateDecision::Over => {
                let span = rules.keep_out;
                if !span.is_zero() {
                    let device = self.connections[slot].device().into();
                    self.uplink.push(WorkerEvent::KeepOut { device, span });
                }
                let detail = "it sent more than listener.rates allows for longer than listener.rates.patience";
                let retry_after = u32::try_from(span.as_millis()).unwrap_or(u32::MAX);
                let termination = Termination::because(CloseReason::RateExceeded, detail).with_retry_after(retry_after);
                self.end(slot, &termination, now);
            }
        }
    }

    /// Reads at most so many of those on whose rate has caught up.
    pub(super) fn release_held(&mut self, now: Moment, limit: usize) {
        for _ in 0..limit {
            let Some(id) = self.paces.next_due(now) else { return };
            if self.is_current(id) {
                self.connections[id.slot].resume();
                self.ready.push(id.slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: RateRules = RateRules {
        messages_per_second: 10,
        bytes_per_second: 1_000,
        burst: Duration::from_secs(2),
        patience: Some(Duration::from_secs(5)),
        keep_out: Duration::ZERO,
    };

    const fn id(slot: u32) -> ConnectionId {
        ConnectionId { slot: ConnectionSlot(slot), generation: 1 }
    }

    fn at(millis: u64) -> Moment {
        Moment::from_micros(millis * 1_000)
    }

    #[test]
    fn a_device_has_a_burst_then_waits_for_what_it_owes_and_then_is_over() {
        let mut paces = Paces::default();
        assert_eq!(paces.charge(id(1), &RULES, 20, 100, at(0)), RateDecision::Within);
        assert_eq!(paces.charge(id(1), &RULES, 5, 100, at(0)), RateDecision::Hold(at(500)));
        assert_eq!(paces.charge(id(2), &RULES, 1, 100, at(0)), RateDecision::Within, "others have their own");
        // Bytes have a rate of their own.
        assert_eq!(paces.charge(id(3), &RULES, 1, 3_000, at(0)), RateDecision::Hold(at(1_000)));
        // It goes on as soon as it may, and never comes to have paid all.
        for second in 1..5 {
            assert_eq!(
                paces.charge(id(1), &RULES, 10, 0, at(second * 1_000)),
                RateDecision::Hold(at(second * 1_000 + 500))
            );
        }
        assert_eq!(paces.charge(id(1), &RULES, 10, 0, at(5_000)), RateDecision::Over);
        // A pause in which all is paid begins the patience anew.
        assert_eq!(paces.charge(id(1), &RULES, 25, 0, at(60_000)), RateDecision::Hold(at(60_500)));
        let endless = RateRules { patience: None, ..RULES };
        assert!((0..100).all(|n| matches!(paces.charge(id(4), &endless, 100, 0, at(n)), RateDecision::Hold(_))));
    }

    #[test]
    fn whoever_is_held_is_due_in_its_turn_and_not_before() {
        let mut paces = Paces::default();
        paces.hold(id(1), at(450));
        paces.hold(id(2), at(120));
        assert_eq!(paces.next(), Some(Tick(2)));
        assert_eq!(paces.next_due(at(199)), None);
        assert_eq!(paces.next_due(at(200)), Some(id(2)));
        assert_eq!(paces.next_due(at(499)), None);
        assert_eq!((paces.next_due(at(500)), paces.next()), (Some(id(1)), None));
    }

    #[test]
    fn what_is_paid_is_forgotten_and_a_slot_with_somebody_else_begins_anew() {
        let mut paces = Paces::default();
        for slot in 0..1_000 {
            paces.charge(id(slot), &RULES, 1, 10, at(0));
        }
        assert_eq!(paces.by_slot.len(), 1_000);
        for _ in 0..1_000 {
            paces.charge(id(0), &RULES, 0, 1, at(60_000));
        }
        assert!(paces.by_slot.len() <= 1 && paces.order.len() <= 1, "{} {}", paces.by_slot.len(), paces.order.len());
        paces.charge(id(7), &RULES, 1_000, 0, at(60_000));
        let next = ConnectionId { slot: ConnectionSlot(7), generation: 2 };
        assert_eq!(paces.charge(next, &RULES, 1, 0, at(60_000)), RateDecision::Within);
    }
}

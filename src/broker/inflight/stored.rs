//! What of a session lies in the store alone: since its device is away, and until all of it was read again.
//!
//! ```text
//!                 spill: everything up to a number is safe
//!   in memory ──────────────────────────────────────────────▶ stored
//!       ▲                                                       │ its device is there, and takes what was read
//!       │ the last piece                                        ▼
//!       └───────────────────────────────────────────────────  read, piece by piece
//!
//!   the queue:   read again │ stored                │ came later            │ beyond the bound
//!                  front ───┤ after < number ≤ through │ number > through    │
//! ```
//!
//! The numbers say where a message lies, so that none is lost between a piece that is being read and what comes meanwhile, and none
//! is there twice: whatever is in memory and not yet read again has a larger number than whatever is stored.

use super::{Delivery, Inflight, Sending};

/// What lies in the store alone, of one session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Stored {
    /// All of it has numbers up to this one; 0: there is none.
    pub(in super::super) through: u64,
    /// Bytes of those that were not sent.
    pub(in super::super) bytes: u64,
    /// How many were not sent. Those that were are in `outbound`, without what they say.
    pub(in super::super) messages: u32,
}

/// How far it was read again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    /// Up to this number.
    after: u64,
    /// So many of the queue, from the front, were read and not sent yet; the stored ones come behind them.
    front: usize,
    step: Step,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    /// Nothing is wanted now.
    #[default]
    Idle,
    /// The next piece is to be asked for, as soon as it is its turn.
    Listed(u32),
    /// It was asked for.
    Asked(u32),
}

impl Inflight {
    /// One of whose messages so many are stored.
    pub(in super::super) fn of_stored(stored: Stored) -> Self {
        Self { stored, ..Self::default() }
    }

    /// A session of another gateway: this was sent and lies in the store, and this waits there. All of it before what came here.
    pub(in super::super) fn adopt(&mut self, stored: Stored, outbound: Vec<(u64, u16, Sending)>) {
        debug_assert!(self.outbound.is_empty(), "nothing is sent to a device that is away");
        self.stored.through = self.stored.through.max(stored.through);
        self.stored.messages += stored.messages;
        self.stored.bytes += stored.bytes;
        for (number, packet, state) in outbound {
            self.restore_outbound(packet, state, number);
        }
    }

    /// What is stored.
    pub(in super::super) fn stored(&self) -> Stored {
        self.stored
    }

    pub(in super::super) fn has_stored(&self) -> bool {
        self.stored.through != 0
    }

    /// No message that lies in the store alone and was not sent has a lesser number; `None`: there is none.
    pub(super) fn first_stored(&self) -> Option<u64> {
        (self.stored.messages > 0).then_some(self.reading.after + 1)
    }

    /// Whether a message that is stored is the next to be sent.
    pub(super) fn is_next_stored(&self) -> bool {
        self.stored.messages > 0 && self.reading.front == 0
    }

    /// The first of the queue is taken.
    pub(super) fn note_taken(&mut self) {
        self.reading.front = self.reading.front.saturating_sub(1);
    }

    /// It is there again.
    pub(super) fn note_put_back(&mut self) {
        self.reading.front += usize::from(self.has_stored());
    }

    /// Whether messages are in memory that could lie in the store alone.
    pub(in super::super) fn has_unspilled(&self) -> bool {
        !self.queue.is_empty() || self.outbound.iter().any(|outbound| matches!(outbound.state, Sending::Sent(_)))
    }

    /// The device is away, and everything recorded up to this number is safe: it goes from memory, what was read again too.
    pub(in super::super) fn spill(&mut self, through: u64) {
        let through = through.max(self.stored.through);
        let is_safe = |delivery: &Delivery| (1..=through).contains(&delivery.number);
        let stored = &mut self.stored;
        self.queue.retain(|delivery| {
            if is_safe(delivery) {
                stored.messages += 1;
                stored.bytes += delivery.publication.bytes() as u64;
            }
            !is_safe(delivery)
        });
        self.kept = self.queue.len();
        self.kept_bytes = self.queue.iter().map(|delivery| delivery.publication.bytes()).sum();
        let mut has_sent = false;
        for outbound in &mut self.outbound {
            if let Sending::Sent(delivery) = &outbound.state
                && is_safe(delivery)
            {
                self.outbound_bytes -= delivery.publication.bytes();
                outbound.state = Sending::Stored { qos: delivery.qos };
            }
            has_sent |= matches!(outbound.state, Sending::Stored { .. });
        }
        if self.queue.is_empty() {
            self.queue = std::collections::VecDeque::new();
        }
        self.reading = Reading::default();
        self.stored.through = if self.stored.messages > 0 || has_sent { through } else { 0 };
    }

    /// Forgets that something was stored when nothing is any more.
    fn shed_stored(&mut self) {
        let is_stored = |outbound: &super::Outbound| matches!(outbound.state, Sending::Stored { .. });
        if self.stored.messages == 0 && !self.outbound.iter().any(is_stored) {
            (self.stored, self.reading) = (Stored::default(), Reading::default());
        }
    }

    /// Whether the next piece is wanted and nobody was told; then it is `serial` that is listed.
    pub(in super::super) fn list_reading(&mut self, serial: u32) -> bool {
        self.shed_stored();
        let is_wanted = self.has_stored() && self.reading.step == Step::Idle;
        if is_wanted {
            self.reading.step = Step::Listed(serial);
        }
        is_wanted
    }

    /// Whether this one is listed.
    pub(in super::super) fn is_listed(&self, serial: u32) -> bool {
        self.reading.step == Step::Listed(serial)
    }

    /// The next piece is asked for: behind which number, and up to which.
    pub(in super::super) fn begin_reading(&mut self, serial: u32) -> (u64, u64) {
        self.reading.step = Step::Asked(serial);
        (self.reading.after, self.stored.through)
    }

    /// Whether this piece is waited for: otherwise the device has gone in the meantime.
    pub(in super::super) fn is_asked(&self, serial: u32) -> bool {
        self.reading.step == Step::Asked(serial)
    }

    /// It could not be read.
    pub(in super::super) fn end_reading(&mut self) {
        self.reading.step = Step::Idle;
    }

    /// A piece was read, each message with the packet identifier under which it was sent. What was sent and is acknowledged by now is
    /// not wanted any more.
    pub(in super::super) fn take_read(&mut self, pieces: Vec<(Delivery, Option<u16>)>, is_last: bool) {
        self.reading.step = Step::Idle;
        let mut waiting = Vec::with_capacity(pieces.len());
        for (delivery, packet) in pieces {
            self.reading.after = delivery.number;
            if let Some(unsent) = self.take_sent(delivery).filter(|_| packet.is_none()) {
                waiting.push(unsent);
            }
        }
        for (place, delivery) in (self.reading.front..).zip(waiting) {
            let bytes = delivery.publication.bytes();
            self.kept += 1;
            self.kept_bytes += bytes;
            self.stored.messages = self.stored.messages.saturating_sub(1);
            self.stored.bytes = self.stored.bytes.saturating_sub(bytes as u64);
            self.queue.insert(place, delivery);
            self.reading.front += 1;
        }
        if is_last {
            // Whatever was counted and is not there any more cannot be sent.
            let is_stored = |outbound: &super::Outbound| matches!(outbound.state, Sending::Stored { .. });
            debug_assert!(self.stored.messages == 0 && !self.outbound.iter().any(is_stored), "the store has lost some");
            (self.stored, self.reading) = (Stored::default(), Reading::default());
        }
    }

    /// What is to be sent again has what it says. It comes back if it is none of those.
    fn take_sent(&mut self, delivery: Delivery) -> Option<Delivery> {
        let is_it = |outbound: &&mut super::Outbound| {
            outbound.number == delivery.number && matches!(outbound.state, Sending::Stored { .. })
        };
        let Some(outbound) = self.outbound.iter_mut().find(is_it) else { return Some(delivery) };
        self.outbound_bytes += delivery.publication.bytes();
        outbound.state = Sending::Sent(Box::new(delivery));
        None
    }

    pub(super) fn check_stored(&self, is_online: bool) {
        let Stored { through, bytes, messages } = self.stored;
        assert!(through != 0 || (bytes, messages) == (0, 0), "what is stored has numbers");
        assert!(self.reading.front <= self.kept && (through != 0 || self.reading == Reading::default()));
        assert!(is_online || self.reading == Reading::default(), "nobody reads for a device that is away");
        let later = self.queue.iter().skip(self.reading.front);
        assert!(
            later.clone().all(|delivery| delivery.number == 0 || delivery.number > through),
            "it lies in two places"
        );
        for outbound in self.outbound.iter().filter(|outbound| matches!(outbound.state, Sending::Stored { .. })) {
            assert!((1..=through).contains(&outbound.number), "what is stored is found by its number");
        }
    }
}

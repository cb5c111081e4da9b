//! The gateway comes down: every device is told, a slice a turn, spread over a window.

use std::time::Duration;

use super::{Io, Turn};
use crate::time::Moment;

/// How long the last bytes may take when everybody was told.
const LAST_BYTES: Duration = Duration::from_secs(3);
/// Devices are asked to come back no earlier than this after the goodbye; and no later than that and the window again,
/// so that they come back as spread out as they went.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// A gateway that comes down.
pub(super) struct Drain {
    began: Moment,
    /// Over how long the goodbyes are spread.
    window: Duration,
    /// How many connections there were.
    connections: usize,
    /// How many were told so far.
    told: usize,
    /// The slot at which to go on.
    position: usize,
}

impl Drain {
    pub(super) fn new(began: Moment, window: Duration, connections: usize) -> Self {
        Self { began, window, connections, told: 0, position: 0 }
    }

    /// How many more are to be told by `now`.
    fn due(&self, now: Moment) -> usize {
        let passed = now.since(self.began);
        let due = if passed >= self.window {
            usize::MAX
        } else {
            // The first at once: a gateway with one device does not wait for the end of the window to tell it.
            1 + (self.connections as u128 * passed.as_micros() / self.window.as_micros()) as usize
        };
        due.saturating_sub(self.told)
    }
}

impl<I: Io> Turn<I> {
    /// While the gateway comes down: listens no more, and tells those who are due.
    pub(super) fn drain(&mut self, now: Moment) {
        let Some(drain) = &mut self.drain else { return };
        self.io.close_listeners();
        self.todo.listeners.clear();
        let count = drain.due(now).min(self.bounds.goodbyes);
        let earliest = RETRY_AFTER_MIN.as_millis() as u32;
        let retry_after = earliest..=earliest + drain.window.as_millis() as u32;
        let slots = self.bounds.goodbye_slots;
        let (position, told) = self.shard.shut_down(drain.position, slots, count, &retry_after, now);
        drain.position = position;
        drain.told += told;
    }

    /// Whether everybody is gone, or has had all the time that there is.
    pub(super) fn is_drained(&self, now: Moment) -> bool {
        self.drain.as_ref().is_some_and(|drain| {
            let done = self.shard.is_empty() && !self.todo.uplink && !self.shard.has_changes();
            done || now.since(drain.began) > drain.window + LAST_BYTES
        })
    }
}

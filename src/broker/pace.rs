//! For how long others wait for a device that takes what it is sent too slowly.
//!
//! Messages beyond the bound of a session's queue wait unsettled, and their publishers with them; and since they hold credit and
//! settlements of their shards, others may come to wait, too. That is right while the device takes what it is sent. One that does
//! not is *stalled*: what waits for it is dropped by name, its publishers go on, and nobody waits for it again until it has caught
//! up. How much a device must take goes by how much waits for it: the window is the device's own choice, and with one of one
//! message it could make everybody wait for ever.

use super::Broker;
use super::inflight::Released;
use crate::metrics::{Counters, Metric};
use crate::slot::SessionSlot;
use crate::time::Tick;

/// In so many ticks (five seconds) a device must take as much as may be in flight to it at a time, and [`OWED_PART`] of what waits.
pub(super) const PACE_TICKS: u32 = 50;
/// One in so many, of messages and of their bytes: whoever is waited for is waited for no longer than half a minute.
const OWED_PART: usize = 6;

/// How a device gets on, while something waits for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Since when it is counted.
    pub(super) since: Tick,
    /// Messages that it has taken since then.
    pub(super) taken: usize,
    /// And their bytes.
    pub(super) bytes: usize,
}

impl Pace {
    /// Whether it has taken too little, with so many messages in flight at a time, while so many of so many bytes wait.
    fn is_stalled(&self, window: usize, (waiting, bytes): (usize, usize)) -> bool {
        self.taken < window.max(waiting / OWED_PART) || self.bytes < bytes / OWED_PART
    }
}

/// The sessions of one shard for which publishers wait, by slot and generation.
#[derive(Default)]
pub(super) struct Paces {
    all: Vec<(SessionSlot, u32)>,
    next: Option<Tick>,
}

impl Paces {
    pub(super) fn next_deadline(&self) -> Option<Tick> {
        self.next
    }

    /// Publishers begin to wait for this session.
    pub(super) fn watch(&mut self, session: SessionSlot, generation: u32, now: Tick) {
        self.all.push((session, generation));
        self.next.get_or_insert(now.deadline_after(PACE_TICKS));
    }
}

impl Broker {
    /// Looks at everybody for whom publishers wait.
    pub(super) fn check_paces(&mut self, drained: Tick, counters: &mut Counters) {
        if self.paces.next.is_none_or(|next| next.is_after(drained)) {
            return;
        }
        let mut all = Vec::new();
        let mut next = None;
        for (session, generation) in std::mem::take(&mut self.paces.all) {
            if !self.sessions.is_current(session, generation) {
                continue;
            }
            let window = self.inflight_maximum(session);
            let Some(inflight) = self.sessions[session].inflight.as_deref_mut() else { continue };
            let Some(pace) = inflight.pace() else { continue };
            let due = pace.since.deadline_after(PACE_TICKS);
            let due = if due.is_after(drained) {
                due
            } else if pace.is_stalled(window, inflight.waiting()) {
                let mut released = Released::default();
                inflight.drop_waiting(&mut released);
                all.push((session, released));
                counters.add(Metric::Stalled, 1);
                continue;
            } else {
                inflight.begin_pace(drained);
                drained.deadline_after(PACE_TICKS)
            };
            self.paces.all.push((session, generation));
            next = Some(match next {
                Some(next) if due.is_after(next) => next,
                _ => due,
            });
        }
        self.paces.next = next;
        for (session, released) in all {
            self.release(session, released, counters);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_much_a_device_must_take_goes_by_what_waits_for_it_and_not_by_its_window_alone() {
        let pace = |taken, bytes| Pace { since: Tick(0), taken, bytes };
        assert!(pace(9, 900).is_stalled(10, (1, 100)), "less than its window");
        assert!(!pace(10, 1_000).is_stalled(10, (60, 6_000)));
        // With a window of one it could take its time for ever.
        assert!(!pace(1, 100).is_stalled(1, (6, 600)));
        assert!(pace(1, 100).is_stalled(1, (4_096, 409_600)));
        assert!(!pace(683, 68_300).is_stalled(1, (4_096, 409_600)));
        assert!(pace(10, 1_000).is_stalled(1, (20, 4 << 20)), "many short ones, and long ones wait");
    }
}

//! For how long others wait for a device that takes what it is sent too slowly.
//!
//! Messages beyond the bound of a session's queue wait unsettled, and their publishers with them; and since they take room that is
//! booked, others may come to wait, too. That is right while the device takes what it is sent. One that does
//! not is *stalled*: what waits for it is dropped by name, its publishers go on, and nobody waits for it again until it has caught
//! up. How much a device must take goes by how much waits for it: the window is the device's own choice, and with one of one
//! message it could make everybody wait for ever.
//!
//! | what waits for it | what is free in every shard for what is not settled ([`Class::Unsettled`]) | it is looked at after |
//! | --- | --- | --- |
//! | little, less than a [`SHARE_PART`] of that class | | five seconds |
//! | more | much | five seconds: its own publishers wait, and nobody else |
//! | more | little, in some shard | one second, and must have taken a fifth of that: others are about to wait |

use super::Broker;
use super::inflight::Released;
use super::settlement::UNSETTLED_BYTES;
use crate::metrics::{Counters, Metric};
use crate::pool::Class;
use crate::slot::SessionSlot;
use crate::time::Tick;

/// In so many ticks (five seconds) a device must take as much as may be in flight to it at a time, and [`OWED_PART`] of what waits.
pub(super) const PACE_TICKS: u32 = 50;
/// As many ticks, where room is short.
const SHORT_TICKS: u32 = 10;
/// So many ticks pass between two looks at those who are waited for.
const LOOK_TICKS: u32 = 4;
/// Whoever makes others wait has at least one in so many bytes of what a shard has for what is not settled.
const SHARE_PART: u64 = 16;
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
    /// Whether it has taken too little in so many ticks, with so many messages in flight at a time, while so many of so many bytes wait.
    fn is_stalled(&self, ticks: u32, window: usize, (waiting, bytes): (usize, usize)) -> bool {
        let by_now = |owed: usize| owed * ticks.min(PACE_TICKS) as usize / PACE_TICKS as usize;
        self.taken < by_now(window.max(waiting / OWED_PART)) || self.bytes < by_now(bytes / OWED_PART)
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
        self.next.get_or_insert(now.deadline_after(LOOK_TICKS));
    }
}

impl Broker {
    /// Looks at everybody for whom publishers wait.
    pub(super) fn check_paces(&mut self, drained: Tick, counters: &mut Counters) {
        if self.paces.next.is_none_or(|next| next.is_after(drained)) {
            return;
        }
        let mut all = Vec::new();
        let (is_short, share) = (self.exchange.is_short(), self.pool.share(Class::Unsettled) / SHARE_PART);
        // Whoever has caught up and fallen behind again is in it twice.
        self.paces.all.sort_unstable();
        self.paces.all.dedup();
        for (session, generation) in std::mem::take(&mut self.paces.all) {
            if !self.sessions.is_current(session, generation) {
                continue;
            }
            let window = self.inflight_maximum(session);
            let Some(inflight) = self.sessions[session].inflight.as_deref_mut() else { continue };
            let Some(pace) = inflight.pace() else { continue };
            let waiting = inflight.waiting();
            let is_hasty = is_short && (waiting.1 + waiting.0 * UNSETTLED_BYTES) as u64 >= share;
            // One less than has begun: whole ticks.
            let ticks = drained.since(pace.since).saturating_sub(1);
            if ticks < if is_hasty { SHORT_TICKS } else { PACE_TICKS } {
                self.paces.all.push((session, generation));
                continue;
            }
            if pace.is_stalled(ticks, window, waiting) {
                let mut released = Released::default();
                inflight.drop_waiting(&mut released);
                all.push((session, released));
                counters.add(Metric::Stalled, 1);
                continue;
            }
            inflight.begin_pace(drained);
            self.paces.all.push((session, generation));
        }
        self.paces.next = (!self.paces.all.is_empty()).then(|| drained.deadline_after(LOOK_TICKS));
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
        assert!(pace(9, 900).is_stalled(PACE_TICKS, 10, (1, 100)), "less than its window");
        assert!(!pace(10, 1_000).is_stalled(PACE_TICKS, 10, (60, 6_000)));
        // With a window of one it could take its time for ever.
        assert!(!pace(1, 100).is_stalled(PACE_TICKS, 1, (6, 600)));
        assert!(pace(1, 100).is_stalled(PACE_TICKS, 1, (4_096, 409_600)));
        assert!(!pace(683, 68_300).is_stalled(PACE_TICKS, 1, (4_096, 409_600)));
        assert!(pace(10, 1_000).is_stalled(PACE_TICKS, 1, (20, 4 << 20)), "many short ones, and long ones wait");
    }

    #[test]
    fn in_a_fifth_of_the_time_it_must_take_a_fifth() {
        let pace = |taken, bytes| Pace { since: Tick(0), taken, bytes };
        assert!(pace(0, 0).is_stalled(SHORT_TICKS, 1, (64, 64_000)));
        assert!(pace(1, 1_000).is_stalled(SHORT_TICKS, 1, (64, 64_000)));
        assert!(!pace(2, 2_200).is_stalled(SHORT_TICKS, 1, (64, 64_000)));
        assert!(!pace(0, 0).is_stalled(SHORT_TICKS, 1, (1, 10)), "nearly nothing waits for it");
    }
}

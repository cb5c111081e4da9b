//! For how long others wait for a device that takes what it is sent too slowly.
//!
//! Messages beyond the bound of a session's queue wait unsettled, and their publishers with them. That is right while the
//! device takes what it is sent. One that does not is *stalled*: what waits for it is dropped by name, its publishers go on,
//! and nobody waits for it again until it has caught up.

use super::Broker;
use super::inflight::Released;
use crate::metrics::{Counters, Metric};
use crate::slot::SessionSlot;
use crate::time::Tick;

/// In so many ticks (five seconds) a device must take as much as may be in flight to it at a time.
pub(super) const PACE_TICKS: u32 = 50;

/// How a device gets on, while something waits for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Since when it is counted.
    pub(super) since: Tick,
    /// Messages that it has taken since then.
    pub(super) taken: usize,
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
            } else if pace.taken < window {
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

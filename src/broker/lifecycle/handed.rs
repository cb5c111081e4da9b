//! Sessions of devices that are away, as another gateway takes them or gives them.

use super::super::inflight::Stored;
use super::Sessions;
use crate::slot::SessionSlot;
use crate::time::Tick;

impl Sessions {
    /// Its will is published by nobody. `true`: there was one.
    pub(in super::super) fn drop_will(&mut self, session: SessionSlot) -> bool {
        self[session].will.take().is_some()
    }

    /// What waits in it is given to nobody.
    pub(in super::super) fn drop_messages(&mut self, session: SessionSlot) {
        self.forget_stored(session);
        self[session].inflight = None;
        debug_assert_eq!(self.stored(session), Stored::default());
    }

    /// When its device went.
    pub(in super::super) fn away_since(&self, session: SessionSlot) -> Tick {
        self[session].away_since
    }

    /// It is this device's, which is away since then.
    pub(in super::super) fn rename(&mut self, session: SessionSlot, device: &str, away_since: Tick) {
        let known = &mut self[session];
        known.device = device.into();
        known.away_since = away_since;
    }
}

//! Sessions that come from other gateways of a fleet, or go there: what the control plane wants of this shard (decision 0030).

use super::Shard;
use super::grants::TRY_LATER_MS;
use crate::broker::Row;
use crate::connection::Termination;
use crate::link::{
    CloseReason, ConnectionId, Lag, Outcome, Round, SessionChanged, SessionId, SessionOrder, SessionVerdict,
    WorkerEvent,
};
use crate::slot::SessionSlot;
use crate::time::Moment;

/// Bytes of ids of devices that are told of in one round, of each sort: a shard can have 100,000 that fall behind at the same time. Whoever
/// is not told of is in the next one.
const TOLD_BYTES: usize = 256 << 10;

/// Whether one more has room among those that are told of.
fn has_room(left: &mut usize, device: &str) -> bool {
    let more = device.len() + size_of::<Box<str>>();
    let has_room = *left >= more;
    *left = left.saturating_sub(more);
    has_room
}

impl Shard {
    /// The CONNECT of a device waited until it was known where its session is.
    pub fn handle_session_settled(&mut self, id: ConnectionId, verdict: SessionVerdict, now: Moment) {
        let row = if verdict == SessionVerdict::GoesOn { Row::True } else { Row::Unknown };
        if !self.is_current(id) || !self.connections[id.slot].is_device() || !self.broker.clear(id.slot, row) {
            return;
        }
        match verdict {
            SessionVerdict::GoesOn | SessionVerdict::GoesOnUnasked => {
                self.connections[id.slot].resume();
                self.ready.push(id.slot);
            }
            SessionVerdict::ComesAgain => {
                let what = "its session is at another gateway, and could not be brought here in time";
                let retry_after = self.random.u32(TRY_LATER_MS);
                let termination = Termination::because(CloseReason::SessionElsewhere, what);
                self.end(id.slot, &termination.with_retry_after(retry_after), now);
            }
        }
    }

    /// Something about a session that comes or goes.
    pub fn handle_session(&mut self, request: u64, device: &str, order: SessionOrder, now: Moment) {
        let connection = self.find(device);
        let outcome = match order {
            SessionOrder::Waits(id) if !self.is_current(id) => Some(Outcome::Offline),
            order => self.broker.handle_session_order(request, (device, connection), order, now, &mut self.due_wills),
        };
        if let Some(outcome) = outcome {
            self.uplink.push(WorkerEvent::Sent { request, outcome });
        }
    }

    // --- What stands in rows ----------------------------------------------------------------------------------------

    /// The row of a session was written, or nobody can.
    pub fn handle_session_written(&mut self, session: SessionId, waits: u32, is_true: bool) {
        self.broker.handle_row_written(session, waits, is_true);
    }

    /// A round begins as soon as what was routed before it is with its sessions.
    pub fn handle_round(&mut self, round: Round) {
        if let Some(before) = self.broker.begin_round(round) {
            self.uplink.push(WorkerEvent::Sent { request: before.request, outcome: Outcome::Unacknowledged });
        }
    }

    /// What the control plane is to know of sessions.
    pub(super) fn tell_sessions(&mut self) {
        for (session, waits) in self.broker.take_changed() {
            let waits = (waits != 0).then(|| (self.broker.id(session), waits));
            let Some(device) = self.device_of(session) else { continue };
            self.uplink.push(WorkerEvent::SessionChanged(SessionChanged { device, waits }));
        }
        if let Some((round, told)) = self.broker.take_round() {
            let (mut slow_bytes, mut near_bytes) = (TOLD_BYTES, TOLD_BYTES);
            let slow = told.slow.into_iter().filter_map(|(session, since)| Some((self.device_of(session)?, since)));
            let slow = slow.take_while(|(device, _)| has_room(&mut slow_bytes, device)).collect();
            let near = told.near.into_iter().filter_map(|near| self.device_of(near));
            let near = near.take_while(|device| has_room(&mut near_bytes, device)).collect();
            round.told.set(Lag { oldest: told.oldest, slow, near });
            self.uplink.push(WorkerEvent::Sent { request: round.request, outcome: Outcome::Delivered });
        }
    }

    fn device_of(&self, session: SessionSlot) -> Option<Box<str>> {
        match self.broker.connection_now(session) {
            Some(connection) => Some(self.connections[connection].device().into()),
            None => self.broker.device_away(session).map(Box::from),
        }
    }

    /// All that was said before is before this.
    pub fn handle_fence(&mut self, request: u64) {
        self.uplink.push(WorkerEvent::Fence { request });
    }
}

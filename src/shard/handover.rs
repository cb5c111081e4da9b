//! Sessions that come from other gateways of a fleet, or go there: what the control plane wants of this shard (decision 0030).

use super::Shard;
use super::grants::TRY_LATER_MS;
use crate::connection::Termination;
use crate::link::{CloseReason, ConnectionId, Outcome, STILL_CONNECTED, SessionOrder, SessionVerdict, WorkerEvent};
use crate::time::Moment;

impl Shard {
    /// The CONNECT of a device waited until it was known where its session is.
    pub fn handle_session_settled(&mut self, id: ConnectionId, verdict: SessionVerdict, now: Moment) {
        if !self.is_current(id) || !self.connections[id.slot].is_device() || !self.broker.clear(id.slot) {
            return;
        }
        match verdict {
            SessionVerdict::GoesOn => {
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
        let is_here = self.find(device).is_some();
        let outcome = match order {
            SessionOrder::Exists if is_here || self.broker.has_away(device) => Some(Outcome::Delivered),
            SessionOrder::Waits(id) if self.is_current(id) && self.broker.is_waiting(id.slot) => {
                Some(Outcome::Delivered)
            }
            SessionOrder::Offer { .. } if is_here => Some(Outcome::Refused(STILL_CONNECTED)),
            SessionOrder::Offer { cut } => self.broker.offer_session(request, device, &cut, now),
            SessionOrder::Forget { key, ends } => {
                self.broker.forget_session(request, (device, key, ends), now, &mut self.due_wills)
            }
            SessionOrder::Adopt(session) => self.broker.adopt(request, device, *session, now),
            SessionOrder::Adopted(messages) => self.broker.adopt_messages(request, device, messages),
            SessionOrder::Reveal => self.broker.reveal(request, device, now),
            SessionOrder::Abandon if self.broker.abandon(device) => Some(Outcome::Delivered),
            SessionOrder::Exists | SessionOrder::Waits(_) | SessionOrder::Abandon => Some(Outcome::Offline),
        };
        if let Some(outcome) = outcome {
            self.uplink.push(WorkerEvent::Sent { request, outcome });
        }
    }

    /// All that was said before is before this.
    pub fn handle_fence(&mut self, request: u64) {
        self.uplink.push(WorkerEvent::Fence { request });
    }
}

//! What devices were granted beyond the listener's rules, by slot, and until when: an end of its own for a connection,
//! through the one entry that it has in the wheel (decision D18).
//!
//! Nobody pays for what nobody has: eight bytes for each slot from the first grant on, and the grant itself.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::Shard;
use crate::connection::{Connection, Due, Step, Termination};
use crate::link::{AuthAnswer, CloseReason, ConnectionId, Credentials, Grant, TraceWhat, WorkerEvent};
use crate::slot::ConnectionSlot;
use crate::time::{Moment, Tick};
use crate::wire::Reader;

/// When a device for which there was no place, or no time, is asked to come back, in milliseconds.
pub(super) const TRY_LATER_MS: RangeInclusive<u32> = 5_000..=15_000;
/// A grant that holds for longer than this has no end: ticks that are compared must lie near each other (`time`).
const ENDLESS: Duration = Duration::from_hours(24 * 1_095);
/// What DISCONNECT says where AUTH comes while another is under way.
const PROTOCOL_ERROR: u8 = 0x82;
/// What it says where AUTH comes to nothing: it has no word for a wrong password or name (v5 3.14.2.1).
const NOT_AUTHORIZED: u8 = 0x87;

#[derive(Default)]
pub(super) struct Grants(Vec<Option<Box<Held>>>);

struct Held {
    grant: Grant,
    /// The device wants it renewed, and nobody has answered yet.
    is_renewing: bool,
}

impl Grants {
    /// What the device in this slot was granted; none: no more than the listener's rules say.
    pub(super) fn get(&self, slot: ConnectionSlot) -> Option<&Grant> {
        self.held(slot).map(|held| &held.grant)
    }

    fn held(&self, slot: ConnectionSlot) -> Option<&Held> {
        self.0.get(slot.index())?.as_deref()
    }

    pub(super) fn set(&mut self, slot: ConnectionSlot, grant: Option<Grant>) {
        let slot = slot.index();
        let held = grant.filter(|grant| !grant.is_plain()).map(|grant| Box::new(Held { grant, is_renewing: false }));
        if slot >= self.0.len() {
            if held.is_none() {
                return;
            }
            self.0.resize_with(slot + 1, || None);
        }
        self.0[slot] = held;
    }

    /// After a mass disconnect the memory goes back.
    pub(super) fn forget_all(&mut self) {
        self.0 = Vec::new();
    }

    /// Bytes that its filters take.
    pub(super) fn bytes(&self, slot: ConnectionSlot) -> usize {
        self.get(slot).map_or(0, Grant::bytes)
    }

    /// Appends what travels with the connection in this slot; [`Grants::unpack`] takes it off.
    pub(super) fn pack(&self, slot: ConnectionSlot, out: &mut Vec<u8>) {
        out.push(u8::from(self.get(slot).is_some()));
        if let Some(grant) = self.get(slot) {
            grant.encode(out);
        }
    }

    /// The grant in front of a connection that has moved, and the connection; `None`: these are not such bytes.
    pub(super) fn unpack(image: &[u8]) -> Option<(Option<Grant>, &[u8])> {
        let mut reader = Reader::new(image);
        let grant = if reader.flag().ok()? { Some(Grant::decode(&mut reader).ok()?) } else { None };
        Some((grant, reader.take_all()))
    }

    /// When the grant in this slot ends, if it does.
    fn until(&self, slot: ConnectionSlot, now: Moment) -> Option<Moment> {
        self.get(slot)?.until.filter(|until| until.since(now) < ENDLESS)
    }

    /// The earlier of a deadline and the end of the grant.
    fn bound(&self, slot: ConnectionSlot, deadline: Tick, now: Moment) -> Tick {
        let Some(until) = self.until(slot, now) else { return deadline };
        let end = until.tick().deadline_after(0);
        if deadline.is_after(end) { end } else { deadline }
    }

    fn is_over(&self, slot: ConnectionSlot, now: Moment) -> bool {
        self.until(slot, now).is_some_and(|until| until <= now)
    }

    fn is_renewing(&self, slot: ConnectionSlot) -> bool {
        self.held(slot).is_some_and(|held| held.is_renewing)
    }

    /// False: one is under way.
    fn begin_renewal(&mut self, slot: ConnectionSlot) -> bool {
        match self.0.get_mut(slot.index()) {
            Some(Some(held)) => !std::mem::replace(&mut held.is_renewing, true),
            _ => false,
        }
    }
}

impl Shard {
    /// Arms the deadline of a device; the end of what it was granted may come before.
    pub(super) fn arm_device(&mut self, slot: ConnectionSlot, deadline: Tick, now: Moment) {
        self.wheel.arm(slot, self.grants.bound(slot, deadline, now));
    }

    /// The deadline of a device has come.
    pub(super) fn handle_device_deadline(
        &mut self,
        slot: ConnectionSlot,
        drained: Tick,
        now: Moment,
        suspects: &mut Vec<ConnectionSlot>,
    ) {
        if self.grants.is_over(slot, now) {
            let what = "what it was granted has ended: it comes back with a fresh token";
            return self.end(slot, &Termination::because(CloseReason::GrantExpired, what), now);
        }
        match self.with(slot, now, |connection, settings, cx| connection.handle_deadline(drained, settings, cx)) {
            Ok(Due::Wait(deadline)) => self.arm_device(slot, deadline, now),
            Ok(Due::Probe(deadline)) => {
                self.arm_device(slot, deadline, now);
                self.probed.push(slot);
                self.trace(slot, now, || TraceWhat::Probed);
            }
            Ok(Due::Suspect) => suspects.push(slot),
            Err(termination) => self.end(slot, &termination, now),
        }
    }

    /// Somebody with time is to find out whether the device is who it says. Whether its input is looked at meanwhile; none:
    /// it has ended.
    pub(super) fn ask_to_verify(
        &mut self,
        slot: ConnectionSlot,
        credentials: Box<Credentials>,
        now: Moment,
    ) -> Option<bool> {
        let goes_on = credentials.is_renewal;
        if goes_on && !self.grants.begin_renewal(slot) {
            let what = "AUTH, and another one is not answered yet [v5 4.12.1]";
            let termination = Termination::because(CloseReason::ProtocolError, what).with_code(PROTOCOL_ERROR);
            self.end(slot, &termination, now);
            return None;
        }
        let (connection, listener) = (self.id(slot), self.connections[slot].listener());
        let peer = self.address(slot).map(|address| address.ip());
        self.trace(slot, now, || TraceWhat::Asked { is_renewal: goes_on });
        self.uplink.push(WorkerEvent::Authenticate { connection, listener, credentials, peer });
        Some(goes_on)
    }

    /// Nobody had the time to find out who a device is. It has done its part: it may come again.
    pub(super) fn end_unanswered(
        &mut self,
        slot: ConnectionSlot,
        reason: CloseReason,
        detail: Cow<'static, str>,
        now: Moment,
    ) {
        let retry_after = self.random.u32(TRY_LATER_MS);
        self.end(slot, &Termination::because(reason, detail).with_retry_after(retry_after), now);
    }

    /// The check of who a device is has ended.
    pub fn handle_authenticated(&mut self, id: ConnectionId, answer: AuthAnswer, now: Moment) {
        let slot = id.slot;
        if !self.is_current(id) {
            return;
        }
        let is_renewing = self.grants.is_renewing(slot) && self.connections[slot].is_device();
        if !is_renewing && !self.connections[slot].is_verifying() {
            return;
        }
        match answer {
            AuthAnswer::Busy(reason, detail) => self.end_unanswered(slot, reason, detail, now),
            AuthAnswer::Rejected(reason, detail) if is_renewing => {
                self.end(slot, &Termination::because(reason, detail).with_code(NOT_AUTHORIZED), now);
            }
            AuthAnswer::Rejected(reason, detail) => self.end(slot, &Termination::because(reason, detail), now),
            AuthAnswer::Accepted(grant) if is_renewing => self.renew(slot, *grant, now),
            AuthAnswer::Accepted(grant) => self.let_in(slot, *grant, now),
        }
    }

    fn let_in(&mut self, slot: ConnectionSlot, grant: Grant, now: Moment) {
        if let Step::End(termination) = self.connections[slot].handle_authenticated(&grant) {
            return self.end(slot, &termination, now);
        }
        self.grants.set(slot, Some(Grant { device: Box::default(), ..grant }));
        self.trace(slot, now, || TraceWhat::Granted);
        if self.account_grant(slot, now) && self.assign_home(slot, now) {
            self.ready.push(slot);
        }
    }

    fn renew(&mut self, slot: ConnectionSlot, grant: Grant, now: Moment) {
        let device = self.connections[slot].device();
        if !grant.device.is_empty() && *grant.device != *device {
            let what = format!("it is {device:?}, and its fresh token is for {:?}", grant.device);
            let termination = Termination::because(CloseReason::IdentityMismatch, what).with_code(NOT_AUTHORIZED);
            return self.end(slot, &termination, now);
        }
        self.grants.set(slot, Some(Grant { device: Box::default(), ..grant }));
        self.trace(slot, now, || TraceWhat::Granted);
        if !self.account_grant(slot, now) {
            return;
        }
        if let Some(armed) = self.wheel.deadline(slot) {
            // A grant that ends later lets the old deadline come, which then finds nothing to do.
            self.arm_device(slot, armed, now);
        }
        match self.with(slot, now, Connection::handle_renewed) {
            Ok(()) => self.ready.push(slot),
            Err(termination) => self.end(slot, &termination, now),
        }
    }

    /// Accounts for the filters of a grant. False: there was no room, and the connection has ended.
    fn account_grant(&mut self, slot: ConnectionSlot, now: Moment) -> bool {
        if self.account(slot).is_ok() {
            return true;
        }
        let detail = "what it was granted has no room in limits.pool_bytes".into();
        self.end_unanswered(slot, CloseReason::PoolFull, detail, now);
        false
    }
}

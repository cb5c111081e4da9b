//! What a device says that must be answered: messages of its own, and subscriptions to groups.
//!
//! ```text
//!   PUBLISH ──▶ receive ──▶ publish ──▶ (settlement) ──▶ next_answer ──▶ PUBACK or PUBREC
//!   SUBSCRIBE $share ──▶ subscribe ──▶ hold_suback ──▶ (homes of the groups) ──▶ take_suback ──▶ SUBACK
//! ```
//!
//! No more of a device is read while as many of its messages wait as it may have in flight, or while a SUBACK waits. So what
//! waits is bounded by the devices there are.

use super::inflight::{Answer, Inflight, PendingSuback, Receiving, WrongAck};
use super::settlement::{NOTHING, Owner, Part, Token};
use super::{ALIASES_MAX, Broker};
use crate::codec::mqtt::Reason;

/// What is known of a message that the device sends again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It will be answered when it is safe.
    Waiting,
    /// It was answered, with PUBREC.
    Answered,
}

/// Names what waits for a publication, between [`Broker::receive`] and [`Broker::publish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(Token);

impl Ticket {
    /// Nobody waits.
    pub const NOBODY: Ticket = Ticket(NOTHING);

    pub(super) fn token(self) -> Token {
        self.0
    }
}

impl Broker {
    // --- What the device publishes ------------------------------------------------------------------------------------

    /// What is known of a message of the device with an acknowledgement: `None`: it is new.
    #[must_use]
    pub fn receiving(&self, session: u32, packet: u16, qos: u8) -> Option<Known> {
        let inflight = self.sessions[session].inflight.as_deref()?;
        if qos == 2 && inflight.is_answered(packet) {
            return Some(Known::Answered);
        }
        inflight.is_unanswered(packet, qos).then_some(Known::Waiting)
    }

    /// How many messages of the device came on this connection and are not done with (v5 4.9).
    #[must_use]
    pub fn received(&self, session: u32) -> usize {
        self.sessions[session].inflight.as_deref().map_or(0, Inflight::received)
    }

    /// A message that is known has come again. `true`: for the first time on this connection.
    pub fn receive_again(&mut self, session: u32, packet: u16, qos: u8) -> bool {
        self.sessions.inflight(session).receive_again(packet, qos)
    }

    /// Whether no more of the device may be read before it has been told something. It is among those of
    /// [`Broker::take_answerable`] then, and [`Broker::take_held`] says when it may be read again.
    pub fn hold(&mut self, session: u32) -> bool {
        let is_held = self.must_hold(session);
        self.sessions[session].is_held |= is_held;
        is_held
    }

    /// Whether the device is held, and is read again when [`Broker::take_held`] says so.
    #[must_use]
    pub fn is_held(&self, session: u32) -> bool {
        self.sessions[session].is_held
    }

    fn must_hold(&self, session: u32) -> bool {
        let most = usize::from(self.bounds.inflight);
        let inflight = self.sessions[session].inflight.as_deref();
        inflight.is_some_and(|inflight| inflight.has_suback() || inflight.unanswered() >= most)
    }

    /// Whether a device that was held may be read again.
    pub fn take_held(&mut self, session: u32) -> bool {
        let may_go_on = self.sessions[session].is_held && !self.must_hold(session);
        if may_go_on {
            self.sessions[session].is_held = false;
        }
        may_go_on
    }

    /// A message with an acknowledgement has come from the device, and is about to be [published](Broker::publish): it is
    /// answered when it is safe everywhere.
    pub fn receive(&mut self, session: u32, packet: u16, qos: u8) -> Ticket {
        let token = self.settlements.open(Owner::Publisher { session: self.id(session), packet });
        self.sessions.inflight(session).receive(packet, qos, Receiving::Waiting(token));
        Ticket(token)
    }

    /// A message with an acknowledgement has come from the device, and is not taken: it is answered when it is its turn.
    pub fn refuse(&mut self, session: u32, packet: u16, qos: u8, reason: Reason) {
        self.sessions.inflight(session).receive(packet, qos, Receiving::Settled(reason));
    }

    /// The message goes up as well: it is safe when the backbone holds it too. The number under which that is to be said.
    pub fn expect_uplink(&mut self, ticket: Ticket) -> u32 {
        self.settlements.add(ticket.0);
        ticket.0
    }

    /// The backbone holds a message, or will not: the number is [`Broker::expect_uplink`]'s.
    pub fn handle_settled(&mut self, publication: u32, accepted: bool) {
        self.settle(publication, if accepted { Part::Taken } else { Part::Refused });
    }

    /// A request of the API publishes a message: it is answered, among [`Broker::take_requests`], when it is safe everywhere.
    pub fn request(&mut self, request: u64) -> Ticket {
        Ticket(self.settlements.open(Owner::Request(request)))
    }

    /// The next answer that the device may be given.
    pub fn next_answer(&mut self, session: u32) -> Option<Answer> {
        let answer = self.sessions[session].inflight.as_deref_mut()?.next_answer();
        self.sessions.shed_empty_inflight(session);
        answer
    }

    /// PUBREL. `Ok(false)`: no such message was received.
    ///
    /// # Errors
    /// [`WrongAck`] if PUBREC was not said of the message.
    pub fn handle_pubrel(&mut self, session: u32, packet: u16) -> Result<bool, WrongAck> {
        let Some(inflight) = self.sessions[session].inflight.as_deref_mut() else { return Ok(false) };
        let known = inflight.handle_pubrel(packet)?;
        self.sessions.shed_empty_inflight(session);
        Ok(known)
    }

    // --- Subscriptions to groups ------------------------------------------------------------------------------------

    /// SUBACK is to be said when `homes` homes of groups have answered under `waits`.
    pub fn hold_suback(&mut self, session: u32, waits: u32, homes: usize, packet: u16, codes: Vec<u8>) {
        self.sessions.inflight(session).hold_suback(PendingSuback { waits, homes, packet, codes });
    }

    /// The SUBACK that the device may be given.
    pub fn take_suback(&mut self, session: u32) -> Option<PendingSuback> {
        let suback = self.sessions[session].inflight.as_deref_mut()?.take_suback();
        self.sessions.shed_empty_inflight(session);
        suback
    }

    // --- Aliases ----------------------------------------------------------------------------------------------------

    /// The device gives a topic a number, `1..=ALIASES_MAX` [v5 MQTT-3.3.2-10].
    pub fn set_alias(&mut self, session: u32, alias: u16, topic: &str) {
        debug_assert!((1..=ALIASES_MAX).contains(&alias));
        let aliases = &mut self.sessions.inflight(session).aliases_in;
        let place = usize::from(alias) - 1;
        if aliases.len() <= place {
            aliases.resize(place + 1, None);
        }
        aliases[place] = Some(topic.into());
    }

    /// The topic that the device gave a number.
    #[must_use]
    pub fn alias(&self, session: u32, alias: u16) -> Option<&str> {
        let inflight = self.sessions[session].inflight.as_deref()?;
        inflight.aliases_in.get(usize::from(alias).checked_sub(1)?)?.as_deref()
    }
}

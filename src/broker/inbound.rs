//! What a device says that must be answered: messages of its own, and subscriptions to groups.
//!
//! ```text
//!   PUBLISH ──▶ receive ──▶ publish ──▶ (settlement) ──▶ next_answer ──▶ PUBACK or PUBREC
//!   SUBSCRIBE ──▶ begin_filters ──▶ subscribe ──▶ end_filters ──▶ (homes of groups) ──▶ take_suback ──▶ SUBACK
//!                      ▲                └──▶ put_off_filters ──┐
//!                      └─────────── the next turn ─────────────┘
//! ```
//!
//! No more of a device is read while as many of its messages wait as it may have in flight, or while a SUBACK waits. So what
//! waits is bounded by the devices there are. Nor is it while what it has published and is not with everybody takes more than its part
//! of the pool: a subscriber for whom much waits holds up its own publishers and nobody else.
//!
//! Filters are dealt with so many in a turn (decision 0014): a packet of which some are left stays where it is, and what was
//! done of it is in [`PendingSuback`].

use super::inflight::{ANSWERED_BYTES, Answer, Inflight, PendingSuback, Receiving, WrongAck};
use super::lifecycle::NO_KEY;
use super::settlement::{NOTHING, Owner, Part, Token};
use super::{ALIASES_MAX, Broker};
use crate::codec::mqtt::{QoS, Reason};
use crate::image::{Change, Received};
use crate::pool::Class;
use crate::slot::SessionSlot;

/// Filters of SUBSCRIBE and UNSUBSCRIBE that one turn deals with, at one to two microseconds each. A long filter counts for
/// several.
const TURN_FILTERS: usize = 2_048;
/// So many of them in one packet; what is left goes on in the next turn.
const PACKET_FILTERS: usize = 256;
/// Packets of which something was left that go on in one turn: as many as find something to do.
pub const UNFINISHED_IN_A_TURN: usize = TURN_FILTERS / PACKET_FILTERS;
/// So many bytes of a filter, or so many shared subscriptions of its session, which are looked through, are as much work as
/// another filter.
const FILTER_WORK: usize = 64;

/// What the filters of one turn, and of one packet in it, may still cost.
#[derive(Debug)]
pub struct FilterLooks(usize);

impl FilterLooks {
    /// Those of a turn.
    pub(super) fn of_turn() -> Self {
        Self(TURN_FILTERS)
    }

    /// Those of a packet in one turn.
    #[must_use]
    pub fn of_packet() -> Self {
        Self(PACKET_FILTERS)
    }
}

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
    pub fn receiving(&self, session: SessionSlot, packet: u16, qos: QoS) -> Option<Known> {
        let inflight = self.sessions[session].inflight.as_deref()?;
        if qos == QoS::ExactlyOnce && inflight.is_answered(packet) {
            return Some(Known::Answered);
        }
        inflight.is_unanswered(packet, qos).then_some(Known::Waiting)
    }

    /// How many messages of the device came on this connection and are not done with (v5 4.9).
    #[must_use]
    pub fn received(&self, session: SessionSlot) -> usize {
        self.sessions[session].inflight.as_deref().map_or(0, Inflight::received)
    }

    /// Whether the device may begin one more exchange of QoS 2. As many as a Receive Maximum allows it always may have open, wherever they
    /// began; more of them, which MQTT 3.1.1 cannot forbid, as long as the pool has room.
    #[must_use]
    pub fn may_begin_exchange(&self, session: SessionSlot) -> bool {
        self.sessions[session].inflight.as_deref().is_none_or(|inflight| {
            inflight.open() < usize::from(self.bounds.inflight)
                || self.pool.may_take(Class::Queues, ANSWERED_BYTES, inflight.charged())
        })
    }

    /// A message that is known has come again. `true`: for the first time on this connection.
    pub fn receive_again(&mut self, session: SessionSlot, packet: u16, qos: QoS) -> bool {
        self.sessions.inflight(session).receive_again(packet, qos)
    }

    /// Whether no more of the device may be read before it has been told something. It is among those of
    /// [`Broker::take_answerable`] then, and [`Broker::take_held`] says when it may be read again.
    pub fn hold(&mut self, session: SessionSlot) -> bool {
        let is_held = self.must_hold(session);
        let was_held = self.sessions[session].is_held;
        self.sessions[session].is_held |= is_held;
        if is_held && !was_held && self.has_much_unsettled(session) {
            self.held_for_room += 1;
        }
        is_held
    }

    /// Whether the device is held, and is read again when [`Broker::take_held`] says so.
    #[must_use]
    pub fn is_held(&self, session: SessionSlot) -> bool {
        self.sessions[session].is_held
    }

    fn must_hold(&self, session: SessionSlot) -> bool {
        let most = usize::from(self.bounds.inflight);
        let inflight = self.sessions[session].inflight.as_deref();
        inflight.is_some_and(|inflight| {
            inflight.has_suback() || inflight.greeting.is_some() || inflight.unanswered() >= most
        }) || self.has_much_unsettled(session)
    }

    /// Whether what the device has published and is not settled takes more than its part of the pool. It is told something then, sooner
    /// or later: some of it is to be answered.
    fn has_much_unsettled(&self, session: SessionSlot) -> bool {
        let inflight = self.sessions[session].inflight.as_deref();
        let bytes = inflight.map_or(0, Inflight::unsettled_bytes) as u64;
        bytes > 0 && bytes > self.pool.largest(Class::Unsettled)
    }

    /// Whether a device that was held may be read again.
    pub fn take_held(&mut self, session: SessionSlot) -> bool {
        let may_go_on = self.sessions[session].is_held && !self.must_hold(session);
        if may_go_on {
            self.sessions[session].is_held = false;
        }
        may_go_on
    }

    /// A message with an acknowledgement has come from the device, and is about to be [published](Broker::publish): it is
    /// answered when it is safe everywhere.
    pub fn receive(&mut self, session: SessionSlot, packet: u16, qos: QoS) -> Ticket {
        let key = self.sessions[session].key;
        let mut origin = 0;
        if qos == QoS::ExactlyOnce && key != NO_KEY {
            // Before anything that it causes: should that be found and this not be settled, it never was.
            origin = self.exchange.next_key();
            self.journal.record(Change::Received { session: key, received: Received { packet, origin } });
        }
        let token = self.settlements.open(Owner::Publisher { session: self.id(session), packet, origin });
        self.sessions.inflight(session).receive(packet, qos, Receiving::Waiting(token));
        Ticket(token)
    }

    /// A message with an acknowledgement has come from the device, and is not taken: it is answered when it is its turn.
    pub fn refuse(&mut self, session: SessionSlot, packet: u16, qos: QoS, reason: Reason) {
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
    pub fn next_answer(&mut self, session: SessionSlot) -> Option<Answer> {
        let answer = self.sessions[session].inflight.as_deref_mut()?.next_answer();
        self.sessions.shed_empty_inflight(session);
        answer
    }

    /// PUBREL. `Ok(false)`: no such message was received.
    ///
    /// # Errors
    /// [`WrongAck`] if PUBREC was not said of the message.
    pub fn handle_pubrel(&mut self, session: SessionSlot, packet: u16) -> Result<bool, WrongAck> {
        let Some(inflight) = self.sessions[session].inflight.as_deref_mut() else { return Ok(false) };
        let known = inflight.handle_pubrel(packet)?;
        let key = self.sessions[session].key;
        if known && key != NO_KEY {
            self.journal.record(Change::Completed { session: key, packet });
        }
        self.sessions.shed_empty_inflight(session);
        Ok(known)
    }

    // --- Filters ----------------------------------------------------------------------------------------------------

    /// SUBSCRIBE or UNSUBSCRIBE is dealt with, or what earlier turns have left of it: as many of its filters as there are codes
    /// are done. `None`: an earlier one still waits for its answer, and the device is [held](Broker::hold).
    pub fn begin_filters(&mut self, session: SessionSlot, packet: u16) -> Option<PendingSuback> {
        let inflight = self.sessions[session].inflight.as_deref_mut();
        if let Some(unfinished) = inflight.and_then(Inflight::take_unfinished) {
            debug_assert_eq!(unfinished.packet, packet, "nothing more is read before it is done");
            return Some(unfinished);
        }
        if self.hold(session) {
            return None;
        }
        let waits = self.begin_subscribe();
        Some(PendingSuback { waits, homes: 0, is_whole: false, is_unsubscribe: false, packet, codes: Vec::new() })
    }

    /// Whether one more filter may be dealt with now. Otherwise it is [put off](Broker::put_off_filters).
    pub fn may_look(&mut self, session: SessionSlot, filter: &str, packet: &mut FilterLooks) -> bool {
        if self.filter_looks.0 == 0 || packet.0 == 0 {
            return false;
        }
        let work = 1 + (filter.len() + self.sessions[session].groups.len()) / FILTER_WORK;
        self.filter_looks.0 = self.filter_looks.0.saturating_sub(work);
        packet.0 = packet.0.saturating_sub(work);
        true
    }

    /// What is left of a packet is dealt with in the next turns.
    pub fn put_off_filters(&mut self, session: SessionSlot, pending: PendingSuback) {
        self.sessions.inflight(session).hold_suback(pending);
        self.sessions.shed_empty_inflight(session);
    }

    /// Every filter was dealt with. Returns it when nothing is to be waited for, else it is
    /// [taken](Broker::take_suback) when the homes of groups have answered.
    pub fn end_filters(&mut self, session: SessionSlot, mut pending: PendingSuback) -> Option<PendingSuback> {
        if pending.homes == 0 {
            self.sessions.shed_empty_inflight(session);
            self.note_backlog(session);
            return Some(pending);
        }
        pending.is_whole = true;
        self.put_off_filters(session, pending);
        None
    }

    /// The SUBACK that the device may be given.
    pub fn take_suback(&mut self, session: SessionSlot) -> Option<PendingSuback> {
        let suback = self.sessions[session].inflight.as_deref_mut()?.take_suback();
        self.sessions.shed_empty_inflight(session);
        // Retained messages come behind it.
        self.note_backlog(session);
        suback
    }

    // --- Aliases ----------------------------------------------------------------------------------------------------

    /// The device gives a topic a number, `1..=ALIASES_MAX` [v5 MQTT-3.3.2-10].
    pub fn set_alias(&mut self, session: SessionSlot, alias: u16, topic: &str) {
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
    pub fn alias(&self, session: SessionSlot, alias: u16) -> Option<&str> {
        let inflight = self.sessions[session].inflight.as_deref()?;
        inflight.aliases_in.get(usize::from(alias).checked_sub(1)?)?.as_deref()
    }
}

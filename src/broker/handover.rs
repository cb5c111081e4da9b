//! Sessions that go with their devices over a fleet: asked for, given to another gateway, taken from one (decision 0030).
//!
//! ```text
//!   CONNECT ──▶ asked ──▶ cleared ──▶ attach                          whoever is not cleared waits before its session is looked for
//!
//!   adopt: head, filters ──▶ takes messages, hidden ── pieces of what it had before ──▶ reveal: the device's, whole
//!                              │ numbers behind RESERVED        numbers within RESERVED
//! ```
//!
//! A session that comes takes messages from the moment in which its filters are here, under numbers that leave room for what it had
//! before: so that lies before them, in its order. Until it is whole it has a name that no device can have. A process that ends meanwhile
//! forgets it, for the other gateway still has it.
//!
//! Nothing here knows of the fleet: with [`Broker::begin_interest`] and a store it asks, and waits until it is told.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::Broker;
use super::inflight::{PendingSuback, Sending, Stored};
use super::lifecycle::{DueWill, GroupMessages, NO_KEY};
use super::settlement::{Owner, Part, Token};
use crate::codec::mqtt::QoS;
use crate::image::{self, Change, Head, Message, Outstanding, Session, SessionKey};
use crate::link::{Cut, NO_ROOM_FOR_SESSION, Outcome, Outline, STILL_CONNECTED, SessionId, SessionOrder};
use crate::slot::{ConnectionSlot, SessionSlot};
use crate::time::Moment;

/// Numbers that are kept for what a session had before it came: more than any session holds.
const RESERVED: u64 = 1 << 32;

/// How it stands with the CONNECT of a device whose session may be elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nobody was asked yet: ask, and wait.
    Ask,
    /// Nobody has answered yet.
    Waits,
    /// Its session is here, or nowhere.
    Cleared,
}

/// A session that is on its way here.
#[derive(Debug)]
struct Adoption {
    session: SessionSlot,
    generation: u32,
    /// The next number that is kept for it.
    next: u64,
    /// What is left of the exchanges of QoS 2 whose PUBCOMP is owed, under the numbers of the other gateway.
    outstanding: VecDeque<Outstanding>,
    /// What was sent and is not acknowledged, in order.
    outbound: Vec<(u64, u16, Sending)>,
    /// What was not sent.
    stored: Stored,
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Handovers {
    /// Connections whose CONNECT waits; and, where it may go on, how it is with the row of its session.
    claims: HashMap<ConnectionSlot, Option<Row>>,
    adoptions: HashMap<Box<str>, Adoption>,
    /// Devices whose sessions have ended, and that have no other one.
    gone: Vec<Box<str>>,
    /// Sessions of which their rows say something else, and the number under which a SUBACK waits until they do not; 0: none does.
    changed: Vec<(SessionSlot, u32, u32)>,
    /// Adoptions that wait until what was subscribed to comes from other gateways, by the version.
    interested: VecDeque<(u64, Token)>,
}

/// What is known here of the row of a session.
///
/// ```text
///            CONNECT, for which it was read          what the session has subscribed to, or its will, is another
///   Unknown ────────────────────────────────▶ True ───────────────────────────────────────────────┐
///      ▲ ▲                                     ▲                                                   │
///      │ │                                     └── it says so ── Asked ◀── a SUBACK waits for it ──┤
///      │ └─────── it changes once more ──────────────────────────┘                                 │
///      └───────────────────────────────────────────────────────────────────────────────────────────┘
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Row {
    /// It may say something else.
    #[default]
    Unknown,
    /// The same, and what there is now is being written.
    Asked,
    /// It says what is so.
    True,
}

/// The name of a session that is on its way here: no device has such a name.
fn hidden(device: &str) -> String {
    format!("\u{1}{device}")
}

/// Whether a session of this name was on its way here.
pub(super) fn is_hidden(name: &str) -> bool {
    name.starts_with('\u{1}')
}

impl Broker {
    // --- CONNECT ----------------------------------------------------------------------------------------------------

    /// Whether sessions may be at other gateways.
    #[must_use]
    pub fn is_of_fleet(&self) -> bool {
        self.interest.is_on() && self.journal.is_on()
    }

    /// How it stands with the CONNECT of this connection. Whoever hears [`Claim::Ask`] asks, once.
    pub fn claim(&mut self, connection: ConnectionSlot) -> Claim {
        match self.handovers.claims.get(&connection) {
            None => {
                self.handovers.claims.insert(connection, None);
                Claim::Ask
            }
            Some(None) => Claim::Waits,
            Some(Some(_)) => Claim::Cleared,
        }
    }

    /// The CONNECT of this connection may go on, with what is known of the row of its session. `false`: none waits.
    pub fn clear(&mut self, connection: ConnectionSlot, row: Row) -> bool {
        let claim = self.handovers.claims.get_mut(&connection);
        claim.is_some_and(|cleared| cleared.replace(row).is_none())
    }

    /// Whether the CONNECT of this connection waits.
    #[must_use]
    pub fn is_waiting(&self, connection: ConnectionSlot) -> bool {
        self.handovers.claims.get(&connection) == Some(&None)
    }

    /// It goes on, or its connection has ended. What is known of the row of its session.
    pub(super) fn forget_claim(&mut self, connection: ConnectionSlot) -> Row {
        let row = self.handovers.claims.remove(&connection).flatten().unwrap_or_default();
        if self.handovers.claims.is_empty() && self.handovers.claims.capacity() > 1_024 {
            // After a storm the memory goes back.
            self.handovers.claims = HashMap::new();
        }
        row
    }

    /// A device's session has ended, and it has no other.
    pub(super) fn note_gone(&mut self, device: &str) {
        if self.is_of_fleet() && !is_hidden(device) {
            self.handovers.gone.push(device.into());
        }
    }

    /// Devices whose sessions have ended; each once.
    pub fn take_gone(&mut self) -> Vec<Box<str>> {
        std::mem::take(&mut self.handovers.gone)
    }

    // --- What stands in rows ----------------------------------------------------------------------------------------

    /// What the row of a session says is no more so.
    pub(super) fn note_changed(&mut self, session: SessionSlot) {
        self.sessions[session].row = Row::Unknown;
        let changed = (session, self.sessions[session].generation, 0);
        let is_kept = self.is_of_fleet() && self.sessions[session].key != NO_KEY;
        if is_kept && self.handovers.changed.last() != Some(&changed) {
            self.handovers.changed.push(changed);
        }
    }

    /// SUBACK, or UNSUBACK, waits until any other gateway could know what the session has subscribed to; unless that is so.
    pub fn expect_row(&mut self, session: SessionSlot, pending: &mut PendingSuback) {
        let known = &self.sessions[session];
        let is_kept = known.key != NO_KEY && known.row != Row::True;
        if is_kept && self.is_of_fleet() {
            self.sessions[session].row = Row::Asked;
            self.handovers.changed.push((session, self.sessions[session].generation, pending.waits));
            pending.homes += 1;
        }
    }

    /// Whether some are to be told.
    pub(super) fn has_changed(&self) -> bool {
        !self.handovers.changed.is_empty()
    }

    /// The sessions whose rows are to be written, and the number under which a SUBACK waits; 0: none does.
    pub fn take_changed(&mut self) -> Vec<(SessionSlot, u32)> {
        let changed = std::mem::take(&mut self.handovers.changed);
        let is_current = |&(session, generation, _): &(_, u32, _)| self.sessions.is_current(session, generation);
        changed.into_iter().filter(is_current).map(|(session, _, waits)| (session, waits)).collect()
    }

    /// The row of a session says what was subscribed to, or (not `is_true`) nobody can write it.
    pub fn handle_row_written(&mut self, session: SessionId, waits: u32, is_true: bool) {
        if let Some(session) = self.sessions.resolve(session) {
            let row = &mut self.sessions[session].row;
            if is_true && *row == Row::Asked {
                *row = Row::True;
            }
            self.handle_joined(session, waits);
        }
    }

    /// The session of a device, connected or away, that outlives its connection.
    #[must_use]
    pub fn kept_session(&self, connection: Option<ConnectionSlot>, device: &str) -> Option<SessionSlot> {
        let session = connection.and_then(|connection| self.of(connection)).or_else(|| self.sessions.find_away(device));
        session.filter(|&session| self.sessions[session].key != NO_KEY)
    }

    /// The device of a session, if it is away.
    #[must_use]
    pub fn device_away(&self, session: SessionSlot) -> Option<&str> {
        let known = &self.sessions[session];
        (!known.is_online()).then(|| known.device())
    }

    /// The connection of a session, if its device is there.
    #[must_use]
    pub fn connection_now(&self, session: SessionSlot) -> Option<ConnectionSlot> {
        self.connection_of(session, self.sessions[session].generation)
    }

    /// What the row of a session is to say of it.
    #[must_use]
    pub fn outline(&self, session: SessionSlot, device: &str) -> Option<Outline> {
        let head = self.head_of(session, device, None)?;
        let own = self.routing.subscriptions.filters(session).map(|(filter, subscriber)| image::Subscription {
            filter: filter.into(),
            options: subscriber.options,
            identifier: subscriber.identifier,
        });
        let shared = self.sessions[session].groups.iter().map(|membership| image::Subscription {
            filter: (&*membership.group).into(),
            options: membership.options,
            identifier: membership.identifier,
        });
        let subscriptions = own.chain(shared).collect();
        let (messages, outstanding, received) = (Vec::new(), Vec::new(), Vec::new());
        let session_image = Session { head, subscriptions, messages, outstanding, received };
        Some(Outline { session: session_image, standing: self.standing(session) })
    }

    // --- What is ordered --------------------------------------------------------------------------------------------

    /// Something about the session of a device, which is connected here or not. `None`: the answer comes when what was done is safe.
    pub fn handle_session_order(
        &mut self,
        request: u64,
        (device, connection): (&str, Option<ConnectionSlot>),
        order: SessionOrder,
        now: Moment,
        due_wills: &mut Vec<DueWill>,
    ) -> Option<Outcome> {
        match order {
            SessionOrder::Exists if connection.is_some() || self.has_away(device) => Some(Outcome::Delivered),
            SessionOrder::Waits(id) if self.is_waiting(id.slot) => Some(Outcome::Delivered),
            SessionOrder::Offer { .. } if connection.is_some() => Some(Outcome::Refused(STILL_CONNECTED)),
            SessionOrder::Offer { cut } => self.offer_session(request, device, &cut, now),
            // It goes when its connection has ended: whoever wants it to asks again.
            SessionOrder::Forget { .. } if connection.is_some_and(|connection| self.of(connection).is_some()) => {
                Some(Outcome::Refused(STILL_CONNECTED))
            }
            SessionOrder::Forget { key, ends } => self.forget_session(request, (device, key, ends), now, due_wills),
            SessionOrder::Disown => self.disown_session(request, device),
            SessionOrder::Adopt(session) => self.adopt(request, device, *session, now),
            SessionOrder::Adopted(messages) => self.adopt_messages(request, device, messages),
            SessionOrder::Reveal => self.reveal(request, device, now),
            SessionOrder::Abandon if self.abandon(device) => Some(Outcome::Delivered),
            SessionOrder::Outline(told) => Some(self.with_kept(connection, device, |broker, session| {
                let Some(outline) = broker.outline(session, device) else { return Outcome::Offline };
                told.set(outline);
                Outcome::Delivered
            })),
            SessionOrder::Placed(round) => Some(self.with_kept(connection, device, |broker, session| {
                broker.note_placed(session, round);
                Outcome::Delivered
            })),
            SessionOrder::Unplace { floor } => Some(self.with_kept(connection, device, |broker, session| {
                if broker.unplace(session, floor) { Outcome::Delivered } else { Outcome::Unacknowledged }
            })),
            SessionOrder::Exists | SessionOrder::Waits(_) | SessionOrder::Abandon => Some(Outcome::Offline),
        }
    }

    fn with_kept(
        &mut self,
        connection: Option<ConnectionSlot>,
        device: &str,
        act: impl FnOnce(&mut Self, SessionSlot) -> Outcome,
    ) -> Outcome {
        let session = self.kept_session(connection, device);
        session.map_or(Outcome::Offline, |session| act(self, session))
    }

    // --- A session that goes ----------------------------------------------------------------------------------------

    /// Whether a session of a device that is away is here.
    #[must_use]
    pub fn has_away(&self, device: &str) -> bool {
        self.sessions.find_away(device).is_some()
    }

    /// Another gateway wants the session of a device that is away. `None`: the answer comes when all of it up to `cut` is safe.
    pub fn offer_session(&mut self, request: u64, device: &str, cut: &Cut, now: Moment) -> Option<Outcome> {
        let Some(session) = self.sessions.find_away(device).filter(|&session| self.sessions[session].key != NO_KEY)
        else {
            return Some(Outcome::Offline);
        };
        let generation = self.sessions[session].generation;
        let waits = self.deliveries.has_for(session, generation) || self.staged.holds(session, generation);
        let inflight = self.sessions[session].inflight.as_deref();
        if waits || inflight.is_some_and(super::inflight::Inflight::has_inbound) {
            return Some(Outcome::Unacknowledged);
        }
        // Its device is there [v5 MQTT-3.1.3-9].
        if self.sessions.drop_will(session) {
            let away_since = self.sessions.away_since(session).start_near(now);
            self.record_head(session, device, Some(away_since));
        }
        cut.set(self.journal.latest_number());
        let token = self.begin_answer(request);
        self.settle(token, Part::Taken);
        None
    }

    /// The session of a device that is away goes from here. `None`: the answer comes when that is safe.
    pub fn forget_session(
        &mut self,
        request: u64,
        (device, key, ends): (&str, Option<SessionKey>, bool),
        now: Moment,
        due_wills: &mut Vec<DueWill>,
    ) -> Option<Outcome> {
        let is_meant = |session: &SessionSlot| key.is_none_or(|key| self.sessions[*session].key == key);
        let Some(session) = self.sessions.find_away(device).filter(is_meant) else { return Some(Outcome::Offline) };
        if ends {
            due_wills.extend(self.sessions.take_will(session, now));
            self.sessions.leave_away(session);
            self.end(session);
        } else {
            self.end_quietly(session);
        }
        let token = self.begin_answer(request);
        self.settle(token, Part::Taken);
        None
    }

    /// The session of a device that is away was begun again elsewhere, without what it had for groups: that goes to other members. `None`: the
    /// answer comes when that is safe.
    pub fn disown_session(&mut self, request: u64, device: &str) -> Option<Outcome> {
        let Some(session) = self.sessions.find_away(device) else { return Some(Outcome::Offline) };
        self.sessions.leave_away(session);
        self.sessions.drop_will(session);
        self.end(session);
        let token = self.begin_answer(request);
        self.settle(token, Part::Taken);
        None
    }

    /// A session that is away ends here and goes on elsewhere: without its will, and what it has is not given to others.
    fn end_quietly(&mut self, session: SessionSlot) {
        self.sessions.leave_away(session);
        self.sessions.drop_will(session);
        self.sessions.drop_messages(session);
        self.sessions[session].group_messages = GroupMessages::None;
        self.end(session);
    }

    // --- A session that comes ---------------------------------------------------------------------------------------

    /// A session comes, without its messages: from now on it takes what is published. `None`: the answer comes when that is safe, and
    /// what others publish comes here.
    pub fn adopt(&mut self, request: u64, device: &str, from: Session, now: Moment) -> Option<Outcome> {
        self.abandon(device);
        let Session { head, subscriptions, outstanding, received, .. } = from;
        if !self.may_keep_more() || self.sessions.stored_bytes >= self.bounds.stored_bytes {
            return Some(Outcome::Refused(NO_ROOM_FOR_SESSION));
        }
        let key = SessionKey(self.exchange.next_key());
        let name: Box<str> = hidden(device).into();
        let head = Head { key, name, away_since_ms: None, will: None, ..head };
        let session = self.sessions.restore(&head, self.profile_of(&head.profile), now.tick());
        self.record_head(session, &head.name, Some(now));
        for subscription in subscriptions {
            self.journal.record(Change::Subscribed { session: key, subscription: subscription.clone() });
            self.restore_subscription(session, subscription);
        }
        for one in received {
            let received = image::Received { packet: one.packet, origin: 0 };
            self.journal.record(Change::Received { session: key, received });
            self.sessions.inflight(session).restore_answered(one.packet);
        }
        self.sessions.shed_empty_inflight(session);
        self.sessions.enter_away(session);
        self.note_wants();
        let next = self.journal.latest_number() + 1;
        self.journal.note_number(next + RESERVED);
        let adoption = Adoption {
            session,
            generation: self.sessions[session].generation,
            next,
            outstanding: outstanding.into(),
            outbound: Vec::new(),
            stored: Stored::default(),
        };
        self.handovers.adoptions.insert(device.into(), adoption);
        let token = self.begin_answer(request);
        self.expect_interest_of(token);
        self.settle(token, Part::Taken);
        None
    }

    /// Messages of a session that comes, in their order. `None`: the answer comes when they are safe.
    pub fn adopt_messages(&mut self, request: u64, device: &str, messages: Vec<Message>) -> Option<Outcome> {
        let Some((mut adoption, key)) = self.take_adoption(device) else { return Some(Outcome::Offline) };
        for message in messages {
            self.adopt_outstanding(&mut adoption, key, message.number);
            let number = adoption.take_number();
            let bytes = message.publication.bytes() as u64;
            if let Some(packet) = message.packet {
                adoption.outbound.push((number, packet, Sending::Stored { qos: message.qos }));
            } else {
                adoption.stored.messages += 1;
                adoption.stored.bytes += bytes;
            }
            let message = Box::new(Message { number, origin: 0, ..message });
            self.journal.record(Change::Queued { session: key, message });
        }
        self.handovers.adoptions.insert(device.into(), adoption);
        let token = self.begin_answer(request);
        self.settle(token, Part::Taken);
        None
    }

    /// All of a session is here: it is the device's. `None`: the answer comes when that is safe.
    pub fn reveal(&mut self, request: u64, device: &str, now: Moment) -> Option<Outcome> {
        let Some((mut adoption, key)) = self.take_adoption(device) else { return Some(Outcome::Offline) };
        self.adopt_outstanding(&mut adoption, key, u64::MAX);
        if let Some(before) = self.sessions.find_away(device) {
            self.end_quietly(before);
        }
        let Adoption { session, next, outbound, mut stored, .. } = adoption;
        self.sessions.leave_away(session);
        if stored.messages > 0 || outbound.iter().any(|(.., state)| matches!(state, Sending::Stored { .. })) {
            stored.through = next - 1;
            // Some of them may be; whoever wants to know reads them.
            self.sessions[session].group_messages = GroupMessages::Some;
        }
        self.sessions.stored_bytes += stored.bytes;
        self.sessions.inflight(session).adopt(stored, outbound);
        self.sessions.shed_empty_inflight(session);
        self.sessions.rename(session, device, now.tick());
        self.record_head(session, device, Some(now));
        self.sessions.enter_away(session);
        // Its row will say from where that is to be read, before it says whose it is.
        self.note_brought(session, true);
        self.spill_when_safe(session);
        let token = self.begin_answer(request);
        self.settle(token, Part::Taken);
        None
    }

    /// A session does not come after all, if one was on its way. Whether it was.
    pub fn abandon(&mut self, device: &str) -> bool {
        let Some((adoption, _)) = self.take_adoption(device) else { return false };
        self.end_quietly(adoption.session);
        true
    }

    /// An earlier process has not come to an end with taking it.
    pub(super) fn restore_hidden(&mut self, key: SessionKey) {
        self.journal.record(Change::Ended { session: key });
    }

    // --- Helpers ----------------------------------------------------------------------------------------------------

    fn take_adoption(&mut self, device: &str) -> Option<(Adoption, SessionKey)> {
        let adoption = self.handovers.adoptions.remove(device)?;
        let is_there = self.sessions.is_current(adoption.session, adoption.generation);
        is_there.then(|| {
            let key = self.sessions[adoption.session].key;
            (adoption, key)
        })
    }

    /// Those exchanges of QoS 2 that lie before this number of the other gateway are recorded, as what they are: the device has the
    /// message, and PUBCOMP is owed.
    fn adopt_outstanding(&mut self, adoption: &mut Adoption, session: SessionKey, before: u64) {
        while let Some(one) = adoption.outstanding.pop_front_if(|one| one.number < before) {
            let number = adoption.take_number();
            let publication = image::Publication {
                // It goes with its release.
                topic: "-".into(),
                payload: b"".as_slice().into(),
                qos: QoS::ExactlyOnce,
                retain: false,
                properties: Box::default(),
                expires_ms: None,
            };
            let message = Box::new(Message {
                number,
                packet: Some(one.packet),
                qos: QoS::ExactlyOnce,
                retain: false,
                identifiers: Vec::new(),
                group: None,
                publication: Arc::new(publication),
                origin: 0,
            });
            self.journal.record(Change::Queued { session, message });
            self.journal.record(Change::Released { session, number });
            adoption.outbound.push((number, one.packet, Sending::Released));
        }
    }

    /// A request that is answered when all that was recorded so far is safe, and its token is settled.
    fn begin_answer(&mut self, request: u64) -> Token {
        let token = self.settlements.open(Owner::Request(request));
        self.add_when_safe(token);
        token
    }

    /// What is subscribed to comes from other gateways too before this is settled.
    fn expect_interest_of(&mut self, token: Token) {
        if let Some(version) = self.interest.awaited() {
            self.settlements.add(token);
            self.handovers.interested.push_back((version, token));
        }
    }

    /// See [`Broker::handle_interest_held`].
    pub(super) fn settle_interested(&mut self, version: u64) {
        while let Some((_, token)) = self.handovers.interested.pop_front_if(|(of, _)| *of <= version) {
            self.settle(token, Part::Taken);
        }
    }
}

impl Adoption {
    fn take_number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }
}

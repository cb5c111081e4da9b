//! What is in flight between one session and its device: messages on their way out, messages on their way in, and the
//! topic aliases of the connection. Exists only while there is any of it.
//!
//! ```text
//!  out:         waiting ──below the bound of the queue──▶ queue
//!  out, QoS 1:  queue ──send──▶ Sent ──PUBACK──▶ done
//!  out, QoS 2:  queue ──send──▶ Sent ──PUBREC──▶ Released ──PUBCOMP──▶ done
//!  in,  QoS 1:  PUBLISH ──▶ Waiting ──it is settled──▶ PUBACK, done
//!  in,  QoS 2:  PUBLISH ──▶ Waiting ──it is settled──▶ PUBREC, received ──PUBREL──▶ PUBCOMP, done
//!  in, refused: PUBLISH ──▶ Settled ──what came before it is answered──▶ PUBACK or PUBREC, done
//! ```
//!
//! What is sent again after a reconnect is sent in the order in which it was first sent [v5 MQTT-4.4.0-1], and
//! acknowledgements go out in the order of what they acknowledge [v5 MQTT-4.6.0-2, MQTT-4.6.0-3].
//!
//! The queue has a bound. For a device that is connected and takes what it is sent, messages beyond the bound *wait*: they lie
//! behind the queue, in order, and are not settled, so that their publishers wait too (`settlement`). How many those can be is
//! bounded by the publishers' windows and the credit of other shards.
//!
//! What a device that is away has not acknowledged lies in the store alone, as soon as it is safe there; what is left of it here is
//! in `stored` (decision D27).

mod stored;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::pace::Pace;
use super::replay::Replays;
use super::settlement::{NOTHING, Token};
use crate::codec::mqtt::{QoS, Reason};
use crate::link::Publication;
use crate::pool::{ALLOCATION_BYTES, Charge, Class, Pool};
use crate::time::Tick;
use stored::Reading;
pub(super) use stored::Stored;

/// One message for one session: what its subscriptions have made of the publication.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The published message, shared by all who get it.
    pub publication: Arc<Publication>,
    /// The quality of service of this delivery.
    pub qos: QoS,
    /// Whether it carries RETAIN.
    pub retain: bool,
    /// The Subscription Identifiers of the subscriptions that matched.
    pub identifiers: Identifiers,
    /// The request of the API that waits for its acknowledgement; 0: none.
    pub request: u64,
    /// The settlement that waits until it is safe; 0: none.
    pub(super) token: Token,
    /// Its number in a session that outlives its connection, in the order in which they are sent; 0: it was not recorded.
    pub(super) number: u64,
}

/// Subscription Identifiers: nearly always none or one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Identifiers {
    /// No subscription that matched has one.
    #[default]
    None,
    /// Exactly one has.
    One([u32; 1]),
    /// More: overlapping subscriptions.
    Many(Vec<u32>),
}

impl Identifiers {
    /// Adds one; 0 is none.
    pub fn push(&mut self, identifier: u32) {
        match (&mut *self, identifier) {
            (_, 0) => {}
            (Identifiers::None, one) => *self = Identifiers::One([one]),
            (Identifiers::One([first]), another) => *self = Identifiers::Many(vec![*first, another]),
            (Identifiers::Many(all), another) => all.push(another),
        }
    }

    /// All of them.
    #[must_use]
    pub fn as_slice(&self) -> &[u32] {
        match self {
            Identifiers::None => &[],
            Identifiers::One(one) => one,
            Identifiers::Many(all) => all,
        }
    }
}

/// A message on its way to the device.
#[derive(Debug)]
pub(super) struct Outbound {
    pub(super) packet: u16,
    pub(super) state: Sending,
    pub(super) request: u64,
    /// See [`Delivery`].
    pub(super) number: u64,
    /// What must be safe before it is said.
    pub(super) mark: u64,
    /// It was never sent.
    pub(super) is_new: bool,
}

impl Outbound {
    fn bytes(&self) -> usize {
        match &self.state {
            Sending::Sent(delivery) => delivery.publication.bytes(),
            Sending::Stored { .. } | Sending::Released => 0,
        }
    }
}

impl Sending {
    /// The quality of service of what was sent and waits for PUBACK or PUBREC.
    fn awaits(&self) -> Option<QoS> {
        match self {
            Sending::Sent(delivery) => Some(delivery.qos),
            Sending::Stored { qos } => Some(*qos),
            Sending::Released => None,
        }
    }
}

#[derive(Debug)]
pub(super) enum Sending {
    /// Sent, once or more often; PUBACK or PUBREC is owed.
    Sent(Box<Delivery>),
    /// The same, and the message lies in the store alone: it is read before it is sent again.
    Stored { qos: QoS },
    /// PUBREL was sent; PUBCOMP is owed.
    Released,
}

/// An acknowledgement under an identifier that waits for another one, or for none: the device breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongAck;

/// A message from the device that was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inbound {
    pub(super) packet: u16,
    pub(super) qos: QoS,
    pub(super) state: Receiving,
    /// It came on this connection, and so counts against the Receive Maximum (v5 4.9).
    is_of_connection: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiving {
    /// It is not safe yet: this settlement is open.
    Waiting(Token),
    /// This is its answer, and one before it has not been answered.
    Settled(Reason),
}

/// What the device is to be told of a message that it sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its packet identifier.
    pub packet: u16,
    /// 1: PUBACK; 2: PUBREC.
    pub qos: QoS,
    /// Success: it was taken.
    pub reason: Reason,
}

/// The second half of the exchange of a message of QoS 2, said by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qos2Reply {
    /// The packet identifier.
    pub packet: u16,
    /// Success, or that nothing is known of it.
    pub reason: Reason,
    /// PUBREL; else PUBCOMP.
    pub is_pubrel: bool,
}

/// A SUBSCRIBE or UNSUBSCRIBE that is being dealt with: what is left of it is done in later turns, or SUBACK is said when the
/// homes of its shared subscriptions know of them.
#[derive(Debug)]
pub struct PendingSuback {
    /// The number under which they answer.
    pub(super) waits: u32,
    /// How many have not answered.
    pub(super) homes: usize,
    /// Whether every filter was dealt with.
    pub(super) is_whole: bool,
    /// The packet identifier.
    pub packet: u16,
    /// The reason codes of the filters that were dealt with, in their order.
    pub codes: Vec<u8>,
}

/// The bound of a session's queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueBound {
    pub(super) messages: usize,
    pub(super) bytes: usize,
    /// What the pool has for this session by now, in bytes.
    pub(super) room: usize,
    /// What may wait of it in the store, in bytes, where it goes there: its device is away.
    pub(super) stored: Option<usize>,
    /// Whether its device is there. One message always may wait for it then, so that it goes on when the pool is full.
    pub(super) is_online: bool,
}

impl QueueBound {
    /// Whether one more may wait, beside so many `messages` of so many `bytes`, of which so many are `in_memory`.
    fn admits(&self, (messages, bytes): (usize, usize), in_memory: usize, next: &Delivery) -> bool {
        let more = next.publication.bytes();
        let has_room = in_memory + more <= self.room || (messages == 0 && self.is_online);
        messages < self.messages && bytes + more <= self.bytes && has_room && !self.is_store_short(bytes, next)
    }

    /// Whether it is the store that has no room for one more, beside so many `bytes`.
    pub(super) fn is_store_short(&self, bytes: usize, next: &Delivery) -> bool {
        self.stored.is_some_and(|stored| bytes + next.publication.bytes() > stored)
    }
}

/// Where a message has gone that could not be sent at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Enqueued {
    /// Into the queue: it is safe, and so is this settlement's part.
    Kept(Token),
    /// Behind the queue, and nothing was there before.
    FirstWaits,
    /// Behind the queue.
    Waits,
}

/// Who has waited for something that will not be any more.
#[derive(Debug, Default)]
pub(super) struct Released {
    /// Requests of the API.
    pub(super) requests: Vec<u64>,
    /// Settlements.
    pub(super) tokens: Vec<Token>,
    /// How many messages were dropped.
    pub(super) dropped: usize,
    /// The numbers of those that were recorded.
    pub(super) numbers: Vec<u64>,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Inflight {
    outbound: VecDeque<Outbound>,
    /// Bytes of the messages in it.
    outbound_bytes: usize,
    /// What all of it takes of the shard's pool, as of the latest [`Inflight::account`].
    charge: Option<Charge>,
    /// So many of `outbound`, from the front, were sent on this connection; the rest is to be sent again.
    sent: usize,
    /// What waits to be sent: first those within the bound, then those whose publishers wait.
    queue: VecDeque<Delivery>,
    /// So many of `queue`, from the front, are within the bound.
    kept: usize,
    /// Bytes of those.
    kept_bytes: usize,
    /// What lies in the store alone.
    stored: Stored,
    /// How far it was read again; between what was read and what came later it lies in the queue.
    reading: Reading,
    /// It is listed among those whose messages go as soon as they are safe in the store.
    pub(super) is_spilling: bool,
    /// How the device gets on, while publishers wait for it.
    pace: Option<Pace>,
    /// Nobody waits for the device until it has caught up.
    is_stalled: bool,
    /// A CONNACK that waits until what it says is safe, and that mark.
    pub(super) greeting: Option<Box<(u64, Vec<u8>)>>,
    /// PUBRELs and PUBCOMPs that wait until what they say is safe, and those marks.
    pub(super) replies: VecDeque<(u64, Qos2Reply)>,
    /// A SUBACK that waits for the homes of groups.
    suback: Option<Box<PendingSuback>>,
    /// Retained messages that new subscriptions are to get.
    pub(super) replays: Option<Box<Replays>>,
    /// Messages of the device that have no answer yet, in order. Few: no more is read while there are many.
    inbound: VecDeque<Inbound>,
    /// Messages of QoS 2 for which PUBREC was sent and PUBREL is owed, by packet identifier. Maybe many. `true`: it came on
    /// this connection.
    answered: BTreeMap<u16, bool>,
    /// So many of both came on this connection.
    received: usize,
    /// Topics that the device has given a number, by number less one.
    pub(super) aliases_in: Vec<Option<Box<str>>>,
    /// Topics that we have given a number, by number less one.
    pub(super) aliases_out: Vec<Box<str>>,
}

impl Inflight {
    /// Whether nothing is in memory.
    pub(super) fn is_empty(&self) -> bool {
        self.outbound.is_empty()
            && self.queue.is_empty()
            && self.replays.is_none()
            && self.greeting.is_none()
            && self.replies.is_empty()
            && self.suback.is_none()
            && self.inbound.is_empty()
            && self.answered.is_empty()
            && self.aliases_in.is_empty()
            && self.aliases_out.is_empty()
    }

    /// What all of it takes, in bytes: messages that others share are counted here too.
    fn bytes(&self) -> usize {
        let entries = self.outbound.len() + self.queue.len() + self.inbound.len() + self.answered.len();
        let aliases_in = self.aliases_in.iter().flatten().map(|topic| topic.len() + ALLOCATION_BYTES);
        let aliases_out = self.aliases_out.iter().map(|topic| topic.len() + ALLOCATION_BYTES);
        let suback = self
            .suback
            .as_deref()
            .map_or(0, |suback| size_of::<PendingSuback>() + suback.codes.capacity() + 2 * ALLOCATION_BYTES);
        size_of::<Self>()
            + suback
            + self.outbound_bytes
            + self.kept_bytes
            + entries * (size_of::<Delivery>() + ALLOCATION_BYTES)
            + aliases_in.chain(aliases_out).sum::<usize>()
    }

    /// The pool is told what it takes by now.
    pub(super) fn account(&mut self, pool: &Arc<Pool>) {
        let bytes = self.bytes();
        self.charge.get_or_insert_with(|| Charge::none(pool, Class::Queues)).set(bytes);
    }

    /// What the pool was told.
    pub(super) fn charged(&self) -> usize {
        self.charge.as_ref().map_or(0, Charge::bytes)
    }

    // --- Out --------------------------------------------------------------------------------------------------------

    pub(super) fn unacknowledged(&self) -> usize {
        self.outbound.len()
    }

    /// Messages that wait within the bound, and their bytes, wherever they lie.
    pub(super) fn queued(&self) -> (usize, usize) {
        (self.kept + self.stored.messages as usize, self.kept_bytes + self.stored.bytes as usize)
    }

    /// Those of them in memory.
    pub(super) fn kept(&self) -> (usize, usize) {
        (self.kept, self.kept_bytes)
    }

    /// Whether another message with an acknowledgement may be sent while at most `maximum` are unacknowledged, and
    /// nothing older waits.
    pub(super) fn may_send(&self, maximum: usize) -> bool {
        self.sent == self.outbound.len() && self.outbound.len() < maximum
    }

    /// Whether a message that a former connection left unacknowledged may be sent again, while at most `maximum` are
    /// unacknowledged on this one: it may take fewer than the former.
    pub(super) fn may_resend(&self, maximum: usize) -> bool {
        self.sent < maximum
    }

    /// Whether a packet identifier is in use.
    pub(super) fn uses(&self, packet: u16) -> bool {
        self.outbound.iter().any(|outbound| outbound.packet == packet)
    }

    /// A message is being sent for the first time.
    pub(super) fn begin(&mut self, packet: u16, delivery: Delivery) {
        debug_assert!(self.sent == self.outbound.len() && !self.uses(packet));
        self.push_outbound(packet, delivery, 0);
        self.resent();
    }

    /// A message is to be sent when everything up to a `mark` is safe, behind whatever else is.
    pub(super) fn begin_later(&mut self, packet: u16, delivery: Delivery, mark: u64) {
        debug_assert!(!self.uses(packet));
        self.push_outbound(packet, delivery, mark);
    }

    fn push_outbound(&mut self, packet: u16, delivery: Delivery, mark: u64) {
        let (request, number) = (delivery.request, delivery.number);
        self.outbound_bytes += delivery.publication.bytes();
        let state = Sending::Sent(Box::new(delivery));
        self.outbound.push_back(Outbound { packet, state, request, number, mark, is_new: true });
    }

    /// A message or PUBREL that an earlier process has said, perhaps.
    pub(super) fn restore_outbound(&mut self, packet: u16, state: Sending, number: u64) {
        let outbound = Outbound { packet, state, request: 0, number, mark: 0, is_new: false };
        self.outbound_bytes += outbound.bytes();
        self.outbound.push_back(outbound);
    }

    /// PUBREC of this message was said by an earlier process, perhaps.
    pub(super) fn restore_answered(&mut self, packet: u16) {
        self.answered.insert(packet, false);
    }

    /// The next message to be sent again; [`Inflight::resent`] or [`Inflight::give_up`] goes on to the one after it.
    pub(super) fn next_to_resend(&self) -> Option<&Outbound> {
        self.outbound.get(self.sent)
    }

    /// Whether a PUBREL waits until it may be said.
    pub(super) fn owes_pubrel(&self) -> bool {
        self.replies.iter().any(|(_, reply)| reply.is_pubrel)
    }

    pub(super) fn resent(&mut self) {
        if let Some(outbound) = self.outbound.get_mut(self.sent) {
            outbound.is_new = false;
        }
        self.sent += 1;
        debug_assert!(self.sent <= self.outbound.len());
    }

    /// Forgets the message that [`Inflight::next_to_resend`] names: it can never be sent on this connection.
    pub(super) fn give_up(&mut self) -> Option<Outbound> {
        let given_up = self.outbound.remove(self.sent)?;
        self.outbound_bytes -= given_up.bytes();
        Some(given_up)
    }

    /// The number of a message in flight, and whether its PUBREC was heard; 0: it was not recorded.
    pub(super) fn number_of(&self, packet: u16) -> (u64, bool) {
        self.place(packet).map_or((0, false), |place| {
            let outbound = &self.outbound[place];
            (outbound.number, matches!(outbound.state, Sending::Released))
        })
    }

    /// What is in flight under this identifier is said again only when everything up to a `mark` is safe.
    pub(super) fn set_mark(&mut self, packet: u16, mark: u64) {
        if let Some(place) = self.place(packet) {
            self.outbound[place].mark = mark;
        }
    }

    /// Where the message is. One that was sent on a former connection counts: a device may acknowledge it before it has
    /// come again.
    fn place(&self, packet: u16) -> Option<usize> {
        self.outbound.iter().position(|outbound| outbound.packet == packet)
    }

    fn finish(&mut self, place: usize) -> u64 {
        self.sent -= usize::from(place < self.sent);
        let Some(finished) = self.outbound.remove(place) else { return 0 };
        self.outbound_bytes -= finished.bytes();
        finished.request
    }

    /// PUBACK. The request that waits for it (0: none); `Ok(None)`: no such message is in flight.
    pub(super) fn handle_puback(&mut self, packet: u16) -> Result<Option<u64>, WrongAck> {
        let Some(place) = self.place(packet) else { return Ok(None) };
        match self.outbound[place].state.awaits() {
            Some(QoS::AtLeastOnce) => Ok(Some(self.finish(place))),
            _ => Err(WrongAck),
        }
    }

    /// PUBREC; a `failed` one ends the message [v5 MQTT-4.3.3-4]. The request that waits, answered already by what the
    /// device says (0: none); `Ok(None)`: no such message is in flight. After `Ok(Some(_))` PUBREL is to be said.
    pub(super) fn handle_pubrec(&mut self, packet: u16, failed: bool) -> Result<Option<u64>, WrongAck> {
        let Some(place) = self.place(packet) else { return Ok(None) };
        match self.outbound[place].state.awaits() {
            Some(QoS::ExactlyOnce) => {}
            // Said before: PUBREL is said again.
            None if !failed => {}
            _ => return Err(WrongAck),
        }
        if failed {
            return Ok(Some(self.finish(place)));
        }
        let mut outbound = self.outbound.remove(place).expect("the place was found");
        self.outbound_bytes -= outbound.bytes();
        outbound.state = Sending::Released;
        let request = std::mem::take(&mut outbound.request);
        // PUBREL goes now: nothing of it is left to be sent again on this connection.
        let is_new_here = place >= self.sent;
        self.outbound.insert(if is_new_here { self.sent } else { place }, outbound);
        self.sent += usize::from(is_new_here);
        Ok(Some(request))
    }

    /// PUBCOMP. `Ok(false)`: no such message is in flight.
    pub(super) fn handle_pubcomp(&mut self, packet: u16) -> Result<bool, WrongAck> {
        let Some(place) = self.place(packet) else { return Ok(false) };
        match self.outbound[place].state {
            Sending::Released => self.finish(place),
            Sending::Sent(_) | Sending::Stored { .. } => return Err(WrongAck),
        };
        Ok(true)
    }

    // --- The queue --------------------------------------------------------------------------------------------------

    /// Puts a message behind those that wait, within the bound of so many `messages` and `bytes` or, where its publisher may
    /// wait for it, beyond. It comes back where neither is possible.
    pub(super) fn enqueue(
        &mut self,
        delivery: Delivery,
        bound: &QueueBound,
        may_wait: bool,
    ) -> Result<Enqueued, Delivery> {
        let is_first_beyond = self.kept == self.queue.len();
        if is_first_beyond && bound.admits(self.queued(), self.kept_bytes, &delivery) {
            self.kept += 1;
            self.kept_bytes += delivery.publication.bytes();
            let token = delivery.token;
            self.queue.push_back(Delivery { token: NOTHING, ..delivery });
            return Ok(Enqueued::Kept(token));
        }
        let never_fits = bound.messages == 0 || delivery.publication.bytes() > bound.bytes;
        if !may_wait || never_fits || self.is_stalled || delivery.token == NOTHING {
            return Err(delivery);
        }
        self.queue.push_back(delivery);
        Ok(if is_first_beyond { Enqueued::FirstWaits } else { Enqueued::Waits })
    }

    /// Takes those that wait into the queue, as far as there is room within the bound. They are safe now: their settlements
    /// are appended to `settled`.
    pub(super) fn admit_waiting(&mut self, bound: &QueueBound, settled: &mut Vec<Token>) {
        let (stored, stored_bytes) = (self.stored.messages as usize, self.stored.bytes as usize);
        while let Some(next) = self.queue.get_mut(self.kept)
            && bound.admits((self.kept + stored, self.kept_bytes + stored_bytes), self.kept_bytes, next)
        {
            settled.push(std::mem::replace(&mut next.token, NOTHING));
            self.kept_bytes += next.publication.bytes();
            self.kept += 1;
        }
        if self.kept == self.queue.len() {
            self.pace = None;
        }
        let (messages, bytes) = self.queued();
        if messages <= bound.messages / 2 && bytes <= bound.bytes / 2 {
            self.is_stalled = false;
        }
    }

    /// A message within the bound, by its place.
    pub(super) fn kept_mut(&mut self, place: usize) -> Option<&mut Delivery> {
        if place < self.kept { self.queue.get_mut(place) } else { None }
    }

    /// Drops those that wait beyond the bound, and says so in `released`.
    pub(super) fn drop_waiting(&mut self, released: &mut Released) {
        let waiting = self.queue.split_off(self.kept);
        released.tokens.extend(waiting.iter().map(|delivery| delivery.token));
        released.numbers.extend(waiting.iter().map(|delivery| delivery.number).filter(|&number| number != 0));
        released.dropped += waiting.len();
        self.pace = None;
        self.is_stalled = true;
    }

    /// Whether publishers wait for this device, and how it gets on.
    pub(super) fn pace(&self) -> Option<Pace> {
        self.pace
    }

    /// Counts from now on what the device takes.
    pub(super) fn begin_pace(&mut self, now: Tick) {
        self.pace = Some(Pace { since: now, taken: 0 });
    }

    /// The next one that waits. None may only mean that it lies in the store.
    pub(super) fn peek(&self) -> Option<&Delivery> {
        self.queue.front().filter(|_| !self.is_next_stored())
    }

    /// The message that [`Inflight::dequeue`] gave out did not go after all.
    pub(super) fn put_back(&mut self, delivery: Delivery) {
        self.kept += 1;
        self.kept_bytes += delivery.publication.bytes();
        self.note_put_back();
        self.queue.push_front(delivery);
        if let Some(pace) = &mut self.pace {
            pace.taken = pace.taken.saturating_sub(1);
        }
    }

    /// Whether anything waits to be sent, or to be sent again.
    pub(super) fn has_waiting(&self) -> bool {
        !self.queue.is_empty() || self.has_stored() || self.replays.is_some() || self.sent < self.outbound.len()
    }

    pub(super) fn dequeue(&mut self) -> Option<Delivery> {
        debug_assert!(self.kept > 0 || self.queue.is_empty(), "what waits is admitted before it goes");
        debug_assert!(!self.is_next_stored(), "what lies in the store goes first");
        self.note_taken();
        let delivery = self.queue.pop_front()?;
        self.kept -= 1;
        self.kept_bytes -= delivery.publication.bytes();
        if let Some(pace) = &mut self.pace {
            pace.taken += 1;
        }
        Some(delivery)
    }

    /// A replay has ended, or its subscription has.
    pub(super) fn shed_replays(&mut self) {
        if self.replays.as_deref().is_some_and(Replays::is_empty) {
            self.replays = None;
        }
    }

    // --- In ---------------------------------------------------------------------------------------------------------

    /// How many messages of the device came on this connection and are not done with.
    pub(super) fn received(&self) -> usize {
        self.received
    }

    /// How many messages of the device have no answer yet.
    pub(super) fn unanswered(&self) -> usize {
        self.inbound.len()
    }

    /// Whether a message of QoS 2 was answered with PUBREC.
    pub(super) fn is_answered(&self, packet: u16) -> bool {
        self.answered.contains_key(&packet)
    }

    /// Whether a message of the device waits for its answer.
    pub(super) fn is_unanswered(&self, packet: u16, qos: QoS) -> bool {
        self.inbound.iter().any(|inbound| inbound.packet == packet && inbound.qos == qos)
    }

    /// A message has come.
    pub(super) fn receive(&mut self, packet: u16, qos: QoS, state: Receiving) {
        self.inbound.push_back(Inbound { packet, qos, state, is_of_connection: true });
        self.received += 1;
    }

    /// A message that is known has come again. `true`: for the first time on this connection.
    pub(super) fn receive_again(&mut self, packet: u16, qos: QoS) -> bool {
        let known = |inbound: &&mut Inbound| inbound.packet == packet && inbound.qos == qos;
        let is_of_connection = match self.answered.get_mut(&packet) {
            Some(is_of_connection) if qos == QoS::ExactlyOnce => Some(is_of_connection),
            _ => self.inbound.iter_mut().find(known).map(|inbound| &mut inbound.is_of_connection),
        };
        let is_first = is_of_connection.is_some_and(|known| !std::mem::replace(known, true));
        self.received += usize::from(is_first);
        is_first
    }

    /// A message that waits for one settlement waits for another one from now on.
    pub(super) fn wait_for(&mut self, packet: u16, token: Token, other: Token) {
        let waiting = Receiving::Waiting(token);
        let inbound = self.inbound.iter_mut().find(|inbound| inbound.packet == packet && inbound.state == waiting);
        if let Some(inbound) = inbound {
            inbound.state = Receiving::Waiting(other);
        }
    }

    /// This is the answer to a message that waits for one. `false`: nobody waits for it any more.
    pub(super) fn settle(&mut self, packet: u16, token: Token, reason: Reason) -> bool {
        let waiting = Receiving::Waiting(token);
        let inbound = self.inbound.iter_mut().find(|inbound| inbound.packet == packet && inbound.state == waiting);
        let Some(inbound) = inbound else { return false };
        inbound.state = Receiving::Settled(reason);
        true
    }

    /// The next answer that may be given: nothing before it is unanswered. What came on an earlier connection is answered when
    /// it comes again, as it must [MQTT-4.4.0-1]: otherwise it would be answered twice.
    pub(super) fn next_answer(&mut self) -> Option<Answer> {
        while let Some(&Inbound { packet, qos, state: Receiving::Settled(reason), is_of_connection }) =
            self.inbound.front()
        {
            self.inbound.pop_front();
            if qos == QoS::ExactlyOnce && reason == Reason::SUCCESS {
                self.answered.insert(packet, is_of_connection);
            } else {
                self.received -= usize::from(is_of_connection);
            }
            if is_of_connection {
                return Some(Answer { packet, qos, reason });
            }
        }
        None
    }

    /// PUBREL. `Ok(false)`: no such message was received.
    pub(super) fn handle_pubrel(&mut self, packet: u16) -> Result<bool, WrongAck> {
        if let Some(is_of_connection) = self.answered.remove(&packet) {
            self.received -= usize::from(is_of_connection);
            return Ok(true);
        }
        // PUBREC has not been said; or a message of QoS 1 uses the identifier, by the device's fault.
        if self.inbound.iter().any(|inbound| inbound.packet == packet) { Err(WrongAck) } else { Ok(false) }
    }

    // --- SUBACK -----------------------------------------------------------------------------------------------------

    /// A SUBACK that waits for the homes of groups. At most one: no more is read until it is said.
    pub(super) fn hold_suback(&mut self, suback: PendingSuback) {
        debug_assert!(self.suback.is_none());
        self.suback = Some(Box::new(suback));
    }

    /// Whether a SUBACK waits.
    pub(super) fn has_suback(&self) -> bool {
        self.suback.is_some()
    }

    /// The home of one of its groups has answered. `true`: it may be said.
    pub(super) fn handle_joined(&mut self, waits: u32) -> bool {
        let Some(suback) = self.suback.as_deref_mut().filter(|suback| suback.waits == waits) else { return false };
        suback.homes = suback.homes.saturating_sub(1);
        suback.is_whole && suback.homes == 0
    }

    /// The SUBACK, if it may be said.
    pub(super) fn take_suback(&mut self) -> Option<PendingSuback> {
        self.suback.take_if(|suback| suback.is_whole && suback.homes == 0).map(|suback| *suback)
    }

    /// The packet of which filters are left.
    pub(super) fn take_unfinished(&mut self) -> Option<PendingSuback> {
        self.suback.take_if(|suback| !suback.is_whole).map(|suback| *suback)
    }

    // --- The connection -----------------------------------------------------------------------------------------------

    /// Nobody is there to be told what is safe by now: the device will send it again, and what was taken of QoS 2 is answered
    /// then.
    pub(super) fn forget_answered(&mut self) {
        let taken = |inbound: &&Inbound| {
            inbound.qos == QoS::ExactlyOnce && inbound.state == Receiving::Settled(Reason::SUCCESS)
        };
        self.answered.extend(self.inbound.iter().filter(taken).map(|inbound| (inbound.packet, false)));
        self.inbound.retain(|inbound| matches!(inbound.state, Receiving::Waiting(_)));
    }

    /// The connection has ended. Whatever was sent is to be sent again; whatever the device will send again is
    /// forgotten; aliases are the connection's. What waited beyond the bound is not kept for a device that is away. Whoever
    /// waited for any of it is handed to `released`.
    pub(super) fn disconnect(&mut self, released: &mut Released) {
        self.sent = 0;
        self.aliases_in = Vec::new();
        self.aliases_out = Vec::new();
        self.suback = None;
        self.greeting = None;
        self.replies = VecDeque::new();
        self.forget_answered();
        self.inbound.retain(|inbound| inbound.qos == QoS::ExactlyOnce);
        self.received = 0;
        self.inbound.iter_mut().for_each(|inbound| inbound.is_of_connection = false);
        self.answered.values_mut().for_each(|is_of_connection| *is_of_connection = false);
        for request in self.outbound.iter_mut().map(|outbound| &mut outbound.request) {
            released.requests.extend(Some(std::mem::take(request)).filter(|&request| request != 0));
        }
        for delivery in &mut self.queue {
            released.requests.extend(Some(std::mem::take(&mut delivery.request)).filter(|&request| request != 0));
        }
        self.drop_waiting(released);
        self.is_stalled = false;
        // Those without an acknowledgement are for whoever is there.
        self.queue.retain(|delivery| delivery.qos.is_acknowledged());
        self.kept = self.queue.len();
        self.kept_bytes = self.queue.iter().map(|delivery| delivery.publication.bytes()).sum();
    }

    pub(super) fn check_invariants(&self, is_online: bool) {
        assert!(self.sent <= self.outbound.len());
        self.check_stored(is_online);
        assert_eq!(self.outbound_bytes, self.outbound.iter().map(Outbound::bytes).sum::<usize>());
        let (kept, waiting) = (self.queue.iter().take(self.kept), self.queue.iter().skip(self.kept));
        assert_eq!(self.kept_bytes, kept.clone().map(|delivery| delivery.publication.bytes()).sum::<usize>());
        assert!(kept.clone().all(|delivery| delivery.token == NOTHING), "what is kept is settled");
        assert!(waiting.clone().all(|delivery| delivery.token != NOTHING && delivery.qos.is_acknowledged()));
        assert!(is_online || waiting.clone().count() == 0, "publishers wait for a device that is away");
        assert_eq!(self.pace.is_some(), waiting.count() > 0, "whoever is waited for is watched");
        let own = self.inbound.iter().filter(|inbound| inbound.is_of_connection).count();
        assert_eq!(self.received, own + self.answered.values().filter(|is_of_connection| **is_of_connection).count());
        let mut packets: Vec<u16> = self.outbound.iter().map(|outbound| outbound.packet).collect();
        packets.sort_unstable();
        packets.dedup();
        assert_eq!(packets.len(), self.outbound.len(), "a packet identifier is used twice");
        assert!(!packets.contains(&0));
        if let Some(replays) = &self.replays {
            assert!(!replays.is_empty());
            replays.check_invariants();
        }
    }
}

#[cfg(test)]
mod tests;

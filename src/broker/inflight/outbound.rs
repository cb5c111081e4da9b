//! Messages on their way to the device: those that were sent and are not acknowledged, and the queue of those that wait.

use std::collections::VecDeque;

use super::{Delivery, Inflight, Oldest, Pace, Released, Replays, WrongAck};
use crate::broker::redispatch::Left;
use crate::broker::settlement::{NOTHING, Token};
use crate::codec::mqtt::QoS;
use crate::time::Tick;

/// Who has stalled has caught up when the queue is down to one in so many of its bound.
const CAUGHT_UP: usize = 8;

/// A message on its way to the device.
#[derive(Debug)]
pub(in super::super) struct Outbound {
    pub(in super::super) packet: u16,
    pub(in super::super) state: Sending,
    pub(in super::super) request: u64,
    /// See [`Delivery`].
    pub(in super::super) number: u64,
    /// What must be safe before it is said.
    pub(in super::super) mark: u64,
    /// It was never sent.
    pub(in super::super) is_new: bool,
}

impl Outbound {
    pub(super) fn bytes(&self) -> usize {
        match &self.state {
            Sending::Sent(delivery) => delivery.publication.bytes(),
            Sending::Stored { .. } | Sending::Released => 0,
        }
    }

    /// See [`Delivery::is_lent`].
    pub(in super::super) fn is_lent(&self) -> bool {
        self.request != 0 && matches!(&self.state, Sending::Sent(delivery) if delivery.group.is_some())
    }
}

impl Sending {
    /// The quality of service of what was sent and waits for PUBACK or PUBREC.
    pub(super) fn awaits(&self) -> Option<QoS> {
        match self {
            Sending::Sent(delivery) => Some(delivery.qos),
            Sending::Stored { qos } => Some(*qos),
            Sending::Released => None,
        }
    }
}

#[derive(Debug)]
pub(in super::super) enum Sending {
    /// Sent, once or more often; PUBACK or PUBREC is owed.
    Sent(Box<Delivery>),
    /// The same, and the message lies in the store alone: it is read before it is sent again.
    Stored { qos: QoS },
    /// PUBREL was sent; PUBCOMP is owed.
    Released,
}

/// The bound of a session's queue.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct QueueBound {
    pub(in super::super) messages: usize,
    pub(in super::super) bytes: usize,
    /// What the pool has for this session by now, in bytes.
    pub(in super::super) room: usize,
    /// What may wait of it in the store, in bytes, where it goes there: its device is away.
    pub(in super::super) stored: Option<usize>,
    /// One message always may wait for it, so that it goes on when the pool is full: its device is there, or the store takes it.
    pub(in super::super) goes_on: bool,
}

impl QueueBound {
    /// Whether one more may wait, beside so many `messages` of so many `bytes`, of which so many are `in_memory`.
    fn admits(&self, (messages, bytes): (usize, usize), in_memory: usize, next: &Delivery) -> bool {
        let more = next.publication.bytes();
        let is_alone = if self.stored.is_some() { in_memory == 0 } else { messages == 0 };
        let has_room = in_memory.saturating_add(more) <= self.room || (is_alone && self.goes_on);
        messages < self.messages && bytes + more <= self.bytes && has_room && !self.is_store_short(bytes, next)
    }

    /// Whether it is the store that has no room for one more, beside so many `bytes`.
    pub(in super::super) fn is_store_short(&self, bytes: usize, next: &Delivery) -> bool {
        self.stored.is_some_and(|stored| bytes + next.publication.bytes() > stored)
    }
}

/// Where a message has gone that could not be sent at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Enqueued {
    /// Into the queue: it is safe, and so is this settlement's part.
    Kept(Token),
    /// Behind the queue, and nothing was there before.
    FirstWaits,
    /// Behind the queue.
    Waits,
}

impl Inflight {
    /// What its device has not acknowledged, but for what is lent: that is not read from the stream for another session.
    pub(in super::super) fn oldest(&self) -> Oldest {
        let is_owed = |outbound: &&Outbound| !matches!(outbound.state, Sending::Released) && !outbound.is_lent();
        let sent = self.outbound.iter().filter(is_owed).map(|outbound| outbound.number);
        let is_kept = |delivery: &&Delivery| delivery.qos.is_acknowledged() && !delivery.is_lent();
        let waiting = self.queue.iter().filter(is_kept).map(|delivery| delivery.number);
        let mut is_all = true;
        let numbers = sent.chain(waiting).inspect(|number| is_all &= *number != 0);
        let first = numbers.chain(self.first_stored()).min();
        first.map_or(Oldest::None, |first| Oldest::Number { first, is_all })
    }

    /// How many messages are lent to it.
    pub(in super::super) fn lent(&self) -> u32 {
        self.lent
    }

    pub(super) fn check_lent(&self) {
        let sent = self.outbound.iter().filter(|outbound| outbound.is_lent()).count();
        let waiting = self.queue.iter().filter(|delivery| delivery.is_lent()).count();
        assert_eq!(self.lent as usize, sent + waiting, "what is lent is counted");
    }

    pub(in super::super) fn unacknowledged(&self) -> usize {
        self.outbound.len()
    }

    /// Messages that wait within the bound, and their bytes, wherever they lie.
    pub(in super::super) fn queued(&self) -> (usize, usize) {
        (self.kept + self.stored.messages as usize, self.kept_bytes + self.stored.bytes as usize)
    }

    /// Those of them in memory.
    pub(in super::super) fn kept(&self) -> (usize, usize) {
        (self.kept, self.kept_bytes)
    }

    /// Messages that wait behind the bound, and their bytes.
    pub(in super::super) fn waiting(&self) -> (usize, usize) {
        let waiting = self.queue.range(self.kept..);
        (waiting.len(), waiting.map(|delivery| delivery.publication.bytes()).sum())
    }

    /// Whether another message with an acknowledgement may be sent while at most `maximum` are unacknowledged, and
    /// nothing older waits.
    pub(in super::super) fn may_send(&self, maximum: usize) -> bool {
        self.sent == self.outbound.len() && self.outbound.len() < maximum
    }

    /// Whether a message that a former connection left unacknowledged may be sent again, while at most `maximum` are
    /// unacknowledged on this one: it may take fewer than the former.
    pub(in super::super) fn may_resend(&self, maximum: usize) -> bool {
        self.sent < maximum
    }

    /// Whether a packet identifier is in use.
    pub(in super::super) fn uses(&self, packet: u16) -> bool {
        self.outbound.iter().any(|outbound| outbound.packet == packet)
    }

    /// A message is being sent for the first time.
    pub(in super::super) fn begin(&mut self, packet: u16, delivery: Delivery) {
        debug_assert!(self.sent == self.outbound.len() && !self.uses(packet));
        self.push_outbound(packet, delivery, 0);
        self.resent();
    }

    /// A message is to be sent when everything up to a `mark` is safe, behind whatever else is.
    pub(in super::super) fn begin_later(&mut self, packet: u16, delivery: Delivery, mark: u64) {
        debug_assert!(!self.uses(packet));
        self.push_outbound(packet, delivery, mark);
    }

    pub(super) fn push_outbound(&mut self, packet: u16, delivery: Delivery, mark: u64) {
        let (request, number) = (delivery.request, delivery.number);
        self.outbound_bytes += delivery.publication.bytes();
        self.lent += u32::from(delivery.is_lent());
        let state = Sending::Sent(Box::new(delivery));
        self.outbound.push_back(Outbound { packet, state, request, number, mark, is_new: true });
    }

    /// A message or PUBREL that an earlier process has said, perhaps.
    pub(in super::super) fn restore_outbound(&mut self, packet: u16, state: Sending, number: u64) {
        let outbound = Outbound { packet, state, request: 0, number, mark: 0, is_new: false };
        self.outbound_bytes += outbound.bytes();
        self.outbound.push_back(outbound);
    }

    /// The next message to be sent again; [`Inflight::resent`] or [`Inflight::give_up`] goes on to the one after it.
    pub(in super::super) fn next_to_resend(&self) -> Option<&Outbound> {
        self.outbound.get(self.sent)
    }

    /// Whether a PUBREL waits until it may be said.
    pub(in super::super) fn owes_pubrel(&self) -> bool {
        self.replies.iter().any(|(_, reply)| reply.is_pubrel)
    }

    pub(in super::super) fn resent(&mut self) {
        if let Some(outbound) = self.outbound.get_mut(self.sent) {
            outbound.is_new = false;
        }
        self.sent += 1;
        debug_assert!(self.sent <= self.outbound.len());
    }

    /// Forgets the message that [`Inflight::next_to_resend`] names: it can never be sent on this connection.
    pub(in super::super) fn give_up(&mut self) -> Option<Outbound> {
        self.remove(self.sent)
    }

    /// Takes one out of those that were sent, or are to be.
    fn remove(&mut self, place: usize) -> Option<Outbound> {
        let removed = self.outbound.remove(place)?;
        self.outbound_bytes -= removed.bytes();
        self.lent -= u32::from(removed.is_lent());
        Some(removed)
    }

    /// The number of a message in flight, and whether its PUBREC was heard; 0: it was not recorded.
    pub(in super::super) fn number_of(&self, packet: u16) -> (u64, bool) {
        self.place(packet).map_or((0, false), |place| {
            let outbound = &self.outbound[place];
            (outbound.number, matches!(outbound.state, Sending::Released))
        })
    }

    /// What is in flight under this identifier is said again only when everything up to a `mark` is safe.
    pub(in super::super) fn set_mark(&mut self, packet: u16, mark: u64) {
        if let Some(place) = self.place(packet) {
            self.outbound[place].mark = mark;
        }
    }

    /// Where the message is. One that was sent on a former connection counts: a device may acknowledge it before it has
    /// come again.
    pub(super) fn place(&self, packet: u16) -> Option<usize> {
        self.outbound.iter().position(|outbound| outbound.packet == packet)
    }

    pub(super) fn finish(&mut self, place: usize) -> u64 {
        self.sent -= usize::from(place < self.sent);
        self.remove(place).map_or(0, |finished| finished.request)
    }

    /// PUBACK. The request that waits for it (0: none); `Ok(None)`: no such message is in flight.
    pub(in super::super) fn handle_puback(&mut self, packet: u16) -> Result<Option<u64>, WrongAck> {
        let Some(place) = self.place(packet) else { return Ok(None) };
        match self.outbound[place].state.awaits() {
            Some(QoS::AtLeastOnce) => Ok(Some(self.finish(place))),
            _ => Err(WrongAck),
        }
    }

    /// PUBREC; a `failed` one ends the message [v5 MQTT-4.3.3-4]. The request that waits, answered already by what the
    /// device says (0: none); `Ok(None)`: no such message is in flight. After `Ok(Some(_))` PUBREL is to be said.
    pub(in super::super) fn handle_pubrec(&mut self, packet: u16, failed: bool) -> Result<Option<u64>, WrongAck> {
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
        let mut outbound = self.remove(place).expect("the place was found");
        outbound.state = Sending::Released;
        let request = std::mem::take(&mut outbound.request);
        // PUBREL goes now: nothing of it is left to be sent again on this connection.
        let is_new_here = place >= self.sent;
        self.outbound.insert(if is_new_here { self.sent } else { place }, outbound);
        self.sent += usize::from(is_new_here);
        Ok(Some(request))
    }

    /// Whether a message that is in memory was given to a group.
    pub(in super::super) fn is_of_group(&self, packet: u16) -> bool {
        let outbound = self.place(packet).map(|place| &self.outbound[place].state);
        matches!(outbound, Some(Sending::Sent(delivery)) if delivery.group.is_some())
    }

    /// PUBCOMP. `Ok(false)`: no such message is in flight.
    pub(in super::super) fn handle_pubcomp(&mut self, packet: u16) -> Result<bool, WrongAck> {
        let Some(place) = self.place(packet) else { return Ok(false) };
        match self.outbound[place].state {
            Sending::Released => self.finish(place),
            Sending::Sent(_) | Sending::Stored { .. } => return Err(WrongAck),
        };
        Ok(true)
    }

    /// Puts a message behind those that wait, within the bound of so many `messages` and `bytes` or, where its publisher may
    /// wait for it, beyond. It comes back where neither is possible.
    pub(in super::super) fn enqueue(
        &mut self,
        delivery: Delivery,
        bound: &QueueBound,
        may_wait: bool,
    ) -> Result<Enqueued, Delivery> {
        let is_first_beyond = self.kept == self.queue.len();
        if is_first_beyond && bound.admits(self.queued(), self.kept_bytes, &delivery) {
            self.kept += 1;
            self.kept_bytes += delivery.publication.bytes();
            self.lent += u32::from(delivery.is_lent());
            let token = delivery.token;
            self.queue.push_back(Delivery { token: NOTHING, ..delivery });
            return Ok(Enqueued::Kept(token));
        }
        let never_fits = bound.messages == 0 || delivery.publication.bytes() > bound.bytes;
        if !may_wait || never_fits || self.is_stalled || delivery.token == NOTHING {
            return Err(delivery);
        }
        self.lent += u32::from(delivery.is_lent());
        self.queue.push_back(delivery);
        Ok(if is_first_beyond { Enqueued::FirstWaits } else { Enqueued::Waits })
    }

    /// Takes those that wait into the queue, as far as there is room within the bound. They are safe now: their settlements
    /// are appended to `settled`.
    pub(in super::super) fn admit_waiting(&mut self, bound: &QueueBound, settled: &mut Vec<Token>) {
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
        if messages <= bound.messages / CAUGHT_UP && bytes <= bound.bytes / CAUGHT_UP {
            self.is_stalled = false;
        }
    }

    /// A message within the bound, by its place.
    pub(in super::super) fn kept_mut(&mut self, place: usize) -> Option<&mut Delivery> {
        if place < self.kept { self.queue.get_mut(place) } else { None }
    }

    /// Drops those that wait beyond the bound, and says so in `released`.
    pub(in super::super) fn drop_waiting(&mut self, released: &mut Released) {
        let waiting = self.queue.split_off(self.kept);
        released.tokens.extend(waiting.iter().map(|delivery| delivery.token));
        released.numbers.extend(waiting.iter().map(|delivery| delivery.number).filter(|&number| number != 0));
        released.requests.extend(waiting.iter().map(|delivery| delivery.request).filter(|&request| request != 0));
        released.dropped += waiting.len();
        self.lent -= lent_of(&waiting);
        self.pace = None;
        self.is_stalled = true;
    }

    /// What the fleet has given to a group and this device has not acknowledged goes back to the fleet, which waits for it; but what was
    /// sent of QoS 2 is this session's [v5 MQTT-4.8.2-4].
    pub(super) fn give_back(&mut self, released: &mut Released) {
        let mut bytes = 0;
        self.outbound.retain_mut(|outbound| {
            let is_lent = outbound.is_lent();
            let Sending::Sent(delivery) = &outbound.state else { return true };
            if !is_lent {
                return true;
            }
            let request = std::mem::take(&mut outbound.request);
            if delivery.qos == QoS::ExactlyOnce && !outbound.is_new {
                released.kept_requests.push(request);
                return true;
            }
            released.requests.push(request);
            // One of QoS 2 that was to be sent as soon as that was safe.
            released.numbers.extend(Some(outbound.number).filter(|&number| number != 0));
            bytes += delivery.publication.bytes();
            false
        });
        self.outbound_bytes -= bytes;
        let (kept, mut place) = (self.kept, 0);
        self.queue.retain(|delivery| {
            let is_kept = place < kept;
            place += 1;
            if !delivery.is_lent() {
                return true;
            }
            released.requests.push(delivery.request);
            released.tokens.extend(Some(delivery.token).filter(|&token| token != NOTHING));
            if is_kept {
                self.kept -= 1;
                self.kept_bytes -= delivery.publication.bytes();
            }
            false
        });
        self.lent = 0;
    }

    /// Those that wait beyond the bound and are for groups go to other members, if they were not recorded here.
    pub(super) fn leave_waiting(&mut self, released: &mut Released) {
        let (left, waiting) = self.queue.split_off(self.kept).into_iter().partition(|delivery| {
            // One that was recorded goes on as it is.
            delivery.group.is_some() && delivery.number == 0
        });
        self.lent -= lent_of(&left);
        released.left = left;
        self.queue.extend::<Vec<_>>(waiting);
    }

    /// What other members of groups may get of a session that ends: nothing that could be sent is left here. And the numbers of
    /// messages of QoS 2 that lie in the store under a packet identifier and were never sent.
    pub(in super::super) fn take_left(&mut self) -> (VecDeque<Left>, Vec<u64>) {
        let is_unsent = |outbound: &&Outbound| outbound.is_new && matches!(outbound.state, Sending::Stored { .. });
        let unsent = self.outbound.iter().filter(is_unsent).map(|outbound| outbound.number).collect();
        let sent = std::mem::take(&mut self.outbound).into_iter().filter_map(|outbound| match outbound.state {
            // QoS 2 that was sent may be with the device [v5 MQTT-4.8.2-5].
            Sending::Sent(delivery) if outbound.is_new || delivery.qos == QoS::AtLeastOnce => Some(*delivery),
            _ => None,
        });
        let left = sent.chain(std::mem::take(&mut self.queue)).filter_map(Delivery::into_left).collect();
        (self.sent, self.outbound_bytes, self.kept, self.kept_bytes, self.lent) = (0, 0, 0, 0, 0);
        (left, unsent)
    }

    /// Whether publishers wait for this device, and how it gets on.
    pub(in super::super) fn pace(&self) -> Option<Pace> {
        self.pace
    }

    /// Counts from now on what the device takes.
    pub(in super::super) fn begin_pace(&mut self, now: Tick) {
        self.pace = Some(Pace { since: now, taken: 0, bytes: 0 });
    }

    /// The next one that waits. None may only mean that it lies in the store.
    pub(in super::super) fn peek(&self) -> Option<&Delivery> {
        self.queue.front().filter(|_| !self.is_next_stored())
    }

    /// The message that [`Inflight::dequeue`] gave out did not go after all.
    pub(in super::super) fn put_back(&mut self, delivery: Delivery) {
        self.kept += 1;
        let bytes = delivery.publication.bytes();
        self.kept_bytes += bytes;
        self.lent += u32::from(delivery.is_lent());
        self.note_put_back();
        self.queue.push_front(delivery);
        if let Some(pace) = &mut self.pace {
            pace.taken = pace.taken.saturating_sub(1);
            pace.bytes = pace.bytes.saturating_sub(bytes);
        }
    }

    /// Whether anything waits to be sent, or to be sent again.
    pub(in super::super) fn has_waiting(&self) -> bool {
        !self.queue.is_empty() || self.has_stored() || self.replays.is_some() || self.sent < self.outbound.len()
    }

    pub(in super::super) fn dequeue(&mut self) -> Option<Delivery> {
        debug_assert!(self.kept > 0 || self.queue.is_empty(), "what waits is admitted before it goes");
        debug_assert!(!self.is_next_stored(), "what lies in the store goes first");
        self.note_taken();
        let delivery = self.queue.pop_front()?;
        self.kept -= 1;
        let bytes = delivery.publication.bytes();
        self.kept_bytes -= bytes;
        self.lent -= u32::from(delivery.is_lent());
        if let Some(pace) = &mut self.pace {
            pace.taken += 1;
            pace.bytes += bytes;
        }
        Some(delivery)
    }

    /// A replay has ended, or its subscription has.
    pub(in super::super) fn shed_replays(&mut self) {
        if self.replays.as_deref().is_some_and(Replays::is_empty) {
            self.replays = None;
        }
    }
}

/// How many of these are lent.
fn lent_of<'a>(deliveries: impl IntoIterator<Item = &'a Delivery>) -> u32 {
    deliveries.into_iter().map(|delivery| u32::from(delivery.is_lent())).sum()
}

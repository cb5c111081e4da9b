//! What is in flight between one session and its device: messages on their way out, messages on their way in, and the
//! topic aliases of the connection. Exists only while there is any of it.
//!
//! ```text
//!  out, QoS 1:  queue ──send──▶ Sent ──PUBACK──▶ done
//!  out, QoS 2:  queue ──send──▶ Sent ──PUBREC──▶ Released ──PUBCOMP──▶ done
//!  in,  QoS 1:  PUBLISH ──▶ Waiting ──the backbone holds it──▶ PUBACK, done
//!  in,  QoS 2:  PUBLISH ──▶ Waiting ──the backbone holds it──▶ PUBREC, Received ──PUBREL──▶ PUBCOMP, done
//!  in, refused: PUBLISH ──▶ Settled ──what came before it is answered──▶ PUBACK or PUBREC, done
//! ```
//!
//! What is sent again after a reconnect is sent in the order in which it was first sent [v5 MQTT-4.4.0-1], and
//! acknowledgements go out in the order of what they acknowledge [v5 MQTT-4.6.0-2, MQTT-4.6.0-3].

use std::collections::VecDeque;
use std::sync::Arc;

use super::replay::Replays;
use crate::codec::mqtt::Reason;
use crate::link::Publication;

/// One message for one session: what its subscriptions have made of the publication.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// What.
    pub publication: Arc<Publication>,
    /// The quality of service of this delivery.
    pub qos: u8,
    /// Whether it carries RETAIN.
    pub retain: bool,
    /// The Subscription Identifiers of the subscriptions that matched.
    pub identifiers: Identifiers,
    /// The request of the API that waits for its acknowledgement; 0: none.
    pub request: u64,
}

/// Subscription Identifiers: nearly always none or one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Identifiers {
    /// None.
    #[default]
    None,
    /// One.
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
}

#[derive(Debug)]
pub(super) enum Sending {
    /// Sent, once or more often; PUBACK or PUBREC is owed.
    Sent(Box<Delivery>),
    /// PUBREL was sent; PUBCOMP is owed.
    Released,
}

/// An acknowledgement under an identifier that waits for another one, or for none: the device breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongAck;

/// A message from the device that is not done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inbound {
    pub(super) packet: u16,
    pub(super) qos: u8,
    pub(super) state: Receiving,
    /// It came on this connection, and so counts against the Receive Maximum (v5 4.9).
    is_of_connection: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiving {
    /// The backbone has not answered.
    Waiting,
    /// This is its answer, and one before it has not been answered.
    Settled(Reason),
    /// PUBREC was sent: QoS 2 only. PUBREL is owed.
    Received,
}

/// What the device is to be told of a message that it sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its packet identifier.
    pub packet: u16,
    /// 1: PUBACK; 2: PUBREC.
    pub qos: u8,
    /// Success: it was taken.
    pub reason: Reason,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Inflight {
    outbound: VecDeque<Outbound>,
    /// So many of `outbound`, from the front, were sent on this connection; the rest is to be sent again.
    sent: usize,
    queue: VecDeque<Delivery>,
    queue_bytes: usize,
    /// Retained messages that new subscriptions are to get.
    pub(super) replays: Option<Box<Replays>>,
    inbound: VecDeque<Inbound>,
    /// So many of `inbound` came on this connection.
    received: usize,
    /// Topics that the device has given a number, by number less one.
    pub(super) aliases_in: Vec<Option<Box<str>>>,
    /// Topics that we have given a number, by number less one.
    pub(super) aliases_out: Vec<Box<str>>,
}

impl Inflight {
    pub(super) fn is_empty(&self) -> bool {
        self.outbound.is_empty()
            && self.queue.is_empty()
            && self.replays.is_none()
            && self.inbound.is_empty()
            && self.aliases_in.is_empty()
            && self.aliases_out.is_empty()
    }

    // --- Out --------------------------------------------------------------------------------------------------------

    pub(super) fn unacknowledged(&self) -> usize {
        self.outbound.len()
    }

    pub(super) fn queued(&self) -> (usize, usize) {
        (self.queue.len(), self.queue_bytes)
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
        let request = delivery.request;
        self.outbound.push_back(Outbound { packet, state: Sending::Sent(Box::new(delivery)), request });
        self.sent += 1;
    }

    /// The next message to be sent again; [`Inflight::resent`] or [`Inflight::give_up`] goes on to the one after it.
    pub(super) fn next_to_resend(&self) -> Option<&Outbound> {
        self.outbound.get(self.sent)
    }

    pub(super) fn resent(&mut self) {
        self.sent += 1;
        debug_assert!(self.sent <= self.outbound.len());
    }

    /// Forgets the message that [`Inflight::next_to_resend`] names: it can never be sent on this connection.
    pub(super) fn give_up(&mut self) -> Option<Outbound> {
        self.outbound.remove(self.sent)
    }

    /// Where the message is. One that was sent on a former connection counts: a device may acknowledge it before it has
    /// come again.
    fn place(&self, packet: u16) -> Option<usize> {
        self.outbound.iter().position(|outbound| outbound.packet == packet)
    }

    fn finish(&mut self, place: usize) -> u64 {
        self.sent -= usize::from(place < self.sent);
        self.outbound.remove(place).map_or(0, |outbound| outbound.request)
    }

    /// PUBACK. The request that waits for it (0: none); `Ok(None)`: no such message is in flight.
    pub(super) fn handle_puback(&mut self, packet: u16) -> Result<Option<u64>, WrongAck> {
        let Some(place) = self.place(packet) else { return Ok(None) };
        match &self.outbound[place].state {
            Sending::Sent(delivery) if delivery.qos == 1 => Ok(Some(self.finish(place))),
            _ => Err(WrongAck),
        }
    }

    /// PUBREC; a `failed` one ends the message [v5 MQTT-4.3.3-4]. The request that waits, answered already by what the
    /// device says (0: none); `Ok(None)`: no such message is in flight. After `Ok(Some(_))` PUBREL is to be said.
    pub(super) fn handle_pubrec(&mut self, packet: u16, failed: bool) -> Result<Option<u64>, WrongAck> {
        let Some(place) = self.place(packet) else { return Ok(None) };
        match &self.outbound[place].state {
            Sending::Sent(delivery) if delivery.qos == 2 => {}
            // Said before: PUBREL is said again.
            Sending::Released if !failed => {}
            _ => return Err(WrongAck),
        }
        if failed {
            return Ok(Some(self.finish(place)));
        }
        let mut outbound = self.outbound.remove(place).expect("the place was found");
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
            Sending::Sent(_) => return Err(WrongAck),
        };
        Ok(true)
    }

    // --- The queue --------------------------------------------------------------------------------------------------

    /// Puts a message behind those that wait. It comes back where they are at their bound.
    pub(super) fn enqueue(&mut self, delivery: Delivery, messages: usize, bytes: usize) -> Result<(), Delivery> {
        let size = delivery.publication.bytes();
        if self.queue.len() >= messages || self.queue_bytes + size > bytes {
            return Err(delivery);
        }
        self.queue_bytes += size;
        self.queue.push_back(delivery);
        Ok(())
    }

    pub(super) fn peek(&self) -> Option<&Delivery> {
        self.queue.front()
    }

    /// The message that [`Inflight::dequeue`] gave out did not go after all.
    pub(super) fn put_back(&mut self, delivery: Delivery) {
        self.queue_bytes += delivery.publication.bytes();
        self.queue.push_front(delivery);
    }

    /// Whether anything waits to be sent, or to be sent again.
    pub(super) fn has_waiting(&self) -> bool {
        !self.queue.is_empty() || self.replays.is_some() || self.sent < self.outbound.len()
    }

    pub(super) fn dequeue(&mut self) -> Option<Delivery> {
        let delivery = self.queue.pop_front()?;
        self.queue_bytes -= delivery.publication.bytes();
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

    /// What is known of a message of the device.
    pub(super) fn receiving(&self, packet: u16, qos: u8) -> Option<Receiving> {
        self.inbound.iter().find(|inbound| inbound.packet == packet && inbound.qos == qos).map(|inbound| inbound.state)
    }

    /// A message has come.
    pub(super) fn receive(&mut self, packet: u16, qos: u8) {
        self.inbound.push_back(Inbound { packet, qos, state: Receiving::Waiting, is_of_connection: true });
        self.received += 1;
    }

    /// A message that is known has come again. `true`: for the first time on this connection.
    pub(super) fn receive_again(&mut self, packet: u16, qos: u8) -> bool {
        let known = |inbound: &&mut Inbound| inbound.packet == packet && inbound.qos == qos;
        let Some(inbound) = self.inbound.iter_mut().find(known) else { return false };
        let is_first = !std::mem::replace(&mut inbound.is_of_connection, true);
        self.received += usize::from(is_first);
        is_first
    }

    fn forget_inbound(&mut self, place: usize) {
        let forgotten = self.inbound.remove(place);
        self.received -= usize::from(forgotten.is_some_and(|inbound| inbound.is_of_connection));
    }

    /// This is the answer to a message that waits for one.
    pub(super) fn settle(&mut self, packet: u16, reason: Reason) {
        let waiting = |inbound: &&mut Inbound| inbound.packet == packet && inbound.state == Receiving::Waiting;
        if let Some(inbound) = self.inbound.iter_mut().find(waiting) {
            inbound.state = Receiving::Settled(reason);
        }
    }

    /// The next answer that may be given: nothing before it is unanswered.
    pub(super) fn next_answer(&mut self) -> Option<Answer> {
        let place = self.inbound.iter().position(|inbound| inbound.state != Receiving::Received)?;
        let Inbound { packet, qos, state: Receiving::Settled(reason), .. } = self.inbound[place] else { return None };
        if qos == 2 && reason == Reason::SUCCESS {
            self.inbound[place].state = Receiving::Received;
        } else {
            self.forget_inbound(place);
        }
        Some(Answer { packet, qos, reason })
    }

    /// PUBREL. `Ok(false)`: no such message was received.
    pub(super) fn handle_pubrel(&mut self, packet: u16) -> Result<bool, WrongAck> {
        // A message of QoS 1 may use the identifier too, by the device's fault.
        let named = |qos: Option<u8>| {
            move |inbound: &Inbound| inbound.packet == packet && qos.is_none_or(|qos| inbound.qos == qos)
        };
        let Some(place) = self.inbound.iter().position(named(Some(2))) else {
            return if self.inbound.iter().any(named(None)) { Err(WrongAck) } else { Ok(false) };
        };
        if self.inbound[place].state != Receiving::Received {
            // PUBREC has not been said.
            return Err(WrongAck);
        }
        self.forget_inbound(place);
        Ok(true)
    }

    // --- The connection -----------------------------------------------------------------------------------------------

    /// The connection has ended. Whatever was sent is to be sent again; whatever the device will send again is
    /// forgotten; aliases are the connection's. Requests of the API that waited are handed to `unanswered`.
    pub(super) fn disconnect(&mut self, mut unanswered: impl FnMut(u64)) {
        self.sent = 0;
        self.aliases_in = Vec::new();
        self.aliases_out = Vec::new();
        self.inbound.retain(|inbound| inbound.qos == 2);
        for inbound in &mut self.inbound {
            // The device will send it again, and be answered then.
            if inbound.state == Receiving::Settled(Reason::SUCCESS) {
                inbound.state = Receiving::Received;
            }
        }
        self.inbound.retain(|inbound| !matches!(inbound.state, Receiving::Settled(_)));
        for inbound in &mut self.inbound {
            inbound.is_of_connection = false;
        }
        self.received = 0;
        for request in self.outbound.iter_mut().map(|outbound| &mut outbound.request) {
            if *request != 0 {
                unanswered(std::mem::take(request));
            }
        }
        for delivery in &mut self.queue {
            if delivery.request != 0 {
                unanswered(std::mem::take(&mut delivery.request));
            }
        }
        // Those without an acknowledgement are for whoever is there.
        self.queue.retain(|delivery| delivery.qos > 0);
        self.queue_bytes = self.queue.iter().map(|delivery| delivery.publication.bytes()).sum();
    }

    pub(super) fn check_invariants(&self) {
        assert!(self.sent <= self.outbound.len());
        assert_eq!(self.received, self.inbound.iter().filter(|inbound| inbound.is_of_connection).count());
        assert_eq!(self.queue_bytes, self.queue.iter().map(|delivery| delivery.publication.bytes()).sum::<usize>());
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
mod tests {
    use bytes::Bytes;

    use super::*;

    fn delivery(qos: u8, request: u64) -> Delivery {
        let publication = Publication::plain("t", Bytes::from_static(b"12345"), qos);
        Delivery { publication: Arc::new(publication), qos, retain: false, identifiers: Identifiers::None, request }
    }

    #[test]
    fn qos_2_out_is_released_once_and_a_request_is_answered_by_the_first_word() {
        let mut inflight = Inflight::default();
        inflight.begin(7, delivery(2, 99));
        assert_eq!(inflight.handle_pubrec(7, false), Ok(Some(99)));
        assert_eq!(inflight.handle_pubrec(7, false), Ok(Some(0)));
        assert_eq!((inflight.handle_pubcomp(7), inflight.handle_pubcomp(7)), (Ok(true), Ok(false)));
        assert!(inflight.is_empty());
        inflight.begin(8, delivery(2, 0));
        assert_eq!(inflight.handle_pubrec(8, true), Ok(Some(0)));
        assert!(inflight.is_empty());
    }

    #[test]
    fn an_acknowledgement_that_a_message_does_not_wait_for_is_wrong() {
        let mut inflight = Inflight::default();
        inflight.begin(1, delivery(1, 0));
        inflight.begin(2, delivery(2, 0));
        assert_eq!((inflight.handle_pubrec(1, false), inflight.handle_pubcomp(1)), (Err(WrongAck), Err(WrongAck)));
        assert_eq!((inflight.handle_puback(2), inflight.handle_pubcomp(2)), (Err(WrongAck), Err(WrongAck)));
        assert_eq!(inflight.handle_pubrec(2, false), Ok(Some(0)));
        assert_eq!((inflight.handle_puback(2), inflight.handle_pubrec(2, true)), (Err(WrongAck), Err(WrongAck)));
        assert_eq!(
            (inflight.handle_puback(9), inflight.handle_pubrec(9, false)),
            (Ok(None), Ok(None)),
            "late, not wrong"
        );
        inflight.receive(1, 1);
        inflight.receive(2, 2);
        assert_eq!((inflight.handle_pubrel(1), inflight.handle_pubrel(2)), (Err(WrongAck), Err(WrongAck)));
        inflight.settle(1, Reason::SUCCESS);
        inflight.settle(2, Reason::SUCCESS);
        assert_eq!(inflight.handle_pubrel(2), Err(WrongAck), "PUBREC has not been said");
        while inflight.next_answer().is_some() {}
        assert_eq!((inflight.handle_pubrel(1), inflight.handle_pubrel(2)), (Ok(false), Ok(true)));
    }

    #[test]
    fn after_a_reconnect_everything_goes_again_in_its_order() {
        let mut inflight = Inflight::default();
        for packet in 1..=3 {
            inflight.begin(packet, delivery(2, u64::from(packet)));
        }
        assert_eq!(inflight.handle_pubrec(2, false), Ok(Some(2)));
        let mut unanswered = Vec::new();
        inflight.disconnect(|request| unanswered.push(request));
        assert_eq!(unanswered, [1, 3]);
        assert!(!inflight.may_send(10), "older messages come first");
        let mut order = Vec::new();
        while let Some(outbound) = inflight.next_to_resend() {
            order.push((outbound.packet, matches!(outbound.state, Sending::Released)));
            inflight.resent();
        }
        assert_eq!(order, [(1, false), (2, true), (3, false)]);
        assert!(inflight.may_send(10) && !inflight.may_send(3));
        inflight.check_invariants();
    }

    #[test]
    fn what_a_former_connection_sent_may_be_acknowledged_before_it_comes_again() {
        let mut inflight = Inflight::default();
        for packet in 1..=5 {
            inflight.begin(packet, delivery(if packet == 1 { 1 } else { 2 }, 0));
        }
        assert_eq!(inflight.handle_pubrec(2, false), Ok(Some(0)));
        inflight.disconnect(|_| {});
        assert_eq!(inflight.handle_puback(1), Ok(Some(0)));
        assert_eq!(inflight.handle_pubcomp(2), Ok(true));
        assert_eq!(inflight.handle_pubrec(4, false), Ok(Some(0)));
        inflight.check_invariants();
        let mut again = Vec::new();
        while let Some(outbound) = inflight.next_to_resend() {
            again.push(outbound.packet);
            inflight.resent();
        }
        assert_eq!(again, [3, 5], "PUBREL of 4 was said");
        assert_eq!(inflight.handle_pubcomp(4), Ok(true));
        inflight.check_invariants();
    }

    /// [v5 4.9]
    #[test]
    fn what_counts_against_the_receive_maximum_came_on_this_connection() {
        let mut inflight = Inflight::default();
        for packet in 1..=3 {
            inflight.receive(packet, 2);
            inflight.settle(packet, Reason::SUCCESS);
            assert!(inflight.next_answer().is_some());
        }
        assert_eq!(inflight.received(), 3);
        inflight.disconnect(|_| {});
        assert_eq!(inflight.received(), 0);
        assert!(inflight.receive_again(2, 2) && !inflight.receive_again(2, 2));
        assert_eq!(inflight.received(), 1);
        assert_eq!((inflight.handle_pubrel(1), inflight.received()), (Ok(true), 1), "1 was of the last connection");
        assert_eq!((inflight.handle_pubrel(2), inflight.received()), (Ok(true), 0));
        inflight.check_invariants();
    }

    #[test]
    fn answers_keep_the_order_of_what_they_answer() {
        let mut inflight = Inflight::default();
        for (packet, qos) in [(1, 1), (2, 2), (3, 1)] {
            inflight.receive(packet, qos);
        }
        inflight.settle(3, Reason::SUCCESS);
        inflight.settle(2, Reason::SUCCESS);
        assert_eq!(inflight.next_answer(), None);
        inflight.settle(1, Reason::QUOTA_EXCEEDED);
        assert_eq!(inflight.next_answer(), Some(Answer { packet: 1, qos: 1, reason: Reason::QUOTA_EXCEEDED }));
        assert_eq!(inflight.next_answer(), Some(Answer { packet: 2, qos: 2, reason: Reason::SUCCESS }));
        assert_eq!(inflight.next_answer(), Some(Answer { packet: 3, qos: 1, reason: Reason::SUCCESS }));
        assert_eq!(inflight.next_answer(), None);
        assert_eq!(inflight.receiving(2, 2), Some(Receiving::Received));
        assert_eq!((inflight.handle_pubrel(2), inflight.handle_pubrel(2)), (Ok(true), Ok(false)));
        assert!(inflight.is_empty());
    }

    #[test]
    fn what_was_taken_before_the_connection_ended_is_not_taken_again() {
        let mut inflight = Inflight::default();
        inflight.receive(1, 2);
        inflight.receive(2, 2);
        inflight.receive(3, 1);
        inflight.settle(2, Reason::SUCCESS);
        inflight.disconnect(|_| {});
        assert_eq!(inflight.receiving(1, 2), Some(Receiving::Waiting));
        assert_eq!(inflight.receiving(2, 2), Some(Receiving::Received));
        assert_eq!(inflight.receiving(3, 1), None);
    }

    #[test]
    fn the_queue_is_bounded_by_messages_and_by_bytes() {
        let mut inflight = Inflight::default();
        assert!(inflight.enqueue(delivery(1, 0), 2, 100).is_ok());
        assert!(inflight.enqueue(delivery(0, 0), 2, 11).is_err());
        assert!(inflight.enqueue(delivery(0, 0), 2, 12).is_ok());
        assert!(inflight.enqueue(delivery(1, 0), 2, 100).is_err());
        assert_eq!(inflight.queued(), (2, 12));
        inflight.disconnect(|_| {});
        assert_eq!(inflight.queued(), (1, 6));
        assert!(inflight.dequeue().is_some() && inflight.is_empty());
    }
}

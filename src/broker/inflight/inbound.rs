//! Messages on their way from the device: those that are not safe yet, and those of QoS 2 whose PUBREL is owed.

use super::{Inflight, WrongAck};
use crate::broker::settlement::Token;
use crate::codec::mqtt::{QoS, Reason};

/// A message from the device that was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Inbound {
    pub(in super::super) packet: u16,
    pub(in super::super) qos: QoS,
    pub(in super::super) state: Receiving,
    /// It came on this connection, and so counts against the Receive Maximum (v5 4.9).
    pub(super) is_of_connection: bool,
    /// What it takes until it is settled.
    pub(super) bytes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Receiving {
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

impl Inflight {
    /// How many messages of the device came on this connection and are not done with.
    pub(in super::super) fn received(&self) -> usize {
        self.received
    }

    /// How many messages of the device have no answer yet.
    pub(in super::super) fn unanswered(&self) -> usize {
        self.inbound.len()
    }

    /// How many messages of the device are not done with, whichever connection they came on.
    pub(in super::super) fn open(&self) -> usize {
        self.inbound.len() + self.answered.len()
    }

    /// Whether a message of QoS 2 was answered with PUBREC.
    pub(in super::super) fn is_answered(&self, packet: u16) -> bool {
        self.answered.contains_key(&packet)
    }

    /// Whether a message of the device waits for its answer.
    pub(in super::super) fn is_unanswered(&self, packet: u16, qos: QoS) -> bool {
        self.inbound.iter().any(|inbound| inbound.packet == packet && inbound.qos == qos)
    }

    /// A message has come.
    pub(in super::super) fn receive(&mut self, packet: u16, qos: QoS, state: Receiving) {
        self.inbound.push_back(Inbound { packet, qos, state, is_of_connection: true, bytes: 0 });
        self.received += 1;
    }

    /// PUBREC of this message was said by an earlier process, perhaps.
    pub(in super::super) fn restore_answered(&mut self, packet: u16) {
        self.answered.insert(packet, false);
    }

    /// The message that has just come takes so many bytes until it is settled.
    pub(in super::super) fn note_unsettled(&mut self, token: Token, bytes: usize) {
        if let Some(inbound) = self.inbound.back_mut().filter(|inbound| inbound.state == Receiving::Waiting(token)) {
            inbound.bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            self.unsettled_bytes += inbound.bytes as usize;
        }
    }

    /// What the messages of the device take that are not settled.
    pub(in super::super) fn unsettled_bytes(&self) -> usize {
        self.unsettled_bytes
    }

    /// Whether messages of the device have no answer yet.
    pub(in super::super) fn has_inbound(&self) -> bool {
        !self.inbound.is_empty()
    }

    /// A message that is known has come again. `true`: for the first time on this connection.
    pub(in super::super) fn receive_again(&mut self, packet: u16, qos: QoS) -> bool {
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
    pub(in super::super) fn wait_for(&mut self, packet: u16, token: Token, other: Token) {
        let waiting = Receiving::Waiting(token);
        let inbound = self.inbound.iter_mut().find(|inbound| inbound.packet == packet && inbound.state == waiting);
        if let Some(inbound) = inbound {
            inbound.state = Receiving::Waiting(other);
        }
    }

    /// This is the answer to a message that waits for one. `false`: nobody waits for it any more.
    pub(in super::super) fn settle(&mut self, packet: u16, token: Token, reason: Reason) -> bool {
        let waiting = Receiving::Waiting(token);
        let inbound = self.inbound.iter_mut().find(|inbound| inbound.packet == packet && inbound.state == waiting);
        let Some(inbound) = inbound else { return false };
        inbound.state = Receiving::Settled(reason);
        self.unsettled_bytes -= std::mem::take(&mut inbound.bytes) as usize;
        true
    }

    /// The next answer that may be given: nothing before it is unanswered. What came on an earlier connection is answered when
    /// it comes again, as it must [MQTT-4.4.0-1]: otherwise it would be answered twice.
    pub(in super::super) fn next_answer(&mut self) -> Option<Answer> {
        while let Some(&Inbound { packet, qos, state: Receiving::Settled(reason), is_of_connection, .. }) =
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
    pub(in super::super) fn handle_pubrel(&mut self, packet: u16) -> Result<bool, WrongAck> {
        if let Some(is_of_connection) = self.answered.remove(&packet) {
            self.received -= usize::from(is_of_connection);
            return Ok(true);
        }
        // PUBREC has not been said; or a message of QoS 1 uses the identifier, by the device's fault.
        if self.inbound.iter().any(|inbound| inbound.packet == packet) { Err(WrongAck) } else { Ok(false) }
    }
}

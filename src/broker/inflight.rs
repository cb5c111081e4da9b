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
//! behind the queue, in order, and are not settled, so that their publishers wait too, and nobody else (`settlement`). How many those
//! can be is bounded by what their publishers may have unsettled: it is booked there, and here only what each takes beside its bytes.
//!
//! What a device that is away has not acknowledged lies in the store alone, as soon as it is safe there; what is left of it here is
//! in `stored` (decision D27).

mod inbound;
mod outbound;
mod stored;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::pace::Pace;
use super::replay::Replays;
use super::settlement::{NOTHING, Token};
use crate::codec::mqtt::{QoS, Reason};
use crate::link::Publication;
use crate::pool::{ALLOCATION_BYTES, Charge, Class, Pool};
pub use inbound::Answer;
use inbound::Inbound;
pub(super) use inbound::Receiving;
use outbound::Outbound;
pub(super) use outbound::{Enqueued, QueueBound, Sending};
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
    /// The group of shared subscribers that it is for, as `$share/NAME/FILTER`: should the session end, another member gets it.
    pub(super) group: Option<Arc<str>>,
    /// How many members of it had no room for what the fleet gives.
    pub(super) tried: u8,
    /// The settlement that waits until it is safe; 0: none.
    pub(super) token: Token,
    /// Its number in a session that outlives its connection, in the order in which they are sent; 0: it was not recorded.
    pub(super) number: u64,
}

impl Delivery {
    /// Whether the fleet has given it to a group and waits for the word of this device: it is the fleet's until then, and nothing that the
    /// session keeps (decision D33).
    pub(super) fn is_lent(&self) -> bool {
        self.group.is_some() && self.request != 0
    }
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

/// An acknowledgement under an identifier that waits for another one, or for none: the device breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongAck;

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
    /// It is an UNSUBSCRIBE.
    pub is_unsubscribe: bool,
    /// The packet identifier.
    pub packet: u16,
    /// The reason codes of the filters that were dealt with, in their order.
    pub codes: Vec<u8>,
}

/// Who has waited for something that will not be any more.
#[derive(Debug, Default)]
pub(super) struct Released {
    /// Requests of the API, and of the fleet for groups: what they are about was not acknowledged.
    pub(super) requests: Vec<u64>,
    /// Those whose messages stay with the session though they were not.
    pub(super) kept_requests: Vec<u64>,
    /// Settlements.
    pub(super) tokens: Vec<Token>,
    /// How many messages were dropped.
    pub(super) dropped: usize,
    /// The numbers of those that were recorded.
    pub(super) numbers: Vec<u64>,
    /// Those that other members of their groups get: they are neither dropped nor settled.
    pub(super) left: Vec<Delivery>,
}

/// What of a session its device has not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Oldest {
    /// Nothing.
    None,
    /// Something, and it is not known since when.
    Unknown,
    /// Its number is no less than `first`; `is_all`: whatever there is has a number.
    Number { first: u64, is_all: bool },
}

/// What an open exchange of QoS 2 takes in `answered`, at the fill that its nodes have at least.
pub(super) const ANSWERED_BYTES: usize = 16;

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
    /// How many of `outbound` and `queue` are lent.
    lent: u32,
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
    /// What those of `inbound` take that are not settled.
    unsettled_bytes: usize,
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
        let entries = self.outbound.len() + self.queue.len() + self.inbound.len();
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
            + self.answered.len() * ANSWERED_BYTES
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
        self.unsettled_bytes = self.inbound.iter().map(|inbound| inbound.bytes as usize).sum();
        self.received = 0;
        self.inbound.iter_mut().for_each(|inbound| inbound.is_of_connection = false);
        self.answered.values_mut().for_each(|is_of_connection| *is_of_connection = false);
        self.give_back(released);
        for request in self.outbound.iter_mut().map(|outbound| &mut outbound.request) {
            released.requests.extend(Some(std::mem::take(request)).filter(|&request| request != 0));
        }
        for delivery in &mut self.queue {
            released.requests.extend(Some(std::mem::take(&mut delivery.request)).filter(|&request| request != 0));
        }
        self.leave_waiting(released);
        // One that comes again is no faster for that.
        let has_stalled = self.is_stalled;
        self.drop_waiting(released);
        self.is_stalled = has_stalled;
        // Those without an acknowledgement are for whoever is there.
        self.queue.retain(|delivery| delivery.qos.is_acknowledged());
        self.kept = self.queue.len();
        self.kept_bytes = self.queue.iter().map(|delivery| delivery.publication.bytes()).sum();
    }

    pub(super) fn check_invariants(&self, is_online: bool) {
        assert!(self.sent <= self.outbound.len());
        self.check_stored(is_online);
        self.check_lent();
        assert!(is_online || self.lent == 0, "what is lent goes back with the connection");
        assert_eq!(self.outbound_bytes, self.outbound.iter().map(Outbound::bytes).sum::<usize>());
        let (kept, waiting) = (self.queue.iter().take(self.kept), self.queue.iter().skip(self.kept));
        assert_eq!(self.kept_bytes, kept.clone().map(|delivery| delivery.publication.bytes()).sum::<usize>());
        assert!(kept.clone().all(|delivery| delivery.token == NOTHING), "what is kept is settled");
        assert!(waiting.clone().all(|delivery| delivery.token != NOTHING && delivery.qos.is_acknowledged()));
        assert!(is_online || waiting.clone().count() == 0, "publishers wait for a device that is away");
        assert_eq!(self.pace.is_some(), waiting.count() > 0, "whoever is waited for is watched");
        assert_eq!(self.unsettled_bytes, self.inbound.iter().map(|inbound| inbound.bytes as usize).sum::<usize>());
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

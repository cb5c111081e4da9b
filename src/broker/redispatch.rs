//! What a member of a group was given and has not acknowledged goes to another member when the member's session ends (v5 4.8.2).
//!
//! ```text
//!                     in memory ─────────────────────────────▶ left ──▶ given: the group's home chooses again ──▶ safe there: done
//!   the session ends                                            ▲
//!                     in the store ── safe ──▶ read, piece by piece       all done ──▶ nothing of the session is in the store
//! ```
//!
//! | what the session had | where it goes |
//! | --- | --- |
//! | for a group, QoS 1, sent or not | to another member |
//! | for a group, QoS 2, never sent | to another member |
//! | for a group, QoS 2, sent | nowhere: it may be with the device [v5 MQTT-4.8.2-5] |
//! | acknowledged, whatever the reason code | nowhere [v5 MQTT-4.8.2-6] |
//! | not for a group | nowhere: it ends with its session |
//!
//! Where no member is left, a message goes nowhere and is counted (`pulsegate_mqtt_dropped_no_member`).
//!
//! A session that was recorded goes on in the store, under a name that no device can have, until all that it leaves is safe with
//! others. So a process that ends meanwhile loses none of it, and the next goes on with what is not done. What was safe with
//! another member and not yet done with here then comes to two members, once to each: as QoS 1 allows, and for QoS 2 rather than
//! not at all. Of QoS 2 with a packet identifier the next process does not know whether it was sent: it takes it as sent.
//!
//! It waits for nobody but the credit of the group's home, like what is published here (decision D12): there is no device that it holds
//! up, and none that holds it up. What is left keeps its place in the pool until it is given.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Broker;
use super::inflight::{Delivery, Inflight};
use super::journal::Waiting;
use super::lifecycle::{GroupMessages, NO_KEY};
use super::settlement::{NOTHING, Owner, Part, Token};
use super::spill::PIECE_BYTES;
use crate::codec::mqtt::QoS;
use crate::image::{Change, Message, SessionKey};
use crate::link::{Load, Loaded, Passed, Publication, Recipient, SessionId};
use crate::pool::{Charge, Class};
use crate::slot::{SessionSlot, Table, slot};
use crate::time::Moment;

/// Messages given in one turn.
const GIVEN_IN_A_TURN: usize = 256;
/// Messages of one session that are given and not safe with others, beyond which no more of it are read.
const OPEN_MAX: usize = 64;
/// Of whom the store is asked for what a session has left: no session has this slot.
const NO_SESSION: SessionSlot = SessionSlot(u32::MAX);

slot! {
    /// A session that has ended and has left something to groups.
    pub(super) struct LeftSlot
}

/// A message for a group whose member does not get it.
#[derive(Debug)]
pub(super) struct Left {
    group: Arc<str>,
    publication: Arc<Publication>,
    /// Its number in the session that ended; 0: it was not recorded.
    number: u64,
}

/// What of an ended session lies in the store alone.
#[derive(Clone, Copy, Debug)]
struct Unread {
    /// It was read up to this number,
    after: u64,
    /// and is to be up to this one.
    through: u64,
    /// The next piece is asked for, or listed to be.
    is_asked: bool,
}

/// What one session has left.
struct Remains {
    /// Under which the store knows the session; [`NO_KEY`]: it does not.
    key: SessionKey,
    messages: VecDeque<Left>,
    charge: Charge,
    /// How many were given and are not safe with others.
    open: usize,
    unread: Option<Unread>,
    /// Numbers of messages of QoS 2 there that have a packet identifier and were never sent.
    unsent: Vec<u64>,
    /// What the session had in the store alone, in bytes: it counts there until all is done.
    stored_bytes: u64,
    /// Some of it cannot be read: it stays in the store, for the next process.
    is_unreadable: bool,
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Redispatches {
    all: Table<LeftSlot, Remains>,
    /// Those with messages to give, each once.
    ready: VecDeque<LeftSlot>,
    /// Those of which the next piece is wanted from the store, each once.
    listed: VecDeque<LeftSlot>,
    /// Those that have asked, by the numbers of their questions.
    asked: Vec<(u32, LeftSlot)>,
    /// Messages given to other members since the start.
    pub(super) given: u64,
    /// Messages for groups without a member since the start.
    pub(super) without_member: u64,
}

impl Redispatches {
    /// Whether something is to be given now.
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether the store is to be asked for something.
    pub(super) fn has_listed(&self) -> bool {
        !self.listed.is_empty()
    }

    /// What it takes of the pool.
    pub(super) fn charged(&self) -> usize {
        self.all.iter().map(|(_, remains)| remains.charge.bytes()).sum()
    }

    /// What ended sessions have in the store alone, in bytes.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.all.iter().map(|(_, remains)| remains.stored_bytes).sum()
    }

    fn list(&mut self, slot: LeftSlot) {
        self.listed.push_back(slot);
    }

    /// The next piece is wanted when what was read is given, and nearly all of that is safe with others: what they have no room
    /// for stays in the store.
    fn list_next(&mut self, slot: LeftSlot) {
        let remains = &mut self.all[slot];
        if let Some(unread) = &mut remains.unread
            && !unread.is_asked
            && remains.messages.is_empty()
            && remains.open < OPEN_MAX
        {
            unread.is_asked = true;
            self.list(slot);
        }
    }

    /// Whose question this was, if it was one of these.
    fn take_asked(&mut self, loaded: &Loaded) -> Option<LeftSlot> {
        if loaded.session.slot != NO_SESSION {
            return None;
        }
        let place = self.asked.iter().position(|(serial, _)| *serial == loaded.serial)?;
        Some(self.asked.swap_remove(place).1)
    }

    pub(super) fn check_invariants(&self) {
        for (slot, remains) in self.all.iter() {
            let listed = self.ready.iter().filter(|ready| **ready == slot).count();
            assert_eq!(listed, usize::from(!remains.messages.is_empty()), "{slot} is to be given what it has");
            assert!(
                remains.open > 0 || !remains.messages.is_empty() || remains.unread.is_some(),
                "{slot} has nothing left and is kept"
            );
        }
        assert!(self.ready.iter().chain(&self.listed).all(|&slot| self.all.contains(slot)));
    }
}

impl Delivery {
    /// What is left of it for its group, if it was for one.
    pub(super) fn into_left(self) -> Option<Left> {
        let group = self.group.filter(|_| self.qos.is_acknowledged() && self.request == 0)?;
        Some(Left { group, publication: unstaged(self.publication), number: self.number })
    }
}

/// The same message, of which the first half of its way is over (`staging`): it is sent as it comes.
fn unstaged(publication: Arc<Publication>) -> Arc<Publication> {
    if publication.origin == 0 {
        return publication;
    }
    Arc::new(Publication { origin: 0, ..Publication::clone(&publication) })
}

/// What is left of a message that was read, if it was for a group.
fn left_of(message: &Message, unsent: &[u64], publication: Publication) -> Option<Left> {
    let was_sent = message.packet.is_some() && !unsent.contains(&message.number);
    let may_go = !was_sent || message.qos == QoS::AtLeastOnce;
    let group = message.group.as_deref().filter(|_| may_go && message.qos.is_acknowledged())?;
    Some(Left { group: group.into(), publication: Arc::new(publication), number: message.number })
}

impl Broker {
    // --- A session ends ---------------------------------------------------------------------------------------------

    /// A session that ends leaves what it was given for groups. `true`: it is ended in the store when that is done, not now.
    pub(super) fn leave_to_groups(&mut self, session: SessionSlot) -> bool {
        let stored = self.sessions.stored(session);
        let known = &mut self.sessions[session];
        let key = known.key;
        let (messages, unsent) = known.inflight.as_deref_mut().map(Inflight::take_left).unwrap_or_default();
        let is_stored = key != NO_KEY && known.group_messages == GroupMessages::Some && stored.through != 0;
        if messages.is_empty() && !is_stored {
            return false;
        }
        let unread = is_stored.then_some(Unread { after: 0, through: stored.through, is_asked: true });
        if key != NO_KEY {
            self.record_head(session, &name_of_ended(key), None);
        }
        self.keep_left(key, (messages, unsent), unread, if is_stored { stored.bytes } else { 0 });
        key != NO_KEY
    }

    /// A session that an earlier process has not come to its end with.
    pub(super) fn restore_left(&mut self, key: SessionKey, through: u64, stored_bytes: u64) {
        self.keep_left(
            key,
            (VecDeque::new(), Vec::new()),
            Some(Unread { after: 0, through, is_asked: true }),
            stored_bytes,
        );
    }

    fn keep_left(
        &mut self,
        key: SessionKey,
        (messages, unsent): (VecDeque<Left>, Vec<u64>),
        unread: Option<Unread>,
        stored_bytes: u64,
    ) {
        let mut charge = Charge::none(&self.pool, Class::Queues);
        charge.set(messages.iter().map(bytes).sum());
        self.sessions.stored_bytes += stored_bytes;
        let (is_ready, is_unread) = (!messages.is_empty(), unread.is_some());
        let is_unreadable = false;
        let remains = Remains { key, messages, charge, open: 0, unread, unsent, stored_bytes, is_unreadable };
        let slot = self.redispatches.all.insert(remains);
        if is_ready {
            self.redispatches.ready.push_back(slot);
        }
        if is_unread {
            // What was said of it before: some of it may be acknowledged.
            self.when_safe(Waiting::Left(slot));
        }
    }

    /// What was said of an ended session is safe: what it has left is read.
    pub(super) fn read_left(&mut self, slot: LeftSlot) {
        self.redispatches.list(slot);
    }

    // --- From the store ---------------------------------------------------------------------------------------------

    /// The next piece of what an ended session has left that is to be asked for.
    pub(super) fn next_left_load(&mut self, serial: u32) -> Option<Load> {
        let slot = self.redispatches.listed.pop_front()?;
        let remains = &mut self.redispatches.all[slot];
        let unread = remains.unread.as_mut()?;
        let session = SessionId { worker: self.worker, slot: NO_SESSION, generation: 0 };
        let (key, after, through) = (remains.key, unread.after, unread.through);
        self.redispatches.asked.push((serial, slot));
        Some(Load { session, serial, key, after, through, bytes_max: PIECE_BYTES })
    }

    /// The store answers. `false`: not a question of these.
    pub(super) fn handle_left_loaded(&mut self, loaded: &Loaded, now: Moment) -> bool {
        let Some(slot) = self.redispatches.take_asked(loaded) else { return false };
        let read = loaded.messages.iter().flatten();
        let last = read.clone().last().map(|message| message.number);
        let unsent = &self.redispatches.all[slot].unsent;
        let publication_of = |message: &Message| self.publication_of(&message.publication, now);
        let found: Vec<Left> = read.filter_map(|message| left_of(message, unsent, publication_of(message))).collect();
        let remains = &mut self.redispatches.all[slot];
        if loaded.messages.is_none() {
            // The log names the file.
            (remains.is_unreadable, remains.unread) = (true, None);
        } else if loaded.is_last {
            remains.unread = None;
        } else if let (Some(unread), Some(last)) = (&mut remains.unread, last) {
            (unread.after, unread.is_asked) = (last, false);
        }
        let is_first = remains.messages.is_empty() && !found.is_empty();
        remains.messages.extend(found);
        remains.charge.set(remains.messages.iter().map(bytes).sum());
        if is_first {
            self.redispatches.ready.push_back(slot);
        }
        self.redispatches.list_next(slot);
        self.end_left(slot);
        true
    }

    /// Whether pieces of what ended sessions have left may be read: not before all that was read is given.
    pub(super) fn may_read_left(&self) -> bool {
        self.redispatches.has_listed() && !self.redispatches.is_ready()
    }

    // --- To others --------------------------------------------------------------------------------------------------

    /// Gives what was left to other members, some of it in each turn, as long as there is room on the way.
    pub(super) fn advance_redispatches(&mut self) {
        for _ in 0..GIVEN_IN_A_TURN {
            if !self.may_redispatch() {
                return;
            }
            let Some(&slot) = self.redispatches.ready.front() else { return };
            let remains = &mut self.redispatches.all[slot];
            let Some(Left { group, publication, number }) = remains.messages.pop_front() else { return };
            remains.open += 1;
            if remains.messages.is_empty() {
                remains.charge.set(0);
                self.redispatches.ready.pop_front();
                self.redispatches.list_next(slot);
            }
            let token = self.settlements.open(Owner::Left { slot, number });
            self.charge_unsettled(token, &publication);
            self.give_to_group(group, publication, token);
        }
    }

    /// Whether what was left can be given now: when a publisher would be read on.
    pub(super) fn may_redispatch(&self) -> bool {
        self.redispatches.is_ready() && !self.is_congested()
    }

    /// A delivery does not reach its session, which has ended: if it was for a group, another member gets it.
    pub(super) fn return_to_group(&mut self, delivery: Delivery) -> Result<(), Delivery> {
        let (token, has_group) = (delivery.token, delivery.group.is_some());
        if !has_group || !delivery.qos.is_acknowledged() || delivery.request != 0 {
            // Of a request the fleet hears that it was not acknowledged, and gives it to somebody else.
            return Err(delivery);
        }
        if let Some(Left { group, publication, .. }) = delivery.into_left() {
            // Without a publisher who waits it may wait for a member nevertheless.
            let token = if token == NOTHING {
                let token = self.settlements.open(Owner::Nobody);
                self.charge_unsettled(token, &publication);
                token
            } else {
                token
            };
            self.give_to_group(group, publication, token);
        }
        Ok(())
    }

    /// The home of the group chooses a member for a message that another one does not get. Ends one part of the settlement.
    pub(super) fn give_to_group(&mut self, group: Arc<str>, publication: Arc<Publication>, token: Token) {
        self.redispatches.given += 1;
        let home = self.home.of(&group);
        if home == self.worker {
            self.choose_again(&group, &publication, token);
        } else {
            self.settlements.add(token);
            self.ways.pass(home, Passed { publication, token, recipient: Recipient::Group(group) });
        }
        self.settle(token, Part::Taken);
    }

    /// At the group's home: somebody who is a member now gets it, if there is anybody.
    pub(super) fn choose_again(&mut self, group: &Arc<str>, publication: &Arc<Publication>, token: Token) {
        match self.routing.groups.choose_in(group) {
            Some(member) => self.give_to_member(Arc::clone(group), member, publication, (token, 0, 0)),
            None => self.redispatches.without_member += 1,
        }
    }

    /// A message that was left is safe with somebody else, or is counted as one that nobody gets.
    pub(super) fn handle_given(&mut self, slot: LeftSlot, number: u64) {
        let remains = &mut self.redispatches.all[slot];
        remains.open -= 1;
        if number != 0 && remains.key != NO_KEY {
            self.journal.record(Change::Done { session: remains.key, number });
        }
        self.redispatches.list_next(slot);
        self.end_left(slot);
    }

    /// Ends what is left of a session, if that is nothing.
    fn end_left(&mut self, slot: LeftSlot) {
        let Remains { messages, open, unread, .. } = &self.redispatches.all[slot];
        if *open > 0 || !messages.is_empty() || unread.is_some() {
            return;
        }
        let Remains { key, stored_bytes, is_unreadable, .. } = self.redispatches.all.remove(slot);
        self.sessions.stored_bytes -= stored_bytes;
        if key != NO_KEY && !is_unreadable {
            self.journal.record(Change::Ended { session: key });
        }
    }
}

fn bytes(left: &Left) -> usize {
    size_of::<Left>() + left.publication.bytes()
}

/// The name under which the store keeps an ended session: no device has one with this character [MQTT-1.5.4-2].
fn name_of_ended(key: SessionKey) -> String {
    format!("\0{}", key.0)
}

/// Whether a session of this name has ended.
pub(super) fn is_ended(name: &str) -> bool {
    name.starts_with('\0')
}

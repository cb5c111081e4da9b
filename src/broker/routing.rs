//! From a publication to deliveries: who has subscribed, in this shard and in others.

use std::sync::Arc;

use super::groups::{Groups, Member};
use super::handover::Row;
use super::inbound::Ticket;
use super::inflight::{Delivery, Identifiers, PendingSuback};
use super::journal::Waiting;
use super::lifecycle::NO_KEY;
use super::lifecycle::{GroupMessages, Membership};
use super::matching::merge;
use super::retained::{Retained, Set};
use super::settlement::{NOTHING, Owner, Part, Settled, Token};
use super::staging::Prepared;
use super::subscriptions::{Subscriber, Subscriptions};
use super::{Bounds, Broker, RequestEnd, TOMBSTONE_PART};
use crate::codec::mqtt::subscribe::Options;
use crate::codec::mqtt::{QoS, Reason, topic};
use crate::config::budget::FILTER_BYTES;
use crate::image::{self, Change};
use crate::link::{
    Choice, Class as Lane, Giver, Passed, Publication, Reach, Recipient, SessionId, ShardMessage, Stamp, WorkerEvent,
    WorkerId,
};
use crate::metrics::{Counters, Metric};
use crate::pool::{ALLOCATION_BYTES, Charge, Class, Pool};
use crate::slot::SessionSlot;
use crate::time::Moment;

/// The first filter of a session is part of it in the memory budget, where it is no longer than this.
const FIRST_FILTER_BYTES: usize = 256;

/// Shared subscriptions of one session, however many others it may have: all their homes are told when its device comes and
/// when it goes.
pub const SHARED_MAX: usize = 1_024;

/// What a member of a group keeps of it beside its place, in bytes.
const fn membership_bytes(group: &str) -> usize {
    group.len() + size_of::<Membership>() + ALLOCATION_BYTES
}

/// What became of one filter in SUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granted {
    /// Subscribed; retained messages follow as far as they are wanted, and SUBACK waits for the home of a group.
    Subscribed,
    /// The session has as many subscriptions as it may.
    TooMany,
}

/// What became of one filter in UNSUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsubscribed {
    /// It is gone.
    Removed,
    /// There was none.
    NoSuch,
}

/// Who wants what in one shard, and what is retained.
pub(super) struct Routing {
    pub(super) subscriptions: Subscriptions,
    /// The groups whose home this shard is.
    pub(super) groups: Groups,
    pub(super) retained: Retained,
    /// What filters take of the shard's pool.
    charge: Charge,
    /// Bytes of the names of groups in the sessions that are members.
    membership_bytes: usize,
}

impl Routing {
    pub(super) fn new(worker: WorkerId, workers: u16, key: u64, bounds: &Bounds, pool: &Arc<Pool>) -> Self {
        Self {
            subscriptions: Subscriptions::new(key),
            groups: Groups::new(key.rotate_left(32)),
            retained: Retained::new(
                worker,
                workers,
                bounds.retained_messages,
                bounds.retained_bytes,
                bounds.pool_bytes / TOMBSTONE_PART,
            ),
            charge: Charge::none(pool, Class::Filters),
            membership_bytes: 0,
        }
    }

    /// The pool is told what filters take by now, beyond one short one for each of so many `sessions`: those are part of the
    /// sessions in the memory budget.
    pub(super) fn account(&mut self, sessions: usize) {
        let bytes = self.subscriptions.bytes() + self.groups.bytes() + self.membership_bytes;
        self.charge.set(bytes.saturating_sub(sessions * FILTER_BYTES as usize));
    }

    pub(super) fn note_joined(&mut self, group: &str) {
        self.membership_bytes += membership_bytes(group);
    }

    pub(super) fn note_left(&mut self, group: &str) {
        self.membership_bytes -= membership_bytes(group);
    }

    pub(super) fn check_invariants(&self) {
        self.subscriptions.check_invariants();
        self.groups.check_invariants();
        self.retained.check_invariants();
    }
}

impl Broker {
    // --- Publishing -------------------------------------------------------------------------------------------------

    /// A message was published in this shard: it goes to every shard where anybody may want it. Whoever has the ticket is
    /// told when all of them have taken it.
    pub fn publish(&mut self, mut publication: Publication, ticket: Ticket, counters: &mut Counters) {
        counters.add(Metric::Published, 1);
        if publication.retain && publication.stamp.is_none() {
            self.stamp_not_before(&mut publication, 0);
        }
        publication.origin = self.settlements.origin(ticket.token());
        let publication = Arc::new(publication);
        let token = match ticket.token() {
            NOTHING if publication.retain => self.settlements.open(Owner::Nobody),
            token => token,
        };
        self.charge_unsettled(token, &publication);
        if publication.retain && !publication.payload.is_empty() {
            self.settlements.set_retained(token, &publication);
        }
        for worker in (0..self.exchange.workers()).map(WorkerId) {
            if worker != self.worker && (publication.retain || self.exchange.wants(worker)) {
                self.settlements.add(token);
                self.ways.pass(
                    worker,
                    Passed { publication: Arc::clone(&publication), token, recipient: Recipient::Subscribers },
                );
            }
        }
        let is_kept = self.route(&publication, token, counters);
        self.settle(token, Part::retained(is_kept));
    }

    /// A message goes up, for subscribers of the whole fleet: just before it is [published](Broker::publish), or said elsewhere.
    pub fn send_up(&self, publication: &mut Publication) {
        publication.reach = Reach::Fleet;
        // Without a fleet there is nothing to look at, not even whether there is something.
        if self.interest.is_on() {
            publication.groups = self.exchange.groups_here().wanting(&publication.topic);
        }
    }

    /// A message that is to be retained is given its place among all others: just before it is [published](Broker::publish), or at once,
    /// if it is said elsewhere before that.
    pub fn stamp(&self, publication: &mut Publication, now: Moment) {
        if publication.retain {
            let unix_ms = if self.exchange.is_of_fleet() { self.journal.unix_millis(now) } else { 0 };
            self.stamp_not_before(publication, u64::try_from(unix_ms).unwrap_or(0));
        }
    }

    fn stamp_not_before(&self, publication: &mut Publication, unix_ms: u64) {
        publication.stamp = self.exchange.next_stamp(self.worker, unix_ms);
        publication.shard = Some(self.worker);
    }

    /// The retained message of a topic whose home this shard is, or an empty one that deletes it, has come from the fleet: every shard
    /// keeps it, unless it has a later one. Whoever has the ticket is told when all of them have taken it.
    pub fn keep_retained(&mut self, publication: Publication, ticket: Ticket, counters: &mut Counters) {
        let (publication, token) = (Arc::new(publication), ticket.token());
        if self.routing.retained.get(&publication.topic).is_some_and(|kept| kept.stamp == publication.stamp) {
            // It was published here, or is here again: the others have it, or will before whatever comes later from here.
            return self.settle(token, Part::Taken);
        }
        self.charge_unsettled(token, &publication);
        if !publication.payload.is_empty() {
            self.settlements.set_retained(token, &publication);
        }
        for worker in (0..self.exchange.workers()).map(WorkerId).filter(|worker| *worker != self.worker) {
            self.settlements.add(token);
            let publication = Arc::clone(&publication);
            self.ways.pass(worker, Passed { publication, token, recipient: Recipient::Retained });
        }
        let is_kept = self.retain(&publication, token);
        counters.add(Metric::RetainedRefused, u64::from(!is_kept));
        self.settle(token, Part::retained(is_kept));
    }

    /// Another shard passes on a message. Its credit comes back when the message is settled here, and so does the answer.
    pub fn handle_passed(&mut self, from: WorkerId, passed: Passed, counters: &mut Counters) {
        let (class, bytes) = (passed.class(), passed.publication.bytes());
        let Passed { publication, token, recipient } = passed;
        let owner = Owner::Shard { worker: from, class, token, bytes, is_parked: false };
        let choice = match recipient {
            Recipient::Subscribers => {
                let token = self.settlements.open(owner);
                let is_kept = self.route(&publication, token, counters);
                return self.settle(token, Part::retained(is_kept));
            }
            Recipient::Retained => {
                let token = self.settlements.open(owner);
                let is_kept = self.retain(&publication, token);
                counters.add(Metric::RetainedRefused, u64::from(!is_kept));
                return self.settle(token, Part::retained(is_kept));
            }
            Recipient::Group(group) => {
                let token = self.settlements.open(owner);
                self.choose_again(&group, &publication, token);
                return self.settle(token, Part::Taken);
            }
            Recipient::Member(choice) => choice,
        };
        let member = self.sessions.resolve(choice.member).filter(|&session| self.is_member(session, &choice.group));
        if let Some(session) = member {
            let (token, held) = self.open_shared(session, &publication, &choice, owner);
            self.deliver_shared(session, &choice, &publication, (token, held));
            self.settle(token, Part::Taken);
        } else {
            self.ways.free(from, class, bytes);
            self.ways.answer(from, ShardMessage::Returned { token, choice, publication });
        }
    }

    /// Another shard answers, or says something about a group.
    pub fn handle_shard_message(&mut self, from: WorkerId, message: ShardMessage) {
        match message {
            ShardMessage::Credit(credit) => self.ways.handle_credit(from, credit),
            ShardMessage::Taken { token, is_refused } => self.settle(token, Part::retained(!is_refused)),
            ShardMessage::Parked { token } => self.park(token),
            ShardMessage::Withdraw { token, publication } => {
                let own = self.settlements.open(Owner::Asker { worker: from, token });
                self.withdraw_here(&publication, own);
                self.settle(own, Part::Taken);
            }
            ShardMessage::Commit { origin, token } => {
                let own = self.settlements.open(Owner::Asker { worker: from, token });
                self.commit(origin, own);
                self.settle(own, Part::Taken);
            }
            ShardMessage::Joined { member, waits } => {
                let Some(session) = self.sessions.resolve(member) else { return };
                self.handle_joined(session, waits);
            }
            about_group => self.handle_group(about_group),
        }
    }

    /// One thing is done for which a settlement waits.
    pub(super) fn settle(&mut self, token: Token, part: Part) {
        let Some(settled) = self.settlements.done(token, part) else { return };
        let Settled { owner, is_refused, withdraw, charge } = settled;
        match (owner, withdraw) {
            (Owner::Shard { worker, class, token, bytes, is_parked }, _) => {
                if !is_parked {
                    self.ways.free(worker, class, bytes);
                }
                if token != NOTHING {
                    self.ways.answer(worker, ShardMessage::Taken { token, is_refused });
                }
            }
            (Owner::Given { worker, bytes, request }, _) => {
                self.ways.free(worker, Lane::Chosen, bytes);
                self.requests.push((request, RequestEnd::Published));
            }
            (Owner::Left { slot, number }, _) => self.handle_given(slot, number),
            (Owner::Asker { worker, token }, _) => self.ways.answer(worker, ShardMessage::Taken { token, is_refused }),
            (owner, Some(publication)) => self.withdraw(owner, &publication),
            (Owner::Publisher { session, packet, origin: 0 }, None) => {
                self.settle_received(session, packet, token, is_refused);
            }
            (Owner::Publisher { session, packet, origin }, None) => {
                self.prepare(Prepared { session, packet, token, origin, is_refused, charge });
            }
            (Owner::Request(request), None) => {
                let end = if is_refused { RequestEnd::NotRetained } else { RequestEnd::Published };
                self.requests.push((request, end));
            }
            (Owner::Nobody, None) => {}
        }
    }

    /// What a device of this shard has published is with everybody, or was refused.
    fn settle_received(&mut self, session: SessionId, packet: u16, token: Token, is_refused: bool) {
        let reason = if is_refused { Reason::QUOTA_EXCEEDED } else { Reason::SUCCESS };
        let Some(session) = self.sessions.resolve(session) else { return };
        let is_online = self.sessions[session].is_online();
        let Some(inflight) = self.sessions[session].inflight.as_deref_mut() else { return };
        if inflight.settle(packet, token, reason) {
            if is_online {
                self.note_answerable(session);
            } else {
                // Nobody is there to be told: what QoS 2 was taken is answered when it comes again.
                inflight.forget_answered();
                self.sessions.shed_empty_inflight(session);
            }
        }
    }

    /// Something has answered for which a SUBACK waits.
    pub(super) fn handle_joined(&mut self, session: SessionSlot, waits: u32) {
        let inflight = self.sessions[session].inflight.as_deref_mut();
        if inflight.is_some_and(|inflight| inflight.handle_joined(waits)) {
            self.note_answerable(session);
        }
    }

    /// A retained message could not be kept by every shard: no shard keeps it, nor an older one, before its publisher is told
    /// so. Otherwise some would tell newcomers one state, and some another.
    fn withdraw(&mut self, owner: Owner, publication: &Arc<Publication>) {
        let token = self.settlements.open(owner);
        let deletion = Arc::new(publication.withdrawal());
        for worker in (0..self.exchange.workers()).map(WorkerId) {
            if worker != self.worker {
                self.settlements.add(token);
                self.ways.answer(worker, ShardMessage::Withdraw { token, publication: Arc::clone(&deletion) });
            }
        }
        self.withdraw_here(&deletion, token);
        self.settle(token, Part::Refused);
    }

    /// This shard's part of a withdrawal.
    fn withdraw_here(&mut self, deletion: &Arc<Publication>, token: Token) {
        if self.set_retained(deletion).1 {
            self.add_when_safe(token);
        }
    }

    /// Keeps a retained message, or deletes its topic's; the home of the topic records it. Whether it was recorded.
    fn set_retained(&mut self, publication: &Arc<Publication>) -> (Set, bool) {
        let had_one = self.routing.retained.get(&publication.topic).is_some();
        let set = self.routing.retained.set(publication, &self.exchange);
        if !self.journal.is_on() || self.home.of(&publication.topic) != self.worker {
            return (set, false);
        }
        match set {
            Set::Stored => {
                let is_of_fleet = self.exchange.is_of_fleet() && publication.reach != Reach::Here;
                let stamp = if is_of_fleet { publication.stamp } else { Stamp::NONE };
                let publication = self.journal.publication(publication);
                self.journal.record(Change::Retained { publication, stamp });
            }
            Set::Deleted if had_one => {
                self.journal.record(Change::Unretained { topic: publication.topic.clone() });
            }
            Set::Deleted | Set::Stale | Set::Full => return (set, false),
        }
        (set, true)
    }

    /// Keeps a retained message, or deletes its topic's. `false`: there is no room for it; nor is an older one kept then, which
    /// would be told as the state of now.
    fn retain(&mut self, publication: &Arc<Publication>, token: Token) -> bool {
        let (set, mut is_recorded) = self.set_retained(publication);
        if set == Set::Full && !publication.payload.is_empty() {
            is_recorded |= self.set_retained(&Arc::new(publication.withdrawal())).1;
        }
        if is_recorded {
            self.add_when_safe(token);
        }
        set != Set::Full
    }

    /// Something said to one device on behalf of its owner, under a subscription that it has. `request`: waits for the
    /// acknowledgement; 0: nobody does.
    pub fn write_to(
        &mut self,
        session: SessionSlot,
        publication: Arc<Publication>,
        subscriber: Subscriber,
        request: u64,
    ) {
        let mut identifiers = Identifiers::None;
        identifiers.push(subscriber.identifier);
        let qos = publication.qos.min(subscriber.qos());
        self.push(
            session,
            Delivery {
                publication,
                qos,
                retain: false,
                identifiers,
                request,
                group: None,
                tried: 0,
                token: NOTHING,
                number: 0,
            },
        );
    }

    /// The subscription under which a session would be told of a topic.
    #[must_use]
    pub fn subscription_for(&self, session: SessionSlot, topic: &str) -> Option<Subscriber> {
        self.routing.subscriptions.find(session, topic)
    }

    /// Keeps what is to be retained, and makes a delivery for every subscriber here, perhaps not in this turn: then the settlement
    /// has one part more. `false`: it could not be retained.
    fn route(&mut self, publication: &Arc<Publication>, token: Token, counters: &mut Counters) -> bool {
        let is_kept = !publication.retain || self.retain(publication, token);
        counters.add(Metric::RetainedRefused, u64::from(!is_kept));
        self.match_publication(publication, token);
        is_kept
    }

    /// A delivery was made: it is delivered, or kept, in the deliver phase. One of QoS 2 that may come again after a crash waits
    /// until it will not.
    pub(super) fn push(&mut self, session: SessionSlot, delivery: Delivery) {
        self.settlements.add(delivery.token);
        if delivery.qos == QoS::ExactlyOnce && delivery.publication.origin != 0 && delivery.number == 0 {
            return self.stage(session, delivery);
        }
        self.deliveries.push(session, self.sessions[session].generation, delivery);
    }

    // --- Shared subscriptions ---------------------------------------------------------------------------------------

    pub(super) fn give_to_member(
        &mut self,
        group: Arc<str>,
        member: Member,
        publication: &Arc<Publication>,
        (token, request, tried): (Token, u64, u8),
    ) {
        let Member { session, options, identifier, .. } = member;
        let choice = Choice { group, member: session, options, identifier, request, tried };
        if session.worker != self.worker {
            let recipient = Recipient::Member(Box::new(choice));
            self.settlements.add(token);
            return self.ways.pass(session.worker, Passed { publication: Arc::clone(publication), token, recipient });
        }
        let Some(index) = self.sessions.resolve(session) else {
            debug_assert!(false, "a session has ended and its group was not told");
            return;
        };
        if request == 0 {
            return self.deliver_shared(index, &choice, publication, (token, 0));
        }
        let (token, held) = self.open_shared(index, publication, &choice, Owner::Request(request));
        self.deliver_shared(index, &choice, publication, (token, held));
        self.settle(token, Part::Taken);
    }

    /// What waits until a member has what a group was given, and the question that is answered by the acknowledgement of its device (0:
    /// none): the fleet waits for that, whatever the session is. What has no acknowledgement is with somebody when it is sent.
    fn open_shared(
        &mut self,
        session: SessionSlot,
        publication: &Publication,
        choice: &Choice,
        owner: Owner,
    ) -> (Token, u64) {
        let request = choice.request;
        let subscriber = Subscriber { slot: session, identifier: 0, options: choice.options };
        let is_acknowledged = publication.qos.min(subscriber.qos()).is_acknowledged();
        if request != 0 && is_acknowledged {
            let token = match owner {
                Owner::Request(_) => NOTHING,
                owner => self.settlements.open(owner),
            };
            return (token, request);
        }
        let owner = match owner {
            Owner::Shard { worker, bytes, .. } if request != 0 => Owner::Given { worker, bytes, request },
            owner => owner,
        };
        (self.settlements.open(owner), 0)
    }

    fn deliver_shared(
        &mut self,
        session: SessionSlot,
        choice: &Choice,
        publication: &Arc<Publication>,
        (token, request): (Token, u64),
    ) {
        let subscriber = Subscriber { slot: session, identifier: choice.identifier, options: choice.options };
        if let Some(mut delivery) = merge(publication, std::iter::once(subscriber), token) {
            if delivery.qos.is_acknowledged() {
                delivery.group = Some(Arc::clone(&choice.group));
                (delivery.request, delivery.tried) = (request, choice.tried);
                self.sessions[session].group_messages = GroupMessages::Some;
            }
            self.push(session, delivery);
        }
    }

    /// The fleet gives a message to a group whose home this shard is: a member that is connected gets it. The request is answered by what
    /// becomes of it.
    pub fn give_from_fleet(&mut self, request: u64, group: &str, publication: &Arc<Publication>) {
        let chosen = self.routing.groups.choose_online_in(group);
        self.give_to_chosen(chosen, publication, (request, 0));
    }

    fn give_to_chosen(
        &mut self,
        chosen: Option<(Arc<str>, Member)>,
        publication: &Arc<Publication>,
        (request, tried): (u64, u8),
    ) {
        match chosen {
            Some((group, member)) => self.give_to_member(group, member, publication, (NOTHING, request, tried)),
            None => self.give_up_request(request),
        }
    }

    /// Says something to the home of the group that it is about.
    pub(super) fn tell_group(&mut self, message: ShardMessage) {
        let (ShardMessage::Join { group, .. } | ShardMessage::Leave { group, .. } | ShardMessage::NoRoom { group, .. }) =
            &message
        else {
            unreachable!("not for a group's home")
        };
        let home = self.home.of(group);
        if home != self.worker {
            return self.ways.answer(home, message);
        }
        self.handle_group(message);
    }

    /// At the home of the group that it is about.
    fn handle_group(&mut self, message: ShardMessage) {
        match message {
            ShardMessage::Join { group, member, options, identifier, room, waits } => {
                let Some((_, filter)) = topic::shared(&group) else { return };
                self.routing.groups.join(&group, filter, Member { session: member, options, identifier, room });
                // Before it is answered: whoever publishes afterwards asks here.
                self.note_wants();
                let has_to_wait = self.routing.groups.wait(&group, (member, waits));
                if waits != 0 && member.worker != self.worker && !has_to_wait {
                    self.ways.answer(member.worker, ShardMessage::Joined { member, waits });
                }
            }
            ShardMessage::Leave { group, member } => self.leave_group(&group, member),
            ShardMessage::NoRoom { group, member, publication, request, tried } => {
                let chosen = self.routing.groups.choose_after(&group, member, tried);
                self.give_to_chosen(chosen, &publication, (request, tried));
            }
            ShardMessage::Returned { token, choice, publication } => {
                self.leave_group(&choice.group, choice.member);
                if choice.request == 0 {
                    self.choose_again(&choice.group, &publication, token);
                } else {
                    let chosen = self.routing.groups.choose_online_in(&choice.group);
                    self.give_to_chosen(chosen, &publication, (choice.request, choice.tried));
                }
                self.settle(token, Part::Taken);
            }
            ShardMessage::Credit(_)
            | ShardMessage::Taken { .. }
            | ShardMessage::Parked { .. }
            | ShardMessage::Withdraw { .. }
            | ShardMessage::Commit { .. }
            | ShardMessage::Joined { .. } => {
                unreachable!("not for a group's home")
            }
        }
        self.note_wants();
    }

    fn leave_group(&mut self, group: &str, member: SessionId) {
        let waiting = self.routing.groups.leave(group, member);
        self.tell_joined(waiting);
    }

    /// It is decided who gives to a group whose home this shard is: whoever has subscribed to it may be told so.
    pub fn handle_group_served(&mut self, group: &str, life: u32, giver: Giver) {
        let waiting = self.routing.groups.decide(group, life, giver);
        self.tell_joined(waiting);
    }

    fn tell_joined(&mut self, waiting: Vec<(SessionId, u32)>) {
        for (member, waits) in waiting {
            if member.worker != self.worker {
                self.ways.answer(member.worker, ShardMessage::Joined { member, waits });
            } else if let Some(session) = self.sessions.resolve(member) {
                self.handle_joined(session, waits);
            }
        }
    }

    /// What the control plane is to be told of groups of shared subscribers, in a fleet.
    pub fn take_group_events(&mut self) -> Vec<WorkerEvent> {
        self.routing.groups.take_events()
    }

    fn is_member(&self, session: SessionSlot, group: &str) -> bool {
        self.sessions[session].groups.iter().any(|membership| *membership.group == *group)
    }

    // --- Subscribing ------------------------------------------------------------------------------------------------

    /// A SUBSCRIBE has come: the number under which homes of groups answer.
    pub(super) fn begin_subscribe(&mut self) -> u32 {
        self.subscribes = self.subscribes.wrapping_add(1).max(1);
        self.subscribes
    }

    /// One filter of SUBSCRIBE; it is valid and allowed. Retained messages that it wants follow.
    /// `pending`: the packet that it is in.
    pub fn subscribe(
        &mut self,
        session: SessionSlot,
        filter: &str,
        options: Options,
        identifier: u32,
        pending: &mut PendingSuback,
    ) -> Granted {
        let options_byte = options.to_byte();
        let known = self.subscription_of(session, filter);
        if known.is_none() && !self.has_room_for_filter(session, filter) {
            return Granted::TooMany;
        }
        if known != Some((options_byte, identifier)) {
            self.sessions[session].row = Row::Unknown;
        }
        if topic::shared(filter).is_some() {
            // No retained messages for shared subscriptions (v5 4.8.2).
            return self.join(session, filter, options_byte, identifier, pending);
        }
        let subscriber = Subscriber { slot: session, identifier, options: options_byte };
        let is_new = self.routing.subscriptions.subscribe(filter, subscriber);
        if is_new {
            self.interest.note_subscribed(filter);
        }
        self.note_wants();
        self.record_subscribed(session, filter, options_byte, identifier);
        // Retain Handling [v5 MQTT-3.3.1-9 to MQTT-3.3.1-11]. What an earlier packet has asked for is still owed.
        let wants_retained = options.retain_handling == 0 || (options.retain_handling == 1 && is_new);
        if wants_retained && !self.routing.retained.is_empty() {
            let (arrivals, packet) = (self.routing.retained.arrivals(), pending.waits);
            let replays = self.sessions.inflight(session).replays.get_or_insert_default();
            replays.add(filter, subscriber, arrivals, packet);
            self.note_backlog(session);
        } else if let Some(inflight) = self.sessions[session].inflight.as_deref_mut()
            && let Some(replays) = inflight.replays.as_deref_mut()
        {
            replays.change(filter, subscriber);
        }
        Granted::Subscribed
    }

    /// One filter of UNSUBSCRIBE.
    pub fn unsubscribe(&mut self, session: SessionSlot, filter: &str) -> Unsubscribed {
        let gone = if topic::shared(filter).is_some() {
            self.leave(session, filter)
        } else {
            self.drop_replay(session, filter);
            self.routing.subscriptions.unsubscribe(session, filter)
        };
        self.note_wants();
        let key = self.sessions[session].key;
        if gone && key != NO_KEY {
            self.journal.record(Change::Unsubscribed { session: key, filter: filter.into() });
            self.note_changed(session);
        }
        if gone { Unsubscribed::Removed } else { Unsubscribed::NoSuch }
    }

    /// Filters have changed: tells the other shards whether anything published is of interest here, and the pool what they take.
    pub(super) fn note_wants(&mut self) {
        self.routing.account(self.sessions.len());
        let wants = !self.routing.subscriptions.is_empty() || !self.routing.groups.is_empty();
        self.exchange.set_wants(self.worker, wants);
    }

    /// Retained messages that were on their way to a subscription are not any more.
    fn drop_replay(&mut self, session: SessionSlot, filter: &str) {
        if let Some(inflight) = self.sessions[session].inflight.as_deref_mut()
            && let Some(replays) = inflight.replays.as_deref_mut()
        {
            replays.remove(filter);
            inflight.shed_replays();
            self.sessions.shed_empty_inflight(session);
        }
    }

    /// Whether a session may have one more subscription: by number, and by what the pool has room for.
    fn has_room_for_filter(&self, session: SessionSlot, filter: &str) -> bool {
        let count = self.subscription_count(session);
        if topic::shared(filter).is_some() && self.sessions[session].groups.len() >= SHARED_MAX {
            return false;
        }
        let bytes = Subscriptions::<SessionSlot>::bytes_of(filter)
            + topic::shared(filter).map_or(0, |_| membership_bytes(filter));
        let shared: usize = self.sessions[session].groups.iter().map(|own| membership_bytes(&own.group)).sum();
        let held = self.routing.subscriptions.bytes_held(session) + shared;
        let is_in_session = count == 0 && filter.len() <= FIRST_FILTER_BYTES;
        count < self.bounds.subscriptions && (is_in_session || self.pool.may_take(Class::Filters, bytes, held))
    }

    fn subscription_count(&self, session: SessionSlot) -> usize {
        self.routing.subscriptions.count(session) + self.sessions[session].groups.len()
    }

    /// The options and the identifier with which a session has subscribed to just this filter, shared or not.
    fn subscription_of(&self, session: SessionSlot, filter: &str) -> Option<(u8, u32)> {
        let own = self.routing.subscriptions.get(session, filter).map(|own| (own.options, own.identifier));
        own.or_else(|| {
            let shared = self.sessions[session].groups.iter().find(|membership| *membership.group == *filter)?;
            Some((shared.options, shared.identifier))
        })
    }

    fn join(
        &mut self,
        session: SessionSlot,
        filter: &str,
        options: u8,
        identifier: u32,
        pending: &mut PendingSuback,
    ) -> Granted {
        let member = self.id(session);
        let room = if self.sessions[session].is_online() { self.group_room(session) } else { 0 };
        let groups = &mut self.sessions[session].groups;
        let known = groups.iter().position(|membership| *membership.group == *filter);
        let place = known.unwrap_or_else(|| {
            groups.push(Membership { group: filter.into(), options, identifier });
            self.routing.note_joined(filter);
            groups.len() - 1
        });
        (groups[place].options, groups[place].identifier) = (options, identifier);
        let group = Arc::clone(&groups[place].group);
        let is_here = self.home.of(&group) == self.worker;
        let waits = pending.waits;
        self.record_subscribed(session, filter, options, identifier);
        let name = Arc::clone(&group);
        self.tell_group(ShardMessage::Join { group, member, options, identifier, room, waits });
        pending.homes += usize::from(!is_here || self.routing.groups.is_undecided(&name));
        Granted::Subscribed
    }

    fn record_subscribed(&mut self, session: SessionSlot, filter: &str, options: u8, identifier: u32) {
        let key = self.sessions[session].key;
        if key != NO_KEY {
            let subscription = image::Subscription { filter: filter.into(), options, identifier };
            self.journal.record(Change::Subscribed { session: key, subscription });
        }
    }

    /// SUBACK waits, beside the homes of groups, until the subscriptions are safe, and what other gateways publish comes here.
    pub fn expect_subscribed(&mut self, session: SessionSlot, pending: &mut PendingSuback) {
        self.expect_interest(self.id(session), pending);
        self.expect_row(session, pending);
        if self.sessions[session].key != NO_KEY {
            let waiting = Waiting::Suback { session: self.id(session), waits: pending.waits };
            pending.homes += usize::from(self.journal.wait(waiting).is_none());
        }
    }

    fn leave(&mut self, session: SessionSlot, filter: &str) -> bool {
        let member: SessionId = self.id(session);
        let groups = &mut self.sessions[session].groups;
        let Some(place) = groups.iter().position(|membership| *membership.group == *filter) else { return false };
        let group = groups.swap_remove(place).group;
        self.routing.note_left(&group);
        self.tell_group(ShardMessage::Leave { group, member });
        true
    }
}

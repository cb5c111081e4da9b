//! From a publication to deliveries: who has subscribed, in this shard and in others.

use std::sync::Arc;

use super::groups::Member;
use super::inflight::{Delivery, Identifiers};
use super::retained::Set;
use super::subscriptions::Subscriber;
use super::{Broker, Membership, NOBODY, RoutedDelivery};
use crate::codec::mqtt::subscribe::Options;
use crate::codec::mqtt::topic;
use crate::link::{Peer, Publication, SessionId, WorkerId};
use crate::metrics::{Counters, Figure};

/// What became of one filter in SUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granted {
    /// Subscribed; retained messages follow as far as they are wanted.
    Yes,
    /// The session has as many subscriptions as it may.
    TooMany,
}

/// What became of one filter in UNSUBSCRIBE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsubscribed {
    /// It is gone.
    Yes,
    /// There was none.
    NoSuch,
}

impl Broker {
    // --- Publishing -------------------------------------------------------------------------------------------------

    /// A message was published in this shard: it goes to every shard where anybody may want it.
    pub fn publish(&mut self, mut publication: Publication, counters: &mut Counters) {
        counters.add(Figure::Published, 1);
        if publication.retain {
            publication.stamp = self.exchange.next_stamp(self.worker);
        }
        let publication = Arc::new(publication);
        for worker in (0..self.exchange.workers()).map(WorkerId) {
            if worker != self.worker && (publication.retain || self.exchange.wants(worker)) {
                self.outgoing[worker.index()].push(Peer::Published(Arc::clone(&publication)));
            }
        }
        self.route(&publication, counters);
    }

    /// Another shard has something to say.
    pub fn handle_peer(&mut self, peer: Peer, counters: &mut Counters) {
        match peer {
            Peer::Published(publication) => self.route(&publication, counters),
            Peer::Chosen { group, member, publication, options, identifier } => {
                let known = self.resolve(member).filter(|&session| self.is_member(session, &group));
                match known {
                    Some(session) => self.deliver_shared(session, &publication, options, identifier),
                    None => self.tell_group(Peer::Returned { group, member, publication }),
                }
            }
            about_group => self.handle_group(about_group),
        }
    }

    /// Something said to one device on behalf of its owner, under a subscription that it has. `request`: waits for the
    /// acknowledgement; 0: nobody does.
    pub fn write_to(&mut self, session: u32, publication: Arc<Publication>, subscriber: Subscriber, request: u64) {
        let mut identifiers = Identifiers::None;
        identifiers.push(subscriber.identifier);
        let qos = publication.qos.min(subscriber.qos());
        self.push(session, Delivery { publication, qos, retain: false, identifiers, request });
    }

    /// The subscription under which a session would be told of a topic.
    #[must_use]
    pub fn subscription_for(&self, session: u32, topic: &str) -> Option<Subscriber> {
        self.subscriptions.find(session, topic)
    }

    /// Keeps what is to be retained, and writes a delivery to every subscriber here.
    fn route(&mut self, publication: &Arc<Publication>, counters: &mut Counters) {
        if publication.retain && self.retained.set(publication, &self.exchange) == Set::Full {
            counters.add(Figure::RetainedRefused, 1);
        }
        self.route_to_groups(publication);
        let mut found = std::mem::take(&mut self.found);
        found.clear();
        self.subscriptions.matching(&publication.topic, &mut found);
        let publisher = publication.publisher.filter(|id| id.worker == self.worker);
        // No Local: not to the connection that published it [v5 MQTT-3.8.3-3].
        found.retain(|subscriber| {
            let no_local = subscriber.options & Options::NO_LOCAL != 0;
            !(no_local && publisher.is_some_and(|id| self.resolve(id) == Some(subscriber.session)))
        });
        // Overlapping subscriptions make one delivery, under the highest QoS [v5 MQTT-3.3.4-2], and with all identifiers
        // [v5 MQTT-3.3.4-3, MQTT-3.3.4-4].
        if found.len() > 1 {
            found.sort_by_key(|subscriber| subscriber.session);
        }
        for own in found.chunk_by(|one, other| one.session == other.session) {
            self.push(own[0].session, merge(publication, own));
        }
        self.found = found;
    }

    fn push(&mut self, session: u32, delivery: Delivery) {
        let generation = self.all[session as usize].generation;
        self.deliveries.push_back(RoutedDelivery { session, generation, delivery });
    }

    // --- Shared subscriptions ---------------------------------------------------------------------------------------

    fn route_to_groups(&mut self, publication: &Arc<Publication>) {
        if self.groups.is_empty() {
            return;
        }
        let mut scratch = std::mem::take(&mut self.found);
        let mut chosen = Vec::new();
        self.groups.choose(&publication.topic, &mut scratch, &mut chosen);
        self.found = scratch;
        for (group, member) in chosen {
            self.give_to_member(group, member, publication);
        }
    }

    fn give_to_member(&mut self, group: Arc<str>, member: Member, publication: &Arc<Publication>) {
        let Member { session, options, identifier, .. } = member;
        let publication = Arc::clone(publication);
        if session.worker != self.worker {
            let chosen = Peer::Chosen { group, member: session, publication, options, identifier };
            return self.outgoing[session.worker.index()].push(chosen);
        }
        match self.resolve(session) {
            Some(index) => self.deliver_shared(index, &publication, options, identifier),
            None => debug_assert!(false, "a session has ended and its group was not told"),
        }
    }

    fn deliver_shared(&mut self, session: u32, publication: &Arc<Publication>, options: u8, identifier: u32) {
        let delivery = merge(publication, &[Subscriber { session, identifier, options }]);
        self.push(session, delivery);
    }

    /// Says something to the home of the group that it is about.
    pub(super) fn tell_group(&mut self, peer: Peer) {
        let (Peer::Join { group, .. } | Peer::Leave { group, .. } | Peer::Returned { group, .. }) = &peer else {
            unreachable!("not for a group's home")
        };
        let home = self.home.of(group);
        if home != self.worker {
            return self.outgoing[home.index()].push(peer);
        }
        self.handle_group(peer);
    }

    /// At the home of the group that it is about.
    fn handle_group(&mut self, peer: Peer) {
        match peer {
            Peer::Join { group, member, options, identifier, is_online } => {
                let Some((_, filter)) = topic::shared(&group) else { return };
                self.groups.join(&group, filter, Member { session: member, options, identifier, is_online });
            }
            Peer::Leave { group, member } => self.groups.leave(&group, member),
            Peer::Returned { group, member, publication } => {
                self.groups.leave(&group, member);
                if let Some(next) = self.groups.choose_in(&group) {
                    self.give_to_member(group, next, &publication);
                }
            }
            Peer::Published(_) | Peer::Chosen { .. } => unreachable!("not for a group's home"),
        }
        self.note_wants();
    }

    fn is_member(&self, session: u32, group: &str) -> bool {
        self.all[session as usize].groups.iter().any(|membership| *membership.group == *group)
    }

    // --- Subscribing ------------------------------------------------------------------------------------------------

    /// A SUBSCRIBE has come: the filters that follow are one packet's.
    pub fn begin_subscribe(&mut self) {
        self.packets = self.packets.wrapping_add(1);
    }

    /// One filter of SUBSCRIBE; it is valid and allowed. Retained messages that it wants follow.
    pub fn subscribe(&mut self, session: u32, filter: &str, options: Options, identifier: u32) -> Granted {
        let options_byte = options.to_byte();
        let is_known = self.has_subscribed(session, filter);
        if !is_known && self.subscription_count(session) >= self.bounds.subscriptions {
            return Granted::TooMany;
        }
        if topic::shared(filter).is_some() {
            // No retained messages for shared subscriptions (v5 4.8.2).
            self.join(session, filter, options_byte, identifier);
            return Granted::Yes;
        }
        let subscriber = Subscriber { session, identifier, options: options_byte };
        let is_new = self.subscriptions.subscribe(filter, subscriber);
        self.note_wants();
        // Retain Handling [v5 MQTT-3.3.1-9 to MQTT-3.3.1-11]. What an earlier packet has asked for is still owed.
        let wants_retained = options.retain_handling == 0 || (options.retain_handling == 1 && is_new);
        if wants_retained && !self.retained.is_empty() {
            let (arrivals, packet) = (self.retained.arrivals(), self.packets);
            let replays = self.inflight(session).replays.get_or_insert_default();
            replays.add(filter, subscriber, arrivals, packet);
            self.note_backlog(session);
        } else if let Some(inflight) = self.all[session as usize].inflight.as_deref_mut()
            && let Some(replays) = inflight.replays.as_deref_mut()
        {
            replays.change(filter, subscriber);
        }
        Granted::Yes
    }

    /// One filter of UNSUBSCRIBE.
    pub fn unsubscribe(&mut self, session: u32, filter: &str) -> Unsubscribed {
        let gone = if topic::shared(filter).is_some() {
            self.leave(session, filter)
        } else {
            self.drop_replay(session, filter);
            self.subscriptions.unsubscribe(session, filter)
        };
        self.note_wants();
        if gone { Unsubscribed::Yes } else { Unsubscribed::NoSuch }
    }

    /// Tells the other shards whether anything published is of interest here.
    pub(super) fn note_wants(&mut self) {
        self.exchange.set_wants(self.worker, !self.subscriptions.is_empty() || !self.groups.is_empty());
    }

    /// Retained messages that were on their way to a subscription are not any more.
    fn drop_replay(&mut self, session: u32, filter: &str) {
        if let Some(inflight) = self.all[session as usize].inflight.as_deref_mut()
            && let Some(replays) = inflight.replays.as_deref_mut()
        {
            replays.remove(filter);
            inflight.shed_replays();
            self.shed_empty_inflight(session);
        }
    }

    fn subscription_count(&self, session: u32) -> usize {
        self.subscriptions.count(session) + self.all[session as usize].groups.len()
    }

    fn has_subscribed(&self, session: u32, filter: &str) -> bool {
        self.is_member(session, filter) || self.subscriptions.has(session, filter)
    }

    fn join(&mut self, session: u32, filter: &str, options: u8, identifier: u32) {
        let member = self.id(session);
        let is_online = self.all[session as usize].connection != NOBODY;
        let groups = &mut self.all[session as usize].groups;
        let known = groups.iter().position(|membership| *membership.group == *filter);
        let place = known.unwrap_or_else(|| {
            groups.push(Membership { group: filter.into(), options, identifier });
            groups.len() - 1
        });
        (groups[place].options, groups[place].identifier) = (options, identifier);
        let group = Arc::clone(&groups[place].group);
        self.tell_group(Peer::Join { group, member, options, identifier, is_online });
    }

    fn leave(&mut self, session: u32, filter: &str) -> bool {
        let member: SessionId = self.id(session);
        let groups = &mut self.all[session as usize].groups;
        let Some(place) = groups.iter().position(|membership| *membership.group == *filter) else { return false };
        let group = groups.swap_remove(place).group;
        self.tell_group(Peer::Leave { group, member });
        true
    }
}

/// What the subscriptions of one session make of a publication.
fn merge(publication: &Arc<Publication>, own: &[Subscriber]) -> Delivery {
    let mut identifiers = Identifiers::None;
    let mut granted = 0;
    let mut as_published = false;
    for subscriber in own {
        granted = granted.max(subscriber.qos());
        as_published |= subscriber.options & Options::RETAIN_AS_PUBLISHED != 0;
        identifiers.push(subscriber.identifier);
    }
    Delivery {
        publication: Arc::clone(publication),
        qos: publication.qos.min(granted),
        // [v5 MQTT-3.3.1-12, MQTT-3.3.1-13]; in v3.1.1 never [v3.1.1 MQTT-3.3.1-9].
        retain: publication.retain && as_published,
        identifiers,
        request: 0,
    }
}

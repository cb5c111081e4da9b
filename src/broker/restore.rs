//! A shard begins with what an earlier process has left: its sessions, as they were, and retained messages.

use std::sync::Arc;
use std::time::Duration;

use super::handover::is_hidden;
use super::inflight::{Delivery, Identifiers, Sending, Stored};
use super::lifecycle::{GroupMessages, Membership};
use super::redispatch::is_ended;
use super::settlement::NOTHING;
use super::subscriptions::Subscriber;
use super::{Broker, Profile, Will};
use crate::codec::mqtt::{Version, topic};
use crate::image::{self, Change};
use crate::link::{ListenerId, Publication, Reach, ShardMessage, Stamp};
use crate::slot::SessionSlot;
use crate::time::{Moment, TICK_MICROS, Tick};

impl Broker {
    /// A session that an earlier process has left, of a device whose home is here. Its device is away; one that was connected
    /// when that process ended is so from now on. The store has dropped what was not known to be safe (staging).
    pub fn restore(&mut self, from: image::KeptSession, now: Moment) {
        let image::KeptSession { head, subscriptions, sent, outstanding, received, waiting } = from;
        if is_ended(&head.name) {
            self.journal.note_number(waiting.last_number);
            return self.restore_left(head.key, waiting.last_number, waiting.bytes);
        }
        if is_hidden(&head.name) {
            self.journal.note_number(waiting.last_number);
            return self.restore_hidden(head.key);
        }
        let session =
            self.sessions.restore(&head, self.profile_of(&head.profile), self.tick_of(head.away_since_ms, now));
        if let Some(will) = head.will {
            self.sessions.set_will(session, self.will_of(&will, now));
        }
        for subscription in subscriptions {
            self.restore_subscription(session, subscription);
        }
        self.restore_messages(session, &sent, &outstanding, waiting);
        for received in received {
            debug_assert_eq!(received.origin, 0);
            self.sessions.inflight(session).restore_answered(received.packet);
        }
        self.sessions.shed_empty_inflight(session);
        self.sessions.enter_away(session);
        self.note_brought(session, false);
        self.note_wants();
        if head.away_since_ms.is_none() {
            self.record_head(session, &head.name, Some(now));
        }
    }

    /// A retained message that an earlier process has left, with its stamp, if it is one of the fleet.
    pub fn restore_retained(&mut self, from: image::Publication, stamp: Stamp, now: Moment) {
        let reach = if stamp.is_none() { Reach::Here } else { Reach::Elsewhere };
        self.exchange.note_stamp(stamp);
        let publication = Arc::new(Publication { stamp, reach, ..self.publication_of(&from, now) });
        let is_kept = !publication.is_expired(now) && self.routing.retained.restore(&publication);
        if !is_kept && self.home.of(&publication.topic) == self.worker {
            self.journal.record(Change::Unretained { topic: from.topic });
        }
    }

    pub(super) fn restore_subscription(&mut self, session: SessionSlot, subscription: image::Subscription) {
        let image::Subscription { filter, options, identifier } = subscription;
        if topic::shared(&filter).is_none() {
            self.routing.subscriptions.subscribe(&filter, Subscriber { slot: session, identifier, options });
            self.interest.note_subscribed(&filter);
            return;
        }
        let (member, group): (_, Arc<str>) = (self.id(session), filter.into());
        self.sessions[session].groups.push(Membership { group: Arc::clone(&group), options, identifier });
        self.routing.note_joined(&group);
        self.tell_group(ShardMessage::Join { group, member, options, identifier, room: 0, waits: 0 });
    }

    /// What is in flight, in the order of the numbers. Whatever its device has not acknowledged lies in the store, and stays there.
    fn restore_messages(
        &mut self,
        session: SessionSlot,
        sent: &[image::SentMessage],
        outstanding: &[image::Outstanding],
        waiting: image::Waiting,
    ) {
        let image::Waiting { messages, bytes, last_number } = waiting;
        if !sent.is_empty() || messages > 0 {
            let messages = u32::try_from(messages).unwrap_or(u32::MAX);
            // Some of them may be; whoever wants to know reads them.
            self.sessions[session].group_messages = GroupMessages::Some;
            self.sessions.restore_stored(session, Stored { through: last_number, bytes, messages });
        }
        let released = outstanding.iter().map(|one| (one.number, one.packet, Sending::Released));
        let sent = sent.iter().map(|one| (one.number, one.packet, Sending::Stored { qos: one.qos }));
        let mut outbound: Vec<_> = released.chain(sent).collect();
        outbound.sort_by_key(|(number, ..)| *number);
        for (number, packet, state) in outbound {
            self.sessions.inflight(session).restore_outbound(packet, state, number);
        }
        self.journal.note_number(last_number);
    }

    /// A message as it comes out of the store.
    pub(super) fn delivery_of(&self, message: &image::Message, now: Moment) -> Delivery {
        let mut identifiers = Identifiers::None;
        message.identifiers.iter().for_each(|&identifier| identifiers.push(identifier));
        Delivery {
            publication: Arc::new(self.publication_of(&message.publication, now)),
            qos: message.qos,
            retain: message.retain,
            identifiers,
            request: 0,
            group: message.group.as_deref().map(Arc::from),
            tried: 0,
            token: NOTHING,
            number: message.number,
        }
    }

    pub(super) fn publication_of(&self, from: &image::Publication, now: Moment) -> Publication {
        Publication {
            retain: from.retain,
            properties: from.properties.clone(),
            expires: from.expires_ms.map(|at_ms| self.moment_of(at_ms, now)),
            ..Publication::plain(from.topic.clone(), from.payload.clone(), from.qos)
        }
    }

    fn will_of(&self, from: &image::Will, now: Moment) -> Will {
        Will {
            publication: self.publication_of(&from.publication, now),
            expiry_s: from.expiry_s,
            delay_s: from.delay_s,
        }
    }

    pub(super) fn profile_of(&self, from: &image::Profile) -> Profile {
        let names = self.journal.recording().map_or(&[][..], |recording| &recording.listeners);
        // One that has gone lends its name to nobody's rules: the will of such a session goes by those of the first.
        let listener = names.iter().position(|name| *name == from.listener).unwrap_or(0);
        Profile {
            version: Version::of_level(from.version).unwrap_or(Version::V311),
            listener: ListenerId(listener as u8),
            keep_alive_s: from.keep_alive_s,
            expiry_s: from.expiry_s,
            receive_maximum: from.receive_maximum,
            packet_maximum: from.packet_maximum,
            alias_maximum: from.alias_maximum,
        }
    }

    /// How long after (or before) `now` the clock shows so many milliseconds since 1970.
    fn moment_of(&self, unix_ms: i64, now: Moment) -> Moment {
        let left = unix_ms.saturating_sub(self.journal.unix_millis(now));
        match u64::try_from(left) {
            Ok(left) => now.plus(Duration::from_millis(left)),
            Err(_) => now,
        }
    }

    /// The tick in which the clock showed that, at most 3.4 years ago; now where nothing is said, or it is yet to come.
    fn tick_of(&self, unix_ms: Option<i64>, now: Moment) -> Tick {
        let passed_ms = unix_ms.map_or(0, |at| self.journal.unix_millis(now).saturating_sub(at).max(0));
        let ticks = (passed_ms as u64).div_ceil(TICK_MICROS / 1_000).min(1 << 30);
        Tick(now.tick().0.wrapping_sub(ticks as u32))
    }
}

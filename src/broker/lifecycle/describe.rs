//! What people are told of a session.

use super::Broker;
use crate::link::SessionFacts;
use crate::slot::SessionSlot;

impl Broker {
    /// What a session has subscribed to, each filter as it was written.
    #[must_use]
    pub fn filters(&self, session: SessionSlot) -> Vec<String> {
        let own = self.routing.subscriptions.filters(session).map(|(filter, _)| filter);
        let shared = self.sessions[session].groups.iter().map(|membership| membership.group.to_string());
        own.chain(shared).collect()
    }

    /// What is known of a session, with its filters up to so many bytes of them.
    #[must_use]
    pub fn describe(&self, session: SessionSlot, filter_bytes: usize) -> SessionFacts {
        let known = &self.sessions[session];
        let (kept, kept_bytes) = known.inflight.as_ref().map_or((0, 0), |inflight| inflight.kept());
        let stored = self.sessions.stored(session);
        let own = self.routing.subscriptions.filters(session).map(|(filter, subscriber)| {
            let filter: Box<str> = filter.into();
            (filter, subscriber.qos() as u8)
        });
        let mut left = filter_bytes;
        let fits = |(filter, _): &(Box<str>, u8)| {
            let fits = filter.len() <= left;
            left = left.saturating_sub(filter.len());
            fits
        };
        let shared = known.groups.iter().map(|membership| (Box::from(&*membership.group), membership.options & 3));
        SessionFacts {
            version: match known.profile.version {
                crate::codec::mqtt::Version::V31 => "3.1",
                crate::codec::mqtt::Version::V311 => "3.1.1",
                crate::codec::mqtt::Version::V5 => "5.0",
            },
            keep_alive_s: known.profile.keep_alive_s,
            expiry_s: known.profile.expiry_s,
            subscriptions: own.chain(shared).take_while(fits).collect(),
            subscription_count: self.routing.subscriptions.count(session) + known.groups.len(),
            inflight: known.inflight.as_ref().map_or(0, |inflight| inflight.unacknowledged()),
            queued: kept + stored.messages as usize,
            queued_bytes: kept_bytes + stored.bytes as usize,
        }
    }
}

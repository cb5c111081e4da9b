//! A published message on its way to subscribers: made once where it came in, shared by every shard and session that it
//! goes through.

use bytes::Bytes;

use super::{GroupNames, QoS, Stamp, WorkerId};
use crate::slot::SessionSlot;
use crate::time::Moment;

/// A handle to a session, across shards. A stale one finds nothing: slots are reused, generations are not (until 2^32
/// newer sessions have come to the same shard).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId {
    /// Whose shard it lives in.
    pub worker: WorkerId,
    /// Its slot there.
    pub slot: SessionSlot,
    /// The shard's count of sessions, wrapping, when it took its slot.
    pub generation: u32,
}

/// One published message. Never changed once it is made, so that it can be shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Under which topic: a valid topic name.
    pub topic: Box<str>,
    /// The payload: opaque bytes.
    pub payload: Bytes,
    /// The quality of service with which it was published: 0, 1 or 2.
    pub qos: QoS,
    /// Whether it was published to be retained.
    pub retain: bool,
    /// The encoded MQTT 5 properties that go along with it unaltered ([MQTT-3.3.2-4] and those after it); often empty.
    pub properties: Box<[u8]>,
    /// After this moment it is of no use to anybody (Message Expiry Interval).
    pub expires: Option<Moment>,
    /// Its place among all retained messages; none where it is not one.
    pub stamp: Stamp,
    /// The shard of this process that gave it its stamp, and says what it publishes to each other in that order. `None`: it came from
    /// somewhere else, whenever it did.
    pub shard: Option<WorkerId>,
    /// Under which number its publisher's shard has recorded that it was received and not answered: a message of QoS 2 of a session
    /// that outlives its connection. 0: it is not one.
    pub origin: u64,
    /// Of which device it is, for its share of what is retained: a keyed hash of its id, as [`super::Home`] has it. 0: of none.
    pub owner: u32,
    /// Whom it reaches.
    pub reach: Reach,
    /// Groups of shared subscriptions, as `$share/NAME/FILTER`, that get it at the gateway where it is published, while the fleet cannot
    /// give it to them (decision 0033). `None`: no such group.
    pub groups: Option<GroupNames>,
    /// The session that published it, for No Local. `None`: the owner, or a device that has gone since.
    pub publisher: Option<SessionId>,
}

/// Whom a publication reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Subscribers of this gateway.
    #[default]
    Here,
    /// Those of all gateways of the fleet: it is published here, and goes up.
    Fleet,
    /// It was published at another gateway. Groups of shared subscribers get what the fleet gives them (decision 0033).
    Elsewhere,
}

/// How a message was published, beside its topic and its payload: what goes up with it, for subscribers at other gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traits {
    /// See [`Publication::qos`].
    pub qos: QoS,
    /// See [`Publication::retain`].
    pub retain: bool,
    /// See [`Publication::properties`].
    pub properties: Box<[u8]>,
    /// See [`Publication::expires`].
    pub expires: Option<Moment>,
    /// See [`Publication::stamp`].
    pub stamp: Stamp,
    /// See [`Publication::groups`].
    pub groups: Option<GroupNames>,
}

impl Publication {
    /// One from the owner to whoever has subscribed, and nothing more: not retained, without properties, never stale.
    #[must_use]
    pub fn plain(topic: impl Into<Box<str>>, payload: Bytes, qos: QoS) -> Self {
        Self {
            topic: topic.into(),
            payload,
            qos,
            retain: false,
            properties: Box::default(),
            expires: None,
            stamp: Stamp::NONE,
            shard: None,
            origin: 0,
            owner: 0,
            reach: Reach::Here,
            groups: None,
            publisher: None,
        }
    }

    /// How it was published.
    #[must_use]
    pub fn traits(&self) -> Traits {
        Traits {
            qos: self.qos,
            retain: self.retain,
            properties: self.properties.clone(),
            expires: self.expires,
            stamp: self.stamp,
            groups: self.groups.clone(),
        }
    }

    /// Its withdrawal, where it was to be retained: a deletion in the place right behind it, which deletes it and older ones of
    /// its topic, and no later one.
    #[must_use]
    pub fn withdrawal(&self) -> Self {
        let (stamp, shard) = (self.stamp.withdrawal(), self.shard);
        Self { retain: true, stamp, shard, ..Self::plain(self.topic.clone(), Bytes::new(), QoS::AtMostOnce) }
    }

    /// What it counts as where messages are bounded by bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.topic.len() + self.payload.len() + self.properties.len()
    }

    /// Whether it is of no use any more.
    #[must_use]
    pub fn is_expired(&self, now: Moment) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }
}

//! What a session would have been given of what was published, told by its subscriptions as its shard would have (`broker/matching`).
//! Pure: of the messages of the fleet's stream, in their order, those that are for it, and of these the latest that it has room for.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::codec::mqtt::{Options, Properties, QoS, topic};
use crate::fleet::Published;
use crate::image::{Message, Publication, Subscription};
use crate::link::Cover;

/// What one session has subscribed to.
pub(super) struct Wants<'a> {
    device: &'a str,
    /// Not the shared ones: a group gets a message where it is published.
    subscriptions: Vec<&'a Subscription>,
    /// A topic has so many levels at most.
    levels: usize,
}

/// How a message is delivered.
struct Delivered {
    qos: QoS,
    retain: bool,
    identifiers: Vec<u32>,
}

impl<'a> Wants<'a> {
    pub(super) fn new(device: &'a str, subscriptions: &'a [Subscription], levels: usize) -> Self {
        let subscriptions = subscriptions.iter().filter(|one| topic::shared(&one.filter).is_none()).collect();
        Self { device, subscriptions, levels }
    }

    /// What the stream is to be asked for.
    pub(super) fn cover(&self) -> Cover {
        let mut cover = Cover::default();
        for one in &self.subscriptions {
            cover.add(&one.filter);
        }
        cover
    }

    /// How much room a message takes in the session; `None`: it is not for it.
    pub(super) fn bytes_of(&self, published: &Published, now_ms: i64) -> Option<usize> {
        self.look_at(published, now_ms)?;
        Some(published.topic.len() + published.payload_bytes + published.publishing.properties.len())
    }

    /// The message as it waits in the session; `None`: it is not for it.
    pub(super) fn message_of(&self, published: Published, now_ms: i64) -> Option<Message> {
        let Delivered { qos, retain, identifiers } = self.look_at(&published, now_ms)?;
        let Published { at, topic, payload, publishing: how, .. } = published;
        let publication = Publication {
            topic,
            payload,
            qos: how.qos,
            retain: how.retain && !how.stamp.is_none(),
            properties: how.properties,
            expires_ms: how.expires_ms,
        };
        let publication = Arc::new(publication);
        // The stream's order is the session's.
        Some(Message { number: at, packet: None, qos, retain, identifiers, group: None, publication, origin: 0 })
    }

    fn look_at(&self, published: &Published, now_ms: i64) -> Option<Delivered> {
        let Published { device, topic: name, publishing: how, .. } = published;
        // Whoever may write into the stream is not necessarily a gateway. What nobody acknowledges waits for nobody.
        let is_for_nobody = !how.qos.is_acknowledged()
            || how.expires_ms.is_some_and(|expires_ms| now_ms >= expires_ms)
            || !topic::is_topic_name(name)
            || topic::is_of_server(name)
            || topic::level_count(name) > self.levels
            || Properties::check_forwarded(&how.properties).is_err();
        if is_for_nobody {
            return None;
        }
        let is_own = device.as_deref() == Some(self.device);
        let (mut granted, mut as_published, mut identifiers) = (None, false, Vec::new());
        for one in &self.subscriptions {
            // No Local [v5 MQTT-3.8.3-3].
            if (is_own && one.options & Options::NO_LOCAL != 0) || !topic::matches(&one.filter, name) {
                continue;
            }
            granted = granted.max(QoS::try_from(one.options & 3).ok());
            as_published |= one.options & Options::RETAIN_AS_PUBLISHED != 0;
            identifiers.extend(Some(one.identifier).filter(|&identifier| identifier != 0));
        }
        let qos = how.qos.min(granted?);
        let retain = how.retain && !how.stamp.is_none() && as_published;
        qos.is_acknowledged().then_some(Delivered { qos, retain, identifiers })
    }
}

/// Of what is for a session the latest that there is room for: the oldest gives way.
pub(super) struct Room {
    messages_max: usize,
    bytes_max: usize,
    kept: VecDeque<(u64, usize)>,
    bytes: usize,
    /// So many gave way,
    given_way: u64,
    /// the last of them this one.
    after: u64,
}

impl Room {
    /// For so many messages and bytes of what lies behind `after`.
    pub(super) fn new(messages_max: usize, bytes_max: usize, after: u64) -> Self {
        Self { messages_max, bytes_max, kept: VecDeque::new(), bytes: 0, given_way: 0, after }
    }

    /// Whether so many messages, none of them longer than this, surely have room.
    pub(super) fn has_for(&self, messages: u64, longest: usize) -> bool {
        messages <= self.messages_max as u64 && messages.saturating_mul(longest as u64) <= self.bytes_max as u64
    }

    /// One of so many bytes stands there.
    pub(super) fn take(&mut self, at: u64, bytes: usize) {
        if self.never_has(bytes) {
            self.given_way += 1;
            return;
        }
        self.kept.push_back((at, bytes));
        self.bytes += bytes;
        while self.kept.len() > self.messages_max || self.bytes > self.bytes_max {
            let Some((at, bytes)) = self.kept.pop_front() else { return };
            (self.after, self.bytes, self.given_way) = (at, self.bytes - bytes, self.given_way + 1);
        }
    }

    /// Whether one of so many bytes never has room.
    pub(super) fn never_has(&self, bytes: usize) -> bool {
        self.messages_max == 0 || bytes > self.bytes_max
    }

    /// What has room lies behind this one.
    pub(super) fn after(&self) -> u64 {
        self.after
    }

    /// How many have none.
    pub(super) fn given_way(&self) -> u64 {
        self.given_way
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::Publishing;
    use crate::link::Stamp;

    const NOW_MS: i64 = 1_000;

    fn subscription(filter: &str, options: u8, identifier: u32) -> Subscription {
        Subscription { filter: filter.into(), options, identifier }
    }

    fn published(device: Option<&str>, topic: &str, qos: QoS) -> Published {
        let publishing = Publishing {
            node: "gate".into(),
            qos,
            retain: false,
            properties: Box::default(),
            expires_ms: None,
            stamp: Stamp::NONE,
            groups: None,
        };
        let payload = bytes::Bytes::from_static(b"said");
        Published { at: 7, device: device.map(Into::into), topic: topic.into(), payload_bytes: 4, payload, publishing }
    }

    fn with(topic: &str, change: impl FnOnce(&mut Publishing)) -> Published {
        let mut published = published(None, topic, QoS::ExactlyOnce);
        change(&mut published.publishing);
        published
    }

    #[test]
    fn what_overlaps_is_one_message_under_the_highest_quality_with_all_identifiers() {
        let own = [
            subscription("a/+", 1, 3),
            subscription("a/#", 2, 0),
            subscription("#", 0, 4),
            subscription("b", 2, 5),
            subscription("$share/g/a/b", 2, 6),
        ];
        let wants = Wants::new("d", &own, 8);
        let message = wants.message_of(published(Some("x"), "a/b", QoS::ExactlyOnce), NOW_MS).unwrap();
        assert_eq!((message.qos, &message.identifiers[..], message.number), (QoS::ExactlyOnce, &[3, 4][..], 7));
        assert_eq!((message.group.as_deref(), message.packet, message.retain), (None, None, false));
        assert_eq!((&*message.publication.topic, &message.publication.payload[..]), ("a/b", &b"said"[..]));
        let lower = wants.message_of(published(None, "a", QoS::AtLeastOnce), NOW_MS).unwrap();
        assert_eq!((lower.qos, &lower.identifiers[..]), (QoS::AtLeastOnce, &[4][..]), "the parent level");
        assert!(wants.message_of(published(None, "c", QoS::ExactlyOnce), NOW_MS).is_none(), "granted: 0");
        assert!(wants.message_of(published(None, "a/b", QoS::AtMostOnce), NOW_MS).is_none());
        let cover = wants.cover();
        assert!(cover.covers("a/#") && cover.covers("b"));
        assert_eq!(wants.bytes_of(&published(None, "a/b", QoS::AtLeastOnce), NOW_MS), Some(7));
    }

    #[test]
    fn no_local_holds_for_its_own_alone() {
        let own = [subscription("a", 1 | Options::NO_LOCAL, 1), subscription("+", 1, 2)];
        let wants = Wants::new("d", &own, 8);
        let identifiers = |device| {
            wants.message_of(published(device, "a", QoS::AtLeastOnce), NOW_MS).map(|message| message.identifiers)
        };
        assert_eq!((identifiers(Some("d")), identifiers(Some("x"))), (Some(vec![2]), Some(vec![1, 2])));
        let alone = Wants::new("d", &own[..1], 8);
        assert!(alone.message_of(published(Some("d"), "a", QoS::AtLeastOnce), NOW_MS).is_none());
    }

    #[test]
    fn what_has_expired_or_no_gateway_could_have_published_is_for_nobody() {
        let own = [subscription("#", 2, 0)];
        let wants = Wants::new("d", &own, 3);
        let is_for_it = |published| wants.message_of(published, NOW_MS).is_some();
        assert!(is_for_it(with("a/b/c", |_| {})));
        assert!(is_for_it(with("a", |how| how.expires_ms = Some(NOW_MS + 1))));
        assert!(!is_for_it(with("a", |how| how.expires_ms = Some(NOW_MS))));
        assert!(!is_for_it(with("a", |how| how.properties = [0xFF].into())));
        for topic in ["", "a/+", "$SYS/x", "$x", "a/b/c/d"] {
            assert!(!is_for_it(with(topic, |_| {})), "{topic:?}");
        }
    }

    #[test]
    fn retain_stands_where_it_was_asked_for_as_published() {
        let own = [subscription("a", 1, 0), subscription("b", 1 | Options::RETAIN_AS_PUBLISHED, 0)];
        let wants = Wants::new("d", &own, 8);
        let retained = |topic: &str, stamp| {
            let published = with(topic, |how| (how.retain, how.stamp) = (true, stamp));
            let message = wants.message_of(published, NOW_MS).unwrap();
            (message.retain, message.publication.retain)
        };
        let stamp = Stamp { clock: 8, node: 9 };
        assert_eq!((retained("a", stamp), retained("b", stamp)), ((false, true), (true, true)));
        assert_eq!(retained("b", Stamp::NONE), (false, false));
    }

    /// Against the obvious: of all that come, the longest tail that fits.
    #[test]
    fn the_oldest_gives_way() {
        let mut random = fastrand::Rng::with_seed(4);
        for _ in 0..500 {
            let (messages, bytes) = (random.usize(..6), random.usize(1..40));
            let all: Vec<usize> = (0..random.usize(..12)).map(|_| random.usize(1..15)).collect();
            let mut room = Room::new(messages, bytes, 100);
            for (number, &length) in all.iter().enumerate() {
                room.take(101 + number as u64, length);
            }
            let fits = |tail: &[usize]| tail.len() <= messages && tail.iter().sum::<usize>() <= bytes;
            let ever: Vec<(usize, usize)> =
                all.iter().copied().enumerate().filter(|(_, length)| !room.never_has(*length)).collect();
            let begin = (0..=ever.len())
                .find(|&begin| fits(&ever[begin..].iter().map(|(_, length)| *length).collect::<Vec<_>>()));
            let begin = begin.unwrap();
            assert_eq!(room.given_way(), (all.len() - ever.len() + begin) as u64);
            let kept = ever[begin..].iter().filter(|(number, _)| 101 + *number as u64 > room.after()).count();
            assert_eq!(kept, ever.len() - begin, "all that has room lies behind");
            let before = ever[..begin].iter().filter(|(number, _)| 101 + *number as u64 > room.after()).count();
            assert_eq!(before, 0);
            let longest = all.iter().copied().max().unwrap_or(0);
            assert!(!room.has_for(all.len() as u64, longest) || room.given_way() == 0);
        }
    }
}

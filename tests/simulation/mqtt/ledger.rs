//! What was published, and who must, may and must not get it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use pulsegate::codec::mqtt::{QoS, topic};

/// The prefix of a shared subscription's filter.
pub const GROUP: &str = "$share/g/";

/// One message, by its number.
#[expect(clippy::struct_excessive_bools, reason = "what is so of it, each on its own")]
pub struct Message {
    pub topic: Rc<str>,
    pub qos: QoS,
    pub publisher: usize,
    /// When it was first sent, in the order of all that happens.
    pub sent: u64,
    /// It was sent again: of QoS 1 it may arrive twice.
    pub is_resent: bool,
    pub is_acknowledged: bool,
    /// When its publisher read that; 0: it did not yet.
    pub acknowledged: u64,
    pub retain: bool,
    /// Nobody may get it: a will whose device has said goodbye.
    pub is_forbidden: bool,
    /// Members of the group that got it.
    pub members: BTreeSet<usize>,
}

/// One subscription as its device knows it.
pub struct Subscription {
    pub qos: QoS,
    /// The latest SUBSCRIBE for it.
    pub packet_id: u16,
    /// When it was asked for first.
    pub asked: u64,
    /// When its SUBACK came.
    pub confirmed: Option<u64>,
    /// The UNSUBSCRIBE that is to end it.
    pub ending: Option<u16>,
}

/// What one session is to get, as its device knows it. It begins and ends with the session.
#[derive(Default)]
pub struct Account {
    pub subscriptions: BTreeMap<String, Subscription>,
    /// Filters that were given up, and when that was confirmed.
    past: Vec<(String, u64)>,
    pub owed: BTreeSet<u32>,
    /// The latest value of each retained topic that is owed.
    pub owed_values: BTreeMap<Rc<str>, u32>,
    /// How often each message came.
    pub received: HashMap<u32, u32>,
    /// The latest message of each publisher, topic and QoS that came for the first time.
    latest: HashMap<(usize, Rc<str>, [u8; 2]), u32>,
    /// When the session began.
    pub begun: u64,
}

/// A message as it came.
pub struct Arrival<'a> {
    pub number: u32,
    pub topic: &'a str,
    pub qos: QoS,
    pub dup: bool,
    pub retain: bool,
}

/// What a filter matches: of a shared one, the part behind the group's name.
fn matches(filter: &str, name: &str) -> bool {
    topic::matches(filter.strip_prefix(GROUP).unwrap_or(filter), name)
}

impl Account {
    /// The highest QoS of the confirmed subscriptions that match a message sent at `sent`; shared ones aside.
    fn granted(&self, message: &Message) -> Option<QoS> {
        let is_sure = |filter: &str, subscription: &Subscription| {
            subscription.ending.is_none()
                && subscription.confirmed.is_some_and(|confirmed| confirmed < message.sent)
                && !filter.starts_with(GROUP)
                && matches(filter, &message.topic)
        };
        let sure = self.subscriptions.iter().filter(|(filter, subscription)| is_sure(filter, subscription));
        sure.map(|(_, subscription)| subscription.qos.min(message.qos)).max()
    }

    /// The publisher was told that the gateway holds the message, or it is sure otherwise: who subscribed before it was
    /// sent is owed it.
    pub fn note_acknowledged(&mut self, number: u32, message: &Message) {
        if self.granted(message).is_some_and(|qos| qos > QoS::AtMostOnce) && !self.received.contains_key(&number) {
            self.owed.insert(number);
        }
    }

    /// Whether it is a member of the group, and was when the message was sent.
    pub fn is_member_for(&self, message: &Message) -> bool {
        self.subscriptions.iter().any(|(filter, subscription)| {
            filter.starts_with(GROUP)
                && subscription.ending.is_none()
                && subscription.confirmed.is_some_and(|confirmed| confirmed < message.sent)
                && subscription.qos > QoS::AtMostOnce
                && matches(filter, &message.topic)
        })
    }

    /// An UNSUBSCRIBE was sent: what only this filter asked for may come or not.
    pub fn note_unsubscribing(&mut self, filter: &str, packet_id: u16, messages: &[Message]) {
        if let Some(subscription) = self.subscriptions.get_mut(filter) {
            subscription.ending = Some(packet_id);
        }
        let mut owed = std::mem::take(&mut self.owed);
        owed.retain(|&number| self.granted(&messages[number as usize]).is_some_and(|qos| qos > QoS::AtMostOnce));
        self.owed = owed;
        self.owed_values.retain(|topic, _| !matches(filter, topic));
    }

    /// The connection is lost: whether a subscription without its SUBACK was heard, and so what it is owed, nobody knows.
    pub fn forget_unsure_values(&mut self) {
        let unsure = self.subscriptions.iter().filter(|(_, subscription)| subscription.confirmed.is_none());
        for (filter, _) in unsure {
            self.owed_values.retain(|topic, _| !matches(filter, topic));
        }
    }

    pub fn note_unsubscribed(&mut self, packet_id: u16, at: u64) {
        let ended = |subscription: &Subscription| subscription.ending == Some(packet_id);
        let filters: Vec<String> =
            self.subscriptions.iter().filter(|(_, one)| ended(one)).map(|(filter, _)| filter.clone()).collect();
        for filter in filters {
            self.subscriptions.remove(&filter);
            self.past.push((filter, at));
        }
    }

    /// A message has come: may it?
    pub fn receive(&mut self, who: usize, arrival: &Arrival, messages: &mut [Message]) {
        let Arrival { number, topic, qos, dup, retain } = *arrival;
        let message = &mut messages[number as usize];
        let what = || format!("device {who}: message {number} ({topic}, {qos:?}, dup {dup}, retain {retain})");
        assert_eq!(&*message.topic, topic, "{}: of another topic", what());
        assert!(!message.is_forbidden, "{}: the will of a device that said goodbye", what());
        assert!(qos <= message.qos, "{}: of a higher QoS than it was published with", what());
        let active = self.subscriptions.keys().any(|filter| matches(filter, topic));
        let was_active = self.past.iter().any(|(filter, until)| message.sent < *until && matches(filter, topic));
        assert!(active || was_active || (retain && message.retain), "{}: nobody asked for it", what());
        if message.retain && !retain && !message.is_resent && message.acknowledged != 0 {
            // Every shard had it before its publisher heard so: whoever asks later finds it retained.
            let asked =
                self.subscriptions.iter().filter(|(filter, _)| matches(filter, topic)).map(|(_, one)| one.asked);
            let was_asked = self.past.iter().any(|(filter, _)| matches(filter, topic));
            let is_live = was_asked || asked.min().is_some_and(|asked| asked < message.acknowledged);
            assert!(is_live, "{}: as if it were new, and it was acknowledged before it was asked for", what());
        }
        let times = self.received.entry(number).or_insert(0);
        *times += 1;
        let is_first = *times == 1;
        // A value that is kept comes again with each new subscription.
        let is_twice = message.qos == QoS::AtLeastOnce && message.is_resent;
        let may_repeat = message.retain || is_twice || (qos == QoS::AtLeastOnce && dup);
        assert!(is_first || may_repeat, "{}: for the {times}. time", what());
        self.owed.remove(&number);
        if let Some(&value) = self.owed_values.get(topic)
            && number >= value
        {
            self.owed_values.remove(topic);
        }
        if is_first && !retain && !message.is_resent && qos > QoS::AtMostOnce && !topic.starts_with("s/") {
            let latest = self
                .latest
                .entry((message.publisher, message.topic.clone(), [message.qos as u8, qos as u8]))
                .or_insert(number);
            assert!(number >= *latest, "{}: behind {latest}, which was sent later", what());
            *latest = number;
        }
        if topic.starts_with("s/") {
            message.members.insert(who);
        }
    }
}

//! One device of the model, as it sees itself: what it may get, must get, and leaves behind, and when its session is over.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::*;
use crate::codec::mqtt::{self, QoS};
use crate::link::Publication;

/// How long its sessions outlive its connections.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    Nothing,
    ForAWhile,
    ForEver,
}

impl Keeps {
    /// A session expiry interval in seconds.
    pub fn draw(self, random: &mut fastrand::Rng) -> u32 {
        match self {
            Keeps::Nothing => 0,
            Keeps::ForAWhile => random.u32(2..=10),
            Keeps::ForEver => u32::MAX,
        }
    }
}

/// A will as the device remembers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Testament {
    pub message: u32,
    pub delay_s: u32,
    pub expiry_s: Option<u32>,
}

/// What a subscription has made of a message.
#[derive(Clone, Copy)]
struct Grant {
    qos: QoS,
    expires: Option<Moment>,
}

pub struct Device {
    /// Names the seed as well: so does whatever fails.
    pub name: String,
    /// Its home.
    pub worker: usize,
    pub keeps: Keeps,
    /// The slot of its connection in its home, while it is connected.
    pub connection: Option<ConnectionSlot>,
    /// There is a session, whether it is connected or not.
    pub has_session: bool,
    /// The session expiry interval that is in force.
    pub expiry_s: u32,
    pub away_since: Moment,
    /// What is still to be published, should it be.
    pub will: Option<Testament>,
    /// What it has subscribed to, and the QoS.
    pub subscriptions: BTreeMap<&'static str, QoS>,
    /// By message: how often it was received.
    pub received: HashMap<u32, u32>,
    /// Messages whose QoS and subscription say that they must have come by the end.
    pub owed: BTreeSet<u32>,
    /// Packet identifiers of QoS 2 that are not done with: a message that comes again under one of them is the same.
    pub open_qos_2: BTreeSet<u16>,
    may_get: HashMap<u32, Grant>,
    /// Messages that the gateway has sent, whether they came or not.
    sent: BTreeSet<u32>,
}

impl Device {
    pub fn new(name: String, worker: usize, keeps: Keeps) -> Self {
        Self {
            name,
            worker,
            keeps,
            connection: None,
            has_session: false,
            expiry_s: 0,
            away_since: Moment::default(),
            will: None,
            subscriptions: BTreeMap::new(),
            received: HashMap::new(),
            owed: BTreeSet::new(),
            open_qos_2: BTreeSet::new(),
            may_get: HashMap::new(),
            sent: BTreeSet::new(),
        }
    }

    // --- Its session ------------------------------------------------------------------------------------------------

    /// Nothing from before is owed, and nothing from before may come.
    pub fn end_session(&mut self) {
        self.has_session = false;
        self.subscriptions.clear();
        self.owed.clear();
        self.open_qos_2.clear();
        self.may_get.clear();
        self.sent.clear();
    }

    pub fn is_away(&self) -> bool {
        self.has_session && self.connection.is_none()
    }

    /// When the session of a device that is away has been kept long enough.
    pub fn session_ends(&self) -> Option<Moment> {
        let ends = self.is_away() && self.expiry_s != u32::MAX;
        ends.then(|| self.away_since.plus(Duration::from_secs(self.expiry_s.into())))
    }

    /// When the will of a device that is away has waited long enough: its delay, or as long as there is a session.
    pub fn will_due(&self) -> Option<Moment> {
        let delay_s = self.will.filter(|_| self.is_away())?.delay_s;
        let delayed = self.away_since.plus(Duration::from_secs(delay_s.into()));
        Some(self.session_ends().map_or(delayed, |end| end.min(delayed)))
    }

    // --- Messages ---------------------------------------------------------------------------------------------------

    /// A message was published: with the subscriptions of now it may come, or must.
    pub fn note_published(&mut self, message: u32, publication: &Publication) {
        let matching = self.subscriptions.iter();
        let matching = matching.filter(|(filter, _)| mqtt::topic::matches(filter, &publication.topic));
        let Some(granted) = matching.map(|(_, granted)| *granted).max() else { return };
        let qos = granted.min(publication.qos);
        self.may_get.insert(message, Grant { qos, expires: publication.expires });
        if qos.is_acknowledged() {
            self.owed.insert(message);
        }
    }

    /// The gateway has sent a message, whether it will come or not.
    pub fn note_sent(&mut self, publish: &mqtt::Publish, now: Moment) {
        let (name, message) = (&self.name, message_of(publish.payload));
        let Some(&grant) = self.may_get.get(&message) else { panic!("{name} was sent message {message}") };
        assert_eq!(publish.qos, grant.qos, "{name}, message {message}");
        // What was sent once goes again however old it is (v5 4.4); what was not, does not when it has expired.
        assert_eq!(!self.sent.insert(message), publish.dup, "{name} was sent message {message} anew, or not yet");
        let told = publish.properties.message_expiry_interval();
        assert_eq!(told.is_some(), grant.expires.is_some(), "{name}, message {message}");
        if let (Some(told), Some(expires)) = (told, grant.expires) {
            assert!(publish.dup || now < expires, "{name} was sent message {message}, which has expired");
            let is_right = Duration::from_secs(told.into()).abs_diff(expires.since(now)) <= Duration::from_secs(1);
            assert!(is_right, "{name} was told that message {message} lives for {told} s");
        }
    }

    pub fn take(&mut self, publish: &mqtt::Publish) {
        let message = message_of(publish.payload);
        if publish.qos == QoS::ExactlyOnce && !self.open_qos_2.insert(publish.packet_id) {
            // The same message again: the device has it.
            assert!(publish.dup, "{} got message {message} under another's number", self.name);
            return;
        }
        let count = self.received.entry(message).or_insert(0);
        *count += 1;
        let is_right = *count == 1 || (publish.dup && publish.qos == QoS::AtLeastOnce);
        assert!(is_right, "{} got message {message} twice", self.name);
        self.owed.remove(&message);
    }

    /// Messages that had not been sent when they expired are owed no longer; returns how many.
    pub fn forget_expired(&mut self, now: Moment) -> usize {
        let before = self.owed.len();
        let (sent, may_get) = (&self.sent, &self.may_get);
        let is_of_use = |message: &u32| may_get[message].expires.is_none_or(|expires| now < expires);
        self.owed.retain(|message| sent.contains(message) || is_of_use(message));
        before - self.owed.len()
    }
}

pub fn message_of(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload.try_into().unwrap())
}

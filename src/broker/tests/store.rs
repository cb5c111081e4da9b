//! A store that keeps what was committed, and nothing else.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::{Bounds, Broker, BrokerOptions, Exchange, Home, Recording};
use crate::codec::mqtt::QoS;
use crate::image::{self, Change, Outstanding, SessionKey};
use crate::link::{ChangeMark, Changes, Load, Loaded, Stamp, WorkerId};
use crate::time::{Moment, Timeline};

/// A fault that is put into a model with a store, to see that it is found. Each says between whom.
#[derive(Clone, Copy, PartialEq)]
pub enum Planted {
    Nothing,
    /// A message is lost on its way.
    Lost,
    /// The same one comes twice.
    Twice,
}

/// See the head of this file.
#[derive(Default)]
pub struct ModelStore {
    waiting: VecDeque<Changes>,
    sessions: BTreeMap<SessionKey, image::Session>,
    retained: BTreeMap<Box<str>, Arc<image::Publication>>,
    /// Of a session, or of something received, that was ever committed.
    largest_key: u64,
}

impl ModelStore {
    /// Takes a batch, behind those that it has.
    pub fn push(&mut self, changes: Changes) {
        assert!(!changes.changes.is_empty());
        self.waiting.push_back(changes);
    }

    pub fn is_quiet(&self) -> bool {
        self.waiting.is_empty()
    }

    /// So many batches become true at once. Returns what is to be told to whom.
    pub fn commit(&mut self, batches: usize) -> Vec<(WorkerId, ChangeMark)> {
        let mut safe: BTreeMap<WorkerId, ChangeMark> = BTreeMap::new();
        for _ in 0..batches {
            let Some(batch) = self.waiting.pop_front() else { break };
            let before = safe.insert(batch.worker, batch.mark);
            assert!(before.is_none_or(|before| before < batch.mark));
            self.apply_all(&batch.changes);
        }
        safe.into_iter().collect()
    }

    /// What was not committed is gone.
    pub fn crash(&mut self) {
        self.waiting.clear();
    }

    /// The session of a device, without its messages.
    pub fn session(&self, device: &str) -> Option<image::Session> {
        let found = self.sessions.values().find(|session| *session.head.name == *device)?;
        Some(image::Session { messages: Vec::new(), ..found.clone() })
    }

    /// Messages of a session behind the one number and up to the other, so many at most.
    pub fn messages(&self, key: SessionKey, (after, upto): (u64, u64), count: usize) -> Vec<image::Message> {
        let all = self.sessions.get(&key).into_iter().flat_map(|session| &session.messages);
        all.filter(|message| message.number > after && message.number <= upto).take(count).cloned().collect()
    }

    /// Sessions by the order of their keys behind this one.
    pub fn names(&self, after: SessionKey, count: usize) -> Vec<(SessionKey, Box<str>)> {
        let all = self.sessions.iter().filter(|(key, _)| **key > after).take(count);
        all.map(|(key, session)| (*key, session.head.name.clone())).collect()
    }

    /// What there is. What was queued under an origin that is still pending goes before, and that too, at once.
    pub fn load(&mut self) -> (Vec<image::KeptSession>, Vec<image::Publication>) {
        let received = self.sessions.values().flat_map(|session| &session.received);
        let pending: BTreeSet<u64> = received.map(|received| received.origin).filter(|&origin| origin != 0).collect();
        for session in self.sessions.values_mut() {
            session.messages.retain(|message| !pending.contains(&message.origin));
            session.received.retain(|received| received.origin == 0);
        }
        (self.sessions.values().map(kept).collect(), self.retained.values().map(|kept| (**kept).clone()).collect())
    }

    /// What a shard is told of what waits in a session: only what was committed.
    pub fn read(&self, load: &Load) -> Loaded {
        let &Load { session, serial, key, after, through, bytes_max } = load;
        let wanted = |message: &&image::Message| message.number > after && message.number <= through;
        let (mut messages, mut bytes, mut is_last) = (Vec::new(), 0, true);
        for message in self.sessions.get(&key).into_iter().flat_map(|known| &known.messages).filter(wanted) {
            if bytes > bytes_max {
                is_last = false;
                break;
            }
            bytes += message.publication.bytes() + 128;
            messages.push(message.clone());
        }
        Loaded { session, serial, messages: Some(messages), is_last }
    }

    /// The shards of a process that begins with it, one for each worker, without what it has. `wall_ms`: what the clock on the wall
    /// says; none: they record nothing.
    pub fn shards(
        &self,
        home: Home,
        workers: u16,
        bounds: Bounds,
        key: u64,
        now: Moment,
        wall_ms: Option<i64>,
    ) -> Vec<Broker> {
        let exchange = Arc::new(Exchange::new(workers));
        exchange.note_key(self.largest_key);
        let shard = |worker| {
            let setup = BrokerOptions { worker: WorkerId(worker), home, exchange: Arc::clone(&exchange), bounds, key };
            let mut shard = Broker::new(setup, now.tick());
            if let Some(wall_ms) = wall_ms {
                let timeline = Timeline::from_unix_micros(wall_ms * 1_000 - now.micros() as i64);
                shard.begin_recording(Recording { timeline: timeline.into(), listeners: ["l".into()].into() });
            }
            shard
        };
        (0..workers).map(shard).collect()
    }

    fn apply_all(&mut self, changes: &[Change]) {
        for change in changes {
            self.apply(change);
        }
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Kept(head) => {
                self.largest_key = self.largest_key.max(head.key.0);
                let known = self.sessions.get_mut(&head.key);
                if let Some(known) = known {
                    known.head = (**head).clone();
                    return;
                }
                let is_other = |session: &image::Session| session.head.name != head.name;
                assert!(self.sessions.values().all(is_other), "{} has two sessions", head.name);
                let session = image::Session {
                    head: (**head).clone(),
                    subscriptions: Vec::new(),
                    messages: Vec::new(),
                    outstanding: Vec::new(),
                    received: Vec::new(),
                };
                self.sessions.insert(head.key, session);
            }
            Change::Ended { session } => drop(self.sessions.remove(session)),
            Change::Retained { publication, .. } => {
                self.retained.insert(publication.topic.clone(), Arc::clone(publication));
            }
            Change::Unretained { topic } => drop(self.retained.remove(topic)),
            Change::Subscribed { session, .. }
            | Change::Unsubscribed { session, .. }
            | Change::Queued { session, .. }
            | Change::Sent { session, .. }
            | Change::Released { session, .. }
            | Change::Done { session, .. }
            | Change::Received { session, .. }
            | Change::Completed { session, .. } => {
                let mut largest = self.largest_key;
                if let Some(session) = self.sessions.get_mut(session) {
                    apply_to(session, change, &mut largest);
                }
                self.largest_key = largest;
            }
        }
    }
}

/// A session without its messages.
fn kept(session: &image::Session) -> image::KeptSession {
    let image::Session { head, subscriptions, messages, outstanding, received } = session.clone();
    let unsent = messages.iter().filter(|message| message.packet.is_none());
    let sent = messages.iter().filter_map(|message| {
        let (number, qos, bytes) = (message.number, message.qos, message.publication.bytes() as u64);
        Some(image::SentMessage { number, packet: message.packet?, qos, bytes })
    });
    let numbers = messages.iter().map(|message| message.number);
    let waiting = image::Waiting {
        messages: unsent.clone().count() as u64,
        bytes: unsent.map(|message| message.publication.bytes() as u64).sum(),
        last_number: numbers.chain(outstanding.iter().map(|one| one.number)).max().unwrap_or(0),
    };
    image::KeptSession { head, subscriptions, sent: sent.collect(), outstanding, received, waiting }
}

fn apply_to(session: &mut image::Session, change: &Change, largest: &mut u64) {
    match change {
        Change::Subscribed { subscription, .. } => {
            session.subscriptions.retain(|known| known.filter != subscription.filter);
            session.subscriptions.push(subscription.clone());
        }
        Change::Unsubscribed { filter, .. } => session.subscriptions.retain(|known| known.filter != *filter),
        Change::Queued { message, .. } => {
            let place = session.messages.partition_point(|known| known.number < message.number);
            assert!(
                session.messages.get(place).is_none_or(|known| known.number != message.number),
                "a number is given twice"
            );
            // One that comes from another gateway takes messages behind those that it is still brought.
            let is_hidden = super::super::handover::is_hidden(&session.head.name);
            assert!(is_hidden || place == session.messages.len(), "numbers ascend");
            session.messages.insert(place, (**message).clone());
        }
        Change::Sent { number, packet, .. } => {
            let is_used = session.messages.iter().any(|known| known.packet == Some(*packet))
                || session.outstanding.iter().any(|known| known.packet == *packet);
            assert!(!is_used, "a packet identifier is used twice");
            if let Some(sent) = session.messages.iter_mut().find(|known| known.number == *number) {
                sent.packet = Some(*packet);
            }
        }
        Change::Released { number, .. } => {
            let Some(place) = session.messages.iter().position(|known| known.number == *number) else { return };
            let released = session.messages.remove(place);
            let packet = released.packet.expect("only what was sent is released");
            session.outstanding.push(Outstanding { number: *number, packet });
        }
        Change::Done { number, .. } => {
            session.messages.retain(|known| known.number != *number);
            session.outstanding.retain(|known| known.number != *number);
        }
        Change::Received { received, .. } => {
            *largest = (*largest).max(received.origin);
            session.received.retain(|known| known.packet != received.packet);
            session.received.push(*received);
        }
        Change::Completed { packet, .. } => session.received.retain(|known| known.packet != *packet),
        _ => unreachable!("not of a session's content"),
    }
}

/// What is left of changes has the effect of all of them, however they are cut.
#[test]
fn coalesced_changes_come_to_the_same() {
    let mut random = fastrand::Rng::with_seed(3);
    let mut left_out = 0;
    for _ in 0..3_000 {
        let (mut one, mut other) = (ModelStore::default(), ModelStore::default());
        let mut log = Log::default();
        for _ in 0..3 {
            let mut changes: Vec<Change> = (0..random.usize(1..30)).filter_map(|_| log.next(&mut random)).collect();
            one.apply_all(&changes);
            let before = changes.len();
            crate::broker::coalesce::coalesce(&mut changes);
            left_out += before - changes.len();
            other.apply_all(&changes);
        }
        one.load();
        other.load();
        let of = |store: &ModelStore| store.sessions.values().cloned().collect::<Vec<_>>();
        let (mut sessions, mut others) = (of(&one), of(&other));
        for session in sessions.iter_mut().chain(&mut others) {
            session.subscriptions.sort_by(|a, b| a.filter.cmp(&b.filter));
            session.outstanding.sort_by_key(|one| one.number);
            session.received.sort_by_key(|one| one.packet);
        }
        assert_eq!(sessions, others);
        assert_eq!(one.retained, other.retained);
    }
    assert!(left_out > 1_000);
}

/// Changes as a shard says them, of one device.
#[derive(Default)]
struct Log {
    key: u64,
    number: u64,
    open: Vec<(u64, u8)>,
}

impl Log {
    fn next(&mut self, random: &mut fastrand::Rng) -> Option<Change> {
        let session = SessionKey(self.key);
        let topic = ["a", "b"][random.usize(..2)];
        let publication = image::Publication {
            topic: topic.into(),
            payload: vec![random.u8(..)].into(),
            qos: QoS::AtLeastOnce,
            retain: true,
            properties: Box::default(),
            expires_ms: None,
        };
        match random.u8(..16) {
            _ if self.key == 0 => Some(self.begin(random)),
            0 => {
                self.open.clear();
                let ended = Change::Ended { session };
                self.key = 0;
                Some(ended)
            }
            1 => Some(self.head(random)),
            2 => Some(Change::Retained { publication: Arc::new(publication), stamp: Stamp::NONE }),
            3 => Some(Change::Unretained { topic: topic.into() }),
            4 => {
                let subscription = image::Subscription { filter: topic.into(), options: random.u8(..3), identifier: 0 };
                Some(Change::Subscribed { session, subscription })
            }
            5 => Some(Change::Unsubscribed { session, filter: topic.into() }),
            6..=8 => {
                self.number += 1;
                self.open.push((self.number, 0));
                let message = image::Message {
                    number: self.number,
                    packet: None,
                    qos: QoS::ExactlyOnce,
                    retain: false,
                    identifiers: Vec::new(),
                    group: None,
                    publication: Arc::new(publication),
                    origin: 0,
                };
                Some(Change::Queued { session, message: Box::new(message) })
            }
            9..=13 if !self.open.is_empty() => {
                let place = random.usize(..self.open.len());
                let (number, state) = &mut self.open[place];
                let number = *number;
                *state += 1;
                Some(match *state {
                    1 => Change::Sent { session, number, packet: number as u16 },
                    2 => Change::Released { session, number },
                    _ => {
                        self.open.remove(place);
                        Change::Done { session, number }
                    }
                })
            }
            14 => {
                let received = image::Received { packet: random.u16(1..4), origin: random.u64(..2) };
                Some(Change::Received { session, received })
            }
            15 => Some(Change::Completed { session, packet: random.u16(1..4) }),
            _ => None,
        }
    }

    fn begin(&mut self, random: &mut fastrand::Rng) -> Change {
        self.number += 1;
        self.key = self.number;
        self.head(random)
    }

    fn head(&self, random: &mut fastrand::Rng) -> Change {
        let profile = image::Profile {
            version: 5,
            listener: "l".into(),
            keep_alive_s: 0,
            expiry_s: 1,
            receive_maximum: 1,
            packet_maximum: 1,
            alias_maximum: 0,
        };
        Change::Kept(Box::new(image::Head {
            key: SessionKey(self.key),
            name: "d".into(),
            profile,
            away_since_ms: Some(random.i64(..)),
            last_packet: 0,
            will: None,
        }))
    }
}

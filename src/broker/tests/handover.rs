//! A session goes from one shard to one of another gateway, in pieces, while both take messages: what it had comes first, in its order,
//! and what is half done is as it was; whoever gives up leaves nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::codec::mqtt::{Options, QoS};
use crate::image::{self, Change, Message, SessionKey};
use crate::link::{ChangeMark, CloseReason, Cut, Outcome, Refusal};
use crate::time::{TICK_MICROS, Timeline};

/// A gateway of one shard, and what its store has.
struct Side {
    shard: Broker,
    heads: BTreeMap<SessionKey, image::Head>,
    subscriptions: BTreeMap<(SessionKey, Box<str>), image::Subscription>,
    /// Those that are released have no body any more.
    queue: BTreeMap<(SessionKey, u64), (Message, bool)>,
    received: BTreeMap<(SessionKey, u16), image::Received>,
    mark: ChangeMark,
    counters: Counters,
    now: Moment,
}

impl Side {
    fn new(seed: u64) -> Self {
        let now = Moment::from_micros(100 * TICK_MICROS);
        let limits = Limits { sessions: 10, ..Limits::default() };
        let bounds = Bounds { stored_bytes: 1 << 30, ..Bounds::of(&limits, 1) };
        let exchange = Arc::new(Exchange::new(1));
        let setup = BrokerOptions { worker: WorkerId(0), home: Home::new([9; 16], 1), exchange, bounds, key: seed };
        let mut shard = Broker::new(setup, now.tick());
        shard.begin_recording(Recording {
            timeline: Timeline::from_unix_micros(0).into(),
            listeners: ["l".into()].into(),
        });
        let counters = Counters::new(CloseReason::COUNT, Refusal::COUNT);
        Self {
            shard,
            heads: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            queue: BTreeMap::new(),
            received: BTreeMap::new(),
            mark: ChangeMark::default(),
            counters,
            now,
        }
    }

    /// It turns until there is nothing to do, and all that is said is safe. Requests that are answered.
    fn settle(&mut self) -> Vec<u64> {
        let mut answered = Vec::new();
        for _ in 0..20 {
            self.shard.begin_turn();
            for batch in self.shard.next_deliveries(1_000) {
                self.shard.keep(batch, self.now, &mut self.counters);
            }
            let mut changes = Vec::new();
            self.shard.hand_over(|said| {
                self.mark = said.mark;
                changes = said.changes;
                Ok(())
            });
            for change in changes {
                self.apply(change);
            }
            self.shard.handle_safe(self.mark);
            answered.extend(self.shard.take_requests().into_iter().map(|(request, _)| request));
            self.shard.check_invariants(|_| false);
        }
        answered
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Kept(head) => drop(self.heads.insert(head.key, *head)),
            Change::Ended { session } => {
                self.heads.remove(&session);
                self.subscriptions.retain(|(key, _), _| *key != session);
                self.queue.retain(|(key, _), _| *key != session);
                self.received.retain(|(key, _), _| *key != session);
            }
            Change::Subscribed { session, subscription } => {
                self.subscriptions.insert((session, subscription.filter.clone()), subscription);
            }
            Change::Unsubscribed { session, filter } => drop(self.subscriptions.remove(&(session, filter))),
            Change::Queued { session, message } => {
                let before = self.queue.insert((session, message.number), (*message, false));
                assert!(before.is_none(), "a number is given twice");
            }
            Change::Released { session, number } => self.queue.get_mut(&(session, number)).unwrap().1 = true,
            Change::Received { session, received } => drop(self.received.insert((session, received.packet), received)),
            other => panic!("{other:?}"),
        }
    }

    fn publish(&mut self, payload: &str, qos: QoS) {
        let publication = Publication::plain("set/a", Bytes::copy_from_slice(payload.as_bytes()), qos);
        self.shard.publish(publication, Ticket::NOBODY, &mut self.counters);
    }

    /// A device comes, subscribes and goes.
    fn visit(&mut self, device: &str) {
        let connection = ConnectionSlot(0);
        let arrival = Arrival { connection, device, clean_start: false, profile: profile(u32::MAX, 10), will: None };
        let session = self.shard.attach(arrival, self.now).session;
        let options = Options::plain(QoS::ExactlyOnce);
        assert_eq!(self.shard.subscribe_one(session, "set/#", options, 0), Granted::Subscribed);
        self.shard.detach(connection, device, false, self.now, &mut self.counters);
        self.settle();
    }

    /// The session of this name, as a store has it.
    fn session(&self, name: &str) -> Option<image::Session> {
        let head = self.heads.values().find(|head| *head.name == *name)?.clone();
        let key = head.key;
        let queue = self.queue.iter().filter(|((of, _), _)| *of == key);
        let messages = queue.clone().filter(|(_, (_, is_released))| !is_released);
        let outstanding = queue.filter(|(_, (_, is_released))| *is_released);
        let packet = |message: &Message| message.packet.unwrap();
        Some(image::Session {
            subscriptions: self
                .subscriptions
                .iter()
                .filter(|((of, _), _)| *of == key)
                .map(|(_, one)| one.clone())
                .collect(),
            messages: messages.map(|(_, (message, _))| message.clone()).collect(),
            outstanding: outstanding
                .map(|((_, number), (message, _))| image::Outstanding { number: *number, packet: packet(message) })
                .collect(),
            received: self.received.iter().filter(|((of, _), _)| *of == key).map(|(_, one)| *one).collect(),
            head,
        })
    }

    fn say(&mut self, act: impl FnOnce(&mut Broker, Moment) -> Option<Outcome>) {
        assert_eq!(act(&mut self.shard, self.now), None, "it is answered when it is safe");
        assert_eq!(self.settle(), [7]);
    }
}

fn payload(message: &Message) -> &str {
    std::str::from_utf8(&message.publication.payload).unwrap()
}

/// As far as it is offered: with what a store would have of half-done exchanges put into it.
fn offered(from: &mut Side) -> (image::Session, Cut) {
    let cut = Cut::default();
    from.say(|shard, now| shard.offer_session(7, "d", &cut, now));
    let mut session = from.session("d").unwrap();
    for (place, message) in session.messages.iter_mut().enumerate().take(3) {
        message.packet = Some(place as u16 + 1);
    }
    // Of the second the device has said PUBREC.
    let released = session.messages.remove(1);
    session.outstanding.push(image::Outstanding { number: released.number, packet: 2 });
    session.received.push(image::Received { packet: 9, origin: 0 });
    (session, cut)
}

#[test]
fn what_it_had_comes_before_what_comes_meanwhile_and_half_done_exchanges_are_as_they_were() {
    let (mut from, mut to) = (Side::new(1), Side::new(2));
    from.visit("d");
    // Another one's messages go before: numbers differ between gateways.
    to.visit("other");
    for number in 0..10 {
        from.publish(&format!("before {number}"), QoS::ExactlyOnce);
        to.publish("x", QoS::AtLeastOnce);
    }
    from.settle();
    to.settle();
    let (session, cut) = offered(&mut from);
    assert_eq!(cut.number(), session.messages.last().unwrap().number);
    from.publish("behind the cut", QoS::AtLeastOnce);
    from.settle();
    assert!(from.session("d").unwrap().messages.len() == 11, "it goes on taking messages");
    // It is adopted without its messages, takes what comes, and nobody finds it.
    let head = image::Session { messages: Vec::new(), ..session.clone() };
    to.say(|shard, now| shard.adopt(7, "d", head, now));
    to.publish("meanwhile", QoS::AtLeastOnce);
    to.settle();
    assert!(!to.shard.has_away("d") && to.session("d").is_none());
    for piece in session.messages.chunks(4) {
        to.say(|shard, _| shard.adopt_messages(7, "d", piece.to_vec()));
        to.publish("meanwhile", QoS::AtLeastOnce);
        to.settle();
    }
    to.say(|shard, now| shard.reveal(7, "d", now));
    let there = to.session("d").unwrap();
    let order: Vec<&str> = there.messages.iter().map(payload).collect();
    let mut expected: Vec<String> =
        (0..10).filter(|number| *number != 1).map(|number| format!("before {number}")).collect();
    expected.extend(vec!["meanwhile".to_owned(); 4]);
    assert_eq!(order, expected);
    let packets: Vec<_> = there.messages.iter().filter_map(|message| message.packet).collect();
    assert_eq!((&packets[..], there.outstanding.len(), there.outstanding[0].packet), (&[1, 3][..], 1, 2));
    assert!(
        there.messages[0].number < there.outstanding[0].number
            && there.outstanding[0].number < there.messages[1].number
    );
    assert_eq!((there.received[0].packet, there.subscriptions.len()), (9, 1));
    let described = to.shard.describe(to.shard.sessions.find_away("d").unwrap(), 0);
    assert_eq!((described.queued, described.inflight), (11, 3), "two that were sent and one that is released");
    // There it goes, without a word.
    from.say(|shard, now| shard.forget_session(7, ("d", Some(session.head.key), false), now, &mut Vec::new()));
    assert!(from.session("d").is_none() && !from.shard.has_away("d"));
}

#[test]
fn one_that_does_not_come_after_all_leaves_nothing_and_neither_does_a_process_that_ends() {
    let (mut from, mut to) = (Side::new(1), Side::new(2));
    from.visit("d");
    from.publish("x", QoS::AtLeastOnce);
    from.settle();
    let (mut session, _) = {
        let cut = Cut::default();
        from.say(|shard, now| shard.offer_session(7, "d", &cut, now));
        (from.session("d").unwrap(), cut)
    };
    let messages = std::mem::take(&mut session.messages);
    to.visit("d");
    for round in 0..3 {
        to.say(|shard, now| shard.adopt(7, "d", session.clone(), now));
        to.say(|shard, _| shard.adopt_messages(7, "d", messages.clone()));
        assert_eq!(to.heads.len(), 2, "what the device has here stays as it is until then");
        if round == 0 {
            assert!(to.shard.abandon("d"));
        }
        // Or it is begun anew: what was hidden before goes.
    }
    // The next process.
    let hidden = to.heads.values().find(|head| *head.name != *"d").unwrap().clone();
    let mut next = Side::new(3);
    next.heads = to.heads.clone();
    let waiting = image::Waiting { messages: 1, bytes: 6, last_number: 9 };
    let kept = image::KeptSession {
        head: hidden,
        subscriptions: session.subscriptions.clone(),
        sent: Vec::new(),
        outstanding: Vec::new(),
        received: Vec::new(),
        waiting,
    };
    next.shard.restore(kept, next.now);
    next.settle();
    assert_eq!(next.heads.len(), 1, "the other gateway still has it");
    // Whole, it takes the place of what was here.
    to.say(|shard, now| shard.reveal(7, "d", now));
    assert_eq!(to.heads.len(), 1);
    assert_eq!(to.session("d").unwrap().messages.len(), 1);
    assert_eq!(to.shard.reveal(7, "d", to.now), Some(Outcome::Offline), "once");
    assert!(!to.shard.abandon("d"));
}

#[test]
fn a_session_is_not_given_while_something_for_it_is_on_its_way() {
    let mut from = Side::new(1);
    assert_eq!(from.shard.offer_session(7, "d", &Cut::default(), from.now), Some(Outcome::Offline));
    from.visit("d");
    from.publish("x", QoS::AtLeastOnce);
    from.shard.begin_turn();
    let offered = from.shard.offer_session(7, "d", &Cut::default(), from.now);
    assert_eq!(offered, Some(Outcome::Unacknowledged));
    from.settle();
    let cut = Cut::default();
    from.say(|shard, now| shard.offer_session(7, "d", &cut, now));
    assert_eq!(from.session("d").unwrap().messages.last().unwrap().number, cut.number());
}

/// The numbers under which SUBACKs wait for the row.
fn waits_of(side: &mut Side, session: SessionSlot, filter: &str, identifier: u32) -> Vec<u32> {
    let mut pending = side.shard.begin_filters(session, 1).unwrap();
    side.shard.subscribe(session, filter, Options::plain(QoS::AtLeastOnce), identifier, &mut pending);
    side.shard.expect_row(session, &mut pending);
    side.shard.take_changed().into_iter().map(|(_, waits)| waits).collect()
}

/// Whoever comes again and subscribes to what it has waits for no row, as long as the row is known to be true.
#[test]
fn what_changes_nothing_waits_for_no_row() {
    let mut side = Side::new(1);
    side.shard.begin_interest();
    let arrive = |side: &mut Side, row| {
        let connection = ConnectionSlot(0);
        assert!(side.shard.claim(connection) == Claim::Ask && side.shard.clear(connection, row));
        let arrival =
            Arrival { connection, device: "d", clean_start: false, profile: profile(u32::MAX, 10), will: None };
        side.shard.attach(arrival, side.now).session
    };
    let go = |side: &mut Side| {
        side.shard.detach(ConnectionSlot(0), "d", false, side.now, &mut side.counters);
        side.settle();
    };
    let written = |side: &mut Side, session, waits: &[u32], is_true| {
        let id = side.shard.id(session);
        for &waits in waits {
            side.shard.handle_row_written(id, waits, is_true);
        }
    };
    let session = arrive(&mut side, Row::True);
    for filter in ["a", "$share/g/b"] {
        let asked = waits_of(&mut side, session, filter, 0);
        assert_eq!(
            (asked.len(), waits_of(&mut side, session, filter, 0).len()),
            (1, 1),
            "nobody has said that it is written"
        );
        // Nor when somebody has said that it is not.
        written(&mut side, session, &asked, false);
        let asked = waits_of(&mut side, session, filter, 0);
        assert_eq!(asked.len(), 1);
        written(&mut side, session, &asked, true);
        assert_eq!(waits_of(&mut side, session, filter, 0).len(), 0);
        // Another identifier is another subscription; and what has changed meanwhile is not what was written.
        let asked = waits_of(&mut side, session, filter, 7);
        assert_eq!(asked.len(), 1);
        side.shard.set_expiry(session, 1_000 + asked[0]);
        written(&mut side, session, &asked, true);
        side.shard.take_changed();
        let asked = waits_of(&mut side, session, filter, 7);
        written(&mut side, session, &asked, true);
        assert_eq!((asked.len(), waits_of(&mut side, session, filter, 7).len()), (1, 0));
    }
    // What was there to be taken away waits, what was not does not.
    for (filter, count) in [("none", 0), ("a", 1)] {
        let mut pending = side.shard.begin_filters(session, 1).unwrap();
        side.shard.unsubscribe(session, filter);
        side.shard.expect_row(session, &mut pending);
        assert_eq!(side.shard.take_changed().iter().filter(|(_, waits)| *waits != 0).count(), count);
    }
    // It comes again: its row was read for its CONNECT, or was not.
    for (row, count) in [(Row::True, 0), (Row::Unknown, 1)] {
        go(&mut side);
        let session = arrive(&mut side, row);
        assert_eq!(waits_of(&mut side, session, "$share/g/b", 7).len(), count);
    }
}

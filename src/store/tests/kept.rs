//! Sessions and retained messages in the file against a model of them: random changes of several workers in random groups,
//! and a crash at every commit and in the middle of it.

use std::collections::BTreeMap;

use fastrand::Rng;
use rusqlite::{Connection, TransactionBehavior};

use super::super::coalesce::Plan;
use super::super::schema;
use super::super::sessions::{self, Kept};
use super::*;
use crate::image::{
    Change, Head, Message, Outstanding, Profile, Received, SentMessage, Stamp, Subscription, Waiting, Will,
};
use crate::link::{ChangeMark, Doorbell, Inbox, QoS, WorkerCommand, mailbox};

/// What must be in the file, told by the changes alone.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    sessions: BTreeMap<SessionKey, Known>,
    retained: BTreeMap<Box<str>, (Publication, Stamp)>,
}

#[derive(Clone, Debug, PartialEq)]
struct Known {
    head: Head,
    subscriptions: BTreeMap<Box<str>, Subscription>,
    messages: BTreeMap<u64, Message>,
    outstanding: BTreeMap<u64, u16>,
    received: BTreeMap<u16, u64>,
}

impl Model {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Kept(head) => {
                let known = self.sessions.entry(head.key).or_insert_with(|| Known {
                    head: Head::clone(head),
                    subscriptions: BTreeMap::new(),
                    messages: BTreeMap::new(),
                    outstanding: BTreeMap::new(),
                    received: BTreeMap::new(),
                });
                known.head = Head::clone(head);
            }
            Change::Ended { session } => drop(self.sessions.remove(session)),
            Change::Subscribed { session, subscription } => {
                self.of(*session).subscriptions.insert(subscription.filter.clone(), subscription.clone());
            }
            Change::Unsubscribed { session, filter } => drop(self.of(*session).subscriptions.remove(filter)),
            Change::Queued { session, message } => {
                self.of(*session).messages.insert(message.number, Message::clone(message));
            }
            Change::Sent { session, number, packet } => {
                self.of(*session).messages.get_mut(number).unwrap().packet = Some(*packet);
            }
            Change::Released { session, number } => {
                let known = self.of(*session);
                let message = known.messages.remove(number).unwrap();
                known.outstanding.insert(*number, message.packet.unwrap());
            }
            Change::Done { session, number } => {
                let known = self.of(*session);
                known.messages.remove(number);
                known.outstanding.remove(number);
            }
            Change::Received { session, received } => {
                self.of(*session).received.insert(received.packet, received.origin);
            }
            Change::Completed { session, packet } => drop(self.of(*session).received.remove(packet)),
            Change::Retained { publication, stamp } => {
                self.retained.insert(publication.topic.clone(), (Publication::clone(publication), *stamp));
            }
            Change::Unretained { topic } => drop(self.retained.remove(topic)),
        }
    }

    fn of(&mut self, session: SessionKey) -> &mut Known {
        self.sessions.get_mut(&session).expect("the world says only what can be")
    }

    /// What the file says.
    fn read(connection: &Connection) -> Self {
        let mut model = Self::default();
        let each = |session: KeptSession| {
            let KeptSession { head, subscriptions, sent, outstanding, received, waiting } = session;
            let key = head.key;
            let (messages, is_all) = sessions::read_messages(connection, key, (0, u64::MAX), usize::MAX).unwrap();
            assert!(is_all);
            let unsent: Vec<_> = messages.iter().filter(|message| message.packet.is_none()).collect();
            let bytes: usize = unsent.iter().map(|message| message.publication.bytes()).sum();
            let were_sent = messages.iter().filter_map(|message| {
                let (number, qos, bytes) = (message.number, message.qos, message.publication.bytes() as u64);
                Some(SentMessage { number, packet: message.packet?, qos, bytes })
            });
            assert_eq!(sent, were_sent.collect::<Vec<_>>());
            let numbers = messages.iter().map(|message| message.number);
            let last_number = numbers.chain(outstanding.iter().map(|one| one.number)).max().unwrap_or(0);
            assert_eq!(waiting, Waiting { messages: unsent.len() as u64, bytes: bytes as u64, last_number });
            let known = Known {
                head,
                subscriptions: subscriptions.into_iter().map(|one| (one.filter.clone(), one)).collect(),
                messages: messages.into_iter().map(|message| (message.number, message)).collect(),
                outstanding: outstanding.into_iter().map(|Outstanding { number, packet }| (number, packet)).collect(),
                received: received.into_iter().map(|Received { packet, origin }| (packet, origin)).collect(),
            };
            model.sessions.insert(key, known);
        };
        sessions::read_sessions(connection, each).unwrap();
        sessions::read_retained(connection, |one, stamp| drop(model.retained.insert(one.topic.clone(), (one, stamp))))
            .unwrap();
        model
    }
}

/// Says what several workers might: each about its own sessions and topics.
struct World {
    random: Rng,
    /// All that was said.
    model: Model,
    next_key: u64,
    numbers: BTreeMap<SessionKey, u64>,
    marks: BTreeMap<WorkerId, ChangeMark>,
    /// A message that goes to many.
    shared: Arc<Publication>,
}

const WORKERS: u16 = 2;

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let shared = Arc::new(publication(&mut random, "fleet"));
        let (model, numbers, marks) = Default::default();
        Self { random, model, next_key: 1, numbers, marks, shared }
    }

    /// What one worker says in one turn.
    fn batch(&mut self) -> Changes {
        let worker = WorkerId(self.random.u16(..WORKERS));
        let mut changes = Vec::new();
        for _ in 0..self.random.usize(1..12) {
            let before = changes.len();
            self.say(worker, &mut changes);
            for change in &changes[before..] {
                self.model.apply(change);
            }
        }
        if changes.is_empty() {
            changes.push(Change::Unretained { topic: "nothing".into() });
        }
        let mark = self.marks.entry(worker).or_default();
        *mark = mark.next();
        Changes { worker, mark: *mark, changes, is_awaited: self.random.bool(), timeline: CLOCK.timeline() }
    }

    fn say(&mut self, worker: WorkerId, changes: &mut Vec<Change>) {
        let own: Vec<SessionKey> = self
            .model
            .sessions
            .keys()
            .copied()
            .filter(|key| key.0 % u64::from(WORKERS) == u64::from(worker.0))
            .collect();
        let Some(&session) = self.random.choice(&own) else { return self.begin(worker, changes) };
        let known = &self.model.sessions[&session];
        let (random, numbers) = (&mut self.random, &mut self.numbers);
        let message = random.choice(known.messages.values().collect::<Vec<_>>());
        match random.u8(..16) {
            0 => self.begin(worker, changes),
            1 => {
                let away_since_ms = random.bool().then(|| random.i64(1..1_000));
                let will = None;
                changes.push(Change::Kept(Box::new(Head { away_since_ms, will, ..known.head.clone() })));
            }
            2 | 3 => changes.push(Change::Subscribed {
                session,
                subscription: Subscription {
                    filter: format!("f/{}/+", random.u8(..5)).into(),
                    options: random.u8(..3),
                    identifier: random.u32(..9),
                },
            }),
            4 => changes.push(Change::Unsubscribed { session, filter: format!("f/{}/+", random.u8(..5)).into() }),
            5..8 => {
                let number = numbers.entry(session).or_default();
                *number += 1;
                let own = || Arc::new(publication(&mut Rng::with_seed(*number), "own"));
                let publication = if random.bool() { Arc::clone(&self.shared) } else { own() };
                let identifiers = if random.bool() { vec![] } else { vec![random.u32(1..99), 7] };
                let message = Message {
                    number: *number,
                    packet: None,
                    qos: QoS::ExactlyOnce,
                    retain: random.bool(),
                    identifiers,
                    group: (number.is_multiple_of(3)).then(|| "$share/g/f".into()),
                    publication,
                    origin: random.u64(..3),
                };
                changes.push(Change::Queued { session, message: Box::new(message) });
            }
            8 => {
                if let Some(message) = message.filter(|message| message.packet.is_none()) {
                    changes.push(Change::Sent { session, number: message.number, packet: random.u16(1..) });
                }
            }
            9 => {
                if let Some(message) = message.filter(|message| message.packet.is_some()) {
                    changes.push(Change::Released { session, number: message.number });
                }
            }
            10 | 11 => {
                let number = message.map(|message| message.number).or(known.outstanding.keys().next().copied());
                changes.extend(number.map(|number| Change::Done { session, number }));
            }
            12 => {
                let received = Received { packet: random.u16(1..4), origin: random.u64(..9) };
                changes.push(Change::Received { session, received });
            }
            13 => changes.push(Change::Completed { session, packet: random.u16(1..4) }),
            14 => {
                let topic = format!("r/{worker}/{}", random.u8(..4));
                let change = if random.bool() {
                    let clock = if random.bool() { random.u64(..) } else { 0 };
                    let stamp = Stamp { clock, node: if clock == 0 { 0 } else { random.u64(..) } };
                    Change::Retained { publication: Arc::new(publication(random, &topic)), stamp }
                } else {
                    Change::Unretained { topic: topic.into() }
                };
                changes.push(change);
            }
            _ => changes.push(Change::Ended { session }),
        }
    }

    /// A device comes, or begins anew.
    fn begin(&mut self, worker: WorkerId, changes: &mut Vec<Change>) {
        let name: Box<str> = format!("device-{worker}-{}", self.random.u8(..6)).into();
        let known = self.model.sessions.values().find(|known| known.head.name == name);
        changes.extend(known.map(|known| Change::Ended { session: known.head.key }));
        self.next_key += 1;
        let key = SessionKey(self.next_key * u64::from(WORKERS) + u64::from(worker.0));
        let publication = publication(&mut self.random, "gone");
        changes.push(Change::Kept(Box::new(head(key, &name, Some(publication)))));
    }
}

fn head(key: SessionKey, name: &str, will: Option<Publication>) -> Head {
    Head {
        key,
        name: name.into(),
        profile: Profile {
            version: 5,
            listener: "mqtt".into(),
            keep_alive_s: 60,
            expiry_s: 3_600,
            receive_maximum: 9,
            packet_maximum: 99,
            alias_maximum: 0,
        },
        away_since_ms: None,
        last_packet: 1,
        will: will.map(|publication| Box::new(Will { publication, expiry_s: None, delay_s: 5 })),
    }
}

fn publication(random: &mut Rng, topic: &str) -> Publication {
    Publication {
        topic: topic.into(),
        payload: vec![b'p'; random.usize(1..900)].into(),
        qos: QoS::AtLeastOnce,
        retain: false,
        properties: Box::default(),
        expires_ms: random.bool().then(|| random.i64(..)),
    }
}

fn open_file(directory: &Path) -> Connection {
    schema::open_writer(&directory.join(FILE), Durability::Group, 4 << 30).unwrap()
}

/// One group, as the writer commits it.
fn commit(connection: &mut Connection, batches: &[Changes], kept: &mut Kept) {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    sessions::take(&transaction, &Plan::of(batches), kept).unwrap();
    transaction.commit().unwrap();
}

#[test]
fn file_says_what_the_changes_said_however_they_are_grouped() {
    for seed in 0..30 {
        let directory = TempDir::new().unwrap();
        let (mut world, mut connection) = (World::new(seed), open_file(directory.path()));
        let mut kept = Kept::load(&connection).unwrap();
        for _ in 0..25 {
            let batches: Vec<Changes> = (0..world.random.usize(1..6)).map(|_| world.batch()).collect();
            commit(&mut connection, &batches, &mut kept);
            assert_eq!(Model::read(&connection), world.model, "seed {seed}");
            assert_eq!(sessions::contradictions(&connection).unwrap(), [""; 0], "seed {seed}");
            let counted = Kept::load(&connection).unwrap();
            let of = |kept: Kept| (kept.sessions, kept.messages, kept.bytes, kept.retained);
            assert_eq!(of(counted), of(kept), "seed {seed}");
            assert!(counted.next_key >= world.model.sessions.keys().max().map_or(1, |key| key.0 + 1));
        }
    }
}

/// Power goes at every commit, and at bytes of the journal between two: what is there is what some group left, and none that
/// was committed before is missing.
#[test]
fn crash_anywhere_leaves_a_whole_number_of_groups() {
    for seed in 0..5 {
        let directory = TempDir::new().unwrap();
        let (mut world, mut connection) = (World::new(seed), open_file(directory.path()));
        let journal = directory.path().join(format!("{FILE}-wal"));
        let mut kept = Kept::load(&connection).unwrap();
        // The journal is never brought into the file, so every length of it is a crash.
        connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        let length = || fs::metadata(&journal).unwrap().len();
        let mut groups = vec![(length(), world.model.clone())];
        for _ in 0..12 {
            let batches: Vec<Changes> = (0..world.random.usize(1..4)).map(|_| world.batch()).collect();
            commit(&mut connection, &batches, &mut kept);
            groups.push((length(), world.model.clone()));
        }
        let bytes = fs::read(&journal).unwrap();
        let between = (0..20).map(|_| world.random.u64(groups[0].0..bytes.len() as u64));
        let cuts: Vec<u64> = groups.iter().map(|&(length, _)| length).chain(between).collect();
        for cut in cuts {
            let crashed = TempDir::new().unwrap();
            fs::copy(directory.path().join(FILE), crashed.path().join(FILE)).unwrap();
            fs::write(crashed.path().join(format!("{FILE}-wal")), &bytes[..cut as usize]).unwrap();
            let found = Model::read(&open_file(crashed.path()));
            let (_, expected) = groups.iter().rev().find(|(length, _)| *length <= cut).unwrap();
            assert!(found == *expected, "seed {seed}, {cut} bytes of the journal");
        }
    }
}

fn worker_inboxes() -> (Vec<Mailbox>, Vec<Inbox>) {
    (0..WORKERS).map(|_| mailbox(16, Arc::new(Doorbell::new().unwrap()))).unzip()
}

/// Waits until a worker has heard that a mark is safe.
fn wait_for_mark(inbox: &Inbox, mark: ChangeMark) {
    loop {
        match inbox.commands.recv_timeout(DEADLINE).expect("the store says what is safe") {
            WorkerCommand::Safe { mark: safe } if safe >= mark => return,
            WorkerCommand::Safe { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_said_to_be_safe_is_there_after_a_crash() {
    for seed in 0..6 {
        let directory = TempDir::new().unwrap();
        let (store, _settled) = open(&options(directory.path()));
        let (mailboxes, inboxes) = worker_inboxes();
        let mut world = World::new(seed);
        let sender = store.changes();
        for round in 0..8 {
            let mut spoken = BTreeMap::new();
            for _ in 0..world.random.usize(1..5) {
                let batch = world.batch();
                spoken.insert(batch.worker, batch.mark);
                sender.offer(batch).unwrap();
            }
            if round == 1 {
                // What was safe before anybody could be told is told now.
                spoken.clone_from(&world.marks);
                store.connect(mailboxes.clone()).unwrap();
            }
            if round > 0 {
                for (worker, mark) in spoken {
                    wait_for_mark(&inboxes[worker.index()], mark);
                }
                let crashed = crash(directory.path());
                assert!(Model::read(&open_file(crashed.path())) == world.model, "seed {seed}, round {round}");
            }
        }
        drop(store);
        assert!(Model::read(&open_file(directory.path())) == world.model, "seed {seed}, after an orderly end");
        let found = check(directory.path()).unwrap();
        assert_eq!(found.damage, [""; 0]);
        assert_eq!(found.sessions, world.model.sessions.len() as u64);
    }
}

/// The files as they are at this instant, for another process.
fn crash(directory: &Path) -> TempDir {
    let crashed = TempDir::new().unwrap();
    for suffix in ["", "-wal"] {
        let name = format!("{FILE}{suffix}");
        fs::copy(directory.join(&name), crashed.path().join(&name)).unwrap();
    }
    crashed
}

#[test]
fn what_ended_with_the_process_is_ended_when_the_store_is_opened() {
    let directory = TempDir::new().unwrap();
    let mut connection = open_file(directory.path());
    let mut kept = Kept::load(&connection).unwrap();
    let mut random = Rng::with_seed(3);
    let (publisher, subscriber) = (SessionKey(1), SessionKey(2));
    let shared = Arc::new(publication(&mut random, "t"));
    let queued = |number, origin| {
        let publication = Arc::clone(&shared);
        let message = Message {
            number,
            packet: None,
            qos: QoS::ExactlyOnce,
            retain: false,
            identifiers: vec![],
            group: None,
            publication,
            origin,
        };
        Change::Queued { session: subscriber, message: Box::new(message) }
    };
    let received = |packet, origin| Change::Received { session: publisher, received: Received { packet, origin } };
    let away = Head { away_since_ms: Some(17), ..head(subscriber, "subscriber", None) };
    let changes = vec![
        Change::Kept(Box::new(head(publisher, "publisher", None))),
        Change::Kept(Box::new(away)),
        received(1, 50),
        queued(1, 50),
        received(2, 51),
        queued(2, 51),
        received(3, 52),
    ];
    // Of the second packet all was safe: it was answered.
    let later = vec![received(2, 0), queued(3, 0), queued(4, 0)];
    for changes in [changes, later] {
        commit(
            &mut connection,
            &[Changes {
                worker: WorkerId(0),
                mark: ChangeMark(1),
                changes,
                is_awaited: true,
                timeline: CLOCK.timeline(),
            }],
            &mut kept,
        );
    }
    drop(connection);
    let before = unix_ms();
    let (store, _settled) = open(&options(directory.path()));
    let mut found = Vec::new();
    assert_eq!(store.sessions(|session| found.push(session)).unwrap(), 2);
    assert_eq!(found[0].received, [Received { packet: 2, origin: 0 }]);
    assert!(found[0].head.away_since_ms.unwrap() >= before, "it was connected until now");
    assert_eq!(found[1].head.away_since_ms, Some(17));
    let read = |numbers, bytes| {
        let (messages, is_all) = store.reader().messages(subscriber, numbers, bytes).unwrap();
        (messages.iter().map(|message| message.number).collect::<Vec<_>>(), is_all)
    };
    assert_eq!(read((0, u64::MAX), usize::MAX), (vec![2, 3, 4], true));
    assert_eq!(read((0, u64::MAX), 0), (vec![2], false), "one is handed out, however large");
    assert_eq!((read((2, u64::MAX), usize::MAX), read((2, 3), usize::MAX)), ((vec![3, 4], true), (vec![3], true)));
    let (messages, _) = store.reader().messages(subscriber, (0, 4), usize::MAX).unwrap();
    let [.., one, other] = &messages[..] else { panic!("{messages:?}") };
    assert!(Arc::ptr_eq(&one.publication, &other.publication), "what waits in several places is in memory once");
    // What is queued still names the origin 51.
    assert_eq!(store.next_key(), SessionKey(52));
    assert_eq!(check(directory.path()).unwrap().damage, [""; 0]);
}

#[test]
fn changes_are_bounded_and_whoever_is_refused_hears_of_room() {
    let directory = TempDir::new().unwrap();
    let bounded = Options { queue_bytes: 10_000, ..options(directory.path()) };
    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock().unwrap();
    let settle = {
        let gate = gate.clone();
        move |_: &[Settled]| drop(gate.lock().unwrap())
    };
    let store = Store::open(&bounded, settle).unwrap();
    let (mailboxes, inboxes) = worker_inboxes();
    store.connect(mailboxes).unwrap();
    let sender = store.changes();
    let batch = |worker, mark| Changes {
        worker: WorkerId(worker),
        mark: ChangeMark(mark),
        changes: vec![Change::Retained {
            publication: Arc::new(publication(&mut Rng::with_seed(mark), "t")),
            stamp: Stamp::NONE,
        }],
        is_awaited: true,
        timeline: CLOCK.timeline(),
    };
    // The writer is held up with an event, and the queue is filled.
    offer_all(&store, vec![message(0, 1)]);
    let deadline = Instant::now() + DEADLINE;
    let mut mark = 1;
    let refused = loop {
        match sender.offer(batch(0, mark)) {
            Ok(()) => mark += 1,
            Err(refused) => break refused,
        }
        assert!(Instant::now() < deadline && mark < 1_000, "the queue has no bound");
    };
    assert_eq!(refused.mark, ChangeMark(mark));
    sender.offer(batch(1, 1)).expect("a worker of which nothing waits always finds room");
    assert!(sender.offer(batch(1, 2)).is_err());
    drop(held);
    wait_for_mark(&inboxes[0], ChangeMark(mark - 1));
    wait_for_mark(&inboxes[1], ChangeMark(1));
    sender.offer(refused).expect("there is room");
    wait_for_mark(&inboxes[0], ChangeMark(mark));
    assert_eq!(store.stats().kept.retained.load(Ordering::Relaxed), 1);
}

#[test]
fn without_room_what_makes_room_is_written_and_nothing_is_safe_before_all_of_it_is() {
    let directory = TempDir::new().unwrap();
    let full = Options { bytes_max: 768 << 10, ..options(directory.path()) };
    let (store, _settled) = open(&full);
    let (mailboxes, inboxes) = worker_inboxes();
    store.connect(mailboxes).unwrap();
    let sender = store.changes();
    let session = SessionKey(1);
    let batch = |mark, changes| Changes {
        worker: WorkerId(0),
        mark: ChangeMark(mark),
        changes,
        is_awaited: true,
        timeline: CLOCK.timeline(),
    };
    let queued = |number| {
        let publication = Publication { payload: vec![7; 20_000].into(), ..publication(&mut Rng::with_seed(1), "t") };
        let publication = Arc::new(publication);
        let message = Message {
            number,
            packet: None,
            qos: QoS::AtLeastOnce,
            retain: false,
            identifiers: vec![],
            group: None,
            publication,
            origin: 0,
        };
        Change::Queued { session, message: Box::new(message) }
    };
    sender.offer(batch(1, vec![Change::Kept(Box::new(head(session, "d", None)))])).unwrap();
    let mut number = 0;
    let deadline = Instant::now() + DEADLINE;
    while store.health() == Health::Well {
        number += 1;
        sender.offer(batch(number + 1, vec![queued(number)])).unwrap();
        while store.health() == Health::Well && store.stats().kept.messages.load(Ordering::Relaxed) < number {
            assert!(Instant::now() < deadline, "the store is never full");
            thread::yield_now();
        }
    }
    // The last one waits. What goes in its place is behind it in the queue.
    let done = (1..6).map(|number| Change::Done { session, number }).collect();
    sender.offer(batch(number + 2, done)).unwrap();
    wait_for_mark(&inboxes[0], ChangeMark(number + 2));
    assert_eq!(store.health(), Health::Well);
    assert_eq!(store.stats().kept.messages.load(Ordering::Relaxed), number - 5);
    drop(store);
    assert_eq!(check(directory.path()).unwrap().damage, [""; 0]);
}

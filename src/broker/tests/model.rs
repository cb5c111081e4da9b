//! The world of the model: devices, the sessions of three shards, time, and the ways between shards.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::device::{Device, Keeps, Testament};
use super::*;
use crate::link::{CloseReason, Publication, Refusal};
use crate::time::TICK_MICROS;

const WORKERS: u16 = 3;
const DEVICES: usize = 12;
const TOPICS: [&str; 4] = ["a", "a/b", "c", "w"];
const FILTERS: [&str; 5] = ["a", "a/#", "+", "+/b", "#"];
const WILL_TOPIC: &str = "w";

/// What is due is handled with the first tick that begins after it: never too early, and at most this late.
const GRANULARITY: Duration = Duration::from_micros(TICK_MICROS);

/// How often something happened that a run is there for.
#[derive(Default, Debug)]
pub struct Coverage {
    pub messages: u32,
    pub received: u32,
    /// Sessions that expired.
    pub expired: u32,
    /// Broker with an expiry whose devices came back before.
    pub resumed: u32,
    /// Wills that were published when they had waited.
    pub waited: u32,
    /// Wills that were not, since their devices came back.
    pub recalled: u32,
    /// Messages that were owed and expired first.
    pub stale: usize,
}

impl Coverage {
    pub fn add(&mut self, other: &Coverage) {
        self.messages += other.messages;
        self.received += other.received;
        self.expired += other.expired;
        self.resumed += other.resumed;
        self.waited += other.waited;
        self.recalled += other.recalled;
        self.stale += other.stale;
    }

    /// Of two thousand worlds.
    pub fn is_enough(&self) -> bool {
        let rarer = [self.expired, self.resumed, self.waited, self.recalled, self.stale as u32];
        self.messages > 100_000 && self.received > self.messages && rarer.into_iter().all(|count| count > 4_000)
    }
}

/// How a connection ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Disconnection {
    Lost,
    /// DISCONNECT 0x00.
    Goodbye,
    /// DISCONNECT 0x04, "with will".
    WithWill,
    /// The gateway ends it: no device has died.
    Shutdown,
    /// Another gateway of the fleet has the device: a will that was to come later does not.
    Elsewhere,
}

pub struct World {
    seed: u64,
    random: fastrand::Rng,
    pub now: Moment,
    pub shards: Vec<Broker>,
    /// By worker: the time up to which its deadlines were handled.
    drained: Vec<Tick>,
    /// By worker: wills that it publishes before it delivers, or in its next turn, which follows at once.
    due_wills: Vec<Vec<DueWill>>,
    /// Between shards, by sender and receiver: two lanes, each in order, but late.
    ways: HashMap<(u16, u16), (VecDeque<ShardMessage>, VecDeque<Passed>)>,
    /// Messages whose publishers wait to hear that they are safe.
    unanswered: BTreeSet<u64>,
    pub devices: Vec<Device>,
    published: BTreeSet<u32>,
    slots: Vec<u32>,
    pub counters: Counters,
    pub coverage: Coverage,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let home = Home::new([9; 16], WORKERS);
        let exchange = Arc::new(Exchange::new(WORKERS));
        let bounds = Bounds {
            away: 100,
            inflight: 3,
            messages: 1_000_000,
            bytes: 1 << 30,
            subscriptions: 100,
            retained_messages: 10_000,
            retained_bytes: 1 << 24,
            stored_bytes: 0,
            pool_bytes: 1 << 30,
            // In every third world so few that messages wait for credit all the time.
            inbox_messages: if seed.is_multiple_of(3) { 16 } else { 8_192 },
        };
        // In every other world the ticks wrap some time.
        let start = if seed.is_multiple_of(2) { 1 } else { u64::from(u32::MAX) - 500 };
        let now = Moment::from_micros(start * TICK_MICROS);
        let shard = |worker| {
            let exchange = Arc::clone(&exchange);
            Broker::new(BrokerOptions { worker: WorkerId(worker), home, exchange, bounds, key: seed }, now.tick())
        };
        let device = |number| {
            let name = format!("device {number} of seed {seed}");
            let worker = home.of(&name).index();
            Device::new(name, worker, [Keeps::Nothing, Keeps::ForAWhile, Keeps::ForEver][number % 3])
        };
        Self {
            seed,
            random: fastrand::Rng::with_seed(seed),
            now,
            shards: (0..WORKERS).map(shard).collect(),
            drained: vec![now.tick(); usize::from(WORKERS)],
            due_wills: (0..WORKERS).map(|_| Vec::new()).collect(),
            ways: HashMap::new(),
            unanswered: BTreeSet::new(),
            devices: (0..DEVICES).map(device).collect(),
            published: BTreeSet::new(),
            slots: vec![0; usize::from(WORKERS)],
            counters: Counters::new(CloseReason::COUNT, Refusal::COUNT),
            coverage: Coverage::default(),
        }
    }

    // --- What devices do --------------------------------------------------------------------------------------------

    pub fn connect(&mut self, number: usize) {
        // Taken over: the old connection ends first.
        self.disconnect(number, Disconnection::Lost);
        let will = (self.random.u8(..3) == 0).then(|| self.make_will());
        let clean_start = self.random.u8(..8) == 0;
        let device = &mut self.devices[number];
        let worker = device.worker;
        self.slots[worker] += 1;
        let connection = ConnectionSlot(self.slots[worker]);
        let profile = profile(device.keeps.draw(&mut self.random), 2);
        let left = device.will.take();
        device.will = will.as_ref().map(testament_of);
        let will = will.map(Box::new);
        let arrival = Arrival { connection, device: &device.name, clean_start, profile, will };
        let attached = self.shards[worker].attach(arrival, self.now);
        let goes_on = device.has_session && !clean_start;
        assert_eq!(attached.was_present, goes_on, "{}: whether there is a session", device.name);
        if goes_on {
            self.coverage.resumed += u32::from(device.expiry_s != u32::MAX);
            self.coverage.recalled += u32::from(left.is_some());
        } else {
            device.end_session();
        }
        (device.connection, device.has_session, device.expiry_s) = (Some(connection), true, profile.expiry_s);
        // Whoever goes on takes the will back [v5 MQTT-3.1.3-9]; a session that is discarded has ended.
        self.inherit(number, left.filter(|_| !goes_on), attached.due_will);
    }

    fn make_will(&mut self) -> Will {
        let publication = self.publication(WILL_TOPIC, QoS::AtLeastOnce);
        let delay_s = if self.random.bool() { 0 } else { self.random.u32(1..=6) };
        let expiry_s = (self.random.u8(..4) == 0).then(|| self.random.u32(1..=20));
        Will { publication, expiry_s, delay_s }
    }

    fn disconnect(&mut self, number: usize, ending: Disconnection) {
        let device = &mut self.devices[number];
        let Some(connection) = device.connection.take() else { return };
        let shard = &mut self.shards[device.worker];
        let session = shard.of(connection).unwrap();
        let is_said = matches!(ending, Disconnection::Goodbye | Disconnection::WithWill);
        if is_said && device.expiry_s != 0 && self.random.bool() {
            device.expiry_s = *self.random.choice(&[0, 1, 3, u32::MAX]).unwrap();
            shard.set_expiry(session, device.expiry_s);
        }
        if ending == Disconnection::Goodbye {
            shard.forget_will(session);
        }
        if ending == Disconnection::Elsewhere {
            shard.forget_delayed_will(connection);
            device.will.take_if(|will| device.expiry_s > 0 && will.delay_s > 0);
        }
        let with_will = ending != Disconnection::Shutdown;
        let due_will = shard.detach(connection, &device.name, with_will, self.now, &mut self.counters);
        if matches!(ending, Disconnection::Goodbye | Disconnection::Shutdown) {
            device.will = None;
        }
        device.away_since = self.now;
        let ends = device.expiry_s == 0;
        let expected = device.will.take_if(|will| ends || will.delay_s == 0);
        if ends {
            // Whatever was on its way is gone with the session.
            device.end_session();
        }
        self.inherit(number, expected, due_will);
    }

    fn subscribe(&mut self, number: usize) {
        let filter = FILTERS[self.random.usize(..FILTERS.len())];
        let qos = QoS::try_from(self.random.u8(..3)).unwrap();
        // Whether a message that is on its way meets the subscription is not told by anybody: it waits.
        self.settle();
        let Some(session) = self.session_of(number) else { return };
        let options = Options::plain(qos);
        let device = &mut self.devices[number];
        assert_eq!(self.shards[device.worker].subscribe_one(session, filter, options, 0), Granted::Subscribed);
        device.subscriptions.insert(filter, qos);
    }

    fn unsubscribe(&mut self, number: usize) {
        let filter = FILTERS[self.random.usize(..FILTERS.len())];
        self.settle();
        let Some(session) = self.session_of(number) else { return };
        let device = &mut self.devices[number];
        let known = device.subscriptions.remove(filter).is_some();
        let expected = if known { Unsubscribed::Removed } else { Unsubscribed::NoSuch };
        assert_eq!(self.shards[device.worker].unsubscribe(session, filter), expected, "{}", device.name);
    }

    fn publish(&mut self, number: usize) {
        if self.devices[number].connection.is_none() {
            return;
        }
        let topic = TOPICS[self.random.usize(..TOPICS.len())];
        let qos = QoS::try_from(self.random.u8(..3)).unwrap();
        let mut publication = self.publication(topic, qos);
        if self.random.u8(..4) == 0 {
            publication.expires = Some(self.now.plus(Duration::from_secs(self.random.u64(1..=20))));
        }
        self.send_off(self.devices[number].worker, publication);
    }

    /// A message with a number of its own.
    pub fn publication(&mut self, topic: &str, qos: QoS) -> Publication {
        self.coverage.messages += 1;
        Publication::plain(topic, Bytes::from(self.coverage.messages.to_be_bytes().to_vec()), qos)
    }

    /// Whoever has subscribed now is owed the message, if both sides want it acknowledged.
    fn send_off(&mut self, worker: usize, publication: Publication) {
        let message = message_of(&publication.payload);
        assert!(self.published.insert(message), "message {message} of seed {} is published twice", self.seed);
        self.devices.iter_mut().for_each(|device| device.note_published(message, &publication));
        let shard = &mut self.shards[worker];
        let ticket = if publication.qos.is_acknowledged() { shard.request(message.into()) } else { Ticket::NOBODY };
        if publication.qos.is_acknowledged() {
            self.unanswered.insert(message.into());
        }
        shard.publish(publication, ticket, &mut self.counters);
    }

    /// The slot of the session of a device that is connected.
    pub fn session_of(&self, number: usize) -> Option<SessionSlot> {
        let device = &self.devices[number];
        self.shards[device.worker].of(device.connection?)
    }

    // --- Wills ------------------------------------------------------------------------------------------------------

    /// The shard gives out a will that is to be published now, or none: as the device expects.
    fn inherit(&mut self, number: usize, expected: Option<Testament>, due_will: Option<DueWill>) {
        let device = &self.devices[number];
        let message = due_will.as_ref().map(|due_will| message_of(&due_will.publication.payload));
        assert_eq!(message, expected.map(|will| will.message), "{}: the will that is published now", device.name);
        if let (Some(will), Some(due_will)) = (expected, due_will) {
            assert_eq!(*due_will.device, *device.name);
            // It begins to grow old when it is published, however long it has waited.
            let expires = will.expiry_s.map(|seconds| self.now.plus(Duration::from_secs(seconds.into())));
            assert_eq!(due_will.publication.expires, expires, "{}", device.name);
            self.due_wills[device.worker].push(due_will);
        }
    }

    fn publish_due_wills(&mut self, worker: usize) {
        for due_will in std::mem::take(&mut self.due_wills[worker]) {
            self.send_off(worker, due_will.publication);
        }
    }

    // --- Time -------------------------------------------------------------------------------------------------------

    /// Mostly a moment, sometimes some seconds. Workers wake when something is due, unless they are stopped meanwhile.
    fn pass_time(&mut self) {
        let most = if self.random.u8(..16) == 0 { 5_000_000 } else { 200_000 };
        let until = self.now.plus(Duration::from_micros(self.random.u64(..most)));
        if self.random.u8(..8) > 0 {
            self.wake_until(until);
        }
        self.move_to(until);
    }

    /// No worker sleeps while a will is to be published.
    fn move_to(&mut self, moment: Moment) {
        (0..usize::from(WORKERS)).for_each(|worker| self.publish_due_wills(worker));
        self.now = moment;
    }

    fn wake_until(&mut self, until: Moment) {
        while let Some((worker, deadline)) = self.next_deadline(until) {
            self.move_to(self.now.max(deadline.start_near(until)));
            self.turn(worker, self.now.tick());
            // It can sleep again: nothing that has come is left over.
            let next = self.shards[worker].next_deadline();
            assert!(next.is_none_or(|next| next.is_after(self.now.tick())), "worker {worker} of seed {}", self.seed);
        }
        for device in &self.devices {
            let due = device.session_ends().into_iter().chain(device.will_due()).min();
            assert!(due.is_none_or(|due| until < due.plus(GRANULARITY)), "{}: nobody woke for it", device.name);
        }
    }

    /// The earliest deadline that comes no later than `until`, and whose it is.
    fn next_deadline(&self, until: Moment) -> Option<(usize, Tick)> {
        let deadlines =
            self.shards.iter().enumerate().filter_map(|(worker, shard)| Some((worker, shard.next_deadline()?)));
        let come = deadlines.filter(|(_, deadline)| !deadline.is_after(until.tick()));
        come.min_by_key(|(_, deadline)| deadline.start_near(until))
    }

    /// A worker's turn, after it has read: deadlines, wills, deliveries.
    fn turn(&mut self, worker: usize, drained: Tick) {
        self.expire(worker, drained);
        self.deliver(worker);
    }

    /// As a turn, whose sockets may have been drained only for some time ago.
    fn late_turn(&mut self, worker: usize) {
        let drained = Tick(self.now.tick().0.wrapping_sub(self.random.u32(..3)));
        let latest = self.drained[worker];
        self.turn(worker, if latest.is_after(drained) { latest } else { drained });
    }

    /// Deadlines up to `drained`: exactly the wills and sessions that have waited longer than they should are done with.
    fn expire(&mut self, worker: usize, drained: Tick) {
        self.drained[worker] = drained;
        let mut given = Vec::new();
        while self.shards[worker].handle_deadlines(drained, self.now, 2, &mut given, &mut self.counters) {}
        let mut given: BTreeMap<Box<str>, DueWill> = given.into_iter().map(|one| (one.device.clone(), one)).collect();
        let until = drained.start_near(self.now);
        for number in 0..DEVICES {
            let device = &mut self.devices[number];
            if device.worker != worker {
                continue;
            }
            let will = if device.will_due().is_some_and(|due| due < until) { device.will.take() } else { None };
            if device.session_ends().is_some_and(|end| end < until) {
                device.end_session();
                self.coverage.expired += 1;
            }
            let shard = &self.shards[worker];
            let is_known = shard.sessions.find_away(&device.name).is_some();
            assert_eq!(is_known, device.is_away(), "{}: whether there is a session still", device.name);
            self.coverage.waited += u32::from(will.is_some());
            let due_will = given.remove(&*device.name);
            self.inherit(number, will, due_will);
        }
        assert!(given.is_empty(), "wills of nobody, seed {}: {given:?}", self.seed);
    }

    // --- What happens meanwhile -------------------------------------------------------------------------------------

    /// Deliveries of one shard reach its devices; some devices lose their connection in the middle of it.
    fn deliver(&mut self, worker: usize) {
        self.publish_due_wills(worker);
        self.hear_answers(worker);
        self.shards[worker].take_answerable();
        self.shards[worker].begin_turn();
        for batch in self.shards[worker].next_deliveries(3) {
            let (session, generation) = (batch.session, batch.generation);
            let Some(connection) = self.shards[worker].connection_of(session, generation) else {
                self.shards[worker].keep(batch, self.now, &mut self.counters);
                continue;
            };
            let mut out = Vec::new();
            let mut budget = SendBudget {
                out: &mut out,
                unsent: 0,
                turn_bytes: self.random.usize(1..200),
                now: self.now,
                counters: &mut self.counters,
            };
            self.shards[worker].write(session, batch.deliveries, &mut budget);
            let is_it = |device: &Device| device.worker == worker && device.connection == Some(connection);
            let number = self.devices.iter().position(is_it).expect("who is written to is connected");
            self.receive(number, &out);
        }
    }

    /// The device takes what was sent, as far as its connection lives, and acknowledges it.
    fn receive(&mut self, number: usize, bytes: &[u8]) {
        let mut packets = VecDeque::new();
        let mut rest = bytes;
        while let Some((packet, length)) = mqtt::decode(rest, Some(mqtt::Version::V5), 1 << 20).unwrap() {
            rest = &rest[length..];
            if let Packet::Publish(publish) = &packet {
                self.devices[number].note_sent(publish, self.now);
            }
            packets.push_back(packet);
        }
        assert!(rest.is_empty());
        for packet in packets {
            let is_lost = self.random.u8(..20) == 0;
            if is_lost || !self.answer(number, &packet) {
                return self.disconnect(number, Disconnection::Lost);
            }
        }
    }

    /// `false`: an answer is lost, and with it the connection.
    fn answer(&mut self, number: usize, packet: &Packet) -> bool {
        let session = self.session_of(number).unwrap();
        let device = &mut self.devices[number];
        let shard = &mut self.shards[device.worker];
        match packet {
            Packet::Publish(publish) => {
                device.take(publish);
                if publish.qos == QoS::AtMostOnce {
                    return true;
                }
                if self.random.u8(..20) == 0 {
                    return false;
                }
                if publish.qos == QoS::AtLeastOnce {
                    assert!(shard.handle_puback(session, publish.packet_id, |_| {}) == Ok(true), "{}", device.name);
                    return true;
                }
                assert!(shard.handle_pubrec(session, publish.packet_id, false, |_| {}) == Ok(true), "{}", device.name);
                device.open_qos_2.remove(&publish.packet_id);
                assert!(shard.handle_pubcomp(session, publish.packet_id) == Ok(true), "{}", device.name);
            }
            Packet::Pubrel(ack) => {
                device.open_qos_2.remove(&ack.packet_id);
                assert_eq!(shard.handle_pubcomp(session, ack.packet_id), Ok(true));
            }
            other => panic!("{}: {other:?}", device.name),
        }
        true
    }

    fn carry(&mut self) {
        for from in 0..WORKERS {
            for to in (0..WORKERS).filter(|&to| to != from) {
                let outgoing = self.shards[usize::from(from)].take_outgoing(WorkerId(to));
                let way = self.ways.entry((from, to)).or_default();
                way.0.extend(outgoing.answers);
                way.1.extend(outgoing.passed);
            }
        }
    }

    /// One thing arrives, of either lane. `false`: nothing is on this way.
    fn arrive(&mut self, from: u16, to: u16) -> bool {
        let Some((answers, passed)) = self.ways.get_mut(&(from, to)) else { return false };
        let shard = &mut self.shards[usize::from(to)];
        let answers_first = self.random.bool();
        if (answers_first || passed.is_empty())
            && let Some(answer) = answers.pop_front()
        {
            shard.handle_shard_message(WorkerId(from), answer);
        } else if let Some(passed) = passed.pop_front() {
            shard.handle_passed(WorkerId(from), passed, &mut self.counters);
        } else {
            return false;
        }
        true
    }

    /// Everything that is under way between shards arrives. What waits for credit waits until somebody is delivered to.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.carry();
            let mut is_quiet = true;
            for from in 0..WORKERS {
                for to in 0..WORKERS {
                    while self.arrive(from, to) {
                        is_quiet = false;
                    }
                }
            }
            let waits = |shard: &Broker| (0..WORKERS).any(|worker| shard.waits_for(WorkerId(worker)));
            if self.shards.iter().any(waits) {
                (0..usize::from(WORKERS)).for_each(|worker| self.deliver(worker));
            } else if is_quiet {
                return;
            }
        }
        panic!("seed {}: shards wait for each other", self.seed);
    }

    /// Publishers hear that their messages are safe: each once.
    fn hear_answers(&mut self, worker: usize) {
        for (request, end) in self.shards[worker].take_requests() {
            assert_eq!(end, RequestEnd::Published);
            assert!(self.unanswered.remove(&request), "seed {}: message {request} is answered twice", self.seed);
        }
    }

    /// What one shard has of another's credit is on its way, is held there, has come free there, or comes back.
    fn check_credit(&self, from: u16, to: u16) {
        let used = self.shards[usize::from(from)].ways.used(WorkerId(to));
        let there = &self.shards[usize::from(to)];
        let (no_answers, no_passed) = (VecDeque::new(), VecDeque::new());
        let passed = self.ways.get(&(from, to)).map_or(&no_passed, |way| &way.1);
        let answers = self.ways.get(&(to, from)).map_or(&no_answers, |way| &way.0);
        for class in Class::ALL {
            let on_the_way = passed.iter().filter(|passed| passed.class() == class).count();
            let comes_back: usize = answers
                .iter()
                .map(
                    |answer| if let ShardMessage::Credit(credit) = answer { credit[class.index()].messages } else { 0 },
                )
                .sum();
            let held = there.settlements.held_for(WorkerId(from), class).messages;
            let untold = there.ways.untold(WorkerId(from))[class.index()].messages;
            let all = on_the_way + held + untold + comes_back;
            assert_eq!(used[class.index()].messages, all, "seed {}: {class:?} from {from} to {to}", self.seed);
        }
    }

    pub fn check(&self) {
        for (worker, shard) in self.shards.iter().enumerate() {
            let is_it = |device: &Device, slot| device.worker == worker && device.connection == Some(slot);
            shard.check_invariants(|slot| self.devices.iter().any(|device| is_it(device, slot)));
        }
        // It looks at everything that is open: now and then is often enough.
        if self.coverage.messages.is_multiple_of(16) {
            for from in 0..WORKERS {
                (0..WORKERS).filter(|&to| to != from).for_each(|to| self.check_credit(from, to));
            }
        }
    }

    pub fn step(&mut self) {
        self.pass_time();
        let number = self.random.usize(..DEVICES);
        let worker = self.random.usize(..usize::from(WORKERS));
        match self.random.u8(..40) {
            0..=5 => self.connect(number),
            6 if self.random.bool() => self.disconnect(number, Disconnection::Elsewhere),
            6 => self.disconnect(number, Disconnection::Lost),
            7 => self.disconnect(number, Disconnection::Shutdown),
            8 => self.disconnect(number, Disconnection::Goodbye),
            9 => self.disconnect(number, Disconnection::WithWill),
            10..=14 => self.subscribe(number),
            15 => self.unsubscribe(number),
            16..=24 => self.publish(number),
            25..=33 => self.late_turn(worker),
            34..=35 => self.carry(),
            _ => {
                let (from, to) = (self.random.u16(..WORKERS), self.random.u16(..WORKERS));
                self.arrive(from, to);
            }
        }
        self.check();
    }

    /// Time stands still; all come back and stay, and take what is theirs.
    pub fn end(&mut self) {
        let now = self.now;
        self.coverage.stale = self.devices.iter_mut().map(|device| device.forget_expired(now)).sum();
        for _ in 0..10_000 {
            for number in 0..DEVICES {
                if self.devices[number].connection.is_none() {
                    self.connect(number);
                }
            }
            self.settle();
            (0..usize::from(WORKERS)).for_each(|worker| self.deliver(worker));
            if self.is_over() {
                self.coverage.received = self.devices.iter().flat_map(|device| device.received.values()).sum();
                assert_eq!(self.counters.value(Metric::SessionsExpired), u64::from(self.coverage.expired));
                return self.check();
            }
        }
        let owed: Vec<_> = self.devices.iter().filter(|device| !device.owed.is_empty()).collect();
        panic!("{} never got {:?}", owed[0].name, owed[0].owed);
    }

    fn is_over(&self) -> bool {
        self.shards.iter().all(|shard| !shard.has_deliveries())
            && self.unanswered.is_empty()
            && self.shards.iter().all(|shard| shard.settlements.len() == 0)
            && self.due_wills.iter().all(Vec::is_empty)
            && self.devices.iter().all(|device| device.owed.is_empty() && device.connection.is_some())
    }
}

fn testament_of(will: &Will) -> Testament {
    let message = message_of(&will.publication.payload);
    Testament { message, delay_s: will.delay_s, expiry_s: will.expiry_s }
}

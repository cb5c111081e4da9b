//! The shards of a gateway, with their store, their log and their devices' connections: the program's brokers, and what is on its way between them.

use std::collections::{BTreeMap, VecDeque};
use std::mem;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Fault;
use super::device::{Coming, Heard, TOPICS};
use super::wills::End;
use crate::broker::{
    Arrival, Bounds, Broker, Claim, DueWill, Granted, ModelStore, Profile, Qos2Reply, RequestEnd, Row, SendBudget, Will,
};
use crate::codec::mqtt::{self, Options, Packet, QoS};
use crate::fleet::{Published, Publishing};
use crate::link::{
    CloseReason, ConnectionId, Home, Lag, ListenerId, Outcome, Outgoing, Publication, Reach, Refusal, Round,
    SessionChanged, SessionOrder, SessionVerdict, SessionWanted, Told, WorkerCommand, WorkerEvent, WorkerId,
};
use crate::metrics::Counters;
use crate::slot::{ConnectionSlot, SessionSlot};
use crate::time::Moment;

/// Of each gateway.
const SHARDS: u16 = 2;
/// When the first of all lives began, on the wall.
const WALL_MS: i64 = 1_700_000_000_000;

/// What is to be done by others.
pub enum Wish {
    /// A device has come.
    Wanted(SessionWanted),
    /// The row of a session has changed.
    Changed(SessionChanged),
    /// A session has ended.
    Gone(Box<str>),
    /// The will of a device has waited for its delay.
    WillDue(String, u64),
    /// Up to there everything is with sessions.
    Settled(u64),
}

/// Who waits for a request.
enum Waits {
    Order(oneshot::Sender<Outcome>),
    /// A message of somebody here: it is safe here.
    Publisher(u32),
    /// A message of the stream.
    Taken(u64),
}

#[expect(clippy::struct_excessive_bools, reason = "each becomes true by itself")]
struct Connection {
    slot: ConnectionSlot,
    /// Which of all connections.
    serial: u64,
    is_clean: bool,
    will: Option<Box<Will>>,
    was_present: bool,
    is_greeted: bool,
    is_attached: bool,
    /// The device has left it, which nobody here knows yet.
    is_left: bool,
}

/// What outlives the process.
#[derive(Default)]
pub struct Kept {
    pub store: ModelStore,
    log: VecDeque<(u32, Published)>,
    sent: u64,
    /// How far it has come in the stream.
    place: Option<u64>,
}

pub struct Shard {
    at: usize,
    fault: Fault,
    began: Instant,
    home: Home,
    brokers: Vec<Broker>,
    /// What one has passed to another: from which, to which.
    on_its_way: VecDeque<(WorkerId, WorkerId, Outgoing)>,
    pub store: ModelStore,
    counters: Counters,
    connections: BTreeMap<String, Connection>,
    requests: BTreeMap<u64, Waits>,
    request: u64,
    slots: u32,
    log: VecDeque<(u32, Published)>,
    sent: u64,
    /// What was taken from the stream, in order, and whether it is safe.
    under_way: VecDeque<(u64, bool)>,
    taken: u64,
    place: u64,
    /// Who waits for the round of each.
    rounds: [Option<oneshot::Sender<Lag>>; SHARDS as usize],
    /// Devices acknowledge all that comes.
    pub is_calm: bool,
    pub wishes: Vec<Wish>,
    pub heard: Vec<Heard>,
}

pub fn profile() -> Profile {
    Profile {
        version: mqtt::Version::V5,
        listener: ListenerId(0),
        keep_alive_s: 0,
        expiry_s: u32::MAX,
        receive_maximum: 3,
        packet_maximum: u32::MAX,
        alias_maximum: 0,
    }
}

/// The will of a connection says which one that is.
fn will(serial: u64, delay_s: u32) -> Will {
    let payload = Bytes::copy_from_slice(&serial.to_be_bytes());
    Will { publication: Publication::plain("will", payload, QoS::AtLeastOnce), expiry_s: None, delay_s }
}

pub fn will_number(payload: &[u8]) -> u64 {
    u64::from_be_bytes(payload.try_into().unwrap())
}

impl Shard {
    pub fn new(at: usize, fault: Fault, mut kept: Kept, began: Instant, now: Instant, end: u64) -> Self {
        let bounds = Bounds {
            away: 100,
            inflight: 4,
            messages: 100_000,
            bytes: 1 << 30,
            subscriptions: 100,
            retained_messages: 100,
            retained_bytes: 1 << 20,
            stored_bytes: 1 << 40,
            pool_bytes: 1 << 30,
            inbox_messages: 16,
        };
        let moment = Moment::from_micros(now.duration_since(began).as_micros() as u64);
        let wall_ms = WALL_MS + now.duration_since(began).as_millis() as i64;
        kept.store.crash();
        let home = Home::new([9; 16], SHARDS);
        let mut brokers = kept.store.shards(home, SHARDS, bounds, at as u64 + 1, moment, Some(wall_ms));
        brokers.iter_mut().for_each(Broker::begin_interest);
        for session in kept.store.load().0 {
            brokers[home.of(&session.head.name).index()].restore(session, moment);
        }
        let place = kept.place.unwrap_or(end);
        Self {
            at,
            fault,
            began,
            home,
            brokers,
            on_its_way: VecDeque::new(),
            store: kept.store,
            counters: Counters::new(CloseReason::COUNT, Refusal::COUNT),
            connections: BTreeMap::new(),
            requests: BTreeMap::new(),
            request: 0,
            slots: 0,
            log: kept.log,
            sent: kept.sent,
            under_way: VecDeque::new(),
            taken: place,
            place,
            rounds: [const { None }; SHARDS as usize],
            is_calm: false,
            wishes: Vec::new(),
            heard: Vec::new(),
        }
    }

    /// The process is no more: what is left of it.
    pub fn end(&mut self) -> Kept {
        Kept {
            store: mem::take(&mut self.store),
            log: mem::take(&mut self.log),
            sent: self.sent,
            place: Some(self.place),
        }
    }

    fn moment(&self, now: Instant) -> Moment {
        Moment::from_micros(now.duration_since(self.began).as_micros() as u64)
    }

    pub fn unix_ms(&self, now: Instant) -> i64 {
        WALL_MS + now.duration_since(self.began).as_millis() as i64
    }

    /// Which shard is the home of a device.
    fn home(&self, device: &str) -> usize {
        self.home.of(device).index()
    }

    fn open(&mut self, waits: Waits) -> u64 {
        self.request += 1;
        self.requests.insert(self.request, waits);
        self.request
    }

    // --- Devices ------------------------------------------------------------------------------------------------------

    pub fn connection(&self, device: &str) -> Option<ConnectionSlot> {
        self.connections.get(device).map(|connection| connection.slot)
    }

    /// Whether it has a session that outlives its connection, connected or not.
    pub fn has_session(&self, device: &str) -> bool {
        self.brokers[self.home(device)].kept_session(self.connection(device), device).is_some()
    }

    /// A device comes: its CONNECT waits.
    pub fn connect(&mut self, device: &str, coming: Coming, now: Instant) {
        self.disconnect(device, None, End::Followed, now);
        let Coming { serial, is_clean, delay_s } = coming;
        self.slots += 1;
        let slot = ConnectionSlot(self.slots);
        let broker = &mut self.brokers[self.home.of(device).index()];
        assert_eq!(broker.claim(slot), Claim::Ask);
        let will = delay_s.map(|delay_s| Box::new(will(serial, delay_s)));
        let head = broker.head_to_be(device, &profile(), will.as_deref()).map(Box::new);
        let connection = Some(ConnectionId { slot, generation: 1 });
        let wanted = SessionWanted { device: device.into(), connection, is_clean, is_kept: true, head };
        let (was_present, is_greeted, is_attached, is_left) = (false, false, false, false);
        let is_clean = is_clean && self.fault != Fault::CleanStartIsIgnored;
        let known = Connection { slot, serial, is_clean, will, was_present, is_greeted, is_attached, is_left };
        self.connections.insert(device.into(), known);
        self.heard.push(Heard::Came { device: device.into(), serial, since: now });
        self.wishes.push(Wish::Wanted(wanted));
    }

    /// A connection of a device has ended; `None`: whichever there is.
    pub fn disconnect(&mut self, device: &str, serial: Option<u64>, end: End, now: Instant) {
        let is_it = |connection: &Connection| serial.is_none_or(|serial| serial == connection.serial);
        if !self.connections.get(device).is_some_and(is_it) {
            return;
        }
        let Some(Connection { slot, serial, .. }) = self.connections.remove(device) else { return };
        let (moment, home) = (self.moment(now), self.home(device));
        let broker = &mut self.brokers[home];
        if end == End::Goodbye
            && let Some(session) = broker.of(slot)
        {
            broker.forget_will(session);
        }
        let due = broker.detach(slot, device, true, moment, &mut self.counters);
        self.publish_wills(due);
        self.heard.push(Heard::Ended { device: device.into(), serial, end });
    }

    /// Another gateway has the device: as a shard does then.
    pub fn disown(&mut self, device: &str, serial: u64, now: Instant) {
        if let Some(known) = self.connections.get(device).filter(|known| known.serial == serial) {
            self.brokers[self.home.of(device).index()].forget_delayed_will(known.slot);
            self.disconnect(device, Some(serial), End::Disowned, now);
        }
    }

    /// A device has left a connection: what goes there now goes nowhere.
    pub fn leave(&mut self, device: &str, serial: u64) {
        if let Some(known) = self.connections.get_mut(device).filter(|known| known.serial == serial) {
            known.is_left = true;
        }
    }

    /// As a shard does when it is told.
    pub fn answer(&mut self, command: WorkerCommand) {
        match command {
            WorkerCommand::SessionSettled { connection, verdict } => {
                let found = self.connections.iter().find(|(_, known)| known.slot == connection.slot);
                let Some(device) = found.map(|(device, _)| device.clone()) else { return };
                let row = if verdict == SessionVerdict::GoesOn { Row::True } else { Row::Unknown };
                let home = self.home(&device);
                if self.brokers[home].clear(connection.slot, row) {
                    self.heard.push(Heard::Settled { device, goes_on: verdict != SessionVerdict::ComesAgain });
                }
            }
            WorkerCommand::SessionWritten { session, waits, is_true } => {
                self.brokers[session.worker.index()].handle_row_written(session, waits, is_true);
            }
            other => panic!("{other:?}"),
        }
    }

    /// The CONNECT of a device goes on.
    pub fn attach(&mut self, device: &str, now: Instant) {
        let (moment, home) = (self.moment(now), self.home(device));
        let Some(known) = self.connections.get_mut(device) else { return };
        let Connection { slot, is_clean, serial, .. } = *known;
        let will = known.will.take();
        let arrival = Arrival { connection: slot, device, clean_start: is_clean, profile: profile(), will };
        let mut attached = self.brokers[home].attach(arrival, moment);
        (known.was_present, known.is_attached) = (attached.was_present, true);
        self.heard.push(Heard::Attached { serial });
        self.publish_wills(attached.due_will.take());
        if attached.is_safe {
            self.greet(device);
        } else {
            self.brokers[home].hold_greeting(attached.session, Vec::new());
        }
    }

    fn greet(&mut self, device: &str) {
        let Some(known) = self.connections.get_mut(device) else { return };
        known.is_greeted = true;
        let Connection { serial, was_present, .. } = *known;
        self.heard.push(Heard::Greeted { device: device.into(), serial, was_present });
    }

    pub fn subscribe(&mut self, device: &str) {
        let Some(session) = self.session_of(device) else { return };
        let home = self.home(device);
        let broker = &mut self.brokers[home];
        let Some(mut pending) = broker.begin_filters(session, 1) else { return };
        for topic in TOPICS {
            let granted = broker.subscribe(session, topic, Options::plain(QoS::ExactlyOnce), 0, &mut pending);
            assert_eq!(granted, Granted::Subscribed);
            pending.codes.push(2);
        }
        broker.expect_subscribed(session, &mut pending);
        if broker.end_filters(session, pending).is_some() {
            self.heard.push(Heard::Subscribed { device: device.into() });
        }
    }

    fn session_of(&self, device: &str) -> Option<SessionSlot> {
        let known = self.connections.get(device).filter(|known| known.is_greeted)?;
        self.brokers[self.home(device)].of(known.slot)
    }

    // --- Wills --------------------------------------------------------------------------------------------------------

    /// Those that have waited for their delay are asked about first.
    fn publish_wills(&mut self, due: impl IntoIterator<Item = DueWill>) {
        for DueWill { device, publication, was_delayed, .. } in due {
            let number = will_number(&publication.payload);
            if was_delayed {
                self.wishes.push(Wish::WillDue(device.into(), number));
            } else {
                self.note_will(number, true);
            }
        }
    }

    /// One is published; whether that was sure to be right.
    pub fn note_will(&mut self, number: u64, is_sure: bool) {
        self.heard.push(Heard::Willed { serial: number, is_sure });
    }

    // --- Publications -------------------------------------------------------------------------------------------------

    /// Somebody here publishes. It is in the log as it is in the shards.
    pub fn publish(&mut self, number: u32, topic: &'static str, qos: QoS) {
        let payload = Bytes::copy_from_slice(&number.to_be_bytes());
        let mut publication = Publication::plain(topic, payload.clone(), qos);
        let request = self.open(Waits::Publisher(number));
        let broker = &mut self.brokers[number as usize % usize::from(SHARDS)];
        broker.send_up(&mut publication);
        let ticket = broker.request(request);
        broker.publish(publication, ticket, &mut self.counters);
        let publishing = Publishing { qos, ..Publishing::plain(&super::nats::name(self.at)) };
        let payload_bytes = payload.len();
        let published = Published { at: 0, device: None, topic: topic.into(), payload, payload_bytes, publishing };
        self.log.push_back((number, published));
    }

    pub fn next_of_log(&self) -> Option<(u32, Published)> {
        self.log.front().cloned()
    }

    pub fn note_sent(&mut self, number: u32) {
        if self.log.front().is_some_and(|(first, _)| *first == number) {
            self.log.pop_front();
            self.sent += 1;
        }
    }

    pub fn sent(&self) -> u64 {
        self.sent
    }

    pub fn log_length(&self) -> u64 {
        self.sent + self.log.len() as u64
    }

    /// Up to which place the stream was taken, and whether there is room for more than is under way.
    pub fn taken(&self, most: usize) -> (u64, bool) {
        (self.taken, self.under_way.len() < most)
    }

    /// Messages of the stream have come.
    pub fn take(&mut self, piece: Vec<Published>) {
        for published in piece {
            if published.at != self.taken + 1 {
                return;
            }
            self.taken = published.at;
            let is_own = published.publishing.node == super::nats::name(self.at);
            self.under_way.push_back((published.at, is_own));
            if is_own {
                continue;
            }
            let request = self.open(Waits::Taken(published.at));
            let broker = &mut self.brokers[published.at as usize / 3 % usize::from(SHARDS)];
            let ticket = broker.request(request);
            let Published { topic, payload, publishing, .. } = published;
            let publication =
                Publication { reach: Reach::Elsewhere, ..Publication::plain(topic, payload, publishing.qos) };
            broker.publish(publication, ticket, &mut self.counters);
        }
    }

    /// All that any shard has passed to another is there: as the program asks for that.
    pub fn pass_all(&mut self) -> Vec<oneshot::Receiver<Outcome>> {
        let pass = |at: usize| {
            let (answer, answered) = oneshot::channel();
            let request = self.open(Waits::Order(answer));
            let ticket = self.brokers[at].request(request);
            let publication = Publication::plain("nobody", Bytes::new(), QoS::AtMostOnce);
            self.brokers[at].publish(publication, ticket, &mut self.counters);
            answered
        };
        (0..usize::from(SHARDS)).map(pass).collect()
    }

    fn settle(&mut self, place: u64) {
        if let Some(one) = self.under_way.iter_mut().find(|(at, _)| *at == place) {
            one.1 = true;
        }
    }

    // --- Orders -------------------------------------------------------------------------------------------------------

    /// What the control plane wants of a session. `Err`: it is answered later.
    pub fn order(
        &mut self,
        device: &str,
        order: SessionOrder,
        now: Instant,
    ) -> Result<Outcome, oneshot::Receiver<Outcome>> {
        let (connection, moment) = (self.connection(device), self.moment(now));
        if let SessionOrder::Waits(id) = &order
            && connection != Some(id.slot)
        {
            return Ok(Outcome::Offline);
        }
        let (answer, answered) = oneshot::channel();
        let request = self.open(Waits::Order(answer));
        let mut wills = Vec::new();
        let home = self.home(device);
        let outcome = self.brokers[home].handle_session_order(request, (device, connection), order, moment, &mut wills);
        self.publish_wills(wills);
        match outcome {
            Some(outcome) => {
                self.requests.remove(&request);
                Ok(outcome)
            }
            None => Err(answered),
        }
    }

    pub fn round(&mut self, number: u64, floor: u64) -> Vec<oneshot::Receiver<Lag>> {
        let ask = |(broker, waits): (&mut Broker, &mut Option<oneshot::Sender<Lag>>)| {
            let (answer, answered) = oneshot::channel();
            drop(broker.begin_round(Round { request: 0, number, floor, is_last: false, told: Told::default() }));
            *waits = Some(answer);
            answered
        };
        self.brokers.iter_mut().zip(&mut self.rounds).map(ask).collect()
    }

    // --- Turns --------------------------------------------------------------------------------------------------------

    /// A turn of each, and perhaps a commit.
    pub fn turn(&mut self, random: &mut fastrand::Rng, now: Instant) {
        for at in 0..self.brokers.len() {
            self.take_passed(at, random);
            self.turn_one(at, random, now);
            self.pass_on(at);
        }
        if random.bool() {
            for (worker, mark) in self.store.commit(random.usize(1..6)) {
                self.brokers[worker.index()].handle_safe(mark);
            }
        }
        for at in 0..self.brokers.len() {
            self.tell(at);
        }
        while let Some((place, _)) = self.under_way.pop_front_if(|(_, is_safe)| *is_safe) {
            self.wishes.push(Wish::Settled(place));
            if random.bool() {
                self.place = place;
            }
        }
        if random.u8(..16) > 0 {
            return;
        }
        let is_device =
            |slot: ConnectionSlot| self.connections.values().any(|known| known.is_attached && known.slot == slot);
        self.brokers.iter().for_each(|broker| broker.check_invariants(is_device));
    }

    fn turn_one(&mut self, at: usize, random: &mut fastrand::Rng, now: Instant) {
        let moment = self.moment(now);
        self.brokers[at].begin_turn();
        for batch in self.brokers[at].next_deliveries(4) {
            let Some(slot) = self.brokers[at].connection_of(batch.session, batch.generation) else {
                self.brokers[at].keep(batch, moment, &mut self.counters);
                continue;
            };
            let (mut out, counters) = (Vec::new(), &mut self.counters);
            let turn_bytes = random.usize(1..200);
            let mut budget = SendBudget { out: &mut out, unsent: 0, turn_bytes, now: moment, counters };
            self.brokers[at].write(batch.session, batch.deliveries, &mut budget);
            self.hear(slot, &out, random, now);
        }
        let mut wills = Vec::new();
        while self.brokers[at].handle_deadlines(moment.tick(), moment, 4, &mut wills, &mut self.counters) {}
        self.publish_wills(wills);
        for load in self.brokers[at].take_loads() {
            let loaded = self.store.read(&load);
            assert!(self.brokers[at].handle_loaded(loaded, moment).is_none());
        }
        self.answer_devices(at);
        let store = &mut self.store;
        self.brokers[at].hand_over(|changes| {
            store.push(changes);
            Ok(())
        });
    }

    /// What it has passed to others is on its way.
    fn pass_on(&mut self, at: usize) {
        let from = WorkerId(at as u16);
        for to in (0..SHARDS).map(WorkerId).filter(|to| *to != from) {
            let outgoing = self.brokers[at].take_outgoing(to);
            if !outgoing.is_empty() {
                self.on_its_way.push_back((from, to, outgoing));
            }
        }
    }

    /// What others have passed to it comes, or some of it, in its order.
    fn take_passed(&mut self, at: usize, random: &mut fastrand::Rng) {
        while random.u8(..4) > 0 {
            let Some(first) = self.on_its_way.iter().position(|(_, to, _)| to.index() == at) else { return };
            let Some((from, _, Outgoing { answers, passed })) = self.on_its_way.remove(first) else { return };
            for answer in answers {
                self.brokers[at].handle_shard_message(from, answer);
            }
            for passed in passed {
                self.brokers[at].handle_passed(from, passed, &mut self.counters);
            }
        }
    }

    fn answer_devices(&mut self, at: usize) {
        for (session, generation) in self.brokers[at].take_answerable() {
            let Some(slot) = self.brokers[at].connection_of(session, generation) else { continue };
            let Some(device) = self.device_at(slot) else { continue };
            if self.brokers[at].take_greeting(session).is_some() {
                self.greet(&device);
            }
            if self.brokers[at].take_suback(session).is_some() {
                self.heard.push(Heard::Subscribed { device: device.as_str().into() });
            }
            while let Some(reply) = self.brokers[at].next_reply(session) {
                if self.connections[&device].is_left {
                    continue;
                }
                self.hear_pubrel(&device, session, reply.packet);
            }
            self.brokers[at].take_held(session);
        }
    }

    fn device_at(&self, slot: ConnectionSlot) -> Option<String> {
        self.connections.iter().find(|(_, known)| known.slot == slot).map(|(device, _)| device.clone())
    }

    /// What others are to know.
    fn tell(&mut self, at: usize) {
        for (request, end) in self.brokers[at].take_requests() {
            match self.requests.remove(&request) {
                Some(Waits::Order(answer)) => {
                    let is_done = end == RequestEnd::Published;
                    let _ = answer.send(if is_done { Outcome::Delivered } else { Outcome::Unacknowledged });
                }
                Some(Waits::Publisher(number)) => self.heard.push(Heard::Safe { number }),
                Some(Waits::Taken(place)) => self.settle(place),
                None => {}
            }
        }
        let broker = &mut self.brokers[at];
        if let Some(WorkerEvent::Interest { version, .. }) = broker.take_interest() {
            broker.handle_interest_held(version);
        }
        for (session, waits) in broker.take_changed() {
            let id = self.brokers[at].id(session);
            if self.fault == Fault::SubackTooSoon && waits != 0 {
                self.brokers[at].handle_row_written(id, waits, true);
                continue;
            }
            let Some(device) = self.device_of(at, session) else { continue };
            if self.fault == Fault::RowsKeepWills && waits == 0 {
                continue;
            }
            let waits = (waits != 0).then_some((id, waits));
            self.wishes.push(Wish::Changed(SessionChanged { device, waits }));
        }
        self.wishes.extend(self.brokers[at].take_gone().into_iter().map(Wish::Gone));
        self.tell_round(at);
    }

    fn device_of(&self, at: usize, session: SessionSlot) -> Option<Box<str>> {
        let broker = &self.brokers[at];
        let connected = broker.connection_now(session).and_then(|slot| self.device_at(slot));
        connected.or_else(|| broker.device_away(session).map(String::from)).map(Into::into)
    }

    fn tell_round(&mut self, at: usize) {
        let Some((_, told)) = self.brokers[at].take_round() else { return };
        let Some(answer) = self.rounds[at].take() else { return };
        let slow = told.slow.into_iter().filter_map(|(session, since)| Some((self.device_of(at, session)?, since)));
        let near = told.near.into_iter().filter_map(|session| self.device_of(at, session));
        let (mut slow, mut near): (Vec<_>, Vec<_>) = (slow.collect(), near.collect());
        // A seed plays the same again.
        slow.sort_unstable();
        near.sort_unstable();
        drop(answer.send(Lag { oldest: told.oldest, slow, near }));
    }

    // --- What devices are sent ----------------------------------------------------------------------------------------

    /// What was sent arrives, as far as the connection lives.
    fn hear(&mut self, slot: ConnectionSlot, mut bytes: &[u8], random: &mut fastrand::Rng, now: Instant) {
        while let Some((packet, length)) = mqtt::decode(bytes, Some(mqtt::Version::V5), 1 << 20).unwrap() {
            bytes = &bytes[length..];
            let Some(device) = self.device_at(slot).filter(|device| !self.connections[device].is_left) else { return };
            if !self.is_calm && random.u8(..40) == 0 {
                return self.disconnect(&device, None, End::Lost, now);
            }
            let Some(session) = self.session_of(&device) else { panic!("{device} is told before CONNACK") };
            let serial = self.connections[&device].serial;
            match packet {
                Packet::Publish(publish) => {
                    let number = u32::from_be_bytes(publish.payload.try_into().unwrap());
                    let (packet, qos) = (publish.packet_id, publish.qos);
                    self.heard.push(Heard::Message { device: device.as_str().into(), serial, number, packet, qos });
                    // Some take their time.
                    if !self.is_calm && random.u8(..6) == 0 {
                        continue;
                    }
                    self.acknowledge(&device, session, packet, qos);
                }
                Packet::Pubrel(ack) => self.hear_pubrel(&device, session, ack.packet_id),
                other => panic!("{other:?}"),
            }
        }
    }

    fn acknowledge(&mut self, device: &str, session: SessionSlot, packet: u16, qos: QoS) {
        let home = self.home(device);
        let broker = &mut self.brokers[home];
        if qos == QoS::AtLeastOnce {
            let _ = broker.handle_puback(session, packet, |_| {});
            return;
        }
        let _ = broker.handle_pubrec(session, packet, false, |_| {});
        let reply = Qos2Reply { packet, reason: mqtt::Reason::SUCCESS, is_pubrel: true };
        if let Some(reply) = broker.reply_when_safe(session, reply) {
            self.hear_pubrel(device, session, reply.packet);
        }
    }

    fn hear_pubrel(&mut self, device: &str, session: SessionSlot, packet: u16) {
        self.heard.push(Heard::Released { device: device.into(), packet });
        let home = self.home(device);
        let _ = self.brokers[home].handle_pubcomp(session, packet);
    }
}

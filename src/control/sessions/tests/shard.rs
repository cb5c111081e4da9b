//! The one shard of a gateway, with its store, its log and its devices' connections: the program's broker.

use std::collections::{BTreeMap, VecDeque};
use std::mem;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Fault;
use super::device::{Heard, TOPICS};
use crate::broker::{
    Arrival, Bounds, Broker, Claim, Granted, ModelStore, Profile, Qos2Reply, RequestEnd, Row, SendBudget,
};
use crate::codec::mqtt::{self, Options, Packet, QoS};
use crate::fleet::{Published, Publishing};
use crate::link::{
    CloseReason, ConnectionId, Home, Lag, ListenerId, Outcome, Publication, Reach, Refusal, Round, SessionChanged,
    SessionOrder, SessionVerdict, SessionWanted, Told, WorkerCommand, WorkerEvent,
};
use crate::metrics::Counters;
use crate::slot::{ConnectionSlot, SessionSlot};
use crate::time::Moment;

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
    /// Which of the device's connections.
    serial: u64,
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
    broker: Broker,
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
    rounds: Option<(Told<Lag>, oneshot::Sender<Lag>)>,
    /// Devices acknowledge all that comes.
    pub is_calm: bool,
    pub wishes: Vec<Wish>,
    pub heard: Vec<Heard>,
    pub wills: Vec<Box<str>>,
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
        let shards = kept.store.shards(Home::new([9; 16], 1), 1, bounds, at as u64 + 1, moment, Some(wall_ms));
        let mut broker = shards.into_iter().next().unwrap();
        broker.begin_interest();
        for session in kept.store.load().0 {
            broker.restore(session, moment);
        }
        let place = kept.place.unwrap_or(end);
        Self {
            at,
            fault,
            began,
            broker,
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
            rounds: None,
            is_calm: false,
            wishes: Vec::new(),
            heard: Vec::new(),
            wills: Vec::new(),
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
        self.broker.kept_session(self.connection(device), device).is_some()
    }

    /// A device comes: its CONNECT waits.
    pub fn connect(&mut self, device: &str, serial: u64, now: Instant) {
        self.disconnect(device, None, now);
        self.slots += 1;
        let slot = ConnectionSlot(self.slots);
        assert_eq!(self.broker.claim(slot), Claim::Ask);
        let head = self.broker.head_to_be(device, &profile(), None).map(Box::new);
        let connection = Some(ConnectionId { slot, generation: 1 });
        let wanted = SessionWanted { device: device.into(), connection, is_clean: false, is_kept: true, head };
        let known =
            Connection { slot, serial, was_present: false, is_greeted: false, is_attached: false, is_left: false };
        self.connections.insert(device.into(), known);
        self.wishes.push(Wish::Wanted(wanted));
    }

    /// A connection of a device has ended; `None`: whichever there is.
    pub fn disconnect(&mut self, device: &str, serial: Option<u64>, now: Instant) {
        let is_it = |connection: &Connection| serial.is_none_or(|serial| serial == connection.serial);
        if !self.connections.get(device).is_some_and(is_it) {
            return;
        }
        let Some(Connection { slot, serial, .. }) = self.connections.remove(device) else { return };
        let moment = self.moment(now);
        drop(self.broker.detach(slot, device, true, moment, &mut self.counters));
        self.heard.push(Heard::Ended { device: device.into(), serial });
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
                if self.broker.clear(connection.slot, row) {
                    self.heard.push(Heard::Settled { device, goes_on: verdict != SessionVerdict::ComesAgain });
                }
            }
            WorkerCommand::SessionWritten { session, waits, is_true } => {
                self.broker.handle_row_written(session, waits, is_true);
            }
            other => panic!("{other:?}"),
        }
    }

    /// The CONNECT of a device goes on.
    pub fn attach(&mut self, device: &str, now: Instant) {
        let moment = self.moment(now);
        let Some(known) = self.connections.get_mut(device) else { return };
        let arrival = Arrival { connection: known.slot, device, clean_start: false, profile: profile(), will: None };
        let attached = self.broker.attach(arrival, moment);
        (known.was_present, known.is_attached) = (attached.was_present, true);
        if attached.is_safe {
            self.greet(device);
        } else {
            self.broker.hold_greeting(attached.session, Vec::new());
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
        let Some(mut pending) = self.broker.begin_filters(session, 1) else { return };
        for topic in TOPICS {
            let granted = self.broker.subscribe(session, topic, Options::plain(QoS::ExactlyOnce), 0, &mut pending);
            assert_eq!(granted, Granted::Subscribed);
            pending.codes.push(2);
        }
        self.broker.expect_subscribed(session, &mut pending);
        if self.broker.end_filters(session, pending).is_some() {
            self.heard.push(Heard::Subscribed { device: device.into() });
        }
    }

    fn session_of(&self, device: &str) -> Option<SessionSlot> {
        let known = self.connections.get(device).filter(|known| known.is_greeted)?;
        self.broker.of(known.slot)
    }

    pub fn note_will(&mut self, device: Box<str>) {
        self.wills.push(device);
    }

    // --- Publications -------------------------------------------------------------------------------------------------

    /// Somebody here publishes. It is in the log as it is in the shards.
    pub fn publish(&mut self, number: u32, topic: &'static str, qos: QoS) {
        let payload = Bytes::copy_from_slice(&number.to_be_bytes());
        let mut publication = Publication::plain(topic, payload.clone(), qos);
        self.broker.send_up(&mut publication);
        let request = self.open(Waits::Publisher(number));
        let ticket = self.broker.request(request);
        self.broker.publish(publication, ticket, &mut self.counters);
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
            let ticket = self.broker.request(request);
            let Published { topic, payload, publishing, .. } = published;
            let publication =
                Publication { reach: Reach::Elsewhere, ..Publication::plain(topic, payload, publishing.qos) };
            self.broker.publish(publication, ticket, &mut self.counters);
        }
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
        let outcome = self.broker.handle_session_order(request, (device, connection), order, moment, &mut wills);
        match outcome {
            Some(outcome) => {
                self.requests.remove(&request);
                Ok(outcome)
            }
            None => Err(answered),
        }
    }

    pub fn round(&mut self, number: u64, floor: u64) -> oneshot::Receiver<Lag> {
        let (told, (answer, answered)) = (Told::default(), oneshot::channel());
        let round = Round { request: 0, number, floor, is_last: false, told: told.clone() };
        drop(self.broker.begin_round(round));
        self.rounds = Some((told, answer));
        answered
    }

    // --- Turns --------------------------------------------------------------------------------------------------------

    /// A turn, and perhaps a commit.
    pub fn turn(&mut self, random: &mut fastrand::Rng, now: Instant) {
        let moment = self.moment(now);
        self.broker.begin_turn();
        for batch in self.broker.next_deliveries(4) {
            let Some(slot) = self.broker.connection_of(batch.session, batch.generation) else {
                self.broker.keep(batch, moment, &mut self.counters);
                continue;
            };
            let (mut out, counters) = (Vec::new(), &mut self.counters);
            let turn_bytes = random.usize(1..200);
            let mut budget = SendBudget { out: &mut out, unsent: 0, turn_bytes, now: moment, counters };
            self.broker.write(batch.session, batch.deliveries, &mut budget);
            self.hear(slot, &out, random, now);
        }
        for load in self.broker.take_loads() {
            let loaded = self.store.read(&load);
            assert!(self.broker.handle_loaded(loaded, moment).is_none());
        }
        self.answer_devices();
        let store = &mut self.store;
        self.broker.hand_over(|changes| {
            store.push(changes);
            Ok(())
        });
        if random.bool() {
            for (_, mark) in self.store.commit(random.usize(1..6)) {
                self.broker.handle_safe(mark);
            }
        }
        self.tell(random);
        if random.u8(..16) > 0 {
            return;
        }
        let connections = &self.connections;
        self.broker.check_invariants(|slot| connections.values().any(|known| known.is_attached && known.slot == slot));
    }

    fn answer_devices(&mut self) {
        for (session, generation) in self.broker.take_answerable() {
            let Some(slot) = self.broker.connection_of(session, generation) else { continue };
            let Some(device) = self.device_at(slot) else { continue };
            if self.broker.take_greeting(session).is_some() {
                self.greet(&device);
            }
            if self.broker.take_suback(session).is_some() {
                self.heard.push(Heard::Subscribed { device: device.as_str().into() });
            }
            while let Some(reply) = self.broker.next_reply(session) {
                if self.connections[&device].is_left {
                    continue;
                }
                self.hear_pubrel(&device, session, reply.packet);
            }
            self.broker.take_held(session);
        }
    }

    fn device_at(&self, slot: ConnectionSlot) -> Option<String> {
        self.connections.iter().find(|(_, known)| known.slot == slot).map(|(device, _)| device.clone())
    }

    /// What others are to know.
    fn tell(&mut self, random: &mut fastrand::Rng) {
        for (request, end) in self.broker.take_requests() {
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
        if let Some(WorkerEvent::Interest { version, .. }) = self.broker.take_interest() {
            self.broker.handle_interest_held(version);
        }
        for (session, waits) in self.broker.take_changed() {
            let id = self.broker.id(session);
            if self.fault == Fault::SubackTooSoon && waits != 0 {
                self.broker.handle_row_written(id, waits, true);
                continue;
            }
            let connection = self.broker.connection_now(session);
            let device = connection.and_then(|slot| self.device_at(slot));
            let device = device.or_else(|| self.broker.device_away(session).map(String::from));
            let Some(device) = device else { continue };
            let waits = (waits != 0).then_some((id, waits));
            self.wishes.push(Wish::Changed(SessionChanged { device: device.into(), waits }));
        }
        self.wishes.extend(self.broker.take_gone().into_iter().map(Wish::Gone));
        self.tell_round();
        while let Some((place, _)) = self.under_way.pop_front_if(|(_, is_safe)| *is_safe) {
            self.wishes.push(Wish::Settled(place));
            if random.bool() {
                self.place = place;
            }
        }
    }

    fn tell_round(&mut self) {
        let Some((_, told)) = self.broker.take_round() else { return };
        let Some((_, answer)) = self.rounds.take() else { return };
        let device_of = |session: SessionSlot| -> Option<Box<str>> {
            let connection = self.broker.connection_now(session).and_then(|slot| self.device_at(slot));
            connection.or_else(|| self.broker.device_away(session).map(String::from)).map(Into::into)
        };
        let mut slow: Vec<_> =
            told.slow.into_iter().filter_map(|(session, since)| Some((device_of(session)?, since))).collect();
        let mut near: Vec<_> = told.near.into_iter().filter_map(device_of).collect();
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
                return self.disconnect(&device, None, now);
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
        if qos == QoS::AtLeastOnce {
            let _ = self.broker.handle_puback(session, packet, |_| {});
            return;
        }
        let _ = self.broker.handle_pubrec(session, packet, false, |_| {});
        let reply = Qos2Reply { packet, reason: mqtt::Reason::SUCCESS, is_pubrel: true };
        if let Some(reply) = self.broker.reply_when_safe(session, reply) {
            self.hear_pubrel(device, session, reply.packet);
        }
    }

    fn hear_pubrel(&mut self, device: &str, session: SessionSlot, packet: u16) {
        self.heard.push(Heard::Released { device: device.into(), packet });
        let _ = self.broker.handle_pubcomp(session, packet);
    }
}

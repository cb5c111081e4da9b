//! A gateway of the model: the broker of one shard, in which the members are, and what serves their group.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::*;
use super::server::{Down, Link, Nats, Up};
use super::{Fault, GROUP, RECEIVE_MAXIMUM, TOPIC};
use crate::broker::{
    Arrival, Bounds, Broker, BrokerOptions, Granted, Profile, Qos2Reply, RequestEnd, SendBudget, SessionBatch, Ticket,
};
use crate::codec::mqtt::{self, Options, Packet, QoS};
use crate::config::Limits;
use crate::fleet::membership::{Ask, Membership};
use crate::link::{CloseReason, Exchange, Home, ListenerId, Publication, Reach, Refusal, WorkerEvent};
use crate::metrics::Counters;
use crate::slot::{ConnectionSlot, SessionSlot};
use crate::time::Moment;

/// By message: which members got it, as gateway and name.
pub type Got = BTreeMap<u32, Vec<(usize, String)>>;

/// Every other message is to come once.
fn qos_of(number: u32) -> QoS {
    if number.is_multiple_of(2) { QoS::ExactlyOnce } else { QoS::AtLeastOnce }
}

/// A device that has subscribed.
pub struct Member {
    name: String,
    /// `None`: it is away.
    slot: Option<ConnectionSlot>,
    /// Its session outlives its connection.
    is_kept: bool,
    /// What it has got and not acknowledged: under which identifier, and which message.
    unacknowledged: Vec<(u16, u32)>,
    /// Identifiers of messages of QoS 2 whose PUBREL has not come.
    open: BTreeSet<u16>,
}

/// A join, a leave, or a look for rows that name this gateway.
enum Walk {
    Join(Arc<str>, Membership, Ask),
    Leave(Arc<str>, Membership, Ask),
    Strays,
}

pub struct Gateway {
    pub at: usize,
    pub name: String,
    pub serving: Serving,
    wanted: GroupsWanted,
    broker: Broker,
    counters: Counters,
    pub members: Vec<Member>,
    /// What devices have acknowledged since this was looked at, or is theirs although they have not: what was sent of QoS 2 before they went
    /// [v5 MQTT-4.8.2-4, MQTT-4.8.2-5].
    pub acknowledged: Vec<u32>,
    pub link: Option<Link>,
    walks: Vec<Walk>,
    out: Vec<Effect>,
    has_news: bool,
    /// By request: what is to be heard of.
    requests: HashMap<u64, u64>,
    /// By message: what is to be heard of, where it was given last.
    given: HashMap<u32, u64>,
    /// What is known of messages, and not yet said.
    settled: Vec<(u64, bool)>,
    /// Published here while there was no connection.
    log: Vec<u32>,
    /// How often members went, or the process ended.
    pub disturbed: u32,
    slots: u32,
    names: u32,
}

fn broker(seed: u64) -> Broker {
    let limits = Limits { sessions: 10, ..Limits::default() };
    let exchange = Arc::new(Exchange::new(1));
    let (home, bounds) = (Home::new([9; 16], 1), Bounds::of(&limits, 1));
    let setup = BrokerOptions { worker: WorkerId(0), home, exchange, bounds, key: seed };
    let mut broker = Broker::new(setup, Moment::default().tick());
    broker.begin_interest();
    broker
}

impl Gateway {
    pub fn new(at: usize, random: &mut fastrand::Rng, now: Instant) -> Self {
        Self {
            at,
            name: format!("gate-{at}"),
            serving: Serving::new(random.fork(), now),
            wanted: GroupsWanted::default(),
            broker: broker(at as u64),
            counters: Counters::new(CloseReason::COUNT, Refusal::COUNT),
            members: Vec::new(),
            acknowledged: Vec::new(),
            link: None,
            walks: Vec::new(),
            out: Vec::new(),
            has_news: true,
            requests: HashMap::new(),
            given: HashMap::new(),
            settled: Vec::new(),
            log: Vec::new(),
            disturbed: 0,
            slots: 0,
            names: 0,
        }
    }

    /// Its process is no more; the next one begins with its log.
    pub fn begin_anew(&mut self, random: &mut fastrand::Rng, now: Instant) {
        let (log, disturbed, names) = (std::mem::take(&mut self.log), self.disturbed + 1, self.names);
        *self = Self { log, disturbed, names, ..Self::new(self.at, random, now) };
    }

    /// As [`crate::fleet::groups`]: at a new connection.
    pub fn connect(&mut self, mut link: Link, now: Instant, fault: Fault) {
        self.wanted.begin();
        if fault != Fault::OldQuestions {
            self.serving.begin(now);
        }
        link.up.extend(self.log.drain(..).map(Up::Publish));
        (self.link, self.has_news) = (Some(link), true);
    }

    pub fn disconnect(&mut self, now: Instant) -> Option<Link> {
        let link = self.link.take()?;
        self.walks.clear();
        self.serving.end(&mut self.wanted, now, &mut self.out);
        Some(link)
    }

    /// Groups that are held by a consumer, as far as they are served and nothing is under way.
    pub fn held(&self) -> Vec<String> {
        let is_quiet = self.walks.is_empty() && self.link.is_some();
        let held = self.serving.served.iter().filter(|(group, _)| is_quiet && self.wanted.get(group).is_some());
        held.filter_map(|(_, known)| known.consumer.as_deref().map(String::from)).collect()
    }

    /// Whether each group knows how much of what it was given is not settled.
    pub fn is_counted(&self) -> bool {
        let given = |group: &Arc<str>| self.serving.given.values().filter(|given| given.group == *group).count();
        self.serving.served.iter().all(|(group, known)| known.unsettled as usize == given(group))
    }

    pub fn is_drained(&self) -> bool {
        self.serving.given.is_empty() && self.requests.is_empty() && self.log.is_empty()
    }

    // --- Members ------------------------------------------------------------------------------------------------------

    /// A device comes: one that is away, or another one.
    pub fn come(&mut self, is_kept: bool) {
        if let Some(away) = self.members.iter().position(|member| member.slot.is_none()) {
            return self.come_back(away);
        }
        self.names += 1;
        let name = format!("member-{}", self.names);
        let slot = self.attach(&name, is_kept);
        let (unacknowledged, open) = (Vec::new(), BTreeSet::new());
        self.members.push(Member { name, slot: Some(slot), is_kept, unacknowledged, open });
        self.join(self.members.len() - 1);
    }

    fn come_back(&mut self, member: usize) {
        let name = self.members[member].name.clone();
        let slot = self.attach(&name, true);
        let known = &mut self.members[member];
        known.slot = Some(slot);
        // It comes again.
        known.unacknowledged.clear();
    }

    fn attach(&mut self, name: &str, is_kept: bool) -> ConnectionSlot {
        self.slots += 1;
        let slot = ConnectionSlot(self.slots);
        let profile = Profile {
            version: mqtt::Version::V5,
            listener: ListenerId(0),
            keep_alive_s: 0,
            expiry_s: if is_kept { u32::MAX } else { 0 },
            receive_maximum: RECEIVE_MAXIMUM,
            packet_maximum: u32::MAX,
            alias_maximum: 0,
        };
        let arrival = Arrival { connection: slot, device: name, clean_start: false, profile, will: None };
        drop(self.broker.attach(arrival, Moment::default()));
        slot
    }

    /// A member subscribes.
    pub fn join(&mut self, member: usize) {
        let session = self.session(member);
        let mut pending = self.broker.begin_filters(session, 1).expect("nothing waits");
        let granted = self.broker.subscribe(session, GROUP, Options::plain(QoS::ExactlyOnce), 0, &mut pending);
        assert_eq!(granted, Granted::Subscribed);
        pending.codes.push(2);
        drop(self.broker.end_filters(session, pending));
    }

    /// A member unsubscribes, and keeps what it has got. `false`: it waits for SUBACK.
    pub fn leave(&mut self, member: usize) -> bool {
        let session = self.session(member);
        let Some(mut pending) = self.broker.begin_filters(session, 2) else { return false };
        pending.is_unsubscribe = true;
        self.broker.unsubscribe(session, GROUP);
        pending.codes.push(0);
        drop(self.broker.end_filters(session, pending));
        true
    }

    fn session(&self, member: usize) -> SessionSlot {
        self.broker.of(self.members[member].slot.expect("it is connected")).expect("it has one")
    }

    /// Members that are connected.
    pub fn online(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|&member| self.members[member].slot.is_some()).collect()
    }

    pub fn has_away(&self) -> bool {
        self.online().len() < self.members.len()
    }

    /// Whether nothing of what it has got goes to others when it goes: what is to come once goes to nobody else.
    pub fn may_go_quietly(&self, member: usize) -> bool {
        self.members[member].unacknowledged.iter().all(|(_, number)| qos_of(*number) == QoS::ExactlyOnce)
    }

    pub fn go(&mut self, member: usize, fault: Fault) {
        let known = &mut self.members[member];
        let Some(slot) = known.slot.take() else { return };
        self.disturbed += 1;
        drop(self.broker.detach(slot, &known.name, false, Moment::default(), &mut self.counters));
        if fault == Fault::SentGoesBack {
            let sent = known.unacknowledged.iter().filter_map(|(_, number)| self.given.get(number));
            self.settled.extend(sent.map(|given| (*given, false)));
        }
        let sent = known.unacknowledged.iter().map(|(_, number)| *number);
        self.acknowledged.extend(sent.filter(|number| qos_of(*number) == QoS::ExactlyOnce));
        if !known.is_kept {
            self.members.remove(member);
        }
    }

    pub fn acknowledge_one(&mut self, random: &mut fastrand::Rng) {
        if let Some(member) = random.choice(self.online())
            && !self.members[member].unacknowledged.is_empty()
        {
            self.acknowledge(member);
        }
    }

    pub fn acknowledge_all(&mut self) {
        for member in self.online() {
            while !self.members[member].unacknowledged.is_empty() {
                self.acknowledge(member);
            }
        }
    }

    fn acknowledge(&mut self, member: usize) {
        let session = self.session(member);
        let known = &mut self.members[member];
        let (packet, number) = known.unacknowledged.remove(0);
        self.acknowledged.push(number);
        let told = |_| panic!("it is no request of the API");
        if qos_of(number) == QoS::AtLeastOnce {
            assert_eq!(self.broker.handle_puback(session, packet, told), Ok(true));
            return;
        }
        let _ = self.broker.handle_pubrec(session, packet, false, told);
        let reply = Qos2Reply { packet, reason: mqtt::Reason::SUCCESS, is_pubrel: true };
        if let Some(reply) = self.broker.reply_when_safe(session, reply) {
            self.hear_pubrel(member, reply.packet);
        }
    }

    fn hear_pubrel(&mut self, member: usize, packet: u16) {
        self.members[member].open.remove(&packet);
        let session = self.session(member);
        let _ = self.broker.handle_pubcomp(session, packet);
    }

    /// Somebody publishes here. Which groups it says are given it here.
    pub fn publish(&mut self, number: u32) -> Option<Box<str>> {
        let payload = Bytes::copy_from_slice(&number.to_be_bytes());
        let mut publication = Publication::plain(TOPIC, payload, qos_of(number));
        self.broker.send_up(&mut publication);
        let groups = publication.groups.clone();
        self.broker.publish(publication, Ticket::NOBODY, &mut self.counters);
        match &mut self.link {
            Some(link) => link.up.push_back(Up::Publish(number)),
            None => self.log.push(number),
        }
        groups.map(|all| all.iter().map(|group| group_key(group)).collect::<Vec<_>>().join(",").into())
    }

    // --- Turns --------------------------------------------------------------------------------------------------------

    /// What is to be done is done, as far as it does not wait for anybody.
    pub fn turn(&mut self, now: Instant, fault: Fault, got: &mut Got) {
        for _ in 0..4 {
            self.broker.begin_turn();
            for batch in self.broker.next_deliveries(1_000) {
                self.write(batch, got);
            }
            for (session, _) in self.broker.take_answerable() {
                drop(self.broker.take_suback(session));
            }
            if let Some(WorkerEvent::Interest { version, .. }) = self.broker.take_interest() {
                self.broker.handle_interest_held(version);
            }
            for event in self.broker.take_group_events() {
                let WorkerEvent::Group { group, life, members, room } = event else { panic!("{event:?}") };
                self.has_news = true;
                let decided = self.wanted.say(WorkerId(0), (group, life), (members, room), now);
                self.out.extend(decided.map(Effect::Tell));
            }
            for (request, end) in self.broker.take_requests() {
                if let Some(number) = self.requests.remove(&request) {
                    let is_taken = end == RequestEnd::Published || fault == Fault::LeftIsTaken;
                    self.settled.push((number, is_taken));
                }
            }
            self.serve(now, fault);
        }
    }

    fn serve(&mut self, now: Instant, fault: Fault) {
        if self.link.is_some() {
            for (number, is_taken) in std::mem::take(&mut self.settled) {
                self.serving.settle(number, is_taken, &mut self.out);
            }
            if std::mem::take(&mut self.has_news) {
                self.serving.follow(&self.wanted, now, &mut self.out);
            }
            self.serving.ask(now, &mut self.out);
        }
        for effect in std::mem::take(&mut self.out) {
            self.act(effect, fault);
        }
    }

    fn act(&mut self, effect: Effect, fault: Fault) {
        match (effect, &mut self.link) {
            (Effect::Tell(Decided { group, life, giver, .. }), _) => {
                self.broker.handle_group_served(&group, life, giver);
            }
            (Effect::Give(given), _) => self.give(*given, fault),
            (Effect::Join(group), Some(_)) => {
                self.names += 1;
                let consumer = format!("{}-{}", self.name, self.names);
                let membership = Membership::join(&self.name, &group, consumer);
                self.walks.push(Walk::Join(group, membership, Membership::first()));
            }
            (Effect::Leave(group), Some(_)) => {
                let membership = Membership::leave(&self.name, &group);
                self.walks.push(Walk::Leave(group, membership, Membership::first()));
            }
            (Effect::FindStrays, Some(_)) => self.walks.push(Walk::Strays),
            (Effect::Pull { consumer, slot, pull, .. }, Some(link)) => {
                link.up.push_back(Up::Pull { consumer: (&*consumer).into(), slot, pull });
            }
            (Effect::Say(_, Said::Underway), Some(_)) if fault == Fault::NeverUnderway => {}
            (Effect::Say(reply, Said::Back(None)), Some(link)) if fault == Fault::StrayIsTaken => {
                link.up.push_back(Up::Say(reply, Said::Taken));
            }
            (Effect::Say(reply, said), Some(link)) => link.up.push_back(Up::Say(reply, said)),
            (Effect::Touch(_), _) | (_, None) => {}
        }
    }

    fn give(&mut self, given: Given, fault: Fault) {
        let Given { number, group, topic, payload, publishing, .. } = given;
        self.given.insert(u32::from_be_bytes(payload[..].try_into().unwrap()), number);
        self.names += 1;
        let request = u64::from(self.names);
        if fault == Fault::TakenTooSoon {
            self.settled.push((number, true));
        } else {
            self.requests.insert(request, number);
        }
        let publication = Publication { reach: Reach::Elsewhere, ..Publication::plain(topic, payload, publishing.qos) };
        self.broker.give_from_fleet(request, &group, &Arc::new(publication));
    }

    fn write(&mut self, batch: SessionBatch, got: &mut Got) {
        let SessionBatch { session, generation, deliveries } = batch;
        let Some(slot) = self.broker.connection_of(session, generation) else {
            let batch = SessionBatch { session, generation, deliveries };
            return self.broker.keep(batch, Moment::default(), &mut self.counters);
        };
        let mut out = Vec::new();
        let counters = &mut self.counters;
        let mut budget = SendBudget { out: &mut out, unsent: 0, turn_bytes: 10_000, now: Moment::default(), counters };
        self.broker.write(session, deliveries, &mut budget);
        self.hear(slot, &out, got);
    }

    /// What a member is sent.
    fn hear(&mut self, slot: ConnectionSlot, mut bytes: &[u8], got: &mut Got) {
        while let Some((packet, length)) = mqtt::decode(bytes, Some(mqtt::Version::V5), 1 << 20).unwrap() {
            bytes = &bytes[length..];
            let found = self.members.iter().position(|member| member.slot == Some(slot));
            let member = found.expect("it is connected");
            match packet {
                Packet::Publish(publish) => {
                    let number = u32::from_be_bytes(publish.payload.try_into().unwrap());
                    let known = &mut self.members[member];
                    // What comes under an identifier whose PUBREL has not come is what it has.
                    if publish.qos != QoS::ExactlyOnce || known.open.insert(publish.packet_id) {
                        got.entry(number).or_default().push((self.at, known.name.clone()));
                    }
                    known.unacknowledged.push((publish.packet_id, number));
                }
                Packet::Pubrel(ack) => self.hear_pubrel(member, ack.packet_id),
                other => panic!("{other:?}"),
            }
        }
    }

    // --- From NATS ----------------------------------------------------------------------------------------------------

    /// What is due by the clock.
    pub fn look(&mut self, now: Instant) {
        if self.link.is_some() {
            self.serving.look(&mut self.wanted, now, &mut self.out);
            self.has_news = true;
        }
    }

    /// `groups`: what messages say, by number.
    pub fn arrive(&mut self, groups: impl Fn(u32) -> Option<Box<str>>, now: Instant) -> bool {
        let Some(down) = self.link.as_mut().and_then(|link| link.down.pop_front()) else { return false };
        match down {
            Down::Ended(ended) => self.serving.handle_ended(ended, now),
            Down::Came { consumer, seq, tries, number } => {
                let reply = format!("{consumer} {seq} {tries}").into();
                let payload = Bytes::copy_from_slice(&number.to_be_bytes());
                let publishing =
                    Publishing { qos: qos_of(number), groups: groups(number), ..Publishing::plain("gate") };
                let came = Came { consumer, seq, tries, reply, publication: Some((publishing, TOPIC.into(), payload)) };
                self.serving.handle_message(came, &self.wanted, 0, &mut self.out);
            }
        }
        true
    }

    /// One step of what is under way; its answer may be lost, and it may arrive late.
    pub fn walk(
        &mut self,
        nats: &mut Nats,
        random: &mut fastrand::Rng,
        (is_lost, is_late): (bool, bool),
        now: Instant,
    ) -> bool {
        if self.walks.is_empty() {
            return false;
        }
        self.has_news = true;
        let mut walk = self.walks.swap_remove(random.usize(..self.walks.len()));
        match &mut walk {
            Walk::Strays => {
                let named = nats.rows.row.iter().filter(|(_, row)| row.nodes.contains(&self.name));
                let found = named.map(|(_, row)| row.group.clone()).collect();
                self.serving.handle_strays(if is_lost { Err("nobody answers".to_owned()) } else { Ok(found) }, now);
                return true;
            }
            Walk::Join(_, membership, ask) | Walk::Leave(_, membership, ask) => {
                if is_late {
                    nats.keep_for_later(ask.clone());
                } else {
                    *ask = membership.handle(nats.answer(ask));
                }
            }
        }
        match walk {
            Walk::Join(group, ..) if is_lost || is_late => self.joined(&group, Err("nobody answers".to_owned()), now),
            Walk::Leave(group, ..) if is_lost || is_late => {
                self.serving.handle_left(&group, Err("nobody answers".to_owned()), now);
            }
            Walk::Join(group, _, Ask::Over(end)) => {
                let last = nats.stream.len() as u64;
                self.joined(&group, Ok(Joined { end, stream: "made".to_owned(), last }), now);
            }
            Walk::Leave(group, _, Ask::Over(_)) => self.serving.handle_left(&group, Ok(()), now),
            walk => self.walks.push(walk),
        }
        true
    }

    fn joined(&mut self, group: &Arc<str>, joined: Result<Joined, String>, now: Instant) {
        self.serving.handle_joined(group, joined, &mut self.wanted, now, &mut self.out);
    }
}

//! Sessions and retained messages through `kill -9`, and another number of workers: what was acknowledged is there, at QoS 2
//! once, in the order of each publisher.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::thread;

use pulsegate::codec::mqtt::{
    self, Ack, Connect, Options, Packet, Properties, PropertiesBuilder, Property, Publish, QoS, Reason, Subscribe,
    Version, Will,
};
use pulsegate::tls::handshake::ClientTls;
use rustix::process::Signal;

use crate::support::{Device, Event, Gateway, Listener, SOON, Site, giving_up, wait_until};

const OPEN: &str = "publish = [\"#\"]\nsubscribe = [\"#\"]\n";
const PACKET_MAX: usize = 1 << 16;
/// Lives of the gateway in the suite, and the variable that asks for more.
const LIVES: u32 = 5;
const LIVES_VARIABLE: &str = "CRASH_LIVES";
const PUBLISHERS: usize = 4;
const SUBSCRIBERS: usize = 3;
const WINDOW: usize = 6;

/// What the gateway says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Connack { is_present: bool },
    Suback,
    Puback(u16),
    Pubrec(u16),
    Pubrel(u16),
    Pubcomp(u16),
    Pingresp,
    Message { topic: String, payload: String, qos: u8, packet: u16, dup: bool, retain: bool },
}

/// One connection. Whatever cannot be said or heard any more: the gateway is gone.
pub(super) struct Connection {
    device: Device,
    heard: Vec<u8>,
}

/// What CONNECT asks for.
#[derive(Clone, Copy)]
pub(super) struct Greeting<'a> {
    pub(super) id: &'a str,
    pub(super) expiry_s: u32,
    /// Topic and delay in seconds.
    pub(super) will: Option<(&'a str, u32)>,
}

impl Connection {
    pub(super) fn open(address: SocketAddr, tls: &ClientTls, greeting: Greeting<'_>) -> Option<(Self, bool)> {
        // Nobody listens any more: it is gone, too.
        let socket = giving_up(TcpStream::connect(address).ok()?);
        let mut connection = Self { device: Device::raw_over(socket, tls).ok()?, heard: Vec::new() };
        let (mut properties, mut of_will) = (PropertiesBuilder::default(), PropertiesBuilder::default());
        properties.push(&Property::SessionExpiryInterval(greeting.expiry_s));
        if let Some((_, delay_s)) = greeting.will {
            of_will.push(&Property::WillDelayInterval(delay_s));
        }
        let will = greeting.will.map(|(topic, _)| Will {
            topic,
            payload: b"gone",
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: of_will.properties(),
        });
        connection.say(&Packet::Connect(Connect {
            version: Version::V5,
            client_id: greeting.id,
            clean_start: false,
            keep_alive: 0,
            will,
            username: None,
            password: None,
            properties: properties.properties(),
        }))?;
        match connection.hear()? {
            Heard::Connack { is_present } => Some((connection, is_present)),
            other => panic!("{} heard {other:?} before CONNACK", greeting.id),
        }
    }

    pub(super) fn say(&mut self, packet: &Packet<'_>) -> Option<()> {
        let mut bytes = Vec::new();
        packet.encode(Version::V5, &mut bytes);
        let wire = self.device.seal(&bytes);
        self.device.socket.write_all(&wire).ok()
    }

    pub(super) fn hear(&mut self) -> Option<Heard> {
        loop {
            if let Some((packet, length)) = mqtt::decode(&self.heard, Some(Version::V5), PACKET_MAX).unwrap() {
                let heard = match packet {
                    Packet::Connack(connack) => Heard::Connack { is_present: connack.session_present },
                    Packet::Suback(_) => Heard::Suback,
                    Packet::Puback(ack) => Heard::Puback(ack.packet_id),
                    Packet::Pubrec(ack) => Heard::Pubrec(ack.packet_id),
                    Packet::Pubrel(ack) => Heard::Pubrel(ack.packet_id),
                    Packet::Pubcomp(ack) => Heard::Pubcomp(ack.packet_id),
                    Packet::Pingresp => Heard::Pingresp,
                    Packet::Publish(publish) => Heard::Message {
                        topic: publish.topic.to_owned(),
                        payload: String::from_utf8(publish.payload.to_vec()).unwrap(),
                        qos: publish.qos as u8,
                        packet: publish.packet_id,
                        dup: publish.dup,
                        retain: publish.retain,
                    },
                    other => panic!("{other:?}"),
                };
                self.heard.drain(..length);
                return Some(heard);
            }
            match self.device.hear_within(SOON) {
                Some(Event::Data(bytes)) => self.heard.extend(bytes),
                _ => return None,
            }
        }
    }

    pub(super) fn subscribe(&mut self, filter: &str) -> Option<()> {
        let mut filters = Vec::new();
        Subscribe::put_filter(filter, Options::plain(QoS::ExactlyOnce), &mut filters);
        self.say(&Packet::Subscribe(Subscribe::new(1, Properties::EMPTY, &filters)))
    }

    pub(super) fn publish(&mut self, out: &Out) -> Option<()> {
        self.say(&Packet::Publish(Publish {
            dup: out.is_dup,
            qos: QoS::try_from(out.qos).unwrap(),
            retain: out.retain,
            topic: &out.topic,
            packet_id: out.packet,
            properties: Properties::EMPTY,
            payload: out.payload.as_bytes(),
        }))
    }

    pub(super) fn acknowledge(
        &mut self,
        packet: impl FnOnce(Ack<'static>) -> Packet<'static>,
        packet_id: u16,
    ) -> Option<()> {
        self.say(&packet(Ack { packet_id, reason: Reason::SUCCESS, properties: Properties::EMPTY }))
    }
}

/// A message on its way from a publisher.
#[derive(Clone)]
pub(super) struct Out {
    pub(super) packet: u16,
    pub(super) topic: String,
    pub(super) payload: String,
    pub(super) qos: u8,
    pub(super) retain: bool,
    pub(super) is_dup: bool,
    /// PUBREC was heard.
    pub(super) is_received: bool,
}

impl Out {
    pub(super) fn new(packet: u16, topic: &str, payload: impl Into<String>, qos: u8) -> Self {
        let payload = payload.into();
        Self { packet, topic: topic.into(), payload, qos, retain: false, is_dup: false, is_received: false }
    }
}

pub(super) fn lasting(id: &str) -> Greeting<'_> {
    Greeting { id, expiry_s: 600, will: None }
}

pub(super) fn begin(site: &Site, top: &str) -> Gateway {
    site.configure(top, &[Listener::new("mqtt", "mqtt").table("mqtt", OPEN)]);
    Gateway::start(site.directory())
}

/// Publishes one message and hears it acknowledged.
fn publish_one(connection: &mut Connection, out: &Out) {
    connection.publish(out).unwrap();
    let expected = if out.qos == 1 { Heard::Puback(out.packet) } else { Heard::Pubrec(out.packet) };
    assert_eq!(connection.hear(), Some(expected));
}

/// The next message but the will, whenever that comes: what it says, its packet identifier, and whether it comes again.
fn hear_message(connection: &mut Connection) -> (String, u16, bool) {
    loop {
        match connection.hear() {
            Some(Heard::Message { payload, .. }) if payload == "gone" => {}
            Some(Heard::Message { payload, packet, dup, .. }) => return (payload, packet, dup),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn sessions_retained_messages_and_wills_survive_kill_nine_and_other_workers() {
    let site = Site::new();
    let tls = site.tls_with(None, |options| options.alpn = &[b"mqtt"]);
    let gateway = begin(&site, "workers = 2");
    let address = gateway.address("mqtt");
    let open = |greeting| Connection::open(address, &tls, greeting).unwrap();

    // One that has a message in flight, one that is away, one whose session ends soon, one that leaves a will.
    let (mut here, is_present) = open(lasting("here"));
    assert!(!is_present);
    for (connection, name) in [(&mut here, "here"), (&mut open(lasting("away")).0, "away")] {
        connection.subscribe("a/#").unwrap();
        assert_eq!(connection.hear(), Some(Heard::Suback), "{name}");
    }
    let _short = open(Greeting { id: "short", expiry_s: 1, will: None });
    let (left, _) = open(Greeting { id: "leaves", expiry_s: 600, will: Some(("a/will", 3)) });
    drop(left);
    let (mut publisher, _) = open(lasting("publisher"));
    publish_one(&mut publisher, &Out::new(1, "a/1", "one", 1));
    publish_one(&mut publisher, &Out::new(2, "a/2", "two", 2));
    publish_one(&mut publisher, &Out { retain: true, ..Out::new(3, "kept", "the state", 1) });
    let mut in_flight = Vec::new();
    for expected in ["one", "two"] {
        let (payload, packet, dup) = hear_message(&mut here);
        assert_eq!((&*payload, dup), (expected, false));
        in_flight.push(packet);
    }
    gateway.signal(Signal::KILL);
    drop(gateway);

    let gateway = begin(&site, "workers = 3");
    let address = gateway.address("mqtt");
    let open = |greeting| Connection::open(address, &tls, greeting).unwrap();
    // Under the same identifiers, as messages that come again.
    let (mut here, is_present) = open(lasting("here"));
    assert!(is_present, "the session is there");
    for (expected, sent) in ["one", "two"].into_iter().zip(in_flight) {
        assert_eq!(hear_message(&mut here), (expected.to_owned(), sent, true));
    }
    let (mut away, is_present) = open(lasting("away"));
    assert!(is_present);
    let mut payloads = Vec::new();
    while payloads.len() < 3 {
        let Some(Heard::Message { payload, .. }) = away.hear() else { panic!("{payloads:?}") };
        payloads.push(payload);
    }
    // The will has waited for its delay, in this life or the last.
    assert_eq!(payloads.iter().filter(|payload| *payload == "gone").count(), 1);
    payloads.retain(|payload| payload != "gone");
    assert_eq!(payloads, ["one", "two"]);
    // The message of QoS 2 was received: it is not another one when it comes again.
    let (mut publisher, is_present) = open(lasting("publisher"));
    assert!(is_present);
    publisher.publish(&Out { is_dup: true, ..Out::new(2, "a/2", "two", 2) }).unwrap();
    assert_eq!(publisher.hear(), Some(Heard::Pubrec(2)));
    publisher.acknowledge(Packet::Pubrel, 2).unwrap();
    assert_eq!(publisher.hear(), Some(Heard::Pubcomp(2)));
    let (mut later, _) = open(lasting("later"));
    later.subscribe("kept").unwrap();
    assert_eq!(later.hear(), Some(Heard::Suback));
    let Some(Heard::Message { payload, retain: true, .. }) = later.hear() else { panic!("no retained message") };
    assert_eq!(payload, "the state");
    // It has been away for longer than it asked for, once that long has passed since the start.
    wait_until("the short session is over", SOON, || gateway.metric("pulsegate_mqtt_sessions_expired_total") >= 1);
    assert!(!open(Greeting { id: "short", expiry_s: 1, will: None }).1);
}

/// A publisher with a session, through all lives of the gateway.
struct Publisher {
    id: String,
    next: u32,
    out: VecDeque<Out>,
    acknowledged: BTreeSet<u32>,
}

impl Publisher {
    /// Publishes until the gateway is gone, or has acknowledged all when no `more` is to come.
    fn work(&mut self, address: SocketAddr, tls: &ClientTls, more: bool) -> Option<()> {
        let (mut connection, _) = Connection::open(address, tls, lasting(&self.id))?;
        for out in &mut self.out {
            if out.is_received {
                connection.acknowledge(Packet::Pubrel, out.packet)?;
            } else {
                connection.publish(out)?;
                out.is_dup = true;
            }
        }
        loop {
            while more && self.out.len() < WINDOW {
                self.next += 1;
                let (packet, qos) = ((self.next % 60_000 + 1) as u16, 1 + (self.next % 2) as u8);
                let out = Out::new(packet, &format!("crash/{}", self.id), self.next.to_string(), qos);
                // Whether any of it has left or none: the next connection says it again.
                self.out.push_back(Out { is_dup: true, ..out.clone() });
                connection.publish(&out)?;
            }
            if self.out.is_empty() {
                return Some(());
            }
            match connection.hear()? {
                Heard::Puback(packet) | Heard::Pubcomp(packet) => self.done(packet),
                Heard::Pubrec(packet) => {
                    let Some(out) = self.out.iter_mut().find(|out| out.packet == packet) else { continue };
                    out.is_received = true;
                    self.acknowledged.insert(out.payload.parse().unwrap());
                    connection.acknowledge(Packet::Pubrel, packet)?;
                }
                other => panic!("{}: {other:?}", self.id),
            }
        }
    }

    fn done(&mut self, packet: u16) {
        if let Some(place) = self.out.iter().position(|out| out.packet == packet)
            && let Some(out) = self.out.remove(place)
        {
            self.acknowledged.insert(out.payload.parse().unwrap());
        }
    }
}

/// A subscriber with a session, through all lives of the gateway.
struct Subscriber {
    id: String,
    has_subscribed: bool,
    /// Identifiers of QoS 2 whose PUBREL was not heard.
    open: BTreeSet<u16>,
    /// By topic and quality: what came, each when it came for the first time.
    got: BTreeMap<(String, u8), Vec<u32>>,
    count: usize,
    random: fastrand::Rng,
}

impl Subscriber {
    /// Takes messages until the gateway is gone, comes again now and then, or has `wanted` of them.
    fn work(&mut self, address: SocketAddr, tls: &ClientTls, wanted: usize) -> Option<()> {
        let (mut connection, is_present) = Connection::open(address, tls, lasting(&self.id))?;
        assert!(is_present || !self.has_subscribed, "{}: the session is gone", self.id);
        if !self.has_subscribed {
            connection.subscribe("crash/#")?;
        }
        let life = self.random.u32(20..200);
        for _ in 0..life {
            if self.has_subscribed && self.count >= wanted && self.open.is_empty() {
                return Some(());
            }
            match connection.hear()? {
                Heard::Suback => self.has_subscribed = true,
                Heard::Pubrel(packet) => {
                    self.open.remove(&packet);
                    connection.acknowledge(Packet::Pubcomp, packet)?;
                }
                Heard::Message { topic, payload, qos, packet, dup, .. } => {
                    self.take(&topic, payload.parse().unwrap(), qos, packet, dup);
                    connection.acknowledge(if qos == 1 { Packet::Puback } else { Packet::Pubrec }, packet)?;
                }
                other => panic!("{}: {other:?}", self.id),
            }
        }
        Some(())
    }

    fn take(&mut self, topic: &str, number: u32, qos: u8, packet: u16, dup: bool) {
        if qos == 2 && !self.open.insert(packet) {
            assert!(dup, "{}: {number} of {topic} came under another's identifier", self.id);
            return;
        }
        let got = self.got.entry((topic.to_owned(), qos)).or_default();
        let is_known = got.contains(&number);
        assert!(!is_known || qos == 1, "{}: {number} of {topic} came twice at QoS 2", self.id);
        if !is_known {
            let last = got.last().copied().unwrap_or(0);
            assert!(last < number, "{}: {number} of {topic} at QoS {qos} came behind {last}", self.id);
            got.push(number);
            self.count += 1;
        }
    }
}

#[test]
fn what_was_acknowledged_reaches_every_session_through_kill_nine_and_once_at_qos_2() {
    let lives = std::env::var(LIVES_VARIABLE).map_or(LIVES, |lives| lives.parse().expect("a number of lives"));
    let site = Site::new();
    let tls = site.tls_with(None, |options| options.alpn = &[b"mqtt"]);
    let mut publishers: Vec<_> = (0..PUBLISHERS)
        .map(|number| Publisher {
            id: format!("pub-{number}"),
            next: 0,
            out: VecDeque::new(),
            acknowledged: BTreeSet::new(),
        })
        .collect();
    let mut subscribers: Vec<_> = (0..SUBSCRIBERS)
        .map(|number| Subscriber {
            id: format!("sub-{number}"),
            has_subscribed: false,
            open: BTreeSet::new(),
            got: BTreeMap::new(),
            count: 0,
            random: fastrand::Rng::with_seed(number as u64),
        })
        .collect();
    let mut random = fastrand::Rng::with_seed(11);
    // Before anything is published all have subscribed.
    let gateway = begin(&site, "workers = 2");
    for subscriber in &mut subscribers {
        subscriber.work(gateway.address("mqtt"), &tls, 0).unwrap();
    }
    gateway.signal(Signal::KILL);
    drop(gateway);
    for _ in 0..lives {
        let gateway = begin(&site, &format!("workers = {}", random.u16(1..=3)));
        let address = gateway.address("mqtt");
        let further = random.u64(20..600);
        let tls = &tls;
        thread::scope(|scope| {
            // However this ends, the gateway does too, and with it whoever works with it.
            let gateway = gateway;
            for publisher in &mut publishers {
                scope.spawn(move || publisher.work(address, tls, true));
            }
            for subscriber in &mut subscribers {
                scope.spawn(move || while subscriber.work(address, tls, usize::MAX).is_some() {});
            }
            wait_until("something is acknowledged", SOON, || {
                gateway.metric("pulsegate_messages_acknowledged_total") > further
            });
            gateway.signal(Signal::KILL);
        });
    }
    // The last life: everything that was begun is brought to its end.
    let gateway = begin(&site, "workers = 2");
    let address = gateway.address("mqtt");
    thread::scope(|scope| {
        for publisher in &mut publishers {
            let tls = &tls;
            scope.spawn(move || publisher.work(address, tls, false).expect("the gateway stays"));
        }
    });
    let published: usize = publishers.iter().map(|publisher| publisher.acknowledged.len()).sum();
    assert!(publishers.iter().all(|publisher| publisher.acknowledged.len() == publisher.next as usize));
    for subscriber in &mut subscribers {
        while subscriber.count < published || !subscriber.open.is_empty() {
            subscriber.work(address, &tls, published).expect("the gateway stays");
        }
        assert_eq!(subscriber.count, published, "{}", subscriber.id);
    }
}

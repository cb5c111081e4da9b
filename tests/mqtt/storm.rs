//! A storm of takeovers at QoS 1: whatever a publisher got acknowledged reaches every session that has subscribed,
//! however often the connections on both sides change in the middle of it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::ops::Range;

use pulsegate::codec::mqtt::{
    self, Ack, Connect, Options, Packet, Properties, PropertiesBuilder, Property, Publish, QoS, Reason, Subscribe,
    Version,
};
use pulsegate::tls::handshake::ClientTls;

use crate::support::{Device, Event, Listener, SOON, Site};

const SUBSCRIBERS: usize = 10;
const PUBLISHERS: usize = 4;
/// Of each publisher.
const MESSAGES: u32 = 800;
/// Messages of a publisher that are not acknowledged yet, at most.
const WINDOW: usize = 8;
/// A connection is taken over after so many packets, by chance.
const LIFE: Range<u32> = 3..50;
/// A subscriber leaves so many packets unacknowledged before it is taken over, by chance.
const UNANSWERED: Range<u32> = 0..5;
const PACKET_MAX: usize = 1 << 16;

/// Where clients connect, and what they have in common.
struct Target<'a> {
    address: SocketAddr,
    tls: &'a ClientTls,
}

/// One client with a session that outlives its connections.
struct Client<'a> {
    target: &'a Target<'a>,
    id: String,
    version: Version,
    device: Device,
    heard: Vec<u8>,
    random: fastrand::Rng,
    /// Packets until the next takeover.
    left: u32,
    takeovers: u64,
}

/// What the gateway says to a client.
enum Heard {
    Welcome { is_back: bool },
    Subscribed,
    Acknowledged(u16),
    Message { packet_id: u16, payload: Vec<u8> },
}

impl<'a> Client<'a> {
    fn new(target: &'a Target<'a>, id: String, version: Version, seed: u64) -> Self {
        let device = Device::raw(target.address, target.tls).unwrap();
        let random = fastrand::Rng::with_seed(seed);
        let mut client = Self { target, id, version, device, heard: Vec::new(), random, left: 0, takeovers: 0 };
        client.greet(false);
        client
    }

    /// Says CONNECT, and draws how long this connection lasts.
    fn greet(&mut self, expected: bool) {
        let mut properties = PropertiesBuilder::default();
        if self.version == Version::V5 {
            properties.push(&Property::SessionExpiryInterval(600));
        }
        self.say(&Packet::Connect(Connect {
            version: self.version,
            client_id: &self.id.clone(),
            clean_start: false,
            keep_alive: 60,
            will: None,
            username: None,
            password: None,
            properties: properties.properties(),
        }));
        let Heard::Welcome { is_back } = self.hear() else { panic!("{} was not welcomed first", self.id) };
        assert_eq!(is_back, expected, "{} has its session", self.id);
        self.left = self.random.u32(LIFE);
    }

    /// Connects again while the connection that there is lives.
    fn take_over(&mut self) {
        let newer = Device::raw(self.target.address, self.target.tls).unwrap();
        let older = std::mem::replace(&mut self.device, newer);
        self.heard.clear();
        self.greet(true);
        drop(older);
        self.takeovers += 1;
    }

    /// Whether this connection has lasted long enough.
    fn is_due(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }

    fn say(&mut self, packet: &Packet<'_>) {
        let mut bytes = Vec::new();
        packet.encode(self.version, &mut bytes);
        self.device.send_plain(&bytes);
    }

    fn hear(&mut self) -> Heard {
        loop {
            if let Some((packet, length)) = mqtt::decode(&self.heard, Some(self.version), PACKET_MAX).unwrap() {
                let heard = match packet {
                    Packet::Connack(connack) => Heard::Welcome { is_back: connack.session_present },
                    Packet::Suback(_) => Heard::Subscribed,
                    Packet::Puback(ack) => Heard::Acknowledged(ack.packet_id),
                    Packet::Publish(publish) => {
                        Heard::Message { packet_id: publish.packet_id, payload: publish.payload.to_vec() }
                    }
                    other => panic!("{} heard {other:?}", self.id),
                };
                self.heard.drain(..length);
                return heard;
            }
            match self.device.hear_within(SOON) {
                Some(Event::Data(bytes)) => self.heard.extend(bytes),
                other => panic!("{} heard {other:?}", self.id),
            }
        }
    }

    fn publish(&mut self, publisher: usize, number: u32, dup: bool) {
        let payload = format!("{publisher} {number}");
        self.say(&Packet::Publish(Publish {
            dup,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic: "storm",
            packet_id: packet_id(number),
            properties: Properties::EMPTY,
            payload: payload.as_bytes(),
        }));
    }
}

fn packet_id(number: u32) -> u16 {
    u16::try_from(number + 1).unwrap()
}

/// Publishes everything until all of it is acknowledged; after a takeover, first again what is not.
fn publish_all(mut client: Client<'_>, publisher: usize) -> u64 {
    let (mut next, mut unacknowledged) = (0, VecDeque::new());
    while next < MESSAGES || !unacknowledged.is_empty() {
        if client.is_due() {
            client.take_over();
            for &number in &unacknowledged {
                client.publish(publisher, number, true);
            }
        } else if next < MESSAGES && unacknowledged.len() < WINDOW {
            client.publish(publisher, next, false);
            unacknowledged.push_back(next);
            next += 1;
        } else if let Heard::Acknowledged(id) = client.hear() {
            // One that was sent again is acknowledged again.
            unacknowledged.retain(|&number| packet_id(number) != id);
        }
    }
    client.takeovers
}

/// Takes messages until each has come. Of each publisher, they come for the first time in the order of publication.
fn take_all(mut client: Client<'_>) -> u64 {
    let mut expected = [0; PUBLISHERS];
    let mut unanswered = client.random.u32(UNANSWERED);
    while expected.iter().any(|&number| number < MESSAGES) {
        if client.is_due() {
            client.take_over();
            unanswered = client.random.u32(UNANSWERED);
        }
        let Heard::Message { packet_id, payload } = client.hear() else { continue };
        let text = String::from_utf8(payload).unwrap();
        let (publisher, number) = text.split_once(' ').unwrap();
        let (publisher, number): (usize, u32) = (publisher.parse().unwrap(), number.parse().unwrap());
        let expected = &mut expected[publisher];
        assert!(number <= *expected, "{}: of publisher {publisher}, {expected} was lost before {number}", client.id);
        *expected = (*expected).max(number + 1);
        if client.left > unanswered {
            let (reason, properties) = (Reason::SUCCESS, Properties::EMPTY);
            client.say(&Packet::Puback(Ack { packet_id, reason, properties }));
        }
    }
    client.takeovers
}

#[test]
fn nothing_acknowledged_is_lost_through_a_storm_of_takeovers() {
    let site = Site::new();
    let open = "publish = [\"#\"]\nsubscribe = [\"#\"]\n";
    let limits = "workers = 4\n[limits]\nsession_messages = 10000\nsession_bytes = 16777216";
    let gateway = site.start(limits, &[Listener::new("mqtt", "mqtt").table("mqtt", open)]);
    let tls = site.tls_with(None, |options| options.alpn = &[b"mqtt"]);
    let target = Target { address: gateway.address("mqtt"), tls: &tls };
    let version = |number: usize| if number.is_multiple_of(2) { Version::V5 } else { Version::V311 };

    let subscribers: Vec<_> = (0..SUBSCRIBERS)
        .map(|number| {
            let mut client = Client::new(&target, format!("sub-{number}"), version(number), number as u64);
            let mut filters = Vec::new();
            Subscribe::put_filter("storm", Options::plain(QoS::AtLeastOnce), &mut filters);
            client.say(&Packet::Subscribe(Subscribe::new(1, Properties::EMPTY, &filters)));
            assert!(matches!(client.hear(), Heard::Subscribed));
            client
        })
        .collect();
    let takeovers: u64 = std::thread::scope(|scope| {
        let takers = subscribers.into_iter().map(|client| scope.spawn(|| take_all(client)));
        let publishers = (0..PUBLISHERS).map(|number| {
            let client = Client::new(&target, format!("pub-{number}"), version(number), 1_000 + number as u64);
            scope.spawn(move || publish_all(client, number))
        });
        let threads: Vec<_> = takers.chain(publishers).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(takeovers > 500, "only {takeovers} takeovers");
    gateway.expect_closed("taken_over", takeovers);
}

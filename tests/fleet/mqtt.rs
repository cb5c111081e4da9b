//! A client of MQTT 3.1.1 that says and hears a packet at a time, and acknowledges what it is sent.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::support::{Device, Event, Site};
use crate::{LATE, Member};

/// A message that came.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Heard {
    pub topic: String,
    pub payload: String,
    pub qos: u8,
    /// RETAIN: it was there before.
    pub retain: bool,
}

/// What is told apart.
enum Packet {
    Message(Heard),
    /// Its first byte and its identifier.
    Answer(u8, u16),
}

pub struct Client {
    device: Device,
    bytes: Vec<u8>,
    heard: VecDeque<Heard>,
    identifier: u16,
    /// It was found here, by CONNACK.
    pub has_session: bool,
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let (mut packet, mut length) = (vec![first], body.len());
    loop {
        let more = if length > 127 { 0x80 } else { 0 };
        packet.push((length % 128) as u8 | more);
        length /= 128;
        if length == 0 {
            break;
        }
    }
    packet.extend_from_slice(body);
    packet
}

fn text(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

impl Client {
    /// One that comes to a gateway; `keeps`: its session outlives its connection.
    #[track_caller]
    pub fn come(member: &Member, id: &str, keeps: bool) -> Self {
        let mut client = Self::ask_to_come(member.gateway.address("mqtt"), &member.site, id, keeps);
        client.welcomed();
        client
    }

    /// One whose session outlives its connection, and has this subscription.
    #[track_caller]
    pub fn subscriber(member: &Member, id: &str, filter: &str) -> Self {
        let mut client = Self::come(member, id, true);
        client.subscribe(filter, 1);
        client
    }

    /// One that comes again, and finds its session.
    #[track_caller]
    pub fn back(member: &Member, id: &str) -> Self {
        let client = Self::come(member, id, true);
        assert!(client.has_session, "the session of {id} is gone");
        client
    }

    /// One that asks to come; nobody waits for CONNACK.
    pub fn ask_to_come(address: SocketAddr, site: &Site, id: &str, keeps: bool) -> Self {
        let clean = if keeps { 0 } else { 2 };
        Self::connect(address, site, &packet(0x10, &[&text("MQTT")[..], &[4, clean, 0, 0], &text(id)].concat()))
    }

    /// One of MQTT 5, whose session outlives its connection by so many seconds; with a will of this delay, in seconds. It only comes
    /// and goes.
    #[track_caller]
    pub fn come_v5(member: &Member, id: &str, is_clean: bool, expiry_s: u32, will_delay_s: Option<u32>) -> Self {
        let flags = if is_clean { 2 } else { 0 } | if will_delay_s.is_some() { 0b0000_1100 } else { 0 };
        let expiry = [&[0x11][..], &expiry_s.to_be_bytes()].concat();
        let mut body = [&text("MQTT")[..], &[5, flags, 0, 0, expiry.len() as u8], &expiry, &text(id)].concat();
        if let Some(delay_s) = will_delay_s {
            let delay = [&[0x18][..], &delay_s.to_be_bytes()].concat();
            body.extend([&[delay.len() as u8][..], &delay, &text(&format!("wills/{id}")), &text("gone")].concat());
        }
        let mut client = Self::connect(member.gateway.address("mqtt"), &member.site, &packet(0x10, &body));
        client.welcomed();
        client
    }

    fn connect(address: SocketAddr, site: &Site, connect: &[u8]) -> Self {
        let tls = site.tls_with(None, |options| options.alpn = &[]);
        let mut device = Device::raw(address, &tls).unwrap();
        device.send_plain(connect);
        Self { device, bytes: Vec::new(), heard: VecDeque::new(), identifier: 0, has_session: false }
    }

    #[track_caller]
    pub fn welcomed(&mut self) {
        let connack = self.take(Instant::now() + LATE).expect("a CONNACK");
        assert!(connack[0] == 0x20 && connack[3] == 0, "{connack:?}");
        self.has_session = connack[2] == 1;
    }

    /// Whether CONNACK has come.
    pub fn is_answered(&mut self) -> bool {
        self.device.hear_within(Duration::from_millis(1)).is_some()
    }

    /// The next whole packet.
    fn take(&mut self, deadline: Instant) -> Option<Vec<u8>> {
        loop {
            if let Some(length) = whole(&self.bytes) {
                return Some(self.bytes.drain(..length).collect());
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            match self.device.hear_within(left)? {
                Event::Data(bytes) => self.bytes.extend(bytes),
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next message, which is not answered, and its identifier.
    #[track_caller]
    pub fn unanswered(&mut self) -> (Heard, u16) {
        loop {
            let packet = self.take(Instant::now() + LATE).expect("a message");
            if packet[0] >> 4 == 3 {
                return message_of(&packet);
            }
        }
    }

    /// Says an acknowledgement.
    pub fn say(&mut self, first: u8, identifier: u16) {
        let [high, low] = identifier.to_be_bytes();
        self.device.send_plain(&[first, 2, high, low]);
    }

    /// The next that is said; a message is acknowledged.
    fn next(&mut self, deadline: Instant) -> Option<Packet> {
        let packet = self.take(deadline)?;
        if packet[0] >> 4 != 3 {
            let rest = &packet[packet.len() - remaining(&packet)..];
            return Some(Packet::Answer(packet[0], u16::from_be_bytes([rest[0], rest[1]])));
        }
        let (heard, identifier) = message_of(&packet);
        if heard.qos > 0 {
            self.say(if heard.qos == 1 { 0x40 } else { 0x50 }, identifier);
        }
        Some(Packet::Message(heard))
    }

    /// Waits for an answer; messages that come before it are kept.
    #[track_caller]
    pub fn expect(&mut self, first: u8, identifier: u16) {
        let deadline = Instant::now() + LATE;
        loop {
            match self.next(deadline).unwrap_or_else(|| panic!("no answer {first:#x}")) {
                Packet::Message(heard) => self.heard.push_back(heard),
                Packet::Answer(told, of) if (told, of) == (first, identifier) => return,
                Packet::Answer(0x62, of) => self.device.send_plain(&[0x70, 2, (of >> 8) as u8, of as u8]),
                // Of an earlier one of QoS 2 to this client.
                Packet::Answer(..) => {}
            }
        }
    }

    fn number(&mut self) -> u16 {
        self.identifier = self.identifier % u16::MAX + 1;
        self.identifier
    }

    #[track_caller]
    pub fn subscribe(&mut self, filter: &str, qos: u8) {
        self.ask_to_subscribe(&[filter], qos);
        let number = self.identifier;
        self.expect(0x90, number);
    }

    /// Without waiting for SUBACK, which [`Client::subscribed`] does.
    pub fn ask_to_subscribe(&mut self, filters: &[&str], qos: u8) {
        let number = self.number().to_be_bytes();
        let filters: Vec<u8> = filters.iter().flat_map(|filter| [text(filter), vec![qos]].concat()).collect();
        self.device.send_plain(&packet(0x82, &[&number[..], &filters].concat()));
    }

    #[track_caller]
    pub fn subscribed(&mut self) {
        let number = self.identifier;
        self.expect(0x90, number);
    }

    #[track_caller]
    pub fn unsubscribe(&mut self, filter: &str) {
        let number = self.number();
        self.device.send_plain(&packet(0xA2, &[&number.to_be_bytes()[..], &text(filter)].concat()));
        self.expect(0xB0, number);
    }

    /// Says it, and waits for no answer. Its packet identifier, if it has one.
    pub fn send(&mut self, topic: &str, payload: &str, qos: u8) -> u16 {
        self.send_with(topic, payload, qos, 0)
    }

    /// The same, with RETAIN or without.
    pub fn send_with(&mut self, topic: &str, payload: &str, qos: u8, retain: u8) -> u16 {
        let number = if qos == 0 { 0 } else { self.number() };
        self.say_publish(topic, payload, (qos, retain), number)
    }

    /// The same, under this identifier.
    pub fn send_as(&mut self, topic: &str, payload: &str, qos: u8, number: u16) -> u16 {
        self.say_publish(topic, payload, (qos, 0), number)
    }

    fn say_publish(&mut self, topic: &str, payload: &str, (qos, retain): (u8, u8), number: u16) -> u16 {
        let identifier = if qos == 0 { vec![] } else { number.to_be_bytes().to_vec() };
        let body = [&text(topic)[..], &identifier, payload.as_bytes()].concat();
        self.device.send_plain(&packet(0x30 | qos << 1 | retain, &body));
        number
    }

    /// Says it, and waits until it is acknowledged.
    #[track_caller]
    pub fn publish(&mut self, topic: &str, payload: &str, qos: u8) {
        let number = self.send(topic, payload, qos);
        self.finish(number, qos);
    }

    /// Says all of these under QoS 1, one after the other.
    #[track_caller]
    pub fn publish_all(&mut self, topic: &str, payloads: &[String]) {
        for payload in payloads {
            self.publish(topic, payload, 1);
        }
    }

    /// Says this, which is to be retained, and waits until it is acknowledged.
    #[track_caller]
    pub fn retain(&mut self, topic: &str, payload: &str, qos: u8) {
        let number = self.send_with(topic, payload, qos, 1);
        self.finish(number, qos);
    }

    #[track_caller]
    fn finish(&mut self, number: u16, qos: u8) {
        match qos {
            0 => {}
            1 => self.expect(0x40, number),
            _ => {
                self.expect(0x50, number);
                self.device.send_plain(&[0x62, 2, (number >> 8) as u8, number as u8]);
                self.expect(0x70, number);
            }
        }
    }

    /// Which of what was said under QoS 1 was acknowledged, as far as that is heard so soon.
    pub fn acknowledged(&mut self, within: Duration) -> Vec<u16> {
        let (deadline, mut numbers) = (Instant::now() + within, Vec::new());
        while let Some(packet) = self.next(deadline) {
            match packet {
                Packet::Answer(0x40, number) => numbers.push(number),
                Packet::Answer(..) => {}
                Packet::Message(heard) => self.heard.push_back(heard),
            }
        }
        numbers
    }

    /// The next message.
    pub fn message(&mut self, within: Duration) -> Option<Heard> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return Some(heard);
            }
            match self.next(deadline)? {
                Packet::Message(heard) => return Some(heard),
                Packet::Answer(0x62, of) => self.device.send_plain(&[0x70, 2, (of >> 8) as u8, of as u8]),
                Packet::Answer(..) => {}
            }
        }
    }

    /// Takes and acknowledges what has come; [`Client::message`] tells it.
    pub fn take_all(&mut self) {
        while let Some(packet) = self.next(Instant::now() + Duration::from_millis(1)) {
            if let Packet::Message(heard) = packet {
                self.heard.push_back(heard);
            }
        }
    }

    /// Messages that came before an answer that was waited for.
    pub fn heard(&mut self) -> impl Iterator<Item = Heard> + '_ {
        self.heard.drain(..)
    }

    /// The next message, which is this one.
    #[track_caller]
    pub fn hears(&mut self, topic: &str, payload: &str, qos: u8) {
        let heard = self.message(LATE).unwrap_or_else(|| panic!("{topic:?} {payload:?} does not come"));
        assert_eq!(heard, Heard { topic: topic.to_owned(), payload: payload.to_owned(), qos, retain: false });
    }

    /// What is there of retained messages under a filter, in order of topics: until nothing more comes for so long.
    #[track_caller]
    pub fn finds(&mut self, filter: &str, quiet: Duration) -> Vec<(String, String)> {
        self.looks(filter, quiet).expect("nothing is published meanwhile")
    }

    /// The same; `None`: something was published meanwhile that it matches.
    #[track_caller]
    pub fn looks(&mut self, filter: &str, quiet: Duration) -> Option<Vec<(String, String)>> {
        self.subscribe(filter, 1);
        let (mut found, mut is_alone) = (Vec::new(), true);
        while let Some(heard) = self.message(quiet) {
            is_alone &= heard.retain;
            found.push((heard.topic, heard.payload));
        }
        found.sort();
        is_alone.then_some(found)
    }

    /// Goes in order.
    pub fn leave(mut self) {
        self.device.send_plain(&[0xE0, 0]);
        // The gateway ends the connection when it has heard that.
        while self.device.hear_within(LATE).is_some_and(|event| matches!(event, Event::Data(_))) {}
    }

    /// Goes without a goodbye.
    pub fn cut(self) {
        self.device.reset();
    }
}

/// A message, and its identifier; 0: it has none.
fn message_of(packet: &[u8]) -> (Heard, u16) {
    let rest = &packet[packet.len() - remaining(packet)..];
    let number = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    let qos = packet[0] >> 1 & 3;
    let end = 2 + usize::from(number(0));
    let topic = String::from_utf8(rest[2..end].to_vec()).unwrap();
    let (begin, identifier) = if qos == 0 { (end, 0) } else { (end + 2, number(end)) };
    let (payload, retain) = (String::from_utf8(rest[begin..].to_vec()).unwrap(), packet[0] & 1 == 1);
    (Heard { topic, payload, qos, retain }, identifier)
}

/// How long the first packet is, if all of it is there.
fn whole(bytes: &[u8]) -> Option<usize> {
    let (mut length, mut at) = (0_usize, 1);
    loop {
        let byte = *bytes.get(at)?;
        length |= usize::from(byte & 0x7F) << (7 * (at - 1));
        at += 1;
        if byte < 0x80 {
            break;
        }
    }
    (bytes.len() >= at + length).then_some(at + length)
}

/// What follows a whole packet's length.
fn remaining(packet: &[u8]) -> usize {
    let lengths = packet[1..].iter().take_while(|byte| **byte >= 0x80).count() + 1;
    packet.len() - 1 - lengths
}

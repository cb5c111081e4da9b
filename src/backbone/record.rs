//! One event as bytes: what it takes in the ring is what it says, and little more.
//!
//! ```text
//!           ┌── kind: 0 connected, 1 disconnected, 2 message, 3 takeover loop
//! record    kind u8 | worker | at | device length | device | …
//! presence  … listener u8 | cause u8 | generation | sequence | last heard, before at | peer | identity | detail
//! message   … topic length | topic | payload: the rest
//! loop      … listener u8 | peer
//! ```
//!
//! Numbers without a width are LEB128, texts have their length before them, times are milliseconds; a peer is its family (0:
//! unknown, 4, 6), its address and its port. A presence event of a device with a twelve-byte id takes some 40 bytes. Records never leave the process, so a wrong one is our own error and panics.

use std::net::{IpAddr, SocketAddr};

use crate::link::{CloseReason, ListenerId, Message, Presence, TakeoverLoop, WorkerId};
use crate::time::Moment;

const CONNECTED: u8 = 0;
const DISCONNECTED: u8 = 1;
const MESSAGE: u8 = 2;
const TAKEOVER_LOOP: u8 = 3;
/// Of what is said of an end, so much is kept.
pub const DETAIL_BYTES_MAX: usize = 200;
/// The cause of an event that has none.
const NO_CAUSE: u8 = u8::MAX;

/// Something that the owner's backend may want to hear of. Node and epoch are the same for the whole process and are
/// added where the event leaves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The device's home worker.
    pub worker: WorkerId,
    /// The id of the device.
    pub device: &'a str,
    /// When; to a millisecond once it was held.
    pub at: Moment,
    /// What happened to it.
    pub what: What<'a>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What<'a> {
    /// A device came.
    Connected(Facts<'a>),
    /// A device went, and why.
    Disconnected(Facts<'a>, CloseReason),
    /// A device said something.
    Message {
        /// Under which topic.
        topic: &'a str,
        /// The payload: opaque bytes.
        payload: &'a [u8],
    },
    /// Two places take its id from each other again and again: newcomers wait from now on.
    TakeoverLoop {
        /// Through which listener the first of them came.
        listener: ListenerId,
        /// From where, if that is known.
        peer: Option<SocketAddr>,
    },
}

/// What belongs to a presence event besides who and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts<'a> {
    /// Through which listener.
    pub listener: ListenerId,
    /// Which of the device's connections.
    pub generation: u64,
    /// The event's place among all presence events of its worker.
    pub sequence: u64,
    /// When the device was last heard; never after the event.
    pub last_heard: Moment,
    /// From where it came, if that is known.
    pub peer: Option<SocketAddr>,
    /// How its id was learned.
    pub identity: &'a str,
    /// What can be said of its end besides the cause; at most [`DETAIL_BYTES_MAX`].
    pub detail: &'a str,
}

/// The kinds of events, by the word that names them outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A device came.
    Connected = CONNECTED,
    /// A device went.
    Disconnected = DISCONNECTED,
    /// A device said something.
    Message = MESSAGE,
    /// Two places fight over a device's id.
    TakeoverLoop = TAKEOVER_LOOP,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 4] = [Kind::Connected, Kind::Disconnected, Kind::Message, Kind::TakeoverLoop];

    /// Its word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Kind::Connected => "connected",
            Kind::Disconnected => "disconnected",
            Kind::Message => "message",
            Kind::TakeoverLoop => "takeover_loop",
        }
    }
}

impl<'a> Event<'a> {
    /// The arrival of a device.
    #[must_use]
    pub fn connected(worker: WorkerId, presence: &'a Presence) -> Self {
        let what = What::Connected(Facts::of(presence));
        Self { worker, device: &presence.device, at: presence.at, what }
    }

    /// The end of a device's connection.
    #[must_use]
    pub fn disconnected(worker: WorkerId, presence: &'a Presence, cause: CloseReason) -> Self {
        let what = What::Disconnected(Facts::of(presence), cause);
        Self { worker, device: &presence.device, at: presence.at, what }
    }

    /// What a device said, taken `at`.
    #[must_use]
    pub fn message(worker: WorkerId, message: &'a Message, at: Moment) -> Self {
        let what = What::Message { topic: &message.topic, payload: &message.payload };
        Self { worker, device: &message.device, at, what }
    }

    /// A fight over a device's id.
    #[must_use]
    pub fn takeover_loop(worker: WorkerId, told: &'a TakeoverLoop) -> Self {
        let what = What::TakeoverLoop { listener: told.listener, peer: told.peer };
        Self { worker, device: &told.device, at: told.at, what }
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.what {
            What::Connected(_) => Kind::Connected,
            What::Disconnected(..) => Kind::Disconnected,
            What::Message { .. } => Kind::Message,
            What::TakeoverLoop { .. } => Kind::TakeoverLoop,
        }
    }

    /// Appends the event's record to `out`.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let at = self.at.micros() / 1_000;
        out.push(self.kind() as u8);
        put(out, u64::from(self.worker.0));
        put(out, at);
        put(out, self.device.len() as u64);
        out.extend_from_slice(self.device.as_bytes());
        match &self.what {
            What::Connected(facts) => facts.encode(NO_CAUSE, at, out),
            What::Disconnected(facts, cause) => facts.encode(*cause as u8, at, out),
            What::Message { topic, payload } => {
                put(out, topic.len() as u64);
                out.extend_from_slice(topic.as_bytes());
                out.extend_from_slice(payload);
            }
            What::TakeoverLoop { listener, peer } => {
                out.push(listener.0);
                put_peer(out, *peer);
            }
        }
    }

    /// The event of a record that [`Event::encode`] made.
    pub(super) fn decode(record: &'a [u8]) -> Self {
        let mut rest = record;
        let kind = take(&mut rest, 1)[0];
        let worker = WorkerId(get(&mut rest) as u16);
        let at = get(&mut rest);
        let device = take_text(&mut rest);
        let what = match kind {
            CONNECTED => What::Connected(Facts::decode(&mut rest, at).0),
            DISCONNECTED => {
                let (facts, cause) = Facts::decode(&mut rest, at);
                What::Disconnected(facts, CloseReason::ALL[usize::from(cause)])
            }
            MESSAGE => {
                let topic = take_text(&mut rest);
                What::Message { topic, payload: rest }
            }
            TAKEOVER_LOOP => {
                let listener = ListenerId(take(&mut rest, 1)[0]);
                What::TakeoverLoop { listener, peer: take_peer(&mut rest) }
            }
            other => unreachable!("a record of kind {other}"),
        };
        Self { worker, device, at: Moment::from_micros(at * 1_000), what }
    }
}

impl<'a> Facts<'a> {
    fn of(presence: &'a Presence) -> Self {
        let &Presence { listener, generation, sequence, last_heard, ref facts, .. } = presence;
        let detail = shortened(&facts.detail);
        Self { listener, generation, sequence, last_heard, peer: facts.peer, identity: facts.identity, detail }
    }

    fn encode(&self, cause: u8, at: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.listener.0, cause]);
        put(out, self.generation);
        put(out, self.sequence);
        put(out, at.saturating_sub(self.last_heard.micros() / 1_000));
        put_peer(out, self.peer);
        put_text(out, self.identity);
        put_text(out, self.detail);
    }

    fn decode(rest: &mut &'a [u8], at: u64) -> (Self, u8) {
        let fixed = take(rest, 2);
        let (listener, cause) = (ListenerId(fixed[0]), fixed[1]);
        let (generation, sequence) = (get(rest), get(rest));
        let last_heard = Moment::from_micros((at - get(rest)) * 1_000);
        let peer = take_peer(rest);
        let (identity, detail) = (take_text(rest), take_text(rest));
        (Self { listener, generation, sequence, last_heard, peer, identity, detail }, cause)
    }
}

/// The beginning of a detail, to a whole character.
fn shortened(detail: &str) -> &str {
    &detail[..detail.floor_char_boundary(DETAIL_BYTES_MAX)]
}

fn put_peer(out: &mut Vec<u8>, peer: Option<SocketAddr>) {
    match peer {
        None => return out.push(0),
        Some(SocketAddr::V4(peer)) => {
            out.push(4);
            out.extend_from_slice(&peer.ip().octets());
        }
        Some(SocketAddr::V6(peer)) => {
            out.push(6);
            out.extend_from_slice(&peer.ip().octets());
        }
    }
    out.extend_from_slice(&peer.map_or(0, |peer| peer.port()).to_be_bytes());
}

fn take_peer(rest: &mut &[u8]) -> Option<SocketAddr> {
    let ip: IpAddr = match take(rest, 1)[0] {
        0 => return None,
        4 => <[u8; 4]>::try_from(take(rest, 4)).expect("four bytes were taken").into(),
        _ => <[u8; 16]>::try_from(take(rest, 16)).expect("sixteen bytes were taken").into(),
    };
    let port = take(rest, 2);
    Some((ip, u16::from_be_bytes([port[0], port[1]])).into())
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Appends a number: seven bits a byte, the lowest first, the top bit where more follow.
pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Takes a number off the front.
pub(super) fn get(rest: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return number;
        }
    }
    unreachable!("a number of more than ten bytes")
}

/// Takes `length` bytes off the front.
pub(super) fn take<'a>(rest: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, left) = rest.split_at(length);
    *rest = left;
    taken
}

fn take_text<'a>(rest: &mut &'a [u8]) -> &'a str {
    let length = get(rest) as usize;
    std::str::from_utf8(take(rest, length)).expect("it was text when it was written")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Moment {
        Moment::from_micros(millis * 1_000)
    }

    #[test]
    fn what_is_encoded_is_what_was_said() {
        let facts = |last_heard, peer: &str, detail| {
            let (generation, identity, peer) = (1 << 40, "cert-cn", peer.parse().ok());
            Facts { listener: ListenerId(63), generation, sequence: 300, last_heard, peer, identity, detail }
        };
        let events = [
            What::Connected(facts(millis(0), "", "")),
            What::Connected(facts(millis(0), "192.0.2.7:40000", "")),
            What::Disconnected(facts(millis(86_400_000), "[2001:db8::7]:1", "wörtlich"), CloseReason::Shutdown),
            What::Message { topic: "", payload: b"" },
            What::Message { topic: "zähler/1", payload: &[0, 0xff, 0x80] },
            What::TakeoverLoop { listener: ListenerId(63), peer: "192.0.2.7:40000".parse().ok() },
            What::TakeoverLoop { listener: ListenerId(0), peer: None },
        ]
        .map(|what| Event { worker: WorkerId(63), device: "meter-ä", at: millis(86_400_000), what });
        for event in events {
            let mut record = Vec::new();
            event.encode(&mut record);
            assert_eq!(Event::decode(&record), event);
        }
    }

    #[test]
    fn a_long_detail_is_cut_at_a_whole_character() {
        assert_eq!(shortened("short"), "short");
        let long = "é".repeat(DETAIL_BYTES_MAX);
        assert_eq!(shortened(&long).len(), DETAIL_BYTES_MAX);
        assert_eq!(shortened(&format!("x{long}")).len(), DETAIL_BYTES_MAX - 1);
    }

    #[test]
    fn numbers_take_what_they_need() {
        for (number, length) in [(0, 1), (127, 1), (128, 2), (u64::from(u32::MAX), 5), (u64::MAX, 10)] {
            let mut out = Vec::new();
            put(&mut out, number);
            assert_eq!(out.len(), length);
            assert_eq!(get(&mut &*out), number);
        }
    }

    #[test]
    fn presence_is_small() {
        let (last_heard, peer) = (millis(99_990), "192.0.2.7:40000".parse().ok());
        let (identity, detail) = ("hello", "");
        let facts =
            Facts { listener: ListenerId(0), generation: 12_000, sequence: 12_000, last_heard, peer, identity, detail };
        let what = What::Connected(facts);
        let event = Event { worker: WorkerId(1), device: "device-12345", at: millis(100_000), what };
        let mut record = Vec::new();
        event.encode(&mut record);
        assert!(record.len() <= 41, "{}", record.len());
    }
}

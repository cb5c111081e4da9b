//! One event as bytes: what it takes in the ring is what it says, and little more.
//!
//! ```text
//!           ┌── kind: 0 connected, 1 disconnected, 2 message
//! record    kind u8 | worker | at | device length | device | …
//! presence  … listener u8 | cause u8 | generation | sequence | last heard, before at
//! message   … topic length | topic | payload: the rest
//! ```
//!
//! Numbers without a width are LEB128, times are milliseconds: a presence event of a device with a twelve-byte id takes
//! 27 bytes. Records never leave the process, so a wrong one is our own error and panics.

use crate::link::{CloseReason, ListenerId, Message, Presence, WorkerId};
use crate::time::Moment;

const CONNECTED: u8 = 0;
const DISCONNECTED: u8 = 1;
const MESSAGE: u8 = 2;
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
    Connected(Facts),
    /// A device went, and why.
    Disconnected(Facts, CloseReason),
    /// A device said something.
    Message {
        /// Under which topic.
        topic: &'a str,
        /// The payload: opaque bytes.
        payload: &'a [u8],
    },
}

/// What belongs to a presence event besides who and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Through which listener.
    pub listener: ListenerId,
    /// Which of the device's connections.
    pub generation: u64,
    /// The event's place among all presence events of its worker.
    pub sequence: u64,
    /// When the device was last heard; never after the event.
    pub last_heard: Moment,
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
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 3] = [Kind::Connected, Kind::Disconnected, Kind::Message];

    /// Its word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Kind::Connected => "connected",
            Kind::Disconnected => "disconnected",
            Kind::Message => "message",
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

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.what {
            What::Connected(_) => Kind::Connected,
            What::Disconnected(..) => Kind::Disconnected,
            What::Message { .. } => Kind::Message,
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
            other => unreachable!("a record of kind {other}"),
        };
        Self { worker, device, at: Moment::from_micros(at * 1_000), what }
    }
}

impl Facts {
    fn of(presence: &Presence) -> Self {
        let &Presence { listener, generation, sequence, last_heard, .. } = presence;
        Self { listener, generation, sequence, last_heard }
    }

    fn encode(&self, cause: u8, at: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.listener.0, cause]);
        put(out, self.generation);
        put(out, self.sequence);
        put(out, at.saturating_sub(self.last_heard.micros() / 1_000));
    }

    fn decode(rest: &mut &[u8], at: u64) -> (Self, u8) {
        let fixed = take(rest, 2);
        let (listener, cause) = (ListenerId(fixed[0]), fixed[1]);
        let (generation, sequence) = (get(rest), get(rest));
        let last_heard = Moment::from_micros((at - get(rest)) * 1_000);
        (Self { listener, generation, sequence, last_heard }, cause)
    }
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
        let facts = |last_heard| Facts { listener: ListenerId(63), generation: 1 << 40, sequence: 300, last_heard };
        let events = [
            What::Connected(facts(millis(0))),
            What::Disconnected(facts(millis(86_400_000)), CloseReason::Shutdown),
            What::Message { topic: "", payload: b"" },
            What::Message { topic: "zähler/1", payload: &[0, 0xff, 0x80] },
        ]
        .map(|what| Event { worker: WorkerId(63), device: "meter-ä", at: millis(86_400_000), what });
        for event in events {
            let mut record = Vec::new();
            event.encode(&mut record);
            assert_eq!(Event::decode(&record), event);
        }
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
        let facts = Facts { listener: ListenerId(0), generation: 12_000, sequence: 12_000, last_heard: millis(99_990) };
        let what = What::Connected(facts);
        let event = Event { worker: WorkerId(1), device: "device-12345", at: millis(100_000), what };
        let mut record = Vec::new();
        event.encode(&mut record);
        assert!(record.len() <= 27, "{}", record.len());
    }
}

//! A device as it sees itself.

use std::collections::{BTreeMap, HashSet};

use tokio::time::Instant;

use super::wills::End;
use crate::codec::mqtt::QoS;

/// What each of them subscribes to.
pub const TOPICS: [&str; 2] = ["a", "b"];

/// How a device comes.
#[derive(Clone, Copy, Debug)]
pub struct Coming {
    /// Which of all connections this is.
    pub serial: u64,
    /// It wants a new session.
    pub is_clean: bool,
    /// How long its will waits, if it has one.
    pub delay_s: Option<u32>,
}

/// What a shard says to devices and publishers, and to the fleet.
#[derive(Debug)]
pub enum Heard {
    /// A device is here,
    Came {
        device: Box<str>,
        serial: u64,
        since: Instant,
    },
    /// and has its session.
    Attached {
        serial: u64,
    },
    /// It is known where its session is; or it is to come again.
    Settled {
        device: String,
        goes_on: bool,
    },
    Greeted {
        device: Box<str>,
        serial: u64,
        was_present: bool,
    },
    Subscribed {
        device: Box<str>,
    },
    Message {
        device: Box<str>,
        serial: u64,
        number: u32,
        packet: u16,
        qos: QoS,
    },
    Released {
        device: Box<str>,
        packet: u16,
    },
    Ended {
        device: Box<str>,
        serial: u64,
        end: End,
    },
    /// The will of a connection is published.
    Willed {
        serial: u64,
        is_sure: bool,
    },
    /// A message that was published here is safe here.
    Safe {
        number: u32,
    },
}

/// See the head of this file.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "a device knows each of them by itself")]
pub struct Device {
    pub name: String,
    /// Where it is connected: the gateway and the connection.
    pub place: Option<(usize, u64)>,
    pub is_greeted: bool,
    /// It has a session somewhere.
    pub has_session: bool,
    /// SUBACK has come, and any gateway could know.
    pub has_subscribed: bool,
    pub asked_at: Option<Instant>,
    /// Which of its sessions: of those before nothing is owed.
    pub epoch: u32,
    /// It was greeted while NATS was away: what its session is to be like is between two gateways.
    pub is_between: bool,
    /// It has asked for a new session with its latest connection.
    pub is_clean: bool,
    /// When it was last greeted with a new session that it had asked for.
    pub began_anew: Option<Instant>,
    /// It stays away until then.
    pub away_until: Option<Instant>,
    /// Since when it has connections at several gateways that all work.
    pub double_since: Option<Instant>,
    /// Messages of QoS 2 whose PUBREL has not come.
    open: HashSet<u16>,
    pub got: BTreeMap<u32, u32>,
}

impl Device {
    pub fn new(name: String) -> Self {
        Self { name, ..Self::default() }
    }

    pub fn is_at(&self, at: usize, serial: u64) -> bool {
        self.place == Some((at, serial))
    }

    pub fn leave(&mut self) {
        (self.place, self.is_greeted, self.asked_at) = (None, false, None);
    }

    /// Its session is another one.
    pub fn begin_anew(&mut self) {
        self.epoch += 1;
        self.has_subscribed = false;
        self.open.clear();
    }

    pub fn take(&mut self, number: u32, packet: u16, qos: QoS) {
        // What comes under an identifier whose PUBREL has not come is what it has.
        if qos != QoS::ExactlyOnce || self.open.insert(packet) {
            *self.got.entry(number).or_default() += 1;
        }
    }

    pub fn release(&mut self, packet: u16) {
        self.open.remove(&packet);
    }
}

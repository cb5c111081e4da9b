//! One device: what it believes of its session, and what it keeps between its connections.

use std::collections::BTreeSet;

use pulsegate::codec::mqtt::{Ack, Connect, Packet, Properties, PropertiesBuilder, Property, QoS, Version, Will};
use pulsegate::time::Moment;

use super::client::Client;
use super::ledger::Account;
use super::world::{FOR_A_WHILE, KEEP_ALIVE};
use crate::network::SocketId;

/// How long a device wants its session to be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    Nothing,
    ForAWhile,
    ForEver,
}

/// What a device believes of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Belief {
    None,
    Kept,
    /// A CONNECT was sent whose answer never came.
    Unknown,
}

pub struct Connection {
    pub socket: SocketId,
    pub client: Client,
    pub is_welcomed: bool,
    pub clean_start: bool,
    /// Sealed bytes that leave later.
    pub is_sending: bool,
    pub said_at: Moment,
}

/// A message of the device's own that the gateway has not acknowledged for good.
#[derive(Clone, Copy)]
pub struct Inflight {
    pub packet_id: u16,
    pub number: u32,
    pub is_released: bool,
}

pub struct Device {
    pub number: usize,
    /// The number of the neighbourhood that it speaks with.
    pub neighbourhood: usize,
    pub name: String,
    pub version: Version,
    pub keeps: Keeps,
    pub connection: Option<Connection>,
    pub belief: Belief,
    /// When its connection was surely alive for the last time, and when it had surely ended.
    pub last_alive: Moment,
    pub account: Account,
    pub inflight: Vec<Inflight>,
    pub next_id: u16,
    /// Messages of QoS 2 that came and are not released.
    pub open_qos_2: BTreeSet<u16>,
    pub will: Option<u32>,
    /// The will that its last goodbye lets be forgotten, and when that was said.
    pub goodbye: Option<(u32, Moment)>,
    /// Connections begun so far: what was planned for an older one is void.
    pub connects: u32,
}

impl Device {
    pub fn new(number: usize, neighbourhood: usize, random: &mut fastrand::Rng) -> Self {
        let keeps = [Keeps::Nothing, Keeps::ForAWhile, Keeps::ForEver][number % 3];
        let is_old = keeps != Keeps::ForAWhile && random.bool();
        Self {
            number,
            neighbourhood,
            name: format!("device-{number}"),
            version: if is_old { Version::V311 } else { Version::V5 },
            keeps,
            connection: None,
            belief: Belief::None,
            last_alive: Moment::default(),
            account: Account::default(),
            inflight: Vec::new(),
            next_id: 0,
            open_qos_2: BTreeSet::new(),
            will: None,
            goodbye: None,
            connects: 0,
        }
    }

    pub fn will_topic(&self) -> String {
        format!("w/{}/{}", self.neighbourhood, self.number)
    }

    pub fn connect_packet(&mut self, clean_start: bool, will: Option<u32>) -> Vec<u8> {
        let mut properties = PropertiesBuilder::default();
        if self.version == Version::V5 {
            properties.push(&Property::SessionExpiryInterval(match self.keeps {
                Keeps::Nothing => 0,
                Keeps::ForAWhile => FOR_A_WHILE.as_secs() as u32,
                Keeps::ForEver => u32::MAX,
            }));
        }
        let topic = self.will_topic();
        let payload = will.map(u32::to_be_bytes);
        let will = payload.as_ref().map(|payload| Will {
            topic: &topic,
            payload,
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: Properties::EMPTY,
        });
        let connect = Connect {
            version: self.version,
            client_id: &self.name,
            clean_start,
            keep_alive: KEEP_ALIVE.as_secs() as u16,
            will,
            username: None,
            password: None,
            properties: properties.properties(),
        };
        let mut plain = Vec::new();
        Packet::Connect(connect).encode(self.version, &mut plain);
        if self.belief == Belief::None || self.belief == Belief::Kept {
            // Until the answer comes, nobody knows whether it was heard.
            self.belief = Belief::Unknown;
        }
        plain
    }

    /// Whether CONNACK must say that the session is there; `None`: it may or may not.
    pub fn expects_session(&self, now: Moment) -> Option<bool> {
        match self.keeps {
            Keeps::Nothing => Some(false),
            _ if self.account.begun == 0 => None,
            Keeps::ForEver => Some(true),
            // It ends so much after the gateway has noticed the end of the connection: not before its last word.
            Keeps::ForAWhile => (now.since(self.last_alive) < FOR_A_WHILE).then_some(true),
        }
    }

    pub fn end_session(&mut self) {
        self.account = Account::default();
        self.inflight.clear();
        self.open_qos_2.clear();
        self.belief = Belief::None;
    }

    /// SUBSCRIBE and UNSUBSCRIBE that were lost with their connection: nobody knows whether they were heard.
    pub fn forget_unanswered(&mut self) {
        for subscription in self.account.subscriptions.values_mut() {
            subscription.packet_id = 0;
            if subscription.ending.is_some() {
                subscription.ending = Some(0);
            }
        }
    }

    pub fn take_id(&mut self) -> u16 {
        self.next_id = self.next_id % 60_000 + 1;
        self.next_id
    }

    /// The message under this packet identifier is done with.
    pub fn finish(&mut self, packet_id: u16) -> u32 {
        let position = self.inflight.iter().position(|one| one.packet_id == packet_id);
        let position =
            position.unwrap_or_else(|| panic!("{}: {packet_id} is acknowledged and was not sent", self.name));
        self.inflight.remove(position).number
    }

    pub fn say_ack(&mut self, packet: impl Fn(Ack<'static>) -> Packet<'static>, packet_id: u16) {
        if let Some(connection) = &mut self.connection {
            connection.client.acknowledge(packet, packet_id);
        }
    }
}

//! One connection to the broker: opened, used until anything goes wrong with it, thrown away, opened anew.
//!
//! The library speaks the protocol; which messages are under way is the window's to know. So of a connection that broke
//! nothing is kept, and what it had under way goes through the next one in its order.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{ConnAckProperties, Publish, PublishProperties, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, EventLoop, MqttOptions};
use rumqttc::{TlsConfiguration, Transport};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::commands::COMMANDS_MAX;
use super::{Heard, MqttTarget};
use crate::sink::backoff::Backoff;

/// The largest packet taken from the broker: a command of the longest payload, with its properties.
const PACKET_BYTES_MAX: u32 = 128 << 10;

/// What is published.
pub(super) struct Message {
    pub(super) topic: String,
    pub(super) payload: Bytes,
    /// The same whenever it is sent.
    pub(super) id: String,
    /// When it was said, RFC 3339.
    pub(super) at: String,
}

impl Message {
    fn properties(&self) -> PublishProperties {
        let property = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let user_properties = vec![property("pulsegate-id", &self.id), property("pulsegate-at", &self.at)];
        PublishProperties { user_properties, ..PublishProperties::default() }
    }
}

enum State {
    /// To be opened at this time.
    Down(Instant),
    Opening,
    Up,
}

/// One connection, through all its lives.
pub(super) struct Lane {
    number: usize,
    state: State,
    backoff: Backoff,
    /// Counts them: what an earlier one says late is not heard.
    life: u64,
    heard: mpsc::Sender<Heard>,
    client: Option<(AsyncClient, JoinHandle<()>)>,
    /// Given to the client, which has not numbered them yet.
    unnumbered: VecDeque<u64>,
    /// By packet identifier.
    numbered: HashMap<u16, u64>,
    limit: usize,
    packet_bytes_max: Option<u32>,
    /// When something was last acknowledged, or sent while nothing was under way.
    progress: Instant,
    /// The event that was refused last, and how often.
    refusals: (u64, u32),
}

impl Lane {
    pub(super) fn new(number: usize, retry: (Duration, Duration), seed: u64, heard: mpsc::Sender<Heard>) -> Self {
        let now = Instant::now();
        Self {
            number,
            state: State::Down(now),
            backoff: Backoff::new(retry, seed),
            life: 0,
            heard,
            client: None,
            unnumbered: VecDeque::new(),
            numbered: HashMap::new(),
            limit: 0,
            packet_bytes_max: None,
            progress: now,
            refusals: (0, 0),
        }
    }

    pub(super) fn life(&self) -> u64 {
        self.life
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Up)
    }

    /// How many may be under way.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn client(&self) -> Option<&AsyncClient> {
        self.client.as_ref().map(|(client, _)| client)
    }

    pub(super) fn open_if_due(&mut self, target: &MqttTarget, now: Instant) {
        if !matches!(self.state, State::Down(at) if at <= now) {
            return;
        }
        let (client, mut events) = self.connect(target);
        self.life += 1;
        let (number, life, heard) = (self.number, self.life, self.heard.clone());
        let pump = tokio::spawn(async move {
            loop {
                let event = events.poll().await;
                let is_last = event.is_err();
                if heard.send((number, life, event)).await.is_err() || is_last {
                    return;
                }
            }
        });
        self.client = Some((client, pump));
        (self.state, self.progress) = (State::Opening, now);
    }

    fn connect(&self, target: &MqttTarget) -> (AsyncClient, EventLoop) {
        let config = &target.config;
        let mut options =
            MqttOptions::new(format!("{}-{}", config.client_id, self.number), config.host.clone(), config.port);
        let takes_commands = self.number == 0 && config.commands.is_some();
        let session = if takes_commands { config.command_session.as_secs() as u32 } else { 0 };
        options
            .set_keep_alive(config.keep_alive)
            .set_connection_timeout(target.timeout.as_secs().max(1))
            .set_clean_start(session == 0)
            .set_session_expiry_interval(Some(session))
            .set_receive_maximum(Some(COMMANDS_MAX as u16))
            .set_max_packet_size(Some(PACKET_BYTES_MAX))
            .set_outgoing_inflight_upper_limit(config.inflight)
            .set_manual_acks(true);
        if let Some(username) = &config.username {
            let password = target.password.as_ref().map_or("", |password| password.as_str());
            options.set_credentials(username.clone(), password);
        }
        if let Some(tls) = &target.tls {
            options.set_transport(Transport::Tls(TlsConfiguration::Rustls(tls.rustls.clone())));
        }
        // So many as can be under way, acknowledgements of commands and answers to them.
        AsyncClient::new(options, usize::from(config.inflight) + 2 * COMMANDS_MAX + 1)
    }

    /// The broker takes the connection, on these terms.
    pub(super) fn accepted(
        &mut self,
        target: &MqttTarget,
        terms: Option<&ConnAckProperties>,
    ) -> Result<(), &'static str> {
        if terms.and_then(|terms| terms.max_qos) == Some(0) {
            return Err("the broker takes nothing at QoS 1");
        }
        let receive_maximum = terms.and_then(|terms| terms.receive_max).unwrap_or(u16::MAX);
        self.limit = usize::from(target.config.inflight.min(receive_maximum));
        self.packet_bytes_max = terms.and_then(|terms| terms.max_packet_size);
        (self.state, self.progress) = (State::Up, Instant::now());
        if self.number == 0
            && let (Some(template), Some((client, _))) = (&target.config.commands, &self.client)
            && client.try_subscribe(template.filter(), QoS::AtLeastOnce).is_err()
        {
            return Err("the connection takes no subscription");
        }
        Ok(())
    }

    pub(super) fn is_too_large(&self, message: &Message) -> bool {
        // The packet identifier, which it has not got yet, and the longest length field.
        const LATER: usize = 2 + 3;
        let Some(most) = self.packet_bytes_max else { return false };
        let publish =
            Publish::new(message.topic.as_str(), QoS::AtLeastOnce, message.payload.clone(), Some(message.properties()));
        publish.size() + LATER > most as usize
    }

    /// `false`: it takes no more.
    pub(super) fn send(&mut self, seq: u64, message: Message, now: Instant) -> bool {
        if self.unnumbered.is_empty() && self.numbered.is_empty() {
            self.progress = now;
        }
        let Some((client, _)) = &self.client else { return false };
        let properties = message.properties();
        let Message { topic, payload, .. } = message;
        self.unnumbered.push_back(seq);
        client.try_publish_with_properties(topic, QoS::AtLeastOnce, false, payload, properties).is_ok()
    }

    /// The client has numbered the oldest that it had not; 0 is an answer at QoS 0, which was none of them.
    pub(super) fn note_sent(&mut self, id: u16) {
        if id != 0
            && let Some(seq) = self.unnumbered.pop_front()
        {
            self.numbered.insert(id, seq);
        }
    }

    /// Which event was acknowledged.
    pub(super) fn take_acknowledged(&mut self, id: u16, now: Instant) -> Option<u64> {
        let seq = self.numbered.remove(&id)?;
        self.progress = now;
        self.backoff.succeed();
        Some(seq)
    }

    /// How often this event was refused now.
    pub(super) fn count_refusal(&mut self, seq: u64) -> u32 {
        let before = if self.refusals.0 == seq { self.refusals.1 } else { 0 };
        self.refusals = (seq, before + 1);
        before + 1
    }

    fn has_any_under_way(&self) -> bool {
        !self.unnumbered.is_empty() || !self.numbered.is_empty()
    }

    /// When to look at it again.
    pub(super) fn next_due(&self, timeout: Duration) -> Option<Instant> {
        match self.state {
            State::Down(at) => Some(at),
            State::Up if self.has_any_under_way() => Some(self.progress + timeout),
            State::Up | State::Opening => None,
        }
    }

    pub(super) fn is_silent(&self, timeout: Duration, now: Instant) -> bool {
        self.is_up() && self.has_any_under_way() && self.progress + timeout <= now
    }

    /// It is done for, and opened anew after a while. Whether it had been up.
    pub(super) fn fail(&mut self) -> bool {
        let was_up = self.is_up();
        self.close();
        self.state = State::Down(Instant::now() + self.backoff.fail(None));
        was_up
    }

    /// It is done for, and may be opened at once.
    pub(super) fn close(&mut self) {
        if let Some((client, pump)) = self.client.take() {
            drop(client);
            pump.abort();
        }
        self.life += 1;
        self.unnumbered.clear();
        self.numbered.clear();
        self.limit = 0;
        self.state = State::Down(Instant::now());
    }
}

pub(super) fn is_granted(code: SubscribeReasonCode) -> bool {
    matches!(code, SubscribeReasonCode::Success(_))
}

//! `type = "mqtt"`: a bridge to another broker, and commands back from it.
//!
//! ```text
//!   store ──▶ window ──lane 0──▶ connection 0 ──▶ broker      PUBACK: done with; the cursor moves behind the oldest that
//!                    ──lane 1──▶ connection 1 ──▶              is not
//!                     …                            ◀── commands, through connection 0, acknowledged when the device has
//!                                                      answered
//! ```
//!
//! A device's messages all go through one connection, in their order; so many are under way as the broker allows. When a
//! connection breaks, all that it had under way is sent again through a new one, under the same `pulsegate-id`.

mod commands;
mod lane;

use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::v5::{Packet, PubAck, PubAckReason, Publish};
use rumqttc::v5::{ConnectionError, Event};
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use super::event::{Event as Json, time};
use super::feed::Feed;
use super::run::{Over, Run, lane_of};
use super::settings::{Fault, Reading, Target};
use super::tls::ClientTls;
use crate::config::{MqttSink, Sink};
use crate::store::{StoreError, Stored, What};
use commands::Commands;
use lane::{Lane, Message};

/// Events that connections may have said and nobody has heard yet.
const HEARD_MAX: usize = 1_024;

/// A broker, and how it is spoken to.
pub(super) struct MqttTarget {
    config: MqttSink,
    timeout: Duration,
    password: Option<Zeroizing<String>>,
    tls: Option<ClientTls>,
}

impl MqttTarget {
    pub(super) fn new(sink: &Sink, config: &MqttSink, reading: &mut Reading) -> Result<Self, Fault> {
        let password = config.password_file.as_ref().map(|path| reading.line("password_file", path)).transpose()?;
        let tls = if config.is_tls { Some(ClientTls::load(&sink.tls, reading)?) } else { None };
        Ok(Self { config: config.clone(), timeout: sink.timeout, password, tls })
    }

    pub(super) fn address(&self) -> String {
        let scheme = if self.config.is_tls { "mqtts" } else { "mqtt" };
        format!("{scheme}://{}:{}", self.config.host, self.config.port)
    }

    /// What is published for an event of the store with this id.
    fn message(&self, node: &str, store_id: &str, stored: &Stored) -> Message {
        let entry = &stored.entry;
        let (topic, payload) = match &entry.what {
            What::Message { topic, payload, .. } => (self.config.topic.fill(&entry.device, topic), payload.clone()),
            What::Connected(_) | What::Disconnected(..) => {
                (self.config.presence_topic.fill(&entry.device, ""), Json::new(node, stored).to_json().into())
            }
        };
        Message { topic, payload, id: format!("{store_id}-{}", stored.seq), at: time(entry.at_ms) }
    }
}

/// What a connection says: which, which of its lives, and what.
type Heard = (usize, u64, Result<Event, ConnectionError>);

/// The thread of one such sink.
pub(super) struct MqttRun {
    run: Run,
    feed: Feed,
    lanes: Vec<Lane>,
    commands: Commands,
    heard: mpsc::Receiver<Heard>,
    store_id: String,
}

impl MqttRun {
    pub(super) async fn work(mut run: Run, seed: u64) -> Result<(), Over> {
        let store_id = run.begin().await?;
        let (sender, heard) = mpsc::channel(HEARD_MAX);
        let connections = target(&run).config.connections;
        let retry = run.settings.config.retry;
        let lane = |number| Lane::new(number, retry, seed.wrapping_add(number as u64), sender.clone());
        let lanes = (0..connections).map(lane).collect();
        let mut this =
            Self { run, feed: Feed::new(connections), lanes, commands: Commands::default(), heard, store_id };
        let ended = this.go_on().await;
        this.feed.finish(&this.run).await;
        this.lanes.iter_mut().for_each(Lane::close);
        ended
    }

    async fn go_on(&mut self) -> Result<(), Over> {
        loop {
            if self.run.is_paused() {
                self.lanes.iter_mut().for_each(Lane::close);
                self.feed.forget();
            }
            self.run.while_paused().await?;
            let turned = match self.turn().await {
                Ok(()) => self.wait().await,
                Err(error) => self.run.store_failed(&error).await,
            };
            turned?;
        }
    }

    /// All that can be done now.
    async fn turn(&mut self) -> Result<(), StoreError> {
        if self.feed.begin(&self.run).await? {
            self.lanes.iter_mut().for_each(Lane::close);
        }
        let lanes = self.lanes.len();
        self.feed.fill(&self.run, |device| lane_of(device, lanes))?;
        let now = Instant::now();
        for number in 0..lanes {
            self.serve(number, now);
        }
        self.feed.advance(&self.run);
        Ok(())
    }

    /// Opens a lane whose time has come, and sends what it may.
    fn serve(&mut self, number: usize, now: Instant) {
        let target = target(&self.run);
        let lane = &mut self.lanes[number];
        lane.open_if_due(target, now);
        while lane.is_up()
            && let Some((seq, stored)) = self.feed.window.next(number, lane.limit())
        {
            let message = target.message(&self.run.node, &self.store_id, stored);
            if message.topic.is_empty() || message.topic.len() > usize::from(u16::MAX) {
                self.give_up(number, seq, "there is no topic under which it could be published");
                return;
            }
            if lane.is_too_large(&message) {
                self.give_up(number, seq, "it is larger than the broker takes (Maximum Packet Size)");
                return;
            }
            if !lane.send(seq, message, now) {
                self.broken(number, "the connection takes no more");
                return;
            }
        }
    }

    /// Waits until there is something to do.
    async fn wait(&mut self) -> Result<(), Over> {
        let mut head = self.run.store.head();
        let now = *head.borrow_and_update();
        if now.is_closed {
            return Err(Over);
        }
        if self.feed.can_read(now) {
            return Ok(());
        }
        let timeout = target(&self.run).timeout;
        let due = self.lanes.iter().filter_map(|lane| lane.next_due(timeout)).min();
        let due = due.unwrap_or_else(|| Instant::now() + timeout);
        tokio::select! {
            biased;
            ordered = self.run.orders.changed() => ordered.map_err(|_| Over)?,
            advanced = self.feed.advanced() => {
                if let Err(error) = advanced {
                    self.run.store_failed(&error).await?;
                }
            }
            Some(first) = self.heard.recv() => {
                self.handle(first);
                // All that is there already: one turn for all.
                while let Ok(more) = self.heard.try_recv() {
                    self.handle(more);
                }
            }
            Some(done) = self.commands.next() => done.finish(&self.run, &self.lanes[0]),
            _ = head.changed() => {}
            () = tokio::time::sleep_until(due.into()) => self.check_patience(timeout),
        }
        Ok(())
    }

    /// A connection on which nothing was acknowledged for too long is as good as none.
    fn check_patience(&mut self, timeout: Duration) {
        for number in 0..self.lanes.len() {
            if self.lanes[number].is_silent(timeout, Instant::now()) {
                self.broken(number, "the broker has acknowledged nothing in time");
            }
        }
    }

    fn handle(&mut self, (number, life, heard): Heard) {
        if self.lanes[number].life() != life {
            return;
        }
        match heard {
            Ok(Event::Outgoing(rumqttc::Outgoing::Publish(id))) => self.lanes[number].note_sent(id),
            Ok(Event::Incoming(Packet::PubAck(ack))) => self.handle_ack(number, &ack),
            Ok(Event::Incoming(Packet::ConnAck(accepted))) => {
                match self.lanes[number].accepted(target(&self.run), accepted.properties.as_ref()) {
                    Ok(()) => self.run.note_well(),
                    Err(why) => self.broken(number, why),
                }
            }
            Ok(Event::Incoming(Packet::Publish(publish))) => self.command(publish),
            Ok(Event::Incoming(Packet::SubAck(answer))) => {
                if answer.return_codes.iter().any(|code| !lane::is_granted(*code)) {
                    self.run.note_failure("the broker does not let the sink subscribe to commands");
                }
            }
            Ok(_) => {}
            Err(error) => self.broken(number, &error.to_string()),
        }
    }

    fn command(&mut self, publish: Publish) {
        let Some(template) = &target(&self.run).config.commands else { return };
        let life = self.lanes[0].life();
        self.commands.begin(&self.run, template, life, publish);
    }

    fn handle_ack(&mut self, number: usize, ack: &PubAck) {
        let Some(seq) = self.lanes[number].take_acknowledged(ack.pkid, Instant::now()) else { return };
        match ack.reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => {
                if self.feed.window.acknowledge(number, seq) {
                    self.run.note_sent(1);
                }
            }
            // It may take it later.
            PubAckReason::QuotaExceeded
            | PubAckReason::UnspecifiedError
            | PubAckReason::ImplementationSpecificError
            | PubAckReason::PacketIdentifierInUse => {
                self.broken(number, &format!("the broker answers {:?}", ack.reason));
            }
            PubAckReason::NotAuthorized | PubAckReason::TopicNameInvalid | PubAckReason::PayloadFormatInvalid => {
                self.refused(number, seq, &format!("the broker answers {:?}", ack.reason));
            }
        }
    }

    /// It is tried again some times, with all that was sent behind it; then it is given up.
    fn refused(&mut self, number: usize, seq: u64, why: &str) {
        let config = &self.run.settings.config;
        if self.lanes[number].count_refusal(seq) >= config.tries_refused {
            self.give_up(number, seq, why);
        } else {
            self.broken(number, why);
        }
    }

    fn give_up(&mut self, number: usize, seq: u64, why: &str) {
        let is_buried = self.feed.window.get(seq).is_none_or(|stored| self.run.bury(why, &[stored]));
        if is_buried {
            self.feed.window.acknowledge(number, seq);
        } else {
            self.broken(number, why);
        }
    }

    fn broken(&mut self, number: usize, why: &str) {
        let was_up = self.lanes[number].fail();
        let first = self.feed.window.reset(number);
        self.run.note_failure(why);
        let most = self.run.settings.config.tries_failed;
        // Something that ends every connection on which it comes first would hold up everything behind it.
        if let Some((seq, tries)) = first
            && was_up
            && most > 0
            && tries >= most
        {
            self.feed.window.next(number, 1);
            self.give_up(number, seq, why);
        }
    }
}

fn target(run: &Run) -> &MqttTarget {
    match &run.settings.target {
        Target::Mqtt(target) => target,
        Target::Http(_) | Target::Nats(_) => unreachable!("the settings are of this kind"),
    }
}

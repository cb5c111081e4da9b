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

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::v5::{Packet, PubAck, PubAckReason, Publish};
use rumqttc::v5::{ConnectionError, Event};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::event::{Event as Json, time};
use super::run::{Over, Run};
use super::settings::{Fault, Reading, Target};
use super::tls::ClientTls;
use super::window::Window;
use crate::config::{MqttSink, SINK_WINDOW_BYTES, Sink};
use crate::store::{StoreError, Stored, What};
use commands::Commands;
use lane::{Lane, Message};

/// Events that connections may have said and nobody has heard yet.
const HEARD_MAX: usize = 1_024;
/// Events read at a time.
const READ_MAX: usize = 1_000;

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
            What::Message { topic, payload } => (self.config.topic.fill(&entry.device, topic), payload.clone()),
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
    lanes: Vec<Lane>,
    window: Window<Stored>,
    commands: Commands,
    heard: mpsc::Receiver<Heard>,
    store_id: String,
    /// The last event that was read.
    read: u64,
    /// How often the sink had been let go on elsewhere when it began here.
    seeks: u64,
    /// How far it is done with, and not in the store yet.
    done: Option<u64>,
    /// The cursor on its way into the store.
    advancing: Option<JoinHandle<Result<bool, StoreError>>>,
}

impl MqttRun {
    pub(super) async fn work(mut run: Run, seed: u64) -> Result<(), Over> {
        run.begin().await?;
        let store_id = loop {
            match run.store.reader().identity() {
                Ok(store_id) => break store_id,
                Err(error) => run.store_failed(&error).await?,
            }
        };
        let (sender, heard) = mpsc::channel(HEARD_MAX);
        let config = &run.settings.config;
        let connections = target(&run).config.connections;
        let lane = |number| Lane::new(number, config.retry, seed.wrapping_add(number as u64), sender.clone());
        let mut this = Self {
            lanes: (0..connections).map(lane).collect(),
            window: Window::new(connections, SINK_WINDOW_BYTES),
            commands: Commands::default(),
            heard,
            store_id,
            read: 0,
            seeks: u64::MAX,
            done: None,
            advancing: None,
            run,
        };
        let ended = this.go_on().await;
        this.finish().await;
        ended
    }

    async fn go_on(&mut self) -> Result<(), Over> {
        loop {
            if self.run.is_paused() {
                self.lanes.iter_mut().for_each(Lane::close);
                self.seeks = u64::MAX;
                self.run.while_paused().await?;
            }
            let turned = match self.turn().await {
                Ok(()) => self.wait().await,
                Err(error) => self.run.store_failed(&error).await,
            };
            turned?;
        }
    }

    /// All that can be done now.
    async fn turn(&mut self) -> Result<(), StoreError> {
        let (seeks, cursor) = self.run.place().await?;
        if seeks != self.seeks {
            self.begin_at(seeks, cursor);
        }
        self.fill()?;
        let now = Instant::now();
        for number in 0..self.lanes.len() {
            self.serve(number, now);
        }
        self.done = self.window.take_done().or(self.done);
        if self.advancing.is_none()
            && let Some(last) = self.done.take()
        {
            self.advancing = Some(tokio::spawn(self.run.advance(self.seeks, last)));
        }
        Ok(())
    }

    /// Begins behind `cursor`, whatever was under way.
    fn begin_at(&mut self, seeks: u64, cursor: u64) {
        self.lanes.iter_mut().for_each(Lane::close);
        (self.seeks, self.read, self.done) = (seeks, cursor, None);
        self.window = Window::new(self.lanes.len(), SINK_WINDOW_BYTES);
    }

    fn fill(&mut self) -> Result<(), StoreError> {
        let head = self.run.store.head().borrow().last;
        while self.read < head && self.window.has_room() {
            let events = self.run.read(self.read, READ_MAX, SINK_WINDOW_BYTES / 4)?;
            let Some(last) = events.last().map(|stored| stored.seq) else { return Ok(()) };
            for stored in events {
                if self.run.settings.selection.takes(&stored.entry) {
                    let lane = lane_of(&stored.entry.device, self.lanes.len());
                    self.window.push(stored.seq, stored.entry.bytes(), lane, stored);
                } else {
                    self.window.skip(stored.seq);
                }
            }
            self.read = last;
        }
        Ok(())
    }

    /// Opens a lane whose time has come, and sends what it may.
    fn serve(&mut self, number: usize, now: Instant) {
        let target = target(&self.run);
        let lane = &mut self.lanes[number];
        lane.open_if_due(target, now);
        while lane.is_up()
            && let Some((seq, stored)) = self.window.next(number, lane.limit())
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
        let has_more = head.borrow_and_update().last > self.read;
        if head.borrow().is_closed {
            return Err(Over);
        }
        if has_more && self.window.has_room() {
            return Ok(());
        }
        let timeout = target(&self.run).timeout;
        let due = self.lanes.iter().filter_map(|lane| lane.next_due(timeout)).min();
        let due = due.unwrap_or_else(|| Instant::now() + timeout);
        tokio::select! {
            biased;
            ordered = self.run.orders.changed() => ordered.map_err(|_| Over)?,
            advanced = async { self.advancing.as_mut().expect("it is there").await }, if self.advancing.is_some() => {
                self.advancing = None;
                match advanced {
                    // If it was let go on elsewhere, the next turn begins there.
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => {
                        self.run.store_failed(&error).await?;
                        self.seeks = u64::MAX;
                    }
                    Err(_) => return Err(Over),
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
                if self.window.acknowledge(number, seq) {
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
        let is_buried = self.window.get(seq).is_none_or(|stored| self.run.bury(why, &[stored]));
        if is_buried {
            self.window.acknowledge(number, seq);
        } else {
            self.broken(number, why);
        }
    }

    fn broken(&mut self, number: usize, why: &str) {
        let was_up = self.lanes[number].fail();
        let first = self.window.reset(number);
        self.run.note_failure(why);
        let most = self.run.settings.config.tries_failed;
        // Something that ends every connection on which it comes first would hold up everything behind it.
        if let Some((seq, tries)) = first
            && was_up
            && most > 0
            && tries >= most
        {
            self.window.next(number, 1);
            self.give_up(number, seq, why);
        }
    }

    /// What is done with is kept; what is under way is left.
    async fn finish(mut self) {
        if let Some(advancing) = self.advancing.take() {
            drop(advancing.await);
        }
        if let Some(last) = self.window.take_done().or(self.done) {
            drop(self.run.advance(self.seeks, last).await);
        }
        self.lanes.iter_mut().for_each(Lane::close);
    }
}

fn target(run: &Run) -> &MqttTarget {
    match &run.settings.target {
        Target::Mqtt(target) => target,
        Target::Http(_) => unreachable!("the settings are of this kind"),
    }
}

/// The lane of a device: the same in every run.
fn lane_of(device: &str, lanes: usize) -> usize {
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(device);
    (hash % lanes as u64) as usize
}

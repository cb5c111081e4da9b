//! One device connection from its first byte to its last: the only place where TLS and the device protocols meet.
//!
//! ```text
//!  accept (and, behind a proxy, whose connection it is: announced.rs)
//!    ▼       bytes      a place          bytes
//!  Accepted ─────▶ Waiting ────▶ Called ─────▶ Handshaking
//!    ▲     none after all, or less │               │ TLS established
//!    │     than a ClientHello      │               │
//!    └──────────────────────────────┘               ▼
//!                                           Open: Unnamed ──▶ Verifying (a token is checked elsewhere)
//!                                                   │ HELLO or      │
//!                                                   │ certificate   │ the token is right
//!                                                   ├───────────────┘
//!                                                   ▼ home is elsewhere
//!                                                 Moving ─────▶ Moved (it lives on there)
//!                                                   │ at home
//!                                                   ▼
//!                                                 Device
//!  from each of them
//!    ├─ the peer is to hear of it ──▶ Lingering ──▶ Closed (reaped at the end of the turn)
//!    └─ the peer is gone ────────────────────────────▲
//! ```
//!
//! A connection knows no socket, no clock, no table of other connections. Bytes come in through an [`Input`], bytes go
//! out into the caller's buffers, and everything that concerns more than this connection is a [`Step`] for the shard.
//! While idle it owns nothing on the heap but its device id; `tests` in this module prove it by size.

mod announced;
mod close;
mod handshake;
mod image;
mod input;
mod liveness;
mod mqtt;
mod naming;
mod native;
mod protocol;
mod raw;
mod settings;
mod trace;
mod transport;
mod websocket;

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use naming::Naming;
use websocket::Carrier;

pub use announced::{Announced, Announcement, Announcing};
pub use close::{Cause, Termination, lingers};
pub use image::InvalidImage;
pub use input::{Input, Saved};
pub use liveness::{Due, Heard, Liveness, Schedule};
pub use settings::{Entry, ListenerSettings, Port, RateRules};
pub use trace::PacketLog;

use crate::broker::{Broker, DueWill};
use crate::codec::websocket::Decoder;
use crate::link::{CloseReason, Credentials, Downlink, Grant, ListenerId, Outcome, WorkerEvent};
use crate::metrics::{Counters, Metric, Timing};
use crate::pool::{ALLOCATION_BYTES, Charge, Class, Pool};
use crate::slot::ConnectionSlot;
use crate::time::{Moment, Tick};
use crate::tls::certs::CertificateMark;
use crate::tls::record::RecordLayer;
use handshake::Handshaking;

/// Messages whose ACK is waited for on one connection; a further one gives up on the oldest.
const AWAITED_MAX: usize = 64;
/// How often a connection that has no deadline of its own is looked at, in ticks: an hour.
const LOOK_TICKS: u32 = 36_000;

/// What a connection may use while it is handed something, lent by its shard for one call.
pub struct Context<'a> {
    /// The connection's slot.
    pub slot: ConnectionSlot,
    /// The time of this call.
    pub now: Moment,
    /// Bytes for the socket, appended.
    pub wire: &'a mut Vec<u8>,
    /// Scratch for plaintext on its way to be sealed; empty between calls.
    pub plain: &'a mut Vec<u8>,
    /// The shard's figures.
    pub counters: &'a mut Counters,
    /// The shard's variable bytes.
    pub pool: &'a Arc<Pool>,
    /// The shard's MQTT sessions.
    pub broker: &'a mut Broker,
    /// Wills that are to be published, appended.
    pub due_wills: &'a mut Vec<DueWill>,
    /// What goes up, appended.
    pub uplink: &'a mut Vec<WorkerEvent>,
    /// The length of `uplink` at which no more messages are taken.
    pub uplink_length: usize,
    /// Whether the way up gets on: then what nobody waits for keeps off it while it is crowded.
    pub way_up_moves: bool,
    /// What the device was granted beyond the listener's rules; none: these hold.
    pub grant: Option<&'a Grant>,
    /// Where its packets are noted; none: nobody follows it.
    pub trace: Option<&'a mut PacketLog>,
}

impl Context<'_> {
    /// Whether no more messages are taken on their way up: by number, or by their bytes.
    fn is_uplink_full(&self) -> bool {
        self.uplink.len() >= self.uplink_length || self.pool.is_full(Class::Up)
    }

    /// Whether so much is on its way up that what nobody waits for has to wait: one device that says much without asking for
    /// acknowledgements does not make those wait who do.
    fn is_uplink_crowded(&self) -> bool {
        self.way_up_moves && self.pool.is_crowded(Class::Up)
    }

    /// What a message of so many bytes takes on its way up.
    fn charge_up(&self, bytes: usize) -> Charge {
        Charge::of(self.pool, Class::Up, bytes + ALLOCATION_BYTES)
    }
}

/// What came of a TLS handshake.
#[derive(Clone, Copy, Debug)]
pub struct TlsEstablished {
    /// Whether the handshake was a resumption.
    pub resumed: bool,
    /// For how long the peer was silent at the most.
    pub silence: Duration,
    /// What is kept of the client's certificate.
    pub certificate: Option<CertificateMark>,
}

/// What a connection wants its shard to know after it was handed something.
#[derive(Debug)]
pub enum Step {
    /// Nothing: it wants more bytes.
    Wait,
    /// TLS is established; there may be more to do with what was read.
    Established(Box<TlsEstablished>),
    /// The device is known (its id is set); it may move, then be registered.
    Named,
    /// A trusted proxy has said for whom it asks: whether those may come is to be asked before anything else.
    Announced(Box<Announced>),
    /// The device says who it is, and this must be checked: first, or beside what it does, where it is a renewal.
    Verify(Box<Credentials>),
    /// The uplink is full and the device wants its message acknowledged: nothing more is read until there is room.
    Paused,
    /// Much is on its way up, and nobody waits for what the device says: nothing more is read until those have gone on who are
    /// waited for.
    Yielding,
    /// Messages of the device, or its SUBACK, wait: nothing more is read until the device has been told of them.
    Held,
    /// A packet asks for more than one turn does: it stays where it is, and what is left of it is done in the next turns.
    Unfinished,
    /// It is over.
    End(Termination),
}

// Every read passes some of them on.
const _: () = assert!(size_of::<Step>() <= 16);

/// One connection. At most 256 bytes inline, whatever its state.
pub struct Connection {
    state: State,
    /// Empty until the device is named (by its certificate, or by HELLO).
    device: Box<str>,
    /// Only while something is half-received, unsent or paused.
    buffers: Option<Box<Buffers>>,
    liveness: Liveness,
    /// The low half of the shard's count of connections.
    generation: u32,
    connected_at: Tick,
    listener: ListenerId,
    carrier: Carrier,
    announcement: Announcement,
}

const _: () = assert!(size_of::<Connection>() <= 256);

/// See the diagram at the head of this file.
enum State {
    /// No byte was looked at yet.
    Accepted,
    /// Bytes are there, and it waits for its turn to begin a handshake: nothing is read, nothing is allocated.
    Waiting,
    /// It is its turn: the next read begins the handshake, or finds that nobody is there.
    Called,
    Handshaking(Box<Handshaking>),
    Open {
        records: RecordLayer,
        phase: Phase,
        naming: Naming,
        /* ticks of silence before a probe */ interval: u16,
    },
    /// It waits for the peer to have taken the last bytes. `shut`: the stream's own side was ended behind them.
    Lingering {
        shut: bool,
    },
    Closed,
    /// It lives on at its home.
    Moved,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Unnamed,
    Verifying,
    Moving,
    Device,
}

#[derive(Default)]
struct Buffers {
    saved: Saved,
    unsent: Vec<u8>,
    /// Messages that the device has been asked to acknowledge, oldest first.
    awaited: VecDeque<Awaited>,
    paused: bool,
    /// A WebSocket message that has begun and has not ended.
    frames: Option<Box<Decoder>>,
}

/// What a connection keeps on the heap for its peer: bytes of the pool, and of which class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Of what is half-received: before it is a device, or as one.
    pub class: Class,
    /// Half records, half packets and half messages.
    pub received: usize,
    /// Bytes that the socket did not take.
    pub unsent: usize,
}

impl Default for Kept {
    fn default() -> Self {
        Self { class: Class::Unauthenticated, received: 0, unsent: 0 }
    }
}

/// Somebody waits for the device's ACK.
struct Awaited {
    message: u32,
    request: u64,
}

impl Buffers {
    fn is_empty(&self) -> bool {
        self.saved.is_empty()
            && self.unsent.is_empty()
            && self.awaited.is_empty()
            && !self.paused
            && self.frames.is_none()
    }
}

impl Connection {
    /// A connection that was just accepted.
    #[must_use]
    pub fn accept(listener: ListenerId, generation: u32, now: Tick) -> Self {
        Self {
            state: State::Accepted,
            device: Box::default(),
            buffers: None,
            liveness: Liveness::new(now),
            generation,
            connected_at: now,
            listener,
            carrier: Carrier::Plain,
            announcement: Announcement::Complete,
        }
    }

    // --- What it is -------------------------------------------------------------------------------------------------

    /// The low half of its generation.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Through which listener it came.
    #[must_use]
    pub fn listener(&self) -> ListenerId {
        self.listener
    }

    /// The device's id; empty while it is not known.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Since when it is connected.
    #[must_use]
    pub fn connected_at(&self) -> Tick {
        self.connected_at
    }

    /// What is believed of the peer.
    #[must_use]
    pub fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// Whether it waits for its first byte.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        matches!(self.state, State::Accepted)
    }

    /// Whether it waits for a place among the handshakes.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting)
    }

    /// Whether it has a place among the handshakes and is to be read.
    #[must_use]
    pub fn is_called(&self) -> bool {
        matches!(self.state, State::Called)
    }

    /// Whether its TLS handshake is in progress.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        matches!(self.state, State::Handshaking(_))
    }

    /// Whether it is a device at home.
    #[must_use]
    pub fn is_device(&self) -> bool {
        matches!(self.state, State::Open { phase: Phase::Device, .. })
    }

    /// Whether it was offered to its home worker.
    #[must_use]
    pub fn is_moving(&self) -> bool {
        matches!(self.state, State::Open { phase: Phase::Moving, .. })
    }

    /// Whether its token is being checked.
    #[must_use]
    pub fn is_verifying(&self) -> bool {
        matches!(self.state, State::Open { phase: Phase::Verifying, .. })
    }

    /// Whether it only waits for the peer to have taken the last bytes.
    #[must_use]
    pub fn is_lingering(&self) -> bool {
        matches!(self.state, State::Lingering { .. })
    }

    /// Whether it is to be reaped.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed | State::Moved)
    }

    /// Whether it is to be reaped because it lives on at its home.
    #[must_use]
    pub fn is_moved(&self) -> bool {
        matches!(self.state, State::Moved)
    }

    /// Whether nothing is read on because the uplink is full.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.buffers.as_ref().is_some_and(|buffers| buffers.paused)
    }

    /// Whether its socket should be read now. Before its handshake it is read only when it was called for it.
    #[must_use]
    pub fn wants_read(&self) -> bool {
        match &self.state {
            State::Accepted | State::Waiting | State::Closed | State::Moved => false,
            State::Called | State::Handshaking(_) | State::Lingering { .. } => true,
            State::Open { phase, .. } => !matches!(phase, Phase::Verifying | Phase::Moving) && !self.is_paused(),
        }
    }

    /// What it keeps of its peer's bytes and for it; `None`: nothing.
    #[must_use]
    pub fn kept(&self) -> Option<Kept> {
        let buffers = self.buffers.as_deref()?;
        let class = if self.is_device() { Class::Received } else { Class::Unauthenticated };
        let piece = |bytes: usize| if bytes > 0 { bytes + ALLOCATION_BYTES } else { 0 };
        let frames = if buffers.frames.is_some() { piece(size_of::<Decoder>()) } else { 0 };
        let saved = &buffers.saved;
        let received = piece(saved.plain.capacity()) + piece(saved.cipher.capacity()) + frames;
        Some(Kept { class, received, unsent: piece(buffers.unsent.capacity()) })
    }

    /// Bytes that it keeps on the heap besides its id (a handshake's own aside).
    #[cfg(test)]
    pub(crate) fn buffered(&self) -> usize {
        self.buffers.as_ref().map_or(0, |buffers| buffers.saved.len() + buffers.unsent.len())
    }

    /// How its TLS version and suite are called, and how its id was learned; unknown before TLS is established.
    #[must_use]
    pub fn facts(&self) -> Option<(&'static str, &'static str, &'static str)> {
        let State::Open { records, naming, .. } = &self.state else { return None };
        Some((records.version().name(), records.suite_name(), naming.label()))
    }

    // --- What happens to it -----------------------------------------------------------------------------------------

    /// There are bytes: it queues for a handshake.
    pub fn begin_waiting(&mut self) {
        assert!(self.is_accepted());
        self.state = State::Waiting;
    }

    /// There is a place among the handshakes: the next read is its first.
    pub fn call(&mut self) {
        assert!(self.is_waiting());
        self.state = State::Called;
    }

    /// There were no bytes after all.
    pub fn end_waiting(&mut self) {
        assert!(self.is_called());
        self.state = State::Accepted;
    }

    /// Whether it keeps something half-received.
    #[must_use]
    pub fn has_saved(&self) -> bool {
        self.buffers.as_ref().is_some_and(|buffers| !buffers.saved.is_empty())
    }

    /// Loads what was half-received into the worker's scratch, before a read.
    pub fn load(&self, input: &mut Input) {
        match &self.buffers {
            Some(buffers) => input.load(&buffers.saved),
            None => input.load(&Saved::default()),
        }
    }

    fn left_of(&self, input: &Input) -> Saved {
        let mut saved = input.save();
        saved.is_secret = !self.is_device();
        saved
    }

    /// Keeps what is half-received, after a read was looked at.
    pub fn save(&mut self, input: &Input) {
        if input.is_empty() && self.buffers.is_none() {
            return;
        }
        let saved = self.left_of(input);
        self.buffers.get_or_insert_default().saved = saved;
        self.shed_empty_buffers();
    }

    /// Bytes arrived: any byte counts as life. Where they answer a probe, returns the next deadline: to arm it while the
    /// connection is at hand is cheaper than to let the probe's own come and find nothing to do.
    pub fn handle_heard(&mut self, now: Moment, settings: &ListenerSettings, counters: &mut Counters) -> Option<Tick> {
        let heard = self.liveness.handle_heard(now);
        if let Some(round_trip) = heard.round_trip {
            counters.observe(Timing::RoundTrip, round_trip);
        }
        if heard.answered == 0 {
            return None;
        }
        counters.add(Metric::HeartbeatsAnswered, u64::from(heard.answered));
        // One that has been told goodbye lingers for as long as it was given, whatever it answers.
        self.is_device().then(|| self.liveness.last_heard().plus(self.schedule(settings).interval))
    }

    /// Looks at what is in `input`, as far as one [`Step`]. After any step but [`Step::Wait`], [`Step::Paused`],
    /// [`Step::Yielding`], [`Step::Held`], [`Step::Unfinished`] and [`Step::End`] the caller settles it and calls again: there may be more.
    pub fn handle_input(&mut self, input: &mut Input, settings: &ListenerSettings, cx: &mut Context) -> Step {
        match &mut self.state {
            State::Handshaking(_) => self.handle_handshake(input, settings, cx),
            State::Open { phase: Phase::Verifying | Phase::Moving, .. } | State::Closed | State::Moved => Step::Wait,
            State::Open { .. } => self.handle_open(input, settings, cx),
            State::Lingering { .. } => {
                input.load(&Saved::default());
                Step::Wait
            }
            State::Accepted | State::Waiting | State::Called => {
                unreachable!("a handshake begins before bytes are handled")
            }
        }
    }

    fn open(&mut self, records: RecordLayer, naming: Naming, settings: &ListenerSettings) {
        let interval = settings.schedule.interval as u16;
        self.carrier = if settings.websocket.is_some() { Carrier::Upgrading } else { Carrier::Plain };
        self.state = State::Open { records, phase: Phase::Unnamed, naming, interval };
    }

    /// Gives a device without a name of its own one: raw connections without a certificate.
    pub fn set_generated_id(&mut self, id: Box<str>) {
        assert!(self.device.is_empty() && matches!(self.state, State::Open { naming: Naming::Generated, .. }));
        self.device = id;
    }

    /// It may come in. The next step of its input is [`Step::Named`], unless it calls itself by another name than it was
    /// granted, or has none at all.
    pub fn handle_authenticated(&mut self, grant: &Grant) -> Step {
        assert!(self.is_verifying());
        let State::Open { naming, .. } = &mut self.state else { unreachable!("it is verifying") };
        // Where it calls itself by a name, whoever let it in has seen to it that the name is its own.
        if grant.device.is_empty() && self.device.is_empty() && *naming == Naming::Granted {
            let what = "it has no client certificate, and what it proved itself by says nothing of an id";
            return Step::End(Termination::because(CloseReason::IdentityMissing, what));
        }
        if !grant.device.is_empty() && self.device.is_empty() {
            *naming = Naming::Granted;
            self.device.clone_from(&grant.device);
        }
        if !grant.device.is_empty() && self.device != grant.device {
            let what = format!("it calls itself {:?}, and its proof is for {:?}", self.device, grant.device);
            return Step::End(Termination::because(CloseReason::IdentityMismatch, what));
        }
        self.set_phase(Phase::Unnamed);
        Step::Named
    }

    /// What it was granted was renewed; `cx` has it.
    ///
    /// # Errors
    /// The [`Termination`] of a connection whose keys can seal nothing more.
    pub fn handle_renewed(&mut self, settings: &ListenerSettings, cx: &mut Context) -> Result<(), Termination> {
        assert!(self.is_device());
        self.as_open(settings, cx).send_renewed()
    }

    /// It was offered to its home; nothing is read until it is there or back.
    pub fn begin_move(&mut self) {
        assert!(!self.device.is_empty());
        self.set_phase(Phase::Moving);
    }

    /// It is at home and in the device table: a device from now on, under a generation of its own that is newer than
    /// those of all devices before it. Returns its first deadline.
    ///
    /// # Errors
    /// The [`Termination`] of a connection whose keys can seal nothing more.
    pub fn begin_device(
        &mut self,
        generation: u32,
        settings: &ListenerSettings,
        jitter: u32,
        cx: &mut Context,
    ) -> Result<Tick, Termination> {
        self.set_phase(Phase::Device);
        self.generation = generation;
        let tick = cx.now.tick();
        self.liveness = Liveness::new(tick);
        self.as_open(settings, cx).send_welcome()?;
        let schedule = self.schedule(settings);
        Ok(if schedule.is_endless() { tick.plus(LOOK_TICKS) } else { schedule.first_deadline(tick, jitter) })
    }

    /// The liveness deadline of a device. `drained`: see [`Liveness::handle_deadline`]. A probe is sealed into the wire.
    ///
    /// # Errors
    /// The [`Termination`] of a connection whose keys can seal nothing more.
    pub fn handle_deadline(
        &mut self,
        drained: Tick,
        settings: &ListenerSettings,
        cx: &mut Context,
    ) -> Result<Due, Termination> {
        assert!(self.is_device());
        if self.is_paused() {
            // It is we who do not read: its silence means nothing.
            return Ok(Due::Wait(cx.now.tick().deadline_after(settings.schedule.timeout)));
        }
        let schedule = self.schedule(settings);
        if schedule.is_endless() {
            return Ok(Due::Wait(cx.now.tick().plus(LOOK_TICKS)));
        }
        let due = self.liveness.handle_deadline(&schedule, drained, cx.now);
        if let Due::Probe(_) = due {
            self.as_open(settings, cx).send_probe()?;
            cx.counters.add(Metric::HeartbeatsSent, 1);
        }
        Ok(due)
    }

    /// After a suspect's last read: `None` if it is expired, else when to look again.
    #[must_use]
    pub fn recheck(&self, settings: &ListenerSettings, now: Tick) -> Option<Tick> {
        self.liveness.recheck(&self.schedule(settings), now)
    }

    /// The backbone holds a message of this device.
    ///
    /// # Errors
    /// The [`Termination`] of a connection whose keys can seal nothing more.
    pub fn handle_message_accepted(
        &mut self,
        message: u32,
        settings: &ListenerSettings,
        cx: &mut Context,
    ) -> Result<(), Termination> {
        assert!(self.is_device());
        cx.counters.add(Metric::MessagesAcknowledged, 1);
        self.as_open(settings, cx).send_ack(message)
    }

    /// Says something to the device. `message` is the id for its ACK, for which `request` waits; 0: nobody waits.
    ///
    /// # Errors
    /// The [`Termination`] of a connection whose keys can seal nothing more.
    pub fn handle_downlink(
        &mut self,
        downlink: &Downlink,
        message: u32,
        request: u64,
        settings: &ListenerSettings,
        cx: &mut Context,
    ) -> Result<Outcome, Termination> {
        assert!(self.is_device());
        if let Some(why) = protocol::refusal(downlink, message, settings) {
            return Ok(Outcome::Refused(why));
        }
        if message != 0 {
            let awaited = &mut self.buffers.get_or_insert_default().awaited;
            if awaited.len() == AWAITED_MAX
                && let Some(oldest) = awaited.pop_front()
            {
                cx.uplink.push(WorkerEvent::Sent { request: oldest.request, outcome: Outcome::Unacknowledged });
            }
            awaited.push_back(Awaited { message, request });
        }
        self.as_open(settings, cx).send_message(downlink, message)?;
        Ok(Outcome::Delivered)
    }

    /// There is room in the uplink again.
    pub fn resume(&mut self) {
        if let Some(buffers) = &mut self.buffers {
            buffers.paused = false;
        }
        self.shed_empty_buffers();
    }

    /// The uplink is full: keeps what is in `input` and reads no more.
    pub fn pause(&mut self, input: &Input) {
        let saved = self.left_of(input);
        let buffers = self.buffers.get_or_insert_default();
        buffers.saved = saved;
        buffers.paused = true;
    }

    /// It is read no further for now; what it had half-received is kept already.
    pub fn hold(&mut self) {
        self.buffers.get_or_insert_default().paused = true;
    }

    /// It ends. What there is to say is sealed into the wire, keys are wiped, and it lingers or is closed.
    pub fn end(&mut self, termination: &Termination, settings: &ListenerSettings, cx: &mut Context) {
        assert!(!self.is_closed());
        if self.is_lingering() {
            self.state = State::Closed;
        } else {
            // Nobody is there to read it, or nobody reads.
            let unheard = matches!(termination.reason, CloseReason::PeerReset | CloseReason::SlowConsumer);
            if matches!(self.state, State::Open { .. }) && !unheard {
                self.as_open(settings, cx).send_close(termination);
            }
            self.state = if termination.lingers { State::Lingering { shut: false } } else { State::Closed };
        }
        if let Some(buffers) = &mut self.buffers {
            buffers.saved = Saved::default();
            buffers.paused = false;
            buffers.frames = None;
            for awaited in buffers.awaited.drain(..) {
                cx.uplink.push(WorkerEvent::Sent { request: awaited.request, outcome: Outcome::Unacknowledged });
            }
        }
        self.shed_empty_buffers();
    }

    /// Whether its socket is to be shut for writing now: it lingers and the last bytes have left. Says so once: shutting
    /// a socket makes it writable, and the poll reports that.
    pub fn take_shutdown(&mut self) -> bool {
        let all_sent = self.unsent().is_empty();
        match &mut self.state {
            State::Lingering { shut } if all_sent => !std::mem::replace(shut, true),
            _ => false,
        }
    }

    /// Its home holds it: dropped here without notifying the peer, and without an event.
    pub fn forget(&mut self) {
        assert!(self.is_moving());
        self.state = State::Moved;
    }

    // --- What it could not send -------------------------------------------------------------------------------------

    /// Bytes that the socket did not take yet.
    #[must_use]
    pub fn unsent(&self) -> &[u8] {
        self.buffers.as_ref().map_or(&[], |buffers| &buffers.unsent)
    }

    /// Keeps bytes that the socket did not take. Returns how many are kept now.
    pub fn keep_unsent(&mut self, bytes: &[u8]) -> usize {
        let buffers = self.buffers.get_or_insert_default();
        buffers.unsent.extend_from_slice(bytes);
        buffers.unsent.len()
    }

    /// Gives up what is [unsent](Connection::unsent): whoever takes it sends it before anything else.
    pub fn take_unsent(&mut self) -> Vec<u8> {
        let unsent = self.buffers.as_mut().map_or_else(Vec::new, |buffers| std::mem::take(&mut buffers.unsent));
        self.shed_empty_buffers();
        unsent
    }

    /// The socket took `count` bytes of [`Connection::unsent`].
    pub fn sent(&mut self, count: usize) {
        let buffers = self.buffers.as_mut().expect("bytes were sent, so there were some");
        buffers.unsent.drain(..count);
        if buffers.unsent.is_empty() {
            buffers.unsent = Vec::new();
        }
        self.shed_empty_buffers();
    }

    // --- Helpers ----------------------------------------------------------------------------------------------------

    fn schedule(&self, settings: &ListenerSettings) -> Schedule {
        let State::Open { interval, .. } = self.state else { unreachable!("only a device has a schedule") };
        protocol::schedule(settings, interval)
    }

    fn set_phase(&mut self, next: Phase) {
        let State::Open { phase, .. } = &mut self.state else { unreachable!("only an open connection has a phase") };
        *phase = next;
    }

    fn shed_empty_buffers(&mut self) {
        if self.buffers.as_ref().is_some_and(|buffers| buffers.is_empty()) {
            self.buffers = None;
        }
    }
}

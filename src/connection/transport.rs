//! An open connection being spoken with: the record layer on one side, the device protocol on the other.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::close::close_code;
use super::{Buffers, Connection, Context, Input, ListenerSettings, Naming, Phase, State, Step, Termination};
use crate::codec::native::{self, Frame};
use crate::codec::raw::{self, Payload};
use crate::config::{self, Protocol};
use crate::link::{CloseReason, ConnectionId, Downlink, Message, Outcome, Receipt, Uplink};
use crate::metrics::Figure;
use crate::time::{TICK_MICROS, ticks_ceil};
use crate::tls::record::{Burst, Handled, Opened};

/// The shortest heartbeat interval that a device may ask for, unless the operator's own is shorter.
const WANTED_INTERVAL_MIN_MS: u32 = 1_000;
/// Raw bytes go up in pieces of at most this size, so that one message never holds the uplink up.
const RAW_CHUNK_BYTES: usize = 4_096;
const TICK_MS: u32 = (TICK_MICROS / 1_000) as u32;

/// An open connection taken apart for the length of one call, so that the keys that the record layer rebuilds are kept
/// for all of its records.
pub(super) struct OpenConnection<'c, 'x> {
    tls: Burst<'c>,
    pub(super) phase: &'c mut Phase,
    pub(super) naming: &'c mut Naming,
    pub(super) interval: &'c mut u16,
    pub(super) device: &'c mut Box<str>,
    pub(super) buffers: Option<&'c mut Buffers>,
    pub(super) id: ConnectionId,
    pub(super) settings: &'c ListenerSettings,
    pub(super) cx: &'c mut Context<'x>,
}

impl Connection {
    /// Handles everything in `input`: records, and the frames within them.
    pub(super) fn handle_open(&mut self, input: &mut Input, settings: &ListenerSettings, cx: &mut Context) -> Step {
        let mut open = self.as_open(settings, cx);
        let step = match &settings.protocol {
            Protocol::Native => open.handle_native(input),
            Protocol::Raw(raw) => open.handle_raw(input, raw),
            Protocol::Mqtt(mqtt) => open.handle_mqtt(input, mqtt),
        };
        // Answers to what was understood go out even when what came after it ends the connection.
        let sealed = open.seal_plain();
        match step.and_then(|step| sealed.map(|()| step)) {
            Ok(step) => step,
            Err(termination) => Step::End(termination),
        }
    }

    /// The connection as a partner to talk with. It must be open.
    pub(super) fn as_open<'c, 'x>(
        &'c mut self,
        settings: &'c ListenerSettings,
        cx: &'c mut Context<'x>,
    ) -> OpenConnection<'c, 'x> {
        let State::Open { records, phase, naming, interval } = &mut self.state else {
            unreachable!("only an open connection can be talked with")
        };
        debug_assert!(cx.plain.is_empty());
        let id = ConnectionId { index: cx.index, generation: self.generation };
        OpenConnection {
            tls: records.burst(),
            phase,
            naming,
            interval,
            device: &mut self.device,
            buffers: self.buffers.as_deref_mut(),
            id,
            settings,
            cx,
        }
    }
}

/// What one record came to.
pub(super) enum Record {
    /// Not all of it is there.
    Partial,
    /// It was nothing for the protocol above.
    Nothing,
    /// A record of `length` bytes, with this range of it opened.
    Data { length: usize, plaintext: Range<usize> },
}

impl OpenConnection<'_, '_> {
    // --- Records ----------------------------------------------------------------------------------------------------

    /// Opens the next record in place.
    pub(super) fn open_record(&mut self, input: &mut Input) -> Result<Record, Termination> {
        let length = match self.tls.next_record_behind(input.cipher(), self.cx.plain, self.cx.wire) {
            Ok(None) => return Ok(Record::Partial),
            Ok(Some(length)) => length,
            Err(error) => return Err(Termination::from_error(CloseReason::TlsError, &error)),
        };
        let record = input.record(length);
        let start = record.as_ptr() as usize;
        match self.tls.open_behind(record, self.cx.plain, self.cx.wire) {
            Ok(Opened::Data(plaintext)) => {
                let offset = plaintext.as_ptr() as usize - start;
                Ok(Record::Data { length, plaintext: offset..offset + plaintext.len() })
            }
            Ok(Opened::Handled(handled)) => {
                if let Handled::KeyUpdate { .. } = handled {
                    self.cx.counters.add(Figure::KeyUpdates, 1);
                }
                input.skip_record(length);
                Ok(Record::Nothing)
            }
            // It sends no more, and may still read (RFC 8446 6.1): what is on its way to it arrives.
            Ok(Opened::CloseNotify) => Err(Termination::new(CloseReason::PeerClosed).heard()),
            Err(error) => Err(Termination::from_error(CloseReason::TlsError, &error)),
        }
    }

    /// Seals what was said since the last time into as few records as it takes.
    pub(super) fn seal_plain(&mut self) -> Result<(), Termination> {
        if self.cx.plain.is_empty() {
            return Ok(());
        }
        let sealed = self.tls.seal(self.cx.plain, self.cx.wire);
        self.cx.plain.clear();
        sealed.map_err(|error| Termination::from_error(CloseReason::TlsError, &error))
    }

    // --- Raw: opaque bytes ------------------------------------------------------------------------------------------

    fn handle_raw(&mut self, input: &mut Input, raw: &config::Raw) -> Result<Step, Termination> {
        if *self.phase == Phase::Unnamed {
            return Ok(Step::Named);
        }
        loop {
            if self.cx.uplink.len() >= self.cx.uplink_length {
                // Raw bytes cannot be dropped without breaking the protocol above: they wait in the socket.
                return Ok(Step::Paused);
            }
            match self.open_record(input)? {
                Record::Partial => return Ok(Step::Wait),
                Record::Nothing => {}
                Record::Data { length, plaintext } => {
                    let bytes = &input.record(length)[plaintext];
                    self.handle_raw_bytes(bytes, raw);
                    input.skip_record(length);
                }
            }
        }
    }

    fn handle_raw_bytes(&mut self, bytes: &[u8], raw: &config::Raw) {
        match raw::classify(&raw.heartbeat, bytes) {
            Payload::Heartbeats(count) => {
                self.cx.counters.add(Figure::HeartbeatsReceived, count as u64);
                // One for all of them: otherwise a record of short heartbeats would make megabytes of long replies.
                self.cx.plain.extend_from_slice(&raw.reply);
            }
            Payload::Data(bytes) => {
                for chunk in raw::chunks(bytes, RAW_CHUNK_BYTES) {
                    self.send_up("", chunk, None);
                }
            }
        }
    }

    // --- Native: frames ---------------------------------------------------------------------------------------------

    fn handle_native(&mut self, input: &mut Input) -> Result<Step, Termination> {
        loop {
            while let Some((frame, length)) = self.next_frame(input)? {
                let step = self.handle_frame(&frame)?;
                if matches!(step, Step::Paused) {
                    return Ok(step);
                }
                input.consume_plain(length);
                if !matches!(step, Step::Wait) {
                    return Ok(step);
                }
            }
            match self.open_record(input)? {
                Record::Partial => return Ok(Step::Wait),
                Record::Nothing => {}
                Record::Data { length, plaintext } => input.keep_plaintext(length, plaintext),
            }
        }
    }

    fn next_frame<'i>(&self, input: &'i Input) -> Result<Option<(Frame<'i>, usize)>, Termination> {
        native::decode(input.plain(), self.settings.frame_bytes).map_err(|error| {
            let reason = match error {
                native::Error::TooLong { .. } => CloseReason::FrameTooLarge,
                _ => CloseReason::ProtocolError,
            };
            Termination::from_error(reason, &error)
        })
    }

    /// [`Step::Paused`] means that the frame was not taken.
    fn handle_frame(&mut self, frame: &Frame) -> Result<Step, Termination> {
        match (*self.phase, frame) {
            (Phase::Unnamed, Frame::Hello(hello)) => return self.handle_hello(hello),
            (_, Frame::Close(_)) => return Err(Termination::new(CloseReason::DeviceClosed)),
            (Phase::Device, Frame::Ping(echo)) => {
                self.cx.counters.add(Figure::HeartbeatsReceived, 1);
                Frame::Pong(echo).encode(self.cx.plain);
            }
            (Phase::Device, Frame::Message(message)) => return Ok(self.handle_message(message)),
            (Phase::Device, Frame::Ack(message)) => self.handle_ack(*message),
            // PONG only refreshes liveness, which has happened already.
            (Phase::Device, Frame::Pong(_)) => {}
            (phase, frame) => {
                let when = if phase == Phase::Unnamed { "before HELLO" } else { "after HELLO" };
                return Err(Termination::because(
                    CloseReason::ProtocolError,
                    format!("{} is not allowed {when}", frame.name()),
                ));
            }
        }
        Ok(Step::Wait)
    }

    fn handle_hello(&mut self, hello: &native::Hello) -> Result<Step, Termination> {
        if self.device.is_empty() {
            *self.device = hello.id.into();
        } else if **self.device != *hello.id {
            return Err(Termination::because(
                CloseReason::IdentityMismatch,
                format!("HELLO names {:?}, the certificate names {:?}", hello.id, self.device),
            ));
        }
        if hello.heartbeat_ms != 0 {
            let heartbeat = &self.settings.heartbeat;
            let (configured, most) = (heartbeat.interval.as_millis() as u32, heartbeat.max.as_millis() as u32);
            let wanted = hello.heartbeat_ms.clamp(WANTED_INTERVAL_MIN_MS.min(configured), most.max(configured));
            let ticks = ticks_ceil(Duration::from_millis(u64::from(wanted)));
            *self.interval = u16::try_from(ticks).unwrap_or(u16::MAX);
        }
        if !self.settings.tokens {
            return Ok(Step::Named);
        }
        if hello.token.is_empty() {
            return Err(Termination::because(CloseReason::TokenRejected, "HELLO carries no token"));
        }
        *self.phase = Phase::Verifying;
        Ok(Step::Verify { name: self.device.clone(), secret: Bytes::copy_from_slice(hello.token) })
    }

    fn handle_message(&mut self, message: &native::Message) -> Step {
        let full = self.cx.uplink.len() >= self.cx.uplink_length;
        match (full, message.id) {
            (false, id) => self.send_up(message.topic, message.payload, (id != 0).then_some(id)),
            (true, 0) => self.cx.counters.add(Figure::MessagesDropped, 1),
            (true, _) => return Step::Paused,
        }
        Step::Wait
    }

    /// An ACK for something that nobody waits for any more is no fault of the device's.
    fn handle_ack(&mut self, message: u32) {
        let Some(buffers) = self.buffers.as_deref_mut() else { return };
        let Some(place) = buffers.awaited.iter().position(|awaited| awaited.message == message) else { return };
        let awaited = buffers.awaited.remove(place).expect("the place was found");
        self.cx.counters.add(Figure::MessagesConfirmed, 1);
        self.cx.uplink.push(Uplink::Sent { request: awaited.request, outcome: Outcome::Acknowledged });
    }

    /// The one copy that a message costs on its way up.
    fn send_up(&mut self, topic: &str, payload: &[u8], acknowledge: Option<u32>) {
        self.cx.counters.add(Figure::MessagesReceived, 1);
        self.cx.uplink.push(Uplink::Message(Message {
            device: self.device.clone(),
            connection: self.id,
            topic: topic.into(),
            payload: Bytes::copy_from_slice(payload),
            receipt: acknowledge.map(|id| Receipt::Connection(self.id, id)),
        }));
    }

    // --- What the gateway says --------------------------------------------------------------------------------------

    pub(super) fn send_welcome(&mut self) -> Result<(), Termination> {
        let heartbeat = &self.settings.heartbeat;
        let welcome = native::Welcome {
            heartbeat_ms: u32::from(*self.interval) * TICK_MS,
            timeout_ms: heartbeat.timeout.as_millis() as u32,
            retries: heartbeat.retries,
            body_max: self.settings.frame_bytes as u16,
        };
        Frame::Welcome(welcome).encode(self.cx.plain);
        self.seal_plain()
    }

    pub(super) fn send_probe(&mut self) -> Result<(), Termination> {
        match &self.settings.protocol {
            Protocol::Native => Frame::Ping(&[]).encode(self.cx.plain),
            Protocol::Raw(raw) => self.cx.plain.extend_from_slice(&raw.probe),
            Protocol::Mqtt(_) => unreachable!("it is the device that shows life"),
        }
        self.seal_plain()
    }

    /// `message` is the id under which the device shall acknowledge it; 0: it need not.
    pub(super) fn send_message(&mut self, downlink: &Downlink, message: u32) -> Result<(), Termination> {
        match self.settings.protocol {
            Protocol::Native => {
                let (topic, payload) = (&*downlink.topic, &*downlink.payload);
                Frame::Message(native::Message { id: message, topic, payload }).encode(self.cx.plain);
            }
            Protocol::Raw(_) => self.cx.plain.extend_from_slice(&downlink.payload),
            Protocol::Mqtt(_) => unreachable!("its session has what is for it"),
        }
        self.cx.counters.add(Figure::MessagesSent, 1);
        self.seal_plain()
    }

    pub(super) fn send_ack(&mut self, message: u32) -> Result<(), Termination> {
        Frame::Ack(message).encode(self.cx.plain);
        self.seal_plain()
    }

    /// CLOSE where the protocol has it, then close_notify. A layer that has failed says nothing more: its alert is
    /// already on its way.
    pub(super) fn send_close(&mut self, termination: &Termination) {
        if let (Protocol::Native, Some(code)) = (&self.settings.protocol, close_code(termination.reason)) {
            let words = if termination.detail.is_empty() { termination.reason.label() } else { &termination.detail };
            let close = native::Close {
                code,
                retry_after_ms: termination.retry_after_ms,
                reason: &words[..words.floor_char_boundary(native::REASON_MAX)],
            };
            Frame::Close(close).encode(self.cx.plain);
            // A layer that cannot seal any more has nothing to be added to it.
            let _ = self.seal_plain();
        }
        if let (Protocol::Mqtt(_), false) = (&self.settings.protocol, termination.is_sent) {
            self.encode_disconnect(termination);
            let _ = self.seal_plain();
        }
        self.tls.close_notify(self.cx.wire);
    }
}

//! The native protocol within an open connection: frames to what they mean, and back.

use std::time::Duration;

use bytes::Bytes;

use super::close::close_code;
use super::transport::{OpenConnection, Progress};
use super::{Input, Phase, Step, Termination};
use crate::codec::native::{self, Frame};
use crate::link::{CloseReason, Credentials, Downlink, Message, Outcome, Receipt, WorkerEvent};
use crate::metrics::Metric;
use crate::time::{TICK_MICROS, ticks_ceil};

/// The shortest heartbeat interval that a device may ask for, unless the operator's own is shorter.
const WANTED_INTERVAL_MIN_MS: u32 = 1_000;
const TICK_MS: u32 = (TICK_MICROS / 1_000) as u32;

impl OpenConnection<'_, '_> {
    pub(super) fn handle_native(&mut self, input: &mut Input) -> Result<Progress, Termination> {
        while let Some((frame, length)) = self.next_frame(input)? {
            let step = self.handle_frame(&frame);
            if matches!(step, Ok(Step::Paused | Step::Yielding)) {
                return step.map(Progress::Do);
            }
            self.trace_frame(&frame, length);
            let step = step?;
            input.consume_plain(length);
            if !matches!(step, Step::Wait) {
                return Ok(Progress::Do(step));
            }
        }
        Ok(Progress::NeedsMore)
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

    /// [`Step::Paused`] and [`Step::Yielding`] mean that the frame was not taken.
    fn handle_frame(&mut self, frame: &Frame) -> Result<Step, Termination> {
        match (*self.phase, frame) {
            (Phase::Unnamed, Frame::Hello(hello)) => return self.handle_hello(hello),
            (_, Frame::Close(_)) => return Err(Termination::new(CloseReason::DeviceClosed)),
            (Phase::Device, Frame::Ping(echo)) => {
                self.cx.counters.add(Metric::HeartbeatsReceived, 1);
                Frame::Pong(echo).encode(self.cx.plain);
            }
            (Phase::Device, Frame::Message(message)) => return Ok(self.handle_message(message)),
            (Phase::Device, Frame::Ack(message)) => self.handle_ack(*message),
            // PONG only refreshes liveness.
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
        let is_certified = self.is_certified();
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
        let entry = self.settings.entry;
        if !entry.asks || (entry.certificate_passes && is_certified) {
            return Ok(Step::Named);
        }
        if hello.token.is_empty() && entry.needs_secret {
            return Err(Termination::because(CloseReason::TokenRejected, "HELLO carries no token"));
        }
        *self.phase = Phase::Verifying;
        Ok(Step::Verify(Box::new(Credentials {
            device: self.device.clone(),
            name: self.device.clone(),
            secret: Credentials::keep(hello.token),
            is_certified,
            has_method: false,
            is_renewal: false,
        })))
    }

    fn handle_message(&mut self, message: &native::Message) -> Step {
        let full = self.cx.is_uplink_full();
        if !full && message.id == 0 && self.cx.is_uplink_crowded() {
            return Step::Yielding;
        }
        match (full, message.id) {
            (false, id) => self.send_up(message.topic, message.payload, (id != 0).then_some(id)),
            (true, 0) => self.cx.counters.add(Metric::MessagesDropped, 1),
            (true, _) => return Step::Paused,
        }
        Step::Wait
    }

    /// An ACK for something that nobody waits for any more is no fault of the device's.
    fn handle_ack(&mut self, message: u32) {
        let Some(buffers) = self.buffers.as_deref_mut() else { return };
        let Some(place) = buffers.awaited.iter().position(|awaited| awaited.message == message) else { return };
        let awaited = buffers.awaited.remove(place).expect("the place was found");
        self.cx.counters.add(Metric::MessagesConfirmed, 1);
        self.cx.uplink.push(WorkerEvent::Sent { request: awaited.request, outcome: Outcome::Acknowledged });
    }

    /// The one copy that a message costs on its way up.
    pub(super) fn send_up(&mut self, topic: &str, payload: &[u8], acknowledge: Option<u32>) {
        self.cx.counters.add(Metric::MessagesReceived, 1);
        self.cx.uplink.push(WorkerEvent::Message(Message {
            device: self.device.clone(),
            connection: self.id,
            topic: topic.into(),
            payload: Bytes::copy_from_slice(payload),
            published: None,
            receipt: acknowledge.map(|id| Receipt::Connection(self.id, id)),
            charge: Some(self.cx.charge_up(topic.len() + payload.len())),
        }));
    }

    // --- What the gateway sends -------------------------------------------------------------------------------------

    pub(super) fn encode_welcome(&mut self) {
        let heartbeat = &self.settings.heartbeat;
        let welcome = native::Welcome {
            heartbeat_ms: u32::from(*self.interval) * TICK_MS,
            timeout_ms: heartbeat.timeout.as_millis() as u32,
            retries: heartbeat.retries,
            body_max: self.settings.frame_bytes as u16,
        };
        Frame::Welcome(welcome).encode(self.cx.plain);
    }

    /// `message` is the id under which the device shall acknowledge it; 0: it need not.
    pub(super) fn encode_message(&mut self, downlink: &Downlink, message: u32) {
        let (topic, payload) = (&*downlink.topic, &*downlink.payload);
        Frame::Message(native::Message { id: message, topic, payload }).encode(self.cx.plain);
    }

    pub(super) fn send_ack(&mut self, message: u32) -> Result<(), Termination> {
        Frame::Ack(message).encode(self.cx.plain);
        self.seal_plain()
    }

    /// CLOSE, if the reason has a code.
    pub(super) fn encode_close(&mut self, termination: &Termination) {
        let Some(code) = close_code(termination.reason) else { return };
        let words = if termination.detail.is_empty() { termination.reason.label() } else { &termination.detail };
        let close = native::Close {
            code,
            retry_after_ms: termination.retry_after_ms,
            reason: &words[..words.floor_char_boundary(native::REASON_MAX)],
        };
        Frame::Close(close).encode(self.cx.plain);
    }
}

/// Why a native device cannot be told this, if so.
pub(super) fn refusal(downlink: &Downlink) -> Option<&'static str> {
    if downlink.topic.len() > native::TOPIC_MAX {
        Some("the topic is longer than 255 bytes")
    } else if downlink.topic.chars().any(char::is_control) {
        Some("the topic has control characters")
    } else if native::MESSAGE_OVERHEAD + downlink.topic.len() + downlink.payload.len() > native::BODY_MAX {
        Some("topic and payload are longer than a frame")
    } else {
        None
    }
}

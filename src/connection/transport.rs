//! An open connection's way in and out: records opened and sealed, and the one loop from their plaintext to what the device
//! protocol makes of it.
//!
//! ```text
//!   ciphertext ──open_record──▶ plaintext, gathered in the input ──handle_plaintext (protocol.rs)──▶ Step
//!   cx.plain   ──seal_plain──▶ records in cx.wire
//! ```

use std::ops::Range;

use super::websocket::{self, Carrier};
use super::{
    Announcement, Buffers, Connection, Context, Input, ListenerSettings, Naming, Phase, State, Step, Termination,
};
use crate::codec::websocket::{Decoder, Kind, encode_header};
use crate::link::{CloseReason, ConnectionId};
use crate::metrics::Metric;
use crate::tls::record::{Burst, Handled, Opened};

/// An open connection taken apart for the length of one call, so that the keys that the record layer rebuilds are kept
/// for all of its records.
pub(super) struct OpenConnection<'c, 'x> {
    tls: Burst<'c>,
    pub(super) phase: &'c mut Phase,
    pub(super) naming: &'c mut Naming,
    pub(super) carrier: &'c mut Carrier,
    pub(super) announcement: &'c mut Announcement,
    pub(super) interval: &'c mut u16,
    pub(super) device: &'c mut Box<str>,
    pub(super) buffers: Option<&'c mut Buffers>,
    pub(super) id: ConnectionId,
    pub(super) settings: &'c ListenerSettings,
    pub(super) cx: &'c mut Context<'x>,
}

impl OpenConnection<'_, '_> {
    /// Whether its client certificate has named it. To be asked before HELLO or CONNECT is looked at.
    pub(super) fn is_certified(&self) -> bool {
        self.naming.is_by_certificate() && !self.device.is_empty()
    }
}

impl Connection {
    /// Handles everything in `input`: records, and the frames within them.
    pub(super) fn handle_open(&mut self, input: &mut Input, settings: &ListenerSettings, cx: &mut Context) -> Step {
        let mut frames = self.buffers.as_mut().and_then(|buffers| buffers.frames.take());
        let mut open = self.as_open(settings, cx);
        let step = open.handle_records(input, &mut frames);
        // Answers to what was understood go out even when what came after it ends the connection.
        let sealed = open.seal_plain();
        if frames.is_some() {
            self.buffers.get_or_insert_default().frames = frames;
        }
        match step.and_then(|step| sealed.map(|()| step)) {
            Ok(step) => step,
            Err(termination) => Step::End(termination),
        }
    }

    /// The connection taken apart. It must be open.
    pub(super) fn as_open<'c, 'x>(
        &'c mut self,
        settings: &'c ListenerSettings,
        cx: &'c mut Context<'x>,
    ) -> OpenConnection<'c, 'x> {
        let State::Open { records, phase, naming, interval } = &mut self.state else {
            unreachable!("only an open connection is taken apart")
        };
        debug_assert!(cx.plain.is_empty());
        let id = ConnectionId { slot: cx.slot, generation: self.generation };
        OpenConnection {
            tls: records.burst(),
            phase,
            naming,
            carrier: &mut self.carrier,
            announcement: &mut self.announcement,
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
enum Record {
    /// Not all of it is there.
    Partial,
    /// It was nothing for the protocol above.
    Nothing,
    /// A record of `length` bytes, with this range of it opened.
    Data { length: usize, plaintext: Range<usize> },
}

/// What the device protocol made of the plaintext that is there.
pub(super) enum Progress {
    /// All of it that is whole was taken: more bytes are wanted.
    NeedsMore,
    /// This is to be done before the rest is looked at.
    Do(Step),
}

impl OpenConnection<'_, '_> {
    /// The one loop from records to protocol bytes. `frames`: a WebSocket message that has begun.
    fn handle_records(&mut self, input: &mut Input, frames: &mut Option<Box<Decoder>>) -> Result<Step, Termination> {
        let mut is_closing = false;
        loop {
            if *self.carrier != Carrier::Upgrading
                && let Progress::Do(step) = self.handle_plaintext(input)?
            {
                return Ok(step);
            }
            if is_closing {
                return Err(Termination::new(CloseReason::PeerClosed).heard());
            }
            if *self.carrier != Carrier::Plain {
                // What is sealed in front of an alert, should the next record be a wrong one, is in frames already.
                self.seal_plain()?;
            }
            let (length, plaintext) = match self.open_record(input)? {
                Record::Partial => return Ok(Step::Wait),
                Record::Nothing => continue,
                Record::Data { length, plaintext } => (length, plaintext),
            };
            match *self.carrier {
                Carrier::Plain => input.keep_plaintext(length, plaintext),
                Carrier::Upgrading => {
                    input.keep_plaintext(length, plaintext);
                    if let Some(announced) = self.handle_upgrade(input)? {
                        return Ok(Step::Announced(announced));
                    }
                }
                Carrier::Frames => {
                    is_closing = self.handle_frames(input, plaintext, frames)?;
                    input.skip_record(length);
                }
                Carrier::Closed => input.skip_record(length),
            }
        }
    }

    /// Opens the next record in place.
    fn open_record(&mut self, input: &mut Input) -> Result<Record, Termination> {
        let length = match self.tls.next_record_behind(input.cipher(), self.cx.plain, self.cx.wire) {
            Ok(None) => return Ok(Record::Partial),
            Ok(Some(length)) => length,
            Err(error) => return Err(Termination::from_error(CloseReason::TlsError, &error)),
        };
        let start = self.tls.content_start();
        match self.tls.open_behind(input.record(length), self.cx.plain, self.cx.wire) {
            Ok(Opened::Data(plaintext)) => Ok(Record::Data { length, plaintext: start..start + plaintext.len() }),
            Ok(Opened::Handled(handled)) => {
                if let Handled::KeyUpdate { .. } = handled {
                    self.cx.counters.add(Metric::KeyUpdates, 1);
                }
                input.skip_record(length);
                Ok(Record::Nothing)
            }
            // It sends no more, and may still read (RFC 8446 6.1): what is on its way to it arrives.
            Ok(Opened::CloseNotify) => Err(Termination::new(CloseReason::PeerClosed).heard()),
            Err(error) => Err(Termination::from_error(CloseReason::TlsError, &error)),
        }
    }

    /// Seals what was encoded since the last time into as few records as it takes.
    pub(super) fn seal_plain(&mut self) -> Result<(), Termination> {
        if self.cx.plain.is_empty() {
            return Ok(());
        }
        self.trace_plain();
        match *self.carrier {
            Carrier::Plain | Carrier::Upgrading => {}
            Carrier::Frames => {
                let mut header = Vec::with_capacity(10);
                encode_header(Kind::Binary, self.cx.plain.len(), &mut header);
                self.cx.plain.splice(0..0, header);
            }
            Carrier::Closed => self.cx.plain.clear(),
        }
        self.seal_bare()
    }

    /// Seals what is no protocol bytes: WebSocket's own.
    pub(super) fn seal_bare(&mut self) -> Result<(), Termination> {
        let sealed = self.tls.seal(self.cx.plain, self.cx.wire);
        self.cx.plain.clear();
        sealed.map_err(|error| Termination::from_error(CloseReason::TlsError, &error))
    }

    /// The carrier's own goodbye where it has one, then close_notify.
    pub(super) fn close_carrier(&mut self, termination: &Termination) {
        self.encode_websocket_close(websocket::close_code(termination.reason));
        self.tls.close_notify(self.cx.wire);
    }
}

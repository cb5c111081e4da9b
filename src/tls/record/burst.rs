//! Opening and sealing: what a connection does with each record, and what it answers.
//!
//! ```text
//! open(record) -> framing -> AEAD -> by content type:
//!     application data   handed to the caller
//!     alert              close_notify closes reading; a warning is counted; anything else ends the connection
//!     handshake          TLS 1.3: key update, at a client also new session tickets
//!                        TLS 1.2: a wish for renegotiation, refused once
//! ```

use aws_lc_rs::aead::LessSafeKey;

use super::error::{Alert, LEVEL_FATAL, LEVEL_WARNING, RecordError};
use super::framing::{ContentType, HEADER_LEN, PLAINTEXT_MAX, Stage, next_record};
use super::keys::SEQUENCE_MAX;
use super::shape::Shape;
use super::suite::{Role, Version};
use super::{EMPTY_RECORDS_MAX, KEY_UPDATES_MAX, RecordLayer, Status, WARNINGS_MAX, tls12, tls13};

/// Records that data leaves to alerts under each key: close_notify, no_renegotiation, and a fatal one. In TLS 1.3 the
/// key update that ends the key's life is among them.
const RECORDS_RESERVED: u64 = 4;

const CLIENT_HELLO: u8 = 1;
const HELLO_REQUEST: u8 = 0;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// What every KeyUpdate begins with: its type, and the length of its one byte.
const KEY_UPDATE_HEAD: [u8; Shape::PARTIAL_MAX] = [KEY_UPDATE, 0, 0, 1];

const UPDATE_NOT_REQUESTED: u8 = 0;
const UPDATE_REQUESTED: u8 = 1;

/// What a record held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened<'r> {
    /// Application data, in place. May be empty.
    Data(&'r [u8]),
    /// Nothing for the caller; there may be something new to send.
    Handled(Handled),
    /// The peer sends no more. In TLS 1.2 answer with [`Burst::close_notify`] and close (RFC 5246 7.2.1); in TLS 1.3
    /// our side may go on (RFC 8446 6.1).
    CloseNotify,
}

/// What the layer has dealt with itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// The peer has a new key. If it asked for one of ours, that is underway too.
    KeyUpdate {
        /// It asked.
        requested: bool,
    },
    /// A part of a handshake message; the rest is in the next record.
    Fragment,
    /// A warning alert with this description.
    Warning(u8),
    /// The peer wished to renegotiate and was told no.
    RenegotiationRefused,
    /// Session tickets for a client; resumption is not this layer's matter.
    SessionTickets,
    /// Something after the peer's close_notify, unread.
    AfterClose,
}

/// A connection at work: its keys in the form that opens and seals, each made at its first use.
pub struct Burst<'l> {
    layer: &'l mut RecordLayer,
    tx: Option<LessSafeKey>,
    rx: Option<LessSafeKey>,
}

impl<'l> Burst<'l> {
    pub(super) fn new(layer: &'l mut RecordLayer) -> Self {
        Self { layer, tx: None, rx: None }
    }

    /// Finds the next record at the front of `bytes`: its length, or `None` while it is incomplete. After the peer's
    /// close_notify all that there is counts as one record, which [`Burst::open`] ignores.
    ///
    /// # Errors
    /// As [`Burst::open`].
    pub fn next_record(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<usize>, RecordError> {
        self.next_record_behind(bytes, &mut Vec::new(), out)
    }

    /// The same as [`Burst::next_record`] for who has something to say that is not sealed yet: see
    /// [`Burst::open_behind`].
    ///
    /// # Errors
    /// As [`Burst::open`].
    pub fn next_record_behind(
        &mut self,
        bytes: &[u8],
        said: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<Option<usize>, RecordError> {
        if self.layer.status.has(Status::FAILED) {
            return Err(RecordError::Closed);
        }
        if self.layer.status.has(Status::READ_CLOSED) {
            return Ok((!bytes.is_empty()).then_some(bytes.len()));
        }
        next_record(bytes, Stage::Protected(self.layer.version())).map_err(|error| self.fail(error.into(), said, out))
    }

    /// Opens one whole record, header included, in place. Answers that the protocol demands are appended to `out`.
    ///
    /// # Errors
    /// The connection is over: the fatal alert, if one is due, is in `out`, the keys are wiped, and every further
    /// call says [`RecordError::Closed`].
    pub fn open<'r>(&mut self, record: &'r mut [u8], out: &mut Vec<u8>) -> Result<Opened<'r>, RecordError> {
        self.open_behind(record, &mut Vec::new(), out)
    }

    /// The same as [`Burst::open`] for who has something to say that is not sealed yet: should this record be a wrong
    /// one, the answers to those before it are sealed in front of the alert that ends the connection, and `said` is
    /// empty then.
    ///
    /// # Errors
    /// As [`Burst::open`].
    pub fn open_behind<'r>(
        &mut self,
        record: &'r mut [u8],
        said: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<Opened<'r>, RecordError> {
        if self.layer.status.has(Status::FAILED) {
            return Err(RecordError::Closed);
        }
        // RFC 8446 6.1, RFC 5246 7.2.1: "Any data received after a closure alert has been received MUST be ignored."
        if self.layer.status.has(Status::READ_CLOSED) {
            return Ok(Opened::Handled(Handled::AfterClose));
        }
        self.open_live(record, out).map_err(|error| self.fail(error, said, out))
    }

    /// Where what [`Burst::open`] hands out begins in a record: behind the header, and the nonce where the record has one.
    #[must_use]
    pub fn content_start(&self) -> usize {
        match self.layer.version() {
            Version::Tls12 => HEADER_LEN + tls12::explicit_len(self.layer.suite),
            Version::Tls13 => HEADER_LEN,
        }
    }

    /// Seals application data into as many records as it needs, appended to `out`. Empty data needs none.
    ///
    /// # Errors
    /// Nothing has been appended and the connection is as it was: [`RecordError::Closed`] after close_notify or a
    /// failure; [`RecordError::KeyExhausted`] when a TLS 1.2 key must not seal that many records more (there is room
    /// left for close_notify). A TLS 1.3 key is updated instead.
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), RecordError> {
        if !self.layer.can_seal() {
            return Err(RecordError::Closed);
        }
        let limit = self.layer.shape.limit().bytes();
        let records = plaintext.len().div_ceil(limit);
        if self.layer.version() == Version::Tls12 && self.data_records_left() < records as u64 {
            return Err(RecordError::KeyExhausted);
        }
        out.reserve(plaintext.len() + records * tls12::OVERHEAD.max(tls13::OVERHEAD));
        for content in plaintext.chunks(limit) {
            // RFC 8446 5.5: "there are cryptographic limits on the amount of plaintext which can be safely encrypted
            // under a given set of keys"; at ours we change them.
            if self.data_records_left() == 0 && !self.update_keys(false, out) {
                return Err(RecordError::KeyExhausted);
            }
            self.seal_record(ContentType::ApplicationData, content, out);
        }
        Ok(())
    }

    /// Says that we send no more. Twice is once.
    pub fn close_notify(&mut self, out: &mut Vec<u8>) {
        self.seal_alert(Alert::CloseNotify, out);
        self.layer.status.set(Status::WRITE_CLOSED);
    }

    /// Sends an alert; a fatal one ends the connection. After close_notify or a failure it does nothing.
    pub fn alert(&mut self, alert: Alert, out: &mut Vec<u8>) {
        match alert {
            Alert::CloseNotify => self.close_notify(out),
            alert if alert.is_fatal() => {
                self.seal_alert(alert, out);
                self.end();
            }
            alert => self.seal_alert(alert, out),
        }
    }

    /// Changes our sending key (RFC 8446 4.6.3), and asks the peer for the same if `request_peer`. False, and nothing
    /// done, in TLS 1.2, when our side is closed, and when alerts have used up the last of the key.
    pub fn update_keys(&mut self, request_peer: bool, out: &mut Vec<u8>) -> bool {
        if self.layer.version() == Version::Tls12 || !self.layer.can_seal() || self.records_left() == 0 {
            return false;
        }
        let request = if request_peer { UPDATE_REQUESTED } else { UPDATE_NOT_REQUESTED };
        // "Both sender and receiver MUST encrypt their KeyUpdate messages with the old keys."
        self.seal_record(ContentType::Handshake, &[KEY_UPDATE, 0, 0, 1, request], out);
        self.layer.tx.update(self.layer.suite);
        self.tx = None;
        true
    }

    /// Says a handshake message that has no place after the handshake: a ClientHello asks to renegotiate (RFC 5246 7.4.1.2;
    /// RFC 8446 4.1.2 leaves no renegotiation). For harnesses that attack servers: nothing that behaves needs it. After
    /// close_notify, a failure or the key's last record it does nothing.
    ///
    /// # Panics
    /// When `message` does not fit into one record.
    pub fn handshake_message(&mut self, message: &[u8], out: &mut Vec<u8>) {
        assert!(message.len() <= PLAINTEXT_MAX, "a message of one record");
        if self.layer.can_seal() && self.records_left() > 0 {
            self.seal_record(ContentType::Handshake, message, out);
        }
    }

    fn open_live<'r>(&mut self, record: &'r mut [u8], out: &mut Vec<u8>) -> Result<Opened<'r>, RecordError> {
        if next_record(record, Stage::Protected(self.layer.version()))? != Some(record.len()) {
            return Err(RecordError::Decode);
        }
        if self.layer.rx.sequence() == SEQUENCE_MAX {
            return Err(RecordError::SequenceExhausted);
        }
        let RecordLayer { rx: direction, suite, .. } = &*self.layer;
        let key = self.rx.get_or_insert_with(|| direction.aead(*suite));
        let (kind, content) = match suite.version() {
            Version::Tls12 => tls12::open(key, *suite, direction, record)?,
            Version::Tls13 => tls13::open(key, direction, record)?,
        };
        self.layer.rx.advance();
        // RFC 8446 5.1: between the parts of a handshake message "there MUST NOT be any other records".
        if self.layer.shape.partial() > 0 && kind != ContentType::Handshake {
            return Err(RecordError::UnexpectedMessage);
        }
        match kind {
            ContentType::ApplicationData => self.handle_data(content),
            ContentType::Alert => self.handle_alert(content),
            ContentType::Handshake => self.handle_handshake(content, out).map(Opened::Handled),
            // RFC 8446 5: who "receives a protected change_cipher_spec record MUST abort [...] with an
            // "unexpected_message" alert".
            ContentType::ChangeCipherSpec => Err(RecordError::UnexpectedMessage),
        }
    }

    fn handle_data<'r>(&mut self, content: &'r [u8]) -> Result<Opened<'r>, RecordError> {
        let layer = &mut *self.layer;
        if !content.is_empty() {
            layer.empty_records = 0;
            layer.key_updates = 0;
        } else if layer.empty_records < EMPTY_RECORDS_MAX {
            layer.empty_records += 1;
        } else {
            return Err(RecordError::TooManyEmpty);
        }
        Ok(Opened::Data(content))
    }

    fn handle_alert<'r>(&mut self, content: &[u8]) -> Result<Opened<'r>, RecordError> {
        check_not_empty(content)?;
        // RFC 8446 5.1: "a record with an Alert type MUST contain exactly one message". TLS 1.2 would allow more or
        // less; nobody does that with two bytes.
        let &[level, description] = content else { return Err(RecordError::Decode) };
        let is_warning = match self.layer.version() {
            // RFC 8446 6: the level "can safely be ignored": all but these two "MUST be treated as error alerts".
            Version::Tls13 => description == Alert::UserCanceled as u8,
            Version::Tls12 => match level {
                LEVEL_WARNING => true,
                LEVEL_FATAL => false,
                _ => return Err(RecordError::IllegalParameter),
            },
        };
        if description == Alert::CloseNotify as u8 {
            self.layer.status.set(Status::READ_CLOSED);
            Ok(Opened::CloseNotify)
        } else if !is_warning {
            Err(RecordError::PeerAlert(description))
        } else if self.layer.status.warnings() == WARNINGS_MAX {
            Err(RecordError::TooManyWarnings)
        } else {
            self.layer.status.add_warning();
            Ok(Opened::Handled(Handled::Warning(description)))
        }
    }

    fn handle_handshake(&mut self, content: &[u8], out: &mut Vec<u8>) -> Result<Handled, RecordError> {
        check_not_empty(content)?;
        let mut joined = [0; Shape::PARTIAL_MAX + 1];
        let mut rest = match self.layer.version() {
            Version::Tls12 => content,
            Version::Tls13 => match self.join_key_update(content, &mut joined)? {
                Some(message) => message,
                None => return Ok(Handled::Fragment),
            },
        };
        loop {
            let (kind, body) = split_message(&mut rest)?;
            let handled = match (self.layer.version(), kind, self.layer.role()) {
                // RFC 8446 5.1: messages "immediately preceding a key change" must "align with a record boundary; if
                // not, then they MUST terminate the connection with an "unexpected_message" alert".
                (Version::Tls13, KEY_UPDATE, _) if !rest.is_empty() => return Err(RecordError::UnexpectedMessage),
                (Version::Tls13, KEY_UPDATE, _) => self.handle_key_update(body, out)?,
                (Version::Tls13, NEW_SESSION_TICKET, Role::Client) => Handled::SessionTickets,
                (Version::Tls12, HELLO_REQUEST, Role::Client) | (Version::Tls12, CLIENT_HELLO, Role::Server) => {
                    self.refuse_renegotiation(out)?
                }
                // RFC 8446 4.6.2 and 4.1.2 among others: neither a second hello nor a CertificateRequest that nobody
                // offered to answer is to be expected now.
                _ => return Err(RecordError::UnexpectedMessage),
            };
            if rest.is_empty() {
                return Ok(handled);
            }
        }
    }

    /// A KeyUpdate may come in parts (RFC 8446 5.1). All of its encoding but the last byte is known before it comes, so
    /// that a count is all that has to be kept of it. None: more is to come. What is no KeyUpdate passes as it is.
    fn join_key_update<'m>(
        &mut self,
        content: &'m [u8],
        joined: &'m mut [u8; Shape::PARTIAL_MAX + 1],
    ) -> Result<Option<&'m [u8]>, RecordError> {
        let begun = self.layer.shape.partial();
        if begun == 0 && (content[0] != KEY_UPDATE || content.len() > Shape::PARTIAL_MAX) {
            return Ok(Some(content));
        }
        // RFC 8446 5.1: a message before a key change must end with its record.
        let whole = begun + content.len();
        if whole > joined.len() {
            return Err(RecordError::UnexpectedMessage);
        }
        let head = whole.min(Shape::PARTIAL_MAX);
        if !KEY_UPDATE_HEAD[begun..head].iter().eq(&content[..head - begun]) {
            return Err(RecordError::Decode);
        }
        if whole < joined.len() {
            self.layer.shape.set_partial(whole);
            return Ok(None);
        }
        self.layer.shape.set_partial(0);
        joined[..Shape::PARTIAL_MAX].copy_from_slice(&KEY_UPDATE_HEAD);
        joined[Shape::PARTIAL_MAX] = content[content.len() - 1];
        Ok(Some(joined))
    }

    fn handle_key_update(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<Handled, RecordError> {
        let &[request] = body else { return Err(RecordError::Decode) };
        // RFC 8446 4.6.3: with "any other value" the connection ends with an "illegal_parameter" alert.
        if !matches!(request, UPDATE_NOT_REQUESTED | UPDATE_REQUESTED) {
            return Err(RecordError::IllegalParameter);
        }
        if self.layer.key_updates == KEY_UPDATES_MAX {
            return Err(RecordError::TooManyKeyUpdates);
        }
        self.layer.key_updates += 1;
        self.layer.rx.update(self.layer.suite);
        self.rx = None;
        // RFC 8446 4.6.3: "the receiver MUST send a KeyUpdate of its own with request_update set to
        // "update_not_requested" prior to sending its next Application Data record".
        let requested = request == UPDATE_REQUESTED;
        if requested {
            self.update_keys(false, out);
        }
        Ok(Handled::KeyUpdate { requested })
    }

    /// RFC 5246 7.4.1.1 and 7.4.1.2: whoever does not wish to renegotiate may answer with a no_renegotiation warning.
    fn refuse_renegotiation(&mut self, out: &mut Vec<u8>) -> Result<Handled, RecordError> {
        if self.layer.status.has(Status::RENEGOTIATION) {
            return Err(RecordError::Renegotiation);
        }
        self.layer.status.set(Status::RENEGOTIATION);
        self.seal_alert(Alert::NoRenegotiation, out);
        Ok(Handled::RenegotiationRefused)
    }

    /// Ends the connection over `error`, telling the peer, after the answers to what was right.
    fn fail(&mut self, error: RecordError, said: &mut Vec<u8>, out: &mut Vec<u8>) -> RecordError {
        if let Some(alert) = error.alert() {
            // A key that is used up seals no answers; the alert has a record of its own.
            let _ = self.seal(said, out);
            said.clear();
            self.seal_alert(alert, out);
        }
        self.end();
        error
    }

    fn end(&mut self) {
        self.layer.fail();
        self.tx = None;
        self.rx = None;
    }

    /// Nothing follows close_notify or a fatal alert, and nothing is sealed beyond the key's last record.
    fn seal_alert(&mut self, alert: Alert, out: &mut Vec<u8>) {
        if !self.layer.status.has(Status::WRITE_CLOSED) && self.records_left() > 0 {
            self.seal_record(ContentType::Alert, &alert.message(), out);
        }
    }

    pub(super) fn seal_record(&mut self, kind: ContentType, content: &[u8], out: &mut Vec<u8>) {
        assert!(self.records_left() > 0, "a key must not seal beyond its limit");
        let RecordLayer { tx: direction, suite, .. } = &*self.layer;
        let key = self.tx.get_or_insert_with(|| direction.aead(*suite));
        match suite.version() {
            Version::Tls12 => tls12::seal(key, *suite, direction, kind, content, out),
            Version::Tls13 => tls13::seal(key, direction, kind, content, out),
        }
        self.layer.tx.advance();
    }

    /// Records that our key may still seal.
    fn records_left(&self) -> u64 {
        self.layer.suite.records_per_key().saturating_sub(self.layer.tx.sequence())
    }

    /// Of them, those that may be data.
    fn data_records_left(&self) -> u64 {
        self.records_left().saturating_sub(RECORDS_RESERVED)
    }
}

/// RFC 8446 5.4: Handshake and Alert records of zero-length content end the connection with an "unexpected_message"
/// alert. RFC 5246 6.2.1 forbids them as well.
fn check_not_empty(content: &[u8]) -> Result<(), RecordError> {
    if content.is_empty() { Err(RecordError::UnexpectedMessage) } else { Ok(()) }
}

/// Takes one handshake message off the front: its type and its body.
///
/// ```text
/// | type | length, 3 bytes | body |
/// ```
fn split_message<'m>(rest: &mut &'m [u8]) -> Result<(u8, &'m [u8]), RecordError> {
    let (&[kind, high, middle, low], after) = rest.split_first_chunk().ok_or(RecordError::Fragmented)?;
    let length = u32::from_be_bytes([0, high, middle, low]) as usize;
    let (body, after) = after.split_at_checked(length).ok_or(RecordError::Fragmented)?;
    *rest = after;
    Ok((kind, body))
}

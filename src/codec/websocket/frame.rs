//! Frames (RFC 6455 5): a client's are masked and read, a server's are not and are written.
//!
//! ```text
//!   FIN RSV opcode   MASK length   (length: 16 or 64 bits)   mask: 32 bits   payload
//! ```

use std::fmt;
use std::ops::Range;

/// The longest payload of a control frame (5.5).
pub const PAYLOAD_CONTROL_MAX: usize = 125;
/// The longest header of a client's frame.
const HEADER_MAX: usize = 14;

const FIN: u8 = 0x80;
const RSV: u8 = 0x70;
const MASK: u8 = 0x80;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// What a message is (5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// UTF-8.
    Text,
    /// Bytes.
    Binary,
}

/// What came next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A part of a message. May be empty.
    Data {
        /// Of which kind the message is.
        kind: Kind,
        /// Where it is in the bytes that were handed in, unmasked.
        payload: Range<usize>,
        /// Whether it is the message's last part.
        is_last: bool,
    },
    /// PING, to be answered by PONG with the same payload (5.5.2).
    Ping(Payload),
    /// PONG.
    Pong,
    /// CLOSE, to be answered by CLOSE; nothing behind it is looked at.
    Close(Close),
}

/// The payload of a control frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    bytes: [u8; PAYLOAD_CONTROL_MAX],
    length: u8,
}

impl Payload {
    const EMPTY: Payload = Payload { bytes: [0; PAYLOAD_CONTROL_MAX], length: 0 };

    /// Its bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    fn extend(&mut self, more: &[u8]) {
        let start = usize::from(self.length);
        self.bytes[start..start + more.len()].copy_from_slice(more);
        self.length += more.len() as u8;
    }
}

/// Why the peer closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    /// A code that may be sent (7.4); `None`: it says nothing.
    pub code: Option<u16>,
}

/// The bytes are no frame that a client may send. The connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// The code for the CLOSE that tells the peer (7.4.1).
    pub code: u16,
    /// In words.
    pub what: &'static str,
}

impl Error {
    const fn protocol(what: &'static str) -> Self {
        Self { code: 1002, what }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }
}

impl std::error::Error for Error {}

/// Where in the stream of frames a connection is. Between messages it is its default, and need not be kept.
///
/// ```
/// use pulsegate::codec::websocket::{Decoder, Event};
///
/// // A whole binary message of two bytes, masked with 1, 2, 3, 4.
/// let mut bytes = [0x82, 0x82, 1, 2, 3, 4, 0xC0 ^ 1, 0x00 ^ 2];
/// let mut decoder = Decoder::default();
/// let (behind, event) = decoder.next(&mut bytes, 0)?;
/// let Some(Event::Data { payload, .. }) = event else { panic!("{event:?}") };
/// assert_eq!(bytes[payload], [0xC0, 0x00]); // unmasked in place
/// assert!(behind == bytes.len() && decoder.is_idle());
/// # Ok::<(), pulsegate::codec::websocket::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoder {
    /// The message that has begun and has not ended.
    message: Option<Kind>,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// A header, of which there are so many bytes.
    Header { bytes: [u8; HEADER_MAX], length: u8 },
    /// The payload of a data frame.
    Data { left: u64, mask: [u8; 4], is_final: bool },
    /// The payload of a control frame, unmasked as far as it has come.
    Control { opcode: u8, length: u8, mask: [u8; 4], payload: Payload },
}

impl Default for State {
    fn default() -> Self {
        State::Header { bytes: [0; HEADER_MAX], length: 0 }
    }
}

impl Decoder {
    /// Whether it is between messages.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }

    /// Looks at `bytes` from `from` on, as far as one event: the event, if there is one, and where to go on. Without an event
    /// everything was looked at.
    ///
    /// # Errors
    /// [`Error`] when the bytes are no frame that a client may send.
    pub fn next(&mut self, bytes: &mut [u8], mut from: usize) -> Result<(usize, Option<Event>), Error> {
        loop {
            // A frame without a payload is over with its header.
            if let Some(event) = self.finish_frame(from..from)? {
                return Ok((from, Some(event)));
            }
            if from == bytes.len() {
                return Ok((from, None));
            }
            match &mut self.state {
                State::Header { bytes: header, length } => {
                    header[usize::from(*length)] = bytes[from];
                    *length += 1;
                    from += 1;
                    if let Some(state) = decode_header(&header[..usize::from(*length)], &mut self.message)? {
                        self.state = state;
                    }
                }
                State::Data { left, mask, is_final } => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - from);
                    let payload = from..from + taken;
                    unmask(&mut bytes[payload.clone()], mask);
                    *left -= taken as u64;
                    let kind = self.message.expect("a message has begun");
                    let is_last = *left == 0 && *is_final;
                    let next = payload.end;
                    let over = self.finish_frame(payload.clone())?;
                    return Ok((next, Some(over.unwrap_or(Event::Data { kind, payload, is_last }))));
                }
                State::Control { length, mask, payload, .. } => {
                    let taken = usize::from(*length - payload.length).min(bytes.len() - from);
                    unmask(&mut bytes[from..from + taken], mask);
                    payload.extend(&bytes[from..from + taken]);
                    from += taken;
                }
            }
        }
    }

    /// The event of a frame whose payload is all there, `data` being the last of it. It is between frames then.
    fn finish_frame(&mut self, data: Range<usize>) -> Result<Option<Event>, Error> {
        let event = match self.state {
            State::Data { left: 0, is_final, .. } => {
                let kind = self.message.expect("a message has begun");
                if is_final {
                    self.message = None;
                }
                Event::Data { kind, payload: data, is_last: is_final }
            }
            State::Control { opcode, length, payload, .. } if length == payload.length => match opcode {
                PING => Event::Ping(payload),
                PONG => Event::Pong,
                _ => Event::Close(decode_close(payload.as_slice())?),
            },
            _ => return Ok(None),
        };
        self.state = State::default();
        Ok(Some(event))
    }

    // --- To another process, and back -------------------------------------------------------------------------------

    /// Appends it as bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(match self.message {
            None => 0,
            Some(Kind::Text) => 1,
            Some(Kind::Binary) => 2,
        });
        match &self.state {
            State::Header { bytes, length } => {
                out.extend_from_slice(&[0, *length]);
                out.extend_from_slice(&bytes[..usize::from(*length)]);
            }
            State::Data { left, mask, is_final } => {
                out.extend_from_slice(&[1, u8::from(*is_final)]);
                out.extend_from_slice(&left.to_be_bytes());
                out.extend_from_slice(mask);
            }
            State::Control { opcode, length, mask, payload } => {
                out.extend_from_slice(&[2, *opcode, *length, payload.length]);
                out.extend_from_slice(mask);
                out.extend_from_slice(payload.as_slice());
            }
        }
    }

    /// From exactly such bytes; `None`: they are none. Nothing in them is trusted.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (&message, rest) = bytes.split_first()?;
        let message = match message {
            0 => None,
            1 => Some(Kind::Text),
            2 => Some(Kind::Binary),
            _ => return None,
        };
        let (&state, rest) = rest.split_first()?;
        let state = match state {
            0 => {
                let (&length, rest) = rest.split_first()?;
                let is_partial = decode_header(rest, &mut message.clone()).is_ok_and(|state| state.is_none());
                if usize::from(length) != rest.len() || rest.len() >= HEADER_MAX || !is_partial {
                    return None;
                }
                let mut bytes = [0; HEADER_MAX];
                bytes[..rest.len()].copy_from_slice(rest);
                State::Header { bytes, length }
            }
            1 => {
                let (&[is_final, ref rest @ ..], []) = rest.split_first_chunk::<13>()? else { return None };
                let (left, mask) = rest.split_first_chunk::<8>()?;
                let left = u64::from_be_bytes(*left);
                if left == 0 || is_final > 1 || message.is_none() {
                    return None;
                }
                State::Data { left, mask: mask.try_into().ok()?, is_final: is_final == 1 }
            }
            2 => {
                let (&[opcode, length, held, ref mask @ ..], rest) = rest.split_first_chunk::<7>()?;
                let is_control = matches!(opcode, CLOSE | PING | PONG);
                if !is_control
                    || usize::from(length) > PAYLOAD_CONTROL_MAX
                    || held >= length
                    || usize::from(held) != rest.len()
                {
                    return None;
                }
                let mut payload = Payload::EMPTY;
                payload.extend(rest);
                State::Control { opcode, length, mask: *mask, payload }
            }
            _ => return None,
        };
        Some(Self { message, state })
    }
}

/// What follows the header, if that is whole. `message` is the one that has begun: a header goes on with it or begins one.
fn decode_header(header: &[u8], message: &mut Option<Kind>) -> Result<Option<State>, Error> {
    let Some(&first) = header.first() else { return Ok(None) };
    let (is_final, opcode) = (first & FIN != 0, first & 0x0F);
    if first & RSV != 0 {
        return Err(Error::protocol("reserved bits of a frame are set, and no extension was negotiated"));
    }
    match (opcode, *message) {
        (CONTINUATION, Some(_)) | (TEXT | BINARY, None) => {}
        (CONTINUATION, None) => return Err(Error::protocol("a frame continues no message")),
        (TEXT | BINARY, Some(_)) => return Err(Error::protocol("a message begins within another")),
        (CLOSE | PING | PONG, _) if is_final => {}
        (CLOSE | PING | PONG, _) => return Err(Error::protocol("a control frame is fragmented")),
        _ => return Err(Error::protocol("a frame has an unknown opcode")),
    }
    let Some(&second) = header.get(1) else { return Ok(None) };
    if second & MASK == 0 {
        return Err(Error::protocol("a client's frame is not masked"));
    }
    let is_control = opcode & 0x8 != 0;
    let short = usize::from(second & !MASK);
    if is_control && short > PAYLOAD_CONTROL_MAX {
        return Err(Error::protocol("a control frame has more than 125 bytes"));
    }
    let (size, least) = match short {
        126 => (2, 126),
        127 => (8, 1 << 16),
        _ => (0, 0),
    };
    let Some(extended) = header.get(2..2 + size) else { return Ok(None) };
    let length = match size {
        0 => short as u64,
        _ => extended.iter().fold(0, |length, &byte| length << 8 | u64::from(byte)),
    };
    // "the minimal number of bytes MUST be used", "the most significant bit MUST be 0" (5.2).
    if length < least || length > i64::MAX as u64 {
        return Err(Error::protocol("a frame's length is not written as it must be"));
    }
    let Some(mask) = header.get(2 + size..6 + size) else { return Ok(None) };
    let mask = mask.try_into().expect("four bytes were taken");
    if is_control {
        return Ok(Some(State::Control { opcode, length: length as u8, mask, payload: Payload::EMPTY }));
    }
    match opcode {
        TEXT => *message = Some(Kind::Text),
        BINARY => *message = Some(Kind::Binary),
        _ => {}
    }
    Ok(Some(State::Data { left: length, mask, is_final }))
}

/// Unmasks in place, and turns the mask so that it goes on where it was left.
fn unmask(bytes: &mut [u8], mask: &mut [u8; 4]) {
    for chunk in bytes.chunks_mut(4) {
        for (byte, mask) in chunk.iter_mut().zip(&*mask) {
            *byte ^= mask;
        }
    }
    mask.rotate_left(bytes.len() % 4);
}

fn decode_close(payload: &[u8]) -> Result<Close, Error> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() {
            Ok(Close { code: None })
        } else {
            Err(Error::protocol("CLOSE has half a code"))
        };
    };
    let code = u16::from_be_bytes(*code);
    // 7.4.1 and what was registered since; 1004 to 1006 and 1015 are never sent.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Error::protocol("CLOSE has a code that may not be sent"));
    }
    if std::str::from_utf8(reason).is_err() {
        return Err(Error { code: 1007, what: "the words of CLOSE are no UTF-8" });
    }
    Ok(Close { code: Some(code) })
}

// --- Ours --------------------------------------------------------------------------------------------------------------

/// Appends the header of a message of one frame with a payload of so many bytes, which is to follow.
pub fn encode_header(kind: Kind, length: usize, out: &mut Vec<u8>) {
    let opcode = match kind {
        Kind::Text => TEXT,
        Kind::Binary => BINARY,
    };
    put_header(opcode, length, out);
}

fn put_header(opcode: u8, length: usize, out: &mut Vec<u8>) {
    out.push(FIN | opcode);
    match length {
        0..=125 => out.push(length as u8),
        126..=0xFFFF => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

/// Appends the answer to a PING.
pub fn encode_pong(ping: &Payload, out: &mut Vec<u8>) {
    put_header(PONG, ping.as_slice().len(), out);
    out.extend_from_slice(ping.as_slice());
}

/// Appends CLOSE; `None`: without a code, as the answer to one without.
pub fn encode_close(code: Option<u16>, out: &mut Vec<u8>) {
    match code {
        None => put_header(CLOSE, 0, out),
        Some(code) => {
            put_header(CLOSE, 2, out);
            out.extend_from_slice(&code.to_be_bytes());
        }
    }
}

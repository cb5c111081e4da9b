//! A named connection as bytes: what travels beside its descriptor when it moves to its home.
//!
//! ```text
//!   version  listener  naming  carrier  interval  connected_at  device   saved plain  saved cipher  unsent   frames   record layer
//!     u8        u8       u8      u8       u16         u32       u8 + …   u32 + …      u32 + …       u32 + …  u32 + …  (tls::record)
//! ```
//! Integers are big-endian. Both ends are this program, but not always this process: nothing in it is trusted to be
//! well-formed.

use super::announced::Announcement;
use super::websocket::Carrier;
use super::{Buffers, Connection, ListenerSettings, Liveness, Naming, Phase, Saved, State, protocol};
use crate::codec::native;
use crate::codec::websocket::Decoder;
use crate::link::ListenerId;
use crate::time::Tick;
use crate::tls::record::{PLAINTEXT_MAX, RECORD_MAX, RecordLayer};
use crate::wire::{Reader, WireError};

const VERSION: u8 = 2;

/// The bytes are no image of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidImage;

impl std::fmt::Display for InvalidImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the bytes are not a moved connection of this version")
    }
}

impl std::error::Error for InvalidImage {}

impl From<WireError> for InvalidImage {
    fn from(_: WireError) -> Self {
        InvalidImage
    }
}

impl Connection {
    /// Appends the connection as bytes. It must be [moving](Connection::begin_move).
    pub fn pack(&self, out: &mut Vec<u8>) {
        let State::Open { records, phase: Phase::Moving, naming, interval } = &self.state else {
            unreachable!("only a moving connection is packed")
        };
        out.push(VERSION);
        out.push(self.listener.0);
        out.push(naming.code());
        out.push(self.carrier.code());
        out.extend_from_slice(&interval.to_be_bytes());
        out.extend_from_slice(&self.connected_at.0.to_be_bytes());
        out.push(self.device.len() as u8);
        out.extend_from_slice(self.device.as_bytes());
        let none = Buffers::default();
        let buffers = self.buffers.as_deref().unwrap_or(&none);
        let mut frames = Vec::new();
        if let Some(decoder) = &buffers.frames {
            decoder.encode(&mut frames);
        }
        for bytes in [&buffers.saved.plain, &buffers.saved.cipher, &buffers.unsent, &frames] {
            out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
            out.extend_from_slice(bytes);
        }
        records.encode(out);
    }

    /// A connection from bytes: named, and not yet a device of its new shard.
    ///
    /// # Errors
    /// [`InvalidImage`] when the bytes are anything else.
    pub fn unpack(bytes: &[u8], generation: u32, now: Tick) -> Result<Self, InvalidImage> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != VERSION {
            return Err(InvalidImage);
        }
        let listener = ListenerId(reader.u8()?);
        let naming = Naming::from_code(reader.u8()?).ok_or(InvalidImage)?;
        let carrier = Carrier::from_code(reader.u8()?).ok_or(InvalidImage)?;
        let interval = reader.u16()?;
        let connected_at = Tick(reader.u32()?);
        let length = usize::from(reader.u8()?);
        let device = std::str::from_utf8(reader.take(length)?).map_err(|_| InvalidImage)?;
        if !native::is_id(device) {
            return Err(InvalidImage);
        }
        let saved =
            Saved { plain: sized(&mut reader)?.to_vec(), cipher: sized(&mut reader)?.to_vec(), is_secret: true };
        let unsent = sized(&mut reader)?.to_vec();
        let frames = match sized(&mut reader)? {
            [] => None,
            bytes => Some(Box::new(Decoder::decode(bytes).ok_or(InvalidImage)?)),
        };
        let record_layer_bytes = reader.len();
        let (records, used) = RecordLayer::decode(reader.take_all()).ok_or(InvalidImage)?;
        if used != record_layer_bytes {
            return Err(InvalidImage);
        }
        let buffers = Buffers { saved, unsent, frames, ..Buffers::default() };
        Ok(Self {
            state: State::Open { records, phase: Phase::Unnamed, naming, interval },
            device: device.into(),
            buffers: (!buffers.is_empty()).then(|| Box::new(buffers)),
            liveness: Liveness::new(now),
            generation,
            connected_at,
            listener,
            carrier,
            announcement: Announcement::Complete,
        })
    }

    /// Whether it can live under these settings: it has an interval where it needs one, and what it has half-received has
    /// room in the scratch. What came from another process may have been received under larger bounds.
    #[must_use]
    pub fn fits(&self, settings: &ListenerSettings) -> bool {
        let State::Open { interval, .. } = self.state else { return false };
        // A connection is named, and so moves, behind its upgrade.
        let expected = if settings.websocket.is_some() { Carrier::Frames } else { Carrier::Plain };
        let has_frames = self.buffers.as_ref().is_some_and(|buffers| buffers.frames.is_some());
        if self.carrier != expected || (has_frames && self.carrier == Carrier::Plain) {
            return false;
        }
        if interval == 0 && !protocol::may_have_no_interval(settings) {
            return false;
        }
        let plain_max = native::HEADER_BYTES + settings.frame_bytes + PLAINTEXT_MAX;
        self.buffers.as_ref().is_none_or(|buffers| {
            buffers.saved.plain.len() <= plain_max && buffers.saved.cipher.len() <= RECORD_MAX + settings.read_bytes
        })
    }
}

/// Bytes behind their count.
fn sized<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], InvalidImage> {
    let length = reader.u32()?;
    Ok(reader.take(length as usize)?)
}
